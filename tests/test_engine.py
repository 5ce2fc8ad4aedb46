"""The step: against the papers' recorded runs, against NumPy, and against itself in every other way to run it."""

from __future__ import annotations

import _thread
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_nca
import pynca
from pynca import _core
from pynca.training import tape
from pynca.training._gradient import orthogonalized
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


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def long_run(*shape: int, threads: int, fire_rate: float = 0.5) -> Callable[[], object]:
    rule = random_rule("conv", shape[-1], 128, fire_rate=fire_rate)
    return partial(rule.run_in_place, zeros(*shape), 65535, threads=threads)


def one_step() -> Callable[[], object]:
    return partial(random_rule("conv", 24, kernel_size=15).run_in_place, zeros(1, 1500, 1500, 24), 1, threads=1)


def uneven_run(long: int) -> Callable[[], object]:
    """One of two threads is done at once and waits for the other; for one of both members it is the one that calls."""
    masks = np.zeros((65535, 2, 16, 16), np.uint8)
    masks[:, long] = 1
    rule = random_rule("conv", 16, 512)
    return partial(rule.run_in_place, zeros(2, 16, 16, 16), len(masks), masks=masks, threads=2)


def recorded_run(steps: int) -> Callable[[], tape.Node]:
    weights, start = tape.Weights(random_rule("sobel", 4, 512)), tape.Node(zeros(1, 32, 32, 4))
    return lambda: tape.nca(weights, start, steps, threads=1)


def gradient() -> Callable[[], object]:
    last = recorded_run(8000)()
    return tape.Node(np.float32(0), (last,), lambda _: (last.value,)).backward  # type: ignore[arg-type]


# What prepares calls of many seconds.
LONG: dict[str, Callable[[], Callable[[], object]]] = {
    "a run": lambda: long_run(1, 64, 64, 16, threads=1),
    "a run by rows": lambda: long_run(1, 64, 64, 16, threads=3),
    "a run by members": lambda: long_run(2, 64, 64, 16, threads=2),
    "a run with a long first member": lambda: uneven_run(0),
    "a run with a long second member": lambda: uneven_run(1),
    "a run without firing": lambda: long_run(1, 512, 512, 8, threads=1, fire_rate=0.0),
    "one step": one_step,
    "fire masks": lambda: partial(pynca.fire_mask, (4, 2**14, 2**14), 4),
    "a recorded run": lambda: recorded_run(40000),
    "a gradient": gradient,
    "a step of Muon": lambda: partial(orthogonalized, np.ones((2000, 4000), np.float32)),
    "the probe": lambda: partial(_core.peak_flops, 2, 60.0),
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_is_heard_and_other_threads_go_on_during(name: str) -> None:
    """Twice: the first time its handler lets the call go on. What is heard late is heard when the call has ended."""
    call, begun, heard, ended = LONG[name](), threading.Event(), threading.Event(), False
    ticks: list[int] = []

    def handle(*_: object) -> None:
        if heard.is_set():
            raise KeyboardInterrupt
        heard.set()

    def press() -> None:
        for event in (begun, heard):
            event.wait()
            for tick in range(5):  # for which it takes the lock of the interpreter
                time.sleep(0.01)
                ticks.append(tick)
            _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, handle)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            begun.set()
            call()
            ended = True
            presser.join()
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert not ended
    assert ticks == [*range(5), *range(5)]


@pytest.mark.skipif(os.name == "nt", reason="sends a signal of POSIX")
def test_a_signal_ends_a_long_run_with_the_handlers_exception(tmp_path: Path) -> None:
    """Of a process that a terminal interrupts, which then works on."""
    code = """
import signal
import numpy as np
from support import random_rule
signal.signal(signal.SIGINT, signal.default_int_handler)
rule, state = random_rule("conv", 16, 128), np.zeros((256, 256, 16), np.float32)
expected = rule.run(state, 2, threads=2)
print("ready", flush=True)
try:
    rule.run(state, 65535, threads=2)
except KeyboardInterrupt:
    print("heard", np.array_equal(rule.run(state, 2, threads=2), expected), flush=True)
"""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=120)[0] == "heard True\n"
        finally:
            process.kill()


def test_calls_of_other_threads_are_not_interrupted() -> None:
    """Handlers of signals run in Python's main thread alone."""
    rule, state = random_rule("conv", 16, 128), zeros(64, 64, 16)
    with ThreadPoolExecutor(1) as executor:
        result = executor.submit(rule.run, state, 300, threads=2).result()
    np.testing.assert_array_equal(result, rule.run(state, 300, threads=1))


