"""The settings of a fit, in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike, fsdecode
from typing import Any

from dnn.callbacks import EarlyStopping, checked_callbacks, checked_early_stopping
from dnn.configuration import from_config, of_numpy, to_config
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
from dnn.functional.metrics import NamedMetric
from dnn.metrics import METRICS, Pinball, TopK
from dnn.optimizers import OPTIMIZERS, Adam, Optimizer, checked_optimizer
from dnn.schedules import SCHEDULES, Schedule, checked_schedule
from dnn.updating import Updating

MISSING = "error", "mask"
OF_DATA = "validation_data", "sample_weight", "callbacks"
"""Settings that no file keeps: who resumes a fit gives them again."""
OF_A_RUN = "verbose", "memory_limit", "checkpoint", "checkpoint_every"
"""Settings that change nothing of what a fit computes."""
CONFIGURED: dict[str, tuple[Mapping[str, type], str]] = {
    "optimizer": (OPTIMIZERS, "dnn.optimizers.OPTIMIZERS"),
    "schedule": (SCHEDULES, "dnn.schedules.SCHEDULES"),
    "weight_decay_schedule": (SCHEDULES, "dnn.schedules.SCHEDULES"),
    "early_stopping": ({"early_stopping": EarlyStopping}, ""),
}
"""Settings that are configurations, with their kinds and where these are registered."""
_METRICS: dict[str, type] = {"top_k": TopK, "pinball": Pinball}


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
                      host, and its batches are copied while the device computes; on the CPU, data in a file that would
                      take more than half of it stays there, and is read while it trains. NotEnoughMemoryError, before
                      any training, if the training itself does not fit
    threads           CPU threads, at most one per core; None: DNN_NUM_THREADS, OMP_NUM_THREADS or
                      OPENBLAS_NUM_THREADS, else one per core. Runs with the same number are reproducible
    checkpoint        a folder for checkpoints, from which `dnn.resume` goes on to the same bits: see dnn.checkpoint
    checkpoint_every  steps between two, or a time such as "30s"; None: only where the fit ends, or a signal ends it
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
    checkpoint: str | PathLike[str] | None = None
    checkpoint_every: int | str | None = "300s"

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
        self._check_checkpoints()
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

    def _check_checkpoints(self) -> None:
        if self.checkpoint is not None:
            if not isinstance(self.checkpoint, (str, bytes, PathLike)):
                raise TypeError(f"checkpoint must be the path of a folder, got {self.checkpoint!r}")
            if not fsdecode(self.checkpoint):
                raise ValueError("checkpoint must be the path of a folder, got an empty one")
        if self.checkpoint_every is not None:
            self._set("checkpoint_every", checked_every(self.checkpoint_every))

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

    def config(self) -> tuple[dict[str, Any], list[str]]:
        """What a file keeps of the settings, for JSON, and the names of those that have to be given again.

        ValueError names what is not known by a name.
        """
        found: dict[str, Any] = {}
        given = {name: getattr(self, name) for name in OF_DATA}
        again = [name for name, value in given.items() if value is not None and not (name == "callbacks" and not value)]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in (*OF_DATA, *OF_A_RUN):
                continue
            if item.name in CONFIGURED:
                value = None if value is None else to_config(value, *CONFIGURED[item.name])
            elif item.name == "metrics":
                value = [_metric_config(metric) for metric in value]
                if None in value:
                    again.append("metrics")
                    continue
            elif isinstance(value, Mapping):
                value = [[key, weight] for key, weight in value.items()]
            found[item.name] = value
        try:
            text = json.dumps(found, default=of_numpy)
        except TypeError as cause:
            raise ValueError(f"a checkpoint stores settings as numbers and names: {cause}") from None
        return json.loads(text), again

    @classmethod
    def from_config(cls, config: Any) -> dict[str, Any]:
        """The keywords that `config` kept; ValueError or TypeError where these are none."""
        if not isinstance(config, dict):
            raise TypeError(f"settings: expected a dictionary, got {config!r:.100}")
        found = dict(config)
        for name, (kinds, _) in CONFIGURED.items():
            if found.get(name) is not None:
                found[name] = from_config(found[name], kinds, name)
        if "metrics" in found:
            found["metrics"] = [
                from_config(metric, _METRICS, "metrics") if isinstance(metric, dict) else metric
                for metric in found["metrics"]
            ]
        if isinstance(found.get("class_weight"), list):
            found["class_weight"] = dict(found["class_weight"])
        cls.of(found)
        return found

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


def checked_every(value: Any) -> int | str:
    """Steps, at least 1, or seconds as in "30s"; ValueError or TypeError where it is neither."""
    if isinstance(value, str):
        seconds = value.removesuffix("s")
        if value.endswith("s") and seconds.replace(".", "", 1).isdecimal() and float(seconds) > 0:
            return value
        raise ValueError(f'checkpoint_every must be a number of steps or a time such as "30s", got {value!r}')
    return check_at_least("checkpoint_every", value)


def _metric_config(metric: Any) -> Any:
    """A name, or a configuration; None of a function of the user's own."""
    if isinstance(metric, str):
        return metric
    if isinstance(metric, tuple(_METRICS.values())):
        return to_config(metric, _METRICS, "")
    known = isinstance(metric, NamedMetric) and METRICS.get(metric.name) is metric
    return metric.name if known else None


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
