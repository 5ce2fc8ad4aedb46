"""Training without torch: the gradient of the NCA step, a tape, losses, and a fit that notices when it fails."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pynca import _core
from pynca.rule import FloatArray, Rule, check_masks, whole_number

from . import tape
from .fit import fit_slices
from .recipe import Recipe
from .sampling import Augmentation, Slices
from .train import Outcome, fit

__all__ = ["Augmentation", "Outcome", "Recipe", "Slices", "fit", "fit_slices", "gradients"]


def gradients(
    rule: Rule,
    state: ArrayLike,
    target: ArrayLike,
    *,
    masks: ArrayLike | None = None,
    steps: int | None = None,
    seed: int = 0,
    loss: str = "dice_bce",
    threads: int | None = None,
) -> tuple[float, dict[str, FloatArray], FloatArray]:
    """Differentiate a loss of a run: back-propagation through time.

    The logits are the first channel behind the image channels of the last state.

    Parameters
    ----------
    rule : pynca.Rule
    state : array
        float32 (N, H, W, C), the initial state.
    target : array
        (N, H, W), in [0, 1].
    masks : array, optional
        uint8 fire masks (steps, N, H, W). Without them `pynca.fire_mask` draws, and ``steps`` says how many.
    steps : int, optional
        Number of steps, 1 to 65535; with masks, as many as they have.
    seed : int
        Seed of the random fire mask; batch member n draws as sample n. Default 0.
    loss : str
        One of ``pynca.training.losses``: ``"dice"``, ``"bce"``, ``"dice_bce"`` (default), ``"slice_dice_bce"``,
        ``"dice_focal"``.
    threads : int, optional
        As in `pynca.Rule.run`; the result does not depend on it.

    Returns
    -------
    loss : float
    gradients : dict of str to array
        float32, named and laid out as in `pynca.Rule.state_dict`.
    state_gradient : array
        float32 (N, H, W, C), with respect to the initial state.

    Raises
    ------
    ValueError, TypeError
        An argument has the wrong shape, type or range.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule is of type {type(rule).__name__}; it must be a Rule")
    start = np.asarray(state)
    if start.ndim != 4 or start.shape[-1] != rule.channels or 0 in start.shape:
        raise ValueError(f"state has shape {start.shape}; it must be (N, H, W, {rule.channels}), not empty")
    for name, array in (("state", start), ("target", np.asarray(target))):
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {array.dtype}; it must hold real numbers")
    wanted = np.asarray(target, np.float32)
    if wanted.shape != start.shape[:3]:
        raise ValueError(f"target has shape {wanted.shape}; for this state it must be {start.shape[:3]}")
    if not (wanted.min() >= 0 and wanted.max() <= 1):
        raise ValueError("target holds a value outside 0 to 1")
    if masks is None and steps is None:
        raise ValueError("steps must be given where there are no masks")
    count = len(np.asarray(masks)) if steps is None else steps
    count = whole_number(count, "steps", 1, _core.MAX_STEPS)
    fire = None if masks is None else check_masks(masks, count, start.shape[:3])
    seed = whole_number(seed, "seed", 0, 2**64 - 1)

    weights, first = tape.Weights(rule), tape.Node(np.array(start, np.float32, order="C"))
    last = tape.nca(weights, first, count, masks=fire, seed=seed, threads=threads)
    logits = tape.channels(last, rule.input_channels, rule.input_channels + 1)
    value = tape.loss(loss, logits, wanted[..., None])
    value.backward()
    assert first.gradient is not None
    return float(value.value), rule.in_papers_axes(weights.gradients), first.gradient
