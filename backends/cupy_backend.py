"""CuPy on a CUDA GPU: the only module that imports cupy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends.base import Array, Backend, BackendUnavailableError, Feeder, compiled_steps, log_once
from dnn.backends.cublas import Products

if TYPE_CHECKING:
    from dnn.backends.plan import Plan

_WHEELS = "pip install 'dnn[cuda13]' for a driver of CUDA 13, 'dnn[cuda12]' for CUDA 12 (nvidia-smi shows which)"


class CupyBackend(Backend):
    name = "cupy"

    def __init__(self) -> None:
        self.xp = _usable_cupy()
        # a stream a thread: what another one launches must not come into the graph that this one captures
        self._of_thread = threading.local()
        self._temporaries = self.xp.cuda.MemoryPool()
        self._products = _own_products(self.xp)
        self.precisions = _precisions(self.xp) if self._products else {}

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

    def facts(self) -> dict[str, str]:
        runtime, cupy = self.xp.cuda.runtime, self.xp
        cache = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")
        nearest = cache
        while not os.path.exists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.access(nearest, os.W_OK):
            cache += ": cannot be written, so kernels are compiled anew in every run: set CUPY_CACHE_DIR"
        return {
            "CuPy": cupy.__version__,
            "CUDA": f"{_version(runtime.runtimeGetVersion())}, driver for {_version(runtime.driverGetVersion())}",
            "kernel cache": cache,
            "steps": "replayed as CUDA graphs" if self._products else "eager: install nvmath-python",
            "precisions": ", ".join(["float32", "float64", *self.precisions]),
        }

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

    def product(self, precision: str | None) -> Callable[[Array, Array, Array], object]:
        if self._products is None:
            return self.xp.dot
        return self._products.tf32 if precision == "tf32" else self._products

    def compile(self, plan: Plan) -> Callable[[], None]:
        """Operation by operation, captured as a CUDA graph where products can be."""
        step = self.run_stepwise(plan)
        if self._products is None or not compiled_steps():
            return step
        return _Graph(self.xp, step, self._temporaries.malloc)

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        from cupyx import empty_pinned

        return PinnedFeeder(self.xp, empty_pinned, source, batch_size)

    @contextmanager
    def stream(self, threads: int | None = None) -> Iterator[object]:
        outside = self.xp.cuda.get_current_stream()
        own = getattr(self._of_thread, "stream", None)
        if own is None:
            own = self._of_thread.stream = self.xp.cuda.Stream(non_blocking=True)
        own.wait_event(outside.record())
        try:
            with own:
                yield own
        finally:
            outside.wait_event(own.record())


class PinnedFeeder(Feeder):
    """Two buffers in pinned memory and two on the device, by turns, and a stream that copies from one to the other.

    Three things must not happen before another is done, and an event or the host waits for each: the host fills a
    pinned buffer when the copy from it is done, a copy fills a device buffer when the device has read it, and the
    device reads one when the copy into it is done.
    """

    def __init__(self, cupy: Any, empty_pinned: Callable[..., np.ndarray], source: np.ndarray, batch_size: int) -> None:
        self._cupy = cupy
        self._source = source
        self._copies = cupy.cuda.Stream(non_blocking=True)
        shape = (batch_size, *source.shape[1:])
        self._buffers = [_Buffer(cupy, empty_pinned(shape, source.dtype), shape) for _ in range(self.AHEAD)]
        self._enqueued = self._given = 0

    def enqueue(self, rows: np.ndarray) -> None:
        buffer = self._buffers[self._enqueued % self.AHEAD]
        self._enqueued += 1
        buffer.copied.synchronize()
        buffer.rows = len(rows)
        host = buffer.pinned[: buffer.rows]
        self._source.take(rows, axis=0, out=host, mode="clip")  # the default mode buffers a copy of its own
        self._copies.wait_event(buffer.read)
        buffer.device[: buffer.rows].set(host, stream=self._copies)
        buffer.copied.record(self._copies)

    @contextmanager
    def batch(self) -> Iterator[Array]:
        buffer = self._buffers[self._given % self.AHEAD]
        self._given += 1
        stream = self._cupy.cuda.get_current_stream()
        stream.wait_event(buffer.copied)
        yield buffer.device[: buffer.rows]
        buffer.read.record(stream)

    def drain(self) -> None:
        # else the buffers might go back to their pools, and on to the next owner, while a copy still runs
        self._copies.synchronize()
        self._given = self._enqueued


class _Buffer:
    """A batch in pinned memory and on the device; when it was last copied, and last read."""

    def __init__(self, cupy: Any, pinned: np.ndarray, shape: tuple[int, ...]) -> None:
        self.rows = 0
        self.pinned = pinned
        self.device = cupy.empty(shape, pinned.dtype)
        self.copied, self.read = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        # the memory may have had an owner whose work is still queued
        self.read.record(cupy.cuda.get_current_stream())


class _Graph:
    """A step that is run twice as it is (kernels are compiled, libraries set up), then captured, and then replayed.

    A graph keeps the addresses of its arrays. CuPy's reductions take temporary ones, so these come from an allocator
    that nothing else uses: memory of the common pool would be given to somebody else, and overwritten by every replay.
    """

    WARM_UP = 2

    def __init__(self, cupy: Any, step: Callable[[], None], allocator: Callable[[int], Any]) -> None:
        self._cupy = cupy
        self._step = step
        self._allocator = allocator
        self._runs = 0
        self._graph: Any = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch()
            return
        self._runs += 1
        stream = self._cupy.cuda.get_current_stream()
        if self._runs == self.WARM_UP + 1 and stream.ptr != 0:  # the null stream cannot be captured
            self._graph = self._captured(stream)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._run()

    def _run(self) -> None:
        with self._cupy.cuda.using_allocator(self._allocator):
            self._step()

    def _captured(self, stream: Any) -> Any:
        """The graph; None where the step cannot be captured."""
        try:
            return self._capture(stream)
        except Exception as error:
            # whatever it is, the step runs as well without
            log_once(f"this step cannot be captured as a CUDA graph, it runs eagerly: {error}")
            return None

    def _capture(self, stream: Any) -> Any:
        stream.begin_capture()
        try:
            self._run()
        except BaseException:
            with suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture()


def _own_products(cupy: Any) -> Products | None:
    try:
        from nvmath.bindings import cublas

        return Products(cupy, cublas)
    except Exception as error:  # no nvmath, no cuBLAS, or one that does not fit the driver
        log_once(f"steps run eagerly, not as CUDA graphs: {error}; pip install 'dnn[cuda13]' has what it needs")
        return None


def _precisions(cupy: Any) -> dict[str, np.dtype]:
    """What this device multiplies in hardware, of what its products and its array library know."""
    found: dict[str, np.dtype] = {"float16": np.dtype(np.float16)}
    if int(cupy.cuda.Device().compute_capability) >= 80:
        found = {"tf32": np.dtype(np.float32)} | found
        with suppress(Exception):  # no ml_dtypes, or a NumPy that CuPy does not trust with it
            from ml_dtypes import bfloat16

            cupy.empty(1, bfloat16)
            found["bfloat16"] = np.dtype(bfloat16)
    return found


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


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
    try:
        # the wheel alone brings neither: a kernel needs NVRTC and CUDA's headers, a product cuBLAS
        two = cupy.ones((2, 2), np.float32)
        cupy.dot(two + 1, two).get()
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendUnavailableError(
            f"backend 'cupy': the device is there, but CUDA's libraries (NVRTC, cuBLAS) are not usable ({cause}): "
            + _WHEELS
        ) from error
    return cupy
