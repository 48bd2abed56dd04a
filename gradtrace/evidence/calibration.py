"""Is the null of `drift` right in this very run? Its p-values of the decoys that the run recorded say.

A decoy is a dependency's window sums with random signs (`gradtrace.recorder.decoys`): the noise of the run,
its unequal windows and its rare gradients are all there, a direction is not. So of the decoys of a parameter
a share of at most alpha should have p < alpha. Given the magnitudes decoys are independent, and a share is
off when it is above 1.2 alpha by more than chance: by the binomial distribution, at 0.001 over all levels and
parameters.

Decoys are judged as sums of uncorrelated windows, which they are: what `drift` takes off for correlation
between windows cannot be checked by them. Dependencies without any gradient have no decoy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binom

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.drift import self_normalised
from gradtrace.evidence.drift_tail import drift_pvalue

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["ALPHAS", "Calibration", "calibration", "warn_if_off"]

ALPHAS = (0.01, 0.05, 0.1)
_SLACK, _CHANCE = 1.2, 1e-3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """How many decoys of each parameter have p < alpha.

    Attributes:
        alphas: the levels.
        decoys: parameter -> how many decoys it has.
        rejected: parameter -> for each level, how many of them have a smaller p-value.
    """

    alphas: tuple[float, ...]
    decoys: Mapping[str, int]
    rejected: Mapping[str, tuple[int, ...]]

    def shares(self, name: str) -> tuple[float, ...]:
        """For each level, the share of a parameter's decoys with a smaller p-value."""
        return tuple(count / max(1, self.decoys[name]) for count in self.rejected[name])

    @property
    def off(self) -> tuple[tuple[str, float, float], ...]:
        """(parameter, alpha, share) of parameters that are off, at the first such alpha."""
        level = _CHANCE / max(1, len(self.decoys) * len(self.alphas))
        found = []
        for name, size in self.decoys.items():
            for alpha, count in zip(self.alphas, self.rejected[name], strict=True):
                if binom.sf(count - 1, size, min(1.0, _SLACK * alpha)) < level:
                    found.append((name, alpha, count / size))
                    break
        return tuple(found)

    @property
    def findings(self) -> tuple[str, ...]:
        """A sentence for each parameter whose null is off, or one that says that none is."""
        off = self.off
        if not off:
            return (f"Decoys of {len(self.decoys)} parameters: drift's p-values keep their level.",)
        return tuple(
            f"{name}: the null of drift is off: expected p < {alpha:g} for at most {_SLACK * alpha:.1%} of "
            f"its {self.decoys[name]:,} decoys, got {share:.1%}. Do not take its p-values as such: "
            'confirm by method="local", or by "e-bh" with the e-values of sign, or record with a smaller '
            "window_steps."
            for name, alpha, share in off
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "alphas": list(self.alphas),
            "decoys": dict(self.decoys),
            "shares": {name: list(self.shares(name)) for name in self.decoys},
            "off": [{"parameter": name, "alpha": alpha, "share": share} for name, alpha, share in self.off],
            "findings": list(self.findings),
        }


def calibration(
    ledger: Ledger, names: Sequence[str] | None = None, *, alphas: Sequence[float] = ALPHAS
) -> Calibration:
    """Judge the decoys of parameters, by default of all with at least two dimensions and two windows.

    Raises UnknownNameError for a name that is not there and a ledger without decoys, InvalidValueError for
    levels outside (0, 1) and a parameter with fewer than two windows.
    """
    if not alphas or not all(0 < alpha < 1 for alpha in alphas):
        raise InvalidValueError("alphas", expected="numbers in (0, 1)", got=repr(alphas))
    if "decoy_sum" not in ledger.accumulators:
        raise UnknownNameError(
            "decoys", expected="them in the ledger", got="none", remedy="record the next run with decoys=True"
        )
    usual = [name for name, one in ledger.items() if len(one.shape) >= 2 and one.windows >= 2]
    chosen = [ledger[name].name for name in (usual if names is None else names)]
    if short := [name for name in chosen if ledger[name].windows < 2]:
        raise InvalidValueError(
            f"windows recorded of {short[0]!r}",
            expected="at least 2",
            got=str(ledger[short[0]].windows),
            remedy="record more steps, or with a smaller window_steps",
        )
    decoys = dict.fromkeys(chosen, 0)
    rejected = {name: np.zeros(len(alphas), np.int64) for name in chosen}
    for block in ledger.walk(chosen, ("decoy_sum", "window_sumsq", "events")):
        squares = block.totals["window_sumsq"]
        seen = squares > 0
        ratio = self_normalised(block.totals["decoy_sum"][seen], squares[seen])
        record, events = ledger[block.name], block.totals["events"][seen]
        pvalues = drift_pvalue(ratio, windows=record.windows, steps=record.steps, events=events)
        decoys[block.name] += pvalues.size
        rejected[block.name] += [np.count_nonzero(pvalues < alpha) for alpha in alphas]
    counts = {name: tuple(map(int, each)) for name, each in rejected.items()}
    return Calibration(tuple(alphas), decoys, counts)


def warn_if_off(told: object) -> None:
    """Log a warning for each parameter that is off in what `Calibration.to_json` said; None says nothing."""
    if isinstance(told, Mapping) and told.get("off"):
        for finding in told["findings"]:
            _log.warning("%s", finding)
