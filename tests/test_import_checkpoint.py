"""Importing Med-NCA checkpoints: the authors' own, every form a configuration takes, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pynca import Card, Rule, import_checkpoint
from support import ALL_RECORDED, CHECKPOINT

needs_reference = pytest.mark.skipif(not ALL_RECORDED.is_dir(), reason="the reference files are not on this machine")


def save(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """Write float32 weights as torch.save writes a state dict."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"

    body = b""
    for key, (name, w) in enumerate(weights.items()):
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu")
        storage += b"J" + struct.pack("<i", w.size) + b"tQ"
        stride = tuple(s // 4 for s in np.empty(w.shape, np.float32).strides)
        view = storage + b"K\0" + numbers(w.shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
        body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)R(" + body + b"u.")
        for key, w in enumerate(weights.values()):
            file.writestr(f"m/data/{key}", np.ascontiguousarray(w, "<f4").tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def conv_weights(channels: int = 4, hidden: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {
        "fc0.weight": (hidden, 3 * channels),
        "fc0.bias": (hidden,),
        "fc1.weight": (channels, hidden),
        "p0.weight": (channels, channels, 3, 3),
        "p0.bias": (channels,),
        "p1.weight": (channels, channels, 3, 3),
        "p1.bias": (channels,),
    }
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def sobel_weights(channels: int = 4, hidden: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    return {name: w for name, w in conv_weights(channels, hidden, seed).items() if name.startswith("fc")}


CONFIG = {
    "channel_n": 4,
    "hidden_size": 5,
    "inference_steps": 7,
    "cell_fire_rate": 0.25,
    "input_channels": 1,
    "output_channels": 1,
    "train_model": 1,
    "input_size": [[8, 12], [32, 48]],
    "rescale": True,
}
DROP = object()


@pytest.fixture
def folder(tmp_path):
    """Write a checkpoint's folder; keyword arguments change its configuration or drop parts of it."""

    def write(*weights, epochs=(10,), config=None, **changes):
        weights = weights or (conv_weights(seed=1), conv_weights(seed=2))
        root = tmp_path / "my_model"
        root.mkdir(exist_ok=True)
        for epoch in epochs:
            for n, w in enumerate(weights):
                save(root / f"models/epoch_{epoch}/model{n}.pth", w)
        values = {key: value for key, value in (CONFIG | changes).items() if value is not DROP}
        (root / "config.dt").write_text(json.dumps([values]) if config is None else config)
        return root

    return write


@pytest.fixture
def file(tmp_path):
    """Write a level's file."""
    return lambda weights, name="model0.pth": save(tmp_path / "loose" / name, weights)


OPTIONS = {"steps": 7, "fire_rate": 0.75, "size": (32, 48)}


def same_weights(rule, weights):
    stored = rule.state_dict()
    return set(stored) == set(weights) and all(np.array_equal(stored[name], w) for name, w in weights.items())


# The authors' own checkpoint.


@needs_reference
def test_authors_checkpoint():
    model = import_checkpoint(CHECKPOINT)
    with np.load(ALL_RECORDED / "checkpoints" / "med_nca_hippocampus_weights.npz") as converted:
        for n, level in enumerate(model.levels):
            assert same_weights(level.rule, {key[3:]: converted[key] for key in converted if key[:3] == f"w{n}."})
    assert [(level.steps, level.scale) for level in model.levels] == [(16, 4), (16, 1)]
    for level in model.levels:
        rule = level.rule
        assert (rule.perception, rule.padding, rule.input_channels) == ("conv", "reflect", 1)
        assert (rule.channels, rule.hidden, rule.fire_rate) == (32, 128, 0.5)
    preparation = model.preparation
    assert (preparation.size, preparation.orientation, preparation.axis) == ((64, 64), "RAS", 2)
    assert preparation.label_offset == 0.5
    assert model.labels == {1: "foreground"}
    assert model.parameters == 70_016


@needs_reference
@pytest.mark.parametrize("case", ["e1_mednca_hippocampus_001_s17", "e6_mednca_checkpoint_96x80"])
def test_authors_checkpoint_gives_the_authors_logits(case):
    model = import_checkpoint(CHECKPOINT)
    with np.load(ALL_RECORDED / f"{case}.npz") as golden:
        logits = model.logits(golden["image"], masks=[golden["masks_low"], golden["masks_high"]])
        np.testing.assert_allclose(logits, golden["logits"], atol=2e-4, rtol=0)


@needs_reference
def test_default_card_says_where_the_weights_came_from():
    card = import_checkpoint(CHECKPOINT).card
    assert card.name == "med_nca_hippocampus"
    assert card.description.startswith("Imported from a Med-NCA checkpoint")
    files = [CHECKPOINT / "models/epoch_1500" / name for name in ("model0.pth", "model1.pth")]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files]
    assert card.source == (
        f"med_nca_hippocampus/epoch_1500: model0.pth (sha256 {hashes[0]}), model1.pth (sha256 {hashes[1]})"
    )


@needs_reference
def test_authors_files_without_their_folder():
    files = [CHECKPOINT / "models/epoch_1500" / name for name in ("model0.pth", "model1.pth")]
    loose = import_checkpoint(files, steps=16, fire_rate=0.5, size=(64, 64))
    whole = import_checkpoint(CHECKPOINT)
    assert loose.preparation == whole.preparation
    for a, b in zip(loose.levels, whole.levels, strict=True):
        assert (a.steps, a.scale, a.rule.fire_rate) == (b.steps, b.scale, b.rule.fire_rate)
        assert same_weights(a.rule, b.rule.state_dict())


@needs_reference
def test_growing_checkpoint_says_how_to_convert_it():
    with pytest.raises(ValueError, match=r"growing_nca\.pth: .*before version 1\.6"):
        import_checkpoint(ALL_RECORDED / "checkpoints" / "growing_nca.pth", **OPTIONS)


# Folders and their configuration.


def test_configuration_is_translated(folder):
    model = import_checkpoint(folder())
    coarse, fine = model.levels
    assert same_weights(coarse.rule, conv_weights(seed=1))
    assert same_weights(fine.rule, conv_weights(seed=2))
    assert coarse.rule.fire_rate == fine.rule.fire_rate == 0.75
    assert [(level.steps, level.scale) for level in model.levels] == [(7, 4), (7, 1)]
    assert model.preparation.size == (32, 48)


def test_options_override_the_configuration(folder):
    card = Card(name="mine")
    model = import_checkpoint(
        str(folder()),
        steps=[3, 5],
        fire_rate=0.3,
        size=(np.int64(16), 24),
        scale=2,
        orientation="LPI",
        axis=1,
        labels={7: "liver"},
        card=card,
    )
    assert [(level.steps, level.scale, level.rule.fire_rate) for level in model.levels] == [(3, 2, 0.3), (5, 1, 0.3)]
    preparation = model.preparation
    assert (preparation.size, preparation.orientation, preparation.axis) == ((16, 24), "LPI", 1)
    assert type(preparation.size[0]) is int
    assert (model.labels, model.card) == ({7: "liver"}, card)


def test_newest_epoch_is_by_number(folder):
    root = folder(epochs=(9, 1000, 200))
    (root / "models" / "epoch_x").mkdir()
    (root / "models" / "epoch_9999").write_text("no folder")
    assert "my_model/epoch_1000:" in import_checkpoint(root).card.source
    assert "my_model/epoch_9:" in import_checkpoint(root, epoch=9).card.source
    with pytest.raises(FileNotFoundError, match="does not hold epoch 10; the epochs there are 3, from 9 to 1000"):
        import_checkpoint(root, epoch=10)


def test_configuration_as_bare_object_and_later_stages(folder):
    assert import_checkpoint(folder(config=json.dumps(CONFIG))).levels[0].steps == 7
    later = [CONFIG, {"lr": 0.1, "n_epoch": 2000}]
    assert import_checkpoint(folder(config=json.dumps(later))).levels[0].steps == 7
    later = [CONFIG, {"inference_steps": 9, "n_epoch": 2000}]
    with pytest.raises(ValueError, match=r"config\.dt: it changes inference_steps during training"):
        import_checkpoint(folder(config=json.dumps(later)))


def test_single_level_folder(folder):
    changes = {"train_model": DROP, "input_size": [32, 48], "input_channels": 2}
    root = folder(sobel_weights(), **changes)
    (root / "models/epoch_10/model0.pth").rename(root / "models/epoch_10/model.pth")
    (level,) = import_checkpoint(root).levels
    assert (level.scale, level.rule.perception, level.rule.padding, level.rule.input_channels) == (
        1,
        "sobel",
        "zero",
        2,
    )


def test_data_split_and_optimizer_are_never_read(folder):
    root = folder()
    (root / "data_split.dt").write_bytes(b"cos\nsystem\n(X\x05\0\0\0falsetR.")
    (root / "models/epoch_10/optimizer0.pth").write_bytes(b"anything")
    (root / "models/epoch_10/model0_backup.pth").write_bytes(b"anything")
    assert len(import_checkpoint(root).levels) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rescale": False}, "'rescale' is false; only checkpoints trained on resized slices"),
        ({"output_channels": 2}, "'output_channels' is 2; only checkpoints with one output channel"),
        ({"output_channels": "1"}, "'output_channels' is \"1\"; it must be a whole number"),
        ({"train_model": 0}, "'train_model' is 0; with 2 model files it must be 1"),
        ({"channel_n": 16}, "'channel_n' is 16; the weights in .*model0.pth have 4"),
        ({"hidden_size": 128}, "'hidden_size' is 128; the weights in .*model0.pth have 5"),
        ({"hidden_size": True}, "'hidden_size' is true; it must be a whole number"),
        ({"channel_n": 4.0}, "'channel_n' is 4.0; it must be a whole number"),
        ({"inference_steps": [20, 40]}, "'inference_steps' is .20, 40.; .* give steps="),
        ({"inference_steps": []}, "give steps="),
        ({"inference_steps": 0}, "whole number between 1 and 65535"),
        ({"inference_steps": DROP}, "lacks 'inference_steps'; give steps="),
        ({"inference_steps": None}, "lacks 'inference_steps'; give steps="),
        ({"cell_fire_rate": DROP}, "lacks 'cell_fire_rate'; give fire_rate="),
        ({"cell_fire_rate": 1.5}, "'cell_fire_rate' is 1.5; it must be a probability"),
        ({"cell_fire_rate": float("nan")}, "it holds NaN"),
        ({"cell_fire_rate": True}, "must be a probability"),
        ({"cell_fire_rate": "0.5"}, "must be a probability"),
        ({"input_size": DROP}, "lacks 'input_size'; give size="),
        ({"input_size": [[8, 8, 2], [32, 32, 8]]}, "volumes .3D. are not supported yet"),
        ({"input_size": [[8, 8]] * 3}, "must give a size for each of 2 model files"),
        ({"input_size": [[8, 12], [32, 36]]}, "same whole factor on both axes"),
        ({"input_size": [[9, 9], [32, 32]]}, "same whole factor on both axes"),
        ({"input_size": [[64, 64], [32, 32]]}, "same whole factor on both axes"),
        ({"input_size": [[16, 16], [32, 32]]}, "factor of 2, but the authors' code always shrinks by 4; .*scale="),
        ({"input_size": []}, "must be .rows, columns."),
        ({"input_size": 64}, "must be .rows, columns."),
        ({"input_size": {"rows": 64}}, "must be .rows, columns."),
        ({"input_size": [["8", "8"], ["32", "32"]]}, "must be .rows, columns."),
        ({"input_size": [[0, 0], [32, 32]]}, "must be .rows, columns."),
        ({"input_size": [[8, 8], 32]}, "must be .rows, columns."),
    ],
)
def test_configurations_that_are_refused(folder, changes, sentence):
    with pytest.raises(ValueError, match=rf"^\S*config\.dt: .*{sentence}"):
        import_checkpoint(folder(**changes))


def test_other_scales_need_to_be_said(folder):
    root = folder(input_size=[[16, 24], [32, 48]])
    assert import_checkpoint(root, scale=2).levels[0].scale == 2
    assert import_checkpoint(root, scale=4).levels[0].scale == 4
    root = folder(input_size=[[16, 24], [32, 48]], scale_factor=2)
    assert import_checkpoint(root).levels[0].scale == 2


def test_equal_steps_in_a_list(folder):
    assert [level.steps for level in import_checkpoint(folder(inference_steps=[64, 64])).levels] == [64, 64]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"channel_n": ' + "9" * 10_000 + "}", "holds a number of 10000 digits"),
        ("[]", "must hold a JSON object"),
        ("7", "must hold a JSON object"),
        ('[{}, "x"]', "must hold a JSON object"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
        ('{"rescale": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"rescale": "' + "x" * 5000 + '"}', "only checkpoints trained on resized slices"),
    ],
    ids=lambda value: value[:20],
)
def test_configurations_that_are_no_configuration(folder, config, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        import_checkpoint(folder(config=config))
    assert len(str(caught.value)) < 500


def test_configuration_in_other_bytes(folder):
    root = folder()
    (root / "config.dt").write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(ValueError, match=r"config\.dt: it is not text at byte 0"):
        import_checkpoint(root)


# Files without a folder.


def test_one_file_is_a_single_level(file):
    path = file(conv_weights())
    for source in (path, str(path), [path]):
        (level,) = import_checkpoint(source, **OPTIONS).levels
        assert (level.scale, level.steps, level.rule.fire_rate) == (1, 7, 0.75)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_model(file, prefix):
    (level,) = import_checkpoint(file({prefix + name: w for name, w in conv_weights().items()}), **OPTIONS).levels
    assert same_weights(level.rule, conv_weights())
    rule = Rule.from_state_dict({prefix + name: w for name, w in conv_weights().items()}, perception="conv")
    assert same_weights(rule, conv_weights())


def test_weights_of_a_model_wrapped_in_part_are_refused(file):
    weights = {("_orig_mod." if name.startswith("fc") else "") + name: w for name, w in conv_weights().items()}
    with pytest.raises(ValueError, match=r"model0\.pth: some of its tensors have the prefix _orig_mod\. and 'p0"):
        import_checkpoint(file(weights), **OPTIONS)
    with pytest.raises(ValueError, match=r"have the prefix _orig_mod\. and 'p0"):
        Rule.from_state_dict(weights, perception="conv")


def test_two_files_are_coarse_and_fine(file):
    files = [file(sobel_weights(seed=1), "a.pth"), file(sobel_weights(seed=2), "b.pth")]
    model = import_checkpoint(files, **OPTIONS, input_channels=2)
    assert [level.scale for level in model.levels] == [4, 1]
    assert same_weights(model.levels[0].rule, sobel_weights(seed=1))
    assert model.input_channels == 2
    assert model.card.name == "loose"
    assert model.card.source.startswith("loose: a.pth (sha256 ")
    assert import_checkpoint(files, **OPTIONS, input_channels=1, scale=8).levels[0].scale == 8


@pytest.mark.parametrize("missing", ["steps", "fire_rate", "size"])
def test_files_need_options(file, missing):
    options = {key: value for key, value in OPTIONS.items() if key != missing}
    with pytest.raises(ValueError, match=rf"^\S*model0\.pth: weights alone do not say .*; give {missing}="):
        import_checkpoint(file(conv_weights()), **options)


def test_sobel_files_need_their_input_channels(file):
    with pytest.raises(ValueError, match=r"^\S*model0\.pth: weights alone do not say .*; give input_channels="):
        import_checkpoint(file(sobel_weights()), **OPTIONS)


@pytest.mark.parametrize("given", ["option", "configuration"])
def test_backbone_keeps_only_one_channel_fixed(folder, given):
    root, options = (folder(), {"input_channels": 3}) if given == "option" else (folder(input_channels=3), {})
    with pytest.raises(ValueError, match=r"^\S*model0\.pth: input_channels is 3; .*keeps only the first channel fixed"):
        import_checkpoint(root, **options)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"steps": [1, 2]}, ValueError, "steps has 2 numbers for 1 levels"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"steps": 2.5}, TypeError, "steps is 2.5"),
        ({"fire_rate": 1.1}, ValueError, "fire_rate is 1.1"),
        ({"size": (64,)}, ValueError, "size is .64,.; it must be .rows, columns."),
        ({"size": 64}, ValueError, "size is 64"),
        ({"size": (1, 64)}, ValueError, "size is 1"),
        ({"size": (64.0, 64)}, TypeError, "size is 64.0"),
        ({"scale": 4}, ValueError, "a single level has scale 1"),
        ({"orientation": "XYZ"}, ValueError, "orientation is 'XYZ'"),
        ({"axis": 3}, ValueError, "axis is 3"),
        ({"epoch": 3}, ValueError, "epoch chooses within a folder"),
        ({"labels": {}}, ValueError, "labels"),
    ],
)
def test_options_out_of_range(file, options, error, sentence):
    with pytest.raises(error, match=sentence):
        import_checkpoint(file(conv_weights()), **(OPTIONS | options))


