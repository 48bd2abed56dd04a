"""`gradtrace criteria`."""

from __future__ import annotations

from gradtrace.commands.options import AsJson
from gradtrace.commands.output import show

__all__ = ["criteria"]


def criteria(as_json: AsJson = False) -> None:
    """List the criteria: how a dependency's evidence becomes a score.

    Example: `gradtrace criteria --json`
    """
    import gradtrace as gt
    from gradtrace.report.tables import criteria_table

    known = gt.criteria()
    rows = [
        {
            "name": c.name,
            "kind": c.kind,
            "description": c.description,
            "needs": list(c.needs),
            "needs_one_of": list(c.needs_one_of),
            "instead": c.instead or None,
            "pvalues": c.has_pvalues,
            "evalues": c.has_evalues,
            "options": sorted(c.options),
            "source": c.source,
        }
        for c in known
    ]
    show(as_json, {"criteria": rows}, criteria_table(known))
