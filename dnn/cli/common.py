"""Options and helpers shared by the subcommands."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from dnn.data import Dataset, Part
from dnn.data.sources import read
from dnn.errors import DataError, NonFiniteLossError, OutputError, printable
from dnn.hdf5 import place_of
from dnn.network import Network


def add_common(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--backend", metavar="NAME", help="numpy, cupy or auto (default: DNN_BACKEND, else numpy)")
    parser.add_argument(
        "--threads", metavar="N", type=_number_of_threads, help="CPU threads (default: DNN_NUM_THREADS, else all)"
    )
    parser.add_argument("--quiet", action="store_true", help="print only errors to stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _number_of_threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def add_names(parser: argparse._ActionsContainer, labels: bool = True) -> None:
    parser.add_argument("--x", metavar="NAME", help="data set with the examples, if the file has another layout")
    if labels:
        parser.add_argument("--y", metavar="NAME", help="data set with the labels, likewise")


def add_isolate(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="read files that are not trusted in a process of its own, with limits on memory and time",
    )


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "test"), help="default: test if the file has it, else train")


def show(text: str) -> None:
    """Write the whole text to standard output, or raise OutputError; BrokenPipeError if its reader has left."""
    if sys.stdout is None:
        raise OutputError("standard output: cannot be written: it is closed")
    try:
        sys.stdout.flush()
        if not hasattr(sys.stdout, "buffer"):
            sys.stdout.write(text)
        else:
            left = memoryview(text.encode(sys.stdout.encoding, "backslashreplace"))
            while left:  # unbuffered, a full disk accepts part of it without an error
                left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.flush()
    except OSError as cause:
        discard_unwritten(sys.stdout)
        if isinstance(cause, BrokenPipeError):
            raise
        raise OutputError(f"standard output: cannot be written: {cause.strerror}") from None


def discard_unwritten(stream: TextIO) -> None:
    """Let go of what a stream could not write, or Python would fail again at exit, with a status of its own."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def inform(given: argparse.Namespace, message: str) -> None:
    if not given.quiet:
        with contextlib.suppress(OSError):  # a lost message is no reason to stop
            print(printable(message), file=sys.stderr, flush=True)


def inform_device(given: argparse.Namespace, network: Network) -> None:
    inform(given, f"backend {network.backend.name}, {network.backend.device}, {network.dtype.name}")


def chosen_part(data: Dataset, split: str | None) -> tuple[str, Part]:
    """The part of that name; by default test if the file has it, else train."""
    parts = {"train": data.train, "test": data.test}
    split = split or ("test" if data.test is not None else "train")
    part = parts[split]
    if part is None:
        raise DataError(f"{data.path}: no {split} part (no {split}_set_x): choose the other with --split, or name --x")
    return split, part


def in_words(measured: dict[str, Any]) -> str:
    """The numbers in one line, and below it each matrix, a line a row."""
    numbers = {name: value for name, value in measured.items() if not isinstance(value, np.ndarray)}
    lines = [", ".join(f"{name} {value:.5f}" for name, value in numbers.items())]
    for name, value in measured.items():
        if name not in numbers:
            rows = [[f"{count:g}" for count in row] for row in value.reshape(-1, value.shape[-1])]
            width = max(len(count) for row in rows for count in row)
            lines += [f"{name}:", *("  " + " ".join(count.rjust(width) for count in row) for row in rows)]
    return "\n".join(lines)


def for_json(value: Any) -> Any:
    """Arrays as lists, and None for a number that JSON cannot represent."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): for_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_finite(network: Network, measured: dict[str, Any], of: str) -> None:
    """Raise NonFiniteLossError if the loss on this part is not finite: JSON cannot represent it."""
    if not math.isfinite(measured["loss"]):
        raise NonFiniteLossError(
            f"the loss on {of} is {measured['loss']} in {network.dtype}: train with a lower learning rate, or scale X"
        )


def read_labels(part: Part) -> np.ndarray:
    """All labels of a part, read into memory."""
    return part.Y if isinstance(part.Y, np.ndarray) else read(place_of(part.Y), part.Y, ...)
