"""Draw the README's picture: slices of a volume, with the outline of the mask and of the label.

python docs/make_picture.py MODEL IMAGE LABEL OUT.png
"""

from __future__ import annotations

import sys

import pynca
from pynca.preview import BLUE, ORANGE, draw_slices, write_png
from pynca.volumes import Orientation, read_volume


def main(model: str, image: str, label: str, out: str) -> None:
    volume = read_volume(image)
    way = Orientation.between(volume.affine, "RAS")
    outlines = {BLUE: way.apply(read_volume(label).data > 0), ORANGE: way.apply(pynca.segment(image, model) > 0)}
    write_png(out, draw_slices(way.apply(volume.data), outlines), overwrite=True)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
