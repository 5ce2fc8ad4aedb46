"""Batches, each drawn while the core works on the one before.

A batch is a pure function of (seed, attempt, number), so that it does not matter when it is drawn, or by which thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pynca.config import thread_count
from pynca.rule import FloatArray

from .recipe import Recipe
from .sampling import Slices, draw, generator


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices as they are varied, (N, H, W), their labels, and the random numbers from where these ended."""

    images: FloatArray
    labels: FloatArray
    random: np.random.Generator


class Batches:
    """Draws batches by attempt and number, and the next one ahead where there are several threads.

    Parameters
    ----------
    slices : Slices
    recipe : Recipe
    threads : int, optional
        As of `pynca.training.fit_slices`.
    """

    def __init__(self, slices: Slices, recipe: Recipe, threads: int | None = None) -> None:
        self._slices, self._recipe = slices, recipe
        self._pool = ThreadPoolExecutor(1) if thread_count(threads) > 1 else None
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def draw(self, attempt: int, number: int) -> Batch:
        """Return a batch, and begin to draw the one behind it."""
        drawn = self._ahead.pop((attempt, number), None)
        batch = self._draw(attempt, number) if drawn is None else drawn.result()
        self._ahead.clear()  # of an attempt that was given up
        if self._pool is not None and number + 1 < self._recipe.batches:
            self._ahead[attempt, number + 1] = self._pool.submit(self._draw, attempt, number + 1)
        return batch

    def _draw(self, attempt: int, number: int) -> Batch:
        recipe = self._recipe
        random = generator(recipe.seed, attempt, number)
        images, labels = draw(
            self._slices, recipe.batch, recipe.augmentation, random,
            negatives=recipe.negatives, small_first=recipe.small_first,
        )  # fmt: skip
        return Batch(images, labels, random)
