"""The CPU benchmark: its contenders compute the same result, and its output reports the measurements."""

from __future__ import annotations

import json
import os
import re
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
import compare
import facts
import fresh
import peers
import tables
import turns

SIZES = {"softmax": [6, 5, 4, 3], "sigmoid": [6, 5, 4, 1]}


@pytest.fixture(autouse=True)
def _own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the uncompiled NumPy backend that a comparison registers."""
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))


@pytest.mark.parametrize("optimizer", benchmark.OPTIMIZERS)
@pytest.mark.parametrize("output", SIZES)
def test_plain_numpy_takes_the_same_steps_as_dnn(output: str, optimizer: str):
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
def test_every_contender_reaches_the_same_weights_as_dnn(
    mode: str, needs: str | None, output: str, precision: str, optimizer: str
):
    if needs:
        pytest.importorskip(needs)
    every, failed = peers.contenders(SIZES[output], 9, optimizer, "numpy", [mode], precision)
    assert failed == {} and len(every) == 2
    every[1].steps(2)  # it can go on
    every[1].wait()
    assert all(W.dtype == precision for W in every[1].weights())


def test_the_plain_model_reproduces_the_assignments_costs():
    from dnn.course import L_layer_model

    generator = np.random.default_rng(0)
    X, Y = generator.random((5, 20)), generator.integers(0, 2, (1, 20)).astype(np.float64)
    _, costs = L_layer_model(X, Y, [5, 4, 3, 1], num_iterations=101)
    np.testing.assert_allclose(benchmark.plain_model(X, Y, [5, 4, 3, 1], "course_scaled", 101), costs, rtol=1e-12)


# ------------------------------------------------------------------------------------------------- turns


def test_contenders_take_turns_in_alternating_order(monkeypatch):
    order: list[str] = []

    def turn(contender: Any, n: int, rested: bool = False) -> float:
        order.append(contender.name)
        return 0.01

    monkeypatch.setattr(turns, "turn", turn)
    every = [turns.Calls(name, lambda: None) for name in ("a", "b")]
    times = turns.take_turns(every, 3)
    assert order == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]
    assert times == {"a": [1e4] * 3, "b": [1e4] * 3}


def test_a_turn_has_one_warm_up_step_and_stays_within_its_run():
    done: list[Any] = []

    class Noting(turns.Contender):
        def running(self):
            done.append("begin")
            return super().running()

        def steps(self, n: int) -> None:
            done.append(n)

    assert turns.turn(Noting(), 4) > 0 and done == ["begin", 1, 4]


def test_ratios_are_computed_within_rounds():
    figures = tables.summary({"dnn": [1.0, 10.0, 2.0], "JAX jit": [3.0, 20.0, 8.0]})
    assert figures["dnn"] == {"median": 2.0, "quartiles": [1.5, 6.0], "by dnn": 1.0}
    assert figures["JAX jit"]["by dnn"] == 3.0


# ---------------------------------------------------------------------------------------- another commit

ROW_OF_COMPARE = ([6, 5, 3], 7, "float64", "adam")

PEERS = """
import os, sys
import numpy as np

class Dnn:
    def __init__(self, sizes, X, Y, optimizer, backend, precision):
        {start}
    def running(self): return open(os.devnull)
    def steps(self, n): pass
    def wait(self): print("what a checkout prints is no answer")
    def weights(self): return [np.full((2, 3), {weight})]

