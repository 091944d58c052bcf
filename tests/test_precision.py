"""Steps in TF32, float16 and bfloat16: right to their rounding, scaled and skipped as they should be, on the device."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest
from builders import GivenGradients, Problem, Recording, nodes_of
from ml_dtypes import bfloat16
from oracles import apart, torch_gradients, torch_optimizer, torch_or_skip
from sweeps import covering

import dnn
from dnn import functional, progress, step, updating
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, get_backend
from dnn.backends.cupy_backend import _precisions
from dnn.backends.plan import Buffer
from dnn.batches import in_place
from dnn.cli import main
from dnn.data import prepare
from dnn.memory import GB, training_bytes
from dnn.precision import INITIAL_LOSS_SCALE
from dnn.settings import FitSettings
from dnn.state import TrainingState
from dnn.step import ACCUMULATE, GATHERED, GRADIENTS, IN_PLACE, TRAIN, Step
from dnn.updating import Updating, keeps_of

OUTPUTS = {"sigmoid": 3, "softmax": 5, "linear": 3}
OPTIMIZERS = [dnn.SGD(0.05), dnn.Momentum(0.05), dnn.Adam(0.01)]
LOW = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The 16-bit precisions, with half the distance between two numbers next to 1."""


def problem(
    precision: str | None, output: str = "softmax", optimizer: Any = OPTIMIZERS[0], m: int = 32, **settings: Any
) -> Problem:
    settings = {"backend": "standin", "loading": IN_PLACE} | settings
    sizes = [20, 24, 16, OUTPUTS[output]]
    return builders.problem(sizes, output, m=m, optimizer=optimizer, precision=precision, biases=False, **settings)


recorded = partial(problem, optimizer=Recording())
"""A problem whose update leaves θ alone and keeps the gradients that it is given."""

on_devices = pytest.mark.parametrize("backend", ["standin", "cupy"], indirect=True)


def needs(backend: Backend, precision: str | None) -> None:
    if precision not in (None, *backend.precisions):
        pytest.skip(f"{backend!r} has no {precision}")


def scale_of(network: dnn.Network) -> float:
    assert network.training_state is not None
    return float(network.backend.to_numpy(network.training_state.arrays["loss_scale"])[0])


# ----------------------------------------------------------------------------------------------- right


@covering("precision, output, activation, of_bytes", LOW, OUTPUTS, ACTIVATIONS, [False, True])
@on_devices
def test_gradients_are_those_of_float32_to_the_rounding(precision, output, activation, of_bytes, backend: Backend):
    needs(backend, precision)
    settings = {"backend": backend.name, "activation": activation, "of_bytes": of_bytes}
    exact, low = (recorded(p, output, **settings) for p in (None, precision))
    if precision == "float16":
        low.set(low.state.arrays["loss_scale"], [2.0**10])  # with the first one some of these overflow
    for case in (exact, low):
        case.run()
    expected = exact.gradients()
    for name, gradient in low.gradients().items():
        assert gradient.dtype == np.float32
        assert apart(gradient, expected[name]) < 8 * LOW[precision], name
    assert low.loss == pytest.approx(exact.loss, rel=4 * LOW[precision])
    # the batch, the working copy of θ and the gradients; the loss is a sum in float64
    working = low.examples.X, *(b for b in low.step.plan.buffers if b.name in ("weights", "grad"))
    assert [array.dtype for array in working] == 3 * [backend.precisions[precision]]


def test_a_gradient_that_was_not_unscaled_would_be_seen(monkeypatch):
    exact = recorded(None)
    monkeypatch.setattr(updating, "_unscaled", lambda xp, grad, loss_scale, finite, dtype: grad.astype(dtype))
    low = recorded("float16")
    for case in (exact, low):
        case.run()
    assert apart(low.gradients()["W1"], exact.gradients()["W1"]) > 1e4


