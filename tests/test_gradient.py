"""The gradient: against the papers' recorded training, against finite differences, and against itself."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynca
from pynca import _core, training
from pynca.training import losses, tape
from pynca.training._gradient import Rollout, orthogonalized, sigmoid_and_softplus
from pynca.training.optimizers import Adam
from support import REFERENCE, golden_cases, random_rule

pytestmark = pytest.mark.engine

RECORDED = [c for c in golden_cases("h") if c["cls"] in ("BackboneNCA", "BasicNCA")]
FUSED = [name for name in _core.available_isas() if name != "baseline"]


def perception(case: dict[str, Any]) -> str:
    return {"BackboneNCA": "conv", "BasicNCA": "sobel"}[case["cls"]]


# --- the papers' own code ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["file"])
def test_recorded_gradients(case: dict[str, Any], threads: int, isa: str) -> None:
    with np.load(REFERENCE / case["file"]) as z:
        rule = pynca.Rule.from_state_dict(
            {name[2:]: z[name] for name in z if name.startswith("w.")},
            perception=perception(case),
            input_channels=case["fixed_channels"],
        )
        loss, of_weights, of_state = training.gradients(
            rule, z["state_in"], z["target"], masks=z["masks"], threads=threads
        )
        assert abs(loss - float(z["loss"][0])) < 1e-5
        expected = {name[5:]: z[name] for name in z if name.startswith("grad.")}
        assert set(of_weights) == set(expected)
        for name, gradient in (of_weights | {"state": of_state}).items():
            wanted = z["grad_state_in"] if name == "state" else expected[name]
            assert np.abs(gradient - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["file"])
def test_recorded_training_steps(case: dict[str, Any]) -> None:
    with np.load(REFERENCE / case["file"]) as z:
        weights = {name[2:]: z[name] for name in z if name.startswith("w.")}
        adam = Adam(betas=(0.5, 0.5))
        for step in range(3):
            rule = pynca.Rule.from_state_dict(
                weights, perception=perception(case), input_channels=case["fixed_channels"]
            )
            masks = z[f"train{step}.masks"]
            loss, gradients, _ = training.gradients(rule, z["state_in"], z["target"], masks=masks)
            assert abs(loss - z["train.losses"][step]) < 1e-4
            weights = adam.update(weights, gradients, 1.6e-3 * 0.9999**step)
            for name, weight in weights.items():
                away = np.abs(weight - z[f"train{step}.after.{name}"])
                # a gradient near zero can move an entry by the learning rate either way
                assert away.max() < 5e-3
                assert np.mean(away < 1e-5) > 0.999 or np.sum(away >= 1e-5) <= 1, name


# --- finite differences ---------------------------------------------------------------------------------


def assert_slope(value: Callable[[np.ndarray], float], at: np.ndarray, gradient: np.ndarray, step: float) -> None:
    """The derivative along a random direction is what the gradient says."""
    random = np.random.default_rng(0)
    for _ in range(3):
        direction = random.normal(size=at.shape)
        # towards the gradient, so that the difference is not all rounding
        direction = direction / np.linalg.norm(direction) + gradient / max(np.linalg.norm(gradient), 1e-30)
        numeric = (value(at + step * direction) - value(at - step * direction)) / (2 * step)
        assert numeric == pytest.approx(float(np.sum(direction * gradient)), rel=2e-2, abs=1e-6)


@pytest.mark.parametrize("kind", ["sobel", "conv"])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize(("height", "width", "channels"), [(7, 6, 5), (40, 37, 3)])
def test_run_by_finite_differences(kind: str, padding: str, height: int, width: int, channels: int) -> None:
    """Many bands too, whose rows look at those of other bands."""
    random = np.random.default_rng(1)
    rule = random_rule(kind, channels, 11, padding=padding)
    state = random.normal(size=(2, height, width, channels)).astype(np.float32)
    target = (random.random((2, height, width)) < 0.4).astype(np.float32)
    _, of_weights, of_state = training.gradients(rule, state, target, steps=3, seed=4)

    def loss(rule: pynca.Rule, state: np.ndarray) -> float:
        last = rule.run(state, 3, seed=4)[..., 1:2]
        return losses.evaluate("dice_bce", last, target[..., None])[0]

    assert_slope(lambda s: loss(rule, s), state, of_state, 3e-3)
    for name, gradient in of_weights.items():
        weights = rule.state_dict()

        def moved(w: np.ndarray, name: str = name, weights: dict[str, np.ndarray] = weights) -> float:
            other = pynca.Rule.from_state_dict(weights | {name: w}, perception=kind, padding=padding)  # type: ignore[arg-type]
            return loss(other, state)

        assert_slope(moved, weights[name], gradient, 3e-3)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize(
    ("kind", "kernel_size", "inputs"),
    [("conv", 1, 1), ("conv", 5, 1), ("conv", 7, 1), ("conv", 3, 0), ("conv", 3, 3), ("sobel", 3, 0), ("sobel", 3, 3)],
)
def test_kernels_and_image_channels_by_finite_differences(
    kind: str, kernel_size: int, inputs: int, padding: str
) -> None:
    random = np.random.default_rng(3)
    options: dict[str, Any] = {"padding": padding, "input_channels": inputs}
    rule = random_rule(kind, 5, 11, kernel_size=kernel_size, **options)
    state = random.normal(size=(2, 9, 12, 5)).astype(np.float32)
    target = (random.random((2, 9, 12)) < 0.4).astype(np.float32)
    _, of_weights, of_state = training.gradients(rule, state, target, steps=3, seed=4)

    def loss(rule: pynca.Rule, state: np.ndarray) -> float:
        last = rule.run(state, 3, seed=4)[..., inputs : inputs + 1]
        return losses.evaluate("dice_bce", last, target[..., None])[0]

    assert_slope(lambda s: loss(rule, s), state, of_state, 3e-3)
    for name, gradient in of_weights.items():
        weights = rule.state_dict()

        def moved(w: np.ndarray, name: str = name, weights: dict[str, np.ndarray] = weights) -> float:
            changed = weights | {name: w}
            return loss(pynca.Rule.from_state_dict(changed, perception=kind, **options), state)  # type: ignore[arg-type]

        assert_slope(moved, weights[name], gradient, 3e-3)
    # what never changes has no say in how it changes
    assert not of_weights["fc1.weight"][:inputs].any()


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_losses_by_finite_differences(name: str) -> None:
    random = np.random.default_rng(2)
    x, t = random.normal(scale=3, size=(4, 5)), random.random((4, 5))
    gradient = losses.LOSSES[name](x, t)[1]
    for place in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        numeric = (losses.LOSSES[name](moved[0], t)[0] - losses.LOSSES[name](moved[1], t)[0]) / 2e-5
        assert numeric == pytest.approx(gradient[place], rel=1e-5, abs=1e-9)


def test_each_slice_has_its_own_dice() -> None:
    random = np.random.default_rng(3)
    x, t = random.normal(size=(3, 4, 4)), (random.random((3, 4, 4)) < 0.3).astype(float)
    own = np.mean([losses.dice(x[n], t[n])[0] for n in range(3)])
    value, gradient = losses.slice_dice_bce(x, t)
    assert value == pytest.approx(own + losses.bce(x, t)[0])
    ends = [16, 32]  # the same cells in one row
    flat, slope = losses.evaluate("slice_dice_bce", x.reshape(-1, 1), t.reshape(-1, 1), ends)  # type: ignore[arg-type]
    assert flat == pytest.approx(value)
    np.testing.assert_allclose(slope.reshape(x.shape), gradient, rtol=1e-6)

    small = np.zeros((2, 8, 8))
    small[0, :6], small[1, 0, 0] = 1, 1
    missed = np.where(small[:1] > 0, 9.0, -9.0).repeat(2, axis=0)
    missed[1] = -9  # the large structure is found, the small one is not
    assert losses.dice(missed, small)[0] < 0.02
    assert losses.slice_dice_bce(missed, small, smooth=0.1)[0] - losses.bce(missed, small)[0] > 0.4


def test_losses_stay_finite_where_a_sigmoid_saturates() -> None:
    x, t = np.array([-1e4, 1e4, -800.0, 800.0]), np.array([1.0, 0.0, 0.0, 1.0])
    for name in losses.LOSSES:
        value, gradient = losses.LOSSES[name](x, t)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    assert losses.bce(x, t)[1][0] < 0  # still points the right way


OPERATIONS: dict[str, Callable[[tape.Node], tape.Node]] = {
    "finer": lambda s: tape.nca(
        tape.Weights(random_rule("sobel", 4)), s, 0, image=np.ones((2, 12, 12), np.float32), scale=3
    ),
    "crop": lambda s: tape.crop(s, np.array([[0, 1], [2, 0]]), (2, 3)),
    "channels": lambda s: tape.channels(s, 1, 3),
    "sigmoid": tape.sigmoid,
    "select": lambda s: tape.select(s, np.arange(32).reshape(2, 4, 4) % 3 == 0),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_by_finite_differences(operation: str) -> None:
    random = np.random.default_rng(3)
    start = random.normal(size=(2, 4, 4, 4)).astype(np.float32)
    target = random.random(OPERATIONS[operation](tape.Node(start)).value.shape).astype(np.float32)

    def value(state: np.ndarray) -> float:
        return float(tape.loss("bce", OPERATIONS[operation](tape.Node(state.astype(np.float32))), target).value)

    leaf = tape.Node(start)
    tape.loss("bce", OPERATIONS[operation](leaf), target).backward()
    assert leaf.gradient is not None
    assert_slope(value, start, leaf.gradient, 1e-2)


def test_a_value_used_often_by_finite_differences() -> None:
    """Whole gradients and parts of them are added up, whichever comes first."""
    random = np.random.default_rng(4)
    start = random.normal(size=(2, 4, 4, 4)).astype(np.float32)
    uses = [OPERATIONS[name] for name in ("sigmoid", "channels", "sigmoid", "crop", "finer", "select")]
    targets = [random.random(use(tape.Node(start)).value.shape).astype(np.float32) for use in uses]

    def total(state: tape.Node) -> tape.Node:
        terms = enumerate(zip(uses, targets, strict=True), start=1)
        return tape.weighted_sum([(0.1 * n, tape.loss("bce", use(state), target)) for n, (use, target) in terms])

    leaf = tape.Node(start)
    total(leaf).backward()
    assert leaf.gradient is not None
    assert_slope(lambda s: float(total(tape.Node(s.astype(np.float32))).value), start, leaf.gradient, 1e-2)


@pytest.mark.parametrize("injected", [True, False])
@pytest.mark.parametrize(
    ("kind", "padding", "kernel_size"), [("sobel", "zero", 3), ("conv", "reflect", 3), ("conv", "zero", 5)]
)
def test_what_cannot_reach_the_wanted_cells_is_left_out(
    kind: str, padding: str, kernel_size: int, injected: bool
) -> None:
    """What is wanted keeps its bits; gradients are the same sums, in another order."""
    random = np.random.default_rng(8)
    rule = random_rule(kind, 6, 20, padding=padding, kernel_size=kernel_size)
    start = random.normal(size=(3, 24, 20, 6)).astype(np.float32)
    corners, size = np.array([[0, 0], [9, 7], [18, 15]]), (6, 5)
    masks = (random.random((4, 3, 24, 20)) < 0.5).astype(np.uint8) if injected else None
    wanted = np.zeros((3, 24, 20), np.uint8)
    for n, (y, x) in enumerate(corners):
        wanted[n, y : y + size[0], x : x + size[1]] = 1
    target = (random.random((3, *size, 6)) < 0.4).astype(np.float32)
    results = []
    for some in (None, wanted):
        weights, first = tape.Weights(rule), tape.Node(start)
        last = tape.nca(weights, first, 4, masks=masks, seed=3, wanted=some)
        seen = tape.crop(last, corners, size)
        tape.loss("bce", seen, target).backward()
        assert first.gradient is not None
        results.append((last.value, seen.value, first.gradient, weights.gradients))
    whole, part = results
    np.testing.assert_array_equal(part[1], whole[1])
    for name, gradient in (whole[3] | {"state": whole[2]}).items():
        np.testing.assert_allclose(
            (part[3] | {"state": part[2]})[name], gradient, atol=1e-6 * np.abs(gradient).max(), err_msg=name
        )
    assert (part[0][0, -6:, -6:] == start[0, -6:, -6:]).all()  # far away from the first member's patch nothing was done
    assert (whole[0][0, -6:, -6:, 1:] != start[0, -6:, -6:, 1:]).any()


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_a_run_starts_from_repeated_cells_and_an_image(kind: str, with_image: bool, scale: int) -> None:
    random = np.random.default_rng(9)
    rule, size = random_rule(kind, 6, 20), (5 * scale, 4 * scale)
    cells = random.normal(size=(2, 5, 4, 6)).astype(np.float32)
    image = random.random((2, *size)).astype(np.float32) if with_image else None
    repeated = cells.repeat(scale, axis=1).repeat(scale, axis=2)
    if image is not None:
        repeated[..., 0] = image
    target = (random.random((2, *size, 6)) < 0.4).astype(np.float32)
    results = []
    for start, options in ((cells, {"image": image, "scale": scale}), (repeated, {})):
        weights, first = tape.Weights(rule), tape.Node(start)
        last = tape.nca(weights, first, 3, seed=5, threads=2, **options)  # type: ignore[arg-type]
        tape.loss("bce", last, target).backward()
        results.append((last.value, first.gradient, weights.gradients))
    (last_value, of_cells, gradients), (expected_value, of_repeated, expected) = results
    np.testing.assert_array_equal(last_value, expected_value)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(gradients[name], gradient, err_msg=name)
    assert of_cells is not None
    assert of_repeated is not None
    of_repeated = of_repeated.reshape(2, 5, scale, 4, scale, 6).sum(axis=2).sum(axis=3)
    if with_image:
        of_repeated[..., 0] = 0
    np.testing.assert_array_equal(of_cells, of_repeated)


def test_what_a_run_starts_from_must_fit() -> None:
    weights, start = tape.Weights(random_rule("conv", 6, 9)), tape.Node(np.zeros((2, 8, 8, 6), np.float32))
    with pytest.raises(ValueError, match="wanted must be"):
        tape.nca(weights, start, 2, wanted=np.zeros((2, 8, 7), np.uint8))
    with pytest.raises(ValueError, match="image must be"):
        tape.nca(weights, start, 2, image=np.zeros((2, 8, 8), np.float32), scale=2)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_one_row_fills_a_band_of_a_large_kernel(padding: str) -> None:
    random = np.random.default_rng(6)
    rule = random_rule("conv", 3, 11, padding=padding, kernel_size=7, fire_rate=1.0)
    state = random.normal(size=(1, 11, 330, 3)).astype(np.float32)
    target = (random.random((1, 11, 330)) < 0.4).astype(np.float32)
    _, _, of_state = training.gradients(rule, state, target, steps=2)

    def loss(start: np.ndarray) -> float:
        return losses.evaluate("dice_bce", rule.run(start, 2)[..., 1:2], target[..., None])[0]

    assert_slope(loss, state, of_state, 3e-3)


# --- the same bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_threads_do_not_change_a_bit(kind: str, isa: str) -> None:
    random = np.random.default_rng(5)
    rule = random_rule(kind, 10, 33)
    state = random.normal(size=(19, 21, 24, 10)).astype(np.float32)
    target = (random.random((19, 21, 24)) < 0.4).astype(np.float32)
    results = [training.gradients(rule, state, target, steps=4, seed=1, threads=t) for t in (1, 2, 3, 5)]
    for loss, of_weights, of_state in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(of_state, results[0][2])
        for name, gradient in of_weights.items():
            np.testing.assert_array_equal(gradient, results[0][1][name])


@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_memory_of_runs_that_are_gone_serves_others(kind: str) -> None:
    """Neither a run that still lives nor a gradient asked for twice notices."""
    random = np.random.default_rng(7)
    rule = random_rule(kind, 8, 16)
    states = [random.normal(size=(2, size, 16, 8)).astype(np.float32) for size in (16, 17, 9, 30)]

    def run(state: np.ndarray) -> tuple[tape.Weights, tape.Node, tape.Node]:
        weights, first = tape.Weights(rule), tape.Node(state)
        return weights, first, tape.nca(weights, first, 3, seed=2)

    def gradient(weights: tape.Weights, first: tape.Node, last: tape.Node) -> list[np.ndarray]:
        weights.gradients.clear()
        first.gradient = last.gradient = None
        tape.loss("bce", last, (last.value > 0).astype(np.float32)).backward()
        assert first.gradient is not None
        return [first.gradient, *weights.gradients.values()]

    alone = [gradient(*run(state)) for state in states]
    with tape.reused_memory():
        kept = run(states[0])
        for turn in range(3):
            for n, state in enumerate(states):
                for a, b in zip(gradient(*run(state)), alone[n], strict=True):
                    np.testing.assert_array_equal(a, b, err_msg=f"turn {turn}, state {n}")
        for _ in range(2):
            for a, b in zip(gradient(*kept), alone[0], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with fused multiply-add")
@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_instruction_sets_agree_to_the_bit(kind: str) -> None:
    random = np.random.default_rng(6)
    state = random.normal(size=(2, 20, 24, 13)).astype(np.float32)
    target = (random.random((2, 20, 24)) < 0.4).astype(np.float32)
    before, results = _core.isa(), []
    for name in FUSED:
        _core.select_isa(name)
        results.append(training.gradients(random_rule(kind, 13, 37), state, target, steps=4))
    _core.select_isa(before)
    np.testing.assert_array_equal(results[0][2], results[1][2])
    for name in results[0][1]:
        np.testing.assert_array_equal(results[0][1][name], results[1][1][name])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=50))
def test_sigmoid_and_softplus(values: list[float]) -> None:
    x = np.array(values)
    sigmoid, softplus = sigmoid_and_softplus(x)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-x)), rtol=1e-14)
    np.testing.assert_allclose(softplus, np.logaddexp(0, x), rtol=1e-14)


def test_sigmoid_and_softplus_where_numbers_end() -> None:
    sigmoid, softplus = sigmoid_and_softplus(np.array([[np.inf, -np.inf, np.nan], [1e300, -1e300, -0.0]]))
    np.testing.assert_allclose(sigmoid, [[1, 0, np.nan], [1, 0, 0.5]], atol=1e-300)
    np.testing.assert_allclose(softplus, [[np.inf, 0, np.nan], [1e300, 0, np.log(2)]], atol=1e-300)


def test_sigmoid_and_softplus_are_the_same_bits_on_every_instruction_set() -> None:
    x = np.random.default_rng(0).normal(scale=20, size=1003)
    before, results = _core.isa(), []
    for name in _core.available_isas():
        _core.select_isa(name)
        results.append(np.stack(sigmoid_and_softplus(x)).tobytes())
    _core.select_isa(before)
    assert len(set(results)) == 1


# --- a rollout owns what it needs ------------------------------------------------------------------------


def rollout(rule: pynca.Rule, start: np.ndarray, **change: Any) -> Rollout:
    call: dict[str, Any] = {"perception": rule.perception, "padding": rule.padding, "fire_rate": rule.fire_rate}
    call |= {"input_channels": rule.input_channels, "weights": dict(rule.weights), "start": start, "image": None}
    call |= {"scale": 1, "steps": 4, "masks": None, "seed": 1, "level": 0, "wanted": None, "threads": 2}
    call |= {"samples": np.arange(len(start), dtype=np.uint32), "slices": np.zeros(len(start), np.uint32)}
    return Rollout(**call | change)


def same_gradients(some: Rollout, other: Rollout) -> None:
    np.testing.assert_array_equal(some.final_state, other.final_state)
    of_last = np.random.default_rng(3).normal(size=some.final_state.shape).astype(np.float32)
    (of_weights, of_start), (expected, expected_start) = some.backward(of_last), other.backward(of_last)
    np.testing.assert_array_equal(of_start, expected_start)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(of_weights[name], gradient, err_msg=name)


START = np.random.default_rng(0).normal(size=(2, 12, 30, 5)).astype(np.float32)


@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_what_a_run_was_made_with_may_change_afterwards(kind: str) -> None:
    """The record has room for the cells that fired then."""
    rule, random = random_rule(kind, 5, 9), np.random.default_rng(1)
    masks = (random.random((4, *START.shape[:3])) < 0.3).astype(np.uint8)
    samples, slices = np.arange(2, dtype=np.uint32), np.zeros(2, np.uint32)
    weights = {name: w.copy() for name, w in rule.weights.items()}
    by_masks, expected = rollout(rule, START, masks=masks), rollout(rule, START, masks=masks.copy())
    made = rollout(rule, START, samples=samples, slices=slices, weights=weights)
    masks[...], samples[...], slices[...] = 255, 9, 7
    for weight in weights.values():
        weight.resize(1, refcheck=False)
    same_gradients(by_masks, expected)
    same_gradients(made, rollout(rule, START))
    last = made.final_state
    with pytest.raises(ValueError, match="WRITEABLE"):
        last.setflags(write=True)


@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_masks_and_what_is_wanted_count_where_they_are_not_zero(kind: str, isa: str) -> None:
    rule, random = random_rule(kind, 5, 9), np.random.default_rng(1)
    masks = random.integers(0, 4, (4, *START.shape[:3]), np.uint8) * np.uint8(67)
    wanted = random.integers(0, 3, START.shape[:3], np.uint8) * np.uint8(98)
    for chosen in (None, wanted):
        plain = None if chosen is None else (chosen > 0).astype(np.uint8)
        expected = rollout(rule, START, masks=(masks > 0).astype(np.uint8), wanted=plain)
        same_gradients(rollout(rule, START, masks=masks, wanted=chosen), expected)


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with fused multiply-add")
@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_the_instruction_set_may_change_at_any_time(kind: str) -> None:
    # so large that to pack the weights takes as long as to choose, several times
    rule, before = random_rule(kind, 50, 2000), _core.isa()
    start = START[:, :3, :4, :1].repeat(50, axis=3)
    expected, done = rollout(rule, start, steps=2), threading.Event()

    def choose() -> None:
        while not done.is_set():
            for name in FUSED:
                _core.select_isa(name)

    chooser = threading.Thread(target=choose)
    chooser.start()
    try:
        for _ in range(30):
            same_gradients(rollout(rule, start, steps=2), expected)
    finally:
        done.set()
        chooser.join()
        _core.select_isa(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_memory_that_is_kept_survives_fork(tmp_path: Path) -> None:
    """Also that of a process whose other thread was just about to take some."""
    code = """
