"""How much of each label a segmentation holds, where, and how sure it is."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .preprocessing import sum_inside
from .tables import write_table

if TYPE_CHECKING:
    from .segmentation import Segmentation


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
    frame : int or None
        Of a film, the time point that all of this is of, counted from 0; None for anything else.
    """

    value: int
    name: str
    voxels: int
    volume_ml: float | None
    bounding_box: list[list[int]] | None
    mean_probability: float | None
    nqm: float | None
    frame: int | None = None


@dataclass(frozen=True)
class Cycle:
    """How large a label is over the frames of a film.

    Attributes
    ----------
    name : str
        The label's.
    frames : list of LabelStatistics
        In the order of time.
    largest, smallest : LabelStatistics
        The frames in which it is largest and smallest; of equal ones the first. Of a ventricle of the heart,
        end-diastole and end-systole.
    ventricle : bool
        The label's name says that it is the cavity of one (`is_ventricle`).
    ejection_fraction : float or None
        ``(largest - smallest) / largest`` of a ventricle, to six digits. None for another label; where nothing was
        found in a frame, whose volume is then not known; and where all that was found lies in one slice, which shows
        an area and no volume.
    missing : str
        Why a ventricle has no ejection fraction; empty where it has one, and for another label.
    """

    name: str
    frames: list[LabelStatistics]
    largest: LabelStatistics
    smallest: LabelStatistics
    ventricle: bool
    ejection_fraction: float | None
    missing: str = ""


def label_statistics(segmentation: Segmentation) -> list[LabelStatistics]:
    """Return the statistics of each label of a segmentation, in the order of its labels.

    Of a film, each frame has its own: all labels of the first frame, then all of the second. The figures are the same
    to the last digit on every machine.

    Parameters
    ----------
    segmentation : Segmentation
        As `pynca.predict` returns it. A volume in millilitres needs its geometry, so an image that was
        an array without affine, or a picture, has none.

    Returns
    -------
    list of LabelStatistics
    """
    frames = segmentation.frames()
    if len(frames) == 1:
        return list(_of_one(frames[0], None))
    return [label for n, frame in enumerate(frames) for label in _of_one(frame, n)]


def _of_one(segmentation: Segmentation, frame: int | None) -> Iterator[LabelStatistics]:
    voxel = None if segmentation.volume is None else segmentation.volume.voxel_volume
    for value, name in segmentation.labels.items():
        mask = segmentation.mask == value
        voxels = int(np.count_nonzero(mask))
        yield LabelStatistics(
            value=value,
            name=name,
            voxels=voxels,
            volume_ml=None if voxel is None else rounded(voxels * voxel / 1000),
            bounding_box=_bounding_box(mask) if voxels else None,
            mean_probability=rounded(sum_inside(segmentation.probability, mask) / voxels) if voxels else None,
            nqm=rounded(segmentation.nqm),
            frame=frame,
        )


def cycles(labels: Sequence[LabelStatistics]) -> list[Cycle]:
    """Say how the labels of a film change over its frames, in the order of the labels; nothing of what is no film.

    Parameters
    ----------
    labels : sequence of LabelStatistics
        Of one segmentation, as `label_statistics` returns them.
    """
    films: dict[int, list[LabelStatistics]] = {}
    for label in labels:
        if label.frame is not None:
            films.setdefault(label.value, []).append(label)
    return [_cycle(sorted(frames, key=lambda label: label.frame or 0)) for frames in films.values()]


def _cycle(frames: list[LabelStatistics]) -> Cycle:
    largest, smallest = (choose(frames, key=lambda label: label.voxels) for choose in (max, min))
    name = frames[0].name
    ventricle, fraction, missing = is_ventricle(name), None, ""
    if ventricle and not smallest.voxels:
        missing = f"nothing was found in frame {smallest.frame}"
    elif ventricle and _in_one_slice(frames):
        missing = "all that was found lies in one slice"
    elif ventricle:
        fraction = rounded((largest.voxels - smallest.voxels) / largest.voxels)  # voxels are as large in all frames
    return Cycle(name, frames, largest, smallest, ventricle, fraction, missing)


def _in_one_slice(frames: Sequence[LabelStatistics]) -> bool:
    """Tell whether all that was found in any frame lies in one and the same slice."""
    boxes = [frame.bounding_box for frame in frames if frame.bounding_box]
    along = [list(zip(*ends, strict=True)) for ends in zip(*boxes, strict=False)]
    return any(min(first) == max(last) for first, last in along) or not along


def is_ventricle(label: str) -> bool:
    """Tell whether a label's name says that it is the cavity of a ventricle of the heart.

    Such as ``"left ventricle"``, ``"RV cavity"`` and ``"heart_ventricle_left"``; neither the wall of one, as
    ``"LV myocardium"``, nor a ventricle of the brain, as ``"left lateral ventricle"``.
    """
    words = " ".join(re.findall(r"[a-z]+", label.lower()))
    return bool(re.search(_VENTRICLE, words)) and not re.search(_WALL, words)


_VENTRICLE = (  # compiled when a film asks for it
    r"\b((left|right|heart|cardiac) ventric(le|les|ular)|ventricle (left|right)|[lr]v|[lr]v(c|bp|cavity))\b"
)
_WALL = r"\b(myo\w*|epi\w*|\w*wall|muscle|mass|\w*cardi(um|al)|septum|scar|fat)\b"


def write_statistics(
    path: str | os.PathLike[str],
    cases: Iterable[tuple[str, Sequence[LabelStatistics]]],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write one row a case and label as CSV, whole or not at all; the same statistics give the same bytes.

    A film has a row a frame and label. If there is one among the cases, a column ``frame`` behind ``input`` counts
    them from 0; it is empty for other cases.

    Parameters
    ----------
    path : str or path-like
        The file to write.
    cases : iterable of (str, sequence of LabelStatistics)
        The name of each case, and its labels. A bounding box takes six columns, ``i_first`` to ``k_last``;
        a picture's third axis is left empty, as is everything that is None.
    overwrite, inputs
        As of `pynca.files.check_writable`.

    Raises
    ------
    OSError, ValueError
        As `pynca.tables.write_table`, which says what becomes of names.
    """
    cases = list(cases)
    films = any(label.frame is not None for _, labels in cases for label in labels)
    rows = []
    for name, labels in cases:
        for label in labels:
            ends = [end for axis in label.bounding_box or () for end in axis]
            box = [*ends, *[None] * len(_BOX)][: len(_BOX)]
            case = [name, label.frame] if films else [name]
            volume = [label.voxels, label.volume_ml]
            rows.append([*case, label.value, label.name, *volume, *box, label.mean_probability, label.nqm])
    columns = (_COLUMNS[0], *["frame"][:films], *_COLUMNS[1:])
    write_table(path, columns, rows, overwrite=overwrite, inputs=inputs)


_BOX = ("i_first", "i_last", "j_first", "j_last", "k_first", "k_last")
_COLUMNS = ("input", "label", "name", "voxels", "volume_ml", *_BOX, "mean_probability", "nqm")


def rounded(value: float | None) -> float | None:
    """Return a number to six digits, and None for one that is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _bounding_box(mask: NDArray[np.bool_]) -> list[list[int]]:
    along = (mask.any(axis=tuple(set(range(mask.ndim)) - {axis})) for axis in range(mask.ndim))
    return [[int(places[0]), int(places[-1])] for places in map(np.flatnonzero, along)]
