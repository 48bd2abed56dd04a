"""What `explain` asks of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtrace.evidence.confirm import Method, check_confirmation
from gradtrace.evidence.criterion import criterion
from gradtrace.evidence.definition import Criterion, Study
from gradtrace.evidence.given_scores import checked_share
from gradtrace.evidence.score import scores_provenance
from gradtrace.evidence.select import check_selection

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Question"]


@dataclass(frozen=True)
class Question:
    """What matters, by which score and at what density; what was learned, by which test at which rate."""

    by: str | Criterion
    options: Mapping[str, Any]
    density: float | None
    scope: str
    granularity: str
    test: str | Criterion
    method: Method
    q: float

    def check(self, study: Study) -> None:
        """Raise what a parameter's answer would, before any is waited for, so far as that can be told."""
        if self.density is not None:
            checked_share("density", self.density, "density=0.3")
            check_selection(self.density, None, self.scope, self.granularity)
        criterion(self.by).judge(study, self.options)
        test = criterion(self.test)
        check_confirmation(test, self.method, self.q)
        test.judge(study, {})

    @property
    def across(self) -> bool:
        """Whether its options speak of several parameters at once, so that these cannot be parted."""
        return any(self.options.get(one) for one in criterion(self.by).across)

    def provenance(self, ledger: Ledger, names: Sequence[str]) -> dict[str, Any]:
        """Where the answers come from, as JSON."""
        selection = {
            "density": self.density,
            "fdr": None,
            "scope": self.scope,
            "granularity": self.granularity,
        }
        confirmation = {"method": self.method, "q": self.q, "scope": "layer"}
        return {
            **scores_provenance(criterion(self.by), self.options, ledger, names),
            **({} if self.density is None else {"selection": selection}),
            "test": scores_provenance(criterion(self.test), {}, ledger, names)
            | {"confirmation": confirmation},
        }
