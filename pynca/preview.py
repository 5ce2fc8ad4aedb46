"""A picture of a segmentation: slices with the outline of the mask, as PNG, without a plotting library."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import atomic_path
from .orientation import AXIS_OF, acquired_axis, codes_of
from .rule import UInt8Array
from .seal import PNG_CHUNK, filled

if TYPE_CHECKING:
    from .segmentation import Segmentation
    from .volumes import Volume

Colour = tuple[int, int, int]
ORANGE: Colour = (255, 176, 0)
BLUE: Colour = (64, 160, 255)  # distinguishable from orange by colour-blind eyes

_COUNT = 5  # slices of a volume in a preview
_GAP = 8
_HEIGHT, _WIDTH = 360, 5 * 256 + 4 * _GAP  # what a picture has room for, in pixels
_LARGEST = 16  # side of a voxel in pixels: more shows nothing more


@dataclass(frozen=True)
class View:
    """How slices of an image are shown: upright, as radiologists look at them, and to scale.

    Slices of a volume are seen from the feet, the front or the patient's left: front or head up, the patient's right,
    or front, on the left. A picture is shown as it is.

    Parameters
    ----------
    axis : int
        The image's axis across which it is sliced; 2 for a picture.
    codes : str
        Patient directions towards which the image's axes grow, such as ``"RAS"``; empty for a picture, whose axes are
        row, column and, where there are several, page.
    spacing : tuple of float
        Size of a pixel or voxel along each of the image's axes, in any unit.
    """

    axis: int
    codes: str
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, volume: Volume, axis: int | None = None) -> View:
        """Return the view of a volume across an axis, by default as it was acquired.

        That is across `pynca.orientation.acquired_axis`. An array that does not say where it lies is shown as if its
        axes went to the patient's right, front and head.
        """
        if volume.affine is None:
            spacing = volume.spacing or (1.0,) * volume.data.ndim
            return cls(2, "", spacing) if volume.picture or volume.data.ndim == 2 else cls(2, "RAS", spacing)
        codes = codes_of(volume.affine)
        spacing = tuple(np.linalg.norm(volume.affine[:3, :3], axis=0).tolist())
        return cls(acquired_axis(volume) if axis is None else axis, codes, spacing)

    def planes(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the upright slices of an array with the image's axes, (N, rows, columns): a view of it.

        Slices go towards the patient's head, front or right.
        """
        if not self.codes:
            return np.moveaxis(np.atleast_3d(array), 2, 0)
        array = array[tuple(slice(None, None, -1) if code in "LPI" else slice(None) for code in self.codes)]
        # Now all axes grow towards right, front and head; in a picture columns go to the left, or back, and rows down
        columns, rows = self._in_plane
        return array.transpose(self.axis, rows, columns)[:, ::-1, ::-1]

    @property
    def pixel(self) -> tuple[float, float]:
        """Height and width of a pixel of the planes."""
        if not self.codes:
            return self.spacing[0], self.spacing[1]
        columns, rows = self._in_plane
        return self.spacing[rows], self.spacing[columns]

    @property
    def _in_plane(self) -> list[int]:
        return sorted((n for n in range(3) if n != self.axis), key=lambda n: AXIS_OF[self.codes[n]])


def draw_preview(volume: Volume, mask: ArrayLike) -> UInt8Array:
    """Draw slices of a volume, or a picture, with the outline of a mask. Of a film, its first volume.

    Parameters
    ----------
    volume : Volume
        In any orientation, with voxels of any size.
    mask : array
        Of the shape of ``volume.data``; what is not 0 is outlined.

    Returns
    -------
    array
        uint8 (rows, columns, 3), at most 360 rows and 1312 columns.
    """
    data, found = volume.data, np.asarray(mask) != 0
    if data.ndim == 4:
        data, found = data[..., 0], found[..., 0]
    return _drawn(data, {ORANGE: found}, View.of(volume), _COUNT, None)


