"""Atomic writes: whole files or none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT

from dnn import files
from dnn.backends import use_compiled_steps
from dnn.cli import main
from dnn.errors import OutputError
from dnn.files import POINTS, check_writable, whole_file, write_results, write_whole

# in_a_child forks: a warning of Python 3.12 on, where the process has other threads
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_every_file_and_leaves_nothing_else(tmp_path: Path):
    write_whole({str(tmp_path / "a"): b"one", str(tmp_path / "b"): b"two"})
    assert listing(tmp_path) == {"a": b"one", "b": b"two"}


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path):
    write_whole({str(tmp_path / "a"): b"one"})
    (tmp_path / "b").write_bytes(b"two")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failure_leaves_every_file_unchanged(fails, tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    before = listing(tmp_path)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "write":
        (tmp_path / "folder").mkdir()
        contents = {str(tmp_path / "a"): b"new", str(tmp_path / "folder"): b"two"}
    else:
        contents = {str(tmp_path / "a"): b"new"}
        monkeypatch.setattr(files.os, fails, no_space)
    with pytest.raises(OutputError, match=r"cannot be written: (No space left on device|Is a directory)"):
        write_whole(contents)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("existing", [["a", "b", "c"], ["b", "c"], ["a"], []])
@pytest.mark.parametrize("failing", [1, 2])
def test_where_a_later_file_fails_the_earlier_ones_are_as_before(failing, existing, tmp_path: Path, monkeypatch):
    for name in existing:
        (tmp_path / name).write_text(f"old {name}")
    before, replace, calls = listing(tmp_path), os.replace, []

    def fail_once(*paths: str) -> None:
        calls.append(paths)
        if len(calls) == failing + 1:
            raise PermissionError(1, "Operation not permitted")
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", fail_once)
    contents = {str(tmp_path / name): b"new" for name in "abc"}
    with pytest.raises(OutputError, match=f"{'abc'[failing]}: cannot be written: Operation not permitted"):
        write_whole(contents)
    assert listing(tmp_path) == before
    write_whole(contents)
    assert listing(tmp_path) == dict.fromkeys("abc", b"new")


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole({str(tmp_path / "a"): b"new"})
    assert listing(tmp_path) == {}


def test_a_device_is_written_to_not_replaced(tmp_path: Path):
    with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left on device"):
        write_whole({"/dev/full": b"x" * 100})
    write_whole({"/dev/null": b"x"})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_symbolic_link_keeps_its_target(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "model.h5", tmp_path / "latest.h5"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole({str(link): b"new"})
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_check_writable_leaves_nothing_and_write_whole_creates_the_folder(tmp_path: Path):
    path = tmp_path / "runs" / "one" / "model.h5"
    check_writable(str(path), force=False)
    assert list(tmp_path.iterdir()) == []
    write_whole({str(path): b"new"})
    assert path.read_bytes() == b"new"


def test_folders_created_for_a_failed_write_are_removed(tmp_path: Path, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OutputError, match="No space left"):
        write_whole({str(tmp_path / "runs" / "a" / "one"): b"new", str(tmp_path / "runs" / "a" / "b" / "two"): b"new"})
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_a_device_needs_no_force(tmp_path: Path):
    check_writable("/dev/null", force=False)


def test_a_pipe_receives_the_whole_content(tmp_path: Path):
    pipe, content, got = tmp_path / "pipe", bytes(range(256)) * 4000, []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole({str(pipe): content})
    reader.join()
    assert got == [content] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_check_writable_reports_in_advance_what_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputError, match="already exists: choose another path, or replace it with --force"):
        check_writable(str(tmp_path / "file"), force=False)
    check_writable(str(tmp_path / "file"), force=True)
    with pytest.raises(OutputError, match=r"file/model.h5: cannot be written: .*/file is not a folder"):
        check_writable(str(tmp_path / "file" / "model.h5"), force=True)
    with pytest.raises(OutputError, match="is a folder: name a file"):
        check_writable(str(tmp_path), force=True)
    assert listing(tmp_path) == {"file": b"old"}


# ------------------------------------------------------------------------------ names that are taken meanwhile


@pytest.fixture(params=["link", "no hard links"])
def links(request, monkeypatch) -> None:
    """A file system with hard links, and one without."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if request.param != "link":
        monkeypatch.setattr(files.os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_a_file_that_appears_after_the_check_is_kept(tmp_path: Path):
    path = str(tmp_path / "model.h5")
    check_writable(path, force=False)
    write_whole({path: b"the other's"}, force=False)
    with pytest.raises(OutputError, match=r"model\.h5: already exists"):
        write_whole({path: b"ours"}, force=False)
    assert listing(tmp_path) == {"model.h5": b"the other's"}


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("taken", ["a", "b"])
def test_where_one_name_is_taken_no_file_is_written(taken, tmp_path: Path):
    (tmp_path / taken).write_bytes(b"the other's")
    with pytest.raises(OutputError, match=f"{taken}: already exists"):
        write_whole({str(tmp_path / "a"): b"one", str(tmp_path / "b"): b"two"}, force=False)
    assert listing(tmp_path) == {taken: b"the other's"}


@pytest.mark.parametrize("target", ["gone", "there"])
def test_a_link_that_appears_after_the_check_is_kept(target, tmp_path: Path):
    (tmp_path / "there").write_bytes(b"the other's")
    (tmp_path / "model.h5").symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="already exists"):
        write_whole({str(tmp_path / "model.h5"): b"ours"}, force=False)
    assert listing(tmp_path).get("there") == b"the other's" and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("round", range(12))
