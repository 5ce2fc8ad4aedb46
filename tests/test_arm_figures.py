"""The scripts that count AArch64's instructions and model its inner loops, as far as they run on any machine."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ARM = Path(__file__).resolve().parents[1] / "benchmarks" / "arm"

pytestmark = pytest.mark.skipif(not ARM.is_dir(), reason="runs in a clone")

LISTING = """
kernels.o:     file format elf64-littleaarch64

0000000000000000 <void (anonymous namespace)::product<2>(float const*)>:
   0:\tmov\tx1, #0x0                   \t// #0
   4:\tldr\tq1, [x0, x1]
   8:\tadd\tx1, x1, #0x10
   c:\tfmla\tv0.4s, v1.4s, v2.s[0]
  10:\tfmla\tv0.4s, v1.4s, v2.s[3]
  14:\tcmp\tx1, x2
  18:\tb.ne\t4 <void (anonymous namespace)::product<2>(float const*)+0x4>  // b.any
  1c:\tsub\tw3, w3, #0x1
  20:\tcbnz\tw3, 0 <void (anonymous namespace)::product<2>(float const*)>
  24:\tret

0000000000000028 <tail(float*)>:
  28:\tfmla\tv0.4s, v1.4s, v2.s[0]
  2c:\tcbnz\tw3, 28 <tail(float*)>
  30:\tret
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"arm_{name}", ARM / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_products_of_a_firing_cell() -> None:
    count = script("instructions").multiply_adds
    assert count("conv", 32, 128) == 34_816
    assert count("conv", 16, 128) == 12_800
    assert count("sobel", 16, 128) == 8_192


def test_the_kept_counts_are_of_all_cases_and_leave_room_for_the_products() -> None:
    instructions = script("instructions")
    kept = json.loads(instructions.KEPT.read_text())
    assert len(kept) >= 2
    for column, counts in kept.items():
        assert set(counts) == set(instructions.CASES)
        for name, count in counts.items():
            assert count > instructions.multiply_adds(*instructions.CASES[name]) / instructions.lanes(column)


def test_a_count_that_grows_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    compare = script("instructions").compare
    name = "Sobel C=16 hidden 64"
    assert compare({name: 1019.0}, {name: 1000.0}) == []
    assert compare({name: 900.0}, {}) == []
    (sentence,) = compare({name: 1021.0}, {name: 1000.0})
    assert sentence == f"{name}: 1021.0 instructions per firing cell, 2.1% more than the 1000.0 kept"
    assert "+2.1%" in capsys.readouterr().out


def test_loops_in_half_precision_are_found_by_their_last_lane() -> None:
    listing = LISTING.replace(".4s", ".8h").replace(".s[0]", ".h[0]")
    inner_loops = script("inner_loops")
    assert inner_loops.lane_loops(listing.replace(".s[3]", ".h[3]")) == []
    (loop,) = inner_loops.lane_loops(listing.replace(".s[3]", ".h[7]"))
    assert loop.multiplies == 2


def test_the_model_gets_the_innermost_loops_over_four_lanes() -> None:
    (loop,) = script("inner_loops").lane_loops(LISTING)
    assert loop.function == "product<2>"
    assert loop.multiplies == 2
    assert [line.split()[0] for line in loop.body] == ["ldr", "add", "fmla", "fmla", "cmp", "b.ne"]
