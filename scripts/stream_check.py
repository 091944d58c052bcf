"""What it costs to train on data that stays in its file: speed against the same data in memory, and peak memory.

    python scripts/stream_check.py FOLDER [--gib 8] [--repeats 3] [--threads 2] [--limit 0.4] [--steps 5000]

Files of that size are made in FOLDER (those that are there are used again), of bytes and of float32, contiguous and in
gzip chunks, from MNIST-like noise or, with --images, from the training part of that file. Each figure is the median of
child processes that take turns, so that whatever else the machine does concerns all alike. Memory is the peak of the
resident set beyond that of a process that has built and run the step on a few examples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

SIZES = [784, 256, 128, 10]
BATCH = 128
KINDS = {"bytes": np.dtype(np.uint8), "floats": np.dtype(np.float32)}
LAYOUTS = {"contiguous": 0.9, "gzip": 0.7}
"""With the share of the speed in memory that each has to reach."""
CHUNK_BYTES = 1 << 20


def images_of(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (m, 784), four of five of them 0 as in MNIST, and labels."""
    if path is not None:
        import dnn

        with dnn.open_dataset(path) as data:
            assert data.train is not None
            return data.train.X[...].reshape(len(data.train.X), -1), data.train.Y[...].astype(np.uint8)
    draw = np.random.default_rng(0)
    Y = draw.integers(0, 10, 20_000, np.uint8)
    patterns = draw.integers(0, 256, (10, 784), np.uint8) * (draw.random((10, 784)) < 0.3)
    X = np.where(draw.random((len(Y), 784)) < 0.7, patterns[Y], 0).astype(np.uint8)
    return X, Y


def make(path: Path, kind: str, layout: str, gib: float, images: str | None) -> None:
    """A file of that size: the images again and again, in a random order, the lowest bit of each byte noise."""
    import h5py

    dtype = KINDS[kind]
    size = SIZES[0] * dtype.itemsize
    m, rows = int(gib * 2**30) // size, CHUNK_BYTES // size
    how = {"chunks": (rows, SIZES[0]), "compression": "gzip", "compression_opts": 1} if layout == "gzip" else {}
    X, Y = images_of(images)
    draw = np.random.default_rng(1)
    with h5py.File(path.with_suffix(".part"), "w") as file:
        values = file.create_dataset("train_set_x", (m, SIZES[0]), dtype, **how)
        labels = file.create_dataset("train_set_y", (m,), np.uint8)
        for start in range(0, m, 8 * rows):
            chosen = draw.integers(0, len(Y), min(8 * rows, m - start))
            block = X[chosen]
            block ^= (block > 0) & (draw.integers(0, 2, block.shape, np.uint8) > 0)
            values[start : start + len(chosen)] = block if kind == "bytes" else block / np.float32(255)
            labels[start : start + len(chosen)] = Y[chosen]
    path.with_suffix(".part").rename(path)


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Clock:
    """Wall and CPU time of the passes over the data alone, which end after so many steps."""

    def __init__(self, most: int | None) -> None:
        self.steps, self.seconds, self.cpu = 0, 0.0, 0.0
        self._most = most

    def __call__(self, run: Callable[..., Iterator[int]]) -> Callable[..., Iterator[int]]:
        def timed(*args: Any, **settings: Any) -> Iterator[int]:
            start, cpu = time.perf_counter(), time.process_time()
            for steps in run(*args, **settings):
                self.steps += steps
                self.seconds, self.cpu = time.perf_counter() - start, time.process_time() - cpu
                yield steps
                if self._most is not None and self.steps >= self._most:
                    raise KeyboardInterrupt

        return timed


def measure(path: str, in_memory: bool, threads: int, limit: float, most: int | None) -> dict[str, float]:
    """Of one epoch, or of so many of its steps, in this process."""
    import dnn
    from dnn.batches import Batches

    network = dnn.Network(SIZES, output="softmax", seed=1)
    with dnn.open_dataset(path) as data:
        assert data.train is not None
        X, Y = data.train.X, data.train.Y
        few = X[:1000], Y[:1000]
        network.fit(*few, epochs=1, batch_size=BATCH, threads=threads)
        before = peak()
        given: Any = X[...] if in_memory else X
        labels = Y[...]
        clock = Clock(most)
        with suppress(KeyboardInterrupt), mock.patch.object(Batches, "run", clock(Batches.run)):
            of_memory = None if in_memory else limit
            network.fit(given, labels, epochs=1, batch_size=BATCH, threads=threads, memory_limit=of_memory)
    return {
        "milliseconds": 1e3 * clock.seconds / clock.steps,
        "cpu": 1e3 * clock.cpu / clock.steps,
        "memory": (peak() - before) / 1e6,
    }


def in_child(*given: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of training on data that stays in its file.")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=0.4, help="GB, memory_limit of the fit")
    parser.add_argument("--steps", type=int, help="of an epoch, instead of all")
    parser.add_argument("--images", help="a data file of 28 x 28 pictures to make the data of")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(*json.loads(args.child))))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    ok = True
    print(f"{'':22} ms/step   CPU ms   speed of that in memory   MB beyond the interpreter")
    for kind in args.kinds.split(","):
        paths = {}
        for layout in args.layouts.split(","):
            paths[layout] = args.folder / f"{kind}-{layout}-{args.gib:g}.h5"
            if not paths[layout].exists():
                make(paths[layout], kind, layout, args.gib, args.images)
        first = next(iter(paths.values()))
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(args.repeats):
            for layout, path in {"memory": first, **paths}.items():
                found = in_child(str(path), layout == "memory", args.threads, args.limit, args.steps)
                runs.setdefault(layout, []).append(found)
        of_memory = statistics.median(run["milliseconds"] for run in runs["memory"])
        for layout, found in runs.items():
            mean = {name: statistics.median(run[name] for run in found) for name in found[0]}
            ratio = of_memory / mean["milliseconds"]
            reached = layout == "memory" or (ratio >= LAYOUTS[layout] and mean["memory"] <= 400)
            ok &= reached
            print(
                f"{kind + ', ' + layout:22} {mean['milliseconds']:7.3f} {mean['cpu']:8.3f} {ratio:12.2f} "
                f"{mean['memory']:26.0f}{'' if reached else '   MISSED'}",
                flush=True,
            )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
