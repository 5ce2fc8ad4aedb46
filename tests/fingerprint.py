"""Results that are the same bits for ever, on every CPU with fused multiply-add, and their hashes.

`tests/golden/fused.json` keeps the hashes, `tests/golden/unfused.json` those of the instruction set `baseline`, which
rounds a product before it is added. `test_golden.py` compares with them. As a script this prints the hashes of the
instruction set that PYNCA_ISA names, for `.ci/arm64` and `.ci/wheels` to compare between machines; with ``--keep`` it
writes those of new cases into the file, and refuses where one that was kept differs.

Everything that goes in is drawn as whole numbers and scaled by powers of two, so that it depends neither on NumPy's
version nor on the CPU.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

import pynca
from pynca import _core, zoo
from pynca.phantom import hippocampus_phantom
from pynca.training import tape
from pynca.training._gradient import orthogonalized
from pynca.training.ahead import Batch, Batches
from pynca.training.fit import State, train_batch
from pynca.training.optimizers import OPTIMIZERS
from pynca.training.pipeline import initial_weights
from pynca.training.recipe import Recipe
from pynca.training.sampling import generator
from support import DATA, random_weights

FOLDER = Path(__file__).parent / "golden"
Hashes = dict[str, str]


def file_of(isa: str) -> Path:
    return FOLDER / ("unfused.json" if isa == "baseline" else "fused.json")


def kept(isa: str) -> Hashes:
    """The hashes that an instruction set must give."""
    hashes: Hashes = json.loads(file_of(isa).read_text())
    return hashes


def hashed(name: str, array: np.ndarray) -> str:
    if not np.isfinite(array).all():
        raise AssertionError(f"{name} holds values that are not finite: hashes of them mean nothing")
    if array.size == 0 or (array == array.flat[0]).all():
        raise AssertionError(f"{name} holds one value only: its hash means nothing")
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


# --- what goes in --------------------------------------------------------------------------------------------


def words(count: int, seed: int) -> np.ndarray:
    """64-bit words (splitmix64): whole numbers, by wrapping arithmetic alone."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def exact(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    """float32 within a power of two; every bit of the significand is in use: what is rounded differently shows."""
    whole = (words(math.prod(shape), seed) >> np.uint64(40)).astype(np.int64) - 2**23
    return (whole * (scale * 2.0**-23)).astype(np.float32).reshape(shape)


def weights(perception: str, channels: int, hidden: int, kernel_size: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {n: w.shape for n, w in random_weights(perception, channels, hidden, kernel_size=kernel_size).items()}
    return {
        name: exact(shape, 1000 * seed + 100 * channels + n, 2.0 ** -(math.prod(shape[1:]).bit_length() // 2))
        for n, (name, shape) in enumerate(shapes.items())
    }


def rule(perception: str, channels: int, hidden: int, *, kernel_size: int = 3, **options: Any) -> pynca.Rule:
    return pynca.Rule(weights(perception, channels, hidden, kernel_size), perception=perception, **options)  # type: ignore[arg-type]


PERCEPTIONS = [("sobel", 3), ("conv", 1), ("conv", 3), ("conv", 5), ("conv", 7)]
PADDINGS = ["zero", "reflect"]
WIDTHS = [(16, 128), (32, 128), (13, 37), (3, 5)]  # channels, hidden
SIZES = [(21, 30), (48, 40), (5, 97)]


# --- what comes out ------------------------------------------------------------------------------------------


def results() -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of everything that needs no real files, computed with the instruction set in use."""
    yield from states()
    yield from fire_masks()
    yield from gradients()
    yield from trainings()
    yield from models()


