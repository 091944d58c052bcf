"""Tables of CSV, Parquet and Feather and of other libraries: what is read, how it is typed, what is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnn.data import Dataset, csv_files, open_dataset, tables
from dnn.data.columns import Column, Table
from dnn.data.schema import Schema
from dnn.data.tables import as_table, convert_table, is_table_file, open_table, table_of
from dnn.errors import DataError, OutputError
from dnn.network import Network

pa = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
NAN = np.nan


def raw(table: Table) -> list[list[float | None]]:
    """All rows, with None for nan, so that they can be compared."""
    return [[None if value != value else value for value in row] for row in table.read(0, len(table)).tolist()]


def kinds(table: Table) -> dict[str, str]:
    return {column.name: column.kind for column in table.columns_of}


class Files:
    """Writes tables, and closes what is opened of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: list[Dataset] = []

    def write(self, content: str | bytes, name: str = "t.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def open(self, content: str | bytes, target: Any = None, name: str = "t.csv", **settings: Any) -> Dataset:
        data = open_table(self.write(content, name), target, **settings)
        self._opened.append(data)
        return data

    def table(self, content: str | bytes, **settings: Any) -> Table:
        data = self.open(content, **settings)
        assert data.train is not None
        return data.train.X


@pytest.fixture
def files(tmp_path: Path) -> Any:
    made = Files(tmp_path)
    yield made
    for data in made._opened:
        data.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK", 128)
    monkeypatch.setattr(csv_files, "LONG_BLOCK", 128)


# ----------------------------------------------------------------------------------------------------- reading


def test_a_csv_file_becomes_numbers_and_says_what_they_are(files: Files):
    data = files.open(
        "id,city,ok,when,price\n"
        "1,Oslo,true,2020-01-02,1.5\n"
        "-2e3,Rome,False,1970-01-01 06:00:00,2\n"
        ",,,,3\n"
        "9007199254740993,Oslo,TRUE,1969-12-31T18:00:00.5,4\n",
        "price",
    )
    assert data.train is not None and data.test is None and data.classes is None
    X = data.train.X
    assert kinds(X) == {"id": "number", "city": "category", "ok": "boolean", "when": "date"}
    assert X.columns_of[1].values == ("Oslo", "Rome") and X.target == ("price",)
    assert raw(X) == [
        [1, 0, 1, 18263],
        [-2000, 1, 0, 0.25],
        [None, None, None, None],
        [9007199254740992, 0, 1, -1 + 64800.5 / 86400],
    ]
    assert data.train.Y.tolist() == [1.5, 2, 3, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_that_of_the_line_of_names(files: Files, delimiter: str):
    text = '"a, b; c",x,y\n1,2,u\n'.replace(",", delimiter).replace(f"a{delimiter} b", "a, b")
    assert raw(files.table(text)) == [[1, 2, 0]]


def test_numbers_may_have_a_decimal_comma(files: Files):
    table = files.table("a;b\n1,5;x\n-,25;y\n")
    assert raw(table) == [[1.5, 0], [-0.25, 1]]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: bz2.compress(text.encode()),
    ],
    ids=["byte order mark", "UTF-16", "CRLF", "gzip", "bzip2"],
)
def test_encodings_and_compressions_are_found_out(files: Files, encode: Any):
    table = files.table(encode("größe,stadt\n1,Århus\n2,Zürich\n"), name="any.name")
    assert table.columns == ["größe", "stadt"]
    assert table.columns_of[1].values == ("Århus", "Zürich") and raw(table) == [[1, 0], [2, 1]]


def test_quoted_cells_may_have_newlines_delimiters_and_quotes(files: Files, small_blocks: None):
    table = files.table('"no\nte",x\n' + '"a\n\n1,2\nb, ""c""",1\n' * 100)
    assert table.columns == ["no\nte", "x"] and table.columns_of[0].values == ('a\n\n1,2\nb, "c"',)
    assert len(table) == 100


def test_spaces_around_names_and_values_do_not_count(files: Files):
    table = files.table("a, b , c\n1, x ,2\n 3 ,x,\n4,  ,5\n")
    assert table.columns == ["a", "b", "c"] and table.columns_of[1].values == ("x",)
    assert raw(table) == [[1, 0, 2], [3, 0, None], [4, None, 5]]


def test_cells_that_say_that_there_is_no_value_are_missing(files: Files):
    table = files.table("a,b,c\n1,x,1\nNA,NA,\nnull,None,nan\n,,NaN\n")
    assert raw(table) == [[1, 0, 1], *[[None] * 3] * 3]
    assert kinds(table) == {"a": "number", "b": "category", "c": "number"}


