"""Products as the CuPy backend asks cuBLAS for them, of a cuBLAS in NumPy that knows the rules of the real one."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin
from ml_dtypes import bfloat16
from standin import Cublas, DeviceArray, Module, Stream, device, new

from dnn.backends import Backend, cublas
from dnn.backends.cublas import WORKSPACE_BYTES, Products
from dnn.backends.cupy_backend import CupyBackend
from dnn.backends.plan import Plan

DTYPES = {np.float32: 1e-6, np.float64: 1e-14, np.float16: 1e-3, bfloat16: 1e-2}


def array(shape: tuple[int, ...], dtype: Any, transposed: bool = False, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).standard_normal(shape[::-1] if transposed else shape).astype(dtype)
    return numbers.T if transposed else numbers


def ones(*shape: int, dtype: Any = np.float32) -> DeviceArray:
    return new(np.ones(shape, dtype))


@pytest.fixture
def products() -> Products:
    return Products(Module(), Cublas())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("layout_of_a", ["C", "F", "vector"])
@pytest.mark.parametrize(("rows", "k", "columns"), [(4, 3, 5), (1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1), (1, 3, 1)])
def test_a_product_is_the_product(rows, k, columns, layout_of_a, transposed_b, dtype, products):
    a, b = array((rows, k), dtype, layout_of_a == "F"), array((k, columns), dtype, transposed_b, 1)
    out = np.full((rows, columns), np.nan, dtype)
    if layout_of_a == "vector":
        a, out = a[0], out[0]
    products(*map(new, (a, b, out)))
    expected = np.dot(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_tf32_rounds_float32_and_nothing_else(products):
    for dtype in (np.float32, np.float64):
        a, b = array((8, 50), dtype), array((50, 6), dtype, seed=1)
        exact, rounded = np.empty((8, 6), dtype), np.empty((8, 6), dtype)
        products(*map(new, (a, b, exact)))
        products.tf32(*map(new, (a, b, rounded)))
        difference = abs(exact - rounded).max()
        assert 1e-5 < difference < 1e-1 if dtype == np.float32 else difference == 0


@pytest.mark.parametrize(("rows", "k", "columns"), [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_a_product_of_nothing_is_zero(rows, k, columns, products):
    out = np.full((rows, columns), np.nan)
    products(new(np.ones((rows, k))), new(np.ones((k, columns))), new(out))
    assert not out.any()


def test_a_bound_product_is_computed_anew_at_each_call_and_keeps_its_arrays(products):
    a, b, out = np.eye(2), np.full((2, 2), 3.0), np.empty((2, 2))
    run = products.bind(*map(new, (a, b, out)))
    run()
    np.testing.assert_array_equal(out, b)
    b[...] = 7
    run()
    np.testing.assert_array_equal(out, b)
    alive = weakref.ref(b)
    del b
    gc.collect()
    assert alive() is not None


@pytest.mark.parametrize("transA", [False, True])
@pytest.mark.parametrize("transB", [False, True])
def test_a_product_of_addresses_may_have_longer_rows(transA, transB, products):
    buffers = [array((8, 9), np.float32, seed=seed) for seed in range(3)]
    held = [new(buffer) for buffer in buffers]
    a, b, c = (buffer[1:, 2:] for buffer in buffers)
    A, B, C = (buffer.ctypes.data for buffer in (a, b, c))
    untouched = buffers[2].copy()
    products.bind_addresses(np.float32, 4, 5, 3, A, 9, B, 9, C, 9, transA=transA, transB=transB)()
    op_a, op_b = a[:3, :4].T if transA else a[:4, :3], b[:5, :3].T if transB else b[:3, :5]
    np.testing.assert_allclose(c[:4, :5], op_a @ op_b, rtol=1e-6)
    c[:4, :5] = untouched[1:5, 2:7]
    np.testing.assert_array_equal(buffers[2], untouched)
    assert held


# --------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[:, :2], np.s_[:, :1], np.s_[::-1]], ids=str)
def test_an_operand_that_is_neither_c_nor_f_contiguous_is_refused(which, view, products):
    a_slice = ones(4, 8)[view]
    n, k = a_slice.shape
    operands = (a_slice, ones(k, 3), ones(n, 3)) if which == 0 else (ones(3, n), a_slice, ones(3, k))
    with pytest.raises(ValueError, match=r"must be C- or F-contiguous, got strides \(.*\) for \(4, \d\): copy it"):
        products(*operands)


def test_a_vector_with_gaps_and_a_result_that_is_not_c_contiguous_are_refused(products):
    with pytest.raises(ValueError, match="must be C- or F-contiguous"):
        products(ones(8)[::2], ones(4, 4), ones(4))
    with pytest.raises(ValueError, match="the result of a product must be C-contiguous"):
        products(ones(4, 4), ones(4, 4), ones(4, 4).T)


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [((4, 3), (2, 5), (4, 5)), ((4, 3), (3, 5), (5, 4)), ((3,), (3, 5), (1, 5)), ((4, 3), (3,), (4,))],
)
def test_shapes_that_do_not_fit_are_refused(a, b, out, products):
    with pytest.raises(ValueError, match=r"a product takes \(m, k\) or \(k,\), \(k, n\), and out .*, got \(\("):
        products(ones(*a), ones(*b), ones(*out))


def test_dtypes_that_differ_or_have_no_product_are_refused(products):
    with pytest.raises(ValueError, match="arrays of one dtype, got float32, float64 and float32: cast first"):
        products(ones(2, 2), ones(2, 2, dtype=np.float64), ones(2, 2))
    with pytest.raises(ValueError, match="takes float32, float64, float16 or bfloat16, got int64"):
        products(*(ones(2, 2, dtype=np.int64) for _ in range(3)))


def test_sizes_beyond_cublas_integers_are_refused(products):
    with pytest.raises(ValueError, match=r"sizes up to 2147483647, got 1 x 2147483648 x 1: multiply in parts"):
        products.bind_addresses(np.float32, 1, 1, 2**31, 64, 2**31, 64, 1, 64, 1)


# -------------------------------------------------------------------------------------- cuBLAS's calls


class Noting(Cublas):
    """A cuBLAS that notes its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cublas"):
            return found

        def noted(*given: Any) -> Any:
            self.calls.append((name, *given))
            return found(*given)

        return noted

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        """The calls of these functions, without the handle."""
        return [(name, *given) for name, _, *given in self.calls if name in names]


