"""The mathematics, once, in `xp`.

Every function takes the array module first, then arrays, and writes into the buffers that it is given by
keyword. It allocates nothing, validates nothing and reads nothing back to the host. Shapes: m examples, one a
row; a layer of n_in inputs and n_out units. Where a docstring says that `out` may alias an argument, the two may be
the same array object; no other two may overlap.

exp and a product may overflow here to the infinity that gives the right limit; callers silence NumPy's warning.

A backend may own a faster version of a function here under the same name (`Backend.fused`); the one here is its
specification, side effects included. What is called `scratch` holds anything afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dnn.backends import Array

# ----------------------------------------------------------------------------------------------- batches


def gather(xp: Any, source: Array, rows: Array, scale: Any, *, out: Array, scratch: Array) -> None:
    """out_i = scale · source[rows_i]: the examples of a batch. rows (m,), whole numbers within source.

    scratch has out's shape and source's dtype, and is out itself where that is out's too and there is no scale (None).
    A product is taken in the scale's dtype; what out's dtype does not hold is rounded to it.
    """
    xp.take(source, rows, axis=0, out=scratch)
    if scale is not None:
        xp.multiply(scratch, scale, out=out)
    elif scratch is not out:
        out[...] = scratch


def one_hot(xp: Any, labels: Array, starts: Array, one: Array, *, out: Array, index: Array) -> None:
    """out_ik = [k = label_i]. labels (m, 1) int64, starts (m, 1) int64 is i K, one (1,), out (m, K).

    index (m, 1) int64 is scratch.
    """
    out.fill(0)
    xp.add(starts, labels, out=index)
    xp.put(out, index, one)


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


def linear_relu(xp: Any, A_prev: Array, W: Array, b: Array, *, out: Array, scratch: Array) -> None:
    """A = max(0, A_prev Wᵀ + b). Shapes as in linear_forward."""
    linear_forward(xp, A_prev, W, b, out=out, scratch=scratch)
    relu(xp, out, out=out)


def linear_tanh(xp: Any, A_prev: Array, W: Array, b: Array, *, out: Array, scratch: Array) -> None:
    """A = tanh(A_prev Wᵀ + b). Shapes as in linear_forward."""
    linear_forward(xp, A_prev, W, b, out=out, scratch=scratch)
    tanh(xp, out, out=out)


def linear_sigmoid(xp: Any, A_prev: Array, W: Array, b: Array, *, out: Array, scratch: Array) -> None:
    """A = σ(A_prev Wᵀ + b). Shapes as in linear_forward."""
    linear_forward(xp, A_prev, W, b, out=out, scratch=scratch)
    sigmoid(xp, out, out=out)


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
# From the logits Z (m, K) and the targets: the outputs P (m, K), the gradient dZ (m, K) = dJ/dZ of the mean loss J of
# the m examples, each loss, and each hit: 1 where the answer is right, else 0. Of all three losses dJ/dZ is
# scale (P − Y); scale is 1/m for softmax, 1/(m K) for sigmoid and 2/(m K) for the squared error, whose losses are
# averaged over the K units too.


LOWEST_LOGIT = {char: float(np.finfo(char).min) / 2 for char in "efd"}
"""Below it, by dtype, a difference of two logits is held: half of the lowest number."""


def sigmoid_cross_entropy(
    xp: Any,
    Z: Array,
    Y: Array,
    scale: float,
    *,
    P: Array,
    dZ: Array,
    losses: Array,
    hits: Array,
    predicted: Array,
    actual: Array,
) -> None:
    """P = σ(Z), loss = log(1 + exp(z)) − y z: equation (7) with a = σ(z), finite for every finite logit.

    Computed as log(1 + exp(−|z|)) + (max(z, 0) − y z), in which nothing cancels: exact for a sure answer too.

    Y (m, K) in [0, 1]; K units are K labels of their own. losses and hits (m, K): a hit has P and Y on the same side of
    1/2, which itself counts as below. predicted and actual (m, K) bool are scratch.
    """
    xp.absolute(Z, out=losses)
    xp.negative(losses, out=losses)
    xp.exp(losses, out=losses)
    xp.log1p(losses, out=losses)
    xp.multiply(Z, Y, out=dZ)
    xp.maximum(Z, 0, out=P)
    xp.subtract(P, dZ, out=P)
    xp.add(losses, P, out=losses)
    sigmoid(xp, Z, out=P)
    xp.subtract(P, Y, out=dZ)
    xp.multiply(dZ, scale, out=dZ)
    xp.greater(P, 0.5, out=predicted)
    xp.greater(Y, 0.5, out=actual)
    xp.equal(predicted, actual, out=hits)


def softmax_cross_entropy(
    xp: Any,
    Z: Array,
    labels: Array,
    Y: Array,
    ones: Array,
    scale: float,
    *,
    P: Array,
    dZ: Array,
    losses: Array,
    hits: Array,
    column: Array,
    predicted: Array,
) -> None:
    """P = softmax(Z), loss_i = log Σ_k exp(z_ik) − z_i,label, finite for every finite logit.

    labels (m, 1) int64, and Y (m, K), the same one-hot. losses and hits (m, 1): a hit has the first of the row's
    largest entries at the label. ones (K, 1); column (m, 1) and predicted (m, 1) int64 are scratch.
    """
    xp.max(Z, axis=1, keepdims=True, out=column)
    xp.subtract(Z, column, out=P)
    # logits at the two ends of the dtype differ by more than it holds: 0 · (−inf) must not reach the product
    xp.maximum(P, LOWEST_LOGIT[P.dtype.char], out=P)
    xp.multiply(P, Y, out=dZ)
    xp.dot(dZ, ones, out=losses)
    xp.exp(P, out=P)
    xp.dot(P, ones, out=column)
    xp.divide(P, column, out=P)
    xp.log(column, out=column)
    xp.subtract(column, losses, out=losses)
    xp.subtract(P, Y, out=dZ)
    xp.multiply(dZ, scale, out=dZ)
    xp.argmax(P, axis=1, keepdims=True, out=predicted)
    xp.equal(predicted, labels, out=hits)


def squared_error(xp: Any, Z: Array, Y: Array, scale: float, *, dZ: Array, losses: Array) -> None:
    """loss = (z − y)², and P is Z. losses (m, K)."""
    xp.subtract(Z, Y, out=dZ)
    xp.multiply(dZ, dZ, out=losses)
    xp.multiply(dZ, scale, out=dZ)


def tally(
    xp: Any,
    losses: Array,
    hits: Array,
    weights: Array,
    ones_m: Array,
    ones_k: Array,
    *,
    loss: Array,
    correct: Array,
    loss_total: Array,
    correct_total: Array,
    row: Array,
) -> None:
    """The batch's mean loss and number of hits, and both added to the running totals.

    losses and hits (m, k), ones_m (m,), ones_k (k, 1), loss and correct (1,), totals (1,) float64, row (k,) scratch.
    weights (m,) are 1/(m k): a product with them is a mean that cannot overflow on the way.
    """
    xp.dot(weights, losses, out=row)
    xp.dot(row, ones_k, out=loss)
    xp.dot(ones_m, hits, out=row)
    xp.dot(row, ones_k, out=correct)
    xp.add(loss_total, loss, out=loss_total)
    xp.add(correct_total, correct, out=correct_total)


# ------------------------------------------------------------------------------------- mixed precision
# A step in 16 bits on float32 master parameters, its gradients scaled by S so that small ones are not lost
# (Micikevicius et al. 2018, section 3); S is found as PyTorch's GradScaler finds it. finite and good are (1,) int64,
# loss_scale = S is (1,) of the master's dtype.

LOSS_SCALE_BOUNDS = 1.0, 2.0**24
"""S stays within: with a loss that is not finite, or gradients that are all zero, it would run away."""


def cast(xp: Any, source: Array, *, out: Array) -> None:
    """out = source, rounded to out's dtype. One shape."""
    out[...] = source


