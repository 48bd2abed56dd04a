"""Torch's own thread pool, for compiled code: a second OpenMP runtime would fight with it for the cores.

Compiled code is run by `GOMP_parallel`, the entry that gcc's runtime has and those of LLVM and Intel have too
(on Linux), of the runtime that torch has loaded. So it links with none.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

__all__ = ["run_in_team"]

_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")
_forked = False


def run_in_team(function: ctypes._FuncPointer, argument: ctypes.Structure, threads: int) -> None:
    """Call `function(&argument)` once on each of `threads` threads, or on fewer, and wait for all.

    In a forked process, and where torch's runtime is not found, that is one thread.
    """
    parallel = None if threads < 2 or _forked else _parallel()
    if parallel is None:
        function(ctypes.byref(argument))
    else:
        parallel(function, ctypes.byref(argument), threads, 0)


@cache
def _parallel() -> Callable[..., None] | None:
    try:
        mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:
        return None
    paths = [path for path in mapped if _RUNTIME.search(path)]
    # Other packages bring runtimes along: torch's is the one that lies beside it, or the only one.
    beside = tuple(os.path.dirname(torch.__file__) + end for end in ("/", ".libs/"))
    paths = [path for path in paths if path.startswith(beside)] or paths
    if len(paths) != 1:
        return None
    try:
        parallel = ctypes.CDLL(paths[0]).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.restype = None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return parallel


def _after_fork() -> None:
    # The threads of the parent's team are not there, and gcc's runtime would wait for them.
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
