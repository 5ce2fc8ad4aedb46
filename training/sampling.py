"""Batches of prepared slices: which, what of them, and how they are varied.

A batch is a pure function of (seed, attempt, number of the batch), so that training can stop and go on anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pynca.rule import FloatArray


@dataclass(frozen=True)
class Slices:
    """Prepared slices of all training volumes.

    Parameters
    ----------
    images : array
        float32 (N, H, W), as `pynca.Preparation.prepare` gives them.
    labels : array
        float32 (N, H, W) in [0, 1]: the share of each prepared pixel that belongs to the label.
    """

    images: FloatArray
    labels: FloatArray

    @cached_property
    def shown(self) -> NDArray[np.intp]:
        """Which slices show the label."""
        return np.flatnonzero(self.labels.max(axis=(1, 2)) > 0.5)

    @cached_property
    def small_first(self) -> NDArray[np.float64]:
        """How often to draw each of `shown` so that small structures are seen more often: 1 / (area + mean / 4)."""
        area = self.labels[self.shown].sum(axis=(1, 2), dtype=np.float64)
        often = 1 / (area + area.mean() / 4)
        share: NDArray[np.float64] = often / often.sum()
        return share


@dataclass(frozen=True)
class Augmentation:
    """How far slices are varied. Each is the largest deviation, drawn evenly to both sides; 0 turns it off.

    Parameters
    ----------
    flip : bool
        Mirror along each axis with probability one half.
    rotation : float
        Degrees.
    quarters : float
        Share of the slices that are turned further, by one, two or three quarters.
    zoom : float
        Relative size.
    shift : float
        Pixels.
    tone : float
        Bend of the grey scale: ``x + a x (1 - x)``.
    contrast : float
        Relative range of grey values, around one half.
    bias : float
        Relative brightness between the middle and the corners, along each axis and bent.
    noise : float
        Largest standard deviation of added normal noise.

    Raises
    ------
    ValueError
        A value is out of range.
    """

    flip: bool = False
    rotation: float = 12.0
    zoom: float = 0.12
    shift: float = 3.0
    tone: float = 0.3
    contrast: float = 0.15
    bias: float = 0.2
    noise: float = 0.04
    quarters: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            *(("rotation", math.inf), ("shift", math.inf), ("noise", math.inf)),
            *(("zoom", 0.9), ("tone", 1.0), ("contrast", 1.0), ("bias", 1.0), ("quarters", 1.0)),
        ):
            if not (0 <= getattr(self, name) <= most and getattr(self, name) < math.inf):
                limit = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number {limit}")


def generator(seed: int, attempt: int, batch: int) -> np.random.Generator:
    """Return the random numbers of one batch."""
    return np.random.Generator(np.random.Philox(key=[seed, attempt], counter=[0, 0, 0, batch]))


def draw(
    slices: Slices,
    count: int,
    augmentation: Augmentation,
    random: np.random.Generator,
    *,
    negatives: float = 0.0,
    small_first: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Draw images and labels (count, H, W): half of the slices show the label, the rest are any.

    Those that show it are drawn evenly or, with ``small_first``, more often where there is little of it. The last of
    all, a share of ``negatives``, are windows beside the label, enlarged.
    """
    chosen = random.integers(len(slices.images), size=count)
    chosen[: count // 2] = random.choice(slices.shown, count // 2, p=slices.small_first if small_first else None)
    images, labels = slices.images[chosen], slices.labels[chosen]
    beside = int(count * negatives + random.random()) if negatives else 0  # so many on average
    if not beside:
        return vary(images, labels, augmentation, random)
    windows = np.array([[1.0, 0.5, 0.5]] * (count - beside) + [window(label, random) for label in labels[-beside:]])
    return vary(images, labels, augmentation, random, windows)


_TRIES = 20


def window(label: FloatArray, random: np.random.Generator) -> tuple[float, float, float]:
    """Choose a square window without the label: its side and centre as shares of the slice.

    Where none of some tries is free of the label, the last try is taken as it is: what the window shows of the label
    is labelled.
    """
    for n in range(_TRIES):
        side = random.uniform(0.25, 0.7 - 0.4 * n / _TRIES)  # large ones, unless there is no room for them
        y, x = random.uniform(side / 2, 1 - side / 2, 2)
        height, width = label.shape
        rows = slice(int((y - side / 2) * height), math.ceil((y + side / 2) * height))
        columns = slice(int((x - side / 2) * width), math.ceil((x + side / 2) * width))
        if not label[rows, columns].any():
            break
    return side, float(y), float(x)


def vary(
    images: FloatArray,
    labels: FloatArray,
    a: Augmentation,
    random: np.random.Generator,
    windows: NDArray[np.float64] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Move images and labels together, then change the images' grey values.

    ``windows`` (N, 3), sides and centres as shares of the slice, are what is looked at of each; default all.
    """
    count, height, width = images.shape

    def spread(limit: float) -> NDArray[np.float64]:
        return random.uniform(-limit, limit, (count,))

    turn, size = np.deg2rad(spread(a.rotation)), 1.0 + spread(a.zoom)
    if a.quarters:  # nothing is drawn for what is turned off
        further = random.random(count) < a.quarters
        turn = turn + math.pi / 2 * further * random.integers(1, 4, count)
    # not NumPy's, which choose their code by CPU
    cosine, sine = ([f(t) for t in turn] for f in (math.cos, math.sin))
    mirror = np.where(random.random((2, count)) < 0.5 * a.flip, -1.0, 1.0)
    middle = np.full((2, count), [[(height - 1) / 2], [(width - 1) / 2]])
    if windows is not None:
        side, *centre = windows.T
        size = size / side
        middle = middle + (np.array(centre) - 0.5) * [[height], [width]]
    down, across = spread(a.shift), spread(a.shift)
    lean = [spread(a.bias) for _ in range(3)]
    tone, contrast, lift = spread(a.tone), 1.0 + spread(a.contrast), spread(a.contrast / 2)
    noise = random.uniform(0, a.noise, (count,))
    grain = random.standard_normal(images.shape)

    y, x = np.arange(height)[:, None] - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    v, u = 2 * y / height, 2 * x / width
    varied = np.empty((2, *images.shape), np.float32)
    for n in range(count):  # one after the other stays in the cache
        rows = (cosine[n] * y - sine[n] * x) / size[n] * mirror[0, n] + middle[0, n] + down[n]
        columns = (sine[n] * y + cosine[n] * x) / size[n] * mirror[1, n] + middle[1, n] + across[n]
        image, label = _read((images[n], labels[n]), rows, columns)
        grey = image * (1.0 + lean[0][n] * u + lean[1][n] * v + lean[2][n] * (u * u - v * v))
        grey = grey + tone[n] * grey * (1 - grey)
        grey = 0.5 + (grey - 0.5) * contrast[n] + lift[n]
        varied[0, n], varied[1, n] = np.clip(grey + noise[n] * grain[n], 0, 1), label
    return varied[0], varied[1]


def patches(
    labels: FloatArray,
    size: tuple[int, int],
    scale: int,
    random: np.random.Generator,
    on_label: float = 0.5,
    on_errors: float = 0.0,
) -> NDArray[np.int64] | Callable[[FloatArray], NDArray[np.int64]]:
    """Choose a patch in each slice (N, 2): some around a pixel of the label, some around an error, some anywhere.

    Corners are multiples of ``scale``, so that a patch is made of whole coarse cells. Where errors are asked for, what
    chooses is returned: it takes the logits (N, h, w) that a coarser level has found.
    """
    limits = np.array(labels.shape[1:]) - size
    places = np.floor(random.random((len(labels), 2)) * (limits + 1)).astype(np.int64)
    wanted, which = random.random(len(labels)), random.random(len(labels))

    def around(n: int, pixels: NDArray[np.intp], places: NDArray[np.int64]) -> None:
        if len(pixels):
            places[n] = np.clip(pixels[int(which[n] * len(pixels))] - np.array(size) // 2, 0, limits)

    for n in np.flatnonzero(wanted < on_label):
        around(int(n), np.argwhere(labels[n] > 0.5), places)
    if not on_errors:
        return places // scale * scale

    def choose(logits: FloatArray) -> NDArray[np.int64]:
        chosen, cell = places.copy(), labels.shape[1] // logits.shape[1]
        for n in np.flatnonzero((wanted >= on_label) & (wanted < on_label + on_errors)):
            blocks = labels[n].reshape(logits.shape[1], cell, logits.shape[2], cell).max(axis=(1, 3))
            around(int(n), np.argwhere((logits[n] > 0) & (blocks < 0.5)) * cell + cell // 2, chosen)
        return chosen // scale * scale

    return choose


def cut(arrays: FloatArray, places: NDArray[np.int64], size: tuple[int, int]) -> FloatArray:
    """Cut each slice's patch (N, *size)."""
    return np.stack([a[y : y + size[0], x : x + size[1]] for a, (y, x) in zip(arrays, places.tolist(), strict=True)])


def _read(arrays: Sequence[FloatArray], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> list[FloatArray]:
    """Read arrays (H, W) at fractional positions, linearly, clamped at the border."""
    height, width = arrays[0].shape
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    fall, lean = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    # places in the arrays as one row of numbers
    top_left = top * width + left
    right, down = left < width - 1, (top < height - 1) * np.intp(width)
    corners = (top_left, top_left + right, top_left + down, top_left + down + right)

    def read(array: FloatArray) -> FloatArray:
        a, b, c, d = (array.take(corner) for corner in corners)
        upper, lower = a * (1 - lean) + b * lean, c * (1 - lean) + d * lean
        between: FloatArray = upper * (1 - fall) + lower * fall
        return between

    return [read(array) for array in arrays]
