"""Metrics over all examples at once, against scikit-learn's, on every backend; none waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from sklearn.exceptions import UndefinedMetricWarning
from standin import device

from dnn import functional
from dnn.backends import Backend, get_backend
from dnn.functional.metrics import OUTPUTS
from dnn.metrics import METRICS, Pinball, TopK, checked_metrics

WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])


def answers(kind: str, m: int = 300, seed: int = 0, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """P and Y of one sigmoid unit, of four labels, of six classes or of three values; answers have many ties."""
    rng = np.random.default_rng(seed)
    if kind == "classes":
        counts = rng.integers(0, 5, (m, 6)) + 0.25 * (rng.random((m, 6)) < 0.02)
        counts[counts.sum(axis=1) == 0] = 1
        Y = np.where(rng.random(m) < 0.5, counts.argmax(axis=1), rng.integers(0, 6, m))[:, None]
        return (counts / counts.sum(axis=1, keepdims=True)).astype(dtype), Y
    if kind == "values":
        Y = rng.standard_normal((m, 3)) * [1, 5, 0.1] + [0, 100, 0]
        return (Y + 0.5 * rng.standard_normal((m, 3))).astype(dtype), Y.astype(dtype)
    K = {"binary": 1, "labels": 4}[kind]
    P = rng.integers(0, 17, (m, K)) / 16
    return P.astype(dtype), (rng.random((m, K)) < 0.3 + 0.4 * P).astype(dtype)


def weights_of(m: int, weighted: bool) -> np.ndarray | None:
    """Some are 0."""
    return np.random.default_rng(1).integers(0, 4, (m, 1)) / 2 if weighted else None


def measured(backend: Backend, metric: Any, P: np.ndarray, Y: np.ndarray, weights: np.ndarray | None = None) -> Any:
    arrays = [None if array is None else backend.asarray(array) for array in (P, Y, weights)]
    result = backend.to_numpy(metric(backend.xp, *arrays))
    assert result.dtype == np.float64
    return result if result.ndim else float(result)


def check(backend: Backend, metric: Any, P: Any, Y: Any, weights: Any, expected: Any, rtol: float = 1e-12) -> None:
    found = measured(backend, METRICS.get(metric, metric), P, Y, weights)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-14)


def flat(weights: np.ndarray | None) -> np.ndarray | None:
    return None if weights is None else weights[:, 0]


@pytest.fixture(autouse=True)
def _quiet_reference() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        yield


# ------------------------------------------------------------------------------- decisions and their counts


def decisions(kind: str, P: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind == "classes":
        return Y[:, 0], P.argmax(axis=1)
    return (Y[:, 0], P[:, 0] > 0.5) if kind == "binary" else (Y, P > 0.5)


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_accuracy_is_the_share_of_right_decisions(kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    true, predicted = decisions(kind, P, Y)
    columns = [(true, predicted)] if true.ndim == 1 else zip(true.T, predicted.T, strict=True)
    expected = np.mean([reference.accuracy_score(t, p, sample_weight=flat(weights)) for t, p in columns])
    check(backend, "accuracy", P, Y, weights, expected)


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_balanced_accuracy_is_the_mean_recall(kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    true, predicted = decisions(kind, P, Y)
    columns = [(true, predicted)] if true.ndim == 1 else zip(true.T, predicted.T, strict=True)
    expected = np.mean([reference.balanced_accuracy_score(t, p, sample_weight=flat(weights)) for t, p in columns])
    check(backend, "balanced_accuracy", P, Y, weights, expected)


@WEIGHTED
@pytest.mark.parametrize("average", ["", "_macro", "_weighted"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_precision_recall_and_f1_are_scikit_learns(
    kind: str, name: str, average: str, weighted: bool, backend: Backend
):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    how = average[1:] or ("binary" if kind == "binary" else "macro")
    function = getattr(reference, f"{name}_score")
    expected = function(*decisions(kind, P, Y), average=how, sample_weight=flat(weights), zero_division=0)
    check(backend, name + average, P, Y, weights, expected)


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_the_confusion_matrix_counts_by_weight(kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    function = reference.multilabel_confusion_matrix if kind == "labels" else reference.confusion_matrix
    check(backend, "confusion_matrix", P, Y, weights, function(*decisions(kind, P, Y), sample_weight=flat(weights)))


def test_binary_is_refused_of_several_outputs():
    P, Y = answers("classes")
    with pytest.raises(ValueError, match="'binary' is of one sigmoid unit, got 6 outputs"):
        functional.f1_score(np, P, Y, average="binary")


@WEIGHTED
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_ranks_equal_answers_as_scikit_learn_does(k: int, weighted: bool, backend: Backend):
    P, Y = answers("classes")
    weights = weights_of(len(P), weighted)
    expected = reference.top_k_accuracy_score(Y[:, 0], P, k=k, labels=range(6), sample_weight=flat(weights))
    check(backend, TopK(k), P, Y, weights, expected)
    if k == 5:
        check(backend, "top_k", P, Y, weights, expected)


# ------------------------------------------------------------------------------- rankings


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
@pytest.mark.parametrize(
    ("name", "function"),
    [("roc_auc", reference.roc_auc_score), ("average_precision", reference.average_precision_score)],
)
def test_rankings_are_scikit_learns(name: str, function: Any, kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    true = np.arange(6) == Y if kind == "classes" else Y
    check(backend, name, P, Y, weights, function(true, P, average="macro", sample_weight=flat(weights)))


def test_the_area_of_classes_is_that_of_one_against_the_rest(backend: Backend):
    P, Y = answers("classes", dtype=np.float64)
    check(backend, "roc_auc", P, Y, None, reference.roc_auc_score(Y[:, 0], P, multi_class="ovr"))


def test_equal_answers_give_half_the_area(backend: Backend):
    P, Y = np.full((7, 1), 0.3, np.float32), np.array([[0, 1, 1, 0, 1, 0, 0]], np.float32).T
    assert measured(backend, METRICS["roc_auc"], P, Y) == 0.5
    assert measured(backend, METRICS["average_precision"], P, Y) == pytest.approx(3 / 7)


@pytest.mark.parametrize("label", [0, 1])
def test_the_area_of_one_class_alone_is_nan(label: int, backend: Backend):
    P, _ = answers("binary")
    Y = np.full_like(P, label)
    assert np.isnan(measured(backend, METRICS["roc_auc"], P, Y))
    assert measured(backend, METRICS["average_precision"], P, Y) == label


# ------------------------------------------------------------------------------- probabilities


@WEIGHTED
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_log_loss_is_finite_at_0_and_1_as_scikit_learns(kind: str, dtype: Any, weighted: bool, backend: Backend):
    P, Y = answers(kind, dtype=dtype)
    weights = weights_of(len(P), weighted)
    assert (P == 0).any()
    if kind == "classes":
        expected = reference.log_loss(Y[:, 0], P, labels=range(6), sample_weight=flat(weights))
    else:
        columns = zip(Y.T, P.T, strict=True)
        expected = np.mean([reference.log_loss(y, p, labels=[0, 1], sample_weight=flat(weights)) for y, p in columns])
    check(backend, "log_loss", P, Y, weights, expected, rtol=1e-6 if dtype == np.float32 else 1e-12)


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels"])
def test_brier_is_the_mean_square_of_labels(kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    columns = zip(Y.T, P.T, strict=True)
    expected = np.mean([reference.brier_score_loss(y, p, sample_weight=flat(weights)) for y, p in columns])
    check(backend, "brier", P, Y, weights, expected, rtol=1e-6)


@WEIGHTED
def test_brier_sums_the_squares_of_the_classes(weighted: bool, backend: Backend):
    P, Y = answers("classes")
    weights = weights_of(len(P), weighted)
    squares = ((P.astype(np.float64) - (np.arange(6) == Y)) ** 2).sum(axis=1)
    check(backend, "brier", P, Y, weights, np.average(squares, weights=flat(weights)))


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    error = 0.0
    for b in range(15):
        inside = [i for i in range(len(right)) if b / 15 < confidence[i] <= (b + 1) / 15]
        if weight := sum(weights[i] for i in inside):
            accuracy = sum(weights[i] * right[i] for i in inside) / weight
            mean_confidence = sum(weights[i] * confidence[i] for i in inside) / weight
            error += weight / weights.sum() * abs(accuracy - mean_confidence)
    return error


@WEIGHTED
@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_the_calibration_error_is_that_of_its_equation(kind: str, weighted: bool, backend: Backend):
    P, Y = answers(kind)
    weights = weights_of(len(P), weighted)
    w = np.ones(len(P)) if weights is None else weights[:, 0]
    P64 = P.astype(np.float64)
    if kind == "classes":
        expected = calibration_error(P64.max(axis=1), P.argmax(axis=1) == Y[:, 0], w)
    else:
        columns = zip(P64.T, (P > 0.5).T == Y.T, strict=True)
        expected = np.mean([calibration_error(np.maximum(p, 1 - p), right, w) for p, right in columns])
    assert expected > 0.01
    check(backend, "calibration_error", P, Y, weights, expected)


def test_a_confidence_on_an_edge_is_in_the_lower_bin(backend: Backend):
    # 0.65 is in the bin above: in one bin the gaps, 0.4 and -0.65, would cancel
    P, Y = np.array([[9 / 15], [0.65]]), np.array([[1.0], [0.0]])
    assert measured(backend, METRICS["calibration_error"], P, Y) == pytest.approx((0.4 + 0.65) / 2)


# ------------------------------------------------------------------------------- values


@WEIGHTED
@pytest.mark.parametrize(
    ("metric", "function"),
    [
        ("rmse", lambda *given, **settings: np.sqrt(reference.mean_squared_error(*given, **settings))),
        ("mae", reference.mean_absolute_error),
        ("r2", reference.r2_score),
        ("pinball", lambda *given, **settings: reference.mean_pinball_loss(*given, alpha=0.5, **settings)),
        (Pinball(0.9), lambda *given, **settings: reference.mean_pinball_loss(*given, alpha=0.9, **settings)),
    ],
    ids=["rmse", "mae", "r2", "pinball", "pinball_0.9"],
)
def test_errors_of_values_are_scikit_learns(metric: Any, function: Any, weighted: bool, backend: Backend):
    P, Y = answers("values")
    weights = weights_of(len(P), weighted)
    expected = function(Y.astype(np.float64), P.astype(np.float64), sample_weight=flat(weights))
    check(backend, metric, P, Y, weights, expected)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_r2_of_a_constant_is_1_or_0(error: float, backend: Backend):
    Y = np.full((5, 1), 2.0)
    assert measured(backend, METRICS["r2"], Y + error, Y) == reference.r2_score(Y, Y + error) == 1 - error


def test_float32_is_summed_in_float64(backend: Backend):
    # 2^24 + 1 is no float32
    P, Y = np.array([[2.0**24]] + [[1.0]] * 7, np.float32), np.zeros((8, 1), np.float32)
    assert measured(backend, METRICS["mae"], P, Y) == (2**24 + 7) / 8
    assert measured(backend, METRICS["mae"], P, Y, np.full((8, 1), 0.1, np.float32)) == pytest.approx(
        (2**24 + 7) / 8, rel=1e-14
    )


# ------------------------------------------------------------------------------- little data


@WEIGHTED
def test_a_class_that_y_lacks(weighted: bool, backend: Backend):
    P, Y = answers("classes")
    Y[Y == 2] = 3
    weights = weights_of(len(P), weighted)
    given: dict[str, Any] = {"sample_weight": flat(weights)}
    true, predicted = decisions("classes", P, Y)
    labels = range(6)
    for name in ("precision", "recall", "f1"):
        function = getattr(reference, f"{name}_score")
        for how in ("macro", "weighted"):
            check(
                backend,
                f"{name}_{how}",
                P,
                Y,
                weights,
                function(true, predicted, average=how, zero_division=0, **given),
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = reference.balanced_accuracy_score(true, predicted, **given)
    check(backend, "balanced_accuracy", P, Y, weights, expected)
    check(
        backend, "confusion_matrix", P, Y, weights, reference.confusion_matrix(true, predicted, labels=labels, **given)
    )
    check(backend, "log_loss", P, Y, weights, reference.log_loss(true, P, labels=labels, **given), rtol=1e-6)
    each = [reference.average_precision_score(true == k, P[:, k], **given) for k in labels if k != 2]
    check(backend, "average_precision", P, Y, weights, sum(each) / 6)
    assert np.isnan(measured(backend, METRICS["roc_auc"], P, Y, weights))


def test_a_class_that_neither_y_nor_the_decisions_have_is_no_part_of_the_mean(backend: Backend):
    P, Y = answers("classes")
    P[:, 2] = 0
    Y[Y == 2] = 3
    for name in ("precision", "recall", "f1"):
        function = getattr(reference, f"{name}_score")
        expected = function(*decisions("classes", P, Y), average="macro", zero_division=0)
        check(backend, name, P, Y, None, expected)


@pytest.mark.parametrize("kind", ["binary", "labels", "classes"])
def test_one_example(kind: str, backend: Backend):
    P, Y = answers(kind, m=1)
    true, predicted = decisions(kind, P, Y)
    how = {"binary": "binary", "labels": "macro", "classes": "macro"}[kind]
    for name in ("precision", "recall", "f1"):
        function = getattr(reference, f"{name}_score")
        check(backend, name, P, Y, None, function(true, predicted, average=how, zero_division=0))
    assert measured(backend, METRICS["accuracy"], P, Y) == np.mean(true == predicted)
    assert np.isnan(measured(backend, METRICS["roc_auc"], P, Y))
    for name in ("balanced_accuracy", "average_precision", "log_loss", "brier", "calibration_error"):
        assert np.isfinite(measured(backend, METRICS[name], P, Y))


def test_one_example_of_values(backend: Backend):
    P, Y = answers("values", m=1)
    check(backend, "mae", P, Y, None, np.abs(P.astype(np.float64) - Y).mean())
    assert np.isnan(measured(backend, METRICS["r2"], P, Y))


def test_no_decision_for_class_1_has_a_precision_of_0(backend: Backend):
    P, Y = np.full((4, 1), 0.2), np.array([[0.0], [1], [1], [0]])
    assert [measured(backend, METRICS[name], P, Y) for name in ("precision", "recall", "f1")] == [0, 0, 0]


# ------------------------------------------------------------------------------- all of them

KINDS = {"binary": "sigmoid", "labels": "sigmoid", "classes": "softmax", "values": "linear"}


@WEIGHTED
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, output in KINDS.items() for name, metric in METRICS.items() if output in metric.outputs],
)
def test_no_metric_reads_from_the_device(kind: str, name: str, weighted: bool):
    backend = get_backend("standin")
    arrays = [*answers(kind), weights_of(300, weighted)]
    arrays = [None if array is None else backend.asarray(array) for array in arrays]
    before = device.counts.copy()
    result = METRICS[name](backend.xp, *arrays)
    assert (device.counts - before).keys() <= {"launches", "products", "allocations"}
    assert backend.owns(result)
    assert name == "confusion_matrix" or result.shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_change_nothing_and_a_weight_of_2_counts_twice(kind: str, backend: Backend):
    P, Y = answers(kind, m=40)
    twice = np.arange(40) % 3 == 0
    weights = 1.0 + twice[:, None]
    repeated = np.concatenate([np.arange(40), np.flatnonzero(twice)])
    for name, metric in METRICS.items():
        if KINDS[kind] in metric.outputs:
            found = measured(backend, metric, P, Y, weights)
            np.testing.assert_allclose(found, measured(backend, metric, P[repeated], Y[repeated]), rtol=1e-12)
            if name != "confusion_matrix":
                equal = measured(backend, metric, P, Y, np.full((40, 1), 3, np.float32))
                np.testing.assert_allclose(equal, measured(backend, metric, P, Y), rtol=1e-12)


# ------------------------------------------------------------------------------- names


def test_metrics_are_chosen_by_name_by_settings_and_by_function():
    def brightness(xp: Any, P: Any, Y: Any, weights: Any) -> Any:
        return xp.sum(P)

    chosen = checked_metrics(["accuracy", TopK(3), brightness], "softmax")
    assert [metric.name for metric in chosen] == ["accuracy", "top_3", "brightness"]
    assert [metric.greater_is_better for metric in chosen] == [True, True, None]
    assert chosen[2](np, np.ones((3, 2)), np.zeros((3, 1), np.int64)) == 6
    assert [metric.name for metric in checked_metrics("rmse", "linear")] == ["rmse"]
    assert [metric.name for metric in checked_metrics([Pinball(0.9)], "linear")] == ["pinball_0.9"]


def test_what_is_better_may_be_said_by_the_users_function():
    def cost(xp: Any, P: Any, Y: Any, weights: Any) -> Any:
        return xp.sum(P)

    cost.greater_is_better = False  # type: ignore[attr-defined]
    assert checked_metrics([cost], "linear")[0].greater_is_better is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["rocauc"], "there is no metric 'rocauc', did you mean 'roc_auc'[?] for sigmoid there are accuracy, .*brier"),
        (["zzz"], "there is no metric 'zzz': for sigmoid there are accuracy"),
        (["accuracy", "r2"], "metric r2 is not for a sigmoid output: for sigmoid there are accuracy"),
        ([TopK(2)], "metric top_2 is not for a sigmoid output"),
        (["f1", "f1"], "two metrics are called f1"),
        ([3], "a metric is a name or a function .* got 3"),
        ([TopK], "a metric is a name or a function"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_by_name(wrong: Any, message: str):
    with pytest.raises(ValueError, match=message):
        checked_metrics(wrong, "sigmoid")


@pytest.mark.parametrize("make", [lambda: TopK(0), lambda: Pinball(1.5), lambda: Pinball(float("nan"))])
def test_a_setting_out_of_range_is_refused(make: Any):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_every_output_has_metrics_and_every_metric_an_output():
    assert all(set(metric.outputs) <= set(OUTPUTS) and metric.outputs for metric in METRICS.values())
    assert {name for metric in METRICS.values() for name in metric.outputs} == set(OUTPUTS)
    assert all(name == metric.name for name, metric in METRICS.items())
