"""The command `dnn`: one file a command. Data and summaries go to stdout, messages and progress to stderr."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from dnn import __version__, errors
from dnn.backends import BackendUnavailableError
from dnn.cli import doctor, evaluate, predict, train
from dnn.cli.common import show

EXIT_CODES: dict[type[BaseException], int] = {
    errors.DataError: 3,
    errors.ModelFileError: 4,
    BackendUnavailableError: 5,
    errors.NonFiniteLossError: 6,
    errors.OutputError: 7,
    MemoryError: 5,
    KeyboardInterrupt: 130,
    # after the errors above, some of which are ValueErrors too: settings that no parser could refuse
    ValueError: 2,
    TypeError: 2,
}
_EPILOG = (
    "exit status: 0 done, 2 wrong usage, 3 bad data, 4 bad model file, 5 backend or device not usable, "
    "6 the loss is no longer finite, 7 output cannot be written, 130 Ctrl-C"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _Parser(prog="dnn", description="Train and use dense networks, on NumPy or CuPy.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"dnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, evaluate, predict, doctor):
        command.add(commands)
    if sys.stderr is None:  # closed by the caller: print would take standard output in its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    debug = False
    try:
        try:
            given = parser.parse_args(arguments)
        finally:
            if sys.stdout is not None:
                show("")  # what --help and --version print is written out, or known not to be
        debug = given.debug
        with _log(quiet=given.quiet), _threads(getattr(given, "threads", None)):
            given.run(given)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, debug)
    return 0


@contextlib.contextmanager
def _log(quiet: bool) -> Iterator[None]:
    """Quiet: nothing that the backends log short of an error."""
    log = logging.getLogger("dnn.backends")
    before = log.level
    log.setLevel(logging.ERROR if quiet else before)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """All that the command does on this many threads, as if DNN_NUM_THREADS said so."""
    before = os.environ.get("DNN_NUM_THREADS")
    if number is not None:
        os.environ["DNN_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if number is not None:
            os.environ.pop("DNN_NUM_THREADS")
            os.environ.update({} if before is None else {"DNN_NUM_THREADS": before})


def _one_line(message: str) -> str:
    # a file's names can hold anything: line breaks, and what a terminal would obey
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def _failed(error: BaseException, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    message = str(error)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted"
    elif isinstance(error, MemoryError):
        message = f"not enough memory: {error}"
    elif code == 1:
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    with contextlib.suppress(OSError):
        print(f"dnn: {_one_line(message)}", file=sys.stderr)
    return code
