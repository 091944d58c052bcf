"""HDF5 files in the assignment's layout.

    train_set_x (m, ...)   train_set_y (m,)     test_set_x   test_set_y     list_classes (K,) names

Train and test may be in one file or in two, and the data sets may have other names.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from os import PathLike, fsdecode
from os.path import expanduser
from types import TracebackType
from typing import Any

from dnn.backends import BackendUnavailableError, log_once
from dnn.errors import DataError, DnnError

_LFS = b"version https://git-lfs"
LARGEST_NAMES = 100_000_000
"""Most bytes that list_classes may take: a file of 2 KB can declare far more than names ever need."""

FILTERS = {
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
"""Filters by their registered numbers: most files are written without the names."""


class Part:
    """One part of a file: `X` (m, ...) and `Y` (m,) or (m, K), HDF5 data sets that are read on use.

    A part may lack labels, for prediction: then accessing `Y` raises a DataError that lists the file's data sets.
    """

    def __init__(self, X: Any, Y: Any, no_labels: str) -> None:
        self.X = X
        self._Y = Y
        self._no_labels = no_labels

    @property
    def Y(self) -> Any:
        if self._Y is None:
            raise DataError(self._no_labels)
        return self._Y

    def __repr__(self) -> str:
        labels = "no labels" if self._Y is None else f"Y {self._Y.shape} {self._Y.dtype}"
        return f"X {self.X.shape} {self.X.dtype}, {labels}"


class Dataset:
    """An open data file: `train` and `test` (None if absent) and `classes` (names, or None).

    A context manager; the parts cannot be read after `close`.
    """

    def __init__(self, path: str, file: Any, train: Part | None, test: Part | None, classes: list[str] | None) -> None:
        self.path = path
        self.train = train
        self.test = test
        self.classes = classes
        self._file = file

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<data set {self.path}: train {self.train}; test {self.test}>"


def open_dataset(path: str | bytes | PathLike[str], x: str | None = None, y: str | None = None) -> Dataset:
    """Open a data file lazily: examples and labels are read on use.

    Without `x` and `y`, the file has the assignment's layout, with `train`, `test` or both. With `x` and `y`, those two
    data sets are `train`, and there is no `test`; with `x` alone, `train` has no labels. DataError says what is wrong
    with the file.
    """
    if x is None and y is not None:
        raise ValueError("y= names the labels of the examples that x= names: give x= too")
    path = expanduser(fsdecode(path))
    file = open_hdf5(path, DataError)
    train: Part | None
    test: Part | None
    try:
        with reporting_damage(path, DataError):
            if x is not None:
                train, test = _part(path, file, x, y), None
            else:
                train, test = (
                    _part(path, file, f"{split}_set_x", f"{split}_set_y") if f"{split}_set_x" in file else None
                    for split in ("train", "test")
                )
                if train is None and test is None:
                    raise DataError(
                        f"{path}: no data set train_set_x or test_set_x: the file has {_names(file)}; "
                        "name the examples with x=, their labels with y="
                    )
            classes = _class_names(path, file)
        return Dataset(path, file, train, test, classes)
    except BaseException:
        file.close()
        raise


def names_with(Y: Any) -> list[str] | None:
    """The names of the classes in the file that these labels are a data set of, if they are and it has any."""
    import sys

    Y = getattr(Y, "_dset", Y)  # of what Dataset.astype returns
    # only h5py makes such a Y; importing it takes a tenth of a second
    if "h5py" not in sys.modules or not isinstance(Y, sys.modules["h5py"].Dataset):
        return None
    path = str(Y.file.filename)
    with reporting_damage(path, DataError):
        return _class_names(path, Y.file)


@contextmanager
def reporting_damage(path: str, error: type[Exception]) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file, from KeyError to OSError, into a one-line `error`."""
    try:
        yield
    except (DnnError, BackendUnavailableError):
        raise
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as cause:
        if _is_device_error(cause):
            raise error(f"{path}: cannot be read: {os.strerror(errno.EIO)}") from None
        raise error(f"{path}: a damaged HDF5 file: {' '.join(str(cause).split())}") from cause


def _is_device_error(cause: BaseException) -> bool:
    return isinstance(cause, OSError) and cause.errno == errno.EIO


def read_failure(data: Any, cause: Exception) -> str:
    """Why reading a data set, of HDF5 or of another library, has failed."""
    missing = missing_filter(data)
    if missing is not None:
        return missing
    message = " ".join(str(cause).split())
    if not type(data).__module__.startswith("h5py"):
        return f"{type(cause).__name__}: {message}"
    return os.strerror(errno.EIO) if _is_device_error(cause) else f"the file is damaged ({message})"