# --- masks that are not what they should be ---------------------------------------------------------------


def wild(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bytes, half of them 0."""
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < 0.5, 0, random.integers(1, 256, shape)).astype(np.uint8)


@pytest.mark.parametrize("size", [(7, 5), (9, 16), (12, 100), (40, 333)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_cell_fires_where_its_mask_is_not_zero(size: tuple[int, int], threads: int, isa: str) -> None:
    rule = random_rule("conv", 5, 9)
    start = np.random.default_rng(1).normal(size=(2, *size, 5)).astype(np.float32)
    for masks in (wild((3, 2, *size)), np.full((3, 2, *size), 255, np.uint8)):
        result = start.copy()
        rule.run_in_place(result, 3, masks=masks, threads=threads)
        np.testing.assert_array_equal(result, rule.run(start, 3, masks=masks > 0, threads=1))


@contextmanager
def changing(masks: np.ndarray) -> Iterator[None]:
    """Another thread writes any bytes into masks meanwhile."""
    done = threading.Event()
    versions = [wild(masks.shape, seed) for seed in range(3)]

    def change() -> None:
        while not done.is_set():
            for version in versions:
                masks[...] = version

    writer = threading.Thread(target=change)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def test_masks_that_change_during_a_run_do_no_harm(isa: str) -> None:
    """What comes out means nothing; memory beyond the state stays as it was."""
    rule, masks = random_rule("sobel", 4, 8), wild((20, 1, 60, 333))
    room = np.zeros((3, 60, 333, 4), np.float32)
    with changing(masks):
        for threads in (1, 2, 3):
            rule.run_in_place(room[1:2], 20, masks=masks, threads=threads)
    assert not room[0].any()
    assert not room[2].any()


@pytest.mark.parametrize("in_place", [False, True])
def test_masks_in_the_memory_of_the_result(in_place: bool) -> None:
    rule, masks = random_rule("conv", 8, 12), pynca.fire_mask((12, 13), 4, seed=2)
    out = np.zeros((12, 13, 8), np.float32)
    inside = out.view(np.uint8).reshape(-1)[: masks.size].reshape(masks.shape)
    inside[...] = masks
    start = out.copy() if in_place else np.random.default_rng(0).normal(size=out.shape).astype(np.float32)
    expected = rule.run(start, 4, masks=masks)
    np.testing.assert_array_equal(rule.run(out if in_place else start, 4, masks=inside, out=out), expected)
    out[...], inside[...] = 0, masks
    expected = rule.run(out, 4, masks=masks)
    rule.run_in_place(out[None], 4, masks=inside)
    np.testing.assert_array_equal(out, expected)


# --- the compiled core, asked for what it cannot do ---------------------------------------------------------


def at_odd_address(array: np.ndarray) -> np.ndarray:
    copy = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


STATE, NUMBERS = np.zeros((2, 6, 7, 8), np.float32), np.zeros(2, np.uint32)
REFUSED = (ValueError, TypeError, OverflowError, BufferError, KeyError)


@pytest.mark.parametrize(
    "change",
    [
        *({"rule": None}, {"state": None}, {"samples": None}, {"slices": None}),
        *({"steps": -1}, {"steps": 65536}, {"steps": 2**31}, {"level": -1}, {"level": 16}, {"seed": -1}),
        *({"samples": NUMBERS[:1]}, {"slices": NUMBERS[:1]}, {"samples": at_odd_address(NUMBERS)}),
        *({"state": STATE.astype(">f4")}, {"state": STATE.astype(float)}, {"state": STATE[0]}),
        *({"state": STATE[::-1]}, {"state": STATE[..., ::-1]}, {"state": at_odd_address(STATE)}),
        *({"state": np.broadcast_to(STATE[:1], STATE.shape)}, {"state": np.zeros((2, 6, 7, 0), np.float32)}),
        *({"masks": np.ones((2, 2, 6, 6), np.uint8)}, {"masks": np.ones((1, 2, 6, 7), np.uint8)}),
        *({"masks": np.ones((2, 2, 6, 14), np.uint8)[..., ::2]}, {"masks": np.ones((2, 2, 6, 7), np.float32)}),
    ],
)
def test_the_core_refuses_what_its_memory_depends_on(change: dict[str, Any]) -> None:
    call: dict[str, Any] = {"rule": random_rule("conv")._packed(), "state": STATE.copy(), "steps": 2, "masks": None}
    call |= {"seed": 0, "level": 0, "samples": NUMBERS, "slices": NUMBERS, "threads": 2}
    with pytest.raises(REFUSED):
        _core.run(**call | change)


@pytest.mark.parametrize("threads", [-5, 0, 2**31 - 1])
def test_the_core_bounds_threads(threads: int) -> None:
    state = np.zeros((2000, 1, 1, 8), np.float32)
    many = np.arange(2000, dtype=np.uint32)
    _core.run(random_rule("sobel")._packed(), state, 1, None, 0, 0, many, many, threads)
    assert state.any()


@pytest.mark.parametrize(
    "change",
    [
        *({"out": None}, {"samples": None}, {"slices": NUMBERS[:1]}, {"level": 16}),
        *({"fire_rate": float("nan")}, {"fire_rate": -1.0}, {"fire_rate": 2.0}),
        *({"out": np.zeros((65536, 2, 1, 1), np.uint8)}, {"out": np.broadcast_to(np.uint8(0), (3, 2, 4, 5))}),
    ],
)
def test_the_core_refuses_fire_masks_that_cannot_be(change: dict[str, Any]) -> None:
    call: dict[str, Any] = {"out": np.zeros((3, 2, 4, 5), np.uint8), "fire_rate": 0.5, "seed": 0, "level": 0}
    with pytest.raises(REFUSED):
        _core.fire_mask(**call | {"samples": NUMBERS, "slices": NUMBERS} | change)


@pytest.mark.parametrize(
    "name", ["p0.weight", "p0.bias", "p1.weight", "p1.bias", "fc0.weight", "fc0.bias", "fc1.weight"]
)
def test_the_core_refuses_weights_that_do_not_fit(name: str) -> None:
    weights = random_weights("conv", 8, 24)
    whole = weights[name]
    for other in (
        *(None, "text", whole[:-1].copy(), whole[:0], whole[::-1], whole.astype(">f4"), whole.astype(float)),
        *(at_odd_address(whole), whole[None]),
    ):
        with pytest.raises(REFUSED):
            _core.CompiledRule("conv", "zero", 1, 0.5, {**weights, name: other})
    del weights[name]
    with pytest.raises(REFUSED):
        _core.CompiledRule("conv", "zero", 1, 0.5, weights)


@pytest.mark.parametrize(
    "options",
    [
        ("hex", "zero", 1, 0.5),
        ("conv", "wrap", 1, 0.5),
        ("conv", "zero", 8, 0.5),
        ("conv", "zero", -1, 0.5),
        ("conv", "zero", 1, float("nan")),
    ],
)
def test_the_core_refuses_options_that_cannot_be(options: tuple[Any, ...]) -> None:
    with pytest.raises(REFUSED):
        _core.CompiledRule(*options, random_weights("conv", 8, 24))


def test_a_compiled_rule_is_made_once() -> None:
    """Others may be running it."""
    with pytest.raises(TypeError):
        _core.CompiledRule.__new__(_core.CompiledRule)
    rule = random_rule("conv", 8, 24)
    state = np.random.default_rng(0).normal(size=(1, 9, 9, 8)).astype(np.float32)
    expected = rule.run(state, 3)
    compiled = rule._packed()
    compiled.__init__("conv", "zero", 3, 1.0, random_weights("conv", 8, 24, seed=7))  # type: ignore[misc]
    np.testing.assert_array_equal(rule.run(state, 3), expected)


def test_a_rule_may_be_too_large() -> None:
    weights = random_weights("sobel", 1, 1)
    weights["fc1.weight"] = np.zeros((2**15 + 1, 1), np.float32)
    weights["fc0.weight"] = np.zeros((1, 3 * (2**15 + 1)), np.float32)
    with pytest.raises(ValueError, match="channels is 32769; it must be between 1 and 32768"):
        pynca.Rule(weights, perception="sobel").run(np.zeros((1, 1, 2**15 + 1), np.float32), 1)


# --- what the CPU says of itself ----------------------------------------------------------------------------

X86 = bool(_core.x86_isas(0, 0, 0))
FEATURES = 1 << 27 | 1 << 28 | 1 << 12  # the system saves registers, and says which; AVX; fused multiply-add
AVX2, AVX512 = 1 << 5, 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31
YMM, ZMM = 0x6, 0xE6  # registers that are saved


@pytest.mark.skipif(not X86, reason="this is no x86-64 build")
@pytest.mark.parametrize(
    ("features", "extended", "saved", "expected"),
    [
        (FEATURES, AVX2 | AVX512, ZMM, 3),
        (FEATURES, AVX2 | AVX512, YMM, 2),
        (FEATURES, AVX2 | AVX512, ZMM & ~0x20, 2),
        (FEATURES, AVX2, ZMM, 2),
        *((FEATURES, AVX2 | AVX512 & ~(1 << bit), ZMM, 2) for bit in (16, 17, 30, 31)),
        (FEATURES, AVX2 | AVX512, 0, 1),
        (FEATURES, AVX2 | AVX512, 0x2, 1),
        (FEATURES, AVX512, ZMM, 1),
        (FEATURES, 0, ZMM, 1),
        *((FEATURES & ~(1 << bit), AVX2 | AVX512, ZMM, 1) for bit in (12, 27, 28)),
    ],
)
def test_what_a_cpu_has_and_its_system_saves(features: int, extended: int, saved: int, expected: int) -> None:
    assert _core.x86_isas(features, extended, saved) == ["baseline", "avx2", "avx512"][:expected]


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


def test_a_cell_fires_below_the_threshold_and_not_at_it(isa: str) -> None:
    words = numpy_nca.philox([np.uint64(c) for c in (1, 2, 3, 0)], [np.uint64(5), np.uint64(0)])
    for x, word in enumerate(words):
        for threshold, fires in ((int(word), 0), (int(word) + 1, 1)):
            mask = pynca.fire_mask((3, 8), 1, fire_rate=threshold / 2**32, seed=5, z=3)
            assert mask[0, 2, 4 + x] == fires


@pytest.mark.parametrize("width", [2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14 + 37])
def test_fire_mask_of_wide_rows(width: int, isa: str) -> None:
    """Drawn in parts."""
    expected = numpy_nca.fire_mask((2, width), 2, fire_rate=0.4, seed=9)
    np.testing.assert_array_equal(pynca.fire_mask((2, width), 2, fire_rate=0.4, seed=9), expected)


@pytest.mark.slow
def test_fire_mask_of_the_widest_row() -> None:
    """Two gigabytes."""
    width = 2**31 - 1
    mask = pynca.fire_mask((1, width), 1, seed=9)
    words = numpy_nca.philox([np.uint64(c) for c in ((width - 1) >> 2, 0, 0, 0)], [np.uint64(9), np.uint64(0)])
    last = [int(word < 2**31) for word in words]
    assert mask[0, 0, -3:].tolist() == last[:3]


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
        (np.zeros((4, 5, 24), np.float32)[..., ::2], ValueError, "out must be C-contiguous, aligned and writeable"),
        (np.frombuffer(bytes(960), np.float32).reshape(4, 5, 12), ValueError, "out must be C-contiguous, aligned and"),
        (np.zeros(961, np.uint8)[1:].view(np.float32).reshape(4, 5, 12), ValueError, "out must be C-contiguous, ali"),
        (np.zeros((4, 5, 12), ">f4"), TypeError, "out is >f4; it must be an array of float32"),
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


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"state": None}, TypeError, "state is NoneType; it must be an array of float32"),
        ({"state": [1.0]}, TypeError, "state is list; it must be an array of float32"),
        ({"state": STATE.astype(float)}, TypeError, "state is float64; it must be an array of float32"),
        ({"state": STATE.astype(">f4")}, TypeError, "state is >f4; it must be an array of float32"),
        ({"state": STATE[0]}, ValueError, r"it must be \(N, H, W, 8\)"),
        ({"state": np.broadcast_to(STATE[:1], STATE.shape)}, ValueError, "state must be C-contiguous"),
        ({"steps": "2"}, TypeError, "steps is '2'"),
        ({"masks": [[1]]}, ValueError, "masks must be an array of uint8 of shape"),
        ({"masks": np.ones((2, 2, 6, 7))}, ValueError, "masks must be an array of uint8 of shape"),
        ({"masks": np.ones(5, np.uint8)}, ValueError, "masks must be an array of uint8 of shape"),
        ({"samples": [0, 1]}, ValueError, "samples must be an array of 2 uint32"),
        ({"slices": np.zeros(3, np.uint32)}, ValueError, "slices must be an array of 2 uint32"),
    ],
)
def test_wrong_arguments_of_run_in_place(change: dict[str, Any], error: type[Exception], sentence: str) -> None:
    call: dict[str, Any] = {"state": STATE.copy(), "steps": 2, **change}
    with pytest.raises(error, match=sentence):
        random_rule("conv", 8).run_in_place(call.pop("state"), call.pop("steps"), **call)


def test_no_memory_is_an_error_of_its_own() -> None:
    with pytest.raises(MemoryError, match="there is no room for them"):
        pynca.fire_mask((2**31 - 1, 2**31 - 1), 65535)
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
