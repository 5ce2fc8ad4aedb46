"""The way an image takes: any dtype, any orientation, any batch and any number of threads, and every refusal."""

from __future__ import annotations

import csv
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import orientations

import pynca
from pynca import memory
from pynca.errors import NotFinite
from pynca.quality import Ensemble, nqm
from support import exploding_model, random_model

MODEL = random_model()
ALL_48 = [
    tuple(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("LR", "PA", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]


def volume(shape: tuple[int, int, int] = (13, 17, 9), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 100.0, shape)


def scan(shape: tuple[int, int, int] = (13, 17, 9), seed: int = 0) -> nibabel.Nifti1Image:
    """A float32 scan in RAS with voxels of 1 x 1.5 x 3 mm, somewhere in the scanner."""
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = (-20, 35.5, 7)
    return nibabel.Nifti1Image(volume(shape, seed).astype(np.float32), affine)


def turned(image: nibabel.Nifti1Image, codes: tuple[str, ...] | str) -> nibabel.Nifti1Image:
    """The same scan stored with its axes towards other directions."""
    here = orientations.io_orientation(image.affine)
    return image.as_reoriented(orientations.ornt_transform(here, orientations.axcodes2ornt(codes)))


def brought_back(mask: np.ndarray, image: nibabel.Nifti1Image, codes: tuple[str, ...] | str = "RAS") -> np.ndarray:
    """A mask of a turned scan, in the axes of the first."""
    return np.asarray(turned(nibabel.Nifti1Image(mask, image.affine), codes).dataobj)


# --- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(13, 17), (1, 1), (16, 16), (70, 3), (13, 17, 9), (1, 1, 1), (5, 1, 40), (20, 30, 5)]
)
def test_results_have_the_shape_of_the_image(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).random(shape)
    result = pynca.predict(image, MODEL, samples=2)
    assert result.uncertainty is not None
    for array, dtype in ((result.mask, np.uint8), (result.probability, np.float32), (result.uncertainty, np.float32)):
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.c_contiguous
    assert ((result.probability >= 0) & (result.probability <= 1)).all()
    assert result.labels == {1: "blob"}
    assert result.volume is None
    mask = pynca.segment(image, MODEL, samples=2)
    np.testing.assert_array_equal(mask, result.mask)
    assert type(mask) is np.ndarray


def test_one_run_has_no_uncertainty() -> None:
    result = pynca.predict(volume(), MODEL)
    assert result.uncertainty is None
    assert result.nqm is None
    assert 0 < result.mask.mean() < 1  # a random model finds something somewhere: the other tests can fail


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int16, ">i2", np.uint64, np.float16, np.float64, ">f4"])
def test_any_real_dtype_and_layout(dtype: Any) -> None:
    image = np.random.default_rng(2).integers(0, 2 if dtype is bool else 100, (13, 17, 9))
    expected = pynca.segment(image.astype(np.float32), MODEL)
    assert expected.any()
    given = np.asfortranarray(image.astype(dtype))
    given.flags.writeable = False
    before = given.copy()
    np.testing.assert_array_equal(pynca.segment(given, MODEL), expected)
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(
        pynca.segment(given[::-1, :, ::2][::-1], MODEL), pynca.segment(image[..., ::2], MODEL)
    )


def test_lists_are_images() -> None:
    image = volume((6, 7, 5))
    np.testing.assert_array_equal(pynca.segment(image.tolist(), MODEL), pynca.segment(image, MODEL))


def test_the_input_is_never_modified() -> None:
    image, affine = volume(), np.diag([-1.0, 2.0, 3.0, 1.0])
    copies = image.copy(), affine.copy()
    result = pynca.predict(image, MODEL, affine=affine, samples=2)
    result.mask[:] = 9
    result.probability[:] = 9
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(affine, copies[1])


def test_a_slice_is_a_volume_of_one() -> None:
    image = volume((13, 17, 1))
    np.testing.assert_array_equal(pynca.segment(image[..., 0], MODEL), pynca.segment(image, MODEL)[..., 0])


