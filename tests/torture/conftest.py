"""Runs of a training that is killed and goes on, each checked against the run that nobody killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import EmptyLedgerError, LedgerNotFoundError
from gradtrace.ledger.commit import Commit, decode_commit
from gradtrace.ledger.commit_store import read_commits
from gradtrace.ledger.format import ACCUMULATORS
from gradtrace.ledger.header import read_header
from gradtrace.ledger.live import live_commits
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger

SERVER = Path(__file__).with_name("fork_server.py")
KILLED = -9


@dataclass(frozen=True)
class Life:
    """One process: what it told, the exit status (-9 when it was killed) and how long it took."""

    told: list[str]
    status: int
    seconds: float

    @property
    def announced(self) -> set[int]:
        return {int(line.split()[1]) for line in self.told if line.startswith("committed ")}


class Nursery:
    """The server that forks lives, and the figures of all of them."""

    def __init__(self) -> None:
        self.lives, self.landings = 0, Counter[str]()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def live(
        self, program: str, folder: Path, after: float | None = None, trap: tuple[str, int] | None = None
    ) -> Life:
        assert self._server.stdin
        assert self._server.stdout
        request = {"program": program, "folder": str(folder), "after": after, "trap": trap}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        self.lives += 1
        return Life(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class Run:
    """A training in a folder of its own, through as many lives as it takes."""

    def __init__(self, nursery: Nursery, program: str, folder: Path, whole: Run | None) -> None:
        folder.mkdir()
        self.folder, self.path = folder, folder / "run.ledger.zarr"
        self.seconds = 0.0
        self._nursery, self._program, self._whole = nursery, program, whole
        self._promised: set[int] = set()

    def live(self, after: float | None = None, trap: tuple[str, int] | None = None) -> bool:
        """Live once, from the newest checkpoint on; check what is left; say whether it was killed."""
        before, resumed_at = self.path.exists(), max(self.checkpoints, default=0)
        life = self._nursery.live(self._program, self.folder, after, trap)
        # Shown by pytest when the test fails.
        print(f"from {resumed_at}, after={after}, trap={trap}: {life.status}, told {', '.join(life.told)}")
        assert life.status in (0, KILLED), (self.folder / "output.txt").read_text()
        if life.status == KILLED:
            self._nursery.landings[self._landing(life, before)] += 1
        self.seconds = life.seconds
        # What lies beyond the checkpoint may be void by now.
        self._promised = {step for step in self._promised if step <= resumed_at} | life.announced
        self.check()
        return life.status == KILLED

    def finish(self) -> None:
        """Live to the end, unkilled, and compare with the run that was never killed."""
        assert not self.live()
        assert self._whole is not None
        self._check_that_no_remains_are_left()
        mine, whole = Ledger.open(self.path), Ledger.open(self._whole.path)
        assert self.pages() == self._whole.pages()
        assert mine.steps == whole.steps
        assert list(mine) == list(whole)
        for name, record in whole.items():
            for total in (*ACCUMULATORS, "opening"):
                assert_same_bits(getattr(mine[name], total), getattr(record, total), f"{name} {total}")
            for fact in ("history", "info", "windows", "steps", "missing", "zero", "nonfinite", "skipped"):
                assert getattr(mine[name], fact) == getattr(record, fact), f"{name} {fact}"

    def go_back(self, step: int) -> None:
        """Forget the checkpoints after this one."""
        for later in self.checkpoints:
            if later > step:
                (self.folder / f"step={later:04}.ckpt").unlink()

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step=")) for path in self.folder.glob("step=*.ckpt"))

    def check(self) -> None:
        """The ledger is readable and whole, keeps its promises, and is the unkilled one up to some entry."""
        try:
            ledger = Ledger.open(self.path)
        except (EmptyLedgerError, LedgerNotFoundError):
            assert not self._promised
            assert not self.checkpoints
            return
        ends = {entry.end for entry in ledger.entries}
        assert max(self._promised, default=0) <= ledger.steps, "an entry whose commit was announced is lost"
        assert set(self.checkpoints) <= ends, "a checkpoint without its entry"
        for record in ledger.values():
            for total in (*ACCUMULATORS, "opening"):
                getattr(record, total)  # raises where a chunk is lost or has another digest
        if self._whole is not None:
            # A life that was killed may be behind with merging, but is nowhere that the other never was.
            history = self._whole.history()
            for mine in self.pages():
                assert mine == history[mine[0], mine[1]]

    def pages(self) -> list[tuple[Any, ...]]:
        """Every live entry with the checksums of its data; where a life began anew says only the layout."""
        storage = LocalStorage(self.path)
        commits = live_commits(read_commits(storage, read_header(storage).run_id))
        return [page(one) for one in commits]

    def history(self) -> dict[tuple[int, int], tuple[object, ...]]:
        """Every entry that was ever committed, also those merged since; of an undisturbed run."""
        lines = (self.folder / "commits.jsonl").read_bytes().splitlines()
        commits = [commit for _, commit in map(decode_commit, lines) if isinstance(commit, Commit)]
        return {(one.entry.begin, one.entry.end): page(one) for one in commits}

    def _landing(self, life: Life, existed: bool) -> str:
        phase = [line for line in life.told if not line.startswith("committed ")][-1]
        if phase in ("starting", "opening"):
            phase = "reopening" if existed else "creating"
        commits = {name.stem for name in self.path.glob("commits/*.json")}
        if any(self.path.glob("**/*.partial")):
            return f"{phase}, an object half put"
        if any(re.match(r"\d", one.name) and one.name not in commits for one in self.path.glob("entries/*")):
            return f"{phase}, an entry half written"
        if any(not (one / "layout.json").exists() for one in self.path.glob("layouts/0*")):
            return f"{phase}, a layout half written"
        return phase

    def _check_that_no_remains_are_left(self) -> None:
        assert not list(self.path.glob("**/*.partial"))
        commits = {name.stem for name in self.path.glob("commits/*.json")}
        entries = {one.name for one in self.path.glob("entries/*") if one.is_dir()}
        assert entries <= commits
        missing = [
            part
            for part in ("layouts", "entries", "commits")
            if not (self.path / part / "zarr.json").exists()
        ]
        assert not missing, "Zarr tools find no group there"


def page(commit: Commit) -> tuple[Any, ...]:
    entry = commit.entry
    return entry.begin, entry.end, entry.windows, dict(entry.details), dict(commit.arrays)


def assert_same_bits(mine: np.ndarray[Any, Any], whole: np.ndarray[Any, Any], what: str) -> None:
    assert (mine.dtype, mine.shape) == (whole.dtype, whole.shape), what
    assert mine.tobytes() == whole.tobytes(), what


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    _figures.append(nursery)
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def whole_run(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a program that nobody kills, made once."""
    made: dict[str, Run] = {}

    def whole(program: str) -> Run:
        if program not in made:
            made[program] = Run(nursery, program, tmp_path_factory.mktemp("whole") / program, None)
            assert not made[program].live()
        return made[program]

    return whole


@pytest.fixture
def new_run(nursery: Nursery, whole_run: Callable[[str], Run], tmp_path: Path) -> Callable[[str], Run]:
    return lambda program: Run(nursery, program, tmp_path / program, whole_run(program))


_figures: list[Nursery] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nursery in _figures:
        terminalreporter.section("kills")
        terminalreporter.line(f"{nursery.landings.total()} kills in {nursery.lives} lives; they landed while")
        for landing, count in nursery.landings.most_common():
            terminalreporter.line(f"{count:5}  {landing}")
