"""Files of every version of the format, written by the dnn of their time, are still read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import dnn
from dnn.backends import use_compiled_steps

FILES = Path(__file__).parent / "files"
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.standard_normal((24, 3)), np.arange(24) % 3
SEEN = np.array([[0.5, -1.0, 2.0], [0.0, 1.0, -0.5]])


def test_version_1_a_plain_network():
    network = dnn.load(FILES / "model-1.h5")
    expected = [[0.33941927, 0.41660437, 0.24397635], [0.45704702, 0.35791829, 0.18503468]]
    np.testing.assert_allclose(network.predict_proba(SEEN), expected, rtol=1e-6)
    assert network.classes == ["red", "green", "blue"] and network.epochs == 2


def test_version_2_layers_statistics_and_a_loss_with_settings():
    network = dnn.load(FILES / "model-2.h5")
    np.testing.assert_allclose(network.predict(SEEN), [-1.311774962, 2.063488322], rtol=1e-6)
    assert network.loss == dnn.Huber(2.0) and network.target_scale == "standard" and network.steps == 6


def test_version_3_the_schema_of_a_table():
    pa = pytest.importorskip("pyarrow")
    network = dnn.load(FILES / "model-3.h5")
    table = pa.table({"colour": ["red", "blue"], "size": [0.5, -1.0]})
    expected = [[0.51302868, 0.48697132], [0.57367754, 0.42632249]]
    np.testing.assert_allclose(network.predict_proba(table), expected, rtol=1e-6)
    assert network.schema is not None and network.schema.names == ["size", "colour=blue", "colour=red"]


def test_a_checkpoint_of_version_3_goes_on():
    use_compiled_steps(False)
    network = dnn.resume(FILES / "checkpoint-3.h5")
    assert network.unfinished is not None and (network.unfinished.epoch, network.unfinished.batch) == (1, 1)
    history = network.fit(X, Y, callbacks=[], checkpoint=None)
    np.testing.assert_allclose(history.history["val_loss"], [1.37364342, 1.40089484, 1.43190638], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "version", "needs"),
    [
        ("model-1.h5", 1, None),
        ("model-2.h5", 2, None),
        ("model-3.h5", 3, b"schema"),
        ("checkpoint-3.h5", 2, b"steps, dropout, norm, state"),
    ],
)
def test_a_file_says_what_it_needs_in_order_to_be_read(name, version, needs):
    with h5py.File(FILES / name) as file:
        assert file.attrs["format_version"] == version and file.attrs.get("needs") == needs
