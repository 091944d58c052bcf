"""Forward passes over many examples, in batches that bound the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnn.backends import Array, backend_of
from dnn.batches import Batches
from dnn.data import Examples, new_host_array, prepare, prepare_in_parts
from dnn.data.scaling import of_answers
from dnn.data.streaming import Stream, room_for_X
from dnn.errors import NonFiniteLossError
from dnn.heads import HEADS
from dnn.layers import walk
from dnn.metrics import ExactMetric, checked_metrics
from dnn.network import Network
from dnn.step import EVALUATE, PREDICT, Order, Step

ACTIVATION_BYTES = 16_000_000
"""Of a batch, about: products large enough for all cores, buffers that stay in a large cache."""
SAMPLE = 10_000
"""Examples of a stream that speak for all."""
COMPILE_MIN_MACS = 20_000_000_000
"""Multiplications from which on compiling a step is worth its few tenths of a second."""


def _batches(network: Network, examples: Examples, rows: np.ndarray | None, goal: str, optimized: bool) -> Batches:
    width = network.members * sum(n_in for _, _, n_in, _ in walk(network.stack, network.layer_sizes[0]))
    batch_size = max(1, ACTIVATION_BYTES // (network.dtype.itemsize * (width + network.layer_sizes[-1])))

    def bind(examples: Examples, size: int, loading: str, order: Order | None, goal: str) -> Step:
        return Step(network, examples, size, goal, loading, order=order)

    return Batches(network.backend, examples, rows, batch_size, bind, network.dtype, optimized, goal)


@np.errstate(over="ignore", invalid="ignore")
def outputs(network: Network, X: Any, what: str = "P") -> np.ndarray:
    """P (m, K) of all examples, on the host; or "spread", the standard deviation of the members' answers.

    In the units of the targets: with a target_scale in float64, since these may have more digits than the network's.
    NonFiniteLossError where it is not finite, or the parameters are not.
    """
    with network.backend.stream():
        check_finite(network)
        m, parts = prepare_in_parts(network, X)
        units = of_answers(network)
        dtype = network.dtype if units is None else np.dtype(np.float64)
        P = new_host_array("the predictions", (m, network.layer_sizes[-1]), dtype)
        start, optimized = 0, m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            first = start
            for step in _batches(network, examples, None, PREDICT, optimized):
                P[start : start + step.batch_size] = network.backend.to_numpy(step.array(what))
                start += step.batch_size
            if units is not None:
                shift, factor = units
                P[first:start] *= factor
                if what == "P":
                    P[first:start] += shift
            finite = np.isfinite(P[first:start]).all(axis=1)
            if not finite.all():
                which = f"the outputs of example {first + int(np.argmin(finite))} are not finite"
                raise NonFiniteLossError(f"{which} in {network.dtype}: {_why(network, examples)}")
    return P


def evaluate(
    network: Network,
    X: Any,
    Y: Any,
    metrics: Sequence[Any] = (),
    sample_weight: Any = None,
    class_weight: Mapping[Any, float] | str | None = None,
    missing: bool = False,
) -> dict[str, Any]:
    """{"loss": ..., "accuracy": ...} over all examples; "rmse" in place of accuracy for a linear output."""
    exact = checked_metrics(metrics, network.output)
    with network.backend.stream():
        check_finite(network)
        if exact or sample_weight is not None or class_weight is not None or missing:
            return _evaluate_whole(network, X, Y, exact, sample_weight, class_weight, missing)
        loss, metric = 0.0, 0.0
        m, parts = prepare_in_parts(network, X, Y)
        optimized = m * network.n_parameters > COMPILE_MIN_MACS
        for examples in parts:
            # not kept: the next part would be converted beside this one's memory
            of_part, measured, _ = Evaluation(network, examples, optimized=optimized).totals()
            if not math.isfinite(of_part):
                raise NonFiniteLossError(f"the loss is {of_part} in {network.dtype}: {_why(network, examples)}")
            loss, metric = loss + of_part * (examples.m / m), metric + measured
    return measures(network, loss, metric, m)


def _evaluate_whole(
    network: Network,
    X: Any,
    Y: Any,
    metrics: Sequence[ExactMetric],
    sample_weight: Any,
    class_weight: Mapping[Any, float] | str | None,
    missing: bool,
) -> dict[str, Any]:
    """Of all examples at once: metrics that are no sums, and weights of all of them."""
    from dnn.data.weights import check_some, class_weights, with_weights

    examples = prepare(network, X, Y, missing=missing, memory=room_for_X(network.backend, None))
    plain = with_weights(network, examples, sample_weight)
    check_some(network, plain, None, "the examples")
    of_classes = class_weights(network, plain, class_weight, np.arange(examples.m))
    examples = with_weights(network, examples, sample_weight, of_classes)
    optimized = examples.m * network.n_parameters > COMPILE_MIN_MACS
    measured = Evaluation(network, examples, metrics=metrics, optimized=optimized)()
    if not math.isfinite(measured["loss"]):
        raise NonFiniteLossError(f"the loss is {measured['loss']} in {network.dtype}: {_why(network, examples)}")
    return measured


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
    """The largest magnitude in X as the network sees it; of a stream, in some of it."""
    X = examples.X.sample(SAMPLE) if isinstance(examples.X, Stream) else examples.X
    return largest(X) * float(1 if examples.scale is None else examples.scale)


def largest(array: Array) -> float:
    """The largest magnitude in an array that is not empty."""
    its = backend_of(array)
    return max(abs(float(its.to_numpy(end(array)))) for end in (its.xp.max, its.xp.min))


class Evaluation:
    """Loss and metrics of these rows of the examples, or of all: bound once, for as often as it is called."""

    def __init__(
        self,
        network: Network,
        examples: Examples,
        rows: np.ndarray | None = None,
        *,
        metrics: Sequence[ExactMetric] = (),
        optimized: bool,
    ) -> None:
        self._network, self._metrics = network, metrics
        self._m = examples.m if rows is None else len(rows)
        self._batches = _batches(network, examples, rows, EVALUATE, optimized)
        if metrics:
            at = slice(None) if rows is None else network.backend.asarray(rows)
            self._Y, counted = (None if a is None else a[at] for a in (examples.targets, examples.counted))
            self._counted = None if counted is None or counted.shape[1] > 1 else counted
            if counted is not None and counted.shape[1] > 1 and bool((counted == 0).any()):
                raise ValueError("metrics of missing targets: leave out metrics=, or the examples that lack a target")
            self._P = network.backend.empty((self._m, network.layer_sizes[-1]), network.dtype)

    def __call__(self) -> dict[str, Any]:
        measured = measures(self._network, *self.totals())
        return measured | self._measured() if self._metrics else measured

    @np.errstate(over="ignore", invalid="ignore")
    def totals(self) -> tuple[float, float, float]:
        """The mean loss, the sum of the metric, and the number of examples, or their weight."""
        self._batches.reset()
        if not self._metrics:
            for _ in self._batches.run():
                pass
            return self._batches.totals()
        start = 0
        for step in self._batches:
            self._P[start : start + step.batch_size] = step.array("P")
            start += step.batch_size
        return self._batches.totals()

    @np.errstate(all="ignore")
    def _measured(self) -> dict[str, Any]:
        """The metrics that look at all answers at once, with one read of the device."""
        network, xp = self._network, self._network.backend.xp
        point = getattr(network.loss_function, "point", None)
        P, Y = self._P if point is None else point(xp, self._P), self._Y
        if network.target_scale is not None and Y is not None:
            shift, factor = (network.backend.asarray(network.statistics[f"target_{n}"]) for n in ("shift", "factor"))
            P, Y = (a.astype(np.float64) * factor + shift for a in (P, Y))
        found = [metric(xp, P, Y, self._counted) for metric in self._metrics]
        asarray = network.backend.asarray
        flat = network.backend.to_numpy(xp.concatenate([asarray(each, np.float64).reshape(-1) for each in found]))
        results, start = {}, 0
        for metric, each in zip(self._metrics, found, strict=True):
            part = flat[start : start + each.size].reshape(each.shape)
            results[metric.name] = float(part) if part.ndim == 0 else part
            start += each.size
        return results


def measures(network: Network, loss: float, metric: float, m: float) -> dict[str, Any]:
    """{"loss", metric}: of m examples, from their mean loss and the sum of their metric."""
    measured = HEADS[network.output].metric
    return {"loss": loss, measured.name: float(measured.value(metric, m, network.targets)) if m else math.nan}
