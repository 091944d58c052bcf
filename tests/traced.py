"""Functions of `xp`, run three ways: eagerly, as a plan operation by operation, and as a plan compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dnn.backends import Backend, get_backend
from dnn.backends.plan import Plan
from dnn.backends.plan.stepwise import Stepwise

WAYS = ["operation by operation", "compiled, 1 thread", "compiled, 3 threads"]


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
