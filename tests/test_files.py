"""No file is written over one that pynca did not make: how it knows its own, and what happens to links and devices."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pynca
from pynca import files, seal, tensorfile, volumes
from pynca.animate import write_animation
from pynca.batch import Options
from pynca.evaluation import Score, write_csv
from pynca.manifest import Manifest, ModelFile
from pynca.plugins import slicer
from pynca.report import write_report
from pynca.statistics import label_statistics, write_statistics
from pynca.tables import write_table
from support import random_model

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(scope="module")
def result() -> pynca.Segmentation:
    image = np.random.default_rng(0).gamma(2.0, 100.0, (9, 11, 5)).astype(np.float32)
    return pynca.predict(image, random_model(), affine=np.diag([-1.0, 1.5, 2.0, 1.0]), samples=2)


@pytest.fixture(scope="module")
def slice_result() -> pynca.Segmentation:
    image = np.random.default_rng(0).gamma(2.0, 100.0, (9, 11)).astype(np.float32)
    volume = volumes.Volume(image, None, None, "a picture", (1.0, 1.0), picture=True)
    return pynca.predict(volume, random_model(), samples=2)


# --- the seal -----------------------------------------------------------------------------------------------

Writer = Callable[[pynca.Segmentation, pynca.Segmentation, Path, bool], object]

WRITERS: dict[str, Writer] = {
    "mask.nii": lambda v, p, path, o: v.save(path, overwrite=o),
    "mask.nii.gz": lambda v, p, path, o: v.save(path, overwrite=o),
    "mask.npy": lambda v, p, path, o: v.save(path, overwrite=o),
    "mask.tif": lambda v, p, path, o: v.save(path, overwrite=o),
    "mask.png": lambda v, p, path, o: p.save(path, overwrite=o),
    "map.nii": lambda v, p, path, o: v.save_probability(path, overwrite=o),
    "map.nii.gz": lambda v, p, path, o: v.save_uncertainty(path, overwrite=o),
    "map.npy": lambda v, p, path, o: v.save_probability(path, overwrite=o),
    "map.tif": lambda v, p, path, o: v.save_uncertainty(path, overwrite=o),
    "map.png": lambda v, p, path, o: p.save_probability(path, overwrite=o),
    "preview.png": lambda v, p, path, o: v.save_preview(path, overwrite=o),
    "growing.gif": lambda v, p, path, o: write_animation(path, p.image, random_model(), overwrite=o),
    "model.safetensors": lambda v, p, path, o: random_model().save(path, overwrite=o),
    "state": lambda v, p, path, o: tensorfile.write(path, {}, {}, overwrite=o),
    "stats.csv": lambda v, p, path, o: write_statistics(path, [("a", label_statistics(v))], overwrite=o),
    "scores.csv": lambda v, p, path, o: write_csv(path, [Score("a", 1, 1, 1, 0)], overwrite=o),
    "page.html": lambda v, p, path, o: write_report(_filled(path.parent / "results"), path, overwrite=o),
    slicer.NAME: lambda v, p, path, o: slicer.install(path.parent, overwrite=o),
    f"{slicer.NAME}.xml": lambda v, p, path, o: slicer.install(path.parent, overwrite=o),
}


def _filled(folder: Path) -> Path:
    """A folder of results with no case."""
    if not folder.exists():
        with Manifest(folder, ModelFile("m", "m.safetensors", "0" * 64), Options().recorded()):
            pass
    return folder


@pytest.fixture(params=WRITERS)
def written(
    request: pytest.FixtureRequest, tmp_path: Path, result: pynca.Segmentation, slice_result: pynca.Segmentation
) -> tuple[Path, Callable[..., object]]:
    """A file that pynca wrote, and what writes it again."""
    if request.param.endswith((".png", ".tif", ".gif")):
        pytest.importorskip("PIL", reason="Pillow is not installed")
    path = tmp_path / request.param

    def write(path: Path = path, *, overwrite: bool = False) -> None:
        WRITERS[request.param](result, slice_result, path, overwrite)

    write()
    return path, write


def test_what_pynca_wrote_is_replaced_and_nothing_else(written: tuple[Path, Callable[..., object]]) -> None:
    path, write = written
    before = path.read_bytes()
    assert seal.is_sealed(path)
    write()
    assert path.read_bytes() == before  # the same input gives the same bytes
    copy = path.with_name("a copy")
    shutil.copyfile(path, copy)
    assert seal.is_sealed(copy)
    for foreign in (
        b"",
        b"a day's work",
        before[:-1],
        before + b"\n",
        before[:-1] + bytes([before[-1] ^ 1]),
        before * 2,
    ):
        path.write_bytes(foreign)
        assert not seal.is_sealed(path)
        with pytest.raises(FileExistsError, match=r"was not written by pynca, or was changed since; .* overwrite=True"):
            write()
        assert path.read_bytes() == foreign
    write(overwrite=True)
    assert path.read_bytes() == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False))
def test_no_changed_byte_goes_unseen(written: tuple[Path, Callable[..., object]], random: Any) -> None:
    path, _ = written
    before = path.read_bytes()
    packed = before.startswith(b"\x1f\x8b")
    changed = bytearray(gzip.decompress(before) if packed else before)
    place = random.randrange(len(changed))
    if place in _crc(bytes(changed)):
        return
    changed[place] ^= random.randrange(1, 256)
    other = path.with_name("changed")
    other.write_bytes(gzip.compress(bytes(changed)) if packed else bytes(changed))
    assert not seal.is_sealed(other)


def _crc(content: bytes) -> range:
    """Where a PNG has the CRC of its seal, which every reader checks."""
    if not content.startswith(b"\x89PNG"):
        return range(0)
    end = content.index(b"pynca:sha256:") + len(seal.BLANK)
    return range(end, end + 4)


def test_files_of_others_are_not_pyncas(tmp_path: Path, data: Path) -> None:
    for path in (*(data / "hippocampus").rglob("*.nii.gz"), *(data / "dicom").rglob("*.dcm")):
        assert not seal.is_sealed(path)
    (tmp_path / "half").write_bytes(seal.BLANK[:40])
    (tmp_path / "blank").write_bytes(seal.BLANK)
    (tmp_path / "bad.gz").write_bytes(gzip.compress(seal.sealed([seal.BLANK]))[:-9])
    for name in ("half", "blank", "bad.gz", "none", "."):
        assert not seal.is_sealed(tmp_path / name)


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.npy", "mask.tif", "mask.dcm"])
def test_a_mask_that_another_program_saved_is_somebodys(name: str, tmp_path: Path, data: Path) -> None:
    source: Any = data / "hippocampus" / "images" / "hippocampus_001.nii.gz"
    path = tmp_path / name
    if name.endswith(".dcm"):
        pytest.importorskip("highdicom", reason="highdicom is not installed")
        source = data / "dicom" / "study1"
    result = pynca.predict(source, random_model())
    result.save(path)
    assert seal.is_sealed(path)
    if ".nii" in name:
        image = nibabel.load(path)
        mask = np.asarray(image.dataobj).copy()
        mask[0, 0, 0] = 1
        nibabel.save(nibabel.Nifti1Image(mask, image.affine, image.header), path)  # with the old seal in its header
        assert b"pynca:sha256:" in nibabel.load(path).header["descrip"].item()
    elif name.endswith(".npy"):
        np.testing.assert_array_equal(np.load(path), result.mask)
        mapped = np.load(path, mmap_mode="r")
        assert mapped.offset % 64 == 0
        np.save(path, mapped.copy())
    elif name.endswith(".tif"):
        from PIL import Image

        with Image.open(path) as picture:
            picture.copy().save(path)
    else:
        from pydicom import dcmread

        seg = dcmread(path)
        seg.ContentLabel = "CORRECTED"
        seg.save_as(path)  # pydicom keeps the preamble
    with pytest.raises(FileExistsError):
        result.save(path)


def test_pictures_with_a_seal_are_sound(tmp_path: Path, slice_result: pynca.Segmentation) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    slice_result.save(tmp_path / "mask.png")
    slice_result.save_preview(tmp_path / "preview.png")
    for path in tmp_path.iterdir():
        with image.open(path) as picture:
            picture.verify()  # every chunk's CRC
        with image.open(path) as picture:
            picture.load()
            assert picture.info["Software"].startswith("pynca:sha256:")


def test_a_small_file_that_unpacks_to_much_takes_neither_time_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "_MOST_UNPACKED", 2**22)
    for size, known in ((2**21, True), (2**23, False)):
        content = [seal.BLANK, bytes(size)]
        with gzip.open(tmp_path / "x.gz", "wb", compresslevel=1) as file:
            file.write(seal.sealed(content) + content[1])
        assert seal.is_sealed(tmp_path / "x.gz") == known


# --- links, devices, inputs ---------------------------------------------------------------------------------


def write(path: Path, content: str = "new", **options: Any) -> None:
    with files.atomic_path(path, **options) as beside:
        beside.write_text(content)


@posix
def test_a_link_stays_one_and_its_target_gets_the_content(tmp_path: Path) -> None:
    target, link, chain = tmp_path / "deep" / "target", tmp_path / "link", tmp_path / "chain"
    target.parent.mkdir()
    link.symlink_to("deep/target")
    chain.symlink_to(link)
    write(chain)  # a link to nothing makes what it names
    target.write_text("somebody's")
    for path in (link, chain):
        with pytest.raises(FileExistsError, match=f"{path.name} is there already"):
            write(path)
    write(chain, "newer", overwrite=True)
    assert (link.is_symlink(), chain.is_symlink(), target.read_text()) == (True, True, "newer")
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    (tmp_path / "nowhere").symlink_to("no/folder")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write(tmp_path / "nowhere")


@posix
def test_a_link_to_itself_stays(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for overwrite in (False, True):
        with pytest.raises(OSError, match="loop cannot be written: it is a link that leads back to itself"):
            write(tmp_path / "loop", overwrite=overwrite)
    assert (tmp_path / "loop").is_symlink()
    with pytest.raises(NotADirectoryError, match="loop is not a folder"):
        files.make_folder(tmp_path / "loop")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    for name in ("file/x", "file/folder/x"):
        for parents in (False, True):
            with pytest.raises(NotADirectoryError, match=r"x cannot be written: .*file is not a folder"):
                files.check_writable(tmp_path / name, parents=parents)
    with pytest.raises(NotADirectoryError, match="file is not a folder; choose another name"):
        files.make_folder(tmp_path / "file" / "folder")
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_folder_in_which_nothing_may_be_written_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours of work it would be too late; root, who runs tests too, may write everywhere."""
    write_table(tmp_path / "mine.csv", ["a"], [["b"]])
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for name in ("mine.csv", "new.csv", "new/x.csv"):
        with pytest.raises(PermissionError, match="cannot be written: there is no permission to write into the folder"):
            files.check_writable(tmp_path / name, parents=True)


