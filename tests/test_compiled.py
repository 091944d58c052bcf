"""Trainings on NumPy with compiled steps: the same as operation by operation, on any number of threads, and tidy."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc

import numpy as np
import pytest
from sweeps import covering
from threadpoolctl import threadpool_info

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

import dnn
from dnn.backends import base, get_backend, use_compiled_steps
from dnn.backends.codegen import threads
from dnn.backends.numpy_backend import NumpyBackend
from dnn.backends.plan import schedule
from dnn.data import prepare
from dnn.state import TrainingState
from dnn.step import GATHERED, TRAIN, Order, Step

GENERATOR = np.random.default_rng(4)
OUTPUTS = {"sigmoid": 2, "softmax": 5, "linear": 3}
OPTIMIZERS = [dnn.SGD(0.1), dnn.Momentum(0.05), dnn.Adam(0.01)]


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as the steps here are, each thread has its share; and there are cores enough."""
    monkeypatch.setattr(schedule, "MIN_MACS_PER_THREAD", 1)
    monkeypatch.setattr(threads, "available_cores", lambda *root: 4)


def data_of(output: str, m: int = 90, n_in: int = 12):
    X, K = GENERATOR.standard_normal((m, n_in)), OUTPUTS[output]
    targets = {
        "sigmoid": GENERATOR.integers(0, 2, (m, K)),
        "softmax": GENERATOR.integers(0, K, m),
        "linear": GENERATOR.standard_normal((m, K)),
    }
    return X, targets[output]


DATA = {output: data_of(output) for output in OUTPUTS}


def trained(output: str, optimizer, *, hidden=(16, 32), dtype="float64", activation="relu", **settings):
    X, Y = DATA[output]
    network = dnn.Network([12, *hidden, OUTPUTS[output]], activation=activation, output=output, seed=2, dtype=dtype)
    settings = {"epochs": 3, "batch_size": 32, "validation_split": 0.1, "verbose": False} | settings
    history = network.fit(X, Y, optimizer=optimizer, **settings)
    return network.parameters.flat.copy(), history.history


@covering("output, optimizer, number", OUTPUTS, OPTIMIZERS, [1, 2, 3], times=2, ids=str)
def test_a_compiled_training_is_the_one_operation_by_operation(output, optimizer, number, every_thread):
    with use_compiled_steps(False):
        expected, history = trained(output, optimizer)
    weights, compiled = trained(output, optimizer, threads=number)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)
    for name, values in history.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-12)


@covering("activation, dtype", ["relu", "tanh", "sigmoid", "gelu", ["gelu", "tanh"]], ["float32", "float64"])
def test_every_activation_trains_the_same_compiled_in_both_dtypes(activation, dtype, every_thread):
    with use_compiled_steps(False):
        expected, _ = trained("softmax", dnn.Momentum(0.01), activation=activation, dtype=dtype)
    weights, _ = trained("softmax", dnn.Momentum(0.01), activation=activation, dtype=dtype, threads=2)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12 if dtype == "float64" else 2e-6)


def test_products_cut_by_columns_train_the_same(every_thread):
    """Few rows a thread: layers are shared out by units, with a barrier between them."""
    with use_compiled_steps(False):
        expected, _ = trained("softmax", dnn.Adam(0.01), hidden=(64, 96), batch_size=4)
    weights, _ = trained("softmax", dnn.Adam(0.01), hidden=(64, 96), batch_size=4, threads=2)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)


def test_bytes_are_loaded_and_scaled_in_the_step(every_thread):
    X, Y = GENERATOR.integers(0, 256, (90, 12), np.uint8), DATA["softmax"][1]
    found = []
    for compiled in (False, True):
        with use_compiled_steps(compiled):
            network = dnn.Network([12, 8, 5], output="softmax", seed=1, dtype="float64")
            network.fit(X, Y, epochs=2, batch_size=32)
            found.append(network.parameters.flat.copy())
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_training_comes_out_the_same_bit_for_bit_every_time(number, every_thread):
    runs = [trained("softmax", dnn.Adam(0.01), dtype="float32", threads=number) for _ in range(3)]
    assert all(run[0].tobytes() == runs[0][0].tobytes() and run[1] == runs[0][1] for run in runs)


def test_the_courses_model_runs_compiled_on_the_transposed_data():
    from dnn.course import L_layer_model

    X, Y = GENERATOR.standard_normal((30, 50)), GENERATOR.integers(0, 2, (1, 50))
    results = []
    for compiled in (True, False):
        with use_compiled_steps(compiled):
            results.append(L_layer_model(X, Y, [30, 7, 5, 1], num_iterations=120))
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)


