"""`pynca train`, `evaluate` and `demo` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import pynca
from pynca import cli, tensorfile, training
from pynca.cases import find_cases

TINY = "--channels 6 --hidden 12 --steps 4 4 --size 16 16 --patch 8 8 --batch 4 --rate 0.004".split()  # noqa: SIM905


def pynca_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pynca", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Six small volumes in which the label is a bright disc."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for n in range(6):
        centre = random.uniform(5, 11, (3, 2, 1, 1))
        label = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 10
        image = 100 + 500 * label + random.normal(scale=30, size=label.shape)
        for kind, data in (("images", image.astype(np.float32)), ("labels", label.astype(np.uint8))):
            nib.save(nib.Nifti1Image(np.moveaxis(data, 0, 2), np.eye(4)), tmp_path / kind / f"case_{n}.nii.gz")
    return tmp_path


def test_train_then_evaluate(cases: Path) -> None:
    options = ["--images", "images", "--labels", "labels"]
    result = pynca_command(
        cases, "train", *options, "-o", "disc.safetensors", *TINY, "--epochs", "8", "--label", "disc"
    )
    assert result.returncode == 0, result.stderr
    assert "validation Dice" in result.stdout
    assert "Traceback" not in result.stderr
    model = pynca.load_model(cases / "disc.safetensors")
    assert model.labels == {1: "disc"}
    assert "1 validation patients" in model.card.accuracy
    log = [json.loads(line) for line in (cases / "disc.training" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["batch"] == 30  # 8 epochs of 15 slices, 4 a batch

    again = pynca_command(cases, "train", *options, "-o", "disc.safetensors", *TINY)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "disc.training holds another training" in again.stderr

    result = pynca_command(cases, "evaluate", *options, "-m", "disc.safetensors", "-o", "scores.csv")
    assert result.returncode == 0, result.stderr
    assert "hard Dice" in result.stdout
    assert "95 % interval" in result.stdout
    with open(cases / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"case_{n}.nii.gz" for n in range(6)]
    mask = pynca.segment(cases / "images" / "case_0.nii.gz", model) > 0
    label = nib.load(cases / "labels" / "case_0.nii.gz").get_fdata() > 0
    dice = 2 * (mask & label).sum() / (mask.sum() + label.sum())
    assert float(rows[0]["hard_dice"]) == pytest.approx(dice, abs=1e-6)


def test_fit_from_python_is_what_the_command_does(cases: Path) -> None:
    options = ["--images", "images", "--labels", "labels", *TINY, "--epochs", "4", "--label", "disc"]
    assert pynca_command(cases, "train", *options, "-o", "disc.safetensors").returncode == 0
    recipe = training.Recipe(channels=6, hidden=12, steps=(4, 4), patch=(8, 8), batch=4, rate=0.004)
    outcome = training.fit(
        cases / "images",
        cases / "labels",
        cases / "state",
        recipe=recipe,
        preparation=pynca.Preparation((16, 16)),
        label="disc",
        epochs=4,
    )
    theirs = pynca.load_model(cases / "disc.safetensors")
    assert outcome.model.labels == theirs.labels
    for mine, other in zip(outcome.model.levels, theirs.levels, strict=True):
        for name, weight in mine.rule.weights.items():
            np.testing.assert_array_equal(weight, other.rule.weights[name])


def test_without_validation_no_dice_is_told(cases: Path) -> None:
    options = ["--images", "images", "--labels", "labels", *TINY, "--validation", "none", "--epochs", "2"]
    ran = pynca_command(cases, "train", *options, "-o", "m.safetensors")
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("batch ")]
    assert lines
    assert all("validation Dice not measured" in line for line in lines)
    assert "Dice" not in ran.stderr
    log = (cases / "m.training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["score"] for line in log} == {None}


def test_an_interrupted_training_ends_with_the_same_model(cases: Path) -> None:
    options = ["--images", "images", "--labels", "labels", *TINY, "--validation", "none", "--epochs", "10", "-q"]
    assert pynca_command(cases, "train", *options, "-o", "whole.safetensors").returncode == 0
    code = """
import sys
from pynca import cli
from pynca.training import train as module
original = module.train
def stopping(*arguments, report, **options):
    def report_and_stop(entry):
        report(entry)
        if entry["batch"] >= 12:
            raise KeyboardInterrupt
    return original(*arguments, report=report_and_stop, **options)
