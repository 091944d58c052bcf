"""Plans as kernels on a CUDA device: PTX loaded by the driver, launches, and the library's products between them."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dnn.backends.base import Array, log_once
from dnn.backends.codegen.gpu import KernelPlan, Launch
from dnn.backends.codegen.kernels import Kernel, TooLarge, architecture, ptx_of
from dnn.backends.codegen.tasks import THREADS
from dnn.backends.cublas import Products
from dnn.backends.plan.graph import Plan

Bound = Callable[..., object]


class KernelLoader:
    """Kernels of this process on the current device, each loaded once. `blocks`: how many run at the same time."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        device = cupy.cuda.Device()
        self._arch = architecture(int(device.compute_capability))
        self.blocks = int(device.attributes["MultiProcessorCount"])
        self._functions: dict[str, Any] = {}

    def try_out(self, zeros: Callable[..., Array]) -> None:
        """Make, load and run a kernel whose blocks meet; whatever is amiss is an error."""
        plan, n = Plan(), 16 * THREADS
        ones = [zeros(n, "float32") for _ in range(2)]
        for array in ones:
            array.fill(1)
        a, b = (plan.array(name, array) for name, array in zip("ab", ones, strict=True))
        plan.call(lambda xp, a, b: (a + xp.sum(b), b + xp.sum(a)), a, b, into=(b, a))
        made = KernelPlan(plan, self.blocks, zeros, "grid")
        self.load(made.kernels)
        (launch,) = made.operations
        assert isinstance(launch, Launch) and made.counter is not None
        arrays = [made.arrays[buffer] for buffer in launch.kernel.buffers]
        self.bind(launch.kernel, arrays, launch.blocks, made.counter)()
        if not bool((ones[0] == n + 1).all()):
            raise RuntimeError("a kernel gives wrong results on this device")

    def load(self, kernels: Sequence[Kernel]) -> None:
        new = {kernel.name: kernel for kernel in kernels if kernel.name not in self._functions}
        if new:
            module = self._module(list(new.values()))
            self._functions |= {name: module.get_function(name) for name in new}

    def _module(self, kernels: list[Kernel]) -> Any:
        module = self._cupy.cuda.function.Module()
        module.load(ptx_of(kernels, self._arch).encode())
        return module

    def bind(self, kernel: Kernel, arrays: Sequence[Array], blocks: int, counter: Array | None) -> Bound:
        """What launches a kernel on these arrays, on the current stream; blocks that meet do so at `counter`."""
        driver, function = self._cupy.cuda.driver, self._functions[kernel.name]
        numbers = [ctypes.c_int64(array.data.ptr) for array in arrays]
        numbers.append(ctypes.c_int64(counter.data.ptr if counter is not None else 0))
        times = ctypes.c_int32(1)
        places = (ctypes.c_void_p * (len(numbers) + 1))(*(ctypes.addressof(n) for n in (*numbers, times)))
        grid = blocks, 1, 1, THREADS, 1, 1, 0
        # only the driver can promise that all blocks run at the same time
        together = kernel.meets and blocks > 1
        current = self._cupy.cuda.get_current_stream

        def launch(count: int = 1, _kept: Any = (numbers, arrays, counter)) -> None:
            times.value = count
            if together:
                driver.launchCooperativeKernel(function.ptr, *grid, current().ptr, ctypes.addressof(places))
            else:
                driver.launchKernel(function.ptr, *grid, current().ptr, ctypes.addressof(places), 0)

        return launch


class KernelStep:
    """The launches and products of a plan, in order. `counts`: how many of each a run has."""

    def __init__(self, plan: Plan, loader: Any, products: Products, zeros: Callable[..., Array]) -> None:
        made = KernelPlan(plan, loader.blocks, zeros)
        loader.load(made.kernels)
        self.form = made.form
        self.counts: Counter[str] = Counter()
        self._calls: list[Bound] = []
        for operation in made.operations:
            if isinstance(operation, Launch):
                kernel = operation.kernel
                arrays = [made.arrays[buffer] for buffer in kernel.buffers]
                self._calls.append(loader.bind(kernel, arrays, operation.blocks, made.counter))
                self.counts["launches"] += 1
            else:
                a, b, out = (made.part(view) for view in (operation.A, operation.B, operation.C))
                self._calls.append(products.bind(a, b, out, tf32=plan.precision == "tf32", strided=True))
                self.counts["products"] += 1
        self._kept = made.arrays
        self.is_one_kernel = len(self._calls) == len(made.kernels) == 1
        # blocks that do not meet could be at different runs
        self._repeats = self.is_one_kernel and made.kernels[0].meets

    def __call__(self, times: int = 1) -> None:
        if self._repeats:
            self._calls[0](times)
            return
        for _ in range(times):
            for call in self._calls:
                call()


def kernel_step(plan: Plan, loader: KernelLoader, products: Products, zeros: Callable[..., Array]) -> KernelStep | None:
    """The plan as kernels; None, and the reason said once, where it is too large for them."""
    try:
        return KernelStep(plan, loader, products, zeros)
    except TooLarge as error:
        log_once(f"a step runs operation by operation: {error}")
        return None


def kernel_bytes(plan: Plan, blocks: int) -> tuple[int, bool] | None:
    """The memory that `kernel_step` takes beyond what the plan was given, and whether the library multiplies for it."""
    try:
        made = KernelPlan(plan, blocks, None)
    except TooLarge:
        return None
    return made.nbytes, made.form == "launches" and any(node.op == "dot" for node in plan.nodes)
