"""NumPy's ``.npy``: an array as it is, without geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from .base import Refused, Volume, about, check_dtype, native, parsing

SUFFIXES = (".npy",)


def read(path: Path) -> Volume:
    """Read an array of two or three axes; nothing is unpickled."""
    return Volume(native(np.array(_mapped(path))), None, None, str(path))


def outline(path: Path) -> Volume:
    """Read the header alone: a volume of zeros that take no memory."""
    array = _mapped(path)
    return Volume(np.broadcast_to(np.zeros((), array.dtype), array.shape), None, None, str(path))


def _mapped(path: Path) -> NDArray[Any]:
    with open(path, "rb") as file, about(path), parsing():
        if file.read(6) != b"\x93NUMPY":
            raise Refused("is not a .npy file of NumPy")
        # A memory map compares the file's size with its header before any memory is taken
        array = np.lib.format.open_memmap(path, mode="r")
        check_dtype(array.dtype)
        if array.ndim not in (2, 3):
            raise Refused(f"has shape {array.shape}; it must be a slice with two axes or a volume with three")
    return array


def write(path: Path, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Write an array; the bytes depend on nothing but its values and its order in memory being C."""
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(values, dtype), allow_pickle=False)
