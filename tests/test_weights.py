"""Weights of examples, classes and targets: in the loss, its gradient, the metrics, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import torch_or_skip
from sweeps import covering

import dnn
from dnn.backends import Backend, use_compiled_steps
from dnn.errors import DataError

GENERATOR = np.random.default_rng(7)
M, N = 24, 3
X = GENERATOR.standard_normal((M, N))
CLASSES = np.array([0] * 12 + [1] * 8 + [2] * 4)[GENERATOR.permutation(M)]
WEIGHTS = GENERATOR.uniform(0.1, 3, M)
LABELS = GENERATOR.integers(0, 2, (M, 4))
VALUES = GENERATOR.standard_normal((M, 2))
TARGETS = {"sigmoid": (CLASSES > 0).astype(int), "softmax": CLASSES, "linear": VALUES, "labels": LABELS}
UNITS = {"sigmoid": 1, "softmax": 3, "linear": 2, "labels": 4}
SGD = dnn.SGD(0.1)


def network_of(kind: str, backend: Backend | str = "numpy", **settings: Any) -> dnn.Network:
    name = backend if isinstance(backend, str) else backend.name
    output = "sigmoid" if kind == "labels" else kind
    settings = {"dtype": "float64", "seed": 2, "activation": "tanh"} | settings
    return dnn.Network([N, 5, UNITS[kind]], output=output, backend=name, **settings)


def theta(network: dnn.Network) -> np.ndarray:
    return network.backend.to_numpy(network.parameters.flat).copy()


def trained(kind: str, X: Any, Y: Any, backend: Backend | str = "numpy", **settings: Any) -> tuple[np.ndarray, Any]:
    """The parameters and the measures after two updates by all examples at once, or as the settings say."""
    network = network_of(kind, backend)
    history = network.fit(X, Y, **({"epochs": 2, "batch_size": 1000, "optimizer": SGD} | settings))
    return theta(network), history.history


def assert_alike(one: tuple[np.ndarray, Any], other: tuple[np.ndarray, Any], atol: float = 1e-12) -> None:
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=atol)
    assert one[1].keys() == other[1].keys()
    for name in one[1]:
        np.testing.assert_allclose(one[1][name], other[1][name], rtol=0, atol=atol, err_msg=name)


# ----------------------------------------------------------------------------------- of examples


@pytest.mark.parametrize("kind", TARGETS)
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(times=st.lists(st.integers(0, 3), min_size=M, max_size=M).filter(any))
def test_a_whole_weight_is_the_example_so_many_times(kind, times):
    use_compiled_steps(False)  # a batch of another size each time
    rows = np.repeat(np.arange(M), times)
    Y = TARGETS[kind]
    assert_alike(trained(kind, X, Y, sample_weight=np.array(times, float)), trained(kind, X[rows], Y[rows]))


@covering("kind, batch_size, backend", TARGETS, [1000, 7], BACKENDS, times=2, indirect=["backend"])
def test_equal_weights_are_none(kind, batch_size, backend: Backend):
    plain = trained(kind, X, TARGETS[kind], backend, batch_size=batch_size)
    weights = np.full(M, 2.5)
    assert_alike(trained(kind, X, TARGETS[kind], backend, batch_size=batch_size, sample_weight=weights), plain)


@covering("kind, compiled", TARGETS, [True, False])
def test_members_are_weighted_as_one_network_is(kind, compiled):
    use_compiled_steps(compiled)
    network, plain = network_of(kind, members=2), network_of(kind, members=2)
    for each, weights in ((network, {"sample_weight": np.full(M, 2.0)}), (plain, {})):
        for batch_size in (7, 1000):
            each.history = each.fit(X, TARGETS[kind], epochs=1, batch_size=batch_size, **weights).history
    assert_alike((theta(network), network.history), (theta(plain), plain.history))
    assert network.evaluate(X, TARGETS[kind], sample_weight=np.full(M, 2.0)) == pytest.approx(
        plain.evaluate(X, TARGETS[kind]), abs=1e-12
    )


@pytest.mark.parametrize("kind", TARGETS)
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_within_a_batch_does_not_matter(kind, seed):
    order, Y = np.random.default_rng(seed).permutation(M), TARGETS[kind]
    one = trained(kind, X, Y, sample_weight=WEIGHTS)
    assert_alike(trained(kind, X[order], Y[order], sample_weight=WEIGHTS[order]), one)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_weight_of_zero_leaves_an_example_out(kind, backend: Backend):
    weights = WEIGHTS * (np.arange(M) % 3 > 0)
    kept, Y = weights > 0, TARGETS[kind]
    assert_alike(
        trained(kind, X, Y, backend, sample_weight=weights),
        trained(kind, X[kept], Y[kept], sample_weight=weights[kept]),
    )


def test_a_batch_without_weight_changes_nothing_but_momentum_goes_on():
    weights = np.r_[np.ones(8), np.zeros(8), np.ones(8)]
    keeps = {"batch_size": 8, "shuffle": False, "epochs": 1}
    of_all = trained("linear", X, VALUES, sample_weight=weights, **keeps)
    rows = np.r_[0:8, 16:24]
    assert_alike(of_all, trained("linear", X[rows], VALUES[rows], **keeps))
    for accumulate in (1, 2, 3):
        network = network_of("linear")
        network.fit(X, VALUES, sample_weight=np.r_[np.ones(1), np.zeros(23)], accumulate=accumulate, **keeps)
        assert np.isfinite(theta(network)).all()


@pytest.mark.parametrize("as_given", [list, lambda w: w.reshape(-1, 1), lambda w: w.astype(np.float32)])
def test_weights_come_in_several_forms(as_given):
    given = as_given(WEIGHTS.astype(np.float32).astype(np.float64))
    plain = WEIGHTS.astype(np.float32).astype(np.float64)
    assert_alike(
        trained("softmax", X, CLASSES, sample_weight=given), trained("softmax", X, CLASSES, sample_weight=plain)
    )


# ------------------------------------------------------------------------------------ of classes

BY_CLASS = {0: 0.5, 1: 2.0, 2: 4.0}


def test_weights_of_classes_are_those_of_their_examples(backend: Backend):
    one = trained("softmax", X, CLASSES, backend, class_weight=BY_CLASS, batch_size=5)
    other = trained("softmax", X, CLASSES, backend, sample_weight=[BY_CLASS[c] for c in CLASSES], batch_size=5)
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [5, 1000])
def test_the_metric_does_not_count_the_weights_of_classes(batch_size, backend: Backend):
    settings = {"epochs": 1, "batch_size": batch_size, "optimizer": dnn.SGD(0.0)}
    accuracy = network_of("softmax").evaluate(X, CLASSES)["accuracy"]
    _, history = trained("softmax", X, CLASSES, backend, class_weight=BY_CLASS, **settings)
    assert history["accuracy"] == [pytest.approx(accuracy, abs=1e-12)]


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_balanced_is_scikit_learns(kind, backend: Backend):
    utils = pytest.importorskip("sklearn.utils.class_weight")
    Y = TARGETS[kind]
    found = utils.compute_class_weight("balanced", classes=np.unique(Y), y=Y)
    one = trained(kind, X, Y, backend, class_weight="balanced", batch_size=5)
    assert_alike(one, trained(kind, X, Y, class_weight=dict(enumerate(found)), batch_size=5))


def test_balanced_counts_the_examples_that_are_trained_on():
    network, by_hand = network_of("softmax"), network_of("softmax")
    settings = {"epochs": 2, "validation_split": 0.3, "optimizer": SGD}
    history = network.fit(X, CLASSES, class_weight="balanced", **settings)
    from dnn.data.splitting import split_rows

    _, rows = split_rows(by_hand, CLASSES.reshape(-1, 1), 0.3)
    counts = np.bincount(CLASSES[rows])
    weights = dict(enumerate(len(rows) / (3 * counts)))
    other = by_hand.fit(X, CLASSES, class_weight=weights, **settings)
    assert_alike((theta(network), history.history), (theta(by_hand), other.history))


def test_balanced_takes_each_label_for_itself():
    weights = np.ones(LABELS.shape)
    for label in range(4):
        counts = np.bincount(LABELS[:, label], minlength=2)
        weights[:, label] = (M / (2 * counts))[LABELS[:, label]]
    torch = torch_or_skip()
    network = network_of("labels")
    found, gradient = by_torch(torch, network, X, LABELS, weights)
    assert network.evaluate(X, LABELS, class_weight="balanced")["loss"] == pytest.approx(found, abs=1e-12)
    np.testing.assert_allclose(step_of(network, X, LABELS, class_weight="balanced"), gradient, rtol=0, atol=1e-12)


def test_balanced_counts_a_weight_as_so_many_examples_and_a_missing_label_as_none():
    times = np.arange(M) % 3
    rows = np.repeat(np.arange(M), times)
    one = trained("softmax", X, CLASSES, sample_weight=times, class_weight="balanced")
    assert_alike(one, trained("softmax", X[rows], CLASSES[rows], class_weight="balanced"))
    Y = LABELS[:, :1].astype(float)
    Y[::5] = np.nan
    known = ~np.isnan(Y[:, 0])
    one = trained("sigmoid", X, Y, missing_targets="mask", class_weight="balanced")
    assert_alike(one, trained("sigmoid", X[known], Y[known], class_weight="balanced"))


def test_classes_have_names():
    named, numbered = network_of("softmax"), network_of("softmax")
    named.classes = ["ant", "bee", "cat"]
    for network, weights in ((named, {"bee": 3.0, "cat": 0.5}), (numbered, {1: 3.0, 2: 0.5})):
        network.fit(X, CLASSES, epochs=1, class_weight=weights)
    np.testing.assert_array_equal(theta(named), theta(numbered))
    with pytest.raises(
        ValueError, match="class_weight: expected a class from 0 to 2, or one of ant, bee, cat, got 'dog'"
    ):
        named.fit(X, CLASSES, class_weight={"dog": 1.0})


# ------------------------------------------------------------------------------------ by PyTorch


def by_torch(torch: Any, network: dnn.Network, X: Any, Y: Any, weights: Any) -> tuple[float, np.ndarray]:
    """The weighted mean loss, and its gradient in θ's layout. `weights` (m,), or (m, K) of each target."""
    parameters = {n: torch.tensor(network.backend.to_numpy(v)).requires_grad_() for n, v in network.parameters.items()}
    A = torch.tensor(X)
    for layer in (1, 2):
        A = torch.nn.functional.linear(A, parameters[f"W{layer}"], parameters[f"b{layer}"])
        A = torch.tanh(A) if layer == 1 else A
    w = torch.tensor(np.asarray(weights, float))
    if network.output == "softmax":
        losses = torch.nn.functional.cross_entropy(A, torch.tensor(Y), reduction="none")
    else:
        wanted = torch.tensor(np.asarray(Y, float)).reshape(A.shape)
        pairs = {
            "sigmoid": torch.nn.functional.binary_cross_entropy_with_logits,
            "linear": torch.nn.functional.mse_loss,
        }
        losses = pairs[network.output](A, wanted, reduction="none")
        w = w.reshape(-1, 1).expand(losses.shape) if w.ndim == 1 else w
    loss = (losses * w).sum() / w.sum()
    loss.backward()
    flat = np.zeros(network.parameters.flat.shape)
    for name, tensor in parameters.items():
        start, _ = network.parameters.extent(name)
        flat[start : start + tensor.numel()] = tensor.grad.numpy().ravel()
    return loss.item(), flat


