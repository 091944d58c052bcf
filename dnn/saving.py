"""The checkpoints of a fit, from the fit's point of view, and what tells its data apart."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends import backend_of
from dnn.callbacks import Callbacks, Event, History
from dnn.checkpoint import Checkpoints
from dnn.data import Examples
from dnn.data.streaming import Stream
from dnn.epochs import Epochs
from dnn.errors import NonFiniteLossError
from dnn.model_file import architecture_of, model_contents
from dnn.network import Network
from dnn.training_file import training_contents
from dnn.unfinished import Unfinished

if TYPE_CHECKING:
    from dnn.training import Trainer


class Saving:
    """Takes checkpoints when they are due, and puts a fit where one was taken."""

    def __init__(
        self,
        trainer: Trainer,
        run: Epochs,
        checkpoints: Checkpoints | None,
        history: History,
        callbacks: Callbacks,
        event: Event,
    ) -> None:
        self._trainer, self._run, self._checkpoints = trainer, run, checkpoints
        self._history, self._callbacks, self._event = history, callbacks, event
        self.epoch = 0
        """The epochs of the fit that are done."""
        self._started, self._seconds = time.perf_counter(), history.seconds
        if checkpoints is not None:
            run.every = checkpoints.steps

    def go_on(self, unfinished: Unfinished) -> None:
        """Be where the fit was when the checkpoint was taken."""
        if not unfinished.is_done:
            self._run.go_on(unfinished.batch, unfinished.totals)
            state = self._trainer.network.training_state
            assert state is not None
            state.learning_rate = unfinished.learning_rate
        if self._checkpoints is not None:
            self._checkpoints.begin_at(len(self._run) * unfinished.epoch + unfinished.batch)

    def after_steps(self, batch: int, ending: bool) -> None:
        """After a batch of the epoch, 0 before its first: take a checkpoint if one is due, or it is the last chance."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        self._report(checkpoints)
        step = len(self._run) * self.epoch + batch
        if ending or checkpoints.due(step):
            self._write(checkpoints, batch, step, wait=ending)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """After a divergence, keep the last finite epoch, to which the network has gone back.

        Checkpoints that were taken after it may be finite, but doomed.
        """
        epochs = self._history.epoch
        diverged = kind is not None and issubclass(kind, NonFiniteLossError)
        if diverged and epochs and epochs[-1] == self._trainer.network.epochs:
            self._after_epochs()

    def at_the_end(self) -> None:
        """The state that the fit ends in, and the network as it is left."""
        self._trainer.network.fit_record = self._after_epochs()

    def _after_epochs(self) -> Unfinished | None:
        """A checkpoint of the epochs that are done; a line in the log where it cannot be written."""
        if self._checkpoints is None:
            return None
        self.epoch = len(self._history.epoch)
        record = self._write(self._checkpoints, 0, len(self._run) * self.epoch, wait=False)
        self._checkpoints.wait()
        self._report(self._checkpoints)
        return record

    def _write(self, checkpoints: Checkpoints, batch: int, step: int, wait: bool) -> Unfinished:
        network = self._trainer.network
        state = network.training_state
        assert state is not None and self._trainer.stored_settings is not None
        if "steps" in state.arrays:
            network.steps = int(network.backend.to_numpy(state.arrays["steps"])[0])
        settings, again = self._trainer.stored_settings
        number = checkpoints.begin(step)
        history = replace(self._history, seconds=self._seconds + time.perf_counter() - self._started)
        fit = Unfinished(
            number,
            settings,
            again,
            self.epoch,
            batch,
            self._run.totals() if batch else [],
            history,
            state.learning_rate,
            self._trainer.data,
            self._history.stopped,
        )
        network.run_folder = checkpoints.folder

        def contents() -> dict[str, np.ndarray]:
            found = model_contents(network, architecture_of(network), copied=not wait)
            return found | training_contents(network, fit, copied=not wait)

        checkpoints.write(number, contents, wait)
        self._report(checkpoints)
        return fit

    def _report(self, checkpoints: Checkpoints) -> None:
        for path in checkpoints.written():
            self._event.checkpoint = path
            self._callbacks("on_checkpoint", self._event)


def fingerprint(network: Network, examples: Examples, most: int = 500) -> int:
    """A number that differs for other data, from some of the rows and targets spread over all of it."""
    if isinstance(examples.X, Stream) and examples.X.band is not None:
        most = 32  # each is in a band that has to be unpacked
    rows = np.unique(np.linspace(0, examples.m - 1, min(most, examples.m)).astype(np.int64))
    found = zlib.crc32(str(examples.m).encode())
    if isinstance(examples.X, Stream):
        found = zlib.crc32(examples.X[rows].tobytes(), found)
    for array in (examples.X, examples.targets):
        if array is not None and not isinstance(array, Stream):
            its = backend_of(array)
            found = zlib.crc32(np.ascontiguousarray(its.to_numpy(array[its.asarray(rows)])).tobytes(), found)
    return found


def described_data(network: Network, examples: Examples) -> dict[str, int]:
    """The sizes of the data, and what tells it apart from other data of these sizes."""
    targets = 0 if examples.targets is None else examples.targets.shape[1]
    return {
        "examples": examples.m,
        "features": examples.X.shape[1],
        "targets": targets,
        "window": examples.X.window if isinstance(examples.X, Stream) and examples.X.band is not None else 0,
        "values": fingerprint(network, examples),
        "weights": 0 if examples.weights is None else zlib.crc32(network.backend.to_numpy(examples.weights).tobytes()),
    }
