"""Fit a Med-NCA, batch by batch: notice a run that fails, keep the best weights, stop and go on anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pynca import Model, Preparation
from pynca.errors import NotFinite
from pynca.files import check_writable, naming

from .ahead import Batches
from .optimizers import clip, moved_average
from .pipeline import loss_and_gradients, model_of, rules_of
from .recipe import Recipe
from .sampling import Slices, patches
from .state import ATTEMPTS, LOG, STATE, State, json_numbers, load_state, new_optimizers, write_state
from .tape import reused_memory

# A run has failed when its smoothed loss is this much above the lowest it had, or is no number.
_EXPLODED = 0.5
# ... or when its score has fallen this far below the best.
_COLLAPSED = 0.2


def fit_slices(
    slices: Slices,
    recipe: Recipe,
    preparation: Preparation,
    *,
    score: Callable[[Model], float] | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    judges: str = "",
    overwrite: bool = False,
    report: Callable[[dict[str, float]], None] = lambda entry: None,
    tick: Callable[[State, Recipe], None] = lambda state, recipe: None,
    threads: int | None = None,
    **options: Any,
) -> Model:
    """Train a Med-NCA on prepared slices and return the best, or the last, moving average of its weights.

    Parameters
    ----------
    slices : Slices
        Prepared training slices and labels.
    recipe : Recipe
    preparation : Preparation
        How the slices were prepared; it goes into the model.
    score : callable, optional
        Takes a model and returns what is to be large, such as validation Dice; a model whose runs do not stay finite
        has failed. Without it the last is returned, and no score is reported (it is not a number).
    folder : path, optional
        Where ``state.safetensors`` and ``log.jsonl`` are written at every evaluation.
    resume : bool
        Go on from the state in ``folder``, at exactly the point where it was saved; one that was written with another
        recipe, other slices or other ``judges`` is refused. Default False.
    judges : str
        What ``score`` depends on, such as a hash of the cases that validate.
    overwrite : bool
        Begin anew where the state is not pynca's, or was changed since. Default False.
    report : callable, optional
        Called at every evaluation with batch, loss, score, rate, attempt, seconds and failed: whether the run goes
        on from its best weights, at half the rate, because its loss exploded (its score is then not a number) or its
        score collapsed.
    tick : callable, optional
        Called after every batch with the state and the recipe.
    threads : int, optional
        The result does not depend on it.
    **options
        ``labels``, ``threshold`` and ``card`` of the `pynca.Model`.

    Returns
    -------
    pynca.Model

    Raises
    ------
    ValueError
        There is nothing to go on from: no folder, or a state that is damaged or belongs to another training.
    RuntimeError
        The run failed again and again, at ever lower rates.
    FileExistsError
        ``folder`` holds a state that pynca did not write.
    """
    recipe.check_size(preparation.size)
    path = None if folder is None else Path(folder)
    if resume and path is None:
        raise ValueError("resume needs the folder of the training to go on with")
    others = path is not None and not resume and (overwrite or (path / STATE).exists())  # a training to replace
    if path is not None and not resume:
        check_writable(path / STATE, overwrite=overwrite, parents=True)
    data = "" if path is None else _fingerprint(slices, preparation, judges)
    state = load_state(path / STATE, recipe, data) if resume and path is not None else State.start(recipe)
    began = time.monotonic() - state.seconds
    with Batches(slices, recipe, threads) as batches, reused_memory():
        while state.batch < recipe.batches:
            loss = train_batch(state, batches, recipe, preparation, threads)
            tick(state, recipe)
            exploded = not loss < state.lowest_loss + _EXPLODED
            if exploded or state.batch % recipe.evaluate == 0 or state.batch == recipe.batches:
                value = math.nan if exploded else _evaluate(state, recipe, preparation, score, options)
                failed = exploded or (score is not None and not value >= state.best_score - _COLLAPSED)
                state.seconds = time.monotonic() - began
                entry = {
                    "batch": state.batch,
                    "loss": loss,
                    "score": value,
                    "rate": learning_rate(recipe, state),
                    "attempt": state.attempt,
                    "seconds": round(state.seconds, 1),
                    "failed": failed,
                }
                if failed:
                    _start_again(state, recipe)
                if path is not None:
                    if others:
                        (path / LOG).unlink(missing_ok=True)
                        others = False
                    _write(path, state, recipe, data, entry)
                report(entry)
    return model_of(state.best if recipe.keep == "best" else state.average, recipe, preparation, **options)


def learning_rate(recipe: Recipe, state: State) -> float:
    """The rate of the next batch, lowered by failures."""
    if recipe.decay is not None:
        return state.rate_factor * recipe.rate * math.exp(state.batch * math.log(recipe.decay))
    done = min(1.0, state.batch / max(recipe.batches - 1, 1))  # after the last batch there is no next
    if recipe.fall == "linear":
        return state.rate_factor * (recipe.rate * (1 - done) + recipe.last_rate * done)
    return state.rate_factor * math.exp(math.log(recipe.rate) * (1 - done) + math.log(recipe.last_rate) * done)


def supervision(recipe: Recipe, state: State) -> float:
    """The weight of the coarse levels' losses in the next batch."""
    return recipe.supervision * (1 - 0.9 * state.batch / recipe.batches)


