"""When a step is captured as a CUDA graph and when it is not, with a CuPy that only takes notes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from dnn.backends import base, use_compiled_steps
from dnn.backends.cupy_backend import CupyBackend, _Graph


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
        self.allocator: Any = None

    @contextmanager
    def using_allocator(self, allocator: Any) -> Iterator[None]:
        self.allocator = allocator
        yield
        self.allocator = None

    def graph(self, step: Callable[[], None] | None = None) -> _Graph:
        return _Graph(self, step or (lambda: self.log.append("step")), "of its own")


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
    backend.xp = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: Stream("outside")))
    with pytest.raises(ZeroDivisionError), backend.stream():
        log.append("run")
        raise ZeroDivisionError
    before = ["mark outside", "own waits for outside", "onto own"]
    assert log == [*before, "run", "off own", "mark own", "outside waits for own"]


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


def test_temporary_arrays_are_of_an_allocator_that_nothing_else_uses():
    """A graph writes to their addresses at every replay, when the common pool has given them to somebody else."""
    cupy, seen = FakeCupy(), []
    run = cupy.graph(lambda: seen.append(cupy.allocator))
    for _ in range(3):
        run()
    assert seen == ["of its own"] * 3 and cupy.allocator is None


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


def test_a_plan_is_captured_where_products_can_be_and_compiled_steps_are_on(monkeypatch):
    backend = CupyBackend.__new__(CupyBackend)
    backend.xp, backend._temporaries = FakeCupy(), SimpleNamespace(malloc="of its own")
    monkeypatch.setattr(CupyBackend, "run_stepwise", lambda self, plan: plan)
    backend._products = None
    assert backend.compile("a plan") == "a plan"
    backend._products = SimpleNamespace()
    assert isinstance(backend.compile("a plan"), _Graph)
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
