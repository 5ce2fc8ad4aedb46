"""How the axes of an image become those that a model learnt."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .formats.base import Affine, Refused, Volume, about

Scalar = TypeVar("Scalar", bound=np.generic)

# Which axis of the patient a direction lies on
AXIS_OF = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
DISPLAY = "display"  # in place of three directions: slices in the plane and the position in which they are looked at
_ALIKE = 1.1  # voxel sizes that differ by less are taken for equal
_SMALLEST, _LARGEST = 1e-7, 1e4  # mm: 0.1 nm to 10 m
_FURTHEST = 1e9  # mm
_FLAT = 1e-6  # of three unit vectors, the least singular value above which they span a space
# How radiologists look at a slice: by the axis that it is cut across, where its rows and columns grow to
_DISPLAYED = ("IP", "IL", "PL")


@dataclass(frozen=True)
class Orientation:
    """How the axes of an array become those of a model: turned round, then put in another order.

    Parameters
    ----------
    axes : (int, int, int)
        For each input axis, which of the model's axes it becomes.
    flips : (int, int, int)
        For each input axis, 1, or -1 if the model's axis runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[int, int, int]

    @classmethod
    def between(cls, affine: ArrayLike, codes: str) -> Orientation:
        """Find the orientation that brings an array to a model.

        Parameters
        ----------
        affine : array
            (4, 4), from the array's indices to the patient's right, anterior and superior. An oblique
            one counts as the orientation that is nearest to it.
        codes : str
            The patient directions towards which the model's axes grow, such as ``"RAS"``.

        Raises
        ------
        ValueError
            The affine does not tell three directions, or the codes do not name three.
        """
        _check_codes(codes)
        with about("the volume"):
            here = codes_of(checked_affine(affine))
        return cls.from_codes(here, codes)

    @classmethod
    def from_codes(cls, here: str, there: str) -> Orientation:
        """Find the orientation between two sets of patient directions, such as ``"LPS"`` and ``"RAS"``.

        Raises
        ------
        ValueError
            One of them does not name three directions.
        """
        _check_codes(here)
        _check_codes(there)
        families = [AXIS_OF[code] for code in there]
        a, b, c = (families.index(AXIS_OF[code]) for code in here)
        f, g, h = (1 if code in there else -1 for code in here)
        return cls((a, b, c), (f, g, h))

    @classmethod
    def of(cls, volume: Volume | None, codes: str, axis: int, across: int | None = None) -> Orientation:
        """Find the orientation that brings an image to a model that slices along one of its axes.

        A picture counts as displayed as radiologists look at a slice across that axis: the patient's front or
        head up, the patient's right or front on the left. An array counts as in the model's orientation.

        Parameters
        ----------
        volume : Volume or None
        codes : str
            Where the model's axes grow to; or ``"display"`` for rows, columns and slices as radiologists look at them,
            in whatever plane the image was acquired.
        axis : int
            The model's axis along which it slices.
        across : int, optional
            For a model of displayed slices, the image's axis to slice along instead of `acquired_axis`.

        Raises
        ------
        ValueError
            As `between`.
        """
        if volume is not None and volume.affine is not None:
            if codes == DISPLAY:
                with about(volume.name):
                    here = codes_of(checked_affine(volume.affine))
                along = AXIS_OF[here[acquired_axis(volume) if across is None else across]]
                return cls.from_codes(here, displayed("RAS"[along]))
            return cls.between(volume.affine, codes)
        if volume is not None and volume.picture and codes != DISPLAY:
            return cls.from_codes(displayed(codes[axis]), codes)
        return cls((0, 1, 2), (1, 1, 1))

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view of an array in the input's order of axes, in the model's; further axes stay."""
        i, j, k = (self.axes.index(axis) for axis in range(3))
        return self._flipped(array).transpose(i, j, k, *range(3, array.ndim))

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view of an array in the model's order of axes, in the input's; further axes stay."""
        return self._flipped(array.transpose(*self.axes, *range(3, array.ndim)))

    def _flipped(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        i, j, k = self.flips
        return array[::i, ::j, ::k]


def to_orientation(data: NDArray[Scalar], affine: ArrayLike, orientation: str) -> tuple[NDArray[Scalar], Orientation]:
    """Bring a volume to a model's orientation.

    Parameters
    ----------
    data : array
        Three axes.
    affine : array
        (4, 4), as of `Volume`.
    orientation : str
        The patient directions towards which the model's axes grow.

    Returns
    -------
    data : array
        A view of ``data``.
    orientation : Orientation
        The way there, and with `Orientation.undo` the way back.

    Raises
    ------
    ValueError
        As `Orientation.between`.
    """
    way = Orientation.between(affine, orientation)
    return way.apply(data), way


def acquired_axis(volume: Volume) -> int:
    """Return the axis along which a volume that knows where it lies was cut into slices when it was acquired.

    That is the one that has a single slice, or along which voxels are largest; the patient's own where they are alike.
    """
    assert volume.affine is not None
    single = [axis for axis, n in enumerate(volume.data.shape[:3]) if n == 1]
    if len(single) == 1:
        return single[0]
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    largest, along_patient = int(np.argmax(spacing)), [AXIS_OF[code] for code in codes_of(volume.affine)].index(2)
    return largest if spacing[largest] > _ALIKE * spacing[along_patient] else along_patient


def displayed(across: str) -> str:
    """Name the directions of rows, columns and pages of slices across a direction, as radiologists look at them."""
    return _DISPLAYED[AXIS_OF[across]] + across


def codes_of(affine: Affine) -> str:
    """Name the patient directions nearest to the axes of an affine, such as ``"LPS"``."""
    orientations: Any = import_module("nibabel.orientations")  # late, so that ``import pynca`` stays quick
    codes = orientations.aff2axcodes(affine)
    if None in codes:
        raise Refused(f"has an affine without three directions: {_listed(affine)}")
    return "".join(codes)


def checked_affine(affine: ArrayLike | None) -> Affine:
    """Return an affine as float64, or refuse one that does not say where voxels are."""
    if affine is None:
        raise Refused("has no affine; without one nobody knows where its voxels are")
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or matrix[3].tolist() != [0, 0, 0, 1]:
        raise Refused(f"has the affine {_listed(matrix)}; it must be 4 by 4 and end in the row 0, 0, 0, 1")
    if not np.isfinite(matrix).all():
        raise Refused(f"has the affine {_listed(matrix)}; all of its values must be finite")
    with np.errstate(over="ignore"):
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    if (sizes == 0).any() or np.linalg.svd(matrix[:3, :3] / sizes, compute_uv=False)[-1] < _FLAT:
        raise Refused(f"has the affine {_listed(matrix)}; its three axes must span a space")
    if not possible(sizes).all():
        raise Refused(f"has voxels of {' x '.join(f'{mm:.4g}' for mm in sizes)} mm; no image has such")
    if not (np.abs(matrix[:3, 3]) < _FURTHEST).all():
        raise Refused(f"has the affine {_listed(matrix)}; no image lies so far away")
    return matrix


def possible(sizes: ArrayLike) -> NDArray[np.bool_]:
    """Tell for each size of a voxel in mm whether an image can have it."""
    array = np.asarray(sizes)
    return np.asarray((array > _SMALLEST) & (array < _LARGEST))


def _check_codes(codes: str) -> None:
    if sorted(AXIS_OF.get(code, -1) for code in codes) != [0, 1, 2]:
        raise ValueError(f"orientation is {codes!r}; it must name three patient directions, such as 'RAS' or 'LPI'")


def _listed(affine: ArrayLike) -> str:
    return str(np.asarray(affine).tolist())
