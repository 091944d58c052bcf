"""The stages nodes, small, wide, epoch and compiled of gpu_check.py: nodes a step, and times against the peers'."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import product

import numpy as np
from facts import NotMeasured, flops, in_words
from gpu_capture import capturing, nodes, precisions_of
from gpu_parity import Parts, limit_of_feeding
from tables import Figures

import dnn
from dnn.backends import get_backend

ROUNDS = 15

SMALL = [([20, 64, 32, 2], 32, 300), ([784, 256, 128, 10], 128, 300)]
WIDE = [([784, 1024, 1024, 10], 512, 100), ([*[256] * 9, 10], 256, 100), ([8192] * 4, 8192, 2)]
"""Layer sizes, batch, and steps per turn."""
COUNTED = [784, 256, 128, 10]


def count_nodes(backend: str) -> Parts:
    yield f"{in_words(COUNTED)}, batch 128", lambda: nodes_of_a_step(backend)


def nodes_of_a_step(backend: str) -> Figures:
    """The kernels and products of a captured step, for SGD and Adam in every precision."""
    from peers import Dnn, batch

    found = {}
    for optimizer, precision in product(("sgd", "adam"), precisions_of(backend)):
        with capturing(backend):
            contender = Dnn(COUNTED, *batch(COUNTED, 128, precision), optimizer, backend, precision)
            contender.steps(5)
            contender.wait()
        found[f"{optimizer}, {precision}"] = {} if backend == "numpy" else nodes(contender._run)
    return {"ok": backend == "numpy" or all(sum(of_step.values()) for of_step in found.values()), "nodes a step": found}


def small(backend: str) -> Parts:
    yield from steps_of(backend, SMALL)


def wide(backend: str) -> Parts:
    yield from steps_of(backend, WIDE if backend == "cupy" else WIDE[:-1], shares=True)


def compiled(backend: str) -> Parts:
    """The networks of both again, against torch.compile, which takes a minute for some."""
    if backend == "cupy" and find_spec("torch"):
        yield from steps_of(backend, [*SMALL, *WIDE], torch_compile=True)


def steps_of(
    backend: str, runs: list[tuple[list[int], int, int]], shares: bool = False, torch_compile: bool = False
) -> Parts:
    """A part per network, optimizer and precision, n steps per turn; `shares`: also as shares of the product rate."""
    from peers import precisions

    for (sizes, m, n), optimizer, precision in product(runs, ("sgd", "adam"), precisions(backend)):
        step = (backend, sizes, m, n if backend == "cupy" else 3, optimizer, precision)
        yield (
            f"{in_words(sizes)}, batch {m}, {optimizer}, {precision}",
            lambda step=step: compare_steps(*step, shares, torch_compile),
        )


@cache
def peers_here(backend: str) -> tuple[list[str], Figures]:
    """The modes of the peers that run on this device; the peers that do not, with the reason."""
    from peers import installed_modes

    modes = installed_modes(backend)
    reasons = {name: "sees no GPU" if find_spec(name) else "not installed" for name in ("torch", "jax")}
    without = {"torch": reasons["torch"]} if "eager" not in modes else {}
    return modes, without | ({"jax": reasons["jax"]} if "jax" not in modes else {})


def compare_steps(
    backend: str,
    sizes: list[int],
    m: int,
    n: int,
    optimizer: str,
    precision: str,
    shares: bool,
    torch_compile: bool,
) -> Figures:
    """Microseconds per step, measured in turns: medians, quartiles, and the ratio of each peer's median to dnn's."""
    from peers import contenders, give_back_memory, product_rate

    rehearsal = backend != "cupy"
    modes, without = peers_here(backend)
    modes = [mode for mode in modes if (mode == "compiled") == torch_compile]
    if torch_compile and not modes:
        raise NotMeasured(f"torch: {without['torch']}")
    with capturing(backend):
        every, failed = contenders(sizes, m, optimizer, backend, modes, precision)
        times: dict[str, list[float]] = {contender.name: [] for contender in every}
        for turn in range(3 if rehearsal else ROUNDS):
            for contender in every if turn % 2 == 0 else reversed(every):
                contender.wait()
                started = time.perf_counter()
                contender.steps(n)
                contender.wait()
                times[contender.name].append((time.perf_counter() - started) / n * 1e6)
    figures: Figures = {"us a step": summary(times)} | left_out(without, failed)
    del every, contender
    give_back_memory(backend)
    if shares:
        rate = product_rate(backend, precision, 256 if rehearsal else 8192, 3 if rehearsal else ROUNDS)
        ours = next(iter(figures["us a step"].values()))["median"]
        figures["product rate, TFLOP/s"] = round(rate, 2)
        figures["share of it"] = round(flops(sizes, m) / (ours * 1e-6) / 1e12 / rate, 3)
        give_back_memory(backend)
    return figures


def left_out(without: Figures, failed: Figures) -> Figures:
    """The peers that were not measured: those that are not here, and those that failed, with the reasons."""
    return {"left out": without | failed} if without or failed else {}


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
    from peers import Dnn, Jax, JaxEpochs, TorchEpochs, give_back_memory

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
    modes, without = peers_here(backend)
    for mode in modes:
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
    with capturing(backend):
        for name in [*runs] * (1 + rounds):
            started = time.perf_counter()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - started))
    figures: Figures = {"ms an epoch": summary({name: values[1:] for name, values in times.items()})}
    runs.clear()
    give_back_memory(backend)
    return figures | left_out(without, failed)
