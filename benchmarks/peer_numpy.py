"""The step in NumPy and float32: matrix products by its BLAS, the rest on whole arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workload import Workload


def with_numpy(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    from threadpoolctl import ThreadpoolController  # NumPy itself cannot say on how many threads its BLAS runs

    controller = ThreadpoolController()

    def run() -> np.ndarray:
        state = work.state
        with controller.limit(limits=threads, user_api="blas"):
            for fires in work.masks:
                state = step(work, state, fires)
        return state

    return run


def step(work: Workload, state: np.ndarray, fires: np.ndarray) -> np.ndarray:
    rule, w = work.rule, work.rule.weights
    mode = "reflect" if rule.padding == "reflect" else "constant"
    padded = np.pad(state, ((1, 1), (1, 1), (0, 0)), mode=mode)
    seen = dense(rule.weights, padded) if rule.perception == "conv" else sobel(padded)
    perceived = np.concatenate([state, *seen], axis=-1).reshape(-1, 3 * rule.channels)
    hidden = perceived @ w["fc0.weight"].T
    hidden += w["fc0.bias"]
    np.maximum(hidden, 0, out=hidden)
    change = (hidden @ w["fc1.weight"].T).reshape(state.shape)
    change *= fires[..., None]
    change[..., : rule.input_channels] = 0
    change += state
    return change


def dense(w: dict[str, np.ndarray], padded: np.ndarray) -> list[np.ndarray]:
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    kernels = np.concatenate([w["p0.weight"], w["p1.weight"]]).transpose(2, 3, 1, 0)  # (3, 3, C, 2C)
    out = np.concatenate([w["p0.bias"], w["p1.bias"]]) + np.zeros((height, width, 1), np.float32)
    for a in range(3):
        for b in range(3):
            out += padded[a : a + height, b : b + width] @ kernels[a, b]
    return [out]


def sobel(padded: np.ndarray) -> list[np.ndarray]:
    """The derivative along the first axis, and along the second; each smooths along the other."""
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    eighth = np.float32(1 / 8)
    return [(across[2:] - across[:-2]) * eighth, (down[:, 2:] - down[:, :-2]) * eighth]
