"""The tables of what was learned: why each dependency stays or goes, and how that grew."""

from __future__ import annotations

from collections.abc import Sequence

from gradtrace.evidence.explain import Explanation, Reason
from gradtrace.evidence.growth import Growth
from gradtrace.evidence.span_shares import SpanShares
from gradtrace.report.table import Table

__all__ = ["explanation_lines", "explanation_table", "growth_table", "span_table"]


def explanation_table(found: Explanation) -> Table:
    """One row a parameter: how many dependencies are dropped and kept, and why."""
    counts = found.counts()
    reasons = [reason for reason in Reason if any(each[reason] for each in counts.values())]
    rows = tuple(
        (name, *(f"{each[reason]:,}" for reason in reasons), f"{found.mask[name].mean():.1%}")
        for name, each in counts.items()
        if found.mask[name].size
    )
    columns = ("parameter", *(reason.name.lower().replace("_", " ") for reason in reasons), "kept")
    return Table("Why each dependency is dropped or kept", columns, rows)


def explanation_lines(found: Explanation) -> tuple[str, ...]:
    """What is dropped and kept in all, for each reason."""
    counts = found.counts()
    size = max(1, sum(sum(each.values()) for each in counts.values()))
    lines = []
    for reason in Reason:
        total = sum(each[reason] for each in counts.values())
        if total:
            lines.append(f"{'kept' if reason.kept else 'dropped'} {total / size:.1%}: {reason.words}")
    return tuple(lines)


def growth_table(growth: Growth) -> Table:
    """Supported and confirmed share of each parameter, at up to six entries' ends spread over the run."""
    count = len(growth.steps)
    places = sorted({round(k * (count - 1) / 5) for k in range(6)})

    def cells(supported: Sequence[float], confirmed: Sequence[float | None]) -> tuple[str, ...]:
        shares = ("-" if confirmed[k] is None else f"{confirmed[k]:.1%}" for k in places)
        return tuple(f"{supported[k]:.1%}/{share}" for k, share in zip(places, shares, strict=True))

    rows = [(name, *cells(growth.supported[name], growth.confirmed[name])) for name in growth.sizes]
    rows.append(("together", *cells(*growth.together())))
    note = f"Share with an event so far / with a drift confirmed so far at q = {growth.q:g}."
    return Table(
        "Growth by step", ("parameter", *(f"{growth.steps[k]:,}" for k in places)), tuple(rows), note
    )


def span_table(spans: SpanShares) -> Table:
    """The step by which half of what was ever supported had its first event, and what ended early."""
    rows = []
    for name in spans.sizes:
        seen = sum(spans.first[name])
        reached = 0.0
        middle = "-"
        for step, share in zip(spans.steps, spans.first[name], strict=True):
            reached += share
            if seen and reached >= seen / 2:
                middle = f"{step:,}"
                break
        rows.append((name, f"{spans.never(name):.1%}", middle, f"{spans.quiet(name):.1%}"))
    before = f"{spans.steps[-2]:,}" if len(spans.steps) > 1 else "the end"
    columns = (
        "parameter",
        "never supported",
        "half of the rest by step",
        "last support before the last entry",
    )
    note = f"Steps are ends of entries; support that ended by step {before} did not come back after it."
    return Table("First and last step with support", columns, tuple(rows), note)