def missing_filter(data: Any) -> str | None:
    """What to do about a filter of this data set that HDF5 lacks here; None if there is none."""
    if not (type(data).__module__.startswith("h5py") and hasattr(data, "id")):
        return None
    import h5py

    filters = data.id.get_create_plist()
    for i in range(filters.get_nfilters()):
        number, _, _, name = filters.get_filter(i)
        with suppress(ImportError):  # importing it is what registers its filters
            if not h5py.h5z.filter_avail(number):
                import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(number):
            name = FILTERS.get(number) or name.decode("utf-8", "replace") or "unknown"
            fix = "pip install hdf5plugin" if number in FILTERS else "install its plugin"
            return (
                f"it is compressed with the filter {name} ({number}), which is not installed: {fix}, or store the "
                "data set with gzip"
            )
    return None


def open_hdf5(path: str, error: type[Exception]) -> Any:
    """The file, opened for reading; a one-line `error` if it is not a readable HDF5 file."""
    import h5py  # a tenth of a second, paid only when a file is opened

    read_head(path, error)
    try:
        return h5py.File(path, "r")
    except OSError as cause:
        if "truncated" in str(cause):
            raise error(f"{path}: the HDF5 file is truncated: copy or download it again") from None
        if isinstance(cause, BlockingIOError):
            raise error(
                f"{path}: cannot be read while another program writes it: wait, or close that program"
            ) from None
        if "already open for write" in str(cause):
            raise error(
                f"{path}: cannot be read while another program writes it (or one that did has crashed): close that "
                f"program, or clear the mark it left with h5clear -s {path}"
            ) from None
        if "unable to lock file" in str(cause):
            raise error(
                f"{path}: its file system cannot lock it: set HDF5_USE_FILE_LOCKING=FALSE, or copy the file"
            ) from None
        if "n't match" in str(cause):  # HDF5 opens a file once a process
            raise error(
                f"{path}: is open in this process with other settings (locking= or the like): close it there first, "
                "or open it there as h5py.File(path) does"
            ) from None
        if _is_device_error(cause):
            raise error(f"{path}: cannot be read: {os.strerror(errno.EIO)}") from None
        if not h5py.is_hdf5(path):
            raise error(f"{path}: not an HDF5 file") from None
        if "version number" in str(cause):
            raise error(
                f"{path}: damaged, or of a version that HDF5 {h5py.version.hdf5_version} cannot read: update h5py, or "
                f"write it with an older libver ({cause})"
            ) from None
        raise error(f"{path}: a damaged HDF5 file: {cause}") from None


def read_head(path: str, error: type[Exception]) -> bytes:
    """The first bytes of a file; a one-line `error` if it cannot be read or holds no data."""
    try:
        # opening a pipe would block, and neither format can be read from one
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise error(f"{path}: expected a file, got a pipe or a device: copy it to a file first")
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from None
    except ValueError as cause:  # a null character, or one that no file system can name
        raise error(f"{path!r}: no name of a file ({cause}): correct the path") from None
    if head == _LFS:
        raise error(f"{path}: this is a Git LFS pointer, not the data: run 'git lfs pull' in its repository")
    if not head:
        raise error(f"{path}: the file is empty")
    return head


def _part(path: str, file: Any, x: str, y: str | None) -> Part:
    X = _numbers(path, file, x)
    if y is None:
        return Part(X, None, f"{path}: name the labels of {x} too, with y=: the file has {_names(file)}")
    missing = f"{path}: no data set {y!r}: the file has {_names(file)}"
    if y not in file:
        return Part(X, None, missing)
    Y = _numbers(path, file, y)
    if Y.shape[0] != X.shape[0]:
        raise DataError(f"{path}: {_unlike(x, X.shape, y, Y.shape)}")
    return Part(X, Y, missing)


def _unlike(x: str, X: tuple[int, ...], y: str, Y: tuple[int, ...]) -> str:
    """What is wrong with these shapes, whose numbers of examples differ."""
    if len(Y) == 2 and Y[1] == X[0]:
        fix = f"({X[0]},)" if Y[0] == 1 else f"({X[0]}, {Y[0]})"
        return f"{y}: expected one label per row, got shape {Y} for {X[0]} examples: store it transposed, as {fix}"
    if len(X) == 2 and X[1] in (Y[0], Y[-1]):
        also = f", and {y} too" if X[1] != Y[0] else ""
        return f"{x}: expected one example per row, got shape {X} for {X[1]} labels: store it transposed{also}"
    return f"{x} has {X[0]} examples but {y} has {Y[0]} labels"


