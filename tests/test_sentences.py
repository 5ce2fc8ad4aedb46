"""One sentence, always: texts from elsewhere, arguments in the words of who gave them, and what reaches a terminal."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pynca
from hostile import JSON, is_sentence, refusal, replaced
from pynca import cli, errors, jsontext, tensorfile
from pynca.cases import read_dataset
from pynca.cli import common
from pynca.inputs import Expected
from pynca.manifest import Manifest
from pynca.quality import Quality
from pynca.report import write_report
from support import random_model

posix = pytest.mark.skipif(os.name != "posix", reason="descriptors are POSIX's")
CONTROLS = "\x1b]0;x\x07\x9b31m\u202e\u2066\r\x00\u200f"


# --- JSON from elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON at character 0"),
        ('{"a": 1e999}', "the number '1e999', which is too large"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ("NaN", "holds NaN"),
        ("1" * 5000, "a number of 5000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "it has 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ('["\\ud800"]', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ('["' + "x" * 10**6, "not JSON at character 1"),
        ('{"' + "x" * 10**6 + '": 1, "' + "x" * 10**6 + '": 1}', "twice"),
    ],
    ids=lambda text: text[:12],
)
def test_what_json_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        jsontext.parse(text)
    assert is_sentence(str(caught.value))


def test_largest_numbers_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    value = {"seed": 2**64 - 1, "small": -(2**63), "real": 1.5e308, "text": "ä\U0001f9e0"}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False), encoding=encoding)
        assert jsontext.read(tmp_path / "x.json", 1000) == value
    with pytest.raises(ValueError, match="more than 10 bytes"):
        jsontext.read(tmp_path / "x.json", 10)
    for block in (b"\xff\xfe\x00", b"\xef\xbb\xbf\xff", b"\xe4"):
        (tmp_path / "x.json").write_bytes(block)
        with pytest.raises(ValueError, match="it is not text at byte"):
            jsontext.read(tmp_path / "x.json", 1000)


@posix
def test_a_pipe_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        jsontext.read(tmp_path / "pipe", 1000)


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(OSError) as refused:  # a PermissionError on Windows
        jsontext.read(tmp_path, 1000)
    assert str(refused.value.filename) == str(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "dataset.json", "config.dt"])
def test_what_is_too_large_is_not_read(name: str, tmp_path: Path) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**40)
    (tmp_path / "models").mkdir()
    for read in (Manifest.read, write_report, read_dataset, pynca.import_checkpoint):
        said = refusal(lambda read=read: read(tmp_path)) or ""  # type: ignore[misc]
        assert is_sentence(said)
        assert f"{name}" not in said or "bytes" in said


@given(value=JSON, what=st.sampled_from(["manifest", "card"]))
@settings(max_examples=100, deadline=None)
def test_whatever_json_holds_it_is_a_value_or_a_sentence(value: Any, what: str) -> None:
    said = refusal(lambda: jsontext.parse(json.dumps({what: value})))
    assert said is None or is_sentence(said)


# --- each reader ----------------------------------------------------------------------------------------------


def metadata_of(model: pynca.Model, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    model.save(folder / "m.safetensors")
    return tensorfile.read(folder / "m.safetensors")


def mutated(metadata: dict[str, str], key: str, place: int, value: Any) -> dict[str, str]:
    """Metadata with the JSON under a key changed, or the text itself replaced."""
    if place % 11 == 0:
        return {**metadata, key: value if isinstance(value, str) and value.isprintable() else json.dumps(value)}
    return {**metadata, key: json.dumps(replaced(json.loads(metadata[key]), place, value))}


MODEL = pynca.Model(
    random_model().levels,
    pynca.Preparation((16, 16)),
    labels={1: "blob"},
    expected=Expected([(1, 2)] * 3, [(9, 90)] * 3, [0.5] * 64, 0.5, 3),
    quality=Quality(0.1, 10, 0.5, (1, 2), "x", (1, 2)),
    postprocessing=["largest"],
)


@given(
    key=st.sampled_from(["levels", "preparation", "labels", "threshold", "postprocessing", "expected", "quality"]),
    place=st.integers(0, 200),
    value=JSON,
)
@example(key="labels", place=1, value={"1": "a", "01": "b"})
@settings(max_examples=300, deadline=None)
def test_whatever_a_model_says_it_is_read_or_refused_in_a_sentence(key: str, place: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        tensors, metadata = metadata_of(MODEL, Path(name))
        path = Path(name) / "x.safetensors"
        tensorfile.write(path, tensors, mutated(metadata, key, place, value))
        said = refusal(lambda: pynca.load_model(path))
        assert said is None or is_sentence(said), said


@given(place=st.integers(0, 50), value=JSON)
@settings(max_examples=150, deadline=None)
def test_whatever_a_configuration_says_it_is_read_or_refused_in_a_sentence(place: int, value: Any) -> None:
    config = {"cell_fire_rate": 0.5, "channel_n": 16, "inference_steps": [64, 64], "input_size": [[16, 16], [64, 64]]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models" / "epoch_1").mkdir(parents=True)
        for n in (0, 1):
            (folder / "models" / "epoch_1" / f"model{n}.pth").write_bytes(b"")
        (folder / "config.dt").write_text(json.dumps([replaced(config, place, value)]))
        said = refusal(lambda: pynca.import_checkpoint(folder))
        assert said is not None
        assert is_sentence(said), said


@given(place=st.integers(0, 50), value=JSON)
@settings(max_examples=150, deadline=None)
def test_whatever_a_description_says_it_is_read_or_refused_in_a_sentence(place: int, value: Any) -> None:
    described = {"labels": {"0": "background", "1": "a", "b": 2}, "training": ["a"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inside in ("imagesTr", "labelsTr"):
            (folder / inside).mkdir()
            (folder / inside / "a.nii").write_bytes(b"")
        (folder / "dataset.json").write_text(json.dumps(replaced(described, place, value)))
        said = refusal(lambda: read_dataset(folder))
        assert said is None or is_sentence(said), said


# --- in the words of who gave the arguments -------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film, an array that may be a picture, and a model."""
    monkeypatch.chdir(tmp_path)
    film = np.random.default_rng(0).gamma(2.0, 100.0, (9, 11, 5, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(film, np.eye(4)), "film.nii")
    nibabel.save(nibabel.Nifti1Image(film[..., 0], np.eye(4)), "scan.nii")
    np.save("colour.npy", film[:, :, :3, 0])
    replace(MODEL, expected=None).save("model.safetensors")
    return tmp_path


def test_arguments_are_called_what_they_are_called_where_they_were_given(scans: Path, capsys: Any) -> None:
    """In Python by their names, at the command line by those options that the command has."""

    def told(*arguments: str) -> str:
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            assert cli.main(arguments) in (1, 2)
        return str(capsys.readouterr().err)

    with pytest.raises(ValueError, match=r"choose one with volume=, 0 to 2, or all of them with volume='all'"):
        pynca.volumes.read_volume("film.nii")
    said = told("segment", "film.nii", "m.nii", "-m", "model.safetensors")
    assert "choose one with --volume, 0 to 2, or all of them with --volume all" in said
    said = told("animate", "film.nii", "film.gif", "-m", "model.safetensors")
    assert "it holds 3 volumes\n" in said
    for folder in ("images", "labels"):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "film.nii").write_bytes(Path("film.nii").read_bytes())

    with pytest.raises(ValueError, match="may be a colour picture; convert it to grey, or give axis="):
        pynca.predict(np.load("colour.npy"), MODEL)
    said = told("segment", "colour.npy", "m.npy", "-m", "model.safetensors")
    assert "may be a colour picture; convert it to grey\n" in said

    with pytest.raises(ValueError, match=r"; strict=False goes on anyway$"):
        pynca.predict("scan.nii", strict=True)
    assert "; --force goes on anyway\n" in told("segment", "scan.nii", "m.nii")

    with pytest.raises(ValueError, match="group_by is"):
        pynca.cases.find_cases("images", "labels", "(")
    assert "--group-by is '('" in told(
        "train", "--images", "images", "--labels", "labels", "--group-by", "(", "-o", "x.safetensors"
    )
    Path("none.pth").write_bytes(b"")
    assert "; give --fire-rate" in told("import", "none.pth", "-o", "x.safetensors")
    said = told("import", "none.pth", "-o", "x.safetensors", "--fire-rate", "2", "--size", "64", "64", "--steps", "1")
    assert "fire_rate" not in said
    for size in ("nan", "0", "-1", "inf", "1e999"):
        assert "--spacing: " in told("segment", "scan.nii", "m.nii", "--spacing", size)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x; give volume=", "x; give --volume"),
        ("x; give volume= y=", "x"),
        ("x; choose with suffix=", "x; choose with --bids-suffix"),
        ("volume= says", "--volume says"),
        ("axis= says", "axis says"),
        ("/a/volume=3/b.nii is odd; (volume='all') reads it", "/a/volume=3/b.nii is odd; (--volume all) reads it"),
        ("threads is 0; it must be between 1 and 2", "--threads is 0; it must be between 1 and 2"),
        ("threads is a file; OUT must not be", "threads is a file; OUT must not be"),
        ("x: threads is 0; it must be more", "x: threads is 0; it must be more"),
        ("bids_suffix is 3", "--bids-suffix is 3"),
    ],
)
def test_the_words_of_the_command_line(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_options", frozenset({"--volume", "--threads", "--bids-suffix", "--force"}))
    assert common.spoken(text) == said


def test_python_errors_name_no_options() -> None:
    """Outside the command line, no text in the package speaks of its options but as a command to type."""
    folder = Path(pynca.__file__).parent
    for path in folder.rglob("*.py"):
        if path.parent.name in ("cli", "plugins", "_pyinstaller"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            warning = isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
            if warning or isinstance(node, ast.Raise):
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                assert not [t for t in texts if re.search(r"(?<![\w`])--[a-z]", t) and "`pynca" not in t], path


def test_what_is_meant(capsys: Any) -> None:
    assert errors.did_you_mean("hipocampus", ["hippocampus", "x"]) == "; did you mean hippocampus?"
    assert errors.did_you_mean("zzz", ["hippocampus"]) == ""
    with pytest.raises(FileNotFoundError, match=r"hipocampus does not exist; .*; did you mean hippocampus\?"):
        pynca.load_model("hipocampus")
    with pytest.raises(SystemExit) as leaving:
        cli.main([])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("usage: pynca")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--versoin", "pynca: error: unrecognized arguments: --versoin; did you mean --version? (see `pynca --help`)"),
        ("-x", "pynca: error: unrecognized arguments: -x (see `pynca --help`)"),
        ("segmnt a b", "did you mean segment? (see `pynca --help`)"),
        ("segment a b --modle m", "did you mean --model? (see `pynca segment --help`)"),
        ("segment a", "pynca segment: error: the following arguments are required: OUT (see `pynca segment --help`)"),
        ("train -o m.safetensors --seed x", "--seed: 'x' is not a whole number (see `pynca train --help`)"),
        ("segment a b --skip-existing --overwrite", "not allowed with argument"),
    ],
)
def test_wrong_words_are_one_line(words: str, said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(words.split())
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, len(err.splitlines())) == ("", 1)


