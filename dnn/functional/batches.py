"""The examples of a batch."""

from __future__ import annotations

from typing import Any

from dnn.backends import Array


def batch_rows(xp: Any, order: Array, position: Array, m: int, members: int = 1) -> Array:
    """The next m rows: order[position : position + m]. order (n,) and position (1,) int64, position + m at most n.

    Of several members, whose orders of n rows stand one after the other, m rows each.
    """
    places = position + xp.arange(m)
    if members > 1:
        number = xp.arange(members * m)
        places = position + number % m + number // m * (order.shape[0] // members)
    return xp.take(order.reshape(-1, 1), places, axis=0).reshape(members * m)


def load_batch(xp: Any, source: Array, rows: Array, scale: Any, dtype: Any) -> Array:
    """X_i = scale · source[rows_i] in `dtype`. rows (m,) int64, within source.

    The product is taken in the scale's dtype; without a scale (None) there is none.
    """
    X = xp.take(source, rows, axis=0)
    if scale is not None:
        X = X.astype(scale.dtype) * scale
    return X.astype(dtype)


def one_hot(xp: Any, labels: Array, K: int) -> Array:
    """Y_ik = [k = label_i], as bool (m, K). labels (m, 1)."""
    return labels == xp.arange(K)


def scatter_add(xp: Any, values: Array, rows: Array, n: int) -> Array:
    """out_r = Σ values_i over the i with rows_i = r: (n, K), from values (m, K) and rows (m,) int64 below n.

    A product with the rows one-hot, so the sums have one order on every backend; m n K multiplications. An infinity or
    nan in `values` reaches its whole column.
    """
    return xp.dot((rows[:, None] == xp.arange(n)).astype(values.dtype).T, values)