def test_columns_without_a_name_are_left_out_and_said_so(files: Files, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        table = files.table(",a,b,\n0,1,2,\n1,3,4,\n", name="index.csv")
    assert table.columns == ["a", "b"] and "index.csv: 2 columns without a name left out" in caplog.text


def test_thousands_of_columns_in_small_files(files: Files):
    names = [f"c{j}" for j in range(3000)]
    row = ",".join(str(j) for j in range(3000))
    table = files.table(",".join(names) + "\n" + f"{row}\n" * 3)
    assert table.shape == (3, 3000) and np.array_equal(table.read(1, 2)[0], np.arange(3000))


def test_lines_longer_than_a_block_are_read(files: Files, small_blocks: None):
    cell = "x" * 500
    table = files.table("a,b\n" + "1,y\n" * 200 + f'2,"{cell}"\n')
    assert len(table) == 201 and table.columns_of[1].values[-1] == cell


# --------------------------------------------------------------------------------- types, by all of the rows


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1"] * 99 + ["2.5"], "number", 2.5),
        (["7"] * 60 + ["x"] * 40, "category", 1),
        (["1", "0"] * 50 + ["true"], "boolean", 1),
        ([""] * 99 + ["3"], "number", 3),
        ([""] * 99 + ["true"], "boolean", 1),
        ([""] * 99 + ["y"], "category", 0),
        ([""] * 99 + ["1970-01-03"], "date", 2),
        (["true"] * 99 + ["maybe"], "category", 1),
        (["1970-01-01"] * 99 + ["1970-01-02 12:00"], "date", 1.5),
        (["1970-01-01"] * 99 + ["1970-01-02 12:00:00.000000001"], "date", 1 + 43_200_000_000_001 / 86_400_000_000_000),
        (["1970-01-01T00:00:00Z"] * 99 + ["1970-01-01T06:00:00+02:00"], "date", 4 / 24),
        (["06:00"] * 99 + ["12:00:00"], "date", 0.5),
        (["1970-01-01"] * 60 + ["no day"] * 40, "category", 1),
        ([""] * 100, "number", None),
        (["1970-01-01 00:00", "1970-01-01T06:00Z"], "date", 0.25),
        (["1970-01-01 00:00"] * 99 + ["1970-01-01T06:00Z"], "date", 0.25),
        ([" 1970-01-01"] * 99 + ["1970-01-02 "], "date", 1),
        ([" true"] * 99 + ["0 "], "boolean", 0),
    ],
)
def test_all_rows_decide_what_a_column_is(
    files: Files, small_blocks: None, cells: list[str], kind: str, values: float | None
):
    table = files.table("other,a,more\n" + "".join(f"{k},{cell},{k / 2}\n" for k, cell in enumerate(cells)))
    assert kinds(table) == {"other": "number", "a": kind, "more": "number"}
    assert raw(table)[-1] == [len(cells) - 1, values, (len(cells) - 1) / 2]


def test_a_file_of_one_kind_is_read_once(files: Files, small_blocks: None, monkeypatch: pytest.MonkeyPatch):
    calls = []
    found = csv_files.CsvFile._found
    monkeypatch.setattr(csv_files.CsvFile, "_found", lambda *given: calls.append(1) or found(*given))
    files.table("a,b\n" + "1,x\n" * 100)
    assert not calls
    files.table("a,b\n" + "1,x\n" * 60 + "y,x\n" * 40)
    assert len(calls) == 1


def test_numbers_that_are_codes_become_categories_by_name(files: Files):
    table = files.table("zip,n\n01234,1\n1234,2\n,3\n", categories="zip")
    assert table.columns_of[0] == Column("zip", "category", ("01234", "1234")) and raw(table)[2] == [None, 3]


def test_names_are_the_same_whatever_they_are_kept_in(files: Files):
    of_csv = files.table("c\n1\n2\n", categories=["c"])
    for values in ([1, 2], [1.0, 2.0], ["1", "2 "]):
        assert as_table(pa.table({"c": values}), categories=["c"]).columns_of == of_csv.columns_of


# ------------------------------------------------------------------------------------------------------- text


def test_text_is_refused_by_name_with_what_to_do(files: Files):
    text = "comment,x\n" + "".join(f"all of this is said {k % 80},{k}\n" for k in range(100))
    with pytest.raises(
        DataError,
        match=r"column 'comment' is text \(80 different values in 100 rows\): leave it out with --drop comment, or "
        "keep it as a category with --categories comment",
    ):
        files.table(text, flags=True)
    with pytest.raises(DataError, match=r"leave it out with drop=\['comment'\], .* with categories=\['comment'\]"):
        files.table(text)
    assert files.table(text, drop=["comment"]).columns == ["x"]
    assert len(files.table(text, categories=["comment"]).columns_of[0].values) == 80


def test_text_of_many_values_is_refused_before_all_is_read(files: Files, small_blocks: None):
    text = "my note,b,x\n" + "".join(f"note {k},b{k},{k}\n" for k in range(4000)) + "a broken line\n"
    with pytest.raises(DataError, match=r"--drop 'my note', .* \(likewise 'b'\)$"):
        files.table(text, flags=True)


