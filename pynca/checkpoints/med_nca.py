"""Import checkpoints of the Med-NCA family: two learned convolutions or Sobel, one or two levels, 2D.

The authors' code (https://github.com/MECLabTUDA/M3D-NCA) writes a folder with ``config.dt`` and, for each
saved epoch, ``models/epoch_<n>/model0.pth`` (coarse) and ``model1.pth`` (fine).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from numpy.typing import NDArray

from .. import jsontext
from ..errors import brief, shortened
from ..files import check_regular
from ..model import Card, Level, Model
from ..preprocessing import Preparation
from ..rule import Perception, Rule, whole_number
from .archive import read_state_dict

_MAX_CONFIG = 1 << 20  # bytes; the authors' have under one thousand
_PAPER_SCALE = 4  # Agent_Med_NCA shrinks and repeats by 4, whatever its configuration says
_USED_KEYS = {
    "cell_fire_rate",
    "channel_n",
    "hidden_size",
    "inference_steps",
    "input_channels",
    "input_size",
    "output_channels",
    "rescale",
    "scale_factor",
    "train_model",
}

_Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_T = TypeVar("_T")


def import_checkpoint(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    epoch: int | None = None,
    steps: int | Sequence[int] | None = None,
    fire_rate: float | None = None,
    size: tuple[int, int] | None = None,
    input_channels: int | None = None,
    scale: int | None = None,
    orientation: str = "RAS",
    axis: int = 2,
    labels: Mapping[int, str] | None = None,
    card: Card | None = None,
) -> Model:
    """Import a checkpoint that the Med-NCA authors' code trained, without torch.

    Supported are ``BackboneNCA`` and ``BasicNCA`` without normalisation, trained on resized 2D slices
    with one output channel. Nothing in the files is run, so they need not be trusted.

    Parameters
    ----------
    source : path, or sequence of paths
        The folder that the authors' code writes (``config.dt`` and ``models/epoch_<n>/model0.pth``,
        ``model1.pth``), or the ``.pth`` files themselves, coarse level first. Files come without a
        configuration, so ``steps``, ``fire_rate`` and ``size`` must then be given, and for a Sobel rule
        ``input_channels``.
    epoch : int, optional
        Which epoch of a folder. Default: the newest, by number.
    steps : int or sequence of int, optional
        Steps of every level, or one number per level, coarse first. Default: the folder's configuration.
    fire_rate : float, optional
        Probability in [0, 1] that a cell updates; the papers' ``cell_fire_rate`` is one minus that.
        Default: the folder's configuration, translated.
    size : (int, int), optional
        Rows and columns that slices are resized to, at the finest level. Default: the folder's
        configuration.
    input_channels : int, optional
        Number of image channels. ``BackboneNCA`` keeps one fixed, so with learned convolutions it must be
        1. Default: the folder's configuration.
    scale : int, optional
        Side of a coarse cell in pixels of the finest level. Default: by the folder's configuration, else 4.
    orientation : str
        Patient directions towards which the axes of the training volumes grow; checkpoints do not say.
        Default ``"RAS"``.
    axis : int
        Axis of the oriented volume along which it was sliced; checkpoints do not say. Default 2, the only
        one that the authors' code resizes slices for.
    labels : mapping of int to str, optional
        Name of each label value. Default ``{1: "foreground"}``.
    card : Card, optional
        Default: a card that names the folder, the files and their SHA-256.

    Returns
    -------
    Model
        Slices are stretched to ``size``, and masks are moved back by the half pixel that the authors'
        labels lie behind the image.

    Raises
    ------
    ValueError
        A file is damaged, hostile, of a family that is not supported, or does not agree with the
        configuration or the options; the sentence names the file.
    TypeError
        A number among the options is not a whole number where it must be one.
    FileNotFoundError
        The folder, the epoch or a file does not exist.
    """
    checkpoint = _locate(source, epoch)
    config = checkpoint.config
    config.check_supported()
    fire_rate = config.choose(fire_rate, config.fire_rate, "fire_rate", "cell_fire_rate")
    size = config.choose(size, config.size, "size", "input_size")
    rules = [_read_rule(path, config, fire_rate, input_channels) for path in checkpoint.files]
    levels = zip(rules, _level_steps(config, steps), _level_scales(config, scale), strict=True)
    with _naming(checkpoint.place):
        return Model(
            levels=[Level(*parts) for parts in levels],
            preparation=_preparation(size, orientation, axis),
            labels={1: "foreground"} if labels is None else labels,
            card=_card(checkpoint, rules) if card is None else card,
        )


@dataclass(frozen=True)
class _Config:
    """What ``config.dt`` says, checked as it is read; empty for ``.pth`` files without a folder."""

    path: Path
    levels: int
    values: Mapping[str, object] | None = None

    def choose(self, given: _T | None, read: Callable[[], _T | None], option: str, key: str) -> _T:
        """Return the option if it was given, else what the configuration says; one of them must."""
        value = read() if given is None else given
        if value is None:
            lacking = "weights alone do not say" if self.values is None else "the configuration lacks"
            raise ValueError(f"{self.path}: {lacking} {key!r}; give {option}=")
        return value

    def get(self, key: str) -> object:
        return None if self.values is None else self.values.get(key)

    def refusal(self, key: str, rule: str) -> ValueError:
        return ValueError(f"{self.path}: {key!r} is {_shown(self.get(key))}; {rule}")

    def whole(self, key: str, low: int, high: int) -> int | None:
        value = self.get(key)
        if value is None or _is_whole(value, low, high):
            return value
        raise self.refusal(key, f"it must be a whole number between {low} and {high}")

    def fire_rate(self) -> float | None:
        """Return the probability of firing; the papers' code fires where ``rand > cell_fire_rate``."""
        value = self.get("cell_fire_rate")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise self.refusal("cell_fire_rate", "it must be a probability between 0 and 1")
        return 1.0 - value

    def input_channels(self) -> int | None:
        return self.whole("input_channels", 1, 65535)

    def steps(self) -> int | None:
        value = self.get("inference_steps")
        if not isinstance(value, list):
            return self.whole("inference_steps", 1, 65535)
        # A list means a range to draw from in some versions of the authors' code and one number per
        # level in others; they agree where all are equal.
        if value and all(_is_whole(n, 1, 65535) and n == value[0] for n in value):
            return int(value[0])
        raise self.refusal("inference_steps", "it does not say how many steps each level takes; give steps=")

    def size(self) -> tuple[int, int] | None:
        sizes = self.sizes()
        return sizes[-1] if sizes else None

    def sizes(self) -> list[tuple[int, int]]:
        """Return the (rows, columns) in ``input_size``, finest last: none, one, or one per level."""
        value = self.get("input_size")
        if value is None:
            return []
        sizes: list[Any] = [value]
        if isinstance(value, list) and value and all(isinstance(size, list) for size in value):
            sizes = value
        if any(isinstance(size, list) and len(size) == 3 for size in sizes):
            raise self.refusal("input_size", "checkpoints for volumes (3D) are not supported yet")
        if not all(isinstance(size, list) and len(size) == 2 for size in sizes) or not all(
            _is_whole(n, 1, 65536) for size in sizes for n in size
        ):
            raise self.refusal("input_size", "it must be [rows, columns], or one such pair per level")
        if len(sizes) not in (1, self.levels):
            raise self.refusal("input_size", f"it must give a size for each of {self.levels} model files")
        return [(rows, columns) for rows, columns in sizes]

    def scale(self) -> int:
        """Return how many finest cells lie along a coarse one."""
        sizes = self.sizes()
        if len(sizes) < 2:
            return _PAPER_SCALE
        (rows, columns), (fine_rows, fine_columns) = sizes
        scale = fine_rows // rows
        if (rows * scale, columns * scale) != (fine_rows, fine_columns):
            raise self.refusal("input_size", "its sizes must differ by the same whole factor on both axes")
        if scale != (self.whole("scale_factor", 1, 65535) or _PAPER_SCALE):
            raise self.refusal(
                "input_size",
                f"its sizes differ by a factor of {scale}, but the authors' code always shrinks by "
                f"{_PAPER_SCALE}; give the factor it was trained with as scale=",
            )
        return scale

    def check_supported(self) -> None:
        """Refuse what cannot be seen in the weights."""
        if self.values is not None and self.values.get("rescale", True) is not True:
            raise self.refusal("rescale", "only checkpoints trained on resized slices are supported")
        if self.whole("output_channels", 1, 65535) not in (None, 1):
            raise self.refusal("output_channels", "only checkpoints with one output channel are supported")
        if self.whole("train_model", 0, 65535) not in (None, self.levels - 1):
            raise self.refusal("train_model", f"with {self.levels} model files it must be {self.levels - 1}")

    def check_weights(self, path: Path, rule: Rule) -> None:
        for key, found in (("channel_n", rule.channels), ("hidden_size", rule.hidden)):
            if self.whole(key, 1, 2**31) not in (None, found):
                raise self.refusal(key, f"the weights in {path} have {found}")


