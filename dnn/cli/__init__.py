"""The `dnn` command, one module per subcommand. Results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from dnn import __version__, errors
from dnn.backends import BackendUnavailableError
from dnn.cli import check, convert, doctor, evaluate, flags, inspect, predict, train
from dnn.cli.common import discard_unwritten, show
from dnn.interrupt import Terminated

EXIT_CODES: dict[type[BaseException], int] = {
    errors.DataError: 3,
    errors.ModelFileError: 4,
    BackendUnavailableError: 5,
    errors.NonFiniteLossError: 6,
    errors.OutputError: 7,
    MemoryError: 5,
    KeyboardInterrupt: 130,
    # after the errors above, some of which are ValueErrors too: invalid settings that the parser cannot detect
    ValueError: 2,
    TypeError: 2,
}
SECONDS_ISOLATED = 600.0
"""How long a command may take that reads files which are not trusted."""
READER_GONE = 141
"""Nobody reads the pipe that standard output is, as after `| head`: the status of a program that SIGPIPE ends."""
_EPILOG = (
    "exit status: 0 success, 1 a check has failed, 2 usage error, 3 invalid data, 4 invalid model file, 5 backend or "
    "device not usable, 6 non-finite loss, 7 output cannot be written, 129 SIGHUP, 130 Ctrl-C, 141 output no longer "
    "read, 143 SIGTERM"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {errors.printable(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:  # --help and --version, whose failures argparse ignores
            show(message)
        else:
            super()._print_message(message, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _Parser(prog="dnn", description="Train and use dense networks, on NumPy or CuPy.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"dnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, evaluate, predict, convert, inspect, check, doctor):
        command.add(commands)
    if sys.stderr is None:  # closed by the caller: print would write to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for command_parser in commands.choices.values():
        command_parser.set_defaults(parser=command_parser)
    given = argparse.Namespace(debug=False, parser=parser)
    try:
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            _refuse(given.parser, unknown)
        if getattr(given, "isolate", False):
            from dnn.isolation import run_isolated

            words = sys.argv[1:] if arguments is None else arguments
            return run_isolated([word for word in words if word != "--isolate"], seconds=SECONDS_ISOLATED)
        with _log(quiet=given.quiet), _threads(getattr(given, "threads", None)):
            status = given.run(given)
    except BrokenPipeError:
        return READER_GONE
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _failed(error, given)
    finally:
        discard_unwritten(sys.stderr)
    return status or 0


def _refuse(parser: argparse.ArgumentParser, unknown: list[str]) -> NoReturn:
    flag = next((name for name in unknown if name.startswith("-")), None)
    if flag is None:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    meant = flags.meant_by(flag, flags.of(parser))
    parser.error(f"no flag {flag.split('=')[0]}" + (f": did you mean {meant}?" if meant else ""))


@contextlib.contextmanager
def _log(quiet: bool) -> Iterator[None]:
    """With `quiet`, suppress log messages below errors."""
    log = logging.getLogger("dnn")
    before = log.level
    log.setLevel(logging.ERROR if quiet else before)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Run the command on this many threads, as if DNN_NUM_THREADS were set to it."""
    before = os.environ.get("DNN_NUM_THREADS")
    if number is not None:
        os.environ["DNN_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if number is not None:
            os.environ.pop("DNN_NUM_THREADS")
            os.environ.update({} if before is None else {"DNN_NUM_THREADS": before})


def _failed(error: BaseException, given: argparse.Namespace) -> int:
    if given.debug:
        import traceback

        traceback.print_exception(error)
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    message = str(error)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted"
    elif isinstance(error, Terminated):
        code, message = error.code, f"ended by {error.signal}"
    elif isinstance(error, MemoryError):
        message = f"not enough memory: {error}"
    elif code == 1:
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    message = flags.in_place_of_arguments(message, flags.of(given.parser))
    with contextlib.suppress(OSError):
        print(f"dnn: {errors.printable(message)}", file=sys.stderr)
    return code
