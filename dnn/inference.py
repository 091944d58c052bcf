"""Forward passes over many examples, in batches that bound the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, new_host_array, prepare_in_parts
from dnn.outputs import OUTPUTS
from dnn.step import Forward

if TYPE_CHECKING:
    from dnn.network import Network

ACTIVATION_BYTES = 16_000_000
"""Of a batch, about: products large enough for all cores, buffers that stay in a large cache."""


LONG = 20_000_000_000
"""Multiplications from which on it is worth to have what compiles programs in memory: some tenths of a second."""


def _batches(
    network: Network,
    examples: Examples,
    rows: np.ndarray | None,
    work: Callable[[Forward], Callable[[], None]],
    capture: bool,
) -> Batches[Forward]:
    if rows is None:
        rows = np.arange(examples.m)
    batch_size = max(1, ACTIVATION_BYTES // (network.dtype.itemsize * sum(network.layer_sizes)))
    if examples.m <= batch_size:
        examples = examples.on(network.backend)  # of one batch there is nothing to bring in parts
    bind = lambda size: Forward(network, examples, size)  # noqa: E731
    return Batches(network.backend, examples, rows, batch_size, bind, work, capture)


@np.errstate(over="ignore", invalid="ignore")
def outputs(network: Network, X: Any) -> np.ndarray:
    """P (m, K) of all examples, on the host."""
    with network.backend.stream():
        m, parts = prepare_in_parts(network, X)
        P = new_host_array("the predictions", (m, network.layer_sizes[-1]), network.dtype)
        start, capture = 0, m * network.n_parameters > LONG
        for examples in parts:
            for step in _batches(network, examples, None, lambda step: step.predict, capture):
                P[start : start + step.batch_size] = network.backend.to_numpy(step.output.P)
                start += step.batch_size
    return P


def evaluate(network: Network, X: Any, Y: Any) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output."""
    loss, correct = 0.0, 0.0
    with network.backend.stream():
        m, parts = prepare_in_parts(network, X, Y)
        for examples in parts:
            of_part, hits = Evaluation(network, examples, capture=m * network.n_parameters > LONG).totals()
            loss, correct = loss + of_part * (examples.m / m), correct + hits
    return measures(network, loss, correct, m)


class Evaluation:
    """Loss and metric of these rows of the examples, or of all: bound once, for as often as it is called."""

    def __init__(self, network: Network, examples: Examples, rows: np.ndarray | None = None, *, capture: bool) -> None:
        self._network = network
        self._m = examples.m if rows is None else len(rows)
        self._batches = _batches(network, examples, rows, lambda step: step.evaluate, capture)

    def __call__(self) -> dict[str, float]:
        return measures(self._network, *self.totals(), self._m)

    @np.errstate(over="ignore", invalid="ignore")
    def totals(self) -> tuple[float, float]:
        """The mean loss and the number of hits."""
        self._batches.reset()
        for _ in self._batches:
            pass
        return self._batches.totals()


def measures(network: Network, loss: float, correct: float, m: int) -> dict[str, float]:
    """{"loss", metric}: of m examples, from their mean loss and their number of correct entries."""
    output, K = OUTPUTS[network.output], network.layer_sizes[-1]
    return {"loss": loss, output.metric: float(output.metric_value(loss, correct, m, K))}
