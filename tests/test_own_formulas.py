"""A user's own activation, loss and optimizer: a few lines of `xp`, fused as the built-in ones are; and README's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

import dnn
from dnn import functional
from dnn.activations import ACTIVATIONS
from dnn.backends import Backend, use_compiled_steps
from dnn.backends.plan import PlanError
from dnn.errors import ModelFileError
from dnn.functional.losses import LOSSES

README = (ROOT / "README.md").read_text()
GENERATOR = np.random.default_rng(3)
X, Y = GENERATOR.standard_normal((60, 5)), GENERATOR.standard_normal(60)


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [(registry, dict(registry)) for registry in (ACTIVATIONS, LOSSES)]
    yield
    for registry, kept in before:
        registry.clear()
        registry.update(kept)


def trained(backend: Backend, **settings) -> np.ndarray:
    optimizer = settings.pop("optimizer", dnn.SGD(0.05))
    network = dnn.Network([5, 8, 6, 1], output="linear", seed=1, dtype="float64", backend=backend.name, **settings)
    network.fit(X, Y, epochs=3, batch_size=16, optimizer=optimizer)
    return backend.to_numpy(network.parameters.flat).copy()


# the built-in formulas, written by a user under names of their own


def my_relu(xp, Z):
    return xp.maximum(Z, 0)


def my_relu_backward(xp, dA, Z, A):
    return xp.where(Z > 0, dA, 0 * A)


class MySquaredError:
    def losses(self, xp, Z, Y):
        return (Z - Y) ** 2

    def gradient(self, xp, Z, Y):
        return 2 * (Z - Y)


@dataclass(frozen=True)
class MyMomentum(dnn.Optimizer):
    arrays = ("velocity",)

    def update(self, xp, theta, grad, learning_rate, velocity):
        velocity = 0.9 * velocity + grad
        return theta - learning_rate * velocity, velocity


@pytest.mark.parametrize("compiled", [True, False])
def test_a_users_own_formulas_train_what_the_built_in_ones_do(compiled, backend: Backend):
    dnn.register_activation("my_relu", my_relu, my_relu_backward, saves=("Z", "A"))
    with use_compiled_steps(compiled):
        own = trained(backend, activation="my_relu", loss=MySquaredError(), optimizer=MyMomentum(0.05))
        built_in = trained(backend, activation="relu", optimizer=dnn.Momentum(0.05))
    np.testing.assert_allclose(own, built_in, rtol=0, atol=1e-13)


def test_a_function_is_looked_up_by_itself_not_by_its_name(backend: Backend):
    def relu_backward(xp, dA, A):  # another one than ours of that name
        return xp.where(A > 0, 2 * dA, 0)

    dnn.register_activation("twice", functional.relu, relu_backward)
    assert not np.allclose(trained(backend, activation="twice"), trained(backend, activation="relu"))


def test_an_activation_that_cannot_be_traced_is_one_error_when_the_fit_starts(backend: Backend):
    def branching(xp, Z):
        return Z if Z.sum() > 0 else -Z

    dnn.register_activation("branching", branching, my_relu_backward, saves=("Z", "A"))
    with pytest.raises(PlanError, match=r"xp.where instead of `if` \(tests/test_own_formulas.py:\d+ branching\)"):
        trained(backend, activation="branching")


def test_an_optimizer_that_gives_the_wrong_number_of_values_says_what_is_expected(backend: Backend):
    @dataclass(frozen=True)
    class Forgetful(dnn.Optimizer):
        arrays = ("velocity",)

        def update(self, xp, theta, grad, learning_rate, velocity):
            return theta - learning_rate * grad

    with pytest.raises(
        ValueError, match=r"Forgetful.update must return theta and its state \(theta, velocity\), got 1"
    ):
        trained(backend, optimizer=Forgetful())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("a", my_relu, my_relu_backward, ()), ValueError, "saves must name"),
        (("a", my_relu, my_relu_backward, ("W",)), ValueError, "of Z, A"),
        (("a", my_relu, my_relu_backward, ("A",)), TypeError, r"must take \(xp, dA, A\)"),
        (("a", lambda Z: Z, my_relu_backward, ("Z", "A")), TypeError, r"must take \(xp, Z\)"),
    ],
)
def test_an_activation_of_another_signature_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        dnn.register_activation(*arguments)


def test_a_loss_is_a_name_or_an_object_with_its_two_methods():
    with pytest.raises(ValueError, match="loss must be one of"):
        dnn.Network([2, 1], loss="hinge")
    for wrong in (MySquaredError, 3, object()):
        with pytest.raises(TypeError, match="losses and gradient"):
            dnn.Network([2, 1], loss=wrong)


def test_a_model_file_keeps_a_registered_loss_and_activations_by_their_names(tmp_path, monkeypatch):
    own = MySquaredError()
    network = dnn.Network([5, 4, 3, 1], activation=["relu", "gelu"], output="linear", loss=own)
    with pytest.raises(ValueError, match=r"dnn\.register_loss"):
        network.save(tmp_path / "model.h5")
    assert not (tmp_path / "model.h5").exists()
    dnn.register_loss("mine", own)
    network.save(tmp_path / "model.h5")
    again = dnn.load(tmp_path / "model.h5")
    assert again.loss_function is own and again.activation == network.activation == ("relu", "gelu")
    assert again.evaluate(X, Y) == network.evaluate(X, Y)
    monkeypatch.delitem(LOSSES, "mine")
    with pytest.raises(ModelFileError, match="loss must be one of"):
        dnn.load(tmp_path / "model.h5")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def test_readmes_own_formulas_run_and_learn(capsys, monkeypatch):
    (code,) = [block for block in blocks("python") if "register_activation" in block]
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # where dataclasses looks for it
    exec(compile(code, "README.md", "exec"), module.__dict__)
    printed = eval(capsys.readouterr().out)
    assert printed["rmse"] < 0.6


def test_readmes_plan_is_the_plan_of_that_network():
    from dnn.data import prepare
    from dnn.state import TrainingState
    from dnn.step import GATHERED, TRAIN, Order, Step

    network = dnn.Network([2, 3, 1], seed=1)
    examples = prepare(network, np.zeros((8, 2)), np.zeros(8))
    state = TrainingState(dnn.SGD(0.1), network.parameters)
    order = Order(np.arange(8), np.zeros(1, np.int64))
    step = Step(network, examples, 4, TRAIN, GATHERED, state.optimizer, state.arrays, order=order)
    text = step.plan.text().splitlines()
    (shown,) = [block.splitlines() for block in blocks("") if block.startswith("%")]
    assert len(shown) > 10
    squeezed = [" ".join(line.split()) for line in text]
    for line in shown:
        assert line == "..." or " ".join(line.split()) in squeezed, line
