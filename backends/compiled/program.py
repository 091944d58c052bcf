"""From a step, whose every operation is a function of dnn.functional, to a program for compiled code.

The step is recorded, not run: each function notes its name and arguments. What each operation reads and writes then
says what may be moved and where the threads must wait for each other:

    by rows    forward, loss, backward to the inputs: every thread with its own examples, waiting for nobody
    barrier
    by theta   every thread owns a part of theta: the gradients of just that part, and their update
    barrier
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dnn.backends.base import Array, log_once
from dnn.backends.compiled import kernels
from dnn.backends.compiled.kernels import FIRST, ROWS, THETA, UNITS
from dnn.backends.compiled.recording import recorded

FEW_ROWS = 32
"""A thread's rows, below which it rather takes some units of all rows: a product's inner loop needs rows to reuse W."""


WORTH = 1_500_000
"""Multiplications that a thread must have of its own to be worth the meeting."""

MANY_WEIGHTS = 8_000_000
"""Of one layer, more than a cache holds."""


UPDATES = kernels.SGD, kernels.MOMENTUM, kernels.ADAM


class NotCapturable(Exception):
    """What a step does that compiled code cannot."""


# ------------------------------------------------------------------------------------------ operations

Arrays = tuple[Array, ...]


@dataclass(eq=False)
class Operation:
    """A row of the table, and the arrays that it reads and writes."""

    kind: int
    whose: int
    sizes: tuple[int, ...]
    """(m, n) or (m, n, k): see the columns M, N and K of the table."""
    reads: Arrays = ()
    writes: Arrays = ()
    arguments: Arrays = ()
    """Those whose addresses stand in the table, in its order."""
    flag: int = 0
    work: int = 0
    """Multiplications, about."""

    @property
    def m(self) -> int:
        return self.sizes[0]

    @property
    def n(self) -> int:
        return self.sizes[1]

    @cached_property
    def places(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Where in memory it reads, and where it writes: from, to."""
        read, written = (
            [np.lib.array_utils.byte_bounds(array) for array in kind] for kind in (self.reads, self.writes)
        )
        return read, written

    def conflicts(self, other: Operation) -> bool:
        """Whether the order of the two matters."""
        (read, written), (others_read, others_written) = self.places, other.places
        pairs = ((written, others_read + others_written), (read, others_written))
        return any(a[0] < b[1] and b[0] < a[1] for mine, theirs in pairs for a in mine for b in theirs)

    def apart(self, other: Operation) -> bool:
        """Whether each thread's share of the one needs nothing of the others' shares of the other."""
        return self.whose == other.whose and (
            self.whose in (THETA, FIRST) or (self.whose == ROWS and self.m == other.m)
        )


def _is_transpose(A: Array) -> int:
    return 0 if A.flags.c_contiguous else 1


def _linear(kind: int) -> Callable[..., list[Operation]]:
    def operations(A_prev: Array, W: Array, b: Array, out: Array, scratch: Array) -> list[Operation]:
        if kind in (kernels.LINEAR_TANH, kernels.LINEAR_SIGMOID) and out.dtype != np.float32:
            raise NotCapturable(f"an activation with exp in {out.dtype} is faster in NumPy")
        (m, n), k = out.shape, W.shape[1]
        arrays, flag = (A_prev, W, b, out, scratch), _is_transpose(A_prev)
        return [Operation(kind, ROWS, (m, n, k), (A_prev, W, b), (out, scratch), arrays, flag, m * n * k)]

    return operations


def _linear_backward(
    dZ: Array, A_prev: Array, W: Array, ones: Array, dW: Array, db: Array, dA_prev: Array | None, **_: Any
) -> list[Operation]:
    (n, k), m = W.shape, len(dZ)
    arrays: Arrays = (dZ, A_prev, dW, ones, db)
    flag, work = _is_transpose(A_prev), m * n * k
    found = [Operation(kernels.GRADIENTS, THETA, (m, n, k), (dZ, A_prev), (dW, db), arrays, flag, work)]
    if dA_prev is not None:
        arrays = dZ, W, dA_prev
        found.append(Operation(kernels.INPUT_GRADIENT, ROWS, (m, k, n), (dZ, W), (dA_prev,), arrays, 0, work))
    return found


