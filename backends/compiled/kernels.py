"""A step as a program for compiled code: its operations on ranges of rows, of units or of theta, and what runs them.

All that Numba compiles stands in this one file: its cache of machine code knows no other file's changes.

A program is a table, a row an operation: KIND, WHOSE (how it is shared out among the threads), three sizes, a flag, and
addresses. Every thread walks the same table and does its share of each operation; at a BARRIER it waits for the
others. The operations are those of dnn.functional under the same names, where their equations stand; here are only the
loops. `one` is an array of one element whose dtype is the program's.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from dnn.backends.compiled.machine import IS_X86

KIND, WHOSE, M, N, K, FLAG, AT = range(7)
"""The columns of the table; from AT on, addresses."""
COLUMNS = 20

(
    BARRIER,
    GATHER,
    GATHER_SCALED,
    GATHER_WHOLE,
    ONE_HOT,
    LINEAR,
    LINEAR_RELU,
    LINEAR_TANH,
    LINEAR_SIGMOID,
    INPUT_GRADIENT,
    RELU_BACKWARD,
    TANH_BACKWARD,
    SIGMOID_BACKWARD,
    SIGMOID,
    SOFTMAX,
    SIGMOID_CROSS_ENTROPY,
    SOFTMAX_CROSS_ENTROPY,
    SQUARED_ERROR,
    GRADIENTS,
    TALLY,
    SGD,
    MOMENTUM,
    ADAM,
    ADAM_FACTORS,
) = range(24)

FEW_UNITS, MANY_INPUTS = 32, 1024
"""Of a layer whose product in float64 is taken the other way round."""

LINEARS, OF_LAYERS = range(LINEAR, LINEAR_SIGMOID + 1), range(LINEAR, SIGMOID_BACKWARD + 1)
"""Kinds that stand side by side above: a layer's forward; all that is done by rows or by units."""

ROWS, UNITS, THETA, FIRST = range(4)
"""Whose share: some rows of the batch, some of the N columns, a part of theta; or the first thread does it alone."""

# a message to the helping threads: what to run, and the counters that all threads meet at, a cache line each
OPS, COUNT, BOUNDS, THREADS, GEMM, BASE, YIELD, SLEEP, GO, TAKEN, ARRIVED, STOP = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32,
)  # fmt: skip
SYNC = 40

# sums may be taken in the vector's order and a product fused with its sum; nan and infinity stay what they are
_settings: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_loop = njit(**_settings, fastmath={"nsz", "contract", "reassoc", "arcp"})
_exact = njit(**_settings, fastmath={"contract"})
_once = njit(**_settings, fastmath={"contract"}, inline="always")
"""For what is called in one place: compiled there, not by itself too."""

# ------------------------------------------------------------------------------------- what Python cannot say


@intrinsic
def _pointer(typing: Any, address: Any, one: Any) -> Any:
    """An address as a pointer to numbers of one's dtype."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(one.dtype)(address, one), code


@intrinsic
def _add_to(typing: Any, address: Any, value: Any) -> Any:
    """*address += value, seen by all threads; what stood there before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    """What stands at address now, and all that was written before it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), code


@intrinsic
def _pause(typing: Any) -> Any:
    """A moment's rest for the other thread of this core."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), code


