"""dnn convert: make a data file of tables, arrays, pictures, or of another data file."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from dnn.cli.common import inform, show
from dnn.data import Dataset, Part, open_dataset
from dnn.data.arrays import (
    GZIP,
    NPY,
    ZIP,
    images_in,
    is_gzipped_idx,
    is_idx,
    open_idx,
    open_npy,
    open_npz,
    renumbered,
)
from dnn.data.columns import Column, counted
from dnn.data.hdf5 import schema_in
from dnn.data.pictures import open_pictures
from dnn.data.sources import Rows, read
from dnn.data.splitting import held_out_rows, shuffled
from dnn.data.tables import Table, convert_table, is_table_file
from dnn.data.writing import COMPRESSIONS, Written, new_hdf5, write_parts
from dnn.errors import DataError
from dnn.files import check_writable
from dnn.hdf5 import open_hdf5, read_head, reporting_damage
from dnn.interrupt import whole_steps
from dnn.progress import show_share

TABLE, HDF5, NPY_FILE, NPZ, IDX, PICTURES = "tables", "HDF5 files", ".npy files", ".npz files", "idx files", "pictures"
FLAGS = {
    "x": (NPZ, HDF5),
    "y": (NPY_FILE, NPZ, IDX, HDF5),
    "target": (TABLE,),
    "drop": (TABLE,),
    "categories": (TABLE,),
    "size": (PICTURES,),
    "gray": (PICTURES,),
}
"""Flags that not every kind of source takes, with those that do."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="make a data file of tables, arrays or pictures",
        description="Write OUT.h5, which dnn train reads, of a table (.csv, .tsv, .parquet, .feather, .arrow), arrays "
        "(.npy, .npz), idx files as MNIST's (.gz too), a folder of pictures with one folder for each class (in train/ "
        "and test/, if it has those), or of another .h5, in bounded memory.",
    )
    parser.add_argument("source", metavar="SOURCE", type=os.path.expanduser, help="a file or a folder")
    parser.add_argument("out", metavar="OUT.h5", type=os.path.expanduser)
    test = parser.add_mutually_exclusive_group()
    test.add_argument("--test", metavar="SOURCE", type=os.path.expanduser, help="the test part, of the same kind")
    test.add_argument("--test-split", metavar="F", type=float, help="fraction to hold out as the test part, by classes")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of --test-split and --shuffle (default: 0)")
    parser.add_argument("--shuffle", action="store_true", help="write the training part in random order")
    parser.add_argument(
        "--compress", choices=COMPRESSIONS, default="none", help="(default: none, the fastest to train from)"
    )
    table = parser.add_argument_group("of a table")
    table.add_argument("--target", metavar="COLUMN[,...]", help="what is to be predicted")
    table.add_argument("--drop", metavar="COLUMN[,...]", help="columns to leave out")
    table.add_argument("--categories", metavar="COLUMN[,...]", help="numbers or texts that are categories")
    arrays = parser.add_argument_group("of arrays and HDF5")
    arrays.add_argument("--x", metavar="NAME", help="array with the examples, if the file has other names")
    arrays.add_argument("--y", metavar="NAME", help="array with the labels, likewise; of .npy and idx, their file")
    pictures = parser.add_argument_group("of pictures")
    pictures.add_argument("--size", metavar="WxH", type=_size, help="scale to it (default: all are of one size)")
    pictures.add_argument("--gray", action="store_true", help="without colours")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print only errors to stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, as 32x32, got {text!r}")
    return int(sides[0]), int(sides[1])


