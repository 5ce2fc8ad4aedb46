"""The step: against the papers' recorded runs, against NumPy, and against itself in every other way to run it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_nca
import pynca
from pynca import _core
from support import REFERENCE, golden_cases, random_rule, random_weights

pytestmark = pytest.mark.engine

# Without fused multiply-add the sums are rounded twice: its bits differ, as said in the docs.
FUSED = [name for name in _core.available_isas() if name != "baseline"]


def assert_close(result: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


# --- the papers' own code ------------------------------------------------------------------------------

# Batch normalisation couples all cells; this rule does not have it (a4).
RECORDED = [c for c in golden_cases("ab") if c.get("normalization", "none") == "none"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["file"])
def test_recorded_run(case: dict[str, Any], threads: int, isa: str) -> None:
    with np.load(REFERENCE / case["file"]) as arrays:
        rule = pynca.Rule.from_state_dict(
            {name[2:]: arrays[name] for name in arrays if name.startswith("w.")},
            perception={"a": "conv", "b": "sobel"}[case["family"]],
            input_channels=case["fixed_channels"],
        )
        masks = arrays["masks"]
        for steps, name, tolerance in ((1, "state_1", 1e-5), (2, "state_2", 1e-5), (len(masks), "state_final", 1e-4)):
            result = rule.run(arrays["state_in"], steps, masks=masks[:steps], threads=threads)
            assert_close(result, arrays[name], tolerance)


# --- NumPy ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    perception=st.sampled_from(["sobel", "conv"]),
    padding=st.sampled_from(["zero", "reflect"]),
    channels=st.integers(1, 37),
    hidden=st.integers(1, 140),
    height=st.integers(2, 23),
    width=st.integers(2, 40),
    fire_rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_any_rule_is_what_the_formulas_say(
    perception: str,
    padding: str,
    channels: int,
    hidden: int,
    height: int,
    width: int,
    fire_rate: float,
    threads: int,
    seed: int,
    data: st.DataObject,
) -> None:
    inputs = data.draw(st.integers(0, channels - 1), "input_channels")
    rule = random_rule(perception, channels, hidden, padding=padding, input_channels=inputs, fire_rate=fire_rate)
    state = np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)
    before = state.copy()
    steps = 3
    result = rule.run(state, steps, seed=seed, threads=threads)
    masks = numpy_nca.fire_mask((height, width), steps, fire_rate=fire_rate, seed=seed)
    assert_close(result, numpy_nca.run(rule, state, masks), 2e-5)
    np.testing.assert_array_equal(result, rule.run(state, steps, masks=masks, threads=1))
    np.testing.assert_array_equal(state, before)
    np.testing.assert_array_equal(result[..., :inputs], state[..., :inputs])


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_sizes(kernel_size: int, padding: str, threads: int, isa: str) -> None:
    rule = random_rule("conv", 5, 17, kernel_size=kernel_size, padding=padding)
    state = np.random.default_rng(1).normal(size=(19, 8, 5)).astype(np.float32)
    masks = numpy_nca.fire_mask((19, 8), 4, fire_rate=0.5, seed=3)
    assert_close(rule.run(state, 4, masks=masks, threads=threads), numpy_nca.run(rule, state, masks), 2e-5)


@pytest.mark.parametrize("perception", ["sobel", "conv"])
def test_large_and_uneven(perception: str, isa: str) -> None:
    """Rows longer than a block, many bands, and masks that fire in a corner only."""
    rule = random_rule(perception, 9, 30)
    state = np.random.default_rng(2).normal(size=(70, 500, 9)).astype(np.float32)
    masks = np.zeros((3, 70, 500), np.uint8)
    masks[:, 50:, 300:] = 1
    masks[1, :2, :3] = 1
    expected = numpy_nca.run(rule, state, masks)
    for threads in (1, 2, 5):
        assert_close(rule.run(state, 3, masks=masks, threads=threads), expected, 2e-5)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_one_row_fills_a_band(kernel_size: int, padding: str, isa: str) -> None:
    """A cell looks at more rows than one, none of which may have changed yet."""
    rule = random_rule("conv", 4, 9, kernel_size=kernel_size, padding=padding)
    state = np.random.default_rng(4).normal(size=(13, 330, 4)).astype(np.float32)
    masks = np.ones((3, 13, 330), np.uint8)
    masks[1, 4:9] = 0
    expected = numpy_nca.run(rule, state, masks)
    for threads in (1, 3):
        assert_close(rule.run(state, 3, masks=masks, threads=threads), expected, 2e-5)


# --- the same bits, however it is run --------------------------------------------------------------------


@pytest.mark.parametrize("perception", ["sobel", "conv"])
@pytest.mark.parametrize("size", [(33, 47), (8, 8), (3, 2), (130, 16)])
def test_threads_and_batches_do_not_change_a_bit(perception: str, size: tuple[int, int], isa: str) -> None:
    rule = random_rule(perception, 12, 40)
    batch = np.random.default_rng(3).normal(size=(7, *size, 12)).astype(np.float32)
    masks = np.stack([pynca.fire_mask(size, 6, seed=5, sample=n) for n in range(7)], axis=1)
    alone = [rule.run(state, 6, masks=masks[:, n], threads=1) for n, state in enumerate(batch)]
    for threads in (1, 2, 3, 4, 9):
        np.testing.assert_array_equal(rule.run(batch, 6, seed=5, threads=threads), alone)
        np.testing.assert_array_equal(rule.run(batch[:1], 6, seed=5, threads=threads), alone[:1])
        np.testing.assert_array_equal(rule.run(batch[:5], 6, masks=masks[:, :5], threads=threads), alone[:5])


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU has one instruction set with fused multiply-add")
@pytest.mark.parametrize("perception", ["sobel", "conv"])
@pytest.mark.parametrize(("channels", "hidden"), [(16, 128), (32, 128), (13, 37), (3, 5)])
def test_instruction_sets_agree_to_the_bit(perception: str, channels: int, hidden: int) -> None:
    state = np.random.default_rng(4).normal(size=(21, 30, channels)).astype(np.float32)
    before = _core.isa()
    results = []
    for name in FUSED:
        _core.select_isa(name)
        results.append(random_rule(perception, channels, hidden).run(state, 20, seed=9))
    _core.select_isa(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_concurrent_calls_and_rules_shared_by_threads() -> None:
    rule = random_rule("conv", 12, 40)
    states = np.random.default_rng(5).normal(size=(16, 20, 20, 12)).astype(np.float32)
    expected = [rule.run(s, 8, seed=n, threads=1) for n, s in enumerate(states)]
    fresh = copy.deepcopy(rule)  # packed by whichever call comes first
    with ThreadPoolExecutor(8) as executor:
        results = executor.map(lambda n: fresh.run(states[n], 8, seed=n, threads=1 + n % 4), range(16))
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_pool_survives_fork(tmp_path: Path) -> None:
    """A child of a process that used threads can use threads."""
    code = """
