"""Layers around which their input goes unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnn import functional
from dnn.backends.plan import Value
from dnn.layers.base import Backward, Layer, Place, known_layer, needs_data, walk, width_after

__all__ = ["Residual"]


@known_layer
@dataclass(frozen=True)
class Residual(Layer):
    """Y = X + F(X), with the layers of F inside: He et al. 2016, equation (1). They give as many outputs as X has."""

    family = "residual"
    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        layers = self.layers
        if not isinstance(layers, Sequence) or not layers or not all(isinstance(layer, Layer) for layer in layers):
            raise TypeError(f"Residual: layers must be a list of layers, got {layers!r}")
        object.__setattr__(self, "layers", tuple(layers))

    @property
    def children(self) -> tuple[Layer, ...]:  # type: ignore[override]
        return tuple(self.layers)

    def n_out(self, n_in: int) -> int:
        for layer, _, n, _ in walk(self.layers, n_in):
            if needs_data(layer, n):
                name = type(layer).__name__
                raise ValueError(f"Residual: {name} needs the data as it is: put it first in the network")
        n_out = width_after(self.layers, n_in)
        if n_out != n_in:
            raise ValueError(f"Residual: its layers give {n_out} outputs for {n_in} inputs: they must be as many")
        return n_in

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        F, inner = at.bind(self.layers, X)
        return at.call(functional.residual_sum, X, F), lambda dY: at.call(functional.residual_sum, dY, inner(dY))
