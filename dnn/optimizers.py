"""Optimizers: each a frozen configuration, the names of its state, and one expression.

θ, the gradient g and the state have one shape and dtype; α is the learning rate. To add one: a dataclass with its
settings and `update`, and its line in the table at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from dnn.backends import Array
from dnn.errors import check_number, check_rounded, check_whole, configuration
from dnn.parameters import is_weight, kind_of

Factor = float | tuple[float, float]
"""The factor of a learning rate, or that and the factor of the weight decay."""


@dataclass(frozen=True)
class Optimizer:
    """The learning rate, and what else an update needs to know.

    `arrays` names the state of the parameters' shape, which begins as zeros; `scalars` names the numbers that change
    from step to step, with what they begin as. `below_one` names the settings that are from 0 to below 1, `above_zero`
    those that are above 0. `matrices`: hidden weight matrices are updated one by one, by `update_matrix`, and `update`
    is for the rest.

    `weight_decay` λ is decoupled: the step takes θ ← θ (1 − α λ) before the update (Loshchilov and Hutter 2019,
    algorithm 2, with α inside as in PyTorch's AdamW), for weights only. `factors` are for the learning rates of single
    parameters ("W1", "b2") or of a kind ("b": all biases), the single ones first: {"W1": 0.1, "b": 2.0}. A pair has
    also the factor of λ, {"b": (1.0, 1.0)}, which is otherwise 1 for weights and 0 for the rest. They are kept as a
    tuple of pairs.
    """

    arrays: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[Mapping[str, float]] = {}
    below_one: ClassVar[tuple[str, ...]] = ()
    above_zero: ClassVar[tuple[str, ...]] = ()
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
        for name in self.below_one:
            check_setting(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in self.above_zero:
            check_setting(self, name, getattr(self, name) > 0, "above 0")

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
        for name in ("learning_rate", "weight_decay", *self.above_zero):
            check_rounded(f"{type(self).__name__}: {name}", getattr(self, name), dtype)
        for name in self.below_one:
            check_rounded(f"{type(self).__name__}: {name}", getattr(self, name), dtype, below_one=True)

    def continues(self, other: Optimizer) -> bool:
        """Whether this is `other` but for its learning rate, and so can go on with its state."""
        return type(self) is type(other) and replace(self, learning_rate=other.learning_rate) == other

    def factor_of(self, name: str) -> tuple[float, float]:
        """The factors of the learning rate and of the weight decay for the parameter of that name."""
        given = dict(self.factors)
        found = given.get(name, given.get(kind_of(name), 1.0))
        return found if isinstance(found, tuple) else (found, 1.0 if is_weight(name) else 0.0)

    def unknown(self, names: Iterable[str]) -> str | None:
        """The first key of `factors` that is neither one of these parameters nor a kind of them."""
        names = list(names)
        known = {*names, *(kind_of(name) for name in names)}
        return next((key for key in dict(self.factors) if key not in known), None)


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


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: θ ← θ − α g, equations (16) and (17) of the assignment."""

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Array:
        return theta - learning_rate * grad


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Heavy ball: v ← μ v + g, θ ← θ − α v (Polyak 1964; α outside v, as in PyTorch)."""

    arrays = ("velocity",)
    below_one = ("momentum",)
    momentum: float = 0.9

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (velocity,) = state
        velocity = self.momentum * velocity + grad
        return theta - learning_rate * velocity, velocity


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Nesterov's momentum: v ← μ v + g, θ ← θ − α (g + μ v).

    Sutskever et al. 2013, equations (3) and (4), in the form of PyTorch's SGD(nesterov=True): α outside v, and θ the
    paper's θ + μ v, the point at which the gradient is taken.
    """

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (velocity,) = state
        velocity = self.momentum * velocity + grad
        return theta - learning_rate * (grad + self.momentum * velocity), velocity


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Steps by a running root mean square: v ← ρ v + (1 − ρ) g², θ ← θ − α g / (√v + ε).

    Tieleman and Hinton 2012, lecture 6.5, slide 29, with the defaults of PyTorch: ρ = 0.99 (theirs 0.9), and ε outside
    the root; neither centred nor with momentum.
    """

    arrays = ("v",)
    below_one = ("rho",)
    above_zero = ("eps",)
    rho: float = 0.99
    eps: float = 1e-8

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (v,) = state
        v = self.rho * v + (1 - self.rho) * (grad * grad)
        return theta - learning_rate * (grad / (xp.sqrt(v) + self.eps)), v


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Steps by the root of all squares so far: v ← v + g², θ ← θ − α g / (√v + ε).

    Duchi et al. 2011, figure 1 with the diagonal of G; v begins at 0, ε is outside the root and α does not decay
    otherwise, as in PyTorch.
    """

    arrays = ("v",)
    above_zero = ("eps",)
    eps: float = 1e-10

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (v,) = state
        v = v + grad * grad
        return theta - learning_rate * (grad / (xp.sqrt(v) + self.eps)), v


@dataclass(frozen=True)
class Adam(Optimizer):
    """θ ← θ − α m̂ / (√v̂ + ε), with m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g².

    Kingma and Ba 2015, algorithm 1. eps is added to √v̂ after the bias correction, as in the paper and in PyTorch.

    The state's m and v are these divided by 1 − β₁ and 1 − β₂: two passes fewer over the parameters. Then m̂ = m / c₁
    and v̂ = v / c₂ with c = (1 − βᵗ) / (1 − β), and both c go into the two numbers of the step.
    """

    arrays = ("m", "v")
    below_one = ("beta1", "beta2")
    above_zero = ("eps",)
    scalars: ClassVar[Mapping[str, float]] = {"power1": 1.0, "power2": 1.0}  # β₁ᵗ and β₂ᵗ
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, power1, power2 = state
        power1, power2 = self.beta1 * power1, self.beta2 * power2
        c1, c2 = (1 - power1) / (1 - self.beta1), (1 - power2) / (1 - self.beta2)
        m = self.beta1 * m + grad
        v = self.beta2 * v + grad * grad
        theta = theta - m / (xp.sqrt(v) + self.eps * c2**0.5) * (learning_rate * c2**0.5 / c1)
        return theta, m, v, power1, power2


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

    scalars: ClassVar[Mapping[str, float]] = {"decay": 1.0, "product": 1.0, "power2": 1.0}  # 0.96^(t ψ), Πᵗ μ, β₂ᵗ
    learning_rate: float = 0.002
    momentum_decay: float = 0.004

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "momentum_decay", self.momentum_decay >= 0, "at least 0")

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, decay, product, power2 = state
        shrink = 0.96**self.momentum_decay
        decay, power2 = shrink * decay, self.beta2 * power2
        mu, next_mu = self.beta1 * (1 - 0.5 * decay), self.beta1 * (1 - 0.5 * shrink * decay)
        product = mu * product
        m = self.beta1 * m + grad
        v = self.beta2 * v + grad * grad
        root = ((1 - power2) / (1 - self.beta2)) ** 0.5
        of_m = learning_rate * root * next_mu * (1 - self.beta1) / (1 - product * next_mu)
        of_grad = learning_rate * root * (1 - mu) / (1 - product)
        theta = theta - (of_m * m + of_grad * grad) / (xp.sqrt(v) + self.eps * root)
        return theta, m, v, decay, product, power2


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam that waits for v: θ ← θ − α r m̂ √(1 − β₂ᵗ) / (√v + ε) where ρₜ > 5, else θ ← θ − α m̂.

    ρₜ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ), ρ∞ = 2 / (1 − β₂) − 1, r² = (ρₜ − 4)(ρₜ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρₜ): Liu et al.
    2020, algorithm 2, with 5 for the paper's 4 and eps added before v's bias correction, as in PyTorch.
    """

    scalars: ClassVar[Mapping[str, float]] = {"t": 0.0, "power1": 1.0, "power2": 1.0}

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        m, v, steps, power1, power2 = state
        steps, power1, power2 = steps + 1, self.beta1 * power1, self.beta2 * power2
        m = self.beta1 * m + grad
        v = self.beta2 * v + grad * grad
        plain = learning_rate * (1 - self.beta1) / (1 - power1)
        limit = 2 / (1 - self.beta2) - 1
        if limit <= 5:  # a setting, not a value: ρₜ < ρ∞ never gets there
            return theta - plain * m, m, v, steps, power1, power2
        length = limit - 2 * steps * power2 / (1 - power2)
        # abs: below 4, where this is not used, the root would be of a negative number
        r = (abs((length - 4) * (length - 2) / length) * (limit / ((limit - 4) * (limit - 2)))) ** 0.5
        root = (1 - self.beta2) ** 0.5
        adaptive = plain * r * (1 - power2) ** 0.5 / root
        rate = xp.where(length > 5, adaptive / (xp.sqrt(v) + self.eps / root), plain)
        return theta - rate * m, m, v, steps, power1, power2


@dataclass(frozen=True)
class Lion(Optimizer):
    """Steps of one size: θ ← θ − α sign(β₁ m + (1 − β₁) g), m ← β₂ m + (1 − β₂) g.

    Chen et al. 2023, algorithm 2 and its β; its weight decay is `weight_decay`. α is to be 3 to 10 times smaller than
    Adam's, and λ as many times larger.
    """

    arrays = ("m",)
    below_one = ("beta1", "beta2")
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        (m,) = state
        direction = xp.sign(self.beta1 * m + (1 - self.beta1) * grad)
        return theta - learning_rate * direction, self.beta2 * m + (1 - self.beta2) * grad


@dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonal steps for hidden weight matrices: m ← μ m + g, W ← W − α √max(1, n_out / n_in) NS(g + μ m).

    NS makes the singular values about 1 (`newton_schulz`), whatever the length, so m needs no factor 1 − μ: Jordan et
    al. 2024, with Nesterov's momentum, five steps and their scale. What is no hidden weight matrix is Adam's, with a
    learning rate of its own; whatever scales `learning_rate` during a training scales both.
    """

    arrays = ("m", "v")  # of a hidden matrix m is the momentum, and v stays 0
    scalars: ClassVar[Mapping[str, float]] = {"power1": 1.0, "power2": 1.0}
    below_one = ("momentum", "beta1", "beta2")
    above_zero = ("eps",)
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
        check_setting(self, "steps", self.steps >= 1, "at least 1")

    @property
    def rate_ratio(self) -> float:
        return self.adam_learning_rate / self.learning_rate

    def check_in(self, dtype: np.dtype) -> None:
        super().check_in(dtype)
        check_rounded("Muon: adam_learning_rate", self.adam_learning_rate, dtype)

    def update(self, xp: Any, theta: Array, grad: Array, learning_rate: Any, *state: Any) -> Any:
        adam = Adam(beta1=self.beta1, beta2=self.beta2, eps=self.eps)
        return adam.update(xp, theta, grad, learning_rate * self.rate_ratio, *state)

    def update_matrix(self, xp: Any, W: Array, grad: Array, learning_rate: Any, *arrays: Any) -> Any:
        """The new W and m; v, which comes with the arrays or not, is none of a matrix's."""
        m = self.momentum * arrays[0] + grad
        direction = newton_schulz(xp, grad + self.momentum * m, self.steps)
        scale = max(1.0, W.shape[0] / W.shape[1]) ** 0.5
        return W - (learning_rate * scale) * direction, m


def newton_schulz(xp: Any, G: Array, steps: int = 5, eps: float = 1e-7) -> Array:
    """About U Vᵀ of G = U S Vᵀ: X ← a X + (b A + c A²) X with A = X Xᵀ, from X = G / max(‖G‖, ε) on.

    Jordan et al. 2024, with their (a, b, c), the steepest at 0: the singular values end between about 0.7 and 1.2
    rather than at 1, but for those that begin below about 0.003.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = G.shape[0] > G.shape[1]
    X = G.T if tall else G  # A is the smaller of the two Gram matrices
    X = X / xp.maximum(xp.sqrt(xp.sum(G * G)), eps)
    for _ in range(steps):
        A = xp.dot(X, X.T)
        X = a * X + xp.dot(b * A + c * xp.dot(A, A), X)
    return X.T if tall else X


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
    found: Optimizer = configuration("optimizer", optimizer, Optimizer, OPTIMIZERS, "dnn.Adam(1e-3)")
    return found


__all__ = ["Optimizer", *(kind.__name__ for kind in OPTIMIZERS.values())]
