"""Fixtures of the benchmarks, their table, and the file they leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import machine
import pynca
import results
from measure import Measure, Report
from pynca.config import thread_count

FOLDER = Path(__file__).parent / "results"
_REPORT = pytest.StashKey[Report]()
_MACHINE = pytest.StashKey[dict[str, object]]()
_DESELECTED = pytest.StashKey[int]()


@pytest.fixture
def measure(benchmark: object, pytestconfig: pytest.Config) -> Measure:
    """Times a case; see `Measure`."""
    return Measure(benchmark, pytestconfig.stash[_REPORT])


@pytest.fixture
def on(threads: int) -> str:
    """How a case's name says on how many threads it ran."""
    return _threads_name(threads)


@pytest.fixture(scope="session")
def cardiac_lv() -> pynca.Model:
    """The bundled model of three levels, for slices of 256x256."""
    return pynca.load_model("cardiac-lv")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()
    config.stash[_MACHINE] = machine.describe()
    config.stash[_DESELECTED] = 0


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[_DESELECTED] += len(items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "threads" in metafunc.fixturenames:
        counts = metafunc.config.getoption("benchmark_thread_counts") or sorted({1, thread_count()})
        ids = [_threads_name(n).replace(" ", "") for n in counts]
        metafunc.parametrize("threads", counts, ids=ids)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    if not (report.cases or report.peers):
        return
    described = {**config.stash[_MACHINE], "peak_gflops": report.peak_gflops()}
    say = terminalreporter.write_line
    terminalreporter.ensure_newline()
    terminalreporter.section("benchmarks")
    say(results.machine_line(described))
    say(f"load average before the first case: {described['load']}; times are medians")
    if report.cases:
        say("")
        for line in results.case_lines(report.cases):
            say(line)
        say(
            "GFLOP/s: on firing cells alone. Of peak: of what the probe reached between the rounds, on as many threads."
        )
    if report.peers:
        say("")
        for line in results.peer_lines(report.peers):
            say(line)
        say("Ratio: the peer's time in pynca's, both measured in turn. A peer's GFLOP/s count all cells, for it")
        say("computes all. Of peak: of the instruction set that pynca uses; peers choose their own.")
    say("")
    say(_save(config, described, report, exitstatus))


def _save(config: pytest.Config, described: dict[str, object], report: Report, exitstatus: int) -> str:
    """Write the JSON file, and say where, or why not."""
    wanted = config.getoption("benchmark_results")
    whole = not (
        config.stash[_DESELECTED]
        or config.getoption("benchmark_thread_counts")
        or {Path(arg).resolve() for arg in config.args} != {FOLDER.parent}
    )
    if exitstatus != pytest.ExitCode.OK:
        return "not saved: not all cases passed"
    if not (wanted or whole):
        return "not saved: a part of the cases; --benchmark-results=benchmarks/results merges them into what is there"
    path = (wanted or FOLDER) / machine.file_name(str(described["cpu"]), str(described["isa"]))
    found = {"schema": results.SCHEMA, "machine": described, "cases": report.cases, "peers": report.peers}
    try:
        results.write(path, found, merge=not whole)
    except (OSError, ValueError) as error:
        return f"not saved: {error}"
    return f"saved in {path}"


def _threads_name(threads: int) -> str:
    if threads == 1:
        return "1 thread"
    return "all threads" if threads == thread_count() else f"{threads} threads"
