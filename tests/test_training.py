"""fit: epochs, order, History, progress and interruption."""

from __future__ import annotations

import math
import signal
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import dnn
from dnn import batches, training
from dnn.backends import Backend, get_backend
from dnn.errors import DataError, NonFiniteLossError
from dnn.step import TRAIN, Step

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((50, 4))
Y = (X.sum(axis=1) > 0).astype(np.int64)


def network_of(backend: Backend | str = "numpy", **settings) -> dnn.Network:
    name = backend if isinstance(backend, str) else backend.name
    return dnn.Network([4, 6, 1], dtype="float64", seed=3, backend=name, **settings)


def weights(network: dnn.Network) -> np.ndarray:
    return network.backend.to_numpy(network.parameters.flat).copy()


# ------------------------------------------------------------------------------------------- learns


def test_learns_a_learnable_problem(backend: Backend):
    network = network_of(backend)
    history = network.fit(X, Y, epochs=60, batch_size=10, optimizer=dnn.Adam(0.02))
    assert network.evaluate(X, Y)["accuracy"] == 1.0
    assert history.history["loss"][-1] < 0.1 * history.history["loss"][0]


def test_the_same_seed_trains_the_same_network_on_every_backend(backend: Backend):
    trained = network_of(backend)
    trained.fit(X, Y, epochs=3, batch_size=8, validation_split=0.2)
    on_numpy = network_of()
    on_numpy.fit(X, Y, epochs=3, batch_size=8, validation_split=0.2)
    np.testing.assert_allclose(weights(trained), weights(on_numpy), rtol=0, atol=1e-12)


def test_a_repeated_run_is_the_same_bit_for_bit():
    runs = []
    for _ in range(2):
        network = network_of()
        runs.append((network.fit(X, Y, epochs=3, batch_size=8).history, weights(network).tobytes()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("optimizer", [dnn.SGD(0.1), dnn.Momentum(0.1), dnn.Adam(0.01)], ids=str)
def test_three_plus_three_epochs_equal_six(optimizer, backend: Backend):
    halves, whole = network_of(backend), network_of(backend)
    first = halves.fit(X, Y, epochs=3, batch_size=8, optimizer=optimizer)
    second = halves.fit(X, Y, epochs=3, batch_size=8, optimizer=optimizer)
    both = whole.fit(X, Y, epochs=6, batch_size=8, optimizer=optimizer)
    np.testing.assert_array_equal(weights(halves), weights(whole))
    assert first.history["loss"] + second.history["loss"] == both.history["loss"]
    assert first.epoch + second.epoch == both.epoch == [1, 2, 3, 4, 5, 6]
    assert halves.epochs == 6


def test_another_optimizer_resets_the_state_and_another_learning_rate_keeps_it():
    network = network_of()
    network.fit(X, Y, epochs=1, optimizer=dnn.Adam(0.01))
    state = network.training_state
    network.fit(X, Y, epochs=1, optimizer=dnn.Adam(0.001))
    assert network.training_state is state and state.learning_rate == 0.001
    network.fit(X, Y, epochs=1, optimizer=dnn.Adam(0.001, beta1=0.5))
    assert network.training_state is not state


def test_an_optimizer_can_be_given_by_name():
    named, configured = network_of(), network_of()
    named.fit(X, Y, epochs=2, optimizer="momentum")
    configured.fit(X, Y, epochs=2, optimizer=dnn.Momentum(0.01))
    np.testing.assert_array_equal(weights(named), weights(configured))


# -------------------------------------------------------------------------------------------- order


def rows_seen(monkeypatch, **settings) -> list[list[int]]:
    """The examples of every step, identified by their only feature."""
    seen: list[list[int]] = []
    original = Step.__call__

    def recording(step: Step, times: int = 1) -> None:
        buffers = {buffer.name: buffer.array for buffer in step.plan.buffers}
        for _ in range(times):
            X, m = buffers["X"], step.batch_size
            if "order" in buffers:
                start = int(buffers["position"][0])
                X = X[buffers["order"][start : start + m]]
            if step.goal == TRAIN:
                seen.append(np.rint(X[:, 0]).astype(int).tolist())
            original(step)

    monkeypatch.setattr(Step, "__call__", recording)
    network = dnn.Network([1, 1], output="linear", seed=5)
    network.fit(np.arange(10.0).reshape(10, 1), np.zeros(10), optimizer=dnn.SGD(0.0), **settings)
    return seen


def test_every_epoch_visits_every_example_once_in_a_new_order(monkeypatch):
    seen = rows_seen(monkeypatch, epochs=3, batch_size=4)
    assert [len(rows) for rows in seen] == [4, 4, 2] * 3
    orders = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # the order of epoch e depends only on the seed and e
    for e, order in enumerate(orders):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, 1, e])))
        assert order == generator.permutation(10).tolist()


