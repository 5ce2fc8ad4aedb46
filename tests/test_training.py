"""Training: it learns, it repeats, it goes on where it stopped, and it notices when it fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import pynca
from pynca import cases, tensorfile
from pynca.cli.train import _reached
from pynca.errors import NotFinite
from pynca.training import dataset, sampling
from pynca.training.ahead import Batches
from pynca.training.fit import fit_slices, learning_rate, train_batch
from pynca.training.optimizers import OPTIMIZERS
from pynca.training.pipeline import loss_and_gradients
from pynca.training.recipe import Recipe
from pynca.training.sampling import Augmentation, Slices
from pynca.training.state import LOG, STATE, State, saved_recipe
from pynca.training.train import draw_curve, train

SMALL = Recipe(channels=6, hidden=12, steps=(4, 4), patch=(8, 8), batch=4, batches=6, evaluate=2, seed=3)
PREPARATION = pynca.Preparation(size=(16, 16))


def blobs(count: int = 12, size: int = 16) -> Slices:
    """Bright discs on a dark ground: the label is the disc."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    centre = random.uniform(size * 0.3, size * 0.7, (count, 2, 1, 1))
    labels = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < (size / 5) ** 2).astype(np.float32)
    images = 0.2 + 0.6 * labels + random.normal(scale=0.05, size=labels.shape)
    return Slices(np.clip(images, 0, 1).astype(np.float32), labels)


def same_weights(a: pynca.Model, b: pynca.Model) -> bool:
    return all(
        np.array_equal(value, other.rule.weights[name])
        for level, other in zip(a.levels, b.levels, strict=True)
        for name, value in level.rule.weights.items()
    )


def test_the_published_configuration_is_the_authors(reference: Path) -> None:
    config = json.loads((reference / "checkpoints/med_nca_hippocampus/config.dt").read_text())[0]
    recipe = Recipe.published(batches=5000)
    assert (recipe.batch, recipe.channels, recipe.hidden) == (40, config["channel_n"], config["hidden_size"])
    assert recipe.batch == config["batch_size"]
    assert recipe.steps == (config["inference_steps"],) * 2
    assert list(recipe.patch) == config["input_size"][0]
    assert list(recipe.betas) == config["betas"]
    state = State.start(replace(recipe, channels=4, hidden=4))
    for batch in (0, 1, 1000):
        state.batch = batch
        assert learning_rate(recipe, state) == pytest.approx(config["lr"] * config["lr_gamma"] ** batch)


@pytest.mark.parametrize(("fall", "middle"), [("exponential", math.sqrt(4e-3 * 1e-3)), ("linear", (4e-3 + 1e-3) / 2)])
def test_the_rate_falls_from_first_to_last(fall: str, middle: float) -> None:
    recipe = replace(SMALL, batches=101, rate=4e-3, last_rate=1e-3, fall=fall)
    state = State.start(recipe)
    for batch, rate in ((0, 4e-3), (50, middle), (100, 1e-3), (101, 1e-3)):  # 101: reported after the last batch
        state.batch = batch
        assert learning_rate(recipe, state) == pytest.approx(rate)
    state.rate_factor = 0.5
    assert learning_rate(recipe, state) == pytest.approx(0.5e-3)


# --- fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 4e-3), ("muon", 1e-2)])
def test_it_learns(optimizer: str, rate: float) -> None:
    slices = blobs()
    recipe = replace(SMALL, channels=8, hidden=24, steps=(6, 6), batch=8, batches=200, rate=rate, last_rate=1e-3)
    recipe = replace(recipe, optimizer=optimizer, average=0.9, augmentation=Augmentation(shift=1.0))
    model = fit_slices(slices, recipe, PREPARATION)
    mask = np.stack([model.logits(image) > 0 for image in slices.images])
    overlap = 2 * (mask & (slices.labels > 0.5)).sum() / (mask.sum() + (slices.labels > 0.5).sum())
    assert overlap > 0.9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_seed_repeats_and_threads_do_not_matter(optimizer: str) -> None:
    recipe = replace(SMALL, optimizer=optimizer)
    first = fit_slices(blobs(), recipe, PREPARATION, threads=1)
    assert same_weights(first, fit_slices(blobs(), recipe, PREPARATION, threads=3))
    assert not same_weights(first, fit_slices(blobs(), replace(recipe, seed=4), PREPARATION))


