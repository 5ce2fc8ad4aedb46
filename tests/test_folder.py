"""Folders of scans: to the end whatever is in them, resumed to the bit, nothing mixed, nothing lost, nobody told."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import pynca
from pynca import batch, cli, layouts
from pynca.manifest import Entry, Manifest, digest, model_file
from support import random_model

SCRIPT = Path(sysconfig.get_path("scripts")) / ("pynca.exe" if os.name == "nt" else "pynca")
LIMIT = 300
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model and a folder of scans, one of them in a folder of its own."""
    random_model().save(tmp_path / "model.safetensors")
    for n, name in enumerate(("a.nii.gz", "b.nii", "ward/c.nii.gz")):
        write_scan(tmp_path / "scans" / name, seed=n)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_scan(path: Path, seed: int = 0) -> None:
    image = nibabel.Nifti1Image(
        np.random.default_rng(seed).gamma(2.0, 100.0, (9, 11, 5)).astype(np.float32), np.diag([-1.0, 1.5, 2.0, 1.0])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


@pytest.fixture
def segment(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Run the command in this process; return its code and the lines that it printed."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        try:
            code = cli.main(["segment", "-m", "model.safetensors", "--threads", "1", *arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out.splitlines(), err.splitlines()

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def timeless(content: dict[str, Any]) -> dict[str, Any]:
    cases = [{key: value for key, value in case.items() if key != "seconds"} for case in content["cases"]]
    return {**{key: value for key, value in content.items() if key not in ("started", "seconds")}, "cases": cases}


def results(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every file of a folder of results, and its manifest but for the times."""
    found = files(folder)
    del found["manifest.json"]
    return found, timeless(manifest(folder))


# --- sixty volumes, five of them broken -------------------------------------------------------------------------

BROKEN = {
    "cut.nii.gz": "is damaged or cut short",
    "flat.nii.gz": "a volume must have three axes",
    "locked.nii.gz": "Permission denied",
    "nan.nii.gz": "not finite",
    "text.nii.gz": "is not a NIfTI file",
}


def give_up_reading_everything() -> None:
    """Root reads every file, by these two capabilities; without them it is one user among others."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and hand that on
    give_up_reading_everything()


@pytest.fixture(scope="module")
def sixty(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``scans`` of sixty volumes, of which five are broken."""
    root = tmp_path_factory.mktemp("sixty")
    scans = root / "scans"
    scans.mkdir()
    sound = sorted((data / "hippocampus" / "images").glob("*.nii.gz"))[:55]
    for path in sound:
        shutil.copyfile(path, scans / path.name)
    whole = gzip.compress(gzip.decompress(sound[0].read_bytes()), mtime=0)
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(nibabel.Nifti1Image(np.ones((35, 51), np.float32), np.eye(4)), scans / "flat.nii.gz")
    (scans / "locked.nii.gz").write_bytes(whole)
    (scans / "locked.nii.gz").chmod(0)
    holes = np.asarray(nibabel.load(sound[0]).dataobj, np.float32)
    holes[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(holes, np.eye(4)), scans / "nan.nii.gz")
    (scans / "text.nii.gz").write_text("Patient could not lie still, no scan.\n")
    tried = subprocess.run(
        ["cat", scans / "locked.nii.gz"], preexec_fn=interruptible, capture_output=True, timeout=LIMIT
    )
    if tried.returncode == 0:
        pytest.skip("this user reads files without permission, and cannot be kept from it")
    random_model().save(root / "small.safetensors")
    return root


def run_sixty(
    root: Path, out: str, model: str, *, stop: tuple[int, signal.Signals] | None = None
) -> tuple[int, list[str], list[str]]:
    """Segment the sixty volumes; with ``stop``, send a signal after so many lines."""
    arguments = ["scans", f"{out}/masks", "-m", model, "--threads", "1", "--samples", "2"]
    arguments += ["--save-probability", f"{out}/maps", "--stats", f"{out}/stats.csv"]
    process = subprocess.Popen(
        [SCRIPT, "segment", *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    assert process.stdout is not None
    lines = []
    if stop is not None:
        lines = [process.stdout.readline() for _ in range(stop[0])]
        process.send_signal(stop[1])
    rest, err = process.communicate(timeout=LIMIT)
    assert "Traceback" not in err
    return process.returncode, [*lines, *rest.splitlines()], err.splitlines()


@linux
@pytest.mark.parametrize(
    "model", ["small.safetensors", pytest.param("hippocampus", marks=pytest.mark.slow)], ids=["small", "bundled"]
)
def test_sixty_volumes_of_which_five_are_broken(sixty: Path, model: str) -> None:
    """They end with 55 masks and five clear lines; interrupted and started again, with the same bits."""
    whole = sixty / f"{Path(model).stem}-whole"
    code, out, err = run_sixty(sixty, whole.name, model)
    assert code == 1
    assert len(out) == 56
    assert out[-1] == f"{whole.name}/masks: 55 done, 5 failed, 0 skipped, 0 to review"
    assert len(err) == 6
    assert err[-1] == "pynca: 5 of 60 files failed"
    for line, (name, reason) in zip(err, BROKEN.items(), strict=False):
        assert line.startswith("pynca: ")
        assert line.count(f"scans/{name}") == 1
        assert reason in line
    masks, kept = results(whole / "masks")
    sound = {path.name for path in (sixty / "scans").iterdir()} - set(BROKEN)
    assert set(masks) == set(files(whole / "maps")) == sound
    assert kept["summary"] == {"done": 55, "failed": 5, "skipped": 0, "review": 0}
    assert len((whole / "stats.csv").read_text().splitlines()) == 56

    for how in (signal.SIGINT, signal.SIGKILL):
        again = sixty / f"{Path(model).stem}-{how.name}"
        code, out, err = run_sixty(sixty, again.name, model, stop=(25, how))
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
        assert len(out) < 50
        there = {name for name in files(again / "masks") if not name.startswith(".")} - {"manifest.json"}
        listed = manifest(again / "masks")
        done = {case["input"] for case in listed["cases"] if case["status"] == "done"}
        assert 24 <= len(done) < 50
        assert done <= there
        assert len(there - done) <= 1
        assert done.isdisjoint(listed["pending"])
        assert not (again / "stats.csv").exists()
        before = {name: (again / "masks" / name).stat().st_mtime_ns for name in done}

        code, out, err = run_sixty(sixty, again.name, model)
        assert code == 1
        assert out[-1].startswith(f"{again.name}/masks: 55 done ({len(done)} before), 5 failed")
        assert len(err) == 6
        assert before == {name: (again / "masks" / name).stat().st_mtime_ns for name in done}
        assert results(again / "masks") == (masks, kept)
        assert files(again / "maps") == files(whole / "maps")
        assert (again / "stats.csv").read_bytes() == (whole / "stats.csv").read_bytes()


# --- going on, and what is never mixed --------------------------------------------------------------------------


def test_the_same_command_again_does_nothing(folder: Path, segment: Any) -> None:
    assert segment("scans", "masks", "--stats", "one.csv")[0] == 0
    before = results(folder / "masks")
    times = {path: path.stat().st_mtime_ns for path in (folder / "masks").rglob("*.nii*")}
    code, out, err = segment("scans", "masks", "--stats", "two.csv")
    assert (code, out, err) == (0, ["masks: 3 done (3 before), 0 failed, 0 skipped, 0 to review"], [])
    assert results(folder / "masks") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (folder / "one.csv").read_bytes() == (folder / "two.csv").read_bytes()
    lines = segment("scans", "masks", "--json")[1]
    assert [json.loads(line)["status"] for line in lines] == ["done"] * 3
    assert [json.loads(line)["input"] for line in lines] == [
        str(Path("scans") / n) for n in ("a.nii.gz", "b.nii", "ward/c.nii.gz")
    ]


def test_what_is_missing_changed_or_new_is_done(folder: Path, segment: Any) -> None:
    (folder / "scans" / "bad.nii").write_bytes(b"no scan")
    assert segment("scans", "masks")[0] == 1
    (folder / "masks" / "a.nii.gz").unlink()
    write_scan(folder / "scans" / "b.nii", seed=7)
    write_scan(folder / "scans" / "bad.nii", seed=8)
    write_scan(folder / "scans" / "new.nii", seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = segment("scans", "masks")
    changed = f"{Path('scans/b.nii')} has changed since it was segmented; it is segmented anew"
    assert (code, err) == (0, [f"pynca: warning: {changed}"])
    assert [line.partition(":")[0] for line in out] == [
        *(str(Path("masks") / name) for name in ("a.nii.gz", "b.nii", "bad.nii", "new.nii")),
        "masks",
    ]
    assert out[-1] == "masks: 5 done (1 before), 0 failed, 0 skipped, 0 to review"
    segment("scans", "fresh")
    assert results(folder / "masks") == results(folder / "fresh")


def test_a_further_kind_of_result_is_made(folder: Path, segment: Any) -> None:
    segment("scans", "masks", "--samples", "2")
    assert segment("scans", "masks", "--samples", "2", "--save-uncertainty", "sd")[0] == 0
    uncertainty = nibabel.load(folder / "sd" / "ward" / "c.nii.gz")
    expected = pynca.predict(folder / "scans" / "ward" / "c.nii.gz", "model.safetensors", samples=2)
    np.testing.assert_array_equal(np.asarray(uncertainty.dataobj), expected.uncertainty)
    case = manifest(folder / "masks")["cases"][-1]
    assert case["outputs"] == {"mask": "ward/c.nii.gz", "uncertainty": "../sd/ward/c.nii.gz"}
    assert 0 < case["nqm"] == case["labels"][0]["nqm"]


def test_an_input_that_is_gone_keeps_its_entry_as_long_as_its_mask(folder: Path, segment: Any) -> None:
    segment("scans", "masks")
    (folder / "scans" / "a.nii.gz").unlink()
    assert segment("scans", "masks")[1] == ["masks: 3 done (2 before), 0 failed, 0 skipped, 0 to review"]
    (folder / "masks" / "a.nii.gz").unlink()
    assert segment("scans", "masks")[1] == ["masks: 2 done (2 before), 0 failed, 0 skipped, 0 to review"]


def test_results_of_other_options_are_not_mixed(folder: Path, segment: Any) -> None:
    segment("scans", "masks")
    before = files(folder)
    for arguments, what in (
        (["--seed", "7"], "seed 0, not 7"),
        (["--samples", "3", "--seed", "1", "--skip-existing"], "samples 1, not 3 and seed 0, not 1"),
        (["-m", "hippocampus"], "model model ("),
    ):
        code, out, err = segment("scans", "masks", *arguments)
        assert (code, out) == (2, [])
        assert len(err) == 1
        assert f"masks was made with {what}" in err[0]
        assert err[0].endswith("choose another OUT, or give --overwrite to begin anew")
        assert files(folder) == before
    assert segment("scans", "masks", "--seed", "7", "--overwrite")[0] == 0
    segment("scans", "fresh", "--seed", "7")
    assert results(folder / "masks") == results(folder / "fresh")


def test_a_case_that_fails_leaves_nothing_of_an_earlier_run(folder: Path, segment: Any) -> None:
    segment("scans", "masks")
    (folder / "scans" / "b.nii").write_bytes(b"no scan")
    assert segment("scans", "masks", "--seed", "7", "--overwrite")[0] == 1
    assert set(files(folder / "masks")) == {"a.nii.gz", "ward/c.nii.gz", "manifest.json"}


def test_masks_of_nobody_knows_whom_are_not_replaced(folder: Path, segment: Any) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "b.nii").write_bytes(b"a day's work")
    code, out, err = segment("scans", "masks")
    assert (code, out) == (2, [])
    assert "b.nii is there already and masks/manifest.json does not say what made it; --skip-existing leaves" in err[0]
    assert files(folder / "masks") == {"b.nii": b"a day's work"}

    code, out, err = segment("scans", "masks", "--skip-existing", "--stats", "s.csv")
    assert (code, err) == (0, [])
    assert out[1:] == [
        f"{Path('masks/b.nii')}: skipped, since it is there already",
        out[2],
        "masks: 2 done (1 before), 0 failed, 1 skipped, 0 to review",
    ]
    assert manifest(folder / "masks")["cases"][1]["status"] == "skipped"
    assert manifest(folder / "masks")["cases"][1]["sha256"] == digest(folder / "scans" / "b.nii")
    assert len((folder / "s.csv").read_text().splitlines()) == 3
    assert segment("scans", "masks")[0] == 0  # remembered, also without the option
    assert (folder / "masks" / "b.nii").read_bytes() == b"a day's work"

    write_scan(folder / "scans" / "new.nii")
    (folder / "masks" / "new.nii").write_bytes(b"drawn by hand")
    assert segment("scans", "masks")[0] == 2
    assert (folder / "masks" / "new.nii").read_bytes() == b"drawn by hand"
    assert segment("scans", "masks", "--overwrite")[0] == 0
    segment("scans", "fresh")
    assert results(folder / "masks") == results(folder / "fresh")


def test_a_mask_corrected_by_hand_is_left_alone(folder: Path, segment: Any) -> None:
    """Whatever happens to its input, and whatever else is asked for."""
    segment("scans", "masks")
    mask = folder / "masks" / "b.nii"
    corrected = mask.read_bytes()[:-9] + b"\1" * 9
    mask.write_bytes(corrected)
    write_scan(folder / "scans" / "b.nii", seed=7)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = segment("scans", "masks", "--save-probability", "p", "--stats", "s.csv")
    assert (code, err) == (
        0,
        [f"pynca: warning: {Path('masks/b.nii')} was changed since it was made; it is left alone and not counted"],
    )
    assert out[-1] == "masks: 2 done (1 before), 0 failed, 1 skipped, 0 to review"
    assert mask.read_bytes() == corrected
    assert set(files(folder / "p")) == {"a.nii.gz", "ward/c.nii.gz"}
    assert "b.nii" not in (folder / "s.csv").read_text()
    assert segment("scans", "masks", "--save-probability", "p")[2] == []
    assert segment("scans", "masks", "--overwrite")[0] == 0
    assert mask.read_bytes() != corrected


def test_skip_existing_for_a_file(folder: Path, segment: Any) -> None:
    (folder / "mask.nii").write_bytes(b"a day's work")
    code, out, err = segment("scans/b.nii", "mask.nii", "--skip-existing")
    assert (code, out, err) == (0, ["mask.nii: skipped, since it is there already"], [])
    assert (folder / "mask.nii").read_bytes() == b"a day's work"
    assert segment("scans/b.nii", "mask.nii", "--skip-existing", "--overwrite")[0] == 2


def test_what_a_killed_process_left_is_removed(folder: Path, segment: Any) -> None:
    segment("scans", "masks")
    before = files(folder / "masks")
    for left in (".0123456789abcdef.b.nii", ".fedcba9876543210.manifest.json", "ward/.0123456789abcdef.c.nii.gz"):
        (folder / "masks" / left).write_bytes(b"half")
    (folder / "masks" / ".0123456789abcdef.other").write_bytes(b"not ours")
    segment("scans", "masks")
    assert set(files(folder / "masks")) == {*before, ".0123456789abcdef.other"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"schema": 2}',
        b'{"schema": 1, "model": {}}',
        {"pending": 7},
        {"cases": [{"input": "a"}]},
        {"cases": [{"input": ["a"], "sha256": "", "status": "done", "labels": []}]},
        {"cases": [{"input": "a", "sha256": "", "status": "fine", "labels": []}]},
        {"cases": [{"input": "a", "sha256": "", "status": "done", "labels": [], "outputs": {"mask": 7}}]},
    ],
    ids=repr,
)
def test_a_damaged_manifest_is_refused_in_a_sentence(
    content: bytes | dict[str, Any], folder: Path, segment: Any
) -> None:
    segment("scans", "masks")
    if isinstance(content, dict):
        content = json.dumps({**manifest(folder / "masks"), **content}).encode()
    (folder / "masks" / "manifest.json").write_bytes(content)
    code, out, err = segment("scans", "masks")
    assert (code, out) == (2, [])
    assert len(err) == 1
    assert "manifest.json is damaged or not pynca's" in err[0]
    assert segment("scans", "masks", "--overwrite")[0] == 0


def test_a_manifest_says_what_was_made_from_what(folder: Path, segment: Any) -> None:
    (folder / "scans" / "bad.nii").write_bytes(b"no scan")
    scan = nibabel.load(folder / "scans" / "a.nii.gz")
    scan.set_sform(None, 0)
    scan.set_qform(None, 0)
    nibabel.save(scan, folder / "scans" / "doubt.nii")
    code, _, err = segment("scans", "masks", "--seed", "5")
    assert code == 1
    assert err[1].startswith("pynca: warning: ")
    content = manifest(folder / "masks")
    assert list(content) == [
        *("schema", "pynca", "model", "options", "started", "seconds", "pending", "cases", "summary"),
    ]
    model = digest(folder / "model.safetensors")
    assert content["model"] == {"name": "model", "file": "model.safetensors", "sha256": model}
    arithmetic = batch.Options().recorded()["arithmetic"]
    assert content["options"] == {"seed": 5, "samples": 1, "volume": None, "spacing": None, "arithmetic": arithmetic}
    assert content["summary"] == {"done": 4, "failed": 1, "skipped": 0, "review": 0}
    cases = {case["input"]: case for case in content["cases"]}
    assert list(cases) == ["a.nii.gz", "b.nii", "bad.nii", "doubt.nii", "ward/c.nii.gz"]
    for name, case in cases.items():
        assert case["sha256"] == digest(folder / "scans" / name)
        assert case["mask_sha256"] == (None if case["error"] else digest(folder / "masks" / name))
    assert cases["bad.nii"]["error"] == f"{Path('scans/bad.nii')} is not a NIfTI file; it must be .nii or .nii.gz"
    assert [f"pynca: warning: {cases['doubt.nii']['warnings'][0]}"] == [err[1]]
    mask = np.asarray(nibabel.load(folder / "masks" / "ward" / "c.nii.gz").dataobj)
    (label,) = cases["ward/c.nii.gz"]["labels"]
    assert label["voxels"] == np.count_nonzero(mask)
    assert label["volume_ml"] == pytest.approx(np.count_nonzero(mask) * 0.003)
    assert label["bounding_box"] == [[int(axis.min()), int(axis.max())] for axis in np.nonzero(mask)]


def test_whatever_a_case_brings_about_the_others_are_done(
    folder: Path, segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = batch.read_volume

    def stumble(path: Path, **options: Any) -> Any:
        if path.name == "b.nii":
            raise KeyError("PixelData")
        return read(path, **options)

    monkeypatch.setattr(batch, "read_volume", stumble)
    code, out, err = segment("scans", "masks")
    assert (code, len(out)) == (1, 3)
    assert err[0] == f"pynca: {Path('scans/b.nii')}: KeyError: 'PixelData'"


def test_a_manifest_of_thousands_is_written_once_a_second(tmp_path: Path, folder: Path) -> None:
    kept = Manifest(tmp_path / "out", model_file("hippocampus"), {})
    with kept:
        for n in range(1000):
            kept.put(Entry(f"{n:04}", None, "failed", "no"))
        kept.add(Entry("1000", None, "failed", "no"))
        assert len(manifest(tmp_path / "out")["cases"]) == 0
        kept._saved = time.monotonic() - 2
        kept.add(Entry("1001", None, "failed", "no"))
        assert len(manifest(tmp_path / "out")["cases"]) == 1002
        kept.add(Entry("1002", None, "failed", "no"))
    assert len(manifest(tmp_path / "out")["cases"]) == 1003
    assert Manifest.read(tmp_path / "out").entries() == kept.entries()


# --- layouts ----------------------------------------------------------------------------------------------------


def names(source: Path, out: Path, kinds: tuple[str, ...] = ("mask",), **options: Any) -> dict[str, list[str]]:
    """What becomes of a folder of empty files: from input to results, relative to their folders."""
    jobs, _ = layouts.find_jobs(source, dict.fromkeys(kinds, out), title="my model-2", **options)
    return {job.name: [path.relative_to(out).as_posix() for path in job.outputs.values()] for job in jobs}


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def test_a_folder_is_mirrored(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "b.nii", "a.nii.gz", "x/y/a.nii.gz", "x/z.NII", "._a.nii.gz", ".git/a.nii", "n.txt")
    assert names(source, tmp_path / "out") == {
        name: [name] for name in ("a.nii.gz", "b.nii", "x/y/a.nii.gz", "x/z.NII")
    }
    jobs, _ = layouts.find_jobs(source, {"mask": tmp_path / "m", "preview": tmp_path / "p"}, title="m")
    assert jobs[2].outputs["preview"] == tmp_path / "p" / "x" / "y" / "a.png"


@posix
def test_links_and_pipes_in_a_folder(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "a.nii", "x/b.nii")
    touch(tmp_path / "elsewhere", "c.nii")
    (source / "x" / "up").symlink_to(source)
    (source / "x" / "self").symlink_to(source / "x" / "self")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "gone.nii").symlink_to(tmp_path / "nowhere.nii")
    os.mkfifo(source / "pipe.nii")
    assert set(names(source, tmp_path / "out")) == {"a.nii", "gone.nii", "linked/c.nii", "x/b.nii"}


@posix
def test_no_mask_is_put_beside_inputs_that_a_link_leads_to(folder: Path, segment: Any) -> None:
    before = sorted(path.name for path in (folder / "scans").iterdir())
    (folder / "linked").mkdir()
    (folder / "linked" / "in").symlink_to("../scans")
    code, _, err = segment("linked", "scans")
    assert (code, err) == (2, ["pynca: scans holds inputs, where masks would be taken for inputs; choose another"])
    assert sorted(path.name for path in (folder / "scans").iterdir()) == before


@linux
def test_a_folder_that_cannot_be_read_is_a_failure(folder: Path) -> None:
    touch(folder / "scans", "locked/d.nii")
    (folder / "scans" / "locked").chmod(0)
    try:
        run = subprocess.run(
            [SCRIPT, "segment", "scans", "masks", "-m", "model.safetensors"],
            preexec_fn=give_up_reading_everything,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    finally:
        (folder / "scans" / "locked").chmod(0o700)
    assert run.returncode == 1
    assert run.stderr.splitlines() == ["pynca: scans/locked: Permission denied", "pynca: 1 of 4 files failed"]
    assert run.stdout.splitlines()[-1] == "masks: 3 done, 1 failed, 0 skipped, 0 to review"


def test_bids_names(tmp_path: Path) -> None:
    source = touch(
        tmp_path / "bids",
        *("dataset_description.json", "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz"),
        *("sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-preproc_T1w.nii", "sub-02/ses-a/func/sub-02_ses-a_bold.nii.gz"),
        *("derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sourcedata/sub-01/a.nii.gz"),
    )
    kinds = ("mask", "probability", "uncertainty")
    stem = "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-mymodel2"
    assert names(source, tmp_path / "out", kinds) == {
        "sub-01/anat/sub-01_T1w.nii.gz": [
            f"sub-01/anat/sub-01_desc-mymodel2{end}.nii.gz" for end in ("_dseg", "_probseg", "Uncertainty_probseg")
        ],
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-preproc_T1w.nii": [
            f"{stem}{end}.nii" for end in ("_dseg", "_probseg", "Uncertainty_probseg")
        ],
    }
    assert list(names(source, tmp_path / "out", suffix="T2w")) == ["sub-01/anat/sub-01_T2w.nii.gz"]
    with pytest.raises(ValueError, match=r"no anatomical image with the suffix FLAIR, but T1w, T2w; choose with"):
        names(source, tmp_path / "out", suffix="FLAIR")
    names(source, source / "derivatives" / "pynca")  # where BIDS wants it
    with pytest.raises(ValueError, match="lies in the folder of the inputs"):
        names(source, source / "masks")
    (source / "dataset_description.json").unlink()
    assert len(names(source, tmp_path / "out")) == 2  # known by its folders


def test_a_bids_dataset_becomes_a_derivative(folder: Path, segment: Any) -> None:
    write_scan(folder / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert segment("bids", "bids/derivatives/nca", "--save-probability", "bids/derivatives/nca")[0] == 0
    made = files(folder / "bids" / "derivatives" / "nca")
    assert set(made) == {
        *("dataset_description.json", "desc-model_dseg.tsv", "manifest.json"),
        *(f"sub-01/anat/sub-01_desc-model_{what}.nii.gz" for what in ("dseg", "probseg")),
    }
    description = json.loads(made["dataset_description.json"])
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"] == [{"Name": "pynca", "Version": pynca.__version__}]
    assert made["desc-model_dseg.tsv"] == b"index\tname\n1\tblob\n"
    assert segment("bids", "bids/derivatives/nca", "--save-probability", "bids/derivatives/nca")[1] == [
        "bids/derivatives/nca: 1 done (1 before), 0 failed, 0 skipped, 0 to review"
    ]


def test_nnunet_names(tmp_path: Path) -> None:
    source = touch(tmp_path / "D" / "imagesTs", "case_1_0000.nii.gz", "case_2_0000.nii.gz", "plain.nii.gz")
    assert names(source, tmp_path / "out") == {
        "case_1_0000.nii.gz": ["case_1.nii.gz"],
        "case_2_0000.nii.gz": ["case_2.nii.gz"],
        "plain.nii.gz": ["plain.nii.gz"],
    }
    ordinary = touch(tmp_path / "frames", "heart_0000.nii", "heart_0001.nii")
    assert names(ordinary, tmp_path / "out") == {name: [name] for name in ("heart_0000.nii", "heart_0001.nii")}
    touch(source, "case_2_0001.nii.gz")
    with pytest.raises(ValueError, match=r"case_2_0001.nii.gz is a further channel of its case; models take images of"):
        names(source, tmp_path / "out")
    touch(tmp_path / "D", "dataset.json", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(ValueError, match=r"D is a whole dataset; give a folder of its images, such as .*imagesTs"):
        names(tmp_path / "D", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scans", "scans/masks"], "scans/masks lies in the folder of the inputs"),
        (["scans", "link/masks"], "link/masks lies in the folder of the inputs"),
        (["scans", "masks", "--save-probability", "scans/ward"], "scans/ward lies in the folder of the inputs"),
        (["scans/ward", "scans", "--save-probability", "p"], None),
        (["twins", "masks"], "twins/a.nii and twins/a.nii.gz would both become masks/a; rename one of them"),
        (["scans", "masks", "--save-probability", "masks"], "is named twice; mask and probability need a file each"),
        (["scans", "masks", "--save-uncertainty", "sd"], "--save-uncertainty needs --samples of 2 or more"),
        (["scans", "masks", "--stats", "scans/b.nii"], "scans/b.nii would be overwritten; --stats needs"),
        (["scans", "masks", "--stats", "masks/manifest.json"], "masks/manifest.json would be overwritten"),
        (["scans", "masks", "--stats", "masks/b.nii"], "masks/b.nii would be overwritten"),
        (["scans", "masks", "--stats", "scans"], "scans is a folder; --stats is the name of a file, such as"),
        (["scans", "masks", "--skip-existing", "--overwrite"], "not allowed with argument"),
        (["scans", "model.safetensors/x/y"], None),
    ],
)
@posix
def test_wrong_use_of_folders(arguments: list[str], sentence: str | None, folder: Path, segment: Any) -> None:
    (folder / "link").symlink_to(folder / "scans")
    touch(folder / "twins", "a.nii", "a.nii.gz")
    before = files(folder)
    code, out, err = segment(*arguments)
    if sentence is None:
        assert code in (0, 1)
        return
    assert (code, out) == (2, [])
    assert sentence in err[-1]
    assert files(folder) == before


# --- other formats ----------------------------------------------------------------------------------------------


def test_a_series_counts_as_one_input(data: Path, folder: Path, segment: Any) -> None:
    """In a folder with others, as the folder itself, and named like a file."""
    pytest.importorskip("pydicom")
    series = data / "dicom" / "study1"
    for name in ("patients/one", "patients/two/T1"):
        shutil.copytree(series, folder / name)
    write_scan(folder / "patients" / "two" / "c.nii.gz")
    assert segment("patients", "masks")[0] == 0
    made = files(folder / "masks")
    assert set(made) == {"one.nii.gz", "two/T1.nii.gz", "two/c.nii.gz", "manifest.json"}
    assert [case["input"] for case in manifest(folder / "masks")["cases"]] == ["one", "two/T1", "two/c.nii.gz"]

    assert segment("patients/one", "one.nii.gz")[0] == 0
    assert (folder / "one.nii.gz").read_bytes() == made["one.nii.gz"] == made["two/T1.nii.gz"]
    assert not (folder / "manifest.json").exists()
    assert segment("patients/one", "new")[0] == 0
    assert set(files(folder / "new")) == {"one.nii.gz", "manifest.json"}

    (slice_,) = sorted((folder / "patients" / "one").iterdir())[:1]
    slice_.chmod(0o600)
    slice_.write_bytes(slice_.read_bytes() + b"\0\0")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert segment("patients", "masks")[1][-1].startswith("masks: 3 done (2 before)")


def test_segmentations_as_dicom(data: Path, folder: Path, segment: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    for name in ("study1", "study2"):
        shutil.copytree(data / "dicom" / name, folder / "patients" / name)
    arguments = ["patients", "masks", "--save-probability", "p", "--format", "dcm"]
    assert segment(*arguments)[0] == 0
    assert set(files(folder / "p")) == {"study1.nii.gz", "study2.nii.gz"}
    assert set(files(folder / "masks")) == {"study1.dcm", "study2.dcm", "manifest.json"}
    assert pydicom.dcmread(folder / "masks" / "study1.dcm").Modality == "SEG"
    before = results(folder / "masks")
    assert segment(*arguments, "--overwrite")[0] == 0
    assert results(folder / "masks") == before


def test_a_series_with_other_files_beside_its_slices(data: Path, folder: Path, segment: Any) -> None:
    """Thumbnails, arrays, an earlier mask, a folder with a scan: a mask named like a file is that of the series."""
    pytest.importorskip("pydicom")
    series = folder / "series"
    shutil.copytree(data / "dicom" / "study1", series)
    assert segment("series", "alone.nii.gz")[0] == 0
    (series / "thumb.png").write_bytes(b"no picture, and nobody looks")
    np.save(series / "array.npy", np.zeros((3, 3)))
    (series / "derived").mkdir()
    shutil.copy(folder / "alone.nii.gz", series / "derived")
    for out in ("beside.nii.gz", "series/mask.nii.gz", "series/mask.nii.gz", "again.nii.gz"):
        assert segment("series", out)[0] == 0
        assert (folder / out).read_bytes() == (folder / "alone.nii.gz").read_bytes()
    assert not (series / "manifest.json").exists()


def test_what_dicom_seg_lacks_is_said_before_the_work(
    data: Path, folder: Path, segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    shutil.copytree(data / "dicom" / "study1", folder / "series")
    for path in (folder / "series").iterdir():
        content = pydicom.dcmread(path)
        del content.StudyInstanceUID
        content.save_as(path)
    monkeypatch.setattr("pynca.batch.predict", lambda *_, **__: pytest.fail("the work was done"))
    code, _, told = segment("series", "mask.dcm")
    assert code == 1
    assert "mask.dcm cannot be written: series lacks what DICOM SEG needs: a slice has no StudyInstanceUID" in str(told)
    assert not (folder / "mask.dcm").exists()


def test_pictures_and_arrays_in_a_folder(folder: Path, segment: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    (folder / "mixed").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)
    for name in ("a.png", "b.jpg", "c.TIFF"):
        image.fromarray(grey).save(folder / "mixed" / name)
    np.save(folder / "mixed" / "d.npy", grey)
    assert segment("mixed", "masks", "--spacing", "1", "--stats", "s.csv")[0] == 0
    assert set(files(folder / "masks")) == {"a.png", "b.png", "c.TIFF", "d.npy", "manifest.json"}
    case = manifest(folder / "masks")["cases"][0]
    assert case["labels"][0]["volume_ml"] is None
    assert len(case["labels"][0]["bounding_box"]) == 2
    image.fromarray(grey).save(folder / "mixed" / "a.jpg")
    code, _, err = segment("mixed", "other")
    assert code == 2
    assert err == [
        f"pynca: {Path('mixed/a.jpg')} and {Path('mixed/a.png')} would both become other/a; rename one of them"
    ]


# --- one run for itself -----------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_cases(folder: Path) -> None:
    import tracemalloc

    model = pynca.load_model("model.safetensors")
    for n in range(30):
        write_scan(folder / "many" / f"{n:02}.nii", seed=n)
    jobs, out = layouts.find_jobs(folder / "many", {"mask": folder / "out"}, title="m")
    held = []
    tracemalloc.start()
    with Manifest(out, model_file("model.safetensors"), {}) as kept:
        for job in jobs:
            kept.add(batch.run_case(job, model, batch.Options(), kept, threads=1))
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[9] < 20 * 8000  # an entry takes a few kilobytes, a volume of floats 2, logits 4


FORBID = """
import sys
def forbid(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "subprocess.", "os.system", "os.exec")):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(forbid)
from pynca.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_nothing_phones_home(folder: Path, segment: Any) -> None:
    """With every socket and every other program forbidden, and without a network, the bytes are the same."""
    arguments = ["--samples", "2", "--save-probability", "p", "--save-uncertainty", "u", "--stats", "s.csv"]
    assert segment("scans", "masks", *arguments)[0] == 0
    expected = {name: content for name, content in files(folder).items() if name != "masks/manifest.json"}
    kept = timeless(manifest(folder / "masks"))
    call = ["segment", "scans", "masks", "-m", "model.safetensors", *arguments]
    ways = [[sys.executable, "-c", FORBID, *call]]
    if shutil.which("unshare") and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0:
        ways.append(["unshare", "-n", str(SCRIPT), *call])
    for way in ways:
        for made in ("masks", "p", "u"):
            shutil.rmtree(folder / made)
        (folder / "s.csv").unlink()
        run = subprocess.run(way, capture_output=True, text=True, timeout=LIMIT)
        assert (run.returncode, run.stderr) == (0, "")
        assert timeless(manifest(folder / "masks")) == kept
        assert {name: content for name, content in files(folder).items() if name != "masks/manifest.json"} == expected


def test_a_socket_would_be_noticed() -> None:
    call = FORBID.replace("from pynca.cli import main", "import socket; socket.create_connection(('localhost', 9))")
    run = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=LIMIT)
    assert run.returncode == 1
    assert "RuntimeError: socket." in run.stderr
