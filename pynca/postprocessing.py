"""What is done to a mask after the threshold, where a model asks for it: keep one piece, fill holes.

Pieces are joined through faces, in all axes of the mask. Everything is counted in runs, the stretches of equal voxels
along the last axis, of which a mask has few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

STEPS = ("largest", "fill")


def postprocess(mask: Mask, steps: Sequence[str]) -> Mask:
    """Apply steps one after the other.

    Parameters
    ----------
    mask : array
        bool, slices (N, h, w) of one volume.
    steps : sequence of str
        ``"largest"`` keeps the largest piece of the volume, ``"fill"`` fills what it encloses in each slice.

    Returns
    -------
    array
        bool, of the same shape.
    """
    if not mask.any() or not steps:
        return mask
    along = (np.flatnonzero(mask.any(axis=tuple({*range(mask.ndim)} - {axis}))) for axis in range(mask.ndim))
    box = tuple(slice(int(used[0]), int(used[-1]) + 1) for used in along)  # so that little memory is needed
    part = mask[box]
    for step in steps:
        part = keep_largest(part) if step == "largest" else np.stack([fill_holes(one) for one in part])
    result = np.zeros_like(mask)
    result[box] = part
    return result


def keep_largest(mask: Mask) -> Mask:
    """Return the largest piece of a mask; of equal ones the first."""
    labels, sizes = components(mask)
    if len(sizes) < 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(sizes)), np.bool_)


def fill_holes(mask: Mask) -> Mask:
    """Return a mask with all that no way through faces leads to from outside the image."""
    outside = np.pad(~mask, 1, constant_values=True)
    labels, _ = components(outside)
    inner = tuple(slice(1, -1) for _ in range(mask.ndim))
    return np.asarray(labels[inner] != labels[(0,) * mask.ndim], np.bool_)


def components(mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the pieces of a mask.

    Returns
    -------
    labels : array
        int64, of the mask's shape: 0, or the number of the piece, counted from 1 in the order of first voxels.
    sizes : array
        int64: the number of voxels of each piece.
    """
    lines = mask.reshape(-1, mask.shape[-1])
    edges = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]  # one behind the run's last voxel
    piece = _joined(len(line), _touching(mask.shape, line, first, last))
    labels = np.zeros(lines.shape, np.int64)
    for run, number in enumerate(piece.tolist()):
        labels[line[run], first[run] : last[run]] = number + 1
    sizes = np.bincount(piece, weights=last - first).astype(np.int64)
    return labels.reshape(mask.shape), sizes


def _touching(
    shape: tuple[int, ...], line: NDArray[np.intp], first: NDArray[np.intp], last: NDArray[np.intp]
) -> list[tuple[int, int]]:
    """Pair the runs of neighbouring lines that overlap."""
    begins = np.searchsorted(line, np.arange(int(np.prod(shape[:-1])) + 1))
    places = np.array(np.unravel_index(line, shape[:-1]))
    strides = [int(np.prod(shape[axis + 1 : -1])) for axis in range(len(shape) - 1)]
    pairs = []
    for axis, stride in enumerate(strides):
        for run in np.flatnonzero(places[axis] < shape[axis] - 1).tolist():
            beside = line[run] + stride
            other, end = int(begins[beside]), int(begins[beside + 1])
            while other < end and first[other] < last[run]:
                if last[other] > first[run]:
                    pairs.append((run, other))
                other += 1
    return pairs


def _joined(count: int, pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Number the sets that pairs join, in the order of their first members."""
    parent = list(range(count))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low  # the first member stays the root
    roots = np.array([root(n) for n in range(count)], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)
