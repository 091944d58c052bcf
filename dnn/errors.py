"""What can go wrong, by whose fault. Wrong settings are ValueError and TypeError."""

from numbers import Integral, Real


class DnnError(Exception):
    """The base of all errors of this package."""


class DataError(DnnError, ValueError):
    """The data does not fit: its shape, its values, or the file it is in."""


class ModelFileError(DnnError):
    """A model file that is missing, damaged, or not what it says it is."""


class NonFiniteLossError(DnnError, ArithmeticError):
    """Training has diverged: the loss is no longer a finite number."""


class NotEnoughMemoryError(DnnError, MemoryError):
    """The device's memory does not hold what was asked for."""


class OutputError(DnnError):
    """Something could not be written. Nothing half-written was left."""


def check_whole(name: str, value: object) -> None:
    """TypeError where a setting is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def check_number(name: str, value: object) -> None:
    """TypeError where a setting is no real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
