"""Whole models: the papers' recorded pipelines, any size, the model file and everything that it may not hold."""

from __future__ import annotations

import copy
import json
import pickle
import random
import string
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pynca
from pynca import _core, tensorfile
from pynca.rule import check_masks
from support import REFERENCE, golden_cases, random_model, random_rule

PIPELINES = golden_cases("e")

CARD = pynca.Card(
    name="blobs",
    description="Two lines,\nand “ünïcode” \N{BRAIN}.",
    licence="MIT",
    training_data="none",
    citation="nobody 2024",
    accuracy="0.5",
    source="random",
)


def full_model(perception: str = "conv", **options: Any) -> pynca.Model:
    """A model in which nothing is left at its default."""
    model = random_model(
        perception,
        size=(12, 20),
        options={"fire_rate": 0.375, "padding": "zero", **options},
        orientation="LPI",
        axis=1,
        spacing=(0.1, 1 / 3, 2.5),
        percentiles=(1.5, 97.25),
        label_offset=0.5,
    )
    return replace(model, labels={7: "bläb"}, threshold=0.1, card=CARD)


def assert_same_model(a: pynca.Model, b: pynca.Model) -> None:
    assert len(a.levels) == len(b.levels)
    for one, other in zip(a.levels, b.levels, strict=True):
        assert (one.steps, one.scale) == (other.steps, other.scale)
        for option in ("perception", "padding", "fire_rate", "input_channels", "channels", "hidden", "kernel_size"):
            assert getattr(one.rule, option) == getattr(other.rule, option)
        assert list(one.rule.weights) == list(other.rule.weights)
        for name, w in one.rule.weights.items():
            assert w.tobytes() == other.rule.weights[name].tobytes()
    assert (a.preparation, a.labels, a.threshold, a.card) == (b.preparation, b.labels, b.threshold, b.card)


# --- the papers' own code ---------------------------------------------------------------------------------


def recorded_model(case: dict[str, Any]) -> pynca.Model:
    """The model of a recorded pipeline, with nothing packed for an instruction set yet."""
    file = case["file"] if "in file" in case["weights"] else "checkpoints/med_nca_hippocampus_weights.npz"
    with np.load(REFERENCE / file) as arrays:
        rules = [
            pynca.Rule.from_state_dict(
                {name[3:]: arrays[name] for name in arrays if name.startswith(f"w{n}.")}, perception="conv"
            )
            for n in (0, 1)
        ]
    levels = [pynca.Level(rules[0], case["steps_low"], 4), pynca.Level(rules[1], case["steps_high"], 1)]
    return pynca.Model(levels, pynca.Preparation((64, 64)))


def test_all_recorded_pipelines_are_here(reference: Path) -> None:
    assert len(PIPELINES) == 7


