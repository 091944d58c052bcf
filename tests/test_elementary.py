"""The elementary functions against mpmath, in units in the last place, with NumPy and with fused multiply-adds.

float32 is compared with the float64 functions of NumPy and of `math`, float64 with mpmath.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest

from dnn.backends.codegen import elementary
from dnn.functional.special import normal_cdf

BOUND = 2.0
DTYPES = [np.float32, np.float64]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(elementary, name) for name in ("exp", "expm1", "log", "log1p", "tanh", "power", "sin", "cos")
}
EXACT = {name: getattr(mpmath, name) for name in FUNCTIONS if name != "log1p"} | {
    "log1p": lambda x: mpmath.log1p(x) if x > -0.5 else mpmath.log(1 + x)
}
WIDE: dict[str, Callable[..., Any]] = {name: getattr(np, name) for name in FUNCTIONS}
EVERY_FUNCTION = pytest.mark.parametrize("name", list(FUNCTIONS))
BOTH_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


# --------------------------------------------------------------------------------------------- arguments


@cache
def arguments(name: str, dtype: type, count: int) -> tuple[np.ndarray, ...]:
    """All exponents, the whole range of ordinary results and the places where digits are lost."""
    rng = np.random.default_rng(list(name.encode()))
    part = count // 5
    largest = math.log(np.finfo(dtype).max)
    digits = np.finfo(dtype).nmant
    bits = rng.integers(0, 2 ** (8 * dtype().itemsize), part, dtype=f"u{dtype().itemsize}").view(dtype)
    bits = np.where(np.isfinite(bits), bits, dtype(1))
    signs = rng.choice([-1.0, 1.0], part)
    if name == "power":
        bases = np.concatenate(
            [
                np.exp(rng.uniform(-largest, largest, part)),
                1 + signs * 2.0 ** -rng.uniform(1, digits - 2, part),
                rng.uniform(0, 4, part),
                np.abs(bits),
            ]
        ).astype(dtype)
        with np.errstate(all="ignore"):
            exponents = rng.uniform(-largest - 0.72 * digits, largest, 4 * part) / np.log(bases.astype(np.float64))
        negative = -rng.uniform(0, 10, part).astype(dtype)
        x = np.concatenate([bases, negative])
        with np.errstate(over="ignore"):
            y = np.concatenate([exponents, rng.integers(-30, 30, part)]).astype(dtype)
        fine = np.isfinite(x) & np.isfinite(y) & (x != 0)
        return x[fine], y[fine]
    low, high = {
        "exp": (-largest - 0.72 * digits, largest),
        "expm1": (-40, largest),
        "log": (0.25, 4),
        "log1p": (-1, 4),
        "tanh": (-20, 20),
    }.get(name, (-100, 100))
    small = signs * 2.0 ** rng.uniform(-digits - 6, 3, part)
    steps = np.arange(1, part + 1) * (math.pi / 2)  # where sine or cosine vanish
    special = steps if name in ("sin", "cos") else 1 + signs * 2.0 ** -rng.uniform(1, digits, part)
    x = np.concatenate([bits, rng.uniform(low, high, part), rng.uniform(-1, 1, part), small, special]).astype(dtype)
    return (x[x > {"log": 0, "log1p": -1}.get(name, -np.inf)],)


# -------------------------------------------------------------------------------------------- references


@cache
def reference(name: str, dtype: type, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact results, rounded, and by how many ulp they differ from that."""
    inputs = arguments(name, dtype, count)
    if dtype is np.float32:
        with np.errstate(all="ignore"):
            wide = WIDE[name](*(x.astype(np.float64) for x in inputs))
            rounded = wide.astype(dtype)
            return rounded, np.where(np.isfinite(rounded), (wide - rounded) / np.spacing(np.abs(rounded)), 0.0)
    rounded, offsets = np.empty(inputs[0].shape), np.zeros(inputs[0].shape)
    with mpmath.workprec(120):
        for i, numbers in enumerate(zip(*(x.tolist() for x in inputs), strict=True)):
            exact = EXACT[name](*map(mpmath.mpf, numbers))
            rounded[i] = float(exact)
            if math.isfinite(rounded[i]):
                offsets[i] = float((exact - rounded[i]) / math.ulp(rounded[i]))
    return rounded, offsets


