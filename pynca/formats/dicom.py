"""DICOM: a series as a volume, with everything that can be wrong with one named."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..orientation import checked_affine
from .base import Affine, Refused, Volume, about, optional, parsing

SUFFIXES = (".dcm", ".dicom", ".ima")
_INDEX = "DICOMDIR"
_USED = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
)
_MASKS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentations and label maps
_ALIKE_IN_A_SERIES = {
    "Rows": "the number of rows",
    "Columns": "the number of columns",
    "PixelSpacing": "the pixel spacing",
    "ImageOrientationPatient": "the orientation",
}
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_UNEVEN = 0.1  # of the distance of slices: further from its place in an even series, a slice is not there
_TILTED = 1e-3  # of the distance of slices, a shift within the plane that rounding does not explain
_ALIKE = 1e-4  # cosines and mm: what writers round


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, by its name or its content; the index of a medium is not."""
    name = path.name.lower()
    if name.startswith(".") or name == _INDEX.lower() or not path.is_file():
        return False
    return name.endswith(SUFFIXES) or _has_magic(path)


def is_series(folder: Path) -> bool:
    """Tell whether a folder directly holds DICOM files."""
    try:
        return any(is_dicom(path) for path in folder.iterdir())
    except PermissionError:
        return False


def read(path: Path) -> Volume:
    """Read the series in a folder, or the one that a file belongs to."""
    with _quiet():
        if path.is_dir():
            series = _only_series(path)
        else:
            with about(path):
                first = _readable(path)
            beside = ((file, _header(file)) for file in _files(path.parent) if file != path)
            uid = first.get("SeriesInstanceUID")
            series = [(path, first), *((file, header) for file, header in beside if _belongs(header, uid))]
        with about(path):
            series = _sorted(series)
            affine = _affine([header for _, header in series], path)
            return Volume(_pixels(series), affine, None, str(path), slices=tuple(header for _, header in series))


def _pydicom() -> Any:
    return optional("pydicom", "dicom", "DICOM")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning of values that break the standard: nothing here depends on them unchecked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


# --- which files ----------------------------------------------------------------------------------------


def _has_magic(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_dicom(path))


def _header(path: Path) -> Any:
    """Read everything of a file but its pixels."""
    pydicom = _pydicom()
    with about(path), parsing():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            raise Refused("is not a DICOM file") from None
        for keyword in _USED:  # parsed here, where a refusal names the file; others may be as odd as they like
            header.get(keyword)
        return header


def _is_image(header: Any) -> bool:
    return "Rows" in header and header.get("SOPClassUID") not in _MASKS


def _belongs(header: Any, uid: Any) -> bool:
    return _is_image(header) and header.get("SeriesInstanceUID") == uid


def _readable(path: Path) -> Any:
    """Return the header of a file that a user named, or refuse it."""
    if path.name.upper() == _INDEX:
        raise Refused("is an index of DICOM files; give the folder of one series, or one of its files")
    header = _header(path)
    if not _is_image(header):
        kind = header.get("SOPClassUID")
        raise Refused(
            f"holds no image ({kind.name if kind else 'without SOP class'}); give a file of a series of images"
        )
    return header


def _only_series(folder: Path) -> list[tuple[Path, Any]]:
    """Return the files and headers of the one series of images in a folder."""
    series: dict[Any, list[tuple[Path, Any]]] = defaultdict(list)
    files = _files(folder)
    for file in files:
        header = _header(file)
        if _is_image(header):
            series[header.get("SeriesInstanceUID")].append((file, header))
    with about(folder):
        if len(series) == 1:
            return next(iter(series.values()))
        if series:
            told = [
                f"{_described(group[0][1])} ({len(group)} files, one is {group[0][0].name})"
                for group in series.values()
            ]
            raise Refused(f"holds {len(series)} series: {', '.join(told)}; give one file of the one that is meant")
        if files:
            raise Refused(f"holds {len(files)} DICOM files, but no image")
        hint = f", only an index ({_INDEX})" if (folder / _INDEX).exists() else ""
        raise Refused(f"is a folder that directly holds no DICOM files{hint}; give the folder of one series")