def test_what_is_too_small_for_float16_is_there_with_the_scale_and_lost_without():
    exact, scaled, unscaled = (recorded(p, "linear") for p in (None, "float16", "float16"))
    unscaled.set(unscaled.state.arrays["loss_scale"], [1])
    for case in (exact, scaled, unscaled):
        # targets that are almost the outputs, so that gradients are small
        predict = Step(case.network, case.examples, 32, step.PREDICT, IN_PLACE, precision=case.state.precision)
        predict.compile()()
        case.set(case.examples.targets, case.host(predict.array("P")) - 1e-6)
        case.run()
    largest = np.abs(exact.gradients()["W1"]).max()
    assert 0 < largest < 1e-6
    # what is left of z - y is itself a rounding of z: only the size of the gradient is sure
    assert 0.5 < np.abs(scaled.gradients()["W1"]).max() / largest < 2
    assert np.count_nonzero(unscaled.gradients()["W1"]) < 0.5 * np.count_nonzero(scaled.gradients()["W1"])


@pytest.mark.parametrize("precision", LOW)
def test_gradients_are_pytorchs_of_a_model_in_16_bits(precision):
    case = recorded(precision)
    layers = [tuple(case.host(case.network.parameters[f"{kind}{i}"]) for kind in "Wb") for i in (1, 2, 3)]
    X, labels = case.host(case.examples.X), case.host(case.examples.targets)[:, 0]
    scale = INITIAL_LOSS_SCALE if precision == "float16" else 1.0
    loss, expected = torch_gradients(layers, X, labels, precision, scale)
    case.run()
    assert case.loss == pytest.approx(loss, rel=2 * LOW[precision])
    gradients = case.gradients()
    for i, (W, b) in enumerate(expected, start=1):
        assert apart(gradients[f"W{i}"], W) < 3 * LOW[precision], i
        assert apart(gradients[f"b{i}"], b) < 3 * LOW[precision], i


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("precision", [*LOW, "tf32"])
def test_a_training_is_that_in_float32_to_the_rounding(precision, optimizer, in_form):
    in_form("launches")  # in one kernel, products are exact in tf32 as well
    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (20, 20)).astype(np.uint8)
    Y = (X[:, :3] > 127).sum(axis=1)
    trained = []
    for its in (None, precision):
        network = dnn.Network([20, 24, 16, 4], output="softmax", seed=3, activation="tanh", backend="standin")
        # batches of 16 and a last one of 4
        history = network.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer, validation_data=(X, Y), precision=its)
        trained.append((network.parameters.flat.get(), np.array(history.history["val_loss"])))
    (exact, exact_losses), (weights, losses) = trained
    rounding = LOW.get(precision, 2.0**-11)
    np.testing.assert_allclose(losses, exact_losses, rtol=6 * rounding)
    # and not float32's, whose sums in another order differ by less
    assert 5e-6 < apart(weights, exact) < 6 * rounding


@pytest.mark.parametrize("of_bytes", [False, True])
@pytest.mark.parametrize("precision", LOW)
def test_batches_fed_from_the_host_give_what_those_on_the_device_give(precision, of_bytes, monkeypatch):
    generator = np.random.default_rng(0)
    X, Y = generator.integers(0, 256, (200, 300)).astype(np.uint8 if of_bytes else np.float32), np.arange(200) % 3
    feeders, weights = [], []
    backend = get_backend("standin")
    feeder = backend.feeder
    monkeypatch.setattr(backend, "feeder", lambda *given: feeders.append(given) or feeder(*given), raising=False)
    for fed in (False, True):
        network = dnn.Network([300, 8, 3], output="softmax", input_scale=1 / 255, backend="standin")
        examples, settings, rows = prepare(network, X, Y, fitting=True), FitSettings(), np.arange(200)
        limit = (1 + training_bytes(network, examples, rows, 16, settings, True, precision)) / GB if fed else None
        network.fit(
            X, Y, epochs=2, batch_size=16, optimizer=settings.optimizer, memory_limit=limit, precision=precision
        )
        weights.append(network.parameters.flat.get())
    assert len(feeders) == 1
    np.testing.assert_array_equal(*weights)


