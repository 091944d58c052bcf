"""The learning-rate range test: the loss while the rate grows from step to step (Smith 2017, section 3.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnn.callbacks import Event, checked_callbacks
from dnn.errors import NonFiniteLossError, check_at_least, check_finite_number
from dnn.network import Network
from dnn.optimizers import Optimizer

__all__ = ["RangeTest", "learning_rate_range"]

BLOCK = 10
"""Losses that are read from the device at a time."""
SMOOTHING = 0.9
"""s ← 0.9 s + 0.1 loss, over the sum of its weights, is the smoothed loss."""
TOO_LARGE = 4.0
"""How many times the smallest smoothed loss so far ends the test."""
GIVEN = "epochs", "schedule", "early_stopping", "accumulate", "moving_average"
"""Settings of a fit that a range test has none of."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test has found: `rates`, and the smoothed `losses` of the batches that were trained with them.

    The suggestion is a tenth of the rate at which the smoothed loss is smallest: there it no longer falls, and a tenth
    is well within the range in which it does. None where it never fell.
    """

    rates: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)

    @property
    def suggestion(self) -> float | None:
        best = int(np.argmin(self.losses))
        return float(self.rates[best]) / 10 if best else None

    def __repr__(self) -> str:
        found = "no suggestion, for the loss never fell" if self.suggestion is None else f"try {self.suggestion:.1g}"
        span = f"{len(self.rates)} steps from {self.rates[0]:.1g} to {self.rates[-1]:.1g}"
        return f"<RangeTest: {found}; {span}, smallest loss {self.losses.min():.4g}>"


def learning_rate_range(
    network: Network,
    X: Any,
    Y: Any,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    batch_size: int = 64,
    optimizer: Optimizer | str = "adam",
    **settings: Any,
) -> RangeTest:
    """Train a copy of the network for so many steps, each with a larger rate, and look at the loss of every batch.

    The rate of step i is low · (high / low)^(i / (steps − 1)). The test ends where the smoothed loss is 4 times the
    smallest so far, or not finite. The network stays as it is. `settings` are others of `Network.fit`.
    """
    for name, value in (("low", low), ("high", high)):
        check_finite_number(name, value)
    if not 0 < low < high:
        raise ValueError(f"low and high must be rates with 0 < low < high, got {low!r} and {high!r}")
    steps = check_at_least("steps", steps, 2)
    for name in GIVEN:
        if name in settings:
            raise TypeError(f"learning_rate_range has no setting {name!r}: leave it out")
    growing = _Growing(low * (high / low) ** (np.arange(steps) / (steps - 1)))
    settings["callbacks"] = [*checked_callbacks(settings.get("callbacks", ())), growing]
    trained = copy.deepcopy(network)
    trained.training_state = None
    with suppress(NonFiniteLossError):  # the copy's
        trained.fit(X, Y, epochs=steps, batch_size=batch_size, optimizer=optimizer, **({"verbose": False} | settings))
    growing.read()
    losses = list(growing.finite())
    if not losses:
        raise NonFiniteLossError(f"the loss of the first batch, with a rate of {low:g}, is not finite: scale the data")
    return RangeTest(growing.rates[: len(losses)], np.array(losses))


class _Growing:
    """A callback that sets the rate of every step, keeps the losses on the device, and reads them in blocks."""

    def __init__(self, rates: np.ndarray) -> None:
        self.rates, self._losses = rates, list[float]()
        self._done = 0
        self._event: Event | None = None

    def on_start(self, event: Event) -> None:
        self._event = event
        backend = event.network.backend
        self._on_device = backend.zeros(len(self.rates), event.loss_on_device.dtype)
        self._set_rate()

    def on_batch_end(self, event: Event) -> None:
        self._on_device[self._done : self._done + 1] = event.loss_on_device
        self._done += 1
        if self._done == len(self.rates):
            event.stop("the rates have been tried")
            return
        self._set_rate()
        if self._done % BLOCK == 0:
            self.read()
            if len(list(self.finite())) < self._done:
                event.stop("the loss has grown too large")

    def _set_rate(self) -> None:
        assert self._event is not None and self._event.network.training_state is not None
        self._event.network.training_state.learning_rate = float(self.rates[self._done])

    def read(self) -> None:
        if self._event is not None:
            part = self._on_device[len(self._losses) : self._done]
            self._losses += self._event.network.backend.to_numpy(part).tolist()

    def finite(self) -> Iterator[float]:
        """The smoothed losses, up to where they are too large."""
        total, weight, best = 0.0, 0.0, math.inf
        for loss in self._losses:
            total, weight = SMOOTHING * total + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
            smoothed = total / weight
            if not math.isfinite(smoothed) or (best > 0 and smoothed > TOO_LARGE * best):
                return
            best = min(best, smoothed)
            yield smoothed