def step_of(network: dnn.Network, X: Any, Y: Any, **settings: Any) -> np.ndarray:
    """The gradient that one update by all examples goes along."""
    before = theta(network)
    network.fit(X, Y, epochs=1, batch_size=1000, optimizer=dnn.SGD(1.0), **settings)
    return before - theta(network)


@pytest.mark.parametrize("kind", TARGETS)
def test_loss_and_gradient_with_weights_are_pytorchs(kind, backend: Backend):
    torch, network = torch_or_skip(), network_of(kind, backend)
    loss, gradient = by_torch(torch, network, X, TARGETS[kind], WEIGHTS)
    assert network.evaluate(X, TARGETS[kind], sample_weight=WEIGHTS)["loss"] == pytest.approx(loss, abs=1e-12)
    found = step_of(network, X, TARGETS[kind], sample_weight=WEIGHTS)
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-12)


def test_weights_of_classes_are_pytorchs(backend: Backend):
    torch, network = torch_or_skip(), network_of("softmax", backend)
    logits = torch.log(torch.tensor(network.predict_proba(X)))
    weight = torch.tensor([BY_CLASS[c] for c in range(3)], dtype=torch.float64)
    expected = torch.nn.CrossEntropyLoss(weight=weight, reduction="mean")(logits, torch.tensor(CLASSES))
    found = network.evaluate(X, CLASSES, class_weight=BY_CLASS)
    assert found["loss"] == pytest.approx(float(expected), abs=1e-12)
    _, gradient = by_torch(torch, network, X, CLASSES, [BY_CLASS[c] for c in CLASSES])
    np.testing.assert_allclose(step_of(network, X, CLASSES, class_weight=BY_CLASS), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [dnn.Quantile((0.2, 0.8)), dnn.GaussianNLL()], ids=lambda loss: type(loss).__name__)
