"""Atomic writes: whole files or none."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from dnn import files
from dnn.errors import OutputError
from dnn.files import check_writable, write_results, write_whole


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


def test_of_many_writers_of_one_name_one_succeeds(tmp_path: Path):
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
