"""Bound steps at work on one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from dnn.backends import Backend, Feeder
from dnn.data import Examples
from dnn.step import Forward

Step = TypeVar("Step", bound=Forward)


class Batches(Generic[Step]):
    """Batches of these rows of the examples, each loaded into a bound step, which then does its work.

    `bind` makes the step for batches of a size: the full one, and that of the smaller last; `work` says what of the
    step is to be done, and with `capture` it is recorded where the backend can. Iterating does it, batch by batch, and
    gives the steps.

    Where X is on the host its rows are fed: those of the next two batches are gathered and copied while the device
    computes with this one. Of a single batch the rows are loaded once, here.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Examples,
        rows: np.ndarray,
        batch_size: int,
        bind: Callable[[int], Step],
        work: Callable[[Step], Callable[[], None]],
        capture: bool = False,
    ) -> None:
        m = len(rows)
        batch_size = min(batch_size, m)
        self._alone = batch_size == m
        self._backend = backend
        self._feeder: Feeder | None = None
        if not backend.owns(examples.X):
            self._feeder = backend.feeder(examples.X, batch_size)
        self.steps = [bind(size) for size in (batch_size, m % batch_size) if size]
        runs = [work(step) for step in self.steps]
        if self._feeder is None and not self._alone:
            runs = [step.on_rows(run) for step, run in zip(self.steps, runs, strict=True)]
        if capture:
            runs = [backend.capture(run) for run in runs]
        # copies: another order is written into them
        self._order, self._order_on_host = backend.asarray(rows.copy()), rows.copy()
        self._batches = []
        for start in range(0, m, batch_size):
            batch, which = slice(start, start + batch_size), 0 if start + batch_size <= m else -1
            rows_of_it = self._order[batch], self._order_on_host[batch]
            self._batches.append((self.steps[which], runs[which], *rows_of_it))
        if self._alone:
            self._load_once(self.steps[0])

    def __len__(self) -> int:
        return len(self._batches)

    def reorder(self, rows: np.ndarray) -> None:
        """Take the examples in this order from now on."""
        self._order[...] = self._backend.asarray(rows)
        self._order_on_host[...] = rows

    def reset(self) -> None:
        """Forget the losses and hits of the batches so far."""
        for step in self.steps:
            step.output.reset()

    def totals(self) -> tuple[float, float]:
        """The mean loss over the examples and the number of hits, since `reset`."""
        loss, correct, m = 0.0, 0.0, len(self._order_on_host)
        for step in self.steps:
            of_step, hits = self._backend.to_numpy(step.output.totals)
            loss += float(of_step) * step.batch_size
            correct += float(hits)
        return loss / m, correct

    def _load_once(self, step: Step) -> None:
        if step.in_place:
            return
        if self._feeder is None:
            step.load(self._order)
            return
        self._feeder.put(self._order_on_host)
        with self._feeder.batch() as X:
            step.load(self._order, X)
        self._feeder.drain()

    def __iter__(self) -> Iterator[Step]:
        if self._feeder is not None and not self._alone:
            yield from self._fed(self._feeder)
            return
        for step, run, rows, _ in self._batches:
            if not self._alone:
                step.rows[...] = rows
            run()
            yield step

    def _fed(self, feeder: Feeder) -> Iterator[Step]:
        to_come = iter([rows_on_host for *_, rows_on_host in self._batches])
        try:
            for rows_on_host in islice(to_come, feeder.AHEAD):
                feeder.put(rows_on_host)
            for step, run, rows, _ in self._batches:
                with feeder.batch() as X:
                    step.load(rows, X)
                run()
                # the step is queued: the device has work while the host gathers
                for rows_on_host in islice(to_come, 1):
                    feeder.put(rows_on_host)
                yield step
        finally:
            feeder.drain()
