"""The PyTorch archive reader: the authors' own files, every layout torch.save writes, and hostile bytes."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import zipfile

import numpy as np
import pytest

from pynca.checkpoints.archive import read_state_dict
from support import ALL_RECORDED

needs_reference = pytest.mark.skipif(not ALL_RECORDED.is_dir(), reason="the reference files are not on this machine")


# A pickle, piece by piece, as torch.save puts it together.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name("collections.OrderedDict") + b")R"


def storage(key: str = "0", count: int = 6, kind: str = "torch.FloatStorage") -> bytes:
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
    of: bytes = b"",
    last: bytes = b"",
) -> bytes:
    parts = (of or storage(), number(offset), numbers(shape), numbers(stride), b"\x89", ORDERED_DICT, last)
    return name("torch._utils._rebuild_tensor_v2") + b"(" + b"".join(parts) + b"tR"


def mapping(items: dict[str, bytes], empty: bytes = ORDERED_DICT) -> bytes:
    return empty + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


SIX = np.arange(6, dtype="<f4").tobytes()


def archive(
    pickled: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    root: str = "model/",
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    entries = {"data.pkl": pickled}
    entries |= {f"data/{key}": data for key, data in ({"0": SIX} if storages is None else storages).items()}
    entries |= {"version": b"3\n"} | (extra or {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for entry, data in entries.items():
            file.writestr(root + entry, data)
    return buffer.getvalue()


VALID = archive(program(mapping({"a": tensor()})))


@pytest.fixture
def read(tmp_path):
    def read_bytes(data: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_state_dict(path)

    return read_bytes


@pytest.fixture
def refuse(read, tmp_path):
    """Return the sentence with which a file is refused; it must name the file."""

    def message(data: bytes) -> str:
        with pytest.raises(ValueError) as caught:
            read(data)
        assert type(caught.value) is ValueError
        sentence = str(caught.value)
        assert sentence.startswith(f"{tmp_path / 'weights.pth'}: ")
        assert sentence.isprintable()
        assert len(sentence) < 500
        return sentence

    return message


# What torch.save writes.


@needs_reference
@pytest.mark.parametrize("level", [0, 1])
def test_authors_checkpoint_equals_its_conversion(level):
    folder = ALL_RECORDED / "checkpoints"
    weights = read_state_dict(folder / f"med_nca_hippocampus/models/epoch_1500/model{level}.pth")
    with np.load(folder / "med_nca_hippocampus_weights.npz") as converted:
        expected = {key[3:]: converted[key] for key in converted.files if key.startswith(f"w{level}.")}
    assert set(weights) == set(expected)
    for key, array in weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[key])


@needs_reference
def test_authors_growing_checkpoint_is_legacy():
    with pytest.raises(ValueError, match=r"growing_nca\.pth: .*before version 1\.6.*save it again"):
        read_state_dict(ALL_RECORDED / "checkpoints" / "growing_nca.pth")


def test_values_order_and_layout(read):
    pickled = mapping({"b": tensor(of=storage("1")), "a": tensor()})
    weights = read(archive(program(pickled), {"0": SIX, "1": (np.arange(6, dtype="<f4") + 10).tobytes()}))
    assert list(weights) == ["b", "a"]
    np.testing.assert_array_equal(weights["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(weights["b"], [[10, 11, 12], [13, 14, 15]])
    for array in weights.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.dtype.isnative


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", "<f4"),
        ("Double", "<f8"),
        ("Half", "<f2"),
        ("Long", "<i8"),
        ("Int", "<i4"),
        ("Short", "<i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
    ],
)
def test_every_storage_type(read, kind, dtype):
    values = np.array([0, 1, 2, 3, 100, 127], dtype)
    pickled = mapping({"a": tensor(of=storage(kind=f"torch.{kind}Storage"))})
    array = read(archive(program(pickled), {"0": values.tobytes()}))["a"]
    assert array.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(array.ravel(), values)


def test_bool_is_any_byte_but_zero(read):
    pickled = mapping({"a": tensor(of=storage(kind="torch.BoolStorage"))})
    array = read(archive(program(pickled), {"0": bytes([0, 1, 2, 255, 0, 1])}))["a"]
    assert array.dtype == np.bool_
    assert array.view(np.uint8).ravel().tolist() == [0, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((), (), 5, 5),
        ((1, 2, 1), (2**62, 3, 2**62), 2, [[[2], [5]]]),
        ((0, 3), (3, 1), 0, np.zeros((0, 3))),
        ((0,), (1,), 6, []),
        ((3,), (0,), 4, [4, 4, 4]),
    ],
)
def test_strides_and_offsets(read, shape, stride, offset, expected):
    array = read(archive(program(mapping({"a": tensor(shape, stride, offset)}))))["a"]
    assert array.shape == shape
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, expected)


def test_disjoint_views_of_one_storage(read):
    pickled = mapping({"a": tensor((3,), (1,)), "b": tensor((3,), (1,), 3)})
    weights = read(archive(program(pickled)))
    np.testing.assert_array_equal(weights["b"], [3, 4, 5])


def test_parameters_metadata_and_other_values(read):
    parameter = name("torch._utils._rebuild_parameter") + b"(" + tensor() + b"\x88" + ORDERED_DICT + b"tR"
    others = {"epoch": number(3), "note": text("x"), "none": b"N", "rate": b"G" + struct.pack(">d", 0.5)}
    others |= {"pair": number(1) + number(2) + b"\x86", "list": b"]" + number(1) + b"a(" + number(2) + b"e"}
    pickled = mapping({"a": parameter, **others}) + b"}" + text("_metadata") + mapping({"": b"}"}) + b"sb"
    assert list(read(archive(program(pickled)))) == ["a"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "ema", "model_ema"])
def test_wrapped_state_dicts(read, wrapper):
    inner = mapping({"a": tensor()})
    optimizer = mapping({}) + b"(" + number(0) + b"}u"
    pickled = mapping({"epoch": number(7), "optimizer": optimizer, wrapper: inner}, b"}")
    assert list(read(archive(program(pickled)))) == ["a"]


def two_named(a: str, b: str) -> bytes:
    return archive(program(mapping({a: tensor(), b: tensor(of=storage("1"))})), {"0": SIX, "1": SIX})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("module.a", "module.b"),
        ("_orig_mod.a", "_orig_mod.b"),
        ("module._orig_mod.a", "module._orig_mod.b"),
        ("_orig_mod.module.a", "_orig_mod.module.b"),
        ("module.module.a", "module.module.b"),
    ],
)
def test_prefixes_of_wrappers_are_removed(read, a, b):
    assert list(read(two_named(a, b))) == ["a", "b"]


def test_a_compiled_part_and_averaged_weights(read):
    assert list(read(two_named("fc0._orig_mod.weight", "fc1.weight"))) == ["fc0.weight", "fc1.weight"]
    assert list(read(two_named("n_averaged", "module.a"))) == ["a"]
    assert list(read(two_named("n_averaged", "a"))) == ["n_averaged", "a"]


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        ("module.a", "b", "some of its tensors have the prefix module. and 'b' has not"),
        ("b", "_orig_mod.a", "some of its tensors have the prefix _orig_mod. and 'b' has not"),
        ("module.a", "_orig_mod.b", "some of its tensors have the prefix module. and '_orig_mod.b' has not"),
        ("module._orig_mod.a", "module.b", "some of its tensors have the prefix _orig_mod. and 'b' has not"),
        ("a.b", "a._orig_mod.b", "two of its tensors have one name without _orig_mod"),
    ],
)
def test_prefixes_of_some_tensors_are_refused(refuse, a, b, sentence):
    assert sentence in refuse(two_named(a, b))


def test_little_endian_record_and_any_root(read):
    pickled = program(mapping({"a": tensor()}))
    assert list(read(archive(pickled, root="x/y/", extra={"byteorder": b"little"}))) == ["a"]
    assert list(read(archive(pickled, root=""))) == ["a"]


# What it must refuse.


@pytest.mark.parametrize("call", ["os.system", "posix.system", "builtins.eval", "builtins.getattr", "subprocess.Popen"])
def test_code_is_named_and_never_run(refuse, tmp_path, call):
    marker = tmp_path / "it-ran"
    payloads = {"os.system": f"touch {marker}", "builtins.eval": f"open({str(marker)!r}, 'w')"}
    body = name(call) + b"(" + text(payloads.get(call, f"touch {marker}")) + b"tR"
    for pickled in (body, mapping({"a": tensor(), "b": body}), body + b"0" + mapping({"a": tensor()})):
        assert repr(call) in refuse(archive(program(pickled)))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("body", "instruction"),
    [
        (text("os") + text("system") + b"\x93", "STACK_GLOBAL"),
        (b"(" + text("touch x") + b"ios\nsystem\n", "INST"),
        (b"\x82\x01", "EXT1"),
        (name("collections.OrderedDict") + b")\x81", "NEWOBJ"),
        (b"(" + name("collections.OrderedDict") + b"o", "OBJ"),
        (b"Pos.system\n", "PERSID"),
        (b"\x8f", "EMPTY_SET"),
        (b"I" + b"9" * 50 + b"\n", "INT"),
        (b"N0", "POP"),
        (b"N2", "DUP"),
    ],
)
def test_other_instructions_are_refused(refuse, body, instruction):
    assert f"instruction {instruction}," in refuse(archive(program(body)))


def test_nothing_is_imported(refuse, tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "'hostile_module.thing'" in refuse(archive(program(name("hostile_module.thing"))))


@pytest.mark.parametrize(
    "called",
    [
        storage() + b")R",
        text("collections OrderedDict") + b")R",
        name("collections.OrderedDict") + b"(" + number(1) + b"tR",
        name("torch.FloatStorage") + b"(" + number(10**9) + b"tR",
        name("torch._utils._rebuild_tensor_v2") + b")R",
        name("torch._utils._rebuild_parameter") + b"(" + number(1) + b"\x89}tR",
        tensor(last=mapping({"neg": b"\x88"}, b"}")),
        tensor(shape=(), stride=()).replace(numbers(()), text("shape"), 1),
    ],
)
def test_calls_of_allowed_names_with_other_arguments(refuse, called):
    assert "in a way that torch.save does not" in refuse(archive(program(mapping({"a": called}))))


@pytest.mark.parametrize(
    "identity",
    [
        b"N",
        numbers((1, 2, 3, 4, 5)),
        b"(" + text("storage") + name("torch.FloatStorage") + number(0) + text("cpu") + number(6) + b"t",
        b"(" + text("storage") + name("collections.OrderedDict") + text("0") + text("cpu") + number(6) + b"t",
        b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + number(-6) + b"t",
    ],
)
def test_other_storages(refuse, identity):
    assert "describes a storage" in refuse(archive(program(identity + b"Q")))


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2, 3), (3, 1), 1),
        ((2, 3), (4, 1), 0),
        ((6,), (1,), 2**62),
        ((7,), (0,), 0),
        ((2**40, 2**40), (0, 0), 0),
        ((1000, 1000, 1000), (0, 0, 0), 0),
        ((0, 2**40, 2**40), (0, 0, 0), 0),
        ((), (), 6),
        ((2,), (-1,), 1),
        ((-2, -3), (3, 1), 0),
        ((2, 3), (3, 1), -1),
        ((2, 3), (3,), 0),
        ((1,) * 9, (1,) * 9, 0),
        ((1,) * 3000, (1,) * 3000, 0),
    ],
)
def test_tensors_that_do_not_fit_their_storage(refuse, shape, stride, offset):
    assert "tensor 'a' " in refuse(archive(program(mapping({"a": tensor(shape, stride, offset)}))))


def test_many_copies_of_one_storage(refuse):
    pickled = mapping({f"t{i}": tensor() for i in range(50)})
    assert "save tensors that share memory as copies" in refuse(archive(program(pickled)))


def test_storage_missing_cut_or_too_long(refuse):
    pickled = program(mapping({"a": tensor()}))
    assert "lacks 'data/0'" in refuse(archive(pickled, {}))
    for data in (SIX[:-1], SIX[:-4], SIX + b"\0\0\0\0", b""):
        assert "24 by its data.pkl" in refuse(archive(pickled, {"0": data}))
    huge = program(mapping({"a": tensor((2**40,), (1,), of=storage(count=2**40))}))
    assert f"{2**42} by its data.pkl" in refuse(archive(huge))
    outside = program(mapping({"a": tensor(of=storage("../../etc/passwd"))}))
    assert "lacks 'data/../../etc/passwd'" in refuse(archive(outside))


@pytest.mark.parametrize("body", [b"K\x01", b"N", tensor(), b"]", b")"])
def test_no_dict_at_the_top(refuse, body):
    assert "holds no dict of tensors" in refuse(archive(program(body)))


def test_no_tensors_and_too_many_state_dicts(refuse):
    assert "holds no tensors" in refuse(archive(program(ORDERED_DICT)))
    assert "holds no tensors" in refuse(archive(program(mapping({"net": mapping({"a": tensor()})}))))
    inner = mapping({"a": tensor()})
    assert "state_dict, model;" in refuse(archive(program(mapping({"model": inner, "state_dict": inner}))))


@pytest.mark.parametrize("key", ["\x1b[2J", "a\nb", "\udcff", "a" * 201])
def test_unprintable_names(refuse, key):
    assert "printable" in refuse(archive(program(mapping({key: tensor()}))))


def test_keys_that_are_no_text(refuse):
    assert "printable" in refuse(archive(program(b"}(" + number(1) + tensor() + b"u")))
    # The hash of a tuple of a tuple of ... shared sixty times over would take for ever.
    nest = b")" + b"q\0h\0\x86" * 60
    assert "neither text nor whole numbers" in refuse(archive(program(b"}" + nest + b"Ns")))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02" + mapping({"a": tensor()}),
        b"\x80\x02" + mapping({"a": tensor()})[:-30],
        program(b"NN"),
        program(b"N("),
        program(b"t"),
        program(b"("),
        program(b"u"),
        program(b"}(Nu"),
        program(b"N(NNu"),
        program(b"NNs"),
        program(b"NNa"),
        program(b"N(e"),
        program(b"}Nb")[:-1],
        program(b"NNb"),
        program(b"h\x07"),
        program(b"q\0"),
        program(b"N(\x85"),
        program(b"R"),
        program(b"Q"),
        program(b"X\xff\xff\xff\xff"),
        program(b"X\x01\0\0\0\xff"),
        program(b"cos\n"),
        program(b"c\xff\n\xff\n"),
        program(b"\x8a\xff"),
        program(b"\xff"),
        program(number(2**70)),
        program(b"N" * 20_000),
        program(b"(" * 20_000),
        program(b"Nq\0" * 20_000),
        program(b"N\x85" + b"\x85" * 400_000),
        b"\x80\x02" * 300_000,
    ],
    ids=lambda pickled: repr(pickled[:24]),
)
def test_damaged_and_abusive_pickles(refuse, pickled):
    started = time.perf_counter()
    assert "data.pkl" in refuse(archive(pickled))
    assert time.perf_counter() - started < 20


def test_deep_nests_are_harmless(refuse, read):
    deep = b")" + b"\x85" * 150_000
    assert "holds no dict" in refuse(archive(program(deep)))
    assert list(read(archive(program(mapping({"a": tensor(), "deep": deep}))))) == ["a"]
    itself = b"]q\0h\0a"
    assert list(read(archive(program(mapping({"a": tensor(), "cycle": itself}))))) == ["a"]
    assert "holds no tensors" in refuse(archive(program(b"}q\0" + text("state_dict") + b"h\0s")))


def test_pickle_too_large(refuse):
    padded = b"\x80\x02" + text("x" * (4 << 20)) + b"."
    assert "up to 4194304 are read" in refuse(archive(padded))


def test_other_files(refuse):
    assert "is empty" in refuse(b"")
    assert "not a PyTorch checkpoint" in refuse(b"weights\n")
    assert "not a PyTorch checkpoint" in refuse(b"\x80\x04N.")
    magic = program(b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
    assert "before version 1.6" in refuse(magic + b"\x80\x02M\xe9\x03.")
    assert "damaged or cut off" in refuse(b"PK\x03\x04")
    assert "damaged or cut off" in refuse(VALID[:-10])


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(OSError, match="directory"):
        read_state_dict(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")


def test_file_too_large(tmp_path):
    path = tmp_path / "large.pth"
    path.touch()
    os.truncate(path, (256 << 20) + 1)
    with pytest.raises(ValueError, match="up to 268435456"):
        read_state_dict(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries(refuse, method):
    assert "is compressed" in refuse(archive(program(mapping({"a": tensor()})), compression=method))


def test_entries_that_torch_does_not_write(refuse, recwarn):
    pickled = program(mapping({"a": tensor()}))
    assert "holds no data.pkl" in refuse(archive(pickled).replace(b"data.pkl", b"data.pkx"))
    assert "holds 2 files data.pkl" in refuse(archive(pickled, extra={"data/data.pkl": b"."}))
    assert "big-endian" in refuse(archive(pickled, extra={"byteorder": b"big"}))
    assert "holds 'model/data/0' twice" in refuse(
        archive(pickled, {"0": SIX, "1": SIX}).replace(b"model/data/1", b"model/data/0")
    )


def directory_entry(data: bytes, entry: bytes) -> int:
    """Return where an entry's record in the central directory begins."""
    return data.rindex(entry) - 46


