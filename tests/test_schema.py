"""The encoding of tables, against scikit-learn's transformers; and what a schema refuses."""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from dnn.data import schema as schemas
from dnn.data.columns import Column, Table
from dnn.data.normal import quantile
from dnn.data.schema import SCALINGS, Schema
from dnn.data.tables import open_table
from dnn.errors import DataError
from dnn.network import Network

M = 400


def table_of(columns: dict[str, tuple[str, np.ndarray, tuple[str, ...]]], band: int | None = None) -> Table:
    raw = np.column_stack([values for _, values, _ in columns.values()])
    described = [Column(name, kind, values) for name, (kind, _, values) in columns.items()]
    return Table(described, len(raw), lambda start, stop: raw[start:stop].copy(), band=band)


def with_missing(values: np.ndarray, *rows: int) -> np.ndarray:
    values = values.astype(float)
    values[list(rows)] = np.nan
    return values


@pytest.fixture
def table() -> Table:
    rng = np.random.default_rng(0)
    cities = ("Rome", "Oslo", "Århus", "Lima")
    return table_of(
        {
            "age": ("number", rng.integers(18, 90, M), ()),
            "income": ("number", with_missing(rng.lognormal(10, 1, M), 3, 250, 399), ()),
            "late": ("number", with_missing(rng.normal(size=M), 399), ()),
            "constant": ("number", np.full(M, 7.0), ()),
            "city": ("category", with_missing(rng.integers(0, 4, M), 5, 6), cities),
            "sex": ("category", rng.integers(0, 2, M), ("f", "m")),
            "member": ("boolean", with_missing(rng.integers(0, 2, M), 8), ()),
            "born": ("date", with_missing(rng.uniform(-9000, 15000, M), 9), ()),
        }
    )


def transformers(scaling: str) -> Any:
    from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, RobustScaler, StandardScaler

    return {
        "none": FunctionTransformer(),
        "standard": StandardScaler(),
        "robust": RobustScaler(),
        "quantile": QuantileTransformer(output_distribution="normal", n_quantiles=min(1000, 300), subsample=None),
    }[scaling]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_feature_is_what_scikit_learns_transformers_make(table: Table, scaling: str):
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    rows = np.sort(np.random.default_rng(1).permutation(M - 1)[:300])  # the last is not among them
    schema = Schema.learn(table, scaling=scaling, rows=rows)
    encoded = schema.encoded(table)
    raw, found = table.read(0, M), dict(zip(schema.names, encoded[...].T, strict=True))
    assert encoded.shape == (M, schema.width) and list(encoded.columns or ()) == schema.names
    seen = []
    for j, column in enumerate(table.columns_of):
        values = raw[:, j : j + 1]
        if column.kind == "category":
            names = np.array([*column.values, None], object)[np.where(np.isnan(values), -1, values).astype(int)]
            encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(names[rows])
            expected, of = encoder.transform(names).T, encoder.categories_[0]
            features = [f"{column.name} missing" if value is None else f"{column.name}={value}" for value in of]
        else:
            imputer = SimpleImputer(strategy="median", add_indicator=True).fit(values[rows])
            filled = imputer.transform(values)
            scaled = filled[:, :1]
            if column.kind != "boolean":
                scaled = transformers(scaling).fit(filled[rows, :1]).transform(scaled)
            if scaling == "robust" and column.kind != "boolean":
                scaled = scaled / np.sqrt(1 + (scaled / 3) ** 2)
            expected, features = np.hstack([scaled, filled[:, 1:]]).T, [column.name, f"{column.name} missing"]
        for feature, of_feature in zip(features, expected, strict=False):
            assert np.abs(found[feature] - of_feature).max() < 1e-12, feature
            seen.append(feature)
    assert seen == schema.names
    # missing in a row that was not learned from, and only there
    assert "late missing" not in seen and "income missing" in seen


def test_quantiles_of_the_normal_distribution_are_those_of_the_standard_library():
    shares = np.concatenate([np.linspace(1e-7, 1 - 1e-7, 1000), 10.0 ** -np.arange(1, 300, 9)])
    expected = np.array([NormalDist().inv_cdf(share) for share in shares])
    assert np.allclose(quantile(shares), expected, rtol=2e-15, atol=1e-16)


