"""fit: epochs of training steps, with validation and a History."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, prepare
from dnn.errors import DataError, NonFiniteLossError, check_number, check_whole
from dnn.inference import Evaluation, measures
from dnn.memory import place
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS, Optimizer
from dnn.precision import check_precision, working_copies
from dnn.step import training_step

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
    threads: int | None,
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
    memory_limit      GB of the device's memory that may be used; None: what is free. An X that this does not hold too
                      stays on the host, and its batches are copied while the device computes. NotEnoughMemoryError,
                      before anything is trained, where it does not hold the training itself
    threads           of the CPU; None: DNN_NUM_THREADS, else one a core. Any number gives the same run every time
    precision         what a step computes in: None, the network's dtype; of a float32 network, where the backend has
                      them, tf32, float16, bfloat16. See `dnn.precision`. A second fit in the same one goes on with its
                      loss scale

    Ctrl-C raises KeyboardInterrupt after the step it finds running, so the network is as of its last whole step.
    NonFiniteLossError ends a training that diverges.
    """
    _check_settings(epochs, batch_size, validation_data, validation_split)
    if memory_limit is not None:
        check_number("memory_limit", memory_limit)
    if threads is not None:
        check_whole("threads", threads)
    optimizer = _checked_optimizer(optimizer)
    precision = check_precision(network, precision)
    started = time.perf_counter()
    backend = network.backend
    silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with backend.stream(threads), silent, _whole_steps() as interrupt:
        with _undecided_if_refused(network):
            examples = prepare(network, X, Y, fitting=True)
            held_back, kept = _split(network, examples.m, validation_split)
            validation = None
            if validation_data is not None:
                validation = prepare(network, *validation_data, name="X of validation_data")
            m = examples.m if kept is None else len(kept)
            examples, validation = place(
                network, examples, validation, m, batch_size, optimizer, precision, memory_limit
            )
            if held_back is not None:
                validation = examples
        if network._update is None or not optimizer.continues(network._update.optimizer):
            network._update = optimizer.bind(network.parameters)
        network._update.learning_rate = optimizer.learning_rate
        network._mixed = working_copies(precision, network.parameters, network._mixed)
        run = _Epochs(network, examples, kept, batch_size, shuffle, precision)
        evaluate = None if validation is None else Evaluation(network, validation, held_back, capture=True)
        history = History()
        with _progress(epochs, len(run), verbose) as progress:
            for _ in range(epochs):
                measured = run.epoch(interrupt, progress)
                network.epochs += 1
                if evaluate is not None:
                    measured |= {f"val_{name}": value for name, value in evaluate().items()}
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
        # one batch has no order, and is loaded once; not even that where X can be used as it is
        one_batch = batch_size >= m
        in_place = one_batch and rows is None and examples.scale is None and mixed is None
        in_place = in_place and backend.owns(examples.X)
        self._shuffle = shuffle and not one_batch
        self._batches = Batches(
            backend,
            examples,
            np.arange(m) if rows is None else rows,
            batch_size,
            bind=lambda size: training_step(network, update, examples, size, in_place, precision, mixed),
            work=lambda step: step,
            capture=True,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, interrupt: _Interrupt, progress: _Progress) -> dict[str, float]:
        """One pass over the examples; loss and metric over it."""
        if self._shuffle:
            self._batches.reorder(self._permutation())
        self._batches.reset()
        for _ in self._batches:
            interrupt.check()
            progress.step_done()
        return self._measure()

    def _permutation(self) -> np.ndarray:
        seeds = np.random.SeedSequence([self._network.seed, 1, self._network.epochs])
        order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._m)
        return order if self._rows is None else self._rows[order]

    def _measure(self) -> dict[str, float]:
        network, (loss, correct) = self._network, self._batches.totals()
        if not math.isfinite(loss):
            assert network._update is not None
            raise NonFiniteLossError(
                f"the loss is {loss} in epoch {network.epochs + 1}: training has diverged and the weights are lost: "
                f"begin anew with a lower learning rate (now {network._update.learning_rate:g}) or a smaller X"
            )
        return measures(network, loss, correct, self._m)


def _split(network: Network, m: int, split: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the rows held back to validate on, those left to train on); None and None where nothing is held back."""
    if not split:
        return None, None
    held_back = math.ceil(split * m)
    if held_back >= m:
        raise DataError(f"validation_split {split:g} of {m} examples leaves none to train on")
    seeds = np.random.SeedSequence([network.seed, 2])
    cut = np.random.Generator(np.random.PCG64(seeds)).permutation(m)
    # in the file's order: the cut says which examples, not in what order
    return np.sort(cut[:held_back]), np.sort(cut[held_back:])


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
