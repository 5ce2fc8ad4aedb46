"""Verdicts on segmentations, and how a model comes by its limits."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import pynca
from pynca import calibration, cli, zoo
from pynca.calibration import calibrate
from pynca.cases import find_cases
from pynca.quality import Quality, area_cm2, confidence, judge
from pynca.segmentation import Segmentation
from pynca.tensorfile import read
from pynca.volumes import Volume
from support import random_model

QUALITY = Quality(nqm=0.1, samples=10, confidence=0.9, volume_ml=(1.0, 2.0))
MODEL = replace(random_model(), quality=QUALITY)


def result(voxels: int, probability: float = 1.0, nqm: float | None = None, **options: Any) -> Segmentation:
    """A segmentation of so many voxels of 1 mm."""
    mask = np.zeros((20, 20, 20), np.uint8)
    mask.flat[:voxels] = 1
    lies = Volume(mask, np.eye(4), None, "the scan")
    found = {"nqm": nqm, "volume": lies, "samples": 1 if nqm is None else 10, **options}
    return Segmentation(mask, (mask * probability).astype(np.float32), **found)


# --- verdicts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "reasons"),
    [
        (result(1500), []),
        (result(1500, nqm=0.09), []),
        (result(1500, nqm=0.11), ["the runs disagree: NQM 0.110, expected at most 0.100"]),
        (result(1500, 0.6, nqm=0.09), []),  # several runs say more than the probabilities
        (result(1500, 0.6), ["the outline is unsure: confidence 0.750, expected at least 0.900"]),
        (result(1500, nqm=float("nan")), ["the runs disagree: NQM nan, expected at most 0.100"]),
        (result(0), ["nothing was found, expected at least 0.909 ml"]),
        (result(0, volume=None), ["nothing was found"]),
        (result(920), []),  # a tenth beyond what was seen
        (result(500), ["the volume is unusual: 0.5 ml, expected 0.909 to 2.2 ml"]),
        (result(5000), ["the volume is unusual: 5 ml, expected 0.909 to 2.2 ml"]),
        (result(5000, volume=None), []),  # nobody knows how large its voxels are
        (result(500, 0.6), ["the outline is unsure", "the volume is unusual"]),
    ],
)
def test_verdicts_and_reasons(segmentation: Segmentation, reasons: list[str]) -> None:
    verdict, said = judge(segmentation, MODEL)
    assert verdict == ("review" if reasons else "ok")
    assert len(said) == len(reasons)
    assert all(text.startswith(reason) for text, reason in zip(said, reasons, strict=True))


def film(*frames: Segmentation) -> Segmentation:
    mask, probability = (np.stack([getattr(f, kind) for f in frames], -1) for kind in ("mask", "probability"))
    nqms = tuple(f.nqm for f in frames if f.nqm is not None)
    whole = {"nqm": max(nqms, default=None), "samples": frames[0].samples, "frame_nqm": nqms}
    return Segmentation(mask, probability, volume=Volume(mask, np.eye(4), None, "the film"), **whole)


def test_each_frame_of_a_film_is_judged_by_itself() -> None:
    assert judge(film(result(1500), result(1600)), MODEL) == ("ok", [])  # 3.1 ml together
    assert judge(film(result(1500, nqm=0.05), result(1500, nqm=0.09)), MODEL) == ("ok", [])
    assert judge(film(result(500), result(600)), MODEL) == (  # together they would pass
        "review",
        [f"frame {n}: the volume is unusual: 0.{5 + n} ml, expected 0.909 to 2.2 ml" for n in range(2)],
    )
    assert judge(film(result(1500), result(0), result(1500, 0.6)), MODEL) == (
        "review",
        [
            "frame 1: nothing was found, expected at least 0.909 ml",
            "frame 2: the outline is unsure: confidence 0.750, expected at least 0.900",
        ],
    )
    assert judge(film(*[result(1500, nqm=q) for q in (0.02, 0.11, 0.03)]), MODEL) == (
        "review",
        ["frame 1: the runs disagree: NQM 0.110, expected at most 0.100"],
    )
    unknown = replace(MODEL, quality=replace(QUALITY, volume_ml=None))
    assert judge(film(result(1500), result(0)), unknown) == (None, [])
    assert judge(film(result(500)), MODEL)[1] == judge(result(500), MODEL)[1]


def test_without_calibration_there_is_no_verdict() -> None:
    assert judge(result(0), replace(MODEL, quality=None)) == (None, [])


def test_an_empty_mask_can_be_right() -> None:
    model = replace(MODEL, quality=replace(QUALITY, volume_ml=(0.0, 2.0)))
    assert judge(result(0), model) == ("ok", [])
    assert judge(result(0), replace(MODEL, quality=replace(QUALITY, volume_ml=None))) == (None, [])
    empty = np.zeros((8, 8), np.uint8)
    assert judge(Segmentation(empty, empty.astype(np.float32)), MODEL) == (None, [])


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (500, None),
        (460, None),  # a tenth beyond what was seen
        (100, "the area is unusual: 1 cm², expected 4.55 to 11 cm²"),
        (0, "nothing was found, expected at least 4.55 cm²"),
    ],
)
def test_a_single_slice_is_judged_by_its_area(pixels: int, reason: str | None) -> None:
    model = replace(MODEL, quality=replace(QUALITY, volume_ml=None, area_cm2=(5.0, 10.0)))
    mask = np.zeros((40, 40), np.uint8)
    mask.flat[:pixels] = 1
    picture = Volume(mask, None, None, "a picture", spacing=(1.0, 1.0), picture=True)
    series = Volume(mask[:, None], np.diag([1.0, 7.0, 1.0, 1.0]), None, "a series of one slice")
    for volume in (picture, series):
        found = Segmentation(volume.data, volume.data.astype(np.float32), volume=volume)
        assert judge(found, model) == ("review" if reason else "ok", [reason] if reason else [])


def test_an_area_is_that_of_the_plane() -> None:
    line = np.ones((1, 30), np.uint8)  # two axes, whatever their lengths
    assert area_cm2(line, Volume(line, None, None, "x", spacing=(2.0, 1.0), picture=True)) == pytest.approx(0.6)
    affine = np.array([[1.0, 0.5, 0, 0], [0, 1.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])  # axes at another angle
    plane = np.ones((10, 20, 1), np.uint8)
    assert area_cm2(plane, Volume(plane, affine, None, "x")) == pytest.approx(2.0)
    assert area_cm2(plane, Volume(plane, None, None, "x")) is None


def test_calibration_on_pictures_learns_areas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra image")
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for n in range(4):
        label = np.zeros((16, 16), np.uint8)
        label[2 : 6 + n, 3:9] = 1
        image.fromarray(random.integers(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "images" / f"p_{n}.png")
        indexed = image.fromarray(label)
        indexed.putpalette([0, 0, 0, 255, 176, 0])
        indexed.save(tmp_path / "labels" / f"p_{n}.png")
    cases = find_cases(tmp_path / "images", tmp_path / "labels").cases
    model = random_model(orientation="display", spacing=(2.0, 2.0, 8.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality = calibrate(model, cases, samples=2, dice=0.3).quality
    assert quality is not None
    assert quality.volume_ml is None
    assert quality.area_cm2 == (0.96, 1.68)  # 24 to 42 pixels of 4 mm²
    replace(model, quality=quality).save(tmp_path / "m.safetensors")
    assert pynca.load_model(tmp_path / "m.safetensors").quality == quality
    assert cli.main(["info", str(tmp_path / "m.safetensors")]) == 0
    assert "in a slice outside 0.873-1.85 cm²" in capsys.readouterr().out


def test_few_runs_show_less_of_the_deviation() -> None:
    assert QUALITY.nqm_of(10) == pytest.approx(0.1)
    assert QUALITY.nqm_of(2) == pytest.approx(0.1 * np.sqrt(0.5 / 0.9))
    assert judge(result(1500, nqm=0.09, samples=2), MODEL)[0] == "review"


def test_the_scaled_limit_fits_real_ensembles() -> None:
    image = np.random.default_rng(0).random((16, 16, 12))
    found = {n: pynca.predict(image, MODEL, samples=n).nqm for n in (5, 24)}
    assert found[5] is not None
    assert found[24] is not None
    assert found[5] / found[24] == pytest.approx(QUALITY.nqm_of(5) / QUALITY.nqm_of(24), rel=0.08)


def test_a_slice_is_judged_like_a_volume() -> None:
    segmentation = pynca.predict(np.random.default_rng(0).random((16, 16)), MODEL, samples=3)
    verdict, reasons = judge(segmentation, MODEL)
    assert verdict == "review"
    assert len(reasons) == 1


def test_confidence_is_the_dice_that_the_model_expects() -> None:
    probability = np.array([0.9, 0.6, 0.4, 0.1], np.float32)
    mask = np.array([1, 1, 0, 0], np.uint8)
    assert confidence(probability, mask) == pytest.approx(2 * 1.5 / (2.0 + 2))
    assert confidence(np.array([1, 0], np.float32), np.array([1, 0], np.uint8)) == 1
    assert confidence(np.zeros(3, np.float32), np.zeros(3, np.uint8)) == 0


def test_what_the_model_was_not_made_for_is_reviewed(data: Path) -> None:
    model = pynca.load_model("hippocampus")
    image = nibabel.load(data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    upside_down = np.asarray(image.dataobj)[..., ::-1]  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="the image does not look like"):
        segmentation = pynca.predict(upside_down, model)
    assert judge(segmentation, model) == ("review", ["the model was not made for this image"])


# --- calibration ---------------------------------------------------------------------------------------------


@pytest.fixture
def cases(tmp_path: Path, data: Path) -> Path:
    """Four hippocampi that the bundled model was trained on, and one that it was not."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for n in (17, 33, 36, 41, 1):
            name = f"hippocampus_{n:03}.nii.gz"
            image = nibabel.load(data / "hippocampus" / kind / name).slicer[:, :, 8:28:4]  # type: ignore[attr-defined]
            nibabel.save(image, tmp_path / kind / name)
    (tmp_path / "held.txt").write_text("hippocampus_001.nii.gz\n")
    return tmp_path


