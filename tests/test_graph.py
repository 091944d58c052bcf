"""When a step is captured as a CUDA graph and when it is not, and on which device: with a CuPy that only takes notes,
and with the stand-in, whose rules are those of CUDA."""

from __future__ import annotations

import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FORMS
from standin import (
    MAIN,
    Cublas,
    Cuda,
    EmulatedKernels,
    Event,
    MemoryPool,
    Module,
    StandinBackend,
    StrictGraph,
    device,
    new,
)

import dnn
from dnn import backends
from dnn.backends import base, cuda_kernels, cupy_backend, use_compiled_steps
from dnn.backends.cublas import Products
from dnn.backends.cupy_backend import CupyBackend, _Graph, _refuse_memory
from dnn.backends.plan import Plan


class FakeCupy:
    """Streams and graphs: `log` has what was asked of them."""

    def __init__(self, ptr: int = 7) -> None:
        self.log: list[str] = []
        graph = SimpleNamespace(launch=lambda: self.log.append("launch"))

        def end_capture() -> Any:
            self.log.append("end")
            return graph

        stream = SimpleNamespace(ptr=ptr, begin_capture=lambda: self.log.append("begin"), end_capture=end_capture)
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream, using_allocator=self.using_allocator)
        self.allocator: Any = "the common pool's"
        self.handle = object()

    @contextmanager
    def using_allocator(self, allocator: Any) -> Iterator[None]:
        before, self.allocator = self.allocator, allocator
        yield
        self.allocator = before

    def graph(self, step: Callable[[], None] | None = None, temporaries: Any = None) -> _Graph:
        products: Any = SimpleNamespace(handle=lambda: self.handle)
        return _Graph(self, step or (lambda: self.log.append("step")), products, temporaries)


def test_a_runs_work_is_queued_after_what_was_before_it_and_before_what_comes_after():
    log: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def record(self) -> str:
            log.append(f"mark {self.name}")
            return self.name

        def wait_event(self, event: str) -> None:
            log.append(f"{self.name} waits for {event}")

        def __enter__(self) -> None:
            log.append(f"onto {self.name}")

        def __exit__(self, *_: Any) -> None:
            log.append(f"off {self.name}")

    backend = CupyBackend.__new__(CupyBackend)
    backend._of_thread = SimpleNamespace(stream=Stream("own"))
    backend._device = 1
    backend.xp = SimpleNamespace(
        cuda=SimpleNamespace(
            get_current_stream=lambda: Stream("outside"), Device=lambda number: Stream(f"GPU {number}")
        )
    )
    with pytest.raises(ZeroDivisionError), backend.stream():
        log.append("run")
        raise ZeroDivisionError
    before = ["onto GPU 1", "mark outside", "own waits for outside", "onto own"]
    assert log == [*before, "run", "off own", "mark own", "outside waits for own", "off GPU 1"]


@pytest.fixture(autouse=True)
def _nothing_logged(monkeypatch):
    monkeypatch.setattr(base, "_logged", set())


def test_a_step_runs_twice_is_captured_and_then_replayed():
    cupy = FakeCupy()
    run = cupy.graph()
    for _ in range(5):
        run()
    # five steps' work: two run, three launches of what the third call captured
    assert cupy.log == ["step", "step", "begin", "step", "end", "launch", "launch", "launch"]


def test_on_the_null_stream_every_step_runs():
    cupy = FakeCupy(ptr=0)
    run = cupy.graph()
    for _ in range(5):
        run()
    assert cupy.log == ["step"] * 5


def test_a_step_that_is_called_several_times_at_once_is_the_same():
    cupy = FakeCupy()
    run = cupy.graph()
    run(5)
    run(2)
    assert cupy.log == ["step", "step", "begin", "step", "end", *5 * ["launch"]]


def test_many_runs_at_once_are_one_graph():
    cupy = FakeCupy()
    run = cupy.graph()
    run(2 + 2 * _Graph.MANY + 1)
    many = ["begin", *_Graph.MANY * ["step"], "end", "launch", "launch"]
    assert cupy.log == ["step", "step", *many, "begin", "step", "end", "launch"]