@pytest.mark.engine
@pytest.mark.parametrize("case", PIPELINES, ids=lambda case: case["file"])
def test_recorded_pipeline(case: dict[str, Any], isa: str) -> None:
    model = recorded_model(case)
    with np.load(REFERENCE / case["file"]) as arrays:
        image, expected = arrays["image"], arrays["logits"]
        masks = [arrays["masks_low"], arrays["masks_high"]]
    results = [model.logits(image, masks=masks, threads=threads) for threads in (1, 2)]
    assert results[0].dtype == np.float32
    assert np.abs(results[0] - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    np.testing.assert_array_equal(results[1], results[0])


def test_imported_checkpoint_is_the_recorded_model(authors_model: pynca.Model, reference: Path) -> None:
    case = PIPELINES[0]
    with np.load(REFERENCE / case["file"]) as arrays:
        np.testing.assert_array_equal(
            authors_model.logits(arrays["image"], seed=3), recorded_model(case).logits(arrays["image"], seed=3)
        )


# --- any image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perception", ["sobel", "conv"])
@pytest.mark.parametrize(
    "size", [(16, 16), (13, 16), (16, 18), (17, 19), (5, 5), (6, 31), (8, 5), (3, 9), (2, 2), (1, 9)]
)
def test_other_sizes_are_padded_by_reflection(perception: str, size: tuple[int, int]) -> None:
    # zero padding in the rule, so that a level of one row can be run as well
    model = random_model(perception, options={"padding": "zero"})
    image = np.random.default_rng(1).random(size).astype(np.float32)
    padded = np.pad(image, [(0, -n % 4) for n in size], mode="reflect")
    assert all(n % 4 == 0 for n in padded.shape)
    logits = model.logits(image, seed=5)
    assert logits.shape == size
    np.testing.assert_array_equal(logits, model.logits(padded, seed=5)[: size[0], : size[1]])


def test_random_masks_are_those_of_fire_mask() -> None:
    """Level n of an image draws with level=n, and nothing else changes from level to level."""
    model = random_model(options={"fire_rate": 0.7})
    image = np.random.default_rng(2).random((20, 12)).astype(np.float32)
    masks = [
        pynca.fire_mask((20 // level.scale, 12 // level.scale), level.steps, fire_rate=0.7, seed=9, level=n)
        for n, level in enumerate(model.levels)
    ]
    np.testing.assert_array_equal(model.logits(image, seed=9), model.logits(image, masks=masks))
    assert not np.array_equal(model.logits(image, seed=9), model.logits(image, seed=10))


def test_levels_are_run_as_the_reference_describes() -> None:
    """Zeros and the shrunken image; sixteenfold repetition; the image again; the channel behind it."""
    model = random_model(scales=(4, 2, 1))
    image = np.random.default_rng(3).random((16, 24)).astype(np.float32)
    masks = [
        pynca.fire_mask((16 // level.scale, 24 // level.scale), level.steps, seed=4, level=n)
        for n, level in enumerate(model.levels)
    ]
    low = image.reshape(4, 4, 6, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    middle = image.reshape(8, 2, 12, 2).mean(axis=(1, 3))
    state = np.zeros((4, 6, 6), np.float32)
    for level, mask, seen in zip(model.levels, masks, (low, middle, image), strict=True):
        by = seen.shape[0] // state.shape[0]
        state = np.kron(state, np.ones((by, by, 1), np.float32))
        state[..., 0] = seen
        state = level.rule.run(state, level.steps, masks=mask)
    np.testing.assert_allclose(model.logits(image, masks=masks), state[..., 1], rtol=0, atol=1e-4)


def test_several_image_channels() -> None:
    model = random_model(options={"input_channels": 3})
    assert model.input_channels == 3
    image = np.random.default_rng(4).random((9, 10, 3))
    assert model.logits(image).shape == (9, 10)
    with pytest.raises(ValueError, match=r"image has shape \(9, 10\); it must be \(H, W, 3\)"):
        model.logits(image[..., 0])
    with pytest.raises(ValueError, match=r"takes 3 image channels; .* use model\.logits"):
        pynca.segment(image[..., 0], model)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64, ">f4"])
def test_image_dtypes_layouts_and_that_it_is_left_alone(dtype: Any) -> None:
    model = random_model()
    image = np.random.default_rng(5).integers(0, 2, (12, 16)).astype(dtype)
    expected = model.logits(image.astype(np.float32))
    turned = np.asfortranarray(image)
    turned.flags.writeable = False
    np.testing.assert_array_equal(model.logits(turned), expected)
    np.testing.assert_array_equal(model.logits(image[..., None]), expected)
    np.testing.assert_array_equal(model.logits(image.tolist()), expected)
    np.testing.assert_array_equal(turned, image)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_is_its_members(threads: int, isa: str) -> None:
    model = random_model()
    images = np.random.default_rng(6).random((5, 14, 16, 1)).astype(np.float32)
    samples, slices = np.arange(5, dtype=np.uint32)[::-1].copy(), np.arange(7, 12, dtype=np.uint32)
    together = model.batch_logits(images, samples=samples, slices=slices, seed=2, threads=threads)
    for n in range(5):
        part = slice(n, n + 1)
        alone = model.batch_logits(images[part], samples=samples[part], slices=slices[part], seed=2, threads=1)
        np.testing.assert_array_equal(alone[0], together[n])


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 8, 8, 2), (1, 8, 8, 0), (1, 1, 8, 8, 1)])
def test_wrong_shapes_of_a_batch(shape: tuple[int, ...]) -> None:
    """Two channels, for instance, must not run over the state behind the image."""
    one = np.zeros(1, np.uint32)
    with pytest.raises(ValueError, match=r"images has shape .*; it must be \(N, H, W, 1\)"):
        random_model().batch_logits(np.zeros(shape, np.float32), samples=one, slices=one)


GOOD = np.zeros((8, 8), np.float32)
MASKS = [np.ones((4, 2, 2), np.uint8), np.ones((5, 8, 8), np.uint8)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"image": np.zeros((8, 8, 2))}, ValueError, r"image has shape \(8, 8, 2\); it must be \(H, W\)"),
        ({"image": np.zeros((1, 8, 8, 1))}, ValueError, r"image has shape \(1, 8, 8, 1\)"),
        ({"image": np.zeros(8)}, ValueError, r"image has shape \(8,\)"),
        ({"image": np.zeros((0, 8))}, ValueError, r"image has shape \(0, 8\)"),
        ({"image": np.float32(3)}, ValueError, r"image has shape \(\)"),
        ({"image": np.zeros((8, 8), complex)}, TypeError, "image has dtype complex128; it must hold real numbers"),
        ({"image": np.zeros((8, 8), object)}, TypeError, "image has dtype object"),
        ({"image": np.full((8, 8), "a")}, TypeError, "image has dtype <U1"),
        ({"image": np.where(GOOD == 0, np.nan, 0)}, ValueError, "image holds 64 values of 64 that are not finite"),
        ({"image": np.full((8, 8), np.inf)}, ValueError, "image holds 64 values of 64 that are not finite"),
        ({"image": np.full((8, 8), -1e300)}, ValueError, "image holds 64 values .* beyond float32"),
        ({"image": np.zeros((1, 30))}, ValueError, "prepared image of 1 x 30 is too small: level 0 sees 1 x 8 cells"),
        ({"masks": MASKS[:1]}, ValueError, "masks has 1 entries; it must have one for each of 2 levels"),
        ({"masks": MASKS[::-1]}, ValueError, r"masks\[0\] has shape \(5, 8, 8\); for this state it must be \(4, 2, 2"),
        ({"masks": [MASKS[0], MASKS[1][:4]]}, ValueError, r"masks\[1\] has shape \(4, 8, 8\)"),
        ({"masks": [MASKS[0], MASKS[1] * 2]}, ValueError, r"masks\[1\] holds the value 2"),
        ({"masks": [MASKS[0], MASKS[1] * 0.5]}, TypeError, r"masks\[1\] has dtype float64"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
        ({"seed": "1"}, TypeError, "seed is '1'"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"threads": 1025}, ValueError, "threads is 1025"),
        ({"threads": 1.0}, TypeError, "threads is 1.0"),
    ],
)
def test_wrong_arguments_of_logits(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    call = {"image": GOOD, **arguments}
    with pytest.raises(error, match=f"^(a )?{sentence}"):
        random_model().logits(call.pop("image"), **call)


def test_masks_are_checked_for_every_level() -> None:
    assert check_masks(MASKS[0].astype(bool), 4, (2, 2)).dtype == np.uint8
    with pytest.raises(ValueError, match="masks has shape"):
        check_masks(MASKS[0], 4, (2, 3))


# --- what a model can be ----------------------------------------------------------------------------------

RULE = random_rule("conv", 6, 10)
SOBEL = random_rule("sobel", 6, 4)
FINEST = pynca.Level(RULE, 3, 1)


def levels(*scales: int) -> list[pynca.Level]:
    return [pynca.Level(RULE, 1, scale) for scale in scales]


@pytest.mark.parametrize(
    ("parts", "error", "sentence"),
    [
        ({"levels": []}, ValueError, "the model has 0 levels; it must have 1 to 16"),
        ({"levels": levels(*(2**n for n in range(17)))[::-1]}, ValueError, "the model has 17 levels"),
        ({"levels": None}, TypeError, "levels must be a sequence of Level"),
        ({"levels": FINEST}, TypeError, "levels must be a sequence of Level"),
        ({"levels": [RULE]}, TypeError, "levels must be a sequence of Level"),
        ({"levels": [pynca.Level(None, 1, 1)]}, TypeError, "levels must be a sequence of Level"),  # type: ignore[arg-type]
        ({"levels": levels(2)}, ValueError, r"the levels have scales \[2\]; they must descend to 1"),
        ({"levels": levels(1, 4)}, ValueError, r"the levels have scales \[1, 4\]"),
        ({"levels": levels(1, 1)}, ValueError, r"the levels have scales \[1, 1\]"),
        ({"levels": levels(3, 2, 1)}, ValueError, r"the levels have scales \[3, 2, 1\]"),
        ({"levels": levels(0)}, ValueError, "scale of level 0 is 0"),
        ({"levels": levels(1025, 1)}, ValueError, "scale of level 0 is 1025"),
        ({"levels": [pynca.Level(RULE, 1, 1.5)]}, TypeError, "scale of level 0 is 1.5"),  # type: ignore[arg-type]
        ({"levels": [pynca.Level(RULE, 0, 1)]}, ValueError, "steps of level 0 is 0"),
        ({"levels": [pynca.Level(RULE, 65536, 1)]}, ValueError, "steps of level 0 is 65536"),
        ({"levels": [pynca.Level(RULE, True, 1)]}, TypeError, "steps of level 0 is True"),
        ({"levels": [pynca.Level(random_rule("conv", 5), 1, 4), FINEST]}, ValueError, "all levels .* same channels"),
        (
            {"levels": [pynca.Level(random_rule("conv", 6, 10, input_channels=2), 1, 4), FINEST]},
            ValueError,
            "all levels .* same channels and image channels",
        ),
        ({"levels": [pynca.Level(random_rule("conv", input_channels=0), 1, 1)]}, ValueError, "at least one image"),
        ({"preparation": None}, TypeError, "preparation is of type NoneType; it must be a Preparation"),
        ({"preparation": {"size": (64, 64)}}, TypeError, "preparation is of type dict"),
        ({"labels": {}}, ValueError, "labels are {}; there must be one name, for a value of 1 to 255"),
        ({"labels": {1: "a", 2: "b"}}, ValueError, "labels are {1: 'a', 2: 'b'}"),
        ({"labels": {0: "a"}}, ValueError, "labels are {0: 'a'}"),
        ({"labels": {256: "a"}}, ValueError, "labels are {256: 'a'}"),
        ({"labels": {True: "a"}}, ValueError, "labels are {True: 'a'}"),
        ({"labels": {"1": "a"}}, ValueError, "labels are {'1': 'a'}"),
        ({"labels": {1.0: "a"}}, ValueError, "labels are {1.0: 'a'}"),
        ({"labels": {1: 2}}, ValueError, "labels are {1: 2}"),
        ({"labels": ["a"]}, ValueError, r"labels are \['a'\]"),
        ({"labels": None}, ValueError, "labels are None"),
        *(
            ({"threshold": value}, ValueError, "threshold is .*; it must be a probability between 0 and 1")
            for value in (0, 1, 0.0, 1.0, -0.1, 2, 10**400, np.nan, None, "0.5", True, [0.5], 0.5j)
        ),
        ({"card": None}, TypeError, "card must be a Card"),
        ({"card": {"name": "x"}}, TypeError, "card must be a Card"),
        ({"card": pynca.Card(name=3)}, TypeError, "card must be a Card, and all that it says text"),  # type: ignore[arg-type]
    ],
)
def test_refused_models(parts: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=rf"^{sentence}|^the rules .*{sentence}"):
        pynca.Model(**{"levels": [FINEST], "preparation": pynca.Preparation((8, 8)), **parts})


def test_levels_may_differ_in_all_but_channels() -> None:
    model = pynca.Model([pynca.Level(SOBEL, 2, 3), FINEST], pynca.Preparation((8, 8)))
    assert model.logits(np.zeros((7, 8))).shape == (7, 8)
    assert model.parameters == RULE.parameters + SOBEL.parameters


def test_numpy_numbers_are_as_good_as_pythons(tmp_path: Path) -> None:
    model = pynca.Model(
        (pynca.Level(RULE, np.uint8(3), np.int64(1)),),  # type: ignore[arg-type]
        pynca.Preparation((8, 8)),
        labels={np.int16(3): "x"},  # type: ignore[dict-item]
        threshold=np.float32(0.25),  # type: ignore[arg-type]
    )
    assert model.labels == {3: "x"}
    assert model.threshold == 0.25
    model.save(tmp_path / "m.safetensors")
    assert_same_model(pynca.load_model(tmp_path / "m.safetensors"), model)


def test_a_model_keeps_its_own_labels_and_levels() -> None:
    labels, parts = {1: "a"}, [FINEST]
    model = pynca.Model(parts, pynca.Preparation((8, 8)), labels=labels)
    labels[1] = "b"
    parts.append(FINEST)
    assert model.labels == {1: "a"}
    assert len(model.levels) == 1
    with pytest.raises(AttributeError):
        model.threshold = 0.1  # type: ignore[misc]


def test_models_can_be_copied_and_pickled() -> None:
    model = full_model()
    image = np.random.default_rng(7).random((9, 9))
    expected = model.logits(image)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_model(again, model)
        np.testing.assert_array_equal(again.logits(image), expected)


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perception", ["sobel", "conv"])
def test_round_trip_to_the_bit(perception: str, tmp_path: Path) -> None:
    model = full_model(perception)
    image = np.random.default_rng(8).random((14, 18)).astype(np.float32)
    model.save(tmp_path / "m.safetensors")
    again = pynca.load_model(str(tmp_path / "m.safetensors"))
    assert_same_model(again, model)
    np.testing.assert_array_equal(again.logits(image, seed=1), model.logits(image, seed=1))
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]


