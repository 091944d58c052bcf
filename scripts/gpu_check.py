"""Verification on a GPU, stage by stage; called by gpu_check.sh.

suite    the test suite with DNN_REQUIRE_BACKENDS=numpy,cupy, file by file
parity   results, order and memory against NumPy, eager steps and the published figures
small    a step of 20-64-32-2 and of 784-256-128-10, against PyTorch and JAX
wide     784-1024-1024-10, 256x8-10 and three layers of 8192, against PyTorch and JAX, and the card's product rate
epoch    an epoch of MNIST's shape with fit, data on the device or fed from the host, against the peers' loops
table    writes the available figures to README.md; every run ends with it

A stage consists of parts, and each part's figures are written to the results file as it ends. A run that was
interrupted, or ran out of time, is resumed by the same command.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from facts import ROOT, NotMeasured, commit, data_with, flops, in_words, versions_of
from tables import Figures

import dnn
from dnn import course
from dnn.activations import ACTIVATIONS
from dnn.backends import BackendUnavailableError, get_backend, use_backend, use_compiled_steps
from dnn.batches import Batches
from dnn.data import prepare
from dnn.files import write_whole
from dnn.heads import HEADS
from dnn.memory import GB, training_bytes
from dnn.optimizers import OPTIMIZERS
from dnn.precision import check_precision
from dnn.state import TrainingState
from dnn.step import TRAIN, Step

README = ROOT / "README.md"
RESULTS = ROOT / "scripts" / "results"
ROUNDS = 15
SEEDS = 3

Parts = Iterator[tuple[str, Callable[[], Figures]]]
"""A stage's parts: the name of each and the function that measures it. Figures with "ok": False are a failure."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}, table (all)")
    parser.add_argument("--again", action="store_true", help="also measure parts that have a result for this commit")
    parser.add_argument("--minutes", type=float, default=8, help="start no part of a stage after this time (8)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(scripts/results)")
    parser.add_argument("--rehearse", action="store_true", help="run on numpy, in small; writes nothing")
    given = parser.parse_args(arguments)
    if unknown := set(given.stages) - {*STAGES, "table"}:
        parser.error(f"no stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)} and table")
    if given.stages == ["table"]:
        write_table(given.results, README)
        return
    backend = "numpy" if given.rehearse else "cupy"
    try:
        device = get_backend(backend).device
    except BackendUnavailableError as error:
        sys.exit(f"gpu_check: {error}")
    results = Results(None if given.rehearse else given.results, device)
    stages = [stage for stage in given.stages or STAGES if stage != "table"]
    unfinished = [stage for stage in stages if not run(stage, backend, results, given.again, given.minutes)]
    if not given.rehearse:
        write_table(given.results, README)
    of_this_commit = {name: part for name, part in results.parts.items() if part["commit"] == results.commit}
    for name, part in of_this_commit.items():
        if "not measured" in part:
            print(f"gpu_check: {name}: not measured: {part['not measured']}", file=sys.stderr)
    failed = [name for name, part in of_this_commit.items() if not part["ok"]]
    if failed:
        sys.exit(f"gpu_check: failed: {'; '.join(failed)}")
    if unfinished:
        sys.exit(f"gpu_check: out of time in {', '.join(unfinished)}: run the same command again to continue")


def run(stage: str, backend: str, results: Results, again: bool, minutes: float) -> bool:
    """Measure the parts of this stage that have no result yet; return whether all are done."""
    began = time.monotonic()
    versions: Figures | None = None
    for part, measure in STAGES[stage](backend):
        name = f"{stage}: {part}"
        if results.has(name) and not again:
            print(f"{name}: already measured for {results.commit}")
            continue
        if time.monotonic() - began > 60 * minutes:
            return False
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        try:
            figures = measure()
        except NotMeasured as why:
            figures = {"not measured": str(why)}
        except Exception as error:
            figures = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        figures = {"ok": True} | figures | {"seconds": round(time.perf_counter() - started, 1)}
        print(json.dumps(figures, indent=1), flush=True)
        versions = versions or versions_of(backend)
        results.add(name, figures | {"versions": versions})
    return True


