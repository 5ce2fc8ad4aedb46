"""How a case is timed: rounds with a probe of the machine's peak between every two."""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pynca import _core

PROBE_SECONDS = 0.5  # a case, divided among its rounds
TOO_LONG_SECONDS = 10.0  # for more than one round
# After other libraries' work: until their threads have stopped waiting for more of it at full speed
SETTLE_SECONDS = 0.03


@dataclass
class Report:
    """What all cases of this run found."""

    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[int, list[float]] = field(default_factory=dict)  # by number of threads, FLOP/s

    def probe(self, threads: int, rounds: int) -> float:
        peak = _core.peak_flops(threads, min(0.1, max(0.01, PROBE_SECONDS / rounds)))
        self.peaks.setdefault(threads, []).append(peak)
        return peak

    def peak_gflops(self) -> dict[str, float]:
        return {str(n): round(statistics.median(peaks) / 1e9, 1) for n, peaks in sorted(self.peaks.items())}


@dataclass
class Measure:
    """Times one case with pytest-benchmark's fixture and enters it into the report."""

    benchmark: Any
    report: Report

    def __call__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        threads: int,
        updates: int | None = None,
        flops: int | None = None,
        prepare: Callable[[], object] = lambda: None,
        budget: float = 1.0,
        note: Callable[[float], str] | None = None,
    ) -> None:
        """Time ``work`` for about ``budget`` seconds; ``prepare`` runs before each round, and is not timed."""
        peaks: list[float] = []

        def setup() -> None:
            prepare()
            peaks.append(self.report.probe(threads, rounds))

        rounds = self._rounds(work, budget, prepare=prepare)
        self.benchmark.pedantic(work, setup=setup, rounds=rounds)
        if self.benchmark.disabled:
            return
        seconds = self.benchmark.stats.stats.median
        entry = self._entry(threads, seconds, rounds, flops, statistics.median(peaks))
        entry["updates_per_second"] = None if updates is None else updates / seconds
        if note:
            entry["note"] = note(seconds)
        self._enter(self.report.cases, name, entry)

    def beside(
        self,
        name: str,
        peer: str,
        work: Callable[[], object],
        ours: Callable[[], object],
        *,
        threads: int,
        flops: int | None = None,
        budget: float = 3.0,
    ) -> None:
        """Time a peer's ``work``, which has run before, in turn with ``ours``, so that both see the same machine."""
        peaks: list[float] = []
        times: list[float] = []

        def setup() -> None:
            time.sleep(SETTLE_SECONDS)
            peaks.append(self.report.probe(threads, rounds))
            times.append(timed(ours))

        ours()
        rounds = self._rounds(work, budget, most=15, warm=True)
        self.benchmark.pedantic(work, setup=setup, rounds=rounds)
        if self.benchmark.disabled:
            return
        seconds, pynca_seconds = self.benchmark.stats.stats.median, statistics.median(times)
        entry = self._entry(threads, seconds, rounds, flops, statistics.median(peaks))
        entry |= {"peer": peer, "pynca_seconds": pynca_seconds, "ratio": seconds / pynca_seconds}
        self._enter(self.report.peers, name, entry)

    def _rounds(
        self,
        work: Callable[[], object],
        budget: float,
        *,
        prepare: Callable[[], object] = lambda: None,
        most: int = 50,
        warm: bool = False,
    ) -> int:
        """How often fits into the budget, three times at least unless that takes too long; finding out warms up."""
        if self.benchmark.disabled:
            return 1
        prepare()
        once = timed(work)
        if once < budget / 3 and not warm:
            prepare()
            once = timed(work)
        least = 3 if once < TOO_LONG_SECONDS else 1
        return max(least, min(most, math.floor(budget / once)))

    def _entry(self, threads: int, seconds: float, rounds: int, flops: int | None, peak: float) -> dict[str, Any]:
        rate = None if flops is None else flops / seconds
        return {
            "threads": threads,
            "seconds": seconds,
            "rounds": rounds,
            "gflops": None if rate is None else rate / 1e9,
            "peak_gflops": peak / 1e9,
            "fraction": None if rate is None else rate / peak,
            "date": datetime.date.today().isoformat(),
        }

    def _enter(self, where: dict[str, dict[str, Any]], name: str, entry: dict[str, Any]) -> None:
        entry = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in entry.items()}
        self.benchmark.extra_info.update(entry)
        where[name] = entry


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
