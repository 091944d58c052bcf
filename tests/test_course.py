"""The assignment's functions: printed digits, shapes, caches, and behaviour that the assignment leaves open."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import find_shared
from course_cases import COSTS, EXPECTED, draws

from dnn import SGD, Network, course
from dnn.backends import Backend, get_backend, use_backend
from dnn.errors import DataError

PRINTED = 5e-9
"""Half a unit in the last printed digit."""


# ---------------------------------------------------------------------------------- the printed digits


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case.__name__)
def test_reproduces_the_assignments_printed_digits(case, backend: Backend):
    with use_backend(backend.name):
        results = case(backend.asarray)
    for name, expected in EXPECTED[case].items():
        result, expected = results[name], np.array(expected)
        assert backend.owns(result) and result.dtype == np.float64
        assert result.shape == expected.shape
        tolerance = 1e-15 if name == "cost" and backend.name == "numpy" else PRINTED + 1e-11
        np.testing.assert_allclose(backend.to_numpy(result), expected, rtol=0, atol=tolerance)


def test_the_digits_above_are_the_published_ones(shared: Path):
    published = json.loads((shared / "step_by_step_cases.json").read_text())["cases"]
    ours = {case.__name__: expected for case, expected in EXPECTED.items()}
    assert ours.keys() == published.keys()
    for name, case in published.items():
        assert case["tolerance_abs"] in (PRINTED, 1e-15)
        for result, expected in case["expected"].items():
            assert ours[name][result] == expected["values"], (name, result)
    costs = json.loads((shared / "application_four_layer.json").read_text())["costs"]
    assert {int(i): float(cost) for i, cost in costs.items()} == COSTS


# ------------------------------------------------------------------------------------- the cat classifier


@pytest.fixture(scope="module")
def cats() -> tuple[np.ndarray, ...]:
    data = find_shared()
    train_x, train_y, test_x, test_y, _ = course.load_data(data / "train_catvnoncat.h5", data / "test_catvnoncat.h5")
    train_X, test_X = (x.reshape(x.shape[0], -1).T / 255.0 for x in (train_x, test_x))
    return train_X, train_y, test_X, test_y


def accuracy(X, y, parameters, capsys) -> float:
    course.predict(X, y, parameters)
    word, value = capsys.readouterr().out.split()
    assert word == "Accuracy:"
    return float(value)


CATS = [12288, 20, 7, 5, 1]


def test_L_layer_model_gives_the_published_costs_and_accuracies(cats, capsys, monkeypatch):
    """All of them in a fraction of the time: with the pictures in coordinates of their span, X = QR.

    No gradient of W1 leaves that span, so the same weights learn the same in 209 coordinates as in 12,288 pixels.
    """
    train_X, train_y, test_X, test_y = cats
    Q, R = np.linalg.qr(train_X)
    drawn = Network(CATS, initializer="course_scaled", seed=1, dtype="float64").parameters

    def in_the_span(sizes: list[int], **settings: Any) -> Network:
        network = Network(sizes, **settings)
        for name in drawn:
            network.parameters[name] = drawn[name] @ Q if name == "W1" else drawn[name]
        return network

    monkeypatch.setattr(course, "Network", in_the_span)
    parameters, costs = course.L_layer_model(R, train_y, [R.shape[0], *CATS[1:]], num_iterations=2500)
    np.testing.assert_allclose(costs, list(COSTS.values()), rtol=0, atol=1e-12)
    parameters["W1"] = drawn["W1"] + (parameters["W1"] - drawn["W1"] @ Q) @ Q.T
    assert accuracy(train_X, train_y, parameters, capsys) == pytest.approx(0.9856459330143539, abs=1e-12)
    assert accuracy(test_X, test_y, parameters, capsys) == pytest.approx(0.8, abs=1e-12)


def test_L_layer_model_gives_the_first_published_costs_from_pixels(cats):
    train_X, train_y, _, _ = cats
    _, costs = course.L_layer_model(train_X, train_y, CATS, num_iterations=101)
    np.testing.assert_allclose(costs, [COSTS[0], COSTS[100]], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_L_layer_model_gives_the_published_costs_and_accuracies_from_pixels(cats, capsys):
    train_X, train_y, test_X, test_y = cats
    parameters, costs = course.L_layer_model(train_X, train_y, CATS, num_iterations=2500)
    np.testing.assert_allclose(costs, list(COSTS.values()), rtol=0, atol=1e-12)
    assert accuracy(train_X, train_y, parameters, capsys) == pytest.approx(0.9856459330143539, abs=1e-12)
    assert accuracy(test_X, test_y, parameters, capsys) == pytest.approx(0.8, abs=1e-12)


def test_fit_in_full_batches_of_bytes_gives_the_first_published_costs(cats):
    train_X, train_y, _, _ = cats
    bytes_X = np.round(train_X.T * 255).astype(np.uint8)
    network = Network(CATS, initializer="course_scaled", seed=1, dtype="float64")
    history = network.fit(bytes_X, train_y.T, epochs=101, batch_size=209, optimizer=SGD(0.0075))
    costs = [history.history["loss"][i] for i in (0, 100)]
    np.testing.assert_allclose(costs, [COSTS[i] for i in (0, 100)], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_fit_in_full_batches_gives_all_published_costs(cats):
    train_X, train_y, _, _ = cats
    network = Network(CATS, initializer="course_scaled", seed=1, dtype="float64")
    history = network.fit(train_X.T, train_y.T, epochs=2500, batch_size=209, optimizer=SGD(0.0075))
    costs = [history.history["loss"][i] for i in COSTS]
    np.testing.assert_allclose(costs, list(COSTS.values()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_two_layer_model_gives_the_published_accuracies(cats, capsys):
    train_X, train_y, test_X, test_y = cats
    parameters, _ = course.two_layer_model(train_X, train_y, [12288, 7, 1], num_iterations=2500)
    assert accuracy(train_X, train_y, parameters, capsys) == pytest.approx(1.0, abs=1e-12)
    assert accuracy(test_X, test_y, parameters, capsys) == pytest.approx(0.72, abs=1e-12)


# ------------------------------------------------------------------------------------------ the models


def small_functions(X, Y, parameters, learning_rate: float, iterations: int):
    """The two models, written with the assignment's small functions."""
    costs = []
    for _ in range(iterations):
        AL, caches = course.L_model_forward(X, parameters)
        costs.append(float(course.compute_cost(AL, Y)))
        parameters = course.update_parameters(parameters, course.L_model_backward(AL, Y, caches), learning_rate)
    return parameters, costs


