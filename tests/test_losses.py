"""The losses against saved numbers, PyTorch, finite differences and their limits, on every backend, in plans."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import slopes, torch_or_skip
from sweeps import covering
from traced import KERNELS, WAYS, eagerly, on_backend, traced

from dnn import functional
from dnn.backends import Backend
from dnn.errors import DataError
from dnn.heads import HEADS
from dnn.losses import (
    BUILT_IN,
    LOSSES,
    AbsoluteError,
    Focal,
    GaussianNLL,
    Huber,
    Loss,
    Poisson,
    Quantile,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    checked_loss,
    loss_config,
    loss_from_config,
    outputs_per_target,
    register_loss,
    suits,
)

RNG = np.random.default_rng(7)


def both(loss: Loss) -> Callable[..., Any]:
    """The losses and their gradient, as one function of xp."""

    def function(xp: Any, Z: Any, Y: Any) -> Any:
        return loss.losses(xp, Z, Y), loss.gradient(xp, Z, Y)

    return function


def one_hot(labels: list[int], K: int) -> np.ndarray:
    return np.arange(K) == np.array(labels)[:, None]


# ----------------------------------------------------------------------------------- saved numbers

BINARY = np.array([[-40.0, -3.0, 0.0], [0.5, 3.0, 40.0]]), np.array([[0.0, 1.0, 1.0], [0.25, 1.0, 0.0]])
CLASSES = np.array([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [50.0, -3.0, 1.0]]), one_hot([0, 2, 0], 3)
VALUES = np.array([[-2.0, 0.25], [1.5, 3.0]]), np.array([[-2.0, 1.0], [0.25, 5.0]])
COUNTS = VALUES[0], np.array([[0.0, 1.0], [4.0, 20.0]])
THREE_EACH = (
    np.array([[-1.0, 0.5, 2.0, 0.0, 1.0, 1.0], [3.0, 2.0, 1.0, -4.0, 0.25, 8.0]]),
    np.array([[0.5, 1.0], [2.5, -1.5]]),
)
"""Two of its six times two differences are 0."""
TWO_EACH = np.array([[0.5, -1.0, 2.0, 3.0], [-1.0, -20.0, 0.0, 0.0]]), np.array([[0.25, 1.0], [-1.001, 0.0]])
"""One log-variance is below the smallest."""

EXAMPLES: dict[str, tuple[Loss, tuple[np.ndarray, np.ndarray]]] = {
    "sigmoid_cross_entropy": (SigmoidCrossEntropy(), BINARY),
    "sigmoid smoothed": (SigmoidCrossEntropy(0.1), BINARY),
    "softmax_cross_entropy": (SoftmaxCrossEntropy(), CLASSES),
    "softmax smoothed": (SoftmaxCrossEntropy(0.1), CLASSES),
    "focal": (Focal(), BINARY),
    "focal alpha": (Focal(0.5, 0.25), BINARY),
    "softmax focal": (Focal(), CLASSES),
    "softmax focal half": (Focal(0.5), CLASSES),
    "squared_error": (SquaredError(), VALUES),
    "absolute_error": (AbsoluteError(), VALUES),
    "huber": (Huber(), VALUES),
    "huber 1.5": (Huber(1.5), VALUES),
    "poisson": (Poisson(), COUNTS),
    "quantile": (Quantile(), THREE_EACH),
    "gaussian_nll": (GaussianNLL(), TWO_EACH),
}
SAVED: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "sigmoid_cross_entropy": (
        [
            [4.248354255291589e-18, 3.048587351573742, 0.6931471805599453],
            [0.8490769841801067, 0.04858735157374206, 40.0],
        ],
        [[4.248354255291589e-18, -0.9525741268224333, -0.5], [0.37245933120185454, -0.04742587317756678, 1.0]],
    ),
    "sigmoid smoothed": (
        [[2.0, 2.898587351573742, 0.6931471805599453], [0.8365769841801067, 0.19858735157374208, 38.0]],
        [[-0.049999999999999996, -0.9025741268224332, -0.45], [0.34745933120185457, 0.0025741268224332217, 0.95]],
    ),
    "softmax_cross_entropy": (
        [[1.7413112966571571], [1.0986122886681098], [5.338912463908551e-22]],
        [
            [-0.8247096078599633, 0.03911257327068745, 0.7855970345892759],
            [0.3333333333333333, 0.3333333333333333, -0.6666666666666666],
            [-5.338912463908551e-22, 9.602680054508676e-24, 5.242885663363464e-22],
        ],
    ),
    "softmax smoothed": (
        [[1.7413112966571571], [1.0986122886681098], [3.4000000000000004]],
        [
            [-0.7580429411932966, 0.0057792399373541165, 0.7522637012559426],
            [0.3, 0.3, -0.6],
            [0.06666666666666667, -0.03333333333333333, -0.03333333333333333],
        ],
    ),
    "focal": (
        [
            [7.667648073722e-53, 2.766280441025262, 0.17328679513998632],
            [0.29995207327393325, 0.00010928332449699753, 40.0],
        ],
        [
            [2.3002944221165997e-52, -1.1267498806348883, -0.29828679513998635],
            [0.3601296170682087, -0.0003148718464882813, 1.0000000000000002],
        ],
    ),
    "focal alpha": (
        [
            [6.567383072022391e-27, 0.7438545824125478, 0.1225322679335684],
            [0.4504919697416463, 0.0026452754623489906, 30.0],
        ],
        [
            [9.851074608033585e-27, -0.2500668349613723, -0.11902141463171054],
            [0.3376795619212612, -0.0038419507564253362, 0.7500000000000001],
        ],
    ),
    "softmax focal": (
        [[1.184345803989926], [0.4882721282969376], [1.5218028771361643e-64]],
        [
            [-0.9761317700569744, 0.046293901531315844, 0.9298378685256585],
            [0.31090552424712736, 0.31090552424712736, -0.6218110484942547],
            [-4.565408631408493e-64, 8.211439820725823e-66, 4.483294233201235e-64],
        ],
    ),
    "softmax focal half": (
        [[1.5813461462933287], [0.8970131774626955], [1.233613747141367e-32]],
        [
            [-0.8875452478637044, 0.04209260836453612, 0.8454526394991683],
            [0.34691662509779997, 0.34691662509779997, -0.6938332501955999],
            [-1.8504206207120503e-32, 3.3282053802310723e-34, 1.8171385669097395e-32],
        ],
    ),
    "squared_error": ([[0.0, 0.5625], [1.5625, 4.0]], [[0.0, -1.5], [2.5, -4.0]]),
    "absolute_error": ([[0.0, 0.75], [1.25, 2.0]], [[0.0, -1.0], [1.0, -1.0]]),
    "huber": ([[0.0, 0.28125], [0.75, 1.5]], [[0.0, -0.75], [1.0, -1.0]]),
    "huber 1.5": ([[0.0, 0.28125], [0.78125, 1.875]], [[0.0, -0.75], [1.25, -1.5]]),
    "poisson": (
        [[0.1353352832366127, 1.0340254166877414], [-1.5183109296619353, -39.91446307681233]],
        [[0.1353352832366127, 0.2840254166877415], [0.4816890703380648, 0.08553692318766774]],
    ),
    "quantile": (
        [[0.1, 0.03333333333333333], [0.6833333333333333, 0.6916666666666667]],
        [
            [-0.03333333333333333, 0.0, 0.03333333333333333, -0.03333333333333333, 0.0, 0.0],
            [0.3, -0.16666666666666666, -0.3, -0.03333333333333333, 0.16666666666666666, 0.03333333333333333],
        ],
    ),
    "gaussian_nll": (
        [[-0.41505369286065485, 1.524893534183932], [-6.407755278982247, 0.0]],
        [
            [0.6795704571147613, 0.41505369286065485, 0.049787068367863944, 0.475106465816068],
            [999.9999999998898, 0.0, 0.0, 0.5],
        ],
    ),
}
"""The losses and the gradient: the equations in 60 digits, where they are smooth differentiated numerically."""
CANCELS = {"gaussian_nll": 2e-4, "sigmoid smoothed": 3e-5}
"""How exact float32 can be: of 1.001 − 1, and of 0.9526 − 0.95."""


def test_every_registered_loss_has_saved_numbers():
    assert set(BUILT_IN) <= set(LOSSES) and set(BUILT_IN) <= set(SAVED) and set(SAVED) == set(EXAMPLES)
    for name, kind in BUILT_IN.items():
        assert LOSSES[name] == kind() == EXAMPLES[name][0]


@covering("name, dtype, backend", SAVED, [np.float32, np.float64], BACKENDS, times=2, indirect=["backend"])
def test_losses_and_gradient_are_the_saved_numbers(name, dtype, backend: Backend):
    loss, (Z, Y) = EXAMPLES[name]
    Z, Y = Z.astype(dtype), Y if Y.dtype == bool else Y.astype(dtype)
    losses, gradient = on_backend(backend, both(loss), Z, Y)
    assert losses.dtype == gradient.dtype == dtype
    relative, beneath = 1e-12, 0.0
    if dtype == np.float32:  # what is below its smallest number may count as 0
        relative, beneath = CANCELS.get(name, 3e-6), 1e-37
    for found, expected in zip((losses, gradient), SAVED[name], strict=True):
        assert found.shape == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=relative, atol=beneath)


@covering("name, way", SAVED, [*WAYS[1:], *KERNELS], times=2)
def test_compiled_losses_and_gradient_are_the_saved_numbers(name, way):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    loss, (Z, Y) = EXAMPLES[name]
    for found, expected in zip(traced(way, both(loss), Z, Y), SAVED[name], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


# ---------------------------------------------------------------------------------------- PyTorch


@dataclass
class Case:
    """A loss, its Z and Y, and the same losses by PyTorch's functional F."""

    loss: Loss
    Z: np.ndarray
    Y: np.ndarray
    torchs: Callable[..., Any]


