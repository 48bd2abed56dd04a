"""Adds a window's totals to an entry's sums, on the host and on the calling thread alone.

For every dependency, where s, q, e, v are the window's sums of g, g^2, [|g| > threshold] and its signs:

    grad_sum   += s       events += e      window_sumsq += s * s
    grad_sumsq += q       votes  += v      window_votes += sign(s), 0 for NaN

In one compiled pass where there is a compiler, 60 bytes of memory a dependency; else by numpy in six. No
parallel code of torch: the caller is the ledger's thread, beside a training that has the cores.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradtrace.errors import MismatchError
from gradtrace.kernels.compiled import load

__all__ = ["EntryTotals", "WindowTotals", "add_window", "add_window_reference"]

Array = np.ndarray[Any, Any]


class WindowTotals(NamedTuple):
    """What one window summed, flat, each (N,)."""

    grad_sum: npt.NDArray[np.float32]
    grad_sumsq: npt.NDArray[np.float32]
    events: npt.NDArray[np.int16]
    votes: npt.NDArray[np.int16]


class EntryTotals(NamedTuple):
    """What an entry sums, flat, each (N,)."""

    grad_sum: npt.NDArray[np.float32]
    grad_sumsq: npt.NDArray[np.float32]
    window_sumsq: npt.NDArray[np.float32]
    events: npt.NDArray[np.uint32]
    votes: npt.NDArray[np.int32]
    window_votes: npt.NDArray[np.int32]


_WINDOW = (np.float32, np.float32, np.int16, np.int16)
_ENTRY = (np.float32, np.float32, np.float32, np.uint32, np.int32, np.int32)


class _Sums(ctypes.Structure):
    """`struct sums` of window_into_entry.c."""

    _fields_ = (
        *((f"window_{name}", ctypes.c_void_p) for name in ("sum", "square", "events", "signs")),
        *((name, ctypes.c_void_p) for name in EntryTotals._fields),
        ("size", ctypes.c_int64),
    )


def add_window(entry: EntryTotals, window: WindowTotals) -> None:
    """Add `window` to `entry` in place; the GIL is free meanwhile.

    Raises:
        MismatchError: an array is not flat and whole, of another dtype or of another length.
    """
    _check(entry, _ENTRY, entry.grad_sum.size)
    _check(window, _WINDOW, entry.grad_sum.size)
    function = _compiled()
    if function is None:
        add_window_reference(entry, window)
        return
    addresses = [array.ctypes.data for array in (*window, *entry)]
    function(ctypes.byref(_Sums(*addresses, entry.grad_sum.size)))


def add_window_reference(entry: EntryTotals, window: WindowTotals) -> None:
    """Do what `add_window` does, by numpy."""
    # What overflows is infinity in the ledger, as in the compiled pass.
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(entry.grad_sum, window.grad_sum, out=entry.grad_sum)
        np.add(entry.grad_sumsq, window.grad_sumsq, out=entry.grad_sumsq)
        np.add(entry.events, window.events, out=entry.events, casting="unsafe")
        np.add(entry.votes, window.votes, out=entry.votes)
        work = np.square(window.grad_sum)
        np.add(entry.window_sumsq, work, out=entry.window_sumsq)
        np.sign(window.grad_sum, out=work)
        np.nan_to_num(work, copy=False, nan=0.0)
        np.add(entry.window_votes, work, out=entry.window_votes, casting="unsafe")


def _check(arrays: EntryTotals | WindowTotals, dtypes: tuple[type[np.generic], ...], size: int) -> None:
    named: dict[str, Array] = arrays._asdict()
    for (name, array), dtype in zip(named.items(), dtypes, strict=True):
        if array.dtype != dtype or array.shape != (size,) or not array.flags.c_contiguous:
            raise MismatchError(
                name,
                expected=f"a flat {np.dtype(dtype)} array ({size},)",
                got=f"{array.dtype} {array.shape}",
            )


@cache
def _compiled() -> ctypes._FuncPointer | None:
    library = load(Path(__file__).with_name("window_into_entry.c"))
    if library is None:
        return None
    function = library.gradtrace_add_window
    function.restype = None
    return function
