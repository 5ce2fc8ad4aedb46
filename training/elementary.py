"""exp and log1p from additions and multiplications alone, so that they give the same bits on every CPU.

``np.exp`` and ``np.log1p`` choose their code by CPU. These are used in training, where a last bit grows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the sum is ln 2 to 80 bits


_EXP = [1 / math.factorial(n) for n in range(14)]  # of Taylor's series; the next term is below 1e-17
_LOG = [1 / n for n in range(3, 37, 2)]


def exp(x: Doubles) -> Doubles:
    """Return e to the power of ``x``, for x from -700 to 700, to about two units in the last place."""
    power = np.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW  # at most 0.35
    return np.ldexp(_polynomial(_EXP, rest), power.astype(np.int32))


def log1p(x: Doubles) -> Doubles:
    """Return ln(1 + x) for x from 0 to 1, to about two units in the last place."""
    s = x / (2.0 + x)  # ln((1 + s) / (1 - s)), s at most 1/3
    square = s * s
    return 2.0 * s * (1.0 + square * _polynomial(_LOG, square))


def sigmoid(x: Doubles) -> Doubles:
    """Return 1 / (1 + e^-x)."""
    return _sigmoid(x, _small(x))


def softplus(x: Doubles) -> Doubles:
    """Return ln(1 + e^x)."""
    return _softplus(x, _small(x))


def sigmoid_and_softplus(x: Doubles) -> tuple[Doubles, Doubles]:
    """Return both, for the price of one exponential."""
    small = _small(x)
    return _sigmoid(x, small), _softplus(x, small)


def _small(x: Doubles) -> Doubles:
    return exp(-np.minimum(np.abs(x), 700.0))


def _sigmoid(x: Doubles, small: Doubles) -> Doubles:
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _softplus(x: Doubles, small: Doubles) -> Doubles:
    return np.maximum(x, 0.0) + log1p(small)


def _polynomial(coefficients: list[float], x: Doubles) -> Doubles:
    """Return the sum of coefficients times powers of x, by Horner."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total
