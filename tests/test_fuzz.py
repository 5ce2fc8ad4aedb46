"""Every reader of foreign bytes: good files are read, and files that once broke one are refused in one sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("PIL.Image", reason="needs the extra image")

from fuzz.readers import BY_NAME, FAILED, READERS, Reader, complaints

SEEDS = [(reader, path) for reader in READERS for path in reader.seeds()]
ONCE = [(BY_NAME[path.parent.name], path) for path in sorted(FAILED.glob("*/*"))]


def name(value: object) -> str:
    return value.name if isinstance(value, Reader | Path) else str(value)


def succeeds(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("reader", "seed"), SEEDS, ids=name)
def test_good_files_are_read(reader: Reader, seed: Path, tmp_path: Path) -> None:
    path = reader.place(seed.name, tmp_path)
    path.write_bytes(seed.read_bytes())
    assert any(succeeds(read, path) for read in reader.reads)
    assert complaints(reader, path) == []


@pytest.mark.parametrize(("reader", "file"), ONCE, ids=name)
def test_files_that_once_failed(reader: Reader, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = reader.place(file.name.partition("-")[2], tmp_path)
    path.write_bytes(file.read_bytes())
    assert complaints(reader, path) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reader", READERS, ids=name)
def test_mutations_differ_and_repeat(reader: Reader) -> None:
    for seed in reader.seeds():
        content = seed.read_bytes()
        made = [[reader.mutate(random.Random(n), content) for n in range(20)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0]) - {content}) > 5
