"""A stand-in for a GPU: arrays that behave as CuPy's do, over NumPy, and count what a GPU would have to do.

What CuPy refuses is refused here (np.asarray of a device array, NumPy operands, `dot(out=)` of another dtype or order,
ufunc arguments beyond out, dtype and casting); what it does in silence is counted (allocations, copies between host
and device, waits for the device, hidden copies). `empty` is poisoned, rows out of range wrap. Launches are done at
once; a copy on a stream of its own as late as it may be, and one that may hit what is still in use is an error.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from dnn.backends import Backend, Feeder, register
from dnn.backends.cupy_backend import PinnedFeeder


class Device:
    """`counts` of what was asked of the device: launches, products, allocations, hidden_copies, h2d, d2h, syncs, and
    event_waits of the host, for a point in the work and not for all of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.allocated = 0
        """Bytes, over all the device's life: nothing is taken back."""
        self._capturing = False

    def count(self, what: str) -> None:
        if self._capturing and what not in ("launches", "products"):
            raise RuntimeError(f"{what} while a step is captured")
        self.counts[what] += 1

    @contextmanager
    def capture(self) -> Iterator[Counter[str]]:
        """As a CUDA graph capture: nothing but launches and products. Gives the counts of the block alone."""
        before, self.counts, self._capturing = self.counts, Counter(), True
        try:
            yield self.counts
        finally:
            self._capturing = False
            self.counts = before + self.counts


device = Device()


class Stream:
    """Work in its order. `sees`: how much of each stream's work is sure to be done before what is queued here next."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.queued = 0
        self.copies: list[tuple[int, Callable[[], None]]] = []
        self.sees: Counter[Stream] = Counter()

    def wait_event(self, event: Event) -> None:
        _do_copies(event.sees)
        self.sees |= event.sees

    def synchronize(self) -> None:
        device.count("syncs")
        _host_sees(self.sees | Counter({self: self.queued}))


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
"""By the address of device memory: the launch on MAIN that took rows of it."""
last_copied: dict[int, tuple[Stream, int]] = {}
"""By the address of host memory: the copy from it."""


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
    device.count("allocations")
    device.allocated += host.nbytes
    return DeviceArray(host)


class DeviceArray:
    __array_ufunc__ = None  # numpy_array + this, np.add(this, ...): a TypeError

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    def __array__(self, *arguments: Any, **settings: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: DeviceArray(self.host.T))

    def __len__(self) -> int:
        return len(self.host)

    def reshape(self, *shape: Any) -> DeviceArray:
        reshaped = self.host.reshape(*shape)
        return DeviceArray(reshaped) if np.shares_memory(reshaped, self.host) else new(reshaped)

    def astype(self, dtype: Any, copy: bool = True) -> DeviceArray:
        return self if not copy and dtype == self.dtype else _launched(self.host.astype(dtype))

    def copy(self) -> DeviceArray:
        return _launched(self.host.copy())

    def fill(self, value: float) -> None:
        device.count("launches")
        self.host.fill(value)

    def __getitem__(self, key: Any) -> DeviceArray:
        if isinstance(key, DeviceArray):
            if key.dtype == bool:
                device.count("syncs")  # how many are True decides the shape
            return _launched(self.host[key.host])
        return DeviceArray(self.host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        device.count("launches")
        self.host[key] = _unwrap(value)

    def get(self) -> np.ndarray:
        device.count("d2h")
        device.count("syncs")
        return self.host.copy()

    def set(self, source: np.ndarray, stream: Stream) -> None:
        device.count("h2d")
        if source.dtype != self.dtype or source.shape != self.shape:
            raise ValueError("set takes an array of the same dtype and shape")
        if (stream.sees | HOST.sees)[MAIN] < last_read.get(_address(self.host), 0):
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
        return _launched(np.asarray(self.host.all()))

    def sum(self, axis: int | None = None) -> DeviceArray:
        return _launched(np.asarray(self.host.sum(axis)))

    def __repr__(self) -> str:
        return repr(self._read(np.ndarray.copy))


def _operators() -> None:
    for name in ["add", "sub", "mul", "truediv", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and", "or"]:
        function = getattr(operator, f"__{name}__")

        def forward(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            return _launched(function(self.host, _unwrap(other)))

        def reflected(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            return _launched(function(_unwrap(other), self.host))

        def in_place(self: DeviceArray, other: Any, function: Any = function) -> DeviceArray:
            device.count("launches")
            self.host[...] = function(self.host, _unwrap(other))
            return self

        setattr(DeviceArray, f"__{name}__", forward)
        setattr(DeviceArray, f"__r{name}__", reflected)
        if name in ("add", "sub", "mul", "truediv"):
            setattr(DeviceArray, f"__i{name}__", in_place)
    DeviceArray.__neg__ = lambda self: _launched(-self.host)  # type: ignore[attr-defined]
    DeviceArray.__hash__ = object.__hash__  # type: ignore[method-assign]


_operators()


def _unwrap(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) or not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _launched(result: Any, out: DeviceArray | None = None) -> DeviceArray:
    device.count("launches")
    return new(np.asarray(result)) if out is None else out


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As the device multiplies: what is of 16 bits with sums in float32, then rounded."""
    if a.dtype.itemsize > 2:
        return np.dot(a, b)
    return np.dot(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)


