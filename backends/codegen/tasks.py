"""Loops of a plan as tasks for a GPU: what each thread of a block does, phase by phase.

A task is cut into units. A block of THREADS threads takes a unit and runs the phases, one after the other; between two
phases its threads meet, and what one leaves for another is in shared memory. So no phase holds a barrier, and a phase
is a plain function of the unit and the thread, which a CPU runs as well:

    void phase(i64 address, ..., i8 *local, i8 *shared, i8 *frame, i32 unit, i32 thread, i32 turn)

`local` is shared memory that holds whole buffers for as long as the kernel runs, if that is a single block. `frame` is
memory of the thread's own, which lives through the phases of a unit (registers, once all is in one kernel);
`turn` counts the repetitions of phases that are repeated. Shapes and strides are part of the code, addresses are not.
Reductions add in one order, whatever the number of blocks: terms a team of threads apart, then thread by thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dnn.backends.codegen.expressions import Block, constant, is_float, llvm_type, memory_type
from dnn.backends.codegen.values import LoopValues, start_of
from dnn.backends.plan.fusion import FREE, Fused, Loop, grid, is_reduction, stripped
from dnn.backends.plan.graph import Buffer, Plan, Value, View
from dnn.backends.plan.levels import Job

THREADS = 256
"""Of a block."""
TEAM = 16
"""Threads that share a row that is reduced, and totals of a block's threads that each thread adds up by itself."""
LONG_ROW = 512
"""Columns from which on a row that is reduced is the whole block's."""
VECTOR = 16
"""Bytes that a thread loads at once, of the largest dtype."""
GLOBAL, SHARED = "ptr addrspace(1)", "ptr addrspace(3)"


@dataclass
class Repeat:
    """Phases that are run `turns` times."""

    turns: int
    phases: list[str]


