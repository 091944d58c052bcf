"""Tables of files and of other libraries: CSV, Parquet and Feather, frames of pandas and polars, tables of Arrow.

A file is read once, in blocks, into the numbers of a `Table`; these go through a temporary file where they are many.
Rows are counted from 1, without the line of names.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from os.path import expanduser
from typing import Any, NamedTuple

import numpy as np

from dnn.backends import log_once
from dnn.data.arrow import ISO_DATE, Numbers, Unfit, is_text, kind_of, option, pyarrow
from dnn.data.columns import Column, Table, as_number, check_names, columns_from_config, places_of
from dnn.data.csv_files import Blocks, CsvFile, Misfit
from dnn.data.examples import check_known
from dnn.data.hdf5 import Dataset, Labels, Part
from dnn.errors import DataError, OutputError, check_finite_number, enumerated, nearest
from dnn.hdf5 import read_head

__all__ = ["Table", "as_table", "convert_table", "is_table_file", "open_table", "table_of"]

Progress = Callable[[int, int], None]
"""Called with how much of a source is read, and how much there is: bytes of a file, or rows."""

ENDINGS = (".csv", ".tsv", ".parquet", ".pq", ".feather", ".arrow")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
ROWS = 1 << 14
"""Read at a time from what is not text."""
IN_MEMORY = 16 << 20
"""Bytes of a table up to which it needs no temporary file."""
LONGEST_TEXT = 100_000_000
"""Most bytes of the text that describes the columns of an HDF5 file."""


def is_table_file(path: str | PathLike[str]) -> bool:
    """Whether the name is that of a table: .csv, .tsv, also .csv.gz, .parquet, .feather, .arrow."""
    name = os.fsdecode(path).lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(ENDINGS)


def open_table(
    path: str | PathLike[str],
    target: str | Sequence[str] | None,
    *,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    columns: Sequence[Column] | None = None,
    classes: Sequence[str] | None = None,
    missing: bool = False,
    name: str = "train",
    progress: Progress | None = None,
    flags: bool = False,
) -> Dataset:
    """Read a table file: part `name` has X, a Table, and Y, an array; names among the targets become `classes`.

    `target` names a column, or several, or with commas between them. Columns of text are a DataError, unless `drop`
    leaves them out or `categories` keeps them, as it does numbers that are codes. With `columns`, those of a model's
    schema, these are looked up by name: DataError names those that are missing; others are ignored, and named in a log
    line unless `drop` has them. With `classes`, those of a model, labels are numbered as these are. With `missing`,
    targets that are numbers may be missing, nan. Messages name `flags` of the command line, or keywords.
    """
    path = expanduser(os.fsdecode(path))
    content = _read(
        _file(path), target, drop, categories, columns, classes, missing=missing, progress=progress, flags=flags
    )
    none = f"{path}: no labels: name their column with {'--target' if flags else 'target='}"
    part = Part(content.X, content.Y, none)
    parts = {"train": None, "test": None, name: part}
    return Dataset(path, content.X, parts["train"], parts["test"], content.classes)


def as_table(
    X: Any,
    *,
    columns: Sequence[Column] | None = None,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
) -> Table:
    """A frame of pandas or polars, or a table of Arrow, as a Table; a Table is returned as it is.

    `columns`, `drop` and `categories` are as in `open_table`.
    """
    if isinstance(X, Table):
        return X
    return _read(_Frame(X), (), drop, categories, columns, None).X


def convert_table(
    source: str | PathLike[str],
    out: str | PathLike[str],
    target: str | Sequence[str],
    *,
    test: str | PathLike[str] | None = None,
    test_split: float = 0.0,
    seed: int = 0,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    shuffle: bool = False,
    compression: str = "none",
    progress: Progress | None = None,
    force: bool = False,
    flags: bool = False,
) -> tuple[Column, ...]:
    """Write a table file as an HDF5 file in the assignment's layout, in bounded memory, with what its columns are.

    The test part is the file `test`, or the share `test_split` of the rows, drawn at random, of each class its share.
    Rows keep their order, those of the training part with `shuffle` not. `progress` is told of the reading. `out` has
    its name once it is complete; without `force`, an existing file is an OutputError. What the columns are is returned.
    """
    from dnn.data.splitting import held_out_rows, shuffled
    from dnn.data.writing import Written, new_hdf5, write_parts

    source, out = expanduser(os.fsdecode(source)), expanduser(os.fsdecode(out))
    if not 0 <= check_finite_number("test_split", test_split) < 1:
        raise ValueError(f"test_split must be a share from 0 to below 1, got {test_split!r}")
    if test is not None and test_split:
        raise ValueError("test= and test_split= both say what the test part is: give one of them")
    beside = os.path.dirname(out) or "."
    folder = beside if os.path.isdir(beside) else None
    train = _read(_file(source), target, drop, categories, None, None, folder=folder, progress=progress, flags=flags)
    contents, parts, columns = [train], [], train.X.columns_of
    try:
        if test is None:
            m, labels = len(train.X), train.Y if train.Y is not None and train.Y.ndim == 1 else None
            kept, tested = held_out_rows(m, labels, test_split, seed) if test_split else (None, None)
            kept = shuffled(m, kept, seed) if shuffle else kept
            parts.append(Written("train", _Rows(train.X), train.Y, kept))
            if tested is not None:
                parts.append(Written("test", parts[0].X, train.Y, tested))
        else:
            path = expanduser(os.fsdecode(test))
            content = _read(
                _file(path), target, drop, (), columns, train.classes, folder=folder, progress=progress, flags=flags
            )
            contents.append(content)
            check_named(path, content.classes, train.classes, "the training part")
            columns = content.X.columns_of  # a category may have values there that are new
            kept = shuffled(len(train.X), None, seed) if shuffle else None
            parts += [Written("train", _Rows(train.X), train.Y, kept), Written("test", _Rows(content.X), content.Y)]
        with new_hdf5(out, force) as new:
            write_parts(new, parts, compression)
            if train.classes is not None:
                new.hdf5.create_dataset("list_classes", data=np.char.encode(np.array(train.classes), "utf-8"))
            text = json.dumps({"columns": [column.config() for column in columns], "target": train.X.target})
            new.hdf5.create_dataset("schema", data=np.bytes_(text.encode()))
        return columns
    finally:
        for content in contents:
            content.X.close()


def kinds_of(path: str | PathLike[str]) -> dict[str, str]:
    """The kinds of the columns of a table file, as its first rows have them: "text" too."""
    source = _file(expanduser(os.fsdecode(path)))
    _check_doubles(source.path, source.names)
    names = [name for name in source.names if name]
    kinds, _ = next(iter(source.readings(names, {})))
    return dict(zip(names, kinds, strict=True))


def table_of(path: str, data: Any, text: bytes | str) -> Table:
    """The Table in an HDF5 data set (m, columns), with the text of the data set `schema` beside it."""
    what = f"{path}: schema"
    if len(text) > LONGEST_TEXT:
        raise DataError(f"{what}: expected the text that dnn convert writes, got {len(text)} bytes")
    try:
        config = json.loads(text)
        if not isinstance(config, dict) or config.keys() != {"columns", "target"}:
            raise ValueError("it must have columns and target")
        columns, target = columns_from_config(config["columns"]), check_names("target", config["target"])
    except (ValueError, RecursionError) as cause:
        raise DataError(f"{what}: expected the text that dnn convert writes: {' '.join(str(cause).split())}") from None
    if data.ndim != 2 or data.shape[1] != len(columns):
        raise DataError(f"{path}: schema has {len(columns)} columns, but the data has the shape {data.shape}")

    def read(start: int, stop: int) -> np.ndarray:
        return data[start:stop].astype(np.float64, copy=False)

    return Table(columns, data.shape[0], read, target=target, band=data.chunks[0] if data.chunks else None)


def check_named(path: str, found: Sequence[str] | None, known: Sequence[str] | None, of: str = "the model") -> None:
    """DataError where labels have names, and what they are for has numbers: nothing tells which is which."""
    if known is None and found is not None and list(found) != ["false", "true"]:
        raise DataError(
            f"{path}: the labels have names ({enumerated(found[:5], repr)}), and {of} has none to match them with: "
            "give the numbers of the training data, or train on labels with names"
        )


class _Rows:
    """A Table that can be sliced."""

    def __init__(self, table: Table) -> None:
        self.shape, self.dtype, self.band, self._table = table.shape, table.dtype, None, table

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._table.read(rows.start, rows.stop)


# --------------------------------------------------------------------------------------------- reading


class _Content(NamedTuple):
    X: Table
    Y: np.ndarray | None
    classes: list[str] | None


def _read(
    source: Any,
    target: str | Sequence[str] | None,
    drop: str | Sequence[str],
    categories: str | Sequence[str],
    columns: Sequence[Column] | None,
    classes: Sequence[str] | None,
    *,
    missing: bool = False,
    folder: str | None = None,
    progress: Progress | None = None,
    flags: bool = False,
) -> _Content:
    """All of a source: its features as a Table, its targets as an array."""
    target, drop, categories = (_names(given, source.names) for given in (target, drop, categories))
    source.flags = flags
    features = _features(source, target, drop, categories, columns)
    given = {column.name: column for column in columns or ()}
    known = dict.fromkeys(categories, "category") | {name: column.kind for name, column in given.items()}
    if classes is not None and len(target) == 1:
        known[target[0]] = "boolean" if sorted(classes) == ["false", "true"] else "category"
    for kinds, blocks in source.readings([*features, *target], known):
        made = [
            Numbers(
                name,
                kind,
                given=given.get(name),
                where=source.path,
                what="target" if name in target else "column",
                nulls=source.nulls,
                decimal=source.decimal,
                odd=source.odd.get(name),
                flags=flags,
            )
            for name, kind in zip([*features, *target], kinds, strict=True)
        ]
        spool, labels = _Spool(len(features), folder), []
        try:
            for block in blocks(progress):
                values = np.empty((len(block[0]), len(made)))
                for j, (numbers, column) in enumerate(zip(made, block, strict=True)):
                    try:
                        values[:, j] = numbers.floats(column)
                    except Unfit:
                        if numbers.name in known:
                            raise
                        raise Misfit from None  # only later rows are text, or codes
                _check_text([numbers for numbers in made if numbers.is_text])
                spool.append(values[:, : len(features)])
                labels.append(values[:, len(features) :].copy())
            break
        except Misfit:
            spool.close()
        except BaseException:
            spool.close()
            raise
    else:
        raise DataError(f"{source.path}: cannot be read: it has changed while it was read")
    try:
        if not spool.rows:
            raise DataError(f"{source.path}: expected at least one row below the names of the columns, got none")
        for numbers in made:
            numbers.check_not_numbers()
        found = [numbers.column() for numbers in made]
        _check_text([numbers for numbers, column in zip(made, found, strict=True) if column is None])
        kept: list[Column] = [column for column in found if column is not None]
        Y, names = None, None
        if target:
            Y, names = _labels(source.path, np.concatenate(labels), kept[len(features) :], classes, missing)
        X = Table(kept[: len(features)], spool.rows, spool.read, target=target, close=spool.close)
        return _Content(X, Y, names)
    except BaseException:
        spool.close()
        raise


def _features(
    source: Any,
    target: tuple[str, ...],
    drop: tuple[str, ...],
    categories: tuple[str, ...],
    columns: Sequence[Column] | None,
) -> list[str]:
    """The names of the columns that are read as features."""
    path, names = source.path, source.names
    _check_doubles(path, names)
    there = [name for name in names if name]
    for what, wanted in (("target", target), ("categories", categories), ("drop", drop if columns is None else ())):
        for name in wanted:
            if name not in there:
                near = _in_other_case(name, there) or nearest(name, there)
                hint = f": did you mean {near!r}?" if near else ""
                if len(there) == 1 and "#" in there[0]:
                    hint = ": the names of the columns must be in the first line"
                elif any(as_number(column) is not None for column in there):
                    hint = ": if these are no names, put a line of names first"
                raise DataError(f"{path}: {what}: no column {name!r} among {enumerated(there, repr)}{hint}")
            if what == "drop" and name in target:
                raise DataError(f"{path}: drop: {name!r} is the target, which is never among the features")
    if columns is None:
        if len(there) < len(names):
            n = len(names) - len(there)
            log_once(f"{path}: {n} column{'s' if n > 1 else ''} without a name left out")
        features = [name for name in there if name not in target and name not in drop]
        if not features:
            raise DataError(f"{path}: expected columns to learn from besides the target, got {enumerated(there, repr)}")
        return features
    features = [column.name for column in columns]
    missing = [name for name in features if name not in there]
    if missing:
        raise DataError(
            f"{path}: no column {enumerated(missing, repr)}, on which the model was trained: the columns are "
            f"{enumerated(there, repr)}"
            f"{hint_of_case(missing, there)}"
        )
    overlap = [name for name in features if name in target]
    if overlap:
        raise DataError(f"{path}: target: {enumerated(overlap, repr)} is a feature of the model: choose another column")
    others = [name for name in there if name not in {*features, *target, *drop}]
    if others:
        log_once(f"{path}: columns that the model does not take are left out: {enumerated(others, repr)}")
    return features


def _in_other_case(name: str, there: Sequence[str]) -> str | None:
    return next((other for other in there if other.casefold() == name.casefold()), None)


def hint_of_case(missing: Sequence[str], there: Sequence[str]) -> str:
    """What to do where the names are there but for capital letters."""
    found = _in_other_case(missing[0], there)
    return "" if found is None else f": rename {found!r} to {missing[0]!r}, capital letters count"


def _check_doubles(path: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise DataError(f"{path}: expected different names of columns, got {name!r} twice: rename one")
        seen.add(name)


def _check_text(refused: Sequence[Numbers]) -> None:
    """DataError of the columns that are text."""
    for numbers in refused:
        numbers.check_not_numbers()
    if refused:
        raise refused[0].text_error(refused[1:])


def _labels(
    path: str, values: np.ndarray, columns: Sequence[Column], classes: Sequence[str] | None, mask: bool
) -> tuple[np.ndarray, list[str] | None]:
    """The targets as numbers, and the names of the classes if they have names; with `mask` numbers may be missing."""
    missing = np.argwhere(np.isnan(values))
    if len(missing) and not (mask and all(column.kind == "number" for column in columns)):
        row, j = missing[0]
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{path}: target {columns[j].name!r} is missing in row {row + 1}{also}: leave out what has no target, or "
            "fill it in"
        )
    if len(columns) > 1:
        named = [column.name for column in columns if column.kind == "category"]
        if named:
            raise DataError(f"{path}: target {named[0]!r} has names, which only one target can have: choose it alone")
        return values, None
    (column,), values = columns, values[:, 0]
    if column.kind not in ("boolean", "category"):
        return values, None
    names = list(column.values) if column.kind == "category" else ["false", "true"]
    ordered = list(classes) if classes is not None else sorted(names, key=_in_order(names))
    find = places_of(ordered)
    names = [name if (found := find(name)) is None else ordered[found] for name in names]
    used = np.unique(values).astype(np.int64)
    what, fix = f"{path}: target {column.name!r}", "name the labels as in the training data"
    check_known(what, list(dict.fromkeys(names)), ordered, [names[code] for code in used], fix)
    place = {name: number for number, name in enumerate(ordered)}
    numbers = np.array([place.get(name, -1) for name in names])[values.astype(np.int64)]
    return Labels.of(numbers, ordered), ordered


def _in_order(names: Sequence[str]) -> Callable[[str], Any]:
    """The key to sort names by: numbers as such, if all of them are."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return str
    return numbers.__getitem__