@pytest.mark.parametrize(
    ("dtype", "tf32", "types", "of_factors"),
    [
        (np.float32, False, (0, 68), np.float32),
        (np.float64, False, (1, 70), np.float64),
        (np.float16, False, (2, 68), np.float32),
        (bfloat16, False, (14, 68), np.float32),
        (np.float32, True, (0, 77), np.float32),
        (np.float64, True, (1, 70), np.float64),
    ],
)
def test_each_dtype_has_its_types(dtype, tf32, types, of_factors):
    library = Noting()
    a, b, out = ones(4, 3, dtype=dtype), ones(3, 5, dtype=dtype), ones(4, 5, dtype=dtype)
    Products(Module(), library).bind(a, b, out, tf32=tf32)()
    (call,) = library.of("cublasGemmEx")
    _, *sizes, alpha, first, a_type, lda, second, b_type, ldb, beta, c, c_type, ldc, compute, algorithm = call
    # of the rows' transposes: see bind_addresses
    assert sizes == [0, 0, 5, 4, 3] and (lda, ldb, ldc) == (5, 3, 5)
    assert (first, second, c) == (b.data.ptr, a.data.ptr, out.data.ptr)
    assert (a_type, b_type, c_type, compute, algorithm) == (*3 * (types[0],), types[1], -1)
    for factor, value in ((alpha, 1), (beta, 0)):
        assert standin._at(factor, np.dtype(of_factors), 1, 1, 1) == value


def current_stream(monkeypatch, stream: Stream) -> None:
    monkeypatch.setattr(standin.Cuda, "get_current_stream", lambda self: stream)


