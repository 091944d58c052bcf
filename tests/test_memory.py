"""What a training takes of the device's memory is known before it is taken."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from builders import data
from standin import device
from sweeps import covering

import dnn
from dnn.cli import main
from dnn.data import prepare
from dnn.errors import NotEnoughMemoryError
from dnn.memory import training_bytes
from dnn.settings import FitSettings


def problem(output: str, units: int, of_bytes: bool = False, m: int = 1000):
    X, Y = data(300, output, units, m, of_bytes)
    return X if of_bytes else X.astype(np.float32), Y


CASES = [
    *(("softmax", 7, dnn.Adam(0.01), *size, precision, of_bytes)
      for size, precision, of_bytes in (
          ((16, False), None, False), ((100, False), "float16", True),
          ((16, True), "float16", True), ((40, True), None, False))),
    *(("softmax", 7, dnn.SGD(0.1), 16, False, precision, False) for precision in ("tf32", "bfloat16")),
    ("sigmoid", 1, dnn.Momentum(0.1), 16, False, None, False),
    ("sigmoid", 5, dnn.SGD(0.1), 100, True, "bfloat16", True),
    ("linear", 30, dnn.Momentum(0.1), 7, True, None, False),
]  # fmt: skip


@pytest.mark.parametrize(("output", "units", "optimizer", "batch_size", "fed", "precision", "of_bytes"), CASES, ids=str)
def test_the_estimate_is_what_the_device_allocates(
    output, units, optimizer, batch_size, fed, precision, of_bytes, monkeypatch
):
    X, Y = data(90, output, units, 100, of_bytes)
    X = X if of_bytes else X.astype(np.float32)
    network = dnn.Network([90, 20, units], output=output, backend="standin")
    settings = {"epochs": 1, "batch_size": batch_size, "optimizer": optimizer, "precision": precision}
    before = device.allocated
    examples = prepare(network, X, Y, fitting=True)
    of_targets = device.allocated - before
    # a stream's workspace for products is there once and for all
    dnn.Network([2, 1], backend="standin").fit(np.zeros((2, 2)), np.zeros(2), epochs=1)
    for _ in range(2):  # what is there already is not taken again
        expected = training_bytes(
            network, examples, np.arange(100), batch_size, FitSettings(**settings), fed, precision
        )
        if fed:
            monkeypatch.setattr("dnn.training.place", lambda network, examples, *_: (examples, None))
        before = device.allocated
        network.fit(X, Y, **settings)
        taken = device.allocated - before - of_targets - (0 if fed else X.nbytes)
        assert taken == expected


@covering(
    "of_both, batch_size, precision",
    [
        ({}, {"accumulate": 3, "moving_average": 0.9, "clip_norm": 1.0, "max_norm": 1.0, "l2": 0.01}),
        ({"norm": "batch", "dropout": 0.2}, {"schedule": "cosine"}),
        ({"norm": "batch"}, {"accumulate": 2, "optimizer": dnn.AdamW(0.01, factors={"b": 2.0})}),
        ({"members": 2}, {"optimizer": dnn.Muon(0.01)}),
    ],
    [16, 100],
    [None, "float16"],
    ids=str,
)
def test_the_estimate_knows_what_else_a_training_keeps(of_both, precision, batch_size):
    of_network, of_fit = of_both
    X, Y = data(90, "softmax", 7, 100)
    network = dnn.Network([90, 20, 20, 7], output="softmax", backend="standin", **of_network)
    settings = FitSettings(**{"epochs": 1, "batch_size": batch_size, "precision": precision} | of_fit)
    X = network.backend.asarray(X.astype(np.float32))
    # a stream's workspace for products is there once and for all
    copy.deepcopy(network).fit(X, Y, **vars(settings))
    before = device.allocated
    examples = prepare(network, X, Y, fitting=True)
    of_targets = device.allocated - before
    # a second fit with an average compares weights first, in memory that it gives back
    for _ in range(1 if settings.moving_average else 2):
        expected = training_bytes(network, examples, np.arange(100), batch_size, settings, precision=precision)
        before = device.allocated
        network.fit(X, Y, **vars(settings))
        assert device.allocated - before - of_targets == expected


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("precision", [None, "float16", "bfloat16"])
def test_the_estimate_knows_what_a_fit_in_another_precision_or_a_copy_has_yet_to_take(precision, copied):
    X, Y = np.zeros((100, 90), np.float32), np.arange(100) % 7
    network = dnn.Network([90, 20, 7], output="softmax", backend="standin")
    X, settings = network.backend.asarray(X), {"epochs": 1, "batch_size": 16, "optimizer": dnn.Adam(0.01)}
    network.fit(X, Y, precision="float16", **settings)
    network = copy.deepcopy(network) if copied else network
    before = device.allocated
    examples = prepare(network, X, Y, fitting=True)
    of_targets = device.allocated - before
    expected = training_bytes(network, examples, np.arange(100), 16, FitSettings(**settings), precision=precision)
    before = device.allocated
    network.fit(X, Y, precision=precision, **settings)
    assert device.allocated - before - of_targets == expected


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
