from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError
from gradtrace.ledger.format import Layout, ParameterInfo, Piece
from gradtrace.recorder.decoys import Decoys, signs_of

SHAPES = {"wide": (3, 301), "deep": (2, 5, 7), "bias": (9,), "scalar": ()}


class Sums(nn.Module):
    """Parameters whose gradients are what `pull` says."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))

    def pull(self, step: int) -> dict[str, torch.Tensor]:
        """Multiples of 1/64: sums of them are exact in float32."""
        draw = torch.Generator().manual_seed(step)
        return {name: torch.randint(-64, 65, shape, generator=draw) / 64 for name, shape in SHAPES.items()}


def record(path: Path, begin: int = 0, end: int = 20, **told: Any) -> None:
    model = Sums()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    told = {"window_steps": 4, "entry_steps": 8, "decoys": True} | told
    with gt.Recorder(model, path, **told) as recorder:
        for step in range(begin, end):
            for name, pull in model.pull(step).items():
                getattr(model, name).grad = pull
            recorder.observe(optimizer)


def signs(name: str, end: int) -> np.ndarray[Any, Any]:
    """From the formula in the format's document: Philox with the name and the window's end as its key."""
    from hashlib import sha256

    key = np.array([int.from_bytes(sha256(name.encode()).digest()[:8], "little"), end], np.uint64)
    size = int(np.prod(SHAPES[name]))
    words = np.random.Philox(key=key).random_raw(size // 64 + 4)
    bits = [int(word) >> bit & 1 for word in words for bit in range(64)]
    return (1 - 2 * np.array(bits[:size])).reshape(SHAPES[name])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("merge", [True, False])
def test_decoys_are_window_sums_with_the_signs_of_the_document(
    name: str, merge: bool, tmp_path: Path
) -> None:
    record(tmp_path / "run", merge=merge)
    windows = [range(begin, begin + 4) for begin in range(0, 20, 4)]
    sums = [sum(Sums().pull(step)[name].double().numpy() for step in window) for window in windows]
    expected = sum(signs(name, 4 * k + 4) * total for k, total in enumerate(sums))
    got = gt.Ledger.open(tmp_path / "run")[name].decoy_sum
    np.testing.assert_array_equal(got, expected)


def test_a_resumed_run_has_the_decoys_of_an_unbroken_one(tmp_path: Path) -> None:
    record(tmp_path / "whole")
    record(tmp_path / "parts", 0, 15)
    record(tmp_path / "parts", 8, 20, mode="append", resume_at=8)
    whole, parts = (gt.Ledger.open(tmp_path / name) for name in ("whole", "parts"))
    for name in SHAPES:
        np.testing.assert_array_equal(whole[name].decoy_sum, parts[name].decoy_sum)


@pytest.mark.parametrize(("begin", "count"), [(0, 1), (255, 2), (256, 300), (1, 1023), (700, 0)])
def test_a_part_has_the_signs_of_the_whole(begin: int, count: int) -> None:
    np.testing.assert_array_equal(
        signs_of("w", 32, begin, count), signs_of("w", 32, 0, 1100)[begin : begin + count]
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shard_has_the_signs_of_its_place(axis: int) -> None:
    shape = (4, 6, 10)
    info = ParameterInfo("w", shape, "float32", module="", module_class="M", role="other", orientation="")
    cut = shape[axis] // 2
    first = tuple(cut if i == axis else side for i, side in enumerate(shape))
    start = tuple(cut if i == axis else 0 for i in range(3))
    second = tuple(side - cut if i == axis else side for i, side in enumerate(shape))
    layout = Layout((info,), ((Piece(0, 5, (0, 0, 0), first),), (Piece(0, 0, start, second),)))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    whole = np.zeros(values.size, np.float32)
    Decoys(Layout.whole([info]), 0).add(whole, values.reshape(-1), 64)
    for rank, pieces in enumerate(layout.ranks):
        out = np.zeros(layout.size(rank), np.float32)
        flat = np.zeros(layout.size(rank), np.float32)
        at = slice(pieces[0].offset, None)
        flat[at] = values[pieces[0].box].reshape(-1)
        Decoys(layout, rank).add(out, flat, 64)
        np.testing.assert_array_equal(out[at], whole.reshape(shape)[pieces[0].box].reshape(-1))


def test_coins_are_fair_and_differ_between_windows_parameters_and_neighbours() -> None:
    size = 1 << 18
    one = 1 - 2.0 * signs_of("w", 32, 0, size)
    for other in (np.ones(size), signs_of("w", 64, 0, size), signs_of("v", 32, 0, size), np.roll(one, 1)):
        centred = other if other.min() < 0 or other.max() == other.min() else 1 - 2.0 * other
        assert abs(np.mean(one * centred)) < 5 / np.sqrt(size)


def test_they_are_refused_where_there_are_none(tmp_path: Path) -> None:
    record(tmp_path / "run", decoys=False)
    with pytest.raises(UnknownNameError, match="Record with decoys=True"):
        _ = gt.Ledger.open(tmp_path / "run")["wide"].decoy_sum
    with pytest.raises(MismatchError, match=r"got decoy_sum.*decoys="):
        record(tmp_path / "run", 20, 24, mode="append")
    with pytest.raises(InvalidValueError, match="decoys: expected True or False"):
        record(tmp_path / "other", decoys="yes")
