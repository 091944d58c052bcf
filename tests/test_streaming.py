"""X that stays in its file: the same training as in memory where rows can be read anywhere, else windows of bands."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dnn
from dnn.backends import base, use_compiled_steps
from dnn.backends.codegen import reading
from dnn.batches import Batches
from dnn.data import prepare, storage, streaming
from dnn.data.sources import Rows
from dnn.data.streaming import Ahead, Pass, Stream
from dnn.errors import DataError
from dnn.memory import GB, training_bytes
from dnn.settings import FitSettings

M, N = 1203, 40
DRAW = np.random.default_rng(0)
BYTES = DRAW.integers(0, 256, (M, N), np.uint8)
FLOATS = DRAW.standard_normal((M, N)).astype(np.float32)
Y = DRAW.integers(0, 3, M)
GZIP: dict[str, Any] = {"chunks": (64, N), "compression": "gzip"}


@pytest.fixture(autouse=True)
def no_compiler(request: pytest.FixtureRequest) -> None:
    """What is no matter of a backend is tested without waiting for a compiler."""
    if "backend" not in request.fixturenames:
        use_compiled_steps(False)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Parts, windows and bands so small that a few rows fill several of each; and no thread left."""
    monkeypatch.setattr(base, "_logged", set())
    monkeypatch.setattr(streaming, "PART_BYTES", 20_000)
    monkeypatch.setattr(storage, "BAND_BYTES", 1)
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dnn reads")] == []


@pytest.fixture
def store(tmp_path: Path):
    files = []

    def stored(values: np.ndarray, **how: Any) -> Any:
        path = tmp_path / f"{len(files)}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, **how)
        files.append(h5py.File(path))
        return files[-1]["x"]

    yield stored
    for file in files:
        file.close()


@pytest.fixture
def in_file(monkeypatch):
    """Whatever can stay in its file does, with windows of so many bytes."""

    def small(memory: int) -> None:
        monkeypatch.setattr(streaming, "room_for_X", lambda backend, limit: memory)
        for module in ("dnn.training", "dnn.inference"):
            monkeypatch.setattr(f"{module}.room_for_X", lambda backend, limit: memory)

    small(30_000)
    return small


def network_of(**settings: Any) -> dnn.Network:
    return dnn.Network([N, 6, 3], output="softmax", **{"seed": 3} | settings)


def trained(X: Any, network: dict[str, Any] | None = None, **settings: Any) -> tuple[dict[str, Any], bytes]:
    made = network_of(**network or {})
    history = made.fit(X, Y, **{"epochs": 2, "optimizer": dnn.Adam(0.01), "batch_size": 16} | settings)
    return history.history, made.backend.to_numpy(made.parameters.flat).tobytes()


def stream_of(X: Any, memory: int = 30_000, **network: Any) -> Stream:
    found = prepare(network_of(**network), X, Y, fitting=True, memory=memory).X
    assert isinstance(found, Stream)
    return found


def generators(n: int = 1) -> list[np.random.Generator]:
    return [np.random.default_rng([7, i]) for i in range(n)]


# -------------------------------------------------------------------------------- contiguous: as in memory


SAME: dict[str, tuple[np.ndarray, dict[str, Any], dict[str, Any]]] = {
    "bytes": (BYTES, {}, {}),
    "floats": (FLOATS, {}, {}),
    "in order": (FLOATS, {}, {"shuffle": False}),
    "no smaller last": (BYTES, {}, {"batch_size": 401}),
    "one batch": (BYTES, {}, {"batch_size": M}),
    "split": (BYTES, {}, {"validation_split": 0.2}),
    "weights": (BYTES, {}, {"class_weight": {0: 2.0}, "accumulate": 3}),
    "members": (FLOATS, {"members": 3}, {}),
    "doubles": (FLOATS.astype(np.float64), {}, {}),
    "big-endian": (FLOATS.astype(">f4"), {}, {}),
    "pictures": (BYTES.reshape(M, 8, 5), {}, {}),
    "truths": (BYTES > 128, {}, {}),
    "learned": (FLOATS * 9 + 4, {"input_scale": "standard"}, {"validation_split": 0.2}),
}


