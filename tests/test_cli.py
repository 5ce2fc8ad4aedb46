"""The `pynca` command, as a user runs it: what it writes, prints and returns, and that it never shows a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import pynca
from pynca import cli
from support import CHECKPOINT, exploding_model, random_model

SCRIPT = Path(sysconfig.get_path("scripts")) / ("pynca.exe" if os.name == "nt" else "pynca")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
LIMIT = 120


# --- helpers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    random_model().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path) -> Path:
    """A working folder with a model, a scan and a folder of three scans."""
    (tmp_path / "model.safetensors").write_bytes(model_file.read_bytes())
    write_scan(tmp_path / "scan.nii.gz")
    for n, name in enumerate(("a.nii.gz", "b.nii", "c.nii.gz")):
        write_scan(tmp_path / "scans" / name, seed=n)
    monkeypatch.chdir(tmp_path)
    for variable in ("PYNCA_ISA", "PYNCA_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def write_scan(path: Path, seed: int = 0, shape: tuple[int, ...] = (9, 11, 5)) -> None:
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    image = nibabel.Nifti1Image(np.random.default_rng(seed).gamma(2.0, 100.0, shape).astype(np.float32), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 0)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def masks(folder: Path) -> set[str]:
    """The files of a folder of results beside their manifest."""
    found = files(folder)
    assert "manifest.json" in found
    return found - {"manifest.json"}


class Result:
    """What a run of the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in err
        assert "Exception ignored" not in err

    @property
    def errors(self) -> list[str]:
        return self.err.splitlines()


def command(*arguments: str | Path, cwd: Path, **environment: str) -> Result:
    """Run the installed script in a process of its own."""
    run = subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return Result(run.returncode, run.stdout, run.stderr)


@pytest.fixture
def pynca_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process, which takes no time to start; everything else is the same."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as leaving:
            code = leaving.code  # type: ignore[assignment]
        return Result(code, *capsys.readouterr())

    return run


# --- the way of a new user ------------------------------------------------------------------------------------


def test_import_info_segment_file_and_folder(reference: Path, data: Path, tmp_path: Path) -> None:
    made = command(
        "import", CHECKPOINT, "-o", "m.safetensors", "--label", "hippocampus", "--licence", "MIT", cwd=tmp_path
    )
    assert (made.code, made.err) == (0, "")
    assert made.out == "m.safetensors: 2 levels, 70016 parameters, 282 kB\n"

    told = command("info", "m.safetensors", cwd=tmp_path)
    assert (told.code, told.err) == (0, "")
    for fact in ("1 = hippocampus", "70016", "scale 4, 16 steps, conv 3x3, 32 channels", "MIT", "not stated", "RAS"):
        assert fact in told.out

    (tmp_path / "scans").mkdir()
    for name in ("hippocampus_001.nii.gz", "hippocampus_243.nii.gz"):
        source = nibabel.load(data / "hippocampus" / "images" / name).slicer[..., 14:18]
        nibabel.save(source, tmp_path / "scans" / name)
    model = pynca.load_model(tmp_path / "m.safetensors")
    one = command("segment", "scans/hippocampus_001.nii.gz", "mask.nii.gz", "-m", "m.safetensors", cwd=tmp_path)
    assert (one.code, one.err) == (0, "")
    expected = pynca.predict(tmp_path / "scans" / "hippocampus_001.nii.gz", model)
    voxels = np.count_nonzero(expected.mask)
    assert voxels > 300
    assert one.out.startswith(f"mask.nii.gz: hippocampus {voxels / 1000:.3f} ml ({voxels} voxels), ")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected.mask)
    assert mask.get_data_dtype() == np.uint8

    many = command("segment", "scans", "new/masks", "-m", "m.safetensors", "--threads", "1", cwd=tmp_path)
    assert (many.code, many.err) == (0, "")
    assert len(many.out.splitlines()) == 3
    assert many.out.splitlines()[-1] == "new/masks: 2 done, 0 failed, 0 skipped, 0 to review"
    assert masks(tmp_path / "new" / "masks") == {"hippocampus_001.nii.gz", "hippocampus_243.nii.gz"}
    assert (tmp_path / "new/masks/hippocampus_001.nii.gz").read_bytes() == (tmp_path / "mask.nii.gz").read_bytes()


