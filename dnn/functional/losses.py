"""Losses of the logits Z (m, units), and the derivatives of their sum.

A loss gives one number an example (m, 1), or one a target (m, K). The training loss is the mean of them all. There is
one unit a target but where the docstring says otherwise.

The classifiers' losses, the absolute error, Huber's and the quantiles' are finite for every finite logit. The others
are finite where a number of the dtype can be: a square overflows beyond 1.8e19 in float32 (1.3e154 in float64), an
exp(z) beyond z = 88 (709).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnn.backends import Array

LARGEST_LOG_VARIANCE = 80.0
"""Of a Gaussian's answer, so that the variance is finite in float32; its loss knows no largest."""


def outputs_at(xp: Any, Z: Array, place: int, group: int) -> Array:
    """The units `place` of every group of so many neighbours: (m, K) of Z (m, K · group).

    As the sum of a row of which all others are 0, since a plan has no columns to slice; exact.
    """
    rows = Z.reshape(Z.size // group, group)
    at_place = (xp.arange(group) == place)[None, :]
    return xp.sum(xp.where(at_place, rows, 0), axis=1, keepdims=True).reshape(Z.shape[0], Z.shape[1] // group)


def _in_pairs(xp: Any, first: Array, second: Array) -> Array:
    """Two (m, K) by turns: (m, 2K)."""
    m, K = first.shape
    is_first = (xp.arange(2) == 0)[None, :]
    return xp.where(is_first, first.reshape(m * K, 1), second.reshape(m * K, 1)).reshape(m, 2 * K)


def _row(xp: Any, numbers: Sequence[float], dtype: Any) -> Array:
    """These numbers, (1, n): a plan knows no other constants than single numbers."""
    places = xp.arange(len(numbers))[None, :]
    row = (places * 0).astype(dtype)
    for place, number in enumerate(numbers):
        row = xp.where(places == place, number, row)
    return row


# ------------------------------------------------------------------------------------ classifiers


def sigmoid_cross_entropy(xp: Any, Z: Array, Y: Array, label_smoothing: float = 0.0) -> Array:
    """log(1 + exp(z)) − y z, for each output: equation (7) of the assignment with a = σ(z). Y (m, K) in [0, 1].

    Computed as log(1 + exp(−|z|)) + z ([z > 0] − y), in which nothing cancels: a confident answer is exact too.
    Label smoothing ε takes (1 − ε) y + ε/2 for y (Szegedy et al. 2016, section 7, of two classes; as Keras does).
    """
    Y = _smoothed(Y, label_smoothing)
    return xp.log1p(xp.exp(-xp.absolute(Z))) + Z * ((Z > 0).astype(Z.dtype) - Y)


def sigmoid_cross_entropy_backward(xp: Any, Z: Array, Y: Array, label_smoothing: float = 0.0) -> Array:
    """dZ = σ(Z) − Y, as ([z > 0] − y) ∓ σ(−|z|): as exact close to 1 as it is close to 0."""
    Y = _smoothed(Y, label_smoothing)
    E = xp.exp(-xp.absolute(Z))
    P = E / (1 + E)
    return ((Z > 0).astype(Z.dtype) - Y) + xp.where(Z > 0, -P, P)


def _smoothed(Y: Array, label_smoothing: float) -> Array:
    return Y * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else Y


def softmax_cross_entropy(xp: Any, Z: Array, Y: Array, label_smoothing: float = 0.0) -> Array:
    """log Σ_k exp(z_k) − z_label, for each example (m, 1). Y (m, K) bool, one-hot; or probabilities, floats.

    With d = z − max z as log(1 + Σ_others exp(d_k) + (exp(d_label) − 1)) − d_label: where the label's logit is the
    largest, nothing is lost beside the 1.

    Of probabilities t it is Σ_k t_k (log Σ_j exp(z_j) − z_k), the 1 being that of the largest logit. Label smoothing ε
    makes the targets t = (1 − ε) y + ε/K (Szegedy et al. 2016, section 7; as PyTorch does).
    """
    D = Z - xp.max(Z, axis=1, keepdims=True)
    # logits at the two ends of the dtype differ by more than it holds
    lowest = float(np.finfo(Z.dtype).min) / 2
    if _is_one_hot(Y) and not label_smoothing:
        at_label = xp.maximum(xp.sum(xp.where(Y, D, 0), axis=1, keepdims=True), lowest)
        others = xp.sum(xp.where(Y, 0, xp.exp(D)), axis=1, keepdims=True)
        return xp.log1p(others + xp.expm1(at_label)) - at_label
    T = _class_targets(xp, Z, Y, label_smoothing)
    beside = xp.sum(xp.where(_largest(xp, Z), 0, xp.exp(D)), axis=1, keepdims=True)
    along = xp.sum(T * xp.maximum(D, lowest), axis=1, keepdims=True)
    return xp.log1p(beside) * xp.sum(T, axis=1, keepdims=True) - along


def softmax_cross_entropy_backward(xp: Any, Z: Array, Y: Array, label_smoothing: float = 0.0) -> Array:
    """dZ = softmax(Z) − Y: at the label minus the sum of the others, which is exact for a confident answer too.

    Of probabilities t it is (Σ t) softmax(Z) − t, at the largest logit the sum of the other t less that of the other
    probabilities.
    """
    E = xp.exp(Z - xp.max(Z, axis=1, keepdims=True))
    if _is_one_hot(Y) and not label_smoothing:
        others, total = (xp.sum(terms, axis=1, keepdims=True) for terms in (xp.where(Y, 0, E), E))
        return xp.where(Y, -others / total, E / total)
    T, largest = _class_targets(xp, Z, Y, label_smoothing), _largest(xp, Z)
    beside, T_beside = (xp.sum(xp.where(largest, 0, terms), axis=1, keepdims=True) for terms in (E, T))
    T_total = xp.sum(T, axis=1, keepdims=True)
    scale = T_total / xp.sum(E, axis=1, keepdims=True)
    return xp.where(largest, T_beside - beside * scale, E * scale - T)


def _is_one_hot(Y: Array) -> bool:
    return bool(Y.dtype == np.bool_)


def _largest(xp: Any, Z: Array) -> Array:
    """Where the first of a row's largest entries is, bool (m, K)."""
    return xp.argmax(Z, axis=1, keepdims=True) == xp.arange(Z.shape[1])


def _class_targets(xp: Any, Z: Array, Y: Array, label_smoothing: float) -> Array:
    share = label_smoothing / Z.shape[1]
    if _is_one_hot(Y):
        return xp.where(Y, 1 - label_smoothing + share, share).astype(Z.dtype)
    return Y * (1 - label_smoothing) + share


def sigmoid_focal(xp: Any, Z: Array, Y: Array, gamma: float = 2.0, alpha: float | None = None) -> Array:
    """−α_t (1 − p_t)^γ log p_t, for each output: Lin et al. 2017, equation (5); (4) without α. Y (m, K) in [0, 1].

    p_t is p = σ(z) for the class 1 and 1 − p for the class 0, α_t likewise α and 1 − α; of a y between them, the two
    classes' losses are weighted by y and 1 − y. With γ = 0 it is the cross-entropy.
    """
    P1, P0, cost1, cost0 = _two_classes(xp, Z)
    weight1, weight0 = _class_weights(Y, alpha)
    return weight1 * (P0**gamma * cost1) + weight0 * (P1**gamma * cost0)


def sigmoid_focal_backward(xp: Any, Z: Array, Y: Array, gamma: float = 2.0, alpha: float | None = None) -> Array:
    """dz = ∓α_t (1 − p_t)^γ ((1 − p_t) − γ p_t log p_t), minus for the class 1 (Lin et al. 2017, appendix B).

    p_t is in no denominator, and 1 − p_t has no exponent below γ: all is finite up to p_t = 0 and 1, for γ below 1
    too, whose infinite slope by p_t the logit's p_t (1 − p_t) outweighs.
    """
    P1, P0, cost1, cost0 = _two_classes(xp, Z)
    weight1, weight0 = _class_weights(Y, alpha)
    slope1 = P0**gamma * (P0 + gamma * (P1 * cost1))
    slope0 = P1**gamma * (P1 + gamma * (P0 * cost0))
    return weight0 * slope0 - weight1 * slope1


def _two_classes(xp: Any, Z: Array) -> tuple[Array, Array, Array, Array]:
    """p = σ(z), 1 − p, −log p, −log(1 − p): each as exact where it is small as where it is not."""
    E = xp.exp(-xp.absolute(Z))
    near_1, near_0, log_total = 1 / (1 + E), E / (1 + E), xp.log1p(E)
    P1, P0 = xp.where(Z > 0, near_1, near_0), xp.where(Z > 0, near_0, near_1)
    return P1, P0, xp.maximum(-Z, 0) + log_total, xp.maximum(Z, 0) + log_total


def _class_weights(Y: Array, alpha: float | None) -> tuple[Array, Array]:
    return (Y, 1 - Y) if alpha is None else (Y * alpha, (1 - Y) * (1 - alpha))


def softmax_focal(xp: Any, Z: Array, Y: Array, gamma: float = 2.0) -> Array:
    """−(1 − p)^γ log p with p = softmax(Z)_label, for each example (m, 1): Lin et al. 2017, equation (4).

    Y (m, K) bool, one-hot. With γ = 0 it is the cross-entropy. 1 − p is the sum of the others' probabilities.
    """
    _, others, total = _label_and_others(xp, Z, Y)
    return (others / total) ** gamma * softmax_cross_entropy(xp, Z, Y)


def softmax_focal_backward(xp: Any, Z: Array, Y: Array, gamma: float = 2.0) -> Array:
    """dz_k = u_k (1 − p)^γ ((1 − p) − γ p log p): u is −1 at the label, elsewhere the class's share of the others.

    From equation (4) with dp/dz_k = −p (1 − p) u_k; finite up to p = 0 and 1, as the sigmoid's is.
    """
    E, others, total = _label_and_others(xp, Z, Y)
    wrong, right = others / total, xp.sum(xp.where(Y, E, 0), axis=1, keepdims=True) / total
    slope = wrong**gamma * (wrong + gamma * (right * softmax_cross_entropy(xp, Z, Y)))
    # others that are all 0 have no shares, and nothing to share
    shares = E / xp.maximum(others, float(np.finfo(Z.dtype).tiny))
    return xp.where(Y, -slope, slope * shares)


def _label_and_others(xp: Any, Z: Array, Y: Array) -> tuple[Array, Array, Array]:
    """exp(z_k − max z), its sum over the classes that are not the label, and over all."""
    E = xp.exp(Z - xp.max(Z, axis=1, keepdims=True))
    others, total = (xp.sum(terms, axis=1, keepdims=True) for terms in (xp.where(Y, 0, E), E))
    return E, others, total


# ----------------------------------------------------------------------------------------- values


def squared_error(xp: Any, Z: Array, Y: Array) -> Array:
    """(z − y)², for each output."""
    E = Z - Y
    return E * E


def squared_error_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = 2 (Z − Y)."""
    return 2 * (Z - Y)


def absolute_error(xp: Any, Z: Array, Y: Array) -> Array:
    """|z − y|, for each output: least for the median."""
    return xp.absolute(Z - Y)


def absolute_error_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = sign(Z − Y), of which 0 is taken where z = y."""
    return xp.sign(Z - Y)


def huber(xp: Any, Z: Array, Y: Array, delta: float = 1.0) -> Array:
    """d²/2 where |d| ≤ δ, else δ (|d| − δ/2), with d = z − y, for each output: half of Hastie et al. 2009, (10.23).

    As PyTorch's huber_loss. Computed as c (|d| − c/2) with c = min(|d|, δ), which squares no large d.
    """
    D = xp.absolute(Z - Y)
    C = xp.minimum(D, delta)
    return C * (D - 0.5 * C)


def huber_backward(xp: Any, Z: Array, Y: Array, delta: float = 1.0) -> Array:
    """dz = d where |d| ≤ δ, else δ sign(d)."""
    return xp.maximum(xp.minimum(Z - Y, delta), -delta)


def poisson(xp: Any, Z: Array, Y: Array) -> Array:
    """exp(z) − y z, for each output: −log of Poisson's probability of y at the rate exp(z), less log y!. Y (m, K) ≥ 0.

    As PyTorch's poisson_nll_loss. The logit is the rate's logarithm; beyond z = 88 in float32 (709 in float64) the
    loss is infinite, as no number of the dtype is that large.
    """
    return xp.exp(Z) - Y * Z


def poisson_backward(xp: Any, Z: Array, Y: Array) -> Array:
    """dZ = exp(Z) − Y."""
    return xp.exp(Z) - Y


def quantile(xp: Any, Z: Array, Y: Array, quantiles: Sequence[float]) -> Array:
    """The mean over Q quantiles τ of max(τ d, (τ − 1) d) with d = y − z, for each target: least for the τ-quantiles.

    Koenker and Bassett 1978. Z (m, K · Q): the unit k Q + q is the quantile q of target k. Y (m, K), losses (m, K).
    """
    above, below = _pinball(xp, Z, quantiles)
    D = _errors(Z, Y, len(quantiles))
    # not the larger of two products, of which one could overflow
    parts = D * xp.where(D > 0, above, below)
    return xp.sum(parts, axis=1, keepdims=True).reshape(*Y.shape)


def quantile_backward(xp: Any, Z: Array, Y: Array, quantiles: Sequence[float]) -> Array:
    """dz = −τ/Q where z < y, (1 − τ)/Q where z > y, and 0 where they are equal."""
    above, below = _pinball(xp, Z, quantiles)
    D = _errors(Z, Y, len(quantiles))
    return xp.where(D > 0, -above, xp.where(D < 0, -below, 0)).reshape(*Z.shape)


def _pinball(xp: Any, Z: Array, quantiles: Sequence[float]) -> tuple[Array, Array]:
    """What a loss is times d, (1, Q): where d > 0, and where d < 0."""
    Q = len(quantiles)
    return _row(xp, [tau / Q for tau in quantiles], Z.dtype), _row(xp, [(tau - 1) / Q for tau in quantiles], Z.dtype)


def _errors(Z: Array, Y: Array, group: int) -> Array:
    """y − z of every target and each of its outputs, (m K, group)."""
    return Y.reshape(Y.size, 1) - Z.reshape(Y.size, group)


def gaussian_nll(xp: Any, Z: Array, Y: Array, eps: float = 1e-6) -> Array:
    """(s + (y − μ)² exp(−s)) / 2, for each target: Kendall and Gal 2017, equation (8), with s = log σ².

    −log of the normal density less its constant log(2π)/2, as PyTorch's gaussian_nll_loss. Z (m, 2K): the unit 2k is
    the mean μ of target k, 2k + 1 its s. Y (m, K), losses (m, K).

    A variance below `eps` counts as eps, and then s has the slope 0; otherwise the loss of an exact mean would have no
    least value. A large s needs no bound: the loss grows with s/2, which leads back.
    """
    D, log_variance, root = _standardized(xp, Z, Y, eps)
    return 0.5 * (log_variance + (D * root) * (D * root))


def gaussian_nll_backward(xp: Any, Z: Array, Y: Array, eps: float = 1e-6) -> Array:
    """dμ = (μ − y) exp(−s), ds = (1 − (y − μ)² exp(−s)) / 2, and 0 where exp(s) ≤ eps."""
    D, log_variance, root = _standardized(xp, Z, Y, eps)
    lowest = math.log(eps)
    slope = xp.where(log_variance > lowest, 0.5 - 0.5 * ((D * root) * (D * root)), 0)
    return _in_pairs(xp, (D * root) * root, slope)


def gaussian_answer(xp: Any, Z: Array, eps: float = 1e-6) -> Array:
    """The means as they are, and in the odd columns the variances exp(s), at least eps and at most exp(80)."""
    is_mean = (xp.arange(2) == 0)[None, :]
    rows = Z.reshape(Z.size // 2, 2)
    variance = xp.exp(xp.minimum(xp.maximum(rows, math.log(eps)), LARGEST_LOG_VARIANCE))
    return xp.where(is_mean, rows, variance).reshape(*Z.shape)


def _standardized(xp: Any, Z: Array, Y: Array, eps: float) -> tuple[Array, Array, Array]:
    """μ − y, s, and exp(−s/2), by which an error is multiplied before it is squared: less overflows so."""
    log_variance = xp.maximum(outputs_at(xp, Z, 1, 2), math.log(eps))
    return outputs_at(xp, Z, 0, 2) - Y, log_variance, xp.exp(-0.5 * log_variance)


LOSSES: dict[str, Any] = {}
"""The losses by name, objects with the methods `losses` and `gradient`: `dnn.losses` puts the built-in ones here."""
