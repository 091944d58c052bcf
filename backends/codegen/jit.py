"""Machine code for this processor from LLVM IR: text in, addresses of functions out.

What the settings below were chosen for, by ten loops with an exp and an Adam among them, in one module (a core at 2.4
GHz: 2 ms to parse, 60 to optimise, 70 to emit, 1 to link):
- no interleaving of vector loops: with it the same ten take 205 instead of 135 ms, and only the lightest loops gain.
  A reduction that waits for its own sum asks for it with the metadata `llvm.loop.interleave.count`, which is heeded.
- neither unrolling nor vectors from straight-line code (SLP): 10 ms for nothing where loops are the code.
- level 2 (of 3) for the passes and the emission: 1 is no faster, 3 slower, and 0 in the emission makes slow code.
- one module of many functions: as many modules cost 10 % more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cache

import llvmlite.binding as llvm


class _Compiler:
    """One target, one list of passes and one engine. Nothing is ever freed: the code is called as long as the process
    lives, and the order in which Python would free it crashes."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        # "pic" and JITLink: code and constants lie within reach of each other on every platform; on Windows, not yet
        self.quick, self.machine = (
            target.create_target_machine(*processor, opt=level, reloc="pic", jit=True) for level in (0, 2)
        )
        self.options = llvm.create_pipeline_tuning_options(speed_level=2)
        self.options.loop_vectorization = True
        self.options.slp_vectorization = False
        self.options.loop_interleaving = False
        self.options.loop_unrolling = False
        self.passes = llvm.create_pass_builder(self.machine, self.options)
        self.engine = llvm.create_lljit_compiler(self.machine, use_jit_link=os.name != "nt")
        self.libraries: list[llvm.ResourceTracker] = []

    def compile(self, text: str, names: Sequence[str], optimise: bool) -> dict[str, int]:
        # a context of its own: what the global one learns of types and constants would stay
        module = llvm.parse_assembly(text, llvm.create_context())
        module.triple, module.data_layout = self.machine.triple, str(self.machine.target_data)
        machine = self.machine if optimise else self.quick
        if optimise:
            self.passes.getModulePassManager().run(module, self.passes)
        # its own library: names may come again in another module
        builder = llvm.JITLibraryBuilder().add_object_img(machine.emit_object(module)).add_current_process()
        for name in names:
            builder.export_symbol(name)
        library = builder.link(self.engine, f"module {len(self.libraries)}")
        self.libraries.append(library)
        return {name: library[name] for name in names}


_compiler = cache(_Compiler)
_lock = threading.Lock()
_compiled: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}


def compile_module(text: str, names: Sequence[str], optimise: bool = True) -> dict[str, int]:
    """The addresses of these functions of the module, compiled once. The text needs no triple and no data layout.

    What it calls beyond itself is looked for in the process: memcpy, memset and the C library's mathematics. Without
    `optimise` the text is emitted as it stands, in a tenth of the time: for code that others wait for, not itself.
    """
    key = text, tuple(names)
    with _lock:
        if key not in _compiled:
            _compiled[key] = _compiler().compile(text, names, optimise)
        return dict(_compiled[key])


def target_triple() -> str:
    with _lock:
        return _compiler().machine.triple


def data_layout() -> str:
    with _lock:
        return str(_compiler().machine.target_data)