def test_a_few_words_among_numbers_are_named(files: Files):
    text = "power\n" + "".join(f"{k}\n" for k in range(300)) + "?\nnot known\n"
    with pytest.raises(DataError, match=r"column 'power' has numbers, and '\?', 'not known': leave such cells empty"):
        files.table(text)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "2", "3"] * 9 + ["?"], r"'a' has numbers, and '\?' in row 28"),
        (["1", "2", "?", "n.a."] + ["3"] * 20, r"'a' has numbers, and '\?', 'n.a.'"),
        ([f"2020-01-{k:02}" for k in range(1, 29)] * 2 + ["soon"], r"'a' has dates, and 'soon'"),
        (["1", "a", "2"] * 9, r"'a' has numbers, and 'a' in row 2: leave such"),
        (["01/02/2020"] * 9, r"'a' has dates such as '01/02/2020', which can be read in more than"),
    ],
)
def test_a_few_words_among_a_few_numbers_or_dates_are_no_category_unasked(files: Files, cells: Any, message: str):
    text = "a,b\n" + "".join(f"{cell},{k}\n" for k, cell in enumerate(cells))
    with pytest.raises(DataError, match=message):
        files.table(text)
    assert kinds(files.table(text, categories="a"))["a"] == "category"


def test_a_late_word_among_many_numbers_is_named_with_its_row(files: Files, small_blocks: None):
    text = "n,b\n" + "".join(f"{k},{k}\n" for k in range(3000)) + "oops,1\n"
    with pytest.raises(DataError, match="column 'n' has numbers, and 'oops' in row 3001: leave such cells empty"):
        files.table(text)
    with pytest.raises(DataError, match=r"target 'n' has numbers, .*: correct them, or keep these as classes with"):
        files.open(text, "n")


@pytest.mark.parametrize("before", [[], ["10"] * 99], ids=["first", "late"])
def test_numbers_with_leading_zeros_are_codes(files: Files, small_blocks: None, before: list[str]):
    cells = [*before, "05", "0", "1", "05"]
    table = files.table("a,b\n" + "".join(f"{cell},0.5\n" for cell in cells))
    assert table.columns_of == (Column("a", "category", tuple(dict.fromkeys(cells))), Column("b", "number"))
    ids = "id,b\n" + "".join(f"{k:05},{k}\n" for k in range(50))
    with pytest.raises(DataError, match=r"column 'id' has numbers with leading zeros, codes .* with --drop id"):
        files.table(ids, flags=True)
    model = [Column("id", "number")]
    assert files.table(ids, columns=model).read(12, 13).tolist() == [[12]]