def test_masks_are_those_of_segment(folder: Path, pynca_command: Any) -> None:
    """For one file, a folder, any seed, samples and threads."""
    model = pynca.load_model("model.safetensors")
    for options, arguments in (
        ([], {}),
        (["--seed", "7"], {"seed": 7}),
        (["--samples", "3", "--threads", "2"], {"samples": 3}),
        (["--seed", str(2**64 - 1), "--threads", "1"], {"seed": 2**64 - 1}),
    ):
        assert pynca_command("segment", "scans", "masks", "-m", "model.safetensors", "--overwrite", *options).code == 0
        for name in ("a.nii.gz", "b.nii", "c.nii.gz"):
            mask = nibabel.load(folder / "masks" / name)
            scan = nibabel.load(folder / "scans" / name)
            np.testing.assert_array_equal(np.asarray(mask.dataobj), pynca.segment(scan, model, **arguments))
            np.testing.assert_array_equal(mask.affine, scan.affine)
            assert int(mask.header["sform_code"]) == 1
            assert int(mask.header["qform_code"]) == 0


def test_an_existing_folder_takes_the_mask_of_a_file(folder: Path, pynca_command: Any) -> None:
    (folder / "masks").mkdir()
    result = pynca_command("segment", "scan.nii.gz", "masks", "-m", "model.safetensors")
    assert result.code == 0
    assert files(folder / "masks") == {"scan.nii.gz"}


def test_an_old_mask_is_replaced_if_it_is_pyncas(folder: Path, pynca_command: Any) -> None:
    (folder / "mask.nii").write_bytes(b"old")
    result = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "pynca: mask.nii is there already and was not written by pynca, or was changed since; choose another name, or "
        "give --overwrite\n"
    )
    assert (folder / "mask.nii").read_bytes() == b"old"
    for arguments in (["--overwrite"], [], ["--seed", "1"]):
        assert pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors", *arguments).code == 0
        assert nibabel.load(folder / "mask.nii").shape == (9, 11, 5)


def test_save_probability(folder: Path, pynca_command: Any) -> None:
    arguments = ["-m", "model.safetensors", "--samples", "2", "--save-probability"]
    assert pynca_command("segment", "scan.nii.gz", "mask.nii.gz", *arguments, "p.nii").code == 0
    expected = pynca.predict("scan.nii.gz", "model.safetensors", samples=2)
    probability = nibabel.load(folder / "p.nii")
    assert probability.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(probability.dataobj), expected.probability)
    np.testing.assert_array_equal(np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj), expected.mask)

    assert pynca_command("segment", "scans", "masks", *arguments, "maps/deep").code == 0
    assert files(folder / "maps") == {"deep/a.nii.gz", "deep/b.nii", "deep/c.nii.gz"}


def test_json_lines(folder: Path, pynca_command: Any) -> None:
    (folder / "scans" / "bad.nii").write_bytes(b"no scan")
    result = pynca_command("segment", "scans", "masks", "-m", "model.safetensors", "--json", "--samples", "2")
    assert result.code == 1
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(line["input"]).name for line in lines] == ["a.nii.gz", "b.nii", "bad.nii", "c.nii.gz"]
    entry = {
        "input",
        "sha256",
        "status",
        "error",
        "warnings",
        "outputs",
        "mask_sha256",
        "preview_sha256",
        "quality",
        "reasons",
        "nqm",
        "labels",
        "seconds",
    }
    assert set(lines[2]) == {*entry, "output"}
    assert (lines[2]["status"], lines[2]["output"], lines[2]["labels"]) == ("failed", None, [])
    assert "bad.nii" in lines[2]["error"]
    for line in (*lines[:2], lines[3]):
        assert set(line) == {*entry, "output", "label", "voxels", "volume_ml"}
        assert (line["status"], line["error"], line["outputs"]) == ("done", None, {"mask": line["output"]})
        mask = np.asarray(nibabel.load(folder / line["output"]).dataobj)
        assert line["voxels"] == np.count_nonzero(mask)
        assert line["volume_ml"] == pytest.approx(line["voxels"] * 3.0 / 1000, abs=1e-4)
        assert line["label"] == "blob"
        assert 0 < line["nqm"] < 1
        assert line["seconds"] > 0
    single = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors", "--json")
    assert json.loads(single.out)["nqm"] is None


