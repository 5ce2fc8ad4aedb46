"""The papers' arithmetic in PyTorch: operation by operation, kinder to it, and compiled; one rule or a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import pynca
from workload import SOBEL, Unavailable, Workload


def with_torch(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    return _runner(work, threads, papers_step(work.rule))


def with_compiled_torch(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    """One step compiled, in a Python loop: compiling many at once takes minutes and gains nothing."""
    import torch

    torch._dynamo.reset()  # what was compiled before may be for another number of threads
    run = _runner(work, threads, torch.compile(papers_step(work.rule), dynamic=False, fullgraph=True))
    try:
        run()
    except Exception as error:  # of many kinds, from Dynamo to the C++ compiler
        reason = str(error).strip().splitlines()
        raise Unavailable(f"torch.compile fails: {reason[0] if reason else type(error).__name__}") from None
    return run


def with_torch_model(
    model: pynca.Model, image: np.ndarray, masks: Sequence[np.ndarray], threads: int
) -> Callable[[], np.ndarray]:
    """All levels of a model on a prepared image (H, W), whose sides the scales divide, to the logits (H, W)."""
    import torch

    images = torch.tensor(image)[None]
    steps = [papers_step(level.rule) for level in model.levels]
    fires = [torch.tensor(m, dtype=torch.float32)[:, None, :, :, None] for m in masks]
    coarsest, channels = model.levels[0].scale, model.levels[0].rule.channels
    start = torch.zeros((1, *(side // coarsest for side in image.shape), channels))

    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        state, above = start, coarsest
        with torch.inference_mode():
            for level, step, level_fires in zip(model.levels, steps, fires, strict=True):
                state = entered(shrunk(images, level.scale, model.preparation.shrink), state, above // level.scale)
                for fire in level_fires:
                    state = step(state, fire)
                above = level.scale
        return state[0, ..., 1].numpy()

    return run


def shrunk(images: Any, scale: int, how: str) -> Any:
    """Images (N, H, W) at a coarser scale, as `pynca.Preparation` says with ``shrink``."""
    from torch.nn import functional as f

    if how == "mean":
        return f.avg_pool2d(images, scale)
    return f.interpolate(images[:, None], scale_factor=1 / scale, mode="bilinear", align_corners=False)[:, 0]


def entered(images: Any, coarser: Any, by: int) -> Any:
    """The state in which a level begins: the image, and the coarser level's other channels with each cell repeated."""
    import torch

    return torch.cat([images[..., None], coarser[..., 1:].repeat_interleave(by, 1).repeat_interleave(by, 2)], -1)


def papers_step(rule: pynca.Rule, weights: Mapping[str, Any] | None = None) -> Callable[[Any, Any], Any]:
    """A step as BackboneNCA and BasicNCA take it: channels last between steps, every cell computed, then masked.

    ``weights`` are tensors in place of the rule's own, for training.
    """
    import torch
    from torch.nn import functional as f

    w = weights or {name: torch.tensor(value) for name, value in rule.weights.items()}
    sobel = [torch.tensor(k).expand(rule.channels, 1, 3, 3).contiguous() for k in SOBEL]
    learned, channels, fixed = rule.perception == "conv", rule.channels, rule.input_channels

    def step(state: torch.Tensor, fires: torch.Tensor) -> torch.Tensor:
        x = state.permute(0, 3, 1, 2)
        if learned:
            padded = f.pad(x, (1, 1, 1, 1), mode="reflect")
            seen = [f.conv2d(padded, w[f"{name}.weight"], w[f"{name}.bias"]) for name in ("p0", "p1")]
        else:
            seen = [f.conv2d(x, kernel, padding=1, groups=channels) for kernel in sobel]
        perceived = torch.cat([x, *seen], 1).permute(0, 2, 3, 1)
        hidden = torch.relu(f.linear(perceived, w["fc0.weight"], w["fc0.bias"]))
        after = state + f.linear(hidden, w["fc1.weight"]) * fires
        return torch.cat([state[..., :fixed], after[..., fixed:]], -1)

    return step


def fused_step(rule: pynca.Rule, weights: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """A dense step with both perceptions as one convolution, and image channels kept by zeros in ``fc1``."""
    import torch
    from torch.nn import functional as f

    w, fixed = weights, rule.input_channels
    perception, bias = (torch.cat([w[f"p0.{kind}"], w[f"p1.{kind}"]]) for kind in ("weight", "bias"))
    fc1 = f.pad(w["fc1.weight"][fixed:], (0, 0, fixed, 0))

    def step(state: torch.Tensor, fires: torch.Tensor) -> torch.Tensor:
        padded = f.pad(state.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="reflect")
        perceived = torch.cat([state, f.conv2d(padded, perception, bias).permute(0, 2, 3, 1)], -1)
        hidden = torch.relu(f.linear(perceived, w["fc0.weight"], w["fc0.bias"]))
        return state + f.linear(hidden, fc1) * fires

    return step


def _runner(work: Workload, threads: int, step: Callable[[Any, Any], Any]) -> Callable[[], np.ndarray]:
    import torch

    start = torch.tensor(work.state)[None]
    masks = torch.tensor(work.masks, dtype=torch.float32)[:, None, :, :, None]

    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        state = start
        with torch.inference_mode():
            for fires in masks:
                state = step(state, fires)
        return state[0].numpy()

    return run
