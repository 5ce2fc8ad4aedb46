"""Picture files made byte by byte: what their usual writers cannot write, or must not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tags = dict[int, tuple[str, Sequence[int]]]  # a kind of NumPy's, and values

_TYPES = {"u1": 1, "u2": 3, "u4": 4, "u8": 16}
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(
    pages: Sequence[Array],
    tags: Tags | None = None,
    *,
    order: str = "<",
    big: bool = False,
    tile: tuple[int, int] | None = None,
    rows: int | None = None,
    separate: bool = False,
    deflate: bool = False,
    encode: Callable[[Array], bytes] | None = None,
) -> bytes:
    """Write pages, (row, column) or (row, column, sample), each with a directory.

    ``tags`` replace what is written otherwise. ``encode`` makes the bytes of a strip or tile, (row, column, sample),
    where ``tobytes`` would not do.
    """
    width, entry = (8, 20) if big else (4, 12)
    kind = "u8" if big else "u4"
    byte_order = "little" if order == "<" else "big"
    start = b"II" if order == "<" else b"MM"
    out = bytearray(start + struct.pack(f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0, 0) if big else (42, 0))))
    link = len(out) - width
    for page in pages:
        values = page.reshape(*page.shape[:2], -1)
        height, across, samples = values.shape
        down, over = tile or (rows or height, across)
        offsets, counts = [], []
        for plane in np.split(values, samples, axis=2) if separate else [values]:
            for top in range(0, height, down):
                for left in range(0, across, over):
                    part = plane[top : top + down, left : left + over]
                    if tile:
                        missing = ((0, down - part.shape[0]), (0, over - part.shape[1]), (0, 0))
                        part = np.pad(part, missing, mode="edge")
                    ordered = part.astype(part.dtype.newbyteorder(order))  # type: ignore[arg-type]
                    content = encode(part) if encode else ordered.tobytes()
                    content = zlib.compress(content) if deflate else content
                    offsets.append(len(out))
                    counts.append(len(content))
                    out += content + b"\0" * (len(content) % 2)
        written: Tags = {
            256: (kind, [across]),
            257: (kind, [height]),
            258: ("u2", [8 * values.itemsize] * samples),
            259: ("u2", [8 if deflate else 1]),
            262: ("u2", [1 if samples < 3 else 2]),
            277: ("u2", [samples]),
            284: ("u2", [2 if separate else 1]),
            339: ("u2", [_FORMATS[values.dtype.kind]] * samples),
            **({322: (kind, [over]), 323: (kind, [down])} if tile else {278: (kind, [down])}),
            (324 if tile else 273): (kind, offsets),
            (325 if tile else 279): (kind, counts),
            **(tags or {}),
        }
        entries = bytearray()
        for tag, (name, numbers) in sorted(written.items()):
            packed = np.array(numbers, f"{order}{name}").tobytes()
            entries += struct.pack(f"{order}HH", tag, _TYPES[name]) + len(numbers).to_bytes(width, byte_order)
            if len(packed) > width:
                entries += len(out).to_bytes(width, byte_order)
                out += packed + b"\0" * (len(packed) % 2)
            else:
                entries += packed.ljust(width, b"\0")
        assert len(entries) == entry * len(written)
        out[link : link + width] = len(out).to_bytes(width, byte_order)
        out += len(written).to_bytes(8 if big else 2, byte_order) + entries
        link = len(out)
        out += bytes(width)
    return bytes(out)


def text(content: str) -> Tags:
    """The tag of a description."""
    return {270: ("u1", list(content.encode() + b"\0"))}


def few_bits(bits: int) -> Callable[[Array], bytes]:
    """Pack numbers into so many bits, the highest first; rows start on whole bytes."""

    def encode(part: Array) -> bytes:
        flat = part.reshape(len(part), -1).astype(np.uint64)[..., None]
        single = (flat >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
        return np.packbits(single.reshape(len(part), -1).astype(np.uint8), axis=1).tobytes()

    return encode


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    size: tuple[int, int],
    bits: int,
    colour: int,
    rows: bytes,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Write a PNG of some columns and rows, whose rows begin with the number of their filter."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlaced))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + before + body + after + chunk(b"IEND", b"")


def interlaced(values: NDArray[np.uint8]) -> bytes:
    """Write a grey PNG whose pixels come in the seven passes of Adam7."""
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, across in (
            *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
        )
        for row in values[top::down, left::across]
        if row.size
    )
    return png(values.shape[::-1], 8, 0, rows, interlaced=True)


def exif(orientation: int) -> bytes:
    """EXIF's TIFF with one tag, big-endian."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
