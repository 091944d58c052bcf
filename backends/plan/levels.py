"""A plan for a machine of many blocks of threads, each of which meets the others only at barriers of the whole grid.

Operations become jobs, and jobs are put into levels: those of one level do not depend on each other and run side by
side; between two levels all blocks wait. Between kernels that barrier is the launch, within a kernel one in memory.
A loop that continues a product, element by element, becomes part of it where the product is of our own code. Sums of
many terms into few are made in two jobs: first each of several blocks adds up its piece.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dnn.backends.plan.fusion import Fused, Loop, Operation, Product, grid, is_reduction, stripped
from dnn.backends.plan.graph import Buffer, Value, View

PIECE = 4096
"""Terms of a piece of a whole array's reduction, about."""
PIECE_OF_COLUMN = 65_536
"""Terms of a piece of columns side by side, up to 32 of them."""
MOST_PIECES = 512
FEW_GROUPS = 64
"""Blocks with columns of their own that make a reduction of columns fast enough without pieces."""


@dataclass(eq=False)
class Job:
    """A product with the loops that continue it, a loop, or the pieces of a loop's reductions.

    `partials` has by reduction the buffer of its pieces, (pieces, columns): what a job with `into_pieces` writes, and
    what the loop itself then reads in place of the terms.
    """

    product: Product | None = None
    loop: Loop | None = None
    epilogue: list[Loop] = field(default_factory=list)
    keeps_product: bool = True
    """Whether the product itself reaches memory."""
    partials: dict[Value, Buffer] = field(default_factory=dict)
    into_pieces: bool = False
    reads: list[View] = field(default_factory=list)
    writes: list[View] = field(default_factory=list)
    level: int = 0


@dataclass
class Levels:
    levels: list[list[Job]]
    temporaries: list[Buffer]

    @property
    def jobs(self) -> list[Job]:
        return [job for level in self.levels for job in level]


def levels_of(fused: Fused, own_products: bool) -> Levels:
    """The jobs of a plan, by level. `own_products`: products are of our own code, and loops may become part of them."""
    jobs = [job for operation in fused.operations for job in _jobs(operation, fused)]
    if own_products:
        jobs = _with_epilogues(jobs, fused)
    temporaries = [buffer for buffer in fused.temporaries if _is_touched(buffer, jobs)]
    temporaries += dict.fromkeys(buffer for job in jobs for buffer in job.partials.values())
    for position, job in enumerate(jobs):
        job.level = max((other.level + 1 for other in jobs[:position] if _conflict(other, job)), default=0)
    if not own_products:
        _delay_loops(jobs)
    levels: list[list[Job]] = [[] for _ in range(1 + max((job.level for job in jobs), default=-1))]
    for job in jobs:
        levels[job.level].append(job)
    return Levels(levels, temporaries)


def _delay_loops(jobs: list[Job]) -> None:
    """Loops that are alone with products move to the next level that has loops, if they can: a launch less."""
    last = max((job.level for job in jobs), default=0)
    for level in range(last):
        loops = [job for job in jobs if job.level == level and job.loop is not None]
        later = [job.level for job in jobs if job.level > level and job.loop is not None]
        if not loops or not later:
            continue
        waiting = [job for job in jobs if level < job.level <= min(later)]
        if not any(_conflict(job, other) for job in loops for other in waiting):
            for job in loops:
                job.level = min(later)


def _is_touched(buffer: Buffer, jobs: list[Job]) -> bool:
    return any(view.buffer is buffer for job in jobs for view in (*job.reads, *job.writes))


