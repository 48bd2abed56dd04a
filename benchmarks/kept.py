"""Figures that take long, kept as they come: a benchmark that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import installed

from gradtrace.evidence.whole_file import write_whole

__all__ = ["once"]


def once(path: Path, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` returned, now or, under the same settings and versions, before; kept at `path`."""
    asked = json.loads(json.dumps({**settings, "versions": installed("gradtrace", "torch")}))
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["settings"] == asked:
            found: dict[str, Any] = kept["found"]
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({"settings": asked, "found": compute()}, indent=1, allow_nan=False) + "\n"
    write_whole(path, whole.encode(), "figures")
    again: dict[str, Any] = json.loads(whole)["found"]
    return again
