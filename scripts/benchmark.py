"""Time the engine against its peers on the CPU, interleaved in one run on the same arrays.

    python scripts/benchmark.py            all sections but compare
    python scripts/benchmark.py steps      a training step of each network, against the peers
    python scripts/benchmark.py epochs     fit on MNIST (mnist.h5, found as in the tests), against the peers' loops
    python scripts/benchmark.py growth     a step as a function of width, depth and batch size
    python scripts/benchmark.py threads    a step on 1, 2, ... threads, compared with JAX
    python scripts/benchmark.py overhead   overhead of fit over its bare steps, per epoch
    python scripts/benchmark.py course     the assignment's two models against its plain NumPy version
    python scripts/benchmark.py start      start-up time of the first fit in a new process, and of import dnn
    python scripts/benchmark.py activations     a step with each activation
    python scripts/benchmark.py parts      a step with batch norm, dropout, gelu and AdamW, and of eight members
    python scripts/benchmark.py compare COMMIT  the rows of steps, for the working tree and another commit

Contenders: dnn, with the compiled programs of the extra `fast` if installed; dnn, plain, without them; plain NumPy, a
direct transcription of the assignment's equations; and the --peers that are installed: scikit-learn's MLPClassifier,
PyTorch (eager and compiled, fused updates; the faster counts) and JAX (jitted, donated buffers). Each is first checked
to reach the same weights as dnn in five steps from the same start. Then they take turns, round by round, on the same
number of threads and cores, each starting from idle. Reported are medians with quartiles, and medians of the ratios
within a round (above 1: dnn is faster), next to NumPy's matrix-product rate, measured in the same rounds. With --busy
N, other processes keep N threads busy during the measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare as comparison
import fresh
import numpy as np
from facts import NotMeasured, commit, data_with, flops, in_words, versions_of
from parts import parts_of
from peers import (
    LEARNING_RATE,
    Dnn,
    JaxEpochs,
    PlainNumpy,
    Product,
    TorchEpochs,
    bare_steps,
    batch,
    compiles,
    contenders,
    give_back_memory,
    installed_modes,
    threads_of_dnn,
    uncompiled,
)
from tables import (
    Figures,
    aligned,
    middle,
    name_of,
    number,
    quartiles,
    spread,
    summary,
    time_in_words,
)
from threadpoolctl import threadpool_info, threadpool_limits
from turns import Calls, Contender, take_turns

import dnn
from dnn.errors import DnnError
from dnn.files import write_whole

ROUNDS = 15
PEERS = ("torch", "jax", "sklearn")
OPTIMIZERS = ("sgd", "adam")

# layer sizes, batch size, dtype
NETWORKS = [
    ([20, 64, 32, 2], 32, "float32"),
    ([784, 256, 128, 10], 128, "float32"),
    ([784, 1024, 1024, 10], 512, "float32"),
    ([*[256] * 9, 10], 256, "float32"),
    ([12288, 20, 7, 5, 1], 209, "float64"),
    ([512, 512, 512, 10], 32, "float32"),
    ([4096, 4096, 10], 64, "float32"),
]


def main() -> None:
    given = parse(None)
    cores = hold_cores(given.threads)
    of_peers = {"steps", "epochs", "parts"} & set(given.sections)
    hold_threads(given.threads, given.peers if of_peers else ())
    results: Figures = {
        "date": str(datetime.date.today()),
        "machine": platform.platform(),
        "processor": processor(),
        "cores": cores,
        "threads": given.threads,
        "busy processes": given.busy,
        "commit": commit(),
        "versions": versions_of("numpy"),
        "BLAS": [
            f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip() for pool in pools()
        ],
        "compiled programs": compiles(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
        "rounds": given.rounds,
        "sections": {},
    }
    write(results, given.json)  # report an unwritable file now
    print(header(results), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that child processes are ended, too
    with busy(given.busy):
        for name in given.sections:
            for i in range(2 if name in TWICE else 1):
                print(f"\n{name}" + (f", turn {i + 1} of 2" if name in TWICE else ""), flush=True)
                try:
                    figures: Any = SECTIONS[name](given)
                except NotMeasured as why:
                    print(f"  left out: {why}")
                    figures = {"not measured": str(why)}
                results["sections"].setdefault(name, []).append(figures)
                write(results, given.json)


def write(results: Figures, path: str | None) -> None:
    if path:
        try:
            write_whole({path: (json.dumps(results, indent=1) + "\n").encode()})
        except DnnError as error:
            sys.exit(f"benchmark.py: {error}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all but compare)")
    add("--peers", default=",".join(PEERS), metavar="LIST", help="a subset of torch,jax,sklearn, or none (all)")
    add("--optimizer", choices=OPTIMIZERS, help="(both)")
    add("--networks", metavar="LIST", help="such as 20-64-32-2,256x8-10, for steps, compare and threads (all)")
    add("--threads", type=int, metavar="N", help="threads of every contender (one per core)")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help=f"turns of each contender ({ROUNDS})")
    add("--busy", type=int, default=0, metavar="N", help="processes that each keep a thread busy (none)")
    add("--plain", action="store_true", help="compare without compiled steps")
    add("--json", metavar="FILE", help="write all figures, with versions, machine and date")
    given = parser.parse_intermixed_args(arguments)
    given.commit = None
    if "compare" in given.sections:
        after = given.sections.index("compare") + 1
        if after == len(given.sections):
            parser.error("compare needs a commit to compare with: compare COMMIT")
        try:
            given.commit = comparison.commit_of(given.sections.pop(after))
        except NotMeasured as why:
            parser.error(str(why))
    elif given.plain:
        parser.error("--plain is an option of compare")
    given.sections = given.sections or [name for name in SECTIONS if name != "compare"]
    given.peers = [] if given.peers == "none" else given.peers.split(",")
    given.optimizers = [given.optimizer] if given.optimizer else list(OPTIMIZERS)
    given.networks = given.networks.split(",") if given.networks else []
    for word, asked, there in (
        ("section", given.sections, SECTIONS),
        ("peer", given.peers, PEERS),
        ("network", given.networks, [in_words(sizes) for sizes, _, _ in NETWORKS]),
    ):
        if unknown := [name for name in asked if name not in there]:
            parser.error(f"no {word} {', '.join(unknown)}: choose from {', '.join(there)}")
    if given.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {given.rounds}")
    if given.busy < 0:
        parser.error(f"--busy must be at least 0, got {given.busy}")
    there = number_of_cores()
    if given.threads is None:
        given.threads = there
    if not 1 <= given.threads <= there:
        parser.error(f"--threads must be from 1 to the {there} cores here, got {given.threads}")
    return given


# ---------------------------------------------------------------------------------------------- the machine


def number_of_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hold_cores(threads: int) -> int:
    """Restrict this process to as many cores as threads, and return how many there were.

    XLA uses one thread per core and has no setting for it. Libraries already loaded have created their threads, so the
    process restarts itself.
    """
    there = number_of_cores()
    if threads < there:
        if not hasattr(os, "sched_setaffinity"):
            sys.exit(
                f"benchmark.py: this system cannot limit JAX to {threads} of its {there} cores: leave out --threads"
            )
        os.environ[CORES] = str(there)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.execv(sys.executable, sys.orig_argv)
    return int(os.environ.pop(CORES, there))


CORES = "DNN_BENCHMARK_CORES"
"""Environment variable: the number of cores before the process restricted itself to some of them."""


def hold_threads(threads: int, peers: Sequence[str]) -> None:
    """Set the same number of threads on all sides, and check it."""
    os.environ["DNN_NUM_THREADS"] = str(threads)
    sides = {"dnn": threads_of_dnn(), "cores": number_of_cores()}
    # load all of them now, so that no library starts its own threads later
    for name in peers:
        if find_spec(name):
            __import__({"sklearn": "sklearn.neural_network"}.get(name, name))
    threadpool_limits(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
        sides["PyTorch"] = torch.get_num_threads()
    sides |= {Path(pool["filepath"]).name: pool["num_threads"] for pool in pools()}
    if set(sides.values()) != {threads}:
        differ = ", ".join(f"{name} {number}" for name, number in sides.items())
        sys.exit(f"benchmark.py: the sides have different threads, not {threads}: {differ}")


@contextmanager
def busy(n: int) -> Iterator[list[int]]:
    """Run n processes that each keep a thread busy, and yield their ids. They end with this process, even if killed."""
    endless = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(n):
            processes.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", endless]))
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def pools() -> list[Figures]:
    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def header(results: Figures) -> str:
    threads, cores, said = results["threads"], results["cores"], ("system", "NumPy", "BLAS", "threads")
    lines = [
        f"{results['date']}, {results['machine']}, {results['processor']}, {threads} of {cores} cores, "
        f"{threads} thread{'s' if threads > 1 else ''} on all sides, commit {results['commit']}",
        ", ".join(f"{name} {text}" for name, text in results["versions"].items() if name not in said),
        f"BLAS: {', '.join(results['BLAS'])}",
    ]
    if n := results["busy processes"]:
        lines[0] += f", beside {n} busy process{'es' if n > 1 else ''}"
    if kernel := results["OPENBLAS_CORETYPE"]:
        lines[-1] += f"; OPENBLAS_CORETYPE={kernel} is set: every OpenBLAS here runs that kernel, not its own choice"
    if not results["compiled programs"]:
        lines.append("no Numba, or an unknown BLAS interface: dnn runs uncompiled, as dnn, plain")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- steps

COLUMNS = ["dnn", "dnn, plain", "plain NumPy", "scikit-learn", "PyTorch", "JAX jit"]
TIMES = [35, *[22] * len(COLUMNS)]
RATIOS = [35, *[14] * (len(COLUMNS) - 1), 20, 14]


def steps(given: argparse.Namespace) -> list[Figures]:
    modes = [*["plain"] * compiles(), "numpy", *installed_modes("numpy", given.peers)]
    rows = []
    print("  Microseconds per step: median [quartiles]. PyTorch: the faster of eager (e) and compiled (c).")
    print(aligned(["", *COLUMNS], TIMES), flush=True)
    for sizes, m, dtype, optimizer in rows_of(given):
        rows.append(one_network(sizes, m, dtype, optimizer, modes, given.rounds))
        print(times_line(rows[-1]), flush=True)
    print("\n  Ratios to dnn / dnn, plain: medians over rounds, above 1 dnn is faster. Rate of 2048x2048 products in")
    print("  the same rounds, GFLOP/s; the fraction of it that the steps of dnn / dnn, plain reach.")
    print("\n".join(ratio_lines(rows)), flush=True)
    return rows


def rows_of(given: argparse.Namespace) -> Iterator[comparison.Row]:
    for sizes, m, dtype in NETWORKS:
        if not given.networks or in_words(sizes) in given.networks:
            for optimizer in given.optimizers:
                yield sizes, m, dtype, optimizer


def one_network(sizes: list[int], m: int, dtype: str, optimizer: str, modes: list[str], rounds: int) -> Figures:
    every, failed = contenders(sizes, m, optimizer, "numpy", modes, dtype)
    every[0].name = "dnn"
    product = Product("numpy", dtype, 2048)
    times = take_turns([*every, product], rounds)
    rate = middle(product.flops / 1e3 / np.array(times.pop("product")))
    row = {"network": in_words(sizes), "batch": m, "dtype": dtype, "optimizer": optimizer, "flops": flops(sizes, m)}
    row |= {"us a step": summary(times), "product, GFLOP/s": rate}
    row["share"] = {
        name: row["flops"] / 1e3 / row["us a step"][name]["median"] / rate["median"]
        for name in ("dnn", "dnn, plain")
        if name in times
    }
    row |= {"weights apart after 5 steps": {peer.name: peer.apart for peer in every[1:]}, "failed": failed}
    every.clear()
    give_back_memory("numpy")
    return row


def columns_of(row: Figures) -> dict[str, tuple[Figures, str]]:
    """The figures in each column, with the letter of the faster PyTorch mode."""
    measured = row["us a step"]
    found = {name: (figures, "") for name, figures in measured.items() if name in COLUMNS}
    of_torch = [
        (measured[f"PyTorch {mode}"], mode[0]) for mode in ("eager", "compiled") if f"PyTorch {mode}" in measured
    ]
    if of_torch:
        found["PyTorch"] = min(of_torch, key=lambda item: item[0]["median"])
    return found


def times_line(row: Figures) -> str:
    found = columns_of(row)
    cells = [f"{time_in_words(found[name][0])} {found[name][1]}".strip() if name in found else "-" for name in COLUMNS]
    return aligned([name_of(row), *cells], TIMES)


def ratio_lines(rows: list[Figures]) -> list[str]:
    lines = [aligned(["", *COLUMNS[1:], "products", "share"], RATIOS)]
    for row in rows:
        found, share = columns_of(row), row["share"]
        cells = [ratios(found[name][0]) if name in found else "-" for name in COLUMNS[1:]]
        shares = " / ".join(f"{value:.0%}" for value in share.values())
        lines.append(aligned([name_of(row), *cells, time_in_words(row["product, GFLOP/s"]), shares], RATIOS))
    return lines


def ratios(figures: Figures) -> str:
    return " / ".join(f"{figures[key]:.2f}" for key in ("by dnn", "by dnn, plain") if key in figures)


# --------------------------------------------------------------------------------------------------- epochs


def epochs(given: argparse.Namespace) -> list[Figures]:
    """An epoch of fit, including shuffling, loss and accuracy, against each peer's fastest loop, without a loss."""
    with dnn.open_dataset(data_with("mnist.h5") / "mnist.h5") as data:
        X, Y = data.train.X[...].reshape(len(data.train.X), -1), data.train.Y[...].astype(np.int64).ravel()
    as_floats, sizes, m = X.astype(np.float32) / 255, [784, 256, 128, 10], 128
    modes = installed_modes("numpy", [name for name in given.peers if name != "sklearn"])
    rows = []
    for optimizer in given.optimizers:
        every: list[Contender] = []
        failed: dict[str, str] = {}
        configuration = {"sgd": dnn.SGD, "adam": dnn.Adam}[optimizer](LEARNING_RATE[optimizer])
        settings: Figures = {"epochs": 1, "batch_size": m, "optimizer": configuration, "verbose": False}
        for name, backend in [("dnn", "numpy"), *[("dnn, plain", uncompiled())] * compiles()]:
            network = dnn.Network(sizes, output="softmax", seed=1, backend=backend)
            every.append(Calls(name, partial(network.fit, X, Y, **settings)))
        ours = Dnn(sizes, as_floats[:m], Y[:m], optimizer, "numpy")
        start = ours.weights()
        ours.network.fit(as_floats, Y, **settings)
        expected = accuracy(ours.weights(), as_floats, Y)
        for mode in modes:
            for kind, images in (("bytes", X), ("floats", as_floats)):
                name = f"{'JAX jit' if mode == 'jax' else f'PyTorch {mode}'}, {kind}"
                try:
                    if mode == "jax":
                        peer: Any = JaxEpochs(start, images, Y, m, optimizer)
                    else:
                        peer = TorchEpochs(start, images, Y, m, "cpu", mode, optimizer)
                    peer.epoch()
                    apart = abs(accuracy(peer.weights(), as_floats, Y) - expected)
                    if not apart < 0.02:
                        raise ValueError(f"computes something else: accuracy differs by {apart:.3f} after an epoch")
                except Exception as error:  # as in peers.contenders
                    failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                    print(f"  {name}: left out: {failed[name]}")
                else:
                    every.append(Calls(name, peer.epoch))
        times = {name: [1e-3 * t for t in values] for name, values in take_turns(every, given.rounds).items()}
        figures = summary(times)
        rows.append({"network": "784-256-128-10", "batch": m, "optimizer": optimizer, "ms an epoch": figures})
        rows[-1] |= {"failed": failed}
        print(f"  MNIST, {len(X)} examples, 784-256-128-10, batch {m}, {optimizer}: ms per epoch, ratio to dnn / plain")
        for name, measured in figures.items():
            print(aligned([f"  {name}", time_in_words(measured), ratios(measured)], [28, 22, 13]), flush=True)
    return rows