def worst_error(function: Callable[..., Any], name: str, dtype: type, count: int, xp: Any = np) -> float:
    """The largest error in ulp; infinite where only one of the two is finite."""
    rounded, offsets = reference(name, dtype, count)
    with np.errstate(all="ignore"):
        got = function(xp, *(xp.array(x) if xp is FUSED else x for x in arguments(name, dtype, count)))
        got = getattr(got, "value", got)
        errors = np.abs((got.astype(np.float64) - rounded) / np.spacing(np.abs(rounded)) - offsets)
    assert got.dtype == dtype
    return float(np.max(np.where(got == rounded, np.abs(offsets), np.where(np.isnan(errors), np.inf, errors))))


class Fused:
    """An array of which a product is added unrounded, as a target does that contracts a * b + c.

    It has the operations that the code generator has, and no others.
    """

    def __init__(self, value: np.ndarray, product: np.ndarray | None = None) -> None:
        self.value, self.product = value, product

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    def astype(self, dtype: type) -> Fused:
        return Fused(self.value.astype(dtype))

    def view(self, dtype: type) -> Fused:
        return Fused(self.value.view(dtype))

    def __bool__(self) -> bool:
        raise TypeError("control flow on the values of an array")

    def __neg__(self) -> Fused:
        return Fused(-self.value)

    def __invert__(self) -> Fused:
        return Fused(~self.value)

    def _sum(self, other: Any, sign: int) -> Fused:
        a, b = self.value, plain(other)
        products = [getattr(x, "product", None) for x in (self, other)]
        if products[0] is not None:
            a, wide = products[0], products[0].dtype
        elif products[1] is not None:
            b, wide = products[1], products[1].dtype
        else:
            return Fused(a + b if sign > 0 else a - b)
        a, b = np.asarray(a, wide), np.asarray(b, wide)
        return Fused((a + b if sign > 0 else a - b).astype(self.dtype))

    def __add__(self, other: Any) -> Fused:
        return self._sum(other, 1)

    def __sub__(self, other: Any) -> Fused:
        return self._sum(other, -1)

    def __rsub__(self, other: Any) -> Fused:
        return Fused(np.full_like(self.value, other))._sum(self, -1)

    def __mul__(self, other: Any) -> Fused:
        if self.dtype.kind != "f":
            return Fused(self.value * plain(other))
        wide = np.float64 if self.dtype == np.float32 else np.longdouble
        a, b = self.value, np.asarray(plain(other), self.dtype)
        return Fused(a * b, a.astype(wide) * b.astype(wide))


def plain(x: Any) -> Any:
    return x.value if isinstance(x, Fused) else x


def _operator(name: str) -> Callable[..., Fused]:
    return lambda self, other: Fused(getattr(self.value, name)(plain(other)))


for _name in ("truediv", "rtruediv", "and", "or", "xor", "lshift", "rshift", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Fused, f"__{_name}__", _operator(f"__{_name}__"))
Fused.__radd__, Fused.__rmul__ = Fused.__add__, Fused.__mul__  # type: ignore[attr-defined]


class _FusedModule:
    def __init__(self) -> None:
        self.array = Fused
        for name in ("where", "absolute", "sqrt", "floor", "rint", "maximum", "minimum", "copysign", "isnan"):
            setattr(self, name, self._function(getattr(np, name)))
        self.exp = elementary.exp.__get__(self)

    def _function(self, function: Callable[..., Any]) -> Callable[..., Fused]:
        return lambda *operands: Fused(function(*map(plain, operands)))


FUSED = _FusedModule()


# ------------------------------------------------------------------------------------------------- tests


@EVERY_FUNCTION
def test_float64_is_within_two_ulp_of_mpmath(name: str) -> None:
    assert worst_error(FUNCTIONS[name], name, np.float64, 2_000) <= BOUND


@EVERY_FUNCTION
def test_float32_is_within_two_ulp(name: str) -> None:
    assert worst_error(FUNCTIONS[name], name, np.float32, 100_000) <= BOUND


@pytest.mark.slow
@EVERY_FUNCTION
def test_float64_is_within_two_ulp_of_mpmath_on_a_dense_sample(name: str) -> None:
    assert worst_error(FUNCTIONS[name], name, np.float64, 100_000) <= BOUND
    assert worst_error(FUNCTIONS[name], name, np.float64, 100_000, FUSED) <= BOUND


@EVERY_FUNCTION
@BOTH_DTYPES
def test_fused_multiply_adds_keep_the_bound_and_the_generators_operations_suffice(name: str, dtype: type) -> None:
    assert worst_error(FUNCTIONS[name], name, dtype, 2_000, FUSED) <= BOUND


