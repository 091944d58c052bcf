"""What a training takes of the device's memory, reckoned before it is taken."""

from __future__ import annotations

import numpy as np

from dnn.data import Examples
from dnn.errors import NotEnoughMemoryError
from dnn.network import Network
from dnn.optimizers import Optimizer

GB = 1e9


def check_memory(
    network: Network,
    examples: Examples,
    m: int,
    batch_size: int,
    optimizer: Optimizer,
    precision: str | None,
    limit: float | None,
) -> None:
    """NotEnoughMemoryError where fitting m of these examples takes more than is free, or than `limit` GB.

    It names the need, what is free, and the largest batch that fits.
    """
    free, _ = network.backend.memory()
    room = free if limit is None else min(free, int(limit * GB))
    batch_size = min(batch_size, m)
    needed = training_bytes(network, examples, m, batch_size, optimizer, precision)
    if needed <= room:
        return
    fits = _largest_batch(network, examples, m, batch_size, optimizer, precision, room)
    if fits:
        fix = f"the largest batch that fits is {fits}, not {batch_size}"
    else:
        fix = "no batch fits: make the layers smaller, or take an optimizer that keeps less"
    allowed = "allowed by memory_limit" if room < free else "free"
    raise NotEnoughMemoryError(
        f"training takes {needed / GB:.3g} GB on {network.backend.name}, {room / GB:.3g} GB are {allowed}: {fix}"
    )


def training_bytes(
    network: Network, examples: Examples, m: int, batch_size: int, optimizer: Optimizer, precision: str | None = None
) -> int:
    """Bytes that a fit allocates on the device, beyond the examples and the weights that are there already."""
    dtype = network.backend.precisions[precision] if precision else network.dtype
    in_place = batch_size == m == examples.m and examples.scale is None and dtype == network.dtype
    # the order of the examples, and the one it is replaced by
    total = 8 * m * (1 if batch_size == m and not in_place else 2)
    if network._update is None or not optimizer.continues(network._update.optimizer):
        # gradients and scratch, and what this optimizer keeps
        total += (2 + len(optimizer.update.state_names)) * network.parameters.flat.nbytes
    if dtype != network.dtype and (network._mixed is None or network._mixed.precision != precision):
        total += 2 * network.parameters.flat.size * dtype.itemsize  # the weights' copy and its gradients
    total += _step_bytes(network, examples, batch_size, in_place, dtype)
    if m % batch_size:
        total += _step_bytes(network, examples, m % batch_size, False, dtype)
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
    whole = 4 * 8 if of_softmax else 0  # labels, starts, index, predicted
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
    precision: str | None,
    room: int,
) -> int:
    """The largest batch below `too_large` that fits in `room` bytes, 0 where none does."""
    fits = 0
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if training_bytes(network, examples, m, middle, optimizer, precision) <= room:
            fits = middle
        else:
            too_large = middle
    return fits
