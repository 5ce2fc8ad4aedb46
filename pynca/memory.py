"""How much memory a run takes, and how to keep it below a limit.

The sizes are those of the arrays that stand at the same time, so that a run can be refused before it starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from pathlib import Path

from .model import Model

# One call into the core takes no more than this: larger calls gain nothing, smaller ones show progress and heed
# Ctrl-C. The result does not depend on it.
CALL_BYTES = 128 * 2**20
CALL_SLICES = 8  # a thread

_STATM = Path("/proc/self/statm")
_PROGRAM_BYTES = 64 * 2**20  # Python with numpy and nibabel, where the system does not tell
_CORE_BYTES = 6 * 2**20  # packed weights, and what the allocator keeps
_THREAD_BYTES = 2**20  # a thread's stack, its band of hidden cells and its bordering rows
_SLACK = 1.2  # what was freed and not given back to the system, as measured
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def read_bytes(text: str) -> int:
    """Read an amount of memory such as ``512M``: a number with K, M, G (powers of 1000) or Ki, Mi, Gi (of 1024).

    A ``B`` may follow, case does not matter, and a number alone counts bytes.

    Raises
    ------
    ValueError
        It is none.
    """
    parts = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMG]I?|)B?", text.strip().upper(), re.ASCII)
    amount = int(float(parts[1]) * _UNITS[parts[2]]) if parts else 0
    if amount < 1:
        raise ValueError(f"{text[:40]!r} is no amount of memory; write it as 512M, 1.5G or 800MiB")
    return amount


def process_bytes() -> int:
    """Return the memory that this process takes now; the most that it took where the system tells no more."""
    with contextlib.suppress(OSError, ValueError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # Windows
        return _PROGRAM_BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def megabytes(amount: float) -> str:
    """Write an amount of memory for people, rounded up: ``"512 MB"``."""
    return f"{math.ceil(amount / 1e6):,} MB"


def slice_bytes(size: tuple[int, int], model: Model, samples: int) -> int:
    """Return what one slice of so many rows and columns takes while it is in a call of the core."""
    pixels = math.prod(size)
    rows, columns = model.preparation.size
    coarsest = model.levels[0].scale
    cells = (rows + -rows % coarsest) * (columns + -columns % coarsest)
    state = (
        4
        * cells
        * max(
            level.rule.channels * (1 / level.scale**2 + (1 / model.levels[n - 1].scale ** 2 if n else 0))
            for n, level in enumerate(model.levels)
        )
    )
    runs = 20 * pixels if samples > 1 else 0  # of `Ensemble`: mean logits, mean and squares in float64
    prepare = 8 * pixels + 32 * rows * max(size[1], columns) + 8 * cells
    run = state + 24 * cells + runs
    restore = 8 * cells + 24 * max(pixels, size[0] * columns) + runs
    average = 8 * cells + 48 * pixels + runs
    return math.ceil(_SLACK * max(prepare, run, restore, average))


def result_bytes(voxels: int, samples: int) -> int:
    """Return what the arrays of a `Segmentation` take: mask, probability, and with several samples uncertainty."""
    return voxels * (9 if samples > 1 else 5)


def core_bytes(threads: int) -> int:
    """Return what the core takes beside the arrays that it is given."""
    return _CORE_BYTES + threads * _THREAD_BYTES


def slices_a_call(
    shape: tuple[int, ...],
    model: Model,
    *,
    samples: int,
    threads: int,
    memory: int | None = None,
    voxels: int = 0,
    name: str = "the image",
) -> int:
    """Return how many of a volume's slices go into one call of the core: enough for all threads, few enough to fit.

    Parameters
    ----------
    shape : (int, int, int, int)
        Number of volumes, their slices, rows and columns.
    model : Model
    samples, threads : int
    memory : int, optional
        Bytes that the process may take, with what it holds already.
    voxels : int
        Bytes of the voxels where the run reads them from a file: twice while it reads, once afterwards.
    name : str
        What the refusal calls the image.

    Raises
    ------
    ValueError
        Not even a call of one slice fits; the sentence says what would.
    """
    each = slice_bytes((shape[2], shape[3]), model, samples)
    room = CALL_BYTES
    if memory is not None:
        before = process_bytes()
        fixed = before + voxels + result_bytes(math.prod(shape), samples) + core_bytes(threads)
        least = max(before + 2 * voxels, fixed + each)
        if memory < least:
            raise ValueError(
                f"{name} takes at least {megabytes(least)} of memory to segment ({megabytes(before)} of them are "
                f"taken already), and {memory / 1e6:.4g} MB are allowed; allow more"
            )
        room = min(room, memory - fixed)
    return max(1, min(room // each, CALL_SLICES * threads, shape[1]))


def run_bytes(shape: tuple[int, ...], model: Model, *, samples: int, threads: int, voxels: int, count: int) -> int:
    """Return what a run takes at most, with so many slices a call; arguments as of `slices_a_call`."""
    call = count * slice_bytes((shape[2], shape[3]), model, samples)
    return max(2 * voxels, voxels + result_bytes(math.prod(shape), samples) + core_bytes(threads) + call)