def test_rows_that_are_read_in_pieces_are_the_same(table: Table):
    schema = Schema.learn(table)
    encoded = schema.encoded(table)
    pieces = [encoded[start : start + 7] for start in range(0, M, 7)]
    assert np.array_equal(np.concatenate(pieces), encoded[...])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_is_learned_in_small_blocks_and_groups_is_the_same(
    table: Table, scaling: str, monkeypatch: pytest.MonkeyPatch
):
    rows = np.arange(10, 390, 3)
    at_once = Schema.learn(table, scaling=scaling, rows=rows)
    monkeypatch.setattr(schemas, "AT_ONCE", 200)
    in_bands = Table(table.columns_of, M, table._read, band=33)
    assert (
        Schema.learn(table, scaling=scaling, rows=rows) == at_once == Schema.learn(in_bands, scaling=scaling, rows=rows)
    )


def test_other_rows_than_those_to_learn_from_change_nothing(table: Table):
    rows = np.arange(0, 200)
    raw = table.read(0, M)
    raw[200:] = np.nan
    other = Table(table.columns_of, M, lambda start, stop: raw[start:stop])
    assert Schema.learn(other, rows=rows) == Schema.learn(table, rows=rows)


def test_rows_may_be_a_list_or_a_mask_and_in_any_order(table: Table):
    expected = Schema.learn(table, rows=np.array([2, 5, 399]))
    for rows in ([5, 399, 2], np.isin(np.arange(M), (2, 5, 399)), np.array([399, 5, 2], np.uint16)):
        assert Schema.learn(table, rows=rows) == expected
    for rows, message in (
        ([-1, 3], "from 0 to 399, got -1"),
        ([400], "from 0 to 399, got 400"),
        ([3, 4, 3], "each row once, got 3 twice"),
        ([0.5], "got float64"),
        ([True], "a mask of all 400"),
        (np.zeros(M, bool), "at least one row"),
    ):
        with pytest.raises(DataError, match=message):
            Schema.learn(table, rows=rows)


def test_features_have_different_names():
    numbers = np.arange(4.0)
    table = table_of({"c": ("category", numbers % 2, ("a", "b")), "c=a": ("number", numbers, ())})
    schema = Schema.learn(table)
    assert schema.names == ["c=a", "c=b", "c=a'"] and Schema.from_config(schema.config()).names == schema.names


def test_names_are_shown_without_what_a_terminal_obeys():
    table = table_of({"\x1b[31mred": ("category", np.arange(2.0), ("\x07", "b"))})
    assert "\\x1b[31mred" in str(Schema.learn(table)) and str(Schema.learn(table)).replace("\n", "").isprintable()


def test_columns_are_found_by_name_in_any_order_among_others(table: Table):
    schema = Schema.learn(table)
    order = [7, 3, 1, 0, 2, 4, 6, 5]
    raw = np.column_stack([np.zeros(M), table.read(0, M)[:, order]])
    columns = [Column("id", "number"), *(table.columns_of[j] for j in order)]
    shuffled = Table(columns, M, lambda start, stop: raw[start:stop])
    assert np.array_equal(schema.encoded(shuffled)[...], schema.encoded(table)[...])


def test_missing_columns_are_named(table: Table):
    schema = Schema.learn(table)
    fewer = Table(table.columns_of[2:], M, lambda start, stop: table.read(start, stop)[:, 2:])
    with pytest.raises(DataError, match="no column 'age', 'income', on which the network was trained"):
        schema.encoded(fewer)


def test_a_column_of_another_kind_is_refused(table: Table):
    schema = Schema.learn(table)
    other = Table([Column("age", "category", ("young", "old")), *table.columns_of[1:]], M, table._read)
    with pytest.raises(DataError, match="'age': the network was trained on a number, got a category"):
        schema.encoded(other)


def test_unknown_categories_are_counted_by_name_once_and_have_no_feature(caplog: pytest.LogCaptureFixture):
    train = table_of({"c": ("category", np.array([0.0, 1, 0]), ("a", "b"))})
    new = table_of({"c": ("category", np.array([2.0, 0, 2, np.nan, 3]), ("b", "a", "new here", "too"))})
    schema = Schema.learn(train)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            encoded = schema.encoded(new)[...]
    assert encoded.tolist() == [[0, 0], [0, 1], [0, 0], [0, 0], [0, 0]]
    assert [record.getMessage() for record in caplog.records] == [
        "column 'c': 3 of 5 rows have values that the network does not know ('new here', 'too'): none of its "
        "categories is set there"
    ]


