"""Adam and Muon, clipping and an average of weights, over dictionaries of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pynca.rule import FloatArray

from ._gradient import orthogonalized

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

    @staticmethod
    def squares(axes: int) -> bool:
        """Tell whether a weight of so many axes has a second moment."""
        return True

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


@dataclass
class Muon(Adam):
    """Muon (Jordan et al. 2024) for matrices and convolutions, Adam for biases.

    A step is the momentum of the gradient without its singular values: every direction of a matrix is stepped in
    alike, where Adam's steps lie in a few. It is about as large as Adam's is with such betas (0.2 times the rate a
    weight, root mean square; Liu et al. 2025). A convolution is the matrix of its outputs over all that they see.

    Parameters
    ----------
    betas : (float, float)
        The first is the decay of the momentum; both are Adam's. Default (0.9, 0.99).
    epsilon : float
        Of Adam. Default 1e-8.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    @staticmethod
    def squares(axes: int) -> bool:
        """Tell whether a weight of so many axes has a second moment: a bias, which Adam updates."""
        return axes == 1

    def update(self, weights: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray], rate: float) -> Arrays:
        """Return the weights after one step at a learning rate."""
        result = super().update({name: w for name, w in weights.items() if w.ndim == 1}, gradients, rate)
        keep, new = np.float32(self.betas[0]), np.float32(1 - self.betas[0])
        for name, weight in weights.items():
            if weight.ndim == 1:
                continue
            gradient = gradients[name]
            momentum = keep * self.first.get(name, np.zeros_like(weight)) + new * gradient
            self.first[name] = momentum
            ahead = (keep * momentum + new * gradient).reshape(len(weight), -1)  # as Nesterov's
            step = orthogonalized(ahead).reshape(weight.shape)
            result[name] = weight - np.float32(0.2 * rate * math.sqrt(max(ahead.shape))) * step
        return result


OPTIMIZERS: dict[str, type[Adam]] = {"adam": Adam, "muon": Muon}


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
