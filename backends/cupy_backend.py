"""CuPy on a CUDA GPU: the only module that imports cupy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from backends.base import Array, Backend, BackendUnavailableError
from backends.kernels import FACTORIES, Elementwise
from backends.kernels.compiler import FOLDER

_WHEELS = "pip install 'dnn[cuda13]' for a driver of CUDA 13, 'dnn[cuda12]' for CUDA 12 (nvidia-smi shows which)"


class CupyBackend(Backend):
    name = "cupy"

    def __init__(self) -> None:
        self.xp = _usable_cupy()
        self._stream = self.xp.cuda.Stream(non_blocking=True)
        compiler = _CupyCompiler(self.xp)
        self.kernels = {name: factory(compiler) for name, factory in FACTORIES.items()}

    @property
    def device(self) -> str:
        device = self.xp.cuda.Device()
        name = self.xp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        capability = device.compute_capability
        return f"GPU {device.id} ({name}, compute capability {capability[:-1]}.{capability[-1]})"

    def memory(self) -> tuple[int, int]:
        free, total = self.xp.cuda.runtime.memGetInfo()
        # what CuPy's pool holds and no array uses is free for the next array too
        return free + self.xp.get_default_memory_pool().free_bytes(), total

    def owns(self, array: object) -> bool:
        return isinstance(array, self.xp.ndarray)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype)

    def asarray(self, array: object, dtype: Any = None) -> Array:
        return self.xp.asarray(array, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        return array.get() if self.owns(array) else np.asarray(array)

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    @contextmanager
    def stream(self) -> Iterator[object]:
        outside = self.xp.cuda.get_current_stream()
        self._stream.wait_event(outside.record())
        try:
            with self._stream:
                yield self._stream
        finally:
            outside.wait_event(self._stream.record())


class _CupyCompiler:
    """Kernels are compiled at their first launch, and kept in CuPy's cache folder."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def elementwise(self, kernel: Elementwise) -> Callable[..., Any]:
        return self._cupy.ElementwiseKernel(kernel.inputs, kernel.outputs, kernel.operation, f"dnn_{kernel.name}")

    def cuda(self, file: str, function: str) -> Callable[..., Any]:
        names = {np.dtype(np.float32): f"{function}<float>", np.dtype(np.float64): f"{function}<double>"}
        source = (FOLDER / file).read_text()
        module = self._cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=tuple(names.values()))
        functions: dict[Any, Any] = {}

        def launch(dtype: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
            if dtype not in functions:
                functions[dtype] = module.get_function(names[dtype])
            functions[dtype]((blocks,), (threads,), arguments)

        return launch


def _usable_cupy() -> Any:
    """The cupy module; BackendUnavailableError names what is missing: the wheel, the driver or the device."""
    if find_spec("cupy") is None:
        raise BackendUnavailableError(f"backend 'cupy': the cupy wheel is not installed: {_WHEELS}")
    try:
        import cupy
    except Exception as error:  # a wheel that fits neither this Python nor this NumPy fails in many ways
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendUnavailableError(
            f"backend 'cupy': cupy is installed but cannot be imported ({cause}): {_WHEELS}"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if runtime.driverGetVersion() == 0:
            raise BackendUnavailableError(
                "backend 'cupy': no NVIDIA driver is loaded on this machine: install one (nvidia-smi must work), "
                "or set DNN_BACKEND=numpy"
            ) from error
        cause = str(error).split(":")[0]
        raise BackendUnavailableError(
            f"backend 'cupy': the driver shows no usable CUDA device ({cause}): see nvidia-smi and "
            "CUDA_VISIBLE_DEVICES; a driver older than the wheel's CUDA needs the other wheel: " + _WHEELS
        ) from error
    if devices == 0:
        raise BackendUnavailableError(
            "backend 'cupy': the driver shows no CUDA device: see nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "or set DNN_BACKEND=numpy"
        )
    return cupy
