"""`pynca estimate`: time and memory, before running."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    FAILED,
    MODEL,
    THREADS,
    WrongUse,
    amount,
    check_inputs,
    check_model,
    fail,
    print_warning,
    show,
    volume_number,
    whole,
)

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
The time is what this machine needs while it does nothing else; the memory is a bound, computed from the sizes of the
arrays. Formats whose header does not tell how large a volume is are read. Nothing is written.

examples:
  pynca estimate scan.nii.gz
  pynca estimate scans/ --samples 10 --threads 4
  pynca estimate scans/ --memory 512M          which cases `segment --memory 512M` would refuse

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "estimate",
        help="say how long `segment` will take, and how much memory",
        description="Try the model for a moment on this machine, read the headers of IN, and say what `pynca segment` "
        "will take: seconds without reading and writing files, and the memory of the whole process at most.",
        epilog=_EPILOG,
    )
    command.add_argument("input", metavar="IN", type=Path, help="an image, or a folder of them")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=MODEL)
    command.add_argument("--samples", type=whole, default=1, metavar="N", help="average N runs (default 1)")
    command.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    command.add_argument(
        "--memory", type=amount, metavar="SIZE", help="as for `segment`: stay below it, such as 512M or 1.5G"
    )
    command.add_argument(
        "--volume", type=volume_number, metavar="N", help="which volume of a 4D NIfTI file, counted from 0, or all"
    )
    command.add_argument(
        "--bids-suffix", default="T1w", metavar="S", help="which images of a BIDS dataset to take (default T1w)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import _core
    from ..config import thread_count
    from ..inputs import check_input
    from ..memory import megabytes, process_bytes
    from ..model import load_model
    from ..planning import Speed, estimate, outline
    from ..rule import whole_number

    try:
        threads = thread_count(arguments.threads)
        whole_number(arguments.samples, "--samples", 1, _core.MAX_SAMPLES)
        check_model(arguments.model)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    sources = _sources(arguments.input, arguments.bids_suffix)
    model = load_model(arguments.model)
    speed = Speed(model, threads)
    speed.measure()
    for module in ("nibabel", "pynca.batch"):  # which `segment` loads, too
        import_module(module)
    program = process_bytes()
    seconds, most, failed = 0.0, 0, 0
    for source in sources:
        try:
            image = outline(source, which=arguments.volume)
            needed = estimate(
                image, model, samples=arguments.samples, threads=threads, memory=arguments.memory, speed=speed
            )
            for problem in check_input(image, model, content=False):
                print_warning(f"{problem}; `pynca segment` asks for --force", UserWarning, "", 0)
        except (ValueError, OSError, ImportError, MemoryError) as error:
            failed += 1
            fail(error, FAILED, source)
            continue
        seconds += needed.seconds
        most = max(most, needed.bytes)
        shape = " x ".join(map(str, image.data.shape))
        show(f"{source}: {shape} voxels, {_time(needed.seconds)}, {megabytes(program + needed.bytes)}")
    if len(sources) > 1 and most:
        show(f"{len(sources) - failed} cases: {_time(seconds)}, {megabytes(program + most)} at most")
    return FAILED if failed else DONE


def _sources(source: Path, bids_suffix: str) -> list[Path]:
    """Find what `segment` would find."""
    from ..layouts import find_jobs
    from ..volumes import is_input

    check_inputs(source)
    if source.exists() and (not source.is_dir() or is_input(source)):
        return [source]
    nowhere = {"mask": source.absolute().with_name("masks of pynca")}  # jobs must have a place for their results
    try:
        return [job.source for job in find_jobs(source, nowhere, title="pynca", suffix=bids_suffix)[0]]
    except ValueError as error:
        raise WrongUse(str(error)) from None


def _time(seconds: float) -> str:
    """Write a time for people, who do not need more than two digits of an estimate."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