def _activation_backward(kind: int) -> Callable[..., list[Operation]]:
    def operations(dA: Array, A: Array, out: Array, **_: Any) -> list[Operation]:
        return [Operation(kind, ROWS, A.shape, (dA, A), (out,), (dA, A, out))]

    return operations


def _gather(source: Array, rows: Array, scale: Any, out: Array, **_: Any) -> list[Operation]:
    arrays: Arrays = (source, rows, out)
    kind = kernels.GATHER_WHOLE if source.dtype == np.int64 else kernels.GATHER
    if source.dtype != (out.dtype if scale is None else np.uint8):
        raise NotCapturable(f"a batch of {source.dtype} for {out.dtype} has no compiled version")
    if scale is not None:
        kind, arrays = kernels.GATHER_SCALED, (*arrays, np.array([scale], out.dtype))
    return [Operation(kind, ROWS, (*out.shape, source.size), (source, rows), (out,), arrays)]


def _one_hot(labels: Array, out: Array, **_: Any) -> list[Operation]:
    return [Operation(kernels.ONE_HOT, ROWS, out.shape, (labels,), (out,), (labels, out))]


def _output(kind: int) -> Callable[..., list[Operation]]:
    def operations(Z: Array, out: Array, **_: Any) -> list[Operation]:
        return [Operation(kind, ROWS, Z.shape, (Z,), (out,), (Z, out))]

    return operations


def _softmax_cross_entropy(
    Z: Array, labels: Array, scale: float, P: Array, dZ: Array, losses: Array, hits: Array, **_: Any
) -> list[Operation]:
    results = P, dZ, losses, hits
    numbers = np.array([scale], Z.dtype), np.array([np.finfo(Z.dtype).min / 2], Z.dtype)
    arrays = Z, labels, *numbers, *results
    return [Operation(kernels.SOFTMAX_CROSS_ENTROPY, ROWS, Z.shape, (Z, labels), results, arrays)]


def _sigmoid_cross_entropy(
    Z: Array, Y: Array, scale: float, P: Array, dZ: Array, losses: Array, hits: Array, **_: Any
) -> list[Operation]:
    results = P, dZ, losses, hits
    arrays = Z, Y, np.array([scale], Z.dtype), *results
    return [Operation(kernels.SIGMOID_CROSS_ENTROPY, ROWS, Z.shape, (Z, Y), results, arrays)]


def _squared_error(Z: Array, Y: Array, scale: float, dZ: Array, losses: Array, **_: Any) -> list[Operation]:
    arrays = Z, Y, np.array([scale], Z.dtype), dZ, losses
    return [Operation(kernels.SQUARED_ERROR, ROWS, Z.shape, (Z, Y), (dZ, losses), arrays)]


def _tally(
    losses: Array,
    hits: Array,
    weights: Array,
    loss: Array,
    correct: Array,
    loss_total: Array,
    correct_total: Array,
    **_: Any,
) -> list[Operation]:
    results = loss, correct, loss_total, correct_total
    return [Operation(kernels.TALLY, FIRST, losses.shape, (losses, hits), results, (losses, hits, weights, *results))]


def _update(kind: int, state: tuple[str, ...], factors: tuple[str, ...]) -> Callable[..., list[Operation]]:
    """theta, grad, the state that it keeps, and its factors."""

    def operations(theta: Array, grad: Array, **given: Any) -> list[Operation]:
        kept = tuple(given[name] for name in state)
        numbers = tuple(given[name] for name in factors)
        arrays = theta, grad, *kept, *numbers
        return [Operation(kind, THETA, (1, theta.size), (grad, *numbers), (theta, *kept), arrays, work=theta.size)]

    return operations


