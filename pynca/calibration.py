"""Find out on cases with labels what input a model expects, and from where on its segmentations are doubtful."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, evenly
from .evaluation import check_pair
from .inputs import Range, learn_expected
from .metrics import hard_dice
from .model import Model
from .quality import Quality, area_cm2, confidence, volume_ml
from .segmentation import predict, sized
from .volumes import Volume, read_label, read_volume

# Each volume is segmented as it is and with noise, from harmless to ruinous: limits need bad results to be found.
NOISE = (0.0, 0.1, 0.2, 0.3)  # standard deviation, as a share of the volume's range of intensities


@dataclass(frozen=True)
class Trial:
    """One segmentation of a calibration: how good it is, and what can be seen of that without its label."""

    dice: float
    nqm: float
    confidence: float


def calibrate(
    model: Model,
    cases: Sequence[Case],
    *,
    samples: int = 10,
    dice: float = 0.8,
    others: float | None = None,
    at_most: int = 50,
    seed: int = 0,
    threads: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Model:
    """Return a model that knows what to expect and when to doubt.

    What it expects (`pynca.inputs.Expected`) and the range of the label's volume are learnt from all cases. The
    limits of NQM and confidence are those that separate best, among segmentations of some of the cases and of
    noisy copies of them, those whose Dice falls below ``dice``; or those that find most of them while a share of
    ``others`` is marked as well.

    Parameters
    ----------
    model : Model
    cases : sequence of Case
        Those that it was trained on, or others like them; never those that it is to be measured with.
    samples : int
        Number of runs for NQM, 2 or more. Default 10.
    dice : float
        Hard Dice under which a segmentation counts as bad. Default 0.8.
    others : float, optional
        Largest share of the good segmentations that a limit may mark: what somebody is ready to look at in vain.
        Default: what separates best.
    at_most : int
        How many cases are segmented, spread evenly; each four times. Default 50.
    seed : int
        Seed of the automaton and of the noise. Default 0.
    threads : int, optional
        As of `pynca.predict`; the result does not depend on it.
    tick : callable, optional
        Called after each segmented case.

    Returns
    -------
    Model
        The same weights.

    Raises
    ------
    ValueError
        There are fewer than two cases, an image and its label do not fit each other, or all segmentations were
        good, or all bad.
    """
    if len(cases) < 2:
        raise ValueError(f"there are {len(cases)} cases to calibrate on; there must be at least 2")
    if samples < 2:
        raise ValueError(f"samples is {samples}; a calibration needs at least 2, since NQM is how much runs disagree")
    expected = learn_expected((read_volume(case.image) for case in cases), model.preparation)
    plain = replace(model, expected=None, quality=None)
    chosen = evenly(cases, at_most)
    trials = []
    for n, case in enumerate(chosen):
        image, label = sized(read_volume(case.image), model), read_label(case.label)
        check_pair(image, label)
        random = np.random.Generator(np.random.Philox(key=[seed, n]))
        for strength in NOISE:
            noisy = replace(image, data=_noisy(image.data, strength, random))
            trials.append(_trial(plain, noisy, label.data > 0, samples, seed, threads))
        tick()
    bad = np.array([trial.dice < dice for trial in trials])
    if bad.all() or not bad.any():
        raise ValueError(
            f"of {len(bad)} segmentations, noisy ones among them, {'all' if bad.all() else 'none'} had a Dice under "
            f"{dice:g}; choose another Dice to tell good from bad"
        )
    nqm = _limit(np.array([trial.nqm for trial in trials]), bad, others)
    sure = -_limit(np.array([-trial.confidence for trial in trials]), bad, others)
    volume, area = _ranges(cases, model)
    quality = Quality(nqm=round(nqm, 4), samples=samples, confidence=round(sure, 4), volume_ml=volume, area_cm2=area)
    names = hashlib.sha256("\n".join(case.name for case in cases).encode()).hexdigest()[:16]
    text = (
        f"{len(cases)} images (names' sha256 {names}); {len(chosen)} of them segmented, each as it is and with noise "
        f"of {', '.join(f'{s:g}' for s in NOISE[1:])}: {bad.sum()} of {len(bad)} had a Dice under {dice:g}; NQM marks "
        f"{_marked([trial.nqm > quality.nqm for trial in trials], bad)}, confidence "
        f"{_marked([trial.confidence < quality.confidence for trial in trials], bad)}"
    )
    return replace(model, expected=expected, quality=replace(quality, calibrated_on=text))


def _ranges(cases: Sequence[Case], model: Model) -> tuple[Range | None, Range | None]:
    """Return the least and largest volume of the label in ml, or area in cm² where all cases are single slices.

    Nothing where a file does not say how large its voxels are; pictures have those of the model.
    """
    volumes: list[float] = []
    areas: list[float] = []
    for case in cases:
        label = read_label(case.label)
        flat = label.data.ndim == 2
        size = area_cm2(label.data, sized(label, model)) if flat else volume_ml(label.data, label)
        if size is None:
            return None, None
        (areas if flat else volumes).append(size)
    if volumes and areas:
        return None, None
    return _range(volumes), _range(areas)


def _range(sizes: Sequence[float]) -> Range | None:
    return (round(min(sizes), 4), round(max(sizes), 4)) if sizes else None


def _trial(
    model: Model, image: Volume, truth: NDArray[np.bool_], samples: int, seed: int, threads: int | None
) -> Trial:
    many = predict(image, model, seed=seed, samples=samples, threads=threads)
    one = predict(image, model, seed=seed, threads=threads)
    assert many.nqm is not None
    disagreement = many.nqm if np.isfinite(many.nqm) else np.inf
    return Trial(hard_dice(many.mask > 0, truth), disagreement, confidence(one.probability, one.mask))


def _noisy(data: NDArray[Any], strength: float, random: np.random.Generator) -> NDArray[Any]:
    if strength == 0:
        return data
    low, high = np.percentile(data.astype(np.float64), (0.5, 99.5))
    noise = strength * (high - low) * random.standard_normal(data.shape)
    noisy: NDArray[np.float32] = (data + noise).astype(np.float32)
    return noisy


def _limit(scores: NDArray[np.float64], bad: NDArray[np.bool_], others: float | None = None) -> float:
    """Return the limit that separates best: most of the bad above it and fewest of the others, in the gap's middle.

    Or the least that no more than a share of ``others`` lies above.
    """
    values = np.unique(scores)
    marked = scores[None, :] > values[:, None]
    in_vain = (marked & ~bad).sum(axis=1) / (~bad).sum()
    if others is None:
        best = int(np.argmax((marked & bad).sum(axis=1) / bad.sum() - in_vain))
    else:
        best = int(np.argmax(in_vain <= others))
    above = values[min(best + 1, len(values) - 1)]
    return float(values[best] + above) / 2 if np.isfinite(above) else float(values[best])


def _marked(marks: Sequence[bool], bad: NDArray[np.bool_]) -> str:
    marked = np.array(marks)
    return f"{marked[bad].mean():.0%} of these and {marked[~bad].mean():.0%} of the others"
