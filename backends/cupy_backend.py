"""CuPy on a CUDA GPU: the only module that imports cupy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np

from dnn.backends.base import Array, Backend, BackendUnavailableError, Feeder, log_once
from dnn.backends.kernels import FACTORIES, Elementwise
from dnn.backends.kernels.compiler import FOLDER
from dnn.backends.kernels.products import gemm_arguments

_CUDA_R_32F, _CUDA_R_16F, _CUDA_R_16BF = 0, 2, 14
"""cudaDataType_t, from CUDA's library_types.h."""

_WHEELS = "pip install 'dnn[cuda13]' for a driver of CUDA 13, 'dnn[cuda12]' for CUDA 12 (nvidia-smi shows which)"


class CupyBackend(Backend):
    name = "cupy"

    def __init__(self) -> None:
        self.xp = _usable_cupy()
        # a stream a thread: what another one launches must not come into the graph that this one records
        self._of_thread = threading.local()
        products = _own_products(self.xp)
        self._capturable = products is not None
        compiler = _CupyCompiler(self.xp, products or self._cupys_product)
        self.kernels = {name: factory(compiler) for name, factory in FACTORIES.items()}
        self.precisions = _precisions(self.xp) if products else {}
        if products:
            # compiled when first used, so not at all where nobody asks for tf32
            compiler = _CupyCompiler(self.xp, products.tf32)
            self._tf32 = {name: factory(compiler) for name, factory in FACTORIES.items()}

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
            "steps": "replayed as CUDA graphs" if self._capturable else "eager: install nvmath-python",
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

    def fused(self, function: Callable[..., None], precision: str | None = None) -> Callable[..., None]:
        kernels = self._tf32 if precision == "tf32" else self.kernels
        return kernels.get(function.__name__, function)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        return _Graph(self.xp, step) if self._capturable else step

    def _cupys_product(self, a: Array, b: Array, out: Array) -> None:
        self.xp.dot(a, b, out=out)

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
        self._put = self._given = 0

    def put(self, rows: np.ndarray) -> None:
        buffer = self._buffers[self._put % self.AHEAD]
        self._put += 1
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
        self._given = self._put


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
    """A step that runs twice as it is (kernels are compiled, libraries set up), is then recorded, and then replayed."""

    WARM_UP = 2

    def __init__(self, cupy: Any, step: Callable[[], None]) -> None:
        self._cupy = cupy
        self._step = step
        self._runs = 0
        self._graph: Any = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch()
            return
        self._runs += 1
        stream = self._cupy.cuda.get_current_stream()
        if self._runs == self.WARM_UP + 1 and stream.ptr != 0:  # the null stream cannot be recorded
            self._graph = self._recorded(stream)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._step()

    def _recorded(self, stream: Any) -> Any:
        stream.begin_capture()
        try:
            self._step()
            return stream.end_capture()
        except BaseException as error:
            with suppress(Exception):
                stream.end_capture()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            # whatever it is, the step runs as well without
            log_once(f"this step cannot be recorded as a CUDA graph, it runs eagerly: {error}")
            return None


class _Products:
    """Products by a cuBLAS handle of our own: CuPy refuses to use its own while a graph is recorded."""

    WORKSPACE = 32 * 2**20

    def __init__(self, cupy: Any) -> None:
        from nvmath.bindings import cublas

        self._cupy = cupy
        self._set_stream, self._set_workspace = cublas.set_stream, cublas.set_workspace
        self._handle = cublas.create()
        # one a stream, allocated at its first product and kept: a graph holds the address
        self._workspaces: dict[int, Array] = {}
        self._stream: int | None = None
        self._lock = threading.Lock()
        # sums in 16 bits are left out: those of a product's parts too
        cublas.set_math_mode(self._handle, cublas.Math.DISALLOW_REDUCED_PRECISION_REDUCTION)
        compute = cublas.ComputeType

        def gemm_in(data_type: int, compute_type: int) -> Callable[..., None]:
            def gemm(*given: Any) -> None:
                *ops_and_sizes, one, first, first_ld, second, second_ld, zero, out, out_ld = given
                a, b, c = (first, data_type, first_ld), (second, data_type, second_ld), (out, data_type, out_ld)
                cublas.gemm_ex(*ops_and_sizes, one, *a, *b, zero, *c, compute_type, cublas.GemmAlgo.DEFAULT)

            return gemm

        # by dtype.char: float32, float64, float16, bfloat16; and tf32
        self._gemms: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {}
        for name, gemm, factors in (
            ("f", cublas.sgemm, np.float32),
            ("d", cublas.dgemm, np.float64),
            ("tf32", gemm_in(_CUDA_R_32F, compute.COMPUTE_32F_FAST_TF32), np.float32),
            ("e", gemm_in(_CUDA_R_16F, compute.COMPUTE_32F), np.float32),
            ("E", gemm_in(_CUDA_R_16BF, compute.COMPUTE_32F), np.float32),
        ):
            self._gemms[name] = (gemm, np.ones(1, factors), np.zeros(1, factors))

    def __call__(self, a: Array, b: Array, out: Array) -> None:
        self._product(out.dtype.char, a, b, out)

    def tf32(self, a: Array, b: Array, out: Array) -> None:
        """Float32 matrices are rounded to TF32 where they are multiplied; a product with ones, db, stays exact."""
        self._product("tf32" if out.dtype.char == "f" and a.ndim == 2 else out.dtype.char, a, b, out)

    def _product(self, kind: str, a: Array, b: Array, out: Array) -> None:
        gemm, one, zero = self._gemms[kind]
        first_op, second_op, m, n, k, first, first_ld, second, second_ld, out_ld = gemm_arguments(a, b, out)
        with self._lock:
            stream = self._cupy.cuda.get_current_stream().ptr
            if stream != self._stream:
                self._set_stream(self._handle, stream)
                # cuBLAS goes back to a workspace of its own whenever the stream changes
                if stream not in self._workspaces:
                    self._workspaces[stream] = self._cupy.empty(self.WORKSPACE, np.uint8)
                self._set_workspace(self._handle, self._workspaces[stream].data.ptr, self.WORKSPACE)
                self._stream = stream
            gemm(
                self._handle,
                first_op,
                second_op,
                m,
                n,
                k,
                one.ctypes.data,
                first.data.ptr,
                first_ld,
                second.data.ptr,
                second_ld,
                zero.ctypes.data,
                out.data.ptr,
                out_ld,
            )


class _CupyCompiler:
    """Kernels are compiled at their first launch, and kept in CuPy's cache folder."""

    def __init__(self, cupy: Any, dot: Callable[[Array, Array, Array], None]) -> None:
        self._cupy = cupy
        self.dot = dot

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


def _own_products(cupy: Any) -> _Products | None:
    try:
        return _Products(cupy)
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
