"""The preparation of slices against the papers' own arrays, and the way back against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pynca
from pynca.preprocessing import resize_cubic, shrink_linear
from support import REFERENCE, golden_cases

PIPELINES = golden_cases("e")
REAL = [case["file"] for case in PIPELINES if "raw_slice" in case["arrays"]]
WITH_LOW = [case["file"] for case in PIPELINES if "low_image" in case["arrays"]]

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
grids = st.tuples(st.integers(2, 40), st.integers(2, 40))


def recorded(file: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / file) as arrays:
        return {name: arrays[name] for name in arrays}


# --- the papers' own arrays ------------------------------------------------------------------------------


def test_all_recorded_slices_are_here(reference: Path) -> None:
    assert len(REAL) == 5
    assert len(WITH_LOW) == 6


@pytest.mark.parametrize("file", REAL)
def test_recorded_resize(file: str) -> None:
    arrays = recorded(file)
    resized = resize_cubic(arrays["raw_slice"][None].astype(np.float64), (64, 64))[0]
    assert np.abs(resized - arrays["raw_resized"]).max() <= 1e-6 * np.abs(arrays["raw_slice"]).max()


@pytest.mark.parametrize("file", REAL)
def test_recorded_preparation(file: str) -> None:
    arrays = recorded(file)
    prepared = pynca.Preparation((64, 64)).prepare(arrays["raw_slice"][None])
    assert prepared.dtype == np.float32
    assert prepared.shape == (1, 64, 64)
    np.testing.assert_allclose(prepared[0], arrays["image"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("file", WITH_LOW)
def test_recorded_shrinking(file: str) -> None:
    arrays = recorded(file)
    np.testing.assert_allclose(shrink_linear(arrays["image"][None], 4)[0], arrays["low_image"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("file", REAL)
def test_the_way_back_undoes_the_offset_of_the_papers_labels(file: str) -> None:
    """Their labels are resized with the source index rounded down; read back as logits they lie where they were."""
    arrays = recorded(file)
    raw, label = arrays["raw_label"] > 0, arrays["label"] > 0
    rows, columns = (np.arange(64) * n // 64 for n in raw.shape)
    np.testing.assert_array_equal(raw[rows][:, columns], label)
    logits = np.where(label, 1.0, -1.0).astype(np.float32)[None]
    undone, kept = (
        pynca.Preparation((64, 64), label_offset=offset).restore(logits, raw.shape)[0] > 0 for offset in (0.5, 0.0)
    )
    np.testing.assert_array_equal(undone, raw)
    if raw.any():
        assert 2 * np.count_nonzero(kept & raw) < 0.98 * (np.count_nonzero(kept) + np.count_nonzero(raw))


# --- what holds for every slice -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -7.0, 255.0, 1e-40, 3.4e38])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (70, 3)])
def test_a_constant_slice_becomes_zeros(value: float, shape: tuple[int, int]) -> None:
    prepared = pynca.Preparation((16, 12)).prepare(np.full((2, *shape), value))
    assert prepared.shape == (2, 16, 12)
    assert not prepared.any()


@settings(max_examples=50, deadline=None)
@given(size=sizes, grid=grids, seed=st.integers(0, 2**32 - 1), gain=st.floats(1e-3, 1e6), shift=st.floats(-1e3, 1e3))
def test_prepared_slices_lie_in_zero_to_one_whatever_their_unit(
    size: tuple[int, int], grid: tuple[int, int], seed: int, gain: float, shift: float
) -> None:
    slices = np.random.default_rng(seed).normal(size=(2, *size))
    preparation = pynca.Preparation(grid)
    prepared = preparation.prepare(slices)
    assert prepared.min() >= 0
    assert prepared.max() <= 1
    # float32 has 24 bits: a shift far beyond the contrast costs as many
    tolerance = 1e-5 * (1 + abs(shift / gain) + np.abs(slices).max()) / max(np.ptp(slices), 1e-3)
    if np.prod(size) > 1:
        np.testing.assert_allclose(preparation.prepare(slices * gain + shift), prepared, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [("u4", 2**31), ("u4", 2**32 - 256), ("i4", -(2**31)), ("u8", 2**64 - 256), ("i8", -(2**63)), ("f8", 1e12)],
)
def test_values_far_from_zero_are_told_apart(dtype: str, offset: float) -> None:
    preparation = pynca.Preparation((24, 24))
    slices = np.random.default_rng(0).integers(0, 256, (2, 20, 30))
    moved = slices.astype(dtype) + np.array(offset, dtype)
    np.testing.assert_allclose(preparation.prepare(moved), preparation.prepare(slices.astype(float)), rtol=0, atol=1e-6)


def test_the_largest_values_of_float32_overshoot_into_no_infinity() -> None:
    """Between zeros and the largest number the cubic kernel gives more than it: that must not become infinite."""
    slices = np.zeros((2, 10, 10))
    slices[0, 5:] = np.finfo(np.float32).max
    slices[1, 5:] = -slices[0, 5:]
    first, second = pynca.Preparation((24, 24)).prepare(slices)
    assert (first.min(), first.max()) == (0, 1)
    assert (second.min(), second.max()) == (0, 1)
    assert first[:9].max() < 0.1 < 0.9 < first[-9:].min()
    assert second[-9:].max() < 0.1 < 0.9 < second[:9].min()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64, np.float16, np.float32, ">f8", np.longdouble])
def test_any_real_dtype(dtype: Any) -> None:
    slices = np.random.default_rng(1).integers(0, 2, (3, 9, 11))
    preparation = pynca.Preparation((16, 16))
    np.testing.assert_array_equal(preparation.prepare(slices.astype(dtype)), preparation.prepare(slices.astype(float)))


def test_slices_are_independent_of_their_neighbours_and_unchanged() -> None:
    slices = np.random.default_rng(2).gamma(2.0, 100.0, (9, 21, 34))
    slices[4] = 3.0
    before = slices.copy()
    preparation = pynca.Preparation((16, 20))
    together = preparation.prepare(slices)
    for n, alone in enumerate(slices):
        np.testing.assert_array_equal(preparation.prepare(alone[None])[0], together[n])
    np.testing.assert_array_equal(preparation.prepare(slices[::-1])[::-1], together)
    np.testing.assert_array_equal(slices, before)


def test_percentiles_decide_what_is_clipped() -> None:
    ramp = np.tile(np.linspace(0.0, 100.0, 401), (5, 1))[None]
    prepared = pynca.Preparation((5, 401), percentiles=(10, 75)).prepare(ramp)[0, 0]
    np.testing.assert_allclose(prepared, np.clip((ramp[0, 0] - 10) / 65, 0, 1), atol=1e-6)


def test_resizing_to_its_own_size_changes_nothing() -> None:
    image = np.random.default_rng(3).normal(size=(1, 13, 17))
    np.testing.assert_array_equal(resize_cubic(image, (13, 17)), image)


# --- shrinking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_shrinking_by_an_even_factor_takes_the_mean_of_the_middle_four(scale: int) -> None:
    image = np.random.default_rng(4).random((2, 3 * scale, 5 * scale)).astype(np.float32)
    blocks = image.reshape(2, 3, scale, 5, scale)
    a, b = scale // 2 - 1, scale // 2
    expected = blocks[:, :, [a, b]][..., [a, b]].mean(axis=(2, 4))
    np.testing.assert_allclose(shrink_linear(image, scale), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 3, 5])
def test_shrinking_by_an_odd_factor_takes_the_middle(scale: int) -> None:
    image = np.random.default_rng(5).random((1, 4 * scale, 3 * scale, 2)).astype(np.float32)
    middle = scale // 2
    np.testing.assert_array_equal(shrink_linear(image, scale), image[:, middle::scale, middle::scale])


# --- the way back -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(grid=grids, seed=st.integers(0, 2**32 - 1))
def test_restoring_to_the_same_size_is_the_identity(grid: tuple[int, int], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, *grid)).astype(np.float32)
    np.testing.assert_array_equal(pynca.Preparation(grid).restore(logits, grid), logits)


@settings(max_examples=30, deadline=None)
@given(grid=grids, size=sizes, value=st.floats(-30, 30, width=32), offset=st.floats(-4, 4))
def test_a_constant_stays_constant(grid: tuple[int, int], size: tuple[int, int], value: float, offset: float) -> None:
    logits = np.full((2, *grid), value, np.float32)
    restored = pynca.Preparation(grid, label_offset=offset).restore(logits, size)
    assert restored.shape == (2, *size)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, value, rtol=1e-6, atol=np.finfo(np.float32).tiny)


@settings(max_examples=50, deadline=None)
@given(grid=grids, size=sizes, offset=st.sampled_from([0.0, 0.5, -0.5, 1.0, 2.25]))
def test_a_ramp_stays_a_ramp_and_is_read_at_the_stated_position(
    grid: tuple[int, int], size: tuple[int, int], offset: float
) -> None:
    """Grid position of pixel i: (i + 0.5) * grid / n - 0.5 + label_offset, clamped at the border."""
    rows, columns = (
        np.clip((np.arange(n) + 0.5) * g / n - 0.5 + offset, 0, g - 1) for n, g in zip(size, grid, strict=True)
    )
    y, x = np.meshgrid(*(np.arange(g, dtype=np.float32) for g in grid), indexing="ij")
    restored = pynca.Preparation(grid, label_offset=offset).restore(np.stack([y, x]), size)
    np.testing.assert_allclose(restored[0], np.broadcast_to(rows[:, None], size), atol=1e-4)
    np.testing.assert_allclose(restored[1], np.broadcast_to(columns, size), atol=1e-4)


def test_the_papers_offset_is_the_position_the_reference_states() -> None:
    """With half a pixel, native voxel i of n lies at (i + 0.5) * 64 / n."""
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))[None]
    for n in (32, 35, 48, 64, 131):
        restored = pynca.Preparation((64, 64), label_offset=0.5).restore(ramp, (3, n))[0]
        expected = np.minimum((np.arange(n) + 0.5) * 64 / n, 63)
        np.testing.assert_allclose(restored, np.broadcast_to(expected, (3, n)), atol=1e-4)


def test_rows_and_columns_are_not_exchanged() -> None:
    logits = np.zeros((1, 8, 24), np.float32)
    logits[0, 1, 20] = 1
    restored = pynca.Preparation((8, 24)).restore(logits, (16, 12))
    assert restored.shape == (1, 16, 12)
    row, column = np.unravel_index(restored[0].argmax(), (16, 12))
    assert row in (2, 3)
    assert column == 10


# --- what a preparation can be -----------------------------------------------------------------------------


def test_equal_preparations_are_equal_however_they_were_written() -> None:
    plain = pynca.Preparation((64, 48), spacing=(1.0, 1.0, 2.0), percentiles=(1.0, 99.0), axis=1, label_offset=1.0)
    other = pynca.Preparation(
        np.array([64, 48]),  # type: ignore[arg-type]
        spacing=[1, np.float32(1), 2],  # type: ignore[arg-type]
        percentiles=[np.int8(1), 99],  # type: ignore[arg-type]
        axis=np.int64(1),  # type: ignore[arg-type]
        label_offset=np.float32(1),  # type: ignore[arg-type]
    )
    assert plain == other
    assert hash(plain) == hash(other)
    assert type(other.size[0]) is int
    assert type(other.spacing[1]) is float


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(
        ({"size": size}, ValueError, r"size is .*; it must be two whole numbers between 2 and 4096")
        for size in [(64,), (64, 64, 64), (1, 64), (64, 65537), (64.0, 64.0), (64, 2.5), (True, 64), (-2, 64)]
    ),
    *(({"size": size}, ValueError, "size is ") for size in [None, 64, "64", (None, 3), (np.nan, 3), {}, np.array(64)]),
    *(
        ({"orientation": codes}, ValueError, r"orientation is .*; it must name three patient directions")
        for codes in ["", "RA", "RAL", "RASR", "ras", "XYZ", None, 3, ["R", "A", "S"], b"RAS"]
    ),
    *(({"axis": axis}, ValueError, f"axis is {axis}; it must be between 0 and 2") for axis in [3, -1]),
    ({"axis": 10**400}, ValueError, r"axis is 10+\.\.\.0+; it must be between 0 and 2"),
    *(({"axis": axis}, TypeError, "axis is .*; it must be a whole number") for axis in [None, 1.0, "1", True, np.nan]),
    *(
        ({"spacing": spacing}, ValueError, r"spacing is .*; it must be three sizes in mm above 0")
        for spacing in [
            *[(1, 1), (1, 1, 1, 1), (0, 1, 1), (-1, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1), (10**400, 1, 1)],
            *[None, 1.0, "111", (1, 1, "1"), (1, 1, None), (True, 1, 1), (1, 1, 1j), [[1, 1, 1]] * 3],
        ]
    ),
    *(
        ({"percentiles": pair}, ValueError, r"percentiles are .*; they must be two numbers that ascend")
        for pair in [(5,), (1, 2, 3), (5, 5), (9, 2), (-1, 9), (0, 101), (np.nan, 9), (0, np.nan), None, 5, "09", "ab"]
    ),
    *(
        ({"label_offset": offset}, ValueError, r"label_offset is .*; it must be a number between -4 and 4")
        for offset in [4.5, -5, np.nan, np.inf, 10**400, None, "0", (0.5, 0.5), True, 0.5j]
    ),
]


@pytest.mark.parametrize(("options", "error", "sentence"), REFUSED)
def test_refused_preparations(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=rf"^{sentence}"):
        pynca.Preparation(**{"size": (64, 64), **options})


def test_a_preparation_is_immutable() -> None:
    with pytest.raises(AttributeError):
        pynca.Preparation((64, 64)).size = (32, 32)  # type: ignore[misc]
