"""Times the engine against its peers, on the same arrays, in one run, interleaved.

    python scripts/benchmark.py            all sections
    python scripts/benchmark.py peers      fit against a plain PyTorch loop (where torch is installed)
    python scripts/benchmark.py overhead   what fit adds to its steps, an epoch
    python scripts/benchmark.py course     the assignment's two models against its plain NumPy version

Every comparison runs its two sides in turn, pair after pair, and gives the median and the quartiles of each side and
of their ratio (above 1: dnn is faster). Each section runs twice: a figure that does not come back is noise.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import dnn
from dnn.step import TrainStep

PAIRS = 15


def main() -> None:
    sections: dict[str, Callable[[int], None]] = {"peers": peers, "overhead": overhead, "course": course}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(sections)} (all)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of runs a comparison ({PAIRS})")
    given = parser.parse_args()
    if unknown := set(given.sections) - sections.keys():
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(sections)}")
    print(f"{datetime.date.today()}, {platform.platform()}, {processor()}, {os.cpu_count()} cores")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, dnn {dnn.__version__}")
    for name in given.sections or sections:
        for turn in (1, 2):
            print(f"\n{name}, turn {turn} of 2", flush=True)
            sections[name](given.pairs)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compare(title: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, their_name: str) -> float:
    """Run the two in turn; print both sides' quartiles and the ratio's; the ratio's median."""
    ours(), theirs()
    times = np.empty((pairs, 2))
    for pair in range(pairs):
        # who goes first changes: the machine's clock and caches drift
        sides = [(0, ours), (1, theirs)]
        for side, run in sides if pair % 2 == 0 else reversed(sides):
            started = time.perf_counter()
            run()
            times[pair, side] = time.perf_counter() - started
    ratios = quartiles(times[:, 1] / times[:, 0])
    print(
        f"  {title}: dnn {spread(1e3 * times[:, 0])} ms, {their_name} {spread(1e3 * times[:, 1])} ms, "
        f"ratio {ratios[1]:.2f} [{ratios[0]:.2f}, {ratios[2]:.2f}]",
        flush=True,
    )
    return float(ratios[1])


def quartiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, [25, 50, 75])


def spread(values: np.ndarray) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


# ------------------------------------------------------------------------------------------------ peers

# layer sizes, batch size, examples, optimizers
PEER_RUNS = [
    ([784, 256, 128, 10], 128, 60_000, ("adam", "sgd")),
    ([20, 64, 32, 2], 32, 6_400, ("adam", "sgd")),
]


def peers(pairs: int) -> None:
    try:
        import torch
        from threadpoolctl import threadpool_info
    except ImportError as missing:
        print(f"  skipped: {missing.name} is not installed")
        return
    ours = {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}
    print(f"  PyTorch {torch.__version__} on {torch.get_num_threads()} threads, NumPy's BLAS on {ours}")
    if ours != {torch.get_num_threads()}:
        sys.exit("the two sides have different threads: set OMP_NUM_THREADS and OPENBLAS_NUM_THREADS alike")
    for sizes, batch_size, m, optimizers in PEER_RUNS:
        generator = np.random.default_rng(0)
        X = generator.random((m, sizes[0]), np.float32)
        Y = generator.integers(0, sizes[-1], m)
        for name in optimizers:
            network = dnn.Network(sizes, output="softmax", seed=1)
            optimizer = dnn.Adam(1e-3) if name == "adam" else dnn.SGD(0.01)
            loop = TorchLoop(torch, network, X, Y, batch_size, name)
            furthest = after_five_steps(network, optimizer, TorchLoop(torch, network, X, Y, batch_size, name), X, Y)
            if not furthest < 1e-4:
                sys.exit(f"the two sides compute different things: weights differ by {furthest} after 5 steps")
            compare(
                f"{'-'.join(map(str, sizes))}, batch {batch_size}, {name}, one epoch of {m} examples "
                f"(weights after 5 steps differ by {furthest:.1e})",
                lambda: network.fit(X, Y, epochs=1, batch_size=batch_size, optimizer=optimizer, verbose=False),  # noqa: B023
                loop.epoch,
                pairs,
                "PyTorch",
            )


