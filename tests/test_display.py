"""Models of slices as they are displayed: the same mask of a picture, a DICOM slice and a volume in whatever plane."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

import pynca
from pynca import cli
from pynca.inputs import Expected, slices_along
from pynca.orientation import DISPLAY, Orientation, displayed
from pynca.volumes import Volume
from support import random_model

# Rows, columns and slices of a short-axis series of the heart, as such series lie: no plane of the patient's is near
SHORT_AXIS = np.array(
    [[0.30, -0.73, 0.61, 30.0], [0.35, -0.50, -0.79, -20.0], [-0.89, -0.46, -0.10, 50.0], [0, 0, 0, 1]]
)


def placed(shown: NDArray[Any], codes: str, affine: NDArray[np.float64], name: str = "x") -> Volume:
    """Store an array (rows, columns, slices), whose place an affine tells, with its axes in another order."""
    image = nibabel.Nifti1Image(shown, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))
    return Volume(np.asarray(turned.dataobj), turned.affine, None, name)


def affine_of_display(across: str, thickness: float = 8.0) -> NDArray[np.float64]:
    """Of rows, columns and slices as they are looked at across one of the patient's axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, mm) in enumerate(zip(displayed(across), (1.4, 1.4, thickness), strict=True)):
        affine["RLAPSI".index(code) // 2, axis] = mm if code in "RAS" else -mm
    return affine


@pytest.mark.parametrize("across", "RAS")
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "IPL", "ARS", "PSL"])
def test_slices_are_shown_as_they_were_acquired(across: str, slices: int, codes: str) -> None:
    shown = np.arange(5 * 7 * slices, dtype=np.int16).reshape(5, 7, slices)
    volume = placed(shown, codes, affine_of_display(across))
    np.testing.assert_array_equal(Orientation.of(volume, DISPLAY, 2).apply(volume.data), shown)


def test_a_single_slice_is_cut_along_its_plane_even_if_it_is_thin() -> None:
    shown = np.arange(35, dtype=np.int16).reshape(5, 7, 1)
    volume = placed(shown, "RAS", affine_of_display("A", thickness=0.5))
    np.testing.assert_array_equal(Orientation.of(volume, DISPLAY, 2).apply(volume.data), shown)


def test_an_oblique_series_is_cut_along_its_own_plane() -> None:
    """Here where voxels are largest: along the third axis, that runs to the patient's back rather than to the head."""
    shown = np.arange(5 * 7 * 3, dtype=np.int16).reshape(5, 7, 3)
    affine = SHORT_AXIS @ np.diag([1.4, 1.4, 8.0, 1.0])
    for codes in ("RAS", "LPS", "SAR"):
        volume = placed(shown, codes, affine)
        turned = Orientation.of(volume, DISPLAY, 2).apply(volume.data)
        np.testing.assert_array_equal(turned[..., ::-1], shown)  # slices are counted from the back


