"""Real processes, forked, that find each other through a file: no port to be free, none left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.ledger.reader import Ledger

HERE = Path(__file__).parent


class Nursery:
    """The server that forks ranks."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def live(
        self, *arguments: object, ranks: int, script: str = "training.py", modules: Sequence[str] = ()
    ) -> list[tuple[int, str]]:
        """Run a script of this folder on that many ranks; returns each one's exit status and output."""
        assert self._server.stdin
        assert self._server.stdout
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / f"output-{rank}" for rank in range(ranks)]
            request = {
                "script": str(HERE / script),
                "modules": modules,
                "arguments": [
                    [f"{folder}/store", *map(str, (rank, ranks, *arguments))] for rank in range(ranks)
                ],
                "outputs": [str(output) for output in outputs],
                "patience": 200,
            }
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            statuses = json.loads(self._server.stdout.readline())
            told = [output.read_text() if output.exists() else "" for output in outputs]
        return list(zip(statuses, told, strict=True))

    def launch(self, *arguments: object, **options: Any) -> list[str]:
        """Do as `live`; all ranks must end well. Returns what each printed."""
        ended = self.live(*arguments, **options)
        assert all(status == 0 for status, _ in ended), ended
        return [text for _, text in ended]

    def close(self) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def check_equal(one: Ledger, two: Ledger) -> None:
    """Counts exactly, sums within the float32 summation error of so many steps."""
    assert (list(one), one.steps, one.accumulators) == (list(two), two.steps, two.accumulators)
    for name, record in one.items():
        other = two[name]
        facts = ("info", "windows", "steps", "missing", "zero", "nonfinite", "skipped", "history")
        assert {fact: getattr(record, fact) for fact in facts} == {
            fact: getattr(other, fact) for fact in facts
        }, name
        for count in ("events", "votes", "window_votes"):
            np.testing.assert_array_equal(getattr(record, count), getattr(other, count), f"{name} {count}")
        np.testing.assert_array_equal(record.opening, other.opening, name)
        on_request = [total for total in ("decoy_sum", "grad_weight") if total in one.accumulators]
        for total in ("grad_sum", "grad_sumsq", "window_sumsq", *on_request):
            mine, theirs = getattr(record, total), getattr(other, total)
            slack = 1e-6 * one.steps * float(np.abs(mine).max(initial=1e-3))
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=slack, err_msg=f"{name} {total}")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def live(nursery: Nursery) -> Callable[..., list[tuple[int, str]]]:
    return nursery.live


@pytest.fixture(scope="session")
def launch(nursery: Nursery) -> Callable[..., list[str]]:
    return nursery.launch


@pytest.fixture(scope="session")
def check() -> Callable[[Ledger, Ledger], None]:
    return check_equal


@pytest.fixture(scope="session")
def recorded(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder in which a kind of training on that many ranks left its ledgers; each is run once."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, ranks: int) -> Path:
        if (kind, ranks) not in made:
            made[kind, ranks] = tmp_path_factory.mktemp(f"{kind}-{ranks}")
            nursery.launch(kind, made[kind, ranks], ranks=ranks)
        return made[kind, ranks]

    return folder