@pytest.mark.parametrize("sizes", [(6, 4, 1), (6, 5, 4, 1)])
def test_the_models_agree_with_the_small_functions(sizes, backend: Backend):
    X, Y = draws(0, (6, 9))[0], (np.arange(9) % 2).reshape(1, 9)
    legacy, parameters = np.random.RandomState(1), {}
    for layer, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
        W = legacy.randn(n_out, n_in)
        parameters[f"W{layer}"] = backend.asarray(W * 0.01 if len(sizes) == 3 else W / np.sqrt(n_in))
        parameters[f"b{layer}"] = backend.zeros((n_out, 1), np.float64)
    X, Y = backend.asarray(X), backend.asarray(Y)
    model = course.two_layer_model if len(sizes) == 3 else course.L_layer_model
    trained, costs = model(X, Y, sizes, learning_rate=0.5, num_iterations=5)
    expected, expected_costs = small_functions(X, Y, parameters, 0.5, 5)
    assert trained.keys() == expected.keys()
    for name in expected:
        assert backend.owns(trained[name]) and trained[name].shape == expected[name].shape
        np.testing.assert_allclose(backend.to_numpy(trained[name]), backend.to_numpy(expected[name]), atol=1e-14)
    np.testing.assert_allclose(costs, [expected_costs[0], expected_costs[-1]], atol=1e-14)


