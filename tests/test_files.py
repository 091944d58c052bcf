"""Whole files or none."""

from __future__ import annotations

import os
import stat
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
def test_whatever_fails_every_file_is_as_it_was(fails, tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    before = listing(tmp_path)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "write":
        contents = {str(tmp_path / "a"): b"new", str(tmp_path / "missing" / "b"): b"two"}
    else:
        contents = {str(tmp_path / "a"): b"new"}
        monkeypatch.setattr(files.os, fails, no_space)
    with pytest.raises(OutputError, match=r"cannot be written: No (space left on device|such file or directory)"):
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


def test_a_link_keeps_pointing_where_it_points(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "model.h5", tmp_path / "latest.h5"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole({str(link): b"new"})
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_check_writable_makes_the_folder_and_leaves_no_file(tmp_path: Path):
    check_writable(str(tmp_path / "runs" / "one" / "model.h5"), force=False)
    assert (tmp_path / "runs" / "one").is_dir() and listing(tmp_path) == {}


def test_check_writable_says_before_the_work_what_would_fail_after_it(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already: choose another place, or replace it with --force"):
        check_writable(str(tmp_path / "file"), force=False)
    check_writable(str(tmp_path / "file"), force=True)
    with pytest.raises(OutputError, match=r"file/model.h5: cannot be written: .*/file is not a folder"):
        check_writable(str(tmp_path / "file" / "model.h5"), force=True)
    with pytest.raises(OutputError, match="is a folder: name a file"):
        check_writable(str(tmp_path), force=True)
    assert listing(tmp_path) == {"file": b"old"}