@posix
def test_the_name_of_a_link_says_the_format(tmp_path: Path, result: pynca.Segmentation) -> None:
    """Whatever its target is called, as in stores that name files by their content."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    for name in ("mask.nii.gz", "mask.tif", "mask.npy"):
        result.save(tmp_path / name)
        expected = (tmp_path / name).read_bytes()
        (tmp_path / name).rename(tmp_path / "5f0c")
        (tmp_path / name).symlink_to("5f0c")
        result.save(tmp_path / name)
        assert (tmp_path / "5f0c").read_bytes() == expected
        (tmp_path / "5f0c").unlink()


@posix
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
        (tmp_path / "old").write_text("old")
        (tmp_path / "old").chmod(0o604)
        write(tmp_path / "old", overwrite=True)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o640, 0o604]


@posix
def test_a_device_and_a_pipe_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "null"):
        write(path)
        assert stat.S_ISCHR(path.stat().st_mode)
    assert (tmp_path / "null").is_symlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "x" * 100_000)
    reader.join()
    assert read == ["x" * 100_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


@posix
def test_a_pipe_that_nobody_reads_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody reads it"):
        write(tmp_path / "pipe")


@posix
def test_an_open_file_of_this_process_is_written_into(tmp_path: Path) -> None:
    with open(tmp_path / "x", "w+") as file:
        file.write("before\n")
        file.flush()
        write(Path(f"/dev/fd/{file.fileno()}"), "after\n")
        file.seek(0)
        assert file.read() == "before\nafter\n"


@posix
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_socket_and_a_folder_are_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for name, text in (("socket", "neither a file nor a pipe"), ("folder", "it is a folder")):
            with pytest.raises(OSError, match=text):
                write(tmp_path / name, overwrite=overwrite)
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


def other_names(path: Path) -> Iterator[Path]:
    """A path in other words: through links, a hard link and detours."""
    folder = path.parent
    yield path
    yield folder / "." / "sub" / ".." / path.name
    for name, make in (("soft", os.symlink), ("hard", os.link)):
        make(path, folder / (name + "".join(path.suffixes)))
        yield folder / (name + "".join(path.suffixes))
    os.symlink(folder, folder / "there")
    yield folder / "there" / path.name


@posix
def test_an_input_is_never_replaced(tmp_path: Path, result: pynca.Segmentation) -> None:
    path = tmp_path / "scan.nii.gz"
    (tmp_path / "sub").mkdir()
    result.save_probability(path)  # sealed, and still an input
    before = path.read_bytes()
    segmentation = pynca.predict(str(path), random_model())
    for name in other_names(path):
        for save in (segmentation.save, segmentation.save_probability):
            for overwrite in (False, True):
                with pytest.raises(ValueError, match="is an input and would be overwritten"):
                    save(name, overwrite=overwrite)
    assert path.read_bytes() == before
    assert (tmp_path / "soft.nii.gz").is_symlink()


@posix
def test_what_the_disk_says_names_the_file(tmp_path: Path, result: pynca.Segmentation) -> None:
    """Whatever writes it: each format has its own way to hide what went wrong."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    result.save_probability(tmp_path / "scan.nii")
    code = (
        "import resource, sys, pynca\n"
        f"result = pynca.predict({str(tmp_path / 'scan.nii')!r}, 'hippocampus', threads=1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))\n"
        "for name in sys.argv[1:]:\n"
        "    try: (result.save_preview if 'png' in name else result.save)(name)\n"
        "    except OSError as error: print(error)\n"
    )
    names = ["m.nii", "m.nii.gz", "m.tif", "p.png", "m.npy"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.splitlines() == [f"[Errno 27] File too large: '{name}'" for name in names], run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


# --- tables ---------------------------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.characters(exclude_categories=())), min_size=1), numbers=st.lists(st.floats()))
def test_a_table_gives_back_its_text_and_runs_nothing(tmp_path: Path, names: list[str], numbers: list[float]) -> None:
    path = tmp_path / "t.csv"
    rows: list[list[str | float]] = [[name] for name in names]
    write_table(path, ["name"], [*rows, *([number] for number in numbers)], overwrite=True)
    with open(path, encoding="utf-8", newline="") as file:
        head, *cells = csv.reader(file)
    assert re.fullmatch("pynca:sha256:[0-9a-f]{64}", head[1])
    assert all(len(row) == 2 and row[1] == "" for row in cells)
    for name, (cell, _) in zip(names, cells, strict=False):
        plain = name.encode("utf-8", "backslashreplace").decode()
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert cell == plain or (cell == f"'{plain}" and not name[0].isalnum())
    for number, (cell, _) in zip(numbers, cells[len(names) :], strict=True):
        assert cell == "" if number != number else float(cell) == number


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png", "m.safetensors", "a.DCM", "manifest.json", "page.html"])
def test_a_table_is_not_named_like_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the name of one ends in \.csv"):
        write_csv(tmp_path / name, [], overwrite=True)


# --- several processes ----------------------------------------------------------------------------------------


def test_only_what_processes_that_are_gone_left_is_removed(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii"
    mine = files._owner()
    machine, number, begin = mine.split("-")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stays = [f".{mine}-00000000.mask.nii", f".00000000-{number}-{begin}-00000000.mask.nii", f".{mine}-00000000.other"]
    goes = [f".{machine}-{gone.pid:x}-{begin}-00000000.mask.nii", ".0123456789abcdef.mask.nii"]
    if Path("/proc/self/stat").exists():
        goes.append(f".{machine}-{number}-1-00000000.mask.nii")  # the number was given to another process since
    for name in (*stays, *goes):
        (tmp_path / name).write_text("half")
    files.remove_leftovers([mask])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)
    os.utime(tmp_path / stays[1], (0, 0))
    files.remove_leftovers([mask])
    assert stays[1] not in {path.name for path in tmp_path.iterdir()}


def test_a_temporary_file_says_whose_it_is(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "x.csv") as beside:
        beside.write_text("")
        assert files._TEMPORARY.fullmatch(beside.name)
        files.remove_leftovers([tmp_path / "x.csv"])
        assert beside.exists()


@posix
def test_a_lock_is_had_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    folder, order = tmp_path / "deep" / "out", []

    def second() -> None:
        with files.locked(folder, lambda: order.append("waits")):
            order.append("second")

    with files.locked(folder, lambda: order.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        while "waits" not in order:
            time.sleep(0.01)
        order.append("first ends")
        (folder / "file").write_text("")
    thread.join()
    assert order == ["waits", "first ends", "second"]
    assert [path.name for path in folder.iterdir()] == ["file"]
    with files.locked(tmp_path / "empty" / "one", lambda: None):
        pass
    assert not (tmp_path / "empty").exists()


@posix
def test_who_writes_into_a_refused_pipe_is_let_go(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii.gz")
    writer = subprocess.Popen(["sh", "-c", "cat /dev/zero > scan.nii.gz"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while writer.poll() is None and time.monotonic() < deadline:  # it may not have come to open the pipe yet
        with pytest.raises(ValueError, match=r"scan\.nii\.gz is a pipe; it must be a file"):
            volumes.read_volume(tmp_path / "scan.nii.gz")
        time.sleep(0.01)
    assert writer.wait(1) != 0