class TorchLoop:
    """The loop a good PyTorch user writes: tensors in memory, one permutation an epoch, fused Adam, no item()."""

    def __init__(
        self, torch: Any, network: dnn.Network, X: np.ndarray, Y: np.ndarray, batch_size: int, optimizer: str
    ) -> None:
        self.torch, self.batch_size = torch, batch_size
        self.X, self.Y = torch.from_numpy(X), torch.from_numpy(Y)
        layers: list[Any] = []
        for layer, (n_in, n_out) in enumerate(zip(network.layer_sizes, network.layer_sizes[1:], strict=False), start=1):
            linear = torch.nn.Linear(n_in, n_out)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(network.parameters[f"W{layer}"].copy()))
                linear.bias.copy_(torch.from_numpy(network.parameters[f"b{layer}"].copy()))
            layers += [linear, torch.nn.ReLU()]
        self.linears = layers[::2]
        self.model = torch.nn.Sequential(*layers[:-1])
        parameters = self.model.parameters()
        if optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=0.01, fused=True)
        self.cross_entropy = torch.nn.functional.cross_entropy

    def step(self, rows: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.cross_entropy(self.model(self.X.index_select(0, rows)), self.Y.index_select(0, rows))
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self) -> float:
        m = len(self.X)
        order, total = self.torch.randperm(m), self.torch.zeros(())
        for start in range(0, m, self.batch_size):
            rows = order[start : start + self.batch_size]
            total += self.step(rows) * len(rows)
        return float(total) / m


def after_five_steps(network: dnn.Network, optimizer: Any, loop: TorchLoop, X: np.ndarray, Y: np.ndarray) -> float:
    """How far the two sides' weights are apart after five steps from the same start."""
    n = 5 * loop.batch_size
    twin = dnn.Network(network.layer_sizes, output="softmax", seed=network.seed)
    twin.fit(X[:n], Y[:n], epochs=1, batch_size=loop.batch_size, optimizer=optimizer, shuffle=False, verbose=False)
    for start in range(0, n, loop.batch_size):
        loop.step(loop.torch.arange(start, start + loop.batch_size))
    return max(
        float(np.abs(linear.weight.detach().numpy() - twin.parameters[f"W{layer}"]).max())
        for layer, linear in enumerate(loop.linears, start=1)
    )


# --------------------------------------------------------------------------------------------- overhead


def overhead(pairs: int) -> None:
    """fit's time an epoch less that of the same bare steps; full batch, and shuffled batches."""
    generator = np.random.default_rng(0)
    X = generator.random((400, 2))
    Y = (X.sum(axis=1) > 1).astype(np.int64)
    epochs = 2_000
    for batch_size in (400, 100):
        network = dnn.Network([2, 20, 3, 1], seed=1)
        steps = bare_steps(network, X, Y, batch_size)
        extra = np.empty(pairs)
        for pair in range(pairs):
            started = time.perf_counter()
            network.fit(X, Y, epochs=epochs, batch_size=batch_size, optimizer=dnn.SGD(0.1), verbose=False)
            between = time.perf_counter()
            for _ in range(epochs):
                steps()
            extra[pair] = (between - started) - (time.perf_counter() - between)
        print(
            f"  2-20-3-1 on 400 examples, batch {batch_size}: fit adds {spread(1e6 * extra / epochs)} us an epoch",
            flush=True,
        )
    network, started = dnn.Network([2, 20, 3, 1], seed=1), time.perf_counter()
    network.fit(X, Y, epochs=30_000, batch_size=400, optimizer=dnn.SGD(0.1), verbose=False)
    print(f"  2-20-3-1 on 400 examples, full batch, 30,000 epochs: {time.perf_counter() - started:.2f} s", flush=True)


