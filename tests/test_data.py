"""Input validation: what X, Y and a data file may be, and the one-line error for everything else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

import dnn
from dnn.backends import Backend, base
from dnn.batches import in_place
from dnn.cli.common import read_labels
from dnn.data import Part, examples, prepare
from dnn.errors import DataError, ModelFileError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((6, 4))
Y = np.array([0, 1, 1, 0, 1, 0])


def network_of(output: str = "sigmoid", units: int = 1, **settings) -> dnn.Network:
    return dnn.Network([4, 3, units], output=output, **settings)


def as_a_batch(network: dnn.Network, given) -> np.ndarray:
    """These examples as they reach the first layer."""
    examples = prepare(network, given)
    loaded = in_place(network.backend, examples, np.arange(examples.m), network.dtype)
    return network.backend.to_numpy(loaded.X)


class Frame:
    """All that the input code uses of pandas: to_numpy, and no attribute of an array."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def to_numpy(self):
        return self._values


class Tensor:
    """An array of another library, whose dtype is not NumPy's."""

    def __init__(self, values):
        self._values, self.shape, self.dtype = values, values.shape, "tensor.float64"

    def __array__(self, dtype=None, copy=None):
        return self._values


# ------------------------------------------------------------------------------------ what X may be


@pytest.mark.parametrize(
    "given",
    [
        X,
        X.tolist(),
        tuple(map(tuple, X)),
        Frame(X),
        Tensor(X),
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X[::-1][::-1],
        X.astype(">f8"),
        X.reshape(6, 2, 2),
        X.reshape(6, 1, 4, 1).swapaxes(1, 3),
        np.ma.masked_array(X),
        np.broadcast_to(X[:, None], (6, 1, 4)),
    ],
    ids=lambda given: type(given).__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_form_of_the_same_examples_is_the_same_array(given, dtype, backend: Backend):
    prepared = prepare(network_of(dtype=dtype, backend=backend.name), given).on(backend).X
    assert backend.owns(prepared) and prepared.dtype == dtype and prepared.flags.c_contiguous
    np.testing.assert_array_equal(backend.to_numpy(prepared), X.astype(dtype))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint16", "int64", "uint64", "float16", "float32", "f16"])
def test_numbers_other_than_bytes_are_not_scaled(dtype, backend: Backend):
    whole = np.arange(24).reshape(6, 4).astype(dtype)
    network = network_of(backend=backend.name)
    network.fit(whole, Y, epochs=1)
    assert (network.input_scale, network.input_kind) == (1.0, "numbers")
    np.testing.assert_array_equal(backend.to_numpy(prepare(network, whole).X), whole.astype("float32"))


def test_a_pandas_frame_is_accepted():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"), index=range(10, 16))
    np.testing.assert_array_equal(prepare(network_of(dtype="float64"), frame).X, X)


def test_bytes_are_scaled_by_one_multiplication_in_the_networks_dtype(backend: Backend):
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2) * 10
    for dtype in (np.float32, np.float64):
        network = network_of(dtype=dtype, backend=backend.name)
        network.fit(pixels, Y, epochs=1)
        assert (network.input_scale, network.input_kind, network.input_shape) == (1 / 255, "bytes", (2, 2))
        expected = pixels.reshape(6, 4).astype(dtype) * dtype(1 / 255)
        np.testing.assert_array_equal(as_a_batch(network, pixels), expected)


def test_a_scale_that_was_given_holds_for_bytes_and_numbers_alike(backend: Backend):
    network = network_of(input_scale=0.5, backend=backend.name)
    network.fit(X, Y, epochs=1)
    assert network.input_scale == 0.5 and network.input_kind is None
    for given in (np.full((2, 4), 3, np.uint8), np.full((2, 4), 3.0)):
        np.testing.assert_array_equal(as_a_batch(network, given), np.full((2, 4), 1.5, np.float32))


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        (np.uint8, np.float32, ("uint8, scaled by 1/255", "float32", "give uint8")),
        (np.float32, np.uint8, ("other than bytes, unscaled", "uint8", "convert X")),
    ],
)
def test_bytes_for_a_network_trained_on_numbers_or_the_reverse_are_refused_naming_both(trained, asked, words):
    network = network_of()
    network.fit(np.ones((6, 4), trained), Y, epochs=1)
    for use in (network.predict, network.predict_proba, lambda given: network.evaluate(given, Y)):
        with pytest.raises(DataError) as error:
            use(np.ones((6, 4), asked))
        assert all(word in str(error.value) for word in words)
    with pytest.raises(DataError):
        network.fit(np.ones((6, 4), asked), Y, epochs=1)


def test_many_chunks_give_the_same_result_as_one(monkeypatch):
    whole = prepare(network_of(), X).X
    monkeypatch.setattr(examples, "CHUNK", 9)  # two examples and a bit
    np.testing.assert_array_equal(prepare(network_of(), X).X, whole)
    spoilt = X.copy()
    spoilt[5, 1] = np.inf
    for given in (spoilt, np.ascontiguousarray(spoilt, np.float32)):
        with pytest.raises(DataError, match="got inf in float32 at example 5, feature 1"):
            prepare(network_of(), given)


def test_an_array_that_needs_no_conversion_is_not_copied_and_none_is_changed():
    ready = np.ascontiguousarray(X, np.float32)
    assert np.shares_memory(prepare(network_of(), ready).X, ready)
    pixels = np.full((6, 4), 7, np.uint8)
    for given in (ready, X.copy(), pixels):
        before = given.copy()
        network_of().fit(given, Y, epochs=2, batch_size=2)
        np.testing.assert_array_equal(given, before)


# ---------------------------------------------------------------------------------- what X may not be