def test_without_shuffle_the_order_is_that_of_the_data(monkeypatch):
    assert rows_seen(monkeypatch, epochs=2, batch_size=4, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_a_full_batch_is_not_shuffled(monkeypatch):
    assert rows_seen(monkeypatch, epochs=2, batch_size=64) == [list(range(10))] * 2


def test_validation_split_holds_out_the_same_examples_every_time(monkeypatch):
    seen = rows_seen(monkeypatch, epochs=2, batch_size=8, validation_split=0.25)
    assert [len(rows) for rows in seen] == [7, 7]
    assert sorted(seen[0]) == sorted(seen[1])
    held_out = set(range(10)) - set(seen[0])
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, 2])))
    assert held_out == set(generator.permutation(10)[:3].tolist())


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_a_loop_over_batches_and_a_smaller_last(shuffle, backend: Backend):
    network = network_of(backend)
    W1, W2, b1, b2 = (backend.to_numpy(network.parameters[name]).copy() for name in ("W1", "W2", "b1", "b2"))
    network.fit(X, Y, epochs=3, batch_size=8, optimizer=dnn.SGD(0.1), shuffle=shuffle)
    for e in range(3):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 1, e])))
        order = generator.permutation(50) if shuffle else np.arange(50)
        for start in range(0, 50, 8):
            rows = order[start : start + 8]
            A0 = X[rows]
            A1 = np.maximum(A0 @ W1.T + b1, 0)
            dZ2 = (1 / (1 + np.exp(-(A1 @ W2.T + b2))) - Y[rows, None]) / len(rows)
            dZ1 = (dZ2 @ W2) * (A1 > 0)
            W1, b1 = W1 - 0.1 * dZ1.T @ A0, b1 - 0.1 * dZ1.sum(axis=0)
            W2, b2 = W2 - 0.1 * dZ2.T @ A1, b2 - 0.1 * dZ2.sum(axis=0)
    for name, expected in {"W1": W1, "W2": W2, "b1": b1, "b2": b2}.items():
        np.testing.assert_allclose(backend.to_numpy(network.parameters[name]), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("validation", [{}, {"validation_split": 0.3}])
def test_how_many_steps_a_call_does_changes_no_bit(validation, backend: Backend, monkeypatch):
    trained = []
    for most in (1, 32):
        monkeypatch.setattr(batches, "MOST_STEPS", most)
        network = network_of(backend)
        history = network.fit(X, Y, epochs=3, batch_size=3, **validation)
        trained.append((history.history, weights(network).tobytes()))
    assert trained[0] == trained[1]


# ------------------------------------------------------------------------------------------ History


def test_history_is_the_mean_over_examples_of_losses_before_each_update(backend: Backend):
    network = network_of(backend)
    before = network.evaluate(X, Y)
    history = network.fit(X, Y, epochs=1, batch_size=50, optimizer=dnn.SGD(0.5))
    assert history.history["loss"] == [pytest.approx(before["loss"], abs=1e-12)]
    assert history.history["accuracy"] == [before["accuracy"]]
    # with a learning rate of 0, batches of 8 and a last one of 2 are weighted by their number of examples
    history = network.fit(X, Y, epochs=1, batch_size=8, optimizer=dnn.SGD(0.0))
    after = network.evaluate(X, Y)
    assert history.history["loss"] == [pytest.approx(after["loss"], abs=1e-12)]
    assert history.history["accuracy"] == [pytest.approx(after["accuracy"], abs=1e-12)]


@pytest.mark.parametrize(("output", "units"), [("sigmoid", 1), ("softmax", 2), ("linear", 1)])
def test_history_has_python_floats_by_keras_names(output, units, backend: Backend):
    network = dnn.Network([4, 3, units], output=output, backend=backend.name)
    history = network.fit(X, Y, epochs=2, validation_data=(X[:10], Y[:10]))
    metric = "rmse" if output == "linear" else "accuracy"
    assert list(history.history) == ["loss", metric, "val_loss", f"val_{metric}"]
    assert all(len(values) == 2 and {type(v) for v in values} == {float} for values in history.history.values())
    assert history.epoch == [1, 2] and history.seconds > 0
    after = network.evaluate(X[:10], Y[:10])
    assert history.history["val_loss"][-1] == pytest.approx(after["loss"], rel=1e-6)


def test_validation_data_changes_no_weight():
    with_it, without = network_of(), network_of()
    with_it.fit(X, Y, epochs=3, batch_size=8, validation_data=(X[:5], Y[:5]))
    without.fit(X, Y, epochs=3, batch_size=8)
    np.testing.assert_array_equal(weights(with_it), weights(without))


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "all"}, TypeError, "batch_size must be a whole number, got 'all'"),
        ({"optimizer": "adamax"}, ValueError, "optimizer must be one of sgd, momentum, adam"),
        ({"optimizer": dnn.Adam}, ValueError, "a configuration such as"),
        ({"validation_split": 1.0}, ValueError, "validation_split must be at least 0 and below 1"),
        ({"validation_split": "0.1"}, TypeError, "validation_split must be a number"),
        ({"validation_split": 0.99}, DataError, "leaves none to train on"),
        ({"validation_split": 0.1, "validation_data": (X, Y)}, ValueError, "not both"),
        ({"validation_data": X}, TypeError, r"validation_data must be a pair \(X, Y\), got ndarray"),
        ({"validation_data": (X[:, :2], Y)}, DataError, "X of validation_data has shape"),
        ({"batchsize": 3}, TypeError, "batchsize"),
    ],
)
def test_refuses_settings_before_anything_is_trained(settings, error, complaint):
    network = network_of()
    before = weights(network)
    with pytest.raises(error, match=complaint):
        network.fit(X, Y, **settings)
    np.testing.assert_array_equal(weights(network), before)


