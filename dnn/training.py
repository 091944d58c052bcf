"""fit: epochs of training steps, with validation and a History."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from backends import Array
from dnn.data import Examples, prepare
from dnn.errors import DataError, NonFiniteLossError, check_number, check_whole
from dnn.memory import check_memory
from dnn.network import Network, measures
from dnn.optimizers import OPTIMIZERS, Optimizer
from dnn.outputs import OUTPUTS
from dnn.precision import check_precision, working_copies
from dnn.step import MixedStep, TrainStep

LINE_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@dataclass
class History:
    """What fit saw: `history["loss"]` and the rest, one entry an epoch; `epoch`, their numbers over the network's life.

    loss and accuracy (rmse for a linear output) are means over the epoch's examples, each taken before its batch's
    update; val_loss and val_accuracy are taken after the epoch.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def append(self, epoch: int, values: dict[str, float]) -> None:
        self.epoch.append(epoch)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


def fit(
    network: Network,
    X: Any,
    Y: Any,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer | str,
    validation_data: tuple[Any, Any] | None,
    validation_split: float,
    shuffle: bool,
    verbose: bool | None,
    memory_limit: float | None,
    precision: str | None,
) -> History:
    """Train `network` on X, Y (see `dnn.data.examples` for what they may be) and return the History.

    The defaults are those of `Network.fit`.

    batch_size        examples an update; the last batch of an epoch may be smaller
    optimizer         a configuration, or its name. A second fit with the same one (another learning rate is the same)
                      goes on with its state: 3 + 3 epochs are 6
    validation_data   (X, Y), or validation_split: the share of the examples to hold back, chosen by the seed
    shuffle           a new order each epoch; a batch that holds all examples has no order and is not shuffled
    verbose           None: a progress bar on a terminal, else silent; True: elsewhere a line for the first and the
                      last epoch and at most one every 10 s; False: silent
    memory_limit      GB of the device's memory that may be used; None: what is free. NotEnoughMemoryError, before
                      anything is trained, where it does not hold the training
    precision         what a step computes in: None, the network's dtype; of a float32 network, where the backend has
                      them, tf32, float16, bfloat16. See `dnn.precision`. A second fit in the same one goes on with its
                      loss scale

    Ctrl-C raises KeyboardInterrupt after the step it finds running, so the network is as of its last whole step.
    NonFiniteLossError ends a training that diverges.
    """
    _check_settings(epochs, batch_size, validation_data, validation_split)
    if memory_limit is not None:
        check_number("memory_limit", memory_limit)
    optimizer = _checked_optimizer(optimizer)
    precision = check_precision(network, precision)
    started = time.perf_counter()
    backend = network.backend
    with backend.stream(), np.errstate(over="ignore", invalid="ignore", divide="ignore"), _whole_steps() as interrupt:
        with _undecided_if_refused(network):
            examples = prepare(network, X, Y, fitting=True)
            validation, validation_rows, training_rows = _validation(
                network, examples, validation_data, validation_split
            )
            m = examples.m if training_rows is None else len(training_rows)
            check_memory(network, examples, m, batch_size, optimizer, precision, memory_limit)
        if network._update is None or not optimizer.continues(network._update.optimizer):
            network._update = optimizer.bind(network.parameters)
        network._update.learning_rate = optimizer.learning_rate
        network._mixed = working_copies(precision, network.parameters, network._mixed)
        run = _Epochs(network, examples, training_rows, batch_size, shuffle, precision)
        history = History()
        with _progress(epochs, len(run.batches), verbose) as progress:
            for _ in range(epochs):
                measured = run.epoch(interrupt, progress)
                network.epochs += 1
                if validation is not None:
                    held_back = network._evaluate(validation, validation_rows)
                    measured |= {f"val_{name}": value for name, value in held_back.items()}
                history.append(network.epochs, measured)
                progress.epoch_done(network.epochs, measured)
                interrupt.check()
        backend.synchronize()
    history.seconds = time.perf_counter() - started
    return history


@contextmanager
def _undecided_if_refused(network: Network) -> Iterator[None]:
    """What the first data decides for a network stands only if nothing of a fit was refused."""
    before = network.input_scale, network.input_kind, network.input_shape
    try:
        yield
    except BaseException:
        network.input_scale, network.input_kind, network.input_shape = before
        raise


