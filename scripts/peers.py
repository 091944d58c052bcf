"""The contenders of the benchmarks: one training step on one batch, in dnn and in its peers at their fastest.

All start from the same weights and use the same batch; the loss is the mean cross-entropy of a softmax, or of a sigmoid
if the last layer has one unit.

precision   float32: products of float32 numbers, not rounded to TF32; float64; bfloat16: layers in bfloat16, float32
            master weights, in each library's own way

The CPU benchmark uses the engine's internals only through this module. `benchmark.py compare` also drives Dnn and
uncompiled() of other commits, with the arguments they have here except activation: later commits must keep them.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# JAX would preallocate three quarters of the card's memory
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import numpy as np
from turns import Contender, after_five_steps, turn

import dnn
from dnn.backends import get_backend, register, registered
from dnn.backends.codegen.threads import number_of_threads
from dnn.backends.numpy_backend import NumpyBackend
from dnn.batches import in_place
from dnn.data import prepare
from dnn.precision import check_precision, compute_dtype
from dnn.state import TrainingState
from dnn.step import GATHERED, IN_PLACE, TRAIN, Order, Step

LEARNING_RATE = {"sgd": 0.01, "adam": 0.001}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


UNCOMPILED = "numpy, uncompiled"


def compiles() -> bool:
    """Whether dnn's steps on NumPy are compiled here."""
    backend = get_backend("numpy")
    assert isinstance(backend, NumpyBackend)
    return backend.compiles()


def threads_of_dnn() -> int:
    """The number of threads for dnn's steps on NumPy."""
    return number_of_threads()


def uncompiled() -> str:
    """The name of a backend for NumPy without the compiled programs of the extra `fast`."""

    class Uncompiled(NumpyBackend):
        name = UNCOMPILED

        def compiles(self) -> bool:
            return False

    if UNCOMPILED not in registered():
        register(UNCOMPILED, Uncompiled)
    return UNCOMPILED


class Dnn(Contender):
    def __init__(
        self,
        sizes: list[int],
        X: np.ndarray,
        Y: np.ndarray,
        optimizer: str,
        backend: str,
        precision: str = "float32",
        activation: str = "relu",
    ) -> None:
        self.name = "dnn, plain" if backend == UNCOMPILED else f"dnn on {backend}"
        dtype = "float64" if precision == "float64" else "float32"
        self.network = dnn.Network(
            sizes, activation=activation, output=output_of(sizes), seed=1, dtype=dtype, backend=backend
        )
        self._backend = self.network.backend
        configuration = dnn.Adam(LEARNING_RATE["adam"]) if optimizer == "adam" else dnn.SGD(LEARNING_RATE["sgd"])
        reduced = check_precision(self.network.dtype, self._backend, precision)
        with self._backend.stream():
            examples = prepare(self.network, X, Y, fitting=True).on(self._backend)
            state = TrainingState(configuration, self.network.parameters)
            state.set_precision(reduced, self.network.parameters)
            dtype = compute_dtype(self.network.dtype, self._backend, reduced)
            examples = in_place(self._backend, examples, np.arange(len(X)), dtype)
            step = Step(self.network, examples, len(X), TRAIN, IN_PLACE, configuration, state.arrays, reduced)
            self._run = step.compile()

    def running(self) -> AbstractContextManager[object]:
        return self._backend.stream()

    def steps(self, n: int) -> None:
        run = self._run
        with self._backend.stream(), np.errstate(over="ignore"):
            for _ in range(n):
                run()

    def wait(self) -> None:
        self._backend.synchronize()

    def weights(self) -> list[np.ndarray]:
        parameters, layers = self.network.parameters, range(1, len(self.network.layer_sizes))
        return [self._backend.to_numpy(parameters[f"{kind}{layer}"]).copy() for layer in layers for kind in ("W", "b")]


