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

from backends import Array, Backend
from dnn import functional


class Output:
    """The last layer's end: from the logits Z (m, K) to P, the loss and dZ. All buffers are bound here, once.

    `loss` (1,) is the mean over the batch, taken before the update. `totals` (2,) are the running sums, over the
    batches since `reset`, of that mean and of the number of correct entries.
    """

    metric: ClassVar[str] = "accuracy"

    def __init__(self, backend: Backend, Z: Array) -> None:
        m, K = Z.shape
        self._backend = backend
        self._xp: Any = backend.xp
        self.Z = Z
        self.P = backend.empty((m, K), Z.dtype)
        self.Y = backend.zeros((m, K), Z.dtype)
        self.loss = backend.zeros(1, Z.dtype)
        self._correct = backend.zeros(1, Z.dtype)
        self._scratch = backend.empty((m, K), Z.dtype)
        self._row = backend.empty(K, Z.dtype)
        self._ones_m = _filled(backend, m, Z.dtype, 1)
        self._ones_k = _filled(backend, (K, 1), Z.dtype, 1)
        self._weights = _filled(backend, m, Z.dtype, 1 / (m * self.averaged_units(K)))
        self._scale = self.gradient_factor / (m * self.averaged_units(K))
        self.totals = backend.zeros(2, np.float64)
        self._loss_total, self._correct_total = self.totals[:1], self.totals[1:]

    gradient_factor: ClassVar[float] = 1.0

    @staticmethod
    def averaged_units(K: int) -> int:
        """How many units an example's loss is averaged over."""
        return K

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        """The metric of m examples, from their mean loss and their number of correct entries."""
        return correct / (m * K)

    def load(self, targets: Array, rows: Array) -> None:
        """Take the targets of these rows."""
        self._backend.gather(targets, rows, out=self.Y)

    def activate(self) -> None:
        """P from Z, where nobody asks for the loss."""
        raise NotImplementedError

    def forward(self) -> None:
        """P and `loss` from Z and the targets."""
        raise NotImplementedError

    def backward(self, dZ: Array) -> None:
        """dZ = dJ/dZ."""
        functional.loss_backward(self._xp, self.P, self.Y, self._scale, out=dZ)

    def count_correct(self) -> None:
        raise NotImplementedError

    def tally(self) -> None:
        """Add this batch to `totals`."""
        self.count_correct()
        self._xp.add(self._loss_total, self.loss, out=self._loss_total)
        self._xp.add(self._correct_total, self._correct, out=self._correct_total)

    def reset(self) -> None:
        self.totals[...] = 0


class SigmoidOutput(Output):
    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z)
        self._predicted = backend.empty(Z.shape, np.bool_)
        self._actual = backend.empty(Z.shape, np.bool_)

    def activate(self) -> None:
        functional.sigmoid(self._xp, self.Z, out=self.P)

    def forward(self) -> None:
        functional.sigmoid_cross_entropy(
            self._xp,
            self.Z,
            self.Y,
            self._weights,
            self._ones_k,
            P=self.P,
            loss=self.loss,
            scratch=self._scratch,
            row=self._row,
        )

    def count_correct(self) -> None:
        functional.count_correct_labels(
            self._xp,
            self.P,
            self.Y,
            self._ones_m,
            self._ones_k,
            correct=self._correct,
            predicted=self._predicted,
            actual=self._actual,
            hits=self._scratch,
            row=self._row,
        )


class SoftmaxOutput(Output):
    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z)
        m, K = Z.shape
        self._labels = backend.zeros((m, 1), np.int64)
        self._classes = self._labels.reshape(m)
        self._one_hot = backend.asarray(np.eye(K, dtype=Z.dtype))
        self._predicted = backend.empty((m, 1), np.int64)
        self._column = backend.empty((m, 1), Z.dtype)
        self._losses = backend.empty((m, 1), Z.dtype)

    @staticmethod
    def averaged_units(K: int) -> int:
        return 1

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        return correct / m

    def load(self, targets: Array, rows: Array) -> None:
        self._backend.gather(targets, rows, out=self._labels)
        self._backend.gather(self._one_hot, self._classes, out=self.Y)

    def activate(self) -> None:
        functional.softmax(self._xp, self.Z, self._ones_k, out=self.P, column=self._column)

    def forward(self) -> None:
        functional.softmax_cross_entropy(
            self._xp,
            self.Z,
            self.Y,
            self._weights,
            self._ones_k,
            P=self.P,
            loss=self.loss,
            scratch=self._scratch,
            column=self._column,
            losses=self._losses,
        )

    def count_correct(self) -> None:
        functional.count_correct_classes(
            self._xp,
            self.P,
            self._labels,
            self._ones_m,
            correct=self._correct,
            predicted=self._predicted,
            hits=self._column,
        )


class LinearOutput(Output):
    metric = "rmse"
    gradient_factor = 2.0

    def __init__(self, backend: Backend, Z: Array) -> None:
        super().__init__(backend, Z)
        self.P = Z

    @staticmethod
    def metric_value(loss: float, correct: float, m: int, K: int) -> float:
        return math.sqrt(loss)

    def activate(self) -> None:
        pass

    def forward(self) -> None:
        functional.squared_error(
            self._xp,
            self.Z,
            self.Y,
            self._weights,
            self._ones_k,
            loss=self.loss,
            scratch=self._scratch,
            row=self._row,
        )

    def count_correct(self) -> None:
        pass


OUTPUTS: dict[str, type[Output]] = {"sigmoid": SigmoidOutput, "softmax": SoftmaxOutput, "linear": LinearOutput}


def _filled(backend: Backend, shape: int | tuple[int, ...], dtype: Any, value: float) -> Array:
    array = backend.empty(shape, dtype)
    array.fill(value)
    return array
