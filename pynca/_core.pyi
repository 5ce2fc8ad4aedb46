from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAX_STEPS: int
MAX_LEVELS: int
MAX_SAMPLES: int

class CompiledRule:
    def __init__(
        self,
        perception: str,
        padding: str,
        input_channels: int,
        fire_rate: float,
        weights: Mapping[str, NDArray[np.float32]],
    ) -> None: ...

def run(
    rule: CompiledRule,
    state: NDArray[np.float32],
    steps: int,
    masks: NDArray[np.uint8] | None,
    seed: int,
    level: int,
    samples: NDArray[np.uint32],
    slices: NDArray[np.uint32],
    threads: int,
) -> None: ...
def fire_mask(
    out: NDArray[np.uint8],
    fire_rate: float,
    seed: int,
    level: int,
    samples: NDArray[np.uint32],
    slices: NDArray[np.uint32],
) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def half_isas() -> list[str]: ...
def x86_isas(features: int, extended: int, saved: int) -> list[str]: ...
def select_isa(name: str | None) -> None: ...
def peak_flops(threads: int = 1, seconds: float = 0.1) -> float: ...
def build_info() -> dict[str, str]: ...
def lend() -> object: ...
