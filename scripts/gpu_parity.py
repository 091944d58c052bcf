"""The stages suite and parity of gpu_check.py: tests, and results against NumPy's and each other's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import cycle, product
from typing import Any
from unittest import mock

import numpy as np
from facts import ROOT, data_with, in_words
from gpu_capture import NETWORKS, capturing, fitted, one_by_one, precisions_of, weights_of
from tables import Figures

import dnn
from dnn import course
from dnn.activations import ACTIVATIONS
from dnn.backends import get_backend, use_backend, use_compiled_steps
from dnn.batches import Batches
from dnn.data import prepare
from dnn.heads import HEADS
from dnn.memory import GB, training_bytes
from dnn.optimizers import OPTIMIZERS

SEEDS = 3

Parts = Iterator[tuple[str, Callable[[], Figures]]]
"""A stage's parts: the name of each and the function that measures it. Figures with "ok": False are a failure."""


def suite(backend: str) -> Parts:
    """The tests of what depends on the backend; on NumPy those of one file."""
    if backend == "numpy":
        yield "tests of the backend", lambda: tests_of(backend, "numpy", "tests/test_step.py")
    else:
        yield "tests of the backend", lambda: tests_of(backend, "cupy or cuda or cublas", "tests")


def tests_of(backend: str, chosen: str, path: str) -> Figures:
    """What pytest says of the tests whose names, files or parameters match `chosen`."""
    command = [sys.executable, "-m", "pytest", "-v", "-rfEs", "--tb=short", "-p", "no:cacheprovider"]
    command += [path, "-k", chosen]
    command += [f"--ignore=tests/{name}" for name in ("test_gpu_check.py", "test_scripts.py")]
    # our own plugins alone: a warning of one that the machine happens to have would be an error
    environment = os.environ | {"DNN_REQUIRE_BACKENDS": f"numpy,{backend}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command += ["-p", "_hypothesis_pytestplugin"]
    # each worker has a context on the card
    workers = min(8, (os.cpu_count() or 1) // 2)
    if find_spec("xdist") and workers > 1:
        command += ["-p", "xdist.plugin", "-n", str(workers)]
    pytest = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = pytest.communicate()
    except BaseException:
        # the time is up: an end to the workers too, and a hint where they were
        os.killpg(pytest.pid, signal.SIGKILL)
        print("\n".join(pytest.communicate()[0].splitlines()[-10:]))
        raise
    lines = output.strip().splitlines() or ["no output"]
    return {
        "ok": pytest.returncode == 0 and " passed" in lines[-1],
        "summary": lines[-1].strip("= "),
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
        "skipped": [line for line in lines if line.startswith("SKIPPED")],
    }


def parity(backend: str) -> Parts:
    yield "engine against NumPy", lambda: engine_against_numpy(backend)
    yield "larger steps against NumPy", lambda: larger_against_numpy(backend)
    yield "weights and shuffles", lambda: weights_and_shuffles(backend)
    yield "captured against one by one", lambda: captured_against_one_by_one(backend)
    yield "captured against eager", lambda: captured_against_eager(backend)
    yield "a second fit with other shapes", lambda: second_fit(backend)
    yield "fed from the host against on the device", lambda: fed_against_on_device(backend)
    yield "memory over 1,000 fits", lambda: memory_over_fits(backend)
    yield "published costs", lambda: published_costs(backend)
    yield "MNIST's accuracy", lambda: mnist_accuracy(backend)


def within(name: str, value: float, bound: float) -> Figures:
    return {"ok": bool(value <= bound), name: value, "allowed": bound}


def apart(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected value; infinity if it is not finite."""
    difference = float(np.abs(values - expected).max() / np.abs(expected).max())
    return difference if np.isfinite(difference) else float("inf")


WITH_LAYERS: dict[str, Any] = {"activation": "relu", "norm": "batch", "dropout": 0.2}


def engine_against_numpy(backend: str) -> Figures:
    """Fits in float64 with batches of 16 and a smaller last one.

    For each output and optimizer with one activation, for each activation with one of them in turn, and for each output
    a network with batch norm and dropout.
    """
    generator = np.random.default_rng(0)
    X = generator.standard_normal((58, 20))
    Y = {
        "sigmoid": generator.integers(0, 2, 58),
        "softmax": generator.integers(0, 3, 58),
        "linear": X[:, :3] - X[:, 3:6],
    }
    turns = zip(cycle(HEADS), cycle(OPTIMIZERS), ACTIVATIONS)  # noqa: B905: as many as there are activations
    cases: dict[str, tuple[str, Any, dict[str, Any]]] = {
        f"{output}, {optimizer}, {activation}": (output, optimizer, {"activation": activation})
        for output, optimizer, activation in (*product(HEADS, OPTIMIZERS, ["tanh"]), *turns)
    }
    # with its usual eps a rounding of a tiny gradient, as those that a batch norm follows are, is a difference of 1e-12
    gentle = dnn.AdamW(weight_decay=0.1, eps=1e-3)
    cases |= {f"{output}, batch norm, dropout, adamw": (output, gentle, WITH_LAYERS) for output in HEADS}
    furthest = {}
    for case, (output, optimizer, settings) in cases.items():
        trained = []
        for name in (backend, "numpy"):
            units = 1 if output == "sigmoid" else 3
            network = dnn.Network([20, 16, 8, units], output=output, seed=1, dtype="float64", backend=name, **settings)
            with capturing(name):
                history = network.fit(X, Y[output], epochs=3, batch_size=16, optimizer=optimizer, verbose=False)
            trained.append((weights_of(network), np.array(history.history["loss"])))
        furthest[case] = max(apart(*pair) for pair in zip(*trained, strict=True))
    worst = max(furthest, key=furthest.__getitem__)
    return within("weights and losses differ by", furthest[worst], 1e-12) | {"most": worst, "cases": len(furthest)}


def weights_and_shuffles(backend: str) -> Figures:
    """The initial weights of every initializer and the order of three epochs: the same as NumPy's, bit for bit."""
    from dnn.initializers import INITIALIZERS

    different = []
    for initializer, dtype in product(INITIALIZERS, ("float32", "float64")):
        ours, expected = (
            weights_of(
                dnn.Network([20, 16, 3], output="softmax", initializer=initializer, seed=1, dtype=dtype, backend=name)
            ).tobytes()
            for name in (backend, "numpy")
        )
        if ours != expected:
            different.append(f"{initializer}, {dtype}")
    if rows_taken(backend) != rows_taken("numpy"):
        different.append("shuffles")
    return {"ok": not different, "different": different}


def rows_taken(backend: str) -> list[list[int]]:
    """The order in which the device visits the examples, epoch by epoch."""
    taken = []
    reorder = Batches.reorder

    def noting(batches: Batches, rows: np.ndarray) -> None:
        reorder(batches, rows)
        order = getattr(batches._order, "rows", batches._order)
        taken.append(get_backend(backend).to_numpy(order).tolist())

    with mock.patch.object(Batches, "reorder", noting):
        X = np.random.default_rng(0).standard_normal((1000, 4))
        network = dnn.Network([4, 3, 1], seed=7, backend=backend)
        network.fit(X, X[:, 0] > 0, epochs=3, batch_size=64, validation_split=0.1, verbose=False)
    return taken


def larger_against_numpy(backend: str) -> Figures:
    """The same in float64 for steps that take more than one block: with the products in their kernel, and without."""
    # with its usual eps Adam turns a rounding of a tiny gradient into a difference of 1e-12
    optimizers = {"momentum": dnn.Momentum, "adam": partial(dnn.Adam, eps=1e-3)}
    differ = {}
    for network, name in product(NETWORKS[1:] if backend != "numpy" else NETWORKS[:1], optimizers):
        with capturing(backend):
            ours = fitted(backend, *network, "float64", optimizers[name])
        differ[f"{in_words(network[0])}, {name}"] = apart(ours, fitted("numpy", *network, "float64", optimizers[name]))
    return within("weights differ by", max(differ.values()), 1e-12) | {"each": differ}


def captured_against_one_by_one(backend: str) -> Figures:
    """Fits of every kind of step, in every precision: a graph gives the same bits as its kernels one by one."""
    different, cases = [], kinds_of_steps(backend)
    for sizes, batch_size, precision in cases:
        with capturing(backend):
            ours = fitted(backend, sizes, batch_size, precision, dnn.Adam)
        with one_by_one(), capturing(backend, graphs=False):
            expected = fitted(backend, sizes, batch_size, precision, dnn.Adam)
        if ours.tobytes() != expected.tobytes():
            different.append(f"{in_words(sizes)}, {precision}")
    return {"ok": not different, "different": different, "cases": len(cases)}


def captured_against_eager(backend: str) -> Figures:
    """Fits of captured steps and of steps that run operation by operation, of every kind and in every precision."""
    differ, too_far = {}, []
    for sizes, batch_size, precision in kinds_of_steps(backend):
        with use_compiled_steps(True), capturing(backend):
            ours = fitted(backend, sizes, batch_size, precision)
        with use_compiled_steps(False), capturing(backend, kernels=False, graphs=False):
            expected = fitted(backend, sizes, batch_size, precision)
        name = f"{in_words(sizes)}, {precision}"
        differ[name] = apart(ours, expected)
        if not differ[name] <= EAGER_TOLERANCE[precision]:
            too_far.append(name)
    return {"ok": not too_far, "weights differ by": differ, "too far": too_far}


EAGER_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""The order of the sums differs; in few digits, so does what is rounded up and what down."""


def kinds_of_steps(backend: str) -> list[tuple[list[int], int, str]]:
    networks = NETWORKS if backend != "numpy" else NETWORKS[:1]
    return [(*network, precision) for network, precision in product(networks, precisions_of(backend))]


def second_fit(backend: str) -> Figures:
    """Consecutive fits of one network with different numbers of examples, batch sizes and optimizers."""
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((90, 20)), generator.integers(0, 3, 90)
    weights = []
    for name in (backend, "numpy"):
        network = dnn.Network([20, 16, 3], output="softmax", seed=1, dtype="float64", backend=name)
        for m, batch_size, optimizer in ((90, 32, "adam"), (45, 16, "adam"), (60, 60, "momentum"), (90, 7, "momentum")):
            network.fit(X[:m], Y[:m], epochs=4, batch_size=batch_size, optimizer=optimizer, verbose=False)
        weights.append(weights_of(network))
    return within("weights differ by", apart(*weights), 1e-12)


def fed_against_on_device(backend: str) -> Figures:
    """The same training with batches of bytes and of floats fed from the host: equal bit for bit."""
    its, generator = get_backend(backend), np.random.default_rng(0)
    m, batch_size = (20_000, 256) if backend == "cupy" else (1_000, 64)
    Y = generator.integers(0, 10, m)
    different, fed = [], []
    for dtype in ("uint8", "float32"):
        X = generator.integers(0, 256, (m, 784), np.uint8).astype(dtype)
        weights = []
        for feeding in (True, False):
            network = dnn.Network([784, 64, 10], output="softmax", seed=1, input_scale=1 / 255, backend=backend)
            limit = limit_of_feeding(network, X, Y, batch_size) if feeding and backend != "numpy" else None
            with mock.patch.object(its, "feeder", wraps=its.feeder) as feeder:
                network.fit(X, Y, epochs=2, batch_size=batch_size, memory_limit=limit, verbose=False)
            fed += [dtype] * feeder.call_count
            weights.append(weights_of(network))
        if weights[0].tobytes() != weights[1].tobytes():
            different.append(dtype)
    # on NumPy the device is the host, and nothing is fed
    return {"ok": not different and (backend == "numpy" or len(fed) == 2), "fed": fed, "different": different}


def limit_of_feeding(network: dnn.Network, X: np.ndarray, Y: np.ndarray, batch_size: int) -> float:
    """A memory_limit that fits the training, but not X as well, unless X is no larger than the feeding buffers."""
    examples = prepare(network, X, Y, fitting=True)
    return (1 + training_bytes(network, examples, np.arange(examples.m), batch_size, dnn.FitSettings(), fed=True)) / GB


def memory_over_fits(backend: str) -> Figures:
    """The size of CuPy's memory pool and the memory in use on the card, after 20 fits and after 1,000.

    Or after as many as two minutes allow, and at least 100.
    """
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((64, 8)), generator.integers(0, 2, 64)
    first, least, last = (20, 100, 1000) if backend != "numpy" else (2, 3, 4)
    held, began = [], time.monotonic()
    for i in range(1, last + 1):
        dnn.Network([8, 4, 1], seed=i, backend=backend).fit(X, Y, epochs=5, batch_size=32, verbose=False)
        enough = i == last or (i >= least and time.monotonic() - began > 120)
        if i == first or enough:
            held.append(bytes_held(backend))
        if enough:
            break
    (pool, taken), (pool_after, taken_after) = held
    # graphs are allocated outside the pool, and the driver allocates in units of 2 MB
    ok = pool_after <= pool and taken_after - taken <= 16 * 2**20
    return {"ok": ok, "fits": i, "bytes of the pool": [pool, pool_after], "bytes of the card": [taken, taken_after]}


def bytes_held(backend: str) -> tuple[int, int]:
    if backend != "cupy":
        return 0, 0
    xp = get_backend(backend).xp
    free, total = xp.cuda.runtime.memGetInfo()
    return xp.get_default_memory_pool().total_bytes(), total - free


def published_costs(backend: str) -> Figures:
    files = "application_four_layer.json", "train_catvnoncat.h5", "test_catvnoncat.h5"
    folder = data_with(*files)
    published = json.loads((folder / files[0]).read_text())["costs"]
    iterations = 2500 if backend == "cupy" else 101
    with use_backend(backend):
        X, Y, *_ = course.load_data(folder / files[1], folder / files[2])
        X = X.reshape(X.shape[0], -1).T / 255.0
        _, costs = course.L_layer_model(X, Y, [12288, 20, 7, 5, 1], num_iterations=iterations)
    pairs = list(zip(costs, published.values(), strict=backend == "cupy"))
    furthest = max(abs(cost - float(value)) for cost, value in pairs)
    return within("costs differ by", furthest, 1e-9) | {"costs": len(pairs)}


def mnist_accuracy(backend: str) -> Figures:
    """The test accuracy after three epochs: in float32 here and on the CPU, and in every other precision here.

    The mean over seeds of each is compared with the CPU's.
    """
    folder = data_with("mnist.h5")
    part, seeds, epochs = (slice(None), SEEDS, 3) if backend == "cupy" else (slice(2000), 1, 1)
    with dnn.open_dataset(folder / "mnist.h5") as data:
        X, Y, X_test, Y_test = data.train.X[part], data.train.Y[part], data.test.X[part], data.test.Y[part]
    runs = [(name, "float32") for name in dict.fromkeys((backend, "numpy"))]
    runs += [(backend, precision) for precision in get_backend(backend).precisions]
    accuracy: dict[str, list[float]] = {}
    for (name, precision), seed in product(runs, range(1, seeds + 1)):
        network = dnn.Network([784, 256, 128, 10], output="softmax", seed=seed, backend=name)
        network.fit(X, Y, epochs=epochs, batch_size=128, optimizer="adam", verbose=False, precision=precision)
        measured = network.evaluate(X_test, Y_test)["accuracy"]
        accuracy.setdefault(f"{name}, {precision}", []).append(measured)
    expected = np.mean(accuracy["numpy, float32"])
    differences = [abs(float(np.mean(accuracies) - expected)) for accuracies in accuracy.values()]
    return within("accuracies differ by", round(max(differences), 6), 0.002) | {"accuracy": accuracy}
