"""NumPy's ``.npy``: an array as it is, without geometry."""

from __future__ import annotations

import math
import os
import reprlib
import sys
import warnings
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import open_input
from ..seal import BLANK
from .base import Refused, Volume, about, check_dtype, native, parsing

SUFFIXES = (".npy",)
_MAX_HEADER = 10_000  # bytes, as NumPy has it
_VERSIONS = {  # 3.0 differs from 2.0 in the names of fields, and what has any is refused
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def read(path: Path) -> Volume:
    """Read an array of two or three axes; nothing is unpickled."""
    with open_input(path) as file, about(path), parsing():
        shape, fortran, dtype = _header(file)
        # Not mapped: a file that shrinks while it is mapped ends the process
        values = np.empty(math.prod(shape), dtype)
        content = values.view(np.uint8).data
        done = 0
        while done < len(content):
            count = file.readinto(content[done:])
            if not count:
                raise Refused(f"is cut short: it ends {len(content) - done} bytes too early")
            done += count
        if dtype.kind == "b":
            np.not_equal(values.view(np.uint8), 0, out=values)
        data = native(values).reshape(shape, order="F" if fortran else "C")
    return Volume(data, None, None, str(path))


def outline(path: Path) -> Volume:
    """Read the header alone: a volume of zeros that take no memory."""
    with open_input(path) as file, about(path), parsing():
        shape, _, dtype = _header(file)
    return Volume(np.broadcast_to(np.zeros((), dtype.newbyteorder("=")), shape), None, None, str(path))


def _header(file: BufferedReader) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the first axis runs fastest, and dtype, when the file is as long as they say."""
    if file.read(6) != b"\x93NUMPY":
        raise Refused("is not a .npy file of NumPy")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version[0] == 1 else 4), "little")
    if version not in _VERSIONS or length > _MAX_HEADER:
        raise Refused(
            f"has version {version[0]}.{version[1]} of the format and a header of {length} bytes; versions 1.0 to 3.0 "
            f"are read, with up to {_MAX_HEADER}"
        )
    file.seek(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 wrote it
        try:
            shape, fortran, dtype = _VERSIONS[version](file)
        except (Exception, MemoryError) as problem:  # NumPy evaluates it as a literal of Python
            raise Refused("is damaged or cut short: its header does not describe an array") from problem
    check_dtype(dtype)
    if len(shape) not in (2, 3):
        raise Refused(f"has shape {reprlib.repr(shape)}; it must be a slice with two axes or a volume with three")
    if any(n < 1 for n in shape):
        raise Refused(f"has shape {reprlib.repr(shape)}; no axis may be empty")
    if any(n > sys.maxsize for n in shape):
        raise Refused(f"is damaged or cut short: no file holds an array of shape {reprlib.repr(shape)}")
    needs, has = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if needs > has:
        raise Refused(f"is damaged or cut short: by its header its values take {needs} bytes, but it has {has}")
    return shape, fortran, dtype


def write(path: Path, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Write an array in C order; behind the description of the array, which is Python, its seal is a comment."""
    array = np.ascontiguousarray(values, dtype)
    told = f"{np.lib.format.header_data_from_array_1_0(array)!r}  # ".encode() + BLANK
    told += b" " * (-(len(told) + 11) % 64) + b"\n"  # so that the values begin at a multiple of 64
    with open(path, "xb") as file:
        file.write(np.lib.format.magic(1, 0) + len(told).to_bytes(2, "little") + told)
        file.write(array.reshape(-1).view(np.uint8).data)