@dataclass(frozen=True)
class _Checkpoint:
    """The files to read, coarse level first, and what is known about them."""

    name: str
    place: Path
    files: list[Path]
    config: _Config


def _locate(source: _Source, epoch: int | None) -> _Checkpoint:
    paths = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(p) for p in source]
    if not 1 <= len(paths) <= 2:
        raise ValueError(f"source names {len(paths)} files; give one or two .pth files, coarse level first")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a checkpoint's folder or its .pth files")
        if path.is_dir() and len(paths) > 1:
            raise ValueError(f"{path} is a folder; give either one folder or the .pth files")
    if paths[0].is_dir():
        return _locate_in_folder(paths[0], epoch)
    if epoch is not None:
        raise ValueError(f"{paths[0]}: epoch chooses within a folder, and this is a file; leave epoch out")
    place = paths[-1].parent
    return _Checkpoint(place.resolve().name, place, paths, _Config(paths[-1], len(paths)))


def _locate_in_folder(folder: Path, epoch: int | None) -> _Checkpoint:
    values = _read_config(folder / "config.dt")
    models = folder / "models"
    epochs = _epochs(models)
    if not epochs:
        raise FileNotFoundError(f"{models} holds no folder epoch_<n>, so there are no weights to import")
    if epoch is None:
        epoch = max(epochs)
    elif epoch not in epochs:
        span = f"{len(epochs)}, from {min(epochs)} to {max(epochs)}"
        raise FileNotFoundError(f"{models} does not hold epoch {epoch}; the epochs there are {span}")
    place = epochs[epoch]
    files = _model_files(place)
    name = folder.resolve().name
    return _Checkpoint(name, place, files, _Config(folder / "config.dt", len(files), values))


