"""Which image belongs to which label, and which belong to one patient."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from . import jsontext
from .errors import brief, quoted
from .files import open_once
from .volumes import INPUTS, files_of, is_input, is_volume_path, split_name

T = TypeVar("T")

_LARGEST = 64 * 2**20  # bytes of a dataset.json, which names every case

# The patient of a picture is what stands before the last underscore: PATIENT_FRAME.png
PICTURES_BY = r"(.+)_[^_]+"

_CHANNEL = re.compile(r"_(\d{4})$", re.ASCII)  # nnU-Net's, behind the name of an image
_NUMBER = re.compile(r"[0-9]{1,3}")
_DESCRIPTION = "dataset.json"
_OF_DATASETS = ("labelsTr", "labelsTs", "labelsVal", "gt_segmentations")  # what nnU-Net calls folders of labels
_MAX_NAMES = 16 * 2**20  # bytes of a list of names
_MAX_SHOWN = 200
_MARKS = (
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),  # begins as UTF-16's does
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
    (b"", "utf-8-sig"),
)


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
    """Pair the images of two folders with their labels by name.

    The label of an image has its name, whatever the endings. Where there is none, upper and lower case count alike,
    and then nnU-Net's ``_0000`` behind an image's name is left out.

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
        A folder holds no image; an image or label has no partner, or several; an image is a further channel of
        another, or its own label; the labels' ``dataset.json`` declares voxels to ignore; or the pattern is none or
        does not fit a name.
    """
    _check_beside(Path(labels))
    pairs = _pairs(_images(Path(images)), _images(Path(labels)))
    group = _grouping(group_by)
    cases = [Case(label.name, image, label, group(label)) for image, label in pairs]
    return Dataset(sorted(cases, key=lambda case: (split_name(case.name)[0].lower(), case.name)))


def files_of_cases(cases: Sequence[Case]) -> list[Path]:
    """List the files that cases are read from."""
    return [file for case in cases for path in (case.image, case.label) for file in files_of(path)]


def only(cases: Sequence[Case], names: str | os.PathLike[str]) -> list[Case]:
    """Return the cases that a text file names: a patient or a label's file name on each line.

    Names may hold spaces and stand in quotes; empty lines, and those of which the first word is ``#``, are left out.
    The text is UTF-8, or UTF-16 as Windows writes it.

    Raises
    ------
    ValueError
        It names no case, or one that is not there; or it is no text.
    OSError
        It cannot be read.
    """
    known: dict[str, set[str]] = {}
    for case in cases:
        for name in (case.name, case.group):
            known.setdefault(unicodedata.normalize("NFC", name), set()).add(case.name)
    wanted: set[str] = set()
    for line in _lines(Path(names)):
        spelling = next((text for text in (line, line.strip(), _unquoted(line)) if text in known), None)
        if spelling is not None:
            wanted |= known[spelling]
        elif line.strip() and line.split()[0].strip("#"):
            name = _unquoted(line)[:_MAX_SHOWN]
            raise ValueError(f"{names} names {name}, which is neither among the labels nor among the patients")
    if not wanted:
        raise ValueError(f"{names} names no case; write a patient or the file name of a label on each line")
    return [case for case in cases if case.name in wanted]


def evenly(things: Sequence[T], count: int) -> list[T]:
    """Return so many at most, spread over all."""
    return [things[i] for i in np.linspace(0, len(things) - 1, min(count, len(things))).astype(int)]


def digest(image: Path) -> str:
    """Return a hash of what a file holds, or of the files in the folder of a series; the same image has the same."""
    total = hashlib.sha256()
    # a pipe or a device might never end; reading it as an image says what is wrong
    for path in sorted(path for path in (image.iterdir() if image.is_dir() else [image]) if path.is_file()):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()


def read_dataset(folder: str | os.PathLike[str], group_by: str | None = None) -> Dataset:
    """Read a folder in the layout of the Medical Segmentation Decathlon or nnU-Net: dataset.json, imagesTr, labelsTr.

    Raises
    ------
    ValueError
        The description is missing or cannot be understood, or declares what cannot be learnt: regions of several
        values, or nnU-Net's label ``ignore``, whose voxels nobody annotated; or as `find_cases`.
    """
    path = Path(folder) / _DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{path} does not exist; without it, name the folders of images and of labels")
    declared = _declared(path)
    _check_declared(path, declared)
    found = find_cases(Path(folder) / "imagesTr", Path(folder) / "labelsTr", group_by)
    return Dataset(found.cases, frozenset(value for _, value in declared) | {0})


# --- what is declared ---------------------------------------------------------------------------------


def _declared(path: Path) -> list[tuple[str, int]]:
    """Return names and values of a dataset.json's labels: {"1": "name"} in the Decathlon, {"name": 1} in nnU-Net."""
    try:
        content = jsontext.read(path, _LARGEST, surrogates=True)
        labels = content.get("labels") if isinstance(content, dict) else None
        if not isinstance(labels, dict):
            raise ValueError('it must be an object whose "labels" are names and values')
        return [_label(name, value) for name, value in labels.items()]
    except ValueError as error:
        what = brief(error)
        raise ValueError(f"{path} does not declare its labels as the Decathlon or nnU-Net do: {what}") from None


