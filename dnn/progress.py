"""What a fit shows while it runs: a bar on a terminal and in a notebook, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LINE_EVERY = 10.0
"""Minimum seconds between two progress lines without a terminal."""


class Progress:
    """No output."""

    def steps_done(self, steps: int) -> None:
        pass

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        pass


class _Bar(Progress):
    """A bar for the whole fit, with the figures of the last epoch in front of it: what is cut off is the bar."""

    FORMAT = "{desc} |{bar}| {percentage:.0f}% {remaining}"

    def __init__(self, bar: Any, epochs: int, done: int) -> None:
        self._bar = bar
        self._epochs = epochs
        self._done = done
        self.last_line = ""

    def steps_done(self, steps: int) -> None:
        with suppress(Exception):  # what tqdm draws, on whatever stream: no reason to end a training
            self._bar.update(steps)

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._done += 1
        self.last_line = _line(self._done, self._epochs, measured)
        with suppress(Exception):
            self._bar.set_description_str(f"{self._done}/{self._epochs}: {_in_short(measured)}", refresh=False)


class _Lines(Progress):
    """A line for the first and the last epoch, and at most one every LINE_EVERY seconds in between."""

    def __init__(self, epochs: int, done: int) -> None:
        self._epochs = epochs
        self._done = done
        self._last_line = -math.inf

    def epoch_done(self, epoch: int, measured: dict[str, float]) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY or self._done == self._epochs:
            self._last_line = now
            _show(_line(self._done, self._epochs, measured), sys.stderr)


def _line(epoch: int, epochs: int, measured: dict[str, float]) -> str:
    return f"epoch {epoch}/{epochs}: {', '.join(words(measured))}"


def words(measured: dict[str, float]) -> list[str]:
    """Each measure that is a number."""
    return [f"{name} {value:.4f}" for name, value in measured.items() if isinstance(value, float)]


def _in_short(measured: dict[str, float]) -> str:
    """Each measure with that of the validation in brackets, for one line of 80 columns that has a bar as well."""

    def digits(value: float) -> str:
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"

    def both(name: str) -> str:
        validation = f" (val {digits(measured[f'val_{name}'])})" if f"val_{name}" in measured else ""
        return f"{name} {digits(measured[name])}{validation}"

    numbers = [name for name, value in measured.items() if isinstance(value, float)]
    return ", ".join(both(name) for name in numbers if not name.startswith("val_"))


def _show(line: str, stream: Any) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed: no reason to end a training
        print(line, file=stream, flush=True)


def note(line: str, verbose: bool | None) -> None:
    """Show a line before the progress, where that is shown."""
    if sys.stderr is not None and (verbose or (verbose is None and _is_terminal(sys.stderr))):
        _show(line, sys.stderr)


@contextmanager
def show_progress(epochs: int, batches: int, verbose: bool | None, done: int = 0, batch: int = 0) -> Iterator[Progress]:
    """The progress of so many epochs of so many batches, of which some are done already."""
    if verbose is False or sys.stderr is None:
        yield Progress()
    elif (notebook := _notebook()) is not None or _is_terminal(sys.stderr):
        stream = sys.stderr if notebook is None else _CellLine(notebook)
        bar = _tqdm(
            total=epochs * batches,
            initial=done * batches + batch,
            desc=f"{done}/{epochs}",
            bar_format=_Bar.FORMAT,
            file=stream,
            dynamic_ncols=notebook is None,
            leave=False,
        )
        if bar is None:
            yield _Lines(epochs, done)
            return
        progress = _Bar(bar, epochs, done)
        try:
            yield progress
        finally:
            with suppress(Exception):
                bar.close()
            if progress.last_line:
                _show(progress.last_line, stream)
    elif verbose:
        yield _Lines(epochs, done)
    else:
        yield Progress()


@contextmanager
def show_share(what: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; what is yielded is called with how much is done and how much there is."""
    bar: Any = None
    if show and sys.stderr is not None and _is_terminal(sys.stderr):
        bar = _tqdm(total=1, desc=what, bar_format=_Bar.FORMAT, file=sys.stderr, dynamic_ncols=True, leave=False)

    def share(done: int, of: int) -> None:
        with suppress(Exception):
            bar.total = of
            bar.update(done - bar.n)

    try:
        yield share if bar is not None else lambda done, of: None
    finally:
        with suppress(Exception):
            bar.close()


def _tqdm(**settings: Any) -> Any:
    """A bar of tqdm; None where there can be none: its own environment variables may be what it does not take."""
    try:
        from tqdm import tqdm

        return tqdm(**settings)
    except Exception:
        return None


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a stand-in for a stream, or a closed one
        return False


def _notebook() -> Any:
    """The module IPython in a kernel of Jupyter, else None. Nothing is imported: a kernel has done so."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    return ipython if getattr(shell, "kernel", None) is not None else None


class _CellLine:
    """A stream whose last line is an output of the cell: a stream of the kernel would keep all lines in the file."""

    def __init__(self, ipython: Any) -> None:
        self._output = ipython.display.display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip():
            self._output.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass
