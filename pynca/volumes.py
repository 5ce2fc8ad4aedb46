"""Files in, files out: NIfTI, with its geometry and its orientation."""

from __future__ import annotations

import gzip
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import atomic_path

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

Affine = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)

_SUFFIXES = (".nii", ".nii.gz")
# Everything in a NIfTI header that says where a voxel is; copied as stored, since a matrix that is
# read and set again goes through a quaternion and a float32.
_GEOMETRY = (
    *("pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_ALIGNED = 2  # NIfTI: coordinates of some other file
_LABEL = 1002  # NIfTI: the values are labels
_MAX_AXIS = 32767  # of NIfTI-1
_NEAR = 0.1  # mm: further apart, two matrices are two places
_FLAT = 1e-6  # of three unit vectors, the least singular value above which they span a space
_DEFLATE = 1032  # no byte of a gzip file becomes more


# --- volumes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume of intensities and where it lies.

    Parameters
    ----------
    data : array
        Three axes, real, in the file's own order of axes.
    affine : array
        (4, 4), float64: from voxel indices to mm, towards the patient's right, anterior and superior.
    header : nibabel NIfTI header, optional
        Results are written with its geometry. Without one, from ``affine``.
    name : str
        What messages call it: the path it was read from.
    """

    data: NDArray[Any]
    affine: Affine
    header: Any
    name: str


def is_volume_path(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name is that of a volume: ``.nii`` or ``.nii.gz``, and not hidden.

    Archives packed on a Mac hold a ``._name.nii.gz`` beside every file, which is no volume.
    """
    name = Path(path).name.lower()
    return name.endswith(_SUFFIXES) and not name.startswith(".")


def inputs_in(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images directly in a folder, sorted by name; ``[folder]`` where it is one image itself.

    Returns
    -------
    list of path
        What `read_volume` takes.
    """
    return sorted(path for path in Path(folder).iterdir() if is_volume_path(path))


def read_volume(source: str | os.PathLike[str] | SpatialImage, *, volume: int | None = None) -> Volume:
    """Read a volume.

    Parameters
    ----------
    source : str, path-like or nibabel image
        A NIfTI file in one piece, gzipped or not, or any of nibabel's spatial images. The voxels'
        scaling is applied; axes of size 1 behind the third are dropped.
    volume : int, optional
        Which volume of a file with four axes, counted from 0.

    Returns
    -------
    Volume

    Raises
    ------
    ValueError
        It is no NIfTI file, is damaged, has not three axes, or holds something else than finite real
        numbers; or its affine does not say where the voxels are.
    OSError
        The file is not there or cannot be read.
    TypeError
        ``source`` is neither a path nor a nibabel image.

    Warns
    -----
    UserWarning
        The header does not say where the voxels are, or says it twice and differently.
    """
    del volume  # every file has three axes
    result = _read_file(Path(source)) if isinstance(source, (str, os.PathLike)) else _read_image(source)
    _check_finite(result)
    _warn_of_geometry(result)
    return result


def save_mask(path: str | os.PathLike[str], mask: ArrayLike, like: Volume, labels: Mapping[int, str]) -> None:
    """Write a mask as uint8 NIfTI, with the geometry of the volume it was made from.

    Parameters
    ----------
    path : str or path-like
        Ends in ``.nii`` or ``.nii.gz``. The file appears whole or not at all.
    mask : array
        Of the volume's shape; every value is 0 or a key of ``labels``.
    like : Volume
    labels : mapping of int to str
        Keys from 1 to 255.

    Raises
    ------
    ValueError
        The path has another suffix, or the mask another shape or other values.
    OSError
        The file cannot be written.
    """
    values = _fitting(mask, like, "mask", "biu")
    allowed = sorted({0, *labels})
    if not 0 <= allowed[0] <= allowed[-1] <= 255:
        raise ValueError(f"the labels are {sorted(labels)}; a uint8 mask has room for 1 to 255")
    if not np.isin(values, allowed).all():
        wrong = np.setdiff1d(values, allowed)[0]
        raise ValueError(f"mask holds the value {wrong}; every value must be one of {allowed}")
    _save(Path(path), values, np.dtype("u1"), like, intent=_LABEL)


def save_map(path: str | os.PathLike[str], array: ArrayLike, like: Volume) -> None:
    """Write probabilities or uncertainties as float32 NIfTI, with the geometry of their volume.

    Parameters
    ----------
    path : str or path-like
        Ends in ``.nii`` or ``.nii.gz``. The file appears whole or not at all.
    array : array
        Real, of the volume's shape.
    like : Volume

    Raises
    ------
    ValueError
        The path has another suffix, or the array another shape.
    OSError
        The file cannot be written.
    """
    _save(Path(path), _fitting(array, like, "map", "biuf"), np.dtype("<f4"), like, intent=0)


# --- orientation --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orientation:
    """How the axes of an array become those of a model: turned round, then put in another order.

    Parameters
    ----------
    axes : (int, int, int)
        For each input axis, which of the model's axes it becomes.
    flips : (int, int, int)
        For each input axis, 1, or -1 if the model's axis runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[int, int, int]

    @classmethod
    def between(cls, affine: ArrayLike, codes: str) -> Orientation:
        """Find the orientation that brings an array to a model.

        Parameters
        ----------
        affine : array
            (4, 4), from the array's indices to the patient's right, anterior and superior. An oblique
            one counts as the orientation that is nearest to it.
        codes : str
            The patient directions towards which the model's axes grow, such as ``"RAS"``.

        Raises
        ------
        ValueError
            The affine does not tell three directions, or the codes do not name three.
        """
        if sorted("LRPAIS".find(c) // 2 for c in codes) != [0, 1, 2]:
            raise ValueError(f"orientation is {codes!r}; it must name three patient directions, such as 'RAS' or 'LPI'")
        orientations = _nibabel().orientations
        with _about("the volume"):
            here = orientations.io_orientation(_checked_affine(affine))
            if not np.isfinite(here).all():
                raise _Refused(f"has an affine without three directions: {_listed(affine)}")
        way = orientations.ornt_transform(here, orientations.axcodes2ornt(codes))
        (a, b, c), (f, g, h) = way.astype(int).T.tolist()
        return cls((a, b, c), (f, g, h))

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view of an array in the input's order of axes, in the model's."""
        i, j, k = (self.axes.index(axis) for axis in range(3))
        return self._flipped(array).transpose(i, j, k)

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view of an array in the model's order of axes, in the input's."""
        return self._flipped(array.transpose(self.axes))

    def _flipped(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        i, j, k = self.flips
        return array[::i, ::j, ::k]


def to_orientation(data: NDArray[Scalar], affine: ArrayLike, orientation: str) -> tuple[NDArray[Scalar], Orientation]:
    """Bring a volume to a model's orientation.

    Parameters
    ----------
    data : array
        Three axes.
    affine : array
        (4, 4), as of `Volume`.
    orientation : str
        The patient directions towards which the model's axes grow.

    Returns
    -------
    data : array
        A view of ``data``.
    orientation : Orientation
        The way there, and with `Orientation.undo` the way back.

    Raises
    ------
    ValueError
        As `Orientation.between`.
    """
    way = Orientation.between(affine, orientation)
    return way.apply(data), way


# --- reading ------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """What is wrong, as a sentence that lacks only its subject."""


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Put the subject in front of a refusal."""
    try:
        yield
    except _Refused as problem:
        raise ValueError(f"{name} {problem}") from problem.__cause__


@contextmanager
def _parsing() -> Iterator[None]:
    """Refuse a file when whatever parses it fails, in any way that its bytes can bring about."""
    try:
        with np.errstate(all="ignore"):  # what overflows is found as not finite
            yield
    except (_Refused, MemoryError):
        raise
    except Exception as problem:  # nibabel's errors share no base, and NumPy's and zlib's come through
        if isinstance(problem, OSError) and problem.errno is not None:
            raise  # the disk failed, not the content
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise _Refused(f"is damaged or cut short: {reason}") from problem


def _nibabel() -> Any:
    """Import nibabel when it is needed, so that ``import pynca`` stays quick."""
    import nibabel

    return nibabel


def _read_file(path: Path) -> Volume:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; it must be a NIfTI file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file, _about(str(path)), _parsing():
        stream, most = _unpacked(file)
        header = _header(stream.read(540))
        shape = _three_axes(header.get_data_shape())
        _check_dtype(header.get_data_dtype())
        affine = _checked_affine(header.get_best_affine())
        _check_length(header, most)
        data = _loaded(_nibabel().arrayproxy.ArrayProxy(stream, header, mmap=False))
        if isinstance(stream, gzip.GzipFile):
            _read_to_end(stream)
    return Volume(data.reshape(shape, order="F"), affine, header, str(path))


def _read_image(image: SpatialImage) -> Volume:
    nibabel = _nibabel()
    if not isinstance(image, nibabel.spatialimages.SpatialImage):
        raise TypeError(f"a volume is of type {type(image).__name__}; it must be a path or a nibabel image")
    name = image.get_filename() or "the image"
    with _about(name), _parsing():
        shape = _three_axes(image.shape)
        affine = _checked_affine(image.affine)
        data = _loaded(image.dataobj)
        _check_dtype(data.dtype)
        header = image.header.copy() if isinstance(image.header, nibabel.Nifti1Header) else None
        # A header can be changed after its image was made; the image's affine is what its owner sees
        if header is not None and _distance(header.get_best_affine(), affine, shape) > _NEAR:
            header = None
    return Volume(data.reshape(shape, order="F"), affine, header, name)


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
                raise _Refused("is one of a pair of files; it must be NIfTI in a single file")
            return header
    raise _Refused("is not a NIfTI file; it must be .nii or .nii.gz")


def _three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if any(n < 1 for n in shape):
        raise _Refused(f"has shape {shape}; no axis may be empty")
    if len(shape) < 3 or any(n > 1 for n in shape[3:]):
        raise _Refused(f"has shape {shape}; a volume must have three axes")
    return shape[0], shape[1], shape[2]


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        what = {"V": "colours", "c": "complex numbers"}.get(dtype.kind, "no numbers")
        raise _Refused(f"holds {what} (dtype {dtype}); it must hold one real number per voxel")


def _checked_affine(affine: ArrayLike | None) -> Affine:
    if affine is None:
        raise _Refused("has no affine; without one nobody knows where its voxels are")
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or matrix[3].tolist() != [0, 0, 0, 1]:
        raise _Refused(f"has the affine {_listed(matrix)}; it must be 4 by 4 and end in the row 0, 0, 0, 1")
    if not np.isfinite(matrix).all():
        raise _Refused(f"has the affine {_listed(matrix)}; all of its values must be finite")
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    if not sizes.all() or np.linalg.svd(matrix[:3, :3] / sizes, compute_uv=False)[-1] < _FLAT:
        raise _Refused(f"has the affine {_listed(matrix)}; its three axes must span a space")
    return matrix


def _listed(affine: ArrayLike) -> str:
    return str(np.asarray(affine).tolist())


def _check_length(header: Any, most: int) -> None:
    """Check before memory is taken for it that the file can hold what its header announces."""
    begin = header.get_data_offset()
    if begin < header.single_vox_offset:
        raise _Refused(
            f"has its voxels at byte {begin}, within the header; they must begin at {header.single_vox_offset} or later"
        )
    end = begin + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if end > most:
        raise _Refused(f"is cut short: by its header it has {end} bytes, but there are at most {most}")


def _loaded(dataobj: Any) -> NDArray[Any]:
    """Return the scaled voxels in the machine's order of bytes."""
    data = np.asarray(dataobj)
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _read_to_end(stream: BinaryIO) -> None:
    """Read what follows the voxels: gzip compares its checksum only at the end."""
    for _ in range(64):  # a hostile file could have terabytes there
        if not stream.read(2**20):
            return


def _check_finite(volume: Volume) -> None:
    data = volume.data
    if data.dtype.kind != "f":
        return
    largest = np.float64(np.finfo(np.float32).max)  # models compute in float32
    wrong = data.size - np.count_nonzero((data >= -largest) & (data <= largest))
    if wrong:
        raise ValueError(
            f"{volume.name} holds {wrong} voxels of {data.size} that are not finite "
            f"(NaN, infinite or beyond float32); all must be"
        )


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
    warnings.warn(f"{volume.name} {text}", UserWarning, stacklevel=3)


def _qform(header: Any) -> Affine:
    """Return the qform's matrix, or one of NaN where its quaternion is none."""
    try:
        with np.errstate(all="ignore"):
            return cast(Affine, header.get_qform())
    except Exception:  # as in _parsing; who uses the sform need not care which
        return np.full((4, 4), np.nan)


def _distance(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart, in mm, two affines put the voxel about which they disagree most."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]).T * [[n - 1] for n in (*shape, 2)]
    with np.errstate(all="ignore"):
        apart = np.linalg.norm((a - b)[:3] @ corners, axis=0).max()
    return float(np.inf if np.isnan(apart) else apart)


# --- writing ------------------------------------------------------------------------------------------


def _fitting(array: ArrayLike, like: Volume, what: str, kinds: str) -> NDArray[Any]:
    values = np.asarray(array)
    if values.shape != like.data.shape:
        raise ValueError(f"{what} has shape {values.shape}; {like.name} has {like.data.shape}")
    if values.dtype.kind not in kinds:
        raise ValueError(f"{what} has dtype {values.dtype}; it must hold {'real' if 'f' in kinds else 'whole'} numbers")
    return values


def _save(path: Path, values: NDArray[Any], dtype: np.dtype[Any], like: Volume, intent: int) -> None:
    if not path.name.lower().endswith(_SUFFIXES):
        raise ValueError(f"{path} cannot be written: its name must end in {' or '.join(_SUFFIXES)}")
    header = _header_like(like)
    header.set_data_dtype(dtype)
    header["intent_code"] = intent
    header["descrip"] = b"pynca"
    header["scl_slope"], header["scl_inter"] = 1, 0
    with atomic_path(path) as temporary, _packing(temporary) as stream:
        header.write_to(stream)
        for k in range(values.shape[2]):  # slice by slice, so that no second copy stands in memory
            stream.write(values[:, :, k].astype(dtype).tobytes(order="F"))


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
    header.set_xyzt_units("mm")
    header.set_sform(like.affine, _ALIGNED)
    header.set_qform(like.affine, _ALIGNED)
    if _distance(header.get_qform(), like.affine, like.data.shape) > _NEAR:
        header["qform_code"] = 0  # it cannot say what a sheared affine says
    return header


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
