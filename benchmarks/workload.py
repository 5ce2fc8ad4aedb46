"""What is computed: rules, states, and how many operations a run of them has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import pynca

HIDDEN = 128
# Kernels of the Sobel pair on axes (H, W): the derivative along the first, and along the second
SOBEL = np.stack([np.outer([-1, 0, 1], [1, 2, 1]), np.outer([1, 2, 1], [-1, 0, 1])]).astype(np.float32) / 8
RULES = {"conv32": ("conv", 32), "conv16": ("conv", 16), "sobel16": ("sobel", 16)}


class Unavailable(Exception):
    """A peer cannot run here; the text says why."""


@dataclass(frozen=True, eq=False)
class Workload:
    """A rule with random weights that keep the state near size one, a state (size, size, C), and fire masks."""

    rule: pynca.Rule
    state: np.ndarray
    masks: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.masks)

    @property
    def updates(self) -> int:
        """Cells that fire, over all steps."""
        return int(self.masks.sum(dtype=np.int64))

    @property
    def flops(self) -> int:
        """Floating-point operations on cells that fire: what pynca computes."""
        return 2 * multiply_adds(self.rule) * self.updates

    @property
    def dense_flops(self) -> int:
        """The same on all cells: what everyone else computes."""
        return 2 * multiply_adds(self.rule) * self.masks.size


@lru_cache(maxsize=1)  # cases of one workload follow each other, and a large one fills a small board
def workload(name: str, size: int, steps: int) -> Workload:
    rule = random_rule(*RULES[name])
    state = np.random.default_rng(1).normal(size=(size, size, rule.channels)).astype(np.float32)
    return Workload(rule, state, pynca.fire_mask((size, size), steps))


def random_rule(perception: str, channels: int) -> pynca.Rule:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)

    weights = {
        "fc0.weight": draw(HIDDEN, 3 * channels),
        "fc0.bias": draw(HIDDEN),
        "fc1.weight": 0.3 * draw(channels, HIDDEN),
    }
    if perception == "conv":
        for name in ("p0", "p1"):
            weights[f"{name}.weight"] = draw(channels, channels, 3, 3)
            weights[f"{name}.bias"] = draw(channels)
    options: dict[str, Any] = {"perception": perception}
    return pynca.Rule(weights, **options)


def multiply_adds(rule: pynca.Rule) -> int:
    """Multiply-adds of a firing cell: each weight that is not a bias is used once. Fixed Sobel sums do not count."""
    return sum(w.size for name, w in rule.weights.items() if name.endswith(".weight"))


def model_masks(model: pynca.Model, z: int = 0) -> list[np.ndarray]:
    """The fire masks (steps, h, w) of each level, for one slice."""
    masks = []
    for number, level in enumerate(model.levels):
        height, width = (size // level.scale for size in model.preparation.size)
        rate = level.rule.fire_rate
        masks.append(pynca.fire_mask((height, width), level.steps, fire_rate=rate, level=number, z=z))
    return masks


def model_work(model: pynca.Model, slices: int) -> tuple[int, int]:
    """Cells that fire and floating-point operations, for so many slices through all levels of a model."""
    updates = flops = 0
    for z in range(slices):
        for level, mask in zip(model.levels, model_masks(model, z), strict=True):
            fired = int(mask.sum(dtype=np.int64))
            updates += fired
            flops += 2 * multiply_adds(level.rule) * fired
    return updates, flops


def dense_model_flops(model: pynca.Model) -> int:
    """Floating-point operations of one slice through all levels of a model, where all cells are computed."""
    masks = model_masks(model)
    return sum(2 * multiply_adds(level.rule) * m.size for level, m in zip(model.levels, masks, strict=True))
