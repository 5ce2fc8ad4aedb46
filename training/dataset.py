"""Cases to train on: which of them validate, whether they can be right, and their prepared slices."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynca.cases import Case, Dataset, only
from pynca.evaluation import check_pair
from pynca.orientation import DISPLAY, Orientation
from pynca.preprocessing import Preparation, resize_linear
from pynca.volumes import Volume, is_volume_path, read_label, read_volume

from .recipe import SMALL
from .sampling import Slices

_WHOLE = 16  # sides of pictures are brought up to multiples of the coarsest cell


def split(dataset: Dataset, validation: str | os.PathLike[str]) -> tuple[list[Case], list[Case]]:
    """Divide the cases into those to train on and those to validate with.

    Parameters
    ----------
    validation : str or path
        A share of the patients such as ``"0.2"``, taken evenly from the sorted ones; a text file with a patient or
        the file name of a label on each line; or ``"none"``.

    Raises
    ------
    ValueError
        The file names a case that is not there, or divides a patient; or nothing is left for one side.
    """
    if validation == "none":
        return list(dataset.cases), []
    share = _number(str(validation))
    if share is not None:
        if not 0 < share < 1:
            raise ValueError(f"validation is {validation}; it must be a share below 1, a file of names, or none")
        patients = list(dict.fromkeys(case.group for case in dataset.cases))
        chosen = {patients[int((n + 0.5) / share)] for n in range(int(len(patients) * share))}
        held = [case for case in dataset.cases if case.group in chosen]
    else:
        held = only(dataset.cases, validation)
    names = {case.name for case in held}
    rest = [case for case in dataset.cases if case.name not in names]
    if not held or not rest:
        count = len({case.group for case in dataset.cases})
        raise ValueError(
            f"of {len(dataset.cases)} cases of {count} patient{'s' * (count > 1)} {len(held)} would validate; "
            "both sides need at least one, unless none validates"
        )
    both = sorted({case.group for case in held} & {case.group for case in rest})
    if both:
        raise ValueError(f"{validation} divides the patient {both[0]}; all images of one must train, or all validate")
    subjects = sorted(_subjects(held) & _subjects(rest))
    if subjects:
        warnings.warn(
            f"{subjects[0]} trains and validates, by the names of BIDS; the validation Dice will flatter the model. "
            "'sub-[^_]+' as the pattern to group by keeps subjects on one side",
            stacklevel=2,
        )
    return rest, held


def _subjects(cases: Sequence[Case]) -> set[str]:
    """Return the subjects of cases that are named as in BIDS."""
    return {found[0] for case in cases if (found := re.match(r"sub-[A-Za-z0-9]+(?=_)", case.name))}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def preparation_for(
    case: Case,
    *,
    size: Sequence[int] | None = None,
    orientation: str | None = None,
    axis: int = 2,
    spacing: Sequence[float] = (1.0,),
    percentiles: Sequence[float] = (0.5, 99.5),
    shrink: str | None = None,
) -> Preparation:
    """Choose how slices are prepared: volumes at 64 x 64 as in the papers, pictures in their own size.

    Parameters
    ----------
    case : Case
        One of those to train on, whose size is taken.
    size : (int, int), optional
        Rows and columns instead.
    orientation : str, optional
        As of `pynca.Preparation`. Default: ``"RAS"`` for volumes, ``"display"`` for pictures.
    axis, spacing, percentiles : int, sequence of float, (float, float)
        As of `pynca.Preparation`; one spacing counts for all axes.
    shrink : str, optional
        Default: ``"linear"`` up to 96 pixels, ``"mean"`` above.
    """
    if size is None:
        size = (64, 64)
        if not is_volume_path(case.label):
            image = read_volume(case.image)
            plane = image.data.shape if image.data.ndim == 2 else np.delete(image.data.shape, axis)
            size = [-(-int(side) // _WHOLE) * _WHOLE for side in plane[:2]]
    if len(spacing) not in (1, 3):
        raise ValueError(f"spacing is {list(spacing)}; it must be one number, or three")
    orientation = orientation or ("RAS" if is_volume_path(case.label) else DISPLAY)
    sizes = tuple(spacing) * (3 if len(spacing) == 1 else 1)
    shrink = shrink or ("mean" if max(size) > SMALL else "linear")
    return Preparation(
        (int(size[0]), int(size[1])),
        orientation,
        axis,
        (sizes[0], sizes[1], sizes[2]),
        (percentiles[0], percentiles[1]),
        shrink=shrink,
    )


def read_case(case: Case, dataset: Dataset) -> tuple[Volume, NDArray[np.bool_]]:
    """Return the image and where any label is.

    Raises
    ------
    ValueError
        They lie in different places, the label holds something that is not declared, or marks something in an image
        that is the same everywhere.
    """
    image, label = read_volume(case.image), read_label(case.label)
    check_pair(image, label)
    values = np.unique(label.data)
    allowed = np.arange(256) if dataset.values is None else np.array(sorted(dataset.values))
    wrong = values[~np.isin(values, allowed)]
    if len(wrong):
        declared = "whole numbers from 0 to 255" if dataset.values is None else f"{sorted(dataset.values)}"
        raise ValueError(f"{case.label} holds the label {wrong[0]:g}; declared are {declared}")
    truth: NDArray[np.bool_] = label.data > 0
    if truth.any() and image.data.min() == image.data.max():
        raise ValueError(
            f"{case.image} is {image.data.flat[0]:g} everywhere, but {case.label} marks something in it; one of them "
            "must be wrong"
        )
    return image, truth


def check_validation(cases: Sequence[Case], dataset: Dataset) -> None:
    """Look at the cases that validate before anything is learnt, so that a training does not end at one of them.

    Raises
    ------
    ValueError
        As `read_case`, or no case has any label: then a model that finds nothing would do best.
    """
    shown = [bool(read_case(case, dataset)[1].any()) for case in cases]
    if cases and not any(shown):
        raise ValueError("no case that validates has any label; nothing can be measured on them")


def prepare(
    cases: Iterable[Case],
    dataset: Dataset,
    preparation: Preparation,
    progress: Callable[[], None] = lambda: None,
) -> Slices:
    """Read and prepare all slices of some cases; labels are resized like images, without an offset.

    Raises
    ------
    ValueError
        As `read_case`, or no case has any label.
    """
    images, labels = [], []
    for case in cases:
        image, label = read_case(case, dataset)
        way = Orientation.of(image, preparation.orientation, preparation.axis)
        slices = np.moveaxis(way.apply(_three(image.data)), preparation.axis, 0)
        truth = np.moveaxis(way.apply(_three(label)), preparation.axis, 0)
        images.append(preparation.prepare(slices))
        labels.append(resize_linear(truth.astype(np.float32), preparation.size))
        progress()
    if not any(label.max() > 0.5 for label in labels):
        raise ValueError("no case has any label; there is nothing to learn")
    return Slices(np.concatenate(images), np.concatenate(labels))


def _three(data: NDArray[Any]) -> NDArray[Any]:
    """Give a picture a third axis."""
    return data.reshape(*data.shape, *[1] * (3 - data.ndim))
