"""Flags: ``--benchmark`` runs the cases in benchmarks/ and nothing else; ``--no-skips`` lets no test be skipped."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options must be known before benchmarks/ is looked at, so all of them are here."""
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped fails the run")
    group = parser.getgroup("pynca's benchmarks")
    group.addoption(
        "--benchmark", action="store_true", dest="run_benchmarks", help="run benchmarks/ and nothing else; -k chooses"
    )
    group.addoption(
        "--benchmark-threads",
        type=thread_counts,
        metavar="N,N",
        dest="benchmark_thread_counts",
        help="numbers of threads to measure with; default: 1 and all usable CPUs",
    )
    group.addoption(
        "--benchmark-results",
        type=Path,
        metavar="FOLDER",
        help="where this machine's JSON is (write it with =, or pytest takes the folder for a place to collect from); "
        "a part of the cases is merged into it. Default: a run of all cases writes to benchmarks/results, "
        "a part writes nothing",
    )


def thread_counts(text: str) -> list[int]:
    """``1,2`` to ``[1, 2]``."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 to 1024, such as 1,2")
    return sorted({int(part) for part in parts})


def pytest_configure(config: pytest.Config) -> None:
    """Turn the flag into what is collected, or say why it cannot be."""
    chosen = config.args if config.args_source is config.ArgsSource.ARGS else []
    inside = [_within(arg, config) for arg in chosen]
    if not config.getoption("run_benchmarks"):
        if any(inside):
            raise pytest.UsageError("benchmarks/ runs with the flag --benchmark only")
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: run `pip install '.[bench]'`")
    if not all(inside):
        raise pytest.UsageError("--benchmark runs benchmarks/ and nothing else; choose among its cases with -k")
    if not chosen:
        config.args = [str(BENCHMARKS)]
    if not config.getoption("benchmark_verbose"):
        config.option.benchmark_quiet = True  # benchmarks/conftest.py has a table of its own


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a test was skipped that the caller needs."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("no_skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the flag, benchmarks/ is not there."""
    return True if collection_path == BENCHMARKS and not config.getoption("run_benchmarks") else None


def _within(argument: str, config: pytest.Config) -> bool:
    path = (config.invocation_params.dir / argument.split("::")[0]).resolve()
    return path == BENCHMARKS or BENCHMARKS in path.parents
