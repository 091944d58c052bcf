"""The exceptions of this package. Invalid settings raise ValueError or TypeError."""

from numbers import Integral, Real


class DnnError(Exception):
    """The base of all errors of this package."""


class DataError(DnnError, ValueError):
    """The data is invalid: its shape, its values, or the file that holds it."""


class ModelFileError(DnnError):
    """A model file is missing, damaged, or not a model file."""


class NonFiniteLossError(DnnError, ArithmeticError):
    """Training has diverged: the loss is no longer a finite number."""


class NotEnoughMemoryError(DnnError, MemoryError):
    """The request does not fit in the device's memory."""


class OutputError(DnnError):
    """An output could not be written. No partial file is left behind."""


def check_whole(name: str, value: object) -> None:
    """Raise TypeError unless the setting is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless the setting is a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