def test_validation_is_in_the_networks_dtype():
    X, Y = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 3
    network = dnn.Network([4, 8, 3], output="softmax", backend="standin")
    history = network.fit(X, Y, epochs=1, validation_data=(X, Y), precision="bfloat16").history
    exact = dnn.Network([4, 8, 3], output="softmax", dtype="float32")
    for name, view in network.parameters.items():
        exact.parameters[name] = view.get()
    assert history["val_loss"][0] == pytest.approx(exact.evaluate(X, Y)["loss"], rel=1e-6)


@pytest.mark.parametrize("precision", [None, "tf32", *LOW])
@on_devices
def test_it_learns(precision, backend: Backend):
    needs(backend, precision)
    generator = np.random.default_rng(0)
    X = generator.standard_normal((400, 10))
    Y = (X[:, 0] * X[:, 1] > 0).astype(int)
    network = dnn.Network([10, 32, 16, 1], backend=backend.name)
    history = network.fit(X, Y, epochs=40, batch_size=32, optimizer=dnn.Adam(3e-3), precision=precision).history
    assert history["accuracy"][-1] > 0.95


# ---------------------------------------------------------------------------------------- the weights

GENERATOR = np.random.default_rng(0)
SOME_X, SOME_Y = GENERATOR.standard_normal((40, 4)), np.arange(40) % 3
IN_16_BITS = {"batch_size": 16, "optimizer": dnn.Adam(0.01)}


def small() -> dnn.Network:
    return dnn.Network([4, 8, 3], output="softmax", seed=2, backend="standin")


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("precision", LOW)
def test_the_weights_in_16_bits_are_theta_after_every_step(precision, optimizer):
    case = problem(precision, optimizer=optimizer, loading=GATHERED)
    for _ in range(3):
        before = case.theta
        case.run()
        assert (case.theta != before).any()
        weights = case.state_of("weights")
        np.testing.assert_array_equal(weights, case.theta.astype(weights.dtype))


@pytest.mark.parametrize("precision", LOW)
def test_steps_of_a_training_share_the_weights_and_cast_theta_once(precision):
    case = problem(precision)
    casts = [node for node in case.step.plan.nodes if node.op == "cast" and node.shape == case.theta.shape]
    assert [node.dtype.itemsize for node in casts] == [4, 2]  # the gradients, and the new theta
    (weights,) = [buffer.array for buffer in case.step.plan.buffers if buffer.name == "weights"]
    assert weights is case.state.arrays["weights"]


@pytest.mark.parametrize("precision", LOW)
def test_what_is_set_between_fits_is_what_the_next_step_computes_with(precision):
    network, fresh = small(), small()
    network.fit(SOME_X, SOME_Y, epochs=2, precision=precision, **IN_16_BITS)
    fresh.epochs = 2  # which decide on the order
    network.training_state.arrays["m"].fill(0)
    network.training_state.arrays["v"].fill(0)
    network.training_state.arrays["power1"].fill(1)
    network.training_state.arrays["power2"].fill(1)
    for name, view in network.parameters.items():
        values = GENERATOR.standard_normal(view.shape)
        for each in (network, fresh):
            each.parameters[name] = values
    for each in (network, fresh):
        each.fit(SOME_X, SOME_Y, epochs=2, precision=precision, **IN_16_BITS)
    np.testing.assert_array_equal(network.parameters.flat.get(), fresh.parameters.flat.get())


@pytest.mark.parametrize("precision", LOW)
def test_what_is_set_between_epochs_is_what_the_next_step_computes_with(precision, monkeypatch):
    network, losses = small(), []

    def zeroing(progress: Any, epoch: int, measured: dict[str, float]) -> None:
        losses.append(measured["loss"])
        network.parameters.flat.fill(0)

    monkeypatch.setattr(progress.Progress, "epoch_done", zeroing)
    network.fit(SOME_X, SOME_Y, epochs=3, batch_size=40, precision=precision)
    # of logits that are all 0
    assert losses[1:] == [pytest.approx(np.log(3), rel=1e-6)] * 2 and abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize("precision", LOW)
