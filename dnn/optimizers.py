"""Optimizers: frozen configurations, the names of their state, and one expression.

The equations are in `dnn.functional.updates`. To add one: a dataclass with its settings and `update`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.errors import check_number, check_rounded, check_whole

Factor = float | tuple[float, float]
"""The factor of a learning rate, or that and the factor of the weight decay."""


@dataclass(frozen=True)
class Optimizer:
    """The learning rate, and what else an update needs to know.

    `arrays` names the state of the parameters' shape, which begins as zeros; `scalars` names the numbers that change
    from step to step, with what they begin as. `matrices`: hidden weight matrices are updated one by one, by
    `update_matrix`, and `update` is for the rest.

    `weight_decay` λ is decoupled: the step takes θ ← θ (1 − α λ) before the update (Loshchilov and Hutter 2019,
    algorithm 2, with α inside as in PyTorch's AdamW), for weights only. `factors` are for the learning rates of single
    parameters ("W1", "b2") or of a kind ("b": all biases), the single ones first: {"W1": 0.1, "b": 2.0}. A pair has
    also the factor of λ, {"b": (1.0, 1.0)}, which is otherwise 1 for weights and 0 for the rest. They are kept as a
    tuple of pairs.
    """

    arrays: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[Mapping[str, float]] = {}
    matrices: ClassVar[bool] = False
    learning_rate: float = 0.01
    weight_decay: float = field(default=0.0, kw_only=True)
    factors: Mapping[str, Factor] | tuple[tuple[str, Factor], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", _checked_factors(f"{type(self).__name__}: factors", self.factors))
        for setting in fields(self):
            if setting.name == "factors":
                continue
            value = getattr(self, setting.name)
            check_number(f"{type(self).__name__}: {setting.name}", value)
            # a fraction, or a scalar of NumPy, whose dtype would decide that of the update
            number = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(self, setting.name, number)
        for name in ("learning_rate", "weight_decay"):
            check_setting(self, name, getattr(self, name) >= 0, "at least 0")

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        """The new θ; where there is state, θ followed by the new arrays and scalars, in the order of their names.

        A pure function in `xp` of arrays of one shape and dtype. The learning rate and the scalars promote as
        Python's numbers do. Without weight decay: that is the step's.
        """
        raise NotImplementedError

    def update_matrix(self, xp: Any, W: Array, grad: Array, learning_rate: Any, *arrays: Any) -> Any:
        """The new W (n_out, n_in), followed by its new arrays, where `matrices` says so. It has no scalars."""
        raise NotImplementedError

    @property
    def rate_ratio(self) -> float:
        """What `update` multiplies the learning rate by; the weight decay of what it updates is with this rate."""
        return 1.0

    def check_in(self, dtype: np.dtype) -> None:
        """ValueError where a setting is another number in the parameters' dtype, and the update another update."""
        self._check_rounded(dtype, "learning_rate", "weight_decay")

    def _check_rounded(self, dtype: np.dtype, *names: str, below_one: bool = False) -> None:
        for name in names:
            check_rounded(f"{type(self).__name__}: {name}", getattr(self, name), dtype, below_one)

    def continues(self, other: Optimizer) -> bool:
        """Whether this is `other` but for its learning rate, and so can go on with its state."""
        return type(self) is type(other) and replace(self, learning_rate=other.learning_rate) == other

    def factor_of(self, name: str) -> tuple[float, float]:
        """The factors of the learning rate and of the weight decay for the parameter of that name."""
        given = dict(self.factors)
        found = given.get(name, given.get(kind_of(name), 1.0))
        return found if isinstance(found, tuple) else (found, 1.0 if name.startswith("W") else 0.0)

    def unknown(self, names: Iterable[str]) -> str | None:
        """The first key of `factors` that is neither one of these parameters nor a kind of them."""
        names = list(names)
        known = {*names, *(kind_of(name) for name in names)}
        return next((key for key in dict(self.factors) if key not in known), None)


def kind_of(name: str) -> str:
    """The letters of a parameter's name: "W" of "W12"."""
    return name.rstrip("0123456789")


def _checked_factors(what: str, given: Any) -> tuple[tuple[str, Factor], ...]:
    """As pairs in the order of their keys, so that equal factors are equal."""
    if not isinstance(given, (Mapping, tuple)):
        raise TypeError(f'{what} must be a dict such as {{"W1": 0.1, "b": (1.0, 0.0)}}, got {given!r}')
    found: dict[str, Factor] = {}
    for name, value in given.items() if isinstance(given, Mapping) else given:
        if not isinstance(name, str):
            raise TypeError(f'{what}: a key must be a parameter\'s name ("W1") or kind ("b"), got {name!r}')
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        if len(numbers) not in (1, 2):
            raise ValueError(f"{what}[{name!r}] must be a number or a pair of them, got {value!r}")
        for number in numbers:
            check_number(f"{what}[{name!r}]", number)
            if not (number >= 0 and math.isfinite(number)):
                raise ValueError(f"{what}[{name!r}] must be finite and at least 0, got {number!r}")
        rate, *decay = (float(number) for number in numbers)
        found[name] = (rate, *decay) if decay else rate  # type: ignore[assignment]
    return tuple(sorted(found.items()))


def check_setting(optimizer: Optimizer, name: str, holds: bool, expected: str) -> None:
    """ValueError where a setting is out of range or not finite."""
    value = getattr(optimizer, name)
    if not (holds and math.isfinite(value)):
        expected = expected if math.isfinite(value) else "finite"
        raise ValueError(f"{type(optimizer).__name__}: {name} must be {expected}, got {value!r}")


def _check_below_one(optimizer: Optimizer, *names: str) -> None:
    for name in names:
        check_setting(optimizer, name, 0 <= getattr(optimizer, name) < 1, "at least 0 and below 1")


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
        _check_below_one(self, "momentum")

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "momentum", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (velocity,) = state
        return functional.momentum(xp, theta, grad, velocity, learning_rate, self.momentum)


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Nesterov's momentum: v ← μ v + g, θ ← θ − α (g + μ v).

    Sutskever et al. 2013, equations (3) and (4), in the form of PyTorch's SGD(nesterov=True): α outside v, and θ the
    point at which the gradient is taken.
    """

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (velocity,) = state
        return functional.nesterov(xp, theta, grad, velocity, learning_rate, self.momentum)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Steps by a running root mean square: v ← ρ v + (1 − ρ) g², θ ← θ − α g / (√v + ε).

    Tieleman and Hinton 2012, lecture 6.5, slide 29, with the defaults of PyTorch: ρ = 0.99 (theirs 0.9), and ε outside
    the root; neither centred nor with momentum.
    """

    arrays = ("v",)
    rho: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_below_one(self, "rho")
        check_setting(self, "eps", self.eps > 0, "above 0")

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "eps")
        self._check_rounded(dtype, "rho", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (v,) = state
        return functional.rmsprop(xp, theta, grad, v, learning_rate, self.rho, self.eps)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Steps by the root of all squares so far: v ← v + g², θ ← θ − α g / (√v + ε).

    Duchi et al. 2011, figure 1 with the diagonal of G; v begins at 0, ε is outside the root and α does not decay
    otherwise, as in PyTorch.
    """

    arrays = ("v",)
    eps: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "eps", self.eps > 0, "above 0")

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "eps")

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (v,) = state
        return functional.adagrad(xp, theta, grad, v, learning_rate, self.eps)


@dataclass(frozen=True)
class Adam(Optimizer):
    """θ ← θ − α m̂ / (√v̂ + ε), with m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g².

    Kingma and Ba 2015, algorithm 1. eps is added to √v̂ after the bias correction, as in the paper and in PyTorch.
    """

    arrays = ("m", "v")
    scalars: ClassVar[Mapping[str, float]] = {"power1": 1.0, "power2": 1.0}
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_below_one(self, "beta1", "beta2")
        check_setting(self, "eps", self.eps > 0, "above 0")

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "eps")
        self._check_rounded(dtype, "beta1", "beta2", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, power1, power2 = state
        constants = self.beta1, self.beta2, self.eps
        return functional.adam(xp, theta, grad, m, v, power1, power2, learning_rate, *constants)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: θ ← θ (1 − α λ) for weights, then Adam's update.

    Loshchilov and Hutter 2019, algorithm 2; α inside the decay and λ = 0.01 as in PyTorch.
    """

    weight_decay: float = field(default=0.01, kw_only=True)


@dataclass(frozen=True)
class NAdam(Adam):
    """Adam with Nesterov's momentum: θ ← θ − α (μₜ₊₁ m / (1 − Πᵗ⁺¹ μ) + (1 − μₜ) g / (1 − Πᵗ μ)) / (√v̂ + ε).

    Dozat 2016, algorithm 2, with PyTorch's momenta μₜ = β₁ (1 − 0.96^(t ψ) / 2), ψ = momentum_decay, and its defaults.
    """

    scalars: ClassVar[Mapping[str, float]] = {"decay": 1.0, "product": 1.0, "power2": 1.0}
    learning_rate: float = 0.002
    momentum_decay: float = 0.004

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "momentum_decay", self.momentum_decay >= 0, "at least 0")

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, decay, product, power2 = state
        constants = self.beta1, self.beta2, self.eps, self.momentum_decay
        return functional.nadam(xp, theta, grad, m, v, decay, product, power2, learning_rate, *constants)


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam that waits for v: θ ← θ − α r m̂ / (√v̂ + ε') where ρₜ > 5, else θ ← θ − α m̂.

    ρₜ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ), ρ∞ = 2 / (1 − β₂) − 1, r² = (ρₜ − 4)(ρₜ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₜ): Liu et al.
    2020, algorithm 2, with 5 for the paper's 4 and eps added before v's bias correction, as in PyTorch.
    """

    scalars: ClassVar[Mapping[str, float]] = {"t": 0.0, "power1": 1.0, "power2": 1.0}

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, steps, power1, power2 = state
        constants = self.beta1, self.beta2, self.eps
        return functional.radam(xp, theta, grad, m, v, steps, power1, power2, learning_rate, *constants)


@dataclass(frozen=True)
class Lion(Optimizer):
    """Steps of one size: θ ← θ − α sign(β₁ m + (1 − β₁) g), m ← β₂ m + (1 − β₂) g.

    Chen et al. 2023, algorithm 2 and its β; its weight decay is `weight_decay`. α is to be 3 to 10 times smaller than
    Adam's, and λ as many times larger.
    """

    arrays = ("m",)
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_below_one(self, "beta1", "beta2")

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "beta1", "beta2", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (m,) = state
        return functional.lion(xp, theta, grad, m, learning_rate, self.beta1, self.beta2)


@dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonal steps for hidden weight matrices: m ← μ m + g, W ← W − α √max(1, n_out / n_in) NS(g + μ m).

    NS makes the singular values about 1 (`dnn.functional.newton_schulz`): Jordan et al. 2024, with Nesterov's momentum,
    five steps and their scale. What is no hidden weight matrix is Adam's, with a learning rate of its own; whatever
    scales `learning_rate` during a training scales both.
    """

    arrays = ("m", "v")  # of a hidden matrix m is the momentum, and v stays 0
    scalars: ClassVar[Mapping[str, float]] = {"power1": 1.0, "power2": 1.0}
    matrices = True
    learning_rate: float = 0.02
    momentum: float = 0.95
    adam_learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    steps: int = 5

    def __post_init__(self) -> None:
        check_whole("Muon: steps", self.steps)
        super().__post_init__()
        check_setting(self, "learning_rate", self.learning_rate > 0, "above 0")
        check_setting(self, "adam_learning_rate", self.adam_learning_rate >= 0, "at least 0")
        _check_below_one(self, "momentum", "beta1", "beta2")
        check_setting(self, "eps", self.eps > 0, "above 0")
        check_setting(self, "steps", self.steps >= 1, "at least 1")

    @property
    def rate_ratio(self) -> float:
        return self.adam_learning_rate / self.learning_rate

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        self._check_rounded(dtype, "adam_learning_rate", "eps")
        self._check_rounded(dtype, "momentum", "beta1", "beta2", below_one=True)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, power1, power2 = state
        constants = self.beta1, self.beta2, self.eps
        return functional.adam(xp, theta, grad, m, v, power1, power2, learning_rate * self.rate_ratio, *constants)

    def update_matrix(self, xp: Any, W: Array, grad: Array, learning_rate: Any, *arrays: Any) -> Any:
        """The new W and m; v, which comes with the arrays or not, is none of a matrix's."""
        return functional.muon(xp, W, grad, arrays[0], learning_rate, self.momentum, self.steps)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": AdamW,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "nadam": NAdam,
    "radam": RAdam,
    "lion": Lion,
    "muon": Muon,
}


def checked_optimizer(optimizer: Optimizer | str) -> Optimizer:
    """The optimizer, or the one of that name with its defaults; ValueError names what there is, and the closest."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    near: list[str] = []
    if isinstance(optimizer, str):
        if optimizer in OPTIMIZERS:
            return OPTIMIZERS[optimizer]()
        near = difflib.get_close_matches(optimizer.lower(), OPTIMIZERS, 1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"optimizer must be one of {', '.join(OPTIMIZERS)} or a configuration such as dnn.Adam(1e-3), "
        f"got {optimizer!r}{hint}"
    )


__all__ = ["Optimizer", *(kind.__name__ for kind in OPTIMIZERS.values())]
