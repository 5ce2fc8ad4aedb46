"""Model: levels from coarse to fine, how an image is prepared, what the labels are called, where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .preprocessing import Preparation, shrink_linear
from .rule import FloatArray, Rule, UInt8Array, check_masks, whole_number


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
    name, description, licence, training_data, citation, accuracy, source : str
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    training_data: str = ""
    citation: str = ""
    accuracy: str = ""
    source: str = ""


@dataclass(frozen=True)
class Model:
    """Levels from coarse to fine, with everything that is needed to use them.

    Parameters
    ----------
    levels : sequence of Level
        Coarse first. Scales descend to 1 and each is a multiple of the next; all rules have as many
        channels and image channels.
    preparation : Preparation
        How a slice is brought to the model, and its logits back.
    labels : mapping of int to str
        Name of each label value. Default ``{1: "foreground"}``.
    threshold : float
        Probability above which a pixel belongs to the label. Default 0.5.
    card : Card
        Name, licence, training data, citation, accuracy.

    Raises
    ------
    ValueError
        The parts do not fit each other.
    """

    levels: Sequence[Level]
    preparation: Preparation
    labels: Mapping[int, str] = field(default_factory=lambda: {1: "foreground"})
    threshold: float = 0.5
    card: Card = field(default_factory=Card)
