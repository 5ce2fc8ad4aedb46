"""Cases one after the other: what is left to do of a folder, and one of them done."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from . import _core
from .errors import printable, sentence
from .files import make_folder, naming, remove_leftovers
from .layouts import Job
from .manifest import FILE, Entry, Manifest, ModelFile, digest
from .model import Model
from .progress import Progress
from .quality import judge
from .seal import is_sealed
from .segmentation import Segmentation, check_memory, predict
from .statistics import label_statistics, rounded
from .volumes import check_output, read_volume

# How each kind of result is written. The mask comes last: where there is one, there is the rest
_WRITERS: Mapping[str, Callable[..., None]] = {
    "probability": Segmentation.save_probability,
    "uncertainty": Segmentation.save_uncertainty,
    "preview": Segmentation.save_preview,
    "mask": Segmentation.save,
}


@dataclass(frozen=True)
class Options:
    """What a result depends on beside its input and the model.

    Parameters
    ----------
    seed, samples : int
        As of `pynca.predict`.
    volume, spacing
        As of `pynca.volumes.read_volume`.
    """

    seed: int = 0
    samples: int = 1
    volume: int | Literal["all"] | None = None
    spacing: Sequence[float] | None = None

    def recorded(self) -> dict[str, object]:
        """Return what a manifest records: these, and the arithmetic, within which results agree to the bit."""
        isa = _core.isa()
        exact = isa != "baseline" and isa not in _core.half_isas()
        return {**asdict(self), "arithmetic": "fused" if exact else isa}


def run_case(
    job: Job,
    model: Model,
    options: Options,
    manifest: Manifest,
    *,
    threads: int | None = None,
    memory: int | None = None,
    progress: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> Entry:
    """Segment one case and write its results; whatever is wrong with it ends up in the entry.

    Parameters
    ----------
    job : Job
    model : Model
    options : Options
    manifest : Manifest
        Names the results; the entry is not added to it.
    threads, memory, progress, strict
        As of `pynca.predict`.
    overwrite : bool
        Replace what pynca did not write, or what was changed since; never an input. Default False.

    Returns
    -------
    Entry
        Done or failed. A case of a folder that failed leaves no result, not even an older one of pynca's.
    """
    start = time.perf_counter()
    sha256 = None
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        try:
            sha256 = digest(job.source)
            check_memory(
                job.source, model, which=options.volume, samples=options.samples, threads=threads, memory=memory
            )
            volume = read_volume(job.source, volume=options.volume, spacing=options.spacing)
            for kind, path in job.outputs.items():
                if kind != "preview":
                    check_output(path, volume, of_map=kind != "mask")
            result = predict(
                volume,
                model,
                seed=options.seed,
                samples=options.samples,
                threads=threads,
                memory=memory,
                progress=progress,
                strict=strict,
            )
            quality, reasons = judge(result, model)
            for kind, write in _WRITERS.items():
                if kind in job.outputs:
                    with naming(job.outputs[kind], *job.outputs[kind].parents):
                        make_folder(job.outputs[kind].parent)
                    write(result, job.outputs[kind], overwrite=overwrite)
            entry = Entry(
                job.name,
                sha256,
                "done",
                outputs={kind: manifest.relative(path) for kind, path in job.outputs.items()},
                mask_sha256=_digest_of(job, "mask"),
                preview_sha256=_digest_of(job, "preview"),
                quality=quality,
                reasons=reasons,
                nqm=rounded(result.nqm),
                labels=label_statistics(result),
            )
        except Exception as error:  # whatever one file brings about, the others can still be done
            if manifest.folder is not None:
                _remove(job, all_of_them=overwrite)
            text = sentence(error)
            written = any(printable(str(path)) in text for path in job.outputs.values())
            entry = Entry(job.name, sha256, "failed", sentence(error, None if written else job.source))
    # Other warnings are a library's, about its own affairs: of a computation, of a function that will go
    said = [sentence(str(doubt.message)) for doubt in doubts if issubclass(doubt.category, UserWarning)]
    return replace(entry, warnings=said, seconds=round(time.perf_counter() - start, 3))


def open_manifest(
    folder: Path | None,
    jobs: Sequence[Job],
    model: ModelFile,
    options: Options,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> Manifest:
    """Return the manifest to go on with, or a new one.

    Parameters
    ----------
    folder : path or None
        The folder of results; None for a single file.
    jobs : sequence of Job
    model, options
    overwrite : bool
        Begin anew, and replace what is there.
    skip_existing : bool
        Leave alone what is there.

    Raises
    ------
    ValueError
        What lies in the folder was made by another model or with other options, or by nobody knows what.
    OSError
        The manifest cannot be read.
    """
    new = Manifest(folder, model, options.recorded())
    if folder is None:
        return new
    remove_leftovers([folder / FILE, *(path for job in jobs for path in job.outputs.values())])
    if overwrite:
        return new
    if (folder / FILE).exists():
        try:
            manifest = Manifest.read(folder)
        except ValueError as error:
            raise ValueError(f"{error}; remove it, or give overwrite=True") from None
        differing = manifest.differences(new)
        if differing:
            what = " and ".join(differing)
            raise ValueError(f"{folder} was made with {what}; choose another OUT, or give overwrite=True to begin anew")
    else:
        manifest = new
    if not skip_existing:
        for job in jobs:
            _check_unknown(job, manifest)
    return manifest


def unfinished(
    jobs: Sequence[Job], manifest: Manifest, *, skip_existing: bool = False, progress: bool = False
) -> list[Job]:
    """Return the jobs that are left to do, and enter the others into the manifest.

    A case that was done is kept if its input has not changed and its results are there. A mask that was
    changed by hand is kept whatever happened to its input. Cases whose inputs are gone stay in the
    manifest as long as their results are there.

    Warns
    -----
    UserWarning
        An input or a mask has changed since it was segmented.
    """
    names = {job.name for job in jobs}
    for entry in manifest.entries():
        if entry.input not in names and not (entry.outputs and _is_there(entry, manifest)):
            manifest.remove(entry.input)
    left = []
    with Progress(len(jobs), "looking at what is done", enabled=progress and bool(manifest.cases)) as bar:
        for job in jobs:
            if not _is_kept(job, manifest, skip_existing=skip_existing):
                manifest.remove(job.name)
                left.append(job)
            bar.advance()
    manifest.pending = {job.name for job in left}
    return left


def _is_kept(job: Job, manifest: Manifest, *, skip_existing: bool) -> bool:
    """Tell whether a job's results stay as they are; if they are another's, the manifest says so."""
    earlier = manifest.cases.get(job.name)
    mask = job.outputs["mask"]
    there = mask.exists()
    sha256 = _digest(job.source) if earlier is not None or (skip_existing and there) else None
    if earlier is not None and earlier.status == "done":
        outputs = {kind: manifest.relative(path) for kind, path in job.outputs.items()}
        if there and outputs["mask"] == earlier.outputs.get("mask") and _digest(mask) != earlier.mask_sha256:
            warnings.warn(f"{mask} was changed since it was made; it is left alone and not counted", stacklevel=3)
            skip_existing = True
        elif sha256 is not None and sha256 == earlier.sha256:
            complete = outputs.items() <= earlier.outputs.items() and _is_there(earlier, manifest)
            return complete or (skip_existing and there)
        elif sha256 is not None and there and not skip_existing:
            warnings.warn(f"{job.source} has changed since it was segmented; it is segmented anew", stacklevel=3)
    if there and (skip_existing or (earlier is not None and earlier.status == "skipped")):
        outputs = {kind: manifest.relative(path) for kind, path in job.outputs.items() if path.exists()}
        manifest.put(Entry(job.name, sha256, "skipped", outputs=outputs))
        return True
    return False


def _check_unknown(job: Job, manifest: Manifest) -> None:
    """Refuse to replace what no earlier run of this kind has made: it may be somebody's work."""
    earlier = manifest.cases.get(job.name)
    if job.name in manifest.pending or (earlier is not None and earlier.status == "skipped"):
        return
    made = set() if earlier is None else set(earlier.outputs.values())
    for path in job.outputs.values():
        if path.exists() and manifest.relative(path) not in made:
            raise ValueError(
                f"{path} is there already and {manifest.folder}/{FILE} does not say what made it; "
                "skip_existing=True leaves it alone, overwrite=True replaces it"
            )


def _is_there(entry: Entry, manifest: Manifest) -> bool:
    assert manifest.folder is not None
    return all((manifest.folder / path).exists() for path in entry.outputs.values())


def _digest_of(job: Job, kind: str) -> str | None:
    """Return the digest of a result; None where there is none, or it went into a pipe."""
    return digest(job.outputs[kind]) if kind in job.outputs and job.outputs[kind].is_file() else None


def _digest(path: Path) -> str | None:
    try:
        return digest(path)
    except OSError:  # whoever reads it next will say so
        return None


def _remove(job: Job, *, all_of_them: bool) -> None:
    for path in map(Path, map(os.path.realpath, job.outputs.values())):
        with contextlib.suppress(OSError):
            if path.is_file() and (all_of_them or is_sealed(path)):
                path.unlink()
