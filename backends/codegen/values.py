"""What a loop of a plan computes itself, and in what order: for every target."""

from __future__ import annotations

import numpy as np

from dnn.backends.codegen.expressions import Expander, is_float, literal
from dnn.backends.plan.fusion import FREE, Fused, Loop, is_reduction, stripped
from dnn.backends.plan.graph import Plan, Value


def start_of(op: str, kind: np.dtype) -> str:
    """What a reduction begins with."""
    if op == "sum":
        return literal(kind.type(0))
    if is_float(kind):
        return literal(kind.type(-np.inf if op == "max" else np.inf))
    if kind.kind == "b":
        return "false" if op == "max" else "true"
    return str(np.iinfo(kind).min if op == "max" else np.iinfo(kind).max)


class LoopValues:
    """The values of one loop: which are in memory, and after how many passes over a row the others are known."""

    def __init__(self, plan: Plan, fused: Fused, loop: Loop) -> None:
        self.plan, self.fused, self.loop = plan, fused, loop
        self.expand = Expander(plan)
        self._levels: dict[Value, int] = {}
        self._largest: dict[Value, Value] = {}

    def is_leaf(self, value: Value) -> bool:
        """Whether it is read from memory, or known, rather than computed here."""
        if value.op in FREE:
            return True
        if value in self.loop.outputs or value in self.loop.again:
            return False
        return self.fused.place(value) is not None

    def level(self, value: Value) -> int:
        """The first pass that can compute it; of a row's value, the number of passes that it has to wait for."""
        value = stripped(value)
        if value not in self._levels:
            self._levels[value] = self._level(value)
        return self._levels[value]

    def _level(self, value: Value) -> int:
        if self.is_leaf(value) or value.op == "take":
            return 0
        if value.op == "argmax":
            return max(self.level(self.largest(value)), self.level(value.inputs[0])) + 1
        if is_reduction(value, 1):
            return self.level(value.inputs[0]) + 1
        if is_reduction(value):
            return 0
        return max((self.level(operand) for operand in value.inputs), default=0)

    def largest(self, argmax: Value) -> Value:
        """The maximum whose place `argmax` finds: computed here, whoever else may have it in memory."""
        if argmax not in self._largest:
            source = argmax.inputs[0]
            value = Value(self.plan, "max", (source,), source.dtype, (source.shape[0], 1), (1,))
            self.plan.nodes.append(value)
            self._largest[argmax] = value
        return self._largest[argmax]
