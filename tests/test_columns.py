"""Arrays put together and taken apart: `xp.concatenate` and slices, however a plan is run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import FORMS
from standin import device
from sweeps import covering
from traced import KERNELS, WAYS, eagerly, planned, results_of, runner, traced

from dnn.backends import get_backend
from dnn.backends.plan import PlanError, schedule
from dnn.backends.plan.fusion import Loop, fuse
from dnn.backends.plan.stepwise import Stepwise, temporary_bytes

RNG = np.random.default_rng(11)


@pytest.fixture(params=[*WAYS, *KERNELS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != WAYS[0]:
        pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    # small as these arrays are, each thread is to have its share
    monkeypatch.setattr(schedule, "MIN_MACS_PER_THREAD", 1)
    return request.param


def whole(*shape: int, dtype: type = np.float64) -> np.ndarray:
    """Numbers of which sums and products are exact."""
    return RNG.integers(0, 2, shape).astype(bool) if dtype is bool else RNG.integers(0, 9, shape).astype(dtype)


def check(way: str, function, *arrays: np.ndarray) -> None:
    for result, of_numpy in zip(traced(way, function, *arrays), eagerly(function, *arrays), strict=True):
        assert result.dtype == of_numpy.dtype
        np.testing.assert_array_equal(result, of_numpy)


def joined_rows(xp, A, B):
    return xp.concatenate([A, B, A])


def joined_columns(xp, A, B):
    return xp.concatenate((A, B.T, A), axis=-1)


def one(xp, A):
    return xp.maximum(A, A == A)


def other(xp, A):
    return xp.minimum(A, A > 3)


def joined_of_computed(xp, A, B):
    return (
        xp.concatenate([one(xp, A), other(xp, A)], axis=0),
        xp.concatenate([xp.maximum(A, 3), A, one(xp, A)], axis=1),
        B,
    )


def parts(xp, A, B):
    return A[:1], A[-1:], A[:, :1], A[0:2, -1:], B[1:] if len(B) > 1 else B, other(xp, A)[:, -1:], one(xp, A)[-1:, :]


def parts_of_parts(xp, A, B):
    J = xp.concatenate([A, one(xp, A), other(xp, A)], axis=1)
    K = xp.concatenate([A, one(xp, A), other(xp, A)])
    n, m = A.shape[1], A.shape[0]
    return J[:, n : 2 * n], other(xp, J[:, n - 1 : n + 1]), K[m - 1 : m + 1], K[m:][:, :1], J[:, 1:].T[:1], K[1:, -1:]


def flats(xp, A, B):
    a, b = A.reshape(-1), B.reshape(-1)
    J = xp.concatenate([a, one(xp, b), other(xp, a)])
    return J, J[1:], one(xp, a)[:1], xp.concatenate([J[:1], J[-1:]]), J[: a.size].reshape(A.shape)


def rearranged(xp, A, B):
    J = xp.concatenate([one(xp, A), A], axis=1)
    again = one(xp, A).reshape(A.shape[::-1])
    return (
        again[:, :1],
        other(xp, again),
        J[:, 1:].reshape(-1),
        J[:, :1].reshape(-1),
        J.T.reshape(-1),
        one(xp, A).T[:1].reshape(-1),
        J[:, 0:1].T,
    )


OF_ANY_DTYPE = [joined_rows, joined_columns, joined_of_computed, parts, parts_of_parts, flats, rearranged]


@covering(
    "shape, dtype",
    [(1, 1), (1, 7), (5, 1), (2, 3), (17, 9), (40, 33)],
    [np.float32, np.float64, np.float16, bool, np.uint32, np.int64],
    ids=str,
)
@pytest.mark.parametrize("function", OF_ANY_DTYPE)
def test_what_is_put_together_or_taken_apart_is_numpys(function, shape, dtype, way):
    A, B = whole(*shape, dtype=dtype), whole(*shape, dtype=dtype)
    if function is joined_columns:
        B = whole(shape[1] + 1, shape[0], dtype=dtype)
    check(way, function, A, B)


def relu(xp, Z):
    return xp.maximum(Z, 0)


def two_branches(xp, X, V, W):
    """Half of the columns through one layer, half through another, and their gradients."""
    n = V.shape[0]
    A = xp.concatenate([relu(xp, xp.dot(X[:, :n], V) - 3), relu(xp, xp.dot(X[:, n:], V) - 5)], axis=1)
    Z = xp.dot(A, W)
    dA = xp.dot(Z, W.T)
    halves = dA[:, : V.shape[1]], dA[:, V.shape[1] :]
    dX = xp.concatenate([xp.dot(half, V.T) for half in halves], axis=1)
    dV = xp.dot(X[:, :n].T, halves[0]) + xp.dot(X[:, n:].T, halves[1])
    return Z, dX, dV, xp.dot(A.T, Z), xp.sum(halves[1], axis=0), xp.sum(dX[:, 1:], axis=1, keepdims=True)


def products_of_parts(xp, X, V, W):
    Z = xp.dot(X[:, : V.shape[0]], V)
    left = Z[:, : max(V.shape[1] // 2, 1)]
    return left, xp.dot(left.T, X), xp.dot(left, left.T), xp.dot(Z[: len(Z) // 2 + 1], V.T), Z[-1:] + 1


def padded(xp, X, V, W):
    """The gradient of a slice."""
    Z = xp.dot(X[:, : V.shape[0]], V)
    return xp.concatenate([xp.zeros_like(Z), Z, xp.ones_like(Z)[:, :1]], axis=1), Z - Z[:, :1], Z * Z[:1]


def reductions(xp, X, V, W):
    J = xp.concatenate([X, X * X], axis=1)
    K = J[:, 1 : 1 + X.shape[1]]
    sums = xp.concatenate([xp.sum(K, axis=0, keepdims=True), xp.max(K, axis=0, keepdims=True)])
    rows = xp.concatenate([xp.sum(K, axis=1, keepdims=True), xp.min(K, axis=1, keepdims=True)], axis=1)
    return (
        sums,
        rows,
        xp.argmax(K, axis=1, keepdims=True),
        xp.sum(K),
        xp.max(J[1:]) if len(J) > 1 else J,
        K - rows[:, 1:],
    )


OF_LAYERS = [two_branches, products_of_parts, padded, reductions]


@pytest.mark.parametrize("function", OF_LAYERS)
@covering(
    "sizes, dtype", [(1, 1, 1), (5, 3, 2), (2, 1, 4), (40, 17, 33), (130, 20, 40)], [np.float64, np.float32], ids=str
)
def test_parts_go_through_layers(function, sizes, dtype, way):
    m, n, k = sizes
    check(
        way, function, whole(m, 2 * n, dtype=dtype) % 3, whole(n, k, dtype=dtype) % 2, whole(2 * k, 2, dtype=dtype) % 2
    )


def chosen(xp, X, table, order):
    first, second = order[:4], order[2:6]
    J = xp.concatenate([X, X + X], axis=1)
    taken = xp.concatenate([xp.take(X[:, 1:], first, axis=0), xp.take(X.T, second, axis=0)[:, :3]], axis=1)
    more = xp.take(X[:, 1:2], first, axis=0), xp.take((X + X)[2:], first, axis=0), xp.take(X.T, first, axis=0)
    return taken, taken[1:3], *more, xp.take(J[:, 2:5], second, axis=0), xp.take(J[1:, 2:3], order[1:], axis=0)


def chosen_by_columns(xp, X, table, order):
    rows = xp.take(table[:, 1:2], order[1:4], axis=0).reshape(3)
    numbers = table[1:5, :1].reshape(4)
    found = xp.take(X, rows, axis=0), xp.take((X * X)[:, :2], rows, axis=0), xp.take(X, numbers, axis=0)
    return *found, table[:, 1:][:3]


@pytest.mark.parametrize("function", [chosen, chosen_by_columns])
@pytest.mark.parametrize("columns", [8, 9])
def test_rows_are_taken_of_parts_and_by_parts(function, columns, way):
    check(way, function, whole(8, columns), RNG.integers(0, 6, (8, 2)), RNG.integers(0, 6, 7))


def test_parts_are_stored_to_parts(way):
    def function(xp, X, W):
        Z = xp.dot(X, W)
        return Z[:, 1:3], Z[2:], (Z + 1)[:, :1]

    X, W = whole(6, 4), whole(4, 5)
    plan = planned(function, X, W)
    theta = plan.buffer("theta", 200, np.float64)
    out = plan.buffer("wide", (6, 9), np.float64)
    Z = plan.call(lambda xp, X: xp.maximum(X, 3) + 1, plan.buffers[0])
    plan.store(out.whole().block(((0, 6), (2, 6))), Z)
    plan.store(out.whole().block(((2, 4), (7, 9))), plan.call(lambda xp, Z: Z[1:3, :2], Z))
    plan.store(theta.part(7, (6, 4)).block(((0, 6), (1, 3))), plan.call(lambda xp, Z: Z[:, 2:], Z))
    plan.store(theta.part(150, (3,)), plan.call(lambda xp, Z: xp.sum(Z, axis=0)[1:], Z))
    runner(plan, way)()
    of_numpy = np.maximum(X, 3) + 1
    expected, flat = np.zeros((6, 9)), np.zeros(200)
    expected[:, 2:6], expected[2:4, 7:] = of_numpy, of_numpy[1:3, :2]
    flat[7:31].reshape(6, 4)[:, 1:3], flat[150:153] = of_numpy[:, 2:], of_numpy.sum(axis=0)[1:]
    np.testing.assert_array_equal(out.array, expected)
    np.testing.assert_array_equal(theta.array, flat)
    for buffer, expected in zip(plan.buffers[2:5], eagerly(function, X, W), strict=True):
        np.testing.assert_array_equal(buffer.array, expected)


def test_parts_of_a_transposed_array(way):
    def function(xp, X, Y):
        parts = X[1:4], X[:, 2:], X[:2, 1:3]
        sums = xp.sum(X[1:], axis=0), xp.sum(X[:, 1:3], axis=1), xp.sum(X[1:, 1:])
        return *parts, X[1:4] * Y, xp.dot(X[:, 1:], Y.T[1:]), xp.dot(X[1:].T, X[1:]), *sums, xp.concatenate([X, Y])

    check(way, function, whole(5, 6).T, whole(3, 5))


def test_dtypes_are_joined_and_numbers_clipped_as_numpy_does(way):
    def function(xp, A, B):
        C = A.astype(np.float32)
        return xp.concatenate([C, B], axis=1), xp.concatenate([C, A > 1]), xp.clip(B, 2, 5), xp.clip(C, 1, B)

    check(way, function, whole(3, 4, dtype=np.int64), whole(3, 4))


def test_counting_in_rows_and_columns(way):
    def function(xp, A):
        m, n = A.shape
        index = xp.arange(m * n).reshape(m, n)
        rows = xp.arange(m)[:, None]
        return index + 1, A * index, rows + 0 * index, A * xp.arange(m).reshape(m, 1), xp.sum(index * index), index[1:]

    for shape in ((5, 3), (2, 40), (6, 1)):
        check(way, function, whole(*shape, dtype=np.int64))


def moved(xp, A, B):
    """Columns read three before where they are written, in memory of the same shape whose other half comes later."""
    n = A.shape[1]
    J = xp.concatenate([A + 1, A * 2], axis=1)
    late = xp.dot(xp.dot(xp.dot(B, B.T) * 0, B) * 0, B.T)[:, :n] + 1
    K = xp.concatenate([late, J[:, n - 3 : 2 * n - 3] * 2], axis=1)
    return K[:, 1:] + 1


def test_memory_handed_over_within_an_operation_is_of_the_same_elements(way, monkeypatch):
    arrays = whole(40, 33), whole(40, 33)
    check(way, moved, *arrays)
    if way.startswith("compiled"):
        monkeypatch.setattr("dnn.backends.codegen.cpu._layout", lambda view: 0)
        with pytest.raises(AssertionError):
            check(way, moved, *arrays)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [*OF_LAYERS, parts_of_parts, rearranged, chosen])
def test_on_a_gpus_rules(function, form, in_form):
    """With the library's products, and captured: without memory or copies that a graph could not have."""
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    in_form(form)
    arrays = [whole(40, 34) % 3, whole(17, 33) % 2, whole(66, 2) % 2]
    if function is chosen:
        arrays = [whole(8, 9), whole(8, 2), RNG.integers(0, 6, 7)]
    arrays = arrays[:2] if function in (parts_of_parts, rearranged) else arrays
    backend = get_backend("standin")
    plan = planned(function, *arrays, backend=backend)
    run = backend.compile(plan)
    device.counts["hidden_copies"] = 0
    for _ in range(4):
        run()
    assert not device.counts["hidden_copies"]
    for result, of_numpy in zip(results_of(plan, backend), eagerly(function, *arrays), strict=True):
        np.testing.assert_array_equal(result, of_numpy)