def test_each_batch_has_fire_masks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def differentiated(*arguments: Any, **options: Any) -> tuple[float, list[dict[str, np.ndarray]]]:
        seeds.append(arguments[5])
        return loss_and_gradients(*arguments, **options)

    monkeypatch.setitem(train_batch.__globals__, "loss_and_gradients", differentiated)
    for attempt in range(2):
        state = State.start(SMALL)
        state.attempt = attempt
        with Batches(blobs(), SMALL) as batches:
            for _ in range(SMALL.batches):
                train_batch(state, batches, SMALL, PREPARATION)
    assert len(set(seeds)) == len(seeds) == 2 * SMALL.batches


def stop_at_four(recipe: Recipe, folder: Path, score: Callable[[pynca.Model], float] | None = None) -> None:
    """Train until the evaluation at batch 4 has been saved."""

    class Stopped(Exception):
        pass

    def stop(entry: dict[str, float]) -> None:
        if entry["batch"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        fit_slices(blobs(), recipe, PREPARATION, score=score, folder=folder, report=stop)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_exact(tmp_path: Path, optimizer: str) -> None:
    """Stopped after any evaluation and taken up again, the weights are those of one go."""
    recipe = replace(SMALL, optimizer=optimizer)

    def score(model: pynca.Model) -> float:
        return float(model.levels[0].rule.weights["fc1.weight"].mean())

    whole = fit_slices(blobs(), recipe, PREPARATION, score=score, folder=tmp_path / "whole")

    stop_at_four(recipe, tmp_path / "parts", score)
    parts = fit_slices(blobs(), recipe, PREPARATION, score=score, folder=tmp_path / "parts", resume=True)
    assert same_weights(whole, parts)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    without_time = [[{**json.loads(line), "seconds": 0} for line in log] for log in logs]
    assert without_time[0] == without_time[1]
    assert saved_recipe(tmp_path / "whole" / STATE) == recipe


def test_a_state_of_before_there_was_a_choice_of_optimizer_goes_on(tmp_path: Path) -> None:
    whole = fit_slices(blobs(), SMALL, PREPARATION)
    stop_at_four(SMALL, tmp_path)
    tensors, metadata = tensorfile.read(tmp_path / STATE)
    recipe = json.loads(metadata["recipe"])
    assert recipe.pop("optimizer") == "adam"
    tensorfile.write(tmp_path / STATE, tensors, {**metadata, "recipe": json.dumps(recipe)})
    assert saved_recipe(tmp_path / STATE) == SMALL
    assert same_weights(whole, fit_slices(blobs(), SMALL, PREPARATION, folder=tmp_path, resume=True))


def test_a_recipe_of_lists_goes_on(tmp_path: Path) -> None:
    recipe = replace(SMALL, steps=[4, 4], scales=[4, 1], patch=[8, 8])  # type: ignore[arg-type]
    stop_at_four(recipe, tmp_path)
    fit_slices(blobs(), recipe, PREPARATION, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("size", "changes", "optimizer", "rate", "betas"),
    [
        (256, {}, "muon", 5e-3, (0.9, 0.99)),
        (256, {"optimizer": "adam"}, "adam", 3e-3, (0.9, 0.99)),
        (256, {"rate": 1e-3}, "muon", 1e-3, (0.9, 0.99)),
        (64, {}, "adam", 1.6e-3, (0.5, 0.5)),
        (64, {"optimizer": "muon"}, "muon", 5e-3, (0.9, 0.99)),
    ],
)
def test_the_rate_suits_the_optimizer(
    size: int, changes: dict[str, Any], optimizer: str, rate: float, betas: tuple[float, float]
) -> None:
    recipe = Recipe.for_size((size, size), **changes)
    assert (recipe.optimizer, recipe.rate, recipe.betas) == (optimizer, rate, betas)


def test_resume_from_a_file_without_a_recipe_is_refused(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / STATE, {"a": np.zeros(1, np.float32)}, {})
    with pytest.raises(ValueError, match="another recipe"):
        fit_slices(blobs(), SMALL, PREPARATION, folder=tmp_path, resume=True)


def test_resume_with_another_recipe_is_refused(tmp_path: Path) -> None:
    fit_slices(blobs(), SMALL, PREPARATION, folder=tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        fit_slices(blobs(), replace(SMALL, rate=1e-4), PREPARATION, folder=tmp_path, resume=True)


def train_half(folder: Path, recipe: Recipe) -> Path:
    """Train until batch 4 of 6 and return the file of the state."""
    stop_at_four(recipe, folder)
    return folder / STATE


def go_on(path: Path, recipe: Recipe, slices: Slices | None = None, **options: Any) -> pynca.Model:
    return fit_slices(slices or blobs(), recipe, PREPARATION, folder=path.parent, resume=True, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("group", ["levels", "average", "best", "first", "second"])
def test_a_state_that_lacks_a_tensor_is_refused(tmp_path: Path, optimizer: str, group: str) -> None:
    recipe = replace(SMALL, optimizer=optimizer)
    path = train_half(tmp_path, recipe)
    tensors, metadata = tensorfile.read(path)
    for n in range(2):
        key = f"{group}.{n}.fc0.bias"
        rest = {name: value for name, value in tensors.items() if name != key}
        tensorfile.write(path, rest, metadata)
        with pytest.raises(ValueError, match=rf"state\.safetensors is no state of a training: it lacks {key}; start"):
            go_on(path, recipe)
    rest = {name: value for name, value in tensors.items() if not name.startswith(group)}
    tensorfile.write(path, rest, metadata)
    with pytest.raises(ValueError, match=rf"it lacks {group}\.0\."):
        go_on(path, recipe)
    tensorfile.write(path, tensors, metadata)
    assert go_on(path, recipe).parameters > 0


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("first.0.extra", np.zeros(1), "it holds 'first.0.extra', which is unknown"),
        ("first.2.fc0.bias", np.zeros(12), "it holds 'first.2.fc0.bias', which is unknown"),
        ("x", np.zeros(1), "it holds 'x', which is unknown"),
        ("first.0.fc0.bias", np.zeros(11), r"first.0.fc0.bias has shape \(11,\); by its recipe it must be \(12,\)"),
        ("levels.1.fc0.weight", np.zeros((18, 12)), r"levels.1.fc0.weight has shape \(18, 12\)"),
        ("best.0.fc1.weight", np.zeros(()), r"best.0.fc1.weight has shape \(\)"),
        ("second.0.fc0.bias", np.full(12, -1.0), "second.0.fc0.bias holds values below 0"),
    ],
)
def test_a_state_with_wrong_tensors_is_refused(tmp_path: Path, key: str, value: np.ndarray, sentence: str) -> None:
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    tensorfile.write(path, tensors | {key: value.astype(np.float32)}, metadata)
    with pytest.raises(ValueError, match=f"no state of a training: {sentence}"):
        go_on(path, SMALL)


def test_muon_has_no_second_moment_of_a_matrix(tmp_path: Path) -> None:
    recipe = replace(SMALL, optimizer="muon")
    path = train_half(tmp_path, recipe)
    tensors, metadata = tensorfile.read(path)
    tensorfile.write(path, tensors | {"second.0.fc0.weight": np.zeros((12, 18), np.float32)}, metadata)
    with pytest.raises(ValueError, match=r"it holds 'second.0.fc0.weight', which is unknown"):
        go_on(path, recipe)


def test_moments_that_are_no_numbers_and_a_file_cut_short_are_refused(tmp_path: Path) -> None:
    path = train_half(tmp_path, SMALL)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match=r"cannot read \S*state.safetensors: tensor .* not finite"):
        go_on(path, SMALL)
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cannot read \S*state.safetensors: "):
            go_on(path, SMALL)
        with pytest.raises(ValueError, match=r"cannot read \S*state.safetensors: "):
            saved_recipe(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist; there is no training to go on with"):
        go_on(path, SMALL)
    with pytest.raises(ValueError, match="resume needs the folder"):
        fit_slices(blobs(), SMALL, PREPARATION, resume=True)


NUMBERS = ["1" + "0" * 400, "1e999", "-1e999", "NaN", "-1", "true", '"1"', "[]", "{}", "1.5", "7"]
CAN_BE = {
    *(("best_score", text) for text in ("-1e999", "-1", "1.5", "7")),
    *(("smooth_loss", text) for text in ("-1", "1.5", "7")),
    *(("lowest_loss", text) for text in ("-1", "1.5", "7")),
    *(("seconds", text) for text in ("1.5", "7")),
}


@pytest.mark.parametrize("name", ["batch", "attempt", "rate_factor", "best_score", "best_batch", "smooth_loss",
                                  "lowest_loss", "seconds", "adam_steps"])  # fmt: skip
def test_numbers_of_a_state_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    scalars = json.loads(metadata["scalars"])
    for text in NUMBERS:
        if (name, text) in CAN_BE:
            continue
        changed = json.dumps(scalars | {name: "here"}).replace('"here"', text)
        tensorfile.write(path, tensors, metadata | {"scalars": changed})
        with pytest.raises(ValueError, match=r"is no state of a training: \w+ (is|are) ") as caught:
            go_on(path, SMALL)
        assert len(str(caught.value)) < 300 + len(str(path))
    for wrong in ({k: v for k, v in scalars.items() if k != name}, scalars | {"more": 1}):
        tensorfile.write(path, tensors, metadata | {"scalars": json.dumps(wrong)})
        with pytest.raises(ValueError, match=rf"({name}|more) is missing or unknown"):
            go_on(path, SMALL)


@pytest.mark.parametrize("steps", [[4], [4, 3], [4, 4, 4], [3, 3], [5, 5], [0, 0], [4, "4"], [4.0, 4.0], 4, None])
def test_steps_of_the_optimizers_fit_the_batches(tmp_path: Path, steps: object) -> None:
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    scalars = json.loads(metadata["scalars"]) | {"adam_steps": steps}
    tensorfile.write(path, tensors, metadata | {"scalars": json.dumps(scalars)})
    with pytest.raises(ValueError, match="adam_steps are"):
        go_on(path, SMALL)


@pytest.mark.parametrize("text", ["", "[", "[]", "7", "null", "[" * 100_000, '{"batch": 1' + "0" * 5000 + "}"])
def test_metadata_that_are_none(tmp_path: Path, text: str) -> None:
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    for name in ("scalars", "recipe"):
        tensorfile.write(path, tensors, metadata | {name: text})
        with pytest.raises(
            ValueError, match=rf"is no state of a training: its {name} (cannot be read as JSON|must be a JSON object)"
        ):
            go_on(path, SMALL)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("batches", "1" + "0" * 400), ("rate", "1e999"), ("rate", "1" + "0" * 400), ("steps", "7"),
        ("steps", '["4", 4]'),
        ("channels", "true"), ("channels", "6.5"), ("hidden", "12e400"), ("loss", "7"), ("loss", '"hinge"'),
        ("augmentation", "7"), ("augmentation", "{}"), ("betas", "[0.5]"), ("betas", "[0.5, 0.5, 0.5]"),
        ("scales", "[4, 1e999]"), ("patch", "[8, 8, 8]"), ("decay", '"x"'), ("decay", "NaN"), ("perception", '"x"'),
        ("fire_rate", "7"), ("keep", "null"), ("small_first", "1"), ("more", "1"),
    ],
)  # fmt: skip
def test_recipes_of_a_state_that_cannot_be_are_refused(tmp_path: Path, name: str, text: str) -> None:
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    changed = json.dumps(json.loads(metadata["recipe"]) | {name: "here"}).replace('"here"', text)
    tensorfile.write(path, tensors, metadata | {"recipe": changed})
    with pytest.raises(ValueError, match=r"state\.safetensors has a recipe that cannot be right: ") as caught:
        saved_recipe(path)
    assert len(str(caught.value)) < 300 + len(str(path))
    with pytest.raises(ValueError, match="written with another recipe"):
        go_on(path, SMALL)