def test_a_copy_has_no_weights_of_its_own_and_learns_as_the_original(precision, tmp_path):
    network = small()
    network.fit(SOME_X, SOME_Y, epochs=2, precision=precision, **IN_16_BITS)
    copies = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    for each in copies:
        assert "weights" not in each.training_state.arrays
    for each in (network, *copies):
        each.fit(SOME_X, SOME_Y, epochs=2, precision=precision, **IN_16_BITS)
    for each in copies:
        np.testing.assert_array_equal(each.parameters.flat.get(), network.parameters.flat.get())


def test_in_another_precision_the_weights_are_others_or_gone():
    network = small()
    for precision, dtype in (("float16", np.float16), ("bfloat16", bfloat16), (None, None), ("tf32", None)):
        network.fit(SOME_X, SOME_Y, epochs=1, precision=precision, **IN_16_BITS)
        weights = network.training_state.arrays.get("weights")
        assert (weights is None) == (dtype is None)
        assert weights is None or weights.dtype == dtype


# ----------------------------------------------------------------------------------- the loss scale


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("good_steps", [0, 3])
@on_devices
def test_an_overflow_leaves_every_bit_and_halves_the_scale(good_steps, optimizer, backend):
    needs(backend, "float16")
    # a batch of two: dZ is large, and overflows under the largest scale
    case = problem("float16", optimizer=optimizer, backend=backend.name, m=2)
    case.run(good_steps)
    before = case.everything()
    case.set(case.state.arrays["loss_scale"], [2.0**24])
    for halved in (2.0**23, 2.0**22, 2.0**21):
        case.run()
        assert case.everything() == before
        assert case.state_of("loss_scale") == halved
    # and the steps after it are those that would have been without it
    case.set(case.state.arrays["loss_scale"], [INITIAL_LOSS_SCALE])
    case.run(2)
    untroubled = problem("float16", optimizer=optimizer, backend=backend.name, m=2)
    untroubled.run(good_steps + 2)
    assert case.everything() == untroubled.everything() != before


def with_updating(**settings: Any) -> tuple[TrainingState, dict[str, Any], dict[str, Step]]:
    """The state, the arrays that an update changes, and the steps of a training on one batch in float16."""
    network = dnn.Network([20, 24, 5], output="softmax", backend="standin")
    update, its = Updating(dnn.Momentum(0.1), **settings), network.backend
    state = TrainingState(update.optimizer, network.parameters, keeps_of(network, update))
    state.set_precision("float16", network.parameters)
    examples = prepare(network, SOME_X[:8].repeat(5, axis=1), np.arange(8) % 5, fitting=True).on(its)
    examples = in_place(its, examples, np.arange(8), np.dtype(np.float16))
    steps = {}
    for goal in (ACCUMULATE, TRAIN) if update.accumulate > 1 else (TRAIN,):
        steps[goal] = Step(network, examples, 8, goal, IN_PLACE, update, state.arrays, "float16").compile()
    names = [name for name in ("velocity", "average") if name in state.arrays]
    return state, {"theta": network.parameters.flat, **{name: state.arrays[name] for name in names}}, steps


def test_an_overflow_leaves_the_average_and_weights_beyond_their_bound_too():
    state, arrays, steps = with_updating(moving_average=0.5, max_norm=0.1)
    state.arrays["average"].fill(1)
    before = {name: array.get() for name, array in arrays.items()}
    for scale, same in ((2.0**24, True), (2.0**10, False)):
        state.arrays["loss_scale"].fill(scale)
        with np.errstate(all="ignore"):
            steps[TRAIN]()
        assert all(np.array_equal(array.get(), before[name]) == same for name, array in arrays.items())
        np.testing.assert_array_equal(state.arrays["weights"].get(), arrays["theta"].get().astype(np.float16))
    assert state.arrays["good_steps"].get()[0] == 1