def test_compiled_steps_are_turned_off_in_one_public_place(monkeypatch):
    backend = get_backend("numpy")
    assert backend.compiles() and "llvmlite" in backend.facts()["steps"]
    with use_compiled_steps(False):
        assert not backend.compiles() and "operation by operation" in backend.facts()["steps"]
    monkeypatch.setenv("DNN_COMPILED", "0")
    assert not backend.compiles()
    with use_compiled_steps(True):
        assert backend.compiles()


# -------------------------------------------------------------------------------- threads and memory


def of_blas() -> set[int]:
    """The threads that NumPy's BLAS has now."""
    return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}


def a_step(sizes=(12, 16, 5), batch_size=32) -> Step:
    network = dnn.Network(sizes, output="softmax")
    X = GENERATOR.standard_normal((2 * batch_size, sizes[0])).astype(np.float32)
    examples = prepare(network, X, GENERATOR.integers(0, sizes[-1], len(X)))
    state = TrainingState(dnn.Adam(), network.parameters)
    order = Order(np.arange(8 * batch_size) % len(X), np.zeros(1, np.int64))  # for that many runs
    step = Step(network, examples, batch_size, TRAIN, GATHERED, state.optimizer, state.arrays, order=order)
    step.network = network  # type: ignore[attr-defined]
    return step


def test_in_any_thread_a_run_holds_the_blas_and_the_last_one_gives_it_back():
    before, seen = of_blas(), []

    def run(other: threading.Thread | None = None) -> None:
        with get_backend("numpy").stream(2):
            a_step().compile()()
            seen.append(of_blas())
            if other is not None:
                other.start()
                other.join()
                seen.append(of_blas())  # still held, though the other has ended

    thread = threading.Thread(target=run, args=(threading.Thread(target=run),))
    thread.start()
    thread.join()
    assert seen == [{1}] * 3 and of_blas() == before


def test_the_blas_has_the_runs_threads_operation_by_operation(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda *root: 4)
    with use_compiled_steps(False), get_backend("numpy").stream(2):
        a_step().compile()()
        assert of_blas() == {min(2, *of_blas())}


def test_an_llvmlite_that_cannot_be_used_costs_speed_not_the_training(caplog, monkeypatch):
    monkeypatch.setattr(base, "_logged", set())

    def broken(dtype):
        raise OSError("libllvmlite.so: cannot open shared object file")

    monkeypatch.setattr("dnn.backends.codegen.blas.product_address", broken)
    backend, step = NumpyBackend(), a_step()
    with caplog.at_level(logging.WARNING, "dnn.backends"):
        backend.compile(step.plan)()
    assert "cannot open shared object" in caplog.records[0].message and len(caplog.records) == 1
    assert "cannot open shared object" in backend.facts()["steps"]


def test_a_blas_without_a_known_product_costs_speed_not_the_training(monkeypatch):
    monkeypatch.setattr("dnn.backends.codegen.blas.gemm_address", lambda dtype: None)
    backend = NumpyBackend()
    backend.compile(a_step().plan)()
    assert "BLAS" in backend.facts()["steps"]


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


def test_a_step_outside_a_run_has_one_thread_and_leaves_the_blas_alone():
    step = a_step().compile()
    flat, blas = step.network.parameters.flat, of_blas()
    before, running = flat.copy(), threading.active_count()
    step()
    assert threading.active_count() == running and not np.array_equal(flat, before)
    assert of_blas() == blas


def test_a_compiled_step_allocates_nothing():
    with get_backend("numpy").stream():
        step = a_step((784, 256, 128, 10), 128).compile()
        for _ in range(3):
            step()
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(5):
                step()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - held < 1024


@pytest.mark.parametrize(("given", "complaint"), [(0, "at least 1, got 0"), ("two", "a whole number, got 'two'")])
def test_threads_that_are_no_number_are_refused(given, complaint):
    with pytest.raises((ValueError, TypeError), match=f"threads must be {complaint}"):
        trained("softmax", dnn.Adam(0.01), threads=given)


def test_numpys_whole_numbers_are_settings_too():
    for kind in (np.int64, np.uint8):
        trained("softmax", dnn.Adam(0.01), threads=kind(2), epochs=kind(2), batch_size=kind(32))
    trained("softmax", dnn.Adam(0.01), memory_limit=float("inf"))