import os, sys
import numpy as np
from support import random_rule
rule = random_rule("sobel")
state = np.random.default_rng(0).normal(size=(40, 40, 8)).astype(np.float32)
expected = rule.run(state, 5, threads=3)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(rule.run(state, 5, threads=3), expected) else 1)
status = os.waitpid(child, 0)[1]
again = rule.run(state, 5, threads=3)
sys.exit(os.waitstatus_to_exitcode(status) or (0 if np.array_equal(again, expected) else 3))
"""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    # elsewhere than the clone, whose folder pynca/ holds no compiled core
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=environment)


def test_the_lock_of_the_interpreter_is_released() -> None:
    rule = random_rule("conv", 16, 128)
    state = np.zeros((150, 150, 16), np.float32)
    running = threading.Thread(target=lambda: rule.run(state, 20, threads=1))
    running.start()
    ticks = 0
    while running.is_alive() and ticks < 1000:
        ticks += 1
    # With the lock held the loop would have run once, when the call had ended.
    assert ticks == 1000
    running.join()


# --- the fire mask ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 90),
    fire_rate=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    level=st.integers(0, 15),
    z=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 4095),
)
def test_fire_mask_is_philox(
    height: int, width: int, fire_rate: float, seed: int, level: int, z: int, sample: int
) -> None:
    options = {"fire_rate": fire_rate, "seed": seed, "level": level, "z": z, "sample": sample}
    before = _core.isa()
    expected = numpy_nca.fire_mask((height, width), 3, **options)
    for name in _core.available_isas():
        _core.select_isa(name)
        np.testing.assert_array_equal(pynca.fire_mask((height, width), 3, **options), expected)
    _core.select_isa(before)


def test_philox_known_answers() -> None:
    """The generator itself, against the published test vectors of Random123 (kat_vectors, philox4x32 10)."""
    for counter, key, expected in [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]:
        assert numpy_nca.philox([np.uint64(c) for c in counter], [np.uint64(k) for k in key]) == expected


def test_fire_mask_of_a_batch_and_its_rate() -> None:
    batch = pynca.fire_mask((3, 50, 60), 8, fire_rate=0.3, seed=1, sample=2)
    assert batch.shape == (8, 3, 50, 60)
    assert batch.dtype == np.uint8
    for n in range(3):
        np.testing.assert_array_equal(batch[:, n], pynca.fire_mask((50, 60), 8, fire_rate=0.3, seed=1, sample=2 + n))
    # 72,000 draws: the mean's standard deviation is 0.0017
    assert abs(batch.mean() - 0.3) < 0.01
    assert pynca.fire_mask((9, 9), 2, fire_rate=1.0).all()
    assert not pynca.fire_mask((9, 9), 2, fire_rate=0.0).any()


# --- the edges -------------------------------------------------------------------------------------------


def test_no_steps_no_cells_no_batch() -> None:
    rule = random_rule("conv")
    state = np.ones((4, 5, 8), np.float32)
    np.testing.assert_array_equal(rule.run(state, 0), state)
    assert rule.run(np.ones((0, 5, 8), np.float32), 3).shape == (0, 5, 8)
    assert rule.run(np.ones((0, 4, 5, 8), np.float32), 3).shape == (0, 4, 5, 8)


def test_other_dtypes_and_layouts() -> None:
    rule = random_rule("conv")
    state = np.random.default_rng(6).normal(size=(10, 11, 8))
    expected = rule.run(state.astype(np.float32), 3)
    np.testing.assert_array_equal(rule.run(state, 3), expected)
    turned = np.asfortranarray(state.astype(np.float32))
    turned.flags.writeable = False
    np.testing.assert_array_equal(rule.run(turned, 3), expected)
    masks = pynca.fire_mask((10, 11), 3)
    np.testing.assert_array_equal(rule.run(state, 3, masks=masks.astype(bool)[:, :, ::-1][:, :, ::-1]), expected)


def test_a_result_goes_where_it_is_wanted() -> None:
    rule = random_rule("conv", 12, 20)
    state = np.random.default_rng(0).normal(size=(2, 9, 11, 12)).astype(np.float32)
    wanted, before = rule.run(state, 5, seed=3), state.copy()
    out = np.full_like(state, np.nan)
    assert rule.run(state, 5, seed=3, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(state, before)
    assert rule.run(state, 5, seed=3, out=state) is state
    np.testing.assert_array_equal(state, wanted)


@pytest.mark.parametrize(
    ("out", "error", "sentence"),
    [
        (np.zeros((4, 5, 12), np.float64), TypeError, "out is float64; it must be an array of float32"),
        ([0.0], TypeError, "out is list; it must be an array of float32"),
        (np.zeros((5, 4, 12), np.float32), ValueError, r"out has shape \(5, 4, 12\); for this state it must be"),
        (np.zeros((4, 5, 24), np.float32)[..., ::2], ValueError, "out must be C-contiguous and writeable"),
        (np.frombuffer(bytes(960), np.float32).reshape(4, 5, 12), ValueError, "out must be C-contiguous and writeable"),
    ],
)
def test_wrong_out(out: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        random_rule("conv", 12, 20).run(np.zeros((4, 5, 12), np.float32), 1, out=out)


def test_not_a_number_stays_visible() -> None:
    """NaN in the state reaches the cells that see it, rather than vanish in the ReLU."""
    state = np.zeros((9, 9, 8), np.float32)
    state[4, 4, 3] = np.nan
    result = random_rule("conv").run(state, 1, masks=np.ones((1, 9, 9), np.uint8))
    assert np.isnan(result[3:6, 3:6, 1:]).all()
    assert np.isfinite(result[:3]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"state": np.zeros((4, 4, 3))}, ValueError, r"state has shape \(4, 4, 3\)"),
        ({"state": np.zeros((4, 8))}, ValueError, "state has shape"),
        ({"state": np.zeros((4, 4, 8), complex)}, TypeError, "state has dtype complex128"),
        ({"state": np.zeros((1, 4, 8), np.float32)}, ValueError, "state has an image of 1 x 4"),
        ({"steps": -1}, ValueError, "steps is -1"),
        ({"steps": 65536}, ValueError, "steps is 65536"),
        ({"steps": 2.0}, TypeError, "steps is 2.0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "seed is"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"threads": "two"}, TypeError, "threads is 'two'"),
        ({"masks": np.zeros((2, 4, 5), np.uint8)}, ValueError, "masks has shape"),
        ({"masks": np.zeros((2, 4, 4), np.float32)}, TypeError, "masks has dtype float32"),
        ({"masks": np.full((2, 4, 4), 2, np.uint8)}, ValueError, "masks holds the value 2"),
        ({"state": np.zeros((4097, 2, 2, 8), np.float32)}, ValueError, "state has 4097 batch members"),
    ],
)
def test_wrong_arguments_of_run(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    call = {"state": np.zeros((4, 4, 8), np.float32), "steps": 2, **arguments}
    with pytest.raises(error, match=sentence):
        random_rule("conv").run(call.pop("state"), call.pop("steps"), **call)


def test_no_memory_is_an_error_of_its_own() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**10, 2**20, 2**20, 8), (0, 0, 0, 0))
    with pytest.raises(MemoryError):
        random_rule("conv").run(huge, 1)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"fc0.bias": None}, {}, r"misses fc0.bias"),
        ({"bn.weight": np.ones(24)}, {}, "holds unknown bn.weight"),
        ({"fc0.weight": np.ones((24, 23), np.float32)}, {}, r"fc0.weight has shape \(24, 23\)"),
        ({"p0.weight": np.ones((8, 8, 2, 2), np.float32)}, {}, "kernel size 2"),
        ({"p1.weight": np.ones((8, 8, 5, 5), np.float32)}, {}, "p1.weight has shape"),
        ({"fc1.weight": np.ones(24, np.float32)}, {}, "fc1.weight has shape"),
        ({"fc0.bias": np.full(24, np.nan, np.float32)}, {}, "fc0.bias holds a value that is not finite"),
        ({"fc0.bias": np.full(24, 1e300)}, {}, "fc0.bias holds a value beyond float32"),
        ({"fc0.bias": np.ones(24, int)}, {}, "fc0.bias has dtype int64"),
        ({}, {"perception": "hexagonal"}, "perception is 'hexagonal'"),
        ({}, {"padding": "wrap"}, "padding is 'wrap'"),
        ({}, {"fire_rate": 1.5}, "fire_rate is 1.5"),
        ({}, {"fire_rate": float("nan")}, "fire_rate is nan"),
        ({}, {"input_channels": 8}, "input_channels is 8"),
        ({}, {"perception": ["conv"]}, "perception is "),
    ],
)
def test_wrong_rules(change: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    weights = random_weights("conv", 8, 24) | change
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        pynca.Rule(weights, **{"perception": "conv", **options})


@pytest.mark.parametrize(
    "options",
    [{"shape": 4}, {"shape": (4,)}, {"shape": (4097, 1, 1)}, {"fire_rate": 1.5}, {"sample": 4096}, {"level": 16}],
)
def test_wrong_arguments_of_fire_mask(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is"):
        pynca.fire_mask(**{"shape": (4, 4), "steps": 2, **options})


@pytest.mark.parametrize("options", [{"fire_rate": "a"}, {"fire_rate": True}, {"steps": 1.0}, {"shape": (4.0, 4)}])
def test_wrong_types_of_fire_mask(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="it must be a"):
        pynca.fire_mask(**{"shape": (4, 4), "steps": 2, **options})


def test_from_state_dict_turns_kernels_and_back() -> None:
    weights = random_weights("conv", 4, 6)
    rule = pynca.Rule.from_state_dict(weights, perception="conv")
    np.testing.assert_array_equal(rule.weights["p0.weight"], weights["p0.weight"].swapaxes(2, 3))
    for name, value in rule.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])
    assert rule.padding == "reflect"
    assert random_rule("sobel").padding == "zero"
    assert rule.parameters == sum(w.size for w in weights.values())


def test_rules_are_immutable_and_can_be_pickled() -> None:
    weights = random_weights("conv", 4, 6)
    rule = pynca.Rule(weights, perception="conv", fire_rate=0.25)
    state = np.ones((5, 5, 4), np.float32)
    expected = rule.run(state, 2)
    weights["fc0.bias"][:] = 9
    np.testing.assert_array_equal(rule.run(state, 2), expected)
    with pytest.raises(AttributeError, match="a rule cannot be changed"):
        rule.fire_rate = 0.5
    with pytest.raises(ValueError, match="read-only"):
        rule.weights["fc0.bias"][0] = 1
    again = pickle.loads(pickle.dumps(rule))
    assert (again.fire_rate, again.padding) == (0.25, "reflect")
    np.testing.assert_array_equal(again.run(state, 2), expected)