@pytest.mark.parametrize(
    ("iterations", "expected"), [(1, [0]), (2, [0, 1]), (100, [0, 99]), (101, [0, 100]), (150, [0, 100, 149]), (0, [])]
)
def test_costs_are_floats_at_every_hundredth_iteration_and_the_last(iterations, expected, capsys):
    X, Y = draws(0, (3, 5))[0], np.array([[0, 1, 1, 0, 1]])
    _, every = course.L_layer_model(X, Y, [3, 2, 1], num_iterations=iterations)
    assert capsys.readouterr().out == ""
    _, costs = course.L_layer_model(X, Y, [3, 2, 1], num_iterations=iterations, print_cost=True)
    lines = capsys.readouterr().out.splitlines()
    assert costs == every and all(type(cost) is float for cost in costs)
    assert [line.split(":")[0] for line in lines] == [f"Cost after iteration {i}" for i in expected]
    assert [float(line.split(":")[1]) for line in lines] == costs


def test_the_models_accept_real_valued_labels():
    X, Y = draws(0, (3, 5))[0], np.array([[0.1, 0.9, 0.5, 0.0, 1.0]])
    _, costs = course.L_layer_model(X, Y, [3, 4, 1], num_iterations=200, learning_rate=0.5)
    assert costs[-1] < costs[0]


def test_the_models_refuse_mismatched_shapes():
    X, Y = np.ones((3, 5)), np.ones((1, 5))
    with pytest.raises(DataError, match=r"Y: expected shape \(1, 5\)"):
        course.L_layer_model(X, Y.T, [3, 4, 1])
    with pytest.raises(DataError, match="n_x as the first"):
        course.L_layer_model(X.T, Y, [3, 4, 1])
    with pytest.raises(ValueError, match="two_layer_model"):
        course.two_layer_model(X, Y, [3, 4, 4, 1])


# ------------------------------------------------------------------------------------ the small functions


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def small_problem(backend: Backend, m: int = 7):
    X, *tensors = draws(4, (5, m), (4, 5), (4, 1), (3, 4), (3, 1), (1, 3), (1, 1))
    parameters = dict(zip(("W1", "b1", "W2", "b2", "W3", "b3"), map(backend.asarray, tensors), strict=True))
    return backend.asarray(X), backend.asarray((np.arange(m) % 2).reshape(1, m)), parameters


def test_no_function_changes_its_inputs_or_prints(backend: Backend, capsys):
    X, Y, parameters = small_problem(backend)
    X_before, Y_before, parameters_before = X.copy(), Y.copy(), copies(parameters)
    AL, caches = course.L_model_forward(X, parameters)
    AL_before, Z_before = AL.copy(), [cache[1].copy() for cache in caches]
    course.compute_cost(AL, Y)
    grads = course.L_model_backward(AL, Y, caches)
    grads_before = copies(grads)
    course.update_parameters(parameters, grads, 0.1)
    before = [X_before, Y_before, AL_before, *Z_before, *parameters_before.values(), *grads_before.values()]
    after = [X, Y, AL, *(cache[1] for cache in caches), *parameters.values(), *grads.values()]
    for array, original in zip(after, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), backend.to_numpy(original))
    assert capsys.readouterr().out == ""


def test_caches_and_gradients_have_the_assignments_names_and_shapes(backend: Backend):
    X, Y, parameters = small_problem(backend)
    AL, caches = course.L_model_forward(X, parameters)
    assert AL.shape == (1, 7) and len(caches) == 3
    for layer, ((A_prev, W, b), Z) in enumerate(caches, start=1):
        assert W is parameters[f"W{layer}"] and b is parameters[f"b{layer}"]
        assert A_prev.shape == (W.shape[1], 7) and Z.shape == (W.shape[0], 7)
    assert caches[0][0][0] is X
    grads = course.L_model_backward(AL, Y, caches)
    assert set(grads) == {"dA0", "dA1", "dA2", *(f"d{name}" for name in parameters)}
    for name, parameter in parameters.items():
        assert grads[f"d{name}"].shape == parameter.shape
    assert [grads[f"dA{layer}"].shape for layer in range(3)] == [(5, 7), (4, 7), (3, 7)]


