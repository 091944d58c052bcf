"""The contenders of the benchmarks: one training step on one batch, by dnn and by its peers at their best.

Each has `name`, `steps(n)`, which queues n steps, `wait()`, and `weights()`, [W1, b1, ...] as NumPy arrays. All start
from the same weights and see the same batch; the loss is the mean cross-entropy of a softmax.

precision   float32: products of float32 numbers, not rounded to TF32; bfloat16: layers in bfloat16, float32 weights
            beside them, each library's own way of it
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# JAX would take three quarters of the card's memory before the others have theirs
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import numpy as np

import dnn
from backends import get_backend
from dnn.data import prepare
from dnn.precision import check_precision, working_copies
from dnn.step import training_step

LEARNING_RATE = {"sgd": 0.01, "adam": 0.001}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Dnn:
    def __init__(
        self, sizes: list[int], X: np.ndarray, Y: np.ndarray, optimizer: str, backend: str, precision: str = "float32"
    ) -> None:
        self.name = f"dnn on {backend}"
        self._network = dnn.Network(sizes, output="softmax", seed=1, backend=backend)
        self._backend = self._network.backend
        configuration = dnn.Adam(LEARNING_RATE["adam"]) if optimizer == "adam" else dnn.SGD(LEARNING_RATE["sgd"])
        reduced = check_precision(self._network, precision)
        with self._backend.stream():
            examples = prepare(self._network, X, Y, fitting=True).on(self._backend)
            update = configuration.bind(self._network.parameters)
            mixed = working_copies(reduced, self._network.parameters)
            self._step = training_step(self._network, update, examples, len(X), precision=reduced, mixed=mixed)
            self._step.load(self._backend.asarray(np.arange(len(X))))
        self._run = self._backend.capture(self._step)

    def steps(self, n: int) -> None:
        run = self._run
        with self._backend.stream(), np.errstate(over="ignore"):
            for _ in range(n):
                run()

    def wait(self) -> None:
        self._backend.synchronize()

    def weights(self) -> list[np.ndarray]:
        parameters, layers = self._network.parameters, range(1, len(self._network.layer_sizes))
        return [self._backend.to_numpy(parameters[f"{kind}{layer}"]).copy() for layer in layers for kind in ("W", "b")]


class Torch:
    """mode: eager, compiled (torch.compile, max-autotune), graph (the whole step as one CUDA graph)."""

    def __init__(
        self,
        start: list[np.ndarray],
        X: np.ndarray,
        Y: np.ndarray,
        optimizer: str,
        device: str,
        mode: str,
        precision: str = "float32",
    ) -> None:
        import torch

        self.name = f"PyTorch {mode}"
        self._torch, self._device = torch, device
        self._X, self._Y = torch.from_numpy(X).to(device), torch.from_numpy(Y).to(device)
        layers: list[Any] = []
        for W, b in zip(start[::2], start[1::2], strict=True):
            linear = torch.nn.Linear(W.shape[1], W.shape[0])
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(W))
                linear.bias.copy_(torch.from_numpy(b))
            layers += [linear, torch.nn.ReLU()]
        self._linears = layers[::2]
        model = torch.nn.Sequential(*layers[:-1]).to(device)
        capturable = {"capturable": True} if device == "cuda" else {}
        if optimizer == "adam":
            self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE["adam"], fused=True, **capturable)
        else:
            self._optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE["sgd"], fused=True)

        def loss(X: Any, Y: Any) -> Any:
            return torch.nn.functional.cross_entropy(model(X), Y)

        if precision == "bfloat16":
            loss_in_32 = loss

            def loss(X: Any, Y: Any) -> Any:
                # a cast weight is used once a step: there is nothing to keep, and what is kept cannot be recorded
                with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False):
                    return loss_in_32(X, Y)

        self._loss = torch.compile(loss, mode="max-autotune") if mode == "compiled" else loss
        self._one = self._step
        if mode == "graph":
            self._one = self._recorded()

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(self._X, self._Y).backward()
        self._optimizer.step()

    def _recorded(self) -> Any:
        """The step as a CUDA graph, the weights and the optimizer's state as they were before it was warmed up."""
        torch = self._torch
        before = [linear.weight.detach().clone() for linear in self._linears]
        biases = [linear.bias.detach().clone() for linear in self._linears]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._step()
        with torch.no_grad():
            for linear, W, b in zip(self._linears, before, biases, strict=True):
                linear.weight.copy_(W)
                linear.bias.copy_(b)
            for state in self._optimizer.state.values():
                for value in state.values():
                    value.zero_()
        return graph.replay

    def steps(self, n: int) -> None:
        one = self._one
        for _ in range(n):
            one()

    def wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def weights(self) -> list[np.ndarray]:
        tensors = [tensor for linear in self._linears for tensor in (linear.weight, linear.bias)]
        return [tensor.detach().cpu().numpy().copy() for tensor in tensors]


