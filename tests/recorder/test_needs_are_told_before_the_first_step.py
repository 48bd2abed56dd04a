"""Before its first step a recording says what it needs; it begins only if that can be had at all."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradtrace.errors import GradtraceError, InvalidValueError, StateError, StorageError
from gradtrace.ledger.format import Layout, ParameterInfo, Piece
from gradtrace.ledger.inputs import InputInfo
from gradtrace.ledger.reader import Ledger
from gradtrace.recorder import stream
from gradtrace.recorder.entry import OpenEntry
from gradtrace.recorder.needs import Needs, RankNeeds, needs_of, shown_size
from gradtrace.recorder.recorder import Recorder
from gradtrace.recorder.room import Room, check_room, room_at
from gradtrace.recorder.window import DeviceWindow


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under back-pressure entries grow longer by design; here the machine's load must decide nothing."""
    monkeypatch.setattr(stream, "_GRACE", 3600.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


PLENTY = Room(10**18, 10**18, 10**18)
CPU = torch.device("cpu")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))


def train(net: nn.Module, recorder: Recorder, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        recorder.observe(optimizer)
        optimizer.step()


def stored_bytes(folder: Path) -> int:
    """Of the arrays alone: chunks without their checksum."""
    return sum(file.stat().st_size - 4 for file in folder.rglob("c/*"))


@pytest.mark.parametrize("below", [(), ("positions", "inputs", "gram"), ("positions", "samples")])
def test_what_is_needed_on_disk_is_what_lies_there(tmp_path: Path, below: tuple[Any, ...]) -> None:
    path, net = tmp_path / "run.ledger.zarr", model()
    with Recorder(net, path, window_steps=2, entry_steps=4, below=below, below_every=1) as recorder:
        train(net, recorder, 4)
    needs = recorder.needs
    assert needs is not None
    assert needs.opening == stored_bytes(path / "layouts") == 4 * 58
    assert needs.entry == stored_bytes(path / "entries")
    assert needs.disk_least == needs.opening + needs.entry


@pytest.mark.parametrize("merge", [True, False])
def test_the_entries_that_are_left_are_foretold(tmp_path: Path, merge: bool) -> None:
    path, net = tmp_path / "run.ledger.zarr", model()
    with Recorder(net, path, window_steps=2, entry_steps=2, merge=merge, planned_steps=49) as recorder:
        train(net, recorder, 49)
    needs, left = recorder.needs, len(Ledger.open(path).entries)
    assert needs is not None
    assert needs.planned
    assert needs.entries == left
    assert needs.disk == needs.opening + (left + 1) * needs.entry
    assert (left == 25) is not merge


def test_host_memory_is_that_of_the_windows_and_the_open_entry() -> None:
    layout = Layout.whole([info("a", 6, 7), info("b", 5)])
    needs = needs_for(layout)
    window = DeviceWindow(47, 32, 2, CPU)
    buffers = [window.open(), window._free.get()]
    tensors = [tensor for one in buffers for tensor in (*one.totals, one.flags)]
    entry = OpenEntry(0, 47)
    held = sum(tensor.nbytes for tensor in tensors) + sum(array.nbytes for array in entry.arrays.values())
    assert needs.ranks[0].host_least == held + 4 * 47  # what numpy works in where nothing is compiled
    assert needs.ranks[0].device == 0


def test_a_gpu_holds_one_window_and_a_watched_step() -> None:
    layout = Layout.whole([info("a.weight", 6, 7)], [InputInfo("a", 7, 1)])
    needs = needs_for(layout, on_cuda=True, below=("position_sumsq", "position_support", "input_gram"))
    assert needs.ranks[0].device == 12 * 42 + 4 * 32
    assert needs.ranks[0].watched == 4 * (2 * 42 + 49)


def test_each_rank_needs_memory_for_its_own_share() -> None:
    layout = Layout((info("a", 6, 7),), ((Piece(0, 0, (0, 0), (1, 7)),), (Piece(0, 0, (1, 0), (5, 7)),)))
    whole, needs = needs_for(Layout.whole((info("a", 6, 7),))), needs_for(layout)
    assert (needs.opening, needs.entry) == (whole.opening, whole.entry)
    assert [one.host_least for one in needs.ranks] == [
        2 * (12 * size + 4 * 32) + 28 * size for size in (7, 35)
    ]
    rooms = [PLENTY, replace(PLENTY, host=needs.ranks[1].host_least - 1)]
    with pytest.raises(StateError, match="the host has no memory for the windows of rank 1"):
        check_room(needs, rooms, "run.ledger.zarr")


@pytest.mark.parametrize(
    ("room", "error", "words"),
    [
        (
            replace(PLENTY, disk=1623),
            StorageError,
            "expected at least 1.62 kB .*, got 1.62 kB free. Make room",
        ),
        (replace(PLENTY, host=100), StateError, "the host has no memory .* got 100 B free. Record less"),
    ],
)
def test_what_cannot_fit_is_an_error_and_nothing_is_made(
    tmp_path: Path, room: Room, error: type[GradtraceError], words: str
) -> None:
    path, net = tmp_path / "run.ledger.zarr", model()
    with Recorder(net, path, on_error="warn") as recorder:
        recorder._look_for_room = lambda where, device: room
        for _ in range(2):
            with pytest.raises(error, match=words):
                train(net, recorder, 1)
        assert not path.exists()
        recorder._look_for_room = lambda where, device: replace(PLENTY, disk=1624)
        train(net, recorder, 1)
    assert Ledger.open(path).steps == 1


def test_a_gpu_without_room_for_a_window_is_an_error() -> None:
    needs = needs_for(Layout.whole([info("a", 6, 7)]), on_cuda=True)
    room = replace(PLENTY, device=needs.ranks[0].device - 1)
    with pytest.raises(StateError, match="the device has no memory"):
        check_room(needs, [room], "run.ledger.zarr")


NEEDS = Needs(100, 1000, 7, 5000, True, (RankNeeds(50, 5, 300, 700),))


@pytest.mark.parametrize(
    ("needs", "room", "said"),
    [
        (NEEDS, Room(8100, 700, 55), None),
        (NEEDS, Room(None, None, None), None),
        (NEEDS, Room(8099, 700, 55), "there is only 8.1 kB on disk"),
        (NEEDS, Room(8100, 699, 54), "there is only 54 B of device memory, 699 B of host memory"),
        # Nobody knows how long that run will be.
        (replace(NEEDS, planned=False), Room(8099, 700, 55), None),
    ],
)
def test_what_may_not_fit_is_a_warning(
    needs: Needs, room: Room, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        check_room(needs, [room], "run.ledger.zarr")
    info, *warnings = caplog.records
    assert info.getMessage() == f"the ledger run.ledger.zarr needs {needs}"
    assert [said in one.getMessage() for one in warnings if said] == [True] * (said is not None)
    assert len(warnings) == (said is not None)


def test_needs_read_as_one_line() -> None:
    assert str(NEEDS) == (
        "8.1 kB of storage after 5,000 steps (7 entries of 1 kB), 50 B of device memory, 700 B of host "
        "memory; in watched steps 5 B more"
    )


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_999, "1 MB"), (1_340_000_000, "1.34 GB")],
)
def test_sizes_are_shown_in_three_digits(size: int, shown: str) -> None:
    assert shown_size(size) == shown