def scaled_cast(xp: Any, source: Array, loss_scale: Array, *, out: Array, scratch: Array) -> None:
    """out = S · source, rounded to out's dtype. One shape; scratch of source's dtype may be source itself."""
    xp.multiply(source, loss_scale, out=scratch)
    out[...] = scratch


def find_overflow(xp: Any, grad: Array, *, finite: Array, extreme: Array, is_finite: Array) -> None:
    """finite ← 0 where any of grad (n,) is infinite or nan; else as it is.

    extreme (1,) of grad's dtype and is_finite (1,) bool are scratch: a nan is the largest of all, and the smallest.
    """
    xp.max(grad, axis=0, keepdims=True, out=extreme)
    xp.isfinite(extreme, out=is_finite)
    xp.multiply(finite, is_finite, out=finite)
    xp.min(grad, axis=0, keepdims=True, out=extreme)
    xp.isfinite(extreme, out=is_finite)
    xp.multiply(finite, is_finite, out=finite)


def unscale(xp: Any, scaled: Array, loss_scale: Array, finite: Array, *, out: Array) -> None:
    """out = scaled / S in out's dtype, and zeros where finite is 0."""
    out[...] = scaled
    xp.divide(out, loss_scale, out=out)
    # x⁰ is 1 for every x, the infinite and nan too; x¹ is x
    xp.power(out, finite, out=out)
    xp.multiply(out, finite, out=out)


