"""The context of a measurement: commit, versions, network, data. Shared by the scripts that measure."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from dnn.backends import get_backend

ROOT = Path(__file__).resolve().parents[1]


class NotMeasured(Exception):
    """A prerequisite of the measurement is missing; the message says which."""


def commit() -> str:
    """The commit of the code, with a plus if there are changes; without git, the value of DNN_COMMIT."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!scripts/results", ":!README.md")
    return head + ("+" if changed else "") if head else os.environ.get("DNN_COMMIT", "unknown")


def versions_of(backend: str) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    packages = "numpy cupy-cuda12x cupy-cuda13x cupy llvmlite torch jax scikit-learn"
    for package in packages.split():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
    return found | get_backend(backend).facts()


def data_with(*files: str) -> Path:
    """The folder of the assignment's data, found as in the tests."""
    for place in (os.environ.get("DNN_SHARED"), ROOT.parent / "shared", ROOT / "shared"):
        if place and all((Path(place) / "data" / file).exists() for file in files):
            return Path(place) / "data"
    raise NotMeasured(f"no {', '.join(files)} in the folder data of DNN_SHARED, ../shared or ./shared")


def in_words(sizes: Sequence[int]) -> str:
    return "256x8-10" if sizes == [*[256] * 9, 10] else "-".join(map(str, sizes))


def flops(sizes: Sequence[int], m: int) -> int:
    """FLOPs of a step's matrix products: forward, dW, and dA of all layers but the first."""
    layers = [a * b for a, b in pairwise(sizes)]
    return 2 * m * (3 * sum(layers) - layers[0])
