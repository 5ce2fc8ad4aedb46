"""Model: levels from coarse to fine, how an image is prepared, what the labels are called, where it came from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, jsontext, tensorfile, zoo
from .errors import NotFinite, brief, quoted
from .inputs import Expected
from .postprocessing import STEPS
from .preprocessing import SHRINK, Preparation, check_finite
from .quality import Quality
from .rule import FloatArray, Rule, check_masks, whole_number

_T = TypeVar("_T")


@dataclass(frozen=True)
class Level:
    """A rule, its number of steps and its scale.

    Parameters
    ----------
    rule : Rule
    steps : int
        Number of steps, 1 to 65535. It must be the number the rule was trained with.
    scale : int
        Side of a cell in pixels of the prepared image: 4 for Med-NCA's coarse level, 1 for the finest.
    """

    rule: Rule
    steps: int
    scale: int


@dataclass(frozen=True)
class Card:
    """Where a model came from, for the person who must decide whether to use it. Free text, all optional.

    Parameters
    ----------
    name, description, licence, training_data, citation, accuracy, source, modality : str
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    training_data: str = ""
    citation: str = ""
    accuracy: str = ""
    source: str = ""
    modality: str = ""


@dataclass(frozen=True)
class Model:
    """Levels from coarse to fine, with everything that is needed to use them.

    Parameters
    ----------
    levels : sequence of Level
        Coarse first. Scales descend to 1 and each is a multiple of the next; all rules have as many
        channels and image channels.
    preparation : Preparation
        How a slice is brought to the model, and its logits back. Default: slices of 64 x 64.
    labels : mapping of int to str
        Name of each label value. Default ``{1: "foreground"}``.
    threshold : float
        Probability above which a pixel belongs to the label. Default 0.5.
    card : Card
        Name, licence, training data, citation, accuracy.
    expected : Expected, optional
        What input the model was made for; None, the default, where nobody has found out.
    quality : Quality, optional
        Where its segmentations begin to be doubtful; None, the default, where nobody has found out.
    postprocessing : sequence of str
        What is done to a mask: ``"largest"`` keeps the largest piece of the image, ``"fill"`` fills holes in each
        slice. Default none.
    file : str
        The file that it was read from, which messages name. Default empty: it was made in Python.

    Raises
    ------
    ValueError
        The parts do not fit each other.
    """

    levels: Sequence[Level]
    preparation: Preparation = field(default_factory=lambda: Preparation((64, 64)))
    labels: Mapping[int, str] = field(default_factory=lambda: {1: "foreground"})
    threshold: float = 0.5
    card: Card = field(default_factory=Card)
    expected: Expected | None = None
    quality: Quality | None = None
    postprocessing: Sequence[str] = ()
    file: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.levels, Sequence) or not all(
            isinstance(level, Level) and isinstance(level.rule, Rule) for level in self.levels
        ):
            raise TypeError("levels must be a sequence of Level, each with a Rule")
        if not isinstance(self.preparation, Preparation):
            raise TypeError(f"preparation is of type {type(self.preparation).__name__}; it must be a Preparation")
        if not (isinstance(self.card, Card) and all(isinstance(text, str) for text in asdict(self.card).values())):
            raise TypeError("card must be a Card, and all that it says text")
        for name, kind in (("expected", Expected), ("quality", Quality)):
            value = getattr(self, name)
            if not (value is None or isinstance(value, kind)):
                raise TypeError(f"{name} is of type {type(value).__name__}; it must be {kind.__name__} or None")
        if not 1 <= len(self.levels) <= _core.MAX_LEVELS:
            raise ValueError(f"the model has {len(self.levels)} levels; it must have 1 to {_core.MAX_LEVELS}")
        # Plain numbers, whatever came in, so that every model can be saved
        levels = tuple(
            Level(
                level.rule,
                whole_number(level.steps, f"steps of level {n}", 1, _core.MAX_STEPS),
                whole_number(level.scale, f"scale of level {n}", 1, 1024),
            )
            for n, level in enumerate(self.levels)
        )
        object.__setattr__(self, "levels", levels)
        scales = [level.scale for level in levels]
        if scales[-1] != 1 or any(a <= b or a % b for a, b in pairwise(scales)):
            raise ValueError(f"the levels have scales {scales}; they must descend to 1, each a multiple of the next")
        if len({(level.rule.channels, level.rule.input_channels) for level in levels}) > 1:
            raise ValueError("all levels of a model must have the same channels and image channels")
        if levels[0].rule.input_channels < 1:
            raise ValueError("the rules of a model must have at least one image channel")
        for n, level in enumerate(levels):
            cells = [-(-size // scales[0]) * scales[0] // level.scale for size in self.preparation.size]
            if level.rule.padding == "reflect" and min(cells) <= level.rule.kernel_size // 2:
                raise ValueError(
                    f"slices of {self.preparation.size} are {cells} cells at level {n}, too few for reflect padding "
                    f"with a kernel of {level.rule.kernel_size}"
                )
        labels = dict(self.labels) if isinstance(self.labels, Mapping) else {}
        if len(labels) != 1 or not all(
            isinstance(value, (int, np.integer))
            and not isinstance(value, bool)
            and 1 <= value <= 255
            and isinstance(name, str)
            for value, name in labels.items()
        ):
            raise ValueError(f"labels are {self.labels!r}; there must be one name, for a value of 1 to 255")
        object.__setattr__(self, "labels", {int(value): name for value, name in labels.items()})
        if not (isinstance(self.threshold, (int, float, np.floating)) and 0.0 < self.threshold < 1.0):
            raise ValueError(f"threshold is {self.threshold!r}; it must be a probability between 0 and 1")
        object.__setattr__(self, "threshold", float(self.threshold))
        if isinstance(self.postprocessing, str) or any(step not in STEPS for step in self.postprocessing):
            raise ValueError(f"postprocessing is {self.postprocessing!r}; it must be a list of {' and '.join(STEPS)}")
        object.__setattr__(self, "postprocessing", tuple(self.postprocessing))

    @property
    def input_channels(self) -> int:
        """Number of image channels."""
        return self.levels[0].rule.input_channels

    @property
    def parameters(self) -> int:
        """Number of weights and biases of all levels."""
        return sum(level.rule.parameters for level in self.levels)

    def logits(
        self,
        image: ArrayLike,
        *,
        masks: Sequence[ArrayLike] | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> FloatArray:
        """Run all levels on a prepared image.

        The coarsest level starts from zeros and the shrunken image; each cell is then repeated for the
        next level, whose image channels take the image at its own scale. An image whose size the
        coarsest scale does not divide is padded by reflection and cropped back.

        Parameters
        ----------
        image : array
            (H, W), or (H, W, K) with K image channels, prepared as `Preparation` says.
        masks : sequence of array, optional
            One uint8 array of fire masks (steps, h, w) a level, coarse level first; they replace the
            random fire masks. h and w are those of the level's (padded) image.
        seed : int
            Seed of the random fire masks, 0 to 2**64 - 1. Default 0.
        threads : int, optional
            As in `Rule.run`.

        Returns
        -------
        array
            float32 (H, W): positive where the probability is above one half.

        Raises
        ------
        ValueError, TypeError
            An argument has the wrong shape, type or range; or the run did not stay finite.
        """
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[-1] != self.input_channels or 0 in array.shape:
            k = self.input_channels
            wanted = f"(H, W) or (H, W, {k})" if k == 1 else f"(H, W, {k})"
            raise ValueError(f"image has shape {np.shape(image)}; it must be {wanted}")
        if array.dtype.kind not in "fiub":
            raise TypeError(f"image has dtype {array.dtype}; it must hold real numbers")
        check_finite(array, "image")
        if masks is not None and len(masks) != len(self.levels):
            raise ValueError(f"masks has {len(masks)} entries; it must have one for each of {len(self.levels)} levels")
        one = np.zeros(1, np.uint32)
        logits: FloatArray = self.batch_logits(
            array[None].astype(np.float32), samples=one, slices=one, masks=masks, seed=seed, threads=threads
        )[0]
        return logits

    def batch_logits(
        self,
        images: FloatArray,
        *,
        samples: NDArray[np.uint32],
        slices: NDArray[np.uint32],
        masks: Sequence[ArrayLike] | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> FloatArray:
        """Run all levels on prepared float32 images (N, H, W, K), each with its ensemble run and slice index.

        Returns logits (N, H, W). `logits` describes the arguments and errors; masks are (steps, h, w), for N = 1.
        """
        if images.ndim != 4 or images.shape[-1] != self.input_channels:
            raise ValueError(f"images has shape {images.shape}; it must be (N, H, W, {self.input_channels})")
        state: FloatArray | None = None
        for n, level in enumerate(self.levels):
            state = self.entered(n, images, state)
            fire = None if masks is None else check_masks(masks[n], level.steps, state.shape[1:3], f"masks[{n}]")
            level.rule.run_in_place(
                state,
                level.steps,
                masks=fire,
                seed=seed,
                level=n,
                samples=samples,
                slices=slices,
                threads=threads,
            )
        assert state is not None
        self.check_stayed_finite(state)
        _, height, width, k = images.shape
        logits: FloatArray = state[:, :height, :width, k].copy()
        return logits

    def check_stayed_finite(self, values: FloatArray) -> None:
        """Refuse what a run came to if NaN or infinity is in it: a cell that reached them keeps them to the end.

        Raises
        ------
        NotFinite
            The sentence names the model.
        """
        with np.errstate(invalid="ignore"):
            finite = math.isfinite(values.min()) and math.isfinite(values.max())  # takes no memory, unlike isfinite
        if not finite:
            who = self.file or self.card.name or "without a name"
            raise NotFinite(
                f"a run of the model {who} did not stay finite: cells reached NaN or infinity, so that there is no "
                "result; its weights cannot be right"
            )

    def entered(self, n: int, images: FloatArray, coarser: FloatArray | None) -> FloatArray:
        """Return the state in which level ``n`` begins: the coarser level's, each cell repeated, with the images."""
        level, coarsest = self.levels[n], self.levels[0].scale
        count, height, width, k = images.shape
        pad = [(0, -side % coarsest) for side in (height, width)]
        padded = np.pad(images, [(0, 0), *pad, (0, 0)], mode="reflect") if any(p for _, p in pad) else images
        size = (padded.shape[1] // level.scale, padded.shape[2] // level.scale)
        needed = level.rule.kernel_size // 2 + 1 if level.rule.padding == "reflect" else 1
        if min(size) < needed:
            raise ValueError(
                f"a prepared image of {height} x {width} is too small: level {n} sees {size[0]} x {size[1]} cells "
                f"of it and needs at least {needed} rows and columns"
            )
        state = _enlarged(coarser, (count, *size, level.rule.channels))
        state[..., :k] = SHRINK[self.preparation.shrink](padded, level.scale) if level.scale > 1 else padded
        return state

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a ``.safetensors`` file, whole or not at all; the same model gives the same bytes.

        Parameters
        ----------
        path : str or path-like
            Ends in ``.safetensors``.
        overwrite : bool
            Replace a file that pynca did not write, or that was changed since. Default False.

        Raises
        ------
        ValueError
            The name does not end in ``.safetensors``.
        FileExistsError
            There is such a file, and ``overwrite`` is not given.
        OSError
            The file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: the name of a model file must end in .safetensors")
        tensors = {
            f"levels.{n}.{name}": np.asarray(w)
            for n, level in enumerate(self.levels)
            for name, w in level.rule.weights.items()
        }
        tensorfile.write(path, tensors, _metadata(self), overwrite=overwrite)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model from a ``.safetensors`` file that `Model.save` wrote, or a bundled one.

    Parameters
    ----------
    path : str or path-like
        The name of a bundled model, such as ``"hippocampus"``, or a file; nothing in it is run.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        The file is damaged, or not a model of this format; the sentence says what is wrong.
    OSError
        The file does not exist or cannot be read.
    """
    path = zoo.find(str(path)) or Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {zoo.others(str(path))}")
    tensors, metadata = tensorfile.read(path)
    if metadata.get("format") != "pynca":
        raise ValueError(f"{path} is a safetensors file without pynca's metadata; `pynca import` makes models")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {quoted(metadata.get('format_version'))}; this pynca reads {FORMAT_VERSION}"
        )
    try:
        return replace(_model(tensors, metadata), file=str(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid model: {brief(error)}") from None


FORMAT_VERSION = "1"


def _enlarged(state: FloatArray | None, shape: tuple[int, int, int, int]) -> FloatArray:
    """Repeat each cell so that the state has a shape; zeros where there is no state yet."""
    larger = np.zeros(shape, np.float32)
    if state is not None:
        count, height, width, channels = state.shape
        by = shape[1] // height
        larger.reshape(count, height, by, width, by, channels)[...] = state[:, :, None, :, None, :]
    return larger


def _metadata(model: Model) -> dict[str, str]:
    levels = [
        {
            "perception": level.rule.perception,
            "padding": level.rule.padding,
            "input_channels": level.rule.input_channels,
            "fire_rate": level.rule.fire_rate,
            "steps": level.steps,
            "scale": level.scale,
        }
        for level in model.levels
    ]
    learnt = {"expected": model.expected, "quality": model.quality}
    return {
        "format": "pynca",
        "format_version": FORMAT_VERSION,
        "levels": json.dumps(levels),
        "preparation": json.dumps(asdict(model.preparation)),
        "labels": json.dumps({str(value): name for value, name in model.labels.items()}),
        "threshold": json.dumps(model.threshold),
        **({"postprocessing": json.dumps(model.postprocessing)} if model.postprocessing else {}),
        **{name: json.dumps(asdict(value)) for name, value in learnt.items() if value is not None},
        **asdict(model.card),
    }


_LEVEL = {"perception", "padding", "input_channels", "fire_rate", "steps", "scale"}


def _model(tensors: dict[str, FloatArray], metadata: dict[str, str]) -> Model:
    saved = _json(metadata, "levels", list)
    if len(saved) > _core.MAX_LEVELS:
        raise ValueError(f"it has {len(saved)} levels; it may have {_core.MAX_LEVELS}")
    levels = []
    for n, entry in enumerate(saved):
        jsontext.check_names(entry, _LEVEL, {"perception", "steps", "scale"}, f"its level {n}")
        prefix = f"levels.{n}."
        weights = {name.removeprefix(prefix): w for name, w in tensors.items() if name.startswith(prefix)}
        steps, scale = entry.pop("steps"), entry.pop("scale")
        levels.append(Level(Rule(weights, **entry), steps, scale))
    used = sum(len(level.rule.weights) for level in levels)
    if used != len(tensors):
        raise ValueError(f"it holds {len(tensors)} tensors, but its {len(levels)} levels have {used}")
    return Model(
        levels,
        _part(Preparation, metadata, "preparation"),
        labels=_labels(_json(metadata, "labels", dict)),
        threshold=_json(metadata, "threshold", float),
        postprocessing=_json(metadata, "postprocessing", list) if "postprocessing" in metadata else (),
        card=Card(**{f.name: metadata.get(f.name, "") for f in fields(Card)}),
        expected=_part(Expected, metadata, "expected") if "expected" in metadata else None,
        quality=_part(Quality, metadata, "quality") if "quality" in metadata else None,
    )


def _part(cls: type[_T], metadata: dict[str, str], key: str) -> _T:
    """Return a part of a model, which itself checks every value."""
    saved = _json(metadata, key, dict)
    jsontext.check_names(saved, *jsontext.names_of(cls), f"{key} in the metadata")
    return cls(**saved)


def _labels(saved: dict[str, str]) -> dict[int, str]:
    for value in saved:
        if not re.fullmatch("[0-9]{1,3}", value):
            raise ValueError(f"labels hold the value {quoted(value)}; it must be a whole number from 1 to 255")
    return {int(value): name for value, name in saved.items()}


def _json(metadata: dict[str, str], key: str, kind: type) -> Any:
    if key not in metadata:
        raise ValueError(f"its metadata misses {key!r}")
    try:
        value = jsontext.parse(metadata[key])
    except ValueError as error:
        raise ValueError(f"its {key!r} cannot be used: {error}") from None
    if not isinstance(value, kind):
        wanted = {list: "list", dict: "object", float: "number with a decimal point"}[kind]
        raise ValueError(f"its {key!r} is {quoted(value)}; it must be a JSON {wanted}")
    return value