def test_weights_reach_losses_with_several_outputs_a_target(loss):
    def network() -> dnn.Network:
        return dnn.Network([N, 4, 4], output="linear", loss=loss, dtype="float64", seed=2)

    times = np.arange(M) % 3
    rows = np.repeat(np.arange(M), times)
    one, other = network(), network()
    first = one.fit(X, VALUES, epochs=2, optimizer=SGD, sample_weight=times).history
    second = other.fit(X[rows], VALUES[rows], epochs=2, optimizer=SGD).history
    assert_alike((theta(one), first), (theta(other), second))


# ------------------------------------------------------------------------------- missing targets


def with_gaps(Y: np.ndarray) -> np.ndarray:
    gaps = Y.astype(float)
    gaps[GENERATOR.random(Y.shape) < 0.3] = np.nan
    gaps[0] = np.nan  # an example without any
    return gaps


@pytest.mark.parametrize("kind", ["linear", "labels"])
def test_missing_targets_count_nowhere(kind, backend: Backend):
    torch, network = torch_or_skip(), network_of(kind, backend)
    Y = with_gaps(TARGETS[kind])
    known = ~np.isnan(Y)
    loss, gradient = by_torch(torch, network, X, np.nan_to_num(Y), known * WEIGHTS[:, None])
    found = network.evaluate(X, Y, missing_targets="mask", sample_weight=WEIGHTS)
    assert found["loss"] == pytest.approx(loss, abs=1e-12)
    P, w = network.predict(X), known * WEIGHTS[:, None]
    if kind == "linear":
        expected = np.sqrt((w * (P - np.nan_to_num(Y)) ** 2).sum() / w.sum())
        assert found["rmse"] == pytest.approx(expected, abs=1e-12)
    else:
        assert found["accuracy"] == pytest.approx((w * (np.nan_to_num(Y) == P)).sum() / w.sum(), abs=1e-12)
    step = step_of(network, X, Y, missing_targets="mask", sample_weight=WEIGHTS)
    np.testing.assert_allclose(step, gradient, rtol=0, atol=1e-12)


