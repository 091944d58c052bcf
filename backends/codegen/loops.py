"""Loops of a plan as LLVM IR, one function each: `void f(const i64 *arguments, i8 *scratch, i64 first, i64 last)`.

    arguments   mode, offset, rows, columns; then of every stream of memory its address and what strides are not fixed
    mode        0: first and last are rows; 1: they are columns, counted from -offset
    scratch     memory of the thread that runs it: rows of values that a later pass needs, and flat buffers of which
                only the elements first..last ever exist

A loop runs over the rows of its domain, and for each row in one pass over the columns, or in several where a
reduction along the row must be known before what follows. Where no value differs by row or by column alone, all rows
are one long row. What LLVM has to know to use vectors is said: that iterations of a pass do not depend on each other,
and that the terms of a sum may be added in any order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from dnn.backends.codegen.expressions import Block, constant, is_float, literal, llvm_type, memory_type
from dnn.backends.codegen.values import LoopValues, start_of
from dnn.backends.plan.fusion import CHEAP, FREE, Fused, Loop, grid, is_fusable, is_reduction, stripped
from dnn.backends.plan.graph import Buffer, Plan, Value, View
from dnn.backends.plan.operations import ELEMENTWISE

HEADER = ("mode", "offset", "rows", "columns")
KNOWN_COLUMNS = 64
"""Up to this width a row's length is part of the code: short rows then need no code for what is left over."""
ROWS_AT_ONCE = 4
"""Rows that a reduction of columns adds up before it touches the result."""

SHORT = 16_384
"""Elements of a whole array that are reduced in microseconds however it is compiled."""

UNIFORM, COLUMN, ROW, ELEMENT = range(4)
"""How a value varies over the domain."""


