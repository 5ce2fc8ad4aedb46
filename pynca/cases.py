"""Which image belongs to which label."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .volumes import is_volume_path


@dataclass(frozen=True)
class Case:
    """An image and its label.

    Parameters
    ----------
    name : str
        File name of the label.
    image, label : path
    """

    name: str
    image: Path
    label: Path


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


def find_cases(images: str | os.PathLike[str], labels: str | os.PathLike[str]) -> Dataset:
    """Pair the volumes of two folders by name; nnU-Net's ``_0000`` behind an image's name is ignored.

    Raises
    ------
    ValueError
        A folder holds no volume, or an image or label has no partner.
    """
    by_image, by_label = _volumes(Path(images)), _volumes(Path(labels))
    by_image = {name.removesuffix("_0000"): path for name, path in by_image.items()}
    for mine, theirs, what in ((by_image, by_label, "label"), (by_label, by_image, "image")):
        alone = sorted(set(mine) - set(theirs))
        if alone:
            raise ValueError(f"{mine[alone[0]]} has no {what} of the same name")
    return Dataset([Case(by_label[n].name, by_image[n], by_label[n]) for n in sorted(by_image)])


def only(cases: Sequence[Case], names: str | os.PathLike[str]) -> list[Case]:
    """Return the cases that a text file names, one label's file name a line.

    Raises
    ------
    ValueError
        It names a case that is not there.
    """
    wanted = set(Path(names).read_text(encoding="utf-8").split())
    unknown = sorted(wanted - {case.name for case in cases})
    if unknown:
        raise ValueError(f"{names} names {unknown[0]}, which is not among the labels")
    return [case for case in cases if case.name in wanted]


def read_dataset(folder: str | os.PathLike[str]) -> Dataset:
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
    found = find_cases(Path(folder) / "imagesTr", Path(folder) / "labelsTr")
    return Dataset(found.cases, frozenset(values | {0}))


def _volumes(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = {p.name.lower().removesuffix(".gz").removesuffix(".nii"): p for p in folder.iterdir() if is_volume_path(p)}
    if not found:
        raise ValueError(f"{folder} holds no .nii or .nii.gz file")
    return found
