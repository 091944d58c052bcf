"""Data files as commands take them: HDF5, or a table whose columns are named."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from shlex import quote
from typing import Any

import numpy as np

from dnn.cli.common import inform
from dnn.data import Dataset, open_dataset
from dnn.data.columns import Table, counted
from dnn.data.examples import targets_for
from dnn.data.hdf5 import check_as_converted
from dnn.data.schema import SCALINGS, Schema
from dnn.data.splitting import split_rows
from dnn.data.tables import COMPRESSED, check_named, is_table_file, open_table
from dnn.errors import DataError
from dnn.network import Network

FILES = "DATA.h5|.csv|.parquet"
TABLE_FLAGS = "target", "drop", "categories", "scaling"
OF_COLUMNS = "target", "drop", "categories"
TO_CONVERT = (".npz", ".npy", "-ubyte", "-ubyte.gz")


def add_table_flags(group: argparse._ActionsContainer, learning: bool = False, labels: bool = True) -> None:
    """How the columns of a table are taken; `learning`: there is no model yet that knows."""
    if labels:
        which = "" if learning else " (default: the model's)"
        group.add_argument("--target", metavar="NAME,...", help=f"the labels' columns of a table{which}")
    if learning:
        group.add_argument("--drop", metavar="NAME,...", help="columns to leave out")
        group.add_argument("--categories", metavar="NAME,...", help="text or codes that are categories")
        group.add_argument(
            "--scaling",
            metavar="NAME",
            choices=SCALINGS,
            default="standard",
            help=f"of numbers: {', '.join(SCALINGS)} (default: standard)",
        )


def open_data(given: argparse.Namespace, path: str, like: Dataset | None = None) -> Dataset:
    """The data file of a training; `like`: with the columns, and numbers of classes, of that other one."""
    if not is_table_file(path):
        return _open_hdf5(given, path, given.y, OF_COLUMNS if like is None else ("target",))
    _refuse_names_of_sets(given, path)
    target, columns = given.target, None
    if like is not None and like.train is not None and isinstance(like.train.X, Table):
        columns, target = like.train.X.columns_of, target or like.train.X.target
    if not target:
        raise DataError(f"{path}: name the column of the labels with --target")
    inform(given, f"reading {path}")
    data = open_table(
        path,
        target,
        drop=given.drop or (),
        categories=(given.categories or ()) if columns is None else (),
        columns=columns,
        classes=None if like is None else like.classes,
        missing=given.missing_targets == "mask",
        name="train" if like is None else "test",
        flags=True,
    )
    if like is not None:
        check_named(path, data.classes, like.classes, "the training part")
    return data


def name_of_run(path: str) -> str:
    """The file's name without endings."""
    name = os.path.basename(path)
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[0]


def _open_hdf5(given: argparse.Namespace, path: str, y: str | None, of_columns: Sequence[str]) -> Dataset:
    """An HDF5 file, of which nothing else is asked than it says of its columns."""
    if (os.path.isdir(path) and not path.endswith((".h5", ".hdf5"))) or path.endswith(TO_CONVERT):
        name = os.path.splitext(os.path.basename(os.path.abspath(path)))[0]
        what = "a folder" if os.path.isdir(path) else "no HDF5 file"
        raise DataError(f"{path}: it is {what}: make a data file of it: dnn convert {quote(path)} {quote(name)}.h5")
    if path.lower().endswith(".txt"):
        raise DataError(f"{path}: no HDF5 file: call it .csv if it is a table")
    data = open_dataset(path, given.x, y)
    try:
        asked: dict[str, Any] = {f"--{name}": getattr(given, name, None) for name in of_columns}
        check_as_converted(path, data.train or data.test, {name: value for name, value in asked.items() if value})
    except BaseException:
        data.close()
        raise
    return data


def open_data_for(given: argparse.Namespace, network: Network, labels: bool = True) -> Dataset:
    """The data file that a model answers for; without `labels`, a column of them is left out."""
    path = given.data
    if not is_table_file(path):
        data = _open_hdf5(given, path, given.y if labels else None, ("target",))
        return _checked_names(data, network) if labels else data
    _refuse_names_of_sets(given, path)
    schema = network.schema
    target: str | Sequence[str] = getattr(given, "target", None) or (() if schema is None else schema.target)
    if labels and not target:
        raise DataError(f"{path}: name the column of the labels with --target")
    data = open_table(
        path,
        target if labels else None,
        drop=() if labels else target,
        columns=None if schema is None else schema.columns,
        classes=network.classes,
        missing=getattr(given, "missing_targets", None) == "mask",
        flags=True,
    )
    return _checked_names(data, network) if labels else data


def _checked_names(data: Dataset, network: Network) -> Dataset:
    """DataError where a table's labels have names, and the model has none that tell their numbers."""
    part = data.train or data.test
    if part is not None and isinstance(part.X, Table):
        check_named(data.path, data.classes, network.classes)
    return data


def _refuse_names_of_sets(given: argparse.Namespace, path: str) -> None:
    if given.x is not None or getattr(given, "y", None) is not None:
        raise DataError(f"{path}: --x and --y name data sets of HDF5; the columns of a table are named by --target")


def schema_of(given: argparse.Namespace, X: Any, labels: np.ndarray, output: str, units: int) -> Schema | None:
    """What the examples of a table, without those held out for validation, say of its columns."""
    if not isinstance(X, Table):
        if given.scaling != "standard":
            raise DataError(f"{given.data}: --scaling is for tables, and the file has arrays: leave it out")
        return None
    inform(given, f"columns: {counted(X.columns_of)}")
    # what decides the split of a network: its seed, and what its labels are
    network = Network([1, units], output=output, seed=given.seed, loss=given.loss, backend="numpy")
    targets, _ = targets_for(network, labels, len(labels), missing=given.missing_targets == "mask")
    _, rows = split_rows(network, targets, getattr(given, "validation_split", 0.0))
    return Schema.learn(X, scaling=given.scaling, rows=rows)