def test_codes_are_matched_by_name_and_else_by_number(files: Files):
    model = Schema.learn(files.table("c\n0\n1\nx\n", categories="c"))
    for text in ("c\n0.0\n01\nx\n", "c\n0\n1.0\nx\n"):
        table = files.table(text, columns=model.columns)
        assert model.encoded(table)[0:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    both = Schema.learn(files.table("c\n1\n01\n", categories="c"))
    assert both.encoded(files.table("c\n01\n1.0\n", columns=both.columns))[0:2].tolist() == [[1, 0], [0, 0]]
    data = files.open("a,y\n1,1.0\n2,0\n", "y", classes=["0", "1"])
    assert data.train is not None and data.train.Y.tolist() == [1, 0]


def test_a_category_of_too_many_values_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dnn.data.arrow.MOST_VALUES", 5)
    with pytest.raises(DataError, match=r"column 'c' has more than 5 different values: leave it out with --drop c"):
        files.table("c\n1\n2\n3\n4\n5\n6\n", categories="c", flags=True)


# ---------------------------------------------------------------------------------------------------- targets


def test_targets_with_names_become_classes_in_the_order_of_the_names(files: Files):
    data = files.open("a,kind\n1,pear\n2,apple\n3,pear\n", "kind")
    assert data.train is not None
    assert data.classes == ["apple", "pear"] and data.train.Y.tolist() == [1, 0, 1]
    assert data.train.Y.dtype == np.int64 and data.train.X.columns == ["a"]


def test_truths_become_classes(files: Files):
    data = files.open("a,ok\n1,true\n2,false\n", "ok")
    assert data.train is not None and data.classes == ["false", "true"] and data.train.Y.tolist() == [1, 0]


def test_numbers_named_as_categories_are_classes_in_their_own_order(files: Files):
    data = files.open("a,quality\n1,10\n2,9\n3,10\n", "quality", categories=["quality"])
    assert data.train is not None and data.classes == ["9", "10"] and data.train.Y.tolist() == [1, 0, 1]


def test_labels_have_their_names_with_them_and_are_renumbered_by_these(files: Files, tmp_path: Path):
    text = "a,kind\n" + "1,low\n2,high\n" * 10
    data, other = files.open(text, "kind"), files.open("a,kind\n3,low\n1,low\n", "kind", name="other.csv")
    convert_table(tmp_path / "t.csv", tmp_path / "t.h5", "kind")
    assert data.train is not None and other.train is not None
    X, Y = data.train.X, data.train.Y
    assert Y[:3].classes == ["high", "low"] and (Y + 1).classes is None and type(np.asarray(Y)) is np.ndarray
    schema = Schema.learn(X)
    with open_dataset(tmp_path / "t.h5") as converted:
        assert converted.train is not None
        for of in (data.train, converted.train):
            network = Network([schema.width, 1], schema=schema, seed=1, backend="numpy")
            network.fit(of.X, of.Y, epochs=1)
            assert network.classes == ["high", "low"]
    one = network.evaluate(other.train.X, other.train.Y)
    assert other.classes == ["low"] and one == network.evaluate(other.train.X, np.array([1, 1]))


def test_a_test_part_with_names_needs_a_training_part_with_names(files: Files, tmp_path: Path):
    train, test = files.write("a,y\n1,0\n2,1\n"), files.write("a,y\n1,no\n2,yes\n", "test.csv")
    with pytest.raises(DataError, match=r"the labels have names \('no', 'yes'\), and the training part has none"):
        convert_table(train, tmp_path / "t.h5", "y", test=test)


def test_targets_that_are_numbers_may_be_missing_where_that_is_said(files: Files):
    path = files.write("a,y,z,k\n1,2,3,u\n4,,5,\n")
    with open_dataset(path, target=["y", "z"], drop="k", missing_targets="mask") as data:
        assert data.train is not None
        np.testing.assert_array_equal(data.train.Y, [[2, 3], [NAN, 5]])
    with pytest.raises(DataError, match="target 'k' is missing in row 2"):
        open_dataset(path, target="k", missing_targets="mask")
    with pytest.raises(DataError, match="target 'y' is missing in row 2"):
        open_dataset(path, target="y")


def test_a_name_with_a_comma_is_tried_whole_first(files: Files):
    text = '"price, in $",b,c\n1,2,3\n'
    assert files.open(text, "price, in $").train.X.columns == ["b", "c"]
    assert files.table(text, drop="b,c").columns == ["price, in $"]


def test_what_an_hdf5_file_has_decided_is_not_asked_of_it(files: Files, tmp_path: Path):
    convert_table(files.write("a,b,y\n1,2,3\n4,5,6\n"), tmp_path / "t.h5", "y")
    open_dataset(tmp_path / "t.h5", target="y").close()
    for settings, message in (
        ({"target": "a"}, "target= was decided when the table was converted, and the target is y"),
        ({"drop": "b"}, "drop= was decided when the table was converted: give it to dnn convert"),
        ({"categories": ["b"]}, "categories= was decided"),
        ({"target": "y", "x": "train_set_x"}, "target= is for tables, and the file has arrays"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / "t.h5", **settings)
    with pytest.raises(ValueError, match="x= and y= name data sets of HDF5"):
        open_dataset(tmp_path / "t.csv", x="a", target="y")


def test_several_targets_are_columns(files: Files):
    data = files.open("a,y,z\n1,2,true\n3,4,false\n", "z, y")
    assert data.train is not None and data.classes is None
    assert data.train.Y.tolist() == [[1, 2], [0, 4]] and data.train.X.target == ("z", "y")


def test_the_classes_of_a_model_number_the_labels(files: Files):
    data = files.open("a,kind\n1,pear\n2,plum\n", "kind", classes=["apple", "pear", "plum"])
    assert data.train is not None and data.train.Y.tolist() == [1, 2] and data.classes == ["apple", "pear", "plum"]
    with pytest.raises(DataError, match="expected data of this network's classes, apple, pear; got pear, plum"):
        files.open("a,kind\n1,pear\n2,plum\n", "kind", classes=["apple", "pear"])
    data = files.open("a,n\n1,3\n2,4\n", "n", classes=["4", "3"])
    assert data.train is not None and data.train.Y.tolist() == [1, 0]
    data = files.open("a,ok\n1,True\n2,0\n", "ok", classes=["false", "true"])
    assert data.train is not None and data.train.Y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,y\n1,2\n3,\n", "y", r"target 'y' is missing in row 2: leave out what has no target, or fill it in"),
        ("a,y\n1,\n3,x\n4,\n", "y", r"target 'y' is missing in row 1 and 1 more"),
        ("a,price\n1,2\n", "prize", r"target: no column 'prize' among 'a', 'price': did you mean 'price'\?"),
        ("a,y,z\n1,2,p\n", "y,z", r"target 'z' has names, which only one target can have"),
        ("y\n1\n", "y", r"expected columns to learn from besides the target"),
        (
            "a,y\n" + "".join(f"1,text {k}\n" for k in range(50)),
            "y",
            r"target 'y' is text \(50 .*choose another target",
        ),
    ],
)
def test_targets_that_cannot_be_are_refused(files: Files, text: str, target: str, message: str):
    with pytest.raises(DataError, match=message):
        files.open(text, target)


