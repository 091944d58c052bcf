"""Updates against the papers' formulas, PyTorch, and a parabola."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from builders import GivenGradients, Problem, problem
from oracles import torch_optimizer, torch_or_skip

from dnn import SGD, Adam, Momentum, Network
from dnn.backends import Backend, get_backend
from dnn.errors import NonFiniteLossError
from dnn.optimizers import OPTIMIZERS

CONFIGURATIONS = [SGD(0.1), Momentum(0.1), Momentum(0.05, momentum=0.5), Adam(0.01), Adam(0.1, 0.8, 0.99, 1e-3)]


def bound(optimizer, backend: Backend, dtype="float64") -> Problem:
    """A step that updates by gradients that are given."""
    return problem([3, 2, 1], "sigmoid", backend.name, 4, dtype=dtype, optimizer=optimizer, kind=GivenGradients)


def update(case: Problem, gradient) -> None:
    case.set(case.step.array("given"), gradient)
    case.run()


def gradients(shape, steps=10):
    return np.random.default_rng(1).standard_normal((steps, *shape))


def in_formulas(optimizer, theta, grads):
    """The updates as their papers write them."""
    v = m = np.zeros_like(theta)
    for t, g in enumerate(grads, start=1):
        if isinstance(optimizer, Adam):
            m = optimizer.beta1 * m + (1 - optimizer.beta1) * g
            v = optimizer.beta2 * v + (1 - optimizer.beta2) * g**2
            m_hat, v_hat = m / (1 - optimizer.beta1**t), v / (1 - optimizer.beta2**t)
            theta = theta - optimizer.learning_rate * m_hat / (np.sqrt(v_hat) + optimizer.eps)
        elif isinstance(optimizer, Momentum):
            v = optimizer.momentum * v + g
            theta = theta - optimizer.learning_rate * v
        else:
            theta = theta - optimizer.learning_rate * g
    return theta


@pytest.mark.parametrize("optimizer", CONFIGURATIONS, ids=str)
def test_ten_updates_are_the_papers(optimizer, backend: Backend):
    case = bound(optimizer, backend)
    start = case.theta
    grads = gradients(start.shape)
    for g in grads:
        update(case, g)
    np.testing.assert_allclose(case.theta, in_formulas(optimizer, start, grads), atol=1e-13)


@pytest.mark.parametrize("optimizer", CONFIGURATIONS, ids=str)
def test_ten_updates_are_pytorchs(optimizer, backend: Backend):
    torch = torch_or_skip()
    case = bound(optimizer, backend)
    theta = torch.nn.Parameter(torch.tensor(case.theta))
    peer = torch_optimizer(optimizer, theta)
    for g in gradients(case.theta.shape):
        theta.grad = torch.tensor(g)
        peer.step()
        update(case, g)
    np.testing.assert_allclose(case.theta, theta.detach().numpy(), atol=1e-13)


@pytest.mark.parametrize("optimizer", [SGD(0.2), Momentum(0.05), Adam(0.1)], ids=str)
def test_finds_the_bottom_of_a_parabola(optimizer, backend: Backend):
    case = bound(optimizer, backend)
    for _ in range(400):
        case.step.array("given")[...] = case.network.parameters.flat
        case.run()
    assert np.abs(case.theta).max() < 1e-3


@pytest.mark.parametrize("optimizer", CONFIGURATIONS, ids=str)
def test_padding_of_the_flat_buffer_stays_zero(optimizer, backend: Backend):
    case = bound(optimizer, backend, "float32")
    padding = np.zeros_like(case.theta)
    for view in case.by_name(padding).values():
        view.fill(1)
    case.set(case.network.parameters.flat, padding)
    for _ in range(3):
        update(case, padding)
    theta, outside = case.theta, padding == 0
    assert outside.any() and (theta[outside] == 0).all() and np.isfinite(theta).all()
    assert (theta[~outside] != 1).all()


def test_learning_rate_can_change_between_steps(backend: Backend):
    case = bound(SGD(1.0), backend)
    start = case.theta
    update(case, np.ones_like(start))
    case.state.learning_rate = 0.25
    update(case, np.ones_like(start))
    assert case.state.learning_rate == 0.25
    np.testing.assert_allclose(case.theta, start - 1.25, atol=1e-15)


def test_adams_first_step_is_the_learning_rate_whatever_the_gradient():
    for scale in (1e-3, 1.0, 1e3):
        case = bound(Adam(0.01), get_backend("numpy"))
        start = case.theta
        update(case, np.full_like(start, scale))
        np.testing.assert_allclose(case.theta, start - 0.01, rtol=0, atol=1e-6)


def test_continues_only_where_nothing_but_the_learning_rate_differs():
    assert Adam(0.1).continues(Adam(0.2)) and SGD(1).continues(SGD(2))
    assert not Adam(0.1).continues(Adam(0.1, beta1=0.8))
    assert not SGD(0.1).continues(Momentum(0.1))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SGD(-0.1), "SGD: learning_rate must be at least 0, got -0.1"),
        (lambda: Adam(float("nan")), "Adam: learning_rate must be finite, got nan"),
        (lambda: SGD(float("inf")), "learning_rate"),
        (lambda: Momentum(0.1, momentum=1.0), "Momentum: momentum must be at least 0 and below 1, got 1.0"),
        (lambda: Adam(beta1=1.0), "beta1 must be at least 0 and below 1"),
        (lambda: Adam(beta2=-0.1), "beta2"),
        (lambda: Adam(eps=0), "eps must be above 0"),
    ],
)
def test_refuses_settings_that_cannot_work(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="SGD: learning_rate must be a number, got"):
        SGD(value)


@pytest.mark.parametrize(
    ("optimizer", "complaint"),
    [
        (Adam(eps=1e-50), "Adam: eps 1e-50 is 0 in float32: take one that is not, or a network of dtype float64"),
        (Adam(eps=1e-40), "Adam: eps 1e-40 is 0 in float32"),  # to some machines
        (Adam(eps=1e39), r"Adam: eps 1e\+39 is inf in float32"),
        (Adam(beta1=1 - 1e-9), "Adam: beta1 0.999999999 is 1 in float32"),
        (Adam(beta2=1 - 1e-10), "Adam: beta2 0.9999999999 is 1 in float32"),
        (Adam(1e39), r"Adam: learning_rate 1e\+39 is inf in float32"),
        (Momentum(0.1, momentum=1 - 1e-9), "Momentum: momentum 0.999999999 is 1 in float32"),
        (SGD(1e300), r"SGD: learning_rate 1e\+300 is inf in float32"),
        (SGD(1e-46), "SGD: learning_rate 1e-46 is 0 in float32"),
    ],
    ids=str,
)
def test_a_setting_that_float32_makes_another_number_is_refused_where_it_would_be_used(optimizer, complaint):
    network = Network([2, 1])
    with pytest.raises(ValueError, match=complaint):
        network.fit(np.ones((4, 2)), np.ones(4), optimizer=optimizer)
    assert network.training_state is None and network.input_scale is None
    in_float64 = Network([2, 1], dtype="float64")
    with contextlib.suppress(NonFiniteLossError):  # the larger learning rates
        in_float64.fit(np.ones((4, 2)), np.ones(4), epochs=1, optimizer=optimizer)


@pytest.mark.parametrize("value", [Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.float16(0.5)], ids=repr)
def test_settings_are_pythons_numbers_whatever_they_were_given_as(value):
    for optimizer in (SGD(value), Momentum(value, value), Adam(value, value, value, value)):
        assert {type(getattr(optimizer, field.name)) for field in fields(optimizer) if not field.kw_only} == {float}
        assert optimizer == type(optimizer)(*[0.5] * sum(not field.kw_only for field in fields(optimizer)))


def test_every_optimizer_is_known_by_name():
    assert {"sgd": SGD, "momentum": Momentum, "adam": Adam}.items() <= OPTIMIZERS.items()
    assert {name: kind.__name__.lower() for name, kind in OPTIMIZERS.items()} == {name: name for name in OPTIMIZERS}
    assert (SGD().learning_rate, Momentum().learning_rate, Adam().learning_rate) == (0.01, 0.01, 0.001)
