"""The mathematics against finite differences and PyTorch, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnn import functional
from dnn.backends import Backend, get_backend
from dnn.outputs import OUTPUTS
from dnn.step import ACTIVATIONS

RNG = np.random.default_rng(7)


def buffers(backend: Backend, *shapes, dtype=np.float64):
    return [backend.empty(shape, dtype) for shape in shapes]


def on(backend: Backend, *arrays):
    return [backend.asarray(array) for array in arrays]


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_gather_takes_rows_in_any_order_and_again(dtype, backend: Backend):
    source = np.arange(12).reshape(4, 3).astype(dtype)
    (out,) = buffers(backend, (3, 3), dtype=dtype)
    gather = backend.fused(functional.gather)
    gather(backend.xp, *on(backend, source, np.array([2, 0, 2])), None, out=out, scratch=out)
    np.testing.assert_array_equal(backend.to_numpy(out), source[[2, 0, 2]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gather_scales_bytes_in_the_dtype_of_the_batch(dtype, backend: Backend):
    source = np.arange(256, dtype=np.uint8).reshape(128, 2)
    rows, scale = np.arange(128)[::-1].copy(), dtype(1 / 255)
    out, scratch = backend.empty((128, 2), dtype), backend.empty((128, 2), np.uint8)
    backend.fused(functional.gather)(backend.xp, *on(backend, source, rows), scale, out=out, scratch=scratch)
    np.testing.assert_array_equal(backend.to_numpy(out), source[::-1].astype(dtype) * scale)


# ------------------------------------------------------------------------------------------- linear


def test_linear_forward_is_the_product_plus_the_bias(backend: Backend):
    A, W, b = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal(4)
    Z, scratch = buffers(backend, (5, 4), (5, 4))
    functional.linear_forward(backend.xp, *on(backend, A, W, b), out=Z, scratch=scratch)
    np.testing.assert_allclose(backend.to_numpy(Z), A @ W.T + b, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_linear_and_activation_is_one_after_the_other(name, backend: Backend):
    A, W, b = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal(4)
    out, scratch = buffers(backend, (5, 4), (5, 4))
    backend.fused(ACTIVATIONS[name][0])(backend.xp, *on(backend, A, W, b), out=out, scratch=scratch)
    np.testing.assert_allclose(backend.to_numpy(out), OF[name](A @ W.T + b), atol=1e-14)


def test_linear_backward_is_the_transpose_of_forward(backend: Backend):
    A, W, dZ = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal((5, 4))
    dW, db, dA = buffers(backend, (4, 3), (4,), (5, 3))
    on_device = on(backend, dZ, A, W, np.ones(5))
    functional.linear_backward(backend.xp, *on_device, dW=dW, db=db, dA_prev=dA)
    for result, expected in ((dW, dZ.T @ A), (db, dZ.sum(axis=0)), (dA, dZ @ W)):
        np.testing.assert_allclose(backend.to_numpy(result), expected, atol=1e-14)
    # without the last product where nobody needs it
    functional.linear_backward(backend.xp, *on_device, dW=dW, db=db, dA_prev=None)
    np.testing.assert_allclose(backend.to_numpy(dW), dZ.T @ A, atol=1e-14)


# --------------------------------------------------------------------------------------- activations

OF = {"relu": lambda z: np.maximum(0, z), "tanh": np.tanh, "sigmoid": lambda z: 1 / (1 + np.exp(-z))}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_and_its_slope(name, dtype, backend: Backend):
    forward, backward = getattr(functional, name), ACTIVATIONS[name][1]
    Z = np.array([[-30.0, -2.0, -0.1], [0.1, 2.0, 30.0]])
    h = 1e-6
    slope = (OF[name](Z + h) - OF[name](Z - h)) / (2 * h)
    A, dZ, scratch = buffers(backend, *3 * [Z.shape], dtype=dtype)
    forward(backend.xp, backend.asarray(Z.astype(dtype)), out=A)
    backward(backend.xp, backend.asarray(np.full(Z.shape, 3, dtype)), A, out=dZ, scratch=scratch)
    tolerance = 1e-9 if dtype == np.float64 else 1e-6
    assert A.dtype == dZ.dtype == dtype
    np.testing.assert_allclose(backend.to_numpy(A), OF[name](Z), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(backend.to_numpy(dZ), 3 * slope, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_may_write_over_its_input(name, backend: Backend):
    forward, backward = getattr(functional, name), ACTIVATIONS[name][1]
    Z, dA = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
    A, dZ, scratch = buffers(backend, *3 * [(4, 3)])
    forward(backend.xp, backend.asarray(Z), out=A)
    backward(backend.xp, backend.asarray(dA), A, out=dZ, scratch=scratch)
    Z, dA = on(backend, Z, dA)
    forward(backend.xp, Z, out=Z)
    backward(backend.xp, dA, Z, out=dA, scratch=scratch)
    np.testing.assert_array_equal(backend.to_numpy(Z), backend.to_numpy(A))
    np.testing.assert_array_equal(backend.to_numpy(dA), backend.to_numpy(dZ))


def test_relu_has_slope_zero_at_zero(backend: Backend):
    dZ, scratch = buffers(backend, (1, 3), (1, 3))
    A, dA = on(backend, np.array([[0.0, -0.0, 1.0]]), np.full((1, 3), 5.0))
    functional.relu_backward(backend.xp, dA, A, out=dZ, scratch=scratch)
    np.testing.assert_array_equal(backend.to_numpy(dZ), [[0, 0, 5]])


# ------------------------------------------------------------------------------------------- outputs


def bound(name: str, backend: Backend, Z: np.ndarray, targets: np.ndarray):
    output = OUTPUTS[name](backend, backend.asarray(Z))
    output.load(backend.asarray(targets), backend.asarray(np.arange(len(Z))))
    return output


def loss_of(name: str, backend: Backend, Z: np.ndarray, targets: np.ndarray) -> float:
    output = bound(name, backend, Z, targets)
    with np.errstate(over="ignore"):
        output.forward()
    output.tally()
    return float(backend.to_numpy(output.loss)[0])


CASES = {
    "one sigmoid": ("sigmoid", RNG.standard_normal((6, 1)), RNG.integers(0, 2, (6, 1)).astype(float)),
    "soft labels": ("sigmoid", RNG.standard_normal((6, 1)), RNG.random((6, 1))),
    "several sigmoids": ("sigmoid", RNG.standard_normal((6, 3)), RNG.integers(0, 2, (6, 3)).astype(float)),
    "softmax": ("softmax", RNG.standard_normal((6, 4)), RNG.integers(0, 4, (6, 1))),
    "softmax of two": ("softmax", RNG.standard_normal((5, 2)), RNG.integers(0, 2, (5, 1))),
    "linear": ("linear", RNG.standard_normal((6, 1)), RNG.standard_normal((6, 1))),
    "several linears": ("linear", RNG.standard_normal((6, 3)), RNG.standard_normal((6, 3))),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_loss_is_that_of_finite_differences(case, backend: Backend):
    name, Z, targets = CASES[case]
    output = bound(name, backend, Z.copy(), targets)
    output.forward()
    slope = np.empty_like(Z)
    for place in np.ndindex(Z.shape):
        above, below = Z.copy(), Z.copy()
        above[place] += 1e-6
        below[place] -= 1e-6
        slope[place] = (loss_of(name, backend, above, targets) - loss_of(name, backend, below, targets)) / 2e-6
    np.testing.assert_allclose(backend.to_numpy(output.dZ), slope, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_pytorchs(case, backend: Backend):
    torch = pytest.importorskip("torch")
    name, Z, targets = CASES[case]
    logits = torch.tensor(Z, requires_grad=True)
    if name == "softmax":
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets[:, 0]))
    elif name == "sigmoid":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(targets))
    else:
        loss = torch.nn.functional.mse_loss(logits, torch.tensor(targets))
    loss.backward()
    output = bound(name, backend, Z.copy(), targets)
    output.forward()
    output.tally()
    assert float(backend.to_numpy(output.loss)[0]) == pytest.approx(loss.item(), abs=1e-14)
    np.testing.assert_allclose(backend.to_numpy(output.dZ), logits.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_loss_and_gradient_are_finite_for_every_finite_logit(name, dtype, data):
    backend, bits = get_backend("numpy"), np.dtype(dtype).itemsize * 8
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=bits)
    K = data.draw(st.integers(1 if name == "sigmoid" else 2, 3))
    Z = np.array(data.draw(st.lists(st.lists(numbers, min_size=K, max_size=K), min_size=1, max_size=6)), dtype)
    if name == "sigmoid":
        targets = np.array([[data.draw(st.integers(0, 1)) for _ in range(K)] for _ in Z], dtype)
    else:
        targets = np.array([[data.draw(st.integers(0, K - 1))] for _ in Z])
    output = bound(name, backend, Z.copy(), targets)
    output.dZ.fill(np.nan)
    with np.errstate(over="ignore"):
        output.forward()
        output.tally()
    assert np.isfinite(output.loss).all() and output.loss[0] >= 0
    assert np.isfinite(output.dZ).all() and np.isfinite(output.P).all()
    if name == "softmax":
        np.testing.assert_allclose(output.P.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("z", [12.0, 15.0, 30.0, 60.0])
def test_a_sure_answer_costs_the_same_on_both_sides_in_float32(z, backend: Backend):
    Z = np.array([[z], [-z]], np.float32)
    output = bound("sigmoid", backend, Z, np.array([[1.0], [0.0]], np.float32))
    output.forward()
    losses = backend.to_numpy(output._losses)[:, 0]
    np.testing.assert_allclose(losses, np.log1p(np.exp(-z)), rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_probabilities_do_not_depend_on_whether_the_loss_is_asked_for(name, backend: Backend):
    Z = np.array([[700.0, -3.0], [-700.0, 0.5]])
    targets = np.zeros((2, 2)) if name == "sigmoid" else np.zeros((2, 1), np.int64)
    with_loss, without = bound(name, backend, Z.copy(), targets), bound(name, backend, Z.copy(), targets)
    with_loss.forward()
    without.activate()
    np.testing.assert_allclose(backend.to_numpy(with_loss.P), backend.to_numpy(without.P), rtol=1e-15)


def test_counts_of_correct_answers(backend: Backend):
    # softmax: the first of equal largest; sigmoid: one half is no more than one half
    Z = np.log(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    output = bound("softmax", backend, Z, np.array([[1], [0], [0], [2]]))
    output.forward()
    output.tally()
    output.tally()
    loss, correct = backend.to_numpy(output.totals)
    assert correct == 4 and loss == pytest.approx(-2 * np.log([0.5, 0.4, 0.1, 0.1]).mean())
    output = bound("sigmoid", backend, np.array([[-1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.7]]))
    output.forward()
    output.tally()
    assert backend.to_numpy(output.totals)[1] == 3
    output.reset()
    np.testing.assert_array_equal(backend.to_numpy(output.totals), [0, 0])
