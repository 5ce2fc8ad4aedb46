"""`pynca train`: a model from images with labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import sentence
from .common import DONE, ENVIRONMENT, EXIT_CODES, THREADS, WrongUse, whole

if TYPE_CHECKING:
    from .common import Commands


_EPILOG = f"""
files written:
  MODEL           the model file, when the training ends
  MODEL.training  a folder beside it: state to resume from, log.jsonl,
                  and curve.png where matplotlib is installed

examples:
  pynca train --images images/ --labels labels/ -o my.safetensors --label tumour
  pynca train --dataset Task04_Hippocampus -o my.safetensors --minutes 30
  pynca train --images images/ --labels labels/ -o my.safetensors --resume

{EXIT_CODES}
{ENVIRONMENT}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train a model on images with labels",
        description="Train a two-level Med-NCA. Every label value above 0 counts as the label. State, log.jsonl and "
        "learning curve go to a folder beside MODEL; an interrupted training goes on with --resume at the same point. "
        "The same seed gives the same weights on the same instruction set.",
        epilog=_EPILOG,
    )
    source = command.add_argument_group("cases")
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of .nii or .nii.gz images")
    source.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels of the same names")
    source.add_argument(
        "--dataset", type=Path, metavar="DIR", help="instead: a folder with dataset.json, imagesTr and labelsTr"
    )
    source.add_argument(
        "--validation",
        default="0.2",
        metavar="WHAT",
        help="cases that validate: a share, a text file of label names, or none (default 0.2)",
    )
    size = command.add_argument_group("model")
    size.add_argument("--channels", type=whole, default=32, metavar="N", help="channels of a cell (default 32)")
    size.add_argument("--hidden", type=whole, default=128, metavar="N", help="hidden units (default 128)")
    size.add_argument(
        "--steps",
        type=whole,
        nargs=2,
        default=(16, 16),
        metavar="N",
        help="steps of the coarse and the fine level (default 16 16)",
    )
    size.add_argument(
        "--size",
        type=whole,
        nargs=2,
        default=(64, 64),
        metavar="N",
        help="rows and columns that a slice is brought to (default 64 64)",
    )
    size.add_argument(
        "--orientation", default="RAS", metavar="CODE", help="patient directions of the axes to learn in (default RAS)"
    )
    size.add_argument("--axis", type=whole, default=2, metavar="N", help="axis of these to slice along (default 2)")
    size.add_argument(
        "--label", default="foreground", metavar="NAME", help="what the model segments (default foreground)"
    )
    for name, what in (
        ("--description", "what the model is for"),
        ("--licence", "licence of the weights"),
        ("--training-data", "what it was trained on"),
        ("--citation", "how to cite it"),
    ):
        size.add_argument(name, default="", metavar="TEXT", help=f"{what}, for the model's card")
    how = command.add_argument_group("training")
    length = how.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, metavar="N", help="passes through all slices (default 40)")
    length.add_argument("--minutes", type=float, metavar="N", help="instead: as many batches as fit into N minutes")
    how.add_argument(
        "--published",
        action="store_true",
        help="batch, patch and decay of the authors' configuration: 40, 16 16, 0.9999 a batch",
    )
    how.add_argument("--batch", type=whole, metavar="N", help="slices in a batch (default 16)")
    how.add_argument(
        "--patch", type=whole, nargs=2, metavar="N", help="rows and columns of the fine level's patch (default 32 32)"
    )
    how.add_argument("--rate", type=float, default=1.6e-3, metavar="R", help="learning rate of Adam (default 0.0016)")
    how.add_argument(
        "--betas", type=float, nargs=2, default=(0.5, 0.5), metavar="B", help="betas of Adam (default 0.5 0.5)"
    )
    how.add_argument("--loss", default="dice_bce", help="dice, bce, dice_bce or dice_focal (default dice_bce)")
    how.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of everything (default 0)")
    how.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    how.add_argument("--resume", action="store_true", help="go on where an interrupted training stopped")
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MODEL", help="the model file to write (.safetensors)"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..cases import find_cases, read_dataset
    from ..model import Card
    from ..preprocessing import Preparation
    from ..progress import Progress
    from ..training.dataset import split
    from ..training.fit import LOG, STATE, State
    from ..training.recipe import Recipe
    from ..training.train import draw_curve, train

    output = arguments.output
    folder = output.with_name(output.stem + ".training")
    if output.suffix != ".safetensors":
        raise WrongUse(f"{output}: the name of a model file must end in .safetensors")
    if arguments.resume and not (folder / STATE).exists():
        raise WrongUse(f"{folder} holds no training to go on with; leave --resume out to start one")
    if not arguments.resume and folder.exists():
        raise WrongUse(f"{folder} holds another training; give --resume to go on with it, or remove it")
    try:
        if arguments.dataset is not None:
            dataset = read_dataset(arguments.dataset)
        elif arguments.images is not None and arguments.labels is not None:
            dataset = find_cases(arguments.images, arguments.labels)
        else:
            raise WrongUse("give --images and --labels, or --dataset")
        cases, validation = split(dataset, arguments.validation)
        preparation = Preparation(tuple(arguments.size), arguments.orientation, arguments.axis)
        chosen = {"batch": arguments.batch, "patch": None if arguments.patch is None else tuple(arguments.patch)}
        recipe = (Recipe.published if arguments.published else Recipe)(
            channels=arguments.channels,
            hidden=arguments.hidden,
            steps=tuple(arguments.steps),
            rate=arguments.rate,
            betas=tuple(arguments.betas),
            loss=arguments.loss,
            seed=arguments.seed,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        recipe.check_size(preparation.size)
        for name in ("epochs", "minutes"):
            value = getattr(arguments, name)
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"--{name} is {value:g}; it must be a number above 0")
    except (ValueError, OSError) as error:
        raise WrongUse(sentence(error)) from None

    def report(entry: dict[str, float]) -> None:
        if not arguments.quiet:
            bar.erase()
            print(
                f"batch {entry['batch']:.0f}: loss {entry['loss']:.4f}, validation Dice {entry['score']:.4f}, "
                f"rate {entry['rate']:.2g}, {entry['seconds'] / 60:.1f} min",
                flush=True,
            )

    def tick(state: State, recipe: Recipe) -> None:
        label = f"batch {state.batch}/{recipe.batches}: loss {state.smooth_loss:.3f}, best Dice {state.best_score:.3f}"
        bar.show(state.batch / recipe.batches, label)

    with Progress(1, "reading", enabled=not arguments.quiet) as bar:
        outcome = train(
            dataset,
            cases,
            validation,
            recipe,
            preparation,
            folder,
            labels={1: arguments.label},
            card=Card(
                name=output.stem,
                description=arguments.description,
                licence=arguments.licence,
                training_data=arguments.training_data,
                citation=arguments.citation,
            ),
            epochs=40 if arguments.epochs is None and arguments.minutes is None else arguments.epochs,
            minutes=arguments.minutes,
            resume=arguments.resume,
            threads=arguments.threads,
            report=report,
            tick=tick,
        )
    outcome.model.save(output)
    if not arguments.quiet:
        print(f"{output}: {outcome.model.parameters} parameters; {outcome.model.card.accuracy}")
    try:
        draw_curve(folder / LOG, folder / "curve.png")
    except ModuleNotFoundError:
        print("pynca: no learning curve was drawn; it needs `pip install '.[plot]'`", file=sys.stderr)
    return DONE
