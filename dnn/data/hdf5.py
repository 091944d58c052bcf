"""HDF5 files in the assignment's layout.

    train_set_x (m, ...)   train_set_y (m,)     test_set_x   test_set_y     list_classes (K,) names

Train and test may be in one file or in two, and the data sets may have other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike, fsdecode
from os.path import expanduser
from types import TracebackType
from typing import Any

import numpy as np

from dnn.errors import DataError, check_choice
from dnn.hdf5 import (
    check_written,
    dataset,
    has,
    is_variable_text,
    listed,
    open_hdf5,
    read,
    reporting_damage,
    stored,
    unpadded,
    variable_text,
)

LARGEST_NAMES = 100_000_000
"""Most bytes that list_classes may take: a file of 2 KB can declare far more than names ever need."""
LARGEST_SCHEMA = 16_000_000
"""Most bytes of the description of a table's columns."""


class Labels(np.ndarray):
    """Class numbers (m,) with the names of the `classes`. Rows of them do too; what is computed of them does not."""

    classes: list[str] | None

    def __array_finalize__(self, of: Any) -> None:
        self.classes = None

    def __getitem__(self, rows: Any) -> Any:
        found = super().__getitem__(rows)
        if isinstance(found, Labels):
            found.classes = self.classes
        return found

    @classmethod
    def of(cls, numbers: np.ndarray, classes: list[str]) -> Labels:
        labels = numbers.view(cls)
        labels.classes = list(classes)
        return labels


class Part:
    """One part of a file: `X` (m, ...) and `Y` (m,) or (m, K), HDF5 data sets that are read on use.

    A part may lack labels, for prediction: then accessing `Y` raises a DataError that lists the file's data sets.
    """

    def __init__(self, X: Any, Y: Any, no_labels: str) -> None:
        self.X = X
        self._Y = Y
        self._no_labels = no_labels

    @property
    def Y(self) -> Any:
        if self._Y is None:
            raise DataError(self._no_labels)
        return self._Y

    def __repr__(self) -> str:
        labels = "no labels" if self._Y is None else f"Y {self._Y.shape} {self._Y.dtype}"
        return f"X {self.X.shape} {self.X.dtype}, {labels}"


class Dataset:
    """An open data file: `train` and `test` (None if absent) and `classes` (names, or None).

    A context manager; the parts cannot be read after `close`.
    """

    def __init__(self, path: str, file: Any, train: Part | None, test: Part | None, classes: list[str] | None) -> None:
        self.path = path
        self.train = train
        self.test = test
        self.classes = classes
        self._file = file

    def close(self) -> None:
        with reporting_damage(self.path, DataError):
            self._file.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<data set {self.path}: train {self.train}; test {self.test}>"


def open_dataset(
    path: str | bytes | PathLike[str],
    x: str | None = None,
    y: str | None = None,
    *,
    target: str | Sequence[str] | None = None,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    missing_targets: str = "error",
) -> Dataset:
    """Open a data file lazily: examples and labels are read on use.

    A table (.csv, .parquet, .feather) is read at once. `target` names its column of labels, `drop` those to leave out,
    `categories` those of text, or of codes, to take as categories; `train.X` is for a network with a schema. With
    `missing_targets="mask"`, targets that are numbers may be missing: they are nan.

    Without `x` and `y`, the file has the assignment's layout, with `train`, `test` or both. With `x` and `y`, those two
    data sets are `train`, and there is no `test`; with `x` alone, `train` has no labels. DataError says what is wrong
    with the file.
    """
    if x is None and y is not None:
        raise ValueError("y= names the labels of the examples that x= names: give x= too")
    path = expanduser(fsdecode(path))
    from dnn.data.tables import is_table_file, open_table

    if is_table_file(path):
        if x is not None:
            raise ValueError(f"{path}: x= and y= name data sets of HDF5: give target=, the table's columns of labels")
        check_choice("missing_targets", missing_targets, ("error", "mask"))
        return open_table(path, target, drop=drop, categories=categories, missing=missing_targets == "mask")
    file = open_hdf5(path, DataError)
    train: Part | None
    test: Part | None
    try:
        with reporting_damage(path, DataError):
            if x is not None:
                train, test = _part(path, file, x, y), None
            else:
                schema = schema_in(path, file)
                train, test = (
                    _part(path, file, f"{split}_set_x", f"{split}_set_y", schema)
                    if has(file, f"{split}_set_x")
                    else None
                    for split in ("train", "test")
                )
                if train is None and test is None:
                    raise DataError(
                        f"{path}: no data set train_set_x or test_set_x: the file has {listed(file)}; "
                        "name the examples with x=, their labels with y="
                    )
            classes = _class_names(path, file)
        given = {"target": target, "drop": drop, "categories": categories}
        check_as_converted(path, train or test, {f"{name}=": names for name, names in given.items() if names})
        return Dataset(path, file, train, test, classes)
    except BaseException:
        with suppress(Exception):  # closing a damaged file can fail too
            file.close()
        raise


