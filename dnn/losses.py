"""Losses by name: what is minimised, as a function of the logits.

The equations are in `dnn.functional.losses`. Those with settings are frozen configurations, as optimizers are.

name                    class                  outputs           settings
sigmoid_cross_entropy   SigmoidCrossEntropy    sigmoid           label_smoothing
softmax_cross_entropy   SoftmaxCrossEntropy    softmax           label_smoothing
focal                   Focal                  sigmoid, softmax  gamma, alpha
squared_error           SquaredError           linear
absolute_error          AbsoluteError          linear
huber                   Huber                  linear            delta
poisson                 Poisson                linear
quantile                Quantile               linear, Q units   quantiles
gaussian_nll            GaussianNLL            linear, 2 units   eps
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.errors import DataError, check_number, check_whole, nearest
from dnn.functional.losses import LOSSES

__all__ = [
    "AbsoluteError",
    "Focal",
    "GaussianNLL",
    "Huber",
    "Loss",
    "Poisson",
    "Quantile",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "register_loss",
]


@runtime_checkable
class Loss(Protocol):
    """What a loss is; a class with these two methods is one. Both are written in `xp`.

    Z (m, units) are the logits, the output layer's affine map. Y is (m, K): the targets, or the classes one-hot as
    bool. There is one unit a target, units = K, unless the loss says otherwise.

    A loss may have more, each of which has a default:

    outputs_per_target: int           the units that each target needs, neighbours; 1
    heads: tuple[str, ...]            the output layers it is for; all three
    answer(xp, Z) -> P (m, units)     what the outputs mean; the output layer's own activation
    point(xp, P) -> (m, K)            of the answer, one number a target; P itself
    check_targets(Y)                  raises dnn.errors.DataError where a target is out of range; nothing is
    """

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        """One loss an example (m, 1), or one a target (m, K). The training loss is the mean of them all."""

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        """The derivative of the sum of the losses by Z, (m, units)."""


def outputs_per_target(loss: Loss) -> int:
    """How many units of the output layer each target needs: the loss's `outputs_per_target`, else 1."""
    outputs = getattr(loss, "outputs_per_target", 1)
    check_whole(f"{type(loss).__name__}: outputs_per_target", outputs)
    if outputs < 1:
        raise ValueError(f"{type(loss).__name__}: outputs_per_target must be at least 1, got {outputs!r}")
    return int(outputs)


def suits(loss: Loss, output: str) -> bool:
    """Whether the loss is for this output layer (sigmoid, softmax, linear): one without `heads` is for all."""
    heads: Sequence[str] | None = getattr(loss, "heads", None)
    return heads is None or output in heads


# --------------------------------------------------------------------------------------- built in


def _check(loss: Any, name: str, holds: bool, expected: str) -> None:
    """ValueError where a setting is out of range or not finite."""
    value = getattr(loss, name)
    if not (holds and math.isfinite(value)):
        expected = expected if math.isfinite(value) else "finite"
        raise ValueError(f"{type(loss).__name__}: {name} must be {expected}, got {value!r}")


def _make_float(loss: Any, name: str) -> float:
    """The setting as Python's float: a scalar of NumPy would decide the dtype of the losses."""
    value = getattr(loss, name)
    check_number(f"{type(loss).__name__}: {name}", value)
    object.__setattr__(loss, name, float(value))
    return float(value)


def _check_smoothing(loss: Any) -> None:
    smoothing = _make_float(loss, "label_smoothing")
    _check(loss, "label_smoothing", 0 <= smoothing < 1, "at least 0 and below 1")


@dataclass(frozen=True)
class SigmoidCrossEntropy:
    """log(1 + exp(z)) − y z, of two classes or of labels each of its own; smoothed, of (1 − ε) y + ε/2."""

    heads = ("sigmoid",)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.sigmoid_cross_entropy(xp, Z, Y, self.label_smoothing)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.sigmoid_cross_entropy_backward(xp, Z, Y, self.label_smoothing)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """log Σ_k exp(z_k) − z_label; smoothed, the mean of that over the classes by (1 − ε) [k = label] + ε/K."""

    heads = ("softmax",)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.softmax_cross_entropy(xp, Z, Y, self.label_smoothing)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.softmax_cross_entropy_backward(xp, Z, Y, self.label_smoothing)


