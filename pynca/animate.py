"""The automaton at work: how a segmentation grows, step by step, as an animated GIF."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import atomic_path, check_writable
from .formats.base import optional
from .model import Model, load_model
from .orientation import DISPLAY, Orientation
from .preview import BLUE, ORANGE, View, fitting, grey, original, outline, resized
from .quality import sigmoid
from .rule import FloatArray, UInt8Array, fire_mask, whole_number
from .seal import BLANK
from .segmentation import Segmentation, predict
from .volumes import files_of
from .zoo import DEFAULT

if TYPE_CHECKING:
    from .segmentation import Image

# The palette: every grey under every strength of every level's colour, then the colours themselves.
_GREYS, _STRENGTHS = 28, 4
_COLOURS = (BLUE, ORANGE)  # of all levels but the last, and of the last
_FULL = 0.6  # of the colour over a probability of 1
_PURE = _GREYS * (1 + _STRENGTHS * len(_COLOURS))
_TRACK = _PURE + len(_COLOURS)

ZOOMS, DELAYS = (1, 64), (20, 10_000)  # the least and the most
_WIDTH = 360
_BAR, _MARGIN = 6, 4  # pixels
_PAUSE = 2000  # ms at the end, before it begins again


class Step(NamedTuple):
    """The state of the automaton after a step.

    Parameters
    ----------
    level, step : int
        The level, 0 = coarsest, and how many of its steps are done.
    logits : array
        float32 (H, W), as large as the prepared slice: cells of a coarse level are repeated.
    """

    level: int
    step: int
    logits: FloatArray


def growth(
    model: Model, image: ArrayLike, *, slice_index: int = 0, seed: int = 0, threads: int | None = None
) -> Iterator[Step]:
    """Yield the automaton's state after every step; the last one is what `predict` sees with one sample.

    Parameters
    ----------
    model : Model
        With one image channel.
    image : array
        (H, W), prepared as `Preparation` says.
    slice_index : int
        Index of the slice in its volume, which chooses the fire masks. Default 0.
    seed : int
        Seed of the fire masks. Default 0.
    threads : int, optional
        As in `predict`.
    """
    images = np.asarray(image, np.float32)[None, :, :, None]
    height, width = images.shape[1:3]
    state: FloatArray | None = None
    for n, level in enumerate(model.levels):
        state = model.entered(n, images, state)
        masks = fire_mask(
            state.shape[1:3], level.steps, fire_rate=level.rule.fire_rate, seed=seed, level=n, z=slice_index
        )
        for step in range(level.steps):
            level.rule.run_in_place(state, 1, masks=masks[step : step + 1], threads=threads)
            logits = state[0, :, :, model.input_channels].repeat(level.scale, 0).repeat(level.scale, 1)
            yield Step(n, step + 1, logits[:height, :width])


def write_animation(
    path: str | os.PathLike[str],
    image: Image,
    model: Model | str | os.PathLike[str] = DEFAULT,
    *,
    slice_index: int | None = None,
    seed: int = 0,
    zoom: int | None = None,
    delay: int = 120,
    threads: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> int:
    """Write an animated GIF of the automaton segmenting one slice.

    Every frame is a step: the slice in grey, the probability over it, and the outline of what would be the mask if the
    automaton stopped there; blue on coarse levels, orange on the last. The bar below counts steps. The last frame is
    what `predict` finds.

    Parameters
    ----------
    path : str or path-like
        Ends in ``.gif``.
    image, model, seed, threads, strict
        As for `predict`.
    slice_index : int, optional
        Slice of a volume, counted along the image's own axis that the model slices. Default: the one with the
        largest mask, the middle one where nothing is found.
    zoom : int, optional
        Side of a voxel in pixels, 1 to 64. Default: as large as 360 pixels have room for.
    delay : int
        Milliseconds a step, 20 to 10000. Default 120.
    overwrite : bool
        Replace a file that pynca did not write, or that was changed since. Default False.

    Returns
    -------
    int
        The slice that is shown; 0 for a picture.

    Raises
    ------
    ValueError, TypeError
        As `predict`; or the name has another ending, or an option is out of range.
    ImportError
        Pillow is not installed.
    FileExistsError
        There is such a file, and ``overwrite`` is not given.
    OSError
        The image cannot be read, or the file not be written.
    """
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"{path} cannot be written: the name of an animation must end in .gif")
    zoom = None if zoom is None else whole_number(zoom, "zoom", *ZOOMS)
    delay = whole_number(delay, "delay", *DELAYS)
    pillow = optional("PIL.Image", "image", "an animation")
    inputs = [Path(model)] if isinstance(model, (str, os.PathLike)) else []
    inputs += files_of(image) if isinstance(image, (str, os.PathLike)) else []
    check_writable(path, overwrite=overwrite, inputs=inputs)
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model)
    result = predict(image, model, seed=seed, threads=threads, strict=strict)
    if result.mask.ndim > 3:
        raise ValueError(f"the image has shape {result.mask.shape}; choose one of its volumes")
    way = _Way(result, model)
    slices = way.slices(original(result).data)
    last = len(slices) - 1
    if slice_index is None:
        k = _largest(way.slices(result.mask))
    else:
        k = whole_number(slice_index, "slice", 0, last)
        k = last - k if way.turned else k

    plane = way.upright(slices[k])
    size = fitting(way.view, plane.shape, _WIDTH, zoom)
    greys = np.rint(resized(np.rint(grey(plane) * (_GREYS - 1)), size)).astype(np.uint8)
    frames = [np.concatenate([greys, _bar(model, size[1], 0)])]
    limit = math.log(model.threshold / (1.0 - model.threshold))
    prepared = model.preparation.prepare(slices[k : k + 1])[0]
    for done, step in enumerate(growth(model, prepared, slice_index=k, seed=seed, threads=threads), start=1):
        logits = way.upright(model.preparation.restore(step.logits[None], slices.shape[1:])[0])
        colour = int(step.level == len(model.levels) - 1)
        frames.append(np.concatenate([_frame(greys, logits, limit, colour), _bar(model, size[1], done)]))
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as beside:
        _write(pillow, beside, frames, delay)
    return last - k if way.turned else k


class _Way:
    """How an image becomes the model's slices, and how one of them is shown.

    Attributes
    ----------
    view : View
        Across the axis that the model slices.
    turned : bool
        The model counts slices from the other end than the image.
    """

    def __init__(self, result: Segmentation, model: Model) -> None:
        preparation, volume = model.preparation, result.volume
        located = volume is not None and (volume.affine is not None or volume.picture)
        self._one = result.mask.ndim == 2 and not located  # a slice as the model sees it
        self._along = preparation.axis
        self._way = Orientation.of(volume, preparation.orientation, preparation.axis)
        axis = self._way.axes.index(preparation.axis)
        self.turned = self._way.flips[axis] < 0
        if located or self._one:
            self.view = View.of(original(result), axis)
        else:
            codes = "" if preparation.orientation == DISPLAY else preparation.orientation
            self.view = View(axis, codes, preparation.spacing)

    def slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return slices (N, h, w), as the model sees them, of an array in the image's axes."""
        if self._one:
            return array[None]
        return np.moveaxis(self._way.apply(np.atleast_3d(array)), self._along, 0)

    def upright(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Return how a slice of the model's is shown."""
        if self._one:
            return plane
        shown: NDArray[Any] = self.view.planes(self._way.undo(np.moveaxis(plane[None], 0, self._along)))[0]
        return shown


def _largest(masks: UInt8Array) -> int:
    voxels = np.count_nonzero(masks, axis=(1, 2))
    return int(np.argmax(voxels)) if voxels.any() else len(masks) // 2


def _frame(greys: UInt8Array, logits: FloatArray, limit: float, colour: int) -> UInt8Array:
    """Return a slice under the probability and the outline of the mask, as numbers of the palette."""
    strength = np.rint(resized(np.rint(sigmoid(logits) * _STRENGTHS), greys.shape)).astype(np.uint8)
    block = 1 + _STRENGTHS * colour + strength - 1  # of the palette, where there is a colour
    frame: UInt8Array = np.where(strength > 0, _GREYS * block + greys, greys).astype(np.uint8)
    frame[outline(logits > limit, greys.shape)] = _PURE + colour
    return frame


def _bar(model: Model, width: int, done: int) -> UInt8Array:
    """Return the bar that counts steps, as numbers of the palette: a part for each level."""
    steps = [level.steps for level in model.levels]
    column = (np.arange(width) + 0.5) * sum(steps) / width
    coarse = sum(steps[:-1])
    line = np.where(column < done, np.where(column < coarse, _PURE, _PURE + 1), _TRACK)
    line[np.searchsorted(column, coarse) - 1] = 0  # a gap before the last level
    bar = np.zeros((_MARGIN + _BAR, width), np.uint8)
    bar[_MARGIN:] = line
    return bar


def _palette() -> bytes:
    shades = np.linspace(0, 255, _GREYS)[:, None].repeat(3, axis=1)
    blocks = [shades]
    for colour in _COLOURS:
        for strength in range(1, _STRENGTHS + 1):
            share = _FULL * strength / _STRENGTHS
            blocks.append((1 - share) * shades + share * np.array(colour))
    blocks.append(np.array([*_COLOURS, (70, 70, 70)]))
    return np.rint(np.concatenate(blocks)).astype(np.uint8).tobytes()


def _write(pillow: Any, path: Path, frames: Sequence[UInt8Array], delay: int) -> None:
    palette = _palette()
    images = []
    for frame in frames:
        images.append(pillow.frombytes("P", frame.shape[::-1], frame.tobytes()))
        images[-1].putpalette(palette)
    durations = [delay] * (len(frames) - 1) + [_PAUSE]
    how = {"duration": durations, "loop": 0, "optimize": False, "comment": BLANK}
    content = io.BytesIO()  # Pillow hides what a disk says
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], **how)
    path.write_bytes(content.getbuffer())
