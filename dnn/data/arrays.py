"""Arrays in files: .npy and .npz as NumPy writes them, and idx files as those of MNIST, gzipped or not.

Their rows are read as they are asked for, in blocks, from the first to the last. Nothing is unpickled.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from dnn.data.examples import check_known
from dnn.data.hdf5 import Dataset, Part, unlike
from dnn.data.sources import Rows
from dnn.errors import DataError
from dnn.hdf5 import read_head

NPY, ZIP, GZIP = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b"
LARGEST_ROW = 1 << 30
"""Most bytes of a row: a damaged or crafted header of a few bytes can declare any shape."""
NAMES = (
    ("train_set_x", "train_set_y", "test_set_x", "test_set_y"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("X_train", "y_train", "X_test", "y_test"),
    ("X_train", "Y_train", "X_test", "Y_test"),
    ("X", "Y", "", ""),
    ("X", "y", "", ""),
    ("x", "y", "", ""),
)
"""What the arrays of an .npz are called: examples and labels, and those of the test part."""
LABELS = "biufUS"
"""Kinds of dtypes that labels may have: numbers, or the names of their classes."""
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGES = re.compile(r"(?P<before>.*?)(?P<part>(train-|t10k-|test-)?)images(?P<dot>[.-])idx3-ubyte")


# -------------------------------------------------------------------------------- .npy and .npz


def open_npy(path: str, y: str | None = None) -> Dataset:
    """The examples of an .npy file, with the labels of another one, `y`, if they are to have any."""
    opened: list[Any] = []
    try:
        X = _array(path, path, _open(path, opened))
        Y, classes = (None, None) if y is None else _labels(y, _array(y, y, _open(y, opened), kinds=LABELS))
        return _dataset(path, opened, (X, Y), classes=classes)
    except BaseException:
        _close(opened)
        raise


def open_npz(path: str, x: str | None = None, y: str | None = None) -> Dataset:
    """The arrays of an .npz file that have one of NAMES, or the names given."""
    opened: list[Any] = []
    try:
        with _reporting(path):
            archive = zipfile.ZipFile(path)
        opened.append(archive)
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        names = _names(path, list(members), x, y)

        def member(name: str, kinds: str) -> Any:
            with _reporting(path):
                opened.append(archive.open(members[name]))
            size = archive.getinfo(members[name]).file_size
            return _array(path, f"{path}: {name}", opened[-1], size, kinds)

        def part(x: str, y: str) -> tuple[Any, Any, list[str] | None]:
            X = member(x, "biuf")
            return X, *(_labels(f"{path}: {y}", member(y, LABELS)) if y in members else (None, None))

        X, Y, classes = part(*names[:2])
        test = None
        if names[2] in members:
            test_X, test_Y, test_classes = part(*names[2:])
            test = test_X, renumbered(path, test_Y, test_classes, classes)
        return _dataset(path, opened, (X, Y), test, classes)
    except BaseException:
        _close(opened)
        raise


def renumbered(path: str, Y: Any, names: Sequence[str] | None, classes: Sequence[str] | None) -> Any:
    """The labels Y, numbers of these names, as numbers of `classes`; DataError where a name is not among them."""
    if names is None or classes is None or list(names) == list(classes):
        return Y
    check_known(path, names, classes)
    return np.array([list(classes).index(name) for name in names], np.int64)[Y[0 : Y.shape[0]]]


def _names(path: str, there: list[str], x: str | None, y: str | None) -> tuple[str, str, str, str]:
    if not there:
        raise DataError(f"{path}: a zip archive without arrays: write it with numpy.savez")
    listed = f"the file has {', '.join(there[:20])}"
    if x is not None:
        for name in filter(None, (x, y)):
            if name not in there:
                raise DataError(f"{path}: no array {name!r}: {listed}")
        return x, y or "", "", ""
    found = [names for names in NAMES if {*names[:2]} <= {*there}] + [names for names in NAMES if names[0] in there]
    if not found:
        raise DataError(
            f"{path}: no array train_set_x, x_train or X: {listed}; name the examples with x=, their labels with y="
        )
    return found[0]


def _open(path: str, opened: list[Any]) -> Any:
    if not read_head(path, DataError).startswith(NPY):
        raise DataError(f"{path}: not a .npy file: write it with numpy.save")
    with _reporting(path):
        opened.append(open(path, "rb"))  # noqa: SIM115
    return opened[-1]


def _array(path: str, what: str, stream: BinaryIO, size: int | None = None, kinds: str = "biuf") -> Any:
    """The array in a stream of NumPy's format: Rows, or in memory, what is in Fortran's order or names."""
    with _reporting(what):
        version = np.lib.format.read_magic(stream)
        if version > (2, 0):
            raise DataError(f"{what}: expected numbers, got a structured array")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(stream)
        offset = stream.tell()
        size = os.fstat(stream.fileno()).st_size if size is None else size
    if dtype.kind not in kinds or (dtype.kind == "f" and dtype.itemsize > 8):
        raise DataError(f"{what}: expected numbers, got {dtype}: convert it first, as with astype(float)")
    if not shape:
        raise DataError(f"{what}: expected one example per row, got a single value")
    X = rows_of(what, stream, offset, shape, dtype, size)
    if by_columns and len(shape) > 1:
        return _by_columns(path, what, stream, offset, shape, dtype)
    return X if dtype.kind not in "US" else X[...]


def _by_columns(path: str, what: str, stream: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in Fortran's order, whose rows are scattered: mapped, or read whole from an archive."""
    if path == what:
        return np.memmap(path, dtype, "r", offset, shape, "F")
    with _reporting(what):
        stream.seek(offset)
        return np.frombuffer(stream.read(), dtype, math.prod(shape)).reshape(shape, order="F")


