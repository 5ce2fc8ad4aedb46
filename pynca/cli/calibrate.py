"""`pynca calibrate`: teach a model what to expect and when to doubt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import sentence
from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    THREADS,
    WrongUse,
    add_overwrite,
    check_model,
    check_outputs,
    plain,
    show,
    whole,
)

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
Leave out the cases that the model is to be measured with, or the measurement would flatter it.

files written:
  MODEL  or the file of -o: the same weights, with what was found out beside them

examples:
  pynca calibrate my.safetensors --images images/ --labels labels/
  pynca calibrate my.safetensors --images images/ --labels labels/ --leave-out validation.txt
  pynca calibrate hippocampus --images images/ --labels labels/ -o ours.safetensors --dice 0.85

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "calibrate",
        help="teach a model what input to expect and when to doubt its result",
        description="Write into a model file what input it was made for, and from which NQM on a segmentation is to be "
        "reviewed: found out on the cases that it was trained on, and on noisy copies of some of them, which it "
        "segments. The weights stay as they are.",
        epilog=_EPILOG,
    )
    command.add_argument("model", metavar="MODEL", type=Path, help="a model file, or a bundled model with -o")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of volumes or pictures")
    command.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of labels of the same names")
    command.add_argument(
        "--leave-out",
        type=Path,
        metavar="FILE",
        help="not the label files, or patients, named in this text file, one a line",
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="the model file to write (default: MODEL)")
    command.add_argument("--samples", type=whole, default=10, metavar="N", help="runs for NQM (default 10)")
    command.add_argument("--dice", type=float, default=0.8, metavar="D", help="a Dice below this is bad (default 0.8)")
    command.add_argument(
        "--others",
        type=float,
        metavar="P",
        help="mark as many bad ones as can be while a share of P of the others is marked too (default: what separates "
        "best)",
    )
    command.add_argument("--at-most", type=whole, default=50, metavar="N", help="cases to segment (default 50)")
    command.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of automaton and noise (default 0)")
    command.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import _core
    from ..calibration import calibrate
    from ..cases import files_of_cases, find_cases, only
    from ..config import thread_count
    from ..model import load_model
    from ..progress import Progress
    from ..rule import whole_number

    model_path = check_model(arguments.model)
    output = arguments.output or arguments.model
    if output.suffix != ".safetensors":
        raise WrongUse(f"{output}: the name of a model file must end in .safetensors; -o names another")
    try:
        whole_number(arguments.samples, "--samples", 2, _core.MAX_SAMPLES)
        whole_number(arguments.at_most, "--at-most", 1, 10**6)
        thread_count(arguments.threads)
        whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        if not 0 < arguments.dice < 1:
            raise ValueError(f"--dice is {arguments.dice:g}; it must be a number between 0 and 1")
        if arguments.others is not None and not 0 <= arguments.others < 1:
            raise ValueError(f"--others is {arguments.others:g}; it must be a share from 0 to below 1")
        cases = everything = find_cases(arguments.images, arguments.labels).cases
        if arguments.leave_out is not None:
            left_out = only(cases, arguments.leave_out)
            kept = [case for case in cases if case not in left_out]
            if len(kept) < 2:
                raise ValueError(
                    f"{arguments.leave_out} leaves {len(kept)} of {len(cases)} cases to calibrate on; there must be at "
                    "least 2"
                )
            cases = kept
    except (ValueError, OSError) as error:
        raise WrongUse(sentence(error)) from None
    inputs = [*files_of_cases(everything), *([arguments.leave_out] if arguments.leave_out else [])]
    inputs += [model_path] if arguments.output else []  # without -o it is meant
    check_outputs([output], overwrite=arguments.overwrite, inputs=inputs)
    model = load_model(arguments.model)
    with Progress(min(arguments.at_most, len(cases)), "calibrating", enabled=not arguments.quiet) as bar:
        model = calibrate(
            model,
            cases,
            samples=arguments.samples,
            dice=arguments.dice,
            others=arguments.others,
            at_most=arguments.at_most,
            seed=arguments.seed,
            threads=arguments.threads,
            tick=bar.advance,
        )
    model.save(output, overwrite=arguments.overwrite)
    assert model.quality is not None
    if not arguments.quiet:
        quality = model.quality
        show(
            f"{output}: review above NQM {quality.nqm:.4f} ({quality.samples} runs) or under confidence "
            f"{quality.confidence:.4f} (one run)",
            plain(quality.calibrated_on),
        )
    return DONE
