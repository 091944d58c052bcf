"""The two set-up commands: what they install, what they leave alone, and how they report failures."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import dnn
from dnn.backends import cupy_backend


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's scripts and pyproject.toml in a folder whose name has a space, with no environment yet."""
    place = tmp_path / "a copy"
    (place / "scripts").mkdir(parents=True)
    for name in ("environment.sh", "demo.sh", "test.sh", "make_dataset.py"):
        shutil.copy(ROOT / "scripts" / name, place / "scripts")
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def interpreter(place: Path, body: str) -> Path:
    """A fake python."""
    path = place / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def run(script: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_without_a_new_enough_python_one_line_says_what_to_do(script, copy: Path, tmp_path: Path):
    old = interpreter(tmp_path, 'case "$*" in *version_info*) exit 1;; esac')
    done = run(copy / "scripts" / script, cwd=tmp_path, PYTHON=str(old))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{script}: needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python3"
    ]
    assert not (copy / ".venv").exists()


def test_without_the_venv_module_one_line_says_what_to_install(copy: Path, tmp_path: Path):
    bare = interpreter(tmp_path, 'case "$*" in *ensurepip*) exit 1;; esac')
    done = run(copy / "scripts" / "demo.sh", cwd=tmp_path, PYTHON=str(bare))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"demo.sh: {bare} has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or set PYTHON"
    ]
    assert not (copy / ".venv").exists()


def test_without_a_network_one_line_says_so(copy: Path, tmp_path: Path):
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    offline["PIP_DRY_RUN"] = "1"  # whatever happens, it installs nothing into the environment of this interpreter
    # an environment without a pip of its own takes a tenth of the time; test.sh makes a whole one before these tests
    quick = interpreter(
        tmp_path,
        f"""case "$*" in "-m venv "*)
mkdir "$3/bin" && printf '#!/bin/sh\nexec "{sys.executable}" "$@"\n' > "$3/bin/python" && chmod +x "$3/bin/python";;
*) exec "{sys.executable}" "$@";; esac""",
    )
    done = run(copy / "scripts" / "demo.sh", cwd=tmp_path, PYTHON=str(quick), **offline)
    assert done.returncode == 1
    announced, complaint = done.stderr.splitlines()
    assert announced.startswith("installing into")
    assert complaint.startswith("demo.sh: no network: the first run downloads the packages")
    # nothing is marked as installed, so the next run starts over
    assert (copy / ".venv" / "bin" / "python").exists()
    assert not list((copy / ".venv").glob("installed-*"))


def pretend_installed(copy: Path, *extras: str) -> None:
    """An existing environment with this interpreter."""
    venv = copy / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "made-by-dnn").touch()
    shell = venv / "bin" / "python"
    shell.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    shell.chmod(0o755)
    with open(copy / "pyproject.toml", "rb") as file:
        checksum = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout.strip()
    (venv / "installed-for").write_text(f"{copy} {checksum}\n")
    for extra in extras:
        (venv / f"installed-{extra}").touch()


