"""What `pynca estimate` says before a run, and that a run keeps to the memory that it is given."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pynca
from pynca import cli, memory
from pynca.planning import Speed, estimate, outline
from pynca.volumes import Volume
from support import random_model, random_weights

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MODEL = random_model(steps=1)


class Instant(Speed):
    """A machine whose speed need not be measured."""

    run, prepare, restore = 0.5, 2e-6, 1e-6  # type: ignore[assignment]


def measured(code: str, *arguments: object) -> tuple[float, str]:
    """Run code in a process of its own; return the most memory that it took in MB, and what it printed."""
    tail = "\nprint(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM:')))"
    run = subprocess.run(
        [sys.executable, "-c", code + tail, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    *printed, peak = run.stdout.splitlines()
    return int(peak) * 1024 / 1e6, "\n".join(printed)


def write(path: Path, shape: tuple[int, ...], dtype: str = "f4", slope: float = 1.0) -> Path:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(slope, 0)
    with open(path, "wb") as file:
        header = image.header.copy()
        header["vox_offset"], header["magic"] = 352, b"n+1"
        file.write(header.binaryblock + bytes(4) + values.tobytes(order="F"))
    return path


# --- memory ---------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    ("shape", "samples", "threads", "options"),
    [
        ((256, 256, 24), 3, 2, {}),
        ((512, 512, 10), 1, 1, {}),
        ((64, 64, 200), 1, 2, {}),
        ((40, 700, 20), 1, 1, {}),
        ((300, 300, 6), 2, 1, {"size": (192, 192), "channels": 16}),
    ],
)
def test_the_estimate_bounds_the_measured_peak(
    shape: tuple[int, ...], samples: int, threads: int, options: dict[str, object]
) -> None:
    """From above, and by no more than a factor of two and 8 MB."""
    code = f"""
import numpy as np, pynca
from pynca.memory import process_bytes
from pynca.planning import estimate
from support import random_model
model = random_model(steps=1, **{options!r})
estimate((40, 40, 8), model)
image = np.ones({shape!r}, np.float32)
before = process_bytes()
pynca.predict(image, model, samples={samples}, threads={threads})
print(before / 1e6, estimate(image.shape, model, samples={samples}, threads={threads}).bytes / 1e6)
"""
    peak, printed = measured(code)
    before, estimated = map(float, printed.split())
    assert peak - before <= estimated <= 2 * (peak - before) + 8


@linux
@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_the_estimate_counts_the_voxels_of_a_file(tmp_path: Path, slope: float) -> None:
    path = write(tmp_path / "scan.nii", (160, 160, 160), "i2", slope)
    assert outline(path).data.nbytes == pynca.volumes.read_volume(path).data.nbytes
    code = """