def test_quiet_is_silent_but_for_errors(folder: Path, pynca_command: Any) -> None:
    result = pynca_command("segment", "scans", "masks", "-m", "model.safetensors", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    (folder / "scans" / "bad.nii").write_bytes(b"no scan")
    result = pynca_command("segment", "scans", "masks", "-m", "model.safetensors", "--quiet")
    assert (result.code, result.out) == (1, "")
    assert "bad.nii" in result.err


def test_samples_print_how_much_they_agree(pynca_command: Any) -> None:
    assert (
        ", NQM 0." in pynca_command("segment", "scan.nii.gz", "m.nii", "-m", "model.safetensors", "--samples", "2").out
    )
    assert "NQM" not in pynca_command("segment", "scan.nii.gz", "m.nii", "-m", "model.safetensors").out


def test_nothing_found_is_said_and_no_failure(folder: Path, pynca_command: Any) -> None:
    model = pynca.load_model("model.safetensors")
    pynca.Model(model.levels, model.preparation, threshold=1 - 1e-9).save("sure.safetensors")
    result = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "sure.safetensors")
    assert result.code == 0
    assert "0.000 ml (0 voxels), nothing found" in result.out


# --- failures -----------------------------------------------------------------------------------------------


def test_a_folder_is_worked_through_to_the_end(folder: Path) -> None:
    broken = {
        "0_empty.nii": b"",
        "1_text.nii.gz": b"hello",
        "2_cut.nii.gz": (folder / "scan.nii.gz").read_bytes()[:200],
        "z_nan.nii": None,
    }
    for name, content in broken.items():
        if content is not None:
            (folder / "scans" / name).write_bytes(content)
    scan = nibabel.Nifti1Image(np.full((4, 5, 6), np.nan, np.float32), np.eye(4))
    nibabel.save(scan, folder / "scans" / "z_nan.nii")
    (folder / "scans" / "._a.nii.gz").write_bytes(b"what a Mac leaves")
    (folder / "scans" / "notes.txt").write_text("not a scan")
    result = command("segment", "scans", "masks", "-m", "model.safetensors", cwd=folder)
    assert result.code == 1
    assert masks(folder / "masks") == {"a.nii.gz", "b.nii", "c.nii.gz"}
    assert len(result.out.splitlines()) == 4
    assert result.out.splitlines()[-1] == "masks: 3 done, 4 failed, 0 skipped, 0 to review"
    assert len(result.errors) == len(broken) + 1
    for name, line in zip(broken, result.errors, strict=False):
        assert line.startswith("pynca: ")
        assert line.count(f"scans/{name}") == 1
    assert result.errors[-1] == "pynca: 4 of 7 files failed"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "scan.nii.gz", "scans", "masks"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.nii", "mask.nii"], "no.nii does not exist; IN is an image, or a folder of them"),
        (["scan.nii.gz", "mask.jpg"], "mask.jpg cannot be written: JPEG changes values; write .png"),
        (
            ["scan.nii.gz", "mask"],
            "mask cannot be written: its name must end in .nii, .nii.gz, .dcm, .png, .tif, .tiff or .npy",
        ),
        (["scan.nii.gz", "scan.nii.gz"], "scan.nii.gz would be overwritten; choose another OUT"),
        (["scan.nii.gz", "./scans/../scan.nii.gz"], "scan.nii.gz would be overwritten"),
        (["scan.nii.gz", "."], "scan.nii.gz would be overwritten"),
        (["scan.nii.gz", "m.nii", "--save-probability", "m.nii"], "m.nii is named twice; mask and probability need"),
        (["scan.nii.gz", "m.nii", "--save-probability", "scan.nii.gz"], "scan.nii.gz would be overwritten"),
        (["scan.nii.gz", "m.nii", "--save-probability", "p.txt"], "p.txt cannot be written: its name must end in .nii"),
        (["scan.nii.gz", "m.nii", "--save-probability", "p.dcm"], "p.dcm cannot be written: DICOM SEG holds masks"),
        (["scan.nii.gz", "m.nii", "--save-uncertainty", "u.nii"], "--save-uncertainty needs --samples of 2 or more"),
        (["scan.nii.gz", "m.nii", "--samples", "2", "--save-uncertainty", "m.nii"], "m.nii is named twice"),
        (["scan.nii.gz", "m.nii", "--spacing", "x"], "--spacing: 'x' is not a size in mm"),
        (["scan.nii.gz", "m.nii", "--volume", "x"], "--volume: 'x' is not a whole number"),
        (["scans", "scans"], "scans is the folder of the inputs; masks would overwrite them"),
        (["scans", "./scans/"], "scans is the folder of the inputs"),
        (["scans", "mask.nii"], "mask.nii is named like a file; for a folder of volumes it must be a folder"),
        (["scans", "model.safetensors"], "model.safetensors is a file; for a folder of volumes it must be a folder"),
        (["scans", "out", "--save-probability", "out"], "is named twice"),
        (["scans", "out", "--save-probability", "scans"], "scans is the folder of the inputs"),
        (["empty", "out"], "empty holds no image that pynca reads"),
        (["scan.nii.gz", "m.nii", "--samples", "0"], "--samples is 0; it must be between 1 and 4096"),
        (["scan.nii.gz", "m.nii", "--samples", "-1"], "--samples is -1"),
        (["scan.nii.gz", "m.nii", "--samples", "4097"], "--samples is 4097"),
        (["scan.nii.gz", "m.nii", "--samples", "two"], "--samples: 'two' is not a whole number"),
        (["scan.nii.gz", "m.nii", "--samples", "1.5"], "--samples: '1.5' is not a whole number"),
        (["scan.nii.gz", "m.nii", "--seed", "-1"], "--seed is -1"),
        (["scan.nii.gz", "m.nii", "--seed", str(2**64)], "--seed is 18446744073709551616"),
        (["scan.nii.gz", "m.nii", "--threads", "0"], "threads is 0; it must be between 1 and 1024"),
        (["scan.nii.gz", "m.nii", "--threads", "x"], "--threads: 'x' is not a whole number"),
        (["scan.nii.gz", "m.nii", "-m", "no.safetensors"], "no.safetensors does not exist; bundled models are"),
        (["scan.nii.gz", "m.nii", "--colour"], "unrecognized arguments: --colour"),
        (["scan.nii.gz"], "the following arguments are required: OUT"),
        ([], "the following arguments are required: IN, OUT"),
    ],
)
def test_wrong_use_of_segment(arguments: list[str], sentence: str, folder: Path, pynca_command: Any) -> None:
    (folder / "empty").mkdir()
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    result = pynca_command("segment", "-m", "model.safetensors", *arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.errors[-1]
    assert result.errors[-1].startswith("pynca")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["segmnt"], "; did you mean segment?"),
        (["info", "hipocampus"], "hipocampus does not exist; bundled models are cardiac-lv, hippocampus, others are"),
        (["info", "hipocampus"], "did you mean hippocampus?"),
        (["evaluate", "--images", "scans", "--labels", "scans", "--sampels", "2"], "did you mean --samples?"),
        (["segment", "scans", "out", "--format", "nii.gx"], "did you mean nii.gz?"),
        (["info", "--colour"], "unrecognized arguments: --colour"),
        (["info", "no.safetensors"], "no.safetensors does not exist; bundled models are"),
        (["info", "a", "b"], "unrecognized arguments: b"),
        (["import", "no", "-o", "m.safetensors"], "no does not exist; SOURCE is a checkpoint's folder"),
        (["import", "scans"], "the following arguments are required: -o/--output"),
        (["import", "scans", "-o", "m.pt"], "m.pt: the name of a model file must end in .safetensors"),
        (["import", "scans", "-o", "m.safetensors", "--steps", "many"], "--steps: 'many' is not a whole number"),
        (["import", "scans", "-o", "m.safetensors", "--size", "64"], "--size: expected 2 arguments"),
    ],
)
def test_wrong_use_of_other_commands(arguments: list[str], sentence: str, folder: Path, pynca_command: Any) -> None:
    before = files(folder)
    result = pynca_command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.errors[-1]
    assert files(folder) == before


