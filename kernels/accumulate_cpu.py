"""`accumulate_` on the CPU: one compiled pass over all parameters and dtypes, on torch's own threads.

The formula is in `gradtrace.kernels.accumulate`, the pass in `accumulate_cpu.c`. It reads a gradient once and
touches the totals once: 28 bytes of memory a dependency in float32, 8 where only events are counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gradtrace.errors import UnsupportedError
from gradtrace.kernels.chunk_table import CHUNK, chunk_table
from gradtrace.kernels.compiled import load
from gradtrace.kernels.openmp import run_in_team
from gradtrace.kernels.totals import GRADIENT_DTYPES, SEEN, SKIPPED, Totals, check_arguments

__all__ = ["accumulate_cpu_", "compiled_pass"]

_KINDS = {dtype: kind for kind, dtype in enumerate(GRADIENT_DTYPES)}
# Below this many elements a team of threads costs more than it saves.
_TEAM_WORTH = 1 << 16


class _Step(ctypes.Structure):
    """`struct step` of accumulate_cpu.c."""

    _fields_ = (
        ("addresses", ctypes.c_void_p),
        ("members", ctypes.c_void_p),
        ("kinds", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("begin", ctypes.c_void_p),
        ("chunks", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("grad_sum", ctypes.c_void_p),
        ("grad_sumsq", ctypes.c_void_p),
        ("events", ctypes.c_void_p),
        ("votes", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("threshold", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("weight", ctypes.c_int32),
        ("claimed", ctypes.c_int64),
    )


@cache
def compiled_pass() -> ctypes._FuncPointer | None:
    """The compiled function, or None where there is none; the first call compiles, in under a second."""
    library = load(Path(__file__).with_name("accumulate_cpu.c"))
    if library is None:
        return None
    function = library.gradtrace_accumulate
    function.restype = None
    return function


def accumulate_cpu_(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    weight: int = 1,
) -> None:
    """Do what `accumulate_` does, in one compiled pass; the GIL is free meanwhile.

    Raises UnsupportedError where `compiled_pass()` is None.
    """
    check_arguments(totals, flags, grads, slots, offsets, threshold, scale, skip, weight)
    function = compiled_pass()
    if function is None:
        raise UnsupportedError("accumulate_cpu_", expected="a compiled pass", got="no C compiler that works")
    if not grads:
        return
    table = chunk_table(
        tuple(grad.numel() for grad in grads), tuple(slots), tuple(offsets), torch.device("cpu")
    )
    with torch.no_grad():
        skipped = skip is not None and skip.item() != 0
        flags.index_fill_(0, table.slots, SKIPPED if skipped else SEEN)
    if skipped:
        return
    # Kept alive until the pass is over.
    flat = [grad if grad.is_contiguous() else grad.detach().contiguous() for grad in grads]
    count = len(flat)
    addresses = (ctypes.c_int64 * count)(*[grad.data_ptr() for grad in flat])
    step = _Step(
        addresses=ctypes.addressof(addresses),
        kinds=_kinds_of(tuple(grad.dtype for grad in flat)).data_ptr(),
        flags=flags.data_ptr(),
        chunks=table.owner.numel(),
        chunk=CHUNK,
        threshold=threshold,
        scale=1.0 if scale is None else scale.float().item(),
        weight=weight,
        claimed=0,
        members=table.members.data_ptr(),
        owner=table.owner.data_ptr(),
        begin=table.begin.data_ptr(),
        **{name: total.data_ptr() for name, total in totals._asdict().items()},
    )
    elements = CHUNK * (table.owner.numel() - count)
    run_in_team(function, step, torch.get_num_threads() if elements >= _TEAM_WORTH else 1)


@lru_cache(maxsize=64)
def _kinds_of(dtypes: tuple[torch.dtype, ...]) -> Tensor:
    return torch.tensor([_KINDS[dtype] for dtype in dtypes], dtype=torch.uint8)
