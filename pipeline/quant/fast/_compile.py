"""From a kernel to machine code: LLVM compiles it for this processor, once; the object is kept in the cache folder.

An object's name holds a hash of all that shaped it: the sources of this package, LLVM, the processor.  A file appears
under its name when it is whole and begins with its own hash, so processes may compile at the same time; where the
folder cannot be written, the next process compiles again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from pipeline import data
from pipeline.quant.fast._kernel import N_COUNTS, N_POINTERS, Arguments, Build
from pipeline.quant.fast._vector import Code

Function = Callable[..., None]

_SYMBOL = "kernel"
_SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * N_POINTERS, *[ctypes.c_int64] * N_COUNTS)
_DIGEST_BYTES = hashlib.sha256().digest_size
_engines: list[Any] = []
_lock = threading.Lock()  # LLVM's own state is not made for several threads


@dataclass(frozen=True)
class Processor:
    """What to compile for: LLVM's names of it, and how many float32 a register holds."""

    cpu: str
    features: str
    width: int

    @property
    def lanes(self) -> int:
        """How many blocks go side by side: two registers, so that one sum need not wait for the other."""
        return 2 * self.width

    @property
    def name(self) -> str:
        """The instruction set, for people."""
        return {4: "128-bit vectors", 8: "AVX2", 16: "AVX-512"}[self.width]


def host() -> Processor:
    """Describe this machine's processor."""
    found = dict(llvm.get_host_cpu_features())
    width = 16 if found.get("avx512f") and found.get("avx512vl") else 8 if found.get("avx2") else 4
    return Processor(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), width)


def assembly(build: Build, processor: Processor) -> str:
    """Compile a kernel to assembly, to be looked at."""
    with _lock:
        machine = _machine(processor)
        return str(machine.emit_assembly(_module(build, processor, machine)))


def load(label: str, build: Build, processor: Processor, folder: Path | None = None) -> Function:
    """Return a kernel as a function of addresses and counts; calling it lets other threads run.

    Args:
        label: names the kernel, for the file.
        build: writes its code.
        processor: what to compile for.
        folder: where objects are kept; the cache folder by default.
    """
    path = (folder or data.cache_home() / "kernels") / f"{label}-{_key(processor)}.o"
    with _lock:
        code = _read(path)
        if code is None:
            code = _compile(build, processor)
            _write(path, code)
        return _link(code, _machine(processor))


def load_uncached(build: Build, processor: Processor) -> Function:
    """Do the same for code that is not worth keeping."""
    with _lock:
        return _link(_compile(build, processor), _machine(processor))


def is_cached(label: str, processor: Processor, folder: Path | None = None) -> bool:
    """Say whether a kernel need not be compiled."""
    return ((folder or data.cache_home() / "kernels") / f"{label}-{_key(processor)}.o").exists()


def _compile(build: Build, processor: Processor) -> bytes:
    machine = _machine(processor)
    code: bytes = machine.emit_object(_module(build, processor, machine))
    return code


def _machine(processor: Processor) -> Any:
    """Make a new one: whatever it is given to owns it from then on."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=processor.cpu, features=processor.features, opt=3, jit=True)


def _module(build: Build, processor: Processor, machine: Any) -> Any:
    """Write the code and have LLVM read it; nothing is optimized before instructions are chosen, nothing needs it."""
    module = ir.Module(name=_SYMBOL)
    module.triple = machine.triple
    code = Code(module, _SYMBOL, N_POINTERS, N_COUNTS, processor.lanes, processor.width)
    build(code, Arguments.of(code))
    code.finish()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return parsed


def _link(code: bytes, machine: Any) -> Function:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    function = _SIGNATURE(engine.get_function_address(_SYMBOL))
    _engines.append(engine)  # the code lives as long as its engine
    return function


@cache
def _key(processor: Processor) -> str:
    digest = hashlib.sha256(repr((processor, llvmlite.__version__, llvm.llvm_version_info)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    """Return what is kept at *path*; None if nothing is, or not what was written."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    digest, code = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(code).digest() + code)
        temporary.replace(path)
    except OSError:  # a folder that cannot be written costs time only
        with contextlib.suppress(OSError):
            temporary.unlink()
