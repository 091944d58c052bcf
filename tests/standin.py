"""A stand-in for a GPU: arrays that behave as CuPy's do, over NumPy, and count what a GPU would have to do.

What CuPy refuses is refused here (np.asarray of a device array, NumPy operands, `dot(out=)` of another dtype or order,
`out` of another shape, `min(out=)`, ufunc arguments beyond out, dtype and casting); what it does in silence is counted
(allocations, copies between host and device, waits for the device, hidden copies). `empty` is poisoned, rows out of
range wrap. Work is done at once; a copy on a stream of its own as late as it may be, and one that may hit what is still
in use is an error.

While a step is captured, work is recorded in place of done, and what a CUDA graph could not hold is an error; replaying
the graph does the work. Products go through the cuBLAS calls of the CuPy backend, to a cuBLAS in NumPy that knows its
rules: what cuBLAS refuses has its status, what it would take without a word and be wrong by is an error too.
"""

from __future__ import annotations

import ctypes
import itertools
import operator
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from dnn.backends import Backend, Feeder, register
from dnn.backends.base import compiled_steps
from dnn.backends.cublas import WORKSPACE_BYTES, Products
from dnn.backends.cuda_kernels import KernelLoader, kernel_bytes, kernel_step
from dnn.backends.cupy_backend import PinnedFeeder, _Graph

Work = Callable[[], object]


class Device:
    """`counts` of what was asked of the device: launches, products, graphs (replays), allocations, hidden_copies, h2d,
    d2h, syncs, and event_waits of the host, for a point in the work and not for all of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.allocated = 0
        """Bytes, over all the device's life: nothing is taken back."""
        self.memory: dict[int, int] = {}
        """What is allocated now: bytes by address."""
        self.recording: Graph | None = None
        self.allocator: Callable[[int], Any] | None = None
        """None: the common pool's."""
        self.number = 0
        """Which of a machine's devices is the current one."""

    def count(self, what: str) -> None:
        """Something that cannot be part of a graph."""
        if self.recording is not None:
            raise RuntimeError(f"{what} while a step is captured")
        self.counts[what] += 1

    def do(self, work: Work, reads: tuple[Any, ...] = (), what: str = "launches", times: int = 1) -> None:
        """Work for MAIN: now, or where a step is captured, at every replay. `times`: the kernels that it takes."""
        if self.recording is not None:
            self.recording.counts[what] += times
            self.recording.work.append((work, reads))
            return
        self.counts[what] += times
        _do(work, reads)

    def temporary(self, size: int) -> None:
        """An array that CuPy takes and gives back within one call."""
        if self.allocator is not None:
            self.allocator(size)
        elif self.recording is not None:
            raise RuntimeError("a temporary array of the common pool while a step is captured")

    def holds(self, address: int, size: int) -> bool:
        """Whether this memory lies within one allocation."""
        return any(at <= address and address + size <= at + held for at, held in self.memory.items())


class Graph:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.work: list[tuple[Work, tuple[Any, ...]]] = []

    def launch(self) -> None:
        device.count("graphs")
        for work, reads in self.work:
            _do(work, reads)


device = Device()


