"""How near each converted layer is to the masked dense one that it must equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradtrace.report.table import Table

if TYPE_CHECKING:
    from gradtrace.convert.verify import Difference

__all__ = ["verification_facts", "verification_table"]


def verification_table(layers: Mapping[str, Difference]) -> Table:
    """One row a layer."""
    rows = tuple(
        (name, f"{found.absolute:.1e}", f"{found.relative:.1e}", f"{found.tolerance:.0e}")
        for name, found in layers.items()
    )
    note = (
        "Largest difference of an output from the masked dense layer's; relative: over the largest of those."
    )
    return Table("Verified", ("layer", "largest difference", "relative", "allowed"), rows, note)


def verification_facts(layers: Mapping[str, Difference]) -> dict[str, Any]:
    """What `--json` tells of it."""
    return {
        name: {"absolute": found.absolute, "relative": found.relative, "tolerance": found.tolerance}
        for name, found in layers.items()
    }
