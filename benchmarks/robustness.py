"""Hard Dice of a model under degraded images, beside the figures that an independent reproduction of Med-NCA reports.

    python benchmarks/robustness.py MODEL --images DIR --labels DIR --cases FILE

Slices are stretched to the model's size first and degraded there, in grey values from 0 to 1, as the reproduction
did on its 64x64 grid; ghosting and bias field are ours, of the same strength by name only. Shift and scale move image
and label together. Hard Dice is per volume on that grid, labels resized like images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pynca
from pynca.cases import find_cases, only
from pynca.metrics import hard_dice
from pynca.preprocessing import resize_linear
from pynca.training.sampling import Augmentation, vary
from pynca.volumes import Orientation, read_volume

Floats = NDArray[np.float32]
Change = Callable[[Floats, Floats, np.random.Generator], tuple[Floats, Floats]]

NOTHING = Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0)


def noise(sd: float) -> Change:
    return lambda x, t, random: (np.clip(x + sd * random.standard_normal(x.shape), 0, 1).astype(np.float32), t)


def ghosting(strength: float) -> Change:
    """Two faint copies of the slice, a third of its height away on either side."""

    def change(x: Floats, t: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
        away = x.shape[1] // 3
        copies = (np.roll(x, away, axis=1) + np.roll(x, -away, axis=1)) / 2
        return np.clip(x + strength * 0.25 * copies, 0, 1).astype(np.float32), t

    return change


def bias_field(strength: float) -> Change:
    """Brightness that falls from one corner to the opposite one by the factor exp(-2 strength)."""

    def change(x: Floats, t: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
        ramp = np.linspace(-1, 1, x.shape[1])[:, None] / 2 + np.linspace(-1, 1, x.shape[2]) / 2
        field = np.exp(strength * ramp)
        return np.clip(x * field, 0, 1).astype(np.float32), t

    return change


class _Fixed:
    """A generator that always draws the same end, so that `vary` moves by exactly what is asked."""

    def __init__(self, upper: bool) -> None:
        self._upper = upper

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> NDArray[np.float64]:
        return np.full(size, high if self._upper else low)

    def random(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        return np.ones(size)

    def standard_normal(self, size: tuple[int, ...]) -> NDArray[np.float64]:
        return np.zeros(size)


def moved(how: str, by: float) -> Change:
    settings = replace(NOTHING, **{how: abs(by)})
    return lambda x, t, random: vary(x, t, settings, _Fixed(by > 0))  # type: ignore[arg-type]


# What the reproduction (anchors: Dice .865 undegraded, soft, labels of the official code) reports beside each.
CONDITIONS: dict[str, tuple[Change, float | None]] = {
    "none": (lambda x, t, random: (x, t), 0.865),
    "noise 0.05": (noise(0.05), 0.859),
    "noise 0.10": (noise(0.10), 0.834),
    "noise 0.20": (noise(0.20), 0.577),
    "noise 0.40": (noise(0.40), 0.046),
    "ghosting 1.0": (ghosting(1.0), 0.809),
    "bias field 0.3": (bias_field(0.3), 0.808),
    "bias field 0.5": (bias_field(0.5), 0.654),
    "bias field 0.7": (bias_field(0.7), 0.429),
    "scale 0.8": (moved("zoom", -0.2), 0.743),
    "scale 0.9": (moved("zoom", -0.1), 0.804),
    "scale 1.1": (moved("zoom", 0.1), 0.854),
    "scale 1.2": (moved("zoom", 0.2), 0.807),
    "shift 2": (moved("shift", 2), 0.859),
    "shift 5": (moved("shift", 5), 0.834),
    "shift 10": (moved("shift", 10), 0.770),
}


def prepared(model: pynca.Model, image: Path, label: Path) -> tuple[Floats, Floats]:
    volume, truth = read_volume(image), read_volume(label)
    way = Orientation.between(volume.affine, model.preparation.orientation)
    slices, labels = (np.moveaxis(way.apply(v.data), model.preparation.axis, 0) for v in (volume, truth))
    return model.preparation.prepare(slices), resize_linear((labels > 0).astype(np.float32), model.preparation.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--cases", type=Path)
    arguments = parser.parse_args()
    model = pynca.load_model(arguments.model)
    cases = find_cases(arguments.images, arguments.labels).cases
    cases = cases if arguments.cases is None else only(cases, arguments.cases)
    data = [prepared(model, case.image, case.label) for case in cases]
    print(f"{'degraded by':16} {'hard Dice':>9} {'sd':>7}   reproduction (soft Dice)")
    for name, (change, anchor) in CONDITIONS.items():
        scores = []
        for n, (x, t) in enumerate(data):
            image, label = change(x, t, np.random.Generator(np.random.Philox(key=n)))
            index = np.arange(len(image), dtype=np.uint32)
            logits = model.batch_logits(image[..., None], samples=np.zeros_like(index), slices=index)
            scores.append(hard_dice(logits > 0, label > 0.5))
        beside = "" if anchor is None else f"{anchor:.3f}"
        print(f"{name:16} {np.mean(scores):9.4f} {np.std(scores):7.4f}   {beside}", flush=True)


if __name__ == "__main__":
    main()
