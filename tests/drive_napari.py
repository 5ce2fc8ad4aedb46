"""Drives the napari widget in a real viewer, in a process of its own; `test_plugins_napari.py` starts it.

A picture of the viewer goes to the file that is named as the argument, if one is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import napari
import numpy as np
from npe2 import PluginManager, PluginManifest
from qtpy.QtCore import QCoreApplication, QElapsedTimer, QEventLoop

import pynca
from pynca.phantom import hippocampus_phantom


def wait(widget: object) -> int:
    """Let the viewer live until the widget has finished, and count how often it got the word meanwhile."""
    timer, turns = QElapsedTimer(), 0
    timer.start()
    while not widget.button.enabled:  # type: ignore[attr-defined]
        QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
        turns += 1
        assert timer.elapsed() < 60_000, "the widget did not finish"
    return turns


def main(picture: str | None) -> None:
    manager = PluginManager.instance()
    if "pynca" not in manager._manifests:  # installed before the entry point was
        manager.register(PluginManifest.from_file(Path(pynca.__path__[0]) / "napari.yaml"))
    viewer = napari.Viewer(show=picture is not None)
    _, widget = viewer.window.add_plugin_dock_widget("pynca", "Segment")
    assert not viewer.layers

    widget.button.clicked()  # without an image
    assert widget.result.value == "Open an image first."

    scan, _ = hippocampus_phantom()
    image = viewer.add_image(
        scan, name="scan", scale=(1, 1, 1), translate=(5, 6, 7), affine=np.diag([2.0, 2, 2, 1]), units="mm"
    )
    widget.reset_choices()
    widget.samples.value = 3
    widget.threads.value = 1
    widget.segment()
    assert not widget.button.enabled
    assert widget.result.value == "Segmenting scan ..."
    assert wait(widget) > 1
    expected = pynca.predict(scan, samples=3, affine=np.diag([2.0, 2, 2, 1]))
    uncertainty, mask = viewer.layers["scan uncertainty"], viewer.layers["scan hippocampus"]
    np.testing.assert_array_equal(mask.data, expected.mask)
    np.testing.assert_array_equal(uncertainty.data, expected.uncertainty)
    for layer in (mask, uncertainty):
        np.testing.assert_array_equal(layer.data_to_world((1, 2, 3)), image.data_to_world((1, 2, 3)))
        assert layer.units == image.units
    voxels = np.count_nonzero(expected.mask)
    said = f"hippocampus: {voxels * 8 / 1000:.3f} ml ({voxels} voxels), NQM {expected.nqm:.4f}"
    assert widget.result.value.startswith(f"{said}, review: the model was not made for this image"), widget.result.value
    if picture is not None:
        viewer.reset_view()
        viewer.dims.set_point(2, float(image.data_to_world((0, 0, scan.shape[2] // 2))[2]))
        viewer.screenshot(picture, canvas_only=False, flash=False)

    widget.samples.value = 1
    widget.axes.value = "SPL"  # the same volume, lying otherwise
    turned = np.ascontiguousarray(scan.transpose(2, 1, 0)[:, ::-1, ::-1])
    widget.image.value = viewer.add_image(turned, name="turned", units=("um", "mm", "mm"))
    widget.segment()
    wait(widget)
    straight = pynca.segment(scan)
    np.testing.assert_array_equal(viewer.layers["turned hippocampus"].data, straight.transpose(2, 1, 0)[:, ::-1, ::-1])
    said = f"hippocampus: {np.count_nonzero(straight) / 1e6:.3f} ml ({np.count_nonzero(straight)} voxels), review: "
    assert widget.result.value.startswith(said), widget.result.value

    before = len(viewer.layers)
    for change, sentence in (
        (lambda: setattr(widget.axes, "value", "XYZ"), "axes is 'XYZ'; it must name three patient directions"),
        (lambda: setattr(widget.file, "value", "/nowhere.safetensors"), "/nowhere.safetensors"),
    ):
        change()
        widget.segment()
        wait(widget)
        assert sentence in widget.result.value, widget.result.value
        assert len(viewer.layers) == before
    widget.file.value = None
    widget.axes.value = ""

    for data, options, sentence in (
        (np.zeros((20, 20, 3), np.uint8), {"rgb": True}, "colour picture is a colour picture; convert it to grey"),
        (np.zeros((2, 9, 9, 9), np.float32), {}, "the image has shape (2, 9, 9, 9)"),
        (np.random.default_rng(0).random((30, 40)).astype(np.float32), {}, "pixels"),
    ):
        widget.image.value = viewer.add_image(data, name="colour picture" if options else "picture", **options)
        widget.segment()
        wait(widget)
        assert sentence in widget.result.value, widget.result.value
    assert viewer.layers[-1].data.shape == (30, 40)
    viewer.close()
    print("driven")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
