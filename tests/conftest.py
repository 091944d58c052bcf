"""`backend`: every test that asks for it runs on each backend. `shared`: the folder of the assignment's data. `gpp` and
`fused_standin`: the fused kernels on the CPU."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import standin  # noqa: F401  (registers itself)
from gpp import FusedStandin, Gpp

from dnn import backends
from dnn.backends import Backend, BackendUnavailableError, get_backend, use_backend

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's steps run as they are written, operation by operation."""
    monkeypatch.setattr(get_backend("numpy"), "_compiles", False)


@pytest.fixture(params=[*backends.registered(), "numpy, uncompiled"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend; one that cannot be used here is a skip, or a failure where DNN_REQUIRE_BACKENDS names it."""
    if request.param == "numpy, uncompiled":
        if find_spec("numba") is None:
            pytest.skip("the extra fast is not installed: numpy is uncompiled")
        request.getfixturevalue("uncompiled")
        return get_backend("numpy")
    try:
        return get_backend(request.param)
    except BackendUnavailableError as error:
        if request.param in os.environ.get("DNN_REQUIRE_BACKENDS", "").split(","):
            pytest.fail(f"DNN_REQUIRE_BACKENDS asks for it: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gpp(tmp_path_factory: pytest.TempPathFactory) -> Gpp:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return Gpp(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def fused_standin(gpp: Gpp, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the stand-in device with the fused kernels, run by g++."""
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))
    backends.register(FusedStandin.name, lambda: FusedStandin(gpp))
    return FusedStandin.name


def find_shared() -> Path:
    """The assignment's data: in DNN_SHARED, ../shared or ./shared; where it is not, a skip."""
    for place in (os.environ.get("DNN_SHARED"), ROOT.parent / "shared", ROOT / "shared"):
        if place and (Path(place) / "data").is_dir():
            return Path(place) / "data"
    pytest.skip("the assignment's data is not here: DNN_SHARED, ../shared or ./shared")


@pytest.fixture
def shared() -> Path:
    return find_shared()


@pytest.fixture(autouse=True, scope="session")
def _compiled_once() -> None:
    """What a fresh machine compiles for seconds, and says so, is no part of a test."""
    if find_spec("numba") is not None:
        from dnn.backends.compiled import kernels

        for dtype in (np.float32, np.float64):
            kernels.compile_for(np.dtype(dtype))


@pytest.fixture(autouse=True)
def _numpy_unless_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the shell or an earlier test chose is no part of a test."""
    for name in ("DNN_BACKEND", "DNN_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    use_backend(None)
    yield
    use_backend(None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped and why, a line a reason."""
    skips = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skips)
    if reasons:
        terminalreporter.section("skipped")
    for reason, times in reasons.most_common():
        terminalreporter.write_line(f"{times} x {reason}")
