"""Reading an untrusted file in a process of its own, with limits on memory and time.

HDF5 is a large library written in C, and a file that was made to can crash it. Here only a child process reads the
file: whatever becomes of it, the parent gets its content or one line that says what happened.

On Linux the limit on memory is on what is allocated (RLIMIT_DATA): files that are mapped, and the addresses that CUDA
reserves, are no use of memory. Elsewhere it is on addresses (RLIMIT_AS), where the system has that at all.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fsdecode
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np

import dnn.hdf5
from dnn import chunk_index
from dnn.errors import DataError, ModelFileError, printable

MEMORY = 4 << 30
"""Bytes that a child may allocate."""
SECONDS = 60.0
"""How long reading a model file may take."""

_ROOT = str(Path(__file__).resolve().parents[1])
_START = f"""import sys
if {_ROOT!r} not in sys.path:
    sys.path.insert(0, {_ROOT!r})
from dnn import isolation
"""
_COMMAND = """isolation._confined(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
from dnn.cli import main
sys.exit(main(sys.argv[4:]))
"""
_READER = """isolation._confined(int(sys.argv[1]), float(sys.argv[2]))
from dnn.model_file import contents
isolation._send(sys.argv[3], contents)
"""


def run_isolated(arguments: Sequence[str], memory: int = MEMORY, seconds: float | None = None) -> int:
    """Run `dnn` with these arguments in a child process and return its exit status.

    Input, output and messages are the child's own. A child that a signal ends, or that takes more than `seconds`,
    becomes one line on stderr that names the file it was reading, and the exit status of an invalid one: 4 for a model,
    3 for data. Ctrl-C and requests to end are passed on.
    """
    with tempfile.TemporaryFile() as opened:
        child = subprocess.Popen(
            [*_python(_COMMAND), str(memory), str(seconds or 0), str(opened.fileno()), *arguments],
            pass_fds=(opened.fileno(),),
            process_group=0,  # a terminal sends Ctrl-C to all of a group: so the child gets it once, from here
        )
        late = False
        with _passing_on(child):
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                late = True
                child.kill()
                status = child.wait()
        if status >= 0:
            return status
        opened.seek(0)
        last = opened.read().decode("utf-8", "surrogateescape") or "3dnn"
    how = f"took more than {seconds:g} s" if late else f"was ended by {_signal_name(-status)}"
    print(f"dnn: {printable(last[1:])}: {_refusal(how)}", file=sys.stderr, flush=True)
    return int(last[0])


def contents_isolated(
    path: str | bytes | PathLike[str], memory: int = MEMORY, seconds: float = SECONDS
) -> dict[str, np.ndarray]:
    """What `dnn.model_file.contents` finds in a model file, read and checked in a child process.

    ModelFileError says what is wrong with the file, a crash or a hang of its reader included.
    """
    path = expanduser(fsdecode(path))
    arguments = [str(memory), str(seconds), path]
    child = subprocess.Popen(
        [*_python(_READER), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    watch = threading.Timer(seconds, end)
    watch.start()
    try:
        assert child.stdout is not None
        sent = child.stdout.read(memory + 1)
        if len(sent) > memory:
            child.kill()
    except BaseException:
        child.kill()
        raise
    finally:
        status = child.wait()
        watch.cancel()
        if child.stdout is not None:
            child.stdout.close()
    if late.is_set():
        raise ModelFileError(f"{path}: {_refusal(f'took more than {seconds:g} s')}")
    if len(sent) > memory:
        raise ModelFileError(f"{path}: {_refusal(f'gave more than {memory} bytes')}")
    if status < 0:
        raise ModelFileError(f"{path}: {_refusal(f'was ended by {_signal_name(-status)}')}")
    if status == 4:
        raise ModelFileError(sent.decode("utf-8", "surrogateescape"))
    if status:
        raise ModelFileError(f"{path}: {_refusal(f'ended with status {status}')}")
    return _received(path, sent)


def _refusal(how: str) -> str:
    return f"reading it, in a process of its own, {how}: refused; the file is damaged, or made to do that"


def _python(code: str) -> list[str]:
    # -P: the folder where the command is run is no place to import from
    return [sys.executable, "-P", "-c", _START + code]


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[Any]) -> Iterator[None]:
    """Signals that ask this process to stop go to the child instead, whose exit status then says so."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread has signal handlers
        yield
        return

    def send(number: int, frame: Any) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, send) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ------------------------------------------------------------------------------------- in the child


def _confined(memory: int, seconds: float, opening: int | None = None) -> None:
    """Limit this process. `opening` is a file for the path of what it opens: a crash is blamed on the last."""
    import resource

    chunk_index.expendable = True
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS, _allocated() + memory),
        # should the parent be gone, that watches the clock
        (resource.RLIMIT_CPU, int(seconds + 1) * (os.cpu_count() or 1) if seconds else resource.RLIM_INFINITY),
    ):
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > most):
            limit = most
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(kind, (limit, most))
    # what C libraries say when they abort goes nowhere: what is to be said is said by Python, and by the parent
    sys.stderr = open(os.dup(2), "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if opening is not None:

        def tell(path: str, error: type[Exception]) -> None:
            kind = 4 if issubclass(error, ModelFileError) else 3
            os.ftruncate(opening, 0)
            os.pwrite(opening, f"{kind}{path}".encode("utf-8", "surrogateescape"), 0)

        dnn.hdf5.on_opening = tell


def _allocated() -> int:
    """Bytes that this process has already, of what the limit counts."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 1 << 30
    return int(status.split("VmData:")[1].split()[0]) * 1024


def _send(path: str, contents: Callable[[str], dict[str, np.ndarray]]) -> None:
    """Write what a file contains to standard output as an .npz, or what is wrong with it, with exit status 4."""
    wrong = ""
    try:
        found = contents(path)
    except (ModelFileError, DataError) as error:
        wrong = str(error)
    except MemoryError:
        wrong = f"{path}: {_refusal('took more memory than it may')}"
    if wrong:
        sys.stdout.buffer.write(wrong.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
        sys.exit(4)
    with zipfile.ZipFile(sys.stdout.buffer, "w") as archive:  # as numpy.savez, which has names that it cannot write
        for name, array in found.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _received(path: str, sent: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz that a child has sent, which may no longer be our own code."""
    try:
        with zipfile.ZipFile(io.BytesIO(sent)) as archive:
            found = {}
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(sent):
                    raise ValueError("a compressed array")
                with archive.open(member) as content:
                    array = np.lib.format.read_array(content, allow_pickle=False)
                found[member.filename.removesuffix(".npy")] = array
            return found
    except (ValueError, OSError, EOFError, LookupError, MemoryError, zipfile.BadZipFile) as cause:
        raise ModelFileError(f"{path}: {_refusal(f'gave no arrays ({cause})')}") from None
