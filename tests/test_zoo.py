"""The bundled models: small, described, and as good as their cards say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import pynca
from pynca import cli, zoo
from pynca.evaluation import patient_dice, score_file
from support import DATA


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_is_small_and_described(name: str) -> None:
    path = zoo.find(name)
    assert path is not None
    assert path.stat().st_size <= 400_000
    model = pynca.load_model(name)
    assert model.parameters <= 100_000
    assert model.card.name == name
    assert all(asdict(model.card).values()), "every field of the card says something"
    assert path.with_suffix(".md").is_file()


def test_models_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["models", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in entries] == zoo.names()
    for entry in entries:
        model = pynca.load_model(entry["name"])
        assert entry["organ"] == ", ".join(model.labels.values())
        assert entry["parameters"] == model.parameters
        for name in ("modality", "input", "accuracy", "licence"):
            assert entry[name]
            assert f"  {name:10} {entry[name]}\n" in text + "\n"


def test_the_default_is_there_and_others_are_files() -> None:
    assert zoo.DEFAULT in zoo.names()
    assert zoo.find("kidney") is None
    with pytest.raises(FileNotFoundError):
        pynca.load_model("kidney")


def test_segment_needs_no_model(data: Path) -> None:
    path = data / "hippocampus" / "images" / "hippocampus_001.nii.gz"
    np.testing.assert_array_equal(pynca.segment(path), pynca.segment(path, pynca.load_model("hippocampus")))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} with the real files is not there")
def test_hippocampus_on_unseen_volumes() -> None:
    """Five volumes of the validation fold, none of which it was trained on."""
    model, folder = pynca.load_model("hippocampus"), DATA / "hippocampus"
    names = [f"hippocampus_{n:03}.nii.gz" for n in (1, 50, 102, 204, 301)]
    paths = [name for name in names if (folder / "images" / name).exists()]
    assert paths
    scores = [score_file(model, folder / "images" / name, folder / "labels" / name) for name in paths]
    assert np.mean([score.hard_dice for score in scores]) > 0.88
    assert np.mean([score.hd95 for score in scores]) < 2.5


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} with the real files is not there")
def test_cardiac_on_unseen_patients() -> None:
    """All slices of the eight patients that it was not trained on."""
    pytest.importorskip("PIL", reason="needs the extra image")
    model, folder = pynca.load_model("cardiac-lv"), DATA / "cardiac"
    patients = (folder / "validation.txt").read_text().split()
    scores = []
    for patient in patients:
        names = sorted(path.name for path in (folder / "labels").glob(f"{patient}_*.png"))
        scores += [score_file(model, folder / "images" / n, folder / "labels" / n, patient=patient) for n in names]
    dice = patient_dice(scores)
    assert len(dice) == 8
    assert np.mean(list(dice.values())) > 0.9
    assert min(dice.values()) > 0.85


def test_its_name_is_all_it_takes(data: Path) -> None:
    pytest.importorskip("PIL", reason="needs the extra image")
    path = data / "cardiac" / "images" / "SC-N-03_0220.png"
    mask = pynca.segment(path, model="cardiac-lv", spacing=1.35)
    assert mask.shape == (256, 256)
    with pytest.raises(ValueError, match="bundled models are cardiac-lv, hippocampus"):
        pynca.predict(path, spacing=1.35, strict=True)
