"""Where a training stands, and its file: written at every evaluation, and read only where nothing in it is in doubt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pynca import tensorfile
from pynca.errors import sentence
from pynca.rule import FloatArray

from .optimizers import OPTIMIZERS, Adam, Arrays
from .pipeline import initial_weights, weight_shapes
from .recipe import Recipe
from .sampling import Augmentation

STATE, LOG = "state.safetensors", "log.jsonl"
ATTEMPTS = 6
_MOST = 1e300  # of any number in a file
_NONE_YET = {"best_score": -math.inf, "smooth_loss": math.nan, "lowest_loss": math.inf}  # null in the file
_SCALARS = ("batch", "attempt", "rate_factor", "best_batch", "seconds", *_NONE_YET)


@dataclass
class State:
    """Where a training stands: all that the next batch depends on."""

    levels: list[Arrays]
    average: list[Arrays]
    optimizers: list[Adam]
    batch: int = 0
    attempt: int = 0
    rate_factor: float = 1.0
    best_score: float = -math.inf
    best_batch: int = 0
    best: list[Arrays] = field(default_factory=list)
    smooth_loss: float = math.nan
    lowest_loss: float = math.inf
    seconds: float = 0.0

    @classmethod
    def start(cls, recipe: Recipe) -> State:
        """Return the state before the first batch."""
        levels = initial_weights(recipe)
        return cls(list(levels), list(levels), new_optimizers(recipe), best=list(levels))


def new_optimizers(recipe: Recipe) -> list[Adam]:
    """Return one a level, at its start."""
    return [OPTIMIZERS[recipe.optimizer](recipe.betas) for _ in recipe.steps]


def write_state(path: Path, state: State, recipe: Recipe, data: str) -> None:
    """Write a state, whole or not at all; ``data`` says what it was trained on, and is compared when it is read."""
    groups = {
        "levels": state.levels,
        "average": state.average,
        "best": state.best,
        "first": [o.first for o in state.optimizers],
        "second": [o.second for o in state.optimizers],
    }
    tensors = {
        f"{group}.{n}.{name}": value
        for group, levels in groups.items()
        for n, arrays in enumerate(levels)
        for name, value in arrays.items()
    }
    scalars = {name: getattr(state, name) for name in _SCALARS} | {"adam_steps": [o.step for o in state.optimizers]}
    metadata = {"scalars": json.dumps(json_numbers(scalars)), "recipe": json.dumps(asdict(recipe)), "data": data}
    tensorfile.write(path, tensors, metadata, overwrite=True)


def json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with null for what JSON has no number for."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def saved_recipe(path: Path) -> Recipe:
    """Read the recipe of a state.

    Raises
    ------
    ValueError
        The file is damaged, or its recipe is none.
    OSError
        It is not there or cannot be read.
    """
    values = _recipe(path, _read(path)[1])
    default = Recipe()
    try:
        _check_fields(values, default, "recipe")
        _check_fields(values["augmentation"], default.augmentation, "augmentation")
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Recipe(**{**values, "augmentation": Augmentation(**values["augmentation"])})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a recipe that cannot be right: {sentence(error)}; start anew") from None


def load_state(path: Path, recipe: Recipe, data: str | None = None) -> State:
    """Read a state.

    Parameters
    ----------
    path : path
    recipe : Recipe
        The one that it was written with.
    data : str, optional
        What the training goes on with; default: not compared.

    Raises
    ------
    ValueError
        The file is damaged; it was written with another recipe or other data; or something in it is missing, too much,
        or cannot be.
    OSError
        It is not there or cannot be read.
    """
    tensors, metadata = _read(path)
    if "recipe" not in metadata or _recipe(path, metadata) != json.loads(json.dumps(asdict(recipe))):
        raise ValueError(f"{path} was written with another recipe; give the same options, or start anew")
    if data is not None and metadata.get("data", data) != data:  # older states do not say
        raise ValueError(
            f"{path} was written with other images, labels, validation cases or preparation; give the same, or start "
            "anew"
        )
    try:
        scalars, step = _scalars(_object(metadata, "scalars"), recipe)
        groups = _groups(tensors, recipe, step)
    except ValueError as error:
        raise ValueError(f"{path} is no state of a training: {error}; start anew") from None
    optimizers = [
        OPTIMIZERS[recipe.optimizer](recipe.betas, step=step, first=first, second=second)
        for first, second in zip(groups["first"], groups["second"], strict=True)
    ]
    return replace(State(groups["levels"], groups["average"], optimizers, best=groups["best"]), **scalars)


# --- what a file says -----------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, FloatArray], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; there is no training to go on with")
    return tensorfile.read(path)


def _object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        values = json.loads(metadata[name])
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"its {name} cannot be read as JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"its {name} must be a JSON object")
    return values


def _recipe(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a recipe was written with; before there was a choice of optimizer it was Adam."""
    try:
        return {"optimizer": "adam", **_object(metadata, "recipe")}
    except ValueError as error:
        raise ValueError(f"{path} is no state of a training: {error}; start anew") from None


