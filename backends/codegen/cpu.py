"""A plan as machine code for the CPU: loops compiled, products by the BLAS, shared out among threads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from dnn.backends.codegen.blas import Mode, product_address, product_arguments
from dnn.backends.codegen.jit import compile_module
from dnn.backends.codegen.loops import Kernel, kernel_of
from dnn.backends.codegen.runtime import Operation, Program
from dnn.backends.codegen.runtime import Section as ProgramSection
from dnn.backends.plan.fusion import Fused, Product, is_reduction
from dnn.backends.plan.graph import Buffer, Plan, View, fully_written
from dnn.backends.plan.order import fused_in_order
from dnn.backends.plan.schedule import COLUMNS, ELEMENTS, ROWS, Schedule, Section, Step, schedule

FEW_COLUMNS, MANY_TERMS = 32, 1024
"""A product in float64 of so few columns and so many terms is computed as its transpose: a third faster."""

_compiled: dict[str, int] = {}


class CompiledPlan:
    """The program of a plan, and the arrays that it works on. `nbytes`: memory beyond what the plan was given.

    `empty(nbytes)` makes memory, zeroed, on a 64-byte boundary; without it nothing is allocated or compiled.
    """

    def __init__(self, plan: Plan, threads: int, zeros: Callable[..., np.ndarray] | None) -> None:
        self.fused = fused_in_order(plan)
        self.schedule = schedule(self.fused, threads)
        in_scratch = self.schedule.in_scratch
        own = [buffer for buffer in plan.buffers if buffer.array is None and buffer.keeps]
        temporaries = [buffer for buffer in self.fused.temporaries if buffer not in in_scratch]
        shared = _shared_memory(self.schedule, self.fused, temporaries)
        self.nbytes = sum(buffer.nbytes for buffer in own) + sum(64 + nbytes for nbytes, _ in shared)
        if zeros is None:
            return
        for buffer in own:
            buffer.array = zeros(buffer.shape, buffer.dtype)
        addresses = {buffer: buffer.array.ctypes.data for buffer in plan.buffers if buffer.array is not None}
        self._arrays = [buffer.array for buffer in plan.buffers if buffer.array is not None]
        for nbytes, buffers in shared:
            memory = zeros(nbytes, np.uint8)
            self._arrays.append(memory)
            addresses |= dict.fromkeys(buffers, memory.ctypes.data)
        self.program = self._program(plan, addresses)

    def _program(self, plan: Plan, addresses: dict[Buffer, int]) -> Program:
        kernels: dict[Step, Kernel] = {}
        steps = [step for sections in self.schedule.phases for section in sections for step in section.steps]
        for step in steps:
            if not isinstance(step.operation, Product):
                kernels[step] = kernel_of(plan, self.fused, step.operation, self.schedule.in_scratch)
        compile_kernels(kernels.values())
        scratch = max((kernel.scratch_rows for kernel in kernels.values()), default=0)
        phases = []
        for sections in self.schedule.phases:
            made = []
            for section in sections:
                operations = list(self._gaps(section))
                for step in section.steps:
                    if isinstance(step.operation, Product):
                        operations.append(self._product(step, addresses))
                    else:
                        mode = 0 if step.cut.axis == ROWS else 1
                        kernel = kernels[step]
                        given = kernel.arguments(step.operation, mode, step.cut.offset, addresses)
                        operations.append(Operation(_compiled[kernel.name], given))
                scratch = max(scratch, self._section_scratch(section))
                made.append(ProgramSection(operations, section.bounds))
            phases.append(made)
        program = Program(phases, scratch)
        program.threads = self.schedule.threads
        return program

    def _product(self, step: Step, addresses: dict[Buffer, int]) -> Operation:
        product = step.operation
        assert isinstance(product, Product)
        (m, n, k), dtype = product.sizes, product.value.dtype

        def operand(view: View) -> tuple[int, int, bool]:
            address = addresses[view.buffer] + view.start * dtype.itemsize
            rows, columns = view.shape
            if view.strides[1] == 1 or columns == 1:
                return address, view.strides[0] if rows > 1 else max(columns, 1), False
            return address, view.strides[1], True

        (A, lda, transA), (B, ldb, transB) = operand(product.A), operand(product.B)
        C = product.C
        in_scratch = C.buffer in self.schedule.in_scratch
        given = product_arguments(
            dtype,
            m,
            n,
            k,
            A,
            lda,
            B,
            ldb,
            0 if in_scratch else addresses[C.buffer] + C.start * dtype.itemsize,
            C.strides[0] if m > 1 else n,
            transA=transA,
            transB=transB,
            mode={ROWS: Mode.ROWS, COLUMNS: Mode.COLUMNS, ELEMENTS: Mode.ELEMENTS}[step.cut.axis],
            offset=step.cut.offset,
            to_scratch=in_scratch,
            swap=_swaps(step),
        )
        return Operation(product_address(dtype), given)

    def _gaps(self, section: Section) -> Iterable[Operation]:
        """What zeroes the elements of buffers in scratch that are read and that nothing in the plan writes."""
        for buffer in self.schedule.in_scratch:
            written = sorted(
                access.view.extent for step in section.steps for access in step.writes if access.view.buffer is buffer
            )
            if not written:
                continue
            gaps, end = [], 0
            for first, last in [*written, (buffer.size, buffer.size)]:
                if first > end:
                    gaps += [end, first]
                end = max(end, last)
            if gaps:
                given = np.array([len(gaps) // 2, buffer.dtype.itemsize, *gaps], np.int64)
                yield Operation(_gap_address(), given)

    def _section_scratch(self, section: Section) -> int:
        longest = max((b - a for a, b in zip(section.bounds, section.bounds[1:], strict=False)), default=0)
        needed = 0
        for buffer in self.schedule.in_scratch:
            if any(access.view.buffer is buffer for step in section.steps for access in step.writes):
                needed = max(needed, longest * buffer.dtype.itemsize)
        for step in section.steps:
            if isinstance(step.operation, Product) and _swaps(step):
                needed = max(needed, longest * step.operation.sizes[1] * step.operation.value.dtype.itemsize)
        return needed


def _swaps(step: Step) -> bool:
    product = step.operation
    assert isinstance(product, Product)
    m, n, k = product.sizes
    long = product.value.dtype == np.float64 and n <= FEW_COLUMNS and k > MANY_TERMS
    return long and step.cut.axis == ROWS and m > n


def compile_kernels(kernels: Iterable[Kernel]) -> None:
    """All that are not compiled yet: as one module, and one of those that are not worth optimising."""
    new = {kernel.name: kernel for kernel in kernels if kernel.name not in _compiled}
    for is_short in (False, True):
        texts = {name: kernel.text for name, kernel in new.items() if kernel.is_short == is_short}
        if texts:
            _compiled.update(compile_module(_module(texts.values()), list(texts), optimise=not is_short))


def _module(texts: Iterable[str]) -> str:
    """One module of kernels, each of which numbers its metadata from 0."""
    functions, declared, metadata = [], dict.fromkeys([""]), []
    for number, text in enumerate(texts):
        code, shared = text.split("\x00")
        renumbered = lambda part, base=10_000 * number: re.sub(r"!(\d+)", lambda m: f"!{int(m[1]) + base}", part)  # noqa: E731
        functions.append(renumbered(code))
        for line in shared.splitlines():
            if line.startswith("declare"):
                declared[line] = None
            else:
                metadata.append(renumbered(line))
    return "\n".join([*declared, *functions, *metadata])


def _gap_address() -> int:
    """Zeroes, of the flat buffer's elements first..last in scratch, those that lie in the gaps of its arguments."""
    text = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
