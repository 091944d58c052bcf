"""Heads: what the output layer's answer is.

head      P            loss                         targets            metric
sigmoid   σ(z)         log(1 + exp(z)) − y z        Y (m, K) in [0, 1]  accuracy
softmax   softmax(z)   log Σ_k exp(z_k) − z_label   classes (m, 1)      accuracy
linear    z            (z − y)²                     Y (m, K)            rmse
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnn import functional
from dnn.backends import Array
from dnn.losses import LOSSES, Loss
from dnn.metrics import ClassAccuracy, LabelAccuracy, Metric, RootMeanSquaredError


def _identity(xp: Any, Z: Array) -> Array:
    return Z


@dataclass(frozen=True)
class Head:
    """P = activation(xp, Z). With `classes` the targets are class numbers (m, 1), which the loss sees one-hot."""

    activation: Callable[..., Any]
    loss: Loss
    metric: Metric
    classes: bool = False

    def targets(self, xp: Any, Y: Array, K: int) -> Array:
        """Y as the loss takes it, (m, K)."""
        return functional.one_hot(xp, Y, K) if self.classes else Y


HEADS: dict[str, Head] = {
    "sigmoid": Head(functional.sigmoid, LOSSES["sigmoid_cross_entropy"], LabelAccuracy()),
    "softmax": Head(functional.softmax, LOSSES["softmax_cross_entropy"], ClassAccuracy(), classes=True),
    "linear": Head(_identity, LOSSES["squared_error"], RootMeanSquaredError()),
}
