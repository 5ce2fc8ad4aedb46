"""Draw the README's picture: slices of a volume, with the outline of the mask and of the label.

python docs/make_picture.py MODEL IMAGE LABEL OUT.png
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pynca
from pynca.volumes import Orientation, read_volume

ZOOM = 7
MASK, LABEL = (255, 176, 0), (64, 160, 255)  # distinguishable by colour-blind eyes
COUNT = 5


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The border pixels of a zoomed mask, two pixels wide."""
    large = np.kron(mask, np.ones((ZOOM, ZOOM), bool))
    inner = large.copy()
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(large, shift, axis)
    return large & ~inner


def draw(image: NDArray[np.floating], mask: NDArray[np.bool_], label: NDArray[np.bool_]) -> NDArray[np.uint8]:
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / (high - low), 0, 1) * 255
    picture = np.repeat(np.kron(grey, np.ones((ZOOM, ZOOM)))[..., None], 3, axis=2)
    picture[outline(label)] = LABEL
    picture[outline(mask)] = MASK
    return picture.astype(np.uint8)


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    )


def main(model: str, image: str, label: str, out: str) -> None:
    volume, truth = read_volume(image), read_volume(label).data > 0
    mask = pynca.segment(image, model) > 0
    way = Orientation.between(volume.affine, "RAS")
    data, mask, truth = (way.apply(array) for array in (volume.data, mask, truth))
    used = np.flatnonzero(truth.any(axis=(0, 1)))
    chosen = used[np.linspace(0, len(used) - 1, COUNT + 2).astype(int)[1:-1]]
    # seen from the feet, front up: columns grow to the patient's left
    turned = [[np.flip(a[:, :, k].T) for a in (data.astype(float), mask, truth)] for k in chosen]
    panels = [np.pad(draw(*slices), ((0, 0), (4, 4), (0, 0)), constant_values=255) for slices in turned]
    write_png(Path(out), np.concatenate(panels, axis=1))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
