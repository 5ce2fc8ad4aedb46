"""The napari widget: segments an image layer, and lays the mask and its uncertainty over it.

A layer says where its pixels are, but not where the patient's right is. The widget takes the layer's axes to grow
towards the patient directions in its field "axes" (at first those that the model learnt), and their spacing from the
layer's scale and affine: millimetres, unless the layer's units say otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, PushButton, SpinBox, TextEdit, create_widget
from napari.layers import Image
from napari.qt.threading import create_worker
from numpy.typing import NDArray

from .. import _core, zoo
from ..config import MAX_THREADS, thread_count
from ..model import load_model
from ..orientation import AXIS_OF, DISPLAY
from ..segmentation import Segmentation, predict
from . import summary

if TYPE_CHECKING:
    from napari.viewer import Viewer


class SegmentWidget(Container):  # type: ignore[misc]
    """Choices above, a button, and the result in words below; the work is done in a thread, so that the viewer lives.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Gets the new layers. napari gives it to a parameter of this name.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self.image = create_widget(label="image", annotation=Image)
        self.model = ComboBox(label="model", choices=zoo.names(), value=zoo.DEFAULT)
        self.file = FileEdit(label="or a file", mode="r", filter="*.safetensors", nullable=True)
        self.axes = LineEdit(
            label="axes",
            tooltip="patient directions towards which the layer's axes grow, such as RAS; empty: as the model learnt",
        )
        self.samples = SpinBox(
            label="samples", value=1, min=1, max=_core.MAX_SAMPLES, tooltip="runs; more than one show uncertainty"
        )
        self.threads = SpinBox(label="threads", value=thread_count(), min=1, max=MAX_THREADS)
        self.button = PushButton(text="Segment")
        self.result = TextEdit(label="result", value="")  # a refusal is a long sentence
        super().__init__(
            widgets=[
                *(self.image, self.model, self.file, self.axes),
                *(self.samples, self.threads, self.button, self.result),
            ]
        )
        self.result.read_only = True
        self.button.changed.connect(self.segment)

    def segment(self) -> None:
        """Segment the chosen layer; the layers of the result appear when it is done."""
        layer = self.image.value
        if layer is None:
            self.result.value = "Open an image first."
            return
        path = Path(self.file.value or self.model.value)
        axes, samples, threads = self.axes.value, self.samples.value, self.threads.value

        def work() -> tuple[Segmentation, str] | str:
            try:
                model = load_model(path)
                if layer.rgb:
                    raise ValueError(f"{layer.name} is a colour picture; convert it to grey")
                data = layer.data[0] if layer.multiscale else layer.data
                spacing = spacing_mm(layer)
                towards = axes or model.preparation.orientation
                affine = None if data.ndim != 3 or towards == DISPLAY else oriented(towards, spacing)
                found = predict(data, model, affine=affine, samples=samples, threads=threads)
                return found, summary(found, model, abs(np.linalg.det(steps_mm(layer))) if layer.ndim == 3 else None)
            except (ValueError, TypeError, OSError, MemoryError) as error:
                return " ".join(str(error).split()) or "there is not enough memory"

        def done(outcome: tuple[Segmentation, str] | str) -> None:
            self.button.enabled = True
            if isinstance(outcome, str):
                self.result.value = outcome
                return
            segmentation, self.result.value = outcome
            self._show(layer, segmentation)

        self.button.enabled = False
        self.result.value = f"Segmenting {layer.name} ..."
        create_worker(work, _connect={"returned": done}, _progress=True)

    def _show(self, layer: Image, segmentation: Segmentation) -> None:
        """Lay the result over the layer, wherever that is."""
        place = {name: getattr(layer, name) for name in ("scale", "translate", "rotate", "shear", "affine", "units")}
        if segmentation.uncertainty is not None:
            self._viewer.add_image(
                segmentation.uncertainty,
                name=f"{layer.name} uncertainty",
                colormap="magma",
                blending="additive",
                opacity=0.6,
                visible=False,
                **place,
            )
        name = next(iter(segmentation.labels.values()))
        self._viewer.add_labels(segmentation.mask, name=f"{layer.name} {name}", **place)


def spacing_mm(layer: Image) -> NDArray[np.float64]:
    """Return the distance of neighbouring pixels along each of a layer's axes, in mm where its units are lengths."""
    spacing: NDArray[np.float64] = np.linalg.norm(steps_mm(layer), axis=1)
    return spacing


def steps_mm(layer: Image) -> NDArray[np.float64]:
    """Return where a step along each of a layer's axes leads to, as rows, in mm where its units are lengths."""
    origin = np.asarray(layer.data_to_world(np.zeros(layer.ndim)))
    steps = np.array([np.asarray(layer.data_to_world(step)) - origin for step in np.eye(layer.ndim)])
    factors = np.ones(layer.ndim)
    for axis, unit in enumerate(layer.units):
        if unit.is_compatible_with("mm"):
            factors[axis] = (1 * unit).to("mm").magnitude
    scaled: NDArray[np.float64] = steps * factors
    return scaled


def oriented(axes: str, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the affine of a volume whose axes grow towards patient directions.

    Raises
    ------
    ValueError
        ``axes`` does not name three directions.
    """
    codes = axes.strip().upper()
    rows = [AXIS_OF.get(code, -1) for code in codes]
    if sorted(rows) != [0, 1, 2]:
        raise ValueError(f"axes is {axes!r}; it must name three patient directions, such as RAS or SPL")
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (row, code) in enumerate(zip(rows, codes, strict=True)):
        affine[row, column] = spacing[column] if code in "RAS" else -spacing[column]
    return affine
