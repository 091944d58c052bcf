"""Compiles the fused kernels with g++, so that a machine without a GPU can hold them against their specifications."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import standin

from dnn.backends.kernels import FACTORIES, Elementwise
from dnn.backends.kernels.compiler import FOLDER

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "long long",
    "uint8": "unsigned char",
}

# as CuPy's float16 and bfloat16: made of a float, rounded to the nearest, and a float wherever one computes with it
SIXTEEN_BITS = """
#include <cmath>
#include <cstring>
using namespace std;
template <typename Bits> struct Number {
    Bits bits;
    Number() = default;
    Number(float value) : bits(value) {}
    template <typename T> explicit Number(T value) : bits(float(value)) {}
    operator float() const { return bits; }
};
struct BrainBits {
    unsigned short high;
    BrainBits(float value) {
        unsigned word;
        memcpy(&word, &value, 4);
        high = value != value ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    operator float() const {
        unsigned word = unsigned(high) << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }
};
typedef Number<_Float16> float16;
typedef Number<BrainBits> bfloat16;
"""

ELEMENTWISE = """
{sixteen_bits}
extern "C" void run(long long size, void **given) {{
    {bindings}
    for (long long i = 0; i < size; ++i) {{
        {elements}
        {operation};
    }}
}}
"""

# CUDA on the CPU: the blocks one after the other, a thread for each of theirs
CUDA = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
using namespace std;
#define __global__
#define __device__
#define __shared__ static
struct Index {{ unsigned x; }};
static thread_local Index threadIdx;
static Index blockIdx;
static barrier<> *all;
#define __syncthreads() all->arrive_and_wait()
#include "{file}"
extern "C" void run(long long blocks, long long threads, void **given) {{
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {{
        barrier<> meeting(threads);
        all = &meeting;
        vector<thread> block;
        for (unsigned x = 0; x < threads; ++x)
            block.emplace_back([=] {{ threadIdx.x = x; {function}<{T}>({arguments}); }});
        for (auto &each : block)
            each.join();
    }}
}}
"""


class Gpp:
    """A `Compiler` whose kernels run on NumPy arrays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def dot(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        out[...] = standin.product(a, b)

    def elementwise(self, kernel: Elementwise) -> Callable[..., None]:
        parameters = [part.split() for part in f"{kernel.inputs}, {kernel.outputs}".split(",")]

        def run(*arguments: Any, size: int | None = None) -> None:
            arguments = tuple(self._checked(argument) for argument in arguments)
            types, bindings, elements = {}, [], []
            for number, ((*raw, kind, name), argument) in enumerate(zip(parameters, arguments, strict=True)):
                is_array = isinstance(argument, np.ndarray)
                if len(kind) > 1:
                    c_type = C_TYPES[kind]
                    assert not is_array or argument.dtype == kind, f"{kernel.name}: {name}"
                    argument = argument if is_array else np.dtype(kind).type(argument)
                    arguments = (*arguments[:number], argument, *arguments[number + 1 :])
                else:
                    c_type = C_TYPES[argument.dtype.name]
                    assert types.setdefault(kind, c_type) == c_type, f"{kernel.name}: {kind} is two types"
                if not is_array:
                    bindings.append(f"const {c_type} {name} = *({c_type} *)given[{number}];")
                elif raw:
                    bindings.append(f"{c_type} *{name} = ({c_type} *)given[{number}];")
                else:
                    assert size in (None, argument.size), f"{kernel.name}: {name} is of another size"
                    size = argument.size
                    bindings.append(f"{c_type} *all_{name} = ({c_type} *)given[{number}];")
                    elements.append(f"{c_type} &{name} = all_{name}[i];")
            bindings += [f"typedef {c_type} {variable};" for variable, c_type in types.items()]
            assert size is not None
            source = ELEMENTWISE.format(
                sixteen_bits=SIXTEEN_BITS,
                bindings=" ".join(bindings),
                elements=" ".join(elements),
                operation=kernel.operation,
            )
            self._library(source).run(ctypes.c_longlong(size), _pointers(arguments))

        return run

    def cuda(self, file: str, function: str) -> Callable[..., None]:
        def run(dtype: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
            arguments = tuple(self._checked(argument) for argument in arguments)
            words = [
                f"({C_TYPES[a.dtype.name]} *)given[{i}]"
                if isinstance(a, np.ndarray)
                else f"*({C_TYPES[a.dtype.name]} *)given[{i}]"
                for i, a in enumerate(arguments)
            ]
            source = CUDA.format(
                file=FOLDER / file, function=function, T=C_TYPES[np.dtype(dtype).name], arguments=", ".join(words)
            )
            self._library(source).run(ctypes.c_longlong(blocks), ctypes.c_longlong(threads), _pointers(arguments))

        return run

    @staticmethod
    def _checked(argument: Any) -> Any:
        assert not isinstance(argument, np.ndarray) or argument.flags.c_contiguous
        return argument

    def _library(self, source: str) -> ctypes.CDLL:
        path = self._folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", "-x", "c++", "-"]
            subprocess.run(["g++", *flags, "-o", path], input=source, text=True, check=True)
        return ctypes.CDLL(str(path))


def _pointers(arguments: tuple[Any, ...]) -> Any:
    held = [a if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
    pointers.held = held  # as long as the pointers
    return pointers


# ------------------------------------------------------------------------- the stand-in with the kernels


class OnDevice:
    """A `Compiler` for the stand-in's arrays; each kernel counts as one launch."""

    def __init__(self, gpp: Gpp, dot: Callable[..., Any]) -> None:
        self._gpp = gpp
        self.dot = dot

    def elementwise(self, kernel: Elementwise) -> Any:
        return self._counted(self._gpp.elementwise(kernel))

    def cuda(self, file: str, function: str) -> Any:
        run = self._gpp.cuda(file, function)
        return self._counted(lambda dtype, blocks, threads, given: run(dtype, blocks, threads, map(_host, given)))

    def _counted(self, run: Any) -> Any:
        def launch(*arguments: Any, **settings: Any) -> None:
            standin.device.count("launches")
            run(*map(_host, arguments), **settings)

        return launch


class FusedStandin(standin.StandinBackend):
    """The stand-in device with the fused kernels, run by g++."""

    name = "fused standin"

    def __init__(self, gpp: Gpp) -> None:
        dot = self.xp.dot
        self.kernels = {name: factory(OnDevice(gpp, dot)) for name, factory in FACTORIES.items()}
        self._tf32 = {name: factory(OnDevice(gpp, in_tf32)) for name, factory in FACTORIES.items()}

    def fused(self, function: Callable[..., None], precision: str | None = None) -> Callable[..., None]:
        return (self._tf32 if precision == "tf32" else self.kernels)[function.__name__]

    def capture(self, step: Any) -> Any:
        """Every run as if it were recorded: an allocation or a wait in it is an error."""

        def recorded() -> None:
            with standin.device.capture():
                step()

        return recorded


def in_tf32(a: Any, b: Any, out: Any) -> None:
    """out = a b of float32 matrices, both rounded to ten bits after the point; of a vector exactly."""

    def rounded(array: Any) -> np.ndarray:
        bits = array.host.view(np.uint32)
        return ((bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000).view(np.float32)

    standin.device.count("products")
    out.host[...] = np.dot(rounded(a), rounded(b)) if a.ndim == 2 else np.dot(a.host, b.host)


def _host(argument: Any) -> Any:
    return argument.host if isinstance(argument, standin.DeviceArray) else argument
