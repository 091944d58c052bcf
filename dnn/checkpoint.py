"""Checkpoints: model files with all that their fit goes on with, in the folder of a run.

    run/checkpoint-000007.h5    the number only grows; the last two that are whole are kept

Each is written under a temporary name, flushed to the disk and renamed, by a thread of its own: the training waits for
no more than a copy of its arrays. What is not finite is never written. While a fit writes to a folder, it has a lock on
it, which ends with the process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike, fsdecode
from os.path import expanduser
from typing import Any

import numpy as np

from dnn.errors import DataError, ModelFileError, OutputError
from dnn.files import check_writable, missing_folders, remove_empty, write_whole
from dnn.model_file import architecture_of, check_readable, contents, described, file_bytes, network_of
from dnn.network import Network
from dnn.training_file import GROUP, Stored, not_finite

_NAME = re.compile(r"checkpoint-(\d{6,})\.h5")
KEPT = 2
MODEL = "model.h5"
"""What `dnn train` leaves when a run has ended: it can be gone on with as well."""
_log = logging.getLogger("dnn.checkpoint")


class Checkpoints:
    """Writes the checkpoints of one fit; a context manager, which waits for the last.

    `every` is a number of steps, or seconds as in "30s", or None: only when the fit ends. The folder may have
    checkpoints already if it is `own`, the folder of this run, which goes on from `number` or begins anew.
    """

    def __init__(
        self, folder: str | PathLike[str], every: int | str | None, own: str | None = None, number: int | None = None
    ) -> None:
        self.folder = real_folder(folder)
        self.steps = every if isinstance(every, int) else None
        """How many steps there are between two; None where it is a time."""
        self._seconds = float(every.removesuffix("s")) if isinstance(every, str) else None
        found = [number for number, _ in numbered(self.folder)]
        if found and own != self.folder:
            raise OutputError(
                f"{self.folder}: has the checkpoints of another run, {_name(max(found))} the last: go on with that by "
                "dnn.resume(folder) (--resume auto), or choose another folder"
            )
        check_writable(os.path.join(self.folder, _name(max(found, default=0) + 1)), force=True)
        self._next = max([number or 0, *found]) + 1
        self._whole = [number] if number in found else []
        """The checkpoints of this run that are known to be whole, the newest last."""
        self._thread: threading.Thread | None = None
        self._written: list[str] = []
        self._lock: int | None = None
        self._last_step = 0

    def __enter__(self) -> Checkpoints:
        try:
            self._made = missing_folders(self.folder)
            os.makedirs(self.folder, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"{self.folder}: cannot be written: {cause.strerror}") from None
        self._lock = _locked(self.folder)
        self._last_time = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        self.wait()
        if self._lock is not None:
            os.close(self._lock)
        remove_empty(self._made)

    def begin_at(self, step: int) -> None:
        """Go on after a checkpoint that was taken after this step."""
        self._last_step = step

    def due(self, step: int) -> bool:
        """Whether the next should be taken after this step, the first being 1, and none is being written."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if self.steps is not None:
            return step - self._last_step >= self.steps
        return self._seconds is not None and time.monotonic() - self._last_time >= self._seconds

    def begin(self, step: int) -> int:
        """The number of a checkpoint that is taken after this step."""
        self._last_step, self._last_time = step, time.monotonic()
        self._next += 1
        return self._next - 1

    def write(self, number: int, contents: Callable[[], dict[str, np.ndarray]], wait: bool = False) -> None:
        """Write what `contents` gives, in the background unless `wait`; only then OutputError if that cannot be done.

        In the background that is a line in the log: training goes on, and the checkpoint before is kept.
        """
        self.wait()
        try:
            found = contents()
            if not wait:
                self._thread = threading.Thread(target=self._try, args=(number, found), name="dnn-checkpoint")
                self._thread.start()
                return
            self._write(number, found)
        except Exception as cause:
            if wait:
                raise cause if isinstance(cause, OutputError) else self._unwritable(number, cause) from None
            self._complain(number, cause)

    def written(self) -> Iterator[str]:
        """The paths of those that are on the disk, each once."""
        while self._written:
            yield self._written.pop(0)

    def wait(self) -> None:
        """Until the one that is being written is on the disk, or has failed."""
        if self._thread is not None:
            self._thread.join()

    def _try(self, number: int, contents: dict[str, np.ndarray]) -> None:
        try:
            self._write(number, contents)
        except Exception as cause:
            self._complain(number, cause)

    def _complain(self, number: int, cause: Exception) -> None:
        _log.warning("no checkpoint %d: %s; training goes on, and the one before is kept", number, cause)

    def _unwritable(self, number: int, cause: Exception) -> OutputError:
        return OutputError(f"{os.path.join(self.folder, _name(number))}: cannot be written: {cause}")

    def _write(self, number: int, contents: dict[str, np.ndarray]) -> None:
        if (name := not_finite(contents)) is not None:  # a divergence: the last good one stays
            self._complain(number, ValueError(f"{name} is not finite"))
            return
        path = os.path.join(self.folder, _name(number))
        check_readable(path, contents)
        write_whole({path: file_bytes(contents)})
        self._written.append(path)
        self._whole = [*self._whole, number][-KEPT:]
        # only now that this one is on the disk; those that were damaged as well
        for other, older in numbered(self.folder):
            if other not in self._whole:
                with suppress(OSError):
                    os.unlink(older)


