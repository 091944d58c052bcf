"""Products of matrices by cuBLAS handles of our own: CuPy refuses to use its own while a graph is captured.

The C functions are called by ctypes, on the libcublas that CuPy uses too.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from ctypes import c_int, c_void_p
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from dnn.backends.base import Array

WORKSPACE_BYTES = 32 * 2**20
"""What NVIDIA recommends for its largest devices."""

_INT_MAX = 2**31 - 1
_MATRIX = c_void_p, c_int, c_int  # address, data type, leading dimension
_SIGNATURES = {
    "cublasCreate_v2": (c_void_p,),
    "cublasDestroy_v2": (c_void_p,),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, ctypes.c_size_t),
    "cublasSetMathMode": (c_void_p, c_int),
    # handle, two operations, m, n, k, alpha, A, B, beta, C, compute type, algorithm
    "cublasGemmEx": (c_void_p, *5 * (c_int,), c_void_p, *2 * _MATRIX, c_void_p, *_MATRIX, c_int, c_int),
}

# from cublas_api.h; the same in CUDA 12 and 13
_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
_GEMM_DEFAULT = -1
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
# from library_types.h
_R_32F, _R_64F, _R_16F, _R_16BF = 0, 1, 2, 14


@cache
def load() -> Any:
    """The libcublas that is loaded already, or else the one that CuPy would load."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    for name, types in _SIGNATURES.items():
        getattr(library, name).argtypes = types
    library.cublasGetStatusName.argtypes = (c_int,)
    library.cublasGetStatusName.restype = ctypes.c_char_p
    return library


def _check(library: Any, status: int, call: str) -> None:
    if status:
        name = library.cublasGetStatusName(status).decode()
        raise RuntimeError(f"{call}: expected CUBLAS_STATUS_SUCCESS, got {name} ({status})")


class _Kind(NamedTuple):
    """How products of a dtype are computed; alpha and beta are addresses on the host."""

    data_type: int
    compute_type: int
    alpha: int
    beta: int


_FLOATS, _DOUBLES = (ctypes.c_float * 2)(1, 0), (ctypes.c_double * 2)(1, 0)
_FLOAT_FACTORS = ctypes.addressof(_FLOATS), ctypes.addressof(_FLOATS) + 4
_DOUBLE_FACTORS = ctypes.addressof(_DOUBLES), ctypes.addressof(_DOUBLES) + 8
_TF32 = _Kind(_R_32F, _COMPUTE_32F_FAST_TF32, *_FLOAT_FACTORS)
_KINDS = {  # by dtype.char: float32, float64, float16, bfloat16
    "f": _Kind(_R_32F, _COMPUTE_32F, *_FLOAT_FACTORS),
    "d": _Kind(_R_64F, _COMPUTE_64F, *_DOUBLE_FACTORS),
    "e": _Kind(_R_16F, _COMPUTE_32F, *_FLOAT_FACTORS),
    "E": _Kind(_R_16BF, _COMPUTE_32F, *_FLOAT_FACTORS),
}


def _operand(array: Array) -> tuple[bool, int]:
    """(whether it is the transpose of what its memory holds row by row, the length of such a row)"""
    if array.flags.c_contiguous:
        return False, array.shape[-1]
    if array.flags.f_contiguous and array.ndim == 2:
        return True, array.shape[0]
    raise ValueError(
        f"an operand of a product must be C- or F-contiguous, got strides {array.strides} for {array.shape}: "
        "copy it with xp.ascontiguousarray first"
    )


def _with_gaps(array: Array) -> tuple[bool, int]:
    """As `_operand`, of what may be columns of a wider matrix."""
    flags, itemsize = array.flags, array.dtype.itemsize
    if flags.c_contiguous or flags.f_contiguous or itemsize not in array.strides:
        return _operand(array)
    return array.strides[1] != itemsize, max(array.strides) // itemsize


class Handle:
    """A cuBLAS handle and its workspace, of one thread on one device."""

    def __init__(self, cupy: Any, library: Any, device: int) -> None:
        self._cupy, self._library, self._device = cupy, library, device
        self._stream: int | None = None
        self.address: int | None = None
        created = c_void_p()
        with cupy.cuda.Device(device):
            self._workspace = cupy.empty(WORKSPACE_BYTES, np.uint8)
            _check(library, library.cublasCreate_v2(ctypes.byref(created)), "cublasCreate")
            self.address = created.value
            # else the sums of a product's parts could be in 16 bits
            mode = _DISALLOW_REDUCED_PRECISION_REDUCTION
            _check(library, library.cublasSetMathMode(self.address, mode), f"cublasSetMathMode({mode})")

    def use(self, stream: int) -> None:
        """Queue the products that follow on this stream."""
        if stream == self._stream:
            return
        self._stream = None
        _check(self._library, self._library.cublasSetStream_v2(self.address, stream), "cublasSetStream")
        # cuBLAS goes back to a workspace of its own whenever the stream is set
        workspace = self._workspace.data.ptr
        status = self._library.cublasSetWorkspace_v2(self.address, workspace, WORKSPACE_BYTES)
        _check(self._library, status, f"cublasSetWorkspace of {WORKSPACE_BYTES} bytes")
        self._stream = stream

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # waits for the device, so that the workspace can be given to somebody else
        if self.address is not None and not is_finalizing():
            with self._cupy.cuda.Device(self._device):
                self._library.cublasDestroy_v2(self.address)


