"""What reads an untrusted file in a process of its own: content, or one line, whatever the file does to its reader."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_hdf5 import crashing_file

import dnn
from dnn import isolation
from dnn.cli import main
from dnn.errors import ModelFileError

CRASH = "import os, signal; os.kill(os.getpid(), signal.{})\n"
LIMITS = "isolation._confined(int(sys.argv[1]), float(sys.argv[2]))\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    dnn.Network([3, 2], output="softmax", seed=2).save(tmp_path / "model.h5")
    return tmp_path / "model.h5"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["train_set_x"], file["train_set_y"] = np.eye(3), [0, 1, 1]
    return tmp_path / "data.h5"


def test_a_model_that_a_child_reads_is_what_the_file_has(model: Path, monkeypatch):
    sent = []
    received = isolation._received
    monkeypatch.setattr(isolation, "_received", lambda *given: sent.append(received(*given)) or sent[0])
    network, again = dnn.load(model, isolate=True), dnn.load(model)
    np.testing.assert_array_equal(network.predict_proba(np.eye(3)), again.predict_proba(np.eye(3)))
    with h5py.File(model) as file:
        for name in ("architecture", "parameters/W1", "parameters/b1"):
            np.testing.assert_array_equal(sent[0][name], file[name][()])
            assert sent[0][name].dtype == file[name].dtype


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_said_as_without_a_child(model: Path):
    model.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"model\.h5: not an HDF5 file$"):
        dnn.load(model, isolate=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (CRASH.format("SIGSEGV"), "was ended by SIGSEGV"),
        pytest.param(
            LIMITS + "isolation._send(sys.argv[3], lambda path: {'a': bytearray(1 << 40)})",
            "more memory than it may",
            marks=pytest.mark.slow,
        ),
        ("sys.stdout.write('PK')", "gave no arrays"),
        ("sys.exit(9)", "ended with status 9"),
    ],
    ids=["crash", "memory", "nonsense", "failure"],
)
def test_a_reader_that_fails_is_one_line(code, words, model: Path, monkeypatch):
    if "isolation" not in code:
        monkeypatch.setattr(isolation, "_START", "import sys\n")
    monkeypatch.setattr(isolation, "_READER", code)
    with pytest.raises(ModelFileError) as error:
        dnn.load(model, isolate=True)
    message = str(error.value)
    assert message.startswith(f"{model}: reading it, in a process of its own, ") and words in message
    assert "\n" not in message


def test_a_reader_that_hangs_is_ended(model: Path, monkeypatch):
    monkeypatch.setattr(isolation, "_READER", "import signal; signal.pause()")
    with pytest.raises(ModelFileError, match=r"took more than 0\.01 s"):
        isolation.contents_isolated(model, seconds=0.01)


def test_arrays_of_objects_are_not_accepted_from_a_child(model: Path, monkeypatch):
    np.savez(model.with_name("objects.npz"), a=np.array([print], dtype=object))
    monkeypatch.setattr(isolation, "_START", "import sys\n")
    monkeypatch.setattr(
        isolation, "_READER", "sys.stdout.buffer.write(open(sys.argv[3][:-8] + 'objects.npz', 'rb').read())"
    )
    with pytest.raises(ModelFileError, match=r"gave no arrays \(Object arrays"):
        isolation.contents_isolated(model)


@pytest.mark.slow
def test_a_command_that_crashes_names_the_file_and_the_signal(model: Path, monkeypatch, capfd):
    crash = "isolation._confined(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))\n"
    crash += "from dnn import errors, hdf5\nhdf5.open_hdf5(sys.argv[5], errors.ModelFileError)\nos = __import__('os')\n"
    crash += "os.write(2, b'malloc(): corrupted top size')\n" + CRASH.format("SIGABRT")
    monkeypatch.setattr(isolation, "_COMMAND", crash)
    assert main(["evaluate", str(model), "data.h5", "--isolate"]) == 4
    out, err = capfd.readouterr()
    assert not out and err.startswith(f"dnn: {model}: ") and "was ended by SIGABRT" in err
    assert err.count("\n") == 1


COMMANDS = [
    pytest.param(["evaluate", "model.h5"], marks=pytest.mark.slow),
    pytest.param(["predict", "model.h5"], marks=pytest.mark.slow),
    ["inspect"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_command_answers_in_a_child_as_it_does_without(command, model: Path, data: Path, monkeypatch, capfd):
    # the folder where a command runs may hold a stranger's modules
    data.with_name("numpy.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(data.parent)
    found = []
    for flags in ([], ["--isolate"]):
        assert main([*command, "data.h5", *flags]) == 0
        found.append(capfd.readouterr())
    assert found[0].out == found[1].out and found[0].out
    assert "stranger" not in found[1].err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_data_file_that_crashes_hdf5_is_one_line_of_the_parent(
    command, model: Path, tmp_path: Path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    crashing_file(tmp_path / "crash.h5")
    assert main([*command, "crash.h5", "--isolate", "--quiet"]) == 3
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1
    assert err.startswith("dnn: crash.h5: reading it, in a process of its own, was ended by SIG")


def test_a_request_to_end_reaches_the_child():
    code = """
from dnn import isolation
isolation._START, isolation._COMMAND = "", '''
import sys
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
signal.pause()
'''
raise SystemExit(isolation.run_isolated([]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGTERM)
    assert parent.returncode == 143
