"""The same bits for ever: states, fire masks, gradients, trainings and masks, by the hashes that are kept of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import fingerprint
from pynca import zoo
from support import DATA

pytestmark = pytest.mark.engine

PARTS: list[Callable[[], Iterator[tuple[str, np.ndarray]]]] = [
    fingerprint.states,
    fingerprint.fire_masks,
    fingerprint.gradients,
    fingerprint.trainings,
    fingerprint.models,
]


def differences(results: Iterator[tuple[str, np.ndarray]], isa: str) -> list[str]:
    """What has other bits than it had; `fingerprint.py --keep` writes the hashes of new cases."""
    kept = fingerprint.kept(isa)
    return [name for name, array in results if kept[name] != fingerprint.hashed(name, array)]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_bits_are_those_that_they_were(part: Callable[[], Iterator[tuple[str, np.ndarray]]], isa: str) -> None:
    assert differences(part(), isa) == []


@pytest.mark.filterwarnings("ignore:.*pixel")  # how large they are is no matter of the bits
def test_masks_of_real_scans_are_those_that_they_were(isa: str) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} with the real files is not there")
    pytest.importorskip("PIL")
    assert differences(fingerprint.real_results(), isa) == []


def test_every_bundled_model_is_among_them() -> None:
    assert set(fingerprint.REAL) == set(fingerprint.IMAGES) == set(zoo.names())
