"""One rank dies by SIGKILL: the other ends with a clear error, and the resumed ledger is the unkilled one.

`make test` runs a few of the kills, `make torture` many.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import EmptyLedgerError, LedgerNotFoundError
from gradtrace.ledger.format import ACCUMULATORS
from gradtrace.ledger.reader import Ledger

Lives = Callable[..., list[tuple[int, str]]]
SEED = int(os.environ.get("GRADTRACE_SEED", "0"))
KILLS = (
    [(rank, operation) for rank in (0, 1) for operation in range(1 + SEED % 7, 240, 7)]
    if os.environ.get("GRADTRACE_TORTURE")
    else [(0, 120), (1, 70)]
)


def bits(path: Path) -> dict[str, Any]:
    ledger = Ledger.open(path)
    totals = {
        f"{name} {total}": getattr(record, total).tobytes()
        for name, record in ledger.items()
        for total in (*ACCUMULATORS, "opening")
    }
    return totals | {"steps": ledger.steps, "spans": [(one.begin, one.end) for one in ledger.entries]}


@pytest.fixture(scope="module")
def whole(live: Lives, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert [status for status, _ in live(folder, ranks=2, script="killed_training.py")] == [0, 0]
    return bits(folder / "run")


@pytest.mark.parametrize(("victim", "operation"), KILLS)
def test_nothing_announced_is_lost_and_the_resumed_ledger_is_the_unkilled_one(
    live: Lives, whole: dict[str, Any], tmp_path: Path, victim: int, operation: int
) -> None:
    ended = live(tmp_path, victim, operation, ranks=2, script="killed_training.py")
    if ended[victim][0] == 0:
        pytest.skip("it ended before that operation")
    assert ended[victim][0] == -signal.SIGKILL
    status, text = ended[1 - victim]
    if status:  # the survivor may have had nothing left to wait for
        assert "RankLostError" in text
    announced = {int(step) for _, told in ended for step in re.findall(r"^committed (\d+)", told, re.M)}
    try:
        assert announced - {0} <= {entry.end for entry in Ledger.open(tmp_path / "run").entries}
        bits(tmp_path / "run")
    except (EmptyLedgerError, LedgerNotFoundError):
        assert not announced - {0}
    assert [status for status, _ in live(tmp_path, ranks=2, script="killed_training.py")] == [0, 0]
    assert bits(tmp_path / "run") == whole
    shutil.rmtree(tmp_path)
