"""Where the recorded runs and the real files are, and random rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import pynca

RECORDED = Path(__file__).resolve().parent / "recorded"
SHARED = Path(__file__).resolve().parents[2] / "shared"
ALL_RECORDED = SHARED / "reference"
REFERENCE = ALL_RECORDED if ALL_RECORDED.is_dir() else RECORDED  # all runs, or the few in the repository
DATA = SHARED / "data"
CHECKPOINT = ALL_RECORDED / "checkpoints" / "med_nca_hippocampus"


def golden_cases(families: str) -> list[dict[str, Any]]:
    """The index's cases of some families."""
    index = json.loads((REFERENCE / "index.json").read_text())
    return [case for case in index if case["family"] in families]


def random_weights(
    perception: str, channels: int, hidden: int, *, kernel_size: int = 3, seed: int = 0, scale: float = 1.0
) -> dict[str, np.ndarray]:
    """Weights that keep a state of size one near size one."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        fan_in = max(1, int(np.prod(shape[1:])))
        return (scale * rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)

    weights = {"fc0.weight": draw(hidden, 3 * channels), "fc0.bias": draw(hidden), "fc1.weight": draw(channels, hidden)}
    weights["fc1.weight"] *= 0.3
    if perception == "conv":
        for name in ("p0", "p1"):
            weights[f"{name}.weight"] = draw(channels, channels, kernel_size, kernel_size)
            weights[f"{name}.bias"] = draw(channels)
    return weights


def random_rule(perception: str, channels: int = 8, hidden: int = 24, **options: Any) -> pynca.Rule:
    draws = {k: options.pop(k) for k in ("kernel_size", "seed", "scale") if k in options}
    return pynca.Rule(random_weights(perception, channels, hidden, **draws), perception=perception, **options)


def random_model(
    perception: str = "conv",
    *,
    size: tuple[int, int] = (16, 16),
    scales: tuple[int, ...] = (4, 1),
    steps: int = 4,
    channels: int = 6,
    hidden: int = 10,
    options: dict[str, Any] | None = None,
    **preparation: Any,
) -> pynca.Model:
    """A small model with random weights: its masks depend on every fire mask and every pixel."""
    rules = [random_rule(perception, channels, hidden, seed=n, **(options or {})) for n in range(len(scales))]
    return pynca.Model(
        [pynca.Level(rule, steps + n, scale) for n, (rule, scale) in enumerate(zip(rules, scales, strict=True))],
        pynca.Preparation(size, **preparation),
        labels={1: "blob"},
    )


def exploding_model() -> pynca.Model:
    """A model whose weights are finite and whose cells reach infinity."""
    model = random_model()
    weights = {name: np.asarray(w) * np.float32(1e20) for name, w in model.levels[1].rule.weights.items()}
    level = pynca.Level(pynca.Rule(weights, perception="conv"), 4, 1)
    return replace(model, levels=[model.levels[0], level], card=pynca.Card(name="exploding"))