import os, sys, threading
import numpy as np
from pynca.training import tape
from support import random_rule
rule, state = random_rule("sobel"), np.ones((2, 16, 16, 8), np.float32)
def run():
    return tape.nca(tape.Weights(rule), tape.Node(state), 3, threads=2).value
expected, done = run(), threading.Event()
def work():
    while not done.is_set():
        run()
with tape.reused_memory():
    worker = threading.Thread(target=work)
    worker.start()
    bad = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(run(), expected) else 1)
        bad |= os.waitpid(child, 0)[1]
    done.set()
    worker.join()
sys.exit(1 if bad else 0)
"""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=environment)


def at_odd_address(array: np.ndarray) -> np.ndarray:
    copy = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize(
    "change",
    [
        *({"start": None}, {"start": START[0]}, {"start": START[:0]}, {"start": START[:, :0]}, {"start": START[::-1]}),
        *({"start": START.astype(">f4")}, {"start": START.astype(float)}, {"start": at_odd_address(START)}),
        *({"start": np.broadcast_to(START[:1], START.shape)}, {"start": np.zeros((2, 3, 4, 6), np.float32)}),
        *({"scale": 0}, {"scale": -1}, {"scale": 2**27}, {"scale": 2**31 - 1}, {"steps": -1}, {"steps": 65536}),
        *({"level": -1}, {"level": 16}, {"seed": -1}, {"input_channels": 5}, {"fire_rate": float("nan")}),
        *({"samples": np.zeros(1, np.uint32)}, {"slices": None}, {"samples": at_odd_address(np.zeros(2, np.uint32))}),
        *({"masks": np.ones((4, 2, 12, 29), np.uint8)}, {"masks": np.ones((3, 2, 12, 30), np.uint8)}),
        *({"image": np.ones((2, 12, 29), np.float32)}, {"image": at_odd_address(START[..., 0])}),
        *({"wanted": np.ones((2, 12, 29), np.uint8)}, {"perception": "hex"}, {"padding": "wrap"}),
    ],
)
def test_a_rollout_refuses_what_its_memory_depends_on(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        rollout(random_rule("conv", 5, 9), START, **change)


@pytest.mark.parametrize(
    "name", ["p0.weight", "p0.bias", "p1.weight", "p1.bias", "fc0.weight", "fc0.bias", "fc1.weight"]
)
def test_a_rollout_refuses_weights_that_do_not_fit(name: str) -> None:
    rule = random_rule("conv", 5, 9)
    weights: dict[str, Any] = dict(rule.weights)
    whole = weights[name]
    for other in (None, whole[:-1].copy(), whole[:0], at_odd_address(whole), whole[None]):
        with pytest.raises((ValueError, TypeError)):
            rollout(rule, START, weights={**weights, name: other})
    del weights[name]
    with pytest.raises(ValueError, match=f"miss {name}"):
        rollout(rule, START, weights=weights)


def test_what_was_never_a_rollout() -> None:
    empty = Rollout.__new__(Rollout)
    with pytest.raises(TypeError, match="never initialised"):
        empty.final_state  # noqa: B018
    with pytest.raises(TypeError, match="never initialised"):
        empty.backward(START)
    with pytest.raises(TypeError):
        copy.copy(rollout(random_rule("sobel", 5, 9), START))


@pytest.mark.parametrize(
    "gradient", [None, START[0], START[:0], START[::-1], START.astype(">f4"), at_odd_address(START)]
)
def test_a_gradient_must_be_the_states(gradient: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rollout(random_rule("sobel", 5, 9), START).backward(gradient)


def test_wrong_arguments_of_what_training_computes() -> None:
    for matrix in (np.zeros(3, np.float32), np.ones((3, 3), ">f4"), at_odd_address(np.ones((3, 3), np.float32)), None):
        with pytest.raises((ValueError, TypeError)):
            orthogonalized(matrix)
    with pytest.raises(ValueError, match="x must be aligned"):
        sigmoid_and_softplus(at_odd_address(np.ones(3)))


# --- the edges -------------------------------------------------------------------------------------------


def test_only_cells_that_fire_have_a_say() -> None:
    rule = random_rule("conv", 6, 9)
    state = np.ones((1, 8, 8, 6), np.float32)
    target = np.ones((1, 8, 8), np.float32)
    _, of_weights, of_state = training.gradients(rule, state, target, masks=np.zeros((2, 1, 8, 8), np.uint8))
    assert all(not gradient.any() for gradient in of_weights.values())
    assert of_state[..., 1].all()
    assert not np.delete(of_state, 1, axis=-1).any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["sobel", "conv"])
def test_gradients_too_small_for_a_normal_number_are_zero(kind: str, threads: int, isa: str) -> None:
    """They would cost many times the time. Arithmetic elsewhere, in the same threads, keeps such numbers."""
    rule = random_rule(kind, 6, 9)
    tiny_weights = {**rule.weights, "fc1.weight": rule.weights["fc1.weight"] * np.float32(1e-39)}
    faint = pynca.Rule(tiny_weights, perception=rule.perception)
    state = np.full((2, 32, 32, 6), 1e-39, np.float32)
    state[..., 0] = 1
    before = faint.run(state, steps=2, threads=threads)
    assert before[..., 1:].all()
    weights, first = tape.Weights(rule), tape.Node(state)
    last = tape.nca(weights, first, 3, masks=np.ones((3, 2, 32, 32), np.uint8), threads=threads)
    tape.Node(np.float32(0), (last,), lambda _: (np.full(state.shape, 1e-39, np.float32),)).backward()
    assert first.gradient is not None
    assert all(not gradient.any() for gradient in weights.gradients.values())
    assert not first.gradient.any()
    tiny = np.full(1000, 2e-38, np.float32)
    assert (tiny * np.float32(0.1) > 0).all()
    np.testing.assert_array_equal(faint.run(state, steps=2, threads=threads), before)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"state": np.zeros((4, 4, 8))}, ValueError, "state has shape"),
        ({"target": np.zeros((2, 4, 5))}, ValueError, "target has shape"),
        ({"steps": None}, ValueError, "steps must be given"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"masks": np.zeros((3, 2, 4, 4), np.uint8)}, ValueError, "masks has shape"),
        ({"loss": "hinge"}, ValueError, "loss is 'hinge'"),
        ({"loss": []}, ValueError, "loss is "),
        ({"rule": None}, TypeError, "rule is of type NoneType"),
        ({"state": np.zeros((2, 4, 4, 8), complex)}, TypeError, "state has dtype complex128"),
        ({"target": np.full((2, 4, 4), 1j)}, TypeError, "target has dtype complex128"),
        ({"target": np.full((2, 4, 4), np.nan)}, ValueError, "target holds a value outside 0 to 1"),
        ({"target": np.full((2, 4, 4), 2)}, ValueError, "target holds a value outside 0 to 1"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"state": np.zeros((2, 1, 4, 8)), "target": np.zeros((2, 1, 4))}, ValueError, "state has an image of 1 x 4"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], sentence: str) -> None:
    call: dict[str, Any] = {"state": np.zeros((2, 4, 4, 8)), "target": np.zeros((2, 4, 4)), "steps": 2, **change}
    with pytest.raises(error, match=sentence):
        training.gradients(call.pop("rule", random_rule("conv")), call.pop("state"), call.pop("target"), **call)
