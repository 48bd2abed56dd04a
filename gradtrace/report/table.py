"""One table, written once and shown twice: in the terminal by rich, in the page by the template."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from gradtrace.report.printable import printable

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Plain text cells; the first column is left-aligned, all others right unless named in `prose`.

    Cells may hold names read from files: they are never read as markup, in the terminal or in HTML, and
    control characters in them are replaced.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("title", "note"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, "columns", tuple(map(printable, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: every row needs {len(self.columns)} cells")

    def print(self, console: Console) -> None:
        """Show the table, its title above and its note below; nothing is ever cut off.

        Prose wraps at the edge of a terminal. Where that is not enough, and where there is no terminal, the
        table is as wide as it needs to be.
        """
        table = self._rich()
        needed = Measurement.get(console, console.options.update(max_width=10_000), table)
        edge = min(console.width, needed.maximum) if console.is_terminal else needed.maximum
        table.width = max(edge, needed.minimum)
        console.print(Text(self.title, style="bold"))
        console.print(table, crop=False, soft_wrap=False)
        if self.note:
            console.print(Text(self.note, style="dim italic"))
        console.print()

    def _rich(self) -> RichTable:
        table = RichTable(
            box=SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for position, column in enumerate(self.columns):
            left = position == 0 or column in self.prose
            # Headings may wrap between words, numbers not at all: half a number reads like another one.
            word = max(map(len, column.split()), default=0)
            widest = max((len(row[position]) for row in self.rows), default=0)
            least = max(word, min(widest, 14) if left else widest)
            side: JustifyMethod = "left" if left else "right"
            table.add_column(Text(column), justify=side, min_width=least, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table