def train_batch(
    state: State, batches: Batches, recipe: Recipe, preparation: Preparation, threads: int | None = None
) -> float:
    """Train on the next batch and return the smoothed loss; infinity, and no change, where a number is not finite."""
    batch = batches.draw(state.attempt, state.batch)
    images, labels, random = batch.images, batch.labels, batch.random
    places = patches(labels, recipe.patch, recipe.above, random, recipe.on_label, recipe.on_errors)
    loss, gradients = loss_and_gradients(
        rules_of(state.levels, recipe),
        recipe,
        images,
        labels,
        places,
        int(random.integers(2**63)),
        threads,
        shrink=preparation.shrink,
        supervision=supervision(recipe, state),
    )
    clipped = [clip(gradient, recipe.clip) for gradient in gradients]
    if not all(math.isfinite(number) for number in (loss, *(norm for _, norm in clipped))):
        return math.inf
    rate = learning_rate(recipe, state)
    for n, (optimizer, (gradient, _)) in enumerate(zip(state.optimizers, clipped, strict=True)):
        state.levels[n] = optimizer.update(state.levels[n], gradient, rate)
        state.average[n] = moved_average(state.average[n], state.levels[n], recipe.average, state.batch)
    state.batch += 1
    state.smooth_loss = loss if math.isnan(state.smooth_loss) else 0.99 * state.smooth_loss + 0.01 * loss
    state.lowest_loss = min(state.lowest_loss, state.smooth_loss)
    return state.smooth_loss


def _evaluate(
    state: State,
    recipe: Recipe,
    preparation: Preparation,
    score: Callable[[Model], float] | None,
    options: dict[str, Any],
) -> float:
    """Score the average, and keep it if it is the best; without a score the last is, and has none."""
    value = math.nan
    if score is None:
        state.best_batch, state.best = state.batch, list(state.average)
        return value
    with suppress(NotFinite):
        value = score(model_of(state.average, recipe, preparation, **options))
    if value > state.best_score:
        state.best_score, state.best_batch, state.best = value, state.batch, list(state.average)
    return value


def _start_again(state: State, recipe: Recipe) -> None:
    """Go back to the best weights, with other batches and half the rate."""
    if state.attempt + 1 >= ATTEMPTS:
        raise RuntimeError(
            f"training failed {ATTEMPTS} times, the last time at batch {state.batch}; "
            f"try a lower rate than {recipe.rate}"
        )
    state.attempt += 1
    state.rate_factor *= 0.5
    state.levels, state.average = list(state.best), list(state.best)
    state.optimizers = new_optimizers(recipe)
    state.smooth_loss, state.lowest_loss = math.nan, math.inf


def _write(folder: Path, state: State, recipe: Recipe, data: str, entry: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / STATE, state, recipe, data)
    with naming(folder / LOG), open(folder / LOG, "a+b") as log:
        # a process that was killed may have left half a line, which must not take this one with it
        log.seek(max(log.tell() - 1, 0))
        start = b"" if log.read(1) in (b"", b"\n") else b"\n"
        log.write(start + json.dumps(json_numbers(entry)).encode() + b"\n")


def _fingerprint(slices: Slices, preparation: Preparation, judges: str) -> str:
    """Return a hash of all that the weights depend on beside the recipe."""
    total = hashlib.sha256(f"{preparation}\n{judges}\n{slices.images.shape}".encode())
    for array in (slices.images, slices.labels):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
