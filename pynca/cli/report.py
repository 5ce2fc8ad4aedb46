"""`pynca report`: a page about a folder of results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, EXIT_CODES, WrongUse, add_overwrite, check_outputs, show

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written:
  HTML  the page

examples:
  pynca report masks/
  pynca report masks/ -o page.html --inputs scans/

{EXIT_CODES}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "report",
        help="make a page that shows a folder of results",
        description="Write one HTML page about a folder that `pynca segment` filled: every case with its picture, "
        "volumes and quality, those that need attention first. The page holds its pictures and loads nothing from "
        "elsewhere; it opens from the file system in any browser.",
        epilog=_EPILOG,
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="the folder of results, with its manifest.json")
    command.add_argument(
        "-o", "--output", type=Path, metavar="HTML", help="the page to write (default: report.html in DIR)"
    )
    command.add_argument(
        "--inputs", type=Path, metavar="DIR", help="the folder of the inputs, for links and where there are no previews"
    )
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..manifest import FILE
    from ..report import PAGE, write_report

    for folder in (arguments.folder, arguments.inputs):
        if folder is not None and not folder.is_dir():
            raise WrongUse(f"{folder} is not a folder")
    if arguments.output is not None and arguments.output.suffix.lower() not in (".html", ".htm"):
        raise WrongUse(f"{arguments.output} must end in .html")
    output = arguments.output or arguments.folder / PAGE
    overwrite = arguments.overwrite
    check_outputs([output], overwrite=overwrite, inputs=[arguments.folder / FILE])
    page = write_report(arguments.folder, output, inputs=arguments.inputs, overwrite=overwrite)
    show(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return DONE
