"""What the commands share."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys

import numpy as np

from dnn.data import Dataset, Part
from dnn.errors import DataError, NonFiniteLossError, OutputError
from dnn.network import Network


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help="numpy, cupy or auto (default: DNN_BACKEND, else numpy)")
    parser.add_argument(
        "--threads", metavar="N", type=_number_of_threads, help="of the CPU (DNN_NUM_THREADS, else all)"
    )
    parser.add_argument("--quiet", action="store_true", help="only errors on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _number_of_threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def add_names(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    parser.add_argument("--x", metavar="NAME", help="the examples' data set, in a file of another layout")
    if labels:
        parser.add_argument("--y", metavar="NAME", help="the labels' data set, likewise")


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "test"), help="default: test where the file has it, else train")


def show(text: str) -> None:
    """All of the text on standard output, or OutputError."""
    if sys.stdout is None:
        raise OutputError("standard output: cannot be written: it is closed")
    try:
        sys.stdout.flush()
        if not hasattr(sys.stdout, "buffer"):
            sys.stdout.write(text)
        else:
            left = memoryview(text.encode(sys.stdout.encoding, "backslashreplace"))
            while left:  # unbuffered, a full disk takes a part and says nothing
                left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.flush()
    except OSError as cause:
        # what could not be written is dropped here, or Python would complain of it once more at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: cannot be written: {cause.strerror}") from None


def tell(given: argparse.Namespace, message: str) -> None:
    if not given.quiet:
        with contextlib.suppress(OSError):  # no reason to stop the work
            print(message, file=sys.stderr, flush=True)


def tell_device(given: argparse.Namespace, network: Network) -> None:
    tell(given, f"backend {network.backend.name}, {network.backend.device}, {network.dtype.name}")


def chosen_part(data: Dataset, split: str | None) -> tuple[str, Part]:
    """The part asked for; without a wish test where there is one, else train."""
    parts = {"train": data.train, "test": data.test}
    split = split or ("test" if data.test is not None else "train")
    part = parts[split]
    if part is None:
        raise DataError(f"{data.path}: it has no {split} part (no {split}_set_x)")
    return split, part


def in_words(measured: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.5f}" for name, value in measured.items())


def check_finite(network: Network, measured: dict[str, float], of: str) -> None:
    """NonFiniteLossError where the loss of this part is none: neither JSON nor a reader can use it."""
    if not math.isfinite(measured["loss"]):
        raise NonFiniteLossError(
            f"the loss of {of} is {measured['loss']} in {network.dtype}: train with a lower learning rate, or scale X"
        )


def read_labels(part: Part) -> np.ndarray:
    """All labels of a part, in memory."""
    try:
        return np.asarray(part.Y[...])
    except OSError as cause:
        raise DataError(f"{part.Y.file.filename}: {part.Y.name[1:]}: damaged data: {cause}") from None
