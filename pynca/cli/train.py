"""`pynca train`: a model from images with labels."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
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
    amount,
    check_outputs,
    complain,
    show,
    whole,
)

if TYPE_CHECKING:
    from ..training.recipe import Recipe
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
  pynca train --images png/ --labels masks/ -o my.safetensors --flip --rotation 180

{EXIT_CODES}
{ENVIRONMENT}
"""


# What a recipe chooses by the size of a slice where the command line does not.
_CHOSEN = (
    *("channels", "hidden", "scales", "steps", "patch", "border", "supervision", "batch", "negatives", "on_errors"),
    *("rate", "fall", "optimizer", "betas", "loss", "small_first"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train a model on images with labels",
        description="Train a Med-NCA on volumes or pictures. Every label value above 0 counts as the label. State, "
        "log.jsonl and learning curve go to a folder beside MODEL; an interrupted training goes on with --resume at "
        "the same point. The same seed gives the same weights on the same instruction set.",
        epilog=_EPILOG,
    )
    source = command.add_argument_group("cases")
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of volumes or pictures")
    source.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels of the same names")
    source.add_argument(
        "--dataset", type=Path, metavar="DIR", help="instead: a folder with dataset.json, imagesTr and labelsTr"
    )
    source.add_argument(
        "--validation",
        default="0.2",
        metavar="WHAT",
        help="what validates: a share of the patients, a text file of patients or label names, or none (default 0.2)",
    )
    source.add_argument(
        "--group-by",
        metavar="PATTERN",
        help="regular expression that finds the patient at the start of a name, as its first group; patients are never "
        "divided (default: a volume is one; of pictures, what stands before the last underscore)",
    )
    size = command.add_argument_group("model")
    size.add_argument(
        "--size",
        type=whole,
        nargs=2,
        metavar="N",
        help="rows and columns that a slice is brought to (default: 64 64 for volumes, the first picture's own size)",
    )
    size.add_argument(
        "--scales",
        type=whole,
        nargs="+",
        metavar="N",
        help="side of each level's cells in pixels, coarse first (default 4 1; 16 4 1 above 96 pixels)",
    )
    size.add_argument(
        "--steps",
        type=whole,
        nargs="+",
        metavar="N",
        help="steps of each level, coarse first (default 16 16; 20 16 12 above 96 pixels)",
    )
    size.add_argument("--channels", type=whole, metavar="N", help="channels of a cell (default 32; 24 above 96 pixels)")
    size.add_argument("--hidden", type=whole, metavar="N", help="hidden units (default 128; 96 above 96 pixels)")
    size.add_argument(
        "--shrink",
        metavar="HOW",
        help="how slices are brought to coarse levels: linear, as in the papers' code, or mean of a cell's pixels "
        "(default linear; mean above 96 pixels)",
    )
    size.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        default=(1.0,),
        metavar="MM",
        help="size of the images' voxels, one or three numbers (default 1)",
    )
    size.add_argument(
        "--orientation",
        metavar="CODE",
        help="patient directions of the axes to learn in, or display: slices in the plane in which they were acquired, "
        "as radiologists look at them (default: RAS for volumes, display for pictures)",
    )
    size.add_argument("--axis", type=whole, default=2, metavar="N", help="axis of these to slice along (default 2)")
    size.add_argument(
        "--percentiles",
        type=float,
        nargs=2,
        default=(0.5, 99.5),
        metavar="Q",
        help="percentiles of a slice that become black and white (default 0.5 99.5)",
    )
    size.add_argument(
        "--label", default="foreground", metavar="NAME", help="what the model segments (default foreground)"
    )
    for name, what in (
        ("--description", "what the model is for"),
        ("--modality", "kind of images, such as 'MRI, T1-weighted'"),
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
    how.add_argument("--batch", type=whole, metavar="N", help="slices in a batch (default 16; 4 above 96 pixels)")
    how.add_argument(
        "--patch",
        type=whole,
        nargs=2,
        metavar="N",
        help="rows and columns of the finest level's patch (default 32 32; 64 64 above 96 pixels)",
    )
    how.add_argument(
        "--border",
        type=whole,
        metavar="N",
        help="pixels along a patch's sides that are not judged (default 0; 8 above 96 pixels)",
    )
    how.add_argument(
        "--supervision",
        type=float,
        metavar="W",
        help="weight of the loss of coarse levels at the start; it falls to a tenth (default 0; 1 above 96 pixels)",
    )
    how.add_argument(
        "--negatives",
        type=float,
        metavar="P",
        help="share of slices that do not show the label (default 0; 0.125 above 96 pixels)",
    )
    how.add_argument(
        "--on-errors",
        type=float,
        metavar="P",
        help="share of patches on what is wrongly found (default 0; 0.25 above 96 pixels)",
    )
    how.add_argument("--flip", action="store_true", help="mirror slices at random, where sides do not matter")
    how.add_argument(
        "--rotation", type=float, default=12.0, metavar="DEG", help="turn slices by up to DEG degrees (default 12)"
    )
    how.add_argument(
        "--quarters",
        type=float,
        default=0.0,
        metavar="P",
        help="share of slices that are turned by quarters besides (default 0)",
    )
    how.add_argument("--zoom", type=float, default=0.12, metavar="P", help="enlarge slices by up to P (default 0.12)")
    how.add_argument("--shift", type=float, default=3.0, metavar="N", help="shift slices by up to N pixels (default 3)")
    for name, default, what in (
        ("--tone", 0.3, "bend the grey scale by up to P"),
        ("--contrast", 0.15, "change the contrast by up to P"),
        ("--bias", 0.2, "let brightness fall across slices by up to P"),
        ("--noise", 0.04, "add noise of up to P"),
    ):
        how.add_argument(name, type=float, default=default, metavar="P", help=f"{what} (default {default:g})")
    how.add_argument(
        "--memory", type=amount, default=4 * 10**9, metavar="SIZE", help="what a batch may take (default 4G)"
    )
    how.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="learning rate (default 0.005 with muon; with adam 0.0016, or 0.003 above 96 pixels)",
    )
    how.add_argument(
        "--fall",
        metavar="HOW",
        help="how the rate falls to 2e-5: exponential or linear (default exponential; linear above 96 pixels)",
    )
    how.add_argument(
        "--betas",
        type=float,
        nargs=2,
        metavar="B",
        help="betas of the optimizer (default 0.9 0.99; with adam 0.5 0.5 up to 96 pixels)",
    )
    how.add_argument("--optimizer", metavar="NAME", help="adam or muon (default adam; muon above 96 pixels)")
    how.add_argument(
        "--keep",
        default="best",
        metavar="WHICH",
        help="ship the weights that did best on what validates, or the last, in which that has no say (default best)",
    )
    how.add_argument(
        "--loss",
        help="dice, bce, dice_bce, slice_dice_bce (each slice's own Dice) or dice_focal (default dice_bce; "
        "slice_dice_bce above 96 pixels)",
    )
    how.add_argument(
        "--small-first",
        action=argparse.BooleanOptionalAction,
        help="draw slices with little of the label more often (default off; on above 96 pixels)",
    )
    how.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of everything (default 0)")
    how.add_argument("--threads", type=whole, metavar="N", help=THREADS)
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted training stopped, with its options",
    )
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MODEL", help="the model file to write (.safetensors)"
    )
    add_overwrite(command, "begin another training anew, and replace files that pynca did not write")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from ..cases import files_of_cases, find_cases, read_dataset
    from ..config import thread_count
    from ..files import locked
    from ..model import Card
    from ..progress import Progress
    from ..training.dataset import preparation_for, split
    from ..training.recipe import Recipe
    from ..training.sampling import Augmentation
    from ..training.state import LOG, STATE, State
    from ..training.train import draw_curve, train

    output = arguments.output
    folder = output.with_name(output.stem + ".training")
    if output.suffix != ".safetensors":
        raise WrongUse(f"{output}: the name of a model file must end in .safetensors")
    if arguments.resume and not (folder / STATE).exists():
        raise WrongUse(f"{folder} holds no training to go on with; leave --resume out to start one")
    if folder.exists() and not folder.is_dir():
        raise WrongUse(f"{folder} is a file; state and log of the training need a folder of that name")
    curve = folder / "curve.png"

    def check_folder() -> None:
        there = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
        if there and not (arguments.resume or arguments.overwrite):
            raise WrongUse(
                f"{folder} holds another training; give --resume to go on with it, or --overwrite to begin anew"
            )

    check_folder()
    try:
        thread_count(arguments.threads)
        if arguments.dataset is not None:
            dataset = read_dataset(arguments.dataset, arguments.group_by)
        elif arguments.images is not None and arguments.labels is not None:
            dataset = find_cases(arguments.images, arguments.labels, arguments.group_by)
        else:
            raise WrongUse("give --images and --labels, or --dataset")
        cases, validation = split(dataset, arguments.validation)
        preparation = preparation_for(
            cases[0],
            size=arguments.size,
            orientation=arguments.orientation,
            axis=arguments.axis,
            spacing=arguments.spacing,
            percentiles=arguments.percentiles,
            shrink=arguments.shrink,
        )
        chosen = {name: getattr(arguments, name) for name in _CHOSEN}
        chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items() if v is not None}
        chosen |= {
            "keep": arguments.keep,
            "seed": arguments.seed,
            "augmentation": Augmentation(**{f.name: getattr(arguments, f.name) for f in fields(Augmentation)}),
        }
        if arguments.published:
            recipe = Recipe.published(**chosen)
        else:
            recipe = Recipe.for_size(preparation.size, arguments.memory, **chosen)
        recipe.check_size(preparation.size)
        for name in ("epochs", "minutes"):
            value = getattr(arguments, name)
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"--{name} is {value:g}; it must be a number above 0")
    except (ValueError, OSError) as error:
        raise WrongUse(sentence(error)) from None
    inputs = files_of_cases(dataset.cases)
    inputs += [arguments.dataset / "dataset.json"] if arguments.dataset is not None else []
    inputs += [path for path in [Path(arguments.validation)] if path.is_file()]
    check_outputs([output], overwrite=arguments.overwrite, inputs=inputs)
    check_outputs([curve], overwrite=arguments.overwrite, inputs=inputs, parents=True)
    check_outputs([folder / STATE], overwrite=arguments.overwrite or arguments.resume, inputs=inputs, parents=True)

    def busy() -> None:
        raise WrongUse(f"another run trains in {folder}; wait for it, or give another -o")

    def report(entry: dict[str, float]) -> None:
        if not arguments.quiet:
            bar.erase()
            show(*_reached(entry).split("\n"))

    def tick(state: State, recipe: Recipe) -> None:
        label = f"batch {state.batch}/{recipe.batches}: loss {state.smooth_loss:.3f}"
        if math.isfinite(state.best_score):  # it is measured, and was
            label += f", best Dice {state.best_score:.3f}"
        bar.show(state.batch / recipe.batches, label)

    if not arguments.quiet and not arguments.resume:
        show(_plan(recipe, preparation.size, preparation.shrink))
    with locked(folder, busy), Progress(1, "reading", enabled=not arguments.quiet) as bar:
        check_folder()  # again: another run may just have ended
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
                modality=arguments.modality,
                licence=arguments.licence,
                training_data=arguments.training_data,
                citation=arguments.citation,
            ),
            epochs=40 if arguments.epochs is None and arguments.minutes is None else arguments.epochs,
            minutes=arguments.minutes,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            threads=arguments.threads,
            report=report,
            tick=tick,
        )
    outcome.model.save(output, overwrite=arguments.overwrite)
    if not arguments.quiet:
        show(f"{output}: {outcome.model.parameters} parameters; {outcome.model.card.accuracy}")
    try:
        draw_curve(folder / LOG, curve, overwrite=arguments.overwrite)
    except ModuleNotFoundError:
        complain("pynca: no learning curve was drawn; it needs `pip install '.[plot]'`")
    return DONE


def _reached(entry: dict[str, float]) -> str:
    """Say how far the training has come, and whether it had to go back."""
    dice = "not measured" if math.isnan(entry["score"]) else f"{entry['score']:.4f}"
    line = (
        f"batch {entry['batch']:.0f}: loss {entry['loss']:.4f}, validation Dice {dice}, "
        f"rate {entry['rate']:.2g}, {entry['seconds'] / 60:.1f} min"
    )
    return line + "\nit failed there, and goes on from its best weights, at half the rate" * bool(entry["failed"])


def _plan(recipe: Recipe, size: tuple[int, int], shrink: str) -> str:
    """Say what will be trained, for those who left the choice to pynca."""
    from ..memory import megabytes

    levels = ", ".join(f"{scale} ({steps} steps)" for scale, steps in zip(recipe.scales, recipe.steps, strict=True))
    rows, columns = recipe.patch
    return (
        f"slices of {size[0]} x {size[1]}; levels of scale {levels}, {shrink}; {recipe.channels} channels, hidden "
        f"{recipe.hidden}; batches of {recipe.batch} slices with patches of {rows} x {columns}, about "
        f"{megabytes(recipe.bytes_of_batch(size))}"
    )
