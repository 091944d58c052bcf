"""The proof on a GPU, stage by stage; called by gpu_check.sh.

suite    the test suite with DNN_REQUIRE_BACKENDS=numpy,cupy
parity   the published costs, a captured step against an eager one, memory over 1,000 fits, MNIST's accuracy
small    a step of 20-64-32-2 and of 784-256-128-10, against PyTorch and JAX
wide     784-1024-1024-10 and 256x8-10, against PyTorch and JAX, and the card's product rate
epoch    an epoch of MNIST's shape through fit
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import dnn
from backends import BackendUnavailableError, get_backend
from dnn.data import prepare
from dnn.step import TrainStep

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 15
RESULTS = ROOT / "scripts" / "results"


def main() -> None:
    stages: dict[str, Callable[[str], dict[str, Any]]] = {
        "suite": suite,
        "parity": parity,
        "small": small,
        "wide": wide,
        "epoch": epoch,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(stages)} (all)")
    parser.add_argument("--again", action="store_true", help="also what has a result for this commit")
    parser.add_argument("--rehearse", action="store_true", help="on numpy, in small; writes no results")
    given = parser.parse_args()
    if unknown := set(given.stages) - stages.keys():
        parser.error(f"no stage {', '.join(unknown)}: there are {', '.join(stages)}")
    backend = "numpy" if given.rehearse else "cupy"
    try:
        device = get_backend(backend).device
    except BackendUnavailableError as error:
        sys.exit(f"gpu_check: {error}")
    path = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    results = json.loads(path.read_text()) if path.exists() else {"device": device, "stages": {}}
    failed = []
    for name in given.stages or stages:
        done = results["stages"].get(name, {})
        if done.get("commit") == commit() and done.get("ok") and not given.again and not given.rehearse:
            print(f"{name}: has its result for {commit()}")
            continue
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        try:
            figures = stages[name](backend)
        except Exception as error:
            figures = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        figures = {"ok": True} | figures | {"seconds": round(time.perf_counter() - started, 1)}
        print(json.dumps(figures, indent=1))
        if not figures["ok"]:
            failed.append(name)
        if not given.rehearse:
            results["stages"][name] = {"commit": commit(), "date": str(datetime.date.today())} | versions() | figures
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        sys.exit(f"gpu_check: failed: {', '.join(failed)}")


def commit() -> str:
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or os.environ.get("DNN_COMMIT", "unknown")


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("numpy", "cupy-cuda12x", "cupy-cuda13x", "cupy", "nvmath-python", "torch", "jax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": found | get_backend("cupy").facts()}


# ------------------------------------------------------------------------------------------- correctness


def suite(backend: str) -> dict[str, Any]:
    environment = os.environ | {"DNN_REQUIRE_BACKENDS": f"numpy,{backend}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--deselect", "tests/test_scripts.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return {
        "ok": done.returncode == 0,
        "summary": lines[-1],
        "failed": [x for x in lines if x.startswith("FAILED")][:40],
    }


def parity(backend: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"captured against eager": captured_against_eager(backend)}
    figures["bytes held after 20 and after 1,000 fits"] = held = memory_over_fits(backend)
    figures["ok"] = figures["captured against eager"] == 0 and held[1] <= held[0]
    data = next((place for place in (ROOT.parent / "shared/data", ROOT / "shared/data") if place.is_dir()), None)
    if data is None:
        return figures | {"published costs": "the assignment's data is not here"}
    figures["MNIST's accuracy"] = mnist_accuracy(backend, data)
    figures["published costs differ by"] = costs = published_costs(backend, data)
    figures["ok"] = figures["ok"] and costs <= 1e-9
    return figures


def captured_against_eager(backend: str) -> float:
    """50 Adam steps with a changing learning rate and a smaller last batch: how far the two ways' weights are apart."""
    its = get_backend(backend)
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((58, 20)).astype(np.float32), generator.integers(0, 3, 58)
    weights = []
    for capture in (its.capture, lambda step: step):
        network = dnn.Network([20, 64, 32, 3], output="softmax", seed=1, backend=backend)
        with its.stream():
            update = dnn.Adam(0.01).bind(network.parameters)
            examples = prepare(network, X, Y, fitting=True)
            order = its.asarray(np.arange(58))
            steps = [TrainStep(network, update, examples, m) for m in (32, 26)]
            runs = [capture(step) for step in steps]
            for i in range(25):
                update.learning_rate = 0.01 / (1 + i)
                for step, run, rows in zip(steps, runs, (order[:32], order[32:]), strict=True):
                    step.load(rows)
                    run()
        its.synchronize()
        weights.append(its.to_numpy(network.parameters.flat).copy())
    return float(np.abs(weights[0] - weights[1]).max())


def memory_over_fits(backend: str) -> list[int]:
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((64, 8)), generator.integers(0, 2, 64)
    held = []
    for i in range(1000):
        dnn.Network([8, 4, 1], seed=i, backend=backend).fit(X, Y, epochs=5, batch_size=32, verbose=False)
        if i in (19, 999):
            xp = get_backend(backend).xp
            held.append(xp.get_default_memory_pool().total_bytes() if backend == "cupy" else 0)
    return held


def published_costs(backend: str, data: Path) -> float:
    from backends import use_backend
    from dnn import course

    published = json.loads((data / "application_four_layer.json").read_text())["costs"]
    with use_backend(backend):
        X, Y, *_ = course.load_data(data / "train_catvnoncat.h5", data / "test_catvnoncat.h5")
        X = X.reshape(X.shape[0], -1).T / 255.0
        _, costs = course.L_layer_model(X, Y, [12288, 20, 7, 5, 1], num_iterations=2500)
    return max(abs(cost - float(value)) for cost, value in zip(costs, published.values(), strict=True))


