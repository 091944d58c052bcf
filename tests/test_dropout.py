"""Dropout: masks that are functions of seed, layer and step, the same bits on every backend, and trainings."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from builders import Recording
from conftest import FORMS
from layer_cases import same_bits, values_of
from traced import KERNELS, WAYS, eagerly, on_backend, traced

import dnn
from dnn.backends import Backend, use_compiled_steps
from dnn.layers import Activation, AlphaDropout, BatchNorm, Dense, Dropout, Residual, Scale
from dnn.layers.dropout import alpha_dropout, dropout, keep_mask
from dnn.schedules import Schedule, StepDecay

RNG = np.random.default_rng(3)


def mask(step: int, rate: float = 0.5, shape: tuple[int, int] = (1, 40), seed: int = 6, place: int = 1) -> np.ndarray:
    [keep] = eagerly(keep_mask, np.array([step]), rate, shape=shape, seed=seed, place=place)
    return keep


# ------------------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (4, 4), (9, 33), (130, 17)])
def test_masks_have_the_same_bits_on_every_backend(shape, backend: Backend):
    for step, rate, seed, place in ((0, 0.5, 0, 1), (2**33 + 5, 0.1, 2**32 - 1, 65537)):
        settings: dict[str, Any] = {"shape": shape, "seed": seed, "place": place}
        [found] = on_backend(backend, keep_mask, np.array([step]), rate, **settings)
        assert found.dtype == bool and found.tobytes() == mask(step, rate, **settings).tobytes()


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
def test_derived_code_has_the_same_masks(way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    for shape in ((1, 3), (5, 1), (37, 21)):
        settings: dict[str, Any] = {"shape": shape, "seed": 11, "place": 3}
        [found] = traced(way, keep_mask, np.array([12]), 0.25, **settings)
        assert found.tobytes() == mask(12, 0.25, **settings).tobytes()


def test_masks_are_those_of_this_release():
    """Saved bits: a network from a file goes on with the masks that it was trained with."""
    assert np.packbits(mask(3, 0.5, (4, 16), 6, 1)).tobytes().hex() == "d00f8f98877db9a2"


def test_masks_differ_by_seed_layer_and_step():
    others = [mask(0), mask(1), mask(2**32), mask(0, seed=7), mask(0, place=2), mask(0, place=65537)]
    assert len({keep.tobytes() for keep in others}) == len(others)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_as_many_stay_as_the_rate_says(rate):
    m = 400_000
    kept = np.mean(mask(5, rate, (m // 100, 100)))
    assert abs(kept - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / m)


def test_what_stays_is_independent_of_rows_columns_and_steps():
    a, b = (mask(step, 0.5, (1000, 200)) * 2.0 - 1 for step in (0, 1))
    for x, y in ((a[1:], a[:-1]), (a[250:], a[:-250]), (a[:, 1:], a[:, :-1]), (a, b)):
        assert abs(np.mean(x * y)) < 5 / np.sqrt(x.size)


def test_dropout_keeps_the_mean_and_alpha_dropout_mean_and_variance():
    X, keep = RNG.standard_normal((2000, 100)), mask(0, 0.3, (2000, 100))
    Y = dropout(np, X + 1, keep, 0.3)
    assert abs(Y.mean() - 1) < 0.02 and set(np.unique(Y == 0)) == {False, True}
    Z = alpha_dropout(np, X, keep, 0.3)
    assert abs(Z.mean()) < 0.02 and abs(Z.var() - 1) < 0.02


# -------------------------------------------------------------------------------------------------- in a network


def visible(backend: str, layers: Any = None, seed: int = 6, **settings: Any) -> dnn.Network:
    """A network whose first gradients show the mask: of X = 1 and W = 0, the weight's is not 0 where it was kept."""
    layers = [Dropout(0.5), Dense(1, bias=False, initializer=0.0)] if layers is None else layers
    return dnn.Network(40, layers, output="linear", seed=seed, backend=backend, **settings)


def next_mask(network: dnn.Network, name: str = "W1", batches: int = 1, **settings: Any) -> np.ndarray:
    """What the last step of a fit kept."""
    X, Y = np.ones((batches, 40), np.float32), -np.ones(batches)
    network.fit(X, Y, **{"epochs": 1, "batch_size": 1, "optimizer": Recording()} | settings)
    assert network.training_state is not None
    seen = network.backend.to_numpy(network.training_state.arrays["seen"])
    first = network.parameters.extent(name)[0]
    gradient = seen[first : first + 40]
    np.testing.assert_allclose(np.unique(np.abs(gradient)), [0, np.abs(gradient).max()])
    return gradient != 0


def test_a_networks_masks_go_on_from_step_to_step_over_fits_and_from_a_file(backend: Backend, tmp_path):
    network = visible(backend.name)
    for step in range(3):
        assert (next_mask(network) == mask(step)).all()
    assert network.steps == 3
    assert (next_mask(network, batches=4, epochs=2) == mask(10)).all() and network.steps == 11
    network.save(tmp_path / "a.h5")
    for other in (copy.deepcopy(network), dnn.load(tmp_path / "a.h5", backend=backend.name), network):
        assert other.steps == 11
        assert (next_mask(other) == mask(11)).all()


def test_layers_of_a_network_have_masks_of_their_own(backend: Backend):
    layers = [Dropout(0.5), Residual([Scale(0.0)]), Dropout(0.5), Dense(1, bias=False, initializer=0.0)]
    both = mask(0, place=1) & mask(0, place=4)  # the residual and the scale have places as well
    assert (next_mask(visible(backend.name, layers)) == both).all()
    assert 2 <= both.sum() < mask(0).sum()


def test_another_seed_has_other_masks():
    assert (next_mask(visible("numpy", seed=7)) == mask(0, seed=7)).all()