class Stream:
    """Work in its order. `sees`: how much of each stream's work is sure to be done before what is queued here next."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.queued = 0
        self.copies: list[tuple[int, Work]] = []
        self.sees: Counter[Stream] = Counter()
        self.ptr = id(self)

    def wait_event(self, event: Event) -> None:
        if device.recording is not None and self is MAIN:
            raise RuntimeError("a wait for work outside of the graph while a step is captured")
        _do_copies(event.sees)
        self.sees |= event.sees

    def record(self) -> Event:
        event = Event()
        event.record(self)
        return event

    def __enter__(self) -> None:
        """All launches go to MAIN, whichever stream is the current one."""

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        device.count("syncs")
        _host_sees(self.sees | Counter({self: self.queued}))

    def begin_capture(self) -> None:
        if device.recording is not None:
            raise RuntimeError("begin_capture while a step is captured")
        assert self is MAIN
        device.recording = Graph()

    def end_capture(self) -> Graph:
        if device.recording is None or self is not MAIN:
            raise RuntimeError("end_capture on a stream that is not capturing")
        graph, device.recording = device.recording, None
        return graph


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.sees: Counter[Stream] = Counter()

    def record(self, stream: Stream) -> None:
        self.sees = stream.sees | Counter({stream: stream.queued})

    def synchronize(self) -> None:
        device.count("event_waits")
        _host_sees(self.sees)


HOST = Stream()
"""Its `sees` is what the host has waited for."""
MAIN = Stream()
"""Where launches go."""
last_read: dict[int, int] = {}
"""By the address of device memory that is copied into: the work on MAIN that read it last."""
last_copied: dict[int, tuple[Stream, int]] = {}
"""By the address of host memory: the copy from it."""


def _do(work: Work, reads: tuple[Any, ...]) -> None:
    MAIN.queued += 1
    for array in reads:
        if (address := _address(array.host)) in last_read:
            last_read[address] = MAIN.queued
    work()


def _do_copies(sees: Counter[Stream]) -> None:
    for stream, number in sees.items():
        while stream.copies and stream.copies[0][0] <= number:
            stream.copies.pop(0)[1]()


def _host_sees(sees: Counter[Stream]) -> None:
    _do_copies(sees)
    HOST.sees |= sees


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def new(host: np.ndarray) -> DeviceArray:
    if device.allocator is not None:
        device.allocator(host.nbytes)
    device.count("allocations")
    device.allocated += host.nbytes
    owner = host
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    address = _address(owner)
    device.memory[address] = owner.nbytes
    weakref.finalize(owner, device.memory.pop, address, None).atexit = False
    return DeviceArray(host)


class DeviceArray:
    __array_ufunc__ = None  # numpy_array + this, np.add(this, ...): a TypeError

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    def __array__(self, *arguments: Any, **settings: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: DeviceArray(self.host.T))
    data = property(lambda self: SimpleNamespace(ptr=_address(self.host)))

    def __len__(self) -> int:
        return len(self.host)

    def reshape(self, *shape: Any) -> DeviceArray:
        reshaped = self.host.reshape(*shape)
        if self.size and not np.may_share_memory(reshaped, self.host):
            device.count("launches")
            return new(reshaped)
        return DeviceArray(reshaped)

    def view(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.host.view(dtype))

    def astype(self, dtype: Any, copy: bool = True) -> DeviceArray:
        return self if not copy and dtype == self.dtype else _result(self.host.astype(dtype))

    def copy(self) -> DeviceArray:
        return _result(self.host.copy())

    def fill(self, value: float) -> None:
        device.do(lambda: self.host.fill(value))

    def __getitem__(self, key: Any) -> DeviceArray:
        if isinstance(key, DeviceArray):
            if key.dtype == bool:
                device.count("syncs")  # how many are True decides the shape
            return _result(self.host[key.host])
        return DeviceArray(self.host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        source = _unwrap(value)
        reads = (value,) if isinstance(value, DeviceArray) else ()

        def write() -> None:
            self.host[key] = source

        device.do(write, reads)

    def get(self) -> np.ndarray:
        device.count("d2h")
        device.count("syncs")
        return self.host.copy()

    def set(self, source: np.ndarray, stream: Stream) -> None:
        device.count("h2d")
        if source.dtype != self.dtype or source.shape != self.shape:
            raise ValueError("set takes an array of the same dtype and shape")
        if (stream.sees | HOST.sees)[MAIN] < last_read.setdefault(_address(self.host), 0):
            raise RuntimeError("a copy into device memory that may still be read")
        before, number = last_copied.get(_address(source), (stream, 0))
        if HOST.sees[before] < number:
            raise RuntimeError("host memory was written that may still be copied")
        stream.queued += 1
        stream.copies.append((stream.queued, lambda: np.copyto(self.host, source)))
        last_copied[_address(source)] = (stream, stream.queued)

    def _read(self, kind: Any) -> Any:
        device.count("d2h")
        device.count("syncs")
        return kind(self.host)

    def __bool__(self) -> bool:
        return self._read(bool)

    def __float__(self) -> float:
        return self._read(float)

    def __int__(self) -> int:
        return self._read(int)

    def item(self) -> Any:
        return self._read(np.ndarray.item)

    def all(self) -> DeviceArray:
        return _result(np.asarray(self.host.all()))

    def sum(self, axis: int | None = None) -> DeviceArray:
        return _result(np.asarray(self.host.sum(axis)))

    def __repr__(self) -> str:
        return repr(self._read(np.ndarray.copy))


def _operators() -> None:
    for name in ["add", "sub", "mul", "truediv", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and", "or"]:
        function = getattr(operator, f"__{name}__")

        def forward(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            return _result(function(self.host, _unwrap(other)))

        def reflected(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            return _result(function(_unwrap(other), self.host))

        def in_place(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            operand = _unwrap(other)

            def write() -> None:
                self.host[...] = function(self.host, operand)

            device.do(write)
            return self

        setattr(DeviceArray, f"__{name}__", forward)
        setattr(DeviceArray, f"__r{name}__", reflected)
        if name in ("add", "sub", "mul", "truediv"):
            setattr(DeviceArray, f"__i{name}__", in_place)
    DeviceArray.__neg__ = lambda self: _result(-self.host)  # type: ignore[attr-defined]
    DeviceArray.__hash__ = object.__hash__  # type: ignore[method-assign]


_operators()


def _unwrap(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) or not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _result(result: Any) -> DeviceArray:
    """What a launch gives in an array of its own."""
    device.count("launches")
    return new(np.asarray(result))


def _count_overlaps(out: DeviceArray, operands: tuple[Any, ...]) -> None:
    for operand in operands:
        if isinstance(operand, DeviceArray) and operand is not out and np.may_share_memory(operand.host, out.host):
            device.count("hidden_copies")


def _arrays(operands: tuple[Any, ...]) -> tuple[DeviceArray, ...]:
    return tuple(operand for operand in operands if isinstance(operand, DeviceArray))


class MemoryPool:
    """The memory itself is NumPy's."""

    def malloc(self, size: int) -> None:
        pass