class Products:
    """`products(a, b, out)` computes out = a b in the arrays' dtype, `products.tf32(a, b, out)` in TF32.

    In 16 bits sums are taken in float32. Each thread has a handle and a workspace of its own, from its first product on
    until it ends, on the device that was current when this was made; that device must be current in every call.
    """

    def __init__(self, cupy: Any, library: Any) -> None:
        """`library` is what `load` returns."""
        self._cupy, self._library = cupy, library
        self._device = cupy.cuda.Device().id
        self._of_thread = threading.local()

    def __call__(self, a: Array, b: Array, out: Array) -> None:
        self.bind(a, b, out)()

    def tf32(self, a: Array, b: Array, out: Array) -> None:
        """Float32 operands are rounded to TF32 where they are multiplied; other dtypes are as they are."""
        self.bind(a, b, out, tf32=True)()

    def bind(
        self, a: Array, b: Array, out: Array, *, tf32: bool = False, strided: bool = False
    ) -> Callable[[], object]:
        """What computes out = a b, of these arrays, each time it is called: they are examined once.

        a (rows, k) or (k,), b (k, columns), each C- or F-contiguous; out (rows, columns) or (columns,), C-contiguous.
        `strided`: each may be columns of a wider matrix.
        """
        if not (out.flags.c_contiguous or (strided and out.strides[-1] == out.dtype.itemsize)):
            raise ValueError(f"the result of a product must be C-contiguous, got strides {out.strides} for {out.shape}")
        shapes = a.shape, b.shape, out.shape
        if b.ndim != 2 or a.shape[-1:] != b.shape[:1] or out.shape != (*a.shape[:-1], b.shape[1]) or a.ndim > 2:
            raise ValueError(f"a product takes (m, k) or (k,), (k, n), and out (m, n) or (n,), got {shapes}")
        if not a.dtype == b.dtype == out.dtype:
            raise ValueError(
                f"a product takes arrays of one dtype, got {a.dtype}, {b.dtype} and {out.dtype}: cast first"
            )
        (k, columns), rows = b.shape, 1 if a.ndim == 1 else a.shape[0]
        operand = _with_gaps if strided else _operand
        (transA, lda), (transB, ldb) = operand(a), operand(b)
        if not (k and out.size):  # there may be no memory to point to
            return partial(out.fill, 0)
        A, B, C, ldc = a.data.ptr, b.data.ptr, out.data.ptr, operand(out)[1]
        bound = self.bind_addresses(
            out.dtype, rows, columns, k, A, lda, B, ldb, C, ldc, transA=transA, transB=transB, tf32=tf32
        )
        return partial(bound, a, b, out)  # which keeps them

    def bind_addresses(
        self,
        dtype: Any,
        M: int,
        N: int,
        K: int,
        A: int,
        lda: int,
        B: int,
        ldb: int,
        C: int,
        ldc: int,
        *,
        transA: bool = False,
        transB: bool = False,
        tf32: bool = False,
    ) -> Callable[..., None]:
        """What computes C (M, N) = op(A) op(B), row-major, each time it is called; op transposes where the flag is set.

        A, B and C are addresses of memory that must outlive it, lda, ldb and ldc the lengths of their rows in elements.
        """
        char = np.dtype(dtype).char
        if char not in _KINDS:
            raise ValueError(f"a product takes float32, float64, float16 or bfloat16, got {np.dtype(dtype)}")
        if max(M, N, K, lda, ldb, ldc) > _INT_MAX:  # ctypes would cut them without a word
            raise ValueError(f"a product takes sizes up to {_INT_MAX}, got {M} x {K} x {N}: multiply in parts")
        data_type, compute_type, alpha, beta = _TF32 if tf32 and char == "f" else _KINDS[char]
        # cuBLAS is column-major. Row-major memory read so holds the transpose, and Cᵀ = op(B)ᵀ op(A)ᵀ
        first, second, out = (B, data_type, ldb), (A, data_type, lda), (C, data_type, ldc)
        sizes = int(transB), int(transA), N, M, K
        return partial(self._gemm, (*sizes, alpha, *first, *second, beta, *out, compute_type, _GEMM_DEFAULT))

    def _gemm(self, arguments: tuple[int, ...], *_kept: Array) -> None:
        handle = self.handle()
        handle.use(self._cupy.cuda.get_current_stream().ptr)
        status = self._library.cublasGemmEx(handle.address, *arguments)
        if status:
            transB, transA, N, M, K, _, _, data_type, ldb, _, _, lda, *_, ldc, compute_type, _ = arguments
            operands = f"A ({lda} a row{', transposed' * transA}) and B ({ldb} a row{', transposed' * transB})"
            what = f"cublasGemmEx of {M} x {K} x {N}, {operands}, C ({ldc} a row), types {data_type}, {compute_type}"
            _check(self._library, status, what)

    def handle(self) -> Handle:
        """This thread's handle. A graph keeps its workspace's address: whoever holds the graph must hold the handle."""
        found = getattr(self._of_thread, "handle", None)
        if found is None:
            found = self._of_thread.handle = Handle(self._cupy, self._library, self._device)
        return found

    @property
    def has_handle(self) -> bool:
        """Whether this thread's workspace is allocated."""
        return hasattr(self._of_thread, "handle")
