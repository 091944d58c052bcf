"""Optimizers: small frozen configurations. `bind` gives the update itself, its buffers bound once.

The equations stand in `functional`. To add one: its update there, a configuration and its Update here, its name in
OPTIMIZERS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from dnn import functional
from dnn.backends import Array, Backend
from dnn.errors import check_number
from dnn.parameters import Parameters


@dataclass(frozen=True)
class Optimizer:
    """The learning rate, and what else an update needs to know."""

    update: ClassVar[type[Update]]
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_number(f"{type(self).__name__}: {setting.name}", getattr(self, setting.name))
        _check(self, "learning_rate", self.learning_rate >= 0, "at least 0")

    def bind(self, parameters: Parameters) -> Update:
        """The update of `parameters`, its state at zero."""
        return self.update(self, parameters)

    def continues(self, other: Optimizer) -> bool:
        """Whether this is `other` but for its learning rate, and so can go on with its state."""
        return type(self) is type(other) and replace(self, learning_rate=other.learning_rate) == other


class Update:
    """θ ← θ − (a step along the gradients), bound to one set of parameters.

    The step reads `gradients`. `state` names the flat buffers that outlive a step. The learning rate lives on the
    device, so that a recorded step sees it change; so do the `decays`, so that one can leave everything as it is.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    decays: ClassVar[tuple[str, ...]] = ()
    """The optimizer's settings that its state is multiplied by at every step."""
    factors_in_64: ClassVar[bool] = False
    """Whether the learning rate and the decays are needed in float64 too."""

    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        backend = parameters.backend
        self.optimizer = optimizer
        self.backend = backend
        self.parameters = parameters
        self.gradients = parameters.like()
        self.state = {name: backend.zeros(parameters.flat.shape, parameters.dtype) for name in self.state_names}
        self._xp = backend.xp
        self._scratch = backend.zeros(parameters.flat.shape, parameters.dtype)
        values = [optimizer.learning_rate, *(getattr(optimizer, name) for name in self.decays)]
        self._factors = _Factors(backend, parameters.dtype, values)
        self._factors_64 = _Factors(backend, np.float64, values) if self.factors_in_64 else None
        self._gather = backend.fused(functional.gather)
        self.learning_rate = optimizer.learning_rate

    @property
    def learning_rate(self) -> float:
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = float(value)
        for factors in self._every_factors():
            factors.set_learning_rate(value)

    def take_factors(self, row: Array) -> None:
        """The next step's factors: as asked where row, (1,) on the device, is 1; where it is 0, those of no step."""
        for factors in self._every_factors():
            self._gather(self._xp, factors.table, row, None, out=factors.taken, scratch=factors.taken)

    def _every_factors(self) -> list[_Factors]:
        return [self._factors] if self._factors_64 is None else [self._factors, self._factors_64]

    def __call__(self) -> None:
        raise NotImplementedError


class _Factors:
    """(α, decays ...) on the device: `taken` (1, k), which a step reads, is one of the two rows of `table`.

    Row 1 is as asked. Row 0, α = 0 and decays of 1, leaves θ and the state as they are where the gradients are 0.
    """

    def __init__(self, backend: Backend, dtype: Any, values: list[float]) -> None:
        of_no_step = [0.0] + [1.0] * (len(values) - 1)
        self.table = backend.asarray(np.array([of_no_step, values], dtype))
        self.taken = backend.zeros((1, len(values)), dtype)
        self.each = [self.taken[0, i : i + 1] for i in range(len(values))]

    def set_learning_rate(self, value: float) -> None:
        self.table[1, 0] = value
        self.taken[...] = self.table[1:]


class _SGDUpdate(Update):
    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        super().__init__(optimizer, parameters)
        self._sgd = self.backend.fused(functional.sgd)

    def __call__(self) -> None:
        self._sgd(self._xp, self.parameters.flat, self.gradients.flat, *self._factors.each, scratch=self._scratch)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: θ ← θ − α g."""

    update = _SGDUpdate


class _MomentumUpdate(Update):
    state_names = ("velocity",)
    decays = ("momentum",)

    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        super().__init__(optimizer, parameters)
        self._momentum = self.backend.fused(functional.momentum)

    def __call__(self) -> None:
        self._momentum(
            self._xp,
            self.parameters.flat,
            self.gradients.flat,
            self.state["velocity"],
            *self._factors.each,
            scratch=self._scratch,
        )


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball: v ← μ v + g, θ ← θ − α v (Polyak 1964; α outside v, as in PyTorch)."""

    update = _MomentumUpdate

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")


class _AdamUpdate(Update):
    state_names = ("m", "v")
    decays = ("beta1", "beta2")
    factors_in_64 = True
    optimizer: Adam

    def __init__(self, optimizer: Adam, parameters: Parameters) -> None:
        super().__init__(optimizer, parameters)
        backend, betas = self.backend, np.array([optimizer.beta1, optimizer.beta2])
        self._betas = backend.asarray(betas)
        self._one_minus_betas = backend.asarray(1 - betas)
        assert self._factors_64 is not None
        self._learning_rate_64, self._decays_64 = self._factors_64.taken[0, :1], self._factors_64.taken[0, 1:]
        self._powers = backend.asarray(np.ones(2))
        self._corrections = backend.zeros(2, np.float64)
        self._correction1, self._correction2 = self._corrections[:1], self._corrections[1:]
        _, self._beta1, self._beta2 = self._factors.each
        self._step_size = backend.zeros(1, parameters.dtype)
        self._epsilon = backend.zeros(1, parameters.dtype)
        self._adam_factors = backend.fused(functional.adam_factors)
        self._adam = backend.fused(functional.adam)

    def __call__(self) -> None:
        self._adam_factors(
            self._xp,
            self._learning_rate_64,
            self.optimizer.eps,
            self._betas,
            self._one_minus_betas,
            self._decays_64,
            powers=self._powers,
            c=self._corrections,
            c1=self._correction1,
            c2=self._correction2,
            step_size=self._step_size,
            epsilon=self._epsilon,
        )
        self._adam(
            self._xp,
            self.parameters.flat,
            self.gradients.flat,
            self.state["m"],
            self.state["v"],
            self._step_size,
            self._epsilon,
            self._beta1,
            self._beta2,
            scratch=self._scratch,
        )


@dataclass(frozen=True)
class Adam(Optimizer):
    """m̂ / (√v̂ + ε) (Kingma and Ba 2015, algorithm 1), without weight decay.

    eps is added to √v̂ after the bias correction, as in the paper and in PyTorch.
    """

    update = _AdamUpdate

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "beta1", 0 <= self.beta1 < 1, "at least 0 and below 1")
        _check(self, "beta2", 0 <= self.beta2 < 1, "at least 0 and below 1")
        _check(self, "eps", self.eps > 0, "above 0")


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}


def _check(optimizer: Optimizer, name: str, holds: bool, expected: str) -> None:
    value = getattr(optimizer, name)
    if not (holds and math.isfinite(value)):
        raise ValueError(f"{type(optimizer).__name__}: {name} must be {expected}, got {value!r}")