def real_folder(path: str | PathLike[str]) -> str:
    """The path of a folder, whatever the folder is that a program goes to, or the link to it is called."""
    return os.path.realpath(expanduser(fsdecode(path)))


def _name(number: int) -> str:
    return f"checkpoint-{number:06d}.h5"


def numbered(folder: str) -> list[tuple[int, str]]:
    """The checkpoints of a folder, by number and path, the newest first."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # there is none, or no name of one: who writes there will say so
        return []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(((int(match[1]), os.path.join(folder, match[0])) for match in matches), reverse=True)


def can_be_resumed(folder: str) -> bool:
    """Whether there is a file that `resume` would look at."""
    return bool(numbered(folder)) or os.path.exists(os.path.join(folder, MODEL))


def check_same(path: str, found: Network, asked: Network) -> None:
    """ValueError names in what a checkpoint's network is another than the one that was asked for."""
    there, here = (
        {"scaling": network.schema and network.schema.scaling, **json.loads(architecture_of(network))}
        for network in (found, asked)
    )
    # None: what the data decides
    decided = {"input_scale"} if here["input_scale"] is None else set()
    for name in [name for name in {**here, **there} if name not in OF_A_TRAINING | decided]:
        if there.get(name) != here.get(name):
            if name == "schema":
                raise DataError(f"{path}: is of a network for another table: its columns, or their values, are others")
            raise ValueError(
                f"{path}: is of another network, whose {name} is {there.get(name)!r:.200}, not "
                f"{here.get(name)!r:.200}: give the settings that the run was started with, or begin a new run"
            )
    if found.classes != asked.classes:
        raise ValueError(f"{path}: is of a network for the classes {found.classes}, not {asked.classes}")


OF_A_TRAINING = {"epochs", "steps", "input_kind", "input_shape", "feature_names"}
"""What a network has from its training, beside its arrays."""


def remove_all(folder: str) -> None:
    """Remove the checkpoints of a run whose results are written."""
    for _, path in numbered(folder):
        with suppress(OSError):
            os.unlink(path)


def _locked(folder: str) -> int | None:
    """A handle of the folder with a lock, which the system lets go of when the process ends, however it does.

    None where the file system has no locks. OutputError where another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OutputError(
            f"{folder}: another training writes its checkpoints there: wait for it, or choose another folder"
        ) from None
    except OSError:
        os.close(handle)
        return None
    return handle


def resume(path: str | PathLike[str], backend: str | None = None) -> Network:
    """The network of the newest checkpoint of a run that is whole, with the fit that has not ended.

    path   the folder that `fit(checkpoint=...)` or `dnn train` wrote to, or one checkpoint of it

    `net.fit(X, Y)` then goes on with the settings that the fit was started with, to the same bits as if it had never
    been interrupted, on the same machine with as many threads. Validation data, weights of samples, callbacks and
    metrics of one's own are given again. A damaged checkpoint is named in the log and passed over. ModelFileError where
    there is none to go on with.
    """
    path = expanduser(fsdecode(path))
    found, stored = newest(path)
    network = network_of(path, found, backend)
    assert stored.fit is not None
    network.unfinished = network.fit_record = stored.fit
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        network.unfinished.folder = network.run_folder = real_folder(path)
    elif _NAME.fullmatch(name):
        network.unfinished.folder = network.run_folder = real_folder(folder)
    return network


def newest(path: str) -> tuple[dict[str, np.ndarray], Stored]:
    """What the newest checkpoint that is whole holds, of a folder or in this very file."""
    if os.path.isdir(path):
        candidates = [each for _, each in numbered(path)]
        if os.path.exists(model := os.path.join(path, MODEL)):
            candidates.append(model)
        if not candidates:
            raise ModelFileError(f"{path}: there is no checkpoint to go on with (checkpoint-000001.h5 or the like)")
    else:
        candidates = [path]
    problems: list[str] = []
    for each in candidates:
        try:
            found = contents(each, strict=True)
            if f"{GROUP}/state" in found:
                stored = Stored(bytes(found[f"{GROUP}/state"]), described(each, found))
                if stored.fit is not None:
                    for problem in problems:
                        _log.warning("%s; passed over: %s is the newest that is whole", problem, each)
                    return found, stored
            problems.append(
                f"{each}: has no fit to go on with: it was written by net.save, or without its state of training "
                "(dnn.load reads it)"
            )
        except ModelFileError as cause:
            problems.append(str(cause))
    raise ModelFileError("; ".join(problems))