def test_a_target_that_is_missing_is_refused_unless_asked():
    for kind in ("linear", "labels"):
        with pytest.raises(DataError, match="Y: expected finite numbers, got nan"):
            network_of(kind).fit(X, with_gaps(TARGETS[kind]))
        with pytest.raises(DataError, match="Y: expected finite numbers, got nan"):
            network_of(kind).evaluate(X, with_gaps(TARGETS[kind]))
    with pytest.raises(DataError, match="Y: expected finite numbers, got inf"):
        network_of("linear").fit(X, np.where(np.isnan(with_gaps(VALUES)), np.inf, VALUES), missing_targets="mask")


def test_the_loss_of_one_output_without_its_gaps_is_that_of_the_rest():
    Y = VALUES[:, 0].copy()
    Y[::4] = np.nan
    known = ~np.isnan(Y)

    def network() -> dnn.Network:
        return dnn.Network([N, 4, 1], output="linear", dtype="float64", seed=1)

    one, other = network(), network()
    first = one.fit(X, Y, epochs=3, optimizer=SGD, missing_targets="mask").history
    second = other.fit(X[known], Y[known], epochs=3, optimizer=SGD).history
    assert_alike((theta(one), first), (theta(other), second))


# ---------------------------------------------------------------------------- what is validated


def test_validation_data_has_weights_of_its_own(backend: Backend):
    network = network_of("linear", backend)
    history = network.fit(X, VALUES, epochs=2, validation_data=(X, VALUES, WEIGHTS)).history
    after = network.evaluate(X, VALUES, sample_weight=WEIGHTS)
    assert history["val_loss"][-1] == pytest.approx(after["loss"], abs=1e-12)
    assert history["val_rmse"][-1] == pytest.approx(after["rmse"], abs=1e-12)
    P = network.predict(X)
    squares = ((P - VALUES) ** 2 * WEIGHTS[:, None]).sum() / (2 * WEIGHTS.sum())
    assert after["rmse"] == pytest.approx(np.sqrt(squares), abs=1e-12)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax", "labels"])
def test_validation_counts_the_weights_of_examples_and_not_of_classes(kind):
    from dnn.data.splitting import split_rows

    network, Y = network_of(kind), TARGETS[kind]
    settings = {"sample_weight": WEIGHTS, "class_weight": "balanced", "metrics": ["f1"]}
    history = network.fit(X, Y, epochs=2, validation_split=0.4, **settings).history
    rows, _ = split_rows(network, Y.reshape(M, -1), 0.4)
    expected = network.evaluate(X[rows], Y[rows], sample_weight=WEIGHTS[rows], metrics=["f1"])
    assert {name: history[f"val_{name}"][-1] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_metrics_with_weights_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    network = network_of("softmax")
    found = network.evaluate(X, CLASSES, metrics=["f1_macro", "balanced_accuracy"], sample_weight=WEIGHTS)
    answers = network.predict(X)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(CLASSES, answers, sample_weight=WEIGHTS))
    expected = metrics.f1_score(CLASSES, answers, average="macro", sample_weight=WEIGHTS)
    assert found["f1_macro"] == pytest.approx(expected)
    expected = metrics.balanced_accuracy_score(CLASSES, answers, sample_weight=WEIGHTS)
    assert found["balanced_accuracy"] == pytest.approx(expected)


