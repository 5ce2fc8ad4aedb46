"""What a model expects, and what it says of inputs that it was not made for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynca
from pynca import cli
from pynca.inputs import Expected, check_input, learn_expected, thumbnail
from pynca.preprocessing import Preparation
from pynca.volumes import Orientation, Volume, read_volume
from support import random_model

PREPARATION = Preparation((16, 16))
SHAPE = (20, 24, 18)


def scene(seed: int, shape: tuple[int, ...] = SHAPE, noise: float = 0.3) -> np.ndarray:
    """The same smooth scene, whatever its size, with something of its own."""
    axes = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    same = sum(np.sin((n + 2) * x + n) for n, x in enumerate(axes)) + axes[0] * 2
    return (same + noise * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def volume(data: Any, *spacing: float, name: str = "the scan") -> Volume:
    return Volume(np.asarray(data), np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0]), None, name)


@pytest.fixture(scope="module")
def model() -> pynca.Model:
    """A model that learnt from ten scenes of 20 to 22 mm."""
    learnt = learn_expected([volume(scene(n, (20 + n % 3, 24, 18))) for n in range(10)], PREPARATION)
    return replace(random_model(), expected=learnt, card=pynca.model.Card(name="scenes"))


# --- what is learnt ------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_images(model: pynca.Model) -> None:
    expected = model.expected
    assert expected is not None
    assert expected.spacing == ((1, 1), (1, 1), (1, 1))
    assert expected.extent == ((20, 22), (24, 24), (18, 18))
    assert expected.images == 10
    assert expected.likeness > 0.9
    assert expected.least_likeness < expected.likeness


def test_axes_are_those_of_the_model() -> None:
    images = [
        Volume(scene(n), np.array([[0, 0, 3.0, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]), None, "")
        for n in (0, 1)
    ]
    learnt = learn_expected(images, PREPARATION)
    assert learnt is not None
    assert [low for low, _ in learnt.spacing] == [3, 1, 2]
    assert [low for low, _ in learnt.extent] == [3 * 18, 20, 2 * 24]


def test_too_few_or_unlike_images_teach_nothing() -> None:
    assert learn_expected([volume(scene(0))], PREPARATION) is None
    picture = Volume(scene(0)[..., 0], None, None, "", spacing=(1, 1))
    assert learn_expected([volume(scene(0)), picture], PREPARATION) is None


def test_images_that_are_all_different_forbid_nothing() -> None:
    random = np.random.default_rng(0)
    learnt = learn_expected([volume(random.random(SHAPE)) for _ in range(8)], PREPARATION)
    assert learnt is not None
    model = replace(random_model(), expected=learnt)
    assert not check_input(volume(random.random(SHAPE)), model)


def test_slices_are_learnt_and_checked_like_volumes() -> None:
    slices = [Volume(scene(n)[..., 5], None, None, "a slice", spacing=(1.5, 1.5)) for n in range(4)]
    learnt = learn_expected(slices, PREPARATION)
    assert learnt is not None
    assert learnt.spacing == ((1.5, 1.5), (1.5, 1.5))
    model = replace(random_model(), expected=learnt)
    assert not check_input(replace(slices[0], data=scene(9)[..., 5]), model)
    assert len(check_input(replace(slices[0], data=scene(9)[::-1, :, 5]), model)) == 1
    assert len(check_input(replace(slices[0], spacing=(9.0, 9.0)), model)) == 2
    whole = Volume(scene(0), np.diag([1.5, 1.5, 4.0, 1.0]), None, "a volume")  # its middle slice stands for it
    assert not check_input(replace(whole, data=np.stack([scene(0)[..., 5]] * 7, axis=2)), model)
    (problem,) = check_input(replace(whole, data=scene(0)[:, ::-1, ::-1]), model)
    assert "does not look like" in problem
    (problem,) = check_input(replace(whole, data=scene(0)[:, :9, 4:7]), model)
    assert "covers 30 x 13.5 mm" in problem


# --- what is checked -----------------------------------------------------------------------------------------


def test_what_it_was_made_for_passes(model: pynca.Model) -> None:
    for seed in range(10, 20):
        assert check_input(volume(scene(seed)), model) == []


@settings(max_examples=30, deadline=None)
@given(
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    unit=st.floats(1e-3, 1e6),
    offset=st.floats(-1e3, 1e3),
)
def test_neither_orientation_nor_unit_matter(
    axes: list[int], flips: tuple[int, int, int], unit: float, offset: float
) -> None:
    learnt = learn_expected([volume(scene(n)) for n in range(4)], PREPARATION)
    model = replace(random_model(), expected=learnt)
    way = Orientation(tuple(axes), flips)  # type: ignore[arg-type]
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, axis] = np.eye(3)[axes[axis]] * flips[axis]
    data = way.undo(scene(9)).astype(np.float64) * unit + offset * unit
    assert check_input(Volume(data, affine, None, "turned"), model) == []


@pytest.mark.parametrize(
    ("image", "sentences"),
    [
        (volume(scene(0), 6, 1, 1), ["has voxels of 6 x 1 x 1 mm", "covers 120 x 24 x 18 mm"]),
        (volume(scene(0, (60, 24, 18))), ["covers 60 x 24 x 18 mm (axes towards R, A, S); scenes learnt on 20-22 x"]),
        (volume(scene(0)[..., :6]), ["covers 20 x 24 x 6 mm"]),
        (volume(-scene(0)), ["does not look like what scenes learnt on (likeness -"]),
        (volume(scene(0)[::-1]), ["its axes point elsewhere"]),
        (volume(np.full(SHAPE, 7)), ["it is 7 everywhere"]),
        (volume(np.where(scene(0) > 1.5, -1000, 60).astype(np.int16)), ["-1000 to 60, seem to be the Hounsfield"]),
    ],
)  # fmt: skip
def test_every_sentence_says_what_was_found_and_expected(
    model: pynca.Model, image: Volume, sentences: list[str]
) -> None:
    said = check_input(image, model)
    for sentence in sentences:
        assert any(sentence in text for text in said), said
    assert all(text.startswith("the scan ") and "\n" not in text for text in said)


def test_resolution_may_differ(model: pynca.Model) -> None:
    coarse, fine = scene(0)[1::3, 1::3, 1::3], scene(0).repeat(2, axis=0).repeat(2, axis=1)
    assert check_input(volume(coarse, 3, 3, 3), model) == []
    assert check_input(volume(fine, 0.5, 0.5, 1), model) == []


def test_without_geometry_only_the_content_counts(model: pynca.Model) -> None:
    bare = Volume(scene(0, (50, 60, 45)), None, None, "the image")
    assert check_input(bare, model) == []
    assert len(check_input(replace(bare, data=bare.data[:, ::-1]), model)) == 1


def test_single_slices_and_models_that_know_nothing_pass(model: pynca.Model) -> None:
    assert check_input(volume(scene(0)[..., :1]), model) == []
    assert check_input(Volume(scene(0)[..., 0], None, None, "", picture=True), model) == []
    large = check_input(Volume(scene(0)[..., 0], None, None, "a picture", spacing=(4.9, 4.9), picture=True), model)
    assert len(large) == 1  # not the pixels, but what they cover
    assert large[0].startswith("a picture covers ")
    assert check_input(volume(-scene(0), 9, 9, 9), replace(model, expected=None)) == []


def test_of_a_film_the_first_volume_counts(model: pynca.Model) -> None:
    film = volume(np.stack([scene(0), -scene(0)], axis=-1))
    assert check_input(film, model) == []
    assert check_input(replace(film, data=film.data[..., ::-1]), model)


@pytest.mark.parametrize("shape", [(1, 2, 3), (64, 65, 200), (5, 5), (300, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_thumbnails_of_all_shapes(shape: tuple[int, ...], dtype: type) -> None:
    data = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    small = thumbnail(data)
    assert small.shape == (4,) * len(shape)
    assert small.mean() == pytest.approx(0, abs=1e-12)
    assert (small**2).sum() == pytest.approx(1)
    assert not thumbnail(np.full(shape, 1e30)).any()


# --- what happens then ---------------------------------------------------------------------------------------


def test_predict_warns_and_strictly_refuses(model: pynca.Model) -> None:
    with pytest.warns(UserWarning, match="the image does not look like what scenes learnt on"):
        pynca.predict(-scene(0), model)
    with pytest.raises(
        ValueError, match=r"learnt on .*; bundled models are cardiac-lv, hippocampus; strict=False goes on"
    ):
        pynca.segment(-scene(0), model, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pynca.segment(scene(0), model, strict=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> Path:
    """A working folder with a real hippocampus, upside down, and what the header says of it."""
    good = nibabel.load(data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    nibabel.save(good, tmp_path / "good.nii.gz")
    wrong = nibabel.Nifti1Image(np.asarray(good.dataobj)[:, :, ::-1], good.affine, good.header)  # type: ignore[attr-defined]
    nibabel.save(wrong, tmp_path / "wrong.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("choice", [[], ["-m", "hippocampus"], ["-m", "mine.safetensors"]])
@pytest.mark.parametrize("command", ["segment", "animate"])
def test_every_model_refuses_unless_forced(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, choice: list[str]
) -> None:
    pynca.load_model("hippocampus").save(folder / "mine.safetensors")
    ending = "gif" if command == "animate" else "nii.gz"
    if command == "animate":
        pytest.importorskip("PIL.Image", reason="needs the extra image")
    assert cli.main([command, "good.nii.gz", f"mask.{ending}", *choice]) == 0
    capsys.readouterr()
    assert cli.main([command, "wrong.nii.gz", f"no.{ending}", *choice]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pynca: wrong.nii.gz does not look like what hippocampus learnt on")
    assert "bundled models are cardiac-lv, hippocampus" in said
    assert said.endswith("--force goes on anyway\n")
    assert "strict" not in said
    assert said.count("\n") == 1
    assert not (folder / f"no.{ending}").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([command, "wrong.nii.gz", f"yes.{ending}", *choice, "--force"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("pynca: warning: wrong.nii.gz does not look like")
    assert command == "animate" or "review: " in out
    assert (folder / f"yes.{ending}").exists()


def test_slicer_refuses_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pynca.plugins import slicer

    assert slicer.main(["wrong.nii.gz", "no.nii.gz"]) == 1
    assert "'Any volume' (--force yes) goes on anyway" in capsys.readouterr().err
    assert not (folder / "no.nii.gz").exists()
    with pytest.warns(UserWarning, match="does not look like"):
        assert slicer.main(["wrong.nii.gz", "yes.nii.gz", "--force", "yes"]) == 0
    assert (folder / "yes.nii.gz").exists()


def test_an_estimate_warns_by_what_the_header_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((250, 250, 170), np.uint8), np.eye(4)), folder / "head.nii.gz")
    for name, warned in (("wrong.nii.gz", False), ("head.nii.gz", True)):
        assert cli.main(["estimate", name]) == 0
        err = capsys.readouterr().err
        assert err.startswith(f"pynca: warning: {name} covers 250 x 250 x 170 mm") is warned
        assert ("asks for --force" in err) is warned


def test_a_refused_case_does_not_stop_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scans").mkdir()
    for name in ("good.nii.gz", "wrong.nii.gz"):
        (folder / name).rename(folder / "scans" / name)
    assert cli.main(["segment", "scans", "masks"]) == 1
    assert (folder / "masks" / "good.nii.gz").exists()
    assert not (folder / "masks" / "wrong.nii.gz").exists()


# --- the bundled model and real files ------------------------------------------------------------------------


def test_no_held_back_hippocampus_is_refused(data: Path) -> None:
    model, folder = pynca.load_model("hippocampus"), data / "hippocampus" / "images"
    paths = [path for path in sorted(folder.glob("*.nii.gz")) if int(path.name[12:15]) // 10 % 5 == 0]
    assert len(paths) == 55
    assert not [path.name for path in paths if check_input(read_volume(path), model)]


@pytest.mark.parametrize("series", ["study1", "study2"])
def test_the_same_as_dicom_is_not_refused(data: Path, series: str) -> None:
    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    assert check_input(read_volume(data / "dicom" / series), pynca.load_model("hippocampus")) == []


@pytest.mark.parametrize(("name", "hint"), [("ct", "Hounsfield units of a CT"), ("mr", "another region")])
def test_an_abdomen_is_refused(data: Path, name: str, hint: str) -> None:
    image = read_volume(data / "volumes" / f"example_{name}_sm.nii.gz")
    said = check_input(image, pynca.load_model("hippocampus"))
    assert len(said) == 2
    assert "covers" in said[0]
    assert hint in said[1]


# --- in the model file ---------------------------------------------------------------------------------------


def test_it_is_saved_and_loaded(tmp_path: Path, model: pynca.Model) -> None:
    model.save(tmp_path / "a.safetensors")
    assert pynca.load_model(tmp_path / "a.safetensors").expected == model.expected
    replace(model, expected=None).save(tmp_path / "b.safetensors")
    assert pynca.load_model(tmp_path / "b.safetensors").expected is None


GOOD: dict[str, Any] = {
    "spacing": [(1, 1)] * 2,
    "extent": [(10, 12)] * 2,
    "thumbnail": [0.0] * 16,
    "likeness": 0.5,
    "images": 3,
}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"spacing": [(1, 1)]}, "of 2 or 3 axes"),
        ({"spacing": [(2, 1)] * 2}, "least and largest mm"),
        ({"spacing": [(0, 1)] * 2}, "above 0"),
        ({"extent": [(1, 1)] * 3}, "spacing is of 2 axes and extent of 3"),
        ({"extent": [(1, float("nan"))] * 2}, "least and largest mm"),
        ({"thumbnail": [0.0] * 15}, "must be 16 numbers"),
        ({"thumbnail": ["0"] * 16}, "must be 16 numbers"),
        ({"likeness": 1.5}, "from -1 to 1"),
        ({"images": 0}, "whole number above 0"),
        ({"images": True}, "whole number above 0"),
    ],
)
def test_what_cannot_be_expected(wrong: dict[str, Any], text: str) -> None:
    Expected(**GOOD)
    with pytest.raises(ValueError, match=text):
        Expected(**{**GOOD, **wrong})
