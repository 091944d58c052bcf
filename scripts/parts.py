"""The contenders of `benchmark.py parts`: networks of more than layers and relu, in dnn and in its peers.

plain     [LINEAR → relu], Adam
full      [LINEAR → batch norm → gelu → dropout 0.2], AdamW
members   eight plain networks in one step, on eight batches, with Adam

Random numbers differ, so what is checked to be the same are the weights after five steps without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from peers import BETA1, BETA2, EPS, LEARNING_RATE
from turns import Contender, after_five_steps

import dnn
from dnn.data import prepare
from dnn.state import TrainingState
from dnn.step import GATHERED, TRAIN, Order, Step
from dnn.updating import Updating, keeps_of

RATE, DECAY, MEMBERS, MOMENTUM = 0.2, 0.01, 8, 0.9
CLOSE = 0.05
"""How far weights after five steps may be apart, as a share of how far they have moved."""


class DnnParts(Contender):
    def __init__(self, kind: str, sizes: list[int], X: np.ndarray, Y: np.ndarray, rate: float = RATE) -> None:
        self.name = {"plain": "dnn, plain network"}.get(kind, "dnn")
        full, k = kind == "full", MEMBERS if kind == "members" else 1
        settings: dict[str, Any] = {"norm": "batch", "activation": "gelu", "dropout": rate} if full else {}
        self.network = network = dnn.Network(sizes, output="softmax", seed=1, backend="numpy", members=k, **settings)
        self._backend, m = network.backend, len(X)
        optimizer = dnn.AdamW(LEARNING_RATE["adam"], weight_decay=DECAY) if full else dnn.Adam(LEARNING_RATE["adam"])
        updating = Updating(optimizer)
        # every member has a batch of its own: all of them the same, so that peers can have them too
        self._order = Order(np.tile(np.arange(m), k), np.zeros(1, np.int64))
        with self._backend.stream():
            state = TrainingState(optimizer, network.parameters, keeps_of(network, updating))
            state.set_precision(None, network.parameters)
            examples = prepare(network, X, Y, fitting=True)
            step = Step(network, examples, m, TRAIN, GATHERED, updating, state.arrays, order=self._order)
            self._run = step.compile()

    def running(self) -> AbstractContextManager[object]:
        return self._backend.stream()

    def steps(self, n: int) -> None:
        with self._backend.stream(), np.errstate(over="ignore"):
            for _ in range(n):
                self._order.position.fill(0)
                self._run()

    def weights(self) -> list[np.ndarray]:
        return [np.array(view) for name, view in self.network.parameters.items() if name.startswith("W")]


class TorchParts(Contender):
    def __init__(
        self, kind: str, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, mode: str, rate: float = RATE
    ) -> None:
        import torch

        self.name = f"PyTorch {mode}"
        self._X, self._Y = torch.from_numpy(X), torch.from_numpy(Y)
        make = self._members if kind == "members" else self._sequential
        loss, parameters = make(torch, kind, start, rate)
        if kind == "full":
            decayed = [p for p in parameters if p.ndim > 1]
            rest = [p for p in parameters if p.ndim == 1]
            groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
            self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE["adam"], fused=True)
        else:
            self._optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE["adam"], fused=True)
        self._loss = torch.compile(loss, mode="max-autotune") if mode == "compiled" else loss

    def _sequential(self, torch: Any, kind: str, start: list[np.ndarray], rate: float) -> Any:
        layers: list[Any] = []
        for number, W in enumerate(start, start=1):
            hidden = number < len(start)
            linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=not (hidden and kind == "full"))
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(W))
                if linear.bias is not None:
                    linear.bias.zero_()
            layers.append(linear)
            if hidden and kind == "full":
                layers += [torch.nn.BatchNorm1d(W.shape[0], momentum=1 - MOMENTUM), torch.nn.GELU()]
                layers += [torch.nn.Dropout(rate)]
            elif hidden:
                layers.append(torch.nn.ReLU())
        model = torch.nn.Sequential(*layers)
        self._weights = [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]
        return lambda X, Y: torch.nn.functional.cross_entropy(model(X), Y), list(model.parameters())

    def _members(self, torch: Any, kind: str, start: list[np.ndarray], rate: float) -> Any:
        self._weights = weights = [torch.nn.Parameter(torch.from_numpy(W.copy())) for W in start]
        biases = [torch.nn.Parameter(torch.zeros(W.shape[0], 1, W.shape[1])) for W in start]
        k = len(start[0])
        self._X, self._Y = self._X.repeat(k, 1, 1), self._Y.repeat(k)

        def loss(X: Any, Y: Any) -> Any:
            A = X
            for number, (W, b) in enumerate(zip(weights, biases, strict=True), start=1):
                A = torch.baddbmm(b, A, W.transpose(1, 2))
                A = torch.relu(A) if number < len(weights) else A
            # the sum over the members of their own means: every one learns as it would alone
            return torch.nn.functional.cross_entropy(A.reshape(-1, A.shape[2]), Y) * k

        return loss, [*weights, *biases]

    def steps(self, n: int) -> None:
        for _ in range(n):
            self._optimizer.zero_grad(set_to_none=True)
            self._loss(self._X, self._Y).backward()
            self._optimizer.step()

    def weights(self) -> list[np.ndarray]:
        return [weight.detach().numpy().copy() for weight in self._weights]


class JaxParts(Contender):
    name = "JAX jit"

    def __init__(self, kind: str, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, rate: float = RATE) -> None:
        import jax
        import jax.numpy as jnp

        full = kind == "full"
        theta: dict[str, Any] = {"W": [jnp.array(W) for W in start]}
        sizes, lead = [W.shape[-2] for W in start], start[0].shape[:-2]
        theta["b"] = [jnp.zeros((*lead, n)) for n in (sizes[-1:] if full else sizes)]
        if full:
            theta |= {"gamma": [jnp.ones(n) for n in sizes[:-1]], "beta": [jnp.zeros(n) for n in sizes[:-1]]}
        running = [(jnp.zeros(n), jnp.ones(n)) for n in sizes[:-1]] if full else []

        def loss(theta: Any, running: Any, X: Any, Y: Any, key: Any) -> Any:
            A, new = X, []
            for i, W in enumerate(theta["W"]):
                A = A @ W.T
                last = i == len(theta["W"]) - 1
                if not full:
                    A = A + theta["b"][i]
                    A = A if last else jax.nn.relu(A)
                elif last:
                    A = A + theta["b"][0]
                else:
                    mean, variance = A.mean(0), A.var(0)
                    unbiased = variance * (len(A) / (len(A) - 1))
                    old = running[i]
                    new.append(
                        tuple(MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(old, (mean, unbiased), strict=True))
                    )
                    A = (A - mean) * jax.lax.rsqrt(variance + 1e-5) * theta["gamma"][i] + theta["beta"][i]
                    A = jax.nn.gelu(A, approximate=False)
                    keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, A.shape)
                    A = jnp.where(keep, A / (1 - rate), 0)
            return -jnp.take_along_axis(jax.nn.log_softmax(A), Y[:, None], axis=1).mean(), new

        def gradients(theta: Any, running: Any, X: Any, Y: Any, key: Any) -> Any:
            return jax.grad(loss, has_aux=True)(theta, running, X, Y, key)

        if kind == "members":
            gradients = jax.vmap(gradients, in_axes=(0, None, 0, 0, None))
            X, Y = np.tile(X, (len(start[0]), 1, 1)), np.tile(Y, (len(start[0]), 1))

        def step(theta: Any, state: Any, X: Any, Y: Any) -> Any:
            m, v, t, running, key = state
            key, now = jax.random.split(key)
            grads, running = gradients(theta, running, X, Y, now)
            t = t + 1
            m = jax.tree.map(lambda a, g: BETA1 * a + (1 - BETA1) * g, m, grads)
            v = jax.tree.map(lambda a, g: BETA2 * a + (1 - BETA2) * g * g, v, grads)
            alpha, root = LEARNING_RATE["adam"] / (1 - BETA1**t), jnp.sqrt(1 - BETA2**t)

            def update(p: Any, a: Any, b: Any) -> Any:
                p = p * (1 - LEARNING_RATE["adam"] * DECAY) if full and p.ndim > 1 else p
                return p - alpha * a / (jnp.sqrt(b) / root + EPS)

            return jax.tree.map(update, theta, m, v), (m, v, t, running, key)

        self._jax, self._step = jax, jax.jit(step, donate_argnums=(0, 1))
        zeros = [jax.tree.map(jnp.zeros_like, theta) for _ in range(2)]
        self._theta, self._state = theta, (*zeros, jnp.zeros((), jnp.float32), running, jax.random.key(0))
        self._X, self._Y = jnp.array(X), jnp.array(Y)

    def steps(self, n: int) -> None:
        for _ in range(n):
            self._theta, self._state = self._step(self._theta, self._state, self._X, self._Y)

    def wait(self) -> None:
        self._jax.block_until_ready(self._theta)

    def weights(self) -> list[np.ndarray]:
        return [np.array(W) for W in self._theta["W"]]


def parts_of(
    kind: str, sizes: list[int], X: np.ndarray, Y: np.ndarray, modes: list[str]
) -> tuple[list[Contender], dict[str, str]]:
    """The plain network, this one, and this one in the peers; and why a peer is left out."""
    every: list[Contender] = [DnnParts("plain", sizes, X, Y), DnnParts(kind, sizes, X, Y)]
    start = DnnParts(kind, sizes, X, Y, rate=0).weights()
    expected = after_five_steps(DnnParts(kind, sizes, X, Y, rate=0))
    failed = {}
    for mode, make in _peers(kind, start, X, Y, modes):
        try:
            apart = _apart(after_five_steps(make(0.0)), expected, start)
            if not apart < CLOSE:
                raise ValueError(f"computes something else: weights are {apart:.2g} apart after five steps")
            every.append(make(RATE))
        except Exception as error:  # as in peers.contenders
            failed[mode] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"  {mode}: left out: {failed[mode]}")
    return every, failed


def _peers(
    kind: str, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, modes: list[str]
) -> Iterator[tuple[str, Callable[[float], Contender]]]:
    for mode in modes:
        if mode == "jax":
            yield "JAX jit", lambda rate: JaxParts(kind, start, X, Y, rate)
        else:
            yield f"PyTorch {mode}", lambda rate, mode=mode: TorchParts(kind, start, X, Y, mode, rate)


def _apart(found: list[np.ndarray], expected: list[np.ndarray], start: list[np.ndarray]) -> float:
    """How far weights are apart, as a share of the way that they have gone."""
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b - c)) for a, b, c in zip(found, expected, start, strict=True)
    )