def test_a_non_finite_loss_ends_the_training_and_says_what_to_do():
    network = dnn.Network([4, 6, 1], output="linear")
    with pytest.raises(NonFiniteLossError, match=r"in epoch \d+: training has diverged and the weights are lost"):
        network.fit(1e3 * X, 1e3 * Y, epochs=200, optimizer=dnn.SGD(10.0))


# ------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def one_step_a_call(monkeypatch):
    monkeypatch.setattr(batches, "MOST_STEPS", 1)


def test_ctrl_c_leaves_the_network_at_its_last_whole_step(monkeypatch, one_step_a_call):
    """SIGINT as step 5 begins: the step is completed, then KeyboardInterrupt is raised."""
    expected = network_of()
    original, done = Step.__call__, []

    def interrupted(step: Step, times: int) -> None:
        done.append(1)
        if len(done) == 5:
            signal.raise_signal(signal.SIGINT)
        original(step, times)

    monkeypatch.setattr(Step, "__call__", interrupted)
    network = network_of()
    with pytest.raises(KeyboardInterrupt):
        network.fit(X, Y, epochs=10, batch_size=25, shuffle=False)
    assert len(done) == 5
    monkeypatch.setattr(Step, "__call__", original)
    expected.fit(X, Y, epochs=2, batch_size=25, shuffle=False)
    # the fifth step, by hand
    expected.fit(X[:25], Y[:25], epochs=1, batch_size=25, shuffle=False)
    np.testing.assert_array_equal(weights(network), weights(expected))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    network.fit(X, Y, epochs=1)  # it goes on


