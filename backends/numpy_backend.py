"""NumPy on the CPU."""

from __future__ import annotations

import math
import os
import platform
import sys
from typing import Any

import numpy as np

from backends.base import Array, Backend

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""


def gather(xp: Any, source: Array, rows: Array, scale: Any, *, out: Array, scratch: Array) -> None:
    """dnn.functional.gather."""
    # mode="clip": the default buffers a whole copy of what it writes, to leave it untouched if a row is wrong
    source.take(rows, axis=0, out=scratch, mode="clip")
    if scale is not None:
        np.multiply(scratch, scale, out=out)
    elif scratch is not out:
        out[...] = scratch


class NumpyBackend(Backend):
    name = "numpy"
    xp = np
    kernels = {"gather": gather}  # noqa: RUF012

    @property
    def device(self) -> str:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"CPU ({platform.machine()}, {cores} core{'s' if cores != 1 else ''})"

    def memory(self) -> tuple[int, int]:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:  # Windows does not say: then nothing is refused for want of memory
            return sys.maxsize, sys.maxsize
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        try:
            # what the system would take back from its file cache is free too
            with open("/proc/meminfo") as file:
                available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):  # macOS does not say
            return page * total, page * total
        return 1024 * available, page * total

    def facts(self) -> dict[str, str]:
        dependencies = np.show_config(mode="dicts")["Build Dependencies"]
        blas = dependencies["blas"]
        return {"NumPy": np.__version__, "BLAS": f"{blas['name']} {blas['version']}", "threads": _threads()}

    def owns(self, array: object) -> bool:
        return isinstance(array, (np.ndarray, np.generic))

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return _aligned(np.empty, shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return _aligned(np.zeros, shape, dtype)

    def asarray(self, array: object, dtype: Any = None) -> Array:
        return np.asarray(array, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.asarray(array)


def _threads() -> str:
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    limits = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ", ".join(limits) or "one a core"


def _aligned(make: Any, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    # NumPy promises 16 bytes only; the vector units split every access that crosses a cache line
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize * (shape if isinstance(shape, int) else math.prod(shape))
    raw = make(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