def bare_steps(network: dnn.Network, X: np.ndarray, Y: np.ndarray, batch_size: int) -> Callable[[], None]:
    """One epoch of steps, including the selection of their rows, and nothing else."""
    examples = prepare(network, X, Y, fitting=True)
    twin = dnn.Network(network.layer_sizes, seed=network.seed)
    state = TrainingState(dnn.SGD(0.1), twin.parameters)
    steps, order = len(X) // batch_size, Order(np.arange(len(X)), np.zeros(1, np.int64))
    loading = GATHERED if steps > 1 else IN_PLACE
    with twin.backend.stream():
        step = Step(twin, examples, batch_size, TRAIN, loading, state.optimizer, state.arrays, order=order).compile()

    def epoch() -> None:
        order.position.fill(0)
        step(steps)

    return epoch


class Torch(Contender):
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
        two_classes = len(start[-1]) == 1
        self._X, self._Y = torch.from_numpy(X).to(device), torch.from_numpy(Y).to(device)
        if two_classes:
            self._Y = self._Y.to(self._X.dtype)
        layers: list[Any] = []
        for W, b in zip(start[::2], start[1::2], strict=True):
            linear = torch.nn.Linear(W.shape[1], W.shape[0], dtype=torch.from_numpy(W).dtype)
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
            if two_classes:
                return torch.nn.functional.binary_cross_entropy_with_logits(model(X)[:, 0], Y)
            return torch.nn.functional.cross_entropy(model(X), Y)

        if precision == "bfloat16":
            loss_in_32 = loss

            def loss(X: Any, Y: Any) -> Any:
                # no autocast cache: a cast weight is used once per step, and a cached one cannot be captured
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
        """The step as a CUDA graph, with weights and optimizer state restored after the warm-up."""
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


class Jax(Contender):
    """A jitted step over donated parameters and optimizer state."""

    name = "JAX jit"

    def __init__(
        self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, optimizer: str, precision: str = "float32"
    ) -> None:
        import jax
        import jax.numpy as jnp

        # JAX supports 64 bits only if enabled
        self._in_64 = (lambda: jax.enable_x64(True)) if precision == "float64" else nullcontext
        dtype = start[0].dtype

        def linear(A: Any, W: Any, b: Any) -> Any:
            # without "highest" JAX rounds float32 to TF32 on a GPU; for bfloat16 it makes no difference
            return jnp.matmul(A, W.T, precision="highest") + b

        def loss(theta: list[Any], X: Any, Y: Any) -> Any:
            A, *theta = (array.astype(precision) for array in (X, *theta))
            for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
                A = jax.nn.relu(linear(A, W, b))
            Z = linear(A, theta[-2], theta[-1]).astype(dtype)
            if Z.shape[1] == 1:
                return (jax.nn.softplus(Z[:, 0]) - Y * Z[:, 0]).mean()
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
        with self._in_64():
            self._theta = [jnp.array(array) for array in start]
            zeros = [jnp.zeros_like(array) for array in self._theta]
            self._state = (zeros, [jnp.zeros_like(array) for array in self._theta], jnp.zeros((), dtype))
            self._X, self._Y = jnp.array(X), jnp.array(Y)

    def steps(self, n: int) -> None:
        theta, state = self._theta, self._state
        with self._in_64():
            for _ in range(n):
                theta, state = self._step(theta, state, self._X, self._Y)
        self._theta, self._state = theta, state

    def wait(self) -> None:
        self._jax.block_until_ready(self._theta)

    def weights(self) -> list[np.ndarray]:
        return [np.array(array) for array in self._theta]


