"""`gradtrace merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from gradtrace.commands.options import AsJson, LedgerPath
from gradtrace.commands.output import progress, show

__all__ = ["merge"]

KeepStep = Annotated[
    list[int] | None,
    typer.Option(
        "--keep-step",
        metavar="N",
        help="A checkpoint's step that must stay resumable; may be given often. Default: all ever saved.",
    ),
]


def merge(ledger: LedgerPath, keep_step: KeepStep = None, as_json: AsJson = False) -> None:
    """Join older entries of a ledger into wider ones; what it says of the whole run stays the same.

    A recorder does this as it goes, unless it was told merge=False, and keeps the step of every checkpoint.
    Name the steps of those that you still have to let the others go. Afterwards a run can be resumed from the
    ledger's end, from each step kept, and where an entry still ends.

    Example: `gradtrace merge runs/mnist/seed-0/mnist.ledger.zarr --keep-step 2000`
    """
    from gradtrace.ledger.merging import plan_merges
    from gradtrace.ledger.writer import LedgerWriter

    keep = keep_step or None
    with LedgerWriter.reopen(ledger) as writer:
        before = len(writer.entries)
        with progress(len(plan_merges(writer.entries, keep))) as advance:
            merged = writer.merge(keep, lambda entry: advance(f"steps {entry.begin:,} to {entry.end:,}"))
        after, ends = len(writer.entries), [entry.end for entry in writer.entries]
    show(
        as_json,
        {
            "path": writer.path,
            "merged": merged,
            "entries_before": before,
            "entries_after": after,
            "resumable_steps": [0, *ends],
        },
        lines=(f"{before:,} entries are {after:,} now; {merged:,} were merged.",),
    )
