"""Products in half precision: close to float32, the same bits however it is run, and only where it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pynca
from pynca import _core, training
from support import CHECKPOINT, REFERENCE, random_rule, random_weights

pytestmark = pytest.mark.engine

HALF = _core.half_isas()
TOLERANCE = 1e-2  # of the largest value; docs/arm.md has what was seen

needs_half = pytest.mark.skipif(not HALF, reason="this CPU has no kernels in half precision")


@pytest.fixture(params=HALF)
def half(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.isa()
    yield request.param
    _core.select_isa(before)


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    assert not np.array_equal(result, expected), "nothing was computed in half precision"
    assert np.abs(result - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_half_precision_is_never_picked_by_itself(tmp_path: Path) -> None:
    assert not set(HALF) & set(_core.available_isas())
    environment = {name: value for name, value in os.environ.items() if name != "PYNCA_ISA"}
    code = "from pynca import _core; print(_core.isa()); _core.select_isa(None); print(_core.isa())"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.stdout.split() == [_core.available_isas()[-1]] * 2


@pytest.mark.skipif(bool(HALF), reason="this CPU has kernels in half precision")
def test_half_precision_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="the instruction set is 'neon_half'; this CPU and build have"):
        _core.select_isa("neon_half")


@needs_half
@pytest.mark.parametrize("perception", ["sobel", "conv"])
@pytest.mark.parametrize(("channels", "hidden"), [(16, 128), (13, 37), (3, 5), (32, 72)])
def test_half_precision_is_close_and_does_not_depend_on_threads(
    perception: str, channels: int, hidden: int, half: str
) -> None:
    """Whole chains and tails, of inputs and of outputs."""
    state = np.random.default_rng(4).normal(size=(21, 30, channels)).astype(np.float32)
    expected = random_rule(perception, channels, hidden).run(state, 8, seed=9)
    _core.select_isa(half)
    rule = random_rule(perception, channels, hidden)
    result = rule.run(state, 8, seed=9, threads=1)
    assert_close(result, expected)
    masks = pynca.fire_mask((21, 30), 8, seed=9)
    for threads in (2, 3):
        np.testing.assert_array_equal(rule.run(state, 8, seed=9, threads=threads), result)
        np.testing.assert_array_equal(rule.run(state, 8, masks=masks, threads=threads), result)
    # a batch of two: other tiles
    masks = np.stack([masks, pynca.fire_mask((21, 30), 8, seed=2)], axis=1)
    np.testing.assert_array_equal(rule.run(np.stack([state, -state]), 8, masks=masks)[0], result)


@needs_half
@pytest.mark.parametrize("kernel_size", [1, 5, 7])
def test_half_precision_with_other_kernels(kernel_size: int, half: str) -> None:
    state = np.random.default_rng(1).normal(size=(19, 8, 5)).astype(np.float32)
    expected = random_rule("conv", 5, 17, kernel_size=kernel_size).run(state, 4, seed=3)
    _core.select_isa(half)
    assert_close(random_rule("conv", 5, 17, kernel_size=kernel_size).run(state, 4, seed=3), expected)


@needs_half
@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason=f"{CHECKPOINT} is not there")
def test_recorded_logits_in_half_precision(half: str) -> None:
    _core.select_isa(half)
    model = pynca.import_checkpoint(CHECKPOINT, labels={1: "hippocampus"})
    with np.load(REFERENCE / "e1_mednca_hippocampus_001_s17.npz") as arrays:
        masks = [arrays["masks_low"], arrays["masks_high"]]
        assert_close(model.logits(arrays["image"], masks=masks), arrays["logits"])


@needs_half
@pytest.mark.parametrize("sign", [1, -1])
def test_what_half_precision_cannot_hold_stays_visible(sign: int, half: str) -> None:
    """Also where a sum passes the least finite number before the ReLU, which would make 0 of minus infinity."""
    _core.select_isa(half)
    weights = random_weights("sobel", 8, 24)
    weights["fc0.weight"][:, :8] = sign
    state = np.zeros((9, 9, 8), np.float32)
    state[4, 4] = 60000
    result = pynca.Rule(weights, perception="sobel").run(state, 1, masks=np.ones((1, 9, 9), np.uint8))
    assert not np.isfinite(result[4, 4, 1:]).any()
    assert np.isfinite(result[:3]).all()


@needs_half
def test_gradients_refuse_half_precision(half: str) -> None:
    _core.select_isa(half)
    state, target = np.zeros((1, 6, 7, 8), np.float32), np.ones((1, 6, 7), np.float32)
    with pytest.raises(ValueError, match=f"the instruction set is {half}, which computes in half precision; gradients"):
        training.gradients(random_rule("sobel"), state, target, steps=2)
