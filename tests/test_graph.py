"""When a step is recorded as a CUDA graph and when it is not, with a CuPy that only takes notes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dnn.backends import base
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
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream)


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
def _nothing_told(monkeypatch):
    monkeypatch.setattr(base, "_told", set())


def test_a_step_runs_twice_is_recorded_and_then_replayed():
    cupy = FakeCupy()
    run = _Graph(cupy, lambda: cupy.log.append("step"))
    for _ in range(5):
        run()
    # five steps' work: two run, three launches of what the third call recorded
    assert cupy.log == ["step", "step", "begin", "step", "end", "launch", "launch", "launch"]


def test_on_the_null_stream_every_step_runs():
    cupy = FakeCupy(ptr=0)
    run = _Graph(cupy, lambda: cupy.log.append("step"))
    for _ in range(5):
        run()
    assert cupy.log == ["step"] * 5


def test_a_step_that_cannot_be_recorded_runs_and_says_why_once(caplog):
    cupy = FakeCupy()

    def step() -> None:
        cupy.log.append("step")
        if cupy.log[-2:-1] == ["begin"]:
            raise RuntimeError("a read from the device")

    for _ in range(2):
        run = _Graph(cupy, step)
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                run()
    # no step is lost: the one whose recording failed is run after it
    assert cupy.log == ["step", "step", "begin", "step", "end", "step", "step", "step"] * 2
    assert [record.message for record in caplog.records] == [
        "this step cannot be recorded as a CUDA graph, it runs eagerly: a read from the device"
    ]
