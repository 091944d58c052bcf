"""Columns of Arrow as numbers, block by block: the form in which every table file and frame arrives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote
from typing import Any

import numpy as np

from dnn.data.columns import MOST_VALUES, Column, as_number
from dnn.errors import DataError

MOST_BY_ITSELF = 1000
"""Different values of a text column up to which it is a category unasked."""
ALWAYS = 20
"""Up to which it is one however few rows there are."""

NULLS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""What a cell of a text file says where it has no value: as pandas has it."""

RARE = 0.25
"""The share of the values, or of the rows, up to which words among numbers or dates stand for no value."""
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?|\d\d:\d\d(:.*)?")
_OTHER_DATE = re.compile(r"(\d{1,2}([./-])\d{1,2}\2\d{4}|\d{4}([./])\d{1,2}\3\d{1,2})( .*)?")
_CODE = re.compile(r"0\d+")
"""A number that someone has written with leading zeros names something: it counts nothing."""
_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def pyarrow() -> Any:
    """The library, with its `compute`; DataError says how to install it."""
    try:
        import pyarrow.compute
    except ImportError:
        raise DataError("tables are read with pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow


def option(flags: bool, what: str, name: str) -> str:
    """How the user says this of a column: by a flag of the command line, or in Python."""
    return f"--{what} {quote(name)}" if flags else f"{what}=[{name!r}]"


class Unfit(DataError):
    """A `value` in a `row`, counted from 1, is not of the kind of its column."""

    def __init__(self, message: str, value: str = "", row: int = 0) -> None:
        super().__init__(message)
        self.value, self.row = value, row


def kind_of(name: str, kind: Any, where: str = "X", flags: bool = False) -> str:
    """What a column of this type of Arrow is; "text" where its values decide."""
    types = pyarrow().types
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return "number"
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        return "date"
    if is_text(kind):
        return "text"
    if types.is_dictionary(kind):
        return "category"
    raise DataError(
        f"{where}: column {name!r} has values of type {kind}, which are neither numbers nor text: leave it out with "
        f"{option(flags, 'drop', name)}"
    )


def is_text(kind: Any) -> bool:
    types = pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


class Numbers:
    """A column that arrives in blocks: each becomes numbers, and at the end it is known what the column is.

    Of a text column the values are counted as they come. `given` is what a model says it is, `odd` the first value, and
    its row, that made it text after others that were numbers.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        given: Column | None = None,
        where: str = "",
        what: str = "column",
        nulls: Sequence[str] = ("",),
        decimal: str = ".",
        odd: tuple[str, int] | None = None,
        flags: bool = False,
    ) -> None:
        self.what = f"{where}: {what} {name!r}"
        self._flags, self._odd, self._counts = flags, odd, np.zeros(0, np.int64)
        self.name, self.kind, self.rows, self._where = name, kind, 0, where
        self._is_target = what == "target"
        self._given = given
        self._nulls, self._decimal = frozenset(nulls), decimal
        self._codes: dict[str, int] = {}
        if given is not None:
            self.kind = given.kind
            self._codes = {value: code for code, value in enumerate(given.values)}

    @property
    def is_text(self) -> bool:
        """Whether it has too many values to be a category unasked, as far as it has been seen."""
        return self.kind == "text" and len(self._codes) > MOST_BY_ITSELF

    def column(self) -> Column | None:
        """What it is, all of it having been seen; None where it is text."""
        kind = "category" if self.kind == "text" else self.kind
        few = len(self._codes) <= max(ALWAYS, min(MOST_BY_ITSELF, self.rows // 2))
        return None if self.kind == "text" and not few else Column(self.name, kind, tuple(self._codes))

    def check_not_numbers(self) -> None:
        """DataError where a text column is numbers, or dates, but for a few words: someone's own for missing values."""
        if self.kind != "text" or any(map(_CODE.fullmatch, self._codes)):
            return
        keep = f"keep {'these as classes' if self._is_target else 'it as a category'} with {self._option('categories')}"
        out = "or " if self._is_target else f"leave the column out with {self._option('drop')}, or "
        for what, fits in (("numbers", self._is_number), ("dates", ISO_DATE.fullmatch)):
            words = [value for value in self._codes if not fits(value)]
            rows = int(self._counts[[self._codes[word] for word in words]].sum())
            few = len(words) < RARE * len(self._codes) or rows < RARE * self._counts.sum()
            few |= words == [self.name]  # of tables that were joined with their lines of names
            listed = ", ".join(repr(word[:40]) for word in words[:3]) + (", ..." if len(words) > 3 else "")
            if self._odd is not None and what == "numbers" and words in ([], [self._odd[0]]):  # [] as far as it is read
                words, listed = [self._odd[0]], f"{self._odd[0][:40]!r} in row {self._odd[1]}"
            if words and few:
                fix = "correct them" if self._is_target else "leave such cells empty"
                raise DataError(f"{self.what} has {what}, and {listed}: {fix}, {out}{keep}")
        if self._codes and all(map(_OTHER_DATE.fullmatch, self._codes)):
            raise DataError(
                f"{self.what} has dates such as {next(iter(self._codes))[:40]!r}, which can be read in more than one "
                f"way: write them as 2026-01-31, {out}{keep}"
            )

    def _is_number(self, text: str) -> bool:
        return as_number(text.replace(self._decimal, ".")) is not None

    def _option(self, what: str) -> str:
        return option(self._flags, what, self.name)

    def text_error(self, others: Sequence[Numbers] = ()) -> DataError:
        """What a person is told of a column of text, and of others."""
        fix = f"leave it out with {self._option('drop')}, or keep it as a category with {self._option('categories')}"
        if self._is_target:
            fix = f"choose another target, or keep these as classes with {self._option('categories')}"
        also = f" (likewise {', '.join(repr(other.name) for other in others)})" if others else ""
        what = "has numbers with leading zeros, codes" if all(map(_CODE.fullmatch, self._codes)) else "is text"
        return DataError(f"{self.what} {what} ({len(self._codes)} different values in {self.rows} rows): {fix}{also}")

    def floats(self, values: Any) -> np.ndarray:
        """A block of the column in float64; DataError where a value is not of its kind."""
        pa = pyarrow()
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if pa.types.is_dictionary(values.type) and self.kind not in ("text", "category"):
            values = values.dictionary_decode()
        if self.kind in ("text", "category"):
            block = self._category(values)
        elif self.kind == "date":
            block = self._dates(values)
        else:
            block = self._numbers(values)
        self.rows += len(values)
        return block

    # ------------------------------------------------------------------------------ numbers and booleans

    def _numbers(self, values: Any) -> np.ndarray:
        pa = pyarrow()
        kind = values.type
        if is_text(kind):
            if self._given is None:
                self._check_no_codes(values)
            if self.kind == "number" and self._decimal == ".":
                try:  # the usual case, in which nothing stands around a number
                    return _to_numpy(values.cast(pa.float64()))
                except pa.ArrowInvalid:
                    pass
            text = self._trimmed(values)
            if self.kind == "boolean":
                low = pa.compute.utf8_lower(text)
                for word, digit in (("true", "1"), ("false", "0")):
                    low = pa.compute.if_else(pa.compute.equal(low, word), digit, low)
                text = low
            elif self._decimal != ".":
                text = pa.compute.replace_substring(text, self._decimal, ".")
            block = self._cast(values, text, [pa.float64()])
        elif kind_of(self.name, kind, self._where, self._flags) in ("number", "boolean"):
            if pa.types.is_boolean(kind):
                values = values.cast(pa.uint8())
            elif pa.types.is_float16(kind):
                values = values.cast(pa.float32())
            block = _to_numpy(values.cast(pa.float64(), safe=False))
        else:
            raise DataError(f"{self.what}: expected {_KINDS[self.kind]}, got values of type {kind}: convert it first")
        if self.kind == "boolean":
            wrong = ~((block == 0) | (block == 1) | np.isnan(block))
            if wrong.any():
                raise self._unfit(int(wrong.argmax()), f"{block[wrong][0]:g}")
        return block

    def _check_no_codes(self, values: Any) -> None:
        """Unfit where a number has leading zeros."""
        compute = pyarrow().compute
        zeros = compute.starts_with(values, "0").fill_null(False)
        if compute.any(zeros).as_py():
            codes = compute.match_substring_regex(compute.filter(values, zeros), r"^0\d+\s*$")
            if compute.any(codes).as_py():
                row = int(np.flatnonzero(zeros)[compute.index(codes, True).as_py()])
                raise self._unfit(row, repr(str(values[row])[:40]), str(values[row]))

    def _trimmed(self, values: Any) -> Any:
        """Text without spaces around it, and with nulls for what stands for no value."""
        pa = pyarrow()
        if not pa.types.is_string(values.type):
            values = values.cast(pa.string())
        text = pa.compute.utf8_trim_whitespace(values)
        nulls = pa.array([*self._nulls, *NULLS], pa.string())
        return pa.compute.if_else(pa.compute.is_in(text, nulls), pa.scalar(None, pa.string()), text)

    def _cast(self, values: Any, text: Any, kinds: Sequence[Any]) -> np.ndarray:
        """The text as the first of these types that all of it is; DataError names the first value that is of none."""
        pa = pyarrow()
        for kind in kinds:
            try:
                cast = text.cast(kind)
            except pa.ArrowInvalid:
                continue
            return _to_numpy(cast) if pa.types.is_floating(kind) else _days(cast)

        def fits(row: int) -> bool:
            for kind in kinds:
                try:
                    text[row].cast(kind)
                except pa.ArrowInvalid:
                    continue
                return True
            return False

        row = next((row for row in range(len(text)) if not fits(row)), 0)
        value = str(values[row].as_py())
        raise self._unfit(row, repr(value[:40]), value.strip())

    def _unfit(self, row: int, shown: str, value: str = "") -> Unfit:
        row += self.rows + 1
        return Unfit(
            f"{self.what}: expected {_KINDS[self.kind]}, got {shown} in row {row}: correct it, or leave it empty if it "
            "is not known",
            value,
            row,
        )

    # --------------------------------------------------------------------------------------------- dates

    def _dates(self, values: Any) -> np.ndarray:
        pa = pyarrow()
        if is_text(values.type):
            text = self._trimmed(values)
            # all as instants of UTC: what is only a time of day or only a date, then what has no zone
            for pattern, before, after in (
                (r"^\d\d:\d\d", "1970-01-01 ", ""),
                (r"^[^:]*$", "", " 00:00Z"),
                (r":[^Zz+-]*$", "", "Z"),
            ):
                has = pa.compute.match_substring_regex(text, pattern)
                if pa.compute.any(has).as_py():
                    text = pa.compute.if_else(has, pa.compute.binary_join_element_wise(before, text, after, ""), text)
            return self._cast(values, text, [pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")])
        if pa.types.is_null(values.type):
            return np.full(len(values), np.nan)
        if kind_of(self.name, values.type, self._where, self._flags) != "date":
            raise DataError(f"{self.what}: expected dates, got values of type {values.type}: convert it first")
        return _days(values)

    # ---------------------------------------------------------------------------------------- categories

    def _category(self, values: Any) -> np.ndarray:
        pa = pyarrow()
        if pa.types.is_null(values.type):
            return np.full(len(values), np.nan)
        is_encoded = pa.types.is_dictionary(values.type)
        if not is_encoded:
            values = values.dictionary_encode()
        names = values.dictionary.to_pylist()
        places = values.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        codes = np.full(len(names) + 1, np.nan)
        used: Any = range(len(names))
        if is_encoded:  # by someone else: those that occur, in the order in which they do
            used, first = np.unique(places, return_index=True)
            used = used[np.argsort(first)]
        for place in used:
            if place < len(names):
                codes[place] = self._code(names[place])
        found = codes[places]
        if self.kind == "text":
            counts = np.bincount(found[~np.isnan(found)].astype(np.int64), minlength=len(self._codes))
            counts[: len(self._counts)] += self._counts
            self._counts = counts
        return found

    def _code(self, value: Any) -> float:
        name = value_name(value)
        if name in self._nulls:
            return np.nan
        code = self._codes.get(name)
        if code is None:
            code = len(self._codes)
            if code >= MOST_VALUES:
                if self._given is not None:  # unknown to the model, as the last one is
                    return code - 1
                self._counts = np.zeros(code, np.int64)
                self.check_not_numbers()
                raise DataError(
                    f"{self.what} has more than {MOST_VALUES} different values: leave it out with "
                    f"{self._option('drop')}"
                )
            self._codes[name] = code
        return code


_KINDS = {"number": "numbers", "boolean": "true or false", "date": "dates such as 2026-01-31 or 2026-01-31 08:30:00"}


def value_name(value: Any) -> str:
    """The name of a category's value: a whole number has the same, be it in a column of floats or not."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value if abs(value) < 1e300 else 0):
        return str(int(value))
    return str(value).strip()


def _to_numpy(values: Any) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _days(values: Any) -> np.ndarray:
    """Dates and times of day as days."""
    pa = pyarrow()
    kind = values.type
    missing = np.asarray(values.is_null())
    if pa.types.is_date32(kind):
        per_day, whole = 1, values.cast(pa.int32())
    elif pa.types.is_date64(kind):
        per_day, whole = _DAY["ms"], values.cast(pa.int64())
    else:
        per_day, whole = _DAY[kind.unit], values.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    ticks = whole.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    days, rest = np.divmod(ticks, per_day)
    return np.where(missing, np.nan, days + rest / per_day)
