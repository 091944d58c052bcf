"""Every optimizer's update by itself, in float64: against the papers' formulas, PyTorch, and as derived code."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import pytest
from oracles import torch_or_skip
from traced import KERNELS, WAYS, eagerly, planned, traced

from dnn.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Momentum,
    Muon,
    NAdam,
    Nesterov,
    Optimizer,
    RAdam,
    RMSprop,
    checked_optimizer,
    kind_of,
    newton_schulz,
)

CONFIGURATIONS = [
    SGD(0.1),
    Momentum(0.1),
    Nesterov(0.05),
    Nesterov(0.05, momentum=0.5),
    RMSprop(0.01),
    RMSprop(0.02, rho=0.9, eps=1e-3),
    Adagrad(0.1),
    Adagrad(0.1, eps=0.1),
    Adam(0.01),
    AdamW(0.01),
    AdamW(0.02, 0.8, 0.99, 1e-3, weight_decay=0.3),
    NAdam(0.02),
    NAdam(0.01, 0.8, 0.99, 1e-3, momentum_decay=0.1),
    RAdam(0.01),
    RAdam(0.02, 0.8, 0.99, 1e-3),
    RAdam(0.02, 0.5, 0.6),  # ρ∞ is 4, about: it never rectifies
    Lion(0.01),
    Lion(0.02, 0.8, 0.9),
    Muon(0.02),
    Muon(0.02, adam_learning_rate=0.05, beta1=0.8, beta2=0.99, eps=1e-3),
]
STEPS = 50


def initial(optimizer: Optimizer, theta: np.ndarray) -> tuple:
    return (theta, *(np.zeros_like(theta) for _ in optimizer.arrays), *optimizer.scalars.values())


def stepped(optimizer: Optimizer, theta: np.ndarray, grads, learning_rate: float | None = None) -> Iterator[tuple]:
    """θ and the state after each update, as a step with weight decay takes them."""
    rate = optimizer.learning_rate if learning_rate is None else learning_rate
    state = initial(optimizer, theta)
    for g in grads:
        theta, *others = state
        if optimizer.weight_decay:
            theta = theta * (1 - rate * optimizer.rate_ratio * optimizer.weight_decay)
        state = optimizer.update(np, theta, g(theta) if callable(g) else g, rate, *others)
        state = state if isinstance(state, tuple) else (state,)
        yield state


def gradients(n: int = 40, steps: int = STEPS) -> np.ndarray:
    """Of all sizes, some of them 0."""
    rng = np.random.default_rng(3)
    grads = rng.standard_normal((steps, n)) * np.exp(rng.uniform(-6, 3, n))
    grads[:, 0] = 0
    grads[::2, 1] = 0
    return grads


def start(n: int = 40) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(n)


# --------------------------------------------------------------------------------- the papers' formulas


def in_formulas(o: Optimizer, theta: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """θ after the updates as the papers write them: averages, powers of t, one line a line of theirs."""
    a, m, v, product = o.learning_rate, 0 * theta, 0 * theta, 1.0
    for t, g in enumerate(grads, start=1):
        theta = theta - a * o.weight_decay * theta
        match o:
            case Nesterov():
                v = o.momentum * v + g
                theta = theta - a * (g + o.momentum * v)
            case Momentum():
                v = o.momentum * v + g
                theta = theta - a * v
            case RMSprop():
                v = o.rho * v + (1 - o.rho) * g**2
                theta = theta - a * g / (v**0.5 + o.eps)
            case Adagrad():
                theta = theta - a * g / ((grads[:t] ** 2).sum(axis=0) ** 0.5 + o.eps)
            case Lion():
                c = o.beta1 * m + (1 - o.beta1) * g
                theta = theta - a * np.where(c > 0, 1, np.where(c < 0, -1, 0))
                m = o.beta2 * m + (1 - o.beta2) * g
            case Adam() | Muon():
                m = o.beta1 * m + (1 - o.beta1) * g
                v = o.beta2 * v + (1 - o.beta2) * g**2
                m_hat, v_hat = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
                if isinstance(o, NAdam):
                    mu, next_mu = (o.beta1 * (1 - 0.5 * 0.96 ** (s * o.momentum_decay)) for s in (t, t + 1))
                    product *= mu
                    m_bar = next_mu * m / (1 - product * next_mu) + (1 - mu) * g / (1 - product)
                    theta = theta - a * m_bar / (v_hat**0.5 + o.eps)
                elif isinstance(o, RAdam):
                    rho_inf = 2 / (1 - o.beta2) - 1
                    rho = rho_inf - 2 * t * o.beta2**t / (1 - o.beta2**t)
                    if rho > 5:
                        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                        theta = theta - a * r * m_hat * math.sqrt(1 - o.beta2**t) / (v**0.5 + o.eps)
                    else:
                        theta = theta - a * m_hat
                else:
                    rate = o.adam_learning_rate if isinstance(o, Muon) else a
                    theta = theta - rate * m_hat / (v_hat**0.5 + o.eps)
            case _:
                theta = theta - a * g
    return theta


@pytest.mark.parametrize("optimizer", CONFIGURATIONS, ids=str)
def test_fifty_updates_are_the_papers(optimizer):
    *_, (theta, *_) = stepped(optimizer, start(), gradients())
    np.testing.assert_allclose(theta, in_formulas(optimizer, start(), gradients()), rtol=1e-10, atol=1e-12)


def test_every_optimizer_is_among_the_configurations():
    assert {type(optimizer) for optimizer in CONFIGURATIONS} == set(OPTIMIZERS.values())


def torch_peer(o: Optimizer, theta):
    """PyTorch's of the same settings; None where it has none."""
    optim, settings = torch_or_skip().optim, {"lr": o.learning_rate}
    if isinstance(o, Adam):
        settings |= {"betas": (o.beta1, o.beta2), "eps": o.eps}
        if isinstance(o, AdamW):
            settings["weight_decay"] = o.weight_decay
        if isinstance(o, NAdam):
            settings["momentum_decay"] = o.momentum_decay
        return getattr(optim, type(o).__name__)([theta], **settings)
    match o:
        case Momentum():
            return optim.SGD([theta], momentum=o.momentum, nesterov=isinstance(o, Nesterov), **settings)
        case SGD():
            return optim.SGD([theta], **settings)
        case RMSprop():
            return optim.RMSprop([theta], alpha=o.rho, eps=o.eps, **settings)
        case Adagrad():
            return optim.Adagrad([theta], eps=o.eps, **settings)
    return None


