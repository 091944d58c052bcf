"""Every activation and its slope against exact values, PyTorch and the limits, on every backend as a training runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from traced import eagerly, on_backend

from dnn import functional
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend
from dnn.functional.activations import SELU_ALPHA, SELU_SCALE

RNG = np.random.default_rng(7)

NAMES = tuple(ACTIVATIONS)
"""The built-in ones; other tests may register more."""


def value_and_slope(name: str) -> Callable[..., Any]:
    activation = ACTIVATIONS[name]

    def both(xp, Z, dA):
        saved = {"Z": Z, "A": activation.forward(xp, Z)}
        return saved["A"], activation.backward(xp, dA, *(saved[what] for what in activation.saves))

    return both


# ------------------------------------------------------------------------------------- exact values

# z, g(z), g'(z) from mpmath with 700 digits, g' by a central difference of width 1e-30
EXACT = {
    "relu": """
          -20.5                       0.0                       0.0
           -6.5                       0.0                       0.0
          -2.75                       0.0                       0.0
          -1.25                       0.0                       0.0
         -0.125                       0.0                       0.0
           0.75                      0.75                       1.0
            2.5                       2.5                       1.0
            9.5                       9.5                       1.0
    """,
    "leaky_relu": """
          -20.5                    -0.205                      0.01
           -6.5                    -0.065                      0.01
          -2.75                   -0.0275                      0.01
          -1.25                   -0.0125                      0.01
         -0.125                  -0.00125                      0.01
           0.75                      0.75                       1.0
            2.5                       2.5                       1.0
            9.5                       9.5                       1.0
    """,
    "elu": """
          -20.5       -0.9999999987498471    1.2501528663867426e-09
           -6.5       -0.9984965608070224     0.0015034391929775724
          -2.75       -0.9360721387932924       0.06392786120670757
          -1.25       -0.7134952031398099        0.2865047968601901
         -0.125       -0.1175030974154046        0.8824969025845955
           0.75                      0.75                       1.0
            2.5                       2.5                       1.0
            9.5                       9.5                       1.0
    """,
    "selu": """
          -20.5       -1.7580993386494839     2.197892930352991e-09
           -6.5        -1.755456145393199      0.002643195454177982
          -2.75       -1.6457078101980818       0.11239153064929518
          -1.25        -1.254395446337865        0.5037038945095118
         -0.125      -0.20658211811354793         1.551517222733829
           0.75        0.7880257405166103        1.0507009873554805
            2.5        2.6267524683887014        1.0507009873554805
            9.5         9.981659379877065        1.0507009873554805
    """,
    "gelu": """
          -20.5    -2.206758018052147e-92    -4.523803306172878e-91
           -6.5   -2.6104003795084267e-10   -1.6950517937572625e-09
          -2.75     -0.008194348896400031     -0.022027533644320838
          -1.25      -0.13206221708356908      -0.12266158306942213
         -0.125     -0.056282721896235885        0.4007820643017934
           0.75        0.5800294857173488        0.9992257217392351
            2.5        2.4844758366855597         1.037611085908145
            9.5                       9.5                       1.0
    """,
    "gelu_tanh": """
          -20.5  -1.3502940601643467e-280  -1.2356213261882888e-278
           -6.5    -6.278258772591402e-13    -6.583473767764634e-12
          -2.75     -0.007723144073617969     -0.021948921593498216
          -1.25       -0.1322857970302854      -0.12249263224964864
         -0.125      -0.05628280137577661       0.40078459383720855
           0.75        0.5799605551656203        0.9989382561374143
            2.5         2.484915733910001         1.037951576212666
            9.5                       9.5                       1.0
    """,
    "silu": """
          -20.5   -2.5628133728889138e-08   -2.4377980832026195e-08
           -6.5     -0.009757684668790446     -0.008241854348961832
          -2.75      -0.16523828797852097      -0.09522302259939602
          -1.25      -0.27837517353163604     0.0063191550846875815
         -0.125      -0.05859882832828047        0.4376623797495416
           0.75        0.5093840243815447        0.8425999444967535
            2.5         2.310354549946891        1.0994011113415267
            9.5          9.49928896083865        1.0006361397152415
    """,
    "mish": """
          -20.5   -2.5628133744908682e-08    -2.437798086328384e-08
           -6.5      -0.00976500869207133     -0.008255353616806134
          -2.75      -0.17019307938137893      -0.10271700422611366
          -1.25       -0.3084139611415277      -0.01469756247301954
         -0.125      -0.06997990718000248         0.519606473544816
           0.75        0.6100183352182934         0.985758355716688
            2.5         2.471392304557881        1.0411295301313532
            9.5         9.499999893562803        1.0000002016545446
    """,
    "softplus": """
          -20.5    1.2501528656053015e-09    1.2501528648238605e-09
           -6.5     0.0015023101597542838     0.0015011822567369915
          -2.75      0.061967589003198625       0.06008665017400762
          -1.25        0.2519290813453729       0.22270013882530884
         -0.125        0.6325990353171691       0.46879062662624377
           0.75        1.1368710061148999         0.679178699175393
            2.5        2.5788897342925496        0.9241418199787564
            9.5         9.500074849028628        0.9999251537724894
    """,
    "softsign": """
          -20.5       -0.9534883720930233      0.002163331530557058
           -6.5       -0.8666666666666667      0.017777777777777778
          -2.75       -0.7333333333333333       0.07111111111111111
          -1.25       -0.5555555555555556       0.19753086419753085
         -0.125       -0.1111111111111111        0.7901234567901234
           0.75       0.42857142857142855       0.32653061224489793
            2.5        0.7142857142857143       0.08163265306122448
            9.5        0.9047619047619048      0.009070294784580499
    """,
    "hardswish": """
          -20.5                       0.0                       0.0
           -6.5                       0.0                       0.0
          -2.75      -0.11458333333333333       -0.4166666666666667
          -1.25       -0.3645833333333333       0.08333333333333333
         -0.125     -0.059895833333333336        0.4583333333333333
           0.75                   0.46875                      0.75
            2.5        2.2916666666666665        1.3333333333333333
            9.5                       9.5                       1.0
    """,
    "tanh": """
          -20.5                      -1.0     6.251528757339955e-18
           -6.5       -0.9999954793514042      9.04127675535057e-06
          -2.75       -0.9918597245682077       0.01621428677947907
          -1.25       -0.8482836399575129       0.28041486618043265
         -0.125      -0.12435300177159621        0.9845363309503934
           0.75        0.6351489523872873        0.5965858082813315
            2.5        0.9866142981514303       0.02659222668316062
            9.5        0.9999999887944072     2.241118549901845e-08
    """,
    "sigmoid": """
          -20.5    1.2501528648238605e-09    1.2501528632609782e-09
           -6.5     0.0015011822567369915     0.0014989287085690496
          -2.75       0.06008665017400762       0.05647624464487405
          -1.25       0.22270013882530884         0.173104786992497
         -0.125       0.46879062662624377       0.24902597501361748
           0.75         0.679178699175393       0.21789499376181404
            2.5        0.9241418199787564       0.07010371654510816
            9.5        0.9999251537724894     7.484062555283866e-05
    """,
    "identity": """
          -20.5                     -20.5                       1.0
           -6.5                      -6.5                       1.0
          -2.75                     -2.75                       1.0
          -1.25                     -1.25                       1.0
         -0.125                    -0.125                       1.0
           0.75                      0.75                       1.0
            2.5                       2.5                       1.0
            9.5                       9.5                       1.0
    """,
}

ABSOLUTE = {"tanh": 2.0, "sigmoid": 2.0, "gelu": 16.0}
"""Units of eps that these lose for large |Z|, where 1 − A², 1 − A and PyTorch's 1 + erf cancel: exact beside 1,
not beside A."""


def exact(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(EXACT[name].split(), np.float64).reshape(-1, 3)
    Z, A, slope = (table[:, column : column + 1].copy() for column in range(3))  # a plan takes dense arrays only
    return Z, A, slope


@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_are_the_exact_ones_to_12_digits(name, backend: Backend):
    Z, expected, slope = exact(name)
    atol = ABSOLUTE.get(name, 0) * np.finfo(np.float64).eps
    A, dZ = on_backend(backend, value_and_slope(name), Z, np.full(Z.shape, -3.0))
    np.testing.assert_allclose(A, expected, rtol=1e-12, atol=atol)
    np.testing.assert_allclose(dZ, -3 * slope, rtol=1e-12, atol=3 * atol)


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_they_are_exact_to_a_few_ulps_of_z(name, backend: Backend):
    Z, expected, slope = exact(name)
    eps = float(np.finfo(np.float32).eps)
    A, dZ = on_backend(backend, value_and_slope(name), Z.astype(np.float32), np.full(Z.shape, 3, np.float32))
    assert A.dtype == dZ.dtype == np.float32
    tolerance = 4 * (np.abs(expected) + np.abs(Z * slope)) + ABSOLUTE.get(name, 0)
    assert (np.abs(A - expected) <= eps * tolerance + np.finfo(np.float32).tiny).all()
    np.testing.assert_allclose(dZ, 3 * slope, rtol=4 * eps, atol=12 * eps)


def test_every_activation_has_exact_values_a_reference_in_pytorch_and_limits():
    for references in (EXACT, PYTORCHS, LIMITS):
        assert set(references) == set(NAMES)


def test_the_selu_constants_are_those_for_which_mean_0_and_variance_1_stay():
    """The moments of selu of a standard normal variable, by Simpson's rule: Klambauer et al. 2017, section 2."""
    steps = np.arange(-24_000, 24_001)  # the kink is at an even one, where two intervals of the rule meet
    z = steps / 2000
    weights = np.where(steps % 2, 4, 2) / 6000
    density = weights * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    A = functional.selu(np, z)
    assert (density * A).sum() == pytest.approx(0, abs=1e-12)
    assert (density * A * A).sum() == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------------------------------------ PyTorch