def run(given: argparse.Namespace) -> None:
    if not given.out.endswith((".h5", ".hdf5")):
        raise ValueError(f"{given.out}: expected the name of an HDF5 file, OUT.h5")
    if given.test_split is not None and not 0 < given.test_split < 1:
        raise ValueError(f"--test-split must be between 0 and 1, got {given.test_split:g}")
    if given.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {given.seed}")
    kind = kind_of(given.source)
    for flag, kinds in FLAGS.items():
        if getattr(given, flag) != given.parser.get_default(flag) and kind not in kinds:
            raise ValueError(f"--{flag} is for {' and '.join(kinds)}, and {given.source} is not: leave it out")
    check_writable(given.out, given.force, [name for name in (given.source, given.test, given.y) if name])
    with whole_steps(terminating=True) as interrupt, show_share(os.path.basename(given.out), not given.quiet) as share:

        def progress(done: int, of: int) -> None:
            interrupt.check()
            share(done, of)

        if kind == TABLE:
            columns = _convert_table(given, progress)
        else:
            _convert(given, kind, progress)
    if kind == TABLE:
        inform(given, f"columns: {counted(columns)}")
    _report(given)


def kind_of(path: str) -> str:
    """What the file or folder is, by its content; of CSV, by the name."""
    if os.path.isdir(path):
        return IDX if images_in(path) else PICTURES
    head = read_head(path, DataError)
    for begins, kind in ((NPY, NPY_FILE), (ZIP, NPZ), (b"\x89HDF", HDF5), (b"PAR1", TABLE), (b"ARROW1", TABLE)):
        if head.startswith(begins):
            return kind
    if is_table_file(path):
        return TABLE
    if is_idx(head) or (head.startswith(GZIP) and is_gzipped_idx(path)):
        return IDX
    raise DataError(
        f"{path}: expected a table (.csv, .tsv, .parquet, .feather, .arrow), .npy, .npz, .h5, an idx file or a folder"
    )


def open_source(
    path: str,
    kind: str,
    x: str | None = None,
    y: str | None = None,
    size: tuple[int, int] | None = None,
    gray: bool = False,
) -> Dataset:
    """A source of one of these kinds, but for tables."""
    if kind == PICTURES:
        return open_pictures(path, size, gray)
    if kind == IDX:
        return open_idx(path, y)
    if kind == NPY_FILE:
        return open_npy(path, y)
    return open_npz(path, x, y) if kind == NPZ else open_dataset(path, x, y)


# -------------------------------------------------------------------------------- tables


def _convert_table(given: argparse.Namespace, progress: Callable[[int, int], None]) -> Sequence[Column]:
    if given.target is None:
        raise ValueError(f"{given.source}: name the column that is to be predicted, with --target")
    return convert_table(
        given.source,
        given.out,
        given.target,
        test=given.test,
        test_split=given.test_split or 0.0,
        seed=given.seed,
        shuffle=given.shuffle,
        drop=given.drop or (),
        categories=given.categories or (),
        compression=given.compress,
        progress=progress,
        force=given.force,
        flags=True,
    )


# -------------------------------------------------------------------------------- all others


def _convert(given: argparse.Namespace, kind: str, progress: Callable[[int, int], None]) -> None:
    with ExitStack() as opened:
        data = opened.enter_context(_open(given, given.source, kind))
        if data.train is None and given.test_split:
            raise ValueError(f"{given.source} has no part to train on: leave out --test-split")
        if data.test is not None and (given.test or given.test_split):
            flag = "--test" if given.test else "--test-split"
            raise ValueError(f"{given.source} has a test part already: leave out {flag}")
        if given.test is not None:
            if kind_of(given.test) != kind:
                raise ValueError(f"--test: expected one of {kind}, as {given.source} is, got {given.test}")
            other = opened.enter_context(_open(given, given.test, kind))
            data = _with_test(data, other)
        if kind == PICTURES and not given.gray and _look_grey(data):
            inform(given, f"{given.source}: the first pictures are grey: with --gray they take a third of the space")
        _write(given, data, given.source if kind == HDF5 else None, progress)


def _open(given: argparse.Namespace, path: str, kind: str) -> Dataset:
    return open_source(path, kind, given.x, given.y, given.size, given.gray)


def _look_grey(data: Dataset) -> bool:
    """Whether the first pictures, which are stored in colours, have none."""
    X = (data.train or data.test).X[0:8]  # type: ignore[union-attr]
    return bool((X[..., :1] == X).all())


