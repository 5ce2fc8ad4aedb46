"""One training step of Med-NCA: pynca against the papers' arithmetic in PyTorch, same batch, masks and threads.

    python benchmarks/training_step.py [--channels 32] [--batch 16] [--threads 2] [--repeats 7]

A step is the forward pass of both levels (the fine one on a 32x32 patch), the loss, the gradient of all weights and
Adam. Loss and gradients of both are compared before anything is timed. Times are medians; each side runs in a process
of its own, whose peak memory above the bare interpreter with its libraries is printed beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pynca
from pynca import _core
from pynca.training.optimizers import Adam
from pynca.training.pipeline import initial_weights, loss_and_gradients, rules_of
from pynca.training.recipe import Recipe
from pynca.training.sampling import cut

SIZE = (64, 64)


def problem(recipe: Recipe) -> dict[str, Any]:
    random = np.random.default_rng(0)
    images = random.random((recipe.batch, *SIZE)).astype(np.float32)
    labels = (random.random((recipe.batch, *SIZE)) < 0.3).astype(np.float32)
    places = random.integers(0, (SIZE[0] - recipe.patch[0]) // 4 + 1, (recipe.batch, 2)) * 4
    weights = initial_weights(recipe)
    for level in weights:
        level["fc1.weight"] += random.normal(scale=0.02, size=level["fc1.weight"].shape).astype(np.float32)
    masks = [
        pynca.fire_mask((recipe.batch, *size), steps, level=n)
        for n, (size, steps) in enumerate(zip(((SIZE[0] // 4, SIZE[1] // 4), recipe.patch), recipe.steps, strict=True))
    ]
    return {"images": images, "labels": labels, "places": places, "weights": weights, "masks": masks}


def with_pynca(recipe: Recipe, p: dict[str, Any], threads: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    levels, optimizers = list(p["weights"]), [Adam(), Adam()]

    def differentiate() -> tuple[float, list[dict[str, np.ndarray]]]:
        return loss_and_gradients(
            rules_of(levels, recipe), recipe, p["images"], p["labels"], p["places"], 0, threads, p["masks"]
        )

    def step() -> None:
        _, gradients = differentiate()
        for n in (0, 1):
            levels[n] = optimizers[n].update(levels[n], gradients[n], 1.6e-3)

    return step, differentiate


def with_torch(recipe: Recipe, p: dict[str, Any], threads: int) -> tuple[Callable[[], None], Callable[[], Any]]:
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(threads)
    levels = [{k: torch.tensor(v, requires_grad=True) for k, v in level.items()} for level in p["weights"]]
    adams = [torch.optim.Adam(level.values(), lr=1.6e-3, betas=(0.5, 0.5)) for level in levels]
    masks = [torch.tensor(m, dtype=torch.float32) for m in p["masks"]]
    images = torch.tensor(p["images"])
    places = p["places"].tolist()
    target = torch.tensor(cut(p["labels"], p["places"], recipe.patch))
    rows, columns = recipe.patch

    def run(w: dict[str, torch.Tensor], state: torch.Tensor, fires: torch.Tensor) -> torch.Tensor:
        # as the papers' BackboneNCA: channels last between steps, every cell computed, then masked
        for fire in fires:
            x = f.pad(state.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="reflect")
            seen = [f.conv2d(x, w[f"{n}.weight"], w[f"{n}.bias"]).permute(0, 2, 3, 1) for n in ("p0", "p1")]
            hidden = torch.relu(f.linear(torch.cat([state, *seen], -1), w["fc0.weight"], w["fc0.bias"]))
            after = state + f.linear(hidden, w["fc1.weight"]) * fire[..., None]
            state = torch.cat([state[..., :1], after[..., 1:]], -1)
        return state

    def loss() -> torch.Tensor:
        small = f.interpolate(images[:, None], scale_factor=0.25, mode="bilinear", align_corners=False)
        state = torch.zeros((recipe.batch, SIZE[0] // 4, SIZE[1] // 4, recipe.channels))
        state = torch.cat([small.permute(0, 2, 3, 1), state[..., 1:]], -1)
        state = run(levels[0], state, masks[0]).repeat_interleave(4, 1).repeat_interleave(4, 2)
        parts = [torch.cat([images[n, :, :, None], state[n, ..., 1:]], -1) for n in range(recipe.batch)]
        state = torch.stack([part[y : y + rows, x : x + columns] for part, (y, x) in zip(parts, places, strict=True)])
        q = torch.sigmoid(run(levels[1], state, masks[1])[..., 1])
        dice = 1 - (2 * (q * target).sum() + 1) / (q.sum() + target.sum() + 1)
        return dice + f.binary_cross_entropy(q, target)

    def differentiate() -> tuple[float, list[dict[str, np.ndarray]]]:
        for adam in adams:
            adam.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach()), [{k: w.grad.numpy().copy() for k, w in level.items()} for level in levels]

    def step() -> None:
        differentiate()
        for adam in adams:
            adam.step()

    return step, differentiate


SIDES = {"pynca": with_pynca, "torch": with_torch}


def measure(side: str, recipe: Recipe, threads: int, repeats: int) -> dict[str, float]:
    """Time and peak memory of one side, in this process."""
    step, _ = SIDES[side](recipe, problem(recipe), threads)
    before = memory("VmRSS")
    step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times), "megabytes": memory("VmHWM") - before}


def memory(field: str) -> float:
    """Megabytes that Linux counts for this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def compare(recipe: Recipe, threads: int) -> None:
    p = problem(recipe)
    ours, theirs = (make(recipe, p, threads)[1]() for make in SIDES.values())
    assert abs(ours[0] - theirs[0]) < 1e-5, (ours[0], theirs[0])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        for name, gradient in mine.items():
            assert np.abs(gradient - other[name]).max() <= 1e-3 * np.abs(other[name]).max(), name
    print(f"loss and gradients agree (loss {ours[0]:.6f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    recipe = Recipe(channels=arguments.channels, hidden=arguments.hidden, batch=arguments.batch)
    if arguments.side:
        print(json.dumps(measure(arguments.side, recipe, arguments.threads, arguments.repeats)))
        return
    compare(recipe, arguments.threads)
    results = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side]
        for name in ("channels", "hidden", "batch", "threads", "repeats"):
            command += [f"--{name}", str(getattr(arguments, name))]
        results[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"channels {recipe.channels}, batch {recipe.batch}, {arguments.threads} threads, {_core.isa()}")
    for side, result in results.items():
        print(f"{side:6} {result['seconds'] * 1e3:8.1f} ms a step, {result['megabytes']:7.0f} MB above its libraries")
    ratio = results["torch"]["seconds"] / results["pynca"]["seconds"]
    print(f"pynca is {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
