"""Estimates Med-NCA at 320 x 320 on a Raspberry Pi 4 and 5 from counts and the cycle model: nothing here is measured.

    python3 benchmarks/arm/estimate.py OBJECT [--compiler 'Clang 22'] [--objdump PROGRAM]

From OBJECT, the compiled NEON kernels, come the cycles of the inner loop; from aarch64_instructions.json the
instructions per firing cell. For products in half precision both must be theirs: neon_half's object file, and
--compiler 'GCC 12, neon_half'. A time is a range. Its lower end is the multiplies alone, at the inner loop's modelled
speed. At its upper end every other instruction takes a cycle of its own, and after that the state is read from
memory and written back once a step. All four cores are taken to share the work evenly and to keep their clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from inner_loops import CORES, HALF_CORES, Loop, cycles, disassembled, find_mca, lane_loops
from instructions import CASES, KEPT, lanes, multiply_adds

SIDE, COARSE = 320, 4  # the coarse level's cells are so many pixels wide
FIRE_RATE = 0.5
THREADS = 4


class Board(NamedTuple):
    name: str
    core: str
    hertz: float
    bandwidth: float  # bytes a second that copying reaches, assumed


BOARDS = [
    Board("Pi 4, 1.5 GHz", "A72", 1.5e9, 4e9),
    Board("Pi 4, 1.8 GHz", "A72", 1.8e9, 4e9),
    Board("Pi 5, 2.4 GHz", "A76", 2.4e9, 10e9),
]
RUNS = [  # rule, coarse steps, fine steps
    ("dense C=16 hidden 128", 16, 16),
    ("dense C=32 hidden 128", 16, 16),
    ("Sobel C=16 hidden 64", 20, 40),
]


def seconds(
    board: Board, rule: str, steps: tuple[int, int], loop: Loop, taken: float, count: float, width: int
) -> tuple[float, float]:
    """The range of a run's time; the inner loop takes so many cycles, a firing cell so many instructions.

    A register holds `width` numbers.
    """
    pixels = [(SIDE // COARSE) ** 2, SIDE**2]
    cell_steps = sum(n * size for n, size in zip(steps, pixels, strict=True))
    rounds = multiply_adds(*CASES[rule]) / width / loop.multiplies
    others = max(count - rounds * len(loop.body), 0.0)
    speed = board.hertz * THREADS / (cell_steps * FIRE_RATE)
    traffic = 2 * cell_steps * CASES[rule][1] * 4  # bytes of float32
    return rounds * taken / speed, (rounds * taken + others) / speed + traffic / board.bandwidth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", type=Path)
    parser.add_argument("--compiler", default="Clang 22", help="whose counts")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    arguments = parser.parse_args()

    loops = lane_loops(disassembled(arguments.objdump, arguments.object))
    loop = max(loops, key=lambda loop: (loop.multiplies, -len(loop.body)))  # that of a full panel
    width = lanes(arguments.compiler)
    boards = [board for board in BOARDS if width == 4 or board.core in HALF_CORES]
    mca, counts = find_mca(), json.loads(KEPT.read_text())[arguments.compiler]
    print(f"modelled, not measured: {SIDE} x {SIDE}, {THREADS} threads, {arguments.compiler}; seconds")
    print(f"{'rule':24} {'steps':>7}" + "".join(f"{board.name:>18}" for board in boards))
    for rule, *steps in RUNS:
        columns = ""
        for board in boards:
            taken = cycles(mca, loop.body, CORES[board.core])
            low, high = seconds(board, rule, (steps[0], steps[1]), loop, taken, counts[rule], width)
            columns += f"{f'{low:.2f} to {high:.2f}':>18}"
        print(f"{rule:24} {f'{steps[0]} + {steps[1]}':>7}{columns}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
