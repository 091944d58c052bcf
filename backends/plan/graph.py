"""Symbolic arrays, and the plan that records what is computed with them.

A plan is built by calling functions written in `xp` with a `Tracer` in place of the array module and `Value`s in place
of arrays. Nothing is computed: every operation becomes a node of a graph. Semantics are NumPy's, type promotion with
weak Python scalars included.
"""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from dnn.backends.base import Array
from dnn.backends.plan.operations import ALIASES, ELEMENTWISE, REDUCTIONS, result_dtype

Shape = tuple[int, ...]
Bounds = tuple[tuple[int, int], ...]
"""Of each axis the first index, and the one after the last."""
VIEWS = ("transpose", "reshape", "slice")
"""Operations whose result is where their operand is."""
_HERE = os.path.dirname(os.path.abspath(__file__))


class PlanError(TypeError):
    """A function cannot become part of a plan: the message names it, the line, and what to use instead."""


class Buffer:
    """Memory that a plan reads and writes: an existing array, or one that is allocated when the plan is compiled.

    Memory that the plan allocates starts as zeros. `keeps`: its contents outlive a run, or are read by others.
    """

    def __init__(self, name: str, shape: Shape, dtype: Any, array: Array | None = None, keeps: bool = True) -> None:
        self.name = name
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.array = array
        self.keeps = keeps
        self.weak = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def part(self, start: int, shape: Sequence[int]) -> View:
        """`shape` elements from `start` on, in the order of memory."""
        assert start + math.prod(shape) <= self.size
        return View(self, start, tuple(shape), _row_major(tuple(shape)))

    def whole(self) -> View:
        flags = getattr(self.array, "flags", None)
        transposed = len(self.shape) == 2 and flags is not None and not flags.c_contiguous
        strides = _row_major(self.shape)
        if transposed:  # the transpose of a C-contiguous array
            strides = (1, self.shape[0])
        return View(self, 0, self.shape, strides)

    def __repr__(self) -> str:
        return f"<buffer {self.name} {self.dtype} {self.shape}>"


@dataclass(frozen=True)
class View:
    """Part of a buffer; start and strides count elements."""

    buffer: Buffer
    start: int
    shape: Shape
    strides: Shape

    @property
    def T(self) -> View:
        return View(self.buffer, self.start, self.shape[::-1], self.strides[::-1])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def is_contiguous(self) -> bool:
        steps = _row_major(self.shape)
        if self.strides == steps or self.size <= 1:
            return True
        return all(n == 1 or mine == step for n, mine, step in zip(self.shape, self.strides, steps, strict=True))

    def block(self, bounds: Bounds) -> View:
        """The rows, or rows and columns, from the first of each pair to before the second."""
        start = self.start + sum(first * step for (first, _), step in zip(bounds, self.strides, strict=True))
        return View(self.buffer, start, tuple(last - first for first, last in bounds), self.strides)

    @cached_property
    def extent(self) -> tuple[int, int]:
        """The first element of the buffer that it covers, and the one after its last."""
        if 0 in self.shape:
            return self.start, self.start
        return self.start, self.start + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def overlaps(self, other: View) -> bool:
        if self.buffer is not other.buffer:
            return False
        (a, b), (c, d) = self.extent, other.extent
        if not (a < d and c < b):
            return False
        if self == other or (self.is_contiguous and other.is_contiguous):
            return True
        mine, others = self._by_rows(), other._by_rows()
        if mine is None or others is None or mine.strides != others.strides:
            return True
        # the element in row i and column j is `distance` before one of the other's, (distance - t) / length rows apart
        (rows, columns), (other_rows, other_columns), length = mine.shape, others.shape, mine.strides[0]
        distance = others.start - mine.start
        return any(
            -other_columns < t < columns and -other_rows < (distance - t) // length < rows
            for t in (distance % length, distance % length - length)
        )

    def _by_rows(self) -> View | None:
        """As rows of which each is contiguous and no longer than the step to the next."""
        for view in (self, self.T):
            if len(view.shape) == 2 and view.strides[1] == 1 and view.strides[0] >= view.shape[1]:
                return view
        return None


