"""What all commands share: exit codes, how they speak and how they refuse."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import sentence

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

MODEL = "a bundled model or a model file (default: hippocampus)"
THREADS = "threads (default: PYNCA_NUM_THREADS, else all usable CPUs)"
EXIT_CODES = """
exit codes:
  0    done; a mask that is empty, or one to review, is done too
  1    a case failed or was refused; one sentence on standard error says why
  2    wrong use: an argument that cannot be right
  130  interrupted
"""


ENVIRONMENT = """
environment:
  PYNCA_NUM_THREADS  threads where --threads does not say; default: all usable CPUs
  PYNCA_ISA          a lower instruction set than the best that the CPU has; `pynca info` lists them
"""


class Help(argparse.HelpFormatter):
    """Wraps paragraphs, keeps those with indented lines as they are, and is never wider than a page."""

    def __init__(self, prog: str, **options: Any) -> None:
        columns = shutil.get_terminal_size().columns - 2
        super().__init__(prog, **{"max_help_position": 28, "width": min(columns, 98), **options})
        self._action_max_length = 14  # argparse forgets that commands are indented

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n{2,}", text.strip("\n"))
        return "\n\n".join(p if "\n " in p else textwrap.fill(p, width) for p in paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser whose help reads like a manual page; those of commands are of the same class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, **options})


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


def flush() -> None:
    """Write what is left of standard output; where it cannot be written, Python must not try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        silence()
        raise


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
