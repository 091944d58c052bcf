"""Products as tasks for a GPU: a block computes a tile of C = A B, and goes on with what the plan does to C.

The threads are `groups` times `side` x `side`: each has across x across elements of the tile, and of the terms of each
sum those of its group. Turn by turn the block brings `depth` columns of A and as many rows of B to shared memory, while
it multiplies what the turn before has brought.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnn.backends.codegen.expressions import llvm_type, memory_type
from dnn.backends.codegen.tasks import SHARED, THREADS, Code, Layout, Point, Repeat, Task, Values
from dnn.backends.codegen.values import start_of
from dnn.backends.plan.fusion import Fused
from dnn.backends.plan.graph import Plan, Value, View
from dnn.backends.plan.levels import Job

BROUGHT = 4096
"""Bytes of A and of B in a turn. With more of them on the way a thread waits less, and needs more registers."""
UNROLLED = 4
"""Terms of a sum in a row, without a test for the end."""


@dataclass(frozen=True)
class Tile:
    """`size` x `size` elements, of which a thread has `across` x `across`."""

    size: int
    across: int
    cost: float
    """Of a term of all its sums, in instructions of a thread."""

    @property
    def side(self) -> int:
        """Threads along a side."""
        return self.size // self.across

    @property
    def groups(self) -> int:
        return THREADS // (self.side * self.side)


TILES = (Tile(64, 4, 18), Tile(32, 2, 6), Tile(16, 2, 1.5))


def tile_for(m: int, n: int, blocks: int) -> Tile:
    """The one with which so many blocks are done first."""
    return min(TILES, key=lambda tile: -(-_units(m, n, tile) // blocks) * tile.cost)


def _units(m: int, n: int, tile: Tile) -> int:
    return -(-m // tile.size) * -(-n // tile.size)


def units_of(m: int, n: int, blocks: int) -> int:
    return _units(m, n, tile_for(m, n, blocks))


def product_task(plan: Plan, fused: Fused, job: Job, layout: Layout, blocks: int) -> Task:
    """The task of a product and its epilogue, on a machine of so many blocks."""
    assert job.product is not None
    m, n, k = job.product.sizes
    tile = tile_for(m, n, blocks)
    across_m, across_n = -(-m // tile.size), -(-n // tile.size)
    task = Task(across_m * across_n, layout.local)
    maker = _Product(task, tile, job, across_n)
    turns = -(-k // maker.depth)
    maker.begin()
    if turns:
        task.body.append(Repeat(turns, [maker.turn(turns)]))
    if tile.groups > 1:
        maker.leave_sums()
    maker.end([Values(plan, fused, loop, layout) for loop in job.epilogue])
    return task


class _Product:
    def __init__(self, task: Task, tile: Tile, job: Job, across_n: int) -> None:
        assert job.product is not None
        self.task, self.tile, self.job, self.across_n = task, tile, job, across_n
        self.product = job.product
        self.m, self.n, self.k = job.product.sizes
        self.dtype = job.product.value.dtype
        self.kind = llvm_type(self.dtype)
        self.itemsize = 8 if self.kind == "double" else 4
        # elements side by side are loaded at once; four more a row, so that not all columns are in the same banks
        self.pitch = tile.size + 4
        # no deeper than there are terms, and a power of two
        few = 1 << (max(self.k, 4 * UNROLLED) - 1).bit_length()
        self.depth = min(few, BROUGHT // (self.itemsize * tile.size))
        self.half = self.depth * self.pitch
        self.A_start = task.in_shared(2 * self.half * self.itemsize)
        self.B_start = task.in_shared(2 * self.half * self.itemsize)
        self.sums_start = self.A_start
        task.shared = max(task.shared, THREADS * tile.across**2 * self.itemsize) if tile.groups > 1 else task.shared
        task.frame = tile.across**2 * self.itemsize

    def _corner(self, code: Code) -> tuple[str, str]:
        """The first row and column of the unit's tile."""
        down, right = code.split("%unit", self.across_n)
        return code.times(down, self.tile.size), code.times(right, self.tile.size)

    def _thread(self, code: Code) -> tuple[str, str, str]:
        """The thread's group, and its row and column among its group's."""
        group, rest = code.split("%thread", self.tile.side**2)
        row, column = code.split(rest, self.tile.side)
        return group, row, column

    def _sum(self, code: Code, a: int, b: int) -> str:
        return code.frame_place((a * self.tile.across + b) * self.itemsize)

    # ---------------------------------------------------------------------------------- loading

    def _load(self, code: Code, turn: str) -> list[tuple[str, str]]:
        """The thread's part of what a turn needs: (where in shared memory, the number)."""
        i0, j0 = self._corner(code)
        depth0 = code.times(turn, self.depth)
        found = self._load_part(code, self.product.A, i0, self.m, depth0, self.A_start, False)
        return found + self._load_part(code, self.product.B, j0, self.n, depth0, self.B_start, True)

    def _load_part(
        self, code: Code, view: View, corner: str, length: int, depth0: str, start: int, by_rows: bool
    ) -> list[tuple[str, str]]:
        along_step, depth_step = (view.strides[1], view.strides[0]) if by_rows else view.strides
        found = []
        for n in range(self.tile.size * self.depth // THREADS):
            at = code.add("%thread", n * THREADS)
            # neighbours in memory are for neighbouring threads
            along, depth = code.split(at, self.depth) if depth_step == 1 else code.split(at, self.tile.size)[::-1]
            row, term = code.add(corner, along), code.add(depth0, depth)
            inside = code.do(f"and i1 {code.below(row, length)}, {code.below(term, self.k)}")
            index = code.add(code.times(row, along_step), code.times(term, depth_step))
            index = code.add(code.do(f"select i1 {inside}, i32 {index}, i32 0"), view.start)
            place = code.element(memory_type(self.dtype), code.memory(view.buffer), index)
            number = code.load(self.dtype, place)
            zero = start_of("sum", self.dtype)
            number = code.do(f"select i1 {inside}, {self.kind} {number}, {self.kind} {zero}")
            where = code.add(code.times(depth, self.pitch), along)
            found.append((code.add(where, start // self.itemsize), number))
        return found

    def _to_shared(self, code: Code, loaded: list[tuple[str, str]], half: str) -> None:
        for where, number in loaded:
            at = code.add(where, code.times(half, self.half))
            code.line(f"store {self.kind} {number}, {code.element(self.kind, f'{SHARED} %shared', at)}")

    # ---------------------------------------------------------------------------------- phases

    def begin(self) -> None:
        code = self.task.phase()
        zero = start_of("sum", self.dtype)
        for a in range(self.tile.across):
            for b in range(self.tile.across):
                code.line(f"store {self.kind} {zero}, {self._sum(code, a, b)}")
        if self.k:
            self._to_shared(code, self._load(code, "0"), "0")
        code.finish()

    def turn(self, turns: int) -> str:
        code = self.task.phase()
        half = code.do("and i32 %turn, 1")
        # asked for before the products, needed after them
        following = code.do("add i32 %turn, 1")
        loaded = self._load(code, following) if turns > 1 else []
        group, row, column = self._thread(code)
        per_group = self.depth // self.tile.groups
        first = code.times(group, per_group)
        base = code.times(half, self.half)
        with code.counted(first, code.add(first, per_group), UNROLLED) as term:
            for n in range(UNROLLED):
                self._add_products(code, base, code.times(code.add(term, n), self.pitch), row, column)
        if loaded:
            self._to_shared(code, loaded, code.do(f"xor i32 {half}, 1"))
        texts: list[str] = []
        code.finish(texts)
        return texts[0]

    def _add_products(self, code: Code, base: str, depth: str, row: str, column: str) -> None:
        """One more term to each of the thread's sums."""
        a = self._operands(code, base, depth, row, self.A_start)
        b = self._operands(code, base, depth, column, self.B_start)
        for x, left in enumerate(a):
            for y, right in enumerate(b):
                place = self._sum(code, x, y)
                before = code.do(f"load {self.kind}, {place}")
                product = code.do(f"fmul contract {self.kind} {left}, {right}")
                added = code.do(f"fadd contract {self.kind} {before}, {product}")
                code.line(f"store {self.kind} {added}, {place}")

    def _operands(self, code: Code, base: str, depth: str, lane: str, start: int) -> list[str]:
        """The thread's elements of a row of A or B in shared memory: side by side."""
        across = self.tile.across
        at = code.add(code.add(code.add(base, depth), code.times(lane, across)), start // self.itemsize)
        first = code.element(self.kind, f"{SHARED} %shared", at)
        places = [first, *(code.element(self.kind, first, number) for number in range(1, across))]
        together = f", align {min(across * self.itemsize, 16)}"
        return [code.do(f"load {self.kind}, {place}{together if place is first else ''}") for place in places]

    def leave_sums(self) -> None:
        """Every group's sums to shared memory, for the first group to add up."""
        code = self.task.phase()
        for number in range(self.tile.across**2):
            found = code.do(f"load {self.kind}, {code.frame_place(number * self.itemsize)}")
            at = code.add("%thread", number * THREADS)
            code.line(f"store {self.kind} {found}, {code.shared_place(self.sums_start, self.kind, at)}")
        code.finish()

    def _total(self, code: Code, number: int) -> str:
        if self.tile.groups == 1:
            return code.do(f"load {self.kind}, {code.frame_place(number * self.itemsize)}")
        total = ""
        for group in range(self.tile.groups):
            at = code.add("%thread", number * THREADS + group * self.tile.side**2)
            found = code.do(f"load {self.kind}, {code.shared_place(self.sums_start, self.kind, at)}")
            total = found if not total else code.do(f"fadd {self.kind} {total}, {found}")
        return total

    def end(self, epilogue: list[Values]) -> None:
        code = self.task.phase()
        if self.tile.groups > 1:
            code.only_if(code.below("%thread", self.tile.side**2))
        i0, j0 = self._corner(code)
        _, row, column = self._thread(code)
        for x in range(self.tile.across):
            for y in range(self.tile.across):
                i = code.add(i0, code.add(code.times(row, self.tile.across), x))
                j = code.add(j0, code.add(code.times(column, self.tile.across), y))
                inside = code.do(f"and i1 {code.below(i, self.m)}, {code.below(j, self.n)}")
                with code.when(inside):
                    self._element(code, epilogue, i, j, self._total(code, x * self.tile.across + y))
        code.finish()

    def _element(self, code: Code, epilogue: list[Values], i: str, j: str, number: str) -> None:
        value, C = self.product.value, self.product.C
        # as what reads it from memory would see it
        known = {value: code.rounded(self.dtype, number) if self.dtype.itemsize == 2 else number}
        fresh = {C: known[value]}
        results: list[tuple[Point, Value, str, View]] = []
        for values in epilogue:
            point = Point(values, code, i, j, known=dict(known), fresh=dict(fresh))
            for found, views in values.outputs:
                known[found] = point.value(found)
                results += [(point, found, known[found], view) for view in views]
            fresh |= {view: known[found] for found, views in values.outputs for view in views}
        if self.job.keeps_product:
            at = code.add(code.times(i, C.strides[0]), code.add(code.times(j, C.strides[1]), C.start))
            place = code.element(memory_type(self.dtype), code.memory(C.buffer), at)
            code.store(self.dtype, known[value], place)
        for point, found, result, view in results:
            point.store(found, result, view)
