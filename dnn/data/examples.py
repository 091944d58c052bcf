"""Validate, flatten and scale the user's X and Y, once, on input."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dnn.backends import Array, Backend, backend_of, get_backend
from dnn.errors import DataError
from dnn.network import Network

CHUNK = 4_000_000
"""Numbers converted at a time, so that conversion needs no second copy of the data."""


@dataclass(frozen=True)
class Examples:
    """X (m, n_in), on the network's device or on the host, and targets, on the device, in the output's form, or None.

    An X on the host is copied to the device one batch at a time (see `dnn.batches.Batches`).

    Bytes stay bytes, a quarter of the memory of float32; each batch is multiplied by `scale`, a scalar of the network's
    dtype. Anything else is already in that dtype and scaled, and `scale` is None.
    """

    X: Array
    targets: Array | None = None
    scale: Any = None

    @property
    def m(self) -> int:
        return self.X.shape[0]

    def on(self, backend: Backend) -> Examples:
        """The same examples with X on the backend's device."""
        return replace(self, X=backend.asarray(self.X))


NO_LABELS = object()
"""Passed to `prepare` when no targets are wanted. None does not mean this: it is an error, missing labels."""


def prepare(network: Network, X: Any, Y: Any = NO_LABELS, *, fitting: bool = False, name: str = "X") -> Examples:
    """The examples for this network. With `fitting`, the first ones determine an automatic input_scale.

    X (m, ...): NumPy, lists, pandas, HDF5 data sets, a backend's arrays. Y depends on the output: see `targets_for`.
    DataError says what is wrong. A NumPy X that needs no conversion is used without a copy. X stays on the host, or on
    the network's device if it is already there: the caller, who knows what else must fit, decides whether to move it.
    """
    X, targets, scale, kind = _checked(network, X, Y, name)
    examples = _converted(network, X, targets, scale, name, 0, X.shape[0])
    if fitting:
        # only once everything is accepted: a rejected fit leaves the network unchanged
        network.input_scale, network.input_kind = scale, kind
        network.input_shape = network.input_shape or tuple(X.shape[1:])
    return examples


