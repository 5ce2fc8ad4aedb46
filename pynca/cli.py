"""The `pynca` command: parses, calls the package, prints.

Exit codes: 0 done, 1 a case failed or was refused, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from .model import Model

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_MODEL = "a bundled model or a model file (default: hippocampus)"


class _WrongUse(Exception):
    """An argument that cannot be right, as one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        try:
            if isinstance(sys.stdout, io.TextIOWrapper):  # names of files can hold bytes that are no text
                sys.stdout.reconfigure(errors="backslashreplace")
            arguments = _parser().parse_args(argv)
            warnings.showwarning = _print_warning
            code: int = arguments.run(arguments)
            return code
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: `pynca info | head -1`
        _silence()
        return DONE
    except _WrongUse as error:
        return _fail(error, WRONG_USE)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pynca",
        description="Segment medical images with Neural Cellular Automata (Med-NCA), on any CPU.",
        epilog="Exit codes: 0 done, 1 a file failed, 2 wrong use, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "segment",
        help="segment a NIfTI file, or a folder of them",
        description="Segment IN, a .nii or .nii.gz file or a folder of them, and write masks with its geometry.",
        epilog="A folder is worked through to the end even if a file fails; the exit code is then 1.",
    )
    command.add_argument("input", metavar="IN", type=Path, help="a .nii or .nii.gz file, or a folder of them")
    command.add_argument("output", metavar="OUT", type=Path, help="the mask to write; a folder where IN is one")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=_MODEL)
    command.add_argument(
        "--samples", type=_whole, default=1, metavar="N", help="average N runs and print how much they agree (NQM)"
    )
    command.add_argument("--seed", type=_whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    command.add_argument(
        "--threads", type=_whole, metavar="N", help="threads (default: PYNCA_NUM_THREADS, else all usable CPUs)"
    )
    command.add_argument(
        "--save-probability", type=Path, metavar="FILE", help="also write the probability; a folder where IN is one"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a file instead of text")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=_segment)

    command = commands.add_parser(
        "info",
        help="describe a model file, or this installation",
        description="Print what a model file says of itself; without MODEL, the version, instruction set and threads.",
    )
    command.add_argument(
        "model", metavar="MODEL", type=Path, nargs="?", help="a bundled model or a model file (.safetensors)"
    )
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "import",
        help="make a model file from a Med-NCA checkpoint",
        description="Make a model file from weights that the papers' code trained: the folder that it wrote "
        "(config.dt, models/epoch_N/model0.pth and model1.pth), or the .pth files themselves, coarse level first, "
        "with their configuration as options. No code in the files is run.",
    )
    command.add_argument("source", metavar="SOURCE", type=Path, nargs="+", help="the folder, or one or two .pth files")
    command.add_argument("-o", "--output", type=Path, required=True, help="the model file to write (.safetensors)")
    command.add_argument("--epoch", type=_whole, metavar="N", help="epoch to read from a folder (default: the newest)")
    command.add_argument("--steps", type=_whole, nargs="+", metavar="N", help="steps of all levels, or of each")
    command.add_argument("--fire-rate", type=float, metavar="P", help="probability that a cell updates in a step")
    command.add_argument("--size", type=_whole, nargs=2, metavar=("ROWS", "COLUMNS"), help="size of a prepared slice")
    command.add_argument("--scale", type=_whole, metavar="N", help="cell of the coarse level in fine pixels")
    command.add_argument(
        "--orientation", default="RAS", metavar="CODE", help="directions of the training volumes' axes (default RAS)"
    )
    command.add_argument("--axis", type=_whole, default=2, metavar="N", help="axis they were sliced along (default 2)")
    command.add_argument("--label", metavar="NAME", help="what the model segments, such as hippocampus")
    command.add_argument("--licence", default="", help="licence of the weights, for the model's card")
    command.add_argument("--training-data", default="", help="what they were trained on, for the model's card")
    command.add_argument("--citation", default="", help="how to cite them, for the model's card")
    command.set_defaults(run=_import)

    command = commands.add_parser(
        "demo",
        help="try it on a phantom, without any data",
        description="Make a phantom of a hippocampus, segment it with the bundled model, and write phantom, mask and a "
        "picture to a folder.",
    )
    command.add_argument(
        "-o", "--output", type=Path, default=Path("pynca-demo"), metavar="DIR", help="folder (default pynca-demo)"
    )
    command.add_argument("--threads", type=_whole, metavar="N", help="threads (default: all usable CPUs)")
    command.set_defaults(run=_demo)

    command = commands.add_parser(
        "evaluate",
        help="measure a model on images with labels",
        description="Segment every image of a folder and compare with the label of the same name, in the image's own "
        "voxels: hard Dice, soft Dice as Med-NCA's code computes it, 95 %% Hausdorff distance and volume error, with "
        "mean, standard deviation and the bootstrap interval of the mean.",
    )
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of .nii or .nii.gz images")
    command.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of labels of the same names")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=_MODEL)
    command.add_argument("--cases", type=Path, metavar="FILE", help="only the label files named in this text file")
    command.add_argument("-o", "--output", type=Path, metavar="CSV", help="also write one row a case")
    command.add_argument("--samples", type=_whole, default=1, metavar="N", help="average N runs (default 1)")
    command.add_argument("--seed", type=_whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    command.add_argument("--threads", type=_whole, metavar="N", help="threads (default: all usable CPUs)")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser(
        "train",
        help="train a model on images with labels",
        description="Train a two-level Med-NCA. Every label value above 0 counts as the label. State, log.jsonl and "
        "learning curve go to a folder beside MODEL; an interrupted training goes on with --resume at the same point. "
        "The same seed gives the same weights on the same instruction set.",
    )
    source = command.add_argument_group("cases")
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of .nii or .nii.gz images")
    source.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels of the same names")
    source.add_argument("--dataset", type=Path, metavar="DIR", help="instead: dataset.json, imagesTr, labelsTr")
    source.add_argument(
        "--validation", default="0.2", metavar="WHAT", help="a share, a text file of label names, or none (default 0.2)"
    )
    size = command.add_argument_group("model")
    size.add_argument("--channels", type=_whole, default=32, metavar="N", help="channels of a cell (default 32)")
    size.add_argument("--hidden", type=_whole, default=128, metavar="N", help="hidden units (default 128)")
    size.add_argument("--steps", type=_whole, nargs=2, default=(16, 16), metavar="N", help="coarse, fine steps (16)")
    size.add_argument(
        "--size", type=_whole, nargs=2, default=(64, 64), metavar="N", help="rows, columns of a slice (64)"
    )
    size.add_argument("--orientation", default="RAS", metavar="CODE", help="orientation to learn in (default RAS)")
    size.add_argument("--axis", type=_whole, default=2, metavar="N", help="axis to slice along (default 2)")
    size.add_argument("--label", default="foreground", metavar="NAME", help="what the model segments")
    for name, what in (
        ("--description", "what the model is for"),
        ("--licence", "licence of the weights"),
        ("--training-data", "what it was trained on"),
        ("--citation", "how to cite it"),
    ):
        size.add_argument(name, default="", metavar="TEXT", help=f"{what}, for the card")
    how = command.add_argument_group("training")
    length = how.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, metavar="N", help="passes through all slices (default 40)")
    length.add_argument("--minutes", type=float, metavar="N", help="as many batches as fit into this time")
    how.add_argument(
        "--published",
        action="store_true",
        help="batch, patch and decay of the authors' configuration: 40, 16 x 16, 0.9999 a batch",
    )
    how.add_argument("--batch", type=_whole, metavar="N", help="slices in a batch (default 16)")
    how.add_argument("--patch", type=_whole, nargs=2, metavar="N", help="patch of the fine level (default 32 32)")
    how.add_argument("--rate", type=float, default=1.6e-3, metavar="R", help="learning rate (default 0.0016)")
    how.add_argument("--betas", type=float, nargs=2, default=(0.5, 0.5), metavar="B", help="of Adam (default 0.5 0.5)")
    how.add_argument("--loss", default="dice_bce", help="dice, bce, dice_bce (default) or dice_focal")
    how.add_argument("--seed", type=_whole, default=0, metavar="S", help="seed of everything (default 0)")
    how.add_argument("--threads", type=_whole, metavar="N", help="threads (default: all usable CPUs)")
    how.add_argument("--resume", action="store_true", help="go on where an interrupted training stopped")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="model file (.safetensors)")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=_train)
    return parser


