"""What compensation makes of a mask's error, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradtrace.report.table import Table

if TYPE_CHECKING:
    from gradtrace.convert.compensation import Compensation

__all__ = ["compensation_facts", "compensation_lines", "compensation_table"]


def compensation_table(found: Compensation) -> Table:
    """One row a layer: the mask's error alone and compensated, in shares of the output's variance."""
    checked = any(layer.checked is not None for layer in found.values())
    rows = []
    for name, layer in found.items():
        cells = [name, f"{layer.before:.1%}", f"{layer.after:.1%}", f"{layer.removed:.0%}"]
        if checked:
            cells += ["-", "-"] if layer.checked is None else [f"{share:.1%}" for share in layer.checked]
        rows.append((*cells, f"{layer.positions:,}"))
    on_batch = ("masked, on batch", "compensated, on batch") if checked else ()
    columns = ("layer", "masked", "compensated", "removed", *on_batch, "positions")
    note = (
        "Squared error that the mask brings into each layer's output, in shares of its variance, by the "
        f"moments of its inputs from {found.source}; positions: what these are over."
    )
    return Table("Compensation", columns, tuple(rows), note)


def compensation_lines(found: Compensation) -> tuple[str, ...]:
    """What is only zeroed, and why."""
    return tuple(f"{name}: zeroed, not compensated: {why}." for name, why in found.left_out.items())


def compensation_facts(found: Compensation) -> dict[str, Any]:
    """What `--json` tells of a compensation."""
    layers = {
        name: {
            "masked": layer.before,
            "compensated": layer.after,
            "on_batch": layer.checked,
            "positions": layer.positions,
            "damping": layer.damping,
        }
        for name, layer in found.items()
    }
    return {"source": found.source, "layers": layers, "left_out": found.left_out}
