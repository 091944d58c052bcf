"""Atomic writes: whole files or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from dnn.errors import OutputError


def check_writable(path: str, force: bool) -> None:
    """Raise OutputError, before the work rather than after it, if `path` cannot be written.

    The check tries it, creating folders as needed, and leaves nothing behind. A device or a pipe is not replaced and
    needs no `force`.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder: name a file")
    if _is_special(path):
        return
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path}: already exists: choose another path, or replace it with --force (force=True)")
    folder = os.path.dirname(os.path.realpath(path))
    missing = _missing_folders(folder)
    there = os.path.dirname(missing[-1]) if missing else folder
    if not os.path.isdir(there):
        raise OutputError(f"{path}: cannot be written: {there} is not a folder")
    try:
        os.makedirs(folder, exist_ok=True)
        import tempfile  # imported late: it would add a fifth to the time of `import dnn`

        handle, probe = tempfile.mkstemp(dir=folder, prefix=".dnn-")
        os.close(handle)
        os.unlink(probe)
    except OSError as cause:
        raise OutputError(f"{path}: cannot be written: {cause.strerror}") from None
    finally:
        _remove_empty(missing)


def write_whole(contents: Mapping[str, bytes]) -> None:
    """Write every path's bytes, each atomically, and none of them if writing any fails.

    Each file is written under a temporary name in its folder and flushed to disk; all are renamed once all are
    complete. A symbolic link is kept, and its target replaced. A device or a pipe is written to directly. OutputError
    if anything fails; no partial file is left behind.
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
    """Whether `path` is a device, a pipe or a socket, which a rename must not replace."""
    return os.path.exists(path) and not os.path.isfile(path)


def _missing_folders(folder: str) -> list[str]:
    """The folders to create so that `folder` exists, deepest first."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _remove_empty(folders: list[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it was never created, or is not empty
            os.rmdir(folder)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sync_folder(folder: str) -> None:
    # the rename is durable only once the folder is synced; some systems cannot open a folder
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
