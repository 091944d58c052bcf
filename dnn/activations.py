"""Activations by name, a user's own included."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from dnn.functional.activations import ACTIVATIONS, Activation

__all__ = ["ACTIVATIONS", "Activation", "register_activation"]

Function = Callable[..., Any]
SAVED = ("Z", "A")


def register_activation(name: str, forward: Function, backward: Function, saves: Sequence[str] = ("A",)) -> None:
    """Add an activation under a name that networks then take, model files included.

    forward(xp, Z) gives A, elementwise. backward(xp, dA, ...) gives dZ = dA g'(Z) from dA and what `saves` names, in
    its order: "Z", "A", or both. Both are pure functions in `xp`; see `dnn.functional.activations` for examples.
    """
    saves = (saves,) if isinstance(saves, str) else tuple(saves)
    if not saves or not set(saves) <= set(SAVED):
        raise ValueError(f"saves must name what the backward needs, of {', '.join(SAVED)}; got {saves!r}")
    for what, function, arguments in (("forward", forward, 2), ("backward", backward, 2 + len(saves))):
        try:
            inspect.signature(function).bind(*range(arguments))
        except TypeError as cause:
            expected = "(xp, Z)" if what == "forward" else f"(xp, dA, {', '.join(saves)})"
            raise TypeError(f"{what} of activation {name!r} must take {expected}: {cause}") from None
    ACTIVATIONS[name] = Activation(forward, backward, saves)
