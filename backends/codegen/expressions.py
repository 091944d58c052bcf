"""Operations on numbers as LLVM IR: what a loop does for one element, for any target.

Elementary functions are expanded into the primitive operations below before they are emitted, by `elementary`. Numbers
of 16 bits are float32 in registers: they are rounded where they are stored and where the plan casts to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dnn.backends.codegen import elementary
from dnn.backends.plan.graph import Plan, PlanError, Value, constant_of

TYPES = {
    "f4": "float", "f8": "double", "b1": "i1", "i1": "i8", "u1": "i8", "i2": "i16", "u2": "i16", "i4": "i32",
    "u4": "i32", "i8": "i64", "u8": "i64", "f2": "float", "V2": "float",
}  # fmt: skip
EXPANDED: dict[str, Callable[..., Value]] = {
    name: getattr(elementary, name)
    for name in ("exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "power")
    if hasattr(elementary, name)
}

_FLOAT = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_WHOLE = {"add": "add", "subtract": "sub", "multiply": "mul"}
_LOGIC = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_COMPARED = {
    "greater": ("ogt", "gt"), "greater_equal": ("oge", "ge"), "less": ("olt", "lt"), "less_equal": ("ole", "le"),
    "equal": ("oeq", "eq"), "not_equal": ("une", "ne"),
}  # fmt: skip
_ROUNDED = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}


def llvm_type(dtype: np.dtype) -> str:
    """The type of a number in a register."""
    found = TYPES.get(dtype.str[1:])
    if found is None:
        raise PlanError(f"{dtype} is not among what is compiled: {', '.join(str(np.dtype(name)) for name in TYPES)}")
    return found


def memory_type(dtype: np.dtype) -> str:
    return "i8" if dtype.kind == "b" else "half" if dtype.str[1:] == "f2" else "i16" if is_bfloat16(dtype) else (
        llvm_type(dtype))  # fmt: skip


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.kind == "V"  # ml_dtypes'; no other structured dtype gets into a plan


def literal(number: np.generic) -> str:
    """A number as IR writes it: the bits of a float as those of the double that it equals."""
    if is_float(number.dtype):
        return f"0x{np.float64(number).view(np.uint64):016X}"
    if number.dtype.kind == "b":
        return "true" if number else "false"
    return str(int(number))


class Expander:
    """Elementary functions as graphs of primitive operations, each traced once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._expanded: dict[Value, Value] = {}
        self._known: dict[Any, Value] = {}

    def __call__(self, value: Value) -> Value:
        function = EXPANDED.get(value.op)
        if function is None:
            return value
        if value not in self._expanded:
            with np.errstate(all="ignore"), self._plan.expanding(self._known):
                if value.dtype.itemsize == 2:
                    inputs = [operand.astype(np.float32) for operand in value.inputs]
                    self._expanded[value] = function(self._plan.xp, *inputs).astype(value.dtype)
                else:
                    self._expanded[value] = function(self._plan.xp, *value.inputs)
        return self._expanded[value]