def mnist_accuracy(backend: str, data: Path) -> dict[str, list[float]] | str:
    """On the test part after three epochs, seeds 1 to 3: in every precision, and in float32 on the CPU."""
    if not (data / "mnist.h5").exists():
        return "mnist.h5 is not in the assignment's data"
    precisions = ["float32", *get_backend(backend).precisions]
    runs = [*((backend, precision) for precision in precisions), ("numpy", "float32")]
    accuracy: dict[str, list[float]] = {}
    with dnn.open_dataset(data / "mnist.h5") as mnist:
        for (name, precision), seed in product(runs, (1, 2, 3)):
            network = dnn.Network([784, 256, 128, 10], output="softmax", seed=seed, backend=name)
            train, test = mnist.train, mnist.test
            network.fit(train.X, train.Y, epochs=3, batch_size=128, verbose=False, precision=precision)
            measured = network.evaluate(test.X, test.Y)["accuracy"]
            accuracy.setdefault(f"{precision} on {name}", []).append(measured)
    return accuracy


# ------------------------------------------------------------------------------------------------- speed


def small(backend: str) -> dict[str, Any]:
    return steps_of(backend, [([20, 64, 32, 2], 32, 300), ([784, 256, 128, 10], 128, 300)])


def wide(backend: str) -> dict[str, Any]:
    runs = [([784, 1024, 1024, 10], 512, 100), ([*[256] * 9, 10], 256, 100)]
    if backend == "cupy":
        runs.append(([8192, 8192, 8192, 8192], 8192, 2))
    figures = steps_of(backend, runs)
    figures["product rate, TFLOP/s"] = product_rate(backend)
    return figures


def steps_of(backend: str, runs: list[tuple[list[int], int, int]]) -> dict[str, Any]:
    """Microseconds a step, in turns, n steps a turn; medians and quartiles, and each peer's median by dnn's."""
    from peers import contenders, installed_modes

    rehearsal = backend == "numpy"
    modes = [mode for mode in installed_modes(backend) if not (rehearsal and mode == "compiled")]
    figures: dict[str, Any] = {}
    for sizes, m, n in runs:
        for optimizer in ("sgd", "adam"):
            every = contenders(sizes, m, optimizer, backend, modes)
            n = 3 if rehearsal else n
            times: dict[str, list[float]] = {contender.name: [] for contender in every}
            for turn in range(ROUNDS):
                for contender in every if turn % 2 == 0 else reversed(every):
                    contender.wait()
                    started = time.perf_counter()
                    contender.steps(n)
                    contender.wait()
                    times[contender.name].append((time.perf_counter() - started) / n * 1e6)
            ours = float(np.median(times[every[0].name]))
            figures[f"{'-'.join(map(str, sizes))}, batch {m}, {optimizer}"] = {
                name: {
                    "us": [round(float(q), 1) for q in np.percentile(values, [25, 50, 75])],
                    "by dnn": round(float(np.median(values)) / ours, 3),
                }
                for name, values in times.items()
            }
    return figures


def product_rate(backend: str) -> float:
    its, n = get_backend(backend), 8192 if backend == "cupy" else 512
    a, b, out = (its.zeros((n, n), np.float32) for _ in range(3))
    rates = []
    for _ in range(ROUNDS):
        its.synchronize()
        started = time.perf_counter()
        for _ in range(3):
            its.xp.dot(a, b, out=out)
        its.synchronize()
        rates.append(3 * 2 * n**3 / (time.perf_counter() - started) / 1e12)
    return round(float(np.median(rates)), 2)


def epoch(backend: str) -> dict[str, Any]:
    """60,000 examples of 784 bytes, batches of 128, Adam, shuffled: through fit, and through the peers' loops."""
    from peers import Dnn, JaxEpochs, TorchEpochs, installed_modes

    generator = np.random.default_rng(0)
    m, sizes = (60_000 if backend == "cupy" else 2_000), [784, 256, 128, 10]
    X, Y = generator.integers(0, 256, (m, 784), np.uint8), generator.integers(0, 10, m)
    network = dnn.Network(sizes, output="softmax", seed=1, backend=backend)
    on_device = get_backend(backend).asarray(X)
    runs = {f"dnn on {backend}": lambda: network.fit(on_device, Y, epochs=1, batch_size=128, verbose=False)}
    start = Dnn(sizes, X[:128], Y[:128], "adam", backend).weights()
    modes = installed_modes(backend)
    if "eager" in modes:
        runs["PyTorch eager"] = TorchEpochs(start, X, Y, 128, "cuda" if backend == "cupy" else "cpu").epoch
    if "jax" in modes:
        runs["JAX jit"] = JaxEpochs(start, X, Y, 128).epoch
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs] * ROUNDS:
        started = time.perf_counter()
        runs[name]()
        times[name].append(1e3 * (time.perf_counter() - started))
    # the first of each compiles
    ours = float(np.median(times[f"dnn on {backend}"][1:]))
    return {
        name: {
            "ms": [round(float(q), 1) for q in np.percentile(values[1:], [25, 50, 75])],
            "by dnn": round(float(np.median(values[1:])) / ours, 3),
        }
        for name, values in times.items()
    }


if __name__ == "__main__":
    main()
