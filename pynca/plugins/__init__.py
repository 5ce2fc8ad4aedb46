"""pynca in other programs: napari and 3D Slicer. Nothing else imports these modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Model
    from ..segmentation import Segmentation


def summary(segmentation: Segmentation, model: Model, voxel_mm3: float | None) -> str:
    """Say in a few words what was found, how much the runs disagree, and whether somebody should look at it."""
    from ..inputs import check_input
    from ..preview import original
    from ..quality import judge

    count = int((segmentation.mask > 0).sum())
    name = next(iter(segmentation.labels.values()))
    if voxel_mm3 is not None:
        text = f"{name}: {count * voxel_mm3 / 1000:.3f} ml ({count} voxels)"
    else:
        text = f"{name}: {count} pixels"
    if segmentation.nqm is not None:
        text += f", NQM {segmentation.nqm:.4f}"
    verdict, reasons = judge(segmentation, model)
    if verdict is None and segmentation.image is not None and check_input(original(segmentation), model):
        text += ", but the model was not made for this image"
    if verdict is not None:
        text += f", {verdict}" + (f": {'; '.join(reasons)}" if reasons else "")
    return text