def cross_entropy(label_smoothing: float = 0.0) -> Callable[..., Any]:
    def torchs(F: Any, Z: Any, Y: Any) -> Any:
        Y = Y.to(Z.dtype).argmax(1) if not Y.is_floating_point() else Y
        return F.cross_entropy(Z, Y, reduction="none", label_smoothing=label_smoothing)[:, None]

    return torchs


def binary(label_smoothing: float = 0.0) -> Callable[..., Any]:
    def torchs(F: Any, Z: Any, Y: Any) -> Any:
        Y = Y * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(Z, Y, reduction="none")

    return torchs


def binary_focal(gamma: float, alpha: float | None = None) -> Callable[..., Any]:
    """torchvision's sigmoid_focal_loss, written out; for a Y of 0 and 1."""

    def torchs(F: Any, Z: Any, Y: Any) -> Any:
        log_p = F.logsigmoid((2 * Y - 1) * Z)
        weight = 1 if alpha is None else alpha * Y + (1 - alpha) * (1 - Y)
        return -weight * F.sigmoid((1 - 2 * Y) * Z) ** gamma * log_p

    return torchs


def class_focal(gamma: float) -> Callable[..., Any]:
    def torchs(F: Any, Z: Any, Y: Any) -> Any:
        log_p = (F.log_softmax(Z, 1) * Y).sum(1, keepdim=True)
        wrong = (F.softmax(Z, 1) * ~Y).sum(1, keepdim=True)
        return -(wrong**gamma) * log_p

    return torchs


def pinball(quantiles: tuple[float, ...]) -> Callable[..., Any]:
    def torchs(F: Any, Z: Any, Y: Any) -> Any:
        Q = len(quantiles)
        parts = [(tau, Y - Z[:, place::Q]) for place, tau in enumerate(quantiles)]
        return sum(F.relu(d) * tau + F.relu(-d) * (1 - tau) for tau, d in parts) / Q

    return torchs


