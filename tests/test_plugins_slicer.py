"""The module for 3D Slicer: its description by the rules of the execution model, and a run as Slicer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nibabel
import numpy as np
import pytest

import pynca
from pynca import cli, zoo
from pynca.plugins import slicer
from support import random_model

# Of CTK's schema for such modules: which elements there are, and in which order; "?" may be missing
HEAD = ("category?", "title", "description", "version?", "documentation-url?", "license?", "contributor?")
PARAMETER = ("name", "flag?", "longflag?", "index?", "description", "label", "default?", "channel?")
KINDS = {"image": (), "file": (), "string": (), "integer": ("constraints?",), "string-enumeration": ("element*",)}


def check_order(tags: list[str], grammar: tuple[str, ...]) -> None:
    pattern = "".join(f"(?:{g.rstrip('?*')} ){'?' if g[-1] == '?' else '+' if g[-1] == '*' else ''}" for g in grammar)
    assert re.fullmatch(pattern, "".join(f"{tag} " for tag in tags)), tags


def parameters() -> list[ElementTree.Element]:
    root = ElementTree.fromstring(slicer.describe())
    return [p for group in root.findall("parameters") for p in group if p.tag in KINDS]


def test_the_description_follows_the_schema() -> None:
    text = slicer.describe()
    assert text.startswith('<?xml version="1.0"')  # Slicer wants nothing before it
    root = ElementTree.fromstring(text)
    assert root.tag == "executable"
    groups = root.findall("parameters")
    check_order([e.tag for e in root if e.tag != "parameters"], HEAD)
    assert [e.tag for e in root][-len(groups) :] == ["parameters"] * len(groups)
    for group in groups:
        assert [e.tag for e in group][:2] == ["label", "description"]
        for parameter in list(group)[2:]:
            check_order([e.tag for e in parameter], PARAMETER + KINDS[parameter.tag])
            tags = {e.tag for e in parameter}
            assert len(tags & {"longflag", "index"}) == 1
            assert re.fullmatch(r"[_a-zA-Z][_a-zA-Z0-9]*", parameter.findtext("longflag") or "x")
            assert parameter.findtext("channel") in (None, "input", "output")
    names = [p.findtext("name") for p in parameters()]
    assert len(set(names)) == len(names)


def test_the_description_offers_the_models_there_are() -> None:
    (models,) = (p for p in parameters() if p.findtext("name") == "model")
    assert [e.text for e in models.findall("element")] == zoo.names()
    assert models.findtext("default") == zoo.DEFAULT


@pytest.fixture
def module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "a module's folder"
    assert cli.main(["slicer", str(folder)]) == 0
    (program,) = (p for p in folder.iterdir() if p.suffix != ".xml")
    assert f"{program}: name {folder} in Slicer" in capsys.readouterr().out
    return program


def run(module: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the module in the environment that Slicer gives it: with its own Python's settings and libraries."""
    slicers = dict.fromkeys(("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"), "/opt/Slicer")
    return subprocess.run(
        [module, *map(str, arguments)],
        env={**os.environ, **slicers},
        capture_output=True,
        text=True,
        cwd=module.parent,
        timeout=120,
    )


def arguments_of_slicer(values: dict[str, str]) -> list[str]:
    """The command line that Slicer makes of a form: flags in the order of the description, then what has an index."""
    flags, indexed = [], {}
    for parameter in parameters():
        value = values.get(parameter.findtext("name") or "", parameter.findtext("default") or "")
        if parameter.find("index") is not None:
            indexed[int(parameter.findtext("index") or "")] = value
        elif value:
            flags += [f"--{parameter.findtext('longflag')}", value]
    return flags + [value for _, value in sorted(indexed.items())]


@pytest.mark.skipif(os.name == "nt", reason="runs a shell script")
def test_slicer_runs_it(module: Path, tmp_path: Path) -> None:
    assert "." not in module.name  # else Slicer does not take it for a program
    assert os.access(module, os.X_OK)
    description = run(module, "--xml")
    assert (description.returncode, description.stderr) == (0, "")
    assert description.stdout == slicer.describe() == module.with_suffix(".xml").read_text()

    image = np.random.default_rng(0).random((20, 18, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, 2, 1, 1])), tmp_path / "in.nii.gz")
    model = random_model()
    model.save(tmp_path / "m.safetensors")
    values = {
        "input": str(tmp_path / "in.nii.gz"),
        "mask": str(tmp_path / "mask.nii.gz"),
        "probability": str(tmp_path / "probability.nii.gz"),
        "modelfile": str(tmp_path / "m.safetensors"),
        "samples": "2",
        "threads": "1",
        "seed": "5",
    }
    done = run(module, "--returnparameterfile", tmp_path / "returned", *arguments_of_slicer(values))
    assert (done.returncode, done.stderr) == (0, "")
    shares = [float(s) for s in re.findall(r"<filter-progress>([0-9.]+)</filter-progress>", done.stdout)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    expected = pynca.predict(tmp_path / "in.nii.gz", model, samples=2, seed=5)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "mask.nii.gz").get_fdata(), expected.mask)
    probability = np.asarray(nibabel.load(tmp_path / "probability.nii.gz").dataobj)
    np.testing.assert_array_equal(probability, expected.probability)
    voxels = np.count_nonzero(expected.mask)
    said = f"found = blob: {voxels * 2 / 1000:.3f} ml ({voxels} voxels), NQM {expected.nqm:.4f}"
    assert (tmp_path / "returned").read_text().startswith(said)


def test_failures_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.nii.gz").write_bytes(b"no volume")
    assert slicer.main([str(tmp_path / "in.nii.gz"), str(tmp_path / "mask.nii.gz")]) == 1
    assert capsys.readouterr().err.endswith("in.nii.gz is not a NIfTI file; it must be .nii or .nii.gz\n")
    with pytest.raises(SystemExit) as left:
        slicer.main(["--samples", "1", "in.nii.gz"])
    assert left.value.code == 2
    assert "there must be a volume and a mask" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "module").touch()
    assert cli.main(["slicer", str(tmp_path / "module")]) == 2
    assert "is a file; DIR is a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "nt", reason="cmd.exe is there on Windows")
def test_windows_runs_it(module: Path) -> None:
    assert module.suffix == ".bat"
    assert sys.executable in module.read_text()
    assert run(module, "--xml").stdout == slicer.describe()
