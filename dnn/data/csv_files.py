"""CSV files, read in blocks: with any of the usual delimiters, compressed or not, of any size.

What a column is, all of its rows decide. The first block tells what to expect, and the file is read once if every
row is so. Where one is not, all is read as text to see what each column is, and then a second time. Whole numbers
with leading zeros, as 00012, are codes: text, a category if they are few.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dnn.data.arrow import NULLS, Numbers, Unfit, is_text, kind_of, pyarrow
from dnn.data.columns import as_number
from dnn.errors import DataError, DnnError
from dnn.hdf5 import read_head

SAMPLE = 4 << 20
"""Bytes that the first line may be long."""
BLOCK = 1 << 20
"""Bytes that are parsed at a time, if lines are not long."""
LONG_BLOCK = 16 << 20
LONGEST_LINE = 1 << 28
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
DELIMITERS = ",;\t|"
KINDS_OF_CELLS = ("number", "boolean", "date")
"""What text can be, the first that fits."""


Progress = Callable[[int, int], None] | None
Blocks = Callable[..., Iterator[list[Any]]]
"""Called, with a Progress or not, it gives the columns' values, arrays of Arrow, block by block."""


class CsvFile:
    """A CSV file: the `names` of its columns, and its rows in blocks of Arrow."""

    nulls = NULLS

    def __init__(self, path: str) -> None:
        head = read_head(path, DataError)
        self.path = path
        self.size = 0
        self.odd: dict[str, tuple[str, int]] = {}
        """Of columns of numbers but for later rows: the first value that is none, and its row."""
        self._compression = next((name for mark, name in COMPRESSIONS.items() if head.startswith(mark)), None)
        with self._reporting(), self._open() as (_, text):
            start = text.read(SAMPLE)
        self._encoding = "utf8"
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self._encoding = "utf16"
        elif b"\0" in start:
            raise DataError(f"{path}: expected a table such as CSV, got a file of bytes that are no text")
        sample = start.decode(self._encoding, "replace").removeprefix("\ufeff")
        if "\ufffd" in sample.partition("\n")[0] and self._encoding == "utf8":
            raise self._not_utf8()
        self.delimiter = _delimiter(sample)
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=self.delimiter)
        try:
            written = next((row for row in rows if row), [])
            self.decimal = self._decimal_of(rows)
        except csv.Error as cause:
            raise DataError(f"{path}: expected a table such as CSV, got what cannot be parsed: {cause}") from None
        longest = max(map(len, start.split(b"\n")[:100]))
        self._block = max(BLOCK, min(128 * longest, LONG_BLOCK), 4 * longest)
        self.names = [name.strip() for name in written]
        self._written = dict(zip(self.names, written, strict=True))
        if not self.names:
            raise DataError(f"{path}: expected a line of column names, got an empty file")
        numbers = [name for name in self.names if as_number(name) is not None]
        if len(numbers) == len(self.names) or (len(set(self.names)) < len(self.names) and numbers):
            raise DataError(
                f"{path}: expected the names of the columns in the first line, got numbers ({numbers[0]}, ...): put a "
                "line of names there"
            )

    def _decimal_of(self, rows: Iterator[list[str]]) -> str:
        """ "," where numbers are written so, which needs another delimiter."""
        if self.delimiter == ",":
            return "."
        cells = [cell for _, row in zip(range(100), rows, strict=False) for cell in row]
        comma, point = (sum(bool(re.fullmatch(rf"\s*[-+]?\d*{mark}\d+\s*", c)) for c in cells) for mark in (",", r"\."))
        return "," if comma > point else "."

    def readings(self, names: Sequence[str], known: Mapping[str, str]) -> Iterator[tuple[list[str], Blocks]]:
        """The kinds of these columns, some of them `known`, and what gives their values in blocks, for one reading.

        If `Misfit` comes out of it, the next has the kinds that all rows have.
        """
        try:
            types = self._expected(names, known)
        except Misfit:
            types = None
        if types is not None:
            kinds = [known.get(name) or kind_of(name, types[name]) for name in names]
            yield kinds, self._blocks(dict(zip(names, map(_read_as, kinds, types.values()), strict=True)))
        while True:
            with suppress(LongLine):
                kinds = self._found(names, known)
                break
        yield kinds, self._blocks(dict.fromkeys(names, pyarrow().string()))

    def _expected(self, names: Sequence[str], known: Mapping[str, str]) -> dict[str, Any] | None:
        """The type of each column in the first block; None where Arrow takes for text what is not."""
        with self._reporting(), self._open() as (_, text), self._reader(text, names) as reader:
            types = dict(zip(names, reader.schema.types, strict=True))
            first = next(iter(reader), None)
        if any(pyarrow().types.is_binary(kind) for kind in types.values()):
            raise self._not_utf8()
        for name, values in zip(names, first.columns if first is not None else [], strict=False):
            if name not in known and is_text(types[name]) and self._fitting(values, KINDS_OF_CELLS, name):
                return None
        return types

    def _found(self, names: Sequence[str], known: Mapping[str, str]) -> list[str]:
        """The kind of each column by all of its rows."""
        left: dict[str, Sequence[str]] = {name: KINDS_OF_CELLS for name in names if name not in known}
        rows = 0
        for columns in self._blocks(dict.fromkeys(names, pyarrow().string()))():
            for name, values in zip(names, columns, strict=True):
                if left.get(name):
                    left[name] = self._fitting(values, left[name], name, rows)
            rows += len(columns[0]) if columns else 0
        return [known.get(name) or [*left[name], "text"][0] for name in names]

    def _fitting(self, values: Any, kinds: Sequence[str], name: str = "", rows: int = 0) -> list[str]:
        """Those of the kinds that a block of text, after so many rows, can be read as."""
        fitting = []
        for kind in kinds:
            try:
                Numbers(name, kind, nulls=NULLS, decimal=self.decimal).floats(values)
            except Unfit as wrong:
                if kind == "number" and rows + wrong.row > 1 and as_number(wrong.value) is None:
                    self.odd[name] = wrong.value, rows + wrong.row
                continue
            fitting.append(kind)
        return fitting

    def _blocks(self, types: Mapping[str, Any]) -> Blocks:
        def blocks(progress: Progress = None) -> Iterator[list[Any]]:
            with self._reporting(), self._open() as (file, text), self._reader(text, list(types), types) as reader:
                for batch in reader:
                    if batch.num_rows:
                        yield batch.columns
                    if progress is not None:
                        progress(file.tell(), self.size)

        return blocks

    def _reader(self, text: Any, names: Sequence[str], types: Mapping[str, Any] | None = None) -> Any:
        from pyarrow import csv as arrow_csv

        # cells may contain what else ends a line
        return arrow_csv.open_csv(
            text,
            arrow_csv.ReadOptions(block_size=self._block, encoding=self._encoding),
            arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            arrow_csv.ConvertOptions(
                include_columns=[self._written[name] for name in names],
                column_types=None if types is None else {self._written[name]: types[name] for name in names},
                null_values=list(NULLS),
                # a column of nothing but 0 and 1 is one of numbers all the same
                true_values=["true", "True", "TRUE", "1"],
                false_values=["false", "False", "FALSE", "0"],
                strings_can_be_null=True,
                decimal_point=self.decimal,
            ),
        )

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The file, which tells how far it is read, and what is in it."""
        pa = pyarrow()
        with pa.OSFile(self.path, "rb") as file:
            self.size = file.size()
            yield file, file if self._compression is None else pa.CompressedInputStream(file, self._compression)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        pa = pyarrow()
        try:
            yield
        except DnnError:
            raise
        except (pa.ArrowException, OSError, UnicodeError) as cause:
            message = " ".join(str(cause).split())
            if "conversion error" in message and "UTF8" not in message:
                raise Misfit from None
            if "CSV parse error" in message and "Expected" in message:
                raise DataError(
                    f"{self.path}: cannot be read: {message[:300]}: every row must have a cell for each column, and "
                    "quotes must be closed"
                ) from None
            if "straddling" in message and self._block < LONGEST_LINE:
                self._block *= 8
                raise LongLine from None
            if "UTF" in message or isinstance(cause, UnicodeError):
                raise self._not_utf8() from None
            raise DataError(f"{self.path}: cannot be read: {message[:300]}") from None

    def _not_utf8(self) -> DataError:
        return DataError(f"{self.path}: the text is not UTF-8: convert it, as with iconv -f latin1 -t utf8")


class Misfit(Exception):
    """A row has another kind of value than the first block had."""


class LongLine(Misfit):
    """A row is longer than a block was."""


def _read_as(kind: str, found: Any) -> Any:
    """The type to read a column as, whose first block has been found to be of a type."""
    pa = pyarrow()
    if kind == "date" and (pa.types.is_date(found) or (pa.types.is_timestamp(found) and found.unit == "s")):
        return pa.timestamp("us", getattr(found, "tz", None))  # which takes fractions of seconds too
    if kind == "date" and (pa.types.is_timestamp(found) or pa.types.is_time(found)):
        return found
    if kind == "number" and pa.types.is_integer(found):
        return pa.string()  # which tells codes, with leading zeros, from numbers
    return {"number": pa.float64(), "boolean": pa.bool_()}.get(kind, pa.string())


def _delimiter(sample: str) -> str:
    """What separates the names in the first line, outside quotes."""
    line = re.sub(r'"[^"]*"', "", sample).lstrip().partition("\n")[0]
    return max(DELIMITERS, key=line.count)