@pytest.mark.parametrize(
    ("variable", "value"), [("PYNCA_ISA", "nonsense"), ("PYNCA_NUM_THREADS", "x"), ("PYNCA_NUM_THREADS", "0")]
)
@pytest.mark.parametrize(
    "arguments", [["segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors"], ["info"]], ids=lambda a: a[0]
)
def test_wrong_environment(arguments: list[str], variable: str, value: str, folder: Path) -> None:
    result = command(*arguments, cwd=folder, **{variable: value})
    assert result.code == 2
    assert len(result.errors) == 1
    assert f"the environment variable {variable} is '{value}'" in result.err
    assert not (folder / "mask.nii").exists()


DAMAGED = {
    "empty": b"",
    "text": b"no model at all",
    "cut": None,
    "huge header": (2**62).to_bytes(8, "little") + b"{}",
    "other file": (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_models(content: bytes | None, folder: Path, pynca_command: Any) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "bad.safetensors").write_bytes(whole[:-5] if content is None else content)
    for arguments in (["segment", "scan.nii.gz", "mask.nii", "-m", "bad.safetensors"], ["info", "bad.safetensors"]):
        result = pynca_command(*arguments)
        assert (result.code, result.out) == (1, "")
        assert len(result.errors) == 1
        assert result.err.startswith("pynca: ")
        assert "bad.safetensors" in result.err
    assert not (folder / "mask.nii").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04hello", b"\x80\x02}q\x00."])
