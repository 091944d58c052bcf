"""A network's parameters: one flat buffer with named views."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.backends.plan.graph import Buffer, View
from dnn.errors import DataError

ALIGNED = 32
"""Views start at multiples of this many elements: 64-byte alignment from 16 bits up, same offsets in every dtype."""


def numbered(name: str, number: int) -> str:
    """A layer's own name with the number of the layer: "W" and 2 give "W2", and of column 0 "E_0" gives "E2_0"."""
    kind, part = re.fullmatch(r"(.*?)(_\d+)?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{kind}{number}{part or ''}"


def kind_of(name: str) -> str:
    """A parameter's name without numbers: "W" of "W12", "E" of "E2_0"."""
    return re.sub(r"\d+(_\d+)?\Z", "", name)


def is_weight(name: str) -> bool:
    """Whether the parameter is the matrix of a dense layer: what weight decay and penalties concern."""
    return kind_of(name) == "W"


def in_order(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes in the order in which parameters lie in memory: weights first."""
    return {name: tuple(shapes[name]) for name in sorted(shapes, key=lambda name: not is_weight(name))}


class Parameters(Mapping[str, Array]):
    """Named views into one buffer, each on a 64-byte boundary: W1..WL first, then all others.

    Reading an item returns the device view; assigning checks the shape and copies into it, from NumPy or the device.
    The gaps between views are zero and stay zero under every update, so an optimizer runs over `flat` in one pass. The
    weights come first, so weight decay applies to a prefix.
    """

    def __init__(self, backend: Backend, shapes: Mapping[str, Sequence[int]], dtype: Any) -> None:
        self.backend = backend
        self.dtype = np.dtype(dtype)
        self.shapes = in_order(shapes)
        starts, end = {}, 0
        for name, shape in self.shapes.items():
            starts[name] = end
            end += -(-math.prod(shape) // ALIGNED) * ALIGNED
        self._starts = starts
        self.flat = backend.zeros(end, self.dtype)
        self._views = self._make_views()

    def _make_views(self) -> dict[str, Array]:
        return self.named(self.flat)

    def named(self, flat: Array) -> dict[str, Array]:
        """Views of the parameters in another buffer of this layout."""
        return {
            name: flat[start : start + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, start in self._starts.items()
        }

    def part(self, buffer: Buffer, name: str, member: int | None = None) -> View:
        """The view of that parameter in a plan's buffer of this layout; of one of its members where it has several."""
        start, shape = self._starts[name], self.shapes[name]
        if member is not None:
            shape = shape[1:]
            start += member * math.prod(shape)
        return buffer.part(start, shape)

    def extent(self, name: str) -> tuple[int, int]:
        """Where the parameter begins in the buffer, and where the next one does."""
        start = self._starts[name]
        return start, start + -(-math.prod(self.shapes[name]) // ALIGNED) * ALIGNED

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_views"}
        return state | {"flat": self.backend.to_numpy(self.flat).copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # a new aligned buffer, for the views to refer to
        self.flat = self.backend.zeros(state["flat"].shape, self.dtype)
        self.flat[...] = self.backend.asarray(state["flat"])
        self._views = self._make_views()

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self._views:
            raise KeyError(f"no parameter {name!r}: expected one of {', '.join(self._views)}")
        from dnn.data.sources import as_array, is_device_array, read

        view, what = self._views[name], f"parameter {name}"
        value = as_array(what, value)
        if tuple(value.shape) != view.shape:
            raise DataError(f"{what}: expected shape {view.shape}, got {tuple(value.shape)}")
        if not is_device_array(value):
            value = read(what, value, ...)
        with np.errstate(over="ignore"):
            converted = self.backend.asarray(value, self.dtype)
        if not bool(self.backend.xp.isfinite(converted).all()):
            raise DataError(f"{what}: expected numbers that are finite in {self.dtype}, got inf or nan")
        view[...] = converted

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{name} {view.shape}' for name, view in self._views.items())})"
