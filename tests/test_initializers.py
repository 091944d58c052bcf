"""Initial weights: their distribution, their bits, and what is refused. See also test_parameters.py."""

from __future__ import annotations

import numpy as np
import pytest

from dnn.initializers import INITIALIZERS, check_initializer, initial_weights, weights

N_OUT, N_IN = 400, 300

VARIANCES = {
    "he": 2 / N_IN,
    "glorot": 2 / (N_IN + N_OUT),
    "lecun": 1 / N_IN,
    "course_small": 1e-4,
    "course_scaled": 1 / N_IN,
}


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


# ------------------------------------------------------------------------------------ distributions


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name not in ("orthogonal", "zeros")])
def test_weights_have_mean_zero_and_the_variance_of_their_paper(name):
    variance = VARIANCES.get(name) or VARIANCES[name.split("_")[0]]
    W = weights(name, (N_OUT, N_IN), generator())
    assert W.shape == (N_OUT, N_IN) and W.dtype == np.float64
    assert W.mean() == pytest.approx(0, abs=5 * np.sqrt(variance / W.size))
    assert W.var() == pytest.approx(variance, rel=0.02)
    if name.endswith("uniform"):
        bound = np.sqrt(3 * variance)
        assert 0.99 * bound < np.abs(W).max() <= bound
    else:
        assert np.abs(W).max() > 4 * np.sqrt(variance)  # of 120,000 untruncated draws some lie beyond four deviations


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30), (1, 30), (30, 1), (1, 1)], ids=str)
def test_the_shorter_side_of_orthogonal_weights_is_orthonormal(shape):
    W = weights("orthogonal", shape, generator())
    assert W.shape == shape and W.dtype == np.float64 and W.flags.c_contiguous
    gram = W.T @ W if shape[0] >= shape[1] else W @ W.T
    np.testing.assert_allclose(gram, np.eye(min(shape)), rtol=0, atol=1e-12)


def test_orthogonal_weights_of_a_transposed_draw_are_the_transposed_weights():
    class Draws:
        def __init__(self, normal: np.ndarray) -> None:
            self.normal = normal

        def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
            assert self.normal.shape == shape
            return self.normal

    normal = generator().standard_normal((7, 4))
    tall, wide = (weights("orthogonal", draw.shape, Draws(draw)) for draw in (normal, normal.T))
    np.testing.assert_array_equal(wide, tall.T)


def test_orthogonal_weights_are_spread_uniformly_not_with_the_signs_of_the_library():
    """A uniform orthogonal matrix has entries of mean 0 and variance 1/n; Householder's QR alone leaves R < 0."""
    draws = np.array([weights("orthogonal", (3, 3), generator(seed)) for seed in range(4000)])
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=5 * np.sqrt(1 / 3 / 4000))
    np.testing.assert_allclose((draws * draws).mean(axis=0), 1 / 3, atol=0.03)
    determinants = np.linalg.det(draws)
    assert abs(np.sign(determinants).mean()) < 5 / np.sqrt(4000)


def test_orthogonal_weights_are_the_gram_schmidt_basis_of_the_draw():
    normal = generator().standard_normal((6, 4))
    basis: list[np.ndarray] = []
    for column in normal.T:
        rest = column - sum((column @ q) * q for q in basis)
        basis.append(rest / np.linalg.norm(rest))
    np.testing.assert_allclose(weights("orthogonal", (6, 4), generator()), np.array(basis).T, atol=1e-13)


@pytest.mark.parametrize("constant", [0, 1, -2.5, 0.1, np.float32(0.1), np.int64(3)])
def test_a_number_is_the_value_of_every_weight(constant):
    for W, shape in zip(initial_weights(constant, [4, 3, 2], seed=1), [(3, 4), (2, 3)], strict=True):
        assert W.shape == shape and W.dtype == np.float64
        np.testing.assert_array_equal(W, float(constant))


def test_zeros_are_zero():
    W1, W2 = initial_weights("zeros", [4, 3, 2], seed=1)
    assert W1.shape == (3, 4) and W2.shape == (2, 3)
    assert not W1.any() and not W2.any() and W1.dtype == np.float64


# --------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_seed_gives_the_same_bits_again_and_another_seed_others(name):
    first, again, other = (initial_weights(name, [9, 8, 7], seed) for seed in (5, 5, 6))
    for W, same, different in zip(first, again, other, strict=True):
        assert W.tobytes() == same.tobytes()
        assert (W.tobytes() == different.tobytes()) == (name == "zeros")


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if not name.startswith("course")])
def test_a_layers_weights_are_one_draw_from_its_own_generator(name):
    for layer, W in enumerate(initial_weights(name, [5, 4, 6, 2], seed=11), start=1):
        own = np.random.Generator(np.random.PCG64(np.random.SeedSequence([11, 0, layer])))
        assert W.tobytes() == weights(name, W.shape, own).tobytes()


@pytest.mark.parametrize(
    ("name", "scaled"), [("course_small", lambda draw, n: draw * 0.01), ("course_scaled", lambda d, n: d / np.sqrt(n))]
)
def test_the_assignments_weights_are_drawn_in_order_from_the_legacy_generator(name, scaled):
    legacy = np.random.RandomState(3)
    for W in initial_weights(name, [5, 4, 1], seed=3):
        assert W.tobytes() == scaled(legacy.randn(*W.shape), W.shape[1]).tobytes()


def test_known_draws_stay_what_they_are():
    # a network that was described by its seed must come out the same from every later version
    of_seed_0 = {
        "he_normal": [-3.8066885920569278, 0.15953457571384078],
        "glorot_uniform": [0.3466037777905453, -0.2056338875504129],
        "lecun_normal": [-2.691735317308925, 0.11280798032097551],
        "course_small": [0.009500884175255894, -0.001513572082976979],
    }
    for name, expected in of_seed_0.items():
        assert initial_weights(name, [3, 2, 1], seed=0)[1].ravel().tolist() == expected, name


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("name", [*INITIALIZERS, 0, -1.5, np.float32(2), np.int8(1)])
def test_names_and_finite_numbers_are_initializers(name):
    check_initializer(name)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("he_norml", r"must be one of he_normal, .* or a finite number, got 'he_norml': did you mean he_normal\?$"),
        ("ortogonal", r"got 'ortogonal': did you mean orthogonal\?$"),
        ("zero", r"got 'zero': did you mean zeros\?$"),
        ("q", "got 'q'$"),
        ("", "got ''$"),
        (None, "got None$"),
        (True, "got True$"),
        (np.True_, "got .*True.*$"),
        (["he_normal"], r"got \['he_normal'\]$"),
        (1j, "got 1j$"),
        (float("nan"), "^initializer must be finite where it is a number, got nan$"),
        (float("-inf"), "got -inf$"),
        (np.float32("inf"), "must be finite .*inf"),
        (10**400, "must be finite"),
    ],
)
def test_another_initializer_is_refused_with_the_nearest_name(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_initializer(wrong)
    with pytest.raises(ValueError, match=complaint):
        weights(wrong, (3, 2), generator())
