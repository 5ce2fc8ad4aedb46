"""A phantom: a made-up T1 crop around a hippocampus, by code, for trying the tool without anybody's data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rule import FloatArray

SHAPE = (36, 50, 36)  # mm, axes towards right, front, head


class _Tube(NamedTuple):
    """Ellipses (z, x, y, radius along x, radius along y), joined from slice to slice; a grey value; a soft edge."""

    ellipses: tuple[tuple[float, float, float, float, float], ...]
    grey: float
    edge: float


_HIPPOCAMPUS = _Tube(
    (
        (4, 16.5, 39, 3, 2.5),
        (6, 16.5, 37.5, 5.5, 4.5),
        (9, 16, 34, 8, 6.5),
        (12, 15.5, 30.5, 9, 8.5),
        (16, 14, 26, 8, 9.5),
        (19, 12.5, 19, 6, 8),
        (22, 13.5, 12.5, 6, 5),
        (26, 15.5, 9.5, 5, 4),
        (30, 17.5, 7.5, 4.5, 2.5),
    ),
    grey=0.38,
    edge=0.1,
)
_SURROUNDINGS = (
    # the thalamus and the white matter around it, above
    _Tube(
        ((13, 22, 48, 3, 3), (16, 20, 46, 9, 9), (19, 20, 38, 16, 16), (24, 18, 32, 22, 22), (36, 18, 30, 26, 26)),
        0.7,
        0.5,
    ),
    # white matter beside it, from the temporal stem backwards
    _Tube(((0, 0, 44, 9, 14), (12, -1, 34, 7, 30), (22, 2, 22, 10, 30), (36, 8, 20, 14, 26)), 0.92, 0.6),
    # fluid around the brain stem, and in front
    _Tube(((0, 34, 27, 14, 15), (14, 34, 30, 14, 15), (20, 36, 16, 14, 12), (36, 36, 6, 12, 10)), 0.12, 0.3),
    _Tube(((0, 30, 49, 13, 8), (14, 34, 49, 13, 7), (18, 40, 50, 6, 6)), 0.12, 0.4),
    # the brain stem itself
    _Tube(((0, 36, 27, 9, 10), (14, 36, 30, 9, 10), (20, 40, 34, 10, 12), (36, 34, 40, 14, 16)), 0.85, 0.25),
    # white matter below it
    _Tube(((0, 16, 28, 4, 5), (9, 18, 23, 3, 5), (16, 21, 17, 4, 5), (24, 22, 8, 5, 4), (36, 22, 2, 6, 3)), 0.9, 0.6),
)
_BACKGROUND, _NOISE = 0.45, 0.02


def hippocampus_phantom() -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return an image (36, 50, 36), float32 at 1 mm in RAS, and where its hippocampus is."""
    image = np.full(SHAPE, _BACKGROUND)
    for tube in (*_SURROUNDINGS, _HIPPOCAMPUS):
        inside = np.clip((1.0 - _distance(tube)) / tube.edge + 0.5, 0, 1)
        image += inside * (tube.grey - image)
    random = np.random.Generator(np.random.Philox(key=1))
    image += random.normal(scale=_NOISE, size=SHAPE)
    return (1000 * np.clip(image, 0, 1)).astype(np.float32), _distance(_HIPPOCAMPUS) < 1


def _distance(tube: _Tube) -> NDArray[np.float64]:
    """Distance from a tube's middle in its radii; infinite above and below it."""
    z, *columns = np.array(tube.ellipses).T
    level = np.arange(SHAPE[2])
    x0, y0, rx, ry = (np.interp(level, z, column) for column in columns)
    x, y = np.arange(SHAPE[0])[:, None, None], np.arange(SHAPE[1])[:, None]
    distance = np.sqrt(((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2)
    return np.where((level >= z[0]) & (level <= z[-1]), distance, np.inf)
