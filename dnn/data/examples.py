"""Validate, flatten and scale the user's X and Y, once, on input."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dnn.backends import Array, Backend, backend_of, get_backend
from dnn.data import scaling
from dnn.data.columns import Table
from dnn.data.hdf5 import names_with
from dnn.data.scaling import Scaling
from dnn.data.sources import Rows, as_array, is_device_array, is_table, read
from dnn.data.storage import storage_of
from dnn.data.streaming import Stream
from dnn.errors import DataError, enumerated
from dnn.layers import Dense
from dnn.network import Network
from dnn.specification import in_words

CHUNK = 4_000_000
"""Numbers converted at a time, so that conversion needs no second copy of the data."""


@dataclass(frozen=True)
class Examples:
    """X (m, n_in), on the network's device or on the host, and targets, on the device, in the output's form, or None.

    An X on the host, or a `Stream`, which is in its file, is brought to the device one batch at a time (see
    `dnn.batches.Batches`).

    Bytes stay bytes, a quarter of the memory of float32; each batch is multiplied by `scale`, a scalar of the network's
    dtype. Anything else is already in that dtype and scaled, bytes too where the scale is learned, and `scale` is None.
    """

    X: Array
    targets: Array | None = None
    scale: Any = None
    weights: Array | None = None
    """Of the losses: (m, 1), or (m, K) one for each target."""
    counted: Array | None = None
    """Of those the part that the metric counts as well; None where it counts all weights."""

    @property
    def m(self) -> int:
        return self.X.shape[0]

    def arrays(self) -> dict[str, Array | None]:
        """What a batch has rows of, X first."""
        return {"X": self.X, "targets": self.targets, "weights": self.weights, "counted": self.counted}

    def on(self, backend: Backend) -> Examples:
        """The same examples with X on the backend's device."""
        return self if isinstance(self.X, Stream) else replace(self, X=backend.asarray(self.X))


class Targets(NamedTuple):
    """The targets, and where some are missing, 1 for those that are known."""

    values: Array
    known: Array | None

    def part(self, first: int, last: int) -> Targets:
        return Targets(self.values[first:last], None if self.known is None else self.known[first:last])

    def on(self, backend: Backend) -> Targets:
        return Targets(backend.asarray(self.values), None if self.known is None else backend.asarray(self.known))


NO_LABELS = object()
"""Passed to `prepare` when no targets are wanted. None does not mean this: it is an error, missing labels."""


def prepare(
    network: Network,
    X: Any,
    Y: Any = NO_LABELS,
    *,
    fitting: bool = False,
    name: str = "X",
    missing: bool = False,
    rows_to_learn: Callable[[np.ndarray], np.ndarray | None] | None = None,
    memory: int | None = None,
    window: int | None = None,
) -> Examples:
    """The examples for this network. With `fitting`, the first ones determine an automatic or learned scale.

    X (m, ...): NumPy, lists, pandas, HDF5 data sets, a backend's arrays. Y depends on the output: see `targets_for`.
    DataError says what is wrong. A NumPy X that needs no conversion is used without a copy. X stays on the host, or on
    the network's device if it is already there: the caller, who knows what else must fit, decides whether to move it.

    With `missing`, targets may be nan: their weight is 0. `rows_to_learn` chooses, by the targets, the examples from
    which what belongs to the data is learned.

    With `memory`, an X in a file that would take more bytes than these stays there: it becomes a `Stream`, and whether
    its numbers are finite is seen when they are read. `window`: the bands of its windows, as a fit that
    is gone on with had them, on which the order of the examples depends; 0: it had none.
    """
    X, targets, scale, kind = _checked(network, X, Y, name, missing)
    rows = None if rows_to_learn is None or targets is None else rows_to_learn(targets.values)
    statistics = network.statistics
    if fitting and not statistics:
        statistics = _learned(network, X, targets, name, rows)
    applied = _applied(network, statistics, scale, name)
    targets = _on_device(network, statistics, targets)
    stream = None if memory is None else _stream(network, X, applied, name, memory, window)
    if stream is None:
        examples = _converted(network, X, targets, applied, name, 0, X.shape[0])
    else:
        values, known = (None, None) if targets is None else targets
        byte_scale = network.dtype.type(scale) if _stays_bytes(X, applied) else None
        examples = Examples(stream, values, byte_scale, known, known)
    if fitting:
        # only once everything is accepted: a rejected fit leaves the network unchanged
        network.input_scale, network.input_kind, network.statistics = scale, kind, statistics
        network.input_shape = network.input_shape or tuple(X.shape[1:])
        columns = _column_names(X)
        if columns is not None and (network.feature_names is None or _are_numbers(network.feature_names)):
            network.feature_names = columns
        if network.classes is None and network.output != "linear":
            names = names_with(Y)
            network.classes = names if names and len(names) == max(network.layer_sizes[-1], 2) else None
    return examples


