"""The mathematics, once, in `xp`.

Every function takes the array module first, then arrays, and writes into the buffers that it is given by
keyword. It allocates nothing, validates nothing and reads nothing back to the host. Shapes: m examples, one a
row; a layer of n_in inputs and n_out units. An argument named in the brackets after "may alias" may be the same
array object as the output; no other two may overlap.

exp and a product may overflow here to the infinity that gives the right limit; callers silence NumPy's warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends import Array

# ---------------------------------------------------------------------------------------------- linear


def linear_forward(xp: Any, A_prev: Array, W: Array, b: Array, *, out: Array, scratch: Array) -> None:
    """Z = A_prev Wᵀ + b, equation (4) of the assignment with one example a row.

    A_prev (m, n_in), W (n_out, n_in), b (n_out,), out = Z and scratch (m, n_out), C-contiguous.
    """
    xp.dot(A_prev, W.T, out=out)
    # in two passes: adding b itself, NumPy would allocate a buffer to repeat it in, every time
    xp.copyto(scratch, b)
    xp.add(out, scratch, out=out)


def linear_backward(
    xp: Any, dZ: Array, A_prev: Array, W: Array, ones: Array, *, dW: Array, db: Array, dA_prev: Array | None
) -> None:
    """dW = dZᵀ A_prev, db = Σ_i dZ_i, dA_prev = dZ W: equations (8) to (10), the 1/m being in dZ already.

    dZ (m, n_out), ones (m,), dW (n_out, n_in), db (n_out,), dA_prev (m, n_in), or None where nobody needs it.
    """
    xp.dot(dZ.T, A_prev, out=dW)
    # a product with ones: faster than a sum over the rows, and closer in float32
    xp.dot(ones, dZ, out=db)
    if dA_prev is not None:
        xp.dot(dZ, W, out=dA_prev)


# ----------------------------------------------------------------------------------------- activations
# Each backward takes A, the forward's output: none of them needs Z, so a layer keeps one array, not two.


def relu(xp: Any, Z: Array, *, out: Array) -> None:
    """A = max(0, Z). `out` may alias Z."""
    xp.maximum(Z, 0, out=out)


def relu_backward(xp: Any, dA: Array, A: Array, *, out: Array, scratch: Array) -> None:
    """dZ = dA · [A > 0], so relu'(0) = 0. `out` may alias dA."""
    xp.sign(A, out=scratch)
    xp.multiply(dA, scratch, out=out)


def tanh(xp: Any, Z: Array, *, out: Array) -> None:
    """A = tanh(Z). `out` may alias Z."""
    xp.tanh(Z, out=out)


def tanh_backward(xp: Any, dA: Array, A: Array, *, out: Array, scratch: Array) -> None:
    """dZ = dA · (1 − A²). `out` may alias dA."""
    xp.multiply(A, A, out=scratch)
    xp.subtract(1, scratch, out=scratch)
    xp.multiply(dA, scratch, out=out)


def sigmoid(xp: Any, Z: Array, *, out: Array) -> None:
    """A = 1 / (1 + exp(−Z)). `out` may alias Z."""
    xp.negative(Z, out=out)
    xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    xp.reciprocal(out, out=out)


def sigmoid_backward(xp: Any, dA: Array, A: Array, *, out: Array, scratch: Array) -> None:
    """dZ = dA · A (1 − A). `out` may alias dA."""
    xp.subtract(1, A, out=scratch)
    xp.multiply(scratch, A, out=scratch)
    xp.multiply(dA, scratch, out=out)


def softmax(xp: Any, Z: Array, ones: Array, *, out: Array, column: Array) -> None:
    """P_ik = exp(z_ik) / Σ_j exp(z_ij). ones (K, 1), column (m, 1). `out` may alias Z.

    The row's largest logit is taken off first, which changes nothing and keeps exp from overflowing.
    """
    xp.max(Z, axis=1, keepdims=True, out=column)
    xp.subtract(Z, column, out=out)
    xp.exp(out, out=out)
    xp.dot(out, ones, out=column)
    xp.divide(out, column, out=out)


# ------------------------------------------------------------------------------------ outputs and losses
# From the logits Z (m, K) and the targets Y (m, K): the outputs P (m, K), and `loss` (1,), the mean of the losses of
# the m examples. `weights` (m,) is filled with 1/m, or with 1/(m K) where the K units are averaged too: a product
# with it is a mean that cannot overflow on the way. Of all three losses dJ/dZ is proportional to P − Y.


def sigmoid_cross_entropy(
    xp: Any, Z: Array, Y: Array, weights: Array, ones: Array, *, P: Array, loss: Array, scratch: Array, row: Array
) -> None:
    """P = σ(Z), J = mean_ik [log(1 + exp(z)) − y z]: equation (7) with a = σ(z), finite for every finite logit.

    Y in [0, 1]; K units are K labels of their own. ones (K, 1), scratch (m, K), row (K,).
    """
    xp.multiply(Z, Y, out=P)
    xp.logaddexp(Z, 0, out=scratch)
    xp.subtract(scratch, P, out=scratch)
    xp.dot(weights, scratch, out=row)
    xp.dot(row, ones, out=loss)
    sigmoid(xp, Z, out=P)


