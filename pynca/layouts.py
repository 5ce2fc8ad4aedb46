"""Which inputs a folder holds, and what their results are called: as it is laid out, by BIDS or by nnU-Net."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .files import atomic_path, check_regular, remove_leftovers
from .volumes import check_output, files_of, inputs_in, is_input, output_name, split_name

_CHANNEL = re.compile(r"_(\d{4})$")
_NNUNET = ("imagesTr", "imagesTs", "imagesVal")
_BIDS_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat")
# What BIDS calls the results. An uncertainty has no name there, so the description tells it from the probability
_BIDS_NAMES = {
    "mask": "desc-{}_dseg",
    "probability": "desc-{}_probseg",
    "uncertainty": "desc-{}Uncertainty_probseg",
    "preview": "desc-{}_dseg",
}


@dataclass(frozen=True)
class Job:
    """An input, and the files to make of it.

    Parameters
    ----------
    name : str
        What the manifest calls it: the path relative to the folder of inputs, with forward slashes.
    source : path
    outputs : mapping of str to path
        From kind ("mask", "probability", ...) to file; always a mask.
    """

    name: str
    source: Path
    outputs: Mapping[str, Path]


def is_bids(folder: Path) -> bool:
    """Tell whether a folder is a BIDS dataset: it says so, or has subjects with anatomical images."""
    return (folder / "dataset_description.json").is_file() or any(any(folder.glob(p)) for p in _BIDS_FOLDERS)


def find_jobs(
    source: Path, places: Mapping[str, Path], *, title: str, suffix: str = "T1w", ending: str | None = None
) -> tuple[list[Job], Path | None]:
    """Find the inputs and name their results.

    Parameters
    ----------
    source : path
        A file or a folder. Folders in it are walked through, links too; hidden files and folders are
        not looked at. Of a BIDS dataset only the anatomical images with one suffix are taken.
    places : mapping of str to path
        From kind ("mask", "probability", ...) to where its results go. A folder that directly holds a DICOM
        series is that series where the mask is named like a file. For another folder: to the folder that
        will mirror it; the results of a BIDS dataset get the names of BIDS derivatives, and in a folder
        that is called as nnU-Net calls those of images, ``_0000`` behind a name is left out. For a
        file: to a file, or to an existing folder for a file of the input's name.
    title : str
        What BIDS names call the results: the model's name.
    suffix : str
        Of the images to take from a BIDS dataset. Default ``"T1w"``.
    ending : str, optional
        Of the masks of a folder, such as ``"dcm"``, and of maps where it can hold them. Default: as
        `pynca.volumes.output_name` gives it.

    Returns
    -------
    jobs : list of Job
        Sorted by name. A folder that cannot be read is a job, too, which will fail.
    folder : path or None
        The folder of the masks; None where there is one mask with a name of its own.

    Raises
    ------
    ValueError
        There is no input, two would have one result, one has several channels, or a result cannot be
        written or would lie among the inputs.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist; IN is an image, or a folder of them")
    check_regular(source)
    if not source.is_dir():
        named = {
            kind: place / _result_name(source.name, kind, ending) if place.is_dir() else place
            for kind, place in places.items()
        }
        jobs, folder = [_file_job(source, named)], None
    elif _is_file_name(places["mask"]) and is_input(source):
        # A DICOM series, whatever else lies beside its slices: a thumbnail, an earlier mask
        jobs, folder = [_file_job(source, places)], None
    else:
        jobs, folder = _folder_jobs(source, places, title, suffix, ending), places["mask"]
    _check(jobs)
    return jobs, folder


