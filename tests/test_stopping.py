"""Early stopping, callbacks, schedules of results, fits that go on, and the validation cut."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import torch_or_skip
from sweeps import covering

import dnn
from dnn.backends import Backend
from dnn.data.splitting import split_rows
from dnn.errors import NonFiniteLossError

GENERATOR = np.random.default_rng(1)
M = 30
X = GENERATOR.standard_normal((M, 4))
Y = (X[:, 0] + 0.8 * GENERATOR.standard_normal(M) > 0).astype(np.int64)
OF_VALIDATION = (GENERATOR.standard_normal((16, 4)), GENERATOR.integers(0, 2, 16))
BATCHES = {"batch_size": 8, "optimizer": dnn.Adam(0.05)}


def network_of(backend: Backend | str = "numpy", **settings: Any) -> dnn.Network:
    name = backend if isinstance(backend, str) else backend.name
    return dnn.Network([4, 6, 1], **({"norm": "batch", "dropout": 0.2, "seed": 3, "backend": name} | settings))


def everything(network: dnn.Network) -> list[bytes]:
    arrays = [network.parameters.flat, network.layer_state.flat]
    return [network.backend.to_numpy(array).tobytes() for array in arrays]


def after_each_epoch(copies: dict[int, list[bytes]]) -> Any:
    return lambda event: copies.update({event.epoch: everything(event.network)})


# -------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("monitor", "best", "metrics"),
    [
        ("val_loss", np.argmin, []),
        ("val_accuracy", np.argmax, []),
        ("loss", np.argmin, []),
        ("val_f1", np.argmax, ["f1"]),
        ("val_log_loss", np.argmin, ["log_loss"]),
    ],
)
def test_the_network_is_left_as_it_was_after_its_best_epoch(monitor, best, metrics, backend: Backend):
    network, copies = network_of(backend), {}
    history = network.fit(
        X, Y, **BATCHES, epochs=40, validation_data=OF_VALIDATION, metrics=metrics, callbacks=after_each_epoch(copies),
        early_stopping=dnn.EarlyStopping(monitor, patience=3),
    )  # fmt: skip
    values = history.history[monitor]
    assert history.best_epoch == 1 + best(values)
    assert everything(network) == copies[history.best_epoch]
    assert everything(network) != copies[len(values)] or history.best_epoch == len(values)
    if history.stopped is not None:
        assert history.stopped == f"{monitor} has not improved for 3 epochs"
        assert len(values) == history.best_epoch + 3 < 40


def stopped_at(values: list[float], **settings: Any) -> tuple[int, int | None, str | None]:
    """The epochs done where a metric takes these values, one an epoch."""
    given = iter(values)

    def score(xp: Any, P: Any, Y: Any, weights: Any = None) -> Any:
        return xp.sum(P[:1]) * 0 + next(given)

    greater = settings.pop("greater_is_better", None)
    if greater is not None:
        score.greater_is_better = greater
    else:
        settings.setdefault("maximize", False)
    stopping = dnn.EarlyStopping("val_score", **({"patience": 2} | settings))
    history = network_of().fit(
        X, Y, epochs=len(values), batch_size=64, validation_data=(X, Y), metrics=[score], early_stopping=stopping
    )
    np.testing.assert_array_equal(history.history["val_score"], values[: len(history.epoch)])
    return len(history.epoch), history.best_epoch, history.stopped


def test_patience_counts_epochs_without_an_improvement_of_min_delta():
    falling = [5.0, 4.0, 3.5, 3.25, 3.125, 3.0]
    assert stopped_at(falling) == (6, 6, None)
    assert stopped_at(falling, min_delta=0.5) == (6, 4, "val_score has not improved for 2 epochs")
    assert stopped_at([3.0, 3.0, 3.0, 1.0])[:2] == (3, 1)
    assert stopped_at([3.0, 3.5, 2.0, 4.0, 4.0, 1.0])[:2] == (5, 3)
    assert stopped_at([3.0, 3.5, np.nan, 1.0])[:2] == (3, 1)
    assert stopped_at(falling, maximize=True)[:2] == (3, 1)
    assert stopped_at([1.0, 2.0, 3.0, 2.0, 2.5], maximize=True)[:2] == (5, 3)
    assert stopped_at([1.0, 2.0, 3.0, 2.0, 2.5], greater_is_better=True)[:2] == (5, 3)


def test_a_metric_with_settings_says_whether_more_is_better():
    from dnn.metrics import TopK

    network = dnn.Network([4, 5, 4], output="softmax", seed=3)
    labels = (X[:, 0] > 0) + 2 * (X[:, 1] > 0)
    history = network.fit(
        X, labels, epochs=12, metrics=[TopK(2)], validation_split=0.5, early_stopping=dnn.EarlyStopping("val_top_2", 12)
    )
    values = history.history["val_top_2"]
    assert history.best_epoch == 1 + np.argmax(values) != 1 + np.argmin(values)


def test_without_restore_best_the_network_is_as_the_last_epoch_left_it():
    stopping = dnn.EarlyStopping(patience=2, restore_best=False)
    network, plain = network_of(), network_of()
    history = network.fit(X, Y, **BATCHES, epochs=30, validation_data=OF_VALIDATION, early_stopping=stopping)
    assert history.stopped is not None and history.best_epoch is None
    plain.fit(X, Y, **BATCHES, epochs=len(history.epoch))
    assert everything(network) == everything(plain)


def test_a_patience_alone_watches_the_validation_loss():
    by_number, spelled_out = network_of(), network_of()
    for network, stopping in ((by_number, np.int64(3)), (spelled_out, dnn.EarlyStopping("val_loss", 3))):
        network.fit(X, Y, **BATCHES, epochs=20, validation_split=0.3, early_stopping=stopping)
    assert everything(by_number) == everything(spelled_out)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"early_stopping": 3},
            "early_stopping watches 'val_loss', and there are loss, accuracy: give validation_data",
        ),
        (
            {"early_stopping": dnn.EarlyStopping("val_f1"), "validation_split": 0.3},
            "early_stopping watches 'val_f1', and there are loss, accuracy, val_loss, val_accuracy$",
        ),
        (
            {"schedule": "plateau"},
            "the schedule watches 'val_loss', and there are loss, accuracy: give validation_data",
        ),
    ],
)
def test_a_measure_that_there_is_not_is_refused_before_anything_is_trained(given, complaint):
    network = network_of()
    before = everything(network)
    with pytest.raises(ValueError, match=complaint):
        network.fit(X, Y, **given)
    assert everything(network) == before and network.epochs == 0 and network.training_state is None


def test_a_measure_that_is_no_number_cannot_be_watched():
    with pytest.raises(ValueError, match="watches 'val_confusion_matrix', which is no number"):
        network_of().fit(
            X, Y, validation_data=(X, Y), metrics=["confusion_matrix"],
            early_stopping=dnn.EarlyStopping("val_confusion_matrix", maximize=True),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: dnn.EarlyStopping(monitor=3), TypeError, "EarlyStopping: monitor must be the name of a measure"),
        (lambda: dnn.EarlyStopping(patience=0), ValueError, "EarlyStopping: patience must be at least 1, got 0"),
        (lambda: dnn.EarlyStopping(patience=2.5), TypeError, "EarlyStopping: patience must be a whole number"),
        (lambda: dnn.EarlyStopping(min_delta=-1), ValueError, "EarlyStopping: min_delta must be at least 0"),
        (lambda: dnn.EarlyStopping(min_delta=np.nan), ValueError, "EarlyStopping: min_delta must be finite"),
        (lambda: dnn.EarlyStopping(restore_best="yes"), TypeError, "EarlyStopping: restore_best must be True or False"),
        (lambda: dnn.EarlyStopping(maximize="max"), TypeError, "EarlyStopping: maximize must be True or False"),
    ],
)
def test_early_stopping_refuses_settings_that_cannot_work(make, error, complaint):
    with pytest.raises(error, match=complaint):
        make()


# ------------------------------------------------------------------------------- fits that go on

ONGOING = {
    "early stopping": {"early_stopping": dnn.EarlyStopping(patience=4)},
    "early stopping that ends it": {"early_stopping": dnn.EarlyStopping("val_accuracy", patience=4)},
    "moving average": {"moving_average": 0.8},
    "both": {"moving_average": 0.8, "early_stopping": 5},
    "plateau": {"schedule": dnn.ReduceOnPlateau(patience=0, min_delta=0.01)},
    "schedule": {"schedule": dnn.Cosine(epochs=6, warmup=1), "weight_decay_schedule": dnn.StepDecay(epochs=6, every=2)},
    "class weights": {"class_weight": "balanced", "sample_weight": GENERATOR.uniform(0, 2, M)},
    "accumulate": {"accumulate": 2, "clip_norm": 0.5, "l2": 0.01, "max_norm": 1.5},
}


@covering("name, backend", ONGOING, BACKENDS, indirect=["backend"])
def test_three_plus_three_epochs_equal_six(name, backend: Backend):
    given = {**BATCHES, "optimizer": dnn.AdamW(0.03), "validation_split": 0.2} | ONGOING[name]
    halves, whole = network_of(backend), network_of(backend)
    first = halves.fit(X, Y, epochs=3, **given)
    second = halves.fit(X, Y, epochs=3, **given)
    both = whole.fit(X, Y, epochs=6, **given)
    assert everything(halves) == everything(whole)
    assert {n: first.history[n] + second.history[n] for n in both.history} == both.history
    assert second.best_epoch == both.best_epoch and halves.epochs == whole.epochs == 6


def test_a_schedule_without_a_length_is_for_each_fit():
    """A second fit would otherwise go on at the end of a cosine, with a learning rate of 0."""
    network = network_of()
    network.fit(X, Y, epochs=3, **BATCHES, schedule="cosine")
    before = everything(network)
    network.fit(X, Y, epochs=1, **BATCHES, schedule="cosine")
    assert everything(network) != before


@pytest.mark.parametrize("schedule", ["polynomial", dnn.StepDecay(every=1), dnn.StepDecay(every=1, epochs=9)])
def test_another_schedule_begins_anew(schedule):
    network = dnn.Network([1, 1], output="linear", dtype="float64")
    network.fit(np.zeros((2, 1)), np.ones(2), epochs=4, optimizer=dnn.SGD(0.0), schedule="polynomial")
    network.fit(np.zeros((2, 1)), np.ones(2), epochs=1, optimizer=dnn.SGD(0.25), schedule=schedule)
    assert float(network.parameters["b1"][0]) == 0.5  # 2 · 0.25


def test_a_schedule_with_a_length_goes_on_by_epochs_where_batches_change():
    schedule = dnn.StepDecay(epochs=6, every=3, gamma=0.0625)
    network = dnn.Network([1, 1], output="linear", dtype="float64")
    ones, zeros = np.ones(8), np.zeros((8, 1))
    network.fit(zeros, ones, epochs=3, batch_size=1, optimizer=dnn.SGD(0.0), schedule=schedule)
    network.fit(zeros, ones, epochs=1, batch_size=8, optimizer=dnn.SGD(0.5), schedule=schedule)
    assert float(network.parameters["b1"][0]) == 0.0625  # 2 · 0.5 · 0.0625


def test_where_someone_changes_parameters_training_goes_on_from_those(backend: Backend):
    given = {**BATCHES, "validation_split": 0.2, "moving_average": 0.9, "early_stopping": 5}
    network, started = network_of(backend), network_of(backend)
    network.fit(X, Y, epochs=3, **given)
    started.fit(X, Y, epochs=3, **given)
    for each in (network, started):
        each.parameters["W1"] = np.ones((6, 4))
    started.training_state.after.clear()  # as if nothing else was kept
    copies: list[np.ndarray] = []

    def at_start(event: Any) -> None:
        copies.append(event.network.backend.to_numpy(event.network.parameters["W1"]).copy())

    class Looking:
        on_start = staticmethod(at_start)

    network.fit(X, Y, epochs=2, callbacks=[Looking()], **given)
    np.testing.assert_array_equal(copies[0], np.ones((6, 4)))
    started.training_state.arrays["average"][...] = started.parameters.flat
    history = started.fit(X, Y, epochs=2, **given)
    assert everything(network) == everything(started) and history.best_epoch in (4, 5)


def test_best_weights_are_of_the_data_they_were_measured_on():
    """Other data may be harder: its fit must not give back the network of the fit before."""
    easy = (X, (X[:, 0] > 0).astype(int))
    hard = (X + 3, GENERATOR.integers(0, 2, M))
    network = network_of(dropout=0.0)
    network.fit(*easy, **BATCHES, epochs=15, validation_split=0.3, early_stopping=15)
    before = everything(network)
    history = network.fit(*hard, **BATCHES, epochs=3, validation_split=0.3, early_stopping=15)
    assert history.best_epoch in (16, 17, 18)
    assert everything(network) != before


def test_another_kind_of_fit_goes_on_from_the_weights_that_the_network_has():
    network = network_of()
    network.fit(X, Y, **BATCHES, epochs=10, validation_split=0.3, early_stopping=10)
    seen: list[list[bytes]] = []

    class Looking:
        def on_start(self, event: Any) -> None:
            seen.append(everything(event.network))

    left = everything(network)
    network.fit(X, Y, **BATCHES, epochs=1, callbacks=[Looking()])
    assert seen == [left]


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_as_the_network_does(make, backend: Backend):
    given = {**BATCHES, "validation_split": 0.2, "moving_average": 0.9, "early_stopping": 5}
    network = network_of(backend)
    network.fit(X, Y, epochs=3, **given)
    other = make(network)
    for each in (network, other):
        each.fit(X, Y, epochs=2, **given)
    assert everything(network) == everything(other)


def test_a_fit_that_cannot_begin_leaves_the_best_weights():
    network = network_of()
    given = {**BATCHES, "validation_split": 0.3}
    network.fit(X, Y, epochs=10, early_stopping=10, **given)
    left = everything(network)
    with pytest.raises(ValueError, match="watches 'val_f1'"):
        network.fit(X, Y, early_stopping=10, schedule=dnn.ReduceOnPlateau(monitor="val_f1"), **given)
    assert everything(network) == left
    plain = network_of()
    plain.fit(X, Y, epochs=10, early_stopping=10, **given)
    for each in (network, plain):
        each.fit(X, Y, epochs=2, early_stopping=10, **given)
    assert everything(network) == everything(plain)


# -------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_in_order_and_told_what_there_is():
    calls: list[tuple[Any, ...]] = []

    class Recorder:
        def on_start(self, event: dnn.Event) -> None:
            calls.append(("start", event.epoch, event.batch, dict(event.measured)))

        def on_batch_end(self, event: dnn.Event) -> None:
            assert 0 < event.loss < 10
            calls.append(("batch", event.epoch, event.batch))

        def on_epoch_end(self, event: dnn.Event) -> None:
            assert event.measured["loss"] == event.history.history["loss"][-1]
            calls.append(("epoch", event.epoch, sorted(event.measured)))

        def on_stop(self, event: dnn.Event) -> None:
            calls.append(("stop", event.epoch, event.stopped, event.history.best_epoch))

    network = network_of()
    network.fit(X, Y, **BATCHES, epochs=1)
    history = network.fit(
        X, Y, **BATCHES, epochs=2, callbacks=[Recorder(), lambda event: calls.append(("function", event.network))]
    )
    assert history.epoch == [2, 3]
    expected: list[tuple[Any, ...]] = [("start", 1, 0, {})]
    for epoch in (1, 2):
        expected += [("batch", epoch, number) for number in (1, 2, 3, 4)]
        expected += [("epoch", epoch + 1, ["accuracy", "loss"]), ("function", network)]
    assert calls == [*expected, ("stop", 3, None, None)]


def test_the_loss_of_each_batch_is_its_own(backend: Backend):
    network, losses = network_of(backend, norm=None, dropout=0.0, dtype="float64"), []

    class Looking:
        def on_batch_end(self, event: dnn.Event) -> None:
            losses.append(event.loss)

    expected = [network.evaluate(X[start : start + 8], Y[start : start + 8])["loss"] for start in range(0, M, 8)]
    network.fit(X, Y, epochs=1, batch_size=8, optimizer=dnn.SGD(0.0), shuffle=False, callbacks=Looking())
    assert losses == pytest.approx(expected, abs=1e-12)


def test_looking_on_changes_no_bit(backend: Backend):
    class Looking:
        def on_batch_end(self, event: dnn.Event) -> None:
            pass

    networks = [network_of(backend) for _ in range(2)]
    for network, callbacks in zip(networks, ([], [Looking(), lambda event: None]), strict=True):
        network.fit(X, Y, **BATCHES, epochs=3, accumulate=2, callbacks=callbacks)
    assert everything(networks[0]) == everything(networks[1])


def test_a_callback_ends_a_fit_after_an_epoch():
    network, plain = network_of(), network_of()

    def stop(event: dnn.Event) -> None:
        if event.epoch == 2:
            event.stop("enough")

    history = network.fit(X, Y, **BATCHES, epochs=9, callbacks=[stop])
    assert (history.stopped, history.epoch) == ("enough", [1, 2])
    plain.fit(X, Y, **BATCHES, epochs=2)
    assert everything(network) == everything(plain)


class StopsAt:
    """Ends the fit, or fails, after a batch."""

    def __init__(self, batch: int, action: Any = None) -> None:
        self.batch, self.action, self.ended = batch, action, None

    def on_batch_end(self, event: dnn.Event) -> None:
        if event.batch == self.batch:
            event.stop() if self.action is None else self.action(event)

    def on_stop(self, event: dnn.Event) -> None:
        self.ended = event.stopped


def test_a_callback_ends_a_fit_within_an_epoch(backend: Backend):
    network, plain, stops = network_of(backend), network_of(backend), StopsAt(2)
    history = network.fit(X, Y, **BATCHES, epochs=9, shuffle=False, callbacks=[stops])
    assert history.stopped == stops.ended == "a callback stopped it"
    assert (history.epoch, history.history, network.epochs) == ([], {}, 0)
    plain.fit(X[:16], Y[:16], **BATCHES, epochs=1, shuffle=False)
    assert everything(network) == everything(plain)
    assert repr(history) == "<History: 0 epochs>"


def test_gradients_of_an_update_that_was_not_reached_are_forgotten():
    """A batch of three that make an update was done when the fit ended; the next fit begins with its own."""
    given = {**BATCHES, "shuffle": False, "accumulate": 3, "epochs": 1}
    network, plain = (network_of(norm=None, dropout=0.0) for _ in range(2))
    network.fit(X, Y, **given, callbacks=[StopsAt(1)])
    for each in (network, plain):
        each.fit(X, Y, **given)
    assert everything(network) == everything(plain)


def failing(event: dnn.Event) -> None:
    raise RuntimeError("mine")


def test_an_error_in_a_callback_leaves_a_network_that_trains_on():
    for callback in (StopsAt(3, failing), failing):
        network = network_of()
        with pytest.raises(RuntimeError, match="mine"):
            network.fit(X, Y, **BATCHES, epochs=3, callbacks=[callback])
        assert np.isfinite(network.predict_proba(X)).all()
        history = network.fit(X, Y, **BATCHES, epochs=2)
        assert np.isfinite(history.history["loss"]).all()


def spoil(event: dnn.Event) -> None:
    event.network.parameters.flat[...] = np.nan


def test_whatever_a_callback_does_the_network_is_left_finite():
    def spoil_and_fail(event: dnn.Event) -> None:
        spoil(event)
        failing(event)

    def spoil_and_stop(event: dnn.Event) -> None:
        spoil(event)
        event.stop()

    for action, error in ((spoil_and_fail, RuntimeError), (spoil_and_stop, NonFiniteLossError)):
        for callback in (StopsAt(2, action), action):
            network = network_of()
            network.fit(X, Y, **BATCHES, epochs=1)
            before = everything(network)
            with pytest.raises(error):
                network.fit(X, Y, **BATCHES, epochs=3, callbacks=[callback])
            assert np.isfinite(network.predict_proba(X)).all()
            if callback is not action:
                assert everything(network) == before


def test_after_a_divergence_the_network_is_what_the_error_says_and_not_the_best():
    given = {**BATCHES, "validation_data": OF_VALIDATION, "early_stopping": 50}
    network, plain = network_of(), network_of()

    def explode(event: dnn.Event) -> None:
        if event.epoch == 4:
            spoil(event)

    with pytest.raises(NonFiniteLossError, match="as it was after epoch 4"):
        network.fit(X, Y, **given, epochs=9, callbacks=[explode])
    plain.fit(X, Y, **BATCHES, epochs=4)
    assert everything(network) == everything(plain)
    assert np.isfinite(network.fit(X, Y, **given, epochs=2).history["loss"]).all()


@pytest.mark.parametrize("given", [3, "print", dnn.Network, [None], object()], ids=lambda given: type(given).__name__)
def test_what_can_never_be_called_is_no_callback(given):
    with pytest.raises(TypeError, match="callbacks must be functions of an event, or objects with a method on_start"):
        dnn.FitSettings(callbacks=given)


# ---------------------------------------------------------------------- a schedule of results


def test_the_learning_rate_falls_as_pytorchs_does_on_a_plateau():
    torch = torch_or_skip()
    network, rates = network_of(), []
    plateau = dnn.ReduceOnPlateau(gamma=0.5, patience=1, min_delta=1e-3)

    def note(event: dnn.Event) -> None:
        rates.append(event.network.training_state.learning_rate)

    history = network.fit(
        X, Y, epochs=25, batch_size=8, optimizer=dnn.SGD(1.0), validation_data=OF_VALIDATION, schedule=plateau,
        callbacks=[note],
    )  # fmt: skip
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        peer, factor=0.5, patience=1, threshold=1e-3, threshold_mode="abs", eps=0
    )
    expected = []
    for value in history.history["val_loss"]:
        scheduler.step(value)
        expected.append(peer.param_groups[0]["lr"])
    assert rates == expected and rates[-1] < 1


def test_a_plateau_of_a_score_is_where_it_does_not_grow():
    rates = []

    def note(event: dnn.Event) -> None:
        rates.append((event.measured["val_roc_auc"], event.network.training_state.learning_rate))

    network_of().fit(
        X, Y, epochs=12, optimizer=dnn.SGD(1.0), validation_data=(X, Y), metrics=["roc_auc"],
        schedule=dnn.ReduceOnPlateau(monitor="val_roc_auc", patience=0, min_delta=0.0),
        callbacks=[note],
    )  # fmt: skip
    best, rate = -1.0, 1.0
    for value, found in rates:
        best, rate = (value, rate) if value > best else (best, rate * 0.1)
        assert found == pytest.approx(rate)


# ---------------------------------------------------------------------------- the validation cut


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6).filter(lambda counts: sum(counts) > 3),
    split=st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 0.8]),
    seed=st.integers(0, 1000),
)
def test_every_class_gives_its_share_to_within_one_example(counts, split, seed):
    network = dnn.Network([2, len(counts)], output="softmax", seed=seed)
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    m = len(classes)
    held_out, kept = split_rows(network, classes.reshape(-1, 1), split)
    assert sorted([*held_out, *kept]) == list(range(m)) and len(held_out) == -(-m * round(split * 60) // 60)
    taken = Counter(classes[held_out].tolist())
    for number, count in enumerate(counts):
        assert abs(taken[number] - count * len(held_out) / m) < 1
    whole = [count * len(held_out) // m for count in counts]
    if len(held_out) - sum(whole) >= whole.count(0):  # what is left over is enough for those that have none
        assert all(taken[number] for number, count in enumerate(counts) if count >= 2)
    again, _ = split_rows(network, classes.reshape(-1, 1), split)
    np.testing.assert_array_equal(held_out, again)


def test_a_single_example_of_a_class_is_trained_on():
    network = dnn.Network([2, 3], output="softmax")
    held_out, _ = split_rows(network, np.repeat([0, 1, 2], [8, 1, 8]).reshape(-1, 1), 0.25)
    assert 8 not in held_out


def test_classes_that_come_sorted_are_cut_fairly():
    network = dnn.Network([2, 1])
    held_out, kept = split_rows(network, np.repeat([0.0, 1.0], [80, 20]).reshape(-1, 1), 0.2)
    assert (np.sum(held_out < 80), np.sum(held_out >= 80)) == (16, 4)
    other, _ = split_rows(dnn.Network([2, 1], seed=1), np.repeat([0.0, 1.0], [80, 20]).reshape(-1, 1), 0.2)
    assert not np.array_equal(held_out, other)
    assert (np.diff(held_out) > 1).any() and (np.diff(kept) > 0).all()


def test_values_and_labels_are_cut_by_the_seed_alone():
    for network, Y in (
        (dnn.Network([2, 1], output="linear", seed=5), np.arange(40.0).reshape(-1, 1)),
        (dnn.Network([2, 3], seed=5), np.zeros((40, 3))),
    ):
        held_out, _ = split_rows(network, Y, 0.25)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, 2])))
        np.testing.assert_array_equal(held_out, np.sort(generator.permutation(40)[:10]))


# ------------------------------------------------------------------------------------ what is shown


def test_lines_of_an_early_stopped_fit_say_what_there_is(capsys):
    network = network_of()
    history = network.fit(
        X, Y, **BATCHES, epochs=30, validation_data=OF_VALIDATION, early_stopping=2, metrics=["f1", "confusion_matrix"],
        verbose=True,
    )  # fmt: skip
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("epoch 1/30: loss ") and "val_f1 " in shown[0]
    assert len(shown) <= 2 and "nan" not in shown[0]
    assert repr(history).startswith(f"<History: {len(history.epoch)} epochs, loss ")
    assert repr(history).endswith(f"best epoch {history.best_epoch}>") and "\n" not in repr(history)


# ------------------------------------------------------------------------------- what a reviewer has found


def test_a_divergence_goes_back_to_what_a_callback_left_after_the_last_finite_epoch():
    X, Y = np.random.default_rng(0).standard_normal((64, 3)), np.zeros(64)
    Y[:32] = 1
    seen = []

    def callback(event):
        seen.append(np.array(event.network.parameters.flat))
        if event.epoch == 5:
            event.learning_rate = 1e38
            assert event.learning_rate == 1e38

    network = dnn.Network([3, 8, 1])
    with pytest.raises(dnn.errors.NonFiniteLossError, match="after epoch 5"):
        network.fit(X, Y, epochs=20, batch_size=16, optimizer=dnn.SGD(1e-2), callbacks=callback, verbose=False)
    np.testing.assert_array_equal(network.parameters.flat, seen[4])


def test_a_metric_of_ones_own_is_not_taken_for_a_loss():
    def share(xp, P, Y, weights):
        return xp.mean(P)

    X, Y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    settings = {"metrics": [share], "validation_split": 0.2, "verbose": False, "epochs": 1}
    with pytest.raises(ValueError, match=r"early_stopping watches 'val_share', .*: say maximize=True or False"):
        dnn.Network([3, 1]).fit(X, Y, early_stopping=dnn.EarlyStopping("val_share"), **settings)
    dnn.Network([3, 1]).fit(X, Y, early_stopping=dnn.EarlyStopping("val_share", maximize=True), **settings)


def test_a_schedule_that_no_length_decides_goes_on_in_a_second_fit():
    X, Y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2

    def trained(*epochs):
        network = dnn.Network([3, 4, 1], seed=1)
        for number in epochs:
            network.fit(X, Y, epochs=number, batch_size=8, schedule=dnn.ExponentialDecay(0.5), verbose=False)
        return np.array(network.parameters.flat)

    np.testing.assert_array_equal(trained(3, 3), trained(6))


def test_ctrl_c_stops_a_fit_before_its_first_step_at_once(monkeypatch):
    import signal

    from dnn import training

    class Prepared(Exception):
        pass

    def epochs(*given):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise Prepared

    monkeypatch.setattr(training, "Epochs", epochs)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Prepared):
            dnn.Network([2, 1]).fit(np.zeros((4, 2)), np.zeros(4), verbose=False)
    finally:
        signal.signal(signal.SIGINT, before)


def test_weights_of_examples_over_several_batches_of_members_are_refused():
    settings = {"sample_weight": np.ones(8), "accumulate": 2, "batch_size": 2, "epochs": 1, "verbose": False}
    with pytest.raises(ValueError, match="accumulate with weights of examples is for one network"):
        dnn.Network([2, 1], members=2).fit(np.zeros((8, 2)), np.zeros(8), **settings)
    dnn.Network([2, 1], members=2, shared="tabm").fit(np.zeros((8, 2)), np.zeros(8), **settings)
