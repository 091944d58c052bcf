"""`backend`: every test that asks for it runs on each backend. `shared`: the folder of the assignment's data."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin  # noqa: F401  (registers itself)

from dnn import backends
from dnn.backends import Backend, BackendUnavailableError, get_backend, use_backend, use_compiled_steps

ROOT = Path(__file__).resolve().parents[1]

# plans are many small objects that stay: looking for cycles among them every 700 takes a tenth of the suite's time
gc.set_threshold(50_000, 20, 50)

STEPWISE = "numpy, operation by operation"
BACKENDS = [*backends.registered(), STEPWISE]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend; one that cannot be used here is a skip, or a failure where DNN_REQUIRE_BACKENDS names it."""
    if request.param == STEPWISE:
        if find_spec("llvmlite") is None:
            pytest.skip("llvmlite is not installed: numpy runs operation by operation")
        with use_compiled_steps(False):
            yield get_backend("numpy")
        return
    try:
        found = get_backend(request.param)
    except BackendUnavailableError as error:
        if request.param in os.environ.get("DNN_REQUIRE_BACKENDS", "").split(","):
            pytest.fail(f"DNN_REQUIRE_BACKENDS asks for it: {error}")
        pytest.skip(str(error))
    yield found


_BEFORE: dict[str, Any] = {}
"""The state of a test file's generator of random numbers before its first test, by file."""


@pytest.fixture(autouse=True)
def same_data(request: pytest.FixtureRequest) -> None:
    """A test's random data does not depend on which tests have run before it in this process."""
    for name in ("RNG", "GENERATOR"):
        generator = getattr(request.module, name, None)
        if isinstance(generator, np.random.Generator):
            bits: Any = generator.bit_generator
            bits.state = _BEFORE.setdefault(request.module.__name__, bits.state)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as usual: a shell that runs the tests in the background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


FORMS = ["block", "grid", "launches", "operation by operation"]
"""How a step runs on a GPU: as a kernel of one block, of several, as launches and products, or without kernels."""


@pytest.fixture
def in_form(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the steps that the stand-in compiles from now on run in one of FORMS, whatever their size."""

    def choose(form: str) -> None:
        if form == "operation by operation":
            monkeypatch.setattr(get_backend("standin"), "loader", None)
            return
        gpu = pytest.importorskip("dnn.backends.codegen.gpu", reason="the extra fast is not installed")
        monkeypatch.setattr(gpu, "ONE_BLOCK", 10**9 if form == "block" else 0)
        monkeypatch.setattr(gpu, "WHOLE", 0 if form == "launches" else 10**9)

    return choose


def find_shared() -> Path:
    """The assignment's data: in DNN_SHARED, ../shared or ./shared; where it is not, a skip."""
    for place in (os.environ.get("DNN_SHARED"), ROOT.parent / "shared", ROOT / "shared"):
        if place and (Path(place) / "data").is_dir():
            return Path(place) / "data"
    pytest.skip("the assignment's data is not here: DNN_SHARED, ../shared or ./shared")


@pytest.fixture
def shared() -> Path:
    return find_shared()


@pytest.fixture(autouse=True)
def _numpy_unless_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the shell or an earlier test chose is no part of a test."""
    for name in ("DNN_BACKEND", "DNN_COMPILED", "DNN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    use_backend(None)
    use_compiled_steps(None)
    yield
    use_backend(None)
    use_compiled_steps(None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On CuPy no case of a sweep is slow."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if given.get("backend") == "cupy":
            item.own_markers[:] = [mark for mark in item.own_markers if not mark.kwargs.get("sweep")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped and why, a line a reason."""
    skips = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skips)
    if reasons:
        terminalreporter.section("skipped")
    for reason, times in reasons.most_common():
        terminalreporter.write_line(f"{times} x {reason}")
