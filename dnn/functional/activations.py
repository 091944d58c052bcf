"""Activations and their derivatives, elementwise: A = g(Z), dZ = dA · g'(Z).

A backward takes dA and what it needs of the forward pass: Z, A, or both, as the table at the end says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnn.backends import Array
from dnn.functional.special import erf


def relu(xp: Any, Z: Array) -> Array:
    """A = max(0, Z)."""
    return xp.maximum(Z, 0)


def relu_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA where A > 0, else 0: relu'(0) = 0."""
    return xp.where(A > 0, dA, 0)


def tanh(xp: Any, Z: Array) -> Array:
    """A = tanh(Z)."""
    return xp.tanh(Z)


def tanh_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA (1 − A²)."""
    return dA * (1 - A * A)


def sigmoid(xp: Any, Z: Array) -> Array:
    """A = 1 / (1 + exp(−Z))."""
    return 1 / (1 + xp.exp(-Z))


def sigmoid_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA · A (1 − A)."""
    return dA * (A * (1 - A))


def gelu(xp: Any, Z: Array) -> Array:
    """A = Z Φ(Z) with Φ the standard normal distribution, exact: Φ(z) = (1 + erf(z / √2)) / 2.

    Hendrycks and Gimpel 2016, section 2; not the tanh approximation.
    """
    return Z * (0.5 + 0.5 * erf(xp, Z * math.sqrt(0.5)))


def gelu_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA (Φ(Z) + Z φ(Z)) with φ(z) = exp(−z²/2) / √(2π)."""
    density = xp.exp(-0.5 * (Z * Z)) * (1 / math.sqrt(2 * math.pi))
    return dA * (0.5 + 0.5 * erf(xp, Z * math.sqrt(0.5)) + Z * density)


def softmax(xp: Any, Z: Array) -> Array:
    """P_ik = exp(z_ik) / Σ_j exp(z_ij), for each row.

    The row's largest logit is subtracted first, which changes nothing and keeps exp from overflowing.
    """
    E = xp.exp(Z - xp.max(Z, axis=1, keepdims=True))
    return E / xp.sum(E, axis=1, keepdims=True)


@dataclass(frozen=True)
class Activation:
    """A = forward(xp, Z), dZ = backward(xp, dA, *saved), where `saves` names what is saved: Z, A or both."""

    forward: Callable[..., Array]
    backward: Callable[..., Array]
    saves: tuple[str, ...] = ("A",)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(relu, relu_backward),
    "tanh": Activation(tanh, tanh_backward),
    "sigmoid": Activation(sigmoid, sigmoid_backward),
    "gelu": Activation(gelu, gelu_backward, saves=("Z",)),
}
