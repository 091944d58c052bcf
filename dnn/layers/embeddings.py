"""Features made of numbers and of categories, before the first dense layer. X (m, n)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn import functional
from dnn.backends import Array
from dnn.backends.plan import Value
from dnn.errors import check_at_least, check_choice, check_finite_number
from dnn.functional.batches import scatter_add
from dnn.layers.base import Backward, Draw, Layer, Place, Shape, cast, joined, known_layer

KINDS = "piecewise_linear", "periodic"

__all__ = ["CategoricalEmbedding", "NumericalEmbedding"]


def piecewise_linear(xp: Any, X: Array, edges: Array, widths: Array) -> Array:
    """e_t = (x − b_t) / w_t, not below 0 but for the first bin, not above 1 but for the last: of every number n values.

    X (m, n), edges b and widths w (n, T) of the bins; Y (m, n T). Gorishniy, Rubachev and Babenko 2022, equation (1).
    A bin of no width is left out: its values are 0.
    """
    m, (n, T) = X.shape[0], edges.shape
    feature, number = xp.arange(m * n) % n, xp.arange(T)
    low, width = xp.take(edges, feature, axis=0), xp.take(widths, feature, axis=0)
    E = (X.reshape(m * n, 1) - low) / xp.where(width > 0, width, 1)
    E = xp.where(xp.logical_or(number == 0, E > 0), E, 0)
    E = xp.where(xp.logical_or(number == T - 1, E < 1), E, 1)
    return xp.where(width > 0, E, 0).reshape(m, n * T)


def periodic(xp: Any, X: Array, C: Array) -> tuple[Array, Array]:
    """sin(2π c_jk x_j) and cos(2π c_jk x_j): Gorishniy, Rubachev and Babenko 2022, equation (3).

    X (m, n), C (n, k) learned frequencies; each result (m n, k), of the dtype of C.
    """
    V = _phases(xp, X, C)
    return xp.sin(V).astype(C.dtype), xp.cos(V).astype(C.dtype)


def periodic_backward(xp: Any, dS: Array, dC: Array, X: Array, C: Array) -> tuple[Array, Array]:
    """dV = dS cos V − dC sin V; dX_j = 2π Σ_k c_jk dV_jk, dC_jk = 2π Σ_i x_ij dV_ijk. Gives dX (m, n) and dC (n, k)."""
    m, (n, k) = X.shape[0], C.shape
    V = _phases(xp, X, C)
    dV = (dS * xp.cos(V) - dC * xp.sin(V)) * (2 * math.pi)
    feature = xp.arange(m * n) % n
    dX = xp.sum(dV * xp.take(C, feature, axis=0), axis=1, keepdims=True)
    of_rows = (dV * X.reshape(m * n, 1)).reshape(m, n * k)
    return dX.reshape(m, n).astype(dS.dtype), xp.sum(of_rows, axis=0).reshape(n, k).astype(C.dtype)


def _phases(xp: Any, X: Array, C: Array) -> Array:
    m, n = X.shape
    return (X.reshape(m * n, 1) * xp.take(C, xp.arange(m * n) % n, axis=0)) * (2 * math.pi)


def embedding(xp: Any, codes: Array, E: Array) -> Array:
    """Y_i = E[code_i]: row 0 is for what is no category. codes (m, 1) numbers, E (1 + categories, d).

    A code counts from 0; a number that is none (below 0, too large, a fraction, nan) is unknown.
    """
    return xp.take(E, _row_of(xp, codes, E.shape[0]), axis=0)


def embedding_backward(xp: Any, dY: Array, codes: Array, E: Array) -> Array:
    """dE_r = Σ dY_i over the i with that row, in one order on every backend."""
    return scatter_add(xp, dY, _row_of(xp, codes, E.shape[0]), E.shape[0])


def _row_of(xp: Any, codes: Array, rows: int) -> Array:
    possible = xp.logical_and(codes >= 0, codes < rows - 1)
    row = xp.where(possible, codes, -1).astype(np.int64) + 1  # nan is not possible: it is no number to convert
    return xp.where(row == codes + 1, row, 0).reshape(codes.shape[0])


@known_layer
@dataclass(frozen=True)
class NumericalEmbedding(Layer):
    """Several features of every number (Gorishniy, Rubachev and Babenko 2022).

    piecewise_linear   e_t = (x − b_t) / (b_{t+1} − b_t), between 0 and 1 but at the ends, for `size` bins whose edges b
                       are quantiles of the examples of the first fit (their equation (1), section 3.2.1). Nothing is
                       learned by gradients. Only as the first layer.
    periodic           [sin 2πcx, cos 2πcx] for `size` frequencies c of each number, drawn from N(0, sigma²) and
                       learned, followed by a dense layer with relu of `outputs` units that all numbers share: the
                       variant PLR(lite) of the paper's repository.
    """

    family = "numbers"
    exact_input = True
    kind: str = "piecewise_linear"
    size: int = 16
    outputs: int = 8
    sigma: float = 0.1

    def __post_init__(self) -> None:
        check_choice("NumericalEmbedding: kind", self.kind, KINDS)
        for name in ("size", "outputs"):
            value = check_at_least(f"NumericalEmbedding: {name}", getattr(self, name))
            object.__setattr__(self, name, value)
        check_finite_number("NumericalEmbedding: sigma", self.sigma)
        if self.sigma <= 0:
            raise ValueError(f"NumericalEmbedding: sigma must be above 0, got {self.sigma!r}")

    def n_out(self, n_in: int) -> int:
        return n_in * (self.outputs if self.kind == "periodic" else self.size)

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        if self.kind != "periodic":
            return {}
        return {"frequencies": (n_in, self.size), "V": (self.outputs, 2 * self.size), "c": (self.outputs,)}

    def state_shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {} if self.kind == "periodic" else {"edges": (n_in, self.size), "widths": (n_in, self.size)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray | float:
        if name == "frequencies":
            return draw("lecun_normal", shape) * np.sqrt(shape[1]) * self.sigma
        if name == "V":
            return draw("lecun_uniform", shape)
        return 1.0 if name == "widths" else 0.0

    def learn(self, X: np.ndarray) -> Mapping[str, np.ndarray]:
        if self.kind == "periodic":
            return {}
        # equal quantiles (of a number with few values) leave bins of no width, which have no features
        levels = np.linspace(0, 1, self.size + 1)
        edges = np.stack([np.quantile(x.astype(np.float64), levels) for x in X.T])  # in memory one feature at a time
        widths = np.diff(edges, axis=1)
        widths[:, 0] = np.where((widths == 0).all(axis=1), 1, widths[:, 0])  # a constant: how far it is from that
        return {"edges": edges[:, :-1], "widths": widths}

    def macs(self, n_in: int) -> int:
        return n_in * 2 * self.size * self.outputs if self.kind == "periodic" else 0

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        return self._periodic(at, X) if self.kind == "periodic" else self._piecewise(at, X)

    def _piecewise(self, at: Place, X: Value) -> tuple[Value, Backward]:
        edges, widths = at.state("edges"), at.state("widths")

        def backward(dY: Value) -> Value:
            return dY  # the first layer: nothing needs the slope by X

        return at.call(cast, at.call(piecewise_linear, X, edges, widths), dtype=at.dtype), backward

    def _periodic(self, at: Place, X: Value) -> tuple[Value, Backward]:
        C, V, c = at.parameter("frequencies"), at.parameter("V"), at.parameter("c")
        m, n, k = X.shape[0], X.shape[1], self.size
        features = at.call(joined, *at.call(periodic, X, C), axis=1)
        A = at.call(functional.relu, at.call(functional.linear_forward, features, V, c))

        def backward(dY: Value) -> Value:
            dZ = at.call(functional.relu_backward, dY.reshape(m * n, self.outputs), A)
            dF, dV, dc = at.call(functional.linear_backward, dZ, features, V)
            at.gradient("V", dV)
            at.gradient("c", dc)
            dX, dC = at.call(_of_halves, dF, X, C, k=k)
            at.gradient("frequencies", dC)
            return dX

        return A.reshape(m, n * self.outputs), backward


def _of_halves(xp: Any, dF: Array, X: Array, C: Array, k: int) -> tuple[Array, Array]:
    return periodic_backward(xp, dF[:, :k], dF[:, k:], X, C)


@known_layer
@dataclass(frozen=True)
class CategoricalEmbedding(Layer):
    """A learned vector for every category of the features `columns`; the other features pass, in front of them.

    columns      which features are categories: whole numbers from 0
    categories   how many each of them has; any other number is unknown and has a vector of its own
    size         of the vectors
    """

    family = "categories"
    exact_input = takes_codes = True
    columns: Sequence[int]
    categories: Sequence[int]
    size: int = 8

    def __post_init__(self) -> None:
        for name in ("columns", "categories"):
            value = getattr(self, name)
            if isinstance(value, str) or not hasattr(value, "__len__") or not len(value):
                raise TypeError(f"CategoricalEmbedding: {name} must be a list of whole numbers, got {value!r}")
            lowest = 0 if name == "columns" else 1
            checked = tuple(check_at_least(f"CategoricalEmbedding: {name}", item, lowest) for item in value)
            object.__setattr__(self, name, checked)
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"CategoricalEmbedding: columns must be different, got {list(self.columns)}")
        if len(self.columns) != len(self.categories):
            raise ValueError(
                f"CategoricalEmbedding: {len(self.columns)} columns and {len(self.categories)} numbers of categories: "
                "give as many"
            )
        object.__setattr__(self, "size", check_at_least("CategoricalEmbedding: size", self.size))

    def n_out(self, n_in: int) -> int:
        if max(self.columns) >= n_in:
            raise ValueError(f"CategoricalEmbedding: column {max(self.columns)} of {n_in} features, from 0")
        return n_in + len(self.columns) * (self.size - 1)

    def shapes(self, n_in: int) -> Mapping[str, Shape]:
        return {f"E_{column}": (1 + n, self.size) for column, n in zip(self.columns, self.categories, strict=True)}

    def initial(self, name: str, shape: Shape, draw: Draw) -> np.ndarray:
        return draw("lecun_normal", shape) * np.sqrt(shape[1]) * 0.1

    def bind(self, at: Place, X: Value) -> tuple[Value, Backward]:
        n = X.shape[1]
        others = [j for j in range(n) if j not in self.columns]
        tables = {column: at.parameter(f"E_{column}") for column in self.columns}
        codes = {column: at.call(_columns, X, columns=(column,), dtype=X.dtype) for column in self.columns}
        parts = [at.call(_columns, X, columns=tuple(others), dtype=at.dtype)] if others else []
        parts += [at.call(embedding, codes[column], E) for column, E in tables.items()]

        def backward(dY: Value) -> Value:
            start = len(others)
            for column, E in tables.items():
                dE = at.call(_embedding_backward, dY, codes[column], E, first=start, last=start + self.size)
                at.gradient(f"E_{column}", dE)
                start += self.size
            return at.call(_back_in_place, dY, columns=tuple(others), n=n)

        return at.call(joined, *parts, axis=1), backward


def _columns(xp: Any, X: Array, columns: tuple[int, ...], dtype: Any) -> Array:
    """These columns of X, in runs of neighbours."""
    runs: list[list[int]] = []
    for j in columns:
        if runs and runs[-1][1] == j:
            runs[-1][1] = j + 1
        else:
            runs.append([j, j + 1])
    parts = [X[:, first:last].astype(dtype) for first, last in runs]
    return joined(xp, *parts, axis=1)


def _embedding_backward(xp: Any, dY: Array, codes: Array, E: Array, first: int, last: int) -> Array:
    return embedding_backward(xp, dY[:, first:last], codes, E)


def _back_in_place(xp: Any, dY: Array, columns: tuple[int, ...], n: int) -> Array:
    """dX of the features that passed; of the categories 0."""
    zero = xp.zeros_like(dY[:, :1])
    place = {column: dY[:, at : at + 1] for at, column in enumerate(columns)}
    return xp.concatenate([place.get(j, zero) for j in range(n)], axis=1)
