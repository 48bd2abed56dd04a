"""What a case study was run on, and how much memory a model takes while it answers."""

from __future__ import annotations

import gc
import os
import platform
import re
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

import gradtrace as gt

__all__ = ["machine", "peak_bytes"]

_STATUS = Path("/proc/self/status")


def machine() -> dict[str, str | int | None]:
    """Processor, cores, system and Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def peak_bytes(fresh: Callable[[str], nn.Module], name: str, saved: Path, batch: Tensor) -> int | None:
    """The most that a process of its own held while it answered `batch` with the model in `saved`.

    What it held before it had the model (libraries) is taken off. None where the system does not say (it
    takes Linux).
    """
    if not _STATUS.is_file():
        return None
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (fresh, name, saved, batch.numpy(), torch.get_num_threads()))


def _peak(fresh: Callable[[str], nn.Module], name: str, saved: Path, batch: object, threads: int) -> int:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # its libraries are loaded now
        before = _held("VmRSS")
        net = gt.load(fresh(name), saved).eval()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of loading
        for _ in range(3):
            net(torch.as_tensor(batch))
    return _held("VmHWM") - before


def _held(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0
