"""A training that diverges, weights and answers that are not finite: an error, and the network as it last was."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

import dnn
from dnn import batches, epochs
from dnn.backends import Backend
from dnn.errors import NonFiniteLossError
from dnn.state import Snapshot, TrainingState
from dnn.step import Step

X = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
Y = X.sum(axis=1)
DEEP = [4, 8, 8, 8, 1]


def regression(backend: Backend | str = "numpy", sizes=(4, 1), **settings) -> dnn.Network:
    name = backend if isinstance(backend, str) else backend.name
    return dnn.Network(list(sizes), output="linear", seed=1, backend=name, **settings)


def everything(network: dnn.Network) -> dict[str, bytes]:
    """Every bit that a training changes."""
    state = network.training_state
    arrays = {"theta": network.parameters.flat, **({} if state is None else state.arrays)}
    return {name: network.backend.to_numpy(array).tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("sizes", "optimizer", "batch_size"),
    [
        ((4, 1), dnn.SGD(1.0), 60),
        ((4, 1), dnn.Momentum(0.4), 10),
        ((4, 8, 1), dnn.SGD(0.5), 10),
        (DEEP, dnn.Adam(1e5), 60),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0, math.inf], ids=["one snapshot", "one an epoch"])
def test_a_fit_that_diverges_leaves_the_network_at_its_last_finite_epoch(
    sizes, optimizer, batch_size, share, backend: Backend, monkeypatch
):
    monkeypatch.setattr(epochs.Epochs, "SHARE", share)
    settings = {"batch_size": batch_size, "optimizer": optimizer}
    network, expected = regression(backend, sizes), regression(backend, sizes)
    with pytest.raises(NonFiniteLossError) as error:
        network.fit(X, Y, epochs=200, **settings)
    assert network.epochs > 0
    assert f"the network is as it was after epoch {network.epochs}: lower the learning rate" in str(error.value)
    expected.fit(X, Y, epochs=network.epochs, **settings)
    assert everything(network) == everything(expected)
    # and goes on as that one does, from better weights
    for each in (network, expected):
        each.parameters.flat.fill(0)
        each.fit(X, Y, epochs=2, batch_size=20, optimizer=replace(optimizer, learning_rate=1e-20))
    assert everything(network) == everything(expected)


def test_where_x_is_fed_a_divergence_leaves_the_last_finite_epoch_too():
    network, expected = regression("standin"), regression("standin")
    settings = {"batch_size": 10, "optimizer": dnn.Momentum(0.4)}
    with pytest.raises(NonFiniteLossError):
        network.fit(X, Y, epochs=200, memory_limit=1e-5, **settings)
    expected.fit(X, Y, epochs=network.epochs, **settings)
    assert everything(network) == everything(expected)


@pytest.mark.parametrize(
    ("scale", "optimizer", "validation"),
    [
        (1e9, dnn.SGD(1e30), {}),  # the weights
        (1e9, dnn.Momentum(1e30), {}),
        (1e10, dnn.Adam(), {}),  # the gradients' squares: Adam would never move again
        (1e9, dnn.SGD(1e30), {"validation_split": 0.5}),
    ],
    ids=str,
)
def test_a_last_update_that_overflows_is_an_error_and_as_if_never_done(scale, optimizer, validation, backend: Backend):
    network = regression(backend, (4, 8, 1))
    before = everything(network)
    with pytest.raises(NonFiniteLossError, match="as it was after epoch 0"):
        network.fit(X * np.float32(scale), Y, epochs=1, batch_size=60, optimizer=optimizer, **validation)
    assert everything(network) == before and network.epochs == 0
    assert network.input_scale is network.input_kind is network.input_shape is None
    # bytes, after that: nothing was determined
    network.fit(np.arange(240, dtype=np.uint8).reshape(60, 4), Y, epochs=1)
    assert network.input_kind == "bytes"


@pytest.mark.parametrize("kind", [dnn.SGD, dnn.Momentum, dnn.Adam])
@pytest.mark.parametrize("precision", [None, "float16"])
def test_after_a_divergence_good_weights_train_again(kind, precision):
    network = regression("standin" if precision else "numpy", (4, 8, 1))
    good = {name: network.backend.to_numpy(view).copy() for name, view in network.parameters.items()}
    with pytest.raises(NonFiniteLossError):
        network.fit(X, Y, epochs=5, batch_size=10, optimizer=kind(1e30), precision=precision)
    for name, value in good.items():
        network.parameters[name] = value
    losses = network.fit(X, Y, epochs=3, batch_size=10, optimizer=kind(1e-3), precision=precision).history["loss"]
    assert losses[0] > losses[1] > losses[2]


def test_a_state_that_is_not_finite_begins_anew():
    network, expected = regression(), regression()
    network.fit(X, Y, epochs=1)
    network.training_state.arrays["v"].fill(np.nan)  # a file or a pickle of an older version may hold it
    for name, view in network.parameters.items():
        expected.parameters[name] = view
    for each in (network, expected):
        each.fit(X, Y, epochs=1, batch_size=60)
    assert everything(network) == everything(expected)


def test_another_optimizer_that_diverges_leaves_the_state_of_the_one_before():
    network, expected = regression(), regression()
    for each in (network, expected):
        each.fit(X, Y, epochs=2, optimizer=dnn.Adam())
    with pytest.raises(NonFiniteLossError):
        network.fit(X, Y, optimizer=dnn.Momentum(1e38))
    for each in (network, expected):
        each.fit(X, Y, epochs=2, optimizer=dnn.Adam())
    assert everything(network) == everything(expected)


@pytest.mark.parametrize(
    ("of_x", "of_y", "optimizer", "advice"),
    [
        (1, 1, dnn.SGD(1e30), r"lower the learning rate \(now 1e\+30\)$"),
        (1e5, 1, dnn.SGD(0.01), r"X reaches [\d.]+: scale it to about 1, .*, or lower the learning rate \(now 0.01\)$"),
        (1, 250_000, dnn.SGD(0.01), r"Y reaches [\d.e+]+ under a linear output: scale it, .*, or lower the learning"),
        (1e5, 250_000, dnn.Momentum(0.01), r"X reaches .*, or Y reaches .*, or lower the learning rate"),
        (1e30, 1, dnn.SGD(0.0), r"X reaches [\d.e+]+: scale it to about 1, as by input_scale=\de-31$"),
    ],
)
def test_what_is_advised_after_a_divergence_names_the_likely_cause(of_x, of_y, optimizer, advice, backend: Backend):
    network = regression(backend, (4, 8, 1))
    with pytest.raises(NonFiniteLossError, match=advice):
        network.fit(X * np.float32(of_x), Y * of_y, epochs=100, batch_size=10, optimizer=optimizer)


def test_weights_that_are_not_finite_are_refused_before_anything_is_trained(backend: Backend):
    network = regression(backend)
    network.fit(X, Y, epochs=1, optimizer=dnn.SGD(0.01))
    network.parameters["W1"][...] = np.nan
    state = network.training_state
    for use in (lambda: network.fit(X, Y), lambda: network.predict(X), lambda: network.evaluate(X, Y)):
        with pytest.raises(NonFiniteLossError, match="parameter W1 holds nan or inf: put finite numbers back"):
            use()
    assert network.training_state is state and network.epochs == 1


def test_a_validation_loss_that_is_not_finite_ends_the_fit_with_the_weights_kept():
    network, expected = regression(), regression()
    with pytest.raises(NonFiniteLossError, match="the validation loss is inf after epoch 1, whose weights are finite"):
        network.fit(X, Y, validation_data=(1e30 * X, Y))
    expected.fit(X, Y, epochs=1)
    assert everything(network) == everything(expected)


def test_ctrl_c_in_an_epoch_that_has_diverged_leaves_finite_weights(monkeypatch):
    monkeypatch.setattr(batches, "MOST_STEPS", 1)
    network, expected = regression(), regression()
    original, done = Step.__call__, []

    def interrupted(step: Step, times: int) -> None:
        original(step, times)
        done.append(1)
        if len(done) == 8:  # in the second epoch
            network.parameters.flat.fill(np.inf)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "__call__", interrupted)
        network.fit(X, Y, epochs=5, batch_size=10)
    expected.fit(X, Y, epochs=1, batch_size=10)
    assert everything(network) == everything(expected) and network.epochs == 1


def test_snapshots_take_a_hundredth_of_the_time(monkeypatch):
    """Of epochs of MNIST's size; what is measured is 0.15 ms of a second."""
    network = dnn.Network([784, 256, 128, 10], output="softmax")
    state = TrainingState(dnn.Adam(), network.parameters)
    snapshot = Snapshot(network.parameters, state)

    def seconds() -> float:
        start = time.perf_counter()
        assert snapshot.is_finite()
        snapshot.take()
        return time.perf_counter() - start

    assert min(seconds() for _ in range(20)) < 0.01 * 0.5
