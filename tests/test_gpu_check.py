"""The verification on a GPU, rehearsed without one: it resumes where it stopped, loses nothing, writes the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin
from conftest import ROOT
from standin import StandinBackend

from dnn.backends import BackendUnavailableError, available_backends, get_backend, log_once, use_compiled_steps
from dnn.backends.base import compiled_steps
from dnn.backends.cupy_backend import _Graph

sys.path.append(str(ROOT / "scripts"))

import facts
import gpu_capture
import gpu_check
import gpu_parity
import gpu_speed
from gpu_capture import NotCaptured, Steps, capturing
from gpu_check import BEGIN, END, Results


@pytest.fixture
def checked(monkeypatch, tmp_path: Path):
    """Run gpu_check's main on a fake stage and GPU with the given parts; returns the names of those it measured."""
    measured: list[str] = []
    results = tmp_path / "results"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")

    def part(name: str, figures: Any):
        def measure() -> dict[str, Any]:
            measured.append(name)
            if isinstance(figures, BaseException):
                raise figures
            return figures() if callable(figures) else figures

        return name, measure

    def check(*arguments: str, **parts: Any) -> list[str]:
        measured.clear()
        monkeypatch.setattr(gpu_check, "STAGES", {"stage": lambda backend: (part(*item) for item in parts.items())})
        monkeypatch.setattr(gpu_check, "README", readme)
        gpu_check.main([*arguments, "--results", str(results)])
        return measured.copy()

    for module in (facts, gpu_check):
        monkeypatch.setattr(module, "get_backend", lambda name: get_backend("standin"))
    monkeypatch.setattr(gpu_check, "commit", lambda: "abc1234")
    monkeypatch.setattr(gpu_check, "version_of_cublas", lambda: "0.0.0")
    monkeypatch.setattr(gpu_check, "check_capture", lambda backend: None)
    monkeypatch.setattr(gpu_check, "lost", lambda backend: False)
    monkeypatch.delenv("GPU_CHECK_BEGAN", raising=False)
    check.results, check.readme = results, readme
    return check


