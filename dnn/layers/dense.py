"""Dense layers, activations, and factors. X (m, n_in), one example a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn import functional
from dnn.activations import ACTIVATIONS
from dnn.backends import Array
from dnn.backends.plan import Value
from dnn.errors import check_at_least, check_choice, check_finite_number, check_switch
from dnn.initializers import check_initializer
from dnn.layers.base import Backward, Draw, Layer, Place, Shape, known_layer

__all__ = ["Activation", "Dense", "PReLU", "Scale"]


def scale(xp: Any, X: Array, s: Array) -> Array:
    """Y = X s, with a factor for each feature: s (n,)."""
    return X * s


def scale_backward(xp: Any, dY: Array, X: Array, s: Array) -> tuple[Array, Array]:
    """dX = dY s, ds = Σ_i dY X."""
    return dY * s, xp.sum(dY * X, axis=0)


@known_layer
@dataclass(frozen=True)
class Dense(Layer):
    """Z = X Wᵀ + b, and g(Z) where an activation g is given. W (units, n_in), b (units,).

    units         the number of outputs
    activation    by name, None for none
    bias          whether there is a b
    initializer   of W, by name or a number for all of it; None for the network's
    """

    family = "dense"
    units: int
    activation: str | None = None
    bias: bool = True
    initializer: str | float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_at_least("Dense: units", self.units))
        if self.activation is not None:
            check_choice("Dense: activation", self.activation, ACTIVATIONS)
        check_switch("Dense: bias", self.bias)
        object.__setattr__(self, "bias", bool(self.bias))
        if self.initializer is not None:
            try:
                check_initializer(self.initializer)
            except ValueError as wrong:
                raise ValueError(f"Dense: {wrong}") from None

    def n_out(self, n_in: int) -> int:
        return self.units

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        found: dict[str, Shape] = {"W": (self.units, n_in)}
        if self.bias:
            found["b"] = (self.units,)
        return found

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray | float:
        return draw(self.initializer, shape) if name == "W" else 0.0

    def macs(self, n_in: int) -> int:
        return n_in * self.units

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        W = at.parameter("W")
        if self.bias:
            Z = at.call(functional.linear_forward, X, W, at.parameter("b"))
        else:
            Z = at.call(functional.linear_product, X, W)
        Y, activated = activate(at, self.activation, Z)

        def backward(dY: Value) -> Value:
            dX, dW, db = at.call(functional.linear_backward, activated(dY), X, W)
            at.gradient("W", dW)
            if self.bias:
                at.gradient("b", db)
            return dX

        return Y, backward


def activate(at: Place, name: str | None, Z: Value) -> tuple[Value, Backward]:
    """g(Z) and its backward; without a name Z itself."""
    at.name("Z", Z)
    if name is None:
        return Z, lambda dZ: dZ
    activation = ACTIVATIONS[name]
    A = at.name("A", at.call(activation.forward, Z))
    saved = {"Z": Z, "A": A}

    def backward(dA: Value) -> Value:
        return at.name("dZ", at.call(activation.backward, dA, *(saved[what] for what in activation.saves)))

    return A, backward


@known_layer
@dataclass(frozen=True)
class Activation(Layer):
    """A = g(Z), elementwise: one of dnn.activations.ACTIVATIONS by name, a registered one included."""

    family = "activation"
    name: str

    def __post_init__(self) -> None:
        check_choice("Activation: name", self.name, ACTIVATIONS)

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        return activate(at, self.name, X)


@known_layer
@dataclass(frozen=True)
class PReLU(Layer):
    """A = Z where Z > 0, else slope · Z, with a learned slope for each feature: He et al. 2015, equation (1)."""

    family = "prelu"
    slope: float = 0.25

    def __post_init__(self) -> None:
        check_finite_number("PReLU: slope", self.slope)

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {"slope": (n_in,)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> float:
        return self.slope

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        slope = at.parameter("slope")

        def backward(dY: Value) -> Value:
            dX, dslope = at.call(functional.prelu_backward, dY, X, slope)
            at.gradient("slope", dslope)
            return dX

        return at.call(functional.prelu, X, slope), backward


@known_layer
@dataclass(frozen=True)
class Scale(Layer):
    """Y = X s, with a learned factor for each feature. s (n,) begins as `start`.

    As the first layer with a higher learning rate it selects features: Holzmüller, Grinsztajn and Steinwart 2024.
    """

    family = "scale"
    start: float = 1.0

    def __post_init__(self) -> None:
        check_finite_number("Scale: start", self.start)

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {"scale": (n_in,)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> float:
        return self.start

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        s = at.parameter("scale")

        def backward(dY: Value) -> Value:
            dX, ds = at.call(scale_backward, dY, X, s)
            at.gradient("scale", ds)
            return dX

        return at.call(scale, X, s), backward
