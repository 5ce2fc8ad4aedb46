from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

def reuse_memory(more: bool) -> None: ...
def sigmoid_and_softplus(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def orthogonalized(matrix: NDArray[np.float32]) -> NDArray[np.float32]: ...

class Rollout:
    def __init__(
        self,
        perception: str,
        padding: str,
        input_channels: int,
        fire_rate: float,
        weights: Mapping[str, NDArray[np.float32]],
        start: NDArray[np.float32],
        image: NDArray[np.float32] | None,
        scale: int,
        steps: int,
        masks: NDArray[np.uint8] | None,
        seed: int,
        level: int,
        samples: NDArray[np.uint32],
        slices: NDArray[np.uint32],
        wanted: NDArray[np.uint8] | None,
        threads: int,
    ) -> None: ...
    @property
    def final_state(self) -> NDArray[np.float32]: ...
    def backward(self, gradient: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]: ...