@pytest.mark.parametrize("name", SAME)
def test_contiguous_data_in_its_file_trains_as_in_memory_to_the_bit(name, store, in_file):
    X, network, settings = SAME[name]
    data = store(X)
    assert isinstance(storage.storage_of("X", data), storage.Contiguous)
    assert trained(data, network, **settings) == trained(X, network, **settings)


def test_a_user_block_before_the_data_and_no_machine_code_are_no_difference(tmp_path, in_file, monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    reading.read_rows.cache_clear()
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["x"] = FLOATS
    with h5py.File(tmp_path / "a.h5") as file:
        assert isinstance(storage.storage_of("X", file["x"]), storage.Contiguous)
        assert trained(file["x"]) == trained(FLOATS)
    reading.read_rows.cache_clear()


def test_a_file_that_is_cut_off_while_it_is_read_is_one_line(store, in_file):
    data = store(FLOATS)
    stream = stream_of(data)
    with open(data.file.filename, "r+b") as file:
        file.truncate(20_000)
    with pytest.raises(DataError, match=r"x: cannot be read to its end: the file is damaged, or it was cut off"):
        stream[:]


# ----------------------------------------------------------------------------------------- chunks: windows


LAYOUTS: dict[str, dict[str, Any]] = {
    "gzip": GZIP,
    "gzip and shuffle": GZIP | {"shuffle": True},
    "lzf": GZIP | {"compression": "lzf"},
    "fletcher32": GZIP | {"fletcher32": True},
    "plain chunks": {"chunks": (50, N)},
    "columns apart": {"chunks": (70, 13), "compression": "gzip"},
    "one chunk": {"chunks": (M, N), "compression": "gzip"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("X", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_whatever_the_filter_each_row_is_what_it_was(layout, X, store):
    stream = stream_of(store(X, **LAYOUTS[layout]))
    rows = DRAW.permutation(M)[:100]
    np.testing.assert_array_equal(stream[rows], X[rows])
    np.testing.assert_array_equal(stream[:], X)
    batches = taken(stream, stream.in_order())
    np.testing.assert_array_equal(batches, X)


@pytest.mark.skipif(find_spec("hdf5plugin") is None, reason="hdf5plugin is not installed")
def test_blosc_and_zstandard_are_read_too(store):
    import hdf5plugin

    for filter in (hdf5plugin.Blosc(), hdf5plugin.Zstd()):
        stream = stream_of(store(FLOATS, chunks=(64, N), **filter))
        np.testing.assert_array_equal(taken(stream, stream.in_order()), FLOATS)


def taken(stream: Stream, order: Pass, first: int = 0, members: int = 1) -> np.ndarray:
    """All rows of a pass as they are read ahead."""
    ahead, found, m = Ahead(stream, 16, members), [], order.order.shape[1]
    ahead.start(order, first)
    while first < m:
        part, rows = ahead.next()
        found.append(ahead._ring[:, part, :rows].copy())
        first += rows
    ahead.stop()
    return np.concatenate(found, axis=1).reshape(-1, stream.shape[1])


@pytest.mark.parametrize("rows", [None, np.flatnonzero(DRAW.random(M) < 0.3)], ids=["all", "some"])
@pytest.mark.parametrize("members", [1, 3])
def test_windows_give_each_row_once_an_epoch_and_what_is_read_is_in_that_order(rows, members, store):
    stream = stream_of(store(BYTES, **GZIP))
    order = stream.shuffled(rows, generators(members))
    expected = np.arange(M) if rows is None else rows
    assert len(order.windows) > 3 and len(order.windows[0]) > 2
    for own in order.order:
        np.testing.assert_array_equal(np.sort(own), expected)
    np.testing.assert_array_equal(taken(stream, order, members=members), BYTES[order.order.reshape(-1)])
    again = stream.shuffled(rows, generators(members))
    np.testing.assert_array_equal(order.order, again.order)
    other = stream.shuffled(rows, [np.random.default_rng(i) for i in range(members)])
    assert (order.order != other.order).any()
    if members > 1:
        assert (order.order[0] != order.order[1]).any()
        end = order.ends[0]
        assert set(order.order[0, :end]) == set(order.order[1, :end])


def test_an_order_is_the_seeds_and_the_epochs_alone(store, in_file):
    data = store(BYTES, **GZIP)
    first = trained(data, validation_split=0.1)
    assert trained(data, validation_split=0.1) == first
    assert trained(data, {"seed": 4}, validation_split=0.1) != first


def test_the_last_smaller_batch_members_and_targets_go_along(store, in_file):
    """The labels can be learned from X alone: were rows and labels of two examples, they could not."""
    X = np.zeros((M, N), np.float32)
    X[np.arange(M), Y] = 3
    for layout in ({}, GZIP):
        network = network_of(members=2)
        network.fit(store(X, **layout), Y, epochs=4, batch_size=16, optimizer=dnn.Adam(0.01))
        assert network.evaluate(X, Y)["accuracy"] == 1


def test_rows_that_a_table_reads_in_bands_stay_there(in_file):
    calls = []

    def read(start: int, stop: int) -> np.ndarray:
        calls.append((start, stop))
        return FLOATS[start:stop].astype(np.float64)

    stream = stream_of(Rows((M, N), np.dtype(np.float64), read, band=100))
    np.testing.assert_array_equal(taken(stream, stream.in_order()), FLOATS)
    assert calls[-13:] == [(start, min(start + 100, M)) for start in range(0, M, 100)]


# ---------------------------------------------------------------------------------------- start in the middle


@pytest.mark.parametrize(
    ("layout", "backend"),
    [
        pytest.param({}, "numpy", id="contiguous-numpy"),
        pytest.param(GZIP, "numpy", id="gzip-numpy"),
        pytest.param(GZIP, "standin", id="gzip-standin"),
        pytest.param({}, "standin", id="contiguous-standin", marks=pytest.mark.slow),
    ],
    indirect=["backend"],
)
def test_from_the_middle_on_the_batches_are_the_same(layout, backend, store):
    network = network_of(backend=backend.name)
    examples = prepare(network, store(FLOATS, **layout), Y, fitting=True, memory=30_000)
    settings = FitSettings()
    assert isinstance(examples.X, Stream)
    order = examples.X.shuffled(None, generators())

    def losses(start: int) -> list[float]:
        from dnn.step import EVALUATE, Step

        def bind(examples, size, loading, order, goal):
            return Step(network, examples, size, goal, loading, order=order)

        batches = Batches(network.backend, examples, None, 16, bind, network.dtype, False, EVALUATE)
        batches.reorder(order)
        found = []
        for _ in batches.run(one_by_one=True, start=start):
            found.append(float(network.backend.to_numpy(batches.last.loss)[0]))
        return found

    whole = losses(0)
    assert len(whole) == 76 and settings.epochs
    for start in (1, 16, 33, 75):
        assert losses(start) == whole[start:]


def test_what_is_skipped_is_not_read(monkeypatch, store):
    stream = stream_of(store(BYTES, **GZIP))
    order, read = stream.shuffled(None, generators()), []
    monkeypatch.setattr(Stream, "read_band", lambda self, band, out, check=True: read.append(band))
    taken(stream, order, first=16 * 70)
    window = int(np.searchsorted(order.ends, 16 * 70, side="right"))
    assert sorted(read) == sorted(np.concatenate(order.windows[window:]))


def test_a_fit_that_is_resumed_has_the_windows_that_it_had_whatever_memory_there_is_now(store, in_file, tmp_path):
    data = store(BYTES, **GZIP)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    whole = network_of()
    whole.fit(data, Y, **settings)

    def stop(event: Any) -> None:
        if event.batch == 30 and event.network.epochs == 1:
            raise KeyboardInterrupt

    class Stopping:
        on_batch_end = staticmethod(stop)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        network_of().fit(data, Y, checkpoint=folder, checkpoint_every=20, callbacks=[Stopping()], **settings)
    in_file(20_000)
    resumed = dnn.resume(folder)
    resumed.fit(data, Y, callbacks=[])
    np.testing.assert_array_equal(resumed.parameters.flat, whole.parameters.flat)


# -------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("backend", ["standin", "cupy"], indirect=True)
@pytest.mark.parametrize("layout", [{}, GZIP], ids=["contiguous", "gzip"])
def test_a_device_is_fed_with_the_batches_that_the_host_would_take(layout, backend, store, in_file):
    data = store(BYTES, **layout)
    of_host = trained(data, {"members": 2}, validation_split=0.2)[0]
    of_device = trained(data, {"members": 2, "backend": backend.name}, validation_split=0.2)[0]
    for name, values in of_host.items():
        np.testing.assert_allclose(of_device[name], values, rtol=1e-4)
    if not layout:
        network = {"members": 2, "backend": backend.name}
        assert trained(data, network) == trained(BYTES, network)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("layout", [{}, GZIP], ids=["contiguous", "gzip"])
def test_a_number_that_is_not_finite_is_named(layout, store, in_file):
    X = FLOATS.copy()
    X[700, 5] = np.nan
    with pytest.raises(DataError, match=r"^X: expected finite numbers, got nan in float32 at example 700, feature 5"):
        network_of().fit(store(X, **layout), Y, epochs=1, batch_size=16)


def test_a_damaged_chunk_is_one_line_of_the_fit(store, in_file):
    data = store(BYTES, **GZIP)
    place = data.id.get_chunk_info(9)
    with open(data.file.filename, "r+b") as file:
        file.seek(place.byte_offset + 3)
        file.write(b"\xff" * 50)
    with pytest.raises(DataError, match=r"^X: cannot read its data set: the file is damaged"):
        network_of().fit(data, Y, epochs=1, batch_size=16)


def test_a_file_that_is_closed_meanwhile_is_one_line_of_the_fit(store, in_file):
    data = store(BYTES, **GZIP)

    class Closing:
        def on_batch_end(self, event: Any) -> None:
            if event.batch == 3:
                data.file.close()

    with pytest.raises(DataError, match=r"^X: ") as error:
        network_of().fit(data, Y, epochs=2, batch_size=16, callbacks=[Closing()])
    assert "\n" not in str(error.value)


def test_a_chunk_that_unpacks_to_more_than_it_declares_is_not_unpacked(store, in_file, tmp_path):
    import zlib

    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (128, N), np.uint8, chunks=(64, N), compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(50_000_000)))
        data.id.write_direct_chunk((64, 0), zlib.compress(bytes(64 * N)))
    with h5py.File(path) as file:
        read_band = storage.storage_of("X", file["x"]).read_band
        tracemalloc.start()
        with suppress(DataError):
            read_band(0, 64)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000


def test_an_interrupt_and_an_error_of_a_callback_leave_no_thread(store, in_file):
    for layout in ({}, GZIP):
        for error in (KeyboardInterrupt, ZeroDivisionError):

            class Failing:
                def on_batch_end(self, event: Any, error: type[BaseException] = error) -> None:
                    if event.batch == 5:
                        raise error

            with pytest.raises(error):
                network_of().fit(store(BYTES, **layout), Y, epochs=1, batch_size=16, callbacks=[Failing()])
            assert [t.name for t in threading.enumerate() if t.name.startswith("dnn reads")] == []


# --------------------------------------------------------------------------------------------------- memory


def test_what_fits_is_loaded_and_what_does_not_stays(store):
    data = store(BYTES)
    assert isinstance(prepare(network_of(), data, Y, fitting=True).X, np.ndarray)
    assert isinstance(prepare(network_of(), data, Y, fitting=True, memory=BYTES.nbytes).X, np.ndarray)
    assert isinstance(prepare(network_of(), data, Y, fitting=True, memory=BYTES.nbytes - 1).X, Stream)
    assert isinstance(prepare(network_of(), BYTES, Y, fitting=True, memory=1).X, np.ndarray)


@pytest.mark.parametrize("layout", [{}, GZIP], ids=["contiguous", "gzip"])
def test_a_fit_takes_what_was_estimated_and_never_the_whole(layout, store):
    X = np.tile(FLOATS, (40, 1))
    labels = np.tile(Y, 40)
    data, limit = store(X, **layout), 0.003
    network, settings = network_of(), {"epochs": 1, "batch_size": 64, "memory_limit": limit}
    network_of().fit(data, labels, **settings)  # what is made once
    examples = prepare(network, data, labels, fitting=True, memory=int(limit * GB / 2))
    assert isinstance(examples.X, Stream)
    assert training_bytes(network, examples, np.arange(len(X)), 64, FitSettings(**settings), True) < limit * GB
    tracemalloc.start()
    network.fit(data, labels, **settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit * GB + 3 * 8 * len(X) < X.nbytes


def test_predicting_and_exact_metrics_do_not_load_it_either(store, in_file, monkeypatch):
    monkeypatch.setattr("dnn.inference.ACTIVATION_BYTES", 60_000)
    monkeypatch.setattr("dnn.data.examples.CHUNK", 3000)
    monkeypatch.delattr(Stream, "__getitem__")
    network, X, labels = network_of(), np.tile(FLOATS, (8, 1)), np.tile(Y, 8)
    expected = network.predict_proba(X), network.evaluate(X, labels, metrics=["roc_auc"])
    for layout in ({}, GZIP):
        data = store(X, **layout)
        tracemalloc.start()
        np.testing.assert_allclose(network.predict_proba(data), expected[0], rtol=1e-5)
        assert network.evaluate(data, labels)["loss"] == pytest.approx(expected[1]["loss"])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < X.nbytes
        assert network.evaluate(data, labels, metrics=["roc_auc"]) == pytest.approx(expected[1])


# ------------------------------------------------------------------------------------------- how it is mixed


def test_a_sorted_file_gives_windows_that_are_alike_while_they_are_of_several_bands(store):
    labels = np.sort(Y)
    wide, narrow = (stream_of(store(BYTES, **GZIP), memory=memory) for memory in (47_000, 1))
    (distance, random), (far, _) = (
        streaming.mixing(stream.shuffled(None, generators()), labels) for stream in (wide, narrow)
    )
    assert distance < 0.2 and random < 0.1 and far > 0.5


def test_a_sorted_file_whose_window_is_too_small_is_warned_of_and_the_distance_is_told(store, in_file, caplog, capsys):
    in_file(1)
    order = np.argsort(Y)
    with caplog.at_level(logging.WARNING):
        network_of().fit(store(BYTES[order], **GZIP), Y[order], epochs=1, batch_size=16, verbose=True)
        assert "its file is sorted by labels, or nearly" in caplog.text and "raise memory_limit" in caplog.text
        assert "read in 19 windows of up to 64 examples: their labels are 0." in capsys.readouterr().err
        caplog.clear()
        in_file(30_000)
        network_of().fit(store(BYTES, **GZIP), Y, epochs=1, batch_size=16)
        assert caplog.text == ""


def test_the_distance_of_random_windows_is_what_it_is_expected_to_be():
    labels = DRAW.integers(0, 10, 20_000)
    order = Pass(DRAW.permutation(20_000)[None], [np.arange(1)] * 20, list(range(1000, 20_001, 1000)))
    found = streaming.mixing(order, labels)
    assert found is not None and found[0] == pytest.approx(found[1], rel=0.15)
