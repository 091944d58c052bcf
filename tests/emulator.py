"""The kernels of a GPU on this CPU: the same phases, thread by thread and block by block.

One block after the other does its part of a level, and one thread after the other a phase. Both may go either way, and
a block's shared memory holds no numbers when a unit begins: a barrier that is missing shows in the results. What a
kernel does to the memory that it is given it does there; addresses are those of this process.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from assembler import assemble_if_asked

from dnn.backends.codegen.jit import compile_module
from dnn.backends.codegen.kernels import Kernel, Target, module_of
from dnn.backends.codegen.tasks import THREADS, Task

_FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 3)


class Cpu(Target):
    """void kernel(const i64 *addresses, i8 *local, i8 *frames, i32 blocks, i32 times, i32 backwards)"""

    BEFORE = "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"

    def _numbered(self, number: str, count: str) -> str:
        """Of `count`, this one from the front or from the back."""
        code = self.code
        turned = code.do(f"sub i32 {code.do(f'sub i32 {count}, 1')}, {number}")
        return code.do(f"select i1 %is.backwards, i32 {turned}, i32 {number}")

    @contextmanager
    def units(self, count: int) -> Iterator[str]:
        code = self.code
        with code.counted("0", "%blocks", 1) as number:
            block = self._numbered(number, "%blocks")
            with code.counted(block, str(count), "%blocks") as unit:
                code.line(f"call void @llvm.memset.p0.i64(ptr %shared, i8 -1, i64 {self.kernel.shared}, i1 false)")
                yield unit

    def phase(self, name: str, task: Task, unit: str, turn: str) -> None:
        code = self.code
        with code.counted("0", str(THREADS), 1) as number:
            self.one_thread(name, task, unit, self._numbered(number, str(THREADS)), turn)

    def one_thread(self, name: str, task: Task, unit: str, thread: str, turn: str) -> None:
        code = self.code
        offset = code.do(f"mul i32 {thread}, {_frame(self.kernel)}")
        frame = code.do(f"getelementptr i8, ptr %frames, i32 {offset}")
        code.line(f"call void @{name}({self.arguments(task, unit, thread, turn, frame)})")

    def wait(self) -> None:
        """All threads are done with a phase before the first begins the next."""

    def meet(self) -> None:
        """One block is done with a level before the next begins it: all are, when the next level begins."""

    def finish(self) -> str:
        head = "define void @NAME(ptr %addresses, ptr %local, ptr %frames, i32 %blocks, i32 %times, i32 %backwards)"
        entry = [
            "  %is.backwards = icmp ne i32 %backwards, 0",
            f"  %shared = getelementptr i8, ptr %local, i64 {self.kernel.local}",
        ]
        for number in range(len(self.kernel.buffers)):
            entry.append(f"  %b{number}.at = getelementptr i64, ptr %addresses, i64 {number}")
            entry.append(f"  %b{number} = load i64, ptr %b{number}.at")
        return self.text(head, entry)


def _frame(kernel: Kernel) -> int:
    return max(16, -(-kernel.frame // 16) * 16)


class Emulated:
    """Kernels, compiled for this CPU. `optimise` takes a second and makes them several times as fast."""

    def __init__(self, kernels: list[Kernel], optimise: bool = False) -> None:
        assemble_if_asked(kernels)
        text = re.sub(r" addrspace\(\d\)", "", module_of(kernels, Cpu))
        names = list(dict.fromkeys(kernel.name for kernel in kernels))
        self._functions = {n: _FUNCTION(a) for n, a in compile_module(text, names, optimise).items()}

    def launch(
        self, kernel: Kernel, addresses: np.ndarray, blocks: int, times: int = 1, backwards: bool = False
    ) -> None:
        shared = np.full(kernel.local + kernel.shared + 64, 0xFF, np.uint8)
        frames = np.full(THREADS * _frame(kernel) + 64, 0xFF, np.uint8)
        self._functions[kernel.name](
            addresses.ctypes.data, _aligned(shared), _aligned(frames), blocks, times, int(backwards)
        )


def _aligned(memory: np.ndarray) -> int:
    return -(-memory.ctypes.data // 64) * 64