module.train = stopping
sys.exit(cli.main(sys.argv[1:]))
"""
    arguments = ["train", *options, "-o", "parts.safetensors"]
    stopped = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cases, capture_output=True, text=True)
    assert (stopped.returncode, stopped.stderr) == (130, "pynca: interrupted\n")
    assert not (cases / "parts.safetensors").exists()
    resumed = pynca_command(cases, *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole, parts = (pynca.load_model(cases / f"{name}.safetensors") for name in ("whole", "parts"))
    for a, b in zip(whole.levels, parts.levels, strict=True):
        for name, weight in a.rule.weights.items():
            np.testing.assert_array_equal(weight, b.rule.weights[name])


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("moment", "is no state of a training: it lacks second.1.fc0.bias; start anew"),
        ("number", "is no state of a training: seconds is 1000"),
        ("recipe", "has a recipe that cannot be right: batches is 1000"),
        ("cut", "state.safetensors: "),
        ("images", "was written with other images, labels, validation cases or preparation"),
        ("size", "was written with other images, labels, validation cases or preparation"),
    ],
)
def test_a_state_that_cannot_be_gone_on_from(
    cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, sentence: str
) -> None:
    monkeypatch.chdir(cases)
    options = ["--images", "images", "--labels", "labels", *TINY, "--epochs", "2", "-q", "-o", "disc.safetensors"]
    assert cli.main(["train", *options]) == 0
    Path("disc.safetensors").unlink()
    path = Path("disc.training") / "state.safetensors"
    tensors, metadata = tensorfile.read(path)
    large = "1" + "0" * 400
    if how == "moment":
        del tensors["second.1.fc0.bias"]
    elif how == "number":
        scalars = json.dumps(json.loads(metadata["scalars"]) | {"seconds": "here"}).replace('"here"', large)
        metadata["scalars"] = scalars
    elif how == "recipe":
        metadata["recipe"] = json.dumps(json.loads(metadata["recipe"]) | {"batches": "here"}).replace('"here"', large)
    elif how == "images":
        image = Path("images") / "case_0.nii.gz"
        image.write_bytes((image.parent / "case_1.nii.gz").read_bytes())
    tensorfile.write(path, tensors, metadata)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    before = sorted(cases.rglob("*"))
    size = ["--size", "32", "32"] if how == "size" else []
    assert cli.main(["train", *options, *size, "--resume"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert sorted(cases.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train --images images -o m.safetensors", "give --images and --labels, or --dataset"),
        ("train --images images --labels labels -o m.pth", "m.pth: the name of a model file must end in .safetensors"),
        ("train --images images --labels no -o m.safetensors", "no is not a folder"),
        ("train --dataset images -o m.safetensors", "dataset.json does not exist"),
        ("train --images images --labels labels -o m.safetensors --resume", "holds no training to go on with"),
        ("train --images images --labels labels -o m.safetensors --validation 3", "validation is 3"),
        ("train --images images --labels labels -o m.safetensors --validation x.txt", "x.txt"),
        ("train --images images --labels labels -o m.safetensors --loss hinge", "loss is 'hinge'"),
        ("train --images images --labels labels -o m.safetensors --fall steps", "fall is 'steps'"),
        ("train --images images --labels labels -o m.safetensors --optimizer sgd", "must be one of adam, muon"),
        ("train --images images --labels labels -o m.safetensors --patch 9 9", "patch is (9, 9)"),
        ("train --images images --labels labels -o m.safetensors --patch 96 96", "patch is (96, 96)"),
        ("train --images images --labels labels -o m.safetensors --channels 1", "channels is 1"),
        ("train --images images --labels labels -o m.safetensors --rate 0", "rate is 0"),
        ("train --images images --labels labels -o m.safetensors --epochs 0", "--epochs is 0"),
        ("train --images images --labels labels -o m.safetensors --orientation XYZ", "orientation is 'XYZ'"),
        ("evaluate --images images --labels labels -m no.safetensors", "no.safetensors does not exist"),
        ("evaluate --images images --labels labels --cases no.txt", "no.txt"),
        ("evaluate --images no --labels labels", "no is not a folder"),
    ],
)
def test_wrong_use(cases: Path, arguments: str, sentence: str) -> None:
    before = sorted(cases.rglob("*"))
    result = pynca_command(cases, *arguments.split())
    assert result.returncode == 2
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(cases.rglob("*")) == before


def test_demo(tmp_path: Path) -> None:
    result = pynca_command(tmp_path, "demo")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    phantom, mask = (nib.load(tmp_path / "pynca-demo" / f"{name}.nii.gz") for name in ("phantom", "mask"))
    assert phantom.shape == mask.shape == (36, 50, 36)
    assert 1000 < np.asarray(mask.dataobj).sum() < 8000
    assert (tmp_path / "pynca-demo" / "preview.png").stat().st_size > 1000


# --- pictures --------------------------------------------------------------------------------------------


def pictures(folder: Path, patients: int = 6, frames: int = 2, side: int = 112) -> None:
    """Grey PNGs with a bright disc, and masks whose value 1 is the disc."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    y, x = np.mgrid[:side, :side]
    for patient in range(patients):
        for frame in range(frames):
            centre, radius = random.uniform(0.3, 0.7, 2) * side, random.uniform(0.09, 0.14) * side
            label = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2).astype(np.uint8)
            grey = np.clip(60 + 120 * label + random.normal(scale=8, size=label.shape), 0, 255).astype(np.uint8)
            image_module.fromarray(grey).save(folder / "images" / f"P-{patient}_{frame:02}.png")
            image_module.fromarray(label).save(folder / "labels" / f"P-{patient}_{frame:02}.png")