class Block:
    """Lines of a basic block, and the names of fresh registers of the function that it belongs to."""

    _declared: dict[str, str]

    def __init__(self, declared: dict[str, str], counter: list[int]) -> None:
        self.lines: list[str] = []
        self._declared, self._counter = declared, counter

    def fresh(self) -> str:
        self._counter[0] += 1
        return f"%v{self._counter[0]}"

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def do(self, text: str) -> str:
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def call(self, intrinsic: str, kind: str, *operands: str, parameters: str | None = None) -> str:
        """llvm.<intrinsic>.<type>(operands), all of one type."""
        suffix = {"float": "f32", "double": "f64"}.get(kind, kind)
        name = f"llvm.{intrinsic}.{suffix}"
        of = parameters or ", ".join([kind] * len(operands))
        self._declared[name] = f"declare {kind} @{name}({of})"
        given = ", ".join(f"{k} {o}" for k, o in zip(of.split(", "), operands, strict=True))
        return self.do(f"call {kind} @{name}({given})")

    # -------------------------------------------------------------------------------------- memory

    def load(self, dtype: np.dtype, place: str, more: str = "") -> str:
        """The number at `place`, "ptr %p" with its address space; `more`: alignment and metadata."""
        found = self.do(f"load {memory_type(dtype)}, {place}{more}")
        if dtype.kind == "b":
            return self.do(f"trunc i8 {found} to i1")
        if dtype.kind == "f" and dtype.itemsize == 2:
            return self.do(f"fpext half {found} to float")
        if is_bfloat16(dtype):
            wide = self.do(f"zext i16 {found} to i32")
            return self.do(f"bitcast i32 {self.do(f'shl i32 {wide}, 16')} to float")
        return found

    def store(self, dtype: np.dtype, number: str, place: str, more: str = "") -> None:
        if dtype.kind == "b":
            number = self.do(f"zext i1 {number} to i8")
        elif dtype.kind == "f" and dtype.itemsize == 2:
            number = self.do(f"fptrunc float {number} to half")
        elif is_bfloat16(dtype):
            upper = self.do(f"lshr i32 {self._rounded_to_bfloat16(number)}, 16")
            number = self.do(f"trunc i32 {upper} to i16")
        self.line(f"store {memory_type(dtype)} {number}, {place}{more}")

    def _rounded_to_bfloat16(self, number: str) -> str:
        """The bits of a float32 rounded to the nearest bfloat16, ties to even; of nan, of a quiet one."""
        bits = self.do(f"bitcast float {number} to i32")
        odd = self.do(f"and i32 {self.do(f'lshr i32 {bits}, 16')}, 1")
        rounded = self.do(f"add i32 {self.do(f'add i32 {bits}, 32767')}, {odd}")  # half of a unit, less one if even
        nan = self.do(f"fcmp uno float {number}, {number}")
        chosen = self.do(f"select i1 {nan}, i32 {self.do(f'or i32 {bits}, 4194304')}, i32 {rounded}")
        return self.do(f"and i32 {chosen}, -65536")

    def rounded(self, dtype: np.dtype, number: str) -> str:
        """A float32 rounded to 16 bits, as a float32."""
        if is_bfloat16(dtype):
            return self.do(f"bitcast i32 {self._rounded_to_bfloat16(number)} to float")
        return self.do(f"fpext half {self.do(f'fptrunc float {number} to half')} to float")

    # ---------------------------------------------------------------------------------- operations

    def operation(self, value: Value, operands: list[str]) -> str:
        """The register with the result of an elementwise operation, a cast or a bitcast."""
        op, kind = value.op, value.inputs[0].dtype
        name = llvm_type(kind)
        if op == "cast":
            return self.cast(operands[0], kind, value.dtype)
        if op == "bitcast":
            if 2 == kind.itemsize == value.dtype.itemsize and (is_float(kind) or is_float(value.dtype)):
                raise self._unknown(value)
            return self.do(f"bitcast {name} {operands[0]} to {llvm_type(value.dtype)}")
        if op == "where":
            condition, a, b = operands
            name = llvm_type(value.dtype)
            return self.do(f"select i1 {condition}, {name} {a}, {name} {b}")
        if op in _COMPARED:
            return self._compare(op, kind, *operands)
        if op in ("isnan", "isinf", "isfinite"):
            return self._classify(op, kind, operands[0])
        if op.startswith("logical_"):
            bits = [self.cast(operand, kind, np.dtype(bool)) for operand in operands]
            if op == "logical_not":
                return self.do(f"xor i1 {bits[0]}, true")
            return self.do(f"{op.removeprefix('logical_')} i1 {bits[0]}, {bits[1]}")
        if op in _LOGIC:
            return self.do(f"{_LOGIC[op]} {name} {operands[0]}, {operands[1]}")
        if op == "invert":
            return self.do(f"xor {name} {operands[0]}, {'true' if name == 'i1' else '-1'}")
        if op in ("maximum", "minimum"):
            return self.extreme(op, kind, *operands)
        if is_float(kind):
            return self._of_floats(op, kind, operands)
        if kind.kind in "iu":
            return self._of_whole(op, kind, operands)
        raise self._unknown(value)

    def _unknown(self, value: Value) -> PlanError:
        return PlanError(f"{value.op} of {value.inputs[0].dtype} has no compiled form ({value.source})")

    def _of_floats(self, op: str, kind: np.dtype, operands: list[str]) -> str:
        name = llvm_type(kind)
        one = literal(kind.type(1))
        if op in _FLOAT:
            return self.do(f"{_FLOAT[op]} contract {name} {operands[0]}, {operands[1]}")
        a = operands[0]
        if op == "negative":
            return self.do(f"fneg {name} {a}")
        if op == "absolute":
            return self.call("fabs", name, a)
        if op == "square":
            return self.do(f"fmul contract {name} {a}, {a}")
        if op == "reciprocal":
            return self.do(f"fdiv {name} {one}, {a}")
        if op == "sqrt":
            return self.call("sqrt", name, a)
        if op in _ROUNDED:
            return self.call(_ROUNDED[op], name, a)
        if op == "copysign":
            return self.call("copysign", name, *operands)
        if op == "signbit":
            bits = "i64" if name == "double" else "i32"
            return self.do(f"icmp slt {bits} {self.do(f'bitcast {name} {a} to {bits}')}, 0")
        if op == "sign":
            zero = literal(kind.type(0))
            unit = self.call("copysign", name, one, a)
            nonzero = self.do(f"fcmp one {name} {a}, {zero}")  # false for nan, which is its own sign
            either = self.do(f"select i1 {nonzero}, {name} {unit}, {name} {zero}")
            nan = self.do(f"fcmp uno {name} {a}, {a}")
            return self.do(f"select i1 {nan}, {name} {a}, {name} {either}")
        if op in ("remainder", "floor_divide"):
            return self._floor_division(op, name, literal(kind.type(0)), *operands)
        raise PlanError(f"{op} of {kind} has no compiled form")

    def _floor_division(self, op: str, name: str, zero: str, a: str, b: str) -> str:
        if name == "float":  # a GPU's rest is exact where it holds the quotient: that of float32 numbers, in float64
            wide = [self.do(f"fpext float {number} to double") for number in (a, b)]
            rest = self.do(f"fptrunc double {self.do(f'frem double {wide[0]}, {wide[1]}')} to float")
        else:
            rest = self.do(f"frem {name} {a}, {b}")
        nonzero, negative, divisor = (
            self.do(f"fcmp une {name} {rest}, {zero}"),
            self.do(f"fcmp olt {name} {rest}, {zero}"),
            self.do(f"fcmp olt {name} {b}, {zero}"),
        )
        differ = self.do(f"and i1 {nonzero}, {self.do(f'xor i1 {negative}, {divisor}')}")
        moved = self.do(f"select i1 {differ}, {name} {self.do(f'fadd {name} {rest}, {b}')}, {name} {rest}")
        if op == "remainder":
            signed = self.call("copysign", name, zero, b)
            return self.do(f"select i1 {nonzero}, {name} {moved}, {name} {signed}")
        quotient = self.do(f"fdiv {name} {self.do(f'fsub {name} {a}, {moved}')}, {b}")
        return self.call("rint", name, quotient)

    def _of_whole(self, op: str, kind: np.dtype, operands: list[str]) -> str:
        name, signed = llvm_type(kind), kind.kind == "i"
        a = operands[0]
        if op in _WHOLE:
            return self.do(f"{_WHOLE[op]} {name} {a}, {operands[1]}")
        if op == "square":
            return self.do(f"mul {name} {a}, {a}")
        if op == "negative":
            return self.do(f"sub {name} 0, {a}")
        if op == "absolute":
            negated = self.do(f"sub {name} 0, {a}")
            below = self.do(f"icmp slt {name} {a}, 0")
            return self.do(f"select i1 {below}, {name} {negated}, {name} {a}") if signed else a
        if op == "sign":
            above, below = self.do(f"icmp ne {name} {a}, 0"), self.do(f"icmp slt {name} {a}, 0")
            unit = self.do(f"select i1 {below}, {name} -1, {name} 1") if signed else "1"
            return self.do(f"select i1 {above}, {name} {unit}, {name} 0")
        if op in ("left_shift", "right_shift"):
            return self._shift(op, name, signed, 8 * kind.itemsize, *operands)
        if op in ("floor_divide", "remainder"):
            return self._whole_division(op, name, signed, *operands)
        raise PlanError(f"{op} of {kind} has no compiled form")

    def _shift(self, op: str, name: str, signed: bool, bits: int, a: str, by: str) -> str:
        if op == "left_shift":
            shifted, beyond = "shl", "0"
        else:
            shifted = "ashr" if signed else "lshr"
            beyond = self.do(f"ashr {name} {a}, {bits - 1}") if signed else "0"
        if by.isdecimal() and int(by) < bits:
            return self.do(f"{shifted} {name} {a}, {by}")
        # IR leaves a shift by all bits or more undefined; NumPy does not
        inside = self.do(f"icmp ult {name} {by}, {bits}")
        safe = self.do(f"select i1 {inside}, {name} {by}, {name} 0")
        result = self.do(f"{shifted} {name} {a}, {safe}")
        return self.do(f"select i1 {inside}, {name} {result}, {name} {beyond}")

    def _whole_division(self, op: str, name: str, signed: bool, a: str, b: str) -> str:
        # by zero NumPy gives zero; IR leaves it undefined, and the lowest number by -1 too
        zero = self.do(f"icmp eq {name} {b}, 0")
        safe = self.do(f"select i1 {zero}, {name} 1, {name} {b}")
        if not signed:
            quotient, rest = self.do(f"udiv {name} {a}, {safe}"), self.do(f"urem {name} {a}, {safe}")
        else:
            minus = self.do(f"icmp eq {name} {safe}, -1")
            divisor = self.do(f"select i1 {minus}, {name} 1, {name} {safe}")
            quotient, rest = self.do(f"sdiv {name} {a}, {divisor}"), self.do(f"srem {name} {a}, {divisor}")
            negated = self.do(f"sub {name} 0, {a}")
            quotient = self.do(f"select i1 {minus}, {name} {negated}, {name} {quotient}")
            nonzero = self.do(f"icmp ne {name} {rest}, 0")
            opposed = self.do(f"icmp slt {name} {self.do(f'xor {name} {rest}, {safe}')}, 0")
            down = self.do(f"and i1 {nonzero}, {opposed}")
            quotient = self.do(f"select i1 {down}, {name} {self.do(f'sub {name} {quotient}, 1')}, {name} {quotient}")
            rest = self.do(f"select i1 {down}, {name} {self.do(f'add {name} {rest}, {safe}')}, {name} {rest}")
        return self.do(f"select i1 {zero}, {name} 0, {name} {quotient if op == 'floor_divide' else rest}")

    def _compare(self, op: str, kind: np.dtype, a: str, b: str) -> str:
        ordered, whole = _COMPARED[op]
        if is_float(kind):
            return self.do(f"fcmp {ordered} {llvm_type(kind)} {a}, {b}")
        sign = "" if whole in ("eq", "ne") else "s" if kind.kind == "i" else "u"
        return self.do(f"icmp {sign}{whole} {llvm_type(kind)} {a}, {b}")

    def _classify(self, op: str, kind: np.dtype, a: str) -> str:
        if not is_float(kind):
            return "true" if op == "isfinite" else "false"
        name, infinity = llvm_type(kind), literal(kind.type(np.inf))
        if op == "isnan":
            return self.do(f"fcmp uno {name} {a}, {a}")
        return self.do(f"fcmp {'oeq' if op == 'isinf' else 'olt'} {name} {self.call('fabs', name, a)}, {infinity}")

    def extreme(self, op: str, kind: np.dtype, a: str, b: str) -> str:
        """The larger or the smaller, and nan where either is."""
        name = llvm_type(kind)
        if kind.kind == "b":
            return self.do(f"{'or' if op == 'maximum' else 'and'} i1 {a}, {b}")
        if kind.kind in "iu":
            sign = "s" if kind.kind == "i" else "u"
            beats = self.do(f"icmp {sign}{'gt' if op == 'maximum' else 'lt'} {name} {a}, {b}")
            return self.do(f"select i1 {beats}, {name} {a}, {name} {b}")
        # a where it beats b, else b, which b's nan is too: one instruction on x86; then a's nan
        if a.startswith("0x"):
            a, b = b, a
        if b.startswith("0x"):  # a constant that is no nan: one instruction in all
            beaten = self.do(f"fcmp {'olt' if op == 'maximum' else 'ogt'} {name} {a}, {b}")
            return self.do(f"select i1 {beaten}, {name} {b}, {name} {a}")
        beats = self.do(f"fcmp {'ogt' if op == 'maximum' else 'olt'} {name} {a}, {b}")
        best = self.do(f"select i1 {beats}, {name} {a}, {name} {b}")
        nan = self.do(f"fcmp uno {name} {a}, {a}")
        return self.do(f"select i1 {nan}, {name} {a}, {name} {best}")

    def cast(self, a: str, source: np.dtype, target: np.dtype) -> str:
        have, want = llvm_type(source), llvm_type(target)
        if source == target:
            return a
        if target.itemsize == 2 and is_float(target):
            wide = np.dtype(np.float32)
            return self.rounded(target, self.cast(a, wide if is_float(source) and have == want else source, wide))
        if target.kind == "b":
            if is_float(source):
                return self.do(f"fcmp une {have} {a}, {literal(source.type(0))}")
            return self.do(f"icmp ne {have} {a}, 0")
        if is_float(source) and is_float(target):
            if have == want:
                return a
            return self.do(f"{'fpext' if want == 'double' else 'fptrunc'} {have} {a} to {want}")
        if is_float(source):
            return self.do(f"{'fptosi' if target.kind == 'i' else 'fptoui'} {have} {a} to {want}")
        if target.kind == "f":
            return self.do(f"{'sitofp' if source.kind == 'i' else 'uitofp'} {have} {a} to {want}")
        if have == want:
            return a
        if source.kind == "b" or target.itemsize > source.itemsize:
            return self.do(f"{'sext' if source.kind == 'i' else 'zext'} {have} {a} to {want}")
        return self.do(f"trunc {have} {a} to {want}")


def constant(value: Value) -> str:
    return literal(constant_of(value))
