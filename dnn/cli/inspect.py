"""dnn inspect: say what a file is and what it holds."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from dnn.cli.common import add_isolate, for_json, show
from dnn.cli.convert import HDF5, IDX, NPY_FILE, NPZ, PICTURES, TABLE, kind_of, labels_of, named_parts, open_source
from dnn.configuration import to_config
from dnn.data import Dataset, open_dataset
from dnn.data.columns import Column
from dnn.data.tables import Table, kinds_of
from dnn.errors import DataError, ModelFileError, enumerated, printable
from dnn.hdf5 import BUILT_IN, FILTERS, attribute, dataset, has, names_in, open_hdf5, reporting_damage
from dnn.model_file import FORMAT, contents, network_of
from dnn.optimizers import OPTIMIZERS
from dnn.training_file import GROUP, Stored

ONE_OF = {NPY_FILE: ".npy file", NPZ: ".npz file", IDX: "idx files", PICTURES: "folder of pictures"}
SHOWN = 20
"""Names of a list that are shown; --json has all."""
IN_WORDS = {"text": "text: a category, if it has few values for its rows"}
TRAINING = {"best": "weights of the best epoch", "trained": "weights as trained", "left": "weights as left"}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="say what a file is and what it holds",
        description="Say what a data file, a model, a checkpoint, a table, or another source of dnn convert holds. "
        "Nothing of the file is trusted.",
    )
    parser.add_argument("file", metavar="FILE", type=os.path.expanduser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_isolate(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors to stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    kind = kind_of(given.file)
    if kind == HDF5:
        with reporting_damage(given.file, DataError), open_hdf5(given.file, DataError) as file:
            # an attribute of another type is no mark of ours; a model's is then reported as such
            is_model = has_format(given.file, file)
            found, lines = ({}, []) if is_model else _data_file(given.file, file)
        if is_model:
            found, lines = _model(given.file)
    elif kind == TABLE:
        found, lines = _table(given.file)
    else:
        with open_source(given.file, kind) as data:
            found, lines = _source(kind, data)
    size = os.path.getsize(given.file) if os.path.isfile(given.file) else None
    found = {"file": given.file, "kind": found.pop("kind"), "bytes": size, **found}
    if given.json:
        show(json.dumps(for_json(found)) + "\n")
        return
    head = f"{given.file}: {found['kind']}" + ("" if size is None else f", {_megabytes(size)}")
    show("\n".join([head, *(f"  {printable(line)}".rstrip() for line in lines)]) + "\n")


def has_format(path: str, file: Any) -> bool:
    """Whether an HDF5 file says that it is a model."""
    try:
        return attribute(path, file, "format", ModelFileError) == FORMAT.encode()
    except ModelFileError:
        return False


# -------------------------------------------------------------------------------- data


def _data_file(path: str, file: Any) -> tuple[dict[str, Any], list[str]]:
    if not has(file, "train_set_x") and not has(file, "test_set_x"):
        return _other_hdf5(path, file)
    with open_dataset(path) as data:
        found: dict[str, Any] = {"kind": "data file"}
        rows: list[Sequence[str]] = []
        unlabelled = []
        for name, part in named_parts(data):
            for letter in "xy":
                if has(file, f"{name}_set_{letter}"):
                    facts = _facts(dataset(path, file, f"{name}_set_{letter}", DataError, kinds="biuf"))
                    found[f"{name}_set_{letter}"] = facts
                    rows.append((f"{name}_set_{letter}", *_facts_in_words(facts)))
            if not has(file, f"{name}_set_y"):
                unlabelled.append(f"{name}_set_y is not there: for dnn predict only")
            table = part.X if isinstance(part.X, Table) else None
        found["memory"] = sum(facts["memory"] for facts in found.values() if isinstance(facts, dict))
        found["classes"] = data.classes
        lines = [*_aligned(rows), *unlabelled, f"loaded whole: {_megabytes(found['memory'])}", *_classes(data.classes)]
        if table is not None:
            found |= {"target": list(table.target), "columns": [column.config() for column in table.columns_of]}
            lines += [f"target {_shown(table.target)}", *_columns(table.columns_of)]
    return found, lines


def _other_hdf5(path: str, file: Any) -> tuple[dict[str, Any], list[str]]:
    """A file of another layout: what is at its root."""
    sets: dict[str, Any] = {}
    rows: list[Sequence[str]] = []
    for name in names_in(path, file, "/", DataError):
        try:
            sets[name] = _facts(dataset(path, file, name, DataError))
            rows.append((name, *_facts_in_words(sets[name])))
        except DataError as cause:  # a group, or what is refused
            sets[name] = {"refused": str(cause)}
            rows.append((name, str(cause).removeprefix(f"{path}: ")))
    lines = [*_aligned(rows[:SHOWN]), *([f"and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])]
    return {"kind": "HDF5 file of another layout", "sets": sets}, [
        *lines,
        "name the examples with --x, labels with --y",
    ]


def _facts(data: Any) -> dict[str, Any]:
    filters = data.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    return {
        "shape": list(data.shape),
        "dtype": str(data.dtype),
        "storage": "chunked" if data.chunks else "contiguous",
        "chunks": None if data.chunks is None else list(data.chunks),
        "filters": [(BUILT_IN | FILTERS).get(number, str(number)) for number in numbers],
        "stored": data.id.get_storage_size(),
        "memory": math.prod(data.shape) * data.dtype.itemsize,
    }


def _facts_in_words(facts: dict[str, Any]) -> tuple[str, str, str]:
    storage = facts["storage"]
    if facts["chunks"] is not None:
        storage = f"chunks of {tuple(facts['chunks'])}, {' + '.join(facts['filters']) or 'not compressed'}"
    sizes = _megabytes(facts["stored"])
    if facts["stored"] != facts["memory"]:
        sizes += f", {_megabytes(facts['memory'])} in memory"
    return str(tuple(facts["shape"])), facts["dtype"], f"{storage}, {sizes}"


def _source(kind: str, data: Dataset) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {"kind": ONE_OF[kind]}
    rows = []
    for name, part in named_parts(data):
        for letter, array in (("x", part.X), ("y", labels_of(part))):
            if array is not None:
                found[f"{name}_set_{letter}"] = {"shape": list(array.shape), "dtype": str(array.dtype)}
                rows.append((f"{name}_set_{letter}", str(array.shape), str(array.dtype)))
    return found | {"classes": data.classes}, [*_aligned(rows), *_classes(data.classes)]


def _table(path: str) -> tuple[dict[str, Any], list[str]]:
    kinds = kinds_of(path)
    rows = [(name, IN_WORDS.get(kind, kind)) for name, kind in kinds.items()]
    lines = [f"{len(kinds)} columns, by the first rows", *_aligned(rows)]
    return {"kind": "table", "columns": [{"name": name, "kind": kind} for name, kind in kinds.items()]}, lines


def _columns(columns: Sequence[Column]) -> list[str]:
    rows = []
    for column in columns:
        values = f"{len(column.values)}: {_shown(column.values)}" if column.kind == "category" else ""
        rows.append((column.name, column.kind, values))
    return [f"{len(columns)} columns", *(f"  {line}" for line in _aligned(rows))]


def _classes(classes: Sequence[str] | None) -> list[str]:
    return [] if classes is None else [f"{len(classes)} classes: {_shown(classes)}"]


# -------------------------------------------------------------------------------- models


def _model(path: str) -> tuple[dict[str, Any], list[str]]:
    with reporting_damage(path, ModelFileError), open_hdf5(path, ModelFileError) as file:
        version, needs, written_by = (
            value.decode("ascii", "replace") if isinstance(value, bytes) else value
            for value in (
                attribute(path, file, name, ModelFileError) for name in ("format_version", "needs", "dnn_version")
            )
        )
    arrays = contents(path)
    network = network_of(path, arrays, "numpy")
    found: dict[str, Any] = {
        "kind": "model",
        "format_version": version,
        "needs": needs,
        "dnn_version": written_by,
        "layer_sizes": list(network.layer_sizes),
        "parameters": network.n_parameters,
        "output": network.output,
        "dtype": network.dtype.name,
        "epochs": network.epochs,
        "input_shape": network.input_shape,
        "input_kind": network.input_kind,
        "classes": network.classes,
        "feature_names": network.feature_names,
        "schema": None if network.schema is None else network.schema.config(),
        "training": None,
    }
    of_format = f"format {version}" + ("" if needs in (None, "nothing") else f", needs {needs}")
    lines = [f"{of_format}, written by dnn {written_by}", *network.summary().splitlines()]
    lines.append(f"trained for {network.epochs} epochs")
    if network.input_shape is not None:
        lines.append(f"inputs: {network.input_kind} of shape {network.input_shape}")
    lines += _classes(network.classes)
    if network.feature_names is not None:
        lines.append(f"{len(network.feature_names)} features: {_shown(network.feature_names)}")
    if network.schema is not None:
        lines += ["schema", *(f"  {line}" for line in str(network.schema).splitlines())]
    if f"{GROUP}/state" not in arrays:
        return found, [*lines, "no state of training: a fit begins with a new optimizer"]
    stored = Stored(bytes(arrays[f"{GROUP}/state"]), network)
    optimizer = to_config(stored.optimizer, OPTIMIZERS, "")
    kept = [words for name, words in TRAINING.items() if name in stored.copies]
    kept += [words for asked, words in ((stored.keeps.average, "moving average"),) if asked]
    found["training"] = {"optimizer": optimizer, "keeps": kept, "checkpoint": None}
    lines.append(f"state of training: {stored.optimizer!r}" + "".join(f", {words}" for words in kept))
    if stored.history is not None:
        found["training"] |= stored.history.config()
        lines.append(repr(stored.history)[1:-1].replace("History", "history"))
    fit = stored.fit
    if fit is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.path.getmtime(path)))
        epochs = fit.settings["epochs"]
        found["kind"] = "model" if fit.is_done else "checkpoint"
        found["training"]["checkpoint"] = {
            "number": fit.number,
            "epoch": fit.epoch,
            "batch": fit.batch,
            "epochs": epochs,
            "done": fit.is_done,
            "time": when,
        }
        where = "the fit has ended" if fit.is_done else f"{fit.batch} batches into the next"
        lines.append(f"checkpoint {fit.number} of {when}: {fit.epoch} of {epochs} epochs done, {where}")
    return found, lines


# -------------------------------------------------------------------------------- words


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def _shown(names: Sequence[str]) -> str:
    return enumerated(names, printable, SHOWN)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if len(row) > i) for i in range(max(map(len, cells), default=0))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells]