def names_with(Y: Any) -> list[str] | None:
    """The names of the classes of these labels, if they, or the file that they are a data set of, have any."""
    import sys

    if isinstance(Y, Labels):
        return Y.classes
    Y = getattr(Y, "_dset", Y)  # of what Dataset.astype returns
    # only h5py makes such a Y; importing it takes a tenth of a second
    kind = getattr(sys.modules.get("h5py"), "Dataset", None)
    if kind is None or not isinstance(Y, kind):
        return None
    path = str(Y.file.filename)
    with reporting_damage(path, DataError):
        return _class_names(path, Y.file, on_disk=Y.file.mode == "r" and Y.file.driver == "sec2")


def check_as_converted(path: str, part: Part | None, given: Mapping[str, Any]) -> None:
    """DataError where this is given of an HDF5 file's columns, which are decided; its target may be named again."""
    target = getattr(None if part is None else part.X, "target", None)
    for name, names in given.items():
        if target is None:
            raise DataError(f"{path}: {name} is for tables, and the file has arrays: leave it out")
        listed = names if isinstance(names, str) else ",".join(names)
        if "target" not in name or listed.replace(", ", ",") != ",".join(target).replace(", ", ","):
            also = f", and the target is {', '.join(target)}" if "target" in name else ""
            raise DataError(
                f"{path}: {name} was decided when the table was converted{also}: give it to dnn convert, or leave it "
                "out"
            )


def schema_in(path: str, file: Any) -> bytes | None:
    """What the columns of a converted table are, as JSON."""
    if not has(file, "schema"):
        return None
    data = dataset(path, file, "schema", DataError, kinds="S", budget=LARGEST_SCHEMA)
    if data.shape != ():
        raise DataError(f"{path}: schema: expected one text, got shape {data.shape}: convert the table again")
    return bytes(read(path, data, DataError)[()])


def _part(path: str, file: Any, x: str, y: str | None, schema: bytes | None = None) -> Part:
    X = _numbers(path, file, x)
    if schema is not None:
        from dnn.data.tables import table_of

        X = table_of(path, X, schema)
    if y is None:
        return Part(X, None, f"{path}: name the labels of {x} too, with y=: the file has {listed(file)}")
    if not has(file, y):
        return Part(X, None, f"{path}: no data set {y!r}: the file has {listed(file)}")
    Y = _numbers(path, file, y)
    if Y.shape[0] != X.shape[0]:
        raise DataError(f"{path}: {unlike(x, X.shape, y, Y.shape)}")
    return Part(X, Y, "")


def unlike(x: str, X: tuple[int, ...], y: str, Y: tuple[int, ...]) -> str:
    """What is wrong with these shapes, whose numbers of examples differ."""
    if len(Y) == 2 and Y[1] == X[0]:
        fix = f"({X[0]},)" if Y[0] == 1 else f"({X[0]}, {Y[0]})"
        return f"{y}: expected one label per row, got shape {Y} for {X[0]} examples: store it transposed, as {fix}"
    if len(X) == 2 and X[1] in (Y[0], Y[-1]):
        also = f", and {y} too" if X[1] != Y[0] else ""
        return f"{x}: expected one example per row, got shape {X} for {X[1]} labels: store it transposed{also}"
    return f"{x} has {X[0]} examples but {y} has {Y[0]} labels"


def _class_names(path: str, file: Any, on_disk: bool = True) -> list[str] | None:
    if not has(file, "list_classes"):
        return None
    names = stored(path, file, "list_classes", DataError)
    if names.ndim != 1 or names.nbytes > LARGEST_NAMES:
        raise DataError(f"{path}: list_classes: expected one name per class, got shape {names.shape}")
    found: Any
    if not is_variable_text(names.id.get_type()):
        found = read(path, dataset(path, file, "list_classes", DataError), DataError)
    elif on_disk:
        found = variable_text(path, file, names, DataError, LARGEST_NAMES)
    else:  # a file of the user's own, which may be in memory, or not written yet
        found = names[...]
    numbers: dict[str, int] = {}
    for number, name_as_stored in enumerate(found):
        name = _class_name(path, number, name_as_stored)
        if numbers.setdefault(name, number) != number:
            raise DataError(
                f"{path}: list_classes: expected different names, got {name!r} for class {numbers[name]} and class "
                f"{number}: rename one"
            )
    return list(numbers)


def _class_name(path: str, number: int, name: Any) -> str:
    try:
        return unpadded(name) if isinstance(name, bytes) else str(name).rstrip()
    except UnicodeDecodeError:
        raise DataError(f"{path}: list_classes: name {number}, {bytes(name)!r}, is not UTF-8: store it so") from None


def _numbers(path: str, file: Any, name: str) -> Any:
    data = stored(path, file, name, DataError)
    if not data.shape:
        raise DataError(f"{path}: {name}: expected one example per row, got a single value")
    data = dataset(path, file, name, DataError, kinds="biuf")
    check_written(f"{path}: {name}:", data)
    return data