class PlainNumpy(Contender):
    """The assignment's step in plain NumPy, a direct transcription of its equations: one example per column."""

    name = "plain NumPy"

    def __init__(
        self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, optimizer: str, learning_rate: float | None = None
    ) -> None:
        self._W, self._b = start[::2], [b.reshape(-1, 1) for b in start[1::2]]
        K = len(start[-1])
        self._X = X.T
        self._Y = (Y.reshape(1, -1) if K == 1 else np.eye(K)[Y].T).astype(X.dtype)
        self._adam, self._learning_rate, self._t = optimizer == "adam", learning_rate or LEARNING_RATE[optimizer], 0
        self._v = [np.zeros_like(theta) for theta in self._W + self._b]
        self._s = [np.zeros_like(theta) for theta in self._W + self._b]

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step()

    def step(self) -> float:
        """The cost before the update."""
        W, b, Y, L, m = self._W, self._b, self._Y, len(self._W), self._X.shape[1]
        A, Z = [self._X], []
        for layer in range(L):
            Z.append(W[layer].dot(A[layer]) + b[layer])
            A.append(np.maximum(0, Z[layer]))
        if len(Y) == 1:
            AL = A[L] = 1 / (1 + np.exp(-Z[-1]))
            cost = (1.0 / m) * (-np.dot(Y, np.log(AL).T) - np.dot(1 - Y, np.log(1 - AL).T))
            dA = -(np.divide(Y, AL) - np.divide(1 - Y, 1 - AL))
            s = 1 / (1 + np.exp(-Z[-1]))
            dZ = dA * s * (1 - s)
        else:
            exps = np.exp(Z[-1] - Z[-1].max(axis=0))
            AL = A[L] = exps / exps.sum(axis=0)
            cost = -(1.0 / m) * np.sum(np.log(np.sum(AL * Y, axis=0)))
            dZ = AL - Y
        dW, db = [W[0]] * L, [b[0]] * L
        for layer in reversed(range(L)):
            if layer < L - 1:
                dZ = np.array(dA, copy=True)
                dZ[Z[layer] <= 0] = 0
            dW[layer] = 1.0 / m * np.dot(dZ, A[layer].T)
            db[layer] = 1.0 / m * np.sum(dZ, axis=1, keepdims=True)
            dA = np.dot(W[layer].T, dZ)
        theta = self._updated(W + b, dW + db)
        self._W, self._b = theta[:L], theta[L:]
        return float(np.squeeze(cost))

    def _updated(self, theta: list[np.ndarray], grad: list[np.ndarray]) -> list[np.ndarray]:
        rate = self._learning_rate
        if not self._adam:
            return [p - rate * g for p, g in zip(theta, grad, strict=True)]
        self._t += 1
        updated = []
        for i, (p, g) in enumerate(zip(theta, grad, strict=True)):
            self._v[i] = BETA1 * self._v[i] + (1 - BETA1) * g
            self._s[i] = BETA2 * self._s[i] + (1 - BETA2) * g**2
            v_corrected = self._v[i] / (1 - BETA1**self._t)
            s_corrected = self._s[i] / (1 - BETA2**self._t)
            updated.append(p - rate * v_corrected / (np.sqrt(s_corrected) + EPS))
        return updated

    def weights(self) -> list[np.ndarray]:
        return [theta for W, b in zip(self._W, self._b, strict=True) for theta in (W.copy(), b[:, 0].copy())]


class Sklearn(Contender):
    """MLPClassifier. n steps are one `fit` of n epochs of one batch, which continues from the current weights.

    That validates the data once for all n steps; partial_fit would do so at every step. A fit resets Adam's moments,
    which costs no time.
    """

    name = "scikit-learn"

    def __init__(self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, optimizer: str) -> None:
        from sklearn.neural_network import MLPClassifier

        K = len(start[-1])
        self._X, self._Y = X, Y if K == 1 else np.eye(K, dtype=np.int64)[Y]
        self._model = MLPClassifier(
            [len(b) for b in start[1:-1:2]],
            solver=optimizer,
            alpha=0.0,
            batch_size=len(X),
            learning_rate_init=LEARNING_RATE[optimizer],
            shuffle=False,
            momentum=0.0,
            nesterovs_momentum=False,
            n_iter_no_change=np.inf,
            warm_start=True,
            beta_1=BETA1,
            beta_2=BETA2,
            # it adds epsilon to the root of the uncorrected v: scaled to match the others in the first step
            epsilon=EPS * np.sqrt(1 - BETA2),
        )
        self.steps(1)  # allocates its arrays
        if K > 1:
            # it interprets one-hot targets as independent labels, and two classes as one sigmoid unit
            self._model.out_activation_ = "softmax"
        for its, theta in zip(self._model.coefs_ + self._model.intercepts_, start[::2] + start[1::2], strict=True):
            its[...] = theta.T

    def steps(self, n: int) -> None:
        self._model.max_iter = n
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning that n epochs were too few
            self._model.fit(self._X, self._Y)

    def weights(self) -> list[np.ndarray]:
        pairs = zip(self._model.coefs_, self._model.intercepts_, strict=True)
        return [theta for W, b in pairs for theta in (W.T.copy(), b.copy())]