def written(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_every_part_is_written_on_completion_with_commit_and_versions(checked):
    with pytest.raises(KeyboardInterrupt):
        checked(one={"value": 1}, two=KeyboardInterrupt())
    there = written(checked.results)
    assert there["device"] == "a stand-in for a GPU, in NumPy" and list(there["parts"]) == ["stage: one"]
    part = there["parts"]["stage: one"]
    assert part["ok"] and part["value"] == 1 and part["commit"] == "abc1234" and part["seconds"] >= 0
    assert part["versions"]["numpy"] == np.__version__ and "python" in part["versions"]


def test_it_resumes_where_it_stopped(checked, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        checked(one={}, two=KeyboardInterrupt(), three={})
    assert checked(one={}, two={}, three={}) == ["two", "three"]
    assert checked(one={}, two={}, three={}) == []
    assert "stage: one: already measured for abc1234" in capsys.readouterr().out
    assert checked("stage", "--again", one={}, two={}, three={}) == ["one", "two", "three"]
    monkeypatch.setattr(gpu_check, "commit", lambda: "def5678")
    assert checked(one={}, two={}, three={}) == ["one", "two", "three"]


def test_a_failed_part_is_reported_and_measured_again(checked, capsys):
    with pytest.raises(SystemExit, match=r"gpu_check: failed: stage: one \(ValueError: no\); stage: two$"):
        checked(one=ValueError("no"), two={"ok": False, "differ by": 1.0}, three={})
    parts = written(checked.results)["parts"]
    assert parts["stage: one"]["error"] == "ValueError: no" and parts["stage: three"]["ok"]
    assert checked(one={}, two={}, three={}) == ["one", "two"]


def test_out_of_time_no_part_is_started_and_it_says_so(checked, monkeypatch):
    with pytest.raises(SystemExit, match="out of time in stage: run the same command again to continue"):
        checked("--minutes", "0", one={})
    assert written(checked.results)["parts"] == {}


def sleeps() -> dict[str, Any]:
    time.sleep(30)
    return {}


def test_a_part_that_takes_too_long_fails_and_at_the_end_of_the_run_is_left_for_the_next(checked, monkeypatch):
    monkeypatch.setattr(gpu_check, "LIMIT", 0.1)
    with pytest.raises(SystemExit, match=r"failed: stage: one \(took more than 0.1 s\)"):
        checked(one=sleeps, two={})
    monkeypatch.setattr(gpu_check, "LIMIT", 240)
    parts = written(checked.results)
    with pytest.raises(SystemExit, match="failed: stage: one "):
        checked("--minutes", "0.005", one=sleeps, two={})
    assert written(checked.results)["parts"] == parts["parts"], "an older result is not lost"


def test_where_the_device_does_not_answer_the_process_ends():
    stuck = (
        "import signal, time, gpu_check\n"
        "gpu_check.GRACE = 0.1\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "with gpu_check.limit(0.1): time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", stuck], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.returncode == gpu_check.RUN_AGAIN
    assert done.stderr.splitlines()[-1] == "gpu_check: the device does not answer" and "line 4" in done.stderr


def test_after_a_crash_the_rest_is_measured_and_the_crash_is_a_failure(checked, monkeypatch, capsys):
    monkeypatch.setenv("GPU_CHECK_BEGAN", str(time.time()))
    monkeypatch.setattr(gpu_check, "lost", lambda backend: True)
    with pytest.raises(SystemExit) as ended:
        checked(one={}, two=RuntimeError("an illegal address"), three={})
    assert (
        ended.value.code == gpu_check.RUN_AGAIN and "two: the device is lost to this process" in capsys.readouterr().err
    )
    with pytest.raises(KeyboardInterrupt):  # stands for a process that is gone at once
        checked(one={}, two={}, three=KeyboardInterrupt(), four={})
    for arguments in ((), ("--again",)):
        with pytest.raises(
            SystemExit, match=r"two \(RuntimeError: an illegal address\); stage: three \(it ended the pro"
        ):
            checked(*arguments, one={}, two={}, three={}, four={})
    assert written(checked.results)["parts"]["stage: four"]["ok"]
    monkeypatch.setenv("GPU_CHECK_BEGAN", str(time.time()))
    assert checked(one={}, two={}, three={}, four={}) == ["two", "three"]


def test_a_rehearsal_writes_nothing(checked):
    assert checked("--rehearse", one={}) == ["one"]
    assert not checked.results.exists() and checked.readme.read_text() == f"before\n{BEGIN}\n{END}\nafter\n"


def test_an_unknown_stage_and_a_missing_gpu_are_reported(checked, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        checked("narrow")
    assert "no stage narrow: choose from stage and table" in capsys.readouterr().err

    def unusable(name: str):
        raise BackendUnavailableError("backend 'cupy': no NVIDIA driver")

    monkeypatch.setattr(gpu_check, "get_backend", unusable)
    with pytest.raises(SystemExit, match="gpu_check: backend 'cupy': no NVIDIA driver"):
        checked()


# ------------------------------------------------------------------------------------------------- table


def made_up() -> dict[str, Any]:
    """A TEST FIXTURE: not measured on any GPU."""

    def times(**medians: float) -> dict[str, Any]:
        ours = next(iter(medians.values()))
        return {
            name.replace("_", " "): {"median": value, "quartiles": [value, value], "by dnn": round(value / ours, 3)}
            for name, value in medians.items()
        }

    about = {"ok": True, "commit": "abc1234", "date": "2000-01-02"}
    about |= {"versions": {"python": "3.0", "numpy": "0.0", "driver": "000.0", "torch": "0.1"}}
    return {
        "device": "a made-up GPU (test fixture)",
        "parts": {
            "suite: test_step.py": about | {"summary": "9 passed"},
            "small: 1-2, batch 3, sgd, float32": about | {"us a step": times(dnn_on_cupy=100, PyTorch_graph=250)},
            "wide: 4-5, batch 6, sgd, float32": about
            | {"us a step": times(dnn_on_cupy=2000, JAX_jit=1000), "product rate, TFLOP/s": 1.0, "share of it": 0.456},
            "wide: 7-8, batch 9, sgd, float32": about | {"ok": False, "us a step": times(dnn_on_cupy=1)},
            "compiled: 1-2, batch 3, sgd, float32": about | {"us a step": times(dnn_on_cupy=110, PyTorch_compiled=220)},
            "epoch: MNIST": about | {"ms an epoch": times(dnn_on_cupy=50, PyTorch_eager=100)},
        },
    }


def test_the_table_has_the_measurements_and_their_context(tmp_path: Path):
    (tmp_path / "made-up.json").write_text(json.dumps(made_up()))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nan older table\n{END}\n\nafter\n")
    for _ in range(2):
        gpu_check.write_table(tmp_path, readme)
        assert readme.read_text().splitlines() == [
            "before",
            "",
            BEGIN,
            "a made-up GPU (test fixture), 2000-01-02, commit abc1234; python 3.0, numpy 0.0, driver 000.0, torch 0.1. "
            "Medians; in brackets, as a multiple of dnn's.",
            "",
            "| a step or an epoch of | dnn | PyTorch eager | PyTorch compiled | PyTorch graph | JAX jit "
            "| of the product rate |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            "| 1-2, batch 3, sgd, float32 | 100 µs |  | 220 µs (2.00) | 250 µs (2.50) |  |  |",
            "| 4-5, batch 6, sgd, float32 | 2000 µs |  |  |  | 1000 µs (0.50) | 46% |",
            "| MNIST | 50 ms | 100 ms (2.00) |  |  |  |  |",
            END,
            "",
            "after",
        ]


def test_without_results_the_readme_claims_no_speed_on_a_gpu(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nan older table\n{END}\nafter\n")
    gpu_check.write_table(tmp_path / "nowhere", readme)
    assert readme.read_text() == f"before\n{BEGIN}\n{END}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="expected the marks"):
        gpu_check.write_table(tmp_path, readme)


def test_the_projects_readme_has_the_table_of_its_results(tmp_path: Path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    gpu_check.write_table(gpu_check.RESULTS, copy)
    assert copy.read_text() == (ROOT / "README.md").read_text(), "run scripts/gpu_check.py table"


# -------------------------------------------------------------------------------------------- the stages


@pytest.fixture
def made(monkeypatch) -> Counter[str]:
    """What the backend is asked about captured steps, answered for the stand-in; networks that take little."""
    made: Counter[str] = Counter()
    compile_ = StandinBackend.compile

    def noting(self: StandinBackend, plan: Any) -> Any:
        step = compile_(self, plan)
        if compiled_steps():
            made["kernels"] += 1
            made["single"] += not isinstance(step, _Graph)
        return step

    def so_far(backend: StandinBackend) -> Steps:
        return Steps(standin.device.counts["graphs"], made["kernels"], made["single"], made["eager"])

    monkeypatch.setattr(StandinBackend, "compile", noting)
    monkeypatch.setattr(gpu_capture, "steps_so_far", so_far)
    monkeypatch.setattr(gpu_parity, "NETWORKS", [([6, 5, 3], 8)] * 2)
    return made


def test_the_parity_stage_passes_on_the_stand_in(monkeypatch, made):
    """Its results on a device other than the host, for one output and optimizer and two of the precisions."""
    monkeypatch.setattr(gpu_parity, "ACTIVATIONS", ["gelu"])
    monkeypatch.setattr(gpu_parity, "OPTIMIZERS", ["adam"])
    monkeypatch.setattr(gpu_parity, "HEADS", ["softmax"])
    assert len(gpu_parity.precisions_of("standin")) == 5
    monkeypatch.setattr(gpu_parity, "precisions_of", lambda backend: ["float64", "float16"])
    kinds = gpu_parity.kinds_of_steps("standin")
    assert len(kinds) == 2 * 2 and kinds[:2] == kinds[2:]  # `made` has the same network twice
    monkeypatch.setattr(gpu_parity, "kinds_of_steps", lambda backend: kinds[:2])
    parts = dict(gpu_parity.parity("standin"))
    *numbers, costs, accuracy = parts
    numbers.remove("memory over 1,000 fits")
    figures = {name: parts[name]() for name in numbers}
    assert {name: part for name, part in figures.items() if not part["ok"]} == {}
    assert figures["fed from the host against on the device"]["fed"] == ["uint8", "float32"]
    assert figures["engine against NumPy"]["cases"] == 1 + 1 + 1
    assert figures["captured against one by one"]["cases"] == 2
    assert next(iter(figures["captured against eager"]["weights differ by"])) == "6-5-3, float64"
    monkeypatch.setattr(facts, "ROOT", Path("/nowhere/at/all"))
    monkeypatch.delenv("DNN_SHARED", raising=False)
    for name, file in ((costs, "application_four_layer.json"), (accuracy, "mnist.h5")):
        with pytest.raises(facts.NotMeasured, match=f"no {file}"):
            parts[name]()


def test_memory_is_compared_over_many_fits(monkeypatch):
    assert gpu_parity.memory_over_fits("numpy")["fits"] == 4
    held = iter([(10, 20), (10, 20 + 17 * 2**20)])
    monkeypatch.setattr(gpu_parity, "bytes_held", lambda backend: next(held))
    assert not gpu_parity.memory_over_fits("numpy")["ok"]


def answering(*answers: tuple[int, int, int, int]):
    each = iter(answers)
    return lambda backend: Steps(*next(each))


@pytest.mark.parametrize(
    ("new", "settings", "why"),
    [
        ((3, 2, 0, 0), {}, None),
        ((0, 2, 2, 0), {}, None),  # a single kernel needs no graph
        ((0, 2, 1, 0), {}, "no step was captured: its kernels were launched one by one"),
        ((0, 0, 0, 0), {}, "no derived kernel ran: steps ran operation by operation"),
        ((3, 2, 0, 1), {}, "no derived kernel ran: steps ran operation by operation"),
        ((0, 2, 0, 0), {"graphs": False}, None),
        ((1, 2, 0, 0), {"graphs": False}, "a captured step ran"),
        ((0, 0, 0, 1), {"kernels": False, "graphs": False}, None),
        ((0, 1, 1, 0), {"kernels": False, "graphs": False}, "a captured step ran"),
    ],
)
def test_what_ran_is_what_was_meant(new, settings, why, monkeypatch):
    monkeypatch.setattr(gpu_capture, "steps_so_far", answering((5, 5, 5, 5), tuple(5 + n for n in new)))
    with nullcontext() if why is None else pytest.raises(NotCaptured, match=why), capturing("standin", **settings):
        pass


@pytest.mark.parametrize("part", ["engine_against_numpy", "captured_against_one_by_one", "captured_against_eager"])
def test_where_nothing_is_captured_parity_fails(part, made, monkeypatch):
    monkeypatch.setattr(gpu_capture, "steps_so_far", lambda backend: Steps(7, 7, 7, 7))
    with pytest.raises(NotCaptured, match="no derived kernel ran"):
        getattr(gpu_parity, part)("standin")


def test_an_eager_fit_must_not_be_captured(made, monkeypatch):
    monkeypatch.setattr(gpu_parity, "use_compiled_steps", lambda compiled: use_compiled_steps(True))
    with pytest.raises(NotCaptured, match="a captured step ran"):
        gpu_parity.captured_against_eager("standin")


def test_what_the_backend_tells_of_its_steps():
    tells = SimpleNamespace(name="it", launches=9, made=Counter({"block": 1, "grid": 2, "launches": 4}))
    assert gpu_capture.steps_so_far(tells) == Steps(9, 7, 3, 0)
    for name in ("launches", "made"):
        silent = SimpleNamespace(**{key: value for key, value in vars(tells).items() if key != name})
        with pytest.raises(NotCaptured, match=f"the backend it has no '{name}', so nothing shows"):
            gpu_capture.steps_so_far(silent)


def test_the_switch_for_steps_without_a_graph_is_still_there():
    assert _Graph.WARM_UP < 10
    with gpu_capture.one_by_one():
        assert _Graph.WARM_UP > 10**6


def test_the_run_ends_at_once_with_the_backends_reason_where_nothing_is_captured(checked, monkeypatch):
    def so_far(backend):
        log_once("this step cannot be captured as a CUDA graph (a test)")
        return Steps(7, 7, 7, 7)

    monkeypatch.setattr(gpu_capture, "steps_so_far", so_far)
    monkeypatch.setattr(gpu_check, "check_capture", lambda backend: gpu_capture.check_capture("standin"))
    with pytest.raises(SystemExit) as ended:
        checked(one={})
    assert ended.value.code == (
        "gpu_check: a first fit fails: no derived kernel ran: steps ran operation by operation; "
        "this step cannot be captured as a CUDA graph (a test)"
    )
    assert not checked.results.exists()


def test_the_nodes_of_a_step_are_counted_for_every_optimizer_and_precision(made, monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(gpu_speed, "COUNTED", [6, 5, 3])
    ((name, measure),) = gpu_speed.count_nodes("standin")
    figures = measure()
    assert name == "6-5-3, batch 128" and figures["ok"]
    assert figures["nodes a step"] == {
        f"{optimizer}, {precision}": {"launches": 1}
        for optimizer in ("sgd", "adam")
        for precision in ("float64", "float32", "tf32", "float16", "bfloat16")
    }
    run = SimpleNamespace(_step=SimpleNamespace(counts=Counter(launches=3, products=4)))
    assert gpu_capture.nodes(SimpleNamespace(_run=run)) == {"launches": 3, "products": 4}


def test_the_suite_is_what_depends_on_the_backend():
    figures = gpu_parity.tests_of("numpy", "numpy and test_backends", "tests/test_backends.py")
    assert figures["ok"] and " passed" in figures["summary"] and not figures["failed"]
    nothing = gpu_parity.tests_of("numpy", "no_such_test", "tests/test_backends.py")
    assert not nothing["ok"] and "deselected" in nothing["summary"]
    missing = gpu_parity.tests_of("cupy", "cupy and test_arrays", "tests/test_backends.py")
    if "cupy" not in available_backends():
        assert not missing["ok"]


def test_the_published_costs_and_the_accuracy_are_compared(shared: Path, monkeypatch):
    monkeypatch.setenv("DNN_SHARED", str(shared.parent))
    assert gpu_parity.published_costs("numpy")["costs"] == 2
    accuracy = gpu_parity.mnist_accuracy("numpy")
    assert accuracy["ok"] and 0.5 < accuracy["accuracy"]["numpy, float32"][0] < 1


def test_a_part_without_its_data_is_no_pass_and_measured_later(checked, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"gpu_check: skipped, so this is no pass: stage: one$"):
            checked(one=facts.NotMeasured("no data"), two={})
        assert "gpu_check: not measured: stage: one: no data" in capsys.readouterr().err
    assert checked(one={}, two={}) == ["one"] and checked(one={}) == []


def test_what_was_not_measured_is_said_last_and_written_down(checked, monkeypatch, capsys):
    absent = {"left out": {"torch": "not installed"}}
    suite = {"summary": "3 passed, 1 skipped in 1 s", "skipped": ["SKIPPED [1] ..."]}
    assert checked(one=absent, two=absent, three=suite) == ["one", "two", "three"]
    gaps = ["torch: not installed (2 parts)", "stage: three: 3 passed, 1 skipped in 1 s"]
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"gpu_check: not measured: {gap}" for gap in gaps]
    assert said.out.splitlines()[-1] == "gpu_check: 3 parts passed, but 2 gaps are named above"
    assert written(checked.results)["not measured"] == {"commit": "abc1234", "what": gaps}
    monkeypatch.setattr(gpu_check, "commit", lambda: "def5678")
    with pytest.raises(SystemExit, match="out of time"):
        checked("--minutes", "0", one={}, two={})
    assert written(checked.results)["not measured"]["what"] == ["stage: 2 of its parts not run"]


def test_a_difference_from_numpy_is_detected(monkeypatch, made):
    weights = gpu_capture.weights_of

    def off(network):
        return weights(network) * (1 + 1e-11 * (network.backend.name == "standin"))

    for module in (gpu_capture, gpu_parity):
        monkeypatch.setattr(module, "weights_of", off)
    monkeypatch.setattr(gpu_parity, "ACTIVATIONS", ["relu"])
    monkeypatch.setattr(gpu_parity, "OPTIMIZERS", ["sgd"])
    monkeypatch.setattr(gpu_parity, "HEADS", ["softmax"])
    for part in ("engine_against_numpy", "larger_against_numpy", "second_fit", "weights_and_shuffles"):
        assert not getattr(gpu_parity, part)("standin")["ok"]


def test_a_small_stage_in_rehearsal(monkeypatch):
    import peers

    monkeypatch.setattr(peers, "installed_modes", lambda backend: [])
    monkeypatch.setattr(gpu_speed, "find_spec", lambda name: None)
    gpu_speed.peers_here.cache_clear()
    figures = {name: measure() for name, measure in gpu_speed.small("numpy")}
    gpu_speed.peers_here.cache_clear()
    assert list(figures) == [
        f"{sizes}, {optimizer}, float32"
        for sizes in ("20-64-32-2, batch 32", "784-256-128-10, batch 128")
        for optimizer in ("sgd", "adam")
    ]
    for part in figures.values():
        assert part["us a step"]["dnn on numpy"]["by dnn"] == 1
        assert part["left out"] == {"torch": "not installed", "jax": "not installed"}


def test_a_peer_that_fails_or_differs_is_left_out_with_the_reason(monkeypatch, capsys):
    import peers

    class Broken:
        def __init__(self, *arguments: Any) -> None:
            raise RuntimeError("no such device\nand more")

    class Wrong(peers.Dnn):
        name = "JAX jit"

        def __init__(self, start, X, Y, optimizer, precision) -> None:
            super().__init__([5, 4, 2], X, Y, "adam" if optimizer == "sgd" else "sgd", "numpy")

    monkeypatch.setattr(peers, "Torch", Broken)
    monkeypatch.setattr(peers.Jax, "__new__", lambda cls, *arguments: Wrong(*arguments))
    every, failed = peers.contenders([5, 4, 2], 8, "sgd", "numpy", ["graph", "jax"])
    assert [contender.name for contender in every] == ["dnn on numpy"]
    assert failed["PyTorch graph"] == "RuntimeError: no such device"
    assert failed["JAX jit"].startswith("ValueError: computes something else: weights differ by")


def test_the_flops_of_a_step_are_counted():
    # forward and dW of both layers, dA of the second: 2 m n k each
    assert facts.flops([3, 4, 5], 10) == 2 * 10 * (12 + 20 + 12 + 20 + 20)


def test_results_of_another_commit_do_not_count(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gpu_check, "commit", lambda: "one")
    Results(tmp_path, "A Device (1)", {}, 0).add("part", {"ok": True})
    assert os.listdir(tmp_path) == ["a-device-1.json"]
    now = time.time()
    assert Results(tmp_path, "A Device (1)", {}, now).has("part") and not Results(tmp_path, "B", {}, now).has("part")
    monkeypatch.setattr(gpu_check, "commit", lambda: "two")
    assert not Results(tmp_path, "A Device (1)", {}, now).has("part")


# --------------------------------------------------------------------------------------------- the script


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )


def test_missing_packages_are_reported_at_once(tmp_path: Path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = shell("small", PYTHON=str(bare))
    assert done.returncode == 1 and done.stdout == ""
    packages = "numpy h5py tqdm threadpoolctl cupy cuda.pathfinder llvmlite ml_dtypes pytest hypothesis"
    assert done.stderr.splitlines() == [f"gpu_check.sh: {bare} lacks {packages}: install them, or give --wheels DIR"]
    done = shell("--rehearse", "--help")
    assert done.returncode == 0
    for name in ("torch", "jax"):
        assert (f"no {name}: the comparison with it is left out" in done.stderr) == (find_spec(name) is None)


def test_an_old_python_is_reported(tmp_path: Path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) exit 1;; esac\n')
    old.chmod(0o755)
    done = shell("small", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"gpu_check.sh: {old} is older than Python 3.11: set PYTHON"]


def fakes(folder: Path, **modules: str) -> Path:
    """Modules by name, dots as __, with their source: what is missing here, or behaves as on a broken machine."""
    for name, source in modules.items():
        path = folder / "fakes" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "fakes"


MISSING = {name: "" for name in ("llvmlite", "ml_dtypes") if find_spec(name) is None}


@pytest.mark.parametrize(
    ("pathfinder", "why"),
    [
        (
            "def load_nvidia_dynamic_lib(name): raise RuntimeError(f'no lib{name}.so.13\\nsearched ...')",
            "no libcublas.so.13",
        ),
        (
            f"class load_nvidia_dynamic_lib:\n def __init__(self, name): self.abs_path = {__file__!r}",
            "invalid ELF header",
        ),
        ("", "cannot import name 'load_nvidia_dynamic_lib'"),
    ],
)
def test_where_cublas_does_not_load_one_line_says_why(pathfinder, why, tmp_path: Path):
    modules = fakes(tmp_path, cupy="", cuda__pathfinder=pathfinder, **MISSING)
    done = shell("small", "--results", str(tmp_path / "results"), PYTHONPATH=str(modules))
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gpu_check: cuBLAS does not load: ") and why in last
    assert not (tmp_path / "results").exists()


LOADS = """
import ctypes
from types import SimpleNamespace
load_nvidia_dynamic_lib = lambda name: SimpleNamespace(abs_path=None)
ctypes.CDLL = lambda path: SimpleNamespace(cublasGetProperty=lambda kind, at: 0)
"""


def test_where_cupy_does_not_work_one_line_says_why(tmp_path: Path):
    modules = fakes(tmp_path, cupy="raise ImportError('libnvrtc.so.13: not found')", cuda__pathfinder=LOADS, **MISSING)
    done = shell("small", PYTHONPATH=str(modules))
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gpu_check: backend 'cupy': ") and "libnvrtc.so.13: not found" in last


def in_a_copy(place: Path, name: str, checks: str) -> list[str]:
    """The command that runs a copy of the script, with this in place of gpu_check.py."""
    (place / "scripts").mkdir(parents=True)
    (place / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    (place / "scripts" / "gpu_check.py").write_text(checks)
    return ["bash", str(place / "scripts" / name)]


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()"])
def test_a_crash_is_followed_by_another_process_with_the_same_beginning(end, tmp_path: Path):
    log = tmp_path / "log"
    command = in_a_copy(
        tmp_path / "a copy",
        "gpu_check.sh",
        f"""
import os, signal, sys
with open({str(log)!r}, "a") as file: file.write(os.environ["GPU_CHECK_BEGAN"] + "\\n")
if len(open({str(log)!r}).readlines()) < 3: {end}
sys.exit("gpu_check: failed: x")
""",
    )
    modules = fakes(tmp_path, cupy="", cuda__pathfinder="", **MISSING)
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(modules)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "gpu_check: failed: x"
    began = log.read_text().splitlines()
    assert len(began) == 3 and len(set(began)) == 1


def a_wheel(folder: Path, name: str = "from_a_wheel", source: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        about = f"{name}-1.dist-info"
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_wheels_come_from_a_folder(tmp_path: Path):
    copy, wheels = tmp_path / "a copy", tmp_path / "wheels"
    command = in_a_copy(copy, "gpu_check.sh", "import from_a_wheel\nprint(from_a_wheel.__file__)\n")
    a_wheel(wheels)
    run = [*command, "--wheels", str(wheels), "--rehearse"]
    for _ in range(2):  # the second finds them there
        done = subprocess.run(run, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == copy / ".wheels" / "from_a_wheel.py"
    assert shell("--wheels", str(tmp_path / "none")).stderr == "gpu_check.sh: --wheels needs a folder of wheels\n"
    (wheels / "from_a_wheel-1-py3-none-any.whl").write_text("no wheel")
    done = subprocess.run(run, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"gpu_check.sh: the wheels of {wheels} cannot be installed: see the lines above"
    )


# --------------------------------------------------------------------------------------------- the wheels


def gathered(tmp_path: Path, *arguments: str, answer: str = ":") -> subprocess.CompletedProcess[str]:
    """Run gpu_wheels.sh with a pip whose download is the shell command `answer`, with $folder."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/bash
case "$*" in
    *"pip download"*) folder="{tmp_path}/wheels"; echo "$*" > "{tmp_path}/asked"; {answer} ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    )
    python.chmod(0o755)
    command = ["bash", str(ROOT / "scripts" / "gpu_wheels.sh"), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)


def test_the_wheels_are_gathered_and_still_install_when_made_smaller(tmp_path: Path):
    source = "x = 1\n" * 100_000
    given = a_wheel(tmp_path / "given", "llvmlite", source)
    wheels = tmp_path / "wheels"
    done = gathered(tmp_path, str(wheels), answer=f'cp "{given}" "$folder"')
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    assert {"llvmlite", "hypothesis", "--only-binary=:all:", "manylinux_2_28_x86_64"} <= set(asked)
    assert asked[asked.index("--python-version") + 1] == "3.12" and not {"numpy", "cupy-cuda13x", "torch"} & set(asked)
    (smaller,) = wheels.iterdir()
    size = smaller.stat().st_size
    assert size < given.stat().st_size / 10
    assert done.stdout.splitlines()[-1].split() == [str(size), "bytes", "in", "all"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", tmp_path / "there", smaller]
    subprocess.run(install, check=True, capture_output=True)
    assert (tmp_path / "there" / "llvmlite.py").read_text() == source
    done = gathered(tmp_path, str(wheels))
    assert done.returncode == 2 and "holds wheels already" in done.stderr


def test_named_packages_alone_are_gathered(tmp_path: Path):
    done = gathered(tmp_path, str(tmp_path / "wheels"), "tqdm", answer='touch "$folder/tqdm-1-py3-none-any.whl"')
    assert done.returncode == 0 and (tmp_path / "asked").read_text().split()[-1] == "tqdm"


def test_too_many_bytes_or_no_wheel_are_failures(tmp_path: Path):
    done = gathered(tmp_path, str(tmp_path / "wheels"), answer='truncate -s 61M "$folder/numpy-1.whl"')
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "gpu_wheels.sh: more than 60000000 bytes: name the packages that the machine lacks"
    ]
    (tmp_path / "wheels" / "numpy-1.whl").unlink()
    done = gathered(tmp_path, str(tmp_path / "wheels"), answer="echo no matching distribution >&2; exit 1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "gpu_wheels.sh: not all wheels are to be had: see the lines above"
    assert gathered(tmp_path).returncode == gathered(tmp_path, "--help").returncode == 2
