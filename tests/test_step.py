"""The training step: right, and without an allocation or a read from the device."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
from builders import OPTIMIZERS, OUTPUTS, Problem, nodes_of, problem
from conftest import BACKENDS, FORMS
from oracles import bytes_allocated, slopes
from standin import StrictGraph, device
from sweeps import covering

import dnn
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, get_backend, use_compiled_steps
from dnn.backends.plan.stepwise import Stepwise
from dnn.batches import Batches
from dnn.step import EVALUATE, GRADIENTS, IN_PLACE, TRAIN, Order, Step

# ---------------------------------------------------------------------------------------- right

UNITS = {"sigmoid": 1, "softmax": 3, "linear": 1}
NETWORKS = [
    *(([3, UNITS[output]], output, "relu") for output in UNITS),
    *(([3, 4, 3], "softmax", activation) for activation in ACTIVATIONS),
    *(([3, 5, 4, UNITS[o]], o, activation) for o, activation in zip(cycle(UNITS), ACTIVATIONS)),
    ([3, 5, 4, 3], "softmax", ["gelu", "tanh"]),
    ([3, 4, 2], "sigmoid", "relu"),
    ([3, 4, 2], "linear", "relu"),
]


@covering("network, backend", NETWORKS, BACKENDS, indirect=["backend"], ids=str)
def test_gradients_are_those_of_finite_differences(network, backend: Backend):
    gradients_are_slopes(*network, backend)


@pytest.mark.slow
@pytest.mark.parametrize("output", UNITS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_every_output_and_activation_are_those_of_finite_differences(output, activation, backend: Backend):
    gradients_are_slopes([3, 5, 4, UNITS[output]], output, activation, backend)


def gradients_are_slopes(sizes, output, activation, backend: Backend) -> None:
    case = problem(sizes, output, backend.name, 6, dtype="float64", activation=activation, goal=GRADIENTS)
    case.run()
    gradients, parameters = case.gradients(), case.network.parameters
    for name, view in parameters.items():
        W = case.host(view)

        def loss(moved: np.ndarray, name: str = name) -> float:
            parameters[name] = moved
            case.run()
            return case.loss

        np.testing.assert_allclose(gradients[name], slopes(W, loss), atol=1e-8)
        parameters[name] = W


@covering("output, optimizer", OUTPUTS, OPTIMIZERS, times=2, ids=str)
def test_ten_steps_on_the_stand_in_are_those_on_numpy(output, optimizer):
    weights = {}
    for name in ("numpy", "standin"):
        case = problem([5, 7, 6, OUTPUTS[output]], output, name, 8, dtype="float64", optimizer=optimizer)
        case.run(10)
        weights[name] = case.theta
    np.testing.assert_allclose(weights["standin"], weights["numpy"], rtol=0, atol=1e-13)


def test_a_compiled_step_sees_a_changed_learning_rate(backend: Backend):
    case = problem([4, 3, 2], "softmax", backend.name, 5, dtype="float64", optimizer=dnn.Adam(0.1))
    case.run(4)  # on a GPU it is captured now
    case.state.learning_rate = 0.0
    before = case.theta
    case.run()
    np.testing.assert_array_equal(case.theta, before)
    case.state.learning_rate = 0.1
    case.run()
    assert (case.theta != before).any()


def test_loss_and_totals_are_of_the_weights_before_the_update(backend: Backend):
    case = problem([4, 3, 2], "softmax", backend.name, 5, dtype="float64", optimizer=dnn.SGD(0.5))
    losses = []
    for _ in range(5):
        losses.append(case.network.evaluate(case.examples.X, case.host(case.examples.targets))["loss"])
        case.run()
        assert case.loss == pytest.approx(losses[-1], rel=1e-14)
    assert case.host(case.step.totals)[0] == pytest.approx(sum(losses), rel=1e-14)
    case.step.reset()
    assert not case.host(case.step.totals).any()


# ------------------------------------------------------------------------------- nothing allocated

LARGE, SMALL = ([784, 512, 512, 10], 512, 64 * 1024), ([20, 64, 32, 2], 32, 4 * 1024)


def careless(self: Stepwise, node: Any) -> None:
    """The planted fault: an operation that allocates its result."""
    function, arrays = getattr(self._xp, node.op), [self._arrays[value] for value in node.inputs]
    out = self._new(node)
    self._call(lambda: self._xp.copyto(out, function(*arrays)))


@covering("output, optimizer, compiled", OUTPUTS, OPTIMIZERS, [True, False], times=2, ids=str)
def test_a_step_allocates_nothing(output, optimizer, compiled):
    allocates_nothing(SMALL, output, optimizer, compiled)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_large_step_allocates_nothing(compiled):
    allocates_nothing(LARGE, "softmax", OPTIMIZERS[2], compiled)


def allocates_nothing(size, output, optimizer, compiled):
    sizes, m, limit = size
    sizes = [*sizes[:-1], sizes[-1] if output == "softmax" else OUTPUTS[output]]
    with use_compiled_steps(compiled):
        case = problem(sizes, output, "numpy", m, optimizer=optimizer, biases=False)
        with case.backend.stream(), np.errstate(over="ignore"):
            assert bytes_allocated(case.run) < limit


@covering("activation, compiled", [name for name in ACTIVATIONS if name != "relu"], [True, False])
def test_other_activations_allocate_nothing(activation, compiled):
    sizes, m, limit = SMALL
    with use_compiled_steps(compiled):
        case = problem(sizes, "softmax", "numpy", m, activation=activation)
        with case.backend.stream(), np.errstate(over="ignore"):
            assert bytes_allocated(case.run) < limit


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["large", "small"])
def test_an_allocating_operation_would_be_seen_by_tracemalloc(size, monkeypatch):
    sizes, m, limit = size
    monkeypatch.setattr(Stepwise, "_elementwise", careless)
    with use_compiled_steps(False):
        case = problem(sizes, "softmax", "numpy", m)
    assert bytes_allocated(case.run) > limit


@covering("form, output, optimizer", FORMS, OUTPUTS, OPTIMIZERS, times=2, ids=str)
def test_a_step_on_the_device_is_launches_and_products_only(output, optimizer, form, in_form):
    in_form(form)
    counts = nodes_of(problem([20, 64, 32, OUTPUTS[output]], output, "standin", 32, optimizer=optimizer).step)
    if form in ("block", "grid"):
        assert counts == {"launches": 1}
    elif form == "launches":
        # a product a layer forward, dW, and dA but for the first layer's; the batch, two activations, the loss, two
        # activations backward, the last sums, the update
        assert counts["products"] == 3 + 3 + 2 and counts["launches"] == 8
    else:
        # and db, the sums of loss and metric; of softmax's, that at the label, of the others, and of all
        assert counts["products"] == 3 + 3 + 2 + 3 + 2 + (3 if output == "softmax" else 0)
        assert set(counts) == {"launches", "products"} and counts["launches"] < 70


def test_an_allocating_operation_would_be_seen_by_the_stand_in(monkeypatch, in_form):
    in_form("operation by operation")
    monkeypatch.setattr(Stepwise, "_elementwise", careless)
    case = problem([20, 64, 32, 2], "softmax", "standin", 32)
    with pytest.raises(RuntimeError, match="while a step is captured"):
        nodes_of(case.step)


@pytest.mark.parametrize("form", FORMS[2:])
def test_a_loss_read_in_the_step_would_be_seen_by_the_stand_in(form, in_form):
    in_form(form)
    case = problem([20, 64, 32, 2], "softmax", "standin", 32)
    case.step._run._step._calls.append(lambda: float(case.step.loss[0]))
    with pytest.raises(RuntimeError, match="d2h while a step is captured"):
        nodes_of(case.step)


def test_temporary_arrays_of_the_common_pool_would_be_seen_by_the_stand_in(monkeypatch, in_form):
    in_form("operation by operation")
    monkeypatch.setattr(StrictGraph, "_run", lambda graph: graph._step())
    case = problem([20, 64, 32, 2], "softmax", "standin", 32)
    with pytest.raises(RuntimeError, match="memory was asked for while a step is captured"):
        nodes_of(case.step)


def test_an_operand_that_overlaps_its_result_would_be_seen_by_the_stand_in(monkeypatch, in_form):
    in_form("operation by operation")
    monkeypatch.setattr(Stepwise, "_of_view", lambda stepwise, view: None if stepwise._dry else stepwise._part(view))
    case = problem([20, 64, 32, 2], "softmax", "standin", 32)
    with pytest.raises(RuntimeError, match="hidden_copies while a step is captured"):
        nodes_of(case.step)


def batches_of(case: Problem, batch_size: int) -> Batches:
    """A training on the problem's examples."""
    m = case.examples.m

    def bind(examples: Any, size: int, loading: str, order: Order | None, goal: str) -> Step:
        return Step(case.network, examples, size, goal, loading, case.state.optimizer, case.state.arrays, order=order)

    return Batches(case.backend, case.examples, np.arange(m), batch_size, bind, case.network.dtype, goal=TRAIN)


