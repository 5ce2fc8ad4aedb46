"""A training step as `benchmarks/training_step.py` defines it: forward, loss, gradient, Adam."""

from __future__ import annotations

import pytest

import training_step
from measure import Measure
from pynca.training.recipe import Recipe


@pytest.mark.parametrize("channels", [16, 32])  # the bundled model's, and the papers'
def test_training_step(measure: Measure, channels: int, threads: int, on: str) -> None:
    recipe = Recipe(channels=channels)
    problem = training_step.problem(recipe)
    step, _ = training_step.with_pynca(recipe, problem, threads)
    updates = sum(int(masks.sum()) for masks in problem["masks"])  # forward; nothing is counted for the gradient
    measure(f"training step conv{recipe.channels} batch {recipe.batch} {on}", step, threads=threads, updates=updates)
