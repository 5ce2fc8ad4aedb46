"""How far a segmentation can be trusted: ensembles of runs, NQM, and the verdict on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .inputs import check_input, is_number
from .preprocessing import sum_inside
from .rule import FloatArray, UInt8Array
from .volumes import Volume

if TYPE_CHECKING:
    from .model import Model
    from .segmentation import Segmentation

Verdict = Literal["ok", "review"]

_BEYOND = 1.1  # times the least or largest volume or area of the label that was seen


@dataclass(frozen=True)
class Quality:
    """Where the segmentations of a model begin to be doubtful; `pynca.calibration` finds it out.

    Parameters
    ----------
    nqm : float
        NQM of ``samples`` runs above which a segmentation is to be reviewed.
    samples : int
        Number of runs that ``nqm`` holds for, 2 or more.
    confidence : float
        Confidence of a single run (`confidence`) under which a segmentation is to be reviewed.
    volume_ml : (float, float), optional
        Least and largest volume of the label in ml; None where that is not known. 0 for the least: an
        empty mask can be right.
    area_cm2 : (float, float), optional
        The same of the area in a single slice, in cm².
    calibrated_on : str
        On what, and how well the limits separated there.

    Raises
    ------
    ValueError
        A limit cannot be right.
    """

    nqm: float
    samples: int
    confidence: float
    volume_ml: tuple[float, float] | None = None
    calibrated_on: str = ""
    area_cm2: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.nqm) and self.nqm > 0):
            raise ValueError(f"quality: nqm is {self.nqm!r}; it must be a number above 0")
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 2:
            raise ValueError(f"quality: samples is {self.samples!r}; it must be a whole number of 2 or more")
        if not (is_number(self.confidence) and 0 <= self.confidence <= 1):
            raise ValueError(f"quality: confidence is {self.confidence!r}; it must be a number from 0 to 1")
        if not isinstance(self.calibrated_on, str):
            raise ValueError(f"quality: calibrated_on is {self.calibrated_on!r}; it must be text")
        for name in ("volume_ml", "area_cm2"):
            value = getattr(self, name)
            if value is None:
                continue
            pair, what = tuple(value), name.partition("_")[0]
            if not (len(pair) == 2 and all(is_number(n) for n in pair) and 0 <= pair[0] <= pair[1]):
                raise ValueError(f"quality: {name} is {value!r}; it must be the least and largest {what}")
            object.__setattr__(self, name, (float(pair[0]), float(pair[1])))

    @property
    def volumes(self) -> tuple[float, float] | None:
        """The volumes in ml that pass: a tenth beyond what was seen."""
        return _widened(self.volume_ml)

    @property
    def areas(self) -> tuple[float, float] | None:
        """The areas in cm² of a single slice that pass: a tenth beyond what was seen."""
        return _widened(self.area_cm2)

    def nqm_of(self, samples: int) -> float:
        """Return the limit of NQM for another number of runs.

        The standard deviation is divided by the number of runs, so that few runs show less of it.
        """
        return self.nqm * math.sqrt((1 - 1 / samples) / (1 - 1 / self.samples))


def _widened(seen: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if seen is None else (seen[0] / _BEYOND, seen[1] * _BEYOND)


def judge(segmentation: Segmentation, model: Model) -> tuple[Verdict | None, list[str]]:
    """Say whether somebody should look at a segmentation before it is used, and why.

    Several runs are judged by how much they disagree (NQM), a single one by how undecided its probabilities
    are (`confidence`), which finds a little less. Beside that it counts whether the label's volume, or its area in a
    single slice, is one that was seen at the calibration, and whether the model was made for the image at all
    (`pynca.inputs.check_input`). Each frame of a film is judged by itself.

    Parameters
    ----------
    segmentation : Segmentation
    model : Model
        The one that made it.

    Returns
    -------
    verdict : "ok", "review" or None
        None where the model was never calibrated (``model.quality is None``), or nothing was found and nobody knows
        whether that can be right. Of a film, "review" if one of its frames is to be reviewed.
    reasons : list of str
        A sentence for each, with what was found and what expected; empty unless the verdict is "review". Of a film,
        it names the frame, counted from 0.
    """
    quality = model.quality
    if quality is None:
        return None, []
    image = segmentation.volume
    if image is None and segmentation.image is not None:
        image = Volume(segmentation.image, None, None, "the image")
    unlike = image is not None and check_input(
        image, model, axis=segmentation.axis
    )  # `predict` has warned of it in full
    reasons = ["the model was not made for this image"] if unlike else []
    frames = segmentation.frames()
    verdicts = []
    for n, frame in enumerate(frames):
        judged, doubts = _judged(frame, quality)
        verdicts.append(judged)
        reasons += [f"frame {n}: {doubt}" if len(frames) > 1 else doubt for doubt in doubts]
    if reasons:
        return "review", reasons
    return (None if None in verdicts else "ok"), []


def _judged(segmentation: Segmentation, quality: Quality) -> tuple[Verdict | None, list[str]]:
    """Judge one volume or slice by what was found in it."""
    ranges, size, unit = _size(segmentation, quality)
    reasons = []
    if segmentation.mask.any():
        reasons += _doubts(segmentation, quality)
        if ranges is not None and size is not None and not ranges[0] <= size <= ranges[1]:
            what = "volume" if unit == "ml" else "area"
            expected = f"{ranges[0]:.3g} to {ranges[1]:.3g} {unit}"
            reasons.append(f"the {what} is unusual: {size:.3g} {unit}, expected {expected}")
    elif ranges is None:
        return None, []  # it may be right, and shows nothing to judge
    elif ranges[0] > 0:
        reasons.append(f"nothing was found, expected at least {ranges[0]:.3g} {unit}")
    return ("review" if reasons else "ok"), reasons


def _size(segmentation: Segmentation, quality: Quality) -> tuple[tuple[float, float] | None, float | None, str]:
    """Return what volumes pass, the label's own where it is known, and the unit; of a single slice, areas."""
    mask, image = segmentation.mask, segmentation.volume
    if mask.ndim < 3 or (quality.volumes is None and mask.shape.count(1) == 1):
        return quality.areas, area_cm2(mask, image), "cm²"
    return quality.volumes, volume_ml(mask, image), "ml"


