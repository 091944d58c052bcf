"""Whole files or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from dnn.errors import OutputError


def check_writable(path: str, force: bool) -> None:
    """OutputError now, rather than after the work, where `path` could not be written.

    It is tried, folder and all, and nothing of that stays. A device or a pipe is not replaced and needs no `force`.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder: name a file")
    if _is_special(path):
        return
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path}: exists already: choose another place, or replace it with --force (force=True)")
    folder = os.path.dirname(os.path.realpath(path))
    missing = _missing_folders(folder)
    there = os.path.dirname(missing[-1]) if missing else folder
    if not os.path.isdir(there):
        raise OutputError(f"{path}: cannot be written: {there} is not a folder")
    try:
        os.makedirs(folder, exist_ok=True)
        import tempfile  # only here: it is a fifth of what `import dnn` would take

        handle, probe = tempfile.mkstemp(dir=folder, prefix=".dnn-")
        os.close(handle)
        os.unlink(probe)
    except OSError as cause:
        raise OutputError(f"{path}: cannot be written: {cause.strerror}") from None
    finally:
        _remove_empty(missing)


def write_whole(contents: Mapping[str, bytes]) -> None:
    """Write every path's bytes, each whole or not at all, and none where the bytes of any cannot be written.

    Each file is written beside its place under another name, flushed to the disk, and renamed only when all of them
    are there. A link stays one: what it points to is replaced. A device or a pipe is written to as it is. OutputError
    where anything fails; nothing half-written stays.
    """
    contents = {path if _is_special(path) else os.path.realpath(path): content for path, content in contents.items()}
    temporary: dict[str, str] = {}
    made: list[str] = []
    path = ""
    try:
        for path, content in contents.items():
            if _is_special(path):
                with open(path, "wb") as file:
                    file.write(content)
                continue
            folder = os.path.dirname(path)
            made = [*_missing_folders(folder), *made]
            os.makedirs(folder, exist_ok=True)
            import tempfile

            handle, temporary[path] = tempfile.mkstemp(dir=folder, prefix=".dnn-")
            with open(handle, "wb") as file:
                os.chmod(temporary[path], 0o666 & ~_umask())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in list(temporary):
            os.replace(temporary[path], path)
            del temporary[path]
            _sync_folder(os.path.dirname(path))
    except OSError as cause:
        raise OutputError(f"{path}: cannot be written: {cause.strerror}") from None
    finally:
        for left in temporary.values():
            with contextlib.suppress(OSError):
                os.unlink(left)
        _remove_empty(made)


def _is_special(path: str) -> bool:
    """A device, a pipe, a socket: nothing that a rename should replace."""
    return os.path.exists(path) and not os.path.isfile(path)


def _missing_folders(folder: str) -> list[str]:
    """The folders to make before there is `folder`, the deepest first."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _remove_empty(folders: list[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it was not made, or holds what was written
            os.rmdir(folder)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sync_folder(folder: str) -> None:
    # the rename itself reaches the disk with the folder; some systems cannot open one
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
