"""Examples that stay in their file, because they are more than memory has room for.

A thread reads them ahead of the step, into a ring of two parts: from one the step takes its batches while the other
is filled. Of a contiguous data set the order is the one that data in memory would have, to the bit. A chunked one is
read in bands, the rows that share chunks: as many as memory has room for make a window, and the rows within a window
are shuffled. The bands of a window are spread over the whole file: of w windows, each run of w bands gives one to each,
by chance anew in every epoch. So each row comes once an epoch and is unpacked once, and a file that is sorted, by label
or by time, gives windows that are alike.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any

import numpy as np

from dnn.backends import Backend, get_backend, log_once
from dnn.data.storage import Bands, Contiguous
from dnn.errors import DataError

PART_BYTES = 8_000_000
"""At most of a part of the ring, about: small enough for a large cache, so large that handing it over costs nothing."""
MOST_BATCHES = 64
WINDOW_BYTES = 1_000_000_000
"""Of two windows, where memory has room for more: beyond, a shuffle is none the better for it."""
IN_ORDER_BYTES = 16_000_000
"""Of a window of a pass in the file's order, where a larger one is of no use."""
READERS = 8
"""Threads that read rows where the disk is what is waited for."""

Convert = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], None]
"""(values as stored (n, ...), out (n, n_in), their examples' numbers (n,), whether to check that they are finite):
converts and scales them."""


def room_for_X(backend: Backend, limit: float | None) -> int:
    """Bytes of the host's memory that an X may take which could stay in its file: half of what there is.

    `limit` is in GB, of the memory that the backend works in.
    """
    host = get_backend("numpy")
    if limit is None or backend.name != host.name:
        return host.memory()[0] // 2
    return int(min(limit * 1e9, host.memory()[1])) // 2


@dataclass(frozen=True, eq=False)
class Pass:
    """The order of a pass: rows (members, m). `windows` are the bands that are in memory together, `ends` the place in
    the order where each window ends; None and none where rows can be read anywhere."""

    order: np.ndarray
    windows: Sequence[np.ndarray] | None = None
    ends: Sequence[int] = ()


