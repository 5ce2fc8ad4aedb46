"""Prints hashes of results, fire masks and gradients: the same lines on every CPU with fused multiply-add.

A script, not a test: `.ci/arm64` compares what it prints here with what it prints under emulation. PYNCA_ISA
chooses the instruction set. Weights and states are drawn as whole numbers and scaled by powers of two, so that
they are the same to the bit everywhere, which NumPy's normal distribution does not promise.
"""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np

import pynca
from pynca import training
from pynca.training._gradient import orthogonalized
from support import random_weights

SIZES = [(21, 30), (48, 40), (5, 97)]
WIDTHS = [(16, 128), (32, 128), (13, 37), (3, 5)]  # channels, hidden


def exact(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Every bit of a float32's significand is in use: what is rounded differently shows."""
    return (rng.integers(-(2**23), 2**23, shape) * (scale * 2.0**-23)).astype(np.float32)


def rule(perception: str, channels: int, hidden: int, *, kernel_size: int = 3, **options: object) -> pynca.Rule:
    rng = np.random.default_rng(channels)
    weights = {}
    for name, weight in random_weights(perception, channels, hidden, kernel_size=kernel_size).items():
        fan_in = math.prod(weight.shape[1:])
        weights[name] = exact(rng, weight.shape, 2.0 ** -(fan_in.bit_length() // 2))
    return pynca.Rule(weights, perception=perception, **options)


def show(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise SystemExit(f"{name} holds values that are not finite: hashes of them mean nothing")
    print(hashlib.sha256(np.ascontiguousarray(array)).hexdigest(), name)


def show_run(name: str, some_rule: pynca.Rule, shape: tuple[int, ...], **options: object) -> None:
    state = exact(np.random.default_rng(1), (*shape, some_rule.channels))
    result = some_rule.run(state, 12, **options)
    if np.array_equal(result, state):
        raise SystemExit(f"{name} changed nothing: its hash means nothing")
    show(name, result)


for perception, (channels, hidden), size in itertools.product(["sobel", "conv"], WIDTHS, SIZES):
    show_run(f"{perception} {channels} {hidden} {size}", rule(perception, channels, hidden), size, seed=7, threads=1)
for padding, kernel_size in itertools.product(["zero", "reflect"], [1, 5, 7]):
    wide = rule("conv", 10, 40, kernel_size=kernel_size, padding=padding, input_channels=3)
    show_run(f"conv {padding} {kernel_size}", wide, (3, 17, 22), seed=2**63 + 5, threads=3)
for fire_rate in (0.1, 0.5, 0.8, 1.0):
    mask = pynca.fire_mask((3, 37, 53), 9, fire_rate=fire_rate, seed=11, level=3, sample=2, z=19)
    show(f"fire mask {fire_rate}", mask)
for perception, (channels, hidden) in itertools.product(["sobel", "conv"], WIDTHS[2:]):
    state = exact(np.random.default_rng(2), (2, 19, 22, channels))
    target = (state[..., 0] < 0).astype(np.float32)
    loss, of_weights, of_state = training.gradients(
        rule(perception, channels, hidden), state, target, steps=6, seed=4, threads=2
    )
    show(f"{perception} {channels} {hidden} loss", np.array(loss))
    for name, gradient in [*of_weights.items(), ("state", of_state)]:
        show(f"{perception} {channels} {hidden} gradient of {name}", gradient)
for shape in ((24, 216), (96, 72), (1, 5)):
    show(f"orthogonalized {shape}", orthogonalized(exact(np.random.default_rng(3), shape)))