def test_a_training_goes_on_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    path = train_half(tmp_path, SMALL)
    slices = blobs()
    darker = Slices(slices.images * np.float32(0.5), slices.labels)
    other = Slices(slices.images, slices.labels[::-1].copy())
    for wrong in (darker, other, blobs(11)):
        with pytest.raises(ValueError, match="was written with other images, labels, validation cases or preparation"):
            go_on(path, SMALL, wrong)
    with pytest.raises(ValueError, match="was written with other images"):
        go_on(path, SMALL, judges="others")
    with pytest.raises(ValueError, match="was written with other images"):
        fit_slices(slices, SMALL, replace(PREPARATION, axis=1), folder=tmp_path, resume=True)
    assert go_on(path, SMALL).parameters > 0


def test_a_state_of_before_it_said_its_data_goes_on(tmp_path: Path) -> None:
    """NaN and Infinity stood in older ones, where there is nothing yet."""
    whole = fit_slices(blobs(), SMALL, PREPARATION)
    path = train_half(tmp_path, SMALL)
    tensors, metadata = tensorfile.read(path)
    del metadata["data"]
    scalars = json.loads(metadata["scalars"])
    tensorfile.write(path, tensors, metadata | {"scalars": json.dumps(scalars | {"best_score": -math.inf})})
    assert same_weights(whole, go_on(path, SMALL))


