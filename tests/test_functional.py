"""The mathematics against finite differences, PyTorch and its limits, on every backend, as a training runs it."""

from __future__ import annotations

import numpy as np
import pytest
from traced import on_backend

from dnn import functional
from dnn.backends import Backend

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