# ----------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda xp, Z: Z[0], "indexing with 0 cannot be part of a plan: use slices Z[a:b] or Z[a:b, c:d]"),
        (lambda xp, Z: Z[::2], "indexing"),
        (lambda xp, Z: Z[::-1], "indexing"),
        (lambda xp, Z: Z[:, 1], "indexing"),
        (lambda xp, Z: Z[..., :1], "indexing"),
        (lambda xp, Z: Z[:, :, None], "indexing"),
        (lambda xp, Z: Z[Z > 0], "an array of the plan"),
        (lambda xp, Z: Z[4:2], "the slice [4:2, 0:4] of an array with shape (6, 4) is empty"),
        (lambda xp, Z: Z[: xp.sum(Z)], "an index reads values"),
        (lambda xp, Z: xp.concatenate([]), "xp.concatenate: expected arrays"),
        (lambda xp, Z: xp.concatenate([Z, Z[:, 1:]]), "xp.concatenate: shapes (6, 4), (6, 3) do not fit along axis 0"),
        (lambda xp, Z: xp.concatenate([Z, Z], axis=2), "xp.concatenate: shapes"),
        (lambda xp, Z: xp.concatenate([Z, xp.sum(Z, axis=0)]), "xp.concatenate: shapes"),
        (lambda xp, Z: xp.concatenate([Z, np.ones((2, 4))]), "xp.concatenate: expected arrays"),
        (lambda xp, Z: xp.stack([Z, Z]), "concatenate"),
    ],
)
def test_what_else_is_asked_for_is_refused(function, words):
    with pytest.raises(PlanError, match=re.escape(words)):
        planned(function, np.ones((6, 4)))


