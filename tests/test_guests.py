"""A guest in its process: the caller's surroundings neither break a training nor are changed by one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import io
import locale
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from sweeps import covering
from threadpoolctl import threadpool_info, threadpool_limits

import dnn
from dnn.backends import get_backend, use_compiled_steps
from dnn.backends.codegen import threads
from dnn.backends.codegen.threads import blas

GENERATOR = np.random.default_rng(5)
X = GENERATOR.standard_normal((2000, 40)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def fitted(number: int | None = 2, dtype: str = "float32", **settings) -> tuple[bytes, str, bytes]:
    """The bits of all that comes out of a training."""
    network = dnn.Network([40, 64, 32, 1], seed=1, dtype=dtype)
    settings = {"epochs": 3, "batch_size": 400, "validation_split": 0.2, "verbose": False} | settings
    history = network.fit(X, Y, threads=number, **settings)
    measured = str((history.history, network.evaluate(X, Y)))
    return network.parameters.flat.tobytes(), measured, network.predict_proba(X).tobytes()


@pytest.fixture(params=[True, False], ids=["compiled", "operation by operation"])
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param:
        pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    with use_compiled_steps(request.param):
        yield request.param


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda *root: 2)


def of_blas() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}


# ------------------------------------------------------------------------------------------- other fits


@pytest.mark.usefixtures("two_cores")
@covering("dtype, compiled", ["float32", "float64"], [True, False], indirect=["compiled"])
def test_fits_with_other_numbers_of_threads_leave_each_other_their_bits(compiled: bool, dtype: str) -> None:
    alone = {number: fitted(number, dtype) for number in (1, 2)}
    together: dict[tuple[int, int], tuple] = {}

    def fit(number: int, which: int) -> None:
        with use_compiled_steps(compiled):
            together[number, which] = fitted(number, dtype)

    before = of_blas()
    fits = [threading.Thread(target=fit, args=(number, which)) for number in (1, 2) for which in range(3)]
    for thread in fits:
        thread.start()
    for thread in fits:
        thread.join()
    assert len(together) == 6
    for (number, _), found in together.items():
        assert found == alone[number]
    assert of_blas() == before


@pytest.mark.usefixtures("two_cores")
def test_limits_that_other_threads_set_and_lift_change_no_bit(compiled: bool) -> None:
    """As scikit-learn does while it computes."""
    alone, over = fitted(), threading.Event()

    def limit() -> None:
        while not over.is_set():
            with threadpool_limits(1):
                time.sleep(0.0005)

    other = threading.Thread(target=limit)
    other.start()
    try:
        for _ in range(3):
            assert fitted() == alone
    finally:
        over.set()
        other.join()


# ------------------------------------------------------------------------------------------------ forks

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
LIMIT = 60
"""Seconds after which a child counts as hanging."""


def child_fits() -> int:
    """In a child: 0 if it can fit, and finds the BLAS as it is outside of a run."""
    signal.alarm(LIMIT)
    fitted(epochs=1)
    return len(blas._calls) + len(blas._runs)


@contextmanager
def fitting_all_the_while(compiled: bool) -> Iterator[None]:
    over = threading.Event()

    def fit() -> None:
        with use_compiled_steps(compiled):
            while not over.is_set():
                fitted(1, epochs=1)

    thread = threading.Thread(target=fit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def by_fork() -> list[int]:
    codes = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os._exit(child_fits())
        codes.append(os.waitpid(child, 0)[1])
    return codes


def by_multiprocessing() -> list[int]:
    children = [multiprocessing.get_context("fork").Process(target=child_fits) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT)
    return [child.exitcode if child.exitcode is not None else -1 for child in children]


def by_futures() -> list[int]:
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return [future.result(LIMIT) for future in [pool.submit(child_fits) for _ in range(3)]]


def by_subprocess() -> list[int]:
    found = subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: child_fits() and os._exit(9), check=False)
    return [found.returncode]


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@covering(
    "children, compiled",
    [by_fork, by_multiprocessing, by_futures, by_subprocess],
    [True, False],
    indirect=["compiled"],
)
def test_children_forked_while_a_thread_fits_can_fit(children: Callable[[], list[int]], compiled: bool) -> None:
    with fitting_all_the_while(compiled):
        codes = children()
    assert set(codes) == {0}


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_inside_a_run_goes_on_with_it_and_the_parent_too(compiled: bool) -> None:
    expected, backend = fitted(), get_backend("numpy")
    with backend.stream(2):
        child = os.fork()
        if child == 0:
            signal.alarm(LIMIT)
            os._exit(0 if fitted() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert fitted() == expected


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_waits_for_the_calls_of_other_threads_and_holds_up_new_ones() -> None:
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def call() -> None:
        with blas.call(None):
            inside.set()
            go.wait(20)
            order.append("call")

    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(20)
    threading.Timer(0.05, go.set).start()
    with blas.call(None):  # its own does not count
        child = os.fork()
        if child == 0:
            os._exit(len(blas._calls) - 1)
    order.append("fork")
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert order == ["call", "fork"] and not blas._calls


# --------------------------------------------------------------------------- in an interpreter of its own

START = """
import os, sys, signal, threading, time
import numpy as np, dnn
X = np.random.default_rng(0).standard_normal((500, 8)); Y = (X[:, 0] > 0).astype(int)
def fit(epochs=2):
    network = dnn.Network([8, 16, 1], seed=1)
    network.fit(X, Y, epochs=epochs, batch_size=50, threads=2, validation_split=0.1)
    return network.parameters.flat.tobytes()
