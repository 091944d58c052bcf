"""Products as the CuPy backend asks cuBLAS for them, to a cuBLAS in NumPy and to one that only takes notes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from standin import Cublas, DeviceArray, Module

from dnn.backends.cublas import Products, gemm_arguments
from dnn.backends.cupy_backend import CupyBackend

DTYPES = {np.float32: 1e-6, np.float64: 1e-14, np.float16: 1e-3, bfloat16: 1e-2}


def array(shape: tuple[int, ...], dtype: Any, transposed: bool = False, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).standard_normal(shape[::-1] if transposed else shape).astype(dtype)
    return numbers.T if transposed else numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("layout_of_a", ["C", "F", "vector"])
@pytest.mark.parametrize(("rows", "k", "columns"), [(4, 3, 5), (1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1), (1, 3, 1)])
def test_a_product_is_the_product(rows, k, columns, layout_of_a, transposed_b, dtype):
    a, b = array((rows, k), dtype, layout_of_a == "F"), array((k, columns), dtype, transposed_b, 1)
    out = np.full((rows, columns), np.nan, dtype)
    if layout_of_a == "vector":
        a, out = a[0], out[0]
    Products(Module(), Cublas())(*map(DeviceArray, (a, b, out)))
    expected = np.dot(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_tf32_rounds_float32_and_nothing_else():
    products = Products(Module(), Cublas())
    for dtype in (np.float32, np.float64):
        a, b = array((8, 50), dtype), array((50, 6), dtype, seed=1)
        exact, rounded = np.empty((8, 6), dtype), np.empty((8, 6), dtype)
        products(*map(DeviceArray, (a, b, exact)))
        products.tf32(*map(DeviceArray, (a, b, rounded)))
        difference = abs(exact - rounded).max()
        assert 1e-5 < difference < 1e-1 if dtype == np.float32 else difference == 0


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[:, :2], np.s_[::-1]], ids=str)
def test_an_operand_that_is_neither_c_nor_f_contiguous_is_refused(which, view):
    operands = [np.ones((4, 4)), np.ones((4, 4))]
    operands[which] = np.ones((4, 8) if view == np.s_[:, ::2] else (4, 4))[view]
    with pytest.raises(ValueError, match=r"must be C- or F-contiguous, got strides \(.*\) for \(4, \d\): copy it"):
        gemm_arguments(*operands, np.empty((4, 4)))


def test_a_vector_with_gaps_and_a_result_that_is_not_c_contiguous_are_refused():
    with pytest.raises(ValueError, match="must be C- or F-contiguous"):
        gemm_arguments(np.ones(8)[::2], np.ones((4, 4)), np.empty(4))
    with pytest.raises(ValueError, match="the result of a product must be C-contiguous"):
        gemm_arguments(np.ones((4, 4)), np.ones((4, 4)), np.empty((4, 4)).T)


# -------------------------------------------------------------------------------------- cuBLAS's calls


class Noting(Cublas):
    """A cuBLAS that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        for name in ("sgemm", "dgemm", "gemm_ex", "set_stream", "set_workspace", "set_math_mode"):
            setattr(self, name, lambda *given, name=name: self.calls.append((name, given)))


class Memory:
    """CuPy with streams whose number is `stream`, and noted allocations."""

    def __init__(self) -> None:
        self.stream, self.allocated = 5, []
        self.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=self.stream))

    def empty(self, n: int, dtype: Any) -> Any:
        self.allocated.append(n)
        return SimpleNamespace(data=SimpleNamespace(ptr=100 + len(self.allocated)))


@pytest.mark.parametrize(
    ("dtype", "method", "name", "types"),
    [
        (np.float32, "__call__", "sgemm", None),
        (np.float64, "__call__", "dgemm", None),
        (np.float16, "__call__", "gemm_ex", (2, 68)),
        (bfloat16, "__call__", "gemm_ex", (14, 68)),
        (np.float32, "tf32", "gemm_ex", (0, 77)),
        (np.float64, "tf32", "dgemm", None),
    ],
)
def test_each_dtype_has_its_call(dtype, method, name, types):
    cublas = Noting()
    products = Products(Memory(), cublas)
    a, b, out = (DeviceArray(np.ones(shape, dtype)) for shape in ((4, 3), (3, 5), (4, 5)))
    getattr(products, method)(a, b, out)
    called, given = cublas.calls[-1]
    assert called == name
    # of the rows' transposes: see gemm_arguments
    assert given[:6] == (7, 0, 0, 5, 4, 3)
    if types is None:
        _, first, first_ld, second, second_ld, _, c, c_ld = given[6:]
    else:
        _, first, first_type, first_ld, second, second_type, second_ld, _, c, c_type, c_ld, compute, algo = given[6:]
        assert (first_type, second_type, c_type) == 3 * (types[0],) and (compute, algo) == (types[1], -1)
    assert (first, second, c) == (b.data.ptr, a.data.ptr, out.data.ptr)
    assert (first_ld, second_ld, c_ld) == (5, 3, 5)


def test_each_stream_has_a_workspace_that_is_set_again_when_the_stream_changes():
    cublas, memory = Noting(), Memory()
    products = Products(memory, cublas)
    two = DeviceArray(np.ones((2, 2), np.float32))
    for memory.stream in (5, 5, 6, 5):
        products(two, two, two)
    assert cublas.calls[0] == ("set_math_mode", (7, 16)) and memory.allocated == 2 * [32 * 2**20]
    settings = [(name, given[1]) for name, given in cublas.calls if name in ("set_stream", "set_workspace")]
    assert settings == [
        *(("set_stream", 5), ("set_workspace", 101)),
        *(("set_stream", 6), ("set_workspace", 102)),
        *(("set_stream", 5), ("set_workspace", 101)),
    ]


def test_only_who_asks_for_tf32_gets_its_products():
    backend = CupyBackend.__new__(CupyBackend)
    backend.xp, backend._products = SimpleNamespace(dot="CuPy's"), None
    assert backend.product(None) == backend.product("tf32") == "CuPy's"
    backend._products = Products(Memory(), Noting())
    assert backend.product("tf32") == backend._products.tf32
    assert backend.product(None) is backend.product("float16") is backend._products
