"""Arrays of other libraries, through the protocols that they share with NumPy; none of them is imported by pynca."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pynca
from support import random_model

MODEL = random_model()
IMAGE = np.random.default_rng(0).random((13, 11, 5), dtype=np.float32)
MASK = pynca.segment(IMAGE, MODEL)


class Converted:
    """An array that only converts itself."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


class Exported:
    """An array that only exports itself, as those of the array API must."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> object:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class OnDevice(Exported):
    """An array in the memory of a GPU."""

    def __dlpack__(self, **options: Any) -> object:
        raise BufferError("the array is on cuda:0")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class WithGradient(Converted):
    """A tensor that remembers its gradient refuses like torch's."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


@pytest.mark.parametrize("kind", [Converted, Exported])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1"])
def test_protocols(kind: type, dtype: str) -> None:
    values = (IMAGE * 200).astype(dtype)
    before = values.copy()
    np.testing.assert_array_equal(pynca.segment(kind(values), MODEL), pynca.segment(values, MODEL))
    np.testing.assert_array_equal(values, before)


def test_an_affine_goes_with_any_array() -> None:
    affine = np.diag([-1.0, 1, 1, 1])
    expected = pynca.predict(IMAGE, MODEL, affine=affine)
    result = pynca.predict(Exported(IMAGE), MODEL, affine=affine)
    np.testing.assert_array_equal(result.probability, expected.probability)


@pytest.mark.parametrize(
    ("image", "reason"), [(OnDevice(IMAGE), ".OnDevice that"), (WithGradient(IMAGE), "requires grad")]
)
def test_what_numpy_cannot_read(image: object, reason: str) -> None:
    with pytest.raises(TypeError, match=r"^the image is a .* that NumPy cannot read .*; give it on the CPU") as caught:
        pynca.segment(image, MODEL)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_lists_have_one_length() -> None:
    with pytest.raises(ValueError, match=r"a list whose rows differ in length; it must be a slice \(H, W\)"):
        pynca.segment([[1.0, 2.0], [3.0]], MODEL)


def test_xarray_and_its_coordinates_are_not_used() -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    image = xarray.DataArray(IMAGE, dims=("x", "y", "z"), coords={"x": np.arange(13)[::-1] * 3.0})
    np.testing.assert_array_equal(pynca.segment(image, MODEL), MASK)


def test_dask() -> None:
    array = pytest.importorskip("dask.array", reason="dask is not installed")
    np.testing.assert_array_equal(pynca.segment(array.from_array(IMAGE, chunks=4), MODEL), MASK)


def test_array_api() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    np.testing.assert_array_equal(pynca.segment(strict.asarray(IMAGE), MODEL), MASK)


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.from_numpy(IMAGE)
    np.testing.assert_array_equal(pynca.segment(tensor, MODEL), MASK)
    with pytest.raises(TypeError, match="requires grad"):
        pynca.segment(tensor.clone().requires_grad_(), MODEL)
    with pytest.raises(TypeError, match=r"torch\.Tensor that NumPy cannot read"):
        pynca.segment(tensor.bfloat16(), MODEL)
    with pytest.raises(TypeError, match=r"torch\.Tensor that NumPy cannot read"):
        pynca.segment(tensor.to("meta"), MODEL)


def test_none_of_them_is_imported() -> None:
    code = """
import sys, numpy, pynca
pynca.segment(numpy.ones((8, 8)), "hippocampus")
import pynca.cli
print([name for name in ("torch", "xarray", "dask", "distributed", "napari", "shtab", "yaml") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert run.stdout == "[]\n"
