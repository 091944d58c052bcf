"""Plans: what can be traced and what is refused, NumPy's dtypes, and that every way of running one gives the same."""

from __future__ import annotations

import gc
import os
import random
import re
import weakref
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import numpy as np
import pytest
from sweeps import covering
from traced import KERNELS, WAYS, compiled, eagerly, planned, results_of, runner, traced

from dnn import functional
from dnn.backends import get_backend
from dnn.backends.plan import Plan, PlanError, schedule
from dnn.backends.plan.fusion import Loop, Product, fuse
from dnn.backends.plan.order import keeps_order
from dnn.backends.plan.stepwise import Stepwise
from dnn.optimizers import SGD, Adam, Momentum

RNG = np.random.default_rng(5)
X = RNG.standard_normal((6, 4))


@pytest.fixture(params=[*WAYS, *KERNELS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != WAYS[0]:
        pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    # small as these arrays are, each thread is to have its share
    monkeypatch.setattr(schedule, "MIN_MACS_PER_THREAD", 1)
    return request.param


# ----------------------------------------------------------------------------- what cannot be part of a plan


def branching(xp, Z):
    if Z > 0:
        return Z
    return -Z


def unknown(xp, Z):
    return xp.fft(Z)


def by_float(xp, Z):
    return Z * float(xp.max(Z))


def by_loop(xp, Z):
    return sum(row for row in Z)


def in_place(xp, Z):
    Z[0] = 0
    return Z


def in_place_operator(xp, Z):
    Z[0] += 1
    return Z


def of_numpy(xp, Z):
    return np.sum(Z, out=None)


def as_array(xp, Z):
    return np.asarray(Z)


def of_wrong_shapes(xp, Z):
    return Z + xp.arange(7)


def three_axes(xp, Z):
    return Z * 2 + Z.reshape(1, 6, 4)


def of_a_string(xp, Z):
    return Z + "1"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (branching, "xp.where instead of `if`"),
        (unknown, "xp.fft"),
        (by_float, "float() reads values"),
        (by_loop, "a loop over an array"),
        (in_place, "cannot be written in place"),
        (in_place_operator, "indexing"),
        (of_numpy, "of_numpy"),
        (as_array, "np.asarray reads values"),
        (of_wrong_shapes, "shapes (6, 4) and (7,)"),
        (three_axes, "at most two axes"),
        (of_a_string, "of_a_string"),
    ],
)
def test_what_cannot_be_traced_is_one_error_that_names_function_and_line(function, words):
    with pytest.raises(PlanError) as error:
        planned(function, X)
    message = str(error.value)
    assert words in message and "\n" not in message
    assert re.search(r"test_plan\.py:\d+|numpy", message)


def test_storing_another_shape_or_dtype_is_refused():
    plan = Plan()
    value = plan.call(lambda xp, Z: Z * 2, plan.array("X", X))
    for buffer in (plan.buffer("out", (4, 6), np.float64), plan.buffer("out", (6, 4), np.float32)):
        with pytest.raises(PlanError, match="out is"):
            plan.store(buffer, value)


def test_a_value_read_before_its_memory_was_overwritten_cannot_be_used_after_it():
    plan = Plan()
    theta = plan.array("theta", X)
    before = plan.read(theta)
    plan.call(lambda xp, a: a + 1, before, into=theta)
    with pytest.raises(PlanError, match="overwritten"):
        plan.call(lambda xp, a: a * 2, before)
    plan.call(lambda xp, a: a * 2, plan.read(theta))


# ------------------------------------------------------------------------------------------- dtypes

DTYPES = [np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]


@pytest.mark.parametrize("name", ["add", "multiply", "divide", "maximum", "greater", "floor_divide", "equal"])
@pytest.mark.parametrize(("first", "second"), list(product(DTYPES, DTYPES)), ids=lambda d: d.__name__)
def test_dtypes_are_promoted_as_numpy_does(name, first, second):
    a, b = np.ones((2, 3), first), np.ones((2, 3), second)
    try:
        expected = getattr(np, name)(a, b).dtype
    except TypeError:
        with pytest.raises(PlanError):
            planned(lambda xp, a, b: getattr(xp, name)(a, b), a, b)
        return
    plan = planned(lambda xp, a, b: getattr(xp, name)(a, b), a, b)
    assert plan.buffers[-1].dtype == expected


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("number", [2, 2.5])
def test_python_numbers_are_weak(dtype, number):
    a = np.ones((2, 3), dtype)
    for function in (lambda xp, a: a * number, lambda xp, a: number - a, lambda xp, a: xp.where(a > 1, a, number)):
        assert planned(function, a).buffers[-1].dtype == function(np, a).dtype


