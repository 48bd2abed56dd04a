"""Costs that were measured once, kept as JSON in the user's cache folder; nothing read there is trusted.

A file is named by a digest of all that decides what it holds: the device, dtype, tokens and threads, the
versions, and the code that is timed. What is damaged or of another key is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradtrace import __version__
from gradtrace.errors import GradtraceError, UnreadableFileError
from gradtrace.evidence.whole_file import write_whole
from gradtrace.kernels.cache_folder import cache_folder
from gradtrace.structure.cost import CostTable

__all__ = ["Costs", "cost_key", "kept_costs"]

_log = logging.getLogger(__name__)

_KIND, _FORMAT = "gradtrace costs", "1.0"
_LARGEST = 1 << 20  # bytes; a table takes some two thousand
# What a calibration runs, below the package's folder: a change to any of it may change what it measures.
_TIMED = (
    "convert/fitting.py",
    "convert/routed_linear.py",
    "convert/timing.py",
    "kernels/layer_table.py",
    "kernels/routed_*",
    "kernels/routing.py",
    "structure/cost.py",
)


class Costs(NamedTuple):
    """A table, when it was measured (UTC, ISO 8601), and the file that keeps it, or None."""

    table: CostTable
    measured: str
    path: Path | None


def cost_key(
    device: torch.device, dtype: torch.dtype, tokens: int, threads: int, *, compiled: bool
) -> dict[str, Any]:
    """All that decides what a calibration measures, as JSON."""
    return {
        "device": device.type,
        "name": _name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "threads": threads,
        "compiled": compiled,
        "versions": {"gradtrace": __version__, "torch": str(torch.__version__)},
        "code": _code(),
    }


def kept_costs(key: dict[str, Any], measure: Callable[[], CostTable]) -> Costs:
    """The costs kept under `key`; where there are none of use, those measured now, which are then kept."""
    try:
        path = cache_folder() / f"costs-{hashlib.sha256(_text(key).encode()).hexdigest()[:24]}.json"
    except OSError as error:
        _log.info("measured costs are not kept: %s", error)
        return Costs(measure(), _now(), None)
    if path.exists():
        try:
            return _read(path, key)
        except (GradtraceError, OSError, ValueError, RecursionError) as error:
            _log.info("measuring costs anew, %s cannot be used: %s", path, error)
    table, measured = measure(), _now()
    told = {"key": key, "measured": measured, "table": json.loads(table.to_json())}
    document = {"kind": _KIND, "format": _FORMAT} | told
    try:
        write_whole(path, _text(document).encode("ascii"), "file of costs")
    except GradtraceError as error:
        _log.info("measured costs are not kept: %s", error)
        return Costs(table, measured, None)
    return Costs(table, measured, path)


def _read(path: Path, key: dict[str, Any]) -> Costs:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    document = json.loads(data) if len(data) <= _LARGEST else None
    if not isinstance(document, dict) or document.get("kind") != _KIND or document.get("format") != _FORMAT:
        raise UnreadableFileError("no costs", expected=f'"kind": "{_KIND}", "format": "{_FORMAT}"')
    if document.get("key") != key:
        raise UnreadableFileError("costs of something else")
    measured = document.get("measured")
    table = CostTable.from_json(json.dumps(document.get("table")))
    if not isinstance(measured, str) or table.tokens != key["tokens"]:
        raise UnreadableFileError("costs that contradict themselves")
    return Costs(table, datetime.fromisoformat(measured).isoformat(timespec="seconds"), path)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@cache
def _code() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    # In a zip, for instance, there are no files, and the versions must do.
    for path in sorted(path for pattern in _TIMED for path in package.glob(pattern) if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
