"""Steps in TF32, float16 and bfloat16: right to their rounding, scaled and skipped as they should be, on the device."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from standin import device

import dnn
from dnn import functional
from dnn.backends import Backend, get_backend
from dnn.backends.cupy_backend import CupyBackend, _precisions, _Products
from dnn.cli import main
from dnn.data import prepare
from dnn.memory import GB, training_bytes
from dnn.precision import Scaled, working_copies
from dnn.step import ACTIVATIONS, MixedStep, TrainStep

OUTPUTS = {"sigmoid": 3, "softmax": 5, "linear": 3}
OPTIMIZERS = [dnn.SGD(0.05), dnn.Momentum(0.05), dnn.Adam(0.01)]
LOW = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The 16-bit precisions, with half the distance between two numbers next to 1."""


def problem(
    precision: str | None,
    output: str = "softmax",
    optimizer: Any = OPTIMIZERS[0],
    backend: str = "standin",
    activation: str = "relu",
    m: int = 32,
    of_bytes: bool = False,
) -> tuple[dnn.Network, TrainStep]:
    """A bound step with its batch loaded."""
    K, generator = OUTPUTS[output], np.random.default_rng(3)
    network = dnn.Network([20, 24, 16, K], output=output, activation=activation, backend=backend)
    X = generator.integers(0, 256, (m, 20)).astype(np.uint8) if of_bytes else generator.standard_normal((m, 20))
    Y = generator.standard_normal((m, K)) if output == "linear" else generator.integers(0, 2, (m, K))
    examples = prepare(network, X, generator.integers(0, K, m) if output == "softmax" else Y, fitting=True)
    examples = examples.on(network.backend)
    update = optimizer.bind(network.parameters)
    network._mixed = working_copies(precision, network.parameters)
    if network._mixed is None:
        step = TrainStep(network, update, examples, m, precision=precision)
    else:
        step = MixedStep(network, update, examples, m, network._mixed)
    step.load(network.backend.asarray(np.arange(m)))
    return network, step


on_devices = pytest.mark.parametrize("backend", ["standin", "cupy"], indirect=True)


def needs(backend: Backend, precision: str | None) -> None:
    if precision not in (None, *backend.precisions):
        pytest.skip(f"{backend!r} has no {precision}")


def run(step: TrainStep, times: int = 1) -> None:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(times):
            step()


def gradients_of(step: TrainStep) -> dict[str, np.ndarray]:
    """As the update took them, after a step."""
    return {name: view.get() for name, view in step._update.gradients.items()}


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def everything(network: dnn.Network, step: TrainStep) -> dict[str, bytes]:
    """Every bit that a step may change, but the gradients and the loss scale."""
    update = step._update
    arrays = {"theta": network.parameters.flat, **update.state}
    if hasattr(update, "_powers"):
        arrays["powers"] = update._powers
    return {name: array.get().tobytes() for name, array in arrays.items()}


def loss_of(step: TrainStep) -> float:
    return float(step.output.loss.get()[0])


def scale_of(network: dnn.Network) -> float:
    return float(network._mixed.loss_scale.get()[0])


# ----------------------------------------------------------------------------------------------- right


