"""How long a run will take on this machine, and how much memory, said before it starts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import _core
from .config import thread_count
from .errors import quoted
from .memory import CALL_SLICES, memory_limit, run_bytes, slices_a_call
from .model import Model
from .quality import Ensemble, sigmoid
from .rule import whole_number
from .segmentation import slicing
from .volumes import Volume, read_outline, read_volume

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

    def measure(self) -> None:
        """Measure now, so that what follows takes no time."""
        _ = self.run, self.prepare, self.restore

    @cached_property
    def run(self) -> float:
        """Seconds that the automaton takes for a slice, in a call of as many as threads can share."""
        size = self.model.preparation.size
        wanted = 1, CALL_SLICES * self.threads, *size
        count = slices_a_call(
            wanted, self.model, samples=1, threads=self.threads, memory=memory_limit(), name="the model"
        )
        images = np.zeros((count, *size, 1), np.float32)
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

        pixels: int = math.prod(size) * count
        return _fastest(call) / pixels

    def _noise(self) -> NDArray[np.float64]:
        return np.random.default_rng(0).random((4, *self.model.preparation.size))


def estimate(
    image: tuple[int, ...] | Volume,
    model: Model,
    *,
    samples: int = 1,
    threads: int | None = None,
    memory: int | None = None,
    speed: Speed | None = None,
) -> Estimate:
    """Estimate what `predict` will take for an image, after trying the model for less than a second.

    Parameters
    ----------
    image : tuple of int, or Volume
        The shape of an array, (H, W) or (H, W, D), in the model's orientation, which the caller holds already. Or
        what `outline` returns for a file, whose voxels `predict` reads: they count, too.
    model : Model
    samples, threads, memory
        As of `predict`.
    speed : Speed, optional
        To try the model once for many images.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError, TypeError
        The run does not fit into ``memory``, or an argument is out of range or of the wrong type.
    """
    if isinstance(image, Volume):
        volume, data = image, image.data
    elif isinstance(image, (tuple, list)) and len(image) in (2, 3):
        shape = tuple(whole_number(size, "image", 1, 2**31 - 1) for size in image)
        volume, data = None, np.broadcast_to(np.False_, shape)
    else:
        raise TypeError(f"image is {quoted(image)}; it must be a shape, (H, W) or (H, W, D), or what outline returns")
    samples = whole_number(samples, "samples", 1, _core.MAX_SAMPLES)
    threads = thread_count(threads)
    speed = speed or Speed(model, threads)
    axis = model.preparation.axis if volume is None and data.ndim == 3 else None
    shape = slicing(data.shape, volume, axis, model)(data).shape
    name, voxels, reading = ("the image", 0, 0) if volume is None else (volume.name, data.nbytes, volume.reading)
    file = {"voxels": voxels, "reading": reading}
    count = slices_a_call(shape, model, samples=samples, threads=threads, memory=memory, name=name, **file)
    runs, pixels = shape[0] * shape[1] * samples, math.prod(shape)
    return Estimate(
        seconds=runs * speed.run + pixels * (speed.prepare + samples * speed.restore),
        bytes=run_bytes(shape, model, samples=samples, threads=threads, count=count, **file),
    )


def outline(path: str | os.PathLike[str], *, which: int | Literal["all"] | None = None) -> Volume:
    """Return an image as its header describes it, without voxels; or read it, where the header does not tell.

    Parameters
    ----------
    path : str or path-like
    which : int or "all", optional
        As ``volume`` of `pynca.volumes.read_volume`.

    Raises
    ------
    ValueError, OSError, ImportError
        As `pynca.volumes.read_volume`.
    """
    return read_outline(path, volume=which) or read_volume(path, volume=which)


def _fastest(call: Callable[[], object]) -> float:
    """Return the shortest time that a call takes, of those that fit into the time of a probe, but two at least."""
    call()  # packs weights, starts threads
    times: list[float] = []
    while len(times) < 2 or sum(times) < _PROBE_SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
