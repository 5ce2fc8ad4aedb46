"""How much of each label a segmentation holds, where, and how sure it is."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .files import atomic_path

if TYPE_CHECKING:
    from .segmentation import Segmentation

_UNIT = 2.0**32  # probabilities are summed as whole multiples of its inverse


@dataclass(frozen=True)
class LabelStatistics:
    """What a segmentation holds of one label.

    Attributes
    ----------
    value : int
        The label's value in the mask.
    name : str
    voxels : int
    volume_ml : float or None
        Volume in millilitres, to six digits; None where nothing says how large a voxel is.
    bounding_box : list of [int, int], or None
        First and last index along each axis of the input; None where nothing was found.
    mean_probability : float or None
        Mean over the label's voxels, to six digits; None where nothing was found.
    nqm : float or None
        How much several runs disagree (`pynca.quality.nqm`), to six digits; None for one run.
    """

    value: int
    name: str
    voxels: int
    volume_ml: float | None
    bounding_box: list[list[int]] | None
    mean_probability: float | None
    nqm: float | None


def label_statistics(segmentation: Segmentation) -> list[LabelStatistics]:
    """Return the statistics of each label of a segmentation, in the order of its labels.

    The figures are the same to the last digit on every machine.

    Parameters
    ----------
    segmentation : Segmentation
        As `pynca.predict` returns it. A volume in millilitres needs its geometry, so an image that was
        an array without affine, or a picture, has none.

    Returns
    -------
    list of LabelStatistics
    """
    voxel = None if segmentation.volume is None else segmentation.volume.voxel_volume
    found = []
    for value, name in segmentation.labels.items():
        mask = segmentation.mask == value
        voxels = int(np.count_nonzero(mask))
        found.append(
            LabelStatistics(
                value=value,
                name=name,
                voxels=voxels,
                volume_ml=None if voxel is None else rounded(voxels * voxel / 1000),
                bounding_box=_bounding_box(mask) if voxels else None,
                mean_probability=_mean(segmentation.probability[mask]) if voxels else None,
                nqm=rounded(segmentation.nqm),
            )
        )
    return found


def write_statistics(path: str | os.PathLike[str], cases: Iterable[tuple[str, Sequence[LabelStatistics]]]) -> None:
    """Write one row a case and label as CSV, whole or not at all; the same statistics give the same bytes.

    Parameters
    ----------
    path : str or path-like
        The file to write.
    cases : iterable of (str, sequence of LabelStatistics)
        The name of each case, and its labels. A bounding box takes six columns, ``i_first`` to ``k_last``;
        a picture's third axis is left empty, as is everything that is None, and a film's fourth left out.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name, labels in cases:
        for label in labels:
            ends = [end for axis in label.bounding_box or () for end in axis]
            box = [*ends, *[None] * len(_BOX)][: len(_BOX)]
            volume = [label.voxels, label.volume_ml]
            writer.writerow([name, label.value, label.name, *volume, *box, label.mean_probability, label.nqm])
    with (
        atomic_path(path) as beside,
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.write(text.getvalue())  # names of files can hold bytes that are no text


_BOX = ("i_first", "i_last", "j_first", "j_last", "k_first", "k_last")
_COLUMNS = ("input", "label", "name", "voxels", "volume_ml", *_BOX, "mean_probability", "nqm")


def rounded(value: float | None) -> float | None:
    """Return a number to six digits, and None for one that is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _bounding_box(mask: NDArray[np.bool_]) -> list[list[int]]:
    along = (mask.any(axis=tuple(set(range(mask.ndim)) - {axis})) for axis in range(mask.ndim))
    return [[int(places[0]), int(places[-1])] for places in map(np.flatnonzero, along)]


def _mean(probability: NDArray[np.float32]) -> float | None:
    """Return the mean, summed in whole numbers: then the order, which NumPy chooses by CPU, makes no difference."""
    total = int((probability.astype(np.float64) * _UNIT).astype(np.int64).sum())
    return rounded(total / _UNIT / probability.size)
