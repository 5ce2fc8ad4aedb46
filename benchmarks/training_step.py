"""One training step of Med-NCA: pynca against the papers' arithmetic in PyTorch, same batch, masks and threads.

    python benchmarks/training_step.py [--recipe hippocampus] [--channels 32] [--batch 16] [--threads 2] [--repeats 7]
        [--rounds 3]

A step is the forward pass of all levels (the finest on patches), the loss, the gradient of all weights and a step
of the recipe's optimizer: of slices of 64x64, or with `--recipe cardiac` of what `pynca train` chooses for 256x256:
three levels, all of them judged, and a border of the patches that is not. Loss and gradients are compared before
anything is timed. Times are medians; the sides take turns, so that a slow spell of a shared machine meets all of them.
Each turn is a process of its own, whose peak memory above the bare interpreter with its libraries is printed beside.
PyTorch runs twice: as the papers' code computes, and with both perceptions as one convolution.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pynca
from peer_optimizer import stepper
from peer_torch import entered, fused_step, papers_step, shrunk
from pynca import _core
from pynca.training._gradient import reuse_memory
from pynca.training.optimizers import OPTIMIZERS, Arrays
from pynca.training.pipeline import initial_weights, loss_and_gradients, rules_of
from pynca.training.recipe import Recipe

# Size of prepared slices, and how they are brought to the coarse levels
RECIPES = {"hippocampus": ((64, 64), "linear"), "cardiac": ((256, 256), "mean")}

# What `pytest --benchmark` measures: the bundled hippocampus model's channels, the papers', and the recipe for 256x256
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "conv16": ("hippocampus", {"channels": 16}),
    "conv32": ("hippocampus", {}),
    "cardiac": ("cardiac", {}),
}

# A step, and what it differentiates: loss and gradients
Side = tuple[Callable[[], None], Callable[[], tuple[float, list[Arrays]]]]


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch with all that its loss depends on."""

    recipe: Recipe
    shrink: str
    images: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    weights: list[Arrays]
    masks: list[np.ndarray]


