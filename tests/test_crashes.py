"""SIGKILL at any moment of a training with checkpoints, and readers beside a writer: nothing is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from dnn import files
from dnn.files import write_whole

sys.path.append(str(ROOT / "scripts"))
from crash_test import ByCommand, ByFit, Report, Training, crash, digest, read_beside_a_writer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork"),
    # of Python 3.12 on; a child uses nothing that other threads of this process may hold
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.mark.parametrize("face", ["fit", "command"])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(face, tmp_path: Path):
    training = ByFit() if face == "fit" else ByCommand(tmp_path / "train.h5")
    tally = crash(training, tmp_path / "runs", kills=10, seed=0)
    assert tally.is_clean, str(tally)
    assert tally.kills.total() == 10 and tally.kills["random"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("face", ["fit", "command"])
def test_compiled_steps_end_with_the_same_bits_too(face, tmp_path: Path):
    training = ByFit() if face == "fit" else ByCommand(tmp_path / "train.h5")
    tally = crash(training, tmp_path / "runs", kills=8, seed=1, compiled=True)
    assert tally.is_clean, str(tally)


def test_readers_of_a_data_file_beside_a_writer_of_checkpoints(tmp_path: Path):
    done = read_beside_a_writer(tmp_path, readers=10, saves=20)
    assert done["readers"] == 10 and done["saves"] == 20, done
    assert not done["wrong"] + done["failed"] + done["saves lost"] + done["temporary files"], done


# ------------------------------------------------------------------------ that the harness finds what it looks for


def atomically(path: Path, content: bytes, report: Callable[[], None]) -> None:
    write_whole({str(path): content})
    report()


def in_place(path: Path, content: bytes, report: Callable[[], None]) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(content[: len(content) // 2])
        files.reached("half written")
        file.write(content[len(content) // 2 :])
        files.reached("written")
    report()


def updating(path: Path, content: bytes, report: Callable[[], None]) -> None:
    """All checkpoints in one file, whose size is right at any time."""
    path = path.with_name("checkpoint-1.bin")
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.write(content[: len(content) // 2] if os.path.getsize(path) else content)
        files.reached("half written")
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2 :])
        files.reached("written")


def too_early(path: Path, content: bytes, report: Callable[[], None]) -> None:
    report()
    write_whole({str(path): content})


def without_locks(path: Path, content: bytes, report: Callable[[], None]) -> None:
    files._remove_left = lambda folder: None
    atomically(path, content, report)


class Counting(Training):
    """A training without a network: numbers that grow with every step, in a file of their own."""

    def __init__(self, write: Callable[[Path, bytes, Callable[[], None]], None], exact: bool = True) -> None:
        self._write, self._exact = write, exact

    def go_on(self, folder: Path, report: Report) -> str:
        folder.mkdir(exist_ok=True)
        whole = [path for path in folder.glob("checkpoint-*") if path.stat().st_size == 8000]
        newest = max(whole, default=None, key=_number)
        state = np.zeros(1000) if newest is None else np.frombuffer(newest.read_bytes()).copy()
        begun = int(state[0])
        for step in range(begun + 1, 81):
            state += 1 if self._exact or begun == 0 else (np.arange(1000) == 0) + 0.5
            if step % 4 == 0:
                self._write(folder / f"checkpoint-{step}.bin", state.tobytes(), lambda step=step: report(step))
        return digest(state)

    def checkpoint(self, path: Path) -> tuple[int, str]:
        content = path.read_bytes()
        if len(content) != 8000:
            raise ValueError(f"{path.name} has {len(content)} bytes")
        state = np.frombuffer(content)
        return int(state[0]), digest(state)


def _number(path: Path) -> int:
    return int(path.stem.split("-")[1])


def test_of_a_writer_without_fault_nothing_is_found(tmp_path: Path):
    tally = crash(Counting(atomically), tmp_path, kills=16)
    assert tally.is_clean and tally.checkpoints > 10, str(tally)


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        (Counting(in_place), "unreadable"),
        (Counting(updating), "mixed"),
        (Counting(too_early), "lost"),
        (Counting(atomically, exact=False), "different"),
        # how many files are left when another kill comes is a matter of many kills
        pytest.param(Counting(without_locks), "left", marks=pytest.mark.slow),
    ],
    ids=["in place", "updating", "reported too early", "not resumed exactly", "never cleaned"],
)
def test_a_planted_fault_is_found(training: Training, problem: str, tmp_path: Path):
    # where a random kill falls is a matter of chance
    assert any(crash(training, tmp_path / str(seed), kills=6, seed=seed).problems[problem] for seed in range(16))