def _segment(arguments: argparse.Namespace) -> int:
    from . import _core
    from .config import thread_count
    from .model import load_model
    from .progress import Progress
    from .rule import whole_number

    try:
        threads = thread_count(arguments.threads)
        _core.isa()
        whole_number(arguments.samples, "--samples", 1, _core.MAX_SAMPLES)
        whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        cases = _cases(arguments.input, arguments.output, arguments.save_probability)
        _check_model(arguments.model)
    except ValueError as error:
        raise _WrongUse(str(error)) from None
    model = load_model(arguments.model)
    quiet = arguments.quiet or arguments.json
    failed = 0
    alone = len(cases) == 1 and not quiet  # then the bar counts slices, else files
    with Progress(len(cases), enabled=not quiet and not alone) as bar:
        for source, mask, probability in cases:
            bar.advance(0, label=source.name)
            try:
                report = _segment_case(source, mask, probability, model, arguments, threads, progress=alone)
            except (ValueError, OSError, MemoryError) as error:
                failed += 1
                bar.erase()
                _fail(error, FAILED, source)
                report = {"input": str(source), "error": _sentence(error)}
            else:
                if not quiet:
                    bar.erase()
                    _print(_line(report))
            if arguments.json:
                _print(json.dumps(report))
            bar.advance()
    if failed and len(cases) > 1:
        print(f"pynca: {failed} of {len(cases)} files failed", file=sys.stderr)
    return FAILED if failed else DONE


