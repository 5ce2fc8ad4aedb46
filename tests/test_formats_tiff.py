"""TIFF as read by pynca: every kind of number, layout and codec; stacks of other programs; hostile files."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pynca
from picture_files import Tags, few_bits, text, tiff
from pynca import volumes
from pynca.formats import picture
from support import random_model

Image = pytest.importorskip("PIL.Image", reason="needs the extra image")

Array = NDArray[Any]
KINDS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
GREY = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
OBJECT = (GREY > 99).astype(np.uint8)
WHITE_IS_ZERO: Tags = {262: ("u2", [0])}


def noise(kind: str, shape: tuple[int, ...] = (37, 23), seed: int = 0) -> Array:
    dtype, rng = np.dtype(kind), np.random.default_rng(seed)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype) * dtype.type(99)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def read(tmp_path: Path, content: bytes, *, label: bool = False) -> Array:
    """Read a file through the format, as stored for labels; its outline tells shape and dtype of an image."""
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    if label:
        return picture.read_label(path).data
    data = volumes.read_volume(path).data
    told = picture.outline(path).data
    assert (told.shape, told.dtype, told.strides) == (data.shape, data.dtype, (0,) * data.ndim)
    return data


def refusal(tmp_path: Path, content: bytes, *, label: bool = False) -> str:
    with pytest.raises(ValueError, match=r"x\.tif ") as caught:
        read(tmp_path, content, label=label)
    assert type(caught.value) is ValueError
    assert str(caught.value).count("x.tif") == 1
    return str(caught.value).partition("x.tif ")[2]


# --- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", [{}, {"rows": 5}, {"tile": (16, 32)}, {"rows": 9, "deflate": True}, {"big": True}])
def test_every_kind_of_number(kind: str, order: str, layout: dict[str, Any], tmp_path: Path) -> None:
    values = noise(kind)
    content = tiff([values], order=order, **layout)
    np.testing.assert_array_equal(read(tmp_path, content), values, strict=True)
    np.testing.assert_array_equal(read(tmp_path, content, label=True), values, strict=True)
    pages = tiff([values, values[::-1]], order=order, **layout)
    np.testing.assert_array_equal(read(tmp_path, pages), np.dstack([values, values[::-1]]), strict=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "u8"])
def test_the_mask_is_the_same_whatever_the_kind(kind: str, tmp_path: Path) -> None:
    small = np.where(GREY > 60, 100, GREY).astype(np.int64)
    scaled = small * 2**24 - (2**20 if kind[0] == "i" else 0) if kind[1] in "48" and kind[0] != "f" else small
    model = random_model()
    Image.fromarray(small.astype(np.uint8)).save(tmp_path / "x.png")
    expected = pynca.predict(tmp_path / "x.png", model, spacing=1).mask
    (tmp_path / "x.tif").write_bytes(tiff([scaled.astype(kind)]))
    assert expected.any()
    np.testing.assert_array_equal(pynca.predict(tmp_path / "x.tif", model, spacing=1).mask, expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 12, 14])
def test_few_bits(bits: int, tmp_path: Path) -> None:
    values = noise("u2", (11, 13)) % np.uint16(2**bits)
    content = tiff([values], {258: ("u2", [bits])}, encode=few_bits(bits))
    np.testing.assert_array_equal(read(tmp_path, content, label=True), values)
    spread = 255 // (2**bits - 1) if bits in (1, 2, 4) else 1
    np.testing.assert_array_equal(read(tmp_path, content), values * spread)
    inverted = tiff([values], {258: ("u2", [bits]), **WHITE_IS_ZERO}, encode=few_bits(bits), deflate=True)
    np.testing.assert_array_equal(read(tmp_path, inverted, label=True), values)
    np.testing.assert_array_equal(read(tmp_path, inverted), (2**bits - 1 - values) * spread)
    backwards = few_bits(bits)
    reversed_bits = tiff(
        [values],
        {258: ("u2", [bits]), 266: ("u2", [2])},
        encode=lambda part: bytes(int(f"{n:08b}"[::-1], 2) for n in backwards(part)),
    )
    np.testing.assert_array_equal(read(tmp_path, reversed_bits, label=True), values)


@pytest.mark.parametrize("kind", KINDS)
def test_white_is_zero(kind: str, tmp_path: Path) -> None:
    """Labels are what is stored; of images, all kinds show zero as white."""
    values = noise(kind)
    content = tiff([values], WHITE_IS_ZERO)
    np.testing.assert_array_equal(read(tmp_path, content, label=True), values, strict=True)
    image = read(tmp_path, content)
    expected = -values if kind[0] == "f" else ~values
    np.testing.assert_array_equal(image, expected, strict=True)


@pytest.mark.parametrize(("values", "bits"), [(OBJECT * np.uint8(255), 8), (OBJECT, 8), (OBJECT, 1), (OBJECT, 16)])
@pytest.mark.parametrize("tags", [WHITE_IS_ZERO, {}], ids=["white is zero", "black is zero"])
def test_object_and_background_keep_their_places(values: Array, bits: int, tags: Tags, tmp_path: Path) -> None:
    encode = few_bits(1) if bits == 1 else None
    content = tiff([values.astype(f"u{max(8, bits) // 8}")], {258: ("u2", [bits]), **tags}, encode=encode)
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "x.tif").data, values, strict=True)


@pytest.mark.parametrize("value", [-1, 256, 2**31, 0.5])
def test_what_is_no_label(value: float, tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff([np.full((2, 3), value, "f8" if value == 0.5 else "i8")]))
    with pytest.raises(ValueError, match=r"x\.tif holds the value .*labels are whole numbers from 0 to 255"):
        volumes.read_label(tmp_path / "x.tif")


def test_a_missing_photometric_is_black_is_zero(tmp_path: Path) -> None:
    content = tiff([GREY])
    place = content.index(struct.pack("<HH", 262, 3))
    hidden = content[:place] + struct.pack("<H", 261) + content[place + 2 :]
    np.testing.assert_array_equal(read(tmp_path, hidden), GREY, strict=True)


# --- codecs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("predictor", [1, 2, 3])
def test_codecs(compression: str, kind: str, predictor: int, tmp_path: Path) -> None:
    values = noise(kind, (61, 47))
    predictor = predictor if (predictor == 3) == (kind == "f4") and compression != "packbits" else 1
    Image.fromarray(values).save(tmp_path / "x.tif", compression=compression, tiffinfo={317: predictor, 278: 9})
    content = (tmp_path / "x.tif").read_bytes()
    np.testing.assert_array_equal(read(tmp_path, content), values, strict=True)
    np.testing.assert_array_equal(read(tmp_path, content, label=True), values, strict=True)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_fax(compression: str, photometric: int, tmp_path: Path) -> None:
    Image.fromarray(OBJECT > 0).save(tmp_path / "x.tif", compression=compression, tiffinfo={262: photometric})
    content = (tmp_path / "x.tif").read_bytes()
    with Image.open(tmp_path / "x.tif") as image:
        seen = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read(tmp_path, content), seen, strict=True)
    stored = seen // 255 if photometric else 1 - seen // 255
    np.testing.assert_array_equal(read(tmp_path, content, label=True), stored, strict=True)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_in_tiff(mode: str, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "x.tif", compression="jpeg", quality=95)
    content = (tmp_path / "x.tif").read_bytes()
    np.testing.assert_allclose(read(tmp_path, content).astype(int), smooth, atol=4)
    assert "is compressed as JPEG, whose values are not exact" in refusal(tmp_path, content, label=True)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_in_tiles_with_common_tables(mode: str, tmp_path: Path) -> None:
    """As whole-slide scanners write it."""

    def encode(part: Array, streamtype: int = 2) -> bytes:
        stream = BytesIO()
        Image.fromarray(part.squeeze()).save(stream, "JPEG", quality=95, subsampling=0, streamtype=streamtype)
        return stream.getvalue()

    smooth = np.add.outer(np.arange(70), np.arange(90)).astype(np.uint8)
    page = np.asarray(Image.fromarray(smooth).convert(mode))
    tags: Tags = {259: ("u2", [7]), 347: ("u1", list(encode(page, 1))), 262: ("u2", [1 if mode == "L" else 6])}
    content = tiff([page, page[::-1]], tags, tile=(32, 32), encode=encode)
    np.testing.assert_allclose(read(tmp_path, content).astype(int), np.dstack([smooth, smooth[::-1]]), atol=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("samples", [1, 3])
def test_differences(kind: str, order: str, samples: int, tmp_path: Path) -> None:
    """Predictor 2 of whole numbers, predictor 3 of others."""

    def encode(part: Array) -> bytes:
        if kind[0] == "f":
            planes = part.astype(f">{kind}").view(np.uint8).reshape(len(part), -1, part.itemsize).swapaxes(1, 2)
            return differences(planes.reshape(len(part), -1, samples)).tobytes()
        return differences(part).astype(f"{order}{kind}").tobytes()

    def differences(values: Array) -> Array:
        return np.concatenate([values[:, :1], values[:, 1:] - values[:, :-1]], axis=1)

    grey = noise(kind)
    page = np.dstack([grey] * samples)
    content = tiff(
        [page], {317: ("u2", [3 if kind[0] == "f" else 2])}, order=order, rows=9, deflate=True, encode=encode
    )
    np.testing.assert_array_equal(read(tmp_path, content), grey, strict=True)


def test_what_libtiff_says_does_not_reach_the_user(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise("u1", (64, 64))).save(tmp_path / "x.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    content[300:900] = bytes(600)
    assert refusal(tmp_path, bytes(content)).startswith("is damaged or cut short: ")
    assert capfd.readouterr() == ("", "")


# --- channels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_that_are_alike(separate: bool, kind: str, alpha: bool, tmp_path: Path) -> None:
    grey = noise(kind)
    tags: Tags = {338: ("u2", [2])} if alpha else {}
    channels = [grey] * 3 + [grey // 2] * alpha
    content = tiff([np.dstack(channels)], tags, separate=separate, rows=7)
    np.testing.assert_array_equal(read(tmp_path, content), grey, strict=True)
    assert "has colours (mode RGB); a label is a picture of indices" in refusal(tmp_path, content, label=True)
    channels[2] = channels[2] + grey.dtype.type(1)
    colour = tiff([np.dstack(channels)], tags, separate=separate, rows=7)
    assert refusal(tmp_path, colour).startswith("has colours; it must be grey, or red, green and blue alike")


@pytest.mark.parametrize("separate", [False, True])
def test_two_channels(separate: bool, tmp_path: Path) -> None:
    both = np.dstack([GREY, GREY // 2])
    transparent = tiff([both], {338: ("u2", [2])}, separate=separate)
    np.testing.assert_array_equal(read(tmp_path, transparent), GREY, strict=True)
    assert "has colours (mode 2 channels); a label" in refusal(tmp_path, transparent, label=True)
    for tags in ({}, {338: ("u2", [0])}):
        message = refusal(tmp_path, tiff([both], tags, separate=separate))
        assert message == "has 2 channels; save the one that is meant as a grey picture"


@pytest.mark.parametrize("bits", [4, 8])
def test_palettes(bits: int, tmp_path: Path) -> None:
    """ImageJ's inverting palette: an image is what it shows, a label the index."""
    indices = noise("u1") % np.uint8(2**bits - 1)
    ramp = np.linspace(65535, 0, 2**bits).astype(int)
    tags: Tags = {258: ("u2", [bits]), 262: ("u2", [3]), 320: ("u2", [*ramp, *ramp, *ramp])}
    content = tiff([indices], tags, encode=few_bits(bits))
    np.testing.assert_array_equal(read(tmp_path, content), ramp[indices] // 256)
    np.testing.assert_array_equal(read(tmp_path, content, label=True), indices, strict=True)
    tags[320] = ("u2", [*ramp, *ramp, *ramp[::-1]])
    colour = tiff([indices], tags, encode=few_bits(bits))
    assert refusal(tmp_path, colour).startswith("has colours")
    np.testing.assert_array_equal(read(tmp_path, colour, label=True), indices, strict=True)
    del tags[320]
    content = tiff([indices], tags, encode=few_bits(bits))
    assert refusal(tmp_path, content) == "is damaged or cut short: its palette is missing"
    np.testing.assert_array_equal(read(tmp_path, content, label=True), indices, strict=True)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({262: ("u2", [5])}, "is a picture of mode CMYK; it must be grey, with 8, 16 or 32 bits"),
        ({262: ("u2", [32803])}, "is a picture of mode CFA; it must be grey"),
        ({262: ("u2", [99])}, "is a picture of mode photometric 99; it must be grey"),
        ({339: ("u2", [6])}, "holds complex numbers; it must hold one real number per pixel"),
        ({258: ("u2", [24])}, "holds whole numbers of 24 bits; save it with 8, 16 or 32 bits"),
        ({258: ("u2", [8, 16])}, "has channels of different kinds; it must be grey"),
        ({277: ("u2", [17])}, "has 17 channels; save the one that is meant as a grey picture"),
        ({259: ("u2", [7]), 258: ("u2", [12])}, "has 12 bits compressed by TIFF method 7; save it uncompressed, or by"),
        ({259: ("u2", [34712])}, "is compressed by TIFF method 34712; save it uncompressed, or by LZW or Deflate"),
    ],
)
def test_what_is_refused_in_a_sentence(tags: Tags, reason: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, tiff([GREY], tags)).startswith(reason)


