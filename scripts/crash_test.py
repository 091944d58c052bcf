"""Kill trainings with SIGKILL, at random moments and at every point of a save, and see what is lost: nothing may be.

    python scripts/crash_test.py --kills 500
    python scripts/crash_test.py --readers 100

A small network, with dropout, batch norm, a schedule, early stopping, an average of its weights and a partial last
batch, is trained in a child process that writes checkpoints, is killed, and is started again, until the training ends;
and so on until there have been enough kills. Half of them are by fit and dnn.resume, half by the command and --resume.
After every kill:

unreadable   checkpoints or models that cannot be read
mixed        checkpoints that differ from another of the same step, of any run
lost         reported checkpoints, of which there is none as new any more
different    ended trainings whose parameters, optimizer's state or history are not the uninterrupted one's, bit for bit
left         temporary files beyond those of the last kill

Exit status 1 where there is any. --readers: so many processes read a data file while checkpoints are written beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

import dnn
from dnn import files
from dnn.backends import use_compiled_steps
from dnn.cli import main as command
from dnn.errors import DnnError

Report = Callable[[int], None]
NUMBERED = re.compile(r"checkpoint-(\d+)\.\w+")
PROBLEMS = "unreadable", "mixed", "lost", "different", "left"
MOST_LEFT = 2
"""Temporary files that one kill can leave: the new file, and a second name of the old one."""
SETTINGS: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 16,
    "moving_average": 0.9,
    "threads": 1,
    "optimizer": dnn.AdamW(1e-2),
    "schedule": dnn.Cosine(warmup=1),
    "early_stopping": dnn.EarlyStopping(patience=3),
}
EVERY = 3


class Training:
    """What is killed: all of it runs in a child but `checkpoint` and `check`."""

    name = ""

    def go_on(self, folder: Path, report: Report) -> str:
        """Train to the end, from the newest checkpoint in the folder if there is one: a digest of the result.

        `report` is called with the number of every checkpoint that is durable.
        """
        raise NotImplementedError

    def checkpoint(self, path: Path) -> tuple[Any, str]:
        """After which step a checkpoint was taken, and a digest of it. DnnError or ValueError if it cannot be read."""
        raise NotImplementedError

    def check(self, folder: Path) -> bool:
        """Whether the results are there. DnnError or ValueError if they cannot be read."""
        return False


def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def of_network(network: dnn.Network) -> list[Any]:
    state = network.training_state
    assert state is not None
    after = [value for name, value in sorted(state.after.items()) if name in ("best_value", "best_epoch", "waited")]
    best = state.after.get("best") or {}
    arrays = [array for of in (state.arrays, best) for _, array in sorted(of.items())]
    return [network.parameters.flat, network.layer_state.flat, network.epochs, network.steps, *arrays, *after]


def data() -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    return X, (X.sum(axis=1) > 0).astype(np.int64) + (X[:, 0] > 0.5)


class ByFit(Training):
    """Network.fit and dnn.resume."""

    name = "fit"

    def go_on(self, folder: Path, report: Report) -> str:
        X, Y = data()
        again = {"validation_data": (X[50:], Y[50:]), "callbacks": [_Reporting(report)]}
        if any(NUMBERED.fullmatch(path.name) for path in _listed(folder)):
            network = dnn.resume(folder)
            history = network.fit(X[:50], Y[:50], **again)
        else:
            network = dnn.Network([6, 8, 3], output="softmax", dropout=0.2, norm="batch", seed=1)
            kept = {"checkpoint": folder, "checkpoint_every": EVERY}
            history = network.fit(X[:50], Y[:50], **SETTINGS, **kept, **again, verbose=False)
        for _ in range(2):  # into a new folder, and over the file that is there
            network.save(folder / "results" / "model.h5", force=True)
        return digest(*of_network(network), history.history, history.epoch, history.best_epoch, history.stopped)

    def checkpoint(self, path: Path) -> tuple[Any, str]:
        network = dnn.resume(path)
        fit = network.unfinished
        assert fit is not None
        parts = [*of_network(network), fit.totals, fit.history.history, fit.learning_rate, fit.stopped]
        return (fit.epoch, fit.batch), digest(*parts)

    def check(self, folder: Path) -> bool:
        if (path := folder / "results" / "model.h5").exists():
            dnn.load(path)
        return False


class _Reporting:
    def __init__(self, report: Report) -> None:
        self._report = report

    def on_batch_end(self, event: Any) -> None:
        """Let no checkpoint be left out because the one before is still being written."""
        for thread in threading.enumerate():
            if thread.name == "dnn-checkpoint":
                thread.join()

    def on_checkpoint(self, event: Any) -> None:
        self._report(_number(event.checkpoint))


class ByCommand(ByFit):
    """dnn train --resume auto."""

    name = "command"

    def __init__(self, data_file: Path) -> None:
        self._data = data_file
        X, Y = data()
        with h5py.File(data_file, "w") as file:
            file["train_set_x"], file["train_set_y"] = X, Y

    def go_on(self, folder: Path, report: Report) -> str:
        reached = files.reached

        def reporting(point: str) -> None:
            if point == "cleaned":
                report(max((_number(path) for path in _listed(folder)), default=0))
            reached(point)

        files.reached = reporting
        given = ["train", self._data, "--out", folder, "--resume", "auto", "--checkpoint-every", EVERY, "--quiet"]
        given += ["--hidden", 8, "--dropout", 0.2, "--norm", "batch", "--epochs", 8, "--batch-size", 16]
        given += ["--moving-average", 0.9, "--threads", 1, "--optimizer", "adamw", "--learning-rate", 0.01]
        given += ["--schedule", "cosine(warmup=1)", "--early-stopping", 3, "--validation-split", 0.17, "--seed", 1]
        with contextlib.redirect_stdout(io.StringIO()):
            status = command([str(argument) for argument in given])
        if status != 0:
            raise RuntimeError(f"dnn train ended with status {status}")
        return self._result(folder)

    def check(self, folder: Path) -> bool:
        if not (folder / "model.h5").exists():
            return False
        self._result(folder)
        return True

    def _result(self, folder: Path) -> str:
        network = dnn.load(folder / "model.h5")
        return digest(*of_network(network), (folder / "history.csv").read_bytes())


@dataclass
class Plan:
    """When to kill a child: at the `visit`-th time that it reaches `point`, or `after` seconds."""

    point: str | None = None
    visit: int = 0
    after: float | None = None


@dataclass
class Tally:
    """What a number of kills came to."""

    kills: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    checkpoints: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PROBLEMS})

    def __add__(self, other: Tally) -> Tally:
        problems = {name: self.problems[name] + other.problems[name] for name in PROBLEMS}
        kills = self.kills + other.kills
        return Tally(kills, self.ended + other.ended, self.checkpoints + other.checkpoints, problems)

    def __str__(self) -> str:
        at = ", ".join(f"{point} {self.kills[point]}" for point in (*files.POINTS, "random") if self.kills[point])
        lines = [
            f"{self.kills.total()} kills ({at}), {self.ended} trainings ended, {self.checkpoints} checkpoints read"
        ]
        lines += [
            f"{len(found):4} {name}" + (f": {found[0]}" if found else "") for name, found in self.problems.items()
        ]
        return "\n".join(lines)

    @property
    def is_clean(self) -> bool:
        return not any(self.problems.values())


class Crashes:
    """Kills one training again and again."""

    def __init__(self, training: Training, folder: Path, seed: int = 0, most: int = 10_000) -> None:
        self._training, self._folder, self._random, self._most = training, folder, random.Random(seed), most
        self._seen: dict[Any, str] = {}
        self._planned = 0
        started = time.monotonic()
        self._visits: dict[str, int] = {}  # of an uninterrupted training to each point
        self._read: set[tuple[int, int]] = set()
        self._expected, _ = self._attempt(folder / "uninterrupted", Plan())
        self._takes = time.monotonic() - started
        self.tally = Tally()

    def kill(self, kills: int) -> Tally:
        """Kill so often, by turns at a point of a save and at random."""
        for run in range(self._most):
            self._run(self._folder / f"run{run}", kills)
            if self.tally.kills.total() >= kills:
                break
        return self.tally

    def _run(self, folder: Path, kills: int) -> None:
        """One training to its end, killed as long as there are kills left."""
        newest, result = 0, None
        while result is None:
            done = self.tally.kills.total()
            plan = self._plan() if done < kills else Plan()
            result, reported = self._attempt(folder, plan)
            if result is None:
                self.tally.kills[plan.point or "random"] += 1
            newest = self._verify(folder, max(newest, reported), result is not None)
        self.tally.ended += 1
        if result != self._expected:
            self.tally.problems["different"].append(f"{folder.name}: {result} is not {self._expected}")
        shutil.rmtree(folder, ignore_errors=True)

    def _plan(self) -> Plan:
        number, self._planned = self._planned, self._planned + 1
        if number % 2:
            return Plan(after=self._random.uniform(0, self._takes))
        point = list(self._visits)[number // 2 % len(self._visits)]
        return Plan(point, self._random.randint(1, min(4, self._visits[point])))

    def _attempt(self, folder: Path, plan: Plan) -> tuple[str | None, int]:
        """Go on with a training in a child: its result, None if it was killed, and the newest that it reported."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _train(self._training, folder, plan, writing)
        os.close(writing)
        lines = _read(reading, child, plan.after)
        _, status = os.waitpid(child, 0)
        reported = max((int(line.split()[1]) for line in lines if line.startswith("checkpoint ")), default=0)
        result, *visits = next((line.split(maxsplit=2)[1:] for line in lines if line.startswith("done ")), [None])
        if visits and not self._visits:
            self._visits = json.loads(visits[0])
        if result is None and not os.WIFSIGNALED(status):
            said = [line for line in lines if not line.startswith("checkpoint ")]
            raise RuntimeError(f"a training in {folder} failed: {' '.join(said)}")
        return result, reported

    def _verify(self, folder: Path, reported: int, ended: bool) -> int:
        """Look at all that is there; the number of the newest checkpoint that counts."""
        problems, numbers = self.tally.problems, [0]
        for path in _listed(folder):
            if not NUMBERED.fullmatch(path.name):
                continue
            known = path.stat().st_ino, path.stat().st_mtime_ns
            if known in self._read:
                numbers.append(_number(path))
                continue
            try:
                step, found = self._training.checkpoint(path)
            except (DnnError, ValueError, OSError) as error:
                problems["unreadable"].append(f"{folder.name}: {error}")
                continue
            self._read.add(known)
            self.tally.checkpoints += 1
            numbers.append(_number(path))
            if self._seen.setdefault(step, found) != found:
                problems["mixed"].append(f"{folder.name}: {path.name} is not the state after {step}")
        try:
            ended = self._training.check(folder) or ended
        except (DnnError, ValueError, OSError) as error:
            problems["unreadable"].append(f"{folder.name}: {error}")
        if max(numbers) < reported and not ended:
            problems["lost"].append(f"{folder.name}: {reported} was reported, and {max(numbers)} is the newest")
        left = [path.name for path in folder.glob(".dnn-*")]
        if len(left) > (0 if ended and not numbers else MOST_LEFT):
            problems["left"].append(f"{folder.name}: {' '.join(left)}")
        return max(*numbers, reported)


