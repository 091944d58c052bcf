"""The interface between the engine and a machine."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dnn.backends.plan import Plan
    from dnn.backends.plan.stepwise import Observer

Array = Any
"""An array of any backend: `numpy.ndarray`, `cupy.ndarray`, ..."""


_logged: set[str] = set()


def log_once(message: str) -> None:
    """Log this warning, the first time only."""
    if message not in _logged:
        _logged.add(message)
        logging.getLogger("dnn.backends").warning(message)


_compiled_steps: bool | None = None


def compiled_steps() -> bool:
    """Whether to compile steps where possible: set by `use_compiled_steps`, else by DNN_COMPILED, by default true."""
    if _compiled_steps is not None:
        return _compiled_steps
    return os.environ.get("DNN_COMPILED", "").strip().lower() not in ("0", "no", "off", "false")


class use_compiled_steps:
    """Compile steps from now on, or run them operation by operation; as a context manager, until it exits.

    None restores the setting of the environment variable DNN_COMPILED (0: operation by operation).
    """

    def __init__(self, enabled: bool | None) -> None:
        global _compiled_steps
        self._before, _compiled_steps = _compiled_steps, enabled

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _compiled_steps
        _compiled_steps = self._before


class BackendUnavailableError(RuntimeError):
    """The requested backend is unknown or cannot be used on this machine."""


class Feeder:
    """Copies rows of a host array to the device, batch by batch; `source` is one, or takes rows as one does.

    `enqueue` requests the rows of a later batch, `batch` returns the oldest pending one; at most AHEAD may be pending.
    A backend whose device copies while it computes starts the copy in `enqueue`; this default copies in `batch`.
    """

    AHEAD = 2

    def __init__(self, backend: Backend, source: np.ndarray) -> None:
        self._backend = backend
        self._source = source
        self._rows: deque[np.ndarray] = deque()

    def enqueue(self, rows: np.ndarray) -> None:
        self._rows.append(rows)

    @contextmanager
    def batch(self) -> Iterator[Array]:
        """The rows on the device, valid for the work queued inside the block."""
        yield self._backend.asarray(self._source.take(self._rows.popleft(), axis=0))

    def drain(self) -> None:
        """Wait for copies in progress and discard pending batches."""
        self._rows.clear()


class Backend(ABC):
    """Array operations of one machine, independent of networks.

    `xp` is the array module that the mathematics is written in. Everything that the array libraries
    do differently (making arrays, moving them, waiting) is a method here; what they do alike is
    called on `xp`.
    """

    name: str
    xp: Any
    precisions: Mapping[str, np.dtype] = {}
    """Reduced precisions for training steps of a float32 network, by name, with the dtype of their arrays."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Description of the device."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the memory that arrays live in."""

    def facts(self) -> dict[str, str]:
        """Further facts for the user: versions, libraries, threads."""
        return {}

    @abstractmethod
    def owns(self, array: object) -> bool:
        """Whether `array` belongs to this backend."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A new uninitialized C-contiguous array, aligned to 64 bytes."""

    @abstractmethod
    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A new C-contiguous array of zeros, aligned to 64 bytes."""

    @abstractmethod
    def asarray(self, array: object, dtype: Any = None) -> Array:
        """`array` (of this backend or NumPy, or nested lists) as an array of this backend, copied only if needed."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray:
        """`array` on the host, after waiting for the work that computes it. A NumPy array is returned unchanged."""

    def product(self, precision: str | None) -> Callable[[Array, Array, Array], object]:
        """A function (a, b, out) that computes out = a b for matrices; a, b C- or F-contiguous, out C-contiguous.

        `precision` is None or one of `precisions`; with tf32 the factors may be rounded.
        """
        return self.xp.dot

    def take(self, source: Array, rows: Array, out: Array) -> None:
        """out_i = source[rows_i]. Every row must be within source."""
        self.xp.take(source, rows, axis=0, out=out)

    def compile(self, plan: Plan) -> Callable[..., None]:
        """What runs the plan as fast as this machine can: called as run(), once; as run(times), that many times in a
        row. Missing buffers are allocated.

        Inside a run (`stream`), it uses that run's threads or queue.
        """
        return self.run_stepwise(plan)

    def run_stepwise(self, plan: Plan, observe: Observer | None = None) -> Callable[..., None]:
        """Likewise, operation by operation: no preparation, for plans that run a few times.

        `observe(value, array)` is called with every value of the plan as it is computed.
        """
        from dnn.backends.plan.stepwise import Stepwise

        return Stepwise(plan, self, observe=observe)

    def plan_bytes(self, plan: Plan) -> int:
        """The bytes that `compile` allocates for the plan."""
        from dnn.backends.plan.stepwise import temporary_bytes

        return temporary_bytes(plan, self)

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        """A feeder of batches of up to `batch_size` rows from `source`, a host array, to the device."""
        return Feeder(self, source)

    def mark(self) -> Callable[[], object]:
        """What waits until the work submitted so far is done."""
        return lambda: None

    def synchronize(self) -> None:  # noqa: B027  (a synchronous backend has nothing to wait for)
        """Wait until all work submitted to the device is done."""

    def stream(self, threads: int | None = None) -> AbstractContextManager[object]:
        """The queue for one run's work: the work starts after everything queued before the block, and
        work queued after the block waits for it. On a CPU, the run's threads."""
        return nullcontext()

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy, also in another process, is the backend of that name
        from dnn.backends import get_backend

        return get_backend, (self.name,)

    def __repr__(self) -> str:
        return f"<backend {self.name} on {self.device}>"
