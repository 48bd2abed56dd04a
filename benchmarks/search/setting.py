"""One way to make masks: a criterion, its options, the part of the training it looks at and the scope."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import gradtrace as gt

__all__ = ["CALIBRATED", "Setting", "candidates"]

CALIBRATED = "calibrated"
EXPONENTS = (0.25, 0.375, 0.5, 0.75, 1.0)
SPANS: tuple[Literal["all", "first", "last"], ...] = ("all", "last", "first")
UNITS = (None, "position", "sample")  # None: whole steps
FAMILY = ("fisher-step", "fisher")


@dataclass(frozen=True)
class Setting:
    """`span`: which half of the training the ledger's sums are over; `scope`: where the density is equal.

    An option of value CALIBRATED stands for the input moments of the final model on training data.
    """

    by: str
    options: tuple[tuple[str, Any], ...] = ()
    span: Literal["all", "first", "last"] = "all"
    scope: Literal["layer", "row"] = "layer"

    @property
    def label(self) -> str:
        """Names it in files and tables, such as "fisher-step exponent=0.5 last"."""
        words = [self.by, *(f"{name}={value}" for name, value in self.options)]
        words += [self.span] if self.span != "all" else []
        return " ".join(words + (["by row"] if self.scope == "row" else []))

    @property
    def kind(self) -> str:
        """The criterion's: ledger, statistic or control."""
        return {one.name: one.kind for one in gt.criteria()}.get(self.by, "ledger")


def candidates() -> list[Setting]:
    """Everything that is tried; what the library or a ledger cannot give is found out when it is asked.

    What is compared with comes first and variants last, so that a search that is under way says something.
    """
    known = [one.name for one in gt.criteria()]
    found = [Setting("wanda", (("inputs", CALIBRATED),), scope=scope) for scope in ("layer", "row")]
    found += [Setting("magnitude", scope="row")]
    found += [Setting(name) for name in known if name not in (*FAMILY, "wanda")]
    for span, per_row, unit, exponent in product(SPANS, (False, True), UNITS, EXPONENTS):
        options: list[tuple[str, Any]] = [] if unit is None else [("unit", unit)]
        options += [("exponent", exponent)]
        options += [("per_row", True)] if per_row else []
        found.append(Setting("fisher-step" if unit is None else "fisher", tuple(options), span))
    return found