class Sparse:
    """All that the input code uses of a sparse matrix."""

    shape, dtype = (6, 4), np.dtype(float)

    def toarray(self):
        raise AssertionError("a large one would fill the memory")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (X[:, :3], ("layer 1", "(6, 3)", "3 features", "(3, 4)", "give 4 features")),
        (X.T, ("layer 1", "(4, 6)", "(3, 4)", "transpose X")),
        (X.reshape(6, 4, 1).repeat(2, 2), ("(6, 4, 2)", "8 features")),
        (X[0], ("(examples, features)", "(4,)", "reshape(1, -1)")),
        (3.0, ("(examples, features)", "()")),
        (X[:0], ("at least one example", "(0, 4)")),
        ([], ("at least one example", "(0,)")),
        (X[:, :0], ("4 features", "got none", "(6, 0)")),
        ([[1, 2, 3, 4], [1, 2]], ("rows of one length", "4 in item [0], 2 in item [1]")),
        ([[1, 2], [1, [2]]], ("rows of one length", "a number in item [1][0], 1 in item [1][1]")),
        ([[1, 2, 3, None]], ("expected numbers", "None in item [0][3]")),
        (None, ("expected numbers", "None")),
        (X.astype(object), ("expected numbers", "objects")),
        (Frame(X.astype(object)), ("expected numbers", "objects")),
        ({"a": X, "b": X}, ("expected one array", "dict of a, b", "choose one")),
        (X.astype(str), ("expected numbers", "<U")),
        ("images.h5", ("expected numbers", "<U")),
        (X.astype(complex), ("expected numbers", "complex128")),
        (np.zeros((6, 4), "M8[s]"), ("expected numbers", "datetime64")),
        (np.zeros(6, "f4,i4"), ("expected numbers", "fields f0, f1", "structured_to_unstructured")),
        (np.where(X[2, 1] == X, np.nan, X), ("finite", "nan", "example 2, feature 1", "remove or fill")),
        (np.where(X[3, 0] == X, -np.inf, X), ("finite", "-inf", "example 3, feature 0")),
        (X * 1e300, ("finite", "inf in float32", "example 0")),
        (np.ma.masked_array(X, mask=X > 1), ("masked", "fill or remove")),
        (Sparse(), ("dense", "Sparse", "X.toarray()")),
    ],
)
def test_invalid_examples_are_refused_in_one_line(given, words):
    network = network_of()
    for use in (network.predict, lambda X: network.evaluate(X, Y), lambda X: network.fit(X, Y)):
        with pytest.raises(DataError) as error:
            use(given)
        assert all(word in str(error.value) for word in words), str(error.value)
        assert "\n" not in str(error.value)


def test_finite_numbers_whose_sum_overflows_are_accepted():
    large = np.full((6, 4), 3e38, np.float32)
    np.testing.assert_array_equal(prepare(network_of(), large).X, large)


def test_data_larger_than_memory_is_refused_before_allocation(tmp_path: Path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        declared = file.create_dataset("x", (10**12, 4), "u1", chunks=(1000, 4))
        declared[0] = 1
        with pytest.raises(DataError, match=r"1000000000000 examples of 4 features take 4000.0 GB in uint8"):
            prepare(network_of(), declared)


@pytest.mark.parametrize("validation", [{"validation_data": (X, Y)}, {"validation_split": 0.999}])
def test_a_fit_with_invalid_validation_data_leaves_the_scaling_undecided(validation):
    network = network_of()
    with pytest.raises(DataError):
        network.fit(np.ones((6, 4), np.uint8), Y, **validation)
    assert (network.input_scale, network.input_kind, network.input_shape) == (None, None, None)
    network.fit(X, Y, epochs=1)


def test_bytes_are_scaled_before_the_first_fit_as_after_it():
    pixels, network = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10, network_of()
    before = network.predict_proba(pixels)
    assert network.input_scale is None
    network.fit(pixels, Y, epochs=1, optimizer=dnn.SGD(0.0))
    np.testing.assert_array_equal(network.predict_proba(pixels), before)


@pytest.mark.parametrize("refused", ["labels", "numbers"])
def test_a_refused_fit_leaves_the_scaling_undecided(refused):
    """The scaling comes from the first data trained on, not from the first data passed."""
    network = network_of()
    with pytest.raises(DataError):
        if refused == "labels":
            network.fit(np.ones((6, 4), np.uint8), Y + 5)
        else:
            network.fit(np.full((6, 2, 2), np.nan), Y)
    assert network.input_scale is network.input_kind is network.input_shape is None
    network.fit(X if refused == "labels" else np.ones((6, 4), np.uint8), Y, epochs=1)


# ------------------------------------------------------------------------------------ what Y may be


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "uint64", "float16", "float64", ">i4"])
@pytest.mark.parametrize(("output", "units"), [("sigmoid", 1), ("softmax", 2), ("linear", 1)])
def test_one_label_per_example_may_be_flat_or_a_column_of_any_dtype(output, units, dtype, shape, backend: Backend):
    network = network_of(output, units, backend=backend.name)
    targets = prepare(network, X, Y.astype(dtype).reshape(shape)).targets
    assert backend.owns(targets) and targets.shape == (6, 1)
    assert targets.dtype == ("int64" if output == "softmax" else "float32")
    np.testing.assert_array_equal(backend.to_numpy(targets)[:, 0], Y)


@pytest.mark.parametrize(
    "given",
    [Y.tolist(), tuple(Y), Frame(Y), Tensor(Y), np.repeat(Y, 2)[::2], np.eye(2)[Y], np.eye(2, dtype=bool)[Y].tolist()],
    ids=lambda given: type(given).__name__,
)
def test_classes_may_come_in_many_forms(given):
    np.testing.assert_array_equal(prepare(network_of("softmax", 2), X, given).targets[:, 0], Y)


def test_several_labels_and_several_values_are_used_unchanged():
    given = GENERATOR.random((6, 3))
    for output in ("sigmoid", "linear"):
        np.testing.assert_array_equal(prepare(network_of(output, 3, dtype="float64"), X, given).targets, given)


def test_one_example_may_have_one_row_of_labels():
    assert prepare(network_of(), X[:1], [[1]]).targets.shape == (1, 1)
    assert prepare(network_of("softmax", 3), X[:1], [[0, 0, 1]]).targets.tolist() == [[2]]


