"""Pieces and holes, against a flood fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

import pynca
from pynca.postprocessing import components, fill_holes, keep_largest, postprocess
from pynca.volumes import Volume
from support import random_model

MASKS = array_shapes(min_dims=2, max_dims=3, max_side=9).flatmap(lambda shape: arrays(bool, shape))


def flooded(mask: np.ndarray) -> np.ndarray:
    """Number the pieces by walking from voxel to voxel."""
    labels, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        stack = [start]
        labels[start] = count
        while stack:
            place = stack.pop()
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    beside = tuple(p + step * (a == axis) for a, p in enumerate(place))
                    inside = all(0 <= p < n for p, n in zip(beside, mask.shape, strict=True))
                    if inside and mask[beside] and not labels[beside]:
                        labels[beside] = count
                        stack.append(beside)
    return labels


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_pieces_are_those_of_a_flood_fill(mask: np.ndarray) -> None:
    labels, sizes = components(mask)
    np.testing.assert_array_equal(labels, flooded(mask))
    np.testing.assert_array_equal(sizes, np.bincount(labels.ravel(), minlength=1)[1:])


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_largest_and_filled(mask: np.ndarray) -> None:
    labels = flooded(mask)
    sizes = np.bincount(labels.ravel())[1:]
    largest = keep_largest(mask)
    assert largest.sum() == (sizes.max() if len(sizes) else 0)
    assert not (largest & ~mask).any()
    filled = fill_holes(mask)
    outside = flooded(np.pad(~mask, 1, constant_values=True)) == 1
    np.testing.assert_array_equal(filled, ~outside[tuple(slice(1, -1) for _ in mask.shape)])
    np.testing.assert_array_equal(fill_holes(filled), filled)


def test_steps_in_their_order() -> None:
    mask = np.zeros((4, 9, 9), bool)
    mask[1:3, 1:6, 1:6] = True
    mask[1, 3, 3] = False  # a hole in its slice, not in the volume
    mask[3, 7, 7] = True
    done = postprocess(mask, ("largest", "fill"))
    assert done[1:3, 1:6, 1:6].all()
    assert done.sum() == 50
    assert postprocess(mask, ("fill",)).sum() == 51
    assert postprocess(mask, ()) is mask
    assert not postprocess(np.zeros((2, 3, 3), bool), ("largest", "fill")).any()


def test_a_model_states_it(tmp_path: Path) -> None:
    model = replace(random_model(), threshold=0.5)
    image = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    raw = pynca.segment(image, model, threads=1)
    stated = replace(model, postprocessing=("largest", "fill"))
    np.testing.assert_array_equal(
        pynca.segment(image, stated, threads=1), postprocess(raw[None] > 0, ("largest", "fill"))[0]
    )
    stated.save(tmp_path / "m.safetensors")
    assert pynca.load_model(tmp_path / "m.safetensors").postprocessing == ("largest", "fill")
    model.save(tmp_path / "m.safetensors")
    assert pynca.load_model(tmp_path / "m.safetensors").postprocessing == ()
    with pytest.raises(ValueError, match="postprocessing is"):
        replace(model, postprocessing=("smooth",))


@pytest.mark.parametrize("shape", [(256, 256), (40, 60, 40)])
def test_noise_of_real_size_is_done_in_reasonable_work(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    assert keep_largest(mask).any()
    assert keep_largest(np.zeros(shape, bool)).sum() == 0
    assert fill_holes(np.ones(shape, bool)).all()


def test_each_frame_of_a_film_keeps_its_own_largest_piece() -> None:
    model = replace(random_model(), postprocessing=("largest", "fill"))
    film = Volume(np.random.default_rng(3).random((9, 8, 5, 3)), np.eye(4), None, "the film")
    whole = pynca.segment(film, model)
    for n in range(3):
        np.testing.assert_array_equal(whole[..., n], pynca.segment(replace(film, data=film.data[..., n]), model))
