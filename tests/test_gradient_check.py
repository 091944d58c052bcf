"""The gradient check: it passes what is right, and finds every planted fault."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import dnn
from dnn.activations import ACTIVATIONS
from dnn.cli import main
from dnn.errors import DataError, NonFiniteLossError
from dnn.gradient_check import (
    DIRECTIONS,
    NEARBY,
    NO_GRADIENT,
    NOT_CHECKED,
    RIGHT,
    WRONG,
    GradientCheck,
    _Probe,
    gradient_check,
)
from dnn.heads import HEADS
from dnn.layers import LAYERS, Place, walk
from dnn.losses import BUILT_IN, outputs_per_target
from dnn.step import Step

RNG = np.random.default_rng(5)
X = RNG.standard_normal((16, 4))
CODES = np.hstack([RNG.integers(-1, 4, (16, 1)), X[:, :3]])
Y = RNG.integers(0, 2, 16)
VALUES = RNG.integers(0, 5, (16, 2)).astype(float)
"""Counts, so that every loss of a linear output takes them."""


def between(*layers: dnn.layers.Layer) -> list[dnn.layers.Layer]:
    """The layers with parameters before them, which dX reaches, and after them."""
    return [dnn.Dense(5), *layers, dnn.Dense(1)]


OF_LAYERS = {
    "Dense": (between(dnn.Dense(4, "tanh", bias=False)), {}),
    "Activation": (between(dnn.layers.Activation("silu")), {}),
    "PReLU": (between(dnn.PReLU()), {}),
    "Scale": ([dnn.Scale(), *between(dnn.Scale(0.7))], {}),
    "BatchNorm": (between(dnn.BatchNorm()), {}),
    "LayerNorm": (between(dnn.LayerNorm()), {}),
    "RMSNorm": (between(dnn.RMSNorm()), {}),
    "Dropout": (between(dnn.Dropout(0.4)), {}),
    "scheduled Dropout": (between(dnn.Dropout(0.4, dnn.Cosine())), {}),
    "AlphaDropout": (between(dnn.AlphaDropout(0.3)), {}),
    "Residual": (between(dnn.Residual([dnn.Dense(3, "mish"), dnn.BatchNorm(), dnn.Dense(5)])), {}),
    "NumericalEmbedding": (between(dnn.NumericalEmbedding("periodic", 3, 2, sigma=0.3)), {}),
    "piecewise NumericalEmbedding": ([dnn.NumericalEmbedding(size=3), *between()], {}),
    "CategoricalEmbedding": ([dnn.CategoricalEmbedding([0], [3], 2), *between()], {}),
    "members": (between(dnn.BatchNorm(), dnn.Dropout(0.2)), {"members": 3}),
    "shared": (between(dnn.Dense(4, "tanh"), dnn.Dropout(0.2)), {"members": 3, "shared": "tabm"}),
}


def of_layer(name: str) -> tuple[dnn.Network, np.ndarray]:
    layers, settings = OF_LAYERS[name]
    network = dnn.Network(4, layers, **settings)
    moved(network)
    return network, CODES if name == "CategoricalEmbedding" else X


def moved(network: dnn.Network) -> None:
    """No parameter as it begins: a bias of 0 or a factor of 1 could hide a fault."""
    generator = np.random.default_rng(6)
    for name, view in network.parameters.items():
        network.parameters[name] = view + 0.3 * generator.standard_normal(view.shape)


def of_activation(name: str) -> dnn.Network:
    network = dnn.Network([4, 5, 4, 1], activation=name)
    moved(network)
    return network


def of_loss(name: str) -> tuple[dnn.Network, np.ndarray]:
    loss = BUILT_IN[name]()
    output = loss.heads[0]
    targets = {"sigmoid": np.eye(2)[Y], "softmax": Y, "linear": VALUES}[output]
    network = dnn.Network([4, 5, 2 * outputs_per_target(loss)], activation="tanh", output=output, loss=loss)
    moved(network)
    return network, targets


def wrong(found: GradientCheck) -> list[str]:
    return [row.name for row in found.rows if row.verdict == WRONG]


# ------------------------------------------------------------------------------------ right ones pass


def test_there_is_a_case_for_every_layer():
    kinds = {type(each).__name__ for layers, _ in OF_LAYERS.values() for each, *_ in walk(layers, 4)}
    assert kinds >= LAYERS.keys()


@pytest.mark.parametrize("name", OF_LAYERS)
def test_every_layer_passes(name):
    network, inputs = of_layer(name)
    found = gradient_check(network, inputs, Y)
    assert found, found
    assert {row.name for row in found.rows} == set(network.parameters)
    assert all(row.verdict in (RIGHT, NO_GRADIENT) for row in found.rows), found


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_passes(name):
    found = gradient_check(of_activation(name), X, Y)
    assert found and all(row.verdict == RIGHT and row.error < 1e-7 for row in found.rows), found


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_loss_passes(name):
    network, targets = of_loss(name)
    found = gradient_check(network, X, targets)
    assert found and all(row.verdict == RIGHT for row in found.rows), found


@pytest.mark.parametrize(
    ("settings", "inputs", "targets", "weights"),
    [
        ({}, X, Y, {"sample_weight": np.linspace(0, 2, 16)}),
        ({"output": "softmax"}, X, Y, {"class_weight": {0: 3.0}, "sample_weight": np.linspace(0, 2, 16)}),
        ({"members": 2}, X, Y, {"class_weight": "balanced"}),
        (
            {"output": "linear"},
            X,
            np.where(RNG.random((16, 2)) < 0.4, np.nan, VALUES),
            {"missing_targets": "mask"},
        ),
        ({}, RNG.integers(0, 256, (16, 4), np.uint8), Y, {}),
        ({}, X.tolist(), Y.tolist(), {}),
        ({"dtype": "float64", "input_scale": 3.0}, X, Y, {}),
    ],
)
def test_weights_missing_targets_and_kinds_of_input_pass(settings, inputs, targets, weights):
    outputs = 1 if settings.get("output", "sigmoid") == "sigmoid" else 2
    network = dnn.Network([4, 5, outputs], activation="tanh", **settings)
    found = gradient_check(network, inputs, targets, **weights)
    assert found, found


def test_a_trained_network_in_float32_is_checked_in_float64():
    network = dnn.Network([4, 16, 8, 1], norm=["batch", None], dropout=0.2)
    with dnn.backends.use_compiled_steps(False):
        network.fit(X, Y, epochs=20, batch_size=8, verbose=False)
    found = gradient_check(network, X, Y)
    assert found and all(row.error < 1e-6 for row in found.rows), found


# ------------------------------------------------------------------------------------ wrong ones do not


class Tampered:
    """Multiplies one result of the functions that layers call in their backward passes, in the order of the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.results: list[str] = []
        """The functions that gave them."""
        self.gradients: list[dict[str, np.ndarray]] = []
        call, backward, measure = Place.call, Step._backward, _Probe._measure
        in_backward = False

        def tampered_call(at_place, function, /, *inputs, **settings):
            results = call(at_place, function, *inputs, **settings)
            if not in_backward:
                return results
            found = list(results) if isinstance(results, tuple) else [results]
            for at, value in enumerate(found):
                self.results.append(function.__name__)
                if len(self.results) - 1 == number:
                    found[at] = call(at_place, scaled, value)
            return tuple(found) if isinstance(results, tuple) else found[0]

        def tampered_backward(step, *given):
            nonlocal in_backward
            in_backward = True
            backward(step, *given)
            in_backward = False

        def recorded(probe, *given):
            measure(probe, *given)
            self.gradients.append({name: probe.gradient(name).copy() for name in probe.parameters})

        monkeypatch.setattr(Place, "call", tampered_call)
        monkeypatch.setattr(Step, "_backward", tampered_backward)
        monkeypatch.setattr(_Probe, "_measure", recorded)


