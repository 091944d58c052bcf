"""How many threads a run may have, and the hold on the BLAS's own meanwhile. Needs no compiler."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

THREADS_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_")
"""OpenBLAS's number of threads: get and set; in NumPy's wheels, and in a plain OpenBLAS with 64-bit sizes."""


def number_of_threads(given: int | None = None, root: Path = Path("/")) -> int:
    """`given`, else what DNN_NUM_THREADS, OMP_NUM_THREADS or OPENBLAS_NUM_THREADS says, else one a core.

    Never more than the cores that this process may use. ValueError below 1.
    """
    cores = available_cores(root)
    if given is not None:
        if given < 1:
            raise ValueError(f"threads must be at least 1, got {given}")
        return min(given, cores)
    text = os.environ.get("DNN_NUM_THREADS", "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"DNN_NUM_THREADS must be a whole number from 1 on, got {text!r}")
        return min(int(text), cores)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        # OpenMP's may be a list, one number a level of nesting. What cannot be read is someone else's, and ignored
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdecimal() and int(text) > 0:
            return min(int(text), cores)
    return cores


def available_cores(root: Path = Path("/")) -> int:
    """The cores of the machine, as far as the process's affinity and the CPU quotas of its cgroups let it use them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, os.cpu_count() or 1, *(max(1, math.ceil(quota)) for quota in _cpu_quotas(root)))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The limits, in cores, that hold for this process: of its cgroup and of all above it. Of cgroups v1 and v2."""
    for line in _words_of(root / "proc/self/cgroup", "\n"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = ["", "unified"]
        elif "cpu" in controllers.split(","):
            mounts = ["cpu", controllers]
        else:
            continue
        own = Path(path.lstrip("/"))
        # in a container the path may be the host's, of which only the root is to be seen: what is missing sets no limit
        for place in [root / "sys/fs/cgroup" / mount / above for mount in mounts for above in (own, *own.parents)]:
            if controllers:
                limits = _words_of(place / "cpu.cfs_quota_us") + _words_of(place / "cpu.cfs_period_us")
            else:
                limits = _words_of(place / "cpu.max")
            if len(limits) == 2 and all(limit.isdecimal() and int(limit) for limit in limits):  # not "max", not -1
                yield int(limits[0]) / int(limits[1])


def _words_of(file: Path, separator: str | None = None) -> list[str]:
    try:
        return [word for word in file.read_text().split(separator) if word]
    except OSError:
        return []


def blas_function(names: tuple[str, ...], letter: str) -> Any:
    """The first of these functions that NumPy's own BLAS has, or None."""
    try:
        # the libraries that an extension module brings are searched with it
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return None
    return next((found for name in names if (found := getattr(library, name.format(letter), None))), None)


@cache
def blas_threads() -> list[tuple[Callable[[], int], Callable[[int], Any]]]:
    """(how many threads it has, sets them) of NumPy's own BLAS; of a BLAS of another form, what threadpoolctl has."""
    get, set_ = blas_function(THREADS_NAMES, "get"), blas_function(THREADS_NAMES, "set")
    if get is not None and set_ is not None:
        # not by threadpoolctl: there only the thread that first set them may
        return [(get, set_)]
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [(library.get_num_threads, library.set_num_threads) for library in found]


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
