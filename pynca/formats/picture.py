"""Pictures: PNG, TIFF and JPEG in grey; masks as indexed pictures whose value is the label."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO, UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..files import open_input
from ..seal import PNG_CHUNK, TEXT
from .base import DEFLATE, Refused, Volume, about, colour_of, optional, parsing

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
LOSSY = (".jpg", ".jpeg")
PAGED = (".tif", ".tiff")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GREY = ("L", "I", "I;16", "I;16B", "I;16L")
_SPREAD = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies grey of few bits
_PNG_FULL = 65535
_PNG_GREY, _PNG_PALETTE = 0, 3
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # of the types of colour that have several
_COLOUR = 4  # bytes of a pixel of any number of channels above 1, as Pillow holds it
_BLOCK_PIXELS = 2**22  # what Pillow unpacked is copied so many pixels at a time

Array = NDArray[Any]


@dataclass(frozen=True)
class _Picture:
    """What headers say of a picture as displayed, and how its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array]
    doubt: str = ""
    unpacked: int = 0  # bytes that stand beside the values while those are unpacked


def read(path: Path) -> Volume:
    """Read a grey picture, (row, column), or a TIFF of several pages, (row, column, page)."""
    return _read(path, label=False)


def read_label(path: Path) -> Volume:
    """Read a picture of labels: its indices where it has a palette, else its values as they are stored."""
    return _read(path, label=True)


def outline(path: Path) -> Volume:
    """Read the size of a picture from its headers alone: the data take no memory and are zero."""
    with _opened(path, label=False) as picture:
        nothing = np.broadcast_to(picture.dtype.type(0), picture.shape)
        return Volume(nothing, None, None, str(path), picture=True, unpacked=picture.unpacked)


def write_mask(path: Path, pages: NDArray[np.uint8]) -> None:
    """Write labels (page, row, column) as indices into a palette that makes them visible."""
    palette = [part for label in range(256) for part in colour_of(label)]
    images = []
    for page in pages:
        image = _pillow().frombytes("P", page.shape[::-1], page.tobytes())
        image.putpalette(palette)
        images.append(image)
    _write(path, images)


def write_map(path: Path, pages: NDArray[np.float32]) -> None:
    """Write values (page, row, column): float32 as TIFF; as PNG, 0 to 1 in 16 bits."""
    if path.suffix.lower() in PAGED:
        images = [_pillow().frombytes("F", page.shape[::-1], page.astype("<f4").tobytes()) for page in pages]
    else:
        low, high = pages.min(initial=0), pages.max(initial=0)
        if not (low >= 0 and high <= 1):
            raise Refused(f"cannot hold values from {low:g} to {high:g}, a PNG has 0 to 1; write .tif or .npy")
        whole = np.rint(pages.astype(np.float64) * _PNG_FULL).astype("<u2")
        images = [_pillow().frombytes("I;16", page.shape[::-1], page.tobytes()) for page in whole]
    _write(path, images)


def _pillow(module: str = "Image") -> Any:
    return optional(f"PIL.{module}", "image", "a picture")


# --- reading ------------------------------------------------------------------------------------------------


def _read(path: Path, *, label: bool) -> Volume:
    with _opened(path, label=label) as picture:
        data = picture.load()
    if picture.doubt:
        warnings.warn(f"{path} {picture.doubt}", stacklevel=4)
    return Volume(data, None, None, str(path), picture=True)


@contextmanager
def _opened(path: Path, *, label: bool) -> Iterator[_Picture]:
    """Open a picture, whose content says what it is; what fails while it is open is said of it."""
    from . import tiff

    _pillow()  # also where a TIFF could do without, so that what is missing does not depend on the file
    with open_input(path) as file, about(path), parsing():
        head = file.read(8)
        if head == _PNG:
            yield _png(file, label=label)
        elif head.startswith(_JPEG):
            yield _jpeg(file, label=label)
        elif head.startswith(tiff.MAGIC):
            yield _tiff(file, label=label)
        else:
            raise Refused("is not a PNG, TIFF or JPEG picture")


def _tiff(file: BinaryIO, *, label: bool) -> _Picture:
    from . import tiff

    reader = tiff.Reader(file)
    pages = reader.pages()
    if len({(page.shape, page.kept(label=label)) for page in pages}) > 1:
        raise Refused("has pages of different size or kind; those of a volume are alike")

    shape = pages[0].shape if len(pages) == 1 else (*pages[0].shape, len(pages))
    dtype = pages[0].kept(label=label)

    def load() -> Array:
        for page in pages:
            reader.check(page, label=label)
        data = np.zeros(shape, dtype)
        for number, page in enumerate(pages):
            reader.fill(data.reshape(*page.shape, -1)[..., number], page, label=label)
        return data

    return _Picture(shape, dtype, load, reader.doubt, max(map(reader.unpacked, pages)))