class Product(Contender):
    """A product of two (n, n) matrices per step."""

    name = "product"

    def __init__(self, backend: str, precision: str, n: int) -> None:
        its, generator = get_backend(backend), np.random.default_rng(0)
        dtype = its.precisions.get(precision, np.dtype("float64" if precision == "float64" else "float32"))
        # random numbers: zeros draw less power, and a card that draws less runs faster
        host = (generator.standard_normal((n, n), np.float32) for _ in range(2))
        self._a, self._b = (its.asarray(array).astype(dtype, copy=False) for array in host)
        self._out = its.empty((n, n), dtype)
        self._backend = its
        self.flops = 2 * n**3

    def steps(self, n: int) -> None:
        for _ in range(n):
            self._backend.xp.dot(self._a, self._b, out=self._out)

    def wait(self) -> None:
        self._backend.synchronize()


class TorchEpochs:
    """Epochs of a plain loop: X on the device, one permutation per epoch, fused updates, no item() inside.

    X is bytes, a quarter of the memory traffic, or floats scaled beforehand. mode "graph": the captured step of a full
    batch, replayed on buffers into which the rows are copied.
    """

    def __init__(
        self,
        start: list[np.ndarray],
        X: np.ndarray,
        Y: np.ndarray,
        batch_size: int,
        device: str,
        mode: str = "eager",
        optimizer: str = "adam",
    ) -> None:
        self._one = Torch(start, X[:batch_size].astype(np.float32), Y[:batch_size], optimizer, device, mode)
        self.name, self._batch_size, self._mode = self._one.name, batch_size, mode
        self._recorded_X, self._recorded_Y = self._one._X, self._one._Y
        self._X, self._Y = (self._one._torch.from_numpy(array).to(device) for array in (X, Y))

    def weights(self) -> list[np.ndarray]:
        return self._one.weights()

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
                one._X, one._Y = X if X.is_floating_point() else X.float().mul_(1 / 255), Y
                one._step()
        one.wait()


class JaxEpochs:
    """Epochs of a jitted step that selects its own rows. X as in TorchEpochs."""

    def __init__(
        self, start: list[np.ndarray], X: np.ndarray, Y: np.ndarray, batch_size: int, optimizer: str = "adam"
    ) -> None:
        self._one = Jax(start, X[:batch_size].astype(np.float32), Y[:batch_size], optimizer)
        self.name, self._batch_size, jax = "JAX jit", batch_size, self._one._jax
        plain = self._one.plain

        def step(theta: Any, state: Any, X: Any, Y: Any, rows: Any) -> Any:
            batch = X[rows] if X.dtype == "float32" else X[rows].astype("float32") * (1 / 255)
            return plain(theta, state, batch, Y[rows])

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._X, self._Y = jax.numpy.array(X), jax.numpy.array(Y)
        self._key = jax.random.PRNGKey(0)

    def weights(self) -> list[np.ndarray]:
        return self._one.weights()

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
    """The contenders, dnn first, then the peers of these modes that agree with dnn after five steps; and the failures.

    modes: eager, compiled and graph (PyTorch), jax, sklearn, numpy, and plain, which is dnn without compiled programs.
    A peer that cannot run here, or computes something else, is left out and listed with the reason.
    """
    X, Y = batch(sizes, m, precision)
    device = "cuda" if backend == "cupy" else "cpu"
    every: list[Any] = [Dnn(sizes, X, Y, optimizer, backend, precision)]
    start = every[0].weights()
    failed: dict[str, str] = {}
    expected = after_five_steps(every[0])
    own = {
        "plain": ("dnn, plain", lambda: Dnn(sizes, X, Y, optimizer, uncompiled(), precision)),
        "numpy": (PlainNumpy.name, lambda: PlainNumpy(start, X, Y, optimizer)),
        "sklearn": (Sklearn.name, lambda: Sklearn(start, X, Y, optimizer)),
        "jax": (Jax.name, lambda: Jax(start, X, Y, optimizer, precision)),
    }
    for mode in modes:
        of_torch = f"PyTorch {mode}", lambda mode=mode: Torch(start, X, Y, optimizer, device, mode, precision)
        name, make = own.get(mode, of_torch)
        try:
            peer: Any = make()
            apart = difference(after_five_steps(peer), expected, optimizer)
            if not apart < TOLERANCE[precision]:
                raise ValueError(f"computes something else: weights differ by {apart:.2g} after 5 steps")
        except Exception as error:  # no failure of another library should lose the other results
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name}: {failed[name]}", file=sys.stderr)
        else:
            peer.apart = apart
            every.append(peer)
    return every, failed


