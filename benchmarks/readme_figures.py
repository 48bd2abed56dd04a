"""Tables in the README that follow a comment are what a file of figures says; this writes them anew.

    <!-- figures: PATH rows=KEY name=FIELD columns=FIELD:FORMAT;... -->

The table below it shows the rows of the list KEY in the JSON file PATH: the first cell of each is its FIELD
`name`, every further one is one of `columns`, in their order, written as FORMAT says. A dot in a field goes
into an object or a list; rows="." is the whole file as one row. a±b are two fields with ± between them. A
FORMAT is a format of Python, with `m` before it for thousandths (seconds as ms), `M` for millions, and a
unit behind it. What stands for nothing is "-".
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

import gradtrace as gt
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.whole_file import write_whole

__all__ = ["Figures", "disagreements", "marked", "rewritten", "shown"]

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"<!-- figures: (\S+) rows=(\S+) name=(\S+) columns=(\S+) -->\n\n((?:\|.*\n)+)")
_FORMAT = re.compile(r"([mM]?)(\+?,?\.\d+[f%]|,?d|\.\d+e|s)(.*)")
_SCALE = {"": 1.0, "m": 1e3, "M": 1e-6}


class Figures(NamedTuple):
    """One marked table: the file and fields it names, its heading and its rows of cells."""

    path: str
    rows: str
    name: str
    columns: tuple[str, ...]
    heading: str
    cells: tuple[tuple[str, ...], ...]


def marked(text: str) -> Iterator[Figures]:
    """The marked tables of a text, from its beginning on."""
    for found in _MARK.finditer(text):
        yield _figures(found)


def disagreements(figures: Figures, root: Path) -> list[str]:
    """One sentence for each cell that is not what the file says."""
    said = _cells(figures, root)
    wrong = [] if len(said) == len(figures.cells) else [f"{len(figures.cells)} rows, not {len(said)}"]
    for shown_row, row in zip(figures.cells, said, strict=False):
        if len(shown_row) != len(row):
            wrong.append(f"{row[0]}: {len(shown_row)} cells, not {len(row)}")
        wrong += [
            f"{row[0]}, {column}: {cell}, not {right}"
            for cell, right, column in zip(shown_row, row, ("name", *figures.columns), strict=False)
            if cell != right
        ]
    return wrong


def rewritten(text: str, root: Path) -> str:
    """The text, with the rows of its marked tables as the files say."""

    def table(found: re.Match[str]) -> str:
        figures = _figures(found)
        lines = ["| " + " | ".join(row) + " |\n" for row in _cells(figures, root)]
        return found[0][: found.start(5) - found.start()] + figures.heading + "".join(lines)

    return _MARK.sub(table, text)


def shown(value: Any, form: str) -> str:
    """A figure as a FORMAT says."""
    parts = _FORMAT.fullmatch(form)
    if not parts:
        raise InvalidValueError("a format of figures", expected="such as .1%, m.2f or ,d", got=repr(form))
    if value is None:
        return "-"
    scale, spec, unit = parts.groups()
    if spec == "s":
        return f"{value}{unit}"
    return format(round(value) if spec.endswith("d") else value * _SCALE[scale], spec) + unit


def _figures(found: re.Match[str]) -> Figures:
    path, rows, name, columns, table = found.groups()
    lines = table.splitlines(keepends=True)
    cells = (tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in lines[2:])
    return Figures(path, rows, name, tuple(columns.split(";")), "".join(lines[:2]), tuple(cells))


def _cells(figures: Figures, root: Path) -> tuple[tuple[str, ...], ...]:
    data = json.loads((root / figures.path).read_text())
    rows = [data] if figures.rows == "." else _field(data, figures.rows)
    return tuple(
        (str(_field(row, figures.name)), *(_cell(row, column) for column in figures.columns)) for row in rows
    )


def _cell(row: Any, column: str) -> str:
    fields, _, form = column.partition(":")
    first, *widths = fields.split("±")
    return " ± ".join(
        [shown(_field(row, first), form), *(shown(_field(row, one), form.replace("+", "")) for one in widths)]
    )


def _field(data: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def main() -> None:
    """Write the README's tables of figures anew, from the files that they name."""
    path = ROOT / "README.md"
    write_whole(path, rewritten(path.read_text(), ROOT).encode(), "README")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