class Cuda:
    Stream, Event = Stream, Event

    def get_current_stream(self) -> Stream:
        return MAIN


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
            if out is None:
                return _launched(function(*map(_unwrap, arguments), dtype=dtype, casting=casting))
            for argument in arguments:
                other = isinstance(argument, DeviceArray) and argument is not out
                if other and np.shares_memory(argument.host, out.host):
                    device.count("hidden_copies")
            function(*map(_unwrap, arguments), out=out.host, dtype=dtype, casting=casting)
            return _launched(None, out)

        return ufunc

    def dot(self, a: DeviceArray, b: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
        device.count("products")
        for operand in (a, b):
            if not (operand.flags.c_contiguous or operand.flags.f_contiguous):
                device.count("hidden_copies")
        if a.dtype != b.dtype:
            device.count("hidden_copies")
        if out is None:
            return new(np.asarray(product(a.host, b.host)))
        if out.dtype != np.result_type(a.dtype, b.dtype) or not out.flags.c_contiguous:
            raise ValueError("output array is not acceptable (must have the right dtype and be C-contiguous)")
        if np.shares_memory(a.host, out.host) or np.shares_memory(b.host, out.host):
            device.count("hidden_copies")
        out.host[...] = product(a.host, b.host)
        return out

    def min(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.min, a, axis, out, keepdims=keepdims)

    def max(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.max, a, axis, out, keepdims=keepdims)

    def sum(self, a: DeviceArray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return self._reduce(np.sum, a, axis, out, dtype=dtype, keepdims=keepdims)

    def argmax(self, a: DeviceArray, axis: Any = None, out: Any = None, keepdims: bool = False) -> DeviceArray:
        return self._reduce(np.argmax, a, axis, out, keepdims=keepdims)

    def _reduce(self, function: Any, a: DeviceArray, axis: Any, out: Any, **settings: Any) -> DeviceArray:
        return _launched(function(a.host, axis=axis, out=None if out is None else out.host, **settings), out)

    def where(self, condition: DeviceArray, x: Any, y: Any) -> DeviceArray:
        return _launched(np.where(condition.host, _unwrap(x), _unwrap(y)))

    def take(self, a: DeviceArray, rows: DeviceArray, axis: int | None = None, out: DeviceArray | None = None) -> Any:
        if out is None:
            return _launched(np.take(a.host, rows.host, axis, mode="wrap"))
        if out.dtype != a.dtype:
            raise TypeError("output dtype mismatch")
        MAIN.queued += 1
        last_read[_address(a.host)] = MAIN.queued
        np.take(a.host, rows.host, axis, out=out.host, mode="wrap")
        return _launched(None, out)

    def put(self, a: DeviceArray, index: DeviceArray, values: DeviceArray) -> None:
        device.count("launches")
        np.put(a.host, index.host, values.host, mode="wrap")

    def copyto(self, a: DeviceArray, b: DeviceArray) -> None:
        device.count("launches")
        np.copyto(a.host, b.host)

    def squeeze(self, a: DeviceArray) -> DeviceArray:
        return DeviceArray(np.squeeze(a.host))

    def ascontiguousarray(self, a: DeviceArray) -> DeviceArray:
        return a if a.flags.c_contiguous else _launched(np.ascontiguousarray(a.host))


class StandinBackend(Backend):
    name = "standin"
    xp = Module()
    device = "a stand-in for a GPU, in NumPy"
    precisions = {  # noqa: RUF012
        "tf32": np.dtype(np.float32),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(bfloat16),
    }

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

    def feeder(self, source: np.ndarray, batch_size: int) -> Feeder:
        return PinnedFeeder(self.xp, np.empty, source, batch_size)

    def to_numpy(self, array: Any) -> np.ndarray:
        return array.get() if isinstance(array, DeviceArray) else np.asarray(array)


register("standin", StandinBackend)
