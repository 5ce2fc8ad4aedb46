"""NIfTI: read with every check, written with the geometry of the input to the last bit."""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files import open_input
from ..orientation import checked_affine, possible
from ..seal import BLANK, sealed
from .base import DEFLATE, Affine, Refused, Volume, about, check_dtype, colour_of, native, parsing

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
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_LONGEST = 1.01  # sum of a quaternion's squares: what exceeds 1 by less is rounded, and counts as 1
_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # of the codes of lengths: unknown, metre, mm, micron
_PIECE = 2**18  # voxels
_ALIGNED = 2  # NIfTI: coordinates of some other file
_LABEL = 1002  # NIfTI: the values are labels
_CARET = 30  # NIfTI: an extension in the XML of Connectome Workbench
_MAX_AXIS = 32767  # of NIfTI-1
_NEAR = 0.1  # mm, or a voxel of a microscope: further apart, two matrices are two places


def read(path: Path, which: Which) -> Volume:
    """Read a file in one piece, gzipped or not: its volume, one of its volumes, or all of them."""
    with open_input(path) as file, about(path), parsing():
        stream, most = _unpacked(file)
        header, place, first, shape = _understood(stream, most, which)
        data = _voxels(stream, header, first, shape)
        if isinstance(stream, gzip.GzipFile):
            _read_to_end(stream)
    return _volume(data, place, header, str(path))


def outline(path: Path, which: Which) -> Volume:
    """Read the header alone: a volume of zeros that take no memory."""
    with open_input(path) as file, about(path), parsing():
        header, place, _, shape = _understood(*_unpacked(file), which)
        zero = np.zeros((), _dtype(header))
    return Volume(np.broadcast_to(zero, shape), place.affine, header, str(path))


def read_image(image: SpatialImage, which: Which) -> Volume:
    """Read one of nibabel's images, of whatever format."""
    nibabel = _nibabel()
    _check_type(image)
    with about(_name(image)), parsing():
        first, shape = _part(image.shape, which)
        header = image.header.copy() if isinstance(image.header, nibabel.Nifti1Header) else None
        place = _Place(_affine_of(image), ())
        if header is not None:
            own = _own_place(header, shape)
            # A header can be changed after its image was made; the image's affine is what its owner sees
            if own is None or _distance(own.affine, place.affine, shape) > _near(place.affine):
                header = None
            else:
                place = replace(_place(header, _stored_sizes(image), shape), affine=place.affine)
        index = (*[slice(None)] * len(shape), *[first] * (len(shape) == 3), *[0] * 4)
        found = image.dataobj[index[: len(image.shape)]]
        # Not mapped: a file that shrinks while it is mapped ends the process
        data = native(np.array(found) if isinstance(found, np.memmap) else np.asarray(found))
        check_dtype(data.dtype)
    return _volume(data.reshape(shape, order="F"), place, header, _name(image))


def outline_image(image: SpatialImage, which: Which) -> Volume | None:
    """Return a volume of zeros that take no memory, where the voxels of one of nibabel's images are in a file yet."""
    _check_type(image)
    if not _nibabel().is_proxy(image.dataobj):
        return None
    with about(_name(image)), parsing():
        shape = _part(image.shape, which)[1]
        scaled = (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)) != (1.0, 0.0)
        zero = np.zeros((), np.float64 if scaled else image.get_data_dtype())
        return Volume(np.broadcast_to(zero, shape), _affine_of(image), None, _name(image))


def write(
    path: Path, values: NDArray[Any], dtype: np.dtype[Any], like: Volume, labels: Mapping[int, str] | None
) -> None:
    """Write a mask with the names of its labels, or a map where there are none, with the geometry of a volume.

    The description in the header is the file's seal.
    """
    header = _header_like(like)
    header.set_data_dtype(dtype)
    header["descrip"] = BLANK
    header["scl_slope"], header["scl_inter"] = 1, 0
    if labels is not None:
        header["intent_code"] = _LABEL
        header.extensions.append(_nibabel().nifti1.Nifti1Extension(_CARET, _label_table(labels)))
    header["descrip"] = sealed(_content(header, values, dtype))  # beforehand, since what is packed cannot be changed
    with _packing(path) as stream:
        for block in _content(header, values, dtype):
            stream.write(block)


