"""What a training takes of the device's memory, known before it is taken: the plans of its steps, built but not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dnn.backends import Array, Feeder, log_once
from dnn.backends.plan.stepwise import temporary_bytes
from dnn.batches import batches_of, is_loaded, loaded, loading_plan
from dnn.callbacks import EarlyStopping
from dnn.data import Examples
from dnn.data.streaming import PART_BYTES, Stream, bytes_ahead, part_size
from dnn.errors import NotEnoughMemoryError
from dnn.layers import walk
from dnn.network import Network
from dnn.settings import FitSettings
from dnn.state import Snapshot, TrainingState
from dnn.step import ACCUMULATE, FED, GATHERED, IN_PLACE, TRAIN, Order, Step, load_dtype
from dnn.updating import keeps_of

GB = 1e9
RESERVED_BYTES = 256_000_000
"""That no X is moved into: kernels, graphs and the batches of an evaluation are not estimated."""


def place(
    network: Network,
    examples: Examples,
    validation: Examples | None,
    rows: np.ndarray,
    settings: FitSettings,
    precision: str | None,
) -> tuple[Examples, Examples | None]:
    """The examples to fit, those rows of them, and those to validate on, each with its X on the device where it fits.

    The room is what is free, or `limit` GB, beside what the training takes. An X that does not fit in it stays on the
    host, and its batches are fed. NotEnoughMemoryError where there is no room even so: it names the need, what is free,
    and the largest batch that fits.
    """
    backend = network.backend
    free, _ = backend.memory()
    limit = settings.memory_limit
    room = free if limit is None else int(min(free, limit * GB))
    batch_size = min(settings.batch_size, len(rows))

    streamed = isinstance(examples.X, Stream)

    def to_move(X: Array) -> int:
        return 0 if backend.owns(X) or isinstance(X, Stream) else X.nbytes

    def needs(size: int, fed: bool) -> int:
        return training_bytes(network, examples, rows, size, settings, fed, precision)

    if limit is None and _at_most(network, examples, validation, batch_size) < free:
        return examples.on(backend), None if validation is None else validation.on(backend)
    needed = needs(batch_size, streamed) + to_move(examples.X)
    fed = streamed
    if to_move(examples.X) and needed > min(room, free - RESERVED_BYTES):
        needed_fed = needs(batch_size, True)
        fed = needed_fed < needed  # a large batch's buffers may take more than X
        needed = min(needed, needed_fed)
    if needed > room:
        fits = _largest(batch_size, lambda size: needs(size, streamed or bool(to_move(examples.X))) <= room)
        if fits:
            fix = f"the largest batch that fits is {fits}, not {batch_size}"
        else:
            fix = "no batch fits: make the layers smaller, or take an optimizer that keeps less"
        allowed = "allowed by memory_limit" if room < free else "free"
        raise NotEnoughMemoryError(
            f"training takes {needed / GB:.3g} GB on {backend.name}, {room / GB:.3g} GB are {allowed}: {fix}"
        )
    if fed and not streamed:
        log_once(
            f"X takes {examples.X.nbytes / GB:.3g} GB, more than {backend.name} has room for beside the training: "
            "it stays on the host, and its batches are copied while the device computes"
        )
    elif not streamed:
        examples = examples.on(backend)
    if validation is not None and needed + to_move(validation.X) <= min(room, free - RESERVED_BYTES):
        validation = validation.on(backend)
    return examples, validation


def _at_most(network: Network, examples: Examples, validation: Examples | None, batch_size: int) -> int:
    """More bytes than any training of this network takes: where they are free, no plan need be built to know more."""
    arrays_of_a_batch = arrays_of_the_weights = 64
    width = sum(n_in for _, _, n_in, _ in walk(network.stack, network.layer_sizes[0])) + sum(network.layer_sizes)
    sizes = arrays_of_a_batch * batch_size * network.members * width + arrays_of_the_weights * network.n_parameters
    data = sum(2 * _in_memory(part.X) for part in (examples, validation) if part is not None)
    return 8 * sizes + 32 * examples.m + data + RESERVED_BYTES


def _in_memory(X: Array) -> int:
    return X.memory + PART_BYTES if isinstance(X, Stream) else X.nbytes


class _Shape:
    """An array that is not there: what a plan has to know of it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.nbytes = int(np.prod(shape)) * dtype.itemsize


def training_bytes(
    network: Network,
    examples: Examples,
    rows: np.ndarray,
    batch_size: int,
    settings: FitSettings,
    fed: bool = False,
    precision: str | None = None,
) -> int:
    """Bytes that a fit allocates on the device, beyond the examples and the weights that are there already.

    `fed`: X is not there, its batches are brought one by one.
    """
    backend, parameters, m = network.backend, network.parameters, len(rows)
    updating = settings.updating(per_epoch=1)
    optimizer, keeps = updating.optimizer, keeps_of(network, updating)
    dtype = load_dtype(network, precision)
    layout = TrainingState.layout(optimizer, parameters, precision, keeps)
    arrays: dict[str, Array] = {name: _Shape(shape, kind) for name, (shape, kind, _) in layout.items()}
    before = network.training_state
    if before is not None and optimizer.continues(before.optimizer):
        arrays |= before.kept(precision)
    total = sum(array.nbytes for array in arrays.values() if isinstance(array, _Shape))
    total += Snapshot.nbytes(optimizer, parameters, arrays, network.layer_state)
    total += _copies(settings) * (parameters.flat.nbytes + network.layer_state.flat.nbytes)
    alone, n_in = batch_size >= m, network.layer_sizes[0]
    loading, order = GATHERED, None
    if not alone:
        stream = examples.X if isinstance(examples.X, Stream) and backend.owns(np.empty(0)) else None
        n = m if stream is None else 2 * part_size(stream, batch_size, network.members)
        order = Order(_Shape((n * network.members,), np.dtype(np.int64)), _Shape((1,), np.dtype(np.int64)))
        total += 2 * order.rows.nbytes + order.position.nbytes  # the order, and another that it is replaced by
        if stream is not None:
            total += bytes_ahead(stream, batch_size, network.members) + 4 * m * network.members
            rings = {
                name: _Shape((n * network.members, array.shape[1]), array.dtype)
                for name, array in examples.arrays().items()
                if array is not None
            }
            examples, fed = replace(examples, **rings), False
    if alone:
        loading = IN_PLACE
        if fed or not is_loaded(examples, rows, dtype):
            plan, buffers = loading_plan(examples, m, dtype, fed)
            total += temporary_bytes(plan, backend) + 8 * m
            total += m * n_in * examples.X.dtype.itemsize if fed else 0
            examples = loaded(examples, buffers)
    elif fed:
        loading = FED
        total += Feeder.AHEAD * network.members * batch_size * n_in * examples.X.dtype.itemsize
    for size, waits in dict.fromkeys(batches_of(m, min(batch_size, m), updating.accumulate)):
        goal = ACCUMULATE if waits else TRAIN
        total += Step(network, examples, size, goal, loading, updating, arrays, precision, order).nbytes()
    return total


def _copies(settings: FitSettings) -> int:
    """Of the weights, at the end: those trained, those the network is left with, and the best."""
    stopping = settings.early_stopping
    restores = isinstance(stopping, EarlyStopping) and stopping.restore_best
    return 3 if restores else 2 if settings.moving_average is not None else 0


def _largest(too_large: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `too_large` that fits, 0 where none does."""
    found = 0
    while too_large - found > 1:
        middle = (found + too_large) // 2
        if fits(middle):
            found = middle
        else:
            too_large = middle
    return found
