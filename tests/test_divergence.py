"""A training that diverges, weights and answers that are not finite: an error, and the network as it last was."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

import dnn
from dnn import batches, diagnosis, epochs
from dnn.activations import ACTIVATIONS, Activation
from dnn.backends import Backend, use_compiled_steps
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


# ------------------------------------------------------------------------------------ where it began


def diverged(network: dnn.Network, X=X, Y=Y, **settings) -> NonFiniteLossError:
    with pytest.raises(NonFiniteLossError) as raised:
        network.fit(X, Y, **({"epochs": 20, "batch_size": 10} | settings))
    assert "\n" not in str(raised.value) and raised.value.epoch == network.epochs + 1
    return raised.value


def first_bad_batch(network: dnn.Network, **settings) -> int:
    """The number of the first batch of the last epoch whose loss is not finite."""
    losses: list[list[float]] = []

    class Look:
        def on_batch_end(self, event: dnn.Event) -> None:
            if event.batch == 1:
                losses.append([])
            losses[-1].append(float(event.network.backend.to_numpy(event.loss_on_device)[0]))

    error = diverged(network, callbacks=[Look()], **settings)
    # what a callback does, running batches again would not
    assert error.step is error.layer is error.tensor is None and "it began" not in str(error)
    return int(np.argmin(np.isfinite(losses[-1]))) + 1


@pytest.mark.parametrize(
    ("backend_name", "made", "settings"),
    [
        ("numpy", {}, {}),
        ("numpy", {}, {"batch_size": 60}),
        ("numpy", {"norm": "layer", "dropout": 0.2}, {"accumulate": 2, "batch_size": 7}),
        ("numpy", {"members": 2}, {"optimizer": dnn.Momentum(10.0), "moving_average": 0.9}),
        ("standin", {}, {"memory_limit": 1e-5}),
        (
            "standin",
            {},
            {"precision": "bfloat16", "optimizer": dnn.SGD(0.4), "early_stopping": 3, "validation_split": 0.2},
        ),
    ],
    ids=["gathered", "in place", "random", "members", "fed", "16 bits"],
)
def test_a_divergence_names_the_step_in_which_it_began_and_leaves_what_was_there(backend_name, made, settings):
    settings = {"optimizer": dnn.SGD(10.0), "batch_size": 10} | settings
    network, seen, expected = (regression(backend_name, (4, 8, 8, 1), **made) for _ in range(3))
    with use_compiled_steps(not made):
        error = diverged(network, **settings)
        assert error.step == first_bad_batch(seen, **settings)
        assert error.tensor in ("Z1", "Z2", "Z3", "the loss") and "overflows" in str(error)
        assert f": it began in step {error.step} of epoch {error.epoch}, " in str(error)
        if network.epochs:
            expected.fit(X, Y, **settings, epochs=network.epochs)
    assert network.epochs == seen.epochs == expected.epochs
    assert everything(network) == everything(expected)


def test_an_enormous_weight_is_named_with_the_layer_that_it_makes_overflow(backend: Backend):
    network = regression(backend, (4, 8, 8, 1), norm="rms")
    network.parameters["W2"] = np.full((8, 8), 3e38)
    error = diverged(network)
    assert (error.epoch, error.step, error.layer, error.tensor) == (1, 1, 4, "Z2")
    assert "in step 1 of epoch 1, layer 4 (dense): Z2 overflows float32 (largest before: W2 3e+38, " in str(error)


def test_an_activation_of_ones_own_that_overflows_is_named(backend: Backend, monkeypatch):
    def forward(xp, Z):
        return xp.where(Z < 0, 0, xp.exp(-Z)) + xp.where(Z < 0, 0, xp.exp(Z))

    # in layer 1 an exponential overflows that is masked: it began later
    monkeypatch.setitem(ACTIVATIONS, "own", Activation(forward, lambda xp, dA, A: dA * A, ("A",)))
    network = regression(backend, (4, 3, 2, 1), activation="own")
    network.parameters["W1"], network.parameters["b1"] = np.zeros((3, 4)), np.full(3, -1e6)
    network.parameters["b2"] = np.array([0, 200])
    error = diverged(network)
    assert (error.step, error.layer, error.tensor) == (1, 2, "A2")
    assert "layer 2 (dense): A2 overflows float32 (largest before: b1 1e+06, Z1 1e+06)" in str(error)


def test_a_loss_that_is_infinite_for_one_example_names_it_and_its_step(backend: Backend):
    class Steep:
        def losses(self, xp, Z, Y):
            return (Z - Y) * (Z - Y) + xp.where(Y > 100, xp.exp(Y), 0)

        def gradient(self, xp, Z, Y):
            return Z - Y

    network = regression(backend, (4, 1), loss=Steep())
    error = diverged(network, Y=np.where(np.arange(60) == 17, 200, Y), optimizer=dnn.SGD(0.0))
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 1, 0]))).permutation(60)
    assert error.step == int(np.flatnonzero(order == 17)[0]) // 10 + 1
    assert (error.layer, error.tensor) == (None, "the loss")
    assert f"in step {error.step} of epoch 1, the loss of example 17 overflows float32 (largest before: " in str(error)


class Pushing:
    """A loss that hardly changes, with a gradient that is far too large."""

    def __init__(self, gradient: float) -> None:
        self._gradient = gradient

    def losses(self, xp, Z, Y):
        return xp.absolute(Y)

    def gradient(self, xp, Z, Y):
        return Z * 0 + self._gradient


@pytest.mark.parametrize(
    ("gradient", "optimizer", "step", "tensor", "words"),
    [
        (1e19, dnn.Adam(0.0), 4, "v of b2", "Adam's v of b2 overflows float32 (largest before: "),
        (2e18, dnn.SGD(1e20), 2, "b2", "b2 after the update overflows float32 (largest before: b2 2e+38, "),
        (3e38, dnn.SGD(0.0), 1, "dW2", "dW2 overflows float32 (largest before: b1 10, Z2 2"),
    ],
    ids=["state", "weights", "gradient"],
)
def test_what_an_update_makes_infinite_is_named(gradient, optimizer, step, tensor, words, backend: Backend):
    network = regression(backend, (4, 8, 1), loss=Pushing(gradient))
    network.parameters["b1"] = np.full(8, 10 if tensor == "dW2" else -10)  # A1
    error = diverged(network, optimizer=optimizer, epochs=2)
    assert (error.step, error.layer, error.tensor) == (step, 2, tensor), str(error)
    assert f"layer 2 (dense): {words}" in str(error)
    assert (", db2 1e+19, v of b2 3e+38)" in str(error)) == (tensor == "v of b2")


def test_the_member_and_the_statistics_of_a_layer_are_named():
    network = regression("numpy", (4, 8, 1), members=3, norm="batch")
    W1 = np.array(network.parameters["W1"])
    W1[1, 3] = 1e25
    network.parameters["W1"] = W1
    error = diverged(network, optimizer=dnn.SGD(0.0))
    assert (error.step, error.layer, error.tensor) == (1, 2, "variance1")
    assert ", layer 2 (norm), member 1: variance1 overflows float32 (largest before: W1 1e+25, Z1 " in str(error)
    network = regression("numpy", (4, 8, 1), members=3, loss=Pushing(2e18))
    network.parameters["b2"] = np.array([[0], [0], [-3e38]])
    error = diverged(network, optimizer=dnn.SGD(1e20))
    assert (error.step, error.layer, error.tensor) == (1, 2, "b2")
    assert ", layer 2 (dense), member 2: b2 after the update overflows float32" in str(error)


def test_features_in_16_bits_that_overflow_are_named():
    network = regression("standin", (4, 8, 1))
    far = np.where(np.arange(240).reshape(60, 4) == 17 * 4 + 3, 1e5, X)
    error = diverged(network, X=far, optimizer=dnn.SGD(0.0), precision="float16")
    assert error.tensor == "X" and "X of example 17, feature 3 overflows float16" in str(error)


def test_without_memory_to_find_the_place_the_error_says_the_epoch(monkeypatch):
    def out_of_memory(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(diagnosis._Batch, "origin", out_of_memory)
    network, expected = regression(sizes=(4, 8, 1)), regression(sizes=(4, 8, 1))
    settings = {"optimizer": dnn.SGD(0.3), "batch_size": 10}
    error = diverged(network, **settings)
    assert network.epochs and error.step is None and "it began" not in str(error)
    expected.fit(X, Y, **settings, epochs=network.epochs)
    assert everything(network) == everything(expected)
