"""Fits piece by piece, the range test of the learning rate, and settings that are refused."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from sweeps import covering

import dnn
from dnn.backends import Backend
from dnn.errors import NonFiniteLossError
from dnn.range_test import RangeTest, learning_rate_range

GENERATOR = np.random.default_rng(11)
M = 60
X = GENERATOR.standard_normal((M, 4))
LABELS = (X @ GENERATOR.standard_normal((4, 3)) > 0).astype(np.int64)
TARGETS = {"sigmoid": LABELS[:, 0], "softmax": LABELS.sum(axis=1), "linear": X[:, :2] * 2, "labels": LABELS}
UNITS = {"sigmoid": 1, "softmax": 4, "linear": 2, "labels": 3}


def network_of(kind: str = "sigmoid", backend: Backend | str = "numpy", **settings: Any) -> dnn.Network:
    name = backend if isinstance(backend, str) else backend.name
    output = "sigmoid" if kind == "labels" else kind
    return dnn.Network([4, 6, UNITS[kind]], output=output, backend=name, **({"seed": 3, "dropout": 0.1} | settings))


def theta(network: dnn.Network) -> bytes:
    return network.backend.to_numpy(network.parameters.flat).tobytes()


# ------------------------------------------------------------------------------------ partial_fit


@covering("kind, backend", TARGETS, BACKENDS, indirect=["backend"])
def test_pieces_of_a_stream_are_fits_of_one_epoch(kind, backend: Backend):
    streamed, fitted = network_of(kind, backend), network_of(kind, backend)
    settings = {"batch_size": 8, "optimizer": dnn.Adam(0.01)}
    for start in range(0, M, 20):
        piece = X[start : start + 20], TARGETS[kind][start : start + 20]
        one, other = streamed.partial_fit(*piece, **settings), fitted.fit(*piece, epochs=1, **settings)
        assert one.history == other.history and one.epoch == other.epoch
    assert theta(streamed) == theta(fitted) and streamed.epochs == 3


def test_a_stream_goes_on_with_the_optimizer_that_it_began_with():
    streamed, spelled_out = network_of(), network_of()
    streamed.partial_fit(X, TARGETS["sigmoid"], optimizer=dnn.Momentum(0.05))
    state = streamed.training_state
    streamed.partial_fit(X, TARGETS["sigmoid"])
    assert streamed.training_state is state and state.optimizer == dnn.Momentum(0.05)
    spelled_out.fit(X, TARGETS["sigmoid"], epochs=2, optimizer=dnn.Momentum(0.05))
    assert theta(streamed) == theta(spelled_out)


def test_every_piece_has_an_order_of_its_own(monkeypatch):
    from dnn.epochs import Epochs

    orders = []
    original = Epochs._permutation
    monkeypatch.setattr(Epochs, "_permutation", lambda self: orders.append(original(self)) or orders[-1])
    network = network_of()
    for _ in range(3):
        network.partial_fit(X, TARGETS["sigmoid"], batch_size=8)
    assert all(sorted(order) == list(range(M)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3


def test_a_piece_of_one_example_is_enough():
    network = network_of("softmax")
    for row in range(3):
        history = network.partial_fit(X[row : row + 1], TARGETS["softmax"][row : row + 1])
        assert np.isfinite(history.history["loss"]).all()
    assert network.epochs == 3


def test_a_stream_keeps_a_moving_average():
    network, average, trained = network_of(dropout=0.0), None, None
    for start in range(0, M, 20):
        network.partial_fit(
            X[start : start + 20], TARGETS["sigmoid"][start : start + 20], batch_size=20, moving_average=0.5
        )
        after = network.training_state.after["trained"]["theta"]
        average = 0.5 * (average if average is not None else network_of(dropout=0.0).parameters.flat) + 0.5 * after
        np.testing.assert_allclose(network.parameters.flat, average, rtol=1e-5, atol=1e-7)
        assert trained is None or not np.array_equal(trained, after)
        trained = after


# ------------------------------------------------------------------------------------ range test


@covering("kind, backend", TARGETS, BACKENDS, indirect=["backend"])
def test_the_range_test_leaves_the_network_as_it_is(kind, backend: Backend):
    network, other = network_of(kind, backend), network_of(kind, backend)
    for each in (network, other):
        each.fit(X, TARGETS[kind], epochs=1, optimizer=dnn.Adam(0.01))
    found = learning_rate_range(network, X, TARGETS[kind], steps=25, batch_size=16)
    assert theta(network) == theta(other) and network.epochs == 1 and network.steps == other.steps
    for each in (network, other):
        each.fit(X, TARGETS[kind], epochs=1, optimizer=dnn.Adam(0.01))
    assert theta(network) == theta(other)
    assert len(found.rates) == len(found.losses) <= 25


def test_the_losses_are_those_of_steps_with_these_rates():
    """Written out: a step for each batch by the equations, in the order of the examples."""
    W, b = np.full((1, 4), 0.1), np.zeros(1)
    network = dnn.Network([4, 1], output="linear", dtype="float64")
    network.parameters["W1"] = W
    Y = X[:, :1] * 2
    found = learning_rate_range(network, X, Y, 1e-3, 0.2, 15, 16, dnn.SGD(0.5), shuffle=False)
    rates = np.geomspace(1e-3, 0.2, 15)
    np.testing.assert_allclose(found.rates, rates, rtol=1e-12)
    losses = []
    for step, rate in enumerate(rates):
        rows = slice(step % 4 * 16, min(step % 4 * 16 + 16, M))
        D = X[rows] @ W.T + b - Y[rows]
        losses.append(np.mean(D**2))
        W, b = W - rate * 2 * D.T @ X[rows] / len(D), b - rate * 2 * D.mean(axis=0)
    weights = 0.9 ** np.arange(15)
    expected = [np.sum(weights[: i + 1] * losses[i::-1]) / np.sum(weights[: i + 1]) for i in range(15)]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-10)


def test_the_range_test_ends_where_the_loss_is_four_times_its_smallest():
    network = dnn.Network([4, 1], output="linear")
    Y = X[:, 0] + GENERATOR.standard_normal(M)
    found = learning_rate_range(network, X, Y, 1e-4, 1e6, 200, 16, "sgd")
    assert 10 < len(found.rates) < 200 and found.rates[-1] < 1e3
    assert (found.losses <= 4 * np.minimum.accumulate(found.losses)).all()
    assert np.isfinite(found.losses).all()


def test_the_suggestion_trains():
    network = dnn.Network([4, 8, 1], output="linear", seed=1)
    Y = X @ np.array([1.0, -2.0, 0.5, 0.0])
    found = learning_rate_range(network, X, Y, batch_size=16)
    assert found.suggestion == found.rates[np.argmin(found.losses)] / 10
    history = network.fit(X, Y, epochs=30, batch_size=16, optimizer=dnn.Adam(found.suggestion))
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]


def test_a_range_test_says_so_in_one_line():
    rates = np.geomspace(1e-4, 1.0, 5)
    found = RangeTest(rates, np.array([3.0, 2.0, 1.0, 0.5, 2.0]))
    assert repr(found) == "<RangeTest: try 0.01; 5 steps from 0.0001 to 1, smallest loss 0.5>"
    none = RangeTest(rates, np.array([1.0, 2.0, 3.0, 3.5, 3.6]))
    assert none.suggestion is None and repr(none).startswith("<RangeTest: no suggestion, for the loss never fell; 5")


def test_every_rate_of_an_optimizer_grows():
    """Muon's Adam has a rate of its own, in a fixed ratio to that of its matrices."""
    found = learning_rate_range(network_of("softmax"), X, TARGETS["softmax"], 1e-6, 1.0, 20, 16, "muon")
    assert found.losses[0] > found.losses.min() and found.rates[0] == pytest.approx(1e-6)