def test_gradients_agree_with_finite_differences():
    X, Y, parameters = small_problem(get_backend("numpy"))
    AL, caches = course.L_model_forward(X, parameters)
    grads = course.L_model_backward(AL, Y, caches)

    def cost() -> float:
        return float(course.compute_cost(course.L_model_forward(X, parameters)[0], Y))

    for name, parameter in parameters.items():
        for place in np.ndindex(parameter.shape):
            original, h = parameter[place], 1e-6
            parameter[place] = original + h
            above = cost()
            parameter[place] = original - h
            slope = (above - cost()) / (2 * h)
            parameter[place] = original
            assert grads[f"d{name}"][place] == pytest.approx(slope, abs=1e-8), (name, place)


def test_a_certain_right_prediction_costs_zero_and_a_certain_wrong_one_infinity(backend: Backend):
    def cost(AL, Y) -> float:
        return float(course.compute_cost(backend.asarray(np.array([AL])), backend.asarray(np.array([Y]))))

    assert cost([1.0, 0.0], [1, 0]) == 0
    assert cost([1.0, 0.0], [0, 0]) == np.inf
    assert cost([0.0], [1]) == np.inf
    assert cost([0.5, 0.5], [0.25, 1.0]) == pytest.approx(np.log(2))


@pytest.mark.parametrize("Z", [30.0, 40.0, 800.0, -800.0])
@pytest.mark.parametrize("y", [0, 1, 0.5])
def test_where_the_sigmoid_has_saturated_the_gradient_is_its_limit(Z, y, backend: Backend):
    A_prev, W, b = (backend.asarray(np.array([[value]])) for value in (1.0, Z, 0.0))
    AL, caches = course.L_model_forward(A_prev, {"W1": W, "b1": b})
    grads = course.L_model_backward(AL, backend.asarray(np.array([[y]])), caches)
    assert grads["db1"].item() == pytest.approx(AL.item() - y, abs=1e-3 if Z == 30.0 else 0)


def test_relu_and_sigmoid_accept_any_shape_and_are_finite_at_the_extremes(backend: Backend):
    Z = backend.asarray(np.array([[[-1e308, -1.0], [0.0, 1e308]]]))
    A, cache = course.sigmoid(Z)
    assert cache is Z and A.shape == (1, 2, 2)
    np.testing.assert_allclose(backend.to_numpy(A).ravel(), [0, 0.2689414213699951, 0.5, 1], atol=1e-15)
    A, cache = course.relu(Z)
    assert cache is Z
    np.testing.assert_array_equal(backend.to_numpy(A).ravel(), [0, 0, 0, 1e308])


def test_relu_has_slope_zero_at_zero(backend: Backend):
    Z = backend.asarray(np.array([[-1.0, 0.0, 2.0]]))
    dZ = course.relu_backward(backend.asarray(np.array([[5.0, 5.0, 5.0]])), Z)
    np.testing.assert_array_equal(backend.to_numpy(dZ), [[0, 0, 5]])


def test_float32_stays_float32():
    X, Y, parameters = small_problem(get_backend("numpy"))
    X, parameters = X.astype(np.float32), {name: value.astype(np.float32) for name, value in parameters.items()}
    AL, caches = course.L_model_forward(X, parameters)
    assert AL.dtype == np.float32
    assert Y.dtype == np.int64  # as load_data gives it
    assert {g.dtype for g in course.L_model_backward(AL, Y, caches).values()} == {np.dtype(np.float32)}
    assert course.compute_cost(AL, Y).dtype == np.float32
    assert course.L_layer_model(X, Y, [5, 4, 1], num_iterations=2)[0]["W1"].dtype == np.float32


def test_predict_gives_zeros_and_ones_and_prints_the_accuracy(backend: Backend, capsys):
    parameters = {"W1": backend.asarray(np.array([[1.0]])), "b1": backend.asarray(np.array([[0.0]]))}
    X, y = backend.asarray(np.array([[-1.0, 0.0, 1.0, 2.0]])), backend.asarray(np.array([[0, 1, 1, 1]]))
    p = course.predict(X, y, parameters)
    # one half is not above one half
    np.testing.assert_array_equal(backend.to_numpy(p), [[0, 0, 1, 1]])
    assert capsys.readouterr().out == "Accuracy: 0.75\n"


