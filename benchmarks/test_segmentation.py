"""Med-NCA end to end with the bundled model: an array in and a mask out, a file in and a file out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pynca
from measure import Measure
from pynca.volumes import Orientation, read_volume
from pynca.zoo import DEFAULT, find
from workload import model_work

VOLUME = Path(__file__).resolve().parents[2] / "shared/data/hippocampus/images/hippocampus_001.nii.gz"


@cache
def model() -> pynca.Model:
    path = find(DEFAULT)
    assert path is not None
    return pynca.load_model(path)


def test_slice(measure: Measure, threads: int, on: str) -> None:
    image = np.random.default_rng(0).random((48, 35)).astype(np.float32)  # the size of such a slice
    updates, flops = model_work(model(), 1)
    measure(
        f"{DEFAULT} slice {on}",
        lambda: pynca.segment(image, model(), threads=threads),
        threads=threads,
        updates=updates,
        flops=flops,
    )


def test_volume(measure: Measure, threads: int, on: str, tmp_path: Path) -> None:
    if not VOLUME.is_file():
        pytest.skip(f"{VOLUME} is not there")
    volume = read_volume(VOLUME)
    way = Orientation.between(volume.affine, model().preparation.orientation)
    updates, flops = model_work(model(), way.apply(volume.data).shape[model().preparation.axis])
    measure(
        f"{DEFAULT} volume file {on}",
        lambda: pynca.predict(VOLUME, model(), threads=threads).save(tmp_path / "mask.nii.gz"),
        threads=threads,
        updates=updates,
        flops=flops,
    )