def accuracy(weights: list[np.ndarray], X: np.ndarray, Y: np.ndarray) -> float:
    """The accuracy of a network with these weights. The loops shuffle differently, so they only end close together."""
    A = X[:10_000]
    for W, b in zip(weights[::2], weights[1::2], strict=True):
        Z = A @ W.T + b
        A = np.maximum(0, Z)
    return float(np.mean(Z.argmax(axis=1) == Y[:10_000]))


# --------------------------------------------------------------------------------------------------- growth

# what grows, its values, and the network and batch size for each
GROWTH: list[tuple[str, list[int], Callable[[int], tuple[list[int], int]]]] = [
    ("width", [64, 128, 256, 512, 1024, 2048, 4096], lambda n: ([n, n, n, 10], 128)),
    ("depth", [1, 2, 4, 8, 16, 32], lambda n: ([256] * (n + 1) + [10], 128)),
    ("batch", [1, 4, 16, 64, 256, 1024, 4096], lambda n: ([784, 256, 128, 10], n)),
]


def growth(given: argparse.Namespace) -> list[Figures]:
    """Growth of a step's time against its multiplications: it grows faster than they do where the last column rises."""
    rows = []
    ours, backends = ["dnn", *["dnn, plain"] * compiles()], ["numpy", *[uncompiled()] * compiles()]
    widths = [8, 14, *[22, 12, 20] * len(ours)]
    for optimizer in given.optimizers:
        for what, values, network in GROWTH:
            print(f"  {optimizer}, {what}: {in_words_with(what, network)}. Microseconds per step, ratio to last row,")
            print("  picoseconds per multiplication")
            print(
                aligned([what, "arithmetic", *[cell for name in ours for cell in (name, "time", "a product")]], widths)
            )
            before: Figures | None = None
            for value in values:
                sizes, m = network(value)
                # not compared with each other as above: in 32 layers rounding alone makes Adam's weights diverge
                every = [Dnn(sizes, *batch(sizes, m), optimizer, name) for name in backends]
                every[0].name = "dnn"
                row = {"growing": what, "value": value, "optimizer": optimizer, "flops": flops(sizes, m)}
                row["us a step"] = summary(take_turns(every, given.rounds))
                every.clear()
                print(growth_line(row, before, ours, widths), flush=True)
                rows.append(row)
                before = row
    return rows