def loss_scaling(xp: Any, interval: int, *, loss_scale: Array, good: Array, finite: Array, exponent: Array) -> None:
    """S ← 2 S after `interval` finite steps in a row, S ← S / 2 after one that is not; and finite ← 1 for the next.

    good counts the finite steps since S or the row last changed. exponent (1,) int64 is scratch.
    """
    lowest, highest = LOSS_SCALE_BOUNDS
    xp.add(good, 1, out=good)
    xp.multiply(good, finite, out=good)
    xp.floor_divide(good, interval, out=exponent)
    xp.remainder(good, interval, out=good)
    xp.add(exponent, finite, out=exponent)
    xp.subtract(exponent, 1, out=exponent)
    xp.ldexp(loss_scale, exponent, out=loss_scale)
    xp.maximum(loss_scale, lowest, out=loss_scale)
    xp.minimum(loss_scale, highest, out=loss_scale)
    finite.fill(1)


# --------------------------------------------------------------------------------------------- updates
# Over the flat buffers: theta, grad, the optimizer's state and scratch have one shape and dtype. What changes
# between steps comes in as one-element device arrays: the learning rate, and momentum, β₁ and β₂ too. A step that must
# leave everything to the bit as it is has gradients and a learning rate of 0 and the others 1.


def sgd(xp: Any, theta: Array, grad: Array, learning_rate: Array, *, scratch: Array) -> None:
    """θ ← θ − α g: equations (16) and (17). learning_rate (1,)."""
    xp.multiply(grad, learning_rate, out=scratch)
    xp.subtract(theta, scratch, out=theta)


def momentum(
    xp: Any, theta: Array, grad: Array, velocity: Array, learning_rate: Array, momentum: Array, *, scratch: Array
) -> None:
    """v ← μ v + g, θ ← θ − α v: Polyak's heavy ball, with α outside v as in PyTorch. momentum = μ (1,)."""
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
    beta1: Array,
    beta2: Array,
    *,
    scratch: Array,
) -> None:
    """m ← β₁ m + g, v ← β₂ v + g², θ ← θ − a m / (√v + e), with a and e from `adam_factors`. All four (1,).

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
    decays: Array,
    *,
    powers: Array,
    c: Array,
    c1: Array,
    c2: Array,
    step_size: Array,
    epsilon: Array,
) -> None:
    """c = (1 − β^t) / (1 − β), a = α √c₂ / c₁, e = ε √c₂: the bias corrections of step t; and β^t for the next.

    betas, one_minus_betas, powers = (β₁^(t−1), β₂^(t−1)) and c are (2,), c1 and c2 are c's two halves, learning_rate
    (1,), all float64; step_size = a and epsilon = e are (1,) of the parameters' dtype. powers are multiplied by decays
    (2,): β₁ and β₂, or ones where the step does not count; then a is 0 with α, and finite though t be 1.
    """
    xp.multiply(powers, betas, out=c)
    xp.multiply(powers, decays, out=powers)
    xp.subtract(1, c, out=c)
    xp.divide(c, one_minus_betas, out=c)
    xp.sqrt(c2, out=c2)
    xp.multiply(c2, eps, out=epsilon)
    xp.multiply(c2, learning_rate, out=c2)
    xp.divide(c2, c1, out=step_size)