def test_a_training_that_failed_goes_on_exactly(tmp_path: Path) -> None:
    """Right after a failure there are no moments, no loss and, here, no score yet."""
    recipe = replace(SMALL, batches=40, evaluate=10, rate=0.5, last_rate=1e-3, clip=1e9)
    whole = fit_slices(blobs(), recipe, PREPARATION)

    class Stopped(Exception):
        pass

    def stop(entry: dict[str, float]) -> None:
        if entry["failed"]:
            raise Stopped

    with pytest.raises(Stopped):
        fit_slices(blobs(), recipe, PREPARATION, folder=tmp_path, report=stop)
    tensors, metadata = tensorfile.read(tmp_path / STATE)
    scalars = json.loads(metadata["scalars"])
    assert (scalars["smooth_loss"], scalars["lowest_loss"], scalars["adam_steps"]) == (None, None, [0, 0])
    assert not any(name.startswith(("first", "second")) for name in tensors)
    old = scalars | {"smooth_loss": math.nan, "lowest_loss": math.inf}
    if scalars["best_score"] is None:
        old["best_score"] = -math.inf
    tensorfile.write(tmp_path / STATE, tensors, metadata | {"scalars": json.dumps(old)})
    parts = fit_slices(blobs(), recipe, PREPARATION, folder=tmp_path, resume=True)
    assert same_weights(whole, parts)