@pytest.mark.parametrize(
    ("output", "units", "given", "words"),
    [
        ("sigmoid", 1, Y[None], ("one label per row", "(1, 6)", "transpose it", "Y.T")),
        ("softmax", 2, np.eye(2)[Y].T, ("one label per row", "(2, 6)", "transpose it", "Y.T")),
        ("softmax", 3, Y[None], ("(1, 6)", "transpose it")),
        ("linear", 1, X[:, :1].T, ("(1, 6)", "transpose it")),
        ("sigmoid", 1, Y[:5], ("6 labels", "as many as X", "got 5")),
        ("sigmoid", 1, np.r_[Y, 0], ("6 labels", "got 7")),
        ("sigmoid", 1, [], ("one label per example", "(0,)")),
        ("sigmoid", 1, 1, ("one label per example", "()")),
        ("sigmoid", 1, None, ("Y", "expected numbers", "None")),
        ("softmax", 2, None, ("Y", "expected numbers", "None")),
        ("linear", 1, None, ("Y", "expected numbers", "None")),
        ("softmax", 2, list("aabbab"), ("expected numbers", "'a' in item [0]", "number the classes from 0")),
        ("softmax", 2, np.array(list("aabbab")), ("expected numbers", "<U1", "number the classes from 0")),
        ("softmax", 2, Y.astype(object), ("expected numbers", "objects")),
        ("linear", 1, [[1], [2], [3], [4], [5], [6, 7]], ("rows of one length",)),
        ("sigmoid", 1, Y + 1, ("labels 0 and 1", "got 2", "softmax", "linear")),
        ("sigmoid", 1, Y - 0.5, ("labels 0 and 1", "got -0.5")),
        ("sigmoid", 1, np.where(Y, np.nan, 0), ("finite", "nan")),
        ("sigmoid", 1, np.eye(2)[Y], ("layer 2", "1 sigmoid unit", "(6, 1)", "(6, 2)")),
        ("sigmoid", 3, Y, ("layer 2", "3 sigmoid units", "(6, 3)", "(6, 1)", "output='softmax'")),
        ("sigmoid", 1, Y.reshape(6, 1, 1), ("(6, 1)", "(6, 1, 1)")),
        ("softmax", 2, Y * 2, ("class numbers 0 to 1", "2 outputs", "got 2")),
        ("softmax", 2, Y - 1, ("class numbers 0 to 1", "got -1")),
        ("softmax", 2, Y.astype("u8") * np.uint64(2**63), ("class numbers 0 to 1", "got 9223372036854775808")),
        ("softmax", 2, Y * 0.5, ("whole class numbers", "got 0.5")),
        ("softmax", 2, np.where(Y, np.nan, 0), ("whole class numbers", "got nan")),
        ("softmax", 2, np.where(Y, np.inf, 0), ("whole class numbers", "got inf")),
        ("softmax", 2, np.ones((6, 2)), ("a single 1", "one-hot", "(6, 2)")),
        ("softmax", 2, np.full((6, 2), 0.5), ("a single 1", "one-hot")),
        ("softmax", 2, np.eye(3)[Y], ("2 units", "(6,)", "(6, 2)", "(6, 3)")),
        ("softmax", 2, Y.reshape(6, 1, 1), ("2 units", "(6, 1, 1)")),
        ("linear", 1, X[:, :2], ("layer 2", "1 linear unit,", "(6, 1)", "(6, 2)")),
        ("linear", 2, X[:, 0], ("layer 2", "2 linear units", "(6, 2)", "(6, 1)")),
        ("linear", 1, np.where(Y, np.inf, 0), ("finite", "inf")),
        ("linear", 1, Y * 1e300, ("finite", "inf in float32")),
    ],
)
def test_labels_that_do_not_fit_the_output_are_refused_in_one_line(output, units, given, words):
    network = network_of(output, units)
    before = network.parameters.flat.copy()
    for use in (network.fit, network.evaluate):
        with pytest.raises(DataError) as error:
            use(X, given)
        assert all(word in str(error.value) for word in words), str(error.value)
        assert "\n" not in str(error.value) and str(error.value).startswith(("Y: ", "Y:"))
    np.testing.assert_array_equal(network.parameters.flat, before)


def test_errors_in_validation_data_name_it():
    network = network_of()
    with pytest.raises(DataError, match="X of validation_data: expected finite"):
        network.fit(X, Y, validation_data=(X * np.nan, Y))
    with pytest.raises(DataError, match="Y of validation_data: expected 6 labels"):
        network.fit(X, Y, validation_data=(X, Y[:2]))


# ------------------------------------------------------------------------------------------- data files


def write(path: Path, **content) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values
    return path


WHOLE = {
    "train_set_x": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
    "train_set_y": Y,
    "test_set_x": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
    "test_set_y": Y[:2],
    "list_classes": np.array([b"non-cat", "ça".encode()]),
}


def test_the_assignments_layout_opens_lazily_by_its_parts(tmp_path: Path):
    path = write(tmp_path / "cats.h5", **WHOLE)
    with dnn.open_dataset(path) as data:
        assert isinstance(data.train.X, h5py.Dataset) and data.train.X.shape == (6, 2, 2)
        np.testing.assert_array_equal(data.train.Y[...], Y)
        np.testing.assert_array_equal(data.test.X[...], WHOLE["test_set_x"])
        assert data.test.Y.shape == (2,) and data.classes == ["non-cat", "ça"]
        assert "X (6, 2, 2) uint8, Y (6,) int64" in repr(data) and str(path) in repr(data)


def test_hdf5_data_sets_train_and_predict_as_arrays_do(tmp_path: Path, backend: Backend):
    write(tmp_path / "a.h5", **WHOLE)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for name in ("train_set_x", "train_set_y"):
            values = WHOLE[name]
            file.create_dataset(name, data=values, chunks=(4, *values.shape[1:]), compression="gzip", shuffle=True)
    networks = [dnn.Network([4, 3, 1], dtype="float64", backend=backend.name) for _ in range(3)]
    networks[0].fit(WHOLE["train_set_x"], Y, epochs=2, batch_size=4)
    for network, name in zip(networks[1:], ("a.h5", "b.h5"), strict=True):
        with dnn.open_dataset(str(tmp_path / name)) as data:
            network.fit(data.train.X, data.train.Y, epochs=2, batch_size=4)
            np.testing.assert_array_equal(network.predict_proba(data.train.X), networks[0].predict_proba(data.train.X))


@pytest.mark.parametrize(("kept", "gone"), [("train", "test"), ("test", "train")])
def test_a_missing_part_is_none(kept, gone, tmp_path: Path):
    content = {name: values for name, values in WHOLE.items() if name.startswith(kept)}
    with dnn.open_dataset(write(tmp_path / "part.h5", **content)) as data:
        assert getattr(data, gone) is None and getattr(data, kept) is not None and data.classes is None


