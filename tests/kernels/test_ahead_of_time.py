"""Every kernel compiles, without a GPU, for the GPUs it is meant for, and keeps its values in registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gradtrace.kernels.accumulate_triton import _PARTS, _SIZE, _WARPS, _accumulate_kernel
from gradtrace.kernels.routed_linear import _DEPTH, _routed_linear_kernel

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = pytest.mark.parametrize(
    "target",
    [
        pytest.param(GPUTarget("cuda", 80, 32), id="sm_80"),
        pytest.param(GPUTarget("cuda", 90, 32), id="sm_90"),
        pytest.param(GPUTarget("hip", "gfx942", 64), id="gfx942"),
    ],
)
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compile, rather than find what an earlier run compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def compiled(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], target: GPUTarget, warps: int
) -> Any:
    signature = pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=target, options={"num_warps": warps})


def check_binary(result: Any, target: GPUTarget, folder: Path) -> None:
    """Assert that there is a binary for the target and that it spills no register."""
    if target.backend == "hip":
        assert result.asm["hsaco"][:4] == b"\x7fELF"
        text = result.asm["amdgcn"]
        assert target.arch in text
        spills = re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s*(\d+)", text)
        assert spills == ["0", "0", "0"]
        return
    assert f".target sm_{target.arch}" in result.asm["ptx"]
    binary = folder / "kernel.cubin"
    binary.write_bytes(result.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton package has no cuobjdump to read spills with")
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"STACK:(\d+).*LOCAL:(\d+)", usage) == [("0", "0")]


@TARGETS
@pytest.mark.parametrize(
    ("dtype", "extras", "threshold", "weight"),
    [
        ("fp32", False, 0.0, 1),
        ("fp32", True, 0.25, 8),
        ("fp32", False, 0.0, 0),
        ("bf16", True, 0.0, 1),
        ("fp16", True, 0.0, 1),
        ("fp64", True, 0.1, 8),
    ],
)
def test_accumulate_compiles(
    target: GPUTarget, dtype: str, extras: bool, threshold: float, weight: int, tmp_path: Path
) -> None:
    pointers = {
        "addresses": "*i64", "members": "*i64", "owner": "*i32", "begin": "*i64",
        "grad_sum": "*fp32", "grad_sumsq": "*fp32", "events": "*i16", "votes": "*i16",
        "flags": "*i32", "scale": "*fp32", "skip": "*fp32",
    }  # fmt: skip
    constants = {
        "DTYPE": getattr(triton.language, DTYPES[dtype]),
        "WIDE": triton.language.float64 if dtype == "fp64" else triton.language.float32,
        "THRESHOLD": threshold,
        "WEIGHT": weight,
        "HAS_SCALE": extras,
        "HAS_SKIP": extras,
        "PARTS": _PARTS,
        "SIZE": _SIZE,
    }
    check_binary(compiled(_accumulate_kernel, pointers, constants, target, _WARPS), target, tmp_path)


@TARGETS
@pytest.mark.parametrize(
    ("dtype", "precision"), [("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee"), ("fp16", "ieee")]
)
@pytest.mark.parametrize(("sides", "bias"), [((16, 16), True), ((64, 64), False)], ids=str)
def test_routed_linear_compiles(
    target: GPUTarget, dtype: str, precision: str, sides: tuple[int, int], bias: bool, tmp_path: Path
) -> None:
    pointers = {
        "x": f"*{dtype}", "weight": f"*{dtype}", "bias": f"*{dtype}", "inputs": "*i64", "columns": "*i64",
        "z": f"*{dtype}" if bias else "*fp32", "tiles": "*i64",
        "tokens": "i32", "x_row": "i64", "x_column": "i64", "z_row": "i64",
    }  # fmt: skip
    constants = {
        "HAS_BIAS": bias,
        "WIDEN": False,
        "PRECISION": precision,
        "TOKENS": sides[0],
        "ROWS": sides[1],
        "DEPTH": _DEPTH,
    }
    check_binary(compiled(_routed_linear_kernel, pointers, constants, target, 4), target, tmp_path)


@TARGETS
def test_routed_linear_compiles_for_one_token_of_contiguous_x(target: GPUTarget, tmp_path: Path) -> None:
    """Triton turns arguments that are 1 into constants."""
    pointers = {
        "x": "*fp32", "weight": "*fp32", "bias": "*fp32", "inputs": "*i64", "columns": "*i64",
        "z": "*fp32", "tiles": "*i64", "x_row": "i64", "z_row": "i64",
    }  # fmt: skip
    constants = {
        "tokens": 1, "x_column": 1, "HAS_BIAS": True, "WIDEN": False, "PRECISION": "ieee",
        "TOKENS": 16, "ROWS": 64, "DEPTH": _DEPTH,
    }  # fmt: skip
    check_binary(compiled(_routed_linear_kernel, pointers, constants, target, 4), target, tmp_path)
