"""The folder of a saved model: whose it may be, and how a new one is put in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import google_crc32c

from gradtrace.convert.saved_structure import SavedStructure
from gradtrace.errors import GradtraceError, InvalidValueError

__all__ = ["STRUCTURE", "WEIGHTS", "check_target", "crc32c_of", "replacing"]

WEIGHTS = "model.safetensors"
STRUCTURE = "gradtrace.json"


def check_target(target: Path) -> None:
    """Refuse a path that `save` must not take.

    Raises:
        InvalidValueError: no directory is there to hold it, or something that `save` did not write.
    """
    if not target.parent.is_dir():
        raise InvalidValueError(f"path '{target}'", expected="a folder in an existing directory")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.is_dir() and {part.name for part in target.iterdir()} <= {WEIGHTS, STRUCTURE}:
        try:
            SavedStructure.read(target / STRUCTURE)
        except GradtraceError:
            pass
        else:
            return
    raise InvalidValueError(
        f"path '{target}'",
        expected="a new folder, or one that gt.save wrote and nobody added to",
        got="something else",
        remedy="choose another path",
    )


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to write both files into; it takes the place of `target` at the end.

    On an error what was at `target` is there again, and the new folder is gone.
    """
    new, old = (target.with_name(f".{uuid4().hex}.{kind}") for kind in ("tmp", "old"))
    try:
        new.mkdir()
        yield new
        for part in (new / WEIGHTS, new / STRUCTURE, new):
            _fsync(part)
        if target.is_dir():
            target.rename(old)
        new.rename(target)
        _fsync(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        _remove(new)
        _remove(old)


def crc32c_of(path: Path) -> str:
    """The file's crc32c as 8 hex digits."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            value = google_crc32c.extend(value, chunk)
    return f"{value:08x}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Only the files that `save` writes: nothing else is ever deleted."""
    if folder.is_dir():
        for name in (WEIGHTS, STRUCTURE):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