def test_print_grads_prints_three_gradients(capsys):
    course.print_grads({"dW1": np.ones((1, 2)), "db1": np.zeros((1, 1)), "dA1": np.full((1, 2), 0.5), "dW2": None})
    assert capsys.readouterr().out == "dW1 = [[1. 1.]]\ndb1 = [[0.]]\ndA1 = [[0.5 0.5]]\n"


def test_load_data_returns_the_assignments_five_arrays(tmp_path: Path, backend: Backend):
    for split, m in (("train", 4), ("test", 2)):
        with h5py.File(tmp_path / f"{split}.h5", "w") as file:
            file[f"{split}_set_x"] = np.arange(m * 12, dtype=np.uint8).reshape(m, 2, 2, 3)
            file[f"{split}_set_y"] = np.arange(m) % 2
            file["list_classes"] = np.array([b"non-cat", b"cat"])
    with use_backend(backend.name):
        train_x, train_y, test_x, test_y, classes = course.load_data(tmp_path / "train.h5", tmp_path / "test.h5")
    assert [array.shape for array in (train_x, train_y, test_x, test_y)] == [(4, 2, 2, 3), (1, 4), (2, 2, 2, 3), (1, 2)]
    assert all(backend.owns(array) for array in (train_x, train_y, test_x, test_y)) and train_x.dtype == np.uint8
    np.testing.assert_array_equal(backend.to_numpy(train_y), [[0, 1, 0, 1]])
    assert classes.tolist() == [b"non-cat", b"cat"]
    with pytest.raises(DataError, match=r"test\.h5: no train_set_x"):
        course.load_data(tmp_path / "test.h5", tmp_path / "test.h5")


def test_seeds_are_arguments():
    assert not np.array_equal(
        course.initialize_parameters(2, 2, 1)["W1"], course.initialize_parameters(2, 2, 1, seed=2)["W1"]
    )
    np.testing.assert_array_equal(
        course.initialize_parameters_deep([3, 2, 1])["W1"], np.random.RandomState(3).randn(2, 3) * 0.01
    )


def test_shape_errors_name_the_array_both_shapes_and_the_fix():
    X, Y, parameters = small_problem(get_backend("numpy"))
    with pytest.raises(DataError, match=r"layer 1: A has shape \(7, 5\) and W \(4, 5\).*transposed"):
        course.L_model_forward(X.T, parameters)
    with pytest.raises(DataError, match=r"b: expected shape \(4, 1\).*got \(4,\).*reshape"):
        course.linear_forward(X, parameters["W1"], parameters["b1"].ravel())
    AL, caches = course.L_model_forward(X, parameters)
    with pytest.raises(DataError, match=r"Y: expected shape \(1, 7\) or \(7,\).*each column of AL, got \(7, 1\)"):
        course.compute_cost(AL, Y.T)
    with pytest.raises(DataError, match=r"Y: expected shape \(1, 7\) or \(7,\).*each column of AL, got \(1, 3\)"):
        course.L_model_backward(AL, Y[:, :3], caches)
    with pytest.raises(ValueError, match="sigmoid, relu, got 'tanh'"):
        course.linear_activation_forward(X, parameters["W1"], parameters["b1"], "tanh")
    with pytest.raises(DataError, match="expected W1, b1"):
        course.L_model_forward(X, {"W1": parameters["W1"]})


# ---------------------------------------------------------------------- what people have in their notebooks


def with_labels(X, Y, AL, caches, parameters):
    """Every function that takes labels, by name: called with these."""
    return {
        "compute_cost": lambda: course.compute_cost(AL, Y),
        "L_model_backward": lambda: course.L_model_backward(AL, Y, caches),
        "predict": lambda: course.predict(X, Y, parameters),
        "L_layer_model": lambda: course.L_layer_model(X, Y, [X.shape[0], 4, 1], num_iterations=3),
        "two_layer_model": lambda: course.two_layer_model(X, Y, [X.shape[0], 4, 1], num_iterations=3),
    }


TAKE_LABELS = list(with_labels(*[None] * 5))