def test_losses_are_read_in_blocks(monkeypatch):
    network = network_of("linear")
    reads = []
    kind = type(network.backend)
    original = kind.to_numpy
    monkeypatch.setattr(kind, "to_numpy", lambda self, a: reads.append(a.shape) or original(self, a))
    learning_rate_range(network, X, TARGETS["linear"], 1e-7, 1e-5, 40, 64)
    assert sum(shape == (10,) for shape in reads) == 4
    assert sum(shape == (1,) for shape in reads) < 2 * 40


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"low": 0.0}, ValueError, "low and high must be rates with 0 < low < high, got 0.0 and 10.0"),
        ({"low": 2.0, "high": 1.0}, ValueError, "low and high must be rates with 0 < low < high, got 2.0 and 1.0"),
        ({"high": np.inf}, ValueError, "high must be finite"),
        ({"low": "1e-7"}, TypeError, "low must be a number"),
        ({"steps": 1}, ValueError, "steps must be at least 2, got 1"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"optimizer": "adamax"}, ValueError, "optimizer must be one of sgd"),
        ({"epochs": 3}, TypeError, "learning_rate_range has no setting 'epochs'"),
        ({"schedule": "cosine"}, TypeError, "learning_rate_range has no setting 'schedule'"),
        ({"batchsize": 3}, TypeError, "fit has no setting 'batchsize': did you mean batch_size?"),
    ],
)
def test_the_range_test_refuses_what_cannot_work(given, error, complaint):
    with pytest.raises(error, match=re.escape(complaint)):
        learning_rate_range(network_of(), X, TARGETS["sigmoid"], **given)