def _class_names(path: str, file: Any) -> list[str] | None:
    if "list_classes" not in file:
        return None
    names = _dataset(path, file, "list_classes")
    if names.ndim != 1 or names.nbytes > LARGEST_NAMES:
        raise DataError(f"{path}: list_classes: expected one name per class, got shape {names.shape}")
    numbers: dict[str, int] = {}
    for number, stored in enumerate(names[...]):
        name = _class_name(path, number, stored)
        if numbers.setdefault(name, number) != number:
            raise DataError(
                f"{path}: list_classes: expected different names, got {name!r} for class {numbers[name]} and class "
                f"{number}: rename one"
            )
    return list(numbers)


def _class_name(path: str, number: int, name: Any) -> str:
    try:
        return unpadded(name) if isinstance(name, bytes) else str(name).rstrip()
    except UnicodeDecodeError:
        raise DataError(f"{path}: list_classes: name {number}, {bytes(name)!r}, is not UTF-8: store it so") from None


def unpadded(name: bytes) -> str:
    """A name without what fills its field: spaces, or a null character and whatever follows it."""
    return name.split(b"\0")[0].decode().rstrip()


def _numbers(path: str, file: Any, name: str) -> Any:
    data = _dataset(path, file, name)
    if not data.shape:
        raise DataError(f"{path}: {name}: expected one example per row, got a single value")
    try:
        kind = data.dtype.kind
    except TypeError as cause:  # a type of HDF5 that NumPy has no like of
        raise DataError(f"{path}: {name}: expected numbers, got another type ({cause})") from None
    if kind not in "biuf":
        raise DataError(f"{path}: {name}: expected numbers, got {data.dtype}")
    check_written(f"{path}: {name}:", data)
    return data


def check_stored(what: str, data: Any, fix: str = "store the data itself") -> None:
    """DataError unless this data set of HDF5 has its values in its own file: others, if gone, would read as zeros."""
    if data.external is not None or data.is_virtual:
        raise DataError(f"{what} keeps its data in another file: refused; {fix}")
    if data.shape is None:
        raise DataError(f"{what} is empty")


def check_written(what: str, data: Any) -> None:
    """DataError where nothing of this data set was ever written, a warning where rows were not: they read as a fill."""
    if data.size and not data.id.get_storage_size():
        raise DataError(f"{what} shape {data.shape} is declared, but no data was ever written")
    unwritten = _rows_never_written(data)
    if unwritten:
        log_once(
            f"{place_of(data)}: {unwritten} of {data.shape[0]} rows were never written, at least "
            f"in part, and read as {data.fillvalue}: write them, or leave them out"
        )


def place_of(data: Any) -> str:
    return f"{data.file.filename}: {(data.name or '/a data set without a name')[1:]}"


def _rows_never_written(data: Any) -> int:
    """The rows of which HDF5 has allocated no chunk, or not all. What is left of an allocated one is unknown."""
    if not data.chunks or not data.size or not hasattr(data.id, "chunk_iter"):
        return 0
    bands, *across = (-(-n // size) for n, size in zip(data.shape, data.chunks, strict=True))
    if data.id.get_num_chunks() >= bands * math.prod(across):
        return 0
    found: dict[int, int] = {}

    def count(chunk: Any) -> None:
        first = chunk.chunk_offset[0]
        found[first] = found.get(first, 0) + 1

    data.id.chunk_iter(count)
    m, rows = data.shape[0], data.chunks[0]
    return m - sum(min(rows, m - first) for first, n in found.items() if n >= math.prod(across))


def _dataset(path: str, file: Any, name: str) -> Any:
    """The data set of that name, stored in this file itself: links are not followed."""
    import h5py

    group = file
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for i, part in enumerate(parts):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise DataError(f"{path}: no data set {name!r}: the file has {_names(file)}")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{path}: {'/'.join(parts[: i + 1])} is a link to elsewhere: refused; store the data itself"
            )
        group = group[part]
    if not isinstance(group, h5py.Dataset):
        raise DataError(f"{path}: {name!r} is a group, not a data set: the file has {_names(file)}")
    check_stored(f"{path}: {name}", group)
    missing = missing_filter(group)
    if missing is not None and group.size:
        try:
            group[(0,) * group.ndim]  # filters are optional: the data may have been stored without it
        except OSError:
            raise DataError(f"{path}: {name}: {missing}") from None
    return group


def _names(file: Any) -> str:
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    if not names:
        return "no data sets"
    shown = ", ".join(sorted(names)[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
