"""DICOM: a series as a volume, with everything that can be wrong with one named."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..memory import check_room
from ..orientation import checked_affine
from .base import Affine, Refused, Volume, about, native, optional, parsing

SUFFIXES = (".dcm", ".dicom", ".ima")
_INDEX = "DICOMDIR"
_MASKS = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}  # segmentations and label maps
_PIXELS = 0x7FE00010
_PIXEL_TAGS = (_PIXELS, 0x7FE00008, 0x7FE00009)  # whole numbers, float and double
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_UNEVEN = 0.1  # of the distance of slices: further from its place in an even series, a slice is not there
_TILTED = 1e-3  # of the distance of slices, a shift within the plane that rounding does not explain
_ALIKE = 1e-4  # cosines and mm: what writers round
_SQUARE = 0.01  # cosines: how far two directions may be from length 1 and from right angles
_SIZES = (1e-4, 1e4)  # mm: voxels that are smaller or larger are none of a patient
_FAR = 1e6  # mm: nobody lies further from the scanner's centre
_BITS = (1, 8, 16, 32, 64)

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_INFLATED = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_MOST_HEADER = 2**22  # bytes of a deflated header: what is longer holds more than a header
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # how an item of a sequence begins, little and big endian
_MOST_READS = 2**18  # of a deflated file: an element is read in one to three
_MOST_ITEMS = 2**18  # of one file: an item of 8 bytes takes a hundred times as much once it is read
# What the headers of a series may hold together: so much, and so much more for each file
_ITEMS_TOGETHER = (2**16, 2**8)
_INFLATED_TOGETHER = (2**26, 2**18)  # bytes


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
    except OSError:  # not to be listed, or too long a path
        return False


def read(path: Path) -> Volume:
    """Read the series in a folder, or the one that a file belongs to."""
    with _quiet():
        slices, affine, doubts = _series(path)
        check_room(str(path), 2 * _outline(slices, affine, path).data.nbytes)
        with about(path):
            data = _pixels(slices)
    for doubt in doubts:
        warnings.warn(f"{path} {doubt}", UserWarning, stacklevel=3)
    return _volume(data, affine, slices, path)


def outline(path: Path) -> Volume:
    """Read the headers alone: a volume of zeros that take no memory."""
    with _quiet():
        slices, affine, _ = _series(path)
    return _outline(slices, affine, path)


def _outline(slices: Sequence[_Slice], affine: Affine, path: Path) -> Volume:
    shape = (slices[0].columns, slices[0].rows, len(slices))
    return _volume(np.broadcast_to(np.zeros((), _dtype(slices)), shape), affine, slices, path)


def _volume(data: NDArray[Any], affine: Affine, slices: Sequence[_Slice], path: Path) -> Volume:
    headers = tuple(one.header for one in slices)
    return Volume(data, affine, None, str(path), slices=headers, flat=_thickness(slices) is None)


def _pydicom() -> Any:
    return optional("pydicom", "dicom", "DICOM")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning of values that break the standard: nothing here depends on them unchecked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- which files ----------------------------------------------------------------------------------------


def _has_magic(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def files_in(folder: Path) -> list[Path]:
    """List the DICOM files directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_dicom(path))


def _series(path: Path) -> tuple[list[_Slice], Affine, list[str]]:
    """Return the slices of a folder's one series or of a file's, in their order; where they lie; and what is odd."""
    if path.is_dir():
        series = _only_series(path)
    else:
        with about(path):
            first = _readable(path)
            uid = _text(first.header, "SeriesInstanceUID")
        beside = (_header(file) for file in files_in(path.parent) if file != path)
        series = list(_bounded(chain([first], (head for head in beside if _belongs(head, uid)))))
    with about(path):
        slices = _sorted([_slice(head) for head in series])
        return slices, _affine(slices), _doubts(slices)