@dataclass(frozen=True)
class Stream:
    """Memory that a loop reads or writes: a view, and the strides of its rows and columns.

    A stride is a number that is part of the code, "columns" (a row's length), or None: an argument.
    """

    view: View
    row: int | str | None
    column: int | str | None
    in_scratch: bool

    @property
    def strides(self) -> tuple[int, int]:
        shape, strides = self.view.shape, self.view.strides
        steps = [s if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
        return (0, 0) if not steps else (0, steps[0]) if len(steps) == 1 else (steps[0], steps[1])


@dataclass
class Kernel:
    """A loop's code, and the memory whose addresses its arguments are."""

    name: str
    text: str
    streams: list[Stream]
    sizes: list[int]
    """The arguments after the streams': lengths of the arrays that are reduced as a whole."""
    turned: bool
    """The loop is over a column: its rows take the columns' place."""
    scratch_rows: int
    """Bytes of scratch for rows that a later pass needs."""
    is_short: bool
    """So little work that optimising it takes longer than it ever saves."""

    def arguments(self, loop: Loop, mode: int, offset: int, addresses: dict[Buffer, int]) -> np.ndarray:
        rows, columns = loop.shape[::-1] if self.turned else loop.shape
        given = [1 if self.turned else mode, offset, rows, columns]
        for stream in self.streams:
            itemsize = stream.view.buffer.dtype.itemsize
            if stream.in_scratch:
                given.append(stream.view.start)
            else:
                given.append(addresses[stream.view.buffer] + stream.view.start * itemsize)
            steps = stream.strides[::-1] if self.turned else stream.strides
            given += [step for kind, step in zip((stream.row, stream.column), steps, strict=True) if kind is None]
        return np.array([*given, *self.sizes], np.int64)


class _Emitter(LoopValues):
    def __init__(self, plan: Plan, fused: Fused, loop: Loop, scratch: set[Buffer]) -> None:
        super().__init__(plan, fused, loop)
        self.scratch = scratch
        self.turned = loop.kind == "rows" and loop.shape[1] == 1 and loop.shape[0] > 1
        self.domain = loop.shape[::-1] if self.turned else loop.shape
        self.declared: dict[str, str] = {}
        self.counter = [0]
        self.entry = self.block()
        self.streams: list[Stream] = []
        self.sizes: list[int] = []
        self.uniform: dict[Value, str] = {}
        self.labels = 0
        self.spilled: dict[Value, int] = {}
        self.scratch_bytes = 0
        self.loops = 0
        self._variances: dict[Value, int] = {}

    def block(self) -> Block:
        return Block(self.declared, self.counter)

    def label(self, name: str) -> str:
        self.labels += 1
        return f"{name}{self.labels}"

    # -------------------------------------------------------------------------------- what a value is

    def spread(self, shape: tuple[int, ...]) -> int:
        rows, columns = grid(shape)
        if self.turned:
            rows, columns = columns, rows
        if rows > 1:
            return ELEMENT if columns > 1 or self.domain[1] == 1 else ROW
        if columns > 1:
            return COLUMN if self.domain[0] > 1 else ELEMENT
        return UNIFORM

    def variance(self, value: Value) -> int:
        value = stripped(value)
        if value not in self._variances:
            self._variances[value] = self._variance(value)
        return self._variances[value]

    def _variance(self, value: Value) -> int:
        if value.op in ("constant", "broadcast"):
            return UNIFORM
        if self.is_leaf(value):
            return self.spread(value.shape)
        if is_reduction(value, 1):
            return ROW
        if is_reduction(value):
            return UNIFORM
        if value.op == "take":
            spread = self.spread(value.shape)
            return ROW if spread == UNIFORM and not self.turned else max(spread, ROW) if not self.turned else ELEMENT
        found = {self.variance(operand) for operand in value.inputs}
        if ELEMENT in found or {ROW, COLUMN} <= found:
            return ELEMENT
        return max(found)

    # --------------------------------------------------------------------------------------- memory

    def stream(self, view: View) -> Stream:
        shape = view.shape
        in_scratch = view.buffer in self.scratch
        plain = Stream(view, None, None, in_scratch)
        row, column = plain.strides
        if self.turned:
            row, column = column, row

        def known(step: int) -> int | str | None:
            if step in (0, 1):
                return step
            return "columns" if step == self.domain[1] and len(shape) == 2 else None

        stream = Stream(view, known(row), 1 if column == 1 else 0 if column == 0 else None, in_scratch)
        if stream not in self.streams:
            self.streams.append(stream)
        return stream

    def pointer(self, stream: Stream) -> str:
        """The register with a stream's address, loaded at the head of the function."""
        number = self.streams.index(stream)
        return f"%s{number}"

    def stride(self, stream: Stream, which: str) -> str:
        kind = stream.row if which == "row" else stream.column
        if kind is None:
            return f"%s{self.streams.index(stream)}.{which}"
        return "%columns" if kind == "columns" else str(kind)

    def head(self) -> list[str]:
        """Loads of the arguments."""
        lines: list[str] = []
        at = 0

        def argument(name: str) -> None:
            nonlocal at
            lines.append(f"  {name}.at = getelementptr inbounds i64, ptr %arguments, i64 {at}")
            lines.append(f"  {name} = load i64, ptr {name}.at")
            at += 1

        for name in HEADER:
            argument(f"%{name}" if name != "columns" else "%columns.given")
        known = self.known_columns()
        lines.append(f"  %columns = add i64 {'%columns.given' if known is None else known}, 0")
        for number, stream in enumerate(self.streams):
            argument(f"%a{number}")
            if stream.in_scratch:
                kind = memory_type(stream.view.buffer.dtype)
                lines.append(f"  %d{number} = sub i64 %a{number}, %first")
                lines.append(f"  %s{number} = getelementptr {kind}, ptr %scratch, i64 %d{number}")
            else:
                lines.append(f"  %s{number} = inttoptr i64 %a{number} to ptr")
            for which, step in (("row", stream.row), ("column", stream.column)):
                if step is None:
                    argument(f"%s{number}.{which}")
        for number in range(len(self.sizes)):
            argument(f"%size{number}")
        return lines

    def known_columns(self) -> int | None:
        """The length of a row where it is part of the code: of short rows that are reduced."""
        reduces = self.loop.kind == "rows" and any(is_reduction(value, 1) for value in self.fused.computed(self.loop))
        return self.domain[1] if reduces and self.domain[0] > 1 and self.domain[1] <= KNOWN_COLUMNS else None

    def load(self, block: Block, kind: np.dtype, pointer: str, in_loop: bool) -> str:
        return block.load(kind, f"ptr {pointer}", ", !llvm.access.group !0" if in_loop else "")

    def store(self, block: Block, kind: np.dtype, value: str, pointer: str, in_loop: bool) -> None:
        block.store(kind, value, f"ptr {pointer}", ", !llvm.access.group !0" if in_loop else "")

    # ------------------------------------------------------------------------------------ expressions

    def uniform_value(self, value: Value) -> str:
        """A number that the whole loop shares, computed at its head."""
        value = stripped(value)
        if value not in self.uniform:
            if value.op == "constant":
                self.uniform[value] = constant(value)
            elif value.op == "broadcast":
                self.uniform[value] = constant(value.inputs[0])
            elif value.op == "iota":
                self.uniform[value] = literal(value.dtype.type(0))
            elif self.is_leaf(value):
                view = self.fused.place(value)
                assert view is not None
                self.uniform[value] = self.load(self.entry, value.dtype, self.pointer(self.stream(view)), False)
            elif is_reduction(value):
                self.uniform[value] = self.whole_reduction(value)
            else:
                expanded = self.expand(value)
                if expanded is not value:
                    self.uniform[value] = self.uniform_value(expanded)
                else:
                    operands = [self.uniform_value(operand) for operand in value.inputs]
                    self.uniform[value] = self.entry.operation(value, operands)
        return self.uniform[value]

    def row_number(self, block: Block, i: str, index: Value) -> str:
        """The row that `take` chooses for row i: an element of a flat array, in memory or computed here."""
        index = stripped(index)
        if index.op == "iota":
            return block.cast(i, np.dtype(np.int64), index.dtype)
        if index.size == 1 and (self.is_leaf(index) or not index.inputs):
            return self.uniform_value(index)
        if self.is_leaf(index):
            rows = self.fused.place(index)
            assert rows is not None
            return self.load(block, index.dtype, self.row_of_column(block, rows, i), False)
        if index.op == "reshape":  # of rows taken from a column
            (taken,) = index.inputs
            source = self.fused.place(taken.inputs[0])
            assert source is not None
            number = self.row_number(block, i, taken.inputs[1])
            return self.load(block, index.dtype, self.row_of_column(block, source, number), False)
        return block.operation(index, [self.row_number(block, i, operand) for operand in index.inputs])

    def row_of_column(self, block: Block, view: View, number: str) -> str:
        """The address of an element of a flat array, or of a matrix of one column."""
        assert max(view.shape) == view.size, view
        stream = Stream(view, max(Stream(view, None, None, False).strides), 0, view.buffer in self.scratch)
        if stream not in self.streams:
            self.streams.append(stream)
        offset = block.do(f"mul i64 {number}, {self.stride(stream, 'row')}")
        return block.do(f"getelementptr {memory_type(view.buffer.dtype)}, ptr {self.pointer(stream)}, i64 {offset}")

    def counted(self, value: Value, row: Block, element: Block, i: str, j: str) -> str:
        """An element of `arange`, in the order of its indices; what all of a row share goes to `row`."""
        rows, columns = grid(value.shape)
        at = j if columns > 1 else "0"
        if rows > 1:
            at = element.do(f"add i64 {row.do(f'mul i64 {i}, {columns}')}, {at}")
        return element.cast(at, np.dtype(np.int64), value.dtype)

    # ------------------------------------------------------------------------------------- reductions

    def combine(self, block: Block, op: str, kind: np.dtype, total: str, value: str, into: str | None = None) -> str:
        """One more term. Sums may be taken in any order: the vector units have several going."""
        name = llvm_type(kind)
        if op == "sum":
            return block.do(f"{'fadd reassoc contract' if is_float(kind) else 'add'} {name} {total}, {value}")
        if is_float(kind):
            return block.call("maximum" if op == "max" else "minimum", name, total, value)
        return block.extreme("maximum" if op == "max" else "minimum", kind, total, value)

    def loop_metadata(self, reduces: bool) -> str:
        """What LLVM may know of a pass."""
        self.loops += 1
        return f"!llvm.loop !{100 + self.loops}" if not reduces else f"!llvm.loop !{1000 + self.loops}"

    def whole_reduction(self, value: Value) -> str:
        """A reduction of a whole array, at the head: its own loop over rows and columns."""
        source, entry = stripped(value.inputs[0]), self.entry
        rows, columns = grid(source.shape)
        inner = _Inner(self, (rows, columns), source)
        contiguous = inner.is_flat()
        lengths = [1, rows * columns] if contiguous else [rows, columns]
        names = []
        for length in lengths:
            names.append(f"%size{len(self.sizes)}")
            self.sizes.append(length)
        n_rows, n_columns = ("1", names[1]) if contiguous else names
        kind = llvm_type(value.dtype)
        before, row, body, done, end = (self.label(n) for n in ("w.pre", "w.row", "w.body", "w.done", "w.end"))
        start = start_of(value.op, value.dtype)
        i, j, total, row_total, result = (entry.fresh() for _ in range(5))
        # first, since it adds to the head what all terms share
        row_block, element = self.block(), self.block()
        term = inner.term(row_block, element, i, j)
        entry.line(f"br label %{before}")
        entry.lines.append(f"{before}:")
        empty = entry.do(f"icmp sle i64 {n_columns}, 0")
        no_rows = entry.do(f"icmp sle i64 {n_rows}, 0")
        entry.line(f"br i1 {entry.do(f'or i1 {empty}, {no_rows}')}, label %{end}, label %{row}")
        entry.lines.append(f"{row}:")
        i_next = f"{i}.next"
        entry.line(f"{i} = phi i64 [ 0, %{before} ], [ {i_next}, %{done} ]")
        entry.line(f"{row_total} = phi {kind} [ {start}, %{before} ], [ {total}.next, %{done} ]")
        entry.lines += row_block.lines
        entry.line(f"br label %{body}")
        entry.lines.append(f"{body}:")
        entry.line(f"{j} = phi i64 [ 0, %{row} ], [ {j}.next, %{body} ]")
        entry.line(f"{total} = phi {kind} [ {row_total}, %{row} ], [ {total}.next, %{body} ]")
        entry.lines += element.lines
        added = self.combine(entry, value.op, value.dtype, total, term)
        entry.lines[-1] = entry.lines[-1].replace(f"{added} =", f"{total}.next =")
        entry.line(f"{j}.next = add nuw nsw i64 {j}, 1")
        entry.line(f"{j}.more = icmp slt i64 {j}.next, {n_columns}")
        entry.line(f"br i1 {j}.more, label %{body}, label %{done}, {self.loop_metadata(False)}")
        entry.lines.append(f"{done}:")
        entry.line(f"{i_next} = add nuw nsw i64 {i}, 1")
        entry.line(f"{i}.more = icmp slt i64 {i_next}, {n_rows}")
        entry.line(f"br i1 {i}.more, label %{row}, label %{end}")
        entry.lines.append(f"{end}:")
        entry.line(f"{result} = phi {kind} [ {start}, %{before} ], [ {total}.next, %{done} ]")
        return result

    # ------------------------------------------------------------------------------------------ result

    def finish(self, body: list[str]) -> Kernel:
        # the streams are known once everything is emitted
        lines = [*self.head(), *self.entry.lines, *body]
        metadata = ["!0 = distinct !{}", '!1 = !{!"llvm.loop.parallel_accesses", !0}']
        metadata += ['!2 = !{!"llvm.loop.interleave.count", i32 4}']
        text = "\n".join(lines)
        for number in range(1, self.loops + 1):
            for base, more in ((100, ""), (1000, ", !2")):
                if f"!llvm.loop !{base + number}" in text:
                    metadata.append(f"!{base + number} = distinct !{{!{base + number}, !1{more}}}")
        text = f"(ptr noalias %arguments, ptr noalias %scratch, i64 %first, i64 %last) {{\nentry:\n{text}\n}}\n"
        shared = "\n".join([*sorted(self.declared.values()), *metadata])
        digest = hashlib.sha256((text + shared).encode()).hexdigest()[:16]
        # metadata is numbered by module: every kernel is a module's worth of text
        return Kernel(
            f"loop_{digest}",
            f"define void @loop_{digest}{text}\x00{shared}",
            self.streams,
            self.sizes,
            self.turned,
            self.scratch_bytes,
            self.loop.kind == "single" and all(size <= SHORT for size in self.sizes),
        )


class _Inner:
    """The terms of a reduction of a whole array: elementwise, over a domain of its own."""

    def __init__(self, emitter: _Emitter, domain: tuple[int, int], source: Value) -> None:
        self.emitter, self.domain, self.source = emitter, domain, source

    def _leaves(self, value: Value) -> list[Value]:
        value = stripped(value)
        if self.emitter.is_leaf(value):
            return [value]
        assert is_fusable(value) and value.op not in ("sum", "max", "min", "argmax", "take"), value
        return [leaf for operand in value.inputs for leaf in self._leaves(operand)]

    def is_flat(self) -> bool:
        for leaf in self._leaves(self.source):
            view = self.emitter.fused.place(leaf)
            if leaf.size > 1 and (view is None or grid(leaf.shape) != self.domain or not view.is_contiguous):
                return False
        return True

    def term(self, row: Block, element: Block, i: str, j: str) -> str:
        emitter, flat = self.emitter, self.is_flat()
        known: dict[Value, str] = {}

        def emit(value: Value) -> str:
            value = stripped(value)
            if value in known:
                return known[value]
            if (value.size == 1 and (value.op in FREE or emitter.is_leaf(value))) or value.op == "broadcast":
                known[value] = emitter.uniform_value(value)
            elif value.op == "iota":
                known[value] = emitter.counted(value, row, element, i, j)
            elif emitter.is_leaf(value):
                view = emitter.fused.place(value)
                assert view is not None
                plain = Stream(view, None, None, view.buffer in emitter.scratch)
                steps = (0, 1) if flat else plain.strides
                kinds = [step if step in (0, 1) else None for step in steps]
                stream = Stream(view, kinds[0], kinds[1], plain.in_scratch)
                if stream not in emitter.streams:
                    emitter.streams.append(stream)
                kind = memory_type(value.dtype)
                at_row = row.do(f"mul i64 {i}, {emitter.stride(stream, 'row')}")
                base = row.do(f"getelementptr {kind}, ptr {emitter.pointer(stream)}, i64 {at_row}")
                at = element.do(f"mul i64 {j}, {emitter.stride(stream, 'column')}")
                known[value] = emitter.load(
                    element, value.dtype, element.do(f"getelementptr {kind}, ptr {base}, i64 {at}"), True
                )
            else:
                expanded = emitter.expand(value)
                if expanded is not value:
                    known[value] = emit(expanded)
                else:
                    known[value] = element.operation(value, [emit(operand) for operand in value.inputs])
            return known[value]

        return emit(self.source)


class _Rows:
    """What is computed for one row of the domain: the row's own values, and passes over its elements."""

    def __init__(self, emitter: _Emitter, i: str) -> None:
        self.emitter, self.i = emitter, i
        self.rows: dict[int, Block] = {}
        self.row_values: dict[Value, str] = {}
        self.row_pointers: dict[object, str] = {}

    def block(self, level: int) -> Block:
        """What is done for the row before the pass of this number."""
        if level not in self.rows:
            self.rows[level] = self.emitter.block()
        return self.rows[level]

    def base(self, stream: Stream) -> str:
        """The address of the row's first element."""
        if stream not in self.row_pointers:
            emitter, block = self.emitter, self.block(0)
            pointer = emitter.pointer(stream)
            if stream.row != 0:
                at = block.do(f"mul i64 {self.i}, {emitter.stride(stream, 'row')}")
                pointer = block.do(f"getelementptr {memory_type(stream.view.buffer.dtype)}, ptr {pointer}, i64 {at}")
            self.row_pointers[stream] = pointer
        return self.row_pointers[stream]

    def taken_base(self, value: Value) -> tuple[Stream, str]:
        """The address of the row that `take` chooses for this one."""
        emitter, block = self.emitter, self.block(0)
        source = emitter.fused.place(value.inputs[0])
        assert source is not None
        stream = emitter.stream(source)
        key = value, "taken"
        if key not in self.row_pointers:
            number = emitter.row_number(block, self.i, value.inputs[1])
            offset = block.do(f"mul i64 {number}, {emitter.stride(stream, 'row')}")
            kind = memory_type(source.buffer.dtype)
            self.row_pointers[key] = block.do(f"getelementptr {kind}, ptr {emitter.pointer(stream)}, i64 {offset}")
        return stream, self.row_pointers[key]

    def value(self, value: Value) -> str:
        """A value of the row's own."""
        value = stripped(value)
        emitter = self.emitter
        if emitter.variance(value) == UNIFORM:
            return emitter.uniform_value(value)
        if value not in self.row_values:
            if value.op == "take" and not emitter.is_leaf(value):
                _, base = self.taken_base(value)
                self.row_values[value] = emitter.load(self.block(0), value.dtype, base, False)
            elif value.op == "iota":
                self.row_values[value] = emitter.counted(value, self.block(0), self.block(0), self.i, "0")
            elif emitter.is_leaf(value):
                view = emitter.fused.place(value)
                assert view is not None
                base = self.base(emitter.stream(view))
                self.row_values[value] = emitter.load(self.block(0), value.dtype, base, False)
            else:
                expanded = emitter.expand(value)
                if expanded is not value:
                    self.row_values[value] = self.value(expanded)
                else:
                    operands = [self.value(operand) for operand in value.inputs]
                    block = self.block(emitter.level(value))
                    self.row_values[value] = block.operation(value, operands)
        return self.row_values[value]


class _Pass:
    """One pass over the columns of a row."""

    def __init__(self, rows: _Rows, number: int, j: str) -> None:
        self.rows, self.number, self.j = rows, number, j
        self.emitter = rows.emitter
        self.body = self.emitter.block()
        self.known: dict[Value, str] = {}

    def at(self, stream: Stream, base: str | None = None) -> str:
        base = base or self.rows.base(stream)
        kind = memory_type(stream.view.buffer.dtype)
        column = self.emitter.stride(stream, "column")
        j = self.j if column == "1" else self.body.do(f"mul i64 {self.j}, {column}")
        return self.body.do(f"getelementptr {kind}, ptr {base}, i64 {j}")

    def value(self, value: Value) -> str:
        """An element of a value, as this pass has it."""
        value = stripped(value)
        emitter = self.emitter
        variance = emitter.variance(value)
        if variance == UNIFORM:
            return emitter.uniform_value(value)
        if variance == ROW:
            return self.rows.value(value)
        if value not in self.known:
            self.known[value] = self._element(value)
        return self.known[value]

    def _element(self, value: Value) -> str:
        emitter, body = self.emitter, self.body
        if value.op == "iota":
            i = self.j if emitter.turned else self.rows.i
            return emitter.counted(value, body if emitter.turned else self.rows.block(0), body, i, self.j)
        if value.op == "take" and not emitter.is_leaf(value):
            if emitter.turned:
                return self._taken_one_by_one(value)
            stream, base = self.rows.taken_base(value)
            return emitter.load(body, value.dtype, self.at(stream, base), True)
        if emitter.is_leaf(value):
            view = emitter.fused.place(value)
            assert view is not None
            return emitter.load(body, value.dtype, self.at(emitter.stream(view)), True)
        if emitter.level(value) < self.number:
            # an earlier pass has computed it: from where it was stored, or again where that costs little
            if value in emitter.loop.outputs:
                (view, *_) = emitter.loop.outputs[value]
                return emitter.load(body, value.dtype, self.at(emitter.stream(view)), True)
            if value in emitter.spilled:
                return emitter.load(body, value.dtype, self.spill_place(value), True)
        expanded = emitter.expand(value)
        if expanded is not value:
            return self.value(expanded)
        return body.operation(value, [self.value(operand) for operand in value.inputs])

    def _taken_one_by_one(self, value: Value) -> str:
        emitter, body = self.emitter, self.body
        source = emitter.fused.place(value.inputs[0])
        assert source is not None
        number = emitter.row_number(body, self.j, value.inputs[1])
        return emitter.load(body, value.dtype, emitter.row_of_column(body, source, number), True)

    def spill_place(self, value: Value) -> str:
        kind = memory_type(value.dtype)
        base = self.emitter.spilled[value]
        start = self.body.do(f"getelementptr i8, ptr %scratch, i64 {base}")
        return self.body.do(f"getelementptr {kind}, ptr {start}, i64 {self.j}")


def _expensive(emitter: _Emitter, value: Value) -> bool:
    """Whether computing an element again costs more than a load."""
    value = stripped(value)
    if emitter.is_leaf(value) or emitter.variance(value) in (UNIFORM, ROW) or value in emitter.spilled:
        return False
    if value.op in ELEMENTWISE and ELEMENTWISE[value.op].cost > CHEAP:
        return True
    return any(_expensive(emitter, operand) for operand in value.inputs)


def _elements_needed(emitter: _Emitter, roots: list[Value], later: int) -> list[Value]:
    """The elements computed for `roots` in pass `later` by walking down to what an earlier pass has."""
    found, stack = [], list(roots)
    seen: set[Value] = set()
    while stack:
        value = stripped(stack.pop())
        if value in seen or emitter.is_leaf(value) or emitter.variance(value) in (UNIFORM, ROW):
            continue
        seen.add(value)
        if emitter.level(value) < later:
            found.append(value)
            continue
        stack.extend(value.inputs)
    return found


def _rows_kernel(emitter: _Emitter) -> Kernel:
    loop = emitter.loop
    outputs = [
        (value if value.op != "store" else stripped(value.inputs[0]), views) for value, views in loop.outputs.items()
    ]
    roots = [value for value, _ in outputs]
    reductions: list[Value] = []
    stack, seen = list(roots), set()
    while stack:
        value = stripped(stack.pop())
        if value in seen:
            continue
        seen.add(value)
        if is_reduction(value, 1) and not emitter.is_leaf(value):
            reductions.append(value)
            if value.op == "argmax":
                stack.append(emitter.largest(value))
        if not emitter.is_leaf(value):
            stack.extend(value.inputs)
    # the pass that feeds a reduction
    feeds = {value: emitter.level(value) - 1 for value in reductions}
    element_outputs: list[tuple[Value, list[View]]] = []
    row_outputs: list[tuple[Value, list[View]]] = []
    for value, views in outputs:
        by_row = emitter.domain[1] > 1 and not emitter.turned and grid(value.shape)[1] == 1
        (row_outputs if by_row else element_outputs).append((value, views))
    store_pass = {value: emitter.level(value) for value, _ in element_outputs}
    last = max([*feeds.values(), *store_pass.values()], default=0)
    multiple = last > 0
    flat = (
        not multiple and not reductions and not row_outputs and not emitter.turned and emitter.domain[0] > 1
        and _is_flat(emitter, roots)
    )  # fmt: skip
    # what several passes need and is dear is kept in scratch
    spill_pass: dict[Value, int] = {}
    for number in range(1, last + 1):
        wanted = [v for v in reductions if feeds[v] == number]
        wanted = [v.inputs[0] for v in wanted] + [v for v, _ in element_outputs if store_pass[v] == number]
        for value in _elements_needed(emitter, wanted, number):
            if value not in emitter.loop.outputs and value not in emitter.spilled and _expensive(emitter, value):
                emitter.spilled[value] = emitter.scratch_bytes
                size = -(-emitter.domain[1] * value.dtype.itemsize // 64) * 64
                emitter.scratch_bytes += size
                spill_pass[value] = emitter.level(value)
    rows = _Rows(emitter, "%i")
    code: list[list[str]] = []
    for number in range(last + 1):
        j = f"%j{number}"
        this = _Pass(rows, number, j)
        feeding = [value for value in reductions if feeds[value] == number]
        terms = {}
        for value in feeding:
            term = this.value(value.inputs[0])
            if value.op == "argmax":
                largest = rows.value(emitter.largest(value))
                kind = value.inputs[0].dtype
                same = this.body.do(f"fcmp ueq {llvm_type(kind)} {term}, {largest}") if kind.kind == "f" else (
                    this.body.do(f"icmp eq {llvm_type(kind)} {term}, {largest}"))  # fmt: skip
                term = this.body.do(f"select i1 {same}, i64 {j}, i64 {np.iinfo(np.int64).max}")
            terms[value] = term
        for value, kept in spill_pass.items():
            if kept == number:
                emitter.store(this.body, value.dtype, this.value(value), this.spill_place(value), True)
        # all is read before anything is written: a result may take the place of an operand
        results = [(value, this.value(value), views) for value, views in element_outputs if store_pass[value] == number]
        for value, computed, views in results:
            for view in views:
                emitter.store(this.body, value.dtype, computed, this.at(emitter.stream(view)), True)
        done = f"p{number}.done"
        for value in feeding:
            rows.row_values[value] = f"{_accumulator(value, number)}.total"
        code.append(_pass_lines(emitter, this, number, feeding, terms, done))
    for value, views in row_outputs:
        computed = rows.value(value)
        block = rows.block(last + 1 if emitter.level(value) > last else emitter.level(value))
        for view in views:
            emitter.store(block, value.dtype, computed, rows.base(emitter.stream(view)), False)
    lines = _row_loop(rows, code, last, flat)
    return emitter.finish(lines)


def _accumulator(value: Value, number: int) -> str:
    return f"%acc{value.number}.{number}"


def _is_flat(emitter: _Emitter, roots: list[Value]) -> bool:
    """Whether every value but the uniform ones is a matrix whose rows follow each other in memory."""
    stack, seen = list(roots), set()
    while stack:
        value = stripped(stack.pop())
        if value in seen:
            continue
        seen.add(value)
        if value.op == "take" and not emitter.is_leaf(value):
            return False
        if emitter.variance(value) in (ROW, COLUMN):
            return False
        if value in emitter.loop.outputs:
            views = emitter.loop.outputs[value]
        elif emitter.is_leaf(value):
            place = emitter.fused.place(value)
            views = [place] if place is not None and value.size > 1 else []
        else:
            views = []
        if any(not view.is_contiguous for view in views):
            return False
        if not emitter.is_leaf(value):
            stack.extend(value.inputs)
    for value, views in emitter.loop.outputs.items():
        if any(not view.is_contiguous for view in views) or grid(value.shape) != emitter.domain:
            return False
    return True


def _pass_lines(
    emitter: _Emitter, this: _Pass, number: int, feeding: list[Value], terms: dict[Value, str], done: str
) -> list[str]:
    """A guarded loop over the columns, with the totals that it carries."""
    if not this.body.lines and not feeding:
        return [f"  br label %{done}", f"{done}:"]
    j, loop, check = f"%j{number}", f"p{number}.loop", f"p{number}"
    lines = [
        f"  br label %{check}",
        f"{check}:",
        f"  br i1 %some, label %{loop}, label %{done}",
        f"{loop}:",
        f"  {j} = phi i64 [ %c0, %{check} ], [ {j}.next, %{loop} ]",
    ]
    tail = emitter.block()
    results = []
    for value in feeding:
        name = _accumulator(value, number)
        is_index = value.op == "argmax"
        kind = "i64" if is_index else llvm_type(value.dtype)
        start = str(np.iinfo(np.int64).max) if is_index else start_of(value.op, value.dtype)
        lines.append(f"  {name} = phi {kind} [ {start}, %{check} ], [ {name}.next, %{loop} ]")
        op, dtype = ("min", np.dtype(np.int64)) if is_index else (value.op, value.dtype)
        added = emitter.combine(tail, op, dtype, name, terms[value])
        tail.lines[-1] = tail.lines[-1].replace(f"{added} =", f"{name}.next =", 1)
        results.append(f"  {name}.total = phi {kind} [ {start}, %{check} ], [ {name}.next, %{loop} ]")
    long_rows = emitter.known_columns() is None
    lines += [
        *this.body.lines,
        *tail.lines,
        f"  {j}.next = add nuw nsw i64 {j}, 1",
        f"  {j}.more = icmp slt i64 {j}.next, %c1",
        f"  br i1 {j}.more, label %{loop}, label %{done}, {emitter.loop_metadata(bool(feeding) and long_rows)}",
        f"{done}:",
        *results,
    ]
    return lines


def _row_loop(rows: _Rows, code: list[list[str]], last: int, flat: bool) -> list[str]:
    lines = [
        "  %by_rows = icmp eq i64 %mode, 0",
        "  %from = sub i64 %first, %offset",
        "  %to = sub i64 %last, %offset",
        "  %from.in = call i64 @llvm.smax.i64(i64 %from, i64 0)",
        "  %to.in = call i64 @llvm.smin.i64(i64 %to, i64 %columns)",
    ]
    rows.emitter.declared["smax"] = "declare i64 @llvm.smax.i64(i64, i64)"
    rows.emitter.declared["smin"] = "declare i64 @llvm.smin.i64(i64, i64)"
    if flat:  # all rows of the chunk are one row
        lines += [
            "  %flat.from = mul i64 %first, %columns",
            "  %flat.to = mul i64 %last, %columns",
            "  %r0 = add i64 0, 0",
            "  %r1 = select i1 %by_rows, i64 1, i64 %rows",
            "  %c0 = select i1 %by_rows, i64 %flat.from, i64 %from.in",
            "  %c1 = select i1 %by_rows, i64 %flat.to, i64 %to.in",
        ]
    else:
        lines += [
            "  %r0 = select i1 %by_rows, i64 %first, i64 0",
            "  %r1 = select i1 %by_rows, i64 %last, i64 %rows",
            "  %c0 = select i1 %by_rows, i64 0, i64 %from.in",
            "  %c1 = select i1 %by_rows, i64 %columns, i64 %to.in",
        ]
    lines += [
        "  %some = icmp slt i64 %c0, %c1",
        "  br label %row",
        "row:",
        "  %i = phi i64 [ %r0, %BEFORE ], [ %i.next, %row.end ]",
        "  %i.more = icmp slt i64 %i, %r1",
        "  br i1 %i.more, label %row.body, label %exit",
        "row.body:",
    ]
    for number in range(last + 2):
        if number in rows.rows:
            lines += rows.rows[number].lines
        if number <= last:
            lines += code[number]
    lines += [
        "  br label %row.end",
        "row.end:",
        "  %i.next = add nuw nsw i64 %i, 1",
        "  br label %row",
        "exit:",
        "  ret void",
    ]
    before = next((line[:-1] for line in reversed(rows.emitter.entry.lines) if line.endswith(":")), "entry")
    return [line.replace("%BEFORE", f"%{before}") for line in lines]


def _columns_kernel(emitter: _Emitter) -> Kernel:
    """Reductions of columns: several rows at a time are added up, then added to the result."""
    loop = emitter.loop
    outputs = [(value, views[0]) for value, views in loop.outputs.items()]

    def column_stream(view: View) -> Stream:
        stream = Stream(view, 0, 1, view.buffer in emitter.scratch)
        if stream not in emitter.streams:
            emitter.streams.append(stream)
        return stream

    def block_of(prefix: str, i: str, count: int) -> tuple[list[str], list[str]]:
        """What is done before and in the loop over columns, for rows i, i + 1, ..."""
        j = f"%{prefix}.j"
        before, body = emitter.block(), emitter.block()
        terms: dict[Value, list[str]] = {value: [] for value, _ in outputs}
        for k in range(count):
            row = i if count == 1 else before.do(f"add i64 {i}, {k}")
            rows = _Rows(emitter, row)
            this = _Pass(rows, 0, j)
            for value, _ in outputs:
                terms[value].append(this.value(value.inputs[0]))
            for block in rows.rows.values():
                before.lines += block.lines
            body.lines += this.body.lines
        for value, view in outputs:
            found = terms[value]
            while len(found) > 1:
                found = [_paired(emitter, body, value, a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
            stream = column_stream(view)
            place = body.do(f"getelementptr {memory_type(value.dtype)}, ptr {emitter.pointer(stream)}, i64 {j}")
            total = emitter.load(body, value.dtype, place, True)
            emitter.store(body, value.dtype, _paired(emitter, body, value, total, found[0]), place, True)
        return before.lines, body.lines

    def columns_loop(prefix: str, body: list[str], entry: str, leave: str) -> list[str]:
        j = f"%{prefix}.j"
        return [
            f"  br label %{prefix}.loop",
            f"{prefix}.loop:",
            f"  {j} = phi i64 [ %c0, %{entry} ], [ {j}.next, %{prefix}.loop ]",
            *body,
            f"  {j}.next = add nuw nsw i64 {j}, 1",
            f"  {j}.more = icmp slt i64 {j}.next, %c1",
            f"  br i1 {j}.more, label %{prefix}.loop, label %{leave}, {emitter.loop_metadata(False)}",
        ]

    emitter.declared["smax"] = "declare i64 @llvm.smax.i64(i64, i64)"
    emitter.declared["smin"] = "declare i64 @llvm.smin.i64(i64, i64)"
    clear = emitter.block()
    for value, view in outputs:
        kind = memory_type(value.dtype)
        place = f"getelementptr {kind}, ptr {emitter.pointer(column_stream(view))}, i64"
        if value.op == "sum":  # zeros, at once
            emitter.declared["memset"] = "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"
            count = clear.do("sub i64 %c1, %c0")
            size = clear.do(f"mul i64 {count}, {value.dtype.itemsize}")
            clear.line(f"call void @llvm.memset.p0.i64(ptr {clear.do(f'{place} %c0')}, i8 0, i64 {size}, i1 false)")
    starts = emitter.block()
    for value, view in outputs:
        if value.op != "sum":
            place = f"getelementptr {memory_type(value.dtype)}, ptr {emitter.pointer(column_stream(view))}, i64 %z.j"
            emitter.store(starts, value.dtype, start_of(value.op, value.dtype), starts.do(place), True)
    many_before, many = block_of("m", "%m.i", ROWS_AT_ONCE)
    one_before, one = block_of("o", "%o.i", 1)
    before = next((line[:-1] for line in reversed(emitter.entry.lines) if line.endswith(":")), "entry")
    assert before == "entry" or before
    lines = [
        "  %from = sub i64 %first, %offset",
        "  %to = sub i64 %last, %offset",
        "  %c0 = call i64 @llvm.smax.i64(i64 %from, i64 0)",
        "  %c1 = call i64 @llvm.smin.i64(i64 %to, i64 %columns)",
        "  %some = icmp slt i64 %c0, %c1",
        "  br i1 %some, label %clear, label %exit",
        "clear:",
        *clear.lines,
        *(columns_loop("z", starts.lines, "clear", "m.row") if starts.lines else ["  br label %m.row"]),
        "m.row:",
        f"  %m.i = phi i64 [ 0, %{'z.loop' if starts.lines else 'clear'} ], [ %m.next, %m.loop ]",
        f"  %m.next = add i64 %m.i, {ROWS_AT_ONCE}",
        "  %m.more = icmp sle i64 %m.next, %rows",
        "  br i1 %m.more, label %m.body, label %o.row",
        "m.body:",
        *many_before,
        *columns_loop("m", many, "m.body", "m.row"),
        "o.row:",
        "  %o.i = phi i64 [ %m.i, %m.row ], [ %o.next, %o.loop ]",
        "  %o.next = add i64 %o.i, 1",
        "  %o.more = icmp slt i64 %o.i, %rows",
        "  br i1 %o.more, label %o.body, label %exit",
        "o.body:",
        *one_before,
        *columns_loop("o", one, "o.body", "o.row"),
        "exit:",
        "  ret void",
    ]
    return emitter.finish(lines)


def _paired(emitter: _Emitter, block: Block, value: Value, a: str, b: str) -> str:
    if value.op == "sum":
        return block.do(f"{'fadd' if is_float(value.dtype) else 'add'} {llvm_type(value.dtype)} {a}, {b}")
    return block.extreme("maximum" if value.op == "max" else "minimum", value.dtype, a, b)


def _single_kernel(emitter: _Emitter) -> Kernel:
    stores = []
    for value, views in emitter.loop.outputs.items():
        source = stripped(value.inputs[0]) if value.op == "store" else value
        stores.append((value, emitter.uniform_value(source), views))
    for value, computed, views in stores:
        for view in views:
            emitter.store(emitter.entry, value.dtype, computed, emitter.pointer(emitter.stream(view)), False)
    emitter.entry.line("ret void")
    return emitter.finish([])


def kernel_of(plan: Plan, fused: Fused, loop: Loop, scratch: set[Buffer]) -> Kernel:
    """The code of a loop. `scratch`: the flat buffers that exist only in the scratch of each thread."""
    emitter = _Emitter(plan, fused, loop, scratch)
    make = {"rows": _rows_kernel, "columns": _columns_kernel, "single": _single_kernel}[loop.kind]
    return make(emitter)
