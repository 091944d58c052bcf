"""What is measured on the device: of a batch, to be summed over the batches, and of all examples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dnn.backends import Array
from dnn.functional.batches import one_hot


def mean_loss(xp: Any, losses: Array) -> Array:
    """The mean of all losses, in float64. Each is divided first: the sum cannot overflow where the mean does not."""
    return xp.sum(losses.astype(np.float64) * (1 / losses.size))


def weighted_losses(xp: Any, losses: Array, weights: Array) -> tuple[Array, Array]:
    """Σ w l and Σ w in float64, each (1,). losses (m, K), weights (m, K), or (m, 1) for all outputs of an example."""
    wide, K = weights.astype(np.float64), losses.shape[1]
    total = xp.sum(losses.astype(np.float64) * wide)
    return total.reshape(1), (xp.sum(wide) * (K // weights.shape[1] if weights.shape[1] < K else 1)).reshape(1)


def weighted_mean(xp: Any, total: Array, weights: Array) -> Array:
    """The mean, and 0 where nothing weighs anything."""
    return total / xp.where(weights > 0, weights, 1)


def correct_labels(xp: Any, P: Array, Y: Array) -> Array:
    """Where P (m, K) is on the same side of 1/2 as Y; 1/2 itself counts as below."""
    return (P > 0.5) == (Y > 0.5)


def correct_classes(xp: Any, P: Array, labels: Array) -> Array:
    """Where the first of a row's largest entries is at the label. P (m, K), labels (m, 1)."""
    return xp.argmax(P, axis=1, keepdims=True) == labels


# Metrics over all examples at once. Each takes the answers P (m, K), the targets Y and the weights of the examples
# (m, 1), or None where all count the same, and gives a number as an array () in float64. Y are the class numbers (m, 1)
# of a softmax, or (m, K): the labels, 0 or 1, of sigmoid units, or the values of a linear output. Of several labels the
# metric is the mean of each one's. The numbers are scikit-learn's, with its sample_weight, where nothing else is said.
#
# They are called with arrays, not while a plan is built, and never wait for the device: `if` asks for shapes only, and
# there is no bincount, in which CuPy reads the largest entry back.


