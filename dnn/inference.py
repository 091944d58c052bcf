"""Forward passes over many examples, in batches that bound the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, prepare
from dnn.outputs import OUTPUTS
from dnn.step import Forward

if TYPE_CHECKING:
    from dnn.network import Network

ACTIVATION_BYTES = 16_000_000
"""Of a batch, about: products large enough for all cores, buffers that stay in a large cache."""


def _batches(
    network: Network,
    examples: Examples,
    rows: np.ndarray | None,
    work: Callable[[Forward], Callable[[], None]],
    capture: bool = False,
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
        examples = prepare(network, X)
        P, start = np.empty((examples.m, network.layer_sizes[-1]), network.dtype), 0
        for step in _batches(network, examples, None, lambda step: step.predict):
            P[start : start + step.batch_size] = network.backend.to_numpy(step.output.P)
            start += step.batch_size
    return P


class Evaluation:
    """Loss and metric of these rows of the examples, or of all: bound once, for as often as it is called."""

    def __init__(
        self, network: Network, examples: Examples, rows: np.ndarray | None = None, capture: bool = False
    ) -> None:
        self._network = network
        self._m = examples.m if rows is None else len(rows)
        self._batches = _batches(network, examples, rows, lambda step: step.evaluate, capture)

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self) -> dict[str, float]:
        """{"loss": ..., "accuracy": ...}; "rmse" in place of accuracy for a linear output."""
        self._batches.reset()
        for _ in self._batches:
            pass
        return measures(self._network, *self._batches.totals(), self._m)


def measures(network: Network, loss: float, correct: float, m: int) -> dict[str, float]:
    """{"loss", metric}: of m examples, from their mean loss and their number of correct entries."""
    output, K = OUTPUTS[network.output], network.layer_sizes[-1]
    return {"loss": loss, output.metric: float(output.metric_value(loss, correct, m, K))}
