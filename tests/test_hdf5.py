"""The door to HDF5 files: what it finds, what it reads, and that mutated files get no further than an error."""

from __future__ import annotations

import struct
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
from conftest import ROOT

import dnn
from dnn import chunk_index, hdf5
from dnn.errors import DataError

NAMES = ["non-cat", "ça", "", "x" * 300]


@pytest.fixture
def path(tmp_path: Path) -> str:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/inner/values"] = [1.0, np.nan, np.inf]
        file["group/numbers"] = np.arange(3)
        file["group/out"] = h5py.ExternalLink("secret.h5", "/")
        file["names"] = NAMES
        file.attrs["number"], file.attrs["text"], file.attrs["pair"] = 7, np.bytes_("abc"), [1, 2]
    return str(tmp_path / "a.h5")


def test_names_lead_to_groups_and_data_sets_and_links_are_seen_without_being_followed(path):
    with hdf5.open_hdf5(path, DataError) as file:
        assert hdf5.find(path, file, "/", DataError) == file["/"]
        assert hdf5.find(path, file, "./group//inner", DataError).name == "/group/inner"
        assert hdf5.names_in(path, file, "group", DataError) == ["inner", "numbers", "out"]
        found = [
            hdf5.has(file, name) for name in ("group/inner/values", "group/out", "group/out/x", "group/no", "no/x")
        ]
        assert found == [True, True, True, False, False]
        assert not hdf5.has(file, "group/numbers/x") and not hdf5.has(file, "group\0x")
        with pytest.raises(DataError, match="'group/numbers' is a data set, not a group"):
            hdf5.names_in(path, file, "group/numbers", DataError)


def test_attributes_are_text_numbers_or_nothing(path):
    with hdf5.open_hdf5(path, DataError) as file:
        found = [hdf5.attribute(path, file, name, DataError) for name in ("number", "text", "none")]
        assert found == [7, b"abc", None]
        with pytest.raises(DataError, match=r"attribute pair: expected one value .* got shape \(2,\)"):
            hdf5.attribute(path, file, "pair", DataError)


def test_values_are_checked_where_they_have_to_be_finite(path):
    with hdf5.open_hdf5(path, DataError) as file:
        data = hdf5.dataset(path, file, "group/inner/values", DataError, whole=True)
        np.testing.assert_array_equal(hdf5.read(path, data, DataError), [1, np.nan, np.inf])
        with pytest.raises(DataError, match=r"group/inner/values: expected finite numbers, got nan at \[1\]"):
            hdf5.read(path, data, DataError, finite=True)
        with pytest.raises(DataError, match=r"shape \(3,\) of int64 declares 24 bytes, more than the 23"):
            hdf5.dataset(path, file, "group/numbers", DataError, budget=23)


def test_text_of_variable_length_is_read_without_the_library(path):
    with hdf5.open_hdf5(path, DataError) as file:
        found = hdf5.variable_text(path, file, file["names"], DataError, 1 << 20)
        assert [name.decode() for name in found] == NAMES
        with pytest.raises(DataError, match="takes too many bytes"):
            hdf5.variable_text(path, file, file["names"], DataError, 100)


def test_a_damaged_heap_of_text_is_an_error_or_other_text(path):
    whole = Path(path).read_bytes()
    place = whole.index(b"GCOL")
    refused = 0
    for i in range(place, place + 100):
        for value in (0, 0xFF):
            Path(path).write_bytes(whole[:i] + bytes([value]) + whole[i + 1 :])
            with hdf5.open_hdf5(path, DataError) as file:
                try:
                    assert len(hdf5.variable_text(path, file, file["names"], DataError, 1 << 20)) == len(NAMES)
                except DataError as error:
                    assert "\n" not in str(error)
                    refused += 1
    assert refused > 20


