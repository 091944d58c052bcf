"""The command line: its files, its output streams and its exit status."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from conftest import ROOT
from sweeps import covering

import dnn
from dnn import backends
from dnn.cli import main

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((40, 4)).astype(np.float32)
TWO = (X.sum(axis=1) > 0).astype(np.int64)
THREE = np.digitize(X[:, 0], [-0.4, 0.4])
VALUES = X @ np.array([1, -2, 0.5, 0]) + 1.0


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    def summary(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        assert self.out.endswith("}\n") and self.out.count("\n") == 1

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)

    def rows(self) -> list[list[str]]:
        assert self.code == 0, self.err
        return list(csv.reader(io.StringIO(self.out)))


Run = Callable[..., Ran]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = left.code
        return Ran(code, *capsys.readouterr())

    return run


def child(*arguments: object, first: str = "", **settings: Any) -> subprocess.Popen[str]:
    """Run the command in a child process, after the Python statements in `first`."""
    command = ["-c", f"import sys\n{first}\nfrom dnn.cli import main\nsys.exit(main())"] if first else ["-m", "dnn"]
    environment = {name: value for name, value in os.environ.items() if name not in ("DNN_BACKEND", "PYTHONUNBUFFERED")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | settings.pop("env", {})
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
    return subprocess.Popen([sys.executable, *command, *map(str, arguments)], env=environment, **settings)


def run_child(*arguments: object, **settings: Any) -> Ran:
    with child(*arguments, **settings) as process:
        out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out or "", err)


def write(path: str | Path, **content: Any) -> str:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values
    return str(path)


def two_parts(path: str = "data.h5", labels: np.ndarray = TWO, **more: Any) -> str:
    content = {"train_set_x": X[:30], "train_set_y": labels[:30], "test_set_x": X[30:], "test_set_y": labels[30:]}
    return write(path, **(content | more))


def contents() -> dict[str, bytes | None]:
    """Every file and folder below the current one."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def one_complaint(ran: Ran, code: int, *words: str) -> None:
    """Check the exit status, an empty stdout, and one line on stderr that contains these words."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("dnn") and ran.err.count("\n") == 1 and ran.err.endswith("\n"), ran.err
    assert all(word in ran.err for word in words), ran.err


def model(run: Run, data: str | None = None, *flags: object) -> str:
    """Train a model and return its path."""
    ran = run("train", data or two_parts(), "--quiet", "--epochs", 3, "--hidden", 5, "--out", "trained", *flags)
    assert ran.code == 0, ran.err
    return "trained/model.h5"


# ---------------------------------------------------------------------------------------------- train


def test_train_writes_a_model_and_its_history_and_prints_the_measures(run: Run):
    ran = run("train", two_parts(), "--epochs", 4)
    assert ran.code == 0
    assert sorted(contents()) == ["data.h5", "runs", "runs/data", "runs/data/history.csv", "runs/data/model.h5"]
    train, test, where = ran.out.splitlines()
    assert train.startswith("train: loss ") and test.startswith("test: loss ") and ", accuracy " in train
    assert where == "model: runs/data/model.h5"
    device, shape, *progress = ran.err.splitlines()
    assert device.startswith("backend numpy, CPU (") and device.endswith(", float32")
    shape, guess = shape.split(" (guessed: ")
    assert shape == "30 examples, layers 4-64-1, sigmoid output"
    assert guess == "the labels are 2 classes; --output linear for real values)"
    assert [line.split(":")[0] for line in progress] == ["epoch 1/4", "epoch 4/4"]


def test_the_history_has_one_row_per_epoch(run: Run):
    model(run, two_parts(), "--validation-split", 0.2)
    header, *rows = csv.reader(Path("trained/history.csv").read_text().splitlines())
    assert header == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert np.isfinite(np.array(rows, float)).all()


def test_json_is_one_object_with_paths_settings_seconds_and_both_measures(run: Run):
    summary = run("train", two_parts(), "--json", "--epochs", 2).summary()
    assert summary["model"] == "runs/data/model.h5" and summary["history"] == "runs/data/history.csv"
    assert Path(summary["model"]).is_file() and Path(summary["history"]).is_file()
    assert 0 <= summary["seconds"] < 60
    assert summary["train"].keys() == summary["test"].keys() == {"loss", "accuracy"}
    expected = {
        "data": "data.h5",
        "test": None,
        "hidden": [64],
        "activation": "relu",
        "output": "sigmoid",
        "initializer": "he_normal",
        "epochs": 2,
        "batch_size": 64,
        "optimizer": {"name": "adam"} | asdict(dnn.Adam()) | {"factors": []},
        "learning_rate": 0.001,
        "validation_split": 0.0,
        "shuffle": True,
        "seed": 0,
        "dtype": "float32",
        "precision": "float32",
        "input_scale": 1.0,
        "backend": "numpy",
    }
    # what has no value was left as it is, or is off
    assert expected.items() <= summary["settings"].items()
    unset = {name: value for name, value in summary["settings"].items() if name not in expected and value}
    assert unset == {"loss": "sigmoid_cross_entropy", "members": 1, "accumulate": 1, "missing_targets": "error"}


def test_without_a_test_part_there_is_no_test_measure(run: Run):
    data = write("data.h5", train_set_x=X, train_set_y=TWO)
    assert run("train", data, "--json", "--epochs", 1).summary()["test"] is None
    assert "test" not in run("train", data, "--quiet", "--epochs", 1, "--force").out


def test_every_setting_reaches_the_network_and_the_training(run: Run):
    flags = ["--hidden", "6,3", "--activation", "tanh", "--initializer", "glorot_uniform", "--epochs", 3, "--seed", 9]
    flags += ["--batch-size", 7, "--optimizer", "momentum", "--learning-rate", 0.05, "--validation-split", 0.1]
    flags += ["--dtype", "float64", "--input-scale", 0.5, "--no-shuffle", "--out", "here/and there"]
    summary = run("train", two_parts(), "--json", *flags).summary()
    network = dnn.Network(
        [4, 6, 3, 1], activation="tanh", initializer="glorot_uniform", seed=9, dtype="float64", input_scale=0.5
    )
    history = network.fit(
        X[:30],
        TWO[:30],
        epochs=3,
        batch_size=7,
        optimizer=dnn.Momentum(0.05),
        validation_split=0.1,
        shuffle=False,
    )
    assert summary["train"] == network.evaluate(X[:30], TWO[:30])
    assert summary["test"] == network.evaluate(X[30:], TWO[30:])
    trained = dnn.load("here/and there/model.h5")
    assert repr(trained) == repr(network) and trained.epochs == 3
    np.testing.assert_array_equal(trained.parameters.flat, network.parameters.flat)
    rows = csv.DictReader(Path("here/and there/history.csv").read_text().splitlines())
    assert [float(row["val_loss"]) for row in rows] == history.history["val_loss"]


def test_bytes_are_scaled_unless_input_scale_is_given(run: Run):
    data = two_parts(train_set_x=np.ones((30, 2, 2), np.uint8), test_set_x=np.ones((10, 2, 2), np.uint8))
    assert run("train", data, "--json", "--epochs", 1).summary()["settings"]["input_scale"] == 1 / 255
    flags = ["--input-scale", 1, "--force"]
    assert run("train", data, "--json", "--epochs", 1, *flags).summary()["settings"]["input_scale"] == 1.0


MANY = np.column_stack([TWO, 1 - THREE % 2, TWO])


@pytest.mark.parametrize(
    ("labels", "names", "output", "units"),
    [
        (TWO, None, "sigmoid", 1),
        (TWO.astype(bool), None, "sigmoid", 1),
        (TWO.astype(np.float64), None, "sigmoid", 1),
        (TWO, [b"cat", b"dog"], "sigmoid", 1),
        (TWO, [b"a", b"b", b"c"], "softmax", 3),
        (THREE, None, "softmax", 3),
        (THREE.astype(np.uint8), [b"a", b"b", b"c", b"never seen"], "softmax", 4),
        (np.eye(3)[THREE], None, "softmax", 3),
        (VALUES, None, "linear", 1),
        (np.column_stack([VALUES, VALUES]), None, "linear", 2),
        (MANY, None, "sigmoid", 3),
    ],
)
def test_the_output_follows_from_the_labels(labels, names, output, units, run: Run):
    more = {} if names is None else {"list_classes": np.array(names)}
    summary = run("train", two_parts(labels=labels, **more), "--json", "--epochs", 2).summary()
    assert summary["settings"]["output"] == output
    network = dnn.load(summary["model"])
    assert network.output == output and network.layer_sizes == (4, 64, units)
    assert network.classes == (None if names is None else [name.decode() for name in names])
    assert summary["test"].keys() == {"loss", "rmse" if output == "linear" else "accuracy"}


@pytest.mark.parametrize(
    ("labels", "asked", "units"), [(TWO, "softmax", 2), (THREE, "linear", 1), (MANY, "linear", 3), (TWO, "sigmoid", 1)]
)
def test_the_output_can_be_asked_for(labels, asked, units, run: Run):
    summary = run("train", two_parts(labels=labels), "--json", "--epochs", 1, "--output", asked).summary()
    network = dnn.load(summary["model"])
    assert (network.output, network.layer_sizes[-1]) == (asked, units)


@pytest.mark.parametrize("labels", [TWO, THREE, VALUES])
def test_labels_in_a_column_train_the_same_network_as_flat_ones(labels, run: Run):
    flat = run("train", two_parts("flat.h5", labels), "--json", "--epochs", 2).summary()
    column = run("train", two_parts("column.h5", labels[:, None]), "--json", "--epochs", 2).summary()
    assert flat["train"] == column["train"] and flat["test"] == column["test"]


def test_the_test_part_may_be_in_a_separate_file_under_either_name(run: Run):
    together = run("train", two_parts(), "--json", "--epochs", 2).summary()
    train = write("train.h5", train_set_x=X[:30], train_set_y=TWO[:30])
    for name in ("test", "train"):
        test = write(f"other_{name}.h5", **{f"{name}_set_x": X[30:], f"{name}_set_y": TWO[30:]})
        apart = run("train", train, "--test", test, "--json", "--epochs", 2, "--force").summary()
        assert apart["test"] == together["test"] and apart["settings"]["test"] == test


def test_other_names_are_given_by_x_and_y(run: Run):
    named = write("other.h5", images=X[:30], **{"marks/main": TWO[:30]})
    names = ["--x", "images", "--y", "marks/main"]
    summary = run("train", named, *names, "--json", "--epochs", 2).summary()
    assert run("evaluate", summary["model"], named, *names, "--json").summary()["loss"] == summary["train"]["loss"]
    assert len(run("predict", summary["model"], named, "--x", "images").rows()) == 31


AGES = np.random.default_rng(1).integers(0, 90, 30)
GUESSES = {
    "whole floats": (THREE.astype(float), "softmax", "3 classes; --output linear"),
    "two whole floats": (TWO.astype(float), "sigmoid", "2 classes; --output linear"),
    "floats of ratings": (THREE + 1.0, "linear", "real values; --output softmax"),
    "floats of ages": (np.resize(AGES, 40).astype(float), "linear", "real values; --output softmax"),
    "floats below 0": (THREE - 1.0, "linear", "real values; --output softmax"),
    "values": (VALUES, "linear", "real values; --output softmax"),
    "shares": (np.abs(VALUES) / 100, "linear", "real values; --output sigmoid for probabilities"),
    "columns of values": (np.column_stack([VALUES, VALUES]), "linear", "real values; --output softmax"),
    "one-hot": (np.eye(3)[THREE], "softmax", "3 classes, one-hot; --output sigmoid"),
    "several labels": (MANY, "sigmoid", "3 yes or no each; --output linear"),
    "twenty classes, two examples each": (np.arange(40) % 20, "softmax", "20 classes; --output linear"),
}


@pytest.mark.parametrize("labels", GUESSES)
def test_a_guess_is_printed_with_the_flag_that_decides(labels, run: Run):
    given, output, words = GUESSES[labels]
    data = write("data.h5", train_set_x=X, train_set_y=given)
    ran = run("train", data, "--epochs", 1)
    line = ran.err.splitlines()[1]
    assert ran.code == 0 and f"{output} output (guessed: the labels are {words}" in line
    ran = run("train", data, "--epochs", 1, "--force", "--output", output)
    assert ran.code == 0 and "guessed" not in ran.err


@pytest.mark.parametrize("kind", ["float64", "int64"])
def test_with_names_classes_are_no_guess(kind, run: Run):
    labels, names = (np.arange(30) % 3).astype(kind), [b"a", b"b", b"c", b"never seen", b"nor this"]
    ran = run("train", write("named.h5", train_set_x=X[:30], train_set_y=labels, list_classes=names), "--epochs", 1)
    assert "30 examples, layers 4-64-5, softmax output\n" in ran.err


def test_that_bytes_are_pixels_is_a_guess_too(run: Run):
    data = two_parts(train_set_x=np.ones((30, 4), np.uint8), test_set_x=np.ones((10, 4), np.uint8))
    assert "scaled by 1/255; --input-scale 1 for numbers" in run("train", data, "--epochs", 1).err
    flags = ["--input-scale", 1, "--output", "sigmoid", "--force"]
    assert "guessed" not in run("train", data, "--epochs", 1, *flags).err


NO_CLASSES = {
    "ratings": (THREE + 1, "labels 1 to 3", "there is no 0"),
    "even numbers": (THREE * 2, "labels 0 to 4", "there is no 1"),
    "one class of two": (TWO * 0 + 1, "labels 1 to 1", "there is no 0"),
    "ages": (np.resize(AGES, 40), "do not look like class numbers", "there is no"),
    "row numbers": (np.arange(40), "labels 0 to 39", "40 different ones, fewer than 5 examples of each"),
}


@pytest.mark.parametrize("labels", NO_CLASSES)
def test_whole_numbers_that_are_unlikely_to_be_classes_are_refused_unless_the_output_is_asked_for(labels, run: Run):
    given, *words = NO_CLASSES[labels]
    data = write("data.h5", train_set_x=X, train_set_y=given)
    ran = run("train", data, "--epochs", 1, "--quiet")
    one_complaint(ran, 3, "data.h5", *words, "--output linear for values", f"softmax for {given.max() + 1}")
    for output in ("linear", "softmax"):
        assert run("train", data, "--epochs", 1, "--output", output, "--force").code == 0


def test_the_same_seed_trains_the_same_network(run: Run):
    flags = ["--json", "--epochs", 2, "--force"]
    first, again, other = (run("train", two_parts(), *flags, "--seed", seed).summary()["train"] for seed in (1, 1, 2))
    assert first == again != other


def test_an_existing_model_is_refused_before_training(run: Run, monkeypatch):
    path = model(run)
    before = contents()
    with monkeypatch.context() as patched:
        patched.setattr("dnn.network.Network.fit", None)
        one_complaint(run("train", "data.h5", "--out", "trained", "--quiet"), 7, path, "already exists", "--force")
        Path(path).unlink()
        one_complaint(run("train", "data.h5", "--out", "trained", "--quiet"), 7, "history.csv", "exists", "--force")
    Path(path).write_bytes(before[path])
    assert contents() == before
    assert run("train", "data.h5", "--out", "trained", "--force", "--seed", 5).code == 0
    assert dnn.load(path).seed == 5 and contents().keys() == before.keys()


def test_of_two_trainings_into_one_folder_one_is_refused_and_the_other_kept(run: Run):
    two_parts()
    runs = [child("train", "data.h5", "--seed", seed, "--epochs", 3, "--quiet", "--json") for seed in (1, 2)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in runs]
    assert sorted(code for _, code in ended) == [0, 7]
    for seed, ((out, err), code) in zip((1, 2), ended, strict=True):
        if code == 0:
            assert dnn.load(json.loads(out)["model"]).seed == seed
        else:
            one_complaint(Ran(code, out, err), 7, "runs/data")
            assert any(why in err for why in ("already exists", "another training writes", "of another run"))
            beside = "another program wrote it meanwhile" in err  # it began when the other had just ended
    left = ["history.csv", "model.h5", *(["history-2.csv", "model-2.h5"] if beside else [])]
    assert sorted(os.listdir("runs/data")) == sorted(left)


@pytest.mark.parametrize("taken", ["model.h5", "history.csv"])
def test_a_file_that_appears_during_the_training_is_kept_and_so_are_the_results(taken, run: Run, monkeypatch):
    fit = dnn.Network.fit

    def meanwhile(*data: Any, **settings: Any) -> dnn.History:
        Path("out").mkdir()
        Path("out", taken).write_text("the other's")
        Path("elsewhere").mkdir()
        os.chdir("elsewhere")  # a relative path is that of the start
        return fit(*data, **settings)

    monkeypatch.setattr(dnn.Network, "fit", meanwhile)
    folder = Path.cwd()
    data = two_parts()
    ran = run("train", data, "--out", "out", "--quiet")
    one_complaint(ran, 7, f"out/{taken}: already exists", "results of this run", "out/model-2.h5")
    os.chdir(folder)
    assert sorted(os.listdir("out")) == sorted([taken, "history-2.csv", "model-2.h5"]) and not os.listdir("elsewhere")
    assert Path("out", taken).read_text() == "the other's" and dnn.load("out/model-2.h5").epochs == 20


def test_predictions_of_a_name_that_is_taken_meanwhile_are_kept_too(run: Run, monkeypatch):
    path, predict = model(run), dnn.Network.predict_proba

    def meanwhile(*data: Any) -> np.ndarray:
        Path("p.csv").write_text("the other's")
        return predict(*data)

    monkeypatch.setattr(dnn.Network, "predict_proba", meanwhile)
    one_complaint(run("predict", path, "data.h5", "--out", "p.csv", "--quiet"), 7, "p.csv: already exists", "p-2.csv")
    assert Path("p.csv").read_text() == "the other's" and Path("p-2.csv").read_text().startswith("index,class")


@pytest.mark.parametrize("out", ["x.npy", "./x.npy", "trained/model.h5", "trained/../x.npy"])
def test_a_file_that_the_command_reads_is_not_replaced_even_with_force(out, run: Run):
    path = model(run)
    np.save("x.npy", X)
    before = contents()
    one_complaint(run("predict", path, "x.npy", "--out", out, "--force", "--quiet"), 7, out, "would be lost")
    os.rename("data.h5", "trained/model.h5")
    one_complaint(run("train", "trained/model.h5", "--out", "trained", "--force", "--quiet"), 7, "would be lost")
    os.rename("trained/model.h5", "data.h5")
    assert contents() == {name: content for name, content in before.items() if name != "trained/model.h5"}


def test_a_tilde_is_the_home_folder_where_no_shell_has_replaced_it(run: Run, monkeypatch):
    Path("home").mkdir()
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    two_parts("home/data.h5")
    assert run("train", "~/data.h5", "--test=~/data.h5", "--out=~/out", "--epochs", 1, "--quiet").code == 0
    assert run("predict", "~/out/model.h5", "~/data.h5", "--out=~/p.csv").code == 0
    assert run("evaluate", "~/out/model.h5", "~/data.h5").code == 0
    dnn.Network([4, 1]).save("~/m.h5")
    assert dnn.load("~/m.h5").layer_sizes == (4, 1)
    assert sorted(os.listdir("home")) == ["data.h5", "m.h5", "out", "p.csv"] and os.listdir() == ["home"]


def test_a_minus_is_standard_output_and_a_slash_at_the_end_a_folder(run: Run):
    path = model(run)
    expected = run("predict", path, "data.h5").out
    assert run("predict", path, "data.h5", "--out", "-").out == expected
    Path("p.csv").write_text("mine")
    one_complaint(run("predict", path, "data.h5", "--out", "p.csv/", "--quiet"), 7, "p.csv/: is a folder: name a file")
    assert run("train", "data.h5", "--out", "new/", "--quiet").code == 0 and Path("new/model.h5").is_file()
    one_complaint(run("train", "data.h5", "--out", "", "--quiet"), 7, "--out", "empty")
    assert Path("p.csv").read_text() == "mine" and not Path("-").exists()


def test_names_that_are_not_utf_8_are_names(run: Run):
    name = os.fsdecode(b"caf\xe9")
    try:
        os.mkdir(name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    two_parts(f"{name}/data.h5")
    ran = run_child("train", f"{name}/data.h5", "--out", name, "--epochs", 1)
    assert ran.code == 0 and "model: caf\\udce9/model.h5" in ran.out, ran
    ran = run_child("predict", f"{name}/model.h5", f"{name}/data.h5", "--out", f"{name}/p.csv", "--quiet")
    assert (ran.code, ran.err) == (0, "") and len(os.listdir(name)) == 4
    ran = run_child("train", f"{name}/data.h5", "--out", name, "--quiet")
    one_complaint(ran, 7, "caf\\udce9/model.h5: already exists")
    assert dnn.load(os.fsencode(f"{name}/model.h5")).epochs == 1


# -------------------------------------------------------------------------------- evaluate and predict


def test_evaluate_agrees_with_train(run: Run):
    summary = run("train", two_parts(labels=THREE), "--json", "--epochs", 3).summary()
    for split, examples in (("train", 30), ("test", 10)):
        ran = run("evaluate", summary["model"], "data.h5", "--split", split, "--json")
        assert ran.summary() == {"data": "data.h5", "split": split, "examples": examples, **summary[split]}
        printed = run("evaluate", summary["model"], "data.h5", "--split", split).out
        measures = ", ".join(f"{name} {value:.5f}" for name, value in summary[split].items())
        assert printed == f"{split}: {examples} examples, {measures}\n"


@pytest.mark.parametrize("labels", [TWO, THREE])
def test_predictions_agree_with_evaluates_accuracy_and_with_python(labels, run: Run):
    names = ["zero", "eins, zwei", "trüb"][: labels.max() + 1]
    data = two_parts(labels=labels, list_classes=np.array([name.encode() for name in names]))
    path = model(run, data, "--learning-rate", 0.1)
    accuracy = run("evaluate", path, data, "--json").summary()["accuracy"]
    header, *rows = run("predict", path, data).rows()
    assert header == ["index", "class", "name", "probability"]
    assert [row[0] for row in rows] == [str(i) for i in range(10)]
    classes = np.array([int(row[1]) for row in rows])
    assert np.mean(classes == labels[30:]) == accuracy
    assert [row[2] for row in rows] == [names[k] for k in classes]
    network = dnn.load(path)
    np.testing.assert_array_equal(classes, network.predict(X[30:]))
    np.testing.assert_allclose([float(row[3]) for row in rows], network.predict_proba(X[30:]).max(axis=1), rtol=1e-6)


def test_without_names_the_classes_are_named_by_their_numbers(run: Run):
    _, *rows = run("predict", model(run), "data.h5").rows()
    assert all(row[1] == row[2] for row in rows)


@pytest.mark.parametrize(
    ("labels", "header"),
    [
        (VALUES, ["index", "value"]),
        (np.column_stack([VALUES, -VALUES]), ["index", "value_0", "value_1"]),
        (MANY, ["index", "0", "1", "2"]),
    ],
)
def test_values_and_several_labels_have_a_column_each(labels, header, run: Run):
    path = model(run, two_parts(labels=labels))
    head, *rows = run("predict", path, "data.h5").rows()
    assert head == header
    network = dnn.load(path)
    expected = network.predict(X[30:]) if network.output == "linear" else network.predict_proba(X[30:])
    np.testing.assert_allclose(np.array(rows, float)[:, 1:], expected.reshape(10, -1), rtol=1e-6)


def test_evaluate_and_predict_use_the_test_part_if_there_is_one(run: Run):
    path = model(run)
    train = write("train.h5", train_set_x=X[:30], train_set_y=TWO[:30])
    for data, flags, examples in (
        ("data.h5", [], 10),
        ("data.h5", ["--split", "test"], 10),
        ("data.h5", ["--split", "train"], 30),
        (train, [], 30),
    ):
        assert run("evaluate", path, data, "--json", *flags).summary()["examples"] == examples
        assert len(run("predict", path, data, *flags).rows()) == examples + 1


def test_predict_accepts_a_plain_array(run: Run):
    path = model(run)
    np.save("x.npy", np.asfortranarray(X[30:]))
    assert run("predict", path, "x.npy").rows() == run("predict", path, "data.h5").rows()


def test_predict_needs_no_labels_and_evaluate_reports_missing_ones(run: Run):
    path = model(run)
    unlabelled = write("new.h5", test_set_x=X[30:])
    assert run("predict", path, unlabelled).rows() == run("predict", path, "data.h5").rows()
    one_complaint(run("evaluate", path, unlabelled, "--quiet"), 3, "new.h5", "'test_set_y'", "the file has test_set_x")


def test_predictions_can_go_to_a_file_as_csv_or_as_an_array(run: Run):
    path = model(run)
    shown = run("predict", path, "data.h5").out
    for out in ("p.csv", "new/folder/p.npy"):
        ran = run("predict", path, "data.h5", "--out", out, "--quiet")
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert Path("p.csv").read_text(encoding="utf-8") == shown
    np.testing.assert_array_equal(np.load("new/folder/p.npy"), dnn.load(path).predict(X[30:]))


def test_existing_predictions_are_replaced_only_with_force(run: Run):
    path = model(run)
    Path("p.csv").write_text("mine")
    before = contents()
    one_complaint(run("predict", path, "data.h5", "--out", "p.csv", "--quiet"), 7, "p.csv", "already exists", "--force")
    assert contents() == before
    assert run("predict", path, "data.h5", "--out", "p.csv", "--force").code == 0
    assert Path("p.csv").read_text().startswith("index,")


def test_quiet_leaves_nothing_on_stderr(run: Run):
    path = model(run)
    for command in (
        ["train", "data.h5", "--out", "b"],
        ["evaluate", path, "data.h5"],
        ["predict", path, "data.h5"],
    ):
        ran = run(*command, "--quiet")
        assert (ran.code, ran.err) == (0, "") and ran.out


def test_each_command_first_reports_its_device(run: Run):
    path = model(run, None, "--dtype", "float64")
    for command in ("evaluate", "predict"):
        ran = run(command, path, "data.h5")
        assert ran.err.startswith("backend numpy, CPU (") and ran.err.endswith(", float64\n")


def test_the_backend_comes_from_the_flag_else_the_environment(run: Run, monkeypatch):
    path = model(run)
    monkeypatch.setenv("DNN_BACKEND", "standin")
    assert run("evaluate", path, "data.h5").err.startswith("backend standin")
    assert run("evaluate", path, "data.h5", "--backend", "numpy").err.startswith("backend numpy")
    summary = run("train", "data.h5", "--json", "--epochs", 1).summary()
    assert summary["settings"]["backend"] == "standin"


# ---------------------------------------------------------------------------------------- class names

ORDERS = {
    "two": (TWO, [b"cat", b"dog"], 1 - TWO, [b"dog", b"cat"]),
    "three": (THREE, [b"a", b"b", b"c"], (THREE + 1) % 3, [b"c", b"a", b"b"]),
    "one-hot": (np.eye(3)[THREE], [b"a", b"b", b"c"], np.eye(3)[(THREE + 1) % 3], [b"c", b"a", b"b"]),
    "more names than the model's": (TWO, [b"cat", b"dog"], TWO + 1, [b"emu", b"cat", b"dog"]),
    "fewer names": (THREE % 2, [b"a", b"b", b"c"], 1 - THREE % 2, [b"b", b"a"]),
}


@pytest.mark.parametrize("case", ORDERS)
def test_classes_in_another_order_are_matched_by_name(case, run: Run):
    labels, names, other_labels, other_names = ORDERS[case]
    train = write("train.h5", train_set_x=X, train_set_y=labels, list_classes=names)
    same = write("same.h5", test_set_x=X, test_set_y=labels, list_classes=names)
    other = write("other.h5", test_set_x=X, test_set_y=other_labels, list_classes=other_names)
    summary = run("train", train, "--test", same, "--json", "--epochs", 5).summary()
    assert run("train", train, "--test", other, "--json", "--epochs", 5, "--force").summary()["test"] == summary["test"]
    measured = run("evaluate", summary["model"], other, "--json").summary()
    assert {name: measured[name] for name in ("loss", "accuracy")} == summary["test"]


@pytest.mark.parametrize("names", [[b"car", b"bus"], [b"cat", b"emu"], [b"Cat", b"Dog"]])
def test_data_of_other_classes_is_refused_by_every_command(names, run: Run):
    path = model(run, two_parts(list_classes=[b"cat", b"dog"]))
    other = write("other.h5", test_set_x=X, test_set_y=TWO, list_classes=names)
    words = ("classes, cat, dog;", f"got {b', '.join(names).decode()}:")
    before = contents()
    one_complaint(run("evaluate", path, other, "--quiet"), 3, *words)
    one_complaint(run("predict", path, other, "--quiet", "--out", "p.csv"), 3, "other.h5", *words)
    one_complaint(run("train", "data.h5", "--test", other, "--quiet", "--out", "new"), 3, "Y_test", *words)
    assert contents() == before


def test_predictions_are_numbered_as_in_the_model_which_is_said_where_the_data_differs(run: Run):
    path = model(run, two_parts(list_classes=[b"cat", b"dog"]))
    other = write("other.h5", test_set_x=X[30:], list_classes=[b"dog", b"cat"])
    ran = run("predict", path, other)
    assert ran.rows() == run("predict", path, "data.h5").rows()
    assert ran.err.splitlines()[1:] == ["classes are numbered as in the model: cat, dog"]
    assert run("predict", path, write("none.h5", test_set_x=X[30:])).rows() == ran.rows()


def test_images_with_their_axes_in_another_order_are_refused(run: Run):
    path = model(run, two_parts(train_set_x=np.ones((30, 2, 3, 4)), test_set_x=np.ones((10, 2, 3, 4))))
    other = write("other.h5", test_set_x=np.ones((10, 4, 2, 3)), test_set_y=TWO[30:])
    for command in ("evaluate", "predict"):
        one_complaint(run(command, path, other, "--quiet"), 3, "(2, 3, 4)", "(4, 2, 3)", "transpose X")


# ---------------------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["'fly'", "train", "evaluate", "predict"]),
        (["train"], ["DATA.h5"]),
        (["evaluate", "m.h5"], ["DATA.h5"]),
        (["train", "data.h5", "--fast"], ["no flag --fast (see dnn train --help)"]),
        (["train", "data.h5", "more.h5"], ["unrecognized arguments: more.h5"]),
        (["train", "data.h5", "--wrong\nline"], ["--wrong\\nline"]),
        (["train", "data.h5", "--hidden", "0"], ["--hidden", "at least 1", "'0'"]),
        (["train", "data.h5", "--hidden", "20,-7"], ["--hidden", "at least 1"]),
        (["train", "data.h5", "--hidden", "20,seven"], ["--hidden", "20,7,5", "'20,seven'"]),
        (["train", "data.h5", "--hidden", ""], ["--hidden", "20,7,5"]),
        (["train", "data.h5", "--epochs", "many"], ["--epochs", "'many'"]),
        (["train", "data.h5", "--epochs", "0"], ["epochs", "at least 1", "0"]),
        (["train", "data.h5", "--batch-size", "-1"], ["--batch-size", "at least 1", "-1"]),
        (["train", "data.h5", "--learning-rate", "-1"], ["learning_rate", "at least 0", "-1"]),
        (["train", "data.h5", "--learning-rate", "nan"], ["learning_rate", "nan"]),
        (["train", "data.h5", "--optimizer", "tiger"], ["--optimizer", "sgd", "momentum", "adam", "'tiger'"]),
        (["train", "data.h5", "--activation", "swish"], ["--activation", "relu", "'swish'"]),
        (["train", "data.h5", "--initializer", "xavier"], ["--initializer", "he_normal", "'xavier'"]),
        (["train", "data.h5", "--output", "tanh"], ["--output", "sigmoid", "'tanh'"]),
        (["train", "data.h5", "--dtype", "float16"], ["--dtype", "float32", "'float16'"]),
        (["train", "data.h5", "--seed", "-1"], ["seed", "-1"]),
        (["train", "data.h5", "--validation-split", "1"], ["--validation-split", "below 1", "1.0"]),
        (["train", "data.h5", "--input-scale", "0"], ["--input-scale", "above 0", "got 0"]),
        (["train", "data.h5", "--y", "train_set_y"], ["--y names the labels", "give --x too"]),
        (["predict", "m.h5", "data.h5", "--split", "half"], ["--split", "'half'"]),
    ],
)
def test_wrong_usage_is_reported_in_one_line_and_writes_nothing(arguments, words, run: Run):
    two_parts()
    before = contents()
    quiet = ["--quiet"] if arguments and arguments[0] == "train" else []
    one_complaint(run(*arguments, *quiet), 2, *words)
    assert contents() == before


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--lr=0.1", "--learning-rate"),
        ("-lr", "--learning-rate"),
        ("--learning_rate", "--learning-rate"),
        ("--LearningRate", "--learning-rate"),
        ("--learnig-rate", "--learning-rate"),
        ("--batchsize", "--batch-size"),
        ("--batch_size=32", "--batch-size"),
        ("-b", None),
        ("--n-epochs", "--epochs"),
        ("--max_iter", "--epochs"),
        ("--optimiser", "--optimizer"),
        ("--solver", "--optimizer"),
        ("--hidden-units", "--hidden"),
        ("--hidden_layer_sizes", "--hidden"),
        ("--device", "--backend"),
        ("--gpu", "--backend"),
        ("--random-state", "--seed"),
        ("--validation-fraction", "--validation-split"),
        ("--n_jobs", "--threads"),
        ("-o", "--out"),
        ("--output-dir", "--out"),
        ("--overwrite", "--force"),
        ("--frobnicate", None),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(given, meant, run: Run):
    hint = f": did you mean {meant}?" if meant else ""
    expected = f"dnn train: no flag {given.split('=')[0]}{hint} (see dnn train --help)\n"
    assert run("train", "data.h5", given, *["0.1"] * ("=" not in given)) == (2, "", expected)


def test_each_command_answers_with_its_own_flags_only(run: Run):
    one_complaint(run("predict", "m.h5", "x.npy", "--device", "cuda"), 2, "dnn predict", "did you mean --backend?")
    one_complaint(run("evaluate", "m.h5", "x.h5", "--labels=y"), 2, "dnn evaluate", "did you mean --y?")
    ran = run("predict", "m.h5", "x.npy", "--lr", "0.1")
    one_complaint(ran, 2, "no flag --lr (see dnn predict --help)")
    ran = run("doctor", "--device", "cuda")
    one_complaint(ran, 2, "dnn doctor", "did you mean --backend?")


def test_where_python_names_an_argument_the_command_line_names_its_flag(run: Run):
    path = model(run)
    data = write("other.h5", images=X, marks=TWO)
    words = "the file has images, marks; name the examples with --x"
    one_complaint(run("train", data, "--quiet"), 3, f"{words}, their labels with --y\n")
    one_complaint(run("evaluate", path, data, "--quiet"), 3, f"{words}, their labels with --y\n")
    one_complaint(run("predict", path, data, "--quiet"), 3, f"{words}\n")  # it has no --y
    one_complaint(run("train", data, "--x", "images", "--quiet"), 3, "name the labels of images too, with --y:")
    with pytest.raises(dnn.errors.DataError, match=r"name the examples with x=, their labels with y=$"):
        dnn.open_dataset(data)
    # names in a path or a file are left alone
    Path("seed=1").mkdir()
    ran = run("train", "seed=1/x=.h5", "--quiet")
    assert ran.err == "dnn: seed=1/x=.h5: no such file\n"


def test_hidden_none_is_a_network_of_one_layer(run: Run):
    assert run("train", two_parts(), "--hidden", "none", "--epochs", 1).code == 0
    assert dnn.load("runs/data/model.h5").layer_sizes == (4, 1)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"]])
def test_help_and_version_go_to_stdout(arguments, run: Run):
    ran = run(*arguments)
    assert ran.code == 0 and ran.err == ""
    assert ran.out == f"dnn {dnn.__version__}\n" if arguments == ["--version"] else "usage: dnn" in ran.out


# ------------------------------------------------------------------------------------------- bad data


def raw(content: bytes):
    return lambda path: Path(path).write_bytes(content)


def cut(path: str) -> None:
    two_parts(path)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])


def spoilt(where: str, value: float):
    def make(path: str) -> None:
        two_parts(path)
        with h5py.File(path, "r+") as file:
            file[where][3, 2] = value

    return make


def of(**content: Any):
    """A complete file with these changes; None leaves a data set out."""

    def make(path: str) -> None:
        two_parts(path, **{name: values for name, values in content.items() if values is not None})
        with h5py.File(path, "r+") as file:
            for name, values in content.items():
                if values is None:
                    del file[name]

    return make


def late_damage(name: str):
    """Compressed data with its last chunk overwritten: the file opens, and a later read fails."""

    def make(path: str) -> None:
        with h5py.File(two_parts(path), "r+") as file:
            values = file[name][...]
            del file[name]
            dataset = file.create_dataset(name, data=values, chunks=(5, *values.shape[1:]), compression="gzip").id
            chunk = dataset.get_chunk_info(dataset.get_num_chunks() - 1)
        with open(path, "r+b") as file:
            file.seek(chunk.byte_offset)
            file.write(b"\xff" * chunk.size)

    return make


def linked(link: Any):
    def make(path: str) -> None:
        write("secret.h5", x=X[:30])
        of(train_set_x=None, here=X[:30])(path)
        with h5py.File(path, "r+") as file:
            file["train_set_x"] = link

    return make


def virtual(path: str) -> None:
    write("secret.h5", x=X[:30])
    of(train_set_x=None)(path)
    layout = h5py.VirtualLayout((30, 4), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "x", (30, 4))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("train_set_x", layout)


def declared(shape: tuple[int, int]):
    def make(path: str) -> None:
        of(train_set_x=None, train_set_y=None)(path)
        with h5py.File(path, "r+") as file:
            for name, extent in (("train_set_x", shape), ("train_set_y", shape[:1])):
                file.create_dataset(name, extent, "u1", chunks=tuple(min(n, 100) for n in extent))

    return make


def group(path: str) -> None:
    of(train_set_x=None)(path)
    with h5py.File(path, "r+") as file:
        file["train_set_x/all"] = X[:30]


NO_FILES = {
    "no such file": (lambda path: None, ["no such file"]),
    "a folder": (os.mkdir, ["Is a directory"]),
    "empty": (raw(b""), ["empty"]),
    "text": (raw(b"a,b\n1,2\n" * 100), ["not an HDF5 file"]),
    "truncated": (cut, ["truncated", "copy or download it again"]),
    "an LFS pointer": (raw(b"version https://git-lfs.github.com/spec/v1\noid"), ["Git LFS pointer", "git lfs pull"]),
    "a pipe": (os.mkfifo, ["expected a file", "pipe"]),
}
NO_DATA = {
    "no X": (
        of(train_set_x=None, test_set_x=None),
        ["no data set train_set_x", "the file has test_set_y, train_set_y", "with --x, their labels with --y\n"],
    ),
    "no train part": (of(train_set_x=None), ["no train part", "train_set_x"]),
    "no labels": (of(train_set_y=None), ["'train_set_y'", "the file has test_set_x, test_set_y, train_set_x"]),
    "labels too few": (of(train_set_y=TWO[:29]), ["train_set_x has 30 examples", "train_set_y has 29 labels"]),
    "no examples": (of(train_set_x=X[:0], train_set_y=TWO[:0]), ["empty set"]),
    "no features": (of(train_set_x=X[:30, :0]), ["(examples, features)", "(30, 0)"]),
    "a row": (of(train_set_x=X[:30, 0]), ["(examples, features)", "(30,)"]),
    "a number": (of(train_set_x=1.5), ["train_set_x", "single value"]),
    "nan": (spoilt("train_set_x", np.nan), ["X: ", "finite", "nan", "example 3, feature 2", "remove or fill"]),
    "infinity": (spoilt("train_set_x", -np.inf), ["X: ", "finite", "-inf", "example 3, feature 2"]),
    "objects": (
        of(train_set_x=np.array([["a", "b"]] * 30, h5py.string_dtype())),
        ["train_set_x", "expected numbers", "object"],
    ),
    "text as numbers": (of(train_set_x=np.array([[b"1", b"2"]] * 30)), ["train_set_x", "expected numbers", "S1"]),
    "text as labels": (of(train_set_y=np.array([b"cat"] * 30)), ["train_set_y", "expected numbers", "S3"]),
    "a group": (group, ["'train_set_x' is a group", "train_set_x/all"]),
    "lying labels": (of(train_set_y=TWO[None, :30]), ["train_set_y", "(1, 30)", "store it transposed, as (30,)"]),
    "lying classes": (of(train_set_y=THREE[None, :30]), ["train_set_y", "(1, 30)", "store it transposed"]),
    "lying one-hot labels": (of(train_set_y=np.eye(3)[THREE[:30]].T), ["(3, 30)", "store it transposed, as (30, 3)"]),
    "lying examples": (of(train_set_x=X[:30].T), ["train_set_x", "(4, 30) for 30 labels", "store it transposed"]),
    "all lying": (
        of(train_set_x=X[:30].T, train_set_y=TWO[None, :30]),
        ["train_set_x", "(4, 30)", "store it transposed, and train_set_y too"],
    ),
    "a cube of labels": (of(train_set_y=TWO[:30, None, None]), ["Y", "(30, 1, 1)"]),
    "a negative class": (of(train_set_y=TWO[:30] * 2 - 1), ["class numbers from 0 up", "got -1", "--output linear"]),
    "one class": (of(train_set_y=TWO[:30] * 0), ["all labels are 0", "at least two classes"]),
    "outside the classes": (
        of(train_set_y=THREE[:30], list_classes=np.array([b"cat", b"dog"])),
        ["label 2", "list_classes names 2"],
    ),
    "one name for two": (of(list_classes=np.array([b"cat"])), ["label 1", "list_classes names 1"]),
    "prices": (
        of(train_set_y=THREE[:30] * 250_000),
        ["500000", "30 examples", "do not look like class numbers", "--output linear"],
    ),
    "huge classes": (
        of(train_set_y=THREE[:30].astype("u8") * np.uint64(2**63 - 1)),
        ["do not look like class numbers", "--output linear"],
    ),
    "values not finite": (of(train_set_y=np.where(TWO[:30], np.nan, 0.5)), ["Y", "finite", "nan"]),
    "names in a table": (of(list_classes=np.array([[b"a", b"b"]])), ["list_classes", "one name per class", "(1, 2)"]),
    "an external link": (linked(h5py.ExternalLink("secret.h5", "x")), ["train_set_x", "link to elsewhere", "refused"]),
    "a soft link": (linked(h5py.SoftLink("/here")), ["train_set_x", "link to elsewhere", "refused"]),
    "a virtual data set": (virtual, ["train_set_x", "in another file", "refused"]),
    "declared": (declared((10**12, 4)), ["train_set_x", "(1000000000000, 4)", "ever written"]),
    "wide": (declared((30, 10**12)), ["train_set_x", "(30, 1000000000000)", "ever written"]),
    "damage in X": (late_damage("train_set_x"), ["X", "damaged"]),
    "damage in Y": (late_damage("train_set_y"), ["train_set_y", "damaged"]),
    "test nan": (spoilt("test_set_x", np.nan), ["X_test", "finite", "nan", "example 3"]),
    "test features": (of(test_set_x=X[30:, :3]), ["layer 1", "X_test", "(10, 3)", "(64, 4)", "give 4 features"]),
    "test labels": (of(test_set_y=THREE[30:]), ["Y_test", "labels 0 and 1", "got 2"]),
    "test unlabelled": (of(test_set_y=None), ["'test_set_y'", "the file has"]),
    "test lying labels": (of(test_set_y=TWO[None, 30:]), ["test_set_y", "(1, 10)", "store it transposed, as (10,)"]),
    "test bytes": (of(test_set_x=X[30:].astype(bool).astype("u1")), ["X_test is uint8", "X is float32", "alike"]),
    "test images": (
        of(train_set_x=np.ones((30, 2, 3, 4)), test_set_x=np.ones((10, 4, 2, 3))),
        ["X_test", "(2, 3, 4)", "(4, 2, 3)", "transpose"],
    ),
    "test damage": (late_damage("test_set_x"), ["X_test", "damaged"]),
}


@pytest.mark.parametrize("bad", NO_FILES | NO_DATA)
def test_bad_data_is_reported_before_training_and_leaves_the_old_model_unchanged(bad, run: Run, monkeypatch):
    make, words = (NO_FILES | NO_DATA)[bad]
    make("bad.h5")
    Path("old").mkdir()
    Path("old/model.h5").write_bytes(b"the old model")
    Path("old/history.csv").write_bytes(b"its history")
    monkeypatch.setattr("dnn.training.Epochs", None)
    before = contents()
    for out in (["--out", "old", "--force"], ["--out", "new"], []):
        one_complaint(run("train", "bad.h5", "--quiet", *out), 3, *words)
        assert contents() == before


@pytest.mark.parametrize("bad", NO_FILES)
def test_evaluate_and_predict_refuse_invalid_data_files(bad, run: Run):
    make, words = NO_FILES[bad]
    path = model(run)
    make("bad.h5")
    before = contents()
    one_complaint(run("evaluate", path, "bad.h5", "--quiet"), 3, "bad.h5", *words)
    one_complaint(run("predict", path, "bad.h5", "--quiet", "--out", "p.csv"), 3, "bad.h5", *words)
    one_complaint(run("train", "data.h5", "--test", "bad.h5", "--quiet", "--out", "new"), 3, "bad.h5", *words)
    assert contents() == before


def array(values: Any):
    return lambda path: np.save(path, values, allow_pickle=True)


def half_an_array(path: str) -> None:
    np.save(path, X)
    Path(path).write_bytes(Path(path).read_bytes()[:300])


def zipped(path: str) -> None:
    with open(path, "wb") as file:
        np.savez(file, x=X)


NO_ARRAYS = {name: (make, words) for name, (make, words) in NO_FILES.items() if name not in ("text", "truncated")} | {
    "text": (raw(b"1,2,3,4"), ["not a .npy file", "numpy.save"]),
    "zipped": (zipped, ["not a .npy file"]),
    "half": (half_an_array, ["expected a complete, plain array"]),
    "a broken head": (raw(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}"), ["expected a complete, plain array"]),
    "objects": (array(np.array([[1, None]])), ["expected a complete, plain array", "allow_pickle"]),
    "words": (array(np.array([["a", "b", "c", "d"]])), ["X", "expected numbers", "<U1"]),
    "three features": (array(X[:, :3]), ["layer 1", "X", "(40, 3)", "(5, 4)", "give 4 features"]),
    "one example": (array(X[0]), ["X", "(4,)", "reshape(1, -1)"]),
    "none": (array(X[:0]), ["X", "at least one example"]),
    "nan": (array(np.where(X[2, 1] == X, np.nan, X)), ["X", "nan", "example 2, feature 1"]),
    "bytes": (array(np.ones((2, 4), np.uint8)), ["X", "other than bytes, unscaled", "uint8", "convert X"]),
}


@pytest.mark.parametrize("bad", NO_ARRAYS)
def test_predict_refuses_invalid_arrays(bad, run: Run):
    make, words = NO_ARRAYS[bad]
    path = model(run)
    make("bad.npy")
    before = contents()
    one_complaint(run("predict", path, "bad.npy", "--quiet", "--out", "new/p.csv"), 3, *words)
    assert contents() == before


def test_an_array_cannot_make_predict_run_code(run: Run):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    path = model(run)
    np.save("bad.npy", np.array([Bomb()], object), allow_pickle=True)
    one_complaint(run("predict", path, "bad.npy", "--quiet"), 3, "bad.npy", "plain array")
    assert not Path("exploded").exists()


def test_wrong_features_and_wrong_bytes_are_refused_at_evaluate_and_predict(run: Run):
    path = model(run)
    for bad, words in (
        (X[:, :3], ["layer 1", "X", "(40, 3)", "W1 (5, 4)", "give 4 features"]),
        (np.ones((40, 4), np.uint8), ["trained on numbers other than bytes", "uint8"]),
    ):
        data = write("other.h5", test_set_x=bad, test_set_y=TWO)
        one_complaint(run("evaluate", path, data, "--quiet"), 3, *words)
        one_complaint(run("predict", path, data, "--quiet"), 3, *words)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_part_is_reported(split, run: Run):
    path = model(run)
    other = {"train": "test", "test": "train"}[split]
    data = write("half.h5", **{f"{other}_set_x": X, f"{other}_set_y": TWO})
    for command in ("evaluate", "predict"):
        one_complaint(run(command, path, data, "--split", split, "--quiet"), 3, "half.h5", f"no {split} part")


def test_names_from_a_file_cannot_break_the_line_or_control_the_terminal(run: Run):
    write("bad.h5", **{"a\nb\x1b[2J": X})
    one_complaint(run("train", "bad.h5", "--quiet"), 3, "the file has a\\nb\\x1b[2J;")


# --------------------------------------------------------------------------------------- bad model files


def wrong_shape(path: str) -> None:
    with h5py.File(path, "r+") as file:
        del file["parameters/W2"]
        file["parameters/W2"] = np.zeros((5, 1), "f4")


def newer(path: str) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs.update({"format_version": 4, "needs": np.bytes_("layers, attention")})


def huge_classes(path: str) -> None:
    with h5py.File(path, "r+") as file:
        file.create_dataset("classes", (2,), "S1000000000")


def endless_scale(path: str) -> None:
    with h5py.File(path, "r+") as file:
        architecture = json.loads(file["architecture"][()]) | {"input_scale": 10**400}
        del file["architecture"]
        file["architecture"] = np.bytes_(json.dumps(architecture))


def data_instead(path: str) -> None:
    two_parts(path)


BAD_MODELS = {
    name: (lambda path, make=make: (os.unlink(path), make(path)), words) for name, (make, words) in NO_FILES.items()
} | {
    "a data file": (data_instead, ["not a model of dnn"]),
    "newer": (newer, ["needs attention", "use the dnn version that wrote it"]),
    "wrong shape": (wrong_shape, ["layer 2", "parameters/W2", "(5, 1)", "(1, 5)", "save the model again"]),
    "huge classes": (huge_classes, ["classes", "not stored in full"]),
    "endless scale": (endless_scale, ["architecture cannot be used"]),
}


@pytest.mark.parametrize("bad", BAD_MODELS)
def test_a_bad_model_file_is_reported_in_one_line(bad, run: Run):
    make, words = BAD_MODELS[bad]
    path = model(run)
    make(path)
    before = contents()
    one_complaint(run("evaluate", path, "data.h5", "--quiet"), 4, path, *words)
    one_complaint(run("predict", path, "data.h5", "--quiet", "--out", "p.csv"), 4, path, *words)
    assert contents() == before


# ------------------------------------------------------------------------------ backends, losses, outputs


def test_an_unknown_backend_is_reported_with_the_choices(run: Run, monkeypatch):
    path = model(run)
    before = contents()
    commands = (["train", "data.h5"], ["evaluate", path, "data.h5"], ["predict", path, "data.h5"])
    for command in commands:
        one_complaint(run(*command, "--backend", "cuda", "--quiet"), 5, "'cuda'", "numpy, cupy", "auto")
    monkeypatch.setenv("DNN_BACKEND", "tpu")
    for command in commands:
        one_complaint(run(*command, "--quiet"), 5, "'tpu'", "numpy, cupy", "DNN_BACKEND")
    assert contents() == before


def test_cupy_without_a_gpu_is_reported_with_what_is_missing(run: Run):
    if "cupy" in backends.available_backends():
        pytest.skip("there is a GPU that cupy can use: nothing to complain of")
    two_parts()
    before = contents()
    ran = run("train", "data.h5", "--backend", "cupy", "--quiet")
    one_complaint(ran, 5, "cupy")
    assert any(word in ran.err for word in ("wheel", "driver", "device"))
    assert contents() == before


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_non_finite_loss_ends_the_training(optimizer, epochs, run: Run):
    """With one epoch, the last update makes the weights non-finite, which no training loss shows."""
    path = model(run)
    before = contents()
    flags = ["--learning-rate", 1e38, "--optimizer", optimizer, "--epochs", epochs, "--quiet", "--force"]
    for out in ("trained", "new"):
        ran = run("train", "data.h5", "--out", out, *flags)
        one_complaint(ran, 6, "loss", "learning rate", *(["it began in step 1 of epoch 2, "] if epochs > 1 else []))
        assert "nan" in ran.err or "inf" in ran.err
    left = {"new", "new/checkpoint-000001.h5", "trained/checkpoint-000001.h5"}
    after = contents()
    assert after.keys() - before.keys() == left, "the weights after one epoch are finite, though no answer is"
    assert dnn.load("new/checkpoint-000001.h5").epochs == 1
    assert {name: content for name, content in after.items() if name not in left} == before and dnn.load(path)


def test_evaluate_reports_a_non_finite_loss_as_an_error(run: Run):
    network = dnn.Network([4, 1], output="linear")
    network.parameters["W1"] = np.full((1, 4), 3e38)
    network.save("model.h5")
    data = write("data.h5", test_set_x=X, test_set_y=VALUES)
    one_complaint(run("evaluate", "model.h5", data, "--json", "--quiet"), 6, "the loss is", "the weights 3e+38")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("data.h5", ["data.h5 is not a folder"]),
        ("data.h5/sub/folder", ["data.h5 is not a folder"]),
        ("/dev/full", ["/dev/full is not a folder"]),
        ("folder", ["folder/model.h5: is a folder"]),
        ("x" * 300, ["cannot be written", "too long"]),
    ],
)
def test_an_unwritable_output_is_reported_before_training(out, words, run: Run, monkeypatch):
    two_parts()
    Path("folder/model.h5").mkdir(parents=True)
    monkeypatch.setattr("dnn.network.Network.fit", None)
    before = contents()
    one_complaint(run("train", "data.h5", "--out", out, "--force", "--quiet"), 7, *words)
    assert contents() == before


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("/dev/full", ["/dev/full", "No space left"]),
        ("data.h5/p.csv", ["data.h5 is not a folder"]),
        ("folder", ["folder: is a folder", "name a file"]),
        ("", ["cannot be written"]),
    ],
)
def test_unwritable_predictions_are_reported(out, words, run: Run):
    path = model(run)
    Path("folder").mkdir()
    before = contents()
    one_complaint(run("predict", path, "data.h5", "--out", out, "--quiet"), 7, *words)
    assert contents() == before
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_model_and_nothing_else(failing, run: Run, monkeypatch):
    model(run)
    before = contents()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"dnn.files.os.{failing}", no_space)
        for out in ("trained", "new/folder"):
            ran = run("train", "data.h5", "--out", out, "--force", "--quiet", "--epochs", 1)
            one_complaint(ran, 7, out, "cannot be written", "No space left on device")
    assert contents() == before


def test_an_unexpected_error_takes_one_line_and_debug_shows_the_traceback(run: Run, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("dnn.network.Network.fit", broken)
    one_complaint(run("train", two_parts(), "--quiet"), 1, "RuntimeError", "two\\nlines", "--debug")
    ran = run("train", "data.h5", "--quiet", "--debug")
    assert ran.code == 1 and "Traceback" in ran.err and "in broken" in ran.err
    ran = run("train", "missing.h5", "--quiet", "--debug")
    assert ran.code == 3 and "Traceback" in ran.err and ran.err.endswith("missing.h5: no such file\n")


def test_insufficient_memory_is_reported_in_one_line(run: Run, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 EiB")

    monkeypatch.setattr("dnn.network.Network.fit", full)
    one_complaint(run("train", two_parts(), "--quiet"), 5, "not enough memory", "9 EiB")


# ------------------------------------------------------------------------------- in a separate process


def test_the_three_commands_as_processes_keep_data_and_messages_apart():
    ran = run_child("train", two_parts(labels=THREE), "--epochs", 2, "--json")
    assert ran.err.startswith("backend numpy, CPU (") and "epoch 2/2" in ran.err
    summary = ran.summary()
    ran = run_child("evaluate", summary["model"], "data.h5", "--json", "--quiet")
    assert ran.summary()["loss"] == summary["test"]["loss"] and ran.err == ""
    ran = run_child("predict", summary["model"], "data.h5", "--quiet")
    assert len(ran.rows()) == 11 and ran.err == ""
    ran = run_child("evaluate", summary["model"], "missing.h5", "--quiet")
    one_complaint(ran, 3, "missing.h5: no such file")


def test_the_choice_of_auto_is_reported_unless_quiet():
    two_parts()
    ran = run_child("train", "data.h5", "--backend", "auto", "--epochs", 1)
    assert ran.code == 0 and "auto selects " in ran.err.splitlines()[0]
    quiet = run_child("train", "data.h5", "--backend", "auto", "--epochs", 1, "--quiet", "--force")
    assert (quiet.code, quiet.err) == (0, "")


def test_ctrl_c_ends_a_training_with_130_and_leaves_a_checkpoint():
    two_parts()
    # a shell that runs the tests in the background makes them ignore the signal, and children inherit that
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with child("train", "data.h5", "--epochs", 10**8, first=first) as process:
        for line in process.stderr:
            if line.startswith("epoch 1/"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and err.splitlines()[-1] == "dnn: interrupted" and "Traceback" not in err
    assert os.listdir("runs/data") == ["checkpoint-000001.h5"]


@pytest.mark.parametrize("out", ["trained", "new"])
def test_a_file_size_limit_leaves_the_old_model_and_nothing_else(out, run: Run):
    model(run)
    before = contents()
    first = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    flags = ["--hidden", "200,200", "--epochs", 1, "--force", "--quiet"]
    ran = run_child("train", "data.h5", "--out", out, *flags, first=first)
    one_complaint(ran, 7, f"{out}/model.h5: cannot be written", "File too large")
    assert contents() == before


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_reported_once(unbuffered, run: Run):
    path = model(run)
    with open("/dev/full", "w") as full:
        for command in (["evaluate", path, "data.h5"], ["predict", path, "data.h5"]):
            ran = run_child(*command, "--quiet", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
            one_complaint(ran, 7, "standard output", "No space left")


@covering("arguments, unbuffered", [["--version"], ["--help"], ["predict", "--help"]], ["", "1"])
def test_help_and_version_on_a_full_stdout_are_reported_once(arguments, unbuffered):
    with open("/dev/full", "w") as full:
        ran = run_child(*arguments, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    one_complaint(ran, 7, "standard output", "No space left")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_stdout_that_fills_up_midway_is_an_error(unbuffered, run: Run):
    """Unbuffered, Python ignores a partial write."""
    path = model(run)
    np.save("x.npy", np.tile(X, (100, 1)))
    first = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    with open("p.csv", "w") as file:
        environment = {"PYTHONUNBUFFERED": unbuffered}
        ran = run_child("predict", path, "x.npy", "--quiet", first=first, stdout=file, env=environment)
    one_complaint(ran, 7, "standard output", "File too large")


def in_a_pipe(command: str, reader: str, **environment: str) -> Ran:
    """Run `dnn COMMAND | READER`; the status is that of dnn."""
    dnn = f"{shlex.quote(sys.executable)} -m dnn"
    done = subprocess.run(
        ["bash", "-c", f"{dnn} {command} | {reader}; exit ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | environment,
        capture_output=True,
        text=True,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_gets_its_lines_and_there_is_no_complaint(unbuffered, run: Run):
    path = model(run)
    np.save("x.npy", np.tile(X, (500, 1)))
    ran = in_a_pipe(f"predict {path} x.npy --quiet", "head -1", PYTHONUNBUFFERED=unbuffered)
    assert ran == (141, "index,class,name,probability\n", "")


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "train data.h5 --json --quiet",
        "evaluate m.h5 data.h5 --quiet",
        # the same way out
        *(pytest.param(also, marks=pytest.mark.slow) for also in ("train --help", "--version", "doctor")),
    ],
)
def test_no_command_complains_of_a_reader_that_has_left(command, run: Run):
    two_parts()
    dnn.Network([4, 1]).save("m.h5")
    assert in_a_pipe(command, "true")[1:] == ("", "")  # it may also have been read before: then the status is 0
    assert in_a_pipe(f"{command} 2>&1", "true", PYTHONUNBUFFERED="1")[1:] == ("", "")
    if command.startswith("train data"):
        assert dnn.load("runs/data/model.h5").epochs == 20


@covering("command, unbuffered", ["evaluate missing.h5 x.h5", "train missing.h5", "train --nope"], ["", "1"])
def test_an_error_that_nobody_reads_keeps_its_status(command, unbuffered):
    status = {"evaluate missing.h5 x.h5": 4, "train missing.h5": 3, "train --nope": 2}[command]
    assert in_a_pipe(f"{command} 2>&1", "true", PYTHONUNBUFFERED=unbuffered) == (status, "", "")


def test_a_training_survives_the_reader_of_its_messages():
    two_parts()
    ran = in_a_pipe("train data.h5 --epochs 3 2>&1 >out.txt", "true")
    assert ran == (0, "", "") and Path("out.txt").read_text().startswith("train: loss")


def test_closed_streams_do_not_crash_and_messages_never_go_to_stdout(run: Run):
    path = model(run)
    expected = run("predict", path, "data.h5").out
    shell = [sys.executable, "-m", "dnn", "predict", path, "data.h5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", '"$@" 2>&-', "sh", *shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, expected)
    command = ["sh", "-c", '"$@" --quiet >&-', "sh", *shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    one_complaint(Ran(done.returncode, done.stdout, done.stderr), 7, "standard output", "closed")


def test_names_that_the_terminal_cannot_encode_are_escaped(run: Run):
    data = two_parts(list_classes=np.array([b"chien", "été".encode()]))
    path = model(run, data)
    ran = run_child("predict", path, data, "--quiet", env={"PYTHONIOENCODING": "ascii"})
    assert {row[2] for row in ran.rows()[1:]} <= {"chien", "\\xe9t\\xe9"} and len(ran.rows()) == 11


def test_a_file_being_written_by_another_program_is_reported_as_such():
    two_parts()
    with h5py.File("data.h5", "r+"):
        ran = run_child("train", "data.h5", "--quiet", env={"HDF5_USE_FILE_LOCKING": "TRUE"})
    one_complaint(ran, 3, "data.h5", "another program writes it")


def test_the_number_of_threads_applies_only_during_the_command(run: Run, monkeypatch):
    from dnn.backends.codegen import threads

    seen, evaluate = [], dnn.Network.evaluate

    @functools.wraps(evaluate)  # whose defaults are those of the flags
    def noting(network, *data, **settings):
        seen.append(threads.number_of_threads())
        return evaluate(network, *data, **settings)

    monkeypatch.setattr(dnn.Network, "evaluate", noting)
    monkeypatch.setattr(threads, "available_cores", lambda root=None: 8)
    monkeypatch.setenv("DNN_NUM_THREADS", "5")
    path = model(run, None, "--threads", 3)
    assert run("evaluate", path, "data.h5", "--threads", 2).code == 0
    assert run("evaluate", path, "data.h5").code == 0
    assert seen == [3, 3, 2, 5] and os.environ["DNN_NUM_THREADS"] == "5"
    one_complaint(run("evaluate", path, "data.h5", "--threads", "none"), 2, "expected a whole number of at least 1")