def write_preview(
    path: str | os.PathLike[str], volume: Volume, segmentation: Segmentation, *, overwrite: bool = False
) -> None:
    """Write a picture of a segmentation as PNG, whole or not at all; the same content gives the same bytes.

    Five slices with the outline of the mask, spread over those where it is, as they were acquired: across the axis
    along which voxels are largest, axial where they are alike. Front or head is up, the patient's right on the left,
    pixels are to scale. A picture is drawn as it is.

    Parameters
    ----------
    path : str or path-like
        Ends in ``.png``.
    volume : Volume
        What was segmented. A file that it was read from is never replaced.
    segmentation : Segmentation
    overwrite : bool
        Replace a file that pynca did not write, or that was changed since. Default False.

    Raises
    ------
    ValueError
        The name has another ending, or the mask another shape than the volume; or ``path`` is a file of ``volume``.
    FileExistsError
        There is such a file, and ``overwrite`` is not given.
    OSError
        The file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path} cannot be written: the name of a preview must end in .png")
    mask = segmentation.mask
    if mask.shape != volume.data.shape:
        raise ValueError(f"the mask has shape {mask.shape}; {volume.name} has {volume.data.shape}")
    from .volumes import files_of

    inputs = files_of(volume.name) if Path(path).exists() else ()
    write_png(path, draw_preview(volume, mask), overwrite=overwrite, inputs=inputs)


def original(segmentation: Segmentation) -> Volume:
    """Return what was segmented.

    Raises
    ------
    ValueError
        The segmentation was made without an image.
    """
    from .volumes import Volume

    if segmentation.volume is not None:
        return segmentation.volume
    if segmentation.image is None:
        raise ValueError("the segmentation was made without an image; predict keeps it")
    return Volume(segmentation.image, None, None, "the image")


def draw_slices(
    data: NDArray[np.generic],
    outlines: Mapping[Colour, NDArray[np.bool_]],
    *,
    count: int = _COUNT,
    zoom: int | None = None,
) -> UInt8Array:
    """Draw axial slices of a volume side by side, each with the outlines of masks.

    Parameters
    ----------
    data : array
        (X, Y, Z), axes towards the patient's right, front and head (RAS), voxels as wide as long.
    outlines : mapping of colour to array
        bool, of the shape of ``data``; later ones are drawn over earlier ones.
    count : int
        Number of slices, spread evenly over those where the first mask is; over all where it is empty.
    zoom : int, optional
        Side of a voxel in pixels. Default: as large as there is room for.

    Returns
    -------
    array
        uint8 (rows, columns, 3).
    """
    return _drawn(data, outlines, View(2, "RAS", (1.0, 1.0, 1.0)), count, zoom)


def png(picture: UInt8Array) -> bytes:
    """Return (rows, columns, 3) uint8 as a PNG file, with a palette where it has no more than 256 colours."""
    height, width, _ = picture.shape
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, indices = np.unique(packed, return_inverse=True)
    palette = b""
    rows = picture.reshape(height, -1)
    few = len(colours) <= 256
    if few:  # a third of the size
        palette = _chunk(b"PLTE", b"".join(int(c).to_bytes(3, "big") for c in colours))
        rows = indices.reshape(height, width).astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8, 3 if few else 2, 0, 0, 0)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each line begins with 0: it is stored as it is
    image = _chunk(b"IDAT", zlib.compress(lines, 9))
    before = _chunk(b"IHDR", header) + palette + _chunk(*PNG_CHUNK)
    return filled(b"\x89PNG\r\n\x1a\n" + before + image + _chunk(b"IEND", b""))


def write_png(
    path: str | os.PathLike[str],
    picture: UInt8Array,
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write (rows, columns, 3) uint8 as a PNG file, whole or not at all.

    `pynca.files.check_writable` says what ``overwrite`` and ``inputs`` mean, and what is raised.
    """
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as beside:
        beside.write_bytes(png(picture))


def fitting(view: View, plane: tuple[int, int], width: int, zoom: float | None = None) -> tuple[int, int]:
    """Return rows and columns in which a plane is drawn to scale, in the room there is.

    Parameters
    ----------
    view : View
    plane : (int, int)
        Rows and columns of the plane.
    width : int
        Columns there is room for.
    zoom : float, optional
        Shorter side of a pixel of the plane in pixels of the picture. Default: a whole number where it fits, up to 16.
    """
    sides = np.array(view.pixel) / min(view.pixel)
    extent = np.array(plane) * sides
    if zoom is None:
        room = float(min(_HEIGHT / extent[0], width / extent[1]))
        zoom = min(room // 1 or room, _LARGEST)
    rows, columns = np.maximum(np.rint(extent * zoom), 1).astype(int).tolist()
    return rows, columns


def grey(plane: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intensities of a plane between 0 and 1, from its darkest to its brightest half percent."""
    values = plane.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    shades: NDArray[np.float64] = np.clip((values - low) / max(high - low, 1e-30), 0, 1)
    return shades


def resized(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return a plane in another size; a pixel is the mean of what it covers."""
    values = plane.astype(np.float64)
    for axis, n in enumerate(size):
        sums = np.insert(np.cumsum(values, axis=axis), 0, 0.0, axis=axis)
        edge = np.arange(n + 1) * values.shape[axis] / n
        below = np.minimum(edge.astype(np.intp), values.shape[axis] - 1)
        share = (edge - below).reshape((-1, 1) if axis == 0 else (1, -1))
        low, high = (np.take(sums, below + step, axis=axis) for step in (0, 1))
        values = np.diff(low + share * (high - low), axis=axis) * (n / values.shape[axis])
    return values


def outline(mask: NDArray[np.generic], size: tuple[int, int], width: int = 2) -> NDArray[np.bool_]:
    """Return the border, some pixels wide, of a mask that is brought to a size. Nothing is too small to be seen."""
    large = np.pad(resized(mask != 0, size) > 0, width)
    inner = large.copy()
    for axis in (0, 1):
        for shift in range(1, width + 1):
            inner &= np.roll(large, shift, axis) & np.roll(large, -shift, axis)
    return (large & ~inner)[width:-width, width:-width]


def _drawn(
    data: NDArray[Any], outlines: Mapping[Colour, NDArray[np.bool_]], view: View, count: int, zoom: int | None
) -> UInt8Array:
    planes = view.planes(data)
    masks = {colour: view.planes(mask) for colour, mask in outlines.items()}
    first = next(iter(masks.values()))
    used = np.flatnonzero(first.any(axis=(1, 2)))
    used = used if len(used) else np.arange(len(planes))
    chosen = used if len(used) <= count else used[np.linspace(0, len(used) - 1, count + 2).astype(int)[1:-1]]
    size = fitting(view, planes.shape[1:], (_WIDTH + _GAP) // len(chosen) - _GAP, zoom)
    panels = []
    for k in chosen:
        # Even numbers, so that a palette has room for all greys and colours
        shades = np.rint(resized(np.rint(grey(planes[k]) * 255), size)).astype(np.uint8) & 0xFE
        panel = np.repeat(shades[..., None], 3, axis=2)
        for colour, mask in masks.items():
            panel[outline(mask[k], size)] = colour
        panels.append(np.pad(panel, ((0, 0), (0, _GAP), (0, 0))))
    return np.concatenate(panels, axis=1)[:, :-_GAP]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
