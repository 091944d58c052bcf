"""Dropout: activations that a step leaves out. X (m, n); keep (m, n) bool says which stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends import Array
from dnn.backends.counter_rng import random_words
from dnn.backends.plan import Value
from dnn.errors import check_finite_number
from dnn.layers.base import Backward, Layer, Place, known_layer
from dnn.schedules import Schedule, checked_schedule

ALPHA = -1.7580993408473766
"""What selu falls to, −λα: the value of a unit that alpha dropout leaves out."""

__all__ = ["AlphaDropout", "Dropout"]


def keep_mask(xp: Any, step: Array, rate: Any, shape: tuple[int, int], seed: int, place: int) -> Array:
    """keep_ij with probability 1 − rate, from Philox keyed by the seed and the layer's place, counted by step.

    Half of a word, 16 random bits, is compared with rate · 2¹⁶: `drop_rate` gives rates of which that is whole.
    """
    threshold = np.uint32(rate * 2**32) if isinstance(rate, float) else (rate * 2.0**32).astype(np.uint32)
    return random_words(
        xp, *shape, seed, place, step, each=lambda word: [word >= threshold, word << 16 >= threshold], parts=2
    )


def drop_rate(xp: Any, rate: Any) -> Any:
    """The nearest rate of 16 bits below 1: what is kept then has exactly the probability that it is divided by."""
    if isinstance(rate, float):
        return min(round(rate * 2**16), 2**16 - 1) / 2**16
    return xp.minimum(xp.floor(rate * 2.0**16 + 0.5), 2.0**16 - 1) * 2.0**-16


def dropout(xp: Any, X: Array, keep: Array, rate: Any) -> Array:
    """Y = X / (1 − rate) where kept, else 0: inverted dropout, Srivastava et al. 2014, section 10. Its own backward."""
    return xp.where(keep, X * (1 / (1 - rate)), 0)


def alpha_dropout(xp: Any, X: Array, keep: Array, rate: Any) -> Array:
    """Y = a X + b where kept, else a α' + b: mean 0 and variance 1 stay (Klambauer et al. 2017, section 3).

    With p = 1 − rate: a = (p + α'² p (1 − p))^(−1/2) and b = −a (1 − p) α'.
    """
    a = _alpha_scale(xp, rate)
    return xp.where(keep, a * X, a * ALPHA) - a * rate * ALPHA


def alpha_dropout_backward(xp: Any, dY: Array, keep: Array, rate: Any) -> Array:
    """dX = a dY where kept, else 0."""
    return xp.where(keep, dY * _alpha_scale(xp, rate), 0)


def _alpha_scale(xp: Any, rate: Any) -> Any:
    return 1 / ((1 - rate) * (1 + rate * ALPHA**2)) ** 0.5


@dataclass(frozen=True)
class _Random(Layer):
    family = "dropout"
    random = True
    rate: float
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}: rate"
        check_finite_number(name, self.rate)
        if not 0 <= self.rate < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {self.rate!r}")
        object.__setattr__(self, "rate", float(self.rate))
        schedule = checked_schedule(self.schedule)
        if schedule is not None and schedule.on_host:
            name = type(schedule).__name__
            raise ValueError(f"{type(self).__name__}: schedule must be one of the progress, not of results as {name}")
        object.__setattr__(self, "schedule", schedule)

    def _mask(self, at: Place, X: Value) -> tuple[Value, Value | float]:
        rate: Any = at.call(drop_rate, at.factor(self.schedule) * self.rate)  # type: ignore[operator]
        seed, place, step = at.random_key()
        return at.call(keep_mask, step, rate, shape=X.shape, seed=seed, place=place), rate


@known_layer
@dataclass(frozen=True)
class Dropout(_Random):
    """Y = X / (1 − rate) where kept, else 0: inverted dropout (Srivastava et al. 2014, section 10).

    The mask comes from Philox, keyed by the network's seed, the layer and the step: the same on every backend.
    `schedule` multiplies the rate, step by step.
    """

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        if not at.training or self.rate == 0:
            return X, lambda dY: dY
        keep, rate = self._mask(at, X)
        return at.call(dropout, X, keep, rate), lambda dY: at.call(dropout, dY, keep, rate)


@known_layer
@dataclass(frozen=True)
class AlphaDropout(_Random):
    """Dropout for selu: units are set to −λα, and mean and variance stay (Klambauer et al. 2017, section 3)."""

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        if not at.training or self.rate == 0:
            return X, lambda dY: dY
        keep, rate = self._mask(at, X)
        Y = at.call(alpha_dropout, X, keep, rate)
        return Y, lambda dY: at.call(alpha_dropout_backward, dY, keep, rate)