def test_labels_of_an_open_file_have_names_whatever_they_are_stored_as(tmp_path: Path):
    for mode in ("w", "r"):  # unwritten, or in the file
        with h5py.File(tmp_path / "b.h5", mode) as file:
            if mode == "w":
                file["y"], file["list_classes"] = [0, 1], ["a", "b"]
            network = dnn.Network([1, 1])
            network.fit(np.zeros((2, 1)), file["y"], epochs=1)
            assert network.classes == ["a", "b"]


def crashing_file(path: Path) -> None:
    """A data file that ends HDF5 with a signal: the records of its index of chunks have no size."""
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("train_set_x", data=np.eye(6, 4), chunks=(2, 2), maxshape=(None, None))
        file.create_dataset("train_set_y", data=np.arange(6) % 2, chunks=(2,), maxshape=(None,))
    content = bytearray(path.read_bytes())
    head = content.index(b"BTHD")  # then version, type, size of nodes; and a checksum after 34 bytes
    content[head + 10 : head + 12] = bytes(2)
    content[head + 34 : head + 38] = struct.pack("<I", fuzz_files().lookup3(bytes(content[head : head + 34])))
    path.write_bytes(content)


def fuzz_files() -> ModuleType:
    spec = spec_from_file_location("fuzz_files", ROOT / "scripts" / "fuzz_files.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_index_of_chunks_that_crashes_hdf5_is_an_error_and_a_sound_one_is_walked_once(tmp_path: Path, monkeypatch):
    walks = []
    walk = chunk_index._walk
    monkeypatch.setattr(chunk_index, "_walk", lambda *given: walks.append(given) or walk(*given))
    crashing_file(tmp_path / "crash.h5")
    for _ in range(2):
        with pytest.raises(DataError) as error:
            dnn.open_dataset(tmp_path / "crash.h5")
        message = str(error.value)
        assert message.startswith(
            f"{tmp_path / 'crash.h5'}: train_set_x: its index of chunks is damaged: HDF5 was ended"
        )
    assert len(walks) == 1
    with dnn.open_dataset(tmp_path / "crash.h5", x="train_set_y") as data:  # walked in another child
        np.testing.assert_array_equal(data.train.X[:], np.arange(6) % 2)
    with dnn.open_dataset(tmp_path / "crash.h5", x="train_set_y"):
        assert len(walks) == 2


def test_an_index_of_chunks_that_cannot_be_checked_is_an_error(tmp_path: Path, monkeypatch):
    crashing_file(tmp_path / "crash.h5")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"train_set_x: its index of chunks cannot be checked: no process .* libver"):
        dnn.open_dataset(tmp_path / "crash.h5")


def test_the_index_that_h5py_writes_by_default_needs_no_child(tmp_path: Path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("group/x", data=np.eye(6, 4), chunks=(2, 2), maxshape=(None, None), compression="gzip")
    monkeypatch.setattr(chunk_index, "_walk", None)
    with dnn.open_dataset(tmp_path / "a.h5", x="group/x") as data:
        np.testing.assert_array_equal(data.train.X[:], np.eye(6, 4))


@pytest.mark.slow
def test_an_index_of_chunks_without_end_is_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(chunk_index, "SECONDS", 1.0)
    fuzz = fuzz_files()
    (tmp_path / "a.h5").write_bytes(fuzz.mutant("data", 7654, 0, fuzz.samples("data")))
    with pytest.raises(DataError, match="train_set_y: its index of chunks is damaged: it takes more than 1 s to walk"):
        dnn.open_dataset(tmp_path / "a.h5")


def test_300_mutated_files_are_read_or_refused_in_one_line():
    """Of data, models and checkpoints; scripts/fuzz_files.py does 10,000 of each, and walks each index in a child."""
    command = [sys.executable, str(ROOT / "scripts" / "fuzz_files.py"), "--work", "--expendable"]
    asked = "".join(f"{kind} {number}\n" for kind in ("data", "model", "checkpoint") for number in range(100))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT)
    answers = done.stdout.splitlines()
    assert (done.returncode, len(answers)) == (0, 301), done.stderr
    assert set(answers) == {"ready", "read", "refused"}