def _content(header: Any, values: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield the bytes of a file slice by slice, so that no second copy of the values stands in memory."""
    with io.BytesIO() as start:
        header.write_to(start)
        yield start.getvalue()
    for place in np.ndindex(values.shape[:1:-1]):
        yield values[(..., *place[::-1])].astype(dtype).tobytes(order="F")


def _nibabel() -> Any:
    """Import nibabel when it is needed, so that ``import pynca`` stays quick."""
    import nibabel

    return nibabel


def _check_type(image: object) -> None:
    if not isinstance(image, _nibabel().spatialimages.SpatialImage):
        raise TypeError(f"a volume is of type {type(image).__name__}; it must be a path or a nibabel image")


def _affine_of(image: SpatialImage) -> Affine:
    """Return the affine of an image, which is in its header's unit of length, in mm."""
    known = image.affine is not None and isinstance(image.header, _nibabel().Nifti1Header)
    return checked_affine(_in_mm(image.affine, image.header) if known else image.affine)


def _name(image: SpatialImage) -> str:
    return image.get_filename() or "the image"


# --- reading ------------------------------------------------------------------------------------------


def _unpacked(file: BinaryIO) -> tuple[BinaryIO, int]:
    """Return a stream of the file's content, unpacked if need be, and how many bytes it has at most."""
    size = os.fstat(file.fileno()).st_size
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if packed:
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")), size * DEFLATE
    return file, size


def _understood(stream: BinaryIO, most: int, which: Which) -> tuple[Any, _Place, int, tuple[int, ...]]:
    """Return a file's header, where its voxels lie, the first volume to read and the shape of what to read."""
    header, sizes = _header(stream.read(540))
    if header["magic"].item() != header.single_magic:
        raise Refused("is one of a pair of files; it must be NIfTI in a single file")
    first, shape = _part(header.get_data_shape(), which)
    check_dtype(header.get_data_dtype())
    place = _place(header, sizes, shape)
    _check_length(header, most)
    return header, place, first, shape


def _header(block: bytes) -> tuple[Any, NDArray[np.floating]]:
    """Return the header as nibabel mends it, without its extensions, and the voxel sizes as the file has them.

    Nothing needs the extensions, and their lengths can be anything.
    """
    nibabel = _nibabel()
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr], check=False)
            sizes = header["pixdim"][1:4].copy()
            _check_numbers(header)
            # What matters of its findings is said by pynca, with the name of the file
            header.check_fix(logging.Logger("pynca", logging.CRITICAL + 1), logging.ERROR)
            return header, sizes
    raise Refused("is not a NIfTI file; it must be .nii or .nii.gz")


def _check_numbers(header: Any) -> None:
    """Refuse numbers that nibabel would trip over, in words of its own."""
    size = header["sizeof_hdr"]
    if size != header.sizeof_hdr and size.byteswap() == header.sizeof_hdr:  # nibabel tells the order of bytes by dim
        count = int(header["dim"][0].byteswap())
        raise Refused(f"has {count} axes by its header (dim); a volume must have three, and a film of volumes four")
    begin, least = float(header["vox_offset"]), header.single_vox_offset
    if header["magic"].item() == header.single_magic and not least <= begin < math.inf:
        raise Refused(f"has its voxels at byte {begin:g}, not behind the header; they must begin at {least} or later")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or (slope != 0 and math.isfinite(slope) and not math.isfinite(inter)):
        raise Refused(f"has values that are scaled by {slope:g} and moved by {inter:g}; both must be finite")


