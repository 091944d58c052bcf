"""HDF5 files in the assignment's layout.

    train_set_x (m, ...)   train_set_y (m,)     test_set_x   test_set_y     list_classes (K,) names

Train and test may be in one file or in two, and the data sets may have other names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from types import TracebackType
from typing import Any

from dnn.backends import BackendUnavailableError
from dnn.errors import DataError, DnnError

_LFS = b"version https://git-lfs"
LARGEST_NAMES = 100_000_000
"""Most bytes that list_classes may take: a file of 2 KB can declare far more than names ever need."""


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


def open_dataset(path: str | PathLike[str], x: str | None = None, y: str | None = None) -> Dataset:
    """Open a data file lazily: examples and labels are read on use.

    Without `x` and `y`, the file has the assignment's layout, with `train`, `test` or both. With `x` and `y`, those two
    data sets are `train`, and there is no `test`; with `x` alone, `train` has no labels. DataError says what is wrong
    with the file.
    """
    if x is None and y is not None:
        raise ValueError("open_dataset: y names the labels of the examples that x names: give x too")
    path = fspath(path)
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
                        "give the names of the examples and labels as x and y"
                    )
            classes = None
            if "list_classes" in file:
                names = _dataset(path, file, "list_classes")
                if names.ndim != 1 or names.nbytes > LARGEST_NAMES:
                    raise DataError(f"{path}: list_classes: expected one name per class, got shape {names.shape}")
                classes = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names[...]]
        return Dataset(path, file, train, test, classes)
    except BaseException:
        file.close()
        raise


@contextmanager
def reporting_damage(path: str, error: type[Exception]) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file, from KeyError to OSError, into a one-line `error`."""
    try:
        yield
    except (DnnError, BackendUnavailableError):
        raise
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as cause:
        raise error(f"{path}: a damaged HDF5 file: {' '.join(str(cause).split())}") from cause


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
        if not h5py.is_hdf5(path):
            raise error(f"{path}: not an HDF5 file") from None
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
    if head == _LFS:
        raise error(f"{path}: this is a Git LFS pointer, not the data: run 'git lfs pull' in its repository")
    if not head:
        raise error(f"{path}: the file is empty")
    return head


def _part(path: str, file: Any, x: str, y: str | None) -> Part:
    X = _numbers(path, file, x)
    if y is None:
        return Part(X, None, f"{path}: name the labels of {x} too, as y: the file has {_names(file)}")
    missing = f"{path}: no data set {y!r}: the file has {_names(file)}"
    if y not in file:
        return Part(X, None, missing)
    Y = _numbers(path, file, y)
    if Y.shape[0] != X.shape[0] and Y.shape != (1, X.shape[0]):
        raise DataError(f"{path}: {x} has {X.shape[0]} examples but {y} has {Y.shape[0]} labels")
    return Part(X, Y, missing)


def _numbers(path: str, file: Any, name: str) -> Any:
    data = _dataset(path, file, name)
    if not data.shape:
        raise DataError(f"{path}: {name}: expected one example per row, got a single value")
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name}: expected numbers, got {data.dtype}")
    if data.size and not data.id.get_storage_size():
        raise DataError(f"{path}: {name}: shape {data.shape} is declared, but no data was ever written")
    return data


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
    if group.external is not None or group.is_virtual:
        raise DataError(f"{path}: {name} keeps its data in another file: refused; store the data itself")
    if group.shape is None:
        raise DataError(f"{path}: {name} is empty")
    return group


def _names(file: Any) -> str:
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    if not names:
        return "no data sets"
    shown = ", ".join(sorted(names)[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
