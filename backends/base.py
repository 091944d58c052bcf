"""The contract between the engine and a machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

Array = Any
"""An array of any backend: `numpy.ndarray`, `cupy.ndarray`, ..."""


class BackendUnavailableError(RuntimeError):
    """The backend asked for is unknown, or cannot be used on this machine."""


class Backend(ABC):
    """What a machine can do with arrays. It knows nothing of networks.

    `xp` is the array module that the mathematics is written in. Everything that the array libraries
    do differently (making arrays, moving them, choosing rows, waiting) is a method here; what they do
    alike is called on `xp`.
    """

    name: str
    xp: Any

    @property
    @abstractmethod
    def device(self) -> str:
        """What the work runs on, in words."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the memory that arrays live in."""

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

    @abstractmethod
    def gather(self, source: Array, rows: Array, *, out: Array) -> None:
        """out[i] = source[rows[i]]. Allocates nothing; `rows` are integers within `source`, unchecked."""

    def synchronize(self) -> None:  # noqa: B027  (a backend that computes at once has nothing to wait for)
        """Wait until all work handed to the device is done."""

    def stream(self) -> AbstractContextManager[object]:
        """The queue that one run's work goes to: it starts after all that was queued before it, and
        what is queued after the block waits for it."""
        return nullcontext()

    def __repr__(self) -> str:
        return f"<backend {self.name} on {self.device}>"
