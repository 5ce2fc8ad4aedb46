"""Previews: the right way up, to scale, the same bytes however the scan is stored, and nothing too small to be seen."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel import orientations

import pynca
from pynca import cli
from pynca.preview import ORANGE, View, draw_preview, png, resized, write_png, write_preview
from pynca.volumes import Volume, read_volume
from support import random_model

ALL_48 = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("LR", "PA", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]


def volume(data: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Volume:
    if data.ndim == 2:
        return Volume(data, None, None, "the picture", picture=True)
    return Volume(data, np.diag([*spacing, 1.0]), None, "the scan")


def stored(scan: Volume, codes: str) -> tuple[Volume, Any]:
    """A scan in RAS stored with its axes towards other directions, and how a mask of it is stored so."""
    way = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))

    def turn(array: np.ndarray) -> np.ndarray:
        return orientations.apply_orientation(array, way)

    affine = scan.affine @ orientations.inv_ornt_aff(way, scan.data.shape)
    return Volume(turn(scan.data), affine, None, "the scan"), turn


def is_orange(picture: np.ndarray) -> np.ndarray:
    return (picture == ORANGE).all(axis=-1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.5, 3.0), (3.0, 1.0, 1.5), (1.0, 3.0, 1.5)])
def test_it_does_not_depend_on_how_a_scan_is_stored(spacing: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    scan, mask = volume(random.gamma(2.0, 100.0, (9, 11, 7)), spacing), random.random((9, 11, 7)) < 0.1
    pictures = set()
    for codes in ALL_48:
        other, turn = stored(scan, codes)
        pictures.add(png(draw_preview(other, turn(mask))))
    assert len(pictures) == 1


@pytest.mark.parametrize(
    ("axis", "bright", "corner"),
    [
        (2, (10, 10, 0), "the patient's front and right are up and left, seen from the feet"),
        (1, (10, 0, 10), "head and right, seen from the front"),
        (0, (0, 10, 10), "head and front, seen from the left"),
    ],
)
def test_slices_are_shown_as_radiologists_look_at_them(axis: int, bright: tuple[int, ...], corner: str) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    shape = [11, 11, 11]
    shape[axis] = 1
    data = np.zeros(shape)
    data[bright] = 1
    picture = draw_preview(volume(data, tuple(spacing)), np.zeros(shape))
    assert picture[0, 0].tolist() == [254, 254, 254], corner
    assert picture[0, -1].max() == picture[-1, 0].max() == 0


def test_slices_are_those_of_the_acquisition_axial_where_voxels_are_alike() -> None:
    data = np.zeros((4, 5, 6))
    for spacing, axis in (((1, 1, 1), 2), ((1.05, 1, 1), 2), ((3, 1, 1), 0), ((1, 3, 1), 1), ((1, 3, 3), 2)):
        for codes in ("RAS", "SLP"):
            other, _ = stored(volume(data, spacing), codes)
            assert other.data.shape[View.of(other).axis] == data.shape[axis]


def test_pixels_are_to_scale() -> None:
    mask = np.zeros((20, 40, 1), bool)
    mask[5:15, 5:35] = True  # 20 mm wide, 15 mm long
    picture = is_orange(draw_preview(volume(np.zeros(mask.shape), (2.0, 0.5, 4.0)), mask))
    rows, columns = (np.flatnonzero(picture.any(axis=axis)) for axis in (1, 0))
    assert np.ptp(columns) + 1 == pytest.approx((np.ptp(rows) + 1) * 20 / 15, abs=1)


def test_five_slices_spread_over_the_mask() -> None:
    data = np.zeros((8, 8, 40))
    data[...] = np.arange(40)
    data[0, 0] = 40  # so that all slices but the last are grey on the same scale
    mask = np.zeros(data.shape, bool)
    mask[3:5, 3:5, 10:31] = True
    assert draw_preview(volume(data), mask).shape == (128, 5 * 128 + 4 * 8, 3)
    mask[..., 12:] = False
    assert draw_preview(volume(data), mask).shape == (128, 2 * 128 + 8, 3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1), (35, 50, 36), (3, 200, 2), (1, 4000), (512, 512), (256, 256)])
def test_any_size_fits_into_the_page(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    for mask in (np.zeros(shape, bool), random.random(shape) < 0.05):
        rows, columns, _ = draw_preview(volume(random.random(shape)), mask).shape
        assert rows <= 360
        assert columns <= 1312


def test_an_empty_mask_leaves_no_outline_and_one_voxel_of_a_large_slice_does() -> None:
    data = np.random.default_rng(2).random((512, 512, 4))
    mask = np.zeros(data.shape, bool)
    assert not is_orange(draw_preview(volume(data), mask)).any()
    mask[300, 200, 2] = True
    assert is_orange(draw_preview(volume(data), mask)).any()


def test_a_picture_is_shown_as_it_is() -> None:
    data = np.zeros((4, 6))
    data[0, 5] = 1
    picture = draw_preview(volume(data), np.zeros(data.shape))
    assert picture.shape == (64, 96, 3)
    assert picture[0, -1, 0] == 254
    assert np.count_nonzero(picture[..., 0]) == 16 * 16


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_resizing_keeps_the_mean_and_repeats_for_whole_factors(n_in: int, n_out: int, seed: int) -> None:
    plane = np.random.default_rng(seed).integers(0, 255, (n_in, 3))
    other = resized(plane, (n_out, 3))
    np.testing.assert_allclose(other.mean(axis=0), plane.mean(axis=0), atol=1e-9)
    assert other.min() >= plane.min() - 1e-9
    assert other.max() <= plane.max() + 1e-9
    whole = n_out % n_in == 0
    if whole:
        np.testing.assert_allclose(other, plane.repeat(n_out // n_in, axis=0), atol=1e-9)


@pytest.mark.parametrize("colours", [2, 256, 257, 3000])
def test_a_png_holds_the_picture_to_the_bit(tmp_path: Path, colours: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    random = np.random.default_rng(3)
    palette = random.integers(0, 256, (colours, 3), np.uint8)
    picture = palette[random.integers(0, colours, (60, 71))]
    write_png(tmp_path / "p.png", picture)
    with image.open(tmp_path / "p.png") as read:
        np.testing.assert_array_equal(np.asarray(read.convert("RGB")), picture)


@pytest.mark.parametrize("name", ["volumes/example_ct_sm.nii.gz", "volumes/example_mr_sm.nii.gz"])
def test_real_scans_however_they_are_turned(data: Path, name: str) -> None:
    scan = read_volume(data / name)
    mask = scan.data > np.percentile(scan.data, 98)
    picture = png(draw_preview(scan, mask))
    image = nibabel.as_closest_canonical(nibabel.load(data / name))
    turned = read_volume(image)
    way = orientations.io_orientation(scan.affine)
    assert png(draw_preview(turned, orientations.apply_orientation(mask, way))) == picture
    assert len(picture) < 100_000


def test_write_preview(tmp_path: Path) -> None:
    model = random_model()
    image = np.random.default_rng(4).random((9, 11, 5))
    found = pynca.predict(image, model, affine=np.eye(4), threads=1)
    assert found.volume is not None
    for name in ("a.png", "b.PNG"):
        write_preview(tmp_path / name, found.volume, found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    with pytest.raises(ValueError, match=r"a\.jpg cannot be written: the name of a preview must end in \.png"):
        write_preview(tmp_path / "a.jpg", found.volume, found)
    with pytest.raises(ValueError, match=r"the mask has shape \(9, 11, 5\); the picture has \(9, 11\)"):
        write_preview(tmp_path / "a.png", volume(np.zeros((9, 11))), found)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_preview(tmp_path / "no" / "a.png", found.volume, found)


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    random_model().save("m.safetensors")
    Path("scans").mkdir()
    for n, name in enumerate(("a.nii.gz", "b.c.nii")):
        data = np.random.default_rng(n).random((9, 11, 5)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), f"scans/{name}")
    options = ["-m", "m.safetensors", "--threads", "1", "--preview"]
    assert cli.main(["segment", "scans/a.nii.gz", "a.nii.gz", *options, "new/a.png"]) == 0
    assert cli.main(["segment", "scans", "masks", *options, "previews"]) == 0
    assert sorted(p.name for p in Path("previews").iterdir()) == ["a.png", "b.c.png"]
    assert Path("previews/a.png").read_bytes() == Path("new/a.png").read_bytes()
    for source, target in (("scans/a.nii.gz", "a.gif"), ("scans", "a.png"), ("scans", "a.nii.gz")):
        assert cli.main(["segment", source, "other" if source == "scans" else "b.nii", *options, target]) == 2
    assert "must end in .png" in capsys.readouterr().err
