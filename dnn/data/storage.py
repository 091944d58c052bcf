"""How a data set of HDF5 lies in its file, and the fastest way to its rows.

Contiguous  one piece: rows are read from the file at any place, by the operating system, without HDF5
Bands       runs of rows, read whole: of a chunked data set the rows that share chunks
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from dnn.backends.codegen.reading import ReadRows, read_rows
from dnn.data.sources import Rows, read
from dnn.errors import DataError
from dnn.hdf5 import place_of

BAND_BYTES = 1 << 18
"""Smaller chunks are read several at a time: what a call costs is then little beside what it reads."""
_GZIP, _SHUFFLE = 1, 2


class Contiguous:
    """Rows that lie one behind the other in a file, uncompressed."""

    band = None
    workers = 1

    def __init__(self, name: str, data: Any, file: int, start: int, read_them: ReadRows) -> None:
        self.name, self.shape, self.dtype = name, data.shape, data.dtype
        self._place, self._file, self._start, self._read = place_of(data), os.dup(file), start, read_them
        weakref.finalize(self, os.close, self._file)

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out_i = row rows_i of the file; out (n, ...) C-contiguous, of the file's dtype."""
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            start = self._start + int(rows[0]) * (out.nbytes // len(out))
            view, done = out.reshape(-1).view(np.uint8).data, 0
            while done < out.nbytes:
                got = os.preadv(self._file, (view[done:],), start + done)
                if not got:
                    raise self._cut_off()
                done += got
            return
        # in the file's order: what the system has to look up for one is near what it has for the next
        places = np.argsort(rows)
        if not self._read(self._file, out, self._start, rows[places].astype(np.int64), places):
            raise self._cut_off()

    def _cut_off(self) -> DataError:
        return DataError(f"{self._place}: cannot be read to its end: the file is damaged, or it was cut off meanwhile")


class Bands:
    """Rows that are read in bands of `band`: read(start, stop) gives those from a multiple of it on."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        band: int,
        read_band: Callable[[int, int], np.ndarray],
        workers: int = 1,
    ) -> None:
        self.name, self.shape, self.dtype, self.band = name, shape, dtype, band
        self.read_band, self.workers = read_band, workers


def storage_of(name: str, X: Any) -> Contiguous | Bands | None:
    """The way to the rows of a data set of HDF5, or of Rows that are read from a file; None of anything in memory."""
    if isinstance(X, Rows):
        if X.band is None or X.values is not None:
            return None
        return Bands(name, X.shape, X.dtype, X.band, lambda start, stop: read(name, X, slice(start, stop)))
    if not type(X).__module__.startswith("h5py") or len(X.shape) < 2:
        return None
    row = max(1, math.prod(X.shape[1:]) * X.dtype.itemsize)
    data = getattr(X, "_dset", X)  # of what Dataset.astype returns
    chunk = data.chunks[0] if data.chunks else max(1, BAND_BYTES // row)
    band = chunk * max(1, BAND_BYTES // (chunk * row))

    def plainly(start: int, stop: int) -> np.ndarray:
        return read(name, X, slice(start, stop))

    if data is X and not data.chunks and (found := _contiguous(name, data)) is not None:
        return found
    if data is X and data.chunks and (filters := _filters(data)) is not None:
        workers = min(4, os.cpu_count() or 1)
        return Bands(name, X.shape, X.dtype, band, _unpacking(data, filters, plainly), workers)
    return Bands(name, X.shape, X.dtype, band, plainly)  # HDF5 lets one thread in at a time


def _stored_as_numpy_has_it(data: Any) -> bool:
    import h5py

    return data.id.get_type() == h5py.h5t.py_create(data.dtype, logical=True)


def _contiguous(name: str, data: Any) -> Contiguous | None:
    start, read_them = data.id.get_offset(), read_rows()
    if start is None or read_them is None or data.file.driver != "sec2" or not _stored_as_numpy_has_it(data):
        return None
    file = data.file.id.get_vfd_handle()
    if start + data.size * data.dtype.itemsize > os.fstat(file).st_size:
        raise DataError(f"{place_of(data)}: the file ends before its data does: copy or download it again")
    found = Contiguous(name, data, file, start, read_them)
    # HDF5 itself has the last word on where the rows are
    for row in {0, data.shape[0] // 2, data.shape[0] - 1}:
        values = np.empty((1, *data.shape[1:]), data.dtype)
        found.read_into(np.array([row]), values)
        if values.tobytes() != read(name, data, slice(row, row + 1)).tobytes():
            return None
    return found


def _filters(data: Any) -> list[int] | None:
    """The filters that chunks went through, where these are ours to undo."""
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    numbers = [number for number, *_ in filters]
    if numbers not in ([], [_GZIP], [_SHUFFLE, _GZIP]) or not _stored_as_numpy_has_it(data):
        return None
    return numbers


def _unpacking(
    data: Any, filters: list[int], plainly: Callable[[int, int], np.ndarray]
) -> Callable[[int, int], np.ndarray]:
    """Reads bands chunk by chunk: HDF5 hands out what is stored, and is not waited for while it is unpacked.

    What is out of the ordinary is left to HDF5: a chunk that was never written, or not filtered, or that is damaged.
    """
    inflating = _zlib()
    shape, chunks, dtype = data.shape, data.chunks, data.dtype
    nbytes = math.prod(chunks) * dtype.itemsize
    across = list(itertools.product(*(range(0, n, size) for n, size in zip(shape[1:], chunks[1:], strict=True))))

    def unpacked(place: tuple[int, ...]) -> np.ndarray:
        mask, raw = data.id.read_direct_chunk(place)
        if mask:
            raise ValueError("not filtered")
        if _GZIP in filters:
            inflater = inflating.decompressobj()
            raw = inflater.decompress(raw, nbytes + 1)  # at most: it may be a bomb
            if not inflater.eof:
                raise ValueError("cut off, or too much")
        if len(raw) != nbytes:
            raise ValueError("a chunk of another size")
        if _SHUFFLE in filters and dtype.itemsize > 1:
            raw = _unshuffled(raw, dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(chunks)

    def read_band(start: int, stop: int) -> np.ndarray:
        with suppress(ValueError, OSError, RuntimeError, inflating.error):
            if len(across) == 1 and stop - start <= chunks[0] and chunks[1:] == shape[1:]:
                return unpacked((start, *across[0]))[: stop - start]
            out = np.empty((stop - start, *shape[1:]), dtype)
            for first in range(start, stop, chunks[0]):
                for place in across:
                    part = out[(slice(first - start, first - start + chunks[0]), *map(_from, place, chunks[1:]))]
                    part[...] = unpacked((first, *place))[tuple(slice(n) for n in part.shape)]
            return out
        return plainly(start, stop)

    return read_band


def _zlib() -> Any:
    """What inflates: several times as fast where the extra compression is installed."""
    try:
        return import_module("isal.isal_zlib")
    except ImportError:
        return import_module("zlib")


def _unshuffled(raw: bytes, itemsize: int) -> np.ndarray:
    """Items whose first bytes came first, then their second ones, and so on."""
    of_bytes = np.frombuffer(raw, np.uint8).reshape(itemsize, -1)
    if itemsize not in (2, 4, 8):
        return np.ascontiguousarray(of_bytes.T)
    items = of_bytes[-1].astype(f"<u{itemsize}")
    for each in of_bytes[-2::-1]:  # whole items at a time: five times as fast as a transpose
        items <<= 8
        items |= each
    return items


def _from(start: int, size: int) -> slice:
    return slice(start, start + size)