def area_cm2(mask: NDArray[Any], image: Volume | None) -> float | None:
    """Return the area of what is not 0 in a single slice; None where nobody knows how large a pixel is."""
    sides = None if image is None else image.voxel_size
    if sides is None:
        return None
    plane = [axis for axis, n in enumerate(mask.shape) if n > 1 or mask.ndim == 2]
    area = math.prod(sides[axis] for axis in plane)
    if image is not None and image.affine is not None and len(plane) == 2:
        steps = image.affine[:3, plane] / [sides[axis] for axis in plane]
        area *= float(np.linalg.norm(np.cross(*steps.T)))  # 1 where they stand at right angles
    return float(np.count_nonzero(mask) * area / 100)


def volume_ml(mask: NDArray[Any], image: Volume | None) -> float | None:
    """Return the volume of what is not 0; None where nobody knows how large a voxel is, and for several volumes."""
    voxel = None if image is None or mask.ndim > 3 else image.voxel_volume
    return None if voxel is None else float(np.count_nonzero(mask) * voxel / 1000)


def _doubts(segmentation: Segmentation, quality: Quality) -> list[str]:
    doubts = []
    if segmentation.nqm is not None:
        limit = quality.nqm_of(segmentation.samples)
        if not segmentation.nqm <= limit:
            doubts.append(f"the runs disagree: NQM {segmentation.nqm:.3f}, expected at most {limit:.3f}")
    else:
        sure = confidence(segmentation.probability, segmentation.mask)
        if sure < quality.confidence:
            doubts.append(f"the outline is unsure: confidence {sure:.3f}, expected at least {quality.confidence:.3f}")
    return doubts


def confidence(probability: FloatArray, mask: UInt8Array) -> float:
    """Return the soft Dice of a mask with the probability that it was cut from: the Dice that the model itself expects.

    ``2 sum_mask(p) / (sum(p) + |mask|)``: 1 where all probabilities are 0 or 1, smaller where they are undecided;
    0 for an empty mask.
    """
    inside = mask > 0
    total = float(probability.sum(dtype=np.float64)) + int(np.count_nonzero(inside))
    return 2.0 * sum_inside(probability, inside) / total if total > 0 else 0.0


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the probability of logits, float32. Computed in float64, so that it is the same on every machine."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    probability: FloatArray = (np.where(logits >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)
    return probability


class Ensemble:
    """Runs of one image that differ in their fire masks, added one after the other.

    Attributes
    ----------
    logits : array
        float32, mean of the runs' logits.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.logits: FloatArray = np.zeros(0, np.float32)
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)

    def add(self, logits: FloatArray) -> None:
        """Add a run. Means and variances are updated as by Welford (1962), so that memory does not grow with runs."""
        self.runs += 1
        probability = sigmoid(logits).astype(np.float64)
        if self.runs == 1:
            self.logits = logits
            self._mean, self._squares = probability, np.zeros_like(probability)
            return
        self.logits = self.logits + (logits - self.logits) / np.float32(self.runs)
        change = probability - self._mean
        self._mean += change / self.runs
        self._squares += change * (probability - self._mean)

    def uncertainty(self) -> FloatArray:
        """Return the standard deviation of the probability over the runs (divided by their number), float32."""
        deviation: FloatArray = np.sqrt(self._squares / max(self.runs, 1)).astype(np.float32)
        return deviation

    def totals(self) -> NDArray[np.float64]:
        """Return each image's summed standard deviation and summed mean of the probability: (2, N) for (N, H, W)."""
        deviation = np.sqrt(self._squares / max(self.runs, 1))
        return np.stack([deviation.sum(axis=(1, 2)), self._mean.sum(axis=(1, 2))])


def nqm(totals: NDArray[np.float64]) -> float:
    """Return the quality metric of M3D-NCA: summed standard deviation over summed mean of the probability.

    ``NQM = sum_v sd_v / sum_v mean_v`` over all voxels v of a volume and over its runs (Kalkhof and
    Mukhopadhyay, M3D-NCA, MICCAI 2023). 0 = all runs agree; larger is worse.

    Parameters
    ----------
    totals : array
        (2, N), as `Ensemble.totals` returns them for N slices.
    """
    deviation, mean = (math.fsum(row) for row in totals)
    return deviation / mean if mean > 0 else math.nan


def largest_nqm(nqms: Sequence[float]) -> float:
    """Return the NQM of the frame in which the runs disagree most; NaN where none has a number."""
    return max((value for value in nqms if not math.isnan(value)), default=math.nan)
