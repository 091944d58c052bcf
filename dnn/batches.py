"""Steps at work on one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from dnn.backends import Array, Backend, Feeder
from dnn.backends.plan import Buffer, Plan
from dnn.data import Examples
from dnn.step import FED, GATHERED, IN_PLACE, Step, load


class Batches:
    """Batches of these rows of the examples, each a run of a step.

    `bind(examples, size, loading)` makes the step for batches of a size: the full one, and that of the smaller last.
    Iterating runs them, batch by batch, and gives the steps.

    A single batch is loaded once, here, and then used in place. Where X is on the host its rows are fed: those of the
    next two batches are gathered and copied while the device computes with this one.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Examples,
        rows: np.ndarray,
        batch_size: int,
        bind: Callable[[Examples, int, str], Step],
        dtype: np.dtype,
        optimized: bool = True,
    ) -> None:
        m = len(rows)
        batch_size = min(batch_size, m)
        self._alone = batch_size == m
        self._backend = backend
        self._feeder: Feeder | None = None
        loading = GATHERED
        if self._alone:
            loading = IN_PLACE
            examples = in_place(backend, examples, rows, dtype)
        elif not backend.owns(examples.X):
            loading = FED
            self._feeder = backend.feeder(examples.X, batch_size)
        sizes = [size for size in (batch_size, m % batch_size) if size]
        self.steps = [bind(examples, size, loading).compile(optimized) for size in sizes]
        # copies: another order is written into them
        self._order, self._order_on_host = backend.asarray(rows.copy()), rows.copy()
        self._batches = []
        for start in range(0, m, batch_size):
            batch, which = slice(start, start + batch_size), 0 if start + batch_size <= m else -1
            self._batches.append((self.steps[which], self._order[batch], self._order_on_host[batch]))

    def __len__(self) -> int:
        return len(self._batches)

    def reorder(self, rows: np.ndarray) -> None:
        """Take the examples in this order from now on."""
        self._order[...] = self._backend.asarray(rows)
        self._order_on_host[...] = rows

    def reset(self) -> None:
        """Forget the losses and the metric of the batches so far."""
        for step in self.steps:
            step.reset()

    def totals(self) -> tuple[float, float]:
        """The mean loss over the examples and the sum of the metric, since `reset`."""
        loss, metric, m = 0.0, 0.0, len(self._order_on_host)
        for step in self.steps:
            of_step, measured = self._backend.to_numpy(step.totals)
            loss += float(of_step) * step.batch_size
            metric += float(measured)
        return loss / m, metric

    def __iter__(self) -> Iterator[Step]:
        if self._feeder is not None:
            yield from self._fed(self._feeder)
            return
        for step, rows, _ in self._batches:
            if not self._alone:
                step.array("rows")[...] = rows
            step()
            yield step

    def _fed(self, feeder: Feeder) -> Iterator[Step]:
        to_come = iter([rows_on_host for *_, rows_on_host in self._batches])
        try:
            for rows_on_host in islice(to_come, feeder.AHEAD):
                feeder.enqueue(rows_on_host)
            for step, rows, _ in self._batches:
                step.array("rows")[...] = rows
                with feeder.batch() as X:
                    step.array("X")[...] = X
                step()
                # the step is queued: the device has work while the host gathers
                for rows_on_host in islice(to_come, 1):
                    feeder.enqueue(rows_on_host)
                yield step
        finally:
            feeder.drain()


def in_place(backend: Backend, examples: Examples, rows: np.ndarray, dtype: np.dtype) -> Examples:
    """These rows of the examples, loaded: on the device, scaled, in this dtype."""
    fed = not backend.owns(examples.X)
    if not fed and is_loaded(examples, rows, dtype):
        return examples
    plan, buffers = loading_plan(examples, len(rows), dtype, fed)
    run = backend.run_stepwise(plan)
    arrays: dict[str, Array] = {name: buffer.array for name, buffer in buffers.items()}
    arrays["rows"][...] = backend.asarray(rows)
    if fed:
        arrays["X"][...] = backend.asarray(examples.X[rows])
    run()
    return loaded(examples, arrays)


def is_loaded(examples: Examples, rows: np.ndarray, dtype: np.dtype) -> bool:
    """Whether these rows are all the examples, in their order, as a step takes them."""
    whole = len(rows) == examples.m and bool((rows == np.arange(examples.m)).all())
    return whole and examples.scale is None and examples.X.dtype == dtype


def loading_plan(examples: Examples, m: int, dtype: np.dtype, fed: bool) -> tuple[Plan, dict[str, Buffer]]:
    """What loads m of the examples, once; `fed`: X is not on the device."""
    plan = Plan()
    buffers, *values = load(plan, examples, m, FED if fed else GATHERED, dtype)
    for name, value in zip(("loaded X", "loaded targets"), values, strict=True):
        if value is not None:
            buffers[name] = plan.buffer(name, value.shape, value.dtype)
            plan.store(buffers[name], value)
    return plan, buffers


def loaded(examples: Examples, found: Mapping[str, Any]) -> Examples:
    """The examples with what was loaded of them."""
    return replace(examples, X=found["loaded X"], targets=found.get("loaded targets"), scale=None)
