"""Files of every format in and out: pairs of formats, films, folders, label tables, and what is not installed."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import pynca
from pynca import cli, volumes
from pynca.checkpoints.archive import read_state_dict
from pynca.evaluation import score_case
from pynca.formats import npy
from pynca.manifest import digest
from support import DATA, random_model

LABELS = {1: "hippocampus"}
REAL = [
    *sorted(DATA.glob("volumes/*.nii.gz")),
    *sorted(DATA.glob("hippocampus/images/*.nii.gz"))[::70],
    *sorted(DATA.glob("dicom/study*")),
    *sorted(DATA.glob("cardiac/images/*.png"))[::200],
]
NEEDS = {".dcm": ("pydicom", "highdicom"), ".png": ("PIL",), ".tif": ("PIL",), "": ("pydicom",)}


def need(*suffixes: str) -> None:
    for suffix in suffixes:
        for module in NEEDS.get(suffix, ()):
            if find_spec(module) is None:
                pytest.skip(f"needs {module}")


def theirs(path: Path, kind: str) -> NDArray[Any]:
    """A written file as the format's own library reads it, as (page, row, column) or in the axes of the volume."""
    if kind == ".nii.gz":
        return np.asarray(nibabel.load(path).dataobj)
    if kind == ".npy":
        return np.load(path)
    if kind == ".dcm":
        import pydicom

        return np.asarray(pydicom.dcmread(path).pixel_array)
    from PIL import Image

    with Image.open(path) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages.append(np.array(image))
    return np.stack(pages)


# --- every pair ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason=f"no files in {DATA}")
@pytest.mark.parametrize("kind", [".nii.gz", ".dcm", ".png", ".tif", ".npy"])
@pytest.mark.parametrize("source", REAL, ids=lambda path: path.name)
def test_every_real_file_into_every_format(source: Path, kind: str, tmp_path: Path) -> None:
    need(kind, source.suffix)
    volume = volumes.read_volume(source)
    mask = (volume.data > np.percentile(volume.data, 80)).astype(np.uint8)
    chance = (volume.data / (2 * float(volume.data.max())) + 0.25).astype(np.float32)
    supported = {
        ".nii.gz": volume.affine is not None,
        ".dcm": bool(volume.slices),
        ".png": volume.data.ndim == 2,
        ".tif": True,
        ".npy": True,
    }[kind]
    out, out_map = tmp_path / f"m{kind}", tmp_path / f"p{kind}"
    if not supported:
        with pytest.raises(ValueError, match=f"{out} cannot be written: "):
            volumes.save_mask(out, mask, volume, LABELS)
        assert not list(tmp_path.iterdir())
        return
    volumes.save_mask(out, mask, volume, LABELS)
    written = theirs(out, kind)
    if kind != ".dcm":
        volumes.save_map(out_map, chance, volume)
    if kind in (".nii.gz", ".npy"):
        np.testing.assert_array_equal(written, mask, strict=True)
        np.testing.assert_array_equal(theirs(out_map, kind), chance, strict=True)
        if kind == ".nii.gz" and source.is_file():
            np.testing.assert_array_equal(nibabel.load(out).affine, nibabel.load(source).affine, strict=True)
        elif kind == ".nii.gz":
            np.testing.assert_allclose(nibabel.load(out).affine, volume.affine, atol=1e-6)
    elif kind == ".dcm":
        # highdicom orders frames by their position; which is which is compared in test_formats_dicom
        assert {frame.tobytes() for frame in written} == {k.T.tobytes() for k in np.moveaxis(mask, 2, 0)}
    elif volume.picture:
        np.testing.assert_array_equal(written[0], mask)
    else:
        # as radiologists see axial slices: rows to the back, columns to the patient's left
        turned, _ = volumes.to_orientation(mask, volume.affine, "PL" + nibabel.aff2axcodes(volume.affine)[2])
        np.testing.assert_array_equal(written, np.moveaxis(turned, 2, 0))
        np.testing.assert_array_equal(volumes.read_label(out).data, turned)
    if kind != ".dcm":
        back = volumes.read_label(out)
        assert np.count_nonzero(back.data) == np.count_nonzero(mask)
        if back.affine is not None:
            assert back.lies_with(volume)


