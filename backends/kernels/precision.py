"""Between float32 and 16 bits: casts, the loss scale, and the search for an overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler, Elementwise


def cast(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(Elementwise("cast", "S source", "T out", "out = T(source)"))

    def cast(xp: Any, source: Array, *, out: Array) -> None:
        kernel(source, out)

    return cast


def scaled_cast(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise("scaled_cast", "S source, raw S loss_scale", "T out", "out = T(source * loss_scale[0])")
    )

    def scaled_cast(xp: Any, source: Array, loss_scale: Array, *, out: Array, scratch: Array) -> None:
        kernel(source, loss_scale, out)

    return scaled_cast


def find_overflow(compiler: Compiler) -> Callable[..., None]:
    # many threads may write, all of them the same
    kernel = compiler.elementwise(
        Elementwise("find_overflow", "T grad", "raw int64 finite", "if (!isfinite(grad)) finite[0] = 0")
    )

    def find_overflow(xp: Any, grad: Array, *, finite: Array, extreme: Array, is_finite: Array) -> None:
        kernel(grad, finite)

    return find_overflow


def unscale(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "unscale",
            "S scaled, raw T loss_scale, raw int64 finite",
            "T out",
            "out = finite[0] ? T(scaled) / loss_scale[0] : T(0)",
        )
    )

    def unscale(xp: Any, scaled: Array, loss_scale: Array, finite: Array, *, out: Array) -> None:
        kernel(scaled, loss_scale, finite, out)

    return unscale


def loss_scaling(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "loss_scaling",
            "int64 interval",
            "raw T loss_scale, raw int64 good, raw int64 finite",
            """
            long long run = (good[0] + 1) * finite[0];
            T scaled = ldexp(loss_scale[0], int(run / interval + finite[0] - 1));
            loss_scale[0] = scaled < 1 ? T(1) : scaled > 16777216 ? T(16777216) : scaled;
            good[0] = run % interval;
            finite[0] = 1
            """,
        )
    )

    def loss_scaling(xp: Any, interval: int, *, loss_scale: Array, good: Array, finite: Array, exponent: Array) -> None:
        kernel(interval, loss_scale, good, finite, size=1)

    return loss_scaling


FACTORIES = {
    "cast": cast,
    "scaled_cast": scaled_cast,
    "find_overflow": find_overflow,
    "unscale": unscale,
    "loss_scaling": loss_scaling,
}
