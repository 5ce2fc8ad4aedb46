"""Hard Dice of a model on a folder of volumes with labels, one run a volume, all labels merged.

    python benchmarks/accuracy.py MODEL --images DIR --labels DIR [--validation-fold]

Two figures: on the model's own grid, where the papers' code compares (labels resized with the source index rounded
down), and in the volumes' own voxels, with the mask that `pynca segment` writes. `--validation-fold` takes the volumes
with id // 10 % 5 == 0.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pynca
from pynca.metrics import hard_dice
from pynca.volumes import Orientation, read_volume


def resized_label(label: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Labels (N, h, w) on the grid as the papers' code resizes them."""
    rows, columns = (np.arange(n) * label.shape[a] // n for a, n in enumerate(size, start=1))
    return label[:, rows][:, :, columns]


def on_the_grid(model: pynca.Model, image: Path, label: Path) -> float:
    volume, truth = read_volume(image), read_volume(label)
    way = Orientation.between(volume.affine, model.preparation.orientation)
    slices, labels = (np.moveaxis(way.apply(v.data), model.preparation.axis, 0) for v in (volume, truth))
    count = len(slices)
    logits = model.batch_logits(
        model.preparation.prepare(slices)[..., None],
        samples=np.zeros(count, np.uint32),
        slices=np.arange(count, dtype=np.uint32),
    )
    return hard_dice(logits > 0, resized_label(labels > 0, model.preparation.size))


def in_voxels(model: pynca.Model, image: Path, label: Path) -> float:
    return hard_dice(pynca.segment(image, model) > 0, read_volume(label).data > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--validation-fold", action="store_true")
    arguments = parser.parse_args()

    model = pynca.load_model(arguments.model)
    paths = sorted(arguments.images.glob("*.nii.gz"))
    if arguments.validation_fold:
        paths = [p for p in paths if int(re.findall(r"\d+", p.name)[0]) // 10 % 5 == 0]
    start = time.perf_counter()
    scores = np.array(
        [
            (on_the_grid(model, p, arguments.labels / p.name), in_voxels(model, p, arguments.labels / p.name))
            for p in paths
        ]
    )
    print(f"{len(paths)} volumes, {time.perf_counter() - start:.1f} s for both")
    for name, column in zip(("the model's grid", "native voxels"), scores.T, strict=True):
        print(f"hard Dice, {name:16} {column.mean():.4f} +- {column.std():.4f}  (smallest {column.min():.4f})")


if __name__ == "__main__":
    main()
