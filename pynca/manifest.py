"""The manifest of a folder of results: what they were made from, by which model, and how it went."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, get_type_hints

from . import jsontext
from .errors import brief, quoted
from .files import atomic_path, open_input
from .statistics import LabelStatistics

FILE = "manifest.json"
SCHEMA = 1
Status = Literal["done", "failed", "skipped"]

# Up to so many cases the manifest is written after each; beyond, not more than once in so many seconds, since
# writing all cases after each takes time that grows with their square
_CASES, _SECONDS = 1000, 1.0

_LARGEST = 128 * 2**20  # bytes of a manifest that is read: that of more than a hundred thousand cases
_AGES = 1e10  # seconds, more than any run takes


@dataclass(frozen=True)
class Entry:
    """One case of a manifest.

    Attributes
    ----------
    input : str
        Path relative to the folder of inputs, with forward slashes; a single file's name.
    sha256 : str or None
        `digest` of the input; None where it could not be read.
    status : {"done", "failed", "skipped"}
        Skipped is a case whose mask is not of this manifest's making, or was changed since.
    error : str or None
        Why it failed, as one sentence.
    warnings : list of str
    outputs : mapping of str to str
        Kind ("mask", "probability", "uncertainty", "preview") to path, relative to the folder of results.
    mask_sha256 : str or None
        `digest` of the mask as it was written, by which it is told from one that was changed by hand.
    preview_sha256 : str or None
        `digest` of the preview, by which `pynca.report` knows one that lies elsewhere.
    quality : {"ok", "review"} or None
        None where nothing judged it.
    reasons : list of str
        Why it should be reviewed.
    nqm : float or None
        As of `pynca.Segmentation`.
    labels : list of LabelStatistics
        Of a film, those of every frame.
    seconds : float
    """

    input: str
    sha256: str | None
    status: Status
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    outputs: Mapping[str, str] = field(default_factory=dict)
    mask_sha256: str | None = None
    preview_sha256: str | None = None
    quality: str | None = None
    reasons: list[str] = field(default_factory=list)
    nqm: float | None = None
    labels: list[LabelStatistics] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelFile:
    """Which model made the results: its name, the name of its file, and what identifies its content."""

    name: str
    file: str
    sha256: str


class Manifest:
    """What is known of a folder of results, kept up to date in its ``manifest.json``.

    Used in a ``with`` statement, it is written before the block and after it, however the block ends, and
    in between after each case, of thousands once a second. A reader finds an older or a newer one, never
    half of one.

    Parameters
    ----------
    folder : path or None
        The folder of results; None keeps nothing, as for a single file.
    model : ModelFile
    options : mapping of str to value
        Everything but the model that the results depend on.
    """

    def __init__(self, folder: Path | None, model: ModelFile, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.version = _version()
        self.model = model
        self.options = dict(options)
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.cases: dict[str, Entry] = {}
        self.pending: set[str] = set()  # cases of this run that are still to be done
        self._before = 0.0  # seconds of earlier runs
        self._begin = time.monotonic()
        self._lines: dict[str, str] = {}
        self._saved = 0.0

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises
        ------
        ValueError
            It is damaged or of another kind.
        OSError
            It is not there or cannot be read.
        """
        saved = read_manifest(folder / FILE)
        manifest = cls(folder, ModelFile(**saved["model"]), saved["options"])
        manifest.version, manifest.started = saved["pynca"], saved["started"]
        manifest._before = saved["seconds"]
        manifest.pending = set(saved["pending"])
        for entry in saved["cases"]:
            manifest.put(entry)
        return manifest

    def __enter__(self) -> Manifest:
        self._save()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._save()

    def put(self, entry: Entry) -> None:
        """Enter a case, in place of an earlier entry."""
        self.cases[entry.input] = entry
        self._lines[entry.input] = json.dumps(asdict(entry))

    def add(self, entry: Entry) -> None:
        """Enter a case that was worked on, and write the manifest."""
        self.put(entry)
        self.pending.discard(entry.input)
        if len(self.cases) <= _CASES or time.monotonic() - self._saved > _SECONDS:
            self._save()

    def remove(self, name: str) -> None:
        """Forget a case."""
        self.cases.pop(name, None)
        self._lines.pop(name, None)

    def entries(self) -> list[Entry]:
        """Return the cases, sorted by input."""
        return [self.cases[name] for name in sorted(self.cases)]

    def summary(self) -> dict[str, int]:
        """Count the cases that were done, failed, were skipped, and should be reviewed."""
        count = {status: sum(entry.status == status for entry in self.cases.values()) for status in get_args(Status)}
        return {**count, "review": sum(entry.quality == "review" for entry in self.cases.values())}

    def differences(self, other: Manifest) -> list[str]:
        """Say in which ways these results were made otherwise than another manifest's."""
        found = []
        if self.model.sha256 != other.model.sha256:
            mine, theirs = (f"{model.name} ({model.sha256[:12]})" for model in (self.model, other.model))
            found.append(f"model {mine}, not {theirs}")
        if self.version != other.version:
            found.append(f"pynca {self.version}, not {other.version}")
        for name in sorted({*self.options, *other.options}):
            mine, theirs = (str(options.get(name, "unknown")) for options in (self.options, other.options))
            if mine != theirs:
                found.append(f"{name} {mine}, not {theirs}")
        return found

    def relative(self, path: Path) -> str:
        """Return a path as the manifest names it: relative to the folder of results, with forward slashes."""
        if self.folder is None:
            return path.name
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive
            return path.absolute().as_posix()

    def _save(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / FILE, overwrite=True, seal=False) as beside:
            beside.write_text(self._text(), encoding="utf-8")
        self._saved = time.monotonic()

    def _text(self) -> str:
        """Return the manifest with one case a line; lines are kept, so that a thousandth case costs no more."""
        head = {
            "schema": SCHEMA,
            "pynca": self.version,
            "model": asdict(self.model),
            "options": self.options,
            "started": self.started,
            "seconds": round(self._before + time.monotonic() - self._begin, 3),
            "pending": sorted(self.pending),
        }
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        cases = ",\n  ".join(self._lines[name] for name in sorted(self._lines))
        parts += [f'"cases": [\n  {cases}\n]' if cases else '"cases": []', f'"summary": {json.dumps(self.summary())}']
        return "{" + ",\n".join(parts) + "}\n"


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of a folder: that of the names and SHA-256s of its files, sorted by name.

    Hidden files and folders in a folder do not count.

    Raises
    ------
    OSError
        Something cannot be read.
    """
    path = Path(path)
    hasher = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
            hasher.update(os.fsencode(file.name) + b"\0" + digest(file).encode())
    else:
        with open_input(path) as stream:
            while block := stream.read(2**20):
                hasher.update(block)
    return hasher.hexdigest()


def model_file(path: str | os.PathLike[str], name: str = "") -> ModelFile:
    """Identify a model file, or a bundled model by its name; ``name`` is what its card calls it."""
    from . import zoo

    file = zoo.find(str(path)) or Path(path)
    return ModelFile(name or file.stem, file.name, digest(file))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, whoever wrote it, and check all that it says.

    Returns
    -------
    dict
        "pynca", "started" : str; "model" : dict of str, fields of `ModelFile`; "options" : dict; "seconds" : float;
        "pending" : list of str; "cases" : list of Entry.

    Raises
    ------
    ValueError
        It is damaged or of another kind; the sentence names it.
    OSError
        It is not there or cannot be read.
    """
    try:
        content = jsontext.read(path, _LARGEST, surrogates=True)  # names of files that are no text
        if not isinstance(content, dict):
            raise ValueError(f"it is {quoted(content)}; it must be a JSON object")
        schema = content.get("schema")
        if schema != SCHEMA or isinstance(schema, bool):
            raise ValueError(f"it has schema {quoted(schema)}; this pynca reads {SCHEMA}")
        _check_frames(content)
        head = {"pending": [], **{name: value for name, value in content.items() if name in get_type_hints(_Head)}}
        saved = asdict(jsontext.build(_Head, head))
        _check_time(saved["started"], saved["seconds"])
        _check_options(saved["options"])
        saved["cases"] = _entries(content.get("cases"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not pynca's: {brief(error)}") from None
    return saved


@dataclass(frozen=True)
class _Head:
    pynca: str
    model: ModelFile
    options: Mapping[str, Any]
    started: str
    seconds: float
    pending: list[str]


def _check_time(started: str, seconds: float) -> None:
    try:
        datetime.fromisoformat(started)
    except ValueError:
        raise ValueError(f"started is {quoted(started)}; it must be a date and a time") from None
    if not 0 <= seconds < _AGES:
        raise ValueError(f"seconds is {seconds!r}; it must be a number of seconds")


def _check_frames(content: Mapping[str, Any]) -> None:
    """Refuse films whose frames were added up, as they were before a label said which frame it is of."""
    options, cases = content.get("options"), content.get("cases")
    if not isinstance(options, dict) or options.get("volume") != "all" or not isinstance(cases, list):
        return
    lists = [case.get("labels") for case in cases if isinstance(case, dict)]
    labels = [label for found in lists if isinstance(found, list) for label in found]
    if any(isinstance(label, dict) and "frame" not in label for label in labels):
        raise ValueError("an older pynca wrote it, which added the volumes of a film's frames up")


def _check_options(options: Mapping[str, Any]) -> None:
    """Check the one option that is used again, as which volume of a file to draw."""
    volume = options.get("volume")
    if volume not in (None, "all") and (type(volume) is not int or volume < 0):
        raise ValueError(f"options: volume is {quoted(volume)}; it must be a whole number, 'all' or null")


def _entries(cases: object) -> list[Entry]:
    if not isinstance(cases, list):
        raise ValueError(f"cases is {quoted(cases)}; it must be a list")
    found: dict[str, Entry] = {}
    for n, case in enumerate(cases):
        entry = jsontext.build(Entry, case, f"case {n}")
        if entry.input in found:
            raise ValueError(f"it has the case {quoted(entry.input)} twice")
        if entry.quality not in (None, "ok", "review"):
            raise ValueError(f"case {n}: quality is {quoted(entry.quality)}; it must be 'ok', 'review' or null")
        if not 0 <= entry.seconds < _AGES or any(label.voxels < 0 for label in entry.labels):
            raise ValueError(f"case {n}: seconds and voxels must not be below 0")
        if any((label.frame or 0) < 0 for label in entry.labels):
            raise ValueError(f"case {n}: frames are counted from 0")
        if any(len(axis) != 2 for label in entry.labels for axis in label.bounding_box or ()):
            raise ValueError(f"case {n}: a bounding box must be two numbers for each axis")
        found[entry.input] = entry
    return list(found.values())


def _version() -> str:
    from . import _core

    return str(_core.build_info()["version"])
