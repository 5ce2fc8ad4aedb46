"""Instruction sets, recorded runs and real files for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pynca
from pynca import _core
from support import ALL_RECORDED, CHECKPOINT, DATA


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    """Each instruction set that this CPU has, in turn."""
    before = _core.isa()
    _core.select_isa(request.param)
    yield request.param
    _core.select_isa(before)


@pytest.fixture(scope="session")
def reference() -> Path:
    """All recorded runs; those that the repository holds are tested without this folder as well."""
    if not ALL_RECORDED.is_dir():
        pytest.skip(f"{ALL_RECORDED} with the recorded runs is not there")
    return ALL_RECORDED


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} with the real files is not there")
    return DATA


@pytest.fixture(scope="session")
def authors_model(reference: Path) -> pynca.Model:
    return pynca.import_checkpoint(CHECKPOINT, labels={1: "hippocampus"})
