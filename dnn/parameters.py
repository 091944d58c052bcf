"""One flat buffer, named views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnn.backends import Array, Backend
from dnn.errors import DataError

ALIGNED = 32
"""A view begins at a multiple of so many numbers: of 64 bytes, in 16 bits and wider, at one place in every dtype."""


class Parameters(Mapping[str, Array]):
    """W1..WL (n_out, n_in), then b1..bL (n_out,): views into one buffer, each on a 64-byte boundary.

    Reading gives the device view; assigning copies into it, from NumPy or the device, the shape checked. The gaps
    between the views are zero and stay zero under every update, so an optimizer runs over `flat` in one go. The
    weights come first: weight decay is then a prefix.
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
        self.flat = backend.zeros(end, self.dtype)
        self._views = {
            name: self.flat[starts[name] : starts[name] + int(np.prod(shape))].reshape(shape)
            for name, shape in shapes.items()
        }

    @staticmethod
    def shapes(layer_sizes: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and shape of every parameter, in the buffer's order."""
        for layer in range(1, len(layer_sizes)):
            yield f"W{layer}", (layer_sizes[layer], layer_sizes[layer - 1])
        for layer in range(1, len(layer_sizes)):
            yield f"b{layer}", (layer_sizes[layer],)

    def like(self, dtype: Any = None) -> Parameters:
        """Zeros of the same layout: gradients, an optimizer's state; in another dtype, working copies."""
        return Parameters(self.backend, self.layer_sizes, dtype or self.dtype)

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self._views:
            raise KeyError(f"no parameter {name!r}: there are {', '.join(self._views)}")
        view = self._views[name]
        if tuple(np.shape(value)) != view.shape:
            raise DataError(f"parameter {name}: expected shape {view.shape}, got {tuple(np.shape(value))}")
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        if dtype.kind not in "biuf":
            raise DataError(f"parameter {name}: expected numbers, got {dtype}")
        with np.errstate(over="ignore"):
            converted = self.backend.asarray(value, self.dtype)
        if not bool(self.backend.xp.isfinite(converted).all()):
            raise DataError(f"parameter {name}: expected numbers that are finite in {self.dtype}")
        view[...] = converted

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{name} {view.shape}' for name, view in self._views.items())})"