@intrinsic
def _call(typing: Any, address: Any, argument: Any) -> Any:
    """The C function int f(int) at address."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(function, [builder.trunc(arguments[1], ir.IntType(32))])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), code


@intrinsic
def _gemm(
    typing: Any, address: Any, one: Any, trans_a: Any, trans_b: Any, m: Any, n: Any, k: Any, a: Any, lda: Any, b: Any,
    ldb: Any, c: Any, ldc: Any,
) -> Any:  # fmt: skip
    """c (m, n) = op(a) op(b), row-major: the gemm at address, of the CBLAS with 64-bit sizes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole, word = ir.IntType(32), ir.IntType(64)
        number = context.get_value_type(one.dtype)
        function, _, a_is, b_is, *sizes, a, lda, b, ldb, c, ldc = arguments
        kinds = [whole] * 3 + [word] * 3 + [number, word, word, word, word, number, word, word]
        call = builder.inttoptr(function, ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        operations = [builder.trunc(builder.add(word(111), given), whole) for given in (a_is, b_is)]
        given = [whole(101), *operations, *sizes, number(1.0), a, lda, b, ldb, number(0.0), c, ldc]
        builder.call(call, given)
        return context.get_dummy_value()

    return types.none(types.int64, one, *[types.int64] * 11), code


@intrinsic
def _as_float32(typing: Any, bits: Any) -> Any:
    """The float32 of these bits."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@_exact
def _array(address, one, n):
    return numba.carray(_pointer(address, one), (n,))


@_exact
def _at(address, one, first, n):
    return numba.carray(_pointer(address + first * one.itemsize, one), (n,))


@_exact
def _matrix(address, one, m, n):
    return numba.carray(_pointer(address, one), (m, n))


# ------------------------------------------------------------------------------------------------ exp

_F = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _F(1.44269504088896341), _F(0.693359375), _F(-2.12194440e-4)
_E1, _E2, _E3 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E4, _E5, _E6 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_LOWEST, _HIGHEST = _F(-87.33654), _F(88.72283)
_HALF, _ONE, _ZERO, _INFINITY = _F(0.5), _F(1), _F(0), _F(np.inf)


@_exact
def _exp32(x):
    """exp in float32 by the polynomial of Cephes' expf, as the vector units can do it; below 2⁻¹²⁶ it is 0."""
    inside = max(min(x, _HIGHEST), _LOWEST)
    n = np.floor(inside * _LOG2_E + _HALF)
    r = (inside - n * _LN2_HIGH) - n * _LN2_LOW
    series = ((((_E1 * r + _E2) * r + _E3) * r + _E4) * r + _E5) * r + _E6
    # 2ⁿ in two halves: n can be 128, which no exponent holds
    whole = np.int32(n)
    half = whole >> 1
    low, high = _as_float32(np.int32((half + 127) << 23)), _as_float32(np.int32((whole - half + 127) << 23))
    value = ((series * r * r + r) + _ONE) * low * high
    if x < _LOWEST:
        value = _ZERO
    if x > _HIGHEST:
        value = _INFINITY
    return value if x == x else x


_T1, _T2, _T3 = _F(-5.70498872745e-3), _F(2.06390887954e-2), _F(-5.37397155531e-2)
_T4, _T5, _STEEP = _F(1.33314422036e-1), _F(-3.33332819422e-1), _F(0.625)


@_exact
def _tanh32(x):
    """tanh in float32: the polynomial of Cephes' tanhf near 0, where the exponential's form would cancel."""
    z, size = x * x, abs(x)
    near = ((((_T1 * z + _T2) * z + _T3) * z + _T4) * z + _T5) * z * x + x
    far = _ONE - (_ONE + _ONE) / (_exp32(size + size) + _ONE)
    return near if size < _STEEP else (far if x > _ZERO else -far)


def _exp(x):
    """exp, in the dtype of x."""


@numba.extending.overload(_exp)
def _exp_of(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: np.exp(x)


# -------------------------------------------------------------------------------------- batches, by rows
# A row is taken as an array of its own, so that the compiler need not think of indices below 0: it then uses the
# vector units.


@_loop
def _copy_rows(source, rows, out, n, first, last):
    for i in range(first, last):
        row, taken = out[i * n : i * n + n], source[rows[i] * n : rows[i] * n + n]
        for j in range(n):
            row[j] = taken[j]


@_loop
def _scale_rows(source, rows, scale, out, n, first, last):
    for i in range(first, last):
        row, taken = out[i * n : i * n + n], source[rows[i] * n : rows[i] * n + n]
        for j in range(n):
            row[j] = scale * out.dtype.type(taken[j])


@_loop
def _one_hot_rows(labels, out, n, first, last):
    for i in range(first, last):
        row = out[i * n : i * n + n]
        for j in range(n):
            row[j] = 0
        row[labels[i]] = 1


# ------------------------------------------------------------- layers: rows first..last, units left..right of n


@_loop
def _take_transposed(Z, A, n, first, last, left, right):
    """A from its transpose, (units, rows)."""
    rows = last - first
    for i in range(rows):
        row = A[(first + i) * n + left : (first + i) * n + right]
        for j in range(len(row)):
            row[j] = Z[j * rows + i]


@_loop
def _add_bias(A, b, n, first, last, left, right):
    b = b[left:right]
    for i in range(first, last):
        row = A[i * n + left : i * n + right]
        for j in range(len(b)):
            row[j] += b[j]


@_loop
def _add_bias_relu(A, b, n, first, last, left, right):
    b, zero = b[left:right], A.dtype.type(0)
    for i in range(first, last):
        row = A[i * n + left : i * n + right]
        for j in range(len(b)):
            z = row[j] + b[j]
            row[j] = zero if z < zero else z


@_exact
def _add_bias_tanh(A, b, n, first, last, left, right):
    b = b[left:right]
    for i in range(first, last):
        row = A[i * n + left : i * n + right]
        for j in range(len(b)):
            row[j] = _tanh32(row[j] + b[j])


@_exact
def _add_bias_sigmoid(A, b, n, first, last, left, right):
    b = b[left:right]
    for i in range(first, last):
        row = A[i * n + left : i * n + right]
        for j in range(len(b)):
            row[j] = _ONE / (_ONE + _exp32(-(row[j] + b[j])))


@_loop
def _tanh_backward(dA, A, out, n, first, last, left, right):
    one = A.dtype.type(1)
    for i in range(first, last):
        begin, end = i * n + left, i * n + right
        dA_row, A_row, row = dA[begin:end], A[begin:end], out[begin:end]
        for j in range(len(row)):
            row[j] = dA_row[j] * (one - A_row[j] * A_row[j])


@_loop
def _sigmoid_backward(dA, A, out, n, first, last, left, right):
    one = A.dtype.type(1)
    for i in range(first, last):
        begin, end = i * n + left, i * n + right
        dA_row, A_row, row = dA[begin:end], A[begin:end], out[begin:end]
        for j in range(len(row)):
            row[j] = dA_row[j] * (A_row[j] * (one - A_row[j]))


@_loop
def _relu_backward(dA, A, out, n, first, last, left, right):
    zero = A.dtype.type(0)
    for i in range(first, last):
        begin, end = i * n + left, i * n + right
        dA_row, A_row, row = dA[begin:end], A[begin:end], out[begin:end]
        for j in range(len(row)):
            slope = dA_row[j]  # read in any case: a choice, not a branch
            row[j] = slope if A_row[j] > zero else zero


# ------------------------------------------------------------------------------- outputs and losses, by rows


@_exact
def _sigmoid(Z, out):
    one = out.dtype.type(1)
    for i in range(len(Z)):
        out[i] = one / (one + _exp(-Z[i]))


@_loop
def _largest(z):
    largest = z[0]
    for j in range(1, len(z)):
        largest = max(largest, z[j])
    return largest


@_loop
def _sum(z):
    total = z.dtype.type(0)
    for j in range(len(z)):
        total += z[j]
    return total


@_exact
def _exponentials(z, p):
    """p = exp(z − the largest of z); that largest, and the sum of p."""
    largest = _largest(z)
    for j in range(len(z)):
        p[j] = _exp(z[j] - largest)
    return largest, _sum(p)


@_exact
def _softmax(Z, out, n, first, last):
    for i in range(first, last):
        p = out[i * n : i * n + n]
        _, total = _exponentials(Z[i * n : i * n + n], p)
        for j in range(n):
            p[j] /= total


@_exact
def _sigmoid_cross_entropy(Z, Y, scale, P, dZ, losses, hits):
    zero, half, one = P.dtype.type(0), P.dtype.type(0.5), P.dtype.type(1)
    for i in range(len(Z)):
        z, y = Z[i], Y[i]
        losses[i] = np.log1p(_exp(-abs(z))) + (max(z, zero) - z * y)
        p = one / (one + _exp(-z))
        P[i] = p
        dZ[i] = (p - y) * scale
        hits[i] = one if (p > half) == (y > half) else zero


@_exact
def _softmax_cross_entropy(Z, labels, scale, lowest, P, dZ, losses, hits, n, first, last):
    zero, one = P.dtype.type(0), P.dtype.type(1)
    for i in range(first, last):
        z, p, dz, label = Z[i * n : i * n + n], P[i * n : i * n + n], dZ[i * n : i * n + n], labels[i]
        largest, total = _exponentials(z, p)
        # logits at the two ends of the dtype differ by more than it holds
        losses[i] = np.log(total) - max(z[label] - largest, lowest)
        answer, highest = 0, -one
        for j in range(n):
            p[j] /= total
            dz[j] = p[j] * scale
            if p[j] > highest:
                answer, highest = j, p[j]
        dz[label] = (p[label] - one) * scale
        hits[i] = one if answer == label else zero


@_loop
def _squared_error(Z, Y, scale, dZ, losses):
    for i in range(len(Z)):
        error = Z[i] - Y[i]
        losses[i] = error * error
        dZ[i] = error * scale


@_exact
def _tally(losses, hits, weights, loss, correct, totals_loss, totals_correct, m, k):
    mean, right = 0.0, 0.0
    for i in range(m):
        for j in range(k):
            mean += np.float64(losses[i * k + j]) * np.float64(weights[i])
            right += np.float64(hits[i * k + j])
    loss[0], correct[0] = mean, right
    totals_loss[0] += np.float64(loss[0])
    totals_correct[0] += np.float64(correct[0])


# ----------------------------------------------------------------------------------- updates, a part of theta


@_exact
def _sgd(theta, grad, learning_rate):
    for i in range(len(theta)):
        theta[i] -= grad[i] * learning_rate


@_exact
def _momentum(theta, grad, velocity, learning_rate, momentum):
    for i in range(len(theta)):
        velocity[i] = velocity[i] * momentum + grad[i]
        theta[i] -= velocity[i] * learning_rate


@_exact
def _adam(theta, grad, m, v, step_size, epsilon, beta1, beta2):
    for i in range(len(theta)):
        m[i] = m[i] * beta1 + grad[i]
        v[i] = v[i] * beta2 + grad[i] * grad[i]
        theta[i] -= m[i] / (np.sqrt(v[i]) + epsilon) * step_size


@_exact
def _adam_factors(learning_rate, eps, betas, one_minus_betas, decays, powers, c, step_size, epsilon):
    root = np.sqrt((1 - powers[1] * betas[1]) / one_minus_betas[1])
    c[0] = (1 - powers[0] * betas[0]) / one_minus_betas[0]
    c[1] = root * learning_rate[0]
    epsilon[0] = root * eps
    step_size[0] = c[1] / c[0]
    powers[0] *= decays[0]
    powers[1] *= decays[1]


# ---------------------------------------------------------------------------------- operations of the table


@_exact
def _part(n, thread, threads):
    """This thread's share of n, in blocks of 16: a line of the cache, and what a product's inner loop takes at once."""
    blocks = (n + 15) // 16
    return min(n, blocks * thread // threads * 16), min(n, blocks * (thread + 1) // threads * 16)


@_exact
def _within(place, first, n, size):
    """Which of n pieces of this size, the first of which begins at `first`, is the one from `place` on."""
    return min(max((place - first + size - 1) // size, 0), n)


@_once
def _linear(one, gemm, op, first, last, left, right):
    n, k, transposed, size = op[N], op[K], op[FLAG], one.itemsize
    A_prev = op[AT] + first * (size if transposed else k * size)
    leading = op[M] if transposed else k
    W, rows, units = op[AT + 1] + left * k * size, last - first, right - left
    A, b, scratch = _array(op[AT + 3], one, op[M] * n), _array(op[AT + 2], one, n), op[AT + 4]
    if size == 8 and units <= FEW_UNITS and k > MANY_INPUTS:
        # a third faster as W A_prevᵀ: so measured in float64, where in float32 it is slower
        own = first * op[AT + 5] + left * rows  # the widest layer's rows: no thread in no layer takes another's
        _gemm(gemm, one, 0, 1 - transposed, units, rows, k, W, k, A_prev, leading, scratch + own * size, rows)
        _take_transposed(_at(scratch, one, own, rows * units), A, n, first, last, left, right)
    else:
        _gemm(
            gemm, one, transposed, 1, rows, units, k, A_prev, leading, W, k, op[AT + 3] + (first * n + left) * size, n
        )
    if op[KIND] == LINEAR_RELU:
        _add_bias_relu(A, b, n, first, last, left, right)
    elif op[KIND] == LINEAR_TANH:
        _add_bias_tanh(A, b, n, first, last, left, right)
    elif op[KIND] == LINEAR_SIGMOID:
        _add_bias_sigmoid(A, b, n, first, last, left, right)
    else:
        _add_bias(A, b, n, first, last, left, right)


@_once
def _input_gradient(one, gemm, op, first, last, left, right):
    """dA_prev = dZ W. dZ (M, K), W (K, N)."""
    n, k, size = op[N], op[K], one.itemsize
    dZ, W, dA = op[AT] + first * k * size, op[AT + 1] + left * size, op[AT + 2] + (first * n + left) * size
    _gemm(gemm, one, 0, 0, last - first, right - left, k, dZ, k, W, n, dA, n)


@_once
def _gradients(one, gemm, op, begin, end):
    """dW = dZᵀ A_prev and db = Σ dZ where they lie in this part of theta. dZ (M, N), A_prev (M, K)."""
    m, n, k, transposed, size = op[M], op[N], op[K], op[FLAG], one.itemsize
    dZ, A_prev, dW, ones = op[AT], op[AT + 1], op[AT + 2], op[AT + 3]
    db, at_W, at_b = op[AT + 4], op[AT + 5], op[AT + 6]
    left, right = _within(begin, at_W, n, k), _within(end, at_W, n, k)
    if right > left:
        leading = m if transposed else k
        _gemm(
            gemm, one, 1, transposed, right - left, k, m, dZ + left * size, n, A_prev, leading, dW + left * k * size, k
        )
    left, right = _within(begin, at_b, n, 1), _within(end, at_b, n, 1)
    if right > left:
        _gemm(gemm, one, 0, 0, 1, right - left, m, ones, m, dZ + left * size, n, db + left * size, n)


_WHOLE, _BYTE, _DOUBLE = np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.float64)


@_once
def _do(one, gemm, op, first, last, left, right):
    """One operation: on these rows and these units; the update of a part of theta takes `first` and `last` for it."""
    kind, m, n = op[KIND], op[M], op[N]
    a, b, c, d, e, f = op[AT], op[AT + 1], op[AT + 2], op[AT + 3], op[AT + 4], op[AT + 5]
    g, h = op[AT + 6], op[AT + 7]
    if LINEAR <= kind <= LINEAR_SIGMOID:
        _linear(one, gemm, op, first, last, left, right)
    elif kind == INPUT_GRADIENT:
        _input_gradient(one, gemm, op, first, last, left, right)
    elif RELU_BACKWARD <= kind <= SIGMOID_BACKWARD:
        size = m * n
        dA, A, out = _array(a, one, size), _array(b, one, size), _array(c, one, size)
        if kind == RELU_BACKWARD:
            _relu_backward(dA, A, out, n, first, last, left, right)
        elif kind == TANH_BACKWARD:
            _tanh_backward(dA, A, out, n, first, last, left, right)
        else:
            _sigmoid_backward(dA, A, out, n, first, last, left, right)
    elif kind == GRADIENTS:
        _gradients(one, gemm, op, first, last)
    elif kind == SGD:
        size = last - first
        _sgd(_at(a, one, first, size), _at(b, one, first, size), _array(c, one, 1)[0])
    elif kind == MOMENTUM:
        size = last - first
        theta, grad, velocity = _at(a, one, first, size), _at(b, one, first, size), _at(c, one, first, size)
        _momentum(theta, grad, velocity, _array(d, one, 1)[0], _array(e, one, 1)[0])
    elif kind == ADAM:
        size = last - first
        theta, grad = _at(a, one, first, size), _at(b, one, first, size)
        m_, v = _at(c, one, first, size), _at(d, one, first, size)
        step_size, epsilon = _array(e, one, 1)[0], _array(f, one, 1)[0]
        beta1, beta2 = _array(g, one, 1)[0], _array(h, one, 1)[0]
        _adam(theta, grad, m_, v, step_size, epsilon, beta1, beta2)
    elif kind == ADAM_FACTORS:
        rate, eps, betas = _array(a, _DOUBLE, 1), _array(b, _DOUBLE, 1)[0], _array(c, _DOUBLE, 2)
        rest, decays, powers = _array(d, _DOUBLE, 2), _array(e, _DOUBLE, 2), _array(f, _DOUBLE, 2)
        step_size, epsilon = _array(h, one, 1), _array(op[AT + 8], one, 1)
        _adam_factors(rate, eps, betas, rest, decays, powers, _array(g, _DOUBLE, 2), step_size, epsilon)
    elif kind == GATHER:
        _copy_rows(_array(a, one, op[K]), _array(b, _WHOLE, m), _array(c, one, m * n), n, first, last)
    elif kind == GATHER_SCALED:
        scale = _array(d, one, 1)[0]
        _scale_rows(_array(a, _BYTE, op[K]), _array(b, _WHOLE, m), scale, _array(c, one, m * n), n, first, last)
    elif kind == GATHER_WHOLE:
        _copy_rows(_array(a, _WHOLE, op[K]), _array(b, _WHOLE, m), _array(c, _WHOLE, m * n), n, first, last)
    elif kind == ONE_HOT:
        _one_hot_rows(_array(a, _WHOLE, m), _array(b, one, m * n), n, first, last)
    elif kind == SOFTMAX_CROSS_ENTROPY:
        Z, labels, P, dZ = _array(a, one, m * n), _array(b, _WHOLE, m), _array(e, one, m * n), _array(f, one, m * n)
        scale, lowest = _array(c, one, 1)[0], _array(d, one, 1)[0]
        _softmax_cross_entropy(Z, labels, scale, lowest, P, dZ, _array(g, one, m), _array(h, one, m), n, first, last)
    elif kind == SIGMOID_CROSS_ENTROPY:
        begin, size = first * n, (last - first) * n
        Z, Y = _at(a, one, begin, size), _at(b, one, begin, size)
        P, dZ = _at(d, one, begin, size), _at(e, one, begin, size)
        _sigmoid_cross_entropy(Z, Y, _array(c, one, 1)[0], P, dZ, _at(f, one, begin, size), _at(g, one, begin, size))
    elif kind == SQUARED_ERROR:
        begin, size = first * n, (last - first) * n
        Z, Y = _at(a, one, begin, size), _at(b, one, begin, size)
        dZ, losses = _at(d, one, begin, size), _at(e, one, begin, size)
        _squared_error(Z, Y, _array(c, one, 1)[0], dZ, losses)
    elif kind == TALLY:
        losses, hits, weights = _array(a, one, m * n), _array(b, one, m * n), _array(c, one, m)
        loss, correct, totals = _array(d, one, 1), _array(e, one, 1), _array(f, _DOUBLE, 1)
        _tally(losses, hits, weights, loss, correct, totals, _array(g, _DOUBLE, 1), m, n)
    elif kind == SIGMOID:
        begin, size = first * n, (last - first) * n
        _sigmoid(_at(a, one, begin, size), _at(b, one, begin, size))
    elif kind == SOFTMAX:
        _softmax(_array(a, one, m * n), _array(b, one, m * n), n, first, last)


# ------------------------------------------------------------------------------------------------- threads


_NEVER_ASLEEP = 1 << 40
"""Patience for what is sure to come soon."""


@_exact
def _wait(address, value, yielding, sleeping, patience):
    """Until what stands at address has reached value: at first wide awake, then leaving the core to whoever wants it;
    asleep between looks from the patience-th look on."""
    spins = 0
    while _load(address) < value:
        spins += 1
        if spins < 2000:
            _pause()
        elif spins < patience:
            _call(yielding, 0)
        else:
            _call(sleeping, 50)


@_exact
def _run(one, message, meeting, thread):
    """This thread's share of the program in the message. `meeting`: the address of the counter of arrivals."""
    ops, bounds = _matrix(message[OPS], _WHOLE, message[COUNT], COLUMNS), _array(message[BOUNDS], _WHOLE, 1)
    threads, gemm, arrived = message[THREADS], message[GEMM], message[BASE]
    yielding, sleeping = message[YIELD], message[SLEEP]
    for i in range(message[COUNT]):
        op = ops[i]
        whose, first, last, left, right = op[WHOSE], 0, op[M], 0, op[N]
        if op[KIND] == BARRIER:
            if threads > 1:
                arrived += threads
                _add_to(meeting, 1)
                _wait(meeting, arrived, yielding, sleeping, _NEVER_ASLEEP)
            continue
        if whose == ROWS:
            first, last = _part(op[M], thread, threads)
        elif whose == UNITS:
            left, right = _part(op[N], thread, threads)
        elif whose == THETA:
            first, last = bounds[thread], bounds[thread + 1]
        elif thread > 0:
            continue
        if last > first and right > left:
            _do(one, gemm, op, first, last, left, right)


@_exact
def run(one, message, sync, helpers, thread):
    """The program in the message, by the first thread and as many helpers as it asks for; it ends with a barrier.

    Of another thread: a helper's life, its share of every program that is sent, until it is stopped.
    """
    here, sent = sync.ctypes.data, 0
    while True:
        if thread == 0:
            if message[THREADS] > 1:
                _wait(here + 8 * TAKEN, sync[GO] * helpers, message[YIELD], message[SLEEP], _NEVER_ASLEEP)
                message[BASE] = sync[ARRIVED]
                for i in range(GO):
                    sync[i] = message[i]
                _add_to(here + 8 * GO, 1)
        else:
            sent += 1
            # some milliseconds of readiness: longer than what lies between two steps
            _wait(here + 8 * GO, sent, sync[YIELD], sync[SLEEP], 20000)
            if _load(here + 8 * STOP):
                return
            for i in range(GO):
                message[i] = sync[i]
            _add_to(here + 8 * TAKEN, 1)
        if thread < message[THREADS]:
            _run(one, message, here + 8 * ARRIVED, thread)
        if thread == 0:
            return


@_exact
def stop(sync):
    """The helpers' end."""
    sync[STOP] = 1
    _add_to(sync.ctypes.data + 8 * GO, 1)


def compile_for(dtype: np.dtype) -> None:
    """All that programs of this dtype need, as machine code: from Numba's cache, or compiled in some 10 seconds."""
    one, numbers = types.Array(numba.from_dtype(dtype), 1, "C"), types.Array(types.int64, 1, "C")
    run.compile((one, numbers, numbers, types.int64, types.int64))
    stop.compile((numbers,))