def gaussian(F: Any, Z: Any, Y: Any) -> Any:
    return F.gaussian_nll_loss(Z[:, 0::2], Y, Z[:, 1::2].exp(), reduction="none")


def normal(*shape: int, scale: float = 2.0) -> np.ndarray:
    return scale * RNG.standard_normal(shape)


TIED = np.round(normal(6, 3) * 2) / 2
SOFT = RNG.dirichlet(np.ones(4), 6)
LABELS_01 = RNG.integers(0, 2, (6, 3)).astype(float)
FIVE = 0.05, 0.25, 0.5, 0.75, 0.99
TORCH_CASES = {
    "binary": Case(SigmoidCrossEntropy(), normal(6, 1), LABELS_01[:, :1].copy(), binary()),
    "binary, soft": Case(SigmoidCrossEntropy(), normal(6, 3), RNG.random((6, 3)), binary()),
    "binary, smoothed": Case(SigmoidCrossEntropy(0.2), normal(6, 3), LABELS_01, binary(0.2)),
    "binary, smoothed, large": Case(SigmoidCrossEntropy(0.2), normal(6, 3, scale=300.0), LABELS_01, binary(0.2)),
    "classes": Case(SoftmaxCrossEntropy(), normal(6, 4), one_hot([0, 1, 2, 3, 0, 1], 4), cross_entropy()),
    "classes, smoothed": Case(
        SoftmaxCrossEntropy(0.1), normal(6, 4), one_hot([0, 1, 2, 3, 0, 1], 4), cross_entropy(0.1)
    ),
    "classes, smoothed, large": Case(
        SoftmaxCrossEntropy(0.3), normal(6, 4, scale=300.0), one_hot([0, 1, 2, 3, 0, 1], 4), cross_entropy(0.3)
    ),
    "classes, smoothed, tied": Case(SoftmaxCrossEntropy(0.3), TIED, one_hot([0, 1, 2, 2, 1, 0], 3), cross_entropy(0.3)),
    "two classes, one example": Case(SoftmaxCrossEntropy(0.1), normal(1, 2), one_hot([1], 2), cross_entropy(0.1)),
    "one class": Case(SoftmaxCrossEntropy(0.1), normal(3, 1), one_hot([0, 0, 0], 1), cross_entropy(0.1)),
    "probabilities": Case(SoftmaxCrossEntropy(), normal(6, 4), SOFT, cross_entropy()),
    "probabilities, smoothed": Case(SoftmaxCrossEntropy(0.1), normal(6, 4), SOFT, cross_entropy(0.1)),
    "focal": Case(Focal(), normal(6, 3), LABELS_01, binary_focal(2.0)),
    "focal, alpha": Case(Focal(1.5, 0.25), normal(6, 3), LABELS_01, binary_focal(1.5, 0.25)),
    "focal, below 1": Case(Focal(0.3), normal(6, 3, scale=20.0), LABELS_01, binary_focal(0.3)),
    "focal of classes": Case(Focal(), normal(6, 4), one_hot([0, 1, 2, 3, 0, 1], 4), class_focal(2.0)),
    "focal of two classes": Case(Focal(0.5), normal(6, 2), one_hot([0, 1, 1, 1, 0, 1], 2), class_focal(0.5)),
    "squares": Case(SquaredError(), normal(6, 3), normal(6, 3), lambda F, Z, Y: (Z - Y) ** 2),
    "absolute, tied": Case(AbsoluteError(), TIED, np.round(TIED), lambda F, Z, Y: F.l1_loss(Z, Y, reduction="none")),
    "huber": Case(Huber(), normal(6, 3), normal(6, 3), lambda F, Z, Y: F.huber_loss(Z, Y, reduction="none")),
    "huber, at its corner": Case(
        Huber(0.5), TIED, np.round(TIED), lambda F, Z, Y: F.huber_loss(Z, Y, reduction="none", delta=0.5)
    ),
    "huber, large": Case(
        Huber(3.0), normal(6, 3, scale=1e9), TIED, lambda F, Z, Y: F.huber_loss(Z, Y, reduction="none", delta=3.0)
    ),
    "poisson": Case(
        Poisson(),
        normal(6, 3),
        RNG.poisson(3.0, (6, 3)).astype(float),
        lambda F, Z, Y: F.poisson_nll_loss(Z, Y, log_input=True, full=False, reduction="none"),
    ),
    "quantiles": Case(Quantile(), normal(6, 9), normal(6, 3), pinball((0.1, 0.5, 0.9))),
    "five quantiles": Case(Quantile(FIVE), normal(4, 10), normal(4, 2), pinball(FIVE)),
    "one quantile": Case(Quantile((0.8,)), normal(6, 2), normal(6, 2), pinball((0.8,))),
    "gaussian": Case(GaussianNLL(), normal(6, 6), normal(6, 3), gaussian),
    "gaussian, one example": Case(GaussianNLL(), normal(1, 2), normal(1, 1), gaussian),
}


@pytest.mark.parametrize("case", TORCH_CASES)
def test_losses_and_gradients_are_pytorchs(case, backend: Backend):
    torch = torch_or_skip()
    test = TORCH_CASES[case]
    Z = torch.tensor(test.Z, requires_grad=True)
    expected = test.torchs(torch.nn.functional, Z, torch.tensor(test.Y))
    expected.sum().backward()
    losses, gradient = on_backend(backend, both(test.loss), test.Z, test.Y)
    # PyTorch subtracts where a confident answer's loss is next to nothing
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient, Z.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", [name for name in TORCH_CASES if not name.endswith(("tied", "corner", "large"))])
def test_gradients_are_those_of_finite_differences(case, backend: Backend):
    test = TORCH_CASES[case]
    gradient = on_backend(backend, both(test.loss), test.Z, test.Y)[1]
    expected = slopes(test.Z, lambda Z: float(eagerly(test.loss.losses, Z, test.Y)[0].sum()))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


# ----------------------------------------------------------------------------------------- limits


