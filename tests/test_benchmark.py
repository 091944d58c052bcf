"""The CPU benchmark: its contenders compute the same, and its lines say what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from dnn import backends

sys.path.append(str(ROOT / "scripts"))

import benchmark
import gpu_check
import peers

SIZES = {"softmax": [6, 5, 4, 3], "sigmoid": [6, 5, 4, 1]}


@pytest.fixture(autouse=True)
def _own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncompiled NumPy that a comparison registers is gone after it."""
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))


@pytest.mark.parametrize("optimizer", benchmark.OPTIMIZERS)
@pytest.mark.parametrize("output", SIZES)
def test_plain_numpy_does_dnns_steps(output: str, optimizer: str):
    X, Y = peers.batch(SIZES[output], 7, "float64")
    ours = peers.Dnn(SIZES[output], X, Y, optimizer, "numpy", "float64")
    plain = peers.PlainNumpy(ours.weights(), X, Y, optimizer)
    ours.steps(5), plain.steps(5)
    for W, expected in zip(plain.weights(), ours.weights(), strict=True):
        assert W.dtype == expected.dtype == np.float64 and W.shape == expected.shape
        np.testing.assert_allclose(W, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", benchmark.OPTIMIZERS)
@pytest.mark.parametrize(("output", "precision"), [("softmax", "float32"), ("sigmoid", "float64")])
@pytest.mark.parametrize(
    ("mode", "needs"), [("plain", None), ("eager", "torch"), ("jax", "jax"), ("sklearn", "sklearn")]
)
def test_every_contender_ends_where_dnn_ends(mode: str, needs: str | None, output: str, precision: str, optimizer: str):
    if needs:
        pytest.importorskip(needs)
    every, failed = peers.contenders(SIZES[output], 9, optimizer, "numpy", [mode], precision)
    assert failed == {} and len(every) == 2
    every[1].steps(2)  # it can go on
    every[1].wait()
    assert all(W.dtype == precision for W in every[1].weights())


def test_the_plain_model_has_the_assignments_costs():
    from dnn.course import L_layer_model

    generator = np.random.default_rng(0)
    X, Y = generator.random((5, 20)), generator.integers(0, 2, (1, 20)).astype(np.float64)
    _, costs = L_layer_model(X, Y, [5, 4, 3, 1], num_iterations=101)
    np.testing.assert_allclose(benchmark.plain_model(X, Y, [5, 4, 3, 1], "course_scaled", 101), costs, rtol=1e-12)


# ------------------------------------------------------------------------------------------------- turns


def test_contenders_take_turns_and_who_is_first_changes(monkeypatch):
    order: list[str] = []

    def turn(contender: Any, n: int, rested: bool = False) -> float:
        order.append(contender.name)
        return 0.01

    monkeypatch.setattr(benchmark, "turn", turn)
    every = [benchmark.Calls(name, lambda: None) for name in ("a", "b")]
    times = benchmark.take_turns(every, 3)
    assert order == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]
    assert times == {"a": [1e4] * 3, "b": [1e4] * 3}


def test_a_turn_has_one_step_that_does_not_count_and_is_within_its_run():
    done: list[Any] = []

    class Noting(peers.Contender):
        def running(self):
            done.append("begin")
            return super().running()

        def steps(self, n: int) -> None:
            done.append(n)

    assert peers.turn(Noting(), 4) > 0 and done == ["begin", 1, 4]


def test_ratios_are_taken_round_by_round():
    figures = benchmark.summary({"dnn": [1.0, 10.0, 2.0], "JAX jit": [3.0, 20.0, 8.0]})
    assert figures["dnn"] == {"median": 2.0, "quartiles": [1.5, 6.0], "by dnn": 1.0}
    assert figures["JAX jit"]["by dnn"] == 3.0


# ------------------------------------------------------------------------------------------------- lines


def made_up(median: float, **more: Any) -> dict[str, Any]:
    """A TEST FIXTURE: nobody ever measured this."""
    ratios = {"by dnn": median / 100, "by dnn, plain": median / 200}
    return {"median": median, "quartiles": [median - 1, median + 1]} | ratios | more