"""


def run(code: str, **settings) -> str:
    """What a program prints that ends well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", START + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
        **settings,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout


@forks
def test_child_forked_in_the_middle_of_the_first_fit_can_fit() -> None:
    """While the compiler is imported and the first code compiled, and while the BLAS makes its threads."""
    code = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
threading.Thread(target=fit).start()
for pause in (0, 0.05, 0.1):
    time.sleep(pause)
    child = os.fork()
    if child == 0:
        signal.alarm(60); fit(1); os._exit(0)
    print(os.waitpid(child, 0)[1])
"""
    assert run(code).split() == ["0"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_where_no_more_threads_may_be_started_the_fit_goes_on_with_fewer() -> None:
    code = """
import resource
expected = fit()
if os.getuid() == 0:
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(error)
print(fit() == expected)
"""
    assert run(code) == "can't start new thread\nTrue\n"


def test_small_stacks_are_enough_for_the_threads_of_a_fit() -> None:
    assert run("expected = fit(); threading.stack_size(32768); print(fit() == expected)") == "True\n"


@pytest.mark.parametrize(
    "code",
    [
        "import atexit; atexit.register(lambda: print(len(fit()) > 0))",
        "class Late:\n    def __del__(self): print(len(fit()) > 0)\nimport atexit; late = Late(); "
        "atexit.register(lambda: globals().pop('late'))",
        "threading.Thread(target=lambda: (time.sleep(0.1), print(len(fit()) > 0))).start()",  # after the main thread
        "threading.Thread(target=lambda: [fit(50) for _ in range(100)], daemon=True).start(); time.sleep(0.3); "
        "print(True)",
    ],
    ids=["atexit", "finalizer", "after the main thread", "daemon"],
)
def test_fit_at_the_end_of_the_interpreter(code: str) -> None:
    assert run(code) == "True\n"


def test_process_that_is_spawned_fits_what_its_parent_sends(tmp_path: Path) -> None:
    network = dnn.Network([40, 8, 1], seed=1)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(fit_and_give_back, network.layer_sizes)
        sent = future.result(LIMIT)
    assert sent == fit_and_give_back(network.layer_sizes)


def fit_and_give_back(sizes: list[int]) -> bytes:
    network = dnn.Network(sizes, seed=1)
    network.fit(X, Y, epochs=1, batch_size=400, threads=1, verbose=False)
    return network.parameters.flat.tobytes()


# ------------------------------------------------------------------------------------------ surroundings


def surroundings() -> SimpleNamespace:
    """What a caller may have set."""
    umask = os.umask(0)
    os.umask(umask)
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = ""
    return SimpleNamespace(
        umask=umask,
        folder=folder,
        errors=np.geterr(),
        call=np.geterrcall(),
        printing=np.get_printoptions(),
        filters=list(warnings.filters),
        locale=locale.setlocale(locale.LC_ALL),
        streams=(sys.stdout, sys.stderr, sys.stdin),
        hooks=(sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        environment=dict(os.environ),
        signals={number: signal.getsignal(number) for number in signal.valid_signals()},
        blocked=signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        collecting=(gc.isenabled(), gc.get_threshold()),
        depth=sys.getrecursionlimit(),
        switch=sys.getswitchinterval(),
        stack=threading.stack_size(),
        running={thread for thread in threading.enumerate() if thread.is_alive()},
        random=str(np.random.get_state()),
        cores=os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        blas=of_blas(),
    )


def errors_of_numpy(monkeypatch, tmp_path) -> None:
    np.seterr(all="raise")


def calls_of_numpy(monkeypatch, tmp_path) -> None:
    np.seterr(all="call")
    np.seterrcall(lambda *what: pytest.fail(str(what)))


def warnings_as_errors(monkeypatch, tmp_path) -> None:
    np.seterr(all="warn")
    warnings.simplefilter("error")


def no_folder(monkeypatch, tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()


def no_environment(monkeypatch, tmp_path) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)


def other_language(monkeypatch, tmp_path) -> None:
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_ALL, name)
            return
        except locale.Error:
            continue


def no_streams(monkeypatch, tmp_path) -> None:
    for name in ("stdout", "stderr", "stdin"):
        monkeypatch.setattr(sys, name, None)


def closed_streams(monkeypatch, tmp_path) -> None:
    for name in ("stdout", "stderr", "stdin"):
        stream = io.StringIO()
        stream.close()
        monkeypatch.setattr(sys, name, stream)


def own_signals(monkeypatch, tmp_path) -> None:
    signal.signal(signal.SIGALRM, lambda *what: None)
    signal.signal(signal.SIGINT, lambda *what: None)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)


def no_collection(monkeypatch, tmp_path) -> None:
    gc.disable()


def little_depth(monkeypatch, tmp_path) -> None:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 200)


def masked_files(monkeypatch, tmp_path) -> None:
    os.umask(0o777)


def a_profiler(monkeypatch, tmp_path) -> None:
    sys.setprofile(lambda *what: None)
    threading.setprofile(lambda *what: None)


@pytest.fixture
def restored() -> Iterator[None]:
    """After the test, all that one of the above changes is as before."""
    was = surroundings()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    np.seterr(**was.errors)
    np.seterrcall(was.call)
    os.umask(was.umask)
    locale.setlocale(locale.LC_ALL, was.locale)
    warnings.filters[:] = was.filters
    sys.setrecursionlimit(was.depth)
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]
    if was.collecting[0]:
        gc.enable()
    for number in (signal.SIGALRM, signal.SIGINT):
        signal.signal(number, was.signals[number])


GUESTS = [
    errors_of_numpy,
    calls_of_numpy,
    warnings_as_errors,
    no_folder,
    no_environment,
    other_language,
    no_streams,
    closed_streams,
    own_signals,
    no_collection,
    little_depth,
    masked_files,
    a_profiler,
]


@cache
def undisturbed(compiled: bool) -> tuple[bytes, str, bytes]:
    return fitted(optimizer=dnn.Adam(0.5), verbose=None)


@pytest.mark.usefixtures("restored", "two_cores")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@covering("change, compiled", GUESTS, [True, False], indirect=["compiled"])
def test_the_callers_surroundings_change_no_bit_and_stay(
    change: Callable[..., None], compiled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # a rate and inputs that overflow and underflow on the way
    settings = {"optimizer": dnn.Adam(0.5), "verbose": None}
    expected = undisturbed(compiled)
    with monkeypatch.context() as patch:
        change(patch, tmp_path)
        before = surroundings()
        assert fitted(**settings) == expected
        after = surroundings()
        vars(before).pop("cores"), vars(after).pop("cores")
        assert vars(after) == vars(before)


@covering(
    "activation, dtype, compiled",
    ["relu", "tanh", "sigmoid", "gelu"],
    ["float32", "float64"],
    [True, False],
    times=2,
    indirect=["compiled"],
)
def test_overflow_and_underflow_are_no_errors_whatever_numpy_is_told(
    activation: str, dtype: str, compiled: bool
) -> None:
    large, small = 1e3 * X.astype(np.float64), 1e-300 * X.astype(np.float64)
    with np.errstate(all="raise"):
        for output, targets in (("sigmoid", Y), ("softmax", Y), ("linear", large[:, :1])):
            network = dnn.Network(
                [40, 8, 2 if output == "softmax" else 1], activation=activation, output=output, seed=1, dtype=dtype
            )
            network.fit(X, targets, epochs=1, batch_size=500, optimizer=dnn.Adam(0.5), verbose=False)
            for inputs in (large, small):
                network.predict(inputs)
                network.evaluate(inputs, targets)
        assert np.geterr() == dict.fromkeys(np.geterr(), "raise")


def test_in_an_event_loop_and_in_its_threads(compiled: bool) -> None:
    expected = fitted()

    async def fits() -> list[tuple]:
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(time.perf_counter())
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found = [fitted(), *await asyncio.gather(*(asyncio.to_thread(fitted) for _ in range(2)))]
        ticking.cancel()
        assert len(ticks) > 2  # the loop went on meanwhile
        return found

    assert asyncio.run(fits()) == [expected] * 3


@pytest.mark.usefixtures("restored")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_signal_handler_may_predict_in_the_middle_of_a_fit(compiled: bool) -> None:
    network, found = dnn.Network([40, 8, 1], seed=3), []
    expected, answer = fitted(epochs=6), network.predict_proba(X)
    signal.signal(signal.SIGALRM, lambda *what: found.append(np.array_equal(network.predict_proba(X), answer)))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.02)
    assert fitted(epochs=6) == expected
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert set(found) == {True}


@pytest.mark.usefixtures("restored")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a callback of Python's own
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_exception_of_a_signal_handler_leaves_the_process_as_it_was(compiled: bool) -> None:
    """A limit of time, as many set one."""
    expected, before = fitted(), surroundings()

    class Late(BaseException):
        """No Exception: that would be taken for what reading the data ran into."""

    def late(*what: object) -> None:
        raise Late

    stopped = 0
    for delay in np.linspace(0.001, 0.05, 15):
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, delay)
        try:
            fitted(epochs=20)
        except Late:
            stopped += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before.signals[signal.SIGALRM])
    assert stopped > 3
    assert vars(surroundings()) == vars(before)
    assert not blas._calls and not blas._runs
    assert fitted() == expected
