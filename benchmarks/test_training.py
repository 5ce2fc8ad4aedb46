"""A training step as `benchmarks/training_step.py` defines it: forward, loss, gradient, optimizer."""

from __future__ import annotations

import pytest

import training_step
from measure import Measure


@pytest.mark.parametrize("case", training_step.CASES)
def test_training_step(measure: Measure, case: str, threads: int, on: str) -> None:
    problem = training_step.case(case)
    batch = problem.recipe.batch
    step, _ = training_step.with_pynca(problem, threads)
    measure(
        f"training step {case} batch {batch} {on}",
        step,
        threads=threads,
        updates=sum(int(masks.sum()) for masks in problem.masks),  # forward; nothing is counted for the gradient
        note=lambda seconds: f"{batch / seconds:.1f} slices/s",
    )
