"""Every setting of the Python face is a flag of the same name, and reaches it."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dnn
from dnn.backends import use_compiled_steps
from dnn.cli import build, evaluate, main, train
from dnn.metrics import Pinball, TopK

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((40, 4)).astype(np.float32)
TWO = (X.sum(axis=1) > 0).astype(np.int64)
THREE = np.digitize(X[:, 0], [-0.4, 0.4])
VALUES = X @ np.array([1, -2, 0.5, 0]) + 1.0
COUNTS = GENERATOR.poisson(np.exp(X[:, 0]))
LABELS = np.column_stack([TWO, 1 - THREE % 2, X[:, 3] > 0]).astype(np.int64)

Run = Callable[..., str]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its standard output, or with `code` what it complains of."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = left.code  # type: ignore[assignment]
        out, err = capsys.readouterr()
        assert status == code, (out, err)
        return err if code else out

    return run


def data(labels: np.ndarray, **more: Any) -> str:
    with h5py.File("data.h5", "w") as file:
        parts = {"train_set_x": X[:30], "train_set_y": labels[:30], "test_set_x": X[30:], "test_set_y": labels[30:]}
        for name, values in (parts | more).items():
            file[name] = values
    return "data.h5"


def trained(run: Run, labels: np.ndarray, *flags: object, **more: Any) -> dict[str, Any]:
    """The summary of two epochs, unless the flags say otherwise."""
    data(labels, **more)
    out = run("train", "data.h5", "--epochs", 2, "--hidden", 5, "--out", "out", "--json", "--quiet", "--force", *flags)
    return json.loads(out)


def rows_of(out: str) -> tuple[list[str], np.ndarray]:
    header, *rows = csv.reader(out.splitlines())
    return header, np.array(rows)


# ------------------------------------------------------------------------- every setting has its flag

NETWORK_EXCEPTIONS = {
    "self": "",
    "layer_sizes": "--hidden; inputs and outputs follow from the data",
    "layers": "objects of Python; --numerical-embedding puts one in front",
    "schema": "learned from a table: --scaling, --drop, --categories",
}
FIT_EXCEPTIONS = {
    "validation_data": "a part of the file: --validation-split",
    "sample_weight": "an array, and the data files have none",
    "callbacks": "functions of Python",
    "verbose": "--quiet",
    "checkpoint": "--out",
}
EVALUATE_EXCEPTIONS = {"self": "", "X": "the file", "Y": "the file", "sample_weight": FIT_EXCEPTIONS["sample_weight"]}


def flags_of(command: Any) -> set[str]:
    commands = argparse.ArgumentParser().add_subparsers()
    command.add(commands)
    (parser,) = commands.choices.values()
    return {action.dest for action in parser._actions if action.option_strings}


@pytest.mark.parametrize(
    ("command", "settings", "exceptions"),
    [
        (train, list(inspect.signature(dnn.Network.__init__).parameters), NETWORK_EXCEPTIONS),
        (train, [field.name for field in fields(dnn.FitSettings)], FIT_EXCEPTIONS),
        (evaluate, list(inspect.signature(dnn.Network.evaluate).parameters), EVALUATE_EXCEPTIONS),
    ],
)
def test_every_setting_is_a_flag_or_an_exception_with_a_reason(command, settings, exceptions):
    assert set(settings) - flags_of(command) == set(exceptions)


def test_the_defaults_are_pythons(run: Run):
    trained(run, TWO, "--epochs", 20, "--hidden", 64)
    network = dnn.Network([4, 64, 1])
    network.fit(X[:30], TWO[:30])
    np.testing.assert_array_equal(dnn.load("out/model.h5").parameters.flat, network.parameters.flat)


# --------------------------------------------------------------------------------- and has its effect

LAYERS = [dnn.NumericalEmbedding("periodic", size=3), dnn.Dense(5, "tanh"), dnn.Dropout(0.2), dnn.Dense(1)]
CASES: dict[str, tuple[np.ndarray, str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "regularization": (
        TWO,
        "--hidden 6,5 --activation tanh,gelu --dropout 0.1,0 --norm batch,none --initializer he_uniform,0.1,orthogonal "
        "--seed 3 --dtype float64 --input-scale 0.5 --l1 0.01 --l2 0.02 --clip-norm 1 --clip-value 0.5 --max-norm 2 "
        "--accumulate 2 --batch-size 10 --moving-average 0.9 --class-weight 0=1,1=5 --no-shuffle",
        ([4, 6, 5, 1],),
        {
            "activation": ["tanh", "gelu"],
            "dropout": [0.1, 0],
            "norm": ["batch", None],
            "initializer": ["he_uniform", 0.1, "orthogonal"],
            "seed": 3,
            "dtype": "float64",
            "input_scale": 0.5,
        },
        {
            "l1": 0.01,
            "l2": 0.02,
            "clip_norm": 1,
            "clip_value": 0.5,
            "max_norm": 2,
            "accumulate": 2,
            "batch_size": 10,
            "moving_average": 0.9,
            "class_weight": {0: 1, 1: 5},
            "shuffle": False,
        },
    ),
    "optimizer": (
        THREE,
        "--optimizer adamw(beta2=0.95,factors={'b':2.0}) --learning-rate 0.02 --weight-decay 0.03 --class-weight "
        "balanced --schedule cosine(warmup=1,end=0.01) --weight-decay-schedule step(every=1) --validation-split 0.2 "
        "--loss softmax_cross_entropy(label_smoothing=0.1) --early-stopping 1 --metrics top_k(k=2),f1 --batch-size 8",
        ([4, 5, 3],),
        {"output": "softmax", "loss": dnn.SoftmaxCrossEntropy(0.1)},
        {
            "optimizer": dnn.AdamW(0.02, beta2=0.95, weight_decay=0.03, factors={"b": 2.0}),
            "class_weight": "balanced",
            "schedule": dnn.Cosine(warmup=1, end=0.01),
            "weight_decay_schedule": dnn.StepDecay(every=1),
            "validation_split": 0.2,
            "early_stopping": 1,
            "metrics": [TopK(2), "f1"],
            "batch_size": 8,
        },
    ),
    "members": (
        VALUES,
        "--members 3 --shared tabm --input-scale robust --target-scale standard --schedule plateau(monitor='loss')",
        ([4, 5, 1],),
        {"output": "linear", "members": 3, "shared": "tabm", "input_scale": "robust", "target_scale": "standard"},
        {"schedule": dnn.ReduceOnPlateau(monitor="loss")},
    ),
    "embedding": (
        np.where(TWO > 0, VALUES, np.nan),
        "--numerical-embedding periodic(size=3) --activation tanh --dropout 0.2 --missing-targets mask --loss huber",
        (4, LAYERS),
        {"output": "linear", "loss": "huber"},
        {"missing_targets": "mask"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_flags_train_the_network_that_python_trains(case, run: Run):
    labels, flags, sizes, of_network, of_fit = CASES[case]
    use_compiled_steps(False)  # a setting lost on the way would show either way
    summary = trained(run, labels, *flags.split())
    network = dnn.Network(*sizes, **of_network)
    history = network.fit(X[:30], labels[:30], epochs=2, verbose=False, **of_fit)
    found = dnn.load("out/model.h5")
    np.testing.assert_array_equal(found.parameters.flat, network.parameters.flat)
    assert repr(found) == repr(network) and found.loss_function == network.loss_function
    given = {name: of_fit[name] for name in ("metrics", "missing_targets") if name in of_fit}
    assert summary["test"] == network.evaluate(X[30:], labels[30:], **given)
    assert summary["best_epoch"] == history.best_epoch
    rows = list(csv.DictReader(Path("out/history.csv").read_text().splitlines()))
    assert {name: [float(row[name]) for row in rows] for name in history.history} == history.history


OF_A_COMMAND = {
    "help",
    "x",
    "y",
    "out",
    "force",
    "json",
    "quiet",
    "debug",
    "resume",
    "checkpoint_every",
    "training_state",
}
"""Flags that change nothing of what is trained."""


def test_the_summary_lists_every_setting_and_the_configurations_in_full(run: Run):
    flags = "--optimizer lion(beta1=0.8) --learning-rate 0.01 --early-stopping 3 --validation-split 0.5 --metrics f1"
    settings = trained(run, TWO, *flags.split(), "--schedule", "cosine")["settings"]
    assert settings.keys() == flags_of(train) - OF_A_COMMAND | {"data"}
    lion = {"name": "lion", "learning_rate": 0.01, "weight_decay": 0.0, "factors": [], "beta1": 0.8, "beta2": 0.99}
    assert settings["optimizer"] == lion and settings["learning_rate"] == 0.01 and settings["weight_decay"] == 0
    assert settings["schedule"]["name"] == "cosine" and settings["early_stopping"]["patience"] == 3
    assert settings["loss"] == "sigmoid_cross_entropy" and settings["metrics"] == ["f1"]


def test_the_summary_says_which_epoch_early_stopping_restored(run: Run):
    flags = ["--epochs", 9, "--early-stopping", "early_stopping(monitor='val_f1', patience=1)", "--metrics", "f1"]
    flags += ["--validation-split", 0.3, "--learning-rate", 0]
    assert trained(run, TWO, *flags)["best_epoch"] == 1
    out = run("train", "data.h5", "--quiet", *flags)
    assert "early stopping: restored epoch 1 of 2\n" in out


# ------------------------------------------------------------------------------------------- the syntax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adam", dnn.Adam()),
        ("adam()", dnn.Adam()),
        (" adamw( beta2=0.95, weight_decay=2e-2 ) ", dnn.AdamW(beta2=0.95, weight_decay=0.02)),
        ("sgd(factors={'b': (1.0, 0.0)})", dnn.SGD(factors={"b": (1.0, 0.0)})),
    ],
)
def test_a_call_is_read(text, expected):
    assert build.optimizer(text) == expected


def test_the_other_configurations_are_read():
    assert build.loss("quantile(quantiles=[0.1, 0.5])") == dnn.Quantile((0.1, 0.5))
    assert build.loss("huber") == dnn.Huber()
    assert build.schedule("one_cycle(warmup=0.2)") == dnn.OneCycle(warmup=0.2)
    assert build.early_stopping("7") == dnn.EarlyStopping(patience=7)
    assert build.early_stopping("early_stopping") == dnn.EarlyStopping()
    assert build.early_stopping("early_stopping(min_delta=-0.0, maximize=True)") == dnn.EarlyStopping(maximize=True)
    assert build.embedding("periodic(size=3)") == dnn.NumericalEmbedding("periodic", size=3)
    assert build.metrics("f1, top_k(k=2),pinball(quantile=0.1)") == ["f1", TopK(2), Pinball(0.1)]
    assert build.class_weight("a=1,1=0.5") == {"a": 1, 1: 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "adam(",
        "adam)(",
        "adam(0.1)",
        "adam(beta1=0.9, beta1=0.8)",
        "adam(**{'beta1': 0.9})",
        "adam(*[1])",
        "adam(beta1)",
        "adam(beta1=0.9) + 1",
        "adam(beta1=0.9)(beta2=0.9)",
        "dnn.adam(beta1=0.9)",
        "adam(__import__('os'))",
        "adam(beta1=__import__('os').getpid())",
        "adam(beta1=[0 for _ in (1,)])",
        "adam(beta1=9**9)",
        "adam(beta1=(lambda: 0.9)())",
        "adam(factors={[]: 1})",
        f"adam(beta1={'(' * 5000}",
        f"adam(beta1={'-' * 100000}1)",
        "adam(beta1=\0)",
    ],
)
def test_what_is_no_call_with_literals_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a name or name\(setting=value"):
        build.optimizer(text)


# ------------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--optimizer adma", ["--optimizer", "'adma'", "'adam'"]),
        ("--optimizer adma(beta1=0.9)", ["--optimizer", "'adma'", "'adam'"]),
        ("--optimizer adam(beta3=1)", ["--optimizer", "adam has no setting 'beta3'", "beta2"]),
        ("--optimizer adam(beta1=2)", ["--optimizer", "beta1 must be at least 0 and below 1, got 2"]),
        ("--schedule cosin", ["--schedule", "'cosin'", "'cosine'"]),
        ("--schedule cosine(warmup=99)", ["Cosine: warmup must be below", "got 99"]),
        ("--loss hubr(delta=1)", ["--loss", "'hubr'", "'huber'"]),
        ("--loss huber(dleta=1)", ["--loss", "'dleta'", "delta"]),
        ("--loss focal(gamma='x')", ["--loss", "gamma must be a number, got 'x'"]),
        ("--early-stopping ten", ["--early-stopping", "'ten'"]),
        ("--numerical-embedding perodic", ["--numerical-embedding", "periodic", "'perodic'"]),
        ("--metrics rocauc", ["'rocauc'", "'roc_auc'"]),
        ("--metrics top_k(q=1)", ["--metrics", "'q'", "k"]),
        ("--metrics mae", ["mae is not for a sigmoid output"]),
        ("--activation rleu", ["--activation", "'rleu'", "relu"]),
        ("--activation relu,tanh", ["--activation", "1", "2"]),
        ("--norm btach", ["--norm", "'btach'", "batch"]),
        ("--dropout 2", ["--dropout", "below 1, got 2"]),
        ("--initializer he", ["--initializer", "'he'"]),
        ("--input-scale standrd", ["--input-scale", "'standrd'", "standard"]),
        ("--output sigmoid --target-scale standard", ["target_scale", "sigmoid"]),
        ("--members 0", ["--members", "at least 1, got 0"]),
        ("--shared tab", ["--shared", "'tab'", "tabm"]),
        ("--dtype float16", ["--dtype", "float32", "'float16'"]),
        ("--precision fp16", ["--precision", "'fp16'"]),
        ("--l1 -1", ["--l1", "at least 0, got -1.0"]),
        ("--moving-average 1", ["--moving-average", "below 1, got 1.0"]),
        ("--missing-targets x", ["--missing-targets", "error, mask", "'x'"]),
        ("--class-weight balance", ["--class-weight", "'balance'", "balanced"]),
        ("--class-weight 0=x", ["class_weight[0]", "'x'"]),
        ("--class-weight 7=1", ["class_weight", "from 0 to 1", "got 7"]),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(flags, words, run: Run):
    data(TWO)
    err = run("train", "data.h5", "--quiet", *flags.split(), code=2)
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert [path.name for path in Path().iterdir()] == ["data.h5"]


def test_the_help_has_groups_with_a_line_a_flag(run: Run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = run("train", "--help").splitlines()
    assert [line[:-1] for line in lines if line in ("data:", "network:", "optimizer:", "training:", "output:")] == [
        "data", "network", "optimizer", "training", "output"
    ]  # fmt: skip
    (last,) = (i for i, line in enumerate(lines) if line.startswith("  --debug"))
    flags = lines[lines.index("data:") : last]
    long = [line for line in flags if not (line.startswith("  -") or line.endswith(":") or not line)]
    assert [line.split()[0] for line in long] == ["DATA.h5|.csv|.parquet", "keep"]  # below --no-training-state


# ----------------------------------------------------------------------- the data decides the outputs


@pytest.mark.parametrize(
    ("labels", "loss", "units", "columns"),
    [
        (VALUES, "gaussian_nll", 2, ["value", "variance"]),
        (VALUES, "quantile(quantiles=[0.1,0.5])", 2, ["q0.1", "q0.5"]),
        (COUNTS, "poisson", 1, ["value"]),
        (np.column_stack([VALUES, -VALUES]), "gaussian_nll", 4, ["value_0", "variance_0", "value_1", "variance_1"]),
        (np.column_stack([VALUES, -VALUES]), "quantile(quantiles=[0.5])", 2, ["q0.5_0", "q0.5_1"]),
        (LABELS, "focal(gamma=1)", 3, ["0", "1", "2"]),
    ],
)
def test_each_target_has_the_outputs_of_the_loss_and_a_column_for_each(labels, loss, units, columns, run: Run):
    summary = trained(run, labels, "--loss", loss, "--members", 2)
    network = dnn.load("out/model.h5")
    assert network.layer_sizes == (4, 5, units) and network.output == summary["settings"]["output"]
    header, rows = rows_of(run("predict", "out/model.h5", "data.h5", "--quiet"))
    assert header == ["index", *columns]
    expected = network.predict(X[30:]) if network.output == "linear" else network.predict_proba(X[30:])
    np.testing.assert_allclose(rows[:, 1:].astype(float), expected.reshape(10, -1), rtol=1e-6)
    header, rows = rows_of(run("predict", "out/model.h5", "data.h5", "--quiet", "--spread"))
    assert header[len(columns) + 1 :] == (["spread"] if units == 1 else [f"spread_{name}" for name in columns])
    spread = network.predict_spread(X[30:]).reshape(10, -1)
    np.testing.assert_allclose(rows[:, len(columns) + 1 :].astype(float), spread, rtol=1e-6)


@pytest.mark.parametrize("labels", [TWO, THREE])
def test_the_spread_of_a_class_is_that_of_its_probability(labels, run: Run):
    trained(run, labels, "--members", 3)
    header, rows = rows_of(run("predict", "out/model.h5", "data.h5", "--quiet", "--spread"))
    assert header == ["index", "class", "name", "probability", "spread"]
    spread = dnn.load("out/model.h5").predict_spread(X[30:])
    expected = spread if spread.ndim == 1 else spread[np.arange(10), rows[:, 1].astype(int)]
    np.testing.assert_allclose(rows[:, 4].astype(float), expected, rtol=1e-6)


def test_one_member_has_no_spread_and_an_array_no_column_for_it(run: Run):
    trained(run, TWO)
    assert "members" in run("predict", "out/model.h5", "data.h5", "--quiet", "--spread", code=2)
    err = run("predict", "out/model.h5", "data.h5", "--quiet", "--spread", "--out", "p.npy", code=2)
    assert "--spread" in err and not Path("p.npy").exists()


def test_classes_and_labels_may_be_missing(run: Run):
    labels = LABELS.astype(float)
    labels[::3, 1] = np.nan
    for given, output, units in ((labels, "sigmoid", 3), (np.where(VALUES > 0, TWO, np.nan), "sigmoid", 1)):
        settings = trained(run, given, "--missing-targets", "mask")["settings"]
        assert settings["output"] == output and dnn.load("out/model.h5").layer_sizes[-1] == units
        assert "nan" in run("train", "data.h5", "--quiet", "--force", "--output", "sigmoid", code=3)
        assert "loss" in run("evaluate", "out/model.h5", "data.h5", "--missing-targets", "mask")


def test_classes_are_weighted_by_name(run: Run):
    names = [b"cat", b"dog"]
    by_name = trained(run, TWO, "--class-weight", "dog=3", list_classes=names)
    assert by_name["train"] == trained(run, TWO, "--class-weight", "1=3", list_classes=names)["train"]
    assert by_name["train"] != trained(run, TWO, list_classes=names)["train"]


# ------------------------------------------------------------------------------------------- evaluate


def test_evaluate_measures_what_is_asked_for(run: Run):
    trained(run, THREE)
    network = dnn.load("out/model.h5")
    expected = network.evaluate(X[30:], THREE[30:], metrics=["log_loss", "confusion_matrix"])
    matrix = expected["confusion_matrix"]
    flags = ["out/model.h5", "data.h5", "--quiet", "--metrics", "log_loss,confusion_matrix"]
    found = json.loads(run("evaluate", *flags, "--json"))
    assert found["log_loss"] == expected["log_loss"] and found["confusion_matrix"] == matrix.tolist()
    first, title, *rows = run("evaluate", *flags).splitlines()
    assert first.endswith(f"log_loss {expected['log_loss']:.5f}") and title == "confusion_matrix:"
    assert [list(map(float, row.split())) for row in rows] == matrix.tolist()
    assert "'logloss'" in run("evaluate", *flags[:-1], "logloss", code=2)


def test_what_is_not_defined_is_nan_in_words_and_null_in_json(run: Run):
    trained(run, TWO, test_set_y=np.zeros(10, np.int64))
    flags = ["evaluate", "out/model.h5", "data.h5", "--quiet", "--metrics", "roc_auc"]
    assert json.loads(run(*flags, "--json"))["roc_auc"] is None
    assert "roc_auc nan" in run(*flags)


def test_a_matrix_has_its_place_in_the_history(run: Run):
    trained(run, TWO, "--metrics", "confusion_matrix", "--validation-split", 0.2)
    rows = list(csv.DictReader(Path("out/history.csv").read_text().splitlines()))
    assert [np.sum(json.loads(row["val_confusion_matrix"])) for row in rows] == [6, 6]
