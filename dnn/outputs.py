"""The three outputs, each with its loss and its metric, bound to the buffers of one batch size.

output    P            loss, the mean over the examples of            targets            metric
sigmoid   σ(z)         log(1 + exp(z)) − y z, averaged over K units   Y (m, K) in [0, 1]  accuracy
softmax   softmax(z)   log Σ_k exp(z_k) − z_y                         classes (m, 1)      accuracy
linear    z            (z − y)², averaged over K units                Y (m, K)            rmse
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from dnn import functional
from dnn.backends import Array, Backend


class Output:
    """The last layer's end: from the logits Z (m, K) to P, the losses and dZ. All buffers are bound here, once.

    `loss` (1,) is the mean over the batch, taken before the update. `totals` (2,) are the running sums, over the
    batches since `reset`, of that mean and of the number of hits.
    """

    metric: ClassVar[str] = "accuracy"

    def __init__(self, backend: Backend, Z: Array, losses_per_example: int | None = None) -> None:
        m, K = Z.shape
        k = losses_per_example or K
        self._xp: Any = backend.xp
        self.Z = Z
        self.P = self._outputs_for(backend)
        self.Y = backend.zeros((m, K), Z.dtype)
        self.dZ = backend.empty((m, K), Z.dtype)
        self._losses = backend.empty((m, k), Z.dtype)
        self._hits = backend.zeros((m, k), Z.dtype)
        self._scale = 1 / (m * k)
        self._gather = backend.fused(functional.gather)
        self.loss = backend.zeros(1, Z.dtype)
        self.totals = backend.zeros(2, np.float64)
        self._tally = backend.fused(functional.tally)
        self._tallied = {
            "losses": self._losses,
            "hits": self._hits,
            "weights": _filled(backend, m, Z.dtype, 1 / (m * k)),
            "ones_m": _filled(backend, m, Z.dtype, 1),
            "ones_k": _filled(backend, (k, 1), Z.dtype, 1),
            "loss": self.loss,
            "correct": backend.zeros(1, Z.dtype),
            "loss_total": self.totals[:1],
            "correct_total": self.totals[1:],
            "row": backend.empty(k, Z.dtype),
        }

    def _outputs_for(self, backend: Backend) -> Array:
        return backend.empty(self.Z.shape, self.Z.dtype)

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        """The metric of m examples, from their mean loss and their number of hits."""
        return correct / (m * K)

    def load(self, targets: Array, rows: Array) -> None:
        """Take the targets of these rows."""
        self._gather(self._xp, targets, rows, None, out=self.Y, scratch=self.Y)

    def activate(self) -> None:
        """P from Z, where nobody asks for the loss."""
        raise NotImplementedError

    def forward(self) -> None:
        """P, dZ, losses and hits, from Z and the targets."""
        raise NotImplementedError

    def tally(self) -> None:
        """`loss`, and this batch added to `totals`."""
        self._tally(self._xp, **self._tallied)

    def reset(self) -> None:
        self.totals[...] = 0


class SigmoidOutput(Output):
    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z)
        self._predicted, self._actual = (backend.empty(Z.shape, np.bool_) for _ in range(2))
        self._sigmoid = backend.fused(functional.sigmoid)
        self._cross_entropy = backend.fused(functional.sigmoid_cross_entropy)

    def activate(self) -> None:
        self._sigmoid(self._xp, self.Z, out=self.P)

    def forward(self) -> None:
        self._cross_entropy(
            self._xp,
            self.Z,
            self.Y,
            self._scale,
            P=self.P,
            dZ=self.dZ,
            losses=self._losses,
            hits=self._hits,
            predicted=self._predicted,
            actual=self._actual,
        )


class SoftmaxOutput(Output):
    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z, losses_per_example=1)
        m, K = Z.shape
        self._labels = backend.zeros((m, 1), np.int64)
        self._starts = backend.asarray(np.arange(0, m * K, K).reshape(m, 1))
        self._index = backend.empty((m, 1), np.int64)
        self._one = _filled(backend, 1, Z.dtype, 1)
        self._one_hot = backend.fused(functional.one_hot)
        self._ones_k = _filled(backend, (K, 1), Z.dtype, 1)
        self._column = backend.empty((m, 1), Z.dtype)
        self._predicted = backend.empty((m, 1), np.int64)
        self._softmax = backend.fused(functional.softmax)
        self._cross_entropy = backend.fused(functional.softmax_cross_entropy)

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        return correct / m

    def load(self, targets: Array, rows: Array) -> None:
        self._gather(self._xp, targets, rows, None, out=self._labels, scratch=self._labels)
        self._one_hot(self._xp, self._labels, self._starts, self._one, out=self.Y, index=self._index)

    def activate(self) -> None:
        self._softmax(self._xp, self.Z, self._ones_k, out=self.P, column=self._column)

    def forward(self) -> None:
        self._cross_entropy(
            self._xp,
            self.Z,
            self._labels,
            self.Y,
            self._ones_k,
            self._scale,
            P=self.P,
            dZ=self.dZ,
            losses=self._losses,
            hits=self._hits,
            column=self._column,
            predicted=self._predicted,
        )


class LinearOutput(Output):
    metric = "rmse"

    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z)
        self._scale *= 2
        self._squared_error = backend.fused(functional.squared_error)

    def _outputs_for(self, backend: Backend) -> Array:
        return self.Z

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        return math.sqrt(loss)

    def activate(self) -> None:
        pass

    def forward(self) -> None:
        self._squared_error(self._xp, self.Z, self.Y, self._scale, dZ=self.dZ, losses=self._losses)


OUTPUTS: dict[str, type[Output]] = {"sigmoid": SigmoidOutput, "softmax": SoftmaxOutput, "linear": LinearOutput}


def _filled(backend: Backend, shape: int | tuple[int, ...], dtype: Any, value: float) -> Array:
    array = backend.empty(shape, dtype)
    array.fill(value)
    return array