def test_a_part_may_lack_labels_until_they_are_used(tmp_path: Path):
    path = write(tmp_path / "new.h5", test_set_x=X)
    with dnn.open_dataset(path) as data:
        assert data.test.X.shape == (6, 4) and "no labels" in repr(data)
        with pytest.raises(DataError, match=r"new.h5: no data set 'test_set_y': the file has test_set_x$"):
            _ = data.test.Y


@pytest.mark.parametrize("name", ["deep/in/here", "/deep/in/here", "./deep/in/here", "deep//in/here"])
def test_other_names_and_groups_by_argument(name, tmp_path: Path):
    path = write(tmp_path / "other.h5", **{"deep/in/here": X, "labels": Y})
    with dnn.open_dataset(path, x=name, y="labels") as data:
        np.testing.assert_array_equal(data.train.X[...], X)
        assert data.test is None


def test_examples_can_be_named_without_labels_but_not_labels_alone(tmp_path: Path):
    path = write(tmp_path / "a.h5", a=X, b=Y)
    with dnn.open_dataset(path, x="a") as data:
        np.testing.assert_array_equal(data.train.X[...], X)
        with pytest.raises(DataError, match="name the labels of a too, with y=: the file has a, b"):
            _ = data.train.Y
    with pytest.raises(ValueError, match="give x= too"):
        dnn.open_dataset(path, y="b")


def test_a_closed_file_cannot_be_read_and_can_be_replaced(tmp_path: Path):
    path = write(tmp_path / "a.h5", **WHOLE)
    with dnn.open_dataset(path) as data:
        pass
    with pytest.raises(DataError, match="X: its file is closed"):
        network_of().predict(data.train.X)
    with pytest.raises(DataError, match="Y: its file is closed"):
        network_of().fit(X, data.train.Y)
    write(path, train_set_x=X)  # HDF5 refuses to truncate a file that is open
    with pytest.raises(DataError):
        dnn.open_dataset(write(path, train_set_x=X, list_classes=1.0))
    write(path, train_set_x=X)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (np.array(["ça".encode(), b"b"]), ["ça", "b"]),
        (np.array([b"cat  ", b"dog  "]), ["cat", "dog"]),
        (np.array([b"cat\0\0x", b"hot dog"]), ["cat", "hot dog"]),
        (np.array(["cat ", "dog"], dtype=h5py.string_dtype()), ["cat", "dog"]),
        (np.array(["ça", "b"], dtype=h5py.string_dtype()), ["ça", "b"]),
        (np.array([10, 20]), ["10", "20"]),
    ],
    ids=["bytes", "spaces", "null characters", "padded text", "text", "numbers"],
)
def test_class_names_are_text_whatever_the_file_stores(names, expected, tmp_path: Path):
    with dnn.open_dataset(write(tmp_path / "a.h5", train_set_x=X, train_set_y=Y, list_classes=names)) as data:
        assert data.classes == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([b"K\xe4tze", b"K\xf6tze"], ("name 0", r"b'K\xe4tze'", "not UTF-8")),
        ([b"cat", b"\xff\xfe"], ("name 1", r"b'\xff\xfe'", "not UTF-8")),
        (["cat".encode("utf-16"), b"dog"], ("name 0", "not UTF-8")),
        ([b"cat", b"cat"], ("different names", "'cat' for class 0 and class 1", "rename one")),
        ([b"cat", b"cat "], ("different names", "'cat'")),
        ([b"a", b"b\0x", b"b"], ("different names", "'b' for class 1 and class 2")),
        ([1, 1], ("different names", "'1'")),
    ],
)
def test_class_names_that_tell_no_classes_apart_are_refused(names, words, tmp_path: Path):
    path = write(tmp_path / "a.h5", train_set_x=X, train_set_y=Y, list_classes=np.array(names))
    with pytest.raises(DataError) as opened:
        dnn.open_dataset(path)
    with h5py.File(path) as file, pytest.raises(DataError) as fitted:
        network_of().fit(X, file["train_set_y"])
    assert str(opened.value) == str(fitted.value) and str(opened.value).startswith(f"{path}: list_classes: ")
    assert all(word in str(opened.value) for word in words), opened.value


def test_class_names_that_another_language_padded_are_read_without_the_padding(tmp_path: Path):
    path = write(tmp_path / "a.h5", train_set_x=X, train_set_y=Y)
    with h5py.File(path, "r+") as file:
        padded = h5py.h5t.C_S1.copy()
        padded.set_size(8)
        padded.set_strpad(h5py.h5t.STR_SPACEPAD)
        names = h5py.h5d.create(file.id, b"list_classes", padded, h5py.h5s.create_simple((2,)))
        names.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([b"cat     ", b"dog     "]), mtype=padded)
    with dnn.open_dataset(path) as data:
        assert data.classes == ["cat", "dog"]


def elsewhere(tmp_path: Path) -> Path:
    return write(tmp_path / "secret.h5", x=X)


def linked(link):
    def make(path: Path) -> None:
        elsewhere(path.parent)
        with h5py.File(path, "w") as file:
            file["train_set_x"], file["train_set_y"] = link(), Y
            file["here"] = X

    return make


def linked_labels(path: Path) -> None:
    elsewhere(path.parent)
    with h5py.File(path, "w") as file:
        file["train_set_x"], file["train_set_y"] = X, h5py.ExternalLink("secret.h5", "x")


def linked_group(path: Path) -> None:
    elsewhere(path.parent)
    with h5py.File(path, "w") as file:
        file["train_set_x"], file["out"] = X, h5py.ExternalLink("secret.h5", "/")


