"""The reader and writer of tensor files: round trips, the same bytes, and every refusal."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pynca import tensorfile

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def packed(header: object, data: bytes = bytes(8)) -> bytes:
    block = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(block).to_bytes(8, "little") + block + data


def entry(**fields: object) -> dict[str, dict[str, object]]:
    return {"a": {**ONE["a"], **fields}}


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        "fc0.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "fc0.bias": rng.standard_normal(5).astype(np.float32),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


# --- round trips ----------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
tensors = st.dictionaries(text.filter(lambda name: name != "__metadata__"), shapes, max_size=6)


@settings(max_examples=100, deadline=None)
@given(shapes=tensors, metadata=st.dictionaries(text, text, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_round_trip(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        tensorfile.write(path, given, metadata)
        read, text = tensorfile.read(path)
    assert text == metadata
    assert read.keys() == given.keys()
    for name, array in read.items():
        assert array.shape == given[name].shape
        assert array.tobytes() == given[name].tobytes()


def test_arrays_are_fresh_writable_and_native(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x", weights(), {})
    read, _ = tensorfile.read(tmp_path / "x")
    for array in read.values():
        assert array.dtype == np.dtype("f4")
        assert array.dtype.isnative
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.owndata


def test_any_order_in_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    plain = weights()
    turned = {
        name: np.array(plain[name], ">f4" if i % 2 else "<f4", order="F") for i, name in enumerate(reversed(plain))
    }
    tensorfile.write(tmp_path / "x", plain, {"a": "1", "b": "2"})
    tensorfile.write(tmp_path / "y", turned, {"b": "2", "a": "1"})
    block = (tmp_path / "x").read_bytes()
    assert block == (tmp_path / "y").read_bytes()
    assert int.from_bytes(block[:8], "little") % 8 == 0


def test_bytes_are_fixed(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "x", {"w": np.array([1, -2], np.float32)}, {"é": "1"})
    seal = "pynca:sha256:" + "0" * 64
    metadata, tensor = f'{{"seal":"{seal}","é":"1"}}', '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    header = f'{{"__metadata__":{metadata},"w":{tensor}}}'.encode()
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + bytes.fromhex("0000803f000000c0")
    digest = hashlib.sha256(content).hexdigest()
    assert (tmp_path / "x").read_bytes() == content.replace(b"0" * 64, digest.encode())


def test_the_seal_is_not_part_of_what_is_read(tmp_path: Path) -> None:
    """So that what is saved again does not carry that of another file."""
    tensorfile.write(tmp_path / "x", weights(), {"card": "{}", "seal": "of wax"})
    read, metadata = tensorfile.read(tmp_path / "x")
    assert metadata == {"card": "{}"}
    tensorfile.write(tmp_path / "y", read, metadata)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(weights(), tmp_path / "x", {"card": "{}", "é": "\x00"})
    read, metadata = tensorfile.read(tmp_path / "x")
    assert metadata == {"card": "{}", "é": "\x00"}
    assert read.keys() == weights().keys()
    for name, array in weights().items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    tensorfile.write(tmp_path / "x", weights(), {"card": "{}", "é": "\x00"})
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        metadata = file.metadata()
        assert metadata.pop("seal").startswith("pynca:sha256:")
        assert metadata == {"card": "{}", "é": "\x00"}
        assert set(file.keys()) == weights().keys()
        for name, array in weights().items():
            np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)


# --- refusals of the reader -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (bytes(7), "has 7 bytes"),
    "no header": (bytes(8), "must be a JSON object"),
    "header cut short": (packed(ONE)[:20], "cut short"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "cut short"),
    "header too long": (packed(b"{}" + b" " * 2**22), "it may take 4194304"),
    "not UTF-8": (packed(b'{"\xff":1}'), "not text at byte 2"),
    "byte order mark": (packed(b"\xef\xbb\xbf{}", b""), "must be a JSON object"),
    "UTF-16": (packed("{}".encode("utf-16"), b""), "must be JSON in UTF-8"),
    "leading space": (packed(b" {}", b""), "must be a JSON object"),
    "a list": (packed([], b""), "must be a JSON object"),
    "not JSON": (packed(b"{'a':1}"), "not JSON at character 1"),
    "two objects": (packed(b"{}{}"), "not JSON at character 2"),
    "duplicate tensor": (packed(b'{"a":1,"a":2}'), "'a' twice"),
    "duplicate metadata": (packed(b'{"__metadata__":{"k":"1","k":"1"}}', b""), "'k' twice"),
    "duplicate field": (packed(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "'dtype' twice"),
    "nested": (packed(b'{"a":' + b"[" * 10**6), "nested too deeply"),
    "NaN": (packed(b'{"a":NaN}'), "holds NaN"),
    "many digits": (packed(b'{"a":' + b"1" * 10**6 + b"}"), "1000000 digits"),
    "metadata is text": (packed({"__metadata__": "x", **ONE}), "must map text to text"),
    "metadata is null": (packed({"__metadata__": None, **ONE}), "must map text to text"),
    "metadata holds a number": (packed({"__metadata__": {"k": 1}, **ONE}), "metadata 'k' is 1"),
    "metadata holds an object": (packed({"__metadata__": {"k": {}}, **ONE}), "must be text"),
    "lone surrogate": (packed({"__metadata__": {"k": "\ud800"}, **ONE}), "surrogate pair"),
    "lone surrogate in a name": (packed({"\udc00": ONE["a"]}), "surrogate pair"),
    "tensor is a number": (packed({"a": 1}), "described by 1"),
    "field missing": (packed({"a": {"dtype": "F32", "shape": [2]}}), "must have dtype, shape"),
    "field too many": (packed(entry(more=1)), "must have dtype, shape"),
    "float16": (packed(entry(dtype="F16", shape=[4])), "only F32"),
    "bfloat16": (packed(entry(dtype="BF16", shape=[4])), "dtype 'BF16'"),
    "dtype is a list": (packed(entry(dtype=["F32"])), "only F32"),
    "shape is a number": (packed(entry(shape=2)), "at most 32 whole numbers"),
    "shape is negative": (packed(entry(shape=[-1, -2])), "at most 32 whole numbers"),
    "shape is a float": (packed(entry(shape=[2.0])), "at most 32 whole numbers"),
    "shape is a bool": (packed(entry(shape=[2, True])), "at most 32 whole numbers"),
    "too many axes": (packed(entry(shape=[2] + [1] * 32)), "at most 32 whole numbers"),
    "shape overflows": (packed(entry(shape=[2**32, 2**32 + 1])), "no computer"),
    "shape overflows to fit": (packed(entry(shape=[2**62, 2])), "no computer"),
    "empty, but huge": (packed(entry(shape=[0, 2**62], data_offsets=[0, 0])), "no computer"),
    "shape too large": (packed(entry(shape=[3])), "must take 12"),
    "shape too small": (packed(entry(shape=[])), "must take 4"),
    "one offset": (packed(entry(data_offsets=[8])), "its begin and its end"),
    "offsets are text": (packed(entry(data_offsets=["0", "8"])), "its begin and its end"),
    "offset is a bool": (packed(entry(data_offsets=[False, 8])), "its begin and its end"),
    "negative offsets": (packed(entry(data_offsets=[-8, 0])), "its begin and its end"),
    "offsets reversed": (packed(entry(data_offsets=[8, 0])), "its begin and its end"),
    "offsets are null": (packed(entry(data_offsets=None)), "its begin and its end"),
    "outside the data": (packed(entry(shape=[4], data_offsets=[0, 16])), "ends at byte 16 of 8"),
    "far outside": (packed(entry(shape=[2**40], data_offsets=[0, 2**42])), "cut short"),
    "hole in front": (packed(entry(shape=[1], data_offsets=[4, 8])), "must begin at 0"),
    "hole": (
        packed({**ONE, "b": {**ONE["a"], "data_offsets": [12, 20]}}, bytes(20)),
        "leaves a hole after tensor 'a'; it must begin at 8",
    ),
    "overlap": (
        packed({**ONE, "b": {**ONE["a"], "data_offsets": [4, 12]}}, bytes(12)),
        "overlaps tensor 'a'; it must begin at 8",
    ),
    "shared": (packed({**ONE, "b": ONE["a"]}), "overlaps tensor 'a'"),
    "data cut short": (packed(ONE, bytes(7)), "ends at byte 8 of 7"),
    "data too long": (packed(ONE, bytes(9)), "must take all of them, but take 8"),
    "data without tensors": (packed({}), "must take all of them, but take 0"),
    "not a number": (packed(ONE, np.array([1, np.nan], "<f4").tobytes()), "tensor 'a' has 1 value"),
    "infinite": (packed(ONE, np.array([np.inf, -np.inf], "<f4").tobytes()), "tensor 'a' has 2 value"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        tensorfile.read(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith(f"cannot read {path}: ")
    assert reason in message
    assert len(message) < len(str(path)) + 300
    assert "\n" not in message
    message.encode()  # it can be printed


def test_accepts_header_padded_and_tensors_in_any_order(tmp_path: Path) -> None:
    header = {
        "b": {"data_offsets": [8, 12], "shape": [1, 1], "dtype": "F32"},
        "none": {"data_offsets": [8, 8], "shape": [3, 0], "dtype": "F32"},
        "a": {"data_offsets": [0, 8], "shape": [2], "dtype": "F32"},
    }
    (tmp_path / "x").write_bytes(packed(json.dumps(header).encode() + b" \n", np.array([1, 2, 3], "<f4").tobytes()))
    read, metadata = tensorfile.read(tmp_path / "x")
    assert metadata == {}
    assert {name: array.tolist() for name, array in read.items()} == {
        "a": [1, 2],
        "none": [[], [], []],
        "b": [[3]],
    }


def test_missing_file_and_folder_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        tensorfile.read(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        tensorfile.read(tmp_path)


def test_only_value_errors_for_mutated_files(tmp_path: Path) -> None:
    """Whatever the bytes: a sentence, or finite float32 arrays that add up to the file's size."""
    rng = random.Random(20240607)
    path = tmp_path / "x"
    tensorfile.write(path, weights(), {"card": json.dumps({"name": "x"})})
    original = path.read_bytes()
    refusals: list[str] = []
    for _ in range(800):
        content = mutated(original, rng)
        path.write_bytes(content)
        try:
            read, metadata = tensorfile.read(path)
        except ValueError as problem:
            refusals.append(str(problem))
            continue
        length = int.from_bytes(content[:8], "little")
        assert sum(array.nbytes for array in read.values()) == len(content) - 8 - length
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in read.values())
        assert all(isinstance(x, str) for item in metadata.items() for x in item)
    assert 0 < len(refusals) < 800
    assert all(message.startswith(f"cannot read {path}: ") for message in refusals)