def test_values_that_only_other_rows_have_are_unknown():
    both = table_of({"c": ("category", np.array([0.0, 1, 2]), ("x", "y", "z"))})
    schema = Schema.learn(both, rows=np.array([0, 2]))
    assert schema.names == ["c=x", "c=z"]
    assert schema.encoded(both)[...].tolist() == [[1, 0], [0, 0], [0, 1]]


def test_of_many_values_the_most_frequent_have_features(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schemas, "MOST_ENCODED", 2)
    many = table_of({"frequent": ("category", np.array([0.0, 1, 1, 2, 2, 2, 3]), ("z", "b", "a", "y"))})
    schema = Schema.learn(many)
    assert schema.names == ["frequent=a", "frequent=b"]
    assert schema.encoded(many)[...].sum(axis=1).tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_a_column_without_values_is_left_out(caplog: pytest.LogCaptureFixture):
    empty = {"nothing": ("number", np.full(3, np.nan), ()), "none": ("category", np.full(3, np.nan), ("a",))}
    schema = Schema.learn(table_of({**empty, "x": ("number", np.arange(3.0), ())}))
    assert schema.names == ["x"] and "'nothing' has no value" in caplog.text
    with pytest.raises(DataError, match="expected a column with values"):
        Schema.learn(table_of(empty))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused_by_name(value: float):
    with pytest.raises(DataError, match="column 'x': expected finite numbers"):
        Schema.learn(table_of({"x": ("number", np.array([1.0, value]), ())}))


@pytest.mark.parametrize("scaling", ["standard", "robust"])
def test_numbers_too_large_to_be_scaled_are_refused_by_name_alone(scaling: str):
    values = np.array([-1.7e308, 1.7e308, -1.7e308, 1.7e308])
    with pytest.raises(DataError, match="column 'x' is too large"):
        Schema.learn(table_of({"x": ("number", values, ())}), scaling=scaling)


@pytest.mark.parametrize("code", [2.0, -1.0, 0.5])
def test_a_code_that_no_value_has_is_refused(code: float):
    good = table_of({"c": ("category", np.array([0.0, 1.0]), ("a", "b"))})
    bad = table_of({"c": ("category", np.array([0.0, code]), ("a", "b"))})
    with pytest.raises(DataError, match="column 'c': expected codes from 0 to 1"):
        Schema.learn(bad)
    with pytest.raises(DataError, match="column 'c': expected codes from 0 to 1"):
        _ = Schema.learn(good).encoded(bad)[...]


def test_an_unknown_scaling_is_refused_with_the_nearest(table: Table):
    with pytest.raises(ValueError, match=r"scaling must be one of none, .* did you mean standard"):
        Schema.learn(table, scaling="standart")


def test_what_is_no_schema_is_refused():
    with pytest.raises(TypeError, match=r"schema must be what dnn\.Schema\.learn\(X\) gives, got 'x'"):
        Network([3, 1], schema="x")  # type: ignore[arg-type]


def test_a_table_is_no_array(table: Table):
    with pytest.raises(DataError, match="schema"):
        np.asarray(table)


def test_it_is_shown_a_column_a_line(table: Table):
    lines = str(Schema.learn(table, scaling="robust")).splitlines()
    assert len(lines) == 1 + 8 and max(map(len, lines)) < 120
    assert lines[5].split() == ["city", "category", "5", "a", "value", "Lima,", "Oslo,", "Rome,", "Århus"]


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_configuration_gives_the_same_schema_to_the_last_bit(table: Table, scaling: str):
    schema = Schema.learn(table, scaling=scaling)
    again = Schema.from_config(json.loads(json.dumps(schema.config(), allow_nan=False)))
    assert again == schema
    assert np.array_equal(again.encoded(table)[...], schema.encoded(table)[...])