def accuracy(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """The share of right answers: the first of the largest is at the label, or P is on the same side of 1/2 as Y."""
    return _average(xp, _correct(xp, P, Y), weights)


def balanced_accuracy(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """The mean of the classes' recalls, over the classes that Y has. Of several labels, the mean of each one's."""
    predicted, true = _decisions(xp, P, Y)
    if _are_classes(P, Y):
        hits, support = (_total(xp, x, weights).reshape(-1, 1) for x in (predicted & true, true))
    else:
        not_predicted, not_true = xp.logical_not(predicted), xp.logical_not(true)
        hits = _rows(xp, [_total(xp, x, weights) for x in (not_predicted & not_true, predicted & true)])
        support = _rows(xp, [_total(xp, x, weights) for x in (not_true, true)])
    recalls = _ratio(xp, hits, support, 0.0)
    return _mean(xp, _ratio(xp, xp.sum(recalls, axis=0), xp.sum(support > 0, axis=0), np.nan))


def top_k_accuracy(xp: Any, P: Array, Y: Array, weights: Array | None = None, k: int = 5) -> Array:
    """The share of the examples whose class is among the k largest. Of equal entries the last counts as the largest."""
    true = one_hot(xp, Y, P.shape[1])
    at_label = xp.sum(xp.where(true, P, 0), axis=1, keepdims=True)
    above = (at_label < P) | ((at_label == P) & (xp.arange(P.shape[1]) > Y))
    return _average(xp, xp.sum(above, axis=1, keepdims=True) < k, weights)


def precision_score(xp: Any, P: Array, Y: Array, weights: Array | None = None, average: str | None = None) -> Array:
    """tp / (tp + fp), averaged as in `_over_classes`."""
    return _over_classes(xp, P, Y, weights, average, lambda tp, predicted, true: (tp, predicted))


def recall_score(xp: Any, P: Array, Y: Array, weights: Array | None = None, average: str | None = None) -> Array:
    """tp / (tp + fn), averaged as in `_over_classes`."""
    return _over_classes(xp, P, Y, weights, average, lambda tp, predicted, true: (tp, true))


def f1_score(xp: Any, P: Array, Y: Array, weights: Array | None = None, average: str | None = None) -> Array:
    """2 tp / (2 tp + fp + fn), averaged as in `_over_classes`."""
    return _over_classes(xp, P, Y, weights, average, lambda tp, predicted, true: (2 * tp, predicted + true))


def roc_auc(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """Σ_ij v_i w_j ([p_i > p_j] + [p_i = p_j] / 2) / (Σ v_i Σ w_j), i positive with weight v, j negative with w.

    The area under the ROC curve (Hanley and McNeil 1982). Of classes, each against the rest, and of labels the mean;
    nan where one has no positive or no negative.
    """
    return _over_rankings(xp, P, Y, weights, _area)


def average_precision(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """Σ_n (R_n − R_(n−1)) P_n, with the precision P_n and the recall R_n of p ≥ the n-th largest distinct answer.

    Of classes, each against the rest, and of labels the mean; 0 for one that has no positive.
    """
    return _over_rankings(xp, P, Y, weights, _steps)


def log_loss(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """The mean of −log p_label, or of −y log p − (1 − y) log(1 − p); p is held off 0 and 1 by the epsilon of its dtype.

    Of several labels the mean, not the sum, as a training's loss.
    """
    epsilon = float(np.finfo(P.dtype).eps)
    clipped = xp.maximum(xp.minimum(_double(P), 1 - epsilon), epsilon)
    if _are_classes(P, Y):
        true = one_hot(xp, Y, P.shape[1])
        return _average(xp, -xp.sum(xp.where(true, xp.log(clipped), 0), axis=1, keepdims=True), weights)
    return _average(xp, -(Y * xp.log(clipped) + (1 - Y) * xp.log(1 - clipped)), weights)


def brier_score(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """The mean of (p − y)², or of Σ_k (p_k − [k = label])², which reaches from 0 to 2 (Brier 1950, equation 2)."""
    if _are_classes(P, Y):
        squares = xp.square(_double(P) - one_hot(xp, Y, P.shape[1]))
        return _average(xp, xp.sum(squares, axis=1, keepdims=True), weights)
    return _average(xp, xp.square(_double(P) - Y), weights)


def calibration_error(xp: Any, P: Array, Y: Array, weights: Array | None = None, bins: int = 15) -> Array:
    """Σ_b |B_b| / m · |accuracy(B_b) − confidence(B_b)|, with B_b the examples of a confidence in ((b − 1)/15, b/15].

    The expected calibration error (Guo et al. 2017, equation 3). The confidence is the largest probability: of a label
    max(p, 1 − p).
    """
    P64 = _double(P)
    confidence = xp.max(P64, axis=1, keepdims=True) if _are_classes(P, Y) else xp.maximum(P64, 1 - P64)
    confidence = xp.minimum(confidence, 1)  # a softmax may be rounded to more
    gaps = _correct(xp, P, Y) - confidence
    errors: Any = 0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        errors = errors + xp.absolute(_total(xp, xp.where(inside, gaps, 0), weights))
    return _mean(xp, _ratio(xp, errors, _weight(xp, P, weights), np.nan))


def confusion_matrix(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """C_kl: the weight of the examples of class k that are taken for class l, (K, K); (2, 2) of one sigmoid unit.

    Of several labels (K, 2, 2), a matrix each. In float64.
    """
    predicted, true = _decisions(xp, P, Y)
    if _are_classes(P, Y):
        true = _double(true) if weights is None else true * _double(weights)
        return xp.dot(true.T, _double(predicted))
    not_predicted, not_true = xp.logical_not(predicted), xp.logical_not(true)
    cells = not_true & not_predicted, not_true & predicted, true & not_predicted, true & predicted
    matrices = _rows(xp, [_total(xp, cell, weights) for cell in cells]).T
    return matrices.reshape((2, 2) if P.shape[1] == 1 else (-1, 2, 2))


def root_mean_squared_error(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """√ of the mean of (p − y)² over examples and outputs: one root, where scikit-learn takes one an output."""
    return xp.sqrt(_average(xp, xp.square(_double(P) - Y), weights))


def mean_absolute_error(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """The mean of |p − y| over examples and outputs."""
    return _average(xp, xp.absolute(_double(P) - Y), weights)


def r2_score(xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
    """1 − Σ (p − y)² / Σ (y − ȳ)² of each output, then their mean.

    Where Y is constant, 1 if P equals it and 0 otherwise; nan for fewer than two examples.
    """
    Y64 = _double(Y)
    center = _ratio(xp, _total(xp, Y64, weights), _weight(xp, P, weights), np.nan)
    residual, spread = _total(xp, xp.square(P - Y64), weights), _total(xp, xp.square(Y64 - center), weights)
    scores = xp.where(spread == 0, _double(residual == 0), 1 - _ratio(xp, residual, spread, 0.0))
    return _mean(xp, scores * (1.0 if P.shape[0] > 1 else np.nan))


def pinball_loss(xp: Any, P: Array, Y: Array, weights: Array | None = None, quantile: float = 0.5) -> Array:
    """The mean of max(q d, (q − 1) d) with d = y − p, over examples and outputs (Koenker and Bassett 1978)."""
    d = _double(Y) - P
    return _average(xp, xp.maximum(quantile * d, (quantile - 1) * d), weights)


# ---------------------------------------------------------------------------------------- their parts


def _are_classes(P: Array, Y: Array) -> bool:
    """Whether Y are class numbers (m, 1): a softmax has two classes or more."""
    return Y.shape[1] < P.shape[1]


def _double(array: Array) -> Array:
    return array.astype(np.float64, copy=False)


def _total(xp: Any, values: Array, weights: Array | None) -> Array:
    """Σ_i w_i v_i for each column of values (m, C), in float64."""
    return xp.sum(_double(values) if weights is None else _double(values) * weights, axis=0)


def _weight(xp: Any, P: Array, weights: Array | None) -> Any:
    """Σ_i w_i, (1,); m where all count the same."""
    return xp.sum(xp.ones((P.shape[0], 1), np.float64) if weights is None else _double(weights), axis=0)


def _mean(xp: Any, values: Array) -> Array:
    """Of (C,)."""
    return xp.sum(values) / values.shape[0]


def _average(xp: Any, values: Array, weights: Array | None) -> Array:
    """Over the examples by weight, then over the columns. values (m, C)."""
    return _mean(xp, _ratio(xp, _total(xp, values, weights), _weight(xp, values, weights), np.nan))


def _ratio(xp: Any, a: Array, b: Array, undefined: float) -> Array:
    """a / b, and `undefined` where b is 0."""
    return xp.where(b == 0, undefined, a / xp.where(b == 0, 1, b))


def _rows(xp: Any, columns: list[Array]) -> Array:
    """(n, C) from n arrays (C,)."""
    return xp.concatenate([column.reshape(1, -1) for column in columns])


def _correct(xp: Any, P: Array, Y: Array) -> Array:
    """bool (m, 1) of classes, (m, K) of labels."""
    return correct_classes(xp, P, Y) if _are_classes(P, Y) else correct_labels(xp, P, Y)


def _true(xp: Any, P: Array, Y: Array) -> Array:
    """bool (m, K): of each class, or each label, whether an example has it."""
    return one_hot(xp, Y, P.shape[1]) if _are_classes(P, Y) else Y > 0.5


def _decisions(xp: Any, P: Array, Y: Array) -> tuple[Array, Array]:
    """bool (m, K) each: whether an example is taken for one of a class or label, and whether it is."""
    if _are_classes(P, Y):
        predicted = one_hot(xp, xp.argmax(P, axis=1, keepdims=True), P.shape[1])
    else:
        predicted = P > 0.5
    return predicted, _true(xp, P, Y)


def _over_classes(
    xp: Any, P: Array, Y: Array, weights: Array | None, average: str | None, fraction: Callable[..., Any]
) -> Array:
    """The average of a fraction of (tp, tp + fp, tp + fn), 0 where it is 0 / 0.

    average: "binary", of class 1 of one sigmoid unit; "macro", over the labels, or over the classes that Y or the
    decisions have; "weighted", by how often Y has them. None: binary for one unit and macro otherwise.
    """
    average = average or ("binary" if P.shape[1] == 1 else "macro")
    if average == "binary" and P.shape[1] > 1:
        raise ValueError(f"average 'binary' is of one sigmoid unit, got {P.shape[1]} outputs")
    predicted, true = _decisions(xp, P, Y)
    if P.shape[1] == 1 and average != "binary":
        predicted, true = (xp.concatenate([xp.logical_not(x), x], axis=1) for x in (predicted, true))
    tp, of_predicted, of_true = (_total(xp, x, weights) for x in (predicted & true, predicted, true))
    numerator, denominator = fraction(tp, of_predicted, of_true)
    scores = _ratio(xp, numerator, denominator, 0.0)
    if average == "weighted":
        return _ratio(xp, xp.sum(scores * of_true), xp.sum(of_true), 0.0)
    if average == "binary" or (P.shape[1] > 1 and not _are_classes(P, Y)):
        return _mean(xp, scores)
    return xp.sum(scores) / xp.sum(xp.any(predicted | true, axis=0))


def _over_rankings(xp: Any, P: Array, Y: Array, weights: Array | None, function: Callable[..., Any]) -> Array:
    """The mean of function(v, w, V, W, first, last) over the columns, each by falling p.

    v and w (m,): the weight of each example if it is a positive, and if a negative. V and W (m + 1,): their sums over
    the first 0, 1, ..., m. first and last: how many have a larger p, and how many one as large or larger.
    """
    true = _true(xp, P, Y)
    weights = xp.ones((P.shape[0], 1), np.float64) if weights is None else _double(weights)
    zero = xp.zeros((1,), np.float64)
    values = []
    for k in range(P.shape[1]):
        falling = -P[:, k]
        order = xp.argsort(falling)
        falling, positive, w = (xp.take(x, order) for x in (falling, true[:, k], weights[:, 0]))
        first, last = xp.searchsorted(falling, falling, side="left"), xp.searchsorted(falling, falling, side="right")
        split = xp.where(positive, w, 0.0), xp.where(positive, 0.0, w)
        sums = (xp.concatenate([zero, xp.cumsum(part)]) for part in split)
        values.append(function(xp, *split, *sums, first, last).reshape(1))
    return _mean(xp, xp.concatenate(values))


def _area(xp: Any, v: Array, w: Array, V: Array, W: Array, first: Array, last: Array) -> Array:
    above = xp.sum(w * (xp.take(V, first) + xp.take(V, last))) / 2
    return _ratio(xp, above, xp.sum(v) * xp.sum(w), np.nan)


def _steps(xp: Any, v: Array, w: Array, V: Array, W: Array, first: Array, last: Array) -> Array:
    positives = xp.take(V, last)
    precision = _ratio(xp, positives, positives + xp.take(W, last), 0.0)
    return _ratio(xp, xp.sum(v * precision), xp.sum(v), 0.0)


# ----------------------------------------------------------------------------------------- by name

CLASSIFYING = ("sigmoid", "softmax")
OUTPUTS = (*CLASSIFYING, "linear")


@dataclass(frozen=True)
class NamedMetric:
    """A function of this file, or of the user, and what is known of it: `dnn.metrics.ExactMetric`."""

    name: str
    function: Callable[..., Any]
    outputs: tuple[str, ...] = OUTPUTS
    greater_is_better: bool | None = None

    def __call__(self, xp: Any, P: Array, Y: Array, weights: Array | None = None) -> Array:
        return self.function(xp, P, Y, weights)


METRICS: dict[str, NamedMetric] = {
    metric.name: metric
    for metric in (
        NamedMetric("accuracy", accuracy, CLASSIFYING, True),
        NamedMetric("balanced_accuracy", balanced_accuracy, CLASSIFYING, True),
        NamedMetric("top_k", top_k_accuracy, ("softmax",), True),
        *(
            NamedMetric(name + suffix, partial(function, average=average), CLASSIFYING, True)
            for name, function in [
                ("precision", precision_score),
                ("recall", recall_score),
                ("f1", f1_score),
            ]
            for suffix, average in [("", None), ("_macro", "macro"), ("_weighted", "weighted")]
        ),
        NamedMetric("roc_auc", roc_auc, CLASSIFYING, True),
        NamedMetric("average_precision", average_precision, CLASSIFYING, True),
        NamedMetric("log_loss", log_loss, CLASSIFYING, False),
        NamedMetric("brier", brier_score, CLASSIFYING, False),
        NamedMetric("calibration_error", calibration_error, CLASSIFYING, False),
        NamedMetric("confusion_matrix", confusion_matrix, CLASSIFYING, None),
        NamedMetric("rmse", root_mean_squared_error, ("linear",), False),
        NamedMetric("mae", mean_absolute_error, ("linear",), False),
        NamedMetric("r2", r2_score, ("linear",), True),
        NamedMetric("pinball", pinball_loss, ("linear",), False),
    )
}
"""By name. k of top_k is 5 and the quantile of pinball 1/2: dnn.TopK(k) and dnn.Pinball(quantile) have others."""