def test_of_many_writers_of_one_name_one_succeeds(round, tmp_path: Path):
    path, errors, kept = str(tmp_path / "runs" / "model.h5"), [], []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            write_whole({path: bytes([number]) * 1000}, force=False)
            kept.append(number)
        except OutputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 1 and len(errors) == 7 and all("already exists" in error for error in errors)
    assert listing(tmp_path) == {"runs/model.h5": bytes(kept) * 1000}


def test_results_whose_name_was_taken_are_written_beside_it(tmp_path: Path):
    results = {str(tmp_path / name): name.encode() for name in ("history.csv", "model.h5")}
    write_whole({str(tmp_path / "model.h5"): b"the other's", str(tmp_path / "history-2.csv"): b"another's"})
    with pytest.raises(OutputError, match=r"model.h5: already exists: .*history-3.csv and .*model-3.h5$") as error:
        write_results(results, force=False)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == {
        "model.h5": b"the other's",
        "history-2.csv": b"another's",
        "history-3.csv": b"history.csv",
        "model-3.h5": b"model.h5",
    }
    write_results(results, force=True)
    assert listing(tmp_path)["model.h5"] == b"model.h5"


# ------------------------------------------------------------------------------------ what a user set of a file


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o755])
def test_permissions_survive_a_replacement(mode, tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_whole({str(path): b"new"})
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path, monkeypatch):
    path, modes, fsync = tmp_path / "a", [], os.fsync
    path.write_bytes(b"old")
    path.chmod(0o600)

    def noting(handle: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", noting)
    write_whole({str(path): b"new"})
    assert modes[0] == 0o600


def test_extended_attributes_survive_a_replacement(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"experiment 7")
    except (AttributeError, OSError):
        pytest.skip("this file system has no extended attributes of users")
    write_whole({str(path): b"new"})
    assert os.getxattr(path, "user.origin") == b"experiment 7"


def test_the_owner_and_the_group_survive_a_replacement_as_far_as_the_user_may_set_them(tmp_path: Path, monkeypatch):
    path, asked, own = tmp_path / "a", [], os.fchown
    path.write_bytes(b"old")
    before = path.stat()

    def refuse_the_owner(handle: int, uid: int, gid: int) -> None:
        asked.append((uid, gid))
        if uid != -1:
            raise PermissionError(1, "Operation not permitted")
        own(handle, uid, gid)

    monkeypatch.setattr(files.os, "fchown", refuse_the_owner)
    write_whole({str(path): b"new"})
    assert asked == [(-1, before.st_gid), (before.st_uid, -1)] and path.read_bytes() == b"new"
    if os.getuid() == 0:
        monkeypatch.undo()
        os.chown(path, 12345, 23456)
        write_whole({str(path): b"newer"})
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_a_backup_by_a_hard_link_keeps_the_old_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "backup")
    write_whole({str(tmp_path / "a"): b"new"})
    assert listing(tmp_path) == {"a": b"new", "backup": b"old"}


def test_the_umask_of_the_process_is_used_and_not_touched(tmp_path: Path, monkeypatch):
    old = os.umask(0o027)
    try:
        monkeypatch.setattr(files.os, "umask", None)
        write_whole({str(tmp_path / "a"): b"new"})
    finally:
        monkeypatch.undo()
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


# ------------------------------------------------------------------------------------------- what paths mean