# by what torch.nn.functional calls it, and its settings: softplus otherwise is z beyond 20
PYTORCHS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("relu", "leaky_relu", "elu", "selu", "silu", "mish", "softsign", "hardswish")},
    **{name: (name, {}) for name in ("tanh", "sigmoid")},
    "gelu": ("gelu", {}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "softplus": ("softplus", {"threshold": 705}),
    "identity": ("threshold", {"threshold": -np.inf, "value": 0.0}),
}
PYTORCHS_ABSOLUTE = {**ABSOLUTE, "gelu_tanh": 16.0, "softsign": 2.0}
"""And what PyTorch loses where it has 1 + tanh, and the difference of two terms for the slope of softsign."""
SLOPE_HAS_ROOT = ("gelu", "gelu_tanh", "silu", "mish")
"""Beside it, a slope is a difference of terms of size 1."""

KINKS = [0.0, -0.0, 3.0, -3.0, np.nextafter(3, 0), np.nextafter(-3, 0), 5e-324, -5e-324, 1e-9, -1e-9]
LARGE = [sign * size for size in (20, 30, 700, 1e4) for sign in (1, -1)]


@pytest.mark.parametrize("rows", [1, 17], ids=["one row", "many rows"])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_are_pytorchs(name, rows, backend: Backend):
    torch = pytest.importorskip("torch")
    Z = np.concatenate([KINKS, LARGE, RNG.standard_normal(17 * 20 - len(KINKS) - len(LARGE)) * 4]).reshape(rows, -1)
    dA = RNG.standard_normal(Z.shape)
    logits = torch.tensor(Z, requires_grad=True)
    function, settings = PYTORCHS[name]
    expected = getattr(torch.nn.functional, function)(logits, **settings)
    expected.backward(torch.tensor(dA))
    A, dZ = on_backend(backend, value_and_slope(name), Z, dA)
    eps = np.finfo(np.float64).eps
    atol = PYTORCHS_ABSOLUTE.get(name, 0) * eps
    np.testing.assert_allclose(A, expected.detach().numpy(), rtol=1e-12, atol=atol)
    atol = max(4 * atol, 8 * eps * (name in SLOPE_HAS_ROOT))
    np.testing.assert_allclose(dZ, logits.grad.numpy(), rtol=1e-12, atol=atol)