# ----------------------------------------------------------------------------------- refusals

BAD = [
    ({"sample_weight": -WEIGHTS}, DataError, r"sample_weight: expected finite numbers from 0 up, got -[\d.]+"),
    ({"sample_weight": np.full(M, np.nan)}, DataError, "sample_weight: expected finite numbers from 0 up, got nan"),
    ({"sample_weight": WEIGHTS[:5]}, DataError, r"sample_weight: expected a weight for each of 24 examples, got .*5"),
    ({"sample_weight": 1.0}, DataError, "sample_weight: "),
    ({"sample_weight": np.zeros(M)}, DataError, "sample_weight: all weights are 0"),
    ({"sample_weight": ["a"] * M}, DataError, "sample_weight"),
    ({"class_weight": {3: 1.0}}, ValueError, "class_weight: expected a class from 0 to 2, got 3"),
    ({"class_weight": {"ant": 1.0}}, ValueError, "class_weight: expected a class from 0 to 2, got 'ant'"),
    ({"class_weight": {0: -1.0}}, ValueError, r"class_weight\[0\] must be at least 0, got -1.0"),
    ({"class_weight": {0: np.nan}}, ValueError, r"class_weight\[0\] must be finite, got nan"),
    ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "all have the weight 0"),
    ({"class_weight": "balance"}, ValueError, "class_weight must be one of balanced, got 'balance': did you mean bal"),
    ({"class_weight": [1.0, 2.0]}, TypeError, 'class_weight must be "balanced" or a dict'),
    ({"missing_targets": "skip"}, ValueError, "missing_targets must be one of error, mask, got 'skip'"),
    ({"missing_targets": True}, ValueError, "missing_targets must be one of error, mask, got True"),
]


@pytest.mark.parametrize(("given", "error", "complaint"), BAD, ids=lambda value: None)
def test_weights_that_cannot_be_are_refused_in_one_line(given, error, complaint):
    network = network_of("softmax")
    before = theta(network)
    for use in (network.fit, network.evaluate):
        with pytest.raises(error, match=complaint) as found:
            use(X, CLASSES, **given)
        assert "\n" not in str(found.value)
    np.testing.assert_array_equal(theta(network), before)
    assert network.epochs == 0 and network.training_state is None


def test_weights_of_which_the_part_to_train_on_has_none_are_refused():
    from dnn.data.splitting import split_rows

    network = network_of("softmax")
    _, rows = split_rows(network, CLASSES.reshape(-1, 1), 0.5)
    weights = np.ones(M)
    weights[rows] = 0
    with pytest.raises(DataError, match="the examples to train on: nothing counts: the weights of all examples are 0"):
        network.fit(X, CLASSES, sample_weight=weights, validation_split=0.5)
    with pytest.raises(DataError, match="the examples of validation_split: nothing counts"):
        network.fit(X, CLASSES, sample_weight=1 - weights, validation_split=0.5)


def test_targets_that_are_all_missing_are_refused():
    """A validation loss of 0 would be the best there is."""
    network, nothing = network_of("linear"), np.full(VALUES.shape, np.nan)
    with pytest.raises(DataError, match="the examples to train on: nothing counts"):
        network.fit(X, nothing, missing_targets="mask")
    with pytest.raises(DataError, match="validation_data: nothing counts"):
        network.fit(X, VALUES, missing_targets="mask", validation_data=(X, nothing))
    with pytest.raises(DataError, match="the examples: nothing counts"):
        network.evaluate(X, nothing, missing_targets="mask")
    assert network.epochs == 0 and network.training_state is None


def test_weights_of_classes_need_classes():
    with pytest.raises(ValueError, match="class_weight is for classes: a linear output has none"):
        network_of("linear").fit(X, VALUES, class_weight={0: 1.0})
    with pytest.raises(DataError, match="class_weight needs labels 0 and 1"):
        network_of("sigmoid").fit(X, np.full(M, 0.5), class_weight={0: 2.0})


def test_validation_data_names_its_weights():
    with pytest.raises(DataError, match="validation_data: expected a weight for each of 24 examples"):
        network_of("linear").fit(X, VALUES, validation_data=(X, VALUES, WEIGHTS[:3]))