@dataclass
class Task:
    """`body` has the phases, each as the text of a function; `local` the places of buffers in memory of that name."""

    units: int
    local: Mapping[Buffer, int] = field(default_factory=dict)
    body: list[str | Repeat] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    """Whose addresses a phase is given."""
    shared: int = 0
    frame: int = 0
    declared: dict[str, str] = field(default_factory=dict)

    def address(self, buffer: Buffer) -> str:
        if buffer not in self.buffers:
            self.buffers.append(buffer)
        return f"%a{self.buffers.index(buffer)}"

    def in_shared(self, nbytes: int) -> int:
        """The place of so many bytes of a block's shared memory."""
        start, self.shared = self.shared, self.shared + -(-nbytes // 16) * 16
        return start

    def phase(self) -> Code:
        return Code(self)


class Code(Block):
    """A phase's code, written from top to bottom. Variables are memory, which LLVM turns into registers."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.declared, [0])
        self.task = task
        self.head: list[str] = []
        """Variables, and the pointers to buffers."""

    def finish(self, into: list[str | Repeat] | list[str] | None = None) -> None:
        body = "\n".join([*self.head, *self.lines])
        text = f"{{\nentry:\n{body}\n  br label %exit\nexit:\n  ret void\n}}\n"
        (self.task.body if into is None else into).append(text)

    # ------------------------------------------------------------------------------- control flow

    def _label(self, name: str) -> str:
        self._counter[0] += 1
        return f"{name}{self._counter[0]}"

    def _begin(self, label: str) -> None:
        self.lines.append(f"{label}:")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        inside, after = self._label("then"), self._label("end")
        self.line(f"br i1 {condition}, label %{inside}, label %{after}")
        self._begin(inside)
        yield
        self.line(f"br label %{after}")
        self._begin(after)

    def only_if(self, condition: str) -> None:
        """A thread that does not meet the condition is done with this phase."""
        inside = self._label("then")
        self.line(f"br i1 {condition}, label %{inside}, label %exit")
        self._begin(inside)

    @contextmanager
    def counted(self, first: str, last: str, step: int | str) -> Iterator[str]:
        """A loop from `first` to below `last`; the register with its number."""
        at = self.variable("i32", first)
        head, body, after = (self._label(name) for name in ("loop", "body", "done"))
        self.line(f"br label %{head}")
        self._begin(head)
        i = self.do(f"load i32, ptr {at}")
        self.line(f"br i1 {self.do(f'icmp slt i32 {i}, {last}')}, label %{body}, label %{after}")
        self._begin(body)
        yield i
        self.line(f"store i32 {self.do(f'add nsw i32 {i}, {step}')}, ptr {at}")
        self.line(f"br label %{head}")
        self._begin(after)

    def variable(self, kind: str, start: str) -> str:
        name = self.fresh()
        self.head.append(f"  {name} = alloca {kind}")
        self.line(f"store {kind} {start}, ptr {name}")
        return name

    # ------------------------------------------------------------------------------------- memory

    def memory(self, buffer: Buffer) -> str:
        """The pointer to a buffer, with its type, from the head of the phase."""
        if buffer in self.task.local:
            start = self.task.local[buffer]
            space, name = SHARED, f"%local.{start}"
            line = f"  {name} = getelementptr i8, {SHARED} %local, i32 {start}"
        else:
            address = self.task.address(buffer)
            space, name = GLOBAL, f"{address}.p"
            line = f"  {name} = inttoptr i64 {address} to {GLOBAL}"
        if line not in self.head:
            self.head.append(line)
        return f"{space} {name}"

    def element(self, kind: str, pointer: str, index: str | int, of: str = "i32") -> str:
        """The pointer to an element, with its type, as `pointer` has it."""
        space = pointer[: pointer.rindex(" ")]
        return f"{space} {self.do(f'getelementptr {kind}, {pointer}, {of} {index}')}"

    def shared_place(self, start: int, kind: str, index: str) -> str:
        return self.element(kind, self.element("i8", f"{SHARED} %shared", start), index)

    def frame_place(self, start: int) -> str:
        return f"ptr {self.do(f'getelementptr i8, ptr %frame, i32 {start}')}"

    # --------------------------------------------------------------------------------- arithmetic

    def add(self, a: str | int, b: str | int) -> str:
        return str(a) if b in (0, "0") else str(b) if a in (0, "0") else self.do(f"add nsw i32 {a}, {b}")

    def times(self, a: str | int, b: int) -> str:
        return str(a) if b == 1 else "0" if b == 0 else self.do(f"mul nsw i32 {a}, {b}")

    def split(self, a: str, by: int) -> tuple[str, str]:
        """(a / by, a % by)"""
        return (a, "0") if by == 1 else (self.do(f"udiv i32 {a}, {by}"), self.do(f"urem i32 {a}, {by}"))

    def below(self, a: str, b: str | int) -> str:
        return self.do(f"icmp slt i32 {a}, {b}")

    def combine(self, op: str, kind: np.dtype, a: str, b: str) -> str:
        """Two terms of a reduction, or of its totals."""
        if op == "sum":
            return self.do(f"{'fadd' if is_float(kind) else 'add'} {llvm_type(kind)} {a}, {b}")
        return self.extreme("maximum" if op == "max" else "minimum", kind, a, b)


def steps_of(view: View) -> tuple[int, int]:
    """Elements from a row to the next, and from a column to the next; 0 where there is only one."""
    steps = [s if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True)]
    return (0, 0) if not steps else (0, steps[0]) if len(steps) == 1 else (steps[0], steps[1])


@dataclass(frozen=True)
class Layout:
    """Where buffers are: `unaligned` ones begin anywhere, `local` ones at these bytes of the block's shared memory."""

    unaligned: Collection[Buffer] = ()
    local: Mapping[Buffer, int] = field(default_factory=dict)


class Values(LoopValues):
    """What a loop computes, and where its buffers are."""

    def __init__(self, plan: Plan, fused: Fused, loop: Loop, layout: Layout) -> None:
        super().__init__(plan, fused, loop)
        self.layout = layout

    def task(self, units: int) -> Task:
        return Task(units, self.layout.local)

    @property
    def outputs(self) -> list[tuple[Value, list[View]]]:
        """What is computed into memory, and where."""
        found = self.loop.outputs.items()
        return [(stripped(root.inputs[0]) if root.op == "store" else root, views) for root, views in found]

    def reductions(self) -> list[Value]:
        """The reductions of rows that are computed here, with the maxima that argmax needs."""
        found: dict[Value, None] = {}
        for value in self.fused.computed(self.loop):
            if is_reduction(value, 1):
                found[value] = None
                if value.op == "argmax":
                    found[self.largest(value)] = None
        return list(found)


class Point:
    """The values of a loop at row i and column j + k of its domain; each is computed once.

    flat    the number of that element and that of all, where the domain lies in memory as a whole
    width   columns that a thread takes at once: k counts them
    known   registers with values that are computed already; fresh: with what is stored in memory meanwhile
    bases   addresses that the points of one thread share
    """

    def __init__(
        self,
        values: Values,
        code: Code,
        i: str,
        j: str,
        k: int = 0,
        *,
        flat: tuple[str, int] | None = None,
        width: int = 1,
        known: dict[Value, str] | None = None,
        fresh: dict[View, str] | None = None,
        bases: dict[View, str] | None = None,
    ) -> None:
        self.values, self.code = values, code
        self.i, self.j, self.k, self.flat, self.width = i, j, k, flat, width
        self.known = {} if known is None else known
        self.fresh = {} if fresh is None else fresh
        self._bases = {} if bases is None else bases

    def value(self, value: Value) -> str:
        value = stripped(value)
        if value not in self.known:
            self.known[value] = self._compute(value)
        return self.known[value]

    def _compute(self, value: Value) -> str:
        code, values = self.code, self.values
        if value.op == "constant":
            return constant(value)
        if value.op == "broadcast":
            return constant(value.inputs[0])
        if value.op == "iota":
            rows, columns = grid(value.shape)
            row = code.times(self.i, columns) if rows > 1 else "0"
            column = code.add(self.j, self.k) if columns > 1 else "0"
            return code.cast(code.add(row, column), np.dtype(np.int32), value.dtype)
        if values.is_leaf(value):
            view = values.fused.place(value)
            assert view is not None
            if view in self.fresh:
                return self.fresh[view]
            return code.load(value.dtype, self.place(view), self.aligned(view))
        if value.op == "take":
            return self._taken(value)
        assert not is_reduction(value), value
        expanded = values.expand(value)
        if expanded is not value:
            return self.value(expanded)
        return code.operation(value, [self.value(operand) for operand in value.inputs])

    def _taken(self, value: Value) -> str:
        code, values = self.code, self.values
        source = values.fused.place(value.inputs[0])
        assert source is not None
        row, column = steps_of(source)
        number = self.row_number(value.inputs[1])
        offset = code.do(f"mul i64 {number}, {row}")
        kind = memory_type(value.dtype)
        base = code.element(kind, code.memory(source.buffer), offset, "i64")
        at = code.add(code.times(code.add(self.j, self.k), column), source.start)
        aligned = column == 1 and self.k == 0 and (row | source.start) % self.width == 0
        return code.load(value.dtype, code.element(kind, base, at), self._alignment(source.buffer, aligned))

    def row_number(self, index: Value) -> str:
        """The row that `take` chooses for row i: an element of a flat array, in memory or computed here."""
        index = stripped(index)
        at = Point(self.values, self.code, "0", self.i)
        at.known = {value: register for value, register in self.known.items() if value.size == 1}
        return at.number(index)

    def number(self, index: Value) -> str:
        """An element of a flat array of whole numbers, which may itself be taken from another one."""
        index = stripped(index)
        if index in self.known or self.values.is_leaf(index):
            return self.value(index)
        if index.op == "reshape" and index.inputs[0].op == "take":
            (taken,) = index.inputs
            source = self.values.fused.place(taken.inputs[0])
            assert source is not None
            number = self.number(taken.inputs[1])
            offset = self.code.do(f"mul i64 {number}, {steps_of(source)[0]}")
            start = self.code.do(f"add i64 {offset}, {source.start}")
            place = self.code.element(memory_type(index.dtype), self.code.memory(source.buffer), start, "i64")
            return self.code.load(index.dtype, place)
        return self.code.operation(index, [self.number(operand) for operand in index.inputs])

    # ------------------------------------------------------------------------------------- memory

    def place(self, view: View) -> str:
        """The pointer to the element of a view that belongs here."""
        code = self.code
        row, column = steps_of(view)
        kind = memory_type(view.buffer.dtype)
        if view not in self._bases:
            if self.flat is not None and view.is_contiguous and view.size == self.flat[1]:
                at = self.flat[0]
            else:
                at = code.add(code.times(self.i, row), code.times(self.j, column))
            self._bases[view] = code.element(kind, code.memory(view.buffer), code.add(at, view.start))
        base = self._bases[view]
        return base if self.k * column == 0 else code.element(kind, base, self.k * column)

    def aligned(self, view: View) -> str:
        """What is known of that element's address."""
        row, column = steps_of(view)
        whole = column == 1 and self.k == 0 and (row | view.start) % self.width == 0
        return self._alignment(view.buffer, whole)

    def _alignment(self, buffer: Buffer, whole: bool) -> str:
        whole = whole and buffer not in self.values.layout.unaligned
        return f", align {buffer.dtype.itemsize * (self.width if whole else 1)}"

    def store(self, value: Value, number: str, view: View) -> None:
        self.code.store(value.dtype, number, self.place(view), self.aligned(view))


# ---------------------------------------------------------------------------------------------- element by element


def _vector(views: list[View], columns: int) -> int:
    """How many columns in a row a thread takes at once: what it loads is aligned then, and within one row."""
    width = VECTOR // max([2, *(view.buffer.dtype.itemsize for view in views if view.size > 1)])
    return width if columns % width == 0 else 1


def _elements(values: Values) -> Task:
    rows, columns = values.loop.shape
    views = [view for view, _ in values.fused.reads(values.loop)]
    views += [view for _, found in values.outputs for view in found]
    width = _vector(views, columns)
    task = values.task(-(-rows * columns // (width * THREADS)))
    code = task.phase()
    number = code.add(code.times("%unit", THREADS), "%thread")
    code.only_if(code.below(number, rows * columns // width))
    flat = code.times(number, width)
    i, j = ("0", flat) if rows == 1 else code.split(flat, columns)
    bases: dict[View, str] = {}
    points = [Point(values, code, i, j, k, flat=(flat, rows * columns), width=width, bases=bases) for k in range(width)]
    # all is read before anything is written: a result may take the place of an operand
    results = [[point.value(value) for point in points] for value, _ in values.outputs]
    for (value, found), numbers in zip(values.outputs, results, strict=True):
        if grid(value.shape)[1] == 1 and columns > 1:  # a row's own, by the thread at its head
            with code.when(code.do(f"icmp eq i32 {j}, 0")):
                head = Point(values, code, i, "0")
                for view in found:
                    head.store(value, numbers[0], view)
            continue
        for view in found:
            for point, result in zip(points, numbers, strict=True):
                point.store(value, result, view)
    code.finish()
    return task


# --------------------------------------------------------------------------------------------- reductions of rows


@dataclass
class _Totals:
    """What the threads of a team leave of a reduction: a number each, and in a long row again one for each TEAM."""

    op: str
    dtype: np.dtype
    start: int
    team: int

    @property
    def last_start(self) -> int:
        return self.start if self.team <= TEAM else self.start + THREADS * self._size

    @property
    def _size(self) -> int:
        return max(self.dtype.itemsize, 4)

    @staticmethod
    def nbytes(dtype: np.dtype, team: int) -> int:
        return (THREADS + (TEAM if team > TEAM else 0)) * max(dtype.itemsize, 4)

    @property
    def register(self) -> str:
        return llvm_type(self.dtype)

    def variable(self, code: Code) -> str:
        """For one thread's part."""
        return code.variable(self.register, start_of(self.op, self.dtype))

    def _place(self, code: Code, start: int, index: str) -> tuple[str, str]:
        kind = llvm_type(self.dtype)
        kind = "i32" if kind in ("i1", "i8", "i16") else kind
        return kind, code.shared_place(start, kind, index)

    def leave(self, code: Code, number: str, index: str, start: int | None = None) -> None:
        kind, place = self._place(code, self.start if start is None else start, index)
        name = llvm_type(self.dtype)
        if kind != name:
            number = code.do(f"zext {name} {number} to {kind}")
        code.line(f"store {kind} {number}, {place}")

    def sum(self, code: Code, first: str, count: int, start: int | None = None, step: int = 1) -> str:
        """`count` numbers from `first` on, `step` apart, combined in their order."""
        total = ""
        for n in range(count):
            kind, place = self._place(code, self.start if start is None else start, code.add(first, n * step))
            found = code.do(f"load {kind}, {place}")
            name = llvm_type(self.dtype)
            if kind != name:
                found = code.do(f"trunc {kind} {found} to {name}")
            total = found if not total else code.combine(self.op, self.dtype, total, found)
        return total

    def merge(self, code: Code) -> None:
        """Of a whole block's numbers, TEAM by TEAM: the work of the first TEAM threads."""
        first = code.times("%thread", THREADS // TEAM)
        self.leave(code, self.sum(code, first, THREADS // TEAM), "%thread", self.last_start)

    def total(self, code: Code, first: str) -> str:
        """The reduction itself, where the team's numbers begin at `first`."""
        return self.sum(code, "0" if self.team > TEAM else first, TEAM, self.last_start)


def _totals(task: Task, op: str, dtype: np.dtype, team: int) -> _Totals:
    return _Totals(op, dtype, task.in_shared(_Totals.nbytes(dtype, team)), team)


def _merge(task: Task, totals: list[_Totals]) -> None:
    """The phase in which the first TEAM threads combine what all have left."""
    code = task.phase()
    code.only_if(code.below("%thread", TEAM))
    for each in totals:
        each.merge(code)
    code.finish()


def _rows(values: Values, reductions: list[Value]) -> Task:
    rows, columns = values.loop.shape
    team = THREADS if columns >= LONG_ROW else TEAM
    task = values.task(-(-rows // (THREADS // team)))
    feeds = {value: values.level(value) - 1 for value in reductions}
    index = np.dtype(np.int64)
    kept = {
        value: _totals(task, "min", index, team) if value.op == "argmax" else _totals(task, value.op, value.dtype, team)
        for value in reductions
    }
    stores = [(value, views, values.level(value)) for value, views in values.outputs]
    in_place = _replaces_own(values)
    for number in range(1 + max([*feeds.values(), *(level for *_, level in stores)])):
        feeding = [value for value in reductions if feeds[value] == number]
        storing = [(value, views) for value, views, level in stores if level == number]
        if not feeding and not storing:
            continue
        code = task.phase()
        own, lane = code.split("%thread", team)
        i = code.add(code.times("%unit", THREADS // team), own)
        code.only_if(code.below(i, rows))
        head = Point(values, code, i, "0")
        for value, totals in kept.items():
            if feeds[value] < number:
                head.known[value] = totals.total(code, code.times(own, team))
        _of_the_row(values, head, [*(value.inputs[0] for value in feeding), *(value for value, _ in storing)])
        wide = [(value, views) for value, views in storing if grid(value.shape)[1] > 1]
        sums = {value: kept[value].variable(code) for value in feeding}
        if feeding or wide:
            with code.counted(lane, str(columns), team) as j:
                point = Point(values, code, i, j, known=dict(head.known))
                for value in feeding:
                    term = point.value(value.inputs[0])
                    if value.op == "argmax":
                        term = _index_where_equal(code, values, point, value, term, j)
                    kind = kept[value].register
                    before = code.do(f"load {kind}, ptr {sums[value]}")
                    added = code.combine(kept[value].op, kept[value].dtype, before, term)
                    code.line(f"store {kind} {added}, ptr {sums[value]}")
                results = [point.value(value) for value, _ in wide]
                for (value, views), result in zip(wide, results, strict=True):
                    for view in views:
                        point.store(value, result, view)
        for value in feeding:
            kept[value].leave(code, code.do(f"load {kept[value].register}, ptr {sums[value]}"), "%thread")
        narrow = [(value, views) for value, views in storing if grid(value.shape)[1] == 1]
        if narrow and in_place:  # once all threads of the team have read what is replaced
            code.finish()
            code = task.phase()
            own, lane = code.split("%thread", team)
            i = code.add(code.times("%unit", THREADS // team), own)
            code.only_if(code.below(i, rows))
            head = Point(values, code, i, "0")
        if narrow:
            results = [head.value(value) for value, _ in narrow]
            with code.when(code.do(f"icmp eq i32 {lane}, 0")):
                for (value, views), result in zip(narrow, results, strict=True):
                    for view in views:
                        head.store(value, result, view)
        code.finish()
        if feeding and team > TEAM:
            _merge(task, [kept[value] for value in feeding])
    return task


def _replaces_own(values: Values) -> bool:
    """Whether a row's own number is written where all of the row's elements read one."""
    reads = [view for view, _ in values.fused.reads(values.loop)]
    narrow = [view for value, views in values.outputs if grid(value.shape)[1] == 1 for view in views]
    return values.loop.shape[1] > 1 and any(a.overlaps(b) for a in narrow for b in reads)


def _of_the_row(values: Values, head: Point, wanted: list[Value]) -> None:
    """Compute before the loop over columns what belongs to the row as a whole, and numbers that all share."""
    stack, seen = list(wanted), set()
    while stack:
        value = stripped(stack.pop())
        if value in seen or value in head.known or value.op in FREE:
            continue
        seen.add(value)
        if is_reduction(value):
            continue
        if grid(value.shape)[1] == 1 and value.op != "take":
            head.value(value)
        elif not values.is_leaf(value):
            stack.extend(value.inputs)


def _index_where_equal(code: Code, values: Values, point: Point, argmax: Value, term: str, j: str) -> str:
    largest = point.value(values.largest(argmax))
    dtype = argmax.inputs[0].dtype
    kind = llvm_type(dtype)
    same = code.do(f"fcmp ueq {kind} {term}, {largest}" if is_float(dtype) else f"icmp eq {kind} {term}, {largest}")
    wide = code.do(f"zext i32 {j} to i64")
    return code.do(f"select i1 {same}, i64 {wide}, i64 {np.iinfo(np.int64).max}")


# ------------------------------------------------------------------------------------------ reductions of columns


def _columns(values: Values, job: Job) -> Task:
    """Reductions of columns: threads side by side take columns, the others every lanes-th row."""
    rows, columns = values.loop.shape
    outputs = [(value, views[0]) for value, views in values.loop.outputs.items()]
    across = min(32, 1 << (columns - 1).bit_length())
    lanes = THREADS // across
    groups = -(-columns // across)
    pieces = next(iter(job.partials.values())).shape[0] if job.into_pieces else 1
    from_pieces = bool(job.partials) and not job.into_pieces
    if from_pieces:
        rows = next(iter(job.partials.values())).shape[0]
    piece = -(-rows // pieces)
    task = values.task(groups * pieces)
    kept = {value: _totals(task, value.op, value.dtype, 1) for value, _ in outputs}
    code = task.phase()
    lane, own = code.split("%thread", across)
    which, group = code.split("%unit", groups)
    j = code.add(code.times(group, across), own)
    code.only_if(code.below(j, columns))
    sums = {value: kept[value].variable(code) for value, _ in outputs}
    first = code.times(which, piece) if pieces > 1 else "0"
    last = _least(code, code.add(first, piece), rows) if pieces > 1 else str(rows)
    with code.counted(code.add(first, lane), last, lanes) as i:
        point = Point(values, code, i, j)
        terms = [
            _load_piece(code, job.partials[value], i, j) if from_pieces else point.value(value.inputs[0])
            for value, _ in outputs
        ]
        for (value, _), term in zip(outputs, terms, strict=True):
            _add(code, value, sums[value], term)
    for value, _ in outputs:
        kept[value].leave(code, code.do(f"load {llvm_type(value.dtype)}, ptr {sums[value]}"), "%thread")
    code.finish()
    code = task.phase()
    which, group = code.split("%unit", groups)
    j = code.add(code.times(group, across), "%thread")
    code.only_if(code.do(f"and i1 {code.below('%thread', across)}, {code.below(j, columns)}"))
    for value, view in outputs:
        total = kept[value].sum(code, "%thread", lanes, step=across)
        if job.into_pieces:
            _store_piece(code, job.partials[value], total, which, j)
        else:
            Point(values, code, "0", j).store(value, total, view)
    code.finish()
    return task


def _least(code: Code, a: str, b: int) -> str:
    return code.do(f"select i1 {code.below(a, b)}, i32 {a}, i32 {b}")


def _add(code: Code, value: Value, variable: str, term: str) -> None:
    kind = llvm_type(value.dtype)
    total = code.combine(value.op, value.dtype, code.do(f"load {kind}, ptr {variable}"), term)
    code.line(f"store {kind} {total}, ptr {variable}")


def _load_piece(code: Code, pieces: Buffer, i: str, j: str) -> str:
    at = code.add(code.times(i, pieces.shape[1]), j)
    return code.load(pieces.dtype, code.element(memory_type(pieces.dtype), code.memory(pieces), at))


def _store_piece(code: Code, pieces: Buffer, number: str, i: str, j: str) -> None:
    at = code.add(code.times(i, pieces.shape[1]), j)
    code.store(pieces.dtype, number, code.element(memory_type(pieces.dtype), code.memory(pieces), at))


# ------------------------------------------------------------------------------------- numbers, and whole reductions


def _whole_terms(values: Values, code: Code, value: Value, first: str, last: str, step: int) -> str:
    """One thread's part of a reduction of a whole array: its terms from `first` on."""
    source = stripped(value.inputs[0])
    _, columns = grid(source.shape)
    total = code.variable(llvm_type(value.dtype), start_of(value.op, value.dtype))
    with code.counted(first, last, step) as flat:
        i, j = ("0", flat) if grid(source.shape)[0] == 1 else code.split(flat, columns)
        _add(code, value, total, Point(values, code, i, j, flat=(flat, source.size)).value(source))
    return code.do(f"load {llvm_type(value.dtype)}, ptr {total}")


def _pieces(values: Values, job: Job) -> Task:
    """The pieces of reductions of whole arrays; a block takes the same piece of each."""
    task = values.task(max(buffer.shape[0] for buffer in job.partials.values()))
    kept = {value: _totals(task, value.op, value.dtype, THREADS) for value in job.partials}
    code = task.phase()
    for value, buffer in job.partials.items():
        size, count = stripped(value.inputs[0]).size, buffer.shape[0]
        piece = -(-size // count)
        first = code.times("%unit", piece)
        last = _least(code, code.add(first, piece), size)
        total = _whole_terms(values, code, value, code.add(first, "%thread"), last, THREADS)
        kept[value].leave(code, total, "%thread")
    code.finish()
    _merge(task, list(kept.values()))
    code = task.phase()
    code.only_if(code.do("icmp eq i32 %thread, 0"))
    for value, buffer in job.partials.items():
        with code.when(code.below("%unit", buffer.shape[0])):
            _store_piece(code, buffer, kept[value].total(code, "0"), "%unit", "0")
    code.finish()
    return task


def _single(values: Values, job: Job) -> Task:
    """Numbers of the step: one block reduces, its first thread computes the rest."""
    task = values.task(1)
    reductions = [value for value in values.fused.computed(values.loop) if is_reduction(value)]
    kept = {value: _totals(task, value.op, value.dtype, THREADS) for value in reductions}
    if reductions:
        code = task.phase()
        for value in reductions:
            if value in job.partials:
                pieces = job.partials[value]
                variable = kept[value].variable(code)
                with code.counted("%thread", str(pieces.shape[0]), THREADS) as i:
                    _add(code, value, variable, _load_piece(code, pieces, i, "0"))
                total = code.do(f"load {llvm_type(value.dtype)}, ptr {variable}")
            else:
                size = stripped(value.inputs[0]).size
                total = _whole_terms(values, code, value, "%thread", str(size), THREADS)
            kept[value].leave(code, total, "%thread")
        code.finish()
        _merge(task, list(kept.values()))
    code = task.phase()
    code.only_if(code.do("icmp eq i32 %thread, 0"))
    point = Point(values, code, "0", "0")
    for value, totals in kept.items():
        point.known[value] = totals.total(code, "0")
    results = [(value, point.value(value), views) for value, views in values.outputs]
    for value, number, views in results:
        for view in views:
            point.store(value, number, view)
    code.finish()
    return task


def loop_task(plan: Plan, fused: Fused, job: Job, layout: Layout) -> Task:
    """The task of a job that is no product."""
    assert job.loop is not None
    values = Values(plan, fused, job.loop, layout)
    if job.loop.kind == "columns":
        return _columns(values, job)
    if job.loop.kind == "single":
        return _pieces(values, job) if job.into_pieces else _single(values, job)
    reductions = values.reductions()
    if job.loop.shape[0] == 0 or (job.loop.shape[1] == 0 and not reductions):
        return Task(0)
    return _rows(values, reductions) if reductions or _replaces_own(values) else _elements(values)
