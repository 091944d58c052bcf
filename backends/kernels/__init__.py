"""Fused CUDA kernels: a backend's own versions of functions that are specified elsewhere in array operations.

To add one: in the file of its family write a factory that takes a `Compiler`, describes the kernel to it and gives a
function of the specification's name and signature that launches it; put the factory into the family's dictionary under
that name. That is all: the CuPy backend finds it there (`Backend.fused`). The tests run every kernel, compiled by g++,
against its specification on the CPU, and compile it for real GPUs where NVRTC is installed; they fail for a kernel that
they hold no case for. Types are type variables (`T`), never a list of dtypes;
where T is of 16 bits, CuPy's float16 or bfloat16, what is computed of it is a float.

Every array is C-contiguous. A kernel may leave what its specification calls `scratch` untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnn.backends.kernels import activations, batches, losses, precision, products, updates
from dnn.backends.kernels.compiler import Compiler, Elementwise

__all__ = ["FACTORIES", "Compiler", "Elementwise"]

FACTORIES: Mapping[str, Callable[[Compiler], Callable[..., None]]] = {
    **activations.FACTORIES,
    **batches.FACTORIES,
    **losses.FACTORIES,
    **precision.FACTORIES,
    **products.FACTORIES,
    **updates.FACTORIES,
}
"""By the name of the specification: what makes the function, given a compiler."""
