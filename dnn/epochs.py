"""The epochs of a fit, and the way back from a divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends import Array
from dnn.batches import Batches
from dnn.data import Examples
from dnn.data.streaming import Pass, Stream, mixing_in_words
from dnn.diagnosis import Origin, find_origin
from dnn.errors import NonFiniteLossError
from dnn.inference import check_finite, largest, largest_input, measures
from dnn.interrupt import Interrupt
from dnn.network import Network
from dnn.progress import Progress, note
from dnn.state import Snapshot
from dnn.step import TRAIN, Order, Step, load_dtype

if TYPE_CHECKING:
    from dnn.training import Trainer

LARGE = 30.0
"""Inputs, targets or weights beyond are named as a likely cause where a training diverges."""
OF_DATA = "input_scale", "input_kind", "input_shape", "classes", "feature_names", "statistics"
"""What the first data determines of a network."""


class Before:
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


class Epochs:
    """The epochs of one fit: the steps for the full batches and for the smaller last one, and the order of examples.

    Where it diverges, the network goes back to the end of its last finite epoch. A snapshot at the end of every epoch
    would cost small ones too much: the epochs since the last are repeated.
    """

    SHARE = 0.01
    """Of the time, for snapshots and for looking whether all is finite."""

    def __init__(self, trainer: Trainer, examples: Examples, rows: np.ndarray | None, before: Before) -> None:
        network, settings = trainer.network, trainer.settings
        self._network, self._before = network, before
        self.every: int | None = None
        """Steps between two checkpoints: no call of a step runs past a multiple of it."""
        self._watched = False
        """Whether something looks at every batch."""
        self._examples, self._rows = examples, rows
        self._m = m = examples.m if rows is None else len(rows)
        # a single batch needs no order, and is loaded once
        self._shuffle = settings.shuffle and settings.batch_size < m
        batches = -(-m // settings.batch_size)
        self._updating = settings.updating(per_epoch=-(-batches // settings.accumulate))
        self._state = state = trainer.state(self._updating)

        def bind(examples: Examples, size: int, loading: str, order: Order | None, goal: str) -> Step:
            return Step(network, examples, size, goal, loading, self._updating, state.arrays, trainer.precision, order)

        self._batches = Batches(
            network.backend,
            examples,
            rows,
            settings.batch_size,
            bind,
            load_dtype(network, trainer.precision),
            goal=TRAIN,
            accumulate=settings.accumulate,
            members=network.members,
        )
        self._snapshot = Snapshot(network.parameters, state, network.layer_state)
        if not self._snapshot.is_finite():
            check_finite(network)
            state.reset(network.parameters)
        self._take_snapshot(time.perf_counter())
        if isinstance(examples.X, Stream) and self._shuffle:
            self._note_mixing(examples.X, settings.verbose)

    def __len__(self) -> int:
        return len(self._batches)

    def totals(self) -> list[list[float]]:
        """The sums over the batches of this epoch so far, of each step."""
        return [self._network.backend.to_numpy(step.totals).tolist() for step in self._batches.steps]

    def go_on(self, batch: int, totals: list[list[float]]) -> None:
        """Begin the first epoch after so many batches, over which these are the sums."""
        self._start_of_snapshot, self._totals_at_start = batch, totals

    def epoch(
        self,
        interrupt: Interrupt,
        progress: Progress,
        last: bool,
        look: Callable[[int], None] | None = None,
        keep: Callable[[int, bool], None] | None = None,
        start: int = 0,
    ) -> dict[str, float]:
        """Run one pass over the examples, from batch `start` on; return its loss and metric.

        `look` is called after every batch, `keep` after every call of a step, with whether the fit ends there.
        """
        network = self._network
        self._watched = look is not None
        measured = self._pass(interrupt, progress, look, keep, start)
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
                f"{self._state.learning_rate:g}), or validation data is far larger than X",
                epoch=self._network.epochs,
            )

    def check_stopped(self) -> None:
        """NonFiniteLossError where a fit that is stopped before its last epoch is to end is not finite."""
        if not self._snapshot.is_finite():
            raise self._diverged("weights, or their optimizer's state, are not finite where the fit was stopped")
        self._before.trained()

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

    def loss_of_batch(self) -> Array:
        """Of the last batch, (1,), on the device."""
        return self._batches.last.loss

    def settle(self, callbacks: Sequence[Any], start: int = 0) -> None:
        """What callbacks may have changed, no repetition would change: this is where a divergence goes back to.

        `start`: batches of the next epoch that are done.
        """
        if callbacks and self._snapshot.is_finite():
            self._take_snapshot(time.perf_counter(), start)

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rate by this from now on."""
        rate = self._state.optimizer.learning_rate * factor
        if rate != self._state.learning_rate:
            self._state.learning_rate = rate
            if self._snapshot.is_finite():  # repeated, an epoch before would have this rate
                self._take_snapshot(time.perf_counter())

    def _pass(
        self,
        interrupt: Interrupt,
        progress: Progress,
        look: Callable[[int], None] | None = None,
        keep: Callable[[int, bool], None] | None = None,
        start: int = 0,
    ) -> dict[str, float]:
        network = self._network
        if self._shuffle:
            self._batches.reorder(self._permutation())
        self._batches.reset()
        if start:
            for step, totals in zip(self._batches.steps, self._totals_at_start, strict=True):
                step.totals[...] = network.backend.asarray(np.array(totals))
        self._state.refresh(network.parameters)
        # closed, so that batches on their way to the device are waited for before anything else is done
        done = start
        with closing(self._batches.run(look is not None, start, self.every)) as calls:
            for steps in calls:
                done += steps
                progress.steps_done(steps)
                if look is not None:
                    look(done)
                ending = interrupt.pressed  # looked at once: what comes later waits for the next step
                if keep is not None:
                    keep(done, ending)
                if ending:
                    interrupt.check()
        return measures(network, *self._batches.totals())

    def _note_mixing(self, stream: Stream, verbose: bool | None) -> None:
        """How well the first epoch is shuffled, where that is not all of the examples at once."""
        network = self._network
        if stream.band is None or network.output == "linear":
            return
        targets, order = network.backend.to_numpy(self._examples.targets), self._permutation()
        assert isinstance(order, Pass)
        if targets.shape[1] > 1:
            return
        classes = targets[:, 0].astype(np.int64, copy=False)
        words = mixing_in_words(stream, order, classes)
        if words is not None:
            note(words, verbose)

    def _permutation(self) -> np.ndarray | Pass:
        """The order of this epoch; of several members a row each."""
        network, orders, generators = self._network, [], []
        for member in range(network.members):
            seeds = np.random.SeedSequence([network.seed, 1, network.epochs, *([member] if member else [])])
            generators.append(np.random.Generator(np.random.PCG64(seeds)))
        if isinstance(self._examples.X, Stream):
            return self._examples.X.shuffled(self._rows, generators)
        for generator in generators:
            order = generator.permutation(self._m)
            orders.append(order if self._rows is None else self._rows[order])
        return orders[0] if len(orders) == 1 else np.stack(orders)

    def _take_snapshot(self, started: float, start: int = 0) -> None:
        self._snapshot.take()
        self._epoch_of_snapshot, self._start_of_snapshot = self._network.epochs, start
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
            loss = self._pass(Interrupt(), Progress(), start=self._start_of_snapshot)["loss"]
            if math.isfinite(loss) and self._snapshot.is_finite():
                network.epochs += 1
                self._take_snapshot(time.perf_counter())
            else:
                done = self._epoch_of_snapshot
        self._before.restore()

    def _diverged(self, what: str) -> NonFiniteLossError:
        self._go_back()
        network, origin = self._network, Origin()
        # what a callback changes between batches, running them again would not
        if not self._watched:
            if self._shuffle:
                self._batches.reorder(self._permutation())
            origin = find_origin(network, self._batches, self._snapshot, self._state, self._start_of_snapshot)
        number, start = network.epochs + 1, self._start_of_snapshot
        where = f"{start} steps after epoch" if start else "after epoch"  # a fit that was resumed there
        return NonFiniteLossError(
            f"{what}: {origin.told(number)}training has diverged, and the network is as it was {where} "
            f"{network.epochs}: {self._advice()}",
            epoch=number,
            step=origin.step,
            layer=origin.layer,
            tensor=origin.tensor,
        )

    def _advice(self) -> str:
        """What to change, the likely cause first."""
        network, rate = self._network, self._state.learning_rate
        found = []
        X = largest_input(self._examples)
        if X > LARGE:
            scale = "'robust'" if isinstance(network.input_scale, str) else f"{1 / X:.1g}"
            found.append(f"X reaches {X:g}: scale it to about 1, as by input_scale={scale}")
        if (
            network.output == "linear"
            and network.target_scale is None
            and (Y := largest(self._examples.targets)) > LARGE
        ):
            found.append(f"Y reaches {Y:g} under a linear output: scale it, as by target_scale='standard'")
        theta, untrained = largest(network.parameters.flat), network.epochs == self._before.epochs
        if theta > LARGE and untrained:
            found.append(f"the weights reach {theta:g}: start from smaller ones")
        if rate or not found:
            found.insert(0 if rate >= 1 else len(found), f"lower the learning rate (now {rate:g})")
        grown = "" if untrained or theta <= LARGE else f"; start over, for the weights have grown to {theta:g}"
        return ", or ".join(found) + grown
