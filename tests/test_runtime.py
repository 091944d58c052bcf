"""Programs on several threads, the products in them, and how many threads there may be."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep

import numpy as np
import pytest

llvmlite = pytest.importorskip("llvmlite")

from dnn.backends.codegen import runtime  # noqa: E402
from dnn.backends.codegen import threads as thread_counts  # noqa: E402
from dnn.backends.codegen.blas import Mode, gemm_address, product_address, product_arguments  # noqa: E402
from dnn.backends.codegen.jit import compile_module, data_layout, target_triple  # noqa: E402
from dnn.backends.codegen.runtime import Balance, Operation, Pool, Program, Section  # noqa: E402
from dnn.backends.codegen.threads import available_cores, number_of_threads  # noqa: E402

KERNELS = """
; arguments: an array of i64. Adds 1 to each of its elements, atomically: whoever does an item twice is found out
define void @count(ptr %arguments, ptr %scratch, i64 %first, i64 %last) {
entry:
  %array = load ptr, ptr %arguments
  br label %next
next:
  %i = phi i64 [ %first, %entry ], [ %after, %next ]
  %place = getelementptr i64, ptr %array, i64 %i
  %before = atomicrmw add ptr %place, i64 1 seq_cst
  %after = add i64 %i, 1
  %more = icmp slt i64 %after, %last
  br i1 %more, label %next, label %exit
exit:
  ret void
}

; arguments: out, in, n. out[i] = in[n - 1 - i] + 1: what it reads, another thread has written in the phase before
define void @mirror(ptr %arguments, ptr %scratch, i64 %first, i64 %last) {
entry:
  %out = load ptr, ptr %arguments
  %in_at = getelementptr ptr, ptr %arguments, i64 1
  %in = load ptr, ptr %in_at
  %n_at = getelementptr i64, ptr %arguments, i64 2
  %n = load i64, ptr %n_at
  br label %next
next:
  %i = phi i64 [ %first, %entry ], [ %after, %next ]
  %less = sub i64 %n, %i
  %from = sub i64 %less, 1
  %source = getelementptr i64, ptr %in, i64 %from
  %value = load i64, ptr %source
  %sum = add i64 %value, 1
  %target = getelementptr i64, ptr %out, i64 %i
  store i64 %sum, ptr %target
  %after = add i64 %i, 1
  %more = icmp slt i64 %after, %last
  br i1 %more, label %next, label %exit
exit:
  ret void
}

; arguments: number, rounds. Fills scratch with a mark of its own again and again, and counts what is not as it left it
define void @mark(ptr %arguments, ptr %scratch, i64 %first, i64 %last) {
entry:
  %found = load ptr, ptr %arguments
  %words_at = getelementptr i64, ptr %arguments, i64 1
  %words = load i64, ptr %words_at
  %rounds_at = getelementptr i64, ptr %arguments, i64 2
  %rounds = load i64, ptr %rounds_at
  %address = ptrtoint ptr %scratch to i64
  %rest = and i64 %address, 63
  %crooked = call i64 @llvm.umin.i64(i64 %rest, i64 1)
  br label %round
round:
  %r = phi i64 [ 0, %entry ], [ %r_next, %round_over ]
  br label %write
write:
  %i = phi i64 [ 0, %round ], [ %i_next, %write ]
  %to = getelementptr i64, ptr %scratch, i64 %i
  store volatile i64 %first, ptr %to
  %i_next = add i64 %i, 1
  %more_i = icmp slt i64 %i_next, %words
  br i1 %more_i, label %write, label %read
read:
  %j = phi i64 [ 0, %write ], [ %j_next, %read ]
  %bad = phi i64 [ %crooked, %write ], [ %bad_next, %read ]
  %from = getelementptr i64, ptr %scratch, i64 %j
  %seen = load volatile i64, ptr %from
  %differs = icmp ne i64 %seen, %first
  %one = zext i1 %differs to i64
  %bad_next = add i64 %bad, %one
  %j_next = add i64 %j, 1
  %more_j = icmp slt i64 %j_next, %words
  br i1 %more_j, label %read, label %round_over
round_over:
  %all = atomicrmw add ptr %found, i64 %bad_next seq_cst
  %r_next = add i64 %r, 1
  %more_r = icmp slt i64 %r_next, %rounds
  br i1 %more_r, label %round, label %exit
exit:
  ret void
}
declare i64 @llvm.umin.i64(i64, i64)