def test_damaged_checkpoints(content: bytes, folder: Path, pynca_command: Any) -> None:
    (folder / "model0.pth").write_bytes(content)
    options = ["--steps", "16", "--fire-rate", "0.5", "--size", "64", "64", "--label", "x"]
    for source in (["model0.pth", *options], ["scans"]):
        result = pynca_command("import", *source, "-o", "new.safetensors")
        assert (result.code, result.out) == (1, "")
        assert len(result.errors) == 1
        assert source[0] in result.err
    assert "new.safetensors" not in files(folder)


@posix
def test_places_that_cannot_be_written(folder: Path, pynca_command: Any) -> None:
    (folder / "file").write_text("")
    for out in ("file/mask.nii", "/proc/no/mask.nii"):
        result = pynca_command("segment", "scan.nii.gz", out, "-m", "model.safetensors")
        assert (result.code, result.out) == (1, "")
        assert len(result.errors) == 1
    (folder / "there.safetensors").mkdir()
    assert pynca_command("import", "scans", "-o", "there.safetensors").code == 1


def test_doubts_about_geometry_are_one_line_each(folder: Path) -> None:
    scan = nibabel.load(folder / "scan.nii.gz")
    scan.set_sform(None, 0)
    scan.set_qform(None, 0)
    nibabel.save(scan, folder / "doubt.nii")
    result = command("segment", "doubt.nii", "mask.nii", "-m", "model.safetensors", cwd=folder)
    assert result.code == 0
    assert len(result.errors) == 1
    assert result.err.startswith("pynca: warning: ")
    assert "doubt.nii" in result.err


