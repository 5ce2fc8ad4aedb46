"""How much memory a run takes, and how to keep it below a limit.

The sizes are those of the arrays that stand at the same time, so that a run can be refused before it starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Model

# One call into the core takes no more than this: larger calls gain nothing, smaller ones show progress and heed
# Ctrl-C. The result does not depend on it.
CALL_BYTES = 128 * 2**20
CALL_SLICES = 8  # a thread

_STATM = Path("/proc/self/statm")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS, _CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Of version 2 and 1 of control groups: the limit, what is taken, and what of that is files read that can be dropped
_NO_LIMIT = 2**62  # version 1 writes a number about as large where there is none
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_PROGRAM_BYTES = 64 * 2**20  # Python with numpy and nibabel, where the system does not tell
_CORE_BYTES = 6 * 2**20  # packed weights, and what the allocator keeps
_THREAD_BYTES = 2**20  # a thread's stack, its band of hidden cells and its bordering rows
_PIECES_BYTES = 16  # a voxel
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


def available_bytes() -> int | None:
    """Return how much more memory this process can take; None where the system does not tell.

    That is what the machine has free, or can free at once, with its swap; less, where a control group or a limit on
    the process's addresses allows less.
    """
    rooms = [*_machine_room(), *_cgroup_room(), *_address_room()]
    return max(0, min(rooms)) if rooms else None


def _machine_room() -> Iterator[int]:
    if sys.platform == "win32":
        yield _windows_room()
        return
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        yield sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
        return
    with contextlib.suppress(OSError, ValueError):  # macOS does not say in few words what is free: what there is
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - process_bytes()


def _windows_room() -> int:
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = (
            *(("length", ctypes.c_uint32), ("load", ctypes.c_uint32)),
            *(
                (name, ctypes.c_uint64)
                for name in ("physical", "free", "paged", "pages", "virtual", "left", "extended")
            ),
        )

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return min(int(status.pages), int(status.left))


def _cgroup_room() -> Iterator[int]:
    """Yield what each control group leaves that this process is in."""
    try:
        groups = [line.split(":", 2) for line in _CGROUPS.read_text().splitlines()]
    except (OSError, UnicodeError):
        return
    for _, controllers, place in (group for group in groups if len(group) == 3):
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in _CGROUP_FILES:
            continue
        limit, usage, droppable = _CGROUP_FILES[kind]
        here = Path(place.lstrip("/"))  # a container may see its own group as the root, and other paths not at all
        for group in (here, *here.parents):
            folder = _CGROUP_ROOT / kind / group
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                most = int((folder / limit).read_text())
                if most >= _NO_LIMIT:
                    continue
                room = most - int((folder / usage).read_text())
                with contextlib.suppress(OSError, ValueError):
                    rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    room += int(rows.get(droppable, 0))
                yield room


def _address_room() -> Iterator[int]:
    """Yield what `ulimit -v` leaves."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - int(_STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Limit:
    """How many bytes the process may take in all, and how a refusal that names them ends."""

    bytes: int
    words: str


def memory_limit(memory: int | None = None) -> Limit | None:
    """Return what the process may take: what the caller allows, or what the machine has, whichever is less."""
    left = available_bytes()
    most = None if left is None else left + process_bytes()
    if memory is not None and (most is None or memory <= most):
        return Limit(memory, f"{memory / 1e6:.4g} MB are allowed; allow more")
    if most is None:
        return None
    return Limit(most, f"this machine has {most / 1e6:,.0f} MB for it now; free some, or use a larger one")


def check_room(name: str, needed: int) -> None:
    """Refuse what would take more memory than there is, before it is read.

    Parameters
    ----------
    name : str
        What the refusal calls it.
    needed : int
        Bytes beside what the process holds.

    Raises
    ------
    ValueError
        The machine, or what the process may use of it, has not so much left.
    """
    left = available_bytes()
    if left is not None and needed > left:
        raise ValueError(
            f"{name} takes {megabytes(needed)} of memory to read, and there are {left / 1e6:,.0f} MB; free some, or "
            "use a machine with more"
        )


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


def finish_bytes(shape: tuple[int, ...], model: Model) -> int:
    """Return what is taken once the slices are done: a comparison of the mask, and pieces where the model joins them.

    Pieces are of a mask that is mostly solid; one of noise, which has many, takes more.
    """
    return max(math.prod(shape), math.prod(shape[1:]) * (_PIECES_BYTES if model.postprocessing else 0))


def core_bytes(threads: int) -> int:
    """Return what the core takes beside the arrays that it is given."""
    return _CORE_BYTES + threads * _THREAD_BYTES


def slices_a_call(
    shape: tuple[int, ...],
    model: Model,
    *,
    samples: int,
    threads: int,
    memory: Limit | int | None = None,
    voxels: int = 0,
    reading: int = 0,
    name: str = "the image",
) -> int:
    """Return how many of a volume's slices go into one call of the core: enough for all threads, few enough to fit.

    Parameters
    ----------
    shape : (int, int, int, int)
        Number of volumes, their slices, rows and columns.
    model : Model
    samples, threads : int
    memory : Limit or int, optional
        Bytes that the process may take, with what it holds already; `memory_limit` counts what the machine has, too.
    voxels : int
        Bytes of the voxels where the run reads them from a file.
    reading : int
        Bytes that stand while it does so.
    name : str
        What the refusal calls the image.

    Raises
    ------
    ValueError
        Not even a call of one slice fits; the sentence says what would.
    """
    each = slice_bytes((shape[2], shape[3]), model, samples)
    room = CALL_BYTES
    if isinstance(memory, int):
        memory = Limit(memory, f"{memory / 1e6:.4g} MB are allowed; allow more")
    if memory is not None:
        before = process_bytes()
        fixed = before + voxels + result_bytes(math.prod(shape), samples) + core_bytes(threads)
        least = max(before + reading, fixed + max(each, finish_bytes(shape, model)))
        if memory.bytes < least:
            raise ValueError(
                f"{name} takes at least {megabytes(least)} of memory to segment ({megabytes(before)} of them are "
                f"taken already), and {memory.words}"
            )
        room = min(room, memory.bytes - fixed)
    return max(1, min(room // each, CALL_SLICES * threads, shape[1]))


def run_bytes(
    shape: tuple[int, ...], model: Model, *, samples: int, threads: int, voxels: int, reading: int, count: int
) -> int:
    """Return what a run takes at most, with so many slices a call; arguments as of `slices_a_call`."""
    call = count * slice_bytes((shape[2], shape[3]), model, samples)
    beside = core_bytes(threads) + max(call, finish_bytes(shape, model))
    return max(reading, voxels + result_bytes(math.prod(shape), samples) + beside)