# --- pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [{254: ("u4", [1])}, {255: ("u2", [2])}, {254: ("u4", [4])}])
def test_smaller_copies_and_masks_are_no_pages(flag: Tags, tmp_path: Path) -> None:
    whole, copy = tiff([GREY]), tiff([GREY[::2, ::2]], flag)
    # the copy's directory goes behind the file, with all its places moved
    moved = bytearray(whole + bytes(len(whole) % 2))
    shift = len(moved)
    directory = struct.unpack_from("<I", copy, 4)[0]
    count = struct.unpack_from("<H", copy, directory)[0]
    entries = bytearray(copy[directory : directory + 6 + 12 * count])
    for n in range(count):
        tag, kind, number, value = struct.unpack_from("<HHII", entries, 2 + 12 * n)
        if tag == 273:
            struct.pack_into("<HHII", entries, 2 + 12 * n, tag, kind, number, value + shift)
    moved += copy[:directory] + entries
    first = struct.unpack_from("<I", whole, 4)[0]
    link = first + 2 + 12 * struct.unpack_from("<H", whole, first)[0]
    struct.pack_into("<I", moved, link, shift + directory)
    np.testing.assert_array_equal(read(tmp_path, bytes(moved)), GREY, strict=True)


def stack(count: int = 5) -> list[Array]:
    return [noise("u2", (9, 7), seed=n) for n in range(count)]


