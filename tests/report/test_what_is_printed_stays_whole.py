from __future__ import annotations

import io

import pytest
from rich.console import Console

from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

COLUMNS = ("name", "a long heading", *(f"figure {k}" for k in range(12)))
ROW = ("net.encoder.layers.0.weight", "a sentence that could wrap", *(f"{k}.123±.456" for k in range(12)))
WIDE = Table("Wide", COLUMNS, (ROW,), "A note.", prose=("a long heading",))


def printed(console: Console, table: Table) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    table.print(console)
    return console.file.getvalue().splitlines()


def test_without_a_terminal_every_row_is_one_whole_line() -> None:
    lines = printed(Console(file=io.StringIO(), width=80), WIDE)
    (row,) = (line for line in lines if line.startswith("net."))
    assert row.split() == " ".join(ROW).split()
    (heading,) = (line for line in lines if line.startswith("name"))
    assert heading.split() == " ".join(COLUMNS).split()


def test_on_a_narrow_terminal_words_wrap_and_no_figure_is_cut() -> None:
    lines = printed(Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None), WIDE)
    words = " ".join(lines).split()
    assert set(ROW[2:]) <= set(words)
    assert {"figure", "heading", "sentence"} <= set(words)


def test_on_a_wide_terminal_a_table_takes_what_it_needs() -> None:
    console = Console(file=io.StringIO(), width=400, force_terminal=True, color_system=None)
    small = Table("Small", ("name", "figure"), (("a", "1"),))
    assert max(map(len, printed(console, small))) < 20


@pytest.mark.parametrize("text", ["word " * 60, "/a/very/long/path" * 20, "[bold]no markup[/bold] :smile:"])
def test_a_line_in_a_pipe_is_neither_broken_nor_read_as_markup(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    terminal().print(text)
    assert capsys.readouterr().out == f"{text}\n"
