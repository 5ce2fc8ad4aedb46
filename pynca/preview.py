"""A picture of a segmentation: slices with the outline of the mask, as PNG, without a plotting library."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic_path
from .rule import UInt8Array

Colour = tuple[int, int, int]
ORANGE: Colour = (255, 176, 0)
BLUE: Colour = (64, 160, 255)  # distinguishable from orange by colour-blind eyes

_GAP = 8


def draw_slices(
    data: NDArray[np.generic],
    outlines: Mapping[Colour, NDArray[np.bool_]],
    *,
    count: int = 5,
    zoom: int = 7,
) -> UInt8Array:
    """Draw slices of a volume side by side, each with the outlines of masks.

    Parameters
    ----------
    data : array
        (X, Y, Z), axes towards the patient's right, front and head (RAS). Drawn as radiologists look at it:
        from the feet, front up, the patient's right on the left.
    outlines : mapping of colour to array
        bool, of the shape of ``data``; later ones are drawn over earlier ones.
    count : int
        Number of slices, spread evenly over those where the first mask is; over all where it is empty.
    zoom : int
        Side of a voxel in pixels.

    Returns
    -------
    array
        uint8 (rows, columns, 3).
    """
    first = next(iter(outlines.values()))
    used = np.flatnonzero(first.any(axis=(0, 1)))
    used = used if len(used) else np.arange(data.shape[2])
    chosen = used[np.linspace(0, len(used) - 1, min(count, len(used)) + 2).astype(int)[1:-1]]
    panels = []
    for k in chosen:
        panel = _grey(_turned(data[:, :, k].astype(np.float64)), zoom)
        for colour, mask in outlines.items():
            panel[_outline(_turned(mask[:, :, k]), zoom)] = colour
        panels.append(np.pad(panel, ((0, 0), (0, _GAP), (0, 0)), constant_values=255))
    return np.concatenate(panels, axis=1)[:, :-_GAP]


def write_png(path: str | os.PathLike[str], picture: UInt8Array) -> None:
    """Write (rows, columns, 3) uint8 as a PNG file, whole or not at all."""
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b"")]
    with atomic_path(path) as beside:
        beside.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _turned(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """From axes towards right and front to rows from front to back and columns from right to left."""
    return plane.T[::-1, ::-1]


def _grey(plane: NDArray[Any], zoom: int) -> UInt8Array:
    low, high = np.percentile(plane.astype(np.float64), (0.5, 99.5))
    grey = np.clip((plane - low) / max(high - low, 1e-30), 0, 1) * 255
    return np.repeat(_enlarged(grey.astype(np.uint8), zoom)[..., None], 3, axis=2)


def _outline(mask: NDArray[np.generic], zoom: int) -> NDArray[np.bool_]:
    """The border pixels of an enlarged mask, two pixels wide."""
    large = np.pad(_enlarged(mask.astype(bool), zoom), 2)
    inner = large.copy()
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(large, shift, axis)
    return (large & ~inner)[2:-2, 2:-2]


def _enlarged(plane: NDArray[np.generic], zoom: int) -> NDArray[np.generic]:
    return plane.repeat(zoom, axis=0).repeat(zoom, axis=1)