# Weights that are refused.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bn.weight": np.ones(5), "bn.bias": np.ones(5)}, "normalises the hidden layer"),
        ({"conv.weight": np.ones((4, 1, 3, 3))}, "depthwise convolution"),
        ({"p0.weight": np.ones((4, 1, 3, 3))}, "depthwise convolution"),
        ({"p0.weight": np.ones((4, 1, 3, 3, 3))}, "kernels are 3D"),
        ({"backbone_lowres.fc0.weight": np.ones((5, 12))}, "several levels in one file"),
        ({"fc2.weight": np.ones(3)}, "unknown fc2.weight"),
        ({"p1.weight": None}, "misses p1.weight"),
        ({"fc0.weight": np.ones((5, 13))}, "fc0.weight has shape"),
        ({"fc0.bias": np.full(5, np.nan)}, "fc0.bias holds a value that is not finite"),
        ({"p0.weight": np.ones((4, 4, 3, 5))}, "p0.weight has shape"),
    ],
)
def test_other_families_and_wrong_weights(file, changes, sentence):
    weights = {name: w for name, w in (conv_weights() | changes).items() if w is not None}
    with pytest.raises(ValueError, match=rf"^\S*model0\.pth: [^/]*{sentence}"):
        import_checkpoint(file(weights), **OPTIONS)