@pytest.mark.parametrize("path", ["old/", "old/.", "new/", "new/.", "folder/..", ".", "folder/"])
def test_a_trailing_slash_or_dot_is_a_folder_not_the_file_before_it(path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(b"old")
    Path("folder").mkdir()
    for force in (False, True):
        with pytest.raises(OutputError, match=r"is a folder: name a file"):
            check_writable(path, force)
    with pytest.raises(OutputError):
        write_whole({path: b"new"})
    assert listing(tmp_path) == {"old": b"old"}


@pytest.mark.parametrize("path", ["gone/../old", "./old", "folder/../old", "folder//..//old"])
def test_an_existing_file_is_found_by_every_path_to_it(path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(b"old")
    Path("folder").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        check_writable(path, force=False)
    with pytest.raises(OutputError, match="already exists"):
        write_whole({path: b"new"}, force=False)
    assert listing(tmp_path) == {"old": b"old"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "name is empty"),
        ("x" * 256, "too long"),
        ("a\0b", "null"),
        ("loop/model.h5", "not a folder|symbolic links"),
    ],
)
def test_a_name_that_no_file_can_have_is_reported_in_advance(path, words, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(OutputError, match=words):
        check_writable(path, force=False)
    with pytest.raises(OutputError):
        write_whole({path: b"new"}, force=False)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.h5"), "mod\u00e8le.h5", " ", "-", "a\nb", "~", "x" * 255])
def test_any_name_that_a_file_can_have_is_written(name, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        Path(name).touch()
    except OSError:
        pytest.skip("this file system does not take the name")
    Path(name).unlink()
    check_writable(name, force=False)
    write_whole({name: b"new"}, force=False)
    assert os.listdir() == [name] and Path(name).read_bytes() == b"new"


def test_standard_output_in_a_file_keeps_what_was_there(tmp_path: Path):
    code = (
        "from dnn.files import check_writable, write_whole\n"
        "check_writable('/dev/stdout', force=False)\n"
        "write_whole({'/dev/stdout': b'new'}, force=False)\n"
    )
    (tmp_path / "all.csv").write_bytes(b"old")
    with open(tmp_path / "all.csv", "ab") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, cwd=ROOT, check=True)
    assert listing(tmp_path) == {"all.csv": b"oldnew"}


def test_what_the_work_reads_is_not_replaced(tmp_path: Path):
    (tmp_path / "x.npy").write_bytes(b"the data")
    (tmp_path / "link.npy").symlink_to(tmp_path / "x.npy")
    for name in ("x.npy", "link.npy"):
        with pytest.raises(OutputError, match="is read by this command and would be lost: choose another path"):
            check_writable(str(tmp_path / name), force=True, inputs=[str(tmp_path / "x.npy"), "missing"])
    check_writable(str(tmp_path / "x.npy"), force=True, inputs=["missing"])


# ----------------------------------------------------------------------------------------- every call that can fail

CALLS = (
    *("open", "write", "fsync", "close", "replace", "link", "unlink", "mkdir", "rmdir"),
    *("fchmod", "fchown", "listxattr", "setxattr", "listdir", "lstat"),
)
CODES = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EXDEV, errno.EACCES]


class Disk:
    """Fails the n-th call of the system's, or all from the n-th on; a handle is closed nonetheless, as on Linux."""

    def __init__(self, code: int, n: int, for_good: bool = False) -> None:
        self.calls, self.failed, self._code, self._n, self._for_good = 0, "", code, n, for_good

    def __enter__(self) -> Disk:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(files.os, "fsync", lambda handle: None)  # no power is lost here, and it takes long
        for name in CALLS:
            if hasattr(os, name):
                self._patch.setattr(files.os, name, self._failing(name, getattr(os, name)))
        self._patch.setattr(files.fcntl, "flock", self._failing("flock", fcntl.flock))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*given: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls == self._n or (self._for_good and self.calls > self._n):
                self.failed = self.failed or name
                if name == "close":
                    call(*given, **more)
                raise OSError(self._code, os.strerror(self._code))
            return call(*given, **more)

        return failing


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def streamed(contents: dict[str, bytes], force: bool) -> None:
    for path, content in contents.items():
        with whole_file(path, force) as file:
            file.write(content)


ONE, SEVERAL = ["a"], ["a", "runs/one/new", "b"]