def extreme(dtype: Any, largest: float | None = None) -> np.ndarray:
    """Logits (m, 2): every pair of some that are small, large, and as large as they come."""
    most = float(np.finfo(dtype).max) / 4
    ends = [most, 4 * most] if largest is None else [largest]
    numbers = [0.0, *(sign * z for z in (1e-30, 0.5, 100.0, 1e4, *ends) for sign in (1, -1))]
    return np.array([[a, b] for a in numbers for b in numbers], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "loss",
    [
        SigmoidCrossEntropy(0.1),
        SoftmaxCrossEntropy(0.1),
        *(Focal(gamma) for gamma in (0.0, 0.01, 0.5, 1.0, 2.0, 5.0, 100.0)),
        Focal(0.5, 0.25),
        AbsoluteError(),
        Huber(),
        Huber(1e-3),
        Quantile((0.25, 0.75)),
    ],
    ids=str,
)
def test_losses_and_gradients_are_finite_for_every_logit(loss, dtype, backend: Backend):
    Z = extreme(dtype)
    targets: list[np.ndarray] = []
    if suits(loss, "softmax"):
        targets += [one_hot([label] * len(Z), 2) for label in (0, 1)]
    if not suits(loss, "softmax") or suits(loss, "sigmoid"):
        K = 2 // outputs_per_target(loss)
        targets += [np.full((len(Z), K), y, dtype) for y in (0.0, 1.0, 0.3)]
    Z, Y = np.concatenate([Z] * len(targets)), np.concatenate(targets)
    losses, gradient = on_backend(backend, both(loss), Z, Y)
    assert losses.dtype == gradient.dtype == dtype and gradient.shape == Z.shape
    assert np.isfinite(losses).all() and (losses >= 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_that_can_overflow_are_finite_where_a_number_of_the_dtype_is(dtype, backend: Backend):
    most = float(np.finfo(dtype).max) / 4
    rate = 88.0 if dtype == np.float32 else 709.0
    Z = np.array([[-most, -1e4], [0.0, rate]], dtype)
    for y in (0.0, 1.0, 3.0):
        for result in on_backend(backend, both(Poisson()), Z, np.full((2, 2), y, dtype)):
            assert np.isfinite(result).all()
    Z = extreme(dtype, 1e15)
    for result in on_backend(backend, both(SquaredError()), Z, np.ones_like(Z)):
        assert np.isfinite(result).all()
    # the mean at up to 1e4, its log-variance anywhere
    Z = np.array(
        [[mean, s] for mean in (0.0, 1e4, -1e4) for s in (0, 1e4, -1e4, most, -most, 4 * most, -4 * most)], dtype
    )
    for result in on_backend(backend, both(GaussianNLL()), Z, np.ones((len(Z), 1), dtype)):
        assert np.isfinite(result).all()
    (answer,) = on_backend(backend, GaussianNLL().answer, Z)
    assert np.isfinite(answer).all() and (answer[:, 1] > 0).all()


@covering(
    "gamma, dtype, backend",
    [0.0, 0.5, 1.0, 2.0, 3.5],
    [np.float32, np.float64],
    BACKENDS,
    times=2,
    indirect=["backend"],
)
def test_focal_of_a_confident_answer_is_exact(gamma, dtype, backend: Backend):
    """By the equation in more digits than the dtype has; the sigmoid's, and the softmax's of the logits (z, 0)."""
    z = np.array([-30.0, -12.0, -3.0, -0.1, 0.0, 0.1, 3.0, 12.0, 30.0])
    exact = z.astype(np.longdouble)
    right, wrong, cost = 1 / (1 + np.exp(-exact)), 1 / (1 + np.exp(exact)), np.log1p(np.exp(-exact))
    expected = wrong**gamma * cost
    slope = -(wrong**gamma) * (wrong + gamma * right * cost)
    tolerance = 100 * float(np.finfo(dtype).eps)
    Z = z.astype(dtype)[:, None]
    losses, gradient = on_backend(backend, both(Focal(gamma)), Z, np.ones_like(Z))
    np.testing.assert_allclose(losses[:, 0], expected, rtol=tolerance, atol=float(np.finfo(dtype).tiny))
    np.testing.assert_allclose(gradient[:, 0], slope, rtol=tolerance, atol=float(np.finfo(dtype).tiny))
    Z = np.concatenate([Z, 0 * Z], axis=1)
    losses, gradient = on_backend(backend, both(Focal(gamma)), Z, one_hot([0] * len(Z), 2))
    np.testing.assert_allclose(losses[:, 0], expected, rtol=tolerance, atol=float(np.finfo(dtype).tiny))
    for column, sign in enumerate((1, -1)):
        np.testing.assert_allclose(gradient[:, column], sign * slope, rtol=tolerance, atol=float(np.finfo(dtype).tiny))


def test_focal_without_focus_is_the_cross_entropy(backend: Backend):
    Z = np.concatenate([normal(20, 3), normal(20, 3, scale=30.0)])
    for plain, Y in (
        (SigmoidCrossEntropy(), RNG.random(Z.shape)),
        (SigmoidCrossEntropy(), (Z > 1).astype(float)),
        (SoftmaxCrossEntropy(), one_hot([place % 3 for place in range(40)], 3)),
    ):
        results = on_backend(backend, both(Focal(gamma=0.0)), Z, Y), on_backend(backend, both(plain), Z, Y)
        for found, expected in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_focal_with_a_half_on_each_class_is_half_of_it(backend: Backend):
    Z, Y = normal(8, 2), np.ascontiguousarray(LABELS_01[:1].repeat(8, axis=0)[:, :2])
    for found, whole in zip(
        on_backend(backend, both(Focal(alpha=0.5)), Z, Y), on_backend(backend, both(Focal()), Z, Y), strict=True
    ):
        np.testing.assert_array_equal(found, whole / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_smoothing_changes_no_bit(dtype, backend: Backend):
    Z = np.concatenate([normal(20, 4), normal(20, 4, scale=40.0)]).astype(dtype)
    labels, classes = (Z > 0.5).astype(dtype), one_hot([place % 4 for place in range(40)], 4)

    # as they were before there was smoothing
    def binary(xp, Z, Y):
        E = xp.exp(-xp.absolute(Z))
        P, above = E / (1 + E), (Z > 0).astype(Z.dtype) - Y
        return xp.log1p(E) + Z * above, above + xp.where(Z > 0, -P, P)

    def classwise(xp, Z, Y):
        D = Z - xp.max(Z, axis=1, keepdims=True)
        E = xp.exp(D)
        at_label = xp.sum(xp.where(Y, D, 0), axis=1, keepdims=True)
        others = xp.sum(xp.where(Y, 0, E), axis=1, keepdims=True)
        total = xp.sum(E, axis=1, keepdims=True)
        return xp.log1p(others + xp.expm1(at_label)) - at_label, xp.where(Y, -others / total, E / total)

    for loss, plain, Y in (
        (SigmoidCrossEntropy(label_smoothing=0.0), binary, labels),
        (SoftmaxCrossEntropy(label_smoothing=0.0), classwise, classes),
    ):
        for found, expected in zip(
            on_backend(backend, both(loss), Z, Y), on_backend(backend, plain, Z, Y), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_that_are_one_hot_cost_what_classes_do(dtype, backend: Backend):
    Z, Y = normal(30, 4, scale=20.0).astype(dtype), one_hot([place % 4 for place in range(30)], 4)
    loss = both(SoftmaxCrossEntropy())
    eps, tiny = (float(getattr(np.finfo(dtype), name)) for name in ("eps", "tiny"))
    for found, expected in zip(
        on_backend(backend, loss, Z, Y.astype(dtype)), on_backend(backend, loss, Z, Y), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=20 * eps, atol=tiny)


def test_a_probability_that_is_nearly_1_is_answered_exactly(backend: Backend):
    """1 + 1e-9 is 1 in float32: the difference of target and answer is that of what is beside the 1."""
    Z, Y = np.array([[0.0, -30.0], [0.0, -20.0]], np.float32), np.array([[1.0, 1e-9]] * 2, np.float32)
    (gradient,) = on_backend(backend, functional.softmax_cross_entropy_backward, Z, Y)
    expected = 1e-9 - np.exp(Z[:, 1].astype(np.float64))
    np.testing.assert_allclose(gradient, np.stack([expected, -expected], axis=1), rtol=1e-6)


# ------------------------------------------------------------------------- what the least loss is


def best_constant(loss: Loss, Y: np.ndarray, candidates: np.ndarray) -> float:
    """That of these numbers which costs least as the answer to all of Y."""
    return float(min(candidates, key=lambda z: loss.losses(np, np.full((len(Y), 1), z), Y).sum()))


def test_a_constant_costs_least_at_the_empirical_quantile():
    Y = RNG.gamma(2.0, size=(101, 1))
    ordered = np.sort(Y[:, 0])
    for tau in (0.1, 0.5, 0.9, 0.95):
        found = best_constant(Quantile((tau,)), Y, ordered)
        assert found == np.quantile(Y, tau, method="inverted_cdf")
        below, above = (
            Quantile((tau,)).gradient(np, np.full((101, 1), found + step), Y).sum() for step in (-1e-9, 1e-9)
        )
        assert below < 0 < above
    assert best_constant(AbsoluteError(), Y, ordered) == np.median(Y)


def test_several_quantiles_are_each_their_own_and_units_belong_to_their_target(backend: Backend):
    Z, Y = normal(5, 6), normal(5, 2)
    losses, gradient = on_backend(backend, both(Quantile((0.1, 0.5, 0.9))), Z, Y)
    alone = [
        [both(Quantile((tau,)))(np, Z[:, [3 * k + q]], Y[:, [k]]) for q, tau in enumerate((0.1, 0.5, 0.9))]
        for k in range(2)
    ]
    for k in range(2):
        np.testing.assert_allclose(losses[:, [k]], sum(part[0] for part in alone[k]) / 3, rtol=1e-14)
        for q in range(3):
            np.testing.assert_allclose(gradient[:, [3 * k + q]], alone[k][q][1] / 3, rtol=1e-14)


def test_a_constant_gaussian_costs_least_at_mean_and_variance():
    Y = normal(50, 1) + 3
    Z = np.tile([Y.mean(), np.log(Y.var())], (50, 1))
    np.testing.assert_allclose(GaussianNLL().gradient(np, Z, Y).sum(axis=0), 0, atol=1e-12)


def test_a_gaussians_variance_is_bounded_below_and_a_large_one_leads_back(backend: Backend):
    loss, Y = GaussianNLL(eps=1e-4), np.array([[0.5]] * 5)
    s = np.array([-1e3, math.log(1e-4) - 1e-6, math.log(1e-4) + 1e-6, 50.0, 1e3])
    losses, gradient = on_backend(backend, both(loss), np.stack([np.full(5, 0.51), s], axis=1), Y)
    assert losses[0] == losses[1] == pytest.approx(0.5 * (math.log(1e-4) + 1e-4 / 1e-4))
    np.testing.assert_array_equal(gradient[:2, 1], 0)
    np.testing.assert_allclose(gradient[2:, 1], [0.5 * 1e-6, 0.5, 0.5], rtol=1e-3)
    np.testing.assert_allclose(gradient[:2, 0], 0.01 / 1e-4)


def test_a_constant_rate_costs_least_at_the_mean():
    Y = RNG.poisson(4.0, (60, 1)).astype(float)
    assert Poisson().gradient(np, np.full((60, 1), np.log(Y.mean())), Y).sum() == pytest.approx(0, abs=1e-12)


# -------------------------------------------------------------------- what a loss says of itself


def test_what_the_outputs_mean(backend: Backend):
    Z = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, -30.0, -4.0, 100.0]])
    (rates,) = on_backend(backend, Poisson().answer, Z)
    np.testing.assert_allclose(rates, np.exp(Z), rtol=1e-14)
    (P,) = on_backend(backend, GaussianNLL().answer, Z)
    expected = [[0.5, math.exp(-1), 2.0, 1.0], [3.0, 1e-6, -4.0, math.exp(80)]]
    np.testing.assert_allclose(P, expected, rtol=1e-12)
    (means,) = on_backend(backend, GaussianNLL().point, P)
    np.testing.assert_array_equal(means, Z[:, ::2])
    for quantiles, place in (((0.25, 0.75), 0), ((0.3, 0.6), 1), ((0.9, 0.95), 0)):
        (medians,) = on_backend(backend, Quantile(quantiles).point, Z)
        np.testing.assert_array_equal(medians, Z[:, place::2])
    (medians,) = on_backend(backend, Quantile((0.1, 0.2, 0.5, 0.9)).point, Z)
    np.testing.assert_array_equal(medians, Z[:, 2:3])


