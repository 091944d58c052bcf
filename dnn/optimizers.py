"""Optimizers: frozen configurations, the names of their state, and one expression.

The equations are in `dnn.functional.updates`. To add one: a dataclass with its settings and `update`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.errors import check_number, check_rounded


@dataclass(frozen=True)
class Optimizer:
    """The learning rate, and what else an update needs to know.

    `arrays` names the state of the parameters' shape, which begins as zeros; `scalars` names the numbers that change
    from step to step, with what they begin as.
    """

    arrays: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[Mapping[str, float]] = {}
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            check_number(f"{type(self).__name__}: {setting.name}", value)
            # a fraction, or a scalar of NumPy, whose dtype would decide that of the update
            number = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(self, setting.name, number)
        check_setting(self, "learning_rate", self.learning_rate >= 0, "at least 0")

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        """The new θ; where there is state, θ followed by the new arrays and scalars, in the order of their names.

        A pure function in `xp` of arrays of one shape and dtype. The learning rate and the scalars promote as
        Python's numbers do.
        """
        raise NotImplementedError

    def check_in(self, dtype: np.dtype) -> None:
        """ValueError where a setting is another number in the parameters' dtype, and the update another update."""
        self._check_rounded(dtype, "learning_rate")

    def _check_rounded(self, dtype: np.dtype, *names: str, below_one: bool = False) -> None:
        for name in names:
            check_rounded(f"{type(self).__name__}: {name}", getattr(self, name), dtype, below_one)

    def continues(self, other: Optimizer) -> bool:
        """Whether this is `other` but for its learning rate, and so can go on with its state."""
        return type(self) is type(other) and replace(self, learning_rate=other.learning_rate) == other


def check_setting(optimizer: Optimizer, name: str, holds: bool, expected: str) -> None:
    """ValueError where a setting is out of range or not finite."""
    value = getattr(optimizer, name)
    if not (holds and math.isfinite(value)):
        expected = expected if math.isfinite(value) else "finite"
        raise ValueError(f"{type(optimizer).__name__}: {name} must be {expected}, got {value!r}")


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: θ ← θ − α g."""

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Array:
        return functional.sgd(xp, theta, grad, learning_rate)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball: v ← μ v + g, θ ← θ − α v (Polyak 1964; α outside v, as in PyTorch)."""

    arrays = ("velocity",)
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")

    def check_in(self, dtype: np.dtype) -> None:
        self._check_rounded(dtype, "learning_rate")
        self._check_rounded(dtype, "momentum", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (velocity,) = state
        return functional.momentum(xp, theta, grad, velocity, learning_rate, self.momentum)


@dataclass(frozen=True)
class Adam(Optimizer):
    """m̂ / (√v̂ + ε) (Kingma and Ba 2015, algorithm 1), without weight decay.

    eps is added to √v̂ after the bias correction, as in the paper and in PyTorch.
    """

    arrays = ("m", "v")
    scalars: ClassVar[Mapping[str, float]] = {"power1": 1.0, "power2": 1.0}
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "beta1", 0 <= self.beta1 < 1, "at least 0 and below 1")
        check_setting(self, "beta2", 0 <= self.beta2 < 1, "at least 0 and below 1")
        check_setting(self, "eps", self.eps > 0, "above 0")

    def check_in(self, dtype: np.dtype) -> None:
        self._check_rounded(dtype, "learning_rate", "eps")
        self._check_rounded(dtype, "beta1", "beta2", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, power1, power2 = state
        constants = self.beta1, self.beta2, self.eps
        return functional.adam(xp, theta, grad, m, v, power1, power2, learning_rate, *constants)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