def bare_steps(network: dnn.Network, X: np.ndarray, Y: np.ndarray, batch_size: int) -> Callable[[], None]:
    """One epoch of steps and of taking their rows, and nothing else."""
    from dnn.data import prepare

    examples = prepare(network, X, Y, fitting=True)
    twin = dnn.Network(network.layer_sizes, seed=network.seed)
    step = TrainStep(twin, dnn.SGD(0.1).bind(twin.parameters), examples, batch_size)
    rows = [np.arange(start, start + batch_size) for start in range(0, len(X), batch_size)]
    step.load(rows[0])

    def epoch() -> None:
        for batch in rows:
            if len(rows) > 1:
                step.load(batch)
            step()

    return epoch


# ----------------------------------------------------------------------------------------------- course


def course(pairs: int) -> None:
    """The two models of the assignment on arrays of the cat data's shape; 100 iterations a run, 3 pairs at least."""
    from dnn.course import L_layer_model, two_layer_model

    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (12288, 209)) / 255
    Y = generator.integers(0, 2, (1, 209)).astype(np.float64)
    for title, model, sizes in (
        ("two_layer_model [12288, 7, 1]", two_layer_model, [12288, 7, 1]),
        ("L_layer_model [12288, 20, 7, 5, 1]", L_layer_model, [12288, 20, 7, 5, 1]),
    ):
        initializer = "course_small" if len(sizes) == 3 else "course_scaled"
        compare(
            f"{title}, 100 iterations",
            lambda: model(X, Y, sizes, num_iterations=100),  # noqa: B023
            lambda: plain_model(X, Y, sizes, initializer, 100),  # noqa: B023
            pairs,
            "plain NumPy",
        )


def plain_model(X: np.ndarray, Y: np.ndarray, sizes: list[int], initializer: str, iterations: int) -> list[float]:
    """The assignment's model as its equations read, in NumPy and nothing else."""
    draws, L, m = np.random.RandomState(1), len(sizes) - 1, X.shape[1]
    W, b = {}, {}
    for layer in range(1, L + 1):
        W[layer] = draws.randn(sizes[layer], sizes[layer - 1])
        W[layer] = W[layer] * 0.01 if initializer == "course_small" else W[layer] / np.sqrt(sizes[layer - 1])
        b[layer] = np.zeros((sizes[layer], 1))
    costs = []
    for i in range(iterations):
        A, Z = {0: X}, {}
        for layer in range(1, L + 1):
            Z[layer] = W[layer].dot(A[layer - 1]) + b[layer]
            A[layer] = 1 / (1 + np.exp(-Z[layer])) if layer == L else np.maximum(0, Z[layer])
        AL = A[L]
        cost = (1.0 / m) * (-np.dot(Y, np.log(AL).T) - np.dot(1 - Y, np.log(1 - AL).T))
        dA = -(np.divide(Y, AL) - np.divide(1 - Y, 1 - AL))
        dW, db = {}, {}
        for layer in range(L, 0, -1):
            if layer == L:
                s = 1 / (1 + np.exp(-Z[layer]))
                dZ = dA * s * (1 - s)
            else:
                dZ = np.array(dA, copy=True)
                dZ[Z[layer] <= 0] = 0
            dW[layer] = 1.0 / m * np.dot(dZ, A[layer - 1].T)
            db[layer] = 1.0 / m * np.sum(dZ, axis=1, keepdims=True)
            dA = np.dot(W[layer].T, dZ)
        for layer in range(1, L + 1):
            W[layer] = W[layer] - 0.0075 * dW[layer]
            b[layer] = b[layer] - 0.0075 * db[layer]
        if i % 100 == 0:
            costs.append(float(np.squeeze(cost)))
    return costs


if __name__ == "__main__":
    main()