def test_a_part_of_what_has_been_overwritten_is_refused():
    plan = planned(lambda xp, Z: Z, np.ones((6, 4)))
    Z = plan.read(plan.buffers[0])
    plan.store(plan.buffers[0], plan.call(lambda xp, Z: Z + 1, Z))
    with pytest.raises(PlanError, match="overwritten"):
        plan.call(lambda xp, Z: Z[1:], Z)


# ----------------------------------------------------------------------------------- what it costs


def test_what_is_put_together_is_computed_in_its_place():
    def function(xp, A, B, W):
        return xp.dot(xp.concatenate([A + 1, B * 2], axis=1), W), xp.dot(xp.concatenate([A * A, B + B]), W[:5])

    fused = fuse(planned(function, whole(8, 5), whole(8, 5), whole(10, 16)))
    loops = [op for op in fused.operations if isinstance(op, Loop)]
    assert loops and not any(root.op == "store" for loop in loops for root in loop.outputs)


def test_what_nobody_reads_is_not_put_together():
    def function(xp, A):
        xp.concatenate([A + 1, A * 2])
        return A * 3

    plan = planned(function, whole(8, 5))
    assert len(fuse(plan).operations) == 1 and "joined" not in plan.text()
    assert temporary_bytes(plan, get_backend("numpy")) == 8 * 5 * 8


def test_memory_is_counted_and_lines_are_readable():
    def function(xp, A, W):
        return xp.dot(xp.concatenate([A + 1, A[1:] * 2])[2:, :3], W[:3]), xp.dot(A, W)[:, 1:]

    arrays = whole(8, 5), whole(5, 4)
    plan = planned(function, *arrays)
    assert temporary_bytes(plan, get_backend("numpy")) == Stepwise(plan, get_backend("numpy")).nbytes
    text = planned(function, *arrays).text()
    assert re.search(r"^joined\d+\[0:8, 0:5\] <- %\d+$", text, re.M)
    assert re.search(r"^%\d+ float64 7x5 = multiply\(in0\[1:8, 0:5\], 2.0\)", text, re.M)
    assert re.search(r"dot\(joined\d+\[2:15, 0:3\], in1\[0:3, 0:4\]\)", text)
    assert re.search(r"^out1 <- %\d+\[0:8, 1:4\]$", text, re.M)
