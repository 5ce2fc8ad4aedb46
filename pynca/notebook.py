"""How a segmentation shows itself in a notebook."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .preview import draw_preview, png
from .volumes import Volume

if TYPE_CHECKING:
    from ipyniivue import NiiVue

    from .segmentation import Segmentation

_KEPT = ("u1", "i2", "u2", "i4")  # integers that NIfTI and every viewer know


def html(segmentation: Segmentation) -> str:
    """Return slices with the mask's outline, the volume of each label and the quality, as HTML."""
    rows = [_row(name, _size(segmentation, value)) for value, name in segmentation.labels.items()]
    if segmentation.nqm is not None:
        rows.append(_row("NQM", "none, nothing found" if np.isnan(segmentation.nqm) else f"{segmentation.nqm:.4f}"))
    picture = ""
    if segmentation.image is not None:
        source = base64.b64encode(png(draw_preview(_shown(segmentation), segmentation.mask))).decode()
        names = escape(", ".join(segmentation.labels.values()) or "mask")
        picture = f'<img src="data:image/png;base64,{source}" alt="Slices with the outline of {names}" '
        picture += 'style="max-width: 100%">'
    return f"<div>{picture}<table>{''.join(rows)}</table></div>"


def viewer(segmentation: Segmentation) -> NiiVue:
    """Return an ipyniivue viewer with the image, and the mask over it."""
    try:
        import ipyniivue
    except ImportError:
        raise ImportError("seg.view() draws with ipyniivue: pip install ipyniivue, and restart the notebook") from None
    if segmentation.image is None:
        raise ValueError("the segmentation was made without an image; predict keeps it")
    affine = _shown(segmentation).affine
    widget = ipyniivue.NiiVue()
    widget.load_volumes(
        [
            ipyniivue.Volume(data=_nifti(segmentation.image, affine), name="image.nii", colormap="gray"),
            ipyniivue.Volume(data=_nifti(segmentation.mask, affine), name="mask.nii", colormap="warm", opacity=0.5),
        ]
    )
    return widget


def _shown(segmentation: Segmentation) -> Volume:
    """Return what went in; an array without affine is shown as if its axes went to the right, front and head."""
    assert segmentation.image is not None
    return segmentation.volume or Volume(segmentation.image, np.eye(4), None, "the image")


def _size(segmentation: Segmentation, value: int) -> str:
    voxels = int(np.count_nonzero(segmentation.mask == value))
    if segmentation.volume is None or segmentation.mask.ndim != 3:
        return f"{voxels} {'voxels' if segmentation.mask.ndim == 3 else 'pixels'}"
    millilitres = voxels * float(abs(np.linalg.det(segmentation.volume.affine[:3, :3]))) / 1000
    return f"{millilitres:.3f} ml ({voxels} voxels)"


def _row(name: str, value: str) -> str:
    return f'<tr><th style="text-align: left">{escape(name)}</th><td>{escape(value)}</td></tr>'


def _nifti(array: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> bytes:
    import nibabel

    if array.ndim == 2:  # a picture's rows go down
        array, affine = array.T[:, ::-1, None], np.eye(4)
    if array.dtype.str[1:] not in _KEPT:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)  # type: ignore[no-untyped-call]
    content: bytes = image.to_bytes()
    return content
