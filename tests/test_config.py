"""How many threads a process takes: what affinity and the quotas of its control groups allow."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pynca import config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder of a machine with 16 CPUs."""
    monkeypatch.delenv("PYNCA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(config, "_ROOT", tmp_path)
    return tmp_path


def write(root: Path, **files: str) -> None:
    """Write files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "threads"),
    [
        # version 2, at the root as in a container, and below it as of systemd-run or in Kubernetes
        (V2, "0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        (V2, "0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
        (V2, "0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        (V2, "0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 3),
        (V2, "0::/a\n", {"b/cpu.max": "100000 100000\n"}, 16),
        (V2, "0::/\n", {"cpu.max": "max 100000\n"}, 16),
        (V2, "0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        (V2, "0::/\n", {"cpu.max": "100000 0\n"}, 16),
        (V2, "0::/\n", {"cpu.max": "nonsense"}, 16),
        (V2, "0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("", "", {"cpu.max": "200000 100000\n"}, 2),
        # version 1
        (V1, "2:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n"}, 4),
        (V1, "2:cpu,cpuacct:/a/b\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n"}, 4),
        (V1, "2:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n"}, 16),
        (V1, "2:cpu,cpuacct:/a\n0::/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n", "unified/a/cpu.max": "1 1"}, 1),
        (V1, "3:memory:/a\n2:cpu,cpuacct:/\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n"}, 16),
        ("", "", {"cpu/cpu.cfs_quota_us": "100000\n"}, 1),
        # a container that sees its own group as the root of the mount, and one in whose path there is a space
        (
            V1.replace("0:29 / ", "0:29 /docker/1 "),
            "2:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n"},
            4,
        ),
        (V2.replace("cgroup rw", "my\\040groups rw"), "0::/\n", {"my groups/cpu.max": "700000 100000"}, 7),
    ],
)
def test_the_quota_of_the_control_groups_counts(
    machine: Path, mounts: str, groups: str, files: dict[str, str], threads: int
) -> None:
    write(machine, **{"proc/self/mountinfo": mounts, "proc/self/cgroup": groups})
    for name, text in files.items():
        place = "sys/fs" if name.startswith("my groups") else "sys/fs/cgroup"
        write(machine, **{f"{place}/{name}": text})
        if name.endswith("cpu.cfs_quota_us"):
            write(machine, **{f"{place}/{name}".replace("quota", "period"): "100000\n"})
    assert config.thread_count() == threads
    assert config.thread_count(5) == 5


def test_affinity_counts_below_the_quota(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine, **{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"})
    assert config.thread_count() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 9})
    assert config.thread_count() == 3
    monkeypatch.setenv("PYNCA_NUM_THREADS", "6")
    assert config.thread_count() == 6


def test_a_quota_that_changes_is_heard(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for second, (quota, threads) in enumerate((("200000 100000", 2), ("300000 100000", 3), ("max 100000", 16))):
        monkeypatch.setattr(config, "time", SimpleNamespace(monotonic=lambda now=second: now))
        write(machine, **{"sys/fs/cgroup/cpu.max": quota})
        assert config.thread_count() == threads


def test_files_of_other_limits(machine: Path) -> None:
    write(machine, **{"proc/self/mountinfo": V1, "proc/self/cgroup": "3:memory:/a/b\n0::/\n"})
    write(machine, **{f"sys/fs/cgroup/memory/{name}memory.limit_in_bytes": "1" for name in ("", "a/", "a/b/", "c/")})
    found = config.cgroup_files("memory", "memory.limit_in_bytes", "memory.max", machine)
    inside = machine / "sys/fs/cgroup/memory"
    assert found == tuple(inside / f"{name}memory.limit_in_bytes" for name in ("a/b/", "a/", ""))
