"""What may look on while a network trains, and stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends import Array
from dnn.errors import check_at_least, check_finite_number, check_switch
from dnn.metrics import METRICS, ExactMetric

if TYPE_CHECKING:
    from dnn.network import Network

WHEN = "on_start", "on_batch_end", "on_epoch_end", "on_checkpoint", "on_stop"
"""The methods that a callback may have; a function is called as on_epoch_end."""


@dataclass
class History:
    """Measures of a fit: `history["loss"]` etc. with one entry per epoch, and `epoch`, counted over the network's life.

    loss and accuracy (rmse for a linear output) are means over the epoch's examples, each measured before its batch's
    update; val_loss and val_accuracy are measured after the epoch. `stopped` is why it ended before its last epoch, and
    `best_epoch` the epoch whose weights were restored.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str | None = None
    best_epoch: int | None = None

    def append(self, epoch: int, values: dict[str, float]) -> None:
        self.epoch.append(epoch)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def config(self) -> dict[str, Any]:
        """For JSON: a measure that is no number, as a matrix is, in lists."""
        lists = {name: [np.asarray(value).tolist() for value in values] for name, values in self.history.items()}
        return {**vars(self), "history": lists}

    @classmethod
    def from_config(cls, config: Any) -> History:
        """The History that `config` wrote so; an error where it wrote no such thing."""
        history = {
            str(name): [np.asarray(value) if isinstance(value, list) else float(value) for value in values]
            for name, values in config["history"].items()
        }
        best = None if config["best_epoch"] is None else int(config["best_epoch"])
        stopped = None if config["stopped"] is None else str(config["stopped"])
        return cls(history, [int(n) for n in config["epoch"]], float(config["seconds"]), stopped, best)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        """One line: a cell of a notebook that ends with a fit prints this."""
        from dnn.progress import words

        epochs = f"{len(self.epoch)} epoch{'s' if len(self.epoch) != 1 else ''}"
        last = {name: values[-1] for name, values in self.history.items() if values}
        best = [] if self.best_epoch is None else [f"best epoch {self.best_epoch}"]
        return f"<History: {', '.join([epochs, *words(last), *best])}>"


class Event:
    """What a callback is told.

    network    as it is now; epoch: how many are done over its life; batch: how many of this epoch
    measured   the measures of the epoch that has ended; history: of all
    checkpoint the path of the last checkpoint that is on the disk, or None
    """

    def __init__(self, network: Network, history: History, find_loss: Callable[[], Array]) -> None:
        self.network, self.history = network, history
        self.epoch, self.batch = network.epochs, 0
        self.measured: dict[str, float] = {}
        self.stopped: str | None = None
        self.checkpoint: str | None = None
        self._find_loss = find_loss

    @property
    def loss(self) -> float:
        """Of the last batch. Reading it waits for the device."""
        return float(self.network.backend.to_numpy(self.loss_on_device)[0])

    @property
    def loss_on_device(self) -> Array:
        """The same, (1,), without waiting; a later batch writes into it."""
        return self._find_loss()

    @property
    def learning_rate(self) -> float:
        """Before a schedule's factor. What it is set to holds until the fit ends."""
        assert self.network.training_state is not None
        return self.network.training_state.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        assert self.network.training_state is not None
        if check_finite_number("learning_rate", value) < 0:
            raise ValueError(f"learning_rate must be at least 0, got {value!r}")
        self.network.training_state.learning_rate = value

    def stop(self, reason: str = "a callback stopped it") -> None:
        """End the fit: after this batch, or this epoch."""
        self.stopped = reason


class Callbacks:
    """The callbacks of a fit, each called where it has a method for it."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._by_time: dict[str, list[Callable[[Event], Any]]] = {when: [] for when in WHEN}
        for callback in callbacks:
            for when in WHEN:
                if (method := getattr(callback, when, None)) is not None:
                    self._by_time[when].append(method)
            if not any(hasattr(callback, when) for when in WHEN):
                self._by_time["on_epoch_end"].append(callback)

    def __call__(self, when: str, event: Event) -> None:
        for callback in self._by_time[when]:
            callback(event)

    def wants(self, when: str) -> bool:
        return bool(self._by_time[when])


def checked_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """As a tuple; TypeError where one can never be called."""
    given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    for callback in given:
        if isinstance(callback, type) or not (callable(callback) or any(hasattr(callback, when) for when in WHEN)):
            raise TypeError(
                f"callbacks must be functions of an event, or objects with a method {', '.join(WHEN)}; got {callback!r}"
            )
    return tuple(given)


@dataclass(frozen=True)
class EarlyStopping:
    """End a fit when a measure has not improved for `patience` epochs, and go back to the weights of its best epoch.

    monitor        a measure of the history; val_loss by default
    patience       epochs without improvement
    min_delta      less than this is no improvement
    restore_best   leave the network with the best weights, also where the fit ends by itself
    maximize       whether more is better; None: as the measure says
    """

    monitor: str = "val_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = True
    maximize: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str):
            raise TypeError(f"EarlyStopping: monitor must be the name of a measure, got {self.monitor!r}")
        object.__setattr__(self, "patience", check_at_least("EarlyStopping: patience", self.patience))
        object.__setattr__(self, "min_delta", check_finite_number("EarlyStopping: min_delta", self.min_delta))
        if self.min_delta < 0:
            raise ValueError(f"EarlyStopping: min_delta must be at least 0, got {self.min_delta!r}")
        check_switch("EarlyStopping: restore_best", self.restore_best)
        if self.maximize is not None:
            check_switch("EarlyStopping: maximize", self.maximize)

    def is_better(self, value: float, best: float | None, maximizes: bool) -> bool:
        """Whether a value is an improvement. nan is none."""
        if best is None:
            return not math.isnan(value)
        return value > best + self.min_delta if maximizes else value < best - self.min_delta


def maximizes(monitor: str, asked: bool | None, metrics: Sequence[ExactMetric], who: str) -> bool:
    """Whether more of this measure is better: as asked, else as the fit's metric of that name says.

    ValueError where that is a metric of which it is not known.
    """
    if asked is not None:
        return bool(asked)
    name = monitor.removeprefix("val_")
    metric = next((metric for metric in metrics if metric.name == name), METRICS.get(name))
    if metric is not None and metric.greater_is_better is None:
        raise ValueError(f"{who} watches {monitor!r}, of which more may be better or worse: say maximize=True or False")
    return bool(metric is not None and metric.greater_is_better)


def check_watched(monitor: str, names: Collection[str], who: str) -> None:
    """ValueError, with the measures that there are, where there is none of that name."""
    if monitor not in names:
        without = monitor.startswith("val_") and not any(name.startswith("val_") for name in names)
        hint = ": give validation_data or validation_split" if without else ""
        raise ValueError(f"{who} watches {monitor!r}, and there are {', '.join(names)}{hint}")


def value_of(monitor: str, measured: dict[str, float], who: str) -> float:
    """A measure of an epoch; ValueError where it is none that can be compared."""
    check_watched(monitor, measured, who)
    value = measured[monitor]
    if not isinstance(value, float):
        raise ValueError(f"{who} watches {monitor!r}, which is no number: watch another measure")
    return value


def checked_early_stopping(given: Any) -> EarlyStopping | None:
    """A patience in epochs, or the settings."""
    if given is None or isinstance(given, EarlyStopping):
        return given
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(f"early_stopping must be a number of epochs or a dnn.EarlyStopping, got {given!r}")
    return EarlyStopping(patience=int(given))
