"""`pynca segment`: a file, or a folder of them."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    FAILED,
    FORCE,
    MODEL,
    THREADS,
    WrongUse,
    add_overwrite,
    amount,
    check_model,
    check_outputs,
    complain,
    fail,
    plain,
    print_warning,
    show,
    spoken,
    volume_number,
    whole,
)

if TYPE_CHECKING:
    from ..layouts import Job
    from ..manifest import Entry, Manifest
    from ..statistics import LabelStatistics
    from .common import Commands


FORMATS = ("nii.gz", "nii", "dcm", "png", "tif", "npy")


_EPILOG = f"""
A folder is worked through to the end even if a file fails; the exit code is then 1. The same command goes on where it
was interrupted: what is done is kept unless its input has changed.

files written:
  OUT                the mask; where IN is a folder, a folder that mirrors it
  OUT/manifest.json  where IN is a folder: what was made from what, and how
  FILE, PNG, CSV     what --save-probability, --save-uncertainty, --preview and --stats name

examples:
  pynca segment scan.nii.gz mask.nii.gz
  pynca segment scans/ masks/ -m my.safetensors --samples 10 --save-probability probabilities/
  pynca segment series/ mask.dcm               a DICOM series, to DICOM SEG
  pynca segment bids/ derivatives/pynca/ --stats volumes.csv --preview previews/
  pynca segment scans/ masks/ --memory 512M --threads 2

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "segment",
        help="segment an image, or a folder of them",
        description="Segment IN, an image or a folder of them, and write masks with its geometry. Images are NIfTI, "
        "DICOM series (a folder, or one of its files), PNG, TIFF, JPEG and .npy. OUT's ending says what is written: "
        ".nii, .nii.gz, .dcm (DICOM SEG), .png, .tif or .npy. Where IN is a folder, OUT mirrors it and those in it; a "
        "BIDS dataset becomes a BIDS derivative, and nnU-Net's _0000 is left out.",
        epilog=_EPILOG,
    )
    command.add_argument("input", metavar="IN", type=Path, help="an image, or a folder of them")
    command.add_argument("output", metavar="OUT", type=Path, help="the mask to write; a folder where IN is one")
    work = command.add_argument_group("segmentation")
    work.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=MODEL)
    work.add_argument("--force", action="store_true", help=FORCE)
    work.add_argument(
        "--samples",
        type=whole,
        default=1,
        metavar="N",
        help="average N runs and print how much they agree, NQM (default 1)",
    )
    work.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    work.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    work.add_argument(
        "--memory",
        type=amount,
        metavar="SIZE",
        help="stay below this much memory, such as 512M or 1.5G, with the same result; a case that cannot is refused "
        "(default: what the machine has left)",
    )
    images = command.add_argument_group("input")
    images.add_argument(
        "--volume", type=volume_number, metavar="N", help="which volume of a 4D NIfTI file, counted from 0, or all"
    )
    images.add_argument(
        "--spacing",
        type=_spacing,
        metavar="MM",
        help="size of a picture's pixels in mm, as 1.4, or 1.4,1.2 for rows, columns (default: the model's)",
    )
    images.add_argument(
        "--bids-suffix", default="T1w", metavar="S", help="which images of a BIDS dataset to take (default T1w)"
    )
    results = command.add_argument_group("output")
    for kind, what in (("probability", "the probability"), ("uncertainty", "how far the runs of --samples differ")):
        results.add_argument(
            f"--save-{kind}", type=Path, metavar="FILE", help=f"also write {what}; a folder where IN is one"
        )
    results.add_argument(
        "--preview", type=Path, metavar="PNG", help="also draw slices with the mask's outline; a folder where IN is one"
    )
    results.add_argument(
        "--stats", type=Path, metavar="CSV", help="also write volume, extent, mean probability and NQM of each label"
    )
    results.add_argument(
        "--format", choices=FORMATS, metavar="F", help=f"of the masks of a folder: {', '.join(FORMATS)} (default: IN's)"
    )
    there = results.add_mutually_exclusive_group()
    there.add_argument("--skip-existing", action="store_true", help="leave inputs alone whose mask exists")
    add_overwrite(there, "begin anew in a folder, and replace what pynca did not write")
    results.add_argument("--json", action="store_true", help="print one JSON object a file instead of text")
    results.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import _core
    from ..batch import Options, open_manifest, run_case, unfinished
    from ..config import thread_count
    from ..files import locked
    from ..layouts import describe_derivative, is_bids
    from ..manifest import model_file
    from ..model import load_model
    from ..progress import Progress
    from ..rule import whole_number
    from ..statistics import write_statistics
    from ..volumes import files_of

    try:
        threads = thread_count(arguments.threads)
        _core.isa()
        samples = whole_number(arguments.samples, "--samples", 1, _core.MAX_SAMPLES)
        seed = whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        options = Options(seed, samples, arguments.volume, arguments.spacing)
        if arguments.save_uncertainty is not None and samples == 1:
            raise WrongUse("--save-uncertainty needs --samples of 2 or more; a single run has none")
        model_path = check_model(arguments.model)
        identity = model_file(arguments.model)
        jobs, folder = _jobs(arguments, identity.name)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    model = load_model(arguments.model)
    inputs = [*(file for job in jobs for file in files_of(job.source)), model_path]
    guard = partial(check_outputs, inputs=inputs, parents=True)
    guard([arguments.stats], overwrite=arguments.overwrite)
    quiet = arguments.quiet or arguments.json
    with nullcontext() if folder is None else locked(folder, partial(_say_waiting, folder)):
        try:
            manifest = open_manifest(
                folder, jobs, identity, options, overwrite=arguments.overwrite, skip_existing=arguments.skip_existing
            )
        except ValueError as error:
            raise WrongUse(str(error)) from None
        left = unfinished(jobs, manifest, skip_existing=arguments.skip_existing, progress=not quiet)
        guard((path for job in jobs for path in job.outputs.values()), overwrite=True)  # what is kept may be anybody's
        guard((path for job in left for path in job.outputs.values()), overwrite=arguments.overwrite)
        if folder is not None and is_bids(arguments.input):
            describe_derivative(folder, identity.name, model.labels)

        names = {job.name for job in left}
        alone = len(jobs) == 1 and not quiet  # then the bar counts slices, else files
        how = {"threads": threads, "memory": arguments.memory, "progress": alone, "strict": not arguments.force}
        with manifest, Progress(len(left), enabled=not quiet and not alone) as bar:
            for job in jobs:
                if job.name in names:
                    bar.advance(0, label=job.name)
                    entry = run_case(job, model, options, manifest, overwrite=arguments.overwrite, **how)
                    manifest.add(_said(entry))
                    bar.erase()
                entry = manifest.cases[job.name]
                _print_case(job, entry, new=job.name in names, as_json=arguments.json, quiet=quiet)
                bar.advance(job.name in names)
        if arguments.stats is not None:
            arguments.stats.parent.mkdir(parents=True, exist_ok=True)
            rows = [(entry.input, entry.labels) for entry in manifest.entries()]
            write_statistics(arguments.stats, rows, overwrite=arguments.overwrite, inputs=inputs)
    failed = sum(manifest.cases[job.name].status == "failed" for job in jobs)
    if folder is not None and not quiet:
        show(_summary(folder, manifest, kept=len(jobs) - len(left)))
    if failed and len(jobs) > 1:
        complain(f"pynca: {failed} of {len(jobs)} files failed")
    return FAILED if failed else DONE