# --- arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 6)])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f4", "?"])
def test_an_array_file_is_an_array(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    data = (np.random.default_rng(3).random(shape) * 99).astype(dtype)
    for name, array in (("c.npy", data), ("f.npy", np.asfortranarray(data))):
        np.save(tmp_path / name, array)
        volume = volumes.read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data, data)
        assert volume.data.dtype == data.dtype.newbyteorder("=")
        model = random_model()
        result = pynca.predict(tmp_path / name, model, spacing=2)
        np.testing.assert_array_equal(result.mask, pynca.segment(data, model))
        assert result.volume is not None
        assert result.volume.voxel_size == (2.0,) * len(shape)


def test_without_spacing_the_models_is_assumed_and_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 7)))
    np.save(tmp_path / "y.npy", np.zeros((5, 7, 6)))
    model = random_model(spacing=(1.0, 2.0, 3.0), axis=0)
    with pytest.warns(UserWarning, match="the model's 2 x 3 mm are assumed; spacing=") as caught:
        result = pynca.predict(tmp_path / "x.npy", model)
    assert caught[0].filename == __file__
    assert result.volume is not None
    assert result.volume.spacing == (2.0, 3.0)
    assert result.volume.voxel_volume is None
    with pytest.warns(UserWarning, match="the model's 1 x 2 x 3 mm are assumed"):
        result = pynca.predict(tmp_path / "y.npy", model)
    assert result.volume is not None
    assert result.volume.voxel_volume == 6.0


