"""Forward passes over many examples, in batches that bound the memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dnn.backends import Array, backend_of
from dnn.batches import Batches
from dnn.data import Examples, new_host_array, prepare_in_parts
from dnn.errors import NonFiniteLossError
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
    """P (m, K) of all examples, on the host. NonFiniteLossError where it is not finite, or the parameters are not."""
    with network.backend.stream():
        check_finite(network)
        m, parts = prepare_in_parts(network, X)
        P = new_host_array("the predictions", (m, network.layer_sizes[-1]), network.dtype)
        start, optimized = 0, m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            first = start
            for step in _batches(network, examples, None, PREDICT, optimized):
                P[start : start + step.batch_size] = network.backend.to_numpy(step.array("P"))
                start += step.batch_size
            finite = np.isfinite(P[first:start]).all(axis=1)
            if not finite.all():
                what = f"the outputs of example {first + int(np.argmin(finite))} are not finite"
                raise NonFiniteLossError(f"{what} in {network.dtype}: {_why(network, examples)}")
    return P


def evaluate(network: Network, X: Any, Y: Any) -> dict[str, float]:
    """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output."""
    loss, metric = 0.0, 0.0
    with network.backend.stream():
        check_finite(network)
        m, parts = prepare_in_parts(network, X, Y)
        optimized = m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            # not kept: the next part would be converted beside this one's memory
            of_part, measured = Evaluation(network, examples, optimized=optimized).totals()
            if not math.isfinite(of_part):
                raise NonFiniteLossError(f"the loss is {of_part} in {network.dtype}: {_why(network, examples)}")
            loss, metric = loss + of_part * (examples.m / m), metric + measured
    return measures(network, loss, metric, m)


def check_finite(network: Network) -> None:
    """NonFiniteLossError where a parameter is not finite. None is given or trained so: only views can be written so."""
    finite = network.backend.xp.isfinite
    if not bool(finite(network.parameters.flat).all()):
        name = next(name for name, view in network.parameters.items() if not bool(finite(view).all()))
        raise NonFiniteLossError(f"parameter {name} holds nan or inf: put finite numbers back, or load the model again")


def _why(network: Network, examples: Examples) -> str:
    """Why answers overflow, and what to do."""
    X = largest_input(examples)
    found = [f"X reaches {X:.3g}", f"the weights {largest(network.parameters.flat):.3g}"]
    if network.output == "linear" and examples.targets is not None:
        found.insert(1, f"Y {largest(examples.targets):.3g}")
    return f"{', '.join(found)}: scale the data as in training, or train with a lower learning rate"


def largest_input(examples: Examples) -> float:
    """The largest magnitude in X as the network sees it."""
    return largest(examples.X) * float(1 if examples.scale is None else examples.scale)


def largest(array: Array) -> float:
    """The largest magnitude in an array that is not empty."""
    its = backend_of(array)
    return max(abs(float(its.to_numpy(end(array)))) for end in (its.xp.max, its.xp.min))


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