; arguments: a counter, a number. Arrives, and waits until as many items as the number have: one thread alone never ends
define void @meet(ptr %arguments, ptr %scratch, i64 %first, i64 %last) {
entry:
  %counter = load ptr, ptr %arguments
  %number_at = getelementptr i64, ptr %arguments, i64 1
  %number = load i64, ptr %number_at
  %before = atomicrmw add ptr %counter, i64 1 seq_cst
  br label %look
look:
  %now = load atomic i64, ptr %counter seq_cst, align 8
  %all = icmp uge i64 %now, %number
  br i1 %all, label %exit, label %look
exit:
  ret void
}
"""


@pytest.fixture(scope="module")
def kernels() -> dict[str, int]:
    return compile_module(KERNELS, ["count", "mirror", "mark", "meet"], optimise=False)


@pytest.fixture
def pool_of() -> Iterator[Callable[[int], Pool]]:
    """Pools of as many threads as asked for, more than there are cores if need be."""
    pools: list[Pool] = []

    def make(threads: int) -> Pool:
        pools.append(Pool(threads, cores=threads))
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()


def bounds(n: int, chunks: int) -> list[int]:
    return [n * c // chunks for c in range(chunks + 1)]


def operation(address: int, *arguments: int | np.ndarray) -> Operation:
    numbers = [word if isinstance(word, int) else word.ctypes.data for word in arguments]
    return Operation(address, np.array(numbers, np.int64))


def asleep(pool: Pool) -> int:
    return sum(int(pool._word(runtime._THREAD + t * runtime._STRIDE + runtime._ASLEEP)[0]) for t in range(pool.threads))


@pytest.fixture
def all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run with fewer, be it to find out whether they pay."""
    monkeypatch.setattr(Balance, "WINDOW", 1 << 62)


def helpers(pool: Pool) -> int:
    return sum(helper.is_alive() for helper in pool._helpers)


# -------------------------------------------------------------------------------------------------------- jit


def test_compiled_text_is_compiled_once_and_names_may_come_again() -> None:
    text = "define i64 @f() {{ ret i64 {} }}"
    one, two = (compile_module(text.format(number), ["f"])["f"] for number in (1, 2))
    assert one != two
    assert compile_module(text.format(1), ["f"])["f"] == one


def test_text_that_is_no_ir_is_an_error_that_says_where() -> None:
    with pytest.raises(RuntimeError, match="<string>:1"):
        compile_module("define nothing", ["nothing"])


def test_target_is_known_without_being_asked_for_in_the_text() -> None:
    assert target_triple()
    assert "-" in data_layout()


# --------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_each_item_is_run_exactly_once(kernels: dict[str, int], pool_of: Callable[[int], Pool], threads: int) -> None:
    long, short, late = (np.zeros(n, np.int64) for n in (1000, 37, 5))
    many = Section([operation(kernels["count"], long)] * 2, bounds(1000, 64))
    few = Section([operation(kernels["count"], short)], [0, 10, 10, 37])  # a chunk is empty
    beyond = Section([operation(kernels["count"], late)], [2, 2, 4])
    run = pool_of(threads).bind(Program([[many, few], [], [Section([], [0, 4])], [beyond, few]], threads=threads))
    for _ in range(300):
        run()
    assert set(long) == {600}
    assert set(short) == {600}
    assert late.tolist() == [0, 0, 300, 300, 0]


