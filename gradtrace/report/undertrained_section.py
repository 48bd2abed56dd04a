"""What is said of an embedding's rows: table, sentences, and a section of the page with its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.undertrained import RowUse
from gradtrace.report.page import Picture, Section
from gradtrace.report.table import Table
from gradtrace.report.undertrained_plot import undertrained_plot

__all__ = ["rarely_table", "undertrained_lines", "undertrained_section", "undertrained_table"]

_SHOWN = 24
_WORDS = (
    "A row of an embedding learns only from the tokens that look it up. A row without any use still holds "
    "what it was initialized with, less what weight decay took: nothing that a model says of such a token "
    "was learned."
)


def undertrained_table(uses: Sequence[RowUse]) -> Table:
    """One row for each embedding."""
    rows = tuple(
        (
            use.name,
            f"{use.uses.size:,}",
            f"{int(use.never.sum()):,}",
            f"{int(use.rarely.sum()):,}",
            f"{use.steps:,}",
        )
        for use in uses
    )
    return Table("Rows of embeddings", ("embedding", "rows", "never used", "rarely used", "steps"), rows)


def rarely_table(uses: Sequence[RowUse]) -> Table | None:
    """The rows used least but not never, with the steps of first and last use; None where there are none."""
    rows: list[tuple[str, ...]] = []
    for use in uses:
        found = np.flatnonzero(use.rarely)
        for row in found[np.argsort(use.uses[found], kind="stable")][:_SHOWN]:
            first, last = (_entry(use, int(ends[row])) for ends in (use.first, use.last))
            rows.append((use.name, f"{row}", f"{use.uses[row]:,}", *first, *last))
    if not rows:
        return None
    columns = ("embedding", "row", "uses", "first in steps", "entry", "last in steps", "entry")
    note = (
        f"The least used first, up to {_SHOWN} an embedding. Uses are added up by entry, of the steps told."
    )
    return Table("Rarely used rows", columns, tuple(rows), note)


def _entry(use: RowUse, end: int) -> tuple[str, str]:
    found = use.entry_of(end)
    return ("-", "-") if found is None else (f"{found[1]:,}-{found[2] - 1:,}", f"{found[0]}")


def undertrained_lines(uses: Sequence[RowUse]) -> tuple[str, ...]:
    """Which rows, and how far that is to be trusted."""
    lines = []
    for use in uses:
        for word, rows in (("never", use.never), ("rarely", use.rarely)):
            if rows.any():
                lines.append(f"{use.name}: {word} used: {_spans(np.flatnonzero(rows))}.")
        if use.missed:
            lines.append(
                f"{use.name}: lookups were counted in {use.steps:,} steps, {use.missed:,} were not looked "
                "at: a row that seems unused may have been used in those."
            )
        if use.always:
            lines.append(
                f"{use.name}: every row had a gradient in every step. Either each is used in all of them, as "
                'positions are, or the weight is an output head too: then record with below="inputs".'
            )
    return tuple(lines)


def undertrained_section(uses: Sequence[RowUse]) -> Section:
    """The section of the page, with a picture for each embedding."""
    pictures = tuple(
        Picture(
            undertrained_plot(use),
            f"The {use.uses.size:,} rows of {use.name}, {int(use.never.sum()):,} of them never used.",
            "Left: one cell for each row, in reading order; the darker, the more often it was used. Right: "
            "all rows, the most used first.",
        )
        for use in uses
    )
    rarely = rarely_table(uses)
    return Section(
        "Tokens that training hardly saw",
        (_WORDS,),
        pictures,
        (undertrained_table(uses), *(() if rarely is None else (rarely,))),
        undertrained_lines(uses),
    )


def _spans(rows: NDArray[np.int64]) -> str:
    """Numbers with runs joined, "0-8, 11, 13-31", and how many more there are."""
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) > 1)
    runs = [(int(run[0]), int(run[-1])) for run in np.split(rows, starts[1:])]
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_SHOWN]]
    more = len(runs) - len(said)
    return ", ".join(said) + (f" and {more:,} runs more" if more else "")
