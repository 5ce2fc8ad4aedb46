"""The recorded runs in the repository: the same numbers as those of the whole set, and enough of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import RECORDED

CASES: list[dict[str, Any]] = json.loads((RECORDED / "index.json").read_text())


def test_there_is_a_run_of_every_kind() -> None:
    assert {(case["family"], case["cls"]) for case in CASES} == {
        ("a", "BackboneNCA"),
        ("b", "BasicNCA"),
        ("e", "Agent_Med_NCA / BackboneNCA"),
        ("h", "BackboneNCA"),
        ("h", "BasicNCA"),
    }


def test_every_file_belongs_to_the_index() -> None:
    assert sorted(case["file"] for case in CASES) == sorted(path.name for path in RECORDED.glob("*.npz"))


@pytest.mark.parametrize("file", [*(case["file"] for case in CASES), "checkpoints/med_nca_hippocampus_weights.npz"])
def test_the_numbers_are_those_of_the_whole_set(file: str, reference: Path) -> None:
    with np.load(RECORDED / file) as here, np.load(reference / file) as there:
        assert set(here) == set(there)
        for name in here:
            assert here[name].dtype == there[name].dtype, name
            np.testing.assert_array_equal(here[name], there[name], err_msg=name)
