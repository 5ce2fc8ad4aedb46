"""Everything that decides what comes out of a training, beside the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from pynca import _core
from pynca.rule import whole_number

from .losses import LOSSES
from .optimizers import OPTIMIZERS
from .sampling import Augmentation

FALLS = ("exponential", "linear")
SMALL = 96  # pixels of a side up to which the papers' two levels see the field
_VARYING = 64  # bytes a pixel of the arrays that stand while slices are varied


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, beside the data.

    Parameters
    ----------
    channels, hidden : int
        Size of the rules. Default 32 and 128, as in the papers.
    steps : sequence of int
        Steps of each level, coarse first. Default 16 and 16.
    scales : sequence of int
        Side of each level's cells in finest pixels; descending to 1, each a multiple of the next. Default 4 and 1.
    patch : (int, int)
        What the finest level sees of a slice; a multiple of the scale above it. All other levels see the slice.
    border : int
        Pixels along the sides of a patch that are computed but not judged, unless they are at the side of the
        slice: cells there see nothing of what lies outside the patch. Default 0.
    supervision : float
        Weight at the start of the loss of every level but the finest, against the label averaged over its cells. It
        falls linearly to a tenth. Default 0: only the finest level is judged.
    batch : int
        Slices in a batch.
    negatives : float
        Share of the batch that is cut from where the label is not, and enlarged. Default 0.
    small_first : bool
        Draw slices with little of the label more often, about inversely to its area. Default False.
    on_label, on_errors : float
        Shares of the patches that are laid around a pixel of the label, and around one that the level above the
        finest now takes for the label though it is not; the rest lie anywhere. Default 0.5 and 0.
    batches : int
        Length of the training.
    rate, last_rate : float
        Learning rate at the start and at the end.
    fall : str
        How it falls between them, batch by batch: ``"exponential"`` or ``"linear"``. Default ``"exponential"``.
    decay : float, optional
        What the rate is multiplied with after each batch, instead of falling to ``last_rate``.
    optimizer : str
        ``"adam"`` or ``"muon"``; see ``pynca.training.optimizers``. Default ``"adam"``.
    betas : (float, float)
        Of the optimizer.
    clip : float
        Largest norm of a level's gradient.
    average : float
        Decay of the moving average of weights that is evaluated and shipped.
    loss : str
        One of ``pynca.training.losses``.
    evaluate : int
        Batches between evaluations.
    keep : str
        Which weights are shipped: ``"best"``, those that did best on the cases that validate; or ``"last"``, so that
        these have no say, and what is measured on them is what to expect of others. Default ``"best"``.
    seed : int
        Of weights, batches and fire masks.
    augmentation : Augmentation

    Raises
    ------
    ValueError
        A value is out of range, or the parts do not fit each other.
    """

    channels: int = 32
    hidden: int = 128
    steps: tuple[int, ...] = (16, 16)
    scales: tuple[int, ...] = (4, 1)
    fire_rate: float = 0.5
    perception: str = "conv"
    patch: tuple[int, int] = (32, 32)
    border: int = 0
    supervision: float = 0.0
    batch: int = 16
    negatives: float = 0.0
    small_first: bool = False
    on_label: float = 0.5
    on_errors: float = 0.0
    batches: int = 10000
    rate: float = 1.6e-3
    last_rate: float = 2e-5
    fall: str = "exponential"
    decay: float | None = None
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.5, 0.5)
    clip: float = 1.0
    average: float = 0.999
    loss: str = "dice_bce"
    evaluate: int = 1000
    keep: str = "best"
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, low, high in (
            *(("channels", 2, 4096), ("hidden", 1, 65536), ("batch", 1, _core.MAX_SAMPLES), ("border", 0, 65536)),
            *(("batches", 1, 2**31), ("evaluate", 1, 2**31), ("seed", 0, 2**63 - 1)),
        ):
            whole_number(getattr(self, name), name, low, high)
        self._check_levels()
        if len(self.patch) != 2:
            raise ValueError(f"patch is {self.patch!r}; it must be two whole numbers")
        for value in self.patch:
            whole_number(value, "patch", 1, 65536)
        if any(side % self.above for side in self.patch):
            raise ValueError(f"patch is {self.patch}; its sides must be multiples of {self.above}, the scale above")
        if 2 * self.border >= min(self.patch):
            raise ValueError(f"border is {self.border}; twice that must be less than the patch, {self.patch}")
        for name in ("rate", "last_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        if not 0 <= self.supervision < math.inf:
            raise ValueError(f"supervision is {self.supervision!r}; it must be a number of at least 0")
        for names in (("negatives",), ("on_label", "on_errors")):
            shares = [getattr(self, name) for name in names]
            if min(shares) < 0 or sum(shares) > 1:
                said = " and ".join(f"{name} is {share!r}" for name, share in zip(names, shares, strict=True))
                raise ValueError(f"{said}; shares must not be below 0, nor above 1 together")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay!r}; it must be above 0 and at most 1")
        if len(self.betas) != 2 or not all(0 <= value < 1 for value in (*self.betas, self.average)):
            raise ValueError(
                f"betas are {self.betas} and average {self.average}; they must be two numbers, and one, of [0, 1)"
            )
        if not 0 < self.fire_rate <= 1:
            raise ValueError(f"fire_rate is {self.fire_rate!r}; it must be a probability above 0")
        if self.perception not in ("conv", "sobel"):
            raise ValueError(f"perception is {self.perception!r}; it must be conv or sobel")
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep is {self.keep!r}; it must be best or last")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}")
        if self.fall not in FALLS:
            raise ValueError(f"fall is {self.fall!r}; it must be one of {', '.join(FALLS)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")

    def _check_levels(self) -> None:
        if len(self.steps) != len(self.scales) or not 2 <= len(self.scales) <= _core.MAX_LEVELS:
            raise ValueError(
                f"steps are {self.steps} and scales {self.scales}; both must have one number a level, and there "
                f"must be 2 to {_core.MAX_LEVELS} levels"
            )
        for value in self.steps:
            whole_number(value, "steps", 1, _core.MAX_STEPS)
        for value in self.scales:
            whole_number(value, "scales", 1, 1024)
        if self.scales[-1] != 1 or any(a <= b or a % b for a, b in pairwise(self.scales)):
            raise ValueError(f"scales are {self.scales}; they must descend to 1, each a multiple of the next")

    @property
    def above(self) -> int:
        """The scale of the level above the finest."""
        return self.scales[-2]

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """Return the configuration of the authors' hippocampus model (its ``config.dt``), with some changes.

        Batches of 40 slices of which the fine level sees a patch as large as the coarse level, 16 x 16; the rate
        falls by a factor of 0.9999 a batch. Channels, hidden units, steps, rate and betas are the defaults.
        """
        return cls(**{"batch": 40, "patch": (16, 16), "decay": 0.9999, **changes})

    @classmethod
    def for_size(cls, size: tuple[int, int], memory: int = 4 * 10**9, **changes: Any) -> Recipe:
        """Return a recipe that suits prepared slices of a size, with some changes.

        Up to 96 pixels a side, the papers' two levels. Larger slices get three, since the coarse level must be able to
        see the field: at a fire rate of one half influence needs about 1.3 steps a cell, so that 16 steps on a quarter
        of 256 pixels reach 48 of them; each coarse level is then judged too, patches have a border that is not, a
        quarter of them lies on what is wrongly found, and an eighth of the slices does not show the label.
        Small structures are drawn more often, and each slice has a Dice of its own. The optimizer is then Muon, and
        the rate falls linearly.

        Parameters
        ----------
        size : (int, int)
            Rows and columns of a prepared slice.
        memory : int
            Bytes that a batch may take; the batch gets smaller where it must. Default 4 GB.
        **changes
            Fields of the recipe that are given instead.
        """
        chosen: dict[str, Any] = {}
        if max(size) > SMALL:
            chosen = {
                "channels": 24,
                "hidden": 96,
                "steps": (20, 16, 12),
                "scales": (16, 4, 1),
                "batch": 4,
                "border": 8,
                "supervision": 1.0,
                "negatives": 0.125,
                "small_first": True,
                "loss": "slice_dice_bce",
                "on_errors": 0.25,
                "patch": (64, 64),
                "optimizer": "muon",
                "rate": 3e-3,
                "fall": "linear",
                "betas": (0.9, 0.99),
            }
        if {**chosen, **changes}.get("optimizer") == "muon":
            chosen |= {"rate": 5e-3, "betas": (0.9, 0.99)}
        recipe = cls(**{**chosen, **changes})
        while recipe.batch > 1 and recipe.bytes_of_batch(size) > memory and "batch" not in changes:
            recipe = replace(recipe, batch=recipe.batch // 2)
        return recipe

    def bytes_of_batch(self, size: tuple[int, int]) -> int:
        """Return about how much memory a batch takes: what firing cells record, and slices while they vary."""
        cells = [size[0] * size[1] // scale**2 for scale in self.scales[:-1]] + [self.patch[0] * self.patch[1]]
        recorded = self.fire_rate * (3 if self.perception == "conv" else 1)
        states = sum((steps * recorded + 4) * n for steps, n in zip(self.steps, cells, strict=True))
        return self.batch * (int(states) * self.channels * 4 + size[0] * size[1] * _VARYING)

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse prepared slices of a size that the patch or the scales do not fit."""
        if any(side % self.scales[0] for side in size):
            raise ValueError(f"size is {size}; its sides must be multiples of the largest scale, {self.scales[0]}")
        if any(part > whole for part, whole in zip(self.patch, size, strict=True)):
            raise ValueError(f"patch is {self.patch}; it must not be larger than a prepared slice, {size}")
