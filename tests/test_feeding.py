"""Data that the device does not hold: it stays on the host, and its batches are brought while the device computes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin
from standin import MAIN, Event, StandinBackend, Stream, device
from sweeps import covering

import dnn
from dnn.backends import Backend, base, get_backend
from dnn.backends.cupy_backend import PinnedFeeder
from dnn.batches import Batches
from dnn.data import prepare
from dnn.errors import NotEnoughMemoryError
from dnn.inference import Evaluation
from dnn.memory import GB, training_bytes
from dnn.settings import FitSettings
from dnn.state import TrainingState
from dnn.step import TRAIN, Order, Step

GENERATOR = np.random.default_rng(0)
FLOATS = GENERATOR.standard_normal((203, 400)).astype(np.float32)
BYTES = GENERATOR.integers(0, 256, (203, 400), np.uint8)
Y = GENERATOR.integers(0, 3, 203)


def network_of(backend: str = "standin") -> dnn.Network:
    return dnn.Network([400, 6, 3], output="softmax", seed=3, backend=backend)


def too_little(X: np.ndarray, batch_size: int, optimizer: dnn.optimizers.Optimizer, m: int = 203) -> float:
    """GB that hold the training of batches fed, and not X."""
    network = network_of()
    examples = prepare(network, X, Y, fitting=True)
    return (
        1 + training_bytes(network, examples, np.arange(m), min(batch_size, m), FitSettings(optimizer=optimizer), True)
    ) / GB


def trained(X: np.ndarray, backend: str = "standin", **settings):
    network = network_of(backend)
    history = network.fit(X, Y, **{"epochs": 3, "optimizer": dnn.Adam(0.01), "batch_size": 16} | settings)
    return history.history, network.backend.to_numpy(network.parameters.flat).tobytes()


def fed(X: np.ndarray, backend: str = "standin", **settings):
    batch_size, split = settings.get("batch_size", 16), settings.get("validation_split", 0)
    limit = too_little(X, batch_size, dnn.Adam(0.01), 203 - int(np.ceil(203 * split)))
    return trained(X, backend, memory_limit=limit, **settings)


@pytest.fixture(autouse=True)
def _nothing_queued(monkeypatch):
    monkeypatch.setattr(base, "_logged", set())
    standin.last_read.clear()
    standin.last_copied.clear()


@pytest.fixture
def fed_rows(monkeypatch) -> list[int]:
    """The sizes of the batches that were fed."""
    sizes: list[int] = []
    batch = PinnedFeeder.batch

    @contextmanager
    def noting(feeder: PinnedFeeder) -> Iterator[Any]:
        with batch(feeder) as X:
            sizes.append(len(X))
            yield X

    monkeypatch.setattr(PinnedFeeder, "batch", noting)
    return sizes


# -------------------------------------------------------------------------------------------- the same


SETTINGS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "no smaller last": {"batch_size": 29},
    "split": {"validation_split": 0.2},
    "validation data": {"validation_data": (FLOATS[:20], Y[:20])},
}


@covering("name, dtype", SETTINGS, [np.float32, np.uint8])
@pytest.mark.parametrize("backend", ["standin", "cupy"], indirect=True)  # on NumPy the device is the host
def test_fed_from_the_host_the_training_is_the_same_to_the_bit(name, dtype, backend: Backend, fed_rows):
    X, settings = (BYTES if dtype == np.uint8 else FLOATS), SETTINGS[name]
    if "validation_data" in settings and X is BYTES:
        settings = {"validation_data": (BYTES[:20], Y[:20])}
    expected = trained(X, backend.name, **settings)
    assert fed_rows == []
    assert fed(X, backend.name, **settings) == expected
    m, batch_size = 203 - 41 * ("validation_split" in settings), settings.get("batch_size", 16)
    last = [m % batch_size] if m % batch_size else []
    assert fed_rows == 3 * ([batch_size] * (m // batch_size) + last)


def test_of_a_single_batch_only_its_rows_are_moved_once(fed_rows, monkeypatch):
    # most of the data is held back, so that a batch of all the rest and its buffers take less than X
    settings = {"validation_split": 0.9, "batch_size": 100}
    expected, moved, asarray = trained(FLOATS, **settings), [], StandinBackend.asarray

    def noting(backend: StandinBackend, array: Any, dtype: Any = None) -> Any:
        if np.ndim(array) == 2 and np.shape(array)[1] == 400 and len(array) != 6:  # not W1
            moved.append(len(array))
        return asarray(backend, array, dtype)

    monkeypatch.setattr(StandinBackend, "asarray", noting)
    assert fed(FLOATS, **settings) == expected
    # those to train on, and those to validate on
    assert fed_rows == [] and moved == [20, 183]


def test_a_backend_that_only_copies_feeds_too(monkeypatch):
    expected = fed(BYTES)
    monkeypatch.setattr(StandinBackend, "feeder", Backend.feeder)
    assert fed(BYTES) == expected


def test_more_epochs_and_another_fit_go_on_as_on_the_device():
    limit = too_little(FLOATS, 16, dnn.Adam(0.01))
    networks = network_of(), network_of()
    for network, its_limit in zip(networks, (limit, None), strict=True):
        network.fit(FLOATS, Y, epochs=2, batch_size=16, optimizer=dnn.Adam(0.01), memory_limit=its_limit)
        network.fit(FLOATS[:100], Y[:100], epochs=1, batch_size=7, optimizer=dnn.Adam(0.01))
    weights = [network.backend.to_numpy(network.parameters.flat) for network in networks]
    np.testing.assert_array_equal(*weights)


def test_predicting_brings_batches_and_never_the_whole(backend: Backend):
    network = dnn.Network([400, 500, 3], output="softmax", seed=1, backend=backend.name)
    many = GENERATOR.standard_normal((10_000, 400)).astype(np.float32)
    labels = np.arange(10_000) % 3
    expected = network.predict_proba(backend.asarray(many)), network.evaluate(backend.asarray(many), labels)
    before = device.allocated
    np.testing.assert_array_equal(network.predict_proba(many), expected[0])
    taken = device.allocated - before
    assert network.evaluate(many, labels) == expected[1]
    batch = 16_000_000 // (4 * 903)
    if backend.name == "standin":
        # X twice fed and once loaded, two layers' activations; and the last batch's own
        assert batch < 10_000 and taken < 2 * batch * 4 * 400 + 2 * 10_000 * 4 * (400 + 2 * 500 + 50)


# ----------------------------------------------------------------------------------------- the decision


def test_data_that_fits_is_moved_once_and_data_that_does_not_is_told(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        trained(FLOATS)
        assert caplog.records == []
        monkeypatch.setattr(StandinBackend, "memory", lambda self: (256_300_000, 2**33))
        trained(FLOATS)
        trained(FLOATS)
    assert [record.message for record in caplog.records] == [
        "X takes 0.000325 GB, more than standin has room for beside the training: it stays on the host, and its "
        "batches are copied while the device computes"
    ]


def test_the_devices_own_array_stays_there(fed_rows):
    on_device = get_backend("standin").asarray(FLOATS)
    assert fed(on_device) == trained(FLOATS)
    assert fed_rows == []


def test_validation_data_is_moved_only_where_there_is_room_left_for_it(monkeypatch):
    seen = []
    bound = Evaluation.__init__

    def noting(evaluation, network, examples, *more, **settings):
        seen.append(network.backend.owns(examples.X))
        bound(evaluation, network, examples, *more, **settings)

    monkeypatch.setattr(Evaluation, "__init__", noting)
    roomy = trained(FLOATS, epochs=1, validation_data=(FLOATS, Y))
    network = network_of()
    examples = prepare(network, FLOATS, Y, fitting=True)
    limit = (
        training_bytes(network, examples, np.arange(203), 16, FitSettings(optimizer=dnn.Adam(0.01)))
        + 1.5 * FLOATS.nbytes
    )
    assert trained(FLOATS, epochs=1, validation_data=(FLOATS, Y), memory_limit=limit / GB) == roomy
    assert seen == [True, False]


def test_where_not_even_a_batch_fits_it_is_refused_and_the_batch_that_fits_fits(fed_rows):
    limit = too_little(FLOATS, 16, dnn.SGD(0.1))
    # a smaller last batch makes 18 take as much as 16
    with pytest.raises(NotEnoughMemoryError, match=r"the largest batch that fits is 18, not 100"):
        network_of().fit(FLOATS, Y, batch_size=100, optimizer=dnn.SGD(0.1), memory_limit=limit)
    network_of().fit(FLOATS, Y, epochs=1, batch_size=18, optimizer=dnn.SGD(0.1), memory_limit=limit)
    assert fed_rows == [18] * 11 + [5]
    with pytest.raises(NotEnoughMemoryError, match="no batch fits"):
        network_of().fit(FLOATS, Y, memory_limit=1e-6)


def test_a_batch_whose_buffers_take_more_than_the_data_is_not_fed(fed_rows):
    """All of the bytes at once: their float copies are there in any case, and two buffers are more than they are."""
    network = network_of()
    examples = prepare(network, BYTES, Y, fitting=True)
    limit = training_bytes(network, examples, np.arange(203), 203, FitSettings(optimizer=dnn.SGD(0.1))) + BYTES.nbytes
    network.fit(BYTES, Y, epochs=1, batch_size=203, optimizer=dnn.SGD(0.1), memory_limit=(1 + limit) / GB)
    assert fed_rows == []
    with pytest.raises(NotEnoughMemoryError, match="the largest batch that fits is"):
        network_of().fit(BYTES, Y, batch_size=203, optimizer=dnn.SGD(0.1), memory_limit=(limit - 100) / GB)


# ------------------------------------------------------------------------------------- what a batch costs


def batches_of(X: np.ndarray) -> Batches:
    network = network_of()
    examples = prepare(network, X, Y, fitting=True)
    state = TrainingState(dnn.Adam(0.01), network.parameters)

    def bind(examples: Any, size: int, loading: str, order: Order | None, goal: str) -> Step:
        return Step(network, examples, size, goal, loading, state.optimizer, state.arrays, order=order)

    return Batches(network.backend, examples, np.arange(203), 16, bind, network.dtype, goal=TRAIN)


@pytest.mark.parametrize("X", [FLOATS, BYTES], ids=["floats", "bytes"])
def test_a_batch_is_one_copy_and_the_step_waits_for_nothing(X, monkeypatch, in_form):
    in_form("launches")
    batches = batches_of(X)
    for _ in range(3):  # the smaller last batch's step is captured in the third
        list(batches)
    monkeypatch.setattr(device, "counts", Counter())
    list(batches)
    # one wait an epoch for all of the device, and of one buffer of the host's for the copy from it two batches before;
    # the batch is copied to where the captured step reads it, and once the position is set to 0
    assert len(batches) == 13
    assert device.counts == {"h2d": 13, "event_waits": 13, "syncs": 1, "launches": 13 + 1, "graphs": 13}


def test_a_batch_is_copied_while_the_one_before_it_is_computed_with(monkeypatch):
    waiting, call = [], Step.__call__

    def watched(step: Step) -> None:
        call(step)
        # copies are done as late as can be: those of the batches to come are queued while this one's step runs
        waiting.append(sum(len(stream.copies) for stream in {s for s, _ in standin.last_copied.values()}))

    monkeypatch.setattr(Step, "__call__", watched)
    list(batches_of(FLOATS))
    assert waiting == [1] * 12 + [0]


# --------------------------------------------------------------------------------------- planted faults


def test_a_step_that_does_not_wait_for_its_copy_would_be_seen(monkeypatch):
    expected = trained(FLOATS)
    monkeypatch.setattr(MAIN, "wait_event", lambda event: None, raising=False)
    with pytest.raises((AssertionError, dnn.errors.NonFiniteLossError)):
        assert fed(FLOATS) == expected


def test_a_buffer_on_the_device_overwritten_before_it_is_read_would_be_seen(monkeypatch):
    wait_event = Stream.wait_event
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: wait_event(self, event) if self is MAIN else None)
    with pytest.raises(RuntimeError, match="may still be read"):
        fed(FLOATS)


def test_pinned_memory_overwritten_before_it_is_copied_would_be_seen(monkeypatch):
    monkeypatch.setattr(Event, "synchronize", lambda self: None)
    with pytest.raises(RuntimeError, match="may still be copied"):
        fed(FLOATS)


def test_a_training_that_is_interrupted_leaves_no_copy_behind(monkeypatch):
    call, done = Step.__call__, []

    def interrupted(step, times=1):
        call(step, times)
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Step, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fed(FLOATS)
    assert not any(stream.copies for stream, _ in standin.last_copied.values())
    done.extend(range(10))
    assert fed(FLOATS) == trained(FLOATS)


# ------------------------------------------------------------------- streams that run beside one another


class ThreadStream:
    """A stream that is a thread: what is queued on it is done in its order, some time."""

    def __init__(self, forgets_to_wait: bool = False) -> None:
        self._forgets = forgets_to_wait
        self._queue: Queue[Callable[[], object] | None] = Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (do := self._queue.get()) is not None:
            do()

    def queue(self, do: Callable[[], object]) -> None:
        self._queue.put(do)

    def wait_event(self, event: ThreadEvent) -> None:
        if not self._forgets:
            self.queue(event.done.wait)  # of the record that is the last as this is queued

    def synchronize(self) -> None:
        event = ThreadEvent()
        event.record(self)
        event.synchronize()

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()


class ThreadEvent:
    def __init__(self, forgets_to_wait: bool = False) -> None:
        self._forgets = forgets_to_wait
        self.done = threading.Event()
        self.done.set()

    def record(self, stream: ThreadStream) -> None:
        self.done = threading.Event()
        stream.queue(self.done.set)

    def synchronize(self) -> None:
        if not self._forgets:
            self.done.wait()


class ThreadArray:
    def __init__(self, host: np.ndarray, copy_takes: float) -> None:
        self.host, self._copy_takes = host, copy_takes

    def __getitem__(self, key: slice) -> ThreadArray:
        return ThreadArray(self.host[key], self._copy_takes)

    def set(self, source: np.ndarray, stream: ThreadStream) -> None:
        stream.queue(lambda: (time.sleep(self._copy_takes), np.copyto(self.host, source)))


def read_by_threads(reading_takes: float, copy_takes: float, forgets: str = "") -> bool:
    """Whether every batch is read as it was enqueued, by a feeder whose device reads and copies in so many seconds."""
    source, order, read = np.arange(300.0).reshape(100, 3), np.random.default_rng(1).permutation(100), []
    device, copies = ThreadStream(forgets == "the device"), ThreadStream(forgets == "the copy")
    cuda = SimpleNamespace(
        Stream=lambda non_blocking: copies,
        Event=lambda disable_timing: ThreadEvent(forgets == "the host"),
        get_current_stream=lambda: device,
    )
    cupy = SimpleNamespace(cuda=cuda, empty=lambda shape, dtype: ThreadArray(np.full(shape, np.nan), copy_takes))
    feeder = PinnedFeeder(cupy, np.empty, source, 8)
    batches = [order[start : start + 8] for start in range(0, 100, 8)]
    to_come = iter(batches)
    for rows in islice(to_come, feeder.AHEAD):
        feeder.enqueue(rows)
    for _ in batches:
        with feeder.batch() as X:
            device.queue(lambda X=X: (time.sleep(reading_takes), read.append(X.host.copy())))
        for rows in islice(to_come, 1):
            feeder.enqueue(rows)
    feeder.drain()
    device.synchronize()
    for stream in (device, copies):
        stream.end()
    return np.array_equal(np.vstack(read), source[order])


@pytest.mark.parametrize("takes", [(0.0, 0.0), (0.003, 0.0), (0.0, 0.003), (0.001, 0.001)], ids=str)
def test_whatever_takes_long_every_batch_is_read_as_it_was_enqueued(takes):
    assert read_by_threads(*takes)


@pytest.mark.parametrize(
    ("forgets", "reading_takes", "copy_takes"),
    [("the device", 0.0, 0.01), ("the copy", 0.01, 0.0), ("the host", 0.0, 0.01)],
)
def test_each_of_the_three_waits_is_needed(forgets, reading_takes, copy_takes):
    assert not read_by_threads(reading_takes, copy_takes, forgets)


@pytest.mark.skipif(find_spec("cupy") is None, reason="the extra kernelcheck is not installed")
def test_cupy_has_what_feeding_calls():
    import cupy
    import cupyx

    assert callable(cupyx.empty_pinned)
    for owner, names in (
        (cupy.ndarray, ["set"]),
        (cupy.cuda.Stream, ["wait_event", "synchronize"]),
        (cupy.cuda.Event, ["record", "synchronize"]),
    ):
        assert all(callable(getattr(owner, name)) for name in names)