def raw_file(path: Path) -> None:
    (path.parent / "raw").write_bytes(X.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("train_set_x", X.shape, X.dtype, external=str(path.parent / "raw"))


def virtual(path: Path) -> None:
    elsewhere(path.parent)
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("secret.h5", "x", X.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("train_set_x", layout)


def declared(name: str, shape: tuple[int, ...], dtype: str):
    def make(path: Path) -> None:
        write(path, train_set_x=X, train_set_y=Y)
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            file.create_dataset(name, shape, dtype, chunks=tuple(min(n, 1000) for n in shape))

    return make


def damaged_chunk(name: str):
    """Compressed data with its last chunk overwritten: the file opens, and a later read fails."""

    def make(path: Path) -> None:
        content = {"train_set_x": X, "train_set_y": Y, "list_classes": np.array([b"a", b"b"])}
        with h5py.File(path, "w") as file:
            for key, values in content.items():
                file.create_dataset(key, data=values, chunks=(2, *values.shape[1:]), compression="gzip")
            dataset = file[name].id
            chunk = dataset.get_chunk_info(dataset.get_num_chunks() - 1)
        with open(path, "r+b") as raw:
            raw.seek(chunk.byte_offset)
            raw.write(b"\xff" * chunk.size)

    return make


def of(**content):
    return lambda path: write(path, **content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of(), ("no data set train_set_x or test_set_x", "no data sets", "x=", "y=")),
        (of(images=X, marks=Y), ("no data set train_set_x", "the file has images, marks", "x=", "y=")),
        (of(**{f"d{i:02}": 1 for i in range(30)}), ("d00, d01", "d19 and 10 more")),
        (of(train_set_x=X, train_set_y=Y[:5]), ("train_set_x has 6 examples", "train_set_y has 5 labels")),
        (of(test_set_x=X, test_set_y=Y[:5]), ("test_set_x has 6 examples", "test_set_y has 5 labels")),
        (of(train_set_x=1.0), ("train_set_x", "one example per row", "single value")),
        (of(train_set_x=X, train_set_y=1), ("train_set_y", "single value")),
        (of(train_set_x=h5py.Empty("f4")), ("train_set_x", "is empty")),
        (of(**{"train_set_x/data": X}), ("train_set_x", "is a group", "train_set_x/data")),
        (of(train_set_x=np.array([b"ab"] * 6)), ("train_set_x", "expected numbers", "S2")),
        (of(train_set_x=np.array(["a"] * 6, h5py.string_dtype())), ("train_set_x", "expected numbers", "object")),
        (of(train_set_x=np.array([[]] * 6, h5py.vlen_dtype("f8"))), ("expected numbers", "object")),
        (of(train_set_x=X.astype(complex)), ("expected numbers", "complex128")),
        (of(train_set_x=X, list_classes=np.array([[b"a"]])), ("list_classes", "one name per class", "(1, 1)")),
        (of(train_set_x=X, **{"list_classes/a": 1}), ("list_classes", "is a group")),
        (linked(lambda: h5py.ExternalLink("secret.h5", "x")), ("train_set_x", "link to elsewhere", "store the data")),
        (linked(lambda: h5py.SoftLink("/here")), ("train_set_x", "link to elsewhere", "refused")),
        (linked_labels, ("train_set_y", "link to elsewhere", "refused")),
        (raw_file, ("train_set_x", "in another file", "refused", "store the data itself")),
        (virtual, ("train_set_x", "in another file", "refused")),
        (declared("train_set_x", (10**12, 4), "f4"), ("train_set_x", "(1000000000000, 4)", "ever written")),
        (declared("train_set_x", (6, 10**12), "f4"), ("train_set_x", "(6, 1000000000000)", "ever written")),
        (declared("train_set_y", (10**12,), "u1"), ("train_set_y", "(1000000000000,)", "ever written")),
        (declared("list_classes", (10**12,), "S1"), ("list_classes", "one name per class", "(1000000000000,)")),
        (declared("list_classes", (2,), "S2000000000"), ("list_classes", "one name per class")),
        (damaged_chunk("list_classes"), ("damaged",)),
    ],
)
def test_an_invalid_data_file_is_refused_in_one_line_that_names_it(make, words, tmp_path: Path):
    path = tmp_path / "bad.h5"
    make(path)
    with pytest.raises(DataError) as error:
        dnn.open_dataset(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(word in message for word in words), message
    path.rename(tmp_path / "closed.h5")
    write(tmp_path / "closed.h5", x=X)  # it was closed: HDF5 would refuse to write it


@pytest.mark.parametrize("name", ["out/x", "out"])
def test_a_name_that_leads_through_a_link_is_refused(name, tmp_path: Path):
    linked_group(tmp_path / "bad.h5")
    with pytest.raises(DataError, match="out is a link to elsewhere: refused"):
        dnn.open_dataset(tmp_path / "bad.h5", x=name, y="train_set_x")


@pytest.mark.parametrize("part", ["train_set_x", "train_set_y"])
def test_damage_found_late_is_reported_as_a_data_error(part, tmp_path: Path):
    damaged_chunk(part)(tmp_path / "bad.h5")
    network = network_of()
    with dnn.open_dataset(tmp_path / "bad.h5") as data, pytest.raises(DataError, match="the file is damaged"):
        network.fit(data.train.X, data.train.Y)
    assert network.epochs == 0 and network.input_scale is None


def test_unreadable_files_are_told_apart(tmp_path: Path):
    def complaint(content: bytes) -> str:
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(DataError) as error:
            dnn.open_dataset(tmp_path / "a.h5")
        return str(error.value).removeprefix(f"{tmp_path / 'a.h5'}: ")

    whole = write(tmp_path / "whole.h5", **WHOLE).read_bytes()
    assert complaint(b"") == "the file is empty"
    assert complaint(b"a,b\n1,2\n" * 100) == "not an HDF5 file"
    assert complaint(b"\x89HDF\r\n\x1a\n").startswith("a damaged HDF5 file")
    assert "Git LFS pointer" in complaint(b"version https://git-lfs.github.com/spec/v1\n")
    for length in (100, len(whole) // 2, len(whole) - 1):
        assert "truncated" in complaint(whole[:length])
    for path, words in (
        ("missing.h5", "no such file"),
        (".", "Is a directory"),
        ("whole.h5/a.h5", "Not a directory"),
        ("/dev/zero", "expected a file, got a pipe or a device"),
    ):
        with pytest.raises(DataError, match=words):
            dnn.open_dataset(tmp_path / path)


def test_a_file_damaged_anywhere_is_refused_or_harmless(tmp_path: Path):
    """Every 53rd byte, one at a time: a DataError on opening or reading, or numbers, and nothing else."""
    path = write(tmp_path / "a.h5", **WHOLE)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 53):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with dnn.open_dataset(path) as data:
                for part in filter(None, (data.train, data.test)):
                    network_of().evaluate(part.X, part.Y)
        except DataError:
            refused += 1
    assert refused > 10


# ------------------------------------------------------------------------- files that are not damaged


def filtered(path: Path, number: int, name: bytes | None = None, applied: bool = True, of: str = "train_set_x") -> Path:
    """A file with a data set that says it is compressed with this filter."""
    write(path, **{n: v for n, v in (("train_set_x", X), ("train_set_y", Y)) if n != of})
    values = X if of == "train_set_x" else Y
    with h5py.File(path, "r+") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(values.shape)
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(values.shape)
        data = h5py.h5d.create(file.id, of.encode(), h5py.h5t.py_create(values.dtype), space, plist)
        data.write_direct_chunk((0,) * values.ndim, values.tobytes(), 0 if applied else 1)
    return path


@pytest.mark.parametrize("of", ["train_set_x", "train_set_y"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (32015, ("Zstandard (32015)", "pip install hdf5plugin")),
        (32001, ("Blosc (32001)", "pip install hdf5plugin")),
        (32004, ("LZ4 (32004)", "pip install hdf5plugin")),
        (307, ("bzip2 (307)", "pip install hdf5plugin")),
        (32768, ("unknown (32768)", "install its plugin")),
    ],
)
def test_a_filter_that_is_not_installed_is_named(number, words, of, tmp_path: Path):
    if number != 32768 and find_spec("hdf5plugin"):
        pytest.skip("hdf5plugin is installed")
    path = filtered(tmp_path / "a.h5", number, of=of)
    with pytest.raises(DataError) as error:
        dnn.open_dataset(path)
    message = str(error.value)
    assert message.startswith(f"{path}: {of}: ") and "damaged" not in message and "\n" not in message
    assert all(word in message for word in (*words, "not installed", "gzip"))
    with h5py.File(path) as file, pytest.raises(DataError, match="not installed") as error:  # not by open_dataset
        data = {"train_set_x": X, "train_set_y": Y} | {of: file[of]}
        network_of().fit(data["train_set_x"], data["train_set_y"])
    assert "damaged" not in str(error.value)


def test_data_stored_without_its_optional_filter_is_read(tmp_path: Path):
    with dnn.open_dataset(filtered(tmp_path / "a.h5", 32768, applied=False)) as data:
        np.testing.assert_array_equal(prepare(network_of(dtype="float64"), data.train.X).X, X)


@pytest.mark.parametrize("ends", ["goes on", "crashed"])
def test_a_file_that_another_program_writes_is_no_damaged_one(ends, tmp_path: Path):
    path = tmp_path / "swmr.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("train_set_x", data=X, maxshape=(None, 4), chunks=(2, 4))
    writing = f"import h5py, os, sys; f = h5py.File({str(path)!r}, 'a', libver='latest'); f.swmr_mode = True; "
    writing += "print(flush=True); sys.stdin.read(); os._exit(0)"
    with subprocess.Popen(
        [sys.executable, "-c", writing], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        if ends == "crashed":
            process.communicate("")
        for opened, kind in ((dnn.open_dataset, DataError), (dnn.load, ModelFileError)):
            with pytest.raises(kind, match=r"another program writes it.*h5clear -s") as error:
                opened(path)
            assert "damaged" not in str(error.value)
        process.stdin.close()


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(5, "Unable to open file (errno = 5, error message = 'Input/output error')"), "Input/output error"),
        (OSError(37, "unable to lock file, errno = 37"), "cannot lock it: set HDF5_USE_FILE_LOCKING=FALSE"),
        (BlockingIOError(11, "unable to lock file, errno = 11"), "another program writes it"),
        (OSError("Unable to synchronously open file (bad superblock version number)"), "or of a version that HDF5"),
    ],
)
def test_what_keeps_a_file_from_being_opened_is_told_as_it_is(raised, words, tmp_path: Path, monkeypatch):
    path = write(tmp_path / "a.h5", **WHOLE)

    def fail(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr("h5py.File", fail)
        patched.setattr("h5py.is_hdf5", lambda path: True)
        for opened in (dnn.open_dataset, dnn.load):
            with pytest.raises((DataError, ModelFileError)) as error:
                opened(path)
            assert words in str(error.value) and "damaged HDF5" not in str(error.value)


def test_a_type_of_hdf5_that_numpy_lacks_is_no_damage(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.id, b"train_set_x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((6, 4)))
    with pytest.raises(DataError, match="train_set_x: expected numbers, got another type") as error:
        dnn.open_dataset(tmp_path / "a.h5")
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X, Y[None], ("train_set_y", "(1, 6) for 6 examples", "as (6,)")),
        (X, np.eye(3)[Y].T, ("train_set_y", "(3, 6) for 6 examples", "as (6, 3)")),
        (X.T, Y, ("train_set_x", "(4, 6) for 6 labels", "store it transposed")),
        (X.T, Y[None], ("train_set_x", "(4, 6) for 6 labels", "and train_set_y too")),
        (X, Y[:5], ("train_set_x has 6 examples but train_set_y has 5 labels",)),
    ],
)
def test_lying_data_is_refused_at_opening_by_its_name(x, y, words, tmp_path: Path):
    with pytest.raises(DataError) as error:
        dnn.open_dataset(write(tmp_path / "a.h5", train_set_x=x, train_set_y=y))
    assert all(word in str(error.value) for word in words) and ".T" not in str(error.value)


