"""How threads share a plan's operations out, and where they must wait for each other.

Every operation is cut along one axis: the rows of a batch, its columns, or the elements of a flat buffer. Where two
operations are cut alike and each piece of the second needs only what the same piece of the first has done, no thread
waits: a chunk of rows goes through all layers at once, and a range of the parameters through its gradients and their
update while they are in the cache. Anything else takes a barrier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dnn.backends.plan.fusion import Fused, Loop, Operation, Product, class_of, grid, is_reduction, stripped
from dnn.backends.plan.graph import Buffer, View

ROWS, COLUMNS, ELEMENTS, WHOLE = "rows", "columns", "elements", "whole"

FEW_ROWS = 32
"""Of a thread. Below it a product is cut by columns: its inner loop needs rows to reuse what it loads of B."""
CACHED_WEIGHTS = 8_000_000
"""Elements of a product's B beyond which it is read once, by all threads together, rather than by each."""
ALIGNED = 16
"""Columns and elements are cut at multiples of it: a line of the cache, and what a product's inner loop takes."""
MIN_MACS_PER_THREAD = 1_500_000
"""Multiplications that make a thread worth its part in the barriers."""
BLOCK = 128 * 1024
"""Elements of a flat buffer in a chunk: parameters, gradients and state of so many stay in the cache between uses."""
BLOCK_ROWS = 128
"""Rows that a product in a chunk has at least: the other matrix is packed for each chunk anew."""
EVERYTHING = 1 << 40
"""The end of a range that is not cut: loops stop at their own."""
CHUNK_ROWS = 256
"""Rows of a chunk where there are enough of them: late threads leave work to others in such pieces."""


@dataclass(frozen=True)
class Cut:
    """The axis that an operation is cut along: `length` of it in all; of ELEMENTS, where the operation's own begin."""

    axis: str
    length: int
    offset: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return self.axis, self.length


@dataclass(frozen=True)
class Access:
    """Memory that an operation reads or writes. `own`: each piece touches only its part of it."""

    view: View
    own: bool


@dataclass(eq=False)
class Step:
    """An operation with its cut, and what it reads and writes."""

    operation: Operation
    cut: Cut
    reads: list[Access]
    writes: list[Access]
    macs: int
    phase: int = 0


@dataclass
class Section:
    steps: list[Step]
    cut: Cut
    bounds: list[int] = field(default_factory=list)


@dataclass
class Schedule:
    """Phases with a barrier between them; the sections of one are independent, and so are a section's chunks."""

    phases: list[list[Section]]
    threads: int
    in_scratch: set[Buffer]
    """Flat buffers of which only a chunk at a time exists, in the scratch of the thread that works on it."""


