"""What a kernel needs of those who compile it: CuPy on a GPU, g++ in the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Elementwise:
    """The parameters and the body of a loop over elements, in the words of `cupy.ElementwiseKernel`.

    In the body `i` is the element's number; a parameter is that element of its array, a `raw` one the array itself.
    Outputs may be read before they are written.
    """

    name: str
    inputs: str
    outputs: str
    operation: str


class Compiler(Protocol):
    def dot(self, a: Any, b: Any, out: Any) -> None:
        """out = a b, as `xp.dot(a, b, out=out)`, in a form that a step can be captured with."""

    def elementwise(self, kernel: Elementwise) -> Callable[..., Any]:
        """kernel(*inputs, *outputs), with size= where every parameter is raw."""

    def cuda(self, file: str, function: str) -> Callable[..., Any]:
        """The template `function` of a CUDA source in this folder: kernel(dtype, blocks, threads, arguments)."""
