"""Where numbers come from: masks and missing values are refused, tables name their columns, libraries agree.

The libraries are no dependency: a test of one that is not installed is skipped.
"""

from __future__ import annotations

import array
import copy
import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sweeps import covering

import dnn
from dnn.data import examples, prepare
from dnn.errors import DataError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((60, 2))
Y = (X[:, 0] > 0).astype(int)
MASKED = np.ma.masked_greater(X, 1)
MASKED.data[MASKED.mask] = 9.97e36  # as netCDF has it
FIRST = int(np.argmax(MASKED.mask.any(axis=1)))


def prepared(given: Any, columns: int = 2) -> np.ndarray:
    return prepare(dnn.Network([columns, 1], dtype="float64"), given).X


def refused(given: Any, *words: str, columns: int = 2) -> None:
    """By fit, evaluate and predict alike, in one line with these words."""
    network = dnn.Network([columns, 1])
    before = network.parameters.flat.copy()
    for use in (network.predict, lambda X: network.evaluate(X, Y), lambda X: network.fit(X, Y, epochs=1)):
        with pytest.raises(DataError) as error:
            use(given)
        message = str(error.value)
        assert message.startswith("X") and "\n" not in message and all(word in message for word in words), message
    np.testing.assert_array_equal(network.parameters.flat, before)


def refused_labels(given: Any, *words: str) -> None:
    for output in ("sigmoid", "linear"):
        with pytest.raises(DataError) as error:
            dnn.Network([2, 1], output=output).evaluate(X, given)
        assert str(error.value).startswith("Y") and all(word in str(error.value) for word in words), error.value


class Variable:
    """netCDF4.Variable in short: slices, perhaps masked, perhaps unpacked to another dtype."""

    def __init__(self, values: Any, dtype: Any = None) -> None:
        self._values, self.shape, self.dtype = values, values.shape, np.dtype(dtype or values.dtype)

    def __getitem__(self, rows: Any) -> Any:
        return self._values[rows]


class Arraylike:
    def __init__(self, values: Any) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._values


class OnlyDLPack:
    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **settings: Any) -> Any:
        return self._values.__dlpack__(**settings)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


# ----------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (MASKED, f"row {FIRST}"),
        (Variable(MASKED), f"row {FIRST}"),
        (Arraylike(MASKED), f"row {FIRST}"),
        (list(MASKED), f"item [{FIRST}]"),
        (tuple(MASKED), f"item [{FIRST}]"),
        ([[row] for row in MASKED], f"item [{FIRST}][0]"),
        ([Arraylike(row) for row in MASKED], f"item [{FIRST}]"),
        ([[1.0, 2.0], [np.ma.masked, 3.0]], "item [1][0]"),
        (np.ma.masked_equal((X > 0).astype(np.uint8), 1), "row 0"),
    ],
    ids=range(9),
)
def test_masked_values_are_refused_wherever_they_are_kept(given, where, monkeypatch):
    refused(given, "masked values", where, "fill or remove")
    monkeypatch.setattr(examples, "CHUNK", 8)  # found in a later slice, and counted from the first
    refused(given, "masked values", where)


def test_masked_labels_are_refused_and_arrays_without_a_mask_are_not():
    masked = np.ma.masked_equal(Y, 0)
    for given in (masked, list(masked), Variable(masked), Arraylike(masked)):
        refused_labels(given, "masked values")
    for given in (np.ma.array(X), list(np.ma.array(X)), Variable(np.ma.array(X))):
        np.testing.assert_array_equal(prepared(given), X)


def test_a_packed_variable_has_the_dtype_that_its_slices_have():
    """netCDF4 unpacks scale and offset: stored bytes are then no pixels."""
    network = dnn.Network([2, 1])
    network.fit(Variable(X, np.uint8), Y, epochs=1)
    assert network.input_scale == 1.0 and network.input_kind == "numbers"


