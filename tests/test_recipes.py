"""The recipes: each is the same training in Python, on the command line and in PyTorch."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, find_shared

sys.path.append(str(ROOT / "scripts"))

pytest.importorskip("sklearn")

import make_dataset
import recipes
from make_dataset import DATA_SETS, Data, as_file
from recipes import RECIPES, command_of, data_of, measured_by_dnn

import dnn
from dnn.backends import use_compiled_steps
from dnn.cli import main
from dnn.inference import outputs

ON_THE_COMMAND_LINE = [name for name in RECIPES if name != "mnist"]

Train = Callable[..., dict[str, float]]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Train:
    """What `dnn train` measures on the test part; the model is in the folder model."""

    def train(path: str, *flags: str) -> dict[str, float]:
        assert main(["train", path, *flags, "--seed", "1", "--out", "model", "--json", "--quiet"]) == 0
        measured: dict[str, float] = json.loads(capsys.readouterr().out)["test"]
        return measured

    return train


def small(name: str) -> Data:
    data = data_of(name)
    some = 1500 if name == "hundred" else 300
    return Data(data.X[:some], data.Y[:some], data.X_test[:100], data.Y_test[:100], data.classes)


def test_the_data_sets_are_the_recipes():
    assert list(DATA_SETS) == ON_THE_COMMAND_LINE


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_a_recipe_in_small_is_the_same_on_the_command_line(name, tmp_path: Path, monkeypatch, train: Train):
    monkeypatch.chdir(tmp_path)
    if name != "hundred":  # whose steps take longer operation by operation than to compile
        use_compiled_steps(False)
    data = small(name)
    Path("data.h5").write_bytes(as_file(data))
    found = train("data.h5", *shlex.split(RECIPES[name].flags), "--epochs", "2")
    network, settings = RECIPES[name].make(1)
    measured = measured_by_dnn(network, replace(settings, epochs=2), data)
    assert {*RECIPES[name].measures} <= measured.keys()
    assert found == {measure: measured[measure] for measure in found}
    np.testing.assert_array_equal(dnn.load("model/model.h5").predict(data.X_test), network.predict(data.X_test))


@pytest.mark.parametrize(
    "name, measure, bar",
    [
        pytest.param("digits", "accuracy", 0.975, marks=pytest.mark.slow),
        ("breast_cancer", "roc_auc", 0.99),
        ("diabetes", "r2", 0.4),
    ],
)
def test_the_commands_reach_what_the_recipe_does(name, measure, bar, tmp_path: Path, monkeypatch, train: Train):
    monkeypatch.chdir(tmp_path)
    make, command = (shlex.split(line) for line in command_of(name).splitlines())
    assert make[:2] == ["python", "scripts/make_dataset.py"]
    monkeypatch.setattr(sys, "argv", make[1:])
    make_dataset.main()
    assert command[:2] == ["dnn", "train"] and command[-2:] == ["--seed", "1"]
    found = train(*command[2:-2])
    measured = measured_by_dnn(*RECIPES[name].make(1), data_of(name))
    assert found == {measure: measured[measure] for measure in found}
    assert found[measure] >= bar


def test_a_data_set_without_a_file_is_not_taken_for_one(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_dataset.py", "imbalanced"])
    with pytest.raises(SystemExit):
        make_dataset.main()
    assert "name the file after it, as in imbalanced runs/imbalanced.h5" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_mnist_in_small():
    if not (find_shared() / "mnist.h5").exists():
        pytest.skip("mnist.h5 is not in the shared data")
    network, settings = RECIPES["mnist"].make(1)
    measured = measured_by_dnn(network, replace(settings, epochs=2, batch_size=30), small("mnist"))
    assert measured["accuracy"] > 0.4


def test_coverage_counts_the_values_between_the_outer_quantiles():
    answers = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    assert recipes.coverage(answers, np.array([[0.0], [2.0], [2.1], [1.0]])) == 0.5


def test_the_table_and_the_file(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "runs.json"
    arguments = ["diabetes", "quantiles", "--seeds", "2", "--no-torch", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["recipes.py", *arguments])
    recipes.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["diabetes", "rmse"],
        ["diabetes", "r2"],
        ["quantiles", "pinball loss"],
        ["quantiles", "coverage"],
    ]
    found = json.loads(path.read_text())["recipes"]
    r2 = [run["r2"] for run in found[0]["dnn"]]
    assert rows[1][2:4] == [f"{np.mean(r2):.4f} ± {np.std(r2, ddof=1):.4f}", "-"]


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_the_network_in_pytorch_is_the_same(name, monkeypatch):
    """From the same weights, with the same batches and without dropout, its answers are."""
    torch = pytest.importorskip("torch")
    made, settings = RECIPES[name].make(1)
    network = dnn.Network(
        made.layer_sizes[0],
        [layer for layer in made.layers if not isinstance(layer, dnn.Dropout)],
        seed=1,
        **{setting: getattr(made, setting) for setting in ("output", "loss", "input_scale", "target_scale")},
    )
    settings = replace(settings, epochs=2, shuffle=False, validation_split=0.0, early_stopping=None)
    twin, data = recipes.Twin(network, settings), small(name)
    linear = [module for module in twin.model if isinstance(module, torch.nn.Linear)]
    drawn = [module.weight.detach() * (module.in_features / 2) ** 0.5 for module in linear]
    assert float(torch.cat([weights.flatten() for weights in drawn]).std()) == pytest.approx(1, rel=0.1)
    for number, module in enumerate(linear, start=1):
        module.weight.data = torch.from_numpy(np.array(network.parameters[f"W{number}"]))
    monkeypatch.setattr(torch, "randperm", torch.arange)
    twin.fit(data)
    network.fit(data.X, data.Y, **vars(settings))
    P = outputs(network, data.X_test)
    np.testing.assert_allclose(twin.answers(twin.scaled(data.X_test)), P, rtol=1e-4, atol=1e-4 * np.abs(P).max())


def test_the_network_in_pytorch_stops_early_and_has_its_measures():
    pytest.importorskip("torch")
    for name in ("imbalanced", "quantiles"):
        network, settings = RECIPES[name].make(1)
        settings = replace(settings, epochs=2)
        measured = recipes.measured_by_torch(network, settings, small(name), RECIPES[name].measures)
        assert measured.keys() == {*RECIPES[name].measures, "seconds"}
        assert all(np.isfinite(value) for value in measured.values())
