"""How much of what goes wrong with single slices is marked: pictures as they are, and degraded in many ways.

    python benchmarks/quality_slices.py MODEL --images DIR --labels DIR --cases FILE [--every 4] [--samples 1]

Every slice is segmented as it is, one of so many also in degraded copies. Bad is a Dice under 0.7 (`--bad`); marked is
a verdict to review, which counts what the check of the image says.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pynca
from pynca.cases import find_cases, only
from pynca.metrics import hard_dice
from pynca.quality import judge
from pynca.segmentation import sized
from pynca.volumes import Volume, read_label, read_volume
from quality_control import (
    Change,
    Image,
    Truth,
    bias_field,
    blur,
    gamma,
    ghosting,
    inverted,
    noise,
    scaled,
    shifted,
    turned,
)


def faded(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
    """A tenth of the contrast, in noise."""
    return np.clip(0.45 + 0.1 * x + 0.02 * random.standard_normal(x.shape), 0, 1), t


CHANGES: dict[str, Change] = {
    **{f"noise {sd:g}": noise(sd) for sd in (0.05, 0.1, 0.2, 0.4)},
    **{f"ghosting {s:g}": ghosting(s) for s in (1, 2, 4)},
    **{f"bias field {s:g}": bias_field(s) for s in (0.7, 1.5, 3)},
    **{f"gamma {p:g}": gamma(p) for p in (0.5, 2)},
    "inverted contrast": inverted,
    "a tenth of the contrast": faded,
    **{f"blur, {n} times": blur(n) for n in (8, 32)},
    **{f"scale {s:g}": scaled(s) for s in (0.4, 0.6, 0.8, 1.3, 1.8)},
    **{f"shift {n} pixels": shifted(n, 0) for n in (20, 60)},
    "turned by a quarter": turned(1, 0, 2, flip=[0]),
    "mirrored": turned(0, 1, 2, flip=[1]),
}


def variants(image: Volume, truth: NDArray[np.bool_], key: int) -> Iterator[tuple[str, NDArray[np.float32], Truth]]:
    low, high = np.percentile(image.data, (0.5, 99.5))
    x = np.clip((image.data - low) / (high - low), 0, 1)[..., None]
    for n, (name, change) in enumerate(CHANGES.items()):
        data, mask = change(x, truth[..., None], np.random.Generator(np.random.Philox(key=[key, n])))
        yield name, np.ascontiguousarray(data[..., 0], np.float32), mask[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="degrade one slice of so many (default 4)")
    parser.add_argument("--bad", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model = pynca.load_model(arguments.model)
    rows: list[tuple[str, float, bool]] = []

    def tried(what: str, image: Volume, truth: Truth) -> None:
        found = pynca.predict(image, model, samples=arguments.samples, threads=arguments.threads)
        rows.append((what, hard_dice(found.mask > 0, truth), judge(found, model)[0] == "review"))

    cases = only(find_cases(arguments.images, arguments.labels).cases, arguments.cases)
    for n, case in enumerate(cases):
        image, truth = sized(read_volume(case.image), model), read_label(case.label).data > 0
        tried("as it is", image, truth)
        if n % arguments.every == 0:
            for what, data, mask in variants(image, truth, n):
                tried(what, replace(image, data=data), mask)
    dice, marked = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    bad = dice < arguments.bad
    print(f"| input | n | Dice | under {arguments.bad:g} | of these marked | of others marked |")
    print("| --- | --- | --- | --- | --- | --- |")
    names = np.array([row[0] for row in rows])
    for what, some in [(what, names == what) for what in ["as it is", *CHANGES]] + [("all", names != "")]:
        shares = " | ".join(f"{marked[some & of].mean():.0%}" if (some & of).any() else "" for of in (bad, ~bad))
        print(f"| {what} | {some.sum()} | {dice[some].mean():.3f} | {bad[some].mean():.0%} | {shares} |")


if __name__ == "__main__":
    main()
