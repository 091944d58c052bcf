"""Atomic writes: whole files or none."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from dnn import files
from dnn.errors import OutputError
from dnn.files import check_writable, write_whole


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
