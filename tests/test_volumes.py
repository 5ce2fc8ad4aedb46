"""Volumes: orientation by physical coordinates, geometry to the last bit, and every refusal."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

import pynca
from pynca import volumes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = [
    *sorted(DATA.glob("volumes/*.nii.gz")),
    *sorted(DATA.glob("hippocampus/images/*.nii.gz"))[::50],
]
DIRECTION = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
ALL_48 = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]
LABELS = {1: "hippocampus"}
OBLIQUE = np.array([[-0.9, 0.3, 0.1, 30], [0.28, 1.1, -0.2, -20.5], [0.1, 0.15, 2.9, 7.25], [0, 0, 0, 1]])
GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def affine_of(codes: str) -> NDArray[np.float64]:
    """The affine of a volume whose axes grow towards the directions named, with sides of 1, 2 and 3 mm."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world, sign = DIRECTION[code]
        affine[world, axis] = sign * (axis + 1)
    affine[:3, 3] = (11, -7, 5)
    return affine


def indices(shape: tuple[int, ...] = (3, 4, 5)) -> NDArray[np.int64]:
    """A volume whose voxels say which they are."""
    return np.arange(np.prod(shape)).reshape(shape)


def places(data: NDArray[np.int64], shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Where the voxels of `indices(shape)` lie, in the order in which `data` now has them."""
    ijk = np.stack(np.unravel_index(data, shape), axis=-1)
    return ijk @ affine[:3, :3].T + affine[:3, 3]


def image(**fields: Any) -> nibabel.Nifti1Image:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    data = indices().astype(np.int16)
    header.set_data_shape(data.shape)
    for name, value in fields.items():
        header[name] = value
    return nibabel.Nifti1Image(data, None, header)


def saved(path: Path, **fields: Any) -> Path:
    nibabel.save(nibabel.Nifti1Image(indices().astype(np.int16), OBLIQUE), path)
    if fields:
        patch(path, **fields)
    return path


def patch(path: Path, **fields: Any) -> None:
    """Change fields of the header behind nibabel's back."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])


def raw_header(path: Path) -> Any:
    """The header as it stands in the file, neither checked nor mended."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    kind = nibabel.Nifti1Header if content[344:347] == b"n+1" else nibabel.Nifti2Header
    return kind(content[: kind.sizeof_hdr], check=False)


# --- orientation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", ALL_48)
def test_all_48_orientations_by_physical_coordinates(here: str) -> None:
    affine, data = affine_of(here), indices()
    for there in ALL_48:
        turned, way = volumes.to_orientation(data, affine, there)
        where = places(turned, data.shape, affine)
        for axis, code in enumerate(there):
            world, sign = DIRECTION[code]
            steps = np.diff(where, axis=axis)
            assert (sign * steps[..., world] > 0).all()
            assert not np.delete(steps, world, axis=-1).any()
        assert np.shares_memory(turned, data)
        back = way.undo(turned)
        assert np.shares_memory(back, data)
        np.testing.assert_array_equal(back, data, strict=True)
        assert tuple(turned.shape[axis] for axis in way.axes) == data.shape


rotations = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.1)


@settings(max_examples=200, deadline=None)
@given(
    quaternion=rotations,
    zooms=st.tuples(*[st.floats(0.2, 8)] * 3),
    mirrored=st.booleans(),
    shear=st.floats(-0.2, 0.2),
    codes=st.sampled_from(ALL_48),
)
def test_oblique_affines(
    quaternion: tuple[float, ...], zooms: tuple[float, ...], mirrored: bool, shear: float, codes: str
) -> None:
    matrix = nibabel.quaternions.quat2mat(quaternion) @ [[1, shear, 0], [0, 1, 0], [0, 0, -1 if mirrored else 1]]
    affine = nibabel.affines.from_matvec(matrix * zooms, (1, 2, 3))
    data = indices()
    turned, way = volumes.to_orientation(data, affine, codes)
    np.testing.assert_array_equal(way.undo(turned), data, strict=True)
    np.testing.assert_array_equal(way.apply(way.undo(turned)), turned, strict=True)
    assert sorted(way.axes) == [0, 1, 2]
    # the same as nibabel's own way, done with its tools alone
    expected = nibabel.Nifti1Image(data, affine, dtype=np.int64).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    np.testing.assert_array_equal(turned, np.asarray(expected.dataobj))
    # and where the affine is not too oblique to tell, every axis goes mostly where its code says
    cosines = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    if (cosines.max(axis=0) > 0.85).all():
        assert "".join(aff2axcodes(expected.affine)) == codes
        where = places(turned, data.shape, affine)
        for axis, code in enumerate(codes):
            world, sign = DIRECTION[code]
            step = np.diff(where, axis=axis).reshape(-1, 3)[0]
            assert np.argmax(np.abs(step)) == world
            assert sign * step[world] > 0


@pytest.mark.parametrize("codes", ["", "RA", "RAX", "RAR", "RLS", "ras", "RASA"])
def test_refuses_codes(codes: str) -> None:
    with pytest.raises(ValueError, match="must name three patient directions"):
        volumes.to_orientation(indices(), np.eye(4), codes)


BAD_AFFINES = {
    "flat": (np.diag([1.0, 1, 0, 1]), "span a space"),
    "parallel": (np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "span a space"),
    "NaN": (np.diag([1, np.nan, 1, 1]), "must be finite"),
    "infinite": (np.diag([1, np.inf, 1, 1]), "must be finite"),
    "3 by 3": (np.eye(3), "4 by 4"),
    "last row": (np.diag([1.0, 1, 1, 2]), "4 by 4"),
}


@pytest.mark.parametrize(("affine", "reason"), BAD_AFFINES.values(), ids=BAD_AFFINES)
def test_refuses_affines(affine: NDArray[np.float64], reason: str) -> None:
    with pytest.raises(ValueError, match=f"the volume has the affine .*{reason}"):
        volumes.to_orientation(indices(), affine, "RAS")


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.NII.GZ"])
def test_reads_path_text_and_image_alike(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    for source in (path, str(path), nibabel.load(path)):
        volume = volumes.read_volume(source)
        np.testing.assert_array_equal(volume.data, indices().astype(np.int16), strict=True)
        np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-6)
        assert volume.name == str(path)


@pytest.mark.parametrize("by", [str, nibabel.load], ids=["path", "image"])
def test_data_does_not_depend_on_the_file_any_more(tmp_path: Path, by: Callable[[Path], Any]) -> None:
    path = saved(tmp_path / "x.nii")
    volume = volumes.read_volume(by(path))
    path.write_bytes(b"")
    np.testing.assert_array_equal(volume.data, indices())


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "i8", "f4", "f8", ">i2", ">f4"])
def test_keeps_dtypes_without_scaling(tmp_path: Path, dtype: str) -> None:
    header = nibabel.Nifti1Header(endianness="<" if dtype[0] != ">" else ">")
    header.set_data_dtype(dtype)
    nibabel.save(nibabel.Nifti1Image(indices().astype(dtype), np.eye(4), header), tmp_path / "x.nii.gz")
    data = volumes.read_volume(tmp_path / "x.nii.gz").data
    assert data.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(data, indices())


def test_applies_scaling(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", scl_slope=0.5, scl_inter=-3)
    np.testing.assert_array_equal(volumes.read_volume(path).data, indices() * 0.5 - 3)


@pytest.mark.parametrize("scaling", [(1, 0), (2.5, 0), (1, -7), (0.1, 1e-3), (-3, 5), (np.nan, 3), (0, 9)])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u4", "i8", "u8", "<f4", ">f8"])
def test_scaled_values_are_nibabels_to_the_last_bit(tmp_path: Path, dtype: str, scaling: tuple[float, float]) -> None:
    path, values = tmp_path / "x.nii", np.random.default_rng(0).integers(0, 2**7, (7, 8, 9, 2)).astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if ">" in dtype else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(values.shape)
    header.set_sform(OBLIQUE, 1)
    header["magic"], header["vox_offset"], header["scl_slope"], header["scl_inter"] = b"n+1", 368, *scaling
    path.write_bytes(header.binaryblock + bytes(20) + values.tobytes(order="F"))
    for which in (0, 1):
        read = volumes.read_volume(path, volume=which).data
        expected = np.asarray(nibabel.load(path).dataobj[..., which])
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == expected.dtype.newbyteorder("=")
        assert read.dtype == volumes.read_outline(path, volume=which).data.dtype


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    os.rename(saved(tmp_path / "x.nii.gz"), tmp_path / "x.nii")
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.nii").data, indices())


def test_drops_trailing_axes_of_one(tmp_path: Path) -> None:
    data = indices().astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data[..., None], np.eye(4)), tmp_path / "x.nii")
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.nii").data, data, strict=True)
    in_memory = nibabel.Nifti1Image(data[..., None, None], np.eye(4))
    np.testing.assert_array_equal(volumes.read_volume(in_memory).data, data, strict=True)


def test_ignores_extensions_whatever_they_say(tmp_path: Path) -> None:
    img = image(sform_code=1, srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0])
    img.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"patient's name"))
    nibabel.save(img, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[352:356] = (-5).to_bytes(4, "little", signed=True)  # the extension's length
    (tmp_path / "x.nii").write_bytes(content)
    volume = volumes.read_volume(tmp_path / "x.nii")
    np.testing.assert_array_equal(volume.data, indices())
    volumes.save_mask(tmp_path / "y.nii", volume.data > 3, volume, LABELS)
    assert b"patient" not in (tmp_path / "y.nii").read_bytes()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*x\.nii"):
        volumes.read_volume(tmp_path / "x.nii")
    with pytest.raises(ValueError, match="directly holds no DICOM files"):
        volumes.read_volume(tmp_path)


@pytest.mark.parametrize("source", [None, 3, np.zeros((3, 3, 3))])
def test_refuses_other_types(source: Any) -> None:
    with pytest.raises(TypeError, match="must be a path or a nibabel image"):
        volumes.read_volume(source)


def cut(part: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return damage


def flipped_bit(path: Path) -> None:
    """Change a voxel, pack again, and keep the old checksum."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    trailer = path.read_bytes()[-8:]
    content[400] ^= 1
    path.write_bytes(gzip.compress(bytes(content))[:-8] + trailer)


def replaced(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def data_of(array: NDArray[Any]) -> Callable[[Path], None]:
    return lambda path: nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def patched(**fields: Any) -> Callable[[Path], None]:
    return lambda path: patch(path, **fields)


def overflowing(path: Path) -> None:
    data_of(np.full((3, 4, 5), 1e300))(path)
    patch(path, scl_slope=1e38)


RGB = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN = np.zeros((3, 4, 5), np.float32)
BROKEN[1, 2, 3:] = np.nan, np.inf
REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty": ("x.nii", replaced(b""), "is not a NIfTI file"),
    "text": ("x.nii", replaced(b"Hello\n" * 1000), "is not a NIfTI file"),
    "text named .nii.gz": ("x.nii.gz", replaced(b"Hello\n" * 1000), "is not a NIfTI file"),
    "gzipped text": ("x.nii.gz", replaced(gzip.compress(b"Hello\n" * 1000)), "is not a NIfTI file"),
    "gzip magic alone": ("x.nii.gz", replaced(b"\x1f\x8b"), "damaged or cut short"),
    "gzip of another method": ("x.nii.gz", replaced(b"\x1f\x8b\x07" + bytes(99)), "damaged or cut short"),
    "gzip cut in the header": ("x.nii.gz", cut(0.2), "damaged or cut short"),
    "gzip cut in the voxels": ("x.nii.gz", cut(0.8), "damaged or cut short"),
    "gzip cut in the checksum": ("x.nii.gz", cut(0.99), "damaged or cut short"),
    "gzip with a wrong checksum": ("x.nii.gz", flipped_bit, "CRC"),
    "cut in the header": ("x.nii", cut(0.5), "is not a NIfTI file"),
    "cut in the voxels": ("x.nii", cut(0.9), "is cut short: by its header it has 472 bytes"),
    "huge by its header": ("x.nii", patched(dim=[3, *[32767] * 3, 1, 1, 1, 1]), "is cut short"),
    "huge offset": ("x.nii", patched(vox_offset=3e38), "is cut short"),
    "offset that is no number": (
        "x.nii",
        patched(vox_offset=np.nan),
        "has its voxels at byte nan, not behind the header",
    ),
    "offset in the header": ("x.nii", patched(vox_offset=0), "must begin at 352 or later"),
    "NaN": ("x.nii.gz", data_of(BROKEN), "holds 2 values of 60 that are not finite"),
    "overflowing scale": ("x.nii", overflowing, "holds 60 values of 60 that are not finite"),
    "beyond float32": ("x.nii", data_of(np.full((3, 4, 5), 1e39)), "beyond float32"),
    "infinite offset": ("x.nii", patched(vox_offset=np.inf), "has its voxels at byte inf, not behind the header"),
    "infinite slope": ("x.nii", patched(scl_slope=-np.inf), "scaled by -inf and moved by 0; both must be finite"),
    "infinite intercept": ("x.nii", patched(scl_slope=1, scl_inter=np.inf), "scaled by 1 and moved by inf; both must"),
    "more axes than there are": ("x.nii", patched(dim=[8, 3, 4, 5, 1, 1, 1, 1]), "has 8 axes by its header"),
    "one axis": ("x.nii", patched(dim=[1, 3, 4, 5, 1, 1, 1, 1]), r"has shape \(3,\); a volume must have three axes"),
    "two axes": ("x.nii", patched(dim=[2, 3, 4, 5, 1, 1, 1, 1]), r"has shape \(3, 4\)"),
    "four axes": (
        "x.nii",
        data_of(np.zeros((3, 4, 5, 2), np.uint8)),
        r"has shape \(3, 4, 5, 2\): it holds 2 volumes; choose one with volume=, 0 to 1, or all",
    ),
    "five axes": ("x.nii", data_of(np.zeros((3, 4, 5, 1, 3), np.uint8)), r"has shape \(3, 4, 5, 1, 3\); a volume must"),
    "empty axis": ("x.nii", patched(dim=[3, 3, 0, 5, 1, 1, 1, 1]), "no axis may be empty"),
    "negative axis": ("x.nii", patched(dim=[3, 3, -4, 5, 1, 1, 1, 1]), "no axis may be empty"),
    "complex": ("x.nii", data_of(np.zeros((3, 4, 5), np.complex64)), "holds complex numbers"),
    "colours": ("x.nii", data_of(RGB), "holds colours"),
    "unknown dtype": ("x.nii", patched(datatype=7), "damaged or cut short: .*7"),
    "flat": ("x.nii", patched(srow_z=[0, 0, 0, 1]), "must span a space"),
    "affine with NaN": ("x.nii", patched(srow_z=[0, np.nan, 0, 1]), "must be finite"),
    "quaternion beyond one": (
        "x.nii",
        patched(sform_code=0, qform_code=1, quatern_b=2),
        "squares sum to 4.*; they must",
    ),
    "header of a pair": ("x.nii", patched(magic=b"ni1"), "must be NIfTI in a single file"),
}


@pytest.mark.parametrize(("name", "damage", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str) -> None:
    path = saved(tmp_path / name)
    damage(path)
    with pytest.raises(ValueError, match=reason) as caught:
        volumes.read_volume(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith(f"{path} ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("img", "reason"),
    [
        (nibabel.Nifti1Image(BROKEN, np.eye(4)), "the image holds 2 values of 60 that are not finite"),
        (nibabel.Nifti1Image(BROKEN[0], np.eye(4)), r"the image has shape \(4, 5\); a volume must"),
        (
            nibabel.Nifti1Image(BROKEN[..., None].repeat(2, 3), np.eye(4)),
            r"the image has shape \(3, 4, 5, 2\): it holds 2 volumes",
        ),
        (nibabel.Nifti1Image(BROKEN, None), "the image has no affine"),
        (nibabel.Nifti1Image(BROKEN.astype(np.complex64), np.eye(4)), "the image holds complex numbers"),
        (nibabel.Nifti1Image(RGB, np.eye(4)), "the image holds colours"),
        (nibabel.Spm99AnalyzeImage(BROKEN, np.diag([1, 1, 0, 1])), "the image has the affine"),
    ],
)
def test_refuses_images(img: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        volumes.read_volume(img)


@pytest.mark.parametrize("damage", [flipped_bit, lambda path: os.truncate(path, path.stat().st_size - 4)])
def test_compares_the_checksum_behind_a_long_volume(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """No reader comes past the last voxel by itself, unless the volume is short."""
    path = tmp_path / "x.nii.gz"
    data = np.random.default_rng(1).integers(0, 999, (64, 64, 64), np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    volumes.read_volume(path)
    damage(path)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        volumes.read_volume(path)


def test_image_whose_file_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii.gz")
    img = nibabel.load(path)
    cut(0.8)(path)
    with pytest.raises(ValueError, match="damaged or cut short"):
        volumes.read_volume(img)


def test_only_value_errors_for_mutated_files(tmp_path: Path) -> None:
    """Whatever the bytes: a sentence, or three axes of finite numbers and a usable affine."""
    rng = random.Random(20240607)
    path = tmp_path / "x.nii"
    original = {suffix: saved(tmp_path / f"o{suffix}").read_bytes() for suffix in (".nii", ".nii.gz")}
    refusals: list[str] = []
    for i in range(600):
        content = bytearray(original[".nii.gz" if i % 3 == 0 else ".nii"])
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*x.nii has ", UserWarning)
            try:
                volume = volumes.read_volume(path)
            except ValueError as problem:
                refusals.append(str(problem))
                continue
        assert volume.data.ndim == 3
        assert volume.data.size
        assert np.isfinite(volume.data).all()
        assert np.isfinite(volume.affine).all()
        volumes.to_orientation(volume.data, volume.affine, "LPI")
        volumes.save_mask(tmp_path / "y.nii", np.zeros(volume.data.shape, np.uint8), volume, LABELS)
    assert 0 < len(refusals) < 600
    assert all(message.startswith(f"{path} ") for message in refusals)


# --- geometry that warns ----------------------------------------------------------------------------------


def test_warns_when_no_code_says_where_the_voxels_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", sform_code=0, qform_code=0)
    with pytest.warns(UserWarning, match=r"x\.nii has neither an sform nor a qform code"):
        volume = volumes.read_volume(path)
    np.testing.assert_array_equal(volume.affine, nibabel.load(path).affine)


def test_warns_when_sform_and_qform_disagree(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", sform_code=1, qform_code=1, qoffset_x=31)
    with pytest.warns(UserWarning, match=r"put a voxel up to .* mm apart; the sform is used") as caught:
        volume = volumes.read_volume(path)
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-6)
    assert caught[0].filename == __file__


def test_warns_when_the_qform_is_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", sform_code=1, qform_code=1, quatern_b=2)
    with pytest.warns(UserWarning, match="up to inf mm apart"):
        volumes.read_volume(path)


SIZES = [0, -3, np.nan, np.inf, -np.inf, 1e30, 1e-30]


def sized(path: Path, size: float, **fields: Any) -> Path:
    """A scan whose third voxel size is as given, in a header that nobody mends."""
    saved(path, pixdim=[1, 1, 1, 1, 1, 1, 1, 1], **fields)
    content = bytearray(path.read_bytes())
    content[88:92] = np.float32(size).tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("codes", [(0, 1), (0, 0)], ids=["qform", "neither"])
@pytest.mark.parametrize("size", SIZES)
def test_refuses_voxel_sizes_on_which_the_geometry_rests(
    tmp_path: Path, size: float, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = sized(tmp_path / "x.nii", size, sform_code=codes[0], qform_code=codes[1])
    for read in (volumes.read_volume, volumes.read_outline):
        with pytest.raises(
            ValueError, match=rf"x\.nii has voxels of 1 x 1 x {size:g} by its header \(pixdim\), and".replace("+", ".")
        ):
            read(path)
    assert not caplog.records  # of nibabel, in words of its own and without the file's name
    with pytest.raises(ValueError, match=r"x\.nii has (voxels of 1 x 1 x|the affine .* finite)"):
        volumes.read_volume(nibabel.load(path))


@pytest.mark.parametrize("codes", [(1, 0), (1, 1)], ids=["sform", "both"])
@pytest.mark.parametrize("size", SIZES)
def test_warns_of_voxel_sizes_that_the_sform_knows_better(
    tmp_path: Path, size: float, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = sized(tmp_path / "x.nii", size, sform_code=codes[0], qform_code=codes[1])
    with pytest.warns(
        UserWarning, match=rf"x\.nii has voxels of 1 x 1 x {size:g} by its header .* sform".replace("+", ".")
    ) as caught:
        volume = volumes.read_volume(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not caplog.records
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-6)
    volumes.save_mask(tmp_path / "mask.nii", np.zeros((3, 4, 5), np.uint8), volume, LABELS)
    np.testing.assert_allclose(raw_header(tmp_path / "mask.nii")["pixdim"][1:4], [1, 1, volume.voxel_size[2]], 1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has an sform and a qform")  # it is sheared, which a qform cannot say
        np.testing.assert_array_equal(volumes.read_volume(tmp_path / "mask.nii").affine, volume.affine)
    if np.isfinite(size):
        with pytest.warns(UserWarning, match="which cannot be right"):
            volumes.read_volume(nibabel.load(path))


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([1, 1, 1e30, 1]), "has voxels of 1 x 1 x 1e.30 mm; no image has such"),
        (np.diag([1, 1e-30, 1, 1]), "has voxels of 1 x 1e-30 x 1 mm; no image has such"),
        (np.diag([2e4, 1, 1, 1]), "no image has such"),
        (nibabel.affines.from_matvec(np.eye(3), [0, 1e30, 0]), "no image lies so far away"),
        (nibabel.affines.from_matvec(np.eye(3), [0, np.nan, 0]), "must be finite"),
        (np.diag([1.0, 1, 0, 1]), "must span a space"),
    ],
)
def test_affines_that_cannot_be_right(tmp_path: Path, affine: NDArray[np.float64], reason: str) -> None:
    data = indices().astype(np.float32)
    with pytest.raises(ValueError, match=f"the image .*{reason}"):
        pynca.segment(data, affine=affine)
    with pytest.raises(ValueError, match=f"the image .*{reason}"):
        volumes.read_volume(nibabel.Spm99AnalyzeImage(data, affine))
    if np.abs(affine[:3, :3]).max() > 1e38:
        return
    rows = {f"srow_{name}": affine[n] for n, name in enumerate("xyz")}
    path = saved(tmp_path / "x.nii", sform_code=1, **rows)
    with pytest.raises(ValueError, match=rf"x\.nii .*{reason}"):
        volumes.read_volume(path)


# --- units of length --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [(1, 0), (1, 1), (0, 1), (0, 0)], ids=["sform", "both", "qform", "neither"])
@pytest.mark.parametrize(("code", "unit"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (11, 1e-3), (9, 1e3)])
@pytest.mark.filterwarnings("ignore:.* has neither an sform:UserWarning")
def test_lengths_are_in_mm_whatever_the_units(tmp_path: Path, codes: tuple[int, int], code: int, unit: float) -> None:
    """Sizes, offsets and volumes; what is written has the header's own numbers, to the bit."""
    affine = np.diag([-1.5, 2, 2.5, 1])
    affine[:3, 3] = 10, -20, 30
    stored = nibabel.Nifti1Image(
        indices().astype(np.int16), nibabel.affines.from_matvec(affine[:3, :3] / unit, affine[:3, 3] / unit)
    )
    stored.set_qform(stored.affine, 1)
    nibabel.save(stored, tmp_path / "x.nii")
    patch(tmp_path / "x.nii", sform_code=codes[0], qform_code=codes[1], xyzt_units=code)
    for source in (tmp_path / "x.nii", nibabel.load(tmp_path / "x.nii")):
        volume = volumes.read_volume(source)
        assert volume.voxel_size == pytest.approx((1.5, 2, 2.5))
        assert volume.voxel_volume == pytest.approx(7.5)
        if codes != (0, 0):
            np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)
        volumes.save_mask(tmp_path / "mask.nii", np.zeros((3, 4, 5), np.uint8), volume, LABELS)
        before, after = raw_header(tmp_path / "x.nii"), raw_header(tmp_path / "mask.nii")
        assert all(before[field].tobytes() == after[field].tobytes() for field in GEOMETRY)
    np.testing.assert_array_equal(volumes.read_outline(tmp_path / "x.nii").affine, volume.affine)


def test_an_unknown_unit_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii", xyzt_units=5)
    with pytest.warns(UserWarning, match=r"x\.nii has a unit of length that NIfTI does not know \(code 5\); mm are"):
        assert volumes.read_volume(path).voxel_volume == pytest.approx(abs(np.linalg.det(OBLIQUE[:3, :3])))


def test_a_label_in_other_units_lies_with_its_image(tmp_path: Path) -> None:
    image = volumes.read_volume(nibabel.Nifti1Image(indices().astype(np.int16), np.diag([0.001, 0.001, 0.002, 1])))
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("micron")
    label = nibabel.Nifti1Image(indices().astype(np.int16), np.diag([1, 1, 2, 1]), header)
    assert volumes.read_volume(label).lies_with(image)
    label.affine[0, 3] = 3
    moved = nibabel.Nifti1Image(indices().astype(np.int16), label.affine, header)
    assert not volumes.read_volume(moved).lies_with(image)


# --- an sform or a qform of no use ------------------------------------------------------------------------


def with_qform(path: Path, **fields: Any) -> Path:
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) * [1, 2, 3], (9, 8, 7))
    img = nibabel.Nifti1Image(indices().astype(np.int16), turned)
    img.set_qform(turned, 1)
    nibabel.save(img, path)
    patch(path, **fields)
    return path


@pytest.mark.parametrize("rows", [np.zeros(4), np.full(4, np.nan), np.ones(4), np.full(4, 1e30)])
def test_an_sform_that_cannot_be_right_gives_way_to_the_qform(tmp_path: Path, rows: NDArray[np.float64]) -> None:
    bad = {"srow_x": rows, "srow_y": rows, "srow_z": rows}
    expected = volumes.read_volume(with_qform(tmp_path / "x.nii", sform_code=0))
    path = with_qform(tmp_path / "x.nii", **bad)
    with pytest.warns(UserWarning, match=r"x\.nii has an sform that cannot be right .*; its qform is used") as caught:
        volume = volumes.read_volume(path)
    assert len(caught) == 1
    np.testing.assert_array_equal(volume.affine, expected.affine)
    for fields in ({"qform_code": 0}, {"quatern_b": 2}, {"pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}):
        with pytest.raises(ValueError, match=r"has (the affine|voxels of)"):
            volumes.read_volume(with_qform(tmp_path / "x.nii", **bad, **fields))


@pytest.mark.parametrize("excess", [1e-7, 1e-6, 1e-4, 4e-3])
def test_a_quaternion_slightly_above_one_counts_as_one(tmp_path: Path, excess: float) -> None:
    quaternion = np.array([0.6, 0, 0.8])
    expected = nibabel.affines.from_matvec(nibabel.quaternions.quat2mat([0, *quaternion]) * [1, 2, 3], (9, 8, 7))
    long = dict(zip(("quatern_b", "quatern_c", "quatern_d"), quaternion * (1 + excess), strict=True))
    path = with_qform(tmp_path / "x.nii", sform_code=0, **long)
    volume = volumes.read_volume(path)
    np.testing.assert_allclose(volume.affine, expected, atol=1e-3)
    volumes.save_mask(tmp_path / "mask.nii", np.zeros((3, 4, 5), np.uint8), volume, LABELS)
    assert all(
        raw_header(path)[field].tobytes() == raw_header(tmp_path / "mask.nii")[field].tobytes() for field in GEOMETRY
    )


@pytest.mark.parametrize("value", [1.2, 1e38, np.nan, -np.inf])
def test_another_quaternion_is_refused_in_words(tmp_path: Path, value: float) -> None:
    path = with_qform(tmp_path / "x.nii", sform_code=0, quatern_c=value)
    with pytest.raises(ValueError, match=r"x\.nii has a qform with the quaternion .*; they must sum to 1 at most"):
        volumes.read_volume(path)


def test_does_not_warn_of_rounding(tmp_path: Path) -> None:
    affine = nibabel.affines.from_matvec(
        nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) * [0.7, 0.9, 1.1], (90, -126, -72)
    )
    img = nibabel.Nifti1Image(indices((3, 4, 500)).astype(np.int16), affine)
    img.set_sform(affine, 1)
    img.set_qform(affine, 1)
    nibabel.save(img, tmp_path / "x.nii.gz")
    volumes.read_volume(tmp_path / "x.nii.gz")


# --- writing ----------------------------------------------------------------------------------------------

PLACE = {"srow_x": OBLIQUE[0], "srow_y": OBLIQUE[1], "srow_z": OBLIQUE[2], "pixdim": [-1, 0.95, 1.15, 2.9, 2, 1, 1, 1]}
TURN = {"quatern_b": 0.1, "quatern_c": -0.2, "quatern_d": 0.3, "qoffset_x": 30, "qoffset_y": -20.5, "qoffset_z": 7.25}
CODES = {"both": (2, 1), "sform only": (4, 0), "qform only": (0, 3), "none": (0, 0)}


@pytest.mark.filterwarnings("ignore:.* has (neither an|an) sform:UserWarning")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("units", [2, 10, 3, 0])
@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_keeps_the_geometry_to_the_last_bit(tmp_path: Path, codes: tuple[int, int], units: int, suffix: str) -> None:
    path = saved(tmp_path / "x.nii", **PLACE, **TURN, sform_code=codes[0], qform_code=codes[1], xyzt_units=units)
    volume = volumes.read_volume(path)
    mask, chance = tmp_path / f"mask{suffix}", tmp_path / f"chance{suffix}"
    volumes.save_mask(mask, volume.data % 2, volume, LABELS)
    volumes.save_map(chance, volume.data / 60, volume)
    for result in (mask, chance):
        for field in GEOMETRY:
            np.testing.assert_array_equal(raw_header(result)[field], raw_header(path)[field], err_msg=field)
        np.testing.assert_array_equal(nibabel.load(result).affine, nibabel.load(path).affine, strict=True)
    np.testing.assert_array_equal(np.asarray(nibabel.load(mask).dataobj), (indices() % 2).astype("u1"), strict=True)
    np.testing.assert_array_equal(np.asarray(nibabel.load(chance).dataobj), (indices() / 60).astype("f4"), strict=True)


def test_header_of_a_mask_and_of_a_map(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.nii",
        scl_slope=2,
        scl_inter=1,
        cal_max=99,
        cal_min=3,
        descrip=b"a name",
        aux_file=b"a",
        intent_code=3,
    )
    volume = volumes.read_volume(path)
    volumes.save_mask(tmp_path / "mask.nii", volume.data > 9, volume, LABELS)
    volumes.save_map(tmp_path / "map.nii", volume.data, volume)
    for name, dtype, intent in (("mask.nii", 2, 1002), ("map.nii", 16, 0)):
        header = raw_header(tmp_path / name)
        assert header["datatype"] == dtype
        assert header["intent_code"] == intent
        assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
        assert (header["cal_min"], header["cal_max"]) == (0, 0)
        assert header["descrip"].item().startswith(b"pynca:sha256:")
        assert header["aux_file"].item() == b""


def test_other_byte_order_keeps_its_geometry(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(indices().astype(">i2"), OBLIQUE, header), tmp_path / "x.nii")
    volume = volumes.read_volume(tmp_path / "x.nii")
    volumes.save_mask(tmp_path / "y.nii", volume.data > 9, volume, LABELS)
    for field in GEOMETRY:
        np.testing.assert_array_equal(raw_header(tmp_path / "y.nii")[field], raw_header(tmp_path / "x.nii")[field])


def test_nifti2_stays_nifti2(tmp_path: Path) -> None:
    affine = OBLIQUE + 1e-12  # what float32 cannot hold
    affine[3] = 0, 0, 0, 1
    nibabel.save(nibabel.Nifti2Image(indices().astype(np.int16), affine), tmp_path / "x.nii.gz")
    volume = volumes.read_volume(tmp_path / "x.nii.gz")
    volumes.save_mask(tmp_path / "y.nii.gz", volume.data > 9, volume, LABELS)
    result = nibabel.load(tmp_path / "y.nii.gz")
    assert type(result) is nibabel.Nifti2Image
    np.testing.assert_array_equal(result.affine, affine)
    np.testing.assert_array_equal(np.asarray(result.dataobj), indices() > 9)


@pytest.mark.parametrize("affine", [OBLIQUE, affine_of("LPI")], ids=["sheared", "straight"])
def test_other_formats_become_nifti1(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    volume = volumes.read_volume(nibabel.MGHImage(indices().astype(np.int32), affine))
    volumes.save_mask(tmp_path / "y.nii.gz", volume.data > 9, volume, LABELS)
    result = nibabel.load(tmp_path / "y.nii.gz")
    assert type(result) is nibabel.Nifti1Image
    np.testing.assert_allclose(result.affine, volume.affine, rtol=1e-6)
    assert result.header["sform_code"] == 2
    assert result.header["qform_code"] == (0 if affine is OBLIQUE else 2)
    assert result.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(result.header.get_zooms(), nibabel.affines.voxel_sizes(affine), rtol=1e-6)
    volumes.read_volume(result)  # without a warning


def test_volume_without_a_header_and_longer_than_nifti1_can_say(tmp_path: Path) -> None:
    volume = volumes.Volume(np.zeros((2, 32768, 1), np.uint8), np.eye(4), None, "the array")
    volumes.save_mask(tmp_path / "y.nii.gz", volume.data, volume, LABELS)
    result = nibabel.load(tmp_path / "y.nii.gz")
    assert type(result) is nibabel.Nifti2Image
    assert result.shape == volume.data.shape


def test_image_with_a_new_affine_is_written_with_that(tmp_path: Path) -> None:
    img = nibabel.load(saved(tmp_path / "x.nii"))
    img.affine[:3, 3] += 10
    volume = volumes.read_volume(img)
    volumes.save_mask(tmp_path / "y.nii", volume.data > 9, volume, LABELS)
    np.testing.assert_allclose(nibabel.load(tmp_path / "y.nii").affine, img.affine, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_same_mask_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    volume = volumes.read_volume(saved(tmp_path / "x.nii"))
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other.name{suffix}"
    volumes.save_mask(one, volume.data > 9, volume, LABELS)
    turned = np.ascontiguousarray((volume.data > 9).astype(np.int64).T).T
    volumes.save_mask(other, turned, volume, LABELS)
    assert one.read_bytes() == other.read_bytes()
    if suffix == ".nii.gz":
        assert one.read_bytes()[3:8] == bytes(5)  # no name, no time


def test_writer_refuses(tmp_path: Path) -> None:
    volume = volumes.read_volume(saved(tmp_path / "x.nii"))
    mask = (volume.data > 9).astype(np.uint8)
    save = volumes.save_mask
    for name in ("y", "y.gz", "y.nii.bz2", "y.img", ".nii"):
        with pytest.raises(ValueError, match=r"its name must end in \.nii, \.nii\.gz, \.dcm, .* or \.npy"):
            save(tmp_path / name, mask, volume, LABELS)
    with pytest.raises(ValueError, match=r"mask has shape \(5, 4, 3\); .* has \(3, 4, 5\)"):
        save(tmp_path / "y.nii", mask.T, volume, LABELS)
    with pytest.raises(ValueError, match=r"holds the value 2; every value must be one of \[0, 1\]"):
        save(tmp_path / "y.nii", mask * 2, volume, LABELS)
    with pytest.raises(ValueError, match="must hold whole numbers"):
        save(tmp_path / "y.nii", mask.astype(np.float32), volume, LABELS)
    with pytest.raises(ValueError, match="has room for 1 to 255"):
        save(tmp_path / "y.nii", mask, volume, {256: "too much"})
    with pytest.raises(ValueError, match="map has dtype complex128; it must hold real numbers"):
        volumes.save_map(tmp_path / "y.nii", mask * 1j, volume)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; create it first"):
        save(tmp_path / "no" / "y.nii", mask, volume, LABELS)
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        save(tmp_path / "folder.nii", mask, volume, LABELS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.nii", "x.nii"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = volumes.read_volume(saved(tmp_path / "x.nii"))
    path = tmp_path / f"y{suffix}"
    path.write_bytes(b"old")
    seen: list[str] = []

    write_to = nibabel.Nifti1Header.write_to

    def broken(self: Any, stream: Any) -> None:
        write_to(self, stream)
        seen.extend(p.name for p in tmp_path.iterdir() if p.name not in ("x.nii", path.name))
        if seen:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Header, "write_to", broken)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        volumes.save_mask(path, volume.data > 9, volume, LABELS, overwrite=True)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nii", path.name]
    (temporary,) = seen
    assert temporary.endswith(suffix)
    assert not volumes.is_volume_path(tmp_path / temporary)


# --- names, imports and real files --------------------------------------------------------------------------


def test_is_volume_path() -> None:
    for name in ("x.nii", "x.nii.gz", "X.NII", "a.b.Nii.Gz", "folder/x.nii"):
        assert volumes.is_volume_path(name)
    for name in ("x", "x.gz", "x.nii.bz2", "nii", "._x.nii.gz", ".x.nii", ".nii", "x.nii/y.png", "x.img"):
        assert not volumes.is_volume_path(name)


def test_import_does_not_load_nibabel(tmp_path: Path) -> None:
    code = "import sys, pynca.volumes; sys.exit('nibabel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.skipif(not REAL, reason=f"no volumes in {DATA}")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files(tmp_path: Path, path: Path) -> None:
    volume = volumes.read_volume(path)
    original = nibabel.load(path)
    np.testing.assert_array_equal(volume.data, np.asarray(original.dataobj), strict=True)
    np.testing.assert_array_equal(volume.affine, original.affine, strict=True)
    turned, way = volumes.to_orientation(volume.data, volume.affine, "LPI")
    np.testing.assert_array_equal(way.undo(turned), volume.data, strict=True)
    volumes.save_mask(tmp_path / "y.nii.gz", way.undo(turned > turned.mean()), volume, LABELS)
    result = nibabel.load(tmp_path / "y.nii.gz")
    assert result.shape == original.shape
    for field in GEOMETRY:
        np.testing.assert_array_equal(raw_header(tmp_path / "y.nii.gz")[field], original.header[field])
    np.testing.assert_array_equal(np.asarray(result.dataobj), volume.data > volume.data.mean())