@pytest.mark.parametrize(
    ("names", "force", "write", "code"),
    [
        *(pytest.param(ONE, True, write_whole, code, id=f"replaced-{errno.errorcode[code]}") for code in CODES),
        *(pytest.param(["new"], False, write_whole, code, id=f"new-{errno.errorcode[code]}") for code in CODES[::3]),
        pytest.param(ONE, True, streamed, errno.EIO, id="streamed-EIO"),
        pytest.param(SEVERAL, True, write_whole, errno.ENOSPC, id="several-ENOSPC"),
    ],
)
def test_whichever_call_of_a_save_fails_the_files_are_as_before(names, force, write, code, tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"old " * 1000)
    before = everything(tmp_path)
    contents = {str(tmp_path / name): name.encode() * 5000 for name in names}
    failed = []
    for n in range(1, 1000):
        with Disk(code, n) as disk:
            try:
                write(contents, force)
                error = ""
            except OutputError as caught:
                error = str(caught)
        if not disk.failed:
            break
        if error:
            failed.append(disk.failed)
            assert error in [f"{path}: cannot be written: {os.strerror(code)}" for path in contents]
            assert everything(tmp_path) == before, disk.failed
            continue
        # it did without that call
        for path, content in contents.items():
            assert Path(path).read_bytes() == content
        if disk.failed == "unlink":  # which the next writer in that folder makes good
            for path in contents:
                write_whole({path: contents[path]})
        assert set(everything(tmp_path)) <= set(before) | {*names, "runs", "runs/one"}
        for name in everything(tmp_path):
            if name in before:
                (tmp_path / name).write_bytes(b"old " * 1000)
            elif (tmp_path / name).is_file():
                (tmp_path / name).unlink()
        for folder in ("runs/one", "runs"):
            if (tmp_path / folder).is_dir():
                (tmp_path / folder).rmdir()
    assert not error and set(failed) >= {"open", "write", "fsync"} - ({"write"} if write is streamed else set())
    if code != errno.EXDEV:
        assert ("replace" if force else "link") in failed or code == errno.EACCES


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_on_a_disk_that_fails_for_good_a_file_is_the_old_or_the_new_one(code, tmp_path: Path):
    path, states = tmp_path / "a", set()
    for n in range(1, 1000):
        path.write_bytes(b"old " * 1000)
        with Disk(code, n, for_good=True) as disk:
            try:
                write_whole({str(path): b"new " * 1000})
                error = ""
            except OutputError as caught:
                error = str(caught)
        if not disk.failed:
            break
        states.add(path.read_bytes())
        assert error.endswith(os.strerror(code)) or path.read_bytes() == b"new " * 1000
        assert all(name in ("a", "b") or files._LEFT.fullmatch(name) for name in os.listdir(tmp_path))
        for name in "ab":
            write_whole({str(tmp_path / name): b"other"})
        assert set(os.listdir(tmp_path)) == {"a", "b"}
    assert states == {b"old " * 1000, b"new " * 1000}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_save_of_the_command_that_fails_is_status_7_and_keeps_the_model(call, tmp_path: Path, monkeypatch, capsys):
    X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["train_set_x"], file["train_set_y"] = X, (X[:, 0] > 0).astype(np.int64)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.h5").write_bytes(b"the model of yesterday")
    use_compiled_steps(False)
    own, ours = getattr(os, call), str(tmp_path / "run")

    def fail(what: Any, *more: Any) -> Any:
        place = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if not place.startswith(ours):
            return own(what, *more)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, fail)
    given = ["train", str(tmp_path / "train.h5"), "--epochs", "1", "--out", str(tmp_path / "run"), "--force", "--quiet"]
    assert main(given) == 7
    message = capsys.readouterr().err
    assert "cannot be written: No space left on device" in message and message.count("\n") == 1
    assert listing(tmp_path / "run") == {"model.h5": b"the model of yesterday"}


# --------------------------------------------------------------------------------------------------- real disks