def test_a_step_is_captured_under_an_allocator_that_refuses():
    cupy, seen = FakeCupy(), []
    run = cupy.graph(lambda: seen.append(cupy.allocator))
    run(3)
    assert seen == ["the common pool's", "the common pool's", _refuse_memory] and cupy.allocator == "the common pool's"
    with pytest.raises(RuntimeError, match=r"memory was asked for while a step is captured \(512 bytes\)"):
        _refuse_memory(512)


def test_temporary_arrays_are_of_an_allocator_that_nothing_else_uses():
    """A graph writes to their addresses at every replay, when the common pool has given them to somebody else."""
    cupy, seen = FakeCupy(), []
    run = cupy.graph(lambda: seen.append(cupy.allocator), "of its own")
    run(3)
    assert seen == ["of its own"] * 3 and cupy.allocator == "the common pool's"


def test_in_another_thread_a_step_is_captured_anew():
    """Two graphs that work in one workspace must not run beside one another."""
    cupy = FakeCupy()
    run = cupy.graph()
    run(4)
    cupy.handle = object()
    run(4)
    assert cupy.log == 2 * ["step", "step", "begin", "step", "end", "launch", "launch"]


def test_an_interrupted_capture_is_ended_and_raises():
    cupy = FakeCupy()

    def step() -> None:
        cupy.log.append("step")
        if "begin" in cupy.log:
            raise KeyboardInterrupt

    run = cupy.graph(step)
    run()
    run()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert cupy.log == ["step", "step", "begin", "step", "end"]


def test_a_plan_is_captured_where_compiled_steps_are_on(monkeypatch):
    backend = CupyBackend.__new__(CupyBackend)
    backend.xp, backend._temporaries = FakeCupy(), SimpleNamespace(malloc="of its own")
    backend._products, backend._loader, backend.made = SimpleNamespace(), None, Counter()
    monkeypatch.setattr(CupyBackend, "run_stepwise", lambda self, plan: plan)
    compiled = backend.compile("a plan")
    assert isinstance(compiled, _Graph) and compiled._temporaries == "of its own"
    assert backend.made == {"operation by operation": 1}
    with use_compiled_steps(False):
        assert backend.compile("a plan") == "a plan"


def test_a_step_that_cannot_be_captured_runs_and_says_why_once(caplog):
    cupy = FakeCupy()

    def step() -> None:
        cupy.log.append("step")
        if cupy.log[-2:-1] == ["begin"]:
            raise RuntimeError("a read from the device")

    for _ in range(2):
        run = cupy.graph(step)
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                run()
    # no step is lost: the one whose capture failed is run after it
    assert cupy.log == ["step", "step", "begin", "step", "end", "step", "step", "step"] * 2
    assert [record.message for record in caplog.records] == [
        "this step cannot be captured as a CUDA graph, it runs eagerly: a read from the device"
    ]


# ------------------------------------------------------------------------------------------------- devices


def test_every_method_works_on_the_device_that_was_current_when_the_backend_was_made(monkeypatch):
    """Whichever is current when it is called."""
    module, entered = Module(), []

    def on_device(name: str, result: Any = None) -> Callable[..., Any]:
        def note(*_: Any, **__: Any) -> Any:
            entered.append((name, device.number))
            return result

        return note

    cuda = SimpleNamespace(
        Device=module.cuda.Device,
        get_current_stream=lambda: SimpleNamespace(synchronize=on_device("synchronize")),
        runtime=SimpleNamespace(memGetInfo=on_device("memGetInfo", (1, 2))),
    )
    array = SimpleNamespace(get=on_device("get"))
    backend = CupyBackend.__new__(CupyBackend)
    backend._device = 1
    backend.xp = SimpleNamespace(
        cuda=cuda,
        ndarray=SimpleNamespace,
        get_default_memory_pool=lambda: SimpleNamespace(free_bytes=on_device("free_bytes", 3)),
        **{name: on_device(name) for name in ("empty", "zeros", "asarray")},
    )
    monkeypatch.setattr(base.Backend, "run_stepwise", on_device("run_stepwise"))
    assert backend.memory() == (4, 2)
    backend.empty(2, np.float32)
    backend.zeros(2, np.float32)
    backend.asarray([1])
    backend.to_numpy(array)
    backend.synchronize()
    backend.run_stepwise(Plan())
    names = ["memGetInfo", "free_bytes", "empty", "zeros", "asarray", "get", "synchronize", "run_stepwise"]
    assert entered == [(name, 1) for name in names] and device.number == 0


