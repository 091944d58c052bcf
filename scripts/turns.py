"""Time contenders in turns on one processor.

As a program, it is a worker of `benchmark.py compare`, which drives the class Dnn of one checkout's scripts/peers.py:

    python -I scripts/turns.py FILE_DESCRIPTOR      of the connection that delivers requests

It relies on little, so that it can time old commits in the same way: peers.Dnn(sizes, X, Y, optimizer, backend,
precision) with the interface of Contender, and peers.uncompiled(), the name of the backend without compiled steps.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

TURN = 0.075
"""Approximate length of a turn in seconds."""


class Contender:
    name: str
    apart: float
    """The difference from dnn's weights after five steps."""

    def running(self) -> AbstractContextManager[object]:
        """The context of one turn's steps, as in one fit."""
        return nullcontext()

    def steps(self, n: int) -> None:
        """Queue n steps."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until they are done."""

    def weights(self) -> list[np.ndarray]:
        """[W1, b1, ...]."""
        raise NotImplementedError


class Calls(Contender):
    """A contender whose steps are calls of a function."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self._call = name, call

    def steps(self, n: int) -> None:
        for _ in range(n):
            self._call()


def rest() -> None:
    """Wait until the threads of earlier work are idle. Only this process counts, not the load of others.

    OpenBLAS's threads keep spinning for 30 to 110 ms of processor time after their last product, and OpenMP's for a
    while too, on the cores that the next contender needs. With them spinning, JAX's steps took 1.5 times as long.
    """
    for _ in range(50):
        used = time.process_time()
        time.sleep(0.01)
        if time.process_time() - used < 0.001:
            return


def turn(contender: Contender, n: int, rested: bool = False) -> float:
    """Seconds per step, over n steps after one warm-up step; with `rested`, starting from idle."""
    if rested:
        rest()
    with contender.running():
        contender.steps(1)
        contender.wait()
        started = time.perf_counter()
        contender.steps(n)
        contender.wait()
        return (time.perf_counter() - started) / n


def steps_of_a_turn(contender: Contender) -> int:
    first = turn(contender, 1, rested=True)
    return max(1, round(TURN / turn(contender, max(1, int(0.2 * TURN / first)))))


def take_turns(every: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Microseconds per step of each, by round. The order alternates, since the machine's clock and caches drift."""
    n = {contender.name: steps_of_a_turn(contender) for contender in every}
    times: dict[str, list[float]] = {contender.name: [] for contender in every}
    for i in range(rounds):
        for contender in every if i % 2 == 0 else reversed(every):
            times[contender.name].append(1e6 * turn(contender, n[contender.name], rested=True))
    return times


def after_five_steps(contender: Contender) -> list[np.ndarray]:
    contender.steps(5)
    contender.wait()
    return contender.weights()


# ------------------------------------------------------------------------------------------------- a worker


class Worker:
    """The methods are the requests that it answers."""

    def load(self, checkout: str, threads: int) -> None:
        """Import the peers of this checkout, even if another one is installed in editable mode."""
        others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
        sys.path[:] = [str(Path(checkout, "scripts")), checkout, *others]
        import peers
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
        self._checkout, self._peers = Path(checkout).resolve(), peers
        self._check_origin()

    def build(
        self, sizes: list[int], X: np.ndarray, Y: np.ndarray, optimizer: str, precision: str, plain: bool
    ) -> list[np.ndarray]:
        """Build a new contender and return its weights after five steps."""
        self._contender: Any = None  # free the memory of the previous one
        backend = self._peers.uncompiled() if plain else "numpy"
        self._contender = self._peers.Dnn(sizes, X, Y, optimizer, backend, precision)
        weights = after_five_steps(self._contender)
        self._check_origin()  # also for modules loaded only now
        self._n = steps_of_a_turn(self._contender)
        rest()
        return weights

    def turn(self) -> float:
        """Seconds per step. Afterwards, too, it waits until no thread of this process spins."""
        seconds = turn(self._contender, self._n, rested=True)
        rest()
        return seconds

    def compilers(self) -> dict[str, str]:
        """The versions of the loaded compilers; without any, the steps were not compiled."""
        return {name: sys.modules[name].__version__ for name in ("numba", "llvmlite") if name in sys.modules}

    def _check_origin(self) -> None:
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            ours = path is None or Path(path).resolve().is_relative_to(self._checkout)
            if name.split(".")[0] in ("peers", "dnn", "backends") and not ours:
                raise ImportError(f"{name} was imported from {path}, expected {self._checkout}")


def work(requests: Connection) -> None:
    """Answer requests (method, arguments) with (value, None) or (None, error) until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the benchmark, which ends this process
    worker = Worker()
    with suppress(EOFError, OSError):
        while True:
            method, arguments = requests.recv()
            try:
                answer = getattr(worker, method)(*arguments), None
            except Exception as error:
                answer = None, f"{type(error).__name__}: {error}"
            requests.send(answer)


if __name__ == "__main__":
    work(Connection(int(sys.argv[1])))
