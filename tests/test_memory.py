"""What a training takes of the device's memory is known before it is taken."""

from __future__ import annotations

import numpy as np
import pytest
from standin import device

import dnn
from dnn.cli import main
from dnn.data import prepare
from dnn.errors import NotEnoughMemoryError
from dnn.memory import GB, training_bytes

GENERATOR = np.random.default_rng(0)


def problem(output: str, units: int, of_bytes: bool = False, m: int = 1000):
    X = GENERATOR.integers(0, 256, (m, 300)).astype(np.uint8)
    X = X if of_bytes else X.astype(np.float32) / 255
    Y = GENERATOR.random((m, units)) if output == "linear" else GENERATOR.integers(0, 2, (m, units))
    return X, GENERATOR.integers(0, units, m) if output == "softmax" else Y


@pytest.mark.parametrize("of_bytes", [False, True])
@pytest.mark.parametrize(("output", "units"), [("sigmoid", 1), ("sigmoid", 70), ("softmax", 50), ("linear", 300)])
@pytest.mark.parametrize("optimizer", [dnn.SGD(0.1), dnn.Adam(0.01)], ids=str)
@pytest.mark.parametrize(("batch_size", "fed"), [(64, False), (1000, False), (64, True), (300, True)])
@pytest.mark.parametrize("precision", [None, "tf32", "float16", "bfloat16"])
def test_the_estimate_is_what_the_device_allocates(precision, batch_size, fed, optimizer, output, units, of_bytes):
    X, Y = problem(output, units, of_bytes)
    network = dnn.Network([300, 200, 100, units], output=output, backend="standin")
    examples = prepare(network, X, Y, fitting=True)
    expected = training_bytes(network, examples, 1000, batch_size, optimizer, fed, precision)
    limit = (1 + expected) / GB if fed else None
    before = device.allocated
    prepare(network, X, Y).on(network.backend)
    of_the_examples = device.allocated - before - (examples.X.nbytes if fed else 0)
    before = device.allocated
    settings = {"epochs": 1, "batch_size": batch_size, "optimizer": optimizer, "precision": precision}
    network.fit(X, Y, memory_limit=limit, **settings)
    taken = device.allocated - before - of_the_examples
    assert taken == pytest.approx(expected, rel=0.002)
    # what is there already is not taken again
    expected = training_bytes(network, examples, 1000, batch_size, optimizer, fed, precision)
    before = device.allocated
    network.fit(X, Y, memory_limit=(1 + expected) / GB if fed else None, **settings)
    assert device.allocated - before - of_the_examples == pytest.approx(expected, rel=0.003)


def test_what_does_not_fit_is_refused_before_the_training_and_the_batch_that_fits_fits():
    X, Y = problem("softmax", 10)
    network = dnn.Network([300, 200, 10], output="softmax")
    before = network.parameters.flat.copy()
    with pytest.raises(NotEnoughMemoryError) as error:
        network.fit(X, Y, batch_size=900, memory_limit=0.0025)
    message = str(error.value)
    assert "GB on numpy, 0.0025 GB are allowed by memory_limit: the largest batch that fits is" in message
    fits = int(message.split("fits is ")[1].split(",")[0])
    assert 1 < fits < 900
    np.testing.assert_array_equal(network.parameters.flat, before)
    network.fit(X, Y, epochs=1, batch_size=fits, memory_limit=0.0025)
    with pytest.raises(NotEnoughMemoryError, match="no batch fits: make the layers smaller"):
        dnn.Network([300, 200, 10], output="softmax").fit(X, Y, memory_limit=1e-6)


def test_what_is_free_is_the_limit_where_none_is_given(monkeypatch):
    X, Y = problem("softmax", 10)
    network = dnn.Network([300, 200, 10], output="softmax")
    monkeypatch.setattr(network.backend, "memory", lambda: (2_500_000, 10**9), raising=False)
    with pytest.raises(NotEnoughMemoryError, match=r"0\.0025 GB are free"):
        network.fit(X, Y, batch_size=900)
    network.fit(X, Y, epochs=1, batch_size=8)


def test_on_the_command_line_it_is_one_line_and_status_5(tmp_path, monkeypatch, capsys):
    import h5py

    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file["train_set_x"], file["train_set_y"] = problem("softmax", 10)
    assert main(["train", "a.h5", "--memory-limit", "0.000001", "--quiet"]) == 5
    error = capsys.readouterr().err
    assert error.startswith("dnn: not enough memory: training takes") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
