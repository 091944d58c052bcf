"""Layers: their mathematics against saved numbers and PyTorch, on every backend and in plans; networks made of them."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import BACKENDS
from layer_cases import close, gradients, randomized, same_bits, values_of
from oracles import slopes, torch_or_skip
from sweeps import covering
from traced import KERNELS, WAYS, eagerly, on_backend, traced

import dnn
from dnn import functional
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, use_compiled_steps
from dnn.errors import DataError
from dnn.layers import (
    LAYERS,
    Activation,
    AlphaDropout,
    BatchNorm,
    CategoricalEmbedding,
    Dense,
    Dropout,
    Layer,
    LayerNorm,
    NumericalEmbedding,
    PReLU,
    Residual,
    RMSNorm,
    Scale,
    dense,
    dropout,
    embeddings,
    ensemble,
    layer_config,
    layer_from_config,
    normalization,
)
from dnn.losses import LOSSES

RNG = np.random.default_rng(12)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


# --------------------------------------------------------------------- forward and backward, of xp and of PyTorch


@dataclass
class Case:
    """Y, dX and the gradients of parameters as one function (xp, X, dY, *parameters), and Y by PyTorch's operations."""

    function: Callable[..., Any]
    torchs: Callable[..., Any]
    parameters: Callable[[int], list[np.ndarray]]
    """Of so many features."""


