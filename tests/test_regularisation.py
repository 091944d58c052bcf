"""What an update does beside the optimizer: penalties, clipping, bounds, decay, averages and sums over batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import GivenGradients, Problem
from conftest import BACKENDS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import torch_or_skip
from sweeps import covering

import dnn
from dnn.backends import Backend, get_backend, use_compiled_steps
from dnn.data import prepare
from dnn.optimizers import OPTIMIZERS, Optimizer
from dnn.precision import check_precision
from dnn.state import TrainingState
from dnn.step import Order
from dnn.updating import Updating, keeps_of

SIZES = [4, 5, 3, 2]
OPTIMISTS = {name: kind() for name, kind in OPTIMIZERS.items()}


def bound(
    updating: Updating | Optimizer,
    backend: Backend | str = "numpy",
    sizes: list[int] = SIZES,
    dtype: str = "float64",
    precision: str | None = None,
    optimized: bool = True,
    **of_network: Any,
) -> Problem:
    """A step that updates by gradients that are given, with weights and biases that are not 0."""
    name = backend if isinstance(backend, str) else backend.name
    network = dnn.Network(sizes, output="softmax", dtype=dtype, backend=name, **of_network)
    updating = Updating(updating) if isinstance(updating, Optimizer) else updating
    generator = np.random.default_rng(2)
    for parameter, shape in network.parameters.shapes.items():
        network.parameters[parameter] = generator.standard_normal(shape)
    its, m = network.backend, 4
    with its.stream():
        X, Y = generator.standard_normal((m, sizes[0])), generator.integers(0, sizes[-1], m)
        examples = prepare(network, X, Y, fitting=True).on(its)
        state = TrainingState(updating.optimizer, network.parameters, keeps_of(network, updating))
        reduced = check_precision(network.dtype, its, precision)
        state.set_precision(reduced, network.parameters)
        order = Order(its.asarray(np.arange(m)), its.zeros(1, np.int64))
        step = GivenGradients(
            network, examples, m, "train", updating=updating, state=state.arrays, precision=reduced, order=order
        ).compile(optimized)
    return Problem(network, examples, state, step)


def gradients_of(case: Problem, steps: int, scale: float = 1.0) -> list[np.ndarray]:
    """Flat, and 0 between the parameters, as a backward pass leaves it."""
    inside = np.zeros(case.theta.shape)
    for view in case.by_name(inside).values():
        view.fill(1)
    generator = np.random.default_rng(9)
    return [scale * inside * generator.standard_normal(inside.shape) for _ in range(steps)]


def update(case: Problem, gradient: np.ndarray) -> None:
    case.set(case.step.array("given"), gradient)
    case.run()


def tensor_by_tensor(
    case: Problem, updating: Updating, gradients: list[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """θ and its moving average after these updates, written out for one parameter after the other."""
    optimizer, names = updating.optimizer, list(case.network.parameters)
    theta = {name: array.astype(np.float64) for name, array in case.by_name(case.theta).items()}
    average = dict(theta)
    state = {name: [np.zeros_like(theta[name]) for _ in optimizer.arrays] for name in names}
    scalars = list(optimizer.scalars.values())
    last_weight = max(name for name in names if name.startswith("W"))
    for flat in gradients:
        given = {name: array.copy() for name, array in case.by_name(flat).items()}
        for name in names:
            if name.startswith("W"):
                given[name] += updating.l1 * np.sign(theta[name]) + updating.l2 * theta[name]
            if updating.clip_value is not None:
                given[name] = np.clip(given[name], -updating.clip_value, updating.clip_value)
        if updating.clip_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in given.values()))
            given = {name: g * min(1, updating.clip_norm / (norm + 1e-6)) for name, g in given.items()}
        new_scalars = scalars
        for name in names:
            rate_factor, decay_factor = optimizer.factor_of(name)
            rate = optimizer.learning_rate * rate_factor
            by_matrix = optimizer.matrices and name.startswith("W") and name != last_weight
            of_decay = rate if by_matrix else rate * optimizer.rate_ratio
            decayed = theta[name] * (1 - of_decay * optimizer.weight_decay * decay_factor)
            if by_matrix:
                theta[name], state[name][0] = optimizer.update_matrix(np, decayed, given[name], rate, *state[name])
            else:
                found = optimizer.update(np, decayed, given[name], rate, *state[name], *scalars)
                found = found if isinstance(found, tuple) else (found,)
                theta[name], state[name] = found[0], list(found[1 : 1 + len(optimizer.arrays)])
                new_scalars = list(found[1 + len(optimizer.arrays) :])
            if updating.max_norm is not None and name.startswith("W"):
                norms = np.linalg.norm(theta[name], axis=1, keepdims=True)
                theta[name] = theta[name] * np.minimum(1, updating.max_norm / norms)
            if updating.moving_average is not None:
                d = updating.moving_average
                average[name] = d * average[name] + (1 - d) * theta[name]
        scalars = new_scalars
    return theta, average


def assert_as_written_out(case: Problem, updating: Updating, steps: int = 4, scale: float = 1.0) -> None:
    gradients = gradients_of(case, steps, scale)
    theta, average = tensor_by_tensor(case, updating, gradients)
    for gradient in gradients:
        update(case, gradient)
    found = case.by_name(case.theta)
    for name, expected in theta.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-11, atol=1e-12, err_msg=name)
    if updating.moving_average is not None:
        found = case.by_name(case.state_of("average"))
        for name, expected in average.items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-11, atol=1e-12, err_msg=name)


SETTINGS: dict[str, dict[str, Any]] = {
    "l1": {"l1": 0.1},
    "l2": {"l2": 0.3},
    "l1 and l2": {"l1": 0.1, "l2": 0.2},
    "clip_value": {"clip_value": 0.5},
    "clip_norm": {"clip_norm": 0.7},
    "a norm that needs no clipping": {"clip_norm": 1e3},
    "max_norm": {"max_norm": 0.9},
    "moving_average": {"moving_average": 0.7},
    "all": {"l1": 0.01, "l2": 0.1, "clip_value": 1.0, "clip_norm": 2.0, "max_norm": 1.5, "moving_average": 0.5},
}


@covering("name, backend", SETTINGS, BACKENDS, times=2, indirect=["backend"])
def test_what_is_done_beside_the_optimizer_is_as_written_out(name, backend: Backend):
    updating = Updating(dnn.AdamW(0.1, weight_decay=0.2), **SETTINGS[name])
    assert_as_written_out(bound(updating, backend), updating)


@covering("name, backend", OPTIMISTS, BACKENDS, times=2, indirect=["backend"])
def test_every_optimizer_works_through_whole_steps(name, backend: Backend):
    optimizer = replace(OPTIMISTS[name], learning_rate=0.05, weight_decay=0.1, factors={"W2": 0.5, "b": (2.0, 0.5)})
    updating = Updating(optimizer)
    assert_as_written_out(bound(updating, backend), updating, steps=7)


SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(lambda sizes: [*sizes, 2])


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(
    sizes=SHAPES,
    name=st.sampled_from([*OPTIMISTS]),
    beside=st.sampled_from([*SETTINGS]),
    decay=st.sampled_from([0.0, 0.3]),
    factors=st.sampled_from([{}, {"W1": 0.5}, {"W": (1.0, 0.0), "b1": (0.0, 1.0)}, {"b": 3.0}]),
)
def test_a_flat_update_equals_the_one_tensor_by_tensor(sizes, name, beside, decay, factors):
    use_compiled_steps(False)
    optimizer = replace(OPTIMISTS[name], learning_rate=0.02, weight_decay=decay, factors=factors)
    updating = Updating(optimizer, **SETTINGS[beside])
    assert_as_written_out(bound(updating, sizes=sizes), updating)


# ------------------------------------------------------------------------------------ by PyTorch


def tensors(torch: Any, case: Problem) -> dict[str, Any]:
    return {name: torch.nn.Parameter(torch.tensor(array)) for name, array in case.by_name(case.theta).items()}


def give(case: Problem, peers: dict[str, Any], torch: Any, gradient: np.ndarray) -> None:
    for name, array in case.by_name(gradient).items():
        peers[name].grad = torch.tensor(array.copy())


def assert_equal(case: Problem, peers: dict[str, Any], atol: float = 1e-12) -> None:
    for name, found in case.by_name(case.theta).items():
        np.testing.assert_allclose(found, peers[name].detach().numpy(), rtol=0, atol=atol, err_msg=name)


def test_weights_decay_as_in_pytorchs_adamw_and_biases_do_not(backend: Backend):
    torch = torch_or_skip()
    case = bound(dnn.AdamW(0.1, weight_decay=0.3), backend)
    peers = tensors(torch, case)
    groups = [
        {"params": [p for name, p in peers.items() if name.startswith("W")], "weight_decay": 0.3},
        {"params": [p for name, p in peers.items() if name.startswith("b")], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=0.1)
    for gradient in gradients_of(case, 6):
        give(case, peers, torch, gradient)
        peer.step()
        update(case, gradient)
    assert_equal(case, peers)


def test_l2_and_clipping_are_pytorchs(backend: Backend):
    torch = torch_or_skip()
    for settings_of_step, clip in (
        ({"clip_norm": 0.5}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.5)),
        ({"clip_norm": 1e-5}, lambda p: torch.nn.utils.clip_grad_norm_(p, 1e-5)),  # where 1e-6 is no longer small
        ({"clip_value": 0.3}, lambda p: torch.nn.utils.clip_grad_value_(p, 0.3)),
    ):
        scale = 1e-5 if settings_of_step == {"clip_norm": 1e-5} else 1.0
        case = bound(Updating(dnn.SGD(1.0), **settings_of_step), backend)
        peers = tensors(torch, case)
        peer = torch.optim.SGD(peers.values(), 1.0)
        for gradient in gradients_of(case, 3, scale):
            give(case, peers, torch, gradient)
            clip(peers.values())
            peer.step()
            update(case, gradient)
        assert_equal(case, peers, atol=1e-14)
    case = bound(Updating(dnn.Momentum(0.1), l2=0.2), backend)
    peers = tensors(torch, case)
    groups = [{"params": [p], "weight_decay": 0.2 * name.startswith("W")} for name, p in peers.items()]
    peer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    for gradient in gradients_of(case, 4):
        give(case, peers, torch, gradient)
        peer.step()
        update(case, gradient)
    assert_equal(case, peers)


def test_a_moving_average_is_pytorchs(backend: Backend):
    torch = torch_or_skip()
    network = dnn.Network([3, 4, 2], output="softmax", dtype="float64", backend=backend.name)
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((12, 3)), generator.integers(0, 2, 12)
    model = torch.nn.ParameterDict(
        {n: torch.tensor(network.backend.to_numpy(v)) for n, v in network.parameters.items()}
    )
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    average.update_parameters(model)  # the first is a copy

    class Following:
        def on_batch_end(self, event: dnn.Event) -> None:
            with torch.no_grad():
                for name, view in event.network.parameters.items():
                    model[name].copy_(torch.tensor(event.network.backend.to_numpy(view)))
            average.update_parameters(model)

    network.fit(X, Y, epochs=3, batch_size=5, optimizer=dnn.Adam(0.1), moving_average=0.8, callbacks=[Following()])
    for name, view in network.parameters.items():
        np.testing.assert_allclose(
            network.backend.to_numpy(view), average.module[name].detach().numpy(), rtol=0, atol=1e-13
        )


# -------------------------------------------------------------------------- bounds and penalties


def test_the_bound_is_each_units_own(backend: Backend):
    case = bound(Updating(dnn.SGD(0.0), max_norm=1.25), backend)
    before = case.by_name(case.theta)
    update(case, np.zeros(case.theta.shape))
    after = case.by_name(case.theta)
    for name in ("W1", "W2", "W3"):
        norms = np.linalg.norm(before[name], axis=1)
        np.testing.assert_allclose(np.linalg.norm(after[name], axis=1), np.minimum(norms, 1.25), rtol=1e-12)
        small = norms <= 1.25
        np.testing.assert_array_equal(after[name][small], before[name][small])
    for name in ("b1", "b2", "b3"):
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("shared", [None, "tabm"])
def test_members_are_regularised_each_for_itself(shared):
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((20, 4)), generator.integers(0, 2, 20)
    network = dnn.Network([4, 6, 2], output="softmax", members=3, shared=shared)
    network.fit(X, Y, epochs=2, l1=0.01, l2=0.1, clip_norm=1.0, max_norm=0.5, moving_average=0.5, accumulate=2)
    assert np.isfinite(network.predict_proba(X)).all()
    network.fit(X, Y, epochs=1, max_norm=0.5)
    for name, view in network.parameters.items():
        if name.startswith("W"):
            assert np.linalg.norm(view, axis=-1).max() <= 0.5 + 1e-6


def test_the_reported_loss_leaves_out_penalties(backend: Backend):
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((8, 3)), generator.integers(0, 2, 8)
    network = dnn.Network([3, 4, 2], output="softmax", dtype="float64", backend=backend.name)
    expected = network.evaluate(X, Y)["loss"]
    history = network.fit(X, Y, epochs=1, l1=10.0, l2=10.0)
    assert history.history["loss"] == [pytest.approx(expected, abs=1e-13)]


@pytest.mark.parametrize("name", ["W1", "b3"])
def test_a_factor_of_zero_leaves_a_parameter_as_it_is(name, backend: Backend):
    case = bound(dnn.Adam(0.1, weight_decay=0.1, factors={name: 0.0}), backend)
    before = case.by_name(case.theta)
    for gradient in gradients_of(case, 3):
        update(case, gradient)
    for each, array in case.by_name(case.theta).items():
        assert np.array_equal(array, before[each]) == (each == name)


def test_factors_of_parameters_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="Adam: factors: there is no parameter 'W9': choose from W1, W2, b1, b2"):
        dnn.Network([2, 3, 1]).fit(np.ones((4, 2)), np.ones(4), optimizer=dnn.Adam(factors={"W9": 0.1}))


# ---------------------------------------------------------------------- sums over several batches


@covering(
    "m, optimizer, weighted, backend",
    [24, 22, 26],
    [dnn.SGD(0.2), dnn.Adam(0.05)],
    [False, True],
    BACKENDS,
    times=3,
    indirect=["backend"],
    ids=str,
)
def test_batches_that_make_one_update_equal_one_large_batch(weighted, optimizer, m, backend: Backend):
    """Of 26 examples in batches of 4, three to an update, the last update is of one batch of 2."""
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((m, 3)), generator.integers(0, 3, m)
    beside = {"l2": 0.1, "clip_norm": 0.5}
    if weighted:
        beside |= {"sample_weight": np.random.default_rng(1).uniform(0, 2, m), "class_weight": "balanced"}
    found = []
    for batch_size, accumulate in ((4, 3), (12, 1)):
        network = dnn.Network([3, 5, 3], output="softmax", dtype="float64", activation="tanh", backend=backend.name)
        history = network.fit(
            X, Y, epochs=3, batch_size=batch_size, accumulate=accumulate, optimizer=optimizer, **beside
        )
        assert history.epoch == [1, 2, 3]
        found.append(network.backend.to_numpy(network.parameters.flat).copy())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)


@covering("weighted, backend", [False, True], BACKENDS, indirect=["backend"])
def test_everything_at_once_works_in_float32(weighted, backend: Backend):
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((26, 3)), generator.integers(0, 3, 26)
    beside = SETTINGS["all"] | ({"sample_weight": np.arange(26), "class_weight": "balanced"} if weighted else {})
    found = []
    for dtype, name in (("float32", backend.name), ("float64", "numpy")):
        network = dnn.Network([3, 5, 3], output="softmax", dtype=dtype, activation="tanh", backend=name)
        settings = {"schedule": "cosine", "weight_decay_schedule": "cosine", "optimizer": dnn.AdamW(0.05)}
        network.fit(X, Y, epochs=3, batch_size=4, accumulate=3, **settings, **beside)
        found.append(network.backend.to_numpy(network.parameters.flat).copy())
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)


def test_sums_over_batches_do_not_reach_over_epochs():
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((10, 3)), generator.integers(0, 2, 10)
    many, whole = (dnn.Network([3, 4, 2], output="softmax", dtype="float64") for _ in range(2))
    many.fit(X, Y, epochs=4, batch_size=3, accumulate=100, optimizer=dnn.SGD(0.1))
    whole.fit(X, Y, epochs=4, batch_size=10, optimizer=dnn.SGD(0.1))
    np.testing.assert_allclose(many.parameters.flat, whole.parameters.flat, rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------- in 16 bits


@covering(
    "name, beside", ["sgd", "adam", "radam", "lion", "muon"], ["clip_norm", "clip_value", "max_norm", "all"], times=2
)
def test_a_gradient_that_overflows_changes_nothing(name, beside):
    get_backend("standin")
    updating = Updating(replace(OPTIMISTS[name], weight_decay=0.1), **SETTINGS[beside], schedule=dnn.Cosine(epochs=99))
    case = bound(updating, "standin", dtype="float32", precision="float16")
    gradients = gradients_of(case, 3)
    for gradient in gradients:
        update(case, gradient)
    before, scale = case.everything(), case.state_of("loss_scale")
    for value in (np.inf, np.nan):
        overflown = gradients[0].copy()
        overflown[2] = value
        update(case, overflown)
        assert case.everything() == before
    assert case.state_of("loss_scale")[0] == scale[0] / 4
    update(case, gradients[1])
    after = case.everything()
    assert after["theta"] != before["theta"] and np.isfinite(case.theta).all()


def test_a_gradient_that_overflows_in_the_first_batch_of_an_update_changes_nothing(monkeypatch):
    """The sum over batches has it; the update leaves θ and the next sum is a new one."""
    generator = np.random.default_rng(1)
    X = generator.standard_normal((16, 4)).astype(np.float32)
    Y = generator.integers(0, 2, 16)
    network = dnn.Network([4, 5, 2], output="softmax", backend="standin")
    before: list[bytes] = []
    scales: list[float] = []

    class Looking:
        def on_batch_end(self, event: dnn.Event) -> None:
            state = event.network.training_state
            if event.batch == 1:
                state.arrays["gradients"][...] = np.inf
                before.append(event.network.backend.to_numpy(event.network.parameters.flat).tobytes())
            if event.batch == 2:
                scales.append(float(event.network.backend.to_numpy(state.arrays["loss_scale"])[0]))
                assert event.network.backend.to_numpy(event.network.parameters.flat).tobytes() == before[0]

    history = network.fit(X, Y, epochs=1, batch_size=4, accumulate=2, precision="float16", callbacks=[Looking()])
    assert np.isfinite(history.history["loss"]).all() and len(scales) == 1
    assert network.backend.to_numpy(network.parameters.flat).tobytes() != before[0]


def test_sums_over_batches_in_16_bits_are_those_of_one_large_batch():
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((24, 4)), generator.integers(0, 2, 24)
    found = []
    for batch_size, accumulate in ((4, 3), (12, 1)):
        network = dnn.Network([4, 5, 2], output="softmax", backend="standin")
        network.fit(X, Y, epochs=1, optimizer=dnn.SGD(0.0), precision="float16")
        network.training_state.arrays["loss_scale"].fill(256)  # with which nothing overflows
        network.fit(
            X, Y, epochs=2, batch_size=batch_size, accumulate=accumulate, optimizer=dnn.SGD(0.1), precision="float16"
        )
        found.append(network.backend.to_numpy(network.parameters.flat).copy())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-3)


def test_an_optimizers_state_does_not_take_a_name_of_the_trainings():
    class Own(dnn.SGD):
        scalars = {"steps": 0.0}  # noqa: RUF012

    with pytest.raises(ValueError, match="Own: its state cannot be called 'steps': take another name"):
        dnn.Network([2, 1]).fit(np.ones((4, 2)), np.ones(4), optimizer=Own())
