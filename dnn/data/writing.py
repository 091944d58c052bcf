"""Data files written row by row, in the assignment's layout, by a process that never holds more than a few blocks.

A contiguous data set, the default, is the fastest to train from: its rows are mapped. The file has its name only once
it is complete on disk.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dnn.data.sources import read
from dnn.errors import OutputError
from dnn.files import whole_file
from dnn.hdf5 import place_of

BLOCK = 8 << 20
"""Bytes of rows that are read and written at once."""
WINDOW = 64 << 20
"""Bytes of rows that are held to put them in another order; more than that pass through a temporary file."""
CHUNK = 1 << 20
"""Bytes of a compressed chunk: HDF5's default cache holds at least one of them."""
COMPRESSIONS = ("none", "gzip", "lzf")


class NewFile:
    """An HDF5 file that is being written: `hdf5`, h5py's, which never fails; `check` raises what has gone wrong.

    HDF5's own driver, on a full disk, fails again when it closes the file, and crashes the process at its end. This one
    writes through Python, keeps the first error and lets HDF5 go on in the belief that all is well.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        import h5py

        self.folder = os.path.dirname(path) or "."
        self._output = _Output(file)
        # on boundaries of pages, so that what is contiguous can be mapped
        self.hdf5 = h5py.File(self._output, "w", alignment_threshold=4096, alignment_interval=4096)

    def check(self) -> None:
        if self._output.failure is not None:
            raise self._output.failure

    def close(self) -> None:
        self.hdf5.close()
        self.check()


@contextmanager
def new_hdf5(path: str, force: bool = False) -> Iterator[NewFile]:
    """An HDF5 file to write, which has the name `path` once the block ends. OutputError if it cannot be written."""
    with whole_file(path, force) as file:
        new = NewFile(path, file)
        try:
            yield new
        finally:
            new.hdf5.close()
        new.check()


class Written(NamedTuple):
    """A part of a file to write, train or test: the `rows` of a source, in that order; None: all."""

    name: str
    X: Any
    Y: Any = None
    rows: np.ndarray | None = None


def write_parts(
    new: NewFile,
    parts: Sequence[Written],
    compression: str = "none",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the parts, reading every source once, from its first row to its last.

    `progress` is called after each block with the rows read and how many there are.
    """
    sources = {id(part.X): part.X for part in parts}.values()
    done, total = 0, sum(X.shape[0] for X in sources)
    with ExitStack() as opened:
        for X in sources:
            sinks: list[tuple[Any, _Whole]] = []
            for name, _, Y, rows in (part for part in parts if part.X is X):
                sinks.append((X, _sink(new, f"{name}_set_x", X, rows, compression)))
                if Y is not None:
                    sinks.append((Y, _sink(new, f"{name}_set_y", Y, rows, "none")))
            for _, sink in sinks:
                opened.callback(sink.close)
            for start, stop in _blocks(X):
                blocks = {id(s): _read(s, start, stop) for s in {id(s): s for s, _ in sinks}.values()}
                for source, sink in sinks:
                    sink.take(start, blocks[id(source)])
                new.check()
                done += stop - start
                progress(done, total)
            for _, sink in sinks:
                sink.finish()
                new.check()


