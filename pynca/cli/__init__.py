"""The `pynca` command: parses, calls the package, prints. One file a command.

Exit codes: 0 done, 1 a case failed or was refused, 2 wrong use, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from ..errors import brief
from . import (
    animate,
    calibrate,
    completion,
    demo,
    estimate,
    evaluate,
    importing,
    info,
    models,
    report,
    segment,
    slicer,
    train,
)
from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    Parser,
    WrongUse,
    fail,
    flush,
    open_streams,
    print_warning,
    speak_of,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        try:
            open_streams()
            if isinstance(sys.stdout, io.TextIOWrapper):  # names of files can hold bytes that are no text
                sys.stdout.reconfigure(errors="backslashreplace")
            words = sys.argv[1:] if argv is None else argv
            arguments = _parser().parse_args(words or ["--help"])
            speak_of(arguments.options)
            with _libraries_silenced(), _ending_in_order():
                code: int = arguments.run(arguments)
            return code
        finally:
            flush()
    except BrokenPipeError:  # the reader of our output has gone: `pynca info | head -1`
        return DONE
    except WrongUse as error:
        return fail(error, WRONG_USE)
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        from ..files import IsInput, Occupied

        return fail(error, WRONG_USE if isinstance(error, (IsInput, Occupied)) else FAILED)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except _Ended as ended:
        return fail("ended by a signal", ended.code)
    except Exception as error:
        if os.environ.get("PYNCA_DEBUG"):
            raise
        return fail(
            f"internal error: {type(error).__name__}: {brief(error)}; please report it, with the traceback that the "
            "environment variable PYNCA_DEBUG=1 shows",
            FAILED,
        )


@contextlib.contextmanager
def _libraries_silenced() -> Iterator[None]:
    """Let nobody but pynca speak: what others log, warn of or fail at beside is not for who runs the command."""
    import logging

    warnings.showwarning = print_warning
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = before


class _Ended(BaseException):
    """A signal that asks the process to end: raised, so that what was begun is cleared away."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise an error where they would end the process at once."""
    before: dict[signal.Signals, signal.Handlers] = {}

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not disturb the clearing
        raise _Ended(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup's stays
                before[number] = signal.SIG_DFL
                signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_EPILOG = f"""
`pynca COMMAND --help` has the options of a command, with examples. Nothing is ever downloaded or reported.

examples:
  pynca demo                                   try it without any data
  pynca segment scan.nii.gz mask.nii.gz        with the bundled model, hippocampus
  pynca models                                 what models are bundled
  pynca estimate scans/                        how long a folder will take, and how much memory

{EXIT_CODES}
{ENVIRONMENT}
"""


def _parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="pynca",
        description="Segment medical images with Neural Cellular Automata (Med-NCA), on any CPU. Research software, "
        "not a medical device.",
        epilog=_EPILOG,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in (
        *(segment, estimate, report, animate, models, info, importing),
        *(demo, evaluate, train, calibrate, slicer, completion),
    ):
        command.add(commands)
    return top


class _Version(argparse.Action):
    """Print the version; the core that knows it is loaded only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        from .. import __version__

        print(f"pynca {__version__}")
        parser.exit(DONE)