class Own:
    def losses(self, xp, Z, Y):
        return Z - Y

    def gradient(self, xp, Z, Y):
        return xp.ones_like(Z)


def test_the_units_of_a_target_and_the_output_layers_that_suit():
    assert {name: outputs_per_target(loss) for name, loss in LOSSES.items() if outputs_per_target(loss) > 1} == {
        "quantile": 3,
        "gaussian_nll": 2,
    }
    assert outputs_per_target(Quantile((0.5,))) == outputs_per_target(Own()) == 1
    assert all(suits(Own(), output) for output in HEADS)
    for name, loss in LOSSES.items():
        found = [output for output in HEADS if suits(loss, output)]
        expected = {"sigmoid_cross_entropy": ["sigmoid"], "softmax_cross_entropy": ["softmax"]}
        assert found == (["sigmoid", "softmax"] if name == "focal" else expected.get(name, ["linear"]))
    assert not suits(Focal(alpha=0.25), "softmax") and suits(Focal(alpha=0.25), "sigmoid")
    with pytest.raises(ValueError, match="Focal: alpha weights the two classes of a sigmoid output"):
        Focal(alpha=0.25).losses(np, *CLASSES)

    for wrong, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        mine = Own()
        mine.outputs_per_target = wrong  # type: ignore[attr-defined]
        with pytest.raises(error, match="Own: outputs_per_target must be"):
            outputs_per_target(mine)