# -------------------------------------------------------------------------------------------- kinks


@pytest.mark.parametrize(
    ("name", "z", "slope"),
    [
        *((name, zero, slope) for zero in (0.0, -0.0) for name, slope in (("relu", 0), ("leaky_relu", 0.01))),
        *(("elu", zero, 1) for zero in (0.0, -0.0)),
        *(("selu", zero, SELU_SCALE * SELU_ALPHA) for zero in (0.0, -0.0)),
        ("hardswish", -3.0, 0),
        ("hardswish", 3.0, 1),
    ],
)
def test_the_slope_at_a_kink_is_that_of_the_documented_side(name, z, slope, backend: Backend):
    _, dZ = on_backend(backend, value_and_slope(name), np.array([[z]]), np.array([[2.0]]))
    np.testing.assert_allclose(dZ, 2 * slope, rtol=1e-15)


def test_relu_has_slope_zero_at_zero_whatever_comes_down(backend: Backend):
    A, dA = np.array([[0.0, -0.0, 1.0, 0.0, np.nan]]), np.array([[5.0, 5.0, 5.0, np.inf, 5.0]])
    (dZ,) = on_backend(backend, functional.relu_backward, dA, A)
    np.testing.assert_array_equal(dZ, [[0, 0, 5, 0, 0]])