def _number(path: str | Path) -> int:
    found = NUMBERED.fullmatch(Path(path).name)
    return int(found[1]) if found else 0


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _train(training: Training, folder: Path, plan: Plan, pipe: int) -> None:
    """In the child: train, and be killed as planned."""
    visits: Counter[str] = Counter()

    def reached(point: str) -> None:
        visits[point] += 1
        if point == plan.point and visits[point] == plan.visit:
            os.kill(os.getpid(), signal.SIGKILL)

    gc.disable()  # a child is short-lived
    files.reached = reached
    os.fsync = lambda handle: None  # a kill loses nothing of what the system has; a disk that is busy takes long
    try:
        result = training.go_on(folder, lambda number: _say(pipe, f"checkpoint {number}"))
        _say(pipe, f"done {result} {json.dumps(visits)}")
    except BaseException as error:
        with contextlib.suppress(OSError):
            _say(pipe, f"{type(error).__name__}: {error}".replace("\n", " "))
    finally:
        os._exit(0)


def _say(pipe: int, line: str) -> None:
    os.write(pipe, f"{line}\n".encode())


def _read(pipe: int, child: int, after: float | None) -> list[str]:
    """The lines that the child writes until it ends; killed after so many seconds."""
    end = None if after is None else time.monotonic() + after
    text = b""
    with open(pipe, "rb", buffering=0) as file:
        while True:
            wait = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([file], [], [], wait)[0]:
                os.kill(child, signal.SIGKILL)
                end = None
                continue
            if not (got := file.read(65536)):
                return text.decode().split("\n")[:-1]
            text += got


