"""fit: epochs of training steps, with validation and a History."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from fractions import Fraction
from types import FrameType
from typing import Any

import numpy as np

from dnn.batches import Batches
from dnn.data import Examples, prepare
from dnn.errors import DataError, NonFiniteLossError, check_number, check_switch, check_whole
from dnn.inference import Evaluation, check_finite, largest, largest_input, measures
from dnn.memory import place
from dnn.network import Network
from dnn.optimizers import OPTIMIZERS, Adam, Optimizer
from dnn.precision import check_precision, compute_dtype
from dnn.state import Snapshot, TrainingState
from dnn.step import TRAIN, Order, Step

LINE_EVERY = 10.0
"""Minimum seconds between two progress lines without a terminal."""
LARGE = 30.0
"""Inputs, targets or weights beyond are named as a likely cause where a training diverges."""


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

    def __repr__(self) -> str:
        """One line: a cell of a notebook that ends with a fit prints this."""
        epochs = f"{len(self.epoch)} epoch{'s' if len(self.epoch) != 1 else ''}"
        last = {name: values[-1] for name, values in self.history.items() if values}
        return f"<History: {', '.join([epochs, *_words(last)])}>"


@dataclass(frozen=True)
class FitSettings:
    """The keywords of `Network.fit`. ValueError or TypeError if a setting is invalid.

    epochs            passes over the examples
    batch_size        examples per update; the last batch of an epoch may be smaller
    optimizer         a configuration or its name. A second fit with the same one, learning rate aside, continues from
                      its state: 3 + 3 epochs equal 6
    validation_data   (X, Y), or validation_split: the fraction of the examples to hold out, chosen by the seed
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
        for name in ("shuffle", "verbose"):
            value = getattr(self, name)
            if value is not None or name != "verbose":
                check_switch(name, value)
                object.__setattr__(self, name, bool(value))
        _check_validation(self.validation_data, self.validation_split)
        # a scalar of NumPy as the decimal that it prints: 0.07 in float32 is another number in float64
        split = self.validation_split
        object.__setattr__(self, "validation_split", float(str(split) if hasattr(split, "dtype") else split))
        if self.memory_limit is not None:
            check_number("memory_limit", self.memory_limit)
            if not self.memory_limit > 0:
                raise ValueError(f"memory_limit must be above 0, got {self.memory_limit!r}")
            object.__setattr__(self, "memory_limit", float(self.memory_limit))
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

                if name in ("learning_rate", "lr", "momentum", "beta1", "beta2", "eps"):
                    raise TypeError(
                        f"fit has no setting {name!r}: it is the optimizer's, as in optimizer=dnn.Adam(1e-3)"
                    )
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
        self.optimizer.check_in(network.dtype)

    def fit(self, X: Any, Y: Any) -> History:
        """Train on X, Y (see `dnn.data.examples` for their forms) and return the History.

        Ctrl-C raises KeyboardInterrupt after the current step, so the network is in the state of its last whole step.
        NonFiniteLossError is raised if training diverges; the network is then as it was after its last finite epoch.
        """
        network, settings = self.network, self.settings
        started = time.perf_counter()
        silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        with network.backend.stream(settings.threads), silent, _whole_steps() as interrupt:
            before = _Before(network)
            try:
                examples, rows, evaluate = self._prepare(X, Y)
                run = _Epochs(self, examples, rows, before)
                evaluation = None if evaluate is None else Evaluation(network, *evaluate, optimized=True)
            except BaseException:
                before.restore()
                raise
            history = History()
            with _progress(settings.epochs, len(run), settings.verbose) as progress, run.kept_finite():
                for epoch in range(1, settings.epochs + 1):
                    measured = run.epoch(interrupt, progress, last=epoch == settings.epochs)
                    if evaluation is not None:
                        measured |= {f"val_{name}": value for name, value in evaluation().items()}
                        run.check_validation(measured["val_loss"])
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


OF_DATA = "input_scale", "input_kind", "input_shape", "classes", "feature_names"
"""What the first data determines of a network."""


class _Before:
    """What a fit changes in a network beside its arrays, to put back where nothing was trained."""

    def __init__(self, network: Network) -> None:
        self._network = network
        # what the first data determines is determined only by data that was trained on
        self._of_data = {name: getattr(network, name) for name in OF_DATA}
        self.epochs, self._state = network.epochs, network.training_state

    def restore(self) -> None:
        network = self._network
        if network.epochs == self.epochs:
            for name, value in self._of_data.items():
                setattr(network, name, value)
            network.training_state = self._state

    def trained(self) -> None:
        """No longer hold the state of another optimizer."""
        self._state = self._network.training_state


