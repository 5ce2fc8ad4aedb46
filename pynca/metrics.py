"""How well a segmentation agrees with a label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .rule import FloatArray

Mask = NDArray[np.bool_]
_RESAMPLINGS = 10_000
_SQUARE = 1e-4  # cosine of the angle between two axes up to which it is a right one
_BOX = 12.0  # side of a box, as a multiple of the longest extent over the root of the number of points
_PAIRS = 2**21  # of points whose distances stand in memory at once


def hard_dice(mask: Mask, label: Mask) -> float:
    """Return ``2 |mask and label| / (|mask| + |label|)``, of all values but 0; 1 where both are empty."""
    mask, label = _sets(mask, label)
    total = int(mask.sum()) + int(label.sum())
    return 2.0 * int((mask & label).sum()) / total if total else 1.0


def soft_dice(probability: FloatArray, label: Mask) -> float:
    """Return ``2 sum(p t) / (sum p + sum t)``: Dice of probabilities without threshold or smoothing.

    This is what Med-NCA's official code reports as Dice (there on the prepared grid); it lies about one
    point under `hard_dice`. 1 where both sums are 0.
    """
    p, label = np.asarray(probability, np.float64), _sets(label)[0]
    if p.shape != label.shape:
        raise ValueError(f"probability has shape {p.shape} and label {label.shape}; they must be alike")
    total = float(p.sum()) + int(label.sum())
    return 2.0 * float(p[label].sum()) / total if total else 1.0


def volume_error(mask: Mask, label: Mask) -> float:
    """Return ``(|mask| - |label|) / |label|``: the relative error of the volume; NaN for an empty label."""
    mask, label = _sets(mask, label)
    size = int(label.sum())
    return (int(mask.sum()) - size) / size if size else math.nan


def hd95(mask: Mask, label: Mask, spacing: Sequence[float] | None = None, *, affine: ArrayLike | None = None) -> float:
    """Return the 95 % Hausdorff distance of two surfaces, in the unit of ``spacing`` or ``affine``.

    The distances of every surface voxel of each mask to the other's surface are taken together, and their 95th
    percentile returned. A surface voxel has a face neighbour outside its mask. 0 where both masks are
    empty, infinite where one is.

    Parameters
    ----------
    mask, label : array
        Of the same shape, 2D or 3D; every value but 0 is inside.
    spacing : sequence of float, optional
        Size of a voxel along each axis, such as mm, above 0; the axes stand at right angles.
    affine : array, optional
        (4, 4), from voxel indices to coordinates, in place of ``spacing`` for a volume: distances are those between
        coordinates, also where its axes do not stand at right angles, as with a tilted gantry.

    Raises
    ------
    ValueError
        The masks differ in shape, there are not as many sizes as axes, or neither or both of ``spacing`` and
        ``affine``; or these are of no voxel: sizes of 0, negative or not finite, an affine whose axes coincide.
    """
    mask, label = _sets(mask, label)
    steps = _steps(mask.ndim, spacing, affine)
    if not mask.any() or not label.any():
        return 0.0 if mask.any() == label.any() else math.inf
    box = _bounding_box(mask | label)
    a, b = _surface(mask[box]), _surface(label[box])
    if _is_square(steps):
        sizes = np.linalg.norm(steps, axis=0).tolist() if spacing is None else spacing
        distances = np.concatenate([_distance_to(b, sizes)[a], _distance_to(a, sizes)[b]])
    else:
        one, two = (np.argwhere(surface) @ steps.T for surface in (a, b))
        distances = np.concatenate([_nearest(one, two), _nearest(two, one)])
    return float(np.percentile(distances, 95))


def _sets(*masks: ArrayLike) -> list[Mask]:
    """Return what is inside masks, whatever their dtype: ``&`` and sums count other values than 0 and 1 wrongly."""
    inside = [np.asarray(mask) != 0 for mask in masks]
    if len(inside) > 1 and inside[0].shape != inside[1].shape:
        raise ValueError(f"mask has shape {inside[0].shape} and label {inside[1].shape}; they must be alike")
    return inside


def _steps(axes: int, spacing: Sequence[float] | None, affine: ArrayLike | None) -> NDArray[np.float64]:
    """Return where a step along each axis leads to, as the columns of a matrix."""
    if (spacing is None) == (affine is None):
        raise ValueError("give either spacing= or affine=")
    if affine is not None:
        matrix = np.asarray(affine, np.float64)
        if matrix.shape != (4, 4) or axes != 3:
            raise ValueError(f"affine has shape {matrix.shape} and the mask {axes} axes; (4, 4) goes with three")
        steps = matrix[:3, :3]
        if not np.isfinite(steps).all() or np.linalg.matrix_rank(steps) < axes:
            raise ValueError(f"affine is {matrix.tolist()}; its three axes must be finite and span a space")
        return steps
    sizes = np.asarray(spacing, np.float64)
    if sizes.shape != (axes,):
        raise ValueError(f"spacing is {spacing!r}; the mask has {axes} axes")
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"spacing is {spacing!r}; sizes must be above 0")
    return np.diag(sizes)


def _is_square(steps: NDArray[np.float64]) -> bool:
    """Tell whether axes stand at right angles, as far as the rounding of headers lets them."""
    unit = steps / np.linalg.norm(steps, axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(len(steps))).max() < _SQUARE)


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each point to the nearest of some others, exact.

    Points are taken by boxes of space. A box's candidates are in those boxes of the others that are not farther from
    it, at least, than another is at most.
    """
    extent = np.ptp(np.concatenate([points, others]), axis=0)
    side = max(_BOX * float(extent.max()) / math.sqrt(len(points)), 1e-9)
    distances = np.empty(len(points))
    their_boxes = _boxes(others, side)
    low, high = (np.array([end(others[box], axis=0) for box in their_boxes]) for end in (np.min, np.max))
    for box in _boxes(points, side):
        here = points[box]
        least, most = here.min(axis=0), here.max(axis=0)
        near = (np.maximum(np.maximum(low - most, least - high), 0.0) ** 2).sum(axis=1)
        far = (np.maximum(high - least, most - low) ** 2).sum(axis=1)
        chosen = np.flatnonzero(near <= far.min() * (1 + 1e-9))
        candidates = others[np.concatenate([their_boxes[n] for n in chosen])]
        step = max(1, _PAIRS // len(candidates))
        for first in range(0, len(here), step):
            part = here[first : first + step, None]
            squares = sum((part[..., n] - candidates[None, :, n]) ** 2 for n in range(points.shape[1]))
            distances[box[first : first + step]] = np.sqrt(np.min(squares, axis=1))
    return distances


def _boxes(points: NDArray[np.float64], side: float) -> list[NDArray[np.intp]]:
    """Return the indices of the points in each box of space that has some."""
    _, box = np.unique(np.floor(points / side), axis=0, return_inverse=True)
    order = np.argsort(box.reshape(-1), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(box.reshape(-1)[order])) + 1)


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