def prepare_in_parts(network: Network, X: Any, Y: Any = NO_LABELS) -> tuple[int, Iterator[Examples]]:
    """The number of examples, and the examples as `prepare` returns them, part by part.

    Everything is checked here except that all numbers are finite. Data that is converted or read from a file is never
    in memory as a whole.
    """
    X, targets, scale, _ = _checked(network, X, Y, "X")
    m, of_bytes = X.shape[0], X.dtype == np.uint8
    as_it_is = _needs_no_conversion(X, X.dtype if of_bytes else network.dtype, 1.0 if of_bytes else scale)
    size = m if as_it_is or _is_device_array(X) else max(1, 2 * CHUNK // network.layer_sizes[0])

    def parts() -> Iterator[Examples]:
        for first in range(0, m, size):
            last = min(first + size, m)
            of_part = None if targets is None else targets[first:last]
            yield _converted(network, X, of_part, scale, "X", first, last)

    return m, parts()


def _checked(network: Network, X: Any, Y: Any, name: str) -> tuple[Any, Array | None, float, str | None]:
    """X as an array of the right shape, the targets, the scale, and the kind of input."""
    X = _as_array(name, X)
    _check_shape(network, name, X)
    scale, kind = _scaling(network, name, X)
    targets = None
    if Y is not NO_LABELS:
        targets = network.backend.asarray(targets_for(network, Y, X.shape[0], "Y" + name[1:], name))
    return X, targets, scale, kind


def _converted(
    network: Network, X: Any, targets: Array | None, scale: float, name: str, first: int, last: int
) -> Examples:
    """The examples from `first` to `last`: bytes with their scale, other numbers already scaled."""
    if X.dtype == np.uint8:
        return Examples(_convert(network, name, X, X.dtype, 1.0, first, last), targets, network.dtype.type(scale))
    return Examples(_convert(network, name, X, network.dtype, scale, first, last), targets)


def _as_array(name: str, X: Any) -> Any:
    """X as an object with a shape and a dtype, whose rows can be sliced."""
    if type(X).__module__.startswith("h5py") and not X:
        raise DataError(f"{name}: its file is closed: use the data set while the file is open")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if not (hasattr(X, "shape") and _has_numpy_dtype(X)):
        try:
            X = np.asarray(X)
        except ValueError as error:
            raise DataError(f"{name}: expected rows of one length, got rows of different lengths") from error
    if hasattr(X, "toarray"):
        raise DataError(f"{name}: expected a dense array, got {type(X).__name__}: convert it with {name}.toarray()")
    # a masked array implies that numpy.ma is imported; importing it here would take longer than everything else
    if "numpy.ma" in sys.modules and np.ma.is_masked(X):
        raise DataError(f"{name}: expected numbers, got masked values: fill or remove them")
    kind = np.dtype(X.dtype).kind
    if kind not in "biuf":
        what = "objects (rows of different lengths, or None among the numbers?)" if kind == "O" else str(X.dtype)
        raise DataError(f"{name}: expected numbers, got {what}: convert it to a numeric array first")
    return X


def _has_numpy_dtype(X: Any) -> bool:
    try:
        np.dtype(X.dtype)
    except (AttributeError, TypeError):  # a list, or a tensor whose library defines its own dtypes
        return False
    return True


def _check_shape(network: Network, name: str, X: Any) -> None:
    n_in, n_1 = network.layer_sizes[:2]
    if len(X.shape) < 2:
        raise DataError(
            f"{name}: expected (examples, features), got shape {tuple(X.shape)}: "
            f"use reshape(-1, 1) for examples of one feature, reshape(1, -1) for one example"
        )
    if X.shape[0] == 0:
        raise DataError(f"{name}: expected at least one example, got an empty set of shape {tuple(X.shape)}")
    features = math.prod(X.shape[1:])
    if features != n_in:
        transposed = X.shape[0] == n_in and len(X.shape) == 2
        fix = (
            f"transpose {name}" if transposed else f"give {n_in} features, or a network whose first size is {features}"
        )
        raise DataError(
            f"layer 1: {name} has shape {tuple(X.shape)}, that is {features} features per example, but "
            f"W1 {(n_1, n_in)} takes {n_in}: {fix}"
        )


def _scaling(network: Network, name: str, X: Any) -> tuple[float, str | None]:
    """(input_scale, input_kind): what this X implies, or what is already fixed, after checking that X agrees."""
    kind = "bytes" if X.dtype == np.uint8 else "numbers"
    if network.input_scale is None:
        return (1 / 255 if kind == "bytes" else 1.0), kind
    if network.input_kind not in (None, kind):
        trained = "uint8, scaled by 1/255" if network.input_kind == "bytes" else "numbers other than bytes, unscaled"
        fix = "give uint8" if network.input_kind == "bytes" else f"convert {name} as you did the training data"
        raise DataError(f"{name}: this network was trained on {trained}; got {X.dtype}: {fix}")
    return network.input_scale, network.input_kind


def _convert(network: Network, name: str, X: Any, dtype: np.dtype, scale: float, first: int, last: int) -> Array:
    """Rows first..last as a C-contiguous (m, n_in) array of this dtype, times `scale`, with all numbers finite.

    On the host, or on the network's device if X is there.
    """
    backend = network.backend
    m, n_in = last - first, network.layer_sizes[0]
    if _is_device_array(X):
        source = backend_of(X)
        if source is backend:
            # scaled in the network's dtype, as on the host
            converted = X.reshape(X.shape[0], n_in)[first:last].astype(dtype, copy=scale != 1)
            if scale != 1:
                converted *= dtype.type(scale)
            xp = backend.xp
            if dtype.kind == "f" and not bool(xp.isfinite(converted).all()):
                _raise_non_finite(name, backend.to_numpy(converted), first, dtype)
            return xp.ascontiguousarray(converted)
        X = source.to_numpy(X)
    if _needs_no_conversion(X, dtype, scale):
        host = X.reshape(X.shape[0], n_in)[first:last]
        for start, stop in _chunks(m, n_in):
            _check_finite(name, host[start:stop], first + start, dtype)
        return host
    host = new_host_array(name, (m, n_in), dtype)
    for start, stop in _chunks(m, n_in):
        rows = host[start:stop]
        with np.errstate(over="ignore"):
            rows[...] = _read(name, X, slice(first + start, first + stop)).reshape(stop - start, n_in)
        if scale != 1:
            rows *= dtype.type(scale)
        _check_finite(name, rows, first + start, dtype)
    return host


def _needs_no_conversion(X: Any, dtype: np.dtype, scale: float) -> bool:
    return isinstance(X, np.ndarray) and X.dtype == dtype and scale == 1 and X.flags.c_contiguous


def new_host_array(name: str, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array on the host; DataError if it exceeds this machine's memory."""
    # a data file of 2 KB can declare 4 TiB: check before the machine starts to swap
    needed, (_, total) = math.prod(shape) * dtype.itemsize, get_backend("numpy").memory()
    if needed > total:
        raise DataError(
            f"{name}: {shape[0]} examples of {shape[1]} features take {needed / 1e9:.1f} GB in {dtype}, but "
            f"this machine has {total / 1e9:.1f} GB"
        )
    return np.empty(shape, dtype)


def _read(name: str, array: Any, rows: Any) -> np.ndarray:
    try:
        return np.asarray(array[rows])
    except OSError as cause:
        raise DataError(f"{name}: cannot read its data set: the file is damaged ({cause})") from None


def _is_device_array(X: Any) -> bool:
    if isinstance(X, np.ndarray):
        return False
    try:
        backend_of(X)
    except TypeError:
        return False
    return True


def _chunks(m: int, n_in: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK // n_in)
    for start in range(0, m, step):
        yield start, min(start + step, m)


def _check_finite(name: str, rows: np.ndarray, start: int, dtype: np.dtype) -> None:
    if dtype.kind != "f":
        return
    # a finite sum means that every term is finite; otherwise (it may only have overflowed) check each number
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(rows.sum())
    if suspect and not np.isfinite(rows).all():
        _raise_non_finite(name, rows, start, dtype)


def _raise_non_finite(name: str, rows: np.ndarray, start: int, dtype: np.dtype) -> None:
    row, column = np.argwhere(~np.isfinite(rows))[0]
    raise DataError(
        f"{name}: expected finite numbers, got {rows[row, column]} in {dtype} at example {start + row}, "
        f"feature {column}: remove or fill it"
    )


# --------------------------------------------------------------------------------------------- targets


def targets_for(network: Network, Y: Any, m: int, name: str = "Y", X_name: str = "X") -> np.ndarray:
    """Y in the form that the network's output expects.

    sigmoid, one unit   (m,) or (m, 1), values in [0, 1]              -> (m, 1) in the network's dtype
    sigmoid, K units    (m, K), values in [0, 1]                      -> (m, K)
    softmax, K units    (m,) or (m, 1) class numbers, or one-hot (m, K) -> (m, 1) int64
    linear, K units     (m, K); also (m,) for one unit                -> (m, K)
    """
    Y = _as_array(name, Y)
    Y = backend_of(Y).to_numpy(Y) if _is_device_array(Y) else _read(name, Y, ...)
    K = network.layer_sizes[-1]
    if Y.ndim == 0 or Y.size == 0:
        raise DataError(f"{name}: expected one label per example, got shape {Y.shape}")
    if Y.ndim == 2 and Y.shape[0] == 1 and Y.shape[1] == m and m > 1:
        raise DataError(f"{name}: expected one label per row, got shape {Y.shape}: transpose it ({name}.T)")
    if Y.shape[0] != m:
        raise DataError(f"{name}: expected {m} labels, as many as {X_name} has examples, got {Y.shape[0]}")
    if Y.ndim == 1:
        Y = Y.reshape(m, 1)
    if network.output == "softmax":
        return _class_numbers(name, Y, K)
    if Y.ndim != 2 or Y.shape[1] != K:
        hint = ": class numbers need output='softmax'" if network.output == "sigmoid" and Y.shape[1:] == (1,) else ""
        raise DataError(
            f"{name}: layer {len(network.layer_sizes) - 1} has {K} {network.output} unit{'s' if K != 1 else ''}, "
            f"so expected shape ({m}, {K}), got {Y.shape}{hint}"
        )
    with np.errstate(over="ignore"):
        Y = np.ascontiguousarray(Y, dtype=network.dtype)
    if not np.isfinite(Y).all():
        raise DataError(f"{name}: expected finite numbers, got {Y[~np.isfinite(Y)][0]} in {network.dtype}")
    if network.output == "sigmoid" and (Y.min() < 0 or Y.max() > 1):
        wrong = Y[(Y < 0) | (Y > 1)][0]
        raise DataError(
            f"{name}: a sigmoid output takes labels 0 and 1 (or probabilities in between), got {wrong:g}: number the "
            "classes 0 and 1, or use output='softmax' for more than two classes, 'linear' for real values"
        )
    return Y


def _class_numbers(name: str, Y: np.ndarray, K: int) -> np.ndarray:
    if Y.ndim == 2 and Y.shape[1] == K:
        if not (np.isin(Y, (0, 1)).all() and (Y.sum(axis=1) == 1).all()):
            raise DataError(f"{name}: expected a single 1 and zeros in every row of one-hot labels {Y.shape}")
        return Y.argmax(axis=1).reshape(-1, 1).astype(np.int64)
    if Y.ndim != 2 or Y.shape[1] != 1:
        raise DataError(
            f"{name}: a softmax output of {K} units takes class numbers ({len(Y)},) or one-hot labels "
            f"({len(Y)}, {K}), got shape {Y.shape}"
        )
    if Y.dtype.kind == "f":
        whole = np.isfinite(Y) & (np.floor(Y) == Y)
        if not whole.all():
            raise DataError(f"{name}: expected whole class numbers 0 to {K - 1}, got {Y[~whole][0]}")
    if Y.min() < 0 or Y.max() >= K:
        wrong = Y[(Y < 0) | (Y >= K)][0]
        raise DataError(f"{name}: expected class numbers 0 to {K - 1} for {K} outputs, got {wrong}")
    return np.ascontiguousarray(Y, dtype=np.int64)