@pytest.mark.parametrize(
    ("offset", "field", "value", "expected"),
    [
        (8, "<H", 0x0001, "is encrypted"),
        (8, "<H", 0x0040, "is encrypted"),
        (10, "<H", 99, "is compressed"),
        (16, "<I", 0, "wrong checksum"),
        (20, "<I", 25, "two different sizes"),
        (20, "<Q", 25 | 25 << 32, "25 bytes, but 24"),
        (20, "<Q", 2**20 | 2**20 << 32, "overlaps|larger"),
        (20, "<Q", 0xFFFFFFFE | 0xFFFFFFFE << 32, "overlaps|larger"),
        (42, "<I", 0, "overlaps"),
        (42, "<I", 2**31, "larger than the file"),
    ],
)
def test_zip_records_that_lie(refuse, offset, field, value, expected):
    data = bytearray(VALID)
    struct.pack_into(field, data, directory_entry(VALID, b"model/data/0") + offset, value)
    sentence = refuse(bytes(data))
    assert any(part in sentence for part in expected.split("|")), sentence


def test_damaged_bytes_fail_their_checksum(refuse):
    at = VALID.index(SIX)
    assert "'data/0' in it is damaged" in refuse(VALID[:at] + b"\x01" + VALID[at + 1 :])


def test_too_many_entries(refuse):
    assert "more than 16384 entries" in refuse(VALID + b"PK\x01\x02" * 16_385)


