"""Atomic writes: whole files or none, and an existing file only where the caller says so.

A file is written under a temporary name in its own folder, flushed to disk, renamed, and its folder is flushed:
whatever ends the process, and whenever, the name stands for the whole old file or for the whole new one. What a killed
process leaves behind has a name like .dnn-0123456789abcdef, no extension, and is never read. The next writer in that
folder removes it where it knows that its owner is gone: a writer holds a lock on its file, which the system lets go of
when the process ends. On file systems without such locks (most network ones) these files stay.

The temporary file is on its target's device even where a folder on the way is a link or a mount point. A target that is
itself a mount point, a single file mounted into a container, cannot be replaced: OutputError, and it stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dnn.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POINTS = (
    "begun",  # nothing is there
    "folder made",  # the folders that were missing, durably
    "temporary made",
    "half written",
    "written",
    "synced",  # the content is durable, under the temporary name
    "old kept",  # a second name for the file to replace, until all is done
    "renamed",
    "folder synced",  # the new name is durable
    "cleaned",
)
"""The points of a write at which `reached` is called, in this order; those of a file for each file."""

_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_LEFT = re.compile(r"\.dnn-[0-9a-f]{16}(\.old)?")
"""What a killed process may leave behind."""
_NOT_HERE = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""This file system, or this user, cannot do that; any other error is a failure."""
_NO_LINKS = _NOT_HERE | {errno.EMLINK, errno.EXDEV}
_NO_SYNC = {errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def reached(point: str) -> None:
    """Called at each of POINTS. It does nothing: tests of crashes replace it."""


class ResultsBeside(OutputError):
    """The results are written, but under other names."""


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
        missing = missing_folders(folder)
        there = os.path.dirname(missing[-1]) if missing else folder
        if not os.path.isdir(there):
            raise OutputError(f"{path}: cannot be written: {there} is not a folder")
        handle, probe = _temporary(there)
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):  # another writer took it for one that was left
            os.unlink(probe)
    except (OSError, ValueError) as cause:
        raise _cannot_be_written(path, cause) from None


def write_whole(contents: Mapping[str, bytes], force: bool = True) -> None:
    """Write every path's bytes, each atomically, and none of them if writing any fails.

    All files are complete and flushed to disk before the first is renamed. Without `force`, nothing is written if one
    of them exists by then. With it, a new file takes over the old one's permissions, owner and extended attributes, as
    far as this user may set them; a symbolic link is kept, and its target replaced; other hard links keep the old
    content. A device or a pipe is written to directly. OutputError if anything fails: all files are as before, and no
    partial file is left behind. (Of several files, a process that is killed may have renamed some; without hard links,
    a file stays replaced where a later one fails.)
    """
    with _Files(force) as files:
        for path, content in contents.items():
            with files.reporting(path):
                if _target(path, follow=force) and _is_special(path):
                    with open(path, "ab") as file:  # standard output may be a file that holds something already
                        file.write(content)
                else:
                    files.begin(path)
                    files.fill(path, content)
                    files.sync(path)
        files.name()


@contextlib.contextmanager
def whole_file(path: str, force: bool = False) -> Iterator[io.FileIO]:
    """For writers of a stream: an empty file, open and unbuffered, which is `path` once the block has ended.

    As `write_whole` does it: OutputError where writing fails. Where any exception ends the block, `path` is as it was.
    """
    with _Files(force) as files:
        with files.reporting(path):
            if _target(path, follow=force) and _is_special(path):
                raise OutputError(f"{path}: is not a file: name one")
            file = _Stream(files.begin(path), "r+", closefd=False)
        try:
            with file:
                yield file
        except OSError as cause:
            if cause is not file.failure:  # of something that the block reads
                raise
        with files.reporting(path):
            if file.failure is not None:
                raise file.failure
            reached("written")
            files.sync(path)
        files.name()


class _Stream(io.FileIO):
    """Remembers a failure, which libraries may hide."""

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        with self._noting():
            return super().write(content)

    def truncate(self, size: int | None = None, /) -> int:
        with self._noting():
            return super().truncate(size)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            self.failure = cause
            raise