define void @zero_gaps(ptr noalias %arguments, ptr noalias %scratch, i64 %first, i64 %last) {
entry:
  %count = load i64, ptr %arguments
  %size.at = getelementptr i64, ptr %arguments, i64 1
  %size = load i64, ptr %size.at
  br label %gap
gap:
  %n = phi i64 [ 0, %entry ], [ %n.next, %next ]
  %more = icmp slt i64 %n, %count
  br i1 %more, label %body, label %exit
body:
  %twice = mul i64 %n, 2
  %at = add i64 %twice, 2
  %from.at = getelementptr i64, ptr %arguments, i64 %at
  %to.at = getelementptr i64, ptr %from.at, i64 1
  %from = load i64, ptr %from.at
  %to = load i64, ptr %to.at
  %a = call i64 @llvm.smax.i64(i64 %from, i64 %first)
  %b = call i64 @llvm.smin.i64(i64 %to, i64 %last)
  %some = icmp slt i64 %a, %b
  br i1 %some, label %zero, label %next
zero:
  %elements = sub i64 %b, %a
  %skipped = sub i64 %a, %first
  %bytes = mul i64 %elements, %size
  %start = mul i64 %skipped, %size
  %place = getelementptr i8, ptr %scratch, i64 %start
  call void @llvm.memset.p0.i64(ptr %place, i8 0, i64 %bytes, i1 false)
  br label %next
next:
  %n.next = add i64 %n, 1
  br label %gap
exit:
  ret void
}
"""
    return compile_module(text, ["zero_gaps"], optimise=False)["zero_gaps"]


# ---------------------------------------------------------------------------------------- buffers of the plan's own


def _shared_memory(schedule: Schedule, fused: Fused, temporaries: list[Buffer]) -> list[tuple[int, list[Buffer]]]:
    """Memory for the temporaries: (bytes, those that share it, one after the other).

    In one phase chunks run at different times, so only temporaries that are cut alike can follow each other there.
    """
    positions: dict[Buffer, list[tuple[int, int, Step]]] = {buffer: [] for buffer in temporaries}
    at = 0
    for number, sections in enumerate(schedule.phases):
        for section in sections:
            for step in section.steps:
                for access in (*step.reads, *step.writes):
                    if access.view.buffer in positions:
                        positions[access.view.buffer].append((number, at, step))
                at += 1
    memories: list[tuple[int, list[Buffer]]] = []
    steps = (step for sections in schedule.phases for section in sections for step in section.steps)
    covered = fully_written(temporaries, (access.view for step in steps for access in step.writes))
    keys = {buffer: {(phase, step.cut.key) for phase, _, step in uses} for buffer, uses in positions.items()}
    for buffer in sorted(temporaries, key=lambda b: positions[b][0][1] if positions[b] else 0):
        uses = positions[buffer]
        for i, (nbytes, buffers) in enumerate(memories if uses and buffer in covered else ()):
            before = buffers[-1]
            if before not in covered or not positions[before]:
                continue
            last, first = positions[before][-1], uses[0]
            if last[0] < first[0] and 2 * nbytes >= buffer.nbytes and 2 * buffer.nbytes >= nbytes:
                memories[i] = (max(nbytes, buffer.nbytes), [*buffers, buffer])
                break
            alike = before.shape == buffer.shape and before.dtype == buffer.dtype
            one_section = alike and _is_one_section(keys[before] | keys[buffer])
            handed = one_section and last[1] == first[1] and _hands_over(fused, last[2], before, buffer)
            if one_section and (last[1] < first[1] or handed):
                memories[i] = (nbytes, [*buffers, buffer])
                break
        else:
            memories.append((buffer.nbytes, [buffer]))
    return memories


def _is_one_section(keys: set[tuple[int, tuple[str, int]]]) -> bool:
    return len(keys) == 1 and next(iter(keys))[1][0] == ROWS


def _hands_over(fused: Fused, step: Step, before: Buffer, after: Buffer) -> bool:
    """Whether an operation may write a buffer where it reads another: element by element, in a single pass."""
    if isinstance(step.operation, Product):
        return False
    if any(is_reduction(value) for value in fused.computed(step.operation)):
        return False
    read = [access for access in step.reads if access.view.buffer is before]
    written = {_layout(access.view) for access in step.writes if access.view.buffer is after}
    return all(access.own and {_layout(access.view)} == written for access in read)


def _layout(view: View) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return view.start, view.shape, view.strides