def test_data_too_large_for_any_rate_is_an_error():
    network = dnn.Network([4, 1], output="linear")
    with pytest.raises(NonFiniteLossError, match="the loss of the first batch, with a rate of 1e-07, is not finite"):
        learning_rate_range(network, np.full((8, 4), 1e30), np.ones(8))


# ----------------------------------------------------------------------------------- bad settings

A_NUMBER = ["1", None, True, 1j]
REFUSED: dict[str, list[tuple[Any, type[Exception], str]]] = {
    "epochs": [(0, ValueError, "epochs must be at least 1, got 0"), (1.5, TypeError, "epochs must be a whole number")],
    "batch_size": [
        (-1, ValueError, "batch_size must be at least 1"),
        ("8", TypeError, "must be a whole number, got '8'"),
    ],
    "optimizer": [
        ("adm", ValueError, "did you mean 'adam'?"),
        (None, ValueError, "optimizer must be one of"),
        (dnn.Adam, ValueError, "a configuration such as dnn.Adam(1e-3)"),
    ],
    "schedule": [
        ("cosin", ValueError, "did you mean 'cosine'?"),
        (3, ValueError, "schedule must be None, one of"),
        (dnn.Cosine(warmup=30), ValueError, "Cosine: warmup must be below the schedule's 20 epochs"),
    ],
    "weight_decay_schedule": [
        ("plateau", ValueError, "weight_decay_schedule must be a schedule of the progress"),
        (1.0, ValueError, "one of constant, step"),
    ],
    "validation_data": [
        ((X,), TypeError, "validation_data must be a pair (X, Y), got tuple of 1"),
        (X, TypeError, "validation_data must be a pair (X, Y), got ndarray"),
    ],
    "validation_split": [
        (1, ValueError, "validation_split must be at least 0 and below 1, got 1"),
        (np.nan, ValueError, "validation_split must be"),
        ("0.2", TypeError, "validation_split must be a number"),
    ],
    "class_weight": [
        ("balance", ValueError, "class_weight must be one of balanced"),
        ([1, 2], TypeError, 'class_weight must be "balanced" or a dict'),
        ({0: "much"}, TypeError, "class_weight[0] must be a number"),
    ],
    "missing_targets": [
        ("drop", ValueError, "missing_targets must be one of error, mask"),
        (None, ValueError, "one of"),
    ],
    "metrics": [(3, TypeError, "metrics must be names or functions, or a list of them, got 3")],
    "early_stopping": [
        (0, ValueError, "EarlyStopping: patience must be at least 1, got 0"),
        (True, TypeError, "early_stopping must be a number of epochs or a dnn.EarlyStopping, got True"),
        ("val_loss", TypeError, "early_stopping must be a number of epochs"),
    ],
    "callbacks": [(3, TypeError, "callbacks must be functions of an event"), ([None], TypeError, "got None")],
    "l1": [
        (-1, ValueError, "l1 must be at least 0, got -1"),
        *((v, TypeError, "l1 must be a number") for v in A_NUMBER),
    ],
    "l2": [(np.inf, ValueError, "l2 must be finite"), (None, TypeError, "l2 must be a number, got None")],
    "clip_norm": [(0, ValueError, "clip_norm must be above 0, got 0"), ("1", TypeError, "clip_norm must be a number")],
    "clip_value": [(-1.0, ValueError, "clip_value must be above 0"), (True, TypeError, "clip_value must be a number")],
    "max_norm": [(0.0, ValueError, "max_norm must be above 0"), (np.nan, ValueError, "max_norm must be finite")],
    "accumulate": [(0, ValueError, "accumulate must be at least 1"), (2.0, TypeError, "accumulate must be a whole")],
    "moving_average": [
        (1.0, ValueError, "moving_average must be at least 0 and below 1, got 1.0"),
        (-0.1, ValueError, "moving_average must be at least 0"),
        (True, TypeError, "moving_average must be a number"),
    ],
    "shuffle": [("no", TypeError, "shuffle must be True or False"), (None, TypeError, "shuffle must be True or False")],
    "verbose": [("yes", TypeError, "verbose must be True or False")],
    "memory_limit": [
        (0, ValueError, "memory_limit must be above 0"),
        ("2", TypeError, "memory_limit must be a number"),
    ],
    "threads": [
        (1.5, TypeError, "threads must be a whole number"),
        (True, TypeError, "threads must be a whole number"),
    ],
    "precision": [("float8", ValueError, "precision"), (16, ValueError, "precision")],
    "sample_weight": [("much", ValueError, "sample_weight")],
    "checkpoint": [(3, TypeError, "checkpoint must be the path of a folder, got 3"), ("", ValueError, "an empty one")],
    "checkpoint_every": [
        (0, ValueError, "checkpoint_every must be at least 1"),
        ("5", ValueError, "a number of steps or a time such as"),
        (1.5, TypeError, "checkpoint_every must be a whole number"),
    ],
}
LATER = {"precision", "sample_weight"}
"""What the network, or the data, decides."""