def test_refuses_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, reason in (
        (np.zeros(4), r"has shape \(4,\); it must be a slice with two axes or a volume with three"),
        (np.zeros((2, 2, 2, 2)), r"has shape \(2, 2, 2, 2\)"),
        (np.zeros((2, 2), complex), "holds complex numbers"),
        (np.full((2, 2), np.nan), "holds 4 values of 4 that are not finite"),
        (np.zeros((2, 2), "U3"), "holds no numbers"),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match=rf"x\.npy {reason}"):
            volumes.read_volume(path)
    np.save(path, np.array([{}, 2], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy holds no numbers \(dtype object\)"):
        volumes.read_volume(path)
    np.save(path, np.zeros((90, 90)))
    whole = path.read_bytes()
    for content, reason in (
        (whole[:-1], "is damaged or cut short"),
        (whole[:40], "is damaged or cut short"),
        (b"", r"is not a \.npy file"),
        (b"hello", r"is not a \.npy file"),
        (whole.replace(b"(90, 90)", b"(90, 9**9)"), "is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.npy {reason}"):
            volumes.read_volume(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8", ">f8", "?", "u8", "<f2"])
def test_arrays_of_any_layout(tmp_path: Path, dtype: str, order: Any, version: tuple[int, int]) -> None:
    path, values = tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(dtype, order=order)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, values, version)
    read = volumes.read_volume(path).data
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert read.flags.writeable
    assert read.flags.f_contiguous == (order == "F")


def test_an_array_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was mapped, the process died."""
    path = tmp_path / "x.npy"
    np.save(path, np.ones((99, 99, 99)))
    check = npy._header

    def shrinking(file: Any) -> Any:
        found = check(file)
        os.truncate(path, 200)
        return found

    monkeypatch.setattr(npy, "_header", shrinking)
    with pytest.raises(ValueError, match=r"x\.npy is cut short: it ends [0-9]+ bytes too early"):
        npy.read(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9, 0, 9)}",
            r"has shape \(9, 0, 9\); no axis may be empty",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9, -9)}", "no axis may be empty"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999, 99999)}",
            "its values take 3999880001199996 b",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000, 2)}", "cut short"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (9, 9)}", "holds no numbers"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (9, 9)}", "holds colours"),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (9, 9)}", "holds no numbers"),
        ("(" * 5000, "header"),
        ("-" * 9000 + "1", ""),
        ("x" * 20000, "has version 1.0 of the format and a header of 20000 bytes"),
    ],
)
def test_refuses_headers_of_arrays(tmp_path: Path, header: str, reason: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(999))
    for read in (volumes.read_volume, volumes.read_outline, volumes.read_label):
        with pytest.raises(ValueError, match=rf"x\.npy .*{reason}") as caught:
            read(path)
        assert len(str(caught.value)) < 600


# --- labels, and what is no file ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_labels_are_whole_but_for_a_rounding(tmp_path: Path, dtype: Any) -> None:
    wanted = np.arange(256, dtype=np.uint8).reshape(16, 16)
    moved = wanted + (np.where(wanted % 2, 4e-4, -4e-4) if dtype != np.float16 else 0)
    np.save(tmp_path / "x.npy", moved.astype(dtype))
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "x.npy").data, wanted, strict=True)


def test_a_label_that_was_scaled(tmp_path: Path) -> None:
    """nibabel scales floats that it stores as int16, and 2 comes back as 1.9999999995."""
    wanted = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.float64)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(wanted, np.eye(4), header), tmp_path / "x.nii.gz")
    assert (nibabel.load(tmp_path / "x.nii.gz").get_fdata() != wanted).any()
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "x.nii.gz").data, wanted)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.9989, "1.9989"),
        (2.0010000001, "2.0010000001"),
        (0.5, "0.5"),
        (-0.001, "-0.001"),
        (255.5, "255.5"),
        (256, "256"),
        (-1, "-1"),
        (1e20, "1e+20"),
        (np.int16(-1), "-1"),
        (np.uint16(256), "256"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
    ],
)
def test_other_labels_are_told_in_full(tmp_path: Path, value: Any, told: str) -> None:
    np.save(tmp_path / "x.npy", np.full((3, 3), value))
    with pytest.raises(ValueError, match=rf"x\.npy holds the value {re.escape(told)}; labels are whole numbers"):
        volumes.read_label(tmp_path / "x.npy")


@pytest.fixture(params=["pipe", "socket", "device"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Something that is no file, once for every ending that a reader has."""
    if sys.platform == "win32":
        pytest.skip("no such files")
    monkeypatch.chdir(tmp_path)
    sockets = []
    for ending in ("nii", "nii.gz", "npy", "png", "tif", "dcm", "safetensors", "pth", "txt"):
        name = f"x.{ending}"
        if request.param == "pipe":
            os.mkfifo(name)
        elif request.param == "device":
            os.symlink("/dev/zero", name)
        else:
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(name)
    yield request.param
    for one in sockets:
        one.close()


def test_what_is_no_file_is_refused_by_every_reader(no_file: str) -> None:
    said = f"is a {no_file}; it must be a file"
    for name in ("x.nii", "x.nii.gz", "x.npy", "x.png", "x.tif", "x.dcm"):
        for read in (volumes.read_volume, volumes.read_label, volumes.read_outline, pynca.segment, digest):
            with pytest.raises(ValueError, match=f"^{name} {said}"):
                read(name)
    with pytest.raises(ValueError, match=f"^x.safetensors {said}"):
        pynca.load_model("x.safetensors")
    with pytest.raises(ValueError, match=f"^x.pth {said}"):
        read_state_dict("x.pth")


def test_what_is_no_file_is_refused_by_every_command(no_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        Path(folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), f"{folder}/a.nii")
    pair = ("--images", "images", "--labels", "labels")
    for arguments in (
        ("segment", "x.nii.gz", "mask.nii.gz"),
        ("segment", "x.dcm", "mask.nii.gz"),
        ("segment", "x.png", "mask.png"),
        ("segment", "images", "masks", "-m", "x.safetensors"),
        ("estimate", "x.nii"),
        ("estimate", "images", "-m", "x.safetensors"),
        ("animate", "x.npy", "y.gif"),
        ("import", "x.pth", "-o", "y.safetensors"),
        ("info", "x.safetensors"),
        ("evaluate", *pair, "--cases", "x.txt"),
        ("evaluate", *pair, "-m", "x.safetensors"),
        ("calibrate", "hippocampus", *pair, "-o", "y.safetensors", "--leave-out", "x.txt"),
    ):
        assert cli.main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert f" is a {no_file}; it must be a file" in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith("x.")) == ["images", "labels"]


def test_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("x.txt", "x", "x.mha"):
        (tmp_path / name).write_bytes(b"hello" * 99)
        with pytest.raises(ValueError, match=rf"{name} is of no format that pynca reads by its name; it must be NIfTI"):
            volumes.read_volume(tmp_path / name)


# --- films ---------------------------------------------------------------------------------------------------

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, 2, 8], [0, 1.5, 0, 7], [0, 0, 0, 1]])


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A cine of three volumes, ten milliseconds apart."""
    image = nibabel.Nifti1Image(np.random.default_rng(5).random((6, 7, 5, 3)).astype(np.float32), AFFINE)
    image.header.set_zooms((1, 1.5, 2, 10))
    nibabel.save(image, tmp_path / "film.nii.gz")
    return tmp_path / "film.nii.gz"


def test_a_volume_of_a_film(film: Path) -> None:
    data = np.asarray(nibabel.load(film).dataobj)
    for source in (film, nibabel.load(film)):
        for n in range(3):
            np.testing.assert_array_equal(volumes.read_volume(source, volume=n).data, data[..., n], strict=True)
        np.testing.assert_array_equal(volumes.read_volume(source, volume="all").data, data, strict=True)
        with pytest.raises(ValueError, match=r"it holds 3 volumes; choose one with volume=, 0 to 2, or"):
            volumes.read_volume(source)
        for wrong in (-1, 3):
            with pytest.raises(ValueError, match=f"holds 3 volumes, 0 to 2; volume is {wrong}"):
                volumes.read_volume(source, volume=wrong)
    with pytest.raises(TypeError):
        volumes.read_volume(film, volume=1.5)  # type: ignore[arg-type]


def test_one_volume_has_the_number_0(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.uint8), AFFINE), tmp_path / "x.nii")
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 5)))
    for name in ("x.nii", "x.npy"):
        for which in (None, 0, "all"):
            assert volumes.read_volume(tmp_path / name, volume=which).data.shape == (3, 4, 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="volume is 1"):
            volumes.read_volume(tmp_path / name, volume=1)


def test_a_film_is_its_volumes_one_by_one(film: Path, tmp_path: Path) -> None:
    model = random_model()
    whole = pynca.predict(volumes.read_volume(film, volume="all"), model, samples=2)
    assert whole.mask.shape == (6, 7, 5, 3)
    for n in range(3):
        one = pynca.predict(volumes.read_volume(film, volume=n), model, samples=2)
        np.testing.assert_array_equal(whole.mask[..., n], one.mask)
        np.testing.assert_array_equal(whole.probability[..., n], one.probability)
        assert whole.uncertainty is not None
        np.testing.assert_array_equal(whole.uncertainty[..., n], one.uncertainty)
        frame = whole.frames()[n]
        assert frame.nqm == one.nqm
        frame.save(tmp_path / "frame.nii.gz")
        one.save(tmp_path / "one.nii.gz")
        assert (tmp_path / "frame.nii.gz").read_bytes() == (tmp_path / "one.nii.gz").read_bytes()
        along = pynca.predict(volumes.read_volume(film, volume=n), model, axis=0)
        np.testing.assert_array_equal(
            pynca.predict(volumes.read_volume(film, volume="all"), model, axis=0).mask[..., n], along.mask
        )
    whole.save(tmp_path / "m.nii.gz")
    whole.save_uncertainty(tmp_path / "u.nii")
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), whole.mask)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "u.nii").dataobj), whole.uncertainty)
    assert mask.header.get_zooms() == (1, 1.5, 2, 10)
    np.testing.assert_array_equal(mask.affine, AFFINE)
    with pytest.raises(ValueError, match="PNG holds one slice, TIFF a volume, NIfTI all"):
        whole.save(tmp_path / "m.tif")


# --- label tables -----------------------------------------------------------------------------------------


def test_names_of_labels_are_in_the_header(tmp_path: Path) -> None:
    volume = volumes.Volume(np.zeros((3, 4, 5), np.uint8), AFFINE, None, "x")
    names = {1: "left <ventricle> & more", 7: "Höhle", 200: "z"}
    volumes.save_mask(tmp_path / "m.nii.gz", volume.data, volume, names)
    (extension,) = nibabel.load(tmp_path / "m.nii.gz").header.extensions
    assert extension.get_code() == 30
    content = extension.content if hasattr(extension, "content") else extension.get_content()
    table = ElementTree.fromstring(content.rstrip(b"\0").decode())
    labels = table.findall("VolumeInformation/LabelTable/Label")
    assert {int(label.attrib["Key"]): label.text for label in labels} == {0: "background", **names}
    colours = {tuple(label.attrib[part] for part in ("Red", "Green", "Blue")) for label in labels}
    assert len(colours) == 4
    assert all(0 <= float(part) <= 1 for colour in colours for part in colour)
    volumes.save_map(tmp_path / "p.nii", volume.data, volume)
    assert not nibabel.load(tmp_path / "p.nii").header.extensions
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "m.nii.gz").data, volume.data)


# --- folders ----------------------------------------------------------------------------------------------


def test_inputs_in_a_folder(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    for name, content in {
        "b.nii.gz": b"",
        "a.PNG": b"",
        "c.npy": b"",
        "d.jpeg": b"",
        "notes.txt": b"what it is" * 99,
        "._b.nii.gz": b"",
        ".hidden.png": b"",
        "series/IM0001": dicom,
        "series/IM0002": dicom,
        "named/1.dcm": b"",
        "reports/readme": b"x" * 200,
        "deep/er/x.dcm": b"",
        "medium/DICOMDIR": dicom,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    names = [path.name for path in volumes.inputs_in(tmp_path)]
    assert names == ["a.PNG", "b.nii.gz", "c.npy", "d.jpeg", "named", "series"]
    assert volumes.inputs_in(tmp_path / "series") == [tmp_path / "series"]
    assert volumes.inputs_in(str(tmp_path / "medium")) == []
    (tmp_path / "series" / "x.nii").write_bytes(b"")
    assert volumes.inputs_in(tmp_path / "series") == [tmp_path / "series", tmp_path / "series" / "x.nii"]
    assert volumes.is_input(tmp_path / "series")
    assert volumes.is_input(tmp_path / "series" / "IM0001")
    assert not volumes.is_input(tmp_path / "reports")
    assert not volumes.is_input(tmp_path / "medium" / "DICOMDIR")


def test_names_of_results() -> None:
    for source, name in {
        "in/a.nii": "a.nii",
        "a.b.nii.gz": "a.b.nii.gz",
        "x.PNG": "x.PNG",
        "x.jpg": "x.png",
        "x.tif": "x.tif",
        "x.npy": "x.npy",
        "study.1/x.dcm": "x.nii.gz",
        "in/1.2.840": "1.2.840.nii.gz",
    }.items():
        assert volumes.output_name(source) == name


# --- the command ---------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = cli.main(["segment", *map(str, arguments)])
    except SystemExit as leaving:
        code = leaving.code  # type: ignore[assignment]
    return code, *capsys.readouterr()


def test_a_film_at_the_command_line(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, film, tmp_path / "m.nii.gz")
    assert code == 1
    assert err.startswith(f"pynca: {film} has shape (6, 7, 5, 3): it holds 3 volumes; choose one with")
    assert run(capsys, film, tmp_path / "m.nii.gz", "--volume", "1", "--force")[0] == 0
    assert nibabel.load(tmp_path / "m.nii.gz").shape == (6, 7, 5)
    arguments = ("--force", "--samples", "2", "--save-uncertainty", tmp_path / "u.nii.gz")
    assert run(capsys, film, tmp_path / "m.nii.gz", "--volume", "all", *arguments)[0] == 0
    assert nibabel.load(tmp_path / "m.nii.gz").shape == (6, 7, 5, 3)
    assert nibabel.load(tmp_path / "u.nii.gz").get_data_dtype() == np.float32


def test_volumes_of_a_film_are_never_added_up(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = nibabel.load(data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    (tmp_path / "scans").mkdir()
    film, table = tmp_path / "scans" / "film.nii.gz", tmp_path / "stats.csv"
    nibabel.save(nibabel.Nifti1Image(np.stack([np.asarray(scan.dataobj)] * 3, -1), scan.affine), film)
    monkeypatch.setenv("PYNCA_NUM_THREADS", "2")
    code, out, err = run(capsys, film, tmp_path / "m.nii.gz", "--volume", "all", "--stats", table)
    assert (code, err) == (0, "")
    assert "hippocampus 2.932, 2.932, 2.932 ml in 3 frames; largest 2.932 ml in frame 0" in out
    assert ", ok, " in out
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["volume_ml"]) for row in rows] == [(str(n), "2.932") for n in range(3)]
    code, out, _ = run(capsys, tmp_path / "scans", tmp_path / "masks", "--volume", "all", "--json")
    record = json.loads(out)
    assert record["volume_ml"] == [2.932] * 3
    assert record["voxels"] == [2932] * 3
    manifest = tmp_path / "masks" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert [(label["frame"], label["volume_ml"]) for label in content["cases"][0]["labels"]] == [
        (n, 2.932) for n in range(3)
    ]

    labels = [{name: value for name, value in record["labels"][0].items() if name != "frame"}]
    content["cases"][0]["labels"] = [labels[0] | {"voxels": 8796, "volume_ml": 8.796}]  # as it was once written
    manifest.write_text(json.dumps(content))
    code, _, err = run(capsys, tmp_path / "scans", tmp_path / "masks", "--volume", "all")
    assert code == 2
    assert "an older pynca wrote it, which added the volumes of a film's frames up" in err
    code = cli.main(["report", str(tmp_path / "masks")])
    assert code != 0
    assert "added the volumes of a film's frames up" in capsys.readouterr().err
    assert not (tmp_path / "masks" / "report.html").exists()


def test_a_picture_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra image")
    image.fromarray((np.arange(1200) // 5).astype(np.uint8).reshape(30, 40)).save(tmp_path / "x.jpg")
    # not to the JPEG's own name; the line has no volume, which a picture has not
    (tmp_path / "masks").mkdir()
    code, out, err = run(capsys, tmp_path / "x.jpg", tmp_path / "masks", "--spacing", "1.4,1.2")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'masks' / 'x.png'}: hippocampus ")
    assert " pixels" in out
    assert " ml" not in out
    assert volumes.read_label(tmp_path / "masks" / "x.png").data.shape == (30, 40)
    code, out, err = run(capsys, tmp_path / "x.jpg", tmp_path / "m.nii.gz", "--spacing", "1.2")
    assert (code, out) == (1, "")
    assert "m.nii.gz cannot be written: " in err


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason=f"no DICOM series in {DATA}")
def test_a_series_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")
    series = DATA / "dicom" / "study1"
    assert run(capsys, series, tmp_path / "m.dcm", "--threads", "1")[0] == 0
    assert run(capsys, series / "3.dcm", tmp_path / "m.nii.gz", "--threads", "1")[0] == 0
    mask = np.asarray(nibabel.load(tmp_path / "m.nii.gz").dataobj)
    assert mask.sum() == highdicom.seg.segread(tmp_path / "m.dcm").pixel_array.sum() > 1000
    code, out, err = run(capsys, DATA / "dicom", tmp_path / "masks", "--threads", "1")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3  # and the summary
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.nii.gz")) == ["study1.nii.gz", "study2.nii.gz"]
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "masks" / "study1.nii.gz").dataobj), mask)


# --- what is not installed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("x.dcm", "pydicom", "dicom"), ("x.png", "PIL", "image"), ("x.tif", "PIL", "image")]
)
def test_a_missing_library_is_one_sentence(
    name: str,
    module: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(b"whatever it is")
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = run(capsys, tmp_path / name, tmp_path / "m.npy")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    package = module.replace("PIL", "Pillow")
    assert f"needs {package}, which is not installed: run `pip install '.[{extra}]'` in the clone of pynca" in err


def test_libraries_are_loaded_when_they_are_needed(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pynca.volumes as v; numpy.save('x.npy', numpy.zeros((2, 3))); v.read_volume('x.npy'); "
        "sys.exit(len({'nibabel', 'pydicom', 'highdicom', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


# --- headers at the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1000.0), ("meter", 0.001)])
def test_units_at_the_command_line(
    unit: str, factor: float, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same scan in other units: the same mask, volume, distances and verdict, and a mask in the scan's units."""
    source = data / "hippocampus" / "images" / "hippocampus_001.nii.gz"
    image = nibabel.load(source)
    scaled = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([factor] * 3 + [1]) @ image.affine, image.header)
    scaled.header.set_xyzt_units(unit)
    nibabel.save(scaled, tmp_path / "scan.nii.gz")
    records = []
    for path, mask in ((source, "a.nii.gz"), (tmp_path / "scan.nii.gz", "b.nii.gz")):
        code, out, err = run(capsys, path, tmp_path / mask, "--json", "--preview", tmp_path / f"{mask}.png")
        assert (code, err) == (0, "")
        records.append(json.loads(out))
    first, second = records
    for key in ("volume_ml", "quality", "reasons", "voxels", "warnings"):
        assert first[key] == second[key], key
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.dataobj, nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert written.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert (tmp_path / "a.nii.gz.png").read_bytes() == (tmp_path / "b.nii.gz.png").read_bytes()
    label = volumes.read_label(tmp_path / "b.nii.gz")
    score = score_case(pynca.load_model("hippocampus"), volumes.read_volume(source), label, "x")
    assert (score.hard_dice, score.hd95) == (1.0, 0.0)