class Jax:
    """A jitted step over donated parameters and optimizer state."""

    name = "JAX jit"

    def __init__(
        self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, optimizer: str, precision: str = "float32"
    ) -> None:
        import jax
        import jax.numpy as jnp

        def linear(A: Any, W: Any, b: Any) -> Any:
            # without "highest" JAX rounds float32 to TF32 on a GPU; of bfloat16 it changes nothing
            return jnp.matmul(A, W.T, precision="highest") + b

        def loss(theta: list[Any], X: Any, Y: Any) -> Any:
            A, *theta = (array.astype(precision) for array in (X, *theta))
            for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
                A = jax.nn.relu(linear(A, W, b))
            Z = linear(A, theta[-2], theta[-1]).astype("float32")
            return -jnp.take_along_axis(jax.nn.log_softmax(Z), Y[:, None], axis=1).mean()

        def step(theta: list[Any], state: Any, X: Any, Y: Any) -> tuple[Any, Any]:
            grads = jax.grad(loss)(theta, X, Y)
            if optimizer == "sgd":
                return [p - LEARNING_RATE["sgd"] * g for p, g in zip(theta, grads, strict=True)], state
            m, v, t = state
            t = t + 1
            m = [BETA1 * a + (1 - BETA1) * g for a, g in zip(m, grads, strict=True)]
            v = [BETA2 * a + (1 - BETA2) * g * g for a, g in zip(v, grads, strict=True)]
            rate = LEARNING_RATE["adam"] / (1 - BETA1**t)
            root = jnp.sqrt(1 - BETA2**t)
            theta = [p - rate * a / (jnp.sqrt(b) / root + EPS) for p, a, b in zip(theta, m, v, strict=True)]
            return theta, (m, v, t)

        self._jax, self.plain = jax, step
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._theta = [jnp.array(array) for array in start]
        zeros = [jnp.zeros_like(array) for array in self._theta]
        self._state = (zeros, [jnp.zeros_like(array) for array in self._theta], jnp.zeros((), jnp.float32))
        self._X, self._Y = jnp.array(X), jnp.array(Y)

    def steps(self, n: int) -> None:
        theta, state = self._theta, self._state
        for _ in range(n):
            theta, state = self._step(theta, state, self._X, self._Y)
        self._theta, self._state = theta, state

    def wait(self) -> None:
        self._jax.block_until_ready(self._theta)

    def weights(self) -> list[np.ndarray]:
        return [np.array(array) for array in self._theta]


class TorchEpochs:
    """Epochs of the plain loop: bytes on the device, one permutation an epoch, fused Adam, no item() inside.

    mode "graph": the step of a full batch replayed on buffers that the rows are copied into.
    """

    def __init__(
        self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, batch_size: int, device: str, mode: str = "eager"
    ) -> None:
        self._one = Torch(start, X[:batch_size].astype(np.float32), Y[:batch_size], "adam", device, mode)
        self.name, self._batch_size, self._mode = self._one.name, batch_size, mode
        self._recorded_X, self._recorded_Y = self._one._X, self._one._Y
        self._X, self._Y = (self._one._torch.from_numpy(array).to(device) for array in (X, Y))

    def epoch(self) -> None:
        one, m = self._one, len(self._X)
        order = one._torch.randperm(m, device=self._X.device)
        for start in range(0, m, self._batch_size):
            rows = order[start : start + self._batch_size]
            X, Y = self._X.index_select(0, rows), self._Y.index_select(0, rows)
            if self._mode == "graph" and len(rows) == self._batch_size:
                self._recorded_X.copy_(X).mul_(1 / 255)
                self._recorded_Y.copy_(Y)
                one._one()
            else:
                one._X, one._Y = X.float().mul_(1 / 255), Y
                one._step()
        one.wait()


class JaxEpochs:
    """Epochs of a jitted step that takes its rows itself."""

    def __init__(self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, batch_size: int) -> None:
        self._one = Jax(start, X[:batch_size].astype(np.float32), Y[:batch_size], "adam")
        self.name, self._batch_size, jax = "JAX jit", batch_size, self._one._jax
        plain = self._one.plain

        def step(theta: Any, state: Any, X: Any, Y: Any, rows: Any) -> Any:
            return plain(theta, state, X[rows].astype("float32") * (1 / 255), Y[rows])

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._X, self._Y = jax.numpy.array(X), jax.numpy.array(Y)
        self._key = jax.random.PRNGKey(0)

    def epoch(self) -> None:
        one, m, jax = self._one, len(self._X), self._one._jax
        self._key, key = jax.random.split(self._key)
        order = jax.random.permutation(key, m)
        theta, state = one._theta, one._state
        for start in range(0, m, self._batch_size):
            rows = order[start : start + self._batch_size]
            theta, state = self._step(theta, state, self._X, self._Y, rows)
        one._theta, one._state = theta, state
        one.wait()


