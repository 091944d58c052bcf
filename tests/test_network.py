"""A network: its settings, its predictions, its representation."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import BACKENDS, ROOT
from sweeps import covering

import dnn
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, use_backend
from dnn.data import examples, prepare
from dnn.errors import DataError, NonFiniteLossError
from dnn.inference import _batches
from dnn.losses import LOSSES
from dnn.step import PREDICT

X = np.random.default_rng(0).standard_normal((20, 3))


def network_of(output: str, units: int, backend: Backend, **settings) -> dnn.Network:
    return dnn.Network([3, 5, units], output=output, backend=backend.name, dtype="float64", **settings)


def by_hand(network: dnn.Network, X: np.ndarray) -> np.ndarray:
    """Z_L in NumPy."""
    parameters = {name: network.backend.to_numpy(view) for name, view in network.parameters.items()}
    hidden = np.maximum(0, X @ parameters["W1"].T + parameters["b1"])
    return hidden @ parameters["W2"].T + parameters["b2"]


# ----------------------------------------------------------------------------------- predictions


def test_one_sigmoid_unit_gives_two_classes(backend: Backend):
    network = network_of("sigmoid", 1, backend)
    P = 1 / (1 + np.exp(-by_hand(network, X)[:, 0]))
    probabilities, classes = network.predict_proba(X), network.predict(X)
    assert type(probabilities) is np.ndarray and type(classes) is np.ndarray
    np.testing.assert_allclose(probabilities, np.column_stack([1 - P, P]), atol=1e-14)
    np.testing.assert_array_equal(classes, P > 0.5)
    assert classes.shape == (20,) and classes.dtype == np.int64 and 0 < classes.sum() < 20


def test_several_sigmoid_units_give_labels(backend: Backend):
    network = network_of("sigmoid", 4, backend)
    P = 1 / (1 + np.exp(-by_hand(network, X)))
    np.testing.assert_allclose(network.predict_proba(X), P, atol=1e-14)
    np.testing.assert_array_equal(network.predict(X), P > 0.5)


def test_softmax_gives_class_numbers(backend: Backend):
    network = network_of("softmax", 4, backend)
    E = np.exp(by_hand(network, X))
    np.testing.assert_allclose(network.predict_proba(X), E / E.sum(axis=1, keepdims=True), atol=1e-14)
    np.testing.assert_array_equal(network.predict(X), E.argmax(axis=1))
    assert network.predict(X).shape == (20,)


@pytest.mark.parametrize(("units", "shape"), [(1, (20,)), (2, (20, 2))])
def test_linear_gives_values_and_no_probabilities(units, shape, backend: Backend):
    network = network_of("linear", units, backend)
    values = network.predict(X)
    assert values.shape == shape
    np.testing.assert_allclose(values.reshape(20, -1), by_hand(network, X), atol=1e-14)
    with pytest.raises(ValueError, match="a linear output has no probabilities: use predict"):
        network.predict_proba(X)


def test_evaluate_gives_python_floats_of_the_means(backend: Backend):
    network = network_of("softmax", 4, backend)
    Y = np.arange(20) % 4
    P = network.predict_proba(X)
    measured = network.evaluate(X, Y)
    assert list(measured) == ["loss", "accuracy"] and {type(value) for value in measured.values()} == {float}
    assert measured["loss"] == pytest.approx(-np.log(P[np.arange(20), Y]).mean(), abs=1e-12)
    assert measured["accuracy"] == (network.predict(X) == Y).mean()
    network = network_of("linear", 1, backend)
    errors = network.predict(X) - Y
    measured = network.evaluate(X, Y)
    assert list(measured) == ["loss", "rmse"]
    assert measured["loss"] == pytest.approx((errors**2).mean())
    assert measured["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))


def test_many_batches_give_the_same_result_as_one(backend: Backend, monkeypatch):
    # wide layers get small batches: at most 16 MB of activations
    network = dnn.Network([2, 100_000, 2], output="softmax", backend=backend.name)
    rows = np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)
    batches = [step.batch_size for step in _batches(network, prepare(network, rows), None, PREDICT, False)]
    assert len(batches) == 2 and sum(batches) == 50
    each = np.vstack([network.predict_proba(row[None]) for row in rows])
    np.testing.assert_allclose(network.predict_proba(rows), each, rtol=1e-4)


IN_FLOAT32 = X.astype(np.float32)  # to be converted


def test_parts_give_the_same_result_as_the_whole(backend: Backend, monkeypatch):
    network, Y = network_of("softmax", 3, backend), np.arange(20) % 3
    whole, answers = network.evaluate(IN_FLOAT32, Y), network.predict(IN_FLOAT32)
    monkeypatch.setattr(examples, "CHUNK", 2 * X.shape[1])  # parts of four examples
    measured = network.evaluate(IN_FLOAT32, Y)
    assert measured["loss"] == pytest.approx(whole["loss"], rel=1e-12) and measured["accuracy"] == whole["accuracy"]
    np.testing.assert_array_equal(network.predict(IN_FLOAT32), answers)


def test_a_non_finite_number_is_reported_at_its_index_in_the_whole(backend: Backend, monkeypatch):
    wrong = IN_FLOAT32.copy()
    wrong[17, 1] = np.nan
    monkeypatch.setattr(examples, "CHUNK", 2 * X.shape[1])
    with pytest.raises(DataError, match="at example 17, feature 1"):
        network_of("softmax", 3, backend).predict(wrong)


def test_evaluating_converts_one_part_at_a_time():
    network = dnn.Network([100, 8, 2], output="softmax")
    doubles = np.zeros((500_000, 100))  # 200 MB in float32
    labels = np.zeros(len(doubles), np.int64)
    tracemalloc.start()
    try:
        network.evaluate(doubles, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80e6


def test_a_network_keeps_its_backend():
    with use_backend("standin"):
        network = dnn.Network([3, 2], output="softmax")
    assert network.backend.name == "standin"
    assert type(network.predict(X)) is np.ndarray


def test_device_arrays_are_accepted(backend: Backend):
    network = network_of("softmax", 4, backend)
    on_device, labels = backend.asarray(X), backend.asarray(np.arange(20) % 4)
    np.testing.assert_array_equal(network.predict(on_device), network.predict(X))
    assert network.evaluate(on_device, labels) == network.evaluate(X, np.arange(20) % 4)
    network.fit(on_device, labels, epochs=2)
    before = backend.to_numpy(on_device)
    np.testing.assert_array_equal(before, X)


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"layer_sizes": [3]}, ValueError, "at least one layer"),
        ({"layer_sizes": [3, 0, 1]}, ValueError, "the size of layer 1 must be at least 1, got 0"),
        ({"layer_sizes": [0, 1]}, ValueError, "the number of inputs must be at least 1, got 0"),
        ({"layer_sizes": [3, 2.5, 1]}, TypeError, "the size of layer 1 must be a whole number, got 2.5"),
        ({"layer_sizes": [3, True]}, TypeError, "whole number, got True"),
        ({"layer_sizes": 7}, TypeError, "layer_sizes"),
        ({"layer_sizes": np.array(7)}, TypeError, "layer_sizes must be a list"),
        ({"layer_sizes": [3, 10**30, 1]}, ValueError, "the size of layer 1 must be below 1099511627776"),
        ({"layer_sizes": [10**400, 1]}, ValueError, "the number of inputs must be below 1099511627776"),
        ({"input_scale": 10**400}, ValueError, "input_scale must be a finite number"),
        ({"layer_sizes": [3, 1], "output": "softmax"}, ValueError, "use output='sigmoid'"),
        (
            {"activation": "swish"},
            ValueError,
            "activation must be one of relu, .*, got 'swish': did you mean hardswish",
        ),
        ({"output": "relu"}, ValueError, "output must be one of sigmoid, softmax, linear"),
        ({"initializer": "xavier"}, ValueError, "initializer must be one of he_normal"),
        ({"dtype": "int32"}, ValueError, "dtype must be one of float32, float64, got 'int32'"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"seed": "one"}, TypeError, "seed must be a whole number"),
        ({"input_scale": 0}, ValueError, "input_scale must be a finite number above 0"),
        ({"input_scale": float("nan")}, ValueError, "input_scale"),
        ({"input_scale": "1/255"}, ValueError, "input_scale must be one of standard, robust, got '1/255'"),
        ({"input_scale": [1 / 255]}, TypeError, "input_scale must be a number"),
    ],
)
def test_refuses_invalid_settings(settings, error, complaint):
    with pytest.raises(error, match=complaint):
        dnn.Network(**({"layer_sizes": [3, 1]} | settings))


def test_numpy_integers_and_dtypes_are_accepted():
    network = dnn.Network(np.array([3, 2]), output="softmax", dtype=np.float64, seed=np.int64(3))
    assert network.layer_sizes == (3, 2) and network.dtype == np.float64 and type(network.seed) is int


def test_the_representation_is_readable(backend: Backend):
    network = dnn.Network([12288, 20, 7, 5, 1], seed=1, backend=backend.name)
    assert repr(network) == (
        "Network([12288, 20, 7, 5, 1], activation='relu', output='sigmoid', initializer='he_normal', seed=1, "
        f"dtype='float32', input_scale=None, backend='{backend.name}')"
    )
    for loss, words in (
        ("focal", "'focal'"),
        (dnn.Focal(), "'focal'"),
        (dnn.Focal(gamma=3.0), repr(dnn.Focal(gamma=3.0))),
    ):
        assert f", input_scale=None, loss={words}, backend=" in repr(dnn.Network([3, 1], loss=loss))
    lines = network.summary().splitlines()
    assert lines[0].split() == ["layer", "outputs", "parameters", "shapes", "multiply-adds"]
    assert lines[1].split() == ["Dense", "relu", "20", "245,780", "W1", "(20,", "12288)", "b1", "(20,)", "245,760"]
    assert lines[4].split() == ["Dense", "1", "6", "W4", "(1,", "5)", "b4", "(1,)", "5"]
    assert "sigmoid output, 245,973 parameters, float32" in lines[5] and backend.name in lines[5]
    assert network.n_parameters == 12288 * 20 + 20 + 20 * 7 + 7 + 7 * 5 + 5 + 5 + 1


def test_setting_parameters_by_hand_changes_the_predictions(backend: Backend):
    network = dnn.Network([2, 1], output="linear", backend=backend.name)
    network.parameters["W1"] = [[2.0, -1.0]]
    network.parameters["b1"] = np.array([0.5])
    np.testing.assert_allclose(network.predict([[1.0, 1.0], [0.0, 3.0]]), [1.5, -2.5])


def test_wrong_feature_count_names_the_layer_both_shapes_and_the_fix(backend: Backend):
    network = network_of("sigmoid", 1, backend)
    with pytest.raises(DataError, match=r"layer 1: X has shape \(20, 2\).*W1 \(5, 3\) takes 3: give 3 features"):
        network.predict(X[:, :2])
    with pytest.raises(DataError, match="transpose X"):
        network.predict(X.T)


def test_predictions_larger_than_memory_are_refused_in_one_line():
    class Endless:
        shape, dtype, ndim = (10**13, 3), np.dtype(np.float32), 2

        def __getitem__(self, rows):
            return np.zeros((rows.stop - rows.start, 3), np.float32)

    with pytest.raises(DataError, match=r"the predictions: .*take 120000.0 GB in float32, but this machine has"):
        dnn.Network([3, 5, 3], output="softmax").predict(Endless())


def by_joblib(network: dnn.Network) -> dnn.Network:
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(network, file)
    file.seek(0)
    return joblib.load(file)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "joblib": by_joblib,
}


@covering(
    "copied, fitted, backend",
    COPIES,
    [None, dnn.Momentum(0.1), dnn.Adam(0.01)],
    BACKENDS,
    times=2,
    indirect=["backend"],
    ids=str,
)
def test_a_copy_learns_exactly_as_the_original_does(copied, fitted, backend: Backend):
    network = dnn.Network([3, 5, 4], output="softmax", seed=1, backend=backend.name)
    labels, settings = np.arange(len(X)) % 4, {"epochs": 2, "batch_size": 8, "optimizer": fitted or dnn.Adam()}
    if fitted:
        network.fit(X, labels, **settings)
    other = COPIES[copied](network)
    for each in (network, other):
        each.fit(X, labels, **settings)
    np.testing.assert_array_equal(backend.to_numpy(other.parameters.flat), backend.to_numpy(network.parameters.flat))
    for name, array in network.training_state.arrays.items():
        np.testing.assert_array_equal(backend.to_numpy(other.training_state.arrays[name]), backend.to_numpy(array))
    assert other.evaluate(X, labels) == network.evaluate(X, labels) and other.epochs == network.epochs
    other.parameters["W1"] = np.zeros((5, 3))
    assert not bool(other.backend.to_numpy(other.parameters.flat)[:15].any())
    assert bool(network.backend.to_numpy(network.parameters.flat)[:15].all())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_copy_in_16_bits_learns_exactly_as_the_original_does(precision):
    network, labels = dnn.Network([3, 5, 4], output="softmax", backend="standin"), np.arange(len(X)) % 4
    network.fit(X, labels, epochs=2, precision=precision)
    other = copy.deepcopy(network)
    for each in (network, other):
        each.fit(X, labels, epochs=2, precision=precision)
    assert other.parameters.flat.get().tobytes() == network.parameters.flat.get().tobytes()


CHILD = """
import pickle, sys
import numpy as np
network, X, labels = pickle.load(sys.stdin.buffer)
network.fit(X, labels, epochs=2, batch_size=8, threads=1)
pickle.dump(network, sys.stdout.buffer)
"""


def test_another_process_trains_a_network_on_exactly_and_gives_it_back():
    network, labels = dnn.Network([3, 5, 4], output="softmax", seed=1), np.arange(len(X)) % 4
    network.fit(X, labels, epochs=2, batch_size=8, threads=1)
    given = pickle.dumps((network, X, labels))
    done = subprocess.run([sys.executable, "-c", CHILD], input=given, capture_output=True, check=True, cwd=ROOT)
    other = pickle.loads(done.stdout)
    for each in (network, other):
        each.fit(X, labels, epochs=2, batch_size=8, threads=1)
        if each is network:
            each.fit(X, labels, epochs=2, batch_size=8, threads=1)
    np.testing.assert_array_equal(other.parameters.flat, network.parameters.flat)
    assert other.epochs == network.epochs == 6


class Absolute:
    def losses(self, xp, Z, Y):
        return xp.absolute(Z - Y)

    def gradient(self, xp, Z, Y):
        return xp.sign(Z - Y)


def test_a_copy_knows_a_registered_loss_and_can_be_saved(tmp_path, monkeypatch):
    own = Absolute()
    monkeypatch.setitem(LOSSES, "absolute", own)
    network = dnn.Network([3, 1], output="linear", loss=own)
    for number, copied in enumerate(COPIES.values()):
        other = copied(network)
        assert other.loss is other.loss_function is own
        other.save(tmp_path / f"{number}.h5")
    monkeypatch.delitem(LOSSES, "absolute")
    assert type(pickle.loads(pickle.dumps(network)).loss_function) is Absolute  # where nobody registered it


def test_a_process_that_lacks_an_activation_says_so(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "mine", ACTIVATIONS["relu"])
    content = pickle.dumps(dnn.Network([3, 2, 1], activation="mine"))
    monkeypatch.delitem(ACTIVATIONS, "mine")
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'mine'"):
        pickle.loads(content)


# --------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize(("output", "units"), [("linear", 1), ("softmax", 3), ("sigmoid", 1)])
def test_answers_of_weights_that_are_not_finite_are_refused(output, units, backend: Backend):
    network = network_of(output, units, backend)
    network.parameters["b1"][...] = np.inf  # a sigmoid of it would be 1
    uses = [network.predict] if output == "linear" else [network.predict, network.predict_proba]
    for use in (*uses, lambda X: network.evaluate(X, np.zeros(20))):
        with pytest.raises(NonFiniteLossError, match="parameter b1 holds nan or inf: put finite numbers back"):
            use(X)


def test_answers_that_overflow_are_refused(backend: Backend):
    network = dnn.Network([3, 5, 2], output="linear", backend=backend.name)
    for name, view in network.parameters.items():
        network.parameters[name] = np.full(view.shape, 10.0)
    far = np.where(np.arange(20)[:, None] == 7, 3e37, X)
    with pytest.raises(
        NonFiniteLossError, match=r"of example 7 are not finite in float32: X reaches 3e\+37, the weights 10: scale"
    ):
        network.predict(far)
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is inf in float32: X reaches 3e\+37, Y 0, the weights 10: scale"
    ):
        network.evaluate(far, np.zeros((20, 2)))


@pytest.mark.parametrize("scale", [1e-50, 1e-40, 1e39])
def test_an_input_scale_that_float32_cannot_hold_is_refused(scale):
    with pytest.raises(ValueError, match=r"input_scale .* in float32: take one that is not"):
        dnn.Network([3, 1], input_scale=scale)
    assert dnn.Network([3, 1], input_scale=scale, dtype="float64").input_scale == scale


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", np.dtype(">f4")])
def test_a_dtype_of_any_byte_order_is_this_machines(dtype):
    network = dnn.Network([2, 3, 1], dtype=dtype)
    assert network.dtype.isnative and network.fit(np.ones((4, 2)), [0, 1, 0, 1], epochs=1).history["loss"]


@pytest.mark.parametrize("sizes", [[5, [3, 3], 1], [5, (3,), 1], np.ones((2, 2)), np.array(3), "784"])
def test_layer_sizes_that_are_no_list_of_numbers_are_refused_in_our_words(sizes):
    with pytest.raises((TypeError, ValueError), match="layer_sizes"):
        dnn.Network(sizes)
