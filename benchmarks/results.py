"""The results of a machine: a JSON file, and tables to read.

``{"schema": 1, "machine": {cpu, isa, cores, ..., "peak_gflops": {threads: GFLOP/s}},
"cases": {name: {threads, seconds, rounds, updates_per_second, gflops, peak_gflops, fraction, date, ...}},
"peers": {name: {peer, threads, seconds, pynca_seconds, ratio, rounds, gflops, peak_gflops, fraction, date}}}``

Names end in "1 thread", "all threads" or "N threads" where it matters, so that machines of different size compare.
Seconds are medians; what does not apply to a case is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
Results = dict[str, Any]


def read(path: Path) -> Results:
    """The results in a file; a ValueError is one sentence that says what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not a JSON file") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f'{path} does not hold results of `pytest --benchmark`: it must have "schema": {SCHEMA}')
    machine, cases = found.get("machine"), found.get("cases")
    if not (isinstance(machine, dict) and all(isinstance(machine.get(key), str) for key in ("cpu", "isa", "pynca"))):
        raise ValueError(f'{path} does not say under "machine" what was measured: cpu, isa and pynca are needed')
    peaks = machine.get("peak_gflops", {})
    if not (isinstance(peaks, dict) and all(n.isdecimal() and _positive(peak) for n, peak in peaks.items())):
        raise ValueError(f'{path} has "peak_gflops" that are not numbers above 0 by number of threads')
    if not (isinstance(cases, dict) and isinstance(found.get("peers", {}), dict)):
        raise ValueError(f'{path} holds no "cases", or "peers" of another kind')
    for name, case in cases.items():
        if not isinstance(case, dict) or not _positive(case.get("seconds")):
            raise ValueError(f'{path} gives no time for the case {name!r}: "seconds" must be a number above 0')
        if not (case.get("fraction") is None or _positive(case["fraction"])):
            raise ValueError(f"{path} gives a fraction for the case {name!r} that is not a number above 0")
    return found


def write(path: Path, results: Results, *, merge: bool) -> None:
    """Write a file, or replace in it only what was measured now."""
    if merge and path.is_file():
        before = read(path)
        peaks = {**before["machine"].get("peak_gflops", {}), **results["machine"]["peak_gflops"]}
        results = {
            **results,
            "machine": {**results["machine"], "peak_gflops": peaks},
            "cases": {**before["cases"], **results["cases"]},
            "peers": {**before.get("peers", {}), **results["peers"]},
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def machine_line(machine: dict[str, Any]) -> str:
    """One line that names a machine."""
    peaks = machine.get("peak_gflops", {})
    peak = ", ".join(f"{value:.0f} GFLOP/s on {plural(int(n), 'thread')}" for n, value in sorted(peaks.items()))
    built = f"{machine['isa']}, pynca {machine['pynca']}"
    built += f" ({machine['compiler']})" if machine.get("compiler") else ""
    return f"{machine['cpu']}, {built}" + (f"; FMA peak {peak}" if peak else "")


def case_lines(cases: dict[str, dict[str, Any]]) -> list[str]:
    rows = [("case", "time", "updates/s", "GFLOP/s", "of peak", "")]
    for name, case in cases.items():
        rate = case.get("updates_per_second")
        rows.append(
            (
                name,
                duration(case["seconds"]),
                "" if rate is None else f"{rate / 1e6:.2f} M",
                _number(case.get("gflops"), ".1f"),
                percent(case.get("fraction")),
                case.get("note") or "",
            )
        )
    return columns(rows)


def peer_lines(peers: dict[str, dict[str, Any]]) -> list[str]:
    rows = [("peer", "time", "pynca", "ratio", "GFLOP/s", "of peak")]
    for name, case in peers.items():
        rows.append(
            (
                name,
                duration(case["seconds"]),
                duration(case["pynca_seconds"]),
                f"{case['ratio']:.2f}",
                _number(case.get("gflops"), ".1f"),
                percent(case.get("fraction")),
            )
        )
    return columns(rows)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows under each other: numbers to the right; names, and notes, which have no head, to the left."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def aligned(cell: str, n: int) -> str:
        return cell.rjust(widths[n]) if n and rows[0][n] else cell.ljust(widths[n])

    return ["  ".join(aligned(cell, n) for n, cell in enumerate(row)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def percent(fraction: float | None) -> str:
    return _number(None if fraction is None else 100 * fraction, ".1f", " %")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
