"""Metrics: what a user looks at, measured on the device.

A Metric is summed over the examples, batch by batch, within a step. An ExactMetric takes all examples at once: what
ranks them, or divides by counts of them, is no sum over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dnn import functional
from dnn.backends import Array
from dnn.errors import check_number, check_whole, nearest
from dnn.functional.metrics import METRICS, NamedMetric


class Metric(Protocol):
    name: str

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        """A number or truth for each example or output, to be summed. P are the outputs, Y the targets."""

    def value(self, total: float, m: float, K: int) -> float:
        """The metric, from the sum over m examples with K outputs."""


class LabelAccuracy:
    """The share of the labels, each of its own, that are right."""

    name = "accuracy"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.correct_labels(xp, P, Y)

    def value(self, total: float, m: float, K: int) -> float:
        return total / (m * K)


class ClassAccuracy:
    """The share of the examples whose class is right."""

    name = "accuracy"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.correct_classes(xp, P, Y)

    def value(self, total: float, m: float, K: int) -> float:
        return total / m


class RootMeanSquaredError:
    """√ of the mean of (p − y)² over examples and outputs."""

    name = "rmse"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.squared_error(xp, P, Y)

    def value(self, total: float, m: float, K: int) -> float:
        return math.sqrt(total / (m * K))


# ------------------------------------------------------------------------- over all examples at once


class ExactMetric(Protocol):
    """A pure function in `xp`, which does not wait for the device, and what is known of it.

    It takes the answers P (m, K), the targets Y (class numbers (m, 1) of a softmax, otherwise (m, K)) and the weights
    of the examples (m, 1) or None, and gives an array () of the device; the confusion matrix is of other shapes.
    """

    @property
    def name(self) -> str: ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which it suits."""

    @property
    def greater_is_better(self) -> bool | None:
        """None: not known, or neither."""

    def __call__(self, xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array: ...


@dataclass(frozen=True)
class TopK:
    """The share of the examples whose class is among the k that are answered with the largest probabilities."""

    k: int = 5
    outputs = ("softmax",)
    greater_is_better = True

    def __post_init__(self) -> None:
        check_whole("TopK: k", self.k)
        if self.k < 1:
            raise ValueError(f"TopK: k must be at least 1, got {self.k}")

    @property
    def name(self) -> str:
        return f"top_{self.k}"

    def __call__(self, xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
        return functional.top_k_accuracy(xp, P, Y, weights, k=self.k)


@dataclass(frozen=True)
class Pinball:
    """The pinball loss of answers that are meant as this quantile."""

    quantile: float = 0.5
    outputs = ("linear",)
    greater_is_better = False

    def __post_init__(self) -> None:
        check_number("Pinball: quantile", self.quantile)
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"Pinball: quantile must be between 0 and 1, got {self.quantile}")

    @property
    def name(self) -> str:
        return f"pinball_{self.quantile}"

    def __call__(self, xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
        return functional.pinball_loss(xp, P, Y, weights, quantile=self.quantile)


def checked_metrics(
    metrics: str | Callable[..., Any] | Sequence[str | Callable[..., Any]], output: str
) -> list[ExactMetric]:
    """The metrics, from names of METRICS, from TopK and Pinball, and from functions (xp, P, Y, weights) of the user.

    ValueError for a name that is not known, a metric that does not suit the output, and two of one name.
    """
    chosen: list[ExactMetric] = []
    for metric in [metrics] if isinstance(metrics, str) or callable(metrics) else metrics:
        found = _found(metric, output)
        if output not in found.outputs:
            raise ValueError(f"metric {found.name} is not for a {output} output: {_suitable(output)}")
        if any(found.name == other.name for other in chosen):
            raise ValueError(f"two metrics are called {found.name}: each needs a name of its own")
        chosen.append(found)
    return chosen


def _found(metric: Any, output: str) -> ExactMetric:
    if isinstance(metric, str):
        if metric in METRICS:
            return METRICS[metric]
        near = nearest(metric, METRICS, 0.5)
        meant = f", did you mean {near!r}?" if near else ":"
        raise ValueError(f"there is no metric {metric!r}{meant} {_suitable(output)}")
    if isinstance(metric, (NamedMetric, TopK, Pinball)):
        return metric
    name = getattr(metric, "name", None) or getattr(metric, "__name__", None)
    if not callable(metric) or isinstance(metric, type) or not isinstance(name, str):
        raise ValueError(f"a metric is a name or a function (xp, P, Y, weights) with a __name__, got {metric!r}")
    return NamedMetric(name, metric, greater_is_better=getattr(metric, "greater_is_better", None))


def _suitable(output: str) -> str:
    return f"for {output} there are {', '.join(name for name, its in METRICS.items() if output in its.outputs)}"
