"""Ensembles of runs: how much the runs of a stochastic automaton agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .rule import FloatArray


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
