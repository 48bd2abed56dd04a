"""What annealing within a budget came to, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtrace.report.table import Table

if TYPE_CHECKING:
    from gradtrace.convert.annealed import Annealed

__all__ = ["annealed_lines", "annealed_table"]


def annealed_table(found: Annealed) -> Table:
    """One row a weight: how much of it stays."""
    rows = tuple(
        (name, " x ".join(map(str, kept.shape)), f"{int(kept.sum()):,}", f"{kept.mean():.1%}")
        for name, kept in found.mask.items()
    )
    return Table("Annealed within the budget", ("weight", "shape", "kept", "share"), rows)


def annealed_lines(found: Annealed) -> tuple[str, ...]:
    """What all of it costs, and how it was found."""
    budget = found.mask.provenance["annealed"]["max_loss_increase"]
    fitting = sum(trial.fits for trial in found.history)
    return (
        f"Kept in all: {found.mask.density:.1%}.",
        f"Quality {-found.dense:.4g} dense, {-found.dense - found.increase:.4g} masked: "
        f"{max(found.increase, 0.0):.4g} of the {budget:.4g} allowed is spent.",
        f"{len(found.history)} masks tried, {fitting} within what their stage allowed.",
    )
