"""Normalise and resize slices to what a model was trained on, and bring logits back.

Every operation is elementwise NumPy in a fixed order, so that results do not depend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .orientation import AXIS_OF, DISPLAY
from .rule import FloatArray, whole_number

_UNIT = 2.0**32  # probabilities are summed as whole multiples of its inverse
# A hostile model file must not ask for more memory than a slice of such a size takes.
MAX_SIZE = 4096
_FAR = 2.0**-16  # of the largest value: what differs by less has at most 256 steps in float32

Real = NDArray[np.float64] | NDArray[np.float32]


@dataclass(frozen=True)
class Preparation:
    """How a slice is brought to the size and intensity that a model learnt, as Med-NCA's code does it.

    A slice is stretched to ``size`` with cubic interpolation, then mapped linearly so that its low and
    high percentile become 0 and 1, and clipped. Logits come back with linear interpolation.

    Parameters
    ----------
    size : (int, int)
        Rows and columns of the prepared slice.
    orientation : str
        Patient directions towards which the volume's three axes grow, as nibabel's ``aff2axcodes``
        spells them. Default ``"RAS"``. Or ``"display"``: rows, columns and slices as radiologists look at them, in
        the plane in which the image was acquired, which need not be the patient's; arrays are taken to be so.
    axis : int
        The axis of the oriented volume along which it is sliced. Default 2.
    spacing : (float, float, float)
        Voxel size of the training volumes in mm, in the same order of axes. Default 1 mm.
    percentiles : (float, float)
        Default 0.5 and 99.5.
    label_offset : float
        How far, in prepared pixels and along both axes, the labels learnt lie behind the image. 0 for
        labels resized like images. The papers' code resizes labels with the source index rounded down,
        which moves them by half a pixel: 0.5.
    shrink : str
        How a prepared slice is brought to the coarser levels: ``"linear"`` (default), as in the papers' code, which
        reads the middle of each cell; or ``"mean"`` of all its pixels.
    """

    size: tuple[int, int]
    orientation: str = "RAS"
    axis: int = 2
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    label_offset: float = 0.0
    shrink: str = "linear"

    def __post_init__(self) -> None:
        size, spacing, percentiles = self.size, self.spacing, self.percentiles
        if not (_numbers(size, 2, whole=True) and all(2 <= n <= MAX_SIZE for n in size)):
            raise ValueError(f"size is {size!r}; it must be two whole numbers between 2 and {MAX_SIZE}")
        codes = self.orientation if isinstance(self.orientation, str) else ""
        if codes != DISPLAY and sorted(AXIS_OF.get(c, -1) for c in codes) != [0, 1, 2]:
            raise ValueError(
                f"orientation is {self.orientation!r}; it must name three patient directions, such as 'RAS' or 'LPI', "
                f"or be {DISPLAY!r}"
            )
        if codes == DISPLAY and self.axis != 2:
            raise ValueError(f"axis is {self.axis!r}; displayed slices follow each other along axis 2")
        if not (_numbers(spacing, 3) and all(0 < mm < 1e4 for mm in spacing)):
            raise ValueError(f"spacing is {spacing!r}; it must be three sizes in mm above 0")
        if not (_numbers(percentiles, 2) and 0 <= percentiles[0] < percentiles[1] <= 100):
            raise ValueError(f"percentiles are {percentiles!r}; they must be two numbers that ascend between 0 and 100")
        if not (_numbers([self.label_offset], 1) and -4 <= self.label_offset <= 4):
            raise ValueError(f"label_offset is {self.label_offset!r}; it must be a number between -4 and 4")
        if self.shrink not in SHRINK:
            raise ValueError(f"shrink is {self.shrink!r}; it must be one of {', '.join(SHRINK)}")
        # Plain numbers in tuples, whatever came in, so that equal preparations compare, hash and are saved alike
        object.__setattr__(self, "size", (int(size[0]), int(size[1])))
        object.__setattr__(self, "axis", whole_number(self.axis, "axis", 0, 2))
        object.__setattr__(self, "spacing", tuple(float(mm) for mm in spacing))
        object.__setattr__(self, "percentiles", tuple(float(q) for q in percentiles))
        object.__setattr__(self, "label_offset", float(self.label_offset))

    def prepare(self, slices: Real) -> FloatArray:
        """Bring slices (N, h, w) to (N, H, W) of ``size``, float32 in [0, 1]. A constant slice becomes zeros."""
        resized = resize_cubic(_from_near(slices), self.size)
        # float32, as the values stand in the papers' arrays; percentiles are of the resized slice.
        # Cubic interpolation overshoots, so that the largest values would leave float32.
        limit = float(np.finfo(np.float32).max)
        resized = np.clip(resized, -limit, limit).astype(np.float32).astype(np.float64)
        low, high = np.percentile(resized, self.percentiles, axis=(1, 2), keepdims=True)
        span = np.where(high > low, high - low, 1.0)
        scaled = np.clip((resized - low) / span, 0.0, 1.0)
        return np.where(high > low, scaled, 0.0).astype(np.float32)

    def restore(self, logits: FloatArray, size: tuple[int, int]) -> FloatArray:
        """Bring logits (N, H, W) to the slices' own size (N, h, w), undoing ``label_offset``."""
        for axis, n in enumerate(size, start=1):
            position = (np.arange(n) + 0.5) * logits.shape[axis] / n - 0.5 + self.label_offset
            logits = _linear(logits, position, axis)
        return logits


