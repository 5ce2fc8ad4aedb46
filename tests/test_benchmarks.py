"""What the benchmarks say besides times: operations, names of machines, the files, and the comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
import machine
import pynca
import results
import training_step
from pynca import _core
from pynca.training.optimizers import OPTIMIZERS
from pynca.training.pipeline import initial_weights
from support import random_model, random_rule
from workload import RULES, dense_model_flops, model_masks, model_work, multiply_adds, workload

CLONE = Path(__file__).resolve().parents[1]


# --- operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("perception", "channels", "expected"), [("conv", 32, 34816), ("conv", 16, 12800)])
def test_multiply_adds_of_the_dense_rule(perception: str, channels: int, expected: int) -> None:
    rule = random_rule(perception, channels, 128)
    assert multiply_adds(rule) == expected == 2 * 9 * channels**2 + 3 * channels * 128 + 128 * channels


def test_multiply_adds_of_the_sobel_rule() -> None:
    assert multiply_adds(random_rule("sobel", 16, 128)) == 8192


def test_pynca_is_counted_on_firing_cells_and_peers_on_all() -> None:
    work = workload("sobel16", 12, 3)
    assert work.updates == np.count_nonzero(work.masks)
    assert work.flops == 2 * 8192 * work.updates
    assert work.dense_flops == 2 * 8192 * 3 * 12 * 12


@pytest.mark.parametrize("name", RULES)
def test_the_numpy_peer_computes_what_pynca_does(name: str) -> None:
    """The others are compared where they are installed, in the benchmark."""
    from peer_numpy import step

    work = workload(name, 12, 3)
    state = work.state
    for fires in work.masks:
        state = step(work, state, fires)
    np.testing.assert_allclose(state, work.rule.run(work.state, 3, masks=work.masks), rtol=1e-4, atol=1e-4)


# --- whole models, and training -----------------------------------------------------------------------------


@pytest.fixture
def three_levels() -> pynca.Model:
    return random_model(size=(48, 64), scales=(16, 4, 1), shrink="mean")


def test_a_models_work_is_counted_on_its_own_masks(three_levels: pynca.Model) -> None:
    each = multiply_adds(three_levels.levels[0].rule)
    updates, flops = model_work(three_levels, 2)
    masks = [mask for z in (0, 1) for mask in model_masks(three_levels, z)]
    assert [mask.shape for mask in masks[:3]] == [(4, 3, 4), (5, 12, 16), (6, 48, 64)]
    assert updates == sum(np.count_nonzero(mask) for mask in masks)
    assert flops == 2 * each * updates
    assert dense_model_flops(three_levels) == 2 * each * (4 * 3 * 4 + 5 * 12 * 16 + 6 * 48 * 64)


def test_the_torch_peer_computes_whole_models(three_levels: pynca.Model) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from peer_torch import with_torch_model

    image = np.random.default_rng(0).random((48, 64)).astype(np.float32)
    masks = model_masks(three_levels)
    theirs = with_torch_model(three_levels, image, masks, 1)()
    np.testing.assert_allclose(theirs, three_levels.logits(image, masks=masks), rtol=1e-4, atol=1e-4)


def test_the_cardiac_step_is_what_training_chooses_for_its_size() -> None:
    problem = training_step.problem("cardiac", batch=3)
    recipe = problem.recipe
    assert len(recipe.scales) == 3
    assert recipe.supervision > 0
    assert [mask.shape[1:] for mask in problem.masks] == [(3, 16, 16), (3, 64, 64), (3, *recipe.patch)]
    assert not (problem.places % recipe.above).any()
    assert training_step.case("cardiac").recipe == type(recipe).for_size((256, 256))


def test_a_border_is_not_judged_unless_the_slice_ends_there() -> None:
    problem = replace(training_step.problem("cardiac", batch=2), places=np.array([[0, 192], [96, 64]]))
    first, second = training_step.judged(problem)
    assert np.argwhere(first).min(0).tolist() == [0, 8]
    assert np.argwhere(first).max(0).tolist() == [55, 63]
    assert first.sum() == 56 * 56
    assert second[8:56, 8:56].all()
    assert second.sum() == 48 * 48


@pytest.mark.parametrize("peer", training_step.PEERS)
@pytest.mark.parametrize("recipe", training_step.RECIPES)
def test_the_torch_peers_training_step_is_pyncas(recipe: str, peer: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert training_step.compare(training_step.problem(recipe, batch=2, channels=4, hidden=8), 1, peer) > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_torch_peers_optimizers_are_pyncas(optimizer: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from peer_optimizer import stepper

    recipe = training_step.problem("cardiac", optimizer=optimizer, batch=1, channels=4, hidden=8).recipe
    random = np.random.default_rng(0)
    ours = initial_weights(recipe)[0]
    theirs = {name: torch.tensor(weight, requires_grad=True) for name, weight in ours.items()}
    mine, step = OPTIMIZERS[optimizer](recipe.betas), stepper(theirs, recipe)
    for _ in range(3):
        gradients = {name: random.normal(size=w.shape).astype(np.float32) for name, w in ours.items()}
        ours = mine.update(ours, gradients, recipe.rate)
        for name, weight in theirs.items():
            weight.grad = torch.tensor(gradients[name])
        step()
    for name, weight in theirs.items():
        np.testing.assert_allclose(weight.detach().numpy(), ours[name], atol=1e-5)


# --- names of machines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("Intel(R) Xeon(R) Processor", "intel-xeon-processor_avx2.json"),
        ("Intel(R) Core(TM) i7-1185G7 CPU @ 3.00GHz", "intel-core-i7-1185g7_avx2.json"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core-processor_avx2.json"),
        ("../../\u00e9", "unknown_avx2.json"),
    ],
)
def test_file_name(cpu: str, expected: str) -> None:
    assert machine.file_name(cpu, "avx2") == expected


def cpu_name(tmp_path: Path, cpuinfo: str, model: str | None = None) -> str:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    if model is not None:
        (tmp_path / "model").write_text(model)
    return machine.cpu_name(tmp_path / "cpuinfo", tmp_path / "model")


def test_cpu_name_of_x86(tmp_path: Path) -> None:
    assert cpu_name(tmp_path, 2 * "processor\t: 0\nmodel name\t: AMD Ryzen 5\n\n") == "AMD Ryzen 5"


def test_cpu_name_of_arm(tmp_path: Path) -> None:
    one = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    assert cpu_name(tmp_path, one.format("0xd0b") * 4) == "Cortex-A76"
    assert cpu_name(tmp_path, one.format("0xd05") + one.format("0xd41")) == "Cortex-A55 + Cortex-A78"
    assert cpu_name(tmp_path, one.format("0xfff")) == "Arm part 0xfff"
    board = "Raspberry Pi 4 Model B Rev 1.4\0"
    assert cpu_name(tmp_path, one.format("0xd08"), board) == "Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)"


def test_cpu_name_elsewhere(tmp_path: Path) -> None:
    assert machine.cpu_name(tmp_path / "missing", tmp_path / "missing")
    assert cpu_name(tmp_path, "CPU implementer\t: 0x61\nCPU part\t: 0x022\n")


def test_describe_names_this_build() -> None:
    described = machine.describe()
    assert described["isa"] == _core.isa()
    assert described["cores"] >= 1
    json.dumps(described)


# --- files and their comparison ------------------------------------------------------------------------------


def entry(seconds: float, fraction: float | None) -> dict[str, Any]:
    return {"threads": 1, "seconds": seconds, "rounds": 5, "fraction": fraction}


def some_results(cpu: str, scale: float) -> dict[str, Any]:
    return {
        "schema": results.SCHEMA,
        "machine": {"cpu": cpu, "isa": "neon", "pynca": "0.1.0", "peak_gflops": {"1": 40.0}},
        "cases": {
            "conv32 64x64 1 thread": entry(0.1 * scale, 0.5),
            f"{cpu} alone": entry(1, None),
            "import": entry(0.2, None),
        },
        "peers": {},
    }


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    for name, scale in (("a", 1.0), ("b", 3.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(some_results(f"cpu {name}", scale)))
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


def test_compare_prints_a_table(two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "c.png"
    assert compare.main([*two, "-o", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A: cpu a, neon, pynca 0.1.0; FMA peak 40 GFLOP/s on 1 thread"
    assert lines[1].startswith("B: cpu b, neon")
    assert " ".join(lines[4].split()) == "conv32 64x64 1 thread 100 ms 300 ms 3.00 50.0 % 50.0 %"
    assert " ".join(lines[5].split()) == "import 200 ms 200 ms 1.00"
    assert lines[6] == "measured on one of them alone: 2 more"
    assert lines[7] == f"drawn in {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compare_without_matplotlib(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare.main(list(two)) == 0
    assert "pip install '.[plot]'" in capsys.readouterr().out
    assert compare.main([*two, "-o", "c.png"]) == 2
    assert "pip install '.[plot]'" in capsys.readouterr().err


GOOD = some_results("cpu", 1.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff{", "is not a JSON file"),
        (b"[1]", "does not hold results"),
        (b'{"benchmarks": []}', "does not hold results"),
        (json.dumps({**GOOD, "machine": {"cpu": 1}}).encode(), "what was measured"),
        (json.dumps({**GOOD, "machine": {**GOOD["machine"], "peak_gflops": {"x": 1}}}).encode(), "peak_gflops"),
        (json.dumps({**GOOD, "cases": []}).encode(), 'holds no "cases"'),
        (json.dumps({**GOOD, "cases": {}}).encode(), "no case in common"),
        (json.dumps({**GOOD, "cases": {"x": {"seconds": 0}}}).encode(), "no time for the case 'x'"),
        (json.dumps({**GOOD, "cases": {"x": {"seconds": "1"}}}).encode(), "no time for the case 'x'"),
        (json.dumps({**GOOD, "cases": {"x": {"seconds": 1, "fraction": "a"}}}).encode(), "a fraction for the case 'x'"),
    ],
)
def test_compare_refuses_in_one_sentence(
    content: bytes | None, expected: str, two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    assert compare.main([two[0], str(bad)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert str(bad) in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_picture_that_cannot_be_written(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert compare.main([*two, "-o", str(tmp_path / "c.jpeg")]) == 2
    assert "must end in .png" in capsys.readouterr().err
    assert compare.main([*two, "-o", str(tmp_path / "missing" / "c.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_results_are_merged_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu_neon.json"
    results.write(path, some_results("one", 1.0), merge=True)
    results.write(path, some_results("two", 2.0), merge=True)
    merged = results.read(path)
    assert list(merged["cases"]) == ["conv32 64x64 1 thread", "one alone", "import", "two alone"]
    assert merged["cases"]["conv32 64x64 1 thread"]["seconds"] == 0.2
    results.write(path, some_results("two", 2.0), merge=False)
    assert results.read(path) == some_results("two", 2.0)


# --- the flag -----------------------------------------------------------------------------------------------


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    if not (CLONE / "pyproject.toml").is_file():
        pytest.skip("runs in a clone")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    pytest_in_clone = "import os, sys, pytest; os.chdir(sys.argv[1]); sys.exit(pytest.main(sys.argv[2:]))"
    return subprocess.run(
        [sys.executable, "-I", "-c", pytest_in_clone, str(CLONE), "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_flag_says_what_is_missing() -> None:
    run = run_pytest("--benchmark", "-p", "no:benchmark")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert run.stderr.strip() == "ERROR: --benchmark needs pytest-benchmark: run `pip install '.[bench]'`"


def test_benchmarks_need_the_flag() -> None:
    run = run_pytest("benchmarks/test_rules.py")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert run.stderr.strip() == "ERROR: benchmarks/ runs with the flag --benchmark only"


def test_the_flag_runs_benchmarks_and_nothing_else() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    assert "nothing else" in run_pytest("--benchmark", "tests").stderr
    run = run_pytest("--benchmark", "--collect-only", "-q", "-k", "sobel16 and 64x64 and not peer")
    assert run.returncode == 0, run.stdout + run.stderr
    found = [line for line in run.stdout.splitlines() if "::" in line]
    assert found
    assert all(line.startswith("benchmarks/test_rules.py::test_rule[") and "sobel16" in line for line in found)


def test_the_cardiac_cases_are_found_by_name() -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    run = run_pytest("--benchmark", "--collect-only", "-q", "--benchmark-threads", "1", "-k", "cardiac")
    assert run.returncode == 0, run.stdout + run.stderr
    found = [line.removeprefix("benchmarks/") for line in run.stdout.splitlines() if "::" in line]
    assert found == [
        "test_segmentation.py::test_cardiac_slice[1thread]",
        "test_segmentation.py::test_cardiac_picture[1thread]",
        "test_segmentation.py::test_cardiac_folder[1thread]",
        "test_training.py::test_training_step[1thread-cardiac]",
        *(f"test_with_peers.py::test_training_step[1thread-cardiac-{peer}]" for peer in training_step.PEERS),
        "test_with_peers.py::test_cardiac_model[1thread]",
    ]