# --------------------------------------------------------------------------- readers beside a writer


def read_beside_a_writer(folder: Path, readers: int, saves: int = 20) -> Counter[str]:
    """So many processes read rows of a data file and load a model while this one saves; what was done, and failures.

    Every reader has read once before the first save, and goes on until the last.
    """
    X, Y = data()
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("train_set_x", data=X, chunks=(7, 6), compression="gzip")
        file["train_set_y"] = Y
    network = dnn.Network([6, 40, 3], output="softmax")
    network.save(folder / "model.h5")
    children, done = [], Counter[str]()
    going, over = os.pipe()
    reading, ready = os.pipe()
    for number in range(readers):
        child = os.fork()
        if child == 0:
            os.close(over)
            _keep_reading(folder, X, number, going, ready)
        children.append(child)
    os.close(ready)
    os.close(going)
    with open(reading, "rb", buffering=0) as said:
        for _ in range(readers):
            said.read(1)
        for save in range(1, saves + 1):
            network.parameters["b1"] = np.full(40, save)
            network.save(folder / f"checkpoint-{save:06d}.h5")
            network.save(folder / "model.h5", force=True)
            done["saves"] += 1
        os.close(over)
        rest = b""
        while got := said.read(65536):
            rest += got
    for child in children:
        os.waitpid(child, 0)
    for line in rest.decode().split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            done += Counter(json.loads(line))
    for save in range(1, saves + 1):
        values = np.asarray(dnn.load(folder / f"checkpoint-{save:06d}.h5").parameters["b1"])
        done["saves lost"] += not (values == save).all()
    done["temporary files"] = len(list(folder.glob(".dnn-*")))
    return done


