"""Reads broken files until the time is up: `python -m fuzz SECONDS [--readers NAME ...] [--seed N]` in tests/.

Each reader runs in a process of its own with bounds of memory and of time for each file; what it makes of a file is
judged as `readers.complaints` says. A file that something is wrong with is kept in build/fuzz, one of each kind of
complaint, and exit code 1 says that there was one.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .readers import BY_NAME, READERS, Reader, complaints

FOUND = Path(__file__).parents[2] / "build" / "fuzz"
SLICE = 5.0  # seconds of a reader before the next has its turn
PATIENCE = 20.0  # seconds for one file
MEMORY = 3 * 2**30  # address space of a reader


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--readers", nargs="+", choices=BY_NAME, default=[reader.name for reader in READERS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(BY_NAME[arguments.readers[0]], arguments.seconds, arguments.seed, Path(arguments.work))
    end, turn = time.monotonic() + arguments.seconds, 0
    count: collections.Counter[str] = collections.Counter()
    found: dict[str, set[str]] = {name: set() for name in arguments.readers}
    while time.monotonic() < end:
        for name in arguments.readers:
            left = max(end - time.monotonic(), 1.0)
            share = min(SLICE, left / len(arguments.readers)) if turn else min(SLICE, arguments.seconds / len(READERS))
            ran, wrong = watch(name, share, arguments.seed + turn)
            count[name] += ran
            for what in wrong:
                if kind(what) not in found[name]:
                    found[name].add(kind(what))
                    print(f"{name}: {what.encode('utf-8', 'backslashreplace').decode()}", flush=True)
        turn += 1
    for name in arguments.readers:
        print(f"{name}: {count[name]} files, {len(found[name])} kinds of complaint")
    total = sum(map(len, found.values()))
    print(f"{sum(count.values())} files, {total} kinds of complaint" + (f"; the files are in {FOUND}" if total else ""))
    return 1 if total else 0


def kind(what: str) -> str:
    """Return what complaints have in common that differ in numbers and names."""
    words = re.sub(r"[0-9a-f]{8}-\S+|[-+.0-9]+|'[^']*'", "#", what)
    return words.partition(":")[0] if words.startswith("a sentence of") else words[:70]


def watch(name: str, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Let a reader work in a process of its own; return how many files it read, and what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fuzz", str(seconds)),
                *("--readers", name, "--seed", str(seed), "--work", folder),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            said = process.communicate(timeout=seconds + 2 * PATIENCE)[1]
            wrong = f"ended with {process.returncode}: {said.strip()[-400:]}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            wrong = "hangs, and hears no signal"
        notes = [json.loads(line) for line in _lines(Path(folder) / "notes")]
        last = Path(folder) / "last"
        if wrong and last.exists():
            kept = keep(name, (Path(folder) / "name").read_text(), last.read_bytes())
            return len(notes), [f"{wrong} ({kept.name})"]
        return len(notes), [what for note in notes for what in note]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def keep(name: str, seed: str, content: bytes) -> Path:
    """Keep a file that something is wrong with, under a name that says what it was made of."""
    path = FOUND / name / f"{hashlib.sha256(content).hexdigest()[:8]}-{seed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- in the reader's process ------------------------------------------------------------------------------


class Hangs(BaseException):
    """It takes longer than anybody waits. No reader may take this for a fault of the file."""


def work(reader: Reader, seconds: float, seed: int, place: Path) -> int:
    _bound()
    signal.signal(signal.SIGALRM, _hang)
    rng = random.Random(f"{reader.name} {seed}")
    seeds = [(path.name, path.read_bytes()) for path in reader.seeds()]
    end, known = time.monotonic() + seconds, set[str]()
    with open(place / "notes", "w") as notes, open(place / "stderr", "w+b") as raw:
        stderr = os.dup(2)
        while time.monotonic() < end:
            name, content = rng.choice(seeds)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                content = reader.mutate(rng, content)
            (place / "name").write_text(name)
            (place / "last").write_bytes(content)
            folder = Path(tempfile.mkdtemp(dir=place))
            path = reader.place(name, folder)
            path.write_bytes(content)
            os.dup2(raw.fileno(), 2)  # what a library's C code prints goes round sys.stderr
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            try:
                wrong = complaints(reader, path)
            except Hangs:
                wrong = [f"takes longer than {PATIENCE:g} s"]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.dup2(stderr, 2)
            raw.seek(0)
            printed = raw.read(300)
            raw.seek(0)
            raw.truncate()
            if printed:
                wrong.append(f"prints {printed!r}")
            wrong = [what for what in (what.replace(str(folder), "") for what in wrong) if kind(what) not in known]
            if wrong:
                known |= {kind(what) for what in wrong}
                kept = keep(reader.name, name, content)
                wrong = [f"{what} ({kept.name})" for what in wrong]
            notes.write(json.dumps(wrong) + "\n")
            notes.flush()
            shutil.rmtree(folder)
    return 0


def _bound() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _hang(number: int, frame: object) -> None:
    raise Hangs


if __name__ == "__main__":
    sys.exit(main())