def _jobs(operation: Operation, fused: Fused) -> list[Job]:
    if isinstance(operation, Product):
        return [Job(product=operation, reads=[operation.A, operation.B], writes=[operation.C])]
    job = Job(loop=operation)
    job.reads = [view for view, _ in fused.reads(operation)]
    job.writes = [view for views in operation.outputs.values() for view in views]
    pieces: dict[Value, tuple[int, int]] = {}
    if operation.kind == "columns":
        rows, columns = operation.shape
        count = min(MOST_PIECES, rows * min(columns, 32) // PIECE_OF_COLUMN)
        if count > 1 and columns <= 32 * FEW_GROUPS:
            pieces = dict.fromkeys(operation.outputs, (count, columns))
    elif operation.kind == "single":
        for value in fused.computed(operation):
            if is_reduction(value):
                count = min(MOST_PIECES, -(-stripped(value.inputs[0]).size // PIECE))
                if count > 4:
                    pieces[value] = (count, 1)
    if not pieces:
        return [job]
    first = Job(loop=operation, into_pieces=True)
    for value, shape in pieces.items():
        # as exact as they are in registers
        dtype = np.dtype(np.float32) if value.dtype.itemsize == 2 and value.dtype.kind in "fV" else value.dtype
        buffer = Buffer(f"%{value.number} in pieces", shape, dtype, keeps=False)
        first.partials[value] = buffer
    first.reads = job.reads
    first.writes = [buffer.whole() for buffer in first.partials.values()]
    job.partials = first.partials
    rest = [] if operation.kind == "columns" else [view for _, view, _ in fused.leaves(operation, pieces)]
    job.reads = rest + first.writes
    return [first, job]


def _conflict(before: Job, after: Job) -> bool:
    """Whether a job must wait for another: one of them writes what the other reads or writes."""
    return any(
        a.overlaps(b)
        for written, touched in ((before.writes, [*after.reads, *after.writes]), (after.writes, before.reads))
        for a in written
        for b in touched
    )


def _with_epilogues(jobs: list[Job], fused: Fused) -> list[Job]:
    """Loops that need of a product's result only the element that they are at move into the product."""
    found: list[Job] = []
    for job in jobs:
        target = next((other for at, other in enumerate(found) if _continues(job, other, found[at + 1 :], fused)), None)
        if target is None:
            found.append(job)
            continue
        assert job.loop is not None and target.product is not None
        target.epilogue.append(job.loop)
        target.reads += [view for view in job.reads if view not in target.writes]
        target.writes += job.writes
    temporaries = set(fused.temporaries)
    for job in found:
        if job.product is not None and job.epilogue:
            C = job.product.C
            replaced = any(C in views for loop in job.epilogue for views in loop.outputs.values())
            read = any(view.overlaps(C) for other in found if other is not job for view in other.reads)
            job.keeps_product = not replaced and (read or C.buffer not in temporaries)
            if not job.keeps_product and not replaced:
                job.writes.remove(C)
    return found


def _continues(job: Job, other: Job, between: list[Job], fused: Fused) -> bool:
    """Whether a job can become part of a product: it waits for nothing else that is computed since."""
    loop, product = job.loop, other.product
    if loop is None or product is None or loop.kind != "rows" or loop.shape != grid(product.C.shape):
        return False
    if product.C not in job.reads or any(is_reduction(value) for value in fused.computed(loop)):
        return False
    if any(grid(value.shape) != loop.shape for value in loop.outputs) or any(
        _conflict(later, job) for later in between
    ):
        return False
    # an element of what is shared must be read and written by the same thread
    shared = [(a, b) for a in job.writes for b in other.reads if a.overlaps(b)]
    shared += [(a, b) for a in job.reads for b in other.writes if a.overlaps(b)]
    gathered = [view for view, chosen in fused.reads(loop) if chosen]
    in_step = all(a == b and grid(a.shape) == loop.shape and a not in gathered for a, b in shared)
    return in_step and not any(a.overlaps(b) for a in job.writes for b in (product.A, product.B))


def lifetimes(levels: Levels) -> dict[Buffer, tuple[int, int]]:
    """The first and the last level that touches each temporary."""
    found: dict[Buffer, tuple[int, int]] = {}
    temporaries = set(levels.temporaries)
    for number, level in enumerate(levels.levels):
        for job in level:
            for view in (*job.reads, *job.writes):
                if view.buffer in temporaries:
                    first, _ = found.get(view.buffer, (number, number))
                    found[view.buffer] = first, number
    return found
