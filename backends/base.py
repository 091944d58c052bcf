"""The contract between the engine and a machine."""

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

Array = Any
"""An array of any backend: `numpy.ndarray`, `cupy.ndarray`, ..."""


_told: set[str] = set()


def log_once(message: str) -> None:
    """Warn, the first time that this is said."""
    if message not in _told:
        _told.add(message)
        logging.getLogger("dnn.backends").warning(message)


_compiled_steps: bool | None = None


def compiled_steps() -> bool:
    """Whether steps are to be compiled where they can be: what `use_compiled_steps` or DNN_COMPILED says, else yes."""
    if _compiled_steps is not None:
        return _compiled_steps
    return os.environ.get("DNN_COMPILED", "").strip().lower() not in ("0", "no", "off", "false")


class use_compiled_steps:
    """Compile steps from here on, or run them operation by operation; as a context manager, until its end.

    None goes back to what the environment variable DNN_COMPILED says (0: operation by operation).
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
    """The backend asked for is unknown, or cannot be used on this machine."""


class Feeder:
    """Rows of an array on the host, batch after batch, on the device.

    `enqueue` names the rows of a batch to come, `batch` gives the oldest of them; at most AHEAD may wait. A backend
    whose device copies while it computes begins at `enqueue`; here, where any backend can, it is all done in `batch`.
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
        """The rows on the device, for the work that is queued inside the block."""
        yield self._backend.asarray(self._source[self._rows.popleft()])

    def drain(self) -> None:
        """Wait for what is being copied, and forget what still waits."""
        self._rows.clear()


class Backend(ABC):
    """What a machine can do with arrays. It knows nothing of networks.

    `xp` is the array module that the mathematics is written in. Everything that the array libraries
    do differently (making arrays, moving them, waiting) is a method here; what they do alike is
    called on `xp`.
    """

    name: str
    xp: Any
    precisions: Mapping[str, np.dtype] = {}
    """What a training step of a float32 network can compute in besides, by name, with the dtype of its arrays."""

    @property
    @abstractmethod
    def device(self) -> str:
        """What the work runs on, in words."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the memory that arrays live in."""

    def facts(self) -> dict[str, str]:
        """What else a user should know of the machine: versions, libraries, threads."""
        return {}

    @abstractmethod
    def owns(self, array: object) -> bool:
        """Whether `array` is one of this backend's own."""

    @abstractmethod
    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A new C-contiguous array, contents undefined, its first byte on a 64-byte boundary."""

    @abstractmethod
    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A new C-contiguous array of zeros, its first byte on a 64-byte boundary."""

    @abstractmethod
    def asarray(self, array: object, dtype: Any = None) -> Array:
        """`array` (of this backend, of NumPy, or nested lists) as an array here; not copied if it is one."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray:
        """`array` on the host. It waits for the work that makes it; a NumPy array comes back as it is."""

    def product(self, precision: str | None) -> Callable[[Array, Array, Array], object]:
        """out = a b, called with (a, b, out): matrices, each C- or F-contiguous, out C-contiguous.

        `precision` is one of `precisions`: with tf32 what is multiplied may be rounded.
        """
        return self.xp.dot

    def take(self, source: Array, rows: Array, out: Array) -> None:
        """out_i = source[rows_i]. rows within source."""
        self.xp.take(source, rows, axis=0, out=out)

    def compile(self, plan: Plan) -> Callable[[], None]:
        """The plan as something to call, as fast as this machine runs it. Missing buffers are allocated.

        In a run (`stream`) it is for that run's threads, or its queue.
        """
        return self.run_stepwise(plan)

    def run_stepwise(self, plan: Plan) -> Callable[[], None]:
        """The plan as something to call, operation by operation: nothing to prepare, for what runs a few times."""
        from dnn.backends.plan.stepwise import Stepwise

        return Stepwise(plan, self)

    def plan_bytes(self, plan: Plan) -> int:
        """The memory that `compile` allocates for the plan."""
        from dnn.backends.plan.stepwise import temporary_bytes

        return temporary_bytes(plan, self)

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        """What brings batches of up to `batch_size` rows of `source`, an array on the host, to the device."""
        return Feeder(self, source)

    def synchronize(self) -> None:  # noqa: B027  (a backend that computes at once has nothing to wait for)
        """Wait until all work handed to the device is done."""

    def stream(self, threads: int | None = None) -> AbstractContextManager[object]:
        """The queue that one run's work goes to: it starts after all that was queued before it, and
        what is queued after the block waits for it. On a CPU, the run's threads."""
        return nullcontext()

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy, in another process too, is the backend of that name
        from dnn.backends import get_backend

        return get_backend, (self.name,)

    def __repr__(self) -> str:
        return f"<backend {self.name} on {self.device}>"