@pytest.mark.parametrize("of_bytes", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("precision", LOW)
@on_devices
def test_gradients_are_those_of_float32_to_the_rounding(precision, output, activation, of_bytes, backend: Backend):
    needs(backend, precision)
    settings = {"backend": backend.name, "activation": activation, "of_bytes": of_bytes}
    exact, low = (problem(p, output, **settings)[1] for p in (None, precision))
    if precision == "float16":
        low._mixed.loss_scale[...] = 2.0**10  # with the first one some of these overflow
    for step in (exact, low):
        run(step)
    expected = gradients_of(exact)
    for name, gradient in gradients_of(low).items():
        assert gradient.dtype == np.float32
        assert apart(gradient, expected[name]) < 6 * LOW[precision], name
    assert loss_of(low) == pytest.approx(loss_of(exact), rel=4 * LOW[precision])
    assert low.output.loss.dtype == low.output.Z.dtype == np.float32
    working = low.X, low._layers[-1][3], low._backward[0][0]
    assert {array.dtype for array in working} == {backend.precisions[precision]}


def test_a_gradient_that_was_not_unscaled_would_be_seen():
    exact, low = (problem(p)[1] for p in (None, "float16"))
    low._mixed.update = lambda update: low._mixed._cast(low._xp, low._mixed.gradients.flat, out=update.gradients.flat)
    for step in (exact, low):
        run(step)
    assert apart(gradients_of(low)["W1"], gradients_of(exact)["W1"]) > 1e4


def nearly_right(precision: str | None) -> TrainStep:
    """A step whose targets are almost the outputs, so that its gradients are small."""
    _, step = problem(precision, "linear")
    if precision:
        step._mixed.take_weights()
    step.logits()
    step.output.Y[...] = step.output.Z - 1e-6
    return step


def test_what_is_too_small_for_float16_is_there_with_the_scale_and_lost_without():
    exact, scaled, unscaled = nearly_right(None), nearly_right("float16"), nearly_right("float16")
    unscaled._mixed.loss_scale[...] = 1
    for step in (exact, scaled, unscaled):
        run(step)
    largest = np.abs(gradients_of(exact)["W1"]).max()
    assert 0 < largest < 1e-6
    # what is left of z - y is itself a rounding of z: only the size of the gradient is sure
    assert 0.5 < np.abs(gradients_of(scaled)["W1"]).max() / largest < 2
    assert np.count_nonzero(gradients_of(unscaled)["W1"]) < 0.5 * np.count_nonzero(gradients_of(scaled)["W1"])


@pytest.mark.parametrize("precision", LOW)
def test_gradients_are_pytorchs_of_a_model_in_16_bits(precision):
    torch = pytest.importorskip("torch")
    network, step = problem(precision)
    dtype = getattr(torch, precision)
    layers = [(network.parameters[f"W{i}"].get(), network.parameters[f"b{i}"].get()) for i in (1, 2, 3)]
    low = [[torch.tensor(array).to(dtype).requires_grad_() for array in layer] for layer in layers]
    A = torch.tensor(step.X.get().astype(np.float32)).to(dtype)
    for i, (W, b) in enumerate(low):
        A = torch.nn.functional.linear(A, W, b)
        A = A if i == 2 else torch.relu(A)
    scale = 2.0**16 if precision == "float16" else 1.0
    loss = torch.nn.functional.cross_entropy(A.float(), torch.tensor(step.output._labels.get()[:, 0]))
    (loss * scale).backward()
    run(step)
    assert loss_of(step) == pytest.approx(loss.item(), rel=2 * LOW[precision])
    for i, (W, b) in enumerate(low, start=1):
        for name, tensor in ((f"W{i}", W), (f"b{i}", b)):
            assert apart(gradients_of(step)[name], tensor.grad.float().numpy() / scale) < 3 * LOW[precision], name


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("precision", [*LOW, "tf32"])
def test_a_training_on_fused_kernels_is_the_plain_one(precision, optimizer, fused_standin):
    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (20, 20)).astype(np.uint8)
    Y = (X[:, :3] > 127).sum(axis=1)
    trained = {}
    for backend, its in (("standin", precision), (fused_standin, precision), ("standin", None)):
        network = dnn.Network([20, 24, 16, 4], output="softmax", seed=3, activation="tanh", backend=backend)
        # batches of 16 and a last one of 4
        history = network.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer, validation_data=(X, Y), precision=its)
        trained[backend, its] = network.parameters.flat.get(), np.array(history.history["val_loss"])
    exact, exact_losses = trained["standin", None]
    weights, losses = trained["standin", precision]
    own_weights, own_losses = trained[fused_standin, precision]
    rounding = LOW.get(precision, 2.0**-11)
    np.testing.assert_allclose(own_losses, losses, rtol=6 * rounding)
    np.testing.assert_allclose(own_losses, exact_losses, rtol=6 * rounding)
    assert apart(own_weights, weights) < 6 * rounding and apart(own_weights, exact) < 6 * rounding
    # and not float32's, whose sums in another order differ by less
    assert apart(own_weights, exact) > 5e-6


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
        examples, optimizer = prepare(network, X, Y, fitting=True), dnn.Adam()
        limit = (1 + training_bytes(network, examples, 200, 16, optimizer, True, precision)) / GB if fed else None
        network.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer, memory_limit=limit, precision=precision)
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


# ----------------------------------------------------------------------------------- the loss scale


