"""Backends: arrays, memory and streams of a machine. Independent of networks; never imports the rest of `dnn`.

The backend in use is, in order of precedence: the one named in the call, the one set by `use_backend`, the one named by
the environment variable DNN_BACKEND at the time of the call, numpy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType

from dnn.backends.base import Array, Backend, BackendUnavailableError, Feeder, log_once, use_compiled_steps

# not at first use: a child forked by one thread in the middle of another's import could never import it
from dnn.backends.numpy_backend import NumpyBackend

__all__ = [
    "Array",
    "Backend",
    "BackendUnavailableError",
    "Feeder",
    "available_backends",
    "backend_of",
    "get_backend",
    "log_once",
    "register",
    "registered",
    "use_backend",
    "use_compiled_steps",
]


def _load_cupy() -> Backend:
    from dnn.backends.cupy_backend import CupyBackend

    return CupyBackend()


_loaders: dict[str, Callable[[], Backend]] = {"numpy": NumpyBackend, "cupy": _load_cupy}
_loaded: dict[str, Backend] = {}
_in_use: str | None = None


def register(name: str, loader: Callable[[], Backend]) -> None:
    """Add a backend. `loader()` creates it on first use, or raises BackendUnavailableError saying why it cannot."""
    _loaders[name] = loader
    _loaded.pop(name, None)


def registered() -> list[str]:
    """The names of all backends, whether usable here or not."""
    return list(_loaders)


def get_backend(name: str | None = None) -> Backend:
    """The backend called `name`, by default the one in use (see the module's docstring).

    `auto` selects cupy if it works, else numpy, and logs which. A backend that cannot be used raises
    BackendUnavailableError with the cause and the fix; there is never a silent fallback.
    """
    name = name or _in_use or os.environ.get("DNN_BACKEND", "").strip() or "numpy"
    if name == "auto":
        return _automatic()
    if name not in _loaded:
        if name not in _loaders:
            raise BackendUnavailableError(
                f"unknown backend {name!r}: choose one of {', '.join([*_loaders, 'auto'])} "
                "(DNN_BACKEND, use_backend or backend=)"
            )
        _loaded[name] = _loaders[name]()
    return _loaded[name]


def _automatic() -> Backend:
    try:
        backend, cause = get_backend("cupy"), ""
    except BackendUnavailableError as error:
        backend, cause = get_backend("numpy"), f" ({error})"
    log_once(f"DNN_BACKEND=auto selects {backend.name}{cause}")
    return backend


class use_backend:
    """Use the backend `name` from now on; as a context manager, restore the previous one on exit.

    None restores the setting of DNN_BACKEND. A backend that cannot be used raises BackendUnavailableError
    here and leaves the choice unchanged.
    """

    def __init__(self, name: str | None) -> None:
        global _in_use
        if name is not None:
            get_backend(name)
        self._before, _in_use = _in_use, name

    def __enter__(self) -> Backend:
        return get_backend()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _in_use
        _in_use = self._before


def available_backends() -> list[str]:
    """The names of the backends that can be used on this machine."""

    def usable(name: str) -> bool:
        try:
            get_backend(name)
        except BackendUnavailableError:
            return False
        return True

    return [name for name in _loaders if usable(name)]


def backend_of(array: object) -> Backend:
    """The backend that `array` belongs to; TypeError if there is none."""
    if "cupy" in sys.modules and "cupy" not in _loaded and type(array).__module__.startswith("cupy"):
        get_backend("cupy")
    for backend in (get_backend("numpy"), *_loaded.values()):
        if backend.owns(array):
            return backend
    raise TypeError(f"expected an array of one of {', '.join(_loaders)}, got {type(array).__name__}")