# ----------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    "given",
    [
        [list(map(Decimal, row)) for row in X],
        [list(map(Fraction, row)) for row in X],
        [array.array("d", row) for row in X],
        [Variable(row) for row in X],
        [OnlyDLPack(row) for row in X],
        OnlyDLPack(X),
        list(X),
        memoryview(X),
    ],
    ids=range(8),
)
def test_lists_of_whatever_holds_numbers_are_numbers(given):
    np.testing.assert_array_equal(prepared(given), X)


def test_whole_numbers_too_large_for_an_integer_are_taken_as_floats_if_one_holds_them():
    assert prepared([[10**30, 10**40]]).tolist() == [[1e30, 1e40]]
    refused([[10**400, 1]], "too large")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "None"),
        ("1.5", "str '1.5'"),
        (datetime.date(2020, 1, 1), "date"),
        (np.datetime64("2020"), "datetime64"),
        (1j, "complex"),
        ({"a": 1}, "dict"),
    ],
)
def test_an_item_that_is_no_number_is_named_by_its_place(item, words):
    refused([[1.0, 2.0], [3.0, item]], words, "item [1][1]")
    refused_labels([*Y[:-1], item], words, "item [59]")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": X, "b": X}, ("one array", "dict of a, b", "choose one")),
        ((row for row in X), ("generator", "a list of rows")),
        (map(list, X), ("map", "a list of rows")),
        (np.array([X[0], X[1, :1]], object), ("ndarray in item [0]", "numpy.stack")),
        (np.array([[1.0, None]], object), ("None in item [0][1]",)),
        ([[1, 2], [3]], ("2 in item [0], 1 in item [1]",)),
        ([[[1], [2]], [[1], [2, 3]]], ("1 in item [1][0], 2 in item [1][1]",)),
        ([X[0], 3.0], ("2 in item [0], a number in item [1]",)),
    ],
    ids=range(8),
)
def test_what_is_no_table_of_numbers_is_told_by_its_kind(given, words):
    refused(given, *words)


# ---------------------------------------------------------------------------------------------- tables


def pandas_frames(pd: Any) -> dict[str, Any]:
    f = pd.DataFrame
    return {
        "truths": f({"a": X[:, 0], "b": Y > 0}),
        "Int64": f({"a": X[:, 0], "b": pd.array(Y, dtype="Int64")}),
        "converted": f({"a": X[:, 0], "b": Y}).convert_dtypes(),
        "nullable truths": f({"a": X[:, 0], "b": pd.array(Y > 0, dtype="boolean")}),
        "sparse": f({"a": X[:, 0], "b": pd.arrays.SparseArray(Y)}),
        "numbered categories": f({"a": X[:, 0], "b": pd.Categorical(Y)}),
        "one name for two": f({"a": X[:, 0], "b": Y}).set_axis(["a", "a"], axis=1),
        "another index": f({"a": X[:, 0], "b": Y}, index=np.arange(60.0)[::-1]),
    }


@pytest.mark.parametrize("chunk", [8, 4_000_000])
def test_pandas_frames_of_numbers_are_their_values_whatever_the_columns_dtypes(chunk, monkeypatch):
    pd = pytest.importorskip("pandas")
    monkeypatch.setattr(examples, "CHUNK", chunk)
    for name, frame in pandas_frames(pd).items():
        np.testing.assert_array_equal(prepared(frame), np.column_stack([X[:, 0], Y]), err_msg=name)
    dummies = pd.get_dummies(pd.DataFrame({"a": X[:, 0], "c": np.where(Y, "u", "v")}))
    np.testing.assert_array_equal(prepared(dummies, 3), np.column_stack([X[:, 0], Y, 1 - Y]))


def test_pandas_columns_with_missing_values_are_named():
    pd = pytest.importorskip("pandas")
    missing = [*Y[:40].tolist(), None, *Y[41:].tolist()]
    for dtype in ("Int64", "Float64", "boolean", "float64"):
        frame = pd.DataFrame({"a": X[:, 0], "b c": pd.array(missing, dtype=dtype)})
        refused(frame, "finite numbers", "example 40", "column 'b c'", "remove or fill")
        refused_labels(frame["b c"], "finite")
    refused(pd.DataFrame({"a": pd.Categorical(missing), "b": Y}), "example 40, column 'a'")