def batch(sizes: Sequence[int], m: int, precision: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """m random examples for a network of these sizes."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((m, sizes[0]), np.float64 if precision == "float64" else np.float32)
    return X, generator.integers(0, max(sizes[-1], 2), m)


TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 3e-3}
"""Tolerance of weights after five steps. bfloat16 gradients have three digits: peers are up to 1e-3 from float32."""


def output_of(sizes: Sequence[int]) -> str:
    return "sigmoid" if sizes[-1] == 1 else "softmax"


def difference(weights: list[np.ndarray], expected: list[np.ndarray], optimizer: str) -> float:
    """The difference of these weights from the expected ones."""
    differences = np.concatenate([np.abs(a - b).ravel() for a, b in zip(weights, expected, strict=True)])
    # Adam normalizes gradients: in float32 rounding alone can move some weights by a whole step, while in float64 the
    # two agree to 1e-13. A different computation moves most of them
    return float(np.quantile(differences, 0.9) if optimizer == "adam" else differences.max())


def precisions(backend: str) -> list[str]:
    """float32, and bfloat16 if dnn supports it on this backend."""
    return ["float32", *(name for name in get_backend(backend).precisions if name == "bfloat16")]


def product_rate(backend: str, precision: str, n: int, rounds: int = 15) -> float:
    """The median rate of a product of two (n, n) matrices in TFLOP/s."""
    product = Product(backend, precision, n)
    rates = [product.flops / turn(product, 3) / 1e12 for _ in range(rounds)]
    return float(np.median(rates[1:]))


def give_back_memory(backend: str) -> None:
    """Release the memory held by the contenders of one comparison for those of the next."""
    gc.collect()
    if "torch" in sys.modules and backend == "cupy":
        sys.modules["torch"].cuda.empty_cache()
    if backend == "cupy":
        get_backend(backend).xp.get_default_memory_pool().free_all_blocks()


def installed_modes(backend: str, wanted: Sequence[str] = ("torch", "jax")) -> list[str]:
    """The modes of these peers that can run on this backend's device. The others are named on stderr."""
    from importlib.util import find_spec

    modes = []
    for name in wanted:
        if not find_spec(name):
            print(f"{name} is not installed: left out", file=sys.stderr)
        elif backend == "cupy" and not _has_gpu(name):
            print(f"{name} is installed but sees no GPU: left out", file=sys.stderr)
        elif name != "torch":
            modes.append(name)
        else:
            modes += ["eager", "compiled", *(["graph"] if backend == "cupy" else [])]
    return modes


def _has_gpu(name: str) -> bool:
    if name == "torch":
        import torch

        return torch.cuda.is_available()
    import jax

    return jax.default_backend() == "gpu"