def test_scalars_of_a_step_are_weak_and_computed_once_in_float64(way):
    def update(xp, theta, rate):
        return theta - (1 - rate) ** 0.5 * theta / 3

    theta = RNG.standard_normal(1000).astype(np.float32)
    (result,) = traced(way, update, theta, 0.36)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, update(np, theta, 0.36), rtol=1e-6)
    operations = fuse(planned(update, theta, 0.36)).operations
    assert [op.kind for op in operations if isinstance(op, Loop)] == ["single", "rows"]


# ------------------------------------------------------------------------- every function, every way

SHAPES = [(1, 1), (1, 7), (6, 1), (5, 3), (33, 17), (3, 70)]
SPECIAL = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0, 1e-310, -1e-310, 1.0, -1.0, 0.5, 88.8, -104.0, 710.0, 1e300])


def numbers(shape, dtype, special=False):
    found = RNG.standard_normal(shape) * 3
    if special:
        places = RNG.random(shape) < 0.5
        found[places] = RNG.choice(SPECIAL, places.sum())
    with np.errstate(over="ignore"):
        return found.astype(dtype)


def one_hot_of(shape):
    return RNG.integers(0, shape[1], (shape[0], 1)) == np.arange(shape[1])


ELEMENTWISE = {
    "relu": (functional.relu, 1),
    "relu_backward": (functional.relu_backward, 2),
    "tanh": (functional.tanh, 1),
    "tanh_backward": (functional.tanh_backward, 2),
    "sigmoid": (functional.sigmoid, 1),
    "sigmoid_backward": (functional.sigmoid_backward, 2),
    "gelu": (functional.gelu, 1),
    "gelu_backward": (functional.gelu_backward, 2),
    "softmax": (functional.softmax, 1),
    "sigmoid_cross_entropy": (functional.sigmoid_cross_entropy, 2),
    "sigmoid_cross_entropy_backward": (functional.sigmoid_cross_entropy_backward, 2),
    "squared_error": (functional.squared_error, 2),
    "squared_error_backward": (functional.squared_error_backward, 2),
    "normal_cdf": (functional.normal_cdf, 1),
    "correct_labels": (functional.correct_labels, 2),
    "mean_loss": (functional.mean_loss, 1),
}


def compare(result, expected, dtype, terms=None):
    """float64 within 1e-13 relative, float32 within 4 ulp, of the result or of the largest of its terms."""
    tolerance = 1e-13 if dtype == np.float64 else 4 * float(np.finfo(np.float32).eps)
    assert result.dtype == expected.dtype
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(result, expected)
        return
    scale = 0 if terms is None else tolerance * terms
    tiny = float(np.finfo(expected.dtype).tiny)  # below it numbers have fewer digits
    np.testing.assert_allclose(
        result, expected.reshape(result.shape), rtol=tolerance, atol=max(scale, 8 * tiny * 1e-16)
    )


@covering(
    "name, dtype, way", ELEMENTWISE, [np.float32, np.float64], [*WAYS, *KERNELS], times=4, indirect=["way"], ids=str
)
def test_a_function_is_itself_however_it_is_run(name, dtype, way):
    function, arity = ELEMENTWISE[name]
    for shape in SHAPES:
        arrays = [numbers(shape, dtype) for _ in range(arity)]
        expected = eagerly(function, *arrays)
        for result, of_numpy in zip(traced(way, function, *arrays), expected, strict=True):
            compare(result, of_numpy, dtype, terms=30)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name not in ("mean_loss",)])
def test_infinities_nans_signed_zeros_and_subnormals_are_numpys(name, dtype, way):
    function, arity = ELEMENTWISE[name]
    arrays = [numbers((40, 13), dtype, special=True) for _ in range(arity)]
    (expected,) = eagerly(function, *arrays)
    (result,) = traced(way, function, *arrays)
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(result, expected)
        return
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
    finite = np.isfinite(expected)
    compare(result[finite], expected[finite], dtype, terms=30)
    if name == "tanh":
        np.testing.assert_array_equal(np.signbit(result[expected == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] > 1])
