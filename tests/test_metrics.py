"""Metrics against brute force and by their properties."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynca
from pynca import cli, metrics
from pynca.evaluation import Score, patient_dice, score_case, score_frames, summary, table, write_csv
from pynca.phantom import SHAPE, hippocampus_phantom
from pynca.preview import BLUE, ORANGE, draw_slices, write_png
from pynca.volumes import Volume
from support import random_model, random_rule


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in sides)] = True
    return mask


def test_dice_of_known_boxes() -> None:
    a, b = box((10, 10), (0, 4), (0, 4)), box((10, 10), (2, 6), (0, 4))
    assert metrics.hard_dice(a, b) == 0.5
    assert metrics.hard_dice(a, a) == 1.0
    assert metrics.hard_dice(a, ~a) == 0.0
    nothing = np.zeros((10, 10), bool)
    assert metrics.hard_dice(nothing, nothing) == 1.0
    assert metrics.soft_dice(a.astype(np.float32), b) == 0.5
    assert metrics.soft_dice(np.full((10, 10), 0.5, np.float32), a) == pytest.approx(16 / (50 + 16))
    assert metrics.soft_dice(np.zeros((10, 10), np.float32), nothing) == 1.0
    assert metrics.volume_error(box((10, 10), (0, 4), (0, 5)), a) == 0.25
    assert math.isnan(metrics.volume_error(a, nothing))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "f4", "f8"])
def test_masks_of_any_dtype_and_value_are_what_is_not_zero(dtype: str) -> None:
    """What `segment` returns is uint8 and holds the label's value."""
    a, b = box((9, 8, 7), (1, 6), (2, 7), (0, 4)), box((9, 8, 7), (2, 8), (2, 6), (1, 5))
    shear = np.eye(4)
    shear[0, 2] = 0.4
    for value in (1, 2, 255 if dtype != "i2" else -1):
        label = b.astype(dtype) * np.array(value, dtype)
        for mask in (a, a.astype(dtype)):
            assert metrics.hard_dice(mask, label) == metrics.hard_dice(a, b)
            assert metrics.volume_error(mask, label) == metrics.volume_error(a, b)
            assert metrics.hd95(mask, label, (1, 2, 3)) == metrics.hd95(a, b, (1, 2, 3))
            assert metrics.hd95(mask, label, affine=shear) == metrics.hd95(a, b, affine=shear)
        assert metrics.soft_dice(a.astype(np.float32), label) == metrics.soft_dice(a.astype(np.float32), b)


def test_masks_that_are_not_alike_are_refused() -> None:
    a, b = np.ones((4, 4), bool), np.ones((1, 4), bool)
    for measure in (metrics.hard_dice, metrics.volume_error, metrics.soft_dice):
        with pytest.raises(ValueError, match="they must be alike"):
            measure(a, b)


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_hd95_refuses_voxels_that_cannot_be(size: float) -> None:
    a = box((5, 5, 5), (1, 3), (1, 3), (1, 3))
    with pytest.raises(ValueError, match="sizes must be above 0"):
        metrics.hd95(a, a, (1.0, size, 1.0))
    with pytest.raises(ValueError, match="must be finite and span a space"):
        metrics.hd95(a, a, affine=np.diag([1.0, 0.0 if size < 0 else size, 1.0, 1.0]))


def brute_hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] | np.ndarray) -> float:
    """By the size of voxels, or the matrix from indices to coordinates."""
    steps = np.diag(spacing) if np.ndim(spacing) == 1 else np.asarray(spacing)

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        points = []
        for place in np.argwhere(mask):
            for axis in range(mask.ndim):
                for shift in (-1, 1):
                    other = place + 1
                    other[axis] += shift
                    if not padded[tuple(other)]:
                        points.append(tuple(place))
        return np.array(sorted(set(points))) @ steps.T

    one, two = surface(a), surface(b)
    distances = np.linalg.norm(one[:, None] - two[None], axis=-1)
    return float(np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(9, 7), (5, 6, 7)]))