# ------------------------------------------------------------------------------------------- limits

# towards −∞ and +∞, g(z) is factor · z + term, and its slope is the factor
FLAT, LINE = (0.0, 0.0), (1.0, 0.0)
LIMITS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    **dict.fromkeys(("relu", "gelu", "gelu_tanh", "silu", "mish", "softplus", "hardswish"), (FLAT, LINE)),
    "leaky_relu": ((0.01, 0.0), LINE),
    "elu": ((0.0, -1.0), LINE),
    "selu": ((0.0, -SELU_SCALE * SELU_ALPHA), (SELU_SCALE, 0.0)),
    "softsign": ((0.0, -1.0), (0.0, 1.0)),
    "tanh": ((0.0, -1.0), (0.0, 1.0)),
    "sigmoid": (FLAT, (0.0, 1.0)),
    "identity": (LINE, LINE),
}


def check_limits(name: str, dtype: Any, run: Callable[..., list[np.ndarray]]) -> None:
    largest = np.finfo(dtype).max
    sizes = [largest, largest / 2, np.sqrt(largest), 4 * np.sqrt(largest)]
    Z = np.array([[-size for size in sizes], sizes], dtype)
    A, dZ = run(value_and_slope(name), Z, np.full(Z.shape, 2, dtype))
    assert A.dtype == dZ.dtype == dtype
    rtol = 4 * float(np.finfo(dtype).eps)
    near = 2 / float(np.sqrt(largest)) if name == "softsign" else 0  # which is there as 1 / z, not exponentially
    for row, (factor, term) in enumerate(LIMITS[name]):
        with np.errstate(over="ignore"):  # the largest number times selu's λ is not in the dtype
            expected = (factor * Z[row].astype(np.longdouble) + term).astype(dtype)
        np.testing.assert_allclose(A[row], expected, rtol=rtol + near)
        np.testing.assert_allclose(dZ[row], 2 * factor, rtol=rtol, atol=near)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_numbers_give_the_limits_and_never_nan(name, dtype, backend: Backend):
    check_limits(name, dtype, lambda *given: on_backend(backend, *given))


@pytest.mark.parametrize("name", NAMES)
def test_in_float16_too_the_largest_numbers_give_the_limits(name):
    check_limits(name, np.float16, eagerly)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_no_number_between_gives_nan(name, dtype):
    """Where exp and its powers overflow lies between what the tests above see."""
    Z = np.concatenate([sign * np.linspace(0, 1000, 40_001) for sign in (1, -1)]).astype(dtype)
    A, dZ = eagerly(value_and_slope(name), Z, np.ones_like(Z))
    assert np.isfinite(A).all() and np.isfinite(dZ).all()
    assert np.abs(dZ).max() < 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "relu"])
def test_nan_stays_nan(name, backend: Backend):
    A, _ = on_backend(backend, value_and_slope(name), np.array([[np.nan, 1.0]]), np.ones((1, 2)))
    assert np.isnan(A[0, 0]) and not np.isnan(A[0, 1])


