"""Which image belongs to which label, and which belong to one patient."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from .volumes import INPUTS, is_input, is_volume_path, split_name

T = TypeVar("T")

# The patient of a picture is what stands before the last underscore: PATIENT_FRAME.png
PICTURES_BY = r"(.+)_[^_]+"


@dataclass(frozen=True)
class Case:
    """An image and its label.

    Parameters
    ----------
    name : str
        File name of the label.
    image, label : path
    group : str
        The patient; a split never divides one. Default: the name.
    """

    name: str
    image: Path
    label: Path
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.name)


@dataclass(frozen=True)
class Dataset:
    """Cases and the label values that may occur in them.

    Parameters
    ----------
    cases : sequence of Case
        Sorted by name.
    values : frozenset of int, optional
        Declared label values, 0 included; without them any whole number from 0 to 255 may occur.
    """

    cases: Sequence[Case]
    values: frozenset[int] | None = None


def find_cases(images: str | os.PathLike[str], labels: str | os.PathLike[str], group_by: str | None = None) -> Dataset:
    """Pair the images of two folders by name; nnU-Net's ``_0000`` behind an image's name is ignored.

    Parameters
    ----------
    images, labels : path
        Folders of NIfTI volumes, pictures, ``.npy`` arrays or DICOM series; labels are not DICOM.
    group_by : str, optional
        A regular expression that finds the patient at the start of a name without its ending: its first group, or
        all it matches. Default: a volume is a patient; of other images, what stands before the last underscore.

    Raises
    ------
    ValueError
        A folder holds no image, an image or label has no partner, or the pattern is none or does not fit a name.
    """
    by_image, by_label = _images(Path(images)), _images(Path(labels))
    by_image = {name.removesuffix("_0000"): path for name, path in by_image.items()}
    for mine, theirs, what in ((by_image, by_label, "label"), (by_label, by_image, "image")):
        alone = sorted(set(mine) - set(theirs))
        if alone:
            raise ValueError(f"{mine[alone[0]]} has no {what} of the same name")
    group = _grouping(group_by)
    return Dataset([Case(by_label[n].name, by_image[n], by_label[n], group(by_label[n])) for n in sorted(by_image)])


def only(cases: Sequence[Case], names: str | os.PathLike[str]) -> list[Case]:
    """Return the cases that a text file names: a patient or a label's file name on each line.

    Raises
    ------
    ValueError
        It names a case that is not there.
    """
    wanted = set(Path(names).read_text(encoding="utf-8").split())
    unknown = sorted(wanted - {case.name for case in cases} - {case.group for case in cases})
    if unknown:
        raise ValueError(f"{names} names {unknown[0]}, which is neither among the labels nor among the patients")
    return [case for case in cases if case.name in wanted or case.group in wanted]


def evenly(things: Sequence[T], count: int) -> list[T]:
    """Return so many at most, spread over all."""
    return [things[i] for i in np.linspace(0, len(things) - 1, min(count, len(things))).astype(int)]


def read_dataset(folder: str | os.PathLike[str], group_by: str | None = None) -> Dataset:
    """Read a folder in the layout of the Medical Segmentation Decathlon or nnU-Net: dataset.json, imagesTr, labelsTr.

    Raises
    ------
    ValueError
        The description is missing or cannot be understood, or as `find_cases`.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give --images and --labels for a folder without description")
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        # the Decathlon writes {"1": "name"}, nnU-Net {"name": 1}
        values = {int(key) if key.isdigit() else int(value) for key, value in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not declare its labels as the Decathlon or nnU-Net do: {error!r}") from None
    found = find_cases(Path(folder) / "imagesTr", Path(folder) / "labelsTr", group_by)
    return Dataset(found.cases, frozenset(values | {0}))


def _grouping(pattern: str | None) -> Callable[[Path], str]:
    """Return what finds the patient of a label."""
    try:
        compiled = re.compile(PICTURES_BY if pattern is None else pattern)
    except re.error as error:
        raise ValueError(f"group_by is {pattern!r}, which is no regular expression: {error}") from None

    def group(path: Path) -> str:
        if pattern is None and is_volume_path(path):
            return path.name
        stem = split_name(path.name)[0]
        match = compiled.match(stem)
        if match is None:
            if pattern is None:
                return path.name
            raise ValueError(f"{path} is named {stem}, in which the pattern {pattern!r} finds no patient")
        return match.group(1) if compiled.groups else match.group()

    return group


def _images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_input(path):
            continue
        name = split_name(path.name)[0].lower()
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name; a case must have one image and one label")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no image; they must be {INPUTS}")
    return found