def test_pandas_columns_that_are_no_numbers_are_named_with_their_dtype():
    pd = pytest.importorskip("pandas")
    others = {
        "text": np.where(Y, "u", "v"),
        "category": pd.Categorical(np.where(Y, "u", "v")),
        "datetime64": pd.Timestamp("2020-01-01"),
        "timedelta64": pd.Timedelta("1D"),
        "period": pd.Period("2020-01"),
        "interval": pd.Interval(0, 1),
        "complex128": X[:, 0] + 1j,
        "object": pd.Series([[1]] * 60),
    }
    for dtype, column in others.items():
        refused(pd.DataFrame({"a": X[:, 0], "city": column}), "'city' (" + (dtype if dtype != "text" else ""))
    refused(pd.DataFrame(others), *(f"'{name}' (" for name in list(others)[:5]), "and 3 more")
    refused_labels(pd.Series(others["text"], name="kind"), "column 'kind'", "number the classes from 0")


def test_pandas_frames_of_bytes_are_pixels_unless_there_are_truths_too():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame((X > 0).astype(np.uint8), columns=["a", "b"])
    for given, kind in ((frame, "bytes"), (frame.assign(b=True), "numbers"), (frame.assign(b=1.5), "numbers")):
        network = dnn.Network([2, 1])
        network.fit(given, Y, epochs=1)
        assert network.input_kind == kind


# -------------------------------------------------------------------------------- the columns' names

NAMES = ["a", "b", "c"]
THREE = GENERATOR.standard_normal((60, 3))
ORDERS = [[0, 2, 1], [1, 2, 0], [2, 1, 0]]


def tables(kind: str) -> Any:
    """A function that makes a table of this kind of an array and names."""
    library = pytest.importorskip(kind.split(".")[0])

    def make(values: np.ndarray, names: list[str]) -> Any:
        columns = dict(zip(names, np.ascontiguousarray(values.T), strict=True))
        if kind == "pandas":
            return library.DataFrame(values, columns=names)
        if kind == "pandas.mixed":
            return library.DataFrame(columns).astype({names[-1]: "float32"}).astype({names[0]: "Float64"})
        if kind == "polars":
            return library.DataFrame(columns)
        return (library.table if kind == "pyarrow.table" else library.RecordBatch.from_pydict)(columns)

    return make


def fitted_to(make: Any, names: list[str] = NAMES) -> dnn.Network:
    network = dnn.Network([3, 4, 1], seed=1)
    network.fit(make(THREE, names), Y, epochs=2)
    assert network.feature_names == names
    return network


