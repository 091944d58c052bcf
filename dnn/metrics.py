"""Metrics: what a user looks at, measured on the device and summed over the examples."""

from __future__ import annotations

import math
from typing import Any, Protocol

from dnn import functional
from dnn.backends import Array


class Metric(Protocol):
    name: str

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        """A number or truth for each example or output, to be summed. P are the outputs, Y the targets."""

    def value(self, total: float, m: int, K: int) -> float:
        """The metric, from the sum over m examples with K outputs."""


class LabelAccuracy:
    """The share of the labels, each of its own, that are right."""

    name = "accuracy"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.correct_labels(xp, P, Y)

    def value(self, total: float, m: int, K: int) -> float:
        return total / (m * K)


class ClassAccuracy:
    """The share of the examples whose class is right."""

    name = "accuracy"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.correct_classes(xp, P, Y)

    def value(self, total: float, m: int, K: int) -> float:
        return total / m


class RootMeanSquaredError:
    """√ of the mean of (p − y)² over examples and outputs."""

    name = "rmse"

    def measure(self, xp: Any, P: Array, Y: Array) -> Array:
        return functional.squared_error(xp, P, Y)

    def value(self, total: float, m: int, K: int) -> float:
        return math.sqrt(total / (m * K))
