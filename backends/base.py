"""The contract between the engine and a machine."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

Array = Any
"""An array of any backend: `numpy.ndarray`, `cupy.ndarray`, ..."""


_told: set[str] = set()


def log_once(message: str) -> None:
    """Warn, the first time that this is said."""
    if message not in _told:
        _told.add(message)
        logging.getLogger("dnn.backends").warning(message)


class BackendUnavailableError(RuntimeError):
    """The backend asked for is unknown, or cannot be used on this machine."""


class Feeder:
    """Rows of an array on the host, batch after batch, on the device.

    `put` names the rows of a batch to come, `batch` gives the oldest put; at most AHEAD may be put and not yet given. A
    backend whose device copies while it computes begins at `put`; here, where any backend can, it is all done in
    `batch`.
    """

    AHEAD = 2

    def __init__(self, backend: Backend, source: np.ndarray) -> None:
        self._backend = backend
        self._source = source
        self._rows: deque[np.ndarray] = deque()

    def put(self, rows: np.ndarray) -> None:
        self._rows.append(rows)

    @contextmanager
    def batch(self) -> Iterator[Array]:
        """The rows on the device, for the work that is queued inside the block."""
        yield self._backend.asarray(self._source[self._rows.popleft()])

    def drain(self) -> None:
        """Wait for what is being copied, and forget what was put and not given."""
        self._rows.clear()


class Backend(ABC):
    """What a machine can do with arrays. It knows nothing of networks.

    `xp` is the array module that the mathematics is written in. Everything that the array libraries
    do differently (making arrays, moving them, waiting) is a method here; what they do alike is
    called on `xp`. `kernels` are this backend's own versions of functions that are written in `xp`.
    """

    name: str
    xp: Any
    kernels: Mapping[str, Callable[..., None]] = {}
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

    def fused(self, function: Callable[..., None], precision: str | None = None) -> Callable[..., None]:
        """This backend's own version of `function`, looked up by its name, or `function` itself.

        Both have one signature and one effect: `function`, written in `xp`, is the specification of the other.
        `precision` is one of `precisions`: with tf32 the products in it may round what they multiply.
        """
        return self.kernels.get(function.__name__, function)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `step`, faster where the machine can record and replay it, or `step` itself.

        A step that is to be captured works in the same buffers every time, allocates nothing and waits for nothing. All
        that it does to arrays, it does by functions that `fused` gave: what does not pass through one is not recorded.
        """
        return step

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
