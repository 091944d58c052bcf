"""Atomic writes: whole files or none, and an existing file only where the caller says so."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Mapping

from dnn.errors import OutputError

_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


class _NameTaken(OutputError):
    """A file of that name appeared between the check and the end of the work."""


def check_writable(path: str, force: bool, inputs: Iterable[str] = ()) -> None:
    """Raise OutputError, before the work rather than after it, if `path` cannot be written.

    The check tries what it can without creating folders, and leaves nothing behind. A device or a pipe is not replaced
    and needs no `force`. A file that the work reads, one of the `inputs`, is not replaced even with `force`.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder: name a file")
    try:
        target = _target(path, follow=force)
        if _is_special(path):
            return
        exists = _lstat(target) is not None
        if exists and not force:
            raise OutputError(f"{path}: already exists: choose another path, or replace it with --force (force=True)")
        if exists and any(os.path.exists(name) and os.path.samefile(target, name) for name in inputs):
            raise OutputError(f"{path}: is read by this command and would be lost: choose another path")
        folder = os.path.dirname(target)
        missing = _missing_folders(folder)
        there = os.path.dirname(missing[-1]) if missing else folder
        if not os.path.isdir(there):
            raise OutputError(f"{path}: cannot be written: {there} is not a folder")
        handle, probe = _temporary(there)
        os.close(handle)
        os.unlink(probe)
    except (OSError, ValueError) as cause:
        raise _cannot_be_written(path, cause) from None


def write_whole(contents: Mapping[str, bytes], force: bool = True) -> None:
    """Write every path's bytes, each atomically, and none of them if writing any fails.

    Each file is written under a temporary name in its folder and flushed to disk; all are renamed once all are
    complete. Without `force`, nothing is written if one of them exists by then. With it, a new file takes over the old
    one's permissions, owner and extended attributes, as far as this user may set them; a symbolic link is kept, and its
    target replaced; other hard links keep the old content. A device or a pipe is written to directly. OutputError if
    anything fails; no partial file is left behind.
    """
    targets: dict[str, str] = {}
    temporary: dict[str, str] = {}
    existing: dict[str, str] = {}  # and what the old content is called until all is done
    named: list[str] = []
    made: list[str] = []
    path = ""
    try:
        for path, content in contents.items():
            target = _target(path, follow=force)
            if _is_special(path):
                with open(path, "ab") as file:  # standard output may be a file that holds something already
                    file.write(content)
                continue
            folder = os.path.dirname(target)
            made = [*_missing_folders(folder), *made]
            os.makedirs(folder, exist_ok=True)
            old = _lstat(target) if force else None
            handle, temporary[path] = _temporary(folder, 0o666 if old is None else stat.S_IMODE(old.st_mode))
            targets[path] = target
            with open(handle, "wb") as file:
                if old is not None:
                    existing[target] = f"{temporary[path]}.old"
                    _take_over(target, old, handle)
                file.write(content)
                file.flush()
                os.fsync(handle)
        for path, target in targets.items():
            if force:
                if target in existing and len(targets) > 1:
                    with contextlib.suppress(OSError):  # a file system without hard links: no way back
                        os.link(target, existing[target])
                os.replace(temporary[path], target)
            else:
                _name_new(temporary[path], target)
            named.append(target)
            _sync_folder(os.path.dirname(target))
        named.clear()
    except _NameTaken:
        raise _NameTaken(f"{path}: already exists: another program wrote it meanwhile") from None
    except (OSError, ValueError) as cause:
        raise _cannot_be_written(path, cause) from None
    finally:
        for target in named:  # of which a later one failed
            with contextlib.suppress(OSError):
                if target in existing:
                    os.replace(existing[target], target)
                else:
                    os.unlink(target)
        for left in [*temporary.values(), *existing.values()]:
            with contextlib.suppress(OSError):
                os.unlink(left)
        _remove_empty(made)


def write_results(contents: Mapping[str, bytes], force: bool) -> None:
    """`write_whole` for what took long: if a name was taken meanwhile, the results are not lost.

    They are written beside it, all under the next free number (model-2.h5 for model.h5), and OutputError says where.
    """
    try:
        write_whole(contents, force)
    except _NameTaken as taken:
        for number in itertools.count(2):
            numbered = {_numbered(path, number): content for path, content in contents.items()}
            with contextlib.suppress(_NameTaken):
                write_whole(numbered, force=False)
                raise OutputError(f"{taken}; the results of this run are in {' and '.join(numbered)}") from None


def _numbered(path: str, number: int) -> str:
    root, extension = os.path.splitext(path)
    return f"{root}-{number}{extension}"


def _target(path: str, follow: bool) -> str:
    """The file that `path` names, in the real path of its folder; with `follow`, the one that a link there leads to."""
    folder, name = os.path.split(path)
    if not path:
        raise OutputError("'': cannot be written: the name is empty: name a file")
    if name in ("", ".", ".."):  # realpath drops these, and a file of the name before them would be taken
        raise OutputError(f"{path}: is a folder: name a file")
    target = os.path.join(os.path.realpath(folder), name)
    return os.path.realpath(target) if follow else target


def _is_special(path: str) -> bool:
    """Whether `path` is a device, a pipe, a socket or an open stream, which a rename must not replace."""
    return os.path.exists(path) and (not os.path.isfile(path) or bool(_STREAM.fullmatch(path)))


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _temporary(folder: str, mode: int = 0o600) -> tuple[int, str]:
    """A new file in `folder`: its handle and its path."""
    path = os.path.join(folder, f".dnn-{os.urandom(8).hex()}")
    # not by tempfile, whose files are the user's alone: to undo that, the umask would have to be set for all threads
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), path


def _take_over(path: str, old: os.stat_result, handle: int) -> None:
    """Give an open file what a user set of the file at `path`, as far as this user may."""
    # the owner first: changing it clears bits of the mode
    for uid, gid in ((-1, old.st_gid), (old.st_uid, -1)):
        with contextlib.suppress(OSError):
            os.fchown(handle, uid, gid)
    with contextlib.suppress(OSError):
        os.fchmod(handle, stat.S_IMODE(old.st_mode))
    with contextlib.suppress(OSError):  # a file system without attributes
        for name in os.listxattr(path) if hasattr(os, "listxattr") else ():  # Linux: access control lists among them
            with contextlib.suppress(OSError):
                os.setxattr(handle, name, os.getxattr(path, name))


def _name_new(path: str, target: str) -> None:
    """Give the file at `path` the name `target`; _NameTaken where that exists, which os.rename would replace."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise _NameTaken(target) from None
    except OSError:  # a file system without hard links: reserve the name
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise _NameTaken(target) from None
        try:
            os.replace(path, target)
        except BaseException:
            os.unlink(target)
            raise


def _cannot_be_written(path: str, cause: OSError | ValueError) -> OutputError:
    # a ValueError: a null character in the name
    return OutputError(f"{path}: cannot be written: {getattr(cause, 'strerror', None) or cause}")


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


def _sync_folder(folder: str) -> None:
    # the rename is durable only once the folder is synced; some systems cannot open a folder
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