def test_the_workspace_is_set_again_when_the_stream_changes_and_only_then(monkeypatch):
    library, two, others = Noting(), ones(2, 2), [ones(2, 2), ones(2, 2)]
    products, first, second = Products(Module(), library), Stream(), Stream()
    before = device.allocated
    for stream in (first, first, second, first):
        current_stream(monkeypatch, stream)
        products(two, *others)
    assert device.allocated - before == WORKSPACE_BYTES == 32 * 2**20
    set_up = library.of("cublasSetMathMode", "cublasSetStream_v2", "cublasSetWorkspace_v2")
    workspace = set_up[2]
    assert workspace[0] == "cublasSetWorkspace_v2" and workspace[2] == WORKSPACE_BYTES
    streams = [("cublasSetStream_v2", stream.ptr) for stream in (first, second, first)]
    assert set_up == [
        ("cublasSetMathMode", 16),
        *(call for stream in streams for call in (stream, workspace)),
    ]


def in_a_thread(work: Any) -> None:
    errors = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_each_thread_has_a_handle_and_a_workspace_that_end_with_it():
    library = Cublas()
    products, arrays = Products(Module(), library), [ones(2, 2) for _ in range(3)]
    assert not products.has_handle
    products(*arrays)
    assert products.has_handle and products.handle() is products.handle() and len(library.handles) == 1
    found = []

    def work() -> None:
        assert not products.has_handle
        products(*arrays)
        found.extend([products.handle().address, weakref.ref(products.handle()._workspace)])
        assert len(library.handles) == 2 and found[0] != next(iter(library.handles))

    in_a_thread(work)
    gc.collect()
    assert len(library.handles) == 1 and found[0] not in library.handles and found[1]() is None


def test_handles_are_of_the_device_that_was_current_when_products_were_made():
    library = Cublas()
    with Module.cuda.Device(1):
        products, arrays = Products(Module(), library), [ones(2, 2) for _ in range(3)]
    products.handle()  # made on that device, whichever is current
    assert [its.device for its in library.handles.values()] == [1]
    with pytest.raises(RuntimeError, match="a handle of device 1 on device 0"):
        products(*arrays)
    with Module.cuda.Device(1):
        products(*arrays)
    del products
    gc.collect()
    assert not library.handles


def test_only_who_asks_for_tf32_gets_its_products(products):
    backend = CupyBackend.__new__(CupyBackend)
    backend._products = products
    assert backend.product("tf32") == products.tf32
    assert backend.product(None) is backend.product("float16") is products


def test_the_memory_of_a_plan_with_products_has_the_workspace_until_it_is_allocated(products):
    backend = CupyBackend.__new__(CupyBackend)
    backend.xp, backend._products, backend._loader = Module(), products, None
    plan = Plan()
    a, b, c = (plan.buffer(name, (4, 4), np.float32) for name in "abc")
    plan.call(lambda xp, A: xp.negative(A), a, into=b)
    assert backend.plan_bytes(plan) == Backend.plan_bytes(backend, plan) < WORKSPACE_BYTES
    plan.call(lambda xp, A, B: xp.dot(A, B), a, b, into=c)
    assert backend.plan_bytes(plan) == Backend.plan_bytes(backend, plan) + WORKSPACE_BYTES
    products.handle()
    assert backend.plan_bytes(plan) == Backend.plan_bytes(backend, plan)


# --------------------------------------------------------------------------------------- planted faults


def test_what_cublas_refuses_is_an_error_with_the_status_and_the_sizes(products):
    with pytest.raises(RuntimeError) as error:
        products.bind_addresses(np.float32, 4, 5, 3, 64, 2, 64, 5, 64, 5)()
    assert str(error.value) == (
        "cublasGemmEx of 4 x 3 x 5, A (2 a row) and B (5 a row), C (5 a row), types 0, 68: "
        "expected CUBLAS_STATUS_SUCCESS, got CUBLAS_STATUS_INVALID_VALUE (7)"
    )