INSIDE = """
import json, os, sys
from pathlib import Path
from dnn.cli import main
from dnn.errors import OutputError
from dnn.files import whole_file, write_whole

disk, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
found = {}

def attempt(what, path, write=lambda path: write_whole({path: b"new " * 5000})):
    try:
        write(str(path))
        error = None
    except OutputError as caught:
        error = str(caught)
    content = path.read_bytes() if path.exists() else b""
    found[what] = [error, {b"old " * 3000: "old", b"new " * 5000: "new", b"": None}.get(content, "broken")]
    assert not list(disk.glob(".dnn-*")) + list(elsewhere.glob(".dnn-*"))

def stream(path):
    with whole_file(path, force=True) as file:
        for _ in range(50):
            file.write(b"new " * 100)

full = disk / "full.h5"
full.write_bytes(b"old " * 3000)
number = 0
try:
    while True:  # until a page is left, so that a temporary file can be begun
        (disk / f"fill{number}").write_bytes(bytes(4096))
        number += 1
except OSError:
    (disk / f"fill{number}").unlink()
    (disk / f"fill{number - 1}").unlink()
attempt("full", full)
attempt("full, a new file", disk / "new.h5")
attempt("full, streamed", full, stream)
for name in disk.glob("fill*"):
    name.unlink()
attempt("space again", full)
full.unlink()

(elsewhere / "file.h5").write_bytes(b"old " * 3000)
(disk / "mounted.h5").write_bytes(b"old " * 3000)
if os.system(f"mount --bind {elsewhere}/file.h5 {disk}/mounted.h5") == 0:
    attempt("a mounted file", disk / "mounted.h5")
(elsewhere / "link").symlink_to(disk)
attempt("a folder by a link to another device", elsewhere / "link" / "by_link.h5")
(elsewhere / "link.h5").symlink_to(disk / "linked.h5")
(disk / "linked.h5").write_bytes(b"old " * 3000)
attempt("a link to a file on another device", elsewhere / "link.h5")
(elsewhere / "mounted").mkdir()
if os.system(f"mount --bind {disk} {elsewhere}/mounted") == 0:
    attempt("a mounted folder", elsewhere / "mounted" / "in_mounted.h5")

(disk / "kept.h5").write_bytes(b"old " * 3000)
if os.system(f"mount -o remount,ro,bind {disk}") == 0 or os.system(f"mount -o remount,ro {disk}") == 0:
    attempt("read-only", disk / "kept.h5")
    attempt("read-only, a new file", disk / "new.h5")
    data = sys.argv[3]
    found["command"] = main(["train", data, "--epochs", "1", "--out", str(disk / "run"), "--quiet"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What saves came to on a small disk, a read-only one, and across mounts, in a mount namespace of their own."""
    place = tmp_path_factory.mktemp("disks")
    for name in ("disk", "elsewhere"):
        (place / name).mkdir()
    (place / "inside.py").write_text(INSIDE)
    with h5py.File(place / "train.h5", "w") as file:
        file["train_set_x"], file["train_set_y"] = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    enter = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    mount = f"mount -t tmpfs -o size=128k none {place}/disk"
    try:
        able = subprocess.run([*enter, "sh", "-c", mount], capture_output=True).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("nothing can be mounted here, not even by `unshare -rm`")
    inside = f"{mount} && exec {sys.executable} {place}/inside.py {place}/disk {place}/elsewhere {place}/train.h5"
    done = subprocess.run([*enter, "sh", "-c", inside], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout) | {"stderr": done.stderr}


def test_on_a_full_disk_the_old_file_stays_whole(on_disks):
    for what, content in (("full", "old"), ("full, a new file", None), ("full, streamed", "old")):
        error, found = on_disks[what]
        assert error.endswith("cannot be written: No space left on device") and found == content
    assert on_disks["space again"] == [None, "new"]


def test_a_temporary_file_is_on_the_device_of_its_target(on_disks):
    for what in ("a folder by a link to another device", "a link to a file on another device", "a mounted folder"):
        assert on_disks[what] == [None, "new"]


def test_a_file_that_is_a_mount_point_stays_as_it_is(on_disks):
    error, found = on_disks["a mounted file"]
    assert error.endswith("Device or resource busy (a mount point cannot be replaced)") and found == "old"


def test_on_a_read_only_disk_the_command_says_so_in_advance(on_disks):
    for what, content in (("read-only", "old"), ("read-only, a new file", None)):
        error, found = on_disks[what]
        assert error.endswith("cannot be written: Read-only file system") and found == content
    assert on_disks["command"] == 7 and on_disks["stderr"].count("Read-only file system") == 1


