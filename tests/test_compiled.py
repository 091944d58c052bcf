"""NumPy's steps as compiled programs: the operations, their order, the threads, and what is left behind."""

from __future__ import annotations

import builtins
import logging
import threading
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

pytest.importorskip("numba", reason="the extra fast is not installed")

from test_kernels import CASES, arguments_of, assert_same, call, gathered_and_cast, specified
from test_step import held_over
from threadpoolctl import threadpool_info

import dnn
from dnn import functional
from dnn.backends import base, get_backend
from dnn.backends.compiled import kernels, program, threads
from dnn.backends.compiled.program import OPERATIONS, NotCapturable, Program
from dnn.backends.compiled.recording import recordable
from dnn.backends.compiled.threads import Pool
from dnn.data import prepare
from dnn.step import TrainStep

GENERATOR = np.random.default_rng(4)
# no step of NumPy's casts the rows it takes
EVERY = [(name, case) for name in OPERATIONS for case, of in enumerate(CASES[name]) if of is not gathered_and_cast]


@pytest.fixture
def every_thread(monkeypatch):
    """No work is too little to be shared."""
    monkeypatch.setattr(program, "WORTH", 1)


def test_every_operation_has_a_specification_and_a_case():
    assert all(callable(getattr(functional, name)) and CASES[name] for name in OPERATIONS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "case"), EVERY, ids=[f"{name}-{case}" for name, case in EVERY])
def test_an_operation_does_what_its_specification_does(name, case, dtype, every_thread):
    if name in ("linear_tanh", "linear_sigmoid") and dtype == np.float64:
        with pytest.raises(NotCapturable, match="an activation with exp in float64 is faster in NumPy"):
            Program(lambda: call(recordable(name, getattr(functional, name)), np, arguments_of(name, case, dtype)), 1)
        return
    results = arguments_of(name, case, dtype)
    function = recordable(name, getattr(functional, name))
    recorded = Program(lambda: call(function, np, results), 1, complete=False)
    pool = Pool(2)
    try:
        run, arguments, _held = pool.bound(recorded)
        run(*arguments)
    finally:
        pool.stop()
    assert_same(name, results, specified(name, case, dtype), dtype)


