"""How many threads a run may have, and the turns that runs take with the BLAS's own. Needs no compiler."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        # not by threadpoolctl: there only the thread that first set them may. Called with the interpreter's lock held:
        # who gives it up for so little waits for it behind all other Python threads
        return [(_quick(get, ctypes.c_int), _quick(set_, None, ctypes.c_int))]
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [(library.get_num_threads, library.set_num_threads) for library in found]


def _quick(function: Any, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)(ctypes.cast(function, ctypes.c_void_p).value or 0)


class _Blas:
    """NumPy's BLAS, whose number of threads the whole process shares, and the forks of the process.

    The bits of a product depend on that number. So calls of different numbers take turns, in the order in which they
    come, whoever else is at work in the process. The last run to end gives the BLAS back as the process had it.

    A fork waits until no call of another thread is in progress: the child would find the locks that such a call holds,
    the BLAS's, the compiler's or a module's in the middle of its import, closed for ever.
    """

    def __init__(self) -> None:
        self._runs: list[int] = []  # the Python threads that began those in progress
        self._calls: list[tuple[int, int | None]] = []  # those in progress: the Python thread, and `threads`
        self._own: list[int] = []  # the numbers that the process had before the first run
        self._set: list[int] = []  # the numbers set last
        # calls on so many threads may begin without the locks: the BLAS has them, and nobody waits for another number
        # or for a fork. Appending to a list and removing from it are single steps of the interpreter, so whoever closes
        # this and then looks at the calls sees those who found it open
        self._open: int | None = None
        self._now: Callable[[], int]
        self._new_locks()

    def _new_locks(self) -> None:
        # reentrant: a signal handler may come between any two lines here, and call or fork
        self._door = threading.RLock()  # held while a call waits for its turn, so that later ones wait behind it
        self._lock = threading.RLock()  # of what stands above
        self._call_is_over = threading.Condition(self._lock)
        self._waiting = 0

    def begin_run(self) -> None:
        with self._lock:
            if not self._runs:
                self._own = self._set = [get() for get, _ in blas_threads()]
                self._now = blas_threads()[0][0] if self._own else lambda: 0
            self._runs.append(threading.get_ident())

    def end_run(self) -> None:
        with self._lock:
            me = threading.get_ident()
            if self._runs:
                # a block may be left in another thread than it was begun in
                self._runs.remove(me if me in self._runs else self._runs[0])
            if me not in self._runs:
                # those that an exception of a signal handler cut off before they could leave
                for call in tuple(self._calls):
                    if call[0] == me:
                        self._calls.remove(call)
                self._call_is_over.notify_all()
            self._give_back_if_unused()

    def _give_back_if_unused(self) -> None:
        if not self._runs:
            self._open = None
            self._note_others()
            self._turn(self._own)

    @contextmanager
    def call(self, threads: int | None = 0) -> Iterator[None]:
        """A call with products on so many threads; 0: on the process's own number; None: without products."""
        call = threading.get_ident(), threads
        self.enter(call)
        try:
            yield
        finally:
            self.leave(call)

    def enter(self, call: tuple[int, int | None]) -> None:
        """`call` without its cost, for short ones: (the Python thread's number, threads)."""
        me, threads = call
        if threads and threads == self._open:
            self._calls.append(call)
            if threads == self._open and self._now() == threads:
                return
            self._calls.remove(call)
            self._tell()
        with self._door, self._lock:
            if threads is not None:
                self._open = None
                self._wait_while(lambda who, of: of not in (threads, None) and who != me)
                self._take(threads)
                if self._runs and all(of in (threads, None) for _, of in tuple(self._calls)):
                    self._open = threads
            self._calls.append(call)

    def leave(self, call: tuple[int, int | None]) -> None:
        me, threads = call
        try:  # noqa: SIM105  (in the shortest of steps, it would show)
            self._calls.remove(call)
        except ValueError:  # gone with a run that a signal handler began and ended inside the call
            pass
        if self._calls:
            # a signal handler's call inside another call of its thread
            outer = [of for who, of in tuple(self._calls) if who == me and of is not None]
            if outer and outer[-1] != threads:
                with self._lock:
                    self._take(outer[-1])
        if self._waiting:
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            self._call_is_over.notify_all()

    def _wait_while(self, disturbs: Callable[[int, int | None], bool]) -> None:
        """Until there is no such call. Those that end see that someone waits, or are seen to have ended."""
        self._waiting += 1
        try:
            while any(disturbs(*call) for call in tuple(self._calls)):
                self._call_is_over.wait()
        finally:
            self._waiting -= 1

    def _take(self, threads: int) -> None:
        if self._runs:
            self._note_others()
            self._turn([threads] * len(self._own) if threads else self._own)

    def _note_others(self) -> None:
        """Someone else may have set another number since, and shall find it again."""
        now = [get() for get, _ in blas_threads()]
        if now != self._set:
            self._own = self._set = now

    def _turn(self, numbers: list[int]) -> None:
        if numbers != self._set:
            for (_, set_threads), number in zip(blas_threads(), numbers, strict=True):
                set_threads(number)
            self._set = [get() for get, _ in blas_threads()]

    # ---------------------------------------------------------------------------------------------------- forks

    def before_fork(self) -> None:
        self._door.acquire()
        self._lock.acquire()
        me, self._open = threading.get_ident(), None
        self._wait_while(lambda who, of: who != me)

    def after_fork_in_parent(self) -> None:
        self._lock.release()
        self._door.release()

    def after_fork_in_child(self) -> None:
        """Only the thread that forked lives on."""
        self._new_locks()
        self._open = None
        me, had_runs = threading.get_ident(), bool(self._runs)
        self._runs = [who for who in self._runs if who == me]
        self._calls = [call for call in self._calls if call[0] == me]
        if had_runs:
            self._give_back_if_unused()


blas = _Blas()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=blas.before_fork,
        after_in_parent=blas.after_fork_in_parent,
        after_in_child=blas.after_fork_in_child,
    )
