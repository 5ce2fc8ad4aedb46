"""What all formats share: the volume that they read, and how they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
DEFLATE = 1032  # no byte that was deflated becomes more

# Neighbouring labels differ in lightness as well as in hue, for colour-blind eyes
_COLOURS = (
    *((255, 176, 0), (64, 160, 255), (220, 50, 120), (120, 220, 90), (130, 90, 240), (255, 240, 140)),
    *((0, 170, 150), (240, 110, 40), (170, 220, 255), (150, 80, 30), (250, 170, 220), (60, 100, 60)),
)


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities and where they lie.

    Parameters
    ----------
    data : array
        Real, in the file's own order of axes: three; four where all volumes of a NIfTI file were read; two or three
        for a picture or an array. DICOM: (column, row, slice).
    affine : array or None
        (4, 4), float64: from voxel indices to mm, towards the patient's right, anterior and superior. None for a
        picture or an array file, which does not say.
    header : nibabel NIfTI header or None
        Results are written with its geometry. Without one, from ``affine``.
    name : str
        What messages call it: the path it was read from.
    spacing : tuple of float, optional
        Without an affine, the distance of neighbours along each axis of ``data`` in mm, where it is known.
    picture : bool
        Axes are row, column and page, as displayed. Default False.
    slices : tuple of pydicom Dataset
        Of a DICOM series, the headers of its slices in the order of ``data``. Default empty.
    flat : bool
        The third axis is one slice that does not say how thick it is; the affine has 1 mm. Default False.
    unpacked : int
        Of a header that was read alone: bytes that stand beside the voxels while those are read, where that is more
        than they take themselves. Default 0.
    """

    data: NDArray[Any]
    affine: Affine | None
    header: Any
    name: str
    spacing: tuple[float, ...] | None = None
    picture: bool = False
    slices: tuple[Any, ...] = ()
    flat: bool = False
    unpacked: int = 0

    @property
    def reading(self) -> int:
        """Bytes that reading the voxels takes at most: they stand twice, or beside what they are unpacked from."""
        return self.data.nbytes + max(self.data.nbytes, self.unpacked)

    @property
    def voxel_size(self) -> tuple[float, ...] | None:
        """Distance of neighbours along each axis in mm, time left out; None where nobody knows."""
        if self.affine is None:
            return self.spacing
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @property
    def voxel_volume(self) -> float | None:
        """Volume of a voxel in mm³; None for a slice without thickness, or where nobody knows."""
        if self.flat:
            return None
        if self.affine is not None:
            return float(abs(np.linalg.det(self.affine[:3, :3])))
        return None if self.spacing is None or len(self.spacing) < 3 else math.prod(self.spacing)

    def lies_with(self, other: Volume, *, within: float = 1e-2) -> bool:
        """Tell whether another volume has the same affine, to ``within``; two without any have."""
        if self.affine is None or other.affine is None:
            return self.affine is other.affine
        smallest = float(np.linalg.norm(self.affine[:3, :3], axis=0).min())  # of a microscope's image, far less
        return bool(np.allclose(self.affine, other.affine, atol=min(within, smallest / 10)))


class Refused(ValueError):
    """What is wrong, as a sentence that lacks only its subject."""


@contextmanager
def about(name: object) -> Iterator[None]:
    """Put the subject in front of a refusal."""
    try:
        yield
    except Refused as problem:
        raise ValueError(f"{name} {problem}") from problem.__cause__


@contextmanager
def parsing() -> Iterator[None]:
    """Refuse a file when whatever parses it fails, in any way that its bytes can bring about."""
    try:
        with np.errstate(all="ignore"):  # what overflows is found as not finite
            yield
    except (Refused, MemoryError, ImportError):
        raise
    except Exception as problem:  # the libraries' errors share no base, and NumPy's and zlib's come through
        if isinstance(problem, OSError) and problem.errno is not None:
            raise  # the disk failed, not the content
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise Refused(f"is damaged or cut short: {reason[:300]}") from problem  # some quote the whole file


def optional(module: str, extra: str, format_name: str) -> Any:
    """Import what only one format needs, when it is needed.

    Raises
    ------
    ImportError
        It is not installed; the sentence says how to.
    """
    try:
        return import_module(module)
    except ImportError as problem:
        if (problem.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, but broken
        package = module.partition(".")[0].replace("PIL", "Pillow")
        raise ImportError(
            f"{format_name} needs {package}, which is not installed: "
            f"run `pip install '.[{extra}]'` in the clone of pynca"
        ) from None


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour in which a label is shown; the background is black."""
    return _COLOURS[(label - 1) % len(_COLOURS)] if label else (0, 0, 0)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse what is not one real number per voxel."""
    if dtype.kind not in "biuf":
        what = {"V": "colours", "c": "complex numbers"}.get(dtype.kind, "no numbers")
        raise Refused(f"holds {what} (dtype {dtype}); it must hold one real number per voxel")


def native(data: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the machine's order of bytes."""
    return data.astype(data.dtype.newbyteorder("="), copy=False)