def test_levels_that_do_not_fit_each_other(folder):
    root = folder(conv_weights(4), conv_weights(6), channel_n=DROP)
    with pytest.raises(ValueError, match=r"epoch_10: all levels of a model must have the same channels"):
        import_checkpoint(root)


def test_hostile_file_in_a_folder(folder, tmp_path):
    root, marker = folder(), tmp_path / "it-ran"
    command = f"touch {marker}".encode()
    with zipfile.ZipFile(root / "models/epoch_10/model1.pth", "w") as archive:
        archive.writestr(
            "m/data.pkl", b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85R."
        )
    with pytest.raises(ValueError, match=r"model1\.pth: .*'os\.system'"):
        import_checkpoint(root)
    assert not marker.exists()


# Files that are not there.


def test_missing_places(folder, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        import_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        import_checkpoint([file(conv_weights()), tmp_path / "none.pth"], **OPTIONS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/config\.dt does not exist; give the folder that holds"):
        import_checkpoint(tmp_path / "empty")
    root = folder(epochs=())
    with pytest.raises(FileNotFoundError, match=r"models holds no folder epoch_<n>"):
        import_checkpoint(root)
    (root / "models/epoch_3").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"epoch_3/model0\.pth does not exist"):
        import_checkpoint(root)


def test_coarse_level_missing(folder):
    root = folder()
    (root / "models/epoch_10/model0.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"model0\.pth does not exist, but should hold the weights"):
        import_checkpoint(root)


def test_fine_level_missing(folder):
    root = folder()
    (root / "models/epoch_10/model1.pth").unlink()
    with pytest.raises(ValueError, match="'train_model' is 1; with 1 model files it must be 0"):
        import_checkpoint(root)


def test_sources_that_are_too_many(folder, file):
    with pytest.raises(ValueError, match="holds 3 model files; only one or two"):
        import_checkpoint(folder(conv_weights(), conv_weights(), conv_weights()))
    path = file(conv_weights())
    for sources in ([], [path] * 3):
        with pytest.raises(ValueError, match=rf"source names {len(sources)} files; give one or two"):
            import_checkpoint(sources, **OPTIONS)
    with pytest.raises(ValueError, match=r"loose is a folder; give either one folder or the \.pth files"):
        import_checkpoint([path, path.parent], **OPTIONS)