def test_the_watchdog_goes_back_and_lowers_the_rate(tmp_path: Path) -> None:
    """A loss that explodes leads back to the best weights, at half the rate, until it stays down."""
    reports: list[dict[str, float]] = []
    recipe = replace(SMALL, batches=40, evaluate=10, rate=0.5, last_rate=1e-3, clip=1e9)
    model = fit_slices(blobs(), recipe, PREPARATION, report=reports.append, folder=tmp_path)
    assert max(entry["attempt"] for entry in reports) >= 1
    assert reports[-1]["attempt"] == sum(entry["failed"] for entry in reports)
    failed = next(entry for entry in reports if entry["failed"])
    assert "not measured" in _reached(failed)
    assert _reached(failed).endswith("it failed there, and goes on from its best weights, at half the rate")
    assert "\n" not in _reached(reports[-1])
    assert "NaN" not in (tmp_path / LOG).read_text(encoding="utf-8")
    assert reports[-1]["batch"] == 40
    assert all(np.isfinite(w).all() for level in model.levels for w in level.rule.weights.values())


def test_a_run_that_cannot_be_saved_says_so() -> None:
    recipe = replace(SMALL, batches=40, rate=1e6, last_rate=1e5, clip=1e30)
    with pytest.raises(RuntimeError, match=r"training failed 6 times.*try a lower rate than"):
        fit_slices(blobs(), recipe, PREPARATION)


def test_a_collapse_of_the_score_is_noticed() -> None:
    scores = iter([0.8, 0.7, 0.1, 0.75, 0.8, 0.8])
    reports: list[dict[str, float]] = []
    recipe = replace(SMALL, batches=12)
    fit_slices(blobs(), recipe, PREPARATION, score=lambda model: next(scores), report=reports.append)
    assert [entry["attempt"] for entry in reports] == [0, 0, 0, 1, 1, 1]
    assert reports[3]["rate"] < 0.6 * reports[1]["rate"]


def test_a_model_that_does_not_stay_finite_has_failed() -> None:
    def score(model: pynca.Model) -> float:
        if len(reports) == 2:
            raise NotFinite("a run did not stay finite")
        return 0.5

    reports: list[dict[str, float]] = []
    fit_slices(blobs(), replace(SMALL, batches=12), PREPARATION, score=score, report=reports.append)
    assert [entry["failed"] for entry in reports] == [False, False, True, False, False, False]
    assert math.isnan(reports[2]["score"])


