"""DICOM: series as volumes with their geometry, every way to be wrong named, and segmentations that refer to them."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import pynca
from pynca import volumes
from support import DATA, random_model

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")

SERIES = sorted((DATA / "dicom").glob("study*"))
real = pytest.mark.skipif(not SERIES, reason=f"no DICOM series in {DATA}")
LABELS = {1: "hippocampus"}
MR, SR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"
PLAIN = "1.2.840.10008.1.2.1"
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
        "PixelData": pixels.tobytes(),
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
    for name, fields, thickness in (
        ("a", {}, 3.0),
        ("b", {"SpacingBetweenSlices": 4.0}, 4.0),
        ("c", {"SliceThickness": None}, 1.0),
    ):
        write_slice(tmp_path / name / "x", stack()[0], **fields)
        volume = volumes.read_volume(tmp_path / name)
        assert volume.data.shape == (3, 4, 1)
        assert volume.voxel_size == (1.5, 2.0, thickness)
        assert volume.voxel_volume == pytest.approx(3 * thickness)


def test_rescaling_of_every_slice_is_applied(tmp_path: Path) -> None:
    for k, pixels in enumerate(stack()):
        write_slice(tmp_path / "ct" / f"{k}", pixels, (0, 0, k), RescaleSlope=1, RescaleIntercept=-1024)
        write_slice(tmp_path / "pet" / f"{k}", pixels, (0, 0, k), RescaleSlope=0.5 * (k + 1), RescaleIntercept=0)
    ct, pet = (volumes.read_volume(tmp_path / name).data for name in ("ct", "pet"))
    assert ct.dtype == np.int32
    np.testing.assert_array_equal(ct, stack().transpose(2, 1, 0) - 1024)
    np.testing.assert_array_equal(pet, stack().transpose(2, 1, 0) * 0.5 * np.arange(1, 6))


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