import sys, pynca
from pynca.memory import process_bytes
from pynca.planning import Speed, estimate, outline
from pynca.volumes import Volume
from support import random_model
model = random_model(steps=1)
estimate((40, 40, 8), model)
image = outline(sys.argv[1])
before = process_bytes()
pynca.predict(sys.argv[1], model, threads=1)
print(before / 1e6, estimate(image, model, threads=1).bytes / 1e6)
"""
    peak, printed = measured(code, path)
    before, estimated = map(float, printed.split())
    assert peak - before <= estimated <= 2 * (peak - before) + 8


@linux
@pytest.mark.parametrize("image", ["scan.nii.gz", 5, None, (4,), (4, 4, 4, 4), (0, 4), (4.0, 4), ("a", "b")])
def test_what_is_no_shape_is_refused(image: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="image is "):
        estimate(image, MODEL)


def test_a_limit_is_kept(tmp_path: Path) -> None:
    """With the whole program, its interpreter included."""
    path = write(tmp_path / "scan.nii", (256, 256, 32), "i2")
    code = "import sys; from pynca.cli import main; assert main(sys.argv[1:]) == 0"
    options = ["segment", path, tmp_path / "mask.nii", "--threads", "1", "--force"]
    without, _ = measured(code, *options)
    first = (tmp_path / "mask.nii").read_bytes()
    limit = int(without * 0.85)
    within, _ = measured(code, *options, "--memory", f"{limit}M")
    assert within <= limit < without
    assert (tmp_path / "mask.nii").read_bytes() == first


@linux
def test_the_command_bounds_the_whole_process(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii", (200, 200, 40), "i2")
    code = "import sys; from pynca.cli import main; assert main(sys.argv[1:]) == 0"
    _, printed = measured(code, "estimate", path, "--threads", "1")
    estimated = float(printed.split(", ")[-1].removesuffix(" MB"))
    peak, _ = measured(code, "segment", path, tmp_path / "mask.nii", "--threads", "1", "--force")
    assert peak <= estimated + 2 <= 1.5 * peak


@pytest.mark.parametrize("samples", [1, 2])
def test_a_limit_changes_no_bit(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).random((30, 20, 24))
    expected = pynca.predict(image, MODEL, samples=samples, threads=2)
    monkeypatch.setattr(memory, "process_bytes", lambda: 10**6)
    each = memory.slice_bytes((30, 20), MODEL, samples)
    fixed = 10**6 + memory.result_bytes(image.size, samples) + memory.core_bytes(2)
    for count in (1, 2, 5):
        calls = memory.slices_a_call((1, 24, 30, 20), MODEL, samples=samples, threads=2, memory=fixed + count * each)
        assert calls == count
        result = pynca.predict(image, MODEL, samples=samples, threads=2, memory=fixed + count * each)
        np.testing.assert_array_equal(result.mask, expected.mask)
        np.testing.assert_array_equal(result.probability, expected.probability)
        np.testing.assert_array_equal(result.uncertainty, expected.uncertainty)
        assert result.nqm == expected.nqm
    with pytest.raises(ValueError, match=r"^the image takes at least [0-9]+ MB of memory to segment") as caught:
        pynca.predict(image, MODEL, samples=samples, threads=2, memory=fixed + each - 1)
    assert f"takes at least {memory.megabytes(fixed + each)}" in str(caught.value)


def test_a_file_that_cannot_fit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "scan.nii", (50, 60, 70))
    monkeypatch.setattr("pynca.segmentation.read_volume", lambda source: pytest.fail("was read"))
    with pytest.raises(ValueError, match=r"scan\.nii takes at least [0-9]+ MB .* and 1 MB are allowed; allow more"):
        pynca.segment(path, MODEL, memory=10**6)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine with little memory left."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**7)
    return 10**7


def test_what_the_machine_cannot_hold_is_not_read(tmp_path: Path, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file can unpack to much: its header tells, before a voxel is read."""
    zeros = np.zeros((100, 100, 100), np.int8)  # with a slope they become float64
    image = nibabel.Nifti1Image(zeros, np.eye(4))
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    np.save(tmp_path / "x.npy", np.zeros((100, 100, 100)))
    assert (tmp_path / "x.nii.gz").stat().st_size < 10**4
    monkeypatch.setattr("pynca.formats.nifti._voxels", lambda *arguments: pytest.fail("was read"))
    for name in ("x.nii.gz", "x.npy"):
        path = tmp_path / name
        for read in (pynca.volumes.read_volume, pynca.volumes.read_label):
            with pytest.raises(ValueError, match=rf"{name} takes 16 MB of memory to read, and there are 10 MB; free"):
                read(path)
        with pytest.raises(ValueError, match=rf"{name} takes at least .* taken already\), and this machine has .* MB"):
            pynca.segment(path, MODEL)
    with pytest.raises(ValueError, match="takes 16 MB of memory to read"):
        pynca.volumes.read_volume(nibabel.load(tmp_path / "x.nii.gz"))
    for limit in (None, 9 * 10**6):
        with pytest.raises(ValueError, match=r"x\.nii\.gz takes at least .* MB"):
            pynca.segment(nibabel.load(tmp_path / "x.nii.gz"), MODEL, memory=limit)
    with pytest.raises(ValueError, match=r"the image takes at least .* of memory to segment .*this machine has"):
        pynca.segment(np.zeros((300, 300, 30), np.uint8), MODEL)


def test_commands_refuse_what_the_machine_cannot_hold(
    tmp_path: Path, little: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "labels"):
        Path(folder).mkdir()
        write(Path(folder) / "a.nii", (120, 120, 120), "u1")
        write(Path(folder) / "b.nii", (120, 120, 120), "f8")
    pair = ("--images", "images", "--labels", "labels")
    for arguments in (
        ("segment", "images/b.nii", "mask.nii"),
        ("segment", "images", "masks", "--force"),
        ("animate", "images/b.nii", "x.gif"),
        ("evaluate", *pair),
        ("calibrate", "hippocampus", *pair, "-o", "y.safetensors", "-q"),
        ("train", *pair, "-o", "y.safetensors", "-q", "--validation", "none"),
    ):
        assert cli.main(arguments) in (1, 2), arguments
        assert re.search(r"b\.nii takes .* of memory to ", capsys.readouterr().err), arguments
    assert not Path("mask.nii").exists()