def test_without_a_score_none_is_reported_or_kept(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    states: list[float] = []
    fit_slices(
        *(blobs(), SMALL, PREPARATION),
        folder=tmp_path,
        report=reports.append,
        tick=lambda state, recipe: states.append(state.best_score),
    )
    assert all(math.isnan(entry["score"]) for entry in reports)
    assert all(score == -math.inf for score in states)
    assert all("validation Dice not measured" in _reached(entry) for entry in reports)
    log = [json.loads(line) for line in (tmp_path / LOG).read_text(encoding="utf-8").splitlines()]
    assert [entry["score"] for entry in log] == [None] * len(reports)
    scalars = json.loads(tensorfile.read(tmp_path / STATE)[1]["scalars"])
    assert scalars["best_score"] is None
    assert scalars["best_batch"] == SMALL.batches


def test_gradients_that_are_no_numbers_do_not_reach_the_weights() -> None:
    state = State.start(SMALL)
    slices = blobs()
    broken = Slices(np.full_like(slices.images, np.nan), slices.labels)
    before = state.levels[0]["fc0.weight"].copy()
    assert train_batch(state, Batches(broken, SMALL), SMALL, PREPARATION) == math.inf
    np.testing.assert_array_equal(state.levels[0]["fc0.weight"], before)


# --- sampling --------------------------------------------------------------------------------------------


def test_without_augmentation_slices_stay_as_they_are() -> None:
    slices, none = blobs(), Augmentation(rotation=0, zoom=0, shift=0, tone=0, contrast=0, bias=0, noise=0)
    random = sampling.generator(0, 0, 0)
    images, labels = sampling.vary(slices.images, slices.labels, none, random)
    np.testing.assert_allclose(images, slices.images, atol=1e-6)
    np.testing.assert_array_equal(labels, slices.labels)


def test_image_and_label_move_together() -> None:
    slices = blobs()
    moved = Augmentation(flip=True, rotation=40, zoom=0.2, shift=2, tone=0, contrast=0, bias=0, noise=0)
    images, labels = sampling.vary(slices.labels * 0.5, slices.labels, moved, sampling.generator(1, 0, 0))
    np.testing.assert_allclose(images, labels * 0.5, atol=1e-6)
    assert np.abs(labels - slices.labels).max() > 0.5


def test_patches_are_whole_coarse_cells_and_half_of_them_on_the_label() -> None:
    labels = np.zeros((400, 32, 32), np.float32)
    labels[:, 25:28, 3:6] = 1
    places = sampling.patches(labels, (8, 8), 4, sampling.generator(0, 0, 0))
    assert (places % 4 == 0).all()
    assert (places >= 0).all()
    assert (places <= 24).all()
    shown = sampling.cut(labels, places, (8, 8)).max(axis=(1, 2)) > 0
    assert 0.5 < shown.mean() < 0.75


# --- cases -----------------------------------------------------------------------------------------------


def write_volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    slices = blobs(6)
    for n in range(5):
        image, label = slices.images[n : n + 2], slices.labels[n : n + 2]
        write_volume(tmp_path / "images" / f"case_{n}.nii.gz", np.moveaxis(image, 0, 2) * 900)
        write_volume(tmp_path / "labels" / f"case_{n}.nii.gz", np.moveaxis(label, 0, 2).astype(np.uint8) * 2)
    return tmp_path


def test_cases_are_paired_by_name(folders: Path) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    assert [case.name for case in found.cases] == [f"case_{n}.nii.gz" for n in range(5)]
    rest, held = dataset.split(found, "0.2")
    assert (len(rest), len(held)) == (4, 1)
    (folders / "names.txt").write_text("case_1.nii.gz\ncase_4.nii.gz\n")
    rest, held = dataset.split(found, folders / "names.txt")
    assert [case.name for case in held] == ["case_1.nii.gz", "case_4.nii.gz"]
    assert dataset.split(found, "none") == (list(found.cases), [])
    slices = dataset.prepare(rest, found, PREPARATION)
    assert slices.images.shape == slices.labels.shape == (6, 16, 16)


@pytest.mark.parametrize("labels", [{"0": "background", "2": "disc"}, {"background": 0, "disc": 2}])
def test_a_described_dataset(folders: Path, labels: dict[str, Any]) -> None:
    (folders / "images").rename(folders / "imagesTr")
    (folders / "labels").rename(folders / "labelsTr")
    for path in (folders / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    (folders / "dataset.json").write_text(json.dumps({"labels": labels}))
    found = cases.read_dataset(folders)
    assert found.values == {0, 2}
    assert len(dataset.prepare(found.cases, found, PREPARATION).images) == 10
    wrong = replace(found, values=frozenset({0, 1}))
    with pytest.raises(ValueError, match=r"case_0.nii.gz holds the label 2; declared are \[0, 1\]"):
        dataset.prepare(found.cases, wrong, PREPARATION)


def spoil(folders: Path, how: str) -> None:
    label = folders / "labels" / "case_2.nii.gz"
    empty = np.zeros((16, 16, 2), np.uint8)
    if how == "no label":
        label.unlink()
    elif how == "no image":
        (folders / "images" / "case_2.nii.gz").unlink()
    elif how == "other shape":
        write_volume(label, empty[:, :, :1])
    elif how == "other place":
        write_volume(label, empty, np.diag([1.0, 1, 2, 1]))
    elif how == "fractions":
        write_volume(label, np.full((16, 16, 2), 0.5, np.float32))
    elif how == "nothing to learn":
        for n in range(5):
            write_volume(folders / "labels" / f"case_{n}.nii.gz", empty)
    elif how == "empty":
        for path in (folders / "images").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no label", "case_2.nii.gz has no label of the same name"),
        ("no image", "case_2.nii.gz has no image of the same name"),
        ("other shape", r"case_2.nii.gz has shape \(16, 16, 1\)"),
        ("other place", "case_2.nii.gz lies elsewhere than its image"),
        ("fractions", "case_2.nii.gz holds the value 0.5"),
        ("nothing to learn", "no case has any label"),
        ("empty", "images holds no image"),
    ],
)
def test_cases_that_cannot_be_right(folders: Path, how: str, sentence: str) -> None:
    def read() -> Slices:
        found = cases.find_cases(folders / "images", folders / "labels")
        return dataset.prepare(found.cases, found, PREPARATION)

    spoil(folders, how)
    with pytest.raises(ValueError, match=sentence):
        read()