@pytest.mark.parametrize("name", ["elu", "selu", "silu", "mish", "softplus"])
def test_far_below_zero_no_digit_is_lost(name, backend: Backend):
    """Where 1 + exp(z) is 1 to the last bit, and exp(z) what is left."""
    Z = np.array([[-40.0, -300.0, -700.0]])
    E = np.exp(Z)
    value, slope = {
        "elu": (-np.ones_like(Z), E),
        "selu": (np.full_like(Z, -SELU_SCALE * SELU_ALPHA), SELU_SCALE * SELU_ALPHA * E),
        "silu": (Z * E, (1 + Z) * E),
        "mish": (Z * E, (1 + Z) * E),
        "softplus": (E, E),
    }[name]
    A, dZ = on_backend(backend, value_and_slope(name), Z, np.ones_like(Z))
    np.testing.assert_allclose(A, value, rtol=1e-12)
    np.testing.assert_allclose(dZ, slope, rtol=1e-12)


@pytest.mark.parametrize("name", ["elu", "selu", "silu", "gelu", "gelu_tanh", "mish", "softsign", "hardswish", "tanh"])
def test_near_zero_no_digit_is_lost(name, backend: Backend):
    """Against two terms of the series, slope · z + curve · z², for z < 0."""
    Z = np.array([[-1e-7, -3e-8, -1e-12, -1e-300]])
    slope, curve = {
        "elu": (1, 0.5),
        "selu": (SELU_SCALE * SELU_ALPHA, SELU_SCALE * SELU_ALPHA / 2),
        "silu": (0.5, 0.25),
        "gelu": (0.5, np.sqrt(0.5 / np.pi)),
        "gelu_tanh": (0.5, np.sqrt(0.5 / np.pi)),
        "mish": (0.6, 0.32),
        "softsign": (1, 1),
        "hardswish": (0.5, 1 / 6),
        "tanh": (1, 0),
    }[name]
    A, dZ = on_backend(backend, value_and_slope(name), Z, np.ones_like(Z))
    np.testing.assert_allclose(A, slope * Z + curve * Z * Z, rtol=1e-12)
    np.testing.assert_allclose(dZ, slope + 2 * curve * Z, rtol=1e-12)


# -------------------------------------------------------------------------------------------- PReLU

PRELU_Z = np.array([[0.0, -0.0, 2.0, -3.0], [1.0, -1.0, -5.0, -0.5], [-2.0, 4.0, -1.0, 0.0]])
PRELU_SLOPE = np.array([0.25, -0.5, 0.0, 2.0])


def prelu_both(xp, dA, Z, slope):
    return functional.prelu(xp, Z, slope), *functional.prelu_backward(xp, dA, Z, slope)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prelu_has_a_slope_for_each_feature_also_at_zero(dtype, backend: Backend):
    dA = np.arange(1.0, 13.0).reshape(3, 4)
    A, dZ, dslope = on_backend(backend, prelu_both, *(array.astype(dtype) for array in (dA, PRELU_Z, PRELU_SLOPE)))
    assert A.dtype == dZ.dtype == dslope.dtype == dtype and dslope.shape == (4,)
    np.testing.assert_array_equal(A, [[0, 0, 2, -6], [1, 0.5, 0, -1], [-0.5, 4, 0, 0]])
    np.testing.assert_array_equal(dZ, [[0.25, -1, 3, 8], [5, -3, 0, 16], [2.25, 10, 0, 24]])
    np.testing.assert_array_equal(dslope, [9 * -2, 6 * -1, 7 * -5 + 11 * -1, 4 * -3 + 8 * -0.5])


@pytest.mark.parametrize("rows", [1, 40])
def test_prelu_and_its_gradients_are_pytorchs(rows, backend: Backend):
    torch = pytest.importorskip("torch")
    Z, dA, slope = RNG.standard_normal((rows, 4)) * 9, RNG.standard_normal((rows, 4)), PRELU_SLOPE
    Z[0, :2] = 0.0, -0.0
    logits, weight = torch.tensor(Z, requires_grad=True), torch.tensor(slope, requires_grad=True)
    expected = torch.nn.functional.prelu(logits, weight)
    expected.backward(torch.tensor(dA))
    A, dZ, dslope = on_backend(backend, prelu_both, dA, Z, slope)
    np.testing.assert_allclose(A, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(dZ, logits.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(dslope, weight.grad.numpy(), rtol=1e-12, atol=1e-13)
