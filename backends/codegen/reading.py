"""Rows of a file, read by one call of machine code: in Python a call of pread a row costs as much as the copy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np

ReadRows = Callable[[int, np.ndarray, int, np.ndarray, np.ndarray], bool]
"""(file descriptor, out (n, ...), where row 0 begins in the file, rows (n,) int64, places (n,) int64): reads row rows_i
to place places_i of out; gives whether all could be read."""

_TEXT = """
declare i64 @pread(i32, ptr, i64, i64)

define i64 @read_rows(i32 %file, ptr %out, i64 %size, i64 %start, ptr %rows, ptr %places, i64 %n) {
entry:
  br label %test
test:
  %i = phi i64 [0, %entry], [%next, %more]
  %some = icmp slt i64 %i, %n
  br i1 %some, label %loop, label %done
loop:
  %at = getelementptr i64, ptr %rows, i64 %i
  %row = load i64, ptr %at
  %skip = mul i64 %row, %size
  %from = add i64 %start, %skip
  %there = getelementptr i64, ptr %places, i64 %i
  %number = load i64, ptr %there
  %place = mul i64 %number, %size
  %to = getelementptr i8, ptr %out, i64 %place
  %got = call i64 @pread(i32 %file, ptr %to, i64 %size, i64 %from)
  %whole = icmp eq i64 %got, %size
  br i1 %whole, label %more, label %done
more:
  %next = add i64 %i, 1
  br label %test
done:
  ret i64 %i
}
"""


def read_rows_one_by_one(file: int, out: np.ndarray, start: int, rows: np.ndarray, places: np.ndarray) -> bool:
    view = out.reshape(-1).view(np.uint8).data
    size = out.nbytes // max(len(out), 1)
    for offset, place in zip((rows * size + start).tolist(), (places * size).tolist(), strict=True):
        if os.preadv(file, (view[place : place + size],), offset) != size:
            return False
    return True


@cache
def read_rows() -> ReadRows | None:
    """The fastest way of this machine; None where there is no pread. The GIL is free while it reads."""
    if not hasattr(os, "preadv"):
        return None
    if find_spec("llvmlite") is None:
        return read_rows_one_by_one
    try:
        from dnn.backends.codegen.jit import compile_module

        address = compile_module(_TEXT, ["read_rows"], optimise=False)["read_rows"]
    except Exception:  # an llvmlite that does not work here, which steps have said already
        return read_rows_one_by_one
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
    )
    call = kind(address)

    def compiled(file: int, out: np.ndarray, start: int, rows: np.ndarray, places: np.ndarray) -> bool:
        assert out.flags.c_contiguous
        assert all(a.flags.c_contiguous and a.dtype == np.int64 and a.shape == (len(out),) for a in (rows, places))
        size = out.nbytes // max(len(out), 1)
        done = call(file, out.ctypes.data, size, start, rows.ctypes.data, places.ctypes.data, len(rows))
        return done == len(rows)

    return compiled
