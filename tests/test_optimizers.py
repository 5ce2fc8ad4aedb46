"""Steps of Adam and Muon, clipping, and the average of weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynca.training._gradient import orthogonalized
from pynca.training.optimizers import Adam, Muon, clip, moved_average


def test_clip_and_average() -> None:
    gradients = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}
    clipped, norm = clip(gradients, 1.0)
    assert norm == pytest.approx(5)
    np.testing.assert_allclose(clipped["a"], [0.6], rtol=1e-6)
    assert clip(gradients, 10.0)[0] is gradients
    average = moved_average({"a": np.zeros(1, np.float32)}, {"a": np.ones(1, np.float32)}, 0.99, 10**6)
    np.testing.assert_allclose(average["a"], [0.01], rtol=1e-4)
    weight = {"a": np.ones(1, np.float32)}
    assert Adam().update(weight, {"a": np.ones(1, np.float32)}, 0.1)["a"] == pytest.approx(0.9)


# --- Muon ------------------------------------------------------------------------------------------------


def near_one(singular_values: np.ndarray) -> np.ndarray:
    """What five steps of the iteration make of singular values, in double precision."""
    x = singular_values / np.sqrt(np.square(singular_values).sum())
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([1e-9, 1e-3, 1.0, 1e20]))
def test_singular_values_come_near_one_and_vectors_stay(rows: int, columns: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    matrix = (scale * random.normal(size=(rows, columns))).astype(np.float32)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    result = orthogonalized(matrix)
    np.testing.assert_allclose(result, left * near_one(values) @ right, atol=2e-4)
    large = values > 0.002 * np.linalg.norm(values)
    found = np.linalg.svd(result.astype(np.float64), compute_uv=False)[: large.sum()]
    assert found.min() > 0.68
    assert found.max() < 1.21


def test_what_is_no_direction_becomes_zeros() -> None:
    for nothing in (0.0, 6e-45, 1e-14):
        np.testing.assert_array_equal(orthogonalized(np.full((3, 5), nothing, np.float32)), 0)
    with pytest.raises(ValueError, match="rows, columns"):
        orthogonalized(np.zeros(3, np.float32))


def test_without_gradients_muon_comes_to_rest() -> None:
    random = np.random.default_rng(0)
    muon, weights = Muon(), {"matrix": np.zeros((6, 9), np.float32)}
    weights = muon.update(weights, {"matrix": random.normal(size=(6, 9)).astype(np.float32)}, 0.01)
    for _ in range(400):
        before, weights = weights, muon.update(weights, {"matrix": np.zeros((6, 9), np.float32)}, 0.01)
    np.testing.assert_array_equal(weights["matrix"], before["matrix"])


def test_muon_steps_in_all_directions_alike_whatever_the_size_of_gradients() -> None:
    random = np.random.default_rng(0)
    weights = {"conv": np.zeros((8, 6, 3, 3), np.float32), "matrix": np.zeros((30, 12), np.float32)}
    gradients = {name: random.normal(size=w.shape).astype(np.float32) for name, w in weights.items()}
    # one direction far ahead of the others, as in gradients of a training
    gradients["matrix"] += 20 * np.ones((30, 12), np.float32)
    moved = Muon().update(weights, gradients, 0.01)
    for name, weight in moved.items():
        step = weight.reshape(len(weight), -1)
        assert np.sqrt(np.square(step).mean()) == pytest.approx(0.2 * 0.01, rel=0.25)
        values = np.linalg.svd(step, compute_uv=False)
        assert values.max() < 1.8 * values.min()
        assert (step * gradients[name].reshape(step.shape)).sum() < 0  # downhill
    larger = Muon().update(weights, {name: 1024 * g for name, g in gradients.items()}, 0.01)
    for name in weights:
        np.testing.assert_array_equal(larger[name], moved[name])


def test_muon_keeps_momentum_and_leaves_biases_to_adam() -> None:
    random = np.random.default_rng(0)
    muon, adam = Muon((0.5, 0.9)), Adam((0.5, 0.9))
    weights = {"matrix": np.zeros((2, 3), np.float32), "bias": np.zeros(4, np.float32)}
    biases = {"bias": weights["bias"]}
    first, second = ({n: random.normal(size=w.shape).astype(np.float32) for n, w in weights.items()} for _ in range(2))
    for gradients in (first, second):
        before = weights
        weights = muon.update(weights, gradients, 0.01)
        biases = adam.update(biases, gradients, 0.01)
        np.testing.assert_array_equal(weights["bias"], biases["bias"])
    momentum = 0.25 * first["matrix"] + 0.5 * second["matrix"]
    ahead = orthogonalized((0.5 * momentum + 0.5 * second["matrix"]).astype(np.float32))
    np.testing.assert_allclose(weights["matrix"] - before["matrix"], -0.002 * np.sqrt(3) * ahead, atol=1e-7)
