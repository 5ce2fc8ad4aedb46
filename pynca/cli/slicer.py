"""`pynca slicer`: the module for 3D Slicer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, EXIT_CODES, WrongUse, add_overwrite, check_outputs, show

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written, to DIR:
  PyncaSegment      the module (on Windows PyncaSegment.bat); it starts this installation of pynca
  PyncaSegment.xml  its description; write both again after an update

Add DIR in Slicer under Edit, Application Settings, Modules, Additional module paths, and start Slicer again.

examples:
  pynca slicer ~/slicer-modules/pynca

{EXIT_CODES}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "slicer",
        help="write a command-line module for 3D Slicer",
        description="Write a command-line module for 3D Slicer to DIR: a program that starts this installation, and "
        "the description from which Slicer draws its form.",
        epilog=_EPILOG,
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="folder of its own, which is made if need be")
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..plugins.slicer import files, install

    if arguments.folder.exists() and not arguments.folder.is_dir():
        raise WrongUse(f"{arguments.folder} is a file; DIR is a folder")
    check_outputs(files(arguments.folder), overwrite=arguments.overwrite, parents=True)
    program = install(arguments.folder, overwrite=arguments.overwrite)
    show(f"{program}: name {program.parent.resolve()} in Slicer under Edit, Application Settings, Modules, Additional")
    show("module paths, and start Slicer again; the module is then Segmentation, Pynca Segment")
    return DONE
