"""Losses of logits x against targets t in [0, 1], and their gradients. p = sigmoid(x); sums run over the whole batch.

====================  ===========================================================================================
``"dice"``            ``1 - (2 sum(p t) + 1) / (sum p + sum t + 1)``
``"bce"``             ``mean(ln(1 + e^x) - t x)``, which is ``mean(-t ln p - (1 - t) ln(1 - p))``
``"dice_bce"``        their sum, as in the papers' code
``"slice_dice_bce"``  the mean of each slice's own Dice, so that small structures count as much as large ones, plus
                      ``bce``
``"dice_focal"``      Dice plus ``mean((1 - q)^2 bce)`` with ``q = t p + (1 - t)(1 - p)`` (Lin et al. 2017,
                      gamma = 2)
====================  ===========================================================================================

Binary cross-entropy is computed from logits, so that it stays finite where a sigmoid saturates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ._gradient import sigmoid_and_softplus

Doubles = NDArray[np.float64]
Loss = Callable[[Doubles, Doubles], tuple[float, Doubles]]


def dice(x: Doubles, t: Doubles) -> tuple[float, Doubles]:
    """Return 1 - the smoothed soft Dice of the whole batch, and its gradient."""
    return _dice(sigmoid_and_softplus(x)[0], t)


def bce(x: Doubles, t: Doubles) -> tuple[float, Doubles]:
    """Return the mean binary cross-entropy, and its gradient."""
    return _bce(x, t, *sigmoid_and_softplus(x))


def focal(x: Doubles, t: Doubles) -> tuple[float, Doubles]:
    """Return the mean focal loss with gamma = 2, and its gradient."""
    return _focal(x, t, *sigmoid_and_softplus(x))


def dice_bce(x: Doubles, t: Doubles) -> tuple[float, Doubles]:
    """Return Dice + BCE, and its gradient."""
    p, soft = sigmoid_and_softplus(x)
    return _sum(_dice(p, t), _bce(x, t, p, soft))


def slice_dice_bce(
    x: Doubles, t: Doubles, ends: Sequence[int] | None = None, smooth: float = 1.0
) -> tuple[float, Doubles]:
    """Return the mean over slices of Dice, smoothed by ``smooth`` cells instead of 1, + BCE, and its gradient.

    ``ends`` says where along the first axis one slice ends and the next begins; default: after each entry.
    """
    p, soft = sigmoid_and_softplus(x)
    cuts = range(1, len(x)) if ends is None else ends
    parts = [_dice(*part, smooth) for part in zip(np.split(p, cuts), np.split(t, cuts), strict=True)]
    mean = sum(value for value, _ in parts) / len(parts), np.concatenate([slope for _, slope in parts]) / len(parts)
    return _sum(mean, _bce(x, t, p, soft))


def dice_focal(x: Doubles, t: Doubles) -> tuple[float, Doubles]:
    """Return Dice + focal, and its gradient."""
    p, soft = sigmoid_and_softplus(x)
    return _sum(_dice(p, t), _focal(x, t, p, soft))


LOSSES: dict[str, Loss] = {
    "dice": dice,
    "bce": bce,
    "dice_bce": dice_bce,
    "slice_dice_bce": slice_dice_bce,
    "dice_focal": dice_focal,
}


def evaluate(
    name: str,
    logits: NDArray[np.float32],
    target: NDArray[np.float32],
    ends: Sequence[int] | None = None,
    smooth: float = 1.0,
) -> tuple[float, NDArray[np.float32]]:
    """Return a loss by its name, computed in float64, and its gradient with respect to the logits in float32.

    ``ends`` and ``smooth`` are for what is computed slice by slice; see `slice_dice_bce`. Where a logit is not finite
    the loss is NaN, and the gradient zero.
    """
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"loss is {name!r}; it must be one of {', '.join(LOSSES)}")
    if not np.isfinite(logits).all():
        return math.nan, np.zeros_like(logits)
    loss = LOSSES[name] if name != "slice_dice_bce" else partial(slice_dice_bce, ends=ends, smooth=smooth)
    value, gradient = loss(logits.astype(np.float64), target.astype(np.float64))
    return value, gradient.astype(np.float32)


def _dice(p: Doubles, t: Doubles, smooth: float = 1.0) -> tuple[float, Doubles]:
    overlap, total = 2.0 * float((p * t).sum()) + smooth, float(p.sum()) + float(t.sum()) + smooth
    return 1.0 - overlap / total, (overlap / total - 2.0 * t) / total * p * (1.0 - p)


def _bce(x: Doubles, t: Doubles, p: Doubles, soft: Doubles) -> tuple[float, Doubles]:
    return float((soft - t * x).mean()), (p - t) / x.size


def _focal(x: Doubles, t: Doubles, p: Doubles, soft: Doubles) -> tuple[float, Doubles]:
    miss = t * (1.0 - p) + (1.0 - t) * p
    cross = soft - t * x
    gradient = miss * miss * (p - t) + 2.0 * miss * (1.0 - 2.0 * t) * p * (1.0 - p) * cross
    return float((miss * miss * cross).mean()), gradient / x.size


def _sum(a: tuple[float, Doubles], b: tuple[float, Doubles]) -> tuple[float, Doubles]:
    return a[0] + b[0], a[1] + b[1]