@posix
def test_names_that_are_no_text(folder: Path) -> None:
    """Under a strict encoding, too: the line is printed and the rest of the folder is worked through."""
    name = os.fsdecode(b"caf\xe9\x1b.nii")
    (folder / "scans" / "b.nii").rename(folder / "scans" / name)
    for encoding in ("utf-8:strict", "ascii"):
        for option in ([], ["--json"]):
            arguments = ["segment", "scans", "masks", "-m", "model.safetensors", "--overwrite", "--stats", "s.csv"]
            result = command(*arguments, *option, cwd=folder, PYTHONIOENCODING=encoding)
            assert (result.code, result.err) == (0, "")
            assert len(result.out.splitlines()) == (3 if option else 4)
            assert masks(folder / "masks") == {"a.nii.gz", name, "c.nii.gz"}
            assert b"\ncaf\\udce9\x1b.nii," in (folder / "s.csv").read_bytes()
            (folder / "masks" / name).unlink()


def test_text_of_a_model_commands_no_terminal(folder: Path, pynca_command: Any) -> None:
    model = pynca.load_model("model.safetensors")
    card = pynca.Card(
        name="a\x1b[2Jb", description="one\ntwo\r\x07 three", licence="\x9b31m", citation="Jürgen \U0001f9e0"
    )
    pynca.Model(model.levels, model.preparation, labels={1: "x\x1b]0;y\x07"}, card=card).save("evil.safetensors")
    told = pynca_command("info", "evil.safetensors")
    done = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "evil.safetensors")
    assert (told.code, done.code) == (0, 0)
    for text in (told.out, done.out):
        assert all(c.isprintable() for line in text.split("\n") for c in line)
    assert "one two" in told.out
    assert "Jürgen" in told.out


# --- streams ------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("arguments", [["info"], ["info", "model.safetensors"], ["--help"], ["--version"]], ids=str)
def test_a_reader_that_has_gone(arguments: list[str], folder: Path) -> None:
    """`pynca info | head -1`, at its worst: nobody reads."""
    for unbuffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        run = subprocess.run(
            [SCRIPT, *arguments],
            cwd=folder,
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=LIMIT,
        )
        os.close(write)
        assert (run.returncode, run.stderr) == (0, b"")


@posix
def test_the_work_goes_on_without_a_reader(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = [SCRIPT, "segment", "scans", "masks", "-m", "model.safetensors"]
    run = subprocess.run(arguments, cwd=folder, stdout=write, stderr=subprocess.PIPE, timeout=LIMIT)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")
    assert masks(folder / "masks") == {"a.nii.gz", "b.nii", "c.nii.gz"}


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["info", "segment scan.nii.gz mask.nii -m model.safetensors"])
def test_no_standard_output_at_all(arguments: str, unbuffered: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    shell = ["sh", "-c", f'"$0" {arguments} >&-', SCRIPT]
    run = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, timeout=LIMIT)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
    if Path("/dev/full").exists():
        shell[2] = f'"$0" {arguments} >/dev/full'
        run = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
        assert run.stderr == "pynca: standard output: No space left on device\n"
        assert run.returncode == 1


