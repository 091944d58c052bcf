"""Compare the working tree with another commit, each in a worker process (see turns.py), in turns."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import turns
from facts import NotMeasured, in_words
from peers import TOLERANCE, batch, difference
from tables import Figures, aligned, middle, name_of, ratio, ratio_in_words, time_in_words
from turns import ROOT

Ask = Callable[..., Any]
"""ask(method, *arguments) of a worker."""

Row = tuple[list[int], int, str, str]
"""Layer sizes, batch size, dtype, optimizer."""

OURS = "working tree"
WIDTHS = [35, 22, 22, 22, 10]


def commit_of(name: str) -> str:
    """The commit's short hash. NotMeasured if there is no such commit, no repository or no git."""
    command = ["git", "-C", ROOT, "rev-parse", "--short", "--verify", "--quiet", f"{name}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise NotMeasured(f"no commit {name} in {ROOT}") from None


@contextmanager
def exported(commit: str) -> Iterator[Path]:
    """A folder with the files of this commit. Not a worktree, so the repository stays unchanged."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix=f"dnn-{commit}-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


@contextmanager
def worker(checkout: Path, threads: int) -> Iterator[Ask]:
    """A process that drives the peers of this checkout. NotMeasured says what failed."""
    ours, theirs = Pipe()
    # -I: neither PYTHONPATH nor the current folder can lead it to another checkout
    command = [sys.executable, "-I", turns.__file__, str(theirs.fileno())]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=quiet, stdout=quiet)
    theirs.close()

    def ask(method: str, *arguments: Any) -> Any:
        try:
            ours.send((method, arguments))
            answer, error = ours.recv()
        except (EOFError, OSError):
            raise NotMeasured(f"the worker of {checkout} exited unexpectedly, with status {process.wait()}") from None
        if error:
            raise NotMeasured(f"{checkout}: {error}")
        return answer

    try:
        ask("load", str(checkout), threads)
        yield ask
    finally:
        process.kill()
        process.wait()
        ours.close()


def compare(
    commit: str, rows: Iterable[Row], threads: int, rounds: int, plain: bool, working_tree: Path = ROOT
) -> Figures:
    with exported(commit) as folder, worker(folder, threads) as theirs, worker(working_tree, threads) as ours:
        print(f"  {'Without compiled steps. ' * plain}Microseconds per step: median [quartiles]; ratios within rounds,")
        print(f"  above 1 the {OURS} is faster. Last, the difference of the weights after five steps.")
        print(aligned(["", commit, OURS, "ratio", "apart"], WIDTHS), flush=True)
        sides = {commit: theirs, OURS: ours}
        measured = []
        for row in rows:
            measured.append(compare_row(row, sides, rounds, plain))
            print(line(measured[-1], sides), flush=True)
    for name, loaded in next((row["compilers"] for row in measured if "compilers" in row), {}).items():
        versions = [f"{compiler} {version}" for compiler, version in loaded.items()]
        print(f"  {name} has loaded {' and '.join(versions) or 'no compiler'}")
    return {"commit": commit, "plain": plain, "rows": measured}


def compare_row(row: Row, sides: dict[str, Ask], rounds: int, plain: bool) -> Figures:
    """Compare one row; the second side is the working tree. A row that cannot be compared says why."""
    sizes, m, dtype, optimizer = row
    figures: Figures = {"network": in_words(sizes), "batch": m, "dtype": dtype, "optimizer": optimizer}
    X, Y = batch(sizes, m, dtype)
    try:
        theirs, ours = (ask("build", sizes, X, Y, optimizer, dtype, plain) for ask in sides.values())
        figures["compilers"] = {name: ask("compilers") for name, ask in sides.items()}
        figures["weights apart after 5 steps"] = apart = difference(theirs, ours, optimizer)
        if not apart < TOLERANCE[dtype]:
            raise NotMeasured(f"they do not compute the same: weights differ by {apart:.2g} after 5 steps")
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, ask in sides.items():
                times[name].append(1e6 * ask("turn"))
    except (NotMeasured, ValueError) as why:  # ValueError: weights of other shapes
        return figures | {"failed": str(why)}
    return figures | {
        "us a step": {name: middle(values) for name, values in times.items()},
        "ratio": middle(ratio(*times.values())),
    }


def line(row: Figures, names: Iterable[str]) -> str:
    if "failed" in row:
        return f"  {name_of(row)}: left out: {row['failed']}"
    cells = [time_in_words(row["us a step"][name]) for name in names]
    cells += [ratio_in_words(row["ratio"]), f"{row['weights apart after 5 steps']:.1g}"]
    return aligned([name_of(row), *cells], WIDTHS)
