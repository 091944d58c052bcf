"""What people have their numbers in: NumPy, lists, tables, tensors, and data sets that are read row by row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dnn.backends import backend_of
from dnn.errors import DataError
from dnn.hdf5 import check_stored, check_written, place_of, read_failure

_CUDA = (2, 13)
"""DLPack's device types: CUDA, and CUDA's managed memory."""


class Rows:
    """Examples that are converted or read as their rows are asked for: a table's, or another library's array.

    `columns` are a table's names. `values` is its content where that is one array already. `band` is given where rows
    are read from a file: so many are best read together, from a multiple of it on.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        read: Callable[[int, int], np.ndarray],
        columns: Sequence[Any] | None = None,
        values: np.ndarray | None = None,
        band: int | None = None,
    ) -> None:
        self.shape, self.dtype, self.columns, self.values = shape, dtype, columns, values
        self.band = band
        self._read = read

    def __getitem__(self, rows: Any) -> np.ndarray:
        if rows is Ellipsis:
            return self._read(0, self.shape[0])
        return self._read(rows.start, rows.stop)

    def in_order(self, order: Sequence[int]) -> Rows:
        """The same examples of a table, with its columns in this order."""
        columns = None if self.columns is None else [self.columns[j] for j in order]
        return Rows(
            self.shape, self.dtype, lambda start, stop: self._read(start, stop)[:, order], columns, band=self.band
        )


def as_array(name: str, X: Any) -> Any:
    """X as an object with a shape and a dtype of numbers, whose rows can be sliced: an array, a data set or Rows.

    Nothing that stands for a missing value is lost: masks and nulls are a DataError here or when the rows are read.
    """
    if type(X).__module__.startswith("h5py"):
        _check_hdf5(name, X)
    try:
        X = _table(name, X) if is_table(X) else _array(name, X)
    except (DataError, MemoryError):
        raise
    except Exception as cause:  # every library has its own for what NumPy cannot hold
        what = type(X).__name__ + (f" of {X.dtype}" if "dtype" in dir(X) else "")
        raise DataError(
            f"{name}: expected numbers, got a {what} that NumPy cannot read ({' '.join(str(cause).split())}): "
            "convert it to a NumPy array of float32 first"
        ) from None
    if not _is_numeric(X.dtype):
        raise DataError(f"{name}: expected numbers, got {_in_words(name, X)}")
    return X


def _check_hdf5(name: str, X: Any) -> None:
    """DataError where this object of h5py has no values, or would give others than it was written with."""
    import h5py

    if isinstance(X, h5py.Empty):
        raise DataError(f"{name}: expected numbers, got an empty data set of HDF5, which has none")
    data = getattr(X, "_dset", X)  # of what Dataset.astype returns
    if not data:
        raise DataError(f"{name}: its file is closed: use the data set while the file is open")
    if isinstance(data, h5py.Dataset):
        where = f"{name}: {place_of(data)}"
        check_stored(where, data, f"store the data itself, or give {name}[...] if all of it is there")
        check_written(f"{where}:", data)


def read(name: str, X: Any, rows: Any) -> np.ndarray:
    """These rows of what `as_array` returned."""
    try:
        return _plain(name, X[rows], 0 if rows is Ellipsis else rows.start)
    except (DataError, MemoryError):
        raise
    except Exception as cause:  # whatever the library that reads it raises
        raise DataError(f"{name}: cannot read its data set: {read_failure(X, cause)}") from None


def is_device_array(X: Any) -> bool:
    if isinstance(X, np.ndarray):
        return False
    try:
        backend_of(X)
    except TypeError:
        return False
    return True