def _described(header: Any) -> str:
    return repr(str(header.get("SeriesDescription") or header.get("ProtocolName") or "without description"))


# --- where the slices are ---------------------------------------------------------------------------------


def _sorted(series: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Return the slices by their position along the normal, or refuse those that make no volume."""
    first_file, first = series[0]
    for file, header in series:
        with about(file), parsing():
            _check_slice(header)
            for tag, what in _ALIKE_IN_A_SERIES.items():
                mine, theirs = _numbers(header, tag), _numbers(first, tag)
                if not np.allclose(mine, theirs, rtol=0, atol=_ALIKE):
                    raise Refused(
                        f"has {what} {_listed(mine)}, but {first_file.name} of the same series {_listed(theirs)}"
                    )
    normal = _normal(first)
    ordered = sorted(series, key=lambda item: (float(normal @ _numbers(item[1], "ImagePositionPatient")), item[0]))
    _check_positions(ordered, normal)
    return ordered


def _check_slice(header: Any) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1 or "PerFrameFunctionalGroupsSequence" in header:
        raise Refused("holds several frames (enhanced DICOM), which pynca does not read; convert it, as with dcm2niix")
    colours = str(header.get("PhotometricInterpretation", ""))
    if header.get("SamplesPerPixel", 1) != 1 or colours not in ("MONOCHROME2", "MONOCHROME1"):
        raise Refused(f"is not grey ({colours or 'without photometric interpretation'})")
    if colours == "MONOCHROME1":
        raise Refused("stores grey inverted (MONOCHROME1); convert it to MONOCHROME2")
    for tag, count in (
        *(("Rows", 1), ("Columns", 1)),
        *(("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)),
    ):
        values = _numbers(header, tag)
        if len(values) != count or not np.isfinite(values).all():
            raise Refused(f"does not say where it lies ({tag} has {len(values)} values, not {count} finite ones)")
        if tag in ("Rows", "Columns", "PixelSpacing") and not (values > 0).all():
            raise Refused(f"has {_ALIKE_IN_A_SERIES[tag]} {_listed(values)}; it must be above 0")


def _numbers(header: Any, tag: str) -> NDArray[np.float64]:
    value = header.get(tag)
    return np.array([] if value is None else value, np.float64).reshape(-1)


def _listed(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _normal(header: Any) -> NDArray[np.float64]:
    rows, columns = _numbers(header, "ImageOrientationPatient").reshape(2, 3)
    normal = np.cross(rows, columns)
    if not abs(np.linalg.norm(normal) - 1) < 0.01:
        raise Refused("has an image orientation that is not two directions at right angles")
    return normal


def _check_positions(series: Sequence[tuple[Path, Any]], normal: NDArray[np.float64]) -> None:
    """Refuse slices that share a position, that miss some between them or that do not lie on a line."""
    if len(series) == 1:
        return
    names = [file.name for file, _ in series]
    positions = np.array([_numbers(header, "ImagePositionPatient") for _, header in series])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    twice = np.flatnonzero(gaps <= max(_UNEVEN * usual, _ALIKE))
    if len(twice):
        raise Refused(
            f"holds slices at the same position, {len(twice)} times (echoes or time points?): {names[twice[0]]} and "
            f"{names[twice[0] + 1]} are such; keep one of each in a folder"
        )
    even = np.linspace(positions[0], positions[-1], len(series))
    away = np.abs((positions - even) @ normal)
    if away.max() > _UNEVEN * usual:
        k = int(np.argmax(gaps))
        others = int(np.count_nonzero(gaps > usual * (1 + _UNEVEN))) - 1
        raise Refused(
            f"misses slices or has them at uneven distances: {names[k]} and {names[k + 1]} are {gaps[k]:.4g} mm "
            f"apart, others {usual:.4g} mm{f', and so at {others} more places' if others > 0 else ''}"
        )
    aside = np.linalg.norm(positions - even, axis=1)
    if aside.max() > _UNEVEN * usual:
        raise Refused(
            f"has slices that do not lie on one line: {names[int(np.argmax(aside))]} is {aside.max():.3g} mm off"
        )


def _affine(headers: Sequence[Any], path: Path) -> Affine:
    """Return where (column, row, slice) lies, sheared where the gantry was tilted."""
    first, last = headers[0], headers[-1]
    rows, columns = _numbers(first, "ImageOrientationPatient").reshape(2, 3)
    between_rows, between_columns = _numbers(first, "PixelSpacing")
    normal = _normal(first)
    start = _numbers(first, "ImagePositionPatient")
    if len(headers) > 1:
        step = (_numbers(last, "ImagePositionPatient") - start) / (len(headers) - 1)
        shift = step - (step @ normal) * normal
        if np.linalg.norm(shift) > _TILTED * np.linalg.norm(step):
            degrees = np.degrees(np.arctan2(np.linalg.norm(shift), step @ normal))
            warnings.warn(
                f"{path} was scanned with the gantry tilted by {degrees:.3g} degrees: its affine is sheared, which "
                "viewers built on ITK refuse in NIfTI; a mask written as DICOM (.dcm) lies right in all of them",
                UserWarning,
                stacklevel=4,
            )
        else:
            step = (step @ normal) * normal
    else:
        thickness = [*_numbers(first, "SpacingBetweenSlices"), *_numbers(first, "SliceThickness"), 1.0]
        step = next(float(mm) for mm in thickness if np.isfinite(mm) and mm > 0) * normal
    affine = np.eye(4)
    for axis, vector in enumerate((rows * between_columns, columns * between_rows, step, start)):
        affine[:3, axis] = _LPS_TO_RAS * vector + 0.0  # no negative zeros
    return checked_affine(affine)


# --- pixels -----------------------------------------------------------------------------------------------


def _pixels(series: Sequence[tuple[Path, Any]]) -> NDArray[Any]:
    """Return (column, row, slice): stored values where none is rescaled, else rescaled ones."""
    dtype = _dtype([header for _, header in series])
    data: NDArray[Any] | None = None
    for k, (file, _) in enumerate(series):
        plane = _plane(file, dtype)
        if data is None:
            data = np.empty((*plane.shape[::-1], len(series)), plane.dtype, order="F")
        with about(file):
            if plane.shape[::-1] != data.shape[:2]:
                raise Refused(f"has pixels of shape {plane.shape}, unlike {series[0][0].name}")
        data[:, :, k] = plane.T
    assert data is not None
    return data


def _dtype(headers: Sequence[Any]) -> np.dtype[Any] | None:
    """Return what holds all rescaled values exactly; None where none is rescaled."""
    lines = [_numbers(header, tag) for header in headers for tag in ("RescaleSlope", "RescaleIntercept")]
    if any("ModalityLUTSequence" in header for header in headers):
        return np.dtype(np.float64)
    slopes, intercepts = lines[::2], lines[1::2]
    if all(not len(a) or a[0] == 1 for a in slopes) and all(not len(b) or b[0] == 0 for b in intercepts):
        return None
    whole = all((line == np.rint(line)).all() and (np.abs(line) < 2**15).all() for line in lines)
    return np.dtype(np.int32) if whole else np.dtype(np.float64)


def _plane(path: Path, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """Return the pixels of a slice (row, column), rescaled as its file says."""
    pydicom = _pydicom()
    with about(path), parsing():
        content = pydicom.dcmread(path)
        if "PixelData" not in content:
            raise Refused("holds no pixels")
        syntax = content.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not _decodable(syntax):
            raise Refused(
                f"is compressed as {syntax.name}, for which no decoder is installed; "
                "`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg` brings those of JPEG"
            )
        pixels = content.pixel_array
        if dtype is None:
            return np.asarray(pixels)
        return np.asarray(pydicom.pixels.apply_modality_lut(pixels, content)).astype(dtype)


def _decodable(syntax: Any) -> bool:
    try:
        return bool(_pydicom().pixels.get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