def schedule(fused: Fused, threads: int) -> Schedule:
    """The operations on up to so many threads; as many as have work enough of their own."""
    macs = sum(_macs(op) for op in fused.operations)
    threads = int(max(1, min(threads, macs // MIN_MACS_PER_THREAD)))
    steps: list[Step] = []
    cut_by_columns: set[tuple[Buffer, int]] = set()
    for op in fused.operations:
        step = _step(op, fused, threads, cut_by_columns)
        if step.cut.axis == COLUMNS:
            cut_by_columns.update((access.view.buffer, step.cut.length) for access in step.writes)
        steps.append(step)
    _set_phases(steps)
    phases: list[list[Section]] = [[] for _ in range(1 + max((s.phase for s in steps), default=0))]
    for step in steps:
        sections = phases[step.phase]
        for section in sections:
            if section.cut.key == step.cut.key and step.cut.axis != WHOLE:
                section.steps.append(step)
                break
        else:
            sections.append(Section([step], step.cut))
    _join_wholes(phases)
    for sections in phases:
        for section in sections:
            section.bounds = _bounds(section, threads)
        # long ones first: what is short fills the gaps at the end
        sections.sort(key=lambda section: -sum(step.macs for step in section.steps))
    return Schedule(phases, threads, _in_scratch(fused, phases))


def _set_phases(steps: Sequence[Step]) -> None:
    """Each step as early as what it has memory in common with allows."""
    touching: dict[Buffer, dict[Step, None]] = defaultdict(dict)
    for step in steps:
        touched = {access.view.buffer: None for access in (*step.reads, *step.writes)}
        earlier = dict.fromkeys(before for buffer in touched for before in touching[buffer])
        # the latest phases first: once it waits for one of them, an earlier one asks nothing more of it
        for before in sorted(earlier, key=lambda before: -before.phase):
            if before.phase < step.phase:
                break
            if (wait := _wait(before, step)) is not None:
                step.phase = before.phase + wait
        for buffer in touched:
            touching[buffer][step] = None


def _join_wholes(phases: list[list[Section]]) -> None:
    """Operations of one phase that are not cut, one after the other where they depend on each other."""
    for sections in phases:
        wholes = [section for section in sections if section.cut.axis == WHOLE]
        if len(wholes) > 1:
            wholes[0].steps = [step for section in wholes for step in section.steps]
            sections[:] = [section for section in sections if section is wholes[0] or section.cut.axis != WHOLE]


def _macs(op: Operation) -> int:
    if isinstance(op, Product):
        m, n, k = op.sizes
        return m * n * k
    return op.shape[0] * op.shape[1] * 2


def _step(op: Operation, fused: Fused, threads: int, cut_by_columns: set[tuple[Buffer, int]]) -> Step:
    if isinstance(op, Product):
        return _product_step(op, threads)
    places = fused.reads(op)
    columns = op.shape[1]
    cut = _cut(op)
    follows = op.kind == "rows" and any((view.buffer, columns) in cut_by_columns for view, _ in places)
    if follows and _has_no_rows(op, fused):
        cut = Cut(COLUMNS, columns)

    def own(view: View) -> bool:
        r, c = grid(view.shape)
        if cut.axis == ROWS:
            return r == cut.length
        if cut.axis == COLUMNS:
            return c == columns
        aligned = view.start == cut.offset and view.buffer.size == cut.length
        return cut.axis == ELEMENTS and op.kind == "rows" and aligned and view.size == columns and view.is_contiguous

    reads = [Access(view, own(view) and not gathered) for view, gathered in places]
    writes = [Access(view, True) for views in op.outputs.values() for view in views]
    return Step(op, cut, reads, writes, _macs(op))


def _has_no_rows(op: Loop, fused: Fused) -> bool:
    """Whether nothing in a loop belongs to a row as a whole, so that threads may share its columns."""
    if any(is_reduction(value) or value.op == "take" for value in fused.computed(op)):
        return False
    return op.shape[1] > 1 and all(grid(value.shape) == op.shape for value in op.outputs)


def _cut(op: Loop) -> Cut:
    if op.kind == "single":
        return Cut(WHOLE, 1)
    (root, (view, *_)) = next(iter(op.outputs.items()))
    value = stripped(root.inputs[0]) if root.op == "store" else root
    if op.kind == "columns" or class_of(value)[0] in ("range", "single") or op.shape[0] == 1 == len(view.shape):
        size = view.buffer.size
        alike = all(v.buffer.size == size and v.start == view.start for views in op.outputs.values() for v in views)
        if op.kind == "columns" and not (alike and size > op.shape[1]):
            return Cut(COLUMNS, op.shape[1])  # for itself, or of several buffers
        return Cut(ELEMENTS, size, view.start) if alike else Cut(WHOLE, 1)
    return Cut(ROWS, op.shape[0])


def _product_step(op: Product, threads: int) -> Step:
    m, n, k = op.sizes
    flat = len(op.C.buffer.shape) == 1
    few = m < FEW_ROWS * threads or n * k > CACHED_WEIGHTS
    if flat:
        cut = Cut(ELEMENTS, op.C.buffer.size, op.C.start)
        own_A = own_B = False
    elif threads > 1 and few and n >= ALIGNED * threads:
        cut, own_A, own_B = Cut(COLUMNS, n), False, op.B.strides[0] != 1 or k == 1
    else:
        cut, own_A, own_B = Cut(ROWS, m), True, False
    return Step(op, cut, [Access(op.A, own_A), Access(op.B, own_B)], [Access(op.C, True)], m * n * k)


def _wait(before: Step, step: Step) -> int | None:
    """Whether `step` waits for `before` at a barrier (1), must only come later (0), or need not care (None)."""
    found: int | None = None
    for a, b in _conflicts(before, step):
        if before.cut.axis == step.cut.axis == WHOLE or (
            before.cut.key == step.cut.key and a.own and b.own and _same_pieces(before, a.view, step, b.view)
        ):
            found = 0
        else:
            return 1
    return found


def _conflicts(before: Step, step: Step) -> Iterator[tuple[Access, Access]]:
    """Accesses to the same memory, of which at least one writes."""
    for written in before.writes:
        for access in (*step.reads, *step.writes):
            if written.view.overlaps(access.view):
                yield written, access
    for read in before.reads:
        for access in step.writes:
            if read.view.overlaps(access.view):
                yield read, access


def _same_pieces(before: Step, a: View, step: Step, b: View) -> bool:
    """Whether a chunk's part of the one view is its part of the other."""
    axis = before.cut.axis
    if axis == ELEMENTS:
        return True  # the buffer's own elements: see `_cut`
    if axis == ROWS:
        if _steps(a)[0] != _steps(b)[0]:
            return False
        return a.start == b.start or _touch_in_rows(a, b)
    return a.start == b.start and _steps(a) == _steps(b)


def _touch_in_rows(a: View, b: View) -> bool:
    """Whether of two blocks of columns only rows of the same number can have elements in common."""
    (length, a_step), (_, b_step) = _steps(a), _steps(b)
    if a_step != 1 or b_step != 1:
        return False
    distance = b.start - a.start
    return distance - a.shape[-1] >= -length and distance + b.shape[-1] <= length


def _steps(view: View) -> tuple[int, int]:
    strides = view.strides if len(view.strides) == 2 else (0, *view.strides)
    return (strides[0], strides[1]) if len(strides) == 2 else (0, 0)


# ------------------------------------------------------------------------------------------------ chunks


def _bounds(section: Section, threads: int) -> list[int]:
    cut = section.cut
    if cut.axis == WHOLE:
        return [0, EVERYTHING]
    if cut.length == 0:
        return [0, 0]
    if cut.axis == ELEMENTS:
        return _element_bounds(section, threads)
    if threads == 1 and cut.axis == COLUMNS:
        return [0, cut.length]
    if cut.axis == ROWS:
        pieces = max(threads, cut.length // CHUNK_ROWS)
        pieces = -(-pieces // threads) * threads
        if threads == 1:
            pieces = max(1, cut.length // (4 * CHUNK_ROWS))
    else:
        pieces = threads
    blocks = -(-cut.length // ALIGNED)
    return sorted({min(cut.length, blocks * piece // pieces * ALIGNED) for piece in range(pieces + 1)})


def _element_bounds(section: Section, threads: int) -> list[int]:
    """Cuts at rows of the products' results: each chunk has a block of elements, and rows enough."""
    length = section.cut.length
    products = [(s.cut.offset, *s.operation.sizes[:2]) for s in section.steps if isinstance(s.operation, Product)]
    bounds = {0, length}
    covered = 0
    for start, rows, width in sorted(products):
        per_chunk = max(BLOCK // max(width, 1), BLOCK_ROWS)
        pieces = max(1, round(rows / per_chunk))
        if rows * width * threads >= 2 * ALIGNED and length <= 2 * rows * width:
            pieces = max(pieces, threads)
        pieces = min(pieces, rows)
        bounds |= {start + rows * piece // pieces * width for piece in range(pieces)}
        covered = start + rows * width
    if not products:
        pieces = max(threads, -(-length // BLOCK)) if length >= 4096 else 1
        blocks = -(-length // ALIGNED)
        bounds |= {min(length, blocks * piece // pieces * ALIGNED) for piece in range(pieces)}
    elif length - covered > BLOCK:
        bounds.add(covered)
    found = sorted(bounds)
    # a chunk for a few biases is not worth its start
    return _merged(found, min(4096, length // (2 * threads)))


def _merged(bounds: Sequence[int], smallest: int) -> list[int]:
    found = [bounds[0]]
    for bound in bounds[1:-1]:
        if bound - found[-1] >= smallest and bounds[-1] - bound >= smallest:
            found.append(bound)
    return [*found, bounds[-1]]


def _in_scratch(fused: Fused, phases: list[list[Section]]) -> set[Buffer]:
    """Flat temporaries that only one section touches, each chunk only its own elements: the largest of each section."""
    users: dict[Buffer, list[tuple[Section, Access]]] = {b: [] for b in fused.temporaries if len(b.shape) == 1}
    for sections in phases:
        for section in sections:
            for step in section.steps:
                for access in (*step.reads, *step.writes):
                    if access.view.buffer in users:
                        users[access.view.buffer].append((section, access))
    found: dict[int, Buffer] = {}
    for buffer, touched in users.items():
        of_one = len({id(section) for section, _ in touched}) == 1
        if of_one and all(a.own and s.cut.axis == ELEMENTS and s.cut.length == buffer.size for s, a in touched):
            key = id(touched[0][0])
            if key not in found or found[key].nbytes < buffer.nbytes:
                found[key] = buffer
    return set(found.values())