def _array(name: str, X: Any) -> Any:
    if isinstance(X, Rows) or is_device_array(X):
        return X
    if hasattr(X, "toarray"):
        it = f"{name}." if name.isidentifier() else "its "
        raise DataError(f"{name}: expected a dense array, got {type(X).__name__}: convert it with {it}toarray()")
    if isinstance(X, (list, tuple)):
        return _of_list(name, X)
    if _is_column(X):
        return _of_column(name, X)
    if type(X).__module__.startswith("h5py") and hasattr(X, "dtype"):
        return X
    if not isinstance(X, np.ndarray) and _is_sliceable(X):
        return _foreign(name, X)
    if hasattr(X, "keys"):
        names = [str(key) for key in X.keys()]  # noqa: SIM118  (a group iterates over something else)
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise DataError(f"{name}: expected one array, got a {type(X).__name__} of {listed or 'nothing'}: choose one")
    return _plain(name, _tensor(X))


def _tensor(X: Any) -> Any:
    if isinstance(X, np.ndarray):
        return X
    if "cupy" in sys.modules and hasattr(X, "__dlpack_device__") and X.__dlpack_device__()[0] in _CUDA:
        return sys.modules["cupy"].from_dlpack(X)
    if hasattr(X, "to_numpy"):
        return X.to_numpy()
    if hasattr(X, "__dlpack__") and not hasattr(X, "__array__"):
        return np.from_dlpack(X)
    return X


def _plain(name: str, values: Any, start: int = 0) -> Any:
    """The values as a plain ndarray, or a device's array; DataError if any is masked."""
    if is_device_array(values):
        return values
    if hasattr(values, "compute"):  # dask: as an array it would lose its mask
        values = values.compute()
    values = np.asanyarray(values)  # asarray would drop the mask
    mask = getattr(values, "mask", None)
    if mask is not None and np.any(mask):
        place = np.unravel_index(int(np.argmax(np.broadcast_to(mask, values.shape))), values.shape)
        where = f", the first in row {start + int(place[0])}" if place else ""
        raise DataError(f"{name}: expected numbers, got masked values{where}: fill or remove them")
    return np.asarray(values)


def _is_sliceable(X: Any) -> bool:
    """Whether X is an array with a dtype of NumPy's and slices, in memory or not: zarr, dask, netCDF, xarray, jax."""
    try:
        np.dtype(X.dtype)
    except Exception:  # no array (netCDF's files raise a KeyError), or a tensor whose library defines its own dtypes
        return False
    return hasattr(X, "shape") and hasattr(X, "__getitem__") and len(X.shape) > 0


def _foreign(name: str, X: Any) -> Any:
    shape = tuple(X.shape)
    if any(isinstance(n, float) for n in shape):
        raise DataError(f"{name}: its shape {shape} is not known yet: call {name}.compute_chunk_sizes(), or compute()")
    # the first row tells the dtype: a packed variable's own is that of its packed values
    first = read(name, X, slice(0, 1))
    if shape[0] <= 1:
        return first
    return Rows(shape, first.dtype, lambda start, stop: read(name, X, slice(start, stop)))


def _is_numeric(dtype: Any) -> bool:
    dtype = np.dtype(dtype)
    # bfloat16 and its kin have a kind of their own
    return dtype.kind in "biuf" or (dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float32))


def _in_words(name: str, X: Any) -> str:
    """What an array holds instead of numbers, and what to do."""
    dtype = np.dtype(X.dtype)
    if dtype.names:
        fields = ", ".join(dtype.names)
        return (
            f"a structured array with the fields {fields}: convert it with "
            "numpy.lib.recfunctions.structured_to_unstructured"
        )
    if dtype.kind != "O" or not isinstance(X, np.ndarray):
        of_text = dtype.kind in "UST" and name.startswith("Y")
        return f"{dtype}: {_fix(name, True) if of_text else 'convert it to a numeric array first'}"
    if X.ndim == 0:
        return f"{_shown(X.item())}: give an array, a list of rows or a table"
    for place, item in np.ndenumerate(X):
        if _is_number(type(item)):
            continue
        where = f" in item {''.join(f'[{i}]' for i in place)}"
        if hasattr(item, "__len__") and not isinstance(item, (str, bytes)):
            return f"objects, {_shown(item)}{where}: stack rows of one length with numpy.stack"
        return f"objects, {_shown(item)}{where}: {_fix(name, isinstance(item, str))}"
    return "objects: convert it with astype(float)"