def _say_waiting(folder: Path) -> None:
    complain(f"pynca: another run writes to {folder}; this one waits until that has ended")


def _jobs(arguments: argparse.Namespace, title: str) -> tuple[list[Job], Path | None]:
    """Find the inputs and name their outputs, and refuse what cannot be meant."""
    from ..layouts import find_jobs
    from ..manifest import FILE
    from ..tables import check_table

    wanted = {
        "mask": arguments.output,
        "probability": arguments.save_probability,
        "uncertainty": arguments.save_uncertainty,
        "preview": arguments.preview,
    }
    places = {kind: place for kind, place in wanted.items() if place is not None}
    jobs, folder = find_jobs(
        arguments.input, places, title=title, suffix=arguments.bids_suffix, ending=arguments.format
    )
    stats = arguments.stats
    if stats is not None:
        files = {os.path.realpath(path) for job in jobs for path in (job.source, *job.outputs.values())}
        if os.path.realpath(stats) in {*files, os.path.realpath(arguments.output / FILE)}:
            raise WrongUse(f"{stats} would be overwritten; --stats needs a file of its own")
        if stats.is_dir():
            raise WrongUse(f"{stats} is a folder; --stats is the name of a file, such as {stats / 'volumes.csv'}")
        check_table(stats)
    return jobs, folder


