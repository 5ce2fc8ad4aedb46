"""`pynca import`: a model file from weights that the papers' code trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, EXIT_CODES, WrongUse, add_overwrite, check_inputs, check_outputs, show, whole

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written:
  OUTPUT  the model file: weights, preparation, labels and card; the same input gives the same bytes

examples:
  pynca import run/ -o my.safetensors --label hippocampus
  pynca import model0.pth model1.pth -o my.safetensors --steps 16 --fire-rate 0.5 --size 64 64

{EXIT_CODES}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "import",
        help="make a model file from a Med-NCA checkpoint",
        description="Make a model file from weights that the papers' code trained: the folder that it wrote "
        "(config.dt, models/epoch_N/model0.pth and model1.pth), or the .pth files themselves, coarse level first, "
        "with their configuration as options. No code in the files is run.",
        epilog=_EPILOG,
    )
    command.add_argument("source", metavar="SOURCE", type=Path, nargs="+", help="the folder, or one or two .pth files")
    command.add_argument("-o", "--output", type=Path, required=True, help="the model file to write (.safetensors)")
    command.add_argument("--epoch", type=whole, metavar="N", help="epoch to read from a folder (default: the newest)")
    command.add_argument("--steps", type=whole, nargs="+", metavar="N", help="steps of all levels, or of each")
    command.add_argument("--fire-rate", type=float, metavar="P", help="probability that a cell updates in a step")
    command.add_argument("--size", type=whole, nargs=2, metavar=("ROWS", "COLUMNS"), help="size of a prepared slice")
    command.add_argument(
        "--input-channels", type=whole, metavar="N", help="image channels, where the rule perceives with Sobel filters"
    )
    command.add_argument("--scale", type=whole, metavar="N", help="cell of the coarse level in fine pixels")
    command.add_argument(
        "--orientation", default="RAS", metavar="CODE", help="directions of the training volumes' axes (default RAS)"
    )
    command.add_argument("--axis", type=whole, default=2, metavar="N", help="axis they were sliced along (default 2)")
    command.add_argument("--label", metavar="NAME", help="what the model segments, such as hippocampus")
    command.add_argument("--licence", default="", help="licence of the weights, for the model's card")
    command.add_argument("--training-data", default="", help="what they were trained on, for the model's card")
    command.add_argument("--citation", default="", help="how to cite them, for the model's card")
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from dataclasses import replace

    from ..checkpoints import import_checkpoint

    if arguments.output.suffix != ".safetensors":
        raise WrongUse(f"{arguments.output}: the name of a model file must end in .safetensors")
    missing = [p for p in arguments.source if not p.exists()]
    if missing:
        raise WrongUse(f"{missing[0]} does not exist; SOURCE is a checkpoint's folder, or its .pth files")
    check_inputs(*arguments.source)
    sources = [file for path in arguments.source for file in ([path] if path.is_file() else path.rglob("*"))]
    check_outputs([arguments.output], overwrite=arguments.overwrite, inputs=sources)
    steps = arguments.steps
    model = import_checkpoint(
        arguments.source[0] if len(arguments.source) == 1 else arguments.source,
        epoch=arguments.epoch,
        steps=steps[0] if steps is not None and len(steps) == 1 else steps,
        fire_rate=arguments.fire_rate,
        size=None if arguments.size is None else (arguments.size[0], arguments.size[1]),
        input_channels=arguments.input_channels,
        scale=arguments.scale,
        orientation=arguments.orientation,
        axis=arguments.axis,
        labels=None if arguments.label is None else {1: arguments.label},
    )
    card = replace(
        model.card,
        licence=arguments.licence,
        training_data=arguments.training_data,
        citation=arguments.citation,
    )
    replace(model, card=card).save(arguments.output, overwrite=arguments.overwrite)
    size = arguments.output.stat().st_size
    show(f"{arguments.output}: {len(model.levels)} levels, {model.parameters} parameters, {size / 1000:.0f} kB")
    return DONE
