"""Others that can run the same steps: the papers' arithmetic in libraries that people use, written by us.

A peer is a function of (workload, threads) that returns one of nothing: it runs all steps from the workload's state
with the workload's masks and returns the final state (H, W, C). All compute every cell and multiply by the mask. The
masks are given, so that nobody's time contains drawing them, and in the layout and type that the peer likes best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peer_numpy import with_numpy
from peer_onnx import with_onnxruntime, with_openvino
from peer_torch import with_compiled_torch, with_torch
from workload import Workload

Run = Callable[[], np.ndarray]

PEERS: dict[str, Callable[[Workload, int], Run]] = {
    "PyTorch": with_torch,
    "torch.compile": with_compiled_torch,
    "ONNX Runtime": with_onnxruntime,
    "OpenVINO": with_openvino,
    "NumPy": with_numpy,
}


def difference(run: Run, work: Workload, threads: int) -> float:
    """The largest difference between a peer's result and pynca's, in the largest value of the result."""
    ours = work.rule.run(work.state, work.steps, masks=work.masks, threads=threads)
    return relative(run(), ours)


def relative(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())
