"""Counts the instructions that AArch64 executes per firing cell and compares them with those in the repository.

    python3 benchmarks/arm/instructions.py BUILD --rig RIG --compiler 'CXX ...' [--half] [--update]

BUILD is CMake's folder of an AArch64 build: the libraries in it are linked with count.cpp and run under RIG's
emulator, which counts exactly. A count is (run with LAST steps - run with FIRST steps) / cells that fire in between,
on one thread: packing weights and starting a process cancel out. It depends on the compiler, hence one column for
each. --half counts the kernels with products in half precision. Fails where a count has grown by more than two in a
hundred; --update writes what was counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KEPT = HERE.parent / "results" / "aarch64_instructions.json"

SIDE, FIRST, LAST = 64, 1, 3  # an image's side; steps
TOLERANCE = 0.02
CPU = {"neon": "cortex-a72", "neon_half": "cortex-a76"}  # the C library chooses by it how to copy memory
LANES = {"neon": 4, "neon_half": 8}  # numbers in a register

CASES = {  # perception, channels, hidden
    "dense C=32 hidden 128": ("conv", 32, 128),
    "dense C=16 hidden 128": ("conv", 16, 128),
    "Sobel C=16 hidden 128": ("sobel", 16, 128),
    "Sobel C=16 hidden 64": ("sobel", 16, 64),
}


def multiply_adds(perception: str, channels: int, hidden: int) -> int:
    """Of the products of one firing cell."""
    perceive = 9 * channels * 2 * channels if perception == "conv" else 0
    return perceive + 3 * channels * hidden + hidden * channels


def build(build_folder: Path, compiler: list[str], program: Path) -> None:
    step, core = build_folder / "libnca_step.a", build_folder / "libnca.a"
    if missing := [path for path in (step, core) if not path.is_file()]:
        raise SystemExit(f"{missing[0]} is missing: {build_folder} must be CMake's folder of an AArch64 build")
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", str(CSRC)]
    # each of the libraries calls the other
    if subprocess.run([*compiler, *flags, HERE / "count.cpp", step, core, step, "-o", program]).returncode:
        raise SystemExit(f"{compiler[0]} could not link {HERE / 'count.cpp'} with the libraries in {build_folder}")


def run(rig: Path, isa: str, program: Path, *arguments: object) -> tuple[str, int]:
    """What the program printed, and how many instructions it executed."""
    # little else in the environment: the process's start reads all of it
    environment = {"PATH": os.environ["PATH"], "ARM64_CPU": CPU[isa], "PYNCA_ISA": isa}
    command = [str(rig / "bin" / "arm64-count"), str(program), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    count = re.search(r"instructions executed: (\d+)", result.stderr)
    if result.returncode or not count:
        raise SystemExit(f"{' '.join(command)} failed with exit code {result.returncode}:\n{result.stderr}")
    return result.stdout.strip(), int(count[1])


def measure(rig: Path, isa: str, program: Path) -> tuple[str, dict[str, float]]:
    """The compiler, and instructions per firing cell of each case."""
    compiler = run(rig, isa, program, "compiler")[0]
    cells = int(run(rig, isa, program, "cells", SIDE, FIRST, LAST)[0])
    counts = {}
    for name, rule in CASES.items():
        few, many = (run(rig, isa, program, *rule, SIDE, steps)[1] for steps in (FIRST, LAST))
        counts[name] = round((many - few) / cells, 1)
    return compiler, counts


def lanes(column: str) -> int:
    """Numbers in a register, by the name of a column of what is kept."""
    return LANES["neon_half" if column.endswith("neon_half") else "neon"]


def compare(counts: dict[str, float], kept: dict[str, float], width: int = LANES["neon"]) -> list[str]:
    """Prints a table; returns a sentence for each count that has grown too much."""
    print(f"{'per firing cell':24} {'instructions':>12} {'kept':>9} {'change':>7} {'multiply-adds':>14} {'of all':>7}")
    grown = []
    for name, count in counts.items():
        vectors = multiply_adds(*CASES[name]) / width
        before = kept.get(name)
        change = count / before - 1 if before else 0.0
        columns = (f"{before:9.1f}" if before else f"{'-':>9}", f"{change:+7.1%}" if before else f"{'-':>7}")
        print(f"{name:24} {count:12.1f} {' '.join(columns)} {vectors:14.0f} {vectors / count:7.1%}")
        if change > TOLERANCE:
            grown.append(
                f"{name}: {count:.1f} instructions per firing cell, {change:.1%} more than the {before:.1f} kept"
            )
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--rig", type=Path, required=True, help="folder that ../shared/arm/setup-arm64-rig made")
    parser.add_argument("--compiler", required=True, help="the build's C++ compiler, with its options")
    parser.add_argument("--half", action="store_true", help="the kernels with products in half precision")
    parser.add_argument("--update", action="store_true", help=f"write the counts to {KEPT.name}")
    arguments = parser.parse_args()
    isa = "neon_half" if arguments.half else "neon"

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "count"
        build(arguments.build, shlex.split(arguments.compiler), program)
        compiler, counts = measure(arguments.rig.resolve(), isa, program)
    if arguments.half:
        compiler += f", {isa}"
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    print(f"{compiler}, {SIDE} x {SIDE}, one thread; multiply-adds are vectors of {lanes(compiler)}")
    grown = compare(counts, kept.get(compiler, {}), lanes(compiler))
    if arguments.update:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps({**kept, compiler: counts}, indent=2, sort_keys=True) + "\n")
        print(f"written to {KEPT}")
        return 0
    if compiler not in kept:
        grown = [f"{KEPT} has no counts of {compiler}"]
    for sentence in grown:
        print(sentence, file=sys.stderr)
    if grown:
        print("where that is meant, run the same command with --update and commit the file:", file=sys.stderr)
        print(shlex.join([sys.executable, *sys.argv, "--update"]), file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