def test_room_is_looked_for_where_the_ledger_will_be(tmp_path: Path) -> None:
    empty = room_at(str(tmp_path / "not" / "yet" / "there"), CPU)
    assert empty.disk is not None
    assert empty.disk > 0
    assert empty.device is None
    # What lies there already may be replaced; a sparse file is large at once.
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "old", "wb") as file:
        file.truncate(2**43)
    assert (room_at(str(tmp_path / "run"), CPU).disk or 0) >= 2**43
    assert room_at("s3://bucket/run.ledger.zarr", CPU).disk is None


@pytest.mark.parametrize("planned", [0, -1, 1.5, True])
def test_planned_steps_are_a_number_of_steps(tmp_path: Path, planned: Any) -> None:
    with pytest.raises(InvalidValueError, match="planned_steps"):
        Recorder(model(), tmp_path / "run.ledger.zarr", planned_steps=planned)


def info(name: str, *shape: int) -> ParameterInfo:
    return ParameterInfo(
        name, shape, "float32", module="", module_class="Linear", role="weight", orientation=""
    )


def needs_for(layout: Layout, *, on_cuda: bool = False, below: tuple[str, ...] = ()) -> Needs:
    return needs_of(
        layout, below, window_steps=32, entry_steps=512, planned_steps=None, merge=True, on_cuda=on_cuda
    )
