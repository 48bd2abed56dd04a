"""What a command prints: one JSON object, or tables and lines; progress goes to standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gradtrace.report.table import Table

__all__ = ["progress", "show"]


def show(as_json: bool, data: Mapping[str, Any], *tables: Table, lines: tuple[str, ...] = ()) -> None:
    """Print `data` as JSON, or else the tables and then the lines."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    from gradtrace.report.terminal import terminal

    console = terminal()
    for table in tables:
        table.print(console)
    for line in lines:
        console.print(line)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's standard error; the function given says what the next of `total` steps was."""
    from rich.progress import Progress

    from gradtrace.report.terminal import terminal

    console = terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)
