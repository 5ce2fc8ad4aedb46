"""The papers' arithmetic in PyTorch, operation by operation, and the same compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workload import SOBEL, Unavailable, Workload


def with_torch(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    return _runner(work, threads, papers_step(work))


def with_compiled_torch(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    """One step compiled, in a Python loop: compiling many at once takes minutes and gains nothing."""
    import torch

    torch._dynamo.reset()  # what was compiled before may be for another number of threads
    run = _runner(work, threads, torch.compile(papers_step(work), dynamic=False, fullgraph=True))
    try:
        run()
    except Exception as error:  # of many kinds, from Dynamo to the C++ compiler
        reason = str(error).strip().splitlines()
        raise Unavailable(f"torch.compile fails: {reason[0] if reason else type(error).__name__}") from None
    return run


def papers_step(work: Workload) -> Callable[[Any, Any], Any]:
    """A step as BackboneNCA and BasicNCA take it: channels last between steps, every cell computed, then masked."""
    import torch
    from torch.nn import functional as f

    rule = work.rule
    w = {name: torch.tensor(value) for name, value in rule.weights.items()}
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
