"""Linear and activation, and the activation's backward: the product, then one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler, Elementwise

# of z, the product plus the bias; max(0, nan) is nan, as NumPy has it
_FORWARD = {
    "linear_forward": "A = z",
    "linear_relu": "A = z < 0 ? T(0) : z",
    "linear_tanh": "A = tanh(z)",
    "linear_sigmoid": "A = 1 / (1 + exp(-z))",
}
_BACKWARD = {
    "relu_backward": "dZ = A > 0 ? dA : T(0)",
    "tanh_backward": "dZ = dA * (1 - A * A)",
    "sigmoid_backward": "dZ = dA * ((1 - A) * A)",
}


def _linear(name: str) -> Callable[[Compiler], Callable[..., None]]:
    def factory(compiler: Compiler) -> Callable[..., None]:
        kernel = compiler.elementwise(
            Elementwise(name, "raw T b, int64 n", "T A", f"T z = A + b[i % n]; {_FORWARD[name]}")
        )
        dot = compiler.dot

        def linear(xp: Any, A_prev: Array, W: Array, b: Array, *, out: Array, scratch: Array) -> None:
            dot(A_prev, W.T, out)
            kernel(b, b.size, out)

        return linear

    return factory


def _backward(name: str) -> Callable[[Compiler], Callable[..., None]]:
    def factory(compiler: Compiler) -> Callable[..., None]:
        kernel = compiler.elementwise(Elementwise(name, "T dA, T A", "T dZ", _BACKWARD[name]))

        def activation_backward(xp: Any, dA: Array, A: Array, *, out: Array, scratch: Array) -> None:
            kernel(dA, A, out)

        return activation_backward

    return factory


FACTORIES = {name: _linear(name) for name in _FORWARD} | {name: _backward(name) for name in _BACKWARD}
