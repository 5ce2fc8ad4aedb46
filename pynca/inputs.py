"""What input a model was made for, and whether an image is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .orientation import DISPLAY, Orientation
from .volumes import Volume

if TYPE_CHECKING:
    from .model import Model
    from .preprocessing import Preparation

Range = tuple[float, float]

# How far an image may leave what was learnt. docs/quality.md has the measurements behind these.
_SPACING = 5.0  # times finer or coarser
_EXTENT = 1.25  # times smaller or larger
_ALIKE = 0.75
_CELLS = 4  # of a thumbnail along each axis
_SAMPLED = 64  # voxels along each axis, about, that a thumbnail is made of
_AIR = -500  # Hounsfield units: lungs and what surrounds the patient
_CLIPPED = (0.5, 99.5)  # percentiles


@dataclass(frozen=True)
class Expected:
    """What input a model was made for, learnt from the images that it was trained on.

    Parameters
    ----------
    spacing : sequence of (float, float)
        Least and largest size of a voxel in mm, for each axis of the model's orientation.
    extent : sequence of (float, float)
        Least and largest field of view in mm, in the same order.
    thumbnail : sequence of float
        What the images look like: mean of their thumbnails (`thumbnail`), in C order.
    likeness : float
        The least correlation of an image's thumbnail with the mean of all others: -1 to 1. Near 1 where all
        show the same region in the same way; near 0 where each looks different, and nothing can be expected.
    images : int
        How many it was learnt from.

    Raises
    ------
    ValueError
        A range, the thumbnail or a number cannot be right.
    """

    spacing: Sequence[Range]
    extent: Sequence[Range]
    thumbnail: Sequence[float]
    likeness: float
    images: int

    def __post_init__(self) -> None:
        spacing, extent = _ranges(self.spacing, "spacing"), _ranges(self.extent, "extent")
        cells = _CELLS ** len(spacing)
        if len(extent) != len(spacing):
            raise ValueError(f"expected: spacing is of {len(spacing)} axes and extent of {len(extent)}")
        if len(self.thumbnail) != cells or not all(is_number(v) for v in self.thumbnail):
            raise ValueError(
                f"expected: the thumbnail must be {cells} numbers, {_CELLS} for each of {len(spacing)} axes"
            )
        if not (is_number(self.likeness) and -1 <= self.likeness <= 1):
            raise ValueError(f"expected: likeness is {self.likeness!r}; it must be a number from -1 to 1")
        if not isinstance(self.images, int) or isinstance(self.images, bool) or self.images < 1:
            raise ValueError(f"expected: images is {self.images!r}; it must be a whole number above 0")
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "extent", extent)
        object.__setattr__(self, "thumbnail", tuple(float(v) for v in self.thumbnail))
        object.__setattr__(self, "likeness", float(self.likeness))

    @property
    def least_likeness(self) -> float:
        """The likeness under which an image counts as another: half as far again from 1 as any that was seen.

        Never above 0.75: a few images that are all alike do not tell how far others may differ.
        """
        return min(self.likeness - (1.0 - self.likeness) / 2, _ALIKE)


def check_input(image: Volume, model: Model, *, axis: int | None = None, content: bool = True) -> list[str]:
    """Say in which ways an image is not what a model was made for.

    Spacing and field of view may leave the range that was learnt by a factor of 5 and 1.25. The content is
    compared by its thumbnail, which depends neither on the unit of the intensities nor on resolution: another
    organ, contrast or orientation is not like the images of training. A few milliseconds, whatever the size.

    Parameters
    ----------
    image : Volume
        Of one without affine and spacing, only the content is compared; of a film, the first volume.
    model : Model
        One that does not know what to expect (``model.expected is None``) accepts everything. One that learnt
        from volumes knows the size of a single slice, not what it looks like; one that learnt from slices looks at
        the middle one of a volume.
    axis : int, optional
        As of `pynca.predict`.
    content : bool
        Whether to look at what the image shows; only at its geometry otherwise, as where its voxels were not read.
        Default True.

    Returns
    -------
    list of str
        A sentence for each way, with what was found and what expected; empty where nothing is wrong.
    """
    expected, preparation = model.expected, model.preparation
    if expected is None:
        return []
    data, spacing = _oriented(image, preparation, axis if len(expected.spacing) == 2 else None)
    spacings, extents = expected.spacing, expected.extent
    alone = data.ndim < len(spacings)  # a slice, where the model learnt from volumes
    if alone:
        spacings, extents = (
            [pair for n, pair in enumerate(ranges) if n != preparation.axis] for ranges in (spacings, extents)
        )
    elif data.ndim > len(spacings):  # a volume, where the model learnt from slices: the middle one stands for it
        data = data.take(data.shape[preparation.axis] // 2, preparation.axis)
        spacing = None if spacing is None else [mm for n, mm in enumerate(spacing) if n != preparation.axis]
    who, problems = model.card.name or "the model", []
    if spacing is not None:
        extent = [mm * n for mm, n in zip(spacing, data.shape, strict=True)]
        towards = "rows, columns, slices" if preparation.orientation == DISPLAY else ", ".join(preparation.orientation)
        axes = f" (axes towards {towards})" if data.ndim == 3 else ""
        if _outside(spacing, spacings, _SPACING):
            problems.append(
                f"{image.name} has voxels of {sizes(spacing)} mm{axes}; {who} learnt on {sizes(spacings)} mm"
            )
        if _outside(extent, extents, _EXTENT):
            problems.append(
                f"{image.name} covers {sizes(extent)} mm{axes}; {who} learnt on {sizes(extents)} mm "
                "and expects that region and no more"
            )
    if alone or not content:
        return problems
    found = _likeness(thumbnail(data), np.array(expected.thumbnail))
    if found < expected.least_likeness:
        problems.append(
            f"{image.name} does not look like what {who} learnt on (likeness {found:.2f}, expected at least "
            f"{expected.least_likeness:.2f}): {_guess(data)}"
        )
    return problems


def slices_along(shape: Sequence[int], spacing: Sequence[float] | None, model: Model) -> list[int]:
    """Say along which axes of an array the slices can follow each other that a model of single slices takes.

    Parameters
    ----------
    shape : (int, int, int)
        Of an array that does not say where it lies.
    spacing : sequence of float or None
        Size of its voxels in mm; None counts as the model's.
    model : Model

    Returns
    -------
    list of int
        The axes across which slices have the field of view that the model learnt on. Where that is unknown, or none
        has it, the axis that differs most from two that are alike, or the shortest; all where nothing tells. For a
        model of volumes in the patient's orientation, whose axes mean something, always the one that it slices.
    """
    along, expected = model.preparation.axis, model.expected
    of_slices = expected is not None and len(expected.spacing) == 2
    if not of_slices and model.preparation.orientation != DISPLAY:
        return [along]
    if expected is not None:
        extents = list(expected.extent)
        if len(extents) > 2:
            del extents[along]
        pixel = [mm for n, mm in enumerate(model.preparation.spacing) if n != along]
        fitting = []
        for axis in range(3):
            plane = [n for n in range(3) if n != axis]
            sides = pixel if spacing is None else [spacing[n] for n in plane]
            if not _outside([mm * shape[n] for mm, n in zip(sides, plane, strict=True)], extents, _EXTENT):
                fitting.append(axis)
        if fitting:
            return fitting
    counts = list(shape)
    odd = [n for n in range(3) if counts.count(counts[n]) == 1]
    if len(odd) == 3:
        return [counts.index(min(counts))]
    return odd or [0, 1, 2]


def learn_expected(images: Iterable[Volume], preparation: Preparation) -> Expected | None:
    """Learn from the images that a model is trained on what it should expect.

    Parameters
    ----------
    images : iterable of Volume
        They are taken one after the other, and none is kept.
    preparation : Preparation
        States the model's orientation.

    Returns
    -------
    Expected or None
        None for fewer than two images, or slices among volumes: nothing general can be learnt from them.
    """
    spacings, extents, thumbnails = [], [], []
    for image in images:
        data, spacing = _oriented(image, preparation)
        if spacing is None:  # then it is taken to be the model's
            spacing = [mm for n, mm in enumerate(preparation.spacing) if data.ndim == 3 or n != preparation.axis]
        spacings.append(spacing)
        extents.append([mm * n for mm, n in zip(spacing, data.shape, strict=True)])
        thumbnails.append(thumbnail(data))
    if len(thumbnails) < 2 or len({one.ndim for one in thumbnails}) > 1:
        return None
    total = np.sum(thumbnails, axis=0)
    likeness = min(_likeness(one, total - one) for one in thumbnails)
    mean = (total / len(thumbnails)).ravel()
    return Expected(
        spacing=_spans(spacings),
        extent=_spans(extents),
        thumbnail=[round(v, 4) for v in mean.tolist()],
        likeness=math.floor(likeness * 1e4) / 1e4,
        images=len(thumbnails),
    )


def thumbnail(data: NDArray[Any]) -> NDArray[np.float64]:
    """Return what an image looks like from afar: the mean of each of 4 parts along every axis, of mean 0 and norm 1.

    Parameters
    ----------
    data : array
        A slice (H, W) or a volume (H, W, D) in the model's orientation, finite.

    Returns
    -------
    array
        float64, (4, 4) or (4, 4, 4); zeros where all parts are alike.
    """
    data = _sampled(data).astype(np.float64)
    data = np.clip(data, *np.percentile(data, _CLIPPED))  # a few bright vessels must not outweigh the rest
    largest = float(np.abs(data).max())
    for axis, n in enumerate(data.shape):
        if n < _CELLS:
            data, n = np.repeat(data, _CELLS, axis=axis), n * _CELLS
        edges = np.arange(_CELLS + 1) * n // _CELLS
        sums = np.add.reduceat(data, edges[:-1], axis=axis)
        data = sums / np.diff(edges).reshape([-1 if a == axis else 1 for a in range(data.ndim)])
    data = data - data.mean()
    norm = math.sqrt(float((data * data).sum()))
    return data / norm if norm > 1e-9 * largest else np.zeros_like(data)


def sizes(values: Sequence[float | Range]) -> str:
    """Write sizes along axes: ``1 x 1 x 1`` or ``31-42 x 40-58 x 24-47``."""
    texts = []
    for size in values:
        low, high = size if isinstance(size, tuple) else (size, size)
        texts.append(f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}-{high:.3g}")
    return " x ".join(texts)


def _likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation of two thumbnails; 0 where one of them shows nothing."""
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a.ravel() * b.ravel()).sum()) / norm if norm > 0 else 0.0


