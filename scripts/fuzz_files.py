"""Mutate small model, checkpoint and data files, and read each mutant.

    python scripts/fuzz_files.py --count 10000 [--seed N] [--kinds data,model,checkpoint] [--jobs 2] [--one NUMBER]

Of every mutant the reader must say in one line what is wrong, or read it: no traceback, no warning of Python or NumPy,
nothing over 5 s, no crash of the HDF5 library, and no more memory than its budget; exit status 1 where something else
was found. What crashes or hangs the reader is read again with `--isolate`, where it must give one line. A mutant is a
function of the seed and its number alone, so `--one` makes it again and keeps the file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import queue
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import dnn
from dnn import chunk_index
from dnn.backends import use_compiled_steps
from dnn.data import prepare
from dnn.errors import DnnError
from dnn.isolation import contents_isolated
from dnn.model_file import contents, file_bytes, network_of, save

SECONDS = 5.0
"""The most that reading a mutant may take."""
BUDGET = 256 << 20
"""The bytes that a reader may allocate over what it starts with."""
KINDS = "data", "model", "checkpoint"
SIGNATURES = (
    *(b"\x89HDF\r\n\x1a\n", b"OHDR", b"OCHK", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"FRHP", b"FHDB", b"FHIB"),
    *(b"BTHD", b"BTLF", b"BTIN", b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EADB", b"EASB"),
)
"""With which the parts of an HDF5 file begin."""

# ------------------------------------------------------------------------------------------- samples


@functools.cache
def samples(kind: str) -> list[bytes]:
    """Small files of that kind, in the layouts that HDF5 has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sample.h5")
        found = []
        for make in (data_files if kind == "data" else model_files)(kind):
            make(path)
            found.append(path.read_bytes())
            path.unlink()
        return found