class Unreadable:
    """A part's labels, whose reading fails so."""

    file, name = type("File", (), {"filename": "a.h5"}), "/train_set_y"
    shape, dtype = (6,), np.dtype("i8")

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def __getitem__(self, rows: object) -> None:
        raise self.cause


Unreadable.__module__ = "h5py._hl.dataset"


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (OSError(5, "Can't read data (errno = 5)"), "cannot read its data set: Input/output error"),
        (OSError("Can't synchronously read data (inflate() failed)"), "the file is damaged (Can't"),
        (RuntimeError("Unspecified error in H5Dread"), "the file is damaged (Unspecified"),
        (ValueError("Not a dataset"), "the file is damaged"),
    ],
)
def test_what_keeps_the_labels_from_being_read_is_told_as_it_is(cause, words):
    with pytest.raises(DataError) as error:
        read_labels(Part(None, Unreadable(cause), ""))
    assert str(error.value).startswith("a.h5: train_set_y: ") and words in str(error.value)


# --------------------------------------------------------- data sets of HDF5 that do not hold their values


def mapped(path: Path) -> None:
    """Virtual, of a source in another file."""
    write(path.parent / "secret.h5", x=X)
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(str(path.parent / "secret.h5"), "x", X.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)


def mapped_in_part(path: Path) -> None:
    write(path.parent / "secret.h5", x=X[:3])
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:3] = h5py.VirtualSource(str(path.parent / "secret.h5"), "x", (3, 4))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)


