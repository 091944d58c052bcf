"""The training step: right, and without an allocation or a read from the device."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import product

import numpy as np
import pytest
from standin import device

import dnn
from dnn.backends import Backend, get_backend
from dnn.data import prepare
from dnn.optimizers import Update
from dnn.step import ACTIVATIONS, TrainStep

OUTPUTS = {"sigmoid": 1, "softmax": 10, "linear": 1}
OPTIMIZERS = [dnn.SGD(0.01), dnn.Momentum(0.01), dnn.Adam(0.001)]


def problem(sizes, output: str, backend: str, m: int, dtype="float32", optimizer=OPTIMIZERS[0], activation="relu"):
    """A bound step with its first batch loaded, and the examples."""
    network = dnn.Network(sizes, output=output, activation=activation, dtype=dtype, backend=backend)
    generator = np.random.default_rng(3)
    X = generator.standard_normal((m, sizes[0])).astype(dtype)
    classes = 2 if output == "sigmoid" else sizes[-1]
    Y = generator.standard_normal(m) if output == "linear" else generator.integers(0, classes, m)
    for layer in range(1, len(sizes)):
        # with biases of zero a unit whose inputs are all dead sits on relu's kink
        network.parameters[f"b{layer}"] = generator.standard_normal(sizes[layer])
    examples = prepare(network, X, Y, fitting=True).on(network.backend)
    step = TrainStep(network, optimizer.bind(network.parameters), examples, m)
    rows = network.backend.asarray(np.arange(m))
    step.load(rows)
    return network, step, rows


def careless_sgd(network, step):
    """The planted fault: an update that allocates."""
    gradients = step._update.gradients

    def update() -> None:
        for name in network.parameters:
            W = network.parameters[name]
            W -= 0.01 * gradients[name]

    step._update = update


# ---------------------------------------------------------------------------------------- right


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("output", "units"), [("sigmoid", 1), ("softmax", 3), ("linear", 1)])
@pytest.mark.parametrize("hidden", [[], [4], [5, 4]])
def test_gradients_are_those_of_finite_differences(activation, output, units, hidden, backend: Backend):
    network, step, _ = problem([3, *hidden, units], output, backend.name, 6, "float64", activation=activation)
    step.evaluate()
    step.gradients()
    h = 1e-6
    for name, view in network.parameters.items():
        W, slope = backend.to_numpy(view).copy(), np.empty(view.shape)
        for place in np.ndindex(view.shape):
            losses = []
            for sign in (1, -1):
                moved = W.copy()
                moved[place] += sign * h
                network.parameters[name] = moved
                step.evaluate()
                losses.append(float(backend.to_numpy(step.output.loss)[0]))
            slope[place] = (losses[0] - losses[1]) / (2 * h)
        network.parameters[name] = W
        np.testing.assert_allclose(backend.to_numpy(step._update.gradients[name]), slope, atol=1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("output", OUTPUTS)
def test_ten_steps_on_the_stand_in_are_those_on_numpy(output, optimizer):
    sizes, weights = [5, 7, 6, OUTPUTS[output]], {}
    for name in ("numpy", "standin"):
        network, step, _ = problem(sizes, output, name, 8, "float64", optimizer)
        for _ in range(10):
            step()
        weights[name] = network.backend.to_numpy(network.parameters.flat).copy()
    np.testing.assert_allclose(weights["standin"], weights["numpy"], rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------- nothing allocated


def held_over(run, warm_up: int = 2, times: int = 3) -> int:
    """tracemalloc's peak over some runs, less what is held at the end."""
    for _ in range(warm_up):
        run()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(times):
            run()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - held


LIMITS = [([784, 1024, 1024, 10], 512, 64 * 1024), ([20, 64, 32, 2], 32, 4 * 1024)]


