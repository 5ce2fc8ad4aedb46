"""Writes the good files that all others are made of, which the repository keeps: `python -m fuzz.make_seeds`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image

import pynca
from picture_files import few_bits, interlaced, tiff
from pynca import cli
from pynca.training import fit_slices
from pynca.training.recipe import Recipe
from pynca.training.state import STATE
from support import random_model
from test_archive import archive, mapping, program, storage, tensor
from test_formats_dicom import stack, write_series, write_slice
from test_training import blobs

from .readers import SEEDS


def whole(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return values that differ and that every dtype holds."""
    return (np.arange(np.prod(shape)).reshape(shape) % 120).astype(dtype)


def nifti(folder: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 5], [0, 1.5, 0, -7], [0, 0, 2, 1], [0, 0, 0, 1]])
    for name, image in (
        ("int16.nii", nibabel.Nifti1Image(whole((6, 5, 4), "<i2"), affine)),
        ("float32.nii.gz", nibabel.Nifti1Image(whole((6, 5, 4), "<f4"), affine)),
        ("film.nii.gz", nibabel.Nifti1Image(whole((4, 4, 3, 2), "u1"), affine)),
        ("second.nii", nibabel.Nifti2Image(whole((3, 4, 5), ">i4"), affine)),
    ):
        nibabel.save(image, folder / name)
    scaled = nibabel.Nifti1Image(whole((4, 4, 3), "<i2"), affine)
    scaled.header.set_slope_inter(0.5, 3)
    nibabel.save(scaled, folder / "scaled.nii")
    big = nibabel.Nifti1Image(whole((5, 4, 3), ">i2"), affine, nibabel.Nifti1Header(endianness=">"))
    big.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made up"))
    nibabel.save(big, folder / "big.nii")


def dicom(folder: Path) -> None:
    write_series(folder / "beside", count=3, RescaleSlope=2.0, RescaleIntercept=-5.0, SeriesDescription="axial")
    (folder / "beside" / "3.dcm").rename(folder / "middle.dcm")
    runs = pydicom.dcmread(folder / "middle.dcm")
    runs.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    runs.save_as(folder / "rle.dcm")
    for name, syntax, order in (("implicit", "1.2.840.10008.1.2", "<"), ("big", "1.2.840.10008.1.2.2", ">")):
        pixels = stack()[1]
        raw = pixels.astype(f"{order}i2").tobytes()
        write_slice(folder / f"{name}.dcm", pixels, (-7, 11, 8), syntax=syntax, PixelData=raw)


def picture(folder: Path) -> None:
    grey = Image.fromarray(whole((9, 7), "u1"))
    deep = Image.fromarray(whole((6, 5), "<u2") * 500)
    indexed = grey.quantize(16)
    grey.save(folder / "grey.png")
    deep.save(folder / "deep.png")
    indexed.save(folder / "indexed.png")
    Image.merge("RGB", [grey] * 3).save(folder / "rgb.png")
    grey.save(folder / "grey.jpg", quality=90, exif=_turned())
    grey.save(folder / "strips.tif")
    deep.save(folder / "packed.tif", compression="tiff_deflate")
    Image.fromarray(whole((6, 5), "<f4")).save(folder / "pages.tif", save_all=True, append_images=[deep.convert("F")])
    grey.convert("1").save(folder / "bits.tif", compression="group4")
    values = whole((9, 7), "u1")
    (folder / "interlaced.png").write_bytes(interlaced(values))
    grey.save(folder / "progressive.jpg", quality=50, progressive=True)
    grey.save(folder / "lzw.tif", compression="tiff_lzw")
    grey.save(folder / "packbits.tif", compression="packbits")
    grey.save(folder / "jpeg.tif", compression="jpeg")
    (folder / "tiles.tif").write_bytes(tiff([values.astype("f4")], tile=(16, 16), deflate=True))
    (folder / "big.tif").write_bytes(tiff([values.astype("u2")] * 2, big=True, order=">", tile=(16, 16)))
    (folder / "planes.tif").write_bytes(tiff([np.dstack([values] * 3)], separate=True, rows=4))
    (folder / "bits12.tif").write_bytes(
        tiff([values], {258: ("u2", [12]), 262: ("u2", [0])}, encode=few_bits(12), order=">")
    )


def _turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return exif.tobytes()


def npy(folder: Path) -> None:
    np.save(folder / "plane.npy", whole((5, 4), "<f4"))
    np.save(folder / "volume.npy", np.asfortranarray(whole((5, 4, 3), ">i2")))


