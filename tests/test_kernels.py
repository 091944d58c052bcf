"""Kernels for a GPU: the same phases run here, thread by thread, and what ptxas says to them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from assembler import CAPABILITIES, assemble, ptxas
from emulator import Cpu
from sweeps import covering
from traced import KERNELS, eagerly, emulated, planned, results_of, traced

import dnn
from dnn import functional
from dnn.backends import get_backend
from dnn.backends.codegen import gpu, tasks, tiles
from dnn.backends.codegen.gpu import KernelPlan
from dnn.backends.codegen.kernels import Kernel, Ptx, TooLarge
from dnn.backends.codegen.tasks import LONG_ROW, THREADS, Repeat
from dnn.backends.plan import Plan
from dnn.backends.plan.levels import levels_of
from dnn.backends.plan.order import fused_in_order
from dnn.data import prepare
from dnn.state import TrainingState
from dnn.step import GATHERED, TRAIN, Order, Step

RNG = np.random.default_rng(11)


def close(results: list[np.ndarray], expected: list[np.ndarray], rtol: float) -> None:
    for result, of_numpy in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, np.reshape(of_numpy, result.shape), rtol=rtol, atol=rtol)


@pytest.fixture(params=KERNELS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


# ------------------------------------------------------------------------------------------ every shape


def of_rows(xp, Z):
    totals = xp.sum(Z, axis=1, keepdims=True)
    return functional.softmax(xp, Z), totals, xp.argmax(Z, axis=1, keepdims=True), Z - xp.max(Z, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256, 257, LONG_ROW - 1, LONG_ROW, LONG_ROW + 1, 1100])
def test_rows_shorter_and_longer_than_a_team_and_a_block(n, way):
    for m in (1, 17):
        Z = RNG.standard_normal((m, n))
        close(traced(way, of_rows, Z), eagerly(of_rows, Z), 1e-12)


def of_columns(xp, Z):
    return xp.sum(Z, axis=0), xp.max(Z, axis=0), xp.sum(Z * Z), xp.min(Z), xp.max(xp.isfinite(Z))


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (700, 1), (90_000, 3), (9000, 70), (40, 3000), (0, 4)])
def test_reductions_of_few_and_of_many_rows(shape, way):
    Z = RNG.standard_normal(shape)
    of_shape = of_columns if shape[0] else lambda xp, Z: (xp.sum(Z, axis=0), xp.sum(Z))
    close(traced(way, of_shape, Z), eagerly(of_shape, Z), 1e-11)


def of_products(xp, A, B, b):
    Z = xp.dot(A, B.T) + b
    return Z, functional.tanh(xp, Z), xp.dot(Z.T, A), xp.dot(Z, B)


SIZES = [(1, 1, 1), (5, 3, 100), (32, 64, 20), (64, 64, 16), (65, 130, 17), (128, 256, 33), (200, 260, 130)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m, n, k", SIZES)
def test_products_of_every_tile_with_what_follows_them(m, n, k, dtype, way):
    A, B, b = (RNG.standard_normal(shape).astype(dtype) for shape in ((m, k), (n, k), (n,)))
    close(traced(way, of_products, A, B, b), eagerly(of_products, A, B, b), 1e-3 if dtype == np.float32 else 1e-11)


def test_the_sizes_above_take_every_tile():
    assert {tiles.tile_for(m, n, blocks) for m, n, _ in SIZES for blocks in (1, 3)} == set(tiles.TILES)


def test_products_of_no_terms_are_zero(way):
    A, B = np.ones((3, 0)), np.ones((0, 4))
    close(traced(way, lambda xp, A, B: xp.dot(A, B) + 1, A, B), [np.ones((3, 4))], 0)


# ---------------------------------------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_numbers_of_16_bits_are_rounded_as_their_dtype_rounds(dtype, way):
    bits = np.arange(2**16, dtype=np.uint16).view(dtype)
    wide = bits.astype(np.float32)
    with np.errstate(all="ignore"):
        between = np.concatenate([wide, np.nextafter(wide, np.float32(np.inf)), (wide[1:] + wide[:-1]) / 2])
        expected = between.astype(dtype)
    (down,) = traced(way, lambda xp, a: a.astype(dtype), between)
    same = (down.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(down) & np.isnan(expected))
    assert same.all()
    (up,) = traced(way, lambda xp, a: a.astype(np.float32), bits)
    np.testing.assert_array_equal(up, wide)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "sigmoid"])
def test_activations_of_16_bits_are_those_of_float32_rounded_once(name, dtype, way):
    function = getattr(functional, name)
    Z = RNG.standard_normal((40, 24)).astype(dtype)
    (result,) = traced(way, function, Z)
    (of_float32,) = eagerly(function, Z.astype(np.float32))
    assert result.dtype == dtype
    spacing = float(np.finfo(np.float16).eps) if dtype == np.float16 else 2.0**-7
    close([result.astype(np.float32)], [of_float32], 1.01 * spacing)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_products_of_16_bits_are_summed_in_float32(dtype):
    A, B = (RNG.standard_normal(shape).astype(dtype) for shape in ((70, 300), (300, 40)))
    exact = A.astype(np.float64) @ B.astype(np.float64)
    for form in ("block", "grid"):
        (result,) = traced(f"kernels, {form}", lambda xp, A, B: xp.dot(A, B), A, B)
        eps = 2.0**-11 if dtype == np.float16 else 2.0**-8
        np.testing.assert_allclose(result.astype(np.float64), exact, rtol=1.01 * eps, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_pieces_of_sums_of_16_bits_are_not_rounded_on_the_way(dtype, way):
    Z = np.tile(np.array([[7], [-7]], dtype), (40_000, 1))
    columns, whole = traced(way, lambda xp, Z: (xp.sum(Z, axis=0), xp.sum(Z * 100)), Z)
    assert not columns.astype(np.float32).any() and not whole.astype(np.float32).any()


# -------------------------------------------------------------------------------------------- too large


def test_a_loop_with_more_reductions_than_shared_memory_holds_is_refused():
    def sums(xp, Z):
        return tuple(xp.sum(Z * n) for n in range(60))

    with pytest.raises(TooLarge, match="bytes of shared memory"):
        traced(KERNELS[1], sums, np.ones((3, 4)))


def test_temporaries_leave_a_block_the_shared_memory_that_its_tasks_need():
    def sums(xp, Z, W):
        A = xp.dot(Z, W)
        return (xp.dot(A, W), *(xp.sum(A * n) for n in range(18)))

    arrays = np.ones((30, 40)), np.ones((40, 40))
    close(traced(KERNELS[0], sums, *arrays), eagerly(sums, *arrays), 1e-12)


def test_an_array_that_no_index_can_count_is_refused_before_any_memory_is_taken():
    plan = Plan()
    X = plan.buffer("X", (3_000_000, 784), np.float32)
    plan.call(lambda xp, X: X * 2, X, into=plan.buffer("out", X.shape, X.dtype))
    for zeros in (None, lambda *given: pytest.fail("took memory")):
        with pytest.raises(TooLarge, match="2352000000 elements"):
            KernelPlan(plan, 132, zeros)


def test_long_sums_into_few_numbers_are_the_librarys():
    plan = step_plan([12288, 20, 7, 5, 2], 64, dnn.SGD())
    assert kernel_plan(plan).form == "launches"


# ---------------------------------------------------------------------- any number of blocks, any order


def results(plan: Plan, **settings: Any) -> list[np.ndarray]:
    emulated(plan, "grid", **settings)()
    return results_of(plan, get_backend("numpy"))


def everything(xp, Z, W, b):
    A = functional.relu(xp, xp.dot(Z, W) + b)
    P = functional.softmax(xp, A)
    return P, xp.sum(P, axis=0), xp.sum(A * P), xp.dot(A.T, P), xp.argmax(A, axis=1, keepdims=True)


def test_results_do_not_depend_on_the_number_of_blocks_nor_on_who_comes_first():
    arrays = [RNG.standard_normal(shape) for shape in ((260, 20), (20, 600), (600,))]
    first = results(planned(everything, *arrays), blocks=1)
    close(first, eagerly(everything, *arrays), 1e-10)
    for blocks, backwards in ((1, True), (2, False), (7, True), (132, False), (132, True)):
        again = results(planned(everything, *arrays), blocks=blocks, backwards=backwards)
        # the tile, and so the order of a product's sums, goes with the number of blocks
        close(again, first, 1e-12)
    one_way, other_way = (results(planned(everything, *arrays), blocks=7, backwards=b) for b in (False, True))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one_way, other_way, strict=True))


def test_memory_that_begins_anywhere_is_read():
    raw = RNG.integers(0, 256, 4096 * 3 + 1, np.uint8)
    Z = raw[1:].reshape(-1, 12)
    assert Z.ctypes.data % 16
    close(traced(KERNELS[0], lambda xp, Z: Z * np.float32(2), Z), [Z * np.float32(2)], 0)
    plan = planned(lambda xp, Z: Z * np.float32(2), Z)
    assert not re.search(r"load i8.*align [24]", emitted(plan))
    aligned = planned(lambda xp, Z: Z * np.float32(2), Z.copy())
    if not aligned.buffers[0].array.ctypes.data % 16:
        assert re.search(r"load i8.*align 4", emitted(aligned))


def emitted(plan: Plan) -> str:
    made = emulated(plan, "grid").plan  # type: ignore[attr-defined]
    return "\n".join(text for kernel in made.kernels for text in kernel.phases.values())


# --------------------------------------------------------------------------------------- planted faults


ARRAYS = [RNG.standard_normal(shape) for shape in ((70, 33), (33, 40), (40,))]


def is_wrong(way: str) -> bool:
    found = traced(way, everything, *ARRAYS)
    return any(
        not np.allclose(result, np.reshape(of_numpy, result.shape))
        for result, of_numpy in zip(found, eagerly(everything, *ARRAYS), strict=True)
    )


def test_nothing_is_wrong_where_nothing_was_planted(way):
    assert not is_wrong(way)


def test_a_barrier_of_a_block_left_out_would_be_seen(monkeypatch, way):
    def without_barriers(self, target, task, unit):
        code = target.code
        with code.counted("0", str(THREADS), 1) as thread:
            for item in task.body:
                turns = item.turns if isinstance(item, Repeat) else 1
                with code.counted("0", str(turns), 1) as turn:
                    for phase in item.phases if isinstance(item, Repeat) else [item]:
                        target.one_thread(self.named(task, phase), task, unit, thread, turn)

    with_barriers = Kernel.unit
    monkeypatch.setattr(
        Kernel, "unit", lambda self, target, *given: (
            without_barriers if isinstance(target, Cpu) else with_barriers)(self, target, *given)
    )  # fmt: skip
    assert is_wrong(way)


def test_the_ptx_has_a_barrier_between_any_two_phases_of_a_unit_and_one_of_the_grid_between_levels():
    for form in ("block", "grid", "launches"):
        for kernel in kernel_plan(step_plan([784, 256, 128, 10], 128, dnn.Adam()), form).kernels:
            driver = kernel.driver(Ptx(kernel))
            calls = re.findall(r"call void @(phase|llvm.nvvm.barrier|grid_barrier)", driver)
            assert calls.count("phase") >= len(kernel.tasks)
            for task in kernel.tasks:
                phases = [item for item in task.body if not isinstance(item, Repeat)]
                for phase in phases if len(task.body) > 1 else []:
                    after = driver[driver.index(kernel.named(task, phase)) :].splitlines()[1]
                    assert "barrier" in after
            assert calls.count("grid_barrier") == (len(kernel.levels) if kernel.meets else 0)


def test_a_barrier_of_the_grid_left_out_would_be_seen(monkeypatch):
    made = gpu.Kernel
    monkeypatch.setattr(
        gpu, "Kernel", lambda levels, local: made([[task for level in levels for task in level]], local)
    )
    assert is_wrong(KERNELS[1])


def test_a_phase_left_out_would_be_seen(monkeypatch, way):
    finish = tasks.Code.finish

    def once(self, into=None):
        if into is None and len(self.task.body) == 1 and self.task.shared:
            self.lines = []
        finish(self, into)

    monkeypatch.setattr(tasks.Code, "finish", once)
    assert is_wrong(way)


def test_a_wrong_stride_would_be_seen(monkeypatch, way):
    steps_of = tasks.steps_of
    monkeypatch.setattr(tasks, "steps_of", lambda view: (steps_of(view)[1], steps_of(view)[0]))
    assert is_wrong(way)


def test_a_wrong_lane_of_a_tile_would_be_seen(monkeypatch):
    operands = tiles._Product._operands
    monkeypatch.setattr(
        tiles._Product, "_operands", lambda self, *given: [operands(self, *given)[0]] * self.tile.across
    )
    assert is_wrong(KERNELS[0])
    assert is_wrong(KERNELS[1])


# ---------------------------------------------------------------------------------------------- a step


NETWORKS = [
    ([20, 64, 32, 2], 32, "block"),
    ([784, 256, 128, 10], 128, "grid"),
    ([784, 1024, 1024, 10], 512, "launches"),
]
"""With the batch, and how a step of it runs."""


@covering(
    "network, precision, optimizer",
    NETWORKS,
    [None, "bfloat16", "float16"],
    [dnn.SGD(), dnn.Momentum(), dnn.Adam()],
    times=2,
    ids=str,
)
def test_a_small_step_is_one_kernel(network, precision, optimizer):
    sizes, m, form = network
    made = kernel_plan(step_plan(sizes, m, optimizer, precision))
    assert made.form == form
    if form != "launches":
        assert len(made.operations) == 1
    else:
        # a product a layer forward, dW, and dA but for the first layer's; the batch, two activations, the loss, two
        # activations backward, the last sums, the update; in float16, which gradients are finite, in two
        assert len(made.operations) == 3 + 3 + 2 + 8 + (2 if precision == "float16" else 0)


def bytes_of(view: Any) -> int:
    return view.size * view.buffer.dtype.itemsize


@pytest.mark.parametrize("optimizer, arrays", [(dnn.SGD(), 1), (dnn.Adam(), 3)], ids=["sgd", "adam"])
def test_a_wide_step_in_bfloat16_moves_little_more_than_its_products_and_its_update(optimizer, arrays):
    """Against products that read both factors and write the result, once each; loads, loss and update, likewise."""
    n = 1024
    plan = step_plan([n] * 4, n, optimizer, "bfloat16")
    levels = levels_of(fused_in_order(plan), own_products=False)
    moved = sum(bytes_of(view) for job in levels.jobs for view in (*dict.fromkeys(job.reads), *job.writes))
    products = 8 * 3 * n * n * 2
    update = 3 * n * n * (2 + 2 * 4 * arrays + 2)  # gradients, state and theta in and out, weights
    batch_and_loss = n * n * (1 + 2) + n * n * (2 + 2)
    assert moved < 1.3 * (products + update + batch_and_loss)


def step_plan(sizes: list[int], m: int, optimizer: dnn.Optimizer, precision: str | None = None) -> Plan:
    """Of a training step of m examples in bytes."""
    network = dnn.Network(sizes, output="softmax", seed=1, backend="standin")
    backend = network.backend
    X, Y = RNG.integers(0, 256, (2 * m, sizes[0]), np.uint8), RNG.integers(0, sizes[-1], 2 * m)
    examples = prepare(network, X, Y, fitting=True).on(backend)
    state = TrainingState(optimizer, network.parameters)
    state.set_precision(precision, network.parameters)
    order = Order(backend.asarray(np.arange(2 * m)), backend.zeros(1, np.int64))
    return Step(network, examples, m, TRAIN, GATHERED, optimizer, state.arrays, precision, order).plan


def kernel_plan(plan: Plan, form: str | None = None) -> KernelPlan:
    """As on a device of 132 multiprocessors."""
    from traced import OnHost

    zeros = get_backend("numpy").zeros
    for buffer in plan.buffers:
        if buffer.array is not None and not isinstance(buffer.array, OnHost):
            buffer.array = OnHost(getattr(buffer.array, "host", buffer.array))
    return KernelPlan(plan, 132, lambda *given: OnHost(zeros(*given)), form)


# ---------------------------------------------------------------------------------------------- ptxas


needs_ptxas = pytest.mark.skipif(ptxas() is None, reason="ptxas is not here: the extra kernelcheck has it")


@needs_ptxas
@covering("form, capability", ["block", "grid", "launches"], CAPABILITIES)
def test_ptxas_takes_the_kernels_of_a_step_without_spills(form, capability):
    plan = step_plan([784, 256, 128, 10], 128, dnn.Adam())
    assemble(kernel_plan(plan, form).kernels, capability)


@needs_ptxas
@pytest.mark.parametrize(
    "capability", [90, *(pytest.param(c, marks=pytest.mark.slow) for c in CAPABILITIES if c != 90)]
)
def test_ptxas_takes_every_function_and_dtype_without_spills(capability):
    made: list[Kernel] = []
    for dtype in (np.float32, np.float64, np.float16, bfloat16):
        Z = RNG.standard_normal((70, 33)).astype(dtype)
        for function in (of_rows, of_columns, *(getattr(functional, name) for name in ("gelu", "tanh", "sigmoid"))):
            for form in ("block", "grid", "launches"):
                made += kernel_plan(planned(function, Z), form).kernels
    assemble(made, capability)
