"""The settings of a fit, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dnn.callbacks import EarlyStopping, checked_callbacks, checked_early_stopping
from dnn.data.weights import check_class_weight
from dnn.errors import (
    check_at_least,
    check_choice,
    check_finite_number,
    check_number,
    check_switch,
    check_whole,
    nearest,
)
from dnn.optimizers import Adam, Optimizer, checked_optimizer
from dnn.schedules import Schedule, checked_schedule
from dnn.updating import Updating

MISSING = "error", "mask"


@dataclass(frozen=True)
class FitSettings:
    """The keywords of `Network.fit`. ValueError or TypeError if a setting is invalid.

    epochs            passes over the examples
    batch_size        examples per step; the last batch of an epoch may be smaller
    optimizer         a configuration or its name. A second fit with the same one, learning rate aside, continues from
                      its state: 3 + 3 epochs equal 6
    schedule          what the learning rate is multiplied by, step by step: one of dnn.schedules, or its name;
                      weight_decay_schedule likewise of the decay
    validation_data   (X, Y) or (X, Y, sample_weight), or validation_split: the fraction of the examples to hold out,
                      chosen by the seed, of every class the same
    class_weight      {class: weight of its examples' losses}, or "balanced": m / (K m_class) of the training part
    sample_weight     (m,) weights of the examples in the losses and in the metric
    missing_targets   "mask": targets that are nan count nowhere; "error": there may be none
    metrics           further ones of the validation data, by name (see dnn.metrics), or functions
    early_stopping    a patience in epochs, or a dnn.EarlyStopping
    callbacks         functions called after every epoch with a dnn.callbacks.Event, or objects with methods
    l1, l2            penalties of the weights in the loss, l1 Σ|w| + l2/2 Σ w², which the reported loss leaves out
    clip_norm         upper bound of the norm of all gradients together, those of several members too; clip_value: of
                      each gradient
    max_norm          upper bound of the norm of every unit's weights
    accumulate        batches whose gradients make one update
    moving_average    decay d of an average of the weights, θ̄ ← d θ̄ + (1 − d) θ, with which the network is evaluated
                      and left. It is one over about 1 / (1 − d) updates, which have to be few beside those of the fit
    shuffle           use a new order each epoch; a batch of all examples is not shuffled
    verbose           None: a progress bar on a terminal and in a notebook, else silent; True: also elsewhere, a line
                      for the first and the last epoch and at most one every 10 s; False: silent
    memory_limit      GB of device memory to use; None: all that is free. If X does not fit as well, it stays on the
                      host, and its batches are copied while the device computes. NotEnoughMemoryError, before any
                      training, if the training itself does not fit
    threads           CPU threads, at most one per core; None: DNN_NUM_THREADS, OMP_NUM_THREADS or
                      OPENBLAS_NUM_THREADS, else one per core. Runs with the same number are reproducible
    precision         precision of a training step; None: the network's dtype. A float32 network can use tf32, float16
                      or bfloat16 if the backend has them, see `dnn.precision`. A second fit in the same precision
                      continues with its loss scale
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: Optimizer | str = Adam(1e-3)  # noqa: RUF009  (frozen)
    schedule: Schedule | str | None = None
    weight_decay_schedule: Schedule | str | None = None
    validation_data: Sequence[Any] | None = None
    validation_split: float = 0.0
    class_weight: Mapping[Any, float] | str | None = None
    sample_weight: Any = field(default=None, compare=False)
    missing_targets: str = "error"
    metrics: Sequence[Any] = ()
    early_stopping: EarlyStopping | int | None = None
    callbacks: Sequence[Any] = ()
    l1: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    max_norm: float | None = None
    accumulate: int = 1
    moving_average: float | None = None
    shuffle: bool = True
    verbose: bool | None = None
    memory_limit: float | None = None
    threads: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):  # it may be a NumPy integer
            self._set(name, check_at_least(name, getattr(self, name)))
        for name in ("shuffle", "verbose"):
            value = getattr(self, name)
            if value is not None or name != "verbose":
                check_switch(name, value)
                self._set(name, bool(value))
        _check_validation(self.validation_data, self.validation_split)
        # a scalar of NumPy as the decimal that it prints: 0.07 in float32 is another number in float64
        split = self.validation_split
        self._set("validation_split", float(str(split) if hasattr(split, "dtype") else split))
        if self.memory_limit is not None:
            check_number("memory_limit", self.memory_limit)
            if not self.memory_limit > 0:
                raise ValueError(f"memory_limit must be above 0, got {self.memory_limit!r}")
            self._set("memory_limit", float(self.memory_limit))
        if self.threads is not None:
            check_whole("threads", self.threads)
            self._set("threads", int(self.threads))
        self._check_updates()
        self._set("early_stopping", checked_early_stopping(self.early_stopping))
        self._set("callbacks", checked_callbacks(() if self.callbacks is None else self.callbacks))
        one = isinstance(self.metrics, str) or callable(self.metrics)
        if not one and not isinstance(self.metrics, Sequence):
            raise TypeError(f"metrics must be names or functions, or a list of them, got {self.metrics!r}")
        self._set("metrics", (self.metrics,) if one else tuple(self.metrics))
        check_choice("missing_targets", self.missing_targets, MISSING)
        check_class_weight(self.class_weight)

    def _check_updates(self) -> None:
        self._set("optimizer", checked_optimizer(self.optimizer))
        for name in ("schedule", "weight_decay_schedule"):
            self._set(name, checked_schedule(getattr(self, name)))
        if self.weight_decay_schedule is not None and self.weight_decay_schedule.on_host:  # type: ignore[union-attr]
            raise ValueError("weight_decay_schedule must be a schedule of the progress, not of results")
        for name in ("l1", "l2"):
            self._number(name, lambda value: value >= 0, "at least 0")
        for name in ("clip_norm", "clip_value", "max_norm"):
            if getattr(self, name) is not None:
                self._number(name, lambda value: value > 0, "above 0")
        if self.moving_average is not None:
            self._number("moving_average", lambda value: 0 <= value < 1, "at least 0 and below 1")
        for schedule in (self.schedule, self.weight_decay_schedule):
            if isinstance(schedule, Schedule):
                schedule.check_for(self.epochs)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _number(self, name: str, holds: Any, expected: str) -> None:
        value = check_finite_number(name, getattr(self, name))
        if not holds(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")
        self._set(name, value)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FitSettings:
        """Settings from keywords; TypeError names an unknown one and the closest known one."""
        known = [item.name for item in fields(cls)]
        for name in settings:
            if name not in known:
                if name in ("learning_rate", "lr", "momentum", "beta1", "beta2", "eps", "weight_decay"):
                    raise TypeError(
                        f"fit has no setting {name!r}: it is the optimizer's, as in optimizer=dnn.Adam(1e-3)"
                    )
                near = nearest(name, known)
                hint = f": did you mean {near}?" if near else f": choose from {', '.join(known)}"
                raise TypeError(f"fit has no setting {name!r}{hint}")
        return cls(**settings)

    def updating(self, per_epoch: int) -> Updating:
        """What a step does with gradients."""
        assert isinstance(self.optimizer, Optimizer)
        schedule = self.schedule if isinstance(self.schedule, Schedule) and not self.schedule.on_host else None
        assert not isinstance(self.weight_decay_schedule, str)
        return Updating(
            self.optimizer,
            self.l1,
            self.l2,
            self.clip_value,
            self.clip_norm,
            self.max_norm,
            schedule,
            self.weight_decay_schedule,
            self.accumulate,
            self.moving_average,
            per_epoch,
            self.epochs,
        )


def _check_validation(data: Any, split: Any) -> None:
    check_number("validation_split", split)
    if not 0 <= split < 1:
        raise ValueError(f"validation_split must be at least 0 and below 1, got {split!r}")
    if data is not None:
        if split:
            raise ValueError("give validation_data or validation_split, not both")
        if not (isinstance(data, (tuple, list)) and len(data) in (2, 3)):
            length = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
            raise TypeError(f"validation_data must be a pair (X, Y), got {type(data).__name__}{length}")