@dataclass(frozen=True)
class _Head:
    """Everything of a file but its pixels, and how many bytes those are said to take; None where there are none."""

    file: Path
    header: Any
    announced: int | None
    there: int  # bytes from there to the end of the file
    items: int  # of its sequences
    inflated: int  # bytes, of one that was deflated


def _header(path: Path) -> _Head:
    pydicom = _pydicom()
    found: list[tuple[int, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_TAGS:
            found.append((tag, length))
        return tag in _PIXEL_TAGS

    with about(path), parsing(), _opened(path, _MOST_HEADER) as file:
        try:
            header = pydicom.filereader.read_partial(file, stop_when=at_pixels)
        except pydicom.errors.InvalidDicomError:
            raise Refused("is not a DICOM file") from None
        except RecursionError:
            raise Refused("holds sequences in sequences, deeper than any image needs") from None
        begin = file.tell()
        there = file.seek(0, os.SEEK_END) - begin
        if not found and there == 0 and begin > _MOST_HEADER:
            raise Refused(f"has a deflated header of more than {_MOST_HEADER >> 20} MiB")
        announced = next((length for tag, length in found if tag == _PIXELS), None)
        return _Head(path, header, announced, there, file.items, begin if file.deflated else 0)


class _Watched(io.BufferedReader):
    """A file that ends, for pydicom, where it has read more than memory and time can be taken for."""

    items = 0
    reads = 0
    name = ""

    @property
    def deflated(self) -> bool:
        """Whether what is read was unpacked, so that a small file can hold a great deal."""
        return isinstance(self.raw, io.BytesIO)

    @property
    def _excess(self) -> str:
        if self.items > _MOST_ITEMS:
            return f"sequences of more than {_MOST_ITEMS:,} items"
        return "a deflated header of too many elements" if self.deflated and self.reads > _MOST_READS else ""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does, but take no memory for bytes that a length promises and that are not there."""
        if size is not None and size > _MOST_HEADER:
            here = self.tell()
            size = min(size, self.seek(0, os.SEEK_END) - here)
            self.seek(here)
        content = b"" if self._excess else super().read(size)
        self.reads += 1
        self.items += sum(map(content.count, _ITEMS))
        return content

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[arg-type]
        if self._excess:
            raise Refused(f"holds {self._excess}, which no slice needs")


def _opened(path: Path, most: int) -> _Watched:
    """Open a file; one whose content is deflated as if it were not, at most so many bytes of it."""
    file = _Watched(io.FileIO(path))  # whoever calls closes it
    start = file.read(2**16)
    end = _end_of_meta(start)
    if _DEFLATED not in start[:end]:
        file.seek(0)
        return file
    with file:
        file.seek(end)
        content = bytearray(start[:end].replace(_DEFLATED, _INFLATED))
        unpacker, most = zlib.decompressobj(-zlib.MAX_WBITS), most + len(content)
        while len(content) < most and not unpacker.eof:
            packed = unpacker.unconsumed_tail or file.read(2**16)
            if not packed:
                raise Refused("is damaged or cut short: its deflated content has no end")
            content += unpacker.decompress(packed, most - len(content))
    return _Watched(io.BytesIO(content))


def _end_of_meta(start: bytes) -> int:
    """Return where the file meta information ends, which alone is never deflated."""
    place = 132
    while start[place : place + 2] == b"\x02\0" and place + 12 <= len(start):
        if start[place + 4 : place + 6] in _LONG:
            place += 12 + int(struct.unpack_from("<I", start, place + 8)[0])
        else:
            place += 8 + int(struct.unpack_from("<H", start, place + 6)[0])
    return place


def _is_image(header: Any) -> bool:
    return "Rows" in header and not _MASKS.intersection(map(str, _values(header, "SOPClassUID")))


def _belongs(head: _Head, uid: str | None = None) -> bool:
    """Tell whether a file is an image, of one series if that is given."""
    with about(head.file):
        return _is_image(head.header) and uid in (None, _text(head.header, "SeriesInstanceUID"))


def _bounded(heads: Iterable[_Head]) -> Iterator[_Head]:
    """Give headers that are kept while the others are read, until they hold more together than any series needs."""
    items = inflated = 0
    for count, head in enumerate(heads, 1):
        items += head.items
        inflated += head.inflated
        for what, total, (first, each) in (
            ("items of sequences", items, _ITEMS_TOGETHER),
            ("bytes that were deflated", inflated, _INFLATED_TOGETHER),
        ):
            if count > 1 and total > (most := first + count * each):
                raise ValueError(
                    f"{head.file.parent} holds {count} images whose headers have {total:,} {what}; at most {most:,} "
                    "are read"
                )
        yield head


def _readable(path: Path) -> _Head:
    """Return the header of a file that a user named, or refuse it."""
    if path.name.upper() == _INDEX:
        raise Refused("is an index of DICOM files; give the folder of one series, or one of its files")
    head = _header(path)
    if not _is_image(head.header):
        kinds = _values(head.header, "SOPClassUID")
        name = _short(getattr(kinds[0], "name", kinds[0]), quoted=False) if kinds else "without SOP class"
        raise Refused(f"holds no image ({name}); give a file of a series of images")
    return head


def _only_series(folder: Path) -> list[_Head]:
    """Return the files and headers of the one series of images in a folder."""
    series: dict[str, list[_Head]] = defaultdict(list)
    files = files_in(folder)
    for head in _bounded(head for head in map(_header, files) if _belongs(head)):
        with about(head.file):
            series[_text(head.header, "SeriesInstanceUID")].append(head)
    with about(folder):
        if len(series) == 1:
            return next(iter(series.values()))
        if series:
            told = [
                f"{_described(group[0].header)} ({len(group)} files, one is {group[0].file.name})"
                for group in series.values()
            ]
            more = f" and {len(told) - 8} more" if len(told) > 8 else ""
            raise Refused(
                f"holds {len(series)} series: {', '.join(told[:8])}{more}; give one file of the one that is meant"
            )
        if files:
            raise Refused(f"holds {len(files)} DICOM files, but no image")
        hint = f", only an index ({_INDEX})" if (folder / _INDEX).exists() else ""
        raise Refused(f"is a folder that directly holds no DICOM files{hint}; give the folder of one series")


def _described(header: Any) -> str:
    for keyword in ("SeriesDescription", "ProtocolName"):
        values = _values(header, keyword)
        if values:
            return _short(values[0])
    return "'without description'"


# --- what a header says ---------------------------------------------------------------------------------


def _values(header: Any, keyword: str) -> list[Any]:
    """Return the values of an element, none of one that is missing or empty."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom converts on access, and fails in as many ways as there are types
        raise Refused(f"has a {keyword} that cannot be read") from None
    if value is None or (isinstance(value, (str, bytes)) and not value):
        return []
    return [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else list(value)


def _text(header: Any, keyword: str) -> str:
    """Return the value of an element that has at most one; an empty text where it has none."""
    values = _values(header, keyword)
    if len(values) > 1:
        raise Refused(f"has {len(values)} values of {keyword}; it must be one")
    return str(values[0]) if values else ""


def _numbers(header: Any, keyword: str) -> NDArray[np.float64]:
    """Return the values of an element as numbers; what overflows is infinite."""
    numbers = []
    for value in _values(header, keyword):
        try:
            numbers.append(float(value))
        except OverflowError:
            numbers.append(np.inf)
        except (TypeError, ValueError):
            raise Refused(f"has the {keyword} {_short(value)}; it must be a number") from None
    return np.array(numbers)


def _number(header: Any, keyword: str, default: float) -> float:
    """Return the one number of an element, the default where it is missing or empty."""
    values = _numbers(header, keyword)
    if len(values) > 1 or not np.isfinite(values).all():
        raise Refused(f"has the {keyword} {_listed(values)}; it must be one finite number")
    return float(values[0]) if len(values) else default


def _whole(header: Any, keyword: str, default: int, allowed: Sequence[int], *, what: str = "") -> int:
    """Return the one whole number of an element, one of those that are allowed."""
    value = _number(header, keyword, default)
    if value not in allowed:
        raise Refused(f"has {what or f'the {keyword}'} {value:g}; it must be {_range(allowed)}")
    return int(value)


def _range(allowed: Sequence[int]) -> str:
    if isinstance(allowed, range):
        return f"a whole number from {allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else str(allowed[0])
    return f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"


def _listed(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")


def _short(value: object, *, quoted: bool = True) -> str:
    """Quote what a file says: short, and without what would command a terminal."""
    try:
        text = repr(str(value))
    except Exception:  # a number of thousands of digits, for example
        text = f"'{type(value).__name__}'"
    text = text if len(text) <= 66 else f"{text[:62]}...'"
    return text if quoted else text[1:-1]


@dataclass(frozen=True)
class _Slice:
    """What is used of a slice: its place, how its pixels are stored, and what they mean."""

    file: Path
    header: Any
    rows: int
    columns: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: NDArray[np.float64]
    bits: int  # that a pixel takes
    stored: int  # of these, those that say its value
    high: int  # the last of those, counted from 0
    signed: bool
    slope: float
    intercept: float
    table: tuple[int, NDArray[np.float64]] | None  # the first stored value that it maps, and what it maps to
    padding: tuple[int, int] | None  # from and to which value, both included, a pixel is none
    compressed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored values."""
        return np.dtype(f"{'i' if self.signed else 'u'}{max(self.bits // 8, 1)}")

    @property
    def plain(self) -> bool:
        """Whether stored values are what is meant."""
        return self.table is None and self.slope == 1 and self.intercept == 0

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Least and largest value that is stored, rescaled."""
        bits = self.bits if self.compressed else self.stored  # a codestream says its own precision
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)
        low, high = sorted(end * self.slope + self.intercept for end in ends)
        return low, high


def _slice(head: _Head) -> _Slice:
    """Check everything of a header that is used, and return it."""
    header = head.header
    with about(head.file), parsing():
        if _whole(header, "NumberOfFrames", 1, range(2**31)) > 1 or "PerFrameFunctionalGroupsSequence" in header:
            raise Refused(
                "holds several frames (enhanced DICOM), which pynca does not read; convert it, as with dcm2niix"
            )
        colours = _text(header, "PhotometricInterpretation")
        samples = _number(header, "SamplesPerPixel", 1)
        if samples != 1 or colours not in ("MONOCHROME2", "MONOCHROME1"):
            told = _short(colours, quoted=False) if colours else "without photometric interpretation"
            several = f", {samples:g} samples a pixel" if told.startswith("MONOCHROME") else ""
            raise Refused(f"is not grey ({told}{several})")
        if colours == "MONOCHROME1":
            raise Refused("stores grey inverted (MONOCHROME1); convert it to MONOCHROME2")
        place = {tag: _place(header, tag, count) for tag, count in _PLACE.items()}
        bits = _whole(header, "BitsAllocated", 0, _BITS)
        stored = _whole(header, "BitsStored", bits, range(1, bits + 1))
        signed = _whole(header, "PixelRepresentation", 0, (0, 1)) == 1
        compressed = _is_compressed(header)
        slope = _number(header, "RescaleSlope", 1)
        if slope == 0:
            raise Refused("has the RescaleSlope 0, with which all of its pixels would be the same")
        one = _Slice(
            file=head.file,
            header=header,
            rows=_whole(header, "Rows", 0, range(1, 65536), what=_ALIKE_IN_A_SERIES["rows"]),
            columns=_whole(header, "Columns", 0, range(1, 65536), what=_ALIKE_IN_A_SERIES["columns"]),
            position=place["ImagePositionPatient"],
            orientation=place["ImageOrientationPatient"],
            spacing=place["PixelSpacing"],
            bits=bits,
            stored=stored,
            high=_whole(header, "HighBit", stored - 1, range(stored - 1, bits)),
            signed=signed,
            slope=slope,
            intercept=_number(header, "RescaleIntercept", 0),
            table=_table(header, signed=signed),
            padding=_padding(header, bits, signed=signed),
            compressed=compressed,
        )
        _check_length(one, head)
    return one


_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}


def _place(header: Any, tag: str, count: int) -> NDArray[np.float64]:
    values = _numbers(header, tag)
    if len(values) != count or not np.isfinite(values).all():
        raise Refused(f"does not say where it lies ({tag} has {len(values)} values, not {count} finite ones)")
    if tag == "PixelSpacing" and not ((values >= _SIZES[0]) & (values <= _SIZES[1])).all():
        raise Refused(
            f"has the pixel spacing {_listed(values)}; it must be above 0, between {_SIZES[0]:g} and {_SIZES[1]:g} mm"
        )
    if np.abs(values).max() > _FAR:
        raise Refused(f"does not say where it lies ({tag} is {_listed(values)}, {_FAR:g} mm at most are a place)")
    return values


def _is_compressed(header: Any) -> bool:
    return bool(getattr(_syntax(header), "is_compressed", False)) and not _is_deflated(header)


def _syntax(header: Any) -> Any:
    return header.file_meta.get("TransferSyntaxUID")


def _is_deflated(header: Any) -> bool:
    return str(_syntax(header)) == _DEFLATED.decode()


def _check_length(one: _Slice, head: _Head) -> None:
    """Check before memory is taken for them that a file can hold the pixels that its header announces."""
    if head.announced is None:
        raise Refused("holds no pixels")
    need = -(-one.rows * one.columns * one.bits // 8)
    if not one.compressed and 2 * need <= head.announced < 2**32 - 1 and need > 1:
        raise Refused(f"has pixels of {head.announced} bytes, but by its rows, columns and bits they take {need}")
    if one.compressed:
        # Of RLE, two bytes make 128 at most; what JPEG makes of its bytes is said by its own header
        most = head.there * 64 if _is_rle(one.header) else need
    else:
        most = min(head.announced, head.there) if head.announced < 2**32 - 1 else head.there
    if need > most:
        raise Refused(f"is damaged or cut short: its pixels take {need} bytes, but there are at most {most}")


def _is_rle(header: Any) -> bool:
    return str(_syntax(header)) == "1.2.840.10008.1.2.5"


def _table(header: Any, *, signed: bool) -> tuple[int, NDArray[np.float64]] | None:
    """Return the modality's table of values, which stands in place of a slope and an intercept."""
    items = _values(header, "ModalityLUTSequence")
    if not items:
        return None
    item = items[0]
    descriptor = _numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not np.isfinite(descriptor).all() or (descriptor != np.rint(descriptor)).any():
        raise Refused(f"has a ModalityLUTSequence with the LUTDescriptor {_listed(descriptor)}; it must be 3 numbers")
    count, first, _ = (int(n) for n in descriptor)
    count = count or 2**16
    first -= 2**16 if signed and first >= 2**15 else 0
    values = item.get("LUTData")
    if isinstance(values, bytes):
        order = "<" if header.original_encoding[1] is not False else ">"
        values = np.frombuffer(values[: len(values) & ~1], "u1" if len(values) == count else f"{order}u2")
    data = np.atleast_1d(np.asarray([] if values is None else values, np.float64))
    if not 1 <= count <= 2**16 or len(data) < count:
        raise Refused(f"has a ModalityLUTSequence of {count} values, but {len(data)} are there")
    return first, data[:count]


def _padding(header: Any, bits: int, *, signed: bool) -> tuple[int, int] | None:
    """Return which stored values mean that there was nothing, from the least to the largest; None for none."""
    if not _values(header, "PixelPaddingValue"):
        return None
    ends = [_number(header, "PixelPaddingValue", 0)]
    ends.append(_number(header, "PixelPaddingRangeLimit", ends[0]))
    # Many a writer stores -2000 as 63536 or the other way round: the bits say what is meant
    whole = [int(end) % 2**bits for end in ends]
    low, high = sorted(end - 2**bits if signed and end >= 2 ** (bits - 1) else end for end in whole)
    return low, high


# --- where the slices are ---------------------------------------------------------------------------------

_ALIKE_IN_A_SERIES = {
    "rows": "the number of rows",
    "columns": "the number of columns",
    "spacing": "the pixel spacing",
    "orientation": "the orientation",
}


def _sorted(series: Sequence[_Slice]) -> list[_Slice]:
    """Return the slices by their position along the normal, or refuse those that make no volume."""
    first = series[0]
    for one in series:
        for field, what in _ALIKE_IN_A_SERIES.items():
            mine, theirs = (np.atleast_1d(getattr(which, field)) for which in (one, first))
            if not np.allclose(mine, theirs, rtol=0, atol=_ALIKE):
                raise ValueError(
                    f"{one.file} has {what} {_listed(mine)}, but {first.file.name} of the same series {_listed(theirs)}"
                )
    normal = _normal(first)
    ordered = sorted(series, key=lambda one: (float(normal @ one.position), one.file))
    _check_positions(ordered, normal)
    return ordered


def _normal(one: _Slice) -> NDArray[np.float64]:
    directions = one.orientation.reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > _SQUARE:
        raise Refused("has an image orientation that is not two directions at right angles")
    return np.cross(*directions)


def _check_positions(series: Sequence[_Slice], normal: NDArray[np.float64]) -> None:
    """Refuse slices that share a position, that miss some between them or that do not lie on a line."""
    if len(series) == 1:
        return
    names = [one.file.name for one in series]
    positions = np.array([one.position for one in series])
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
    if usual > _SIZES[1]:
        raise Refused(f"has slices that are {usual:.4g} mm apart; at most {_SIZES[1]:g} mm can be")


def _step(slices: Sequence[_Slice]) -> NDArray[np.float64]:
    """Return how far it is from one slice to the next."""
    normal = _normal(slices[0])
    if len(slices) == 1:
        return (_thickness(slices) or 1.0) * normal
    step: NDArray[np.float64] = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    return step if _shift(step, normal) else (step @ normal) * normal


def _shift(step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return how far a step goes within the plane; 0 where rounding explains it."""
    aside = float(np.linalg.norm(step - (step @ normal) * normal))
    return aside if aside > _TILTED * np.linalg.norm(step) else 0.0


def _thickness(slices: Sequence[_Slice]) -> float | None:
    """Return how thick a slice is in mm: the distance of neighbours; None of a single one that does not say it."""
    if len(slices) > 1:
        return float(_normal(slices[0]) @ (slices[-1].position - slices[0].position)) / (len(slices) - 1)
    header = slices[0].header
    said = (_said(header, keyword) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return next((mm for mm in said if mm is not None), None)


def _said(header: Any, keyword: str) -> float | None:
    """Return a size in mm that a header says, if it can be one."""
    try:
        values = _numbers(header, keyword)
    except Refused:
        return None
    return float(values[0]) if len(values) == 1 and _SIZES[0] <= values[0] <= _SIZES[1] else None


def _affine(slices: Sequence[_Slice]) -> Affine:
    """Return where (column, row, slice) lies, sheared where the gantry was tilted."""
    first = slices[0]
    rows, columns = first.orientation.reshape(2, 3)
    between_rows, between_columns = first.spacing
    affine = np.eye(4)
    for axis, vector in enumerate((rows * between_columns, columns * between_rows, _step(slices), first.position)):
        affine[:3, axis] = _LPS_TO_RAS * vector + 0.0  # no negative zeros
    return checked_affine(affine)


def _doubts(slices: Sequence[_Slice]) -> list[str]:
    """Say what a reader of the result has to know of where the slices lie."""
    thickness = _thickness(slices)
    if thickness is None:
        return [
            "does not say how thick its one slice is: no volume in ml is told, and 1 mm stands in the geometry of "
            "what is written"
        ]
    if len(slices) == 1:
        return []
    doubts = []
    step, normal = _step(slices), _normal(slices[0])
    if shift := _shift(step, normal):
        doubts.append(
            f"was scanned with the gantry tilted by {np.degrees(np.arctan2(shift, step @ normal)):.3g} degrees: its "
            "affine is sheared, which viewers built on ITK refuse in NIfTI; a mask written as DICOM (.dcm) lies right "
            "in all of them"
        )
    said = _said(slices[0].header, "SpacingBetweenSlices")
    if said is not None and not np.isclose(said, (thickness, np.linalg.norm(step)), rtol=_UNEVEN).any():
        doubts.append(
            f"says that its slices are {said:.4g} mm apart (SpacingBetweenSlices), but by their positions they are "
            f"{thickness:.4g} mm apart; the positions are used"
        )
    return doubts


# --- pixels -----------------------------------------------------------------------------------------------


def _pixels(slices: Sequence[_Slice]) -> NDArray[Any]:
    """Return (column, row, slice): stored values where none is rescaled, else rescaled ones.

    Where there was nothing (PixelPaddingValue), the least value that was measured stands.
    """
    dtype = _dtype(slices)
    data = np.empty((slices[0].columns, slices[0].rows, len(slices)), dtype, order="F")
    padded: dict[int, NDArray[np.bool_]] = {}
    for k, one in enumerate(slices):
        with about(one.file), parsing(), np.errstate(all="ignore"):  # check_finite tells of what overflows
            raw = _raw(one)
            stored = raw if one.compressed and not _is_rle(one.header) else _used_bits(raw, one)
            data[:, :, k] = _meant(stored, one, dtype).T
            if one.padding is not None:
                low, high = one.padding
                away = ((raw >= low) & (raw <= high)) | ((stored >= low) & (stored <= high))
                if away.any():
                    padded[k] = away.T
    if padded:
        _fill(data, padded)
    return data


def _dtype(slices: Sequence[_Slice]) -> np.dtype[Any]:
    """Return what holds all values of a series, rescaled ones exactly where they are whole."""
    if all(one.plain for one in slices):
        return np.dtype(np.result_type(*{one.dtype for one in slices}))
    numbers = np.array([(one.slope, one.intercept, *one.limits) for one in slices])
    whole = all(one.table is None for one in slices) and (numbers == np.rint(numbers)).all()
    return np.dtype(np.int32 if whole and (np.abs(numbers) < 2**31).all() else np.float64)


def _raw(one: _Slice) -> NDArray[Any]:
    """Return the pixels of a slice (row, column) as they are stored, with bits that are not theirs."""
    pydicom = _pydicom()
    need = one.rows * one.columns * max(one.bits // 8, 1)
    with _opened(one.file, need + 2 * _MOST_HEADER) as file:
        content = pydicom.dcmread(file)
    if "PixelData" not in content:
        raise Refused("is damaged or cut short: its pixels cannot be told from what follows them")
    if one.compressed:
        syntax = _syntax(content)
        if _is_rle(content):
            return _unpacked(_frame(content), one)
        if not _decodable(syntax):
            raise Refused(
                f"is compressed as {_short(syntax.name, quoted=False)}, for which no decoder is installed; "
                "`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg` brings those of JPEG"
            )
        _check_codestream(_frame(content), one)
    elif one.bits > 1 and content.original_encoding[1] is not False:
        # Not by pydicom, which takes the lowest bits for the pixel's
        return np.frombuffer(content.PixelData, one.dtype.newbyteorder("<"), one.rows * one.columns).reshape(
            one.rows, one.columns
        )
    return native(np.asarray(content.pixel_array)).reshape(one.rows, one.columns)


def _frame(content: Any) -> bytes:
    """Return the compressed bytes of the one frame."""
    return bytes(next(_pydicom().encaps.generate_frames(content.PixelData, number_of_frames=1)))


def _decodable(syntax: Any) -> bool:
    try:
        return bool(_pydicom().pixels.get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _unpacked(frame: bytes, one: _Slice) -> NDArray[Any]:
    """Unpack RLE. pydicom's decoder unpacks whatever is there; this one stops where the pixels end."""
    count, size = one.bits // 8, one.rows * one.columns
    planes, *offsets = struct.unpack("<16I", frame[:64])
    if planes != count or one.bits % 8:
        raise Refused(f"is damaged or cut short: its RLE has {planes} segments, {one.bits} bits need {one.bits // 8}")
    bounds = [*offsets[:count], len(frame)]
    values = np.empty((size, count), np.uint8)
    for k in range(count):  # the highest byte comes first
        segment = _unpacked_segment(frame[bounds[k] : bounds[k + 1]], size)
        if len(segment) < size:
            raise Refused(f"is damaged or cut short: an RLE segment makes {len(segment)} bytes of {size}")
        values[:, k] = np.frombuffer(segment, np.uint8, size)
    return native(values.view(one.dtype.newbyteorder(">"))).reshape(one.rows, one.columns)


def _unpacked_segment(packed: bytes, size: int) -> bytearray:
    found, place = bytearray(), 0
    while len(found) < size and place + 1 < len(packed):
        count = packed[place]
        if count < 128:
            found += packed[place + 1 : place + 2 + count]
            place += 2 + count
        elif count > 128:
            found += packed[place + 1 : place + 2] * (257 - count)
            place += 2
        else:
            place += 1
    return found


def _check_codestream(frame: bytes, one: _Slice) -> None:
    """Refuse a codestream that says another size than its header, before a decoder takes memory for it."""
    size = _jpeg2000_size(frame) if frame.find(b"\xff\x4f\xff\x51", 0, 256) >= 0 else _jpeg_size(frame)
    if size is None:
        raise Refused("is damaged or cut short: its compressed pixels do not say how many there are")
    if size != (one.rows, one.columns, 1):
        raise Refused(
            f"has {one.rows} rows and {one.columns} columns of grey by its header, but its compressed pixels have "
            f"{size[0]} rows, {size[1]} columns and {size[2]} channels"
        )


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    place = frame.find(b"\xff\x4f\xff\x51", 0, 256) + 4
    if len(frame) < place + 38:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, place + 4)
    return y1 - y0, x1 - x0, int(struct.unpack_from(">H", frame, place + 36)[0])


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and channels of JPEG or JPEG-LS, from the header of its frame."""
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, channels = struct.unpack_from(">HHB", frame, place + 5)
            return rows, columns, channels
        place += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", frame, place + 2)[0])
    return None


def _used_bits(raw: NDArray[Any], one: _Slice) -> NDArray[Any]:
    """Return the bits that say a pixel's value: others can hold overlays, or anything."""
    if one.bits == 1 or one.stored == one.bits:
        return raw
    up = native(raw).view(f"u{raw.itemsize}") << (one.bits - 1 - one.high)
    return up.view(one.dtype) >> (one.bits - one.stored)


def _meant(stored: NDArray[Any], one: _Slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return what stored values mean, as their slice's header says."""
    if one.table is not None:
        first, values = one.table
        return values[np.clip(stored.astype(np.int64) - first, 0, len(values) - 1)]
    if one.plain:
        return stored.astype(dtype, copy=False)
    if dtype.kind == "i":
        return np.asarray(stored.astype(dtype) * dtype.type(one.slope) + dtype.type(one.intercept))
    rescaled: NDArray[Any] = stored * np.float64(one.slope) + one.intercept
    return rescaled


def _fill(data: NDArray[Any], padded: dict[int, NDArray[np.bool_]]) -> None:
    """Give padded pixels the least value of all others."""
    least = []
    for k in range(data.shape[2]):
        plane = data[:, :, k]
        measured = plane[~padded[k]] if k in padded else plane
        if measured.size:
            least.append(measured.min())
    for k, away in padded.items():
        if least:
            data[:, :, k][away] = min(least)
