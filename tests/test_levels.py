"""Training of any number of levels: the whole of a batch, differentiated, and what a batch is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pynca
from pynca.preprocessing import shrink_mean
from pynca.training import losses, sampling
from pynca.training.fit import fit_slices, supervision
from pynca.training.pipeline import initial_weights, loss_and_gradients, model_of, rules_of
from pynca.training.recipe import Recipe
from pynca.training.sampling import Augmentation, Slices
from pynca.training.state import State

SMALL = Recipe(
    channels=5,
    hidden=11,
    steps=(4, 3, 3),
    scales=(8, 4, 1),
    patch=(16, 8),
    border=2,
    supervision=0.4,
    batch=3,
    batches=4,
)
PREPARATION = pynca.Preparation((32, 24), shrink="mean")


def problem(recipe: Recipe, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    images = random.random((3, 32, 24)).astype(np.float32)
    levels = initial_weights(recipe)
    for level in levels:
        level["fc1.weight"] += random.normal(scale=0.1, size=level["fc1.weight"].shape).astype(np.float32)
    return {
        "levels": levels,
        "images": images,
        "labels": (images > 0.6).astype(np.float32),
        "places": np.array([[0, 0], [16, 12], [8, 16]]),
    }


def differentiate(p: dict[str, Any], recipe: Recipe, levels: list[dict[str, np.ndarray]]) -> Any:
    return loss_and_gradients(
        rules_of(levels, recipe), recipe, p["images"], p["labels"], p["places"], 5, shrink="mean",
        supervision=recipe.supervision,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"supervision": 0.0}, {"border": 0, "supervision": 0.0}])
def test_gradients_of_three_levels_by_finite_differences(options: dict[str, Any]) -> None:
    recipe = replace(SMALL, **options)
    p = problem(recipe)
    _, gradients = differentiate(p, recipe, p["levels"])
    random = np.random.default_rng(1)
    for n, level in enumerate(gradients):
        for name, gradient in level.items():
            direction = random.normal(size=gradient.shape)
            direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)
            values = []
            for sign in (1, -1):
                moved = [dict(weights) for weights in p["levels"]]
                moved[n][name] = (moved[n][name] + sign * 2e-3 * direction).astype(np.float32)
                values.append(differentiate(p, recipe, moved)[0])
            numeric = (values[0] - values[1]) / 4e-3
            assert numeric == pytest.approx(float((direction * gradient).sum()), rel=3e-2, abs=2e-6), (n, name)


def test_training_and_inference_are_the_same_run() -> None:
    """Where the patch is the whole slice, the loss is that of the model's logits."""
    recipe = replace(SMALL, patch=(32, 24), border=0, supervision=0.0)
    p = problem(recipe)
    model = model_of(p["levels"], recipe, PREPARATION)
    p |= {"images": p["images"][:1], "labels": p["labels"][:1], "places": np.zeros((1, 2), int)}
    logits = model.logits(p["images"][0], seed=5)
    assert differentiate(p, recipe, p["levels"])[0] == losses.evaluate("dice_bce", logits, p["labels"][0])[0]


def test_the_border_of_a_patch_is_not_judged() -> None:
    recipe = replace(SMALL, supervision=0.0)
    p = problem(recipe)
    value, _ = differentiate(p, recipe, p["levels"])
    changed = p["labels"].copy()
    changed[0, 14:16, :8] = 1 - changed[0, 14:16, :8]  # the side of the first patch that lies inside the slice
    assert differentiate(p | {"labels": changed}, recipe, p["levels"])[0] == value
    changed = p["labels"].copy()
    changed[0, 0, :4] = 1 - changed[0, 0, :4]  # the side where the slice ends
    assert differentiate(p | {"labels": changed}, recipe, p["levels"])[0] != value


def test_coarse_levels_learn_from_their_own_loss() -> None:
    p = problem(SMALL)
    p["labels"][:] = 0
    p["labels"][0, 20:, 16:] = 1  # far from the first patch
    judged = differentiate(p, SMALL, p["levels"])[0]
    assert judged > differentiate(p, replace(SMALL, supervision=0.0), p["levels"])[0]
    state = State.start(SMALL)
    assert supervision(SMALL, state) == 0.4
    state.batch = SMALL.batches
    assert supervision(SMALL, state) == pytest.approx(0.04)


def test_three_levels_learn() -> None:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :24]
    centre = random.uniform(8, 16, (12, 2, 1, 1))
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 25).astype(np.float32)
    images = np.clip(0.2 + 0.6 * labels + random.normal(scale=0.05, size=labels.shape), 0, 1).astype(np.float32)
    recipe = replace(
        SMALL, channels=8, hidden=24, steps=(5, 5, 5), patch=(16, 16), batch=8, batches=150, rate=4e-3, last_rate=1e-3,
        average=0.9, evaluate=150, negatives=0.125, on_label=0.4, on_errors=0.3, augmentation=Augmentation(shift=1.0),
    )  # fmt: skip
    model = fit_slices(Slices(images, labels), recipe, PREPARATION)
    assert [level.scale for level in model.levels] == [8, 4, 1]
    mask = np.stack([model.logits(image) > 0 for image in images])
    assert 2 * (mask & (labels > 0.5)).sum() / (mask.sum() + labels.sum()) > 0.85