def _part(shape: tuple[int, ...], which: Which) -> tuple[int, tuple[int, ...]]:
    """Return the first volume to read of a file's array, and the shape of what to read."""
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
        return 0, shape[:3] if count == 1 else shape[:4]
    which = which or 0
    if not 0 <= which < count:
        raise Refused(f"holds {count} volumes, 0 to {count - 1}; volume is {which}")
    return which, shape[:3]


def _check_length(header: Any, most: int) -> None:
    """Check before memory is taken for it that the file can hold what its header announces."""
    end = header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if end > most:
        raise Refused(f"is cut short: by its header it has {end} bytes, but there are at most {most}")


def _scaling(header: Any) -> tuple[float, float] | None:
    """Return slope and intercept of the stored values; None where they are the values."""
    scaling = header.get_slope_inter()
    return None if scaling in ((1.0, 0.0), (None, None)) else scaling


def _dtype(header: Any) -> np.dtype[Any]:
    """Return the dtype of the values once they are read."""
    stored: np.dtype[Any] = header.get_data_dtype()
    return stored.newbyteorder("=") if _scaling(header) is None else np.dtype(np.float64)


def _voxels(stream: BinaryIO, header: Any, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read the values of volumes that follow each other; only a piece of them is in memory twice."""
    stored, scaling, count = header.get_data_dtype(), _scaling(header), math.prod(shape)
    values = np.empty(count, _dtype(header))
    stream.seek(header.get_data_offset() + first * count * stored.itemsize)
    for begin in range(0, count, _PIECE):
        piece = values[begin : begin + _PIECE]
        block = stream.read(piece.size * stored.itemsize)
        if len(block) < piece.size * stored.itemsize:
            raise Refused(f"is cut short: it ends {(count - begin) * stored.itemsize - len(block)} bytes too early")
        found = np.frombuffer(block, stored)
        if scaling is None:
            piece[...] = found
            continue
        slope, inter = scaling
        np.multiply(found, slope, out=piece, dtype=np.float64, casting="same_kind")
        if inter != 0:
            piece += inter
    return values.reshape(shape, order="F")


def _read_to_end(stream: BinaryIO) -> None:
    """Read what follows the voxels: gzip compares its checksum only at the end."""
    for _ in range(64):  # a hostile file could have terabytes there
        if not stream.read(2**20):
            return


def _volume(data: NDArray[Any], place: _Place, header: Any, name: str) -> Volume:
    for doubt in place.doubts:
        warnings.warn(f"{name} {doubt}", UserWarning, stacklevel=4)
    return Volume(data, place.affine, header, name)


# --- where the voxels are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where voxels lie, in mm, and what about that is in doubt, as sentences without their subject."""

    affine: Affine
    doubts: tuple[str, ...]


def _place(header: Any, sizes: NDArray[np.floating], shape: tuple[int, ...]) -> _Place:
    """Find where voxels lie: by the sform if it can be right, by the qform, or by their size alone.

    ``sizes`` are those of the voxels as they are stored. Where they cannot be right, but the sform tells, it is used,
    and the header then has its sizes: a mask that is written with them is read alike by all.
    """
    doubts = []
    if (code := int(header["xyzt_units"]) & 7) not in _MM:
        doubts.append(f"has a unit of length that NIfTI does not know (code {code}); mm are assumed")
    sform, qform = bool(header["sform_code"] > 0), bool(header["qform_code"] > 0)
    affine = None
    if sform:
        try:
            affine = checked_affine(_in_mm(header.get_sform(), header))
        except Refused:
            affine = _qform(header, sizes) if qform else None
            if affine is None:
                raise
            doubts.append(f"has an sform that cannot be right ({header.get_sform()[:3].tolist()}); its qform is used")
            return _Place(affine, tuple(doubts))
    right = possible(sizes * _unit(header))
    if not right.all():
        told = " x ".join(f"{size:g}" for size in sizes)
        if affine is None:
            raise Refused(
                f"has voxels of {told} by its header (pixdim), and nothing else there says how large they are; each "
                "size must be above 0, and below 10 m"
            )
        mended = np.linalg.norm(affine[:3, :3], axis=0)
        header["pixdim"][1:4] = np.where(right, sizes, mended / _unit(header))
        doubts.append(
            f"has voxels of {told} by its header (pixdim), which cannot be right; those of its sform, "
            f"{' x '.join(f'{mm:.4g}' for mm in mended)} mm, are used"
        )
    elif sform and qform:
        assert affine is not None
        other = _qform(header, sizes)
        distance = np.inf if other is None else _distance(other, affine, shape)
        if distance > _near(affine):
            doubts.append(f"has an sform and a qform that put a voxel up to {distance:.3g} mm apart; the sform is used")
    elif qform:
        affine = checked_affine(_in_mm(_rotated(header), header))
    elif not sform:
        affine = checked_affine(_in_mm(header.get_base_affine(), header))
        doubts.append(
            "has neither an sform nor a qform code: where its voxels are is a guess from their size, "
            "and left and right may be swapped"
        )
    assert affine is not None
    return _Place(affine, tuple(doubts))


def _own_place(header: Any, shape: tuple[int, ...]) -> _Place | None:
    """Return where a header says that voxels lie; None where it does not."""
    try:
        return _place(header, header["pixdim"][1:4].copy(), shape)
    except Refused:
        return None


def _stored_sizes(image: Any) -> NDArray[np.floating]:
    """Return the voxel sizes as the file of an image has them: nibabel mends a header when it reads it."""
    own: NDArray[np.floating] = image.header["pixdim"][1:4].copy()
    try:
        file_map = image.file_map
        with open_input(file_map.get("header", file_map["image"]).filename) as file:
            header, sizes = _header(_unpacked(file)[0].read(540))
    except Exception:  # there is no file, or it is gone: then the header in memory is all there is
        return own
    return sizes if np.array_equal(header["pixdim"][1:4], own) else own


def _in_mm(affine: ArrayLike, header: Any) -> Affine:
    """Return an affine in a header's unit of length in mm."""
    matrix = np.array(affine, np.float64)
    unit = _unit(header)
    if unit != 1.0 and matrix.shape == (4, 4):
        matrix[:3] *= unit
    return matrix


def _unit(header: Any) -> float:
    """Return a header's unit of length in mm; one that is unknown counts as mm."""
    return _MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _qform(header: Any, sizes: NDArray[np.floating]) -> Affine | None:
    """Return the qform's matrix in mm, or None where it cannot be right."""
    if not possible(sizes * _unit(header)).all():
        return None
    try:
        return checked_affine(_in_mm(_rotated(header), header))
    except Refused:
        return None


def _rotated(header: Any) -> Affine:
    """Return the qform's matrix; a quaternion that is too long for rounding counts as one of length 1."""
    quaternion = [float(header[name]) for name in _QUATERNION]
    squares = sum(part * part for part in quaternion)
    if not squares <= _LONGEST:
        raise Refused(
            f"has a qform with the quaternion {quaternion}, whose squares sum to {squares:.6g}; they must sum to 1 at "
            "most"
        )
    try:
        return cast(Affine, header.get_qform())
    except ValueError:  # of nibabel, which allows for less rounding
        header = header.copy()
        for name, part in zip(_QUATERNION, quaternion, strict=True):
            header[name] = part / max(1.0, math.sqrt(squares))
        return cast(Affine, header.get_qform())


def _near(affine: Affine) -> float:
    """Return how far apart, in mm, two matrices may put a voxel and still count as one place."""
    return min(_NEAR, float(np.linalg.norm(affine[:3, :3], axis=0).min()))


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
    if _distance(header.get_qform(), like.affine, like.data.shape) > _near(like.affine):
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