def test_hd95_is_what_brute_force_says(seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    a, b = random.random(shape) < 0.3, random.random(shape) < 0.3
    a.flat[0] = b.flat[-1] = True
    spacing = tuple(random.uniform(0.5, 3, len(shape)))
    assert metrics.hd95(a, b, spacing) == pytest.approx(brute_hd95(a, b, spacing))


def sheared(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(random.uniform(0.5, 5, 3)) @ (np.eye(3) + 0.4 * random.normal(size=(3, 3)))
    affine[:3, 3] = random.normal(size=3) * 100
    return affine


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 0.8]))
def test_hd95_of_axes_at_any_angle_is_what_brute_force_says(seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    a, b = random.random((5, 6, 7)) < density, random.random((5, 6, 7)) < density
    a.flat[0] = b.flat[-1] = True
    affine = sheared(seed)
    assert metrics.hd95(a, b, affine=affine) == pytest.approx(brute_hd95(a, b, affine[:3, :3]))


@pytest.mark.parametrize("degrees", [5, 20, 30])
def test_hd95_of_a_tilted_gantry(degrees: float) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1, 2] = 5 * math.tan(math.radians(degrees))
    places = np.stack(np.indices((40, 52, 14)), -1) @ affine[:3, :3].T
    middle = places[20, 26, 7]
    a, b = (np.linalg.norm(places - middle - away, axis=-1) < 11 for away in ((0, 0, 0), (0, 6, 4)))
    surfaces = [np.argwhere(metrics._surface(mask)) @ affine[:3, :3].T for mask in (a, b)]
    between = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    expected = np.percentile(np.concatenate([between.min(axis=1), between.min(axis=0)]), 95)
    assert metrics.hd95(a, b, affine=affine) == pytest.approx(expected)
    assert metrics.hd95(a, b, np.linalg.norm(affine[:3, :3], axis=0).tolist()) != pytest.approx(expected, rel=1e-2)
    model = random_model()
    image = Volume(np.random.default_rng(0).random(a.shape), affine, None, "image.nii")
    found = pynca.predict(image, model).mask > 0
    assert found.any()
    score = score_case(model, image, replace(image, data=a.astype(np.uint8)), "image.nii")
    assert score.hd95 == metrics.hd95(found, a, affine=affine)


def test_hd95_by_an_affine_at_right_angles_is_that_by_its_sizes() -> None:
    random = np.random.default_rng(1)
    a, b = random.random((9, 8, 7)) < 0.3, random.random((9, 8, 7)) < 0.3
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    affine = np.eye(4, dtype=np.float64)
    affine[:3, :3] = (turn @ np.diag([0.9, -1.2, 3.0])).astype(np.float32)  # as a header has it
    sizes = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    assert metrics.hd95(a, b, affine=affine) == metrics.hd95(a, b, sizes)
    for wrong in ({}, {"spacing": sizes, "affine": affine}, {"spacing": sizes[:2]}, {"affine": affine[:3]}):
        with pytest.raises(ValueError, match=r"spacing|affine"):
            metrics.hd95(a, b, **wrong)  # type: ignore[arg-type]


def test_hd95_of_a_shift_and_of_nothing() -> None:
    a, b = box((30, 30), (5, 15), (5, 15)), box((30, 30), (8, 18), (5, 15))
    assert metrics.hd95(a, b, (2.0, 1.0)) == pytest.approx(6.0)
    assert metrics.hd95(a, a, (1.0, 1.0)) == 0.0
    nothing = np.zeros_like(a)
    assert metrics.hd95(nothing, nothing, (1, 1)) == 0.0
    assert metrics.hd95(a, nothing, (1, 1)) == math.inf


def test_the_interval_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.02, 50)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(50), rel=0.15)
    assert (low, high) == metrics.bootstrap_interval(values)


