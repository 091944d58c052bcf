"""Updates of the parameters: from θ, the gradients g and the optimizer's state to their new values.

θ, g and state have one shape and dtype. The learning rate α and what else is a number for the whole step promote as
Python's numbers do.
"""

from __future__ import annotations

from typing import Any

from dnn.backends import Array


def sgd(xp: Any, theta: Array, grad: Array, learning_rate: Any) -> Array:
    """θ ← θ − α g: equations (16) and (17) of the assignment."""
    return theta - learning_rate * grad


def momentum(
    xp: Any, theta: Array, grad: Array, velocity: Array, learning_rate: Any, momentum: float
) -> tuple[Array, Array]:
    """v ← μ v + g, θ ← θ − α v: Polyak's heavy ball, with α outside v as in PyTorch. Gives θ, v."""
    velocity = momentum * velocity + grad
    return theta - learning_rate * velocity, velocity


def adam(
    xp: Any,
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    power1: Any,
    power2: Any,
    learning_rate: Any,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Array, Array, Array, Any, Any]:
    """θ ← θ − α m̂ / (√v̂ + ε): Kingma and Ba 2015, algorithm 1. Gives θ, m, v, β₁ᵗ, β₂ᵗ.

    m ← β₁ m + g and v ← β₂ v + g² are the paper's divided by 1 − β₁ and 1 − β₂: two passes fewer over the
    parameters. power1 = β₁ᵗ⁻¹ and power2 = β₂ᵗ⁻¹ become those of step t, and m̂ = m / c₁, v̂ = v / c₂ with
    c = (1 − βᵗ) / (1 − β), both taken into the two numbers of the step.
    """
    power1, power2 = beta1 * power1, beta2 * power2
    c1, c2 = (1 - power1) / (1 - beta1), (1 - power2) / (1 - beta2)
    m = beta1 * m + grad
    v = beta2 * v + grad * grad
    theta = theta - m / (xp.sqrt(v) + eps * c2**0.5) * (learning_rate * c2**0.5 / c1)
    return theta, m, v, power1, power2
