"""Members: several networks trained as one, and TabM's, which share their weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from builders import data
from conftest import BACKENDS
from layer_cases import close, gradients, randomized, same_bits, values_of
from oracles import torch_or_skip
from standin import device
from sweeps import covering
from test_layers import torch_forward

import dnn
from dnn.backends import Backend
from dnn.data import prepare
from dnn.layers import Activation, BatchNorm, CategoricalEmbedding, Dense, Dropout, Layer, NumericalEmbedding, Residual
from dnn.memory import GB, training_bytes
from dnn.settings import FitSettings

RNG = np.random.default_rng(8)
X, LABELS, VALUES = RNG.standard_normal((25, 4)), RNG.integers(0, 3, 25), RNG.standard_normal((25, 2))
X[:, 3] = np.arange(25) % 3

ALL: list[Layer] = [
    CategoricalEmbedding([3], [3], 2),
    Dense(7, bias=False),
    BatchNorm(),
    Activation("gelu"),
    Dropout(0.3),
    Residual([Dense(7, "tanh"), Dropout(0.2)]),
    Dense(3),
]
FEW: list[Layer] = [Dense(5, bias=False), BatchNorm(), Activation("relu"), Dropout(0.2), Dense(3)]
SHARED: list[Any] = [None, "tabm"]


def of_members(layers: list[Layer] | None = None, backend: str = "numpy", **settings: Any) -> dnn.Network:
    settings = {"members": 3, "output": "softmax", "seed": 5} | settings
    return dnn.Network(4, [Dense(6, "relu"), Dense(3)] if layers is None else layers, backend=backend, **settings)


def member_of(network: dnn.Network, member: int, **settings: Any) -> dnn.Network:
    """One member as a network of its own."""
    alone = dnn.Network(4, network.layers, output=network.output, dtype=network.dtype, backend=network.backend.name)
    for arrays, own in ((network.parameters, alone.parameters), (network.layer_state, alone.layer_state)):
        for name, view in arrays.items():
            own[name] = network.backend.to_numpy(view)[member]
    return alone


# ------------------------------------------------------------------------------------- as networks of their own

TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": dnn.AdamW(0.02, weight_decay=0.1)},
    "schedule": {
        "optimizer": dnn.Momentum(0.05),
        "schedule": dnn.schedules.Cosine(),
        "max_norm": 1.0,
        "l2": 0.01,
        "clip_value": 0.1,
    },
    "weights": {"optimizer": dnn.SGD(0.1), "sample_weight": RNG.random(25)},
    "class weights, one batch": {"optimizer": dnn.SGD(0.1), "class_weight": "balanced", "batch_size": 24},
    "accumulated, split": {
        "optimizer": dnn.SGD(0.1),
        "accumulate": 2,
        "validation_split": 0.2,
        "moving_average": 0.9,
    },
}


@covering("training, backend", TRAININGS, BACKENDS, indirect=["backend"])
def test_the_first_member_is_the_single_network_of_that_seed_to_the_bit(training, backend: Backend):
    given = {name: value[:24] if name == "sample_weight" else value for name, value in TRAININGS[training].items()}
    for layers in (None, ALL) if training == "adamw" else (None,):
        networks = of_members(layers, backend.name), of_members(layers, backend.name, members=1)
        for network in networks:  # the last batch of 3: of a single example some products have another order
            network.fit(X[:24], LABELS[:24], **{"epochs": 2, "batch_size": 7} | given)
        several, single = map(values_of, networks)
        for name, value in single.items():
            # sums within kernels have an order by the size of the whole step
            if backend.name != "numpy" and ("weight" in training or layers is ALL):
                np.testing.assert_allclose(several[name][0], value, rtol=1e-5, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(several[name][0], value, err_msg=name)
            others = {several[name][member].tobytes() for member in range(3)}
            assert len(others) == 3, f"{name}: all members differ"


def test_members_begin_with_weights_of_their_own():
    found = values_of(of_members())
    assert found["W1"].shape == (3, 6, 4) and len({W.tobytes() for W in found["W1"]}) == 3
    single = values_of(of_members(members=1))
    for name, value in single.items():
        np.testing.assert_array_equal(found[name][0], value)


def test_gradients_are_those_of_each_member_alone(backend: Backend):
    layers: list[Layer] = [
        CategoricalEmbedding([3], [3], 2),
        Dense(5, "tanh"),
        BatchNorm(),
        Residual([Dense(5)]),
        Dense(2),
    ]
    network = randomized(of_members(layers, backend.name, output="linear", dtype="float64"))
    found = gradients(network, X, VALUES)
    losses = []
    for member in range(3):
        alone = gradients(member_of(network, member), X, VALUES)
        losses.append(alone.loss)
        for name, gradient in alone.of.items():
            close([found.of[name][member]], [gradient])
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_gradients_of_every_member_are_pytorchs(backend: Backend):
    torch = torch_or_skip()
    layers: list[Layer] = [Dense(5, "tanh"), BatchNorm(), Residual([Dense(5)]), Dense(2)]
    network = randomized(of_members(layers, backend.name, output="linear", dtype="float64"))
    found, values = gradients(network, X, VALUES), values_of(network)
    for member in range(3):
        P = {name: torch.tensor(values[name][member], requires_grad=True) for name in network.parameters}
        ((torch_forward(layers, P, torch.tensor(X)) - torch.tensor(VALUES)) ** 2).mean().backward()
        for name, tensor in P.items():
            np.testing.assert_allclose(found.of[name][member], tensor.grad, rtol=1e-10, atol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------------------------- answers


def softmax(Z: np.ndarray) -> np.ndarray:
    P = np.exp(Z - Z.max(-1, keepdims=True))
    return P / P.sum(-1, keepdims=True)


def logits_of(network: dnn.Network, shared: str | None) -> np.ndarray:
    """(members, m, K), by NumPy from the parameters of a network [Dense relu, Dense]."""
    v = {name: value.astype(np.float64) for name, value in values_of(network).items()}
    if shared is None:
        A = np.maximum(np.einsum("ij,kuj->kiu", X, v["W1"]) + v["b1"][:, None], 0)
    else:
        A = np.maximum((X * v["R1"][:, None]) @ v["W1"].T * v["S1"][:, None] + v["b1"][:, None], 0)
    return np.einsum("kij,kuj->kiu", A, v["W2"]) + v["b2"][:, None]


def test_members_of_equal_weights_differ_by_their_shuffles_alone():
    for shuffle in (True, False):
        network = of_members()
        for name, value in values_of(network).items():
            network.parameters[name] = np.stack([value[0]] * 3)
        network.fit(X, LABELS, epochs=1, batch_size=5, optimizer=dnn.SGD(0.1), shuffle=shuffle)
        for value in values_of(network).values():
            assert len({of_member.tobytes() for of_member in value}) == (3 if shuffle else 1)


@covering("shared, backend", SHARED, BACKENDS, indirect=["backend"])
def test_answers_are_the_mean_of_the_members_and_the_loss_the_mean_of_theirs(shared, backend: Backend):
    network = of_members(backend=backend.name, shared=shared)
    network.fit(X, LABELS, epochs=3, batch_size=8, optimizer=dnn.Adam(0.05))
    P = softmax(logits_of(network, shared))
    np.testing.assert_allclose(network.predict_proba(X), P.mean(0), rtol=1e-5)
    assert (network.predict(X) == P.mean(0).argmax(1)).all()
    np.testing.assert_allclose(network.predict_spread(X), P.std(0), rtol=1e-3, atol=1e-6)
    measured, correct = network.evaluate(X, LABELS), P.mean(0).argmax(1) == LABELS
    losses = -np.log(P[:, np.arange(25), LABELS])
    assert measured["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx(correct.mean())
    weights = RNG.random(25)
    measured = network.evaluate(X, LABELS, sample_weight=weights, metrics=["f1"])
    assert measured["loss"] == pytest.approx(losses.mean(0) @ weights / weights.sum(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx(correct @ weights / weights.sum(), rel=1e-5)


def test_a_history_has_the_mean_over_members_of_loss_and_metric():
    for batch_size in (8, 25):
        several = of_members(dtype="float64")
        history = several.fit(X, LABELS, epochs=1, batch_size=batch_size, optimizer=dnn.SGD(0.0)).history
        P = softmax(logits_of(several, None))
        assert history["loss"][0] == pytest.approx(-np.log(P[:, np.arange(25), LABELS]).mean(), rel=1e-12)
        assert history["accuracy"][0] == pytest.approx((P.argmax(2) == LABELS).mean())
        weighted = several.fit(
            X, LABELS, epochs=1, batch_size=batch_size, optimizer=dnn.SGD(0.0), class_weight={0: 1, 1: 5, 2: 0.5}
        ).history
        assert weighted["accuracy"][0] == pytest.approx(history["accuracy"][0])  # which classes' weights leave alone


def test_one_member_has_no_spread_and_values_have_one():
    with pytest.raises(ValueError, match="a network of one member has no spread: make it with members=8"):
        of_members(members=1).predict_spread(X)
    network = of_members([Dense(1)], output="linear")
    network.fit(X, VALUES[:, 0], epochs=1)
    values = np.stack([member_of(network, member).predict(X) for member in range(3)])
    np.testing.assert_allclose(network.predict_spread(X), values.std(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(network.predict(X), values.mean(0), rtol=1e-4, atol=1e-6)


def test_batch_norm_of_members_evaluates_with_each_ones_statistics(backend: Backend):
    network = of_members(ALL, backend.name)
    network.fit(X, LABELS, epochs=2, batch_size=8)
    alone = np.stack([member_of(network, member).predict_proba(X) for member in range(3)])
    np.testing.assert_allclose(network.predict_proba(X), alone.mean(0), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------------- tabm


def test_shared_members_begin_as_the_paper_says():
    network = of_members([Dense(64, "relu"), Residual([Dense(64)]), Dense(2)], members=50, shared="tabm")
    found = values_of(network)
    R = found["R1"]
    assert R.shape == (50, 4) and set(np.unique(R)) == {-1.0, 1.0} and abs(R.mean()) < 0.35
    assert len({row.tobytes() for row in R}) > 10
    for name in ("S1", "R2", "S2"):
        assert (found[name] == 1).all()
    assert not any(found[name].any() for name in ("b1", "b2", "b3"))
    assert found["W3"].shape == (50, 2, 64) and len({W.tobytes() for W in found["W3"]}) == 50
    first, second, heads = 64 * 4 + 50 * (4 + 64 + 64), 64 * 64 + 50 * 3 * 64, 50 * (2 * 64 + 2)
    assert network.n_parameters == first + second + heads
    np.testing.assert_array_equal(found["W1"], values_of(of_members([Dense(64), Dense(2)], members=1))["W1"])


def torch_tabm(network: dnn.Network, X: np.ndarray) -> tuple[dict[str, Any], Any]:
    """The logits (k, m, K) of [Dense tanh, LayerNorm-free Residual([Dense]), Dense], as BatchEnsemble and own heads."""
    torch = torch_or_skip()
    P = {name: torch.tensor(value, requires_grad=True) for name, value in values_of(network).items()}

    def batch_ensemble(A: Any, number: int) -> Any:
        R, S, b = (P[f"{name}{number}"][:, None] for name in "RSb")
        return (A * R) @ P[f"W{number}"].T * S + b

    A = torch.tensor(X).expand(network.members, *X.shape)
    A = torch.tanh(batch_ensemble(A, 1))
    A = A + batch_ensemble(A, 2)
    return P, torch.einsum("kij,kuj->kiu", A, P["W3"]) + P["b3"][:, None]


def test_shared_members_are_pytorchs_batch_ensemble_with_own_heads(backend: Backend):
    torch = torch_or_skip()
    layers: list[Layer] = [Dense(6, "tanh"), Residual([Dense(6)]), Dense(2)]
    network = randomized(of_members(layers, backend.name, output="linear", dtype="float64", shared="tabm"))
    P, Z = torch_tabm(network, X)
    close([network.predict(X)], [Z.mean(0).detach().numpy()])
    ((Z - torch.tensor(VALUES)) ** 2).mean().backward()
    found = gradients(network, X, VALUES)
    assert found.of.keys() == P.keys()
    for name, tensor in P.items():
        np.testing.assert_allclose(found.of[name], tensor.grad, rtol=1e-10, atol=1e-13, err_msg=name)


# ------------------------------------------------------------------------------------------ as any other network


@covering("shared, backend", SHARED, BACKENDS, indirect=["backend"])
def test_members_are_copied_pickled_and_saved_and_go_on_alike(shared, tmp_path, backend: Backend):
    network = of_members(FEW, backend.name, shared=shared)
    network.fit(X, LABELS, epochs=1, batch_size=5)
    network.save(tmp_path / "a.h5")
    loaded = dnn.load(tmp_path / "a.h5", backend=backend.name)
    assert same_bits(loaded, network) and loaded.summary() == network.summary()
    assert loaded.predict_proba(X).tobytes() == network.predict_proba(X).tobytes()
    others = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    for each in (network, *others):
        each.fit(X, LABELS, epochs=1, batch_size=5)
    assert all(same_bits(network, other) for other in others)


@covering("shared, backend", SHARED, BACKENDS, indirect=["backend"])
def test_three_and_three_epochs_are_six_to_the_bit(shared, backend: Backend):
    settings: dict[str, Any] = {"batch_size": 8, "optimizer": dnn.AdamW(0.02), "clip_norm": 0.5}
    settings["schedule"] = dnn.schedules.Cosine(epochs=6)
    whole, parts = (of_members(ALL if shared is None else FEW, backend.name, shared=shared) for _ in range(2))
    whole.fit(X, LABELS, epochs=6, **settings)
    for _ in range(2):
        parts.fit(X, LABELS, epochs=3, **settings)
    assert same_bits(whole, parts)


WIDE = RNG.standard_normal((50, 300)).astype(np.float32)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("backend", ["standin", "cupy"], indirect=True)  # on NumPy the device is the host
def test_batches_fed_from_the_host_train_members_as_those_on_the_device(shared, backend: Backend):
    layers: list[Layer] = [Dense(5), BatchNorm(), Activation("relu"), Dropout(0.2), Dense(3)]
    made = [
        dnn.Network(300, layers, output="softmax", members=2, shared=shared, backend=backend.name) for _ in range(2)
    ]
    labels, settings = np.arange(50) % 3, FitSettings(epochs=2, batch_size=4, optimizer=dnn.Adam(0.01))
    examples = prepare(made[0], WIDE, labels, fitting=True)
    limit = (1 + training_bytes(made[0], examples, np.arange(50), 4, settings, True)) / GB
    on_device = made[0].fit(WIDE, labels, epochs=2, batch_size=4, optimizer=dnn.Adam(0.01))
    fed = made[1].fit(WIDE, labels, epochs=2, batch_size=4, optimizer=dnn.Adam(0.01), memory_limit=limit)
    if shared is None:
        assert same_bits(*made) and fed.history == on_device.history
    for name, expected in values_of(made[0]).items():  # a kernel that gathers X takes other sums than one that has it
        np.testing.assert_allclose(values_of(made[1])[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)


@covering("shared, batch_size, precision", SHARED, [16, 100], [None, "float16", "bfloat16"], times=2)
def test_the_estimate_of_memory_is_what_members_allocate(shared, batch_size, precision):
    X, Y = data(90, "softmax", 7, 100)
    X = X.astype(np.float32)
    layers: list[Layer] = [Dense(12), BatchNorm(), Activation("relu"), Dropout(0.2), Dense(7)]
    network = dnn.Network(90, layers, output="softmax", members=2, shared=shared, backend="standin")
    settings: dict[str, Any] = {
        "epochs": 1,
        "batch_size": batch_size,
        "optimizer": dnn.Adam(0.01),
        "precision": precision,
    }
    before = device.allocated
    examples = prepare(network, X, Y, fitting=True)
    of_targets = device.allocated - before
    # a stream's workspace for products is there once and for all
    dnn.Network([2, 1], backend="standin").fit(np.zeros((2, 2)), np.zeros(2), epochs=1)
    expected = training_bytes(network, examples, np.arange(100), batch_size, FitSettings(**settings), False, precision)
    before = device.allocated
    network.fit(X, Y, **settings)
    assert device.allocated - before - of_targets - X.nbytes == expected


@covering("shared, precision", SHARED, ["float16", "bfloat16"])
def test_members_train_in_16_bits(shared, precision):
    network = of_members(ALL, "standin", shared=shared)
    history = network.fit(X, LABELS, epochs=15, batch_size=8, optimizer=dnn.Adam(0.02), precision=precision).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert np.isfinite(network.predict_proba(X)).all()


@pytest.mark.parametrize("shared", SHARED)
def test_bins_are_learned_for_members(shared):
    network = of_members([NumericalEmbedding(size=4), Dense(5, "relu"), Dense(3)], shared=shared)
    network.fit(X, LABELS, epochs=1)
    edges = values_of(network)["edges1"]
    single = of_members([NumericalEmbedding(size=4), Dense(3)], members=1)
    single.fit(X, LABELS, epochs=1)
    for of_member in edges if shared is None else [edges]:
        np.testing.assert_array_equal(of_member, values_of(single)["edges1"])