@covering("kind, chunk", ["pandas", "pandas.mixed", "polars", "pyarrow.table", "pyarrow.batch"], [8, 4_000_000])
def test_columns_are_matched_by_name_with_those_of_the_first_fit(kind, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "CHUNK", chunk)
    make = tables(kind)
    network = fitted_to(make)
    network.save(tmp_path / "model.h5")
    rounded = prepare(dnn.Network([3, 1], dtype="float64"), make(THREE, NAMES)).X  # as this kind of table has them
    for user in (network, dnn.load(tmp_path / "model.h5"), copy.deepcopy(network)):
        expected = user.evaluate(rounded, Y)
        for order in ORDERS:
            given = make(THREE[:, order], [NAMES[j] for j in order])
            np.testing.assert_allclose(user.predict_proba(given), user.predict_proba(rounded), rtol=1e-5)
            assert user.evaluate(given, Y) == pytest.approx(expected, rel=1e-5)
    by_name, by_place = copy.deepcopy(network), copy.deepcopy(network)
    given = make(rounded[:, [2, 0, 1]], ["c", "a", "b"])
    data = make(THREE, NAMES)
    losses, expected = (
        user.fit(table, Y, epochs=2, validation_data=(table, Y)).history["val_loss"]
        for user, table in ((by_name, given), (by_place, data))
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    assert by_name.feature_names == NAMES


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow.table"])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "b", "d"], ("got a, b, d (missing: c; unknown: d)",)),
        (["A", "B", "C"], ("missing: a, b, c", "unknown: A, B, C")),
        (["a", "b", "c", "y"], ("got a, b, c, y (unknown: y)",)),
        (["a", "c"], ("got a, c (missing: b)",)),
    ],
)
def test_columns_of_other_names_are_refused_with_the_difference(kind, names, words):
    make = tables(kind)
    network = fitted_to(make)
    given = make(np.resize(THREE, (60, len(names))), names)
    for use in (network.predict, lambda X: network.evaluate(X, Y), lambda X: network.fit(X, Y)):
        with pytest.raises(DataError) as error:
            use(given)
        message = str(error.value)
        assert message.startswith("X: expected the columns of the first fit, a, b, c; ") and "\n" not in message
        assert all(word in message for word in words), message
    with pytest.raises(DataError, match="X of validation_data: expected the columns"):
        network.fit(make(THREE, NAMES), Y, validation_data=(given, Y))
    assert network.epochs == 2 and network.feature_names == NAMES


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow.table"])
def test_columns_without_names_pass_and_numbers_are_no_names(kind):
    make = tables(kind)
    network = fitted_to(make)
    numbers = {"pandas": range(3), "polars": map("column_{}".format, range(3)), "pyarrow.table": ["f0", "f1", "f2"]}
    unnamed = make(THREE, list(numbers[kind]) if kind != "pandas" else [0, 1, 2])
    np.testing.assert_array_equal(network.predict(THREE), network.predict(unnamed))
    np.testing.assert_array_equal(network.predict(THREE.tolist()), network.predict(unnamed))
    after = dnn.Network([3, 4, 1], seed=1)
    after.fit(THREE, Y, epochs=1)
    assert after.feature_names is None
    after.fit(unnamed, Y, epochs=1)
    after.predict(make(THREE, NAMES))
    after.fit(make(THREE, NAMES), Y, epochs=1)
    assert after.feature_names == NAMES
    with pytest.raises(DataError, match="missing: c; unknown: d"):
        after.predict(make(THREE, ["a", "b", "d"]))


def test_numbered_columns_in_another_order_are_matched_too():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(THREE)
    for first in (frame, THREE):
        network = dnn.Network([3, 4, 1], seed=1)
        network.fit(first, Y, epochs=1)
        np.testing.assert_array_equal(network.predict_proba(frame[[2, 0, 1]]), network.predict_proba(THREE))


def test_columns_of_one_name_are_taken_only_in_their_order():
    pd = pytest.importorskip("pandas")
    network = dnn.Network([3, 4, 1])
    network.fit(pd.DataFrame(THREE, columns=["a", "a", "b"]), Y, epochs=1)
    network.predict(pd.DataFrame(THREE, columns=["a", "a", "b"]))
    for names, words in ((["a", "b", "a"], "order them as in training"), (["a", "b", "b"], "got a, b, b")):
        with pytest.raises(DataError, match=words):
            network.predict(pd.DataFrame(THREE, columns=names))


def test_a_refused_fit_leaves_the_columns_names_undecided():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(THREE, columns=NAMES)
    for settings in ({"validation_data": (THREE * np.nan, Y)}, {"validation_split": 0.999}):
        network = dnn.Network([3, 4, 1])
        with pytest.raises(DataError):
            network.fit(frame, Y, **settings)
        assert network.feature_names is None


