"""DICOM: series as volumes with their geometry, every way to be wrong named, and segmentations that refer to them."""

from __future__ import annotations

import io
import itertools
import shutil
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import pynca
from pynca import volumes
from pynca.statistics import label_statistics
from support import DATA, random_model

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")

SERIES = sorted((DATA / "dicom").glob("study*"))
real = pytest.mark.skipif(not SERIES, reason=f"no DICOM series in {DATA}")
LABELS = {1: "hippocampus"}
MR, SR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"
PLAIN, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_slice(
    path: Path,
    pixels: NDArray[Any],
    position: Any = (0, 0, 0),
    orientation: Any = (1, 0, 0, 0, 1, 0),
    *,
    series: str = "1.2.3.4",
    syntax: str = PLAIN,
    sop_class: str = MR,
    **fields: Any,
) -> None:
    """Write (rows, columns) as one slice; a field of None is left out."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.name, series])
    content = pydicom.Dataset()
    content.file_meta = meta
    values: dict[str, Any] = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": "1.2.5",
        "Modality": "MR",
        "ImagePositionPatient": [float(x) for x in position],
        "ImageOrientationPatient": [float(x) for x in orientation],
        "PixelSpacing": [2.0, 1.5],
        "SliceThickness": 3.0,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + bytes(pixels.nbytes % 2),
        **fields,
    }
    for name, value in values.items():
        if value is not None:
            setattr(content, name, value)
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content.save_as(path, enforce_file_format=True)


def stack(count: int = 5, shape: tuple[int, int] = (4, 3)) -> NDArray[np.int16]:
    """Pixels (slice, row, column) that say which they are."""
    return np.arange(count * shape[0] * shape[1], dtype=np.int16).reshape(count, *shape)


def write_series(
    folder: Path, *, step: Any = (0, 0, 3), orientation: Any = (1, 0, 0, 0, 1, 0), count: int = 5, **fields: Any
) -> Path:
    """Write slices whose names sort in another order than their positions."""
    for k, pixels in enumerate(stack(count)):
        position = np.array((-7.0, 11, 5)) + k * np.array(step)
        write_slice(folder / f"{(k * 3) % 10}.dcm", pixels, position, orientation, **fields)
    return folder


# --- reading --------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("folder", SERIES, ids=lambda path: path.name)
def test_real_series_are_what_pydicom_reads(folder: Path, tmp_path: Path) -> None:
    volume = volumes.read_volume(folder)
    slices = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda s: s.ImagePositionPatient[2])
    np.testing.assert_array_equal(volume.data, np.stack([s.pixel_array.T for s in slices], axis=2), strict=True)
    assert volume.affine is not None
    for k in (0, len(slices) - 1):
        columns, rows = np.array(slices[k].ImageOrientationPatient).reshape(2, 3)
        for i, j in ((0, 0), (4, 0), (0, 7)):
            lps = slices[k].ImagePositionPatient + columns * i * slices[k].PixelSpacing[1]
            lps = lps + rows * j * slices[k].PixelSpacing[0]
            np.testing.assert_allclose(volume.affine @ (i, j, k, 1), LPS @ (*lps, 1))
    # highdicom's own reading of the geometry
    theirs = highdicom.get_volume_from_series(slices)
    np.testing.assert_array_equal(theirs.array[::-1] if theirs.affine[2, 0] < 0 else theirs.array, volume.data.T)
    beside = volumes.read_volume(folder / "7.dcm")
    np.testing.assert_array_equal(beside.data, volume.data)
    np.testing.assert_array_equal(beside.affine, volume.affine)
    assert volumes.inputs_in(folder) == [folder]
    volumes.save_mask(tmp_path / "m.nii.gz", volume.data > 60, volume, LABELS)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), volume.data > 60)
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-5)


DIRECTIONS = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
PLANES = [a + b for a, b in itertools.permutations("RLAPSI", 2) if {a, b} not in ({"R", "L"}, {"A", "P"}, {"S", "I"})]


@pytest.mark.parametrize("plane", PLANES)
def test_all_orientations_give_the_mask_of_the_same_nifti(plane: str, tmp_path: Path) -> None:
    """All 24 that a series can have: slices are sorted along the normal, so that the axes are right-handed."""
    rows, columns = (np.array(DIRECTIONS[code], float) for code in plane)
    folder = write_series(tmp_path / "s", step=3 * np.cross(rows, columns), orientation=[*rows, *columns])
    volume = volumes.read_volume(folder)
    assert volume.affine is not None
    np.testing.assert_array_equal(volume.data, stack().transpose(2, 1, 0))
    assert "".join(nibabel.aff2axcodes(volume.affine))[:2] == plane
    image = nibabel.Nifti1Image(volume.data, volume.affine)
    model = random_model("sobel")
    np.testing.assert_array_equal(pynca.segment(folder, model), pynca.segment(image, model))


def test_oblique_series(tmp_path: Path) -> None:
    turn = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5)
    folder = write_series(tmp_path / "s", step=3 * turn[:, 2], orientation=[*turn[:, 0], *turn[:, 1]])
    volume = volumes.read_volume(folder)
    expected = LPS @ nibabel.affines.from_matvec(turn * [1.5, 2, 3], (-7, 11, 5))
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)
    np.testing.assert_array_equal(volume.data, stack().transpose(2, 1, 0))
    np.testing.assert_allclose(volume.voxel_size, (1.5, 2, 3))


def test_gantry_tilt_is_kept_as_a_sheared_affine_and_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", step=(0, 0.6, 3))
    with pytest.warns(
        UserWarning, match=r"s was scanned with the gantry tilted by 11\.3 degrees: .* sheared"
    ) as caught:
        volume = volumes.read_volume(folder)
    assert caught[0].filename == __file__
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine @ (0, 0, 4, 1), LPS @ (-7, 11 + 4 * 0.6, 5 + 12, 1))
    volumes.save_mask(tmp_path / "m.nii", volume.data > 9, volume, LABELS)
    np.testing.assert_allclose(nibabel.load(tmp_path / "m.nii").affine, volume.affine, atol=1e-5)
    volumes.save_mask(tmp_path / "m.dcm", volume.data > 9, volume, LABELS)
    check_segmentation(tmp_path / "m.dcm", volume, (volume.data > 9).astype(np.uint8))


def test_one_slice_is_a_volume(tmp_path: Path) -> None:
    for name, fields, thickness in (("a", {}, 3.0), ("b", {"SpacingBetweenSlices": 4.0}, 4.0)):
        write_slice(tmp_path / name / "x", stack()[0], **fields)
        volume = volumes.read_volume(tmp_path / name)
        assert volume.data.shape == (3, 4, 1)
        assert volume.voxel_size == (1.5, 2.0, thickness)
        assert volume.voxel_volume == pytest.approx(3 * thickness)


@pytest.mark.parametrize("thickness", [None, 0, -3, 1e30])
def test_one_slice_of_unknown_thickness_has_no_volume(thickness: float | None, tmp_path: Path) -> None:
    write_slice(tmp_path / "s" / "x", stack()[0], SliceThickness=thickness)
    with pytest.warns(UserWarning, match="s does not say how thick its one slice is: no volume in ml") as caught:
        volume = volumes.read_volume(tmp_path / "s")
    assert caught[0].filename == __file__
    assert volume.voxel_size == (1.5, 2.0, 1.0)
    assert volume.voxel_volume is None
    with pytest.warns(UserWarning, match="how thick"):
        result = pynca.predict(tmp_path / "s", random_model("sobel"))
    assert label_statistics(result)[0].volume_ml is None
    result.save(tmp_path / "m.dcm")
    assert "SliceThickness" not in pixel_measures(tmp_path / "m.dcm")


def test_positions_win_over_the_distance_that_a_header_says(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", SpacingBetweenSlices=5)
    with pytest.warns(UserWarning, match=r"s says that its slices are 5 mm apart .* but by .* they are 3 mm apart"):
        volume = volumes.read_volume(folder)
    assert volume.voxel_size == (1.5, 2.0, 3.0)
    volumes.save_mask(tmp_path / "m.dcm", volume.data > 9, volume, LABELS)
    assert pixel_measures(tmp_path / "m.dcm").SpacingBetweenSlices == 3


def test_rescaling_of_every_slice_is_applied(tmp_path: Path) -> None:
    for k, pixels in enumerate(stack()):
        write_slice(tmp_path / "ct" / f"{k}", pixels, (0, 0, k), RescaleSlope=1, RescaleIntercept=-1024)
        write_slice(tmp_path / "pet" / f"{k}", pixels, (0, 0, k), RescaleSlope=0.5 * (k + 1), RescaleIntercept=0)
    ct, pet = (volumes.read_volume(tmp_path / name).data for name in ("ct", "pet"))
    assert ct.dtype == np.int32
    np.testing.assert_array_equal(ct, stack().transpose(2, 1, 0) - 1024)
    np.testing.assert_array_equal(pet, stack().transpose(2, 1, 0) * 0.5 * np.arange(1, 6))


MIXED: dict[str, tuple[list[dict[str, Any]], list[NDArray[Any]], str]] = {
    "bits": (
        [{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, {}],
        [np.array([[0, 255]], np.uint8), np.array([[300, 65535]], np.uint16)],
        "u2",
    ),
    "sign": ([{}, {}], [np.array([[0, 65535]], np.uint16), np.array([[-1024, 3]], np.int16)], "i4"),
    "three": (
        [
            {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            {},
            {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
        ],
        [np.array([[-5, 127]], np.int8), np.array([[0, 65535]], np.uint16), np.array([[-1, 2**31 - 1]], np.int32)],
        "i4",
    ),
}


@pytest.mark.parametrize(("fields", "pixels", "dtype"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("backwards", [False, True])
def test_slices_of_several_types(
    fields: list[dict[str, Any]], pixels: list[NDArray[Any]], dtype: str, backwards: bool, tmp_path: Path
) -> None:
    for k, (field, plane) in enumerate(zip(fields, pixels, strict=True)):
        write_slice(tmp_path / "s" / f"{9 - k if backwards else k}", plane, (0, 0, k), **field)
    data = volumes.read_volume(tmp_path / "s").data
    assert data.dtype == dtype
    for k, plane in enumerate(pixels):
        assert data[:, :, k].T.tolist() == plane.tolist()
    outline = volumes.read_outline(tmp_path / "s")
    assert outline is not None
    assert (outline.data.shape, outline.data.dtype) == (data.shape, data.dtype)
    assert set(outline.data.strides) == {0}


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, "i4"), (30000, 0, "i4"), (32767, 2**31 - 2, "f8"), (1e9, 0, "f8"), (0.5, 0, "f8"), (-2, 5, "i4")],
)
def test_rescaled_values_do_not_wrap(slope: float, intercept: float, dtype: str, tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 65535]], np.uint16)
    write_slice(tmp_path / "s" / "0", pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    data = volumes.read_volume(tmp_path / "s").data
    assert data.dtype == dtype
    assert data.ravel().tolist() == [value * slope + intercept for value in (0, 1, 65535)]


def test_large_stored_values_do_not_wrap_when_rescaled(tmp_path: Path) -> None:
    pixels = np.array([[0, 2**32 - 1]], np.uint32)
    write_slice(
        tmp_path / "s" / "0",
        pixels,
        BitsAllocated=32,
        BitsStored=32,
        HighBit=31,
        RescaleSlope=1,
        RescaleIntercept=-1024,
    )
    assert volumes.read_volume(tmp_path / "s").data.ravel().tolist() == [-1024, 2**32 - 1025]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_bits_that_are_not_the_pixels_do_not_count(signed: bool, high: int, tmp_path: Path) -> None:
    values = np.array([[0, 1, 2047], [-1, -2048, 5] if signed else [2048, 4095, 5]])
    overlay = np.uint16(0xFFFF) ^ np.uint16(0x0FFF << (high - 11) & 0xFFFF)
    pixels = ((values & 0x0FFF).astype(np.uint16) << (high - 11)) | overlay
    write_slice(tmp_path / "s" / "0", pixels, BitsStored=12, HighBit=high, PixelRepresentation=int(signed))
    data = volumes.read_volume(tmp_path / "s").data
    assert data.dtype == ("i2" if signed else "u2")
    np.testing.assert_array_equal(data[:, :, 0].T, values)


PADDED: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "CT": ({"PixelPaddingValue": -2000}, [-2000, -1024, 40, 1000], [-1024, -1024, 40, 1000]),
    "as unsigned": ({"PixelPaddingValue": 63536}, [-2000, -1024, 40, 1000], [-1024, -1024, 40, 1000]),
    "above": ({"PixelPaddingValue": 32767}, [5, 32767, 7, 9], [5, 5, 7, 9]),
    "range": (
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500},
        [-2000, -1500, -1499, 3],
        [-1499] * 3 + [3],
    ),
    "range backwards": (
        {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -2000},
        [-2000, -1700, -1499, 3],
        [-1499] * 3 + [3],
    ),
    "rescaled": (
        {"PixelPaddingValue": -2000, "RescaleSlope": 2, "RescaleIntercept": -10},
        [-2000, 0, 40, 50],
        [-10, -10, 70, 90],
    ),
    "beyond the bits": ({"PixelPaddingValue": -2048, "BitsStored": 12, "HighBit": 11}, [-2048, 0, 4, 5], [0, 0, 4, 5]),
    "nothing else": ({"PixelPaddingValue": 7}, [7, 7, 7, 7], [7, 7, 7, 7]),
    "empty": ({"PixelPaddingValue": []}, [7, 8, 9, 10], [7, 8, 9, 10]),
}


@pytest.mark.parametrize(("fields", "stored", "expected"), PADDED.values(), ids=PADDED)
def test_padding_is_no_intensity(
    fields: dict[str, Any], stored: list[int], expected: list[int], tmp_path: Path
) -> None:
    """It becomes the least value of the series, as air does not shift what is relative to the values."""
    write_padded(tmp_path / "s" / "0", np.array(stored, np.int16).reshape(2, 2), **fields)
    assert volumes.read_volume(tmp_path / "s").data[:, :, 0].T.ravel().tolist() == expected


def write_padded(path: Path, pixels: NDArray[Any], position: Any = (0, 0, 0), **fields: Any) -> None:
    """Write a slice whose padding value may have a sign of its own."""
    padding = {name: fields.pop(name, None) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")}
    write_slice(path, pixels, position, **fields)
    content = pydicom.dcmread(path)
    for name, value in padding.items():
        if value is not None:
            content.add_new(name, "SS" if value and value < 0 else "US", value or None)
    content.save_as(path)


def test_padding_of_one_slice_takes_the_least_value_of_all(tmp_path: Path) -> None:
    for k in range(3):
        pixels = np.full((2, 2), 100 - k, np.int16)
        pixels[0, 0] = -2000
        write_padded(tmp_path / "s" / f"{k}", pixels, (0, 0, k), PixelPaddingValue=-2000)
    assert np.unique(volumes.read_volume(tmp_path / "s").data).tolist() == [98, 99, 100]


@pytest.mark.parametrize("kind", ["bytes", "words", "short"])
def test_a_table_in_place_of_slope_and_intercept(kind: str, tmp_path: Path) -> None:
    write_slice(tmp_path / "s" / "0", np.array([[0, 3, 5], [6, 7, 100]], np.int16))
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4, 3, 16])
    item.add_new(
        "LUTData",
        "OW" if kind != "words" else "US",
        np.array([10, 20, 40, 80], "<u2").tobytes()[: 6 if kind == "short" else 8]
        if kind != "words"
        else [10, 20, 40, 80],
    )
    content = pydicom.dcmread(tmp_path / "s" / "0")
    content.ModalityLUTSequence = [item]
    content.save_as(tmp_path / "s" / "0")
    if kind == "short":
        with pytest.raises(ValueError, match="0 has a ModalityLUTSequence of 4 values, but"):
            volumes.read_volume(tmp_path / "s")
    else:
        assert volumes.read_volume(tmp_path / "s").data[:, :, 0].T.tolist() == [[10, 10, 40], [80, 80, 80]]


def test_deflated_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", syntax=DEFLATED)
    np.testing.assert_array_equal(volumes.read_volume(folder).data, stack().transpose(2, 1, 0))


def test_what_deflates_to_more_than_its_header_says_is_not_unpacked(tmp_path: Path) -> None:
    """A hundred kilobytes of 128 MiB: behind the pixels it is left alone, in the header refused."""
    bomb = bytes(2**27)
    write_slice(tmp_path / "after" / "0", stack()[0], syntax=DEFLATED, DataSetTrailingPadding=bomb)
    write_slice(tmp_path / "before" / "0", stack()[0], syntax=DEFLATED, ICCProfile=bomb)
    assert (tmp_path / "before" / "0").stat().st_size < 2**20
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(volumes.read_volume(tmp_path / "after").data[:, :, 0], stack()[0].T)
        with pytest.raises(ValueError, match=r"0 has a deflated header of more than 4 MiB"):
            volumes.read_volume(tmp_path / "before")
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("endless", "syntax"), [(True, PLAIN), (False, DEFLATED)])
def test_items_of_sequences_are_counted_before_they_take_memory(endless: bool, syntax: str, tmp_path: Path) -> None:
    """A few kB, once deflated, whose empty items would take gigabytes as data sets of pydicom."""
    path = tmp_path / "s" / "0.dcm"
    items = pydicom.Sequence([pydicom.Dataset()] * 300_000)
    items.is_undefined_length = endless
    write_slice(path, stack()[0], syntax=syntax, SourceImageSequence=items)
    for read in (volumes.read_volume, volumes.read_outline):
        with pytest.raises(ValueError, match=r"0\.dcm holds sequences of more than 262,144 items"):
            read(path)


def test_elements_of_a_deflated_header_are_counted(tmp_path: Path) -> None:
    """Zeros are elements without a value."""
    write_slice(tmp_path / "s" / "0.dcm", stack()[0], syntax=DEFLATED)
    content = (tmp_path / "s" / "0.dcm").read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    (tmp_path / "s" / "0.dcm").write_bytes(content[:meta] + packer.compress(bytes(2**22)) + packer.flush())
    with pytest.raises(ValueError, match=r"0\.dcm holds a deflated header of too many elements"):
        volumes.read_outline(tmp_path / "s")


def test_deflated_headers_are_counted_together(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for k in range(20):
        write_slice(folder / f"{k}.dcm", stack()[0], (0, 0, k), syntax=DEFLATED, ICCProfile=bytes(4 * 10**6))
    for path in (folder, folder / "3.dcm"):
        with pytest.raises(ValueError, match=r"holds 1\d images whose headers have [\d,]+ bytes that were deflated"):
            volumes.read_outline(path)
    for k in range(1, 20):
        write_slice(folder / f"{k}.dcm", stack()[0], (0, 0, k), syntax=DEFLATED)
    assert volumes.read_volume(folder).data.shape == (3, 4, 20)


def test_a_length_that_lies_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "s" / "0.dcm"
    write_slice(path, stack()[0], ICCProfile=bytes(8))
    content = path.read_bytes()
    at = content.index(b"\x28\0\0\x20OB\0\0")
    path.write_bytes(content[: at + 8] + struct.pack("<I", 2**31) + content[at + 12 :])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"0\.dcm "):
        volumes.read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_big_endian_slices(bits: int, tmp_path: Path) -> None:
    pixels = (np.arange(12).reshape(4, 3) * 7 - 20).astype(f"i{bits // 8}")
    stored = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    raw = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    write_slice(tmp_path / "s" / "x", pixels, syntax="1.2.840.10008.1.2.2", PixelData=raw, **stored)
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "s").data[:, :, 0].T, pixels, strict=True)


def test_slices_of_one_bit(tmp_path: Path) -> None:
    stored = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": b"\xaa\x55"}
    write_slice(tmp_path / "s" / "x", np.zeros((4, 4), np.uint8), **stored)
    assert volumes.read_volume(tmp_path / "s").data[:, :, 0].T.tolist() == [[0, 1, 0, 1]] * 2 + [[1, 0, 1, 0]] * 2


def test_a_large_slice_in_a_small_file_is_held_against_the_memory(tmp_path: Path) -> None:
    size = 12000
    segment = b"\x81\0" * (size * size // 128)
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + 2 * segment
    frames = pydicom.encaps.encapsulate([frame])
    write_slice(
        tmp_path / "s" / "x", stack()[0], syntax="1.2.840.10008.1.2.5", Rows=size, Columns=size, PixelData=frames
    )
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"s takes at least .* of memory to segment"):
            pynca.predict(tmp_path / "s", random_model("sobel"), memory=512 * 10**6)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def compressed(path: Path, pixels: NDArray[Any], syntax: str, **fields: Any) -> Any:
    write_slice(path, pixels, **fields)
    content = pydicom.dcmread(path)
    content.compress(syntax)
    content.save_as(path)
    return content


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("noisy", [False, True])
def test_run_lengths_are_what_pydicom_reads(bits: int, noisy: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    pixels = rng.integers(0, 2 ** (bits - 1) if noisy else 3, (37, 41)).astype(f"u{bits // 8}")
    stored = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    content = compressed(tmp_path / "s" / "x", pixels, pydicom.uid.RLELossless, **stored)
    data = volumes.read_volume(tmp_path / "s").data[:, :, 0].T
    np.testing.assert_array_equal(data, content.pixel_array, strict=True)
    np.testing.assert_array_equal(data, pixels)


def test_run_lengths_that_make_more_or_less_than_the_pixels(tmp_path: Path) -> None:
    frame = struct.pack("<16I", 2, 64, 66, *[0] * 13)
    for name, segments, rows in (("more", b"\x81\x07" + b"\x81\x01" * 10**6, 4), ("less", b"\x81\x07\xfe\x01", 4)):
        frames = pydicom.encaps.encapsulate([frame + segments])
        write_slice(tmp_path / name / "x", stack()[0], syntax=pydicom.uid.RLELossless, PixelData=frames, Rows=rows)
    tracemalloc.start()
    try:
        assert np.unique(volumes.read_volume(tmp_path / "more").data).tolist() == [0x0701]
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="x is damaged or cut short: an RLE segment makes 3 bytes of 12"):
        volumes.read_volume(tmp_path / "less")


@pytest.mark.parametrize("syntax", [PLAIN, DEFLATED, "1.2.840.10008.1.2.5"])
def test_a_small_file_that_announces_gigabytes(syntax: str, tmp_path: Path) -> None:
    pixels = pydicom.encaps.encapsulate([bytes(200)]) if syntax.endswith(".5") else bytes(24)
    write_slice(tmp_path / "s" / "x", stack()[0], syntax=syntax, Rows=65535, Columns=65535, PixelData=pixels)
    with pytest.raises(ValueError, match="x is damaged or cut short: its pixels take 8589672450 bytes, but there are"):
        volumes.read_volume(tmp_path / "s")
    with pytest.raises(ValueError, match="x is damaged or cut short"):
        volumes.read_outline(tmp_path / "s")


def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    syntax = pydicom.uid.JPEGLSLossless
    if not pydicom.pixels.get_decoder(syntax).is_available:
        pytest.skip("no decoder of JPEG-LS is installed")
    pixels = np.arange(64 * 48, dtype=np.int16).reshape(64, 48)
    compressed(tmp_path / "s" / "x", pixels, syntax)
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "s").data[:, :, 0].T, pixels)
    change("x", Rows=65535)(tmp_path / "s")
    with pytest.raises(ValueError, match=r"x has 65535 rows and 48 columns of grey by its header, .* 64 rows, 48"):
        volumes.read_volume(tmp_path / "s")


def test_compressed_slices(tmp_path: Path) -> None:
    write_slice(tmp_path / "s" / "x", stack()[1])
    content = pydicom.dcmread(tmp_path / "s" / "x")
    content.compress(pydicom.uid.RLELossless)
    content.save_as(tmp_path / "s" / "x")
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "s").data[:, :, 0], stack()[1].T)


def test_other_files_of_a_folder_do_not_matter(tmp_path: Path) -> None:
    """Reports, masks of this very series, the index of a medium, and what is no DICOM at all."""
    folder = write_series(tmp_path / "s")
    volume = volumes.read_volume(folder)
    volumes.save_mask(folder / "mask.dcm", volume.data > 9, volume, LABELS)
    write_slice(folder / "report", stack()[0], series="1.9", sop_class=SR, Rows=None, PixelData=None)
    (folder / "LICENSE").write_text("a" * 200)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "._0.dcm").write_bytes(b"what a Mac leaves")
    for source in (folder, folder / "0.dcm"):
        np.testing.assert_array_equal(volumes.read_volume(source).data, volume.data)


def test_a_file_picks_its_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", SeriesDescription="T1 \x1b[2J")
    write_slice(folder / "other", stack()[4], series="1.9", ProtocolName="scout")
    assert volumes.read_volume(folder / "other").data.shape == (3, 4, 1)
    assert volumes.read_volume(folder / "3.dcm").data.shape == (3, 4, 5)
    with pytest.raises(
        ValueError, match=r"holds 2 series: 'T1 .*' \(5 files, one is 0\.dcm\), 'scout' \(1 files, one is other\); give"
    ) as caught:
        volumes.read_volume(folder)
    assert "\x1b" not in str(caught.value)


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    """Change, or with None remove, fields of one slice."""

    def damage(folder: Path) -> None:
        content = pydicom.dcmread(folder / name)
        for key, value in fields.items():
            if value is None:
                delattr(content, key)
            else:
                setattr(content, key, value)
        content.save_as(folder / name)

    return damage


def all_slices(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: [change(path.name, **fields)(folder) for path in folder.iterdir()] and None


def moved(folder: Path) -> None:
    change("6.dcm", ImagePositionPatient=[-7, 12, 11])(folder)


def cut(folder: Path) -> None:
    (folder / "6.dcm").write_bytes((folder / "6.dcm").read_bytes()[:-9])


def cut_in_the_header(folder: Path) -> None:
    (folder / "6.dcm").write_bytes((folder / "6.dcm").read_bytes()[:300])


# positions: 0.dcm, 3.dcm, 6.dcm, 9.dcm, 2.dcm
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing slice": (
        lambda f: (f / "6.dcm").unlink(),
        r"/s misses slices or has them at uneven distances: 3\.dcm and 9\.dcm are 6 mm apart, others 3 mm$",
    ),
    "uneven": (change("6.dcm", ImagePositionPatient=[-7, 11, 12]), r"/s misses slices .*: 3\.dcm and 6\.dcm are 4 mm"),
    "duplicate": (
        lambda f: shutil.copy(f / "6.dcm", f / "7.dcm"),
        r"/s holds slices at the same position, 1 times .*: 6\.dcm and 7\.dcm are such",
    ),
    "all at one place": (all_slices(ImagePositionPatient=[0, 0, 0]), "/s holds slices at the same position, 4 times"),
    "off the line": (moved, r"/s has slices that do not lie on one line: 6\.dcm is 1 mm off"),
    "other size": (change("6.dcm", Rows=3), r"/s/6\.dcm has the number of rows 3, but 0\.dcm of the same series 4"),
    "other spacing": (
        change("6.dcm", PixelSpacing=[2, 1]),
        r"/s/6\.dcm has the pixel spacing 2, 1, but 0\.dcm of the same series 2, 1\.5",
    ),
    "other orientation": (
        change("6.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        r"/s/6\.dcm has the orientation 0, 1, 0, 0, 0, 1, but 0\.dcm",
    ),
    "no directions": (
        all_slices(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "/s has an image orientation that is not",
    ),
    "no position": (change("6.dcm", ImagePositionPatient=None), r"/s/6\.dcm does not say where it lies"),
    "no spacing": (change("6.dcm", PixelSpacing=None), r"/s/6\.dcm does not say where it lies \(PixelSpacing"),
    "huge pixels": (
        all_slices(PixelSpacing=[1e30, 1]),
        r"/s/0\.dcm has the pixel spacing 1e\+30, 1; it must be above 0",
    ),
    "far away": (
        all_slices(ImagePositionPatient=[1e30, 0, 0]),
        r"/s/0\.dcm does not say where it lies \(ImagePosition",
    ),
    "long directions": (
        all_slices(ImageOrientationPatient=[2, 0, 0, 0, 0.5, 0]),
        "/s has an image orientation that is not two directions at right angles",
    ),
    "slanted directions": (
        all_slices(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]),
        "/s has an image orientation that is not two directions at right angles",
    ),
    "two series UIDs": (
        change("6.dcm", SeriesInstanceUID=["1.2", "1.3"]),
        r"/s/6\.dcm has 2 values of SeriesInstanceUID; it must be one$",
    ),
    "slope of 0": (change("6.dcm", RescaleSlope=0), r"/s/6\.dcm has the RescaleSlope 0, with which all"),
    "more pixels": (
        all_slices(Rows=1),
        r"/s/0\.dcm has pixels of 24 bytes, but by its rows, columns and bits they take 6",
    ),
    "flat pixels": (all_slices(PixelSpacing=[0, 1]), r"/s/0\.dcm has the pixel spacing 0, 1; it must be above 0"),
    "colour": (change("6.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB"), r"/s/6\.dcm is not grey \(RGB\)"),
    "palette": (change("6.dcm", PhotometricInterpretation="PALETTE COLOR"), r"/s/6\.dcm is not grey"),
    "inverted": (change("6.dcm", PhotometricInterpretation="MONOCHROME1"), r"/s/6\.dcm stores grey inverted"),
    "several frames": (change("6.dcm", NumberOfFrames=2), r"/s/6\.dcm holds several frames \(enhanced DICOM\)"),
    "no pixels": (change("6.dcm", PixelData=None), r"/s/6\.dcm holds no pixels"),
    "cut in the pixels": (cut, r"/s/6\.dcm is damaged or cut short"),
    "cut in the header": (cut_in_the_header, r"/s/?.* (is damaged|misses slices|holds|has|does not)"),
    "text": (lambda f: (f / "6.dcm").write_text("no scan"), r"/s/6\.dcm is not a DICOM file"),
    "empty": (lambda f: (f / "6.dcm").write_bytes(b""), r"/s/6\.dcm is not a DICOM file"),
}


@pytest.mark.parametrize(("damage", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(damage: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    damage(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        volumes.read_volume(folder)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "medium").mkdir()
    (tmp_path / "medium" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    write_slice(tmp_path / "reports" / "x", stack()[0], sop_class=SR, Rows=None, PixelData=None)
    for name, reason in (
        ("empty", "directly holds no DICOM files; give the folder of one series"),
        ("medium", r"directly holds no DICOM files, only an index \(DICOMDIR\)"),
        ("medium/DICOMDIR", "is an index of DICOM files; give the folder of one series"),
        ("reports", "holds 1 DICOM files, but no image"),
        ("reports/x", r"holds no image \(Basic Text SR Storage\); give a file of a series"),
    ):
        with pytest.raises(ValueError, match=f"{name} .*{reason}"):
            volumes.read_volume(tmp_path / name)


def test_a_compression_without_decoder_is_named(tmp_path: Path) -> None:
    frames = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    syntax = "1.2.840.10008.1.2.4.70"
    if pydicom.pixels.get_decoder(syntax).is_available:
        pytest.skip("a decoder of lossless JPEG is installed")
    write_slice(tmp_path / "s" / "x", stack()[0], syntax=syntax, PixelData=frames)
    with pytest.raises(
        ValueError, match=r"x is compressed as JPEG Lossless, .* for which no decoder is installed; `pip"
    ):
        volumes.read_volume(tmp_path / "s")


IMPLICIT = "1.2.840.10008.1.2"
# Values of headers that no conversion expects; pydicom reads them by the type of the element
ODD_TEXTS = ("", "1e999", "nan", "-inf", "1" + "0" * 400, "1" + "0" * 5000, "abc\x1b[2J", "1\\2", "x" * 10000, "0")
ODD_BYTES = (b"", b"\0\0", b"\xff\xff", b"\1\0\1\0", b"\1", b"\0\x80")
USED = {
    **dict.fromkeys(("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"), ODD_TEXTS),
    **dict.fromkeys(("NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"), ODD_TEXTS),
    **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"), ODD_TEXTS),
    **dict.fromkeys(
        ("SpacingBetweenSlices", "SliceThickness", "ModalityLUTSequence", "SpecificCharacterSet"), ODD_TEXTS
    ),
    **dict.fromkeys(("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"), ODD_BYTES),
    **dict.fromkeys(("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"), ODD_BYTES),
}


def put(content: Any, keyword: str, value: str | bytes) -> None:
    """Put bytes into an element of an implicit file, whatever its type is."""
    raw = value.encode() if isinstance(value, str) else value
    raw += b" " * (len(raw) % 2) if isinstance(value, str) else b""
    tag = pydicom.tag.Tag(keyword)
    content[tag] = pydicom.dataelem.RawDataElement(tag, "UN", len(raw), raw, 0, True, True)


@pytest.mark.parametrize(("keyword", "values"), USED.items(), ids=USED)
def test_a_header_may_hold_anything(
    keyword: str, values: tuple[Any, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_series(tmp_path / "s", count=2, syntax=IMPLICIT)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    refusals: list[ValueError] = []
    for value in values:
        for path, original in contents.items():
            content = pydicom.dcmread(io.BytesIO(original))
            put(content, keyword, value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content.save_as(path)
        try:
            volume = volumes.read_volume(folder)
            volumes.check_output(tmp_path / "m.dcm", volume)
        except ValueError as problem:
            refusals.append(problem)
        else:
            assert volume.data.shape == (3, 4, 2)
            volumes.save_mask(tmp_path / "m.dcm", volume.data > 9, volume, LABELS)
    assert capfd.readouterr() == ("", "")
    for problem in refusals:
        assert type(problem) is ValueError
        assert len(str(problem)) < 400 + len(str(tmp_path))
        assert str(folder) in str(problem)
        assert str(problem).isprintable()


def test_sequences_in_sequences_are_refused_or_left_out(tmp_path: Path) -> None:
    write_slice(tmp_path / "s" / "x", stack()[0], syntax=IMPLICIT, StudyDescription="here")
    original = (tmp_path / "s" / "x").read_bytes()
    place = original.index(struct.pack("<HHI", 8, 0x1030, 4))
    begin = struct.pack("<HHIHHI", 8, 0x1110, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    told = b""
    for _ in range(500):
        told = struct.pack("<HHIHHI", 8, 0x1110, len(told) + 8, 0xFFFE, 0xE000, len(told)) + told
    (tmp_path / "s" / "x").write_bytes(original[:place] + begin * 500 + end * 500 + original[place:])
    with pytest.raises(ValueError, match="x holds sequences in sequences, deeper than any image needs"):
        volumes.read_volume(tmp_path / "s")
    (tmp_path / "s" / "x").write_bytes(original[:place] + told + original[place:])
    volume = volumes.read_volume(tmp_path / "s")
    volumes.save_mask(tmp_path / "m.dcm", volume.data > 1, volume, LABELS)
    assert "ReferencedStudySequence" not in pydicom.dcmread(tmp_path / "m.dcm")


def test_mutated_files_give_one_sentence_or_a_volume(tmp_path: Path) -> None:
    original = (write_series(tmp_path / "s") / "6.dcm").read_bytes()
    rng = np.random.default_rng(7)
    refusals: list[ValueError] = []
    for _ in range(60):
        content = bytearray(original)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        (tmp_path / "s" / "6.dcm").write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*gantry", UserWarning)
                volume = volumes.read_volume(tmp_path / "s")
        except ValueError as problem:
            refusals.append(problem)
        else:
            assert volume.data.ndim == 3
    assert 0 < len(refusals) < 60
    for problem in refusals:
        assert type(problem) is ValueError
        assert str(problem).startswith(str(tmp_path / "s"))
        assert "\n" not in str(problem)


# --- DICOM SEG ----------------------------------------------------------------------------------------------


def check_segmentation(path: Path, volume: volumes.Volume, mask: NDArray[np.uint8]) -> None:
    """Compare a file with the mask and its geometry, by highdicom and by pydicom alone."""
    assert volume.affine is not None
    theirs = highdicom.seg.segread(path)
    assert [theirs.get_segment_description(n).segment_label for n in theirs.segment_numbers] == ["hippocampus"]
    content = pydicom.dcmread(path)
    frames = content.pixel_array.reshape(-1, content.Rows, content.Columns)
    shared = content.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, volume.slices[0].PixelSpacing, rtol=1e-6)
    np.testing.assert_allclose(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, volume.slices[0].ImageOrientationPatient, atol=1e-9
    )
    assert len(frames) == mask.shape[2]
    where = {tuple(map(float, header.ImagePositionPatient)): k for k, header in enumerate(volume.slices)}
    for frame, groups in zip(frames, content.PerFrameFunctionalGroupsSequence, strict=True):
        k = where.pop(tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient)))
        np.testing.assert_array_equal(frame, mask[:, :, k].T)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == volume.slices[k].SOPInstanceUID
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert content[keyword].value == volume.slices[0][keyword].value
    assert content.ReferencedSeriesSequence[0].SeriesInstanceUID == volume.slices[0].SeriesInstanceUID


@real
@pytest.mark.parametrize("folder", SERIES, ids=lambda path: path.name)
def test_segmentations_of_real_series(folder: Path, tmp_path: Path) -> None:
    result = pynca.predict(folder, threads=1)
    assert result.volume is not None
    assert result.volume.affine is not None
    assert result.mask.any()
    result.save(tmp_path / "m.dcm")
    check_segmentation(tmp_path / "m.dcm", result.volume, result.mask)
    # every voxel of highdicom's volume, by its coordinates
    theirs = highdicom.seg.segread(tmp_path / "m.dcm").get_volume(combine_segments=True)
    index = np.stack(np.meshgrid(*map(np.arange, theirs.array.shape), indexing="ij"), axis=-1)
    ras = (index @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]) * [-1, -1, 1]
    back = np.linalg.inv(result.volume.affine)
    i, j, k = np.rint(ras @ back[:3, :3].T + back[:3, 3]).astype(int).reshape(-1, 3).T
    np.testing.assert_array_equal(theirs.array.reshape(-1), result.mask[i, j, k])


def test_segmentation_of_a_series_that_lacks_what_the_standard_wants(tmp_path: Path) -> None:
    volume = volumes.read_volume(write_series(tmp_path / "s"))
    for name, mask in (("empty", volume.data < 0), ("full", volume.data >= 0), ("part", volume.data % 3 == 0)):
        volumes.save_mask(tmp_path / f"{name}.dcm", mask, volume, LABELS)
        check_segmentation(tmp_path / f"{name}.dcm", volume, mask.astype(np.uint8))


def pixel_measures(path: Path) -> Any:
    return pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


# What a source may say or lack, and what its segmentation must say then
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Japanese": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
        {"PatientName": "Yamada^Tarou=山田^太郎"},
    ),
    "Korean": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞"},
        {"PatientName": "Hong^Gildong=洪^吉洞"},
    ),
    "no characters": ({"SpecificCharacterSet": "", "PatientName": "Test"}, {"PatientName": "Test"}),
    "ASCII by its old name": ({"SpecificCharacterSet": "ISO_IR 6", "PatientName": "Test"}, {"PatientName": "Test"}),
    "unknown characters": ({"SpecificCharacterSet": "KLINGON", "PatientName": "Test"}, {"PatientName": "Test"}),
    "no thickness": ({"SliceThickness": None}, {"StudyInstanceUID": "1.2.3"}),
    "thickness 0": ({"SliceThickness": 0}, {}),
    "no birth": ({"PatientBirthDate": "19700231"}, {"PatientBirthDate": ""}),
    "old date": ({"PatientBirthDate": "1970.02.01"}, {"PatientBirthDate": "19700201"}),
    "birth of text": ({"PatientBirthDate": "unknown"}, {"PatientBirthDate": ""}),
    "dates": ({"StudyDate": "20201332", "StudyTime": "256199"}, {"StudyDate": "", "StudyTime": ""}),
    "two names": ({"PatientName": ["A^B", "C^D"]}, {"PatientName": ""}),
    "long name": ({"PatientName": "x" * 200}, {"PatientName": ""}),
    "commands": ({"PatientName": "A\x1b[2J^B", "SeriesDescription": "T1\x07"}, {"PatientName": "A[2J^B"}),
    "long study": ({"StudyID": "x" * 40, "AccessionNumber": "y" * 40}, {"StudyID": "", "AccessionNumber": ""}),
    "two patients": ({"PatientID": ["1", "2"]}, {"PatientID": ""}),
    "sex": ({"PatientSex": "female"}, {"PatientSex": ""}),
    "small sex": ({"PatientSex": "f"}, {"PatientSex": "F"}),
    "no frame": ({"FrameOfReferenceUID": None}, {}),
    "two frames": ({"FrameOfReferenceUID": ["1.2", "1.3"]}, {}),
    "no modality": ({"Modality": None}, {"ContentLabel": "OT_SEG"}),
    "long modality": ({"Modality": "A" * 16}, {"ContentLabel": "OT_SEG"}),
    "numbers": ({"SeriesNumber": -5, "InstanceNumber": None}, {"SeriesNumber": 995}),
    "largest number": ({"SeriesNumber": 2**31 - 1}, {"SeriesNumber": 1000}),
    "a maker's own class": ({"sop_class": "1.3.12.2.1107.5.9.1"}, {}),
    "long decimals": (
        {"PatientWeight": "70.1234567890123456789", "PixelSpacing": ["2.00000000000000000001", "1.5"]},
        {"PatientWeight": 70.1234567890124},
    ),
    "age": ({"PatientAge": "45", "EthnicGroup": "x" * 30}, {"PatientAge": None}),
    "compressed with losses": ({"LossyImageCompression": "01", "LossyImageCompressionRatio": "7"}, {}),
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(("given", "said"), SOURCES.values(), ids=SOURCES)
def test_segmentations_of_odd_sources(
    given: dict[str, Any], said: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_series(tmp_path / "s", **given)
    volume = volumes.read_volume(folder)
    before = [str(header) for header in volume.slices]
    mask = (volume.data % 3 == 0).astype(np.uint8)
    volumes.save_mask(tmp_path / "m.dcm", mask, volume, LABELS)
    assert capfd.readouterr() == ("", "")
    assert [str(header) for header in volume.slices] == before
    content = pydicom.dcmread(tmp_path / "m.dcm")
    assert content.SpecificCharacterSet == "ISO_IR 192"
    for keyword, value in said.items():
        told = content.get(keyword)
        assert (told if isinstance(value, (int, float)) or told is None else str(told)) == value
    for element in content.iterall():  # what pydicom itself would warn of
        for value in element.value if element.VM > 1 else [element.value] if element.value is not None else []:
            pydicom.valuerep.validate_value(
                element.VR, str(value) if element.VR in ("DS", "IS") else value, pydicom.config.RAISE
            )
    theirs = highdicom.seg.segread(tmp_path / "m.dcm")
    np.testing.assert_array_equal(theirs.get_volume(combine_segments=True).array.sum(), mask.sum())
    assert pixel_measures(tmp_path / "m.dcm").SliceThickness == 3
    assert content.FrameOfReferenceUID
    sources = [
        groups.DerivationImageSequence[0].SourceImageSequence[0] for groups in content.PerFrameFunctionalGroupsSequence
    ]
    assert {(source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID) for source in sources} == {
        (header.SOPInstanceUID, header.SOPClassUID) for header in volume.slices
    }


def test_orientations_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    change("6.dcm", ImageOrientationPatient=[1, 0.00001, 0, -0.00001, 1, 0])(folder)
    volume = volumes.read_volume(folder)
    volumes.save_mask(tmp_path / "m.dcm", volume.data > 9, volume, LABELS)
    check_segmentation(tmp_path / "m.dcm", volume, (volume.data > 9).astype(np.uint8))


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID"])
def test_what_no_segmentation_can_refer_to_is_refused_before_the_work(keyword: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s")
    all_slices(**{keyword: None})(folder)
    volume = volumes.read_volume(folder)
    with pytest.raises(ValueError, match=f"m.dcm cannot be written: .*s lacks what DICOM SEG needs: .* no {keyword}"):
        volumes.check_output(tmp_path / "m.dcm", volume)
    volumes.check_output(tmp_path / "m.nii", volume)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("x" * 100, "x" * 64),
        ("a\\b", "a/b"),
        ("日本語", "日本語"),
        ("\x1b[2J", "[2J"),
        ("a\nb", "a b"),
        ("\x07", "label 1"),
    ],
)
def test_names_that_a_segment_cannot_have(name: str, label: str, tmp_path: Path) -> None:
    volume = volumes.read_volume(write_series(tmp_path / "s"))
    volumes.save_mask(tmp_path / "m.dcm", volume.data > 9, volume, {1: name})
    assert pydicom.dcmread(tmp_path / "m.dcm").SegmentSequence[0].SegmentLabel == label


def test_labels_become_segments_in_their_order(tmp_path: Path) -> None:
    volume = volumes.read_volume(write_series(tmp_path / "s", PatientName="Jürgen", SpecificCharacterSet="ISO_IR 100"))
    mask = np.choose(volume.data % 3, (0, 5, 2)).astype(np.uint8)
    volumes.save_mask(tmp_path / "m.dcm", mask, volume, {5: "left ventricle", 2: "Höhle"})
    theirs = highdicom.seg.segread(tmp_path / "m.dcm")
    assert str(theirs.PatientName) == "Jürgen"
    told = [theirs.get_segment_description(n) for n in (1, 2)]
    assert [one.segment_label for one in told] == ["Höhle", "left ventricle"]
    assert [one.segmented_property_type.meaning for one in told] == ["Tissue", "Left ventricle"]
    array = theirs.get_volume(combine_segments=True).array
    assert np.count_nonzero(array == 1) == np.count_nonzero(mask == 2)
    assert np.count_nonzero(array == 2) == np.count_nonzero(mask == 5)


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    volume = volumes.read_volume(write_series(tmp_path / "s"))
    volumes.save_mask(tmp_path / "a.dcm", volume.data > 9, volume, LABELS)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2033, 4, 5, 6, 7, 8, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Later)
    volumes.save_mask(tmp_path / "b.dcm", volume.data > 9, volume, LABELS)
    volumes.save_mask(tmp_path / "c.dcm", volume.data > 8, volume, LABELS)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    a, c = (pydicom.dcmread(tmp_path / f"{n}.dcm") for n in "ac")
    assert a.SOPInstanceUID != c.SOPInstanceUID
    assert a.SeriesInstanceUID != c.SeriesInstanceUID
    assert all(pydicom.uid.UID(uid).is_valid for uid in (a.SOPInstanceUID, a.SeriesInstanceUID))
