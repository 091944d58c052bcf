"""The command `dnn`: one file a command. Data and summaries go to stdout, messages and progress to stderr."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from backends import BackendUnavailableError
from dnn import __version__, errors
from dnn.cli import evaluate, predict, train

EXIT_CODES: dict[type[BaseException], int] = {
    errors.DataError: 3,
    errors.ModelFileError: 4,
    BackendUnavailableError: 5,
    errors.NonFiniteLossError: 6,
    errors.OutputError: 7,
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
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _Parser(prog="dnn", description="Train and use dense networks, on NumPy or CuPy.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"dnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, evaluate, predict):
        command.add(commands)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
        _flush()
    except Exception as error:
        return _failed(error, given)
    except KeyboardInterrupt as error:
        return _failed(error, given)
    return 0


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as cause:
        # what could not be written is dropped here, or Python would complain of it once more at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise errors.OutputError(f"standard output: cannot be written: {cause.strerror}") from None


def _failed(error: BaseException, given: Any) -> int:
    if given.debug:
        import traceback

        traceback.print_exception(error)
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    message = str(error)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted"
    elif isinstance(error, MemoryError):
        code, message = 3, f"not enough memory: {error}"
    elif code == 1:
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    print(f"dnn: {message}", file=sys.stderr)
    return code