def _check_fields(values: object, default: Any, what: str) -> None:
    """Check that there is a value for each field of a dataclass, of the kind of its default."""
    names = {f.name for f in fields(default)}
    if not isinstance(values, dict) or set(values) != names:
        wrong = sorted(names.symmetric_difference(values)) if isinstance(values, dict) else [what]
        raise ValueError(f"{wrong[0][:60]} is missing or unknown")
    for name, value in values.items():
        if not _alike(value, getattr(default, name)):
            raise ValueError(f"{name} is {repr(value)[:60]}")


def _alike(value: object, default: object) -> bool:
    if default is None or isinstance(default, float):
        return _is_number(value) or (default is None and value is None)
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) < 100 and all(map(_is_number, value))
    if isinstance(default, Augmentation):
        return isinstance(value, dict)
    return type(value) is type(default) and (not isinstance(value, int) or abs(value) < 2**64)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST <= value <= _MOST


def _scalars(values: dict[str, Any], recipe: Recipe) -> tuple[dict[str, Any], int]:
    """Return the numbers of a state and how many steps its optimizers took, as they can have come about."""
    wrong = sorted({*_SCALARS, "adam_steps"}.symmetric_difference(values))
    if wrong:
        raise ValueError(f"{wrong[0][:60]} is missing or unknown")
    steps = values.pop("adam_steps")
    for name, none in _NONE_YET.items():  # older states say NaN and Infinity
        if values[name] is None or repr(values[name]) == repr(none):
            values[name] = none
    begun = repr(values["smooth_loss"]) != "nan"  # else it stands right before a first step, or behind a failure
    rules: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("batch", lambda v: type(v) is int and 0 <= v <= recipe.batches),
        ("attempt", lambda v: type(v) is int and 0 <= v < ATTEMPTS),
        ("best_batch", lambda v: type(v) is int and 0 <= v <= values["batch"]),
        ("rate_factor", lambda v: v == 0.5 ** values["attempt"] and v is not True),
        ("seconds", lambda v: _is_number(v) and v >= 0),
        ("best_score", lambda v: v == -math.inf or _is_number(v)),
        ("smooth_loss", lambda v: not begun or _is_number(v)),
        ("lowest_loss", lambda v: _is_number(v) if begun else v == math.inf),
    )
    for name, right in rules:
        if not right(values[name]):
            raise ValueError(f"{name} is {repr(values[name])[:60]}")
    batch = values["batch"]
    taken = steps[0] if isinstance(steps, list) and steps else None
    possible = range(1, batch + 1) if begun else range(1)
    if values["attempt"] == 0:
        possible = range(batch, batch + 1)
    if type(taken) is not int or taken not in possible or repr(steps) != repr([taken] * len(recipe.steps)):
        raise ValueError(f"adam_steps are {repr(steps)[:60]} after {batch} batches")
    return {name: float(v) if name in _NONE_YET or name == "seconds" else v for name, v in values.items()}, taken


def _shapes(recipe: Recipe, step: int) -> Iterator[tuple[str, int, str, tuple[int, ...]]]:
    """List group, level, weight and shape of all tensors that a state must have after some steps of its optimizers."""
    optimizer = OPTIMIZERS[recipe.optimizer]
    for group in ("levels", "average", "best", "first", "second"):
        for n in range(len(recipe.steps)):
            for name, shape in weight_shapes(recipe).items():
                if group in ("levels", "average", "best") or (
                    step > 0 and (group == "first" or optimizer.squares(len(shape)))
                ):
                    yield group, n, name, shape


def _groups(tensors: dict[str, FloatArray], recipe: Recipe, step: int) -> dict[str, list[Arrays]]:
    """Return the tensors by group and level; each must be there, of its shape, and no other."""
    groups: dict[str, list[Arrays]] = {
        group: [{} for _ in recipe.steps] for group in ("levels", "average", "best", "first", "second")
    }
    for group, n, name, shape in _shapes(recipe, step):
        key = f"{group}.{n}.{name}"
        tensor = tensors.pop(key, None)
        if tensor is None:
            raise ValueError(f"it lacks {key}")
        if tensor.shape != shape:
            raise ValueError(f"{key} has shape {tensor.shape}; by its recipe it must be {shape}")
        if group == "second" and (tensor < 0).any():
            raise ValueError(f"{key} holds values below 0, and is a mean of squares")
        groups[group][n][name] = np.ascontiguousarray(tensor)
    if tensors:
        raise ValueError(f"it holds {repr(min(tensors))[:60]}, which is unknown")
    return groups