ROW = {
    "network": "1-2-3",
    "batch": 4,
    "dtype": "float64",
    "optimizer": "adam",
    "flops": 2_000_000,
    "us a step": {
        "dnn": made_up(100.0),
        "dnn, plain": made_up(200.0),
        "PyTorch eager": made_up(300.0),
        "PyTorch compiled": made_up(250.0),
        "JAX jit": made_up(12345.6),
    },
    "product, GFLOP/s": {"median": 50.0, "quartiles": [49.0, 51.0]},
    "share": {"dnn": 0.4, "dnn, plain": 0.2},
}


def words(line: str) -> str:
    return " ".join(line.split())


def test_a_line_a_network_with_what_was_measured():
    assert words(benchmark.times_line(ROW)) == (
        "1-2-3, 4, adam, float64 100 [99 101] 200 [199 201] - - 250 [249 251] c 12346 [12345 12347]"
    )
    head, line = benchmark.ratio_lines([ROW])
    assert words(line) == "1-2-3, 4, adam, float64 2.00 / 1.00 - - 2.50 / 1.25 123.46 / 61.73 50 [49 51] 40% / 20%"
    assert len(head) == len(line)


def test_a_line_of_growth_has_both_growths_and_the_time_of_a_product():
    before = ROW | {"flops": 500_000, "us a step": {"dnn": made_up(20.0)}}
    line = benchmark.growth_line(ROW | {"value": 64}, before, ["dnn"], [8, 14, 22, 12, 20])
    assert words(line) == "64 x 4.00 100 [99 101] x 5.00 100.0 ps"
    line = benchmark.growth_line(ROW | {"value": 64}, None, ["dnn"], [8, 14, 22, 12, 20])
    assert words(line) == "64 100 [99 101] 100.0 ps"


def test_threads_have_their_speed_up():
    by_number = {n: {"us a step": {"dnn": made_up(100.0 / n)}} for n in (1, 2)}
    assert benchmark.threads_lines("1-2-3", by_number) == [["1-2-3", "dnn", "100 (1.00)", "50 (2.00)"]]


# ----------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["step"], "no section step: there are steps, epochs, growth, threads, overhead, course"),
        (["--peers", "torch,keras"], "no peer keras: there are torch, jax, sklearn"),
        (["--networks", "1-2"], "no network 1-2: there are 20-64-32-2, 784-256-128-10,"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(arguments: list[str], line: str, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.parse(arguments)
    assert ended.value.code == 2 and f"error: {line}" in capsys.readouterr().err.splitlines()[-1]


def test_sides_with_different_threads_are_not_compared(monkeypatch):
    monkeypatch.setenv("DNN_NUM_THREADS", "1")
    monkeypatch.setattr(benchmark, "threadpool_limits", lambda threads: None)
    monkeypatch.setattr(benchmark, "number_of_cores", lambda: 1)
    monkeypatch.setattr(benchmark, "pools", lambda: [{"filepath": "/lib/libblas.so", "num_threads": 8}])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(SystemExit, match=r"different threads, not 1: dnn 1, cores 1, libblas\.so 8$"):
        benchmark.hold_threads(1, ())


def test_without_mnist_its_epochs_are_left_out(monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", Path("/nowhere/at/all"))
    monkeypatch.delenv("DNN_SHARED", raising=False)
    with pytest.raises(benchmark.NotMeasured, match=r"no mnist\.h5"):
        benchmark.epochs(benchmark.parse(["epochs"]))


def test_a_run_on_one_thread(tmp_path: Path):
    path = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "steps", "--peers", "none", "--threads", "1"]
    command += ["--rounds", "1", "--networks", "20-64-32-2", "--optimizer", "sgd", "--json", path]
    done = subprocess.run(command, env=os.environ | {"OPENBLAS_CORETYPE": "Haswell"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "OPENBLAS_CORETYPE=Haswell is set" in done.stdout and "20-64-32-2, 32, sgd" in done.stdout
    there = json.loads(path.read_text())
    assert there["threads"] == 1 and there["cores"] == benchmark.number_of_cores() and there["versions"]["numpy"]
    ((row,),) = there["sections"]["steps"]
    assert {"dnn", "plain NumPy"} <= row["us a step"].keys() and row["failed"] == {} and 0 < row["share"]["dnn"] < 1
