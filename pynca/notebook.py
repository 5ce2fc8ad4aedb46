"""How a segmentation shows itself in a notebook."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .curve import svg
from .errors import printable
from .formats.base import optional
from .preview import draw_preview, original, png
from .statistics import cycles, label_statistics

if TYPE_CHECKING:
    from .segmentation import Segmentation
    from .volumes import Volume

_KEPT = ("u1", "i2", "u2", "i4")  # integers that NIfTI and every viewer know


def html(segmentation: Segmentation) -> str:
    """Return slices with the mask's outline, the volume of each label and the quality, as HTML."""
    axes = segmentation.mask.ndim
    rows = []
    statistics = label_statistics(segmentation)
    for label in statistics:
        size = f"{label.voxels} {'pixels' if axes == 2 else 'voxels'}"
        name = label.name if label.frame is None else f"{label.name}, frame {label.frame}"
        rows.append(_row(name, size if label.volume_ml is None else f"{label.volume_ml:.3f} ml ({size})"))
    films = cycles(statistics)
    for cycle in films:
        if cycle.ejection_fraction is not None:
            rows.append(_row(f"Ejection fraction of {cycle.name}", f"{100 * cycle.ejection_fraction:.1f} %"))
    if segmentation.nqm is not None:
        rows.append(
            _row(
                "Largest NQM of a frame" if len(segmentation.frames()) > 1 else "NQM",
                "none, nothing found" if np.isnan(segmentation.nqm) else f"{segmentation.nqm:.4f}",
            )
        )
    picture = ""
    if segmentation.image is not None:
        source = base64.b64encode(png(draw_preview(original(segmentation), segmentation.mask))).decode()
        names = _text(", ".join(segmentation.labels.values()) or "mask")
        picture = f'<img src="data:image/png;base64,{source}" alt="Slices with the outline of {names}" '
        picture += 'style="max-width: 100%">'
    curves = "".join(f'<div style="max-width: 440px">{svg(cycle)}</div>' for cycle in films)
    return f"<div>{picture}{curves}<table>{''.join(rows)}</table></div>"


def viewer(segmentation: Segmentation) -> Any:
    """Return an ipyniivue viewer with the image, and the mask over it."""
    volume = original(segmentation)
    ipyniivue = optional("ipyniivue", "notebook", "seg.view()")
    widget = ipyniivue.NiiVue()
    widget.load_volumes(
        [
            ipyniivue.Volume(data=_nifti(volume.data, volume), name="image.nii", colormap="gray"),
            ipyniivue.Volume(data=_nifti(segmentation.mask, volume), name="mask.nii", colormap="warm", opacity=0.5),
        ]
    )
    return widget


def _text(text: str) -> str:
    return escape(printable(text))


def _row(name: str, value: str) -> str:
    return f'<tr><th style="text-align: left">{_text(name)}</th><td>{_text(value)}</td></tr>'


def _nifti(array: NDArray[Any], volume: Volume) -> bytes:
    import nibabel

    affine = volume.affine
    if affine is None:
        affine = np.diag([*(*(volume.spacing or ()), 1.0, 1.0, 1.0)[:3], 1.0])
        if volume.picture or array.ndim == 2:  # rows go down
            array = np.atleast_3d(array).transpose(1, 0, 2)[:, ::-1]
            affine = affine[[1, 0, 2, 3]][:, [1, 0, 2, 3]]
    if array.dtype.str[1:] not in _KEPT:
        array = array.astype(np.float32)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)  # type: ignore[no-untyped-call]
    content: bytes = image.to_bytes()
    return content
