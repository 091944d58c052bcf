"""The one owner of threads: helpers that run programs together with the thread that asks for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends.compiled.machine import blas_threads, gemm_address, waiting_addresses

if TYPE_CHECKING:
    from dnn.backends.compiled.program import Program


def number_of_threads(given: int | None = None) -> int:
    """`given`, else what DNN_NUM_THREADS says, else one a core that this process may use. ValueError below 1."""
    if given is None:
        text = os.environ.get("DNN_NUM_THREADS", "").strip()
        if not text:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"DNN_NUM_THREADS must be a whole number from 1 on, got {text!r}")
        return int(text)
    if given < 1:
        raise ValueError(f"threads must be at least 1, got {given}")
    return given


class _Blas:
    """The BLAS's own threads, which all of the process shares: held to the fewest that any run asks for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: list[int] = []
        self._held: list[int] = []

    def hold(self, threads: int) -> None:
        with self._lock:
            if not self._held:
                self._before = [get() for get, _ in blas_threads()]
            self._held.append(threads)
            self._set()

    def release(self, threads: int) -> None:
        with self._lock:
            self._held.remove(threads)
            self._set()

    def _set(self) -> None:
        for (_, set_threads), before in zip(blas_threads(), self._before, strict=True):
            set_threads(min(self._held, default=before))


blas = _Blas()


class Pool:
    """Threads for one run's programs. They start with the first program that wants them, and stay awake for the next.

    From the first program on a product is each thread's own: the BLAS is held to one thread until `stop`. Before it,
    and where there is none, the BLAS has its own threads, as many as were asked for.
    """

    def __init__(self, threads: int, limited: int | None = None, of_a_run: bool = True) -> None:
        self.threads = threads if waiting_addresses() else 1
        self.uncompiled = False
        """Whether a step of this run could not be compiled: then none of it is, and the BLAS keeps its threads."""
        self.of_a_run = of_a_run
        self._helpers: list[threading.Thread] = []
        self._held: list[int] = []
        self._sync = np.zeros(0, np.int64)
        self._dtype: Any = None
        if limited is not None:
            self._hold(limited)

    def _hold(self, threads: int) -> None:
        blas.hold(threads)
        self._held.append(threads)

    def bound(self, program: Program) -> tuple[Callable[..., None], tuple[Any, ...], Any]:
        """What runs the program on these threads, its arguments, and what must be kept as long."""
        from dnn.backends.compiled import kernels

        if self.of_a_run and 1 not in self._held:
            self._hold(1)
        threads = program.threads(self.threads)
        if not self._sync.size:
            room = np.zeros(kernels.SYNC + 8, np.int64)
            self._sync = room[-room.ctypes.data % 64 // 8 :][: kernels.SYNC]  # each counter on a line of its own
        one, message = np.ones(1, program.dtype), np.zeros(kernels.GO, np.int64)
        message[kernels.YIELD], message[kernels.SLEEP] = waiting_addresses() or (0, 0)
        if threads > 1:
            if not self._helpers:
                self._sync[: kernels.GO] = message
                self._start(threads - 1, kernels.run, one)
            # those that are there; if they run the other dtype's code, none
            threads = min(threads, 1 + len(self._helpers)) if self._dtype == program.dtype else 1
        bounds = program.bounds(threads)
        message[kernels.OPS], message[kernels.COUNT] = program.table.ctypes.data, len(program.table)
        message[kernels.BOUNDS], message[kernels.THREADS] = bounds.ctypes.data, threads
        message[kernels.GEMM] = gemm_address(program.dtype) or 0
        held = program.table, bounds  # the message has their addresses
        return kernels.run, (one, message, self._sync, len(self._helpers), 0), held

    def _start(self, helpers: int, run: Any, one: np.ndarray) -> None:
        self._dtype = one.dtype
        for number in range(1, helpers + 1):
            message = np.zeros_like(self._sync)
            helper = threading.Thread(target=run, args=(one, message, self._sync, 0, number), daemon=True)
            helper.start()
            self._helpers.append(helper)

    def stop(self) -> None:
        """End the threads, and give the BLAS its own back."""
        try:
            if self._helpers:
                from dnn.backends.compiled import kernels

                kernels.stop(self._sync)
                for helper in self._helpers:
                    helper.join()
                self._helpers.clear()
        finally:
            while self._held:
                blas.release(self._held.pop())