@pytest.mark.parametrize(
    ("of_x", "of_y", "where"),
    [
        (range(60), range(59, -1, -1), "got 59 for 0 in row 0"),
        (range(60), [*range(58), 59, 58], "got 59 for 58 in row 58"),
        (range(1, 61), range(60), "got 0 for 1 in row 0"),
        ([f"r{i}" for i in range(60)], range(60), "got 0 for r0 in row 0"),
    ],
)
def test_rows_of_pandas_with_other_labels_are_not_paired_by_place(of_x, of_y, where):
    pd = pytest.importorskip("pandas")
    frame, labels = pd.DataFrame(THREE, columns=NAMES, index=list(of_x)), pd.Series(Y, index=list(of_y))
    network = dnn.Network([3, 4, 1])
    for given in (labels, labels.to_frame()):
        for use in (network.evaluate, network.fit, lambda X, Y: network.fit(THREE, labels, validation_data=(X, Y))):
            with pytest.raises(DataError, match="expected the index of X") as error:
                use(frame, given)
            assert where in str(error.value) and "\n" not in str(error.value)
    for X_of, Y_of in ((frame, labels.to_numpy()), (frame.to_numpy(), labels), (frame, labels.set_axis(frame.index))):
        dnn.Network([3, 4, 1]).evaluate(X_of, Y_of)


def test_arrow_backed_pandas_columns():
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": pd.array(X[:, 0], "double[pyarrow]"), "b": pd.array(Y, "int64[pyarrow]")})
    np.testing.assert_array_equal(prepared(frame), np.column_stack([X[:, 0], Y]))
    refused(frame.assign(b=pd.array([None, *Y[1:]], "int64[pyarrow]")), "example 0, column 'b'")
    refused(frame.assign(b=pd.array(["u"] * 60, pd.ArrowDtype(pa.string()))), "'b' (string[pyarrow])")
    refused(frame.assign(b=pd.array([datetime.date(2020, 1, 1)] * 60, pd.ArrowDtype(pa.date32()))), "'b' (date32")
    decimals = pd.array([Decimal(int(y)) for y in Y], pd.ArrowDtype(pa.decimal128(5, 2)))
    np.testing.assert_array_equal(prepared(frame.assign(b=decimals))[:, 1], Y)


@pytest.mark.parametrize("chunk", [8, 4_000_000])
def test_polars_frames(chunk, monkeypatch):
    pl = pytest.importorskip("polars")
    monkeypatch.setattr(examples, "CHUNK", chunk)
    expected = np.column_stack([X[:, 0], Y])
    for column in (Y, Y > 0, pl.Series(Y).cast(pl.UInt8), pl.Series(Y).cast(pl.Decimal(10, 2))):
        np.testing.assert_array_equal(prepared(pl.DataFrame({"a": X[:, 0], "b": column})), expected)
    day = datetime.date(2020, 1, 1)
    missing = [*Y[:40].tolist(), None, *Y[41:].tolist()]
    for column, words in (
        (missing, "example 40, column 'b'"),
        (["u"] * 60, "'b' (String)"),
        ([day] * 60, "'b' (Date)"),
        (pl.Series(["u"] * 60, dtype=pl.Categorical), "'b' (Categorical"),
        (X.tolist(), "'b' (List(Float64))"),
        (X, "'b' (Array(Float64"),
    ):
        refused(pl.DataFrame({"a": X[:, 0], "b": column}), words)
    refused(pl.DataFrame({"a": X[:, 0], "b": Y}).lazy(), "LazyFrame", "collect()")
    refused_labels(pl.Series("kind", missing), "example 40, column 'kind'")
    np.testing.assert_array_equal(prepare(dnn.Network([2, 1]), X, pl.Series(Y)).targets[:, 0], Y)


def test_arrow_tables_batches_and_arrays():
    pa = pytest.importorskip("pyarrow")
    expected = np.column_stack([X[:, 0], Y])
    for column in (Y, Y > 0, pa.array(Y.tolist(), pa.decimal128(5, 2)), pa.array(Y).dictionary_encode()):
        columns = {"a": pa.array(X[:, 0]), "b": column}
        np.testing.assert_array_equal(prepared(pa.table(columns)), expected)
        np.testing.assert_array_equal(prepared(pa.RecordBatch.from_pydict(columns)), expected)
    missing = [*Y[:40].tolist(), None, *Y[41:].tolist()]
    for column, words in (
        (missing, "example 40, column 'b'"),
        (["u"] * 60, "'b' (string)"),
        ([datetime.date(2020, 1, 1)] * 60, "'b' (date32"),
        (X.tolist(), "'b' (list<"),
    ):
        refused(pa.table({"a": X[:, 0], "b": column}), words)
    for labels in (pa.array(Y), pa.array(Y > 0), pa.chunked_array([Y[:30], Y[30:]])):
        np.testing.assert_array_equal(prepare(dnn.Network([2, 1]), X, labels).targets[:, 0], Y)
    refused_labels(pa.array(missing), "example 40")
    np.testing.assert_array_equal(prepared(pa.Tensor.from_numpy(X)), X)


