"""Measure a model on images with labels: one row a case, and a summary."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from .files import atomic_path
from .metrics import bootstrap_interval, hard_dice, hd95, soft_dice, volume_error
from .model import Model
from .segmentation import predict
from .volumes import Volume, read_volume

COLUMNS = {
    "hard_dice": "hard Dice",
    "soft_dice": "soft Dice (as in Med-NCA's code)",
    "hd95": "HD95, mm",
    "volume_error": "volume error",
}


@dataclass(frozen=True)
class Score:
    """The metrics of one case, in its own voxels; `pynca.metrics` defines them."""

    name: str
    hard_dice: float
    soft_dice: float
    hd95: float
    volume_error: float


def score_case(model: Model, image: Volume, label: Volume, name: str, *, seed: int = 0, samples: int = 1,
               threads: int | None = None) -> Score:  # fmt: skip
    """Segment one image and compare with its label, all of whose values above 0 count.

    Raises
    ------
    ValueError
        The label has another shape, or lies elsewhere.
    """
    check_pair(image, label)
    result = predict(image, model, seed=seed, samples=samples, threads=threads)
    mask, truth = result.mask > 0, label.data > 0
    spacing = result.volume.voxel_size if result.volume is not None else None
    assert spacing is not None  # the image's own, or the model's
    return Score(
        name,
        hard_dice(mask, truth),
        soft_dice(result.probability, truth),
        hd95(mask, truth, spacing),
        volume_error(mask, truth),
    )


def check_pair(image: Volume, label: Volume) -> None:
    """Refuse a label that is not of its image.

    Raises
    ------
    ValueError
        The label has another shape, or lies elsewhere.
    """
    if label.data.shape != image.data.shape:
        raise ValueError(f"{label.name} has shape {label.data.shape}, but its image {image.data.shape}")
    if not label.lies_with(image):
        raise ValueError(f"{label.name} lies elsewhere than its image {image.name}: their affines differ")


def score_file(
    model: Model,
    image: str | os.PathLike[str],
    label: str | os.PathLike[str],
    *,
    seed: int = 0,
    samples: int = 1,
    threads: int | None = None,
) -> Score:
    """`score_case` of two files."""
    volume = read_volume(image)
    name = os.path.basename(image)
    return score_case(model, volume, read_volume(label), name, seed=seed, samples=samples, threads=threads)


def summary(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, 95 % bootstrap interval of the mean, least and largest of each metric.

    Cases where a metric is not defined (volume error of an empty label, HD95 where one side is empty) are
    left out of it, and ``count`` says how many there were.
    """
    result: dict[str, dict[str, float]] = {}
    for column in COLUMNS:
        values = np.array([getattr(score, column) for score in scores])
        values = values[np.isfinite(values)]
        if not len(values):
            result[column] = {"count": 0}
            continue
        low, high = bootstrap_interval(values)
        result[column] = {
            "count": len(values),
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "low": low,
            "high": high,
            "least": float(values.min()),
            "largest": float(values.max()),
        }
    return result


def table(scores: Sequence[Score]) -> str:
    """Return the summary as lines of text."""
    lines = [f"{'':34} {'mean':>8} {'sd':>7}  {'95 % interval of the mean':25} {'least':>8} {'largest':>8}  n"]
    for column, row in summary(scores).items():
        if row["count"]:
            interval = f"{row['low']:.4f} to {row['high']:.4f}"
            lines.append(
                f"{COLUMNS[column]:34} {row['mean']:8.4f} {row['sd']:7.4f}  {interval:25} "
                f"{row['least']:8.4f} {row['largest']:8.4f}  {row['count']:.0f}"
            )
    return "\n".join(lines)


def write_csv(path: str | os.PathLike[str], scores: Sequence[Score]) -> None:
    """Write one row a case, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in fields(Score)])
    for score in scores:
        row = asdict(score)
        writer.writerow([row.pop("name"), *("" if math.isnan(v) else f"{v:.6f}" for v in row.values())])
    with atomic_path(path) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")
