"""The flat buffer with its named views, and the weights drawn into it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import shapes_of

import dnn
from dnn.backends import Backend, get_backend
from dnn.errors import DataError
from dnn.initializers import INITIALIZERS, initial_weights
from dnn.parameters import Parameters


def test_views_and_flat_buffer_are_the_same_memory(backend: Backend):
    parameters = Parameters(backend, shapes_of([3, 4, 2]), np.float32)
    assert list(parameters) == ["W1", "W2", "b1", "b2"] and len(parameters) == 4
    assert [view.shape for view in parameters.values()] == [(4, 3), (2, 4), (4,), (2,)]
    for i, view in enumerate(parameters.values(), start=1):
        view.fill(i)
    flat = backend.to_numpy(parameters.flat)
    assert [int((flat == i).sum()) for i in range(1, 5)] == [12, 8, 4, 2]
    assert flat.sum() == 12 + 16 + 12 + 8
    # weights first: what weight decay concerns is a prefix
    assert flat.nonzero()[0][:20].max() < (flat == 3).nonzero()[0].min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_view_starts_64_bytes_apart(dtype):
    parameters = Parameters(get_backend("numpy"), shapes_of([3, 5, 7, 1]), dtype)
    start = parameters.flat.ctypes.data
    assert all((view.ctypes.data - start) % 64 == 0 for view in parameters.values())
    assert all(view.flags.c_contiguous for view in parameters.values())


def test_assigning_copies_from_numpy_and_from_the_device(backend: Backend):
    parameters = Parameters(backend, shapes_of([3, 2]), np.float32)
    W1 = np.arange(6.0).reshape(2, 3)
    for value in (W1, W1.tolist(), backend.asarray(W1), backend.asarray(W1.astype(np.float32))):
        parameters["W1"] = np.zeros((2, 3))
        parameters["W1"] = value
        np.testing.assert_array_equal(backend.to_numpy(parameters["W1"]), W1)
    W1[...] = -1
    assert backend.to_numpy(parameters["W1"]).min() == 0


def test_assigning_the_wrong_shape_or_name_is_refused(backend: Backend):
    parameters = Parameters(backend, shapes_of([3, 2]), np.float32)
    with pytest.raises(DataError, match=r"parameter W1: expected shape \(2, 3\), got \(3, 2\)"):
        parameters["W1"] = np.zeros((3, 2))
    with pytest.raises(DataError, match=r"parameter b1: expected shape \(2,\), got \(\)"):
        parameters["b1"] = 1.0
    with pytest.raises(KeyError, match="no parameter 'W2'"):
        parameters["W2"] = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.full((2, 3), 1e300), "finite in float32"),
        ([[np.nan] * 3] * 2, "finite in float32"),
        (np.ones((2, 3), complex), "expected numbers, got complex128"),
        ([["a"] * 3] * 2, "expected numbers"),
        (np.ma.masked_greater(np.arange(6.0).reshape(2, 3), 4), "masked values, the first in row 1"),
        (list(np.ma.masked_less(np.ones((2, 3)), 2)), "masked values"),
        ([[1.0, 2.0, np.ma.masked], [1.0, 2.0, 3.0]], "masked values"),
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "rows of different lengths"),
        ([[1.0, 2.0, None], [1.0, 2.0, 3.0]], r"None in item \[0\]\[2\]"),
        (np.array([[1.0, 2.0, None], [1.0, 2.0, 3.0]], object), "None in item"),
        ({"W": np.ones((2, 3))}, "expected one array, got a dict"),
        (np.ones((2, 3), "M8[s]"), "expected numbers, got datetime64"),
    ],
)
def test_assigning_what_is_no_finite_number_is_refused(value, complaint, backend: Backend):
    parameters = Parameters(backend, shapes_of([3, 2]), np.float32)
    with pytest.raises(DataError, match=f"^parameter W1.*: .*{complaint}"):
        parameters["W1"] = value
    assert not backend.to_numpy(parameters.flat).any()


# ------------------------------------------------------------------------------------- initializers


OF_VARIANCE = {
    "he_normal": 2 / 300,
    "he_uniform": 2 / 300,
    "glorot_normal": 2 / 700,
    "glorot_uniform": 2 / 700,
    "lecun_normal": 1 / 300,
    "lecun_uniform": 1 / 300,
    "course_small": 1e-4,
    "course_scaled": 1 / 300,
}


@pytest.mark.parametrize(("initializer", "variance"), OF_VARIANCE.items())
def test_weights_have_the_papers_variance(initializer, variance):
    (W,) = initial_weights(initializer, [300, 400], seed=3)
    assert W.shape == (400, 300) and W.dtype == np.float64
    assert W.mean() == pytest.approx(0, abs=5 * np.sqrt(variance / W.size))
    assert W.var() == pytest.approx(variance, rel=0.02)
    bound = np.sqrt(3 * variance)
    if initializer.endswith("uniform"):
        assert 0.99 * bound < np.abs(W).max() <= bound
    else:
        # untruncated: of 120,000 normal draws some lie beyond four deviations
        assert np.abs(W).max() > 4 * np.sqrt(variance)


def test_the_test_above_is_of_every_initializer():
    # the others are no draws of independent numbers: see test_initializers
    assert set(INITIALIZERS) - {"orthogonal", "zeros"} == set(OF_VARIANCE)


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_one_seed_gives_the_same_bits_on_every_backend(initializer, backend: Backend):
    network = dnn.Network([5, 4, 3], output="softmax", initializer=initializer, seed=9, backend=backend.name)
    for layer, W in enumerate(initial_weights(initializer, [5, 4, 3], 9), start=1):
        np.testing.assert_array_equal(backend.to_numpy(network.parameters[f"W{layer}"]), W.astype(np.float32))
        assert not backend.to_numpy(network.parameters[f"b{layer}"]).any()


def test_a_layers_weights_do_not_hang_on_the_other_layers_sizes():
    # layer 2 has 4 inputs and 3 units in both, behind a first layer of another size
    first, second = initial_weights("he_normal", [5, 4, 3], 1), initial_weights("he_normal", [9, 4, 3], 1)
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0][:, 0], first[1].ravel()[:4])


def test_seeds_differ():
    draws = [initial_weights("he_normal", [5, 4], seed)[0] for seed in range(3)]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_known_weights_stay_what_they_are():
    # a network that was described by its seed must come out the same from every later version
    W1, W2 = initial_weights("he_normal", [2, 2, 1], 0)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 0, 1])))
    np.testing.assert_array_equal(W1, generator.standard_normal((2, 2)))
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 0, 2])))
    np.testing.assert_array_equal(W2, generator.standard_normal((1, 2)))
    legacy = np.random.RandomState(1)
    for W, shape in zip(initial_weights("course_scaled", [3, 2, 1], 1), [(2, 3), (1, 2)], strict=True):
        np.testing.assert_array_equal(W, legacy.randn(*shape) / np.sqrt(shape[1]))
