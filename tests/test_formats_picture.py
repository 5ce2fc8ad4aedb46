"""Pictures: grey in, indexed masks out, labels by index, and every picture that is none."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pynca
from picture_files import chunk, exif, png, tiff
from pynca import volumes
from pynca.formats import picture
from support import DATA, random_model

Image = pytest.importorskip("PIL.Image", reason="needs the extra image")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="needs the extra image")

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
LABELS = {1: "left ventricle", 7: "other"}


def loaded(path: Path, page: int = 0) -> tuple[str, NDArray[Any]]:
    """Mode and values as Pillow reads them."""
    with Image.open(path) as image:
        image.seek(page)
        return image.mode, np.asarray(image)


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "1"])
def test_grey_in_every_guise(name: str, mode: str, tmp_path: Path) -> None:
    values: NDArray[Any] = GREY
    if mode == "I;16":
        values = GREY.astype(np.uint16) * 250
        Image.fromarray(values).save(tmp_path / name)
    elif mode == "1":
        values = (GREY > 99) * np.uint8(255)
        Image.fromarray(values).convert("1").save(tmp_path / name)
    else:
        Image.fromarray(GREY).convert(mode).save(tmp_path / name)
    volume = volumes.read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.data, values)
    assert volume.data.shape == (6, 10)
    assert volume.picture
    assert volume.affine is None
    assert volume.voxel_size is None


def test_floats_and_pages_of_tiff(tmp_path: Path) -> None:
    floats = np.linspace(-3, 9, 24, dtype=np.float32).reshape(4, 6)
    Image.fromarray(floats).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "f.tif").data, floats, strict=True)
    pages = [Image.fromarray(GREY + n) for n in range(3)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(
        volumes.read_volume(tmp_path / "p.tif").data, np.stack([GREY, GREY + 1, GREY + 2], axis=2), strict=True
    )


def test_jpeg_is_read_as_displayed(tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        Image.fromarray(GREY).convert(mode).save(tmp_path / "x.jpg", quality=100)
        np.testing.assert_allclose(volumes.read_volume(tmp_path / "x.jpg").data.astype(int), GREY, atol=3)


def colour() -> NDArray[np.uint8]:
    return np.dstack([GREY, GREY, 255 - GREY])


def test_refuses_pictures(tmp_path: Path) -> None:
    x = tmp_path / "x.png"
    Image.fromarray(colour()).save(x)
    with pytest.raises(ValueError, match=r"x\.png has colours; it must be grey, or red, green and blue alike"):
        volumes.read_volume(x)
    Image.fromarray(colour()).convert("P").save(x)
    with pytest.raises(ValueError, match="has colours"):
        volumes.read_volume(x)
    Image.fromarray(colour()).convert("CMYK").save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif is a picture of mode CMYK; it must be grey"):
        volumes.read_volume(tmp_path / "x.tif")
    frames = [Image.fromarray(GREY + n) for n in range(3)]
    frames[0].save(x, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="is a film of 3 pictures; it must be a single one"):
        volumes.read_volume(x)
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[:3])]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="has pages of different size or kind"):
        volumes.read_volume(tmp_path / "x.tif")
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="holds 12 values of 12 that are not finite"):
        volumes.read_volume(tmp_path / "x.tif")


def test_refuses_sixteen_bits_in_colour_channels(tmp_path: Path) -> None:
    """Pillow would give eight of them."""
    (tmp_path / "x.png").write_bytes(png((2, 1), 16, 2, b"\0" + bytes(12)))
    with pytest.raises(ValueError, match="several channels of 16 bits; save it as a 16-bit grey picture"):
        volumes.read_volume(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg"])
def test_refuses_damage(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(path)
    whole = path.read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], "is damaged or cut short|is not a PNG"),
        (b"", "is not a PNG, TIFF or JPEG picture"),
        (b"Hello\n" * 99, "is not a PNG, TIFF or JPEG picture"),
    ):
        path.write_bytes(content)
        for read in (volumes.read_volume, volumes.read_label)[: 1 if name == "x.jpg" else 2]:
            with pytest.raises(ValueError, match=f"{name} ({reason})") as caught:
                read(path)
            assert type(caught.value) is ValueError
            assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        volumes.read_label(path)


def test_spacing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    assert volumes.read_volume(tmp_path / "x.png", spacing=1.4).spacing == (1.4, 1.4)
    assert volumes.read_volume(tmp_path / "x.png", spacing=[1.4, 1.2]).voxel_size == (1.4, 1.2)
    for wrong in (0, -1, np.nan, np.inf, [1, 2, 3], []):
        with pytest.raises(ValueError, match="spacing is "):
            volumes.read_volume(tmp_path / "x.png", spacing=wrong)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ValueError, match=r"x\.nii says itself how large its voxels are"):
        volumes.read_volume(tmp_path / "x.nii", spacing=1)


# --- turned as displayed --------------------------------------------------------------------------------------

TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}


def save_turned(path: Path, stored: NDArray[np.uint8], orientation: int) -> None:
    if path.suffix == ".tif":
        path.write_bytes(tiff([stored], {274: ("u2", [orientation])}))
        return
    tags = Image.Exif()
    tags[274] = orientation
    Image.fromarray(stored).save(path, exif=tags.tobytes(), quality=100)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_viewers_turn_them(name: str, orientation: int, tmp_path: Path) -> None:
    path, stored = tmp_path / name, np.ascontiguousarray(GREY)
    save_turned(path, stored, orientation)
    displayed = TURNS[orientation](stored)
    if name != "x.tif":  # which Pillow turns when it is read
        with Image.open(path) as image:
            assert ImageOps.exif_transpose(image).size[::-1] == displayed.shape
    image, told = volumes.read_volume(path), picture.outline(path)
    np.testing.assert_allclose(image.data.astype(int), displayed, atol=2 if name == "x.jpg" else 0)
    assert told.data.shape == image.data.shape == displayed.shape
    if name != "x.jpg":
        np.testing.assert_array_equal(volumes.read_label(path).data, displayed, strict=True)
    # the mask lies over the picture as it is displayed, and is not turned again
    mask = (image.data > 99).astype(np.uint8)
    volumes.save_mask(tmp_path / "m.png", mask, image, {1: "bright"})
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "m.png").data, mask, strict=True)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_an_orientation_that_cannot_be_is_none(tag: int, tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    (tmp_path / "x.png").write_bytes(png((10, 6), 8, 0, rows, before=chunk(b"eXIf", exif(tag))))
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.png").data, GREY, strict=True)
    (tmp_path / "x.tif").write_bytes(tiff([GREY], {274: ("u2", [tag])}))
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.tif").data, GREY, strict=True)


def test_exif_may_follow_the_picture_and_may_be_damaged(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    for content, expected in (
        (exif(3), GREY[::-1, ::-1]),
        (b"Exif\0\0" + exif(3), GREY[::-1, ::-1]),
        (exif(3)[:12], GREY),
        (b"", GREY),
        (b"MM\0*" + bytes([255] * 40), GREY),
    ):
        (tmp_path / "x.png").write_bytes(png((10, 6), 8, 0, rows, after=chunk(b"eXIf", content)))
        np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.png").data, expected, strict=True)


def test_the_second_picture_of_a_phone(tmp_path: Path) -> None:
    """A JPEG with a second one behind it, of depth or in another size, is its first."""
    first, second = (Image.fromarray(values) for values in (GREY, GREY[:3]))
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    np.testing.assert_allclose(volumes.read_volume(tmp_path / "x.jpg").data.astype(int), GREY, atol=3)
    with pytest.raises(ValueError, match="is a JPEG, whose values are not exact"):
        volumes.read_label(tmp_path / "x.jpg")


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"comment": b"x" * 999}])
def test_jpegs_of_other_kinds(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(GREY).save(path, quality=100, **options)
    np.testing.assert_allclose(volumes.read_volume(path).data.astype(int), GREY, atol=2)
    Image.fromarray(colour()).convert("CMYK").save(path)
    with pytest.raises(ValueError, match=r"x\.jpg is a picture of mode CMYK; it must be grey"):
        volumes.read_volume(path)


# --- sizes ----------------------------------------------------------------------------------------------------


def test_a_large_picture_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is the limit, and pynca's to watch."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("x.png", "x.tif", "x.jpg"):
        Image.fromarray(GREY).save(tmp_path / name)
        assert volumes.read_volume(tmp_path / name).data.shape == GREY.shape


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (8, 0), (16, 0), (8, 2), (8, 3), (8, 6)])
def test_an_outline_takes_no_memory(bits: int, colour_type: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png((30000, 33000), bits, colour_type, b"\0" * 999, before=chunk(b"PLTE", bytes(768))))
    tracemalloc.start()
    told = picture.outline(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.data.shape == (33000, 30000)
    assert told.data.nbytes == 990_000_000 * (2 if bits == 16 else 1)
    assert told.picture
    assert peak < 2**20
    held = {0: 2 if bits == 16 else 1, 2: 4, 3: 1, 6: 4}[colour_type]  # by Pillow, of each pixel
    assert told.reading >= told.data.nbytes + 990_000_000 * held


def test_a_length_that_lies_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(GREY).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") - 4
    content[place : place + 4] = b"\xff\xff\xff\xf0"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(volumes.read_volume(path).data, GREY)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_rows_of_a_narrow_picture_take_more_than_their_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png((1, 2**28), 8, 0, bytes(2**20)))
    assert picture.outline(path).reading >= 2**28 * (1 + 4 + 8)


def test_a_picture_too_short_for_its_size_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png((5, 2**25), 8, 0, b"\0" * 99))
    with pytest.raises(ValueError, match=r"x\.png is damaged or cut short: its pixels take 167,772,160 bytes"):
        picture.read(path)


@pytest.mark.parametrize(("mode", "progressive", "held"), [("L", False, 1), ("L", True, 1 + 2), ("RGB", True, 4 + 6)])
def test_coefficients_of_a_progressive_jpeg_are_counted(
    mode: str, progressive: bool, held: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    Image.new(mode, (400, 300)).save(path, progressive=progressive)
    blocks = 2 * 4 * 400 * 300  # that are copied
    assert picture.outline(path).reading >= 400 * 300 * (1 + held) + blocks


def test_an_outline_of_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(GREY).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert picture.outline(path).data.shape == (65535, 65535)
    path.write_bytes(content[: place - 5] + content[place - 5 :][: 2 + 11] + content[place - 5 :])
    with pytest.raises(ValueError, match=r"x\.jpg is damaged or cut short: it states its size twice"):
        picture.outline(path)


def test_texts_and_profiles_are_not_unpacked(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    bomb = zlib.compress(bytes(2**24))
    for kind, content in (
        (b"iCCP", b"x\0\0" + bomb),
        (b"zTXt", b"x\0\0" + bomb),
        (b"iTXt", b"x\0\1\0\0\0" + bomb),
        (b"zTXt", b"Raw profile type exif\0\0" + bomb),
        (b"tEXt", b"x\0" + bytes(2**21)),
        (b"gAMA", b"\0"),
        (b"tRNS", b"\0\4"),
    ):
        (tmp_path / "x.png").write_bytes(png((10, 6), 8, 0, rows, before=chunk(kind, content) * 3))
        tracemalloc.start()
        data = volumes.read_volume(tmp_path / "x.png").data
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(data, GREY, strict=True)
        assert peak < 2**22


def test_what_fills_a_file_is_passed_over(tmp_path: Path) -> None:
    """Any number of 0xFF before a marker, and of chunks without content."""
    Image.fromarray(GREY).save(tmp_path / "x.jpg", quality=100)
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[:2] + b"\xff" * 10**6 + content[2:])
    np.testing.assert_allclose(volumes.read_volume(tmp_path / "x.jpg").data.astype(int), GREY, atol=2)
    (tmp_path / "x.jpg").write_bytes(content[:20] + b"?" * 10**6 + content[20:])
    with pytest.raises(ValueError, match=r"x\.jpg is damaged or cut short"):
        volumes.read_volume(tmp_path / "x.jpg")
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    (tmp_path / "x.png").write_bytes(png((10, 6), 8, 0, rows, before=chunk(b"IDAT", b"") * 10**4))
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "x.png").data, GREY, strict=True)


def test_exif_that_unpacks_to_much(tmp_path: Path) -> None:
    """Pillow keeps a copy of every value, here of the whole of EXIF for each of its tags."""
    count = 5000
    entries = b"".join(struct.pack(">HHII", 1000 + n, 1, 60000, 8) for n in range(count))
    content = b"MM\0*" + struct.pack(">IH", 8, count) + entries + bytes(4)
    Image.fromarray(GREY).save(tmp_path / "x.jpg", quality=100, exif=b"Exif\0\0" + content)
    tracemalloc.start()
    data = volumes.read_volume(tmp_path / "x.jpg").data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(data.astype(int), GREY, atol=2)
    assert peak < 2**22


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_change_of_bytes_is_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    save_turned(path, GREY, 6)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    for reader in (picture.outline, picture.read, picture.read_label):
        said = ""
        try:
            if picture.outline(path).data.nbytes < 2**26:
                reader(path)
        except ValueError as problem:
            said = str(problem).removeprefix(f"{path} ")
        assert len(said) < 250
        assert str(path) not in said


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_mask_reads_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    pages = data.draw(st.integers(1, 4))
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 2**32 - 1))
    mask = np.random.default_rng(seed).integers(0, 256, (pages, rows, columns), np.uint8)
    for name in ("mask.tif", "mask.png")[: 2 if pages == 1 else 1]:
        picture.write_mask(folder / name, mask)
        expected = mask[0] if pages == 1 else np.moveaxis(mask, 0, 2)
        np.testing.assert_array_equal(picture.read_label(folder / name).data, expected, strict=True)


# --- labels -------------------------------------------------------------------------------------------------


def test_labels_are_read_by_index(tmp_path: Path) -> None:
    label = (np.arange(24).reshape(4, 6) % 4).astype(np.uint8)
    indexed = Image.fromarray(label).convert("P")
    indexed.putpalette([200, 0, 0, 0, 0, 0, 255, 255, 255, 9, 9, 9])
    indexed.save(tmp_path / "p.png")
    indexed.save(tmp_path / "p.tif")
    indexed.save(tmp_path / "two.png", bits=2)
    Image.fromarray(label).save(tmp_path / "grey.png")
    Image.fromarray(label.astype(np.uint16)).save(tmp_path / "grey16.png")
    np.save(tmp_path / "a.npy", label.astype(np.float64))
    for name in ("p.png", "p.tif", "two.png", "grey.png", "grey16.png", "a.npy"):
        np.testing.assert_array_equal(volumes.read_label(tmp_path / name).data, label, strict=True)
    Image.fromarray(label > 1).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(volumes.read_label(tmp_path / "bits.png").data, label > 1)


def test_few_bits_of_grey_are_labels_too(tmp_path: Path) -> None:
    """Pillow spreads two and four bits over eight."""
    for bits, row in ((2, b"\x1b"), (4, b"\x01\x23")):
        (tmp_path / "x.png").write_bytes(png((4, 1), bits, 0, b"\0" + row))
        np.testing.assert_array_equal(volumes.read_label(tmp_path / "x.png").data, [[0, 1, 2, 3]])


def test_refuses_labels(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="is a JPEG, whose values are not exact"):
        volumes.read_label(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").rename(tmp_path / "x.png")  # what it is decides, not its name
    with pytest.raises(ValueError, match="is a JPEG, whose values are not exact"):
        volumes.read_label(tmp_path / "x.png")
    Image.fromarray(colour()).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb\.png has colours \(mode RGB\); a label is a picture of indices"):
        volumes.read_label(tmp_path / "rgb.png")
    for value in (0.5, -1, 256):
        np.save(tmp_path / "x.npy", np.full((2, 3), value))
        with pytest.raises(
            ValueError, match=rf"x\.npy holds the value {value}; labels are whole numbers from 0 to 255"
        ):
            volumes.read_label(tmp_path / "x.npy")


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".npy"])
def test_masks_of_a_picture(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    volume = volumes.read_volume(tmp_path / "x.png")
    mask = np.choose(GREY % 3, (0, 1, 7))
    path = tmp_path / f"m{suffix}"
    volumes.save_mask(path, mask, volume, LABELS)
    np.testing.assert_array_equal(volumes.read_label(path).data, mask.astype(np.uint8), strict=True)
    if suffix != ".npy":
        mode, indices = loaded(path)
        assert mode == "P"
        np.testing.assert_array_equal(indices, mask)
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB"))
        assert not seen[mask == 0].any()
        assert len({tuple(seen[mask == value][0]) for value in (0, 1, 7)}) == 3
        assert seen[mask > 0].max(axis=-1).min() > 150
    again = tmp_path / f"again{suffix}"
    volumes.save_mask(again, np.asfortranarray(mask), volume, LABELS)
    assert again.read_bytes() == path.read_bytes()


def test_maps_of_a_picture(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    volume = volumes.read_volume(tmp_path / "x.png")
    chance = (GREY / 255).astype(np.float32)
    for name in ("m.tif", "m.npy", "m.png"):
        volumes.save_map(tmp_path / name, chance, volume)
    np.testing.assert_array_equal(loaded(tmp_path / "m.tif")[1], chance, strict=True)
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), chance, strict=True)
    mode, values = loaded(tmp_path / "m.png")
    assert mode.startswith("I")
    np.testing.assert_array_equal(values, np.rint(chance * 65535.0))
    for wrong in (chance * 2, chance - 1, np.full_like(chance, np.nan)):
        with pytest.raises(ValueError, match=r"bad\.png cannot hold values .*; write \.tif or \.npy"):
            volumes.save_map(tmp_path / "bad.png", wrong, volume)
    assert not (tmp_path / "bad.png").exists()


def test_what_a_picture_cannot_be_written_as(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    volume, mask = volumes.read_volume(tmp_path / "x.png"), (GREY > 9).astype(np.uint8)
    for name, reason in (
        ("m.nii.gz", r"x\.png does not say where it lies; write \.png, \.tif or \.npy"),
        ("m.dcm", r"DICOM SEG refers to a DICOM series, which .*x\.png is not"),
        ("m.jpg", r"JPEG changes values; write \.png"),
        ("m.gif", r"its name must end in \.nii, "),
    ):
        with pytest.raises(ValueError, match=rf"{name} cannot be written: .*{reason}"):
            volumes.save_mask(tmp_path / name, mask, volume, LABELS)


# --- one slice in all formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "rows", "columns"), [(2, "P", "L"), (1, "I", "L"), (0, "I", "P")])
@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRA", "AIL"])
def test_a_picture_is_a_slice_as_radiologists_see_it(
    axis: int, rows: str, columns: str, codes: str, tmp_path: Path
) -> None:
    """The picture of a plane gives the mask of a NIfTI slice whose axes grow to where the picture's do."""
    across = "RAS"[axis]
    model_axis = next(n for n, code in enumerate(codes) if code in {"R": "RL", "A": "AP", "S": "SI"}[across])
    model = random_model(orientation=codes, axis=model_axis)
    Image.fromarray(GREY).save(tmp_path / "x.png")
    result = pynca.predict(tmp_path / "x.png", model, spacing=1)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for n, code in enumerate(rows + columns + codes[model_axis]):
        affine["RAS".find(code) if code in "RAS" else "LPI".find(code), n] = 1 if code in "RAS" else -1
    expected = pynca.predict(GREY[..., None], model, affine=affine)
    np.testing.assert_array_equal(result.mask, expected.mask[..., 0])
    np.testing.assert_array_equal(result.probability, expected.probability[..., 0])
    assert result.mask.shape == GREY.shape


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason=f"no DICOM series in {DATA}")
@pytest.mark.parametrize("study", ["study1", "study2"])
def test_dicom_nifti_and_png_of_one_slice_give_one_mask(study: str, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    found = 0
    for number in (8, 13, 17, 20):
        content = pydicom.dcmread(DATA / "dicom" / study / f"{number}.dcm")
        pixels = content.pixel_array
        folder = tmp_path / str(number)
        folder.mkdir()
        content.save_as(folder / "slice.dcm")
        Image.fromarray(pixels.astype(np.uint16)).save(folder / "slice.png")
        Image.fromarray(pixels.astype(np.int32)).save(folder / "slice.tif")
        volume = volumes.read_volume(folder / "slice.dcm")
        nibabel.save(nibabel.Nifti1Image(volume.data, volume.affine), folder / "slice.nii.gz")
        flipped = nibabel.load(folder / "slice.nii.gz").as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
        nibabel.save(flipped, folder / "flipped.nii.gz")
        results = {
            path.name: pynca.predict(path, spacing=1 if path.suffix in (".png", ".tif") else None, threads=1)
            for path in sorted(folder.iterdir())
        }
        expected = results["slice.dcm"].mask[:, :, 0].T
        found += np.count_nonzero(expected)
        assert expected.shape == pixels.shape
        np.testing.assert_array_equal(results["slice.nii.gz"].mask[:, :, 0].T, expected)
        for name, result in results.items():
            if name.endswith((".png", ".tif")):
                np.testing.assert_array_equal(result.mask, expected)
            # written as a picture, all are the mask over the picture
            result.save(tmp_path / "m.png")
            np.testing.assert_array_equal(loaded(tmp_path / "m.png")[1], expected)
            result.save_probability(tmp_path / "p.tif")
            np.testing.assert_array_equal(loaded(tmp_path / "p.tif")[1], results["slice.png"].probability)
    assert found > 300