def states() -> Iterator[tuple[str, np.ndarray]]:
    for (kind, size), padding in itertools.product(PERCEPTIONS, PADDINGS):
        for rate, inputs in ((0.5, 0), (0.5, 1), (0.5, 3), (0.0, 1), (1.0, 1)):
            some = rule(kind, 10, 40, kernel_size=size, padding=padding, input_channels=inputs, fire_rate=rate)
            start = exact((3, 17, 22, 10), 1)
            last = some.run(start, 5, seed=2**63 + 5, threads=3)
            assert (last == start).all() == (rate == 0)
            yield f"state {kind} {size} {padding} fire rate {rate} images {inputs}", last
    for kind, (channels, hidden), size2 in itertools.product(["sobel", "conv"], WIDTHS, SIZES):
        last = rule(kind, channels, hidden).run(exact((*size2, channels), 2), 8, seed=7, threads=1)
        yield f"state {kind} {channels} {hidden} {size2[0]} x {size2[1]}", last


def fire_masks() -> Iterator[tuple[str, np.ndarray]]:
    for rate in (0.1, 0.5, 0.8):
        mask = pynca.fire_mask((3, 37, 53), 9, fire_rate=rate, seed=11, level=3, sample=2, z=19)
        yield f"fire mask {rate}", mask


def gradients() -> Iterator[tuple[str, np.ndarray]]:
    """Of a start whose cells are repeated, with an image on top where the rule has one, in more members than slots."""
    for (kind, size), padding, inputs in itertools.product(PERCEPTIONS, PADDINGS, (0, 1, 3)):
        some = rule(kind, 6, 19, kernel_size=size, padding=padding, input_channels=inputs)
        image = exact((2, 18, 20), 3) if inputs else None
        yield from gradient(f"{kind} {size} {padding} images {inputs}", some, (2, 9, 10, 6), image, 2)
    for kind, (channels, hidden) in itertools.product(["sobel", "conv"], WIDTHS):
        some = rule(kind, channels, hidden)
        count = 37 if channels < 16 else 3
        yield from gradient(f"{kind} {channels} {hidden} batch {count}", some, (count, 19, 22, channels), None, 1)
    for shape in ((24, 216), (96, 72), (1, 5)):
        yield f"orthogonalized {shape[0]} x {shape[1]}", orthogonalized(exact(shape, 4))


def gradient(
    name: str, some: pynca.Rule, shape: tuple[int, ...], image: np.ndarray | None, scale: int
) -> Iterator[tuple[str, np.ndarray]]:
    of_weights, start = tape.Weights(some), tape.Node(exact(shape, 5))
    last = tape.nca(of_weights, start, 4, image=image, scale=scale, seed=4, threads=2)
    logits = tape.channels(last, some.input_channels, some.input_channels + 1)
    tape.loss("dice_bce", logits, (exact(logits.value.shape, 6) < 0).astype(np.float32)).backward()
    assert start.gradient is not None
    for part, value in {**of_weights.gradients, "start": start.gradient}.items():
        yield f"gradient {name} of {part}", value


class Drawn:
    """Batches (`pynca.training.ahead.Batches`) of discs, by whole numbers, in place of images that are varied."""

    def draw(self, attempt: int, number: int) -> Batch:
        centres = 4 + (words(8, 50 + number) % np.uint64(9)).astype(np.int64).reshape(4, 2, 1, 1)
        y, x = np.mgrid[:16, :16]
        labels = ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 12).astype(np.float32)
        images = labels * np.float32(0.5) + np.float32(0.25) + exact(labels.shape, 60 + number, 0.125)
        return Batch(images, labels, generator(3, attempt, number))