class _Files:
    """Files that are written under temporary names, and named all or none."""

    def __init__(self, force: bool) -> None:
        self._force = force
        self._folders: dict[str, int | None] = {}  # their handles, to sync them
        self._handles: dict[str, int] = {}  # open to the end, for the locks on them
        self._kept: list[int] = []
        self._temporary: dict[str, str] = {}
        self._targets: dict[str, str] = {}
        self._old: dict[str, str] = {}  # of a target to be replaced, what the old file is called until all is done
        self._named: list[str] = []
        self._made: list[str] = []

    def __enter__(self) -> _Files:
        reached("begun")
        return self

    @contextlib.contextmanager
    def reporting(self, path: str) -> Iterator[None]:
        """OutputError, about `path`, where anything fails."""
        try:
            yield
        except _NameTaken:
            raise _NameTaken(f"{path}: already exists: another program wrote it meanwhile") from None
        except (OSError, ValueError) as cause:
            raise _cannot_be_written(path, cause) from None

    def begin(self, path: str) -> int:
        """Create the temporary file of `path`, and the folders that it needs; its handle."""
        target = self._targets[path] = _target(path, follow=self._force)
        folder = os.path.dirname(target)
        self._make(folder)
        if folder not in self._folders:
            self._folders[folder] = _opened(folder)
            _remove_left(folder)
        old = _lstat(target) if self._force else None
        handle, self._temporary[path] = _temporary(folder, 0o666 if old is None else stat.S_IMODE(old.st_mode))
        self._handles[path] = handle
        if old is not None:
            self._old[path] = f"{self._temporary[path]}.old"
            _take_over(target, old, handle)
        reached("temporary made")
        return handle

    def fill(self, path: str, content: bytes) -> None:
        whole, half = memoryview(content), len(content) // 2
        for left, point in ((whole[:half], "half written"), (whole[half:], "written")):
            while left:
                left = left[os.write(self._handles[path], left) :]
            reached(point)

    def sync(self, path: str) -> None:
        os.fsync(self._handles[path])
        reached("synced")

    def name(self) -> None:
        """Give all files their names, durably."""
        for path, target in self._targets.items():
            with self.reporting(path):
                if not self._force:
                    _name_new(self._temporary[path], target)
                else:
                    if path in self._old:
                        self._keep(target, self._old[path])
                        reached("old kept")
                    os.replace(self._temporary[path], target)
                self._named.append(path)
                reached("renamed")
                _sync(self._folders[os.path.dirname(target)])
                reached("folder synced")
        self._named.clear()

    def __exit__(self, *_: object) -> None:
        for path in self._named:  # of which a later one failed
            with contextlib.suppress(OSError):
                if path in self._old:
                    os.replace(self._old[path], self._targets[path])
                else:
                    os.unlink(self._targets[path])
        for left in [*self._temporary.values(), *self._old.values()]:
            with contextlib.suppress(OSError):
                os.unlink(left)
        for handle in [*self._handles.values(), *self._kept, *self._folders.values()]:
            with contextlib.suppress(OSError):
                if handle is not None:
                    os.close(handle)
        remove_empty(self._made)
        reached("cleaned")

    def _keep(self, target: str, name: str) -> None:
        """A second name for the file to replace: a way back."""
        with contextlib.suppress(OSError):  # one that this user cannot read is not locked
            self._kept.append(os.open(target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
            _lock(self._kept[-1])
        with _allowed(_NO_LINKS | {errno.ENOENT}):  # somebody removed the file meanwhile
            os.link(target, name)

    def _make(self, folder: str) -> None:
        """Create a folder and those above it, durably."""
        missing = missing_folders(folder)
        if not missing:
            return
        self._made = [*missing, *self._made]
        os.makedirs(folder, exist_ok=True)
        for made in reversed(missing):
            handle = _opened(os.path.dirname(made))
            try:
                _sync(handle)
            finally:
                if handle is not None:
                    os.close(handle)
        reached("folder made")


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
                raise ResultsBeside(f"{taken}; the results of this run are in {' and '.join(numbered)}") from None


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
    """A new file in `folder`, locked: its handle and its path."""
    while True:
        path = os.path.join(folder, f".dnn-{os.urandom(8).hex()}")
        # not by tempfile, whose files are the user's alone: to undo that, all threads would get another umask
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if _lock(handle) and (os.fstat(handle).st_nlink or os.path.lexists(path)):
            return handle, path
        os.close(handle)  # before it was locked, another writer took it for one that was left


def _lock(handle: int) -> bool:
    """Keep others from taking this file for one that was left; a shared lock, as readers of HDF5 files have.

    False where another is about to remove it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        pass
    return True


def _remove_left(folder: str) -> None:
    """Remove what killed processes left in a folder."""
    names: list[str] = []
    if fcntl is not None:
        with contextlib.suppress(OSError):
            names = list(filter(_LEFT.fullmatch, os.listdir(folder)))
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # it is locked, or another user's
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(handle).st_nlink > 1 and name.endswith(".old"):
                    continue  # perhaps still to be replaced, and as long no space is lost
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)


def _take_over(path: str, old: os.stat_result, handle: int) -> None:
    """Give an open file what a user set of the file at `path`, as far as this user may."""
    # the owner first: changing it clears bits of the mode
    for uid, gid in ((-1, old.st_gid), (old.st_uid, -1)):
        with _allowed(_NOT_HERE):
            os.fchown(handle, uid, gid)
    with _allowed(_NOT_HERE):
        os.fchmod(handle, stat.S_IMODE(old.st_mode))
    with _allowed(_NOT_HERE):
        for name in os.listxattr(path) if hasattr(os, "listxattr") else ():  # Linux: access control lists among them
            with _allowed(_NOT_HERE | {errno.ENODATA}):
                os.setxattr(handle, name, os.getxattr(path, name))


@contextlib.contextmanager
def _allowed(errors: set[int]) -> Iterator[None]:
    """Go on where one of these errors of the system ends the block."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in errors:
            raise


def _name_new(path: str, target: str) -> None:
    """Give the file at `path` the name `target`; _NameTaken where that exists, which os.rename would replace."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise _NameTaken(target) from None
    except OSError as cause:
        if cause.errno not in _NO_LINKS:
            raise
        try:  # reserve the name
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
    why = getattr(cause, "strerror", None) or cause
    busy = " (a mount point cannot be replaced)" if getattr(cause, "errno", None) == errno.EBUSY else ""
    return OutputError(f"{path}: cannot be written: {why}{busy}")


def missing_folders(folder: str) -> list[str]:
    """The folders to create so that `folder` exists, deepest first."""
    missing = []
    while _lstat(folder) is None:
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def remove_empty(folders: list[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it was never created, or is not empty
            os.rmdir(folder)


def _opened(folder: str) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError as cause:
        if cause.errno not in _NOT_HERE | {errno.EISDIR}:
            raise
        return None  # some systems cannot open a folder


def _sync(folder: int | None) -> None:
    if folder is not None:
        with _allowed(_NO_SYNC):
            os.fsync(folder)
