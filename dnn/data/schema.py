"""How the columns of a table become the inputs of a network, learned from the rows it is trained on.

number     the median in place of a missing value, and a feature that is 1 there, if the training part has any; scaled
date       likewise, in days
boolean    likewise, not scaled
category   a feature for each value of the training part, 1 where the column has it, and one for a missing value if
           the training part has any. Values that are not among these, and missing ones, are 0 in all of them.

Scaled is by one of

none       not at all
standard   (x − mean) / standard deviation, and
robust     (x − median) / interquartile range and smoothly clipped: as `dnn.data.scaling` has them
quantile   to a normal distribution, by the place of x among up to 1000 quantiles: scikit-learn's QuantileTransformer

learned with the medians in place. A column without any value in the training part is left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from dnn.backends import get_backend, log_once
from dnn.data import scaling as scales
from dnn.data.columns import Column, Table, check_names, columns_from_config, places_of
from dnn.data.normal import quantile as normal_quantile
from dnn.data.sources import Rows
from dnn.data.tables import as_table, hint_of_case
from dnn.errors import DataError, check_choice, enumerated, printable

__all__ = ["SCALINGS", "Column", "Encoding", "Schema"]

SCALINGS = ("none", "standard", "robust", "quantile")
MOST_ENCODED = 256
"""Values of a category that have a feature each: the most frequent ones."""
QUANTILES = 1000
AT_ONCE = 4_000_000
"""Numbers in memory at a time, or a few columns."""
_THRESHOLD = 1e-7
"""Closer to the ends, a quantile counts as this, so that it is finite."""


@dataclass(frozen=True)
class Encoding:
    """What a column is encoded with: of a category, only whether `missing` has a feature."""

    missing: bool = False
    fill: float = 0.0
    shift: float = 0.0
    factor: float = 1.0
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Schema:
    """Learned: what each column is and how it is encoded. A value: equal if all of it is.

    The values of a category in `columns` are those that have a feature, in its order. `target` are the columns that
    were the labels, as far as the data said so.
    """

    columns: tuple[Column, ...]
    encodings: tuple[Encoding, ...]
    scaling: str = "standard"
    target: tuple[str, ...] = ()

    @classmethod
    def learn(
        cls,
        X: Any,
        *,
        scaling: str = "standard",
        rows: Any = None,
        drop: str | Sequence[str] = (),
        categories: str | Sequence[str] = (),
    ) -> Schema:
        """The schema of a frame (pandas, polars, Arrow) or a Table, from these rows (numbers, or a mask) or all.

        Of a frame, `drop` leaves columns out, and `categories` keeps text and codes as categories.
        """
        check_choice("scaling", scaling, SCALINGS)
        if isinstance(X, Table) and (drop or categories):
            raise ValueError("drop= and categories= are for frames: give them where the table is opened")
        table = as_table(X, drop=drop, categories=categories)
        rows = None if rows is None else _checked_rows(rows, table.shape[0])
        m = table.shape[0] if rows is None else len(rows)
        if not m:
            raise DataError("X: expected at least one row to learn from, got none")
        counts = _counts(table, rows)
        learned: dict[int, tuple[Column, Encoding]] = {}
        for j, column in enumerate(table.columns_of):
            if column.kind == "category" and len(counts[j]) > 1 and counts[j][:-1].any():
                values = _most_frequent(column, counts[j][:-1])
                learned[j] = Column(column.name, "category", values), Encoding(missing=bool(counts[j][-1]))
        of_numbers = [j for j, column in enumerate(table.columns_of) if column.kind != "category"]
        for j, column_values in _in_groups(table, of_numbers, rows, m):
            column = table.columns_of[j]
            encoding = _learned(column, column_values, scaling)
            if encoding is not None:
                learned[j] = column, encoding
        for j, column in enumerate(table.columns_of):
            if j not in learned:
                log_once(f"column {column.name!r} has no value in the training part and is left out")
        if not learned:
            raise DataError("X: expected a column with values to learn from, got none")
        columns, encodings = zip(*(learned[j] for j in sorted(learned)), strict=True)
        return cls(columns, encodings, scaling, table.target)

    # ------------------------------------------------------------------------------------------ features

    @cached_property
    def _features(self) -> list[list[str]]:
        """The names of each column's features."""
        found, seen = [], set()
        for column, encoding in zip(self.columns, self.encodings, strict=True):
            names = [column.name]
            if column.kind == "category":
                names = [f"{column.name}={value}" for value in column.values]
            names = [*names, f"{column.name} missing"] if encoding.missing else names
            for j in range(len(names)):  # a column may be called "city=Rome"
                while names[j] in seen:
                    names[j] += "'"
                seen.add(names[j])
            found.append(names)
        return found

    @property
    def names(self) -> list[str]:
        """Of the encoded features, in their order."""
        return [name for names in self._features for name in names]

    @property
    def width(self) -> int:
        return sum(map(len, self._features))

    def encoded(self, X: Any) -> Rows:
        """A frame or a Table as (m, width) in float64, with `columns` = names; the columns are found by their names.

        DataError names columns that are missing or of another kind. Values of categories that are not known are 0 in
        all features, and are counted in a log line. The rows are encoded as they are read.
        """
        table = as_table(X, columns=self.columns, drop=self.target)
        places = self._places(table)
        there = [table.columns_of[place] for place in places]
        codes = [_renumbered(*columns) for columns in zip(self.columns, there, strict=True)]
        self._count_unknown(table, places, codes)

        def rows(start: int, stop: int) -> np.ndarray:
            return self._encode(table.read(start, stop)[:, places], there, codes)

        shape, dtype = (table.shape[0], self.width), np.dtype(np.float64)
        return Rows(shape, dtype, rows, self.names, band=table.band)

    def _places(self, table: Table) -> list[int]:
        """Where the table has each column."""
        there = {name: place for place, name in enumerate(table.columns)}
        missing = [column.name for column in self.columns if column.name not in there]
        if missing:
            raise DataError(
                f"X: no column {enumerated(missing, repr)}, on which the network was trained: the columns are "
                f"{enumerated(table.columns, repr)}{hint_of_case(missing, table.columns)}"
            )
        places = [there[column.name] for column in self.columns]
        for column, place in zip(self.columns, places, strict=True):
            kinds = {column.kind, table.columns_of[place].kind}
            if len(kinds) > 1 and kinds != {"number", "boolean"}:
                raise DataError(
                    f"X: column {column.name!r}: the network was trained on a {column.kind}, got a "
                    f"{table.columns_of[place].kind}: convert the column, or the file, as the training data was"
                )
        return places

    def _encode(self, values: np.ndarray, there: Sequence[Column], codes: Sequence[np.ndarray]) -> np.ndarray:
        """Raw rows, in the order of the columns, as features; `codes` says what the codes there are here."""
        features = np.zeros((len(values), self.width))
        first = 0
        for j, (column, encoding) in enumerate(zip(self.columns, self.encodings, strict=True)):
            raw = values[:, j]
            missing = np.isnan(raw)
            if column.kind == "category":
                code = codes[j][_checked_codes(there[j], raw)]
                if encoding.missing:
                    code[missing] = len(column.values)
                known = np.flatnonzero(code >= 0)
                features[known, first + code[known]] = 1
            else:
                filled = np.where(missing, encoding.fill, raw)
                features[:, first] = filled if column.kind == "boolean" else self._scaled(filled, encoding)
                if encoding.missing:
                    features[:, first + 1] = missing
            first += len(self._features[j])
        return features

    def _scaled(self, values: np.ndarray, encoding: Encoding) -> np.ndarray:
        if self.scaling == "none":
            return values
        if self.scaling == "quantile":
            return _normal(values, np.array(encoding.quantiles))
        scale = scales.Scaling(np.array([encoding.shift]), np.array([encoding.factor]), self.scaling == "robust")
        with np.errstate(over="ignore"):  # what is not finite is refused as such
            return scale(get_backend("numpy"), values[:, None])[:, 0]

    def _count_unknown(self, table: Table, places: Sequence[int], codes: Sequence[np.ndarray]) -> None:
        """Log, by name, how many values of each category the training part did not have."""
        doubtful = [j for j, known in enumerate(codes) if (known[:-1] < 0).any()]
        if not doubtful:
            return
        found = {j: np.zeros(len(codes[j]), np.int64) for j in doubtful}
        for start, stop in _chunks(table):
            values = table.read(start, stop)
            for j in doubtful:
                code = _checked_codes(table.columns_of[places[j]], values[:, places[j]])
                found[j] += np.bincount(code[code >= 0], minlength=len(codes[j]))
        for j in doubtful:
            unknown = np.flatnonzero((codes[j][:-1] < 0) & (found[j][:-1] > 0))
            if len(unknown):
                names = [table.columns_of[places[j]].values[value] for value in unknown[:3]]
                listed = ", ".join(repr(name[:40]) for name in names) + (", ..." if len(unknown) > 3 else "")
                log_once(
                    f"column {self.columns[j].name!r}: {int(found[j][unknown].sum())} of {table.shape[0]} rows have "
                    f"values that the network does not know ({listed}): none of its categories is set there"
                )

    # --------------------------------------------------------------------------------------------- files

    def config(self) -> dict[str, Any]:
        """As JSON holds it, exactly; `from_config` gives an equal schema."""
        columns = []
        for column, encoding in zip(self.columns, self.encodings, strict=True):
            config = column.config() | {"missing": encoding.missing}
            if column.kind != "category":
                config["fill"] = encoding.fill
            if column.kind in ("number", "date") and self.scaling in ("standard", "robust"):
                # of a constant column the factor is infinite, which is no number in JSON
                factor = encoding.factor if math.isfinite(encoding.factor) else None
                config |= {"shift": encoding.shift, "factor": factor}
            if column.kind in ("number", "date") and self.scaling == "quantile":
                config["quantiles"] = list(encoding.quantiles)
            columns.append(config)
        return {"scaling": self.scaling, "target": list(self.target), "columns": columns}

    @classmethod
    def from_config(cls, config: Any) -> Schema:
        """ValueError, in one line, for anything that `config` cannot have given."""
        if not isinstance(config, dict) or config.keys() != {"scaling", "target", "columns"}:
            raise ValueError("a schema must have scaling, target and columns")
        scaling, target = config["scaling"], config["target"]
        check_choice("scaling", scaling, SCALINGS)
        given = config["columns"]
        if not isinstance(given, list) or not all(isinstance(column, dict) for column in given):
            raise ValueError("columns of a schema must be a list of columns")
        columns = columns_from_config([{k: v for k, v in column.items() if k in _OF_COLUMN} for column in given])
        if sum(len(column.values) for column in columns) > MOST_ENCODED * len(columns):
            raise ValueError(f"columns of a schema must have at most {MOST_ENCODED} values each")
        encodings = tuple(
            _encoding(column, {k: v for k, v in config.items() if k not in _OF_COLUMN}, scaling)
            for column, config in zip(columns, given, strict=True)
        )
        return cls(columns, encodings, scaling, check_names("target", target))

    def __str__(self) -> str:
        """A line for each column, for people."""
        lines = [("column", "kind", "features", "missing", "learned")]
        for column, encoding, features in zip(self.columns, self.encodings, self._features, strict=True):
            words = self._in_words(column, encoding)
            lines.append((printable(column.name), column.kind, str(len(features)), *words))
        widths = [max(map(len, words)) for words in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip() for words in lines
        )

    def _in_words(self, column: Column, encoding: Encoding) -> tuple[str, str]:
        also = ", a feature" if encoding.missing else ""
        if column.kind == "category":
            shown = ", ".join(map(printable, column.values[:5])) + (", ..." if len(column.values) > 5 else "")
            return ("a value" if encoding.missing else "no value"), shown
        fill = f"{encoding.fill:g}{also}"
        if column.kind == "boolean" or self.scaling == "none":
            return fill, ""
        if self.scaling == "quantile":
            low, high = encoding.quantiles[0], encoding.quantiles[-1]
            return fill, f"{len(encoding.quantiles)} quantiles from {low:g} to {high:g}"
        return fill, f"(x - {encoding.shift:g}) / {encoding.factor:g}{' clipped' * (self.scaling == 'robust')}"


