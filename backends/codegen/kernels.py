"""Kernels: tasks put together, as PTX.

    for every run (`times`)
        for every level
            a block takes units of the level's tasks, its own number and then every `blocks`-th
                the phases of the unit, with a barrier of the block after each
            a barrier of the grid

What is said here to the GPU can be said to another machine: a `Target` knows how to loop and how to wait.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

from dnn.backends.codegen.tasks import GLOBAL, SHARED, THREADS, Code, Repeat, Task
from dnn.backends.plan.graph import Buffer, PlanError

LARGEST_SHARED = 48 * 1024
"""Of a block, without asking for more."""
MOST_BUFFERS = 500
"""Of a kernel: its parameters may take 4352 bytes."""
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
"""What PTX is made for: the code of one runs on all later ones."""

_BARRIER = "llvm.nvvm.barrier.cta.sync.aligned.all"
_GRID_BARRIER = f"""
declare void @{_BARRIER}(i32) convergent nounwind
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.nctaid.x()
; The first block adds what makes the sum of all turn the sign of the counter, which the next round turns back: nothing
; has to be set before or between launches.
define internal void @grid_barrier(i64 %address, i32 %block, i32 %blocks, i32 %thread) convergent alwaysinline {{
entry:
  call void @{_BARRIER}(i32 0)
  %is.one = icmp eq i32 %thread, 0
  %are.many = icmp sgt i32 %blocks, 1
  %must = and i1 %is.one, %are.many
  br i1 %must, label %arrive, label %exit
arrive:
  %counter = inttoptr i64 %address to {GLOBAL}
  %others = sub i32 %blocks, 1
  %rest = sub i32 -2147483648, %others
  %is.first = icmp eq i32 %block, 0
  %added = select i1 %is.first, i32 %rest, i32 1
  %before = call i32 asm sideeffect "fence.acq_rel.gpu; atom.add.relaxed.gpu.global.u32 $0, [$1], $2;",\
 "=r,l,r,~{{memory}}"({GLOBAL} %counter, i32 %added)
  br label %wait
wait:
  %now = call i32 asm sideeffect "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l,~{{memory}}"({GLOBAL} %counter)
  %turned = xor i32 %before, %now
  %met = icmp slt i32 %turned, 0
  br i1 %met, label %exit, label %wait
exit:
  call void @{_BARRIER}(i32 0)
  ret void
}}"""


class TooLarge(PlanError):
    """A kernel needs more than the device is sure to have."""


@dataclass
class Kernel:
    """`levels` of tasks; with more than one of them, all blocks of a launch must run at the same time.

    `local`: bytes of shared memory that hold buffers, beside what the tasks need of it.
    """

    levels: list[list[Task]]
    local: int = 0

    def __post_init__(self) -> None:
        tasks = self.tasks
        self.buffers: list[Buffer] = list(dict.fromkeys(buffer for task in tasks for buffer in task.buffers))
        self.shared = max((task.shared for task in tasks), default=0)
        self.frame = max((task.frame for task in tasks), default=0)
        if len(self.buffers) > MOST_BUFFERS:
            raise TooLarge(f"a kernel has {len(self.buffers)} buffers, at most {MOST_BUFFERS} can be its parameters")
        if self.local + self.shared > LARGEST_SHARED:
            raise TooLarge(f"a kernel needs {self.local + self.shared} bytes of shared memory, of {LARGEST_SHARED}")
        self.phases: dict[str, str] = {}
        """The functions of the phases, by name."""
        text = self.driver(Ptx(self))
        digest = hashlib.sha256("".join([text, *self.phases]).encode()).hexdigest()[:16]
        self.name = f"kernel_{digest}"

    @property
    def tasks(self) -> list[Task]:
        return [task for level in self.levels for task in level]

    @property
    def units(self) -> int:
        """Of the level that has the most."""
        return max((sum(task.units for task in level) for level in self.levels), default=0)

    @property
    def meets(self) -> bool:
        """Whether blocks wait for each other."""
        return len(self.levels) > 1

    def driver(self, target: Target) -> str:
        """What runs the phases; the name is left open."""
        code = target.code
        with code.counted("0", "%times", 1):
            for level in self.levels:
                with target.units(sum(task.units for task in level)) as unit:
                    start = 0
                    for task in level:
                        of_it = code.do(f"icmp sge i32 {unit}, {start}")
                        before_end = code.do(f"icmp slt i32 {unit}, {start + task.units}")
                        with code.when(code.do(f"and i1 {of_it}, {before_end}")):
                            self.unit(target, task, code.do(f"sub i32 {unit}, {start}"))
                        start += task.units
                target.meet()
        return target.finish()

    def unit(self, target: Target, task: Task, unit: str) -> None:
        """The phases of a unit."""
        for item in task.body:
            if isinstance(item, Repeat):
                with target.code.counted("0", str(item.turns), 1) as turn:
                    for phase in item.phases:
                        target.phase(self.named(task, phase), task, unit, turn)
                        target.wait()
            else:
                target.phase(self.named(task, item), task, unit, "0")
                # the next unit's first phase writes to the memory that this one's last has read
                if task.shared or len(task.body) > 1:
                    target.wait()

    def named(self, task: Task, body: str) -> str:
        """The name of the function with a phase's code."""
        given = [f"i64 %a{n}" for n in range(len(task.buffers))]
        given += [f"{SHARED} %local", f"{SHARED} %shared", "ptr %frame", "i32 %unit", "i32 %thread", "i32 %turn"]
        text = f"({', '.join(given)}) alwaysinline {body}"
        name = f"phase_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.phases[name] = f"define internal void @{name}{text}"
        return name

    @property
    def declarations(self) -> dict[str, str]:
        return {name: line for task in self.tasks for name, line in task.declared.items()}