def test_without_a_target_there_are_no_labels(files: Files):
    data = files.open("a\n1\n")
    assert data.train is not None
    with pytest.raises(DataError, match="no labels: name their column with"):
        _ = data.train.Y


# ------------------------------------------------------------------------------------- the columns of a model

MODEL = (
    Column("n", "number"),
    Column("c", "category", ("x", "y")),
    Column("b", "boolean"),
    Column("d", "date"),
)


def test_the_columns_of_a_model_are_found_by_name(files: Files, caplog: pytest.LogCaptureFixture):
    text = "y,d,id,c,n,b\n7,1970-01-02,1,y,5,1\n8,1970-01-02 12:00,2,new,,False\n"
    with caplog.at_level(logging.WARNING):
        table = files.table(text, columns=MODEL, drop=["y", "not there"], name="model.csv")
    assert table.columns_of == (MODEL[0], Column("c", "category", ("x", "y", "new")), *MODEL[2:])
    assert raw(table) == [[5, 1, 1, 1], [None, 2, 0, 1.5]]
    assert "model.csv: columns that the model does not take are left out: 'id'" in caplog.text
    assert "'y'" not in caplog.text


def test_columns_of_a_model_that_are_missing_are_named(files: Files):
    with pytest.raises(DataError, match="no column 'n', 'b', on which the model was trained: the columns are 'd', 'c'"):
        files.table("d,c\n1970-01-01,x\n", columns=MODEL)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("five,x,1,1970-01-01", "column 'n': expected numbers, got 'five' in row 203"),
        ("5,x,2,1970-01-01", "column 'b': expected true or false, got 2 in row 203"),
        ("5,x,yes,1970-01-01", "column 'b': expected true or false, got 'yes' in row 203"),
        ("5,x,1,1.1.1970", "column 'd': expected dates such as .*, got '1.1.1970' in row 203"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_row(files: Files, small_blocks: None, row: str, message: str):
    text = "n,c,b,d\n" + "1,x,0,1970-01-01\n" * 202 + row + "\n1,x,0,1970-01-01\n"
    with pytest.raises(DataError, match=message):
        files.table(text, columns=MODEL)


def test_a_table_of_another_library_has_to_have_the_kinds_of_the_model():
    good: dict[str, Any] = {"n": ["5"], "c": [3], "b": [1], "d": ["1970-01-02"]}
    assert raw(as_table(pa.table(good), columns=MODEL)) == [[5, 2, 1, 1]]
    for name, value, message in (
        ("n", pa.array([0], pa.date32()), "column 'n': expected numbers, got values of type date32"),
        ("n", ["u"], "column 'n': expected numbers, got 'u' in row 1"),
        ("b", [3], "column 'b': expected true or false, got 3 in row 1"),
        ("d", [3], "column 'd': expected dates, got values of type int64"),
    ):
        with pytest.raises(DataError, match=message):
            as_table(pa.table(good | {name: value}), columns=MODEL)


def test_more_new_values_than_can_be_kept_are_unknown_all_the_same(files: Files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dnn.data.arrow.MOST_VALUES", 4)
    table = files.table("c\nx\n" + "".join(f"new {k}\n" for k in range(9)), columns=MODEL[1:2])
    assert raw(table) == [[0], [2], [3], *[[3]] * 7]


# ------------------------------------------------------------------------------------------ what is no table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("a,b,a\n1,2,3\n", "expected different names of columns, got 'a' twice: rename one"),
        ("a,b, a\n1,2,3\n", "expected different names of columns, got 'a' twice"),
        ("a,b\n", "expected at least one row below the names"),
        ("\n\n", "expected a line of column names"),
        ("1,2\n3,4\n", r"expected the names of the columns in the first line, got numbers \(1, ...\)"),
        ("a,b\n1,2\n1,2,3\n", "cannot be read: CSV parse error: Expected 2 columns, got 3"),
        ("a,b\nx,Å\n".encode("latin1"), "the text is not UTF-8: convert it"),
        ("größe,b\n1,2\n".encode("latin1"), "the text is not UTF-8: convert it"),
        ("red,1,1\nblue,3,4\n", "expected the names of the columns in the first line, got numbers"),
        (b"\x00\x01\x02\x03" * 100, "got a file of bytes that are no text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "got an HDF5 file: save it as CSV"),
        (b"PK\x03\x04" + bytes(100), "got a spreadsheet or an archive: save it as CSV"),
        (b"PAR1" + bytes(100) + b"PAR1", "cannot be read"),
        (b"ARROW1" + bytes(100) + b"ARROW1", "cannot be read"),
        (b"FEA1" + bytes(100), "cannot be read"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 100, mtime=0)[:-20], "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(files: Files, content: str | bytes, message: str):
    with pytest.raises(DataError, match=message) as refused:
        files.table(content)
    assert "\n" not in str(refused.value) and str(files.folder) in str(refused.value)


def test_a_missing_file_and_missing_columns_are_named(files: Files, tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        open_table(tmp_path / "nothing.csv", None)
    with pytest.raises(DataError, match="drop: no column 'agee' among 'age', 'b': did you mean 'age'"):
        files.table("age,b\n1,2\n", drop="agee")
    with pytest.raises(DataError, match=r"categories: no column 'x' among 'age', 'b'$"):
        files.table("age,b\n1,2\n", categories=["x"])
    with pytest.raises(
        DataError, match=r"target: no column 'y' among 'red', '3\.5': if these are no names, put a line"
    ):
        files.open("red,3.5\nblue,4\n", "y")
    with pytest.raises(DataError, match=r"target: no column 'AGE' .*: did you mean 'age'"):
        files.open("age,b\n1,2\n", "AGE")
    with pytest.raises(DataError, match=r"no column 'n', on which .*: rename 'N' to 'n', capital letters count"):
        files.table("N\n1\n", columns=MODEL[:1])
    with pytest.raises(DataError, match="drop: 'b' is the target"):
        files.open("age,b\n1,2\n", "b", drop=["b"])


def test_without_pyarrow_one_line_says_what_to_install(files: Files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.compute", None)
    with pytest.raises(DataError, match=r"^tables are read with pyarrow, .*: pip install pyarrow$"):
        files.table("a\n1\n")


def test_the_names_of_table_files():
    names = ("a.csv", "a.CSV", "a.tsv", "a.csv.gz", "a.parquet", "a.pq", "a.feather", "a.arrow")
    assert all(map(is_table_file, names)) and not any(map(is_table_file, ("a.h5", "csv", "a.npy", "a.gz", "a.png")))


# ---------------------------------------------------------------------------------------- Parquet and Feather


def _typed() -> Any:
    return pa.table(
        {
            "i": pa.array([1, None, 3], pa.int32()),
            "f": pa.array([1.5, NAN, None], pa.float32()),
            "h": pa.array(np.array([1, 2, 3], np.float16)),
            "m": pa.array([None, 2, 3], pa.decimal128(9, 2)),
            "b": pa.array([True, None, False]),
            "s": pa.array(["x", None, "y"]),
            "l": pa.array(["x", "y", "x"], pa.large_string()),
            "c": pa.array(["q", "p", None]).dictionary_encode(),
            "k": pa.array([30, 20, 30]).dictionary_encode(),
            "d": pa.array([0, None, 2], pa.date32()),
            "e": pa.array([86_400_000, None, 0], pa.date64()),
            "t": pa.array([0, 43_200_000, None], pa.timestamp("ms")),
            "z": pa.array([0, None, 1], pa.timestamp("ns", "Europe/Oslo")),
            "u": pa.array([0, 21_600, None], pa.time32("s")),
            "n": pa.nulls(3),
        }
    )


EXPECTED = [
    [1, 1.5, 1, None, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, None],
    [None, None, 2, 2, None, None, 1, 1, 1, None, None, 0.5, None, 0.25, None],
    [3, None, 3, 3, 0, 1, 0, None, 0, 2, 0, None, 1 / 86_400_000_000_000, None, None],
]


@pytest.mark.parametrize("form", ["frame", "parquet", "feather", "uncompressed feather"])
def test_types_are_taken_from_files_and_tables_that_have_them(files: Files, tmp_path: Path, form: str):
    table, path = _typed(), tmp_path / "t.bin"
    if form == "frame":
        found = as_table(table)
    else:
        if form == "parquet":
            from pyarrow import parquet

            # Parquet has no dictionaries of numbers, and old versions no halves
            parquet.write_table(table.drop_columns(["h", "k"]), path, row_group_size=2)
        else:
            from pyarrow import feather

            feather.write_feather(table, path, compression="uncompressed" if form[0] == "u" else "lz4", chunksize=2)
        data = open_table(path, None)
        files._opened.append(data)
        assert data.train is not None
        found = data.train.X
    there = [j for j, name in enumerate(table.column_names) if name in found.columns]
    assert len(there) == (13 if form == "parquet" else 15)
    assert raw(found) == [[row[j] for j in there] for row in EXPECTED]
    of_category = {column.name: column.values for column in found.columns_of if column.kind == "category"}
    of_category.pop("k", None)
    assert of_category == {"s": ("x", "y"), "l": ("x", "y"), "c": ("q", "p")}


def test_damaged_text_in_a_file_is_refused_rather_than_read(files: Files, tmp_path: Path):
    from pyarrow import feather

    path = tmp_path / "t.feather"
    feather.write_feather(pa.table({"s": ["xx", "yy", "zz"]}), path, compression="uncompressed")
    offsets = np.array([0, 2, 4, 6], np.int32).tobytes()
    content = path.read_bytes()
    assert content.count(offsets) == 1
    far = np.array([0, 2, 1_000_000_000, 2_000_000_000], np.int32).tobytes()
    with pytest.raises(DataError, match="cannot be read: "):
        files.table(content.replace(offsets, far))


def test_columns_of_other_types_are_refused_by_name_unless_left_out():
    table = pa.table({"a": [1], "lists": [[1, 2]]})
    with pytest.raises(DataError, match=r"column 'lists' has values of type list<.*>, .*drop=\['lists'\]"):
        as_table(table)
    assert as_table(table, drop=["lists"]).columns == ["a"]


def test_frames_of_pandas_and_polars_are_read_as_the_csv_file_they_write(files: Files):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "n": [1, None, 3],
            "i": pandas.array([1, None, 3], "Int64"),
            "s": ["x", None, "y"],
            "b": [True, False, True],
            "d": pandas.to_datetime(["2020-01-01 00:00", "2021-02-03 12:00", None]),
        }
    )
    of_csv = files.table(frame.to_csv(index=False))
    assert as_table(frame).columns_of == of_csv.columns_of and raw(as_table(frame)) == raw(of_csv)
    categorical = frame.astype({"s": pandas.CategoricalDtype(["y", "unused", "x"])})
    assert as_table(categorical).columns_of == of_csv.columns_of
    with pytest.raises(DataError, match="X: expected different names of columns, got 'n' twice"):
        as_table(pandas.concat([frame, frame], axis=1))
    with pytest.raises(DataError, match=r"X: column 'm' cannot be read \(.*leave it out with drop=\['m'\]"):
        as_table(pandas.DataFrame({"m": [1, "x", 2.5]}))


def test_only_the_columns_that_are_asked_for_are_converted():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2], "large": [2**100] * 2, "d": ["1970-01-02", None], "x": [object()] * 2})
    table = as_table(frame, drop=["large", "x"])
    assert kinds(table) == {"n": "number", "d": "date"} and raw(table) == [[1, 1], [2, None]]
    assert raw(as_table(frame, columns=MODEL[:1])) == [[1], [2]]
    for name in ("large", "x"):
        with pytest.raises(DataError, match=rf"X: column '{name}' .*leave it out with drop=\['{name}'\]$"):
            as_table(frame[["n", name]])