def _adam_factors(
    learning_rate: Array,
    eps: float,
    betas: Array,
    one_minus_betas: Array,
    decays: Array,
    powers: Array,
    c: Array,
    step_size: Array,
    epsilon: Array,
    **_: Any,
) -> list[Operation]:
    results = powers, c, step_size, epsilon
    arrays = learning_rate, np.array([eps]), betas, one_minus_betas, decays, *results
    return [Operation(kernels.ADAM_FACTORS, FIRST, (1, 1), (learning_rate, decays), results, arrays)]


OPERATIONS: Mapping[str, Callable[..., list[Operation]]] = {
    "gather": _gather,
    "one_hot": _one_hot,
    "linear_forward": _linear(kernels.LINEAR),
    "linear_relu": _linear(kernels.LINEAR_RELU),
    "linear_tanh": _linear(kernels.LINEAR_TANH),
    "linear_sigmoid": _linear(kernels.LINEAR_SIGMOID),
    "linear_backward": _linear_backward,
    "relu_backward": _activation_backward(kernels.RELU_BACKWARD),
    "tanh_backward": _activation_backward(kernels.TANH_BACKWARD),
    "sigmoid_backward": _activation_backward(kernels.SIGMOID_BACKWARD),
    "sigmoid": _output(kernels.SIGMOID),
    "softmax": _output(kernels.SOFTMAX),
    "sigmoid_cross_entropy": _sigmoid_cross_entropy,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "squared_error": _squared_error,
    "tally": _tally,
    "sgd": _update(kernels.SGD, (), ("learning_rate",)),
    "momentum": _update(kernels.MOMENTUM, ("velocity",), ("learning_rate", "momentum")),
    "adam": _update(kernels.ADAM, ("m", "v"), ("step_size", "epsilon", "beta1", "beta2")),
    "adam_factors": _adam_factors,
}
"""By the specification's name: what makes its operations from a call's arguments."""


# --------------------------------------------------------------------------------------------- program


