"""A network's parameters: one flat buffer with named views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.backends.plan.graph import Buffer, View
from dnn.errors import DataError

ALIGNED = 32
"""Views start at multiples of this many elements: 64-byte alignment from 16 bits up, same offsets in every dtype."""


class Parameters(Mapping[str, Array]):
    """W1..WL (n_out, n_in), then b1..bL (n_out,): views into one buffer, each on a 64-byte boundary.

    Reading an item returns the device view; assigning checks the shape and copies into it, from NumPy or the device.
    The gaps between views are zero and stay zero under every update, so an optimizer runs over `flat` in one pass. The
    weights come first, so weight decay applies to a prefix.
    """

    def __init__(self, backend: Backend, layer_sizes: Sequence[int], dtype: Any) -> None:
        self.backend = backend
        self.layer_sizes = tuple(layer_sizes)
        self.dtype = np.dtype(dtype)
        shapes = dict(self.shapes(self.layer_sizes))
        starts, end = {}, 0
        for name, shape in shapes.items():
            starts[name] = end
            end += -(-int(np.prod(shape)) // ALIGNED) * ALIGNED
        self._starts, self._shapes = starts, shapes
        self.flat = backend.zeros(end, self.dtype)
        self._views = self._make_views()

    def _make_views(self) -> dict[str, Array]:
        return {
            name: self.flat[start : start + int(np.prod(self._shapes[name]))].reshape(self._shapes[name])
            for name, start in self._starts.items()
        }

    def part(self, buffer: Buffer, name: str) -> View:
        """The view of that parameter in a plan's buffer of this layout."""
        return buffer.part(self._starts[name], self._shapes[name])

    @staticmethod
    def shapes(layer_sizes: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape of every parameter, in the buffer's order."""
        for layer in range(1, len(layer_sizes)):
            yield f"W{layer}", (layer_sizes[layer], layer_sizes[layer - 1])
        for layer in range(1, len(layer_sizes)):
            yield f"b{layer}", (layer_sizes[layer],)

    def like(self, dtype: Any = None) -> Parameters:
        """Zeros of the same layout: for gradients, optimizer state or, in another dtype, working copies."""
        return Parameters(self.backend, self.layer_sizes, dtype or self.dtype)

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
