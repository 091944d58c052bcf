"""fit: epochs, order, History, progress and interruption."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BACKENDS
from sweeps import covering

import dnn
from dnn import batches, progress, training
from dnn.backends import Backend, get_backend
from dnn.data.splitting import split_rows
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
    with pytest.raises(NonFiniteLossError, match=r"in epoch \d+: .*: training has diverged, and the network is as it"):
        network.fit(1e3 * X, 1e3 * Y, epochs=200, optimizer=dnn.SGD(10.0))


# ------------------------------------------------------------------------------------- decimal shares


def held_out(split, m: int) -> int:
    rows, _ = split_rows(
        network_of(), np.arange(m)[:, None], training.FitSettings(validation_split=split).validation_split
    )
    return 0 if rows is None else len(rows)


def test_validation_split_is_a_decimal_share():
    network = network_of()
    for m in (7, 25, 50, 100, 300, 999):
        for percent in range(1, 100):
            expected = -(-percent * m // 100)
            if expected < m:
                assert len(split_rows(network, np.arange(m)[:, None], percent / 100)[0]) == expected


@pytest.mark.parametrize(
    ("split", "m", "expected"),
    [
        (0.07, 100, 7),
        (0.001, 3000, 3),
        (0.0123, 10_000, 123),
        (0.0700001, 100, 8),
        (np.float32(0.07), 100, 7),
        (np.float16(0.55), 100, 55),
        (Fraction(7, 100), 100, 7),
        (5 / 6, 600, 500),
        (1 / 3, 300, 100),
        (0.1 + 0.2, 10, 3),
        (1 - 0.93, 100, 7),
        (1e-20, 10, 1),
        (1e-300, 10, 1),
        (0, 10, 0),
    ],
)
def test_shares_of_other_kinds_are_what_was_meant(split, m, expected):
    assert held_out(split, m) == expected


# ------------------------------------------------------------------------------- numbers of other types

NUMBERS = [
    ("batch_size", 20, [np.int64(20), np.uint8(20), np.int16(20)]),
    ("epochs", 2, [np.int32(2), np.uint64(2)]),
    ("threads", 1, [np.int64(1), np.uint8(1)]),
    ("validation_split", 0.25, [np.float32(0.25), np.float64(0.25), Fraction(1, 4)]),
    ("memory_limit", 1, [np.float32(1), np.int64(1), Fraction(1)]),
    ("shuffle", False, [np.False_, 0, np.int64(0)]),
    ("verbose", False, [np.False_, 0, np.int64(0)]),
    ("optimizer", dnn.SGD(0.5), [dnn.SGD(np.float32(0.5)), dnn.SGD(Fraction(1, 2)), dnn.SGD(np.float64(0.5))]),
    ("optimizer", dnn.Momentum(0.25, 0.5), [dnn.Momentum(np.float16(0.25), Fraction(1, 2))]),
    ("optimizer", dnn.Adam(1, 0.5, 0.75, 0.5), [dnn.Adam(np.int64(1), Fraction(1, 2), np.float64(0.75), np.half(0.5))]),
]


@covering("number, backend", NUMBERS, BACKENDS, indirect=["backend"], ids=str)
def test_whatever_number_is_accepted_works_as_the_plain_one(number, backend: Backend):
    name, plain, others = number

    def trained(value) -> bytes:
        network = dnn.Network([4, 6, 1], seed=3, backend=backend.name)
        network.fit(X, Y, **{"epochs": 1, name: value})
        return backend.to_numpy(network.parameters.flat).tobytes()

    assert {trained(value) for value in others} == {trained(plain)}


@pytest.mark.parametrize("value", [np.array(1), True, np.True_, Decimal(1), "1", math.nan], ids=repr)
@pytest.mark.parametrize("name", ["batch_size", "epochs", "threads", "validation_split", "memory_limit"])
def test_a_number_that_is_refused_is_named_and_leaves_nothing_behind(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        network_of().fit(X, Y, **{name: value})
    network_of().fit(X, Y, epochs=1, threads=1)
    network_of().fit(X, Y, epochs=1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"memory_limit": 0}, "memory_limit must be above 0, got 0"),
        ({"memory_limit": -1.0}, "memory_limit must be above 0, got -1.0"),
        ({"memory_limit": 10**400}, "memory_limit must be a finite number"),
        ({"verbose": "no"}, "verbose must be True or False, got 'no'"),
        ({"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        ({"shuffle": None}, "shuffle must be True or False, got None"),
    ],
)
def test_settings_that_would_mean_something_else_are_refused(settings, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        network_of().fit(X, Y, **settings)


# ------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture(autouse=True)
def _ctrl_c_is_pythons():
    """Whatever the tests were started from: a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.1}, "it is the optimizer's, as in optimizer=dnn.Adam(1e-3)"),
        ({"lr": 0.1}, "it is the optimizer's"),
        ({"momentum": 0.1}, "it is the optimizer's"),
        ({"batchsize": 3}, "did you mean batch_size?"),
        ({"validation_data": (1, 2, 3, 4)}, "must be a pair (X, Y), got tuple of 4"),
        ({"validation_data": "test"}, "must be a pair (X, Y), got str"),
    ],
)
def test_a_setting_that_fit_does_not_have_or_take_says_where_it_belongs(settings, words):
    with pytest.raises(TypeError) as error:
        dnn.Network([2, 3, 1]).fit(np.ones((4, 2)), [0, 1, 0, 1], **settings)
    assert words in str(error.value)


