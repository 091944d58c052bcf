"""Layers of networks that share their weights: TabM's (Gorishniy, Kotelnikov and Babenko 2025).

X (k m, n): the batches of k members, one below the other; member of row r: r // m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.backends.plan import Value
from dnn.layers.base import Backward, Draw, Layer, Place, Shape, joined, part_of_rows
from dnn.layers.dense import Dense, activate
from dnn.layers.residual import Residual


def _by_row(xp: Any, F: Array, rows: int) -> Array:
    """For every row what its member has: F (k, n) as (rows, n)."""
    return xp.take(F, xp.arange(rows) // (rows // F.shape[0]), axis=0)


def _of_members(xp: Any, D: Array, k: int) -> Array:
    """The sum over each member's rows: (k, n) from (k m, n)."""
    return functional.scatter_add(xp, D, xp.arange(D.shape[0]) // (D.shape[0] // k), k)


def ensemble_forward(xp: Any, X: Array, W: Array, R: Array, S: Array, b: Array) -> tuple[Array, Array, Array]:
    """Z_k = ((X_k ∘ r_k) Wᵀ) ∘ s_k + b_k: one product for all members (Wen, Tran and Ba 2020, equation (5)).

    W (n_out, n_in), R (k, n_in), S, b (k, n_out). Gives Z, X ∘ r and the product.
    """
    rows = X.shape[0]
    XR = X * _by_row(xp, R, rows)
    P = xp.dot(XR, W.T)
    return P * _by_row(xp, S, rows) + _by_row(xp, b, rows), XR, P


def ensemble_backward(
    xp: Any, dZ: Array, X: Array, XR: Array, P: Array, W: Array, R: Array, S: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """dP = dZ ∘ s, dW = dPᵀ (X ∘ r), dX = (dP W) ∘ r, dr_k = Σ (dP W) ∘ X, ds_k = Σ dZ ∘ P, db_k = Σ dZ.

    Gives dX, dW, dR, dS, db.
    """
    k, rows = R.shape[0], X.shape[0]
    dP = dZ * _by_row(xp, S, rows)
    dXR = xp.dot(dP, W)
    dR, dS, db = (_of_members(xp, D, k) for D in (dXR * X, dZ * P, dZ))
    return dXR * _by_row(xp, R, rows), xp.dot(dP.T, XR), dR, dS, db


@dataclass(frozen=True)
class EnsembleDense(Layer):
    """A dense layer that the members share, with factors of their own on its inputs and outputs, and own biases.

    Biases are always present, whatever `Dense.bias` says.
    R and S begin as ones, in the first layer R as random signs: what tells the members apart.
    """

    family = "dense"
    dense: Dense
    members: int
    first: bool = False

    def n_out(self, n_in: int) -> int:
        return self.dense.units

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        k, n_out = self.members, self.dense.units
        return {"W": (n_out, n_in), "R": (k, n_in), "S": (k, n_out), "b": (k, n_out)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray | float:
        if name == "R" and self.first:
            return np.where(draw("glorot_uniform", shape) < 0, -1.0, 1.0)
        return self.dense.initial(name, shape, draw) if name == "W" else 0.0 if name == "b" else 1.0

    def macs(self, n_in: int) -> int:
        return self.members * n_in * self.dense.units

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        W, R, S, b = (at.parameter(name) for name in "WRSb")
        Z, XR, P = at.call(ensemble_forward, X, W, R, S, b)
        Y, activated = activate(at, self.dense.activation, Z)

        def backward(dY: Value) -> Value:
            dX, *gradients = at.call(ensemble_backward, activated(dY), X, XR, P, W, R, S)
            for name, gradient in zip("WRSb", gradients, strict=True):
                at.gradient(name, gradient)
            return dX

        return Y, backward


@dataclass(frozen=True)
class Heads(Layer):
    """A dense layer for each member: W (k, units, n_in), b (k, units)."""

    family = "dense"
    dense: Dense
    members: int

    def n_out(self, n_in: int) -> int:
        return self.dense.units

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        k, units = self.members, self.dense.units
        return {"W": (k, units, n_in), "b": (k, units)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray | float:
        if name == "b":
            return 0.0
        return np.stack([self.dense.initial("W", shape[1:], draw) * np.ones(shape[1:]) for _ in range(shape[0])])

    def macs(self, n_in: int) -> int:
        return self.members * n_in * self.dense.units

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        k, b = self.members, at.parameter("b")
        weights = [at.parameter("W", member) for member in range(k)]
        m = X.shape[0] // k
        parts = [at.call(part_of_rows, X, first=member * m, last=(member + 1) * m) for member in range(k)]
        Z = at.call(
            joined, *(at.call(functional.linear_product, *pair) for pair in zip(parts, weights, strict=True)), axis=0
        )
        Y, activated = activate(at, self.dense.activation, at.call(_add_by_row, Z, b))

        def backward(dY: Value) -> Value:
            dZ = activated(dY)
            below = []
            for member, (part, W) in enumerate(zip(parts, weights, strict=True)):
                dZ_part = at.call(part_of_rows, dZ, first=member * m, last=(member + 1) * m)
                dX, dW, _ = at.call(functional.linear_backward, dZ_part, part, W)
                at.gradient("W", dW, member)
                below.append(dX)
            at.gradient("b", at.call(_of_members, dZ, k=k))
            return at.call(joined, *below, axis=0)

        return Y, backward


def _add_by_row(xp: Any, Z: Array, b: Array) -> Array:
    return Z + _by_row(xp, b, Z.shape[0])


def shared(layers: Sequence[Layer], members: int) -> tuple[Layer, ...]:
    """The layers as members share them: own factors in every dense layer, and own heads at the end."""
    if not isinstance(layers[-1], Dense):
        raise ValueError(f"shared='tabm' needs a Dense layer at the end, got {layers[-1]!r}")
    return (*_shared(layers[:-1], members, [True]), Heads(layers[-1], members))


def _shared(layers: Sequence[Layer], members: int, first: list[bool]) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Dense):
            found.append(EnsembleDense(layer, members, first.pop() if first else False))
        elif isinstance(layer, Residual):
            found.append(replace(layer, layers=_shared(layer.layers, members, first)))
        else:
            found.append(layer)
    return found