def problem(name: str, **changes: Any) -> Problem:
    """Random slices for a recipe by its name, with some changes."""
    size, shrink = RECIPES[name]
    recipe = Recipe.for_size(size, **changes)
    random = np.random.default_rng(0)
    images = random.random((recipe.batch, *size)).astype(np.float32)
    labels = (random.random((recipe.batch, *size)) < 0.3).astype(np.float32)
    ends = [(side - part) // recipe.above + 1 for side, part in zip(size, recipe.patch, strict=True)]
    places = random.integers(0, ends, (recipe.batch, 2)) * recipe.above
    weights = initial_weights(recipe)
    for level in weights:
        level["fc1.weight"] += random.normal(scale=0.02, size=level["fc1.weight"].shape).astype(np.float32)
    cells = [*((size[0] // scale, size[1] // scale) for scale in recipe.scales[:-1]), recipe.patch]
    masks = [
        pynca.fire_mask((recipe.batch, *part), steps, level=n)
        for n, (part, steps) in enumerate(zip(cells, recipe.steps, strict=True))
    ]
    return Problem(recipe, shrink, images, labels, places, weights, masks)


def case(name: str) -> Problem:
    recipe, changes = CASES[name]
    return problem(recipe, **changes)


def with_pynca(p: Problem, threads: int) -> Side:
    recipe, levels = p.recipe, list(p.weights)
    optimizers = [OPTIMIZERS[recipe.optimizer](recipe.betas) for _ in levels]
    reuse_memory(True)  # as training does

    def differentiate() -> tuple[float, list[Arrays]]:
        return loss_and_gradients(
            rules_of(levels, recipe), recipe, p.images, p.labels, p.places, 0, threads, p.masks,
            shrink=p.shrink, supervision=recipe.supervision,
        )  # fmt: skip

    def step() -> None:
        _, gradients = differentiate()
        for n, (optimizer, gradient) in enumerate(zip(optimizers, gradients, strict=True)):
            levels[n] = optimizer.update(levels[n], gradient, recipe.rate)

    return step, differentiate


def with_torch(p: Problem, threads: int, step_of: Callable[..., Any] = papers_step) -> Side:
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(threads)
    recipe, rules = p.recipe, rules_of(p.weights, p.recipe)
    levels = [{k: torch.tensor(v, requires_grad=True) for k, v in level.items()} for level in p.weights]
    steppers = [stepper(level, recipe) for level in levels]
    masks = [torch.tensor(m, dtype=torch.float32)[..., None] for m in p.masks]
    images, labels, seen = (torch.tensor(array) for array in (p.images, p.labels, judged(p)))
    coarsest = recipe.scales[0]
    start = torch.zeros((recipe.batch, *(side // coarsest for side in p.images.shape[1:]), recipe.channels))

    def patches(arrays: torch.Tensor, scale: int) -> torch.Tensor:
        rows, columns = (side // scale for side in recipe.patch)
        corners = (p.places // scale).tolist()
        return torch.stack([a[y : y + rows, x : x + columns] for a, (y, x) in zip(arrays, corners, strict=True)])

    def run(n: int, state: torch.Tensor) -> torch.Tensor:
        step = step_of(rules[n], levels[n])
        for fires in masks[n]:
            state = step(state, fires)
        return state

    def error(logits: torch.Tensor, target: torch.Tensor, scale: int, seen: torch.Tensor | None = None) -> torch.Tensor:
        q = torch.sigmoid(logits)
        cross = f.binary_cross_entropy(*((q, target) if seen is None else (q[seen], target[seen])))
        if seen is not None:
            q, target = q * seen, target * seen
        over, smooth = ((1, 2), 1 / scale) if recipe.loss == "slice_dice_bce" else ((0, 1, 2), 1.0)
        dice = 1 - (2 * (q * target).sum(over) + smooth) / (q.sum(over) + target.sum(over) + smooth)
        return dice.mean() + cross

    def loss() -> torch.Tensor:
        state, above, total = start, coarsest, torch.zeros(())
        for n, scale in enumerate(recipe.scales[:-1]):
            state = run(n, entered(shrunk(images, scale, p.shrink), state, above // scale))
            if recipe.supervision:
                total = total + recipe.supervision * error(state[..., 1], shrunk(labels, scale, "mean"), scale)
            above = scale
        # cut before cells are repeated: the papers' code repeats those of the whole slice first
        state = run(-1, entered(patches(images, 1), patches(state, above), above))
        return total + error(state[..., 1], patches(labels, 1), 1, seen if recipe.border else None)

    def differentiate() -> tuple[float, list[Arrays]]:
        for level in levels:
            for weight in level.values():
                weight.grad = None
        value = loss()
        value.backward()
        return float(value.detach()), [{k: w.grad.numpy().copy() for k, w in level.items()} for level in levels]

    def step() -> None:
        differentiate()
        for each in steppers:
            each()

    return step, differentiate


def judged(p: Problem) -> np.ndarray:
    """Which pixels of the patches are judged: all but a border, and that too where the slice ends there."""
    border = p.recipe.border

    def along(first: int, side: int, whole: int) -> np.ndarray:
        at = np.arange(side)
        return ((at >= border) | (first == 0)) & ((at < side - border) | (first + side == whole))

    sides = list(zip(p.recipe.patch, p.images.shape[1:], strict=True))
    return np.stack([np.outer(*(along(c, *s) for c, s in zip(corner, sides, strict=True))) for corner in p.places])


PEERS: dict[str, Callable[[Problem, int], Side]] = {
    "PyTorch": with_torch,
    "PyTorch, one convolution": partial(with_torch, step_of=fused_step),
}
SIDES = {"pynca": with_pynca, **PEERS}


def compare(p: Problem, threads: int, peer: str) -> float:
    """Make sure that a peer computes what pynca does, and return the loss."""
    ours, theirs = (SIDES[side](p, threads)[1]() for side in ("pynca", peer))
    assert abs(ours[0] - theirs[0]) < 1e-5, (ours[0], theirs[0])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        for name, gradient in mine.items():
            assert np.abs(gradient - other[name]).max() <= 1e-3 * np.abs(other[name]).max(), name
    return ours[0]


def measure(side: str, p: Problem, threads: int, repeats: int) -> dict[str, Any]:
    """Times and peak memory of one side, in this process."""
    step, _ = SIDES[side](p, threads)
    before = memory("VmRSS")
    step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {"seconds": times, "megabytes": memory("VmHWM") - before}


def memory(field: str) -> float:
    """Megabytes that Linux counts for this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="hippocampus")
    for name in ("channels", "hidden", "batch"):
        parser.add_argument(f"--{name}", type=int, help="default: the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="steps of a turn that are timed (default: 7)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("channels", "hidden", "batch")}
    p = problem(arguments.recipe, **{name: value for name, value in chosen.items() if value is not None})
    if arguments.side:
        print(json.dumps(measure(arguments.side, p, arguments.threads, arguments.repeats)))
        return
    for peer in PEERS:
        print(f"loss and gradients agree with {peer} (loss {compare(p, arguments.threads, peer):.6f})")
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side, done in turns.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = {
        side: statistics.median(step for turn in done for step in turn["seconds"]) for side, done in turns.items()
    }
    print(
        f"{arguments.recipe}: channels {p.recipe.channels}, batch {p.recipe.batch}, {arguments.threads} threads, "
        f"{_core.isa()}"
    )
    for side, done in turns.items():
        peak = max(turn["megabytes"] for turn in done)
        print(
            f"{side:24} {seconds[side] * 1e3:8.1f} ms a step, {p.recipe.batch / seconds[side]:7.1f} slices a second, "
            f"{peak:7.0f} MB above its libraries"
        )
    for peer in PEERS:
        print(f"pynca is {seconds[peer] / seconds['pynca']:.1f} times as fast as {peer}")


if __name__ == "__main__":
    main()