@pytest.mark.parametrize("optimizer", [o for o in CONFIGURATIONS if not isinstance(o, (Lion, Muon))], ids=str)
def test_fifty_updates_are_pytorchs(optimizer, monkeypatch):
    torch = torch_or_skip()
    if isinstance(optimizer, NAdam):  # its product of momenta is float32
        monkeypatch.setattr(sys.modules[torch.optim.NAdam.__module__], "_get_scalar_dtype", lambda: torch.float64)
    theirs = torch.nn.Parameter(torch.tensor(start()))
    peer = torch_peer(optimizer, theirs)
    for g, (theta, *_) in zip(gradients(), stepped(optimizer, start(), gradients()), strict=True):
        theirs.grad = torch.tensor(g)
        peer.step()
        np.testing.assert_allclose(theta, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cls", [Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad], ids=lambda cls: cls.__name__)
def test_the_defaults_are_pytorchs(cls):
    torch = torch_or_skip()
    theirs = getattr(torch.optim, cls.__name__)([torch.zeros(1)]).defaults
    ours = cls()
    names = {"learning_rate": "lr", "rho": "alpha"}
    for setting in fields(ours):
        if setting.name.startswith("beta"):
            assert getattr(ours, setting.name) == theirs["betas"][int(setting.name[-1]) - 1]
        elif setting.name != "factors":
            assert getattr(ours, setting.name) == theirs[names.get(setting.name, setting.name)], setting.name


# ------------------------------------------------------------------------------------------ derived code


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_derived_code_updates_as_eager_code_does(cls, way):
    optimizer, n = cls(), 200
    *_, before = stepped(optimizer, start(n), gradients(n, 7))  # RAdam's first that is rectified comes next
    theta, *state = before
    arguments = theta, gradients(n, 8)[-1], 0.01, *(float(s) if np.ndim(s) == 0 else s for s in state)
    eager, derived = eagerly(optimizer.update, *arguments), traced(way, optimizer.update, *arguments)
    assert len(eager) == len(derived) == 1 + len(state)
    for ours, theirs in zip(derived, eager, strict=True):
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
def test_derived_code_switches_the_rectification(way):
    """RAdam's first steps, on both sides of ρ = 5, each from the eager state."""
    optimizer, n = RAdam(0.01), 50
    states = [initial(optimizer, start(n)), *stepped(optimizer, start(n), gradients(n, 7))]
    for g, (theta, *state), after in zip(gradients(n, 7)[3:], states[3:-1], states[4:], strict=True):
        arguments = theta, g, 0.01, *(float(s) if np.ndim(s) == 0 else s for s in state)
        np.testing.assert_allclose(traced(way, optimizer.update, *arguments)[0], after[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_float32_stays_float32(cls):
    optimizer = cls()
    theta = start().astype(np.float32)
    results = eagerly(optimizer.update, theta, theta, 0.1, *initial(optimizer, theta)[1:])
    assert all(result.dtype == np.float32 for result in results[: 1 + len(optimizer.arrays)])
    results = traced(WAYS[0], optimizer.update, theta, theta, 0.1, *initial(optimizer, theta)[1:])
    assert all(result.dtype == np.float32 for result in results[: 1 + len(optimizer.arrays)])


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_has_no_gradient_and_is_zero_stays_zero(cls):
    """The padding of the flat buffer."""
    for theta, *_ in stepped(cls(), np.zeros(3), np.zeros((8, 3))):
        assert (theta == 0).all()


# -------------------------------------------------------------------------------------------------- Muon


def orthogonalized(G: np.ndarray) -> np.ndarray:
    """Newton–Schulz's polynomial p(x) = a x + b x³ + c x⁵, five times on the singular values."""
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    S = S / np.sqrt((S**2).sum())
    for _ in range(5):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return U * S @ Vt


def muon_in_formulas(W: np.ndarray, grads: np.ndarray, rate: float, mu: float) -> np.ndarray:
    B = 0 * W
    for G in grads:
        B = mu * B + G
        W = W - rate * math.sqrt(max(1, W.shape[0] / W.shape[1])) * orthogonalized(G + mu * B)
    return W


SHAPES = [(6, 6), (12, 5), (5, 12), (1, 7), (7, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_muons_matrices_are_the_papers(shape):
    rng = np.random.default_rng(4)
    W, grads, optimizer = rng.standard_normal(shape), rng.standard_normal((STEPS, *shape)), Muon(0.1, momentum=0.9)
    ours, m = W, np.zeros(shape)
    for g in grads:
        ours, m = optimizer.update_matrix(np, ours, g, 0.1, m)
    np.testing.assert_allclose(ours, muon_in_formulas(W, grads, 0.1, 0.9), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_muons_matrices_are_pytorchs_as_far_as_bfloat16_goes(shape):
    torch = torch_or_skip()
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    rng = np.random.default_rng(4)
    W, optimizer = rng.standard_normal(shape), Muon()
    theirs = torch.nn.Parameter(torch.tensor(W))
    peer = torch.optim.Muon([theirs], optimizer.learning_rate, weight_decay=0.0, momentum=optimizer.momentum)
    ours, m = W, np.zeros(shape)
    for g in rng.standard_normal((20, *shape)):
        ours, m = optimizer.update_matrix(np, ours, g, optimizer.learning_rate, m)
        theirs.grad = torch.tensor(g)
        peer.step()
    moved = theirs.detach().numpy() - W
    assert np.linalg.norm(ours - W - moved) < 0.03 * np.linalg.norm(moved)


@pytest.mark.parametrize("way", [*WAYS, *KERNELS])
@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (17, 40), (1, 7), (7, 1)], ids=str)
def test_derived_code_updates_matrices_as_eager_code_does(shape, way):
    rng = np.random.default_rng(5)
    arguments = *(rng.standard_normal(shape) for _ in range(2)), 0.02, rng.standard_normal(shape)
    eager, derived = (run(Muon().update_matrix, *arguments) for run in (eagerly, lambda *a: traced(way, *a)))
    for ours, theirs in zip(derived, eager, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(30, 30), (60, 20), (20, 60), (1, 9)], ids=str)
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_rest(shape, dtype):
    G = np.random.default_rng(6).standard_normal(shape)
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    G = (U * np.linspace(0.1, 1, len(S)) @ Vt).astype(dtype)
    X = newton_schulz(np, G)
    assert X.dtype == dtype and X.shape == G.shape
    found = np.linalg.svd(X, compute_uv=False)
    assert found.min() > 0.6 and found.max() < 1.3
    coefficients = U.T @ X @ Vt.T  # diagonal: the singular vectors are G's
    assert np.abs(coefficients - np.diag(np.diag(coefficients))).max() < (1e-3 if dtype == np.float32 else 1e-12)


def test_newton_schulz_does_not_depend_on_the_length_and_takes_zeros():
    G = np.random.default_rng(6).standard_normal((5, 8))
    np.testing.assert_allclose(newton_schulz(np, 1e6 * G), newton_schulz(np, G), atol=1e-12)
    assert (newton_schulz(np, np.zeros((5, 8))) == 0).all()


def test_newton_schulz_forms_the_smaller_gram_matrix():
    for shape in ((40, 10), (10, 40)):
        flops = planned(newton_schulz, np.ones(shape)).flops()
        assert flops == 5 * (2 * 10 * 10 * 40 + 10**3)


def test_one_factor_scales_both_of_muons_rates():
    optimizer, theta, g = Muon(0.1, adam_learning_rate=0.01), start(), gradients()[1]
    state = initial(optimizer, theta)[1:]
    full, half = (theta - optimizer.update(np, theta, g, rate, *state)[0] for rate in (0.1, 0.05))
    np.testing.assert_allclose(full, 2 * half, atol=1e-14)
    np.testing.assert_allclose(np.abs(full).max(), 0.01, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ minima

RATES = {"sgd": 0.1, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.01, "adagrad": 0.5, "adam": 0.05, "adamw": 0.05,
         "nadam": 0.05, "radam": 0.05, "lion": 0.01, "muon": 0.05}  # fmt: skip


def made(name: str, rate: float) -> Optimizer:
    extra = {"adam_learning_rate": rate} if name == "muon" else {"weight_decay": 0.0} if name == "adamw" else {}
    return OPTIMIZERS[name](rate, **extra)


def cooled(optimizer: Optimizer, theta: np.ndarray, gradient: Callable, steps: int) -> np.ndarray:
    """θ after so many steps of a learning rate that goes down to 0."""
    state = initial(optimizer, theta)
    for step in range(steps):
        theta, *others = state
        rate = optimizer.learning_rate * (1 - step / steps)
        state = optimizer.update(np, theta, gradient(theta), rate, *others)
        state = state if isinstance(state, tuple) else (state,)
    return state[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finds_the_bottom_of_a_parabola(name):
    theta = cooled(made(name, RATES[name]), np.array([2.0, -1.0, 0.5]), lambda t: np.array([1, 2, 0.5]) * t, 1000)
    assert np.abs(theta).max() < 2e-3


def rosenbrock(theta: np.ndarray) -> np.ndarray:
    x, y = theta
    return np.array([-2 * (1 - x) - 40 * x * (y - x * x), 20 * (y - x * x)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finds_the_bottom_of_rosenbrocks_valley(name):
    """(1 − x)² + 10 (y − x²)²."""
    rate = 0.005 if name in ("sgd", "momentum", "nesterov") else RATES[name]
    x, y = cooled(made(name, rate), np.array([-1.0, 1.0]), rosenbrock, 6000)
    assert (1 - x) ** 2 + 10 * (y - x * x) ** 2 < 1e-3


def test_muon_brings_a_matrix_to_its_target():
    target = np.random.default_rng(8).standard_normal((6, 4))
    W, m = np.zeros((6, 4)), np.zeros((6, 4))
    for step in range(300):
        W, m = Muon().update_matrix(np, W, W - target, 0.1 * (1 - step / 300), m)
    assert np.abs(W - target).max() < 1e-2


# --------------------------------------------------------------------------------- settings, names, factors


def test_weight_decay_is_no_part_of_an_update():
    for cls in OPTIMIZERS.values():
        with_decay, without = cls(weight_decay=0.5), cls(weight_decay=0.0)
        state = initial(without, start())[1:]
        for a, b in zip(
            *(eagerly(o.update, start(), start(), 0.1, *state) for o in (with_decay, without)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert AdamW().weight_decay == 0.01 and Adam().weight_decay == 0


def test_positions_are_those_of_the_settings_before_weight_decay():
    assert Adam(0.1, 0.8, 0.99, 1e-3) == Adam(learning_rate=0.1, beta1=0.8, beta2=0.99, eps=1e-3)
    with pytest.raises(TypeError):
        SGD(0.1, 0.2)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SGD(weight_decay=-1), "SGD: weight_decay must be at least 0, got -1"),
        (lambda: Adam(weight_decay=float("inf")), "Adam: weight_decay must be finite, got inf"),
        (lambda: Nesterov(momentum=1), "Nesterov: momentum must be at least 0 and below 1, got 1"),
        (lambda: RMSprop(rho=1.0), "RMSprop: rho must be at least 0 and below 1"),
        (lambda: RMSprop(eps=0), "RMSprop: eps must be above 0"),
        (lambda: Adagrad(eps=-1), "Adagrad: eps must be above 0"),
        (lambda: NAdam(momentum_decay=-0.1), "NAdam: momentum_decay must be at least 0, got -0.1"),
        (lambda: RAdam(beta2=1.0), "RAdam: beta2 must be"),
        (lambda: Lion(beta1=-1), "Lion: beta1 must be"),
        (lambda: Muon(0), "Muon: learning_rate must be above 0, got 0"),
        (lambda: Muon(adam_learning_rate=-1), "Muon: adam_learning_rate must be at least 0"),
        (lambda: Muon(steps=0), "Muon: steps must be at least 1, got 0"),
        (lambda: SGD(factors={"b": -1}), r"SGD: factors\['b'\] must be finite and at least 0, got -1"),
        (
            lambda: SGD(factors={"W1": (1, float("nan"))}),
            r"SGD: factors\['W1'\] must be finite and at least 0, got nan",
        ),
        (lambda: SGD(factors={"W1": (1, 1, 1)}), r"factors\['W1'\] must be a number or a pair of them"),
    ],
)
def test_refuses_settings_that_cannot_work(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SGD(factors={"b": "1"}), r"SGD: factors\['b'\] must be a number, got '1'"),
        (lambda: SGD(factors={1: 1.0}), "SGD: factors: a key must be a parameter's name"),
        (lambda: SGD(factors=3), "SGD: factors must be a dict"),
        (lambda: Muon(steps=2.5), "Muon: steps must be a whole number, got 2.5"),
        (lambda: Adam(weight_decay=None), "Adam: weight_decay must be a number"),
    ],
)
def test_refuses_what_is_no_setting(make, complaint):
    with pytest.raises(TypeError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("optimizer", "setting"),
    [
        (AdamW(weight_decay=1e-60), "weight_decay"),
        (Nesterov(momentum=1 - 1e-9), "momentum"),
        (RMSprop(rho=1 - 1e-9), "rho"),
        (RMSprop(eps=1e-60), "eps"),
        (Adagrad(eps=1e-60), "eps"),
        (NAdam(beta2=1 - 1e-9), "beta2"),
        (RAdam(eps=1e-60), "eps"),
        (Lion(beta2=1 - 1e-9), "beta2"),
        (Muon(momentum=1 - 1e-9), "momentum"),
        (Muon(adam_learning_rate=1e60), "adam_learning_rate"),
    ],
    ids=str,
)
def test_a_setting_that_float32_makes_another_number_is_named(optimizer, setting):
    optimizer.check_in(np.dtype(np.float64))
    with pytest.raises(ValueError, match=f"{type(optimizer).__name__}: {setting} "):
        optimizer.check_in(np.dtype(np.float32))


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_defaults_are_numbers_in_float32(cls):
    cls().check_in(np.dtype(np.float32))


def test_factors_are_of_a_name_before_its_kind():
    optimizer = SGD(0.1, factors={"W": 0.5, "W2": (0.25, 0.0), "b": (2, 1)})
    assert optimizer.factor_of("W1") == (0.5, 1.0)
    assert optimizer.factor_of("W2") == (0.25, 0.0)
    assert optimizer.factor_of("W22") == (0.5, 1.0)
    assert optimizer.factor_of("b3") == (2.0, 1.0)
    assert SGD().factor_of("W7") == (1.0, 1.0)
    assert SGD().factor_of("b7") == (1.0, 0.0)
    assert SGD(factors={"b1": 3.0}).factor_of("b1") == (3.0, 0.0)
    assert [kind_of(name) for name in ("W12", "b1", "gamma3")] == ["W", "b", "gamma"]


def test_factors_that_no_parameter_has_are_found():
    names = ["W1", "W2", "b1", "b2"]
    assert SGD(factors={"W": 1.0, "b2": 0.0}).unknown(names) is None
    assert SGD(factors={"W": 1.0, "W3": 0.0}).unknown(names) == "W3"
    assert SGD(factors={"gamma": 1.0}).unknown(iter(names)) == "gamma"


def test_factors_make_no_optimizer_unhashable_and_their_order_is_nothing():
    one, other = SGD(factors={"W": 0.5, "b": (1, 0)}), SGD(factors={"b": (1.0, 0.0), "W": 0.5})
    assert one == other and hash(one) == hash(other) and one != SGD()
    assert SGD(factors=one.factors) == one
    assert one.continues(SGD(0.5, factors=one.factors)) and not one.continues(SGD())
    assert not Adam().continues(Adam(weight_decay=0.1)) and Muon(0.1).continues(Muon(0.2))


def test_optimizers_by_name():
    for name, cls in OPTIMIZERS.items():
        assert checked_optimizer(name) == cls()
    optimizer = Lion(0.3)
    assert checked_optimizer(optimizer) is optimizer
    expected = "sgd momentum nesterov rmsprop adagrad adam adamw nadam radam lion muon"
    assert set(OPTIMIZERS) == set(expected.split())


@pytest.mark.parametrize(
    ("given", "hint"),
    [("Adam", ": did you mean 'adam'"), ("rmspop", ": did you mean 'rmsprop'"), ("xyz", None), (3, None), (Adam, None)],
)
def test_an_unknown_optimizer_is_refused_with_the_closest(given, hint):
    with pytest.raises(ValueError, match="optimizer must be one of sgd, momentum, adam") as caught:
        checked_optimizer(given)
    assert str(caught.value).endswith(f"{hint}?" if hint else repr(given))
