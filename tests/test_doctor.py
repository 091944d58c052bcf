"""dnn doctor: its report on this machine, and on machines with problems."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dnn import backends
from dnn.backends import Backend, BackendUnavailableError
from dnn.backends.numpy_backend import NumpyBackend
from dnn.cli import main


@pytest.fixture
def only(monkeypatch):
    """Register only NumPy and the given backends."""

    def register(**loaders) -> None:
        monkeypatch.setattr(backends, "_loaders", {"numpy": NumpyBackend} | loaders)
        monkeypatch.setattr(backends, "_loaded", {})

    return register


def broken() -> Backend:
    raise BackendUnavailableError("backend 'cupy': the wheel is not installed: pip install it")


class Wrong(NumpyBackend):
    """A backend whose products are slightly wrong."""

    name = "wrong"

    def compiles(self) -> bool:
        return False

    def product(self, precision):
        def rounded(a, b, out) -> None:
            np.dot(a, b, out=out)
            out *= 1.0001

        return rounded


def test_a_machine_with_numpy_alone_passes(only, capsys):
    only(cupy=broken)
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "numpy: usable  (in use)" in out and np.__version__ in out and "matches NumPy" in out
    assert "cupy: not usable\n  the wheel is not installed: pip install it" in out


def test_an_unusable_backend_in_use_gives_status_5(only, capsys, monkeypatch):
    only(cupy=broken)
    monkeypatch.setenv("DNN_BACKEND", "cupy")
    assert main(["doctor"]) == 5
    out, err = capsys.readouterr()
    assert "cupy: not usable  (in use)" in out and err.count("\n") == 1 and "the wheel is not installed" in err
    assert main(["doctor", "--backend", "numpy"]) == 0


def test_a_backend_with_wrong_results_is_detected(only, capsys):
    only(wrong=Wrong)
    assert main(["doctor"]) == 5
    out, err = capsys.readouterr()
    assert "DIFFERS from NumPy: weights off by" in out
    assert err == "dnn: backend 'wrong' does not reproduce NumPy's results: see above\n"


def test_json_is_one_object(only, capsys):
    only(cupy=broken)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in use"] == "numpy" and found["backends"]["cupy"]["usable"] is False
    numpy = found["backends"]["numpy"]
    assert numpy["usable"] and numpy["self-test"]["right"] and numpy["self-test"]["steps a second"] > 0


def test_every_backend_here_passes_the_self_test(backend: Backend, capsys):
    status = main(["doctor", "--json", "--backend", backend.name])
    found = json.loads(capsys.readouterr().out)["backends"][backend.name]
    assert status == 0 and found["self-test"]["right"] and found["device"] == backend.device
