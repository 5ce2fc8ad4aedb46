"""`pynca demo`: the main job on a phantom."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, ENVIRONMENT, EXIT_CODES, THREADS, WrongUse, add_overwrite, check_outputs, show, whole

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written, to DIR:
  phantom.nii.gz  the phantom, a made-up T1 crop around a hippocampus
  mask.nii.gz     its mask
  preview.png     slices with the mask (orange) and the phantom's own outline (blue)

examples:
  pynca demo
  pynca demo -o /tmp/demo --threads 1

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "demo",
        help="try it on a phantom, without any data",
        description="Make a phantom of a hippocampus, segment it with the bundled model, and write phantom, mask and a "
        "picture to a folder.",
        epilog=_EPILOG,
    )
    command.add_argument(
        "-o", "--output", type=Path, default=Path("pynca-demo"), metavar="DIR", help="folder (default pynca-demo)"
    )
    command.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..demo import files, run_demo

    if arguments.output.exists() and not arguments.output.is_dir():
        raise WrongUse(f"{arguments.output} is a file; -o takes a folder")
    check_outputs(files(arguments.output), overwrite=arguments.overwrite, parents=True)
    demo = run_demo(arguments.output, threads=arguments.threads, overwrite=arguments.overwrite)
    show(f"made a phantom, a T1 crop around a hippocampus: {demo.phantom}")
    show(f"segmented it in {demo.seconds:.2f} s, {demo.volume_ml:.2f} ml: {demo.mask}")
    show(f"drew mask (orange) and the phantom's own outline (blue), Dice {demo.dice:.2f}: {demo.preview}")
    return DONE
