"""Products of matrices by a cuBLAS handle of our own: CuPy refuses to use its own while a graph is captured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dnn.backends.base import Array

_CUDA_R_32F, _CUDA_R_16F, _CUDA_R_16BF = 0, 2, 14
"""cudaDataType_t, from CUDA's library_types.h."""


def gemm_arguments(a: Array, b: Array, out: Array) -> tuple[int, int, int, int, int, Array, int, Array, int, int]:
    """What makes cuBLAS, which is column-major, compute out = a b. ValueError for an operand that it cannot read.

    a (rows, k) or (k,), b (k, columns), each C- or F-contiguous; out (rows, columns) or (columns,), C-contiguous. A
    C-contiguous array read in column-major order is its transpose, so the product to ask for is outᵀ = bᵀ aᵀ.

    (transpose first, transpose second, m, n, k, first, its leading dimension, second, its leading dimension, out's).
    """
    rows = 1 if a.ndim == 1 else a.shape[0]
    k, columns = b.shape
    if not out.flags.c_contiguous:
        raise ValueError(f"the result of a product must be C-contiguous, got strides {out.strides} for {out.shape}")
    transpose_b, leading_b = _operand(b)
    transpose_a, leading_a = (0, k) if a.ndim == 1 and a.flags.c_contiguous else _operand(a)
    return transpose_b, transpose_a, columns, rows, k, b, leading_b, a, leading_a, columns


def _operand(array: Array) -> tuple[int, int]:
    """(whether its transpose must be transposed back, its leading dimension)"""
    if array.flags.c_contiguous:
        return 0, array.shape[1]
    if array.flags.f_contiguous and array.ndim == 2:
        return 1, array.shape[0]
    raise ValueError(
        f"an operand of a product must be C- or F-contiguous, got strides {array.strides} for {array.shape}: "
        "copy it with xp.ascontiguousarray first"
    )


class Products:
    """`products(a, b, out)` computes out = a b in the arrays' dtype, `products.tf32(a, b, out)` in TF32.

    In 16 bits sums are taken in float32. Workspaces are allocated once a stream and kept: a graph holds their address.
    """

    WORKSPACE = 32 * 2**20

    def __init__(self, cupy: Any, cublas: Any) -> None:
        """`cublas` is the module nvmath.bindings.cublas."""
        self._cupy = cupy
        self._set_stream, self._set_workspace = cublas.set_stream, cublas.set_workspace
        self._handle = cublas.create()
        self._workspaces: dict[int, Array] = {}
        self._stream: int | None = None
        self._lock = threading.Lock()
        # else the sums of a product's parts could be in 16 bits
        cublas.set_math_mode(self._handle, cublas.Math.DISALLOW_REDUCED_PRECISION_REDUCTION)
        compute = cublas.ComputeType

        def gemm_in(data_type: int, compute_type: int) -> Callable[..., None]:
            def gemm(*given: Any) -> None:
                *ops_and_sizes, one, first, first_ld, second, second_ld, zero, out, out_ld = given
                a, b, c = (first, data_type, first_ld), (second, data_type, second_ld), (out, data_type, out_ld)
                cublas.gemm_ex(*ops_and_sizes, one, *a, *b, zero, *c, compute_type, cublas.GemmAlgo.DEFAULT)

            return gemm

        # by dtype.char: float32, float64, float16, bfloat16; and tf32
        self._gemms: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {}
        for name, gemm, factors in (
            ("f", cublas.sgemm, np.float32),
            ("d", cublas.dgemm, np.float64),
            ("tf32", gemm_in(_CUDA_R_32F, compute.COMPUTE_32F_FAST_TF32), np.float32),
            ("e", gemm_in(_CUDA_R_16F, compute.COMPUTE_32F), np.float32),
            ("E", gemm_in(_CUDA_R_16BF, compute.COMPUTE_32F), np.float32),
        ):
            self._gemms[name] = (gemm, np.ones(1, factors), np.zeros(1, factors))

    def __call__(self, a: Array, b: Array, out: Array) -> None:
        self._product(out.dtype.char, a, b, out)

    def tf32(self, a: Array, b: Array, out: Array) -> None:
        """Float32 operands are rounded to TF32 where they are multiplied; other dtypes are as they are."""
        self._product("tf32" if out.dtype.char == "f" else out.dtype.char, a, b, out)

    def _product(self, kind: str, a: Array, b: Array, out: Array) -> None:
        gemm, one, zero = self._gemms[kind]
        first_op, second_op, m, n, k, first, first_ld, second, second_ld, out_ld = gemm_arguments(a, b, out)
        with self._lock:
            stream = self._cupy.cuda.get_current_stream().ptr
            if stream != self._stream:
                self._set_stream(self._handle, stream)
                # cuBLAS goes back to a workspace of its own whenever the stream changes
                if stream not in self._workspaces:
                    self._workspaces[stream] = self._cupy.empty(self.WORKSPACE, np.uint8)
                self._set_workspace(self._handle, self._workspaces[stream].data.ptr, self.WORKSPACE)
                self._stream = stream
            gemm(
                self._handle,
                first_op,
                second_op,
                m,
                n,
                k,
                one.ctypes.data,
                first.data.ptr,
                first_ld,
                second.data.ptr,
                second_ld,
                zero.ctypes.data,
                out.data.ptr,
                out_ld,
            )
