"""Cases to train on: which image belongs to which label, and whether they can be right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pynca.preprocessing import Preparation, resize_linear
from pynca.volumes import Orientation, Volume, is_volume_path, read_volume

from .sampling import Slices


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


def split(dataset: Dataset, validation: str | os.PathLike[str]) -> tuple[list[Case], list[Case]]:
    """Divide the cases into those to train on and those to validate with.

    Parameters
    ----------
    validation : str or path
        A share of the cases such as ``"0.2"``, taken evenly from the sorted names; a text file with the
        file name of a label on each line; or ``"none"``.

    Raises
    ------
    ValueError
        The file names a case that is not there, or nothing is left for one side.
    """
    if validation == "none":
        return list(dataset.cases), []
    share = _number(str(validation))
    if share is not None:
        if not 0 < share < 1:
            raise ValueError(f"validation is {validation}; it must be a share below 1, a file of names, or none")
        count = int(len(dataset.cases) * share)
        wanted = {dataset.cases[int((n + 0.5) / share)].name for n in range(count)}
    else:
        wanted = set(Path(validation).read_text(encoding="utf-8").split())
        unknown = sorted(wanted - {case.name for case in dataset.cases})
        if unknown:
            raise ValueError(f"{validation} names {unknown[0]}, which is not among the labels")
    held = [case for case in dataset.cases if case.name in wanted]
    rest = [case for case in dataset.cases if case.name not in wanted]
    if not held or not rest:
        raise ValueError(f"of {len(dataset.cases)} cases {len(held)} would validate; both sides need at least one")
    return rest, held


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_case(case: Case, dataset: Dataset) -> tuple[Volume, NDArray[np.bool_]]:
    """Return the image and where any label is.

    Raises
    ------
    ValueError
        They lie in different places, or the label holds something that is not declared.
    """
    image, label = read_volume(case.image), read_volume(case.label)
    if image.data.shape != label.data.shape:
        raise ValueError(f"{case.label} has shape {label.data.shape}, but its image {image.data.shape}")
    if not np.allclose(image.affine, label.affine, atol=1e-2):
        raise ValueError(f"{case.label} lies elsewhere than its image {case.image}: their affines differ")
    values = np.unique(label.data)
    allowed = np.arange(256) if dataset.values is None else np.array(sorted(dataset.values))
    wrong = values[~np.isin(values, allowed)]
    if len(wrong):
        declared = "whole numbers from 0 to 255" if dataset.values is None else f"{sorted(dataset.values)}"
        raise ValueError(f"{case.label} holds the label {wrong[0]:g}; declared are {declared}")
    return image, label.data > 0


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
        way = Orientation.between(image.affine, preparation.orientation)
        slices = np.moveaxis(way.apply(image.data), preparation.axis, 0)
        truth = np.moveaxis(way.apply(label), preparation.axis, 0)
        images.append(preparation.prepare(slices))
        labels.append(resize_linear(truth.astype(np.float32), preparation.size))
        progress()
    if not any(label.max() > 0.5 for label in labels):
        raise ValueError("no case has any label; there is nothing to learn")
    return Slices(np.concatenate(images), np.concatenate(labels))


def _volumes(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = {p.name.lower().removesuffix(".gz").removesuffix(".nii"): p for p in folder.iterdir() if is_volume_path(p)}
    if not found:
        raise ValueError(f"{folder} holds no .nii or .nii.gz file")
    return found
