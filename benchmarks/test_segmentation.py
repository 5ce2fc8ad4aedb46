"""Med-NCA end to end with the bundled models: an array in and a mask out, files in and files out."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pynca
from measure import Measure
from pynca.batch import Options, open_manifest, run_case
from pynca.layouts import find_jobs
from pynca.manifest import model_file
from pynca.volumes import Orientation, read_volume
from pynca.zoo import DEFAULT, find
from workload import model_work

DATA = Path(__file__).resolve().parents[2] / "shared/data"
VOLUME = DATA / "hippocampus/images/hippocampus_001.nii.gz"
PICTURES = 8


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


@pytest.fixture
def pictures() -> list[Path]:
    """PNG files of 256x256."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    folder = DATA / "cardiac/images"
    found = sorted(folder.glob("*.png"))[:PICTURES]
    if len(found) < PICTURES:
        pytest.skip(f"{folder} with pictures is not there")
    return found


def test_cardiac_slice(measure: Measure, cardiac_lv: pynca.Model, pictures: list[Path], threads: int, on: str) -> None:
    image = read_volume(pictures[0]).data
    updates, flops = model_work(cardiac_lv, 1)
    measure(
        f"cardiac-lv slice {on}",
        lambda: pynca.segment(image, cardiac_lv, threads=threads),
        threads=threads,
        updates=updates,
        flops=flops,
    )


def test_cardiac_picture(
    measure: Measure, cardiac_lv: pynca.Model, pictures: list[Path], threads: int, on: str, tmp_path: Path
) -> None:
    spacing = cardiac_lv.preparation.spacing[:2]
    updates, flops = model_work(cardiac_lv, 1)
    measure(
        f"cardiac-lv picture file {on}",
        lambda: pynca.predict(pictures[0], cardiac_lv, spacing=spacing, threads=threads).save(tmp_path / "mask.png"),
        threads=threads,
        updates=updates,
        flops=flops,
    )


def test_cardiac_folder(
    measure: Measure, cardiac_lv: pynca.Model, pictures: list[Path], threads: int, on: str, tmp_path: Path
) -> None:
    """What `pynca segment IN OUT` does once the model is loaded: the manifest, reading, writing, statistics."""
    source, output, identity = tmp_path / "in", tmp_path / "out", model_file("cardiac-lv")
    source.mkdir()
    for picture in pictures:
        shutil.copy(picture, source)
    options = Options(spacing=cardiac_lv.preparation.spacing[:2])

    def segment_folder() -> None:
        jobs, folder = find_jobs(source, {"mask": output}, title=identity.name)
        with open_manifest(folder, jobs, identity, options, overwrite=True) as manifest:
            for job in jobs:
                entry = run_case(job, cardiac_lv, options, manifest, threads=threads)
                assert entry.status == "done", entry.error
                manifest.add(entry)

    updates, flops = model_work(cardiac_lv, 1)  # each picture is the first slice of its own image
    measure(
        f"cardiac-lv folder of {PICTURES} pictures {on}",
        segment_folder,
        threads=threads,
        updates=PICTURES * updates,
        flops=PICTURES * flops,
        note=lambda seconds: f"{seconds / PICTURES * 1e3:.3g} ms a slice",
    )