def test_the_authors_model_survives_the_file(authors_model: pynca.Model, tmp_path: Path) -> None:
    authors_model.save(tmp_path / "m.safetensors")
    assert_same_model(pynca.load_model(tmp_path / "m.safetensors"), authors_model)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    full_model().save(tmp_path / "a.safetensors")
    full_model().save(tmp_path / "b.safetensors")
    pynca.load_model(tmp_path / "a.safetensors").save(tmp_path / "c.safetensors")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_saving_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="must not hold half a surrogate pair"):
        replace(full_model(), card=pynca.Card(name="\udc80")).save(path, overwrite=True)
    with pytest.raises(FileExistsError, match="not written by pynca"):
        full_model().save(path)
    assert path.read_bytes() == b"old"
    full_model().save(path, overwrite=True)
    assert_same_model(pynca.load_model(path), full_model())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["m", "m.pt", "m.safetensors.gz", ".safetensors"])
def test_model_files_end_in_safetensors(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        full_model().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "no" / "m.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(OSError, match="safetensors"):
            full_model().save(path)
        with pytest.raises(OSError, match="safetensors"):
            pynca.load_model(path)
    with pytest.raises(TypeError):
        pynca.load_model(3)  # type: ignore[arg-type]


# --- files that are no models -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a good file."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    full_model().save(path)
    return tensorfile.read(path)


def parsed(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata with their JSON read."""
    structured = {"levels", "preparation", "labels", "threshold"}
    return {key: json.loads(value) if key in structured else value for key, value in metadata.items()}


def unparsed(values: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


NO_MODEL: dict[str, tuple[dict[str, Any], str]] = {
    "no format": ({"format": None}, "is a safetensors file without pynca's metadata; `pynca import` makes models"),
    "other format": ({"format": "pt"}, "is a safetensors file without pynca's metadata"),
    "no version": ({"format_version": None}, "has format version None; this pynca reads 1"),
    "later version": ({"format_version": "2"}, "has format version '2'; this pynca reads 1"),
    "no levels": ({"levels": None}, "metadata misses 'levels'"),
    "no preparation": ({"preparation": None}, "metadata misses 'preparation'"),
    "no labels": ({"labels": None}, "metadata misses 'labels'"),
    "no threshold": ({"threshold": None}, "metadata misses 'threshold'"),
    "levels no JSON": (
        {"levels": "[{"},
        "is not a valid model: its 'levels' cannot be used: it is not JSON at character 2",
    ),
    "levels no list": ({"levels": {"0": {}}}, "its 'levels' is {'0': {}}; it must be a JSON list"),
    "levels of numbers": ({"levels": [1, 2]}, "its level 0 is 1; it must be a JSON object"),
    "levels empty": ({"levels": []}, "it holds 14 tensors, but its 0 levels have 0"),
    "labels a list": ({"labels": ["a"]}, r"its 'labels' is \['a'\]; it must be a JSON object"),
    "labels empty": ({"labels": {}}, "labels are {}"),
    "labels not numbered": ({"labels": {"one": "a"}}, "labels hold the value 'one'; it must be a whole number"),
    "two labels": ({"labels": {"1": "a", "2": "b"}}, "there must be one name"),
    "threshold 2": ({"threshold": 2.0}, "threshold is 2.0; it must be a probability"),
    "threshold NaN": ({"threshold": "NaN"}, "its 'threshold' cannot be used: it holds NaN"),
    "threshold a list": ({"threshold": [0.5]}, r"its 'threshold' is \[0.5\]; it must be a JSON number"),
    "nested deeply": ({"labels": "[" * 100_000 + "]" * 100_000}, "is not a valid model: "),
    "a number of a million digits": ({"threshold": "1" * 1_000_000}, "is not a valid model: "),
    "preparation null": ({"preparation": "null"}, "its 'preparation' is None; it must be a JSON object"),
}

WRONG_LEVEL: dict[str, tuple[dict[str, Any], str]] = {
    "steps 0": ({"steps": 0}, "steps of level 1 is 0"),
    "steps missing": ({"steps": None}, "its level 1 misses 'steps'"),
    "steps a float": ({"steps": 16.0}, "steps of level 1 is 16.0; it must be a whole number"),
    "steps huge": ({"steps": 10**30}, "it holds a number of 31 digits"),
    "steps true": ({"steps": True}, "steps of level 1 is True"),
    "scale 0": ({"scale": 0}, "scale of level 1 is 0"),
    "scale 3/2": ({"scale": 1.5}, "scale of level 1 is 1.5"),
    "scale as the coarser": ({"scale": 4}, r"the levels have scales \[4, 4\]"),
    "fire rate 2": ({"fire_rate": 2}, "fire_rate is 2; it must be a probability"),
    "fire rate NaN": ({"fire_rate": float("nan")}, "its 'levels' cannot be used: it holds NaN"),
    "fire rate text": ({"fire_rate": "0.5"}, "fire_rate is '0.5'"),
    "unknown option": ({"alive_mask": True}, "alive_mask"),
    "weights as option": ({"weights": {}}, "weights"),
    "other perception": ({"perception": "depthwise"}, "perception is 'depthwise'"),
    "perception of other weights": ({"perception": "sobel"}, "holds unknown p0.bias"),
    "perception a list": ({"perception": ["conv"]}, "is not a valid model"),
    "no perception": ({"perception": None}, "perception"),
    "padding": ({"padding": "wrap"}, "padding is 'wrap'"),
    "all channels image": ({"input_channels": 6}, "input_channels is 6"),
    "other image channels": ({"input_channels": 2}, "same channels and image channels"),
}

WRONG_PREPARATION: dict[str, tuple[dict[str, Any], str]] = {
    "no size": ({"size": None}, "size"),
    "size of floats": ({"size": [64.0, 64.0]}, "size is .*; it must be two whole numbers"),
    "size 0": ({"size": [0, 64]}, "size is "),
    "size 2**40": ({"size": [2**40, 64]}, "size is "),
    "size a number": ({"size": 64}, "size is 64"),
    "orientation a list": ({"orientation": ["R", "A", "S"]}, "orientation is "),
    "axis true": ({"axis": True}, "axis is True"),
    "axis 3": ({"axis": 3}, "axis is 3"),
    "spacing NaN": ({"spacing": [1, float("nan"), 1]}, "it holds NaN"),
    "percentiles of lists": ({"percentiles": [[0], [1]]}, "percentiles are "),
    "unknown": ({"crop": 1}, "crop"),
}


def changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A dictionary with some values replaced; None removes a key."""
    return {key: value for key, value in (values | change).items() if value is not None}


@pytest.mark.parametrize(("change", "sentence"), NO_MODEL.values(), ids=NO_MODEL)
def test_refused_metadata(change: dict[str, Any], sentence: str, content: Any, tmp_path: Path) -> None:
    tensors, metadata = content
    refuse(tmp_path, tensors, unparsed(changed(metadata, change)), sentence)


@pytest.mark.parametrize(("change", "sentence"), WRONG_LEVEL.values(), ids=WRONG_LEVEL)
def test_refused_levels(change: dict[str, Any], sentence: str, content: Any, tmp_path: Path) -> None:
    tensors, metadata = content
    values = parsed(metadata)
    values["levels"][1] = changed(values["levels"][1], change)
    refuse(tmp_path, tensors, unparsed(values), sentence)


@pytest.mark.parametrize(("change", "sentence"), WRONG_PREPARATION.values(), ids=WRONG_PREPARATION)
def test_refused_preparations(change: dict[str, Any], sentence: str, content: Any, tmp_path: Path) -> None:
    tensors, metadata = content
    values = parsed(metadata)
    values["preparation"] = changed(values["preparation"], change)
    refuse(tmp_path, tensors, unparsed(values), sentence)


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"levels.1.fc0.bias": None}, "misses fc0.bias"),
    "missing level": ({f"levels.1.{n}": None for n in RULE.weights}, "misses p0.weight, p0.bias"),
    "of another level": ({"levels.2.fc0.bias": f32(10)}, "it holds 15 tensors, but its 2 levels have 14"),
    "of no level": ({"optimizer": f32(10)}, "it holds 15 tensors"),
    "unknown": ({"levels.0.bn.weight": f32(10)}, "holds unknown bn.weight"),
    "a level written otherwise": ({"levels.00.fc0.bias": f32(10)}, "it holds 15 tensors"),
    "hidden": ({"levels.0.fc0.weight": f32(11, 18)}, r"fc0.weight has shape \(11, 18\)"),
    "turned": ({"levels.0.fc1.weight": f32(10, 6)}, "has shape"),
    "even kernel": ({"levels.0.p0.weight": f32(6, 6, 4, 4)}, "kernel size 4"),
    "no kernel": ({"levels.0.p0.weight": f32(6, 6)}, r"p0.weight has shape \(6, 6\)"),
    "empty": ({"levels.0.fc1.weight": f32(6, 0)}, r"fc1.weight has shape \(6, 0\)"),
    "scalar": ({"levels.0.fc1.weight": f32()}, r"fc1.weight has shape \(\)"),
}