# ----------------------------------------------------------------------------------- arrays and tensors


def test_xarray():
    xr = pytest.importorskip("xarray")
    np.testing.assert_array_equal(prepared(xr.DataArray(X, dims=["city", "feature"])), X)
    refused(xr.DataArray(MASKED), "finite", "nan", f"example {FIRST}")
    refused(xr.Dataset({"a": ("i", X[:, 0]), "b": ("i", Y)}), "Dataset of a, b", "choose one")


def test_zarr_and_netcdf(tmp_path):
    zarr, netcdf = pytest.importorskip("zarr"), pytest.importorskip("netCDF4")
    np.testing.assert_array_equal(prepared(zarr.array(X, chunks=(7, 2))), X)
    group = zarr.group()
    group.create_array("images", data=X)
    refused(group, "Group of images", "choose one")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in (("m", 60), ("n", 2)):
            file.createDimension(name, size)
        whole, masked, packed = (
            file.createVariable(name, dtype, ("m", "n")) for name, dtype in (("w", "f8"), ("m", "f8"), ("p", "u1"))
        )
        whole[:], masked[:] = X, MASKED
        packed.scale_factor, packed.add_offset = 0.1, -5.0
        packed[:] = X
        np.testing.assert_array_equal(prepared(whole), X)
        np.testing.assert_allclose(prepared(packed), X, atol=0.06)
        refused(masked, "masked values", f"row {FIRST}")
        refused(file, "Dataset")


def test_dask():
    da = pytest.importorskip("dask.array")
    lazy = da.from_array(X, chunks=7)
    np.testing.assert_array_equal(prepared(lazy), X)
    refused(da.ma.masked_greater(lazy, 1), "masked values", f"row {FIRST}")
    refused(lazy[lazy[:, 0] > -9], "not known yet", "compute_chunk_sizes")
    refused(lazy.map_blocks(lambda block: 1 / 0, dtype=float), "cannot read", "ZeroDivisionError")


def test_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(X)
    for given in (tensor, list(tensor), tensor.T.contiguous().T):
        np.testing.assert_array_equal(prepared(given), X)
    for given, words in (
        (tensor.bfloat16(), "torch.bfloat16"),
        (tensor.clone().requires_grad_(), "detach()"),
        (tensor.to_sparse(), "to_dense()"),
        (torch.zeros(60, 2, device="meta"), "Tensor"),
    ):
        refused(given, words, "float32")
    refused(tensor + 1j, "complex128")


def test_jax():
    jnp = pytest.importorskip("jax.numpy")
    for dtype in ("float32", "bfloat16", "float8_e5m2"):
        rounded = jnp.asarray(X, dtype)
        np.testing.assert_array_equal(prepared(rounded), np.asarray(rounded).astype(float))
    np.testing.assert_array_equal(prepared(list(jnp.asarray(X, "float32"))), X.astype("f"))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_ml_dtypes_are_numbers(name):
    dtype = getattr(pytest.importorskip("ml_dtypes"), name)
    np.testing.assert_array_equal(prepared(X.astype(dtype)), X.astype(dtype).astype(float))
    for output, units in (("sigmoid", 1), ("softmax", 2)):
        targets = prepare(dnn.Network([2, units], output=output), X, Y.astype(dtype)).targets
        np.testing.assert_array_equal(targets[:, 0], Y)