def test_an_empty_scan_gives_a_result() -> None:
    result = pynca.predict(np.zeros((8, 8, 5)), MODEL, samples=3)
    assert np.isfinite(result.probability).all()
    assert result.nqm is not None
    assert np.isfinite(result.nqm)


@pytest.mark.parametrize(("threshold", "value"), [(0.5, 1), (0.3, 7), (0.62, 255)])
def test_mask_threshold_and_label(threshold: float, value: int) -> None:
    model = replace(MODEL, threshold=threshold, labels={value: "x"})
    result = pynca.predict(volume(), model)
    assert set(np.unique(result.mask)) == {0, value}
    above = result.probability > threshold
    sure = np.abs(result.probability - threshold) > 1e-6
    np.testing.assert_array_equal(result.mask[sure], np.where(above, value, 0)[sure])
    assert result.labels == {value: "x"}


def test_a_model_can_be_the_path_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    MODEL.save(path)
    expected = pynca.segment(volume(), MODEL)
    np.testing.assert_array_equal(pynca.segment(volume(), path), expected)
    np.testing.assert_array_equal(pynca.segment(volume(), str(path)), expected)
    np.testing.assert_array_equal(pynca.segment(volume(), model=path), expected)


def test_each_slice_is_prepared_run_and_brought_back() -> None:
    """The whole way a second time, slice by slice, from its parts."""
    image = volume()
    preparation = replace(MODEL.preparation, label_offset=0.5, axis=1, percentiles=(2.0, 90.0))
    model = replace(MODEL, preparation=preparation)
    logits = np.empty(image.shape, np.float32)
    for y in range(image.shape[1]):
        prepared = preparation.prepare(image[:, y][None])[0]
        masks = [
            pynca.fire_mask((16 // level.scale, 16 // level.scale), level.steps, seed=3, level=n, z=y)
            for n, level in enumerate(model.levels)
        ]
        small = model.logits(prepared, masks=masks)
        logits[:, y] = preparation.restore(small[None], (image.shape[0], image.shape[2]))[0]
    result = pynca.predict(image, model, seed=3)
    np.testing.assert_array_equal(result.mask, logits > 0)
    np.testing.assert_allclose(result.probability, 1 / (1 + np.exp(-logits.astype(float))), rtol=0, atol=1e-7)


# --- the same bits, however it is run ------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("calls", [(1, 2**26), (2, 2**26), (8, 1), (8, 2**15), (1000, 2**26)])
def test_threads_and_batches_do_not_change_a_bit(
    threads: int, calls: tuple[int, int], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()  # packed for the instruction set of this test
    image = volume()
    expected = pynca.predict(image, model, seed=4, samples=2, threads=1)
    monkeypatch.setattr(memory, "CALL_SLICES", calls[0])
    monkeypatch.setattr(memory, "CALL_BYTES", calls[1])
    result = pynca.predict(image, model, seed=4, samples=2, threads=threads)
    np.testing.assert_array_equal(result.mask, expected.mask)
    np.testing.assert_array_equal(result.probability, expected.probability)
    np.testing.assert_array_equal(result.uncertainty, expected.uncertainty)
    assert result.nqm == expected.nqm


def test_calls_are_small_enough_for_large_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are, slices of many pixels are not all turned into float64 at once."""
    sizes = []
    prepare = pynca.Preparation.prepare

    def counted(self: pynca.Preparation, slices: np.ndarray) -> np.ndarray:
        sizes.append(slices.size)
        return prepare(self, slices)

    monkeypatch.setattr(pynca.Preparation, "prepare", counted)
    monkeypatch.setattr(memory, "CALL_BYTES", 2**20)
    pynca.segment(np.random.default_rng(6).random((160, 170, 20)), random_model(steps=1), threads=64)
    assert sum(sizes) == 160 * 170 * 20
    assert max(sizes) * 8 <= 2**20


def test_a_slice_does_not_depend_on_the_slices_beside_it() -> None:
    image, other = volume(), volume(seed=1)
    expected = pynca.predict(image, MODEL).probability
    for k in (0, 4, 8):
        mixed = other.copy()
        mixed[..., k] = image[..., k]
        np.testing.assert_array_equal(pynca.predict(mixed, MODEL).probability[..., k], expected[..., k])
    np.testing.assert_array_equal(pynca.predict(image[..., :5], MODEL).probability, expected[..., :5])


def test_equal_slices_draw_different_fire_masks_and_seeds_differ() -> None:
    image = np.repeat(volume((13, 17, 1)), 5, axis=2)
    probability = pynca.predict(image, MODEL).probability
    assert len({probability[..., k].tobytes() for k in range(5)}) == 5
    assert not np.array_equal(pynca.predict(image, MODEL, seed=1).probability, probability)
    np.testing.assert_array_equal(pynca.predict(image, MODEL, seed=0).probability, probability)
    assert pynca.segment(image, MODEL, seed=2**64 - 1).shape == image.shape


def test_many_callers_at_once() -> None:
    images = [volume(seed=n) for n in range(8)]
    expected = [pynca.segment(image, MODEL) for image in images]
    with ThreadPoolExecutor(8) as executor:
        results = executor.map(lambda n: pynca.segment(images[n], MODEL, threads=1 + n % 3), range(8))
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


# --- orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learnt", [("RAS", 2), ("LPI", 1), ("SLA", 0)])
def test_all_48_orientations_give_the_same_mask(learnt: tuple[str, int]) -> None:
    orientation, along = learnt
    model = replace(MODEL, preparation=replace(MODEL.preparation, orientation=orientation, axis=along))
    image = scan((7, 9, 5))
    expected = pynca.predict(image, model)
    masks = set()
    for codes in ALL_48:
        stored = turned(image, codes)
        assert nibabel.aff2axcodes(stored.affine) == codes
        result = pynca.predict(stored, model)
        assert result.mask.shape == stored.shape
        np.testing.assert_array_equal(brought_back(result.mask, stored), expected.mask)
        np.testing.assert_array_equal(brought_back(result.probability, stored), expected.probability)
        # an array with the affine is the same, and without it is not looked at as what it is
        data = np.asarray(stored.dataobj)
        np.testing.assert_array_equal(pynca.segment(data, model, affine=stored.affine), result.mask)
        masks.add(brought_back(pynca.segment(data, model, axis=along), stored).tobytes())
    assert len(masks) == 48


def test_an_array_without_affine_is_in_the_models_orientation() -> None:
    image = scan()
    for codes in ("RAS", "PIR", "LSA"):
        model = replace(MODEL, preparation=replace(MODEL.preparation, orientation=codes))
        stored = turned(image, codes)
        np.testing.assert_array_equal(
            pynca.segment(np.asarray(stored.dataobj), model),
            brought_back(pynca.segment(image, model), image, codes),
        )


def test_axis_counts_the_axes_of_an_array() -> None:
    image = volume((9, 12, 7))
    for axis in range(3):
        expected = np.moveaxis(pynca.segment(np.moveaxis(image, axis, 2), MODEL), 2, axis)
        np.testing.assert_array_equal(pynca.segment(image, MODEL, axis=axis), expected)
        np.testing.assert_array_equal(pynca.segment(image, MODEL, axis=axis - 3), expected)
    np.testing.assert_array_equal(pynca.segment(image, MODEL, axis=2), pynca.segment(image, MODEL))


def test_axis_counts_the_axes_of_a_file() -> None:
    """Whatever the order in which a scan is stored, slicing along the same direction gives the same mask."""
    image = scan((7, 9, 5))
    expected = [pynca.segment(image, MODEL, axis=axis) for axis in range(3)]
    assert len({mask.tobytes() for mask in expected}) == 3
    for codes in ALL_48[::5]:
        stored = turned(image, codes)
        for axis, code in enumerate(codes):
            world = ["LR", "PA", "IS"].index(next(pair for pair in ("LR", "PA", "IS") if code in pair))
            mask = pynca.segment(stored, MODEL, axis=axis)
            np.testing.assert_array_equal(brought_back(mask, stored), expected[world])


@pytest.mark.parametrize("channels", [3, 4])
def test_a_colour_picture_is_refused_unless_axis_says_volume(channels: int) -> None:
    image = volume((8, 9, channels))
    with pytest.raises(ValueError, match=r"may be a colour picture; convert it to grey, or give axis="):
        pynca.segment(image, MODEL)
    expected = pynca.segment(np.concatenate([image, image], axis=2), MODEL)[..., :channels]
    np.testing.assert_array_equal(pynca.segment(image, MODEL, axis=2), expected)
    np.testing.assert_array_equal(pynca.segment(image, MODEL, affine=np.eye(4)), expected)
    np.testing.assert_array_equal(pynca.segment(nibabel.Nifti1Image(image, np.eye(4)), MODEL), expected)
    assert pynca.segment(volume((channels, 9, 8)), MODEL).shape == (channels, 9, 8)


# --- ensembles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 17, 9), (13, 17)])
@pytest.mark.parametrize("samples", [2, 7])
def test_ensembles_against_the_formulas(shape: tuple[int, ...], samples: int) -> None:
    image = np.random.default_rng(5).gamma(2.0, 100.0, shape)
    slices = np.moveaxis(image, 2, 0) if image.ndim == 3 else image[None]
    prepared = MODEL.preparation.prepare(slices)[..., None]
    runs = []
    for sample in range(samples):
        small = MODEL.batch_logits(
            prepared,
            samples=np.full(len(slices), sample, np.uint32),
            slices=np.arange(len(slices), dtype=np.uint32),
            seed=6,
        )
        restored = MODEL.preparation.restore(small, slices.shape[1:])
        runs.append(np.moveaxis(restored, 0, 2) if image.ndim == 3 else restored[0])
    logits = np.array(runs, np.float64)
    probability = 1 / (1 + np.exp(-logits))
    mean = logits.mean(axis=0)

    result = pynca.predict(image, MODEL, seed=6, samples=samples)
    np.testing.assert_allclose(result.probability, 1 / (1 + np.exp(-mean)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.uncertainty, probability.std(axis=0), rtol=0, atol=1e-6)
    assert result.nqm == pytest.approx(probability.std(axis=0).sum() / probability.mean(axis=0).sum(), rel=1e-5)
    sure = np.abs(mean) > 1e-5
    np.testing.assert_array_equal(result.mask[sure], mean[sure] > 0)


def test_the_first_sample_is_the_only_one_of_a_single_run() -> None:
    one, two = pynca.predict(volume(), MODEL), pynca.predict(volume(), MODEL, samples=2)
    assert not np.array_equal(one.probability, two.probability)
    model = replace(MODEL, levels=[replace(level, rule=all_fire(level.rule)) for level in MODEL.levels])
    agreed = pynca.predict(volume(), model, samples=4)
    np.testing.assert_array_equal(agreed.probability, pynca.predict(volume(), model).probability)
    assert agreed.nqm == 0
    assert agreed.uncertainty is not None
    assert not agreed.uncertainty.any()


def all_fire(rule: pynca.Rule) -> pynca.Rule:
    return pynca.Rule(rule.weights, perception=rule.perception, fire_rate=1.0)


def test_the_most_samples() -> None:
    model = random_model(steps=1, size=(4, 4), options={"padding": "zero"})
    result = pynca.predict(volume((4, 4, 1)), model, samples=4096)
    assert result.nqm is not None
    assert 0 < result.nqm < 1


def test_nqm_of_nothing_is_no_number() -> None:
    assert math.isnan(nqm(np.zeros((2, 3))))
    assert nqm(np.array([[1.0, 0.5], [2.0, 4.0]])) == 0.25


@pytest.mark.slow
def test_recorded_nqm(reference: Path, data: Path, authors_model: pynca.Model) -> None:
    """The papers' code drew other masks, so that only means can agree; on the model's own grid, as there."""
    with open(reference / "accuracy_hippocampus.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["nqm"]]
    rows = sorted(rows, key=lambda row: int(row["slices"]))[:2]  # the smallest: ten runs of each
    found = []
    for row in rows:
        image = nibabel.load(data / "hippocampus" / "images" / row["volume"])
        prepared = authors_model.preparation.prepare(np.moveaxis(np.asarray(image.dataobj), 2, 0))[..., None]
        indices = np.arange(len(prepared), dtype=np.uint32)
        ensemble = Ensemble()
        for sample in range(10):
            samples = np.full(len(prepared), sample, np.uint32)
            ensemble.add(authors_model.batch_logits(prepared, samples=samples, slices=indices))
        found.append(nqm(ensemble.totals()))
    recorded = [float(row["nqm"]) for row in rows]
    assert np.mean(found) == pytest.approx(np.mean(recorded), rel=0.1)
    np.testing.assert_allclose(found, recorded, rtol=0.25)


def test_a_real_scan_and_its_label(data: Path, authors_model: pynca.Model) -> None:
    """Four slices through the middle: the mask lies on the expert's label."""
    image, label = (
        nibabel.load(data / "hippocampus" / kind / "hippocampus_001.nii.gz").slicer[..., 15:19]
        for kind in ("images", "labels")
    )
    truth = np.asarray(label.dataobj) > 0
    for codes in ("RAS", "LPI", "SAR"):
        stored = turned(image, codes)
        mask = brought_back(pynca.segment(stored, authors_model), stored) > 0
        assert 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth)) > 0.9


# --- refusals ----------------------------------------------------------------------------------------------

IMAGE = volume((6, 7, 5))


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        (np.zeros(5), ValueError, r"the image has shape \(5,\); it must be a slice \(H, W\) or a volume"),
        (np.float64(1), ValueError, r"the image has shape \(\)"),
        (5, ValueError, r"the image has shape \(\)"),
        (np.zeros((4, 5, 6, 1)), ValueError, r"the image has shape \(4, 5, 6, 1\)"),
        (np.zeros((0, 5)), ValueError, r"the image has shape \(0, 5\); .* not empty"),
        (np.zeros((4, 5, 0)), ValueError, r"the image has shape \(4, 5, 0\)"),
        ([], ValueError, r"the image has shape \(0,\)"),
        ([["x"]], TypeError, "the image has dtype <U1"),
        (np.where(IMAGE > 100, IMAGE, np.nan), ValueError, r"the image holds \d+ values of 210 that are not finite"),
        (np.full((3, 5), -np.inf), ValueError, "the image holds 15 values of 15 that are not finite"),
        (np.full((3, 5), 1e39), ValueError, "the image holds 15 values of 15 .* beyond float32"),
        (IMAGE + 0j, TypeError, "the image has dtype complex128; it must hold real numbers"),
        (IMAGE.astype(object), TypeError, "the image has dtype object"),
        (np.array([["a", "b"]]), TypeError, "the image has dtype <U1"),
        (np.zeros((4, 5), "M8[s]"), TypeError, r"the image has dtype datetime64\[s\]"),
        (np.zeros((4, 5), [("r", "u1")]), TypeError, "the image has dtype"),
        (b"scan.nii", TypeError, r"the image has dtype \|S8"),
        (None, TypeError, "the image has dtype object"),
        ({"a": 1}, TypeError, "the image has dtype object"),
        (np.zeros((40, 50, 3), np.uint8), ValueError, r"the image has shape \(40, 50, 3\) and may be a colour picture"),
        (np.zeros((40, 50, 4), np.uint8), ValueError, r"the image has shape \(40, 50, 4\) and may be a colour picture"),
        ("no/such/scan.nii.gz", FileNotFoundError, r"no file no/such/scan\.nii\.gz"),
        (
            nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.uint8), np.eye(4)),
            ValueError,
            "it holds 2 volumes; choose one",
        ),
        (nibabel.Nifti1Image(np.full((4, 5, 6), np.nan), np.eye(4)), ValueError, "120 values of 120 .* not finite"),
    ],
)
def test_refused_images(image: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        pynca.predict(image, MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"axis": 3}, ValueError, "axis is 3; it must be between -3 and 2"),
        ({"axis": -4}, ValueError, "axis is -4"),
        ({"axis": 1.0}, TypeError, "axis is 1.0; it must be a whole number"),
        ({"axis": "0"}, TypeError, "axis is '0'"),
        ({"axis": True}, TypeError, "axis is True"),
        ({"image": IMAGE[0], "axis": 0}, ValueError, "axis says how to slice a volume; the image is a single slice"),
        ({"affine": np.eye(3)}, ValueError, r"affine has shape \(3, 3\)"),
        ({"affine": np.eye(4)[:3]}, ValueError, r"affine has shape \(3, 4\)"),
        (
            {"image": IMAGE[0], "affine": np.eye(4)},
            ValueError,
            r"the image \(7, 5\); an affine is \(4, 4\) and goes with",
        ),
        ({"image": scan(), "affine": np.eye(4)}, ValueError, "affine goes with an array; a file brings its own"),
        ({"image": "x.nii", "affine": np.eye(4)}, ValueError, "affine goes with an array"),
        ({"affine": np.zeros((4, 4))}, ValueError, "affine"),
        ({"affine": np.diag([1, 1, 0, 1])}, ValueError, "affine"),
        ({"affine": np.full((4, 4), np.nan)}, ValueError, "affine"),
        ({"affine": np.eye(4) * 1j}, TypeError, "affine has dtype complex128"),
        ({"affine": "RAS"}, TypeError, "affine has dtype <U3"),
        ({"samples": 0}, ValueError, "samples is 0; it must be between 1 and 4096"),
        ({"samples": 5000}, ValueError, "samples is 5000"),
        ({"samples": 2.0}, TypeError, "samples is 2.0; it must be a whole number"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
        ({"seed": None}, TypeError, "seed is None"),
        ({"threads": 0}, ValueError, "threads is 0; it must be between 1 and 1024"),
        ({"threads": "2"}, TypeError, "threads is '2'"),
        ({"model": None}, TypeError, "model is of type NoneType; it must be a Model or the path of a model file"),
        ({"model": MODEL.levels}, TypeError, "model is of type tuple"),
        ({"model": "no/such.safetensors"}, FileNotFoundError, r"no/such\.safetensors"),
        ({"model": "."}, IsADirectoryError, "directory"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    call = {"image": IMAGE, "model": MODEL, **arguments}
    with pytest.raises(error, match=sentence) as caught:
        pynca.segment(call.pop("image"), call.pop("model"), **call)
    assert "\n" not in str(caught.value)


def test_the_environments_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pynca.segment(IMAGE, MODEL, threads=1)
    monkeypatch.setenv("PYNCA_NUM_THREADS", "3")
    np.testing.assert_array_equal(pynca.segment(IMAGE, MODEL), expected)
    for wrong in ("0", "x", "-1", "1.5", "1025", "٣", "9" * 5000):
        monkeypatch.setenv("PYNCA_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match="environment variable PYNCA_NUM_THREADS is"):
            pynca.segment(IMAGE, MODEL)
        np.testing.assert_array_equal(pynca.segment(IMAGE, MODEL, threads=2), expected)


def test_progress_is_silent_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    pynca.segment(IMAGE, MODEL, progress=True)
    assert capfd.readouterr() == ("", "")


# --- saving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_saved_masks_lie_where_the_scan_lies(suffix: str, codes: str, tmp_path: Path) -> None:
    image = turned(scan(), codes)
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / f"scan{suffix}")
    model = replace(MODEL, labels={5: "x"})
    result = pynca.predict(tmp_path / f"scan{suffix}", model, samples=2)
    result.save(tmp_path / f"mask{suffix}")
    result.save_probability(str(tmp_path / f"probability{suffix}"))
    mask, probability = nibabel.load(tmp_path / f"mask{suffix}"), nibabel.load(tmp_path / f"probability{suffix}")
    assert mask.get_data_dtype() == np.uint8
    assert probability.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(mask.dataobj), result.mask)
    np.testing.assert_array_equal(np.asarray(probability.dataobj), result.probability)
    stored = nibabel.load(tmp_path / f"scan{suffix}")
    for written in (mask, probability):
        assert written.shape == stored.shape
        np.testing.assert_array_equal(written.affine, stored.affine)
        for matrix in ("get_sform", "get_qform"):
            (a, code), (b, expected) = (getattr(i, matrix)(coded=True) for i in (written, stored))
            np.testing.assert_array_equal(a, b)
            assert code == expected
        assert written.header.get_zooms() == stored.header.get_zooms()
    np.testing.assert_array_equal(pynca.segment(image, model, samples=2), result.mask)


def test_an_affine_is_enough_to_save(tmp_path: Path) -> None:
    affine = scan().affine
    result = pynca.predict(volume(), MODEL, affine=affine)
    result.save(tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), result.mask)


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    bare = pynca.predict(volume(), MODEL)
    for save in (bare.save, bare.save_probability):
        with pytest.raises(ValueError, match=r"array without affine; give affine= to predict, or save seg\.mask"):
            save(tmp_path / "mask.nii.gz")
    result = pynca.predict(scan(), MODEL)
    for name in ("mask", "mask.gz", "mask.nii.zip"):
        with pytest.raises(ValueError, match=r"must end in \.nii, \.nii\.gz"):
            result.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        result.save(tmp_path / "no" / "mask.nii")
    with pytest.raises(ValueError, match="mask holds the value 9"):
        replace(result, mask=np.full_like(result.mask, 9)).save(tmp_path / "mask.nii")
    with pytest.raises(ValueError, match="mask has shape"):
        replace(result, mask=result.mask[..., :2]).save(tmp_path / "mask.nii")
    assert not list(tmp_path.iterdir())