class _Epochs:
    """The epochs of one fit: a bound step for the full batches and one for the smaller last, and their order."""

    def __init__(
        self,
        network: Network,
        examples: Examples,
        rows: np.ndarray | None,
        batch_size: int,
        shuffle: bool,
        precision: str | None,
    ) -> None:
        backend, update, mixed = network.backend, network._update, network._mixed
        assert update is not None
        self._network = network
        self._rows = rows
        self._m = m = examples.m if rows is None else len(rows)
        batch_size = min(batch_size, m)
        # one batch has no order, and is loaded once; not even that where X can be used as it is
        self._one_batch = batch_size == m
        in_place = self._one_batch and rows is None and examples.scale is None and mixed is None
        self._shuffle = shuffle and not self._one_batch
        # a copy: shuffling writes into it
        self._order = backend.asarray(np.arange(m) if rows is None else rows.copy())

        def bound(m: int) -> TrainStep:
            if mixed is not None:
                return MixedStep(network, update, examples, m, mixed)
            return TrainStep(network, update, examples, m, in_place, precision)

        step = bound(batch_size)
        if self._one_batch and not in_place:
            step.load(self._order)
        self._steps = [step]
        run = backend.capture(step)
        self.batches: list[tuple[TrainStep, Callable[[], None], Array]] = []
        for start in range(0, m, batch_size):
            if m - start < batch_size:
                step = bound(m - start)
                run = backend.capture(step)
                self._steps.append(step)
            self.batches.append((step, run, self._order[start : start + batch_size]))

    def epoch(self, interrupt: _Interrupt, progress: _Progress) -> dict[str, float]:
        """One pass over the examples; loss and metric over it."""
        if self._shuffle:
            self._order[...] = self._network.backend.asarray(self._permutation())
        for step in self._steps:
            step.output.reset()
        for step, run, rows in self.batches:
            if not self._one_batch:
                step.load(rows)
            run()
            interrupt.check()
            progress.step_done()
        return self._measure()

    def _permutation(self) -> np.ndarray:
        seeds = np.random.SeedSequence([self._network.seed, 1, self._network.epochs])
        order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._m)
        return order if self._rows is None else self._rows[order]

    def _measure(self) -> dict[str, float]:
        network, loss, correct = self._network, 0.0, 0.0
        for step in self._steps:
            loss_total, step_correct = network.backend.to_numpy(step.output.totals)
            loss += float(loss_total) * step.batch_size
            correct += float(step_correct)
        loss /= self._m
        if not math.isfinite(loss):
            assert network._update is not None
            raise NonFiniteLossError(
                f"the loss is {loss} in epoch {network.epochs + 1}: training has diverged and the weights are lost: "
                f"begin anew with a lower learning rate (now {network._update.learning_rate:g}) or a smaller X"
            )
        return measures(OUTPUTS[network.output], loss, correct, self._m, network.layer_sizes[-1])


def _validation(
    network: Network, examples: Examples, data: tuple[Any, Any] | None, split: float
) -> tuple[Examples | None, np.ndarray | None, np.ndarray | None]:
    """(the examples to validate on, their rows or None for all, the rows left to train on or None for all)."""
    if data is not None:
        return prepare(network, data[0], data[1], name="X of validation_data"), None, None
    if not split:
        return None, None, None
    held_back = math.ceil(split * examples.m)
    if held_back >= examples.m:
        raise DataError(f"validation_split {split:g} of {examples.m} examples leaves none to train on")
    seeds = np.random.SeedSequence([network.seed, 2])
    cut = np.random.Generator(np.random.PCG64(seeds)).permutation(examples.m)
    # in the file's order: the cut says which examples, not in what order
    return examples, np.sort(cut[:held_back]), np.sort(cut[held_back:])


def _check_settings(epochs: Any, batch_size: Any, validation_data: Any, validation_split: Any) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        check_whole(name, value)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_number("validation_split", validation_split)
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split must be at least 0 and below 1, got {validation_split!r}")
    if validation_data is not None:
        if validation_split:
            raise ValueError("give validation_data or validation_split, not both")
        if not (isinstance(validation_data, (tuple, list)) and len(validation_data) == 2):
            raise TypeError(f"validation_data must be a pair (X, Y), got {type(validation_data).__name__}")


def _checked_optimizer(optimizer: Optimizer | str) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer]()
    raise ValueError(
        f"optimizer must be one of {', '.join(OPTIMIZERS)} or a configuration such as dnn.Adam(1e-3), got {optimizer!r}"
    )


# -------------------------------------------------------------------------------------------- Ctrl-C


class _Interrupt:
    """Whether Ctrl-C was pressed; the second time it no longer waits for the step to end."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def check(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def _whole_steps() -> Iterator[_Interrupt]:
    """Hold Ctrl-C back until `check`, where Python's own handler would have raised in the middle of a step."""
    interrupt = _Interrupt()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.check()


# ------------------------------------------------------------------------------------------ progress


class _Progress:
    """Silent."""

    def step_done(self) -> None:
        pass

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        pass


class _Bar(_Progress):
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def step_done(self) -> None:
        self._bar.update()

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"epoch {epoch}, {_in_words(measured)}", refresh=False)


class _Lines(_Progress):
    """A line for the first epoch, the last, and at most one every LINE_EVERY seconds between."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._done = 0
        self._told = -math.inf

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told >= LINE_EVERY or self._done == self._epochs:
            self._told = now
            print(f"epoch {self._done}/{self._epochs}: {_in_words(measured)}", file=sys.stderr, flush=True)


def _in_words(measured: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in measured.items())


@contextmanager
def _progress(epochs: int, batches: int, verbose: bool | None) -> Iterator[_Progress]:
    if verbose is False:
        yield _Progress()
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=epochs * batches, unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
            yield _Bar(bar)
    elif verbose:
        yield _Lines(epochs)
    else:
        yield _Progress()
