"""The table of an estimate, and the sentence that says which density to take."""

from __future__ import annotations

from gradtrace.estimation.estimated import Estimate, Level, Range
from gradtrace.report.table import Table

__all__ = ["estimate_lines", "estimate_table"]


def estimate_table(found: Estimate) -> Table:
    """Dense, then one row a density."""
    columns = ("keep", "removed", "decomposed", "quality", "ms a call", "speed", "MB", "saved a year")
    rows = tuple(_row(found.dense if one is None else one, found) for one in (None, *found.levels))
    note = "In brackets: the interval. Removed: of the weights of linear layers, what would no longer be run."
    return Table("Expected of a conversion", columns, rows, note)


def estimate_lines(found: Estimate) -> tuple[str, ...]:
    """What to take, and what all of it rests on."""
    best = found.best
    if best is not None:
        said = (
            f"Within {found.max_loss:.1%} of the dense quality: keep {best.density:g}, which removes "
            f"{best.removed:.0%} and runs {found.dense.seconds / best.seconds:.2f}x as fast."
        )
    elif found.dense.quality is None:
        said = "Which density to take depends on quality: pass --validate."
    else:
        said = f"Nothing asked for here is faster than dense within {found.max_loss:.1%} of its quality."
    return (said, "", "Assumed:", *found.assumptions)


def _row(level: Level, found: Estimate) -> tuple[str, ...]:
    dense = level is found.dense
    return (
        "dense" if dense else f"{level.density:g}",
        f"{level.removed:.1%}",
        f"{level.converted}",
        "-" if level.quality is None else f"{level.quality:.4g}{_span(level.quality_range, '.4g', 1)}",
        f"{level.seconds * 1e3:.3g}{_span(level.seconds_range, '.3g', 1e3)}",
        f"{found.dense.seconds / level.seconds:.2f}x" if level.seconds else "-",
        f"{level.bytes / 1e6:.1f}",
        "-" if level.saved is None else f"{level.saved:,.0f}{_span(level.saved_range, ',.0f', 1)}",
    )


def _span(ends: Range | None, form: str, scale: float) -> str:
    if ends is None or ends[0] == ends[1]:
        return ""
    return f" ({ends[0] * scale:{form}} to {ends[1] * scale:{form}})"
