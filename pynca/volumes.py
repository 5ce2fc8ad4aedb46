"""Files in, files out: which format reads or writes what, and with what geometry."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import atomic_path, check_regular
from .formats import dicom, dicom_seg, nifti, npy, picture
from .formats.base import Affine, Volume, about
from .memory import check_room
from .orientation import Orientation, codes_of, displayed, to_orientation
from .preprocessing import check_finite, pieces
from .seal import is_marked

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

__all__ = [
    "Affine",
    "Orientation",
    "Volume",
    "check_output",
    "files_of",
    "inputs_in",
    "is_input",
    "is_volume_path",
    "output_name",
    "read_label",
    "read_outline",
    "read_volume",
    "save_map",
    "save_mask",
    "split_name",
    "to_orientation",
]

INPUTS = "NIfTI (.nii, .nii.gz), DICOM (.dcm or a folder), PNG, TIFF, JPEG or .npy"
_WHOLE = 1e-3  # how far from a whole number a label may be
MASKS = (*nifti.SUFFIXES, *dicom_seg.SUFFIXES, ".png", *picture.PAGED, *npy.SUFFIXES)
MAPS = (*nifti.SUFFIXES, ".png", *picture.PAGED, *npy.SUFFIXES)
_ENDING = re.compile(r"\.(nii|nii\.gz|dcm|dicom|ima|png|tiff?|jpe?g|npy)$", re.IGNORECASE)
_BY_NAME = (*nifti.SUFFIXES, *picture.SUFFIXES, *npy.SUFFIXES)
SUFFIXES = (*_BY_NAME, *dicom.SUFFIXES)


# --- reading ------------------------------------------------------------------------------------------


def is_volume_path(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name is that of a NIfTI volume: ``.nii`` or ``.nii.gz``, and not hidden.

    Archives packed on a Mac hold a ``._name.nii.gz`` beside every file, which is no volume.
    """
    return _ends(path, nifti.SUFFIXES) and not Path(path).name.startswith(".")


def split_name(name: str) -> tuple[str, str]:
    """Divide a file's name into what stands before the ending of its format, and the ending; that may be empty."""
    found = _ENDING.search(name)
    ending = found[0] if found else ""
    return name[: len(name) - len(ending)], ending


def is_input(path: str | os.PathLike[str]) -> bool:
    """Tell whether `read_volume` would read a path: a file of a format by its name, or DICOM by its content.

    A folder counts if it directly holds DICOM files: it is a series.
    """
    path = Path(path)
    if os.path.isdir(path):  # which is False, too, for a path too long to be looked at
        return dicom.is_series(path)
    return (_ends(path, _BY_NAME) and not path.name.startswith(".")) or dicom.is_dicom(path)