def test_calibrate_writes_what_it_found(
    cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cases)
    options = [
        "--images",
        "images",
        "--labels",
        "labels",
        "--leave-out",
        "held.txt",
        "--samples",
        "3",
        "--at-most",
        "2",
    ]
    assert cli.main(["calibrate", "hippocampus", *options, "-o", "mine.safetensors"]) == 0
    said = capsys.readouterr().out
    model, before = pynca.load_model("mine.safetensors"), pynca.load_model("hippocampus")
    assert model.expected is not None
    assert model.expected.images == 4
    assert model.quality is not None
    assert model.quality.samples == 3
    assert f"review above NQM {model.quality.nqm:.4f} (3 runs)" in said
    assert model.quality.calibrated_on in said
    assert "2 of them segmented" in said
    ours, theirs = read(cases / "mine.safetensors")[0], read(zoo.find("hippocampus") or Path())[0]
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    assert replace(model, expected=None, quality=None).card == before.card

    first = (cases / "mine.safetensors").read_bytes()
    assert cli.main(["calibrate", "mine.safetensors", *options, "-q", "--threads", "1"]) == 0
    assert (cases / "mine.safetensors").read_bytes() == first
    assert capsys.readouterr().out == ""


def test_cases_that_are_left_out_have_no_say(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model expects, and when it doubts, is the same as if they were not there."""
    monkeypatch.chdir(cases)
    for kind in ("images", "labels"):  # larger than all others
        image = nibabel.load(cases / kind / "hippocampus_001.nii.gz")
        voxels = np.asarray(image.dataobj).repeat(2, 0)  # type: ignore[attr-defined]
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), cases / kind / "hippocampus_001.nii.gz")  # type: ignore[attr-defined]
    command = ["calibrate", "hippocampus", "--images", "images", "--labels", "labels", "--samples", "2", "-q"]
    command += ["--at-most", "2", "-o"]
    assert cli.main([*command, "without.safetensors", "--leave-out", "held.txt"]) == 0
    assert cli.main([*command, "with.safetensors"]) == 0
    for kind in ("images", "labels"):
        (cases / kind / "hippocampus_001.nii.gz").unlink()
    assert cli.main([*command, "gone.safetensors"]) == 0
    ours, theirs, other = ((cases / f"{n}.safetensors").read_bytes() for n in ("without", "gone", "with"))
    assert ours == theirs
    assert ours != other


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["hippocampus"], 2, "hippocampus: the name of a model file must end in .safetensors; -o names another"),
        (["hippocampus", "-o", "a.safetensors", "--samples", "1"], 2, "--samples is 1"),
        (["hippocampus", "-o", "a.safetensors", "--dice", "1"], 2, "--dice is 1; it must be a number between 0 and 1"),
        (["hippocampus", "-o", "a.safetensors", "--leave-out", "no.txt"], 2, "no.txt: No such file"),
        (["no.safetensors"], 2, "no.safetensors does not exist"),
        (["hippocampus", "-o", "a.safetensors", "--dice", "1e-9", "--at-most", "1", "--samples", "2"], 1, "none had"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated(
    cases: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(cases)
    assert cli.main(["calibrate", *arguments, "--images", "images", "--labels", "labels"]) == code
    assert text in capsys.readouterr().err
    assert not (cases / "a.safetensors").exists()


def test_one_case_is_too_few(cases: Path) -> None:
    found = find_cases(cases / "images", cases / "labels").cases
    with pytest.raises(ValueError, match="there are 1 cases"):
        calibrate(pynca.load_model("hippocampus"), found[:1])


@pytest.mark.parametrize(
    ("scores", "bad", "limit"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 2.5),
        ([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], 2.5),
        ([1, 5, np.inf], [0, 1, 1], 3),
        ([1, 2, np.inf], [0, 0, 1], 2),
        ([1, 1, 1], [0, 1, 0], 1),
    ],
)
def test_the_limit_that_separates_best(scores: list[float], bad: list[int], limit: float) -> None:
    assert calibration._limit(np.array(scores, float), np.array(bad, bool)) == limit


@pytest.mark.parametrize(("others", "limit"), [(0.0, 4.5), (0.2, 3.5), (0.4, 2.5), (0.99, 1.5)])
def test_the_limit_that_marks_some_in_vain(others: float, limit: float) -> None:
    scores, bad = np.array([1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 2.0]), np.array([0, 0, 0, 0, 0, 1, 1], bool)
    assert calibration._limit(scores, bad, others) == limit


# --- on real files -------------------------------------------------------------------------------------------


def test_the_bundled_model_tells_good_from_ruined(data: Path) -> None:
    model = pynca.load_model("hippocampus")
    image = nibabel.load(data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    voxels, random = np.asarray(image.dataobj, np.float32), np.random.default_rng(0)  # type: ignore[attr-defined]
    noisy = voxels + 0.3 * np.ptp(voxels) * random.standard_normal(voxels.shape).astype(np.float32)
    for samples in (1, 3):
        assert judge(pynca.predict(image, model, samples=samples), model) == ("ok", [])
        assert judge(pynca.predict(noisy, model, samples=samples), model)[0] == "review"


def test_verdicts_are_printed_and_kept(
    cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cases)
    assert cli.main(["segment", "images", "masks", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    manifest = json.loads((cases / "masks" / "manifest.json").read_text())
    assert [line["quality"] for line in lines] == [case["quality"] for case in manifest["cases"]]
    assert {line["quality"] for line in lines} <= {"ok", "review"}
    assert all(bool(line["reasons"]) == (line["quality"] == "review") for line in lines)
    assert manifest["summary"]["review"] == sum(line["quality"] == "review" for line in lines)


# --- in the model file ---------------------------------------------------------------------------------------


def test_it_is_saved_loaded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(MODEL, quality=replace(QUALITY, calibrated_on="three blobs")).save(tmp_path / "a.safetensors")
    assert pynca.load_model(tmp_path / "a.safetensors").quality == replace(QUALITY, calibrated_on="three blobs")
    assert cli.main(["info", str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "review above NQM 0.1 (10 runs), under confidence 0.9 (one run), outside 0.909-2.2 ml" in said
    assert "calibrated on three blobs" in said
    assert "expects        not stated" in said


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"nqm": 0}, "above 0"),
        ({"nqm": float("nan")}, "above 0"),
        ({"samples": 1}, "2 or more"),
        ({"confidence": 1.1}, "from 0 to 1"),
        ({"volume_ml": (2, 1)}, "least and largest volume"),
        ({"area_cm2": (2, 1)}, "least and largest area"),
        ({"volume_ml": (-1, 1)}, "least and largest volume"),
        ({"calibrated_on": 3}, "must be text"),
    ],
)
def test_what_no_limit_can_be(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(QUALITY, **wrong)


@pytest.mark.parametrize("value", ["3", '{"nqm": 0.1}', '{"nqm": 0.1, "samples": 10, "confidence": "high"}', "{"])
def test_damaged_metadata_is_refused(tmp_path: Path, value: str) -> None:
    from pynca import tensorfile

    path = tmp_path / "a.safetensors"
    MODEL.save(path)
    tensors, metadata = tensorfile.read(path)
    tensorfile.write(path, tensors, {**metadata, "quality": value})
    with pytest.raises(ValueError, match="is not a valid model"):
        pynca.load_model(path)