def mutated(content: bytes, rng: random.Random) -> bytes:
    block = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(block)) if rng.random() < 0.2 else rng.randrange(min(end, len(block)))
        match rng.randrange(6):
            case 0:
                block[at] ^= 1 << rng.randrange(8)
            case 1:
                block[at] = rng.choice(b'0123456789-{}[]":,.eE \\')
            case 2:
                del block[at:]
                block.append(0)
            case 3:
                block[at:at] = rng.choice(string.printable).encode() * rng.choice((1, 1, 50))
            case 4:
                del block[at : at + rng.randrange(1, 9)]
                block.append(0)
            case 5:
                other = rng.randrange(len(block))
                block[at:at] = block[other : other + rng.randrange(1, 40)]
    return bytes(block)


# --- the writer -------------------------------------------------------------------------------------------

UNWRITABLE: dict[str, tuple[dict[Any, Any], dict[Any, Any], str]] = {
    "float64": ({"a": np.zeros(2)}, {}, "must be float32"),
    "integers": ({"a": np.zeros(2, np.int32)}, {}, "must be float32"),
    "a list": ({"a": [1.0]}, {}, "must be float32"),
    "not a number": ({"a": np.array([np.nan], np.float32)}, {}, "not finite"),
    "reserved": ({"__metadata__": np.zeros(1, np.float32)}, {}, "keeps that name"),
    "name is a number": ({1: np.zeros(1, np.float32)}, {}, "must be text"),
    "surrogate": ({"\ud800": np.zeros(1, np.float32)}, {}, "surrogate pair"),
    "metadata is a number": ({}, {"a": 1}, "must be text"),
    "metadata key is a number": ({}, {1: "a"}, "must be text"),
    "metadata too long": ({}, {"a": "x" * 2**22}, "may take 4194304"),
}


@pytest.mark.parametrize(("given", "metadata", "reason"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_writer_refuses(tmp_path: Path, given: dict[Any, Any], metadata: dict[Any, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tensorfile.write(tmp_path / "x", given, metadata)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tensorfile.write(path, weights(), {}, overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tensorfile.write(tmp_path / "x", weights(), {})
    assert list(tmp_path.iterdir()) == []


def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    tensorfile.write(tmp_path / "x", weights(), {})
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 243 + ".safetensors")
    tensorfile.write(path, weights(), {})
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_to_write_into(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        tensorfile.write(tmp_path / "no" / "x", weights(), {})
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        tensorfile.write(tmp_path, weights(), {})
