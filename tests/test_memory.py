"""How much memory a run takes beside what the caller holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