class Cupy(Module):
    """The stand-in's arrays, with what only the CuPy backend itself asks for."""

    __version__ = "14.2.0"

    def __init__(self) -> None:
        runtime = SimpleNamespace(
            memGetInfo=lambda: (2**33, 2**34),
            runtimeGetVersion=lambda: 13000,
            driverGetVersion=lambda: 13010,
            getDeviceProperties=lambda number: {"name": b"stand-in"},
        )
        self.cuda = Cuda()
        self.cuda.runtime = runtime

    def zeros(self, shape: Any, dtype: Any) -> Any:
        return StandinBackend.zeros(self, shape, dtype)

    def asarray(self, array: Any, dtype: Any = None) -> Any:
        return StandinBackend.asarray(self, array, dtype)

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 0)


@pytest.fixture(params=FORMS)
def library(monkeypatch, request, in_form):
    """The CuPy backend on the stand-in's arrays and its cuBLAS."""
    form, standin = request.param, backends.get_backend("standin")
    in_form(form)
    library = Cublas()
    library.form = form
    library._name = "/libcublas.so.13"
    monkeypatch.setattr(cupy_backend, "_usable_cupy", Cupy)
    monkeypatch.setattr(cupy_backend, "load", lambda: library)
    monkeypatch.setattr(cupy_backend, "_Graph", StrictGraph)
    monkeypatch.setattr(cupy_backend, "_kernel_loader", lambda cupy, zeros: standin.loader)
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    backends._loaded.pop("cupy", None)
    return library


def test_the_cupy_backend_itself_trains_by_the_stand_ins_rules(library):
    X, Y = np.random.default_rng(0).standard_normal((64, 20)), np.arange(64) % 4
    weights = []
    with Module.cuda.Device(1):
        cupy = backends.get_backend("cupy")
    for name in ("standin", "cupy"):
        network = dnn.Network([20, 16, 4], output="softmax", seed=1, backend=name, dtype="float64")
        before = device.counts["graphs"]
        network.fit(X, Y, epochs=4, batch_size=16, verbose=False)
        # one kernel needs no graph
        assert (device.counts["graphs"] > before) == (library.form not in ("block", "grid"))
        weights.append(network.parameters.flat.get())
        assert network.predict(X).shape == (64,)
    np.testing.assert_array_equal(*weights)
    assert cupy.made == {library.form: 1}
    assert [its.device for its in library.handles.values()] == [1] and device.number == 0
    facts = cupy.facts()
    assert cupy.device == "GPU 1 (stand-in, compute capability 9.0)" and facts["cuBLAS"] == "/libcublas.so.13"
    assert facts["steps"].startswith(
        "operation by operation" if library.form == "operation by operation" else "kernels made by"
    )


def no_compiler(*_: Any) -> None:
    raise RuntimeError("no PTX compiler")