def _labels(what: str, Y: Any) -> tuple[Any, list[str] | None]:
    """The labels as numbers, and the names of the classes if names is what they were."""
    if Y.dtype.kind not in "US":
        return Y, None
    names, numbers = np.unique(Y, return_inverse=True)
    try:
        return numbers.reshape(Y.shape), [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
    except UnicodeDecodeError:
        raise DataError(f"{what}: names that are not UTF-8: store them so") from None


# -------------------------------------------------------------------------------- idx


def is_idx(head: bytes) -> bool:
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and head[3] > 0


def is_gzipped_idx(path: str) -> bool:
    try:
        with gzip.open(path) as stream:
            return is_idx(stream.read(4))
    except (OSError, EOFError, zlib.error):
        return False


def images_in(folder: str) -> list[str]:
    """The idx files of images in a folder, gzipped or not; of one that is there both ways, the one that is not."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if _IMAGES.fullmatch(entry.name.removesuffix(".gz"))}
    return [os.path.join(folder, name) for name in sorted(names) if name.removesuffix(".gz") not in names - {name}]


def open_idx(path: str, y: str | None = None) -> Dataset:
    """The images of an idx file with the labels beside it, or those of the file `y`, and the test part beside it.

    The folder of MNIST's files stands for its images to train on.
    """
    if os.path.isdir(path):
        there = images_in(path)
        first = [name for name in there if _IMAGES.fullmatch(_plain(name))["part"] in ("train-", "")]  # type: ignore
        if len(first) != 1:
            files = ", ".join(os.path.basename(name) for name in there)
            raise DataError(f"{path}: expected one file of images to train on, got {files}: name one of them")
        path = first[0]
    opened: list[Any] = []
    try:
        train = _idx(path, opened), _idx(y or _labels_of(path), opened)
        test_path = None if y is not None else _test_of(path)
        test = None if test_path is None else (_idx(test_path, opened), _idx(_labels_of(test_path), opened))
        return _dataset(path, opened, train, test)
    except BaseException:
        _close(opened)
        raise


def _plain(path: str) -> str:
    return os.path.basename(path).removesuffix(".gz")


def _beside(path: str, *names: str) -> str | None:
    """The file of one of these names in the same folder, gzipped or not."""
    there = (os.path.join(os.path.dirname(path), name + ending) for name in names for ending in ("", ".gz"))
    return next(filter(os.path.isfile, there), None)


def _labels_of(path: str) -> str:
    named = _IMAGES.fullmatch(_plain(path))
    if named is None:
        raise DataError(f"{path}: no labels: name their file with y=")
    before, part, dot = named["before"], named["part"], named["dot"]
    name = f"{before}{part}labels{dot}idx1-ubyte"
    found = _beside(path, name)
    if found is None:
        raise DataError(f"{path}: no labels: expected {name} or {name}.gz beside it; name their file with y=")
    return found


def _test_of(path: str) -> str | None:
    named = _IMAGES.fullmatch(_plain(path))
    if named is None or not named["part"].startswith("train"):
        return None
    names = (f"{named['before']}{part}-images{named['dot']}idx3-ubyte" for part in ("t10k", "test"))
    return _beside(path, *names)


def _idx(path: str, opened: list[Any]) -> Rows:
    head = read_head(path, DataError)
    with _reporting(path):
        zipped = head.startswith(GZIP)
        stream: Any = gzip.open(path) if zipped else open(path, "rb")  # noqa: SIM115
        opened.append(stream)
        head = stream.read(4)
        if not is_idx(head):
            raise DataError(f"{path}: not an idx file, as MNIST's are")
        axes = head[3]
        content = stream.read(4 * axes)
        size = None if zipped else os.fstat(stream.fileno()).st_size
    if len(content) < 4 * axes:
        raise DataError(f"{path}: truncated: copy or download it again")
    shape = tuple(np.frombuffer(content, ">u4").tolist())
    return rows_of(path, stream, 4 + 4 * axes, shape, np.dtype(IDX_TYPES[head[2]]), size)


# -------------------------------------------------------------------------------- what all have


def rows_of(
    what: str, stream: BinaryIO, offset: int, shape: tuple[int, ...], dtype: np.dtype, size: int | None
) -> Rows:
    """The rows of an array of this shape from byte `offset` of a stream on, which has `size` bytes, if that is known.

    Of a compressed stream, going back is reading it again from the start.
    """
    row = math.prod(shape[1:]) * dtype.itemsize
    if not shape[0] or not row:
        raise DataError(f"{what}: no examples: its shape is {shape}")
    if row > LARGEST_ROW:
        raise DataError(f"{what}: damaged: its shape {shape} has rows of {row} bytes")
    if size is not None and size < offset + row * shape[0]:
        raise DataError(f"{what}: truncated: {shape} of {dtype} is more than it holds: copy or download it again")

    def read(start: int, stop: int) -> np.ndarray:
        with _reporting(what):
            stream.seek(offset + start * row)
            content = stream.read((stop - start) * row)
        if len(content) < (stop - start) * row:
            raise DataError(f"{what}: truncated: {shape} of {dtype} is more than it holds: copy or download it again")
        return np.frombuffer(content, dtype).reshape(-1, *shape[1:])

    return Rows(shape, dtype, read)


def _dataset(
    path: str,
    opened: list[Any],
    train: tuple[Any, Any],
    test: tuple[Any, Any] | None = None,
    classes: list[str] | None = None,
) -> Dataset:
    for part in filter(None, (train, test)):
        X, Y = part
        if Y is not None and Y.shape[0] != X.shape[0]:
            raise DataError(f"{path}: {unlike('examples', X.shape, 'labels', Y.shape)}")
    no_labels = f"{path}: no labels: name them with y="
    test_part = None if test is None else Part(*test, no_labels)
    return Dataset(path, _Files(opened), Part(*train, no_labels), test_part, classes)


class _Files:
    def __init__(self, opened: list[Any]) -> None:
        self._opened = opened

    def close(self) -> None:
        _close(self._opened)


def _close(opened: list[Any]) -> None:
    for file in reversed(opened):  # the members of an archive before it
        file.close()


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError of one line."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as cause:  # the readers of these formats raise whatever a damaged file makes them
        if isinstance(cause, OSError) and cause.strerror:
            raise DataError(f"{what}: cannot be read: {cause.strerror}") from None
        raise DataError(f"{what}: damaged: {' '.join(str(cause).split())}: copy or download it again") from None
