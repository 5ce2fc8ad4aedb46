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
from pynca import training

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
