"""The animation: every step of the real run, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import orientations

import pynca
from pynca import cli
from pynca.animate import growth, write_animation
from pynca.preview import BLUE, ORANGE, View, outline
from pynca.quality import sigmoid
from support import random_model

MODELS = {
    "conv": random_model("conv"),
    "sobel": random_model("sobel"),
    "three levels": random_model(scales=(4, 2, 1)),
    "one level": random_model(scales=(1,)),
    "padded": random_model(size=(18, 13)),
    "always fires": random_model(options={"fire_rate": 1.0}),
}


def frames(path: Path) -> tuple[list[np.ndarray], list[int]]:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        pages = [(np.asarray(page.convert("RGB")), page.info["duration"]) for page in ImageSequence.Iterator(image)]
    return [page for page, _ in pages], [duration for _, duration in pages]


@pytest.fixture
def pillow() -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_last_step_is_the_result_to_the_bit(model: pynca.Model) -> None:
    image = np.random.default_rng(0).random((11, 9, 5))
    result = pynca.predict(image, model, seed=5, threads=1)
    k = 2
    prepared = model.preparation.prepare(image[None, :, :, k])[0]
    steps = list(growth(model, prepared, slice_index=k, seed=5, threads=1))
    assert [(s.level, s.step) for s in steps] == [
        (n, step + 1) for n, level in enumerate(model.levels) for step in range(level.steps)
    ]
    assert all(s.logits.shape == prepared.shape for s in steps)
    logits = model.preparation.restore(steps[-1].logits[None], (11, 9))[0]
    np.testing.assert_array_equal(sigmoid(logits), result.probability[..., k])
    coarse, scale = steps[0].logits, model.levels[0].scale
    cells = coarse[::scale, ::scale].repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_array_equal(cells[: coarse.shape[0], : coarse.shape[1]], coarse)


def test_a_real_scan(data: Path, tmp_path: Path, pillow: None) -> None:
    """It shows the largest slice; the last frame has the outline of its mask, the first the image alone."""
    path = data / "hippocampus" / "images" / "hippocampus_001.nii.gz"
    model = pynca.load_model("hippocampus")
    found = pynca.predict(path, model, threads=1)
    k = write_animation(tmp_path / "a.gif", path, model, threads=1)
    assert np.count_nonzero(found.mask[..., k]) == np.count_nonzero(found.mask, axis=(0, 1)).max()
    assert (tmp_path / "a.gif").stat().st_size < 1_000_000
    write_animation(tmp_path / "b.gif", path, model, slice_index=k, threads=2)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()

    pictures, durations = frames(tmp_path / "a.gif")
    assert len(pictures) == 1 + sum(level.steps for level in model.levels)
    assert durations == [120] * (len(pictures) - 1) + [2000]
    height = pictures[0].shape[0] - 10  # without the bar
    first, last = pictures[0][:height], pictures[-1][:height]
    assert (first == first[..., :1]).all()
    assert found.volume is not None
    mask = View.of(found.volume).planes(found.mask)[k]
    np.testing.assert_array_equal((last == ORANGE).all(axis=-1), outline(mask, last.shape[:2]))
    assert not (last == BLUE).all(axis=-1).any()


def test_the_bar_counts_steps(tmp_path: Path, pillow: None) -> None:
    model = random_model(steps=10)  # 10 and 11
    write_animation(tmp_path / "a.gif", np.random.default_rng(1).random((40, 63)), model, zoom=2, delay=50, threads=1)
    pictures, durations = frames(tmp_path / "a.gif")
    assert durations == [50] * 21 + [2000]
    assert pictures[0].shape == (90, 126, 3)
    for done, picture in enumerate(pictures):
        line = picture[-1]
        blue, orange = ((line == colour).all(axis=-1).sum() for colour in (BLUE, ORANGE))
        assert (blue, orange) == (6 * min(done, 10) - (done >= 10), 6 * max(done - 10, 0))


def test_slices_are_counted_as_the_file_counts_them(tmp_path: Path, pillow: None) -> None:
    """A scan stored upside down shows the same slice under the number that it has there."""
    model = random_model()
    data = np.random.default_rng(2).random((9, 11, 7)).astype(np.float32)
    scan = nibabel.Nifti1Image(data, np.eye(4))
    nibabel.save(scan, tmp_path / "up.nii")
    way = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt("PIR"))
    nibabel.save(scan.as_reoriented(way), tmp_path / "down.nii")
    assert write_animation(tmp_path / "up.gif", tmp_path / "up.nii", model, slice_index=1, threads=1) == 1
    assert write_animation(tmp_path / "down.gif", tmp_path / "down.nii", model, slice_index=5, threads=1) == 5
    assert write_animation(tmp_path / "array.gif", data, model, slice_index=1, threads=1) == 1
    for name in ("down.gif", "array.gif"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "up.gif").read_bytes()


def test_a_dicom_series_and_pictures(data: Path, tmp_path: Path, pillow: None) -> None:
    """A series shows the slice that the same volume as NIfTI shows; a picture is shown as it is."""
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    from PIL import Image

    from pynca.volumes import read_volume

    series = read_volume(data / "dicom" / "study1")
    nibabel.save(nibabel.Nifti1Image(series.data, series.affine), tmp_path / "s.nii.gz")
    assert write_animation(tmp_path / "d.gif", series, threads=1) == write_animation(
        tmp_path / "n.gif", tmp_path / "s.nii.gz", threads=1
    )
    assert (tmp_path / "d.gif").read_bytes() == (tmp_path / "n.gif").read_bytes()
    picture = sorted((data / "cardiac" / "images").glob("*.png"))[0]
    with pytest.warns(UserWarning, match="do not say how large their pixels are"):
        write_animation(tmp_path / "p.gif", picture, random_model(), zoom=1, threads=1)
    shown = frames(tmp_path / "p.gif")[0][0][:-10]
    with Image.open(picture) as image:
        grey = np.asarray(image).astype(np.float64)
    assert shown.shape[:2] == grey.shape
    assert np.corrcoef(shown[..., 0].ravel(), grey.ravel())[0, 1] > 0.95


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, pillow: None) -> None:
    monkeypatch.chdir(tmp_path)
    random_model().save("m.safetensors")
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(3).random((9, 11, 5)), np.eye(4)), "a.nii.gz")

    def run(*options: str) -> tuple[int, str]:
        code = cli.main(["animate", "a.nii.gz", "a.gif", "-m", "m.safetensors", "--threads", "1", *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, said = run("--slice", "3", "--zoom", "4", "--delay", "40", "--seed", "2")
    assert (code, said) == (0, f"a.gif: slice 3, {Path('a.gif').stat().st_size / 1000:.0f} kB\n")
    for options, code, said in (
        (("--slice", "5"), 1, "slice is 5; it must be between 0 and 4"),
        (("--zoom", "0"), 2, "--zoom is 0; it must be between 1 and 64"),
        (("--delay", "1"), 2, "--delay is 1; it must be between 20 and 10000"),
        (("--seed", "-1"), 2, "--seed is -1"),
        (("-m", "none"), 2, "none does not exist"),
    ):
        given = run(*options)
        assert given[0] == code
        assert said in given[1]
    assert cli.main(["animate", "a.nii.gz", "a.png"]) == 2
    assert cli.main(["animate", "b.nii.gz", "a.gif"]) == 2


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 11, 5), np.float32), np.eye(4)), tmp_path / "a.nii")
    assert cli.main(["animate", str(tmp_path / "a.nii"), str(tmp_path / "a.gif")]) == 1
    assert "pip install '.[image]'" in capsys.readouterr().err
    assert not (tmp_path / "a.gif").exists()
