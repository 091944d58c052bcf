"""What the columns of a table are, and a table as one matrix of numbers.

number     as it is; in a text file no code with leading zeros, as 00012
boolean    0 and 1
category   the number of its value in `Column.values`
date       days since 1970-01-01; hours, minutes and seconds are fractions of a day

nan stands for a missing value of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnn.errors import DataError, printable

KINDS = ("number", "boolean", "category", "date")
MOST_COLUMNS = 100_000
MOST_VALUES = 100_000
"""Of one category, kept by name: more are refused."""
LONGEST_NAME = 10_000


@dataclass(frozen=True)
class Column:
    """A column by name; `values` are the names of a category's values, in the order of their codes."""

    name: str
    kind: str
    values: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """As JSON holds it."""
        config: dict[str, Any] = {"name": self.name, "kind": self.kind}
        return config | {"values": list(self.values)} if self.kind == "category" else config

    @classmethod
    def from_config(cls, config: Any) -> Column:
        """The column that `config` gave; ValueError says what is wrong with what may come from anywhere."""
        if not isinstance(config, dict) or not {"name", "kind"} <= config.keys() <= {"name", "kind", "values"}:
            raise ValueError(f"a column must have name and kind, and may have values, got {_shown(config)}")
        name, kind, values = config["name"], config["kind"], config.get("values", [])
        check_names("the name of a column", [name])
        if kind not in KINDS:
            raise ValueError(f"column {name!r}: kind must be one of {', '.join(KINDS)}, got {_shown(kind)}")
        if not isinstance(values, list) or len(values) > MOST_VALUES or (values and kind != "category"):
            raise ValueError(f"column {name!r}: values must be the names of a category's values, got {_shown(values)}")
        check_names(f"column {name!r}: values", values)
        return cls(name, kind, tuple(values))


def columns_from_config(config: Any) -> tuple[Column, ...]:
    """The columns of a table, with different names; ValueError as in `Column.from_config`."""
    if not isinstance(config, list) or not 0 < len(config) <= MOST_COLUMNS:
        raise ValueError(f"columns must be a list of 1 to {MOST_COLUMNS}, got {_shown(config)}")
    columns = tuple(map(Column.from_config, config))
    check_names("names of columns", [column.name for column in columns])
    return columns


def places_of(names: Sequence[str]) -> Callable[[str], int | None]:
    """Finds the place of a name, or where there is none, of the only name that is the same number: "3.0" is "3"."""
    places = {name: place for place, name in enumerate(names)}
    numbers: dict[float, int | None] = {}
    for name, place in places.items():
        if (number := as_number(name)) is not None:
            numbers[number] = None if number in numbers else place

    def find(name: str) -> int | None:
        if name in places:
            return places[name]
        number = as_number(name)
        return None if number is None else numbers.get(number)

    return find


def as_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def counted(columns: Sequence[Column]) -> str:
    """How many columns there are of each kind, in words, and the values of categories."""
    plurals = dict(zip(KINDS, ("numbers", "booleans", "categories", "dates"), strict=True))
    found = []
    for kind in ("number", "boolean", "date", "category"):
        those = [column for column in columns if column.kind == kind]
        if those:
            found.append(f"{len(those)} {kind if len(those) == 1 else plurals[kind]}")
        if those and kind == "category":
            sizes = [f"{printable(column.name[:40])} {len(column.values)}" for column in those[:8]]
            found[-1] += f" ({', '.join(sizes)}{', ...' if len(those) > 8 else ''})"
    return ", ".join(found)


def check_names(what: str, names: Any) -> tuple[str, ...]:
    """The names; ValueError unless they are texts, none of them twice."""
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"{what} must be a list of names, got {_shown(names)}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not _is_unicode(name):
            raise ValueError(f"{what} must be text of at most {LONGEST_NAME} characters, got {_shown(name)}")
        if name in seen:
            raise ValueError(f"{what} must be different, got {_shown(name)} twice")
        seen.add(name)
    return tuple(names)


def _is_unicode(name: str) -> bool:
    """Whether it can be written: half of a surrogate pair, which JSON can hold, cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except RecursionError:  # lists within lists, as deep as a file likes
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


class Table:
    """The rows of a table as numbers of float64, read on use: (m, columns), codes of categories among them.

    `columns` are the names, `columns_of` what they mean, `target` the names of the columns that became labels. There is
    no `__getitem__`, and no array is made of it: a network that took the codes of categories for numbers would learn,
    though badly. `Schema.encoded` makes what a network takes.
    """

    def __init__(
        self,
        columns_of: Sequence[Column],
        rows: int,
        read: Callable[[int, int], np.ndarray],
        *,
        target: Sequence[str] = (),
        band: int | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.columns_of = tuple(columns_of)
        self.columns = [column.name for column in self.columns_of]
        self.target = tuple(target)
        self.shape = (rows, len(self.columns_of))
        self.dtype = np.dtype(np.float64)
        self.band = band
        self.close = close
        self._read = read

    def read(self, start: int, stop: int) -> np.ndarray:
        """These rows (stop − start, columns); nan where a value is missing."""
        return self._read(start, min(stop, self.shape[0]))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise DataError(
            "a table is for a network with a schema: schema = dnn.Schema.learn(X), Network([schema.width, ...], "
            "schema=schema)"
        )

    def __repr__(self) -> str:
        return f"<table of {self.shape[0]} rows: {', '.join(map(repr, self.columns))}>"