def test_another_plane_can_be_asked_for() -> None:
    volume = placed(np.zeros((5, 7, 3), np.int16), "RAS", affine_of_display("S"))
    assert volume.data.shape == (7, 5, 3)  # right, anterior, superior
    assert Orientation.of(volume, DISPLAY, 2, across=0).apply(volume.data).shape == (3, 5, 7)
    model = random_model(size=(16, 16), orientation=DISPLAY)
    volume.data[...] = np.random.default_rng(0).integers(0, 99, (7, 5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pynca.segment(volume, model, axis=0).shape == (7, 5, 3)


def test_pictures_and_arrays_are_rows_columns_and_slices() -> None:
    model = random_model(size=(16, 32), orientation=DISPLAY, spacing=(1.4, 1.4, 8.0))
    shown = np.random.default_rng(1).integers(0, 200, (16, 32, 2)).astype(np.uint8)
    expected = pynca.segment(shown, model)
    assert expected.any()
    with pytest.warns(UserWarning, match=r"1\.4 x 1\.4 x 8 mm are assumed"):
        np.testing.assert_array_equal(pynca.segment(Volume(shown, None, None, "p", picture=True), model), expected)
    for codes in ("RAS", "SPL"):
        volume = placed(shown, codes, affine_of_display("A"))
        mask = Orientation.of(volume, DISPLAY, 2).apply(pynca.segment(volume, model))
        np.testing.assert_array_equal(mask, expected)
        assert pynca.predict(volume, model).mask.shape == volume.data.shape


def write_slice(folder: Path, shown: NDArray[np.uint8], mm: float) -> None:
    """A short-axis slice, written by other libraries, with the axes of the volume as converters leave them."""
    picture, dicom = pytest.importorskip("PIL.Image"), pytest.importorskip("pydicom")
    picture.fromarray(shown).save(folder / "slice.png")

    turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # patient coordinates of DICOM are LPS
    rows, columns = (turn @ SHORT_AXIS)[:3, 0], (turn @ SHORT_AXIS)[:3, 1]
    columns = columns / np.linalg.norm(columns)
    rows = rows - columns * (rows @ columns)
    meta = dicom.dataset.FileMetaDataset()
    data = dicom.dataset.FileDataset(str(folder / "slice.dcm"), {}, file_meta=meta, preamble=bytes(128))
    meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = data.SOPClassUID = dicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = dicom.uid.generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = dicom.uid.generate_uid(), dicom.uid.generate_uid()
    data.FrameOfReferenceUID, data.Modality, data.PatientID = dicom.uid.generate_uid(), "MR", "p"
    data.InstanceNumber, data.SliceThickness, data.PixelSpacing = 1, 8, [mm, mm]
    data.ImageOrientationPatient = [*columns.tolist(), *(rows / np.linalg.norm(rows)).tolist()]
    data.ImagePositionPatient = [10.0, 20.0, 30.0]
    data.Rows, data.Columns = shown.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelData = 8, 8, 7, shown.tobytes()
    data.save_as(folder / "slice.dcm", enforce_file_format=True)

    converted = placed(shown[..., None], "LAS", SHORT_AXIS @ np.diag([mm, mm, 8.0, 1.0]))
    nibabel.save(nibabel.Nifti1Image(converted.data, converted.affine), folder / "slice.nii.gz")


def masks(folder: Path, model: pynca.Model, mm: float) -> list[NDArray[np.uint8]]:
    """The masks of the slice as PNG, DICOM and NIfTI, as displayed."""
    found = [pynca.segment(folder / "slice.png", model, spacing=mm)]
    for name in ("slice.dcm", "slice.nii.gz"):
        volume = pynca.volumes.read_volume(folder / name)
        found.append(Orientation.of(volume, DISPLAY, 2).apply(pynca.segment(volume, model))[..., 0])
    return found


def test_one_slice_as_png_dicom_and_nifti(tmp_path: Path) -> None:
    model = random_model(size=(32, 48), orientation=DISPLAY, spacing=(1.4, 1.4, 8.0))
    write_slice(tmp_path, np.random.default_rng(2).integers(0, 255, (32, 48)).astype(np.uint8), 1.4)
    png, dicom, nifti = masks(tmp_path, model, 1.4)
    assert png.any()
    np.testing.assert_array_equal(dicom, png)
    np.testing.assert_array_equal(nifti, png)


def test_a_real_heart_as_png_dicom_and_nifti(tmp_path: Path, data: Path) -> None:
    pictures = pytest.importorskip("PIL.Image")
    model = pynca.load_model("cardiac-lv")
    with pictures.open(data / "cardiac" / "images" / "SC-N-03_0220.png") as picture:
        write_slice(tmp_path, np.asarray(picture), 1.35)
    png, dicom, nifti = masks(tmp_path, model, 1.35)
    assert 300 < np.count_nonzero(png) < 3000
    np.testing.assert_array_equal(dicom, png)
    np.testing.assert_array_equal(nifti, png)


def test_refuses_another_axis() -> None:
    with pytest.raises(ValueError, match="displayed slices follow each other along axis 2"):
        pynca.Preparation((16, 16), DISPLAY, 1)


# --- stacks of pictures ----------------------------------------------------------------------------------------


def of_pictures(**changes: Any) -> pynca.Model:
    """A model that learnt on pictures of 32 x 32 pixels of 1 mm, shown as they are."""
    thumbnail = [-1.0, 1.0] * 8
    expected = Expected([(1.0, 1.0)] * 2, [(32.0, 32.0)] * 2, thumbnail, -1.0, 5)
    model = random_model(size=(32, 32), orientation="display")
    return replace(model, **{"expected": expected, "card": pynca.Card(name="pictures"), **changes})


@pytest.mark.parametrize("model", [of_pictures(), of_pictures(expected=None)])
@pytest.mark.parametrize(("shape", "taken"), [((32, 32, 5), True), ((5, 32, 32), False), ((32, 32, 32), False)])
def test_a_stack_of_pictures_is_not_taken_for_a_volume(
    model: pynca.Model, shape: tuple[int, int, int], taken: bool
) -> None:
    stack = np.random.default_rng(0).random(shape)
    if taken:
        whole = pynca.segment(stack, model)
    else:
        with pytest.raises(ValueError, match=r"; axis=.*\[pynca.segment\(picture, model\) for picture in pictures\]"):
            pynca.segment(stack, model)
        whole = pynca.segment(stack, model, axis=0)
    single = [pynca.predict(one, model).mask for one in (np.moveaxis(stack, 2, 0) if taken else stack)[:1]]
    np.testing.assert_array_equal((np.moveaxis(whole, 2, 0) if taken else whole)[0], single[0])


@pytest.mark.parametrize(
    ("shape", "along"),
    [
        ((7, 32, 32), [0]),
        ((32, 32, 7), [2]),
        ((32, 7, 32), [1]),
        ((1, 32, 32), [0]),
        ((32, 32, 300), [2]),
        ((30, 32, 34), [0, 1, 2]),
        ((9, 100, 100), [0]),  # of another size than learnt on
        ((120, 100, 9), [2]),
        ((9, 9, 9), [0, 1, 2]),
    ],
)
def test_along_which_axis_slices_follow_each_other(shape: tuple[int, int, int], along: list[int]) -> None:
    assert slices_along(shape, None, of_pictures()) == along
    assert slices_along(shape, (2.0, 2.0, 2.0), of_pictures(expected=None)) in (along, [along[0]])
    assert slices_along(shape, None, random_model()) == [2]  # its axes are the patient's


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_pictures_is_no_volume(kind: type) -> None:
    pictures = [np.random.default_rng(n).random((32, 32)) for n in range(6)]
    for model in (of_pictures(), random_model()):
        with pytest.raises(
            TypeError, match=r"images, which are no volume; .*\[pynca.segment\(image, model\) for image in"
        ):
            pynca.segment(kind(pictures), model)
    with pytest.raises(TypeError, match="of 2 images, which are no volume"):
        pynca.segment(kind(["a.png", "b.png"]), of_pictures())  # type: ignore[arg-type]
    rows = kind(list(pictures[0]))  # a picture as rows
    np.testing.assert_array_equal(pynca.segment(rows, of_pictures()), pynca.segment(pictures[0], of_pictures()))
    with pytest.raises(ValueError, match="its slices seem to follow each other along axis 0"):
        pynca.segment([picture.tolist() for picture in pictures], of_pictures())


def test_a_stack_in_a_file_is_refused_in_words_for_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "stack.npy", np.random.default_rng(0).random((5, 32, 32)))
    of_pictures().save(tmp_path / "m.safetensors")
    for command in ("segment", "estimate"):
        more = [str(tmp_path / "out.npy"), "--force"] if command == "segment" else []
        code = cli.main([command, str(tmp_path / "stack.npy"), *more, "-m", str(tmp_path / "m.safetensors")])
        err = capsys.readouterr().err
        assert code == 1
        assert err.startswith(f"pynca: {tmp_path / 'stack.npy'} has shape (5, 32, 32), its slices seem to follow each")
        assert err.endswith("; a picture a file, a TIFF of several pages and NIfTI say it themselves\n")
        assert "axis=" not in err
        assert "pynca.segment" not in err
    assert not (tmp_path / "out.npy").exists()


def test_what_a_model_expects_is_looked_for_along_the_given_axis() -> None:
    scene = np.kron(np.tile([[0.0, 1.0]], (4, 2)), np.ones((8, 8)))
    model = of_pictures(expected=replace(of_pictures().expected, likeness=0.99))  # type: ignore[type-var]
    stack = np.stack([scene] * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pynca.segment(stack, model, axis=0, strict=True)
        pynca.segment(np.moveaxis(stack, 0, 2), model, strict=True)
    with pytest.raises(ValueError, match="does not look like"):
        pynca.segment(np.moveaxis(stack, 0, 2), model, axis=0, strict=True)
