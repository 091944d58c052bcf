"""A plan run operation by operation: one call of the array module for each, into memory that is assigned once.

What runs needs no memory but the assigned and reads nothing back, so a GPU can capture and replay it. `where` has no
`out=` in either library: it is made of bit operations in NumPy, of masked copies elsewhere. Sums are products with
ones, which are faster than NumPy's sums; long ones in float32 are sums of sums, or rounding would add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dnn.backends.base import Array, Backend
from dnn.backends.plan.graph import (
    Buffer,
    Plan,
    Value,
    View,
    constant_of,
    fully_written,
    is_contiguous,
    live_nodes,
    live_temporaries,
    part_of,
)
from dnn.backends.plan.operations import ELEMENTWISE

ALIGNMENT = 64
VIEWS = ("transpose", "reshape", "slice", "bitcast")
NO_CALL = (*VIEWS, "load", "constant", "iota", "broadcast", "store")
NOT_OBSERVED = "constant", "iota", "broadcast", "store"
LONG, PART = 1024, 128
"""Terms from which on a float32 sum is made of sums, and how many each of those has."""

Call = Callable[[], Any]
Observer = Callable[[Value, Array], object]


class Stepwise:
    """The calls of a plan on a backend's arrays; calling it runs them all, so many times.

    `nbytes` is the memory beyond the arrays that the plan was given. With `dry` nothing is allocated. `observe` is
    called with every value that is no constant, and the array that holds it then, once it is computed or read.
    """

    def __init__(self, plan: Plan, backend: Backend, dry: bool = False, observe: Observer | None = None) -> None:
        self._plan, self._backend, self._xp = plan, backend, backend.xp
        self._is_numpy = backend.xp is np
        live = live_nodes(plan)
        self._nodes = [node for node in plan.nodes if node in live]
        self._stores = [node for node in self._nodes if node.op == "store"]
        self._users: dict[Value, list[Value]] = {node: [] for node in self._nodes}
        for node in self._nodes:
            for value in node.inputs:
                self._users[value].append(node)
        self._memory = _Memory(backend, dry)
        self._arrays: dict[Value, Any] = {}
        self._blocks: dict[Value, int] = {}
        self._parts: dict[View, Any] = {}
        self._ones: dict[tuple[int, Any], Any] = {}
        self._calls: list[Call] = []
        self._dry = dry
        self._homes = {node: view for node in self._nodes if (view := self._home(node)) is not None}
        self._extend_homes()
        self._last = self._last_uses()
        temporaries = live_temporaries(plan)
        lent = self._lifetimes(fully_written(temporaries, (store.attributes[0] for store in self._stores)))
        self._lent: dict[Buffer, Any] = {}
        """Temporary memory of the plan's own, in blocks."""
        for buffer in plan.buffers:
            if buffer.array is None and (buffer.keeps or buffer in temporaries) and buffer not in lent:
                self._memory.fixed(buffer.nbytes)
                if not dry:
                    buffer.array = backend.zeros(buffer.shape, buffer.dtype)
        blocks: dict[Buffer, int] = {}
        for position, node in enumerate(self._nodes):
            for buffer in (buffer for buffer, (first, _) in lent.items() if first == position):
                blocks[buffer], self._lent[buffer] = self._memory.take(buffer.shape, buffer.dtype)
            self._add(node)
            if observe is not None and node.op not in NOT_OBSERVED:
                self._call(observe, node, self._arrays[node])
            self._release(position)
            for buffer in (buffer for buffer, (_, last) in lent.items() if last == position):
                self._memory.give_back(blocks[buffer])
        self.nbytes = self._memory.nbytes
        # the graph has served; what it refers to would live as long as this
        del self._nodes, self._users, self._stores, self._homes, self._last, self._blocks, self._arrays, self._plan
        del self._parts, self._ones, self._lent

    def __call__(self, times: int = 1) -> None:
        for _ in range(times):
            for call in self._calls:
                call()

    # ---------------------------------------------------------------------------------- placement

    def _home(self, node: Value) -> View | None:
        """The view that a value can be computed in, where it is stored and nothing else reads what stands there."""
        if node.op in NO_CALL:
            return None
        stores = [
            store
            for user in (node, *(user for user in self._users[node] if user.op == "reshape"))
            for store in self._users[user]
            if store.op == "store"
        ]
        if not stores or not stores[0].attributes[0].is_contiguous:
            return None
        store, view = stores[0], stores[0].attributes[0]
        if view.shape != node.shape:
            view = view.buffer.part(view.start, node.shape)
        if self._last_use_of(node) >= min((s.number for s in self._stores if s.number > store.number
                                          and s.attributes[0].overlaps(view)), default=math.inf):  # fmt: skip
            return None
        return view if self._is_free(view, node, store.number) else None

    def _is_free(self, view: View, node: Value, until: int) -> bool:
        """Whether nothing but `node` itself, in place, reads or writes there from `node` to that number."""
        for other in self._nodes:
            if node.number <= other.number < until:
                in_place = other is node and node.op in ELEMENTWISE
                for i, value in enumerate(other.inputs):
                    root = _root(value)
                    if root.op == "load" and root.attributes[0].overlaps(view):
                        same = root is value and root.attributes[0] == view and value.shape == node.shape
                        # of where only the last operand is read before anything is written
                        if not (in_place and same and (node.op != "where" or i == 2)):
                            return False
                if other.op == "store" and other.attributes[0].overlaps(view):
                    return False
        return True

    def _extend_homes(self) -> None:
        """Compute in the place of a result what it alone is made from: fewer temporaries pass through the cache."""
        for node in reversed(self._nodes):
            view = self._homes.get(node)
            if view is None or node.op not in ELEMENTWISE or node.op == "where":
                continue
            for value in node.inputs:
                alone = value.op in ELEMENTWISE and value.op != "where" and self._users[value] == [node]
                fits = (value.shape, value.dtype) == (node.shape, node.dtype)
                free = alone and fits and value not in self._homes and self._is_free(view, value, node.number)
                if free and not any(other is not value and self._reads(other, view) for other in node.inputs):
                    self._homes[value] = view
                    break

    @staticmethod
    def _reads(value: Value, view: View) -> bool:
        root = _root(value)
        return root.op == "load" and bool(root.attributes[0].overlaps(view))

    def _last_use_of(self, node: Value) -> int:
        users = self._users[node]
        return max(
            (self._last_use_of(user) if user.op in VIEWS else user.number for user in users), default=node.number
        )

    def _lifetimes(self, buffers: set[Buffer]) -> dict[Buffer, tuple[int, int]]:
        """The positions of the first and the last operation that touches each of these buffers."""
        positions = {node.number: i for i, node in enumerate(self._nodes)}
        touched: dict[Buffer, list[int]] = {buffer: [] for buffer in buffers}
        for node in self._nodes:
            view = node.attributes[0] if node.op in ("load", "store") else self._homes.get(node)
            if view is not None and view.buffer in touched:
                touched[view.buffer] += [positions[node.number], positions[self._last_use_of(node)]]
        return {buffer: (min(found), max(found)) for buffer, found in touched.items()}

    def _last_uses(self) -> dict[int, list[Value]]:
        """Which values have been read for the last time, by the position after which they have."""
        positions = {node.number: i for i, node in enumerate(self._nodes)}
        found: dict[int, list[Value]] = {}
        for node in self._nodes:
            if node.op not in NO_CALL:
                found.setdefault(positions[self._last_use_of(node)], []).append(node)
        return found

    def _release(self, position: int) -> None:
        for value in self._last.get(position, ()):
            if value in self._blocks:
                self._memory.give_back(self._blocks.pop(value))

    def _new(self, node: Value, inherit: Value | None = None) -> Any:
        """Memory for a value: that of its store, that of an operand which it replaces, or a block."""
        if node in self._homes:
            self._arrays[node] = self._of_view(self._homes[node])
        elif inherit is not None:
            self._blocks[node] = self._blocks.pop(inherit)
            self._arrays[node] = self._arrays[inherit]
        else:
            self._blocks[node], self._arrays[node] = self._memory.take(node.shape, node.dtype)
        return self._arrays[node]

    def _of_view(self, view: View) -> Any:
        if self._dry:
            return None
        if view not in self._parts:
            # one array object for one view: CuPy copies an operand that overlaps `out` and is not the same object
            self._parts[view] = self._part(view)
        return self._parts[view]

    def _part(self, view: View) -> Array:
        array = self._lent.get(view.buffer, view.buffer.array)
        return array if view == view.buffer.whole() else part_of(array, view)

    # ------------------------------------------------------------------------------------- calls

    def _call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        if not self._dry:
            self._calls.append(functools.partial(function, *arguments, **settings))

    def _add(self, node: Value) -> None:
        arrays, xp, dry = self._arrays, self._xp, self._dry
        op, given = node.op, [arrays[value] for value in node.inputs]
        if op == "load":
            arrays[node] = self._of_view(node.attributes[0])
        elif op == "constant":
            # a 0-d array of its dtype costs NumPy less than a Python number
            number = constant_of(node)
            arrays[node] = np.array(number) if self._is_numpy else number.item()
        elif op == "iota":
            self._memory.fixed(node.size * node.dtype.itemsize)
            arrays[node] = None if dry else self._backend.asarray(np.arange(node.size).reshape(node.shape), node.dtype)
        elif op == "broadcast":
            self._memory.fixed(node.size * node.dtype.itemsize)
            arrays[node] = None if dry else self._filled(node.shape, node.dtype, given[0])
        elif op == "transpose":
            arrays[node] = None if dry else given[0].T
        elif op == "reshape":
            arrays[node] = None if dry else given[0].reshape(node.shape)
        elif op == "slice":
            bounds = tuple(slice(*pair) for pair in node.attributes[0])
            arrays[node] = None if dry else given[0][bounds]
        elif op == "bitcast":
            arrays[node] = None if dry else given[0].view(node.dtype)
        elif op == "store":
            (value,), view = node.inputs, node.attributes[0]
            while value.op == "reshape":
                (value,) = value.inputs
            home = self._homes.get(value)
            if home is None or (home.buffer, home.start) != (view.buffer, view.start):
                self._copy(self._of_view(node.attributes[0]), given[0])
        elif op == "cast":
            self._copy(self._new(node), given[0])
        elif op == "dot":
            self._dot(node)
        elif op == "take":
            self._call(self._backend.take, *given, self._new(node))
        elif op == "sum" and node.dtype.kind not in "iu":
            self._sum(node)
        elif op == "min" and not self._is_numpy:
            self._min(node)
        elif op == "argmax" and self._is_numpy:
            argmax: Any = getattr(given[0], op, None)
            self._call(argmax, 1, self._new(node), keepdims=True)
        elif op in ("max", "min") and self._is_numpy:  # without a detour through Python
            reduce = np.maximum.reduce if op == "max" else np.minimum.reduce
            self._call(reduce, given[0], node.attributes[0], None, self._new(node), True)
        elif op in ("sum", "max", "min", "argmax"):
            out = self._new(node)
            self._call(getattr(xp, op), given[0], axis=node.attributes[0], keepdims=True, out=out)
        elif op == "where" and self._is_numpy:
            self._where_by_bits(node)
        elif op == "where":
            self._where_by_copies(node)
        else:
            self._elementwise(node)

    def _copy(self, out: Any, source: Any) -> None:
        if not self._dry:
            self._call(out.__setitem__, ..., source)

    def _filled(self, shape: tuple[int, ...], dtype: Any, value: Any) -> Array:
        array = self._backend.empty(shape, dtype)
        array.fill(value)
        return array

    def _dying(self, node: Value, among: Sequence[Value] | None = None) -> Value | None:
        """An operand of the same shape and dtype that nothing reads later: the result can take its place."""
        for value in node.inputs if among is None else among:
            fits = value in self._blocks and (value.shape, value.dtype) == (node.shape, node.dtype)
            # CuPy would copy an operand that is another part of the same memory
            alone = all(other is value or _root(other) is not value for other in node.inputs)
            if fits and alone and self._last_use_of(value) == node.number:
                return value
        return None

    def _elementwise(self, node: Value) -> None:
        function: Any = None if self._dry else getattr(self._xp, node.op)
        repeated = [value for value in node.inputs if self._is_repeated(value, node)]
        if not repeated:
            out = self._new(node, self._dying(node))
            self._call(function, *(self._arrays[value] for value in node.inputs), out=out)
            return
        if repeated[0].op == "iota":  # once for all runs
            self._memory.fixed(node.size * repeated[0].dtype.itemsize)
            rows = None if self._dry else np.tile(self._arrays[repeated[0]], (node.shape[0], 1))
            given = [rows if value is repeated[0] else self._arrays[value] for value in node.inputs]
            self._call(function, *given, out=self._new(node, self._dying(node)))
            return
        # adding a row to every row, NumPy would allocate a buffer to repeat it in, every time
        row = repeated[0]
        block, copied = self._memory.take(node.shape, row.dtype)
        out = self._new(node)
        self._copy(copied, self._arrays[row])
        self._call(function, *(copied if value is row else self._arrays[value] for value in node.inputs), out=out)
        self._memory.give_back(block)

    def _is_repeated(self, value: Value, node: Value) -> bool:
        return self._is_numpy and len(node.shape) == 2 and node.shape[0] > 1 and value.op != "constant" and (
            value.shape[-1:] == node.shape[-1:] != (1,) and math.prod(value.shape) != node.size
        )  # fmt: skip

    def _where_by_copies(self, node: Value) -> None:
        """b, and a copied over it where the condition holds."""
        condition, a, b = node.inputs
        out = self._new(node, self._dying(node, [b]))
        if out is not self._arrays[b]:
            self._copy(out, self._arrays[b])
        if not self._dry:
            self._call(self._xp.copyto, out, self._arrays[a], where=self._arrays[condition])

    def _min(self, node: Value) -> None:
        """By the maximum of what is ordered the other way round: CuPy's min fails with `out=` (cupy issue 9032)."""
        (value,) = node.inputs
        reverse: Any = None if self._dry else self._xp.negative if node.dtype.kind in "fV" else self._xp.invert
        block, reversed_ = self._memory.take(value.shape, value.dtype)
        out = self._new(node)
        if not self._dry:
            self._call(reverse, self._arrays[value], out=reversed_)
            self._call(self._xp.max, reversed_, axis=node.attributes[0], keepdims=True, out=out)
            self._call(reverse, out, out=out)
        self._memory.give_back(block)

    def _where_by_bits(self, node: Value) -> None:
        """b ^ ((a ^ b) & mask), of the bits: exact for every number, and in two or four passes."""
        condition, a, b = node.inputs
        bits = np.dtype(f"i{node.dtype.itemsize}")
        held, mask = self._memory.take(condition.shape, bits)
        blocks = [held]
        changed = None
        if not _is_zero(b):
            held, changed = self._memory.take(node.shape, bits)
            blocks.append(held)
        out = self._new(node, self._dying(node))
        for block in blocks:
            self._memory.give_back(block)
        if self._dry:
            return
        xp = self._xp
        truth = self._arrays[condition]
        self._copy(mask, truth.view(np.int8) if hasattr(truth, "view") else int(truth))
        first, second = self._bits(a, bits), self._bits(b, bits)
        if changed is None and bits.itemsize == 4:  # a product with 0 or 1: as exact, and a pass less
            self._call(xp.multiply, mask, first, out=out.view(bits))
            return
        self._call(xp.negative, mask, out=mask)
        if changed is None:
            self._call(xp.bitwise_and, mask, first, out=out.view(bits))
            return
        self._call(xp.bitwise_xor, first, second, out=changed)
        self._call(xp.bitwise_and, changed, mask, out=changed)
        self._call(xp.bitwise_xor, changed, second, out=out.view(bits))

    def _bits(self, value: Value, bits: np.dtype) -> Any:
        if value.op == "constant":
            return int(constant_of(value).view(bits))
        return self._arrays[value].view(bits)

    def _together(self, value: Value) -> tuple[Any, list[int]]:
        """The array of a value, or a copy whose rows follow each other, and the blocks to give back after its use."""
        if is_contiguous(value):
            return self._arrays[value], []
        block, copied = self._memory.take(value.shape, value.dtype)
        self._copy(copied, self._arrays[value])
        return copied, [block]

    def _dot(self, node: Value) -> None:
        operands: list[Any] = []
        blocks: list[int] = []
        for value in node.inputs:
            # `Products` takes no rows with gaps
            if self._is_numpy or (value.op == "load" and value.attributes[0].T.is_contiguous):
                operands.append(self._arrays[value])
                continue
            transposed = value.op == "transpose"
            array, taken = self._together(value.inputs[0] if transposed else value)
            operands.append(array.T if transposed and not self._dry else array)
            blocks += taken
        self._call(self._backend.product(node.attributes[0]), *operands, self._new(node))
        for block in blocks:
            self._memory.give_back(block)

    def _sum(self, node: Value) -> None:
        (value,), (axis,) = node.inputs, node.attributes
        if value.op == "transpose":
            (value,), axis = value.inputs, None if axis is None else 1 - axis
        (a, blocks), dtype = self._together(value), node.dtype
        rows, columns = (1, value.size) if axis is None else (value.shape if value.ndim == 2 else (1, value.size))
        if axis == 1 and rows > 1:
            ones, out = self._ones_of(columns, dtype), self._new(node)
            if not self._dry:
                self._call(self._backend.product(None), a, ones.reshape(columns, 1), out.reshape(rows, 1))
            for block in blocks:
                self._memory.give_back(block)
            return
        terms, width = (rows, columns) if axis == 0 else (columns, 1)
        while dtype == np.float32 and terms > LONG:
            # a part is every so many-th row, so that the products have long rows
            each, left = divmod(terms, PART)
            terms = each + bool(left)
            block, sums = self._memory.take((terms * width,), dtype)
            blocks.append(block)
            self._sum_of_rows(a, (0, PART, each * width), sums, 0, dtype)
            if left:
                self._sum_of_rows(a, (PART * each * width, left, width), sums, each * width, dtype)
            a = sums
        self._sum_of_rows(a, (0, terms, width), self._new(node), 0, dtype)
        for block in blocks:
            self._memory.give_back(block)

    def _sum_of_rows(self, a: Any, part: tuple[int, int, int], out: Any, place: int, dtype: np.dtype) -> None:
        """The sum of the rows of a part of `a`, given as its start, its rows and their width, at `place` in `out`."""
        start, rows, width = part
        ones = self._ones_of(rows, dtype)
        if not self._dry:
            given = a.reshape(-1)[start : start + rows * width].reshape(rows, width)
            self._call(self._backend.product(None), ones, given, out.reshape(-1)[place : place + width])

    def _ones_of(self, n: int, dtype: np.dtype) -> Any:
        if (n, dtype) not in self._ones:
            self._memory.fixed(n * dtype.itemsize)
            self._ones[n, dtype] = None if self._dry else self._filled((n,), dtype, 1)
        return self._ones[n, dtype]