def _sampled(data: NDArray[Any]) -> NDArray[Any]:
    """Return a view of evenly spread voxels, few enough for a moment's work and no memory to speak of."""
    return data[tuple(slice(None, None, -(-n // _SAMPLED)) for n in data.shape)]


def _guess(data: NDArray[Any]) -> str:
    """Say why an image may look otherwise."""
    low, high = float(data.min()), float(data.max())
    if low == high:
        return f"it is {low:g} everywhere"
    if np.mean(_sampled(data) < _AIR) > 0.01 and low >= -4096:
        return f"its values, {low:g} to {high:g}, seem to be the Hounsfield units of a CT"
    return "another region, another contrast, or its axes point elsewhere than its header says"


def _oriented(
    image: Volume, preparation: Preparation, axis: int | None = None
) -> tuple[NDArray[Any], list[float] | None]:
    """Return an image in a model's orientation, two axes for a single slice, and the size of its voxels if known.

    With ``axis``, that axis of the image takes the place of the one that the model slices.
    """
    data, sizes = image.data, image.voxel_size
    if data.ndim == 4:
        data = data[..., 0]
    if data.ndim == 2 and not image.picture:
        return data, None if sizes is None else list(sizes)
    way = Orientation.of(image, preparation.orientation, preparation.axis, axis)
    data = way.apply(data.reshape(*data.shape, *[1] * (3 - data.ndim)))
    order = [way.axes.index(n) for n in range(3)]
    if axis is not None:
        along = order.index(axis % 3)
        data = np.moveaxis(data, along, preparation.axis)
        order.insert(preparation.axis, order.pop(along))
    spacing = None if sizes is None else [(*sizes, 1.0)[n] for n in order]
    if data.shape[preparation.axis] > 1:
        return data, spacing
    if spacing is not None:
        del spacing[preparation.axis]
    return data.take(0, preparation.axis), spacing


def _outside(sizes: Sequence[float], ranges: Sequence[Range], factor: float) -> bool:
    return any(not low / factor <= mm <= high * factor for mm, (low, high) in zip(sizes, ranges, strict=True))


def _spans(rows: Sequence[Sequence[float]]) -> list[Range]:
    return [(round(min(column), 4), round(max(column), 4)) for column in zip(*rows, strict=True)]


def _ranges(values: Sequence[Range], what: str) -> tuple[Range, ...]:
    ranges = tuple(tuple(pair) for pair in values)
    if len(ranges) not in (2, 3) or not all(
        len(pair) == 2 and all(is_number(mm) for mm in pair) and 0 < pair[0] <= pair[1] for pair in ranges
    ):
        raise ValueError(f"expected: {what} is {values!r}; it must be the least and largest mm above 0 of 2 or 3 axes")
    return tuple((float(low), float(high)) for low, high in ranges)


def is_number(value: object) -> bool:
    """Tell whether a value of a model file is a finite number; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
