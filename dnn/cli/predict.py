"""dnn predict: write a model's predictions for a data file, as CSV or as an array."""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dnn.cli.common import add_common, add_isolate, add_names, add_split, chosen_part, inform, inform_device, show
from dnn.cli.data import open_data_for
from dnn.data.examples import check_known
from dnn.errors import DataError
from dnn.files import check_writable, write_results
from dnn.hdf5 import read_head
from dnn.losses import GaussianNLL, Quantile
from dnn.model_file import classes_of, load
from dnn.network import Network


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="write a model's predictions for a data file",
        description="Write a CSV with index, class, name and probability; for a linear output, index and values, with "
        "the variances or quantiles that the loss is for; for several sigmoid units, index and one probability per "
        "label.",
    )
    parser.add_argument("model", metavar="MODEL.h5", type=os.path.expanduser)
    parser.add_argument("data", metavar="DATA.h5|.csv|.parquet|X.npy", type=os.path.expanduser)
    add_split(parser)
    add_names(parser, labels=False)
    parser.add_argument(
        "--out",
        metavar="FILE.csv|.npy",
        type=os.path.expanduser,
        help="instead of CSV on stdout (-); .npy: the predictions only",
    )
    parser.add_argument("--spread", action="store_true", help="also how far the network's members disagree")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_isolate(parser)
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
        with open_data_for(given, network, labels=False) as data:
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
        if given.spread:
            raise ValueError("--spread is a column of CSV: give --out another name than .npy, or leave it out")
        array = io.BytesIO()
        np.save(array, network.predict(X))
        return array.getvalue()
    header, rows = _columns(network, X, network.predict_spread(X) if given.spread else None)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", *header])
    writer.writerows([i, *row] for i, row in enumerate(rows))
    return text.getvalue().encode()


def _columns(network: Network, X: Any, spread: np.ndarray | None) -> tuple[list[str], Iterable[Sequence[Any]]]:
    """The names of the columns, and their rows."""
    several = network.output == "sigmoid" and network.layer_sizes[-1] > 1
    if network.output == "linear" or several:
        answers = network.predict_proba(X) if several else network.predict(X)
        names = _labels(network) if several else _values(network)
        values = answers.reshape(-1, len(names))
        if spread is not None:
            values = np.hstack([values, spread.reshape(values.shape)])
            names = names + (["spread"] if len(names) == 1 else [f"spread_{name}" for name in names])
        return names, values
    probabilities, names = network.predict_proba(X), _labels(network)
    # the first of equals, and class 1 only above one half, as in Network.predict
    classes = probabilities.argmax(axis=1)
    rows = ([k, names[k], row[k]] for k, row in zip(classes.tolist(), probabilities, strict=True))
    if spread is None:
        return ["class", "name", "probability"], rows
    spread = spread if spread.ndim == 1 else spread[np.arange(len(spread)), classes]
    return ["class", "name", "probability", "spread"], ([*row, s] for row, s in zip(rows, spread, strict=True))


def _labels(network: Network) -> list[str]:
    return network.classes or _targets(network) or [str(k) for k in range(classes_of(network.layer_sizes))]


def _targets(network: Network) -> list[str] | None:
    """The names of several targets, if they were columns of a table."""
    names = [] if network.schema is None else list(network.schema.target)
    return names if len(names) == network.targets > 1 else None


def _values(network: Network) -> list[str]:
    """What the values of a linear output are: one for each target, or those that the loss answers with."""
    loss, targets = network.loss_function, network.targets
    if isinstance(loss, GaussianNLL):
        of_each = ["value", "variance"]
    elif isinstance(loss, Quantile):
        of_each = [f"q{level}" for level in loss.quantiles]
    else:
        of_each, targets = ["value"], network.layer_sizes[-1]
    if (names := _targets(network)) is not None:
        return [name if of_each == ["value"] else f"{name}_{each}" for name in names for each in of_each]
    return of_each if targets == 1 else [f"{name}_{k}" for k in range(targets) for name in of_each]
