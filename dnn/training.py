"""fit: epochs of training steps, with validation, early stopping and a History."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from dnn.backends import backend_of
from dnn.callbacks import Callbacks, EarlyStopping, Event, History, check_watched, maximizes, value_of
from dnn.data import Examples, prepare
from dnn.data.weights import check_some, class_weights, with_weights
from dnn.epochs import Before, Epochs
from dnn.errors import DataError, NonFiniteLossError
from dnn.heads import HEADS
from dnn.inference import Evaluation
from dnn.interrupt import whole_steps
from dnn.layers import learns, walk
from dnn.memory import place
from dnn.metrics import checked_metrics
from dnn.network import Network
from dnn.optimizers import Optimizer
from dnn.parameters import numbered
from dnn.precision import check_precision
from dnn.progress import show_progress
from dnn.schedules import ReduceOnPlateau
from dnn.settings import FitSettings
from dnn.state import TrainingState
from dnn.updating import Updating, keeps_of, scheduled

__all__ = ["FitSettings", "History", "Trainer"]


class Trainer:
    """Trains a network; the state of the optimizer and all else that a next fit goes on with outlives a fit."""

    def __init__(self, network: Network, settings: FitSettings) -> None:
        self.network, self.settings = network, settings
        self.precision = check_precision(network.dtype, network.backend, settings.precision)
        assert isinstance(settings.optimizer, Optimizer)
        self.optimizer = settings.optimizer
        self.optimizer.check_in(network.dtype)
        if (unknown := self.optimizer.unknown(network.parameters)) is not None:
            raise ValueError(
                f"{type(self.optimizer).__name__}: factors: there is no parameter {unknown!r}: choose from "
                f"{', '.join(network.parameters)}"
            )
        self.metrics = checked_metrics(settings.metrics, network.output)
        for schedule in scheduled(network, settings.updating(per_epoch=1)):
            schedule.check_for(settings.epochs)
        self._data: list[int] = []
        """What tells the data apart, where results on it are compared with those of the fit before."""
        self._resumed: dict[str, Any] | None = None

    def fit(self, X: Any, Y: Any) -> History:
        """Train on X, Y (see `dnn.data.examples` for their forms) and return the History.

        Ctrl-C raises KeyboardInterrupt after the current step, so the network is in the state of its last whole step,
        or has its best weights, or their average, where the settings ask for these.
        NonFiniteLossError is raised if training diverges; the network is then as it was after its last finite epoch.
        """
        network, settings = self.network, self.settings
        started = time.perf_counter()
        silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        history = History()
        with network.backend.stream(settings.threads), silent:
            before = Before(network)
            try:
                examples, rows, evaluate = self._prepare(X, Y)
                run = Epochs(self, examples, rows, before)
                evaluation = None
                if evaluate is not None:
                    evaluation = Evaluation(network, *evaluate, metrics=self.metrics, optimized=True)
                watch = _Watch(self, network.training_state)
                watch.check(evaluation is not None)
            except BaseException:
                self._undo_resume()
                before.restore()
                raise
            callbacks, event = Callbacks(settings.callbacks), Event(network, history, run.loss_of_batch)

            def after_batch(done: int) -> None:
                event.batch = done
                callbacks("on_batch_end", event)
                if event.stopped is not None:
                    raise _Stopped

            look = after_batch if callbacks.wants("on_batch_end") else None
            shown = show_progress(settings.epochs, len(run), settings.verbose)
            # Ctrl-C before is as anywhere; from here on it waits for the end of a step
            with whole_steps() as interrupt, shown as progress, run.kept_finite(), watch:
                callbacks("on_start", event)
                run.settle(settings.callbacks)
                for epoch in range(1, settings.epochs + 1):
                    if event.stopped is not None:
                        break
                    try:
                        measured = run.epoch(interrupt, progress, epoch == settings.epochs, look)
                    except _Stopped:
                        run.check_stopped()
                        break
                    if evaluation is not None:
                        with watch.averaged():
                            measured |= {f"val_{name}": value for name, value in evaluation().items()}
                        run.check_validation(measured["val_loss"])
                    history.append(network.epochs, measured)
                    progress.epoch_done(network.epochs, measured)
                    event.epoch, event.measured = network.epochs, measured
                    event.stopped = watch.after_epoch(measured, run) or event.stopped
                    callbacks("on_epoch_end", event)
                    run.settle(settings.callbacks)
                    interrupt.check()
                    if event.stopped is not None:
                        run.check_stopped()
            history.stopped, history.best_epoch = event.stopped, watch.best_epoch
            callbacks("on_stop", event)
            network.backend.synchronize()
        history.seconds = time.perf_counter() - started
        return history

    def _prepare(self, X: Any, Y: Any) -> tuple[Examples, np.ndarray | None, tuple[Examples, Any] | None]:
        """The examples, the rows to train on (None: all), and what to evaluate: examples and their rows."""
        network, settings = self.network, self.settings
        missing = settings.missing_targets == "mask"
        split: list[Any] = [None, None]

        def rows_to_learn(targets: np.ndarray) -> np.ndarray | None:
            split[:] = split_rows(network, targets, settings.validation_split)
            return split[1]

        examples = prepare(network, X, Y, fitting=True, missing=missing, rows_to_learn=rows_to_learn)
        held_out, kept = split
        rows = np.arange(examples.m) if kept is None else kept
        plain = with_weights(network, examples, settings.sample_weight)
        check_some(network, plain, rows, "the examples to train on")
        if held_out is not None:
            check_some(network, plain, held_out, "the examples of validation_split")
        of_classes = class_weights(network, plain, settings.class_weight, rows)
        examples = with_weights(network, examples, settings.sample_weight, of_classes)
        if examples.weights is not None and settings.accumulate > 1 and network.copies > 1:
            raise ValueError(
                "accumulate with weights of examples is for one network, or members with shared='tabm': "
                f"leave out accumulate={settings.accumulate}, or take a larger batch_size"
            )
        validation = None
        if settings.validation_data is not None:
            X_of, Y_of, *weights = settings.validation_data
            validation = prepare(network, X_of, Y_of, name="X of validation_data", missing=missing)
            validation = with_weights(network, validation, weights[0] if weights else None, name="validation_data")
            check_some(network, validation, None, "validation_data")
        if min(settings.batch_size, len(rows)) < network.least_batch:
            raise ValueError(
                f"batches of {min(settings.batch_size, len(rows))} have no variance for BatchNorm: "
                "take a larger batch_size, or norm='layer'"
            )
        self._learn(examples, rows)
        if isinstance(settings.early_stopping, EarlyStopping) or isinstance(settings.schedule, ReduceOnPlateau):
            self._data = [fingerprint(network, part) for part in (examples, validation) if part is not None]
        examples, validation = place(network, examples, validation, rows, settings, self.precision)
        if held_out is not None:
            # the weights of classes are for training
            return examples, kept, (replace(examples, weights=plain.weights, counted=plain.counted), held_out)
        return examples, kept, None if validation is None else (validation, None)

    def _learn(self, examples: Examples, rows: np.ndarray) -> None:
        """What the first layer takes from the data, before anything is trained."""
        network = self.network
        layer, number, n_in, _ = next(walk(network.stack, network.layer_sizes[0]))
        if network.epochs or not learns(layer, n_in):
            return
        X = network.backend.to_numpy(examples.X)
        X = X if len(rows) == examples.m else X[rows]
        if examples.scale is not None:
            X = X.astype(network.dtype) * examples.scale
        for name, value in layer.learn(X).items():
            network.layer_state[numbered(name, number)] = (
                value if network.copies == 1 else np.stack([value] * network.copies)
            )

    def state(self, updating: Updating) -> TrainingState:
        """The state to train with: that of the last fit if this one continues it, else a new one."""
        network, optimizer = self.network, self.optimizer
        keeps = keeps_of(network, updating)
        state = network.training_state
        if state is None or not optimizer.continues(state.optimizer):
            state = network.training_state = TrainingState(optimizer, network.parameters, keeps)
        state.optimizer = optimizer
        self._resume(state)
        state.set_precision(self.precision, network.parameters, keeps)
        state.learning_rate = optimizer.learning_rate
        if keeps.steps:
            state.arrays["steps"].fill(network.steps)
        for name in ("gradients", "examples"):  # of an update that the last fit did not get to
            if name in state.arrays:
                state.arrays[name].fill(0)
        self._start_schedules(state, updating)
        return state

    def _resume(self, state: TrainingState) -> None:
        """Go on with the weights that were trained, where the last fit left others, by the same settings.

        Where someone has changed the weights since, or asks for something else, those that the network has are it.
        """
        network, settings, after = self.network, self.settings, state.after
        stopping = settings.early_stopping
        asked = {
            "early_stopping": stopping,
            "data": self._data,
            "plateau": settings.schedule if isinstance(settings.schedule, ReduceOnPlateau) else None,
            "averages": settings.moving_average is not None,
        }
        before = {name: after.get(name) for name in asked}
        trained, left = after.pop("trained", None), after.pop("left", None)
        same_data = before["data"] == self._data
        same_stopping = before["early_stopping"] == stopping and (stopping is None or same_data)
        if not same_stopping:
            for name in OF_STOPPING:
                after.pop(name, None)
        if not same_data or before["plateau"] != asked["plateau"]:
            after.pop("plateau_state", None)
        after |= asked
        if trained is None or left is None:
            return
        theta = network.parameters.flat
        if not bool((theta == left["theta"]).all()):
            for name in (*OF_STOPPING, "plateau_state"):
                after.pop(name, None)
        elif same_stopping and before["averages"] == asked["averages"]:
            self._resumed = {"trained": trained, "left": left}
            _write(network, trained)
            return
        if "average" in state.arrays:
            state.arrays["average"][...] = theta

    def _undo_resume(self) -> None:
        """Nothing is trained after all: leave the network as it was given."""
        if self._resumed is not None and self.network.training_state is not None:
            _write(self.network, self._resumed["left"])
            self.network.training_state.after |= self._resumed

    def _start_schedules(self, state: TrainingState, updating: Updating) -> None:
        """A schedule with a length of its own goes on; others are for one fit, and other ones begin anew."""
        if "updates" not in state.arrays:
            state.after.pop("schedules", None)
            return
        asked = list(scheduled(self.network, updating))
        before, per_epoch = state.after.get("schedules", (asked, updating.per_epoch))
        updates = state.arrays["updates"]
        if before != asked or not all(schedule.goes_on for schedule in asked):
            updates.fill(0)
        elif per_epoch != updating.per_epoch:  # other batches: the epochs are what goes on
            done = int(self.network.backend.to_numpy(updates)[0])
            updates.fill(round(done * updating.per_epoch / per_epoch))
        state.after["schedules"] = asked, updating.per_epoch


class _Stopped(Exception):
    """A callback has ended the fit within an epoch."""


OF_STOPPING = "best", "best_value", "best_epoch", "waited"
"""What early stopping keeps from epoch to epoch, in `TrainingState.after`."""


def fingerprint(network: Network, examples: Examples, most: int = 500) -> int:
    """A number that differs for other data, from some of the rows and targets spread over all of it."""
    rows = np.unique(np.linspace(0, examples.m - 1, min(most, examples.m)).astype(np.int64))
    found = zlib.crc32(str(examples.m).encode())
    for array in (examples.X, examples.targets):
        if array is not None:
            its = backend_of(array)
            found = zlib.crc32(np.ascontiguousarray(its.to_numpy(array[its.asarray(rows)])).tobytes(), found)
    return found


def _arrays(network: Network) -> dict[str, Any]:
    """What a training changes of a network."""
    found = {"theta": network.parameters.flat}
    return found | ({"layer_state": network.layer_state.flat} if network.layer_state else {})


def _copied(network: Network) -> dict[str, Any]:
    return {name: array.copy() for name, array in _arrays(network).items()}


def _write(network: Network, copies: dict[str, Any]) -> None:
    for name, array in _arrays(network).items():
        array[...] = copies[name]


class _Watch:
    """Early stopping, a schedule that looks at results, and the weights that the network is left with."""

    def __init__(self, trainer: Trainer, state: TrainingState | None) -> None:
        assert state is not None
        settings = trainer.settings
        self._network, self._state = trainer.network, state
        self._stopping = settings.early_stopping if isinstance(settings.early_stopping, EarlyStopping) else None
        self._plateau = settings.schedule if isinstance(settings.schedule, ReduceOnPlateau) else None
        self._averages = settings.moving_average is not None
        self._metrics = trainer.metrics
        if self._stopping is not None:
            self._maximizes = maximizes(
                self._stopping.monitor, self._stopping.maximize, trainer.metrics, "early_stopping"
            )
        if self._plateau is not None:
            more = maximizes(self._plateau.monitor, self._plateau.maximize, trainer.metrics, "the schedule")
            self._plateau = replace(self._plateau, maximize=more)
            plateau_state = state.after.setdefault("plateau_state", self._plateau.start())
            state.learning_rate = state.optimizer.learning_rate * plateau_state.factor

    def check(self, validates: bool) -> None:
        """ValueError, before anything is trained, where a measure that is watched will not be there."""
        plain = ["loss", HEADS[self._network.output].metric.name]
        names = plain + [f"val_{name}" for name in (*plain, *(metric.name for metric in self._metrics)) if validates]
        for watching, who in ((self._plateau, "the schedule"), (self._stopping, "early_stopping")):
            if watching is not None:
                check_watched(watching.monitor, names, who)

    @property
    def best_epoch(self) -> int | None:
        if self._stopping is None or not self._stopping.restore_best:
            return None
        epoch: int | None = self._state.after.get("best_epoch")
        return epoch

    def averaged(self) -> _Averaged:
        """The network with the moving average of its weights, within a block."""
        return _Averaged(self._network, self._state.arrays["average"] if self._averages else None)

    def after_epoch(self, measured: dict[str, float], run: Epochs) -> str | None:
        """Look at the measures of an epoch; why to stop, if so."""
        after = self._state.after
        if self._plateau is not None:
            value = value_of(self._plateau.monitor, measured, "the schedule")
            factor, after["plateau_state"] = self._plateau.after(value, after["plateau_state"])
            run.set_rate(factor)
        stopping = self._stopping
        if stopping is None:
            return None
        value = value_of(stopping.monitor, measured, "early_stopping")
        if stopping.is_better(value, after.get("best_value"), self._maximizes):
            after |= {"best_value": value, "best_epoch": self._network.epochs, "waited": 0}
            if stopping.restore_best:
                with self.averaged():
                    after["best"] = _copied(self._network)
            return None
        after["waited"] = after.get("waited", 0) + 1
        if after["waited"] < stopping.patience:
            return None
        after["waited"] = 0  # a next fit waits as long again
        return f"{stopping.monitor} has not improved for {stopping.patience} epochs"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Leave the network with the best weights, or the average; the next fit goes on from those trained.

        After a divergence it is what the error says: as it was after its last finite epoch.
        """
        network, after = self._network, self._state.after
        if self._state is not network.training_state:  # nothing was trained
            return
        if "steps" in self._state.arrays:
            network.steps = int(network.backend.to_numpy(self._state.arrays["steps"])[0])
        if kind is not None and issubclass(kind, NonFiniteLossError):
            if after.get("best_epoch", 0) > network.epochs:
                for name in OF_STOPPING:
                    after.pop(name, None)
            return
        best = after.get("best") if self._stopping is not None and self._stopping.restore_best else None
        if best is None and not self._averages:
            return
        trained = _copied(network)
        if best is not None:
            _write(network, best)
        else:
            network.parameters.flat[...] = self._state.arrays["average"]
        after |= {"trained": trained, "left": _copied(network)}