def test_an_epoch_on_the_device_is_a_replay_a_batch_and_no_copy(in_form):
    in_form("launches")
    batches = batches_of(problem([20, 64, 32, 3], "softmax", "standin", 32), 10)
    for _ in range(3):  # the smaller last batch's step is captured in the third
        list(batches)
    for each in (batches, batches.run()):
        before = device.counts.copy()
        list(each)
        # the position is set to 0
        assert device.counts - before == {"launches": 1, "graphs": 4}


def test_steps_of_both_sizes_take_what_is_next_and_move_on(backend: Backend):
    case = problem([4, 3, 2], "softmax", backend.name, 8, dtype="float64", goal=EVALUATE)
    order = Order(backend.asarray(np.array([5, 2, 7, 0, 1, 6, 3, 4])), backend.zeros(1, np.int64))
    with backend.stream():
        full, last = (Step(case.network, case.examples, m, EVALUATE, order=order).compile() for m in (3, 2))
        for start, step in ((0, full), (3, full), (6, last)):
            step()
            end = start + step.batch_size
            assert case.host(order.position) == end
            rows = case.host(order.rows)[start:end]
            X, Y = case.host(case.examples.X)[rows], case.host(case.examples.targets)[rows]
            assert case.host(step.loss)[0] == pytest.approx(case.network.evaluate(X, Y)["loss"], rel=1e-14)


