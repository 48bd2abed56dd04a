"""How a contender is drawn, the same in every picture of a comparison."""

from __future__ import annotations

from typing import Any

from gradtrace.comparison.comparison import Comparison
from gradtrace.report.figure import COLOURS, MARKERS

__all__ = ["CONTROL", "style"]

CONTROL = "#8a8a8a"


def style(comparison: Comparison, name: str) -> dict[str, Any]:
    """Keywords for `Axes.plot`: controls are grey and dashed, statistics dash-dotted, the ledger's solid."""
    k = comparison.names.index(name)
    kind = comparison.contenders[k].kind
    marker = MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]  # no colour with the same marker twice
    if kind == "control":
        return {"color": CONTROL, "linestyle": "--", "marker": marker}
    dashes = "-" if kind == "ledger" else "-."
    return {"color": COLOURS[k % (len(COLOURS) - 1)], "linestyle": dashes, "marker": marker}
