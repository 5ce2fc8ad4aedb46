"""The optimizers of `pynca.training.optimizers` in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pynca.training.recipe import Recipe


def stepper(level: Mapping[str, Any], recipe: Recipe) -> Callable[[], None]:
    """Return what steps the weights of one level by their gradients, as the recipe says."""
    import torch

    muon = recipe.optimizer == "muon"
    matrices = [w for w in level.values() if muon and w.ndim > 1]
    momenta = [torch.zeros_like(w) for w in matrices]
    adam = torch.optim.Adam([w for w in level.values() if not muon or w.ndim == 1], lr=recipe.rate, betas=recipe.betas)
    keep = recipe.betas[0]

    def step() -> None:
        adam.step()
        with torch.no_grad():
            for weight, momentum in zip(matrices, momenta, strict=True):
                momentum.lerp_(weight.grad, 1 - keep)
                ahead = weight.grad.lerp(momentum, keep).flatten(1)
                turned = orthogonalized(ahead).view_as(weight)
                weight.sub_(turned, alpha=0.2 * recipe.rate * math.sqrt(max(ahead.shape)))

    return step


def orthogonalized(matrix: Any) -> Any:
    """Five steps of Newton and Schulz, the smaller side first."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