class Target:
    """How a driver loops and waits. `code` is what it has written."""

    BEFORE: str
    """What a module begins with."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.code = Code(Task(0))

    def arguments(self, task: Task, unit: str, thread: str, turn: str, frame: str) -> str:
        given = [f"i64 %b{self.kernel.buffers.index(buffer)}" for buffer in task.buffers]
        memory = [f"{SHARED} %local", f"{SHARED} %shared", f"ptr {frame}"]
        return ", ".join([*given, *memory, f"i32 {unit}", f"i32 {thread}", f"i32 {turn}"])

    def units(self, count: int) -> AbstractContextManager[str]:
        """A loop over the units of a level, shared out to the blocks; the register with the unit."""
        raise NotImplementedError

    def phase(self, name: str, task: Task, unit: str, turn: str) -> None:
        """All threads of the block run a phase."""
        raise NotImplementedError

    def wait(self) -> None:
        """The threads of the block wait for each other."""
        raise NotImplementedError

    def meet(self) -> None:
        """All blocks wait for each other."""
        raise NotImplementedError

    def finish(self) -> str:
        """The function's text, with @NAME for its name."""
        raise NotImplementedError

    def text(self, head: str, entry: list[str]) -> str:
        lines = [*self.code.head, *entry, *self.code.lines]
        return f"{head} {{\nentry:\n" + "\n".join(lines) + "\n  ret void\n}\n"


class Ptx(Target):
    BEFORE = _GRID_BARRIER

    def units(self, count: int) -> AbstractContextManager[str]:
        return self.code.counted("%block", str(count), "%blocks")

    def phase(self, name: str, task: Task, unit: str, turn: str) -> None:
        self.code.line(f"call void @{name}({self.arguments(task, unit, '%thread', turn, '%frame')})")

    def wait(self) -> None:
        self.code.line(f"call void @{_BARRIER}(i32 0)")

    def meet(self) -> None:
        if self.kernel.meets:
            self.code.line("call void @grid_barrier(i64 %barrier, i32 %block, i32 %blocks, i32 %thread)")

    def finish(self) -> str:
        given = ", ".join(f"i64 %b{n}" for n in range(len(self.kernel.buffers)))
        # one block a multiprocessor is enough to be promised: else ptxas saves registers, and spills, for more of them
        limits = f'"nvvm.maxntid"="{THREADS}" "nvvm.minctasm"="1"'
        head = (
            f"define ptx_kernel void @NAME({given}{', ' if given else ''}i64 %barrier, i32 %times) convergent {limits}"
        )
        entry = [
            f"  %frame = alloca [{max(self.kernel.frame, 1)} x i8], align 16",
            f"  %local = getelementptr i8, {SHARED} @NAME_shared, i32 0",
            f"  %shared = getelementptr i8, {SHARED} @NAME_shared, i32 {self.kernel.local}",
            "  %thread = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()",
            "  %block = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()",
            "  %blocks = call i32 @llvm.nvvm.read.ptx.sreg.nctaid.x()",
        ]
        size = max(self.kernel.local + self.kernel.shared, 16)
        shared = f"@NAME_shared = internal addrspace(3) global [{size} x i8] undef, align 16\n"
        return shared + self.text(head, entry)


def module_of(kernels: list[Kernel], target: type[Target]) -> str:
    """A module with these kernels for a target."""
    declared = {name: line for kernel in kernels for name, line in kernel.declarations.items()}
    drivers = {kernel.name: kernel.driver(target(kernel)).replace("@NAME", f"@{kernel.name}") for kernel in kernels}
    phases = {name: text for kernel in kernels for name, text in kernel.phases.items()}
    return "\n".join([target.BEFORE, *declared.values(), *phases.values(), *drivers.values()])


# ------------------------------------------------------------------------------------------------------------- PTX


def architecture(capability: int) -> str:
    """What to compile for on a device of this compute capability: 90 for 9.0."""
    known = [number for number in ARCHITECTURES if number <= capability]
    if not known:
        raise ValueError(f"compute capability {capability / 10}: derived kernels need {ARCHITECTURES[0] / 10} or more")
    return f"sm_{known[-1]}"


@cache
def _machine(arch: str):  # type: ignore[no-untyped-def]
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("nvptx64-nvidia-cuda").create_target_machine(cpu=arch, opt=2)
    # ptxas optimises once more: level 2 takes a third longer, and the registers are the same
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    # a block's threads are the vector
    options.loop_vectorization = options.slp_vectorization = False
    return machine, options, llvm.create_pass_builder(machine, options)


def ptx_of(kernels: list[Kernel], arch: str) -> str:
    """PTX of these kernels, as one module."""
    import llvmlite.binding as llvm

    machine, _, passes = _machine(arch)
    # known when the text is read: what has no alignment of its own gets the target's
    head = f'target datalayout = "{machine.target_data}"\ntarget triple = "nvptx64-nvidia-cuda"\n'
    module = llvm.parse_assembly(head + module_of(kernels, Ptx), llvm.create_context())
    passes.getModulePassManager().run(module, passes)
    return machine.emit_assembly(module)