def _with_test(data: Dataset, other: Dataset) -> Dataset:
    """The data with the other file's test part, or its only one, as its own."""
    part = other.test or other.train
    train = data.train
    if train is None or part is None:
        raise DataError(f"{data.path}: expected a part to train on beside the test part {other.path}")
    if part.X.shape[1:] != train.X.shape[1:]:
        raise DataError(
            f"{other.path}: expected examples of shape {train.X.shape[1:]} as in {data.path}, got {part.X.shape[1:]}"
        )
    labels = labels_of(part)
    if labels is not None:
        labels = renumbered(other.path, labels, other.classes, data.classes)
    return Dataset(data.path, None, train, Part(part.X, labels, ""), data.classes)


def labels_of(part: Part) -> Any:
    """The labels of a part, or None."""
    try:
        return part.Y
    except DataError:
        return None


def _write(given: argparse.Namespace, data: Dataset, hdf5: str | None, progress: Callable[[int, int], None]) -> None:
    """Write the parts of `data`, which may come from an HDF5 file that knows the columns of its table."""
    parts = _parts(given, data)
    schema = None
    if hdf5 is not None and given.x is None:
        with reporting_damage(hdf5, DataError), open_hdf5(hdf5, DataError) as file:
            schema = schema_in(hdf5, file)
    with new_hdf5(given.out, given.force) as new:
        if schema is not None:
            new.hdf5["schema"] = np.bytes_(schema)
        if data.classes is not None:
            new.hdf5["list_classes"] = np.array([name.encode() for name in data.classes], dtype=bytes)
        write_parts(new, parts, given.compress, progress)


def _parts(given: argparse.Namespace, data: Dataset) -> list[Written]:
    sources = {name: (_sliceable(part.X), labels_of(part)) for name, part in named_parts(data)}
    rows: dict[str, np.ndarray | None] = dict.fromkeys(sources)
    if given.test_split:
        X, Y = sources["test"] = sources["train"]
        m = X.shape[0]
        labels = None if Y is None or math.prod(Y.shape[1:]) != 1 else read(given.source, Y, slice(0, m))
        rows["train"], rows["test"] = held_out_rows(m, labels, given.test_split, given.seed)
    if given.shuffle and "train" in sources:
        rows["train"] = shuffled(sources["train"][0].shape[0], rows["train"], given.seed)
    return [Written(name, *source, rows[name]) for name, source in sources.items()]


def named_parts(data: Dataset) -> list[tuple[str, Part]]:
    """train and test, as far as they are there."""
    return [(name, part) for name, part in (("train", data.train), ("test", data.test)) if part is not None]


def _sliceable(X: Any) -> Any:
    """The codes of a table as they are stored."""
    return Rows(X.shape, X.dtype, X.read) if isinstance(X, Table) else X


def _report(given: argparse.Namespace) -> None:
    """What the new file holds."""
    with open_dataset(given.out) as data:
        parts = {
            name: {"examples": part.X.shape[0], "shape": list(part.X.shape[1:]), "dtype": str(part.X.dtype)}
            for name, part in named_parts(data)
        }
        unlabelled = [name for name, part in named_parts(data) if labels_of(part) is None]
        classes = data.classes
    size = os.path.getsize(given.out)
    if unlabelled:
        inform(given, f"{' and '.join(unlabelled)}: no labels: for dnn predict only")
    if given.json:
        show(json.dumps({"source": given.source, "out": given.out, **parts, "classes": classes, "bytes": size}) + "\n")
        return
    shown = [
        f"{name} {part['examples']} examples of {' x '.join(map(str, part['shape'])) or 'one number'}, {part['dtype']}"
        for name, part in parts.items()
    ]
    if classes is not None:
        shown.append(f"{len(classes)} classes")
    show(f"{given.out}: {'; '.join(shown)}; {size / 1e6:.1f} MB\n")