class Current:
    """One of a machine's devices, the current one if not said; within the block, it is the current one."""

    compute_capability = "90"
    attributes = {"MultiProcessorCount": 3}  # noqa: RUF012

    def __init__(self, number: int | None = None) -> None:
        self.id = device.number if number is None else number
        self._before: list[int] = []

    def __enter__(self) -> None:
        self._before.append(device.number)
        device.number = self.id

    def __exit__(self, *_: Any) -> None:
        device.number = self._before.pop()


functions: dict[int, Any] = {}
"""By their pointers: kernels, and the code that runs them."""


class Driver:
    """Launches by the driver's manual: the parameters are where an array of pointers says."""

    def launchKernel(self, function: int, *given: int) -> None:
        *before, extra = given
        assert extra == 0
        kernel, _ = functions[function]
        assert not kernel.meets or before[0] == 1, "blocks that wait for each other, launched as if they did not"
        self._launch(function, *before)

    def launchCooperativeKernel(self, function: int, *given: int) -> None:
        assert given[0] <= Current.attributes["MultiProcessorCount"], "more blocks than run at the same time"
        self._launch(function, *given)

    def _launch(self, function: int, *given: int) -> None:
        *grid, shared, stream, parameters = given
        blocks, *rest = grid
        assert blocks > 0 and rest == [1, 1, 256, 1, 1] and shared == 0
        assert stream == MAIN.ptr, "a launch on a stream that is not the current one"
        kernel, code = functions[function]
        count = len(kernel.buffers)
        pointers = (ctypes.c_void_p * (count + 2)).from_address(parameters)
        *addresses, counter = (ctypes.c_int64.from_address(place).value for place in pointers[: count + 1])
        times = ctypes.c_int32.from_address(pointers[count + 1]).value
        if kernel.meets:
            assert ctypes.c_int32.from_address(counter).value == 0
        table = np.array(addresses, np.int64)
        # the last block and the last thread first
        reads = tuple(SimpleNamespace(host=SimpleNamespace(__array_interface__={"data": (a,)})) for a in addresses)
        device.do(lambda: code.launch(kernel, table, blocks, times, backwards=True), reads)