def on_a_terminal(arguments: list[str], cwd: Path) -> tuple[int, str, str]:
    """Run the command with a terminal as standard error; return its code, standard output, and what was drawn."""
    import pty  # not on Windows

    terminal, inside = pty.openpty()
    process = subprocess.Popen([SCRIPT, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=inside, text=True)
    os.close(inside)
    drawn = b"".join(_read_all(terminal))
    os.close(terminal)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    return process.wait(LIMIT), out, drawn.decode()


def _read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # Linux: the other end is closed
            return
        if not block:
            return
        yield block


@posix
def test_a_bar_on_a_terminal(folder: Path) -> None:
    (folder / "scans" / "bad.nii").write_bytes(b"no scan")
    arguments = ["segment", "scans", "masks", "-m", "model.safetensors"]
    code, out, drawn = on_a_terminal(arguments, folder)
    assert code == 1
    assert len(out.splitlines()) == 4
    assert all(name in drawn for name in ("a.nii.gz [", "b.nii [", "bad.nii [", "c.nii.gz ["))
    assert "  0%" in drawn
    assert " 75%" in drawn
    assert "Traceback" not in drawn
    assert "\r\x1b[Kpynca: scans/bad.nii" in drawn  # the bar is erased before the line
    last = drawn.rstrip().rsplit("\n", 1)[-1]
    assert last.endswith("pynca: 1 of 4 files failed")

    for option in ("-q", "--json"):
        assert on_a_terminal([*arguments, "--overwrite", option], folder)[2].count("[") == 0
    piped = command(*arguments, cwd=folder)
    assert "\r" not in piped.err
    assert "[" not in piped.err.replace("[Errno", "")


@posix
def test_warnings_and_long_names_do_not_break_the_bar(folder: Path) -> None:
    scan = nibabel.load(folder / "scan.nii.gz")
    scan.set_sform(None, 0)
    scan.set_qform(None, 0)
    name = "sub-01_ses-02_" + "x" * 150 + ".nii"
    nibabel.save(scan, folder / name)
    code, _, drawn = on_a_terminal(["segment", name, "mask.nii", "-m", "model.safetensors"], folder)
    assert code == 0
    assert "\r\x1b[Kpynca: warning: " in drawn
    bars = [part for part in drawn.replace("\n", "\r").split("\r") if "[#" in part or "[ " in part]
    assert bars
    assert all(len(bar.removesuffix("\x1b[K")) <= 80 for bar in bars)


@posix
def test_interrupted(folder: Path) -> None:
    """Ctrl-C in the middle of a folder: one line, code 130, whole masks only."""
    for n in range(40):
        write_scan(folder / "many" / f"{n:02}.nii.gz", seed=n)
    arguments = ["segment", "many", "masks", "-m", "model.safetensors", "--samples", "300"]
    process = subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    result = Result(process.returncode, first + out, err)
    assert (result.code, result.err) == (130, "pynca: interrupted\n")
    done = len(result.out.splitlines())
    assert 1 <= done < 40
    written = sorted(masks(folder / "masks"))
    assert len(written) in (done, done + 1)
    assert written == [f"{n:02}.nii.gz" for n in range(len(written))]
    for name in written:
        assert np.asarray(nibabel.load(folder / "masks" / name).dataobj).shape == (9, 11, 5)


def test_interrupted_while_writing(folder: Path, pynca_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mask.nii").write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    before = files(folder)
    result = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors", "--overwrite")
    assert (result.code, result.err) == (130, "pynca: interrupted\n")
    assert files(folder) == before
    assert (folder / "mask.nii").read_bytes() == b"old"


def test_no_memory_is_one_sentence(folder: Path, pynca_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pynca.Model, "batch_logits", refuse)
    result = pynca_command("segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors")
    assert (result.code, result.err) == (1, "pynca: scan.nii.gz: there is not enough memory\n")


# --- help and start-up ----------------------------------------------------------------------------------------


def test_help_version_and_info(folder: Path) -> None:
    usage = command("--help", cwd=folder)
    assert usage.code == 0
    assert all(word in usage.out for word in ("segment", "info", "import", "exit codes:\n  0    done"))
    for name in ("segment", "info", "import"):
        told = command(name, "--help", cwd=folder)
        assert (told.code, told.err) == (0, "")
        assert told.out.startswith(f"usage: pynca {name} ")
    assert command("--version", cwd=folder).out == f"pynca {pynca.__version__}\n"
    told = command("info", cwd=folder, PYNCA_NUM_THREADS="3")
    assert (told.code, told.err) == (0, "")
    for fact in (pynca.__version__, "instruction set", "baseline", "threads          3 "):
        assert fact in told.out


def test_the_module_is_the_command(folder: Path) -> None:
    arguments = ["segment", "scan.nii.gz", "mask.nii", "-m", "model.safetensors", "-q"]
    for first in ([sys.executable, "-m", "pynca.cli"], [str(SCRIPT)]):
        run = subprocess.run([*first, *arguments], cwd=folder, capture_output=True, timeout=LIMIT)
        assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
        (folder / "mask.nii").unlink()


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The modules in a new interpreter after some code."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=cwd, check=True, capture_output=True, text=True, timeout=LIMIT
    )
    return set(run.stderr.split())


def test_import_loads_numpy_and_nothing_else_of_weight(tmp_path: Path) -> None:
    bare, more = loaded_by("import numpy", tmp_path), loaded_by("import pynca", tmp_path)
    others = {name.partition(".")[0] for name in more - bare} - set(sys.stdlib_module_names)
    assert {name for name in others if "cython" not in name} <= {"pynca", "numpy"}
    heavy = {"argparse", "multiprocessing", "unittest", "urllib.request", "http", "email", "xml", "asyncio"}
    assert not heavy & (more - bare)
    used = loaded_by("import pynca; pynca.segment", tmp_path)  # what the first use brings
    assert not (heavy | {"nibabel", "socket", "ssl"}) & (used - bare)


def test_help_loads_neither_numpy_nor_nibabel(tmp_path: Path) -> None:
    for arguments in (["--help"], ["segment", "--help"], ["segment"]):
        modules = loaded_by(f"from pynca.cli import main; main({arguments!r})", tmp_path)
        assert "pynca.cli" in modules
        assert not {"numpy", "nibabel", "pynca._core"} & modules


def test_segmenting_loads_nothing_that_is_not_required(folder: Path) -> None:
    call = "from pynca.cli import main; main(['segment', 'scan.nii.gz', 'mask.nii', '-m', 'model.safetensors', '-q'])"
    modules = loaded_by(call, folder)
    assert {"numpy", "nibabel"} <= modules
    modules -= loaded_by("import nibabel", folder)  # which loads scipy where it is installed
    assert not {"torch", "scipy", "cv2", "skimage", "SimpleITK", "pandas", "matplotlib", "safetensors"} & modules


@pytest.mark.parametrize("command", ["segment", "folder", "animate", "evaluate", "estimate", "slicer"])
def test_a_model_that_does_not_stay_finite_fails_before_anything_is_written(tmp_path: Path, command: str) -> None:
    exploding_model().save(tmp_path / "m.safetensors")
    for folder in ("scans", "labels"):
        (tmp_path / folder).mkdir()
        data = np.random.default_rng(0).integers(0, 2, (16, 16, 3)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / folder / "scan.nii.gz")
    arguments = {
        "segment": "segment scans/scan.nii.gz out.nii.gz -m m.safetensors --save-probability p.nii.gz --samples 2",
        "folder": "segment scans out -m m.safetensors -q",
        "animate": "animate scans/scan.nii.gz out.gif -m m.safetensors",
        "evaluate": "evaluate --images scans --labels labels -m m.safetensors",
        "estimate": "estimate scans/scan.nii.gz -m m.safetensors",
        "slicer": "scans/scan.nii.gz out.nii.gz --modelfile m.safetensors",
    }[command].split()
    program = ["-m", "pynca.plugins.slicer" if command == "slicer" else "pynca.cli", *arguments]
    ran = subprocess.run([sys.executable, *program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1
    (said,) = [
        line for line in ran.stderr.splitlines() if line.startswith("pynca: ") and "could be measured" not in line
    ]
    assert "m.safetensors did not stay finite" in said
    assert "scan.nii.gz" in said or command == "estimate"
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"m.safetensors", "scan.nii.gz"} | ({"manifest.json"} if command == "folder" else set())
