"""Schedules: how a setting changes during a fit, as frozen configurations.

The equations are in `dnn.functional.schedules`. A schedule gives a factor: of the learning rate, and in the same way of
a weight decay or a dropout rate. To add one: a dataclass with its settings and `factor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

from dnn.errors import check_number, check_switch, check_whole, configuration
from dnn.functional import schedules as functional

_WHOLE, _TEXT, _SWITCH = ("cycles", "patience"), ("monitor",), ("maximize",)
"""Settings that are no real numbers."""


@dataclass(frozen=True)
class Schedule:
    """A factor as an expression of the progress; it becomes part of the step.

    `on_host`: what the factor is depends on results, and the host works it out after an epoch.
    """

    on_host: ClassVar[bool] = False
    goes_on = True
    """Whether a second fit goes on where the first ended, rather than begin anew."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            what, value = f"{type(self).__name__}: {setting.name}", getattr(self, setting.name)
            if setting.name in _TEXT or (value is None and setting.default is None):
                continue
            if setting.name in _SWITCH:
                check_switch(what, value)
                value = bool(value)
            elif setting.name in _WHOLE:
                check_whole(what, value)
                value = int(value)
            else:
                check_number(what, value)
                value = int(value) if isinstance(value, Integral) else float(value)
                if not math.isfinite(value):
                    raise ValueError(f"{what} must be finite, got {value!r}")
            object.__setattr__(self, setting.name, value)

    def factor(self, xp: Any, epoch: Any, epochs: float) -> Any:
        """The factor when `epoch` epochs are done, with fractions: 0 at the first update. `epochs` is the fit's number.

        A pure function in `xp` of a number of the step.
        """
        raise NotImplementedError

    def check_for(self, epochs: float) -> None:
        """ValueError where this schedule does not fit into so many epochs."""

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, got {getattr(self, name)!r}")

    def _check_share(self, *names: str) -> None:
        for name in names:
            self._check(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")


@dataclass(frozen=True)
class Constant(Schedule):
    """1 throughout."""

    def factor(self, xp: Any, epoch: Any, epochs: float) -> Any:
        return epoch * 0 + 1.0  # a number of the step, as the others'


@dataclass(frozen=True)
class Timed(Schedule):
    """A schedule that ends: after `epochs` epochs (None: those of the fit) the factor stays as it was."""

    of_fit: ClassVar[bool] = True
    """Whether it depends on how long the fit is; otherwise it ends only after `epochs` of its own."""
    epochs: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("epochs", self.epochs is None or self.epochs > 0, "above 0, or None: as many as the fit's")

    def factor(self, xp: Any, epoch: Any, epochs: float) -> Any:
        duration = float(self.epochs or epochs)
        ends = self.epochs is not None or self.of_fit
        return self._factor(xp, xp.minimum(epoch, duration) if ends else epoch, duration)

    @property
    def goes_on(self) -> bool:  # type: ignore[override]
        return self.epochs is not None or not self.of_fit

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        """The factor after e of E epochs, 0 <= e <= E."""
        raise NotImplementedError


@dataclass(frozen=True)
class StepDecay(Timed):
    """γ^⌊e / every⌋: times γ after every so many epochs, as PyTorch's StepLR."""

    of_fit = False
    every: float = 10.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("every", self.every > 0, "above 0")
        self._check("gamma", self.gamma > 0, "above 0")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.step_decay(xp, e, self.every, self.gamma)


@dataclass(frozen=True)
class ExponentialDecay(Timed):
    """rateᵉ: times `rate` an epoch, but at every update, as PyTorch's ExponentialLR at whole epochs."""

    of_fit = False
    rate: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rate", self.rate > 0, "above 0")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.exponential_decay(xp, e, self.rate)


@dataclass(frozen=True)
class InverseTimeDecay(Timed):
    """1 / (1 + rate e): Robbins and Monro 1951."""

    of_fit = False
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rate", self.rate >= 0, "at least 0")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.inverse_time_decay(xp, e, self.rate)


@dataclass(frozen=True)
class PolynomialDecay(Timed):
    """η + (1 − η) (1 − e / E)ᵖ with η = end, p = power: as PyTorch's PolynomialLR, whose η is 0."""

    end: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("end", self.end >= 0, "at least 0")
        self._check("power", self.power > 0, "above 0")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.polynomial_decay(xp, e / E, self.end, self.power)


@dataclass(frozen=True)
class Cosine(Timed):
    """e / warmup for so many epochs, then η + (1 − η) (1 + cos π c) / 2 with η = end, c from 0 to 1 in each cycle.

    Loshchilov and Hutter 2017, equation (5); `cycle_factor` is their T_mult: each cycle is so many times as long as
    the last, and all of them fill what the warm-up leaves. One cycle and no warm-up are PyTorch's CosineAnnealingLR.
    """

    warmup: float = 0.0
    end: float = 0.0
    cycles: int = 1
    cycle_factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("warmup", self.warmup >= 0, "at least 0")
        self._check("end", self.end >= 0, "at least 0")
        self._check("cycles", 1 <= self.cycles <= 1000, "from 1 to 1000")
        self._check("cycle_factor", self.cycle_factor >= 1, "at least 1")
        # the shortest cycle would be none
        longest = math.log(self.cycle_factor) * self.cycles
        self._check("cycle_factor", longest < 30, f"smaller for {self.cycles} cycles: the first would be no update")
        if self.epochs is not None:
            self.check_for(self.epochs)

    def check_for(self, epochs: float) -> None:
        duration = self.epochs or epochs
        self._check("warmup", self.warmup < duration, f"below the schedule's {duration:g} epochs")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        w = self.warmup
        if w == 0:
            return functional.warm_restarts(xp, e, E, self.end, self.cycles, self.cycle_factor)
        if w >= E:
            return e / w
        after = xp.maximum(e - w, 0.0)
        down = functional.warm_restarts(xp, after, E - w, self.end, self.cycles, self.cycle_factor)
        return xp.where(e < w, e / w, down)


@dataclass(frozen=True)
class OneCycle(Timed):
    """Cosines up from `start` to 1 in the share `warmup` of the epochs, and down to `end` in the rest.

    Smith and Topin 2019, with the cosines and the defaults of PyTorch's OneCycleLR: max_lr is the learning rate, start
    = 1 / div_factor, end = start / final_div_factor. The momentum is not cycled.
    """

    warmup: float = 0.3
    start: float = 1 / 25
    end: float = 1e-4 / 25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("warmup", "start", "end")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.one_cycle(xp, e / E, self.warmup, self.start, self.end)


@dataclass(frozen=True)
class FlatCosine(Timed):
    """1 for the share `flat` of the epochs, then (1 + cos π c) / 2 down to 0, with c from 0 to 1."""

    flat: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("flat", 0 <= self.flat < 1, "at least 0 and below 1")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.flat_cosine(xp, e / E, self.flat)


@dataclass(frozen=True)
class MultiCycleLogCosine(Timed):
    """(1 − cos(2π log₂(1 + (2ᶜ − 1) e / E))) / 2 with c = cycles: from 0 up to 1 and back, each cycle twice as long.

    Holzmüller et al. 2024 (RealMLP), the schedule coslog₄ of appendix B with their c = 4.
    """

    cycles: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("cycles", 1 <= self.cycles <= 50, "from 1 to 50")

    def _factor(self, xp: Any, e: Any, E: float) -> Any:
        return functional.log_cosine(xp, e / E, self.cycles)


class PlateauState(NamedTuple):
    """Plain numbers: the best value so far (None: none yet), the values since then that were no better, the factor."""

    best: float | None = None
    bad: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Times γ when `monitor` has not improved by more than `min_delta` for more than `patience` epochs in a row.

    PyTorch's ReduceLROnPlateau with threshold_mode="abs". `min_factor` is the least. `maximize`: larger is better;
    None: where the name ends in "accuracy". Its expression is 1: the host multiplies the learning rate, with
    `state = plateau.start()` and after each epoch `factor, state = plateau.after(value, state)`.
    """

    on_host: ClassVar[bool] = True
    gamma: float = 0.1
    patience: int = 10
    min_delta: float = 1e-4
    monitor: str = "val_loss"
    min_factor: float = 0.0
    maximize: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(f"ReduceOnPlateau: monitor must be a name such as 'val_loss', got {self.monitor!r}")
        self._check("gamma", 0 < self.gamma < 1, "above 0 and below 1")
        self._check("patience", self.patience >= 0, "at least 0")
        self._check("min_delta", self.min_delta >= 0, "at least 0")
        self._check_share("min_factor")

    def factor(self, xp: Any, epoch: Any, epochs: float) -> Any:
        return epoch * 0 + 1.0

    def start(self) -> PlateauState:
        return PlateauState()

    def after(self, value: float, state: PlateauState) -> tuple[float, PlateauState]:
        """The factor from now on, and the state, when an epoch has given this value; one that is nan is no better."""
        best, bad, factor = state
        larger = self.monitor.endswith("accuracy") if self.maximize is None else self.maximize
        gain = math.inf if best is None else (value - best if larger else best - value)
        if gain > self.min_delta and not math.isnan(value):
            return factor, PlateauState(float(value), 0, factor)
        bad += 1
        if bad > self.patience:
            bad, factor = 0, max(factor * self.gamma, self.min_factor)
        return factor, PlateauState(best, bad, factor)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": ExponentialDecay,
    "inverse_time": InverseTimeDecay,
    "polynomial": PolynomialDecay,
    "cosine": Cosine,
    "one_cycle": OneCycle,
    "flat_cosine": FlatCosine,
    "log_cosine": MultiCycleLogCosine,
    "plateau": ReduceOnPlateau,
}


def checked_schedule(schedule: Schedule | str | None) -> Schedule | None:
    """The schedule, or the one of that name with its defaults; ValueError names what there is, and the closest."""
    if schedule is None:
        return None
    found: Schedule = configuration("schedule", schedule, Schedule, SCHEDULES, "dnn.Cosine(warmup=1)", also="None, ")
    return found


__all__ = ["Schedule", *(kind.__name__ for kind in SCHEDULES.values())]