def test_frames_of_polars_are_read(files: Files):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"n": [1, None, 3], "s": ["x", None, "y"], "b": [True, False, None]})
    table = as_table(frame)
    assert raw(table) == [[1, 0, 1], [None, None, 0], [3, 1, None]] and table.columns_of[1].values == ("x", "y")
    with pytest.raises(DataError, match=r"not computed yet: use its collect\(\)"):
        as_table(frame.lazy())


@pytest.mark.parametrize("X", [np.zeros((3, 2)), [1, 2], "table.csv", None])
def test_what_is_no_frame_is_refused(X: Any):
    with pytest.raises(DataError, match="X: expected a frame of pandas or polars or a table of Arrow, got"):
        as_table(X)


# --------------------------------------------------------------------------------------------- bounded memory


def test_many_rows_go_through_a_temporary_file_that_threads_can_share(
    files: Files, small_blocks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "IN_MEMORY", 1000)
    table = files.table("a,b\n" + "".join(f"{k},{-k}\n" for k in range(2000)))
    wrong: list[int] = []

    together = threading.Barrier(3)

    def read(first: int) -> None:
        together.wait()
        for start in range(first, 2000, 3):
            if table.read(start, start + 1)[0].tolist() != [start, -start]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_full_disk_is_said_in_one_line(files: Files, monkeypatch: pytest.MonkeyPatch):
    def full(self: Any, content: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", full)
    with pytest.raises(OutputError, match=r"no temporary file .*No space left on device.*set TMPDIR"):
        files.table("a\n1\n")


def test_progress_is_told_in_bytes(files: Files):
    told: list[tuple[int, int]] = []
    path = files.write("a,b\n" + "1,2\n" * 100_000)
    files.table(path.read_bytes(), progress=lambda done, size: told.append((done, size)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size) and told == sorted(told)


# ------------------------------------------------------------------------------------------------- conversion

CSV = "a,city,kind\n1,Oslo,pear\n2,,apple\n,Rome,pear\n4,Oslo,plum\n"


def test_a_table_becomes_an_hdf5_file_that_reads_as_the_table(files: Files, tmp_path: Path):
    out = tmp_path / "t.h5"
    convert_table(files.write(CSV), out, "kind")
    of_csv = files.open(CSV, "kind")
    assert of_csv.train is not None
    with open_dataset(out) as data:
        assert data.train is not None and data.test is None and data.classes == ["apple", "pear", "plum"]
        assert data.train.Y[...].tolist() == of_csv.train.Y.tolist() == [1, 0, 1, 2]
        X = data.train.X
        assert isinstance(X, Table) and X.columns_of == of_csv.train.X.columns_of and X.target == ("kind",)
        assert raw(X) == raw(of_csv.train.X)
        assert Schema.learn(X) == Schema.learn(of_csv.train.X)


def test_a_converted_file_can_be_mapped_and_needs_no_pyarrow(files: Files, tmp_path: Path, monkeypatch: Any):
    import h5py

    convert_table(files.write(CSV), tmp_path / "t.h5", "kind")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["train_set_x"].chunks is None and file["train_set_x"].id.get_offset() is not None
        assert file["train_set_x"].dtype == np.float64 and not file["train_set_x"].attrs
    with open_dataset(tmp_path / "t.h5") as data:
        assert data.train is not None
        assert Schema.learn(data.train.X).encoded(data.train.X)[...].shape[0] == 4


def test_a_part_of_the_rows_is_for_testing(files: Files, tmp_path: Path):
    source = files.write("a,y\n" + "".join(f"{k},{k / 7}\n" for k in range(100)))
    convert_table(source, tmp_path / "t.h5", "y", test_split=0.2)
    with open_dataset(tmp_path / "t.h5") as data:
        assert data.train is not None and data.test is not None
        train, test = (part.X.read(0, 100)[:, 0] for part in (data.train, data.test))
        assert len(train) == 80 and sorted([*train, *test]) == list(range(100))
        assert np.allclose(data.test.Y[...] * 7, test) and list(train) == sorted(train) and list(test) == sorted(test)


def test_another_file_is_for_testing_and_has_the_columns_and_classes_of_the_first(files: Files, tmp_path: Path):
    test = files.write("kind,city,more,a\nplum,Lima,1,9\napple,Oslo,2,\n", "test.csv")
    convert_table(files.write(CSV), tmp_path / "t.h5", "kind", test=test)
    with open_dataset(tmp_path / "t.h5") as data:
        assert data.train is not None and data.test is not None
        assert raw(data.test.X) == [[9, 2], [None, 0]] and data.test.Y[...].tolist() == [2, 0]
        assert data.test.X.columns_of[1].values == ("Oslo", "Rome", "Lima")
        # what only the test part has is no feature
        assert Schema.learn(data.train.X).names == ["a", "a missing", "city=Oslo", "city=Rome", "city missing"]


def test_an_existing_file_is_kept_and_a_failed_conversion_leaves_nothing(files: Files, tmp_path: Path):
    source, out = files.write(CSV), tmp_path / "t.h5"
    out.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        convert_table(source, out, "kind")
    assert out.read_text() == "mine"
    convert_table(source, out, "kind", force=True)
    with pytest.raises(DataError, match="target 'a' is missing in row 3"):
        convert_table(source, tmp_path / "other.h5", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.h5"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "{}", '{"columns": [], "target": []}', '{"columns": [{"name": "a"}], "target": []}'),
        '{"columns": [{"name": "a", "kind": "text"}], "target": []}',
        '{"columns": [{"name": "a", "kind": "number"}, {"name": "a", "kind": "number"}], "target": []}',
        '{"columns": [{"name": "a", "kind": "number", "values": ["x"]}], "target": []}',
        '{"columns": [{"name": "a", "kind": "number"}], "target": "y"}',
        '{"columns": [{"name": "a", "kind": "number"}], "target": [], "more": 1}',
        '{"columns": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}], "target": []}',
        "[" * 100_000,
        b"\xff\xfe\xff",
    ],
)
def test_a_description_that_is_none_is_refused_in_one_line(text: str | bytes):
    class OneColumn:
        shape, ndim, chunks, dtype = (3, 1), 2, None, np.dtype(float)

    with pytest.raises(DataError, match=r"^file\.h5: schema") as refused:
        table_of("file.h5", OneColumn(), text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_what_is_written_about_the_columns_is_plain_json(files: Files, tmp_path: Path):
    import h5py

    convert_table(files.write(CSV), tmp_path / "t.h5", "kind")
    with h5py.File(tmp_path / "t.h5") as file:
        text = file["schema"][()]
    assert isinstance(text, bytes)
    assert json.loads(text) == {
        "columns": [
            {"name": "a", "kind": "number"},
            {"name": "city", "kind": "category", "values": ["Oslo", "Rome"]},
        ],
        "target": ["kind"],
    }