def data_files(kind: str) -> list[Callable[[Path], None]]:
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((12, 4)), generator.integers(0, 2, 12)
    pixels = generator.integers(0, 256, (12, 2, 2), np.uint8)

    def plain(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["train_set_x"], file["train_set_y"], file["test_set_x"], file["test_set_y"] = pixels, Y, pixels, Y
            file["list_classes"] = np.array([b"non-cat", b"cat"])

    def packed(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, values in (("train_set_x", X), ("train_set_y", Y)):
                chunks = (5, *values.shape[1:])
                file.create_dataset(name, data=values, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)
            file["list_classes"] = ["non-cat", "cat"]  # of variable length

    def newest(path: Path) -> None:
        with h5py.File(path, "w", libver="latest", track_order=True) as file:
            file.create_dataset("train_set_x", data=X, chunks=(4, 2), compression="lzf")
            file.create_dataset("train_set_y", data=Y, chunks=(4,), maxshape=(None,))
            file.create_dataset("test_set_x", data=X, chunks=(4, 2), maxshape=(None, None))
            file["test_set_y"] = Y
            file["list_classes"] = np.array([b"non-cat", b"cat"])
            for i in range(12):
                file[f"group/{i}"] = i
                file.attrs[f"attribute {i}"] = "text"

    return [plain, packed, newest]


def model_files(kind: str) -> list[Callable[[Path], None]]:
    def trained(**settings: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            network = dnn.Network([4, 3, 2], output="softmax", seed=1, **settings)
            network.classes = ["a", "ç"]
            X, Y = np.random.default_rng(0).standard_normal((12, 4)), np.arange(12) % 2
            with use_compiled_steps(False):  # compiling takes a second
                network.fit(X, Y, epochs=2, batch_size=5, optimizer=dnn.Adam(0.01))
            save(network, path, training_state=kind == "checkpoint")

        return make

    return [trained(), trained(norm="batch", dropout=0.2)]


# ------------------------------------------------------------------------------------------- mutants


def mutant(kind: str, number: int, seed: int, of: list[bytes]) -> bytes:
    chance = random.Random(f"{seed} {kind} {number}")
    content = bytearray(chance.choice(of))
    if kind != "data" and chance.random() < 0.3:
        return _said_otherwise(bytes(content), chance)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice((_bits, _bits, _truncated, _spliced, _zeroed, _swapped, _field, _field, _field, _field))(
            content, chance
        )
    if chance.random() < 0.8:
        _sign(content)
    return bytes(content)


def _bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _truncated(content: bytearray, chance: random.Random) -> None:
    del content[max(1, chance.randrange(len(content))) :]


def _spliced(content: bytearray, chance: random.Random) -> None:
    start, length, to = (chance.randrange(len(content)) for _ in range(3))
    part = content[start : start + min(length, 512)]
    content[to : to + len(part)] = part


def _zeroed(content: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(len(content)), chance.randrange(1, 257)
    part = content[start : start + length]
    content[start : start + length] = bytes([chance.choice((0, 0, 255))]) * len(part)


def _swapped(content: bytearray, chance: random.Random) -> None:
    size = chance.choice((8, 64, 512))
    a, b = (chance.randrange(max(1, len(content) // size)) * size for _ in range(2))
    one, other = content[a : a + size], content[b : b + size]
    if len(one) == len(other):
        content[a : a + size], content[b : b + size] = other, one


def _places(content: bytes | bytearray, signature: bytes) -> list[int]:
    found, place = [], content.find(signature)
    while place >= 0:
        found.append(place)
        place = content.find(signature, place + 1)
    return found


def _field(content: bytearray, chance: random.Random) -> None:
    """A number in the head of one of the file's parts, where lengths, counts and addresses are."""
    parts = [place for signature in SIGNATURES for place in _places(content, signature)]
    old_heads = [place for place in range(0, len(content) - 16, 8) if content[place : place + 2] == b"\1\0"]
    place = chance.choice(parts + old_heads or [0]) + chance.randrange(4, 96)
    width = chance.choice((1, 1, 2, 4, 8))
    if place + width > len(content):
        return
    now = int.from_bytes(content[place : place + width], "little")
    largest = (1 << 8 * width) - 1
    value = chance.choice(
        (
            *(0, 1, now + 1, now - 1, now * 2, largest, largest // 2, largest // 2 + 1, len(content), len(content) - 8),
            *chance.sample(parts, min(1, len(parts))),
            chance.randrange(largest + 1),
        )
    )
    content[place : place + width] = (value & largest).to_bytes(width, "little")


def _said_otherwise(content: bytes, chance: random.Random) -> bytes:
    """A model or checkpoint whose checksums are right, and whose texts or numbers are not."""
    arrays = dict(_arrays(content))
    name = chance.choice([*arrays, "architecture", "training/state"])
    if name in arrays and arrays[name].dtype.kind == "S" and arrays[name].shape == ():
        given = json.loads(bytes(arrays[name][()]))
        with contextlib.suppress(IndexError, AttributeError):
            _change(given, chance)
        text = json.dumps(given).encode()
        arrays[name] = np.array(text)
    elif name in arrays and arrays[name].dtype.kind in "fiu":
        array = arrays[name].copy()
        if array.size:
            value: Any = chance.choice((np.nan, np.inf, -1, 0, 1e30) if array.dtype.kind == "f" else (0, 1, 100))
            array.reshape(-1)[chance.randrange(array.size)] = value
        arrays[name] = chance.choice((array, array[..., :0] if array.ndim else array, array.astype("f8")))
    if chance.random() < 0.1:
        arrays.pop(chance.choice([each for each in arrays if each != "architecture"]))
    arrays.pop("training/checksum", None)
    try:
        return file_bytes(arrays)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return content


@functools.cache
def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with tempfile.NamedTemporaryFile(suffix=".h5") as file:
        file.write(content)
        file.flush()
        return contents(file.name)


def _change(given: Any, chance: random.Random) -> None:
    """Another value somewhere in what JSON says."""
    odd = (
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "relu",
        [],
        {},
        [[]],
        [1] * 9,
    )
    while True:
        keys = list(given) if isinstance(given, dict) else list(range(len(given)))
        key = chance.choice(keys)
        inner = given[key]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            given = inner
            continue
        if chance.random() < 0.15 and isinstance(given, dict):
            del given[key]
        else:
            given[key] = chance.choice(odd)
        return


def _sign(content: bytearray) -> None:
    """Make HDF5's own checksums right, of the parts whose length is told: it would stop at them otherwise."""
    if content[:8] == SIGNATURES[0] and len(content) >= 48 and content[8] in (2, 3):
        content[44:48] = struct.pack("<I", lookup3(bytes(content[:44])))
    for place in _places(content, b"OHDR"):
        if place + 6 > len(content):
            continue
        flags = content[place + 5]
        start = place + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        end = start + width + int.from_bytes(content[start : start + width], "little")
        if end + 4 <= len(content):
            content[end : end + 4] = struct.pack("<I", lookup3(bytes(content[place:end])))
    for signature, length in ((b"BTHD", 34), (b"FAHD", 24), (b"EAHD", 68), (b"FRHP", 142)):
        for place in _places(content, signature):
            if place + length + 4 <= len(content):
                found = struct.pack("<I", lookup3(bytes(content[place : place + length])))
                content[place + length : place + length + 4] = found


def lookup3(key: bytes) -> int:
    """Bob Jenkins' hash, as HDF5 computes it."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(key)) & mask
    if not key:
        return c

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    words = struct.unpack(f"<{-(-len(key) // 12) * 3}I", key + bytes(-len(key) % 12))
    for i in range(0, len(words), 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        if i == len(words) - 3:
            break
        for first, second, third in ((4, 6, 8), (16, 19, 4)):
            a = (a - c & mask) ^ rotated(c, first)
            c = c + b & mask
            b = (b - a & mask) ^ rotated(a, second)
            a = a + c & mask
            c = (c - b & mask) ^ rotated(b, third)
            b = b + a & mask
    c = (c ^ b) - rotated(b, 14) & mask
    a = (a ^ c) - rotated(c, 11) & mask
    b = (b ^ a) - rotated(a, 25) & mask
    c = (c ^ b) - rotated(b, 16) & mask
    a = (a ^ c) - rotated(c, 4) & mask
    b = (b ^ a) - rotated(a, 14) & mask
    return (c ^ b) - rotated(b, 24) & mask


# --------------------------------------------------------------------------------------------- reader


def read(kind: str, path: str) -> None:
    """All of a file that a training or an evaluation would read."""
    if kind == "data":
        network = dnn.Network([4, 2, 1])
        with dnn.open_dataset(path) as data:
            for part in filter(None, (data.train, data.test)):
                prepare(network, part.X, part.Y)
        return
    network_of(path, contents(path, strict=kind == "checkpoint"), "numpy")


def outcome(kind: str, path: str) -> str:
    try:
        read(kind, path)
    except DnnError as error:
        message = str(error)
        return "refused" if "\n" not in message and message else f"BAD: not one line: {message!r}"
    except MemoryError:
        return "BAD: MemoryError"
    except BaseException as error:
        return f"BAD: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "read"


def work(seed: int, expendable: bool) -> None:
    """Read the mutants whose kinds and numbers come by standard input, a line each; answer a line each."""
    chunk_index.expendable = expendable
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    of = {kind: samples(kind) for kind in KINDS}
    for kind in KINDS:  # what is imported and allocated once is not counted
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            file.write(of[kind][0])
            file.flush()
            assert outcome(kind, file.name) == "read", outcome(kind, file.name)
    allocated = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (allocated + BUDGET,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    answers = os.fdopen(os.dup(1), "w", 1)
    os.dup2(2, 1)
    print("ready", file=answers)
    with answers, tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            kind, number = line.split()
            path = str(Path(folder, f"{number}.h5"))
            Path(path).write_bytes(mutant(kind, int(number), seed, of[kind]))
            print(outcome(kind, path), file=answers)
            os.unlink(path)


# ----------------------------------------------------------------------------------------- the pool


class Worker:
    """A process that reads mutants, and is replaced when one ends it."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, __file__, "--work", "--seed", str(seed)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.buffer = b""
        self.answer(120)

    def answer(self, seconds: float) -> str | None:
        """A line; None where none comes in time. EOFError where the process has ended."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise EOFError
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def read(self, kind: str, number: int) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {number}\n".encode())
        self.process.stdin.flush()
        try:
            found = self.answer(SECONDS)
        except EOFError:
            status = self.process.wait()
            return f"crash: {signal.Signals(-status).name if status < 0 else status}"
        return found or "hang"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def isolated(kind: str, content: bytes) -> str:
    """What a file does that crashes or hangs its reader, where it is read with --isolate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutant.h5")
        path.write_bytes(content)
        if kind != "data":
            try:
                contents_isolated(path, BUDGET, SECONDS)
            except DnnError as error:
                return "one line" if "\n" not in str(error) else "BAD: not one line"
            return "read"
        model = Path(folder, "model.h5")
        save(dnn.Network([4, 2, 1]), str(model))
        found = []
        for split in ("train", "test"):
            code = "import sys; from dnn.isolation import run_isolated; "
            code += f"sys.exit(run_isolated(sys.argv[1:], seconds={SECONDS}))"
            given = ["evaluate", "--quiet", "--split", split, str(model), str(path)]
            done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=60)
            fine = done.returncode == 3 and done.stderr.count("\n") == 1 and done.stderr.startswith("dnn: ")
            if not fine and (done.returncode or done.stderr):
                return f"BAD: status {done.returncode}: {done.stderr[-300:]!r}"
            found.append("one line" if fine else "read")
        return " and ".join(sorted(set(found)))


def fuzz(count: int, seed: int, kinds: list[str], jobs: int) -> Counter[str]:
    """What became of the mutants; the bad ones are printed with their numbers."""
    left: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for number in range(count):
        for kind in kinds:
            left.put((kind, number))
    results: Counter[str] = Counter()
    lock = threading.Lock()

    def run() -> None:
        worker = Worker(seed)
        while True:
            try:
                kind, number = left.get_nowait()
            except queue.Empty:
                break
            found = worker.read(kind, number)
            if found.startswith(("hang", "crash")):
                worker.end()
                worker = Worker(seed)
                with lock:
                    again = isolated(kind, mutant(kind, number, seed, samples(kind)))
                found = f"{found}; isolated: {again}"
            with lock:
                results[f"{kind}: {found}"] += 1
                if found not in ("read", "refused"):
                    print(f"{kind} {number}: {found}", flush=True)
        worker.end()

    threads = [threading.Thread(target=run) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", type=int, metavar="NUMBER", help="make this mutant, of the one kind, and keep it")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--expendable", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.seed, given.expendable)
        return 0
    if given.one is not None:
        path = Path(f"{given.kinds}-{given.seed}-{given.one}.h5")
        path.write_bytes(mutant(given.kinds, given.one, given.seed, samples(given.kinds)))
        print(path)
        return 0
    results = fuzz(given.count, given.seed, given.kinds.split(","), given.jobs)
    for found, times in sorted(results.items()):
        print(f"{times:7}  {found}")
    return 0 if {found.split(": ", 1)[1] for found in results} <= {"read", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