# No bytes whatever may bring up anything but a ValueError.


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or move a few bytes."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, to = rng.randrange(len(mutant) + 1), rng.randrange(len(mutant) + 1)
        count = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                mutant[at : at + 1] = bytes([mutant[at] ^ 1 << rng.randrange(8)]) if at < len(mutant) else b""
            case 1:
                mutant[at : at + 1] = rng.randbytes(1)
            case 2:
                mutant[at : at + count] = rng.choice((b"\0", b"\x01", b"\x7f", b"\x80", b"\xff")) * count
            case 3:
                del mutant[at : at + count]
            case 4:
                mutant[at:at] = mutant[to : to + count]
            case 5:
                mutant[at : at + count] = mutant[to : to + count]
            case 6 if rng.random() < 0.2:
                del mutant[at:]
        if not mutant:
            break
    return bytes(mutant)


INSTRUCTIONS = b"()]}tNQRbaesu0.\x85\x86\x87\x88\x89" + bytes(range(256))
PIECES = [bytes([code]) for code in INSTRUCTIONS] + [
    *(text(word) for word in ("storage", "state_dict", "model", "0", "", "_metadata", "module.a")),
    *(number(n) for n in (0, 1, -1, 6, 2**31 - 1, 2**40, 2**62, -(2**62))),
    *(name(known) for known in ("collections.OrderedDict", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2")),
    *(ORDERED_DICT, storage(), tensor(), tensor((2,), (1,), 1), numbers((2, 3)), b"q\0", b"h\0", b"q\1", b"h\1"),
]
RICH = mapping(
    {
        "model": mapping({"module.a": tensor((3, 2), (1, 3)), "module.b": tensor((), (), of=storage("1", 1))})
        + b"q\1}"
        + text("_metadata")
        + mapping({"": b"}"})
        + b"sb",
        "epoch": number(2**33) + b"q\2",
        "extra": b"]h\2ah\2a",
    },
    b"}",
)
RICH_STORAGES = {"0": SIX, "1": SIX[4:8]}


def random_pickle(rng: random.Random) -> bytes:
    return b"\x80\x02" + b"".join(rng.choice(PIECES) for _ in range(rng.randrange(40))) + b"."


@pytest.mark.parametrize("kind", ["archive", "pickle", "program"])
def test_random_bytes_only_ever_give_arrays_or_a_value_error(tmp_path, kind):
    rng = random.Random(kind)
    path = tmp_path / "mutant.pth"
    whole = archive(program(RICH), RICH_STORAGES, extra={"byteorder": b"little"})
    path.write_bytes(whole)
    assert list(read_state_dict(path)) == ["a", "b"]
    refused = accepted = 0
    for _ in range(400):
        match kind:
            case "archive":
                data = mutate(whole, rng)
            case "pickle":
                data = archive(mutate(program(RICH), rng), RICH_STORAGES)
            case _:
                data = archive(random_pickle(rng), RICH_STORAGES)
        path.write_bytes(data)
        try:
            weights = read_state_dict(path)
        except ValueError as error:
            refused += type(error) is ValueError and str(error).startswith(f"{path}: ")
        else:
            assert sum(array.nbytes for array in weights.values()) <= 28
            accepted += 1
    assert refused + accepted == 400
    assert refused > 50
