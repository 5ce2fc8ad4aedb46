"""Threads, and what this build and this machine are."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

import numpy as np

from . import _core

MAX_THREADS = 1024
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def thread_count(threads: int | None = None) -> int:
    """Return how many threads to use.

    ``threads`` where it is given, else ``PYNCA_NUM_THREADS``, else the CPUs that this process may use: those of
    its affinity mask, at most the quota of its control group.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
            raise TypeError(f"threads is {threads!r}; it must be a whole number")
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads}; it must be between 1 and {MAX_THREADS}")
        return int(threads)
    wanted = os.environ.get("PYNCA_NUM_THREADS", "").strip()
    if not wanted:
        return _usable_cpus()
    # At most nine digits: Python refuses to read thousands of them, in words of its own
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and 1 <= int(wanted) <= MAX_THREADS):
        raise ValueError(
            f"the environment variable PYNCA_NUM_THREADS is {wanted[:60]!r}; it must be a whole number "
            f"between 1 and {MAX_THREADS}"
        )
    return int(wanted)


def _usable_cpus() -> int:
    if sys.platform == "linux":
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group, or "max": no quota
        pass
    return max(1, min(cpus, MAX_THREADS))


def show_config() -> None:
    """Print the version, the instruction set in use and those available, the threads, and the build."""
    build = _core.build_info()
    half = _core.half_isas()
    isas = ", ".join(_core.available_isas()) + (f"; in half precision: {', '.join(half)}" if half else "")
    rows = {
        "pynca": build["version"],
        "instruction set": f"{_core.isa()} (available: {isas}; PYNCA_ISA chooses)",
        "threads": f"{thread_count()} (PYNCA_NUM_THREADS or threads= chooses)",
        "build": f"{build['target']}, {build['compiler']}",
        "python": f"{platform.python_version()}, numpy {np.__version__}, {platform.system()} {platform.machine()}",
    }
    for name, value in rows.items():
        print(f"{name:16} {value}")
