"""The tables that the command line, the recipes and the page show."""

from __future__ import annotations

from collections.abc import Iterable

from gradtrace.evidence.agreement import Agreement
from gradtrace.evidence.criterion import Criterion
from gradtrace.evidence.never_supported import NeverSupported
from gradtrace.ledger.format import BELOW
from gradtrace.ledger.reader import Ledger
from gradtrace.report.table import Table
from gradtrace.structure.plan import Plan

__all__ = [
    "agreement_table",
    "criteria_table",
    "ledger_table",
    "never_supported_table",
    "plan_lines",
    "plan_table",
]


def criteria_table(criteria: Iterable[Criterion]) -> Table:
    """Every criterion with its kind, what it needs and its one line."""
    rows = tuple((c.name, c.kind, _needs(c), c.description) for c in criteria)
    columns = ("name", "kind", "needs", "what it asks")
    note = "Options, tests and sources: docs/criteria.md, or gradtrace criteria --json."
    return Table("Criteria", columns, rows, note, prose=("kind", "needs", "what it asks"))


def _needs(criterion: Criterion) -> str:
    either = (" or ".join(criterion.needs_one_of),) if criterion.needs_one_of else ()
    asked = ", ".join((*criterion.needs, *either))
    if criterion.instead:
        return f"{criterion.instead}=, or {asked}"
    return asked or ("opening balance" if criterion.kind == "ledger" else "-")


def ledger_table(ledger: Ledger) -> Table:
    """One row a parameter: what was recorded and how much of it never saw an event."""
    rows = []
    for name, record in ledger.items():
        events = record.events
        never = int((events == 0).sum())
        mean = float(events.mean()) / record.steps if record.steps else 0.0
        rows.append(
            (
                name,
                " x ".join(map(str, record.shape)),
                f"{record.steps:,}",
                f"{never:,}",
                f"{never / events.size:.1%}",
                f"{mean:.1%}",
                f"{record.nonfinite + record.skipped + record.missing:,}",
            )
        )
    columns = (
        "parameter",
        "shape",
        "steps",
        "never supported",
        "share",
        "mean events a step",
        "unusable steps",
    )
    note = "Never supported: no recorded step gave this weight a nonzero gradient."
    sampled = sum(entry.sampling.steps for entry in ledger.entries)
    if sampled < ledger.steps:
        note += f" Sums were taken on {sampled:,} of {ledger.steps:,} steps, events counted at each."
    if below := [name for name in ledger.accumulators if name in BELOW]:
        watched = max((record.watched_steps for record in ledger.values()), default=0)
        note += f" Below the step: {', '.join(below)}; up to {watched:,} watched steps a parameter."
    entries = "1 entry" if len(ledger.entries) == 1 else f"{len(ledger.entries)} entries"
    return Table(f"{ledger.steps:,} steps in {entries}", columns, tuple(rows), note)


def agreement_table(agreement: Agreement, *, title: str = "Agreement of the masks") -> Table:
    """Jaccard index beside its chance level, for every pair."""
    rows = tuple(
        (
            name,
            *(f"{j:.2f}/{c:.2f}" for j, c in zip(agreement.jaccard[i], agreement.chance[i], strict=True)),
        )
        for i, name in enumerate(agreement.names)
    )
    note = "Kept by both / kept by either, beside what two random masks of the same sizes would reach."
    return Table(title, ("", *agreement.names), rows, note)


def never_supported_table(found: NeverSupported) -> Table:
    """Who finds the dependencies without a single event."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    rows = tuple(
        (d.criterion, f"{d.found:,}", f"{d.right:,}", percent(d.recall), percent(d.precision))
        for d in found.detections
    )
    title = f"{found.never:,} of {found.dependencies:,} dependencies ({found.share:.1%}) were never supported"
    note = f"Pointing at random would be right {found.share:.1%} of the time."
    return Table(
        title, ("criterion", "calls", "right", "found (recall)", "right calls (precision)"), rows, note
    )


def plan_table(plan: Plan) -> Table:
    """One row a layer: what it becomes, and at which predicted and measured speed."""
    rows = []
    for name, layer in plan.items():
        dense = layer.choice == "dense"
        rows.append(
            (
                name,
                layer.choice,
                "-" if dense else f"{len(layer.sub_operators):,}",
                f"{layer.mask.mean():.1%}",
                f"{layer.weights / layer.mask.size:.1%}",
                f"{layer.dense * 1e3:.3g}",
                "-" if dense or not layer.predicted else f"{layer.dense / layer.predicted:.2f}x",
                "-" if layer.measured is None else f"{layer.measured:.2f}x",
            )
        )
    columns = ("layer", "becomes", "parts", "kept", "run", "dense ms", "predicted", "measured")
    note = (
        "Kept: share of the mask; run: share of the dense product that is computed; speeds relative to dense."
    )
    return Table("Plan", columns, tuple(rows), note, prose=("becomes",))


def plan_lines(plan: Plan) -> tuple[str, ...]:
    """The reason for each layer, in the planner's words."""
    return tuple(f"{name}: {layer.reason}." for name, layer in plan.items())