def test_a_folder_of_another_user_is_reported(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    tmp_path.chmod(0o555)
    if os.getuid() != 0:
        with pytest.raises(OutputError, match="cannot be written: Permission denied"):
            write_whole({str(tmp_path / "a"): b"new"})
    else:
        for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest's are the user's alone
            folder.chmod(folder.stat().st_mode | 0o555)
        assert in_a_child(lambda: (os.seteuid(54321), write_whole({str(tmp_path / "a"): b"new"}))).startswith(
            f"{tmp_path / 'a'}: cannot be written: Permission denied"
        )
    tmp_path.chmod(0o755)
    assert listing(tmp_path) == {"a": b"old"}


def in_a_child(work: Callable[[], Any]) -> str:
    """The error of `work` in a forked process; "" where there is none, or the process is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work()
        except BaseException as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        error = file.read()
    os.waitpid(child, 0)
    return error


# ------------------------------------------------------------------------------------------ what the dead leave


def killed_at(point: str, write: Callable[[], None]) -> None:
    """Do the work in a process that is killed at a point."""

    def kill(at: str) -> None:
        if at == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        files.reached = kill
        write()

    assert in_a_child(work) == ""


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_point_leaves_a_whole_file_and_nothing_that_stays(point, tmp_path: Path):
    path = tmp_path / "run" / "model.h5"
    renamed = POINTS.index(point) >= POINTS.index("renamed")
    killed_at(point, lambda: write_whole({str(path): b"first"}))
    if point not in ("begun", "old kept") and not renamed:
        assert not path.exists()
    write_whole({str(path): b"old " * 1000})
    assert os.listdir(path.parent) == ["model.h5"]
    killed_at(point, lambda: write_whole({str(path): b"new " * 1000}))
    assert path.read_bytes() == (b"new " if renamed else b"old ") * 1000 or point == "folder made"
    assert list(path.parent.glob("*.h5*")) == [path]
    write_whole({str(path): b"newer"})
    write_whole({str(path.parent / "other"): b""})
    assert sorted(os.listdir(path.parent)) == ["model.h5", "other"]


def test_the_points_are_reached_in_their_order(tmp_path: Path, monkeypatch):
    visited: list[str] = []
    monkeypatch.setattr(files, "reached", visited.append)
    write_whole({str(tmp_path / "run" / "a"): b"one"})
    assert visited == [point for point in POINTS if point != "old kept"]
    visited.clear()
    write_whole({str(tmp_path / "run" / "a"): b"two"})
    assert visited == [point for point in POINTS if point != "folder made"]
    visited.clear()
    streamed({str(tmp_path / "run" / "a"): b"two"}, force=True)
    assert visited == [point for point in POINTS if point not in ("folder made", "half written")]


def test_what_a_living_writer_works_on_is_kept(tmp_path: Path):
    with whole_file(str(tmp_path / "a")) as file:
        file.write(b"half")
        write_whole({str(tmp_path / "b"): b"another's"})
        file.write(b" and half")
    assert listing(tmp_path) == {"a": b"half and half", "b": b"another's"}


def test_only_what_has_the_name_of_a_temporary_file_is_removed(tmp_path: Path):
    kept = {".dnn-notes": b"", ".dnn-0123456789abcdef.h5": b"", "x.dnn-0123456789abcdef": b"", "0123456789abcdef": b""}
    for name in (*kept, ".dnn-0123456789abcdef", ".dnn-0123456789abcdef.old"):
        (tmp_path / name).touch()
    write_whole({str(tmp_path / "a"): b""})
    assert listing(tmp_path) == {**kept, "a": b""}


def test_without_locks_nothing_is_removed_and_files_are_written(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / ".dnn-0123456789abcdef").touch()
    write_whole({str(tmp_path / "a"): b"new"})
    assert listing(tmp_path) == {".dnn-0123456789abcdef": b"", "a": b"new"}


# ----------------------------------------------------------------------------------------------------- streams


def test_a_stream_that_its_writer_leaves_by_an_exception_is_no_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="the source"), whole_file(str(tmp_path / "a"), force=True) as file:
        file.write(b"half")
        raise FileNotFoundError(errno.ENOENT, "the source is gone")
    assert file.closed and listing(tmp_path) == {"a": b"old"}


def test_a_failure_to_write_that_the_writer_hides_is_one(tmp_path: Path, monkeypatch):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with (
            pytest.raises(OutputError, match="a: cannot be written: File too large"),
            whole_file(str(tmp_path / "a")) as file,
        ):
            for _ in range(3):
                try:
                    file.write(bytes(600))
                except OSError:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert listing(tmp_path) == {}


def test_a_stream_asks_for_force_and_for_a_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputError, match="already exists"), whole_file(str(tmp_path / "a")) as file:
        file.write(b"new")
    with pytest.raises(OutputError, match="/dev/null: is not a file"), whole_file("/dev/null"):
        pass
    assert listing(tmp_path) == {"a": b"old"}
