"""Triton where it is installed, and None where it is not (macOS, Windows): the one place that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = None

__all__ = ["jit", "tl", "triton"]


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`; where Triton is missing, the function as it is, to be named but not launched."""
    return function if triton is None else triton.jit(function)
