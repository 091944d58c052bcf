"""A run of `dnn train` that is interrupted, resumed, and never lost; and tables on the command line."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import Run, contents, run, two_parts  # noqa: F401  (fixtures)

import dnn
from dnn.backends import use_compiled_steps
from dnn.checkpoint import Checkpoints, numbered

TRAIN = (
    "train", "data.h5", "--epochs", 4, "--batch-size", 8, "--hidden", 5, "--dropout", 0.1, "--norm", "batch",
    "--validation-split", 0.2, "--early-stopping", 2, "--schedule", "cosine(warmup=1)", "--quiet",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("own_folder", "ctrl_c")


@pytest.fixture(autouse=True)
def _no_compiler() -> None:
    use_compiled_steps(False)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the next run get this signal after so many steps."""

    def after(steps: int, number: int = signal.SIGINT) -> None:
        due, left = Checkpoints.due, [steps]

        def looking(self: Checkpoints, step: int) -> bool:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), number)
            return due(self, step)

        monkeypatch.setattr(Checkpoints, "due", looking)

    return after


def parameters(path: str) -> dict[str, np.ndarray]:
    return {name: view.copy() for name, view in dnn.load(path).parameters.items()}


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_run_that_a_signal_ends_is_resumed_to_the_same_files(number, status, said, run: Run, signalled):  # noqa: F811
    two_parts()
    assert run(*TRAIN, "--out", "whole").code == 0
    signalled(3, number)
    ran = run(*TRAIN[:-1], "--out", "run")
    assert (ran.code, ran.out) == (status, "")
    assert "run/checkpoint-000001.h5 is the last checkpoint: go on with --resume auto" in ran.err
    assert ran.err.splitlines()[-1].startswith("dnn: ") and said in ran.err.splitlines()[-1]
    assert os.listdir("run") == ["checkpoint-000001.h5"]
    ran = run(*TRAIN[:-1], "--out", "run", "--resume", "auto")
    assert ran.code == 0 and "going on from checkpoint 1, " in ran.err
    assert sorted(os.listdir("run")) == ["history.csv", "model.h5"]
    assert Path("run/history.csv").read_bytes() == Path("whole/history.csv").read_bytes()
    for name, array in parameters("whole/model.h5").items():
        np.testing.assert_array_equal(parameters("run/model.h5")[name], array)


def test_the_same_command_may_be_given_again_and_again(run: Run, signalled):  # noqa: F811
    two_parts()
    command = (*TRAIN[:-1], "--out", "run", "--resume", "auto")
    first = run(*command)
    assert first.code == 0 and "no checkpoint in run: a new run" in first.err
    before = parameters("run/model.h5")
    again = run(*command)
    assert (again.code, again.out) == (0, first.out)
    assert "nothing is left to train" in again.err
    for name, array in parameters("run/model.h5").items():
        np.testing.assert_array_equal(array, before[name])


