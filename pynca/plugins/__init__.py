"""pynca in other programs: napari and 3D Slicer. Nothing else imports these modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..segmentation import Segmentation


def summary(segmentation: Segmentation, voxel_mm3: float | None) -> str:
    """Say in a few words what was found, and how much the runs disagree."""
    count = int((segmentation.mask > 0).sum())
    name = next(iter(segmentation.labels.values()))
    if voxel_mm3 is not None:
        text = f"{name}: {count * voxel_mm3 / 1000:.3f} ml ({count} voxels)"
    else:
        text = f"{name}: {count} pixels"
    return text if segmentation.nqm is None else f"{text}, NQM {segmentation.nqm:.4f}"