@pytest.mark.parametrize(
    ("error_in_it", "message"), [(-1, "got CUBLAS_STATUS_INVALID_VALUE"), (1, "that leaves its memory")]
)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_wrong_leading_dimension_would_be_seen(transposed, which, error_in_it, message, products, monkeypatch):
    operands = [ones(4, 4), ones(4, 4)]
    if transposed:
        operands[which] = operands[which].T
    right = cublas._operand

    def wrong(array: Any) -> tuple[bool, int]:
        is_transposed, leading = right(array)
        return is_transposed, leading + error_in_it * (array is operands[which])

    products(*operands, ones(4, 4))
    monkeypatch.setattr(cublas, "_operand", wrong)
    with pytest.raises(RuntimeError, match=message):
        products(*operands, ones(4, 4))


@pytest.mark.parametrize("null", ["A", "B", "C"])
def test_a_null_pointer_would_be_seen(null, products):
    addresses = {name: 0 if name == null else ones(2, 2).data.ptr for name in "ABC"}
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_INVALID_VALUE"):
        products.bind_addresses(np.float32, 2, 2, 2, **addresses, lda=2, ldb=2, ldc=2)()


def test_a_workspace_that_is_not_set_again_would_be_seen(products, monkeypatch):
    arrays = [ones(2, 2) for _ in range(3)]
    products(*arrays)
    monkeypatch.setattr(Cublas, "cublasSetWorkspace_v2", lambda *given: 0)
    products(*arrays)
    current_stream(monkeypatch, Stream())
    with pytest.raises(RuntimeError, match="without a workspace: cublasSetStream took it away"):
        products(*arrays)


def test_a_stream_that_is_not_set_would_be_seen(products, monkeypatch):
    arrays = [ones(2, 2) for _ in range(3)]
    products(*arrays)
    monkeypatch.setattr(cublas.Handle, "use", lambda self, stream: None)
    current_stream(monkeypatch, Stream())
    with pytest.raises(RuntimeError, match="on another stream than the current one"):
        products(*arrays)


@pytest.mark.parametrize("which", [0, 1])
def test_a_result_that_overlaps_an_operand_would_be_seen(which, products):
    operands = [ones(4, 4), ones(4, 4)]
    with pytest.raises(RuntimeError, match="overlaps an operand"):
        products(*operands, operands[which])


def test_factors_of_another_type_would_be_seen(products, monkeypatch):
    of_floats = cublas._KINDS["d"]._replace(alpha=cublas._TF32.alpha, beta=cublas._TF32.beta)
    monkeypatch.setitem(cublas._KINDS, "d", of_floats)
    with pytest.raises(RuntimeError, match="alpha and beta are not 1 and 0 in float64"):
        products(*(ones(2, 2, dtype=np.float64) for _ in range(3)))


def test_a_handle_of_another_thread_would_be_seen(products, monkeypatch):
    arrays = [ones(2, 2) for _ in range(3)]
    shared = products.handle()
    monkeypatch.setattr(Products, "handle", lambda self: shared)
    products(*arrays)
    with pytest.raises(RuntimeError, match="a handle of another thread"):
        in_a_thread(lambda: products(*arrays))


def test_sums_in_16_bits_would_be_seen(products, monkeypatch):
    monkeypatch.setattr(cublas, "_DISALLOW_REDUCED_PRECISION_REDUCTION", 0)
    with pytest.raises(RuntimeError, match="whose sums may be in 16 bits"):
        products(*(ones(2, 2, dtype=np.float16) for _ in range(3)))


# -------------------------------------------------------------------------------------------- the library


def test_the_library_is_the_one_that_pathfinder_finds_with_types_for_every_argument(monkeypatch):
    functions: dict[str, Any] = {}

    class Library:
        def __init__(self, path: str) -> None:
            self.path = path

        def __getattr__(self, name: str) -> Any:
            return functions.setdefault(name, SimpleNamespace())

    pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: SimpleNamespace(abs_path=f"/lib{name}.so.13"))
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(pathfinder=pathfinder))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    monkeypatch.setattr(cublas.ctypes, "CDLL", Library)
    library = cublas.load.__wrapped__()
    assert library.path == "/libcublas.so.13"
    called = {name for name in vars(Cublas) if name.startswith("cublas")}
    assert set(functions) == called and all(hasattr(function, "argtypes") for function in functions.values())
    assert len(functions["cublasGemmEx"].argtypes) == 19
