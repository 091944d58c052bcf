"""`dnn inspect`: what a file is and holds, in words and as JSON, whatever file it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dnn
from dnn.cli import main

X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)

Run = Callable[..., str]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Run:
    """What it prints, or with `code` its one line of complaint."""

    def inspect(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        status = main(["inspect", *arguments])
        printed, complaint = capsys.readouterr()
        assert status == code, (printed, complaint)
        if not code:
            return printed
        assert not printed and complaint.startswith("dnn: ") and complaint.count("\n") == 1
        return complaint

    return inspect


def facts(inspect: Run, path: str) -> dict[str, Any]:
    return json.loads(inspect(path, "--json"), parse_constant=pytest.fail)


def trained(**settings: Any) -> dnn.Network:
    network = dnn.Network([4, 3, 1], output="sigmoid", norm="batch", seed=0, backend="numpy")
    network.fit(X, Y, epochs=2, **settings)
    return network


def test_a_data_file_says_its_parts_and_how_they_are_stored(inspect: Run):
    with h5py.File("data.h5", "w") as file:
        file.create_dataset("train_set_x", data=np.zeros((40, 4), np.float32), chunks=(8, 4), compression="gzip")
        file["train_set_y"] = Y
        file["test_set_x"] = X
        file["list_classes"] = np.array([b"no", b"yes"])
        stored = file["train_set_x"].id.get_storage_size()
    lines = inspect("data.h5").splitlines()
    assert lines[0] == f"data.h5: data file, {Path('data.h5').stat().st_size:,} bytes"
    assert lines[1:] == [
        f"  train_set_x  (40, 4)  float32  chunks of (8, 4), gzip, {stored} bytes, 640 bytes in memory",
        "  train_set_y  (40,)    int64    contiguous, 320 bytes",
        "  test_set_x   (40, 4)  float32  contiguous, 640 bytes",
        "  test_set_y is not there: for dnn predict only",
        "  loaded whole: 1,600 bytes",
        "  2 classes: no, yes",
    ]
    found = facts(inspect, "data.h5")
    assert found["kind"] == "data file" and found["memory"] == 1600 and found["classes"] == ["no", "yes"]
    assert found["train_set_x"] == {
        "shape": [40, 4],
        "dtype": "float32",
        "storage": "chunked",
        "chunks": [8, 4],
        "filters": ["gzip"],
        "stored": stored,
        "memory": 640,
    }


def test_a_converted_table_says_what_its_columns_are(inspect: Run, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pyarrow")
    Path("t.csv").write_text("city,age,price\n" + "Bonn,1,2.5\nUlm,,3.5\n" * 3)
    assert inspect("t.csv").splitlines()[1:] == [
        "  3 columns, by the first rows",
        "  city   text: a category, if it has few values for its rows",
        "  age    number",
        "  price  number",
    ]
    assert facts(inspect, "t.csv")["columns"][1] == {"name": "age", "kind": "number"}
    assert main(["convert", "t.csv", "t.h5", "--target", "price", "--categories", "city"]) == 0
    assert inspect("t.h5").splitlines()[-4:] == [
        "  target price",
        "  2 columns",
        "    city  category  2: Bonn, Ulm",
        "    age   number",
    ]
    found = facts(inspect, "t.h5")
    assert found["target"] == ["price"]
    assert found["columns"][0] == {"name": "city", "kind": "category", "values": ["Bonn", "Ulm"]}


def test_a_file_of_another_layout_lists_its_data_sets_and_what_is_refused(inspect: Run):
    with h5py.File("data.h5", "w") as file:
        file["numbers"] = X
        file["group/inner"] = Y
        file["link"] = h5py.ExternalLink("other.h5", "/x")
        file["esc\x1b[2J"] = [1]
    printed = inspect("data.h5")
    assert "\x1b" not in printed and "esc\\x1b[2J" in printed
    assert "data.h5: HDF5 file of another layout" in printed and "name the examples with --x" in printed
    assert "numbers" in printed and "(40, 4)" in printed
    assert "is a group, not a data set" in printed and "link is a link to elsewhere: refused" in printed
    assert set(facts(inspect, "data.h5")["sets"]) == {"numbers", "group", "link", "esc\x1b[2J"}


def test_a_model_says_what_it_is_and_what_it_keeps(inspect: Run):
    network = trained(early_stopping=1, validation_split=0.25)
    network.classes = ["no", "yes"]
    network.save("model.h5")
    printed = inspect("model.h5")
    for line in network.summary().splitlines():
        assert line in printed
    assert "format 2, needs norm, state" in printed.replace("steps, ", "") and f"dnn {dnn.__version__}" in printed
    assert "trained for 2 epochs" in printed and "inputs: numbers of shape (4,)" in printed
    assert "2 classes: no, yes" in printed
    assert "state of training: Adam(" in printed and "weights of the best epoch" in printed
    assert "history: 2 epochs, loss" in printed
    found = facts(inspect, "model.h5")
    assert (found["kind"], found["layer_sizes"], found["epochs"], found["format_version"]) == ("model", [4, 3, 1], 2, 2)
    assert found["training"]["optimizer"]["name"] == "adam" and len(found["training"]["history"]["loss"]) == 2
    network.save("bare.h5", training_state=False)
    assert "no state of training: a fit begins with a new optimizer" in inspect("bare.h5")
    assert facts(inspect, "bare.h5")["training"] is None


def test_nothing_of_a_file_reaches_the_terminal_but_text(inspect: Run, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pyarrow")
    network = trained()
    network.classes = ["no\x1b[2J", "yes\n"]
    network.save("model.h5")
    with h5py.File("model.h5", "r+") as file:
        file.attrs["dnn_version"] = np.bytes_(b"0\x1b[31m")
    Path("t.csv").write_text('"a\x1b[31m","b\nb",y\n' + "1,\x07,2\n2,u,3\n" * 3)
    assert main(["train", "t.csv", "--target", "y", "--epochs", "1", "--out", "run"]) == 0
    assert main(["convert", "t.csv", "t.h5", "--target", "y"]) == 0
    printed = "".join(capsys.readouterr())
    printed += "".join(inspect(path) for path in ("model.h5", "t.csv", "t.h5", "run/model.h5"))
    assert printed.replace("\n", "").isprintable() and "columns: 1 number, 1 category (b\\nb 2)" in printed


def test_a_checkpoint_says_where_its_fit_stands(inspect: Run):
    trained(checkpoint="run", checkpoint_every=3, batch_size=10)
    path = str(sorted(Path("run").glob("checkpoint-*.h5"))[0])
    found = facts(inspect, path)
    assert found["training"]["checkpoint"]["epochs"] == 2
    number = found["training"]["checkpoint"]["number"]
    assert f"checkpoint-{number:06d}.h5" in path and f"checkpoint {number} of " in inspect(path)


def test_a_damaged_model_is_reported_as_one(inspect: Run):
    trained().save("model.h5")
    with h5py.File("model.h5", "r+") as file:
        file["parameters/W1"][0, 0] += 1
    assert "model.h5: its checksum does not match" in inspect("model.h5", code=4)


@pytest.mark.parametrize("attribute", [["dnn model"], "a" * 100_000, 1.5])
def test_an_attribute_of_another_type_marks_no_model(inspect: Run, attribute: Any):
    with h5py.File("data.h5", "w", libver="latest") as file:
        file.attrs["format"] = attribute
        file["train_set_x"] = X
    assert "data.h5: data file" in inspect("data.h5")


def test_sources_of_convert_say_what_they_hold(inspect: Run):
    np.save("x.npy", X)
    assert inspect("x.npy").splitlines() == ["x.npy: .npy file, 768 bytes", "  train_set_x  (40, 4)  float32"]
    np.savez("x.npz", x_train=X, y_train=np.array(["no", "yes"])[Y])
    assert inspect("x.npz").splitlines()[1:] == [
        "  train_set_x  (40, 4)  float32",
        "  train_set_y  (40,)    int64",
        "  2 classes: no, yes",
    ]
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        Path("p", name).mkdir(parents=True)
        image.new("RGB", (3, 2)).save(f"p/{name}/1.png")
    assert facts(inspect, "p") == {
        "file": "p",
        "kind": "folder of pictures",
        "bytes": None,
        "train_set_x": {"shape": [2, 2, 3, 3], "dtype": "uint8"},
        "train_set_y": {"shape": [2], "dtype": "int64"},
        "classes": ["a", "b"],
    }


def test_what_is_none_of_these_is_named(inspect: Run):
    Path("x.txt").write_text("hello")
    assert "x.txt: expected" in inspect("x.txt", code=3)
    Path("x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert inspect("x.h5", code=3).startswith("dnn: x.h5: ")
    assert "nothing: no such file" in inspect("nothing", code=3)
