"""Pictures: grey in, indexed masks out, labels by index, and every picture that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import pynca
from pynca import volumes
from support import DATA, random_model

Image = pytest.importorskip("PIL.Image", reason="needs the extra image")

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
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + bytes(12))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
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
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for bits, row in ((2, b"\x1b"), (4, b"\x01\x23")):
        head = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
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
