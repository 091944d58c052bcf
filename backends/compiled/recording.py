"""Functions that can note their calls in place of doing their work."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

_recording = local()


def recordable(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """`function`, which on a recording notes its call under its specification's name and does nothing."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> None:
        calls = getattr(_recording, "calls", None)
        if calls is None:
            function(*arguments, **settings)
        else:
            calls.append((name, signature.bind(*arguments, **settings).arguments))

    return call


@contextmanager
def recorded() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The calls of the block, in their order: (name, arguments by name)."""
    _recording.calls = []
    try:
        yield _recording.calls
    finally:
        del _recording.calls
