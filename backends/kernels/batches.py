"""The rows of a batch: chosen, converted and scaled in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler, Elementwise

_ROWS = "raw int64 rows, int64 n"
_ROW = "source[rows[i / n] * n + i % n]"


def gather(compiler: Compiler) -> Callable[..., None]:
    copied = compiler.elementwise(Elementwise("gather", f"raw S source, {_ROWS}", "T out", f"out = T({_ROW})"))
    # the product is taken in float, or in T where that is wider
    scaled = compiler.elementwise(
        Elementwise(
            "gather_scaled",
            f"raw S source, {_ROWS}, float64 scale",
            "T out",
            f"out = T({_ROW} * decltype(T(1) * 1.0f)(scale))",
        )
    )

    def gather(xp: Any, source: Array, rows: Array, scale: Any, *, out: Array, scratch: Array) -> None:
        if scale is None:
            copied(source, rows, source.shape[1], out)
        else:
            scaled(source, rows, source.shape[1], scale, out)

    return gather


def one_hot(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise("one_hot", "raw int64 labels, int64 n", "T out", "out = labels[i / n] == i % n ? T(1) : T(0)")
    )

    def one_hot(xp: Any, labels: Array, starts: Array, one: Array, *, out: Array, index: Array) -> None:
        kernel(labels, out.shape[1], out)

    return one_hot


FACTORIES = {"gather": gather, "one_hot": one_hot}