def leaves(found, backend: Backend) -> list[np.ndarray]:
    """All numbers of a result, in order."""
    if isinstance(found, dict):
        return [leaf for name in sorted(found) for leaf in leaves(found[name], backend)]
    if isinstance(found, (tuple, list)):
        return [leaf for part in found for leaf in leaves(part, backend)]
    return [np.asarray(found if isinstance(found, float) else backend.to_numpy(found))]


def assert_equal(found, expected, backend: Backend) -> None:
    for one, other in zip(leaves(found, backend), leaves(expected, backend), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "form",
    [np.ravel, lambda Y: Y.ravel().tolist(), np.ndarray.tolist, lambda Y: tuple(map(bool, Y.ravel())), np.float32],
    ids=["flat", "list", "list of lists", "tuple of bools", "float32"],
)
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_labels_are_taken_in_the_same_forms_by_all_functions(name, form, backend: Backend):
    X, Y, parameters = small_problem(backend)
    AL, caches = course.L_model_forward(X, parameters)
    given = form(backend.to_numpy(Y))
    given = backend.asarray(given) if isinstance(given, np.ndarray) else given
    with use_backend(backend.name):
        found = with_labels(X, given, AL, caches, parameters)[name]()
    assert_equal(found, with_labels(X, Y, AL, caches, parameters)[name](), backend)


@pytest.mark.parametrize("given", [1, 1.0, True, [1], (1,), [[1]], np.int64(1), np.array(1), np.array([1])], ids=repr)
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_one_label_of_ones_own_picture(name, given, backend: Backend, capsys):
    """my_label_y = [1], as a cell of the next assignment has it."""
    X, Y, parameters = small_problem(backend, m=1)
    AL, caches = course.L_model_forward(X, parameters)
    Y[...] = 1
    if isinstance(given, np.ndarray):
        given = backend.asarray(given)
    found = with_labels(X, given, AL, caches, parameters)[name]()
    assert_equal(found, with_labels(X, Y, AL, caches, parameters)[name](), backend)


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (lambda Y: Y * 255, "255"),
        (lambda Y: Y + 1, "2"),
        (lambda Y: 2 * Y - 1, "-1"),
        (lambda Y: np.where(Y == 1, np.nan, Y), "nan"),
        (lambda Y: np.where(Y == 1, np.inf, 0.5), "inf"),
        (lambda Y: Y + 1e-6, "1"),
    ],
    ids=["0/255", "1/2", "-1/1", "nan", "inf", "above 1"],
)
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_labels_that_are_none_are_refused_by_all_functions_in_the_same_words(name, labels, value, backend: Backend):
    X, Y, parameters = small_problem(backend)
    AL, caches = course.L_model_forward(X, parameters)
    given = backend.asarray(labels(backend.to_numpy(Y)))
    words = rf"^[Yy]: expected labels 0 and 1 \(or probabilities in between\), got {value}: number the classes 0 and 1$"
    with pytest.raises(DataError, match=words):
        with_labels(X, given, AL, caches, parameters)[name]()


@pytest.mark.parametrize("shape", [(7, 1), (6,), (1, 6), (1, 8), (1, 1), (), (2, 7), (1, 1, 7), (0,)], ids=str)
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_labels_of_another_shape_are_refused_by_all_functions_in_the_same_words(name, shape):
    X, _, parameters = small_problem(get_backend("numpy"))
    AL, caches = course.L_model_forward(X, parameters)
    with pytest.raises(DataError) as error:
        with_labels(X, np.ones(shape), AL, caches, parameters)[name]()
    of = "X" if name.endswith("layer_model") else "AL"
    start = "y" if name == "predict" else "Y"
    assert str(error.value) == f"{start}: expected shape (1, 7) or (7,), a label for each column of {of}, got {shape}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cat", "dog", "cat", "cat", "dog", "cat", "cat"], "Y: expected numbers"),
        ([[1, 0], [1]], "Y: expected"),
        (None, "Y: expected numbers"),
        (np.ma.masked_array(np.ones((1, 7)), np.eye(1, 7)), "Y: "),
        (np.ones((1, 7), complex), "Y: expected numbers"),
    ],
    ids=["strings", "ragged", "None", "masked", "complex"],
)
@pytest.mark.parametrize("name", TAKE_LABELS)
def test_what_holds_no_numbers_is_refused_in_a_line_that_names_it(name, given, words):
    X, _, parameters = small_problem(get_backend("numpy"))
    AL, caches = course.L_model_forward(X, parameters)
    with pytest.raises(DataError) as error:
        with_labels(X, given, AL, caches, parameters)[name]()
    assert str(error.value).lower().startswith(words.lower()) and "\n" not in str(error.value)


