"""The Dask example, on a local cluster of two processes: the same masks as without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pynca import cli
from support import random_model

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "cluster.py"

pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

CLUSTER = """
import os, subprocess, sys
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        code = subprocess.run([sys.executable, *sys.argv[1:], "--scheduler", address]).returncode
        with Client(address) as client:
            assert len(set(client.run(os.getpid).values())) == 2
    sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "scans"
    scans.mkdir()
    for n in range(6):
        image = np.random.default_rng(n).random((14, 15, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, 1, 1, 1])), scans / f"{n}.nii.gz")
    random_model().save(tmp_path / "m.safetensors")
    return tmp_path


def test_masks_are_those_of_the_serial_run(folder: Path) -> None:
    (folder / "scans" / "bad.nii").write_bytes(b"no volume")
    (folder / "start.py").write_text(CLUSTER)
    options = ["-m", "m.safetensors", "--samples", "2", "--seed", "3"]
    run = subprocess.run(
        [sys.executable, "start.py", EXAMPLE, "scans", "masks", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stderr
    rows = {row["input"]: row for row in map(json.loads, run.stdout.splitlines())}
    assert sorted(rows) == [*(f"{n}.nii.gz" for n in range(6)), "bad.nii"]
    assert rows["bad.nii"]["status"] == "failed"
    assert rows["bad.nii"]["error"].endswith("bad.nii is not a NIfTI file; it must be .nii or .nii.gz")

    (folder / "scans" / "bad.nii").unlink()
    where = [str(folder / name) for name in ("scans", "serial")]
    assert cli.main(["segment", *where, "-q", "-m", str(folder / "m.safetensors"), *options[2:]]) == 0
    for n in range(6):
        name = f"{n}.nii.gz"
        assert (folder / "masks" / name).read_bytes() == (folder / "serial" / name).read_bytes()
        voxels = np.count_nonzero(np.asarray(nibabel.load(folder / "masks" / name).dataobj))
        fixed = {key: rows[name][key] for key in ("input", "status", "error", "voxels")}
        assert fixed == {"input": name, "status": "done", "error": None, "voxels": voxels}
        assert rows[name]["nqm"] > 0


@pytest.mark.slow
def test_without_a_cluster_it_starts_processes(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLE, "scans", "masks", "-m", "m.safetensors", "--workers", "2"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, len(run.stdout.splitlines())) == (0, 6), run.stderr
    assert len(list((folder / "masks").iterdir())) == 6