def test_a_bar_that_cannot_be_drawn_ends_no_training():
    program = """
import os, sys
sys.stderr.isatty = lambda: True
import dnn, numpy as np
for name, value in ("TQDM_ASCII", "1"), ("TQDM_NCOLS", "x"), ("TQDM_MININTERVAL", "never"):
    for module in [module for module in sys.modules if module.startswith("tqdm")]:
        del sys.modules[module]  # it reads the environment when it is imported
    os.environ[name] = value
    dnn.Network([2, 3, 1]).fit(np.ones((8, 2)), [0, 1] * 4, epochs=3, batch_size=4)
    del os.environ[name]
    print(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["TQDM_ASCII", "TQDM_NCOLS", "TQDM_MININTERVAL"], done.stderr


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
    assert "3/3: loss" in terminal.text and terminal.text.splitlines()[-1].startswith("epoch 3/3: loss")
    terminal.text = ""
    network_of().fit(X, Y, epochs=3, verbose=False)
    assert terminal.text == ""


@pytest.fixture
def terminal_of(monkeypatch):
    """Run a function with a terminal of so many columns as stderr; returns what it shows."""

    def run(columns: int, function: Callable[[], object]) -> str:
        master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        shown: list[bytes] = []

        def read() -> None:
            with contextlib.suppress(OSError):  # of Linux, when the other end is closed
                while text := os.read(master, 4096):
                    shown.append(text)

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patched, open(slave, "w") as stderr:
            patched.setattr(sys, "stderr", stderr)
            function()
        reader.join()
        os.close(master)
        return b"".join(shown).decode().replace("\r\n", "\n")

    return run


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_the_bar_fits_the_terminal_and_the_last_figures_remain(columns, scale, terminal_of, monkeypatch):
    from tqdm import tqdm

    monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, mininterval=0, miniters=1))
    network, histories = dnn.Network([4, 8, 1], output="linear"), []
    data, settings = (X, X.sum(axis=1) * scale), {"epochs": 30, "batch_size": 10, "validation_split": 0.2}
    *shown, last = terminal_of(columns, lambda: histories.append(network.fit(*data, **settings))).split("\r")
    (history,) = histories
    assert len(shown) > 30 and all(len(line) < columns for line in shown)
    if columns >= 80:
        for epoch in range(29):  # that of the last epoch is replaced at once
            loss, rmse, val_loss, val_rmse = (values[epoch] for values in history.history.values())
            figures = [f"{v:.4f}" if v < 100 else f"{v:.5g}" for v in (loss, val_loss, rmse, val_rmse)]
            text = "{}/30: loss {} (val {}), rmse {} (val {}) |".format(epoch + 1, *figures)
            assert any(line.startswith(text) for line in shown)
    final = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.history.items())
    assert last == f"epoch 30/30: {final}\n"


def test_an_interrupted_fit_leaves_the_figures_of_its_last_epoch(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    done = progress._Bar.epoch_done

    def interrupted(bar, epoch, measured) -> None:
        done(bar, epoch, measured)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress._Bar, "epoch_done", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network_of().fit(X, Y, epochs=30)
    assert terminal.text.splitlines()[-1].startswith("epoch 2/30: loss")


class Broken(Terminal):
    """A stream whose reader has left."""

    def __init__(self, terminal: bool, error: Exception) -> None:
        self._terminal, self._error = terminal, error

    def write(self, text: str) -> int:
        raise self._error

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    "stream",
    [
        None,
        Broken(False, BrokenPipeError(32, "Broken pipe")),
        Broken(False, OSError(28, "No space left on device")),
        Broken(False, ValueError("I/O operation on closed file")),
        Broken(True, OSError(5, "Input/output error")),
        SimpleNamespace(write=len, flush=lambda: None),
    ],
    ids=["none", "pipe", "disk", "closed", "terminal", "no isatty"],
)
def test_a_message_that_cannot_be_shown_ends_no_training(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    for verbose in (None, True):
        assert len(network_of().fit(X, Y, epochs=2, verbose=verbose).epoch) == 2


class Kernel:
    """As much of IPython in a kernel as progress uses: outputs of a cell that can be updated."""

    def __init__(self, kernel: object) -> None:
        self.outputs: list[list[str]] = []
        self.get_ipython = lambda: SimpleNamespace(kernel=kernel)
        self.display = SimpleNamespace(display=self._display)

    def _display(self, data: dict[str, str], raw: bool, display_id: bool) -> object:
        assert raw and display_id
        lines = [data["text/plain"]]
        self.outputs.append(lines)
        return SimpleNamespace(update=lambda data, raw: lines.append(data["text/plain"]))


def test_a_notebook_shows_progress_in_one_output_that_ends_with_the_figures(monkeypatch, capsys):
    kernel = Kernel(object())
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    history = network_of().fit(X, Y, epochs=3, validation_split=0.2)
    (lines,) = kernel.outputs
    assert lines[-1].startswith("epoch 3/3: loss") and f"val_loss {history.history['val_loss'][-1]:.4f}" in lines[-1]
    assert any("0/3 |" in line for line in lines) and not any("\r" in line or "\n" in line for line in lines)
    network_of().fit(X, Y, epochs=3, verbose=False)
    assert len(kernel.outputs) == 1
    # IPython in a terminal, and IPython that has only been imported
    monkeypatch.setitem(sys.modules, "IPython", Kernel(None))
    network_of().fit(X, Y, epochs=3)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    network_of().fit(X, Y, epochs=3)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_executed_and_shows_no_whole_history(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cell = "import numpy as np, dnn\ndnn.Network([2, 1]).fit(np.eye(2), np.arange(2), epochs=30)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    progress, result = notebook.cells[0].outputs
    assert progress["data"]["text/plain"].startswith("epoch 30/30: loss")
    assert result["data"]["text/plain"].startswith("<History: 30 epochs, loss 0.")


def test_a_history_is_one_short_line():
    history = network_of().fit(X, Y, epochs=3, validation_split=0.2)
    last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.history.items())
    assert repr(history) == f"<History: 3 epochs, {last}>" and "val_accuracy" in last
    assert repr(dnn.History()) == "<History: 0 epochs>"
    assert repr(dnn.History({"loss": [0.5]}, [7])) == "<History: 1 epoch, loss 0.5000>"
    assert dnn.History({"loss": [0.5]}, [7]) == dnn.History({"loss": [0.5]}, [7])


def test_many_small_epochs_have_one_entry_each():
    network = dnn.Network([2, 20, 3, 1])
    history = network.fit(X[:, :2], Y, epochs=500, batch_size=50, optimizer=dnn.SGD(0.1))
    assert len(history.history["loss"]) == 500 and all(map(math.isfinite, history.history["loss"]))