def test_counts_are_not_negative():
    Poisson().check_targets(np.array([[0.0, 2.5]]))
    with pytest.raises(DataError, match=r"Poisson: expected targets of at least 0, got -1\.5"):
        Poisson().check_targets(np.array([[0.0, 2.0], [-1.5, -3.0]]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Huber(0), ValueError, r"^Huber: delta must be above 0, got 0\.0$"),
        (lambda: Huber(-1.0), ValueError, "Huber: delta must be above 0"),
        (lambda: Huber(math.inf), ValueError, "Huber: delta must be finite, got inf"),
        (lambda: Huber("1"), TypeError, "Huber: delta must be a number, got '1'"),
        (lambda: Huber(True), TypeError, "Huber: delta must be a number"),
        (
            lambda: SigmoidCrossEntropy(1.0),
            ValueError,
            "SigmoidCrossEntropy: label_smoothing must be at least 0 and be",
        ),
        (lambda: SoftmaxCrossEntropy(-0.1), ValueError, r"SoftmaxCrossEntropy: label_smoothing must be .*got -0\.1"),
        (lambda: SoftmaxCrossEntropy(math.nan), ValueError, "label_smoothing must be finite, got nan"),
        (lambda: Focal(-1), ValueError, r"Focal: gamma must be at least 0, got -1\.0"),
        (lambda: Focal(alpha=1.5), ValueError, r"Focal: alpha must be None or from 0 to 1, got 1\.5"),
        (lambda: Focal(gamma=None), TypeError, "Focal: gamma must be a number, got None"),
        (lambda: GaussianNLL(0), ValueError, "GaussianNLL: eps must be from 1e-30 to 1"),
        (lambda: Quantile(()), ValueError, "Quantile: quantiles must be at least one number"),
        (lambda: Quantile((0.5, 0.1)), ValueError, r"increasing, got \(0\.5, 0\.1\)"),
        (lambda: Quantile((0.5, 0.5)), ValueError, "increasing"),
        (lambda: Quantile((0.0, 0.5)), ValueError, "above 0"),
        (lambda: Quantile((0.5, 1.0)), ValueError, "below 1"),
        (lambda: Quantile((0.5, math.nan)), ValueError, "Quantile: quantiles"),
        (lambda: Quantile(0.5), TypeError, r"Quantile: quantiles must be a sequence of numbers, got 0\.5"),
        (lambda: Quantile("0.5"), TypeError, "sequence of numbers"),
        (lambda: Quantile(("0.5",)), TypeError, "Quantile: quantiles: each must be a number, got '0.5'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_settings_are_pythons_numbers(backend: Backend):
    """A float64 scalar of NumPy would make a float32 loss float64."""
    Z, Y = VALUES[0].astype(np.float32), VALUES[1].astype(np.float32)
    for loss in (Huber(np.float64(1.5)), Focal(np.float32(2), np.float64(0.25)), Quantile(np.array([0.25, 0.75]))):
        targets = np.ascontiguousarray(Y[:, : 2 // outputs_per_target(loss)])
        assert {result.dtype for result in on_backend(backend, both(loss), Z, targets)} == {np.dtype(np.float32)}
        assert loss_from_config(json.loads(json.dumps(loss_config(loss)))) == loss
    assert Quantile([0.25, 0.75]) == Quantile((0.25, 0.75)) and hash(Quantile([0.5])) == hash(Quantile((0.5,)))


# -------------------------------------------------------------------------------- names and files


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """LOSSES, put back after the test."""
    before = dict(LOSSES)
    yield LOSSES
    LOSSES.clear()
    LOSSES.update(before)


OTHERS = {
    "huber": (Huber(1.5), {"delta": 1.5}),
    "quantile": (Quantile((0.25, 0.75)), {"quantiles": [0.25, 0.75]}),
    "focal": (Focal(1.0, 0.25), {"gamma": 1.0, "alpha": 0.25}),
    "gaussian_nll": (GaussianNLL(1e-3), {"eps": 1e-3}),
    "sigmoid_cross_entropy": (SigmoidCrossEntropy(0.1), {"label_smoothing": 0.1}),
    "softmax_cross_entropy": (SoftmaxCrossEntropy(0.1), {"label_smoothing": 0.1}),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_loss_comes_back_from_a_model_file(name):
    def round_trip(loss: Loss) -> Loss:
        return loss_from_config(json.loads(json.dumps(loss_config(loss))))

    assert loss_config(name) == loss_config(LOSSES[name]) == loss_config(BUILT_IN[name]()) == name
    assert round_trip(BUILT_IN[name]()) is LOSSES[name]
    if name in OTHERS:
        loss, settings = OTHERS[name]
        assert loss_config(loss) == {"name": name} | settings
        assert round_trip(loss) == loss and type(round_trip(loss)) is BUILT_IN[name]


def test_every_loss_with_settings_comes_back_with_others():
    assert set(OTHERS) == {name for name, kind in BUILT_IN.items() if kind.__dataclass_fields__}


def test_a_registered_loss_is_stored_by_its_name(registry):
    own = Own()
    with pytest.raises(ValueError, match=r"register it with dnn\.register_loss before saving"):
        loss_config(own)
    register_loss("mine", own)
    register_loss("huber_2", Huber(2.0))
    assert loss_config(own) == "mine" and loss_from_config("mine") is own
    assert loss_config(Huber(2.0)) == "huber_2" and loss_config(Huber(3.0)) == {"name": "huber", "delta": 3.0}
    register_loss("huber", own)  # a name that another has taken does not say which settings
    assert loss_config(Huber()) == {"name": "huber", "delta": 1.0}
    assert loss_from_config({"name": "huber", "delta": 1.0}) == Huber()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("hubber", ValueError, r"loss must be one of .*; got 'hubber': did you mean 'huber'\?"),
        ("nothing_like_it", ValueError, r"got 'nothing_like_it'$"),
        ({"name": "hubber", "delta": 1.0}, ValueError, r"got 'hubber': did you mean 'huber'\?"),
        ({"delta": 1.0}, ValueError, "got None"),
        ({"name": ["huber"]}, ValueError, r"got \['huber'\]"),
        ({"name": "huber", "dleta": 1.0}, ValueError, "loss huber has the settings delta; got 'dleta'"),
        ({"name": "poisson", "delta": 1.0}, ValueError, "loss poisson has the settings none; got 'delta'"),
        ({"name": "huber", "delta": "1"}, TypeError, "Huber: delta must be a number"),
        ({"name": "huber", "delta": -1}, ValueError, "Huber: delta must be above 0"),
        ({"name": "quantile", "quantiles": None}, TypeError, "Quantile: quantiles must be a sequence"),
        (None, TypeError, "got None"),
        (3, TypeError, "got 3"),
        (["huber"], TypeError, r"got \['huber'\]"),
    ],
)
def test_a_malformed_loss_of_a_model_file_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        loss_from_config(config)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"got 'absolute_eror': did you mean 'absolute_error'\?"):
        checked_loss("absolute_eror")
    with pytest.raises(ValueError, match="did you mean 'poisson'"):
        loss_config("poison")


# ------------------------------------------------------------------- with the output layers' own


def loss_and_gradient(name: str):
    head = HEADS[name]

    def function(xp, Z, targets):
        Y = head.targets(xp, targets, Z.shape[1])
        losses = head.loss.losses(xp, Z, Y)
        gradient = head.loss.gradient(xp, Z, Y) * (1 / losses.size)
        P = head.activation(xp, Z)
        return functional.mean_loss(xp, losses), gradient, P, head.metric.measure(xp, P, targets), losses

    return function


CASES = {
    "one sigmoid": ("sigmoid", RNG.standard_normal((6, 1)), RNG.integers(0, 2, (6, 1)).astype(float)),
    "soft labels": ("sigmoid", RNG.standard_normal((6, 1)), RNG.random((6, 1))),
    "several sigmoids": ("sigmoid", RNG.standard_normal((6, 3)), RNG.integers(0, 2, (6, 3)).astype(float)),
    "softmax": ("softmax", RNG.standard_normal((6, 4)), RNG.integers(0, 4, (6, 1))),
    "softmax of two": ("softmax", RNG.standard_normal((5, 2)), RNG.integers(0, 2, (5, 1))),
    "linear": ("linear", RNG.standard_normal((6, 1)), RNG.standard_normal((6, 1))),
    "several linears": ("linear", RNG.standard_normal((6, 3)), RNG.standard_normal((6, 3))),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_loss_is_that_of_finite_differences(case, backend: Backend):
    name, Z, targets = CASES[case]
    function = loss_and_gradient(name)
    _, gradient, *_ = on_backend(backend, function, Z, targets)
    slope = np.empty_like(Z)
    for place in np.ndindex(Z.shape):
        above, below = Z.copy(), Z.copy()
        above[place] += 1e-6
        below[place] -= 1e-6
        slope[place] = (eagerly(function, above, targets)[0] - eagerly(function, below, targets)[0]) / 2e-6
    np.testing.assert_allclose(gradient, slope, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_pytorchs(case, backend: Backend):
    torch = pytest.importorskip("torch")
    name, Z, targets = CASES[case]
    logits = torch.tensor(Z, requires_grad=True)
    if name == "softmax":
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets[:, 0]))
    elif name == "sigmoid":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(targets))
    else:
        loss = torch.nn.functional.mse_loss(logits, torch.tensor(targets))
    loss.backward()
    mean, gradient, *_ = on_backend(backend, loss_and_gradient(name), Z, targets)
    assert float(mean) == pytest.approx(loss.item(), abs=1e-14)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_loss_and_gradient_are_finite_for_every_finite_logit(name, dtype, data):
    bits = np.dtype(dtype).itemsize * 8
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=bits)
    K = data.draw(st.integers(1 if name == "sigmoid" else 2, 3))
    Z = np.array(data.draw(st.lists(st.lists(numbers, min_size=K, max_size=K), min_size=1, max_size=6)), dtype)
    if name == "sigmoid":
        targets = np.array([[data.draw(st.integers(0, 1)) for _ in range(K)] for _ in Z], dtype)
    else:
        targets = np.array([[data.draw(st.integers(0, K - 1))] for _ in Z])
    mean, gradient, P, _, _ = eagerly(loss_and_gradient(name), Z, targets)
    assert np.isfinite(mean) and mean >= 0
    assert np.isfinite(gradient).all() and np.isfinite(P).all()
    assert gradient.dtype == P.dtype == dtype
    if name == "softmax":
        np.testing.assert_allclose(P.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("z", [12.0, 15.0, 30.0, 60.0])
def test_a_confident_answer_costs_the_same_on_both_sides_in_float32(z, backend: Backend):
    Z, Y = np.array([[z], [-z]], np.float32), np.array([[1.0], [0.0]], np.float32)
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    np.testing.assert_allclose(losses[:, 0], np.log1p(np.exp(-z)), rtol=1e-6)


LOGITS = np.concatenate([sign * np.logspace(-6, 1.9, 60) for sign in (1, -1)])
LABELS = [0.0, 1.0, 0.5, 0.3, 1e-6, 0.999, 1 - 2**-20]


def ulps(found: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(found - exact) / np.maximum(np.abs(exact), np.finfo(found.dtype).tiny)).max()) / float(
        np.finfo(found.dtype).eps
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("y", LABELS)
def test_the_sigmoids_loss_and_gradient_are_exact_to_a_few_ulp(y, dtype, backend: Backend):
    Z = LOGITS.astype(dtype)[:, None]
    Y = np.full_like(Z, y)
    z, y = Z.astype(np.longdouble), Y.astype(np.longdouble)
    E = np.exp(-np.abs(z))
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    assert ulps(losses, np.log1p(E) + np.where(z > 0, z * (1 - y), -y * z)) < 3
    (gradient,) = on_backend(backend, functional.sigmoid_cross_entropy_backward, Z, Y)
    exact = np.where(z > 0, (1 - y) - E / (1 + E), E / (1 + E) - y)
    # near its zero a difference is exact beside what it is the difference of
    assert ulps(gradient, exact) < 4 or np.abs(gradient - exact).max() < 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("K", [2, 5])
def test_softmaxs_loss_and_gradient_are_exact_to_a_few_ulp(K, dtype, backend: Backend):
    Z = np.round(np.concatenate([RNG.standard_normal((40, K)) * scale for scale in (0.01, 1, 5, 20)]) * 64) / 64
    labels = np.where(np.arange(len(Z)) % 2, Z.argmax(axis=1), RNG.integers(0, K, len(Z)))
    Y = np.arange(K) == labels[:, None]
    D = (Z - Z[Y][:, None]).astype(np.longdouble)
    others = np.where(Y, 0, np.exp(D)).sum(axis=1, keepdims=True)
    (losses,) = on_backend(backend, functional.softmax_cross_entropy, Z.astype(dtype), Y)
    assert ulps(losses, np.log1p(others)) < 5
    (gradient,) = on_backend(backend, functional.softmax_cross_entropy_backward, Z.astype(dtype), Y)
    assert ulps(gradient, np.where(Y, -others, np.exp(D)) / (1 + others)) < 8


def test_soft_labels_near_1_cost_what_they_cost(backend: Backend):
    """The first is 9.99987: 0.9999 in float32 is no closer to 1. max(z, 0) - y z would be 10."""
    Z, Y = (
        np.array([[1e5], [1e4], [-1e5], [300.0]], np.float32),
        np.array([[0.9999], [0.99], [1e-4], [0.5]], np.float32),
    )
    (losses,) = on_backend(backend, functional.sigmoid_cross_entropy, Z, Y)
    z, y = Z.astype(np.float64), Y.astype(np.float64)
    np.testing.assert_allclose(losses, np.where(z > 0, z * (1 - y), -y * z), rtol=2e-7)


@pytest.mark.parametrize("value", [0.1, np.log(2), 1e-3, 1e-37])
def test_the_mean_of_many_equal_losses_is_the_loss(value, backend: Backend):
    losses = np.full((2_000_003, 1), value, np.float32)
    (mean,) = on_backend(backend, functional.mean_loss, losses)
    assert float(mean) == pytest.approx(float(losses[0, 0]), rel=1e-9)


def test_logits_at_the_ends_of_the_dtype_give_a_finite_loss(backend: Backend):
    for dtype in (np.float32, np.float64):
        largest = np.finfo(dtype).max
        Z = np.array([[largest, -largest, 0], [-largest, -largest, largest]], dtype)
        mean, gradient, *_ = on_backend(backend, loss_and_gradient("softmax"), Z, np.array([[1], [0]]))
        assert np.isfinite(mean) and np.isfinite(gradient).all()


def test_counts_of_correct_answers(backend: Backend):
    # softmax: the first of equal largest; sigmoid: one half is no more than one half
    Z = np.log(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    mean, _, _, correct, _ = on_backend(backend, loss_and_gradient("softmax"), Z, np.array([[1], [0], [0], [2]]))
    assert correct.sum() == 2 and mean == pytest.approx(-np.log([0.5, 0.4, 0.1, 0.1]).mean())
    Z, Y = np.array([[-1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 0.7]])
    _, _, _, correct, _ = on_backend(backend, loss_and_gradient("sigmoid"), Z, Y)
    assert correct.sum() == 3