_OF_COLUMN = ("name", "kind", "values")


def _encoding(column: Column, config: dict[str, Any], scaling: str) -> Encoding:
    """What `config` gives a column; ValueError unless it is just what this kind has."""
    what, scaled = f"column {column.name!r}", column.kind in ("number", "date")
    expected = {"missing"}
    expected |= set() if column.kind == "category" else {"fill"}
    expected |= {"shift", "factor"} if scaled and scaling in ("standard", "robust") else set()
    expected |= {"quantiles"} if scaled and scaling == "quantile" else set()
    if config.keys() != expected:
        raise ValueError(f"{what} of kind {column.kind} with {scaling} scaling must have {', '.join(sorted(expected))}")
    if not isinstance(config["missing"], bool):
        raise ValueError(f"{what}: missing must be true or false")
    if column.kind == "category":
        if not column.values or len(column.values) > MOST_ENCODED:
            raise ValueError(f"{what}: a category must have 1 to {MOST_ENCODED} values, got {len(column.values)}")
        return Encoding(config["missing"])
    fill = _finite(f"{what}: fill", config["fill"])
    if not scaled or scaling == "none":
        return Encoding(config["missing"], fill)
    if scaling == "quantile":
        quantiles = config["quantiles"]
        if not isinstance(quantiles, list) or not 1 <= len(quantiles) <= QUANTILES:
            raise ValueError(f"{what}: quantiles must be a list of 1 to {QUANTILES} numbers")
        numbers = tuple(_finite(f"{what}: quantiles", value) for value in quantiles)
        if any(one > following for one, following in pairwise(numbers)):
            raise ValueError(f"{what}: quantiles must be in ascending order")
        return Encoding(config["missing"], fill, quantiles=numbers)
    factor = math.inf if config["factor"] is None else _finite(f"{what}: factor", config["factor"])
    if factor <= 0:
        raise ValueError(f"{what}: factor must be positive, got {factor!r}")
    return Encoding(config["missing"], fill, _finite(f"{what}: shift", config["shift"]), factor)