# --- what reaches a terminal ----------------------------------------------------------------------------------


@given(st.text() | st.sampled_from([CONTROLS, "\ud800", "a\nb"]))
@settings(deadline=None)
def test_a_sentence_is_short_and_harmless(text: str) -> None:
    for error in (ValueError(f"x {text} y"), OSError(2, text, text), text):
        said = errors.sentence(error)
        assert len(said) <= 500
        assert said.isprintable()


def test_a_long_sentence_keeps_its_begin_and_its_end() -> None:
    said = errors.sentence(ValueError(f"a.nii: label is {'x' * 10**5}; it must be short"))
    assert said.startswith("a.nii: label is xxx")
    assert said.endswith("; it must be short")
    assert len(errors.sentence("x" * 10**6)) == 500
    assert errors.sentence("it is odd", "a.nii") == "a.nii: it is odd"
    assert errors.sentence("a.nii is odd", "a.nii") == "a.nii is odd"


@posix
def test_names_of_files_command_no_terminal(scans: Path, capsys: Any) -> None:
    """In lines, warnings, errors and summaries, of single files and of folders."""
    name = "a\x1b]0;x\x07\n\u202eb.nii"
    (scans / name).write_bytes((scans / "scan.nii").read_bytes())
    (scans / f"bad{name}").write_bytes(b"")
    out = f"out\x1b[2J{os.sep}"
    for arguments in (
        ["segment", name, f"mask{name}", "-m", "model.safetensors"],
        ["segment", f"no{name}", "m.nii"],
        ["segment", f"bad{name}", "m.nii"],
        ["segment", ".", f"../{scans.name}-{out}", "-m", "model.safetensors"],
        ["segment", name, "m.nii", "-m", f"no{name}"],
        ["segment", name, f"x{name}.doc"],
        ["segment", name, "m.nii", f"--{name}"],
        ["segment", name, "m.nii", "--format", name],
        [name],
        ["info", f"no{name}"],
        ["estimate", name, "-m", "model.safetensors"],
        ["evaluate", "--images", name, "--labels", name],
        ["report", name],
        ["animate", name, f"{name}.gif.x"],
        ["import", f"no{name}", "-o", "m.safetensors"],
    ):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            cli.main(arguments)
        for text in capsys.readouterr():
            assert all(line.isprintable() for line in text.split("\n")), arguments
            assert "\n\ufffdb" not in text


