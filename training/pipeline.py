"""One batch of a Med-NCA, differentiated: every level on the slice, the finest on a patch of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynca import Level, Model, Preparation, Rule
from pynca.preprocessing import SHRINK, shrink_mean
from pynca.rule import FloatArray, UInt8Array

from . import tape
from .optimizers import Arrays
from .recipe import Recipe
from .sampling import cut

Places = NDArray[np.int64]


def initial_weights(recipe: Recipe) -> list[Arrays]:
    """Draw the weights of all levels as the papers' code does: evenly within 1 / sqrt(inputs), ``fc1`` zero."""
    random = np.random.Generator(np.random.Philox(key=[recipe.seed, 2**63]))

    def draw(name: str, shape: tuple[int, ...]) -> FloatArray:
        if name == "fc1.weight":
            return np.zeros(shape, np.float32)
        limit = 1 / math.sqrt((3 if name.startswith("fc0") else 9) * recipe.channels)
        return random.uniform(-limit, limit, shape).astype(np.float32)

    shapes = weight_shapes(recipe)
    return [{name: draw(name, shape) for name, shape in shapes.items()} for _ in recipe.steps]


def weight_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a level, in the order in which they are drawn."""
    c, h = recipe.channels, recipe.hidden
    seen = {"p0.weight": (c, c, 3, 3), "p0.bias": (c,), "p1.weight": (c, c, 3, 3), "p1.bias": (c,)}
    return (seen if recipe.perception == "conv" else {}) | {
        "fc0.weight": (h, 3 * c),
        "fc0.bias": (h,),
        "fc1.weight": (c, h),
    }


def loss_and_gradients(
    rules: Sequence[Rule],
    recipe: Recipe,
    images: FloatArray,
    labels: FloatArray,
    places: Places | Callable[[FloatArray], Places],
    seed: int,
    threads: int | None = None,
    masks: Sequence[UInt8Array | None] | None = None,
    *,
    shrink: str = "linear",
    supervision: float = 0.0,
) -> tuple[float, list[Arrays]]:
    """Differentiate the loss of one batch.

    Parameters
    ----------
    rules : sequence of Rule
        One a level, coarse first.
    recipe : Recipe
    images, labels : array
        float32 (N, H, W), prepared slices and the share of each pixel that belongs to the label.
    places : array or callable
        Corners of the patches (N, 2), multiples of the scale above the finest; or what chooses them from the logits
        (N, h, w) of the level above the finest.
    seed : int
        Of the fire masks.
    threads : int, optional
        The result does not depend on it.
    masks : sequence of array, optional
        One uint8 array (steps, N, h, w) a level replaces the random fire masks.
    shrink : str
        How images are brought to the coarse levels, as in `pynca.Preparation`.
    supervision : float
        Weight of the loss of every level but the finest.

    Returns
    -------
    loss : float
    gradients : list of dict of str to array
        One a level.
    """
    weights = [tape.Weights(rule) for rule in rules]
    fires = [None] * len(rules) if masks is None else list(masks)
    above = recipe.scales[0]
    cells = [side // above for side in images.shape[1:]]
    state = tape.Node(np.zeros((len(images), *cells, recipe.channels), np.float32))
    losses: list[tuple[float, tape.Node]] = []
    judged = supervision > 0
    for n, (scale, steps) in enumerate(zip(recipe.scales[:-1], recipe.steps, strict=False)):
        small = SHRINK[shrink](images, scale)
        # where nothing but the patch is judged, what cannot reach it is left out
        known = not judged and n == len(rules) - 2 and not callable(places)
        wanted = _within(places, recipe, small.shape) if known else None  # type: ignore[arg-type]
        state = tape.nca(
            weights[n], state, steps, image=small, scale=above // scale, masks=fires[n], seed=seed, level=n,
            wanted=wanted, threads=threads,
        )  # fmt: skip
        above = scale
        if judged:
            logits = tape.channels(state, 1, 2)
            target = shrink_mean(labels, scale)[..., None]
            # smoothed by a pixel's side instead of a cell: a small structure is less than a cell here
            losses.append((supervision, tape.loss(recipe.loss, logits, target, smooth=1 / scale)))
    corners = places(state.value[..., 1]) if callable(places) else places
    state = tape.crop(state, corners // above, (recipe.patch[0] // above, recipe.patch[1] // above))
    seen = _judged(corners, recipe, images.shape[1:]) if recipe.border else None
    state = tape.nca(
        weights[-1], state, recipe.steps[-1], image=cut(images, corners, recipe.patch), scale=above, masks=fires[-1],
        seed=seed, level=len(rules) - 1, wanted=seen, threads=threads,
    )  # fmt: skip
    logits, target = tape.channels(state, 1, 2), cut(labels, corners, recipe.patch)[..., None]
    ends: list[int] | None = None
    if seen is not None:
        chosen = seen.astype(bool)
        logits, target = tape.select(logits, chosen), target[chosen]
        ends = np.cumsum(chosen.sum(axis=(1, 2)))[:-1].tolist()
    losses.append((1.0, tape.loss(recipe.loss, logits, target, ends)))
    total = tape.weighted_sum(losses)
    total.backward()
    return float(total.value), [w.gradients for w in weights]


def _within(places: Places, recipe: Recipe, shape: tuple[int, ...]) -> UInt8Array:
    """Tell which cells of the level above the finest lie under the patches."""
    above = recipe.above
    wanted = np.zeros(shape, np.uint8)
    for member, (y, x) in zip(wanted, (places // above).tolist(), strict=True):
        member[y : y + recipe.patch[0] // above, x : x + recipe.patch[1] // above] = 1
    return wanted


def _judged(places: Places, recipe: Recipe, size: tuple[int, ...]) -> UInt8Array:
    """Tell which pixels of the patches are judged: all but a border, which ends where the slice ends."""
    seen = np.zeros((len(places), *recipe.patch), np.uint8)
    for member, place in zip(seen, places.tolist(), strict=True):
        inside = []
        for first, side, whole in zip(place, recipe.patch, size, strict=True):
            last = side - recipe.border if first + side < whole else side
            inside.append(slice(recipe.border if first > 0 else 0, last))
        member[tuple(inside)] = 1
    return seen


def rules_of(levels: Sequence[Arrays], recipe: Recipe) -> list[Rule]:
    """Make rules of the weights of all levels."""
    return [Rule(weights, perception=recipe.perception, fire_rate=recipe.fire_rate) for weights in levels]  # type: ignore[arg-type]


def model_of(levels: Sequence[Arrays], recipe: Recipe, preparation: Preparation, **options: Any) -> Model:
    """Make a model of the weights of all levels."""
    return Model(
        [
            Level(rule, steps, scale)
            for rule, steps, scale in zip(rules_of(levels, recipe), recipe.steps, recipe.scales, strict=True)
        ],
        preparation,
        **options,
    )
