"""`pynca models`: what is bundled, for the person who must choose."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .common import DONE, EXIT_CODES, plain, show

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
`pynca info NAME` prints a model's whole card.

examples:
  pynca models
  pynca models --json

{EXIT_CODES}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "models",
        help="list the bundled models",
        description="List the bundled models: the organ that each segments, modality, input, size, accuracy, licence.",
        epilog=_EPILOG,
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a model instead")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import zoo

    described = [_described(name) for name in zoo.names()]
    if arguments.json:
        for entry in described:
            show(json.dumps(entry))
    else:
        show(*"\n\n".join(_block(entry) for entry in described).split("\n"))
    return DONE


def _described(name: str) -> dict[str, str | int]:
    from .. import zoo
    from ..model import load_model
    from ..orientation import DISPLAY

    model, path = load_model(name), zoo.find(name)
    assert path is not None
    preparation, card = model.preparation, model.card
    size = " x ".join(map(str, preparation.size))
    towards = "as displayed" if preparation.orientation == DISPLAY else f"axes towards {preparation.orientation}"
    spacing = " x ".join(f"{mm:g}" for mm in preparation.spacing)
    return {
        "name": name,
        "organ": ", ".join(model.labels.values()),
        "modality": card.modality,
        "input": f"slices stretched to {size}, voxels of {spacing} mm, {towards}",
        "parameters": model.parameters,
        "bytes": path.stat().st_size,
        "accuracy": card.accuracy,
        "licence": card.licence,
    }


def _block(entry: dict[str, str | int]) -> str:
    rows = {name: entry[name] for name in ("organ", "modality", "input")}
    rows["size"] = f"{entry['parameters']:,} parameters, {int(entry['bytes']) / 1000:.0f} kB"
    rows |= {name: entry[name] for name in ("accuracy", "licence")}
    return "\n".join([str(entry["name"]), *(f"  {name:10} {plain(str(value))}" for name, value in rows.items())])