class Results:
    """The figures of one device, in a file that is rewritten after every part; without a folder, in memory only."""

    def __init__(self, folder: Path | None, device: str) -> None:
        self.commit = commit()
        self._path = folder and folder / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
        there = self._path and self._path.exists()
        self._all: Figures = json.loads(self._path.read_text()) if self._path and there else {"device": device}
        self.parts: dict[str, Figures] = self._all.setdefault("parts", {})

    def has(self, name: str) -> bool:
        part = self.parts.get(name, {})
        return bool(part.get("ok")) and "not measured" not in part and part.get("commit") == self.commit

    def add(self, name: str, figures: Figures) -> None:
        self.parts[name] = {"commit": self.commit, "date": str(datetime.date.today())} | figures
        if self._path:
            write_whole({str(self._path): (json.dumps(self._all, indent=1) + "\n").encode()})


# ------------------------------------------------------------------------------------------- correctness


def suite(backend: str) -> Parts:
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    for path in paths if backend == "cupy" else paths[:1]:
        if path.name != "test_scripts.py":  # it tests the set-up commands, which need a network
            yield path.name, lambda path=path: tests_of(path, backend)


def tests_of(path: Path, backend: str) -> Figures:
    environment = os.environ | {"DNN_REQUIRE_BACKENDS": f"numpy,{backend}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40]
    return {"ok": done.returncode == 0, "summary": lines[-1] if lines else "no output", "failed": failed}


def parity(backend: str) -> Parts:
    yield "engine against NumPy", lambda: engine_against_numpy(backend)
    yield "weights and shuffles", lambda: weights_and_shuffles(backend)
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


def weights_of(network: dnn.Network) -> np.ndarray:
    return network.backend.to_numpy(network.parameters.flat).copy()


def engine_against_numpy(backend: str) -> Figures:
    """A fit in float64 for each output, optimizer and activation, with batches of 16 and a smaller last one."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((58, 20))
    Y = {
        "sigmoid": generator.integers(0, 2, 58),
        "softmax": generator.integers(0, 3, 58),
        "linear": X[:, :3] - X[:, 3:6],
    }
    furthest = {}
    for output, optimizer, activation in product(HEADS, OPTIMIZERS, ACTIVATIONS):
        trained = []
        for name in (backend, "numpy"):
            units = 1 if output == "sigmoid" else 3
            network = dnn.Network([20, 16, 8, units], activation, output, seed=1, dtype="float64", backend=name)
            history = network.fit(X, Y[output], epochs=3, batch_size=16, optimizer=optimizer, verbose=False)
            trained.append((weights_of(network), np.array(history.history["loss"])))
        furthest[f"{output}, {optimizer}, {activation}"] = max(apart(*pair) for pair in zip(*trained, strict=True))
    worst = max(furthest, key=furthest.__getitem__)
    return within("weights and losses differ by", furthest[worst], 1e-12) | {"most": worst, "cases": len(furthest)}


def weights_and_shuffles(backend: str) -> Figures:
    """The initial weights of every initializer and the order of three epochs: the same as NumPy's, bit for bit."""
    from dnn.initializers import INITIALIZERS

    different = []
    for initializer, dtype in product(INITIALIZERS, ("float32", "float64")):
        ours, expected = (
            weights_of(dnn.Network([20, 16, 3], "relu", "softmax", initializer, 1, dtype, backend=name)).tobytes()
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
        taken.append(get_backend(backend).to_numpy(batches._order).tolist())

    with mock.patch.object(Batches, "reorder", noting):
        X = np.random.default_rng(0).standard_normal((1000, 4))
        network = dnn.Network([4, 3, 1], seed=7, backend=backend)
        network.fit(X, X[:, 0] > 0, epochs=3, batch_size=64, validation_split=0.1, verbose=False)
    return taken


def captured_against_eager(backend: str) -> Figures:
    """50 Adam steps with a changing learning rate and a smaller last batch, in every precision: equal bit for bit."""
    its = get_backend(backend)
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((58, 20)).astype(np.float32), generator.integers(0, 3, 58)
    differ: dict[str, float] = {}
    for precision in ("float32", *its.precisions):
        weights = []
        for captured in (True, False):
            network = dnn.Network([20, 64, 32, 3], output="softmax", seed=1, backend=backend)
            reduced = check_precision(network.dtype, its, precision)
            with its.stream(), use_compiled_steps(captured):
                examples = prepare(network, X, Y, fitting=True).on(its)
                state = TrainingState(dnn.Adam(0.01), network.parameters)
                state.set_precision(reduced, network.parameters)
                order = its.asarray(np.arange(58))
                steps = []
                for rows in (order[:32], order[32:]):
                    step = Step(
                        network, examples, len(rows), TRAIN, optimizer=state.optimizer, state=state.arrays,
                        precision=reduced,
                    )  # fmt: skip
                    steps.append(step.compile())
                    step.array("rows")[...] = rows
                for i in range(25):
                    state.learning_rate = 0.01 / (1 + i)
                    for step in steps:
                        step()
            its.synchronize()
            weights.append(weights_of(network))
        differ[precision] = float(np.abs(weights[0] - weights[1]).max())
    # NumPy's compiled steps sum in another order than NumPy: only a CUDA graph replays exactly the same operations
    return within("weights differ by", max(differ.values()), 1e-5 if backend == "numpy" else 0) | {"each": differ}


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
    m = 20_000 if backend == "cupy" else 1_000
    Y = generator.integers(0, 10, m)
    different, fed = [], []
    for dtype in ("uint8", "float32"):
        X = generator.integers(0, 256, (m, 784), np.uint8).astype(dtype)
        weights = []
        for feeding in (True, False):
            network = dnn.Network([784, 64, 10], output="softmax", seed=1, input_scale=1 / 255, backend=backend)
            limit = limit_of_feeding(network, X, Y, 256) if feeding else None
            with mock.patch.object(its, "feeder", wraps=its.feeder) as feeder:
                network.fit(X, Y, epochs=2, batch_size=256, memory_limit=limit, verbose=False)
            fed += [dtype] * feeder.call_count
            weights.append(weights_of(network))
        if weights[0].tobytes() != weights[1].tobytes():
            different.append(dtype)
    # on NumPy the device is the host, and nothing is fed
    return {"ok": not different and (backend == "numpy" or len(fed) == 2), "fed": fed, "different": different}


def limit_of_feeding(network: dnn.Network, X: np.ndarray, Y: np.ndarray, batch_size: int) -> float:
    """A memory_limit that fits the training, but not X as well, unless X is no larger than the feeding buffers."""
    examples = prepare(network, X, Y, fitting=True)
    return (1 + training_bytes(network, examples, np.arange(examples.m), batch_size, dnn.Adam(), fed=True)) / GB


def memory_over_fits(backend: str) -> Figures:
    """The size of CuPy's memory pool and the memory in use on the card, after 20 fits and after 1,000."""
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((64, 8)), generator.integers(0, 2, 64)
    first, last = (20, 1000) if backend == "cupy" else (2, 4)
    held = []
    for i in range(1, last + 1):
        dnn.Network([8, 4, 1], seed=i, backend=backend).fit(X, Y, epochs=5, batch_size=32, verbose=False)
        if i in (first, last):
            held.append(bytes_held(backend))
    (pool, taken), (pool_after, taken_after) = held
    # graphs are allocated outside the pool, and the driver allocates in units of 2 MB
    ok = pool_after <= pool and taken_after - taken <= 16 * 2**20
    return {"ok": ok, "bytes of the pool": [pool, pool_after], "bytes of the card": [taken, taken_after]}


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


# ------------------------------------------------------------------------------------------------- speed


def small(backend: str) -> Parts:
    return steps_of(backend, [([20, 64, 32, 2], 32, 300), ([784, 256, 128, 10], 128, 300)])


def wide(backend: str) -> Parts:
    runs = [([784, 1024, 1024, 10], 512, 100), ([*[256] * 9, 10], 256, 100)]
    if backend == "cupy":
        runs.append(([8192] * 4, 8192, 2))
    return steps_of(backend, runs, shares=True)


def steps_of(backend: str, runs: list[tuple[list[int], int, int]], shares: bool = False) -> Parts:
    """A part per network, optimizer and precision, n steps per turn; `shares`: also as shares of the product rate."""
    from peers import precisions

    for (sizes, m, n), optimizer, precision in product(runs, ("sgd", "adam"), precisions(backend)):
        arguments = (backend, sizes, m, n if backend == "cupy" else 3, optimizer, precision, shares)
        yield f"{in_words(sizes)}, batch {m}, {optimizer}, {precision}", lambda a=arguments: compare_steps(*a)


def compare_steps(
    backend: str, sizes: list[int], m: int, n: int, optimizer: str, precision: str, shares: bool
) -> Figures:
    """Microseconds per step, measured in turns: medians, quartiles, and the ratio of each peer's median to dnn's."""
    from peers import contenders, give_back_memory, installed_modes, product_rate

    rehearsal = backend != "cupy"
    modes = [mode for mode in installed_modes(backend) if not (rehearsal and mode == "compiled")]
    every, failed = contenders(sizes, m, optimizer, backend, modes, precision)
    times: dict[str, list[float]] = {contender.name: [] for contender in every}
    for turn in range(3 if rehearsal else ROUNDS):
        for contender in every if turn % 2 == 0 else reversed(every):
            contender.wait()
            started = time.perf_counter()
            contender.steps(n)
            contender.wait()
            times[contender.name].append((time.perf_counter() - started) / n * 1e6)
    figures: Figures = {"us a step": summary(times)}
    if failed:
        figures["failed"] = failed
    del every, contender
    give_back_memory(backend)
    if shares:
        rate = product_rate(backend, precision, 256 if rehearsal else 8192, 3 if rehearsal else ROUNDS)
        ours = next(iter(figures["us a step"].values()))["median"]
        figures["product rate, TFLOP/s"] = round(rate, 2)
        figures["share of it"] = round(flops(sizes, m) / (ours * 1e-6) / 1e12 / rate, 3)
        give_back_memory(backend)
    return figures


def summary(times: dict[str, list[float]]) -> dict[str, Figures]:
    """By name: median, quartiles, and the ratio of the median to that of the first, dnn."""
    ours = float(np.median(next(iter(times.values()))))
    return {
        name: {
            "median": round(float(np.median(values)), 2),
            "quartiles": [round(float(q), 2) for q in np.percentile(values, [25, 75])],
            "by dnn": round(float(np.median(values)) / ours, 3),
        }
        for name, values in times.items()
    }


def epoch(backend: str) -> Parts:
    yield "MNIST's shape, batch 128, adam, float32", lambda: compare_epochs(backend)


def compare_epochs(backend: str) -> Figures:
    """60,000 examples of 784 bytes, batches of 128, Adam, shuffled: with fit, and with the peers' loops."""
    from peers import Dnn, Jax, JaxEpochs, TorchEpochs, give_back_memory, installed_modes

    generator = np.random.default_rng(0)
    on_gpu = backend == "cupy"
    m, sizes, rounds = (60_000 if on_gpu else 1_000), [784, 256, 128, 10], (ROUNDS if on_gpu else 2)
    X, Y = generator.integers(0, 256, (m, 784), np.uint8), generator.integers(0, 10, m)
    network = dnn.Network(sizes, output="softmax", seed=1, backend=backend)
    on_device = get_backend(backend).asarray(X)
    settings: Figures = {"epochs": 1, "batch_size": 128, "verbose": False}
    runs: dict[str, Callable[[], object]] = {f"dnn on {backend}": lambda: network.fit(on_device, Y, **settings)}
    if on_gpu:
        fed = dnn.Network(sizes, output="softmax", seed=1, backend=backend)
        limit = limit_of_feeding(fed, X, Y, 128)
        runs["dnn, fed from the host"] = lambda: fed.fit(X, Y, memory_limit=limit, **settings)
    start = Dnn(sizes, X[:128].astype(np.float32), Y[:128], "adam", backend).weights()
    failed: dict[str, str] = {}
    for mode in installed_modes(backend):
        if mode == "compiled":
            continue
        name = Jax.name if mode == "jax" else f"PyTorch {mode}"
        try:
            device = "cuda" if on_gpu else "cpu"
            peer = JaxEpochs(start, X, Y, 128) if mode == "jax" else TorchEpochs(start, X, Y, 128, device, mode)
            peer.epoch()
        except Exception as error:  # as in peers.contenders
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            runs[name] = peer.epoch
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs] * (1 + rounds):
        started = time.perf_counter()
        runs[name]()
        times[name].append(1e3 * (time.perf_counter() - started))
    figures: Figures = {"ms an epoch": summary({name: values[1:] for name, values in times.items()})}
    runs.clear()
    give_back_memory(backend)
    return figures | ({"failed": failed} if failed else {})


STAGES: dict[str, Callable[[str], Parts]] = {
    "suite": suite,
    "parity": parity,
    "small": small,
    "wide": wide,
    "epoch": epoch,
}


# ------------------------------------------------------------------------------------------------- table

BEGIN, END = "<!-- speed on a GPU: begin -->", "<!-- speed on a GPU: end -->"
COLUMNS = ["dnn", "PyTorch eager", "PyTorch compiled", "PyTorch graph", "JAX jit"]


def write_table(folder: Path, readme: Path) -> None:
    """Write the figures of every device with results between the two marks in the README, if there are any."""
    texts = [table(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    between = "\n\n".join(text for text in texts if text)
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        sys.exit(f"gpu_check: {readme}: expected the marks {BEGIN} and {END} around the table: add them")
    text = f"{before}{BEGIN}\n{between}\n{END}{after}" if between else f"{before}{BEGIN}\n{END}{after}"
    if text != readme.read_text():
        write_whole({str(readme): text.encode()})


def table(results: Figures) -> str:
    """A Markdown table, empty without measured times. Times are medians; peers' come with their ratio to dnn's."""
    rows, parts = [], []
    for name, part in results["parts"].items():
        measured = next((part[unit] for unit in ("us a step", "ms an epoch") if unit in part), None)
        if measured is None or not part["ok"]:
            continue
        parts.append(part)
        unit = "µs" if "us a step" in part else "ms"
        # "dnn on cupy" is the column dnn
        times = {"dnn" if key.startswith("dnn on ") else key: value for key, value in measured.items()}
        share = f"{part['share of it']:.0%}" if "share of it" in part else ""
        rows.append([name.split(": ", 1)[1], *(cell(times.get(column), unit) for column in COLUMNS), share])
        if fed := times.get("dnn, fed from the host"):
            rows.append([f"{rows[-1][0]}, fed from the host", cell(fed, unit), *[""] * len(COLUMNS)])
    if not rows:
        return ""
    head = ["a step or an epoch of", *COLUMNS, "of the product rate"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([caption(results["device"], parts), "", *("| " + " | ".join(line) + " |" for line in lines)])


def cell(figures: Figures | None, unit: str) -> str:
    if figures is None:
        return ""
    ratio = "" if figures["by dnn"] == 1 else f" ({figures['by dnn']:.2f})"
    return f"{figures['median']:.4g} {unit}{ratio}"


def caption(device: str, parts: list[Figures]) -> str:
    commits = ", ".join(dict.fromkeys(part["commit"] for part in parts))
    dates = sorted({part["date"] for part in parts})
    versions = parts[-1]["versions"]
    names = ["python", "numpy", "CuPy", "nvmath-python", "driver", "torch", "jax"]
    with_ = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return (
        f"{device}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {commits}; {with_}. "
        "Medians; in brackets, as a multiple of dnn's."
    )


if __name__ == "__main__":
    main()
