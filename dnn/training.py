"""fit: epochs of training steps, with validation and a History."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import FrameType
from typing import Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, prepare
from dnn.errors import DataError, NonFiniteLossError, check_number, check_whole
from dnn.inference import Evaluation, measures
from dnn.memory import place
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS, Adam, Optimizer
from dnn.precision import check_precision, compute_dtype
from dnn.state import TrainingState
from dnn.step import TRAIN, Order, Step

LINE_EVERY = 10.0
"""Minimum seconds between two progress lines without a terminal."""


@dataclass
class History:
    """Measures of a fit: `history["loss"]` etc. with one entry per epoch, and `epoch`, counted over the network's life.

    loss and accuracy (rmse for a linear output) are means over the epoch's examples, each measured before its batch's
    update; val_loss and val_accuracy are measured after the epoch.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def append(self, epoch: int, values: dict[str, float]) -> None:
        self.epoch.append(epoch)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


@dataclass(frozen=True)
class FitSettings:
    """The keywords of `Network.fit`. ValueError or TypeError if a setting is invalid.

    epochs            passes over the examples
    batch_size        examples per update; the last batch of an epoch may be smaller
    optimizer         a configuration or its name. A second fit with the same one, learning rate aside, continues from
                      its state: 3 + 3 epochs equal 6
    validation_data   (X, Y), or validation_split: the fraction of the examples to hold out, chosen by the seed
    shuffle           use a new order each epoch; a batch of all examples is not shuffled
    verbose           None: a progress bar on a terminal, else silent; True: also without a terminal, a line for the
                      first and the last epoch and at most one every 10 s; False: silent
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
    validation_data: tuple[Any, Any] | None = None
    validation_split: float = 0.0
    shuffle: bool = True
    verbose: bool | None = None
    memory_limit: float | None = None
    threads: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            check_whole(name, value)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            object.__setattr__(self, name, int(value))  # it may be a NumPy integer
        _check_validation(self.validation_data, self.validation_split)
        if self.memory_limit is not None:
            check_number("memory_limit", self.memory_limit)
        if self.threads is not None:
            check_whole("threads", self.threads)
            object.__setattr__(self, "threads", int(self.threads))
        object.__setattr__(self, "optimizer", _checked_optimizer(self.optimizer))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FitSettings:
        """Settings from keywords; TypeError names an unknown one and the closest known one."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, 1)
                hint = f": did you mean {near[0]}?" if near else f": choose from {', '.join(known)}"
                raise TypeError(f"fit has no setting {name!r}{hint}")
        return cls(**settings)


class Trainer:
    """Trains a network; the state of the optimizer and the loss scale outlives a fit."""

    def __init__(self, network: Network, settings: FitSettings) -> None:
        self.network, self.settings = network, settings
        self.precision = check_precision(network.dtype, network.backend, settings.precision)
        assert isinstance(settings.optimizer, Optimizer)
        self.optimizer = settings.optimizer

    def fit(self, X: Any, Y: Any) -> History:
        """Train on X, Y (see `dnn.data.examples` for their forms) and return the History.

        Ctrl-C raises KeyboardInterrupt after the current step, so the network is in the state of its last whole step.
        NonFiniteLossError is raised if training diverges.
        """
        network, settings = self.network, self.settings
        started = time.perf_counter()
        silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        with network.backend.stream(settings.threads), silent, _whole_steps() as interrupt:
            with _undecided_if_refused(network):
                examples, rows, evaluate = self._prepare(X, Y)
            run = _Epochs(self, examples, rows)
            evaluation = None if evaluate is None else Evaluation(network, *evaluate, optimized=True)
            history = History()
            with _progress(settings.epochs, len(run), settings.verbose) as progress:
                for _ in range(settings.epochs):
                    measured = run.epoch(interrupt, progress)
                    network.epochs += 1
                    if evaluation is not None:
                        measured |= {f"val_{name}": value for name, value in evaluation().items()}
                    history.append(network.epochs, measured)
                    progress.epoch_done(network.epochs, measured)
                    interrupt.check()
            network.backend.synchronize()
        history.seconds = time.perf_counter() - started
        return history

    def _prepare(self, X: Any, Y: Any) -> tuple[Examples, np.ndarray | None, tuple[Examples, Any] | None]:
        """The examples, the rows to train on (None: all), and what to evaluate: examples and their rows."""
        network, settings = self.network, self.settings
        examples = prepare(network, X, Y, fitting=True)
        held_out, kept = _split(network, examples.m, settings.validation_split)
        validation = None
        if settings.validation_data is not None:
            validation = prepare(network, *settings.validation_data, name="X of validation_data")
        rows = np.arange(examples.m) if kept is None else kept
        examples, validation = place(
            network,
            examples,
            validation,
            rows,
            settings.batch_size,
            self.optimizer,
            self.precision,
            settings.memory_limit,
        )
        if held_out is not None:
            return examples, kept, (examples, held_out)
        return examples, kept, None if validation is None else (validation, None)

    def state(self) -> TrainingState:
        """The state to train with: that of the last fit if this one continues it, else a new one."""
        network, optimizer = self.network, self.optimizer
        state = network.training_state
        if state is None or not optimizer.continues(state.optimizer):
            state = network.training_state = TrainingState(optimizer, network.parameters)
        state.learning_rate = optimizer.learning_rate
        state.set_precision(self.precision, network.parameters)
        return state