def _from_near(slices: Real) -> NDArray[np.float64]:
    """Return slices in float64, counted from their least value where float32 could not tell them apart from afar.

    Such are the numbers 0 to 255 of a picture that begin at 2**31; models do not see where they begin.
    """
    low, high = (limit(axis=(1, 2), keepdims=True) for limit in (slices.min, slices.max))
    ends = low.astype(np.float64), high.astype(np.float64)
    far = (low != high) & (ends[1] - ends[0] <= np.maximum(*np.abs(ends)) * _FAR)
    return np.asarray(np.where(far, slices - low, slices) if far.any() else slices, np.float64)


def _numbers(values: object, count: int, *, whole: bool = False) -> bool:
    """Tell whether values are a sequence of so many real or whole numbers; a bool is none."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    )


def check_finite(array: NDArray[Any], name: str) -> None:
    """Refuse an image with values that float32, in which models compute, cannot hold."""
    if array.dtype.kind != "f":
        return
    limit = np.float64(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):  # a NaN may be of the kind that signals
        fine = sum(np.count_nonzero((part >= -limit) & (part <= limit)) for part in pieces(array))
    wrong = array.size - fine
    if wrong:
        raise ValueError(
            f"{name} holds {wrong} values of {array.size} that are not finite "
            "(NaN, infinite or beyond float32); all must be"
        )


def pieces(*arrays: NDArray[Any]) -> Iterator[Any]:
    """Yield an array in flat pieces, whatever its layout, so that what is computed of them takes little memory.

    Of several arrays of one shape, the pieces come in tuples.
    """
    flags: Any = ("external_loop", "buffered", "zerosize_ok")
    yield from np.nditer(list(arrays), flags, order="K", buffersize=2**18)


def sum_inside(probability: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Return the sum of probabilities where a mask is, to ten digits.

    It is summed in whole numbers: then the order, which NumPy chooses by CPU, makes no difference.
    """
    total = sum(
        int((part[there].astype(np.float64) * _UNIT).astype(np.int64).sum())
        for part, there in pieces(probability, inside)
    )
    return total / _UNIT


def resize_cubic(images: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resize (N, h, w) with the Keys kernel, a = -0.75, half-pixel centres, clamped border, no antialiasing."""
    for axis, n_out in enumerate(size, start=1):
        n_in = images.shape[axis]
        position = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        base = np.floor(position).astype(np.intp)
        total: NDArray[np.float64] | None = None
        for tap in (-1, 0, 1, 2):
            weight = _along(_keys(np.abs(position - base - tap)), axis)
            term = weight * np.take(images, np.clip(base + tap, 0, n_in - 1), axis=axis)
            total = term if total is None else total + term
        assert total is not None
        images = total
    return images


def resize_linear(images: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize (N, h, w) linearly: half-pixel centres, clamped border, no antialiasing."""
    for axis, n in enumerate(size, start=1):
        images = _linear(images, (np.arange(n) + 0.5) * images.shape[axis] / n - 0.5, axis)
    return images


def shrink_linear(image: FloatArray, scale: int) -> FloatArray:
    """Shrink (N, H, W, ...) by a whole factor: linear, half-pixel centres, no antialiasing; sizes divide by it."""
    for axis in (1, 2):
        n_out = image.shape[axis] // scale
        image = _linear(image, (np.arange(n_out) + 0.5) * scale - 0.5, axis)
    return image


def shrink_mean(image: FloatArray, scale: int) -> FloatArray:
    """Shrink (N, H, W, ...) by a whole factor: the mean of each block, summed in a fixed order; sizes divide by it."""
    for axis in (1, 2):
        shape = image.shape
        blocks = image.reshape(*shape[:axis], shape[axis] // scale, scale, *shape[axis + 1 :])
        parts = np.moveaxis(blocks, axis + 1, 0)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        image = total / np.float32(scale)
    return image


SHRINK = {"linear": shrink_linear, "mean": shrink_mean}


def _linear(images: FloatArray, position: NDArray[np.float64], axis: int) -> FloatArray:
    """Read images at fractional positions along an axis, clamped at the border."""
    last = images.shape[axis] - 1
    position = np.clip(position, 0.0, last)
    base = np.minimum(np.floor(position).astype(np.intp), max(last - 1, 0))
    fraction = _along((position - base).astype(np.float32), axis, images.ndim)
    low = np.take(images, base, axis=axis)
    high = np.take(images, np.minimum(base + 1, last), axis=axis)
    result: FloatArray = low * (1 - fraction) + high * fraction
    return result


def _keys(distance: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _along(values: NDArray[np.floating], axis: int, ndim: int = 3) -> NDArray[np.floating]:
    """Shape a vector so that it broadcasts along one axis."""
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])
