"""Every command and every output option: nothing is replaced that pynca did not write, and no input ever."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import pynca
from pynca import cli, seal
from pynca.manifest import Manifest
from pynca.plugins import slicer
from pynca.quality import Quality
from support import CHECKPOINT, random_model

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
LIMIT = 120
MODEL = ["-m", "model.safetensors", "--threads", "1"]
CASES = ["--images", "images", "--labels", "labels"]
TINY = "--channels 6 --hidden 12 --steps 2 2 --size 16 16 --patch 8 8 --batch 4 --epochs 1 -q".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: a model, a scan, three images with labels, a folder of results."""
    root = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    random_model().save(root / "model.safetensors")
    y, x = np.mgrid[:16, :16]
    for n in range(3):
        label = np.repeat(((y - 7 - n) ** 2 + (x - 8) ** 2 < 10)[..., None], 4, axis=2)
        image = 100 + 500 * label + random.normal(scale=30, size=label.shape)
        for kind, data in (("images", image.astype(np.float32)), ("labels", label.astype(np.uint8))):
            (root / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), root / kind / f"case_{n}.nii.gz")
    shutil.copy(root / "images" / "case_0.nii.gz", root / "scan.nii.gz")
    (root / "names.txt").write_text("case_0.nii.gz\ncase_1.nii.gz\n")
    (root / "one.txt").write_text("case_0.nii.gz\n")
    here = Path.cwd()
    os.chdir(root)
    try:
        assert cli.main(["segment", "images", "results", *MODEL, "-q"]) == 0
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # What is calibrated does not matter here, and takes long
    quality = Quality(nqm=0.5, samples=2, confidence=0.5, volume_ml=(1.0, 2.0), area_cm2=None, calibrated_on="three")
    monkeypatch.setattr("pynca.calibration.calibrate", lambda model, *_, **__: replace(model, quality=quality))
    return tmp_path


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return its code and what it printed to standard error."""

    def command(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            try:
                code = cli.main(list(arguments))
            except SystemExit as leaving:
                code = int(leaving.code or 0)
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return command


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Output:
    """A command line, a file that it writes, and whether it writes it anew the second time."""

    command: str
    file: str
    again: bool = True
    needs: str = ""


OUTPUTS = [
    Output("segment scan.nii.gz out.nii.gz", "out.nii.gz"),
    Output("segment scan.nii.gz out.npy", "out.npy"),
    Output("segment scan.nii.gz out.tif", "out.tif", needs="PIL"),
    Output("segment scan.nii.gz results", "results/scan.nii.gz"),
    Output("segment scan.nii.gz out.nii --save-probability p.nii.gz", "p.nii.gz"),
    Output("segment scan.nii.gz out.nii --save-uncertainty u.nii --samples 2", "u.nii"),
    Output("segment scan.nii.gz out.nii --preview p.png", "p.png"),
    Output("segment scan.nii.gz out.nii --stats s.csv", "s.csv"),
    Output("segment images masks", "masks/case_1.nii.gz", again=False),
    Output("segment images masks --save-probability maps", "maps/case_1.nii.gz", again=False),
    Output("segment images masks --save-uncertainty maps --samples 2", "maps/case_1.nii.gz", again=False),
    Output("segment images masks --preview pictures", "pictures/case_2.png", again=False),
    Output("segment images masks --stats s.csv", "s.csv"),
    Output("report results", "results/report.html"),
    Output("report results -o page.html", "page.html"),
    Output("evaluate -o scores.csv", "scores.csv"),
    Output("animate scan.nii.gz growing.gif", "growing.gif", needs="PIL"),
    Output("calibrate model.safetensors -o c.safetensors", "c.safetensors"),
    Output("calibrate model.safetensors", "model.safetensors"),
    Output("train -o trained.safetensors", "trained.safetensors"),
    Output("train -o trained.safetensors", "trained.training/curve.png", needs="matplotlib"),
    Output(f"import {CHECKPOINT} -o i.safetensors", "i.safetensors"),
    *(Output("demo -o shown", f"shown/{name}") for name in ("phantom.nii.gz", "mask.nii.gz", "preview.png")),
    *(Output("slicer module", f"module/{name}") for name in (slicer.files(Path())[0].name, f"{slicer.NAME}.xml")),
]
_OPTIONS = {
    "segment": MODEL,
    "evaluate": [*CASES, *MODEL],
    "animate": MODEL,
    "calibrate": CASES,
    "train": [*CASES, *TINY],
}


def whole(command: str) -> list[str]:
    words = command.split()
    validation = ["--validation", "0.5"] if words[0] == "train" and "--validation" not in words else []
    return [*words, *validation, *_OPTIONS.get(words[0], [])]


@pytest.mark.filterwarnings("ignore:Matplotlib")
@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: f"{output.command} > {output.file}")
def test_only_what_pynca_wrote_is_replaced(output: Output, folder: Path, run: Run) -> None:
    if output.needs:
        pytest.importorskip(output.needs, reason=f"{output.needs} is not installed")
    if "import" in output.command and not CHECKPOINT.is_dir():
        pytest.skip("the recorded runs are not there")
    command, path = whole(output.command), folder / output.file
    path.parent.mkdir(parents=True, exist_ok=True)
    foreign = b"a day's work"
    if path.name == "model.safetensors":  # that of a person, which is still one
        foreign = path.read_bytes().replace(b'"name":""', b'"name":"x"')
        foreign = (int.from_bytes(foreign[:8], "little") + 1).to_bytes(8, "little") + foreign[8:]
    path.write_bytes(foreign)
    before = files(folder)
    code, err = run(*command)
    assert (code, len(err.splitlines())) == (2, 1)
    assert output.file in err or "trained.training holds another training" in err
    assert "--overwrite" in err
    assert "overwrite=True" not in err
    assert files(folder) == before

    assert run(*command, "--overwrite")[0] == 0
    made = path.read_bytes()
    assert made != foreign
    assert seal.is_sealed(path)

    # That a training is there is a reason of its own to refuse
    shutil.rmtree(folder / "trained.training", ignore_errors=True)
    assert run(*command)[0] == 0
    if command[0] != "train":  # whose card says how long it took
        assert path.read_bytes() == made

    if path.name != "curve.png":
        shutil.rmtree(folder / "trained.training", ignore_errors=True)
    changed = path.read_bytes() + b"\n"
    if path.name == "model.safetensors":
        changed = path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    path.write_bytes(changed)
    before = files(folder)
    code, err = run(*command)
    assert code == 2 if output.again else code in (0, 2)
    assert path.read_bytes() == changed
    if code == 2:
        assert files(folder) == before


INPUTS = [
    ("segment scan.nii.gz {}", "scan.nii.gz"),
    ("segment scan.nii.gz out.nii --save-probability {}", "scan.nii.gz"),
    ("segment scan.nii.gz out.nii --save-uncertainty {} --samples 2", "scan.nii.gz"),
    ("segment scan.nii.gz out.nii --stats {}", "scan.nii.gz"),
    ("segment scan.nii.gz out.nii --stats {}", "model.safetensors"),
    ("segment images masks --stats {}", "images/case_2.nii.gz"),
    ("evaluate -o {}", "labels/case_2.nii.gz"),
    ("evaluate -o {}", "images/case_0.nii.gz"),
    ("evaluate -o {} --cases names.txt", "labels/case_2.nii.gz"),
    ("evaluate -o {} --cases names.txt", "names.txt"),
    ("evaluate -o {}", "model.safetensors"),
    ("calibrate model.safetensors -o {}", "model.safetensors"),
    ("calibrate model.safetensors -o {}", "labels/case_0.nii.gz"),
    ("calibrate model.safetensors --leave-out one.txt -o {}", "one.txt"),
    ("train -o {}", "labels/case_0.nii.gz"),
    ("train --validation names.txt -o {}", "names.txt"),
    ("animate scan.nii.gz {}", "scan.nii.gz"),
    ("report results -o {}", "results/manifest.json"),
    ("report results -o {}", "results/case_0.nii.gz"),
]
_ENDINGS = {"calibrate": ".safetensors", "train": ".safetensors", "animate": ".gif", "report": ".html"}


@posix
@pytest.mark.parametrize("how", ["itself", "detour", "soft", "hard"])
@pytest.mark.parametrize(("command", "file"), INPUTS)
def test_no_input_is_ever_replaced(command: str, file: str, how: str, folder: Path, run: Run) -> None:
    words = whole(command)
    ending = _ENDINGS.get(words[0], ".csv" if "--stats" in words or words[0] == "evaluate" else ".nii.gz")
    name = {"itself": file, "detour": f"results/../{file}", "soft": f"soft{ending}", "hard": f"hard{ending}"}[how]
    if how == "soft":
        (folder / name).symlink_to(folder / file)
    if how == "hard":
        os.link(folder / file, folder / name)
    before = files(folder)
    for arguments in ([], ["--overwrite"]):
        code, err = run(*[word.format(name) for word in words], *arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert files(folder) == before
        if ending in name:
            assert "would be overwritten" in err
    assert not (how == "soft" and not (folder / name).is_symlink())


def test_a_scan_named_as_output_stays(folder: Path, run: Run) -> None:
    """A shell's glob with two matches, and a mask named before its scan."""
    before = files(folder)
    assert run("segment", "images/case_0.nii.gz", "images/case_1.nii.gz", *MODEL)[0] == 2
    assert files(folder) == before
    assert run("segment", "scan.nii.gz", "mask.nii.gz", *MODEL)[0] == 0
    before = files(folder)
    assert run("segment", "mask.nii.gz", "scan.nii.gz", *MODEL)[0] == 2
    assert files(folder) == before


