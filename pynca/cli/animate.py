"""`pynca animate`: the automaton at work on one slice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    FORCE,
    MODEL,
    THREADS,
    WrongUse,
    add_overwrite,
    check_inputs,
    check_model,
    check_outputs,
    show,
    whole,
)

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
Needs Pillow, the extra 'image'.

files written:
  OUT.gif  the animation

examples:
  pynca animate scan.nii.gz growing.gif
  pynca animate scan.nii.gz growing.gif --slice 17 --zoom 3 --delay 200

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "animate",
        help="show how a segmentation grows, as an animated GIF",
        description="Segment IN and write an animated GIF of one slice: each frame is a step of the automaton, with "
        "the probability and the outline of the mask over the image, blue on coarse levels and orange on the last.",
        epilog=_EPILOG,
    )
    command.add_argument("input", metavar="IN", type=Path, help="what `pynca segment` takes")
    command.add_argument("output", metavar="OUT.gif", type=Path, help="the animation to write")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=MODEL)
    command.add_argument("--force", action="store_true", help=FORCE)
    command.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    command.add_argument(
        "--slice", type=whole, metavar="K", help="slice of the volume, from 0 (default: the one with the largest mask)"
    )
    command.add_argument("--zoom", type=whole, metavar="N", help="pixels a voxel (default: to about 360 pixels)")
    command.add_argument("--delay", type=whole, default=120, metavar="MS", help="milliseconds a step (default 120)")
    command.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import animate
    from ..config import thread_count
    from ..rule import whole_number
    from ..volumes import files_of

    if arguments.output.suffix.lower() != ".gif":
        raise WrongUse(f"{arguments.output} must end in .gif")
    if not arguments.input.exists():
        raise WrongUse(f"{arguments.input} does not exist; IN is an image")
    check_inputs(arguments.input)
    model_path = check_model(arguments.model)
    try:
        threads = thread_count(arguments.threads)
        whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        whole_number(arguments.delay, "--delay", *animate.DELAYS)
        if arguments.zoom is not None:
            whole_number(arguments.zoom, "--zoom", *animate.ZOOMS)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    inputs = [model_path, *files_of(arguments.input)]
    check_outputs([arguments.output], overwrite=arguments.overwrite, inputs=inputs)
    k = animate.write_animation(
        arguments.output,
        arguments.input,
        arguments.model,
        slice_index=arguments.slice,
        seed=arguments.seed,
        zoom=arguments.zoom,
        delay=arguments.delay,
        threads=threads,
        strict=not arguments.force,
        overwrite=arguments.overwrite,
    )
    size = arguments.output.stat().st_size
    show(f"{arguments.output}: slice {k}, {size / 1000:.0f} kB")
    return DONE
