"""Activations and their derivatives, elementwise: A = g(Z), dZ = dA · g'(Z).

A backward takes dA and what it needs of the forward pass: Z, A, or both, as the table at the end says. It is A where
the derivative follows from A without a loss of digits, and costs no more.

Every value and derivative is the right limit for a finite Z of any size. At a kink the derivative is PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnn.backends import Array
from dnn.functional.special import normal_cdf

LEAKY_SLOPE = 0.01
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
GELU_CUBE = 0.044715


def identity(xp: Any, Z: Array) -> Array:
    """A = Z."""
    return Z


def identity_backward(xp: Any, dA: Array) -> Array:
    """dZ = dA."""
    return dA


def relu(xp: Any, Z: Array) -> Array:
    """A = max(0, Z)."""
    return xp.maximum(Z, 0)


def relu_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA where A > 0, else 0: relu'(0) = 0."""
    return xp.where(A > 0, dA, 0)


def leaky_relu(xp: Any, Z: Array) -> Array:
    """A = Z where Z > 0, else 0.01 Z. Maas, Hannun and Ng 2013, section 2."""
    return xp.maximum(Z, LEAKY_SLOPE * Z)


def leaky_relu_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA where A > 0, else 0.01 dA: the slope at 0 is 0.01."""
    return xp.where(A > 0, dA, LEAKY_SLOPE * dA)


def prelu(xp: Any, Z: Array, slope: Array) -> Array:
    """A = Z where Z > 0, else slope · Z, with a slope (n,) for each feature. He et al. 2015, equation (1)."""
    return xp.where(Z > 0, Z, slope * Z)


def prelu_backward(xp: Any, dA: Array, Z: Array, slope: Array) -> tuple[Array, Array]:
    """dZ = dA where Z > 0, else slope · dA: the slope at 0 is `slope`; dslope = Σ_rows dA Z where Z ≤ 0."""
    return xp.where(Z > 0, dA, slope * dA), xp.sum(xp.where(Z > 0, 0, dA * Z), axis=0)


def elu(xp: Any, Z: Array) -> Array:
    """A = Z where Z > 0, else exp(Z) − 1: α = 1. Clevert, Unterthiner and Hochreiter 2016, section 3."""
    return xp.where(Z > 0, Z, xp.expm1(Z))


def elu_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA where Z > 0, else dA exp(Z), of which A + 1 would lose the digits; the slope at 0 is 1 on both sides."""
    return xp.where(Z > 0, dA, dA * xp.exp(Z))


def selu(xp: Any, Z: Array) -> Array:
    """A = λ Z where Z > 0, else λ α (exp(Z) − 1). Klambauer et al. 2017, equation (2), with their α and λ.

    λ Z is Z + (λ − 1) Z: λ itself, rounded to bfloat16, would be 0.4% off in every layer.
    """
    return xp.where(Z > 0, Z + (SELU_SCALE - 1) * Z, (SELU_SCALE * SELU_ALPHA) * xp.expm1(Z))


def selu_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = λ dA where Z > 0, else λ α exp(Z) dA: the slope at 0 is λ α, that of the left side."""
    return xp.where(Z > 0, dA + (SELU_SCALE - 1) * dA, (SELU_SCALE * SELU_ALPHA) * xp.exp(Z) * dA)


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
    """A = Z Φ(Z) with Φ the standard normal distribution, exact: not the tanh approximation.

    Hendrycks and Gimpel 2016, section 2.
    """
    return Z * normal_cdf(xp, Z)


def gelu_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA (Φ(Z) + Z φ(Z)) with φ(z) = exp(−z²/2) / √(2π)."""
    density = xp.exp(-0.5 * (Z * Z)) * (1 / math.sqrt(2 * math.pi))
    return dA * (normal_cdf(xp, Z) + Z * density)


def gelu_tanh(xp: Any, Z: Array) -> Array:
    """A = Z (1 + tanh(U)) / 2 with U = √(2/π) (Z + 0.044715 Z³), the approximation of gelu.

    Hendrycks and Gimpel 2016, section 2. Computed as Z σ(2 U), the same number, in which nothing cancels for Z < 0.
    """
    return Z * _gelu_gate(xp, Z)