def contenders(
    sizes: list[int], m: int, optimizer: str, backend: str, modes: list[str], precision: str = "float32"
) -> tuple[list[Any], dict[str, str]]:
    """dnn first, then the peers of these modes, each checked to end where dnn ends after five steps; what failed, why.

    A peer that cannot be run here, or that computes something else, is left out and says why.
    """
    generator = np.random.default_rng(0)
    X = generator.standard_normal((m, sizes[0]), np.float32)
    Y = generator.integers(0, sizes[-1], m)
    device = "cuda" if backend == "cupy" else "cpu"
    every: list[Any] = [Dnn(sizes, X, Y, optimizer, backend, precision)]
    start = every[0].weights()
    failed: dict[str, str] = {}
    expected = _after_five_steps(every[0])
    for mode in modes:
        name = Jax.name if mode == "jax" else f"PyTorch {mode}"
        try:
            if mode == "jax":
                peer: Any = Jax(start, X, Y, optimizer, precision)
            else:
                peer = Torch(start, X, Y, optimizer, device, mode, precision)
            apart = difference(_after_five_steps(peer), expected, optimizer)
            if not apart < TOLERANCE[precision]:
                raise ValueError(f"computes something else: weights differ by {apart:.2g} after 5 steps")
        except Exception as error:  # another library's failure, whatever it is, is no reason to lose the rest
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name}: {failed[name]}", file=sys.stderr)
        else:
            every.append(peer)
    return every, failed


TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-3}
"""Of weights after five steps. In bfloat16 a gradient has three digits: the peers end up to 1e-3 from float32."""


def difference(weights: list[np.ndarray], expected: list[np.ndarray], optimizer: str) -> float:
    """How far these weights are from the expected."""
    differences = np.concatenate([np.abs(a - b).ravel() for a, b in zip(weights, expected, strict=True)])
    # Adam divides a gradient by its own size: in float32 rounding alone moves some weights by a whole step, and in
    # float64 the two agree to 1e-13. What is computed differently moves most of them
    return float(np.quantile(differences, 0.9) if optimizer == "adam" else differences.max())


def _after_five_steps(contender: Any) -> list[np.ndarray]:
    contender.steps(5)
    contender.wait()
    return contender.weights()


def precisions(backend: str) -> list[str]:
    """Those of float32 and bfloat16 that dnn has on this backend."""
    return ["float32", *(name for name in get_backend(backend).precisions if name == "bfloat16")]


def product_rate(backend: str, precision: str, n: int, rounds: int = 15) -> float:
    """TFLOP/s of a product of two (n, n) matrices: the median."""
    import time

    its, generator = get_backend(backend), np.random.default_rng(0)
    dtype = its.precisions.get(precision, np.dtype(np.float32))
    # of numbers as they come: zeros draw less power, and a card that draws less runs faster
    a, b = (its.asarray(generator.standard_normal((n, n), np.float32)).astype(dtype, copy=False) for _ in range(2))
    out = its.empty((n, n), a.dtype)
    rates = []
    for _ in range(rounds):
        its.synchronize()
        started = time.perf_counter()
        for _ in range(3):
            its.xp.dot(a, b, out=out)
        its.synchronize()
        rates.append(3 * 2 * n**3 / (time.perf_counter() - started) / 1e12)
    return float(np.median(rates[1:]))


def give_back_memory(backend: str) -> None:
    """What the contenders of one comparison held is free for those of the next."""
    gc.collect()
    if "torch" in sys.modules and backend == "cupy":
        sys.modules["torch"].cuda.empty_cache()
    if backend == "cupy":
        get_backend(backend).xp.get_default_memory_pool().free_all_blocks()


def installed_modes(backend: str) -> list[str]:
    """The peers that can be run on this backend's device: torch's modes and jax. Others are named on stderr."""
    from importlib.util import find_spec

    modes = []
    for name in ("torch", "jax"):
        if not find_spec(name):
            print(f"{name} is not installed: left out", file=sys.stderr)
        elif backend == "cupy" and not _has_gpu(name):
            print(f"{name} is installed but sees no GPU: left out", file=sys.stderr)
        elif name == "jax":
            modes.append("jax")
        else:
            modes += ["eager", "compiled", *(["graph"] if backend == "cupy" else [])]
    return modes


def _has_gpu(name: str) -> bool:
    if name == "torch":
        import torch

        return torch.cuda.is_available()
    import jax

    return jax.default_backend() == "gpu"
