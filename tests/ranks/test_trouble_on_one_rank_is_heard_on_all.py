"""What fails on one rank is one clear error on each; nobody hangs, and what was committed stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

Told = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("troubles")


@pytest.fixture(scope="module")
def told(launch: Callable[..., list[str]], folder: Path) -> Told:
    """For each trouble, the class and the message of the error on either rank."""
    lines = [
        [json.loads(line) for line in text.splitlines() if line.startswith("[")]
        for text in launch(folder, ranks=2, script="troubles.py")
    ]
    return {
        name: [(kind, message) for rank in lines for which, kind, message, _ in rank if which == name]
        for name, *_ in lines[0]
    }


def check_entries(path: Path, steps: int) -> None:
    """Readable, every entry with a gradient of one a step, and open to the next writer."""
    ledger = Ledger.open(path)
    assert ledger.steps == steps
    for record in ledger.values():
        np.testing.assert_array_equal(record.grad_sum, np.full(record.shape, float(steps)))
        np.testing.assert_array_equal(record.events, np.full(record.shape, steps))
    with LedgerWriter.reopen(path) as writer:
        assert writer.end == steps
    spans = {one.stem for one in path.glob("commits/0*.json")}
    assert {one.name for one in path.glob("entries/*") if one.is_dir()} == spans, (
        "a half-written entry stayed"
    )


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        ("unshared", "MismatchError", "does not lead to the ledger that rank 0 writes"),
        ("unlike", "UnsupportedError", "rank 1 has other parameters"),
        ("existing", "LedgerExistsError", "exists and is no readable ledger"),
        ("failing disk", "StorageError", "no space left for this rank"),
        ("alone in error", "GradtraceError", "committed 6 of 7"),
    ],
)
def test_every_rank_raises_the_same_error(told: Told, trouble: str, kind: str, words: str) -> None:
    assert [one[0] for one in told[trouble]] == [kind, kind]
    assert all(words in message for _, message in told[trouble])


def test_a_rank_that_does_not_come_to_commit_is_waited_for_only_so_long(told: Told, folder: Path) -> None:
    (kind, message), other = told["late"]
    assert kind == "RankLostError"
    assert "waited 2 s" in message
    assert other == ("GradtraceError", "this rank went elsewhere")
    check_entries(folder / "late", 9)


@pytest.mark.parametrize(("name", "steps"), [("failing", 8), ("error", 6)])
def test_what_was_committed_before_the_trouble_is_kept_and_nothing_half(
    told: Told, folder: Path, name: str, steps: int
) -> None:
    check_entries(folder / name, steps)


def test_cuts_are_passed_over_on_all_ranks_alike_where_one_disk_is_slow(told: Told, folder: Path) -> None:
    assert told["slow disk"] == [("", ""), ("", "")]
    check_entries(folder / "slow", 60)
    passed: list[Any] = [
        entry.details.get("passed_cuts", 0) for entry in Ledger.open(folder / "slow").entries
    ]
    assert sum(passed) > 0
    assert len(passed) < 15


def test_with_overhead_the_slowest_rank_chooses_which_steps_all_ranks_sample(
    told: Told, folder: Path
) -> None:
    assert told["slow processor"] == [("", ""), ("", "")]
    ledger = Ledger.open(folder / "unlike-speed")
    # Two steps to learn from, then the least power of two k with 0.001 + 0.099 / k <= 0.02.
    first, *rest = ledger.entries
    assert (first.end, first.sampling.stride) == (2, 2)
    assert {entry.sampling.stride for entry in rest} == {8}
    assert all((record.events == 12).all() for record in ledger.values())