class Cuda:
    driver = Driver()
    Stream, Event, MemoryPool, Device = Stream, Event, MemoryPool, Current

    def get_current_stream(self) -> Stream:
        return MAIN

    @contextmanager
    def using_allocator(self, allocator: Callable[[int], Any]) -> Iterator[None]:
        before, device.allocator = device.allocator, allocator
        try:
            yield
        finally:
            device.allocator = before


WITHOUT_BFLOAT16 = ("logical_not", "logical_xor")


class Module:
    """`xp`: the functions of NumPy that the engine uses, by CuPy's rules."""

    ndarray = DeviceArray
    cuda = Cuda()

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0xFF)  # nan as a float, -1 as an integer
        return new(array)

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if not isinstance(function, np.ufunc):
            raise AttributeError(f"the stand-in has no {name}: add it, if CuPy has it")

        def ufunc(
            *arguments: Any, out: DeviceArray | None = None, dtype: Any = None, casting: str = "same_kind"
        ) -> DeviceArray:
            operands = tuple(map(_unwrap, arguments))
            if any(getattr(operand, "dtype", None) == bfloat16 for operand in operands):
                if name in WITHOUT_BFLOAT16:
                    raise TypeError(f"Wrong type of arguments for cupy_{name}")
                # a Python number takes the array's dtype; ml_dtypes would take both to float32
                operands = tuple(bfloat16(x) if isinstance(x, float) else x for x in operands)
            if out is None:
                return _result(function(*operands, dtype=dtype, casting=casting))
            if out.shape != np.broadcast_shapes(*map(np.shape, operands)):
                raise ValueError("Out shape is mismatched")
            _count_overlaps(out, arguments)
            device.do(lambda: function(*operands, out=out.host, dtype=dtype, casting=casting), _arrays(arguments))
            return out

        return ufunc

    def dot(self, a: DeviceArray, b: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
        if device.recording is not None:
            raise NotImplementedError("cuBLAS by CuPy's handle while a step is captured")
        for operand in (a, b):
            if not (operand.flags.c_contiguous or operand.flags.f_contiguous):
                device.count("hidden_copies")
        if a.dtype != b.dtype:
            device.count("hidden_copies")
        device.count("products")
        if out is None:
            return new(np.asarray(multiplied(a.host, b.host)))
        if out.dtype != np.result_type(a.dtype, b.dtype) or not out.flags.c_contiguous:
            raise ValueError("output array is not acceptable (must have the right dtype and be C-contiguous)")
        _count_overlaps(out, (a, b))
        out.host[...] = multiplied(a.host, b.host)
        return out

    def min(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        if out is not None:
            raise TypeError("operand type(s) all returned NotImplemented from __array_ufunc__ (cupy issue 9032)")
        return self._reduce(np.min, a, axis, out, keepdims=keepdims)

    def max(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.max, a, axis, out, keepdims=keepdims)

    def sum(self, a: DeviceArray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return self._reduce(np.sum, a, axis, out, dtype=dtype, keepdims=keepdims)

    def argmax(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.argmax, a, axis, out, keepdims=keepdims)

    def _reduce(self, function: Any, a: DeviceArray, axis: Any, out: Any, **settings: Any) -> DeviceArray:
        if out is None:
            return _result(function(a.host, axis=axis, **settings))
        if np.may_share_memory(a.host, out.host):
            device.count("hidden_copies")
        times = 1
        if function is not np.argmax or axis is None:
            device.temporary(out.nbytes)  # CUB's workspace and its result, which is then copied into out
            times = 2
        device.do(lambda: function(a.host, axis=axis, out=out.host, **settings), (a,), times=times)
        return out

    def where(self, condition: DeviceArray, x: Any, y: Any) -> DeviceArray:
        return _result(np.where(condition.host, _unwrap(x), _unwrap(y)))

    def take(self, a: DeviceArray, rows: DeviceArray, axis: int | None = None, out: DeviceArray | None = None) -> Any:
        if out is None:
            return _result(np.take(a.host, rows.host, axis, mode="wrap"))
        if out.dtype != a.dtype:
            raise TypeError("output dtype mismatch")
        if out.shape != np.take(np.empty_like(a.host, shape=a.shape), rows.host * 0, axis).shape:
            raise ValueError("output shape mismatch")
        device.do(lambda: np.take(a.host, rows.host, axis, out=out.host, mode="wrap"), (a, rows))
        return out

    def put(self, a: DeviceArray, index: DeviceArray, values: DeviceArray) -> None:
        device.do(lambda: np.put(a.host, index.host, values.host, mode="wrap"), (index, values))

    def copyto(
        self, a: DeviceArray, b: Any, casting: str = "same_kind", where: DeviceArray | bool | None = None
    ) -> None:
        source, mask = _unwrap(b), True if where is None else _unwrap(where)
        _count_overlaps(a, (b, where))
        device.do(lambda: np.copyto(a.host, source, casting=casting, where=mask), _arrays((b, where)))

    def arange(self, n: int) -> DeviceArray:
        return _result(np.arange(n))

    def ones(self, shape: Any, dtype: Any = float) -> DeviceArray:
        return _result(np.ones(shape, dtype))

    def zeros(self, shape: Any, dtype: Any = float) -> DeviceArray:
        return _result(np.zeros(shape, dtype))

    def any(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.any, a, axis, out, keepdims=keepdims)

    def cumsum(self, a: DeviceArray, axis: int | None = None, dtype: Any = None) -> DeviceArray:
        return _result(np.cumsum(a.host, axis, dtype))

    def argsort(self, a: DeviceArray, axis: int | None = -1) -> DeviceArray:
        return _result(np.argsort(a.host, axis))

    def searchsorted(self, a: DeviceArray, v: DeviceArray, side: Any = "left") -> DeviceArray:
        if a.dtype != v.dtype or a.ndim != 1:
            raise ValueError("searchsorted in an array (n,), for values of its dtype")
        return _result(np.searchsorted(a.host, v.host, side))

    def concatenate(self, arrays: Any, axis: int | None = 0) -> DeviceArray:
        if not all(isinstance(array, DeviceArray) for array in arrays):
            raise TypeError("Only cupy arrays can be concatenated")
        return _result(np.concatenate([array.host for array in arrays], axis))

    def squeeze(self, a: DeviceArray) -> DeviceArray:
        return DeviceArray(np.squeeze(a.host))

    def ascontiguousarray(self, a: DeviceArray) -> DeviceArray:
        return a if a.flags.c_contiguous else _result(np.ascontiguousarray(a.host))


# ---------------------------------------------------------------------------------------------- products


def multiplied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As the device multiplies: what is of 16 bits with sums in float32, then rounded."""
    if a.dtype.itemsize > 2:
        return np.dot(a, b)
    return np.dot(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)


def in_tf32(array: np.ndarray) -> np.ndarray:
    """Rounded to ten bits after the point."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000).view(np.float32)


class Cublas:
    """cuBLAS's functions by their manual, alpha 1 and beta 0: c (m, n) = op(a) (m, k) op(b) (k, n), column-major."""

    SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15
    NAMES = {1: "NOT_INITIALIZED", 7: "INVALID_VALUE", 15: "NOT_SUPPORTED"}  # noqa: RUF012
    KINDS = {  # noqa: RUF012  (by data type and compute type)
        (0, 68): np.dtype(np.float32),
        (0, 77): np.dtype(np.float32),
        (1, 70): np.dtype(np.float64),
        (2, 68): np.dtype(np.float16),
        (14, 68): np.dtype(bfloat16),
    }
    _numbers = itertools.count(7)

    def __init__(self) -> None:
        self.handles: dict[int, SimpleNamespace] = {}

    def cublasGetStatusName(self, status: int) -> bytes:
        return f"CUBLAS_STATUS_{self.NAMES[status]}".encode()

    def cublasCreate_v2(self, handle: Any) -> int:
        if device.recording is not None:
            raise RuntimeError("a cuBLAS handle is created, which allocates, while a step is captured")
        number = handle._obj.value = next(self._numbers)
        self.handles[number] = SimpleNamespace(
            thread=threading.get_ident(), device=device.number, stream=0, workspace=None, math=0
        )
        return self.SUCCESS

    def cublasDestroy_v2(self, handle: int) -> int:
        if handle not in self.handles:
            return self.NOT_INITIALIZED
        self._on_its_device(handle)
        del self.handles[handle]
        return self.SUCCESS

    def cublasSetStream_v2(self, handle: int, stream: int) -> int:
        if handle not in self.handles:
            return self.NOT_INITIALIZED
        its = self._of_this_thread(handle)
        its.stream, its.workspace = stream, None
        return self.SUCCESS

    def cublasSetWorkspace_v2(self, handle: int, address: int | None, size: int) -> int:
        if handle not in self.handles:
            return self.NOT_INITIALIZED
        if not address:
            return self.INVALID_VALUE
        if size < WORKSPACE_BYTES or not device.holds(address, size):
            raise RuntimeError(f"a workspace of {size} bytes that is too small or not allocated")
        self._of_this_thread(handle).workspace = address
        return self.SUCCESS

    def cublasSetMathMode(self, handle: int, mode: int) -> int:
        if handle not in self.handles:
            return self.NOT_INITIALIZED
        self._of_this_thread(handle).math = mode
        return self.SUCCESS

    def cublasGemmEx(self, handle: int, transpose_a: int, transpose_b: int, m: int, n: int, k: int, *given: int) -> int:
        alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm = given
        if handle not in self.handles:
            return self.NOT_INITIALIZED
        if not all((alpha, beta, a, b, c)) or {transpose_a, transpose_b} - {0, 1} or min(m, n, k) < 0:
            return self.INVALID_VALUE
        stored_a, stored_b = (k, m) if transpose_a else (m, k), (n, k) if transpose_b else (k, n)
        if lda < max(1, stored_a[0]) or ldb < max(1, stored_b[0]) or ldc < max(1, m):
            return self.INVALID_VALUE
        dtype = self.KINDS.get((a_type, compute))
        if dtype is None or not a_type == b_type == c_type or algorithm != -1:
            return self.NOT_SUPPORTED
        its = self._of_this_thread(handle)
        if its.stream != Module.cuda.get_current_stream().ptr:
            raise RuntimeError("a product on another stream than the current one")
        if its.workspace is None:
            raise RuntimeError("a product without a workspace: cublasSetStream took it away")
        if its.math != 16:
            raise RuntimeError("a product whose sums may be in 16 bits")
        of_factors = np.dtype(np.float64) if compute == 70 else np.dtype(np.float32)
        if [_at(factor, of_factors, 1, 1, 1).item() for factor in (alpha, beta)] != [1, 0]:
            raise RuntimeError(f"alpha and beta are not 1 and 0 in {of_factors}")
        for address, (rows, columns), leading in ((a, stored_a, lda), (b, stored_b, ldb), (c, (m, n), ldc)):
            if not device.holds(address, ((columns - 1) * leading + rows) * dtype.itemsize):
                raise RuntimeError(f"a matrix {rows} x {columns}, leading dimension {leading}, that leaves its memory")
        op_a = _at(a, dtype, *stored_a, lda).T if transpose_a else _at(a, dtype, *stored_a, lda)
        op_b = _at(b, dtype, *stored_b, ldb).T if transpose_b else _at(b, dtype, *stored_b, ldb)
        result = _at(c, dtype, m, n, ldc)
        if np.shares_memory(result, op_a) or np.shares_memory(result, op_b):
            raise RuntimeError("the result of a product overlaps an operand")
        rounded, workspace = in_tf32 if compute == 77 else np.asarray, its.workspace

        def product() -> None:
            if workspace not in device.memory:
                raise RuntimeError("a product in a workspace that is no longer there")
            # the transpose, so that the host's BLAS is asked as NumPy would ask it
            result.T[...] = multiplied(rounded(op_b).T, rounded(op_a).T)

        device.do(product, what="products")
        return self.SUCCESS

    def _on_its_device(self, handle: int) -> SimpleNamespace:
        its = self.handles[handle]
        if its.device != device.number:
            raise RuntimeError(f"a handle of device {its.device} on device {device.number}")
        return its

    def _of_this_thread(self, handle: int) -> SimpleNamespace:
        its = self._on_its_device(handle)
        if its.thread != threading.get_ident():
            raise RuntimeError("a handle of another thread")
        return its


def _at(address: int, dtype: np.dtype, rows: int, columns: int, leading: int) -> np.ndarray:
    """The matrix there, column-major."""
    memory = (ctypes.c_char * (((columns - 1) * leading + rows) * dtype.itemsize)).from_address(address)
    strides = dtype.itemsize, dtype.itemsize * leading
    return np.ndarray((rows, columns), dtype, memory, strides=strides)


# ------------------------------------------------------------------------------------------------ backend


class StrictGraph(_Graph):
    """A step that cannot be captured is an error here."""

    _captured = _Graph._capture


class EmulatedKernels(KernelLoader):
    """Kernels that run on the CPU in place of PTX on the device."""

    def __init__(self) -> None:
        super().__init__(Module())

    def _module(self, kernels: list[Any]) -> Any:
        from emulator import Emulated

        code = Emulated(kernels)

        def get_function(name: str) -> Any:
            kernel = next(kernel for kernel in kernels if kernel.name == name)
            function = SimpleNamespace(ptr=id(kernel))
            functions[function.ptr] = kernel, code
            return function

        return SimpleNamespace(get_function=get_function)


class StandinBackend(Backend):
    name = "standin"
    xp = Module()
    device = "a stand-in for a GPU, in NumPy"
    precisions = {  # noqa: RUF012
        "tf32": np.dtype(np.float32),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(bfloat16),
    }

    def __init__(self) -> None:
        self._products = Products(self.xp, Cublas())
        self.loader = EmulatedKernels() if find_spec("llvmlite") else None

    def memory(self) -> tuple[int, int]:
        return 2**33, 2**34

    def owns(self, array: object) -> bool:
        return isinstance(array, DeviceArray)

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        return self.xp.empty(shape, dtype)

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        return new(np.zeros(shape, dtype))

    def asarray(self, array: object, dtype: Any = None) -> DeviceArray:
        if isinstance(array, DeviceArray):
            return array if dtype is None else array.astype(dtype, copy=False)
        device.count("h2d")
        return new(np.array(array, dtype))

    def product(self, precision: str | None) -> Any:
        return self._products.tf32 if precision == "tf32" else self._products

    def compile(self, plan: Any) -> Any:
        if not compiled_steps():
            return self.run_stepwise(plan)
        step = None if self.loader is None else kernel_step(plan, self.loader, self._products, self.zeros)
        if step is None:
            return StrictGraph(self.xp, self.run_stepwise(plan), self._products, MemoryPool().malloc)
        return step if step.is_one_kernel else StrictGraph(self.xp, step, self._products)

    def plan_bytes(self, plan: Any) -> int:
        needed = None
        if self.loader is not None and compiled_steps():
            needed = kernel_bytes(plan, self.loader.blocks)
        return super().plan_bytes(plan) if needed is None else needed[0]

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        return PinnedFeeder(self.xp, np.empty, source, batch_size)

    def synchronize(self) -> None:
        MAIN.synchronize()

    def to_numpy(self, array: Any) -> np.ndarray:
        return array.get() if isinstance(array, DeviceArray) else np.asarray(array)


register("standin", StandinBackend)
