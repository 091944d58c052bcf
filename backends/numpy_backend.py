"""NumPy on the CPU."""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends.base import Array, Backend, log_once
from dnn.backends.compiled.machine import gemm_address
from dnn.backends.compiled.recording import recordable
from dnn.backends.compiled.threads import Pool, number_of_threads

if TYPE_CHECKING:
    from dnn.backends.compiled.program import Program

SPECIFICATIONS = "dnn.functional"
"""The module whose functions the compiled operations are versions of."""

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

    def __init__(self) -> None:
        self._run = threading.local()
        self._compiles = find_spec("numba") is not None and gemm_address(np.float32) is not None
        self._why_not = "no product of its BLAS is known that compiled programs could call"

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
        self._import_compiler()
        dependencies = np.show_config(mode="dicts")["Build Dependencies"]
        blas = dependencies["blas"]
        steps = "operation by operation"
        if find_spec("numba") is None:
            steps += ": pip install 'dnn[fast]' for compiled programs"
        elif not self._compiles:
            steps += f": {self._why_not}"
        return {
            "NumPy": np.__version__,
            "BLAS": f"{blas['name']} {blas['version']}",
            "threads": str(number_of_threads()),
            "steps": f"compiled by Numba {version('numba')}" if self._compiles else steps,
        }

    def fused(self, function: Callable[..., None], precision: str | None = None) -> Callable[..., None]:
        own, name = super().fused(function), function.__name__
        if not self._compiles:
            return own
        # compiled is what the specification says: another function, or another version of it than ours, may do other
        ours = own in (function, NumpyBackend.kernels.get(name)) and function.__module__ == SPECIFICATIONS
        return recordable(name if ours else f"{name} of {own.__module__}", own)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step as a compiled program, where Numba is there and knows all that the step does."""
        pool = self.pool()
        if pool.uncompiled or not self._import_compiler():
            return step
        from dnn.backends.compiled.program import NotCapturable, Program

        try:
            return _Compiled(self, Program(step, pool.threads))
        except NotCapturable as cause:
            pool.uncompiled = pool.of_a_run
            log_once(f"this step runs uncompiled: {cause}")
            return step

    def _import_compiler(self) -> bool:
        """Whether steps can be compiled; the first time, by trying."""
        if self._compiles:
            try:
                import dnn.backends.compiled.program  # noqa: F401
            except Exception as cause:  # a Numba that does not fit this NumPy; no place for its cache
                self._compiles, self._why_not = False, f"Numba cannot be used: {cause}"
                if "no locator" in self._why_not:
                    self._why_not += " (set NUMBA_CACHE_DIR to a folder that can be written)"
                log_once(f"steps run uncompiled: {self._why_not}")
        return self._compiles

    @contextmanager
    def stream(self, threads: int | None = None) -> Iterator[object]:
        """One run's threads: `threads`, else DNN_NUM_THREADS, else one a core."""
        asked = threads is not None or "DNN_NUM_THREADS" in os.environ
        number = number_of_threads(threads)
        outside = getattr(self._run, "pool", None)
        self._run.pool = pool = outside or Pool(number, limited=number if asked else None)
        try:
            yield pool
        finally:
            self._run.pool = outside
            if outside is None:
                pool.stop()

    def pool(self) -> Pool:
        """The threads of the run that this thread is in; outside of one, itself alone."""
        pool = getattr(self._run, "pool", None) or getattr(self._run, "alone", None)
        if pool is None:
            pool = self._run.alone = Pool(1, of_a_run=False)
        return pool

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


class _Compiled:
    """A step as a program, on the threads of the run that it is called in."""

    def __init__(self, backend: NumpyBackend, program: Program) -> None:
        self._backend = backend
        self._program = program
        self._pool: Pool | None = None

    def __call__(self) -> None:
        pool = self._backend.pool()
        if pool is not self._pool:
            self._pool = pool
            self._run, self._arguments, self._held = pool.bound(self._program)
        self._run(*self._arguments)


def _aligned(make: Any, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    # NumPy promises 16 bytes only; the vector units split every access that crosses a cache line
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize * (shape if isinstance(shape, int) else math.prod(shape))
    raw = make(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