class _Epochs:
    """The epochs of one fit: the steps for the full batches and for the smaller last one, and the order of examples.

    Where it diverges, the network goes back to the end of its last finite epoch. A snapshot at the end of every epoch
    would cost small ones too much: the epochs since the last are repeated.
    """

    SHARE = 0.01
    """Of the time, for snapshots and for looking whether all is finite."""

    def __init__(self, trainer: Trainer, examples: Examples, rows: np.ndarray | None, before: _Before) -> None:
        network, settings, state = trainer.network, trainer.settings, trainer.state()
        self._network, self._state, self._before = network, state, before
        self._examples, self._rows = examples, rows
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
        self._snapshot = Snapshot(network.parameters, state)
        if not self._snapshot.is_finite():
            check_finite(network)
            state.reset(network.parameters)
        self._take_snapshot(time.perf_counter())

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, interrupt: _Interrupt, progress: _Progress, last: bool) -> dict[str, float]:
        """Run one pass over the examples; return its loss and metric."""
        network = self._network
        measured = self._pass(interrupt, progress)
        number, loss = network.epochs + 1, measured["loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} in epoch {number}")
        network.epochs = number
        now = time.perf_counter()
        if last or self._cost < self.SHARE * (now - self._taken):
            if not self._snapshot.is_finite():
                raise self._diverged(f"weights, or their optimizer's state, are not finite after epoch {number}")
            self._before.trained()
            if not last:
                self._take_snapshot(now)
        return measured

    def check_validation(self, loss: float) -> None:
        """NonFiniteLossError where the loss on the validation data, after an epoch, is not finite."""
        if not math.isfinite(loss):
            what = f"the validation loss is {loss} after epoch {self._network.epochs}"
            if not self._snapshot.is_finite():
                raise self._diverged(what)
            raise NonFiniteLossError(
                f"{what}, whose weights are finite and kept: training is diverging (lower the learning rate, now "
                f"{self._state.learning_rate:g}), or validation data is far larger than X"
            )

    @contextmanager
    def kept_finite(self) -> Iterator[None]:
        """Whatever ends the fit, the network is left finite."""
        try:
            yield
        except NonFiniteLossError:
            raise
        except BaseException:
            if not self._snapshot.is_finite():
                self._go_back()
            raise

    def _pass(self, interrupt: _Interrupt, progress: _Progress) -> dict[str, float]:
        network = self._network
        if self._shuffle:
            self._batches.reorder(self._permutation())
        self._batches.reset()
        self._state.refresh(network.parameters)
        # closed, so that batches on their way to the device are waited for before anything else is done
        with closing(self._batches.run()) as calls:
            for steps in calls:
                interrupt.check()
                progress.steps_done(steps)
        return measures(network, *self._batches.totals(), self._m)

    def _permutation(self) -> np.ndarray:
        seeds = np.random.SeedSequence([self._network.seed, 1, self._network.epochs])
        order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._m)
        return order if self._rows is None else self._rows[order]

    def _take_snapshot(self, started: float) -> None:
        self._snapshot.take()
        self._epoch_of_snapshot = self._network.epochs
        self._taken = time.perf_counter()
        self._cost = self._taken - started

    def _go_back(self) -> None:
        """To the end of the last epoch whose loss and results are finite, of those that are done."""
        network, done = self._network, self._network.epochs
        while True:
            self._snapshot.restore()
            network.epochs = self._epoch_of_snapshot
            if network.epochs == done:
                break
            # as it was, bit for bit: an epoch's order and masks come from its number and the seed
            loss = self._pass(_Interrupt(), _Progress())["loss"]
            if math.isfinite(loss) and self._snapshot.is_finite():
                network.epochs += 1
                self._take_snapshot(time.perf_counter())
            else:
                done = self._epoch_of_snapshot
        self._before.restore()

    def _diverged(self, what: str) -> NonFiniteLossError:
        self._go_back()
        return NonFiniteLossError(
            f"{what}: training has diverged, and the network is as it was after epoch {self._network.epochs}: "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        """What to change, the likely cause first."""
        network, rate = self._network, self._state.learning_rate
        found = []
        X = largest_input(self._examples)
        if X > LARGE:
            found.append(f"X reaches {X:g}: scale it to about 1, as by input_scale={1 / X:.1g}")
        if network.output == "linear" and (Y := largest(self._examples.targets)) > LARGE:
            found.append(f"Y reaches {Y:g} under a linear output: scale it, as by (Y - Y.mean()) / Y.std()")
        theta, untrained = largest(network.parameters.flat), network.epochs == self._before.epochs
        if theta > LARGE and untrained:
            found.append(f"the weights reach {theta:g}: start from smaller ones")
        if rate or not found:
            found.insert(0 if rate >= 1 else len(found), f"lower the learning rate (now {rate:g})")
        grown = "" if untrained or theta <= LARGE else f"; start over, for the weights have grown to {theta:g}"
        return ", or ".join(found) + grown


def _split(network: Network, m: int, split: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the rows held out for validation, the rows left to train on), or (None, None) without a split."""
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
            length = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
            raise TypeError(f"validation_data must be a pair (X, Y), got {type(data).__name__}{length}")


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
    """A bar for the whole fit, with the figures of the last epoch in front of it: what is cut off is the bar."""

    FORMAT = "{desc} |{bar}| {percentage:.0f}% {remaining}"

    def __init__(self, bar: Any, epochs: int) -> None:
        self._bar = bar
        self._epochs = epochs
        self._done = 0
        self.last_line = ""

    def steps_done(self, steps: int) -> None:
        with suppress(Exception):  # what tqdm draws, on whatever stream: no reason to end a training
            self._bar.update(steps)

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._done += 1
        self.last_line = _line(self._done, self._epochs, measured)
        with suppress(Exception):
            self._bar.set_description_str(f"{self._done}/{self._epochs}: {_in_short(measured)}", refresh=False)


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
            _show(_line(self._done, self._epochs, measured), sys.stderr)


def _line(epoch: int, epochs: int, measured: dict[str, float]) -> str:
    return f"epoch {epoch}/{epochs}: {', '.join(_words(measured))}"


def _words(measured: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in measured.items()]


def _in_short(measured: dict[str, float]) -> str:
    """Each measure with that of the validation in brackets, for one line of 80 columns that has a bar as well."""

    def digits(value: float) -> str:
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"

    def both(name: str) -> str:
        validation = f" (val {digits(measured[f'val_{name}'])})" if f"val_{name}" in measured else ""
        return f"{name} {digits(measured[name])}{validation}"

    return ", ".join(both(name) for name in measured if not name.startswith("val_"))


def _show(line: str, stream: Any) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed: no reason to end a training
        print(line, file=stream, flush=True)


@contextmanager
def _progress(epochs: int, batches: int, verbose: bool | None) -> Iterator[_Progress]:
    if verbose is False or sys.stderr is None:
        yield _Progress()
    elif (notebook := _notebook()) is not None or _is_terminal(sys.stderr):
        stream = sys.stderr if notebook is None else _CellLine(notebook)
        bar = _tqdm(
            total=epochs * batches,
            desc=f"0/{epochs}",
            bar_format=_Bar.FORMAT,
            file=stream,
            dynamic_ncols=notebook is None,
            leave=False,
        )
        if bar is None:
            yield _Lines(epochs)
            return
        progress = _Bar(bar, epochs)
        try:
            yield progress
        finally:
            with suppress(Exception):
                bar.close()
            if progress.last_line:
                _show(progress.last_line, stream)
    elif verbose:
        yield _Lines(epochs)
    else:
        yield _Progress()


def _tqdm(**settings: Any) -> Any:
    """A bar of tqdm; None where there can be none: its own environment variables may be what it does not take."""
    try:
        from tqdm import tqdm

        return tqdm(**settings)
    except Exception:
        return None


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a stand-in for a stream, or a closed one
        return False


def _notebook() -> Any:
    """The module IPython in a kernel of Jupyter, else None. Nothing is imported: a kernel has done so."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    return ipython if getattr(shell, "kernel", None) is not None else None


class _CellLine:
    """A stream whose last line is an output of the cell: a stream of the kernel would keep all lines in the file."""

    def __init__(self, ipython: Any) -> None:
        self._output = ipython.display.display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip():
            self._output.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass
