"""Steps at work on one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice, repeat
from time import perf_counter
from typing import Any

import numpy as np

from dnn.backends import Array, Backend, Feeder
from dnn.backends.plan import Buffer, Plan
from dnn.data import Examples
from dnn.data.streaming import Ahead, InTurn, Pass, Stream
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
    next two batches are gathered and copied while the device computes with this one. Where X is a `Stream` they are
    read ahead: a device is fed with them, on the host a step gathers its batch where they were read to.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Examples,
        rows: np.ndarray | None,
        batch_size: int,
        bind: Callable[[Examples, int, str, Order | None, str], Step],
        dtype: np.dtype,
        optimized: bool = True,
        goal: str = EVALUATE,
        accumulate: int = 1,
        members: int = 1,
    ) -> None:
        self._m = m = examples.m if rows is None else len(rows)
        batch_size = min(batch_size, m)
        self._backend = backend
        self._feeder: Feeder | None = None
        self._order: Order | None = None
        self._members = members if batch_size < m else 1
        self._pass: Pass | None = None
        """The order of a pass over a stream; so far that of its file where it is None."""
        self._in_order = rows
        self._ahead: Ahead | None = None
        self._fed_in_turn: InTurn | None = None
        stream = examples.X if isinstance(examples.X, Stream) else None
        if batch_size == m:
            loading = IN_PLACE
            self._order_on_host = np.arange(m) if rows is None else rows
            examples = in_place(backend, examples, self._order_on_host, dtype)
        elif stream is not None and backend.owns(np.empty(0)):
            loading = GATHERED
            sides = {name: side for name, side in examples.arrays().items() if name != "X" and side is not None}
            self._ahead = Ahead(stream, batch_size, self._members, list(sides.values()))
            rings = dict(zip(sides, self._ahead.of_sides, strict=True))
            examples = replace(examples, X=self._ahead.X, **rings)
            self._order = Order(np.arange(len(self._ahead.X)), backend.zeros(1, np.int64))
        else:
            loading = GATHERED
            # a copy: another order is written into it; on the host it is what the steps read
            self._order_on_host = np.tile(np.arange(m) if rows is None else rows, self._members)
            self._order = Order(backend.asarray(self._order_on_host), backend.zeros(1, np.int64))
            if not backend.owns(examples.X):
                loading = FED
                source = examples.X
                if stream is not None:
                    source = self._fed_in_turn = InTurn(stream, batch_size, self._members)
                self._feeder = backend.feeder(source, self._members * batch_size)
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

    def reorder(self, rows: np.ndarray | Pass) -> None:
        """Take the examples in this order from now on."""
        assert self._order is not None
        if isinstance(rows, Pass):
            self._pass, rows = rows, rows.order
        if self._ahead is not None:
            return
        self._order_on_host[...] = rows.reshape(-1)
        if self._order.rows is not self._order_on_host:
            self._order.rows[...] = self._backend.asarray(self._order_on_host)

    def _pass_of(self, stream: Stream) -> Pass:
        if self._pass is None:
            in_order = stream.in_order(self._in_order)
            order = np.broadcast_to(in_order.order, (self._members, self._m))
            self._pass = replace(in_order, order=order)
        return self._pass

    def examples_of(self, number: int) -> np.ndarray:
        """The rows of the examples that are batch `number` of a pass, from 0; of several members in turn."""
        size = self._in_turn[0][0].batch_size
        first = size * number
        if self._ahead is not None:
            return self._pass_of(self._ahead.stream).order[:, first : first + size].reshape(-1)
        return self._order_on_host.reshape(self._members, self._m)[:, first : first + size].reshape(-1)

    def return_to(self, number: int) -> None:
        """Let a step that has just run batch `number` run it again."""
        if self._order is not None:
            place = self._in_turn[0][0].batch_size * number
            self._order.position.fill(place if self._ahead is None else self._shift + place)

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
        return self._from(0)

    def run(self, one_by_one: bool = False, start: int = 0, every: int | None = None) -> Generator[int, None, None]:
        """Run the batches from `start` on, several by one call where that is short; gives how many each call ran.

        No call runs past a multiple of `every`.
        """
        if self._feeder is not None or one_by_one:
            for step in self._from(start):
                self.last = step
                yield 1
            return
        with self._begun(start):
            wait = self._backend.mark()
            done = start
            for step, left in self._left(start):
                self.last = step
                while left:
                    times = min(self._at_once, left, left if every is None else every - done % every)
                    if self._ahead is not None:
                        times = min(times, self._read(done))
                    began = perf_counter()
                    step(times)
                    # one call is always queued, and no more: a device has work, and time tells how long it takes
                    wait()
                    wait = self._backend.mark()
                    if times == self._at_once and perf_counter() - began < SHORT_CALL:
                        self._at_once = min(2 * times, MOST_STEPS)
                    left -= times
                    done += times
                    yield times

    def _from(self, start: int) -> Iterator[Step]:
        with self._begun(start):
            if self._feeder is not None:
                yield from self._fed(self._feeder, start)
                return
            for done, step in enumerate(self._each(start), start=start):
                if self._ahead is not None:
                    self._read(done)
                step()
                yield step

    @contextmanager
    def _begun(self, start: int) -> Iterator[None]:
        """Within, batches are taken from `start` on."""
        place = start * self._in_turn[0][0].batch_size
        if self._order is not None:
            self._order.position.fill(place)
        reading = self._ahead or self._fed_in_turn
        if reading is None:
            yield
            return
        self._read_to = start
        reading.start(self._pass_of(reading.stream), place)
        try:
            yield
        finally:
            reading.stop()

    def _read(self, done: int) -> int:
        """How many of the batches after `done` are there to be run: the next part of them once there is none."""
        assert self._ahead is not None and self._order is not None
        if done == self._read_to:
            part, rows = self._ahead.next()
            size = self._ahead.batch_size
            self._read_to += -(-rows // size)
            self._shift = part * self._ahead.size - done * size
            self._order.position.fill(part * self._ahead.size)
        return self._read_to - done

    def _left(self, start: int) -> Iterator[tuple[Step, int]]:
        """The steps of a pass that leaves out the first `start` batches, each with how many times in a row."""
        for step, times in self._in_turn:
            skipped = min(start, times)
            start -= skipped
            if times > skipped:
                yield step, times - skipped

    def _each(self, start: int) -> Iterator[Step]:
        """The step of every batch."""
        return chain.from_iterable(repeat(*pair) for pair in self._left(start))

    def _fed(self, feeder: Feeder, start: int) -> Iterator[Step]:
        order, size = self._order_on_host.reshape(self._members, self._m), self._in_turn[0][0].batch_size
        to_come = (order[:, first : first + size].reshape(-1) for first in range(start * size, self._m, size))
        try:
            for rows in islice(to_come, feeder.AHEAD):
                feeder.enqueue(rows)
            for step in self._each(start):
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
