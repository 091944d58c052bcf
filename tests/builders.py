"""Networks, data and steps that several test files work on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import dnn
from dnn.backends import Backend
from dnn.backends.plan import Buffer, Value
from dnn.batches import in_place
from dnn.data import Examples, prepare
from dnn.optimizers import Optimizer
from dnn.precision import check_precision, compute_dtype
from dnn.state import TrainingState
from dnn.step import GATHERED, IN_PLACE, TRAIN, Order, Step


def shapes_of(sizes: list[int]) -> dict[str, tuple[int, ...]]:
    """The parameters of dense layers of these sizes."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        found |= {f"W{layer}": (n_out, n_in), f"b{layer}": (n_out,)}
    return found


OUTPUTS = {"sigmoid": 1, "softmax": 10, "linear": 1}
"""Heads, with a number of units that they take."""
OPTIMIZERS = [dnn.SGD(0.01), dnn.Momentum(0.01), dnn.Adam(0.001)]


class GivenGradients(Step):
    """A step whose gradients, as its backward pass gives them, are the array `given`: flat, like θ."""

    def _backward(self, dZ: Value, backward: Any, grad: Buffer) -> None:
        self.plan.store(grad, self.plan.read(self._buffer("given", grad.shape, grad.dtype)))


@dataclass(frozen=True)
class Recording(Optimizer):
    """No update of θ: its state is the gradients that it was given last."""

    arrays = ("seen",)

    def update(self, xp: Any, theta: Any, grad: Any, learning_rate: Any, *state: Any) -> Any:
        return theta, grad


@dataclass
class Problem:
    """A network with a compiled step on one batch, and all that the step works on."""

    network: dnn.Network
    examples: Examples
    state: TrainingState
    step: Step

    @property
    def backend(self) -> Backend:
        return self.network.backend

    def run(self, times: int = 1) -> None:
        """The step on its batch, again and again."""
        with self.backend.stream(), np.errstate(all="ignore"):
            for _ in range(times):
                rewind(self.step)
                self.step()

    def host(self, array: Any) -> np.ndarray:
        return self.backend.to_numpy(array).copy()

    @property
    def theta(self) -> np.ndarray:
        return self.host(self.network.parameters.flat)

    @property
    def loss(self) -> float:
        return float(self.host(self.step.loss)[0])

    def state_of(self, name: str) -> np.ndarray:
        return self.host(self.state.arrays[name])

    def set(self, array: Any, values: Any) -> None:
        array[...] = self.backend.asarray(np.asarray(values, array.dtype))

    def by_name(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """An array of θ's layout, as one array a parameter."""
        parameters, found = self.network.parameters, {}
        for name in parameters:
            part = parameters.part(Buffer("flat", flat.shape, flat.dtype), name)
            found[name] = flat[part.start : part.start + part.size].reshape(part.shape)
        return found

    def gradients(self) -> dict[str, np.ndarray]:
        """Of a step that goes as far as GRADIENTS, or that records what its update was given."""
        recorded = "seen" in self.state.arrays
        return self.by_name(self.state_of("seen") if recorded else self.host(self.step.array("grad")))

    def everything(self) -> dict[str, bytes]:
        """Every bit that an update may change."""
        arrays = {"theta": self.network.parameters.flat, **self.state.arrays}
        return {n: self.host(a).tobytes() for n, a in arrays.items() if n not in ("loss_scale", "good_steps")}


def data(
    n_in: int, output: str, units: int, m: int, of_bytes: bool = False, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """X and Y for a network with this output."""
    generator = np.random.default_rng(seed)
    X = generator.integers(0, 256, (m, n_in), np.uint8) if of_bytes else generator.standard_normal((m, n_in))
    if output == "softmax":
        return X, generator.integers(0, units, m)
    Y = generator.standard_normal((m, units)) if output == "linear" else generator.integers(0, 2, (m, units))
    return X, Y


def problem(
    sizes: list[int],
    output: str,
    backend: str,
    m: int,
    *,
    dtype: str = "float32",
    activation: Any = "relu",
    optimizer: Optimizer = OPTIMIZERS[0],
    precision: str | None = None,
    goal: str = TRAIN,
    loading: str = GATHERED,
    of_bytes: bool = False,
    kind: type[Step] = Step,
    optimized: bool = True,
    biases: bool = True,
) -> Problem:
    """A compiled step with its batch of m examples loaded: gathered from them, or in place."""
    network = dnn.Network(sizes, activation=activation, output=output, dtype=dtype, backend=backend)
    X, Y = data(sizes[0], output, sizes[-1], m, of_bytes)
    if biases:
        # with biases of zero a unit whose inputs are all dead sits on relu's kink
        generator = np.random.default_rng(4)
        for layer in range(1, len(sizes)):
            network.parameters[f"b{layer}"] = generator.standard_normal(sizes[layer])
    its = network.backend
    with its.stream():
        examples = prepare(network, X, Y, fitting=True).on(its)
        state = TrainingState(optimizer, network.parameters)
        reduced = check_precision(network.dtype, its, precision)
        state.set_precision(reduced, network.parameters)
        order = None
        if loading == IN_PLACE:
            examples = in_place(its, examples, np.arange(m), compute_dtype(network.dtype, its, reduced))
        else:
            order = Order(its.asarray(np.arange(m)), its.zeros(1, np.int64))
        step = kind(network, examples, m, goal, loading, optimizer, state.arrays, reduced, order)
        step.compile(optimized)
    return Problem(network, examples, state, step)


def rewind(step: Step) -> None:
    """Its next batch is the first one."""
    for buffer in step.plan.buffers:
        if buffer.name == "position":
            buffer.array.fill(0)


def nodes_of(step: Step) -> Mapping[str, int]:
    """The launches and products of a step, in one kernel or captured. What no graph can hold is an error."""
    run: Any = step._run
    for _ in range(3):
        rewind(step)
        step()
    counts: Counter[str] = run._graphs[1].counts if hasattr(run, "_graphs") else run.counts
    return counts
