"""What changes from step to step of a training, on the device, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.optimizers import Optimizer
from dnn.parameters import Parameters
from dnn.precision import INITIAL_LOSS_SCALE, compute_dtype

OF_PRECISION = "loss_scale", "good_steps", "weights"
"""What a training in another precision does not go on with."""


class TrainingState:
    """The optimizer's arrays and scalars, the learning rate, in 16 bits the weights, in float16 the loss scale and its
    count.

    `arrays` holds all of it: flat buffers of the parameters' shape, and numbers as arrays of one element. `weights` are
    theta in 16 bits, written by every update; what else writes theta is taken over by `refresh`.
    """

    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        self.optimizer = optimizer
        self.precision: str | None = None
        self._backend = backend = parameters.backend
        self.arrays: dict[str, Array] = {}
        for name, (shape, dtype, start) in self.layout(optimizer, parameters, None).items():
            self.arrays[name] = _filled(backend, shape, dtype, start)
        self.learning_rate = optimizer.learning_rate

    @staticmethod
    def layout(
        optimizer: Optimizer, parameters: Parameters, precision: str | None
    ) -> Mapping[str, tuple[tuple[int, ...], np.dtype, float]]:
        """The shape, dtype and initial value of all that is kept, by name."""
        found: dict[str, tuple[tuple[int, ...], np.dtype, float]] = {}
        for name in optimizer.arrays:
            found[name] = parameters.flat.shape, parameters.dtype, 0.0
        for name, start in {"learning_rate": 0.0, **optimizer.scalars}.items():
            found[name] = (1,), np.dtype(np.float64), start
        if precision == "float16":
            found["loss_scale"] = (1,), parameters.dtype, INITIAL_LOSS_SCALE
            found["good_steps"] = (1,), np.dtype(np.int64), 0
        dtype = compute_dtype(parameters.dtype, parameters.backend, precision)
        if dtype != parameters.dtype:
            found["weights"] = parameters.flat.shape, dtype, 0.0
        return found

    def kept(self, precision: str | None) -> dict[str, Array]:
        """The arrays that a training in this precision goes on with."""
        same = precision == self.precision
        return {name: array for name, array in self.arrays.items() if same or name not in OF_PRECISION}

    def set_precision(self, precision: str | None, parameters: Parameters) -> None:
        """Train in this precision from now on; another one starts with a new loss scale."""
        self.arrays, self.precision = self.kept(precision), precision
        for name, (shape, dtype, start) in self.layout(self.optimizer, parameters, precision).items():
            if name not in self.arrays:
                self.arrays[name] = _filled(self._backend, shape, dtype, start)
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


def _filled(backend: Backend, shape: tuple[int, ...], dtype: Any, value: float) -> Array:
    array = backend.zeros(shape, dtype)
    if value:
        array.fill(value)
    return array
