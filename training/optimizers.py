"""Adam, clipping and an average of weights, over dictionaries of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pynca.rule import FloatArray

Arrays = dict[str, FloatArray]


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015) without weight decay.

    Parameters
    ----------
    betas : (float, float)
        Decay of the two moments. Default (0.5, 0.5), as in the papers' code.
    epsilon : float
        Default 1e-8.
    """

    betas: tuple[float, float] = (0.5, 0.5)
    epsilon: float = 1e-8
    step: int = 0
    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)

    def update(self, weights: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray], rate: float) -> Arrays:
        """Return the weights after one step at a learning rate."""
        self.step += 1
        b1, b2 = self.betas
        correction1, correction2 = 1 - b1**self.step, 1 - b2**self.step
        result: Arrays = {}
        for name, weight in weights.items():
            gradient = gradients[name]
            zero = np.zeros_like(weight)
            self.first[name] = np.float32(b1) * self.first.get(name, zero) + np.float32(1 - b1) * gradient
            self.second[name] = np.float32(b2) * self.second.get(name, zero) + np.float32(1 - b2) * gradient * gradient
            root = np.sqrt(self.second[name]) / np.float32(math.sqrt(correction2)) + np.float32(self.epsilon)
            result[name] = np.asarray(weight - np.float32(rate / correction1) * self.first[name] / root, np.float32)
        return result


def clip(gradients: Arrays, norm: float) -> tuple[Arrays, float]:
    """Scale gradients so that their joint Euclidean norm is at most ``norm``; also return the norm they had."""
    before = math.sqrt(math.fsum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))
    if not before > norm:
        return gradients, before
    factor = np.float32(norm / before)
    return {name: g * factor for name, g in gradients.items()}, before


def moved_average(average: Arrays, weights: Arrays, decay: float, step: int) -> Arrays:
    """Exponential moving average of weights; early on it forgets faster, so that the start does not linger."""
    keep = np.float32(min(decay, (1 + step) / (10 + step)))
    return {name: keep * average[name] + (np.float32(1) - keep) * weight for name, weight in weights.items()}
