"""A small file that is written whole or not at all, at a path that is checked first."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from uuid import uuid4

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.storage import surfacing

__all__ = ["checked_path", "write_whole"]


def checked_path(path: object, what: str) -> Path:
    """`path` as a Path; `what` names it in the error.

    Raises:
        InvalidValueError: what no file can be called: no text, empty, a NUL byte, half a character.
    """
    text = os.fspath(path) if isinstance(path, str | PathLike) else None
    try:
        possible = isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise InvalidValueError(what, expected="a path on a local disk", got=repr(path)[:80])
    return Path(str(text))


def write_whole(path: str | PathLike[str], data: bytes, what: str) -> None:
    """Write to a temporary sibling, then put it at `path` in one step; a file that is there is replaced.

    Raises:
        InvalidValueError: `path` is no file in an existing directory.
        StorageError: the disk failed; what was at `path` is still there.
    """
    target = checked_path(path, what)
    with surfacing(f"writing {target}"):
        if target.is_dir() or not target.parent.is_dir():
            raise InvalidValueError(
                f"{what} '{target}'",
                expected="a file in an existing directory",
                got="a directory" if target.is_dir() else f"no directory '{target.parent}'",
            )
        temporary = target.with_name(f".{uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
