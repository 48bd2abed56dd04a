"""What each step did to each parameter, in one byte: packed on every rank, joined and counted on one."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradtrace.errors import MismatchError
from gradtrace.kernels.accumulate import EVENT, NONFINITE, SEEN, SKIPPED

__all__ = ["MISSING", "Marks", "counts_of", "joined", "packed", "skips"]

# Beside the flags of the kernel: the optimizer stepped and there was no gradient.
MISSING = 16

Marks: TypeAlias = npt.NDArray[np.uint8]
"""(steps, parameters) uint8: SEEN, EVENT, NONFINITE, SKIPPED and MISSING, or-ed."""


def packed(flags: npt.NDArray[np.int32], missing: Sequence[Sequence[int]]) -> str:
    """Return the marks of one window as text: (steps, parameters) flags, and per step who had no gradient."""
    marks = flags.astype(np.uint8)
    for row, slots in zip(marks, missing, strict=True):
        row[list(slots)] |= MISSING
    return b64encode(zlib.compress(marks.tobytes(), 1)).decode("ascii")


def joined(ranks: Sequence[Sequence[str]], parameters: int) -> Marks:
    """Return the marks of an entry: those of all its windows, or-ed over the ranks that hold a part.

    Raises:
        MismatchError: the ranks recorded different numbers of steps.
    """
    each = [
        np.frombuffer(b"".join(zlib.decompress(b64decode(window)) for window in windows), np.uint8)
        for windows in ranks
    ]
    if len({marks.size for marks in each}) > 1:
        raise MismatchError(
            "the steps that the ranks recorded",
            expected="equally many",
            got=", ".join(str(marks.size // parameters) for marks in each),
            remedy="observe and commit at the same steps on every rank",
        )
    return reduce(np.bitwise_or, each).reshape(-1, parameters)


def counts_of(marks: Marks) -> dict[str, list[int]]:
    """Return the counts of the ledger's details, one number a parameter."""
    seen = (marks & SEEN) > 0
    counted = {
        "steps": seen,
        "missing": ((marks & MISSING) > 0) & ~seen,
        "zero": seen & ((marks & (EVENT | NONFINITE)) == 0),
        "nonfinite": (marks & NONFINITE) > 0,
        "skipped": (marks & SKIPPED) > 0,
    }
    return {name: which.sum(axis=0).tolist() for name, which in counted.items()}


def skips(marks: Marks) -> list[bool]:
    """Return for each step whether the fp16 scaler skipped it."""
    return [bool(row.any()) for row in marks & SKIPPED]
