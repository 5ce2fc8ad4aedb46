"""What a notebook shows of a segmentation."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

import pynca
from pynca.preview import draw_preview, png
from pynca.volumes import Volume, read_volume
from support import random_model

MODEL = random_model()


def shown(segmentation: pynca.Segmentation) -> tuple[bytes | None, str]:
    """The picture in what a notebook shows, and the rest."""
    html = segmentation._repr_html_()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return (base64.b64decode(pictures[0]) if pictures else None), re.sub(r"<[^>]+>", " ", html)


def test_a_real_scan_shows_slices_volume_and_quality(data: Path) -> None:
    path = data / "hippocampus" / "images" / "hippocampus_001.nii.gz"
    found = pynca.predict(path, samples=3, threads=1)
    picture, text = shown(found)
    assert picture == png(draw_preview(read_volume(path), found.mask))
    voxels = np.count_nonzero(found.mask)
    assert text.split() == [
        *("hippocampus", f"{voxels / 1000:.3f}", "ml", f"({voxels}", "voxels)"),
        *("NQM", f"{found.nqm:.4f}"),
    ]
    assert len(found._repr_html_()) < 60_000


@pytest.mark.parametrize(("shape", "unit"), [((9, 11, 5), "voxels"), ((9, 11), "pixels")])
def test_an_array_shows_itself_without_a_copy(shape: tuple[int, ...], unit: str) -> None:
    image = np.random.default_rng(0).random(shape)
    found = pynca.predict(image, MODEL, threads=1)
    assert found.image is image
    picture, text = shown(found)
    assert picture == png(draw_preview(Volume(image, None, None, ""), found.mask))
    assert text.split() == ["blob", str(np.count_nonzero(found.mask)), unit]


def test_a_film_shows_every_frame() -> None:
    mask = np.zeros((4, 5, 3, 2), np.uint8)
    mask[:2, :2, :2, 0] = mask[:1, :2, :2, 1] = 1
    volume = Volume(mask, np.diag([10.0, 10, 10, 1]), None, "the film")
    _, text = shown(pynca.Segmentation(mask, mask.astype(np.float32), labels={1: "LV"}, volume=volume))
    assert "LV, frame 0 8.000 ml (8 voxels) LV, frame 1 4.000 ml (4 voxels)" in " ".join(text.split())
    assert "Ejection fraction of LV 50.0 %" in " ".join(text.split())
    assert "ED 8.000" in text
    assert "ES 4.000" in text
    assert "12.000" not in text


def test_one_made_by_hand_shows_what_it_has() -> None:
    mask = np.ones((2, 3), np.uint8)
    found = pynca.Segmentation(mask, mask.astype(np.float32), nqm=float("nan"), labels={1: "<b>"})
    picture, text = shown(found)
    assert picture is None
    assert " ".join(text.split()) == "&lt;b&gt; 6 pixels NQM none, nothing found"
    with pytest.raises(ValueError, match="made without an image"):
        found.view()


def test_view_without_ipyniivue_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ImportError, match=r"ipyniivue, which is not installed: run `pip install '\.\[notebook\]'`"):
        pynca.predict(np.ones((4, 5)), MODEL, threads=1).view()


class Viewer:
    """Stands in for ipyniivue's."""

    def load_volumes(self, volumes: list[Any]) -> None:
        self.volumes = volumes


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_view_gets_image_and_mask_where_they_lie(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setitem(sys.modules, "ipyniivue", SimpleNamespace(NiiVue=Viewer, Volume=SimpleNamespace))
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    image = np.random.default_rng(1).integers(0, 200, (9, 11, 5)).astype(dtype)
    found = pynca.predict(image, MODEL, affine=affine, threads=1)
    for volume, array in zip(found.view().volumes, (image, found.mask), strict=True):
        read = nibabel.Nifti1Image.from_bytes(volume.data)
        np.testing.assert_array_equal(np.asarray(read.dataobj), array)
        np.testing.assert_array_equal(read.affine, affine)
        assert volume.name.endswith(".nii")


def test_view_with_ipyniivue() -> None:
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed")
    for shape in ((9, 11, 5), (9, 11)):
        found = pynca.predict(np.random.default_rng(2).random(shape), MODEL, threads=1)
        widget = found.view()
        assert [volume.name for volume in widget.volumes] == ["image.nii", "mask.nii"]
        assert all(volume.data[344:348] == b"n+1\0" for volume in widget.volumes)
