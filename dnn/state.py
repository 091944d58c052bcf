"""What changes from step to step of a training, on the device, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.backends.plan import Buffer, Plan
from dnn.backends.plan.stepwise import temporary_bytes
from dnn.optimizers import Optimizer
from dnn.parameters import Parameters
from dnn.precision import INITIAL_LOSS_SCALE, compute_dtype

OF_PRECISION = "loss_scale", "good_steps", "weights"
"""What a training in another precision does not go on with."""
OF_A_TRAINING = "theta", "learning_rate", "updates", "steps", "average", "gradients", "examples", *OF_PRECISION
"""Names that no optimizer's state can have."""
MADE_ANEW = "learning_rate", "weights"
"""What a training sets, or makes from theta: no snapshot has them."""


@dataclass(frozen=True)
class Keeps:
    """What a training keeps beside the optimizer's state and the learning rate.

    updates     the number of updates, where a schedule asks; steps: of steps, where layers draw random numbers
    average     a moving average of theta; gradients: their sum over the batches of an update, and the examples of these
    """

    updates: bool = False
    steps: bool = False
    average: bool = False
    gradients: bool = False


class TrainingState:
    """The optimizer's arrays and scalars, the learning rate, in 16 bits the weights, in float16 the loss scale and its
    count, and what else a training keeps.

    `arrays` holds all of it: flat buffers of the parameters' shape, and numbers as arrays of one element. `weights` are
    theta in 16 bits, written by every update; what else writes theta is taken over by `refresh`. `after` is what the
    host keeps between two fits: of early stopping and of schedules that look at results.
    """

    def __init__(self, optimizer: Optimizer, parameters: Parameters, keeps: Keeps = Keeps()) -> None:
        self.optimizer = optimizer
        self.precision: str | None = None
        self._backend = parameters.backend
        self.arrays: dict[str, Array] = {}
        self.after: dict[str, Any] = {}
        self.keeps = keeps
        self._complete(parameters)
        self.learning_rate = optimizer.learning_rate

    @staticmethod
    def layout(
        optimizer: Optimizer, parameters: Parameters, precision: str | None, keeps: Keeps = Keeps()
    ) -> Mapping[str, tuple[tuple[int, ...], np.dtype, float]]:
        """The shape, dtype and initial value of all that is kept, by name."""
        found: dict[str, tuple[tuple[int, ...], np.dtype, float]] = {}
        for name in (*optimizer.arrays, *optimizer.scalars):
            if name in OF_A_TRAINING:
                raise ValueError(f"{type(optimizer).__name__}: its state cannot be called {name!r}: take another name")
        flat, whole, real = parameters.flat.shape, np.dtype(np.int64), np.dtype(np.float64)
        for name in optimizer.arrays:
            found[name] = flat, parameters.dtype, 0.0
        for name, start in {"learning_rate": 0.0, **optimizer.scalars}.items():
            found[name] = (1,), real, start
        for name, asked in (("updates", keeps.updates), ("steps", keeps.steps)):
            if asked:
                found[name] = (1,), whole, 0
        if keeps.average:
            found["average"] = flat, parameters.dtype, 0.0
        if keeps.gradients:
            found |= {"gradients": (flat, parameters.dtype, 0.0), "examples": ((1,), real, 0.0)}
        if precision == "float16":
            found["loss_scale"] = (1,), parameters.dtype, INITIAL_LOSS_SCALE
            found["good_steps"] = (1,), whole, 0
        dtype = compute_dtype(parameters.dtype, parameters.backend, precision)
        if dtype != parameters.dtype:
            found["weights"] = flat, dtype, 0.0
        return found

    @property
    def of_parameters(self) -> set[str]:
        """The arrays of the parameters' shape, beside the weights in 16 bits."""
        return {*self.optimizer.arrays, "average", "gradients"}

    def kept(self, precision: str | None) -> dict[str, Array]:
        """The arrays that a training in this precision goes on with."""
        same = precision == self.precision
        return {name: array for name, array in self.arrays.items() if same or name not in OF_PRECISION}

    def set_precision(self, precision: str | None, parameters: Parameters, keeps: Keeps | None = None) -> None:
        """Train in this precision from now on, and keep this; another precision starts with a new loss scale.

        What was not kept before begins anew, the moving average as theta.
        """
        self.arrays, self.precision, self.keeps = self.kept(precision), precision, keeps or self.keeps
        self._complete(parameters)
        self.refresh(parameters)

    def _complete(self, parameters: Parameters) -> None:
        layout = self.layout(self.optimizer, parameters, self.precision, self.keeps)
        self.arrays = {name: array for name, array in self.arrays.items() if name in layout}
        for name, (shape, dtype, start) in layout.items():
            if name not in self.arrays:
                self.arrays[name] = _filled(self._backend, shape, dtype, start)
                if name == "average":
                    self.arrays[name][...] = parameters.flat

    def reset(self, parameters: Parameters) -> None:
        """Begin anew: every array and number as a new state has it."""
        for name, (_, _, start) in self.layout(self.optimizer, parameters, self.precision, self.keeps).items():
            if name == "average":
                self.arrays[name][...] = parameters.flat
            elif name != "learning_rate":
                self.arrays[name].fill(start)
        self.refresh(parameters)

    def refresh(self, parameters: Parameters) -> None:
        """Take over what theta is now."""
        if "weights" in self.arrays:
            self.arrays["weights"][...] = parameters.flat

    @property
    def learning_rate(self) -> float:
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = float(value)
        self.arrays["learning_rate"][...] = value

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: array for name, array in self.arrays.items() if name != "weights"}  # made from theta again
        arrays = {name: self._backend.to_numpy(array).copy() for name, array in kept.items()}
        return self.__dict__ | {"arrays": arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name, host in state["arrays"].items():
            self.arrays[name] = _filled(self._backend, host.shape, host.dtype, 0)
            self.arrays[name][...] = self._backend.asarray(host)


class Snapshot:
    """A copy, on the device, of all that a training changes: what to go back to when it diverges."""

    def __init__(self, parameters: Parameters, state: TrainingState, layer_state: Parameters | None = None) -> None:
        self._parameters, self._state = parameters, state
        backend = parameters.backend
        self._arrays = self.of(parameters, state.arrays, layer_state)
        self._copies = {name: backend.empty(array.shape, array.dtype) for name, array in self._arrays.items()}
        plan, self._finite = self._plan(state.optimizer, self._arrays)
        self._check = backend.run_stepwise(plan)

    @staticmethod
    def of(parameters: Parameters, arrays: Mapping[str, Array], layer_state: Parameters | None) -> dict[str, Array]:
        """What is copied."""
        found = {"theta": parameters.flat, **{name: arrays[name] for name in arrays if name not in MADE_ANEW}}
        if layer_state:
            found["layer_state"] = layer_state.flat
        return found

    @staticmethod
    def _plan(optimizer: Optimizer, arrays: Mapping[str, Array]) -> tuple[Plan, Buffer]:
        """Whether all of them are finite; a number that an optimizer begins with as infinite may be."""
        plan = Plan()
        may_be = {name for name, start in optimizer.scalars.items() if not math.isfinite(start)}
        names = [name for name in arrays if name not in may_be and arrays[name].dtype.kind == "f"]
        names = [name for name in names if name not in ("loss_scale", "examples")]
        finite = plan.buffer("finite", 1, np.bool_)
        plan.call(_all_finite, *(plan.array(name, arrays[name]) for name in names), into=finite)
        return plan, finite

    @classmethod
    def nbytes(
        cls,
        optimizer: Optimizer,
        parameters: Parameters,
        arrays: Mapping[str, Array],
        layer_state: Parameters | None = None,
    ) -> int:
        """What a snapshot allocates on the device."""
        copied = cls.of(parameters, arrays, layer_state)
        plan, _ = cls._plan(optimizer, copied)
        return sum(array.nbytes for array in copied.values()) + temporary_bytes(plan, parameters.backend)

    def is_finite(self) -> bool:
        """Whether all of it is finite now, after waiting for what computes it."""
        self._check()
        return bool(self._parameters.backend.to_numpy(self._finite.array)[0])

    def take(self) -> None:
        for name, copy in self._copies.items():
            copy[...] = self._arrays[name]

    def restore(self) -> None:
        for name, copy in self._copies.items():
            self._arrays[name][...] = copy
        self._state.refresh(self._parameters)


def _all_finite(xp: Any, *arrays: Array) -> Array:
    found = xp.min(xp.isfinite(arrays[0]))
    for array in arrays[1:]:
        found = xp.logical_and(found, xp.min(xp.isfinite(array)))
    return found.reshape(1)


def _filled(backend: Backend, shape: tuple[int, ...], dtype: Any, value: float) -> Array:
    array = backend.zeros(shape, dtype)
    if value:
        array.fill(value)
    return array
