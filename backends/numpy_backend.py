"""NumPy on the CPU."""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends.base import Array, Backend, compiled_steps, log_once
from dnn.backends.codegen.threads import available_cores, blas, number_of_threads

if TYPE_CHECKING:
    from dnn.backends.codegen.cpu import CompiledPlan
    from dnn.backends.codegen.runtime import Pool
    from dnn.backends.plan import Plan
    from dnn.backends.plan.stepwise import Observer

ALIGNMENT = 64
"""In bytes: a cache line, and the widest vector register."""


class NumpyBackend(Backend):
    name = "numpy"
    xp = np

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._cannot_compile: str | None = None if find_spec("llvmlite") else "llvmlite is not installed"
        self._compiler_works = False

    @property
    def device(self) -> str:
        cores = available_cores()
        return f"CPU ({platform.machine()}, {cores} core{'s' if cores != 1 else ''})"

    def memory(self) -> tuple[int, int]:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:  # unknown on Windows: then nothing is refused for lack of memory
            return sys.maxsize, sys.maxsize
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        try:
            # memory that the system can reclaim from its file cache counts as free
            with open("/proc/meminfo") as file:
                available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):  # unknown on macOS
            return page * total, page * total
        return 1024 * available, page * total

    def facts(self) -> dict[str, str]:
        dependencies = np.show_config(mode="dicts")["Build Dependencies"]
        blas = dependencies["blas"]
        if self.compiles():
            from importlib.metadata import version

            steps = f"compiled by llvmlite {version('llvmlite')}"
        elif find_spec("llvmlite") is None:
            steps = "operation by operation: pip install llvmlite for compiled steps"
        else:
            steps = f"operation by operation: {self._cannot_compile or 'DNN_COMPILED says so'}"
        return {
            "NumPy": np.__version__,
            "BLAS": f"{blas['name']} {blas['version']}",
            "threads": str(number_of_threads()),
            "steps": steps,
        }

    def take(self, source: Array, rows: Array, out: Array) -> None:
        # mode="clip": the default mode buffers the whole output, to leave it unchanged if a row is out of range
        source.take(rows, axis=0, out=out, mode="clip")

    def compile(self, plan: Plan) -> Callable[..., None]:
        """Machine code on the run's threads if llvmlite is usable, else operation by operation."""
        if not self.compiles():
            return self.run_stepwise(plan)
        with blas.call(None):
            from dnn.backends.codegen.cpu import CompiledPlan

            return _Compiled(self, CompiledPlan(plan, self._threads(), self.zeros))

    def run_stepwise(self, plan: Plan, observe: Observer | None = None) -> Callable[..., None]:
        stepwise = super().run_stepwise(plan, observe)

        def run(times: int = 1) -> None:
            run = self.current_run()
            with blas.call(0 if run is None else run.threads):
                stepwise(times)

        return run

    def plan_bytes(self, plan: Plan) -> int:
        if not self.compiles():
            return super().plan_bytes(plan)
        with blas.call(None):
            from dnn.backends.codegen.cpu import CompiledPlan

            return CompiledPlan(plan, self._threads(), None).nbytes

    def compiles(self) -> bool:
        """Whether steps are to be compiled and can be, which is tried out on the first call."""
        if self._cannot_compile is None and compiled_steps() and not self._compiler_works:
            with blas.call(None):
                self._try_compiler()
        return self._cannot_compile is None and compiled_steps()

    def _try_compiler(self) -> None:
        try:
            from dnn.backends.codegen.blas import gemm_address, product_address

            if gemm_address(np.float32) is None:
                self._cannot_compile = "NumPy's BLAS has no product of a known form that compiled code could call"
            else:
                product_address(np.float32)
                self._compiler_works = True
        except Exception as cause:  # an llvmlite that does not work with this machine or Python
            self._cannot_compile = f"llvmlite cannot be used: {cause}"
        if self._cannot_compile:
            log_once(f"steps run operation by operation: {self._cannot_compile}")

    @contextmanager
    def stream(self, threads: int | None = None) -> Iterator[object]:
        """One run's threads: `threads`, else the environment's setting (`number_of_threads`), else one per core.

        And its arithmetic, in which an overflow is inf and an underflow 0, whatever the caller has NumPy do about them.
        """
        outside = getattr(self._of_thread, "run", None)
        run = outside or _Run(number_of_threads(threads))
        self._of_thread.run = run
        try:
            with np.errstate(all="ignore"):
                yield run
        finally:
            self._of_thread.run = outside
            if outside is None:
                run.stop()

    def current_run(self) -> _Run | None:
        """The run that this thread belongs to."""
        return getattr(self._of_thread, "run", None)

    def _threads(self) -> int:
        run = self.current_run()
        return 1 if run is None else run.threads

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


class _Run:
    """The threads of one run: a pool for compiled plans, and the number of the BLAS's own for its products."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.compiled_call = threading.get_ident(), 1
        self._pool: Pool | None = None
        blas.begin_run()

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            with blas.call(None):
                from dnn.backends.codegen.runtime import Pool

                self._pool = Pool(self.threads)
        return self._pool

    def stop(self) -> None:
        try:
            if self._pool is not None:
                self._pool.stop()
        finally:
            blas.end_run()


class _Compiled:
    """A compiled plan. It runs on the threads of the current run; outside of one, on the calling thread alone."""

    def __init__(self, backend: NumpyBackend, plan: CompiledPlan) -> None:
        self._backend, self.plan = backend, plan
        self._run: _Run | None = None
        self._call: Callable[[], None] | None = None

    def __call__(self, times: int = 1) -> None:
        run = self._backend.current_run()
        if run is not self._run or self._call is None:
            with blas.call(None):
                from dnn.backends.codegen.runtime import Pool

                self._run, self._pool = run, Pool(1) if run is None else run.pool
                self._call = self._pool.bind(self.plan.program)
        # each thread of a program calls the BLAS on its own; outside of a run, that is this one alone
        call = (threading.get_ident(), 0) if run is None else run.compiled_call
        blas.enter(call)
        try:
            for _ in range(times):
                self._call()
        finally:
            blas.leave(call)


def _aligned(make: Any, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    # NumPy guarantees only 16 bytes; the vector units split every access that crosses a cache line
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize * (shape if isinstance(shape, int) else math.prod(shape))
    raw = make(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