def uncompiled(): return "plain"
"""


@pytest.fixture
def head() -> str:
    try:
        return compare.commit_of("HEAD")
    except facts.NotMeasured as why:
        pytest.skip(f"no git, or no checkout of it: {why}")


def checkout(folder: Path, start: str = "pass", weight: float = 1.0) -> Path:
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "peers.py").write_text(PEERS.format(start=start, weight=weight))
    return folder


def test_a_commit_against_itself(head: str, capsys):
    with compare.exported(head) as tree:
        figures = compare.compare(head, [ROW_OF_COMPARE], 1, 3, plain=True, working_tree=tree)
    assert not tree.exists()
    (row,) = figures["rows"]
    assert "failed" not in row and row["weights apart after 5 steps"] == 0 and figures["commit"] == head
    assert row["us a step"].keys() == {head, "working tree"} and 0.1 < row["ratio"]["median"] < 10
    *_, columns, line, _, _ = capsys.readouterr().out.splitlines()
    assert words(columns) == f"{head} working tree ratio apart" and words(line).startswith("6-5-3, 7, adam, float64 ")


def compared(there: Path, here: Path, rounds: int = 1, plain: bool = False) -> dict[str, Any]:
    with compare.worker(there, 1) as theirs, compare.worker(here, 1) as ours:
        return compare.compare_row(ROW_OF_COMPARE, {"there": theirs, "here": ours}, rounds, plain)


def test_both_sides_take_one_turn_a_round(tmp_path: Path):
    there, here = (checkout(tmp_path / name, "assert backend == 'plain'") for name in ("there", "here"))
    assert compared(there, here, rounds=2, plain=True)["ratio"]["median"] > 0
    order: list[str] = []

    def made_up_side(name: str, *seconds: float) -> compare.Ask:
        times = iter(seconds)

        def ask(method: str, *arguments: Any) -> Any:
            if method == "turn":
                order.append(name)
                return next(times)
            return {"build": [np.ones(2)], "compilers": {}}[method]

        return ask

    sides = {"there": made_up_side("there", 2e-6, 6e-6, 3e-6), "here": made_up_side("here", 1e-6, 2e-6, 3e-6)}
    row = compare.compare_row(ROW_OF_COMPARE, sides, 3, False)
    assert order == ["there", "here"] * 3
    assert row["ratio"] == {"median": pytest.approx(2), "quartiles": pytest.approx([1.5, 2.5])}
    line = "6-5-3, 7, adam, float64 3 [2.5 4.5] 2 [1.5 2.5] 2.000 [1.500 2.500] 0"
    assert words(compare.line(row, sides)) == line


def test_sides_with_different_results_are_not_timed(tmp_path: Path):
    row = compared(checkout(tmp_path / "there"), checkout(tmp_path / "here", weight=1.5))
    assert row["failed"] == "they do not compute the same: weights differ by 0.5 after 5 steps"
    assert "us a step" not in row and words(compare.line(row, [])).endswith("left out: " + row["failed"])


@pytest.mark.parametrize(
    ("start", "why"),
    [("raise KeyError('W1')", "KeyError: 'W1'"), ("os._exit(3)", r"exited unexpectedly, with status 3$")],
)
def test_a_failing_side_is_reported(start: str, why: str, tmp_path: Path):
    row = compared(checkout(tmp_path / "there", start), checkout(tmp_path / "here"))
    assert re.search(why, row["failed"])


def test_a_worker_imports_nothing_of_another_checkout(tmp_path: Path, monkeypatch):
    folder = checkout(tmp_path)
    peers_there = folder / "scripts" / "peers.py"
    peers_there.write_text("import dnn\n")  # which is not there
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    says = pytest.raises(facts.NotMeasured, match=r"No module named 'dnn'|dnn is .*, and not of")
    with says, compare.worker(folder, 1):
        pass


# -------------------------------------------------------------------------------------- busy processes


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_busy_processes_end_with_the_measurement():
    with benchmark.busy(2) as pids:
        assert len(pids) == 2 and not any(map(is_gone, pids))
    assert all(map(is_gone, pids))
    with pytest.raises(KeyboardInterrupt), benchmark.busy(1) as pids:
        raise KeyboardInterrupt
    assert all(map(is_gone, pids))


def test_busy_processes_do_not_outlive_a_benchmark_that_is_killed():
    program = "import os, benchmark\nwith benchmark.busy(2):\n    os.kill(os.getpid(), 9)"
    # they hold its standard output open: it ends when they do
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, timeout=60)
    assert done.returncode == -9


# ---------------------------------------------------------------------------------- start and activations


def test_start_up_of_a_new_process():
    assert benchmark.fresh_process("import").keys() == {"numpy", "dnn"}
    times = fresh.fits([2, 3, 1], 4)
    assert times["difference"] == times["first fit"] - times["second fit"]
    with pytest.raises(benchmark.NotMeasured, match=r"fit x 1 ended with 1: (?s:.*)ValueError"):
        benchmark.fresh_process("fit", "x", "1")


def test_a_missing_activation_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ACTIVATIONS", ["relu", "tanh", "no such"])
    monkeypatch.setattr(benchmark, "take_turns", lambda every, rounds: {one.name: [len(one.name)] for one in every})
    rows = benchmark.activations(benchmark.parse(["activations", "--optimizer", "sgd"]))
    assert [row["dtype"] for row in rows] == ["float32", "float64"] and rows[0]["us a step"].keys() == {"relu", "tanh"}
    line = "784-256-128-10, 128, sgd 4 [4 4] x 1.00 4 [4 4] x 1.00 -"
    assert line in [words(line) for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------------------------------- lines


def made_up(median: float, **more: Any) -> dict[str, Any]:
    """A TEST FIXTURE: not a measurement."""
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


def test_each_network_has_a_line_with_its_measurements():
    assert words(benchmark.times_line(ROW)) == (
        "1-2-3, 4, adam, float64 100 [99 101] 200 [199 201] - - 250 [249 251] c 12346 [12345 12347]"
    )
    head, line = benchmark.ratio_lines([ROW])
    assert words(line) == "1-2-3, 4, adam, float64 2.00 / 1.00 - - 2.50 / 1.25 123.46 / 61.73 50 [49 51] 40% / 20%"
    assert len(head) == len(line)


def test_a_line_of_growth_has_both_ratios_and_the_time_per_product():
    before = ROW | {"flops": 500_000, "us a step": {"dnn": made_up(20.0)}}
    line = benchmark.growth_line(ROW | {"value": 64}, before, ["dnn"], [8, 14, 22, 12, 20])
    assert words(line) == "64 x 4.00 100 [99 101] x 5.00 100.0 ps"
    line = benchmark.growth_line(ROW | {"value": 64}, None, ["dnn"], [8, 14, 22, 12, 20])
    assert words(line) == "64 100 [99 101] 100.0 ps"


def test_threads_are_listed_with_their_speed_up():
    by_number = {n: {"us a step": {"dnn": made_up(100.0 / n)}} for n in (1, 2)}
    assert benchmark.threads_lines("1-2-3", by_number) == [["1-2-3", "dnn", "100 (1.00)", "50 (2.00)"]]


# ----------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["step"], "no section step: choose from steps, epochs, growth, threads, overhead, course,"),
        (["--peers", "torch,keras"], "no peer keras: choose from torch, jax, sklearn"),
        (["--networks", "1-2"], "no network 1-2: choose from 20-64-32-2, 784-256-128-10,"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--busy", "-1"], "--busy must be at least 0, got -1"),
        (["steps", "--plain"], "--plain is an option of compare"),
        (["compare"], "compare needs a commit to compare with: compare COMMIT"),
        (["compare", "no-such-commit", "steps"], "no commit no-such-commit in "),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(arguments: list[str], line: str, capsys):
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
    monkeypatch.setattr(facts, "ROOT", Path("/nowhere/at/all"))
    monkeypatch.delenv("DNN_SHARED", raising=False)
    with pytest.raises(benchmark.NotMeasured, match=r"no mnist\.h5"):
        benchmark.epochs(benchmark.parse(["epochs"]))


@pytest.mark.slow
def test_a_run_on_one_thread(tmp_path: Path):
    path = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "steps", "--peers", "none", "--threads", "1"]
    command += ["--rounds", "1", "--networks", "20-64-32-2", "--optimizer", "sgd", "--busy", "1", "--json", path]
    done = subprocess.run(command, env=os.environ | {"OPENBLAS_CORETYPE": "Haswell"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ", beside 1 busy process\n" in done.stdout
    assert "OPENBLAS_CORETYPE=Haswell is set" in done.stdout and "20-64-32-2, 32, sgd" in done.stdout
    there = json.loads(path.read_text())
    assert there["threads"] == 1 and there["cores"] == benchmark.number_of_cores() and there["versions"]["numpy"]
    ((row,),) = there["sections"]["steps"]
    assert {"dnn", "plain NumPy"} <= row["us a step"].keys() and row["failed"] == {} and 0 < row["share"]["dnn"] < 1