def test_gradients_of_several_batches_are_added_without_their_scale_and_one_overflow_skips_their_update():
    _, expected, alone = with_updating()
    alone[TRAIN]()
    state, arrays, steps = with_updating(accumulate=2)
    before = arrays["theta"].get()
    # one batch after the other overflows; the next update is as if there had been none
    for overflowing in (ACCUMULATE, TRAIN):
        for goal in (ACCUMULATE, TRAIN):
            state.arrays["loss_scale"].fill(2.0**24 if goal == overflowing else 2.0**10)
            with np.errstate(all="ignore"):
                steps[goal]()
        np.testing.assert_array_equal(arrays["theta"].get(), before)
        assert not state.arrays["gradients"].get().any() and state.arrays["examples"].get()[0] == 0
    state.arrays["loss_scale"].fill(INITIAL_LOSS_SCALE)
    steps[ACCUMULATE]()
    steps[TRAIN]()  # twice the same batch
    np.testing.assert_allclose(arrays["theta"].get(), expected["theta"].get(), rtol=1e-6, atol=1e-7)


class Spoiled(Step):
    """A step with one gradient that is what `wrong` is."""

    parameter = "W1"

    def _backward(self, dZ: Any, backward: Any, grad: Buffer) -> None:
        super()._backward(dZ, backward, grad)
        part = self._network.parameters.part(grad, self.parameter)
        last = grad.part(part.start + part.size - 1, (1,))
        self.plan.store(last, self.plan.read(self._buffer("wrong", 1, grad.dtype)))


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, 0])
@pytest.mark.parametrize("name", ["W1", "b3"])
def test_one_gradient_that_is_not_finite_is_an_overflow(name, wrong, monkeypatch):
    monkeypatch.setattr(Spoiled, "parameter", name)
    case = problem("float16", kind=Spoiled)
    case.set(case.step.array("wrong"), [wrong])
    before = case.everything()
    case.run()
    assert (case.everything() == before) == (wrong != 0)
    assert case.state_of("loss_scale") == INITIAL_LOSS_SCALE / (1 if wrong == 0 else 2)


def test_the_scale_grows_after_so_many_good_steps_in_a_row(monkeypatch):
    monkeypatch.setattr(updating, "INTERVAL", 3)
    case = problem("float16", m=32)
    seen = []

    def run(times: int) -> None:
        for _ in range(times):
            case.run()
            seen.append(float(case.state_of("loss_scale")[0]) / INITIAL_LOSS_SCALE)

    run(7)
    assert seen == [1, 1, 2, 2, 2, 4, 4]
    # one good step is counted: an overflow begins anew
    X = case.host(case.examples.X)
    infinite = X.copy()
    infinite[0, 0] = np.inf
    case.set(case.examples.X, infinite)
    run(1)
    case.set(case.examples.X, X)
    run(3)
    assert seen[7:] == [2, 2, 2, 4]


def test_the_scale_stays_within_bounds_where_nothing_is_finite(monkeypatch):
    monkeypatch.setattr(updating, "INTERVAL", 1)
    case = problem("float16", "linear")
    case.examples.targets.fill(np.inf)
    case.run(20)
    assert case.state_of("loss_scale") == 1
    case.examples.targets.fill(0)
    for view in case.network.parameters.values():
        view.fill(0)  # gradients of zero
    case.state.refresh(case.network.parameters)
    case.run(40)
    assert case.state_of("loss_scale") == 2.0**24


