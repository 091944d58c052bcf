"""Losses with their gradients and hits, and the tally of a batch: one launch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler, Elementwise

THREADS = 128
"""Of a block; rows.cu holds the same number."""


def sigmoid(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(Elementwise("sigmoid", "T z", "T a", "a = 1 / (1 + exp(-z))"))

    def sigmoid(xp: Any, Z: Array, *, out: Array) -> None:
        kernel(Z, out)

    return sigmoid


def sigmoid_cross_entropy(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "sigmoid_cross_entropy",
            "T z, T y, float64 scale",
            "T p, T dz, T loss, T hit",
            """
            loss = log1p(exp(z > 0 ? -z : z)) + ((z > 0 ? z : T(0)) - z * y);
            p = 1 / (1 + exp(-z));
            dz = (p - y) * T(scale);
            hit = (p > T(0.5)) == (y > T(0.5))
            """,
        )
    )

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
        kernel(Z, Y, scale, P, dZ, losses, hits)

    return sigmoid_cross_entropy


def squared_error(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "squared_error",
            "T z, T y, float64 scale",
            "T dz, T loss",
            "T error = z - y; loss = error * error; dz = error * T(scale)",
        )
    )

    def squared_error(xp: Any, Z: Array, Y: Array, scale: float, *, dZ: Array, losses: Array) -> None:
        kernel(Z, Y, scale, dZ, losses)

    return squared_error


def softmax(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.cuda("rows.cu", "softmax")

    def softmax(xp: Any, Z: Array, ones: Array, *, out: Array, column: Array) -> None:
        m, K = Z.shape
        kernel(Z.dtype, m, THREADS, (Z, out, np.int64(K)))

    return softmax


def softmax_cross_entropy(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.cuda("rows.cu", "softmax_cross_entropy")

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
        m, K = Z.shape
        kernel(Z.dtype, m, THREADS, (Z, labels, P, dZ, losses, hits, np.int64(K), np.float64(scale)))

    return softmax_cross_entropy


def tally(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.cuda("rows.cu", "tally")

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
        m, k = losses.shape
        arguments = (losses, hits, weights, loss, correct, loss_total, correct_total, np.int64(m * k), np.int64(k))
        kernel(losses.dtype, 1, THREADS, arguments)

    return tally


FACTORIES = {
    "sigmoid": sigmoid,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "squared_error": squared_error,
    "softmax": softmax,
    "softmax_cross_entropy": softmax_cross_entropy,
    "tally": tally,
}
