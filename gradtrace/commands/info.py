"""`gradtrace info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradtrace.commands.options import AsJson, LedgerPath
from gradtrace.commands.output import show

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["info"]


def info(ledger: LedgerPath, as_json: AsJson = False) -> None:
    """Show what a ledger recorded, and how much of each parameter never saw a nonzero gradient.

    Example: `gradtrace info runs/mnist/seed-0/mnist.ledger.zarr`
    """
    import gradtrace as gt
    from gradtrace.report.tables import ledger_table

    opened = gt.Ledger.open(ledger)
    show(as_json, _facts(opened) if as_json else {}, ledger_table(opened))


def _facts(ledger: Ledger) -> dict[str, Any]:
    parameters = []
    for name, record in ledger.items():
        counts = {
            k: getattr(record, k) for k in ("steps", "missing", "zero", "nonfinite", "skipped", "windows")
        }
        events = record.events
        parameters.append(
            {"name": name, "shape": record.shape, "dependencies": events.size}
            | {"never_supported": int((events == 0).sum())}
            | counts
            | {"watched_steps": record.watched_steps}
        )
    return {
        "path": ledger.path,
        "run_id": ledger.run_id,
        "steps": ledger.steps,
        "entries": [
            {"begin": e.begin, "end": e.end, "windows": e.windows} | e.sampling.to_json()
            for e in ledger.entries
        ],
        "accumulators": list(ledger.accumulators),
        "settings": dict(ledger.settings),
        "parameters": parameters,
    }
