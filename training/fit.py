"""Fit a Med-NCA: the coarse level on the shrunken slice, the fine level on a patch of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pynca import Level, Model, Preparation, Rule, _core, tensorfile
from pynca.preprocessing import shrink_linear
from pynca.rule import FloatArray, UInt8Array, whole_number

from . import tape
from .losses import LOSSES
from .optimizers import Adam, Arrays, clip, moved_average
from .sampling import Augmentation, Slices, corners, cut, draw, generator


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, beside the data.

    Parameters
    ----------
    channels, hidden : int
        Size of the rules. Default 32 and 128, as in the papers.
    steps : (int, int)
        Steps of the coarse and of the fine level.
    scale : int
        Side of a coarse cell in fine pixels.
    patch : (int, int)
        What the fine level sees of a slice; a multiple of ``scale``.
    batch : int
        Slices in a batch.
    batches : int
        Length of the training.
    rate, last_rate : float
        Learning rate at the start and at the end; it falls exponentially, batch by batch.
    decay : float, optional
        What the rate is multiplied with after each batch, instead of falling to ``last_rate``.
    betas : (float, float)
        Of Adam.
    clip : float
        Largest norm of a gradient.
    average : float
        Decay of the moving average of weights that is evaluated and shipped.
    loss : str
        One of ``pynca.training.losses``.
    evaluate : int
        Batches between evaluations.
    seed : int
        Of weights, batches and fire masks.
    augmentation : Augmentation
    """

    channels: int = 32
    hidden: int = 128
    steps: tuple[int, int] = (16, 16)
    scale: int = 4
    fire_rate: float = 0.5
    perception: str = "conv"
    patch: tuple[int, int] = (32, 32)
    batch: int = 16
    batches: int = 10000
    rate: float = 1.6e-3
    last_rate: float = 2e-5
    decay: float | None = None
    betas: tuple[float, float] = (0.5, 0.5)
    clip: float = 1.0
    average: float = 0.999
    loss: str = "dice_bce"
    evaluate: int = 1000
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, low, high in (
            *(("channels", 2, 4096), ("hidden", 1, 65536), ("scale", 1, 64), ("batch", 1, _core.MAX_SAMPLES)),
            *(("batches", 1, 2**31), ("evaluate", 1, 2**31), ("seed", 0, 2**63 - 1)),
        ):
            whole_number(getattr(self, name), name, low, high)
        for name, high in (("steps", _core.MAX_STEPS), ("patch", 65536)):
            values = getattr(self, name)
            if len(values) != 2:
                raise ValueError(f"{name} is {values!r}; it must be two whole numbers")
            for value in values:
                whole_number(value, name, 1, high)
        if any(side % self.scale for side in self.patch):
            raise ValueError(f"patch is {self.patch}; its sides must be multiples of the scale, {self.scale}")
        for name in ("rate", "last_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay!r}; it must be above 0 and at most 1")
        if not all(0 <= value < 1 for value in (*self.betas, self.average)):
            raise ValueError(f"betas are {self.betas} and average {self.average}; they must be at least 0 and below 1")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """Return the configuration of the authors' hippocampus model (its ``config.dt``), with some changes.

        Batches of 40 slices of which the fine level sees a patch as large as the coarse level, 16 x 16; the rate
        falls by a factor of 0.9999 a batch. Channels, hidden units, steps, rate and betas are the defaults.
        """
        return cls(**{"batch": 40, "patch": (16, 16), "decay": 0.9999, **changes})

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse prepared slices of a size that the patch or the scale does not fit."""
        if any(side % self.scale for side in size):
            raise ValueError(f"size is {size}; its sides must be multiples of the scale, {self.scale}")
        if any(part > whole for part, whole in zip(self.patch, size, strict=True)):
            raise ValueError(f"patch is {self.patch}; it must not be larger than a prepared slice, {size}")


def initial_weights(recipe: Recipe) -> list[Arrays]:
    """Draw the weights of both levels as the papers' code does: evenly within 1 / sqrt(inputs), ``fc1`` zero."""
    random = np.random.Generator(np.random.Philox(key=[recipe.seed, 2**63]))
    c, h = recipe.channels, recipe.hidden

    def draw_even(inputs: int, *shape: int) -> FloatArray:
        limit = 1 / math.sqrt(inputs)
        return random.uniform(-limit, limit, shape).astype(np.float32)

    levels = []
    for _ in recipe.steps:
        weights = {}
        if recipe.perception == "conv":
            for name in ("p0", "p1"):
                weights[f"{name}.weight"] = draw_even(9 * c, c, c, 3, 3)
                weights[f"{name}.bias"] = draw_even(9 * c, c)
        weights["fc0.weight"] = draw_even(3 * c, h, 3 * c)
        weights["fc0.bias"] = draw_even(3 * c, h)
        weights["fc1.weight"] = np.zeros((c, h), np.float32)
        levels.append(weights)
    return levels