def gelu_tanh_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA (S + Z S (1 − S) 2 U') with S = σ(2 U), U' = √(2/π) (1 + 3 · 0.044715 Z²)."""
    z = xp.minimum(xp.maximum(Z, -30), 30)  # beyond, S is 0 or 1 in every dtype, and Z² might overflow: 0 · inf
    S = _gelu_gate(xp, z)
    slope = math.sqrt(8 / math.pi) + (3 * GELU_CUBE * math.sqrt(8 / math.pi)) * (z * z)
    return dA * (S + z * (S * (1 - S)) * slope)


def _gelu_gate(xp: Any, Z: Array) -> Array:
    """σ(2 U)."""
    return sigmoid(xp, Z * (math.sqrt(8 / math.pi) + (GELU_CUBE * math.sqrt(8 / math.pi)) * (Z * Z)))


def silu(xp: Any, Z: Array) -> Array:
    """A = Z σ(Z). Elfwing, Uchibe and Doya 2018, section 2; the swish of Ramachandran et al. 2017 with β = 1."""
    return Z * sigmoid(xp, Z)


def silu_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA · S (1 + Z (1 − S)) with S = σ(Z)."""
    S = sigmoid(xp, Z)
    return dA * (S * (1 + Z * (1 - S)))


def mish(xp: Any, Z: Array) -> Array:
    """A = Z tanh(log(1 + exp(Z))). Misra 2020, section 2."""
    _, above, below = _mish_parts(xp, Z)
    return Z * (above / below)


def mish_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA (T + Z σ(Z) (1 − T²)) with T = tanh(log(1 + exp(Z)))."""
    E, above, below = _mish_parts(xp, Z)
    T = above / below
    gate = xp.where(Z > 0, 1, E) / (1 + E)
    return dA * (T + Z * (gate * (1 - T * T)))


def _mish_parts(xp: Any, Z: Array) -> tuple[Array, Array, Array]:
    """E = exp(−|Z|), and the two sides of the fraction tanh(log(1 + x)) = x (x + 2) / (x (x + 2) + 2), x = exp(Z).

    For Z > 0 both sides are divided by x², so that nothing overflows; every term is positive, so that nothing cancels.
    """
    E = xp.exp(-xp.absolute(Z))
    above = xp.where(Z > 0, 1 + 2 * E, E * (E + 2))
    return E, above, above + xp.where(Z > 0, 2 * (E * E), 2)


def softplus(xp: Any, Z: Array) -> Array:
    """A = log(1 + exp(Z)), as max(Z, 0) + log(1 + exp(−|Z|)). Dugas et al. 2001, section 3."""
    return xp.maximum(Z, 0) + xp.log1p(xp.exp(-xp.absolute(Z)))


def softplus_backward(xp: Any, dA: Array, A: Array) -> Array:
    """dZ = dA σ(Z), where σ(Z) = 1 − exp(−A)."""
    return dA * -xp.expm1(-A)


def softsign(xp: Any, Z: Array) -> Array:
    """A = Z / (1 + |Z|). Bergstra et al. 2009."""
    return Z / (1 + xp.absolute(Z))


def softsign_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA / (1 + |Z|)²; from A, (1 − |A|)² would lose the digits."""
    root = 1 / (1 + xp.absolute(Z))
    return dA * (root * root)


def hardswish(xp: Any, Z: Array) -> Array:
    """A = Z min(max(Z + 3, 0), 6) / 6. Howard et al. 2019, section 5.2."""
    return Z * (xp.minimum(xp.maximum(Z + 3, 0), 6) * (1 / 6))  # 6 · (1 / 6) is 1 in every format


def hardswish_backward(xp: Any, dA: Array, Z: Array) -> Array:
    """dZ = dA (2 Z + 3) / 6 where −3 < Z < 3, else 0 or dA: the slope is 0 at −3 and 1 at 3, as it is outside."""
    return dA * xp.where(Z < 3, xp.where(Z > -3, (Z + 1.5) * (1 / 3), 0), 1)


def softmax(xp: Any, Z: Array) -> Array:
    """P_ik = exp(z_ik) / Σ_j exp(z_ij), for each row.

    The row's largest logit is subtracted first, which changes nothing and keeps exp from overflowing.
    """
    E = xp.exp(Z - xp.max(Z, axis=1, keepdims=True))
    return E / xp.sum(E, axis=1, keepdims=True)


@dataclass(frozen=True)
class Activation:
    """A = forward(xp, Z), dZ = backward(xp, dA, *saved), where `saves` names what is saved: Z, A, both or nothing."""

    forward: Callable[..., Array]
    backward: Callable[..., Array]
    saves: tuple[str, ...] = ("A",)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(relu, relu_backward),
    "leaky_relu": Activation(leaky_relu, leaky_relu_backward),
    "elu": Activation(elu, elu_backward, saves=("Z",)),
    "selu": Activation(selu, selu_backward, saves=("Z",)),
    "gelu": Activation(gelu, gelu_backward, saves=("Z",)),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_backward, saves=("Z",)),
    "silu": Activation(silu, silu_backward, saves=("Z",)),
    "mish": Activation(mish, mish_backward, saves=("Z",)),
    "softplus": Activation(softplus, softplus_backward),
    "softsign": Activation(softsign, softsign_backward, saves=("Z",)),
    "hardswish": Activation(hardswish, hardswish_backward, saves=("Z",)),
    "tanh": Activation(tanh, tanh_backward),
    "sigmoid": Activation(sigmoid, sigmoid_backward),
    "identity": Activation(identity, identity_backward, saves=()),
}
