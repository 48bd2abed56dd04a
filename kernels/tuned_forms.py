"""Which of a few forms a launch takes on the GPU at hand: timed once for each class of problem, and kept.

The first form is the one that is taken where nothing is timed: in Triton's interpreter, while a CUDA graph is
captured, and in torch's deterministic mode, where results must not depend on what was fast one day. Choices
are kept as JSON in the user's cache folder, in a file named by a digest of the device and the versions;
nothing read there is trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import TypeVar

import torch

from gradtrace.kernels.cache_folder import cache_folder
from gradtrace.kernels.optional_triton import triton

__all__ = ["tuned"]

_log = logging.getLogger(__name__)
_LARGEST = 1 << 20  # bytes of a file
_CHOSEN: dict[tuple[str, str], int] = {}
Form = TypeVar("Form")


def tuned(problem: str, forms: Sequence[Form], run: Callable[[Form], object], device: torch.device) -> Form:
    """The form that took `run` the least time for this class of problem on this device."""
    if len(forms) == 1 or device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return forms[0]
    key = (_name(device), problem)
    number = _CHOSEN.get(key)
    if number is None and torch.cuda.is_current_stream_capturing():
        return forms[0]
    if number is None:
        number = _kept(key, len(forms))
    if number is None:
        times = [_milliseconds(run, form) for form in forms]
        number = times.index(min(times))
        _keep(key, number)
    _CHOSEN[key] = number
    return forms[number]


def _milliseconds(run: Callable[[Form], object], form: Form) -> float:
    try:
        taken: float = triton.testing.do_bench(lambda: run(form), warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return inf
    return taken


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _path(device: str) -> Path:
    told = [device, str(torch.__version__), triton.__version__, _code()]
    return cache_folder() / f"forms-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}.json"


@cache
def _code() -> str:
    """A digest of the kernels: another one makes other choices."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("routed_*_triton.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        found = json.loads(data) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kept(key: tuple[str, str], count: int) -> int | None:
    try:
        number = _read(_path(key[0])).get(key[1])
    except OSError:
        return None
    return number if type(number) is int and 0 <= number < count else None


def _keep(key: tuple[str, str], number: int) -> None:
    """Another process that writes at the same time wins or loses as a whole: what is lost is timed again."""
    try:
        path = _path(key[0])
        text = json.dumps(_read(path) | {key[1]: number}, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        _log.info("the form that was fastest is not kept: %s", error)
