"""The one owner of threads: helpers that run programs together with the thread that asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.compiled.machine import gemm_address, waiting_addresses

if TYPE_CHECKING:
    from backends.compiled.program import Program

WORTH = 1_500_000
"""Multiplications that a thread must have of its own to be worth the meeting."""


def number_of_threads(given: int | None = None) -> int:
    """`given`, else what DNN_NUM_THREADS says, else one a core that this process may use. ValueError below 1."""
    if given is None:
        text = os.environ.get("DNN_NUM_THREADS", "").strip()
        if not text:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"DNN_NUM_THREADS must be a whole number from 1 on, got {text!r}")
        return int(text)
    if given < 1:
        raise ValueError(f"threads must be at least 1, got {given}")
    return given


class Pool:
    """Threads for one run's programs. They start with the first program that wants them, and stay awake for the next.

    From the first program on a product is each thread's own: the BLAS is held to one thread until `stop`. Before it,
    and where there is none, the BLAS has its own threads, as many as were asked for.
    """

    def __init__(self, threads: int, limited: int | None = None) -> None:
        self.threads = threads if waiting_addresses() else 1
        self._helpers: list[Thread] = []
        self._limits: list[Any] = []
        self._for_programs = False
        self._sync = np.zeros(0, np.int64)
        self._dtype: Any = None
        if limited is not None:
            self._limit(limited)

    def _limit(self, threads: int) -> None:
        from threadpoolctl import threadpool_limits

        self._limits.append(threadpool_limits(threads, user_api="blas"))

    def bound(self, program: Program) -> tuple[Callable[..., None], tuple[Any, ...], Any]:
        """What runs the program on these threads, its arguments, and what must be kept as long."""
        from backends.compiled import kernels

        if not self._for_programs:
            self._for_programs = True
            self._limit(1)
        threads = int(max(1, min(self.threads, program.work // WORTH)))
        if self._helpers and self._dtype != program.dtype:
            threads = 1  # the helpers run the other dtype's code
        one, bounds, message = np.ones(1, program.dtype), program.bounds(threads), np.zeros(kernels.GO, np.int64)
        message[kernels.OPS], message[kernels.COUNT] = program.table.ctypes.data, len(program.table)
        message[kernels.BOUNDS], message[kernels.THREADS] = bounds.ctypes.data, threads
        message[kernels.GEMM] = gemm_address(program.dtype) or 0
        message[kernels.YIELD], message[kernels.SLEEP] = waiting_addresses() or (0, 0)
        if not self._sync.size:
            room = np.zeros(kernels.SYNC + 8, np.int64)
            self._sync = room[-room.ctypes.data % 64 // 8 :][: kernels.SYNC]  # each counter on a line of its own
            self._sync[: kernels.GO] = message
        if threads > 1 and not self._helpers:
            self._start(kernels.run, one)
        held = program.table, bounds  # the message has their addresses
        return kernels.run, (one, message, self._sync, len(self._helpers), 0), held

    def _start(self, run: Any, one: np.ndarray) -> None:
        self._dtype = one.dtype
        for number in range(1, self.threads):
            message = np.zeros_like(self._sync)
            helper = Thread(target=run, args=(one, message, self._sync, 0, number), daemon=True)
            helper.start()
            self._helpers.append(helper)

    def stop(self) -> None:
        """End the threads, and give the BLAS its own back."""
        if self._helpers:
            from backends.compiled import kernels

            kernels.stop(self._sync)
            for helper in self._helpers:
                helper.join()
            self._helpers.clear()
        while self._limits:
            self._limits.pop().restore_original_limits()