def test_the_table_has_every_setting():
    assert {setting.name for setting in fields(dnn.FitSettings)} == set(REFUSED)


@pytest.mark.parametrize(
    ("name", "value", "error", "complaint"), [(name, *each) for name, all_of in REFUSED.items() for each in all_of]
)
def test_bad_settings_fail_at_construction(name, value, error, complaint):
    network = network_of()
    uses = [lambda: network.fit(X, TARGETS["sigmoid"], **{name: value})]
    if name not in LATER:
        uses.append(lambda: dnn.FitSettings(**{name: value}))
    for use in uses:
        with pytest.raises(error, match=re.escape(complaint)) as found:
            use()
        assert "\n" not in str(found.value)
    assert network.training_state is None and network.epochs == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"learning_rate": 0.1}, "fit has no setting 'learning_rate': it is the optimizer's, as in optimizer=dnn.Adam"),
        ({"epoch": 3}, "fit has no setting 'epoch': did you mean epochs?"),
        ({"zzz": 3}, "fit has no setting 'zzz': choose from epochs, batch_size"),
    ],
)
def test_an_unknown_setting_is_named_with_the_closest(given, complaint):
    with pytest.raises(TypeError, match=re.escape(complaint)):
        network_of().fit(X, TARGETS["sigmoid"], **given)


def test_a_metric_may_be_one_name_or_one_function():
    def spread(xp: Any, P: Any, Y: Any, weights: Any = None) -> Any:
        return xp.max(P) - xp.min(P)

    for metrics, name in (("f1", "f1"), (spread, "spread"), ([spread], "spread")):
        history = network_of().fit(X, TARGETS["sigmoid"], epochs=1, validation_split=0.2, metrics=metrics)
        assert f"val_{name}" in history.history


def test_batches_without_a_variance_are_refused_with_batch_norm():
    X, Y = np.zeros((4, 2)), np.zeros(4)
    network = dnn.Network([2, 3, 1], norm="batch")
    with pytest.raises(ValueError, match="batches of 1 have no variance for BatchNorm: take a larger batch_size"):
        network.fit(X, Y, batch_size=1, verbose=False)
    assert network.epochs == 0
    network.fit(X, Y, batch_size=3, epochs=1, verbose=False)  # whose last batch is of one