def _wrong() -> list[tuple[str, Any]]:
    def at(*path: Any, value: Any) -> Any:
        def change(config: Any) -> Any:
            config = copy.deepcopy(config)
            place = config
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
            return config

        return change

    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    number, category = ("columns", 0), ("columns", 4)
    changes = [
        *(lambda config, value=value: value for value in (None, [], "x", 3, {})),
        *(at("scaling", value=value) for value in ("other", None, [], 1)),
        *(at("target", value=value) for value in (None, "y", [1], ["a", "a"], ["\ud800"])),
        *(at("columns", value=value) for value in (None, [], {}, [None], [[]], [{}], deep)),
        at("more", value=1),
        *(at(*number, "name", value=value) for value in (1, None, ["a"], "x" * 20_000, "income")),
        *(at(*number, "kind", value=value) for value in ("text", None, [], "category", "boolean")),
        *(at(*number, "missing", value=value) for value in (1, None, "true")),
        *(at(*number, "fill", value=value) for value in ("1", None, math.nan, math.inf, True, 10**400, [1.0], deep)),
        *(at(*number, "shift", value=value) for value in ("1", None, math.nan, 10**400)),
        *(at(*number, "factor", value=value) for value in (0.0, -1.0, "1", math.nan)),
        *(at(*number, name, value=1.0) for name in ("values", "quantiles", "more")),
        *(
            at(*category, "values", value=value)
            for value in (None, [], "ab", [1], ["a", "a"], [str(k) for k in range(300)])
        ),
        at(*category, "fill", value=1.0),
    ]
    return [(str(number), change) for number, change in enumerate(changes)]


@pytest.mark.parametrize(("number", "change"), _wrong())
def test_anything_else_is_refused_in_one_line(table: Table, number: str, change: Any):
    with pytest.raises(ValueError, match=r".") as refused:
        Schema.from_config(change(Schema.learn(table).config()))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300 and refused.type is ValueError


@pytest.mark.parametrize("quantiles", [[], [2.0, 1.0], [0.0, math.nan], "abc", [0.0] * 1001, [[0.0]], None])
def test_quantiles_that_are_none_are_refused(table: Table, quantiles: Any):
    config = Schema.learn(table, scaling="quantile").config()
    config["columns"][0]["quantiles"] = quantiles
    with pytest.raises(ValueError, match="column 'age': quantiles"):
        Schema.from_config(config)


# -------------------------------------------------------------------------------------------------- from end to end


def test_training_on_raw_tables_gives_the_numbers_of_arrays_prepared_by_hand(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(5)
    m = 120
    a, b = rng.normal(3, 5, m), rng.integers(0, 9, m).astype(object)
    c, y = rng.choice(["x", "y", "z"], m), rng.normal(size=m)
    b[rng.random(m) < 0.2] = ""
    c[-1] = "unknown"
    lines = [",".join(map(str, row)) for row in zip(a, b, c, y, strict=True)]
    turned = [",".join(map(str, row)) for row in zip(c, y, b, a, strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["a,b,c,y", *lines[:100]]))
    (tmp_path / "test.csv").write_text("\n".join(["c,y,b,a", *turned[100:]]))

    values = np.array([np.nan if cell == "" else cell for cell in b], float).reshape(-1, 1)
    imputer = SimpleImputer(strategy="median", add_indicator=True).fit(values[:100])
    filled = imputer.transform(values)
    numbers = [StandardScaler().fit(v[:100]).transform(v) for v in (a.reshape(-1, 1), filled[:, :1])]
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(c[:100, None])
    by_hand = np.hstack([*numbers, filled[:, 1:], encoder.transform(c[:, None])])

    def made(schema: Schema | None) -> Network:
        return Network([6, 5, 1], output="linear", dtype="float64", seed=2, schema=schema)

    with open_table(tmp_path / "train.csv", "y") as train:
        assert train.train is not None
        schema = Schema.learn(train.train.X)
        on_tables, on_arrays = made(schema), made(None)
        one = on_tables.fit(train.train.X, train.train.Y, epochs=2, batch_size=16)
    other = on_arrays.fit(by_hand[:100], y[:100], epochs=2, batch_size=16)
    with open_table(tmp_path / "test.csv", "y", columns=schema.columns) as test:
        assert test.train is not None
        evaluated = on_tables.evaluate(test.train.X, test.train.Y)
        predicted = on_tables.predict(test.train.X)
    assert np.allclose(one.history["loss"], other.history["loss"], rtol=1e-12)
    assert evaluated["loss"] == pytest.approx(on_arrays.evaluate(by_hand[100:], y[100:])["loss"], rel=1e-12)
    assert np.allclose(predicted, on_arrays.predict(by_hand[100:]), rtol=1e-11, atol=1e-12)