def test_segmentations_compare_by_identity() -> None:
    one, two = pynca.predict(IMAGE, MODEL), pynca.predict(IMAGE, MODEL)
    assert one == one
    assert one != two
    assert len({one, two}) == 2


# --- runs that do not stay finite ------------------------------------------------------------------------------


def test_a_run_that_does_not_stay_finite_is_an_error(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((16, 16, 5), np.float32)
    model = exploding_model()
    for samples in (1, 3):
        with pytest.raises(NotFinite, match=r"^the image: a run of the model exploding did not stay finite"):
            pynca.predict(image, model, samples=samples)
    for call in (model.logits, lambda image: pynca.predict(image, replace(model, postprocessing=("largest",)))):
        with pytest.raises(NotFinite, match="a run of the model exploding did not stay finite"):
            call(image[..., 0])
    model.save(tmp_path / "m.safetensors")
    assert not np.isfinite(model.levels[1].rule.run(np.ones((8, 8, 6), np.float32), 4)).all()  # the values as they are
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(NotFinite, match=r"^\S+x.nii: a run of the model \S+m.safetensors did not stay finite"):
        pynca.segment(tmp_path / "x.nii", tmp_path / "m.safetensors")


def test_an_average_that_leaves_float32_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([3e38, -3e38])
    monkeypatch.setattr(
        pynca.Model, "batch_logits", lambda self, images, **_: np.full(images.shape[:3], next(runs), np.float32)
    )
    with pytest.raises(NotFinite, match="did not stay finite"):
        pynca.predict(np.ones((16, 16)), random_model(), samples=2)


def test_a_run_in_a_channel_behind_the_logits_counts() -> None:
    weights = {name: np.array(w) for name, w in random_model().levels[1].rule.weights.items()}
    weights["fc1.weight"][2:] *= 1e20
    weights["fc1.weight"][1] = 0  # the logits never change
    model = pynca.Model([pynca.Level(pynca.Rule(weights, perception="conv"), 30, 1)], pynca.Preparation((16, 16)))
    with pytest.raises(NotFinite):
        model.logits(np.random.default_rng(0).random((16, 16)))
