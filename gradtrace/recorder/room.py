"""How much room there is for a recording: what could be had at most, so that too little is certain."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import torch

from gradtrace.errors import StateError, StorageError
from gradtrace.recorder.needs import Needs, shown_size

__all__ = ["Room", "check_room", "room_at"]

_log = logging.getLogger(__name__)

_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Room:
    """What one rank can have, in bytes; None where that cannot be told.

    Attributes:
        disk: free where the ledger will lie, with what already lies there and may be replaced.
        host: memory that the system could give, swap included.
        device: memory of the GPU that is free, or that torch keeps unused.
    """

    disk: int | None
    host: int | None
    device: int | None


def room_at(path: str, device: torch.device) -> Room:
    """Return the room there is for a ledger at `path` of a model on `device`; never raises."""
    return Room(_disk(path), _host(), _device(device))


def check_room(needs: Needs, rooms: Sequence[Room], path: str) -> None:
    """Compare what is needed with the room of each rank, and log both; a warning where it is tight.

    Raises:
        StorageError: not even the opening balance and one entry fit on the disk.
        StateError: the windows of a rank do not fit into memory.
    """
    disk = rooms[0].disk
    if disk is not None and disk < needs.disk_least:
        failure = StorageError(
            f"the disk has no room for a ledger at {path!r}",
            expected=f"at least {shown_size(needs.disk_least)} for the opening balance and one entry",
            got=f"{shown_size(disk)} free",
            remedy="make room, choose another path, or record less with include=",
        )
        failure.errno = ENOSPC
        raise failure
    for rank, (need, room) in enumerate(zip(needs.ranks, rooms, strict=True)):
        for what, least, free in (
            ("the device", need.device, room.device),
            ("the host", need.host_least, room.host),
        ):
            if free is not None and free < least:
                raise StateError(
                    f"{what} has no memory for the windows of rank {rank}",
                    expected=f"at least {shown_size(least)}",
                    got=f"{shown_size(free)} free",
                    remedy="record less with include= or exclude=, or on more ranks",
                )
    tight = []
    if disk is not None and needs.planned and disk < needs.disk:
        tight.append(f"{shown_size(disk)} on disk")
    for rank, (need, room) in enumerate(zip(needs.ranks, rooms, strict=True)):
        own = f" on rank {rank}" if len(rooms) > 1 else ""
        if room.device is not None and need.device and room.device < need.device + need.watched:
            tight.append(f"{shown_size(room.device)} of device memory{own}")
        if room.host is not None and room.host < need.host:
            tight.append(f"{shown_size(room.host)} of host memory{own}")
    _log.info("the ledger %s needs %s", path, needs)
    if tight:
        _log.warning("the ledger %s needs %s; there is only %s", path, needs, ", ".join(tight))


def _disk(path: str) -> int | None:
    if "://" in path:
        return None
    place = Path(path)
    try:
        free = shutil.disk_usage(next(one for one in (place, *place.absolute().parents) if one.exists())).free
    except (OSError, StopIteration):
        return None
    held = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                held += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return free + held


def _host() -> int | None:
    # Not os.sysconf: what it calls available leaves the page cache out.
    try:
        told = dict(re.findall(r"^(MemAvailable|SwapFree): +(\d+) kB$", _MEMORY.read_text(), re.MULTILINE))
    except OSError:
        return None
    return (
        1024 * (int(told["MemAvailable"]) + int(told.get("SwapFree", 0))) if "MemAvailable" in told else None
    )


def _device(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