def loss_and_gradients(
    rules: Sequence[Rule],
    recipe: Recipe,
    images: FloatArray,
    labels: FloatArray,
    places: np.ndarray,
    seed: int,
    threads: int | None = None,
    masks: Sequence[UInt8Array | None] = (None, None),
) -> tuple[float, list[Arrays]]:
    """Differentiate the loss of one batch: (N, H, W) slices of which the fine level sees a patch each.

    ``masks``, one array (steps, N, h, w) a level, replace the random fire masks.
    """
    coarse, fine = (tape.Weights(rule) for rule in rules)
    small = shrink_linear(images, recipe.scale)
    start = np.zeros((*small.shape, recipe.channels), np.float32)
    start[..., 0] = small
    corners, size = places // recipe.scale, (recipe.patch[0] // recipe.scale, recipe.patch[1] // recipe.scale)
    wanted = np.zeros(small.shape, np.uint8)
    for seen, (y, x) in zip(wanted, corners.tolist(), strict=True):
        seen[y : y + size[0], x : x + size[1]] = 1
    state = tape.nca(
        coarse, tape.Node(start), recipe.steps[0], masks=masks[0], seed=seed, level=0, wanted=wanted, threads=threads
    )
    state = tape.channels(tape.crop(state, corners, size), 1, recipe.channels)
    state = tape.upsample(state, recipe.scale)
    image = tape.Node(cut(images, places, recipe.patch)[..., None])
    state = tape.concatenate([image, state])
    state = tape.nca(fine, state, recipe.steps[1], masks=masks[1], seed=seed, level=1, threads=threads)
    loss = tape.loss(recipe.loss, tape.channels(state, 1, 2), cut(labels, places, recipe.patch)[..., None])
    loss.backward()
    return float(loss.value), [coarse.gradients, fine.gradients]


def rules_of(levels: Sequence[Arrays], recipe: Recipe) -> list[Rule]:
    """Make rules of the weights of all levels."""
    return [Rule(weights, perception=recipe.perception, fire_rate=recipe.fire_rate) for weights in levels]  # type: ignore[arg-type]


def model_of(levels: Sequence[Arrays], recipe: Recipe, preparation: Preparation, **options: Any) -> Model:
    """Make a model of the weights of all levels."""
    scales = (recipe.scale, 1)
    rules = rules_of(levels, recipe)
    return Model(
        [Level(rule, steps, scale) for rule, steps, scale in zip(rules, recipe.steps, scales, strict=True)],
        preparation,
        **options,
    )


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
        return cls(list(levels), list(levels), [Adam(recipe.betas) for _ in levels], best=list(levels))


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
    """Train a two-level Med-NCA on prepared slices and return the best moving average of its weights.

    Parameters
    ----------
    slices : Slices
        Prepared training slices and labels.
    recipe : Recipe
    preparation : Preparation
        How the slices were prepared; it goes into the model.
    score : callable, optional
        Takes a model and returns what is to be large, such as validation Dice; the best is returned. Without it
        the last is.
    folder : path, optional
        Where ``state.safetensors`` and ``log.jsonl`` are written at every evaluation.
    resume : bool
        Go on from the state in ``folder``, at exactly the point where it was saved. Default False.
    report : callable, optional
        Called at every evaluation with batch, loss, score, rate, attempt and seconds.
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
    while state.batch < recipe.batches:
        loss = train_batch(state, slices, recipe, threads)
        tick(state, recipe)
        exploded = not loss < state.lowest_loss + _EXPLODED
        if exploded or state.batch % recipe.evaluate == 0 or state.batch == recipe.batches:
            value = math.nan if exploded else _evaluate(state, recipe, preparation, score, options)
            state.seconds = time.monotonic() - began
            entry = {
                "batch": state.batch,
                "loss": loss,
                "score": value,
                "rate": learning_rate(recipe, state),
                "attempt": state.attempt,
                "seconds": round(state.seconds, 1),
            }
            if exploded or value < state.best_score - _COLLAPSED:
                _start_again(state, recipe)
            if path is not None:
                _write(path, state, recipe, entry)
            report(entry)
    return model_of(state.best, recipe, preparation, **options)


def learning_rate(recipe: Recipe, state: State) -> float:
    """The rate of the next batch: an exponential, lowered by failures."""
    if recipe.decay is not None:
        return state.rate_factor * recipe.rate * math.exp(state.batch * math.log(recipe.decay))
    done = state.batch / max(recipe.batches - 1, 1)
    return state.rate_factor * math.exp(math.log(recipe.rate) * (1 - done) + math.log(recipe.last_rate) * done)


def train_batch(state: State, slices: Slices, recipe: Recipe, threads: int | None = None) -> float:
    """Train on the next batch and return the smoothed loss; infinity, and no change, where a number is not finite."""
    random = generator(recipe.seed, state.attempt, state.batch)
    images, labels = draw(slices, recipe.batch, recipe.augmentation, random)
    places = corners(labels, recipe.patch, recipe.scale, random)
    rules = rules_of(state.levels, recipe)
    masks = int(random.integers(2**63))
    loss, gradients = loss_and_gradients(rules, recipe, images, labels, places, masks, threads)
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
    state.optimizers = [Adam(recipe.betas) for _ in state.levels]
    state.smooth_loss, state.lowest_loss = math.nan, math.inf


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
        log.write(json.dumps(entry) + "\n")


def saved_recipe(path: Path) -> Recipe:
    """Read the recipe of the state that `fit` wrote."""
    values = json.loads(tensorfile.read(path)[1]["recipe"])
    augmentation = Augmentation(**values.pop("augmentation"))
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**values, augmentation=augmentation)


def load_state(path: Path, recipe: Recipe) -> State:
    """Read the state that `fit` wrote; the recipe must be the one it was written with."""
    tensors, metadata = tensorfile.read(path)
    if metadata.get("recipe") != json.dumps(asdict(recipe)):
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
        Adam(recipe.betas, step=step, first=first, second=second)
        for step, first, second in zip(scalars.pop("adam_steps"), group("first"), group("second"), strict=True)
    ]
    return replace(State(group("levels"), group("average"), optimizers, best=group("best")), **scalars)
