"""Models the inner loops of the NEON products, as compiled, on the cores of the Raspberry Pi 3, 4 and 5.

    python3 benchmarks/arm/inner_loops.py OBJECT [--objdump PROGRAM]

OBJECT is the compiled kernel file. Its loops that multiply by all four lanes are given to LLVM's cycle model
(llvm-mca), and so is a row of independent multiplies, whose rate is the core's peak. Fails where a loop of a full
tile stays below 80 % of it on a Cortex-A72 or A76.

The model knows no caches and no mispredicted branches: an upper bound. LLVM describes the Cortex-A72 as an A57 and
the A76 as an A72, so the A76 is taken as its server twin, Neoverse N1. The A53's model lets no instruction finish
before an older one, which the core itself does for loads.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CORES = {"A53": "cortex-a53", "A72": "cortex-a72", "A76": "neoverse-n1"}
REQUIRED = {"A72": 0.8, "A76": 0.8}
ITERATIONS = 200
HALF_CORES = {"A76": CORES["A76"]}  # that have arithmetic in half precision
MULTIPLY = re.compile(r"fmla\s+v\d+\.(4s|8h)")
LAST_LANE = re.compile(r"fmla\s+v\d+\.(4s, .*\.s\[3\]|8h, .*\.h\[7\])$")
BRANCH = re.compile(r"(b\.\w+|b|cbn?z\s.*,|tbn?z\s.*,)\s+([0-9a-f]+) <")
PEAK = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24)]
HALF_PEAK = [f"fmla v{i % 14 + 16}.8h, v31.8h, v15.h[0]" for i in range(28)]


class Loop(NamedTuple):
    function: str
    body: list[str]

    @property
    def multiplies(self) -> int:
        return count_multiplies(self.body)


def count_multiplies(body: list[str]) -> int:
    return sum(bool(MULTIPLY.match(line)) for line in body)


def functions(listing: str) -> dict[str, list[tuple[int, str]]]:
    """Address and text of each instruction, by function."""
    found: dict[str, list[tuple[int, str]]] = {}
    lines: list[tuple[int, str]] = []
    for line in listing.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            lines = found.setdefault(match[1], [])
        elif match := re.match(r"\s+([0-9a-f]+):\s+(.*?)\s*(//.*)?$", line):
            lines.append((int(match[1], 16), " ".join(match[2].split())))
    return found


def innermost_loops(lines: list[tuple[int, str]]) -> list[list[str]]:
    """Instructions from the target of a backward branch to the branch, where no other such lie inside."""
    index = {address: i for i, (address, _) in enumerate(lines)}
    spans = []
    for i, (address, text) in enumerate(lines):
        match = BRANCH.match(text)
        if match and (target := int(match[2], 16)) <= address and target in index:
            spans.append((index[target], i))
    inner = [s for s in spans if not any(t != s and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return [[text for _, text in lines[first : last + 1]] for first, last in inner]


def lane_loops(listing: str) -> list[Loop]:
    """The loops over a register of inputs: those that multiply by the last of its lanes."""
    found = []
    for function, lines in functions(listing).items():
        name = re.search(r"(\w+(<[\d, ]+>)?)\(", function.replace("(anonymous namespace)", ""))
        for body in innermost_loops(lines):
            if any(LAST_LANE.match(line) for line in body):
                found.append(Loop(name[1] if name else function, body))
    return found


def disassembled(objdump: str, path: Path) -> str:
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", path]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if not lane_loops(listing):
        raise SystemExit(f"{path} holds no loop that multiplies by lane: is it the NEON kernels' object file?")
    return listing


def find_mca() -> str:
    for version in range(30, 18, -1):
        if mca := shutil.which(f"llvm-mca-{version}"):
            return mca
    raise SystemExit("there is no llvm-mca-19 or newer, and older ones do not model these cores: install llvm-19")


def cycles(mca: str, body: list[str], core: str) -> float:
    """Cycles an iteration. A branch's target means nothing here."""
    assembly = "\n".join(re.sub(r"[0-9a-f]+ <.*>$", ".", line) for line in body)
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", "--json", f"-iterations={ITERATIONS}"]
    result = subprocess.run(command, input=assembly, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{mca} refuses an inner loop:\n{result.stderr}")
    view = json.loads(result.stdout)["CodeRegions"][0]["SummaryView"]
    return float(view["TotalCycles"] / view["Iterations"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", type=Path)
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    arguments = parser.parse_args()

    mca = find_mca()
    loops = lane_loops(disassembled(arguments.objdump, arguments.object))

    full = max(loop.multiplies for loop in loops)
    half = any(".8h" in line for loop in loops for line in loop.body if MULTIPLY.match(line))
    cores, peak = (HALF_CORES, HALF_PEAK) if half else (CORES, PEAK)
    peaks = {name: len(peak) / cycles(mca, peak, core) for name, core in cores.items()}
    low = []
    print(f"{'loop':20} {'multiplies':>10} {'instructions':>12}  " + "".join(f"{name:>18}" for name in cores))
    for loop in loops:
        columns = ""
        for name, core in cores.items():
            taken = cycles(mca, loop.body, core)
            fraction = loop.multiplies / taken / peaks[name]
            columns += f"{f'{taken:.1f} cycles {fraction:4.0%}':>18}"
            required = REQUIRED.get(name, 0.0)
            if loop.multiplies == full and fraction < required:
                low.append(
                    f"{loop.function}: {fraction:.0%} of the {name}'s peak in the model; {required:.0%} are required"
                )
        print(f"{loop.function:20} {loop.multiplies:10} {len(loop.body):12}  {columns}")
    for sentence in low:
        print(sentence, file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
