"""`pynca segment`: a file, or a folder of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, FAILED, MODEL, WrongUse, check_model, fail, plain, sentence, show, whole

if TYPE_CHECKING:
    from ..model import Model
    from .common import Commands

    Outputs = tuple[Path, Path | None, Path | None]  # mask, probability, uncertainty


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "segment",
        help="segment an image, or a folder of them",
        description="Segment IN, an image or a folder of them, and write masks with its geometry. Images are NIfTI, "
        "DICOM series (a folder, or one of its files), PNG, TIFF, JPEG and .npy. OUT's ending says what is written: "
        ".nii, .nii.gz, .dcm (DICOM SEG), .png, .tif or .npy.",
        epilog="A folder is worked through to the end even if a file fails; the exit code is then 1.",
    )
    command.add_argument("input", metavar="IN", type=Path, help="an image, or a folder of them")
    command.add_argument("output", metavar="OUT", type=Path, help="the mask to write; a folder where IN is one")
    command.add_argument("-m", "--model", type=Path, default=Path("hippocampus"), help=MODEL)
    command.add_argument(
        "--samples", type=whole, default=1, metavar="N", help="average N runs and print how much they agree (NQM)"
    )
    command.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of the automaton (default 0)")
    command.add_argument(
        "--threads", type=whole, metavar="N", help="threads (default: PYNCA_NUM_THREADS, else all usable CPUs)"
    )
    command.add_argument(
        "--save-probability", type=Path, metavar="FILE", help="also write the probability; a folder where IN is one"
    )
    command.add_argument(
        "--save-uncertainty", type=Path, metavar="FILE", help="also write how much the runs of --samples differ"
    )
    command.add_argument(
        "--volume", type=_volume, metavar="N", help="which volume of a 4D NIfTI file, counted from 0, or all"
    )
    command.add_argument(
        "--spacing", type=_spacing, metavar="MM", help="size of a picture's pixels, as 1.4 or 1.4,1.2 for rows, columns"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a file instead of text")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import _core
    from ..config import thread_count
    from ..model import load_model
    from ..progress import Progress
    from ..rule import whole_number

    try:
        threads = thread_count(arguments.threads)
        _core.isa()
        whole_number(arguments.samples, "--samples", 1, _core.MAX_SAMPLES)
        whole_number(arguments.seed, "--seed", 0, 2**64 - 1)
        if arguments.save_uncertainty is not None and arguments.samples < 2:
            raise WrongUse("--save-uncertainty needs --samples of 2 or more")
        cases = _cases(arguments.input, arguments.output, arguments.save_probability, arguments.save_uncertainty)
        check_model(arguments.model)
    except ValueError as error:
        raise WrongUse(str(error)) from None
    model = load_model(arguments.model)
    quiet = arguments.quiet or arguments.json
    failed = 0
    alone = len(cases) == 1 and not quiet  # then the bar counts slices, else files
    with Progress(len(cases), enabled=not quiet and not alone) as bar:
        for source, outputs in cases:
            bar.advance(0, label=source.name)
            try:
                report = _segment_case(source, outputs, model, arguments, threads, progress=alone)
            except (ValueError, OSError, MemoryError, ImportError) as error:
                failed += 1
                bar.erase()
                fail(error, FAILED, source)
                report = {"input": str(source), "error": sentence(error)}
            else:
                if not quiet:
                    bar.erase()
                    show(_line(report))
            if arguments.json:
                show(json.dumps(report))
            bar.advance()
    if failed and len(cases) > 1:
        print(f"pynca: {failed} of {len(cases)} files failed", file=sys.stderr)
    return FAILED if failed else DONE


def _segment_case(
    source: Path,
    outputs: Outputs,
    model: Model,
    arguments: argparse.Namespace,
    threads: int,
    *,
    progress: bool,
) -> dict[str, object]:
    """Segment one file, write what was asked for, and return what to say of it."""
    import numpy as np

    from ..segmentation import predict
    from ..volumes import check_output, read_volume

    mask, probability, uncertainty = outputs
    start = time.perf_counter()
    volume = read_volume(source, volume=arguments.volume, spacing=arguments.spacing)
    check_output(mask, volume)
    for path in (probability, uncertainty):
        if path is not None:
            check_output(path, volume, of_map=True)
    result = predict(volume, model, seed=arguments.seed, samples=arguments.samples, threads=threads, progress=progress)
    for path in outputs:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if probability is not None:
        result.save_probability(probability)
    if uncertainty is not None:
        result.save_uncertainty(uncertainty)
    result.save(mask)
    assert result.volume is not None
    size = result.volume.voxel_volume
    voxels = int(np.count_nonzero(result.mask))
    report: dict[str, object] = {
        "input": str(source),
        "output": str(mask),
        "label": next(iter(model.labels.values())),
        "voxels": voxels,
        "volume_ml": None if size is None else round(voxels * size / 1000, 4),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if result.nqm is not None:
        report["nqm"] = None if np.isnan(result.nqm) else round(result.nqm, 5)
    return report


def _line(report: dict[str, object]) -> str:
    size = f"{report['voxels']} pixels"
    if report["volume_ml"] is not None:
        size = f"{report['volume_ml']:.3f} ml ({report['voxels']} voxels)"
    line = f"{report['output']}: {plain(str(report['label']))} {size}"
    if report["voxels"] == 0:
        line += ", nothing found"
    if report.get("nqm") is not None:
        line += f", NQM {report['nqm']:.4f}"
    return f"{line}, {report['seconds']:.2f} s"


def _volume(text: str) -> int | str:
    return text if text == "all" else whole(text)


def _spacing(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in mm, nor sizes with commas between") from None


def _cases(
    source: Path, output: Path, probability: Path | None, uncertainty: Path | None
) -> list[tuple[Path, Outputs]]:
    """Pair each input with its outputs, and refuse what would overwrite an input or cannot be written."""
    from ..volumes import check_output, inputs_in, is_volume_path, output_name

    if not source.exists():
        raise WrongUse(f"{source} does not exist; IN is an image, or a folder of them")
    if source.is_dir() and (inputs := inputs_in(source)) != [source]:
        if not inputs:
            raise WrongUse(f"{source} holds no image that pynca reads")
        for folder in (output, probability, uncertainty):
            if folder is None:
                continue
            if folder.exists() and not folder.is_dir():
                raise WrongUse(f"{folder} is a file; for a folder of volumes it must be a folder")
            if is_volume_path(folder):
                raise WrongUse(f"{folder} is named like a file; for a folder of volumes it must be a folder")
            if folder.resolve() == source.resolve():
                raise WrongUse(f"{folder} is the folder of the inputs; masks would overwrite them, choose another")
        cases = [
            (path, (output / name, probability and probability / name, uncertainty and uncertainty / name))
            for path, name in zip(inputs, map(output_name, inputs), strict=True)
        ]
    else:
        if output.is_dir():
            output = output / output_name(source)
        check_output(output, None)
        for path in (probability, uncertainty):
            if path is not None:
                check_output(path, None, of_map=True)
        cases = [(source, (output, probability, uncertainty))]
    for path, outputs in cases:
        written = [p.resolve() for p in outputs if p is not None]
        if path.resolve() in written:
            raise WrongUse(f"{path} would be overwritten; choose another OUT")
        if len(set(written)) < len(written):
            raise WrongUse(f"{outputs[0]} is named twice; mask and probability need a file each")
    return cases
