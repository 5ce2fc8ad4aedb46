"""What pynca reads of foreign bytes, and what may come of it: a result, or one sentence that names the file."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pynca
from pynca.cases import only, read_dataset
from pynca.checkpoints.archive import read_state_dict
from pynca.manifest import FILE, Manifest
from pynca.report import write_report
from pynca.training.state import STATE, load_state, saved_recipe
from pynca.volumes import read_label, read_outline, read_volume

from . import mutate

HERE = Path(__file__).parent
SEEDS, FAILED = HERE / "seeds", HERE / "failed"
_LONGEST = 1000  # characters of a sentence, beside the path in it
# Errors of Python's own that are ValueErrors or OSErrors are told apart by their class: they are nobody's sentence
_SENTENCES = (ValueError, OSError, FileNotFoundError, IsADirectoryError, PermissionError)


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Parameters
    ----------
    name : str
        Its folder of seeds; what lies in ``beside`` there is put beside the file that is read.
    mutate : callable
        Changes a good file.
    reads : sequence of callable
        Each takes the file.
    called : str, optional
        The name that the file must have; else that of its seed.
    """

    name: str
    mutate: mutate.Mutation
    reads: tuple[Callable[[Path], object], ...]
    called: str | None = None

    def seeds(self) -> list[Path]:
        return sorted(path for path in (SEEDS / self.name).iterdir() if path.is_file())

    def place(self, seed: str, folder: Path) -> Path:
        """Return where in a folder the file is to be written, with what it needs beside it."""
        beside = SEEDS / self.name / "beside"
        if beside.is_dir():
            shutil.copytree(beside, folder, dirs_exist_ok=True)
        return folder / (self.called or seed)


def complaints(reader: Reader, path: Path) -> list[str]:
    """Read a file in every way that its reader has, and say what should not have happened."""
    found = []
    for read in reader.reads:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            try:
                read(path)
            except _SENTENCES as error:
                found += _unclear(error, path)
            except Exception as error:
                found.append(f"{type(error).__name__}: {str(error)[:300]}")
        found += [
            f"warned of {type(doubt.message).__name__}: {str(doubt.message)[:300]}"
            for doubt in doubts
            if doubt.category is not UserWarning or len(str(doubt.message)) > _LONGEST + len(str(path))
        ]
    return found


def _unclear(error: Exception, path: Path) -> list[str]:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return [] if error.filename else [f"an OSError without a file: {text[:300]}"]
    if type(error) not in _SENTENCES:
        return [f"Python's own words, {type(error).__name__}: {text[:300]}"]
    if len(text) > _LONGEST + 2 * len(str(path)):
        return [f"a sentence of {len(text)} characters: {text[:300]}"]
    return [] if path.name in text or path.parent.name in text else [f"a sentence without the file: {text[:300]}"]


# --- how each is read -----------------------------------------------------------------------------------


def _film(path: Path) -> object:
    return read_volume(path, volume="all")


def _series(path: Path) -> object:
    return read_volume(path.parent)


def _model(path: Path) -> object:
    model = pynca.load_model(path)
    return repr(model), model.card, model.parameters


def _checkpoint(path: Path) -> object:
    return pynca.import_checkpoint(path.parent) if path.name == "config.dt" else read_state_dict(path)


def _manifest(path: Path) -> object:
    return Manifest.read(path.parent).summary()


def _report(path: Path) -> object:
    return write_report(path.parent, path.parent / "page.html", inputs=path.parent / "inputs")


def _dataset(path: Path) -> object:
    return read_dataset(path.parent)


def _chosen(path: Path) -> object:
    return only(read_dataset(path.parent / "whole").cases, path)


def _state(path: Path) -> object:
    return load_state(path, saved_recipe(path))


_NIFTI = (
    *((n, "h") for n in range(40, 56, 2)),
    *((n, "f") for n in (*range(76, 120, 4), *range(256, 328, 4))),
    *((70, "h"), (72, "h"), (123, "B"), (252, "h"), (254, "h"), (0, "i"), (344, "i"), (348, "B")),
)


def _pictures(rng: random.Random, content: bytes) -> bytes:
    kinds = {b"\x89P": mutate.png, b"II": mutate.tiff, b"MM": mutate.tiff, b"\xff\xd8": mutate.jpeg}
    kind = kinds.get(content[:2])
    return mutate.one_of(*([kind] * 4 if kind else []), mutate.any_bytes)(rng, content)


def _checkpoints(rng: random.Random, content: bytes) -> bytes:
    kind = mutate.archive if content[:2] == b"PK" else mutate.json_text
    return mutate.one_of(kind, kind, kind, mutate.any_bytes)(rng, content)


def _lists(rng: random.Random, content: bytes) -> bytes:
    return mutate.any_bytes(rng, content.decode().encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1"))))


READERS = (
    Reader(
        "nifti",
        mutate.one_of(mutate.packed(mutate.one_of(*[mutate.fields(_NIFTI)] * 4, mutate.any_bytes))),
        (read_volume, _film, read_outline, read_label),
    ),
    Reader("dicom", mutate.one_of(*[mutate.dicom] * 4, mutate.any_bytes), (read_volume, _series, read_outline)),
    Reader("picture", _pictures, (read_volume, read_label, read_outline)),
    Reader("npy", mutate.one_of(*[mutate.npy] * 3, mutate.any_bytes), (read_volume, read_label, read_outline)),
    Reader("model", mutate.one_of(*[mutate.tensors] * 6, mutate.any_bytes), (_model,)),
    Reader("checkpoint", _checkpoints, (_checkpoint,)),
    Reader("manifest", mutate.one_of(mutate.json_text), (_manifest, _report), FILE),
    Reader("dataset", mutate.one_of(mutate.json_text), (_dataset,), "dataset.json"),
    Reader("list", mutate.one_of(_lists), (_chosen,)),
    Reader("state", mutate.one_of(*[mutate.tensors] * 6, mutate.any_bytes), (_state,), STATE),
)
BY_NAME = {reader.name: reader for reader in READERS}