def test_a_slice_of_a_series_is_never_replaced(folder: Path, data: Path, run: Run) -> None:
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    shutil.copytree(data / "dicom" / "study1", folder / "series")
    slices = sorted(path.name for path in (folder / "series").iterdir())
    for path in (folder / "series").iterdir():
        path.chmod(0o644)
    before = files(folder / "series")
    for source in ("series", f"series/{slices[0]}"):
        for name in (slices[0], slices[1], "hard.dcm"):
            if name == "hard.dcm":
                os.link(folder / "series" / slices[2], folder / name)
            target = folder / ("series" if name in slices else "") / name
            renamed = target if name.endswith(".dcm") else folder / "link.dcm"
            if renamed != target:
                renamed.unlink(missing_ok=True)
                renamed.symlink_to(target)
            for arguments in ([], ["--overwrite"]):
                code, err = run("segment", source, str(renamed), *MODEL, *arguments)
                assert code == 2, err
                assert "would be overwritten" in err
                assert files(folder / "series") == before
            (folder / "hard.dcm").unlink(missing_ok=True)
    # A mask beside the slices is no slice, today and the next time
    for _ in range(2):
        assert run("segment", f"series/{slices[0]}", "series/mask.dcm", *MODEL)[0] == 0
    assert {name: content for name, content in files(folder / "series").items() if name != "mask.dcm"} == before
    assert run("segment", "series", "other.dcm", *MODEL)[0] == 0
    assert (folder / "other.dcm").read_bytes() == (folder / "series" / "mask.dcm").read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        *("segment {} out.nii", "segment scan.nii.gz {}", "segment scan.nii.gz out.nii --stats {}"),
        *("segment scan.nii.gz out.nii --save-probability {}", "segment scan.nii.gz out.nii --preview {}"),
        *("report {}", "report results -o {}", "evaluate -o {}", "animate scan.nii.gz {}", "calibrate {}"),
        *("train -o {}", "import scan.nii.gz -o {}", "demo -o {}", "slicer {}"),
    ],
)
def test_an_empty_name_is_not_the_working_folder(command: str, folder: Path, run: Run) -> None:
    before = files(folder)
    code, err = run(*["" if word == "{}" else word for word in whole(command)])
    assert code == 2
    assert "the name is empty; give a file or a folder" in err
    assert files(folder) == before