def test_exp_is_numpys_but_for_the_last_bits():
    x = np.concatenate([np.linspace(-90, 90, 200_001), [0, -0.0, 1e-30, 88.7, 88.73, -87.3, np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32)
    ours = np.array([kernels._exp32(each) for each in x], np.float32)
    with np.errstate(over="ignore"):
        expected = np.exp(x)
    expected[expected < np.finfo(np.float32).tiny] = 0
    ordinary = np.isfinite(expected) & (expected > 2e-38)
    np.testing.assert_allclose(ours[ordinary], expected[ordinary], rtol=2.5e-7)
    np.testing.assert_array_equal(ours[~np.isfinite(expected)], expected[~np.isfinite(expected)])
    assert (ours[x < -87.4] == 0).all()


# --------------------------------------------------------------------------------------- whole trainings

X = GENERATOR.standard_normal((70, 6))
OUTPUTS = {"sigmoid": 1, "softmax": 3, "linear": 2}
OPTIMIZERS = [dnn.SGD(0.1), dnn.Momentum(0.05), dnn.Adam(0.01)]


def targets(output: str) -> np.ndarray:
    if output == "linear":
        return np.stack([X.sum(axis=1), X[:, 0] * X[:, 1]], axis=1)
    return (np.abs(X[:, :3]).argmax(axis=1)) if output == "softmax" else (X[:, 0] > 0).astype(int)


def trained(output: str, optimizer, dtype: str = "float64", of_bytes: bool = False, **settings):
    network = dnn.Network([6, 17, 9, OUTPUTS[output]], output=output, dtype=dtype, seed=2)
    data = (X * 40 + 128).clip(0, 255).astype(np.uint8) if of_bytes else X
    settings = {"epochs": 3, "batch_size": 32, "validation_split": 0.1} | settings
    history = network.fit(data, targets(output), optimizer=optimizer, **settings)
    return network.parameters.flat.copy(), history.history


@pytest.mark.parametrize("few_rows", [0, 1000], ids=["by rows", "by units"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_compiled_training_is_the_uncompiled_one(output, optimizer, number, few_rows, every_thread, monkeypatch):
    monkeypatch.setattr(program, "FEW_ROWS", few_rows)
    weights, history = trained(output, optimizer, threads=number)
    monkeypatch.setattr(get_backend("numpy"), "_compiles", False)
    expected_weights, expected_history = trained(output, optimizer)
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=1e-12)
    for name, values in expected_history.items():
        np.testing.assert_allclose(history[name], values, rtol=0, atol=1e-12)


def test_tanh_is_numpys_but_for_the_last_bits():
    x = np.concatenate([np.linspace(-12, 12, 100_001), np.geomspace(1e-30, 1, 1000), [np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32)
    ours = np.array([kernels._tanh32(each) for each in x], np.float32)
    np.testing.assert_allclose(ours, np.tanh(x), rtol=4e-7)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_other_activations_in_float32(activation, every_thread, monkeypatch):
    weights = []
    for _ in range(2):
        network = dnn.Network([6, 17, 9, 3], activation=activation, output="softmax", seed=2)
        network.fit(X, targets("softmax"), epochs=3, batch_size=32, optimizer=dnn.SGD(0.1))
        weights.append(network.parameters.flat.copy())
        monkeypatch.setattr(get_backend("numpy"), "_compiles", False)
    np.testing.assert_allclose(weights[0], weights[1], atol=2e-6)


@pytest.mark.parametrize("of_bytes", [False, True], ids=["floats", "bytes"])
@pytest.mark.parametrize("batch_size", [32, 70], ids=["batches", "full batch"])
def test_in_float32_too(batch_size, of_bytes, every_thread, monkeypatch):
    settings = {"batch_size": batch_size, "of_bytes": of_bytes, "dtype": "float32"}
    weights, _ = trained("softmax", dnn.SGD(0.1), **settings)
    monkeypatch.setattr(get_backend("numpy"), "_compiles", False)
    np.testing.assert_allclose(weights, trained("softmax", dnn.SGD(0.1), **settings)[0], atol=2e-6)


@pytest.mark.parametrize("number", [1, 2, None])
def test_a_training_comes_out_the_same_to_the_bit_every_time(number, every_thread):
    first, second = (trained("softmax", dnn.Adam(0.01), "float32", threads=number)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_courses_model_runs_compiled_in_place_on_the_transposed_data():
    from dnn import course

    expected = [0.6931477726958, 0.6931475896183, 0.6931474084246]
    data = np.asfortranarray(X.T)  # one example a column; not copied
    _, costs = course.two_layer_model(data, (X[:, :1] > 0).T.astype(float), (6, 4, 1), 0.0075, 201)
    np.testing.assert_allclose(costs[:1], expected[:1], atol=1e-3)


def test_narrow_layers_of_several_widths_share_no_scratch():
    """In float64 two of these layers are computed through scratch, by threads that wait for nobody between them."""
    sizes, data = [1500, 24, 1100, 32, 1], np.random.default_rng(0).standard_normal((512, 1500))
    labels = (data[:, 0] > 0).astype(int)

    def weights() -> np.ndarray:
        network = dnn.Network(sizes, dtype="float64", seed=1)
        network.fit(data, labels, epochs=5, batch_size=256, optimizer=dnn.SGD(0.05), shuffle=False, threads=4)
        return network.parameters.flat.copy()

    expected = weights()
    for _ in range(12):
        np.testing.assert_array_equal(weights(), expected)


# ---------------------------------------------------------------------------------- order and barriers


def bound_step(sizes=(6, 40, 33, 3), m: int = 64) -> tuple[dnn.Network, TrainStep]:
    network = dnn.Network(list(sizes), output="softmax", seed=3)
    data = GENERATOR.standard_normal((m, sizes[0])).astype(np.float32)
    examples = prepare(network, data, GENERATOR.integers(0, sizes[-1], m), fitting=True)
    step = TrainStep(network, dnn.Adam(0.01).bind(network.parameters), examples, m)
    step.rows[...] = GENERATOR.permutation(m)
    return network, step


def segments(recorded: Program) -> list[slice]:
    """The parts of the table between barriers."""
    ends = np.flatnonzero(recorded.table[:, kernels.KIND] == kernels.BARRIER)
    return [slice(start, end) for start, end in zip([0, *(ends[:-1] + 1)], ends, strict=True)]


def run_in_order(recorded: Program, parts: list[slice], number: int, backwards: bool) -> None:
    """Every part by all threads, one after the other: what no order may change."""
    one, bounds = np.ones(1, recorded.dtype), recorded.bounds(number)
    for part in parts:
        table = np.ascontiguousarray(recorded.table[part])
        message = np.zeros(kernels.GO, np.int64)
        message[kernels.OPS], message[kernels.COUNT] = table.ctypes.data, len(table)
        message[kernels.BOUNDS], message[kernels.THREADS] = bounds.ctypes.data, number
        message[kernels.GEMM] = threads.gemm_address(recorded.dtype)
        for thread in sorted(range(number), reverse=backwards):
            kernels._run(one, message, 0, thread)


@pytest.mark.parametrize("few_rows", [0, 1000], ids=["by rows", "by units"])
def test_between_barriers_the_order_of_the_threads_changes_nothing(few_rows, monkeypatch):
    monkeypatch.setattr(program, "FEW_ROWS", few_rows)
    results = []
    for backwards, number in product((False, True), (1, 3, 4)):
        monkeypatch.setattr("test_compiled.GENERATOR", np.random.default_rng(4))
        network, step = bound_step()
        recorded = Program(step.on_rows(step), number)
        for _ in range(3):
            run_in_order(recorded, segments(recorded), number, backwards)
        results.append(network.parameters.flat.copy())
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


def test_a_missing_barrier_would_be_seen(monkeypatch):
    results = []
    for backwards in (False, True):
        monkeypatch.setattr("test_compiled.GENERATOR", np.random.default_rng(4))
        network, step = bound_step()
        recorded = Program(step.on_rows(step), 3)
        first, second = segments(recorded)
        table = recorded.table[first.start : second.stop]
        recorded.table = table[table[:, kernels.KIND] != kernels.BARRIER]
        run_in_order(recorded, [slice(0, len(recorded.table))], 3, backwards)
        results.append(network.parameters.flat.copy())
    assert not np.allclose(results[0], results[1], atol=1e-5)


def test_a_step_by_rows_has_two_barriers():
    _, step = bound_step(m=128)
    recorded = Program(step.on_rows(step), 2)
    assert (recorded.table[:, kernels.KIND] == kernels.BARRIER).sum() == 2


def test_the_parts_of_theta_are_all_of_it_and_about_equal():
    _, step = bound_step((300, 200, 100, 10))
    recorded = Program(step, 4)
    for number in (1, 2, 3, 7):
        bounds = recorded.bounds(number)
        assert bounds[0] == 0 and bounds[-1] == step._update.parameters.flat.size
        assert (np.diff(bounds) > 0.7 * bounds[-1] / number).all()


def test_what_cannot_be_moved_is_not_compiled():
    _, step = bound_step()
    backward = step.gradients

    def twice() -> None:
        # the second overwrites what the gradients of the first still need
        step.evaluate()
        backward()
        step.evaluate()
        backward()
        step._update()

    with pytest.raises(NotCapturable, match="an order that cannot be changed"):
        Program(twice, 2)


# ------------------------------------------------------------------------------------------- around it


def test_a_step_with_what_is_not_compiled_runs_as_it_is_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr(base, "_told", set())
    network = dnn.Network([6, 4, 3], activation="tanh", output="softmax", dtype="float64")
    with caplog.at_level(logging.WARNING, "dnn.backends"):
        for _ in range(2):
            network.fit(X, targets("softmax"), epochs=1)
    assert [record.message for record in caplog.records] == [
        "this step runs uncompiled: an activation with exp in float64 is faster in NumPy"
    ]


def test_a_compiler_that_fails_costs_speed_not_the_training(caplog, monkeypatch):
    monkeypatch.setattr(base, "_told", set())

    def broken(dtype) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernels, "compile_for", broken)
    with caplog.at_level(logging.WARNING, "dnn.backends"):
        trained("softmax", dnn.Adam(0.01))
    assert "it cannot be compiled: [Errno 28] No space left on device" in caplog.records[0].message


def test_a_backends_own_version_of_a_function_is_not_replaced():
    from dnn.backends.numpy_backend import NumpyBackend

    class Own(NumpyBackend):
        kernels = {"sgd": lambda xp, theta, grad, learning_rate, *, scratch: None}  # noqa: RUF012

    own = Own()
    sgd = own.fused(functional.sgd)
    theta = np.ones(3)
    step = lambda: sgd(np, theta, theta, np.ones(1), scratch=theta)  # noqa: E731
    assert own.capture(step) is step


class PlainUpdate(dnn.optimizers.Update):
    """By somebody who does not know of Backend.fused."""

    def __call__(self) -> None:
        self.parameters.flat[...] -= self.gradients.flat * 0.01


@dataclass(frozen=True)
class Plain(dnn.SGD):
    update = PlainUpdate


def test_an_update_that_is_no_function_of_the_backends_is_not_left_out(caplog, monkeypatch):
    monkeypatch.setattr(base, "_told", set())
    with caplog.at_level(logging.WARNING, "dnn.backends"):
        weights, _ = trained("softmax", Plain())
    assert "its update is none that Backend.fused gave" in caplog.records[0].message
    np.testing.assert_allclose(weights, trained("softmax", dnn.SGD(0.01))[0], atol=1e-12)


def test_a_function_of_the_same_name_is_not_taken_for_the_specification():
    def sgd(xp, theta, grad, learning_rate, *, scratch) -> None: ...

    backend, theta = get_backend("numpy"), np.ones(3)
    own = backend.fused(sgd)
    step = lambda: own(np, theta, theta, np.ones(1), scratch=theta)  # noqa: E731
    assert backend.capture(step) is step


def of_blas() -> set[int]:
    """The threads of NumPy's BLAS, as another library reads them."""
    return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}


def test_the_blas_has_its_threads_in_a_run_that_is_not_compiled(monkeypatch):
    """Validation could be compiled where the step cannot; then it is not either."""
    before, seen = of_blas(), []
    update = PlainUpdate.__call__
    monkeypatch.setattr(PlainUpdate, "__call__", lambda self: (seen.append(of_blas()), update(self)))
    trained("softmax", Plain())
    assert len(seen) > 3 and all(threads == before for threads in seen)


def test_in_any_thread_a_run_holds_the_blas_and_the_last_one_gives_it_back():
    before, seen = of_blas(), []

    def run(other: threading.Thread | None = None) -> None:
        network, step = bound_step()
        with network.backend.stream(2):
            network.backend.capture(step.on_rows(step))()
            seen.append(of_blas())
            if other is not None:
                other.start()
                other.join()
                seen.append(of_blas())  # still held, though the other has ended

    thread = threading.Thread(target=run, args=(threading.Thread(target=run),))
    thread.start()
    thread.join()
    assert seen == [{1}] * 3 and of_blas() == before


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (ImportError("Numba needs NumPy 2.3 or less"), "Numba needs NumPy 2.3 or less"),
        (RuntimeError("cannot cache function: no locator available"), "set NUMBA_CACHE_DIR to a folder that can be"),
    ],
)
def test_a_numba_that_cannot_be_used_costs_speed_not_the_training(cause, told, caplog, monkeypatch):
    from dnn.backends.numpy_backend import NumpyBackend

    monkeypatch.setattr(base, "_told", set())
    importing = builtins.__import__

    def broken(name, *more, **settings):
        if name == "dnn.backends.compiled.program":
            raise cause
        return importing(name, *more, **settings)

    monkeypatch.setattr(builtins, "__import__", broken)
    backend = NumpyBackend()
    step = lambda: None  # noqa: E731
    with caplog.at_level(logging.WARNING, "dnn.backends"):
        assert backend.capture(step) is step
    assert told in caplog.records[0].message and told in backend.facts()["steps"]


def test_a_fit_leaves_no_thread_and_the_blas_as_it_was(every_thread):
    before, running = of_blas(), threading.active_count()
    trained("softmax", dnn.Adam(0.01), threads=3)
    with pytest.raises(KeyboardInterrupt), get_backend("numpy").stream(2):
        raise KeyboardInterrupt
    assert of_blas() == before and threading.active_count() == running


def test_fits_in_several_threads_do_not_disturb_each_other(every_thread):
    expected, _ = trained("softmax", dnn.Adam(0.01), threads=2)
    results: list[np.ndarray] = []
    fits = [
        threading.Thread(target=lambda: results.append(trained("softmax", dnn.Adam(0.01), threads=2)[0]))
        for _ in range(3)
    ]
    for fit in fits:
        fit.start()
    for fit in fits:
        fit.join()
    assert len(results) == 3
    for weights in results:
        np.testing.assert_array_equal(weights, expected)


def test_a_program_outside_a_run_has_one_thread_and_leaves_the_blas_alone():
    network, step = bound_step()
    blas = of_blas()
    run = network.backend.capture(step.on_rows(step))
    before = network.parameters.flat.copy()
    running = threading.active_count()
    run()
    assert threading.active_count() == running and not np.array_equal(network.parameters.flat, before)
    assert of_blas() == blas


def test_a_compiled_step_allocates_nothing():
    network, step = bound_step((784, 256, 128, 10), 128)
    run = network.backend.capture(step.on_rows(step))
    with network.backend.stream():
        assert held_over(run) < 1024


@pytest.mark.parametrize(("given", "complaint"), [(0, "at least 1, got 0"), ("two", "a whole number, got 'two'")])
def test_threads_that_are_no_number_are_refused(given, complaint):
    with pytest.raises((ValueError, TypeError), match=f"threads must be {complaint}"):
        trained("softmax", dnn.Adam(0.01), threads=given)


def test_the_environment_says_how_many_threads(monkeypatch):
    monkeypatch.setenv("DNN_NUM_THREADS", "3")
    with get_backend("numpy").stream() as pool:
        assert pool.threads == 3
    with get_backend("numpy").stream(2) as pool:
        assert pool.threads == 2
    for wrong in ("many", "²", "0"):
        monkeypatch.setenv("DNN_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"DNN_NUM_THREADS must be a whole number from 1 on, got '{wrong}'"):
            trained("softmax", dnn.Adam(0.01))
