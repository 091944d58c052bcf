"""What a training takes of the device's memory, reckoned before it is taken."""

from __future__ import annotations

import numpy as np

from dnn.backends import Array, Feeder, log_once
from dnn.data import Examples
from dnn.errors import NotEnoughMemoryError
from dnn.network import Network
from dnn.optimizers import Optimizer

GB = 1e9
SPARE = 256_000_000
"""Bytes that no X is moved into: kernels, graphs and the batches of an evaluation are not reckoned."""


def place(
    network: Network,
    examples: Examples,
    validation: Examples | None,
    m: int,
    batch_size: int,
    optimizer: Optimizer,
    precision: str | None,
    limit: float | None,
) -> tuple[Examples, Examples | None]:
    """The examples to fit, m of them, and those to validate on, each with its X on the device where there is room.

    The room is what is free, or `limit` GB, beside what the training takes. An X that does not fit in it stays on the
    host, and its batches are fed. NotEnoughMemoryError where there is no room even so: it names the need, what is free,
    and the largest batch that fits.
    """
    backend = network.backend
    free, _ = backend.memory()
    room = free if limit is None else min(free, int(limit * GB))
    batch_size = min(batch_size, m)

    def to_move(X: Array) -> int:
        return 0 if backend.owns(X) else X.nbytes

    needed = training_bytes(network, examples, m, batch_size, optimizer, False, precision) + to_move(examples.X)
    fed = False
    if to_move(examples.X) and needed > min(room, free - SPARE):
        needed_fed = training_bytes(network, examples, m, batch_size, optimizer, True, precision)
        fed = needed_fed < needed  # a large batch's buffers may take more than X
        needed = min(needed, needed_fed)
    if needed > room:
        feeds = bool(to_move(examples.X))
        fits = _largest_batch(network, examples, m, batch_size, optimizer, feeds, precision, room)
        if fits:
            fix = f"the largest batch that fits is {fits}, not {batch_size}"
        else:
            fix = "no batch fits: make the layers smaller, or take an optimizer that keeps less"
        allowed = "allowed by memory_limit" if room < free else "free"
        raise NotEnoughMemoryError(
            f"training takes {needed / GB:.3g} GB on {backend.name}, {room / GB:.3g} GB are {allowed}: {fix}"
        )
    if fed:
        log_once(
            f"X takes {examples.X.nbytes / GB:.3g} GB, more than {backend.name} has room for beside the training: "
            "it stays on the host, and its batches are copied while the device computes"
        )
    else:
        examples = examples.on(backend)
    if validation is not None and needed + to_move(validation.X) <= min(room, free - SPARE):
        validation = validation.on(backend)
    return examples, validation


def training_bytes(
    network: Network,
    examples: Examples,
    m: int,
    batch_size: int,
    optimizer: Optimizer,
    fed: bool = False,
    precision: str | None = None,
) -> int:
    """Bytes that a fit allocates on the device, beyond the examples and the weights that are there already.

    `fed`: X is not there, its batches are brought one by one.
    """
    dtype = network.backend.precisions[precision] if precision else network.dtype
    in_place = batch_size == m == examples.m and examples.scale is None and dtype == network.dtype and not fed
    # the order of the examples, and the one it is replaced by
    total = 8 * m * (1 if batch_size == m and not in_place else 2)
    if network._update is None or not optimizer.continues(network._update.optimizer):
        # gradients and scratch, and what this optimizer keeps
        total += (2 + len(optimizer.update.state_names)) * network.parameters.flat.nbytes
    if dtype != network.dtype and (network._mixed is None or network._mixed.precision != precision):
        total += 2 * network.parameters.flat.size * dtype.itemsize  # the weights' copy and its gradients
    sizes = [size for size in (batch_size, m % batch_size) if size]
    total += sum(_step_bytes(network, examples, size, in_place, dtype) for size in sizes)
    if fed:
        # the buffers on the device, and the places in them that each step takes its rows from
        total += Feeder.AHEAD * batch_size * network.layer_sizes[0] * examples.X.dtype.itemsize + 8 * sum(sizes)
    return total


def _step_bytes(network: Network, examples: Examples, m: int, in_place: bool, dtype: np.dtype) -> int:
    """Of a step for batches of m that works in this dtype: see `step`, and `outputs`, for the buffers."""
    n_in, *units = network.layer_sizes
    K, of_softmax, of_linear = units[-1], network.output == "softmax", network.output == "linear"
    losses = 1 if of_softmax else K
    mixed = dtype != network.dtype
    working = (0 if in_place else n_in) + sum(units) + max(units) + sum(units[:-1])  # X, A, scratch, dZ of hidden
    working += 1 + (K if mixed else 0)  # a vector of ones; the output's dZ
    numbers = (2 if of_linear else 3) * K + 2 * losses  # P, Y, dZ, losses, hits
    numbers += 2 + (1 if of_softmax else 0) + (K if mixed else 0)  # vectors of ones and weights; a column; the logits
    whole = 8 + (4 * 8 if of_softmax else 0)  # rows; labels, starts, index, predicted
    sides = 2 * K if network.output == "sigmoid" else 0
    unscaled = n_in * examples.X.dtype.itemsize if mixed or examples.scale is not None else 0
    row = 2 * losses + (K if of_softmax else 0)  # what is one to a unit
    itemsize = np.dtype(network.dtype).itemsize
    return m * (working * dtype.itemsize + numbers * itemsize + whole + sides + unscaled) + row * itemsize


def _largest_batch(
    network: Network,
    examples: Examples,
    m: int,
    too_large: int,
    optimizer: Optimizer,
    fed: bool,
    precision: str | None,
    room: int,
) -> int:
    """The largest batch below `too_large` that fits in `room` bytes, 0 where none does."""
    fits = 0
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if training_bytes(network, examples, m, middle, optimizer, fed, precision) <= room:
            fits = middle
        else:
            too_large = middle
    return fits