def _finite(what: str, value: Any) -> float:
    # JSON has whole numbers that no float holds, and nan, which is not below anything
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{what} must be a finite number")
    return float(value)


# ---------------------------------------------------------------------------------------------- learning


def _checked_rows(rows: Any, m: int) -> np.ndarray:
    """The rows in ascending order; DataError where they are no rows of the table."""
    found = np.asarray(rows)
    if found.dtype == bool and found.shape == (m,):
        return np.flatnonzero(found)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise DataError(
            f"rows: expected numbers of rows, or a mask of all {m}, got {found.dtype} of shape {found.shape}"
        )
    found = np.sort(found)
    if found[0] < 0 or found[-1] >= m:
        raise DataError(f"rows: expected numbers from 0 to {m - 1}, got {found[0] if found[0] < 0 else found[-1]}")
    if (found[1:] == found[:-1]).any():
        raise DataError(f"rows: expected each row once, got {found[1:][found[1:] == found[:-1]][0]} twice")
    return found


def _chunks(table: Table) -> Iterator[tuple[int, int]]:
    step = max(1, AT_ONCE // 4 // table.shape[1])
    if table.band:  # whole chunks of a file
        step = max(table.band, step - step % table.band)
    for start in range(0, table.shape[0], step):
        yield start, min(start + step, table.shape[0])


def _blocks(table: Table, rows: np.ndarray | None) -> Iterator[np.ndarray]:
    """The rows to learn from."""
    for start, stop in _chunks(table):
        block = table.read(start, stop)
        yield block if rows is None else block[rows[slice(*np.searchsorted(rows, (start, stop)))] - start]


def _counts(table: Table, rows: np.ndarray | None) -> dict[int, np.ndarray]:
    """How often each category has each of its values, and none."""
    sizes = {j: len(column.values) + 1 for j, column in enumerate(table.columns_of) if column.kind == "category"}
    counts = {j: np.zeros(size, np.int64) for j, size in sizes.items()}
    if counts:
        for block in _blocks(table, rows):
            for j, size in sizes.items():
                codes = _checked_codes(table.columns_of[j], block[:, j])
                counts[j] += np.bincount(np.where(codes < 0, size - 1, codes), minlength=size)
    return counts


def _most_frequent(column: Column, counts: np.ndarray) -> tuple[str, ...]:
    """The values that have a feature, sorted."""
    there = np.flatnonzero(counts)
    if len(there) > MOST_ENCODED:
        log_once(
            f"column {column.name!r} has {len(there)} values: the {MOST_ENCODED} most frequent are encoded, the others "
            "are as unknown ones"
        )
        there = there[np.argsort(-counts[there], kind="stable")[:MOST_ENCODED]]
    return tuple(sorted(column.values[code] for code in there))


def _in_groups(
    table: Table, places: Sequence[int], rows: np.ndarray | None, m: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Each of these columns, whole; a few of them are in memory at a time."""
    size = max(-(-len(places) // scales.PASSES), AT_ONCE // m)
    for first in range(0, len(places), size):
        group = list(places[first : first + size])
        values, start = np.empty((len(group), m)), 0
        for block in _blocks(table, rows):
            values[:, start : start + len(block)] = block[:, group].T
            start += len(block)
        yield from zip(group, values, strict=True)


def _learned(column: Column, values: np.ndarray, scaling: str) -> Encoding | None:
    """The encoding of a column of numbers; None if it has no values."""
    missing = np.isnan(values)
    known = values[~missing]
    if not len(known):
        return None
    if not np.isfinite(known).all():
        raise DataError(f"column {column.name!r}: expected finite numbers, got {known[~np.isfinite(known)][0]}")
    fill = float(np.median(known))
    if missing.any():
        values = np.where(missing, fill, values)
    if not math.isfinite(fill):
        raise _too_large(column)
    if column.kind == "boolean" or scaling == "none":
        return Encoding(bool(missing.any()), fill)
    if scaling == "quantile":
        # in percent, as scikit-learn has them: one rounding less, and equal values are no longer equal to a quantile
        percent = np.linspace(0, 1, min(QUANTILES, len(values))) * 100
        quantiles = np.maximum.accumulate(np.percentile(values, percent))
        return Encoding(bool(missing.any()), fill, quantiles=tuple(map(float, quantiles)))

    def whole() -> Iterator[np.ndarray]:
        yield values[:, None]

    with np.errstate(over="ignore", invalid="ignore"):
        found = scales.standard(whole, 1) if scaling == "standard" else scales.robust(whole, 1, len(values), 1)
    (shift,), (factor,) = found
    if np.isnan(factor) or not math.isfinite(shift):
        raise _too_large(column)
    return Encoding(bool(missing.any()), fill, float(shift), float(factor))


def _too_large(column: Column) -> DataError:
    return DataError(f"column {column.name!r} is too large to be scaled: divide it by its size")


# ---------------------------------------------------------------------------------------------- encoding


def _checked_codes(column: Column, raw: np.ndarray) -> np.ndarray:
    """The codes of a column as integers, −1 for missing; DataError where a file has one that is none."""
    missing = np.isnan(raw)
    wrong = ~missing & ~((raw >= 0) & (raw < len(column.values)) & (np.floor(raw) == raw))
    if wrong.any():
        raise DataError(
            f"column {column.name!r}: expected codes from 0 to {len(column.values) - 1}, got {raw[wrong][0]:g}"
        )
    return np.where(missing, -1, raw).astype(np.int64)


def _renumbered(column: Column, there: Column) -> np.ndarray:
    """The code here of each code there, −1 for one that is unknown, and for a missing value, in the last place."""
    places = map(places_of(column.values), there.values)
    return np.array([*(-1 if place is None else place for place in places), -1], np.int64)


def _normal(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The values as of a normal distribution, by their place among the quantiles."""
    places = np.linspace(0, 1, len(quantiles))
    share = np.interp(values, quantiles, places)
    if (quantiles[1:] == quantiles[:-1]).any():  # of equal ones the middle of their places: those from below and above
        share = 0.5 * (share - np.interp(-values, -quantiles[::-1], -places[::-1]))
    share[values + _THRESHOLD > quantiles[-1]] = 1
    share[values - _THRESHOLD < quantiles[0]] = 0
    least = _THRESHOLD - np.spacing(1)
    return normal_quantile(np.clip(share, least, 1 - least))
