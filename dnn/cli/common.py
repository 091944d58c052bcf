"""What the commands share."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from dnn.data import Dataset, Part
from dnn.errors import DataError
from dnn.network import Network


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="NAME", help="numpy, cupy or auto (default: DNN_BACKEND, else numpy)")
    parser.add_argument("--quiet", action="store_true", help="only errors on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--x", metavar="NAME", help="the examples' data set, in a file of another layout")
    parser.add_argument("--y", metavar="NAME", help="the labels' data set, likewise")


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "test"), help="default: test where the file has it, else train")


def tell(given: argparse.Namespace, message: str) -> None:
    if not given.quiet:
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


def read_labels(part: Part) -> np.ndarray:
    """All labels of a part, in memory."""
    try:
        return np.asarray(part.Y[...])
    except OSError as cause:
        raise DataError(f"{part.Y.file.filename}: {part.Y.name[1:]}: damaged data: {cause}") from None
