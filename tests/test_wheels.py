"""What a wheel must be: small, quick to import, and able to do everything on the least CPU that it is for."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path

import pytest

import pynca
from pynca import _core

LIMIT = 2_000_000  # bytes, compressed as in a wheel
SMOKE = Path(__file__).parent / "smoke.py"


def test_the_wheel_is_small() -> None:
    """Not the wheel itself, which is gone by now, but the files that it held, compressed as it compresses."""
    files = [Path(str(file.locate())) for file in metadata.files("pynca") or [] if file.suffix != ".pyc"]
    there = [file for file in files if file.is_file()]
    assert Path(_core.__file__).resolve() in {file.resolve() for file in there}
    assert sum(len(zlib.compress(file.read_bytes(), 6)) for file in there) <= LIMIT


def test_importing_pynca_loads_numpy_and_the_core_and_nothing_else(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import pynca; pynca.Rule; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "pynca._core" in loaded
    # Cython's modules for its own types have no files
    roots = {name.partition(".")[0] for name in loaded if not name.startswith(("_cython_", "cython_runtime"))}
    assert roots <= {"pynca", "numpy", *sys.stdlib_module_names}
    assert not {"pynca.training", "pynca.volumes", "pynca.segmentation", "pynca.cli"} & set(loaded)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_a_fresh_installation_runs_segments_and_trains(isa: str) -> None:
    """The script that the checks of wheels run under emulation, where there is no pytest."""
    command = [sys.executable, str(SMOKE), isa]
    run = subprocess.run(command, env={**os.environ, "PYNCA_ISA": isa}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"pynca            {pynca.__version__}" in run.stdout
    wrong = subprocess.run(
        [*command[:-1], "none"], env={**os.environ, "PYNCA_ISA": isa}, capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == f"the instruction set is {isa}, not none"