def test_summary_table_and_csv(tmp_path: Path) -> None:
    scores = [
        Score("a.nii.gz", 0.9, 0.88, 1.0, 0.1, "a", 11, 9, 9),
        Score("b.nii.gz", 0.7, 0.66, 3.0, -0.1, "b", 9, 11, 7),
        Score("c.nii.gz", 0.0, 0.0, math.inf, math.nan, "b", 20, 0, 0),
    ]
    rows = summary(scores)
    assert rows["hard_dice"]["mean"] == pytest.approx(1.6 / 3)
    assert rows["hd95"]["count"] == rows["volume_error"]["count"] == 2
    assert "soft Dice (as in Med-NCA's code)" in table(scores)
    assert patient_dice(scores) == {"a": pytest.approx(0.9), "b": pytest.approx(2 * 7 / 40)}
    assert "hard Dice of a patient" in table(scores)
    assert "patient" not in table(scores[:2])
    write_csv(tmp_path / "t.csv", scores)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    columns = "name,hard_dice,soft_dice,hd95,volume_error,patient,voxels,label_voxels,common_voxels"
    assert lines[0].startswith(f"{columns},pynca:sha256:")
    assert lines[1] == "a.nii.gz,0.900000,0.880000,1.000000,0.100000,a,11,9,9,"
    assert ",-0.100000,b," in lines[2]  # a number, not a formula
    assert ",inf,,b," in lines[3]


def test_a_label_that_lies_elsewhere_is_refused() -> None:
    rule = random_rule("conv", 6, 10)
    model = pynca.Model([pynca.Level(rule, 2, 1)], pynca.Preparation((16, 16)))
    image = Volume(np.zeros((9, 8, 5), np.float32), np.eye(4), None, "image.nii")
    assert score_case(model, image, image, "image.nii").name == "image.nii"
    moved = Volume(image.data, np.diag([1.0, 1.0, 2.0, 1.0]), None, "label.nii")
    with pytest.raises(ValueError, match=r"label.nii lies elsewhere than its image"):
        score_case(model, image, moved, "x")
    other = Volume(np.zeros((9, 8, 4), np.float32), np.eye(4), None, "label.nii")
    with pytest.raises(ValueError, match=r"label.nii has shape"):
        score_case(model, image, other, "x")


def test_the_phantom_and_its_picture(tmp_path: Path) -> None:
    image, truth = hippocampus_phantom()
    assert image.shape == truth.shape == SHAPE
    assert 2000 < truth.sum() < 6000  # mm^3, as a real one
    np.testing.assert_array_equal(image, hippocampus_phantom()[0])
    picture = draw_slices(image, {BLUE: truth, ORANGE: truth}, count=4, zoom=3)
    assert picture.shape == (150, 4 * 108 + 3 * 8, 3)
    assert (picture == ORANGE).all(axis=-1).any()
    write_png(tmp_path / "p.png", picture)
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    nothing = draw_slices(image, {ORANGE: np.zeros_like(truth)}, count=4, zoom=1)
    assert not (nothing == ORANGE).all(axis=-1).any()


def test_each_frame_of_a_film_is_scored_by_itself(tmp_path: Path) -> None:
    model, affine = random_model(), np.diag([1.0, 1.5, 2.0, 1.0])
    random = np.random.default_rng(0)
    film, labels = random.random((9, 8, 5, 3)).astype(np.float32), (random.random((9, 8, 5, 3)) < 0.3).astype(np.uint8)
    for name, array in (("film.nii", film), ("labels.nii", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)
    scores = score_frames(model, tmp_path / "film.nii", tmp_path / "labels.nii")
    assert [(score.name, score.patient) for score in scores] == [(f"film.nii, frame {n}", "film.nii") for n in range(3)]
    for n, score in enumerate(scores):
        image, label = (Volume(array[..., n], affine, None, "x") for array in (film, labels))
        assert replace(score, name="", patient="") == replace(score_case(model, image, label, "x"), name="", patient="")
    whole = [Volume(array, affine, None, "the film") for array in (film, labels)]
    with pytest.raises(ValueError, match="the film is a film of 3 frames"):
        score_case(model, *whole, "x")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{'film' if folder == 'images' else 'labels'}.nii").rename(tmp_path / folder / "film.nii")
    model.save(tmp_path / "m.safetensors")
    arguments = ["--images", tmp_path / "images", "--labels", tmp_path / "labels", "-m", tmp_path / "m.safetensors"]
    assert cli.main(["evaluate", *map(str, arguments), "-o", str(tmp_path / "s.csv")]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4