@pytest.mark.parametrize("optimizer", [dnn.SGD(0.1), dnn.Momentum(0.1), dnn.Adam(0.01)], ids=str)
def test_scale_and_weights_are_those_of_pytorchs_grad_scaler(optimizer, monkeypatch):
    torch = torch_or_skip()
    monkeypatch.setattr(updating, "INTERVAL", 3)
    case = problem("float16", optimizer=optimizer, kind=GivenGradients)
    theta = torch.nn.Parameter(torch.tensor(case.theta))
    peer = torch_optimizer(optimizer, theta)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    scaler.scale(torch.zeros(1))  # sets it up
    generator = np.random.default_rng(0)
    for wrong in [0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]:
        gradient = (generator.standard_normal(theta.shape[0]) * 100).astype(np.float16)
        gradient[7] = np.inf if wrong else 0
        case.set(case.step.array("given"), gradient)
        theta.grad = torch.tensor(gradient.astype(np.float32))
        case.run()
        scaler.step(peer)
        scaler.update()
        assert case.state_of("loss_scale") == scaler.get_scale()
    np.testing.assert_allclose(case.theta, theta.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_a_second_fit_goes_on_with_the_scale_and_three_and_three_are_six(monkeypatch):
    monkeypatch.setattr(updating, "INTERVAL", 5)
    monkeypatch.setattr("dnn.state.INITIAL_LOSS_SCALE", 2.0**8)
    X, Y = np.random.default_rng(0).standard_normal((64, 4)), np.arange(64) % 3
    together, parted = (dnn.Network([4, 8, 3], output="softmax", backend="standin") for _ in range(2))
    together.fit(X, Y, epochs=6, batch_size=16, precision="float16")
    for _ in range(2):
        parted.fit(X, Y, epochs=3, batch_size=16, precision="float16")
    np.testing.assert_array_equal(parted.parameters.flat.get(), together.parameters.flat.get())
    assert scale_of(parted) == scale_of(together) == 2.0**8 * 2**4
    assert [n.training_state.arrays["good_steps"].get()[0] for n in (together, parted)] == [24 % 5] * 2
    parted.fit(X, Y, epochs=1, precision="bfloat16")
    parted.fit(X, Y, epochs=1, batch_size=16, precision="float16")
    assert scale_of(parted) == 2.0**8


def test_a_fit_in_float32_after_a_skipped_step_is_not_held_back():
    X, Y = np.random.default_rng(0).standard_normal((8, 20)), np.arange(8) % 5
    network, other = (dnn.Network([20, 24, 16, 5], output="softmax", backend="standin") for _ in range(2))
    settings = {"epochs": 1, "batch_size": 8, "optimizer": dnn.Momentum(0.1)}
    for each in (network, other):
        each.fit(X, Y, precision="float16", **settings)
    network.training_state.arrays["loss_scale"][...] = 2.0**24
    before = network.parameters.flat.get()
    network.fit(X * 1e3, Y, precision="float16", **settings)
    np.testing.assert_array_equal(network.parameters.flat.get(), before)  # the step was skipped
    for each in (network, other):
        each.fit(X, Y, **settings)
    np.testing.assert_array_equal(network.parameters.flat.get(), other.parameters.flat.get())
    assert (network.parameters.flat.get() != before).any()


def test_padding_of_the_flat_buffers_stays_zero():
    case = problem("float16", optimizer=dnn.Adam(0.01))
    case.run(3)
    ones = np.zeros_like(case.theta)
    for view in case.by_name(ones).values():
        view.fill(1)
    outside = ones == 0
    assert outside.any()
    working = case.theta, *(case.state_of(name) for name in ("weights", "m", "v"))
    assert not any(array[outside].any() for array in working)


# ------------------------------------------------------------------------------------- on the device


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("precision", ["tf32", *LOW])
def test_a_step_is_launches_and_products_only(precision, optimizer, in_form):
    in_form("launches")
    counts, plain = (nodes_of(problem(p, optimizer=optimizer).step) for p in (precision, None))
    assert set(counts) == {"launches", "products"} and counts["products"] == plain["products"]
    # casts are part of what comes before or after them; whether all gradients are finite takes one to know
    assert counts["launches"] - plain["launches"] == {"tf32": 0, "bfloat16": 0, "float16": 1}[precision]


def test_a_scale_read_in_the_step_would_be_seen(in_form):
    in_form("launches")
    case = problem("float16")
    case.step._run._step._calls.append(lambda: float(case.state.arrays["loss_scale"][0]))
    with pytest.raises(RuntimeError, match="d2h while a step is captured"):
        nodes_of(case.step)


def test_tf32_reaches_every_product_and_no_sum(in_form):
    in_form("launches")
    exact, rounded = (problem(precision, goal=GRADIENTS) for precision in (None, "tf32"))
    for case in (exact, rounded):
        case.run()
    expected, own = exact.gradients(), rounded.gradients()
    for layer in (1, 2, 3):
        assert 0 < apart(own[f"W{layer}"], expected[f"W{layer}"]) < 2e-3
    # b3's gradient from the same plan, its dZ as the network gives it
    Z = logits_of(rounded)
    P = functional.softmax(np, Z.astype(np.float64))
    P[np.arange(len(P)), rounded.host(rounded.examples.targets)[:, 0]] -= 1
    np.testing.assert_allclose(own["b3"], (P / len(P)).sum(axis=0), rtol=0, atol=1e-7)
    assert own["b3"].dtype == np.float32


def logits_of(case: Problem) -> np.ndarray:
    """By a step of the same plan up to there, with a head that leaves the logits as they are."""
    network = case.network
    network.output = "linear"
    try:
        predict = Step(network, case.examples, 32, step.PREDICT, IN_PLACE, precision="tf32").compile()
    finally:
        network.output = "softmax"
    predict()
    return case.host(predict.array("P"))


# --------------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("settings", "precision", "complaint"),
    [
        (
            {},
            "float16",
            "precision must be one of float32 on the backend numpy, got 'float16': leave it out",
        ),
        ({}, "tf32", "got 'tf32'"),
        ({}, 16, "got 16"),
        ({"backend": "standin"}, "half", "must be one of float32, tf32, float16, bfloat16 on the backend standin, got"),
        (
            {"dtype": "float64", "backend": "standin"},
            "float16",
            "precision float16 needs a float32 network",
        ),
        (
            {"dtype": "float64"},
            "float32",
            "needs a float32 network, this one is float64: make it with",
        ),
    ],
)
def test_fit_refuses_what_cannot_be(settings, precision, complaint):
    network = dnn.Network([2, 3, 1], **settings)
    before = network.backend.to_numpy(network.parameters.flat).copy()
    with pytest.raises(ValueError, match=complaint) as error:
        network.fit(np.zeros((4, 2)), np.zeros(4), precision=precision)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(network.backend.to_numpy(network.parameters.flat), before)
    assert network.input_scale is None and network.epochs == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_networks_own_dtype_is_exact_and_everywhere(dtype):
    X, Y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    weights = []
    for precision in (None, dtype):
        network = dnn.Network([3, 4, 1], dtype=dtype)
        network.fit(X, Y, epochs=2, precision=precision)
        weights.append(network.parameters.flat)
    np.testing.assert_array_equal(*weights)


