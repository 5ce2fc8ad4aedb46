"""Steps of a rule on states of several sizes, with fire masks that the core makes on the way."""

from __future__ import annotations

import numpy as np
import pytest

import pynca
from measure import Measure
from results import plural
from workload import RULES, workload

SIZES = [(64, 1), (64, 16), (320, 1), (320, 16), (1024, 1), (1024, 4)]
NAMES = [f"{size}x{size}-{steps}step{'s' if steps > 1 else ''}" for size, steps in SIZES]


@pytest.mark.parametrize(("size", "steps"), SIZES, ids=NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_rule(measure: Measure, rule: str, size: int, steps: int, threads: int, on: str) -> None:
    """A whole run is 16 steps; at 1024 x 1024 four of them tell as much in a quarter of the time."""
    work = workload(rule, size, steps)
    state = np.empty_like(work.state[None])
    measure(
        f"{rule} {size}x{size} {plural(steps, 'step')} {on}",
        lambda: work.rule.run_in_place(state, steps, threads=threads),
        prepare=lambda: np.copyto(state, work.state),
        threads=threads,
        updates=work.updates,
        flops=work.flops,
    )


def test_fire_mask(measure: Measure) -> None:
    cells = 1024 * 1024
    measure(
        "fire mask 1024x1024 1 step",
        lambda: pynca.fire_mask((1024, 1024), 1),
        threads=1,
        note=lambda seconds: f"{cells / seconds / 1e6:.0f} M cells/s",
    )
