"""`pynca info`: what a model file says of itself, or this installation."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, ENVIRONMENT, EXIT_CODES, WrongUse, check_model, plain, show

if TYPE_CHECKING:
    from ..model import Model
    from .common import Commands


_EPILOG = f"""
examples:
  pynca info hippocampus
  pynca info my.safetensors
  pynca info

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "info",
        help="describe a model file, or this installation",
        description="Print what a model file says of itself; without MODEL, the version, instruction set and threads.",
        epilog=_EPILOG,
    )
    command.add_argument(
        "model", metavar="MODEL", type=Path, nargs="?", help="a bundled model or a model file (.safetensors)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..config import show_config
    from ..model import load_model

    if arguments.model is None:
        try:
            with contextlib.redirect_stdout(io.StringIO()) as text:
                show_config()
        except ValueError as error:  # an environment variable
            raise WrongUse(str(error)) from None
        show(*text.getvalue().splitlines())
        return DONE
    check_model(arguments.model)
    show(*_described(load_model(arguments.model)))
    return DONE


def _described(model: Model) -> list[str]:
    preparation, card = model.preparation, model.card
    rows = {
        "name": card.name,
        "description": card.description,
        "modality": card.modality,
        "labels": ", ".join(f"{value} = {name}" for value, name in model.labels.items()),
        "input": f"{model.input_channels} channel, {_cut(model)}, "
        f"{' x '.join(f'{mm:g}' for mm in preparation.spacing)} mm, slices stretched to "
        f"{preparation.size[0]} x {preparation.size[1]}",
        "threshold": f"{model.threshold:g}",
        "after it": ", ".join(
            {"largest": "the largest piece is kept", "fill": "holes are filled"}[step] for step in model.postprocessing
        )
        or "nothing is done to the mask",
        "parameters": f"{model.parameters}",
    }
    for n, level in enumerate(model.levels):
        rule = level.rule
        rows[f"level {n}"] = (
            f"scale {level.scale}, {level.steps} steps, {rule.perception} {rule.kernel_size}x{rule.kernel_size}, "
            f"{rule.channels} channels, hidden {rule.hidden}, fire rate {rule.fire_rate:g}, {rule.padding} padding"
        )
    rows |= {"expects": _expected(model), "quality": _quality(model)}
    rows |= {
        "licence": card.licence,
        "training data": card.training_data,
        "citation": card.citation,
        "accuracy": card.accuracy,
        "source": card.source,
    }
    return [f"{name:14} {plain(value) or 'not stated'}" for name, value in rows.items()]


def _cut(model: Model) -> str:
    from ..orientation import DISPLAY

    preparation = model.preparation
    if preparation.orientation == DISPLAY:
        return "slices as they were acquired and are displayed"
    return f"axes towards {preparation.orientation}, sliced along axis {preparation.axis}"


def _expected(model: Model) -> str:
    from ..inputs import sizes

    expected = model.expected
    if expected is None:
        return ""
    return (
        f"voxels of {sizes(expected.spacing)} mm, a field of view of {sizes(expected.extent)} mm, "
        f"likeness {expected.least_likeness:.2f} or more; learnt from {expected.images} images"
    )


def _quality(model: Model) -> str:
    from ..inputs import sizes

    quality = model.quality
    if quality is None:
        return ""
    volume = "" if quality.volumes is None else f", outside {sizes([quality.volumes])} ml"
    volume += "" if quality.areas is None else f", in a slice outside {sizes([quality.areas])} cm²"
    return (
        f"review above NQM {quality.nqm:g} ({quality.samples} runs), under confidence {quality.confidence:g} (one run)"
        f"{volume}; calibrated on {quality.calibrated_on}"
    )