def test_the_softmax_loss_is_itself_however_it_is_run(shape, dtype, way):
    def loss(xp, Z, labels):
        Y = functional.one_hot(xp, labels, Z.shape[1])
        losses = functional.softmax_cross_entropy(xp, Z, Y)
        P = functional.softmax(xp, Z)
        gradient = functional.softmax_cross_entropy_backward(xp, Z, Y)
        return losses, gradient, P, functional.correct_classes(xp, P, labels), functional.mean_loss(xp, losses)

    Z, labels = numbers(shape, dtype), RNG.integers(0, shape[1], (shape[0], 1))
    for result, expected in zip(traced(way, loss, Z, labels), eagerly(loss, Z, labels), strict=True):
        compare(result, expected, dtype, terms=10)


UPDATES = {
    "sgd": (SGD(0.1), ()),
    "momentum": (Momentum(0.1), ()),
    "adam": (Adam(0.01, 0.9, 0.99), (0.9, 0.99)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("size", [1, 7, 1000, 70_000])
def test_an_update_is_itself_in_place(name, dtype, size, way):
    optimizer, scalars = UPDATES[name]
    arrays = [numbers(size, dtype) for _ in range(2 + len(optimizer.arrays))]
    arrays[-1] = np.abs(arrays[-1])  # v is a sum of squares
    rate = optimizer.learning_rate
    expected = eagerly(optimizer.update, *arrays[:2], rate, *arrays[2:], *scalars)
    plan = Plan()
    places = [plan.array(f"a{i}", array.copy()) for i, array in enumerate(arrays)]
    numbers_of_step = [plan.array(f"s{i}", np.array([number]), weak=True) for i, number in enumerate(scalars)]
    state = *places[2:], *numbers_of_step
    kept = places[0], *state
    plan.call(optimizer.update, *places[:2], rate, *state, into=kept if len(kept) > 1 else kept[0])
    runner(plan, way)()
    for place, of_numpy in zip(kept, expected, strict=True):
        terms = float(np.abs(of_numpy).max()) if of_numpy.size else 1
        compare(place.array, of_numpy.reshape(place.shape).astype(place.dtype), dtype, terms=terms)


# ---------------------------------------------------------------------------------- random graphs


def random_function(seed: int, n: int):
    """A function of matrices, rows, columns and numbers in which all is exact: whole numbers of float64."""

    def function(xp, E, F, R, C, S, labels, W, V):
        choose = random.Random(seed)
        elements, rows, columns, scalars, flats = [E, F], [R], [C], [S], [V]

        def one_of(*lists):
            return choose.choice([value for values in lists for value in values])

        def held(value):
            return xp.maximum(xp.minimum(value, 50), -50)

        def turned(a, b, by, axis=0):
            """The end of one array and the beginning of another."""
            if by == 0:
                return a
            if axis == 1:
                return xp.concatenate([a[:, by:], b[:, :by]], axis=1)
            return xp.concatenate([a[by:], b[:by]])

        for _ in range(choose.randint(2, 12)):
            a, b = one_of(elements, elements, rows, columns, scalars), one_of(elements, rows, columns, scalars)
            e = one_of(elements)
            kind = choose.randint(0, 21)
            i, j = choose.randrange(len(E)), choose.randrange(n)
            if kind == 0:
                elements.append(held(e + b))
            elif kind == 1:
                elements.append(held(e * b))
            elif kind == 2:
                elements.append(held(e - a))
            elif kind == 3:
                elements.append(xp.where(a > b, e, b + 0 * e))
            elif kind == 4:
                elements.append(xp.maximum(e, b))
            elif kind == 5:
                rows.append(held(xp.sum(e, axis=1, keepdims=True)))
            elif kind == 6:
                columns.append(held(xp.sum(e, axis=0)))
            elif kind == 7:
                scalars.append(held(xp.sum(one_of(elements, rows, columns))))
            elif kind == 8:
                rows.append(xp.max(e, axis=1, keepdims=True))
            elif kind == 9:
                rows.append(xp.argmax(e, axis=1, keepdims=True).astype(np.float64))
            elif kind == 10:
                elements.append(held(xp.dot(e, W)))
            elif kind == 11:
                elements.append((xp.arange(n) == labels).astype(np.float64) + xp.absolute(e))
            elif kind == 12:
                rows.append(one_of(rows) + one_of(rows) * 2)
                columns.append(xp.minimum(one_of(columns), one_of(columns)))
            elif kind == 13:
                elements.append(held(xp.dot(e, W) + b))
                flats.append(held(one_of(flats) + one_of(scalars)))
            elif kind == 14:
                elements.append(turned(e, one_of(elements), i))
            elif kind == 15:
                elements.append(turned(e, one_of(elements), j, axis=1))
            elif kind == 16:
                elements.append(held(one_of(elements) - one_of(elements)[i : i + 1]))
                rows.append(e[:, j : j + 1])
            elif kind == 17:
                columns.append(held(xp.sum(e[i:, j:], axis=1, keepdims=True)[:1] + one_of(columns)))
                columns[-1] = columns[-1].reshape(n)
                flats.append(turned(one_of(flats), one_of(flats) + 1, 7))
            elif kind == 18:
                elements.append(held(xp.dot(e[:, : j + 1], W[: j + 1])))
            elif kind == 19:
                both = xp.concatenate([held(e + b), one_of(elements)], axis=1)
                elements.append(held(xp.dot(both[:, j : j + n], W)))
            elif kind == 20:
                below = xp.concatenate([held(xp.dot(e, W)), one_of(elements)])
                elements.append(below[i : i + len(E)])
                rows.append(xp.max(below[i:], axis=1, keepdims=True)[: len(E)])
            else:
                W = held(xp.dot(e.T, one_of(elements)))
        return (*(choose.choice(found) for found in (elements, rows, columns, scalars, flats)), elements[-1])

    return function


def check_random_graph(seed: int, ways=WAYS) -> None:
    generator = np.random.default_rng(seed)
    m, n = int(generator.choice([1, 2, 5, 17, 40])), int(generator.choice([1, 2, 3, 9, 33, 70]))
    shapes = (m, n), (m, n), (m, 1), (n,), (), (n, n), (77,)
    *arrays, W, V = (generator.integers(-5, 6, shape).astype(np.float64) for shape in shapes)
    arrays += [generator.integers(0, n, (m, 1)), W, V]
    function = random_function(seed, n)
    expected = eagerly(function, *arrays)
    for way in ways:
        for result, of_numpy in zip(traced(way, function, *arrays), expected, strict=True):
            np.testing.assert_array_equal(result, of_numpy.reshape(result.shape), err_msg=f"seed {seed}, {way}")


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    monkeypatch.setattr(schedule, "MIN_MACS_PER_THREAD", 1)


def check_block(seeds: range) -> None:
    """Compiled on one thread and on three in turn; every fourth as kernels and every fifth operation by operation too.

    Seven of eight are compiled without LLVM's optimisations, which take four fifths of the time.
    """
    from dnn.backends.codegen import cpu, jit

    schedule.MIN_MACS_PER_THREAD = 1
    for seed in seeds:
        optimised = seed % 8 == 0
        cpu.compile_module = lambda text, names, optimise=True: jit.compile_module(text, names, optimise and optimised)  # noqa: B023
        more = [*WAYS[: seed % 5 == 0], *([KERNELS[seed // 4 % 3]] if seed % 4 == 1 else [])]
        check_random_graph(seed, [WAYS[1 + seed % 2], *more])


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(80, 400, 80))])
def test_80_random_graphs_are_exactly_what_numpy_computes(first, every_thread):
    # in processes of their own: what takes the time is compiling
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        for _ in workers.map(check_block, (range(start, start + 20) for start in range(first, first + 80, 20))):
            pass


OPERATIONS_ON_MEMORY = {
    "add": lambda xp, a, b: held(xp, a + b),
    "multiply": lambda xp, a, b: held(xp, a * b),
    "subtract": lambda xp, a, b: held(xp, a - 2 * b),
    "where": lambda xp, a, b: xp.where(a > b, a, b * 1 + 0 * a),
    "maximum": lambda xp, a, b: xp.maximum(a, b),
    "sum of rows": lambda xp, a: held(xp, xp.sum(a, axis=1, keepdims=True)),
    "sum of columns": lambda xp, a: held(xp, xp.sum(a, axis=0)),
    "sum": lambda xp, a: held(xp, xp.sum(a)).reshape(1),
    "rows of both": lambda xp, a, b: xp.concatenate([a[-1:], b])[: len(b)],
    "columns of both": lambda xp, a, b: xp.concatenate([b + 1, a[:, :1]], axis=1)[:, 1:],
    "a column": lambda xp, a, b: held(xp, a[:, -1:] + b * 2),
    "product": lambda xp, a, b: held(xp, xp.dot(a, b)),
    "product of columns": lambda xp, a, b: held(xp, xp.dot(a.T, b)),
}


def held(xp, value):
    return xp.maximum(xp.minimum(value, 50), -50)


def check_random_stores(seed: int, way: str) -> None:
    """A plan that reads and writes the same few buffers, parts of one among them, against NumPy doing it in order."""
    choose, generator = random.Random(seed), np.random.default_rng(seed)
    m, n = choose.choice([1, 2, 5, 17, 40]), choose.choice([1, 2, 3, 9, 33])
    shapes = {"E": (m, n), "F": (m, n), "W": (n, n), "R": (m, 1), "C": (n,), "D": (n,), "S": (1,)}
    shapes |= {"theta": (3 * n * n + 5,), "state": (3 * n * n + 5,), "wide": (m + 1, 2 * n + 1)}
    expected = {name: generator.integers(-5, 6, shape).astype(np.float64) for name, shape in shapes.items()}
    plan = Plan()
    buffers = {name: plan.array(name, array.copy()) for name, array in expected.items()}
    columns = {"columns of wide": ((0, m), (1, n + 1)), "more columns of wide": ((1, m + 1), (n + 1, 2 * n + 1))}
    columns |= {"the first columns of wide": ((0, m), (0, n))}
    parts = {"a matrix of theta": (choose.choice([0, n * n]), (n, n)), "a row of theta": (2 * n * n + 3, (n,))}

    def one_of(*names):
        """A buffer or a part of one: in the plan, and NumPy's."""
        name = choose.choice(names)
        if name in columns:
            bounds = (first, last), (left, right) = columns[name]
            return buffers["wide"].whole().block(bounds), expected["wide"][first:last, left:right]
        if name not in parts:
            return buffers[name].whole(), expected[name]
        start, shape = parts[name]
        view = buffers["theta"].part(start, shape)
        return view, expected["theta"][start : start + view.size].reshape(shape)

    def store(place, value, result):
        plan.store(place[0], value)
        place[1][...] = result

    matrix, row, flat = ("W", "a matrix of theta"), ("C", "D", "a row of theta"), ("theta", "state")
    E, elementwise = ("E", "F", *columns), ("add", "multiply", "subtract", "where", "maximum")
    kinds = [
        (elementwise, ("E", "F"), ("E", "F", "R", "C", "S"), ("E", "F")),
        (elementwise, E, (*E, "R", "C", "S"), E),
        (("rows of both", "columns of both", "a column"), E, E, E),
        (("sum of rows",), E, None, ("R",)),
        (("sum of columns",), E, None, row),
        (("product",), E, matrix, E),
        (("product of columns",), E, E, matrix),
        (("add", "multiply", "subtract"), flat, (*flat, "S"), flat),
        (("sum",), ("E", "theta", "R"), None, ("S",)),
        (("add", "subtract"), row, ("C", "D", "S"), row),
    ]
    for _ in range(choose.randint(2, 9)):
        names, first, second, into = choose.choice(kinds)
        function = OPERATIONS_ON_MEMORY[choose.choice(names)]
        operands = [one_of(*first)] if second is None else [one_of(*first), one_of(*second)]
        value = plan.call(function, *(place for place, _ in operands))
        result = np.array(function(np, *(array for _, array in operands)))
        store(one_of(*into), value, result)
        if "E" in into and choose.random() < 0.3:  # used again, where it was stored
            store(one_of(*into), plan.call(lambda xp, a: held(xp, a + 1), value), held(np, result + 1))
    runner(plan, way)()
    for name, array in expected.items():
        np.testing.assert_array_equal(buffers[name].array, array, err_msg=f"seed {seed}, {way}, {name}")


@pytest.mark.parametrize("first", [0, pytest.param(120, marks=pytest.mark.slow)])
def test_memory_that_is_read_and_written_in_any_order_holds_what_numpy_would_have(first, every_thread, monkeypatch):
    from dnn.backends.codegen import cpu, jit

    monkeypatch.setattr(
        cpu, "compile_module", lambda text, names, optimise=True: jit.compile_module(text, names, False)
    )
    ways = [*WAYS, *KERNELS]
    for seed in range(first, first + 120):
        check_random_stores(seed, ways[seed % len(ways)])


@pytest.mark.slow
def test_memory_of_ten_thousand_random_plans_holds_what_numpy_would_have(every_thread):
    ways = [*WAYS, *KERNELS]
    for seed in range(1000, 11_000):
        check_random_stores(seed, ways[seed % len(ways)])


@pytest.mark.slow
def test_fifty_thousand_random_graphs_are_exactly_what_numpy_computes(every_thread):
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        for _ in workers.map(check_block, (range(start, start + 100) for start in range(10_000, 60_000, 100))):
            pass


# -------------------------------------------------------------------------------- fusion and schedule


def two_layers(xp, X, W1, b1, W2, b2, Y):
    A = functional.relu(xp, functional.linear_forward(xp, X, W1, b1))
    Z = functional.linear_forward(xp, A, W2, b2)
    dZ = functional.squared_error_backward(xp, Z, Y)
    dA, dW2, db2 = functional.linear_backward(xp, dZ, A, W2)
    _, dW1, db1 = functional.linear_backward(xp, functional.relu_backward(xp, dA, A), X, W1)
    return dW1, db1, dW2, db2


def matrices(*shapes):
    return [RNG.standard_normal(shape) for shape in shapes]


LAYERS = matrices((64, 8), (16, 8), (16,), (3, 16), (3,), (64, 3))


def test_nothing_that_only_a_loop_needs_reaches_memory():
    fused = fuse(planned(two_layers, *LAYERS))
    products = [op for op in fused.operations if isinstance(op, Product)]
    loops = [op for op in fused.operations if isinstance(op, Loop)]
    assert len(products) == 5  # the first layer's dX, which nobody needs, is not computed
    # bias and relu, the loss's gradient with its bias, relu's backward, and two sums of columns
    assert sorted(loop.kind for loop in loops) == ["columns", "columns", "rows", "rows", "rows"]
    assert all(len(loop.outputs) == 1 for loop in loops)


def test_a_training_step_has_two_phases(every_thread):
    import dnn
    from dnn.backends.codegen.cpu import CompiledPlan
    from dnn.data import prepare
    from dnn.state import TrainingState
    from dnn.step import TRAIN, Order, Step

    network = dnn.Network([20, 64, 32, 3], output="softmax")
    examples = prepare(network, RNG.standard_normal((256, 20)).astype(np.float32), RNG.integers(0, 3, 256))
    order = Order(np.arange(256), np.zeros(1, np.int64))
    for optimizer in (dnn.SGD(), dnn.Momentum(), dnn.Adam()):
        state = TrainingState(optimizer, network.parameters)
        step = Step(network, examples, 256, TRAIN, "gathered", optimizer, state.arrays, order=order)
        assert keeps_order(step.plan, fuse(step.plan))
        made = CompiledPlan(step.plan, 2, None)
        assert len(made.schedule.phases) == 2
        # the gradients live and die in the scratch of each thread, block by block
        assert [buffer.name for buffer in made.schedule.in_scratch] == ["grad"]


def test_a_barrier_left_out_would_be_seen(every_thread, monkeypatch):
    arrays = matrices((40, 33), (33, 33))

    def chain(xp, E, W):
        totals = xp.sum(E, axis=0)
        return xp.sum(E * totals, axis=1, keepdims=True), xp.dot(E, W) - totals

    plan = planned(chain, *arrays)
    with monkeypatch.context() as patched:
        patched.setattr(schedule, "_wait", lambda before, step: None)
        patched.setattr("dnn.backends.codegen.cpu.schedule", reversed_schedule)
        run = compiled(plan, 3)
    run()
    results = results_of(plan, get_backend("numpy"))
    expected = eagerly(chain, *arrays)
    assert any(not np.allclose(result, of_numpy) for result, of_numpy in zip(results, expected, strict=True))


def reversed_schedule(fused, threads):
    """All in one phase, the last section first: what a missing barrier allows."""
    found = schedule.schedule(fused, threads)
    for sections in found.phases:
        sections.reverse()
        for section in sections:
            section.steps.reverse()
    return found


def test_memory_given_to_another_value_too_early_would_be_seen(monkeypatch, way):
    arrays = matrices((140, 70), (70, 70), (70, 70))

    def chain(xp, E, W, V):
        first, second = xp.dot(E, W), xp.dot(E, V)
        return xp.dot(xp.tanh(first) + second, W), xp.dot(first, V)

    expected = eagerly(chain, *arrays)
    for result, of_numpy in zip(traced(way, chain, *arrays), expected, strict=True):
        np.testing.assert_allclose(result, of_numpy, rtol=1e-12, atol=1e-12)
    if way == WAYS[0]:
        monkeypatch.setattr(Stepwise, "_last_use_of", lambda self, node: node.number)
    elif way in KERNELS:
        monkeypatch.setattr(
            "dnn.backends.codegen.gpu._slots",
            lambda levels, written: [(max((b.nbytes for b in levels.temporaries), default=8), levels.temporaries)],
        )
    else:
        monkeypatch.setattr(
            "dnn.backends.codegen.cpu._shared_memory",
            lambda schedule, fused, temporaries: [(max((b.nbytes for b in temporaries), default=8), temporaries)],
        )
    wrong = traced(way, chain, *arrays)
    assert any(not np.allclose(result, of_numpy) for result, of_numpy in zip(wrong, expected, strict=True))


def test_a_wrong_instruction_would_be_seen(every_thread, monkeypatch):
    from dnn.backends.codegen import expressions

    monkeypatch.setitem(expressions._FLOAT, "subtract", "fadd")
    with pytest.raises(AssertionError):
        for seed in range(20):
            check_random_graph(seed, [WAYS[1]])


def test_transposed_and_offset_memory_is_read_and_written_where_it_is(way):
    flat, matrix = RNG.standard_normal(1000), RNG.standard_normal((7, 5))
    plan = Plan()
    theta, out = plan.array("theta", flat), plan.buffer("out", 100, np.float64)
    transposed = plan.array("X", matrix.T)  # (5, 7), the transpose of what is C-contiguous
    W, b = plan.read(theta.part(3, (5, 7))), plan.read(theta.part(501, (7,)))
    plan.call(lambda xp, X, W, b: X * 2 + W + b, transposed, W, b, into=out.part(11, (5, 7)))
    plan.call(lambda xp, X, W: xp.dot(X.T, W).T.T + 1, transposed, W, into=out.part(46, (7, 7)))
    runner(plan, way)()
    W, b = flat[3:38].reshape(5, 7), flat[501:508]
    np.testing.assert_allclose(out.array[11:46].reshape(5, 7), matrix.T * 2 + W + b, rtol=1e-13)
    np.testing.assert_allclose(out.array[46:95].reshape(7, 7), matrix @ W + 1, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(out.array[[*range(11), *range(95, 100)]], 0)


def test_empty_arrays_run(way):
    def function(xp, E):
        return E * 2, xp.sum(E, axis=0), xp.sum(E)

    for shape in ((0, 3), (3, 0)):
        for result, expected in zip(
            traced(way, function, np.ones(shape)), eagerly(function, np.ones(shape)), strict=True
        ):
            np.testing.assert_array_equal(result, expected)


def by_position(xp, X, Y, order, position):
    rows = xp.take(order.reshape(-1, 1), position + xp.arange(9), axis=0).reshape(9)
    return xp.take(X, rows, axis=0) * 2, xp.take(Y, rows, axis=0), xp.sum(xp.take(X, rows, axis=0), axis=1)


def test_rows_are_found_where_they_are_used(way):
    order, position = RNG.permutation(20), np.array([7])
    for n in (1, 5):
        X, Y = RNG.standard_normal((20, n)), RNG.integers(0, 9, (20, 1))
        for result, expected in zip(
            traced(way, by_position, X, Y, order, position), eagerly(by_position, X, Y, order, position), strict=True
        ):
            np.testing.assert_allclose(result, expected, rtol=1e-14)


def test_no_row_number_reaches_memory_unless_it_is_a_result():
    arrays = RNG.standard_normal((20, 5)), RNG.integers(0, 9, (20, 1)), np.arange(20), np.array([7])
    fused = fuse(planned(by_position, *arrays))
    assert all(value.dtype != np.int64 or value.shape == (9, 1) for op in fused.operations for value in op.outputs)
    with_rows = planned(lambda xp, *given: (*by_position(xp, *given), given[3] + xp.arange(9)), *arrays)
    assert any(value.shape == (9,) for op in fuse(with_rows).operations for value in op.outputs)


def test_a_position_is_advanced_after_all_rows_are_read(way):
    order, position = RNG.permutation(20), np.array([0])
    X, plan = RNG.standard_normal((20, 3)), Plan()
    given = [plan.array(name, array) for name, array in (("X", X), ("order", order), ("position", position))]
    at = plan.read(given[2])
    X_batch, *_ = plan.call(lambda xp, X, order, at: by_position(xp, X, X, order, at), *given[:2], at)
    out = plan.buffer("out", (9, 9), np.float64)

    def products(xp, A, X, order, at):
        return xp.dot(A, by_position(xp, X, X, order, at)[0].T)

    plan.call(products, X_batch, *given[:2], at, into=out)
    plan.call(lambda xp, at: at + 9, at, into=given[2])
    assert way == WAYS[0] or keeps_order(plan, fuse(plan))
    run = runner(plan, way)
    for start in (0, 9):
        run()
        taken = X[order[start : start + 9]] * 2
        np.testing.assert_allclose(out.array, taken @ taken.T, rtol=1e-12)
    assert position == 18


def test_an_elementary_function_reads_nothing_but_its_arguments(way):
    """What it is made of may be asked for elsewhere, and be stored where something else is by then."""
    x, D, W = RNG.standard_normal((8, 8)), np.full((8, 8), 5.0), np.eye(8)
    plan = Plan()
    places = [plan.array(name, array.copy()) for name, array in (("D", D), ("X", x), ("W", W))]
    product = plan.call(lambda xp, D, W: xp.dot(D, W), places[0], places[2])
    size, result = plan.call(lambda xp, X: (xp.absolute(X), xp.tanh(X)), places[1])
    out = [plan.buffer(name, (8, 8), np.float64) for name in ("product", "tanh")]
    plan.store(out[0], product)
    plan.store(places[0], size)
    plan.store(out[1], result)
    runner(plan, way)()
    np.testing.assert_allclose(out[1].array, np.tanh(x), rtol=1e-14)
    np.testing.assert_array_equal(out[0].array, D)
    np.testing.assert_array_equal(places[0].array, np.abs(x))


def test_an_elementary_function_of_what_the_plan_overwrites_is_of_what_it_was(way):
    v = RNG.standard_normal(40)
    plan = Plan()
    state, theta = plan.array("state", v.copy()), plan.array("theta", np.zeros(40))
    plan.call(lambda xp, v, theta: (v * 0.5, theta - xp.tanh(v)), state, theta, into=(state, theta))
    runner(plan, way)()
    np.testing.assert_allclose(theta.array, -np.tanh(v), rtol=1e-14)
    np.testing.assert_array_equal(state.array, v / 2)


def test_whole_numbers_bits_and_truths_are_numpys(way):
    def function(xp, a, b, c):
        word = c.astype(np.uint32)
        high = ((word.astype(np.uint64) * 0xD2511F53) >> 32).astype(np.uint32)
        return (
            a // b, a % b, a & b, a | b, a ^ b, a << 3, a >> 2, -a, xp.absolute(a), xp.sign(a), ~(a > b),
            xp.maximum(a, b), high ^ word, word << word, xp.logical_and(a > 0, b > 0), (a > b) == (b > 1),
            a.astype(np.uint8),
        )  # fmt: skip

    a, b = RNG.integers(-50, 50, (9, 7)), RNG.integers(-4, 4, (9, 7))
    c = RNG.integers(0, 2**32, (9, 7))
    for result, expected in zip(traced(way, function, a, b, c), eagerly(function, a, b, c), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_rounding_division_and_remainder_of_floats_are_numpys(way):
    def function(xp, a, b):
        return xp.floor(a), xp.ceil(a), xp.rint(a), xp.trunc(a), a // b, a % b, xp.sign(a), xp.copysign(a, b), 1 / a

    a, b = RNG.standard_normal((9, 7)) * 9, RNG.choice([-3.0, 0.5, 2.0, -0.25], (9, 7))
    for result, expected in zip(traced(way, function, a, b), eagerly(function, a, b), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_the_same_expression_is_computed_once():
    plan = planned(lambda xp, Z: (xp.exp(Z) + 1, xp.exp(Z) * 2), X)
    assert plan.text().count("exp(") == 1


def test_the_text_of_a_plan_names_the_line_that_each_operation_comes_from():
    text = planned(functional.relu, X).text()
    assert re.search(r"%\d+ float64 6x4 = maximum\(in0, 0.0\) +functional/activations.py:\d+ relu", text)
    assert "out0 <- %" in text


def test_a_plan_is_gone_with_its_last_user():
    gc.disable()
    try:
        plan = planned(functional.softmax, X)
        Stepwise(plan, get_backend("numpy"))()
        gone = weakref.ref(plan.buffers[-1].array)
        del plan
        assert gone() is None
    finally:
        gc.enable()


def test_dry_and_real_placements_take_the_same_memory():
    from dnn.backends.plan.stepwise import temporary_bytes

    backend = get_backend("numpy")
    assert (
        temporary_bytes(planned(two_layers, *LAYERS), backend) == Stepwise(planned(two_layers, *LAYERS), backend).nbytes
    )
