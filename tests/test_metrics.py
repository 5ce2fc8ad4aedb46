"""Metrics against brute force and by their properties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynca
from pynca import metrics
from pynca.evaluation import Score, patient_dice, score_case, summary, table, write_csv
from pynca.phantom import SHAPE, hippocampus_phantom
from pynca.preview import BLUE, ORANGE, draw_slices, write_png
from pynca.volumes import Volume
from support import random_rule


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


def brute_hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
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
        return np.array(sorted(set(points))) * spacing

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
    assert lines[0] == "name,hard_dice,soft_dice,hd95,volume_error,patient,voxels,label_voxels,common_voxels"
    assert lines[1] == "a.nii.gz,0.900000,0.880000,1.000000,0.100000,a,11,9,9"
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