def test_lists_and_numbers_give_what_their_arrays_give(backend: Backend):
    X, _, parameters = small_problem(backend)
    W, b = parameters["W1"], parameters["b1"]
    listed = [backend.to_numpy(array).tolist() for array in (X, W, b)]
    with use_backend(backend.name):
        for activation in ("sigmoid", "relu"):
            expected = course.linear_activation_forward(X, W, b, activation)
            found = course.linear_activation_forward(*listed, activation)
            assert_equal(found, expected, backend)
            gradients = course.linear_activation_backward(expected[0], expected[1], activation)
            listed_cache = (tuple(listed), backend.to_numpy(expected[1][1]).tolist())
            assert_equal(course.linear_activation_backward(expected[0], listed_cache, activation), gradients, backend)
        as_lists = {name: backend.to_numpy(value).tolist() for name, value in parameters.items()}
        assert_equal(course.L_model_forward(listed[0], as_lists), course.L_model_forward(X, parameters), backend)
        for function in (course.sigmoid, course.relu):
            for number in (-1.5, 3, True, np.float64(0.5)):
                A, Z = function(number)
                assert A.shape == Z.shape == ()
                assert_equal(A, function(backend.asarray(np.array(float(number))))[0], backend)
        updated = course.update_parameters({"W1": [[1, 2]], "b1": [[3]]}, {"dW1": [[1, 1]], "db1": [[2]]}, 0.5)
    assert_equal(updated, {"W1": backend.asarray([[0.5, 1.5]]), "b1": backend.asarray([[2.0]])}, backend)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_X_that_is_not_finite_is_refused(bad, backend: Backend, capsys):
    X, Y, parameters = small_problem(backend)
    X[2, 3] = bad
    calls = {
        "L_model_forward": lambda: course.L_model_forward(X, parameters),
        "predict": lambda: course.predict(X, Y, parameters),
        "L_layer_model": lambda: course.L_layer_model(X, Y, [5, 4, 1], num_iterations=3),
        "two_layer_model": lambda: course.two_layer_model(X, Y, [5, 4, 1], num_iterations=3),
    }
    for call in calls.values():
        with pytest.raises(DataError, match=f"^X: expected finite numbers, got {bad:g}$"):
            call()
    X[2, 3] = 0
    parameters["W2"][0, 0] = np.nan
    with pytest.raises(DataError, match=r"^AL, computed with these parameters: expected finite numbers, got nan$"):
        course.predict(X, Y, parameters)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("labels", ["float64", "int64", "list"])
@pytest.mark.parametrize("Z", [17.0, 40.0, 800.0, -88.5, -800.0])
@pytest.mark.parametrize("y", [0, 1])
def test_float32_gradients_of_a_saturated_sigmoid_are_finite_whatever_the_labels_are_in(Z, y, labels, backend):
    A_prev, W, b = (backend.asarray(np.array([[value]], np.float32)) for value in (1.0, Z, 0.0))
    AL, caches = course.L_model_forward(A_prev, {"W1": W, "b1": b})
    Y = [[y]] if labels == "list" else backend.asarray(np.array([[y]], labels))
    grads = course.L_model_backward(AL, Y, caches)
    assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float32)}
    # σ(Z) − y, to the step of float32 below 1
    assert grads["db1"].item() == pytest.approx((0 if Z < 0 else 1) - y, abs=1e-7)
    if (Z > 0) == y:
        cost = course.compute_cost(AL, Y)
        assert cost.dtype == np.float32 and 0 <= float(cost) < 1e-6