def in_words_with(what: str, network: Callable[[int], tuple[list[int], int]]) -> str:
    sizes, m = network(2)
    return {
        "width": f"n-n-n-10, batch {m}",
        "depth": f"n layers of {sizes[0]} units and one of 10, batch {m}",
        "batch": f"{in_words(sizes)}, batch n",
    }[what]


def growth_line(row: Figures, before: Figures | None, ours: list[str], widths: Sequence[int]) -> str:
    cells = [str(row["value"]), f"x {row['flops'] / before['flops']:.2f}" if before else ""]
    for name in ours:
        figures = row["us a step"][name]
        grown = f"x {figures['median'] / before['us a step'][name]['median']:.2f}" if before else ""
        cells += [time_in_words(figures), grown, f"{1e6 * figures['median'] / (row['flops'] / 2):.1f} ps"]
    return aligned(cells, widths)


# -------------------------------------------------------------------------------------------------- threads

ON_THREADS = ["784-256-128-10", "784-1024-1024-10", "256x8-10"]


def threads(given: argparse.Namespace) -> list[Figures]:
    """Steps on 1, 2, 4, ... threads, each in its own process: XLA fixes its number of threads at start-up."""
    numbers = sorted({*(2**i for i in range(given.threads.bit_length())), given.threads})
    rows: dict[str, dict[int, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in numbers:
            path = Path(folder) / f"{n}.json"
            command = [sys.executable, __file__, "steps", "--threads", str(n), "--rounds", str(given.rounds)]
            command += ["--json", str(path), "--networks", ",".join(given.networks or ON_THREADS)]
            command += ["--peers", "jax" if "jax" in given.peers else "none"]
            command += ["--optimizer", given.optimizer] if given.optimizer else []
            done = subprocess.run(command, stdout=subprocess.DEVNULL)
            if done.returncode:
                raise NotMeasured(f"{' '.join(command)} ended with {done.returncode}")
            for row in json.loads(path.read_text())["sections"]["steps"][0]:
                rows.setdefault(name_of(row), {})[n] = row
    print("  Microseconds per step; in parentheses the speed-up over one thread.")
    widths = [35, 14, *[22] * len(numbers)]
    print(aligned(["", "", *[f"{n} thread{'s' if n > 1 else ''}" for n in numbers]], widths))
    for name, by_number in rows.items():
        for line in threads_lines(name, by_number):
            print(aligned(line, widths), flush=True)
    return [row | {"threads": n} for by_number in rows.values() for n, row in by_number.items()]


def threads_lines(name: str, by_number: dict[int, Figures]) -> list[list[str]]:
    lines = []
    for contender in by_number[1]["us a step"]:
        if any(contender not in row["us a step"] for row in by_number.values()):
            continue  # left out, as its process has reported
        medians = [row["us a step"][contender]["median"] for row in by_number.values()]
        cells = [f"{number(median)} ({medians[0] / median:.2f})" for median in medians]
        lines.append([name if not lines else "", contender, *cells])
    return lines


# --------------------------------------------------------------------------------------------- overhead


def overhead(given: argparse.Namespace) -> Figures:
    """The time of fit per epoch minus that of the same bare steps, for full batches and shuffled batches."""
    generator = np.random.default_rng(0)
    X = generator.random((400, 2))
    Y = (X.sum(axis=1) > 1).astype(np.int64)
    epochs, pairs, figures = 2_000, given.rounds, {}
    for batch_size in (400, 100):
        network = dnn.Network([2, 20, 3, 1], seed=1)
        steps = bare_steps(network, X, Y, batch_size)
        extra = np.empty(pairs)
        for pair in range(pairs):
            started = time.perf_counter()
            network.fit(X, Y, epochs=epochs, batch_size=batch_size, optimizer=dnn.SGD(0.1), verbose=False)
            between = time.perf_counter()
            with network.backend.stream():
                for _ in range(epochs):
                    steps()
            extra[pair] = 1e6 * ((between - started) - (time.perf_counter() - between)) / epochs
        print(
            f"  2-20-3-1 on 400 examples, batch {batch_size}: fit adds {spread(extra)} us per epoch",
            flush=True,
        )
        figures[f"batch {batch_size}, us an epoch"] = quartiles(extra).tolist()
    network, started = dnn.Network([2, 20, 3, 1], seed=1), time.perf_counter()
    network.fit(X, Y, epochs=30_000, batch_size=400, optimizer=dnn.SGD(0.1), verbose=False)
    figures["30,000 epochs, s"] = time.perf_counter() - started
    print(f"  2-20-3-1 on 400 examples, full batch, 30,000 epochs: {figures['30,000 epochs, s']:.2f} s", flush=True)
    return figures


# ----------------------------------------------------------------------------------------------- course


def course(given: argparse.Namespace) -> Figures:
    """The assignment's two models on arrays of the cat data's shape, 100 iterations per run."""
    from dnn.course import L_layer_model, two_layer_model

    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (12288, 209)) / 255
    Y = generator.integers(0, 2, (1, 209)).astype(np.float64)
    figures = {}
    for title, model, sizes in (
        ("two_layer_model [12288, 7, 1]", two_layer_model, [12288, 7, 1]),
        ("L_layer_model [12288, 20, 7, 5, 1]", L_layer_model, [12288, 20, 7, 5, 1]),
    ):
        initializer = "course_small" if len(sizes) == 3 else "course_scaled"
        runs = {
            "dnn": lambda: model(X, Y, sizes, num_iterations=100),  # noqa: B023
            "plain NumPy": lambda: plain_model(X, Y, sizes, initializer, 100),  # noqa: B023
        }
        times = take_turns([Calls(name, run) for name, run in runs.items()], given.rounds)
        figures[title] = summary({name: [1e-3 * t for t in values] for name, values in times.items()})
        of_both = ", ".join(f"{name} {time_in_words(measured)} ms" for name, measured in figures[title].items())
        print(f"  {title}, 100 iterations: {of_both}, {figures[title]['plain NumPy']['by dnn']:.2f} times", flush=True)
    return figures


def plain_model(X: np.ndarray, Y: np.ndarray, sizes: list[int], initializer: str, iterations: int) -> list[float]:
    """The assignment's model in plain NumPy."""
    draws, start = np.random.RandomState(1), []
    for n_in, n_out in pairwise(sizes):
        W = draws.randn(n_out, n_in)
        start += [W * 0.01 if initializer == "course_small" else W / np.sqrt(n_in), np.zeros(n_out)]
    model = PlainNumpy(start, X.T, Y, "sgd", learning_rate=0.0075)
    return [cost for i in range(iterations) for cost in [model.step()] if i % 100 == 0]


# ------------------------------------------------------------------------------------------------ start

STARTS = [([784, 256, 128, 10], 128), ([2, 20, 3, 1], 400)]
STARTS_AT_MOST = 5
"""Most processes of one kind: each takes seconds, since it compiles everything again."""


def start(given: argparse.Namespace) -> list[Figures]:
    """New processes without a compilation cache: a first fit, of one epoch of one batch, and an equal second one."""
    times = min(given.rounds, STARTS_AT_MOST)
    print(f"  Milliseconds: median [quartiles] of {times} new processes with nothing compiled. The difference between")
    print("  the first fit and an equal second one is the time before the first step.")
    rows = []
    for sizes, m in STARTS:
        found = [fresh_process("fit", in_words(sizes), str(m)) for _ in range(times)]
        rows.append({"network": in_words(sizes), "batch": m, "ms": of_each(found)})
        print(f"  {in_words(sizes)}, batch {m}: {all_in_words(rows[-1]['ms'])}", flush=True)
    fresh_process("import")  # so that Python's bytecode is cached
    rows.append({"import": True, "ms": of_each([fresh_process("import") for _ in range(times)])})
    print(f"  import numpy, then dnn: {all_in_words(rows[-1]['ms'])}", flush=True)
    return rows


def fresh_process(*arguments: str) -> Figures:
    with tempfile.TemporaryDirectory() as cache:
        nowhere = {"NUMBA_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
        command = [sys.executable, fresh.__file__, *arguments]
        done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True)
    if done.returncode:
        raise NotMeasured(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def of_each(found: list[Figures]) -> dict[str, Figures]:
    return {name: middle([figures[name] for figures in found]) for name in found[0]}


def all_in_words(figures: dict[str, Figures]) -> str:
    return ", ".join(f"{name} {time_in_words(measured)}" for name, measured in figures.items())


# ------------------------------------------------------------------------------------------ activations

ACTIVATIONS = ["relu", "tanh", "sigmoid", "gelu"]


def activations(given: argparse.Namespace) -> list[Figures]:
    sizes, m, rows = [784, 256, 128, 10], 128, []
    widths = [35, *[29] * len(ACTIVATIONS)]
    print("  Microseconds per step: median [quartiles], ratio to relu (median over rounds).")
    print(aligned(["", *ACTIVATIONS], widths), flush=True)
    for dtype in ("float32", "float64"):
        for optimizer in given.optimizers:
            every = []
            for name in ACTIVATIONS:
                try:
                    every.append(Dnn(sizes, *batch(sizes, m, dtype), optimizer, "numpy", dtype, activation=name))
                except ValueError:  # dnn has no such activation
                    continue
                every[-1].name = name
            row = {"network": in_words(sizes), "batch": m, "dtype": dtype, "optimizer": optimizer}
            row["us a step"] = measured = summary(take_turns(every, given.rounds), to=["relu"])
            rows.append(row)
            cells = [activation_in_words(measured.get(name)) for name in ACTIVATIONS]
            print(aligned([name_of(row), *cells], widths), flush=True)
    return rows


def activation_in_words(figures: Figures | None) -> str:
    return f"{time_in_words(figures)} x {figures['by relu']:.2f}" if figures else "-"


# ---------------------------------------------------------------------------------------------------- parts

PARTS = ["dnn, plain network", "dnn", "PyTorch eager", "PyTorch compiled", "JAX jit"]


def parts(given: argparse.Namespace) -> list[Figures]:
    """What more than layers and relu costs: the ratio to the plain network, and the peers' to dnn's."""
    modes, rows = [mode for mode in installed_modes("numpy", given.peers) if mode != "sklearn"], []
    widths = [35, *[30] * len(PARTS)]
    print("  Microseconds per step: median [quartiles]; of dnn the ratio to its plain network, of peers that to dnn.")
    print(aligned(["", *PARTS], widths), flush=True)
    for sizes, m, dtype in NETWORKS[:4]:
        if given.networks and in_words(sizes) not in given.networks:
            continue
        for kind in ("full", *["members"] * (in_words(sizes) == "784-256-128-10")):
            every, failed = parts_of(kind, sizes, *batch(sizes, m, dtype), modes)
            measured = summary(take_turns(every, given.rounds), to=["dnn, plain network", "dnn"])
            row = {"network": f"{in_words(sizes)}, {kind}", "batch": m, "dtype": dtype, "optimizer": "adam"}
            rows.append(row | {"us a step": measured, "failed": failed})
            cells = []
            for name in PARTS:
                figures, to = measured.get(name), "by dnn, plain network" if name == "dnn" else "by dnn"
                cells.append(f"{time_in_words(figures)} x {figures[to]:.2f}" if figures else "-")
            print(aligned([name_of(rows[-1]), *cells], widths), flush=True)
            every.clear()
            give_back_memory("numpy")
    return rows


# ---------------------------------------------------------------------------------------------- compare


def compare(given: argparse.Namespace) -> Figures:
    return comparison.compare(given.commit, rows_of(given), given.threads, given.rounds, given.plain)


SECTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "steps": steps,
    "epochs": epochs,
    "growth": growth,
    "threads": threads,
    "overhead": overhead,
    "course": course,
    "start": start,
    "activations": activations,
    "parts": parts,
    "compare": compare,
}

TWICE = ("overhead", "course")
"""Measured twice: a figure that is not reproduced is noise."""


if __name__ == "__main__":
    main()
