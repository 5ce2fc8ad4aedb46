"""TIFF: pages of numbers of any kind, in strips or tiles. Pillow unpacks what zlib does not.

Pillow alone knows a few kinds of numbers, and turns some into colours on the way. Everything that a header says is
checked before memory is taken for it.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from math import ceil
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .base import Refused, optional

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 65535
_MAX_TAGS = 65535
_MAX_SIDE = 2**31 - 1
_MAX_SAMPLES = 16  # so that a page unpacks to no more than so many times its grey
_PACKED_BYTES = 2**15  # are unpacked at a time
_BLOCK_BYTES = 2**22  # rows are turned into numbers so many bytes at a time
_LARGE_STACK = 2**30  # bytes
_TILE_PIXELS = 2**24  # a tile may be larger than the page, but not without limit

_TYPES = dict(
    zip(
        (1, 2, 3, 4, 6, 7, 8, 9, 13, 16, 17, 18),
        ("u1", "u1", "u2", "u4", "i1", "u1", "i2", "i4", "u4", "u8", "i8", "u8"),
        strict=True,
    )
)
_NUMBERS = {  # tag, and what holds without it
    "subfile": (254, 0),
    "old_subfile": (255, 1),
    "width": (256, 0),
    "height": (257, 0),
    "bits": (258, 1),
    "compression": (259, 1),
    "photometric": (262, -1),
    "fill_order": (266, 1),
    "orientation": (274, 1),
    "samples": (277, 1),
    "rows": (278, 0),
    "planar": (284, 1),
    "predictor": (317, 1),
    "tile_width": (322, 0),
    "tile_height": (323, 0),
    "sample_format": (339, 1),
}
_LISTS = {
    "description": 270,
    "strip_offsets": 273,
    "strip_counts": 279,
    "colours": 320,
    "tile_offsets": 324,
    "tile_counts": 325,
    "extra": 338,
    "tables": 347,
}
_COPIED = (292, 293, 530)  # options of fax and of colours in JPEG
_WANTED = {*(tag for tag, _ in _NUMBERS.values()), *_LISTS.values(), *_COPIED}

_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_BITS = {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
_NAMES = {"u": "whole numbers", "i": "signed numbers", "f": "floating-point numbers"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_MODES = {4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA", 34892: "raw"}
_ALPHA = (1, 2)
_NONE, _JPEG = 1, 7
_DEFLATE = (8, 32946)
_FAX = (2, 3, 4)
_BYTES = (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard
# How many times what a strip or tile unpacks to stands meanwhile: what zlib gives is moved as it grows; Pillow copies
# twice what it holds, which is a byte for a bit, and four bytes for three colours
_COPIES = {**dict.fromkeys(_DEFLATE, 2), **dict.fromkeys(_BYTES, 3), **dict.fromkeys(_FAX, 24), _JPEG: 4}
_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))

_AXES = {  # of a stack, as messages, ImageJ and OME call them
    "channels": ("channels", "SizeC"),
    "slices": ("slices", "SizeZ"),
    "time points": ("frames", "SizeT"),
}

Array = NDArray[Any]
Place = tuple[int, int, int]  # of a tag: type, count, and where the value or its address stands


# --- pages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """What a directory says of its picture; tags of several values stay where they are until they are asked for."""

    subfile: int
    old_subfile: int
    width: int
    height: int
    bits: int
    compression: int
    photometric: int
    fill_order: int
    orientation: int
    samples: int
    rows: int
    planar: int
    predictor: int
    tile_width: int
    tile_height: int
    sample_format: int
    lists: dict[int, Place]
    shift: int = 0  # of the data in bytes, for a page of a stack that has one directory

    @property
    def tiled(self) -> bool:
        """Whether it has tiles instead of strips."""
        return self.tile_width > 0

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a tile or strip."""
        if self.tiled:
            return self.tile_height, self.tile_width
        return min(self.rows or self.height, self.height), self.width

    @property
    def interleaved(self) -> int:
        """Samples that stand beside each other in a strip or tile."""
        return 1 if self.planar == 2 else self.samples

    def row_bytes(self, columns: int) -> int:
        """Return how many bytes a row of so many columns takes, unpacked."""
        return -(-columns * self.interleaved * self.bits // 8)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers as they are stored, in the machine's order of bytes."""
        size = self.bits // 8 if self.bits in (8, 16, 32, 64) else 1 if self.bits < 8 else 2
        return np.dtype(f"{_KINDS[self.sample_format]}{size}")

    def kept(self, *, label: bool) -> np.dtype[Any]:
        """Of the numbers as they are returned: a palette of an image gives eight bits."""
        return np.dtype("u1") if self.photometric == _PALETTE and not label else self.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as displayed."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


class Reader:
    """A TIFF file: its pages, and their numbers.

    Parameters
    ----------
    file : binary file
        At its start, and seekable.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        head = self._at(0, 4)
        self._order = "<" if head[:1] == b"I" else ">"
        self._big = b"+" in head
        self._room = 8 if self._big else 4  # of a directory for values, or for the address of more
        if head not in MAGIC:
            raise Refused("is not a PNG, TIFF or JPEG picture")
        self.doubt = ""  # what a user should be told, as a sentence without subject
        self._first = self._number(8, 8) if self._big else self._number(4, 4)

    def orientation(self) -> int:
        """Return the tag of the first directory, 1 to 8."""
        return self._directory(self._first)[0]["orientation"]

    def pages(self) -> list[Page]:
        """List the pages that are pictures, not smaller copies or masks of others; refuse those that cannot be read."""
        pages: list[Page] = []
        offset, read, seen = self._first, 0, set[int]()
        while offset:
            if offset in seen:
                raise Refused("is damaged or cut short: its directories refer to each other in a circle")
            if len(pages) == MAX_PAGES:
                raise Refused(f"has more than {MAX_PAGES:,} pages")
            seen.add(offset)
            numbers, lists, following, length = self._directory(offset)
            read += length
            if read > self._size:
                raise Refused("is damaged or cut short: its directories overlap")
            pages.append(Page(**numbers, lists=lists))
            offset = following
        if not pages:
            raise Refused("is damaged or cut short: it has no page")
        whole = [page for page in pages if not page.subfile & 5 and page.old_subfile != 2] or pages
        return self._stack([_checked(page) for page in whole])

    def check(self, page: Page, *, label: bool) -> None:
        """Refuse a page that is no grey picture, or no label, or lacks strips, before memory is taken for it."""
        if label:
            _check_label(page)
        else:
            _check_image(page, self._list(page, "extra", page.samples).tolist())
        next(self._blocks(page))

    def unpacked(self, page: Page) -> int:
        """Return how many bytes stand beside the values while a strip or tile is unpacked; 0 of one that is not packed.

        A tile can be larger than its page, and hold channels of which none is kept.
        """
        if page.compression == _NONE:
            return 0
        rows, columns = page.block
        return self._size + _COPIES[page.compression] * rows * page.row_bytes(columns) + 4 * _BLOCK_BYTES

    def fill(self, out: Array, page: Page, *, label: bool) -> None:
        """Write the grey values of a page, or its stored numbers, as displayed."""
        stored = as_stored(out, page.orientation)
        tone = _as_is if label else self._tone(page)
        colours = 3 if page.photometric in (_RGB, _YCBCR) else 1
        # Numbers of other pages lie between those of this one: where they are very many, fewer are written at a time,
        # so that Ctrl-C is heard
        spread = 1 + stored.size * abs(stored.strides[-1]) // _LARGE_STACK
        for sample, top, left, where in self._blocks(page):
            if sample >= colours:
                continue  # transparency
            for row, values in self._numbers(page, top, where, _BLOCK_BYTES // min(spread, 16)):
                part = stored[row : row + len(values), left : left + page.block[1]]
                channels = [tone(values[:, : part.shape[1], n]) for n in range(min(values.shape[2], colours))]
                if sample == 0:
                    part[...] = channels[0]
                if any((channel != part).any() for channel in (channels if sample else channels[1:])):
                    raise Refused("has colours; it must be grey, or red, green and blue alike")

    def _at(self, offset: int, count: int) -> bytes:
        if min(offset, count) < 0 or offset + count > self._size:
            raise Refused(f"is damaged or cut short: it ends at byte {self._size:,} of {offset + count:,}")
        self._file.seek(offset)
        return self._file.read(count)

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self._at(offset, size), "little" if self._order == "<" else "big")

    def _directory(self, offset: int) -> tuple[dict[str, int], dict[int, Place], int, int]:
        """Read a directory: single numbers, where the lists are, the next directory, and its own length."""
        width, entry, address = (8, 20, self._room) if self._big else (2, 12, self._room)
        count = self._number(offset, width)
        if count > _MAX_TAGS:
            raise Refused(f"is damaged or cut short: a directory has {count:,} tags")
        content = self._at(offset + width, count * entry)
        starts = offset + width + entry - address
        layout = f"{self._order}HH{'QQ' if self._big else 'II'}"
        found = {
            tag: (kind, values, starts + n * entry)
            for n, (tag, kind, values, _) in enumerate(struct.iter_unpack(layout, content))
            if tag in _WANTED
        }
        numbers = {name: self._single(found.get(tag), default) for name, (tag, default) in _NUMBERS.items()}
        for name in ("bits", "sample_format"):
            if len(set(self._values(found.get(_NUMBERS[name][0]), _MAX_SAMPLES).tolist())) > 1:
                raise Refused("has channels of different kinds; it must be grey")
        if not 1 <= numbers["orientation"] <= 8:
            numbers["orientation"] = 1
        end = offset + width + count * entry
        return numbers, found, self._number(end, address), end + address - offset

    def _values(self, place: Place | None, limit: int) -> Array:
        """Read the first values of a tag; none where it is missing or of a strange type."""
        if place is None or place[0] not in _TYPES:
            return np.zeros(0, np.uint8)
        kind, count, where = place
        dtype = np.dtype(self._order + _TYPES[kind])
        if count * dtype.itemsize > self._size:
            raise Refused(f"is damaged or cut short: a tag has {count:,} values")
        offset = where if count * dtype.itemsize <= self._room else self._number(where, self._room)
        return np.frombuffer(self._at(offset, min(count, limit) * dtype.itemsize), dtype)

    def _single(self, place: Place | None, default: int) -> int:
        if place is None or place[0] not in _TYPES or place[1] == 0:
            return default
        kind, count, where = place
        size = int(_TYPES[kind][1])
        # most stand in the directory itself; NumPy would take longer than the rest of a page
        return self._number(where, size) if count * size <= self._room else int(self._values(place, 1)[0])

    def _list(self, page: Page, name: str, limit: int) -> Array:
        return self._values(page.lists.get(_LISTS[name]), limit)

    def _stack(self, pages: list[Page]) -> list[Page]:
        """Return the pages of a stack by ImageJ or of OME-TIFF, refusing what has more axes than a volume."""
        text = self._list(pages[0], "description", 2**16).tobytes().decode("utf-8", "replace")
        axes = _axes(text, pages[0].samples)
        long = {name: size for name, size in axes.items() if size > 1}
        if len(long) > 1:
            sizes = ", ".join(f"{size} {name}" for name, size in long.items())
            raise Refused(f"is a stack of {sizes}; a volume has slices alone: save one channel and one time point")
        if len(pages) == 1 and text.startswith("ImageJ="):
            pages = self._contiguous(pages[0], _listed(text, "images"))
        if len(pages) > 1 and long and "slices" not in long:
            self.doubt = f"says that its pages are {next(iter(long))}; they are read as slices"
        return pages

    def _contiguous(self, page: Page, count: int) -> list[Page]:
        """Return the pages that ImageJ wrote behind each other with one directory, where a stack is large."""
        length = page.height * page.row_bytes(page.width)
        start = int((*self._list(page, "strip_offsets", 1), 0)[0])
        if page.compression != _NONE or page.tiled or page.planar == 2 or start + 2 * length > self._size:
            return [page]
        if count > MAX_PAGES:
            raise Refused(f"has more than {MAX_PAGES:,} pages")
        return [replace(page, shift=n * length) for n in range(max(count, 1))]

    def _blocks(self, page: Page) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
        """Give sample, top row, left column, offset and length of every strip or tile."""
        rows, columns = page.block
        down, across = ceil(page.height / rows), ceil(page.width / columns)
        count = down * across * (page.samples if page.planar == 2 else 1)
        kind = "tile" if page.tiled else "strip"
        offsets = self._list(page, f"{kind}_offsets", count)
        lengths = self._list(page, f"{kind}_counts", count)
        if len(lengths) == 0 and page.compression == _NONE:
            lengths = np.full(len(offsets), self._size)
        if len(offsets) < count or len(lengths) < count:
            raise Refused(f"is damaged or cut short: it has {min(len(offsets), len(lengths))} of {count} {kind}s")
        for n in range(count):
            sample, place = divmod(n, down * across)
            where = int(offsets[n]) + page.shift, int(lengths[n])
            yield sample, place // across * rows, place % across * columns, where

    def _numbers(self, page: Page, top: int, where: tuple[int, int], most: int) -> Iterator[tuple[int, Array]]:
        """Give a strip or tile as numbers (row, column, sample), rows of so many bytes at a time, with the first's."""
        rows, columns = page.block
        wanted = min(rows, page.height - top)
        stride = page.row_bytes(columns)
        step = max(1, most // stride)
        if page.compression == _NONE and where[1] < wanted * stride:
            raise Refused(f"is damaged or cut short: {where[1]:,} bytes stand for {wanted * stride:,}")
        unpacked = None if page.compression == _NONE else self._unpacked(page, where, rows if page.tiled else wanted)
        for row in range(0, wanted, step):
            count = min(step, wanted - row)
            if unpacked is None:
                content: Any = self._at(where[0] + row * stride, count * stride)
                content = content.translate(_REVERSED) if page.fill_order == 2 else content
            else:
                content = unpacked[row * stride : (row + count) * stride]
            yield top + row, self._parsed(page, content, count, columns)

    def _unpacked(self, page: Page, where: tuple[int, int], rows: int) -> Any:
        """Return all rows of a strip or tile as bytes or an array of them."""
        content = self._at(*where)
        if page.fill_order == 2 and page.compression != _JPEG:
            content = content.translate(_REVERSED)
        columns = page.block[1]
        length = rows * page.row_bytes(columns)
        if page.compression in _DEFLATE:
            unpacked: Any = _inflated(content, length)
        elif page.compression in _FAX:
            unpacked = np.packbits(self._by_pillow(page, content, rows, columns, 1), axis=1).reshape(-1)
        elif page.compression == _JPEG:
            unpacked = self._by_pillow(page, content, rows, columns, 8).reshape(-1)
        else:
            plain = replace(page, samples=1)
            unpacked = self._by_pillow(plain, content, rows, page.row_bytes(columns), 8).reshape(-1)
        if len(unpacked) < length:
            raise Refused(f"is damaged or cut short: {length:,} bytes were packed, and {len(unpacked):,} are there")
        return unpacked

    def _by_pillow(self, page: Page, content: bytes, rows: int, columns: int, bits: int) -> Array:
        """Unpack a strip or tile that Pillow is given as a whole picture, of bytes where the codec allows."""
        samples = page.interleaved
        photometric = page.photometric if page.compression == _JPEG and samples == 3 else _BLACK_IS_ZERO
        tags: dict[int, tuple[int, Any]] = {
            256: (4, [columns]),
            257: (4, [rows]),
            258: (3, [bits] * samples),
            259: (3, [page.compression]),
            262: (3, [photometric]),
            273: (4, [8]),
            277: (3, [samples]),
            278: (4, [rows]),
            279: (4, [len(content)]),
        }
        if page.compression == _JPEG or page.compression in _FAX:
            for tag in (*_COPIED, _LISTS["tables"]):
                values = self._values(page.lists.get(tag), 2**16)
                if len(values):
                    tags[tag] = page.lists[tag][0], values.tolist()
        plugin = optional("PIL.TiffImagePlugin", "image", "a compressed TIFF")
        with _quiet(), plugin.TiffImageFile(BytesIO(_file_of(tags, content))) as image:
            image.im = plugin.Image.core.new(image.mode, image.size)  # else Pillow would judge its size
            return np.asarray(image)

    def _parsed(self, page: Page, content: Any, rows: int, columns: int) -> Array:
        """Return unpacked rows as numbers (row, column, sample)."""
        samples = page.interleaved
        if page.bits not in (8, 16, 32, 64):
            return _few_bits(np.frombuffer(content, np.uint8).reshape(rows, -1), page.bits, columns, samples)
        if page.predictor == 3:
            return _float_differences(np.frombuffer(content, np.uint8).reshape(rows, -1), page.dtype, columns, samples)
        kind = f"{self._order}{page.dtype.kind}{page.dtype.itemsize}"
        values: Array = np.frombuffer(content, kind).reshape(rows, columns, samples)
        if page.predictor != 2:
            return values
        whole = values.view(values.dtype.str.replace("f", "u"))
        summed = np.cumsum(whole, axis=1, dtype=whole.dtype.newbyteorder("="))
        return summed.view(page.dtype)

    def _tone(self, page: Page) -> Callable[[Array], Array]:
        """Return what makes stored numbers the grey that a viewer shows."""
        if page.photometric == _PALETTE:
            colours = self._list(page, "colours", 3 * 2**page.bits)
            if page.bits > 16 or len(colours) < 3 * 2**page.bits:
                raise Refused("is damaged or cut short: its palette is missing")
            return palette(colours.reshape(3, -1).T // (256 if colours.max() > 255 else 1))
        # Few bits are spread over eight, as pictures of other formats are
        spread = page.dtype.type(255 // (2**page.bits - 1) if page.bits in (1, 2, 4) else 1)
        top = page.dtype.type({"u": 2 ** min(page.bits, 64) - 1, "i": -1, "f": 0}[page.dtype.kind])
        if page.photometric == _WHITE_IS_ZERO:
            return lambda values: (top - values.astype(page.dtype, copy=False)) * spread
        return _as_is if spread == 1 else lambda values: values * spread


def _checked(page: Page) -> Page:
    """Refuse a page whose numbers cannot be read; return it with what its directory leaves out."""
    sides = (page.width, page.height, page.tile_width or 1, page.tile_height or 1)
    if not all(0 < side <= _MAX_SIDE for side in sides) or (page.tile_width > 0) != (page.tile_height > 0):
        raise Refused(f"is damaged or cut short: a page has {page.width} columns and {page.height} rows")
    if page.tiled and page.tile_width * page.tile_height > max(4 * page.width * page.height, _TILE_PIXELS):
        raise Refused(f"is damaged or cut short: its tiles have {page.tile_width} x {page.tile_height} pixels")
    if page.samples > _MAX_SAMPLES:
        raise Refused(f"has {page.samples} channels; save the one that is meant as a grey picture")
    if page.samples < 1 or page.planar not in (1, 2) or page.predictor not in (1, 2, 3):
        raise Refused("is damaged or cut short: its directory has impossible values")
    if page.sample_format not in _KINDS:
        raise Refused("holds complex numbers; it must hold one real number per pixel")
    kind = _KINDS[page.sample_format]
    if page.bits not in _BITS[kind]:
        raise Refused(f"holds {_NAMES[kind]} of {page.bits} bits; save it with 8, 16 or 32 bits")
    if page.compression not in (_NONE, _JPEG, *_DEFLATE, *_FAX, *_BYTES):
        raise Refused(f"is compressed by TIFF method {page.compression}; save it uncompressed, or by LZW or Deflate")
    fits = {
        **dict.fromkeys(_FAX, (page.bits, page.samples) == (1, 1)),
        _JPEG: (kind, page.bits) == ("u", 8) and page.interleaved in (1, 3),
    }
    if not fits.get(page.compression, True):
        method = f"{page.bits} bits compressed by TIFF method {page.compression}"
        raise Refused(f"has {method}; save it uncompressed, or by LZW or Deflate")
    predictor = page.predictor if page.compression in (*_DEFLATE, *_BYTES) else 1  # only these codecs have one
    if (predictor == 2 and page.bits not in (8, 16, 32, 64)) or (predictor == 3 and kind != "f"):
        raise Refused(f"is damaged or cut short: predictor {predictor} does not go with {page.bits} bits")
    missing = _RGB if page.samples > 2 else _BLACK_IS_ZERO
    return replace(page, predictor=predictor, photometric=missing if page.photometric < 0 else page.photometric)


def _check_image(page: Page, extra: list[int]) -> None:
    """Refuse what is neither grey, nor colours that may be; ``extra`` says what samples beyond those are."""
    if page.photometric == _YCBCR and page.compression == _JPEG and page.samples == 3:
        return
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE):
        mode = _MODES.get(page.photometric, f"photometric {page.photometric}")
        raise Refused(f"is a picture of mode {mode}; it must be grey, with 8, 16 or 32 bits")
    if page.photometric == _RGB and page.samples < 3:
        raise Refused("is damaged or cut short: its colours are missing")
    alpha = sum(kind in _ALPHA for kind in extra)
    if page.photometric != _RGB and alpha < page.samples - 1:
        raise Refused(f"has {page.samples} channels; save the one that is meant as a grey picture")


def _check_label(page: Page) -> None:
    """Refuse what are not stored indices."""
    if page.compression == _JPEG:
        raise Refused("is compressed as JPEG, whose values are not exact; a label must be PNG, TIFF, .npy or NIfTI")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE, 4) or page.samples > 1:
        mode = "RGB" if page.photometric == _RGB else _MODES.get(page.photometric, f"{page.samples} channels")
        raise Refused(f"has colours (mode {mode}); a label is a picture of indices or of one channel")


def as_stored(out: Array, orientation: int) -> Array:
    """Return the view of a displayed picture that has rows and columns as a file stores them."""
    if orientation > 4:
        out = out.swapaxes(0, 1)
    if orientation in (3, 4, 6, 7):
        out = out[::-1]
    return out[:, ::-1] if orientation in (2, 3, 7, 8) else out


def palette(colours: Array) -> Callable[[Array], Array]:
    """Return what makes indices the grey of their colours (index, 3), refusing others."""
    table = np.zeros((max(256, len(colours)), 3), np.uint8)
    table[: len(colours)] = colours
    grey = (table == table[:, :1]).all(axis=1)

    def look_up(indices: Array) -> Array:
        if not grey[indices].all():
            raise Refused("has colours; it must be grey, or red, green and blue alike")
        values: Array = table[indices, 0]
        return values

    return look_up


# --- small helpers ------------------------------------------------------------------------------------------


def _as_is(values: Array) -> Array:
    return values


def _inflated(content: bytes, length: int) -> bytearray:
    """Return so many bytes that were deflated, or what there is of them; Ctrl-C is heard meanwhile."""
    unpacker, unpacked = zlib.decompressobj(), bytearray()
    for place in range(0, len(content), _PACKED_BYTES):
        unpacked += unpacker.decompress(content[place : place + _PACKED_BYTES], length - len(unpacked))
        if len(unpacked) == length:  # of which 0 more would mean any number
            break
    return unpacked


def _few_bits(content: Array, bits: int, columns: int, samples: int) -> Array:
    """Return numbers of up to 16 bits, the highest bit first, whose rows start on whole bytes."""
    single = np.unpackbits(content, axis=1, count=columns * samples * bits).reshape(-1, columns, samples, bits)
    values = np.zeros(single.shape[:3], np.uint8 if bits < 8 else np.uint16)
    for bit in range(bits):
        values <<= 1
        values |= single[..., bit]
    return values


def _float_differences(content: Array, dtype: np.dtype[Any], columns: int, samples: int) -> Array:
    """Undo predictor 3: bytes of a row are differences, and grouped from the highest to the lowest."""
    rows = len(content)
    summed = np.cumsum(content.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
    planes = summed.reshape(rows, dtype.itemsize, columns * samples).swapaxes(1, 2)
    return np.ascontiguousarray(planes).view(f">{dtype.kind}{dtype.itemsize}").reshape(rows, columns, samples)


def _listed(text: str, name: str) -> int:
    found = re.search(rf"^{name}=([0-9]{{1,9}})\s*$", text, re.MULTILINE)
    return int(found[1]) if found else 1


def _axes(text: str, samples: int) -> dict[str, int]:
    """Read from a description how many channels, slices and time points there are."""
    if text.startswith("ImageJ="):
        return {name: _listed(text, key) for name, (key, _) in _AXES.items()}
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", text) if "<OME" in text[:4096] or ":OME" in text[:4096] else []
    sizes = {
        name: int(found[1])
        for pixel in pixels[:1]
        for name, (_, key) in _AXES.items()
        if (found := re.search(rf'\b{key}="([0-9]{{1,9}})"', pixel))
    }
    if samples > 1 and "channels" in sizes:
        sizes["channels"] //= samples
    return {**sizes, "images": len(pixels)}


def _file_of(tags: dict[int, tuple[int, Any]], content: bytes) -> bytes:
    """Write a TIFF of one strip, which stands at byte 8."""
    body = bytearray(content + b"\0" * (len(content) % 2))
    entries = bytearray()
    for tag, (kind, values) in sorted(tags.items()):
        packed = np.array(values, "<" + _TYPES[kind]).tobytes()
        entries += np.array([tag, kind], "<u2").tobytes() + len(values).to_bytes(4, "little")
        if len(packed) > 4:
            entries += (8 + len(body)).to_bytes(4, "little")
            body += packed + b"\0" * (len(packed) % 2)
        else:
            entries += packed.ljust(4, b"\0")
    start = (8 + len(body)).to_bytes(4, "little")
    return b"II*\0" + start + bytes(body) + len(tags).to_bytes(2, "little") + bytes(entries) + bytes(4)


_SPEAKING = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libtiff from writing to standard error; what fails is said by an exception as well."""
    try:
        library = ctypes.CDLL(optional("PIL._imaging", "image", "a compressed TIFF").__file__)
        handler = library.TIFFSetErrorHandler
    except (AttributeError, OSError, TypeError):  # linked into Pillow, under no name
        yield
        return
    handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    with _SPEAKING:
        before = handler(None)
        try:
            yield
        finally:
            handler(before)
