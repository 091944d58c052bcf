"""Normalization: over the batch, or over the features of each example. X (m, n); gamma, beta (n,).

Sums are taken in float32 where X has 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends import Array
from dnn.backends.plan import Value
from dnn.errors import check_finite_number
from dnn.layers.base import Backward, Draw, Layer, Place, Shape, known_layer

__all__ = ["BatchNorm", "LayerNorm", "RMSNorm"]


def _wide(X: Array) -> Array:
    return X.astype(np.float32) if X.dtype.itemsize < 4 else X


def batch_statistics(xp: Any, X: Array) -> tuple[Array, Array]:
    """μ_j = mean_i x_ij and σ²_j = mean_i (x_ij − μ_j)², each (n,): Ioffe and Szegedy 2015, algorithm 1."""
    X = _wide(X)
    mean = xp.mean(X, axis=0)
    D = X - mean
    return mean, xp.mean(D * D, axis=0)


def batch_norm(xp: Any, X: Array, mean: Array, variance: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Y = γ (X − μ) / √(σ² + ε) + β: Ioffe and Szegedy 2015, algorithm 1."""
    scale = _wide(gamma) / xp.sqrt(variance + eps)
    return ((_wide(X) - mean) * scale + _wide(beta)).astype(X.dtype)


def batch_norm_backward(
    xp: Any, dY: Array, X: Array, mean: Array, variance: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:
    """dβ = Σ_i dY, dγ = Σ_i dY X̂, dX = γ / √(σ² + ε) · (dY − (dβ + X̂ dγ) / m), with X̂ = (X − μ) / √(σ² + ε).

    Gives dX, dγ, dβ; μ and σ² are those of X itself.
    """
    m, G = X.shape[0], _wide(dY)
    inverse = 1 / xp.sqrt(variance + eps)
    X_hat = (_wide(X) - mean) * inverse
    dbeta, dgamma = xp.sum(G, axis=0), xp.sum(G * X_hat, axis=0)
    dX = (_wide(gamma) * inverse) * (G - (dbeta + X_hat * dgamma) * (1 / m))
    return dX.astype(dY.dtype), dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)


def running(xp: Any, old: Array, new: Array, momentum: float) -> Array:
    """old ← μ old + (1 − μ) new: an exponential moving average, (n,)."""
    return momentum * old + (1 - momentum) * new.astype(old.dtype)


def running_variance(xp: Any, old: Array, variance: Array, momentum: float, m: int) -> Array:
    """Likewise of the variance, without the bias of a batch of m: times m / (m − 1)."""
    return running(xp, old, variance * (m / (m - 1)), momentum)