def test_an_imagej_stack_with_one_directory(tmp_path: Path) -> None:
    pages = stack()
    together = np.concatenate(pages)
    height: Tags = {257: ("u4", [9]), 278: ("u4", [9])}
    content = tiff([together], {**height, **text("ImageJ=1.54\nimages=5\nslices=5\n")}, order=">")
    np.testing.assert_array_equal(read(tmp_path, content), np.dstack(pages), strict=True)
    lost = tiff([together], {**height, **text("ImageJ=1.54\nimages=6000\nslices=6000\n")}, order=">")
    assert refusal(tmp_path, lost).startswith("is damaged or cut short")
    pages = [noise("u2", (40, 30))]  # with a directory that is smaller than a page
    single = tiff(pages, text("ImageJ=1.54\nimages=5\nslices=5\n"))
    np.testing.assert_array_equal(read(tmp_path, single), pages[0], strict=True)


OME = '<?xml version="1.0"?><OME xmlns="x"><Image><Pixels DimensionOrder="XYZCT" SizeC="{}" SizeT="{}" SizeZ="{}"/>'


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("ImageJ=1.54\nimages=6\nchannels=2\nslices=3\n", "2 channels, 3 slices"),
        ("ImageJ=1.54\nimages=6\nslices=3\nframes=2\nhyperstack=true\n", "3 slices, 2 time points"),
        (OME.format(2, 1, 3), "2 channels, 3 slices"),
        (OME.format(1, 2, 3), "3 slices, 2 time points"),
    ],
)
def test_what_has_more_axes_than_a_volume(description: str, reason: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, tiff(stack(6), text(description)))
    assert message == f"is a stack of {reason}; a volume has slices alone: save one channel and one time point"