def test_the_demo_from_another_folder_in_an_existing_environment(copy: Path, tmp_path: Path):
    pytest.importorskip("sklearn")
    pretend_installed(copy, "demo")
    path = copy / "runs" / "digits" / "model.h5"
    path.parent.mkdir(parents=True)
    dnn.Network([2, 1]).save(path)  # an earlier run's: it is replaced
    done = run(copy / "scripts" / "demo.sh", cwd=tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stderr and "backend numpy" in done.stderr
    train, test, model, heading, *commands = done.stdout.splitlines()
    assert train.startswith("train: loss") and test.startswith("test: loss")
    assert float(test.split()[-1]) >= 0.97
    assert Path(model.removeprefix("model: ")) == path
    assert dnn.load(path).layer_sizes == (64, 64, 32, 10)
    assert heading == "try next:" and len(commands) == 3
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout and "dnn: " not in done.stderr, (command, done.stderr)
    assert os.listdir(tmp_path) == [copy.name]


def test_a_foreign_environment_is_left_alone(copy: Path, tmp_path: Path):
    (copy / ".venv").mkdir()
    (copy / ".venv" / "precious").touch()
    done = run(copy / "scripts" / "test.sh", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        f"test.sh: {copy}/.venv exists but was not created by these scripts: move it away"
    ]
    assert (copy / ".venv" / "precious").exists()


def test_arguments_of_the_test_script_go_to_pytest(copy: Path, tmp_path: Path):
    pretend_installed(copy, "test")
    (copy / "tests").mkdir()
    (copy / "tests" / "test_one.py").write_text("def test_right(): pass\ndef test_wrong(): assert False\n")
    one_core = {"PYTEST_XDIST_AUTO_NUM_WORKERS": "1"}
    done = run(copy / "scripts" / "test.sh", "-q", "-k", "wrong", cwd=tmp_path, **one_core)
    assert done.returncode == 1 and "1 failed" in done.stdout and "passed" not in done.stdout


def test_no_message_installs_a_package_of_our_name_from_an_index():
    """It is a stranger's: what is named instead is what the extras of pyproject.toml ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] != "dnn" and project["scripts"] == {"dnn": "dnn.cli:main"}
    for path in (
        ROOT / "README.md",
        *(path for of in ("scripts", "dnn", "backends") for path in (ROOT / of).rglob("*.*")),
    ):
        if path.suffix in (".md", ".sh", ".py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"dnn\[\w+\]|pip install[^\n]* '?dnn\b", text), path
    extras = project["optional-dependencies"]
    for wheel in re.findall(r"cupy-\S+?==|llvmlite|ml_dtypes", cupy_backend._WHEELS):
        name = wheel.removesuffix("==")
        assert any(wanted.startswith(name) for wanted in extras["cuda12"] + extras["cuda13"]), name


def test_the_installed_package_is_found_from_the_folder_above_a_clone(tmp_path: Path):
    """A folder named dnn without an __init__.py, as a clone of the repository is, must not be taken for the package."""
    try:
        importlib.metadata.distribution("dnn-engine")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here")
    clone = tmp_path / "dnn"
    (clone / "dnn").mkdir(parents=True)
    (clone / "dnn" / "__init__.py").touch()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for program in (["-c", "import dnn; print('dnn', dnn.__version__)"], ["-m", "dnn", "--version"]):
        done = subprocess.run([sys.executable, *program], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout == f"dnn {dnn.__version__}\n", done.stderr


def test_a_changed_pyproject_is_reinstalled(copy: Path, tmp_path: Path):
    pretend_installed(copy, "demo")
    with open(copy / "pyproject.toml", "a") as file:
        file.write("\n# changed\n")
    failing = interpreter(tmp_path, 'case "$*" in *ensurepip*) exit 1;; esac')
    done = run(copy / "scripts" / "demo.sh", cwd=tmp_path, PYTHON=str(failing))
    assert "no venv module" in done.stderr


def test_the_digits_are_bytes_in_the_assignments_layout(tmp_path: Path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import make_dataset
    from sklearn.datasets import load_digits

    path = tmp_path / "new folder" / "digits.h5"
    monkeypatch.setattr(sys, "argv", ["make_dataset.py", str(path)])
    make_dataset.main()
    with dnn.open_dataset(path) as data:
        assert data.train.X.shape == (1437, 8, 8) and data.test.X.shape == (360, 8, 8)
        assert data.train.X.dtype == "uint8" and data.train.Y.shape == (1437,)
        assert data.classes == [str(digit) for digit in range(10)]
        pictures = {picture.tobytes() for part in (data.train, data.test) for picture in part.X[...]}
        assert data.train.X[...].max() == 255
    expected = (load_digits().images * 255 / 16).round().astype("uint8")
    assert pictures == {picture.tobytes() for picture in expected}