def _png(file: BinaryIO, *, label: bool) -> _Picture:
    """Pillow is given the chunks of the picture alone: texts, profiles and the like may unpack to anything."""
    places: dict[bytes, tuple[int, int]] = {}
    kept: list[tuple[int, int]] = []  # stretches of the file
    for kind, start, length in _chunks(file):
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"eXIf"):
            first = places.setdefault(kind, (start, length)) == (start, length)
            if kind == b"IDAT" or (first and kind not in (b"acTL", b"eXIf")):
                _keep(kept, start - 8, length + 12)

    def content(kind: bytes, most: int) -> bytes:
        start, length = places.get(kind, (0, 0))
        return _bytes(file, start, min(length, most))

    header, frames = content(b"IHDR", 13), int.from_bytes(content(b"acTL", 4), "big")
    if len(header) < 13 or kept[0][0] != len(_PNG):
        raise Refused("is damaged or cut short: its header is missing")
    if frames > 1:
        raise Refused(f"is a film of {frames} pictures; it must be a single one, or a TIFF of several pages")
    size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    dtype = np.dtype("u2" if header[8] == 16 else "u1")
    least = size[0] * size[1] * header[8] * _PNG_CHANNELS.get(header[9], 1) // 8
    unpacked = _pixel_bytes(dtype.itemsize if header[9] in (_PNG_GREY, _PNG_PALETTE) else _COLOUR, size, file)

    def clean() -> bytes:
        if least > DEFLATE * file.seek(0, 2):
            raise Refused(f"is damaged or cut short: its pixels take {least:,} bytes, and it cannot hold as many")
        return _PNG + b"".join(_bytes(file, *place) for place in kept)

    picture = _by_pillow("PngImagePlugin", "PngImageFile", clean, size, dtype, content(b"eXIf", 2**20), label=label)
    return replace(picture, unpacked=unpacked)


def _jpeg(file: BinaryIO, *, label: bool) -> _Picture:
    """Pillow is given the picture alone, without further ones, profiles and the like."""
    if label:
        raise Refused("is a JPEG, whose values are not exact; a label must be PNG, TIFF, .npy or NIfTI")
    size, channels, exif, kept, whole = (0, 0), 0, b"", [(0, 2)], False
    for marker, start, length in _segments(file):
        if marker == 0xE1 and not exif and _bytes(file, start + 4, 6) == b"Exif\0\0":
            exif = _bytes(file, start + 4, length - 4)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size != (0, 0):
                raise Refused("is damaged or cut short: it states its size twice")
            frame = _bytes(file, start + 5, 5)
            size, channels = (int.from_bytes(frame[2:4], "big"), int.from_bytes(frame[:2], "big")), frame[-1]
            whole = marker not in (0xC0, 0xC1) or channels > 1
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            _keep(kept, start, length)

    def clean() -> bytes:
        return b"".join(_bytes(file, *place) for place in kept)

    picture = _by_pillow("JpegImagePlugin", "JpegImageFile", clean, size, np.dtype("u1"), exif, label=label)
    # What comes in several scans stands as coefficients until the last of them
    coefficients = 2 * channels * size[0] * size[1] if whole else 0
    return replace(picture, unpacked=_pixel_bytes(1 if channels == 1 else _COLOUR, size, file) + coefficients)