def _epochs(models: Path) -> dict[int, Path]:
    if not models.is_dir():
        return {}
    matches = ((re.fullmatch(r"epoch_([0-9]{1,18})", path.name), path) for path in models.iterdir())
    return {int(match[1]): path for match, path in matches if match and path.is_dir()}


def _model_files(place: Path) -> list[Path]:
    """Return model0.pth and model1.pth, or the model.pth that the authors write for a single level."""
    numbered = [path for path in place.iterdir() if re.fullmatch(r"model[0-9]+\.pth", path.name)]
    single = place / "model.pth"
    if single.exists() and not numbered:
        return [single]
    if len(numbered) > 2:
        raise ValueError(f"{place} holds {len(numbered)} model files; only one or two levels are supported")
    files = [place / f"model{i}.pth" for i in range(max(len(numbered), 1))]
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, but should hold the weights of a level")
    return files


def _read_config(path: Path) -> Mapping[str, object]:
    """Read ``config.dt``: a JSON object, or a list of them of which the first is complete."""
    check_regular(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the folder that holds config.dt and models, or the .pth files"
        )
    try:
        parsed = jsontext.read(path, _MAX_CONFIG)
    except ValueError as error:
        raise ValueError(f"{path}: {brief(error)}; the authors' code writes JSON there") from None
    stages = parsed if isinstance(parsed, list) else [parsed]
    if not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{path}: it must hold a JSON object, or a list of them")
    first: dict[str, object] = stages[0]
    # Further ones take effect from some epoch on. Learning rates may change so; what we use must not.
    changed = sorted({key for stage in stages[1:] for key in stage if key in _USED_KEYS})
    if changed:
        raise ValueError(
            f"{path}: it changes {', '.join(changed)} during training; give the .pth files and the options"
        )
    return first