def test_a_table_survives_names_that_are_no_text(folder: Path, run: Run) -> None:
    if sys.platform != "linux":
        pytest.skip("file systems elsewhere have names of text only")
    for kind in ("images", "labels"):
        (folder / kind / "case_0.nii.gz").rename(folder / kind / os.fsdecode(b"=caf\xe9.nii.gz"))
    assert run("evaluate", *CASES, *MODEL, "-o", "scores.csv")[0] == 0
    assert "\n'=caf\\udce9.nii.gz," in (folder / "scores.csv").read_text(encoding="utf-8")
    assert run("segment", "images", "masks", *MODEL, "--stats", "s.csv")[0] == 0
    assert "\n'=caf\\udce9.nii.gz," in (folder / "s.csv").read_text(encoding="utf-8")


# --- folders --------------------------------------------------------------------------------------------------


def test_what_was_corrected_is_not_removed_where_its_case_fails(folder: Path, run: Run) -> None:
    assert run("segment", "images", "masks", *MODEL, "--preview", "pictures")[0] == 0
    picture = folder / "pictures" / "case_1.png"
    picture.write_bytes(picture.read_bytes() + b"drawn upon")
    (folder / "images" / "case_1.nii.gz").write_bytes(b"no scan")
    before = files(folder)
    code, err = run("segment", "images", "masks", *MODEL, "--preview", "pictures")
    assert code == 2
    assert err.startswith("pynca: warning: ")
    assert "case_1.png is there already and was not written by pynca, or was changed since" in err
    assert files(folder) == before
    assert run("segment", "images", "masks", *MODEL, "--preview", "pictures", "--overwrite")[0] == 1
    assert not picture.exists()


