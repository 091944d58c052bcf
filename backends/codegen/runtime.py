"""Runs a program: phases of independent pieces of work, by one thread or by several that share them out as they go.

A program's results do not depend on who runs what: a chunk's bounds are the program's own, however many threads there
are. So threads may come late, take over what others have not begun, or be left out for a while. Three rules keep the
threads in order, and none of them waits for a thread that has nothing to do:

- A phase is over when all its items are done, counted in DONE. Nobody waits for threads, only for items.
- Each thread has a share of every phase, and a word of memory that says how much of it is taken: (phase, next item).
  A phase's number is never used again: who comes late finds a later phase in the word, takes nothing, and moves on.
- What a thread reads before it has taken an item stays in place: the pool keeps the tables of all its programs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter_ns

import numpy as np

from dnn.backends.codegen.jit import compile_module
from dnn.backends.codegen.threads import available_cores


@dataclass(frozen=True)
class Operation:
    """A compiled function, void (const i64* arguments, i8* scratch, i64 first, i64 last), and its arguments."""

    address: int
    arguments: np.ndarray


@dataclass(frozen=True)
class Section:
    """Operations that go over the same range, chunk by chunk: chunk c is from bounds[c] to bounds[c + 1]."""

    operations: list[Operation]
    bounds: list[int]


@dataclass
class Program:
    """Phases, one after the other; the chunks of a phase's sections are independent of each other."""

    phases: list[list[Section]]
    scratch_bytes: int = 0
    threads: int = 1
    """How many it is worth."""
    _kept: list[object] = field(default_factory=list, init=False, repr=False)

    def table(self, block: int) -> np.ndarray:
        """The program as the interpreter reads it: see `_TABLE`."""
        numbers, items, ends = [], [], [0]
        for phase in self.phases:
            found = []
            for section in phase:
                operations = [word for op in section.operations for word in (op.address, op.arguments.ctypes.data)]
                flat = np.array(operations, np.int64)
                numbers.append(flat)
                begin, end = section.bounds[0], section.bounds[-1]
                for first, last in zip(section.bounds, section.bounds[1:], strict=False):
                    if last > first and len(flat):
                        place = (first + last - 2 * begin) / (end - begin)
                        found.append((place, [flat.ctypes.data, flat.ctypes.data + flat.nbytes, first, last]))
            # by their place in the whole: a thread's share, however many threads, is the same part of every section
            items += [item for _, item in sorted(found, key=lambda one: one[0])]
            ends.append(len(items))
        if len(items) >= MOST_ITEMS:
            raise ValueError(f"a program has at most {MOST_ITEMS - 1} chunks, got {len(items)}")
        rows = np.array(items, np.int64).reshape(-1, 4)
        self._kept += [numbers, rows, self.phases]
        return np.array([block, len(self.phases), rows.ctypes.data, *ends], np.int64)


# ------------------------------------------------------------------------------------------ the interpreter's memory

ITEM_BITS = 20
MOST_ITEMS = 1 << ITEM_BITS

# a program's table, in bytes
_BLOCK, _PHASES, _ITEMS, _ENDS = 0, 8, 16, 24

# the pool's block, in bytes: what one thread writes and others read stands on lines of its own
_EPOCH, _TABLE, _THREADS, _FIRST, _BEFORE, _STOP = 0, 8, 16, 24, 32, 40  # what is to be run, written by the leader
_DONE, _WAITING = 128, 136  # items done since the pool exists; threads asleep until it grows
_NEXT_FIRST, _NEXT_BEFORE = 256, 264  # the next run's, known to the leader alone
_LOCK, _UNLOCK, _SLEEP, _WAKE, _CLOCK, _CLOCK_ID, _AWAKE, _PATIENCE = range(384, 448, 8)
_GETCPU, _MOVE = 448, 456  # where the C library can move threads to other cores, else 0
_ALL, _NONE = 512, 640  # sets of cores, as the C library has them: those that the process may use, and none
_THREAD, _STRIDE = 768, 512  # for each thread:
_TAKEN, _SCRATCH, _ASLEEP, _CORE, _TID, _TIME_ID, _MUTEX, _CONDITION = 0, 128, 136, 144, 152, 160, 256, 384

CORES = 1024
"""Cores that a set has room for."""
AWAKE = 150_000
"""Nanoseconds that a helper stays awake after a run, for the next."""
PATIENCE = 50_000
"""Nanoseconds that a thread stays awake for the others at the end of a phase."""


def _load(name: str, base: str, offset: int, order: str = "monotonic", kind: str = "i64") -> str:
    return f"""
  %{name}_at = getelementptr i8, ptr {base}, i64 {offset}
  %{name} = load atomic {kind}, ptr %{name}_at {order}, align 8"""


