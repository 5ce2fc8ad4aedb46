"""What `pynca demo` does: the main job on a phantom, so that anyone can see the tool work without data."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .metrics import hard_dice
from .model import load_model
from .phantom import hippocampus_phantom
from .preview import BLUE, ORANGE, draw_slices, write_png
from .segmentation import predict
from .volumes import Volume, save_map
from .zoo import DEFAULT


@dataclass(frozen=True)
class Demo:
    """What was written, and how it went.

    Parameters
    ----------
    phantom, mask, preview : path
    volume_ml : float
    dice : float
        Hard Dice against the phantom's own hippocampus.
    seconds : float
        From the array to the mask.
    """

    phantom: Path
    mask: Path
    preview: Path
    volume_ml: float
    dice: float
    seconds: float


def files(folder: Path) -> tuple[Path, Path, Path]:
    """Return where phantom, mask and preview are in a folder."""
    return folder / "phantom.nii.gz", folder / "mask.nii.gz", folder / "preview.png"


def run_demo(folder: str | os.PathLike[str], *, threads: int | None = None, overwrite: bool = False) -> Demo:
    """Make a phantom, segment it with the bundled hippocampus model, and write all of it to a folder.

    Raises
    ------
    FileExistsError
        There is a file of that name that pynca did not write, and ``overwrite`` is not given.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    image, truth = hippocampus_phantom()
    model = load_model(DEFAULT)
    began = time.perf_counter()
    result = predict(image, model, affine=np.eye(4), threads=threads)
    seconds = time.perf_counter() - began
    mask = result.mask > 0
    paths = files(place)
    save_map(paths[0], image, Volume(image, np.eye(4), None, "the phantom"), overwrite=overwrite)
    result.save(paths[1], overwrite=overwrite)
    write_png(paths[2], draw_slices(image, {BLUE: truth, ORANGE: mask}), overwrite=overwrite)
    return Demo(*paths, volume_ml=int(mask.sum()) / 1000, dice=hard_dice(mask, truth), seconds=seconds)