@pytest.mark.parametrize("name", ["slices", "channels", "time points"])
@pytest.mark.parametrize("ome", [False, True])
def test_pages_that_are_not_called_slices(name: str, ome: bool, tmp_path: Path) -> None:
    sizes = {"channels": 1, "time points": 1, "slices": 1, name: 5}
    key = {"time points": "frames"}.get(name, name)
    description = OME.format(*sizes.values()) if ome else f"ImageJ=1.54\nimages=5\n{key}=5\n"
    (tmp_path / "x.tif").write_bytes(tiff(stack(), text(description)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = volumes.read_volume(tmp_path / "x.tif").data
    np.testing.assert_array_equal(data, np.dstack(stack()), strict=True)
    said = [str(warning.message) for warning in caught]
    assert said == [f"{tmp_path / 'x.tif'} says that its pages are {name}; they are read as slices"] * (
        name != "slices"
    )


def test_another_reader_agrees(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra test")
    path = tmp_path / "x.tif"
    for kind in KINDS:
        for options in ({}, {"tile": (16, 32), "compression": "zlib"}, {"bigtiff": True, "byteorder": ">"}):
            pages = np.stack([noise(kind, (29, 33), seed=n) for n in range(3)])
            tifffile.imwrite(path, pages, photometric="minisblack", **options)
            np.testing.assert_array_equal(volumes.read_volume(path).data, np.moveaxis(pages, 0, 2), strict=True)
            path.write_bytes(tiff(list(pages), deflate=True, rows=4))
            np.testing.assert_array_equal(tifffile.imread(path), pages)
    smooth = np.cumsum(noise("u2", (40, 50)) // 4096, axis=1).astype(np.uint16)
    tifffile.imwrite(path, smooth, compression="zlib", predictor=True, rowsperstrip=7)
    np.testing.assert_array_equal(volumes.read_volume(path).data, smooth, strict=True)


def test_a_large_stack_is_written_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [np.arange(n, n + 64 * 50, dtype=np.uint16).reshape(64, 50) for n in range(3)]
    (tmp_path / "x.tif").write_bytes(tiff(pages))
    monkeypatch.setattr("pynca.formats.tiff._LARGE_STACK", 1)
    monkeypatch.setattr("pynca.formats.tiff._BLOCK_BYTES", 4096)
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.tif").data, np.dstack(pages), strict=True)


# --- hostile files -------------------------------------------------------------------------------------------


def directory_of(content: bytes) -> int:
    return int(struct.unpack_from("<I", content, 4)[0])


def test_pages_that_share_a_strip_are_told_before_they_are_unpacked(tmp_path: Path) -> None:
    """Some 70 kB that would become 8 GB."""
    wide = tiff([np.zeros((1, 1), np.uint8)], {256: ("u4", [2**14]), 257: ("u4", [2**14]), 278: ("u4", [2**14])})
    first = directory_of(wide)
    entries = wide[first:-4]
    content = bytearray(wide[:first])
    for n in range(32):
        content += entries + struct.pack("<I", len(content) + len(entries) + 4 if n < 31 else 0)
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    tracemalloc.start()
    told = picture.outline(path).data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.shape == (2**14, 2**14, 32)
    assert told.nbytes == 2**33
    assert peak < 2**20


@pytest.mark.parametrize(
    ("layout", "held"),
    [
        ({"deflate": True, "tile": (2048, 2048)}, 2 * 8 * 2**22),
        ({"tags": {259: ("u2", [32773])}, "encode": lambda _: b"\x81\0" * 2**18, "tile": (2048, 2048)}, 3 * 8 * 2**22),
        ({"deflate": True, "tags": {262: ("u2", [1]), 338: ("u2", [1] * 15)}}, 16 * 2 * 8 * 2**8),
    ],
    ids=["deflate", "packbits", "channels"],
)
def test_what_a_tile_unpacks_to_is_told(layout: dict[str, Any], held: int, tmp_path: Path) -> None:
    """Tiles may be larger than their page, and hold channels beside the grey ones."""
    channels = 16 if "tile" not in layout else 1
    path = tmp_path / "x.tif"
    path.write_bytes(tiff([np.zeros((16, 16, channels))], **layout))
    assert picture.outline(path).reading > held
    tracemalloc.start()
    picture.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < picture.outline(path).reading + 2**20


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate", "group4", "jpeg"])
def test_a_large_strip_is_no_bomb(compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.full((40, 30), 255, np.uint8))
    image.convert("1" if compression == "group4" else "L").save(tmp_path / "x.tif", compression=compression)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.tif").data, np.full((40, 30), 255))


@pytest.mark.parametrize("layout", [{}, {"deflate": True}, {"tile": (64, 64)}])
def test_pages_are_held_once(layout: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff([np.full((256, 256), n, np.uint16) for n in range(64)], **layout))
    tracemalloc.start()
    data = picture.read(tmp_path / "x.tif").data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.shape == (256, 256, 64)
    assert peak < 1.1 * data.nbytes


def test_directories_that_have_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(tiff([GREY, GREY]))
    content[-4:] = content[4:8]
    assert refusal(tmp_path, bytes(content)) == (
        "is damaged or cut short: its directories refer to each other in a circle"
    )
    # directories of no tags, each where the one before ends
    monkeypatch.setattr("pynca.formats.tiff.MAX_PAGES", 500)
    content = bytearray(b"II*\0" + struct.pack("<I", 8))
    for n in range(600):
        content += struct.pack("<HI", 0, 8 + 6 * (n + 1))
    assert refusal(tmp_path, bytes(content)) == "has more than 500 pages"
    # directories inside each other
    content = bytearray(b"II*\0" + struct.pack("<I", 8))
    content += struct.pack("<H", 500) + bytes(6000)
    struct.pack_into("<I", content, 8 + 2 + 6000 - 4, 0)
    content += struct.pack("<I", 20)
    struct.pack_into("<H", content, 20, 400)
    struct.pack_into("<I", content, 20 + 2 + 4800, 32)
    struct.pack_into("<H", content, 32, 400)
    assert refusal(tmp_path, bytes(content)).startswith("is damaged or cut short")


@pytest.mark.parametrize(
    "tags",
    [
        {256: ("u4", [2**32 - 1])},
        {256: ("u4", [0])},
        {257: ("u4", [2**31 - 1]), 278: ("u4", [1])},
        {257: ("u4", [100])},
        {258: ("u2", [0])},
        {277: ("u2", [0])},
        {277: ("u2", [65535])},
        {278: ("u4", [2])},
        {284: ("u2", [3])},
        {317: ("u2", [77])},
        {322: ("u4", [2**31]), 323: ("u4", [2**31])},
        {322: ("u4", [2**15]), 323: ("u4", [2**15])},
        {273: ("u4", [2**32 - 1])},
        {279: ("u4", [3])},
        {259: ("u2", [5])},
        {259: ("u2", [8])},
        {259: ("u2", [4])},
        {259: ("u2", [7])},
    ],
)
@pytest.mark.parametrize("big", [False, True])
def test_impossible_directories(tags: Tags, big: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = tiff([GREY], tags, big=big)
    tracemalloc.start()
    message = refusal(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = ("; save it ", "channels", "of memory to read")  # the last by what the machine has
    assert message.startswith("is damaged or cut short") or any(text in message for text in said)
    assert len(message) < 200
    assert peak < 2**24
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tag", [256, 258, 273, 279, 262])
def test_counts_of_four_thousand_million(tag: int, tmp_path: Path) -> None:
    content = bytearray(tiff([GREY]))
    first = directory_of(bytes(content))
    for n in range(struct.unpack_from("<H", content, first)[0]):
        if struct.unpack_from("<H", content, first + 2 + 12 * n)[0] == tag:
            struct.pack_into("<I", content, first + 2 + 12 * n + 4, 2**32 - 1)
    assert refusal(tmp_path, bytes(content)).startswith("is damaged or cut short")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_change_of_bytes_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    layouts: list[dict[str, Any]] = [{}, {"tile": (16, 16)}, {"deflate": True}, {"big": True}, {"rows": 2}]
    content = bytearray(tiff([GREY, GREY], **data.draw(st.sampled_from(layouts))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, len(content) - 1))
        content[place] = data.draw(st.one_of(st.integers(0, 255), st.just(255)))
    path = tmp_path_factory.getbasetemp() / "changed.tif"
    path.write_bytes(content)
    for reader in (picture.outline, picture.read, picture.read_label):
        said = ""
        try:
            if picture.outline(path).data.nbytes < 2**26:
                reader(path)
        except ValueError as problem:
            said = str(problem).removeprefix(f"{path} ")
        assert len(said) < 200
        assert str(path) not in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_a_label_is_a_whole_number(value: float, tmp_path: Path) -> None:
    labels = np.zeros((4, 5), np.float32)
    labels[1, 2] = value
    (tmp_path / "x.tif").write_bytes(tiff([labels]))
    with pytest.raises(ValueError, match=rf"x\.tif holds the value {value}; labels are whole numbers from 0 to 255"):
        volumes.read_label(tmp_path / "x.tif")
