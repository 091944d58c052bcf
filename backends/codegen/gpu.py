"""A plan as kernels for a GPU: one for the whole step where it is small, else one a level, and products by a library.

One block runs a tiny step: its barriers cost next to nothing. A small one is run by as many blocks as the device can
have at once, which meet between levels. In anything larger the products decide, which a library makes better use of the
device for; there a level of loops is a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends.base import Array
from dnn.backends.codegen.kernels import Kernel, TooLarge
from dnn.backends.codegen.tasks import Layout, Task, loop_task
from dnn.backends.codegen.tiles import product_task, units_of
from dnn.backends.plan.fusion import Fused, Product
from dnn.backends.plan.graph import Buffer, Plan, View, fully_written, part_of
from dnn.backends.plan.levels import Job, Levels, levels_of, lifetimes
from dnn.backends.plan.order import fused_in_order

COUNTER = ALIGNMENT = 16
"""Bytes."""
LONG_SUM = 2048
"""Terms from which on a product with tiles for few of the blocks alone would keep all waiting."""
ONE_BLOCK = 1_000_000
"""Multiply-adds up to which one block runs the step."""
WHOLE = 150_000_000
"""Multiply-adds up to which one kernel runs the step, its products included."""
LOCAL = 24 * 1024
"""Bytes of a block's shared memory for temporaries, where a step is one block's; the rest is for its tasks."""
MOST_JOBS = 32
"""Of one kernel: compiling it takes about a second then."""
LARGEST = 2**31 - 2**20
"""Elements: what threads beyond the last one count up to must fit as well."""
ELEMENT = 16
"""Multiply-adds that an element of a loop counts as: it is memory that takes the time."""


@dataclass
class Launch:
    """A kernel on so many blocks."""

    kernel: Kernel
    blocks: int


class KernelPlan:
    """What runs a plan, in order: launches, and products for the library.

    `nbytes`: memory beyond what the plan was given, with the `counter` that blocks of one kernel meet at.
    `blocks`: how many the device can have at the same time. `zeros(shape, dtype)` makes memory on the device; without
    it nothing is allocated or compiled. `form` is chosen by size, or given: "block", "grid" or "launches".
    """

    def __init__(self, plan: Plan, blocks: int, zeros: Callable[..., Array] | None, form: str | None = None) -> None:
        fused = fused_in_order(plan)
        _check_sizes(fused)
        self.form = form or _form(fused, blocks)
        levels = levels_of(fused, own_products=self.form != "launches")
        if form is None and self.form != "launches" and len(levels.jobs) > MOST_JOBS:
            self.form = "launches"
            levels = levels_of(fused, own_products=False)
        own = [buffer for buffer in plan.buffers if buffer.array is None and buffer.keeps]
        slots = self._build(plan, fused, levels, blocks)
        self.nbytes = sum(buffer.nbytes for buffer in own) + sum(nbytes for nbytes, _ in slots)
        self.nbytes += COUNTER if self.form != "launches" else 0
        if zeros is None:
            return
        for buffer in own:
            buffer.array = zeros(buffer.shape, buffer.dtype)
        self.arrays: dict[Buffer, Array] = {b: b.array for b in plan.buffers if b.array is not None}
        for nbytes, buffers in slots:
            memory = zeros(nbytes, np.uint8)
            for buffer in buffers:
                self.arrays[buffer] = memory[: buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)
        self.counter = zeros(COUNTER, np.uint8) if self.form != "launches" else None

    def _build(self, plan: Plan, fused: Fused, levels: Levels, blocks: int) -> list[tuple[int, list[Buffer]]]:
        """Make the operations; gives the temporaries that need memory of the device, as `_slots`."""
        written = fully_written(levels.temporaries, (view for job in levels.jobs for view in job.writes))
        slots = _slots(levels, written)
        # for an estimate, an array need not be on the device, nor be at all
        addresses = {buffer: getattr(getattr(buffer.array, "data", None), "ptr", 0) for buffer in plan.buffers}
        unaligned = {buffer for buffer, address in addresses.items() if address % ALIGNMENT}
        if self.form != "block":
            self.operations = _operations(plan, fused, levels, Layout(unaligned), blocks, self.form)
            return slots
        local = _local(slots, written)
        try:
            self.operations = _operations(plan, fused, levels, Layout(unaligned, local), 1, self.form)
        except TooLarge:  # its tasks need what the temporaries have taken
            local = {}
            self.operations = _operations(plan, fused, levels, Layout(unaligned), 1, self.form)
        return [(nbytes, buffers) for nbytes, buffers in slots if buffers[0] not in local]

    @property
    def kernels(self) -> list[Kernel]:
        return [operation.kernel for operation in self.operations if isinstance(operation, Launch)]

    def part(self, view: View) -> Array:
        """The array that a view is of, for the library."""
        array: Any = self.arrays[view.buffer]
        return array if view == view.buffer.whole() else part_of(array, view)


def _form(fused: Fused, blocks: int) -> str:
    work = sum(_work(operation) for operation in fused.operations)
    if work <= ONE_BLOCK:
        return "block"
    for operation in fused.operations:
        if isinstance(operation, Product):
            m, n, k = operation.sizes
            if k >= LONG_SUM and 2 * units_of(m, n, blocks) < blocks:
                return "launches"  # the library shares such sums out
    return "grid" if work <= WHOLE else "launches"


def _operations(
    plan: Plan, fused: Fused, levels: Levels, layout: Layout, blocks: int, form: str
) -> list[Launch | Product]:
    def task(job: Job) -> Task:
        if job.product is not None:
            return product_task(plan, fused, job, layout, blocks)
        return loop_task(plan, fused, job, layout)

    found: list[Launch | Product] = []
    if form != "launches":
        made = [tasks for level in levels.levels if (tasks := _working(map(task, level)))]
        local = max((start + aligned(buffer.nbytes) for buffer, start in layout.local.items()), default=0)
        kernel = Kernel(made, local)
        return [Launch(kernel, min(blocks, kernel.units))] if made else []
    for level in levels.levels:
        if tasks := _working(task(job) for job in level if job.product is None):
            kernel = Kernel([tasks])
            found.append(Launch(kernel, kernel.units))
        found += [job.product for job in level if job.product is not None]
    return found


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _check_sizes(fused: Fused) -> None:
    for operation in fused.operations:
        if isinstance(operation, Product):
            sizes = [view.extent[1] for view in (operation.A, operation.B, operation.C)]
        else:
            # rows that are chosen are found by an index of their own
            sizes = [view.extent[1] for view, chosen in fused.reads(operation) if not chosen]
            sizes += [view.extent[1] for views in operation.outputs.values() for view in views]
            sizes += [operation.shape[0] * operation.shape[1]]
        if max(sizes, default=0) >= LARGEST:
            raise TooLarge(f"an array of {max(sizes)} elements: kernels take less than {LARGEST}")


def _working(tasks: Any) -> list[Task]:
    return [task for task in tasks if task.units]


def _work(operation: Any) -> int:
    if isinstance(operation, Product):
        m, n, k = operation.sizes
        return m * n * k
    return ELEMENT * operation.shape[0] * operation.shape[1]


def _slots(levels: Levels, written: set[Buffer]) -> list[tuple[int, list[Buffer]]]:
    """Memory for the temporaries: (bytes, those that share it, at different levels)."""
    alive = lifetimes(levels)
    slots: list[tuple[int, list[Buffer]]] = []
    # the largest first: what shares its memory is no larger
    for buffer in sorted(levels.temporaries, key=lambda b: -b.nbytes):
        for _, others in slots:
            if buffer in written and all(other in written and _apart(alive[other], alive[buffer]) for other in others):
                others.append(buffer)
                break
        else:
            slots.append((buffer.nbytes, [buffer]))
    return slots


def _local(slots: list[tuple[int, list[Buffer]]], written: set[Buffer]) -> dict[Buffer, int]:
    """The places of temporaries in a block's shared memory: of as many as fit."""
    found: dict[Buffer, int] = {}
    end = 0
    for nbytes, buffers in reversed(slots):
        if buffers[0] in written and end + aligned(nbytes) <= LOCAL:
            found |= dict.fromkeys(buffers, end)
            end += aligned(nbytes)
    return found


def _apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[1] < b[0] or b[1] < a[0]
