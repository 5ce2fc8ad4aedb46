"""Rule: the weights of one NCA update."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .config import thread_count
from .errors import quoted

Perception = Literal["sobel", "conv"]
Padding = Literal["zero", "reflect"]
FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

_PADDING_OF: dict[str, Padding] = {"sobel": "zero", "conv": "reflect"}
_KERNELS = ("p0.weight", "p1.weight")
_PREFIXES = ("module.", "_orig_mod.")
_NAMES: dict[str, tuple[str, ...]] = {
    "sobel": ("fc0.weight", "fc0.bias", "fc1.weight"),
    "conv": ("p0.weight", "p0.bias", "p1.weight", "p1.bias", "fc0.weight", "fc0.bias", "fc1.weight"),
}


class Rule:
    """The weights of one update: perception, ``fc0``, ``fc1``, fire rate and padding.

    One step takes every cell's state ``s`` (its ``C`` channels), perceives its neighbourhood as
    ``y1`` and ``y2``, and where the cell fires adds ``fc1 · relu(fc0 · [s, y1, y2] + b)`` to the
    channels behind the image channels (Kalkhof et al. 2023, section 2). A rule is immutable.

    Parameters
    ----------
    weights : mapping of str to array
        float32, named as in the papers' code: ``fc0.weight`` (hidden, 3C), ``fc0.bias`` (hidden,),
        ``fc1.weight`` (C, hidden) and, for ``"conv"``, ``p0.weight``, ``p1.weight`` (C, C, k, k) and
        ``p0.bias``, ``p1.bias`` (C,). The kernels' last two axes run along the state's (H, W); see
        `from_state_dict` for the papers' own order.
    perception : {"sobel", "conv"}
        Fixed depthwise Sobel/8 pair, or two learned dense convolutions with an odd kernel size k.
    input_channels : int
        Number of leading channels that hold the image and never change. Default 1.
    fire_rate : float
        Probability in [0, 1] that a cell updates in a step. Default 0.5.
    padding : {"zero", "reflect"}, optional
        What lies outside the image. Default: zero for Sobel, reflect for conv, as in the papers' code.

    Raises
    ------
    ValueError
        A weight is missing, unknown, of the wrong shape or not finite, or an option is out of range.
    """

    def __init__(
        self,
        weights: Mapping[str, ArrayLike],
        *,
        perception: Perception,
        input_channels: int = 1,
        fire_rate: float = 0.5,
        padding: Padding | None = None,
    ) -> None:
        if not isinstance(perception, str) or perception not in _NAMES:
            raise ValueError(f"perception is {perception!r}; it must be 'sobel' or 'conv'")
        if padding is None:
            padding = _PADDING_OF[perception]
        if padding not in ("zero", "reflect"):
            raise ValueError(f"padding is {padding!r}; it must be 'zero' or 'reflect'")
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights are of type {type(weights).__name__}; they must map names to arrays")
        self.perception: Perception = perception
        self.padding: Padding = padding
        self.fire_rate = probability(fire_rate, "fire_rate")
        self.weights: Mapping[str, FloatArray] = MappingProxyType(_checked(weights, perception))
        self.channels = int(self.weights["fc1.weight"].shape[0])
        self.hidden = int(self.weights["fc1.weight"].shape[1])
        self.kernel_size = int(self.weights["p0.weight"].shape[-1]) if perception == "conv" else 3
        self.parameters = sum(w.size for w in self.weights.values())
        self.input_channels = whole_number(input_channels, "input_channels", 0, self.channels - 1)
        self._compiled: _core.CompiledRule | None = None
        self._compiling = threading.Lock()
        self._complete = True

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, ArrayLike],
        *,
        perception: Perception,
        input_channels: int = 1,
        fire_rate: float = 0.5,
        padding: Padding | None = None,
    ) -> Rule:
        """Build a rule from the weights of the papers' code.

        ``BackboneNCA`` convolves a state whose two image axes are swapped, so its kernels are
        stored as (out, in, W, H); they are turned here to the state's own order.

        Parameters
        ----------
        state_dict : mapping of str to array
            ``p0.weight``, ``p0.bias``, ``p1.weight``, ``p1.bias`` (``"conv"`` only), ``fc0.weight``,
            ``fc0.bias``, ``fc1.weight``, as NumPy arrays; all may have the prefixes ``module.`` and ``_orig_mod.`` of
            a wrapped model.
        perception, input_channels, fire_rate, padding
            As for `Rule`. ``fire_rate`` is the probability of firing here as everywhere; the
            papers' code calls one minus it by the same name.

        Raises
        ------
        ValueError
            As `Rule`.
        """
        names = bare_names(list(state_dict))
        weights = {
            names[key]: np.swapaxes(np.asarray(w), -1, -2) if names[key] in _KERNELS and np.ndim(w) == 4 else w
            for key, w in state_dict.items()
        }
        return cls(
            weights,
            perception=perception,
            input_channels=input_channels,
            fire_rate=fire_rate,
            padding=padding,
        )

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of the weights in the papers' names and axis order (see `from_state_dict`)."""
        return self.in_papers_axes(self.weights)

    @staticmethod
    def in_papers_axes(weights: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return copies of weights, or of their gradients, with kernels in the axis order of the papers' code."""
        return {
            name: np.ascontiguousarray(np.swapaxes(w, -1, -2)) if name in _KERNELS else w.copy()
            for name, w in weights.items()
        }

    def run(
        self,
        state: ArrayLike,
        steps: int,
        *,
        masks: ArrayLike | None = None,
        seed: int = 0,
        threads: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Run the rule for some steps.

        Parameters
        ----------
        state : array
            float32, (H, W, C) or with a batch in front (N, H, W, C). Never modified, unless it is ``out``.
        steps : int
            Number of steps, 0 to 65535.
        masks : array, optional
            uint8 fire masks, (steps, H, W) or (steps, N, H, W); 1 = this cell updates in this step.
            They replace the random fire mask `pynca.fire_mask`.
        seed : int
            Seed of the random fire mask, 0 to 2**64 - 1. Batch member n draws as sample n. Default 0.
        threads : int, optional
            Number of threads; the result does not depend on it. Default: ``PYNCA_NUM_THREADS``, else
            the CPUs this process may use.
        out : array, optional
            C-contiguous, aligned float32 array of the state's shape for the result. It may be the state itself,
            which then runs in place: no second state is needed.

        Returns
        -------
        array
            float32, of the state's shape; ``out`` where that is given.

        Raises
        ------
        ValueError, TypeError
            An argument has the wrong shape, type or range; the sentence names it.
        MemoryError
            There is no room for the result.
        KeyboardInterrupt
            Ctrl-C was pressed, in Python's main thread; ``out`` then holds a part of the result or anything.
        """
        state = np.asarray(state)
        if state.ndim not in (3, 4) or state.shape[-1] != self.channels:
            raise ValueError(
                f"state has shape {state.shape}; it must be (H, W, {self.channels}) or (N, H, W, {self.channels})"
            )
        if state.dtype.kind not in "fiub":
            raise TypeError(f"state has dtype {state.dtype}; it must hold real numbers")
        steps = whole_number(steps, "steps", 0, _core.MAX_STEPS)
        batched = state if state.ndim == 4 else state[None]
        if masks is None and len(batched) > _core.MAX_SAMPLES:
            raise ValueError(
                f"state has {len(batched)} batch members, but the fire mask tells at most {_core.MAX_SAMPLES} apart; "
                "run them in parts or give masks"
            )
        samples = np.arange(len(batched), dtype=np.uint32)
        fire = None if masks is None else check_masks(masks, steps, state.shape[:-1])
        if out is None:
            out = np.empty(state.shape, np.float32)
        else:
            check_out(out, state)
            fire = _apart(fire, out)
        if out is not state:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and stays visible
                _copy(out, state)
        self.run_in_place(out.reshape(batched.shape), steps, masks=fire, seed=seed, samples=samples, threads=threads)
        return out

    def run_in_place(
        self,
        state: FloatArray,
        steps: int,
        *,
        masks: UInt8Array | None = None,
        seed: int = 0,
        level: int = 0,
        samples: NDArray[np.uint32] | None = None,
        slices: NDArray[np.uint32] | None = None,
        threads: int | None = None,
    ) -> None:
        """Run on a C-contiguous float32 (N, H, W, C) state; ``samples`` and ``slices`` hold one number per member.

        A cell fires where its mask is not 0. Raises as `run`.
        """
        check_out(state, state, "state")
        if state.ndim != 4 or state.shape[-1] != self.channels:
            raise ValueError(f"state has shape {state.shape}; it must be (N, H, W, {self.channels})")
        steps, count = whole_number(steps, "steps", 0, _core.MAX_STEPS), len(state)
        for name, numbers in (("samples", samples), ("slices", slices)):
            if numbers is not None and (getattr(numbers, "dtype", None) != np.uint32 or numbers.shape != (count,)):
                raise ValueError(f"{name} must be an array of {count} uint32, one for each member of the batch")
        shape = (steps, *state.shape[:3])
        if masks is not None and (getattr(masks, "dtype", None) != np.uint8 or masks.size != math.prod(shape)):
            raise ValueError(f"masks must be an array of uint8 of shape {shape}")
        none = np.zeros(count, np.uint32)
        fire = masks if masks is None else _apart(masks.reshape(shape), state)
        _core.run(
            self._packed(),
            state,
            steps,
            fire,
            whole_number(seed, "seed", 0, 2**64 - 1),
            whole_number(level, "level", 0, _core.MAX_LEVELS - 1),
            none if samples is None else samples,
            none if slices is None else slices,
            thread_count(threads),
        )

    def _packed(self) -> _core.CompiledRule:
        with self._compiling:
            if self._compiled is None:
                self._compiled = _core.CompiledRule(
                    self.perception,
                    self.padding,
                    self.input_channels,
                    self.fire_rate,
                    dict(self.weights),
                )
            return self._compiled

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "_complete") and name != "_compiled":
            raise AttributeError(f"a rule cannot be changed; make another one for a different {name}")
        object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, object]:
        """Pickle and copy the weights, not the packed form."""
        return {
            "weights": dict(self.weights),
            "perception": self.perception,
            "input_channels": self.input_channels,
            "fire_rate": self.fire_rate,
            "padding": self.padding,
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        Rule.__init__(self, **state)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return (
            f"Rule(perception={self.perception!r}, channels={self.channels}, hidden={self.hidden}, "
            f"input_channels={self.input_channels}, fire_rate={self.fire_rate:g}, padding={self.padding!r})"
        )


def bare_names(names: Sequence[str]) -> dict[str, str]:
    """Return the names of a model's own tensors by those that wrappers gave them: DataParallel and torch.compile.

    Raises
    ------
    ValueError
        Some have a prefix and some not, or two become one.
    """
    bare = [str(name) for name in names]
    while prefix := next((p for p in _PREFIXES if any(name.startswith(p) for name in bare)), None):
        other = next((name for name in bare if not name.startswith(prefix)), None)
        if other is not None:
            raise ValueError(
                f"some of its tensors have the prefix {prefix} and {other[:60]!r} has not; save the state dict of one "
                "model"
            )
        bare = [name.removeprefix(prefix) for name in bare]
    bare = [name.replace("._orig_mod.", ".") for name in bare]  # a part of the model was compiled
    if len(set(bare)) < len(bare):
        raise ValueError("two of its tensors have one name without _orig_mod; save the state dict of one model")
    return dict(zip(names, bare, strict=True))


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """Return ``value`` as an int, or raise a ValueError/TypeError that names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {quoted(value)}; it must be a whole number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {quoted(int(value))}; it must be between {low} and {high}")
    return int(value)


def probability(value: object, name: str) -> float:
    """Return ``value`` as a float between 0 and 1, or raise a ValueError/TypeError that names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {quoted(value)}; it must be a number")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {quoted(value)}; it must be a probability between 0 and 1")
    return float(value)


def check_masks(masks: ArrayLike, steps: int, cells: tuple[int, ...], name: str = "masks") -> UInt8Array:
    """Return fire masks as contiguous uint8 of shape ``(steps, *cells)``, every value 0 or 1."""
    array = np.asarray(masks)
    if array.shape != (steps, *cells):
        raise ValueError(f"{name} has shape {array.shape}; for this state it must be {(steps, *cells)}")
    if array.dtype != np.uint8 and array.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {array.dtype}; it must be uint8 or bool")
    array = np.ascontiguousarray(array, dtype=np.uint8)
    if array.size and array.max() > 1:
        raise ValueError(f"{name} holds the value {array.max()}; every value must be 0 or 1")
    return array


def check_out(out: object, state: NDArray[Any], name: str = "out") -> None:
    """Refuse an array that cannot take the result of running ``state``."""
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        raise TypeError(f"{name} is {getattr(out, 'dtype', type(out).__name__)}; it must be an array of float32")
    if out.shape != state.shape:
        raise ValueError(f"{name} has shape {out.shape}; for this state it must be {state.shape}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError(f"{name} must be C-contiguous, aligned and writeable")


_PIECE = 2**26  # bytes


def _copy(target: FloatArray, source: NDArray[Any]) -> None:
    """Copy an array in pieces, between which Ctrl-C is heard; at once where the two overlap."""
    if target.nbytes <= _PIECE or target.ndim == 1 or np.may_share_memory(target, source):
        np.copyto(target, source, casting="unsafe")
    elif len(target) == 1:
        _copy(target[0], source[0])
    else:
        half = len(target) // 2
        _copy(target[:half], source[:half])
        _copy(target[half:], source[half:])


def _apart(masks: UInt8Array | None, state: FloatArray) -> UInt8Array | None:
    """Return masks in memory of their own, which running the state does not change."""
    return masks.copy() if masks is not None and np.may_share_memory(masks, state) else masks


def fire_mask(
    shape: tuple[int, ...],
    steps: int,
    *,
    fire_rate: float = 0.5,
    seed: int = 0,
    level: int = 0,
    z: int = 0,
    sample: int = 0,
) -> UInt8Array:
    """Return the random fire mask: which cell updates in which step.

    A pure function of (seed, sample, level, step, cell), the same on every machine: Philox4x32-10
    (Salmon et al. 2011) with key ``(seed & 0xffffffff, seed >> 32)`` and counter
    ``(x >> 2, y, z, step | level << 16 | sample << 20)``; of its four words the cell takes number
    ``x & 3`` and fires if that is below ``round(fire_rate * 2**32)``. ``x`` is the last axis and
    ``y`` the one before.

    Parameters
    ----------
    shape : tuple of int
        (H, W), or (N, H, W): batch member n then draws as sample ``sample + n``.
    steps : int
        Number of steps, 0 to 65535.
    fire_rate : float
        Probability that a cell updates. Default 0.5.
    seed, level, z, sample : int
        Seed (64 bits), level (0 = coarsest, at most 15), index of the slice in its volume, and number
        of the ensemble run or batch member (at most 4095). All default to 0.

    Returns
    -------
    array
        uint8, ``(steps, *shape)``; 1 = the cell updates.

    Raises
    ------
    ValueError, TypeError
        An argument is out of range or of the wrong type.
    MemoryError
        There is no room for the masks.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) not in (2, 3):
        raise ValueError(f"shape is {shape!r}; it must be (H, W) or (N, H, W)")
    fire_rate = probability(fire_rate, "fire_rate")
    sizes = [whole_number(n, "shape", 0, 2**31 - 1) for n in shape]
    count = whole_number(sizes[0] if len(sizes) == 3 else 1, "N", 0, _core.MAX_SAMPLES)
    first = whole_number(sample, "sample", 0, _core.MAX_SAMPLES - count)
    whole = whole_number(steps, "steps", 0, _core.MAX_STEPS), count, *sizes[-2:]
    try:
        out = np.empty(whole, np.uint8)
    except (ValueError, MemoryError):  # more bytes than NumPy can count, or than there are
        raise MemoryError(f"the fire masks have shape {(whole[0], *sizes)}; there is no room for them") from None
    _core.fire_mask(
        out,
        fire_rate,
        whole_number(seed, "seed", 0, 2**64 - 1),
        whole_number(level, "level", 0, _core.MAX_LEVELS - 1),
        np.arange(first, first + count, dtype=np.uint32),
        np.full(count, whole_number(z, "z", 0, 2**32 - 1), np.uint32),
    )
    return out.reshape(len(out), *sizes)


def _checked(weights: Mapping[str, ArrayLike], perception: str) -> dict[str, FloatArray]:
    """Return float32, C-contiguous, read-only copies in a fixed order, or say what is wrong."""
    names = _NAMES[perception]
    missing = [n for n in names if n not in weights]
    unknown = sorted(set(weights) - set(names))
    if missing or unknown:
        what = f"misses {', '.join(missing)}" if missing else f"holds unknown {', '.join(unknown)}"
        raise ValueError(f"the weights of a {perception!r} rule are {', '.join(names)}; this one {what}")
    arrays = {n: np.asarray(weights[n]) for n in names}
    for n, w in arrays.items():
        if w.dtype.kind != "f":
            raise ValueError(f"{n} has dtype {w.dtype}; weights must be floating point")
        if not np.isfinite(w).all():
            raise ValueError(f"{n} holds a value that is not finite")
    if arrays["fc1.weight"].ndim != 2 or 0 in arrays["fc1.weight"].shape:
        raise ValueError(f"fc1.weight has shape {arrays['fc1.weight'].shape}; it must be (channels, hidden)")
    c, h = arrays["fc1.weight"].shape
    expected: dict[str, tuple[int, ...]] = {"fc0.weight": (h, 3 * c), "fc0.bias": (h,), "fc1.weight": (c, h)}
    if perception == "conv":
        k = arrays["p0.weight"].shape[-1] if arrays["p0.weight"].ndim == 4 else 3
        if k % 2 == 0 or k > 15:
            raise ValueError(f"p0.weight has kernel size {k}; it must be odd and at most 15")
        expected |= {"p0.weight": (c, c, k, k), "p1.weight": (c, c, k, k), "p0.bias": (c,), "p1.bias": (c,)}
    for n, shape in expected.items():
        if arrays[n].shape != shape:
            raise ValueError(
                f"{n} has shape {arrays[n].shape}; with {c} channels and {h} hidden units it must be {shape}"
            )
    with np.errstate(over="ignore"):
        checked = {n: np.array(w, dtype=np.float32, order="C") for n, w in arrays.items()}
    for n, w in checked.items():
        if not np.isfinite(w).all():
            raise ValueError(f"{n} holds a value beyond float32")
        w.flags.writeable = False
    return checked
