"""A plan run operation by operation gives what its functions give, on arrays of every backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from standin import WITHOUT_BFLOAT16, StrictGraph, device

from dnn.backends import Backend, get_backend
from dnn.backends.plan import Plan
from dnn.backends.plan.operations import ELEMENTWISE, REDUCTIONS
from dnn.backends.plan.stepwise import Stepwise, temporary_bytes

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.standard_normal((6, 4)), GENERATOR.standard_normal((6, 4))
A[0] = np.nan, np.inf, -np.inf, -0.0
WHOLE = GENERATOR.integers(-9, 9, (6, 4))


def planned(backend: Backend, function: Callable[..., Any], *inputs: np.ndarray, times: int = 1) -> list[np.ndarray]:
    """The results of `function`, from a plan run operation by operation."""
    plan = Plan()
    buffers = [plan.array(f"input {i}", backend.asarray(array)) for i, array in enumerate(inputs)]
    results = plan.call(function, *buffers)
    results = results if isinstance(results, tuple) else (results,)
    outputs = [plan.buffer(f"output {i}", value.shape, value.dtype) for i, value in enumerate(results)]
    for output, value in zip(outputs, results, strict=True):
        plan.store(output, value)
    run = backend.run_stepwise(plan)
    with np.errstate(all="ignore"):
        for _ in range(times):
            run()
    return [backend.to_numpy(output.array) for output in outputs]


def check(backend: Backend, function: Callable[..., Any], *inputs: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = function(np, *inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for result, value in zip(planned(backend, function, *inputs, times=2), expected, strict=True):
        assert result.dtype == value.dtype and result.shape == value.shape
        np.testing.assert_array_equal(result, value)
        if value.dtype.kind == "f":  # of zeros too, but a nan's sign means nothing
            np.testing.assert_array_equal(np.signbit(result)[value == value], np.signbit(value)[value == value])


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "where": (lambda xp, a, b: xp.where(b > 0, a, b), (A, B)),
    "where of a number": (lambda xp, a, b: (xp.where(b > 0, a, 0.0), xp.where(b > 0, -0.0, a)), (A, B)),
    "where of two numbers": (lambda xp, b: xp.where(b > 0, 2.0, 1.0), (B,)),
    "where of a column": (
        lambda xp, a, b: xp.where(xp.max(b, axis=1, keepdims=True) > 1, a, xp.max(b, axis=0, keepdims=True)),
        (A, B),
    ),
    "where reads what it replaces": (lambda xp, a, b: xp.where(b > 0, b * 2, b * 2 + 1), (A, B)),
    "max": (lambda xp, a: (xp.max(a, axis=1), xp.max(a, axis=0), xp.max(a)), (A,)),
    "min": (lambda xp, a: (xp.min(a, axis=1, keepdims=True), xp.min(a, axis=0), xp.min(a)), (A,)),
    "min of whole numbers": (lambda xp, a: (xp.min(a, axis=1), xp.min(a)), (WHOLE,)),
    "min of truths": (lambda xp, a: (xp.min(xp.isfinite(a), axis=1), xp.min(xp.isfinite(a))), (A,)),
    "argmax": (lambda xp, a: xp.argmax(a, axis=1, keepdims=True), (B,)),
    "sum of whole numbers": (lambda xp, a: (xp.sum(a, axis=0), xp.sum(a)), (WHOLE,)),
    "cast": (lambda xp, a: (a.astype(np.float32), a.astype(np.int64).astype(np.uint8)), (B,)),
    "a row to every row": (lambda xp, a, b: a + xp.max(b, axis=0, keepdims=True), (A, B)),
    "bits": (lambda xp, a: a.view(np.int64) ^ 1, (A,)),
    "take": (lambda xp, a, rows: xp.take(a, rows, axis=0), (A, np.array([5, 0, 5]))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_plan_gives_what_its_function_gives(name, backend: Backend):
    function, inputs = FUNCTIONS[name]
    check(backend, function, *inputs)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_sums_are_products_with_ones(axis, backend: Backend):
    (result,) = planned(backend, lambda xp, a: xp.sum(a, axis=axis), B)
    np.testing.assert_allclose(result, B.sum(axis=axis), rtol=1e-14)
    (result,) = planned(backend, lambda xp, a: xp.sum(a > 0, axis=axis, dtype=np.float64), B)
    np.testing.assert_array_equal(result, (B > 0).sum(axis=axis))


@pytest.mark.parametrize("n", [1024, 1025, 1151, 1152, 1153, 16_513, 300_000])
@pytest.mark.parametrize("columns", [1, 3])
def test_long_sums_in_float32_are_sums_of_sums(n, columns, backend: Backend):
    whole = GENERATOR.integers(-9, 9, (n, columns)).astype(np.float32)  # whose sums are exact in any order
    for axis in (None, 0, 1):
        (result,) = planned(backend, lambda xp, a, axis=axis: xp.sum(a, axis=axis), whole)
        np.testing.assert_array_equal(result, whole.sum(axis=axis))


@pytest.mark.parametrize("value", [0.1, np.log(2), 1e-3])
def test_rounding_does_not_add_up_in_a_long_sum(value, backend: Backend):
    a = np.full((3_000_000, 2), value, np.float32)
    exact = float(a[0, 0]) * len(a)
    (result,) = planned(backend, lambda xp, a: xp.sum(a, axis=0), a)
    np.testing.assert_allclose(result, exact, rtol=1e-6)
    (result,) = planned(backend, lambda xp, a: xp.sum(a), a)
    np.testing.assert_allclose(result, 2 * exact, rtol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_sums_of_a_transpose(axis, backend: Backend):
    a = np.arange(12.0).reshape(3, 4)
    (result,) = planned(backend, lambda xp, a: xp.sum(a.T, axis=axis), a)
    np.testing.assert_array_equal(result, a.T.sum(axis=axis))


def in_place_plan(backend: Backend, array: np.ndarray) -> tuple[Plan, Any]:
    """a ← 2 a where a > 0, of the second half of a buffer; the first half becomes its maximum."""
    plan = Plan()
    buffer = plan.array("a", backend.asarray(array))
    first, second = (buffer.part(start, (4,)) for start in (0, 4))
    a = plan.read(second)
    maximum = plan.call(lambda xp, a, b: xp.maximum(a, b), first, a)
    doubled = plan.call(lambda xp, a: xp.where(a > 0, 2 * a, a), a)
    plan.store(second, doubled)
    plan.store(first, maximum)
    return plan, buffer


def test_parts_of_a_buffer_are_updated_in_place(backend: Backend):
    array = np.array([1.0, -5, 3, 0, -1, 2, 7, -3])
    plan, buffer = in_place_plan(backend, array)
    run = backend.run_stepwise(plan)
    run()
    np.testing.assert_array_equal(backend.to_numpy(buffer.array), [1, 2, 7, 0, -1, 4, 14, -3])
    run()
    np.testing.assert_array_equal(backend.to_numpy(buffer.array), [1, 4, 14, 0, -1, 8, 28, -3])


def test_in_place_updates_are_no_hidden_copies_and_are_captured(in_form):
    in_form("operation by operation")
    backend = get_backend("standin")
    plan, _ = in_place_plan(backend, np.arange(8.0))
    run = backend.compile(plan)
    assert isinstance(run, StrictGraph)
    for _ in range(3):
        run()
    # one maximum, and of the where its condition, its product and a masked copy
    assert run._graphs[1].counts == {"launches": 4}


def test_a_dry_run_takes_no_memory_and_says_what_a_run_takes(backend: Backend):
    def function(xp: Any, a: Any, b: Any) -> Any:
        P = xp.exp(a) / xp.sum(xp.exp(a), axis=1, keepdims=True)
        return xp.where(P > 0.5, xp.min(b, axis=0, keepdims=True), P), xp.sum(P), xp.zeros_like(P) + a

    def plan() -> Plan:
        plan = Plan()
        inputs = [plan.array(name, backend.asarray(array)) for name, array in (("a", A), ("b", B))]
        for i, value in enumerate(plan.call(function, *inputs)):
            plan.store(plan.buffer(f"output {i}", value.shape, value.dtype), value)
        return plan

    dry, real = plan(), plan()
    before = device.allocated
    expected = temporary_bytes(dry, backend)
    assert device.allocated == before and all(buffer.array is None for buffer in dry.buffers[2:])
    assert Stepwise(real, backend).nbytes == expected
    if backend.name == "standin":
        assert device.allocated - before == expected


# ------------------------------------------------------------------------------------- on CuPy, without a GPU


@pytest.mark.skipif(find_spec("cupy") is None, reason="the extra kernelcheck is not installed")
def test_cupy_has_what_is_called():
    import cupy

    for name, operation in ELEMENTWISE.items():
        if name != "where":
            assert getattr(cupy, name).nin == operation.arity and getattr(cupy, name).nout == 1, name
    for name in REDUCTIONS:
        inspect.signature(getattr(cupy, name)).bind("a", axis=1, keepdims=True, out="out")
    for settings in ({"casting": "unsafe"}, {"where": "condition"}):
        inspect.signature(cupy.copyto).bind("out", "a", **settings)
    inspect.signature(cupy.take).bind("a", "rows", axis=0, out="out")
    assert {"view", "reshape", "fill", "T", "flags", "data", "strides"} <= set(dir(cupy.ndarray))
    assert callable(cupy.cuda.using_allocator) and callable(cupy.cuda.MemoryPool.malloc)


@pytest.mark.skipif(find_spec("cupy") is None, reason="the extra kernelcheck is not installed")
@pytest.mark.parametrize("char", "efdE")
def test_cupy_computes_in_every_floating_dtype(char):
    """E is bfloat16. What takes whole numbers or truths alone has no floating one in NumPy either."""
    import cupy

    for name in ELEMENTWISE:
        missing = name == "where" or (char == "E" and name in WITHOUT_BFLOAT16)
        types = [] if missing else getattr(np, name).types
        if any(kind.startswith("d") for kind in types):
            operands = "i" if name == "ldexp" else char
            wanted = char + operands * (ELEMENTWISE[name].arity - 1)
            assert any(kind.startswith(wanted) for kind in getattr(cupy, name).types), (name, wanted)
    assert f"{char}->{char}" in cupy._core.elementwise_copy.types
