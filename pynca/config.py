"""Threads, and what this build and this machine are."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np

from . import _core

MAX_THREADS = 1024
_ROOT = Path("/")


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
    return max(1, min(cpus, _quota(int(time.monotonic()), _ROOT)))


@functools.lru_cache(maxsize=1)
def _quota(second: int, root: Path) -> int:
    """Return how many CPUs all control groups allow; asked once a second at most, for small runs ask each time."""
    files = cgroup_files("cpu", "cpu.cfs_quota_us", "cpu.max", root)
    return min((_quota_of(file) for file in files), default=MAX_THREADS)


def _quota_of(file: Path) -> int:
    """Return how many CPUs a control group allows; "max" in version 2 and -1 in version 1 are no limit."""
    try:
        text = file.read_text()
        if file.name != "cpu.max":
            text += file.with_name("cpu.cfs_period_us").read_text()
        quota, period = map(int, text.split())
    except (OSError, ValueError):
        return MAX_THREADS
    return min(-(-quota // period), MAX_THREADS) if quota > 0 and period > 0 else MAX_THREADS


@functools.cache
def cgroup_files(controller: str, v1: str, v2: str, root: Path = _ROOT) -> tuple[Path, ...]:
    """Return the files of one limit in the control groups that this process is in: its own, and all above.

    Parameters
    ----------
    controller : str
        Such as ``"cpu"`` or ``"memory"``.
    v1, v2 : str
        Name of the file in version 1 and 2 of control groups, such as ``"memory.limit_in_bytes"`` and ``"memory.max"``.
    root : path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    tuple of path
        Those that are there. The least of their limits counts; a machine may have both versions.
    """
    groups = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") > 1]
    hierarchies = {
        v1: [group for _, controllers, group in groups if controller in controllers.split(",")],
        v2: [group for _, controllers, group in groups if not controllers],
    }
    # where they are by convention, should /proc not say: in a container whose runtime mounted them otherwise
    mounts = {v1: [("/", f"/sys/fs/cgroup/{controller}")], v2: [("/", "/sys/fs/cgroup")]}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        if kind[0] == "cgroup2" or controller in kind[2].split(","):
            mounts[v2 if kind[0] == "cgroup2" else v1].append((_unescaped(fields[3]), _unescaped(fields[4])))
    found: dict[Path, None] = {}
    for name, places in mounts.items():
        for top, mount in places:
            for group in hierarchies[name] or ["/"]:
                below = Path(os.path.relpath(group, top))
                below = Path() if ".." in below.parts else below  # mounted from below the process's own group
                folder = root / mount.lstrip("/")
                found.update(dict.fromkeys(folder / above / name for above in (below, *below.parents)))
    return tuple(file for file in found if file.is_file())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(field: str) -> str:
    """Return a path of mountinfo, in which spaces and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def show_config() -> None:
    """Print the version, the instruction set in use and those available, the threads, and the build."""
    build = _core.build_info()
    half = _core.half_isas()
    isas = ", ".join(_core.available_isas()) + (f"; in half precision: {', '.join(half)}" if half else "")
    rows = {
        "pynca": build["version"],
        "instruction set": f"{_core.isa()} (available: {isas}; PYNCA_ISA chooses)",
        "threads": f"{thread_count()} (PYNCA_NUM_THREADS, or an argument, chooses)",
        "build": f"{build['target']}, {build['compiler']}",
        "python": f"{platform.python_version()}, numpy {np.__version__}, {platform.system()} {platform.machine()}",
    }
    for name, value in rows.items():
        print(f"{name:16} {value}")
