"""The exceptions of this package. Invalid settings raise ValueError or TypeError."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np


class DnnError(Exception):
    """The base of all errors of this package."""


class DataError(DnnError, ValueError):
    """The data is invalid: its shape, its values, or the file that holds it."""


class ModelFileError(DnnError):
    """A model file is missing, damaged, or not a model file."""


class NonFiniteLossError(DnnError, ArithmeticError):
    """A loss, a weight or an answer is no finite number: training has diverged, or the data is too large.

    Of a training that has diverged it says where that began: in which epoch of the network's life, in which step of it
    (1 being the first), in which layer (counted from 1, in the order of `summary`) and in which tensor, as "Z2", "dW3",
    "W3" for the weights after an update, "v of W1" for the optimizer's state, "the loss". None is what is not known, or
    not of a layer.
    """

    def __init__(
        self,
        message: str = "",
        *,
        epoch: int | None = None,
        step: int | None = None,
        layer: int | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(message)
        self.epoch, self.step, self.layer, self.tensor = epoch, step, layer, tensor


class NotEnoughMemoryError(DnnError, MemoryError):
    """The request does not fit in the device's memory."""


class OutputError(DnnError):
    """An output could not be written. No partial file is left behind."""


def check_whole(name: str, value: object) -> None:
    """Raise TypeError unless the setting is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless the setting is a real number, ValueError unless a float can be made of it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, got one that no float holds") from None


def check_switch(name: str, value: object) -> None:
    """Raise TypeError unless the setting is on or off: a truth, of Python or NumPy, or a whole number."""
    if not isinstance(value, (Integral, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_rounded(name: str, value: float, dtype: np.dtype, below_one: bool = False) -> None:
    """Raise ValueError if this dtype rounds the setting to infinity, to 0, or to the 1 that it has to be below."""
    with np.errstate(over="ignore", under="ignore"):
        there = float(dtype.type(value))
    if abs(there) < np.finfo(dtype).tiny:
        there = 0.0  # what is smaller, some machines take for 0
    if np.isinf(there) or (there == 0 and value) or (below_one and there >= 1):
        fix = "take one that is not" if dtype == np.float64 else "take one that is not, or a network of dtype float64"
        raise ValueError(f"{name} {value!r} is {there:g} in {dtype}: {fix}")


def check_at_least(name: str, value: Any, lowest: int = 1) -> int:
    """The whole number; TypeError where it is none, ValueError where it is lower than that."""
    check_whole(name, value)
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")
    return int(value)


def check_finite_number(name: str, value: Any) -> float:
    """The number; TypeError where it is none, ValueError where it is not finite."""
    check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError, with the nearest choice, unless the setting is one of them."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return
    near = nearest(value.lower(), known, 0.5) if isinstance(value, str) else None
    hint = f": did you mean {near}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one; None where none is, or this is no name."""
    import difflib

    found = difflib.get_close_matches(name, list(known), 1, cutoff) if isinstance(name, str) else []
    return found[0] if found else None


def printable(text: str) -> str:
    """One line for a terminal: names in a file can contain anything, line breaks and escape sequences among it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def enumerated(names: Sequence[Any], shown: Callable[[Any], str] = str, most: int = 10) -> str:
    """The names in a message, the first ones of many."""
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def configuration(what: str, given: Any, kind: type, known: Mapping[str, Any], example: str, also: str = "") -> Any:
    """A configuration of this kind, or the one of that name with its defaults; ValueError names what there is."""
    if isinstance(given, kind):
        return given
    if isinstance(given, str) and given in known:
        return known[given]()
    near = nearest(given.lower(), known) if isinstance(given, str) else None
    hint = f": did you mean {near!r}?" if near else ""
    raise ValueError(
        f"{what} must be {also}one of {', '.join(known)} or a configuration such as {example}, got {given!r}{hint}"
    )
