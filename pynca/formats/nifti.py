"""NIfTI: read with every check, written with the geometry of the input to the last bit."""

from __future__ import annotations

import gzip
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from ..orientation import checked_affine
from .base import Affine, Refused, Volume, about, check_dtype, colour_of, native, parsing

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    Which = int | Literal["all"] | None

SUFFIXES = (".nii", ".nii.gz")
# Everything in a NIfTI header that says where a voxel is; copied as stored, since a matrix that is
# read and set again goes through a quaternion and a float32.
_GEOMETRY = (
    *("pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_ALIGNED = 2  # NIfTI: coordinates of some other file
_LABEL = 1002  # NIfTI: the values are labels
_CARET = 30  # NIfTI: an extension in the XML of Connectome Workbench
_MAX_AXIS = 32767  # of NIfTI-1
_NEAR = 0.1  # mm: further apart, two matrices are two places
_DEFLATE = 1032  # no byte of a gzip file becomes more


def read(path: Path, which: Which) -> Volume:
    """Read a file in one piece, gzipped or not: its volume, one of its volumes, or all of them."""
    with open(path, "rb") as file, about(path), parsing():
        stream, most = _unpacked(file)
        header = _header(stream.read(540))
        part, shape = _part(header.get_data_shape(), which)
        check_dtype(header.get_data_dtype())
        affine = checked_affine(header.get_best_affine())
        _check_length(header, most)
        data = native(np.asarray(_nibabel().arrayproxy.ArrayProxy(stream, header, mmap=False)[part]))
        if isinstance(stream, gzip.GzipFile):
            _read_to_end(stream)
    volume = Volume(data.reshape(shape, order="F"), affine, header, str(path))
    _warn_of_geometry(volume)
    return volume


def outline(path: Path, which: Which) -> Volume:
    """Read the header alone: a volume of zeros that take no memory."""
    with open(path, "rb") as file, about(path), parsing():
        header = _header(_unpacked(file)[0].read(540))
        _, shape = _part(header.get_data_shape(), which)
        check_dtype(header.get_data_dtype())
        affine = checked_affine(header.get_best_affine())
        scaled = header.get_slope_inter() not in ((1.0, 0.0), (None, None))
        zero = np.zeros((), np.float64 if scaled else header.get_data_dtype())
    return Volume(np.broadcast_to(zero, shape), affine, header, str(path))


def read_image(image: SpatialImage, which: Which) -> Volume:
    """Read one of nibabel's images, of whatever format."""
    nibabel = _nibabel()
    if not isinstance(image, nibabel.spatialimages.SpatialImage):
        raise TypeError(f"a volume is of type {type(image).__name__}; it must be a path or a nibabel image")
    name = image.get_filename() or "the image"
    with about(name), parsing():
        part, shape = _part(image.shape, which)
        affine = checked_affine(image.affine)
        data = native(np.asarray(image.dataobj[part]))
        check_dtype(data.dtype)
        header = image.header.copy() if isinstance(image.header, nibabel.Nifti1Header) else None
        # A header can be changed after its image was made; the image's affine is what its owner sees
        if header is not None and _distance(header.get_best_affine(), affine, shape) > _NEAR:
            header = None
    volume = Volume(data.reshape(shape, order="F"), affine, header, name)
    _warn_of_geometry(volume)
    return volume


def write(
    path: Path, values: NDArray[Any], dtype: np.dtype[Any], like: Volume, labels: Mapping[int, str] | None
) -> None:
    """Write a mask with the names of its labels, or a map where there are none, with the geometry of a volume."""
    header = _header_like(like)
    header.set_data_dtype(dtype)
    header["descrip"] = b"pynca"
    header["scl_slope"], header["scl_inter"] = 1, 0
    if labels is not None:
        header["intent_code"] = _LABEL
        header.extensions.append(_nibabel().nifti1.Nifti1Extension(_CARET, _label_table(labels)))
    with atomic_path(path) as temporary, _packing(temporary) as stream:
        header.write_to(stream)
        for place in np.ndindex(values.shape[:1:-1]):  # slice by slice, so that no second copy stands in memory
            stream.write(values[(..., *place[::-1])].astype(dtype).tobytes(order="F"))


def _nibabel() -> Any:
    """Import nibabel when it is needed, so that ``import pynca`` stays quick."""
    import nibabel

    return nibabel


# --- reading ------------------------------------------------------------------------------------------


def _unpacked(file: BinaryIO) -> tuple[BinaryIO, int]:
    """Return a stream of the file's content, unpacked if need be, and how many bytes it has at most."""
    size = os.fstat(file.fileno()).st_size
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if packed:
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")), size * _DEFLATE
    return file, size


def _header(block: bytes) -> Any:
    """Return the header without its extensions: nothing needs them, and their lengths can be anything."""
    nibabel = _nibabel()
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr])
            if header["magic"].item() != kind.single_magic:
                raise Refused("is one of a pair of files; it must be NIfTI in a single file")
            return header
    raise Refused("is not a NIfTI file; it must be .nii or .nii.gz")