def model(folder: Path) -> None:
    small = random_model(channels=3, hidden=4, scales=(2, 1))
    small.save(folder / "small.safetensors")
    known = pynca.load_model("hippocampus")
    card = pynca.Card(name="small", description="made up", licence="MIT")
    options = {"card": card, "expected": known.expected, "quality": known.quality, "postprocessing": ("largest",)}
    replace(random_model("sobel", channels=3, hidden=4, scales=(1,)), **options).save(folder / "full.safetensors")


def checkpoint(folder: Path) -> None:
    weights = {"fc0.weight": (4, 9), "fc0.bias": (4,), "fc1.weight": (3, 4)}
    weights |= {f"p{n}.weight": (3, 3, 3, 3) for n in (0, 1)} | {f"p{n}.bias": (3,) for n in (0, 1)}
    items, storages = {}, {}
    for n, (name, shape) in enumerate(weights.items()):
        count = int(np.prod(shape))
        stride = tuple(int(np.prod(shape[k + 1 :])) for k in range(len(shape)))
        items[name] = tensor(shape, stride, of=storage(str(n), count))
        storages[str(n)] = np.linspace(-0.3, 0.3, count).astype("<f4").tobytes()
    saved = archive(program(mapping(items)), storages)
    (folder / "model0.pth").write_bytes(saved)
    place = folder / "beside" / "models" / "epoch_3"
    place.mkdir(parents=True)
    for name in ("model0.pth", "model1.pth"):
        (place / name).write_bytes(saved)
    config = [{
        "img_path": "x", "label_path": "y", "name": "small", "device": "cpu", "unlock_CPU": True,
        "lr": 16e-4, "lr_gamma": 0.9999, "betas": [0.5, 0.5], "save_interval": 5, "evaluate_interval": 5, "n_epoch": 3,
        "batch_size": 4, "channel_n": 3, "inference_steps": 4, "cell_fire_rate": 0.5, "input_channels": 1,
        "output_channels": 1, "hidden_size": 4, "train_model": 1, "input_size": [[4, 4], [16, 16]],
        "scale_factor": 4, "data_split": [0.7, 0, 0.3],
    }]  # fmt: skip
    (folder / "config.dt").write_text(json.dumps(config))


def manifest(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "inputs").mkdir()
        image = nibabel.Nifti1Image(whole((6, 5, 4), "<i2"), np.diag([-1.0, 1, 1, 1]))
        for n in (1, 2):
            nibabel.save(image, place / "inputs" / f"{n}.nii.gz")
        (place / "inputs" / "bad.nii").write_bytes(b"no volume")
        random_model(channels=3, hidden=4, scales=(1,)).save(place / "m.safetensors")
        cli.main(
            [
                *("segment", str(place / "inputs"), str(place / "out"), "-m", str(place / "m.safetensors")),
                *("-q", "--samples", "2", "--force"),
            ]
        )
        shutil.copy(place / "out" / "manifest.json", folder)
        (folder / "beside").mkdir()
        for path in (place / "out").glob("*.nii.gz"):
            shutil.copy(path, folder / "beside")
        shutil.copytree(place / "inputs", folder / "beside" / "inputs")


def dataset(folder: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        (folder / "beside" / kind).mkdir(parents=True)
        image = nibabel.Nifti1Image(whole((4, 4, 3), "u1") % 2, np.eye(4))
        nibabel.save(image, folder / "beside" / kind / ("a_0000.nii" if kind == "imagesTr" else "a.nii"))
    (folder / "nnunet.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "one": 1},
                "numTraining": 1,
                "file_ending": ".nii",
            }
        )
    )
    (folder / "decathlon.json").write_text(
        json.dumps({
            "name": "x", "tensorImageSize": "3D", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "one"},
            "numTraining": 1, "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}],
        })
    )  # fmt: skip


def list_(folder: Path) -> None:
    shutil.copytree(SEEDS / "dataset" / "beside", folder / "beside" / "whole")
    shutil.copy(SEEDS / "dataset" / "nnunet.json", folder / "beside" / "whole" / "dataset.json")
    (folder / "names.txt").write_text("a.nii\n")


def state(folder: Path) -> None:
    recipe = Recipe(channels=3, hidden=4, steps=(2, 2), scales=(2, 1), patch=(8, 8), batch=2, batches=2)
    with tempfile.TemporaryDirectory() as place:
        fit_slices(blobs(4), recipe, pynca.Preparation(size=(16, 16)), folder=place)
        shutil.copy(Path(place) / STATE, folder)


def main() -> None:
    warnings.simplefilter("ignore")
    os.environ["PYNCA_NUM_THREADS"] = "1"
    for write in (nifti, dicom, picture, npy, model, checkpoint, manifest, dataset, list_, state):
        folder = SEEDS / write.__name__.rstrip("_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)


if __name__ == "__main__":
    main()