def _store(value: str, name: str, base: str, offset: int, order: str = "monotonic") -> str:
    return f"""
  %{name}_to = getelementptr i8, ptr {base}, i64 {offset}
  store atomic i64 {value}, ptr %{name}_to {order}, align 8"""


def _call(name: str, arguments: str) -> str:
    """A call of the C library, whose address stands in the block."""
    return f"""
  %{name}_is = load ptr, ptr %{name}_at
  call i32 %{name}_is({arguments})"""


_PAUSES = {"x86_64": "x86.sse2.pause()", "aarch64": "aarch64.isb(i32 15)"}
_PAUSES |= {"amd64": _PAUSES["x86_64"], "arm64": _PAUSES["aarch64"]}
"""What tells the core that a loop does nothing but wait."""


def _text() -> str:
    pause = _PAUSES.get(platform.machine().lower())
    declaration = f"declare void @llvm.{pause.replace(' 15', '')}" if pause else ""
    pause = f"call void @llvm.{pause}" if pause else ""
    return f"""
; ------------------------------------------------------------------------------------------------ one item, one thread

; all operations of an item, in order
define internal void @do(ptr %item, ptr %scratch) {{
entry:
  %begin = load ptr, ptr %item
  %end_at = getelementptr i64, ptr %item, i64 1
  %end = load ptr, ptr %end_at
  %first_at = getelementptr i64, ptr %item, i64 2
  %first = load i64, ptr %first_at
  %last_at = getelementptr i64, ptr %item, i64 3
  %last = load i64, ptr %last_at
  br label %operation
operation:
  %op = phi ptr [ %begin, %entry ], [ %next, %operation ]
  %function = load ptr, ptr %op
  %arguments_at = getelementptr i64, ptr %op, i64 1
  %arguments = load ptr, ptr %arguments_at
  call void %function(ptr %arguments, ptr %scratch, i64 %first, i64 %last)
  %next = getelementptr i64, ptr %op, i64 2
  %more = icmp ne ptr %next, %end
  br i1 %more, label %operation, label %exit
exit:
  ret void
}}

; a program on this thread alone
define void @alone(ptr %table) {{
entry:
  %block = load ptr, ptr %table
  %scratch_at = getelementptr i8, ptr %block, i64 {_THREAD + _SCRATCH}
  %scratch = load ptr, ptr %scratch_at
  %phases_at = getelementptr i8, ptr %table, i64 {_PHASES}
  %phases = load i64, ptr %phases_at
  %items_at = getelementptr i8, ptr %table, i64 {_ITEMS}
  %items = load ptr, ptr %items_at
  %ends = getelementptr i8, ptr %table, i64 {_ENDS}
  %count_at = getelementptr i64, ptr %ends, i64 %phases
  %count = load i64, ptr %count_at
  %end = getelementptr [4 x i64], ptr %items, i64 %count
  %some = icmp ne i64 %count, 0
  br i1 %some, label %next, label %exit
next:
  %item = phi ptr [ %items, %entry ], [ %after, %next ]
  call void @do(ptr %item, ptr %scratch)
  %after = getelementptr [4 x i64], ptr %item, i64 1
  %more = icmp ne ptr %after, %end
  br i1 %more, label %next, label %exit
exit:
  ret void
}}

; ---------------------------------------------------------------------------------------------- waiting and waking up

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
{declaration}

; nanoseconds on a clock
define internal i64 @time(ptr %block, i64 %id) {{
  %pair = alloca [2 x i64]
  %id_int = trunc i64 %id to i32
  %rest_at = getelementptr i64, ptr %pair, i64 1
  store i64 0, ptr %pair
  store i64 0, ptr %rest_at
  %clock_at = getelementptr i8, ptr %block, i64 {_CLOCK}{_call("clock", "i32 %id_int, ptr %pair")}
  %seconds = load i64, ptr %pair
  %rest = load i64, ptr %rest_at
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %rest
  ret i64 %sum
}}

define internal i64 @now(ptr %block) {{
  %id_at = getelementptr i8, ptr %block, i64 {_CLOCK_ID}
  %id = load i64, ptr %id_at
  %time = call i64 @time(ptr %block, i64 %id)
  ret i64 %time
}}

; until what stands at %word has reached %value: awake until the deadline (0: as long as patience lasts), then asleep.
; %counted: 1 where _WAITING counts it, 0 where not
define internal void @wait(ptr %block, ptr %me, ptr %word, i64 %value, i64 %given, i64 %counted) {{
entry:
  br label %look
look:
  %looks = phi i64 [ 1, %entry ], [ %looks_next, %pausing ], [ 1, %set ], [ 1, %timed ]
  %deadline = phi i64 [ %given, %entry ], [ %deadline, %pausing ], [ %later, %set ], [ %deadline, %timed ]
  %seen = load atomic i64, ptr %word acquire, align 8
  %reached = icmp uge i64 %seen, %value
  br i1 %reached, label %exit, label %pausing
pausing:
  {pause}
  %looks_next = add i64 %looks, 1
  %short = icmp ult i64 %looks, 32 ; the clock is looked at but now and then
  br i1 %short, label %look, label %clock
clock:
  %time = call i64 @now(ptr %block)
  %unset = icmp eq i64 %deadline, 0
  br i1 %unset, label %set, label %timed
set:
  %patience_at = getelementptr i8, ptr %block, i64 {_PATIENCE}
  %patience = load i64, ptr %patience_at
  %later = add i64 %time, %patience
  br label %look
timed:
  %early = icmp ult i64 %time, %deadline
  br i1 %early, label %look, label %leave

leave: ; the leader leaves its core to a helper that has none
  %leader = getelementptr i8, ptr %block, i64 {_THREAD}
  %leads = icmp eq ptr %me, %leader
  br i1 %leads, label %offer, label %sleep
offer:{_load("threads", "%block", _THREADS)}
  call void @arrange(ptr %block, i64 %threads, i1 true)
  br label %sleep

sleep: ; whoever changes the word looks at _WAITING and _ASLEEP after; here they are set before the word is looked at
  %mutex = getelementptr i8, ptr %me, i64 {_MUTEX}
  %condition = getelementptr i8, ptr %me, i64 {_CONDITION}
  %lock_at = getelementptr i8, ptr %block, i64 {_LOCK}{_call("lock", "ptr %mutex")}
  %waiting = getelementptr i8, ptr %block, i64 {_WAITING}
  %before = atomicrmw add ptr %waiting, i64 %counted seq_cst{_store("1", "asleep", "%me", _ASLEEP, "seq_cst")}
  br label %again
again:
  %seen_again = load atomic i64, ptr %word seq_cst, align 8
  %reached_now = icmp uge i64 %seen_again, %value
  br i1 %reached_now, label %awake, label %asleep
asleep:
  %sleep_at = getelementptr i8, ptr %block, i64 {_SLEEP}{_call("sleep", "ptr %condition, ptr %mutex")}
  br label %again
awake:{_store("0", "awake", "%me", _ASLEEP)}
  %after = atomicrmw sub ptr %waiting, i64 %counted seq_cst
  %unlock_at = getelementptr i8, ptr %block, i64 {_UNLOCK}{_call("unlock", "ptr %mutex")}
  ret void
exit:
  ret void
}}

; those of the first %threads threads that are asleep
define internal void @wake(ptr %block, i64 %threads) {{
entry:
  br label %next
next:
  %thread = phi i64 [ 0, %entry ], [ %thread_next, %done ]
  %skip = mul i64 %thread, {_STRIDE}
  %from = getelementptr i8, ptr %block, i64 {_THREAD}
  %other = getelementptr i8, ptr %from, i64 %skip{_load("asleep", "%other", _ASLEEP, "seq_cst")}
  %sleeps = icmp ne i64 %asleep, 0
  br i1 %sleeps, label %call, label %done
call:
  %mutex = getelementptr i8, ptr %other, i64 {_MUTEX}
  %condition = getelementptr i8, ptr %other, i64 {_CONDITION}
  %lock_at = getelementptr i8, ptr %block, i64 {_LOCK}{_call("lock", "ptr %mutex")}
  %wake_at = getelementptr i8, ptr %block, i64 {_WAKE}{_call("wake", "ptr %condition")}
  %unlock_at = getelementptr i8, ptr %block, i64 {_UNLOCK}{_call("unlock", "ptr %mutex")}
  br label %done
done:
  %thread_next = add i64 %thread, 1
  %more = icmp ult i64 %thread_next, %threads
  br i1 %more, label %next, label %exit
exit:
  ret void
}}

; --------------------------------------------------------------------------------------------------- one core for each

; On a busy machine the scheduler is slow to give each of our threads a core of its own, and keeps one from its core for
; milliseconds in the middle of an item. So the leader moves helpers: see @arrange. It never moves itself, nor others.

; the core that this thread is on, for the leader to see
define internal void @note(ptr %block, ptr %me) {{
entry:
  %getcpu_at = getelementptr i8, ptr %block, i64 {_GETCPU}
  %getcpu = load ptr, ptr %getcpu_at
  %able = icmp ne ptr %getcpu, null
  br i1 %able, label %look, label %exit
look:
  %core_int = call i32 %getcpu()
  %core = sext i32 %core_int to i64{_load("known", "%me", _CORE)}
  %same = icmp eq i64 %known, %core
  br i1 %same, label %exit, label %note
note:{_store("%core", "core", "%me", _CORE)}
  br label %exit
exit:
  ret void
}}

; whether a helper wants to run and does not: the clock of its own time stands still
define internal i1 @is_kept_from_its_core(ptr %block, ptr %helper) {{
entry:{_load("asleep", "%helper", _ASLEEP)}
  %sleeps = icmp ne i64 %asleep, 0
  br i1 %sleeps, label %no, label %measure
measure:{_load("clock", "%helper", _TIME_ID)}
  %before = call i64 @time(ptr %block, i64 %clock)
  br label %pause
pause:
  %i = phi i64 [ 0, %measure ], [ %i_next, %pause ]
  {pause}
  %i_next = add i64 %i, 1
  %more = icmp ult i64 %i_next, 64
  br i1 %more, label %pause, label %compare
compare:
  %after = call i64 @time(ptr %block, i64 %clock)
  %still = icmp eq i64 %before, %after
  ret i1 %still
no:
  ret i1 false
}}

; moves helpers. %here: those who are kept from their cores come to this one, which the leader is about to leave; else
; those who are on this one go elsewhere. The set of cores is restored at once: where they are next is the scheduler's
define internal void @arrange(ptr %block, i64 %threads, i1 %here) {{
entry:
  %cores = alloca [{CORES // 8} x i8], align 8
  %leader = getelementptr i8, ptr %block, i64 {_THREAD}
  %all = getelementptr i8, ptr %block, i64 {_ALL}
  %none = getelementptr i8, ptr %block, i64 {_NONE}
  %start = select i1 %here, ptr %none, ptr %all
  %move_at = getelementptr i8, ptr %block, i64 {_MOVE}{_load("core", "%leader", _CORE)}
  %known = icmp sge i64 %core, 0
  br i1 %known, label %next, label %exit
next:
  %t = phi i64 [ 1, %entry ], [ %t_next, %done ]
  %t_next = add i64 %t, 1
  %skip = mul i64 %t, {_STRIDE}
  %helper = getelementptr i8, ptr %leader, i64 %skip
  br i1 %here, label %look, label %compare
look:
  %kept = call i1 @is_kept_from_its_core(ptr %block, ptr %helper)
  br i1 %kept, label %move, label %done
compare:{_load("theirs", "%helper", _CORE)}
  %same = icmp eq i64 %theirs, %core
  br i1 %same, label %move, label %done
move:
  %then = select i1 %here, i64 %core, i64 -1{_store("%then", "then", "%helper", _CORE)}{_load("tid", "%helper", _TID)}
  %tid_int = trunc i64 %tid to i32
  call void @llvm.memcpy.p0.p0.i64(ptr %cores, ptr %start, i64 {CORES // 8}, i1 false)
  %word = lshr i64 %core, 6
  %bit = and i64 %core, 63
  %one = shl i64 1, %bit
  %word_at = getelementptr i64, ptr %cores, i64 %word
  %without = load i64, ptr %word_at
  %with = xor i64 %without, %one
  store i64 %with, ptr %word_at{_call("move", f"i32 %tid_int, i64 {CORES // 8}, ptr %cores")}
  call i32 %move_is(i32 %tid_int, i64 {CORES // 8}, ptr %all)
  br label %done
done:
  %more = icmp ult i64 %t_next, %threads
  br i1 %more, label %next, label %exit
exit:
  ret void
}}

; ----------------------------------------------------------------------------------------------------- sharing the work

; the next item of a share [%start, %end) of this phase, -1 where none is left. %word: phase << {ITEM_BITS} | next item
define internal i64 @take(ptr %word, i64 %phase, i64 %start, i64 %end) {{
entry:
  %mine = shl i64 %phase, {ITEM_BITS}
  %at_first = load atomic i64, ptr %word monotonic, align 8
  br label %try
try:
  %seen = phi i64 [ %at_first, %entry ], [ %found, %swap ]
  %seen_phase = lshr i64 %seen, {ITEM_BITS}
  %over = icmp ugt i64 %seen_phase, %phase
  br i1 %over, label %none, label %current
current: ; an earlier phase in the word: nobody has taken of this one
  %begun = icmp eq i64 %seen_phase, %phase
  %seen_next = and i64 %seen, {MOST_ITEMS - 1}
  %next = select i1 %begun, i64 %seen_next, i64 %start
  %left = icmp ult i64 %next, %end
  br i1 %left, label %swap, label %none
swap:
  %after = add i64 %next, 1
  %new = or i64 %mine, %after
  %pair = cmpxchg ptr %word, i64 %seen, i64 %new acq_rel monotonic
  %found = extractvalue {{ i64, i1 }} %pair, 0
  %taken = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %taken, label %give, label %try
give:
  ret i64 %next
none:
  ret i64 -1
}}

; what this thread does of a program: in each phase its own share, then what is left of the others'
define internal void @share(ptr %block, ptr %table, i64 %threads, i64 %first, i64 %before, i64 %number) {{
entry:
  %from = getelementptr i8, ptr %block, i64 {_THREAD}
  %my_skip = mul i64 %number, {_STRIDE}
  %me = getelementptr i8, ptr %from, i64 %my_skip
  %done = getelementptr i8, ptr %block, i64 {_DONE}
  %phases_at = getelementptr i8, ptr %table, i64 {_PHASES}
  %phases = load i64, ptr %phases_at
  %items_at = getelementptr i8, ptr %table, i64 {_ITEMS}
  %items = load ptr, ptr %items_at
  %ends = getelementptr i8, ptr %table, i64 {_ENDS}
  %some = icmp ne i64 %phases, 0
  br i1 %some, label %phase, label %exit

phase:
  %p = phi i64 [ 0, %entry ], [ %p_next, %phase_over ]
  %p_next = add i64 %p, 1
  %phase_number = add i64 %first, %p
  %low_at = getelementptr i64, ptr %ends, i64 %p
  %low = load i64, ptr %low_at
  %high_at = getelementptr i64, ptr %ends, i64 %p_next
  %high = load i64, ptr %high_at
  %count = sub i64 %high, %low
  %target = add i64 %before, %high
  call void @note(ptr %block, ptr %me)
  %leads = icmp eq i64 %number, 0
  br i1 %leads, label %arrange, label %begin
arrange:
  call void @arrange(ptr %block, i64 %threads, i1 false)
  br label %begin
begin:
  br label %victim

victim: ; first itself, then the next threads in a ring
  %v = phi i64 [ 0, %begin ], [ %v_next, %share_empty ]
  %finished_before = phi i64 [ 0, %begin ], [ %finished, %share_empty ]
  %v_next = add i64 %v, 1
  %sum = add i64 %number, %v
  %beyond = icmp uge i64 %sum, %threads
  %around = sub i64 %sum, %threads
  %whose = select i1 %beyond, i64 %around, i64 %sum
  %whose_next = add i64 %whose, 1
  %start_of = mul i64 %count, %whose
  %start_in = udiv i64 %start_of, %threads
  %start = add i64 %low, %start_in
  %end_of = mul i64 %count, %whose_next
  %end_in = udiv i64 %end_of, %threads
  %end = add i64 %low, %end_in
  %skip = mul i64 %whose, {_STRIDE}
  %word = getelementptr i8, ptr %from, i64 %skip
  br label %take
take:
  %finished = phi i64 [ %finished_before, %victim ], [ %finished_now, %do ]
  %taken = call i64 @take(ptr %word, i64 %phase_number, i64 %start, i64 %end)
  %none = icmp slt i64 %taken, 0
  br i1 %none, label %share_empty, label %do
do:
  %item = getelementptr [4 x i64], ptr %items, i64 %taken
  %scratch_at = getelementptr i8, ptr %me, i64 {_SCRATCH}
  %scratch = load ptr, ptr %scratch_at
  call void @do(ptr %item, ptr %scratch)
  %finished_now = add i64 %finished, 1
  br label %take
share_empty:
  %more_victims = icmp ult i64 %v_next, %threads
  br i1 %more_victims, label %victim, label %report

report:
  %worked = icmp ne i64 %finished, 0
  br i1 %worked, label %add, label %barrier
add:
  %done_before = atomicrmw add ptr %done, i64 %finished seq_cst
  %done_now = add i64 %done_before, %finished
  %last = icmp eq i64 %done_now, %target
  br i1 %last, label %finish, label %barrier
finish: ; this was the phase's last: who fell asleep over it is woken{_load("waiting", "%block", _WAITING, "seq_cst")}
  %sleepers = icmp ne i64 %waiting, 0
  br i1 %sleepers, label %wake, label %phase_over
wake:
  call void @wake(ptr %block, i64 %threads)
  br label %phase_over
barrier: ; after the last phase a helper waits for the next run instead
  %final = icmp eq i64 %p_next, %phases
  %helper = icmp ne i64 %number, 0
  %free = and i1 %final, %helper
  br i1 %free, label %exit, label %wait
wait:
  call void @wait(ptr %block, ptr %me, ptr %done, i64 %target, i64 0, i64 1)
  br label %phase_over
phase_over:
  %more_phases = icmp ult i64 %p_next, %phases
  br i1 %more_phases, label %phase, label %exit
exit:
  ret void
}}

; a program on this thread and %threads - 1 helpers. The epoch is odd while what is to be run is being written
define void @together(ptr %table, i64 %threads) {{
entry:
  %single = icmp ult i64 %threads, 2
  br i1 %single, label %alone, label %publish
alone:
  call void @alone(ptr %table)
  ret void
publish:
  %block = load ptr, ptr %table{_load("epoch", "%block", _EPOCH)}
  %writing = add i64 %epoch, 1
  %written = add i64 %epoch, 2
  %first_at = getelementptr i8, ptr %block, i64 {_NEXT_FIRST}
  %first = load i64, ptr %first_at
  %before_at = getelementptr i8, ptr %block, i64 {_NEXT_BEFORE}
  %before = load i64, ptr %before_at
  %place = ptrtoint ptr %table to i64{_store("%writing", "odd", "%block", _EPOCH)}
  fence release{_store("%place", "table", "%block", _TABLE)}{_store("%threads", "threads", "%block", _THREADS)}
  {_store("%first", "first", "%block", _FIRST)}{_store("%before", "before", "%block", _BEFORE)}
  {_store("%written", "even", "%block", _EPOCH, "seq_cst")}
  call void @wake(ptr %block, i64 %threads)
  call void @share(ptr %block, ptr %table, i64 %threads, i64 %first, i64 %before, i64 0)

  ; the numbers of phases and the count of items go on where this run ends
  %phases_at = getelementptr i8, ptr %table, i64 {_PHASES}
  %phases = load i64, ptr %phases_at
  %ends = getelementptr i8, ptr %table, i64 {_ENDS}
  %count_at = getelementptr i64, ptr %ends, i64 %phases
  %count = load i64, ptr %count_at
  %next_first = add i64 %first, %phases
  store i64 %next_first, ptr %first_at
  %next_before = add i64 %before, %count
  store i64 %next_before, ptr %before_at
  ret void
}}

; a helper's life: its part of every run that has work for it, until it is stopped
define void @help(ptr %block, i64 %number) {{
entry:
  %from = getelementptr i8, ptr %block, i64 {_THREAD}
  %skip = mul i64 %number, {_STRIDE}
  %me = getelementptr i8, ptr %from, i64 %skip
  %epochs = getelementptr i8, ptr %block, i64 {_EPOCH}
  %awake_at = getelementptr i8, ptr %block, i64 {_AWAKE}
  %awake = load i64, ptr %awake_at
  %birth = call i64 @now(ptr %block)
  %birth_until = add i64 %birth, %awake
  br label %idle
idle:
  %known = phi i64 [ 0, %entry ], [ %epoch, %going ], [ %epoch, %work ]
  %until = phi i64 [ %birth_until, %entry ], [ %until, %going ], [ %later, %work ]
  %wanted = add i64 %known, 2
  call void @wait(ptr %block, ptr %me, ptr %epochs, i64 %wanted, i64 %until, i64 0)
  br label %read
read:{_load("epoch", "%block", _EPOCH, "acquire")}
  %odd_bit = and i64 %epoch, 1
  %odd = icmp ne i64 %odd_bit, 0
  br i1 %odd, label %read, label %fields
fields:{_load("table", "%block", _TABLE)}{_load("threads", "%block", _THREADS)}{_load("first", "%block", _FIRST)}
  {_load("before", "%block", _BEFORE)}{_load("stop", "%block", _STOP)}
  fence acquire{_load("still", "%block", _EPOCH)}
  %whole = icmp eq i64 %still, %epoch
  br i1 %whole, label %decide, label %read
decide:
  %stopped = icmp ne i64 %stop, 0
  %mine = icmp ult i64 %number, %threads
  br i1 %stopped, label %exit, label %going
going:
  br i1 %mine, label %work, label %idle
work:
  %program = inttoptr i64 %table to ptr
  call void @share(ptr %block, ptr %program, i64 %threads, i64 %first, i64 %before, i64 %number)
  %time = call i64 @now(ptr %block)
  %later = add i64 %time, %awake
  br label %idle
exit:
  ret void
}}

; the helpers' end
define void @stop(ptr %block, i64 %threads) {{
  {_store("1", "stop", "%block", _STOP)}
  %epochs = getelementptr i8, ptr %block, i64 {_EPOCH}
  %before = atomicrmw add ptr %epochs, i64 2 seq_cst
  call void @wake(ptr %block, i64 %threads)
  ret void
}}
"""