def softmax_cross_entropy(
    xp: Any,
    Z: Array,
    Y: Array,
    weights: Array,
    ones: Array,
    *,
    P: Array,
    loss: Array,
    scratch: Array,
    column: Array,
    losses: Array,
) -> None:
    """P = softmax(Z), J = mean_i [log Σ_k exp(z_ik) − Σ_k y_ik z_ik], finite for every finite logit.

    Y one-hot. ones (K, 1), scratch (m, K), column and losses (m, 1). P may alias Z.
    """
    xp.max(Z, axis=1, keepdims=True, out=column)
    xp.subtract(Z, column, out=P)
    # logits at the two ends of the dtype differ by more than it holds: 0 · (−inf) must not reach the product
    xp.maximum(P, LOWEST_LOGIT[P.dtype.char], out=P)
    xp.multiply(P, Y, out=scratch)
    xp.dot(scratch, ones, out=losses)
    xp.exp(P, out=P)
    xp.dot(P, ones, out=column)
    xp.divide(P, column, out=P)
    xp.log(column, out=column)
    xp.subtract(column, losses, out=losses)
    xp.dot(weights, losses, out=loss)


def squared_error(
    xp: Any, Z: Array, Y: Array, weights: Array, ones: Array, *, loss: Array, scratch: Array, row: Array
) -> None:
    """P = Z, J = mean_ik (z − y)². ones (K, 1), scratch (m, K), row (K,)."""
    xp.subtract(Z, Y, out=scratch)
    xp.multiply(scratch, scratch, out=scratch)
    xp.dot(weights, scratch, out=row)
    xp.dot(row, ones, out=loss)


def loss_backward(xp: Any, P: Array, Y: Array, scale: float, *, out: Array) -> None:
    """dZ = dJ/dZ = scale · (P − Y). `out` may alias P.

    scale is 1/m for softmax, 1/(m K) for sigmoid, 2/(m K) for the squared error.
    """
    xp.subtract(P, Y, out=out)
    xp.multiply(out, scale, out=out)


LOWEST_LOGIT = {char: float(np.finfo(char).min) / 2 for char in "efd"}


def count_correct_classes(
    xp: Any, P: Array, labels: Array, ones: Array, *, correct: Array, predicted: Array, hits: Array
) -> None:
    """How many of the m rows of P have their largest entry, the first of equals, at the row's label.

    labels and predicted (m, 1) int64, ones (m,), hits (m, 1), correct (1,).
    """
    xp.argmax(P, axis=1, keepdims=True, out=predicted)
    xp.equal(predicted, labels, out=hits)
    xp.dot(ones, hits, out=correct)


def count_correct_labels(
    xp: Any,
    P: Array,
    Y: Array,
    ones_m: Array,
    ones_k: Array,
    *,
    correct: Array,
    predicted: Array,
    actual: Array,
    hits: Array,
    row: Array,
) -> None:
    """How many of the m K entries of P and Y are on the same side of 1/2, which itself counts as 0.

    predicted and actual (m, K) bool, hits (m, K), ones_m (m,), ones_k (K, 1), row (K,), correct (1,).
    """
    xp.greater(P, 0.5, out=predicted)
    xp.greater(Y, 0.5, out=actual)
    xp.equal(predicted, actual, out=hits)
    xp.dot(ones_m, hits, out=row)
    xp.dot(row, ones_k, out=correct)


# --------------------------------------------------------------------------------------------- updates
# Over the flat buffers: theta, grad, the optimizer's state and scratch have one shape and dtype. What changes
# between steps comes in as one-element device arrays.


def sgd(xp: Any, theta: Array, grad: Array, learning_rate: Array, *, scratch: Array) -> None:
    """θ ← θ − α g: equations (16) and (17). learning_rate (1,)."""
    xp.multiply(grad, learning_rate, out=scratch)
    xp.subtract(theta, scratch, out=theta)


def momentum(
    xp: Any, theta: Array, grad: Array, velocity: Array, learning_rate: Array, momentum: float, *, scratch: Array
) -> None:
    """v ← μ v + g, θ ← θ − α v: Polyak's heavy ball, with α outside v as in PyTorch."""
    xp.multiply(velocity, momentum, out=velocity)
    xp.add(velocity, grad, out=velocity)
    sgd(xp, theta, velocity, learning_rate, scratch=scratch)


def adam(
    xp: Any,
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    step_size: Array,
    epsilon: Array,
    beta1: float,
    beta2: float,
    *,
    scratch: Array,
) -> None:
    """m ← β₁ m + g, v ← β₂ v + g², θ ← θ − a m / (√v + e), with a and e from `adam_factors`.

    Kingma and Ba 2015, algorithm 1, where m and v are the paper's divided by 1 − β₁ and 1 − β₂: two passes fewer
    over the parameters.
    """
    xp.multiply(m, beta1, out=m)
    xp.add(m, grad, out=m)
    xp.multiply(v, beta2, out=v)
    xp.multiply(grad, grad, out=scratch)
    xp.add(v, scratch, out=v)
    xp.sqrt(v, out=scratch)
    xp.add(scratch, epsilon, out=scratch)
    xp.divide(m, scratch, out=scratch)
    xp.multiply(scratch, step_size, out=scratch)
    xp.subtract(theta, scratch, out=theta)


def adam_factors(
    xp: Any,
    learning_rate: Array,
    eps: float,
    betas: Array,
    one_minus_betas: Array,
    *,
    powers: Array,
    c: Array,
    c1: Array,
    c2: Array,
    step_size: Array,
    epsilon: Array,
) -> None:
    """β^t ← β^t β, c = (1 − β^t) / (1 − β), a = α √c₂ / c₁, e = ε √c₂: the bias corrections of step t.

    betas, one_minus_betas, powers = (β₁^t, β₂^t) and c are (2,), c1 and c2 are c's two halves, learning_rate (1,), all
    float64; step_size = a and epsilon = e are (1,) of the parameters' dtype.
    """
    xp.multiply(powers, betas, out=powers)
    xp.subtract(1, powers, out=c)
    xp.divide(c, one_minus_betas, out=c)
    xp.sqrt(c2, out=c2)
    xp.multiply(c2, eps, out=epsilon)
    xp.multiply(c2, learning_rate, out=c2)
    xp.divide(c2, c1, out=step_size)