@contextmanager
def _undecided_if_refused(network: Network) -> Iterator[None]:
    """Keep what the first data determines for a network only if the fit accepts all of its data."""
    before = network.input_scale, network.input_kind, network.input_shape
    try:
        yield
    except BaseException:
        network.input_scale, network.input_kind, network.input_shape = before
        raise


class _Epochs:
    """The epochs of one fit: the steps for the full batches and for the smaller last one, and the order of examples."""

    def __init__(self, trainer: Trainer, examples: Examples, rows: np.ndarray | None) -> None:
        network, settings, state = trainer.network, trainer.settings, trainer.state()
        self._network, self._state = network, state
        self._rows = rows
        self._m = m = examples.m if rows is None else len(rows)
        # a single batch needs no order, and is loaded once
        self._shuffle = settings.shuffle and settings.batch_size < m

        def bind(examples: Examples, size: int, loading: str, order: Order | None) -> Step:
            return Step(
                network, examples, size, TRAIN, loading, state.optimizer, state.arrays, trainer.precision, order
            )

        self._batches = Batches(
            network.backend,
            examples,
            np.arange(m) if rows is None else rows,
            settings.batch_size,
            bind,
            compute_dtype(network.dtype, network.backend, trainer.precision),
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, interrupt: _Interrupt, progress: _Progress) -> dict[str, float]:
        """Run one pass over the examples; return its loss and metric."""
        if self._shuffle:
            self._batches.reorder(self._permutation())
        self._batches.reset()
        self._state.refresh(self._network.parameters)
        for steps in self._batches.run():
            interrupt.check()
            progress.steps_done(steps)
        return self._measure()

    def _permutation(self) -> np.ndarray:
        seeds = np.random.SeedSequence([self._network.seed, 1, self._network.epochs])
        order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._m)
        return order if self._rows is None else self._rows[order]

    def _measure(self) -> dict[str, float]:
        network, (loss, correct) = self._network, self._batches.totals()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} in epoch {network.epochs + 1}: training has diverged and the weights are lost: "
                f"start over with a lower learning rate (now {self._state.learning_rate:g}) or scale X down"
            )
        return measures(network, loss, correct, self._m)


def _split(network: Network, m: int, split: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the rows held out for validation, the rows left to train on), or (None, None) without a split."""
    if not split:
        return None, None
    held_out = math.ceil(split * m)
    if held_out >= m:
        raise DataError(f"validation_split {split:g} of {m} examples leaves none to train on")
    seeds = np.random.SeedSequence([network.seed, 2])
    cut = np.random.Generator(np.random.PCG64(seeds)).permutation(m)
    # in the file's order: the permutation selects examples, it does not order them
    return np.sort(cut[:held_out]), np.sort(cut[held_out:])


def _check_validation(data: Any, split: Any) -> None:
    check_number("validation_split", split)
    if not 0 <= split < 1:
        raise ValueError(f"validation_split must be at least 0 and below 1, got {split!r}")
    if data is not None:
        if split:
            raise ValueError("give validation_data or validation_split, not both")
        if not (isinstance(data, (tuple, list)) and len(data) == 2):
            raise TypeError(f"validation_data must be a pair (X, Y), got {type(data).__name__}")


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
    """Records Ctrl-C; a second one no longer waits for the step to end."""

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
    """Defer Ctrl-C until `check`, where Python's own handler would raise in the middle of a step."""
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
    """No output."""

    def steps_done(self, steps: int) -> None:
        pass

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        pass


class _Bar(_Progress):
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def steps_done(self, steps: int) -> None:
        self._bar.update(steps)

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"epoch {epoch}, {_in_words(measured)}", refresh=False)


class _Lines(_Progress):
    """A line for the first and the last epoch, and at most one every LINE_EVERY seconds in between."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._done = 0
        self._last_line = -math.inf

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY or self._done == self._epochs:
            self._last_line = now
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
