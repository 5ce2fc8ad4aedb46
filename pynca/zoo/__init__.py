"""Models that come with the package: one ``NAME.safetensors`` each, and its card ``NAME.md``."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import did_you_mean

DEFAULT = "hippocampus"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled models."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find(name: str) -> Path | None:
    """Return the file of a bundled model, or None if there is none of that name.

    Raises
    ------
    FileNotFoundError
        No model is there at all, nor a file of that name: a program was packed without them.
    """
    there = names()
    if not there and not os.path.exists(name):
        raise FileNotFoundError(
            f"there is no file {name}, and the bundled models were not packed with this program; PyInstaller packs "
            "them by pynca's hook, other packers where pynca/zoo is among the data files"
        )
    return _FOLDER / f"{name}.safetensors" if name in there else None


def others(name: str) -> str:
    """Say which models there are in place of one that there is not."""
    return f"bundled models are {', '.join(names())}, others are files{did_you_mean(name, names())}"