def test_json_stays_json(scans: Path, capsys: Any) -> None:
    name = os.fsdecode(b"caf\xe9\x1b.nii")
    (scans / name).write_bytes((scans / "scan.nii").read_bytes())
    cli.main(["segment", name, "m.nii", "-m", "model.safetensors", "--json"])
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text)["input"] == name


def test_a_notebook_shows_text_as_text(scans: Path) -> None:
    model = pynca.Model(MODEL.levels, MODEL.preparation, labels={1: "<b>\u202e\x1b"})
    html = pynca.predict("scan.nii", model)._repr_html_()
    assert "&lt;b&gt;" in html
    assert html.isprintable()


# --- streams --------------------------------------------------------------------------------------------------


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = ["sh", "-c", command.replace("pynca", '"$0" -m pynca', 1), sys.executable]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)


@posix
@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams(streams: str, scans: Path) -> None:
    """Errors never go elsewhere, files stay what they are, and codes are those of any run."""
    if "/dev/full" in streams and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    wrong = shell(f"pynca segment no.nii m.nii {streams}", scans)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert ("no.nii does not exist" in wrong.stderr) == ("2>" not in streams)
    unknown = shell(f"pynca fly {streams}", scans)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert pynca.cli.main(["segment", "scan.nii", "expected.nii", "-m", "model.safetensors"]) == 0
    done = shell(f"pynca segment scan.nii m.nii -m model.safetensors --stats s.csv {streams}", scans)
    assert done.returncode == 0
    assert "pynca: " not in done.stdout + done.stderr
    assert (scans / "m.nii").read_bytes() == (scans / "expected.nii").read_bytes()
    assert (scans / "s.csv").read_text().startswith("input,label,")