@pytest.mark.parametrize("validation", ["0", "1.5", "0.01"])
def test_wrong_shares(folders: Path, validation: str) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    with pytest.raises(ValueError, match=r"validation is|would validate"):
        dataset.split(found, validation)


def case_with(folder: Path, name: str, image: np.ndarray, label: np.ndarray, size: float = 1.0) -> None:
    for kind, values in (("images", image.astype(np.float32)), ("labels", label.astype(np.uint8))):
        write_volume(folder / kind / name, values, np.diag([size, size, size, 1]))


def test_what_a_model_expects_is_learnt_from_the_training_cases_alone(folders: Path) -> None:
    """One that validates may be of another size and look otherwise: what is measured on it must stay measured."""
    disc = blobs(1, 32)
    odd = np.moveaxis(disc.images, 0, 2).repeat(3, 2) * -700
    case_with(folders, "odd.nii.gz", odd, np.moveaxis(disc.labels, 0, 2).repeat(3, 2), 3.0)
    (folders / "odd.txt").write_text("odd.nii.gz\n")
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, folders / "odd.txt")
    options: dict[str, Any] = {"labels": {1: "disc"}, "threads": 1}
    model = train(found, rest, held, SMALL, PREPARATION, folders / "work", **options).model
    alone = train(found, rest, [], SMALL, PREPARATION, folders / "alone", **options).model
    assert model.expected is not None
    assert model.expected == alone.expected
    assert model.expected.images == len(rest) == 5
    assert model.expected.spacing == ((1.0, 1.0),) * 3
    everything = train(found, found.cases, [], SMALL, PREPARATION, folders / "all", **options).model
    assert model.expected != everything.expected
    assert model.quality is None


@pytest.mark.parametrize("how", ["other shape", "other place", "fractions", "no label at all", "undeclared"])
def test_cases_that_validate_are_looked_at_before_training(folders: Path, how: str) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, "0.2")
    assert [case.name for case in held] == ["case_2.nii.gz"]
    sentence = {
        "other shape": r"case_2.nii.gz has shape",
        "other place": "case_2.nii.gz lies elsewhere",
        "fractions": "case_2.nii.gz holds the value 0.5",
        "no label at all": "no case that validates has any label",
        "undeclared": "case_2.nii.gz holds the label 2; declared are",
    }[how]
    spoil(folders, how)
    if how == "no label at all":
        write_volume(folders / "labels" / "case_2.nii.gz", np.zeros((16, 16, 2), np.uint8))
    if how == "undeclared":
        found = replace(found, values=frozenset({0, 1}))
        for case in rest:
            write_volume(case.label, (np.asarray(nib.load(case.label).dataobj) > 0).astype(np.uint8))
    with pytest.raises(ValueError, match=sentence):
        train(found, rest, held, SMALL, PREPARATION, folders / "work", labels={1: "disc"}, threads=1)
    assert not (folders / "work").exists()


