"""`gradtrace undertrained`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrace.commands.options import AsJson, LedgerPath
from gradtrace.commands.output import show
from gradtrace.errors import UnsupportedError

if TYPE_CHECKING:
    from gradtrace.evidence.undertrained import RowUse
    from gradtrace.ledger.reader import Ledger

__all__ = ["undertrained"]


def undertrained(
    ledger: LedgerPath,
    embedding: Annotated[
        list[str] | None, typer.Option(help="An embedding; repeat for several. Left out: all.")
    ] = None,
    rare: Annotated[
        float, typer.Option(help="Used in a smaller share of the steps is rarely used, in (0, 1].")
    ] = 0.01,
    page: Annotated[Path | None, typer.Option(help="Write a page with pictures here, as HTML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which rows of embeddings, that is, which tokens, were never or hardly ever used in training.

    Example: `gradtrace undertrained runs/language/seed-0/language.ledger.zarr --page tokens.html`
    """
    import gradtrace as gt
    from gradtrace.evidence.undertrained import embeddings
    from gradtrace.report.undertrained_section import rarely_table, undertrained_lines, undertrained_table

    opened = gt.Ledger.open(ledger)
    names = tuple(dict.fromkeys(embedding or embeddings(opened)))
    if not names:
        raise UnsupportedError(
            f"the ledger {opened.path}",
            expected="embeddings in it",
            got="none",
            remedy="name one by --embedding",
        )
    uses, refused = _uses(opened, names, rare)
    if page is not None:
        _write_page(opened, uses, page)
    data = {"ledger": str(ledger), "embeddings": [use.to_json() for use in uses], "refused": refused}
    lines = (*undertrained_lines(uses), *refused)
    rarely = rarely_table(uses)
    tables = (undertrained_table(uses),) if rarely is None else (undertrained_table(uses), rarely)
    show(as_json, data, *tables, lines=lines)


def _uses(ledger: Ledger, names: tuple[str, ...], rare: float) -> tuple[list[RowUse], list[str]]:
    import gradtrace as gt

    uses, refused = [], []
    for name in names:
        try:
            uses.append(gt.undertrained(ledger, name, rare=rare))
        except UnsupportedError as error:
            # One that is tied must not hide the others; alone it is the answer.
            if len(names) == 1:
                raise
            refused.append(str(error))
    return uses, refused


def _write_page(ledger: Ledger, uses: list[RowUse], path: Path) -> None:
    from gradtrace.evidence.whole_file import write_whole
    from gradtrace.report.page import Page, render
    from gradtrace.report.undertrained_section import undertrained_section

    rows, never = sum(use.uses.size for use in uses), sum(int(use.never.sum()) for use in uses)
    shown = Page(
        "Tokens in training",
        f"{never:,} of {rows:,} rows of embeddings were never used.",
        (("rows", f"{rows:,}"), ("never used", f"{never:,}"), ("steps", f"{ledger.steps:,}")),
        (undertrained_section(uses),),
        f"From the ledger {ledger.path}.",
    )
    write_whole(path, render(shown).encode(), "page")