@dataclass(frozen=True)
class Focal:
    """−α_t (1 − p_t)^γ log p_t: the cross-entropy, with less weight on the examples that are right already.

    Of classes one-hot as bool it is the softmax's, of numbers the sigmoid's. alpha weights the class 1 of a sigmoid
    output, and 1 − alpha the class 0; None weights nothing. Lin et al. 2017.
    """

    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        _check(self, "gamma", _make_float(self, "gamma") >= 0, "at least 0")
        if self.alpha is not None:
            _check(self, "alpha", 0 <= _make_float(self, "alpha") <= 1, "None or from 0 to 1")

    @property
    def heads(self) -> tuple[str, ...]:
        return ("sigmoid", "softmax") if self.alpha is None else ("sigmoid",)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        if self._is_softmax(Y):
            return functional.softmax_focal(xp, Z, Y, self.gamma)
        return functional.sigmoid_focal(xp, Z, Y, self.gamma, self.alpha)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        if self._is_softmax(Y):
            return functional.softmax_focal_backward(xp, Z, Y, self.gamma)
        return functional.sigmoid_focal_backward(xp, Z, Y, self.gamma, self.alpha)

    def _is_softmax(self, Y: Array) -> bool:
        one_hot = bool(Y.dtype == np.bool_)
        if one_hot and self.alpha is not None:
            raise ValueError(
                f"Focal: alpha weights the two classes of a sigmoid output, got {self.alpha!r} for softmax"
            )
        return one_hot


@dataclass(frozen=True)
class SquaredError:
    """(z − y)²."""

    heads = ("linear",)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.squared_error(xp, Z, Y)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.squared_error_backward(xp, Z, Y)


@dataclass(frozen=True)
class AbsoluteError:
    """|z − y|: the outputs become medians."""

    heads = ("linear",)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.absolute_error(xp, Z, Y)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.absolute_error_backward(xp, Z, Y)


@dataclass(frozen=True)
class Huber:
    """d²/2 where |d| ≤ delta, else delta (|d| − delta/2), with d = z − y."""

    heads = ("linear",)
    delta: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "delta", _make_float(self, "delta") > 0, "above 0")

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.huber(xp, Z, Y, self.delta)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.huber_backward(xp, Z, Y, self.delta)


@dataclass(frozen=True)
class Poisson:
    """exp(z) − y z, of counts y ≥ 0: the logit is the logarithm of the rate, and the answer the rate exp(z)."""

    heads = ("linear",)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.poisson(xp, Z, Y)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.poisson_backward(xp, Z, Y)

    def answer(self, xp: Any, Z: Array) -> Array:
        """The rates."""
        return xp.exp(Z)

    def check_targets(self, Y: np.ndarray) -> None:
        """DataError where a target is negative."""
        if (Y < 0).any():
            raise DataError(f"Poisson: expected targets of at least 0, got {Y[Y < 0][0]}")


@dataclass(frozen=True)
class Quantile:
    """The mean over the quantiles τ of max(τ d, (τ − 1) d), d = y − z: the outputs become these quantiles.

    Q quantiles take Q units a target; the unit k Q + q is the quantile q of target k. Nothing orders them.
    """

    heads = ("linear",)
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        given: Any = self.quantiles
        if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, np.ndarray)):
            raise TypeError(f"Quantile: quantiles must be a sequence of numbers, got {given!r}")
        for value in given:
            check_number("Quantile: quantiles: each", value)
        levels = tuple(float(value) for value in given)
        increasing = all(a < b for a, b in zip((0.0, *levels), (*levels, 1.0), strict=True))
        if not levels or not increasing:
            raise ValueError(
                f"Quantile: quantiles must be at least one number, above 0, below 1 and increasing, got {given!r}"
            )
        object.__setattr__(self, "quantiles", levels)

    @property
    def outputs_per_target(self) -> int:
        return len(self.quantiles)

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.quantile(xp, Z, Y, self.quantiles)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.quantile_backward(xp, Z, Y, self.quantiles)

    def point(self, xp: Any, P: Array) -> Array:
        """The quantile that is nearest to the median; of two as near, the lower."""
        place = min(range(len(self.quantiles)), key=lambda q: abs(self.quantiles[q] - 0.5))
        return functional.outputs_at(xp, P, place, len(self.quantiles))


