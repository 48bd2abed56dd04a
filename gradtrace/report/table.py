"""One table, written once and shown twice: in the terminal by rich, in the page by the template."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Plain text cells; the first column is left-aligned, all others right unless named in `prose`.

    Cells may hold names read from files: they are never read as markup, in the terminal or in HTML.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: every row needs {len(self.columns)} cells")

    def rich(self) -> RichTable:
        """The table for a `rich.console.Console`."""
        table = RichTable(title=Text(self.title), title_justify="left", caption_justify="left")
        if self.note:
            table.caption = Text(self.note)
        for position, column in enumerate(self.columns):
            left = position == 0 or column in self.prose
            table.add_column(Text(column), justify="left" if left else "right", no_wrap=not left)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table
