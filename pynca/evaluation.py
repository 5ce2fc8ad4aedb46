"""Measure a model on images with labels: one row a case, and a summary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import printable
from .metrics import bootstrap_interval, hard_dice, hd95, soft_dice, volume_error
from .model import Model
from .segmentation import predict, sized
from .tables import write_table
from .volumes import Volume, read_label, read_volume

COLUMNS = {
    "hard_dice": "hard Dice",
    "soft_dice": "soft Dice (as in Med-NCA's code)",
    "hd95": "HD95, mm",
    "volume_error": "volume error",
}


@dataclass(frozen=True)
class Score:
    """The metrics of one case, in its own voxels; `pynca.metrics` defines them.

    ``voxels``, ``label_voxels`` and ``common_voxels`` count the mask, the label and what they share, so that the Dice
    of a patient can be told from all of the patient's images.
    """

    name: str
    hard_dice: float
    soft_dice: float
    hd95: float
    volume_error: float
    patient: str = ""
    voxels: int = 0
    label_voxels: int = 0
    common_voxels: int = 0


def score_case(model: Model, image: Volume, label: Volume, name: str, *, patient: str = "", seed: int = 0,
               samples: int = 1, threads: int | None = None) -> Score:  # fmt: skip
    """Segment one image and compare with its label, all of whose values above 0 count.

    Raises
    ------
    ValueError
        The label has another shape, or lies elsewhere; or the image is a film.
    """
    if image.data.ndim > 3:
        raise ValueError(
            f"{image.name} is a film of {image.data.shape[3]} frames; `score_frames` scores each by itself"
        )
    check_pair(image, label)
    result = predict(image, model, seed=seed, samples=samples, threads=threads)
    mask, truth = result.mask > 0, label.data > 0
    place = result.volume
    assert place is not None
    if place.affine is not None:
        distance = hd95(mask, truth, affine=place.affine)
    else:
        assert place.spacing is not None  # the image's own, or the model's
        distance = hd95(mask, truth, place.spacing)
    return Score(
        name,
        hard_dice(mask, truth),
        soft_dice(result.probability, truth),
        distance,
        volume_error(mask, truth),
        patient or name,
        int(mask.sum()),
        int(truth.sum()),
        int((mask & truth).sum()),
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
    patient: str = "",
    seed: int = 0,
    samples: int = 1,
    threads: int | None = None,
) -> Score:
    """`score_case` of two files; a picture's pixels count as large as the model's."""
    return score_case(
        model,
        sized(read_volume(image), model),
        read_label(label),
        os.path.basename(image),
        patient=patient,
        seed=seed,
        samples=samples,
        threads=threads,
    )


def score_frames(
    model: Model,
    image: str | os.PathLike[str],
    label: str | os.PathLike[str],
    *,
    patient: str = "",
    seed: int = 0,
    samples: int = 1,
    threads: int | None = None,
) -> list[Score]:
    """`score_file` of each frame of a film, counted from 0; of anything else, of itself."""
    film, truth, name = (
        sized(read_volume(image, volume="all"), model),
        read_label(label, volume="all"),
        Path(image).name,
    )
    check_pair(film, truth)
    parts = [(name, film, truth)]
    if film.data.ndim > 3:
        parts = [(f"{name}, frame {n}", _frame(film, n), _frame(truth, n)) for n in range(film.data.shape[3])]
    options: dict[str, Any] = {"patient": patient or name, "seed": seed, "samples": samples, "threads": threads}
    return [score_case(model, one, its_label, title, **options) for title, one, its_label in parts]


def _frame(film: Volume, n: int) -> Volume:
    return replace(film, data=film.data[..., n])


def patient_dice(scores: Sequence[Score]) -> dict[str, float]:
    """Return the hard Dice of each patient, all images of one taken together."""
    counts: dict[str, tuple[int, int]] = {}
    for score in scores:
        common, total = counts.get(score.patient, (0, 0))
        counts[score.patient] = common + score.common_voxels, total + score.voxels + score.label_voxels
    return {patient: 2.0 * common / total if total else 1.0 for patient, (common, total) in counts.items()}


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
    by_patient = list(patient_dice(scores).values())
    if len(by_patient) < len(scores):
        low, high = bootstrap_interval(np.array(by_patient))
        lines.append(
            f"{'hard Dice of a patient':34} {np.mean(by_patient):8.4f} {np.std(by_patient):7.4f}  "
            f"{f'{low:.4f} to {high:.4f}':25} {min(by_patient):8.4f} {max(by_patient):8.4f}  {len(by_patient)}"
        )
        dice = np.array([score.hard_dice for score in scores])
        low_share = 100 * np.mean(dice < 0.5)
        lines.append(f"hard Dice of an image: median {np.median(dice):.4f}, under 0.5 {low_share:.1f} %")
    return "\n".join(lines)


def group_names(patients: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each patient, as `group_table` finds it and with its errors."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    groups = []
    for patient in patients:
        found = expression.search(patient)
        if found is None:
            raise ValueError(f"{pattern!r} is not found in {patient}; it must find the group in every name")
        groups.append(found[1] if expression.groups else found[0])
    return groups


def group_table(scores: Sequence[Score], pattern: str) -> str:
    """Return a line for each group of patients, such as those with one disease.

    Parameters
    ----------
    scores : sequence of Score
    pattern : str
        Regular expression that finds the group in a patient's name: its first group, or all that it matches.

    Raises
    ------
    ValueError
        The pattern is no regular expression, or is not found in a patient's name.
    """
    groups: dict[str, list[Score]] = {}
    for score, group in zip(scores, group_names([score.patient for score in scores], pattern), strict=True):
        groups.setdefault(group, []).append(score)
    lines = [f"{'':14} patients  Dice of a patient     images  mean Dice  median  under 0.5  HD95, mm"]
    for name, members in sorted(groups.items()):
        of_patients = list(patient_dice(members).values())
        dice = np.array([score.hard_dice for score in members])
        distances = np.array([score.hd95 for score in members])
        distance = f"{distances[np.isfinite(distances)].mean():8.2f}" if np.isfinite(distances).any() else ""
        lines.append(
            f"{printable(name):14} {len(of_patients):8}  {np.mean(of_patients):.4f} +- {np.std(of_patients):.4f}  "
            f"{len(members):9} {dice.mean():10.4f} {np.median(dice):7.4f} {100 * np.mean(dice < 0.5):8.1f} %  "
            f"{distance}"
        )
    return "\n".join(lines)


def write_csv(
    path: str | os.PathLike[str],
    scores: Sequence[Score],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write one row a case, whole or not at all.

    Parameters
    ----------
    path : str or path-like
    scores : sequence of Score
    overwrite, inputs
        As of `pynca.files.check_writable`.

    Raises
    ------
    OSError, ValueError
        As `pynca.tables.write_table`.
    """
    columns = [f.name for f in fields(Score)]
    rows = [list(asdict(score).values()) for score in scores]
    write_table(path, columns, rows, overwrite=overwrite, inputs=inputs, digits=6)