@dataclass(frozen=True)
class GaussianNLL:
    """(s + (y − μ)² exp(−s)) / 2: the outputs are the mean μ and s = log σ² of every target, by turns.

    A variance below `eps` counts as eps: for targets of a spread far from 1, take another. The answer is the mean, and
    the variance exp(s).
    """

    heads = ("linear",)
    outputs_per_target = 2
    eps: float = 1e-6

    def __post_init__(self) -> None:
        # 1e-30: its reciprocal is a number in float32 too
        _check(self, "eps", 1e-30 <= _make_float(self, "eps") <= 1, "from 1e-30 to 1")

    def losses(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.gaussian_nll(xp, Z, Y, self.eps)

    def gradient(self, xp: Any, Z: Array, Y: Array) -> Array:
        return functional.gaussian_nll_backward(xp, Z, Y, self.eps)

    def answer(self, xp: Any, Z: Array) -> Array:
        """The means, and in the odd columns the variances, from eps to exp(80)."""
        return functional.gaussian_answer(xp, Z, self.eps)

    def point(self, xp: Any, P: Array) -> Array:
        """The means."""
        return functional.outputs_at(xp, P, 0, 2)


BUILT_IN: dict[str, type[Any]] = {
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "squared_error": SquaredError,
    "absolute_error": AbsoluteError,
    "huber": Huber,
    "poisson": Poisson,
    "quantile": Quantile,
    "gaussian_nll": GaussianNLL,
    "focal": Focal,
}
"""By the names that LOSSES has them under, with their defaults, from the start."""

LOSSES.update({name: kind() for name, kind in BUILT_IN.items()})

# ------------------------------------------------------------------------------------------ names


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss under a name that networks then take, model files included."""
    LOSSES[name] = checked_loss(loss)


def checked_loss(loss: Any) -> Loss:
    """The loss, by name or as it is; ValueError or TypeError where it is none."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            names = ", ".join(LOSSES)
            raise ValueError(
                f"loss must be one of {names}, or an object with losses and gradient; got {loss!r}"
                f"{_did_you_mean(loss, LOSSES)}"
            )
        found: Loss = LOSSES[loss]
        return found
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise TypeError(f"loss must be a name or an object with the methods losses and gradient, got {loss!r}")
    return loss


def loss_config(loss: str | Loss) -> str | dict[str, Any]:
    """What names the loss in a model file, for JSON: its registered name, or a built-in one's name and settings."""
    if isinstance(loss, str):
        checked_loss(loss)
        return loss
    for name, known in LOSSES.items():
        # a copy of a built-in one is the same; a user's own is only itself
        if known is loss or (type(known) is type(loss) and type(loss) in BUILT_IN.values() and known == loss):
            return name
    for name, kind in BUILT_IN.items():
        if type(loss) is kind:
            settings = asdict(loss)  # type: ignore[call-overload]
            return {"name": name} | {key: _for_json(value) for key, value in settings.items()}
    raise ValueError("a model file stores the loss by name: register it with dnn.register_loss before saving")


def loss_from_config(config: Any) -> Loss:
    """The loss that `loss_config` wrote so; ValueError or TypeError where it wrote no such thing."""
    if isinstance(config, str):
        return checked_loss(config)
    if not isinstance(config, Mapping):
        raise TypeError(f"loss must be a name, or a name with settings, got {config!r}")
    settings = dict(config)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in BUILT_IN:
        near = _did_you_mean(name, BUILT_IN) if isinstance(name, str) else ""
        raise ValueError(f"a loss with settings must be one of {', '.join(BUILT_IN)}; got {name!r}{near}")
    known = [setting.name for setting in fields(BUILT_IN[name])]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"loss {name} has the settings {', '.join(known) or 'none'}; got {setting!r}")
    built: Loss = BUILT_IN[name](**settings)
    return built


def _for_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    near = nearest(name, known)
    return f": did you mean {near!r}?" if near else ""
