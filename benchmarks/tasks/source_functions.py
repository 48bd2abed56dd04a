"""The functions of Python's standard library, parsed: what two of the tasks are about."""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

__all__ = ["Function", "functions"]

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


class Function(NamedTuple):
    """`home`: the top-level package or module it is from; `held_out`: every fourth, by its source."""

    home: str
    source: bytes
    node: ast.FunctionDef
    held_out: bool


@cache
def functions() -> tuple[Function, ...]:
    """Every function and method with at least 64 bytes of source, each source once, in order of path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[bytes, Function] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT.intersection(name.parts):
            continue
        whole = path.read_bytes()
        try:
            tree = ast.parse(whole)
        except (SyntaxError, ValueError):
            continue  # templates that are no Python
        lines = whole.splitlines(keepends=True)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                source = b"".join(lines[node.lineno - 1 : node.end_lineno]).strip()
                if len(source) >= 64:
                    home = name.parts[0].removesuffix(".py")
                    found.setdefault(source, Function(home, source, node, crc32(source) % 4 == 0))
    return tuple(found.values())