@pytest.mark.parametrize("device_of", ["backend", "fused_standin"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("good_steps", [0, 3])
@on_devices
def test_an_overflow_leaves_every_bit_and_halves_the_scale(good_steps, optimizer, device_of, backend, request):
    needs(backend, "float16")
    name = backend.name if device_of == "backend" else request.getfixturevalue(device_of)
    # a batch of two: dZ is large, and overflows under the largest scale
    network, step = problem("float16", optimizer=optimizer, backend=name, m=2)
    run(step, good_steps)
    before = everything(network, step)
    network._mixed.loss_scale[...] = 2.0**24
    for halved in (2.0**23, 2.0**22):
        run(step)
        assert everything(network, step) == before
        assert scale_of(network) == halved
    assert not np.isfinite(network._mixed.gradients.flat.get()).all()
    assert not step._update.gradients.flat.get().any()
    # and the steps after it are those that would have been without it
    network._mixed.loss_scale[...] = Scaled.START
    run(step, 2)
    other, untroubled = problem("float16", optimizer=optimizer, backend=name, m=2)
    run(untroubled, good_steps + 2)
    assert everything(network, step) == everything(other, untroubled) != before


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["W1", "b3"])
def test_one_gradient_that_is_not_finite_is_an_overflow(name, wrong):
    network, step = problem("float16")
    backward = step.gradients

    def gradients() -> None:
        backward()
        network._mixed.gradients[name].host.flat[-1] = wrong

    step.gradients = gradients
    before = everything(network, step)
    run(step)
    assert everything(network, step) == before and scale_of(network) == Scaled.START / 2


def test_the_scale_grows_after_so_many_good_steps_in_a_row(monkeypatch):
    monkeypatch.setattr(Scaled, "INTERVAL", 3)
    network, step = problem("float16", m=32)
    seen = []
    for _ in range(7):
        run(step)
        seen.append(scale_of(network) / Scaled.START)
    assert seen == [1, 1, 2, 2, 2, 4, 4]
    # one good step is counted: an overflow begins anew
    infinite, X = step.X.copy(), step.X.copy()
    infinite.host[0, 0] = np.inf
    step.X[...] = infinite
    run(step)
    step.X[...] = X
    for _ in range(3):
        run(step)
        seen.append(scale_of(network) / Scaled.START)
    assert seen[7:] == [2, 2, 4]


def test_the_scale_stays_within_bounds_where_nothing_is_finite(monkeypatch):
    monkeypatch.setattr(Scaled, "INTERVAL", 1)
    network, step = problem("float16", "linear")
    step.output.Y.fill(np.inf)
    run(step, 20)
    assert scale_of(network) == 1
    step.output.Y.fill(0)
    for view in network.parameters.values():
        view.fill(0)  # gradients of zero
    run(step, 40)
    assert scale_of(network) == 2.0**24


@pytest.mark.parametrize("optimizer", [dnn.SGD(0.1), dnn.Momentum(0.1)], ids=str)
def test_scale_and_weights_are_those_of_pytorchs_grad_scaler(optimizer, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(Scaled, "INTERVAL", 3)
    network, _ = problem("float16")
    scaled, update = network._mixed, optimizer.bind(network.parameters)
    theta = torch.nn.Parameter(torch.tensor(network.parameters.flat.get()))
    peer = torch.optim.SGD([theta], optimizer.learning_rate, momentum=getattr(optimizer, "momentum", 0))
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    scaler.scale(torch.zeros(1))  # sets it up
    generator = np.random.default_rng(0)
    for wrong in [0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]:
        gradient = (generator.standard_normal(theta.shape[0]) * 100).astype(np.float16)
        gradient[7] = np.inf if wrong else 0
        scaled.gradients.flat.host[...] = gradient
        theta.grad = torch.tensor(gradient.astype(np.float32))
        with np.errstate(invalid="ignore"):
            scaled.update(update)
        scaler.step(peer)
        scaler.update()
        assert scale_of(network) == scaler.get_scale()
    np.testing.assert_allclose(network.parameters.flat.get(), theta.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_a_second_fit_goes_on_with_the_scale_and_three_and_three_are_six(monkeypatch):
    monkeypatch.setattr(Scaled, "INTERVAL", 5)
    monkeypatch.setattr(Scaled, "START", 2.0**8)
    X, Y = np.random.default_rng(0).standard_normal((64, 4)), np.arange(64) % 3
    together, apart = (dnn.Network([4, 8, 3], output="softmax", backend="standin") for _ in range(2))
    together.fit(X, Y, epochs=6, batch_size=16, precision="float16")
    for _ in range(2):
        apart.fit(X, Y, epochs=3, batch_size=16, precision="float16")
    np.testing.assert_array_equal(apart.parameters.flat.get(), together.parameters.flat.get())
    assert scale_of(apart) == scale_of(together) == Scaled.START * 2**4
    assert together._mixed.good.get()[0] == apart._mixed.good.get()[0] == 24 % 5
    apart.fit(X, Y, epochs=1, precision="bfloat16")
    apart.fit(X, Y, epochs=1, batch_size=16, precision="float16")
    assert scale_of(apart) == Scaled.START


def test_a_fit_in_float32_after_a_skipped_step_is_not_held_back():
    X, Y = np.random.default_rng(0).standard_normal((8, 20)), np.arange(8) % 5
    network, _ = problem("float16")
    network.fit(X, Y, epochs=1, batch_size=8, precision="float16", optimizer=dnn.Momentum(0.1))
    network._mixed.loss_scale[...] = 2.0**24
    before = network.parameters.flat.get()
    network.fit(X * 1e3, Y, epochs=1, batch_size=8, precision="float16", optimizer=dnn.Momentum(0.1))
    np.testing.assert_array_equal(network.parameters.flat.get(), before)  # the step was skipped
    other = dnn.Network(network.layer_sizes, output="softmax", backend="standin")
    other.parameters.flat[...] = network.parameters.flat
    other._update = dnn.Momentum(0.1).bind(other.parameters)
    other._update.state["velocity"][...] = network._update.state["velocity"]
    for each in (network, other):
        each.fit(X, Y, epochs=1, batch_size=8, optimizer=dnn.Momentum(0.1))
    np.testing.assert_array_equal(network.parameters.flat.get(), other.parameters.flat.get())


def test_padding_of_the_flat_buffers_stays_zero():
    network, step = problem("float16", optimizer=dnn.Adam(0.01))
    run(step, 3)
    ones = network.parameters.like()
    for view in ones.values():
        view.fill(1)
    outside = ones.flat.get() == 0
    assert outside.any()
    for parameters in (network.parameters, network._mixed.parameters, network._mixed.gradients):
        assert not parameters.flat.get()[outside].any()


# ------------------------------------------------------------------------------------- on the device


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("precision", ["tf32", *LOW])
def test_a_step_is_launches_and_products_only(precision, optimizer):
    _, step = problem(precision, optimizer=optimizer)
    run(step)
    with device.capture() as counts:
        run(step)
    assert set(counts) == {"launches", "products"}


@pytest.mark.parametrize(("optimizer", "updates"), [(dnn.SGD(0.1), 1), (dnn.Adam(0.01), 2)], ids=str)
@pytest.mark.parametrize("precision", ["tf32", *LOW])
def test_a_fused_step_in_16_bits_is_four_casts_more_and_the_scaling_three(precision, optimizer, updates, fused_standin):
    _, step = problem(precision, optimizer=optimizer, backend=fused_standin)
    run(step)
    with device.capture() as counts:
        run(step)
    casts = {"tf32": 0, "bfloat16": 4, "float16": 4}[precision]  # weights, logits, dZ, gradients
    # the search for an overflow, the new scale, and the factors of the update, for Adam in both dtypes
    scaling = 2 + updates if precision == "float16" else 0
    assert counts["launches"] == 3 + 1 + 1 + 2 + updates + casts + scaling
    assert counts["products"] == 3 + 3 + 3 + 2


def test_a_scale_read_in_the_step_would_be_seen():
    network, step = problem("float16")
    update = network._mixed.update

    def peeking(of: Any) -> None:
        if float(network._mixed.loss_scale) > 0:
            update(of)

    network._mixed.update = peeking
    with pytest.raises(RuntimeError, match="d2h while a step is captured"), device.capture():
        run(step)


def test_tf32_reaches_every_product_but_that_of_the_biases(fused_standin):
    exact, rounded = (problem(precision, backend=fused_standin)[1] for precision in (None, "tf32"))
    run(exact)
    with np.errstate(over="ignore"):
        rounded.evaluate()
        rounded.gradients()
    expected, own = gradients_of(exact), gradients_of(rounded)
    for layer in (1, 2, 3):
        assert 0 < apart(own[f"W{layer}"], expected[f"W{layer}"]) < 2e-3
    dZ = rounded._backward[0][0].get()
    np.testing.assert_allclose(own["b3"], dZ.sum(axis=0), rtol=0, atol=1e-7)
    assert own["b3"].dtype == np.float32


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
    with pytest.raises(SystemExit, match="2"):
        main(["train", "a.h5", "--precision", "bf16"])
    assert capsys.readouterr().err.count("\n") == 1
    for precision in ("float16", "float32"):
        arguments = ["train", "a.h5", "--precision", precision, "--backend", "standin", "--epochs", "1", "--quiet"]
        assert main([*arguments, "--out", precision, "--json"]) == 0
        assert f'"precision": "{precision}"' in capsys.readouterr().out


# ----------------------------------------------------------------------------- CuPy's, without a GPU


class Held:
    """A NumPy array with what cuBLAS's callers ask of CuPy's."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.shape, self.ndim, self.dtype, self.flags = host, host.shape, host.ndim, host.dtype, host.flags
        self.data = SimpleNamespace(ptr=host)

    T = property(lambda self: Held(self.host.T))


@pytest.fixture
def cublas(monkeypatch) -> Any:
    """A cublas that notes its calls."""
    fake = ModuleType("nvmath.bindings.cublas")
    fake.calls = []
    for name in ("sgemm", "dgemm", "gemm_ex", "set_stream", "set_workspace", "set_math_mode"):
        setattr(fake, name, lambda *given, name=name: fake.calls.append((name, given)))
    fake.create = lambda: 7
    fake.Math = SimpleNamespace(DISALLOW_REDUCED_PRECISION_REDUCTION=16)
    fake.ComputeType = SimpleNamespace(COMPUTE_32F=68, COMPUTE_32F_FAST_TF32=77)
    fake.GemmAlgo = SimpleNamespace(DEFAULT=-1)
    bindings = ModuleType("nvmath.bindings")
    bindings.cublas = fake
    monkeypatch.setitem(sys.modules, "nvmath", ModuleType("nvmath"))
    monkeypatch.setitem(sys.modules, "nvmath.bindings", bindings)
    return fake


@pytest.fixture
def products(cublas) -> Any:
    stream = SimpleNamespace(ptr=5)
    workspace = SimpleNamespace(data=SimpleNamespace(ptr=6))
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    return _Products(SimpleNamespace(cuda=cuda, empty=lambda n, dtype: workspace))


@pytest.mark.parametrize(
    ("dtype", "method", "name", "types"),
    [
        (np.float32, "__call__", "sgemm", None),
        (np.float64, "__call__", "dgemm", None),
        (np.float16, "__call__", "gemm_ex", (2, 68)),
        (bfloat16, "__call__", "gemm_ex", (14, 68)),
        (np.float32, "tf32", "gemm_ex", (0, 77)),
        (np.float64, "tf32", "dgemm", None),
    ],
)
def test_each_dtype_has_its_product(dtype, method, name, types, products, cublas):
    a, b, out = (Held(np.ones(shape, dtype)) for shape in ((4, 3), (3, 5), (4, 5)))
    getattr(products, method)(a, b, out)
    called, given = cublas.calls[-1]
    assert called == name
    # of the rows' transposes: see gemm_arguments
    assert given[:6] == (7, 0, 0, 5, 4, 3)
    if types is None:
        _, first, first_ld, second, second_ld, _, c, c_ld = given[6:]
    else:
        _, first, first_type, first_ld, second, second_type, second_ld, _, c, c_type, c_ld, compute, algo = given[6:]
        assert (first_type, second_type, c_type) == 3 * (types[0],) and (compute, algo) == (types[1], -1)
    assert first is b.host and second is a.host and c is out.host and (first_ld, second_ld, c_ld) == (5, 3, 5)


def test_in_tf32_the_product_with_ones_is_exact(products, cublas):
    products.tf32(Held(np.ones(4, np.float32)), Held(np.ones((4, 5), np.float32)), Held(np.ones(5, np.float32)))
    assert cublas.calls[-1][0] == "sgemm"


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


def test_only_who_asks_for_tf32_gets_its_products():
    backend = CupyBackend.__new__(CupyBackend)
    backend.kernels, backend._tf32 = {"linear_forward": "exact"}, {"linear_forward": "tf32"}
    linear, other = functional.linear_forward, functional.relu
    assert [backend.fused(linear, p) for p in (None, "tf32", "float16")] == ["exact", "tf32", "exact"]
    assert backend.fused(other, "tf32") is other