def _fix(name: str, of_text: bool) -> str:
    if of_text and name.startswith("Y"):
        return "number the classes from 0, as numpy.unique(Y, return_inverse=True)[1] does"
    return "remove it or put a number there"


def _shown(item: Any) -> str:
    if item is None:
        return "None"
    text = f" {item!r}" if isinstance(item, (str, bytes)) else ""
    return f"{type(item).__name__}{text[:40]}"


# ------------------------------------------------------------------------------------------------ lists


def _of_list(name: str, items: Sequence[Any]) -> np.ndarray:
    checked = _items(name, items, "")
    try:
        values = np.asarray(checked)
        # integers of more than 64 bits, decimals and fractions
        return values.astype(np.float64) if values.dtype == object else values
    except (ValueError, OverflowError) as cause:
        raise DataError(f"{name}: {_unlike(checked) or ' '.join(str(cause).split())}") from None


def _items(name: str, items: Sequence[Any], path: str) -> Sequence[Any]:
    """The items, arrays among them as plain ones; DataError names the item that is no number."""
    if all(_is_number(kind) for kind in set(map(type, items))):
        return items
    return [_item(name, item, f"{path}[{i}]") for i, item in enumerate(items)]


def _item(name: str, item: Any, path: str) -> Any:
    if _is_number(type(item)):
        return item
    if isinstance(item, (list, tuple, range)):
        return _items(name, item, path)
    if any(hasattr(item, door) for door in ("__array__", "__dlpack__", "to_numpy", "shape", "typecode")):
        X = as_array(f"{name}, item {path}", item)
        return X if isinstance(X, np.ndarray) else backend_of(X).to_numpy(X) if is_device_array(X) else X[...]
    raise DataError(f"{name}: expected numbers, got {_shown(item)} in item {path}: {_fix(name, isinstance(item, str))}")


def _is_number(kind: type) -> bool:
    """Whether objects of this type are numbers: Python's, NumPy's, decimals and fractions."""
    if issubclass(kind, np.generic):
        return _is_numeric(kind)
    return hasattr(kind, "__float__") and not hasattr(kind, "__array__")


def _unlike(items: Any, path: str = "") -> str | None:
    """The first two items of different lengths, in words."""
    lengths = [len(item) if isinstance(item, (list, tuple, range)) or np.ndim(item) else None for item in items]
    for i, length in enumerate(lengths):
        if length != lengths[0]:
            one, other = ("a number" if n is None else n for n in (lengths[0], length))
            return (
                f"expected rows of one length, got rows of different lengths: {one} in item {path}[0], "
                f"{other} in item {path}[{i}]"
            )
    if not lengths or lengths[0] is None:
        return None
    return next(filter(None, (_unlike(item, f"{path}[{i}]") for i, item in enumerate(items))), None)


# ------------------------------------------------------------------------------------------------ tables


def is_table(X: Any) -> bool:
    """A frame of pandas, polars, or a library that does as they do, or a table or batch of Arrow."""
    return (
        hasattr(X, "get_columns")
        or (hasattr(X, "column_names") and hasattr(X, "slice"))
        or (hasattr(X, "iloc") and hasattr(X, "dtypes") and hasattr(X, "columns"))
        or _to_compute(X) is not None
    )


def _to_compute(X: Any) -> str | None:
    """The method that makes a table of polars or dask from one that is only planned."""
    if hasattr(X, "collect_schema") and not hasattr(X, "get_columns"):
        return "collect"
    return "compute" if hasattr(X, "divisions") else None


