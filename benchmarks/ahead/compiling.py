"""Compiles a kernel for a GPU that is not there, and reads what its programs take of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from ahead.variants import Variant
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

__all__ = ["Usage", "cuobjdump", "usage_of"]


@dataclass(frozen=True)
class Usage:
    """What each program of a compiled kernel takes."""

    registers: int
    """For each thread; on AMD vector registers."""
    shared: int
    """Bytes of shared memory."""
    spilled: int
    """Bytes of stack and local memory for each thread, on AMD registers and bytes: what should be none."""


def cuobjdump() -> Path | None:
    """NVIDIA's reader of binaries, where this Triton package carries it."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return path if path.exists() else None


def usage_of(variant: Variant, target: GPUTarget) -> Usage:
    """Compile it; raises LookupError where the tools to read the result are not there."""
    signature = dict(variant.signature) | dict.fromkeys(variant.constants, "constexpr")
    names = list(variant.kernel.arg_names)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature, dict(variant.constants), aligned)
    options = {"num_warps": variant.warps, "num_stages": _stages(variant, target)}
    result = triton.compile(source, target=target, options=options)
    return _amd(result, target) if target.backend == "hip" else _nvidia(result, target)


def _stages(variant: Variant, target: GPUTarget) -> int:
    # As Triton itself does on AMD, whose shared memory is a third of NVIDIA's.
    return min(variant.stages, 2) if target.backend == "hip" else variant.stages


def _amd(result: Any, target: GPUTarget) -> Usage:
    text = result.asm["amdgcn"]
    assert result.asm["hsaco"][:4] == b"\x7fELF"
    assert target.arch in text
    spills = re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s*(\d+)", text)
    assert len(spills) == 3
    (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", text)
    return Usage(int(registers), result.metadata.shared, sum(map(int, spills)))


def _nvidia(result: Any, target: GPUTarget) -> Usage:
    assert f".target sm_{target.arch}" in result.asm["ptx"]
    tool = cuobjdump()
    if tool is None:
        raise LookupError("this Triton package has no cuobjdump to read spills with")
    with TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(result.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", said)
    return Usage(int(registers), result.metadata.shared, int(stack) + int(local))