class _Memory:
    """Blocks of memory that values of a plan take and give back; the smallest that is large enough is taken first."""

    def __init__(self, backend: Backend, dry: bool) -> None:
        self._backend, self._dry = backend, dry
        self._sizes: list[int] = []
        self._raw: list[Any] = []
        self._free: set[int] = set()
        self._arrays: dict[Any, Any] = {}
        self.nbytes = 0

    def fixed(self, nbytes: int) -> None:
        """Memory that is never given back."""
        self.nbytes += nbytes

    def take(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Any]:
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        # not one much larger: a later value would have to do without it
        fitting = [i for i in self._free if nbytes <= self._sizes[i] <= 2 * nbytes + ALIGNMENT]
        if fitting:
            block = min(fitting, key=lambda i: self._sizes[i])
            self._free.remove(block)
        else:
            block = len(self._sizes)
            size = max(-(-nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
            self._sizes.append(size)
            self.nbytes += size
            self._raw.append(None if self._dry else self._backend.empty(size, np.uint8))
        if self._dry:
            return block, None
        # one array object for one use of a block: CuPy copies an operand that overlaps `out` and is not the same object
        key = block, shape, dtype
        if key not in self._arrays:
            self._arrays[key] = self._raw[block][:nbytes].view(dtype).reshape(shape)
        return block, self._arrays[key]

    def give_back(self, block: int) -> None:
        self._free.add(block)


def _root(value: Value) -> Value:
    while value.op in VIEWS:
        value = value.inputs[0]
    return value


def _is_zero(value: Value) -> bool:
    return value.op == "constant" and not any(constant_of(value).tobytes())


def temporary_bytes(plan: Plan, backend: Backend) -> int:
    """What a plan run operation by operation allocates beyond the arrays that it was given."""
    return Stepwise(plan, backend, dry=True).nbytes
