"""Forward passes over many examples, in batches that bound the memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, new_host_array, prepare_in_parts
from dnn.heads import HEADS
from dnn.network import Network
from dnn.step import EVALUATE, PREDICT, Order, Step

ACTIVATION_BYTES = 16_000_000
"""Of a batch, about: products large enough for all cores, buffers that stay in a large cache."""
COMPILE_MIN_MACS = 20_000_000_000
"""Multiplications from which on compiling a step is worth its few tenths of a second."""


def _batches(network: Network, examples: Examples, rows: np.ndarray | None, goal: str, optimized: bool) -> Batches:
    if rows is None:
        rows = np.arange(examples.m)
    batch_size = max(1, ACTIVATION_BYTES // (network.dtype.itemsize * sum(network.layer_sizes)))

    def bind(examples: Examples, size: int, loading: str, order: Order | None) -> Step:
        return Step(network, examples, size, goal, loading, order=order)

    return Batches(network.backend, examples, rows, batch_size, bind, network.dtype, optimized)


@np.errstate(over="ignore", invalid="ignore")
def outputs(network: Network, X: Any) -> np.ndarray:
    """P (m, K) of all examples, on the host."""
    with network.backend.stream():
        m, parts = prepare_in_parts(network, X)
        P = new_host_array("the predictions", (m, network.layer_sizes[-1]), network.dtype)
        start, optimized = 0, m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            for step in _batches(network, examples, None, PREDICT, optimized):
                P[start : start + step.batch_size] = network.backend.to_numpy(step.array("P"))
                start += step.batch_size
    return P


def evaluate(network: Network, X: Any, Y: Any) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output."""
    loss, metric = 0.0, 0.0
    with network.backend.stream():
        m, parts = prepare_in_parts(network, X, Y)
        optimized = m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            # not kept: the next part would be converted beside this one's memory
            of_part, measured = Evaluation(network, examples, optimized=optimized).totals()
            loss, metric = loss + of_part * (examples.m / m), metric + measured
    return measures(network, loss, metric, m)


class Evaluation:
    """Loss and metric of these rows of the examples, or of all: bound once, for as often as it is called."""

    def __init__(
        self, network: Network, examples: Examples, rows: np.ndarray | None = None, *, optimized: bool
    ) -> None:
        self._network = network
        self._m = examples.m if rows is None else len(rows)
        self._batches = _batches(network, examples, rows, EVALUATE, optimized)

    def __call__(self) -> dict[str, float]:
        return measures(self._network, *self.totals(), self._m)

    @np.errstate(over="ignore", invalid="ignore")
    def totals(self) -> tuple[float, float]:
        """The mean loss and the sum of the metric."""
        self._batches.reset()
        for _ in self._batches.run():
            pass
        return self._batches.totals()


def measures(network: Network, loss: float, metric: float, m: int) -> dict[str, float]:
    """{"loss", metric}: of m examples, from their mean loss and the sum of their metric."""
    measured = HEADS[network.output].metric
    return {"loss": loss, measured.name: float(measured.value(metric, m, network.layer_sizes[-1]))}