def batch_norm(xp: Any, X: Any, dY: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    mean, variance = normalization.batch_statistics(xp, X)
    Y = normalization.batch_norm(xp, X, mean, variance, gamma, beta, eps)
    return Y, *normalization.batch_norm_backward(xp, dY, X, mean, variance, gamma, eps)


def layer_norm(xp: Any, X: Any, dY: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    Y = normalization.layer_norm(xp, X, gamma, beta, eps)
    return Y, *normalization.layer_norm_backward(xp, dY, X, gamma, eps)


def rms_norm(xp: Any, X: Any, dY: Any, gamma: Any, eps: float = 1e-5) -> Any:
    return normalization.rms_norm(xp, X, gamma, eps), *normalization.rms_norm_backward(xp, dY, X, gamma, eps)


def prelu(xp: Any, X: Any, dY: Any, slope: Any) -> Any:
    return functional.prelu(xp, X, slope), *functional.prelu_backward(xp, dY, X, slope)


def scale(xp: Any, X: Any, dY: Any, s: Any) -> Any:
    return dense.scale(xp, X, s), *dense.scale_backward(xp, dY, X, s)


def mask_of(xp: Any, X: Any, rate: Any) -> Any:
    """The same on every backend: a function of the step alone."""
    step = (xp.arange(1) + 5).astype(np.int64)
    return dropout.keep_mask(xp, step, rate, X.shape, 7, 2)


def dropped(xp: Any, X: Any, dY: Any, rate: float = 0.4) -> Any:
    keep = mask_of(xp, X, rate)
    return dropout.dropout(xp, X, keep, rate), dropout.dropout(xp, dY, keep, rate)


def alpha_dropped(xp: Any, X: Any, dY: Any, rate: float = 0.4) -> Any:
    keep = mask_of(xp, X, rate)
    return dropout.alpha_dropout(xp, X, keep, rate), dropout.alpha_dropout_backward(xp, dY, keep, rate)


def periodic(xp: Any, X: Any, dY: Any, C: Any) -> Any:
    k = C.shape[1]
    D = dY.reshape(X.shape[0] * X.shape[1], 1) * (xp.arange(2 * k) + 1).astype(dY.dtype)
    return *embeddings.periodic(xp, X, C), *embeddings.periodic_backward(xp, D[:, :k], D[:, k:], X, C)


def torch_batch_norm(torch: Any, X: Any, gamma: Any, beta: Any) -> Any:
    if len(X) > 1:
        return torch.nn.functional.batch_norm(X, None, None, gamma, beta, training=True)
    return (X - X.mean(0)) / (X.var(0, correction=0) + 1e-5).sqrt() * gamma + beta  # which PyTorch's refuses


def torch_mask(torch: Any, X: Any) -> Any:
    return torch.tensor(mask_of(np, X.detach().numpy(), 0.4))


def torch_alpha_dropout(torch: Any, X: Any) -> Any:
    """As torch.nn.functional's aten: the kept and the others, by an affine map of mean 0 and variance 1."""
    alpha, p = 1.7580993408473766, 0.4
    a = 1 / np.sqrt((alpha**2 * p + 1) * (1 - p))
    keep = torch_mask(torch, X)
    return X * keep * a + ((keep.to(X.dtype) - 1) * alpha * a + alpha * a * p)


def torch_periodic(torch: Any, X: Any, C: Any) -> Any:
    phases = (2 * np.pi * X[:, :, None] * C).reshape(-1, C.shape[1])
    return phases.sin(), phases.cos()


CASES = {
    "batch norm": Case(batch_norm, torch_batch_norm, lambda n: [normal(n), normal(n)]),
    "layer norm": Case(
        layer_norm,
        lambda torch, X, gamma, beta: torch.nn.functional.layer_norm(X, X.shape[1:], gamma, beta),
        lambda n: [normal(n), normal(n)],
    ),
    "rms norm": Case(
        rms_norm,
        lambda torch, X, gamma: torch.nn.functional.rms_norm(X, X.shape[1:], gamma, 1e-5),
        lambda n: [normal(n)],
    ),
    "prelu": Case(prelu, lambda torch, X, slope: torch.nn.functional.prelu(X, slope), lambda n: [normal(n)]),
    "scale": Case(scale, lambda torch, X, s: X * s, lambda n: [normal(n)]),
    "dropout": Case(dropped, lambda torch, X: X * torch_mask(torch, X) / 0.6, lambda n: []),
    "alpha dropout": Case(alpha_dropped, torch_alpha_dropout, lambda n: []),
    "periodic": Case(periodic, torch_periodic, lambda n: [0.1 * normal(n, 3)]),
}


def inputs() -> dict[str, np.ndarray]:
    with_zeros = normal(5, 4)
    with_zeros[1], with_zeros[:, 2], with_zeros[0, 0] = 0, 0, -0.0
    return {
        "random": normal(7, 5),
        "exact 0": with_zeros,
        "all 0": np.zeros((3, 2)),
        "large": 1e6 * normal(6, 5),
        "one example": normal(1, 5),
        "one feature": normal(6, 1),
        "one number": normal(1, 1),
        "many": normal(70, 33),
    }


INPUTS = inputs()


def by_pytorch(test: Case, X: np.ndarray, dY: np.ndarray, parameters: list[np.ndarray]) -> list[np.ndarray]:
    torch = torch_or_skip()
    leaves = [torch.tensor(a, requires_grad=True) for a in (X, *parameters)]
    Y = test.torchs(torch, *leaves)
    if isinstance(Y, tuple):  # as in `periodic`
        k = Y[0].shape[1]
        D = torch.tensor(dY).reshape(-1, 1) * (torch.arange(2 * k) + 1)
        ((Y[0] * D[:, :k]).sum() + (Y[1] * D[:, k:]).sum()).backward()
    else:
        (Y * torch.tensor(dY)).sum().backward()
    values = Y if isinstance(Y, tuple) else (Y,)
    return [tensor.detach().numpy() for tensor in values] + [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize("points", INPUTS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_pytorchs(name, points):
    test, X = CASES[name], INPUTS[points]
    if name == "periodic" and points == "large":
        X = X / 1e4  # of large phases nobody knows the last digits
    dY, parameters = normal(*X.shape), test.parameters(X.shape[1])
    usual = np.abs(dY).max()  # of one feature, normalized, dX is a difference of equal numbers
    close(eagerly(test.function, X, dY, *parameters), by_pytorch(test, X, dY, parameters), usual=usual)


SAVED_X = np.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])
SAVED_DY = np.array([[1.0, -2.0, 0.5], [0.25, 1.5, -3.0]])
SAVED_PARAMETERS = {
    "batch norm": [np.array([1.5, -0.5, 2.0]), np.array([0.1, 0.2, -0.3])],
    "layer norm": [np.array([1.5, -0.5, 2.0]), np.array([0.1, 0.2, -0.3])],
    "rms norm": [np.array([1.5, -0.5, 2.0])],
    "prelu": [np.array([0.25, -0.5, 0.1])],
    "scale": [np.array([1.5, -0.5, 2.0])],
    "dropout": [],
    "alpha dropout": [],
    "periodic": [np.array([[0.1, 0.2], [-0.3, 0.05], [0.4, 0.15]])],
}
SAVED: dict[str, list[Any]] = {
    "batch norm": [
        [
            [1.5998800143980805, 0.6999993750011719, 1.699992098812254],
            [-1.3998800143980803, -0.29999937500117185, -2.299992098812254],
        ],
        [
            [0.0003599136172764694, 1.0937458984642984e-06, 2.4581327320535423e-05],
            [-0.0003599136172764694, -1.0937458984642984e-06, -2.4581327320535423e-05],
        ],
        [0.7499400071990402, 3.499995625008203, 3.4999861729214445],
        [1.25, -0.5, -2.5],
    ],
    "layer norm": [
        [
            [0.1, 0.8123703944645484, 2.1494815778581935],
            [-0.8311467340610331, -0.5054141924704796, -1.8801277911338743],
        ],
        [
            [0.27216461976202144, -0.13608230988101078, -0.13608230988101078],
            [2.1763578250123663, -0.1674072729462739, -2.008950552066092],
        ],
        [-0.15519112234350552, 4.565724155269632, 2.9825620811653604],
        [1.25, -0.5, -2.5],
    ],
    "rms norm": [
        [
            [0.5669450896730416, 0.37796339311536103, 3.0237071449228883],
            [0.0, -0.8630325142072639, -0.28767750473575465],
        ],
        [
            [1.0079031015671216, 1.0079009417886453, 0.2519784751148756],
            [0.21575812855181598, -0.2886699690018661, -3.4640339141708694],
        ],
        [0.37796339311536103, 4.100951115083236, 1.187443043334354],
    ],
    "prelu": [
        [[0.5, 0.5, 2.0], [0.0, 3.0, -0.025]],
        [[1.0, 1.0, 0.5], [0.0625, 1.5, -0.30000000000000004]],
        [0.0, 2.0, 0.75],
    ],
    "scale": [
        [[0.75, 0.5, 4.0], [0.0, -1.5, -0.5]],
        [[1.5, 1.0, 1.0], [0.375, -0.75, -6.0]],
        [0.5, 6.5, 1.75],
    ],
    "dropout": [
        [[0.8333333333333334, -1.6666666666666667, 0.0], [0.0, 0.0, -0.4166666666666667]],
        [[1.6666666666666667, -3.3333333333333335, 0.0], [0.0, 0.0, -5.0]],
    ],
    "alpha dropout": [
        [
            [1.038735959423684, -0.25618797973768903, -0.9106419695548393],
            [-0.9106419695548393, -0.9106419695548393, 0.39127398984299744],
        ],
        [[0.863282626107582, -1.726565252215164, 0.0], [0.0, 0.0, -2.589847878322746]],
    ],
    "periodic": [
        [
            [0.3090169943749474, 0.5877852522924731],
            [0.9510565162951536, -0.3090169943749474],
            [-0.9510565162951536, 0.9510565162951536],
            [0.0, 0.0],
            [0.5877852522924734, 0.8090169943749475],
            [-0.5877852522924731, -0.2334453638559054],
        ],
        [
            [0.9510565162951535, 0.8090169943749475],
            [-0.30901699437494734, 0.9510565162951535],
            [0.30901699437494723, -0.30901699437494734],
            [1.0, 1.0],
            [0.8090169943749473, 0.5877852522924731],
            [0.8090169943749475, 0.9723699203976766],
        ],
        [
            [-0.9061663305279556, -13.892939697691691, 1.8897798507812074],
            [0.7853981633974483, 1.7273427222349274, -27.53406083197257],
        ],
        [
            [0.07541560665335639, -2.303123629646567],
            [-66.7205008621733, -18.823647885110283],
            [31.990625033618304, -14.221167359278434],
        ],
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_saved_numbers_on_every_backend(name, backend: Backend):
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 3e-5)):
        given = [array.astype(dtype) for array in (SAVED_X, SAVED_DY, *SAVED_PARAMETERS[name])]
        found = on_backend(backend, CASES[name].function, *given)
        assert all(result.dtype == dtype for result in found)
        close(found, SAVED[name], tolerance, usual=1.0)  # of two examples, normalized, dX is a small difference


@covering(
    "name, points, backend",
    CASES,
    ["exact 0", "one example", "one feature", "many"],
    BACKENDS,
    times=4,
    indirect=["backend"],
)
def test_every_backend_computes_what_numpy_does(name, points, backend: Backend):
    X = INPUTS[points]
    given = [X, normal(*X.shape), *CASES[name].parameters(X.shape[1])]
    close(on_backend(backend, CASES[name].function, *given), eagerly(CASES[name].function, *given))


def not_finite() -> np.ndarray:
    X = normal(5, 6)
    X[1, 0], X[2, 1], X[3, 2], X[:, 3] = np.inf, -np.inf, np.nan, np.inf
    return X


@covering("name, way", CASES, [*WAYS, *KERNELS], times=2)
def test_derived_code_is_what_runs_eagerly(name, way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    for X in (normal(9, 17), normal(1, 6), INPUTS["exact 0"], not_finite()):
        if name == "periodic":
            X = np.nan_to_num(X, posinf=3.0, neginf=-3.0)  # the sine of an infinity is the library's matter
        given = [X, normal(*X.shape), *CASES[name].parameters(X.shape[1])]
        close(traced(way, CASES[name].function, *given), eagerly(CASES[name].function, *given))


# ------------------------------------------------------------------------------------------------- embeddings


def by_loop(X: np.ndarray, edges: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Equation (1), number by number."""
    (m, n), T = X.shape, edges.shape[1]
    Y = np.zeros((m, n, T))
    for i in range(m):
        for j in range(n):
            for t in range(T):
                if widths[j, t] > 0:
                    value = (X[i, j] - edges[j, t]) / widths[j, t]
                    value = value if t == 0 else max(value, 0.0)
                    Y[i, j, t] = value if t == T - 1 else min(value, 1.0)
    return Y.reshape(m, n * T)


def bins(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X = normal(40, 4)
    X[:, 1] = np.round(X[:, 1])  # few values: bins of no width
    X[:, 2] = 3.5
    learned = NumericalEmbedding("piecewise_linear", size).learn(X)
    outside = np.concatenate([X[:7], 10 * normal(3, 4), learned["edges"][:, :1].T])
    return outside, np.ascontiguousarray(learned["edges"]), learned["widths"]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_piecewise_linear_features_are_those_of_a_loop(size, backend: Backend):
    X, edges, widths = bins(size)
    close(on_backend(backend, embeddings.piecewise_linear, X, edges, widths), [by_loop(X, edges, widths)])


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
def test_derived_code_of_piecewise_linear_features(way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    X, edges, widths = bins(5)
    X[0], X[1] = np.inf, -np.inf
    for rows in (X, X[3:4]):
        close(traced(way, embeddings.piecewise_linear, rows, edges, widths), [by_loop(rows, edges, widths)])


def test_bins_are_quantiles_of_the_first_fit_and_a_constant_has_one_of_width_1():
    X = np.column_stack([np.arange(9.0), np.full(9, 2.0)])
    network = dnn.Network(2, [NumericalEmbedding(size=4), Dense(1)], output="linear")
    network.fit(X, np.zeros(9), epochs=1)
    found = values_of(network)
    assert found["edges1"].tolist() == [[0, 2, 4, 6], [2, 2, 2, 2]]
    assert found["widths1"].tolist() == [[2, 2, 2, 2], [1, 0, 0, 0]]
    network.fit(X + 100, np.zeros(9), epochs=1)
    assert values_of(network)["edges1"].tolist() == found["edges1"].tolist()


def test_bins_are_learned_with_one_feature_in_memory_at_a_time():
    X = normal(10_000, 100).astype(np.float32)
    tracemalloc.start()
    found = NumericalEmbedding(size=4).learn(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 2
    assert found["edges"].tobytes() == np.quantile(X.astype(np.float64), [0, 0.25, 0.5, 0.75], axis=0).T.tobytes()


def embedded(xp: Any, codes: Any, dY: Any, E: Any) -> Any:
    return embeddings.embedding(xp, codes, E), embeddings.embedding_backward(xp, dY, codes, E)


CODES = np.array([[0], [2], [2], [-1], [3], [1e30], [np.nan], [0.5], [2], [-np.inf], [1]], np.float64)
ROWS = np.array([1, 3, 3, 0, 0, 0, 0, 0, 3, 0, 2])
"""Of three categories; what is none of them has row 0."""


def test_vectors_of_categories_and_their_gradients_are_pytorchs(backend: Backend):
    E, dY = normal(4, 3), normal(len(CODES), 3)
    found = on_backend(backend, embedded, CODES, dY, E)
    close(found, [E[ROWS], np.stack([dY[row == ROWS].sum(0) for row in range(4)])])
    torch = torch_or_skip()
    table = torch.nn.Embedding(4, 3, _weight=torch.tensor(E))
    Y = table(torch.tensor(ROWS))
    Y.backward(torch.tensor(dY))
    close(found, [Y.detach().numpy(), table.weight.grad.numpy()])


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
def test_derived_code_of_vectors_of_categories(way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    for codes in (CODES, CODES[:1], CODES.astype(np.float32)):
        given = codes, normal(len(codes), 3).astype(codes.dtype), normal(4, 3).astype(codes.dtype)
        close(traced(way, embedded, *given), eagerly(embedded, *given), 1e-12 if codes.dtype == float else 1e-6)


# ------------------------------------------------------------------------------------ in a network, against PyTorch


def torch_layer(layer: Layer, number: int, P: dict[str, Any], A: Any) -> Any:
    """The layer by PyTorch's operations, with the network's parameters P."""
    import torch
    from torch.nn import functional as F

    if isinstance(layer, Dense):
        Z = F.linear(A, P[f"W{number}"], P.get(f"b{number}"))
        return Z if layer.activation is None else getattr(torch, layer.activation)(Z)
    if isinstance(layer, PReLU):
        return F.prelu(A, P[f"slope{number}"])
    if isinstance(layer, Scale):
        return A * P[f"scale{number}"]
    if isinstance(layer, BatchNorm):
        return F.batch_norm(A, None, None, P[f"gamma{number}"], P[f"beta{number}"], training=True)
    if isinstance(layer, LayerNorm):
        return F.layer_norm(A, A.shape[1:], P[f"gamma{number}"], P[f"beta{number}"])
    if isinstance(layer, RMSNorm):
        return F.rms_norm(A, A.shape[1:], P[f"gamma{number}"], 1e-5)
    if isinstance(layer, Activation):
        return torch.tanh(A)
    if isinstance(layer, NumericalEmbedding):
        phases = 2 * np.pi * A[:, :, None] * P[f"frequencies{number}"]
        features = torch.cat([phases.sin(), phases.cos()], 2)
        return torch.relu(F.linear(features, P[f"V{number}"], P[f"c{number}"])).flatten(1)
    assert isinstance(layer, CategoricalEmbedding)
    passed = [A[:, j : j + 1] for j in range(A.shape[1]) if j not in layer.columns]
    vectors = [F.embedding(A[:, j].long() + 1, P[f"E{number}_{j}"]) for j in layer.columns]
    return torch.cat(passed + vectors, 1)


def torch_forward(layers: Any, P: dict[str, Any], A: Any, numbers: dict[str, int] | None = None) -> Any:
    numbers = {} if numbers is None else numbers
    for layer in layers:
        numbers[layer.family] = numbers.get(layer.family, 0) + 1
        if isinstance(layer, Residual):
            A = A + torch_forward(layer.layers, P, A, numbers)
        else:
            A = torch_layer(layer, numbers[layer.family], P, A)
    return A


NETWORKS: dict[str, list[Layer]] = {
    "dense": [Dense(5, "tanh"), Dense(4, "relu", bias=False), Dense(2)],
    "activation": [Dense(5), Activation("tanh"), Dense(2)],
    "prelu": [Dense(5), PReLU(), Dense(4), PReLU(0.1), Dense(2)],
    "scale": [Scale(), Dense(5, "relu"), Scale(2.0), Dense(2)],
    "batch norm": [BatchNorm(), Dense(5, bias=False), BatchNorm(), Activation("tanh"), Dense(2)],
    "layer norm": [Dense(5), LayerNorm(), Activation("tanh"), Dense(2), LayerNorm()],
    "rms norm": [Dense(5), RMSNorm(), Activation("tanh"), Dense(2)],
    "residual": [Dense(5, "relu"), Residual([LayerNorm(), Dense(3, "tanh"), Dense(5)]), Dense(2)],
    "residual in residual": [Residual([Dense(4), Residual([PReLU(), Scale()])]), Residual([Scale()]), Dense(2)],
    "periodic": [NumericalEmbedding("periodic", 3, 2, sigma=0.5), Dense(2)],
    "periodic after dense": [Dense(3, "tanh"), NumericalEmbedding("periodic", 2, 3), Dense(2)],
    "categories": [CategoricalEmbedding([1, 3], [3, 2], 2), Dense(5, "tanh"), Dense(2)],
    "categories, in another order": [CategoricalEmbedding([3, 1], [2, 3], 3), Dense(2)],
    "all categories": [CategoricalEmbedding([0, 1, 2, 3], [5, 3, 2, 2], 1), Dense(2)],
}


def examples_of(m: int = 9) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    X = generator.standard_normal((m, 4))
    X[:, 1], X[:, 3] = np.arange(m) % 3, np.arange(m) % 2
    return X, generator.standard_normal((m, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_a_networks_parameters_are_pytorchs(name, backend: Backend):
    torch = torch_or_skip()
    X, Y = examples_of()
    if name == "all categories":
        X[:, 0], X[:, 2] = 4, 1
    network = dnn.Network(4, NETWORKS[name], output="linear", dtype="float64", backend=backend.name)
    found = gradients(randomized(network), X, Y)
    P = {n: torch.tensor(network.backend.to_numpy(v), requires_grad=True) for n, v in network.parameters.items()}
    loss = ((torch_forward(network.layers, P, torch.tensor(X)) - torch.tensor(Y)) ** 2).mean()
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert found.of.keys() == P.keys()
    for parameter, tensor in P.items():
        scale = max(float(t.grad.abs().max()) for t in P.values())
        np.testing.assert_allclose(found.of[parameter], tensor.grad, rtol=1e-11, atol=1e-12 * scale, err_msg=parameter)


def test_batch_norm_trains_and_evaluates_as_pytorchs_over_several_steps(backend: Backend):
    torch = torch_or_skip()
    X, Y = examples_of(12)
    network = dnn.Network(
        4, [Dense(5), BatchNorm(), Activation("tanh"), Dense(2)], output="linear", dtype="float64", backend=backend.name
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5, momentum=0.1), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    ).double()
    parameters = dict(zip(("W1", "b1", "gamma1", "beta1", "W2", "b2"), model.parameters(), strict=True))
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(torch.tensor(values_of(network)[name]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        network.fit(X, Y, epochs=1, batch_size=5, shuffle=False, optimizer=dnn.SGD(0.1))  # 5, 5 and 2
        model.train()
        for first in (0, 5, 10):
            optimizer.zero_grad()
            part = slice(first, first + 5)
            ((model(torch.tensor(X[part])) - torch.tensor(Y[part])) ** 2).mean().backward()
            optimizer.step()
        model.eval()
        found = values_of(network)
        close([found["mean1"], found["variance1"]], [model[1].running_mean, model[1].running_var], 1e-11)
        with torch.no_grad():
            close([network.predict(X)], [model(torch.tensor(X))], 1e-11)
    for name, tensor in parameters.items():  # of b1, which the mean takes away, the gradient is rounding
        np.testing.assert_allclose(found[name], tensor.detach(), rtol=1e-10, atol=1e-12, err_msg=name)


def test_running_statistics_are_averages_of_those_of_batches_without_bias(backend: Backend):
    X = np.array([[1.0], [3.0], [5.0], [7.0]])
    network = dnn.Network(
        1, [BatchNorm(momentum=0.75), Dense(1)], output="linear", dtype="float64", backend=backend.name
    )
    network.fit(X, X, epochs=1, batch_size=3, shuffle=False)
    found = values_of(network)
    mean, variance = 0.25 * 3, 0.75 * 1 + 0.25 * 4  # the last batch, of one example, changes nothing
    close([found["mean1"], found["variance1"]], [[mean], [variance]])
    assert network.least_batch == 2 and dnn.Network([1, 1]).least_batch == 1


# --------------------------------------------------------------------------------------------- specifications


SPELLED_OUT: list[tuple[dict[str, Any], list[Layer]]] = [
    ({"activation": "gelu"}, [Dense(6, "gelu"), Dense(5, "gelu"), Dense(3)]),
    (
        {"dropout": [0.3, 0.0], "activation": ["relu", "tanh"]},
        [Dense(6, "relu"), Dropout(0.3), Dense(5, "tanh"), Dense(3)],
    ),
    (
        {"norm": "batch", "dropout": 0.2},
        [
            *(Dense(6, bias=False), BatchNorm(), Activation("relu"), Dropout(0.2)),
            *(Dense(5, bias=False), BatchNorm(), Activation("relu"), Dropout(0.2)),
            Dense(3),
        ],
    ),
    ({"norm": ["layer", None]}, [Dense(6), LayerNorm(), Activation("relu"), Dense(5, "relu"), Dense(3)]),
    ({"norm": [None, "rms"]}, [Dense(6, "relu"), Dense(5), RMSNorm(), Activation("relu"), Dense(3)]),
]


@covering("spelled_out, backend", SPELLED_OUT, BACKENDS, indirect=["backend"], ids=str)
def test_layers_spelled_out_are_the_network_of_those_sizes_to_the_bit(spelled_out, backend: Backend):
    settings, layers = spelled_out
    X, Y = normal(30, 4).astype(np.float32), np.arange(30) % 3
    networks = [
        dnn.Network([4, 6, 5, 3], output="softmax", seed=9, backend=backend.name, **settings),
        dnn.Network(4, layers, output="softmax", seed=9, backend=backend.name),
    ]
    assert same_bits(*networks)
    histories = [network.fit(X, Y, epochs=2, batch_size=8).history for network in networks]
    assert same_bits(*networks) and histories[0] == histories[1]
    assert networks[0].predict_proba(X).tobytes() == networks[1].predict_proba(X).tobytes()


def test_a_summary_lists_the_layers():
    network = dnn.Network(
        6, [CategoricalEmbedding([1], [3], 2), Residual([Dense(7, "gelu"), BatchNorm()]), Dropout(0.2), Dense(3)],
        output="softmax", members=2, backend="numpy",
    )  # fmt: skip
    assert network.summary().splitlines() == [
        "layer                 outputs  parameters  shapes                   multiply-adds",
        "CategoricalEmbedding        7          16  E1_1 (4, 2)",
        "Residual",
        "  Dense gelu                7         112  W1 (7, 7)  b1 (7,)                  98",
        "  BatchNorm                 7          28  gamma1 (7,)  beta1 (7,)",
        "Dropout 0.2                 7",
        "Dense                       3          48  W2 (3, 7)  b2 (3,)                  42",
        "softmax output, 2 members, 204 parameters, float32, 0.00 MB, backend numpy",
    ]
    for kinds in ({"norm": "batch"}, {"dropout": 0.5}, {"members": 3}, {"members": 3, "shared": "tabm"}):
        made = dnn.Network([4, 6, 3], output="softmax", **kinds)
        assert "W1" in made.summary() and f"{made.n_parameters:,} parameters" in made.summary()


@dataclass(frozen=True)
class Shift(Layer):
    """A layer of a user's own: Y = X + b."""

    family = "shift"
    name: str = "b"
    keeps: tuple[str, ...] = ()
    setting: Any = None

    def shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return {self.name: (n_in,)}

    def state_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.keeps, (n_in,))

    def bind(self, at: Any, X: Any) -> Any:
        def backward(dY: Any) -> Any:
            at.gradient(self.name, at.call(lambda xp, dY: xp.sum(dY, axis=0), dY))
            return dY

        return at.call(lambda xp, X, b: X + b, X, at.parameter(self.name)), backward


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Dense(0), r"Dense: units must be at least 1, got 0"),
    (lambda: Dense(2.5), r"Dense: units must be a whole number, got 2.5"),  # type: ignore[arg-type]
    (lambda: Dense(2, "rellu"), r"Dense: activation must be one of .*, got 'rellu': did you mean relu\?"),
    (lambda: Dense(2, bias="yes"), r"Dense: bias must be True or False, got 'yes'"),  # type: ignore[arg-type]
    (
        lambda: Dense(2, initializer="he_norml"),
        r"Dense: initializer must be .*, got 'he_norml': did you mean he_normal\?",
    ),
    (lambda: Activation("tahn"), r"Activation: name must be .*, got 'tahn': did you mean tanh\?"),
    (lambda: Dropout(1.0), r"Dropout: rate must be at least 0 and below 1, got 1.0"),
    (lambda: Dropout(-0.1), r"Dropout: rate must be at least 0 and below 1, got -0.1"),
    (lambda: AlphaDropout(1), r"AlphaDropout: rate must be at least 0 and below 1, got 1"),
    (lambda: Dropout("half"), r"Dropout: rate must be a number, got 'half'"),  # type: ignore[arg-type]
    (lambda: Dropout(0.3, schedule="plateau"), r"Dropout: schedule must be one of .*, not .* as ReduceOnPlateau"),  # type: ignore[arg-type]
    (lambda: BatchNorm(momentum=1.0), r"BatchNorm: momentum must be at least 0 and below 1, got 1.0"),
    (lambda: LayerNorm(eps=0.0), r"LayerNorm: eps must be above 0, got 0.0"),
    (lambda: RMSNorm(eps=float("nan")), r"RMSNorm: eps must be finite, got nan"),
    (lambda: PReLU(float("inf")), r"PReLU: slope must be finite, got inf"),
    (lambda: Scale("1"), r"Scale: start must be a number, got '1'"),  # type: ignore[arg-type]
    (lambda: Residual([]), r"Residual: layers must be a list of layers, got \[\]"),
    (lambda: Residual(Dense(3)), r"Residual: layers must be a list of layers, got Dense"),  # type: ignore[arg-type]
    (lambda: Residual(5), r"Residual: layers must be a list of layers, got 5"),  # type: ignore[arg-type]
    (lambda: Residual(Dense(3) for _ in range(2)), r"Residual: layers must be a list of layers, got <gen"),  # type: ignore[arg-type]
    (
        lambda: NumericalEmbedding("periodical"),
        r"NumericalEmbedding: kind must be .*'periodical': did you mean periodic\?",
    ),
    (lambda: NumericalEmbedding(size=0), r"NumericalEmbedding: size must be at least 1, got 0"),
    (lambda: NumericalEmbedding("periodic", sigma=0.0), r"NumericalEmbedding: sigma must be above 0, got 0.0"),
    (lambda: CategoricalEmbedding([0, 1], [3]), r"CategoricalEmbedding: 2 columns and 1 numbers of categories"),
    (lambda: CategoricalEmbedding([0, 0], [3, 3]), r"CategoricalEmbedding: columns must be different, got \[0, 0\]"),
    (lambda: CategoricalEmbedding([0], [0]), r"CategoricalEmbedding: categories must be at least 1, got 0"),
    (lambda: CategoricalEmbedding(1, [2]), r"CategoricalEmbedding: columns must be a list of whole numbers, got 1"),  # type: ignore[arg-type]
    (lambda: CategoricalEmbedding(None, [2]), r"CategoricalEmbedding: columns must be a list .*, got None"),  # type: ignore[arg-type]
]
WRONG_NETWORKS: list[tuple[Any, dict[str, Any], str]] = [
    ((4, [Residual([Dense(3)]), Dense(1)]), {}, r"layers: layer 1: Residual: its layers give 3 outputs for 4 inputs"),
    ((4, [Dense(3), NumericalEmbedding(), Dense(1)]), {}, r"layers: layer 2, NumericalEmbedding .*: put it first"),
    ((4, [Residual([NumericalEmbedding(size=1)]), Dense(1)]), {}, r"Residual: NumericalEmbedding .*: put it first"),
    ((4, [Residual([CategoricalEmbedding([0], [2], 1)]), Dense(1)]), {}, r"CategoricalEmbedding .*: put it first"),
    ((4, [CategoricalEmbedding([4], [2]), Dense(1)]), {}, r"layer 1: CategoricalEmbedding: column 4 of 4 features"),
    ((4, [Dense(3), "relu"]), {}, r"layers: layer 2 must be a layer such as dnn.Dense\(64\), got 'relu'"),
    ((4, []), {}, r"layers must be a list of layers"),
    ((4, [Dense(1)]), {"activation": "relu"}, r"activation is for networks given by their sizes"),
    ((4, [Dense(1)]), {"dropout": 0.5}, r"dropout is for networks given by their sizes"),
    ((4, [Shift(), Dense(1)]), {}, r"Shift and Dense both have a parameter 'b1': give Shift a parameter name of its"),
    ((4, [Dense(4), Residual([Shift()])]), {}, r"Shift and Dense both have a parameter 'b1': give Shift"),
    ((4, [Shift("bias", ("mean",)), BatchNorm()]), {}, r"Shift and BatchNorm both have a state 'mean1': give Shift"),
    ((4, [Shift("W"), Scale()]), {}, r"layer 1: Shift: the weight W must be a matrix, got shape \(4,\): name it"),
    (([4, 3, 1],), {"activation": ""}, r"activation must be one of relu, .*, got ''"),
    (([4, 3, 1],), {"loss": "huber"}, r"loss 'huber' is not for output 'sigmoid': choose sigmoid_cross_entropy, focal"),
    (([4, 1],), {"loss": "quantile", "output": "linear"}, r"3 outputs .*, got 1 in all: end with 3 units a target"),
    (([4, 3, 1],), {"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1.0"),
    (([4, 3, 1],), {"dropout": [0.1, 0.2]}, r"dropout must be one for all hidden layers, or 1, one for each; got 2"),
    (([4, 3, 1],), {"norm": "bach"}, r"norm must be one of batch, layer, rms, got 'bach': did you mean batch\?"),
    (([4, 3, 1],), {"members": 0}, r"members must be at least 1, got 0"),
    (([4, 3, 1],), {"members": 1.5}, r"members must be a whole number, got 1.5"),
    (([4, 3, 1],), {"members": 2, "shared": "tabn"}, r"shared must be one of tabm, got 'tabn': did you mean tabm\?"),
    (([4, 3, 1],), {"shared": "tabm"}, r"shared='tabm' is for several members"),
    ((4, [Dense(1), Scale()]), {"members": 2, "shared": "tabm"}, r"shared='tabm' needs a Dense layer at the end"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_layer_that_cannot_be_is_refused_with_what_is_wrong(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(("given", "settings", "message"), WRONG_NETWORKS, ids=[m[:40] for *_, m in WRONG_NETWORKS])
def test_a_network_that_cannot_be_is_refused_with_what_is_wrong(given, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dnn.Network(*given, **settings)


# ------------------------------------------------------------------------------------------- files and copies

ALL_LAYERS: dict[str, list[Layer]] = {
    **NETWORKS,
    "dropout": [Dense(5, "relu"), Dropout(0.3, schedule=dnn.schedules.Cosine()), Dense(2)],
    "alpha dropout": [Dense(5, "selu"), AlphaDropout(0.2), Dense(2)],
    "piecewise linear": [NumericalEmbedding(size=3), Dense(2, initializer=0.5)],
}


def test_every_layer_has_a_network_that_is_saved_here():
    def kinds(layers: Any) -> set[str]:
        return {type(layer).__name__ for layer in layers} | {k for layer in layers for k in kinds(layer.children)}

    assert set().union(*map(kinds, ALL_LAYERS.values())) == set(LAYERS)


@pytest.mark.parametrize("name", ALL_LAYERS)
def test_a_network_from_its_file_answers_and_trains_as_the_one_saved(name, tmp_path):
    use_compiled_steps(False)  # what is saved is the same
    X, Y = examples_of(13)
    network = dnn.Network(4, ALL_LAYERS[name], output="linear", seed=2)
    network.fit(X, Y, epochs=2, batch_size=5)
    network.save(tmp_path / "a.h5")
    loaded = dnn.load(tmp_path / "a.h5")
    assert loaded.layers == network.layers and same_bits(loaded, network)
    assert loaded.predict(X).tobytes() == network.predict(X).tobytes() and loaded.summary() == network.summary()
    # SGD keeps nothing that a file does not have
    for each in (network, loaded):
        each.fit(X, Y, epochs=2, batch_size=5, optimizer=dnn.SGD(0.01))
    assert same_bits(loaded, network) and loaded.steps == network.steps
    copied = copy.deepcopy(network)
    copied.fit(X, Y, epochs=1, batch_size=5, optimizer=dnn.SGD(0.01))
    assert not same_bits(copied, network)


class OwnLoss:
    def losses(self, xp: Any, Z: Any, Y: Any) -> Any:
        return (Z - Y) ** 2

    def gradient(self, xp: Any, Z: Any, Y: Any) -> Any:
        return 2 * (Z - Y)


def test_a_plain_networks_file_is_still_of_version_1_and_others_of_2(tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "own", ACTIVATIONS["tanh"])
    monkeypatch.setitem(LOSSES, "own", OwnLoss())
    made = {
        "plain": (dnn.Network([4, 3, 2], output="linear"), 1),
        "lists": (dnn.Network([4, 3, 3, 2], output="linear", activation=["relu", "tanh"]), 1),
        "layers": (dnn.Network(4, [Dense(3, "relu"), Dense(2)], output="linear"), 2),
        "norm": (dnn.Network([4, 3, 2], output="linear", norm="batch"), 2),
        "dropout": (dnn.Network([4, 3, 2], output="linear", dropout=0.1), 2),
        "members": (dnn.Network([4, 3, 2], output="linear", members=2), 2),
        "old names": (dnn.Network([4, 3, 2], output="linear", activation="gelu", initializer="lecun_uniform"), 1),
        "activation": (dnn.Network([4, 3, 2], output="linear", activation="mish"), 2),
        "activations": (dnn.Network([4, 3, 3, 2], output="linear", activation=["relu", "silu"]), 2),
        "initializer": (dnn.Network([4, 3, 2], output="linear", initializer="orthogonal"), 2),
        "loss": (dnn.Network([4, 3, 2], output="linear", loss="huber"), 2),
        "own names": (dnn.Network([4, 3, 2], output="linear", activation="own", loss="own"), 1),
    }
    for name, (network, version) in made.items():
        network.fit(*examples_of(), epochs=1)
        network.save(tmp_path / f"{name}.h5")
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert file.attrs["format_version"] == version, name


@pytest.mark.parametrize("name", ALL_LAYERS)
def test_a_layers_configuration_makes_it_again(name):
    for layer in ALL_LAYERS[name]:
        assert layer_from_config(layer_config(layer)) == layer


def test_a_layer_of_ones_own_is_trained_and_says_how_it_is_saved(tmp_path):
    class Doubled(Layer):
        def bind(self, at: Any, X: Any) -> Any:
            return at.call(functional.residual_sum, X, X), lambda dY: at.call(functional.residual_sum, dY, dY)

    network = dnn.Network(4, [Doubled(), Dense(2)], output="linear", dtype="float64")
    X, Y = examples_of()
    found = gradients(network, X, Y)
    plain = dnn.Network(4, [Dense(2)], output="linear", dtype="float64")
    close([found.of["W1"]], [gradients(plain, 2 * X, Y).of["W1"]])
    with pytest.raises(ValueError, match=r"decorate Doubled with dnn\.layers\.known_layer"):
        network.save(tmp_path / "a.h5")


@pytest.mark.parametrize("kind", [Dropout, AlphaDropout])
def test_a_rate_that_its_schedule_takes_beyond_1_is_the_largest_below(kind, backend: Backend):
    largest = (2**16 - 1) / 2**16
    for rate in (0.3, 0.99999, 1.0, 1.2, 2.0, 1e9):
        expected = min(round(rate * 2**16) / 2**16, largest)
        assert dropout.drop_rate(np, rate) == expected
        found = on_backend(backend, lambda xp, rate: (dropout.drop_rate(xp, rate),), np.array(rate))
        assert float(found[0]) == expected
    X, Y = examples_of(40)
    network = dnn.Network(
        4, [Dense(6, "tanh"), kind(0.6, dnn.Cosine(end=2.0)), Dense(2)], output="linear", backend=backend.name
    )
    history = network.fit(X, Y, epochs=4, batch_size=10, optimizer=dnn.SGD(1e-3))
    assert np.isfinite(history.history["loss"]).all() and np.isfinite(network.predict(X)).all()


def test_a_schedule_of_ones_own_in_a_layer_says_how_it_is_saved(tmp_path, monkeypatch):
    class Half(dnn.schedules.Schedule):
        def factor(self, xp: Any, epoch: Any, epochs: float) -> Any:
            return epoch * 0 + 0.5

    network = dnn.Network(4, [Dropout(0.4, Half()), Dense(2)], output="linear")
    with pytest.raises(ValueError, match=r"schedules by name: add Half to dnn\.schedules\.SCHEDULES"):
        network.save(tmp_path / "a.h5")
    monkeypatch.setitem(dnn.schedules.SCHEDULES, "half", Half)
    network.save(tmp_path / "a.h5")
    assert type(dnn.load(tmp_path / "a.h5").layers[0].schedule) is Half  # type: ignore[attr-defined]


def test_a_setting_that_no_file_holds_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(LAYERS, "Shift", Shift)
    with pytest.raises(ValueError, match=r"stores layers of numbers and names, got a setting Case\("):
        layer_config(Shift(setting=Case(normal, (), None)))  # type: ignore[arg-type]


def test_a_bias_is_a_truth_of_python_and_saved(tmp_path):
    for given in (np.True_, 1, 2):
        layer = Dense(2, bias=given)  # type: ignore[arg-type]
        assert layer.bias is True
    dnn.Network(4, [layer], output="linear").save(tmp_path / "a.h5")
    assert dnn.load(tmp_path / "a.h5").layers[0] == layer


def test_parameters_are_weights_by_their_name_and_embeddings_are_a_kind(backend: Backend):
    layers: list[Layer] = [CategoricalEmbedding([1, 3], [3, 2], size=2), Dense(6), Shift("Wx"), Dense(3), Dense(2)]
    network = dnn.Network(4, layers, output="linear", backend=backend.name)
    assert list(network.parameters) == ["W1", "W2", "W3", "E1_1", "E1_3", "b1", "Wx1", "b2", "b3"]
    X, Y = examples_of()
    network.fit(X, Y, epochs=1, optimizer=dnn.Muon(1e-3))  # Wx is no matrix
    before = values_of(network)
    network.fit(X, Y, epochs=1, optimizer=dnn.SGD(0.1, factors={"E": 0.0}))
    after = values_of(network)
    assert [name for name in before if (before[name] == after[name]).all()] == ["E1_1", "E1_3"]


def test_a_network_that_has_yet_to_learn_its_bins_says_so(backend: Backend):
    X, Y = examples_of(13)
    network = dnn.Network(4, [NumericalEmbedding(size=3), Dense(1)], backend=backend.name, members=2)
    Y = Y[:, :1] > 0
    for use in (network.predict, network.predict_proba, network.predict_spread, lambda X: network.evaluate(X, Y)):
        with pytest.raises(DataError, match=r"NumericalEmbedding .* from the data of its first fit: fit it first"):
            use(X)
    network.fit(X, Y, epochs=1, validation_data=(X, Y))
    assert network.predict(X).shape == (13,)
    network.epochs = 0  # as a fit that is interrupted in its first epoch leaves it
    assert network.predict(X).shape == (13,)


def test_one_example_of_a_batch_leaves_the_answers_of_batch_norm_as_they_were():
    X, Y = normal(257, 4), normal(257, 2)
    network = dnn.Network(4, [Dense(5), BatchNorm(), Dense(2)], output="linear", seed=2, dtype="float64")
    other = copy.deepcopy(network)
    for each, m in ((network, 257), (other, 256)):  # with the rate 0 only statistics change
        each.fit(X[:m], Y[:m], epochs=3, batch_size=64, shuffle=False, optimizer=dnn.SGD(0.0))
    assert values_of(network)["variance1"].tobytes() == values_of(other)["variance1"].tobytes()


# ------------------------------------------------------------------------------------------------- 16 bits


@covering("name, precision", ALL_LAYERS, ["float16", "bfloat16"])
def test_gradients_in_16_bits_are_near_those_in_32(name, precision):
    X, Y = examples_of()
    if name == "all categories":
        X[:, 0], X[:, 2] = 4, 1
    network = randomized(dnn.Network(4, ALL_LAYERS[name], output="linear", backend="standin", seed=2))
    if network.layer_state:
        network.fit(X, Y, epochs=1, optimizer=dnn.SGD(0.0))
    expected, found = gradients(network, X, Y), gradients(network, X, Y, precision)
    tolerance = 0.02 if precision == "float16" else 0.15
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    largest = max(np.abs(g).max() for g in expected.of.values())
    for parameter, gradient in expected.of.items():
        # a unit beside relu's kink may be on its other side
        assert np.abs(found.of[parameter] - gradient).max() <= 3 * tolerance * largest, parameter


# ---------------------------------------------------------------------------------------------- what members share


def shared_dense(xp: Any, X: Any, dZ: Any, W: Any, R: Any, S: Any, b: Any) -> Any:
    Z, XR, P = ensemble.ensemble_forward(xp, X, W, R, S, b)
    return Z, *ensemble.ensemble_backward(xp, dZ, X, XR, P, W, R, S)


def shared_dense_given(k: int, m: int) -> list[np.ndarray]:
    return [normal(k * m, 4), normal(k * m, 3), normal(3, 4), normal(k, 4), normal(k, 3), normal(k, 3)]


@pytest.mark.parametrize(("k", "m"), [(1, 5), (3, 1), (3, 6)])
def test_the_layer_that_members_share_is_pytorchs_and_the_same_on_every_backend(k, m, backend: Backend):
    given = shared_dense_given(k, m)
    found = on_backend(backend, shared_dense, *given)
    close(found, eagerly(shared_dense, *given))
    torch = torch_or_skip()
    X, dZ, W, R, S, b = (torch.tensor(a, requires_grad=True) for a in given)
    Z = ((X.reshape(k, m, 4) * R[:, None]) @ W.T * S[:, None] + b[:, None]).reshape(k * m, 3)
    (Z * dZ.detach()).sum().backward()
    close(found, [Z.detach(), *(tensor.grad for tensor in (X, W, R, S, b))])


def test_gradients_of_the_layer_that_members_share_are_those_of_finite_differences():
    X, dZ, W, R, S, b = given = shared_dense_given(2, 3)
    Z, *gradients = eagerly(shared_dense, *given)
    close([Z], [np.concatenate([(X[3 * k : 3 * k + 3] * R[k]) @ W.T * S[k] + b[k] for k in range(2)])])
    at = [X, W, R, S, b]
    for place, gradient in enumerate(gradients):

        def total(moved: np.ndarray, place: int = place) -> float:
            inputs = [moved if number == place else array for number, array in enumerate(at)]
            return float((eagerly(shared_dense, inputs[0], dZ, *inputs[1:])[0] * dZ).sum())

        np.testing.assert_allclose(gradient, slopes(at[place], total), atol=1e-8)


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
def test_derived_code_of_the_layer_that_members_share(way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    for k, m in ((3, 1), (2, 7)):
        given = shared_dense_given(k, m)
        close(traced(way, shared_dense, *given), eagerly(shared_dense, *given))