def trainings() -> Iterator[tuple[str, np.ndarray]]:
    """Ten batches of each optimizer: of a patch, and of all levels without the patch's border."""
    plain = Recipe(channels=6, hidden=12, steps=(4, 4), patch=(8, 8), batch=4, batches=10, fall="linear", rate=2**-8)
    ways = {"plain": plain, "all levels": replace(plain, border=2, supervision=0.5, on_errors=0.25, loss="dice_focal")}
    for optimizer, (way, recipe) in itertools.product(OPTIMIZERS, ways.items()):
        state = State.start(replace(recipe, optimizer=optimizer))
        state.levels = [
            {n: exact(w.shape, 70 + k + 10 * level, 0.25) for k, (n, w) in enumerate(drawn.items())}
            for level, drawn in enumerate(initial_weights(recipe))
        ]
        state.average = list(state.levels)
        preparation = pynca.Preparation((16, 16), shrink="mean" if recipe.border else "linear")
        losses = [
            train_batch(state, cast(Batches, Drawn()), replace(recipe, optimizer=optimizer), preparation, 2)
            for _ in range(recipe.batches)
        ]
        yield f"training {optimizer} {way} losses", np.array(losses)
        for level, (last, average) in enumerate(zip(state.levels, state.average, strict=True)):
            for kind, arrays in (("weights", last), ("average", average)):
                flat = np.concatenate([w.ravel() for w in arrays.values()])
                yield f"training {optimizer} {way} {kind} of level {level}", flat


def heart() -> np.ndarray:
    """A short-axis slice: lungs, the body around them, the liver, two chambers full of blood, the muscle of one."""
    y, x = np.mgrid[:256, :256]
    picture = np.full((256, 256), 3) + np.abs(exact((256, 256), 80, 3.0).astype(np.int64))
    for centre, radii, grey in (
        *(((128, 128), (108, 108), 150), ((128, 128), (100, 100), 40), ((112, 112), (92, 84), 6)),
        *(((176, 186), (60, 26), 42), ((90, 196), (22, 26), 75)),
        *(((140, 122), (36, 42), 90), ((140, 122), (33, 39), 10), ((152, 106), (18, 20), 85)),
        *(((138, 134), (26, 24), 28), ((138, 134), (18, 17), 92)),
    ):
        down, across = ((y - centre[0]) * radii[1]) ** 2, ((x - centre[1]) * radii[0]) ** 2
        picture[down + across < (radii[0] * radii[1]) ** 2] += grey - picture[centre]
    return picture.clip(0, 255).astype(np.uint8)


IMAGES: dict[str, Callable[[], np.ndarray]] = {
    # in whole numbers, whose last bits no library decides
    "hippocampus": lambda: np.rint(hippocampus_phantom()[0])[:, :, 14:22],
    "cardiac-lv": heart,
}


def models() -> Iterator[tuple[str, np.ndarray]]:
    """Mask and probability of each bundled model on a picture made here."""
    for name in zoo.names():
        image = IMAGES[name]()
        result = pynca.predict(image, name, seed=3)
        yield f"model {name} mask", result.mask
        yield f"model {name} probability", result.probability


REAL = {
    "hippocampus": DATA / "hippocampus/images/hippocampus_001.nii.gz",
    "cardiac-lv": DATA / "cardiac/images/SC-HF-I-01_0059.png",
}


def real_results() -> Iterator[tuple[str, np.ndarray]]:
    """Mask and probability of each bundled model on a real scan."""
    for name, path in REAL.items():
        options: dict[str, Any] = {"spacing": 1.37} if path.suffix == ".png" else {}
        result = pynca.predict(path, name, seed=3, **options)
        yield f"model {name} mask of {path.name}", result.mask
        yield f"model {name} probability of {path.name}", result.probability


def main() -> None:
    hashes = {name: hashed(name, array) for name, array in results()}
    if sys.argv[1:] != ["--keep"]:
        for name, value in hashes.items():
            print(value, name)
        return
    path = file_of(_core.isa())
    before = kept(_core.isa()) if path.is_file() else {}
    if DATA.is_dir():
        hashes |= {name: hashed(name, array) for name, array in real_results()}
    changed = [name for name, value in hashes.items() if before.get(name, value) != value]
    if changed:
        sys.exit(f"these results are no longer the bits that they were: {', '.join(changed)}")
    path.write_text(json.dumps(before | hashes, indent=0) + "\n")


if __name__ == "__main__":
    main()
