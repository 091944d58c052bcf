"""The mathematics against finite differences, PyTorch and its limits, on every backend, as a training runs it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traced import eagerly, on_backend

from dnn import functional
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend
from dnn.heads import HEADS

RNG = np.random.default_rng(7)

# ------------------------------------------------------------------------------------------ batches


def test_the_rows_of_a_batch_are_the_next_in_their_order(backend: Backend):
    order = RNG.permutation(10)
    for position in (0, 3, 6):
        (rows,) = on_backend(backend, functional.batch_rows, order, np.array([position]), m=4)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, order[position : position + 4])


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_batch_takes_rows_in_any_order_and_again(dtype, backend: Backend):
    source, rows = np.arange(12).reshape(4, 3).astype(dtype), np.array([2, 0, 2])
    (X,) = on_backend(backend, functional.load_batch, source, rows, scale=None, dtype=dtype)
    np.testing.assert_array_equal(X, source[rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_batch_of_bytes_is_scaled_in_the_dtype_of_the_network(dtype, backend: Backend):
    source, rows = np.arange(256, dtype=np.uint8).reshape(128, 2), np.arange(128)[::-1].copy()
    scale = dtype(1 / 255)
    (X,) = on_backend(backend, functional.load_batch, source, rows, scale=scale, dtype=dtype)
    np.testing.assert_array_equal(X, source[::-1].astype(dtype) * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scatter_add_sums_the_values_of_each_row(dtype, backend: Backend):
    values, rows = RNG.integers(-9, 9, (40, 3)).astype(dtype), RNG.integers(0, 5, 40)
    expected = np.zeros((7, 3), dtype)
    np.add.at(expected, rows, values)
    (result,) = on_backend(backend, functional.scatter_add, values, rows, n=7)
    np.testing.assert_array_equal(result, expected)


# ------------------------------------------------------------------------------------------- linear


def test_linear_forward_is_the_product_plus_the_bias(backend: Backend):
    A, W, b = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal(4)
    (Z,) = on_backend(backend, functional.linear_forward, A, W, b)
    np.testing.assert_allclose(Z, A @ W.T + b, atol=1e-14)


def test_linear_backward_is_the_transpose_of_forward(backend: Backend):
    A, W, dZ = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal((5, 4))
    dA, dW, db = on_backend(backend, functional.linear_backward, dZ, A, W)
    for result, expected in ((dW, dZ.T @ A), (db, dZ.sum(axis=0)), (dA, dZ @ W)):
        np.testing.assert_allclose(result, expected, atol=1e-14)


# --------------------------------------------------------------------------------------- activations

OF = {
    "relu": lambda z: np.maximum(0, z),
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_and_its_slope(name, dtype, backend: Backend):
    activation, Z = ACTIVATIONS[name], np.array([[-30.0, -2.0, -0.1], [0.1, 2.0, 30.0]])
    slope = (OF[name](Z + 1e-6) - OF[name](Z - 1e-6)) / 2e-6

    def both(xp, Z, dA):
        saved = {"Z": Z, "A": activation.forward(xp, Z)}
        return saved["A"], activation.backward(xp, dA, *(saved[what] for what in activation.saves))

    A, dZ = on_backend(backend, both, Z.astype(dtype), np.full(Z.shape, 3, dtype))
    tolerance = 1e-9 if dtype == np.float64 else 1e-6
    assert A.dtype == dZ.dtype == dtype
    np.testing.assert_allclose(A, OF[name](Z), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(dZ, 3 * slope, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes_are_pytorchs(name, backend: Backend):
    torch = pytest.importorskip("torch")
    activation = ACTIVATIONS[name]
    Z, dA = np.linspace(-12, 12, 1001).reshape(77, 13), RNG.standard_normal((77, 13))
    logits = torch.tensor(Z, requires_grad=True)
    expected = {"gelu": torch.nn.functional.gelu}.get(name, getattr(torch, name, None))(logits)
    expected.backward(torch.tensor(dA))

    def both(xp, Z, dA):
        saved = {"Z": Z, "A": activation.forward(xp, Z)}
        return saved["A"], activation.backward(xp, dA, *(saved[what] for what in activation.saves))

    A, dZ = on_backend(backend, both, Z, dA)
    np.testing.assert_allclose(A, expected.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dZ, logits.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_relu_has_slope_zero_at_zero_whatever_comes_down(backend: Backend):
    A, dA = np.array([[0.0, -0.0, 1.0, 0.0, np.nan]]), np.array([[5.0, 5.0, 5.0, np.inf, 5.0]])
    (dZ,) = on_backend(backend, functional.relu_backward, dA, A)
    np.testing.assert_array_equal(dZ, [[0, 0, 5, 0, 0]])


# -------------------------------------------------------------------------------------------- losses


def loss_and_gradient(name: str):
    head = HEADS[name]

    def function(xp, Z, targets):
        Y = head.targets(xp, targets, Z.shape[1])
        losses = head.loss.losses(xp, Z, Y)
        gradient = head.loss.gradient(xp, Z, Y) * (1 / losses.size)
        P = head.activation(xp, Z)
        return functional.mean_loss(xp, losses), gradient, P, head.metric.measure(xp, P, targets), losses

    return function


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
    function = loss_and_gradient(name)
    _, gradient, *_ = on_backend(backend, function, Z, targets)
    slope = np.empty_like(Z)
    for place in np.ndindex(Z.shape):
        above, below = Z.copy(), Z.copy()
        above[place] += 1e-6
        below[place] -= 1e-6
        slope[place] = (eagerly(function, above, targets)[0] - eagerly(function, below, targets)[0]) / 2e-6
    np.testing.assert_allclose(gradient, slope, atol=1e-9)


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
    mean, gradient, *_ = on_backend(backend, loss_and_gradient(name), Z, targets)
    assert float(mean) == pytest.approx(loss.item(), abs=1e-14)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_loss_and_gradient_are_finite_for_every_finite_logit(name, dtype, data):
    bits = np.dtype(dtype).itemsize * 8
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=bits)
    K = data.draw(st.integers(1 if name == "sigmoid" else 2, 3))
    Z = np.array(data.draw(st.lists(st.lists(numbers, min_size=K, max_size=K), min_size=1, max_size=6)), dtype)
    if name == "sigmoid":
        targets = np.array([[data.draw(st.integers(0, 1)) for _ in range(K)] for _ in Z], dtype)
    else:
        targets = np.array([[data.draw(st.integers(0, K - 1))] for _ in Z])
    mean, gradient, P, _, _ = eagerly(loss_and_gradient(name), Z, targets)
    assert np.isfinite(mean) and mean >= 0
    assert np.isfinite(gradient).all() and np.isfinite(P).all()
    assert gradient.dtype == P.dtype == dtype
    if name == "softmax":
        np.testing.assert_allclose(P.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("z", [12.0, 15.0, 30.0, 60.0])
def test_a_confident_answer_costs_the_same_on_both_sides_in_float32(z, backend: Backend):
    Z, Y = np.array([[z], [-z]], np.float32), np.array([[1.0], [0.0]], np.float32)
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    np.testing.assert_allclose(losses[:, 0], np.log1p(np.exp(-z)), rtol=1e-6)


LOGITS = np.concatenate([sign * np.logspace(-6, 1.9, 60) for sign in (1, -1)])
LABELS = [0.0, 1.0, 0.5, 0.3, 1e-6, 0.999, 1 - 2**-20]


def ulps(found: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(found - exact) / np.maximum(np.abs(exact), np.finfo(found.dtype).tiny)).max()) / float(
        np.finfo(found.dtype).eps
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("y", LABELS)
def test_the_sigmoids_loss_and_gradient_are_exact_to_a_few_ulp(y, dtype, backend: Backend):
    Z = LOGITS.astype(dtype)[:, None]
    Y = np.full_like(Z, y)
    z, y = Z.astype(np.longdouble), Y.astype(np.longdouble)
    E = np.exp(-np.abs(z))
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    assert ulps(losses, np.log1p(E) + np.where(z > 0, z * (1 - y), -y * z)) < 3
    (gradient,) = on_backend(backend, functional.sigmoid_cross_entropy_backward, Z, Y)
    exact = np.where(z > 0, (1 - y) - E / (1 + E), E / (1 + E) - y)
    # near its zero a difference is exact beside what it is the difference of
    assert ulps(gradient, exact) < 4 or np.abs(gradient - exact).max() < 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("K", [2, 5])
def test_softmaxs_loss_and_gradient_are_exact_to_a_few_ulp(K, dtype, backend: Backend):
    Z = np.round(np.concatenate([RNG.standard_normal((40, K)) * scale for scale in (0.01, 1, 5, 20)]) * 64) / 64
    labels = np.where(np.arange(len(Z)) % 2, Z.argmax(axis=1), RNG.integers(0, K, len(Z)))
    Y = np.arange(K) == labels[:, None]
    D = (Z - Z[Y][:, None]).astype(np.longdouble)
    others = np.where(Y, 0, np.exp(D)).sum(axis=1, keepdims=True)
    (losses,) = on_backend(backend, functional.softmax_cross_entropy, Z.astype(dtype), Y)
    assert ulps(losses, np.log1p(others)) < 5
    (gradient,) = on_backend(backend, functional.softmax_cross_entropy_backward, Z.astype(dtype), Y)
    assert ulps(gradient, np.where(Y, -others, np.exp(D)) / (1 + others)) < 8


def test_soft_labels_near_1_cost_what_they_cost(backend: Backend):
    """The first is 9.99987: 0.9999 in float32 is no closer to 1. max(z, 0) - y z would be 10."""
    Z, Y = (
        np.array([[1e5], [1e4], [-1e5], [300.0]], np.float32),
        np.array([[0.9999], [0.99], [1e-4], [0.5]], np.float32),
    )
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    z, y = Z.astype(np.float64), Y.astype(np.float64)
    np.testing.assert_allclose(losses, np.where(z > 0, z * (1 - y), -y * z), rtol=2e-7)


@pytest.mark.parametrize("value", [0.1, np.log(2), 1e-3, 1e-37])
def test_the_mean_of_many_equal_losses_is_the_loss(value, backend: Backend):
    losses = np.full((2_000_003, 1), value, np.float32)
    (mean,) = on_backend(backend, functional.mean_loss, losses)
    assert float(mean) == pytest.approx(float(losses[0, 0]), rel=1e-9)


def test_logits_at_the_ends_of_the_dtype_give_a_finite_loss(backend: Backend):
    for dtype in (np.float32, np.float64):
        largest = np.finfo(dtype).max
        Z = np.array([[largest, -largest, 0], [-largest, -largest, largest]], dtype)
        mean, gradient, *_ = on_backend(backend, loss_and_gradient("softmax"), Z, np.array([[1], [0]]))
        assert np.isfinite(mean) and np.isfinite(gradient).all()


def test_counts_of_correct_answers(backend: Backend):
    # softmax: the first of equal largest; sigmoid: one half is no more than one half
    Z = np.log(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    mean, _, _, correct, _ = on_backend(backend, loss_and_gradient("softmax"), Z, np.array([[1], [0], [0], [2]]))
    assert correct.sum() == 2 and mean == pytest.approx(-np.log([0.5, 0.4, 0.1, 0.1]).mean())
    Z, Y = np.array([[-1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.7]])
    _, _, _, correct, _ = on_backend(backend, loss_and_gradient("sigmoid"), Z, Y)
    assert correct.sum() == 3


# -------------------------------------------------------------------------------------- loss scale


@pytest.mark.parametrize(
    ("scale", "good", "finite", "expected"),
    [
        (8.0, 0, True, (8.0, 1)),
        (8.0, 1, True, (8.0, 2)),
        (8.0, 2, True, (16.0, 0)),
        (8.0, 2, False, (4.0, 0)),
        (1.0, 0, False, (1.0, 0)),
        (2.0**24, 2, True, (2.0**24, 0)),
    ],
)
def test_the_loss_scale_doubles_after_enough_good_steps_and_halves_after_a_bad_one(
    scale, good, finite, expected, backend: Backend
):
    given_ = np.array([scale], np.float32), np.array([good]), np.array(finite)
    after, steps = on_backend(backend, functional.next_loss_scale, *given_, interval=3)
    assert (float(after[0]), int(steps[0])) == expected
    assert after.dtype == np.float32 and steps.dtype == np.int64
