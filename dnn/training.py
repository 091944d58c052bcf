"""fit: epochs of training steps, with validation, early stopping and a History."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from dnn.callbacks import Callbacks, EarlyStopping, Event, History
from dnn.checkpoint import Checkpoints
from dnn.data import Examples, prepare
from dnn.data.splitting import split_rows
from dnn.data.streaming import Stream, room_for_X
from dnn.data.weights import check_some, class_weights, with_weights
from dnn.epochs import Before, Epochs
from dnn.inference import Evaluation
from dnn.interrupt import whole_steps
from dnn.layers import learns, walk
from dnn.memory import place
from dnn.metrics import checked_metrics
from dnn.model_file import check_describable
from dnn.network import Network
from dnn.optimizers import Optimizer
from dnn.parameters import numbered
from dnn.precision import check_precision
from dnn.progress import show_progress
from dnn.saving import Saving, described_data, fingerprint
from dnn.schedules import ReduceOnPlateau
from dnn.settings import FitSettings
from dnn.state import TrainingState
from dnn.unfinished import Unfinished
from dnn.updating import Updating, keeps_of, scheduled
from dnn.watch import OF_STOPPING, Watch, write

__all__ = ["FitSettings", "History", "Trainer"]


class Trainer:
    """Trains a network; the state of the optimizer and all else that a next fit goes on with outlives a fit."""

    def __init__(self, network: Network, settings: FitSettings, unfinished: Unfinished | None = None) -> None:
        self.network, self.settings, self._unfinished = network, settings, unfinished
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
        self.stored_settings: tuple[dict[str, Any], list[str]] | None = None
        if settings.checkpoint is not None or (unfinished is not None and unfinished.folder is not None):
            self.stored_settings = settings.config()
        self._data: list[int] = []
        """What tells the data apart, where results on it are compared with those of the fit before."""
        self.data: list[dict[str, int]] = []
        """The same for a checkpoint, of the examples to train on and of those of validation_data."""
        self._resumed: dict[str, Any] | None = None

    def fit(self, X: Any, Y: Any) -> History:
        """Train on X, Y (see `dnn.data.examples` for their forms) and return the History.

        Ctrl-C raises KeyboardInterrupt after the current step, so the network is in the state of its last whole step,
        or has its best weights, or their average, where the settings ask for these. With checkpoints, SIGTERM and
        SIGHUP do likewise, as SystemExit, and one more checkpoint is written before.
        NonFiniteLossError is raised if training diverges; the network is then as it was after its last finite epoch.
        """
        network, settings, unfinished = self.network, self.settings, self._unfinished
        started = time.perf_counter()
        silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        history = History() if unfinished is None else unfinished.history
        with network.backend.stream(settings.threads), silent:
            before = Before(network)
            running = ExitStack()
            try:
                examples, rows, evaluate = self._prepare(X, Y)
                if unfinished is not None and unfinished.is_over(settings.epochs):
                    network.history, network.unfinished = history, None
                    return history
                run = Epochs(self, examples, rows, before)
                evaluation = None
                if evaluate is not None:
                    evaluation = Evaluation(network, *evaluate, metrics=self.metrics, optimized=True)
                watch = Watch(self, network.training_state)
                watch.check(evaluation is not None)
                if (checkpoints := self._checkpoints()) is not None:
                    running.enter_context(checkpoints)
            except BaseException:
                self._undo_resume()
                before.restore()
                raise
            network.history, network.fit_record = history, None
            callbacks, event = Callbacks(settings.callbacks), Event(network, history, run.loss_of_batch)
            saving = Saving(self, run, checkpoints, history, callbacks, event)
            if unfinished is not None:
                saving.go_on(unfinished)

            def after_batch(done: int) -> None:
                event.batch = done
                callbacks("on_batch_end", event)
                if event.stopped is not None:
                    raise _Stopped

            look = after_batch if callbacks.wants("on_batch_end") else None
            first, batch = (1, 0) if unfinished is None else (unfinished.epoch + 1, unfinished.batch)
            shown = show_progress(settings.epochs, len(run), settings.verbose, first - 1, batch)
            # Ctrl-C before is as anywhere; from here on it waits for the end of a step
            with running, whole_steps(checkpoints is not None) as interrupt, shown as progress:
                with saving, run.kept_finite(), watch:
                    callbacks("on_start", event)
                    network.unfinished = None
                    run.settle(settings.callbacks, batch)
                    for epoch in range(first, settings.epochs + 1):
                        if event.stopped is not None:
                            break
                        saving.epoch, last = epoch - 1, epoch == settings.epochs
                        try:
                            measured = run.epoch(interrupt, progress, last, look, saving.after_steps, batch)
                        except _Stopped:
                            run.check_stopped()
                            break
                        batch = 0
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
                        if event.stopped is not None:
                            run.check_stopped()
                        elif interrupt.pressed and not last:  # a fit that has ended has its own last checkpoint
                            saving.epoch = epoch
                            saving.after_steps(0, ending=True)
                            interrupt.check()
                history.stopped, history.best_epoch = event.stopped, watch.best_epoch
                saving.at_the_end()
                callbacks("on_stop", event)
                network.backend.synchronize()
        history.seconds += time.perf_counter() - started
        return history

    def _checkpoints(self) -> Checkpoints | None:
        settings, unfinished = self.settings, self._unfinished
        folder = settings.checkpoint if unfinished is None or settings.checkpoint is not None else unfinished.folder
        if folder is None:
            return None
        check_describable(self.network)
        number = None if unfinished is None else unfinished.number
        return Checkpoints(folder, settings.checkpoint_every, self.network.run_folder, number)

    def _prepare(self, X: Any, Y: Any) -> tuple[Examples, np.ndarray | None, tuple[Examples, Any] | None]:
        """The examples, the rows to train on (None: all), and what to evaluate: examples and their rows."""
        network, settings = self.network, self.settings
        missing = settings.missing_targets == "mask"
        split: list[Any] = [None, None]

        def rows_to_learn(targets: np.ndarray) -> np.ndarray | None:
            split[:] = split_rows(network, targets, settings.validation_split)
            return split[1]

        room, window = self._room(0)
        examples = prepare(
            network, X, Y, fitting=True, missing=missing, rows_to_learn=rows_to_learn, memory=room, window=window
        )
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
            room, window = self._room(1)
            validation = prepare(
                network, X_of, Y_of, name="X of validation_data", missing=missing, memory=room, window=window
            )
            validation = with_weights(network, validation, weights[0] if weights else None, name="validation_data")
            check_some(network, validation, None, "validation_data")
        if min(settings.batch_size, len(rows)) < network.least_batch:
            raise ValueError(
                f"batches of {min(settings.batch_size, len(rows))} have no variance for BatchNorm: "
                "take a larger batch_size, or norm='layer'"
            )
        if isinstance(settings.early_stopping, EarlyStopping) or isinstance(settings.schedule, ReduceOnPlateau):
            self._data = [fingerprint(network, part) for part in (examples, validation) if part is not None]
        if self.stored_settings is not None or self._unfinished is not None:
            self.data = [described_data(network, part) for part in (examples, validation) if part is not None]
        if self._unfinished is not None:
            self._unfinished.check_data(self.data)
        self._learn(examples, rows)
        examples, validation = place(network, examples, validation, rows, settings, self.precision)
        if held_out is not None:
            # the weights of classes are for training
            return examples, kept, (replace(examples, weights=plain.weights, counted=plain.counted), held_out)
        return examples, kept, None if validation is None else (validation, None)

    def _room(self, part: int) -> tuple[int, int | None]:
        """Of the host's memory for X (0), or the validation data (1); and its windows, where a fit goes on."""
        room = room_for_X(self.network.backend, self.settings.memory_limit)
        window = None
        if self._unfinished is not None and part < len(self._unfinished.data):
            window = self._unfinished.data[part].get("window", 0)
        return room if part == 0 else room // 4, window

    def _learn(self, examples: Examples, rows: np.ndarray) -> None:
        """What the first layer takes from the data, before anything is trained."""
        network = self.network
        layer, number, n_in, _ = next(walk(network.stack, network.layer_sizes[0]))
        if network.epochs or not learns(layer, n_in):
            return
        some = rows if len(rows) < examples.m else None
        if isinstance(examples.X, Stream):
            X = examples.X.sample(LEARNED_FROM, some)
        else:
            X = network.backend.to_numpy(examples.X)
            X = X if some is None else X[rows]
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
        unfinished = self._unfinished
        if unfinished is not None and not unfinished.is_done:
            assert state is not None
            state.set_precision(self.precision, network.parameters, keeps)
            if keeps.steps:
                state.arrays["steps"].fill(network.steps)
            return state
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
            write(network, trained)
            return
        if "average" in state.arrays:
            state.arrays["average"][...] = theta

    def _undo_resume(self) -> None:
        """Nothing is trained after all: leave the network as it was given."""
        if self._resumed is not None and self.network.training_state is not None:
            write(self.network, self._resumed["left"])
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


LEARNED_FROM = 50_000
"""Examples of a stream from which the first layer learns its bins."""