def raw(path: Path) -> None:
    (path.parent / "secret.h5").write_bytes(X.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("x", X.shape, X.dtype, external=[(str(path.parent / "secret.h5"), 0, h5py.h5f.UNLIMITED)])


def never_written(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", X.shape, "f4", chunks=(2, 4))


@pytest.mark.parametrize("given", ["itself", "as a type", "in a list", "as labels", "for validation"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (mapped, "keeps its data in another file: refused"),
        (mapped_in_part, "keeps its data in another file: refused"),
        (raw, "keeps its data in another file: refused"),
        (never_written, "no data was ever written"),
    ],
)
def test_a_data_set_that_would_read_as_zeros_is_refused_however_it_is_given(make, words, given, tmp_path: Path):
    make(tmp_path / "a.h5")
    (tmp_path / "secret.h5").unlink(missing_ok=True)
    with h5py.File(tmp_path / "a.h5") as file:
        data, network = file["x"], network_of("linear", 4)
        arguments = {
            "itself": (data, X),
            "as a type": (data.astype("f4"), X),
            "in a list": ([data] * 6, X),
            "as labels": (X, data),
            "for validation": (X, X),
        }[given]
        settings = {"validation_data": (data, X)} if given == "for validation" else {}
        uses = [lambda: network.fit(*arguments, **settings), lambda: network.evaluate(*arguments)]
        if given not in ("as labels", "for validation"):
            uses.append(lambda: network.predict(arguments[0]))
        for use in uses[:1] if given == "for validation" else uses:
            with pytest.raises(DataError) as error:
                use()
            message = str(error.value)
            assert words in message and f"{tmp_path / 'a.h5'}: x" in message and "\n" not in message
    assert network.epochs == 0


@pytest.mark.parametrize("name", ["train_set_x", "train_set_y", "test_set_x"])
@pytest.mark.parametrize("opened", [True, False])
def test_rows_that_were_never_written_are_counted_once_in_a_warning(name, opened, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(base, "_logged", set())
    path = write(tmp_path / "a.h5", train_set_x=X, train_set_y=Y, test_set_x=X, test_set_y=Y)
    with h5py.File(path, "r+") as file:
        values = file[name][...]
        del file[name]
        chunks = (2, *(2 for _ in values.shape[1:]))
        grown = file.create_dataset(name, values.shape, values.dtype, chunks=chunks, fillvalue=1)
        grown[:2] = values[:2]
        grown[(slice(4, 6), *(slice(0, 2) for _ in values.shape[1:]))] = 0  # rows that are written in part
    for _ in range(2):
        if opened:
            dnn.open_dataset(path).close()
        else:
            with h5py.File(path) as file:
                Y_of = file[name] if name.endswith("y") else Y
                network_of().fit(X if name.endswith("y") else file[name], Y_of, epochs=1)
    missing = 2 if name.endswith("y") else 4
    (message,) = caplog.messages
    assert message.startswith(f"{path}: {name}: {missing} of 6 rows were never written")


def test_nothing_is_said_of_data_sets_that_are_written_in_full(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(base, "_logged", set())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("chunks", data=X, chunks=(4, 3))
        file.create_dataset("packed", data=X, chunks=(4, 3), compression="gzip", shuffle=True)
        file.create_dataset("grown", data=X[:2], chunks=(2, 4), maxshape=(None, 4))
        file["grown"].resize(6, 0)
        file["grown"][2:] = X[2:]
        file["whole"] = X
        file.create_dataset(None, data=X)
        for data in file.values():
            np.testing.assert_array_equal(prepare(network_of(dtype="float64"), data).X, X)
    assert not caplog.messages


def test_a_data_set_without_values_is_told_by_all(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["null"], file["none"] = h5py.Empty("f4"), X[:0]
        for given, words in (
            (h5py.Empty("f4"), "an empty data set"),
            (file["null"], "is empty"),
            (file["none"], "empty"),
        ):
            for use in (network_of().predict, lambda given: network_of().fit(given, Y)):
                with pytest.raises(DataError, match=f"^X: .*{words}"):
                    use(given)
            with pytest.raises(DataError, match=r"^Y: "):
                network_of().fit(X, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((5, 0)), "expected 4 features per example, got none"),
        (np.zeros((4, 0)), "expected 4 features per example, got none"),
        (np.zeros((4, 2, 0)), "expected 4 features per example, got none"),
        ([[], []], "expected 4 features per example, got none"),
        ([], "expected at least one example"),
        (np.zeros((0, 4)), "expected at least one example"),
        (np.zeros((0, 0)), "expected at least one example"),
    ],
)
def test_what_is_empty_is_not_called_transposed(given, words):
    with pytest.raises(DataError, match=words) as error:
        network_of().predict(given)
    assert "transpose" not in str(error.value)


@pytest.mark.parametrize("opened_as", [{"locking": True}, {"locking": False}, "low level"])
def test_a_file_that_is_open_here_with_other_settings_is_no_damaged_one(opened_as, tmp_path: Path):
    path = write(tmp_path / "a.h5", **WHOLE)
    if isinstance(opened_as, dict):
        held = h5py.File(path, "r", **opened_as)
    else:
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_fclose_degree(h5py.h5f.CLOSE_SEMI)
        held = h5py.File(h5py.h5f.open(bytes(path), h5py.h5f.ACC_RDONLY, fapl=access))
    try:
        for opened, kind in ((dnn.open_dataset, DataError), (dnn.load, ModelFileError)):
            with pytest.raises(kind, match=r"open in this process with other settings .*: close it there"):
                opened(path)
    finally:
        held.close()
    dnn.open_dataset(path).close()


@pytest.mark.parametrize("name", ["a\0b", "a\0b.h5", "folder/\0", b"a\0b", "a\ud800"])
def test_a_name_that_no_file_can_have_is_a_data_error(name):
    for opened, kind in ((dnn.open_dataset, DataError), (dnn.load, ModelFileError)):
        with pytest.raises(kind) as error:
            opened(name)
        assert "\0" not in str(error.value)


def test_a_path_means_what_it_does_in_a_shell_and_may_be_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.h5", **WHOLE)
    for path in ("~/a.h5", Path("~/a.h5"), b"~/a.h5", bytes(tmp_path / "a.h5")):
        with dnn.open_dataset(path) as data:
            assert data.path == str(tmp_path / "a.h5")
    with pytest.raises(DataError, match=f"^{tmp_path}/b.h5: no such file"):
        dnn.open_dataset("~/b.h5")


# -------------------------------------------------------------------------------------------- class names


NAMED = [b"cat", b"dog", b"emu"]
CLASSES = np.array([0, 1, 2, 0, 1, 2])
NAME_CASES = {
    "another order": ([b"emu", b"cat", b"dog"], (CLASSES + 1) % 3),
    "in a column": ([b"emu", b"cat", b"dog"], (CLASSES + 1)[:, None] % 3),
    "as floats": ([b"emu", b"cat", b"dog"], (CLASSES + 1) % 3.0),
    "one-hot": ([b"emu", b"cat", b"dog"], np.eye(3, dtype=np.uint8)[(CLASSES + 1) % 3]),
    "names never used": ([b"car", b"cat", b"dog", b"emu"], CLASSES + 1),
    "one-hot with names never used": ([b"car", b"cat", b"dog", b"emu"], np.eye(4)[CLASSES + 1]),
    "the same": (NAMED, CLASSES),
}


@pytest.fixture
def named(tmp_path: Path) -> dnn.Network:
    """A network of the classes NAMED, as a file had them."""
    network = network_of("softmax", 3)
    with dnn.open_dataset(write(tmp_path / "named.h5", train_set_x=X, train_set_y=CLASSES, list_classes=NAMED)) as data:
        network.fit(data.train.X, data.train.Y, epochs=5)
    assert network.classes == ["cat", "dog", "emu"]
    return network


@pytest.mark.parametrize("case", NAME_CASES)
def test_labels_of_a_file_are_matched_with_the_networks_classes_by_name(case, named, tmp_path: Path):
    names, labels = NAME_CASES[case]
    with dnn.open_dataset(write(tmp_path / "a.h5", test_set_x=X, test_set_y=labels, list_classes=names)) as data:
        assert named.evaluate(data.test.X, data.test.Y) == named.evaluate(X, CLASSES)
        after, ours = (dnn.Network([4, 3, 3], output="softmax") for _ in range(2))
        after.classes = named.classes
        history = after.fit(X, CLASSES, epochs=2, validation_data=(data.test.X, data.test.Y)).history
        assert history == ours.fit(X, CLASSES, epochs=2, validation_data=(X, CLASSES)).history


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([b"car", b"bus", b"van"], CLASSES),
        ([b"cat", b"dog", b"gnu"], CLASSES),
        ([b"cat", b"dog", b"gnu"], np.eye(3)[CLASSES]),
        ([b"Cat", b"Dog", b"Emu"], CLASSES),
        ([b"dog", b"cat", b"emu"], CLASSES + 0.5),
    ],
)
def test_other_classes_are_refused_with_both_lists(names, labels, named, tmp_path: Path):
    lists = ("cat, dog, emu", b", ".join(names).decode())
    with dnn.open_dataset(write(tmp_path / "a.h5", test_set_x=X, test_set_y=labels, list_classes=names)) as data:
        for use in (named.evaluate, named.fit):
            with pytest.raises(DataError) as error:
                use(data.test.X, data.test.Y)
            assert all(words in str(error.value) for words in lists) and "\n" not in str(error.value)


def test_several_labels_are_matched_column_by_column_and_none_may_be_missing(tmp_path: Path):
    network, labels = network_of("sigmoid", 3), np.eye(3)[CLASSES]
    network.classes = ["cat", "dog", "emu"]
    path = write(tmp_path / "a.h5", test_set_x=X, test_set_y=labels, list_classes=[b"emu", b"cat", b"dog"])
    with dnn.open_dataset(path) as data:
        assert network.evaluate(data.test.X, data.test.Y) == network.evaluate(X, labels[:, [1, 2, 0]])
    path = write(tmp_path / "b.h5", test_set_x=X, test_set_y=labels[:, :2], list_classes=[b"emu", b"cat"])
    with dnn.open_dataset(path) as data, pytest.raises(DataError, match=r"cat, dog, emu; got emu, cat: each of them"):
        network.evaluate(data.test.X, data.test.Y)


def test_a_refused_fit_leaves_the_names_undecided_and_values_have_none(tmp_path: Path):
    with dnn.open_dataset(
        write(tmp_path / "a.h5", train_set_x=X, train_set_y=Y, list_classes=[b"cat", b"dog"])
    ) as data:
        for output, validation in (("sigmoid", (X * np.nan, Y)), ("linear", (X, Y))):
            network = network_of(output)
            with contextlib.suppress(DataError):
                network.fit(data.train.X, data.train.Y, epochs=1, validation_data=validation)
            assert network.classes is None
        network = network_of("softmax", 5)
        network.fit(data.train.X, data.train.Y, epochs=1)
        assert network.classes is None


# ------------------------------------------------------------------------------------------ input shapes


@pytest.mark.parametrize(("first", "later"), [((2, 3, 4), (4, 2, 3)), ((4, 6), (6, 4)), ((2, 12), (2, 3, 4))])
def test_examples_whose_features_are_in_another_order_than_at_the_fit_are_refused(first, later):
    network, images = dnn.Network([24, 1]), np.random.default_rng(0).random((6, 24))
    network.fit(images.reshape(6, *first), Y, epochs=1)
    for use in (network.predict, lambda given: network.evaluate(given, Y), lambda given: network.fit(given, Y)):
        with pytest.raises(DataError) as error:
            use(images.reshape(6, *later))
        assert all(words in str(error.value) for words in (str(first), str(later), "transpose X"))


@pytest.mark.parametrize("later", [(24,), (1, 4, 6), (4, 6, 1), (4, 1, 6)])
def test_flattened_examples_and_axes_of_one_are_the_same_features(later):
    network, images = dnn.Network([24, 1]), np.random.default_rng(0).random((6, 24))
    network.fit(images.reshape(6, 4, 6), Y, epochs=1)
    np.testing.assert_array_equal(network.predict(images.reshape(6, *later)), network.predict(images.reshape(6, 4, 6)))
