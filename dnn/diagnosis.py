"""Where a training that has diverged began to: in which step, layer and tensor, and what was largest before.

The batches of the epoch run again, one by one, up to the first after which something is not finite. That one runs once
more, from the same state, operation by operation. Of the values that are not finite there, those count from which one
leads to a result that is not; it began with the first whose inputs are all finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from dnn.backends import Array, Backend
from dnn.backends.plan import Value
from dnn.backends.plan.graph import View
from dnn.batches import Batches
from dnn.layers import walk
from dnn.layers.base import Name
from dnn.network import Network
from dnn.parameters import Parameters, numbered
from dnn.state import Snapshot, TrainingState
from dnn.step import Step

OVERFLOWS = "add", "subtract", "multiply", "square", "exp", "expm1", "dot", "sum", "cast", "ldexp", "power"
"""Operations of finite numbers whose result is not finite only because it is too large."""
SUMS = "dot", "sum"
"""Of these the result may be nan where a part of the sum is too large."""
MAY_BE = "totals", "loss_scale", "examples", "weights"
"""What a step writes that need not be finite: the metric may be infinite, and weights in 16 bits are made of theta, so
that what is wrong with them shows in the next step."""


@dataclass(frozen=True)
class Origin:
    """Where it began: in this step of the epoch, the first being 1, in this layer and tensor; None is not known."""

    step: int | None = None
    layer: int | None = None
    tensor: str | None = None
    words: str = ""
    """The layer, the tensor and what became of it."""
    largest: str = ""
    """What was largest before, with numbers."""

    def told(self, epoch: int) -> str:
        """What is known, and a colon; nothing where nothing is."""
        if self.step is None:
            return ""
        where = f", {self.words}" if self.words else ""
        return f"it began in step {self.step} of epoch {epoch}{where} (largest before: {self.largest}): "


def find_origin(network: Network, batches: Batches, snapshot: Snapshot, state: TrainingState, start: int = 0) -> Origin:
    """Where the next epoch of the network goes wrong, all being finite now, and the order of its examples being set;
    `start` of its batches are done.

    It takes a pass over the examples at most. All that a training changes is then as it was, and the snapshot is of
    that. Nothing is known where the epoch does not go wrong, or there is no memory to find out.
    """
    try:
        with _put_back(network, snapshot, state):
            return _search(network, batches, snapshot, state, start)
    except MemoryError:
        return Origin()


@contextmanager
def _put_back(network: Network, snapshot: Snapshot, state: TrainingState) -> Iterator[None]:
    """The arrays of a training are afterwards as before; on the host meanwhile, for the snapshot goes along."""
    backend = network.backend
    arrays = Snapshot.of(network.parameters, state.arrays, network.layer_state)
    kept = {name: backend.to_numpy(array).copy() for name, array in arrays.items()}
    try:
        yield
    finally:
        for name, array in arrays.items():
            array[...] = backend.asarray(kept[name])
        state.refresh(network.parameters)
        snapshot.take()


def _search(network: Network, batches: Batches, snapshot: Snapshot, state: TrainingState, start: int) -> Origin:
    batches.reset()
    with closing(batches.run(one_by_one=True, start=start)) as calls:
        for number, _ in enumerate(calls, start=start):
            step = batches.last
            loss = float(network.backend.to_numpy(step.loss)[0])
            if not (math.isfinite(loss) and snapshot.is_finite()):
                snapshot.restore()
                batches.return_to(number)
                return _Batch(network, batches.examples_of(number), step, state).origin(number + 1)
            snapshot.take()
    return Origin()


@dataclass(frozen=True)
class _Bad:
    """What is not finite of a value: the first element, how many rows, and whether any is infinite."""

    first: int
    rows: int
    infinite: bool


class _Observed:
    """What an observed run has computed: the values that are not finite, and how large those with names are."""

    def __init__(self, backend: Backend, names: Mapping[Value, Name]) -> None:
        self._backend, self._names = backend, names
        self.bad: dict[Value, _Bad] = {}
        self.largest: dict[Value, float] = {}

    def __call__(self, value: Value, array: Array) -> None:
        if value.dtype.kind not in "fV" or not value.size:
            return
        host = self._backend.to_numpy(array)
        finite = np.isfinite(host)
        if not finite.all():
            rows = int((~finite.reshape(len(finite), -1).all(axis=1)).sum()) if finite.ndim else 1
            self.bad[value] = _Bad(int(np.argmin(finite)), rows, bool(np.isinf(host).any()))
        elif value in self._names:
            self.largest[value] = float(np.abs(host).max())


class _Batch:
    """The batch in which it began, about to run once more from the state before it."""

    def __init__(self, network: Network, examples: np.ndarray, step: Step, state: TrainingState) -> None:
        self._network, self._examples, self._plan = network, examples, step.plan
        self._optimizer = state.optimizer
        backend = network.backend
        self._weights = _largest_of(network.parameters)
        flat = {name: backend.to_numpy(state.arrays[name]) for name in state.optimizer.arrays}
        self._state = {
            f"{name} of {self._parameter(int(np.argmax(np.abs(array))))}": float(np.abs(array).max())
            for name, array in flat.items()
        }
        self._observed = _Observed(backend, self._plan.names)
        backend.run_stepwise(self._plan, self._observed)()
        self._bad = self._observed.bad
        self._stores = {node.number: node for node in self._plan.nodes if node.op == "store"}

    def origin(self, step: int) -> Origin:
        start = self._start()
        if start is None:  # rounded otherwise, the operations one by one stay finite
            return Origin(step, largest=_in_words(self._weights))
        value, name, words = self._called(start)
        layer, where = self._layer(name)
        members = f", member {name.member}" if name.member is not None else ""
        # of the gradients, those of this batch that came before; of the optimizer's state, where the update is wrong
        activations: dict[str, float] = {}
        gradients: dict[str, float] = {}
        for earlier, size in self._observed.largest.items():
            its = self._plan.names[earlier]
            if earlier.number < start.number and (its.layer is not None or its.tensor == "X"):
                kind = gradients if its.tensor.startswith("d") else activations
                kind[its.tensor] = max(size, kind.get(its.tensor, 0.0))  # of several members
        largest = [self._weights, activations, gradients, self._state if value.op == "store" else {}]
        return Origin(
            step,
            layer,
            name.tensor,
            f"{where}{members}{': ' if where or members else ''}{words} {self._became(start)}",
            ", ".join(_in_words(each) for each in largest if any(each.values())),
        )

    # ------------------------------------------------------------------------------------ the graph

    def _causes(self, value: Value) -> list[Value]:
        """The values that are not finite among those that it is made of."""
        made_of = value.inputs
        if value.op == "load":
            made_of = tuple(self._stores[number].inputs[0] for number in value.attributes[1])
        return [each for each in made_of if each in self._bad]

    def _counts(self, store: Value) -> bool:
        """Whether no step may write there what is not finite."""
        buffer = store.attributes[0].buffer
        starts = self._optimizer.scalars.get(buffer.name, 0.0)
        return buffer.keeps and buffer.name not in MAY_BE and math.isfinite(starts)

    def _start(self) -> Value | None:
        """The first value that is not finite though all that it is made of is, on a way to a result."""
        stack = [s.inputs[0] for s in self._stores.values() if s.inputs[0] in self._bad and self._counts(s)]
        seen: set[Value] = set()
        while stack:
            value = stack.pop()
            if value not in seen:
                seen.add(value)
                stack += self._causes(value)
        return min(seen, key=lambda value: value.number, default=None)

    def _called(self, start: Value) -> tuple[Value, Name, str]:
        """The first value from there on that has a name, or is stored: what it is, its name, and in words."""
        reached = {start}
        for node in self._plan.nodes[start.number :]:  # in order: what a value is made of comes before it
            if node in self._bad and not reached.isdisjoint(self._causes(node)):
                reached.add(node)
            if node in reached and node in self._plan.names:
                name = self._plan.names[node]
                return node, *self._in_the_field(node, name)
            if node in reached and node.op == "load" and not self._causes(node):
                return node, *self._stored(node.attributes[0], node)
            if node.op == "store" and node.inputs[0] in reached and self._counts(node):
                return node, *self._stored(node.attributes[0], node.inputs[0])
        return start, Name(f"a value of {start.source}"), f"a value of {start.source}"

    # ------------------------------------------------------------------------------------ in words

    def _in_the_field(self, value: Value, name: Name) -> tuple[Name, str]:
        network, bad, m = self._network, self._bad[value], len(self._examples)
        tensor, words, rows = name.tensor, name.tensor, value.shape[0] if value.ndim else 1
        row, column = divmod(bad.first, value.shape[1] if value.ndim == 2 else 1)
        if network.members > 1 and rows % network.members == 0 and name.member is None and rows >= m:
            name = name._replace(member=row // (rows // network.members))
        if tensor in ("X", "the loss") and rows % m == 0:
            example = self._examples[row % m]
            words = f"{tensor} of example {example}"
            if tensor == "X":
                features = network.feature_names
                words += f", feature {column if features is None else features[column]!s}"
            elif bad.rows > 1:
                words += f" and {bad.rows - 1} more"
        return name, words

    def _stored(self, view: View, value: Value) -> tuple[Name, str]:
        """What is kept there, after the update; of a value that a step begins with, what it is."""
        name, optimizer = view.buffer.name, self._optimizer
        if name in ("loss", "layer_state") or name in optimizer.scalars:
            owner = f"{type(optimizer).__name__}'s " if name in optimizer.scalars else ""
            tensor = "the loss" if name == "loss" else name
            return Name(tensor), f"{owner}{tensor}"
        if view.buffer.size != self._network.parameters.flat.size:
            return Name(name), name
        W = self._parameter(view.start + self._bad[value].first)
        if name == "theta":
            return Name(W, member=self._member(W, view, value)), f"{W} after the update"
        if name == "weights":
            return Name(W), W
        kept = {"average": "the moving average", "gradients": "the sum of gradients"}.get(name, name)
        owner = f"{type(optimizer).__name__}'s " if name in optimizer.arrays else ""
        return Name(f"{kept} of {W}", member=self._member(W, view, value)), f"{owner}{kept} of {W}"

    def _parameter(self, element: int) -> str:
        """The parameter that has this element of theta."""
        parameters = self._network.parameters
        return next(name for name in parameters if element < parameters.extent(name)[1])

    def _member(self, name: str, view: View, value: Value) -> int | None:
        parameters, copies = self._network.parameters, self._network.copies
        if copies == 1:
            return None
        within = view.start + self._bad[value].first - parameters.extent(name)[0]
        return within // (math.prod(parameters.shapes[name]) // copies)

    def _layer(self, name: Name) -> tuple[int | None, str]:
        """The number of the layer in the network, and what to call it."""
        layers = enumerate(walk(self._network.stack, self._network.layer_sizes[0]), start=1)
        for place, (layer, number, n_in, _) in layers:
            own = [numbered(parameter, number) for parameter in layer.shapes(n_in)]
            if place == name.layer or (name.layer is None and name.tensor.split(" of ")[-1] in own):
                return place, f"layer {place} ({layer.family})"
        return None, ""

    def _became(self, start: Value) -> str:
        bad = self._bad[start]
        if start.op in SUMS or (bad.infinite and start.op in OVERFLOWS):
            return f"overflows {start.dtype.name}"
        if start.op == "load" and start.attributes[0].buffer.name == "weights":
            return f"overflows {start.dtype.name}"
        return "is inf" if bad.infinite else "is nan"


def _largest_of(parameters: Parameters) -> dict[str, float]:
    return {name: float(np.abs(parameters.backend.to_numpy(view)).max()) for name, view in parameters.items()}


def _in_words(sizes: dict[str, float]) -> str:
    """The largest by name."""
    name = max(sizes, key=lambda name: sizes[name])
    return f"{name} {sizes[name]:.2g}"
