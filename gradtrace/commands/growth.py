"""`gradtrace growth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.commands.options import AsJson, LedgerPath
from gradtrace.commands.output import show

__all__ = ["growth"]


def growth(
    ledger: LedgerPath,
    q: Annotated[float, typer.Option("--q", help="The false discovery rate, in (0, 1].")] = 0.1,
    picture: Annotated[Path | None, typer.Option(help="Write a picture here, as PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how support, and what is confirmed as learned, grew from entry to entry, and where support ended.

    Example: `gradtrace growth runs/mnist/seed-0/mnist.ledger.zarr --picture growth.png`
    """
    import gradtrace as gt
    from gradtrace.evidence.growth import growth as grown
    from gradtrace.evidence.span_shares import span_shares
    from gradtrace.report.learned_tables import growth_table, span_table

    opened = gt.Ledger.open(ledger)
    found, spans = grown(opened, q=q), span_shares(opened)
    if picture is not None:
        from gradtrace.evidence.whole_file import write_whole
        from gradtrace.report.growth_plot import growth_plot

        write_whole(picture, growth_plot(found, spans), "picture")
    show(as_json, found.to_json() | {"spans": spans.to_json()}, growth_table(found), span_table(spans))