def mirrored(kernels: dict[str, int], n: int, chunks: int, phases: int) -> tuple[list[list[Section]], np.ndarray]:
    """Phases that pass an array to and fro: each adds 1 to every element, if nobody reads too early."""
    assert phases % 2 == 0  # the last one writes what the first one reads
    arrays = np.zeros((2, n), np.int64)
    steps = [operation(kernels["mirror"], arrays[(p + 1) % 2], arrays[p % 2], n) for p in range(phases)]
    return [[Section([step], bounds(n, chunks))] for step in steps], arrays[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_phases_follow_each_other(kernels: dict[str, int], pool_of: Callable[[int], Pool], threads: int) -> None:
    phases, result = mirrored(kernels, n=512, chunks=7, phases=20)
    run = pool_of(threads).bind(Program(phases, threads=threads))
    for time in range(1, 200):
        run()
        np.testing.assert_array_equal(result, 20 * time)


def test_without_barriers_it_would_show(kernels: dict[str, int], pool_of: Callable[[int], Pool]) -> None:
    """The phases of the test above in one: the fault that it is there to find."""
    phases, result = mirrored(kernels, n=512, chunks=7, phases=20)
    pool = pool_of(2)
    run = pool.bind(Program([[section for phase in phases for section in phase]], threads=2))
    run()
    assert (result != 20).any()


@pytest.mark.usefixtures("all_threads")
def test_threads_work_at_the_same_time_and_wake_from_sleep(
    kernels: dict[str, int], pool_of: Callable[[int], Pool]
) -> None:
    pool, counter = pool_of(3), np.zeros(1, np.int64)
    run = pool.bind(Program([[Section([operation(kernels["meet"], counter, 3)], bounds(3, 3))]], threads=3))
    for _ in range(3):
        counter[0] = 0
        run()
        assert counter[0] == 3
        while asleep(pool) < 2:
            threading.Event().wait(0.001)


@pytest.mark.parametrize("threads", [1, 3])
def test_scratch_is_private_and_aligned(kernels: dict[str, int], pool_of: Callable[[int], Pool], threads: int) -> None:
    pool, found = pool_of(threads), np.zeros(1, np.int64)
    for words in (8, 4096, 100):  # grown, and kept
        section = Section([operation(kernels["mark"], found, words, 20)], bounds(30, 30))
        run = pool.bind(Program([[section]], scratch_bytes=8 * words, threads=threads))
        for _ in range(5):
            run()
    assert found[0] == 0


def test_program_of_one_thread_starts_no_helpers_and_another_does(
    kernels: dict[str, int], pool_of: Callable[[int], Pool]
) -> None:
    pool, counts = pool_of(3), np.zeros(8, np.int64)
    section = Section([operation(kernels["count"], counts)], bounds(8, 8))
    pool.run(Program([[section]], threads=1))
    assert helpers(pool) == 0
    pool.run(Program([[section]], threads=2))
    assert helpers(pool) == 2
    pool.stop()
    assert helpers(pool) == 0
    assert counts.tolist() == [2] * 8


def test_stop_ends_the_threads_and_a_later_run_starts_new_ones(
    kernels: dict[str, int], pool_of: Callable[[int], Pool]
) -> None:
    before = threading.active_count()
    pool, counts = pool_of(4), np.zeros(8, np.int64)
    run = pool.bind(Program([[Section([operation(kernels["count"], counts)], bounds(8, 8))]], threads=4))
    for time in range(1, 4):
        run()
        assert threading.active_count() == before + 3
        pool.stop()
        pool.stop()
        assert threading.active_count() == before
        assert counts.tolist() == [time] * 8


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("possible", [0, 1])
def test_threads_that_cannot_be_started_are_done_without(
    kernels: dict[str, int],
    pool_of: Callable[[int], Pool],
    monkeypatch: pytest.MonkeyPatch,
    possible: int,
    error: Exception,
) -> None:
    start, tried = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        tried.append(thread)
        if len(tried) > possible:
            raise error
        start(thread)

    pool = pool_of(4)
    phases, result = mirrored(kernels, n=300, chunks=9, phases=6)
    run = pool.bind(Program(phases, threads=4))
    monkeypatch.setattr(threading.Thread, "start", limited)
    for times in range(1, 50):
        run()
        np.testing.assert_array_equal(result, 6 * times)
    assert helpers(pool) == possible and len(tried) == possible + 1  # not tried again at every step
    monkeypatch.undo()
    pool.stop()
    run()
    assert helpers(pool) == 3


def test_start_that_an_exception_cuts_off_leaves_no_thread(
    kernels: dict[str, int], pool_of: Callable[[int], Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the exception of a signal handler does, before the thread is one for Python or just after."""
    start, before = threading.Thread.start, threading.active_count()
    counts = np.zeros(8, np.int64)

    def cut_off(thread: threading.Thread, after: bool) -> None:
        if after:
            start(thread)
        raise TimeoutError

    for after in (False, True):
        pool = pool_of(3)
        run = pool.bind(Program([[Section([operation(kernels["count"], counts)], bounds(8, 8))]], threads=3))
        monkeypatch.setattr(threading.Thread, "start", lambda thread, after=after: cut_off(thread, after))
        with pytest.raises(TimeoutError):
            run()
        monkeypatch.undo()
        pool.stop()
        assert threading.active_count() == before
        run()
    assert counts.tolist() == [2] * 8


def test_pool_that_is_forgotten_ends_its_threads(kernels: dict[str, int]) -> None:
    before = set(threading.enumerate())
    counts = np.zeros(8, np.int64)
    Pool(3, cores=3).run(Program([[Section([operation(kernels["count"], counts)], bounds(8, 8))]], threads=3))
    for helper in set(threading.enumerate()) - before:
        helper.join(timeout=5)
        assert not helper.is_alive()


def test_threads_beyond_the_cores_are_not_made() -> None:
    assert Pool(1000).threads <= available_cores()


@pytest.mark.usefixtures("all_threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_of_a_fork_has_the_pool_with_threads_of_its_own(
    kernels: dict[str, int], pool_of: Callable[[int], Pool]
) -> None:
    pool, counter = pool_of(3), np.zeros(1, np.int64)
    run = pool.bind(Program([[Section([operation(kernels["meet"], counter, 3)], bounds(3, 3))]], threads=3))
    run()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        counter[0] = 0
        run()  # three meet: none of them is the parent's
        pool.stop()
        os._exit(0 if counter[0] == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    counter[0] = 0
    run()
    assert counter[0] == 3


def test_pools_of_several_python_threads_do_not_meet(kernels: dict[str, int], pool_of: Callable[[int], Pool]) -> None:
    failures: list[str] = []

    def work(pool: Pool) -> None:
        phases, result = mirrored(kernels, n=300, chunks=6, phases=6)
        run = pool.bind(Program(phases, threads=2))
        for time in range(1, 200):
            run()
            if (result != 6 * time).any():
                failures.append(f"run {time}")

    workers = [threading.Thread(target=work, args=(pool_of(2),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_two_programs_of_one_pool_take_turns(kernels: dict[str, int], pool_of: Callable[[int], Pool]) -> None:
    pool = pool_of(3)
    (short, one), (long, two) = (mirrored(kernels, n, chunks=5, phases=p) for n, p in ((10, 4), (200, 8)))
    runs = [pool.bind(Program(phases, threads=threads)) for phases, threads in ((short, 2), (long, 3))]
    for time in range(1, 150):
        for run in runs:
            run()
        assert set(one) == {4 * time}
        assert set(two) == {8 * time}


# ---------------------------------------------------------------------------------------------------- balance


def steps_of(balance: Balance, seconds: float, step: Callable[[int, float], float]) -> dict[int, float]:
    """The part of the steps that each number of threads had. `step(threads, now)`: milliseconds."""
    now, steps = 0.0, dict.fromkeys(balance._levels, 0)
    while now < seconds:
        took = step(balance.threads, now) / 1000
        steps[balance.threads] += 1
        balance.took(int(took * 1e9))
        now += took
    return {threads: count / sum(steps.values()) for threads, count in steps.items()}


@pytest.mark.parametrize("one", [0.2, 2, 20])
def test_threads_that_pay_are_kept_and_seldom_doubted(one: float) -> None:
    used = steps_of(Balance(2), 20, lambda threads, now: one / threads)
    assert used[2] > 0.985


def test_threads_that_do_not_pay_are_left_out_and_seldom_tried() -> None:
    used = steps_of(Balance(2), 20, lambda threads, now: 0.4 if threads == 1 else 0.6)
    assert used[1] > 0.96


def test_threads_are_left_out_while_the_machine_is_busy_and_come_back() -> None:
    balance = Balance(2)
    quiet = {1: 0.4, 2: 0.2}
    busy = {1: 0.4, 2: 0.9}
    assert steps_of(balance, 2, lambda threads, now: quiet[threads])[2] > 0.9
    assert steps_of(balance, 2, lambda threads, now: busy[threads])[1] > 0.9
    assert steps_of(balance, 4, lambda threads, now: quiet[threads])[2] > 0.6


def test_best_of_many_numbers_is_found() -> None:
    # fifteen of sixteen cores are free: the sixteenth thread holds all others up
    used = steps_of(Balance(16), 20, lambda threads, now: 16 / threads if threads < 16 else 3.0)
    assert max(used, key=used.__getitem__) == 15
    # four are as fast as it gets
    used = steps_of(Balance(16), 60, lambda threads, now: 8 / min(threads, 4) + 0.2 * threads)
    assert max(used, key=used.__getitem__) == 4


# -------------------------------------------------------------------------------------------- number of threads

NAMES = ("DNN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight cores without cgroups, and no variable set. Returns its root."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 8),
        ({"DNN_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ({"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "4"}, 2),
        ({"OPENBLAS_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": " 4 , 2"}, 4),
        ({"OMP_NUM_THREADS": "many", "OPENBLAS_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "-1", "OPENBLAS_NUM_THREADS": ""}, 8),
        ({"DNN_NUM_THREADS": " "}, 8),
        ({"DNN_NUM_THREADS": "64"}, 8),
        ({"OMP_NUM_THREADS": "64"}, 8),
    ],
)
def test_threads_of_the_environment(
    eight_cores: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], expected: int
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert number_of_threads(root=eight_cores) == expected


def test_threads_given_go_before_the_environment_but_not_beyond_the_cores(
    eight_cores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNN_NUM_THREADS", "2")
    assert number_of_threads(5, root=eight_cores) == 5
    assert number_of_threads(50, root=eight_cores) == 8
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        number_of_threads(0, root=eight_cores)


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5"])
def test_own_variable_that_cannot_be_read_is_an_error(
    eight_cores: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("DNN_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"DNN_NUM_THREADS must be a whole number from 1 on, got '{text}'"):
        number_of_threads(root=eight_cores)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000", "cpu.max": "400000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, 2),
        ("0::/../b", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        ("0::/a", {"unified/a/cpu.max": "600000 100000"}, 6),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        (
            "4:cpuacct,cpu:/a\n2:memory:/b",
            {"cpuacct,cpu/cpu.cfs_quota_us": "110000", "cpuacct,cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("4:cpuset:/a", {"cpuset/a/cpu.cfs_quota_us": "100000", "cpuset/a/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_quota_of_the_cgroup_or_of_any_above_it_is_the_limit(
    eight_cores: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (eight_cores / name).parent.mkdir(parents=True, exist_ok=True)
        (eight_cores / name).write_text(text + "\n")
    assert available_cores(eight_cores) == expected
    assert number_of_threads(100, root=eight_cores) == expected


def test_affinity_is_a_limit(eight_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5}, raising=False)
    assert number_of_threads(root=eight_cores) == 2


@pytest.fixture
def counted_blas(monkeypatch: pytest.MonkeyPatch) -> tuple[thread_counts._Blas, list[int]]:
    """A BLAS of six threads, and the number that it has now."""
    number = [6]
    monkeypatch.setattr(
        thread_counts, "blas_threads", lambda: [(lambda: number[0], lambda n: number.__setitem__(0, n))]
    )
    return thread_counts._Blas(), number


def test_blas_has_the_threads_of_each_call_and_gets_its_own_back(counted_blas) -> None:
    blas, number = counted_blas
    with blas.call(0):
        assert number == [6]
    for _ in range(2):
        blas.begin_run()
    for threads, expected in ((4, 4), (1, 1), (0, 6), (None, 6), (4, 4)):
        with blas.call(threads):
            assert number == [expected]
    blas.end_run()
    assert number == [4]
    blas.end_run()
    assert number == [6]


def test_number_that_others_give_the_blas_meanwhile_is_found_again(counted_blas) -> None:
    blas, number = counted_blas
    blas.begin_run()
    with blas.call(2):
        number[0] = 3
    with blas.call(2):
        assert number == [2]
    blas.end_run()
    assert number == [3]
    blas.begin_run()
    number[0] = 5
    blas.end_run()
    assert number == [5]


def test_calls_of_different_numbers_take_turns(counted_blas) -> None:
    blas, number = counted_blas
    blas.begin_run()
    wrong: list[int] = []

    def work(threads: int) -> None:
        for _ in range(200):
            with blas.call(threads):
                sleep(0)
                wrong.extend([threads] * (number != [threads]))

    workers = [threading.Thread(target=work, args=(threads,)) for threads in (1, 1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and not blas._calls


def test_calls_of_the_same_number_or_of_none_do_not_wait_for_each_other(counted_blas) -> None:
    blas, _ = counted_blas
    blas.begin_run()
    together = threading.Barrier(3)

    def work(threads: int | None) -> None:
        with blas.call(threads):
            together.wait(20)

    workers = [threading.Thread(target=work, args=(threads,)) for threads in (2, 2, None)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not together.broken


def test_call_inside_a_call_of_its_own_thread_leaves_it_its_number(counted_blas) -> None:
    """As a signal handler makes one."""
    blas, number = counted_blas
    blas.begin_run()
    with blas.call(2):
        with blas.call(3):
            assert number == [3]
        assert number == [2]


def test_run_inside_a_call_of_its_own_thread_disturbs_neither(counted_blas) -> None:
    blas, number = counted_blas
    with blas.call(0):
        blas.begin_run()
        with blas.call(2):
            assert number == [2]
        blas.end_run()
        assert number == [6]
    assert not blas._calls


def test_call_that_was_cut_off_holds_nobody_up_once_its_run_has_ended(counted_blas) -> None:
    blas, _ = counted_blas
    blas.begin_run()
    blas.enter((threading.get_ident(), 2))  # and an exception of a signal handler before it could leave
    blas.end_run()
    blas.before_fork()
    blas.after_fork_in_parent()
    assert not blas._calls


# --------------------------------------------------------------------------------------------------- products


@pytest.fixture
def one_blas_thread() -> Iterator[None]:
    blas = thread_counts.blas
    blas.begin_run()
    with blas.call(1):
        yield
    blas.end_run()


needs_gemm = pytest.mark.skipif(gemm_address(np.float32) is None, reason="NumPy's BLAS has no 64-bit gemm here")
M, N, K = 13, 7, 19


class Sides:
    """A and B for a product of M x N x K, each a window of a wider array, and what it must give."""

    def __init__(self, dtype: str, transA: bool, transB: bool) -> None:
        rng = np.random.default_rng(0)
        self.dtype, self.flags = np.dtype(dtype), {"transA": transA, "transB": transB}
        self.A = rng.standard_normal((K, M + 3) if transA else (M, K + 3)).astype(dtype)
        self.B = rng.standard_normal((N, K + 2) if transB else (K, N + 2)).astype(dtype)
        left = self.A[:, :M].T if transA else self.A[:, :K]
        right = self.B[:, :K].T if transB else self.B[:, :N]
        self.expected = left.astype(np.float64) @ right

    def operation(self, C: int, ldc: int, **given: object) -> Operation:
        sides = self.A.ctypes.data, self.A.shape[1], self.B.ctypes.data, self.B.shape[1]
        arguments = product_arguments(self.dtype, M, N, K, *sides, C, ldc, **self.flags, **given)  # type: ignore[arg-type]
        return Operation(product_address(self.dtype), arguments)

    def check(self, C: np.ndarray) -> None:
        np.testing.assert_allclose(C, self.expected, rtol=1e-4 if self.dtype == np.float32 else 1e-12, atol=1e-5)


@pytest.fixture(params=itertools.product("fd", (False, True), (False, True)), ids=str)
def sides(request: pytest.FixtureRequest) -> Sides:
    return Sides(*request.param)


@needs_gemm
@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize(
    ("mode", "cuts", "swap"),
    [
        (Mode.ROWS, [0, 1, 6, 6, M], False),
        (Mode.ROWS, [0, 4, M], True),
        (Mode.COLUMNS, [0, 3, N], False),
        (Mode.COLUMNS, [0, N], False),
    ],
)
def test_product_in_chunks_of_rows_or_columns(
    sides: Sides, pool_of: Callable[[int], Pool], mode: Mode, cuts: list[int], swap: bool
) -> None:
    C = np.full((M + 1, N + 2), 99, sides.dtype)
    section = Section([sides.operation(C.ctypes.data, N + 2, mode=mode, swap=swap)], cuts)
    pool_of(2).run(Program([[section]], scratch_bytes=M * N * C.itemsize, threads=2))
    sides.check(C[:M, :N])
    assert (C[M:] == 99).all()
    assert (C[:, N:] == 99).all()


@needs_gemm
@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("cuts", [[0, 200], [0, 5, 12, 40, 41, 200], [0, 10], [103, 200], [20, 60]])
def test_product_into_a_flat_buffer_gives_the_rows_that_begin_in_the_chunk(
    sides: Sides, pool_of: Callable[[int], Pool], cuts: list[int]
) -> None:
    offset, flat = 12, np.full(200, 99, sides.dtype)
    C = flat[offset:].ctypes.data
    section = Section([sides.operation(C, N, mode=Mode.ELEMENTS, offset=offset)], cuts)
    pool_of(2).run(Program([[section]], threads=2))
    inside = [row for row in range(M) if cuts[0] <= offset + row * N < cuts[-1]]
    sides.expected = sides.expected[inside]
    rows = flat[offset : offset + M * N].reshape(M, N)
    sides.check(rows[inside])
    untouched = np.delete(rows, inside, axis=0)
    assert (untouched == 99).all()
    assert (flat[:offset] == 99).all()
    assert (flat[offset + M * N :] == 99).all()


@needs_gemm
@pytest.mark.usefixtures("one_blas_thread")
def test_product_into_scratch_lies_where_the_flat_buffer_has_it(sides: Sides, pool_of: Callable[[int], Pool]) -> None:
    size, offset = sides.dtype.itemsize, 12
    flat = np.full(offset + M * N + 5, 99, sides.dtype)
    number = "float" if size == 4 else "double"
    take = compile_module(
        f"""
define void @take(ptr %arguments, ptr %scratch, i64 %first, i64 %last) {{
  %flat = load ptr, ptr %arguments
  %to = getelementptr {number}, ptr %flat, i64 %first
  %count = sub i64 %last, %first
  %bytes = mul i64 %count, {size}
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %scratch, i64 %bytes, i1 false)
  ret void
}}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
""",
        ["take"],
        optimise=False,
    )["take"]
    product = sides.operation(0, N, mode=Mode.ELEMENTS, offset=offset, to_scratch=True)
    rows = [offset + r * N for r in (0, 4, 5, M)]  # chunks begin and end with rows
    pool_of(2).run(Program([[Section([product, operation(take, flat)], rows)]], scratch_bytes=M * N * size, threads=2))
    sides.check(flat[offset : offset + M * N].reshape(M, N))
    assert (flat[:offset] == 99).all()
    assert (flat[offset + M * N :] == 99).all()


@needs_gemm
def test_product_arguments_that_do_not_fit_together_are_refused() -> None:
    for wrong in ({"mode": Mode.ROWS, "to_scratch": True}, {"mode": Mode.COLUMNS, "swap": True}):
        with pytest.raises(ValueError, match=r"to_scratch is for Mode\.ELEMENTS and swap for Mode\.ROWS"):
            product_arguments(np.float32, 1, 1, 1, 0, 1, 0, 1, 0, 1, **wrong)  # type: ignore[arg-type]
