from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from gradtrace.cli import app
from gradtrace.ledger.format import Layout
from gradtrace.ledger.reader import Ledger


@pytest.fixture
def ripe(book: Any, pair: Layout) -> Any:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 4, 4, 100):
            book.commit(writer, number, steps)
    return book


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def test_merge_joins_older_entries_and_says_how_many(ripe: Any) -> None:
    result = run(ripe.path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "5 entries are 2 now; 4 were merged.\n"
    ripe.follow(Ledger.open(ripe.path).entries)
    ripe.check()


def test_steps_to_keep_stay_resumable_and_json_says_which_are(ripe: Any) -> None:
    result = run(ripe.path, "--keep-step", 4, "--keep-step", 12, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "path": str(ripe.path),
        "merged": 2,
        "entries_before": 5,
        "entries_after": 4,
        "resumable_steps": [0, 4, 12, 16, 116],
    }
    ripe.follow(Ledger.open(ripe.path).entries)
    ripe.check()


def test_a_step_to_keep_where_no_entry_ends_is_one_line_and_merges_nothing(ripe: Any) -> None:
    result = run(ripe.path, "--keep-step", 6)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "nearest one is 4" in result.stderr
    ripe.check()


def test_a_ledger_that_is_being_written_is_left_alone(ripe: Any) -> None:
    from gradtrace.ledger.writer import LedgerWriter

    with LedgerWriter.reopen(ripe.path):
        result = run(ripe.path)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "another process is writing" in result.stderr
    ripe.check()


def test_help_teaches_with_an_example() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "gradtrace merge runs/" in " ".join(result.stdout.replace("│", " ").split())