def describe_derivative(folder: Path, title: str, labels: Mapping[int, str]) -> None:
    """Write what a BIDS derivative says of itself: dataset_description.json, unless there is one, and its labels."""
    from . import __version__

    description = {
        "Name": f"Segmentations of {title}",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "pynca", "Version": __version__}],
    }
    rows = "".join(f"{value}\t{' '.join(name.split())}\n" for value, name in labels.items())
    files = {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        f"desc-{_alphanumeric(title)}_dseg.tsv": f"index\tname\n{rows}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / name for name in files)
    for name, text in files.items():
        if not (folder / name).exists():
            with atomic_path(folder / name) as beside:
                beside.write_text(text, encoding="utf-8")


def _file_job(source: Path, outputs: Mapping[str, Path]) -> Job:
    for kind, path in outputs.items():
        if kind == "preview" and path.suffix.lower() != ".png":
            raise ValueError(f"{path} cannot be written: a preview's name must end in .png")
        if kind != "preview":
            check_output(path, None, of_map=kind != "mask")
    return Job(source.name, source, outputs)


def _folder_jobs(source: Path, places: Mapping[str, Path], title: str, suffix: str, ending: str | None) -> list[Job]:
    bids = is_bids(source)
    for folder in places.values():
        _check_place(folder, source, bids)
    if (source / "dataset.json").is_file() and (source / "imagesTr").is_dir():
        raise ValueError(f"{source} is a whole dataset; give a folder of its images, such as {source / 'imagesTs'}")
    inputs = _bids_inputs(source, suffix) if bids else list(_walk(source))
    if not inputs:
        raise ValueError(f"{source} holds no image that pynca reads")
    holding = {os.path.realpath(path.parent) for path in inputs if not path.is_dir()}
    for folder in places.values():
        if os.path.realpath(folder) in holding:  # through a link, else it would lie in the source
            raise ValueError(f"{folder} holds inputs, where masks would be taken for inputs; choose another")
    jobs = []
    for path in inputs:
        # A series may be the folder itself, and that be called "."
        name = PurePosixPath((path.relative_to(source) if path != source else Path(path.resolve().name)).as_posix())
        plain = name.name
        if not path.is_dir() and os.path.basename(os.path.realpath(path.parent)) in _NNUNET:
            plain = _without_channel(path)
        outputs = {}
        for kind, place in places.items():
            result = _result_name(plain, kind, ending)
            if bids and not path.is_dir():
                result = _bids_name(result, kind, title)
            outputs[kind] = place / name.with_name(result)
        jobs.append(Job(str(name), path, outputs))
    return sorted(jobs, key=lambda job: job.name)


# --- what there is ------------------------------------------------------------------------------------


def _walk(top: Path) -> Iterator[Path]:
    """Find the inputs below a folder; one that cannot be read counts as an input, so that somebody hears of it.

    Folders may lie deeper than Python's calls may be nested.
    """
    waiting: list[tuple[Path, _Above]] = [(top, None)]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = folder.stat()
            images, inside = inputs_in(folder), sorted(folder.iterdir(), reverse=True)
        except OSError:
            yield folder
            continue
        here = (status.st_dev, status.st_ino)
        if _lies_in(here, above):  # a link to a folder that it lies in
            continue
        # A link to nothing is a job that will fail; a pipe or a device would never end; a series says so itself
        yield from (path for path in images if path == folder or path.is_file() or not path.exists())
        waiting += [(path, (here, above)) for path in inside if not path.name.startswith(".") and _is_folder(path)]


_Above = tuple[tuple[int, int], Any] | None  # a folder's identity, and what is above it


def _lies_in(here: tuple[int, int], above: _Above) -> bool:
    while above is not None:
        if above[0] == here:
            return True
        above = above[1]
    return False


def _is_folder(path: Path) -> bool:
    """Tell whether a path is a folder, or cannot be looked at, as one too long cannot."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _bids_inputs(folder: Path, suffix: str) -> list[Path]:
    subjects = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    inside = [path for subject in subjects for path in _walk(subject)]
    anatomical = {path: _entities(path.name)[-1] for path in inside if path.parent.name == "anat"}
    taken = [path for path in inside if path.is_dir() or anatomical.get(path) == suffix]
    if anatomical and not taken:
        others = ", ".join(sorted(set(anatomical.values())))
        raise ValueError(
            f"{folder} has no anatomical image with the suffix {suffix}, but {others}; choose with suffix="
        )
    return taken


# --- what the results are called ----------------------------------------------------------------------


def _entities(name: str) -> list[str]:
    return split_name(name)[0].split("_")


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "pynca"


def _result_name(name: str, kind: str, ending: str | None) -> str:
    """Return what the result of an input of some name is called in a folder."""
    name = output_name(name)
    if kind == "preview":
        return f"{split_name(name)[0]}.png"
    if ending is None:
        return name
    return f"{split_name(name)[0]}.{'nii.gz' if ending == 'dcm' and kind != 'mask' else ending}"


def _bids_name(name: str, kind: str, title: str) -> str:
    """Return the name of a derivative: the source's entities but its description, and what it is."""
    kept = [part for part in _entities(name)[:-1] if not part.startswith("desc-")]
    return "_".join([*kept, _BIDS_NAMES[kind].format(_alphanumeric(title))]) + split_name(name)[1]


def _without_channel(path: Path) -> str:
    """Return the name of an nnU-Net image without its channel, and refuse an image of several."""
    stem, ending = split_name(path.name)
    channel = _CHANNEL.search(stem)
    if channel is None:
        return path.name
    case = stem[: channel.start()]
    if channel[1] != "0000" and path.with_name(f"{case}_0000{ending}").exists():
        raise ValueError(f"{path} is a further channel of its case; models take images of one, so leave the others out")
    return case + ending if channel[1] == "0000" else path.name


# --- what is refused before work starts ---------------------------------------------------------------


def _check_place(folder: Path, source: Path, bids: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; for a folder of volumes it must be a folder")
    if _is_file_name(folder):
        raise ValueError(f"{folder} is named like a file; for a folder of volumes it must be a folder")
    inputs, results = Path(os.path.realpath(source)), Path(os.path.realpath(folder))
    if inputs == results:
        raise ValueError(f"{folder} is the folder of the inputs; masks would overwrite them, choose another")
    # BIDS has a place for derivatives in the dataset, and no input is taken from there
    if inputs in results.parents and not (bids and results.relative_to(inputs).parts[0] == "derivatives"):
        raise ValueError(f"{folder} lies in the folder of the inputs, where masks would be taken for inputs")


def _is_file_name(path: Path) -> bool:
    try:
        check_output(path, None)
    except ValueError:
        return False
    return not path.is_dir()


def _check(jobs: list[Job]) -> None:
    """Refuse what would overwrite an input, or be written twice."""
    inputs = {os.path.realpath(file) for job in jobs for file in (job.source, *files_of(job.source))}
    files: set[str] = set()
    sources: dict[tuple[str, str], Path] = {}
    for job in jobs:
        for kind, path in job.outputs.items():
            place = os.path.realpath(path)
            if place in inputs:
                raise ValueError(f"{path} would be overwritten; choose another OUT")
            # To most programs a.nii and a.nii.gz are one name
            other = sources.setdefault((kind, split_name(place)[0]), job.source)
            if other != job.source:
                raise ValueError(
                    f"{other} and {job.source} would both become {split_name(str(path))[0]}; rename one of them"
                )
            if place in files:
                raise ValueError(f"{path} is named twice; {' and '.join(job.outputs)} need a file each")
            files.add(place)
