"""What all commands share: exit codes, how they speak and how they refuse."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ..errors import did_you_mean, printable, quoted, sentence

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DONE, FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

MODEL = "a bundled model or a model file (default: hippocampus)"
FORCE = "segment what the model was not made for all the same; it is warned of"
THREADS = "threads (default: PYNCA_NUM_THREADS, else all usable CPUs)"
EXIT_CODES = """
exit codes:
  0    done; a mask that is empty, or one to review, is done too
  1    a case failed or was refused; one sentence on standard error says why
  2    wrong use: an argument that cannot be right
  130  interrupted
  143  told to end, by SIGTERM
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
        self.register("type", Path, _path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and note which options the command has: errors speak of them, and of no others."""
        namespace, rest = super().parse_known_args(args, namespace)
        if not hasattr(namespace, "options"):
            namespace.options = frozenset(self._option_string_actions)
        if rest:
            unknown = next((word for word in rest if word.startswith("-")), "")
            meant = did_you_mean(unknown.partition("=")[0], namespace.options) if unknown.startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        if not hasattr(namespace, "run"):
            self.error("the following arguments are required: COMMAND")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            text = f"invalid choice: {quoted(value)}; it must be one of {', '.join(known)}{did_you_mean(value, known)}"
            raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """Say on one line what is wrong, and leave."""
        complain(f"{self.prog}: error: {sentence(message)} (see `{self.prog} --help`)")
        self.exit(WRONG_USE)


def _path(text: str) -> Path:
    """Read a path; an empty one, as of a variable that is not set, would stand for the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give a file or a folder")
    return Path(text)


class WrongUse(Exception):
    """An argument that cannot be right, as one sentence."""


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number") from None


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


def check_model(model: Path) -> Path:
    """Return the file of a model, or refuse one that is neither bundled nor a file."""
    from .. import zoo

    file = zoo.find(str(model)) or model
    if not file.exists():
        raise WrongUse(f"{model} does not exist; {zoo.others(str(model))}")
    check_inputs(file)
    return file


def check_inputs(*paths: Path) -> None:
    """Refuse what is a pipe or a device, before work starts."""
    from ..files import check_regular

    for path in paths:
        try:
            check_regular(path)
        except ValueError as error:
            raise WrongUse(str(error)) from None


def add_overwrite(command: argparse._ActionsContainer, what: str = "replace a file that pynca did not write") -> None:
    """Add the option without which nobody's work is replaced."""
    command.add_argument("--overwrite", action="store_true", help=f"{what}, or that was changed since")


def check_outputs(
    paths: Iterable[Path | None], *, overwrite: bool, inputs: Iterable[Path] = (), parents: bool = False
) -> None:
    """Refuse, before the work starts, to write over an input or what pynca did not write; None is no output.

    What a run that was killed has left beside these files is removed.
    """
    from ..files import check_all, remove_leftovers

    outputs = [path for path in paths if path is not None]
    try:
        check_all(outputs, overwrite=overwrite, inputs=inputs, parents=parents)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):  # nothing could be lost
        raise
    except (ValueError, OSError) as error:
        raise WrongUse(sentence(error)) from None
    remove_leftovers(outputs)


# --- what is said -------------------------------------------------------------------------------------

# The package speaks of arguments as Python spells them, `volume=` or `strict=False`; here they become options. All but
# these are called by their own names
_OPTIONS = {
    "strict=False": "--force",
    "overwrite=True": "--overwrite",
    "skip_existing=True": "--skip-existing",
    "suffix=": "--bids-suffix",
}
_ARGUMENT = re.compile(r"(?<![^\s(])[a-z_]+=(?:True|False|[0-9]+|'[a-z]+')?(?=[\s;,.)]|$)")
_REFUSED = re.compile(r"(?:[a-z]+(?= (?:is|are) .*; (?:it|they) must )|[a-z]+_[a-z_]+(?= (?:is|are) ))")
_options: frozenset[str] = frozenset()  # those of the command that runs


def speak_of(options: frozenset[str]) -> None:
    """Let errors and warnings speak of these options."""
    global _options
    _options = options


def spoken(text: str) -> str:
    """Return a sentence of the package as the command line says it: with its options in place of Python's arguments.

    What advises an argument for which the command has no option is left out, up to the next semicolon or "or".
    """
    first, *rest = re.split("(?=; |, or )", text)
    kept = [clause for clause in rest if all(_option(word) in _options for word in _ARGUMENT.findall(clause))]
    text = _ARGUMENT.sub(lambda found: _known(found[0]), "".join([first, *kept]))
    refused = _REFUSED.match(text)  # an argument that cannot be right
    return text if refused is None else _known(refused[0]) + text[refused.end() :]


def _option(argument: str) -> str:
    return _OPTIONS.get(argument, f"--{argument.partition('=')[0].replace('_', '-')}")


def _known(argument: str) -> str:
    """Return the option for an argument, or its name where the command has none."""
    option, (name, _, value) = _option(argument), argument.partition("=")
    if option not in _options:
        return name
    return f"{option} {value[1:-1]}" if value.startswith("'") else option


def fail(error: object, code: int, source: Path | None = None) -> int:
    """Print what went wrong, with the file it went wrong with, and return the exit code."""
    complain(f"pynca: {spoken(sentence(error, source))}")
    return code


def complain(text: str) -> None:
    """Print to standard error; where nobody can read it, go on without."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed, full, or its reader has gone
        pass


def plain(text: str) -> str:
    """Return text of a file on one line, without what would command a terminal."""
    return " ".join(printable(text).split())


def show(*lines: str) -> None:
    """Print lines to standard output; where its reader has gone (`pynca segment ... | head -1`), go on without."""
    try:
        print(*(printable(line) for line in lines), sep="\n", flush=True)
    except BrokenPipeError:
        silence()
    except OSError as error:
        raise _named(error) from None


def flush() -> None:
    """Write what is left of standard output; where it cannot be written, Python must not try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        silence()
        raise
    except OSError as error:
        silence()
        raise _named(error) from None


def _named(error: OSError) -> OSError:
    """Return an error of standard output, as on a full disk, that says so."""
    return OSError(error.errno, error.strerror, "standard output")


def silence() -> None:
    """Send standard output nowhere, so that what is left in its buffer raises no error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def open_streams() -> None:
    """Give a process whose standard streams are closed (`2>&-`) streams that lead nowhere.

    Otherwise the next files that are opened would take their numbers, and what is printed would be written into them;
    and Python prints to standard output what is for a standard error that is not there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:  # never, as all lower ones are open
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "w" if number else "r", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, in place of what Python prints; those of libraries about themselves are left out."""
    if issubclass(category, UserWarning):
        start = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""  # over a progress bar
        complain(f"{start}pynca: warning: {spoken(sentence(str(message)))}")