def test_doubts_about_sizes_are_recorded(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the manifest and in what --json prints, with the file's name, and nothing of nibabel's own."""
    source = nibabel.load(data / "hippocampus" / "images" / "hippocampus_001.nii.gz")
    (tmp_path / "in").mkdir()
    for name, codes in (("sform", (1, 0)), ("qform", (0, 1)), ("neither", (0, 0))):
        path = tmp_path / "in" / f"{name}.nii"
        image = nibabel.Nifti1Image(np.asarray(source.dataobj), source.affine)
        image.set_sform(source.affine, codes[0])
        image.set_qform(source.affine, codes[1])
        nibabel.save(image, path)
        content = bytearray(path.read_bytes())
        content[88:92] = bytes(4)
        path.write_bytes(content)
    assert cli.main(["segment", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == 1
    out, err = capfd.readouterr()
    told = {Path(record["input"]).stem: record for record in map(json.loads, out.splitlines())}
    (doubt,) = told["sform"]["warnings"]
    assert doubt.startswith(f"{tmp_path / 'in' / 'sform.nii'} has voxels of 1 x 1 x 0 by its header (pixdim), which")
    assert told["sform"]["volume_ml"] == told["sform"]["voxels"] / 1000
    for name in ("qform", "neither"):
        assert told[name]["status"] == "failed"
        assert f"{name}.nii has voxels of 1 x 1 x 0 by its header (pixdim), and nothing" in told[name]["error"]
    cases = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]
    assert [case["warnings"] for case in cases if case["input"] == "sform.nii"] == [[doubt]]
    assert all(line.startswith("pynca: ") for line in err.splitlines())
    assert "should be" not in err