def _spacing(text: str) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
        if not all(0 < size < float("inf") for size in sizes):
            raise ValueError
        return sizes
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in mm, nor sizes with commas between") from None


def _said(entry: Entry) -> Entry:
    """Return what became of a case in the words of the command line, for the manifest as for who reads along."""
    error = None if entry.error is None else spoken(entry.error)
    return replace(entry, error=error, warnings=[spoken(text) for text in entry.warnings])


def _print_case(job: Job, entry: Entry, *, new: bool, as_json: bool, quiet: bool) -> None:
    """Say what became of a case; of one that was done before only where a program reads it."""
    if new:
        for text in entry.warnings:
            print_warning(text, UserWarning, "", 0)
    if new and entry.error is not None:
        fail(entry.error, FAILED)
    if as_json:
        show(json.dumps(_record(job, entry)))
    elif not quiet and entry.status == "skipped":
        show(f"{job.outputs['mask']}: skipped, since it is there already")
    elif not quiet and new and entry.status == "done":
        show(_line(job, entry))


def _record(job: Job, entry: Entry) -> dict[str, object]:
    """Return an entry of the manifest with its paths as the command was given them, and its first label for itself."""
    from ..statistics import cycles

    outputs = {kind: str(job.outputs[kind]) for kind in entry.outputs if kind in job.outputs}
    record = {**asdict(entry), "input": str(job.source), "output": outputs.get("mask"), "outputs": outputs}
    if entry.labels:
        first = entry.labels[0]
        record |= {"label": first.name, "voxels": first.voxels, "volume_ml": first.volume_ml}
    for cycle in cycles(entry.labels)[:1]:  # a number for each frame: their sum means nothing
        record |= {
            "voxels": [frame.voxels for frame in cycle.frames],
            "volume_ml": [frame.volume_ml for frame in cycle.frames],
            "ejection_fraction": cycle.ejection_fraction,
        }
    return record


def _line(job: Job, entry: Entry) -> str:
    from ..curve import said
    from ..statistics import cycles

    line = f"{job.outputs['mask']}: "
    films = cycles(entry.labels)
    line += plain(said(films[0])) if films else _found(entry.labels[0])
    if entry.nqm is not None:
        line += f", {'largest NQM' if films else 'NQM'} {entry.nqm:.4f}"
    if entry.quality is not None:
        line += ", review: " + "; ".join(entry.reasons) if entry.reasons else ", ok"
    return f"{line}, {entry.seconds:.2f} s"


def _found(label: LabelStatistics) -> str:
    size = f"{label.voxels} pixels" if label.volume_ml is None else f"{label.volume_ml:.3f} ml ({label.voxels} voxels)"
    return f"{plain(label.name)} {size}" + ", nothing found" * (label.voxels == 0)


def _summary(folder: Path, manifest: Manifest, kept: int) -> str:
    count = manifest.summary()
    before = f" ({kept} before)" if kept else ""
    return (
        f"{folder}: {count['done']} done{before}, {count['failed']} failed, {count['skipped']} skipped, "
        f"{count['review']} to review"
    )