def test_a_full_disk_names_the_output_in_a_folder_too(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pynca.preview.png", full)
    code, err = run("segment", "scan.nii.gz", "out.nii", *MODEL, "--preview", "p.png")
    assert (code, err) == (1, "pynca: p.png: No space left on device\n")
    code, err = run("segment", "images", "masks", *MODEL, "--preview", "pictures")
    assert code == 1
    assert err.splitlines()[0] == f"pynca: {Path('pictures/case_0.png')}: No space left on device"

    def no_folder(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pynca.batch.make_folder", no_folder)
    code, err = run("segment", "scan.nii.gz", "new/out.nii", *MODEL)
    assert (code, err) == (1, f"pynca: {Path('new/out.nii')}: No space left on device\n")


def test_a_file_in_place_of_a_folder_is_told_before_the_work(folder: Path, run: Run) -> None:
    before = files(folder)
    for words in (
        *("segment scan.nii.gz {}.nii", "segment scan.nii.gz out.nii --stats {}.csv", "segment images {}"),
        *("segment scan.nii.gz out.nii --preview {}.png", "segment scan.nii.gz out.nii --save-probability {}.nii"),
        *("report results -o {}.html", "evaluate -o {}.csv", "animate scan.nii.gz {}.gif", "demo -o {}", "slicer {}"),
        *("calibrate model.safetensors -o {}.safetensors", "train -o {}.safetensors"),
    ):
        code, err = run(*whole(words.format(Path("names.txt/x"))))
        assert (code, len(err.splitlines())) == (1, 1), err
        assert "names.txt is not a folder; choose another name" in err
        assert files(folder) == before


# --- processes ------------------------------------------------------------------------------------------------


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pynca", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@posix
def test_two_runs_into_one_folder_end_with_what_one_makes(folder: Path) -> None:
    for n in range(3, 20):
        shutil.copy(folder / "images" / f"case_{n % 3}.nii.gz", folder / "images" / f"case_{n}.nii.gz")
    arguments = ["segment", "images", "masks", *MODEL, "--samples", "8", "--save-probability", "maps"]
    both = [started(folder, *arguments, "--stats", "s.csv") for _ in range(2)]
    said = [process.communicate(timeout=LIMIT) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    waited = "pynca: another run writes to masks; this one waits until that has ended\n"
    assert {err for _, err in said} <= {"", waited}  # on a busy machine one may end before the other starts
    assert sorted(out.splitlines()[-1] for out, _ in said) == [
        "masks: 20 done (20 before), 0 failed, 0 skipped, 0 to review",
        "masks: 20 done, 0 failed, 0 skipped, 0 to review",
    ]
    alone = [word.replace("masks", "masks2").replace("maps", "maps2") for word in arguments]
    assert cli.main([*alone, "-q"]) == 0
    for name in ("masks", "maps"):
        one, two = files(folder / name), files(folder / f"{name}2")
        for found in (one, two):
            found.pop("manifest.json", None)
        assert one == two
    assert Manifest.read(folder / "masks").summary() == {"done": 20, "failed": 0, "skipped": 0, "review": 0}


@posix
def test_two_runs_to_one_file_end_with_it(folder: Path) -> None:
    arguments = ["segment", "scan.nii.gz", "out.nii.gz", *MODEL, "-q", "--stats", "s.csv", "--preview", "p.png"]
    many = [started(folder, *arguments) for _ in range(3)]
    assert [process.communicate(timeout=LIMIT) for process in many] == [("", "")] * 3
    found = files(folder)
    assert all(seal.is_sealed(folder / name) for name in ("out.nii.gz", "s.csv", "p.png"))
    assert cli.main(arguments) == 0
    assert files(folder) == found


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_run_that_is_ended_leaves_nothing_that_the_next_does_not_remove(name: str, folder: Path, run: Run) -> None:
    number = getattr(signal, name)
    process = started(folder, "segment", "images", "masks", *MODEL, "--samples", "4096", "--save-probability", "maps")
    until = time.monotonic() + LIMIT
    while not (folder / "masks" / "manifest.json").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    if number == signal.SIGKILL:
        (folder / "masks" / f".{_owner_of(process.pid)}-00000000.case_0.nii.gz").write_bytes(b"half")
    else:
        assert (process.returncode, out, err) == (128 + number, "", "pynca: ended by a signal\n")
        assert set(files(folder / "masks")) == {"manifest.json"}
    assert run("segment", "images", "masks", *MODEL, "--overwrite", "--save-probability", "maps")[0] == 0
    images = {"case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"}
    assert set(files(folder / "masks")) == {"manifest.json", *images}
    assert set(files(folder / "maps")) == images


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("segment scan.nii.gz out.nii --stats s.csv --preview p.png", "out.nii s.csv p.png"),
        ("evaluate -o scores.csv", "scores.csv"),
        ("report results", "results/report.html"),
        ("calibrate model.safetensors", "model.safetensors"),
        ("demo -o .", "mask.nii.gz preview.png"),
    ],
)
def test_what_a_killed_run_left_beside_a_file_is_removed(command: str, file: str, folder: Path, run: Run) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [folder / name for name in file.split()]
    left = [path.with_name(f".{_owner_of(gone.pid)}-00000000.{path.name}") for path in left]
    for path in left:
        path.write_bytes(b"half")
    assert run(*whole(command))[0] == 0
    assert not [path for path in left if path.exists()]


@posix
def test_handlers_of_signals_are_given_back(run: Run) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert run("models")[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def _owner_of(process: int) -> str:
    from pynca.files import _machine

    return f"{_machine()}-{process:x}-1"


def test_who_waits_for_a_folder_can_be_interrupted(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pynca import files as module

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with module.locked(folder / "masks", lambda: None):
        monkeypatch.setattr("pynca.files.time.sleep", interrupt)
        code, err = run("segment", "images", "masks", *MODEL)
    assert (code, err.splitlines()[-1]) == (130, "pynca: interrupted")
    assert not (folder / "masks").exists()


def test_two_trainings_do_not_share_a_folder(folder: Path, run: Run) -> None:
    from pynca import files as module

    with module.locked(folder / "trained.training", lambda: None):
        code, err = run(*whole("train -o trained.safetensors"))
    assert (code, err) == (2, "pynca: another run trains in trained.training; wait for it, or give another -o\n")


def test_a_training_begins_anew_where_it_is_asked_to(folder: Path, run: Run) -> None:
    command = whole("train -o trained.safetensors")
    log = folder / "trained.training" / "log.jsonl"
    assert run(*command)[0] == 0
    lines = len(log.read_text().splitlines())
    code, err = run(*command)
    assert code == 2
    assert err.endswith("holds another training; give --resume to go on with it, or --overwrite to begin anew\n")
    assert run(*command, "--overwrite")[0] == 0
    assert len(log.read_text().splitlines()) == lines


def test_a_model_read_from_python_is_guarded_too(folder: Path) -> None:
    model: Any = pynca.load_model("model.safetensors")
    for name in ("scan.nii.gz", "mask.nii.gz"):
        (folder / f"{name}.safetensors").write_bytes(b"x")
        with pytest.raises(FileExistsError):
            model.save(f"{name}.safetensors")