def test_ctrl_c_leaves_the_network_at_the_last_step_of_a_call(monkeypatch):
    """SIGINT as a call of several steps begins."""
    monkeypatch.setattr(batches, "SHORT_CALL", math.inf)
    original, done = Step.__call__, []

    def interrupted(step: Step, times: int) -> None:
        done.append(times)
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        original(step, times)

    network, expected = network_of(), network_of()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "__call__", interrupted)
        network.fit(X, Y, epochs=10, batch_size=5, shuffle=False)
    assert done == [1, 2, 4]
    # seven steps
    expected.fit(X[:35], Y[:35], epochs=1, batch_size=5, shuffle=False)
    np.testing.assert_array_equal(weights(network), weights(expected))


def test_a_second_ctrl_c_does_not_wait_for_the_step_to_end(monkeypatch):
    reached = []

    def interrupted_twice(step: Step, times: int) -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")

    monkeypatch.setattr(Step, "__call__", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        network_of().fit(X, Y, epochs=2)
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_whole_fit_is_queued_on_the_backends_stream_and_waited_for(monkeypatch):
    backend, log = get_backend("standin"), []

    @contextmanager
    def stream(threads):
        log.append("enter")
        yield
        log.append("leave")

    original = Step.__call__
    monkeypatch.setattr(backend, "stream", stream, raising=False)
    monkeypatch.setattr(backend, "synchronize", lambda: log.append("wait"), raising=False)
    monkeypatch.setattr(Step, "__call__", lambda step, times: (log.append("step"), original(step, times)))
    network_of(backend).fit(X, Y, epochs=1, batch_size=25)
    assert log == ["enter", "step", "step", "wait", "leave"]


def test_the_users_own_handler_is_left_in_place(monkeypatch, one_step_a_call):
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        handler = signal.getsignal(signal.SIGINT)
        original = Step.__call__

        def interrupted(step: Step, times: int) -> None:
            original(step, times)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Step, "__call__", interrupted)
        network_of().fit(X, Y, epochs=2, batch_size=25)
        assert len(calls) == 4 and signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_works_outside_the_main_thread():
    network, failed = network_of(), []

    def run() -> None:
        try:
            network.fit(X, Y, epochs=2)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed and network.epochs == 2


# ----------------------------------------------------------------------------------------- progress


class Terminal:
    """A stderr that claims to be a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_silent_from_python_unless_verbose(capsys):
    network_of().fit(X, Y, epochs=3)
    network_of().fit(X, Y, epochs=3, verbose=False)
    assert capsys.readouterr() == ("", "")


def test_verbose_without_a_terminal_prints_a_line_for_the_first_and_last_epoch(capsys):
    network_of().fit(X, Y, epochs=30, verbose=True, validation_split=0.2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and [line.split(":")[0] for line in lines] == ["epoch 1/30", "epoch 30/30"]
    assert all(name in lines[0] for name in ("loss 0.", "accuracy 0.", "val_loss 0.", "val_accuracy 0."))


def test_verbose_without_a_terminal_prints_at_most_one_line_every_ten_seconds(capsys, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    network_of().fit(X, Y, epochs=12, verbose=True)
    epochs = [int(line.split("/")[0].split()[1]) for line in capsys.readouterr().err.splitlines()]
    assert epochs == [1, 5, 9, 12]  # at 0, 12 and 24 s, and the last


def test_a_terminal_shows_a_bar_and_verbose_false_shows_none(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    network_of().fit(X, Y, epochs=3, batch_size=10)
    assert "15/15" in terminal.text and "epoch 3, loss" in terminal.text
    terminal.text = ""
    network_of().fit(X, Y, epochs=3, verbose=False)
    assert terminal.text == ""


def test_many_small_epochs_have_one_entry_each():
    network = dnn.Network([2, 20, 3, 1])
    history = network.fit(X[:, :2], Y, epochs=500, batch_size=50, optimizer=dnn.SGD(0.1))
    assert len(history.history["loss"]) == 500 and all(map(math.isfinite, history.history["loss"]))