def test_training_on_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path)
    (tmp_path / "validation.txt").write_text("P-1\nP-4\n")
    small = "--channels 8 --hidden 16 --steps 6 5 4 --patch 32 32 --border 4 --batch 4 --rate 0.004 --betas 0.9 0.99"
    command = "train --images images --labels labels --validation validation.txt -o disc.safetensors --epochs 24"
    assert cli.main([*command.split(), "--flip", "--rotation", "180", "--spacing", "1.4", *small.split()]) == 0
    said = capsys.readouterr().out
    assert "slices of 112 x 112; levels of scale 16 (6 steps), 4 (5 steps), 1 (4 steps), mean" in said
    model = pynca.load_model("disc.safetensors")
    assert [level.scale for level in model.levels] == [16, 4, 1]
    assert model.preparation.shrink == "mean"
    assert model.preparation.spacing == (1.4, 1.4, 1.4)
    assert "2 validation patients" in model.card.accuracy
    recipe = training.Recipe(
        channels=8, hidden=16, steps=(6, 5, 4), scales=(16, 4, 1), patch=(32, 32), border=4, batch=4, rate=0.004,
        betas=(0.9, 0.99), optimizer="muon", supervision=1.0, negatives=0.125, on_errors=0.25,
        small_first=True, loss="slice_dice_bce", fall="linear",
        augmentation=training.Augmentation(flip=True, rotation=180.0),
    )  # fmt: skip
    outcome = training.fit("images", "labels", "from_python", recipe=recipe, validation="validation.txt", epochs=24)
    for level, other in zip(outcome.model.levels, model.levels, strict=True):
        for name, weight in level.rule.weights.items():
            np.testing.assert_array_equal(weight, other.rule.weights[name])

    command = "evaluate --images images --labels labels -m disc.safetensors --cases validation.txt -o scores.csv"
    assert cli.main(command.split()) == 0
    said = capsys.readouterr().out
    assert "hard Dice of a patient" in said
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(rows) == 5
    assert [row.split(",")[5] for row in rows[1:]] == ["P-1", "P-1", "P-4", "P-4"]

    assert cli.main([*command.split(), "--by", "P-([14])"]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[:2] for line in lines] == [["1", "1"], ["4", "1"]]
    assert cli.main([*command.split(), "--by", "P-(1)"]) == 2
    assert "'P-(1)' is not found in P-4" in capsys.readouterr().err
    assert cli.main([*command.split(), "--by", "("]) == 2
    assert "is not a regular expression" in capsys.readouterr().err


def test_a_patient_is_never_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, patients=3, side=32)
    command = ["train", "--images", "images", "--labels", "labels", "-o", "m.safetensors", "--validation", "v.txt"]
    for text, options, sentence in (
        ("P-1_00.png\n", [], "v.txt divides the patient P-1; all images of one must train, or all validate"),
        ("P-9\n", [], "v.txt names P-9, which is neither among the labels nor among the patients"),
        ("P-1\n", ["--group-by", "("], "--group-by is '(', which is no regular expression"),
        ("P-1\n", ["--group-by", "Q"], "in which the pattern 'Q' finds no patient"),
    ):
        (tmp_path / "v.txt").write_text(text)
        assert cli.main([*command, *options]) == 2
        assert sentence in capsys.readouterr().err
    dataset = find_cases("images", "labels", group_by=r"P-(\d)")
    assert [case.group for case in dataset.cases] == ["0", "0", "1", "1", "2", "2"]
