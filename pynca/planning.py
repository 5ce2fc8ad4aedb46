"""How long a run will take on this machine, and how much memory, said before it starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from .config import thread_count
from .memory import CALL_SLICES, run_bytes, slices_a_call
from .model import Model
from .quality import Ensemble, sigmoid
from .rule import whole_number
from .segmentation import slicing
from .volumes import Extent, read_extent, read_volume

_PROBE_SECONDS = 0.15


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes
    ----------
    seconds : float
        Time on this machine, without reading and writing files.
    bytes : int
        Memory at most, beside what the process holds before.
    """

    seconds: float
    bytes: int


class Speed:
    """How fast this machine runs a model; measured once, when it is first asked for.

    Parameters
    ----------
    model : Model
    threads : int
    """

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.threads = threads

    @cached_property
    def run(self) -> float:
        """Seconds that the automaton takes for a slice, in a call of as many as threads can share."""
        count = CALL_SLICES * self.threads
        images = np.zeros((count, *self.model.preparation.size, 1), np.float32)
        indices = np.zeros(count, np.uint32)

        def call() -> None:
            self.model.batch_logits(images, samples=indices, slices=indices, threads=self.threads)

        return _fastest(call) / count

    @cached_property
    def prepare(self) -> float:
        """Seconds a pixel, to bring slices to the model's size."""
        slices = self._noise()
        return _fastest(lambda: self.model.preparation.prepare(slices)) / slices.size

    @cached_property
    def restore(self) -> float:
        """Seconds a pixel, to bring one run's logits back and average them."""
        count, *size = self._noise().shape
        logits = np.zeros((count, *self.model.preparation.size), np.float32)

        def call() -> None:
            ensemble = Ensemble()
            ensemble.add(self.model.preparation.restore(logits, (size[0], size[1])))
            sigmoid(ensemble.logits)

        return _fastest(call) / (count * math.prod(size))

    def _noise(self) -> np.ndarray:
        return np.random.default_rng(0).random((4, *self.model.preparation.size))


def estimate(
    shape: tuple[int, ...],
    model: Model,
    *,
    affine: ArrayLike | None = None,
    samples: int = 1,
    threads: int | None = None,
    memory: int | None = None,
    voxels: int = 0,
    speed: Speed | None = None,
) -> Estimate:
    """Estimate what `predict` will take for an image, after trying the model for less than a second.

    Parameters
    ----------
    shape : tuple of int
        Of the image: (H, W), or (H, W, D).
    model : Model
    affine : array, optional
        (4, 4), as of `predict`: along which axis a volume is sliced depends on it. Default: the model's own axes.
    samples, threads, memory
        As of `predict`.
    voxels : int
        Bytes of the image where `predict` reads it from a file. Default 0: the caller holds it already.
    speed : Speed, optional
        To try the model once for many images.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        The run does not fit into ``memory``, or an argument is out of range.
    """
    samples = whole_number(samples, "samples", 1, _core.MAX_SAMPLES)
    threads = thread_count(threads)
    speed = speed or Speed(model, threads)
    matrix = None if affine is None or len(shape) != 3 else np.asarray(affine, np.float64)
    along = None if matrix is not None or len(shape) != 3 else model.preparation.axis
    slices = slicing(shape, matrix, along, model)(np.broadcast_to(np.False_, shape)).shape
    count = slices_a_call(slices, model, samples=samples, threads=threads, memory=memory, voxels=voxels)
    pixels = math.prod(slices)
    return Estimate(
        seconds=slices[0] * samples * speed.run + pixels * (speed.prepare + samples * speed.restore),
        bytes=run_bytes(slices, model, samples=samples, threads=threads, voxels=voxels, count=count),
    )


def extent(path: str | os.PathLike[str]) -> Extent:
    """Return the size of a file's volume: from its header where that tells, else by reading it.

    Raises
    ------
    ValueError, OSError
        As `pynca.volumes.read_volume`.
    """
    found = read_extent(path)
    if found is None:
        volume = read_volume(Path(path))
        found = Extent(volume.data.shape, volume.affine, volume.data.nbytes)
    return found


def process_bytes() -> int:
    """Return the most memory that this process has taken so far."""
    try:
        import resource
    except ImportError:  # Windows
        return 100 * 10**6
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _fastest(call: Callable[[], None]) -> float:
    """Return the shortest time that a call takes, of those that fit into the time of a probe, but two at least."""
    call()  # packs weights, starts threads
    times: list[float] = []
    while len(times) < 2 or sum(times) < _PROBE_SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
