"""What all commands share: exit codes, how they speak and how they refuse."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..errors import sentence

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

MODEL = "a bundled model or a model file (default: hippocampus)"


class WrongUse(Exception):
    """An argument that cannot be right, as one sentence."""


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def volume_number(text: str) -> int | str:
    """Read the number of a volume, or ``all``."""
    return text if text == "all" else whole(text)


def amount(text: str) -> int:
    """Read an amount of memory, such as ``512M``."""
    from ..memory import read_bytes

    try:
        return read_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_model(model: Path) -> None:
    """Refuse a model that is neither bundled nor a file."""
    from .. import zoo

    if zoo.find(str(model)) is None and not model.exists():
        raise WrongUse(f"{model} does not exist; bundled models are {', '.join(zoo.names())}, others are files")


def fail(error: object, code: int, source: Path | None = None) -> int:
    """Print what went wrong, with the file it went wrong with, and return the exit code."""
    text = sentence(error)
    if source is not None and str(source) not in text:
        text = f"{source}: {text}"
    print(f"pynca: {text}", file=sys.stderr)
    return code


def plain(text: str) -> str:
    """Return text of a model file on one line, without what would command a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def show(text: str) -> None:
    """Print to standard output; where its reader has gone (`pynca segment ... | head -1`), go on without."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Send standard output nowhere, so that what is left in its buffer raises no error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, in place of what Python prints."""
    start = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""  # over a progress bar
    print(f"{start}pynca: warning: {' '.join(str(message).split())}", file=sys.stderr)