def layer_norm(xp: Any, X: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Y = γ X̂ + β, with X̂ = (X − μ_i) / √(σ²_i + ε) of each row i: Ba, Kiros and Hinton 2016, equation (4)."""
    X_hat, _ = _standardized(xp, _wide(X), eps)
    return (X_hat * _wide(gamma) + _wide(beta)).astype(X.dtype)


def layer_norm_backward(xp: Any, dY: Array, X: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    """dX̂ = γ dY, dX = (dX̂ − mean_j dX̂ − X̂ mean_j (dX̂ X̂)) / √(σ² + ε). Gives dX, dγ, dβ."""
    X_hat, inverse = _standardized(xp, _wide(X), eps)
    G = _wide(dY)
    D = G * _wide(gamma)
    along = xp.mean(D, axis=1, keepdims=True) + X_hat * xp.mean(D * X_hat, axis=1, keepdims=True)
    dgamma, dbeta = xp.sum(G * X_hat, axis=0), xp.sum(G, axis=0)
    return ((D - along) * inverse).astype(dY.dtype), dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)


def _standardized(xp: Any, X: Array, eps: float) -> tuple[Array, Array]:
    """X̂ (m, n) and 1 / √(σ² + ε) (m, 1)."""
    D = X - xp.mean(X, axis=1, keepdims=True)
    inverse = 1 / xp.sqrt(xp.mean(D * D, axis=1, keepdims=True) + eps)
    return D * inverse, inverse


def rms_norm(xp: Any, X: Array, gamma: Array, eps: float) -> Array:
    """Y = γ X / √(mean_j x_ij² + ε): Zhang and Sennrich 2019, equation (4)."""
    return (_wide(X) * _inverse_rms(xp, _wide(X), eps) * _wide(gamma)).astype(X.dtype)


def rms_norm_backward(xp: Any, dY: Array, X: Array, gamma: Array, eps: float) -> tuple[Array, Array]:
    """dX̂ = γ dY, dX = (dX̂ − X̂ mean_j (dX̂ X̂)) / r with r = √(mean_j x_ij² + ε) and X̂ = X / r. Gives dX, dγ."""
    inverse = _inverse_rms(xp, _wide(X), eps)
    X_hat, G = _wide(X) * inverse, _wide(dY)
    D = G * _wide(gamma)
    dX = (D - X_hat * xp.mean(D * X_hat, axis=1, keepdims=True)) * inverse
    return dX.astype(dY.dtype), xp.sum(G * X_hat, axis=0).astype(gamma.dtype)


def _inverse_rms(xp: Any, X: Array, eps: float) -> Array:
    return 1 / xp.sqrt(xp.mean(X * X, axis=1, keepdims=True) + eps)


@dataclass(frozen=True)
class _Norm(Layer):
    family = "norm"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}: eps"
        check_finite_number(name, self.eps)
        if self.eps <= 0:
            raise ValueError(f"{name} must be above 0, got {self.eps!r}")

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {"gamma": (n_in,), "beta": (n_in,)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> float:
        return 1.0 if name in ("gamma", "variance") else 0.0


@known_layer
@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Y = γ (X − μ) / √(σ² + ε) + β with the mean and variance of each feature over the batch (Ioffe and Szegedy 2015).

    Evaluations and predictions use running averages: running ← momentum · running + (1 − momentum) · batch, of the
    variance without bias (m − 1). The defaults give PyTorch's. A batch of one example, which has no variance, leaves
    them as they are.
    """

    least_batch = 2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite_number("BatchNorm: momentum", self.momentum)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"BatchNorm: momentum must be at least 0 and below 1, got {self.momentum!r}")

    def state_shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {"mean": (n_in,), "variance": (n_in,)}

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        gamma, beta = at.parameter("gamma"), at.parameter("beta")
        mean, variance = at.state("mean"), at.state("variance")
        if at.training:
            m, momentum, before = X.shape[0], self.momentum, (mean, variance)
            mean, variance = at.call(batch_statistics, X)
            if m > 1:
                at.set_state("mean", at.call(running, before[0], mean, momentum=momentum))
                at.set_state("variance", at.call(running_variance, before[1], variance, momentum=momentum, m=m))
        Y = at.call(batch_norm, X, mean, variance, gamma, beta, eps=self.eps)

        def backward(dY: Value) -> Value:
            dX, dgamma, dbeta = at.call(batch_norm_backward, dY, X, mean, variance, gamma, eps=self.eps)
            at.gradient("gamma", dgamma)
            at.gradient("beta", dbeta)
            return dX

        return Y, backward


@known_layer
@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Y = γ (X − μ) / √(σ² + ε) + β with the mean and variance of each example's features (Ba et al. 2016)."""

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        gamma, beta = at.parameter("gamma"), at.parameter("beta")

        def backward(dY: Value) -> Value:
            dX, dgamma, dbeta = at.call(layer_norm_backward, dY, X, gamma, eps=self.eps)
            at.gradient("gamma", dgamma)
            at.gradient("beta", dbeta)
            return dX

        return at.call(layer_norm, X, gamma, beta, eps=self.eps), backward


@known_layer
@dataclass(frozen=True)
class RMSNorm(_Norm):
    """Y = γ X / √(mean_j x_j² + ε) of each example's features (Zhang and Sennrich 2019)."""

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {"gamma": (n_in,)}

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        gamma = at.parameter("gamma")

        def backward(dY: Value) -> Value:
            dX, dgamma = at.call(rms_norm_backward, dY, X, gamma, eps=self.eps)
            at.gradient("gamma", dgamma)
            return dX

        return at.call(rms_norm, X, gamma, eps=self.eps), backward


NORMS: dict[str, type[Layer]] = {"batch": BatchNorm, "layer": LayerNorm, "rms": RMSNorm}
"""By the names that `Network(norm=)` takes."""