@pytest.mark.parametrize(("sizes", "m", "limit"), LIMITS, ids=["large", "small"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_a_step_allocates_nothing(sizes, m, limit, output, optimizer):
    sizes = [*sizes[:-1], OUTPUTS[output] if output != "softmax" else sizes[-1]]
    _, step, rows = problem(sizes, output, "numpy", m, optimizer=optimizer)

    def run() -> None:
        step.load(rows)
        step()

    with np.errstate(over="ignore"):
        assert held_over(run) < limit


@pytest.mark.parametrize(("sizes", "m", "limit"), LIMITS, ids=["large", "small"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_other_activations_allocate_nothing(sizes, m, limit, activation):
    _, step, _ = problem(sizes, "softmax", "numpy", m, activation=activation)
    with np.errstate(over="ignore"):
        assert held_over(step) < limit


@pytest.mark.parametrize(("sizes", "m", "limit"), LIMITS, ids=["large", "small"])
def test_an_allocating_update_would_be_seen_by_tracemalloc(sizes, m, limit):
    network, step, _ = problem(sizes, "softmax", "numpy", m)
    careless_sgd(network, step)
    assert held_over(step) > limit


def counted(step):
    """What a step asks of the stand-in; an allocation, copy or wait while it runs is an error."""
    step()
    with device.capture() as counts:
        step()
    return counts


@pytest.mark.parametrize(("output", "optimizer"), list(product(OUTPUTS, OPTIMIZERS)), ids=str)
def test_a_step_on_the_device_is_launches_and_products_only(output, optimizer):
    counts = counted(problem([20, 64, 32, OUTPUTS[output]], output, "standin", 32, optimizer=optimizer)[1])
    # a product a layer forward, dW, db, and dA but for the first layer's; four of the tally, two of softmax's sums
    assert counts["products"] == 3 + 3 + 3 + 2 + 4 + (2 if output == "softmax" else 0)
    assert set(counts) == {"launches", "products"} and counts["launches"] < 50


def test_taking_a_batch_on_the_device_reads_and_allocates_nothing():
    _, step, rows = problem([20, 64, 32, 3], "softmax", "standin", 32)
    with device.capture() as counts:
        step.load(rows)
    # the examples, their labels, and the labels one-hot in three
    assert dict(counts) == {"launches": 5}


def test_an_allocating_update_would_be_seen_by_the_stand_in():
    network, step, _ = problem([20, 64, 32, 2], "softmax", "standin", 32)
    careless_sgd(network, step)
    with pytest.raises(RuntimeError, match="allocations while a step is captured"):
        counted(step)


def test_a_loss_read_in_the_step_would_be_seen_by_the_stand_in():
    _, step, _ = problem([20, 64, 32, 2], "softmax", "standin", 32)
    update = step._update

    def peeking() -> None:
        update()
        float(step.output.loss[0])

    step._update = peeking
    with pytest.raises(RuntimeError, match="d2h while a step is captured"):
        counted(step)


def test_a_bound_step_sees_a_changed_learning_rate(backend: Backend):
    network, step, _ = problem([4, 3, 2], "softmax", backend.name, 5, "float64")
    update = step._update
    assert isinstance(update, Update)
    update.learning_rate = 0.0
    before = backend.to_numpy(network.parameters.flat).copy()
    step()
    np.testing.assert_array_equal(backend.to_numpy(network.parameters.flat), before)
    update.learning_rate = 0.1
    step()
    assert (backend.to_numpy(network.parameters.flat) != before).any()


def test_arrays_begin_on_cache_lines():
    backend = get_backend("numpy")
    for dtype, shape in product(("float32", "float64", "bool"), (1, (3, 5), (7, 11, 2))):
        for array in (backend.empty(shape, dtype), backend.zeros(shape, dtype)):
            assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
            assert array.dtype == dtype and array.shape == np.empty(shape).shape
    network = dnn.Network([3, 5, 2], output="softmax")
    assert all(view.ctypes.data % 64 == 0 for view in network.parameters.values())
