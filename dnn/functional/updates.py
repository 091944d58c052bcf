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


def decayed(xp: Any, theta: Array, learning_rate: Any, weight_decay: float) -> Array:
    """θ ← θ (1 − α λ): decoupled weight decay, Loshchilov and Hutter 2019, algorithm 2, with α inside as in PyTorch."""
    return theta * (1 - learning_rate * weight_decay)


def nesterov(
    xp: Any, theta: Array, grad: Array, velocity: Array, learning_rate: Any, momentum: float
) -> tuple[Array, Array]:
    """v ← μ v + g, θ ← θ − α (g + μ v): Sutskever et al. 2013, equations (3) and (4), in the variables of PyTorch.

    θ here is the paper's θ + μ v, the point at which it takes the gradient. Gives θ, v.
    """
    velocity = momentum * velocity + grad
    return theta - learning_rate * (grad + momentum * velocity), velocity


def rmsprop(
    xp: Any, theta: Array, grad: Array, v: Array, learning_rate: Any, rho: float, eps: float
) -> tuple[Array, Array]:
    """v ← ρ v + (1 − ρ) g², θ ← θ − α g / (√v + ε): Tieleman and Hinton 2012, ε outside the root. Gives θ, v."""
    v = rho * v + (1 - rho) * (grad * grad)
    return theta - learning_rate * (grad / (xp.sqrt(v) + eps)), v


def adagrad(xp: Any, theta: Array, grad: Array, v: Array, learning_rate: Any, eps: float) -> tuple[Array, Array]:
    """v ← v + g², θ ← θ − α g / (√v + ε): Duchi et al. 2011, the diagonal form of figure 1. Gives θ, v."""
    v = v + grad * grad
    return theta - learning_rate * (grad / (xp.sqrt(v) + eps)), v


def nadam(
    xp: Any,
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    decay: Any,
    product: Any,
    power2: Any,
    learning_rate: Any,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
) -> tuple[Array, Array, Array, Any, Any, Any]:
    """θ ← θ − α (μₜ₊₁ m / (1 − Π μ) + (1 − μₜ) g / (1 − Π μ)) / (√v̂ + ε): Dozat 2016, algorithm 2.

    The first product has the factors up to μₜ₊₁, the second up to μₜ, with μₜ = β₁ (1 − 0.96^(t ψ) / 2). `decay` is
    0.96^(t ψ), `product` the second product and power2 β₂ᵗ: they come as of the step before. m and v are the paper's
    divided by 1 − β₁ and 1 − β₂, as in `adam`. Gives θ, m, v, decay, product, power2.
    """
    shrink = 0.96**momentum_decay
    decay, power2 = shrink * decay, beta2 * power2
    mu, next_mu = beta1 * (1 - 0.5 * decay), beta1 * (1 - 0.5 * shrink * decay)
    product = mu * product
    m = beta1 * m + grad
    v = beta2 * v + grad * grad
    root = ((1 - power2) / (1 - beta2)) ** 0.5
    of_m = learning_rate * root * next_mu * (1 - beta1) / (1 - product * next_mu)
    of_grad = learning_rate * root * (1 - mu) / (1 - product)
    theta = theta - (of_m * m + of_grad * grad) / (xp.sqrt(v) + eps * root)
    return theta, m, v, decay, product, power2


def radam(
    xp: Any,
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    steps: Any,
    power1: Any,
    power2: Any,
    learning_rate: Any,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Array, Array, Array, Any, Any, Any]:
    """θ ← θ − α r m̂ √(1 − β₂ᵗ) / (√v + ε) where ρₜ > 5, else θ − α m̂: Liu et al. 2020, algorithm 2, 5 as in PyTorch.

    ρₜ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ), ρ∞ = 2 / (1 − β₂) − 1, r² = (ρₜ − 4)(ρₜ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₜ). m and v
    are the paper's divided by 1 − β₁ and 1 − β₂, as in `adam`. Gives θ, m, v, t, β₁ᵗ, β₂ᵗ.
    """
    steps, power1, power2 = steps + 1, beta1 * power1, beta2 * power2
    m = beta1 * m + grad
    v = beta2 * v + grad * grad
    plain = learning_rate * (1 - beta1) / (1 - power1)
    limit = 2 / (1 - beta2) - 1
    if limit <= 5:  # a setting, not a value: ρₜ < ρ∞ never gets there
        return theta - plain * m, m, v, steps, power1, power2
    length = limit - 2 * steps * power2 / (1 - power2)
    # abs: below 4, where this is not used, the root would be of a negative number
    r = (abs((length - 4) * (length - 2) / length) * (limit / ((limit - 4) * (limit - 2)))) ** 0.5
    root = (1 - beta2) ** 0.5
    adaptive = plain * r * (1 - power2) ** 0.5 / root
    rate = xp.where(length > 5, adaptive / (xp.sqrt(v) + eps / root), plain)
    return theta - rate * m, m, v, steps, power1, power2


def lion(
    xp: Any, theta: Array, grad: Array, m: Array, learning_rate: Any, beta1: float, beta2: float
) -> tuple[Array, Array]:
    """θ ← θ − α sign(β₁ m + (1 − β₁) g), m ← β₂ m + (1 − β₂) g: Chen et al. 2023, algorithm 2. Gives θ, m."""
    direction = xp.sign(beta1 * m + (1 - beta1) * grad)
    return theta - learning_rate * direction, beta2 * m + (1 - beta2) * grad


def newton_schulz(xp: Any, G: Array, steps: int = 5, eps: float = 1e-7) -> Array:
    """About U Vᵀ of G = U S Vᵀ: X ← a X + (b A + c A²) X with A = X Xᵀ, from X = G / max(‖G‖, ε) on.

    Jordan et al. 2024, with their (a, b, c), the steepest at 0: the singular values end between about 0.7 and 1.2
    rather than at 1, but for those that begin below about 0.003.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = G.shape[0] > G.shape[1]
    X = G.T if tall else G  # A is the smaller of the two Gram matrices
    X = X / xp.maximum(xp.sqrt(xp.sum(G * G)), eps)
    for _ in range(steps):
        A = xp.dot(X, X.T)
        X = a * X + xp.dot(b * A + c * xp.dot(A, A), X)
    return X.T if tall else X


def muon(
    xp: Any, W: Array, grad: Array, m: Array, learning_rate: Any, momentum: float, steps: int = 5
) -> tuple[Array, Array]:
    """m ← μ m + g, W ← W − α √max(1, n_out / n_in) NS(g + μ m): Jordan et al. 2024, with Nesterov momentum.

    For one matrix (n_out, n_in). `newton_schulz` takes the length out, so m needs no factor 1 − μ. Gives W, m.
    """
    m = momentum * m + grad
    direction = newton_schulz(xp, grad + momentum * m, steps)
    scale = max(1.0, W.shape[0] / W.shape[1]) ** 0.5
    return W - (learning_rate * scale) * direction, m