def _blocks(X: Any) -> Iterator[tuple[int, int]]:
    rows = max(1, BLOCK // max(1, _row_bytes(X)))
    band = getattr(X, "band", None) or (getattr(X, "chunks", None) or (1,))[0]
    rows = max(band, rows - rows % band)  # whole chunks: each is decompressed once
    for start in range(0, X.shape[0], rows):
        yield start, min(start + rows, X.shape[0])


def _read(X: Any, start: int, stop: int) -> np.ndarray:
    return read(place_of(X) if hasattr(X, "file") else "the source", X, slice(start, stop))


def _row_bytes(X: Any) -> int:
    return math.prod(X.shape[1:]) * X.dtype.itemsize


def _sink(new: NewFile, name: str, source: Any, rows: np.ndarray | None, compression: str) -> _Whole:
    m = source.shape[0] if rows is None else len(rows)
    shape, dtype = (m, *source.shape[1:]), source.dtype.newbyteorder("=")
    settings: dict[str, Any] = {}
    if compression != "none":
        chunk = min(m, max(1, CHUNK // max(1, _row_bytes(source))))
        # bytes of equal weight side by side compress better
        settings = {"compression": compression, "chunks": (chunk, *shape[1:]), "shuffle": dtype.itemsize > 1}
    data = new.hdf5.create_dataset(name, shape, dtype, **settings)
    if rows is None:
        return _Whole(data)
    if np.all(rows[1:] > rows[:-1]):
        return _InOrder(data, rows)
    return _Shuffled(data, rows, new.folder)


class _Whole:
    """All rows of a source."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def take(self, start: int, block: np.ndarray) -> None:
        """A block of the source, whose first row is number `start` there."""
        self._data[start : start + len(block)] = block

    def finish(self) -> None:
        """All blocks are there."""

    def close(self) -> None:
        pass


class _InOrder(_Whole):
    """Some rows, in the order of their source."""

    def __init__(self, data: Any, rows: np.ndarray) -> None:
        super().__init__(data)
        self._rows = rows

    def take(self, start: int, block: np.ndarray) -> None:
        first, last = np.searchsorted(self._rows, (start, start + len(block)))
        if first < last:
            self._data[first:last] = block[self._rows[first:last] - start]


class _Shuffled(_Whole):
    """Rows in any order: each is put with those that will be near it, and then these are put in order, group by group.

    Both times the file is read and written in large pieces. The temporary file has no name: it is gone however the
    process ends.
    """

    def __init__(self, data: Any, rows: np.ndarray, folder: str) -> None:
        import tempfile

        super().__init__(data)
        self._row = _row_bytes(data)
        self._size = max(1, WINDOW // max(1, self._row))
        self._rows = rows
        self._places = np.argsort(rows, kind="stable")  # in the new order, by where they are in the source
        self._sources = rows[self._places]
        self._free = np.arange(0, len(rows), self._size)
        self._folder = folder
        in_memory = len(rows) <= self._size
        with self._reporting():
            self._file: Any = io.BytesIO() if in_memory else tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def take(self, start: int, block: np.ndarray) -> None:
        first, last = np.searchsorted(self._sources, (start, start + len(block)))
        groups = self._places[first:last] // self._size
        by_group = np.argsort(groups, kind="stable")
        rows = np.ascontiguousarray(block[self._sources[first:last][by_group] - start], self._data.dtype)
        counts = np.bincount(groups, minlength=len(self._free))
        ends = np.cumsum(counts)
        with self._reporting():
            for group in np.flatnonzero(counts).tolist():
                self._file.seek(int(self._free[group]) * self._row)
                _write_all(self._file, rows[ends[group] - counts[group] : ends[group]].data.cast("B"))
        self._free += counts

    def finish(self) -> None:
        for first in range(0, len(self._rows), self._size):
            last = min(first + self._size, len(self._rows))
            content = np.empty((last - first, *self._data.shape[1:]), self._data.dtype)
            with self._reporting():
                self._file.seek(first * self._row)
                _read_all(self._file, content.reshape(-1).data.cast("B"))
            # they have come in the order of the source
            arrived = np.argsort(np.argsort(self._rows[first:last], kind="stable"), kind="stable")
            self._data[first:last] = content[arrived]

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            raise OutputError(f"{self._folder}: a temporary file cannot be written: {cause.strerror}") from None


def _write_all(file: Any, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


def _read_all(file: Any, into: memoryview) -> None:
    while into:
        n = file.readinto(into)
        if not n:
            raise OSError(errno.EIO, "it is shorter than what was written")
        into = into[n:]


class _Output(io.RawIOBase):
    """What HDF5 writes to. From the first failure on, it takes everything and keeps nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: BaseException | None = None

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if self.failure is None:
            try:
                _write_all(self._file, view)
            except BaseException as failure:  # Ctrl-C too must not pass through HDF5
                self.failure = failure
        return len(view)

    def readinto(self, content: Any) -> int:
        return self._file.readinto(content)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        if self.failure is None:
            try:
                return self._file.truncate(size)
            except OSError as failure:
                self.failure = failure
        return size or 0