def test_dtype_of_the_labels_or_the_learning_rate_changes_no_others():
    X, Y, parameters = small_problem(get_backend("numpy"))
    X, parameters = X.astype(np.float32), {name: value.astype(np.float32) for name, value in parameters.items()}
    AL, caches = course.L_model_forward(X, parameters)
    grads = course.L_model_backward(AL, Y.astype(np.float64), caches)
    updated = course.update_parameters(parameters, grads, np.float64(0.1))
    assert {array.dtype for array in [*grads.values(), *updated.values()]} == {np.dtype(np.float32)}
    assert course.L_layer_model(X, Y / 1.0, [5, 4, 1], num_iterations=2)[0]["W1"].dtype == np.float32


def test_star_import_brings_the_assignments_functions_and_nothing_else():
    brought: dict[str, object] = {}
    exec("from dnn.course import *", brought)
    brought.pop("__builtins__")
    own = {name for name, value in vars(course).items() if callable(value) and not name.startswith("_")}
    own = {name for name in own if vars(course)[name].__module__ == "dnn.course"}
    assert set(brought) == own and len(own) == len(course.__all__) == 19


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: course.initialize_parameters(3, 2.0, 1), "each of layer_dims must be a whole number, got 2.0"),
        (lambda: course.initialize_parameters_deep(5), "layer_dims must be a list of the layers' sizes, got 5"),
        (lambda: course.initialize_parameters_deep([5]), "layer_dims must be at least two sizes from 1 on"),
        (lambda: course.initialize_parameters(3, 0, 1), r"layer_dims must be .* from 1 on, got \[3, 0, 1\]"),
        (lambda: course.two_layer_model(np.ones((3, 2)), [1, 0], 3), "layers_dims must be a list"),
        (lambda: course.L_layer_model(np.ones((3, 2)), [1, 0], [3, 1], num_iterations=2.5), "num_iterations must be"),
        (lambda: course.L_layer_model(np.ones(3), 1, [3, 1]), r"X \(3,\) and layers_dims \(3, 1\): expected X"),
        (lambda: course.linear_backward(np.ones((1, 2)), np.ones(3)), r"cache: expected \(A_prev, W, b\)"),
        (lambda: course.linear_activation_backward(1, (1, 2, 3), "relu"), "cache: expected .* got 3 values"),
        (lambda: course.L_model_backward([[0.5]], [1], []), "caches: expected one cache a layer, got none"),
        (lambda: course.update_parameters({"W1": [[1]]}, {"W1": [[1]]}, 0.1), "grads: expected dW1 for W1 .* got W1"),
        (lambda: course.update_parameters({}, {}, "fast"), "learning_rate must be a number, got 'fast'"),
        (lambda: course.compute_cost([0.5, 0.5], [1, 0]), r"AL: expected shape \(1, m\)"),
        (lambda: course.relu_backward([1, 2], [1]), r"dA has shape \(2,\), the cached Z \(1,\)"),
    ],
)
def test_what_does_not_fit_is_a_line_that_names_the_argument(call, words):
    with pytest.raises((DataError, ValueError, TypeError), match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_numpy_is_told_to_do_about_overflow_is_no_matter(backend: Backend):
    Z = backend.asarray(np.array([[-1e308, -800.0, -1e-310, 0.0, 800.0]]))
    A = backend.asarray(np.array([[1.0, 0.0, 1.0, 0.0, 1.0]]))
    with np.errstate(all="raise"):
        course.sigmoid(Z)
        course.relu(Z)
        assert float(course.compute_cost(A, [0, 0, 1, 0, 1])) == np.inf
        course.sigmoid_backward(A, Z)
        course.L_model_forward(Z, {"W1": [[1e10]], "b1": [[0.0]]})


def test_arrays_of_two_backends_are_refused():
    A, W, b = draws(1, (3, 2), (1, 3), (1, 1))
    with pytest.raises(DataError, match="one backend, got A on standin, W on numpy"):
        course.linear_forward(get_backend("standin").asarray(A), W, b)
