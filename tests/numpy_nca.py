"""The step and the fire mask a second time, in plain NumPy and float64, from the formulas alone."""

from __future__ import annotations

import numpy as np

import pynca

_SOBEL = np.outer([1, 2, 1], [-1, 0, 1]) / 8.0


def run(rule: pynca.Rule, state: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """All steps of (H, W, C) with masks (steps, H, W)."""
    w = {name: value.astype(np.float64) for name, value in rule.weights.items()}
    state = state.astype(np.float64)
    for mask in masks:
        seen = np.concatenate([state, *perceive(rule, w, state)], axis=-1)
        change = np.maximum(seen @ w["fc0.weight"].T + w["fc0.bias"], 0) @ w["fc1.weight"].T
        change[..., : rule.input_channels] = 0
        state = state + mask[..., None] * change
    return state


def perceive(rule: pynca.Rule, w: dict[str, np.ndarray], state: np.ndarray) -> list[np.ndarray]:
    radius = rule.kernel_size // 2
    mode = {"zero": {"mode": "constant"}, "reflect": {"mode": "reflect"}}[rule.padding]
    padded = np.pad(state, [(radius, radius), (radius, radius), (0, 0)], **mode)
    height, width, _ = state.shape
    out = [np.zeros(state.shape), np.zeros(state.shape)]
    for a in range(rule.kernel_size):
        for b in range(rule.kernel_size):
            part = padded[a : a + height, b : b + width]
            if rule.perception == "sobel":
                out[0] += _SOBEL[b, a] * part
                out[1] += _SOBEL[a, b] * part
            else:
                for n in (0, 1):
                    out[n] += part @ w[f"p{n}.weight"][:, :, a, b].T
    if rule.perception == "conv":
        out = [y + w[f"p{n}.bias"] for n, y in enumerate(out)]
    return out


def fire_mask(
    shape: tuple[int, int], steps: int, *, fire_rate: float, seed: int, level: int = 0, z: int = 0, sample: int = 0
) -> np.ndarray:
    """Philox4x32-10 on (steps, H, W) cells, with NumPy's 64-bit integers."""
    height, width = shape
    step, y, x = np.meshgrid(np.arange(steps), np.arange(height), np.arange(width), indexing="ij")
    counter = [x >> 2, y, np.full_like(x, z), step | level << 16 | sample << 20]
    words = philox(
        [np.asarray(part, np.uint64) for part in counter], [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    )
    return (np.choose(x & 3, words) < np.uint64(round(fire_rate * 2**32))).astype(np.uint8)


def philox(c: list[np.ndarray], k: list[np.uint64]) -> list[np.ndarray]:
    """Four words of Philox4x32-10 from a counter and a key, all uint64 that hold 32 bits."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> half) ^ c[1] ^ k[0], p1 & low, (p0 >> half) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c
