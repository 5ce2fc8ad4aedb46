"""Pictures: PNG, TIFF and JPEG in grey; masks as indexed pictures whose value is the label."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from .base import Refused, Volume, about, colour_of, optional, parsing

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
LOSSY = (".jpg", ".jpeg")
PAGED = (".tif", ".tiff")
_GREY = ("L", "I", "I;16", "I;16B", "I;16L", "F")
_SPREAD = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies grey of few bits
_PNG_FULL = 65535


def read(path: Path) -> Volume:
    """Read a grey picture, (row, column), or a TIFF of several pages, (row, column, page)."""
    with _opened(path) as image:
        pages = [_grey(page) for page in _pages(image)]
        return Volume(_stacked(pages), None, None, str(path), picture=True)


def read_label(path: Path) -> Volume:
    """Read a picture of labels: its indices where it has a palette, else its values."""
    with _opened(path) as image:
        if image.format == "JPEG":
            raise Refused("is a JPEG, whose values are not exact; a label must be PNG, TIFF, .npy or NIfTI")
        pages = []
        for page in _pages(image):
            if page.mode not in ("1", "P", *_GREY):
                raise Refused(f"has colours (mode {page.mode}); a label is a picture of indices or of one channel")
            spread = _SPREAD.get(str(page.tile[0][3]), 1) if page.tile else 1
            pages.append(np.asarray(page) // spread if spread > 1 else np.asarray(page))
        return Volume(_stacked(pages), None, None, str(path), picture=True)


def write_mask(path: Path, pages: NDArray[np.uint8]) -> None:
    """Write labels (page, row, column) as indices into a palette that makes them visible."""
    palette = [part for label in range(256) for part in colour_of(label)]
    images = []
    for page in pages:
        image = _pillow().frombytes("P", page.shape[::-1], page.tobytes())
        image.putpalette(palette)
        images.append(image)
    _write(path, images)


def write_map(path: Path, pages: NDArray[np.float32]) -> None:
    """Write values (page, row, column): float32 as TIFF; as PNG, 0 to 1 in 16 bits."""
    if path.suffix.lower() in PAGED:
        images = [_pillow().frombytes("F", page.shape[::-1], page.astype("<f4").tobytes()) for page in pages]
    else:
        low, high = pages.min(initial=0), pages.max(initial=0)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{path} cannot hold values from {low:g} to {high:g}, a PNG has 0 to 1; write .tif or .npy"
            )
        whole = np.rint(pages.astype(np.float64) * _PNG_FULL).astype("<u2")
        images = [_pillow().frombytes("I;16", page.shape[::-1], page.tobytes()) for page in whole]
    _write(path, images)


def _pillow() -> Any:
    return optional("PIL.Image", "image", "a picture")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture; what fails while it is open is said of it."""
    pillow = _pillow()
    with open(path, "rb") as file, about(path), parsing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about tags that do not matter here
        try:
            image = pillow.open(file, formats=("PNG", "TIFF", "JPEG"))
        except pillow.UnidentifiedImageError:
            raise Refused("is not a PNG, TIFF or JPEG picture") from None
        with image:
            yield image


def _pages(image: Any) -> Iterator[Any]:
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "TIFF":
        raise Refused(f"is a film of {count} pictures; it must be a single one, or a TIFF of several pages")
    for number in range(count):
        image.seek(number)
        yield image


def _grey(image: Any) -> NDArray[Any]:
    """Return the grey values of a picture, refusing what has colours or would lose precision."""
    # Pillow gives these 8 bits a channel, whatever was stored
    if image.mode in ("RGB", "RGBA", "LA") and any(str(tile[3]).find(";16") >= 0 for tile in image.tile):
        raise Refused("has several channels of 16 bits; save it as a 16-bit grey picture")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    values = np.asarray(image)
    if image.mode in _GREY:
        return values
    if image.mode == "LA":
        return values[..., 0]
    if image.mode in ("RGB", "RGBA"):
        if (values[..., :1] == values[..., :3]).all():
            return values[..., 0]
        raise Refused("has colours; it must be grey, or red, green and blue alike")
    raise Refused(f"is a picture of mode {image.mode}; it must be grey, with 8, 16 or 32 bits")


def _stacked(pages: list[NDArray[Any]]) -> NDArray[Any]:
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise Refused("has pages of different size or kind; those of a volume are alike")
    pages = [page.astype(page.dtype.newbyteorder("=")) for page in pages]
    return pages[0] if len(pages) == 1 else np.stack(pages, axis=-1)


def _write(path: Path, images: list[Any]) -> None:
    with atomic_path(path) as temporary:
        if path.suffix.lower() in PAGED:
            images[0].save(temporary, format="TIFF", save_all=True, append_images=images[1:])
        else:
            images[0].save(temporary, format="PNG")
