"""Products, in the terms of cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler


def gemm_arguments(a: Array, b: Array, out: Array) -> tuple[int, int, int, int, int, Array, int, Array, int, int]:
    """What makes cuBLAS, which counts along columns, compute out = a b.

    a (rows, k) or (k,), b (k, columns), each C- or F-contiguous; out (rows, columns) or (columns,), C-contiguous. Read
    along columns a C-contiguous array is its transpose, so the product to ask for is outᵀ = bᵀ aᵀ.

    (transpose first, transpose second, m, n, k, first, its leading dimension, second, its leading dimension, out's).
    """
    rows = 1 if a.ndim == 1 else a.shape[0]
    k, columns = b.shape
    transpose_b, leading_b = _operand(b)
    transpose_a, leading_a = (0, k) if a.ndim == 1 else _operand(a)
    return transpose_b, transpose_a, columns, rows, k, b, leading_b, a, leading_a, columns


def _operand(array: Array) -> tuple[int, int]:
    """(whether its transpose must be transposed back, its leading dimension)"""
    return (0, array.shape[1]) if array.flags.c_contiguous else (1, array.shape[0])


def linear_backward(compiler: Compiler) -> Callable[..., None]:
    dot = compiler.dot

    def linear_backward(
        xp: Any, dZ: Array, A_prev: Array, W: Array, ones: Array, *, dW: Array, db: Array, dA_prev: Array | None
    ) -> None:
        dot(dZ.T, A_prev, dW)
        dot(ones, dZ, db)
        if dA_prev is not None:
            dot(dZ, W, dA_prev)

    return linear_backward


FACTORIES = {"linear_backward": linear_backward}
