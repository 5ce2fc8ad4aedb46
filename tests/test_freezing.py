"""A program that uses pynca, packed by PyInstaller: it finds the bundled models, and every format that it had."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import pynca
from pynca import cli, zoo

PROGRAM = """
import sys
import zipfile
from importlib.resources import files
import pynca
for source, result in zip(sys.argv[1::2], sys.argv[2::2]):
    pynca.predict(source).save(result)
print(sorted(path.name for folder in ("zoo", "web") for path in (files("pynca") / folder).iterdir()))
"""


def test_pyinstaller_finds_the_hook() -> None:
    (hooks,) = (entry for entry in entry_points(group="pyinstaller40") if entry.value.startswith("pynca."))
    (folder,) = hooks.load()()
    assert [path.name for path in Path(folder).glob("hook-*.py")] == ["hook-pynca.py"]


def test_the_hook_names_every_module_that_is_imported_by_name() -> None:
    package = Path(pynca.__file__).parent
    hook = (package / "_pyinstaller" / "hook-pynca.py").read_text()
    sources = [path.read_text() for path in (*package.glob("*.py"), *package.glob("*/*.py"))]
    named = {name for text in sources for name in re.findall(r'(?:optional|import_module)\("([a-zA-Z_.]+)"', text)}
    assert "highdicom.seg" in named
    # the core is a submodule, and a notebook is no packed program
    assert [name for name in sorted(named - {"._core", "ipyniivue"}) if f'"{name}"' not in hook] == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
def test_a_packed_program_writes_the_same_masks(tmp_path: Path, data: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    options = ["--noconfirm", "--log-level", "ERROR"]
    for module in ("torch", "matplotlib", "scipy", "pandas", "pytest"):
        options += ["--exclude-module", module]
    build = [sys.executable, "-m", "PyInstaller", *options, "app.py"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    scans = {
        data / "hippocampus" / "images" / "hippocampus_001.nii.gz": "mask.nii.gz",
        data / "dicom" / "study1": "mask.dcm" if find_spec("highdicom") else "mask_of_series.nii.gz",
    }
    files = [text for scan, mask in scans.items() for text in (str(scan), mask)]
    program = tmp_path / "dist" / "app" / "app"
    ran = subprocess.run([program, *files], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    packed = {name for name in ("hippocampus.safetensors", "report.css", "report.js") if repr(name) in ran.stdout}
    assert len(packed) == 3, ran.stdout
    for scan, mask in scans.items():
        place = tmp_path / f"here_{mask}"
        pynca.predict(scan).save(place)
        assert (tmp_path / mask).read_bytes() == place.read_bytes()


def test_models_that_were_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zoo.find("hippocampus")
    assert path is not None
    monkeypatch.setattr(zoo, "_FOLDER", tmp_path / "nothing")
    assert zoo.names() == []
    with pytest.raises(FileNotFoundError, match="bundled models were not packed with this program"):
        pynca.load_model("hippocampus")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    assert cli.main(["segment", str(tmp_path / "scan.nii.gz"), str(tmp_path / "mask.nii.gz")]) == 1
    assert "bundled models were not packed with this program" in capsys.readouterr().err
    assert pynca.load_model(path).labels == {1: "hippocampus"}  # a file is a file


def test_an_archive_of_python_files_says_what_it_cannot(tmp_path: Path) -> None:
    """`python -m zipapp` packs what Python loads from an archive, and that is no compiled core."""
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.write(Path(pynca.__file__), "pynca/__init__.py")
        archive.writestr("__main__.py", "import pynca")
    ran = subprocess.run([sys.executable, "app.pyz"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "is in an archive, from which Python loads no compiled core" in ran.stderr