class _Spool:
    """Rows as they come, in a temporary file once they are many; then they are read, by one thread or several."""

    def __init__(self, columns: int, folder: str | None) -> None:
        self.rows = 0
        self._columns, self._lock, self._folder = columns, threading.Lock(), folder or tempfile.gettempdir()
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)  # noqa: SIM115

    def append(self, block: np.ndarray) -> None:
        try:
            self._file.write(np.ascontiguousarray(block).data.cast("B"))
        except OSError as cause:
            raise OutputError(
                f"{self._folder}: no temporary file of a table can be written ({cause.strerror}): make space there, or "
                "set TMPDIR to another folder"
            ) from None
        self.rows += len(block)

    def read(self, start: int, stop: int) -> np.ndarray:
        values = np.empty((stop - start, self._columns))
        left = values.data.cast("B") if values.size else b""
        with self._lock:
            self._file.seek(start * self._columns * values.itemsize)
            while left:
                n = self._file.readinto(left)
                if not n:
                    raise DataError("a table's temporary file has been cut short: read the table again")
                left = left[n:]
        return values

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        self._file.close()


def _names(given: str | Sequence[str] | None, there: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, given one by one or, unless one of those there is called so, with commas between them."""
    if given is None:
        return ()
    if isinstance(given, str) and given.strip() in there:
        return (given.strip(),)
    parts = given.split(",") if isinstance(given, str) else [str(name) for name in given]
    return tuple(dict.fromkeys(name.strip() for name in parts if name.strip()))


# --------------------------------------------------------------------------------------------- sources


def _file(path: str) -> Any:
    """The source in a file, by what it begins with."""
    head = read_head(path, DataError)
    pyarrow()
    if head.startswith(b"PAR1"):
        return _Parquet(path)
    if head.startswith((b"ARROW1", b"FEA1")):
        return _Feather(path)
    others = {b"\x89HDF": "an HDF5 file", b"PK\x03\x04": "a spreadsheet or an archive", b"\x93NUMPY": "a NumPy array"}
    for mark, what in others.items():
        if head.startswith(mark):
            raise DataError(f"{path}: expected a table (CSV, Parquet or Feather), got {what}: save it as CSV")
    return CsvFile(path)


class _Typed:
    """A source whose columns have types: the `names`, and the rows in blocks."""

    nulls: Sequence[str] = ("",)
    decimal = "."
    odd: Mapping[str, tuple[str, int]] = {}
    flags = False
    path = "X"
    schema: Any

    @property
    def names(self) -> list[str]:
        with _reporting(self.path):
            return [name.strip() for name in self.schema.names]

    def readings(self, names: Sequence[str], known: Mapping[str, str]) -> Iterator[tuple[list[str], Blocks]]:
        place_of = {name: place for place, name in enumerate(self.names)}
        places = [place_of[name] for name in names]
        with _reporting(self.path):
            types = self.schema.types
            kinds = [
                known.get(name) or kind_of(name, types[place], self.path, self.flags)
                for name, place in zip(names, places, strict=True)
            ]

        def blocks(progress: Progress | None = None) -> Iterator[list[Any]]:
            with _reporting(self.path):
                for done, rows, batch in self.batches(places):
                    batch.validate(full=True)  # else a damaged file could crash the process
                    if batch.num_rows:
                        yield batch.columns
                    if progress is not None:
                        progress(done, rows)

        yield kinds, blocks

    def batches(self, places: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
        """After each batch the rows that are read and all rows, and the batch, of the columns in these places."""
        raise NotImplementedError


class _Parquet(_Typed):
    def __init__(self, path: str) -> None:
        from pyarrow import parquet

        with _reporting(path):
            self._file = parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
            self.schema = self._file.schema_arrow
        self.path = path

    def batches(self, places: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
        done, rows, names = 0, self._file.metadata.num_rows, [self.schema.names[place] for place in places]
        for batch in self._file.iter_batches(ROWS, columns=names):
            done += batch.num_rows
            yield done, rows, batch.select(names)


class _Feather(_Typed):
    def __init__(self, path: str) -> None:
        pa = pyarrow()
        self.path = path
        with _reporting(path):
            with open(path, "rb") as file:
                old = file.read(4) == b"FEA1"
            if old:
                from pyarrow import feather

                self._of: Any = feather.read_table(path, memory_map=False)
                self.schema = self._of.schema
            else:
                self._of = pa.ipc.open_file(pa.OSFile(path, "rb"))
                self.schema = self._of.schema

    def batches(self, places: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
        pa = pyarrow()
        names = [self.schema.names[place] for place in places]
        if isinstance(self._of, pa.Table):
            yield from _of_table(self._of, places)
            return
        n = self._of.num_record_batches
        for number in range(n):
            batch = self._of.get_batch(number)
            for start in range(0, max(batch.num_rows, 1), ROWS):
                yield number + 1, n, batch.slice(start, ROWS).select(names)


class _Frame(_Typed):
    """A frame of another library."""

    def __init__(self, X: Any) -> None:
        pa = pyarrow()
        if hasattr(X, "collect_schema") and not hasattr(X, "get_columns"):
            raise DataError("X: expected values, got a frame that is not computed yet: use its collect()")
        if not (hasattr(X, "columns") or hasattr(X, "column_names")) or not hasattr(X, "shape"):
            raise DataError(f"X: expected a frame of pandas or polars or a table of Arrow, got {type(X).__name__}")
        self._X = pa.Table.from_batches([X]) if isinstance(X, pa.RecordBatch) else X
        self._names = [str(name).strip() for name in (X.column_names if hasattr(X, "column_names") else X.columns)]

    @property
    def names(self) -> list[str]:
        return self._names

    def readings(self, names: Sequence[str], known: Mapping[str, str]) -> Iterator[tuple[list[str], Blocks]]:
        """As those of files, of the columns that are asked for alone: others may be what Arrow does not have."""
        self._names, places = list(names), [self._names.index(name) for name in names]
        with _reporting("X"):
            self._table = self._converted(places, known)
        self.schema = self._table.schema
        dates = {name: "date" for place, name in enumerate(names) if self._has_dates(self._table.column(place))}
        return super().readings(names, dates | dict(known))

    def _has_dates(self, values: Any) -> bool:
        """Whether a column of text is dates as in a file."""
        if not is_text(values.type) or not ISO_DATE.fullmatch((values.drop_null()[:1].to_pylist() or [""])[0].strip()):
            return False
        try:
            Numbers("", "date").floats(values)
        except DataError:
            return False
        return True

    def _converted(self, places: Sequence[int], known: Mapping[str, str]) -> Any:
        pa, X = pyarrow(), self._X
        if isinstance(X, pa.Table):
            return X.select(list(places))
        if not hasattr(X, "iloc"):
            X = X[:, list(places)]
            return X.to_arrow() if hasattr(X, "to_arrow") else pa.table(X)
        failures = pa.ArrowException, OverflowError, TypeError, ValueError
        try:
            return pa.Table.from_pandas(X.iloc[:, list(places)], preserve_index=False)
        except failures:
            for place, name in zip(places, self._names, strict=True):
                try:
                    pa.Table.from_pandas(X.iloc[:, [place]], preserve_index=False)
                except failures as cause:
                    what = " ".join(str(cause).split())[:200]
                    out = "" if name in known else f", or leave it out with {option(False, 'drop', name)}"
                    raise DataError(f"X: column {name!r} cannot be read ({what}): convert it{out}") from None
            raise

    def batches(self, places: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
        yield from _of_table(self._table, places)


def _of_table(table: Any, places: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
    done = 0
    for batch in table.select(list(places)).to_batches(max_chunksize=ROWS):
        done += batch.num_rows
        yield done, table.num_rows, batch


@contextmanager
def _reporting(path: str) -> Iterator[None]:
    """What Arrow raises about what it reads, as a DataError."""
    pa = pyarrow()
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as cause:
        parts = [" ".join(str(part).split()) for part in cause.args] or [type(cause).__name__]
        raise DataError(f"{path}: cannot be read: {'; '.join(parts)[:300]}") from None