def _part(shape: tuple[int, ...], which: Which) -> tuple[tuple[slice | int, ...], tuple[int, ...]]:
    """Return which part of a file's array to read, and the shape of that."""
    if any(n < 1 for n in shape):
        raise Refused(f"has shape {shape}; no axis may be empty")
    if len(shape) < 3 or any(n > 1 for n in shape[4:]):
        raise Refused(f"has shape {shape}; a volume must have three axes")
    count = shape[3] if len(shape) > 3 else 1
    if which is None and count > 1:
        raise Refused(
            f"has shape {shape}: it holds {count} volumes; choose one with volume=, 0 to {count - 1}, "
            "or all of them with volume='all'"
        )
    if which == "all":
        return (slice(None),) * len(shape), shape[:3] if count == 1 else shape[:4]
    which = which or 0
    if not 0 <= which < count:
        raise Refused(f"holds {count} volumes, 0 to {count - 1}; volume is {which}")
    return ((slice(None),) * 3 + (which, 0, 0, 0, 0))[: len(shape)], shape[:3]


def _check_length(header: Any, most: int) -> None:
    """Check before memory is taken for it that the file can hold what its header announces."""
    begin = header.get_data_offset()
    if begin < header.single_vox_offset:
        raise Refused(
            f"has its voxels at byte {begin}, within the header; they must begin at {header.single_vox_offset} or later"
        )
    end = begin + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if end > most:
        raise Refused(f"is cut short: by its header it has {end} bytes, but there are at most {most}")


def _read_to_end(stream: BinaryIO) -> None:
    """Read what follows the voxels: gzip compares its checksum only at the end."""
    for _ in range(64):  # a hostile file could have terabytes there
        if not stream.read(2**20):
            return


def _warn_of_geometry(volume: Volume) -> None:
    header = volume.header
    if header is None or (header["sform_code"] > 0) != (header["qform_code"] > 0):
        return
    if header["sform_code"] == 0:
        text = (
            "has neither an sform nor a qform code: where its voxels are is a guess from their size, "
            "and left and right may be swapped"
        )
    else:
        distance = _distance(_qform(header), header.get_sform(), volume.data.shape)
        if distance <= _NEAR:
            return
        text = f"has an sform and a qform that put a voxel up to {distance:.3g} mm apart; the sform is used"
    warnings.warn(f"{volume.name} {text}", UserWarning, stacklevel=4)


def _qform(header: Any) -> Affine:
    """Return the qform's matrix, or one of NaN where its quaternion is none."""
    try:
        with np.errstate(all="ignore"):
            return cast(Affine, header.get_qform())
    except Exception:  # as in parsing; who uses the sform need not care which
        return np.full((4, 4), np.nan)


def _distance(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart, in mm, two affines put the voxel about which they disagree most."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]).T * [[n - 1] for n in (*shape[:3], 2)]
    with np.errstate(all="ignore"):
        apart = np.linalg.norm((a - b)[:3] @ corners, axis=0).max()
    return float(np.inf if np.isnan(apart) else apart)


# --- writing ------------------------------------------------------------------------------------------


def _header_like(like: Volume) -> Any:
    """Return a new header with a volume's shape and geometry, and nothing else of its header's."""
    nibabel = _nibabel()
    old = like.header
    large = isinstance(old, nibabel.Nifti2Header) or max(like.data.shape) > _MAX_AXIS
    header = (nibabel.Nifti2Header if large else nibabel.Nifti1Header)(endianness="<")
    header.set_data_shape(like.data.shape)
    if old is not None:
        for field in _GEOMETRY:
            header[field] = old[field]
        return header
    assert like.affine is not None
    header.set_xyzt_units("mm")
    header.set_sform(like.affine, _ALIGNED)
    header.set_qform(like.affine, _ALIGNED)
    if _distance(header.get_qform(), like.affine, like.data.shape) > _NEAR:
        header["qform_code"] = 0  # it cannot say what a sheared affine says
    return header


def _label_table(labels: Mapping[int, str]) -> bytes:
    """Return names and colours as Connectome Workbench, and TotalSegmentator after it, write and read them."""
    from html import escape  # here, because of its table of a thousand characters

    rows = []
    for value, name in {0: "background", **labels}.items():
        red, green, blue = (f"{part / 255:.4f}" for part in colour_of(value))
        attributes = f'Red="{red}" Green="{green}" Blue="{blue}" Alpha="{int(value > 0)}"'
        rows.append(f'<Label Key="{value}" {attributes}>{escape(name, quote=False)}</Label>')
    table = f"<LabelTable>{''.join(rows)}</LabelTable><VolumeType>Label</VolumeType>"
    text = f'<CaretExtension Version="1.0"><VolumeInformation Index="0">{table}</VolumeInformation></CaretExtension>'
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


@contextmanager
def _packing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write, gzipped by its suffix; the bytes depend on nothing but the content."""
    with open(path, "xb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        # level 1, as nibabel: a mask shrinks a hundredfold with it, and a Pi feels the difference to 9
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream:
            yield cast(BinaryIO, stream)