def scaled(xp, a):
    return a * 1.01


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_fault_in_any_result_of_a_layers_backward_is_found_and_its_parameters_named(name):
    found_out = set()
    with pytest.MonkeyPatch.context() as monkeypatch:
        untouched = Tampered(monkeypatch, -1)
        network, inputs = of_layer(name)
        assert gradient_check(network, inputs, Y, coordinates=1)
    before = untouched.gradients[0]
    for number, function in enumerate(untouched.results):
        with pytest.MonkeyPatch.context() as monkeypatch:
            tampered = Tampered(monkeypatch, number)
            found = gradient_check(network, inputs, Y, coordinates=1)
        after = tampered.gradients[0]
        changed = [n for n in before if np.abs(after[n] - before[n]).max() > 1e-4 * np.abs(before[n]).max() + 1e-12]
        assert sorted(wrong(found)) == sorted(changed), (function, number, str(found))
        assert bool(found) == (not changed)
        found_out |= {function} if changed else set()
    # what nothing reads: dX of a first layer, and the gradient of a bias that is not there
    assert set(untouched.results) - found_out <= {"_back_in_place"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_wrong_backward_of_any_activation_is_found(name, monkeypatch):
    right = ACTIVATIONS[name]
    backward = lambda xp, dA, *saved: right.backward(xp, dA, *saved) * 1.001  # noqa: E731
    monkeypatch.setitem(ACTIVATIONS, name, replace(right, backward=backward))
    found = gradient_check(of_activation(name), X, Y)
    # the output layer is above it
    assert sorted(wrong(found)) == ["W1", "W2", "b1", "b2"], found
    assert not found and "wrong: " in str(found)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_wrong_gradient_of_any_loss_is_found(name, monkeypatch):
    network, targets = of_loss(name)
    gradient = BUILT_IN[name].gradient
    monkeypatch.setattr(BUILT_IN[name], "gradient", lambda self, xp, Z, Y: gradient(self, xp, Z, Y) * 1.001)
    assert sorted(wrong(gradient_check(network, X, targets))) == ["W1", "W2", "b1", "b2"]


@pytest.mark.parametrize("output", HEADS)
def test_a_wrong_gradient_of_every_outputs_own_loss_is_found(output, monkeypatch):
    kind = type(HEADS[output].loss)
    gradient = kind.gradient
    network = dnn.Network([4, 5, 2], activation="tanh", output=output)
    targets = {"sigmoid": np.eye(2)[Y], "softmax": Y, "linear": VALUES}[output]
    assert gradient_check(network, X, targets)
    monkeypatch.setattr(kind, "gradient", lambda self, xp, Z, Y: gradient(self, xp, Z, Y) * (Z > 0))
    assert not gradient_check(network, X, targets)


@pytest.mark.parametrize("factor", [2.0, 2.01])
def test_a_users_own_activation(factor, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "square", None)
    dnn.register_activation("square", lambda xp, Z: Z * Z, lambda xp, dA, Z: dA * (factor * Z), saves="Z")
    assert bool(gradient_check(of_activation("square"), X, Y)) == (factor == 2)


@dataclass(frozen=True)
class Quartic:
    factor: float

    def losses(self, xp, Z, Y):
        return (Z - Y) ** 4

    def gradient(self, xp, Z, Y):
        return self.factor * (Z - Y) ** 3


@pytest.mark.parametrize("factor", [4.0, 4.01])
def test_a_users_own_loss(factor):
    network = dnn.Network([4, 5, 2], activation="tanh", output="linear", loss=Quartic(factor))
    assert bool(gradient_check(network, X, VALUES)) == (factor == 4)


def test_a_gradient_that_is_not_finite_is_wrong(monkeypatch):
    backward = lambda xp, dA, A: dA / (A * 0)  # noqa: E731
    monkeypatch.setitem(ACTIVATIONS, "tanh", replace(ACTIVATIONS["tanh"], backward=backward))
    found = gradient_check(of_activation("tanh"), X, Y)
    assert wrong(found) and "inf" in str(found)


# ------------------------------------------------------------------------------------ kinks


def on_a_kink() -> dnn.Network:
    """A unit of relu at 0 for every example."""
    network = dnn.Network([4, 8, 1])
    moved(network)
    network.parameters["W1"][0] = 0
    network.parameters["b1"][0] = 0
    return network


def test_kinks_are_counted_and_do_not_fail():
    rows = {row.name: row for row in gradient_check(on_a_kink(), X, Y).rows}
    assert all(row.verdict == RIGHT for row in rows.values())
    assert rows["b1"].kinks == 1 + DIRECTIONS and rows["b2"].kinks == 0


def test_a_wrong_backward_changes_no_kink(monkeypatch):
    kinks = [row.kinks for row in gradient_check(on_a_kink(), X, Y, coordinates=100).rows]
    backward = lambda xp, dA, A: dA * (A > 0) * 1.001  # noqa: E731
    monkeypatch.setitem(ACTIVATIONS, "relu", replace(ACTIVATIONS["relu"], backward=backward))
    found = gradient_check(on_a_kink(), X, Y, coordinates=100)
    assert [row.kinks for row in found.rows] == kinks
    assert sorted(wrong(found)) == ["W1", "b1"]


def dead(network: dnn.Network) -> dnn.Network:
    """No unit answers to the first example, and the next layer's are at 0 for it."""
    network.parameters["W1"] = np.abs(network.parameters["W1"])
    return network


@pytest.mark.parametrize("factor", [1, 1.001])
def test_where_most_of_a_parameter_is_at_kinks_it_is_checked_beside_them(factor, monkeypatch):
    backward = lambda xp, dA, A: dA * (A > 0) * factor  # noqa: E731
    monkeypatch.setitem(ACTIVATIONS, "relu", replace(ACTIVATIONS["relu"], backward=backward))
    network = dead(dnn.Network([4, 8, 4, 1]))
    found = gradient_check(network, np.vstack([-np.ones(4), X]), np.append(1, Y))
    row = {row.name: row for row in found.rows}["b2"]
    assert row.kinks > row.checks / 2 and row.verdict == (NEARBY if factor == 1 else WRONG)
    assert bool(found) == (factor == 1)


def test_what_jumps_everywhere_has_not_passed(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "grid", None)
    dnn.register_activation("grid", lambda xp, Z: (Z * 1e7).astype(np.int64) * 1e-7, lambda xp, dA, A: dA)
    found = gradient_check(of_activation("grid"), X, Y)
    assert not found
    assert {row.name: row.verdict for row in found.rows}["W1"] == NOT_CHECKED
    assert "not checked: " in str(found).splitlines()[-1]


# ------------------------------------------------------------------------------------ what it is


def test_a_parameter_without_a_gradient_passes():
    network = dnn.Network(4, [dnn.Dense(5), dnn.BatchNorm(), dnn.Dense(1)])
    verdicts = {row.name: row.verdict for row in gradient_check(network, X, Y).rows}
    assert verdicts["b1"] == NO_GRADIENT and verdicts["W1"] == RIGHT


def test_it_is_reproducible_and_the_seed_chooses():
    network = dnn.Network([4, 5, 1], activation="tanh", dropout=0.5)
    once, again = (gradient_check(network, X, Y, examples=7, coordinates=3, seed=2) for _ in range(2))
    assert once == again and str(once) == str(again)
    assert once != gradient_check(network, X, Y, examples=7, coordinates=3, seed=3)


def test_the_network_stays_as_it_is():
    def everything(network: dnn.Network) -> bytes:
        return pickle.dumps(network)

    fresh = dnn.Network(4, [dnn.NumericalEmbedding(size=3), dnn.Dense(5, "tanh"), dnn.BatchNorm(), dnn.Dense(1)])
    trained = dnn.Network([4, 5, 1], norm="batch", dropout=0.2)
    with dnn.backends.use_compiled_steps(False):
        trained.fit(X, Y, epochs=2, verbose=False)
    for network in (fresh, trained):
        before = everything(network)
        assert gradient_check(network, X, Y)
        assert everything(network) == before


def test_at_most_so_many_examples_and_none_without_a_weight():
    network = dnn.Network([4, 5, 1], activation="tanh")
    assert gradient_check(network, X, Y, examples=5).examples == 5
    assert gradient_check(network, X, Y).examples == 16
    assert gradient_check(network, X, Y, sample_weight=np.arange(16) < 3).examples == 3


def test_the_table_has_a_line_for_every_parameter_and_the_verdict():
    lines = str(gradient_check(dnn.Network([4, 5, 1], activation="tanh"), X, Y)).splitlines()
    assert [line.split()[0] for line in lines] == ["parameter", "W1", "W2", "b1", "b2", "loss"]
    assert lines[-1].endswith("of 16 examples, float64, tolerance 1e-06: every gradient is right")


def test_what_cannot_be_checked_is_an_error():
    network = dnn.Network([4, 5, 1], output="linear", dtype="float64")
    with pytest.raises(DataError, match="finite"):
        gradient_check(network, np.where(X > 1, np.nan, X), VALUES[:, :1])
    with pytest.raises(TypeError, match="takes a network"):
        gradient_check(None, X, Y)
    with pytest.raises(ValueError, match="examples must be at least 1"):
        gradient_check(network, X, Y, examples=0)
    network.parameters["W2"][...] = 1e200
    with pytest.raises(NonFiniteLossError, match="the loss is"):
        gradient_check(network, X, VALUES[:, :1])
    network.parameters["W2"][...] = np.nan
    with pytest.raises(NonFiniteLossError, match="W2"):
        gradient_check(network, X, VALUES[:, :1])


# ------------------------------------------------------------------------------------ on the command line


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("data.h5", "w") as data:
        data["train_set_x"], data["train_set_y"] = X.astype(np.float32), Y
    return "data.h5"


def test_check_makes_a_network_of_the_flags(file, capsys):
    assert main(["check", file, "--hidden", "5", "--activation", "gelu", "--norm", "layer", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["W1", "W2", "b1", "gamma1", "beta1", "b2"]
    assert lines[-1].endswith("every gradient is right")


def test_check_of_a_model(file, capsys):
    dnn.Network([4, 5, 1], activation="tanh").save("model.h5")
    assert main(["check", file, "--model", "model.h5", "--examples", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["examples"], found["dtype"]) == (True, 6, "float64")
    assert [row["shape"] for row in found["parameters"]] == [[5, 4], [1, 5], [5], [1]]
    assert main(["check", file, "--model", "model.h5", "--hidden", "3"]) == 2
    assert "--hidden is for a new network" in capsys.readouterr().err


def test_a_check_that_fails_ends_with_status_1(file, capsys, monkeypatch):
    backward = lambda xp, dA, A: dA * 0  # noqa: E731
    monkeypatch.setitem(ACTIVATIONS, "relu", replace(ACTIVATIONS["relu"], backward=backward))
    assert main(["check", file, "--hidden", "5", "--quiet"]) == 1
    assert "wrong: W1, b1" in capsys.readouterr().out


def test_check_of_a_table(file, capsys):
    pytest.importorskip("pyarrow")
    lines = [f"{row[0]},{'ab'[k % 2]},{5 * row[1]}\n" for k, row in enumerate(X)]
    Path("t.csv").write_text("n,c,y\n" + "".join(lines))
    assert main(["check", "t.csv", "--target", "y", "--hidden", "3", "--activation", "tanh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["parameters"][0]["shape"] == [3, 3]
    train = [
        "train",
        "t.csv",
        "--target",
        "y",
        "--epochs",
        "1",
        "--hidden",
        "3",
        "--activation",
        "tanh",
        "--out",
        "run",
    ]
    assert main([*train, "--quiet"]) == 0
    assert main(["check", "t.csv", "--model", "run/model.h5", "--quiet"]) == 0
    assert main(["check", "t.csv", "--model", "run/model.h5", "--drop", "n"]) == 2
    assert "--drop is for a new network" in capsys.readouterr().err