OTHER: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "another network": (("--hidden", 6), 2, r"is of another network, whose layer_sizes is [4, 5, 1], not [4, 6, 1]"),
    "another setting": (("--batch-size", 4), 2, "--batch-size must be 8, as in the fit that is resumed, got 4"),
    "another activation": (("--activation", "tanh"), 2, "whose activation is 'relu', not 'tanh'"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_run_is_not_resumed_and_what_differs_is_named(name, run: Run, signalled):  # noqa: F811
    flags, status, complaint = OTHER[name]
    two_parts()
    signalled(2)
    run(*TRAIN, "--out", "run")
    before = contents()
    ran = run(*TRAIN, *flags, "--out", "run", "--resume", "auto")
    assert ran.code == status and complaint in ran.err and ran.err.count("\n") == 1
    assert contents() == before


def test_other_data_is_not_trained_on(run: Run, signalled):  # noqa: F811
    two_parts()
    signalled(2)
    run(*TRAIN, "--out", "run")
    two_parts(train_set_x=np.ones((30, 4), np.float32))
    ran = run(*TRAIN, "--out", "run", "--resume", "auto")
    assert ran.code == 3 and "X, Y: the fit that is resumed was started with other values" in ran.err


def test_a_new_run_does_not_take_the_place_of_one_that_can_be_resumed(run: Run, signalled):  # noqa: F811
    two_parts()
    signalled(2)
    run(*TRAIN, "--out", "run")
    ran = run(*TRAIN, "--out", "run")
    assert ran.code == 7 and "has the checkpoints of another run" in ran.err and "--resume auto" in ran.err
    assert run(*TRAIN, "--out", "run", "--force").code == 0
    assert sorted(os.listdir("run")) == ["history.csv", "model.h5"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run: Run, signalled):  # noqa: F811
    two_parts()
    signalled(2)
    run(*TRAIN, "--out", "run")
    signalled(2)
    run(*TRAIN, "--out", "run", "--resume", "auto")
    (number, last), _ = numbered("run")
    Path(last).write_bytes(Path(last).read_bytes()[:3000])
    ran = run(*TRAIN[:-1], "--out", "run", "--resume", "auto")
    assert ran.code == 0 and f"going on from checkpoint {number - 1}" in ran.err


def test_a_checkpoint_is_resumed_by_its_path_into_another_folder(run: Run, signalled):  # noqa: F811
    two_parts()
    signalled(2)
    run(*TRAIN, "--out", "run")
    assert run(*TRAIN, "--out", "other", "--resume", "run/checkpoint-000001.h5").code == 0
    assert sorted(os.listdir("other")) == ["history.csv", "model.h5"]
    assert os.listdir("run") == ["checkpoint-000001.h5"]
    ran = run(*TRAIN, "--out", "other2", "--resume", "data.h5")
    assert ran.code == 4 and "not a model of dnn" in ran.err


def test_a_divergence_leaves_the_last_good_checkpoint(run: Run):  # noqa: F811
    two_parts()
    ran = run(
        "train", "data.h5", "--epochs", 40, "--learning-rate", 1e30, "--optimizer", "sgd", "--out", "run",
        "--checkpoint-every", 1, "--hidden", "8,8",
    )  # fmt: skip
    assert ran.code == 6 and ran.err.splitlines()[-1].startswith("dnn: ")
    for _, path in numbered("run") if os.path.exists("run") else []:
        dnn.load(path)


def test_a_model_without_its_state_of_training_is_smaller(run: Run):  # noqa: F811
    two_parts()
    assert run(*TRAIN, "--out", "with").code == 0
    assert run(*TRAIN, "--out", "without", "--no-training-state").code == 0
    assert os.path.getsize("without/model.h5") < os.path.getsize("with/model.h5")
    assert dnn.load("without/model.h5").training_state is None


# ------------------------------------------------------------------------------------------- tables

ROWS = [(20.0 + i % 7, ("red", "blue", "green")[i % 3], "" if i % 5 == 0 else str(i % 4)) for i in range(60)]


def table(path: str, order: tuple[int, ...] = (0, 1, 2, 3), rows: Any = ROWS) -> str:
    pytest.importorskip("pyarrow")
    names = ("size", "colour", "rooms", "kind")
    lines = [(f"{size}", colour, rooms, "big" if size > 22 else "small") for size, colour, rooms in rows]
    Path(path).write_text("".join(",".join(row[j] for j in order) + "\n" for row in [names, *lines]))
    return path


def test_a_table_is_trained_on_evaluated_and_answered_for(run: Run):  # noqa: F811
    table("houses.csv")
    flags = "--target", "kind", "--epochs", 40, "--validation-split", 0.2, "--learning-rate", 0.03
    trained = run("train", "houses.csv", *flags, "--json").summary()
    assert trained["train"]["accuracy"] > 0.8
    table("other.csv", order=(2, 3, 1, 0))
    evaluated = run("evaluate", "runs/houses/model.h5", "other.csv", "--json").summary()
    assert evaluated["loss"] == trained["train"]["loss"]
    answers = run("predict", "runs/houses/model.h5", "other.csv").rows()
    assert answers[0] == ["index", "class", "name", "probability"] and {row[2] for row in answers[1:]} <= {
        "big",
        "small",
    }
    network = dnn.load("runs/houses/model.h5")
    assert network.schema is not None and network.schema.target == ("kind",)
    with dnn.open_dataset("houses.csv", target="kind") as data:
        assert network.evaluate(data.train.X, data.train.Y)["loss"] == pytest.approx(evaluated["loss"])


def test_a_converted_table_trains_to_the_same_bits_as_the_table(run: Run):  # noqa: F811
    table("houses.csv")
    flags = "--epochs", 3, "--validation-split", 0.2, "--quiet"
    assert run("train", "houses.csv", "--target", "kind", *flags, "--out", "direct").code == 0
    assert run("convert", "houses.csv", "houses.h5", "--target", "kind", "--quiet").code == 0
    assert run("train", "houses.h5", *flags, "--out", "converted").code == 0
    for name, array in parameters("direct/model.h5").items():
        np.testing.assert_array_equal(parameters("converted/model.h5")[name], array)


def test_what_a_table_lacks_is_named(run: Run):  # noqa: F811
    table("houses.csv")
    assert "--target" in run("train", "houses.csv").err
    ran = run("train", "houses.csv", "--target", "kine")
    assert ran.code == 3 and "kind" in ran.err
    assert run("train", "houses.csv", "--target", "kind", "--epochs", 1, "--quiet").code == 0
    Path("narrow.csv").write_text("size,kind\n20,big\n")
    ran = run("predict", "runs/houses/model.h5", "narrow.csv")
    assert ran.code == 3 and "colour" in ran.err and "rooms" in ran.err


@pytest.mark.parametrize("form", ["--test", "--test-split", "converted --test"])
def test_a_table_has_a_test_part(form: str, run: Run):  # noqa: F811
    table("houses.csv")
    table("new.csv", order=(3, 0, 2, 1), rows=ROWS[:20])
    flags = "--epochs", 1, "--hidden", 3, "--json"
    if form == "--test-split":
        assert run("convert", "houses.csv", "houses.h5", "--target", "kind", "--test-split", 0.25).code == 0
        trained = run("train", "houses.h5", *flags)
    elif form == "--test":
        trained = run("train", "houses.csv", "--target", "kind", "--test", "new.csv", *flags)
    else:
        assert run("convert", "houses.csv", "houses.h5", "--target", "kind").code == 0
        trained = run("train", "houses.h5", "--test", "new.csv", *flags)
    assert "columns: 1 number, 2 categories (colour 3, rooms 4)" in trained.err or "2 numbers" in trained.err
    assert trained.summary()["test"] == trained.summary()["test"] is not None
    data = ("houses.h5", "--split", "test") if form == "--test-split" else ("new.csv",)
    evaluated = run("evaluate", "runs/houses/model.h5", *data, "--json").summary()
    assert evaluated["loss"] == trained.summary()["test"]["loss"]
    assert evaluated["split"] == ("test" if form == "--test-split" else None)


def test_what_a_converted_table_has_decided_is_not_asked_of_it(run: Run):  # noqa: F811
    table("houses.csv")
    two_parts()
    assert run("convert", "houses.csv", "houses.h5", "--target", "kind", "--quiet").code == 0
    assert run("train", "houses.h5", "--target", "kind", "--epochs", 1, "--quiet").code == 0
    for flag, name in (("--drop", "size"), ("--categories", "size"), ("--target", "rooms")):
        for command in [("train",)] + [("evaluate", "runs/houses/model.h5")] * (flag == "--target"):
            ran = run(*command, "houses.h5", flag, name)
            assert ran.code == 3 and f"{flag} was decided when the table was converted" in ran.err, ran
        ran = run("train", "data.h5", flag, name)
        assert ran.code == 3 and f"{flag} is for tables, and the file has arrays" in ran.err, ran


def prices(path: str = "prices.csv") -> str:
    lines = [f"{size},{colour},{1000 * size + 90_000}\n" for size, colour, _ in ROWS]
    Path(path).write_text("size,colour,price\n" + "".join(lines))
    return path


def test_values_of_a_table_are_scaled_unless_asked_not_to_be(run: Run):  # noqa: F811
    prices()
    train = "train", "prices.csv", "--target", "price", "--epochs", 60, "--learning-rate", 0.01, "--force", "--json"
    ran = run(*train)
    assert "targets are scaled to mean 0, deviation 1; --target-scale none for values as they are" in ran.err
    assert ran.summary()["train"]["rmse"] < 500 and ran.summary()["settings"]["target_scale"] == "standard"
    plain = run(*train, "--target-scale", "none", "--epochs", 1)
    assert "scaled" not in plain.err and plain.summary()["settings"]["target_scale"] is None
    poisson = run(*train, "--loss", "poisson", "--epochs", 1)
    assert poisson.summary()["settings"]["target_scale"] is None
    assert dnn.load("runs/prices/model.h5").target_scale is None


def test_names_are_not_numbered_for_a_model_that_has_none(run: Run):  # noqa: F811
    lines = [(size, colour, int(size > 22)) for size, colour, _ in ROWS]
    Path("numbers.csv").write_text("size,colour,kind\n" + "".join(f"{a},{b},{c}\n" for a, b, c in lines))
    Path("names.csv").write_text("size,colour,kind\n" + "".join(f"{a},{b},{'sb'[c]}\n" for a, b, c in lines))
    assert run("train", "numbers.csv", "--target", "kind", "--epochs", 1, "--quiet").code == 0
    assert run("convert", "names.csv", "names.h5", "--target", "kind", "--quiet").code == 0
    for data in ("names.csv", "names.h5"):
        ran = run("evaluate", "runs/numbers/model.h5", data)
        assert ran.code == 3 and "the labels have names" in ran.err, ran
        assert run("predict", "runs/numbers/model.h5", data).code == 0
    ran = run("train", "numbers.csv", "--target", "kind", "--test", "names.csv", "--force")
    assert ran.code == 3 and "the training part has none to match them with" in ran.err


def test_several_targets_have_their_names_in_the_answers_and_may_be_missing(run: Run):  # noqa: F811
    pytest.importorskip("pyarrow")
    lines = [f"{k},{'' if k == 3 else k / 2},{k % 5}\n" for k in range(40)]
    Path("two.csv.gz").write_bytes(gzip.compress(("a,y,z\n" + "".join(lines)).encode()))
    train = "train", "two.csv.gz", "--target", "y,z", "--epochs", 1
    ran = run(*train)
    assert ran.code == 3 and "target 'y' is missing in row 4" in ran.err
    assert run(*train, "--missing-targets", "mask", "--quiet").code == 0
    evaluated = run("evaluate", "runs/two/model.h5", "two.csv.gz", "--missing-targets", "mask", "--json").summary()
    assert evaluated["examples"] == 40
    assert run("predict", "runs/two/model.h5", "two.csv.gz").rows()[0] == ["index", "y", "z"]


def test_another_scaling_of_a_table_is_not_resumed_and_is_named(run: Run):  # noqa: F811
    train = "train", prices(), "--target", "price", "--out", "run", "--resume", "auto"
    assert run(*train, "--epochs", 1).code == 0
    ran = run(*train, "--epochs", 2, "--scaling", "robust")
    assert ran.code == 2 and "whose scaling is 'standard', not 'robust'" in ran.err, ran


def test_labels_and_files_that_cannot_be_are_named_with_what_to_do(run: Run):  # noqa: F811
    pytest.importorskip("pyarrow")
    Path("one.csv").write_text("a,y\n" + "1,only\n" * 9)
    assert "all labels are 'only': expected at least two classes" in run("train", "one.csv", "--target", "y").err
    Path("two.csv").write_text("a,y\n" + "1,1\n3,-1\n" * 9)
    ran = run("train", "two.csv", "--target", "y", "--epochs", 1)
    assert "the labels are real values; --categories y for classes" in ran.err
    Path("folder").mkdir()
    assert "make a data file of it: dnn convert folder folder.h5" in run("train", "folder").err
    assert "make a data file of it: dnn convert d.npz d.h5" in run("train", "d.npz").err
    assert "d.txt: no HDF5 file: call it .csv if it is a table" in run("train", "d.txt").err