def test_kernels_are_tried_out_and_what_is_amiss_is_said_once(monkeypatch, caplog):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    zeros = StandinBackend().zeros
    EmulatedKernels().try_out(zeros)
    for name, broken, message in (
        ("bind", lambda *given: lambda times=1: None, "a kernel gives wrong results on this device"),
        ("_module", no_compiler, "no PTX compiler"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(EmulatedKernels, name, broken)
            patched.setattr(cuda_kernels, "KernelLoader", lambda cupy: EmulatedKernels())
            with caplog.at_level(logging.WARNING):
                assert cupy_backend._kernel_loader(Module(), zeros) is None
        assert message in caplog.records[-1].message


def test_a_device_too_old_for_kernels_keeps_its_graphs(monkeypatch, caplog):
    pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    zeros = StandinBackend().zeros
    monkeypatch.setattr(Module.cuda.Device, "compute_capability", "61")
    with caplog.at_level(logging.WARNING):
        assert cupy_backend._kernel_loader(Module(), zeros) is None
    assert "compute capability 6.1: derived kernels need 7.0 or more" in caplog.records[-1].message


def test_a_step_too_large_for_kernels_runs_operation_by_operation_and_is_estimated_so(monkeypatch, in_form):
    in_form("launches")
    gpu = pytest.importorskip("dnn.backends.codegen.gpu")
    monkeypatch.setattr(gpu, "LARGEST", 100)
    backend, plan = backends.get_backend("standin"), Plan()
    a, b = (plan.buffer(name, (20, 20), np.float32) for name in "ab")
    plan.call(lambda xp, a: xp.dot(a, a), a, into=b)
    assert backend.plan_bytes(plan) == base.Backend.plan_bytes(backend, plan)
    assert isinstance(backend.compile(plan), StrictGraph)


# ------------------------------------------------------------------------------- by the stand-in's rules


class Steps:
    """A product and a reduction, for which CuPy takes temporary memory."""

    def __init__(self) -> None:
        self.library = Cublas()
        self.products = Products(Module(), self.library)
        self.a, self.b, self.c = (new(np.full((4, 4), value)) for value in (1.0, 2.0, np.nan))
        self.maxima = new(np.full((1, 4), np.nan))

    def multiply(self) -> None:
        self.products(self.a, self.b, self.c)

    def reduce(self) -> None:
        self.multiply()
        Module().max(self.c, axis=0, keepdims=True, out=self.maxima)

    def graph(self, step: Callable[[], None], temporaries: Any = None) -> StrictGraph:
        return StrictGraph(Module(), step, self.products, temporaries)


def test_a_graph_replays_what_was_captured():
    steps = Steps()
    run = steps.graph(steps.reduce, MemoryPool().malloc)
    run(4)
    steps.a.fill(3)
    run()
    assert run._graphs[1]
    np.testing.assert_array_equal(steps.c.host, np.full((4, 4), 24.0))
    np.testing.assert_array_equal(steps.maxima.host, np.full((1, 4), 24.0))


def test_an_allocation_in_a_capture_would_be_seen():
    steps = Steps()
    for step in (steps.reduce, lambda: Module().empty(4, np.float32)):
        run = steps.graph(step)
        run(2)
        with pytest.raises(RuntimeError, match=r"memory was asked for while a step is captured \(\d+ bytes\)"):
            run()
        assert device.recording is None
    steps.graph(steps.multiply)(4)


def test_a_handle_made_in_a_capture_would_be_seen():
    steps = Steps()
    MAIN.begin_capture()
    try:
        # its workspace first
        with pytest.raises(RuntimeError, match="allocations while a step is captured"):
            steps.multiply()
    finally:
        MAIN.end_capture()


ARRAY = new(np.ones(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (MAIN.synchronize, "syncs while a step is captured"),
        (lambda: ARRAY.set(np.ones(1), MAIN), "h2d while a step is captured"),
        (lambda: ARRAY.get(), "d2h while a step is captured"),
        (lambda: float(ARRAY), "d2h while a step is captured"),
        (lambda: MAIN.wait_event(Event()), "a wait for work outside of the graph"),
        (MAIN.begin_capture, "begin_capture while a step is captured"),
    ],
)
def test_what_a_graph_cannot_hold_would_be_seen(call, message):
    MAIN.begin_capture()
    try:
        with pytest.raises(RuntimeError, match=message):
            call()
    finally:
        MAIN.end_capture()


def test_end_capture_on_a_stream_that_is_not_capturing_would_be_seen():
    with pytest.raises(RuntimeError, match="end_capture on a stream that is not capturing"):
        MAIN.end_capture()
    MAIN.begin_capture()
    with pytest.raises(RuntimeError, match="end_capture on a stream that is not capturing"):
        Module.cuda.Stream().end_capture()
    MAIN.end_capture()


def captured_in_a_thread_that_has_ended(steps: Steps) -> StrictGraph:
    run = steps.graph(steps.multiply)
    thread = threading.Thread(target=run, args=(4,))
    thread.start()
    thread.join()
    gc.collect()
    return run


def test_a_graph_keeps_the_workspace_of_a_thread_that_has_ended():
    steps = Steps()
    run = captured_in_a_thread_that_has_ended(steps)
    assert len(steps.library.handles) == 1
    run._graphs[1].launch()
    del run
    gc.collect()
    assert not steps.library.handles


def test_a_graph_without_its_workspace_would_be_seen():
    steps = Steps()
    run = captured_in_a_thread_that_has_ended(steps)
    run._handle = None
    gc.collect()
    with pytest.raises(RuntimeError, match="a product in a workspace that is no longer there"):
        run._graphs[1].launch()
