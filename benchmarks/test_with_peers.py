"""Peers beside pynca: the same state, masks and threads; equal results first, then times in turn.

The file's name puts it last: pynca's own cases run before other libraries have started their threads.
"""

from __future__ import annotations

import numpy as np
import pytest

import pynca
import training_step
from measure import Measure
from peer_torch import with_torch_model
from peers import PEERS, difference, relative
from results import plural
from workload import RULES, Unavailable, dense_model_flops, model_masks, workload

TOLERANCE = 1e-4  # other orders of summation


pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is not for us to mend


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("size", "steps"), [(64, 16), (320, 8)], ids=["64x64-16steps", "320x320-8steps"])
@pytest.mark.parametrize("rule", RULES)
def test_peer(measure: Measure, peer: str, rule: str, size: int, steps: int, threads: int, on: str) -> None:
    work = workload(rule, size, steps)
    try:
        run = PEERS[peer](work, threads)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    except Unavailable as error:
        pytest.skip(str(error))
    off = difference(run, work, threads)
    assert off < TOLERANCE, f"{peer} does not compute what pynca does: off by {off:.1e} of the largest value"
    measure.beside(
        f"{rule} {size}x{size} {plural(steps, 'step')} {on} {peer}",
        peer,
        run,
        lambda: work.rule.run(work.state, steps, masks=work.masks, threads=threads),
        threads=threads,
        flops=work.dense_flops,
    )


@pytest.mark.parametrize("peer", training_step.PEERS)
@pytest.mark.parametrize("case", training_step.CASES)
def test_training_step(measure: Measure, peer: str, case: str, threads: int, on: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    problem = training_step.case(case)
    training_step.compare(problem, threads, peer)
    theirs, _ = training_step.PEERS[peer](problem, threads)
    ours, _ = training_step.with_pynca(problem, threads)
    name = f"training step {case} batch {problem.recipe.batch} {on} {peer}"
    measure.beside(name, peer, theirs, ours, threads=threads)


def test_cardiac_model(measure: Measure, cardiac_lv: pynca.Model, threads: int, on: str) -> None:
    """From a prepared slice to the logits."""
    pytest.importorskip("torch", reason="torch is not installed")
    image = np.random.default_rng(0).random(cardiac_lv.preparation.size).astype(np.float32)
    masks = model_masks(cardiac_lv)
    theirs = with_torch_model(cardiac_lv, image, masks, threads)

    def ours() -> np.ndarray:
        return cardiac_lv.logits(image, masks=masks, threads=threads)

    off = relative(theirs(), ours())
    assert off < TOLERANCE, f"PyTorch does not compute what pynca does: off by {off:.1e} of the largest value"
    flops = dense_model_flops(cardiac_lv)
    measure.beside(f"cardiac-lv logits {on} PyTorch", "PyTorch", theirs, ours, threads=threads, flops=flops)
