"""The affine map of a layer."""

from __future__ import annotations

from typing import Any

from dnn.backends import Array


def linear_forward(xp: Any, A_prev: Array, W: Array, b: Array) -> Array:
    """Z = A_prev Wᵀ + b: equation (4) of the assignment, with one example a row.

    A_prev (m, n_in), W (n_out, n_in), b (n_out,), Z (m, n_out).
    """
    return xp.dot(A_prev, W.T) + b


def linear_backward(xp: Any, dZ: Array, A_prev: Array, W: Array) -> tuple[Array, Array, Array]:
    """dA_prev = dZ W, dW = dZᵀ A_prev, db = Σ_i dZ_i: equations (8) to (10), the 1/m being in dZ already.

    dZ (m, n_out); dA_prev (m, n_in), dW (n_out, n_in), db (n_out,).
    """
    return xp.dot(dZ, W), xp.dot(dZ.T, A_prev), xp.sum(dZ, axis=0)


def linear_product(xp: Any, A_prev: Array, W: Array) -> Array:
    """Z = A_prev Wᵀ: the affine map without a bias."""
    return xp.dot(A_prev, W.T)


def residual_sum(xp: Any, X: Array, F: Array) -> Array:
    """Y = X + F(X): He et al. 2016, equation (1). Its dX is dY + dF."""
    return X + F