@BOTH_DTYPES
def test_a_wrong_coefficient_is_caught(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst_error(elementary.exp, "exp", dtype, 2_000) <= BOUND
    constants = f"_{np.dtype(dtype).name.upper()}"
    right = getattr(elementary, constants)
    first, *others = right.exp_terms
    wrong = replace(right, exp_terms=(first * (1 + 100 * np.finfo(dtype).eps), *others))
    monkeypatch.setattr(elementary, constants, wrong)
    assert worst_error(elementary.exp, "exp", dtype, 2_000) > BOUND


def same(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where two results agree: exactly, signs of zeros included, if the expected one is not finite or zero."""
    with np.errstate(invalid="ignore"):
        close = np.abs(got - expected) <= 4 * np.spacing(np.abs(expected))
    zeros = (got == expected) & (np.signbit(got) == np.signbit(expected))
    return np.where(np.isnan(expected), np.isnan(got), np.where(np.isinf(expected) | (expected == 0), zeros, close))


def special_values(dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    ordinary = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 2.5, 3.0, -3.0, 4.0, 2.0**24 + 1, 2.0**53 - 1]
    extremes = [info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal]
    return np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, *ordinary, *extremes], dtype)


@EVERY_FUNCTION
@BOTH_DTYPES
def test_infinities_nans_zeros_and_domain_errors_are_those_of_numpy(name: str, dtype: type) -> None:
    values = special_values(dtype)
    inputs = [a.ravel() for a in np.meshgrid(values, values)] if name == "power" else [values]
    with np.errstate(all="ignore"):
        expected = WIDE[name](*inputs).astype(dtype)
        assert (wrong := ~same(FUNCTIONS[name](np, *inputs), expected)).sum() == 0, [x[wrong] for x in inputs]
        fused = FUNCTIONS[name](FUSED, *map(Fused, inputs)).value
        assert (wrong := ~same(fused, expected)).sum() == 0, [x[wrong] for x in inputs]


@EVERY_FUNCTION
@BOTH_DTYPES
def test_arguments_with_finite_results_give_no_warning(name: str, dtype: type) -> None:
    finite = np.isfinite(reference(name, dtype, 2_000)[0])
    FUNCTIONS[name](np, *(x[finite] for x in arguments(name, dtype, 2_000)))


@pytest.mark.parametrize("name", ["tanh"])
@BOTH_DTYPES
def test_bounded_functions_never_warn(name: str, dtype: type) -> None:
    FUNCTIONS[name](np, special_values(dtype))


@BOTH_DTYPES
def test_odd_functions_are_odd_and_sizes_stay_below_one(dtype: type) -> None:
    x = np.abs(arguments("tanh", dtype, 2_000)[0])
    for function in (elementary.tanh, elementary.sin):
        y = function(np, x)
        np.testing.assert_array_equal(function(np, -x), -y)
        assert np.all(np.abs(y) <= 1)


def test_the_digits_of_a_turn_are_right() -> None:
    with mpmath.workprec(1_400):
        assert int(mpmath.floor(mpmath.mpf(2) ** elementary._TURN_BITS / (2 * mpmath.pi))) == elementary._TURN


# ------------------------------------------------------------------------------ the normal distribution


@BOTH_DTYPES
def test_the_normal_distribution_keeps_its_digits_in_both_tails(dtype: type) -> None:
    lowest = -13.0 if dtype is np.float32 else -37.0  # beyond, numbers have fewer digits
    z = np.concatenate([np.linspace(lowest, -lowest, 3000), np.linspace(-1, 1, 1000)]).astype(dtype)
    for xp, given in ((np, z), (FUSED, Fused(z))):
        found = normal_cdf(xp, given)
        found = getattr(found, "value", found).astype(np.float64)
        with mpmath.workprec(120):
            exact = [mpmath.ncdf(mpmath.mpf(float(number))) for number in z]
            errors = np.array([float(abs(mpmath.mpf(a) / b - 1)) for a, b in zip(found, exact, strict=True)])
        # exp(-z²/2) of a rounded square
        bounds = (5 + np.minimum(z, 0).astype(np.float64) ** 2 / 4) * np.finfo(dtype).eps
        assert (errors <= bounds).all(), z[errors > bounds]


@BOTH_DTYPES
def test_the_normal_distribution_has_its_limits(dtype: type) -> None:
    z = special_values(dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = normal_cdf(np, z)
    assert found.dtype == dtype and np.isnan(found[np.isnan(z)]).all()
    assert (found[z > 40] == 1).all() and (found[z < -40] == 0).all()
    assert np.all(np.abs(found[z == 0] - 0.5) <= np.finfo(dtype).eps)
