"""How well a segmentation agrees with a label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .rule import FloatArray

Mask = NDArray[np.bool_]
_RESAMPLINGS = 10_000


def hard_dice(mask: Mask, label: Mask) -> float:
    """Return ``2 |mask and label| / (|mask| + |label|)``; 1 where both are empty."""
    total = int(mask.sum()) + int(label.sum())
    return 2.0 * int((mask & label).sum()) / total if total else 1.0


def soft_dice(probability: FloatArray, label: Mask) -> float:
    """Return ``2 sum(p t) / (sum p + sum t)``: Dice of probabilities without threshold or smoothing.

    This is what Med-NCA's official code reports as Dice (there on the prepared grid); it lies about one
    point under `hard_dice`. 1 where both sums are 0.
    """
    p = probability.astype(np.float64)
    total = float(p.sum()) + int(label.sum())
    return 2.0 * float(p[label].sum()) / total if total else 1.0


def volume_error(mask: Mask, label: Mask) -> float:
    """Return ``(|mask| - |label|) / |label|``: the relative error of the volume; NaN for an empty label."""
    size = int(label.sum())
    return (int(mask.sum()) - size) / size if size else math.nan


def hd95(mask: Mask, label: Mask, spacing: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance of two surfaces, in the unit of ``spacing``.

    The distances of every surface voxel of each mask to the other's surface are taken together, and their 95th
    percentile returned. A surface voxel has a face neighbour outside its mask. 0 where both masks are
    empty, infinite where one is.

    Parameters
    ----------
    mask, label : array
        bool, of the same shape, 2D or 3D.
    spacing : sequence of float
        Size of a voxel along each axis, such as mm.
    """
    if not mask.any() or not label.any():
        return 0.0 if mask.any() == label.any() else math.inf
    box = _bounding_box(mask | label)
    a, b = _surface(mask[box]), _surface(label[box])
    distances = np.concatenate([_distance_to(b, spacing)[a], _distance_to(a, spacing)[b]])
    return float(np.percentile(distances, 95))


def bootstrap_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean: percentiles of the means of 10,000 resamplings of the cases."""
    data = np.asarray(values, np.float64)
    random = np.random.Generator(np.random.Philox(key=seed))
    means = np.array([data[random.integers(len(data), size=len(data))].mean() for _ in range(_RESAMPLINGS)])
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    """Voxels of a mask that have a face neighbour outside it; outside the array is outside."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inside = np.roll(padded, shift, axis)[(slice(1, -1),) * mask.ndim]
            inner &= inside
    return mask & ~inner


def _distance_to(points: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Euclidean distance of every voxel to the nearest point, exact, one axis after the other."""
    squares = np.where(points, 0.0, np.inf)
    for axis, step in enumerate(spacing):
        moved = np.moveaxis(squares, axis, 0)
        places = np.arange(len(moved)) * step
        nearest = np.full_like(moved, np.inf)
        for place, row in zip(places, moved, strict=True):
            away = ((places - place) ** 2).reshape(-1, *[1] * (moved.ndim - 1))
            np.minimum(nearest, row + away, out=nearest)
        squares = np.moveaxis(nearest, 0, axis)
    return np.sqrt(squares)
