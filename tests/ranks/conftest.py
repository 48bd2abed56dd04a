"""Real processes that find each other through a file: no port to be free, and all ended with the test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradtrace.ledger.reader import Ledger


def lived(*arguments: object, ranks: int, script: str = "training.py") -> list[tuple[int, str]]:
    """Run a script of this folder on that many ranks; returns each one's exit status and what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    Path(__file__).with_name(script),
                    f"{folder}/store",
                    *map(str, (rank, ranks, *arguments)),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for rank in range(ranks)
        ]
        try:
            told = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def launched(*arguments: object, ranks: int, script: str = "training.py") -> list[str]:
    """Do as `lived`; all ranks must end well. Returns what each printed."""
    ended = lived(*arguments, ranks=ranks, script=script)
    assert all(status == 0 for status, _ in ended), ended
    return [text for _, text in ended]


def check_equal(one: Ledger, two: Ledger) -> None:
    """Counts exactly, sums within the float32 summation error of so many steps."""
    assert (list(one), one.steps) == (list(two), two.steps)
    for name, record in one.items():
        other = two[name]
        facts = ("info", "windows", "steps", "missing", "zero", "nonfinite", "skipped", "history")
        assert {fact: getattr(record, fact) for fact in facts} == {
            fact: getattr(other, fact) for fact in facts
        }, name
        for count in ("events", "votes", "window_votes"):
            np.testing.assert_array_equal(getattr(record, count), getattr(other, count), f"{name} {count}")
        np.testing.assert_array_equal(record.opening, other.opening, name)
        for total in ("grad_sum", "grad_sumsq", "window_sumsq"):
            mine, theirs = getattr(record, total), getattr(other, total)
            slack = 1e-6 * one.steps * float(np.abs(mine).max(initial=1e-3))
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=slack, err_msg=f"{name} {total}")


@pytest.fixture(scope="session")
def live() -> Callable[..., list[tuple[int, str]]]:
    return lived


@pytest.fixture(scope="session")
def launch() -> Callable[..., list[str]]:
    return launched


@pytest.fixture(scope="session")
def check() -> Callable[[Ledger, Ledger], None]:
    return check_equal


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder in which a kind of training on that many ranks left its ledgers; each is run once."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, ranks: int) -> Path:
        if (kind, ranks) not in made:
            made[kind, ranks] = tmp_path_factory.mktemp(f"{kind}-{ranks}")
            launched(kind, made[kind, ranks], ranks=ranks)
        return made[kind, ranks]

    return folder