# ------------------------------------------------------------------------------------------------------------- threads


@dataclass(frozen=True)
class _Interpreter:
    alone: Callable[[int], None]
    together: Callable[[int, int], None]
    help: Callable[[int, int], None]
    stop: Callable[[int, int], None]


@cache
def _interpreter() -> _Interpreter:
    """Called through ctypes, which lets other Python threads go on meanwhile."""
    names = ["alone", "together", "help", "stop"]
    addresses = compile_module(_text(), names, optimise=False)
    one, two = (ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count) for count in (1, 2))
    return _Interpreter(one(addresses["alone"]), *(two(addresses[name]) for name in names[1:]))


_PRIMITIVES = (
    *("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_signal"),
    "clock_gettime",
)


@cache
def _primitives() -> tuple[ctypes.CDLL, list[int]] | None:
    """The C library and what sleeping needs of it, None where there is none of a known form."""
    try:
        library = ctypes.CDLL(None)
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _PRIMITIVES]
        for name in ("pthread_mutex_init", "pthread_cond_init"):
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    except (OSError, AttributeError, TypeError):
        return None
    return library, found


@cache
def _moving() -> list[int]:
    """sched_getcpu and sched_setaffinity, where the C library has them (Linux)."""
    try:
        library = ctypes.CDLL(None)
        names = ("sched_getcpu", "sched_setaffinity")
        return [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
    except (OSError, AttributeError, TypeError):
        return [0, 0]


def _aligned(size: int, alignment: int = 128) -> np.ndarray:
    room = np.zeros(size + alignment, np.uint8)
    return room[-room.ctypes.data % alignment :][:size]


class Balance:
    """How many threads run a program: as many as pay. Told how long each step took, it changes `threads` now and then.

    On a busy machine one thread may do more than two, of which one is kept from its core while the other waits for it.
    So the mean time of the number in use ("home") is compared, in trials, with that of others, the next ones first. A
    trial that fails puts off the next in proportion to its cost.
    """

    WINDOW = 40_000_000
    """Nanoseconds that a mean is taken over: some slices of the scheduler."""
    GLANCE = 1_000_000
    """Nanoseconds that are enough to see that fewer threads are no better, where the others have cores."""
    BETTER = 0.95
    """The part of the time that a change must come down to."""
    CHANGED = 1.25
    """What makes a trial due at once: a step takes so much longer than at the last one, or so much less."""
    THRIFT = 100
    """Trials may cost one part in so many,"""
    REST = 100_000_000
    """and there are as many nanoseconds between them at least."""

    def __init__(self, most: int) -> None:
        self._levels = sorted({most, most - 1, *(1 << i for i in range(most.bit_length()) if 1 << i < most)} - {0})
        self._home = len(self._levels) - 1
        self._mean = self._mean_at_trial = 0.0
        self._rest = self._rested = 0.0
        self._failures = 0
        self._go(self._home)

    def _go(self, level: int) -> None:
        self._level = level
        self.threads = self._levels[level]
        self._steps, self._total = -1, 0  # the first step wakes the threads, or misses what they had in their caches
        self._window = self.GLANCE if level < self._home else self.WINDOW

    def took(self, nanoseconds: int) -> None:
        self._steps += 1
        if self._steps > 0:
            self._total += nanoseconds
            if self._total >= self._window:
                mean = self._total / self._steps
                if self._level == self._home:
                    self._at_home(mean)
                else:
                    self._on_trial(mean)

    def _at_home(self, mean: float) -> None:
        self._mean = (self._mean + mean) / 2 if self._mean else mean
        self._rested += self._total
        self._steps, self._total = 0, 0
        changed = self._mean_at_trial and not 1 / self.CHANGED < self._mean / self._mean_at_trial < self.CHANGED
        # the first trial, too, is due when it costs no more than its part; and what changes at every step is noise
        rest = self._rest or max(self.REST, 2 * self.THRIFT * mean)
        if self._rested > (max(self.REST, 20 * mean) if changed else rest):
            others = [level for level in range(len(self._levels)) if level != self._home]
            others.sort(key=lambda level: abs(level - self._home))
            self._go(others[self._failures % len(others)])

    def _on_trial(self, mean: float) -> None:
        if mean < self.BETTER * self._mean:
            if self._window < self.WINDOW:
                self._window = self.WINDOW  # too little to change for
                return
            self._home, self._mean, self._failures, self._rest = self._level, mean, 0, self.REST
        else:
            lost = (mean - self._mean) * (self._steps + 1)
            self._failures += 1
            # fewer threads are tried ever less while nothing changes. More are not: the others may have gone
            patience = 1 << min(self._failures, 5) if self._level < self._home else 1
            self._rest = max(lost * self.THRIFT, self.REST) * patience
        self._mean_at_trial, self._rested = self._mean, 0.0
        self._go(self._home)


def _help(block: np.ndarray, kept: list[object], number: int) -> None:
    """A helper's life. It holds what it may look at, though the pool be gone."""
    _interpreter().help(block.ctypes.data, number)


def _stop(block: np.ndarray, threads: int) -> None:
    _interpreter().stop(block.ctypes.data, threads)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    """A child has its parent's pools, but none of their threads."""
    for pool in list(_pools):
        pool._prepare()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """Threads for one run's programs. Helpers start with the first program that wants them and end with `stop`.

    For one Python thread at a time; as many pools as there are such threads.
    """

    def __init__(self, threads: int, cores: int | None = None) -> None:
        self.threads = max(1, min(threads, cores or available_cores())) if _primitives() else 1
        self._block = _aligned(_THREAD + self.threads * _STRIDE)
        self._scratch: list[np.ndarray] = []
        self._helpers: list[threading.Thread] = []
        self._started = 0
        """Threads that programs have, the caller's among them; 0 before the first run."""
        self._kept: list[object] = []
        self._prepare()
        _pools.add(self)

    def _word(self, at: int) -> np.ndarray:
        return self._block[at : at + 8].view(np.int64)

    def _prepare(self) -> None:
        """The block as it is before the first run, without helpers."""
        self._helpers.clear()
        self._started = 0
        self._block[:] = 0
        self._word(_NEXT_FIRST)[0] = 1  # a later phase than the 0 in the words that say what is taken
        if (found := _primitives()) is not None:
            library, addresses = found
            cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {CORES}
            moving = _moving() if max(cores) < CORES else [0, 0]
            constants = [*addresses, getattr(time, "CLOCK_MONOTONIC", 0), AWAKE, PATIENCE, *moving]
            for core in cores if moving[0] else ():
                self._block[_ALL + core // 8] |= 1 << core % 8
            self._block[_LOCK : _LOCK + 8 * len(constants)].view(np.int64)[:] = constants
            for thread in range(self.threads):
                self._word(_THREAD + thread * _STRIDE + _CORE)[0] = -1
                here = self._block.ctypes.data + _THREAD + thread * _STRIDE
                library.pthread_mutex_init(here + _MUTEX, None)
                library.pthread_cond_init(here + _CONDITION, None)
        self._point_to_scratch()

    def _point_to_scratch(self) -> None:
        for thread, scratch in enumerate(self._scratch):
            self._word(_THREAD + thread * _STRIDE + _SCRATCH)[0] = scratch.ctypes.data

    def bind(self, program: Program) -> Callable[[], None]:
        """What runs the program on these threads: cheap to call, again and again."""
        if not self._scratch or program.scratch_bytes > self._scratch[0].nbytes:
            self._scratch = [_aligned(max(program.scratch_bytes, 64)) for _ in range(self.threads)]
            self._point_to_scratch()
        table = program.table(self._block.ctypes.data)
        self._kept.append((program, table))
        place, threads, interpreter = table.ctypes.data, min(program.threads, self.threads), _interpreter()
        if threads < 2:
            bound = partial(interpreter.alone, place)
            bound.pool = self  # type: ignore[attr-defined]  # kept alive: the table and the scratch are its own
            return bound
        balance, together = Balance(threads), interpreter.together

        def run() -> None:
            if not self._started:
                self._start()
            start = perf_counter_ns()
            # those who could not be started are not waited for, and their shares are done by the others
            together(place, min(balance.threads, self._started))
            balance.took(perf_counter_ns() - start)

        return run

    def run(self, program: Program) -> None:
        self.bind(program)()

    def _start(self) -> None:
        self._end = weakref.finalize(self, _stop, self._block, self.threads)
        self._end.atexit = False
        self._started = 1
        for number in range(1, self.threads):
            helper = threading.Thread(target=_help, args=(self._block, self._kept, number), daemon=True)
            self._helpers.append(helper)
            try:
                helper.start()
            except (RuntimeError, MemoryError):  # the system's limit of threads or of memory, or the end of Python
                self._helpers.pop()
                break
            self._started += 1
            tid = helper.native_id or 0
            self._word(_THREAD + number * _STRIDE + _TID)[0] = tid
            self._word(_THREAD + number * _STRIDE + _TIME_ID)[0] = ~tid << 3 | 6  # Linux's clock of a thread's own time

    def stop(self) -> None:
        """End the helpers. A program bound before may still be run: it starts new ones."""
        if self._started:
            self._end()
            try:
                for helper in self._helpers:
                    helper.join()
            except RuntimeError:
                # an exception of a signal handler came into its start. It ends by itself; the block stays as it is
                return
            self._prepare()
