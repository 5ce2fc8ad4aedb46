"""How much memory a run takes beside what the caller holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pynca import memory


def control_groups(root: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: dict[str, object]) -> None:
    """A system without other limits whose control groups say what is given."""
    (root / "cgroup").write_text(lines)
    (root / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  800 kB\nSwapFree: 200 kB\n")
    for name, content in files.items():
        path = root / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    monkeypatch.setattr(memory, "_CGROUPS", root / "cgroup")
    monkeypatch.setattr(memory, "_CGROUP_ROOT", root / "fs")
    monkeypatch.setattr(memory, "_MEMINFO", root / "meminfo")
    monkeypatch.setattr(memory, "_address_room", lambda: iter(()))


V1 = "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n0::/\n"


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize(
    ("lines", "files", "room"),
    [
        ("0::/\n", {}, 1_024_000),
        ("0::/\n", {"memory.max": "max", "memory.current": 5}, 1_024_000),
        ("0::/\n", {"memory.max": 1000, "memory.current": 400}, 600),
        ("0::/\n", {"memory.max": 1000, "memory.current": 1400}, 0),
        ("0::/a/b\n", {"a/memory.max": 1000, "a/memory.current": 400, "a/b/memory.max": "max"}, 600),
        ("0::/a/b\n", {"a/b/memory.max": 900, "a/b/memory.current": 400}, 500),
        ("0::/../..\n", {"memory.max": 1000, "memory.current": 400}, 600),
        (
            "0::/\n",
            {"memory.max": 1000, "memory.current": 900, "memory.stat": "anon 5\ninactive_file 300"},
            400,
        ),
        (V1, {"memory/memory.limit_in_bytes": 1000, "memory/memory.usage_in_bytes": 100}, 900),
        (
            V1,
            {"memory/docker/abc/memory.limit_in_bytes": 70, "memory/docker/abc/memory.usage_in_bytes": 60},
            10,
        ),
        ("what\n", {}, 1_024_000),
    ],
)
def test_what_is_left(
    lines: str, files: dict[str, object], room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, monkeypatch, lines, files)
    assert memory.available_bytes() == room


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_on_addresses_counts() -> None:
    code = """
import resource
from pynca import memory
before = memory.available_bytes()
resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, -1))
print(before, memory.available_bytes())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    before, after = map(int, run.stdout.split())
    assert 0 < after < 4 * 10**9
    assert before > 0


def test_a_system_that_does_not_tell_limits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_room("x", 2**62)
    assert memory.memory_limit() is None
    assert memory.memory_limit(5) == memory.Limit(5, "5e-06 MB are allowed; allow more")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("call", ["rule.run(state, 1, out=state)", "model.logits(image)"])
def test_memory_of_a_run_is_not_much_more_than_a_state(call: str) -> None:
    code = f"""
import numpy as np, pynca
from support import random_weights
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
rule = pynca.Rule.from_state_dict(random_weights("conv", 32, 32), perception="conv")
model = pynca.Model([pynca.Level(rule, 1, 4), pynca.Level(rule, 1, 1)], labels={{1: "x"}})
state, image = np.ones((64, 64, 32), np.float32), np.ones((64, 64), np.float32)
{call}
state, image = np.ones((768, 768, 32), np.float32), np.ones((768, 768), np.float32)
if "model" in "{call}":
    del state
before = kilobytes("VmRSS")
{call}
print((kilobytes("VmHWM") - before) * 1024 / (768 * 768 * 32 * 4))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
    )
    # in place no second state; from an image one, and the coarse level before it
    assert float(run.stdout) <= (0.3 if "out" in call else 1.3)
