"""dnn predict: write a model's predictions for a data file, as CSV or as an array."""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dnn.cli.common import add_common, add_names, add_split, chosen_part, inform, inform_device, show
from dnn.data import open_dataset
from dnn.data.examples import check_known
from dnn.data.hdf5 import read_head
from dnn.errors import DataError
from dnn.files import check_writable, write_results
from dnn.model_file import load
from dnn.network import Network


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="write a model's predictions for a data file",
        description="Write a CSV with index, class, name and probability; for a linear output, index and values; for "
        "several sigmoid units, index and one probability per label.",
    )
    parser.add_argument("model", metavar="MODEL.h5", type=os.path.expanduser)
    parser.add_argument("data", metavar="DATA.h5|X.npy", type=os.path.expanduser)
    add_split(parser)
    add_names(parser, labels=False)
    parser.add_argument(
        "--out",
        metavar="FILE.csv|.npy",
        type=os.path.expanduser,
        help="instead of CSV on stdout (-); .npy: the predictions only",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    if given.out == "-":
        given.out = None
    network = load(given.model, backend=given.backend)
    if given.out is not None:
        check_writable(given.out, given.force, [given.model, given.data])
    inform_device(given, network)
    if given.data.endswith(".npy"):
        content = _predictions(given, network, _load_npy(given.data))
    else:
        with open_dataset(given.data, given.x) as data:
            _, part = chosen_part(data, given.split)
            if network.classes is not None and data.classes not in (None, network.classes):
                check_known(data.path, data.classes, network.classes)
                inform(given, f"classes are numbered as in the model: {', '.join(network.classes)}")
            content = _predictions(given, network, part.X)
    if given.out is not None:
        write_results({given.out: content}, given.force)
    else:
        show(content.decode())


def _load_npy(path: str) -> np.ndarray:
    if not read_head(path, DataError).startswith(b"\x93NUMPY"):
        raise DataError(f"{path}: not a .npy file: write it with numpy.save")
    try:
        return np.load(path, allow_pickle=False)
    except OSError as cause:
        raise DataError(f"{path}: cannot be read: {cause.strerror or cause}") from None
    except (ValueError, EOFError) as cause:
        raise DataError(f"{path}: expected a complete, plain array of numbers: {cause}") from None


def _predictions(given: argparse.Namespace, network: Network, X: Any) -> bytes:
    if given.out is not None and given.out.endswith(".npy"):
        array = io.BytesIO()
        np.save(array, network.predict(X))
        return array.getvalue()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_rows(network, X))
    return text.getvalue().encode()


def _rows(network: Network, X: Any) -> Iterator[list[Any]]:
    units = network.layer_sizes[-1]
    if network.output == "linear":
        values = network.predict(X).reshape(-1, units)
        yield ["index", *(["value"] if units == 1 else [f"value_{k}" for k in range(units)])]
        for i, row in enumerate(values):
            yield [i, *row]
        return
    probabilities = network.predict_proba(X)
    names = network.classes or [str(k) for k in range(probabilities.shape[1])]
    if network.output == "sigmoid" and units > 1:
        yield ["index", *names]
        for i, row in enumerate(probabilities):
            yield [i, *row]
        return
    yield ["index", "class", "name", "probability"]
    for i, row in enumerate(probabilities):
        # the first of equals, and class 1 only above one half, as in Network.predict
        k = int(row.argmax())
        yield [i, k, names[k], row[k]]
