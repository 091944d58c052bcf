"""Kernels as PTX, assembled by ptxas: without spills, without memory of a thread's own.

DNN_CHECK_PTX=80,90 assembles every kernel that the tests build, for these compute capabilities; it takes minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dnn.backends.codegen.kernels import Kernel, ptx_of

CAPABILITIES = [80, 90, 100, 120]

_assembled: set[tuple[int, str]] = set()


@cache
def ptxas() -> str | None:
    """Where it is: on the path, or in the wheel nvidia-cuda-nvcc."""
    found = shutil.which("ptxas")
    for folder in sys.path if found is None else ():
        found = next((str(path) for path in Path(folder).glob("nvidia/*/bin/ptxas")), found)
    return found


def assemble(kernels: Iterable[Kernel], capability: int) -> None:
    """AssertionError unless ptxas takes them and needs nothing but registers and shared memory."""
    new = {kernel.name: kernel for kernel in kernels if (capability, kernel.name) not in _assembled}
    if not new:
        return
    _assembled.update((capability, name) for name in new)
    ptx = ptx_of(list(new.values()), f"sm_{capability}")
    assert ".local" not in ptx
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernels.ptx")
        source.write_text(ptx)
        command = [ptxas() or "ptxas", "-arch", f"sm_{capability}", "-v", str(source), "-o", str(source) + ".cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(used) >= len(new) and set(used) == {("0", "0", "0")}, done.stderr


def assemble_if_asked(kernels: Iterable[Kernel]) -> None:
    for capability in os.environ.get("DNN_CHECK_PTX", "").split(","):
        if capability:
            assemble(kernels, int(capability))
