"""What shells fill in, asked of bash itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pynca import cli, zoo
from pynca.cli.completion import SHELLS

shtab = pytest.importorskip("shtab", reason="shtab is not installed")

ASK = """
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_pynca pynca "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_text(script("bash", capsys))
    for name in ("scan.nii.gz", "scan two.nii", "notes.txt", "mine.safetensors", ".hidden.nii"):
        (tmp_path / name).touch()
    (tmp_path / "scans").mkdir()
    return tmp_path


def ask(folder: Path, *words: str) -> set[str]:
    """Return what bash offers for the last of the words."""
    run = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", "pynca", *words], cwd=folder, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return set(run.stdout.splitlines()) - {""}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["seg"], {"segment"}),
        (["segment", "--mem"], {"--memory"}),
        (["segment", "sc"], {"scan.nii.gz", "scan two.nii", "scans"}),
        (["segment", "scan.nii.gz", "out.nii", "-m", "hippo"], {"hippocampus"}),
        (["segment", "scan.nii.gz", "out.nii", "--model", "mi"], {"mine.safetensors"}),
        (["evaluate", "--images", ""], {"scans"}),
        (["estimate", "n"], set()),
        (["completion", ""], set(SHELLS)),
        (["slicer", ""], {"scans"}),
        (["import", "n"], {"notes.txt"}),
    ],
)
def test_bash_offers(folder: Path, words: list[str], offered: set[str]) -> None:
    assert ask(folder, *words) == offered


def test_bash_offers_every_command_and_bundled_model(folder: Path) -> None:
    assert ask(folder, "") >= {"segment", "estimate", "info", "import", "demo", "evaluate", "train"}
    assert ask(folder, "info", "") >= {*zoo.names(), "mine.safetensors", "scans"}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_can_read_their_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script(shell, capsys))
    run = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_fish_offers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (folder / "fish").write_text(script("fish", capsys))
    code = 'source fish; for line in "pynca seg" "pynca info h" "pynca segment sc"; complete -C $line; end'
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(folder / "home")}
    run = subprocess.run(["fish", "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    offered = [line.split("\t")[0] for line in run.stdout.splitlines()]
    assert {"segment", "hippocampus", "scan.nii.gz", "scans/"} <= set(offered)
    assert "notes.txt" not in offered


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert (
        "completion needs shtab, which is not installed: run `pip install '.[completion]'`" in capsys.readouterr().err
    )