class Program:
    """A step's operations in the order in which threads can share them, and their table."""

    def __init__(self, step: Callable[[], None], threads: int, complete: bool = True) -> None:
        """NotCapturable where the step does something that compiled code cannot; a complete one updates theta."""
        with recorded() as calls:
            step()
        found: list[Operation] = []
        for name, arguments in calls:
            if name not in OPERATIONS:
                raise NotCapturable(f"{name} has no compiled version")
            arguments.pop("xp")
            found += OPERATIONS[name](**arguments)
        if complete and any(o.kind == kernels.GRADIENTS for o in found) and not any(o.kind in UPDATES for o in found):
            raise NotCapturable("its update is none that Backend.fused gave")
        self.dtype = _dtype(found)
        started = time.perf_counter()
        try:
            kernels.compile_for(self.dtype)
        except Exception as cause:  # no room for the machine code, a Numba that does not fit: the step runs as well
            raise NotCapturable(f"it cannot be compiled: {cause}") from cause
        if (seconds := time.perf_counter() - started) > 2:
            log_once(f"steps in {self.dtype} were compiled for this machine in {seconds:.0f} s, once")
        self.work = sum(operation.work for operation in found)
        found = [_by_units(operation, self.threads(threads)) for operation in found]
        self._operations = _with_barriers(_in_order(found))
        self.table = np.zeros((len(self._operations), kernels.COLUMNS), np.int64)
        self._theta, flat = _theta(found)
        widest = max((o.n for o in found if o.kind in kernels.LINEARS), default=0)
        for row, operation in zip(self.table, self._operations, strict=True):
            row[[kernels.KIND, kernels.WHOSE, kernels.FLAG]] = operation.kind, operation.whose, operation.flag
            row[kernels.M : kernels.M + len(operation.sizes)] = operation.sizes
            places = [array.ctypes.data for array in operation.arguments]
            if operation.kind in kernels.LINEARS:
                places.append(widest)
            if operation.kind == kernels.GRADIENTS:
                # where dW and db lie in the flat gradients, as theta is shared out
                for array in (operation.arguments[2], operation.arguments[4]):
                    places.append((array.ctypes.data - flat) // self.dtype.itemsize)
            row[kernels.AT : kernels.AT + len(places)] = places

    def threads(self, available: int) -> int:
        """As many of them as have work enough of their own."""
        return int(max(1, min(available, self.work // WORTH)))

    def bounds(self, threads: int) -> np.ndarray:
        """Where each thread's part of theta begins, and where the last one's ends: at rows of W."""
        bounds = [0]
        for thread in range(1, threads):
            place = self._theta * thread // threads
            for row in self.table[self.table[:, kernels.KIND] == kernels.GRADIENTS]:
                n, k, first = row[kernels.N], row[kernels.K], row[kernels.AT + 5]
                if first <= place < first + n * k:
                    place = first + round((place - first) / k) * k
                    break
            bounds.append(max(int(place), bounds[-1]))
        return np.array([*bounds, self._theta], np.int64)


def _dtype(operations: list[Operation]) -> np.dtype:
    """The dtype of all floating numbers, but for those that are float64 by contract."""
    mixed = (kernels.TALLY, kernels.ADAM_FACTORS)
    arrays = [(array, operation) for operation in operations for array in operation.arguments]
    found = {array.dtype for array, operation in arrays if array.dtype.kind == "f" and operation.kind not in mixed}
    found = found or {array.dtype for array, _ in arrays if array.dtype.kind == "f"} - {np.dtype(np.float64)}
    found = found or {np.dtype(np.float64)}
    if len(found) > 1 or not found <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise NotCapturable(f"{' with '.join(sorted(map(str, found)))} has no compiled version")
    for array, operation in arrays:
        if not (array.flags.c_contiguous or (operation.work and array.flags.f_contiguous)):
            raise NotCapturable("it uses an array that is not contiguous")
        if array.dtype.kind != "f" and array.dtype not in (np.int64, np.uint8):
            raise NotCapturable(f"{array.dtype} has no compiled version")
    return found.pop()


def _theta(operations: list[Operation]) -> tuple[int, int]:
    """The numbers in the gradients, from the first to the last, and where the first stands in memory."""
    updates = [o.arguments[1] for o in operations if o.kind in UPDATES]
    gradients = updates or [array for o in operations if o.kind == kernels.GRADIENTS for array in o.writes]
    if not gradients:
        return 0, 0
    lows, highs = zip(*map(np.lib.array_utils.byte_bounds, gradients), strict=True)
    return (max(highs) - min(lows)) // gradients[0].itemsize, min(lows)


def _by_units(operation: Operation, threads: int) -> Operation:
    """The layers' operations shared out by units, where each thread had too few rows, or W is better read once."""
    few_rows = operation.m < FEW_ROWS * threads or math.prod(operation.sizes[1:]) > MANY_WEIGHTS
    if operation.kind in kernels.OF_LAYERS and few_rows and operation.n >= 16 * threads:
        return replace(operation, whose=UNITS)
    return operation


def _in_order(operations: list[Operation]) -> list[Operation]:
    """What belongs to a part of theta, and the tally, after all the rest: one barrier between, not one a layer."""
    early: list[Operation] = []
    late: list[Operation] = []
    for operation in operations:
        if operation.whose == THETA or operation.kind == kernels.TALLY:
            late.append(operation)
        elif any(before.conflicts(operation) for before in late):
            raise NotCapturable("it has an order that cannot be changed")
        else:
            early.append(operation)
    return early + late


def _with_barriers(operations: list[Operation]) -> list[Operation]:
    """A barrier before each operation that needs what other threads did since the last; and one at the end."""
    barrier = Operation(kernels.BARRIER, FIRST, (0, 0))
    found: list[Operation] = []
    since: list[Operation] = []
    for operation in operations:
        if any(not before.apart(operation) and before.conflicts(operation) for before in since):
            found.append(barrier)
            since = []
        found.append(operation)
        since.append(operation)
    return [*found, barrier]