class _Averaged:
    def __init__(self, network: Network, average: Any) -> None:
        self._theta, self._average = network.parameters.flat, average

    def __enter__(self) -> None:
        if self._average is not None:
            self._trained = self._theta.copy()
            self._theta[...] = self._average

    def __exit__(self, *error: Any) -> None:
        if self._average is not None:
            self._theta[...] = self._trained


def split_rows(network: Network, targets: np.ndarray, split: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the rows held out for validation, the rows left to train on), or (None, None) without a split.

    Of classes, each gives its share to within one example; what rounding leaves goes to classes that would have none
    first, then to the largest remainders.
    """
    m = len(targets)
    if not split:
        return None, None
    share = Fraction(str(split))  # the decimal that was meant: 0.07 of 100 is 7
    if share.denominator > 10**15:  # more digits than a decimal keeps: a quotient, such as 5/6
        share = share.limit_denominator(10**6)
    held_out = max(1, math.ceil(share * m))
    if held_out >= m:
        raise DataError(f"validation_split {split:g} of {m} examples leaves none to train on")
    seeds = np.random.SeedSequence([network.seed, 2])
    cut = np.random.Generator(np.random.PCG64(seeds)).permutation(m)
    classes = _classes_to_split(network, targets)
    chosen = cut[:held_out] if classes is None else _stratified(cut, classes, held_out)
    # in the file's order: the permutation selects examples, it does not order them
    kept = np.ones(m, bool)
    kept[chosen] = False
    return np.sort(chosen), np.flatnonzero(kept)


def _classes_to_split(network: Network, targets: np.ndarray) -> np.ndarray | None:
    """The class of every example, where examples have one."""
    if network.output == "softmax":
        return targets[:, 0]
    if network.output == "sigmoid" and targets.shape[1] == 1 and np.isin(targets, (0, 1)).all():
        return targets[:, 0].astype(np.int64)
    return None


def _stratified(cut: np.ndarray, classes: np.ndarray, held_out: int) -> np.ndarray:
    """`held_out` rows, of each class the first in the order of the cut."""
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    taken, remainder = np.divmod(counts * held_out, len(classes))
    # what is left, by the remainders: first where it makes a class present, last where none were left to train on
    present = (taken > 0).astype(np.int64)
    order = np.lexsort((-remainder, present, taken + 1 >= counts, remainder == 0))
    taken[order[: held_out - taken.sum()]] += 1
    in_order = numbers[cut]
    by_class = np.argsort(in_order, kind="stable")
    rank = np.empty(len(cut), np.int64)
    rank[by_class] = np.arange(len(cut)) - np.repeat(np.cumsum(counts) - counts, counts)
    return cut[rank < taken[in_order]]
