"""The way an image takes: orient, slice, prepare, run the automaton, bring the logits back."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .config import thread_count
from .errors import NotFinite, NotMadeFor
from .formats.base import about
from .inputs import check_input, slices_along
from .memory import memory_limit, slices_a_call
from .model import Model, load_model
from .orientation import Orientation, checked_affine
from .postprocessing import postprocess
from .preprocessing import check_finite
from .progress import Progress
from .quality import Ensemble, largest_nqm, nqm, sigmoid
from .rule import FloatArray, UInt8Array, whole_number
from .volumes import Volume, is_dicom, read_outline, read_volume, save_map, save_mask
from .zoo import DEFAULT, names

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    Image = ArrayLike | str | os.PathLike[str] | SpatialImage | Volume

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `predict` returns. All arrays have the shape of the image that went in.

    Attributes
    ----------
    mask : array
        uint8: the label's value where the probability is above the model's threshold, else 0.
    probability : array
        float32: sigmoid of the logits, averaged over the samples.
    uncertainty : array or None
        float32: standard deviation of the probability over the samples; None for one sample.
    nqm : float or None
        Quality metric of M3D-NCA (`pynca.quality.nqm`), ``sum(sd) / sum(mean)`` of the
        probability over the samples: 0 = all runs agree, larger is worse. Summed over the image's own
        voxels; on the model's grid, as in the papers, it reads some 7 % higher. Of a film, the largest of its
        frames'. None for one sample.
    labels : mapping of int to str
        Name of each value in ``mask``.
    volume : Volume or None
        The input with its geometry, for `save`; None for an array without affine. Its ``spacing`` is the model's
        where the file does not say.
    image : array or None
        The voxels that went in, not a copy: for pictures of the result.
    samples : int
        Number of runs.
    frame_nqm : tuple of float
        Of a film, the NQM of each frame; empty for anything else, and for one sample.
    axis : int or None
        The axis that it was sliced along where ``axis`` of `predict` said so; None for the model's.
    """

    mask: UInt8Array
    probability: FloatArray
    uncertainty: FloatArray | None = None
    nqm: float | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    volume: Volume | None = field(default=None, repr=False)
    image: NDArray[Any] | None = field(default=None, repr=False)
    samples: int = 1
    frame_nqm: tuple[float, ...] = ()
    axis: int | None = None

    def frames(self) -> list[Segmentation]:
        """Return the segmentation of each time point of a film, on views of its arrays; of anything else, itself."""
        if self.mask.ndim < 4:
            return [self]
        count = self.mask.shape[3]
        nqms = self.frame_nqm if len(self.frame_nqm) == count else (self.nqm if count == 1 else None,) * count

        def of(array: NDArray[Scalar], n: int) -> NDArray[Scalar]:
            return array[..., n]

        return [
            replace(
                self,
                mask=of(self.mask, n),
                probability=of(self.probability, n),
                uncertainty=None if self.uncertainty is None else of(self.uncertainty, n),
                nqm=nqms[n],
                volume=None if self.volume is None else replace(self.volume, data=of(self.volume.data, n)),
                image=None if self.image is None else of(self.image, n),
                frame_nqm=(),
            )
            for n in range(count)
        ]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the mask in the format that the name's ending says, with the geometry of the input.

        Parameters
        ----------
        path : str or path-like
            ``.nii``, ``.nii.gz``; ``.dcm`` (DICOM SEG) for a DICOM series; ``.png`` for one slice; ``.tif``; ``.npy``.
            `pynca.volumes.save_mask` says what each holds.
        overwrite : bool
            Replace a file that pynca did not write, or that was changed since; never the input. Default False.

        Raises
        ------
        ValueError
            The input was an array without geometry, or lacks what the format needs; or the name has another ending, or
            is the input's.
        FileExistsError
            There is such a file, and ``overwrite`` is not given.
        OSError
            The file cannot be written.
        ImportError
            The library that writes the format is not installed.
        """
        save_mask(path, self.mask, self._geometry(), self.labels, overwrite=overwrite)

    def save_probability(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the probability as float32, like `save`, but not as DICOM; a ``.png`` holds 0 to 1 in 16 bits."""
        save_map(path, self.probability, self._geometry(), overwrite=overwrite)

    def save_uncertainty(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the uncertainty, like `save_probability`.

        Raises
        ------
        ValueError
            There is none, because only one sample was run; or as `save`.
        """
        if self.uncertainty is None:
            raise ValueError("one run has no uncertainty; give samples= of 2 or more to predict")
        save_map(path, self.uncertainty, self._geometry(), overwrite=overwrite)

    def save_preview(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write slices with the outline of the mask as PNG; `pynca.preview.write_preview` describes them.

        Raises
        ------
        ValueError
            The name has another ending, or the segmentation was made without an image.
        FileExistsError
            As `save`.
        OSError
            The file cannot be written.
        """
        from .preview import original, write_preview

        write_preview(path, original(self), self, overwrite=overwrite)

    def view(self) -> Any:
        """Return a viewer of image and mask for a notebook, an ``ipyniivue.NiiVue``; the extra ``notebook`` has it.

        Raises
        ------
        ImportError
            ipyniivue is not installed.
        ValueError
            The segmentation was made without an image.
        """
        from .notebook import viewer

        return viewer(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: slices with the mask's outline, volume and quality."""
        from .notebook import html

        return html(self)

    def _geometry(self) -> Volume:
        if self.volume is None:
            raise ValueError("the image was an array without affine; give affine= to predict, or save seg.mask")
        return self.volume


def segment(
    image: Image,
    model: Model | str | os.PathLike[str] = DEFAULT,
    *,
    axis: int | None = None,
    affine: ArrayLike | None = None,
    spacing: float | Sequence[float] | None = None,
    seed: int = 0,
    samples: int = 1,
    threads: int | None = None,
    memory: int | None = None,
    progress: bool | Callable[[float], object] = False,
    strict: bool = False,
) -> UInt8Array:
    """Segment an image and return the mask; `predict` describes the arguments and returns more.

    Returns
    -------
    array
        uint8, of the image's shape: the label's value, or 0.
    """
    return predict(
        image,
        model,
        axis=axis,
        affine=affine,
        spacing=spacing,
        seed=seed,
        samples=samples,
        threads=threads,
        memory=memory,
        progress=progress,
        strict=strict,
    ).mask


def predict(
    image: Image,
    model: Model | str | os.PathLike[str] = DEFAULT,
    *,
    axis: int | None = None,
    affine: ArrayLike | None = None,
    spacing: float | Sequence[float] | None = None,
    seed: int = 0,
    samples: int = 1,
    threads: int | None = None,
    memory: int | None = None,
    progress: bool | Callable[[float], object] = False,
    strict: bool = False,
) -> Segmentation:
    """Segment a slice or a volume.

    The image is turned to the orientation that the model learnt and sliced along the model's axis; each
    slice is prepared, run, and its logits brought back to its own pixels, where they are thresholded.
    The result is the same to the bit for any number of threads, and a slice's result does not depend on
    the slices beside it.

    Parameters
    ----------
    image : array, path, nibabel image or Volume
        2D (one slice) or 3D, of any real dtype. Arrays of other libraries are read through ``__array__`` or
        ``__dlpack__`` where they are on the CPU; coordinates that they carry, as xarray's do, are not used. An array
        without ``affine``, also from a ``.npy`` file, is taken
        to be in the model's orientation and spacing: for ``"RAS"``, axes that grow to the patient's right, front
        and head. A picture (PNG, TIFF, JPEG) is taken to be of a slice as the model cuts them, shown as radiologists
        look at it: the patient's right, or front, on the left. A model that learnt ``"display"`` slices takes an
        image in the plane in which it was acquired, and an array as rows, columns and slices.
        `pynca.volumes.read_volume` says what files it reads;
        a Volume is what it returns, with four axes for a film.
    model : Model, str or path
        A model, the name of a bundled one, or the path of a model file. Default ``"hippocampus"``.
    axis : int, optional
        Slice along this axis of the image instead of the model's. A 3D array whose last axis is 3 or 4
        may be a colour picture and is refused unless this is given. So is one without ``affine`` for a model of single
        slices, if its shape does not show that they follow each other along the model's axis: pictures that were
        stacked, ``np.stack(pictures)``, need ``axis=0``. A list of pictures is refused; give one at a time.
    affine : array, optional
        (4, 4), from voxel indices to patient coordinates in mm (RAS+), for a 3D array.
    spacing : float or sequence of float, optional
        Size of a picture's pixels in mm, one for all axes or one for each. Default: the model's, with a warning.
    seed : int
        Seed of the fire masks, 0 to 2**64 - 1. Default 0.
    samples : int
        Number of runs with different fire masks, whose logits are averaged; with more than 1 the
        result has ``uncertainty`` and ``nqm``. Default 1, at most 4096.
    threads : int, optional
        Number of threads. Default: ``PYNCA_NUM_THREADS``, else the CPUs this process may use.
    memory : int, optional
        Bytes that the process may take, with what it holds already. Slices then go through in smaller
        parts, and a run that cannot fit is refused before it starts. The result does not depend on it.
        Default: what this machine has left.
    progress : bool or callable
        Show a progress bar where standard error is a terminal; or call this with the share that is done,
        from 0 to 1. Default False.
    strict : bool
        Refuse an image that the model cannot have been made for (`pynca.inputs.check_input`) instead of warning of
        it. Default False.

    Returns
    -------
    Segmentation

    Raises
    ------
    ValueError, TypeError
        The image or an argument has the wrong shape, type or range, the file is damaged, or the run does
        not fit into ``memory``; or a run did not stay finite; or, with ``strict``, the model was not made for the
        image.
    OSError
        A file does not exist or cannot be read.
    ImportError
        The library that reads the file's format is not installed.

    Warns
    -----
    UserWarning
        The model was not made for the image; or the file does not say how large its pixels are; or as
        `pynca.volumes.read_volume`.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model)
    if not isinstance(model, Model):
        raise TypeError(f"model is of type {type(model).__name__}; it must be a Model or the path of a model file")
    if model.input_channels != 1:
        raise ValueError(
            f"the model takes {model.input_channels} image channels; only models of one can segment an image, "
            "use model.logits"
        )
    samples = whole_number(samples, "samples", 1, _core.MAX_SAMPLES)
    threads = thread_count(threads)
    if memory is not None:
        memory = whole_number(memory, "memory", 1, 2**63 - 1)
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "dataobj"):
        check_memory(
            cast("str | SpatialImage", image), model, axis=axis, samples=samples, threads=threads, memory=memory
        )
    data, volume = _open(image, affine, spacing)
    view = slicing(data.shape, volume, axis, model)
    volumes = view(data)
    films, count, *size = volumes.shape
    name = "the image" if volume is None else volume.name
    step = slices_a_call(volumes.shape, model, samples=samples, threads=threads, memory=memory_limit(memory), name=name)
    _check_expected(volume or Volume(data, None, None, "the image"), model, axis=axis, strict=strict)
    if volume is not None and volume.voxel_size is None:
        volume = sized(volume, model)
        _warn_of_spacing(volume.spacing or ())

    value = next(iter(model.labels))
    limit = math.log(model.threshold / (1.0 - model.threshold))
    mask = np.empty(data.shape, np.uint8)
    probability = np.empty(data.shape, np.float32)
    uncertainty = np.empty(data.shape, np.float32) if samples > 1 else None
    totals = np.empty((2, films, count))
    report = progress if callable(progress) else None
    with Progress(films * count * samples, "segmenting", enabled=progress is True, report=report) as bar:
        for film, first in itertools.product(range(films), range(0, count, step)):
            part = film, slice(first, min(first + step, count))
            prepared = model.preparation.prepare(volumes[part])[..., None]
            indices = np.arange(part[1].start, part[1].stop, dtype=np.uint32)
            ensemble = Ensemble()
            with _finite(name):
                for sample in range(samples):
                    small = model.batch_logits(
                        prepared,
                        samples=np.full(len(indices), sample, np.uint32),
                        slices=indices,
                        seed=seed,
                        threads=threads,
                    )
                    ensemble.add(model.preparation.restore(small, (size[0], size[1])))
                    bar.advance(len(indices))
                model.check_stayed_finite(ensemble.logits)
            view(mask)[part] = (ensemble.logits > limit) * np.uint8(value)
            view(probability)[part] = sigmoid(ensemble.logits)
            if uncertainty is not None:
                view(uncertainty)[part] = ensemble.uncertainty()
                totals[(slice(None), *part)] = ensemble.totals()
    for slices in view(mask) if model.postprocessing else ():
        slices[...] = postprocess(slices > 0, model.postprocessing) * np.uint8(value)
    nqms = () if uncertainty is None else tuple(nqm(totals[:, film]) for film in range(films))
    return Segmentation(
        mask=mask,
        probability=probability,
        uncertainty=uncertainty,
        nqm=None if uncertainty is None else largest_nqm(nqms),
        labels=dict(model.labels),
        volume=volume,
        image=data,
        samples=samples,
        frame_nqm=nqms if data.ndim > 3 else (),
        axis=axis,
    )


@contextmanager
def _finite(name: str) -> Iterator[None]:
    """Let what leaves float32 be refused with the image's name, not warned of by NumPy."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except NotFinite as problem:
        raise NotFinite(f"{name}: {problem}") from None


def check_memory(
    image: str | os.PathLike[str] | SpatialImage,
    model: Model,
    *,
    axis: int | None = None,
    which: int | Literal["all"] | None = None,
    samples: int = 1,
    threads: int | None = None,
    memory: int | None = None,
) -> None:
    """Refuse a file that cannot be segmented within so many bytes, or on this machine, before its voxels are read.

    Where the header does not tell, nothing is refused.

    Parameters
    ----------
    image, model, axis, samples, threads, memory
        As of `predict`.
    which : int or "all", optional
        As ``volume`` of `pynca.volumes.read_volume`.

    Raises
    ------
    ValueError
        It does not fit; the sentence says what would.
    """
    # The headers of a series are its files: reading them twice takes longer than is saved where memory is enough
    late = memory is None and isinstance(image, (str, os.PathLike)) and is_dicom(Path(image))
    outline = None if late else read_outline(image, volume=which)
    if outline is None:
        return
    shape = slicing(outline.data.shape, outline, axis, model)(outline.data).shape
    slices_a_call(
        shape,
        model,
        samples=samples,
        threads=thread_count(threads),
        memory=memory_limit(memory),
        voxels=outline.data.nbytes,
        reading=outline.reading,
        name=outline.name,
    )


def _open(
    image: Image, affine: ArrayLike | None, spacing: float | Sequence[float] | None
) -> tuple[NDArray[Any], Volume | None]:
    """Return the voxels, and where they lie if anything says so."""
    if isinstance(image, (str, os.PathLike, Volume)) or hasattr(image, "dataobj"):
        if affine is not None:
            raise ValueError("affine goes with an array; a file brings its own")
        if isinstance(image, Volume):
            if spacing is not None:
                raise ValueError("spacing goes with the path of a picture; a Volume brings its own")
            return image.data, image
        volume = read_volume(cast("str | SpatialImage", image), spacing=spacing)
        return volume.data, volume
    if spacing is not None:
        raise ValueError("spacing goes with the path of a picture; give affine= with an array")
    if isinstance(image, (list, tuple)) and image and _is_image(image[0]):
        raise TypeError(
            f"the image is a {type(image).__name__} of {len(image)} images, which are no volume; give one at a time, "
            "as in [pynca.segment(image, model) for image in images], or a volume as one array"
        )
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("the image is a masked array; fill what is masked, for example with image.filled(0)")
    data = _array(image)
    if data.dtype.kind not in "fiub":
        raise TypeError(f"the image has dtype {data.dtype}; it must hold real numbers")
    if data.ndim not in (2, 3) or 0 in data.shape:
        raise ValueError(
            f"the image has shape {data.shape}; it must be a slice (H, W) or a volume (H, W, D), not empty"
        )
    check_finite(data, "the image")
    if affine is None:
        return data, None
    matrix = np.asarray(affine)
    if matrix.dtype.kind not in "fiu":
        raise TypeError(f"affine has dtype {matrix.dtype}; it must hold real numbers")
    if data.ndim != 3 or matrix.shape != (4, 4):
        raise ValueError(
            f"affine has shape {matrix.shape} and the image {data.shape}; an affine is (4, 4) and goes with a volume"
        )
    with about("the image"):
        return data, Volume(data, checked_affine(matrix), None, "the image")


def _is_image(value: object) -> bool:
    """Tell whether an element of a list is an image by itself, and not a row of one."""
    if isinstance(value, (str, os.PathLike, Volume)) or hasattr(value, "dataobj"):
        return True
    return len(getattr(value, "shape", ())) > 1


def _array(image: object) -> NDArray[Any]:
    """Return an array of any library as one of NumPy's, without a copy where that can be."""
    own = hasattr(image, "__array__")
    foreign = own or hasattr(image, "__dlpack__")
    try:
        array: NDArray[Any] = np.from_dlpack(image) if foreign and not own else np.asarray(image)  # type: ignore[arg-type]
    except Exception as problem:  # each library refuses in its own way
        if not foreign:
            raise ValueError(
                f"the image is a {type(image).__name__} whose rows differ in length; it must be a slice (H, W) or a "
                "volume (H, W, D)"
            ) from None
        kind = f"{type(image).__module__.partition('.')[0]}.{type(image).__name__}"
        raise TypeError(
            f"the image is a {kind} that NumPy cannot read ({' '.join(str(problem).split())}); give it on the CPU, "
            "free of gradients and in a dtype that NumPy has, as image.detach().cpu().float() is of torch"
        ) from problem
    return array


def slicing(
    shape: tuple[int, ...], volume: Volume | None, axis: int | None, model: Model
) -> Callable[[NDArray[Scalar]], NDArray[Scalar]]:
    """Return how to view an array of the image's shape as the slices that the model learnt to see.

    The view is (volumes, slices, rows, columns); an image that is no film is one volume.
    """
    axes = len(shape)
    if axis is not None:
        if axes == 2:
            raise ValueError("axis says how to slice a volume; the image is a single slice")
        axis = whole_number(axis, "axis", -3, 2) % 3
    located = volume is not None and (volume.affine is not None or volume.picture)
    if axes == 2 and not located:
        return lambda array: array[None, None]
    name = "the image" if volume is None else volume.name
    if not located and axis is None and shape[-1] in (3, 4):
        raise ValueError(
            f"{name} has shape {shape} and may be a colour picture; convert it to grey, or give axis= if it is a volume"
        )
    if not located and axis is None:
        _check_stack(shape, name, None if volume is None else volume.spacing, model)
    way = Orientation.of(volume, model.preparation.orientation, model.preparation.axis, axis)
    along = model.preparation.axis if axis is None else way.axes[axis]

    def view(array: NDArray[Scalar]) -> NDArray[Scalar]:
        slices = np.moveaxis(way.apply(array[(..., *[None] * (3 - axes))]), along, 0)
        return np.moveaxis(slices, 3, 0) if axes == 4 else slices[None]

    return view


def _check_stack(shape: tuple[int, ...], name: str, spacing: Sequence[float] | None, model: Model) -> None:
    """Refuse an array whose slices do not seem to follow each other along the axis that the model slices.

    Nothing but its shape tells pictures that were stacked, (N, rows, columns), from rows, columns and slices.
    """
    along = model.preparation.axis
    seems = slices_along(shape[:3], spacing, model)
    if along in seems and len(seems) == 1:
        return
    loop = "[pynca.segment(picture, model) for picture in pictures] takes one at a time"
    if len(seems) == 1:
        who = model.card.name or "the model"
        problem = f"its slices seem to follow each other along axis {seems[0]}, and {who} takes them along axis {along}"
        advice = f"axis={seems[0]} says that they do, {loop}"
    else:
        problem = "which does not tell along which axis its slices follow each other"
        advice = f"axis= says it, such as axis=0 of np.stack, {loop}"
    raise ValueError(
        f"{name} has shape {shape}, {problem}; {advice}; a picture a file, a TIFF of several pages and NIfTI say it "
        "themselves"
    )


def _check_expected(image: Volume, model: Model, *, axis: int | None, strict: bool) -> None:
    """Refuse an image that the model was not made for, or warn of it."""
    problems = check_input(image, model, axis=axis)
    if problems and strict:
        others = f"bundled models are {', '.join(names())}"
        raise NotMadeFor(f"{'; '.join(problems)}; {others}; strict=False goes on anyway")
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=3)


def sized(volume: Volume, model: Model) -> Volume:
    """Return the volume with the model's spacing, if it has none."""
    if volume.voxel_size is not None:
        return volume
    preparation, axes = model.preparation, volume.data.ndim
    way = Orientation.of(volume, preparation.orientation, preparation.axis)
    order = list(way.axes) if volume.picture or axes > 2 else [n for n in range(3) if n != preparation.axis]
    return replace(volume, spacing=tuple(preparation.spacing[n] for n in order[:axes]))


def _warn_of_spacing(spacing: Sequence[float]) -> None:
    told = " x ".join(f"{mm:g}" for mm in spacing)
    warnings.warn(
        f"pictures and arrays do not say how large their pixels are: the model's {told} mm are assumed; "
        "spacing= says otherwise",
        UserWarning,
        stacklevel=3,
    )