def test_an_image_without_contrast_cannot_have_a_label(folders: Path) -> None:
    case_with(folders, "case_3.nii.gz", np.full((16, 16, 2), 7.0), np.ones((16, 16, 2)))
    found = cases.find_cases(folders / "images", folders / "labels")
    with pytest.raises(ValueError, match=r"images/case_3.nii.gz is 7 everywhere, but \S*labels/case_3.nii.gz marks"):
        dataset.prepare(found.cases, found, PREPARATION)
    case_with(folders, "case_3.nii.gz", np.full((16, 16, 2), 7.0), np.zeros((16, 16, 2)))
    assert len(dataset.prepare(found.cases, found, PREPARATION).images) == 10


def test_an_image_that_trains_and_validates_is_said(folders: Path) -> None:
    for kind in ("images", "labels"):
        (folders / kind / "case_2.nii.gz").write_bytes((folders / kind / "case_4.nii.gz").read_bytes())
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, "0.2")
    with pytest.warns(UserWarning, match=r"case_4.nii.gz trains and \S*case_2.nii.gz validates, but they are the same"):
        train(found, rest, held, SMALL, PREPARATION, folders / "work", labels={1: "disc"}, threads=1)
    train(found, rest, [], SMALL, PREPARATION, folders / "without", labels={1: "disc"}, threads=1)


def test_a_training_goes_on_with_the_cases_that_validated(folders: Path) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, "0.4")
    options: dict[str, Any] = {"labels": {1: "disc"}, "threads": 1}
    train(found, rest, held, SMALL, PREPARATION, folders / "work", **options)
    for fewer in (held[:1], []):
        with pytest.raises(ValueError, match="was written with other images, labels, validation cases"):
            train(found, rest, fewer, SMALL, PREPARATION, folders / "work", resume=True, **options)
    train(found, rest, held, SMALL, PREPARATION, folders / "work", resume=True, **options)


def test_half_a_line_in_the_log_costs_only_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    stop_at_four(SMALL, tmp_path)
    with open(tmp_path / LOG, "a", encoding="utf-8") as log:
        log.write('{"batch": 4, "lo')
    fit_slices(blobs(), SMALL, PREPARATION, folder=tmp_path, resume=True)
    lines = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["batch"] for line in (*lines[:2], lines[3])] == [2, 4, 6]
    draw_curve(tmp_path / LOG, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_from_files_to_a_model(folders: Path) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, "0.2")
    outcome = train(
        found,
        rest,
        held,
        SMALL,
        PREPARATION,
        folders / "work",
        labels={1: "disc"},
        epochs=2.0,
        card=pynca.Card("d"),
        threads=1,
    )
    assert len(outcome.scores) == 1
    source = outcome.model.card.source
    assert "seed 3, 4 batches of 4, adam, 4 images" in source
    assert ", 0 min on 1 threads, " in source
    assert "1 validation patients" in outcome.model.card.accuracy
    outcome.model.save(folders / "m.safetensors")
    assert pynca.load_model(folders / "m.safetensors").labels == {1: "disc"}


def test_the_card_counts_the_time_before_a_training_was_resumed(folders: Path) -> None:
    found = cases.find_cases(folders / "images", folders / "labels")
    rest, held = dataset.split(found, "0.2")
    work = folders / "work"
    train(found, rest, held, SMALL, PREPARATION, work, labels={1: "disc"}, epochs=2.0)
    tensors, metadata = tensorfile.read(work / STATE)
    scalars = json.loads(metadata["scalars"]) | {"seconds": 3600.0}
    tensorfile.write(work / STATE, dict(tensors), metadata | {"scalars": json.dumps(scalars)})
    again = train(found, rest, held, SMALL, PREPARATION, work, labels={1: "disc"}, resume=True)
    assert ", 60 min on " in again.model.card.source


def test_batches_drawn_ahead_are_those_drawn_when_needed() -> None:
    recipe = replace(SMALL, batches=5)
    with Batches(blobs(), recipe, threads=1) as plain, Batches(blobs(), recipe, threads=2) as ahead:
        for attempt, number in ((0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (2, 0)):  # as when a run fails
            one, other = plain.draw(attempt, number), ahead.draw(attempt, number)
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.labels, other.labels)
            assert one.random.integers(2**63) == other.random.integers(2**63)
