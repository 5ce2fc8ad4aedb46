"""How pynca knows a file that it wrote and that nobody has changed since: by a seal in the file itself.

A seal is ``pynca:sha256:`` and 64 hexadecimal digits, the SHA-256 of the file in which those digits count as zeros,
and so does the CRC behind them in a PNG. Of a gzipped file it is that of what is packed. So a seal outlives a copy, and
a file that was changed, or saved anew by another program, has none that is right. Each format keeps it where its
readers expect the name of a program, or a comment.
"""

from __future__ import annotations

import gzip
import itertools
import os
import stat
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

_MARK = b"pynca:sha256:"
_DIGITS = 64
BLANK = _MARK + b"0" * _DIGITS
TEXT = BLANK.decode()

_PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = b"tEXt", b"Software\0" + BLANK  # type and content of the chunk that holds a PNG's seal

_HEAD = 2**20  # a seal begins within so many bytes
_BLOCK = 2**20
_MOST_UNPACKED = 2**33  # bytes: a gzipped file of more is nobody's result


def sealed(blocks: Iterable[bytes]) -> bytes:
    """Return the seal of a file whose content, with a `BLANK` in it, comes in blocks."""
    digest = _sha256()
    for block in blocks:
        digest.update(block)
    return _MARK + bytes(digest.hexdigest(), "ascii")


def filled(content: bytes) -> bytes:
    """Return a file's content with its `BLANK` filled in."""
    place, patch = _patch(content, ())
    return content[:place] + patch + content[place + len(patch) :]


def seal(path: str | os.PathLike[str]) -> None:
    """Fill in the `BLANK` of a file that has one near its begin; one without is left as it is."""
    with open(path, "r+b") as file:
        head = file.read(_HEAD)
        if head[head.find(_MARK) :].startswith(BLANK):  # not a later one, in somebody's text
            place, patch = _patch(head, _blocks(file))
            file.seek(place)
            file.write(patch)


def _patch(head: bytes, rest: Iterable[bytes]) -> tuple[int, bytes]:
    """Return where a seal belongs, and the seal, with the CRC that follows in a PNG."""
    place = head.index(BLANK)
    if not head.startswith(_PNG):
        return place, sealed(itertools.chain([head], rest))
    after = place + len(BLANK)
    mine = sealed(itertools.chain([head[:after], bytes(4), head[after + 4 :]], rest))
    kind, content = PNG_CHUNK
    return place, mine + zlib.crc32(kind + content.replace(BLANK, mine)).to_bytes(4, "big")


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Tell whether pynca wrote a file, and nobody has changed it since.

    Parameters
    ----------
    path : str or path-like
        Whatever it names: what is no file, or cannot be read, is not pynca's.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe is to wait for who writes
            return False
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return _is_right(file)
            return _is_right(cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")), _MOST_UNPACKED)
    except (OSError, ValueError, EOFError, zlib.error):
        return False


def is_seal(text: str) -> bool:
    """Tell whether a text is a seal, of whatever file."""
    return text.startswith(_MARK.decode())


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins with a seal, right or not, as DICOM that pynca wrote does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError:
        return False


def _is_right(file: BinaryIO, most: int | None = None) -> bool:
    head = file.read(_HEAD)
    place = head.find(_MARK)
    begin, end = place + len(_MARK), place + len(BLANK)
    if place < 0 or len(head) < end:
        return False
    after = end + 4 * head.startswith(_PNG)
    digest, length = _sha256(), 0
    for block in itertools.chain([head[:begin], b"0" * _DIGITS, bytes(after - end), head[after:]], _blocks(file)):
        length += len(block)
        if most is not None and length > most:
            return False
        digest.update(block)
    return bytes(digest.hexdigest(), "ascii") == head[begin:end]


def _blocks(file: BinaryIO) -> Iterable[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _sha256() -> Any:
    import hashlib  # here: it brings OpenSSL, which takes 3 ms

    return hashlib.sha256()