def _row_major(shape: Shape) -> Shape:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class Value:
    """An array that is computed when the plan runs.

    `op` is the operation that gives it, `inputs` what that reads, `attributes` its settings. A weak value is a scalar
    that promotes as a Python number does. `source` is the line that it comes from.
    """

    __slots__ = ("_plan", "attributes", "dtype", "inputs", "number", "op", "shape", "source", "weak")
    __hash__ = object.__hash__

    def __init__(
        self,
        plan: Plan,
        op: str,
        inputs: tuple[Value, ...],
        dtype: np.dtype,
        shape: Shape,
        attributes: tuple[Any, ...] = (),
        weak: bool = False,
    ) -> None:
        # weakly: a plan and its arrays are gone with their last user, not whenever cycles are looked for
        self._plan = weakref.ref(plan)
        self.op, self.inputs, self.dtype, self.shape = op, inputs, dtype, shape
        self.attributes, self.weak = attributes, weak
        self.number = len(plan.nodes)
        self.source = _source()

    @property
    def plan(self) -> Plan:
        plan = self._plan()
        assert plan is not None, "the plan is gone"
        return plan

    # what an array has
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    @property
    def T(self) -> Value:
        return self.plan.transpose(self)

    def __len__(self) -> int:
        if not self.shape:
            raise PlanError(_at("len() of a scalar"))
        return self.shape[0]

    def astype(self, dtype: Any, copy: bool = True) -> Value:
        return self.plan.cast(self, np.dtype(dtype))

    def view(self, dtype: Any) -> Value:
        """The same bits as another dtype of the same size."""
        dtype = np.dtype(dtype)
        if dtype.itemsize != self.dtype.itemsize:
            raise PlanError(_at(f"view: {self.dtype} and {dtype} differ in size"))
        return self.plan.node("bitcast", (self,), dtype, self.shape, (dtype,))

    def reshape(self, *shape: Any) -> Value:
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        return self.plan.reshape(self, shape)

    def __getitem__(self, key: Any) -> Value:
        if key == (slice(None), None) and self.ndim == 1:
            return self.plan.reshape(self, (self.shape[0], 1))
        if key == (None, slice(None)) and self.ndim == 1:
            return self.plan.reshape(self, (1, self.shape[0]))
        parts = key if isinstance(key, tuple) else (key,)
        if not 1 <= len(parts) <= self.ndim <= 2 or any(
            not isinstance(part, slice) or part.step not in (None, 1) for part in parts
        ):
            raise PlanError(
                _at(
                    f"indexing with {key!r} cannot be part of a plan: use slices Z[a:b] or Z[a:b, c:d], "
                    "xp.concatenate, xp.take, xp.where or reshape"
                )
            )
        bounds = [part.indices(n)[:2] for part, n in zip(parts, self.shape, strict=False)]
        return self.plan.slice(self, (*bounds, *((0, n) for n in self.shape[len(parts) :])))

    def sum(self, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Value:
        return self.plan.reduce("sum", self, axis, keepdims, dtype)

    def max(self, axis: Any = None, keepdims: bool = False) -> Value:
        return self.plan.reduce("max", self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Value:
        return self.plan.reduce("min", self, axis, keepdims)

    def argmax(self, axis: Any = None, keepdims: bool = False) -> Value:
        return self.plan.reduce("argmax", self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Value:
        return self.plan.mean(self, axis, keepdims)

    # what an array does on a host
    def __bool__(self) -> bool:
        raise PlanError(
            _at("the truth of an array's values is not known when the plan is built: use xp.where instead of `if`")
        )

    def _not_now(self, what: str) -> NoReturn:
        raise PlanError(_at(f"{what} reads values, which are not there when the plan is built"))

    def __float__(self) -> float:
        self._not_now("float()")

    def __int__(self) -> int:
        self._not_now("int()")

    def __index__(self) -> int:
        self._not_now("an index")

    def __iter__(self) -> NoReturn:
        self._not_now("a loop over an array")

    def __contains__(self, item: object) -> bool:
        self._not_now("`in`")

    def __array__(self, *arguments: Any, **settings: Any) -> NoReturn:
        self._not_now("np.asarray")

    def item(self) -> NoReturn:
        self._not_now("item()")

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise PlanError(_at("arrays of a plan cannot be written in place: return a new one, made with xp.where"))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Value:
        # a NumPy scalar on the left of an operator, or np.exp in place of xp.exp
        if method != "__call__" or settings:
            raise PlanError(_at(f"np.{ufunc.__name__}.{method} cannot be part of a plan"))
        function: Callable[..., Value] = getattr(self.plan.xp, ufunc.__name__)
        return function(*inputs)

    def __repr__(self) -> str:
        return f"<value {self.number}: {self.op} {self.dtype} {self.shape}>"


def _operator(name: str, op: str) -> None:
    def forward(self: Value, other: Any) -> Any:
        return self.plan.elementwise(op, self, other) if _is_operand(other) else NotImplemented

    def reflected(self: Value, other: Any) -> Any:
        return self.plan.elementwise(op, other, self) if _is_operand(other) else NotImplemented

    setattr(Value, f"__{name}__", forward)
    setattr(Value, f"__r{name}__", reflected)


def _is_operand(other: object) -> bool:
    return isinstance(other, (Value, bool, int, float, np.generic))


for _method, _op in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "mod": "remainder",
    "floordiv": "floor_divide", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "left_shift", "rshift": "right_shift",
}.items():  # fmt: skip
    _operator(_method, _op)
for _method, _op in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(Value, f"__{_method}__", lambda self, other, op=_op: self.plan.elementwise(op, self, other))
for _method, _op in {"neg": "negative", "abs": "absolute", "invert": "invert"}.items():
    setattr(Value, f"__{_method}__", lambda self, op=_op: self.plan.elementwise(op, self))
setattr(Value, "__matmul__", lambda self, other: self.plan.dot(self, other))  # noqa: B010


class Tracer:
    """Stands for the array module while a plan is built."""

    pi, e, inf, nan, newaxis = np.pi, np.e, np.inf, np.nan, None

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        name = ALIASES.get(name, name)
        plan = self._plan
        if name in ELEMENTWISE:
            return lambda *operands: plan.elementwise(name, *operands)
        if name in REDUCTIONS:

            def reduction(a: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Value:
                return plan.reduce(name, a, axis, keepdims, dtype)

            return reduction
        if hasattr(np, name) and isinstance(getattr(np, name), type):
            return getattr(np, name)  # a dtype
        there = [*ELEMENTWISE, *REDUCTIONS, *(name for name in vars(Tracer) if not name.startswith("_"))]
        raise PlanError(_at(f"xp.{name} cannot be part of a plan: there are {', '.join(sorted(there))}"))

    def mean(self, a: Value, axis: Any = None, keepdims: bool = False) -> Value:
        return self._plan.mean(a, axis, keepdims)

    def where(self, condition: Any, a: Any, b: Any) -> Value:
        return self._plan.elementwise("where", condition, a, b)

    def dot(self, a: Value, b: Value) -> Value:
        return self._plan.dot(a, b)

    def take(self, source: Value, rows: Value, axis: int = 0) -> Value:
        return self._plan.take(source, rows, axis)

    def clip(self, a: Any, low: Any, high: Any) -> Value:
        return self._plan.elementwise("minimum", self._plan.elementwise("maximum", a, low), high)

    def concatenate(self, arrays: Sequence[Value], axis: int = 0) -> Value:
        return self._plan.concatenate(arrays, axis)

    def arange(self, n: int, dtype: Any = np.int64) -> Value:
        return self._plan.node("iota", (), np.dtype(dtype), (int(n),), (np.dtype(dtype), int(n)))

    def transpose(self, a: Value) -> Value:
        return self._plan.transpose(a)

    def reshape(self, a: Value, shape: Any) -> Value:
        return a.reshape(shape)

    def zeros_like(self, a: Value) -> Value:
        return self._plan.full(a, 0)

    def ones_like(self, a: Value) -> Value:
        return self._plan.full(a, 1)

    def finfo(self, dtype: Any) -> Any:
        return np.finfo(dtype)


class Plan:
    """What a step does to arrays: read views of buffers, compute, store.

    `buffer` is the only way to memory, `call` traces a function of `xp`, `store` writes. A load reads what was stored
    before it in the order of these calls. `precision` is that of the products: None, or tf32.
    """

    def __init__(self, precision: str | None = None) -> None:
        self.precision = precision
        self.nodes: list[Value] = []
        self.buffers: list[Buffer] = []
        self.names: dict[Value, Any] = {}
        """What values are called by whoever made the plan: the first name of each."""
        self._known: dict[Any, Value] = {}
        self._expands = False
        self._stores: dict[Buffer, list[Value]] = {}

    @property
    def xp(self) -> Tracer:
        """What stands for the array module."""
        return Tracer(self)

    # ------------------------------------------------------------------------------------ memory

    def buffer(
        self, name: str, shape: Sequence[int] | int, dtype: Any, array: Array | None = None, keeps: bool = True
    ) -> Buffer:
        """Memory of this shape: `array`, or what is allocated when the plan is compiled."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        buffer = Buffer(name, shape, dtype, array, keeps)
        self.buffers.append(buffer)
        return buffer

    def array(self, name: str, array: Array, weak: bool = False) -> Buffer:
        """An existing array, C- or F-contiguous; `weak`: a (1,) or () array that promotes as a Python number does."""
        flags = getattr(array, "flags", None)
        if flags is not None and not (flags.c_contiguous or (flags.f_contiguous and len(array.shape) == 2)):
            raise PlanError(_at(f"{name}: expected a contiguous array, got one of shape {array.shape} with gaps"))
        buffer = self.buffer(name, array.shape, array.dtype, array)
        buffer.weak = weak
        return buffer

    def read(self, place: Buffer | View) -> Value:
        view = place.whole() if isinstance(place, Buffer) else place
        buffer = view.buffer
        seen = tuple(store.number for store in self._stores.get(buffer, ()) if store.attributes[0].overlaps(view))
        return self.node("load", (), buffer.dtype, view.shape, (view, seen), weak=buffer.weak)

    def store(self, place: Buffer | View, value: Value) -> None:
        """Write `value`, of the same shape and dtype."""
        view = place.whole() if isinstance(place, Buffer) else place
        if value.weak and value.size == view.size == 1:
            value = self.reshape(self.cast(value, view.buffer.dtype), view.shape)
        if value.shape != view.shape or value.dtype != view.buffer.dtype:
            raise PlanError(
                _at(
                    f"{view.buffer.name} is {view.buffer.dtype} {view.shape}, and what is stored there "
                    f"{value.dtype} {value.shape}"
                )
            )
        store = Value(self, "store", (value,), value.dtype, value.shape, (view,))
        self._check_fresh((value,))
        self.nodes.append(store)
        self._stores.setdefault(view.buffer, []).append(store)

    def call(self, function: Callable[..., Any], *inputs: Any, into: Any = None, **settings: Any) -> Any:
        """What `function(xp, *inputs)` returns, as values; buffers and views among the inputs are read.

        `into`: a buffer or view, or as many of them as there are results, to store the results in. None stores nothing.
        """
        given = [self.read(item) if isinstance(item, (Buffer, View)) else item for item in inputs]
        try:
            results = function(self.xp, *given, **settings)
        except PlanError:
            raise
        except (TypeError, AttributeError, ValueError) as error:
            name = getattr(function, "__qualname__", repr(function))
            raise PlanError(f"{name} cannot be part of a plan: {error} ({_where_raised(error)})") from error
        if into is not None:
            places, values = (into, results) if isinstance(into, (tuple, list)) else ([into], [results])
            for place, value in zip(places, values, strict=True):
                if place is not None:
                    self.store(place, value)
        return results

    @contextmanager
    def expanding(self, known: dict[Any, Value]) -> Iterator[None]:
        """Operations asked for inside are part of one that is there already.

        They are the same only among themselves (`known`): another operation's result may lie in memory that has changed
        when this one is computed. What they read was fresh when the operation was asked for.
        """
        before, self._known, self._expands = self._known, known, True
        try:
            yield
        finally:
            self._known, self._expands = before, False

    def name(self, value: Value, name: Any) -> None:
        """Call a value so, where it has no name yet."""
        self.names.setdefault(value, name)

    # -------------------------------------------------------------------------------- operations

    def node(
        self,
        op: str,
        inputs: tuple[Value, ...],
        dtype: np.dtype,
        shape: Shape,
        attributes: tuple[Any, ...] = (),
        weak: bool = False,
    ) -> Value:
        """The value of this operation; the same one where it has been asked for before."""
        key = (op, tuple(value.number for value in inputs), attributes)
        found = self._known.get(key)
        if found is None or (op == "load" and found.weak != weak):
            found = Value(self, op, inputs, dtype, shape, attributes, weak)
            self._check_fresh(inputs)
            self.nodes.append(found)
            self._known[key] = found
        return found

    def _check_fresh(self, inputs: Iterable[Value]) -> None:
        for value in () if self._expands else inputs:
            while value.op in VIEWS:
                value = value.inputs[0]
            if value.op == "load":
                view, seen = value.attributes
                stores = self._stores.get(view.buffer, ())
                later = [s for s in stores if s.number not in seen and s.attributes[0].overlaps(view)]
                if later:
                    raise PlanError(_at(f"{view.buffer.name} has been overwritten since it was read"))

    def constant(self, value: Any, dtype: Any) -> Value:
        dtype = np.dtype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            number = (
                np.array(value).astype(dtype) if isinstance(value, (float, np.floating)) else np.array(value, dtype)
            )
        return self.node("constant", (), dtype, (), (dtype, number.tobytes()))

    def full(self, like: Value, value: Any) -> Value:
        return self.node("broadcast", (self.constant(value, like.dtype),), like.dtype, like.shape, (like.shape,))

    def cast(self, value: Value, dtype: np.dtype) -> Value:
        if value.dtype == dtype:
            return value
        if value.op == "constant":
            return self.constant(constant_of(value), dtype)
        return self.node("cast", (value,), dtype, value.shape, (dtype,))

    def elementwise(self, name: str, *operands: Any) -> Value:
        name = ALIASES.get(name, name)
        if name == "power" and isinstance(operands[1], (int, float)):
            return self._power(*operands)
        operation = ELEMENTWISE[name]
        if len(operands) != operation.arity:
            raise PlanError(_at(f"xp.{name} takes {operation.arity} arrays here, got {len(operands)}"))
        for operand in operands:
            if not _is_operand(operand):
                raise PlanError(_at(f"xp.{name}: expected an array of the plan or a number, got {type(operand)}"))
        weak = all(not isinstance(operand, Value) or operand.weak for operand in operands)
        kinds = [_kind(operand) for operand in operands]
        if weak:  # scalars of the step among themselves
            kinds = [np.dtype(np.float64) if isinstance(operand, Value) and operand.dtype.kind == "f" else kind
                     for operand, kind in zip(operands, kinds, strict=True)]  # fmt: skip
        try:
            taken, dtype = result_dtype(name, kinds)
        except TypeError as error:
            raise PlanError(_at(f"xp.{name} of {', '.join(map(str, kinds))}: {error}")) from error
        inputs = tuple(
            self.cast(operand, kind) if isinstance(operand, Value) else self.constant(operand, kind)
            for operand, kind in zip(operands, taken, strict=True)
        )
        shape = _broadcast(name, inputs)
        return self.node(name, inputs, dtype, shape, (), weak)

    def _power(self, base: Any, exponent: float) -> Value:
        """A power by a number known now, as NumPy's operator takes it."""
        if exponent == 2:
            return self.elementwise("multiply", base, base)
        if exponent == 1:
            return self.elementwise("multiply", base, 1)
        if exponent == 0.5:
            return self.elementwise("sqrt", base)
        if exponent == -1:
            return self.elementwise("divide", 1, base)
        if base.weak:  # a number of the step, to which the exponent gives no dtype
            real = np.dtype(np.float64)
            return self.node(
                "power", (self.cast(base, real), self.constant(exponent, real)), real, base.shape, (), True
            )
        kind = _kind(base)
        return self.elementwise("power", base, self.constant(exponent, kind if kind.kind == "f" else np.float64))

    def reduce(self, name: str, a: Value, axis: Any, keepdims: bool, dtype: Any = None) -> Value:
        if a.ndim > 2:
            raise PlanError(_at(f"xp.{name}: expected at most two axes, got shape {a.shape}"))
        if axis is not None:
            axis = axis + a.ndim if axis < 0 else axis
            if not 0 <= axis < a.ndim:
                raise PlanError(_at(f"xp.{name}: axis {axis} of an array with shape {a.shape}"))
        if a.ndim == 1:
            axis = None
        if name == "argmax" and axis != 1:
            raise PlanError(_at("xp.argmax works along axis 1"))
        if name != "sum" and 0 in (a.shape if axis is None else (a.shape[axis],)):
            raise PlanError(_at(f"xp.{name} of no elements"))
        if dtype is not None:
            a = self.cast(a, np.dtype(dtype))
        elif name == "sum":
            a = self.cast(a, np.add.reduce(np.empty(0, a.dtype)).dtype)
        result = np.dtype(np.int64) if name == "argmax" else a.dtype
        if axis is not None and a.shape[axis] == 1:  # of one number
            reduced = self.full(self.cast(a, result), 0) if name == "argmax" else a
            return reduced if keepdims else self.reshape(reduced, a.shape[:axis] + a.shape[axis + 1 :])
        kept = (1,) * a.ndim if axis is None else tuple(1 if i == axis else n for i, n in enumerate(a.shape))
        reduced = self.node(name, (a,), result, kept, (axis,))
        if keepdims:
            return reduced
        return self.reshape(reduced, tuple(n for i, n in enumerate(a.shape) if axis is not None and i != axis))

    def mean(self, a: Value, axis: Any, keepdims: bool) -> Value:
        total = self.reduce("sum", a, axis, keepdims)
        return self.elementwise("divide", total, a.size // max(total.size, 1))

    def dot(self, a: Value, b: Value) -> Value:
        """The product of two matrices, (m, k) and (k, n)."""
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise PlanError(_at(f"xp.dot: expected shapes (m, k) and (k, n), got {a.shape} and {b.shape}"))
        if a.dtype != b.dtype or a.dtype.kind not in "fV":
            raise PlanError(_at(f"xp.dot: expected two matrices of one floating dtype, got {a.dtype} and {b.dtype}"))
        return self.node("dot", (a, b), a.dtype, (a.shape[0], b.shape[1]), (self.precision,))

    def take(self, source: Value, rows: Value, axis: int = 0) -> Value:
        if axis != 0 or source.ndim != 2 or rows.ndim != 1 or rows.dtype != np.int64:
            raise PlanError(_at("xp.take: expected a matrix, whole numbers int64 (m,), and axis 0"))
        return self.node("take", (source, rows), source.dtype, (rows.shape[0], source.shape[1]))

    def transpose(self, a: Value) -> Value:
        if a.ndim < 2:
            return a
        if a.op == "transpose":
            return a.inputs[0]
        return self.node("transpose", (a,), a.dtype, a.shape[::-1])

    def reshape(self, a: Value, shape: Sequence[int]) -> Value:
        known = math.prod(n for n in shape if n != -1)
        shape = tuple(a.size // max(known, 1) if n == -1 else int(n) for n in shape)
        if math.prod(shape) != a.size:
            raise PlanError(_at(f"reshape: {a.shape} has another number of elements than {shape}"))
        if shape == a.shape:
            return a
        if a.op == "iota":
            return self.node("iota", (), a.dtype, shape, (a.dtype, *shape))
        if not is_contiguous(a):
            a = self._copied([a], a.shape, [tuple((0, n) for n in a.shape)])
        return self.node("reshape", (a,), a.dtype, shape, (shape,), a.weak)

    def slice(self, a: Value, bounds: Bounds) -> Value:
        """The block of an array between these bounds."""
        if bounds == tuple((0, n) for n in a.shape):
            return a
        if any(first >= last for first, last in bounds):
            asked = ", ".join(f"{first}:{last}" for first, last in bounds)
            raise PlanError(_at(f"the slice [{asked}] of an array with shape {a.shape} is empty"))
        shape = tuple(last - first for first, last in bounds)
        if a.op == "broadcast":
            return self.node("broadcast", a.inputs, a.dtype, shape, (shape,))
        if a.op == "iota":  # in memory, where a part of it can be read
            a = self._copied([a], a.shape, [tuple((0, n) for n in a.shape)])
        if a.op == "load":
            self._check_fresh((a,))
            return self.read(a.attributes[0].block(bounds))
        if a.op == "transpose":
            return self.transpose(self.slice(a.inputs[0], bounds[::-1]))
        if a.op == "slice":
            before = a.attributes[0]
            whole = tuple((at + first, at + last) for (at, _), (first, last) in zip(before, bounds, strict=True))
            return self.slice(a.inputs[0], whole)
        return self.node("slice", (a,), a.dtype, shape, (bounds,))

    def concatenate(self, arrays: Sequence[Value], axis: int = 0) -> Value:
        """Arrays one after the other along an axis: each is computed, or copied, to its place in memory of its own."""
        arrays = list(arrays)
        if not arrays or not all(isinstance(a, Value) and 1 <= a.ndim <= 2 for a in arrays):
            raise PlanError(_at("xp.concatenate: expected arrays of the plan, all with one axis or all with two"))
        ndim = arrays[0].ndim
        axis = axis + ndim if axis < 0 else axis
        shapes = [a.shape for a in arrays]
        if not 0 <= axis < ndim or any(
            len(shape) != ndim or shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :]
            for shape in shapes
        ):
            raise PlanError(_at(f"xp.concatenate: shapes {', '.join(map(str, shapes))} do not fit along axis {axis}"))
        try:
            dtype = np.result_type(*(a.dtype for a in arrays))
        except TypeError as error:
            raise PlanError(_at(f"xp.concatenate: {error}")) from error
        arrays = [self.cast(a, dtype) for a in arrays if a.shape[axis]] or [self.cast(arrays[0], dtype)]
        if len(arrays) == 1:
            return arrays[0]
        bounds: list[Bounds] = []
        end = 0
        for a in arrays:
            first, end = end, end + a.shape[axis]
            bounds.append(tuple((first, end) if i == axis else (0, n) for i, n in enumerate(a.shape)))
        return self._copied(arrays, tuple(end if i == axis else n for i, n in enumerate(shapes[0])), bounds)

    def _copied(self, arrays: Sequence[Value], shape: Shape, bounds: Sequence[Bounds]) -> Value:
        """Memory of this shape, of which each array is the block between its bounds."""
        key = "copied", tuple(a.number for a in arrays), tuple(bounds)
        if key not in self._known:
            buffer = self.buffer(f"joined{len(self.nodes)}", shape, arrays[0].dtype, keeps=False)
            for a, block in zip(arrays, bounds, strict=True):
                self.store(buffer.whole().block(block), a)
            self._known[key] = self.read(buffer)
        return self._known[key]

    # ------------------------------------------------------------------------------------- words

    def text(self) -> str:
        """The plan, a line an operation, each with the line of source that it comes from."""
        live = live_nodes(self)
        lines = []
        for value in self.nodes:
            if value not in live or value.op in ("constant", "load", "transpose", "slice"):
                continue
            inputs = ", ".join(_name(item) for item in value.inputs)
            if value.op == "store":
                lines.append((f"{_view_name(value.attributes[0])} <- {inputs}", ""))
                continue
            settings = f", axis={value.attributes[0]}" if value.op in REDUCTIONS else ""
            shape = "x".join(map(str, value.shape)) or "scalar"
            lines.append((f"%{value.number} {value.dtype} {shape} = {value.op}({inputs}{settings})", value.source))
        width = max((len(left) for left, _ in lines), default=0)
        return "\n".join(f"{left:<{width}}  {source}".rstrip() for left, source in lines)

    def flops(self) -> int:
        """Multiplications of the products of one run."""
        return sum(v.size * v.inputs[0].shape[1] for v in live_nodes(self) if v.op == "dot")


def _name(value: Value) -> str:
    if value.op == "constant":
        return f"{constant_of(value).item()!r}"
    if value.op == "load":
        return _view_name(value.attributes[0])
    if value.op == "transpose":
        return f"{_name(value.inputs[0])}.T"
    if value.op == "slice":
        return f"{_name(value.inputs[0])}{_bounds_name(value.attributes[0])}"
    return f"%{value.number}"


def _bounds_name(bounds: Bounds) -> str:
    return f"[{', '.join(f'{first}:{last}' for first, last in bounds)}]"


def _view_name(view: View) -> str:
    buffer = view.buffer
    if view.start == 0 and view.size == buffer.size:
        return buffer.name
    if len(buffer.shape) == 2 == len(view.shape) and view.strides == buffer.whole().strides:
        by_rows = view if view.strides[1] == 1 else view.T
        row, column = divmod(view.start, by_rows.strides[0])
        bounds = tuple((first, first + n) for first, n in zip((row, column), by_rows.shape, strict=True))
        return f"{buffer.name}{_bounds_name(bounds if by_rows is view else bounds[::-1])}"
    first, last = view.extent
    return f"{buffer.name}[{first}:{last}]{'' if view.is_contiguous else f' by {max(view.strides)}'}"


def part_of(array: Any, view: View) -> Any:
    """The elements of a buffer's array that a view of the buffer covers, as a view of the array."""
    flat = (array if array.flags.c_contiguous else array.T).reshape(-1)
    if view.is_contiguous:
        return flat[view.start : view.start + view.size].reshape(view.shape)
    if view.T.is_contiguous or view.strides[1] != 1:
        return part_of(array, view.T).T
    # as many whole rows, which may have to begin before the view does
    (rows, columns), length = view.shape, view.strides[0]
    first = min(view.start, view.buffer.size - rows * length)
    column = view.start - first
    return flat[first : first + rows * length].reshape(rows, length)[:, column : column + columns]


def is_contiguous(value: Value) -> bool:
    """Whether the elements follow each other in the order of their indices, where memory holds the value."""
    if value.op == "load":
        view: View = value.attributes[0]
        return view.is_contiguous
    if value.op == "transpose":
        return 1 in value.shape and is_contiguous(value.inputs[0])
    if value.op == "slice":
        (source,) = value.inputs
        together = value.shape[0] == 1 or value.shape[1:] == source.shape[1:]
        return value.size == 1 or (together and is_contiguous(source))
    return True


def constant_of(value: Value) -> np.generic:
    """The number that a constant is."""
    dtype, content = value.attributes
    found: np.generic = np.frombuffer(content, dtype)[0]
    return found


def fully_written(buffers: Iterable[Buffer], writes: Iterable[View]) -> set[Buffer]:
    """Those of which every element is written; the others hold zeros where nothing writes."""
    extents: dict[Buffer, list[tuple[int, int]]] = {buffer: [] for buffer in buffers}
    counts = dict.fromkeys(extents, 0)
    for view in writes:
        if view.buffer in extents:
            extents[view.buffer].append(view.extent)
            counts[view.buffer] += view.size
    found = set()
    for buffer, parts in extents.items():
        end = 0
        for first, last in sorted(parts):
            if first > end:
                break
            end = max(end, last)
        # an extent counts what lies between a view's rows as well
        if end >= buffer.size <= counts[buffer]:
            found.add(buffer)
    return found


def _is_temporary(buffer: Buffer) -> bool:
    return buffer.array is None and not buffer.keeps


def live_nodes(plan: Plan) -> set[Value]:
    """The nodes that a store needs, stores included; those to temporary memory where it is read."""
    live: set[Value] = set()
    stores = {node.number: node for node in plan.nodes if node.op == "store"}
    stack = [node for node in stores.values() if not _is_temporary(node.attributes[0].buffer)]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.inputs)
            if node.op == "load":
                stack.extend(stores[number] for number in node.attributes[1])
    return live


def live_temporaries(plan: Plan) -> list[Buffer]:
    """The temporary memory that the plan itself has named, as far as its live nodes touch it."""
    touched = {node.attributes[0].buffer for node in live_nodes(plan) if node.op in ("load", "store")}
    return [buffer for buffer in plan.buffers if _is_temporary(buffer) and buffer in touched]


def _kind(operand: Any) -> Any:
    """What NumPy's rules of promotion look at: a dtype, or the type of a Python number."""
    if isinstance(operand, Value):
        return {"f": float, "i": int, "u": int, "b": bool}[operand.dtype.kind] if operand.weak else operand.dtype
    if isinstance(operand, np.generic):
        return operand.dtype
    return type(operand)


def _broadcast(name: str, inputs: Sequence[Value]) -> Shape:
    try:
        shape = np.broadcast_shapes(*(value.shape for value in inputs))
    except ValueError:
        shapes = " and ".join(str(value.shape) for value in inputs)
        raise PlanError(_at(f"xp.{name}: shapes {shapes} do not fit each other")) from None
    if len(shape) > 2:
        raise PlanError(_at(f"xp.{name}: expected at most two axes, got shape {shape}"))
    return shape


def _frame() -> Any:
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame


def _source() -> str:
    """The line outside of this package that asked for the operation."""
    frame = _frame()
    if frame is None:
        return ""
    place = frame.f_code.co_filename.replace(os.sep, "/").split("/")
    return f"{'/'.join(place[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


def _at(message: str) -> str:
    return f"{message} ({_source()})"


def _where_raised(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        if os.path.dirname(trace.tb_next.tb_frame.f_code.co_filename).startswith(_HERE):
            break
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
