"""Losses of the logits Z (m, K), and the derivatives of their sum: all finite for every finite logit.

A loss gives one number an example (m, 1), or one an output (m, K). The training loss is the mean of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends import Array


def sigmoid_cross_entropy(xp: Any, Z: Array, Y: Array) -> Array:
    """log(1 + exp(z)) − y z, for each output: equation (7) of the assignment with a = σ(z). Y (m, K) in [0, 1].

    Computed as log(1 + exp(−|z|)) + z ([z > 0] − y), in which nothing cancels: a confident answer is exact too.
    """
    return xp.log1p(xp.exp(-xp.absolute(Z))) + Z * ((Z > 0).astype(Z.dtype) - Y)


def sigmoid_cross_entropy_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = σ(Z) − Y, as ([z > 0] − y) ∓ σ(−|z|): as exact close to 1 as it is close to 0."""
    E = xp.exp(-xp.absolute(Z))
    P = E / (1 + E)
    return ((Z > 0).astype(Z.dtype) - Y) + xp.where(Z > 0, -P, P)


def softmax_cross_entropy(xp: Any, Z: Array, Y: Array) -> Array:
    """log Σ_k exp(z_k) − z_label, for each example (m, 1). Y (m, K) bool, one-hot.

    With d = z − max z as log(1 + Σ_others exp(d_k) + (exp(d_label) − 1)) − d_label: where the label's logit is the
    largest, nothing is lost beside the 1.
    """
    D = Z - xp.max(Z, axis=1, keepdims=True)
    # logits at the two ends of the dtype differ by more than it holds
    at_label = xp.maximum(xp.sum(xp.where(Y, D, 0), axis=1, keepdims=True), float(np.finfo(Z.dtype).min) / 2)
    others = xp.sum(xp.where(Y, 0, xp.exp(D)), axis=1, keepdims=True)
    return xp.log1p(others + xp.expm1(at_label)) - at_label


def softmax_cross_entropy_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = softmax(Z) − Y: at the label minus the sum of the others, which is exact for a confident answer too."""
    E = xp.exp(Z - xp.max(Z, axis=1, keepdims=True))
    others, total = (xp.sum(terms, axis=1, keepdims=True) for terms in (xp.where(Y, 0, E), E))
    return xp.where(Y, -others / total, E / total)


def squared_error(xp: Any, Z: Array, Y: Array) -> Array:
    """(z − y)², for each output."""
    E = Z - Y
    return E * E


def squared_error_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = 2 (Z − Y)."""
    return 2 * (Z - Y)


@dataclass(frozen=True)
class LossPair:
    """The losses, and the derivative of their sum by Z."""

    losses: Callable[..., Array]
    gradient: Callable[..., Array]


LOSSES: dict[str, Any] = {
    "sigmoid_cross_entropy": LossPair(sigmoid_cross_entropy, sigmoid_cross_entropy_backward),
    "softmax_cross_entropy": LossPair(softmax_cross_entropy, softmax_cross_entropy_backward),
    "squared_error": LossPair(squared_error, squared_error_backward),
}
"""By name; a user's own are objects with the same two attributes."""