def _label(key: str, value: object) -> tuple[str, int]:
    """Return the name and the value of a label."""
    if isinstance(value, list):
        raise ValueError(f"{quoted(key)} is a region of several values, {quoted(value)}; pynca learns labels of one")
    name, number = (value, key) if isinstance(value, str) and _NUMBER.fullmatch(key) else (key, value)
    if isinstance(number, str) and _NUMBER.fullmatch(number):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number not in range(256):
        raise ValueError(f"{quoted(name)} is {quoted(number)}; labels are whole numbers from 0 to 255")
    return name, int(number)


def _check_declared(path: Path, labels: Sequence[tuple[str, int]]) -> None:
    """Refuse labels that would be learnt, or measured, as what they are not."""
    for name, value in labels:
        kind = name.strip().casefold()
        if kind == "ignore":
            raise ValueError(
                f"{path} declares the label {quoted(name)}, {value}: voxels that nobody annotated, which pynca cannot "
                "leave out; every voxel must be annotated, and no label be called so"
            )
        if kind == "background" and value:
            raise ValueError(f"{path} declares {quoted(name)} as {value}; the background must be 0")
    if not any(value for _, value in labels):
        raise ValueError(f"{path} declares no label above 0; there is nothing to learn")


def _check_beside(labels: Path) -> None:
    """Refuse a folder of labels of a dataset whose description says that some voxels do not count."""
    path = labels.resolve().parent / _DESCRIPTION
    if labels.resolve().name in _OF_DATASETS and path.is_file():
        with contextlib.suppress(OSError):
            try:
                declared = _declared(path)
            except ValueError:  # regions, or a file of another program: nothing that was asked for
                return
            _check_declared(path, declared)


# --- names of a text file -----------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, in Unicode's composed form; a file's name that is no text keeps its bytes."""
    with open_once(path) as file:
        data = file.read(_MAX_NAMES + 1)
    if len(data) > _MAX_NAMES:
        raise ValueError(f"{path} has more than {_MAX_NAMES} bytes, too many for a list of names")
    encoding = next(name for mark, name in _MARKS if data.startswith(mark))
    if encoding == "utf-8-sig" and b"\0" in data[:2]:  # UTF-16 without a mark; a name begins with ASCII as a rule
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} is no text in UTF-8 or UTF-16; it must have a name on each line")
    return re.split(r"\r\n|\r|\n", unicodedata.normalize("NFC", text.replace("\ufeff", "")))


def _unquoted(line: str) -> str:
    text = line.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


# --- pairs --------------------------------------------------------------------------------------------


def _pairs(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[tuple[Path, Path]]:
    """Return each image with its label; both are given by their names without endings."""
    spellings: dict[str, list[str]] = {}
    for name in labels:
        spellings.setdefault(_folded(name), []).append(name)
    claims: dict[str, list[str]] = {name: [] for name in labels}
    alone: list[str] = []
    for name, image in images.items():
        found = _label_of(name, labels, spellings)
        if len(found) > 1:
            raise _claimed(image, "labels", [labels[label] for label in found])
        (claims[found[0]] if found else alone).append(name)
    label_of = {name: label for label, names in claims.items() for name in names}
    _check_channels(images, label_of)
    for label, names in claims.items():
        if len(names) > 1:
            raise _claimed(labels[label], "images", [images[name] for name in names])
        if not names:
            for name, other in label_of.items():  # an image that has another label already
                if _folded(label) in (_folded(name), _folded(_case_of(name))):
                    raise _claimed(images[name], "labels", [labels[label], labels[other]])
            raise ValueError(f"{labels[label]} has no image of the same name")
    if alone:
        raise ValueError(f"{images[alone[0]]} has no label of the same name")
    pairs = [(images[names[0]], labels[label]) for label, names in claims.items()]
    for image, path in pairs:
        if image.exists() and path.exists() and image.samefile(path):
            raise ValueError(f"{image} and its label {path} are one file; images and labels must be different files")
    return pairs


def _label_of(name: str, labels: Mapping[str, Path], spellings: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the labels that an image may have: that of its name, else of its name but for case, else of its case."""
    for wanted in (name, _case_of(name)):
        found = [wanted] if wanted in labels else spellings.get(_folded(wanted), [])
        if found:
            return found
    return []


def _claimed(one: Path, what: str, others: Sequence[Path]) -> ValueError:
    return ValueError(
        f"{' and '.join(map(str, others))} are both {what} of {one} by their names; a case must have one image and one "
        "label, so rename or remove the other"
    )


def _check_channels(images: Mapping[str, Path], label_of: Mapping[str, str]) -> None:
    """Refuse further channels of an image whose name counts as nnU-Net's, without its own channel."""
    cases = {_folded(_case_of(name)) for name, label in label_of.items() if _folded(name) != _folded(label)}
    for name, image in images.items():
        channel = _CHANNEL.search(name)
        if channel and channel[1] != "0000" and _folded(name[: channel.start()]) in cases:
            raise ValueError(f"{image} is a further channel of its case; models take images of one, so leave it out")


def _case_of(name: str) -> str:
    """Return the name of a case from that of nnU-Net's image of its first channel."""
    return name.removesuffix("_0000")


def _folded(name: str) -> str:
    """Return a name as file systems compare it that tell neither case nor ways to compose a letter."""
    return unicodedata.normalize("NFC", name).casefold()


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
        name = split_name(path.name)[0]
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name; a case must have one image and one label")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no image; they must be {INPUTS}")
    return found
