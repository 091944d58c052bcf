"""The verification on a GPU, rehearsed without one: it resumes where it stopped, loses nothing, writes the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from dnn.backends import BackendUnavailableError, get_backend

sys.path.append(str(ROOT / "scripts"))

import facts
import gpu_check
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
            return figures

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
    with pytest.raises(SystemExit, match="gpu_check: failed: stage: one; stage: two"):
        checked(one=ValueError("no"), two={"ok": False, "differ by": 1.0}, three={})
    parts = written(checked.results)["parts"]
    assert parts["stage: one"]["error"] == "ValueError: no" and parts["stage: three"]["ok"]
    assert checked(one={}, two={}, three={}) == ["one", "two"]


def test_out_of_time_no_part_is_started_and_it_says_so(checked, monkeypatch):
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: next(clock))
    with pytest.raises(SystemExit, match="out of time in stage: run the same command again to continue"):
        checked("--minutes", "4", one={}, two={}, three={})
    assert list(written(checked.results)["parts"]) == ["stage: one", "stage: two"]


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
            "| 1-2, batch 3, sgd, float32 | 100 µs |  |  | 250 µs (2.50) |  |  |",
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


def test_the_parity_stage_passes_on_the_stand_in(monkeypatch):
    """Its results on a device other than the host, for some of the activations."""
    monkeypatch.setattr(gpu_check, "ACTIVATIONS", ["relu", "gelu"])
    parts = dict(gpu_check.parity("standin"))
    *numbers, costs, accuracy = parts
    figures = {name: parts[name]() for name in numbers}
    assert {name: part for name, part in figures.items() if not part["ok"]} == {}
    assert figures["fed from the host against on the device"]["fed"] == ["uint8", "float32"]
    assert figures["engine against NumPy"]["cases"] == 3 * 3 * 2
    monkeypatch.setattr(facts, "ROOT", Path("/nowhere/at/all"))
    monkeypatch.delenv("DNN_SHARED", raising=False)
    for name, file in ((costs, "application_four_layer.json"), (accuracy, "mnist.h5")):
        with pytest.raises(facts.NotMeasured, match=f"no {file}"):
            parts[name]()


def test_the_published_costs_and_the_accuracy_are_compared(shared: Path, monkeypatch):
    monkeypatch.setenv("DNN_SHARED", str(shared.parent))
    assert gpu_check.published_costs("numpy")["costs"] == 2
    accuracy = gpu_check.mnist_accuracy("numpy")
    assert accuracy["ok"] and 0.5 < accuracy["accuracy"]["numpy, float32"][0] < 1


def test_a_part_without_its_data_is_reported_without_failing_and_measured_later(checked, capsys):
    for _ in range(2):
        assert checked(one=facts.NotMeasured("no data")) == ["one"]
        assert "gpu_check: stage: one: not measured: no data" in capsys.readouterr().err
    assert checked(one={}) == ["one"] and checked(one={}) == []


def test_a_difference_from_numpy_is_detected(monkeypatch):
    weights = gpu_check.weights_of

    def off(network):
        return weights(network) * (1 + 1e-11 * (network.backend.name == "standin"))

    monkeypatch.setattr(gpu_check, "weights_of", off)
    monkeypatch.setattr(gpu_check, "ACTIVATIONS", ["relu"])
    monkeypatch.setattr(gpu_check, "OPTIMIZERS", ["sgd"])
    for part in ("engine_against_numpy", "second_fit", "weights_and_shuffles"):
        assert not getattr(gpu_check, part)("standin")["ok"]


def test_a_small_stage_in_rehearsal(monkeypatch):
    import peers

    monkeypatch.setattr(peers, "installed_modes", lambda backend: [])
    figures = {name: measure() for name, measure in gpu_check.small("numpy")}
    assert list(figures) == [
        f"{sizes}, {optimizer}, float32"
        for sizes in ("20-64-32-2, batch 32", "784-256-128-10, batch 128")
        for optimizer in ("sgd", "adam")
    ]
    assert all(part["us a step"]["dnn on numpy"]["by dnn"] == 1 for part in figures.values())


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
    Results(tmp_path, "A Device (1)").add("part", {"ok": True})
    assert os.listdir(tmp_path) == ["a-device-1.json"]
    assert Results(tmp_path, "A Device (1)").has("part") and not Results(tmp_path, "B").has("part")
    monkeypatch.setattr(gpu_check, "commit", lambda: "two")
    assert not Results(tmp_path, "A Device (1)").has("part")


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
    assert done.stderr.splitlines() == [
        f"gpu_check.sh: {bare} lacks numpy h5py tqdm cupy pytest hypothesis: install them, or give --wheels DIR"
    ]
    done = shell("--rehearse", "--help")
    assert done.returncode == 0
    for name in ("torch", "jax"):
        assert (f"no {name}: the comparison with it is left out" in done.stderr) == (find_spec(name) is None)
    assert ("steps run eagerly" in done.stderr) == (find_spec("nvmath") is None)


def test_wheels_come_from_a_folder(tmp_path: Path):
    copy = tmp_path / "a copy"
    (copy / "scripts").mkdir(parents=True)
    script = copy / "scripts" / "gpu_check.sh"
    script.write_text((ROOT / "scripts" / "gpu_check.sh").read_text())
    (copy / "scripts" / "gpu_check.py").write_text("import from_a_wheel\nprint(from_a_wheel.__file__)\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "from_a_wheel-1-py3-none-any.whl", "w") as wheel:
        about = "from_a_wheel-1.dist-info"
        wheel.writestr("from_a_wheel.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: from-a-wheel\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    run = ["bash", str(script), "--wheels", str(wheels), "--rehearse"]
    for _ in range(2):  # the second finds them there
        done = subprocess.run(run, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == copy / ".wheels" / "from_a_wheel.py"
    assert shell("--wheels", str(tmp_path / "none")).stderr == "gpu_check.sh: --wheels needs a folder of wheels\n"
