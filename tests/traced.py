"""Functions of `xp`, run eagerly, as a plan operation by operation, as one compiled for the CPU, and as GPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from dnn.backends import Backend, get_backend
from dnn.backends.plan import Plan
from dnn.backends.plan.stepwise import Stepwise

WAYS = ["operation by operation", "compiled, 1 thread", "compiled, 3 threads"]
KERNELS = ["kernels, block", "kernels, grid", "kernels, launches"]
"""Kernels of a GPU, run on the CPU: one block for all, several blocks that meet, a launch a level."""
BLOCKS = 3


def listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple) else [results]


def eagerly(function: Callable[..., Any], *arrays: Any, **settings: Any) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(result) for result in listed(function(np, *arrays, **settings))]


def planned(function: Callable[..., Any], *arrays: Any, backend: Backend | None = None, **settings: Any) -> Plan:
    """A plan that stores what the function returns in its last buffers; Python numbers are weak scalars of it."""
    plan, backend = Plan(), backend or get_backend("numpy")
    given = []
    for number, array in enumerate(arrays):
        weak = isinstance(array, float)
        on_device = backend.asarray(np.array([array]) if weak else array)
        given.append(plan.array(f"in{number}", on_device, weak=weak))
    for number, value in enumerate(listed(plan.call(function, *given, **settings))):
        plan.store(plan.buffer(f"out{number}", value.shape, value.dtype), value)
    return plan


def results_of(plan: Plan, backend: Backend) -> list[np.ndarray]:
    return [backend.to_numpy(buffer.array) for buffer in plan.buffers if buffer.name.startswith("out")]


def runner(plan: Plan, way: str) -> Callable[[], None]:
    """What runs the plan on NumPy in one of the WAYS."""
    backend = get_backend("numpy")
    if way == WAYS[0]:
        return Stepwise(plan, backend)
    if way in KERNELS:
        return emulated(plan, way.split()[1])
    return compiled(plan, int(way.split()[1]))


def compiled(plan: Plan, threads: int) -> Callable[[], None]:
    """The plan on so many threads, however many cores there are."""
    from dnn.backends.codegen.cpu import CompiledPlan
    from dnn.backends.codegen.runtime import Pool

    made = CompiledPlan(plan, threads, get_backend("numpy").zeros)
    pool = Pool(threads, cores=threads)
    run = pool.bind(made.program)

    def once() -> None:
        try:
            run()
        finally:
            pool.stop()

    once.plan = made  # type: ignore[attr-defined]
    return once


class OnHost:
    """Memory of the host that kernels are given: `data.ptr` is its address."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self.data = SimpleNamespace(ptr=host.ctypes.data)
        self.shape, self.dtype, self.flags = host.shape, host.dtype, host.flags

    def __getitem__(self, key: Any) -> OnHost:
        return OnHost(self.host[key])

    def view(self, dtype: Any) -> OnHost:
        return OnHost(self.host.view(dtype))

    def reshape(self, *shape: Any) -> OnHost:
        return OnHost(self.host.reshape(*shape))

    T = property(lambda self: OnHost(self.host.T))


def emulated(plan: Plan, form: str, blocks: int = BLOCKS, backwards: bool = False) -> Callable[[], None]:
    """The plan as kernels of a GPU, on arrays of NumPy; the library's products are NumPy's."""
    from emulator import Emulated

    from dnn.backends.codegen.gpu import KernelPlan, Launch

    zeros = get_backend("numpy").zeros
    given = [buffer for buffer in plan.buffers if buffer.array is not None]
    for buffer in given:
        buffer.array = OnHost(buffer.array)
    made = KernelPlan(plan, blocks, lambda *given: OnHost(zeros(*given)), form)
    for buffer in plan.buffers:
        if buffer.array is not None:
            buffer.array = buffer.array.host
    code = Emulated(made.kernels)
    calls: list[Callable[[], Any]] = []
    for operation in made.operations:
        if isinstance(operation, Launch):
            kernel = operation.kernel
            addresses = np.array([made.arrays[buffer].data.ptr for buffer in kernel.buffers], np.int64)
            calls.append(partial(code.launch, kernel, addresses, operation.blocks, backwards=backwards))
        else:
            a, b, out = (made.part(view).host for view in (operation.A, operation.B, operation.C))
            calls.append(partial(_product, a, b, out))

    def once() -> None:
        for call in calls:
            call()

    once.plan = made  # type: ignore[attr-defined]
    return once


def _product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.dot(a, b)


def traced(way: str, function: Callable[..., Any], *arrays: Any, **settings: Any) -> list[np.ndarray]:
    plan = planned(function, *arrays, **settings)
    run = runner(plan, way)
    with np.errstate(all="ignore"):
        run()
    return results_of(plan, get_backend("numpy"))


def on_backend(backend: Backend, function: Callable[..., Any], *arrays: Any, **settings: Any) -> list[np.ndarray]:
    """As a plan, the way that backend runs it in a training."""
    plan = planned(function, *arrays, backend=backend, **settings)
    with np.errstate(all="ignore"):
        backend.compile(plan)()
    return results_of(plan, backend)
