"""Products as operations of a program: one kernel per dtype that calls the BLAS which NumPy brought.

The BLAS must be held to one thread meanwhile (`threads.blas`): the threads are the program's own.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from dnn.backends.codegen.jit import compile_module
from dnn.backends.codegen.threads import blas_function

GEMM_NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_")
"""The product with 64-bit sizes, in NumPy's wheels and in a plain OpenBLAS or MKL of that width."""


@cache
def gemm_address(dtype: Any) -> int | None:
    """Where the gemm of NumPy's own BLAS stands in memory, None where it has none of a known form."""
    gemm = blas_function(GEMM_NAMES, {"f": "s", "d": "d"}[np.dtype(dtype).char])
    return None if gemm is None else ctypes.cast(gemm, ctypes.c_void_p).value


class Mode(IntEnum):
    """What the bounds of a product's chunks count."""

    ROWS = 0
    """Rows of C."""
    COLUMNS = 1
    """Columns of C."""
    ELEMENTS = 2
    """Elements of a flat buffer of which C is a block: a chunk has the rows that begin in it."""


class Product(NamedTuple):
    """The kernel's arguments, in its order: C (M, N) = op(A) op(B), row-major; op transposes where the flag is 1."""

    mode: int
    transA: int
    transB: int
    M: int
    N: int
    K: int
    A: int
    lda: int
    B: int
    ldb: int
    C: int
    """The address of C's first element, in every mode."""
    ldc: int
    offset: int
    """Mode.ELEMENTS: which element of the flat buffer C begins with."""
    to_scratch: int
    """Mode.ELEMENTS: element e of the flat buffer goes to scratch[e - first]. Chunks must begin and end with rows."""
    swap: int
    """Mode.ROWS: Cᵀ is computed into scratch, which needs N elements a row, and then stored transposed."""
    gemm: int


def product_arguments(
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
    mode: Mode = Mode.ROWS,
    offset: int = 0,
    to_scratch: bool = False,
    swap: bool = False,
) -> np.ndarray:
    """What `Operation(product_address(dtype), ...)` needs. A, B and C are addresses, lda, ldb and ldc in elements."""
    gemm = gemm_address(dtype)
    if gemm is None:
        raise ValueError("NumPy's BLAS has no product with 64-bit sizes: see gemm_address")
    if (to_scratch and mode != Mode.ELEMENTS) or (swap and mode != Mode.ROWS):
        raise ValueError("to_scratch is for Mode.ELEMENTS and swap for Mode.ROWS")
    sizes = M, N, K, A, lda, B, ldb, C, ldc
    return np.array(Product(mode, transA, transB, *sizes, offset, to_scratch, swap, gemm), np.int64)


@cache
def product_address(dtype: Any) -> int:
    """The product kernel of this dtype."""
    text = _product_text({"f": "float", "d": "double"}[np.dtype(dtype).char])
    return compile_module(text, ["product"], optimise=False)["product"]