def test_a_small_model_that_asks_for_much_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state takes 8.6 GB, whatever the image."""
    rule = pynca.Rule.from_state_dict(random_weights("sobel", 128, 1), perception="sobel")
    model = pynca.Model([pynca.Level(rule, 1, 1)], pynca.Preparation((4096, 4096)))
    model.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 4000
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 10**9)
    write(tmp_path / "a.nii", (9, 9, 9))
    with pytest.raises(ValueError, match=r"the image takes at least 1[0-9],[0-9]{3} MB of memory to segment"):
        pynca.segment(np.zeros((9, 9)), model)
    monkeypatch.chdir(tmp_path)
    for command in (("segment", "a.nii", "mask.nii"), ("animate", "a.nii", "x.gif"), ("estimate", "a.nii")):
        assert cli.main([*command, "-m", "m.safetensors"]) == 1
        assert "of memory to segment" in capsys.readouterr().err


def test_a_model_file_that_the_machine_cannot_hold_is_not_read(tmp_path: Path, little: int) -> None:
    """Holes in a file take no room on the disk."""
    path, size = tmp_path / "m.safetensors", 2**33
    header = f'{{"x":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'.encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(ValueError, match=r"m\.safetensors: it takes 17,180 MB of memory to read, and there are 10 MB"):
        pynca.load_model(path)


@linux
@pytest.mark.parametrize(
    ("name", "dtype", "slope"), [("x.nii", "i2", 1.0), ("x.nii", "i2", 2.5), ("x.nii", "f8", 1.0), ("x.npy", "f4", 1.0)]
)
def test_a_limit_holds_with_all_that_is_written(tmp_path: Path, name: str, dtype: str, slope: float) -> None:
    """The least that is said to be enough is enough: reading, counting a mask of everything, maps and previews."""
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, np.random.default_rng(0).random((160, 160, 160)).astype(dtype))
    else:
        write(path, (160, 160, 160), dtype, slope)
    ending = name.rpartition(".")[2]
    replace(MODEL, threshold=1e-9).save(tmp_path / "all.safetensors")
    arguments = ["segment", path, tmp_path / f"mask.{ending}", "-m", tmp_path / "all.safetensors", "--threads", "1"]
    arguments += ["--preview", tmp_path / "p.png", "--stats", tmp_path / "s.csv", "--overwrite", "--force"]
    arguments += ["--save-probability", tmp_path / f"p.{ending}", "--memory"]
    code = "import sys; from pynca.cli import main; print(main(sys.argv[1:]))"
    command, here = [sys.executable, "-c", code, *map(str, arguments), "2M"], Path(__file__).parent
    refused = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    least = int(re.search(r"at least ([0-9]+) MB", refused.stderr)[1])  # type: ignore[index]
    peak, printed = measured(code, *arguments, f"{least + 3}M")
    assert printed.splitlines()[-1] == "0"
    assert peak <= least + 3


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (1e9, TypeError), ("1G", TypeError)])
def test_limits_that_cannot_be_right(limit: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="memory is"):
        pynca.segment(np.ones((9, 9)), MODEL, memory=limit)  # type: ignore[arg-type]


@given(st.integers(1, 10**12), st.sampled_from(["", "B", "K", "kB", "M", "m", "MB", "G", "Ki", "KiB", "MiB", "gib"]))
def test_amounts(number: int, unit: str) -> None:
    base = 1024 if "i" in unit.lower() else 1000
    power = {"K": 1, "M": 2, "G": 3}.get(unit[:1].upper(), 0)
    if number * base**power < 2**53:
        assert memory.read_bytes(f"{number}{unit}") == number * base**power
        assert memory.read_bytes(f" {number} {unit} ") == number * base**power


def test_fractions_of_amounts() -> None:
    assert memory.read_bytes("1.5G") == 1_500_000_000
    assert memory.read_bytes("0.5KiB") == 512


@pytest.mark.parametrize(
    "text", ["", "M", "12X", "-5M", "1e9", "5 M B", "1,5G", "0", "0.0001K", "½G", "١M", "9" * 40, "M5"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no amount of memory; write it as 512M, 1\.5G or 800MiB$"):
        memory.read_bytes(text)


# --- time -----------------------------------------------------------------------------------------------------


def test_seconds_grow_with_slices_pixels_and_samples() -> None:
    speed = Instant(MODEL, 1)
    one = estimate((10, 20, 5), MODEL, speed=speed)
    assert one.seconds == pytest.approx(5 * 0.5 + 1000 * 3e-6)
    assert estimate((10, 20, 5), MODEL, speed=speed, samples=3).seconds == pytest.approx(15 * 0.5 + 1000 * 5e-6)
    assert estimate((10, 20), MODEL, speed=speed).seconds == pytest.approx(0.5 + 200 * 3e-6)


def test_slices_are_counted_along_the_axis_that_the_model_learnt() -> None:
    speed = Instant(MODEL, 1)
    swapped = np.eye(4)[[2, 1, 0, 3]]  # the first axis grows towards the head
    assert estimate(Volume(np.zeros((7, 20, 30)), swapped, None, "x"), MODEL, speed=speed).seconds == pytest.approx(
        7 * 0.5 + 4200 * 3e-6
    )


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(MODEL, 1)
    speed.measure()
    assert min(speed.run, speed.prepare, speed.restore) > 0
    monkeypatch.setattr(pynca.Model, "batch_logits", lambda *a, **k: pytest.fail("measured again"))
    assert estimate((9, 9, 9), MODEL, speed=speed).seconds > 0


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["volumes/example_ct_sm.nii.gz", "hippocampus/images/hippocampus_001.nii.gz"])
def test_an_outline_is_the_volume_without_its_voxels(data: Path, name: str) -> None:
    volume, without = pynca.volumes.read_volume(data / name), outline(data / name)
    assert without.data.shape == volume.data.shape
    assert without.data.nbytes == volume.data.nbytes
    assert without.data.strides == (0, 0, 0)
    np.testing.assert_array_equal(without.affine, volume.affine)


def test_an_outline_of_an_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 5, 6), np.int16))
    assert outline(tmp_path / "x.npy").data.shape == (4, 5, 6)
    assert outline(tmp_path / "x.npy").data.nbytes == 240


def test_a_film(tmp_path: Path) -> None:
    path = write(tmp_path / "film.nii", (8, 9, 5, 3))
    with pytest.raises(ValueError, match="holds 3 volumes; choose one"):
        outline(path)
    speed = Instant(MODEL, 1)
    assert estimate(outline(path, which=1), MODEL, speed=speed).seconds == pytest.approx(5 * 0.5 + 360 * 3e-6)
    assert estimate(outline(path, which="all"), MODEL, speed=speed).seconds == pytest.approx(15 * 0.5 + 1080 * 3e-6)


def test_estimate_reads_headers_only(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pynca.planning.read_volume", lambda source: pytest.fail("was read"))
    assert cli.main(["estimate", str(data / "volumes"), "--threads", "1"]) == 0
    ct, mr, total = capsys.readouterr().out.splitlines()
    assert ct.startswith(f"{data / 'volumes' / 'example_ct_sm.nii.gz'}: 122 x 101 x 30 voxels, ")
    assert "117 x 91 x 20" in mr
    assert total.startswith("2 cases: ")
    assert total.endswith(" MB at most")


def test_estimate_goes_on_after_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.nii", (35, 45, 35))
    (tmp_path / "b.nii").write_bytes(b"no volume")
    assert cli.main(["estimate", str(tmp_path), "--threads", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("1 cases: ")
    assert err == f"pynca: {tmp_path / 'b.nii'} is not a NIfTI file; it must be .nii or .nii.gz\n"


def test_estimate_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.nii", (9, 9, 9))
    assert cli.main(["estimate", str(path), "--threads", "1", "--memory", "2M"]) == 1
    assert "MB of memory to segment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no"),
        ([".", "--threads", "0"], "threads is 0"),
        ([".", "--samples", "0"], "--samples is 0"),
        ([".", "-m", "brain"], "brain does not exist; bundled models are cardiac-lv, hippocampus"),
    ],
)
def test_wrong_use(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["estimate", *arguments]) == 2
    assert said in capsys.readouterr().err
