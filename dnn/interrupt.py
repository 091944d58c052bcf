"""Signals between two steps: Ctrl-C, and where a fit has checkpoints, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM or SIGHUP has ended a fit after its current step; the process ends with 128 + the signal's number."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


class Interrupt:
    """Records a signal; a second one no longer waits for the step to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before, self.number = self.number, number
        if before is not None:
            self.check()

    @property
    def pressed(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise Terminated(self.number)


@contextmanager
def whole_steps(terminating: bool = False) -> Iterator[Interrupt]:
    """Defer Ctrl-C until `check`, where Python's own handler would raise in the middle of a step.

    With `terminating`, SIGTERM and SIGHUP too, where nobody handles or ignores them.
    """
    interrupt = Interrupt()
    ours = {signal.SIGINT: signal.default_int_handler}
    if terminating:
        ours |= {getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)}
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: usual for number, usual in ours.items() if in_main and signal.getsignal(number) is usual}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield interrupt
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
    interrupt.check()