def inputs_in(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images directly in a folder, sorted by name.

    Parameters
    ----------
    folder : str or path-like

    Returns
    -------
    list of path
        Files of all formats but DICOM, and folders that hold a DICOM series. All DICOM files directly in ``folder``
        are one image, for which ``folder`` itself stands.
    """
    folder = Path(folder)
    images = [path for path in folder.iterdir() if not path.name.startswith(".") and is_input(path)]
    return sorted({folder if dicom.is_dicom(path) else path for path in images})


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """List the files that an image is read from: one, or those beside and in which a DICOM series is.

    A DICOM file that pynca wrote is no part of a series.
    """
    path = Path(source)
    try:
        if path.is_dir() or dicom.is_dicom(path):
            return [file for file in dicom.files_in(path if path.is_dir() else path.parent) if not is_marked(file)]
        return [path] if path.is_file() else []
    except (OSError, ValueError):  # whoever reads it next will say so
        return []


def read_volume(
    source: str | os.PathLike[str] | SpatialImage,
    *,
    volume: int | Literal["all"] | None = None,
    spacing: float | Sequence[float] | None = None,
) -> Volume:
    """Read an image of any format.

    Parameters
    ----------
    source : str, path-like or nibabel image
        A NIfTI file in one piece, gzipped or not, or any of nibabel's spatial images; a folder with a DICOM series or
        one of its files, which stands for the whole series; a grey PNG, TIFF (its pages are slices) or JPEG, turned as
        viewers display it; a ``.npy`` array of two or three axes. Scaling is applied: NIfTI's, DICOM's rescale slope
        and intercept.
    volume : int or "all", optional
        Which volume of a NIfTI file with four axes, counted from 0; "all" gives data with four axes.
    spacing : float or sequence of float, optional
        Of a picture or a ``.npy`` array, the distance of neighbours in mm: one for all axes, or one for each.

    Returns
    -------
    Volume
        `Volume` says in which order its axes are.

    Raises
    ------
    ValueError
        The file is of no such format or damaged; or holds something else than finite real numbers, colours, or more
        volumes than one where ``volume`` does not choose; or it does not say where its voxels are. A DICOM series is
        refused with missing slices, several at one position, or different size, spacing or orientation, and a folder
        with several series.
    OSError
        The file is not there or cannot be read.
    TypeError
        ``source`` is neither a path nor a nibabel image.
    ImportError
        The library that reads the format is not installed.

    Warns
    -----
    UserWarning
        A NIfTI header does not say where the voxels are, or says it twice and differently; or the gantry was tilted;
        or a TIFF says that its pages are channels or time points.
    """
    which = volume if volume is None or volume == "all" else operator.index(volume)
    if not isinstance(source, (str, os.PathLike)):
        _check_room(nifti.outline_image(source, which))
        result = nifti.read_image(source, which)
    else:
        path = Path(source)
        _check_source(path, which)
        if path.is_dir() or dicom.is_dicom(path) or path.name.upper() == "DICOMDIR":
            result = dicom.read(path)
        elif _ends(path, picture.SUFFIXES):
            result = picture.read(path)
        elif _ends(path, npy.SUFFIXES):
            result = npy.read(path)
        elif _ends(path, nifti.SUFFIXES):
            result = nifti.read(path, which)
        else:
            raise ValueError(f"{path} is of no format that pynca reads by its name; it must be {INPUTS}")
    if result.header is None and which not in (None, 0, "all"):
        raise ValueError(f"{result.name} holds one volume, 0; volume is {which}")
    check_finite(result.data, result.name)
    return result if spacing is None else _spaced(result, spacing)


def is_dicom(path: Path) -> bool:
    """Tell whether a path is a DICOM file or a folder that directly holds some."""
    return dicom.is_dicom(path) or (path.is_dir() and dicom.is_series(path))


def read_outline(
    source: str | os.PathLike[str] | SpatialImage, *, volume: int | Literal["all"] | None = None
) -> Volume | None:
    """Read what the header of a file says, without its voxels.

    Parameters
    ----------
    source : str, path-like or nibabel image
    volume : int or "all", optional
        As of `read_volume`.

    Returns
    -------
    Volume or None
        Its ``data`` has the shape and the ``nbytes`` of the image, but takes no memory and is zero. None where the
        header does not tell, and for a nibabel image whose voxels are in memory already.

    Raises
    ------
    ValueError, OSError
        As `read_volume`, as far as the header is concerned.
    """
    if not isinstance(source, (str, os.PathLike)):
        return nifti.outline_image(source, volume)
    path = Path(source)
    check_regular(path)
    if is_dicom(path):
        return dicom.outline(path)
    if not path.is_file():
        return None
    if _ends(path, picture.SUFFIXES):
        return picture.outline(path)
    if _ends(path, npy.SUFFIXES):
        return npy.outline(path)
    return nifti.outline(path, volume) if _ends(path, nifti.SUFFIXES) else None


def read_label(path: str | os.PathLike[str], *, volume: int | Literal["all"] | None = None) -> Volume:
    """Read an image of labels: whole numbers from 0 to 255, 0 for what has no label.

    Parameters
    ----------
    path : str or path-like
        NIfTI, PNG, TIFF or ``.npy``. Pictures are read by the index into their palette, never by its colours, and
        TIFF as stored, also where it says that zero is white; turned as displayed.
    volume : int or "all", optional
        As of `read_volume`.

    Returns
    -------
    Volume
        Its ``data`` are uint8.

    Raises
    ------
    ValueError
        As `read_volume`; or a value is no label, or the file a JPEG, whose values are not exact, or of DICOM.
    OSError, ImportError
        As `read_volume`.
    """
    path = Path(path)
    if _ends(path, picture.SUFFIXES):
        _check_source(path, None)
        label = picture.read_label(path)
    elif path.is_dir() or dicom.is_dicom(path):
        raise ValueError(f"{path} is DICOM; a label must be NIfTI, PNG, TIFF or .npy")
    else:
        label = read_volume(path, volume=volume)
    return replace(label, data=_labels(label.data, path))


def _labels(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Return labels as uint8; what scaling has moved away from a whole number by a rounding is that number."""
    for part in pieces(values) if values.dtype not in (np.uint8, np.bool_) else ():
        with np.errstate(invalid="ignore"):  # NaN and infinity are no labels either
            whole = np.rint(part)
            right = (whole >= 0) & (whole <= 255) & (np.abs(part - whole) < _WHOLE)
        if not right.all():
            raise ValueError(f"{path} holds the value {part[~right][0]!s}; labels are whole numbers from 0 to 255")
    if values.dtype.kind == "f":
        values = np.rint(values, out=values if values.flags.writeable else None)
    return values.astype(np.uint8, copy=False)


def _check_source(path: Path, which: int | Literal["all"] | None) -> None:
    """Refuse what is not there or no file, and what has more voxels than there is memory for, before it is read."""
    check_regular(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not is_dicom(path):  # which does so itself, and whose headers take long
        _check_room(read_outline(path, volume=which))


def _check_room(outline: Volume | None) -> None:
    if outline is not None:
        check_room(outline.name, outline.reading)


def _spaced(volume: Volume, spacing: float | Sequence[float]) -> Volume:
    axes = volume.data.ndim
    sizes = np.asarray(spacing, np.float64).reshape(-1)
    if volume.affine is not None:
        raise ValueError(f"{volume.name} says itself how large its voxels are; spacing goes with pictures and .npy")
    if len(sizes) not in (1, axes) or not ((sizes > 0) & (sizes < 1e4)).all():
        raise ValueError(f"spacing is {sizes.tolist()}; {volume.name} has {axes} axes: give one size in mm, or {axes}")
    return replace(volume, spacing=tuple(np.broadcast_to(sizes, axes).tolist()))


def _ends(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> bool:
    """Tell whether a name has one of some endings, and something before it."""
    name = Path(path).name.lower()
    return name.endswith(suffixes) and not name.startswith(suffixes)


# --- writing ------------------------------------------------------------------------------------------


def check_output(path: str | os.PathLike[str], like: Volume | None, *, of_map: bool = False) -> None:
    """Refuse a file to write that cannot hold the mask or the map of an image, before work starts.

    Parameters
    ----------
    path : str or path-like
    like : Volume or None
        The image; None checks the name alone.
    of_map : bool
        Probabilities or uncertainties are to be written, instead of a mask. Default False.

    Raises
    ------
    ValueError
        The name ends in no format that can be written, or the image has not what the format needs.
    ImportError
        highdicom, which writes DICOM SEG, is not installed.
    """
    allowed = MAPS if of_map else MASKS
    if _ends(path, picture.LOSSY):
        raise ValueError(f"{path} cannot be written: JPEG changes values; write .png")
    if of_map and _ends(path, dicom_seg.SUFFIXES):
        raise ValueError(f"{path} cannot be written: DICOM SEG holds masks; write {', '.join(MAPS)}")
    if not _ends(path, allowed):
        raise ValueError(f"{path} cannot be written: its name must end in {', '.join(allowed[:-1])} or {allowed[-1]}")
    if like is None:
        return
    if _ends(path, nifti.SUFFIXES) and like.affine is None:
        raise ValueError(f"{path} cannot be written: {like.name} does not say where it lies; write .png, .tif or .npy")
    if _ends(path, dicom_seg.SUFFIXES) and not like.slices:
        raise ValueError(f"{path} cannot be written: DICOM SEG refers to a DICOM series, which {like.name} is not")
    if _ends(path, dicom_seg.SUFFIXES):
        with about(f"{path} cannot be written: {like.name}"):
            dicom_seg.check(like)
    if _ends(path, picture.SUFFIXES):
        pages = like.data.shape[2:] or (1,)
        if len(pages) > 1 or (pages[0] > 1 and not _ends(path, picture.PAGED)):
            raise ValueError(
                f"{path} cannot be written: {like.name} has shape {like.data.shape}; PNG holds one slice, TIFF a "
                "volume, NIfTI all"
            )


def output_name(source: str | os.PathLike[str]) -> str:
    """Name the mask or map of an image in a folder of results: as the image, where that can be written.

    A JPEG's is a PNG, and a DICOM series' a gzipped NIfTI with the name of its folder or file.
    """
    path = Path(source)
    if _ends(path, picture.LOSSY):
        return f"{path.stem}.png"
    if _ends(path, _BY_NAME):
        return path.name
    return f"{path.stem if _ends(path, dicom.SUFFIXES) else path.name}.nii.gz"


def save_mask(
    path: str | os.PathLike[str],
    mask: ArrayLike,
    like: Volume,
    labels: Mapping[int, str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a mask, with the geometry of the image it was made from.

    Parameters
    ----------
    path : str or path-like
        Its ending says the format, and the file appears whole or not at all: ``.nii`` and ``.nii.gz`` are NIfTI with
        the names of the labels in an extension of the header; ``.dcm`` is DICOM SEG and refers to the series;
        ``.png`` and ``.tif`` have the label as index into a palette, rows and columns as displayed, and ``.tif``
        a page for each index of the third axis; ``.npy`` is the array.
    mask : array
        Of the image's shape; every value is 0 or a key of ``labels``.
    like : Volume
        A file that it was read from is never replaced.
    labels : mapping of int to str
        Keys from 1 to 255.
    overwrite : bool
        Replace a file that pynca did not write, or that was changed since. Default False.

    Raises
    ------
    ValueError
        As `check_output`; or the mask has another shape or other values; or ``path`` is a file of ``like``.
    FileExistsError
        There is such a file, and ``overwrite`` is not given.
    OSError
        The file cannot be written.
    ImportError
        The library that writes the format is not installed.
    """
    path = Path(path)
    check_output(path, like)
    values = _fitting(mask, like, "mask", "biu")
    allowed = sorted({0, *labels})
    if not 0 <= allowed[0] <= allowed[-1] <= 255:
        raise ValueError(f"the labels are {sorted(labels)}; a uint8 mask has room for 1 to 255")
    for plane in values:  # one at a time, because setdiff1d sorts a copy
        wrong = np.setdiff1d(plane, allowed)
        if wrong.size:
            raise ValueError(f"mask holds the value {wrong[0]}; every value must be one of {allowed}")
    with _written(path, like, overwrite) as beside:
        if _ends(path, nifti.SUFFIXES):
            nifti.write(beside, values, np.dtype("u1"), like, labels)
        elif _ends(path, npy.SUFFIXES):
            npy.write(beside, values, np.dtype("u1"))
        elif _ends(path, dicom_seg.SUFFIXES):
            with about(f"{path} cannot be written: {like.name}"):
                dicom_seg.write(beside, values.astype(np.uint8, copy=False), like, labels)
        else:
            picture.write_mask(beside, _pages(values.astype(np.uint8, copy=False), like))


def save_map(path: str | os.PathLike[str], array: ArrayLike, like: Volume, *, overwrite: bool = False) -> None:
    """Write probabilities or uncertainties as float32, with the geometry of their image.

    Parameters
    ----------
    path : str or path-like
        As for `save_mask`, but for DICOM. A ``.png`` holds 0 to 1 as 0 to 65535, rounded.
    array : array
        Real, of the image's shape.
    like : Volume
    overwrite : bool
        As of `save_mask`.

    Raises
    ------
    ValueError
        As `save_mask`; or the array has values that a PNG cannot hold.
    OSError, ImportError
        As `save_mask`.
    """
    path = Path(path)
    check_output(path, like, of_map=True)
    values = _fitting(array, like, "map", "biuf")
    with _written(path, like, overwrite) as beside:
        if _ends(path, nifti.SUFFIXES):
            nifti.write(beside, values, np.dtype("<f4"), like, None)
        elif _ends(path, npy.SUFFIXES):
            npy.write(beside, values, np.dtype("<f4"))
        else:
            picture.write_map(beside, _pages(values.astype(np.float32, copy=False), like))


@contextmanager
def _written(path: Path, like: Volume, overwrite: bool) -> Iterator[Path]:
    """Yield what to write in place of a path; what a format refuses is said of that."""
    inputs = files_of(like.name) if path.exists() else ()
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as beside, about(path):
        yield beside


def _fitting(array: ArrayLike, like: Volume, what: str, kinds: str) -> NDArray[Any]:
    values = np.asarray(array)
    if values.shape != like.data.shape:
        raise ValueError(f"{what} has shape {values.shape}; {like.name} has {like.data.shape}")
    if values.dtype.kind not in kinds:
        raise ValueError(f"{what} has dtype {values.dtype}; it must hold {'real' if 'f' in kinds else 'whole'} numbers")
    return values


def _pages(values: NDArray[Any], like: Volume) -> NDArray[Any]:
    """Return (page, row, column), as displayed: the pages of a volume are along its third axis."""
    values = values.reshape(*values.shape[:2], -1)
    if like.slices:
        values = values.transpose(1, 0, 2)
    elif like.affine is not None:
        codes = codes_of(like.affine)
        values = Orientation.from_codes(codes, displayed(codes[2])).apply(values)
    return np.moveaxis(values, 2, 0)
