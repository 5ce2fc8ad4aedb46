"""The napari plugin: its manifest without napari, its widget in a real viewer where napari is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import pynca

PACKAGE = Path(pynca.__path__[0])
DRIVER = Path(__file__).with_name("drive_napari.py")


def test_the_manifest_names_what_is_there() -> None:
    text = (PACKAGE / "napari.yaml").read_text()
    assert re.search(r"^name: pynca$", text, re.MULTILINE), "napari wants the distribution's name"
    commands = set(re.findall(r"- id: (\S+)", text))
    assert commands == set(re.findall(r"- command: (\S+)", text))
    assert all(command.startswith("pynca.") for command in commands)
    for module, name in re.findall(r"python_name: ([\w.]+):(\w+)", text):
        source = PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
        assert f"class {name}(" in source.read_text()


def test_the_entry_point_names_the_manifest() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert '[project.entry-points."napari.manifest"]\npynca = "pynca:napari.yaml"\n' in project.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic about npe2
def test_npe2_accepts_the_manifest() -> None:
    npe2 = pytest.importorskip("npe2", reason="npe2 is not installed")
    manifest = npe2.PluginManifest.from_file(PACKAGE / "napari.yaml")
    manifest.validate_imports()
    assert [w.display_name for w in manifest.contributions.widgets] == ["Segment"]


@pytest.mark.skipif(find_spec("napari") is None, reason="napari is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a display, or xvfb-run")
def test_the_widget_in_a_viewer() -> None:
    start = []
    if "DISPLAY" not in os.environ:  # Qt without a display has no OpenGL, and napari needs it
        if shutil.which("xvfb-run") is None:
            pytest.skip("there is no display, and xvfb-run is not installed")
        start = ["xvfb-run", "-a"]
    run = subprocess.run([*start, sys.executable, DRIVER], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "driven"