def _product_text(number: str) -> str:
    arguments = "\n".join(
        f"  %at_{name} = getelementptr i64, ptr %arguments, i64 {i}\n  %{name} = load i64, ptr %at_{name}"
        for i, name in enumerate(Product._fields)
    )

    def gemm(op_left: str, op_right: str, m: str, n: str, left: str, right: str, result: str) -> str:
        """result (m, n) = left right; each of the three with its leading dimension."""
        return (
            f"call void %function(i32 101, i32 {op_left}, i32 {op_right}, i64 {m}, i64 {n}, i64 %K, {number} 1.0, "
            f"ptr {left}, ptr {right}, {number} 0.0, ptr {result})"
        )

    return f"""
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)

; which of the M rows of this width, the first of which begins at element 0, is the first to begin at or after `element`
define internal i64 @row_from(i64 %element, i64 %width, i64 %M) {{
  %some = call i64 @llvm.smax.i64(i64 %width, i64 1)
  %less = sub i64 %some, 1
  %up = add i64 %element, %less
  %row = sdiv i64 %up, %some
  %not_before = call i64 @llvm.smax.i64(i64 %row, i64 0)
  %within = call i64 @llvm.smin.i64(i64 %not_before, i64 %M)
  ret i64 %within
}}

define void @product(ptr noalias %arguments, ptr noalias %scratch, i64 %first, i64 %last) {{
entry:
{arguments}
  %by_columns = icmp eq i64 %mode, {Mode.COLUMNS:d}
  %by_elements = icmp eq i64 %mode, {Mode.ELEMENTS:d}
  %scratched = icmp ne i64 %to_scratch, 0
  %swapped = icmp ne i64 %swap, 0
  %A_is_transposed = icmp ne i64 %transA, 0
  %B_is_transposed = icmp ne i64 %transB, 0
  %function = inttoptr i64 %gemm to ptr

  ; the part of C that is asked for: rows [row, row_end), columns [column, column_end)
  %first_in_C = sub i64 %first, %offset
  %last_in_C = sub i64 %last, %offset
  %begins = call i64 @row_from(i64 %first_in_C, i64 %N, i64 %M)
  %ends = call i64 @row_from(i64 %last_in_C, i64 %N, i64 %M)
  %row_0 = select i1 %by_columns, i64 0, i64 %first
  %row_1 = select i1 %by_columns, i64 %M, i64 %last
  %row = select i1 %by_elements, i64 %begins, i64 %row_0
  %row_end = select i1 %by_elements, i64 %ends, i64 %row_1
  %column = select i1 %by_columns, i64 %first, i64 0
  %column_end = select i1 %by_columns, i64 %last, i64 %N
  %rows = sub i64 %row_end, %row
  %columns = sub i64 %column_end, %column
  %some_rows = icmp sgt i64 %rows, 0
  %some_columns = icmp sgt i64 %columns, 0
  %some = and i1 %some_rows, %some_columns
  br i1 %some, label %compute, label %exit

compute:
  %stride_A = select i1 %A_is_transposed, i64 1, i64 %lda
  %stride_B = select i1 %B_is_transposed, i64 %ldb, i64 1
  %skip_A = mul i64 %row, %stride_A
  %skip_B = mul i64 %column, %stride_B
  %skip_rows = mul i64 %row, %ldc
  %skip_C = add i64 %skip_rows, %column
  %all_A = inttoptr i64 %A to ptr
  %all_B = inttoptr i64 %B to ptr
  %all_C = inttoptr i64 %C to ptr
  %from_A = getelementptr {number}, ptr %all_A, i64 %skip_A
  %from_B = getelementptr {number}, ptr %all_B, i64 %skip_B
  %own_C = getelementptr {number}, ptr %all_C, i64 %skip_C
  %skip_scratch = sub i64 %skip_rows, %first_in_C
  %in_scratch = getelementptr {number}, ptr %scratch, i64 %skip_scratch
  %to_C = select i1 %scratched, ptr %in_scratch, ptr %own_C
  %flag_A = trunc i64 %transA to i32
  %flag_B = trunc i64 %transB to i32
  br i1 %swapped, label %swapping, label %plain

plain:
  %op_A = add i32 %flag_A, 111 ; CblasNoTrans, 112 is CblasTrans
  %op_B = add i32 %flag_B, 111
  {gemm("%op_A", "%op_B", "%rows", "%columns", "%from_A, i64 %lda", "%from_B, i64 %ldb", "%to_C, i64 %ldc")}
  ret void

swapping: ; Cᵀ (columns, rows) = op(B)ᵀ op(A)ᵀ
  %op_Bt = sub i32 112, %flag_B
  %op_At = sub i32 112, %flag_A
  {gemm("%op_Bt", "%op_At", "%columns", "%rows", "%from_B, i64 %ldb", "%from_A, i64 %lda", "%scratch, i64 %rows")}
  br label %next_row

next_row:
  %i = phi i64 [ 0, %swapping ], [ %i_next, %row_done ]
  %skip_i = mul i64 %i, %ldc
  %C_i = getelementptr {number}, ptr %to_C, i64 %skip_i
  %column_i = getelementptr {number}, ptr %scratch, i64 %i
  br label %next_element

next_element:
  %j = phi i64 [ 0, %next_row ], [ %j_next, %next_element ]
  %skip_j = mul i64 %j, %rows
  %source = getelementptr {number}, ptr %column_i, i64 %skip_j
  %value = load {number}, ptr %source
  %target = getelementptr {number}, ptr %C_i, i64 %j
  store {number} %value, ptr %target
  %j_next = add nuw nsw i64 %j, 1
  %more_columns = icmp slt i64 %j_next, %columns
  br i1 %more_columns, label %next_element, label %row_done

row_done:
  %i_next = add nuw nsw i64 %i, 1
  %more_rows = icmp slt i64 %i_next, %rows
  br i1 %more_rows, label %next_row, label %exit

exit:
  ret void
}}
"""
