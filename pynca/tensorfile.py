"""Tensors and text in one file: the safetensors format, float32 only.

A file is the length of its header (8 bytes, little-endian), the header (JSON: the place of every tensor,
and text under ``__metadata__``), and the tensors' bytes without gaps. Files come from elsewhere, so
everything that the header says is checked before memory is taken for the tensors.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import jsontext
from .errors import quoted
from .files import atomic_path, open_input
from .memory import check_room
from .seal import TEXT, is_seal

MAX_HEADER = 4 * 2**20
MAX_AXES = 32  # of every NumPy; 2.0 and later allow 64

_METADATA = "__metadata__"
_SEAL = "seal"  # the key of the metadata under which a file has its seal
_FIELDS = ("dtype", "shape", "data_offsets")


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Read a file of tensors.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    tensors : dict of str to array
        float32, C-contiguous, writable, in the order in which the file holds them.
    metadata : dict of str to str
        Without the seal of the file.

    Raises
    ------
    ValueError
        The file is damaged, is no safetensors file, or holds anything but finite float32.
    OSError
        The file cannot be opened or read.
    """
    with open_input(path) as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            header = _parse(_header_bytes(stream, size))
            metadata = _checked_metadata(header.pop(_METADATA, {}))
            if is_seal(metadata.get(_SEAL, "")):
                del metadata[_SEAL]
            entries = sorted((_entry(*item) for item in header.items()), key=lambda e: (e.begin, e.end))
            _check_layout(entries, size - stream.tell())
            check_room("it", 2 * size)
            return {entry.name: _tensor(stream, entry) for entry in entries}, metadata
        except ValueError as problem:
            raise ValueError(f"cannot read {os.fspath(path)!s}: {problem}") from None


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a file of tensors; the same tensors and metadata always give the same bytes.

    The file appears whole or not at all.

    Parameters
    ----------
    path : str or path-like
    tensors : mapping of str to array
        float32, finite.
    metadata : mapping of str to str
        Under ``"seal"`` the file has its seal (`pynca.seal`), before all else.
    overwrite : bool
        Replace a file that pynca did not write, or that was changed since. Default False.

    Raises
    ------
    ValueError
        A tensor is not finite float32, a name or the metadata are not text, or they are too long.
    FileExistsError
        There is such a file, and ``overwrite`` is not given.
    OSError
        The file cannot be written.
    """
    names = sorted(_checked_text(name, "the name of a tensor") for name in tensors)
    arrays = {name: _checked_array(name, tensors[name]) for name in names}
    header: dict[str, Any] = {_METADATA: {_SEAL: TEXT}}
    header[_METADATA] |= {k: v for k, v in sorted(_checked_metadata(dict(metadata)).items()) if k != _SEAL}
    position = 0
    for name, array in arrays.items():
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"names and metadata take {len(text)} bytes; they may take {MAX_HEADER}")
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for array in arrays.values():
            stream.write(array.tobytes(order="C"))


def _header_bytes(stream: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise ValueError(f"it has {size} bytes; the length of the header alone takes 8")
    length = int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise ValueError(f"its header should take {length} bytes, but only {size - 8} follow; it may be cut short")
    if length > MAX_HEADER:
        raise ValueError(f"its header takes {length} bytes; it may take {MAX_HEADER}")
    return stream.read(length)


def _parse(block: bytes) -> dict[str, Any]:
    """Return the header; by the format it begins with its brace, not with a space or a byte order mark."""
    try:
        text = block.decode()
    except UnicodeDecodeError as problem:
        raise ValueError(f"its header is not text at byte {problem.start}; it must be JSON in UTF-8") from None
    if not text.startswith("{"):
        raise ValueError(f"its header begins with {text[:8]!r}; it must be a JSON object")
    try:
        header: dict[str, Any] = jsontext.parse(text, surrogates=True)  # whatever is text is checked below
    except ValueError as problem:
        raise ValueError(f"its header cannot be used: {problem}") from None
    return header


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError(f"its metadata is {quoted(metadata)}; it must map text to text")
    return {
        _checked_text(key, "a key of the metadata"): _checked_text(value, f"metadata {quoted(key)}")
        for key, value in metadata.items()
    }


def _checked_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{what} is {quoted(text)}; it must be text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is {quoted(text)}; it must not hold half a surrogate pair") from None
    return text


def _checked_array(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    array = np.asarray(tensor)
    if name == _METADATA:
        raise ValueError(f"a tensor is named {_METADATA!r}; the format keeps that name for text")
    if array.dtype.newbyteorder("=") != np.float32:
        raise ValueError(f"tensor {quoted(name)} has dtype {array.dtype}; it must be float32")
    _check_finite(name, array)
    return array.astype("<f4", copy=False)


def _entry(name: str, fields: object) -> _Entry:
    what = f"tensor {quoted(_checked_text(name, 'the name of a tensor'))}"
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        found = sorted(fields) if isinstance(fields, dict) else fields
        raise ValueError(f"{what} is described by {quoted(found)}; it must have {', '.join(_FIELDS)}")
    dtype, shape, offsets = (fields[field] for field in _FIELDS)
    if dtype != "F32":
        raise ValueError(f"{what} has dtype {quoted(dtype)}; only F32 (float32) is read, so convert it first")
    if not _whole_numbers(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"{what} has shape {quoted(shape)}; it must be at most {MAX_AXES} whole numbers from 0")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what} has data_offsets {quoted(offsets)}; they must be its begin and its end")
    # NumPy leaves axes of size 0 out of the product, too, when it checks that a shape can be addressed
    if math.prod(n for n in shape if n > 0) > sys.maxsize // 4:
        raise ValueError(f"{what} has shape {quoted(shape)}; no computer can hold that many values")
    needs, has = 4 * math.prod(shape), offsets[1] - offsets[0]
    if needs != has:
        raise ValueError(f"{what} of shape {quoted(shape)} takes {has} bytes; it must take {needs}")
    return _Entry(name, tuple(shape), offsets[0], offsets[1])


def _whole_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _check_layout(entries: list[_Entry], size: int) -> None:
    """Check that sorted entries follow each other without gap or overlap up to the end of the data."""
    position, before = 0, "the header"
    for entry in entries:
        what = f"tensor {quoted(entry.name)}"
        if entry.begin != position:
            wrong = "overlaps" if entry.begin < position else "leaves a hole after"
            raise ValueError(f"{what} begins at byte {entry.begin} and {wrong} {before}; it must begin at {position}")
        if entry.end > size:
            raise ValueError(f"{what} ends at byte {entry.end} of {size}; the file may be cut short")
        position, before = entry.end, what
    if position != size:
        raise ValueError(f"its data takes {size} bytes; its tensors must take all of them, but take {position}")


def _tensor(stream: BinaryIO, entry: _Entry) -> NDArray[np.float32]:
    block = stream.read(entry.end - entry.begin)
    if len(block) != entry.end - entry.begin:
        raise ValueError(f"it ends within tensor {quoted(entry.name)}; it may be changing right now")
    tensor: NDArray[np.float32] = np.ndarray(entry.shape, "<f4", block).astype(np.float32)
    _check_finite(entry.name, tensor)
    return tensor


def _check_finite(name: str, tensor: NDArray[np.float32]) -> None:
    wrong = tensor.size - np.count_nonzero(np.isfinite(tensor))
    if wrong:
        raise ValueError(f"tensor {quoted(name)} has {wrong} values of {tensor.size} that are not finite; all must be")