@pytest.mark.parametrize("compiled", [True, False])
def test_several_steps_in_a_call_are_as_many_calls_to_the_bit(compiled, backend: Backend):
    with use_compiled_steps(compiled):
        cases = [problem([4, 6, 3], "softmax", backend.name, 21, optimizer=dnn.Adam(0.01)) for _ in range(2)]
        for case, calls in zip(cases, ([1] * 7, [1, 2, 4]), strict=True):
            with backend.stream():
                step = batches_of(case, 3).steps[0]
                for times in calls:
                    step(times)
    assert cases[0].everything() == cases[1].everything()


class Clock:
    """Tells each call how long it takes: `seconds` a step."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "first", "second"),
    [
        (0.0, [1, 2, 4, 8, 16, 32, 32, 5, 1], [32, 32, 32, 4, 1]),
        (0.0012, [1, 2, 4] + [8] * 11 + [5, 1], [8] * 12 + [4, 1]),
        (0.1, [1] * 101, [1] * 101),
    ],
)
def test_a_call_does_more_steps_while_that_is_short(seconds, first, second, monkeypatch):
    clock, call = Clock(seconds), Step.__call__

    def timed(step: Step, times: int = 1) -> None:
        call(step, times)
        clock.now += times * seconds

    monkeypatch.setattr(Step, "__call__", timed)
    monkeypatch.setattr("dnn.batches.perf_counter", clock)
    case = problem([4, 3, 2], "softmax", "numpy", 301)
    batches = batches_of(case, 3)
    assert len(batches) == 101
    assert list(batches.run()) == first
    assert list(batches.run()) == second


def test_a_single_batch_is_used_where_it_is(in_form):
    in_form("launches")
    case = problem([20, 64, 3], "softmax", "standin", 32, loading=IN_PLACE)
    gathered = problem([20, 64, 3], "softmax", "standin", 32)
    # all that comes before the first product
    assert nodes_of(gathered.step)["launches"] - nodes_of(case.step)["launches"] == 1
    np.testing.assert_array_equal(case.theta, gathered.theta)


def test_arrays_begin_on_cache_lines():
    backend = get_backend("numpy")
    for dtype, shape in product(("float32", "float64", "bool"), (1, (3, 5), (7, 11, 2))):
        for array in (backend.empty(shape, dtype), backend.zeros(shape, dtype)):
            assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
            assert array.dtype == dtype and array.shape == np.empty(shape).shape
    network = dnn.Network([3, 5, 2], output="softmax")
    assert all(view.ctypes.data % 64 == 0 for view in network.parameters.values())