def test_the_command_line_trains_in_it_or_says_in_a_line_why_not(tmp_path, monkeypatch, capsys):
    import h5py

    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file["train_set_x"], file["train_set_y"] = np.zeros((10, 4), np.uint8), np.arange(10) % 2
    assert main(["train", "a.h5", "--precision", "bfloat16", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "got 'bfloat16'" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert main(["train", "a.h5", "--precision", "bf16"]) == 2
    error = capsys.readouterr().err
    assert "got 'bf16'" in error and error.count("\n") == 1
    for precision in ("float16", "float32"):
        arguments = ["train", "a.h5", "--precision", precision, "--backend", "standin", "--epochs", "1", "--quiet"]
        assert main([*arguments, "--out", precision, "--json"]) == 0
        assert f'"precision": "{precision}"' in capsys.readouterr().out


# ----------------------------------------------------------------------------- CuPy's, without a GPU


@pytest.mark.parametrize(
    ("capability", "names"), [("75", ["float16"]), ("80", ["tf32", "float16", "bfloat16"]), ("120", ["tf32"])]
)
def test_a_card_has_what_it_multiplies_in_hardware(capability, names):
    def empty(n: int, dtype: Any) -> None:
        assert dtype is bfloat16

    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability=capability))
    found = _precisions(SimpleNamespace(cuda=cuda, empty=empty))
    assert list(found)[: len(names)] == names
    assert found["float16"] == np.float16


def test_without_ml_dtypes_there_is_no_bfloat16(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability="90"))
    assert list(_precisions(SimpleNamespace(cuda=cuda, empty=None))) == ["tf32", "float16"]