def _read_rule(path: Path, config: _Config, fire_rate: float, input_channels: int | None) -> Rule:
    weights = read_state_dict(path)
    perception = _perception(path, weights)
    channels = _input_channels(path, config, perception, input_channels)
    with _naming(path):
        rule = Rule.from_state_dict(weights, perception=perception, input_channels=channels, fire_rate=fire_rate)
    config.check_weights(path, rule)
    return rule


def _perception(path: Path, weights: Mapping[str, NDArray[Any]]) -> Perception:
    """Tell BackboneNCA from BasicNCA by their weights, and name the relatives that are not supported."""
    layers = {name.split(".")[0] for name in weights}
    p0 = weights.get("p0.weight")
    depthwise = p0 is not None and p0.ndim == 4 and p0.shape[1] == 1 < p0.shape[0]
    relative = ""
    if any(layer.startswith("backbone_") for layer in layers):
        relative = "it holds several levels in one file"
    elif "bn" in layers:
        relative = "its rule normalises the hidden layer (bn)"
    elif any(weight.ndim == 5 for weight in weights.values()):
        relative = "its kernels are 3D"
    elif depthwise or "conv" in layers:
        relative = "its perception is a depthwise convolution"
    if relative:
        raise ValueError(f"{path}: {relative}, and that family is not supported yet")
    return "sobel" if p0 is None else "conv"


def _input_channels(path: Path, config: _Config, perception: Perception, given: int | None) -> int:
    if perception == "sobel":
        return config.choose(given, config.input_channels, "input_channels", "input_channels")
    # BackboneNCA does not pass its input_channels on to the class that keeps image channels fixed. So
    # with more than one it changes part of its image and reads the result behind all of it: no Model
    # can say that.
    wanted = config.input_channels() if given is None else given
    if wanted not in (None, 1):
        raise ValueError(
            f"{path}: input_channels is {wanted}; the authors' BackboneNCA keeps only the first channel fixed, so only "
            "checkpoints with one are supported"
        )
    return 1


def _level_steps(config: _Config, steps: int | Sequence[int] | None) -> list[int]:
    if isinstance(steps, Sequence):
        per_level = list(steps)
    else:
        per_level = [config.choose(steps, config.steps, "steps", "inference_steps")] * config.levels
    if len(per_level) != config.levels:
        raise ValueError(f"{config.path}: steps has {len(per_level)} numbers for {config.levels} levels")
    return [whole_number(n, "steps", 1, 65535) for n in per_level]


def _level_scales(config: _Config, scale: int | None) -> list[int]:
    if config.levels == 2:
        return [config.scale() if scale is None else whole_number(scale, "scale", 2, 1024), 1]
    if scale not in (None, 1):
        raise ValueError(f"{config.path}: scale is {scale}, but a single level has scale 1; leave scale out")
    return [1]


def _preparation(size: tuple[int, int], orientation: str, axis: int) -> Preparation:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size is {size!r}; it must be (rows, columns)")
    return Preparation(
        size=(whole_number(size[0], "size", 2, 65536), whole_number(size[1], "size", 2, 65536)),
        orientation=orientation,
        axis=whole_number(axis, "axis", 0, 2),
        # The authors' code resizes labels with the source index rounded down, but images with
        # half-pixel centres. So the labels lie half a pixel behind the image, as the rules learnt.
        label_offset=0.5,
    )


def _card(checkpoint: _Checkpoint, rules: list[Rule]) -> Card:
    hashes = [f"{path.name} (sha256 {_sha256(path)})" for path in checkpoint.files]
    # of a folder its epoch; of loose files, the folder they lie in is the name already
    where = [checkpoint.name] + [checkpoint.place.name] * (checkpoint.config.values is not None)
    return Card(
        name=checkpoint.name,
        description=f"Imported from a Med-NCA checkpoint with {_levels_text(rules)}.",
        source=f"{'/'.join(where)}: {', '.join(hashes)}",
    )


def _levels_text(rules: list[Rule]) -> str:
    kind = {"conv": "learned convolutions", "sobel": "Sobel"}[rules[-1].perception]
    return f"{len(rules)} level{'s' * (len(rules) > 1)}, {kind}, {rules[-1].channels} channels"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what a constructor refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {brief(error)}") from error


def _is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _shown(value: object) -> str:
    return shortened(json.dumps(value), 80)