def _keep_reading(folder: Path, X: np.ndarray, number: int, going: int, ready: int) -> None:
    """In a child: read until `going` is closed at its other end."""
    done: dict[str, int] = Counter()
    try:
        row, over = number % 50, False
        while not over or not done["reads"]:
            over = bool(select.select([going], [], [], 0)[0])
            with dnn.open_dataset(folder / "data.h5") as opened:
                assert opened.train is not None
                same = np.array_equal(opened.train.X[row : row + 5], X[row : row + 5])
            values = np.asarray(dnn.load(folder / "model.h5").parameters["b1"])
            done["reads"] += 1
            done["wrong"] += not same or len(set(values.tolist())) > 1
            if done["reads"] == 1:
                os.write(ready, b".")
            row = (row + 7) % 50
        done["readers"] = 1
        os.write(ready, f"{json.dumps(done)}\n".encode())
    except BaseException as error:
        failed = {"failed": 1, f"{type(error).__name__}: {error}": 1}
        os.write(ready, f".\n{json.dumps(failed)}\n".encode())
    os._exit(0)


# ------------------------------------------------------------------------------------------- the command


def crash(training: Training, folder: Path, kills: int, seed: int = 0, compiled: bool = False) -> Tally:
    """Kill a training so often, in one process."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_children(), use_compiled_steps(compiled):
        return Crashes(training, folder, seed).kill(kills)


@contextlib.contextmanager
def quiet_children() -> Iterator[None]:
    """What children say on stderr is of no use here: the log names every file that is passed over."""
    import logging

    log = logging.getLogger("dnn")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _in_jobs(given: argparse.Namespace, folder: Path) -> Tally:
    """The kills, shared among processes."""
    jobs: list[tuple[int, int]] = []
    shares = [given.kills // 2, given.kills - given.kills // 2]
    trainings: list[Training] = [ByFit(), ByCommand(folder / "train.h5")]
    shared = [
        (training, share // given.jobs + (job < share % given.jobs), job)
        for training, share in zip(trainings, shares, strict=True)
        for job in range(given.jobs)
    ]
    for job in range(given.jobs):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            total = Tally()
            for training, kills, of_job in shared:
                if of_job == job and kills:
                    place = folder / f"{training.name}{job}"
                    total += crash(training, place, kills, given.seed * 1000 + job, given.compiled)
            os.write(writing, json.dumps([total.kills, total.ended, total.checkpoints, total.problems]).encode())
            os._exit(0)
        os.close(writing)
        jobs.append((child, reading))
    total = Tally()
    for child, reading in jobs:
        with open(reading) as file:
            text = file.read()
        os.waitpid(child, 0)
        if not text:
            raise SystemExit("a job has failed: see above")
        kills, *rest = json.loads(text)
        total += Tally(Counter(kills), *rest)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill trainings and see what is lost.")
    parser.add_argument("--kills", metavar="N", type=int, default=0)
    parser.add_argument("--readers", metavar="N", type=int, default=0)
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="processes that kill (default: 2)")
    parser.add_argument("--compiled", action="store_true", help="compile the steps: children take longer")
    given = parser.parse_args()
    if not given.kills and not given.readers:
        parser.error("give --kills or --readers")
    clean = True
    with tempfile.TemporaryDirectory(prefix="crash-test-") as name:
        if given.kills:
            started = time.monotonic()
            tally = _in_jobs(given, Path(name))
            print(f"{tally}\n{time.monotonic() - started:.0f} s")
            clean = tally.is_clean
        if given.readers:
            done = read_beside_a_writer(Path(name), given.readers)
            print(", ".join(f"{count} {what}" for what, count in sorted(done.items())))
            clean = clean and not done["wrong"] + done["failed"] + done["saves lost"] + done["temporary files"]
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
