"""How the house is laid out: who imports whom, what an import costs, and that CuPy knows every call on xp."""

from __future__ import annotations

import ast
import inspect
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from dnn import functional

# dnn/backends is a link to the folder at the top; globbing follows it in some versions of Python only
SOURCES = sorted(
    [*(ROOT / "backends").rglob("*.py"), *(p for p in (ROOT / "dnn").rglob("*.py") if "backends" not in p.parts)]
)

LAYERS = [
    {"dnn.backends.base"},
    {"dnn.backends.plan"},
    {"dnn.backends.codegen"},
    {"dnn.backends"},
    {"dnn.configuration", "dnn.errors", "dnn.files", "dnn.chunk_index", "dnn.hdf5"},
    {"dnn.functional", "dnn.parameters", "dnn.initializers"},
    {"dnn.activations", "dnn.losses", "dnn.metrics", "dnn.optimizers", "dnn.precision", "dnn.schedules"},
    {"dnn.heads", "dnn.state", "dnn.layers", "dnn.callbacks"},
    {"dnn.specification"},
    {"dnn.network"},
    {"dnn.data", "dnn.updating"},
    {"dnn.step", "dnn.settings", "dnn.interrupt", "dnn.progress", "dnn.unfinished"},
    {"dnn.batches"},
    {"dnn.inference"},
    {"dnn.memory", "dnn.epochs", "dnn.diagnosis"},
    {
        "dnn.training",
        "dnn.training_file",
        "dnn.model_file",
        "dnn.checkpoint",
        "dnn.saving",
        "dnn.watch",
        "dnn.course",
        "dnn.isolation",
    },
    {"dnn"},
    {"dnn.cli"},
    {"dnn.__main__"},
]
"""Each imports from its own or from those above it."""

UPWARDS = {
    ("dnn.network", "dnn.training"),  # Network.fit
    ("dnn.network", "dnn.inference"),  # predict, evaluate
    ("dnn.network", "dnn.model_file"),  # Network.save
    ("dnn.callbacks", "dnn.progress"),  # a History in words
    ("dnn.model_file", "dnn"),  # the version
    ("dnn.parameters", "dnn.data.sources"),  # what is assigned is converted as X is
    ("dnn.backends.base", "dnn.backends"),  # a copy of a backend is the backend of that name
    ("dnn.backends.base", "dnn.backends.plan"),  # what runs a plan, once there is one to run
}
"""The exceptions: methods that are there for the user's convenience, imported when they are called."""


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name.startswith("backends"):
        name = f"dnn.{name}"
    return name.removesuffix(".__init__")


def layer_of(module: str) -> int:
    parts = module.split(".")
    while parts:
        for number, modules in enumerate(LAYERS):
            if ".".join(parts) in modules:
                return number
        parts.pop()
    raise AssertionError(f"{module} has no place in LAYERS")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether inside a function) of every import at run time of our own modules."""
    tree = ast.parse(path.read_text())
    # what only type checkers import is no dependency
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    in_functions = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are written out in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                place = ROOT / Path(*inner.split("."))
                is_module = place.with_suffix(".py").exists() or place.is_dir()
                names.append(inner if is_module else node.module)
        for name in names:
            if name.split(".")[0] == "dnn":
                yield name, id(node) in in_functions


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_one_way(path: Path):
    module = module_of(path)
    for imported, in_function in imports_of(path):
        above = next((up for up in UPWARDS if module == up[0] and (imported + ".").startswith(up[1] + ".")), None)
        if above and layer_of(imported) > layer_of(module):
            assert in_function, f"{module} imports {imported} at its head"
        else:
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}"


def test_backends_know_no_networks():
    for path in (ROOT / "backends").rglob("*.py"):
        assert all(name.startswith("dnn.backends") for name, _ in imports_of(path)), path


def test_no_formula_is_written_twice():
    """No name of a function of dnn.functional occurs in backends/, but for those that NumPy has under the same name."""
    names = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))} - set(dir(np))
    assert len(names) > 15
    pattern = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    for path in (ROOT / "backends").rglob("*.py"):
        assert not (found := pattern.search(path.read_text())), f"{path}: {found}"


def test_only_the_cupy_backend_imports_cupy():
    for path in SOURCES:
        imports = [
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        ]
        if any(name.split(".")[0] in ("cupy", "cupyx") for name in imports):
            assert path.name == "cupy_backend.py"


def test_importing_dnn_is_light():
    code = "import sys, dnn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {
        "llvmlite",
        "numba",
        "cupy",
        "h5py",
        "tqdm",
        "sklearn",
        "scipy",
        "matplotlib",
        "torch",
        "pytest",
        "argparse",
    }
    assert not heavy & set(done.stdout.split())


def test_names_of_public_things_have_a_docstring():
    import dnn
    from dnn import course

    public = [getattr(dnn, name) for name in dnn.__all__ if name != "__version__"]
    public += [value for name, value in vars(course).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert [thing for thing in public if not inspect.getdoc(thing)] == []


# -------------------------------------------------------------------------------- CuPy's signatures


def xp_calls() -> Iterator[tuple[str, ast.Call, str]]:
    """(name, call, place) of every call of a function of xp; a dotted name for one of its modules'."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (
                call := re.fullmatch(r"(?:\w+\.)*_?xp\.([\w.]+)", ast.unparse(node.func))
            ):
                yield call[1], node, f"{module_of(path)}:{node.lineno}"


def bind(function: Any, call: ast.Call) -> None:
    """TypeError where `function` of CuPy cannot be called so."""
    named = {keyword.arg: None for keyword in call.keywords}
    if None in named:
        raise TypeError("** hides what is passed")
    if type(function).__name__ == "ufunc":  # which has no signature of its own
        if len(call.args) not in (function.nin, function.nin + function.nout):
            raise TypeError(f"takes {function.nin} arguments")
        if unknown := named.keys() - {"out", "casting", "dtype"}:
            raise TypeError(f"takes no {', '.join(map(str, unknown))}")
        return
    inspect.signature(function).bind(*call.args, **named)


def test_there_are_calls_on_xp():
    assert len({name for name, _, _ in xp_calls()}) > 20


@pytest.mark.skipif(find_spec("cupy") is None, reason="the extra kernelcheck is not installed")
def test_cupy_knows_every_call_on_xp():
    import cupy

    for name, call, place in xp_calls():
        try:
            bind(operator.attrgetter(name)(cupy), call)
        except (AttributeError, TypeError) as error:
            pytest.fail(f"{place}: cupy.{name}: {error}")
        except ValueError:
            # compiled classes and functions of CUDA itself, which only the CuPy backend calls, show no signature
            assert place.startswith("dnn.backends.cupy_backend:"), place


@pytest.mark.skipif(find_spec("cupy") is None, reason="the extra kernelcheck is not installed")
@pytest.mark.parametrize(
    "wrong",
    [
        "xp.add(a, b, where=c)",
        "xp.sum(a, initial=0)",
        "xp.take(a, b, mode='clip')",
        "xp.maximum(a)",
        "xp.exp(a, order='C')",
        "xp.clip(a, min=0)",
    ],
)
def test_a_call_that_only_numpy_knows_would_be_seen(wrong: str):
    import cupy

    call = ast.parse(wrong, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    with pytest.raises(TypeError):
        bind(getattr(cupy, call.func.attr), call)


def test_no_at_and_no_matmul_in_the_mathematics():
    # their `out=` means different things in the two libraries; dot's does not
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), path
    assert not {"matmul", "einsum", "tensordot"} & {name for name, _, _ in xp_calls()}