def _segment_case(
    source: Path,
    mask: Path,
    probability: Path | None,
    model: Model,
    arguments: argparse.Namespace,
    threads: int,
    *,
    progress: bool,
) -> dict[str, object]:
    """Segment one file, write what was asked for, and return what to say of it."""
    import numpy as np

    from .segmentation import predict

    start = time.perf_counter()
    result = predict(source, model, seed=arguments.seed, samples=arguments.samples, threads=threads, progress=progress)
    for path in (mask, probability):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if probability is not None:
        result.save_probability(probability)
    result.save(mask)
    assert result.volume is not None
    voxels = int(np.count_nonzero(result.mask))
    report: dict[str, object] = {
        "input": str(source),
        "output": str(mask),
        "label": next(iter(model.labels.values())),
        "voxels": voxels,
        "volume_ml": round(voxels * float(abs(np.linalg.det(result.volume.affine[:3, :3]))) / 1000, 4),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if result.nqm is not None:
        report["nqm"] = None if np.isnan(result.nqm) else round(result.nqm, 5)
    return report


def _line(report: dict[str, object]) -> str:
    line = (
        f"{report['output']}: {_plain(str(report['label']))} {report['volume_ml']:.3f} ml ({report['voxels']} voxels)"
    )
    if report["voxels"] == 0:
        line += ", nothing found"
    if report.get("nqm") is not None:
        line += f", NQM {report['nqm']:.4f}"
    return f"{line}, {report['seconds']:.2f} s"


def _cases(source: Path, output: Path, probability: Path | None) -> list[tuple[Path, Path, Path | None]]:
    """Pair each input with its outputs, and refuse what would overwrite an input or cannot be written."""
    from .volumes import is_volume_path

    if source.is_dir():
        names = sorted(p.name for p in source.iterdir() if is_volume_path(p))
        if not names:
            raise _WrongUse(f"{source} holds no .nii or .nii.gz file")
        for folder in (output, probability):
            if folder is None:
                continue
            if folder.exists() and not folder.is_dir():
                raise _WrongUse(f"{folder} is a file; for a folder of volumes it must be a folder")
            if is_volume_path(folder):
                raise _WrongUse(f"{folder} is named like a file; for a folder of volumes it must be a folder")
            if folder.resolve() == source.resolve():
                raise _WrongUse(f"{folder} is the folder of the inputs; masks would overwrite them, choose another")
        cases = [(source / n, output / n, None if probability is None else probability / n) for n in names]
    else:
        if not source.exists():
            raise _WrongUse(f"{source} does not exist; IN is a .nii or .nii.gz file, or a folder of them")
        if output.is_dir():
            output = output / source.name
        for path in (output, probability):
            if path is not None and not is_volume_path(path):
                raise _WrongUse(f"{path} must end in .nii or .nii.gz")
        cases = [(source, output, probability)]
    for path, mask, extra in cases:
        written = [p.resolve() for p in (mask, extra) if p is not None]
        if path.resolve() in written:
            raise _WrongUse(f"{path} would be overwritten; choose another OUT")
        if len(set(written)) < len(written):
            raise _WrongUse(f"{mask} is named twice; mask and probability need a file each")
    return cases


def _check_model(model: Path) -> None:
    from . import zoo

    if zoo.find(str(model)) is None and not model.exists():
        raise _WrongUse(f"{model} does not exist; bundled models are {', '.join(zoo.names())}, others are files")


def _info(arguments: argparse.Namespace) -> int:
    from .config import show_config
    from .model import load_model

    if arguments.model is None:
        try:
            show_config()
        except ValueError as error:  # an environment variable
            raise _WrongUse(str(error)) from None
        return DONE
    _check_model(arguments.model)
    _print(_described(load_model(arguments.model)))
    return DONE


def _described(model: Model) -> str:
    preparation, card = model.preparation, model.card
    rows = {
        "name": card.name,
        "description": card.description,
        "labels": ", ".join(f"{value} = {name}" for value, name in model.labels.items()),
        "input": f"{model.input_channels} channel, axes towards {preparation.orientation}, sliced along axis "
        f"{preparation.axis}, {' x '.join(f'{mm:g}' for mm in preparation.spacing)} mm, slices stretched to "
        f"{preparation.size[0]} x {preparation.size[1]}",
        "threshold": f"{model.threshold:g}",
        "parameters": f"{model.parameters}",
    }
    for n, level in enumerate(model.levels):
        rule = level.rule
        rows[f"level {n}"] = (
            f"scale {level.scale}, {level.steps} steps, {rule.perception} {rule.kernel_size}x{rule.kernel_size}, "
            f"{rule.channels} channels, hidden {rule.hidden}, fire rate {rule.fire_rate:g}, {rule.padding} padding"
        )
    rows |= {
        "licence": card.licence,
        "training data": card.training_data,
        "citation": card.citation,
        "accuracy": card.accuracy,
        "source": card.source,
    }
    return "\n".join(f"{name:14} {_plain(value) or 'not stated'}" for name, value in rows.items())


def _import(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from .checkpoints import import_checkpoint

    if arguments.output.suffix != ".safetensors":
        raise _WrongUse(f"{arguments.output}: the name of a model file must end in .safetensors")
    missing = [p for p in arguments.source if not p.exists()]
    if missing:
        raise _WrongUse(f"{missing[0]} does not exist; SOURCE is a checkpoint's folder, or its .pth files")
    steps = arguments.steps
    model = import_checkpoint(
        arguments.source[0] if len(arguments.source) == 1 else arguments.source,
        epoch=arguments.epoch,
        steps=steps[0] if steps is not None and len(steps) == 1 else steps,
        fire_rate=arguments.fire_rate,
        size=None if arguments.size is None else (arguments.size[0], arguments.size[1]),
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
    replace(model, card=card).save(arguments.output)
    size = arguments.output.stat().st_size
    _print(f"{arguments.output}: {len(model.levels)} levels, {model.parameters} parameters, {size / 1000:.0f} kB")
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    if arguments.output.exists() and not arguments.output.is_dir():
        raise _WrongUse(f"{arguments.output} is a file; -o takes a folder")
    demo = run_demo(arguments.output, threads=arguments.threads)
    print(f"made a phantom, a T1 crop around a hippocampus: {demo.phantom}")
    print(f"segmented it in {demo.seconds:.2f} s, {demo.volume_ml:.2f} ml: {demo.mask}")
    print(f"drew mask (orange) and the phantom's own outline (blue), Dice {demo.dice:.2f}: {demo.preview}")
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from .cases import find_cases, only
    from .evaluation import score_file, table, write_csv
    from .model import load_model
    from .progress import Progress

    _check_model(arguments.model)
    try:
        cases = find_cases(arguments.images, arguments.labels).cases
        if arguments.cases is not None:
            cases = only(cases, arguments.cases)
    except (ValueError, OSError) as error:
        raise _WrongUse(_sentence(error)) from None
    model = load_model(arguments.model)
    scores, failed = [], 0
    options = {"seed": arguments.seed, "samples": arguments.samples, "threads": arguments.threads}
    with Progress(len(cases), "evaluating") as bar:
        for case in cases:
            try:
                scores.append(score_file(model, case.image, case.label, **options))
            except (ValueError, OSError, MemoryError) as error:
                failed += 1
                bar.erase()
                _fail(error, FAILED, case.image)
            bar.advance()
    if arguments.output is not None:
        write_csv(arguments.output, scores)
    print(table(scores))
    return FAILED if failed else DONE


def _train(arguments: argparse.Namespace) -> int:
    from .cases import find_cases, read_dataset
    from .model import Card
    from .preprocessing import Preparation
    from .progress import Progress
    from .training.dataset import split
    from .training.fit import LOG, STATE, Recipe, State
    from .training.train import draw_curve, train

    output = arguments.output
    folder = output.with_name(output.stem + ".training")
    if output.suffix != ".safetensors":
        raise _WrongUse(f"{output}: the name of a model file must end in .safetensors")
    if arguments.resume and not (folder / STATE).exists():
        raise _WrongUse(f"{folder} holds no training to go on with; leave --resume out to start one")
    if not arguments.resume and folder.exists():
        raise _WrongUse(f"{folder} holds another training; give --resume to go on with it, or remove it")
    try:
        if arguments.dataset is not None:
            dataset = read_dataset(arguments.dataset)
        elif arguments.images is not None and arguments.labels is not None:
            dataset = find_cases(arguments.images, arguments.labels)
        else:
            raise _WrongUse("give --images and --labels, or --dataset")
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
        raise _WrongUse(_sentence(error)) from None

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


class _Version(argparse.Action):
    """Print the version; the core that knows it is loaded only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        from . import __version__

        print(f"pynca {__version__}")
        parser.exit(DONE)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _sentence(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(error: object, code: int, source: Path | None = None) -> int:
    sentence = _sentence(error)
    if source is not None and str(source) not in sentence:
        sentence = f"{source}: {sentence}"
    print(f"pynca: {sentence}", file=sys.stderr)
    return code


def _plain(text: str) -> str:
    """Return text of a model file on one line, without what would command a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _print(text: str) -> None:
    """Print to standard output; where its reader has gone (`pynca segment ... | head -1`), go on without."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _silence()


def _silence() -> None:
    """Send standard output nowhere, so that what is left in its buffer raises no error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    start = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""  # over a progress bar
    print(f"{start}pynca: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