@posix
@pytest.mark.parametrize("command", ["segment scan.nii m.nii -m model.safetensors", "models"])
def test_a_full_standard_output_is_named(command: str, scans: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    ended = shell(f"pynca {command} >/dev/full", scans)
    assert (ended.returncode, ended.stderr) == (1, "pynca: standard output: No space left on device\n")


def test_an_unexpected_error_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("x" * 10**5)

    monkeypatch.setattr("pynca.config.show_config", broken)
    assert cli.main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pynca: internal error: KeyError: 'xxx")
    assert "PYNCA_DEBUG=1" in said
    assert is_sentence(said.rstrip("\n"))
    monkeypatch.setenv("PYNCA_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["info"])


def test_libraries_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Neither what they log nor what they warn of for those who program reaches who runs the command."""

    def chatty() -> None:
        logging.getLogger("nibabel.global").critical("pixdim[1,2,3] should be positive")
        logging.getLogger().error("raw")
        warnings.warn("overflow encountered", RuntimeWarning, stacklevel=1)
        warnings.warn("a doubt", UserWarning, stacklevel=1)

    monkeypatch.setattr("pynca.config.show_config", chatty)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["info"]) == 0
    assert capsys.readouterr().err == "pynca: warning: a doubt\n"
    assert not logging.root.manager.disable


# --- folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(scans: Path) -> Iterator[Path]:
    """A folder in 1500 others, which pytest could not remove."""
    before = os.getcwd()
    try:
        os.mkdir("in")
        os.chdir("in")
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(before)
        yield Path("in", *["d"] * 1500)
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", "in", "out"], check=True)


@posix
def test_nested_folders(deep: Path, capsys: Any) -> None:
    """Deeper than Python's calls may be, names as long as they can be, links in a ring."""
    (deep / "scan.nii").symlink_to(Path("scan.nii").resolve())
    (deep / ("n" * 255)).mkdir()
    (deep / ("n" * 255) / "ring").symlink_to(Path("in").resolve())
    (deep / ("m" * 251 + ".nii")).write_bytes(Path("scan.nii").read_bytes())
    code = cli.main(["segment", "in", "out", "-m", "model.safetensors", "--threads", "1"])
    told = capsys.readouterr()
    assert code == 0
    assert "out: 2 done" in told.out
    assert all(line.startswith("pynca: warning: ") for line in told.err.splitlines())


@posix
def test_paths_that_are_too_long_are_failures_of_their_own(scans: Path, capsys: Any) -> None:
    before = os.getcwd()
    try:
        os.mkdir("in")
        os.chdir("in")
        Path("a.nii").symlink_to(scans / "scan.nii")
        for _ in range(30):
            os.mkdir("n" * 200)
            os.chdir("n" * 200)
        os.chdir(before)
        assert cli.main(["segment", "in", "out", "-m", "model.safetensors", "--threads", "1", "-q"]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert len(said) == 2
        assert said[0].endswith(": File name too long")
        assert is_sentence(said[0])
        assert said[1] == "pynca: 1 of 2 files failed"
        assert Path("out", "a.nii").is_file()
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", "in", "out"], check=True)


@pytest.mark.parametrize("option", ["--samples", "--seed", "--threads"])
@pytest.mark.parametrize("number", ["-1", "9" * 25, "9" * 5000, "x" * 5000, "1e3"])
def test_numbers_that_cannot_be_right(option: str, number: str, scans: Path, capsys: Any) -> None:
    for folder in ("images", "labels"):
        Path(folder).mkdir()
        Path(folder, "scan.nii").write_bytes(Path("scan.nii").read_bytes())
    for command in (["segment", "scan.nii", "m.nii"], ["evaluate", "--images", "images", "--labels", "labels"]):
        capsys.readouterr()
        try:
            code: object = cli.main([*command, "-m", "model.safetensors", f"{option}={number}"])
        except SystemExit as leaving:
            code = leaving.code
        told = capsys.readouterr()
        assert (code, told.out) == (2, "")
        assert option in told.err.splitlines()[-1]
        assert is_sentence(told.err.splitlines()[-1])
    assert not Path("m.nii").exists()


def test_numbers_of_thousands_of_digits_in_python() -> None:
    for value in (10**5000, -(10**5000)):
        with pytest.raises(ValueError, match="seed is a number of thousands of digits; it must be between 0"):
            pynca.fire_mask((4, 4), 1, seed=value)
