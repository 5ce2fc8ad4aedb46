"""`pynca evaluate`: a model measured on images with labels."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import sentence
from .common import (
    DONE,
    ENVIRONMENT,
    EXIT_CODES,
    FAILED,
    MODEL,
    THREADS,
    WrongUse,
    add_overwrite,
    check_model,
    check_outputs,
    fail,
    show,
    whole,
)

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written:
  CSV  one row a case, if -o is given

examples:
  pynca evaluate --images images/ --labels labels/
  pynca evaluate --images images/ --labels labels/ --cases validation.txt -o scores.csv
  pynca evaluate --images images/ --labels labels/ -m my.safetensors --samples 10
  pynca evaluate --images images/ --labels labels/ --by 'clinic-(A|B)'

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model on images with labels",
        description="Segment every image of a folder and compare with the label of the same name, in the image's own "
        "voxels: hard Dice, soft Dice as Med-NCA's code computes it, 95 % Hausdorff distance and volume error, with "
        "mean, standard deviation and the bootstrap interval of the mean. Each frame of a film counts by itself.",
        epilog=_EPILOG,
    )
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of volumes or pictures")
    command.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of labels of the same names")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=MODEL)
    command.add_argument(
        "--cases",
        type=Path,
        metavar="FILE",
        help="only the label files, or patients, named in this text file, one a line",
    )
    command.add_argument(
        "--by", metavar="PATTERN", help="also print groups of patients: a regular expression that finds them in names"
    )
    command.add_argument("-o", "--output", type=Path, metavar="CSV", help="also write one row a case")
    command.add_argument("--samples", type=whole, default=1, metavar="N", help="average N runs (default 1)")
    command.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    command.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    add_overwrite(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import _core
    from ..cases import files_of_cases, find_cases, only
    from ..config import thread_count
    from ..evaluation import group_names, group_table, score_frames, table, write_csv
    from ..model import load_model
    from ..progress import Progress
    from ..rule import whole_number
    from ..tables import check_table

    model_path = check_model(arguments.model)
    try:
        whole_number(arguments.samples, "--samples", 1, _core.MAX_SAMPLES)
        whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        thread_count(arguments.threads)
        cases = everything = find_cases(arguments.images, arguments.labels).cases
        if arguments.cases is not None:
            cases = only(cases, arguments.cases)
        if arguments.by is not None:
            group_names([case.group for case in cases], arguments.by)
        if arguments.output is not None:
            check_table(arguments.output)
    except (ValueError, OSError) as error:
        raise WrongUse(sentence(error)) from None
    inputs = [*files_of_cases(everything), model_path, *([arguments.cases] if arguments.cases else [])]
    check_outputs([arguments.output], overwrite=arguments.overwrite, inputs=inputs)
    model = load_model(arguments.model)
    scores, raw, failed = [], [], 0
    options = {"seed": arguments.seed, "samples": arguments.samples, "threads": arguments.threads}
    with Progress(len(cases), "evaluating") as bar:
        for case in cases:
            try:
                scores.extend(score_frames(model, case.image, case.label, patient=case.group, **options))
                if model.postprocessing:
                    without = replace(model, postprocessing=())
                    raw.extend(score_frames(without, case.image, case.label, patient=case.group, **options))
            except (ValueError, OSError, ImportError, MemoryError) as error:
                failed += 1
                bar.erase()
                fail(error, FAILED, case.image)
            bar.advance()
    if not scores:
        return fail(f"no case of {len(cases)} could be measured", FAILED)
    try:
        if arguments.output is not None:
            write_csv(arguments.output, scores, overwrite=arguments.overwrite, inputs=inputs)
    finally:  # if the disk is full, the work was not for nothing
        show(*table(scores).split("\n"))
        if arguments.by is not None:
            show(*group_table(scores, arguments.by).split("\n"))
        if raw:
            show(f"without {' and '.join(model.postprocessing)}, which the model asks for:", *table(raw).split("\n"))
    return FAILED if failed else DONE
