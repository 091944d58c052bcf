"""CuPy on a CUDA GPU: the only module that imports cupy."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dnn.backends.base import Array, Backend, BackendUnavailableError, Feeder, compiled_steps, log_once
from dnn.backends.cublas import WORKSPACE_BYTES, Products, load

if TYPE_CHECKING:
    from dnn.backends.cuda_kernels import KernelLoader, KernelStep
    from dnn.backends.plan import Plan
    from dnn.backends.plan.stepwise import Observer

_WHEELS = (
    "pip install 'cupy-cuda13x[ctk]==14.*' llvmlite ml_dtypes for a driver of CUDA 13, 'cupy-cuda12x[ctk]==14.*' "
    "instead for CUDA 12 (nvidia-smi shows which)"
)


class CupyBackend(Backend):
    """CuPy on the device that was current when this was made: memory, streams and cuBLAS handles belong to it.

    Each method enters it; what is called inside `stream` finds it entered.
    """

    name = "cupy"

    def __init__(self) -> None:
        self.xp = _usable_cupy()
        self._device = self.xp.cuda.Device().id
        # a stream a thread: what another one launches must not come into the graph that this one captures
        self._of_thread = threading.local()
        self._temporaries = self.xp.cuda.MemoryPool()
        self._products = Products(self.xp, load())
        self._loader = _kernel_loader(self.xp, self.zeros)  # None where kernels cannot be made here
        self.precisions = _precisions(self.xp)
        self.made: Counter[str] = Counter()
        """How many steps were made in which form: block, grid, launches, operation by operation."""

    def _on_device(self) -> AbstractContextManager[object]:
        return self.xp.cuda.Device(self._device)

    @property
    def launches(self) -> int:
        """How many graphs were launched so far."""
        return _Graph.launched

    @property
    def device(self) -> str:
        name = self.xp.cuda.runtime.getDeviceProperties(self._device)["name"].decode()
        capability = self.xp.cuda.Device(self._device).compute_capability
        return f"GPU {self._device} ({name}, compute capability {capability[:-1]}.{capability[-1]})"

    def memory(self) -> tuple[int, int]:
        with self._on_device():
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
            "cuBLAS": load()._name,
            "kernel cache": cache,
            "steps": self._how(),
            "precisions": ", ".join(["float32", "float64", *self.precisions]),
        }

    def _how(self) -> str:
        if not compiled_steps():
            return "operation by operation: DNN_COMPILED says so"
        if self._loader is None:
            return "operation by operation, as CUDA graphs: kernels cannot be made of them here"
        return f"kernels made by llvmlite {version('llvmlite')}, as CUDA graphs where a step takes several"

    def owns(self, array: object) -> bool:
        return isinstance(array, self.xp.ndarray)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        with self._on_device():
            return self.xp.empty(shape, dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        with self._on_device():
            return self.xp.zeros(shape, dtype)

    def asarray(self, array: object, dtype: Any = None) -> Array:
        with self._on_device():
            return self.xp.asarray(array, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        if not self.owns(array):
            return np.asarray(array)
        with self._on_device():
            return array.get()

    def synchronize(self) -> None:
        with self._on_device():
            self.xp.cuda.get_current_stream().synchronize()

    def mark(self) -> Callable[[], object]:
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(self.xp.cuda.get_current_stream())
        return event.synchronize

    def product(self, precision: str | None) -> Callable[[Array, Array, Array], object]:
        return self._products.tf32 if precision == "tf32" else self._products

    def compile(self, plan: Plan) -> Callable[..., None]:
        """One kernel where the step is small; else a CUDA graph of kernels and products."""
        if not compiled_steps():
            return self.run_stepwise(plan)
        step = self._kernels(plan)
        if step is None:
            self.made["operation by operation"] += 1
            return _Graph(self.xp, self.run_stepwise(plan), self._products, self._temporaries.malloc)
        self.made[step.form] += 1
        return step if step.is_one_kernel else _Graph(self.xp, step, self._products)

    def _kernels(self, plan: Plan) -> KernelStep | None:
        """The plan as kernels derived from it; None where they cannot be had."""
        if self._loader is None:
            return None
        from dnn.backends.cuda_kernels import kernel_step

        with self._on_device():
            return kernel_step(plan, self._loader, self._products, self.zeros)

    def run_stepwise(self, plan: Plan, observe: Observer | None = None) -> Callable[..., None]:
        with self._on_device():
            return super().run_stepwise(plan, observe)

    def plan_bytes(self, plan: Plan) -> int:
        """With the workspace of this thread's products, where it has none yet."""
        needed = None
        if self._loader is not None and compiled_steps():
            from dnn.backends.cuda_kernels import kernel_bytes

            needed = kernel_bytes(plan, self._loader.blocks)
        if needed is None:
            needed = super().plan_bytes(plan), any(node.op == "dot" for node in plan.nodes)
        nbytes, multiplies = needed
        return nbytes + (multiplies and not self._products.has_handle) * WORKSPACE_BYTES

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        from cupyx import empty_pinned

        with self._on_device():
            return PinnedFeeder(self.xp, empty_pinned, source, batch_size)

    @contextmanager
    def stream(self, threads: int | None = None) -> Iterator[object]:
        with self._on_device():
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

    A graph keeps the addresses of what it captured. What a step allocates while it runs would go back to the common
    pool, be given to somebody else, and be overwritten by every replay: while a step is captured, asking for memory is
    an error. `temporaries` is for a step that must, since CuPy's reductions do: an allocator that nothing else uses.

    Products work in a workspace of the thread that captured them. In another thread the step begins anew.
    """

    WARM_UP = 2
    launched = 0
    MANY = 8
    """Runs in a graph of its own: what starting a graph takes is shared by so many."""

    def __init__(
        self,
        cupy: Any,
        step: Callable[[], None],
        products: Products,
        temporaries: Callable[[int], Any] | None = None,
    ) -> None:
        self._cupy = cupy
        self._step = step
        self._products = products
        self._temporaries = temporaries
        self._handle: Any = None
        self._runs = 0
        self._graphs: dict[int, Any] = {}
        """By the number of runs; None where they cannot be captured."""

    def __call__(self, times: int = 1) -> None:
        handle = self._products.handle()
        if handle is not self._handle:
            self._graphs, self._handle, self._runs = {}, handle, 0
        while times:
            self._runs += 1
            is_null = self._cupy.cuda.get_current_stream().ptr == 0  # which cannot be captured
            can_capture = self._runs > self.WARM_UP and not is_null
            count = self.MANY if can_capture and times >= self.MANY else 1
            graph = self._graph_of(count) if can_capture else None
            if graph is not None:
                graph.launch()
                _Graph.launched += 1
            else:
                for _ in range(count):
                    self._run()
            times -= count

    def _graph_of(self, count: int) -> Any:
        if count not in self._graphs:
            self._graphs[count] = self._captured(self._cupy.cuda.get_current_stream(), count)
        return self._graphs[count]

    def _run(self) -> None:
        if self._temporaries is None:
            self._step()
            return
        with self._cupy.cuda.using_allocator(self._temporaries):
            self._step()

    def _captured(self, stream: Any, count: int) -> Any:
        """The graph of so many runs; None where the step cannot be captured."""
        try:
            return self._capture(stream, count)
        except Exception as error:
            # whatever it is, the step runs as well without
            log_once(f"this step cannot be captured as a CUDA graph, it runs eagerly: {error}")
            return None

    def _capture(self, stream: Any, count: int) -> Any:
        stream.begin_capture()
        try:
            with self._cupy.cuda.using_allocator(_refuse_memory):
                for _ in range(count):
                    self._run()
        except BaseException:
            with suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture()


def _refuse_memory(size: int) -> Any:
    raise RuntimeError(
        f"memory was asked for while a step is captured ({size} bytes): allocate it before the step runs"
    )


def _kernel_loader(cupy: Any, zeros: Callable[..., Array]) -> KernelLoader | None:
    """What makes kernels of steps; None, and the reason said once, where it does not work on this machine."""
    reason = "pip install llvmlite, which makes kernels of them"
    if find_spec("llvmlite") is not None:
        try:
            from dnn.backends.cuda_kernels import KernelLoader

            loader = KernelLoader(cupy)
            loader.try_out(zeros)
            return loader
        except Exception as error:  # an old device, an llvmlite without its code generator, a driver without a compiler
            reason = f"kernels cannot be made of them: {error}"
    log_once(f"steps run operation by operation: {reason}")
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
        load()
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendUnavailableError(
            f"backend 'cupy': the device is there, but CUDA's libraries (NVRTC, cuBLAS) are not usable ({cause}): "
            + _WHEELS
        ) from error
    return cupy
