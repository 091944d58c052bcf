"""dnn doctor: which backends can be used here, why others cannot, and whether the results are correct."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from typing import Any

import numpy as np

from dnn import __version__, backends
from dnn.backends import Backend, BackendUnavailableError, get_backend
from dnn.cli.common import show
from dnn.network import Network
from dnn.optimizers import Adam

SIZES, EXAMPLES, BATCH, EPOCHS = [20, 64, 32, 2], 640, 32, 20
TOLERANCE = 1e-9
"""Allowed difference of a float64 weight from NumPy's after the self-test, from the order of summation."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="which backends can be used here, and why not",
        description="For each backend: whether it is usable, why not and how to fix it; the device and its memory; and "
        "a small network trained on it, compared with NumPy's. Exit status 5 if the backend in use is not usable.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--backend", metavar="NAME", help="the backend in use (default: DNN_BACKEND, else numpy)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, quiet=False)


def run(given: argparse.Namespace) -> None:
    expected, _ = _trained(get_backend("numpy"))
    findings = {name: _examined(name, expected) for name in backends.registered()}
    in_use = given.backend or os.environ.get("DNN_BACKEND", "").strip() or "numpy"
    system = {"dnn": __version__, "Python": platform.python_version(), "system": platform.platform(), "in use": in_use}
    if given.json:
        show(json.dumps(system | {"backends": findings}) + "\n")
    else:
        show(_report(system, findings))
    get_backend(given.backend)
    wrong = [name for name, found in findings.items() if found["usable"] and not found["self-test"]["right"]]
    if wrong:
        raise BackendUnavailableError(f"backend {wrong[0]!r} does not reproduce NumPy's results: see above")


def _examined(name: str, expected: np.ndarray) -> dict[str, Any]:
    try:
        backend = get_backend(name)
    except BackendUnavailableError as error:
        return {"usable": False, "why": str(error).removeprefix(f"backend {name!r}: ")}
    free, total = backend.memory()
    return {
        "usable": True,
        "device": backend.device,
        "free GB": round(free / 1e9, 1),
        "total GB": round(total / 1e9, 1),
        **backend.facts(),
        "self-test": _self_test(backend, expected),
    }


def _self_test(backend: Backend, expected: np.ndarray) -> dict[str, Any]:
    """Train a small network briefly, and measure how far its weights are from the expected ones, NumPy's."""
    weights, seconds = _trained(backend)
    difference = float(np.abs(weights - expected).max())
    steps = EPOCHS * (EXAMPLES // BATCH)
    return {"steps a second": round(steps / seconds), "differs by": difference, "right": difference <= TOLERANCE}


def _trained(backend: Backend) -> tuple[np.ndarray, float]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((EXAMPLES, SIZES[0]))
    Y = (X.sum(axis=1) > 0).astype(np.int64)
    network = Network(SIZES, output="softmax", dtype="float64", backend=backend.name)
    network.fit(X, Y, epochs=1, batch_size=BATCH, optimizer=Adam(1e-3), verbose=False)  # compile first
    started = time.perf_counter()
    network.fit(X, Y, epochs=EPOCHS, batch_size=BATCH, optimizer=Adam(1e-3), verbose=False)
    return backend.to_numpy(network.parameters.flat).copy(), time.perf_counter() - started


def _report(system: dict[str, Any], findings: dict[str, dict[str, Any]]) -> str:
    lines = [f"dnn {system['dnn']}, Python {system['Python']}, {system['system']}"]
    for name, found in findings.items():
        mark = "  (in use)" if name == system["in use"] else ""
        if not found["usable"]:
            lines += ["", f"{name}: not usable{mark}", f"  {found['why']}"]
            continue
        test = found["self-test"]
        verdict = "matches NumPy" if test["right"] else f"DIFFERS from NumPy: weights off by {test['differs by']:.1e}"
        lines += ["", f"{name}: usable{mark}", f"  {found['device']}"]
        lines.append(f"  memory: {found['free GB']} of {found['total GB']} GB free")
        known = ("usable", "device", "free GB", "total GB", "self-test")
        lines += [f"  {fact}: {value}" for fact, value in found.items() if fact not in known]
        sizes = "-".join(map(str, SIZES))
        lines.append(
            f"  self-test: {sizes}, batch {BATCH}, float64: {test['steps a second']:,} steps per second, {verdict}"
        )
    return "\n".join(lines) + "\n"