class Stream:
    """X (m, n_in), of a data set in a file, in the dtype that a step takes; rows are read and converted on use."""

    ndim = 2

    def __init__(
        self,
        source: Contiguous | Bands,
        n_in: int,
        dtype: np.dtype,
        convert: Convert,
        memory: int,
        window: int | None = None,
    ) -> None:
        self.source, self.dtype, self._convert = source, dtype, convert
        self.shape = source.shape[0], n_in
        self.row_bytes = n_in * dtype.itemsize
        self.nbytes = self.shape[0] * self.row_bytes
        self.band = source.band
        """The rows that are read together; None where each can be read alone."""
        self.window = window or 1
        """How many bands are in memory together and shuffled. The order of an epoch depends on it."""
        self.part_bytes = min(PART_BYTES, memory // 8)
        """Of a part of the ring that batches are taken from, about."""
        if self.band is not None and window is None:
            # what is kept of every example, its target and its place in the order, is not for windows
            room = min(WINDOW_BYTES, max(memory // 4, memory - 12 * self.shape[0]))
            self.window = max(1, room // 2 // (self.band * self.row_bytes))
        n_bands = 1 if self.band is None else -(-self.shape[0] // self.band)
        self.window = min(self.window, n_bands)
        self.memory = 0 if self.band is None else 2 * self.window * self.band * self.row_bytes
        self._as_it_is = source.dtype == dtype and source.dtype.isnative

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """These rows, in memory: a slice, or an array of numbers or of truths."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        if self.band is None:
            self.read_rows(rows, out)
            return out
        order = np.argsort(rows, kind="stable")
        ahead = rows[order]
        starts = np.flatnonzero(np.diff(ahead // self.band, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
            band = int(ahead[first]) // self.band
            values = np.empty((self._rows_of(band), self.shape[1]), self.dtype)
            self.read_band(band, values)
            out[order[first:last]] = values[ahead[first:last] - band * self.band]
        return out

    def _rows_of(self, band: int) -> int:
        assert self.band is not None
        return min(self.band, self.shape[0] - band * self.band)

    def read_rows(self, rows: np.ndarray, out: np.ndarray, check: bool = True) -> None:
        """Rows in any order, of a contiguous data set."""
        assert isinstance(self.source, Contiguous)
        values = out
        if not self._as_it_is:
            values = np.empty((len(rows), self.shape[1]), self.source.dtype)
        self.source.read_into(rows, values)
        self._convert(values, out, rows, check)

    def read_band(self, band: int, out: np.ndarray, check: bool = True) -> None:
        assert isinstance(self.source, Bands)
        first = band * self.source.band
        rows = self._rows_of(band)
        values = self.source.read_band(first, first + rows).reshape(rows, self.shape[1])
        self._convert(values, out[:rows], np.arange(first, first + rows), check)

    def sample(self, most: int, rows: np.ndarray | None = None) -> np.ndarray:
        """At most so many rows, of those given or of all, spread evenly over them."""
        m = self.shape[0] if rows is None else len(rows)
        if self.band is not None:  # whole bands: any other row costs as much
            bands = np.unique(np.linspace(0, -(-self.shape[0] // self.band) - 1, max(1, most // self.band)).astype(int))
            found = np.concatenate([np.arange(b * self.band, b * self.band + self._rows_of(b)) for b in bands])[:most]
            if rows is not None:
                found = found[np.isin(found, rows)]
            if len(found):
                return self[found]
        places = np.unique(np.linspace(0, m - 1, min(most, m)).astype(np.int64))
        return self[places if rows is None else rows[places]]

    # --------------------------------------------------------------------------------- the order of a pass

    def in_order(self, rows: np.ndarray | None = None) -> Pass:
        """All rows, or these, which ascend."""
        order = self._all(rows)
        if self.band is None:
            return Pass(order[None])
        edges = self._edges(order)
        bands = np.flatnonzero(np.diff(edges))
        at_once = max(1, min(self.window, IN_ORDER_BYTES // (self.band * self.row_bytes)))
        windows = [bands[i : i + at_once] for i in range(0, len(bands), at_once)]
        return Pass(order[None], windows, [int(edges[window[-1] + 1]) for window in windows])

    def shuffled(self, rows: np.ndarray | None, generators: Sequence[np.random.Generator]) -> Pass:
        """All rows, or these, which ascend, in a random order of each member of a network."""
        every = self._all(rows)
        order = np.empty((len(generators), len(every)), every.dtype)
        if self.band is None:
            for own, generator in zip(order, generators, strict=True):
                own[...] = every
                generator.shuffle(own)  # the bits of `permutation`, without its copies
            return Pass(order)
        edges = self._edges(every)
        bands = np.flatnonzero(np.diff(edges))
        windows = self._dealt(bands, generators[0])
        ends, start = [], 0
        for window in windows:
            of_window = np.concatenate([every[edges[band] : edges[band + 1]] for band in window])
            end = start + len(of_window)
            for own, generator in zip(order, generators, strict=True):
                own[start:end] = of_window
                generator.shuffle(own[start:end])
            ends.append(end)
            start = end
        return Pass(order, windows, ends)

    def _dealt(self, bands: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """The bands of each window: one of every run of as many bands as there are windows."""
        n = -(-len(bands) // self.window)
        given_to = generator.random((-(-len(bands) // n), n)).argsort(axis=1).reshape(-1)[: len(bands)]
        by_window = np.argsort(given_to, kind="stable")
        windows = np.split(bands[by_window], np.cumsum(np.bincount(given_to, minlength=n))[:-1])
        for window in windows:
            generator.shuffle(window)
        return windows

    def _all(self, rows: np.ndarray | None) -> np.ndarray:
        small = np.int32 if self.shape[0] < 1 << 31 else np.int64
        return np.arange(self.shape[0], dtype=small) if rows is None else rows.astype(small)

    def _edges(self, order: np.ndarray) -> np.ndarray:
        """Where each band begins in an order that ascends, and where the last ends."""
        assert self.band is not None
        n_bands = -(-self.shape[0] // self.band)
        starts = np.minimum(np.arange(n_bands + 1, dtype=np.int64) * self.band, self.shape[0])
        return np.searchsorted(order, starts.astype(order.dtype))


class Ahead:
    """Passes over a stream: a thread fills one part of a ring while batches are taken from the other.

    `X` (members · 2 · size, n_in) is the ring: of each member two parts of `size` rows, whole batches. `sides` are
    arrays with a row for each example, which go along: `of_sides` are their rings. Not for two threads at once.
    """

    def __init__(self, stream: Stream, batch_size: int, members: int = 1, sides: Sequence[np.ndarray] = ()) -> None:
        self.stream, self.batch_size, self.members = stream, batch_size, members
        self.size = part_size(stream, batch_size, members)
        shape = members, 2, self.size
        self.X = _empty((members * 2 * self.size, stream.shape[1]), stream.dtype)
        self._ring = self.X.reshape(*shape, stream.shape[1])
        self._sides = list(sides)
        self.of_sides = [_empty((members * 2 * self.size, side.shape[1]), side.dtype) for side in sides]
        self._side_rings = [ring.reshape(*shape, ring.shape[1]) for ring in self.of_sides]
        self._thread: threading.Thread | None = None
        self._checked = False
        """Whether a pass has seen all its numbers to be finite: the next need not look."""

    # ------------------------------------------------------------------------------- whoever takes batches

    def start(self, order: Pass, first: int) -> None:
        """Begin a pass, at this place of its order."""
        self.stop()
        self._order, self._held = order, False
        self._free, self._full = threading.Semaphore(2), Queue[Any]()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first,), name="dnn reads ahead", daemon=True)
        self._thread.start()

    def next(self) -> tuple[int, int]:
        """(which part of the ring, how many of its rows) is next; the part before is free to be filled again."""
        if self._held:
            self._free.release()
        self._held = True
        found = self._full.get()
        if isinstance(found, BaseException):
            self.stop()
            raise found
        part: tuple[int, int] = found
        return part

    def stop(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self._stopping.set()
            self._free.release()
            self._thread.join()
            self._thread = None

    # ----------------------------------------------------------------------------------------- the thread

    def _work(self, first: int) -> None:
        try:
            with _Windows(self.stream, self._order, first, not self._checked) as windows:
                m, part = self._order.order.shape[1], 0
                for start in range(first, m, self.size):
                    self._free.acquire()
                    if self._stopping.is_set():
                        return
                    last = min(start + self.size, m)
                    self._fill(windows, part, start, last)
                    self._full.put((part, last - start))
                    part = 1 - part
                self._checked = self._checked or not first
        except BaseException as cause:
            self._full.put(cause if isinstance(cause, (DataError, MemoryError)) else self._unread(cause))

    def _unread(self, cause: BaseException) -> DataError:
        error = DataError(f"{self.stream.source.name}: cannot be read: {' '.join(str(cause).split())}")
        error.__cause__ = cause
        return error

    def _fill(self, windows: _Windows, part: int, start: int, last: int) -> None:
        for piece, stop in windows.cut(start, last):
            at = slice(piece - start, stop - start)
            for member, order in enumerate(self._order.order):
                rows = order[piece:stop]
                windows.take(rows, self._ring[member, part, at])
                for side, ring in zip(self._sides, self._side_rings, strict=True):
                    np.take(side, rows, axis=0, out=ring[member, part, at], mode="clip")


class InTurn:
    """The rows of a pass as a feeder takes them, batch by batch: X on the host, of which `take` gives what is next."""

    def __init__(self, stream: Stream, batch_size: int, members: int = 1) -> None:
        self.stream, self._ahead = stream, Ahead(stream, batch_size, members)
        self.shape, self.dtype = stream.shape, stream.dtype
        self._left = 0

    def start(self, order: Pass, first: int) -> None:
        self._left = 0
        self._ahead.start(order, first)

    def stop(self) -> None:
        self._ahead.stop()

    def take(self, rows: np.ndarray, axis: int = 0, out: np.ndarray | None = None, mode: str = "raise") -> np.ndarray:
        """The next rows of each member: those asked for, since they are asked for in their order."""
        ahead = self._ahead
        if not self._left:
            self._part, self._left = ahead.next()
            self._at = 0
        n = len(rows) // ahead.members
        found = ahead._ring[:, self._part, self._at : self._at + n]
        self._at, self._left = self._at + n, self._left - n
        if out is None:
            return found.reshape(len(rows), -1).copy()
        out.reshape(found.shape)[...] = found
        return out


class _Windows:
    """Where rows are read from: the file itself, or the window that is in memory while the next is read."""

    def __init__(self, stream: Stream, order: Pass, first: int, check: bool) -> None:
        self._stream, self._order, self._check = stream, order, check
        self._pool: ThreadPoolExecutor | None = None
        self._waits = False
        if order.windows is None:
            return
        self._workers = min(stream.source.workers, max(1, (os.cpu_count() or 1)))
        self._pool = ThreadPoolExecutor(self._workers, "dnn reads a window")
        assert stream.band is not None
        largest = max(map(len, order.windows), default=0)
        self._buffers = [_empty((largest * stream.band, stream.shape[1]), stream.dtype) for _ in range(2)]
        self._slot = np.zeros(-(-stream.shape[0] // stream.band), np.int64)
        self._window = int(np.searchsorted(order.ends, first, side="right"))
        self._loading: list[Future[None]] = []
        self._load(self._window)
        self._ready = False

    def __enter__(self) -> _Windows:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def cut(self, start: int, last: int) -> Iterator[tuple[int, int]]:
        """The pieces of this part of the order, each of one window, which is in memory meanwhile."""
        if self._order.windows is None:
            yield start, last
            return
        while start < last:
            if not self._ready:
                for future in self._loading:
                    future.result()
                self._ready = True
                self._load(self._window + 1)
            end = self._order.ends[self._window]
            yield start, min(end, last)
            if end <= last:
                self._window, self._ready = self._window + 1, False
            start = min(end, last)

    def _load(self, window: int) -> None:
        assert self._order.windows is not None and self._pool is not None
        self._loading = []
        if window >= len(self._order.windows):
            return
        bands, buffer, band_rows = self._order.windows[window], self._buffers[window % 2], self._stream.band
        assert band_rows is not None
        self._slot[bands] = np.arange(len(bands))

        def load(first: int) -> None:
            for slot in range(first, len(bands), self._workers):
                self._stream.read_band(int(bands[slot]), buffer[slot * band_rows : (slot + 1) * band_rows], self._check)

        self._loading = [self._pool.submit(load, first) for first in range(self._workers)]

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        stream = self._stream
        if self._order.windows is None:
            self._read(rows, out)
            return
        band = stream.band
        numbers = rows // band
        places = self._slot[numbers] * band + (rows - numbers * band)
        np.take(self._buffers[self._window % 2], places, axis=0, out=out, mode="clip")

    def _read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """From the file: by one thread while the system has it in memory, by several where the disk is waited for."""
        stream = self._stream
        if not self._waits or len(rows) < 2 * READERS:
            began, worked = time.perf_counter(), time.thread_time()
            stream.read_rows(rows, out, self._check)
            self._waits = time.perf_counter() - began > 4 * (time.thread_time() - worked) + 0.01
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READERS, "dnn reads rows")
        began = time.perf_counter()
        size = -(-len(rows) // READERS)
        parts = [slice(first, first + size) for first in range(0, len(rows), size)]
        for future in [self._pool.submit(stream.read_rows, rows[part], out[part], self._check) for part in parts]:
            future.result()
        self._waits = out.nbytes / (time.perf_counter() - began) < 1e9


def part_size(stream: Stream, batch_size: int, members: int) -> int:
    """Of each member, the rows of a part of the ring: whole batches."""
    return batch_size * max(1, min(MOST_BATCHES, stream.part_bytes // (batch_size * members * stream.row_bytes)))


def bytes_ahead(stream: Stream, batch_size: int, members: int) -> int:
    """What reading ahead takes of the host's memory: the windows and the ring."""
    return stream.memory + 2 * members * part_size(stream, batch_size, members) * stream.row_bytes


def _empty(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    made: np.ndarray = get_backend("numpy").empty(shape, dtype)
    return made


# ------------------------------------------------------------------------------------ how well it is shuffled


def mixing(order: Pass, classes: np.ndarray) -> tuple[float, float] | None:
    """How far the labels of a window are from those of all, and how far they would be if its rows were random.

    The mean over windows of the total variation distance, 0 to 1; None without windows. `classes` (all rows,) int64.
    """
    if order.windows is None or not len(order.ends):
        return None
    n = int(classes.max(initial=0)) + 1
    counts, start = [], 0
    for end in order.ends:
        counts.append(np.bincount(classes[order.order[0, start:end]], minlength=n))
        start = end
    table = np.array(counts, np.float64)
    sizes, m = table.sum(axis=1), table.sum()
    share = table.sum(axis=0) / m
    distance = 0.5 * np.abs(table / sizes[:, None] - share).sum(axis=1)
    # of a normal variable with this deviation the mean magnitude is sqrt(2/π) times it
    left = (m - sizes) / max(m - 1, 1)
    expected = 0.5 * np.sqrt(2 / np.pi * np.outer(left / sizes, share * (1 - share))).sum(axis=1)
    return float((distance * sizes).sum() / m), float((expected * sizes).sum() / m)


MIXED = 0.1
"""A distance between windows and the whole that does no harm: that of 200 examples of 10 classes, well shuffled."""


def mixing_in_words(stream: Stream, order: Pass, classes: np.ndarray) -> str | None:
    """What the windows of an epoch are like, in words; warns where they differ much, as of a file sorted by labels."""
    found = mixing(order, classes)
    if found is None:
        return None
    distance, expected = found
    assert order.windows is not None and stream.band is not None
    words = (
        f"read in {len(order.windows)} windows of up to {stream.window * stream.band} examples: their labels are "
        f"{distance:.3f} from those of all (0: alike, 1: others), random windows' {expected:.3f}"
    )
    if distance > MIXED + 2 * expected:
        log_once(
            f"{stream.source.name}: its file is sorted by labels, or nearly, and is shuffled only within windows of "
            f"{stream.window * stream.band} examples, whose labels differ by {distance:.2f} from those of all (random: "
            f"{expected:.2f}), which makes training worse: raise memory_limit, or write the file shuffled (dnn convert)"
        )
    return words
