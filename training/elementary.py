"""exp and log1p from additions and multiplications alone, so that they give the same bits on every CPU.

``np.exp`` and ``np.log1p`` choose their code by CPU. These are used in training, where a last bit grows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the sum is ln 2 to 80 bits


def exp(x: Doubles) -> Doubles:
    """Return e to the power of ``x``, for x from -700 to 700, to about two units in the last place."""
    power = np.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW  # at most 0.35
    total = np.ones_like(rest)
    for n in range(13, 0, -1):  # Taylor's series by Horner; the next term is below 1e-17
        total = 1.0 + total * rest / n
    return np.ldexp(total, power.astype(np.int32))


def log1p(x: Doubles) -> Doubles:
    """Return ln(1 + x) for x from 0 to 1, to about two units in the last place."""
    s = x / (2.0 + x)  # ln((1 + s) / (1 - s)), s at most 1/3
    square = s * s
    total = np.zeros_like(s)
    for n in range(35, 1, -2):
        total = (total + 1.0 / n) * square
    return 2.0 * s * (1.0 + total)


def sigmoid(x: Doubles) -> Doubles:
    """Return 1 / (1 + e^-x)."""
    small = exp(-np.minimum(np.abs(x), 700.0))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def softplus(x: Doubles) -> Doubles:
    """Return ln(1 + e^x)."""
    return np.maximum(x, 0.0) + log1p(exp(-np.minimum(np.abs(x), 700.0)))