def _pixel_bytes(each: int, size: tuple[int, int], file: BinaryIO) -> int:
    """Return what Pillow holds of a picture: the file's content, its pixels, and a block of them that is copied.

    Rows begin at multiples of four bytes, and each has an address.
    """
    rows = size[1] * (-(-each * size[0] // 4) * 4 + 8)
    return file.seek(0, 2) + rows + 2 * _COLOUR * min(size[0] * size[1], _BLOCK_PIXELS)


def _bytes(file: BinaryIO, start: int, length: int) -> bytes:
    """Read a stretch of a file, or what there is of it: memory is taken for no more."""
    there = file.seek(0, 2) - start
    file.seek(start)
    return file.read(max(min(length, there), 0))


def _keep(stretches: list[tuple[int, int]], start: int, length: int) -> None:
    """Add a stretch to others, or make the last one longer."""
    if stretches and sum(stretches[-1]) == start:
        start, length = stretches[-1][0], stretches.pop()[1] + length
    stretches.append((start, length))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Give kind, start of content and length of each chunk of a PNG; Pillow says what is wrong with the last."""
    place = len(_PNG)
    while len(head := _bytes(file, place, 8)) == 8:
        kind, length = head[4:], int.from_bytes(head[:4], "big")
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += length + 12


def _segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Give marker, start and length of each segment of a JPEG; the last is all from the first scan on."""
    place, end = 2, file.seek(0, 2)
    while place < end:
        head = _bytes(file, place, 2**12)
        filling = len(head) - len(head.lstrip(b"\xff"))
        if filling > 1:  # any number of them may stand before a marker
            place += filling - 1
            continue
        marker = head[1] if filling and len(head) > 3 else 0
        if marker in (0, 0xDA):  # or what Pillow will refuse
            yield 0xDA, place, end - place
            return
        length = 2 if marker == 0x01 or 0xD0 <= marker <= 0xD9 else 2 + int.from_bytes(head[2:4], "big")
        yield marker, place, length
        place += length


# --- what Pillow reads --------------------------------------------------------------------------------------


def _by_pillow(
    module: str,
    kind: str,
    clean: Callable[[], bytes],
    size: tuple[int, int],
    dtype: np.dtype[Any],
    exif: bytes,
    *,
    label: bool,
) -> _Picture:
    """Describe a picture of some columns and rows that a class of Pillow reads; `open` would judge its size."""
    from . import tiff

    if 0 in size:
        raise Refused("is damaged or cut short: it has no pixels")
    orientation = _orientation(exif)
    shape = size if orientation > 4 else size[::-1]

    def load() -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what does not matter here
            with getattr(_pillow(module), kind)(BytesIO(clean())) as image:
                if image.size != size:
                    raise Refused("is damaged or cut short: it states its size twice")
                tone = _index(image) if label else _tone(image)
                image.load()
                data = np.zeros(shape, dtype)
                stored = tiff.as_stored(data, orientation)
                rows = max(1, _BLOCK_PIXELS // size[0])
                for top in range(0, size[1], rows):
                    part = image.crop((0, top, size[0], min(top + rows, size[1]))) if rows < size[1] else image
                    stored[top : top + rows] = tone(np.asarray(part))
        return data

    return _Picture(shape, dtype, load)


def _orientation(exif: bytes) -> int:
    """Return how a picture is to be turned for display, 1 to 8; 1 where that is missing or damaged."""
    from . import tiff

    try:
        return tiff.Reader(BytesIO(exif.removeprefix(b"Exif\0\0"))).orientation()
    except Exception:  # viewers do not mind
        return 1


def _tone(image: Any) -> Callable[[Array], Array]:
    """Return what makes the values of a picture grey, refusing what has colours or would lose precision."""
    from . import tiff

    # Pillow gives these 8 bits a channel, whatever was stored
    if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile):
        raise Refused("has several channels of 16 bits; save it as a 16-bit grey picture")
    if image.mode == "P":
        return tiff.palette(np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3))
    if image.mode not in (*_GREY, *_TONES):
        raise Refused(f"is a picture of mode {image.mode}; it must be grey, with 8, 16 or 32 bits")
    return _TONES.get(image.mode, lambda values: values)


def _index(image: Any) -> Callable[[Array], Array]:
    """Return what makes the values of a picture of labels those that are stored."""
    if image.mode not in ("1", "P", *_GREY):
        raise Refused(f"has colours (mode {image.mode}); a label is a picture of indices or of one channel")
    spread = _SPREAD.get(str(image.tile[0][3]), 1) if image.tile else 1
    return lambda values: values // spread if spread > 1 else values


def _alike(values: Array) -> Array:
    if not (values[..., :1] == values[..., :3]).all():
        raise Refused("has colours; it must be grey, or red, green and blue alike")
    return values[..., 0]


_TONES: dict[str, Callable[[Array], Array]] = {
    "1": lambda values: values * np.uint8(255),
    "LA": lambda values: values[..., 0],
    "RGB": _alike,
    "RGBA": _alike,
}


# --- writing ------------------------------------------------------------------------------------------------


def _write(path: Path, images: list[Any]) -> None:
    """Write pictures, with a seal where formats name a program."""
    with open(path, "w+b") as file:
        stream = _Plain(file)
        if path.suffix.lower() in PAGED:
            images[0].save(stream, format="TIFF", save_all=True, append_images=images[1:], software=TEXT)
        else:
            chunk = _pillow("PngImagePlugin").PngInfo()
            chunk.add(*PNG_CHUNK)
            images[0].save(stream, format="PNG", pnginfo=chunk)


class _Plain:
    """A file without a number, so that Pillow writes through Python, which says what the disk says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def fileno(self) -> int:
        raise UnsupportedOperation("fileno")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
