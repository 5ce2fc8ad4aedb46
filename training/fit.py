"""Fit a Med-NCA, batch by batch: notice a run that fails, keep the best weights, stop and go on anywhere."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pynca import Model, Preparation, tensorfile

from .ahead import Batches
from .optimizers import OPTIMIZERS, Adam, Arrays, clip, moved_average
from .pipeline import initial_weights, loss_and_gradients, model_of, rules_of
from .recipe import Recipe
from .sampling import Augmentation, Slices, patches
from .tape import reused_memory


@dataclass
class State:
    """Where a training stands: all that the next batch depends on."""

    levels: list[Arrays]
    average: list[Arrays]
    optimizers: list[Adam]
    batch: int = 0
    attempt: int = 0
    rate_factor: float = 1.0
    best_score: float = -math.inf
    best_batch: int = 0
    best: list[Arrays] = field(default_factory=list)
    smooth_loss: float = math.nan
    lowest_loss: float = math.inf
    seconds: float = 0.0

    @classmethod
    def start(cls, recipe: Recipe) -> State:
        """Return the state before the first batch."""
        levels = initial_weights(recipe)
        return cls(list(levels), list(levels), _optimizers(recipe), best=list(levels))


# A run has failed when its smoothed loss is this much above the lowest it had, or is no number.
_EXPLODED = 0.5
# ... or when its score has fallen this far below the best.
_COLLAPSED = 0.2
_ATTEMPTS = 6


def fit_slices(
    slices: Slices,
    recipe: Recipe,
    preparation: Preparation,
    *,
    score: Callable[[Model], float] | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
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
        Takes a model and returns what is to be large, such as validation Dice. Without it the last is returned.
    folder : path, optional
        Where ``state.safetensors`` and ``log.jsonl`` are written at every evaluation.
    resume : bool
        Go on from the state in ``folder``, at exactly the point where it was saved. Default False.
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
    RuntimeError
        The run failed again and again, at ever lower rates.
    """
    recipe.check_size(preparation.size)
    path = None if folder is None else Path(folder)
    state = load_state(path / STATE, recipe) if resume and path is not None else State.start(recipe)
    began = time.monotonic() - state.seconds
    with Batches(slices, recipe, threads) as batches, reused_memory():
        while state.batch < recipe.batches:
            loss = train_batch(state, batches, recipe, preparation, threads)
            tick(state, recipe)
            exploded = not loss < state.lowest_loss + _EXPLODED
            if exploded or state.batch % recipe.evaluate == 0 or state.batch == recipe.batches:
                value = math.nan if exploded else _evaluate(state, recipe, preparation, score, options)
                failed = exploded or value < state.best_score - _COLLAPSED
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
                    _write(path, state, recipe, entry)
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
    """Score the average; keep it if it is the best."""
    value = float(state.batch) if score is None else score(model_of(state.average, recipe, preparation, **options))
    if value > state.best_score:
        state.best_score, state.best_batch, state.best = value, state.batch, list(state.average)
    return value


def _start_again(state: State, recipe: Recipe) -> None:
    """Go back to the best weights, with other batches and half the rate."""
    if state.attempt + 1 >= _ATTEMPTS:
        raise RuntimeError(
            f"training failed {_ATTEMPTS} times, the last time at batch {state.batch}; "
            f"try a lower rate than {recipe.rate}"
        )
    state.attempt += 1
    state.rate_factor *= 0.5
    state.levels, state.average = list(state.best), list(state.best)
    state.optimizers = _optimizers(recipe)
    state.smooth_loss, state.lowest_loss = math.nan, math.inf


def _optimizers(recipe: Recipe) -> list[Adam]:
    """One a level, at its start."""
    return [OPTIMIZERS[recipe.optimizer](recipe.betas) for _ in recipe.steps]


STATE, LOG = "state.safetensors", "log.jsonl"
_SCALARS = ["batch", "attempt", "rate_factor", "best_score", "best_batch", "smooth_loss", "lowest_loss", "seconds"]


def _write(folder: Path, state: State, recipe: Recipe, entry: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    groups = {
        "levels": state.levels,
        "average": state.average,
        "best": state.best,
        "first": [o.first for o in state.optimizers],
        "second": [o.second for o in state.optimizers],
    }
    tensors = {
        f"{group}.{n}.{name}": value
        for group, levels in groups.items()
        for n, arrays in enumerate(levels)
        for name, value in arrays.items()
    }
    scalars = {name: getattr(state, name) for name in _SCALARS} | {"adam_steps": [o.step for o in state.optimizers]}
    tensorfile.write(
        folder / STATE,
        tensors,
        {"scalars": json.dumps(scalars), "recipe": json.dumps(asdict(recipe))},
    )
    with open(folder / LOG, "a", encoding="utf-8") as log:
        known = {name: value if math.isfinite(value) else None for name, value in entry.items()}  # JSON has no NaN
        log.write(json.dumps(known) + "\n")


def saved_recipe(path: Path) -> Recipe:
    """Read the recipe of the state that `fit` wrote."""
    values = _saved_values(tensorfile.read(path)[1])
    augmentation = Augmentation(**values.pop("augmentation"))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**values, augmentation=augmentation)


def _saved_values(metadata: dict[str, str]) -> dict[str, Any]:
    """What a recipe was written with; before there was a choice of optimizer it was Adam."""
    return {"optimizer": "adam", **json.loads(metadata["recipe"])}


def load_state(path: Path, recipe: Recipe) -> State:
    """Read the state that `fit` wrote; the recipe must be the one it was written with."""
    tensors, metadata = tensorfile.read(path)
    if "recipe" not in metadata or _saved_values(metadata) != json.loads(json.dumps(asdict(recipe))):
        raise ValueError(f"{path} was written with another recipe; give the same options, or start anew")
    scalars = json.loads(metadata["scalars"])

    def group(name: str) -> list[Arrays]:
        levels: list[Arrays] = [{} for _ in recipe.steps]
        for key, value in tensors.items():
            kind, n, weight = key.split(".", 2)
            if kind == name:
                levels[int(n)][weight] = value
        return levels

    optimizers = [
        OPTIMIZERS[recipe.optimizer](recipe.betas, step=step, first=first, second=second)
        for step, first, second in zip(scalars.pop("adam_steps"), group("first"), group("second"), strict=True)
    ]
    return replace(State(group("levels"), group("average"), optimizers, best=group("best")), **scalars)