def test_an_evaluation_and_predictions_use_no_dropout_and_no_step(backend: Backend):
    layers = [Dense(8, "relu", initializer=0.1), Dropout(0.5), AlphaDropout(0.5), Dense(1, initializer=0.1)]
    network = visible(backend.name, layers)
    X, Y = RNG.standard_normal((30, 40)).astype(np.float32), np.zeros(30)
    A = np.maximum(X @ np.full((40, 8), 0.1), 0)
    expected = A @ np.full(8, 0.1)
    np.testing.assert_allclose(network.predict(X), expected, rtol=1e-4, atol=1e-5)
    assert network.evaluate(X, Y)["loss"] == pytest.approx(np.mean(expected**2), rel=1e-4)
    assert network.steps == 0
    history = network.fit(X, Y, epochs=2, batch_size=8, validation_data=(X, Y), optimizer=dnn.SGD(0.0)).history
    assert history["val_loss"][0] == history["val_loss"][1] == pytest.approx(np.mean(expected**2), rel=1e-4)
    assert network.steps == 8 and history["loss"][0] != history["loss"][1]


def test_a_rate_of_0_is_no_dropout_at_all():
    X, Y = RNG.standard_normal((20, 4)).astype(np.float32), RNG.integers(0, 2, 20)
    networks = [dnn.Network([4, 6, 1]), dnn.Network(4, [Dense(6, "relu"), Dropout(0.0), Dense(1)])]
    for network in networks:
        network.fit(X, Y, epochs=2, batch_size=6)
    assert same_bits(*networks)


def test_a_schedule_multiplies_the_rate_step_by_step(backend: Backend):
    schedule = StepDecay(every=1, gamma=0.5, epochs=3)
    network = visible(backend.name, [Dropout(0.8, schedule=schedule), Dense(1, bias=False, initializer=0.0)])
    for epoch, rate in enumerate((0.8, 0.4, 0.2)):
        # a fit of one batch an epoch; the progress of a schedule goes on over fits
        found = next_mask(network)
        assert (found == mask(epoch, rate)).all(), epoch


def test_members_have_masks_of_their_own_and_the_first_those_of_a_single_network(backend: Backend):
    network = visible(backend.name, members=3)
    X, Y = np.ones((1, 40), np.float32), -np.ones(1)
    network.fit(X, Y, epochs=1, optimizer=Recording())
    seen = network.backend.to_numpy(network.training_state.arrays["seen"])[: 3 * 40].reshape(3, 40) != 0
    for member in range(3):
        assert (seen[member] == mask(0, place=member * 65536 + 1)).all()


# ---------------------------------------------------------------------------------------------------- trainings


def all_of_it(backend: str, **settings: Any) -> dnn.Network:
    layers = [Dense(9, bias=False), BatchNorm(), Activation("gelu"), Dropout(0.3, schedule=dnn.schedules.Cosine())]
    layers += [Residual([Dense(9, "tanh"), AlphaDropout(0.2)]), Dense(3)]
    return dnn.Network(5, layers, output="softmax", seed=3, backend=backend, **settings)


X_TRAIN, Y_TRAIN = RNG.standard_normal((22, 5)).astype(np.float32), RNG.integers(0, 3, 22)
"""Four batches, the last of one example fewer than three others."""
FIT: dict[str, Any] = {
    "batch_size": 6,
    "optimizer": dnn.AdamW(0.02, weight_decay=0.1),
    "clip_norm": 0.5,
    "schedule": dnn.schedules.Cosine(epochs=6),
}


def test_three_and_three_epochs_are_six_to_the_bit(backend: Backend):
    layers = [Dense(9, bias=False), BatchNorm(), Activation("gelu")]
    layers += [Dropout(0.3, schedule=dnn.schedules.Cosine(epochs=6)), Residual([Dense(9, "tanh"), AlphaDropout(0.2)])]
    whole, parts = (
        dnn.Network(5, [*layers, Dense(3)], output="softmax", seed=3, backend=backend.name) for _ in range(2)
    )
    history = whole.fit(X_TRAIN, Y_TRAIN, epochs=6, **FIT).history
    found: dict[str, list[float]] = {}
    for _ in range(2):
        for name, values in parts.fit(X_TRAIN, Y_TRAIN, epochs=3, **FIT).history.items():
            found.setdefault(name, []).extend(values)
    assert same_bits(whole, parts) and parts.steps == whole.steps == 24
    assert {name: found[name] for name in ("loss", "accuracy")} == {
        name: history[name] for name in ("loss", "accuracy")
    }


def trained(backend: str, **settings: Any) -> dict[str, np.ndarray]:
    """After 52 steps."""
    network = all_of_it(backend)
    schedule = dnn.schedules.OneCycle()
    network.fit(X_TRAIN, Y_TRAIN, epochs=13, **FIT | {"schedule": schedule} | settings)
    assert network.steps == 52
    return values_of(network)


def near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=tolerance, atol=tolerance, err_msg=name)


def test_compiled_steps_train_as_operations_one_by_one():
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    compiled = trained("numpy", threads=2)
    with use_compiled_steps(False):
        near(compiled, trained("numpy"), 2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_step_on_a_gpu_trains_as_numpy(form, in_form):
    in_form(form)
    near(trained("standin"), trained("numpy"), 2e-3)


def test_a_scheduled_rate_of_dropout_is_kept_by_a_file(tmp_path):
    network = all_of_it("numpy")
    network.fit(X_TRAIN, Y_TRAIN, epochs=1, **FIT)
    network.save(tmp_path / "a.h5")
    layer = dnn.load(tmp_path / "a.h5").layers[3]
    assert layer == network.layers[3] and isinstance(layer.schedule, Schedule)
