"""The folder for what is made once a machine and kept: compiled kernels, measured costs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/gradtrace or ~/.cache/gradtrace, made if need be; OSError where others could write."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "gradtrace"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{folder} is not a folder")
    # Windows keeps a user's folders from others by itself, and has no such numbers.
    if hasattr(os, "geteuid"):
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid != os.geteuid() or others_write:
            raise PermissionError(f"{folder} is not a folder that only this user can write to")
    return folder
