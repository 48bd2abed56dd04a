"""The table of an assessment: one row a layer."""

from __future__ import annotations

from gradtrace.assessment.assessment import Assessment, LayerAssessment
from gradtrace.report.table import Table

__all__ = ["assessment_table"]


def assessment_table(found: Assessment) -> Table:
    """What each layer learned, what it takes, and whether it falls apart."""
    columns = (
        "layer",
        "never supported",
        "confirmed",
        "dead inputs",
        "dead neurons",
        "moved",
        "time",
        "blocks",
        "runs",
    )
    rows = tuple(_row(layer) for layer in found.layers.values())
    note = (
        "Moved: length of the way, decay apart, beside that of the opening balance. Time: predicted share of "
        f"a call's products, by {found.timed_by}. Blocks: exact ones of what was supported; runs: share "
        "of the dense product left if each runs alone."
    )
    return Table("What each layer learned", columns, rows, note)


def _row(layer: LayerAssessment) -> tuple[str, ...]:
    size = max(1, layer.dependencies)
    return (
        layer.name,
        f"{layer.never_supported / size:.1%}",
        "-" if layer.confirmed is None else f"{layer.confirmed / size:.1%}",
        f"{len(layer.dead_inputs):,} of {layer.inputs:,}",
        f"{len(layer.dead_outputs):,} of {layer.outputs:,}",
        "-" if layer.moved is None else f"{layer.moved:.1%}",
        f"{layer.time:.1%}",
        f"{layer.blocks:,}",
        f"{layer.runs:.0%}",
    )
