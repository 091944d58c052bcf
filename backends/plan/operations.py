"""What the operations of a plan are: their dtypes, and how an array module computes them into memory given.

NumPy says which dtype a result has; where it computes in another dtype than its operands', the plan has a cast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Elementwise:
    """An operation element by element; `cost` is about the number of machine instructions for a vector of them."""

    arity: int
    cost: int = 1


_ONE = (
    "negative absolute sign square floor ceil rint trunc isnan isinf isfinite logical_not invert signbit"
)  # fmt: skip
_TWO = (
    "add subtract multiply maximum minimum greater greater_equal less less_equal equal not_equal copysign "
    "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift right_shift"
)

ELEMENTWISE: dict[str, Elementwise] = {
    **{name: Elementwise(1) for name in _ONE.split()},
    **{name: Elementwise(2) for name in _TWO.split()},
    "sqrt": Elementwise(1, 12),
    "reciprocal": Elementwise(1, 8),
    "divide": Elementwise(2, 8),
    "floor_divide": Elementwise(2, 20),
    "remainder": Elementwise(2, 20),
    "ldexp": Elementwise(2, 6),
    "where": Elementwise(3),
    **{name: Elementwise(1, 20) for name in ("exp", "expm1", "log", "log1p", "tanh", "sin", "cos")},
    "power": Elementwise(2, 60),
}
"""By NumPy's names."""

ALIASES = {"abs": "absolute", "conjugate": "positive", "bitwise_not": "invert", "true_divide": "divide"}

REDUCTIONS = ("sum", "max", "min", "argmax")


def result_dtype(name: str, kinds: Sequence[Any]) -> tuple[list[np.dtype], np.dtype]:
    """The dtypes that the operands are taken in, and the result's; TypeError where NumPy has none.

    `kinds` are dtypes, or the Python types int, float and bool for what promotes weakly.
    """
    low = next((kind for kind in kinds if isinstance(kind, np.dtype) and kind.kind == "V"), None)
    if low is not None:  # bfloat16: with ml_dtypes a Python float would make it float32, where NumPy's own stay
        kinds = [low if kind is float else kind for kind in kinds]
    if name == "where":
        joint = _joint(kinds[1:])
        return [np.dtype(np.bool_), joint, joint], joint
    ufunc = getattr(np, name)
    if all(isinstance(kind, type) for kind in kinds):  # Python numbers alone
        kinds = [np.dtype(kind) for kind in kinds]
    *taken, result = ufunc.resolve_dtypes((*(np.dtype(k) if k is bool else k for k in kinds), None))
    return taken, result


def _joint(kinds: Sequence[Any]) -> np.dtype:
    if all(isinstance(kind, type) for kind in kinds):
        return np.result_type(*kinds)
    # np.result_type takes numbers, and not their types, as weak
    return np.result_type(*(kind(0) if isinstance(kind, type) else kind for kind in kinds))
