"""Segment a folder on a Dask cluster: one task a case, one thread a task, the model sent once to every worker.

    pip install distributed
    python cluster.py scans/ masks/ --scheduler tcp://head-node:8786
    python cluster.py scans/ masks/ --workers 4                        # no cluster: four processes on this machine

Scheduler and workers need pynca and see both folders under the same paths. One JSON object a case is printed as it
ends; a case that fails is a row like the others, and the exit code is then 1. Masks are the same to the bit as those of
`pynca segment`, on any number of workers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np

import pynca


def segment_case(source: Path, target: Path, model: pynca.Model, samples: int, seed: int) -> dict[str, Any]:
    """Segment one file on a worker; what goes wrong with it is part of the answer, and stops no other case."""
    row: dict[str, Any] = {"input": source.name, "status": "done", "error": None, "voxels": None, "nqm": None}
    start = time.perf_counter()
    try:
        result = pynca.predict(source, model, samples=samples, seed=seed, threads=1)
        result.save(target)
        row |= {"voxels": int(np.count_nonzero(result.mask)), "nqm": result.nqm}
    except (ValueError, OSError, MemoryError) as error:
        row |= {"status": "failed", "error": str(error)}
    return row | {"seconds": round(time.perf_counter() - start, 3)}


def segment_folder(
    client: distributed.Client, source: Path, target: Path, model: pynca.Model, *, samples: int = 1, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield one row a case, in the order in which they end."""
    cases = sorted(path for path in source.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    target.mkdir(parents=True, exist_ok=True)
    shared = client.scatter(model, broadcast=True)
    tasks = client.map(
        segment_case,
        [path.resolve() for path in cases],
        [target.resolve() / path.name for path in cases],
        model=shared,
        samples=samples,
        seed=seed,
        pure=False,  # files are written: a task that ran before must run again
    )
    for task in distributed.as_completed(tasks):
        yield task.result()


def main() -> int:
    """Read the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description="Segment a folder on a Dask cluster.")
    parser.add_argument("source", type=Path, help="folder of .nii or .nii.gz files")
    parser.add_argument("target", type=Path, help="folder for the masks")
    parser.add_argument("-m", "--model", default="hippocampus", help="bundled model or model file")
    parser.add_argument("--samples", type=int, default=1, help="average so many runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the automaton")
    parser.add_argument("--scheduler", help="address of the cluster's scheduler")
    parser.add_argument("--workers", type=int, help="without a scheduler: processes to start on this machine")
    arguments = parser.parse_args()

    model = pynca.load_model(arguments.model)
    where = (
        {"address": arguments.scheduler}
        if arguments.scheduler
        else {"n_workers": arguments.workers, "threads_per_worker": 1, "dashboard_address": None}
    )
    failed = 0
    with distributed.Client(**where) as client:
        options = {"samples": arguments.samples, "seed": arguments.seed}
        for row in segment_folder(client, arguments.source, arguments.target, model, **options):
            print(json.dumps(row), flush=True)
            failed += row["status"] == "failed"
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
