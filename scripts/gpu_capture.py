"""Whether steps are captured on the GPU, and what is asked of the backend for it beyond its contract.

The backend's attributes of that kind are named in steps_so_far, nodes and one_by_one alone.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from tables import Figures

import dnn
from dnn.backends import Backend, get_backend
from dnn.optimizers import Optimizer
from dnn.step import Step

NETWORKS = [([20, 64, 32, 3], 32), ([784, 256, 128, 10], 128), ([512, 1024, 1024, 10], 128)]
"""Layer sizes and batch size: a step that one block can run, one that one kernel can, and a larger one."""


class Steps(NamedTuple):
    """Of all steps so far: graphs launched; and steps made of derived kernels, of a single one, and of operations."""

    graphs: int
    kernels: int
    single: int
    eager: int


def steps_so_far(backend: Backend) -> Steps:
    graphs, made = (getattr(backend, name, None) for name in ("launches", "made"))
    if graphs is None or made is None:
        missing = "launches" if graphs is None else "made"
        raise NotCaptured(f"the backend {backend.name} has no {missing!r}, so nothing shows that steps are captured")
    single = made["block"] + made["grid"]
    return Steps(int(graphs), single + made["launches"], single, made["operation by operation"])


def nodes(step: Step) -> Figures:
    """What a compiled step consists of: {"launches": kernels of ours, "products": cuBLAS's}."""
    run: Any = step._run
    return dict(getattr(run, "_step", run).counts)  # a graph's, or of the one kernel


def one_by_one() -> AbstractContextManager[object]:
    """Inside, the same kernels are launched without a graph: a captured step must give the same bits."""
    from dnn.backends.cupy_backend import _Graph

    return mock.patch.object(_Graph, "WARM_UP", 10**9)


class NotCaptured(Exception):
    """Steps run without a graph or without derived kernels: what was measured is not what is meant."""


@contextmanager
def capturing(backend: str, kernels: bool = True, graphs: bool = True) -> Iterator[None]:
    """What runs inside must be steps of derived kernels, captured if there are several; or must not be.

    NumPy captures nothing and is asked nothing.
    """
    if backend == "numpy":
        yield
        return
    its = get_backend(backend)
    before = steps_so_far(its)
    yield
    new = Steps(*(b - a for a, b in zip(before, steps_so_far(its), strict=True)))
    if kernels and (new.eager or not new.kernels):
        raise NotCaptured("no derived kernel ran: steps ran operation by operation")
    if graphs and new.kernels > new.single and not new.graphs:
        raise NotCaptured("no step was captured: its kernels were launched one by one")
    if (new.kernels and not kernels) or (new.graphs and not graphs):
        raise NotCaptured("a captured step ran where it should be compared with an eager one")


def check_capture(backend: str) -> None:
    """Fits must be captured: without that no part is worth the time on the card. The error says why they are not."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("dnn.backends")
    log.addHandler(handler)
    try:
        for network in NETWORKS[:1] if backend == "numpy" else (NETWORKS[0], NETWORKS[-1]):
            with capturing(backend):
                fitted(backend, *network)
    except NotCaptured as error:
        raise NotCaptured("; ".join([str(error), *said])) from None
    finally:
        log.removeHandler(handler)


def version_of_cublas() -> str:
    """Of the cuBLAS that the backend will load; OSError or RuntimeError where it does not load."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    numbers = []
    for i in range(3):
        number = ctypes.c_int()
        if status := library.cublasGetProperty(i, ctypes.byref(number)):
            raise RuntimeError(f"cublasGetProperty gives {status}")
        numbers.append(str(number.value))
    return ".".join(numbers)


def lost(backend: str) -> bool:
    """Whether this process can do nothing more with the device, as after an access to memory that is not there."""
    its = get_backend(backend)
    try:
        its.to_numpy(its.zeros(1, np.float32))
    except Exception:
        return True
    return False


def precisions_of(backend: str) -> list[str]:
    return ["float64", "float32", *get_backend(backend).precisions]


def fitted(
    backend: str,
    sizes: list[int],
    batch_size: int,
    precision: str | None = None,
    optimizer: Callable[[float], Optimizer] = dnn.Momentum,
) -> np.ndarray:
    """The weights after two fits with different learning rates; every epoch ends with a smaller batch."""
    generator = np.random.default_rng(0)
    m = 2 * batch_size - 6
    X, Y = generator.standard_normal((m, sizes[0])), generator.integers(0, sizes[-1], m)
    dtype = "float64" if precision == "float64" else "float32"
    network = dnn.Network(sizes, output="softmax", seed=1, dtype=dtype, backend=backend)
    for epochs, learning_rate in ((10, 0.01), (15, 0.001)):
        settings: Figures = {"optimizer": optimizer(learning_rate), "precision": precision, "verbose": False}
        network.fit(X, Y, epochs=epochs, batch_size=batch_size, **settings)
    return weights_of(network)


def weights_of(network: dnn.Network) -> np.ndarray:
    return network.backend.to_numpy(network.parameters.flat).copy()
