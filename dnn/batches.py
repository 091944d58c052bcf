"""Steps at work on one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice, repeat
from time import perf_counter
from typing import Any

import numpy as np

from dnn.backends import Array, Backend, Feeder
from dnn.backends.plan import Buffer, Plan
from dnn.data import Examples
from dnn.step import ACCUMULATE, EVALUATE, FED, GATHERED, IN_PLACE, Order, Step, load

SHORT_CALL, MOST_STEPS = 0.005, 32
"""Seconds under which a call may do twice as many steps next time, and the most that it does: Ctrl-C and the progress
wait for a call to return."""


class Batches:
    """Batches of these rows of the examples, each a run of a step.

    `bind(examples, size, loading, order, goal)` makes the step for batches of a size: the full one, and that of the
    smaller last; and where `accumulate` batches make an update, those of the batches before the one that makes it.
    Iterating runs them, batch by batch, and gives the steps; `run` runs several at a time. With `members`, each has an
    order of its own.

    A single batch is loaded once, here, and then used in place. Where X is on the host its rows are fed: those of the
    next two batches are gathered and copied while the device computes with this one.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Examples,
        rows: np.ndarray,
        batch_size: int,
        bind: Callable[[Examples, int, str, Order | None, str], Step],
        dtype: np.dtype,
        optimized: bool = True,
        goal: str = EVALUATE,
        accumulate: int = 1,
        members: int = 1,
    ) -> None:
        self._m = m = len(rows)
        batch_size = min(batch_size, m)
        self._backend = backend
        self._feeder: Feeder | None = None
        # copies: another order is written into them
        self._order: Order | None = None
        self._members = members if batch_size < m else 1
        self._order_on_host = np.tile(rows, self._members)
        if batch_size == m:
            loading = IN_PLACE
            examples = in_place(backend, examples, rows, dtype)
        else:
            loading = GATHERED
            self._order = Order(backend.asarray(self._order_on_host.copy()), backend.zeros(1, np.int64))
            if not backend.owns(examples.X):
                loading = FED
                self._feeder = backend.feeder(examples.X, self._members * batch_size)
        made: dict[tuple[int, str], Step] = {}

        def step(size: int, goal: str) -> Step:
            if (size, goal) not in made:
                made[size, goal] = bind(examples, size, loading, self._order, goal).compile(optimized)
            return made[size, goal]

        self._in_turn: list[tuple[Step, int]] = []
        """The steps of a pass, each with how many times in a row."""
        for size, waits in batches_of(m, batch_size, accumulate):
            this = step(size, ACCUMULATE if waits else goal)
            if self._in_turn and self._in_turn[-1][0] is this:
                self._in_turn[-1] = this, self._in_turn[-1][1] + 1
            else:
                self._in_turn.append((this, 1))
        self.steps = list(made.values())
        self.last = self._in_turn[-1][0]
        """The step that ran last."""
        self._at_once = 1

    def __len__(self) -> int:
        return sum(times for _, times in self._in_turn)

    def reorder(self, rows: np.ndarray) -> None:
        """Take the examples in this order from now on."""
        assert self._order is not None
        self._order_on_host[...] = rows.reshape(-1)
        self._order.rows[...] = self._backend.asarray(self._order_on_host)

    def reset(self) -> None:
        """Forget the losses and the metric of the batches so far."""
        for step in self.steps:
            step.reset()

    def totals(self) -> tuple[float, float, float]:
        """The mean loss, the sum of the metric, and the number of examples (or their weight), since `reset`."""
        loss, metric, weight, counted = 0.0, 0.0, 0.0, 0.0
        for step in self.steps:
            of_step, measured, *weights = map(float, self._backend.to_numpy(step.totals))
            metric += measured
            if weights:
                loss, weight, counted = loss + of_step, weight + weights[0], counted + weights[1]
            else:
                loss += of_step * step.batch_size
        if weight or counted:
            return loss / (weight or 1), metric, counted
        return loss / self._m, metric, float(self._m)

    def __iter__(self) -> Iterator[Step]:
        self._begin()
        if self._feeder is not None:
            yield from self._fed(self._feeder)
            return
        for step in self._each():
            step()
            yield step

    def run(self, one_by_one: bool = False) -> Generator[int, None, None]:
        """Run all batches, several by one call where that is short; gives how many each call ran."""
        if self._feeder is not None or one_by_one:
            for step in self:
                self.last = step
                yield 1
            return
        self._begin()
        wait = self._backend.mark()
        for step, left in self._in_turn:
            self.last = step
            while left:
                times = min(self._at_once, left)
                start = perf_counter()
                step(times)
                # one call is always queued, and no more: a device has work, and time tells how long it takes
                wait()
                wait = self._backend.mark()
                if times == self._at_once and perf_counter() - start < SHORT_CALL:
                    self._at_once = min(2 * times, MOST_STEPS)
                left -= times
                yield times

    def _begin(self) -> None:
        if self._order is not None:
            self._order.position.fill(0)

    def _each(self) -> Iterator[Step]:
        """The step of every batch."""
        return chain.from_iterable(repeat(*pair) for pair in self._in_turn)

    def _fed(self, feeder: Feeder) -> Iterator[Step]:
        order, size = self._order_on_host.reshape(self._members, self._m), self._in_turn[0][0].batch_size
        to_come = (order[:, start : start + size].reshape(-1) for start in range(0, self._m, size))
        try:
            for rows in islice(to_come, feeder.AHEAD):
                feeder.enqueue(rows)
            for step in self._each():
                with feeder.batch() as X:
                    step.array("X")[...] = X
                step()
                # the step is queued: the device has work while the host gathers
                for rows in islice(to_come, 1):
                    feeder.enqueue(rows)
                yield step
        finally:
            feeder.drain()


def batches_of(m: int, batch_size: int, accumulate: int = 1) -> list[tuple[int, bool]]:
    """The batches of a pass over m examples: the size of each, and whether its gradients wait for the next one's."""
    sizes = [batch_size] * (m // batch_size) + [m % batch_size] * (m % batch_size > 0)
    last = len(sizes)
    return [(size, number % accumulate > 0 and number < last) for number, size in enumerate(sizes, start=1)]


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
    rows = plan.buffer("rows", m, np.int64)
    buffers, batch = load(plan, examples, plan.read(rows), FED if fed else GATHERED, dtype)
    buffers["rows"] = rows
    for name, value in zip((f"loaded {name}" for name in examples.arrays()), batch, strict=True):
        if value is not None:
            buffers[name] = plan.buffer(name, value.shape, value.dtype)
            plan.store(buffers[name], value)
    return plan, buffers


def loaded(examples: Examples, found: Mapping[str, Any]) -> Examples:
    """The examples with what was loaded of them."""
    return replace(examples, scale=None, **{name: found.get(f"loaded {name}") for name in examples.arrays()})