def prepare_in_parts(
    network: Network, X: Any, Y: Any = NO_LABELS, missing: bool = False
) -> tuple[int, Iterator[Examples]]:
    """The number of examples, and the examples as `prepare` returns them, part by part.

    Everything is checked here except that all numbers are finite. Data that is converted or read from a file is never
    in memory as a whole.
    """
    X, targets, scale, _ = _checked(network, X, Y, "X", missing)
    applied = _applied(network, network.statistics, scale, "X")
    targets = _on_device(network, network.statistics, targets)
    m, of_bytes = X.shape[0], _stays_bytes(X, applied)
    whole = X.values if isinstance(X, Rows) else X
    as_it_is = _needs_no_conversion(whole, X.dtype if of_bytes else network.dtype, 1.0 if of_bytes else applied)
    size = m if as_it_is or is_device_array(X) else _whole_bands(X, max(1, 2 * CHUNK // network.layer_sizes[0]))

    def parts() -> Iterator[Examples]:
        for first in range(0, m, size):
            last = min(first + size, m)
            of_part = None if targets is None else targets.part(first, last)
            yield _converted(network, X, of_part, applied, "X", first, last)

    return m, parts()


def _checked(
    network: Network, X: Any, Y: Any, name: str, missing: bool
) -> tuple[Any, Targets | None, float | str, str | None]:
    """X as an array of the right shape, the targets on the host, the scale, and the kind of input."""
    if Y is not NO_LABELS:
        _check_index(name, X, Y)
    if network.schema is not None and (isinstance(X, Table) or is_table(X)):
        X = network.schema.encoded(X)
    X = _by_column(network, name, as_array(name, X))
    _check_shape(network, name, X)
    scale, kind = _scaling(network, name, X)
    targets = None
    if Y is not NO_LABELS:
        targets = Targets(*targets_for(network, Y, X.shape[0], "Y" + name[1:], name, missing))
    return X, targets, scale, kind


def _learned(
    network: Network, X: Any, targets: Targets | None, name: str, rows: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What the network's scales take from these rows, in ascending order, or from all."""
    found, m, n_in = {}, X.shape[0] if rows is None else len(rows), network.layer_sizes[0]

    def blocks() -> Iterator[np.ndarray]:
        columns, source = (X.columns, X if X.values is None else X.values) if isinstance(X, Rows) else (None, X)
        for first, last in _chunks(X.shape[0], n_in, X):
            part = read(name, source, slice(first, last))
            on_host = backend_of(part).to_numpy(part) if is_device_array(part) else part
            block = on_host.reshape(last - first, n_in).astype(np.float64)
            _check_finite(name, block, first, block.dtype, columns)
            yield block if rows is None else block[rows[slice(*np.searchsorted(rows, (first, last)))] - first]

    if network.input_scale == "standard":
        found["input_shift"], found["input_factor"] = scaling.standard(blocks, n_in)
    elif network.input_scale == "robust":
        found["input_shift"], found["input_factor"] = scaling.robust(blocks, n_in, m, CHUNK)
    if network.target_scale is not None and targets is not None:
        known = targets.known if rows is None or targets.known is None else targets.known[rows]
        values = targets.values if rows is None else targets.values[rows]
        found["target_shift"], found["target_factor"] = scaling.of_targets(values, known)
    for statistic, values in found.items():
        if np.isnan(values).any():
            what = f"{name}: feature" if statistic.startswith("input") else f"Y{name[1:]}: target"
            raise DataError(f"{what} {int(np.isnan(values).argmax())} is too large to be scaled: divide it by its size")
    return found


def _applied(network: Network, statistics: dict[str, np.ndarray], scale: float | str, name: str) -> float | Scaling:
    """What is done to X. DataError where the network scales by what it has yet to learn."""
    if not statistics and (isinstance(scale, str) or network.target_scale is not None):
        given = f"input_scale={scale!r}" if isinstance(scale, str) else f"target_scale={network.target_scale!r}"
        raise DataError(f"{name}: a network with {given} takes its scale from the data of its first fit: fit it first")
    return scaling.input_scaling(network, statistics) if isinstance(scale, str) else scale


def _on_device(network: Network, statistics: dict[str, np.ndarray], targets: Targets | None) -> Targets | None:
    """The targets as the network learns them."""
    if targets is not None and network.target_scale is not None:
        targets = Targets(scaling.scaled_targets(network, statistics, *targets), targets.known)
    return None if targets is None else targets.on(network.backend)


def _stays_bytes(X: Any, scale: float | Scaling) -> bool:
    return X.dtype == np.uint8 and not isinstance(scale, Scaling)


def _converted(
    network: Network, X: Any, targets: Targets | None, scale: float | Scaling, name: str, first: int, last: int
) -> Examples:
    """The examples from `first` to `last`: bytes with their scale, other numbers already scaled."""
    values, known = (None, None) if targets is None else targets
    if _stays_bytes(X, scale):
        X = _convert(network, name, X, X.dtype, 1.0, first, last)
        return Examples(X, values, network.dtype.type(scale), known, known)
    return Examples(_convert(network, name, X, network.dtype, scale, first, last), values, None, known, known)


def _check_shape(network: Network, name: str, X: Any) -> None:
    n_in = network.layer_sizes[0]
    if X.shape[:1] == (0,):
        raise DataError(f"{name}: expected at least one example, got an empty set of shape {tuple(X.shape)}")
    if len(X.shape) < 2:
        raise DataError(
            f"{name}: expected (examples, features), got shape {tuple(X.shape)}: "
            f"use reshape(-1, 1) for examples of one feature, reshape(1, -1) for one example"
        )
    features = math.prod(X.shape[1:])
    if features == 0:
        raise DataError(f"{name}: expected {n_in} features per example, got none: its shape is {tuple(X.shape)}")
    if features != n_in:
        transposed = X.shape[0] == n_in and len(X.shape) == 2
        fix = (
            f"transpose {name}" if transposed else f"give {n_in} features, or a network whose first size is {features}"
        )
        raise DataError(
            f"layer 1: {name} has shape {tuple(X.shape)}, that is {features} features per example, but "
            f"{_first(network)} takes {n_in}: {fix}"
        )
    # flattened or not, the features of an example are in the order of the first fit
    fitted, given = (tuple(n for n in shape if n != 1) for shape in (network.input_shape or (), X.shape[1:]))
    if fitted != given and len(fitted) > 1 and len(given) > 1:
        raise DataError(
            f"{name}: this network was trained on examples of shape {network.input_shape}; got {tuple(X.shape[1:])}, "
            f"whose features are in another order: transpose {name} as the training data was"
        )


def _first(network: Network) -> str:
    """What the examples are for, in words."""
    if isinstance(network.layers[0], Dense):
        return f"W1 {network.parameters.shapes['W1'][-2:]}"
    return f"the first, {in_words(network.layers[0])},"


def _check_index(name: str, X: Any, Y: Any) -> None:
    """DataError where X and Y are pandas objects whose rows have other labels: other examples, or another order."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not all(isinstance(given, (pandas.DataFrame, pandas.Series)) for given in (X, Y)):
        return
    if len(X) == len(Y) and not X.index.equals(Y.index):
        row = next((i for i, (one, other) in enumerate(zip(X.index, Y.index, strict=True)) if one != other), 0)
        raise DataError(
            f"Y{name[1:]}: expected the index of {name}, got {Y.index[row]} for {X.index[row]} in row {row}: bring "
            "them into one order with .loc, or give Y.to_numpy() if they are in one"
        )


def _column_names(X: Any) -> list[str] | None:
    return list(map(str, X.columns)) if isinstance(X, Rows) and X.columns is not None else None


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether these are no names but the numbers that a library gives to columns without one."""
    return all(name in (str(i), f"column_{i}", f"f{i}") for i, name in enumerate(names))


def _by_column(network: Network, name: str, X: Any) -> Any:
    """X with its columns in the order of the first fit; DataError where a table has others."""
    known, given = network.feature_names, _column_names(X)
    if given is None or known == given:
        return X
    if known is None:  # only numbers tell an order
        numbers = list(map(str, range(len(given))))
        if given == numbers or set(given) != set(numbers):
            return X
        known = numbers
    if sorted(known) == sorted(given):
        if len(set(given)) < len(given):
            raise DataError(
                f"{name}: expected columns in the order of the first fit, {enumerated(known)}; got {enumerated(given)}"
                ": order them as in training, since equal names cannot be matched"
            )
        place = {column: j for j, column in enumerate(given)}
        return X.in_order([place[column] for column in known])
    if _are_numbers(known) or _are_numbers(given):
        return X
    ours, theirs = set(known), set(given)
    missing, unknown = [n for n in known if n not in theirs], [n for n in given if n not in ours]
    differences = [f"{what}: {enumerated(n)}" for what, n in (("missing", missing), ("unknown", unknown)) if n]
    raise DataError(
        f"{name}: expected the columns of the first fit, {enumerated(known)}; got {enumerated(given)} "
        f"({'; '.join(differences) or 'some more than once'}): choose and name them as in training"
    )


def _scaling(network: Network, name: str, X: Any) -> tuple[float | str, str | None]:
    """(input_scale, input_kind): what this X implies, or what is already fixed, after checking that X agrees."""
    kind = "bytes" if X.dtype == np.uint8 and not network.code_columns else "numbers"
    if network.input_scale is None:
        return (1 / 255 if kind == "bytes" else 1.0), kind
    if network.input_kind not in (None, kind):
        trained = "uint8, scaled by 1/255" if network.input_kind == "bytes" else "numbers other than bytes, unscaled"
        fix = "give uint8" if network.input_kind == "bytes" else f"convert {name} as you did the training data"
        raise DataError(f"{name}: this network was trained on {trained}; got {X.dtype}: {fix}")
    return network.input_scale, network.input_kind


def _convert(
    network: Network, name: str, X: Any, dtype: np.dtype, scale: float | Scaling, first: int, last: int
) -> Array:
    """Rows first..last as a C-contiguous (m, n_in) array of this dtype, times `scale`, with all numbers finite.

    A learned scale is applied in float64, before anything is rounded. On the host, or on the network's device if X is
    there.
    """
    backend = network.backend
    m, n_in = last - first, network.layer_sizes[0]
    columns = None
    if isinstance(X, Rows):
        columns, X = X.columns, X if X.values is None else X.values
    if is_device_array(X):
        source = backend_of(X)
        if source is backend:
            xp, rows = backend.xp, X.reshape(X.shape[0], n_in)[first:last]
            if isinstance(scale, Scaling):
                converted = backend.empty((m, n_in), dtype)
                for start, stop in _chunks(m, n_in):
                    part = rows[start:stop].astype(np.float64)
                    if not bool(xp.isfinite(part).all()):
                        _raise_non_finite(name, backend.to_numpy(part), first + start, part.dtype)
                    converted[start:stop] = scale(backend, part).astype(dtype)
            else:
                # scaled in the network's dtype, as on the host
                converted = rows.astype(dtype, copy=scale != 1)
                if scale != 1:
                    converted *= dtype.type(scale)
            if dtype.kind == "f" and not bool(xp.isfinite(converted).all()):
                _raise_non_finite(name, backend.to_numpy(converted), first, dtype)
            return xp.ascontiguousarray(converted)
        X = source.to_numpy(X)
    if _needs_no_conversion(X, dtype, scale):
        host = X.reshape(X.shape[0], n_in)[first:last]
        for start, stop in _chunks(m, n_in):
            _check_finite(name, host[start:stop], first + start, dtype, columns)
        return host
    host = new_host_array(name, (m, n_in), dtype)
    for start, stop in _chunks(m, n_in):
        rows = host[start:stop]
        values = read(name, X, slice(first + start, first + stop)).reshape(stop - start, n_in)
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(scale, Scaling):
                values = values.astype(np.float64)
                _check_finite(name, values, first + start, values.dtype, columns)
                values = scale(backend, values)
            rows[...] = values
        if not isinstance(scale, Scaling) and scale != 1:
            rows *= dtype.type(scale)
        _check_finite(name, rows, first + start, dtype, columns)
    return host


def _stream(
    network: Network, X: Any, scale: float | Scaling, name: str, memory: int, window: int | None
) -> Stream | None:
    """X in its file, if it is in one and takes more than this memory."""
    stays_bytes = _stays_bytes(X, scale)
    dtype, n_in = X.dtype if stays_bytes else network.dtype, network.layer_sizes[0]
    if is_device_array(X) or (not window and X.shape[0] * n_in * dtype.itemsize <= memory):
        return None
    source = storage_of(name, X)
    if source is None or (window == 0 and source.band is not None):
        return None
    columns = X.columns if isinstance(X, Rows) else None
    factor = 1.0 if stays_bytes else scale

    def convert(values: np.ndarray, out: np.ndarray, rows: np.ndarray, check: bool) -> None:
        if values is not out or isinstance(factor, Scaling):
            with np.errstate(over="ignore"):
                if isinstance(factor, Scaling):
                    values = values.reshape(out.shape).astype(np.float64)
                    _check_finite(name, values, rows, values.dtype, columns)
                    values = factor(network.backend, values)
                out[...] = values.reshape(out.shape)
        if not isinstance(factor, Scaling) and factor != 1:
            out *= dtype.type(factor)
        if check:
            _check_finite(name, out, rows, dtype, columns)

    return Stream(source, n_in, dtype, convert, memory, window)


def _needs_no_conversion(X: Any, dtype: np.dtype, scale: float | Scaling) -> bool:
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


def _whole_bands(X: Any, rows: int) -> int:
    """About so many rows, but whole chunks of a file: one that is read in two parts is unpacked twice."""
    chunks = getattr(X, "chunks", None) if type(X).__module__.startswith("h5py") else None
    band = chunks[0] if chunks else getattr(X, "band", None) or 1
    return max(rows - rows % band, min(band, 4 * rows))


def _chunks(m: int, n_in: int, X: Any = None) -> Iterator[tuple[int, int]]:
    step = _whole_bands(X, max(1, CHUNK // n_in))
    for start in range(0, m, step):
        yield start, min(start + step, m)


def _check_finite(
    name: str, rows: np.ndarray, start: int | np.ndarray, dtype: np.dtype, columns: Sequence[Any] | None
) -> None:
    """DataError where a number is not finite; the rows are the examples from `start` on, or those of these numbers."""
    if dtype.kind != "f":
        return
    # a finite sum means that every term is finite; otherwise (it may only have overflowed) check each number
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(rows.sum())
    if suspect and not np.isfinite(rows).all():
        _raise_non_finite(name, rows, start, dtype, columns)


def _raise_non_finite(
    name: str, rows: np.ndarray, start: int | np.ndarray, dtype: np.dtype, columns: Sequence[Any] | None = None
) -> None:
    row, column = np.argwhere(~np.isfinite(rows))[0]
    where = f"feature {column}" if columns is None else f"column {columns[column]!r}"
    raise DataError(
        f"{name}: expected finite numbers, got {rows[row, column]} in {dtype} at example "
        f"{start[row] if isinstance(start, np.ndarray) else start + row}, "
        f"{where}: remove or fill it"
    )


# --------------------------------------------------------------------------------------------- targets


def targets_for(
    network: Network, Y: Any, m: int, name: str = "Y", X_name: str = "X", missing: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Y in the form that the network's output expects.

    sigmoid, one unit   (m,) or (m, 1), values in [0, 1]              -> (m, 1) in the network's dtype
    sigmoid, K units    (m, K), values in [0, 1]                      -> (m, K)
    softmax, K units    (m,) or (m, 1) class numbers, or one-hot (m, K) -> (m, 1) int64
    linear, K units     (m, K); also (m,) for one unit                -> (m, K), in float64 if they are yet to be scaled

    With `missing`, and where there are nan: 0 in their place, and 1 for every target that is known, 0 for the others.
    """
    given, Y = Y, as_array(name, Y)
    names = names_with(given)
    Y = backend_of(Y).to_numpy(Y) if is_device_array(Y) else read(name, Y, ...)
    K = network.targets
    if Y.ndim == 0 or Y.size == 0:
        raise DataError(f"{name}: expected one label per example, got shape {Y.shape}")
    if Y.dtype.kind == "V":  # bfloat16 and its kin, which NumPy's functions do not take
        Y = Y.astype(np.float64)
    if Y.ndim == 2 and Y.shape[0] != m and Y.shape[1] == m:
        raise DataError(f"{name}: expected one label per row, got shape {Y.shape}: transpose it (Y.T)")
    if Y.shape[0] != m:
        raise DataError(f"{name}: expected {m} labels, as many as {X_name} has examples, got {Y.shape[0]}")
    if Y.ndim == 1:
        Y = Y.reshape(m, 1)
    if names is not None and network.output != "linear":
        Y = _by_name(network, name, Y, names)
    if network.output == "softmax":
        return _class_numbers(name, Y, K), None
    if Y.ndim != 2 or Y.shape[1] != K:
        hint = ": class numbers need output='softmax'" if network.output == "sigmoid" and Y.shape[1:] == (1,) else ""
        raise DataError(
            f"{name}: layer {len(network.layer_sizes) - 1} has {K} {network.output} unit{'s' if K != 1 else ''}, "
            f"so expected shape ({m}, {K}), got {Y.shape}{hint}"
        )
    with np.errstate(over="ignore"):
        dtype = network.dtype if network.target_scale is None else np.dtype(np.float64)
        Y = np.ascontiguousarray(Y, dtype=dtype)
    known = None
    if missing and np.isnan(Y).any():
        known = (~np.isnan(Y)).astype(network.dtype)
        Y = np.where(known > 0, Y, 0)
    check = getattr(network.loss_function, "check_targets", None)
    if not np.isfinite(Y).all():
        raise DataError(f"{name}: expected finite numbers, got {Y[~np.isfinite(Y)][0]} in {Y.dtype}")
    if network.output == "sigmoid" and (Y.min() < 0 or Y.max() > 1):
        wrong = Y[(Y < 0) | (Y > 1)][0]
        raise DataError(
            f"{name}: a sigmoid output takes labels 0 and 1 (or probabilities in between), got {wrong:g}: number the "
            "classes 0 and 1, or use output='softmax' for more than two classes, 'linear' for real values"
        )
    if check is not None:
        check(Y)
    return Y, known


def check_known(
    name: str,
    names: Sequence[str],
    classes: Sequence[str],
    used: Sequence[str] | None = None,
    fix: str = "use data of the network's classes, named alike",
) -> None:
    """DataError unless each of these names, or of those used, is that of one class of the network."""
    distinct = len(set(names)) == len(names) and len(set(classes)) == len(classes)
    if not distinct or not set(names if used is None else used) <= set(classes):
        raise _other_classes(name, names, classes, fix)


def _other_classes(name: str, names: Sequence[str], classes: Sequence[str], fix: str) -> DataError:
    return DataError(
        f"{name}: expected data of this network's classes, {enumerated(classes)}; got {enumerated(names)}: {fix}"
    )


def _by_name(network: Network, name: str, Y: np.ndarray, names: list[str]) -> np.ndarray:
    """Y (m, 1) class numbers, or (m, K), numbered as the network's classes are, where the data's are others."""
    classes, columns = network.classes, Y.shape[1:] == (len(names),) and len(names) > 1
    if classes is None or names == classes or not np.isfinite(Y).all():
        return Y
    if not columns and (Y.shape[1:] != (1,) or (np.floor(Y) != Y).any()):
        raise _other_classes(name, names, classes, "only class numbers or a column per class can be matched by name")
    if columns and network.output == "sigmoid":
        used = names
        if set(names) != set(classes):  # a label that the data leaves out is unknown, not absent
            raise _other_classes(name, names, classes, "each of them needs its column")
    else:
        numbers = np.flatnonzero(Y.any(axis=0)) if columns else np.unique(Y)
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= len(names):
            wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
            raise DataError(f"{name}: label {wrong} is out of range: list_classes names {len(names)} classes")
        used = [names[int(number)] for number in numbers]
    check_known(name, names, classes, used)
    ours = np.array([classes.index(n) if n in classes else -1 for n in names])
    if not columns:
        return ours[Y.astype(np.int64)]
    renumbered = np.zeros((len(Y), len(classes)), Y.dtype)
    renumbered[:, ours[ours >= 0]] = Y[:, ours >= 0]
    return renumbered


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
