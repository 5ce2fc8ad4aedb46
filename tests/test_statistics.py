"""Statistics of labels: the plain definitions, the same digits everywhere, and the CSV whole or not at all."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pynca
from pynca.statistics import cycles, is_ventricle, label_statistics, rounded, write_statistics
from pynca.volumes import Volume

AFFINES = {
    "diagonal": np.diag([-1.0, 1.5, 2.0, 1.0]),
    "oblique": np.array([[0.0, 1.2, -0.3, 5], [0.9, 0, 0.1, -7], [0, 0.4, 2.5, 0], [0, 0, 0, 1]]),
}


def segmentation(
    mask: np.ndarray, probability: np.ndarray | None = None, affine: np.ndarray | None = None, nqm: float | None = None
) -> pynca.Segmentation:
    mask = mask.astype(np.uint8)
    volume = None if affine is None else Volume(mask, affine, None, "the image")
    values = np.where(mask, 0.75, 0.25) if probability is None else probability
    return pynca.Segmentation(mask, values.astype(np.float32), nqm=nqm, labels={3: "spleen"}, volume=volume)


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_statistics_are_what_they_are_called(shape: tuple[int, ...], seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < density) * 3
    probability = rng.random(shape).astype(np.float32)
    affine = AFFINES["oblique"] if len(shape) == 3 else None
    (label,) = label_statistics(segmentation(mask, probability, affine, nqm=0.123456789))
    places = np.argwhere(mask)
    assert (label.value, label.name, label.voxels, label.nqm) == (3, "spleen", len(places), 0.123457)
    if affine is None:
        assert label.volume_ml is None
    else:
        assert label.volume_ml == pytest.approx(len(places) * abs(np.linalg.det(affine)) / 1000, rel=1e-5)
    if len(places) == 0:
        assert label.bounding_box is label.mean_probability is None
    else:
        assert label.bounding_box == [list(ends) for ends in zip(places.min(0), places.max(0), strict=True)]
        expected = math.fsum(probability[mask == 3].tolist()) / len(places)
        assert label.mean_probability == pytest.approx(expected, abs=1e-6)


def test_a_mean_does_not_depend_on_the_order_of_voxels() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random(5000), rng.random(5000) * 1e-7]).astype(np.float32).reshape(100, 100)
    mask = np.full((100, 100), 3)
    means = {
        label_statistics(segmentation(mask, v))[0].mean_probability for v in (values, values[::-1, ::-1], values.T)
    }
    assert len(means) == 1


def test_a_mean_of_sure_voxels_is_one() -> None:
    (label,) = label_statistics(segmentation(np.full((50, 50), 3), np.ones((50, 50))))
    assert label.mean_probability == 1.0


def test_rounding() -> None:
    assert rounded(None) is rounded(math.nan) is rounded(math.inf) is None
    assert [rounded(x) for x in (0.0, 1 / 3, 123456.7, 1.23456789e-9)] == [0.0, 0.333333, 123457.0, 1.23457e-09]


def test_a_table_of_volumes_and_pictures(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 6))
    mask[1:3, 2, 3:6] = 3
    volume = label_statistics(segmentation(mask, affine=AFFINES["diagonal"], nqm=0.25))
    picture = label_statistics(segmentation(mask[1]))
    nothing = label_statistics(segmentation(mask * 0, affine=AFFINES["diagonal"]))
    write_statistics(tmp_path / "s.csv", [("a,b.nii", volume), ("c.png", picture), ("d.nii", nothing), ("e.nii", [])])
    head, *rows = (tmp_path / "s.csv").read_text().splitlines()
    columns, _, seal = head.rpartition(",")
    assert columns == (
        "input,label,name,voxels,volume_ml,i_first,i_last,j_first,j_last,k_first,k_last,mean_probability,nqm"
    )
    assert seal.startswith("pynca:sha256:")
    assert rows == [
        '"a,b.nii",3,spleen,6,0.018,1,2,2,2,3,5,0.75,0.25,',
        "c.png,3,spleen,3,,2,2,3,5,,,0.75,,",
        "d.nii,3,spleen,0,0.0,,,,,,,,,",
    ]
    with open(tmp_path / "s.csv", newline="") as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["a,b.nii", "c.png", "d.nii"]


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("old")
    labels = label_statistics(segmentation(np.full((2, 2), 3)))

    def cut():  # type: ignore[no-untyped-def]
        yield "a.nii", labels
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_statistics(tmp_path / "s.csv", cut(), overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"s.csv": "old"}
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_statistics(tmp_path / "no" / "s.csv", [])


# --- films ----------------------------------------------------------------------------------------------------


def film(sizes: list[int], label: str = "left ventricle", slices: int = 2) -> pynca.Segmentation:
    """A film of so many voxels of 3 mm³ in each frame, each with an NQM of its own."""
    mask = np.zeros((10, 20, slices, len(sizes)), np.uint8)
    for n, size in enumerate(sizes):
        places = np.unravel_index(np.arange(size), (10, 20, slices))
        mask[(*places, n)] = 3
    volume = Volume(mask, AFFINES["diagonal"], None, "the film")
    nqms = tuple(0.1 + n / 100 for n in range(len(sizes)))
    probability = np.where(mask, np.linspace(0.6, 0.9, len(sizes)), 0.25).astype(np.float32)
    return pynca.Segmentation(mask, probability, nqm=max(nqms), labels={3: label}, volume=volume, frame_nqm=nqms)


def test_each_frame_of_a_film_has_its_own_statistics(tmp_path: Path) -> None:
    found = film([100, 40, 0, 60])
    labels = label_statistics(found)
    assert [label.frame for label in labels] == [0, 1, 2, 3]
    assert [label.volume_ml for label in labels] == [0.3, 0.12, 0.0, 0.18]
    assert [label.nqm for label in labels] == [0.1, 0.11, 0.12, 0.13]
    for n, (label, alone) in enumerate(zip(labels, found.frames(), strict=True)):
        (expected,) = label_statistics(alone)
        assert replace(label, frame=None) == expected, n
        assert label.bounding_box is None or len(label.bounding_box) == 3
    write_statistics(tmp_path / "s.csv", [("film.nii", labels), ("scan.nii", label_statistics(found.frames()[0]))])
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["frame"], row["volume_ml"]) for row in rows] == [
        *(("film.nii", str(n), size) for n, size in enumerate(("0.3", "0.12", "0.0", "0.18"))),
        ("scan.nii", "", "0.3"),
    ]


def test_a_film_of_one_frame_is_a_volume() -> None:
    found = film([100])
    assert label_statistics(found) == label_statistics(found.frames()[0])
    assert label_statistics(found)[0].frame is None
    assert cycles(label_statistics(found)) == []


@pytest.mark.parametrize(
    ("sizes", "label", "slices", "fraction", "missing"),
    [
        ([300, 250, 120, 200], "left ventricle", 2, 0.6, ""),
        ([300, 250, 120, 200], "hippocampus", 2, None, ""),
        ([300, 250, 120, 200], "LV myocardium", 2, None, ""),
        ([300, 0, 120, 200], "left ventricle", 2, None, "nothing was found in frame 1"),
        ([150, 50], "left ventricle", 1, None, "all that was found lies in one slice"),
        ([0, 0], "left ventricle", 2, None, "nothing was found in frame 0"),
        ([250, 250], "RV", 2, 0.0, ""),
    ],
)
def test_the_cycle_of_a_heart(sizes: list[int], label: str, slices: int, fraction: float | None, missing: str) -> None:
    (cycle,) = cycles(label_statistics(film(sizes, label, slices)))
    assert (cycle.largest.frame, cycle.smallest.frame) == (sizes.index(max(sizes)), sizes.index(min(sizes)))
    assert (cycle.ejection_fraction, cycle.missing) == (fraction, missing)


def test_which_labels_are_ventricles_of_the_heart() -> None:
    for label in ("left ventricle", "Left_Ventricle", "RV", "LV cavity", "LVC", "heart_ventricle_left", "lv-bp"):
        assert is_ventricle(label), label
    for label in (
        *("left lateral ventricle", "third ventricle", "ventricles", "left atrium", "hippocampus", "", "valve"),
        *("LV myocardium", "left ventricular wall", "LV mass", "RV epicardium", "LV-myo"),
    ):
        assert not is_ventricle(label), label
