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
    command.add_argument("-m", "--model", type=Path, required=True, help="a model file (.safetensors)")
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
    command.add_argument("model", metavar="MODEL", type=Path, nargs="?", help="a model file (.safetensors)")
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
        if not arguments.model.exists():
            raise _WrongUse(f"{arguments.model} does not exist; -m takes a model file")
    except ValueError as error:
        raise _WrongUse(str(error)) from None
    model = load_model(arguments.model)
    quiet = arguments.quiet or arguments.json
    failed = 0
    with Progress(len(cases), enabled=not quiet) as bar:
        for source, mask, probability in cases:
            bar.advance(0, label=source.name)
            try:
                report = _segment_case(source, mask, probability, model, arguments, threads)
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
    source: Path, mask: Path, probability: Path | None, model: Model, arguments: argparse.Namespace, threads: int
) -> dict[str, object]:
    """Segment one file, write what was asked for, and return what to say of it."""
    import numpy as np

    from .segmentation import predict

    start = time.perf_counter()
    result = predict(source, model, seed=arguments.seed, samples=arguments.samples, threads=threads)
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


def _info(arguments: argparse.Namespace) -> int:
    from .config import show_config
    from .model import load_model

    if arguments.model is None:
        try:
            show_config()
        except ValueError as error:  # an environment variable
            raise _WrongUse(str(error)) from None
        return DONE
    if not arguments.model.exists():
        raise _WrongUse(f"{arguments.model} does not exist; MODEL is a model file (.safetensors)")
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
