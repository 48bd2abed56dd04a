"""A training killed with SIGKILL loses nothing that it announced, and resumed it leaves the same ledger.

`make test` runs a few of the kills, `make torture` several hundred. A seed that failed is tried again with
`GRADTRACE_SEED=<the number in the test's name> pytest tests/torture -k random`.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")

SEED = int(os.environ.get("GRADTRACE_SEED", "0"))
# A seed also shifts the operations.
# How many runs are killed at random moments, and at every how many-th operation on the disk the others are.
PLAIN_RUNS, LIGHTNING_RUNS, STRIDE = (16, 10, 2) if os.environ.get("GRADTRACE_TORTURE") else (1, 1, 40)
KILLS = 4


@pytest.mark.parametrize("operation", range(3 + SEED % STRIDE, 123, STRIDE))
def test_killed_while_the_ledger_begins(new_run: Any, operation: int) -> None:
    # Its creation, the first layout, the first two entries.
    run = new_run("plain")
    assert run.live(trap=("opening", operation))
    run.finish()


@pytest.mark.parametrize("operation", range(9 + SEED % STRIDE, 79, STRIDE))
def test_killed_while_it_goes_back_to_its_checkpoint(new_run: Any, operation: int) -> None:
    # Removing the remains of a half-written entry, voiding what lies after step 12, another layout, an entry.
    run = new_run("plain")
    assert run.live(trap=("committed 12", 80))
    assert run.live(trap=("opening", operation))
    run.finish()


@pytest.mark.parametrize("operation", range(2 + SEED % STRIDE, 52, STRIDE))
def test_killed_while_a_commit_is_waited_for(new_run: Any, operation: int) -> None:
    # Through the commit, and then the checkpoint.
    run = new_run("plain")
    run.live(trap=("committed 18", 30))
    assert run.live(trap=("committing", operation))
    run.finish()


@pytest.mark.parametrize("operation", range(SEED % STRIDE, 260, STRIDE))
def test_killed_while_entries_are_merged(new_run: Any, operation: int) -> None:
    # The first merge and those that follow, beside whatever the training thread does meanwhile.
    run = new_run("merging")
    assert run.live(trap=("merging", operation))
    run.finish()


@pytest.mark.parametrize("operation", range(5 + SEED % STRIDE, 55, STRIDE))
def test_killed_while_lightning_saves_a_checkpoint(new_run: Any, operation: int) -> None:
    run = new_run("lightning")
    assert run.live(trap=("committing", operation))
    run.finish()


@pytest.mark.parametrize("operation", [0, 1])
@pytest.mark.parametrize("program", ["plain", "lightning"])
def test_killed_while_the_checkpoint_itself_is_written(new_run: Any, program: str, operation: int) -> None:
    # The entry is durable and its commit announced; the checkpoint may be half a file under another name.
    run = new_run(program)
    assert run.live(trap=("saving", operation))
    run.finish()


@pytest.mark.parametrize("seed", range(SEED, SEED + PLAIN_RUNS))
def test_killed_at_random(new_run: Any, whole_run: Any, seed: int) -> None:
    kill_at_random(new_run("plain"), whole_run("plain").seconds, Random(seed))


@pytest.mark.parametrize("seed", range(SEED, SEED + LIGHTNING_RUNS))
def test_killed_at_random_under_lightning(new_run: Any, whole_run: Any, seed: int) -> None:
    kill_at_random(new_run("lightning"), whole_run("lightning").seconds, Random(seed))


def kill_at_random(run: Any, seconds: float, random: Random) -> None:
    for _ in range(KILLS):
        if run.checkpoints and random.random() < 0.25:
            run.go_back(random.choice(run.checkpoints))
        if random.random() < 0.5:
            run.live(after=random.uniform(0, 0.6 * seconds))
        else:
            run.live(trap=("opening", random.randrange(400)))
    run.finish()