def test_patches_lie_on_what_is_wrongly_found() -> None:
    labels = np.zeros((300, 32, 32), np.float32)
    labels[:, 2:6, 2:6] = 1
    logits = np.full((300, 8, 8), -1.0, np.float32)
    logits[:, 6, 6] = 1  # wrong
    logits[:, 1, 1] = 1  # right: the label begins in this cell
    choose = sampling.patches(labels, (8, 8), 4, sampling.generator(0, 0, 0), 0.5, 0.25)
    assert callable(choose)
    places = choose(logits)
    assert (places % 4 == 0).all()
    assert (places <= 24).all()
    on_label = ((places <= 5) & (places + 8 > 2)).all(axis=1)
    on_error = ((places <= 26) & (places + 8 > 26)).all(axis=1)
    assert 0.48 < on_label.mean() < 0.72
    assert 0.24 < on_error.mean() < 0.50
    nothing_wrong = choose(np.full((300, 8, 8), -1.0, np.float32))
    assert ((nothing_wrong <= 26) & (nothing_wrong + 8 > 26)).all(axis=1).mean() < 0.25


def test_negatives_do_not_show_the_label() -> None:
    labels = np.zeros((40, 64, 64), np.float32)
    labels[:, 25:40, 25:40] = 1
    still = Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0)
    slices = Slices(0.1 + 0.5 * labels, labels)
    images, seen = sampling.draw(slices, 40, still, sampling.generator(0, 0, 0), negatives=0.25)
    assert (seen[:30].max(axis=(1, 2)) > 0.9).all()
    assert (seen[30:].max(axis=(1, 2)) < 0.5).mean() >= 0.9
    np.testing.assert_allclose(images, 0.1 + 0.5 * seen, atol=1e-6)


def test_small_structures_are_drawn_more_often() -> None:
    labels = np.zeros((4, 64, 64), np.float32)
    for n, side in enumerate((0, 4, 16, 32)):
        labels[n, 20 : 20 + side, 20 : 20 + side] = 1
    still = Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0)

    def areas(small_first: bool) -> np.ndarray:
        drawn = sampling.draw(
            Slices(labels, labels), 2000, still, sampling.generator(0, 0, 0), small_first=small_first
        )[1]
        return drawn[:1000].sum(axis=(1, 2)).round()

    often = 1 / (np.array([16, 256, 1024]) + np.mean([16, 256, 1024]) / 4)
    for small_first, shares in ((False, np.full(3, 1 / 3)), (True, often / often.sum())):
        found = areas(small_first)
        assert [np.mean(found == area) for area in (16, 256, 1024)] == pytest.approx(list(shares), abs=0.05)


def test_few_negatives_are_as_many_on_average() -> None:
    labels = np.zeros((4, 64, 64), np.float32)
    labels[:, 25:40, 25:40] = 1
    still = Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0)
    shown = [
        sampling.draw(Slices(labels, labels), 4, still, sampling.generator(0, 0, n), negatives=0.125)[1].max(
            axis=(1, 2)
        )
        for n in range(60)
    ]
    assert 0.06 < np.mean(np.array(shown) < 0.5) < 0.19  # half a slice of four, in 60 batches


def test_some_are_turned_by_quarters() -> None:
    random = np.random.default_rng(0)
    labels = random.random((60, 9, 9)).astype(np.float32)
    turned = Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0, quarters=0.5)
    _, seen = sampling.vary(labels, labels, turned, sampling.generator(0, 0, 0))
    quarters = [
        [k for k in range(4) if np.allclose(after, np.rot90(before, k), atol=1e-5)]
        for before, after in zip(labels, seen, strict=True)
    ]
    assert all(len(k) == 1 for k in quarters)
    counts = np.bincount(np.array(quarters).ravel(), minlength=4)
    assert 20 <= counts[0] <= 40
    assert counts[1:].min() >= 4


def test_the_last_weights_can_be_kept() -> None:
    images = np.random.default_rng(0).random((6, 32, 24)).astype(np.float32)
    slices = Slices(images, (images > 0.5).astype(np.float32))

    def fc1(keep: str, scores: list[float]) -> Any:
        recipe = replace(SMALL, batches=len(scores), evaluate=1, keep=keep)
        model = fit_slices(slices, recipe, PREPARATION, score=lambda _: scores.pop(0))
        return model.levels[-1].rule.weights["fc1.weight"]

    falling = fc1("best", [0.5, 0.4, 0.4])
    np.testing.assert_array_equal(fc1("last", [0.5, 0.4, 0.4]), fc1("best", [0.4, 0.4, 0.5]))
    assert (falling != fc1("last", [0.5, 0.4, 0.4])).any()


def test_shrinking_by_means() -> None:
    image = np.random.default_rng(0).random((2, 12, 8)).astype(np.float32)
    np.testing.assert_allclose(shrink_mean(image, 4), image.reshape(2, 3, 4, 2, 4).mean(axis=(2, 4)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": (4, 4)}, "both must have one number a level"),
        ({"scales": (8, 3, 1)}, "each a multiple of the next"),
        ({"scales": (8, 4, 2)}, "must descend to 1"),
        ({"patch": (16, 10)}, "multiples of 4"),
        ({"border": 4}, "border is 4"),
        ({"supervision": -1.0}, "supervision is -1"),
        ({"keep": "first"}, "keep is 'first'"),
        ({"fall": "steps"}, "fall is 'steps'; it must be one of exponential, linear"),
        ({"negatives": 1.5}, "negatives is 1.5"),
        ({"on_label": 0.7, "on_errors": 0.6}, "on_label is 0.7 and on_errors is 0.6"),
    ],
)
def test_recipes_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quarters": 1.5}, "quarters is 1.5; it must be a number from 0 to 1"),
        ({"zoom": 1.0}, "zoom is 1.0; it must be a number from 0 to 0.9"),
        ({"shift": -1.0}, "shift is -1.0; it must be a number of at least 0"),
        ({"noise": float("nan")}, "noise is nan"),
    ],
)
def test_variations_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Augmentation(**options)