@pytest.mark.parametrize(("change", "sentence"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_refused_tensors(change: dict[str, Any], sentence: str, content: Any, tmp_path: Path) -> None:
    tensors, metadata = content
    refuse(tmp_path, changed(tensors, change), metadata, sentence)


def refuse(tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str], sentence: str) -> None:
    path = tmp_path / "m.safetensors"
    tensorfile.write(path, tensors, metadata)
    with pytest.raises(ValueError, match=sentence) as caught:
        pynca.load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


# --- files that anything may have happened to ---------------------------------------------------------------

HOSTILE: list[Any] = [
    *[None, True, False, 0, 1, -1, 2, 3, 1.5, 0.0, 1.0, 255, 256, 65535, 65536, 2**31, 2**63, 2**64, 10**30, 10**400],
    *[float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, -0.0],
    *["", "0", "1", "conv", "sobel", "RAS", "x" * 5000, "\x1b[2J", "\ud800", "__class__", "١", "None"],
    *[[], {}, [[]], [{}], {"": ""}, {"0": {}}, [1, 2], [1.5, 2.5], [None, None, None], [True, True], ["64", "64"]],
    *[{"1": "a"}, {"1": None}, {"999": "a"}, {"-1": "a"}, {"steps": 1}, [[[[1]]]], [0] * 500],
]


def mutate(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A copy of parsed JSON with a value replaced, removed or added somewhere inside."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        copied = dict(value)
        key = rng.choice(list(copied))
        action = rng.random()
        if action < 0.12:
            del copied[key]
        elif action < 0.2:
            copied[rng.choice(["extra", "weights", "self", "rule", "steps", "1", key.upper()])] = rng.choice(HOSTILE)
        else:
            copied[key] = mutate(copied[key], rng, depth + 1)
        return copied
    if isinstance(value, list) and value and rng.random() < 0.8:
        copied_list = list(value)
        position = rng.randrange(len(copied_list))
        action = rng.random()
        if action < 0.1:
            del copied_list[position]
        elif action < 0.2:
            copied_list.insert(position, rng.choice([*HOSTILE, copied_list[position]]))
        else:
            copied_list[position] = mutate(copied_list[position], rng, depth + 1)
        return copied_list
    return rng.choice(HOSTILE)


def test_only_sentences_for_mutated_metadata(content: Any, tmp_path: Path) -> None:
    """Whatever the metadata say: a sentence, or a model that can be used, described and saved."""
    tensors, metadata = content
    path, rng = tmp_path / "m.safetensors", random.Random(20)
    loaded = 0
    for _ in range(800):
        values = parsed(metadata)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            values = mutate(values, rng)
        text = {key: v if isinstance(v, str) and rng.random() < 0.9 else json.dumps(v) for key, v in values.items()}
        if rng.random() < 0.1:  # text that is no JSON, or other JSON
            key = rng.choice(["levels", "preparation", "labels", "threshold"])
            start = rng.randrange(len(text.get(key, "")) + 1)
            text[key] = text.get(key, "")[:start] + rng.choice(string.printable) + text.get(key, "")[start + 1 :]
        text = {k.encode("utf-8", "replace").decode(): v.encode("utf-8", "replace").decode() for k, v in text.items()}
        tensorfile.write(path, tensors, text)
        loaded += loads_or_refuses(path)
    assert 25 < loaded < 650  # both kinds are there


def test_only_sentences_for_mutated_tensors(content: Any, tmp_path: Path) -> None:
    tensors, metadata = content
    path, rng = tmp_path / "m.safetensors", random.Random(21)
    for _ in range(300):
        changed_tensors = dict(tensors)
        for _ in range(rng.choice([1, 1, 2, 4])):
            name = rng.choice(list(changed_tensors))
            w = changed_tensors[name]
            replacement = rng.choice(
                [
                    None,
                    w[..., :-1],
                    w[:0],
                    w[None],
                    w.reshape(-1),
                    w.T,
                    np.float32(1.0),
                    np.concatenate([w, w]),
                    (rng.choice(["levels.1.", "levels.-1.", "levels..", ""]) + name.split(".", 2)[-1], w),
                ]
            )
            if isinstance(replacement, tuple):
                changed_tensors[replacement[0]] = replacement[1]
            elif replacement is None:
                del changed_tensors[name]
            else:
                changed_tensors[name] = np.ascontiguousarray(replacement)
            if not changed_tensors:
                break
        tensorfile.write(path, changed_tensors, metadata)
        loads_or_refuses(path)


def loads_or_refuses(path: Path) -> bool:
    refusal = ""
    try:
        model = pynca.load_model(path)
    except (ValueError, OSError) as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        assert len(refusal) < 20_000
        return False
    assert 1 <= len(model.levels) <= _core.MAX_LEVELS
    assert all(isinstance(text, str) for text in asdict(model.card).values())
    assert 0 < model.threshold < 1
    ((value, name),) = model.labels.items()
    assert 1 <= value <= 255
    assert isinstance(name, str)
    if max(level.steps for level in model.levels) < 100 and max(model.preparation.size) < 100:
        assert pynca.segment(np.eye(9), model).shape == (9, 9)
    model.save(path)
    assert_same_model(pynca.load_model(path), model)
    return True