def _table(name: str, X: Any) -> Rows:
    method = _to_compute(X)
    if method is not None:
        raise DataError(f"{name}: expected values, got a {type(X).__name__} not computed yet: use its {method}()")
    names = list(X.column_names if hasattr(X, "column_names") else X.columns)
    dtypes: list[Any] = []
    others, known = [], {}
    for label, column in zip(names, _columns(X, 0, 0), strict=True):
        kind = column.dtype if hasattr(column, "dtype") else column.type
        if kind not in known:  # a table may have more columns than rows
            known[kind] = _column_dtype(column)
        dtypes.append(known[kind])
        if known[kind] is None:
            others.append(f"{label!r} ({kind})")
    if others:
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise DataError(f"{name}: expected columns of numbers, got {listed}: drop, convert or encode them")
    dtype = np.result_type(*set(dtypes)) if dtypes else np.dtype(np.float64)
    if dtype == np.uint8 and len(set(dtypes)) > 1:
        dtype = np.dtype(np.int16)  # bytes and truths together are no pixels, which would be scaled
    values = None
    if hasattr(X, "iloc") and len(known) == 1 and isinstance(next(iter(known)), np.dtype):
        values = X.to_numpy()

    def rows(start: int, stop: int) -> np.ndarray:
        block = np.empty((stop - start, len(names)), dtype)
        for j, column in enumerate(_columns(X, start, stop)):
            block[:, j] = _values(name, column, dtypes[j], start, f", column {names[j]!r}")
        return block

    return Rows((X.shape[0], len(names)), dtype, rows, names, values)


def _columns(table: Any, start: int, stop: int) -> Iterator[Any]:
    if hasattr(table, "iloc"):
        rows = table.iloc[start:stop]
        return (rows.iloc[:, j] for j in range(rows.shape[1]))
    rows = table.slice(start, stop - start)
    return iter(rows.get_columns() if hasattr(rows, "get_columns") else rows.columns)


def _type_of(column: Any) -> str:
    return str(column.dtype if hasattr(column, "dtype") else column.type)


def _is_column(X: Any) -> bool:
    return hasattr(X, "isna") or hasattr(X, "null_count")


def _column_dtype(column: Any) -> np.dtype | None:
    """The NumPy dtype that holds a column's values, or None if they are no numbers."""
    dtype = getattr(column, "dtype", None)
    if isinstance(dtype, np.dtype):
        found = dtype
    elif hasattr(column, "isna"):
        categories = getattr(dtype, "categories", None)
        if categories is not None:
            return _column_dtype(categories)
        # pandas: a nullable or Arrow's dtype, or a sparse one
        kind = getattr(dtype, "kind", "O")
        found = np.dtype(getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", "O")) if kind in "biuf" else "O")
    else:
        empty = np.asarray(column[:0])
        found = empty.dtype if empty.ndim == 1 else np.dtype("O")
    if found.kind == "O" and _type_of(column).lower().startswith("decimal"):
        return np.dtype(np.float64)
    return found if _is_numeric(found) else None


def _of_column(name: str, column: Any) -> np.ndarray:
    """The labels, or whatever else is one column."""
    label, dtype = getattr(column, "name", None), _column_dtype(column)
    where = f", column {label!r}" if label else ""
    if dtype is not None:
        return _values(name, column, dtype, 0, where)
    if _type_of(column) == "object" and hasattr(column, "to_numpy"):
        raise DataError(f"{name}{where}: expected numbers, got {_in_words(name, column.to_numpy())}")
    of_text = np.asarray(column[:0]).dtype.kind in "OUT" and name.startswith("Y")
    fix = _fix(name, True) if of_text else "convert or encode it"
    raise DataError(f"{name}{where}: expected numbers, got {_type_of(column)}: {fix}")


def _values(name: str, column: Any, dtype: np.dtype, start: int, where: str) -> np.ndarray:
    """The values of a column, from example `start` on; DataError if any is missing. `where` names the column."""
    if not isinstance(getattr(column, "dtype", None), np.dtype) and _number_missing(column):
        missing = np.asarray(column.isna() if hasattr(column, "isna") else column.is_null(), bool)
        raise DataError(
            f"{name}: expected finite numbers, got a missing value at example {start + int(missing.argmax())}"
            f"{where}: remove or fill it"
        )
    return np.asarray(column, dtype)


def _number_missing(column: Any) -> int:
    if hasattr(column, "isna"):
        return int(column.isna().sum())
    return column.null_count() if callable(column.null_count) else column.null_count
