"""What each criterion's masks are worth on trained MLPs, weight by weight and in rows; what each misses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mnist import trained, validate

import gradtrace as gt
from gradtrace.evidence.never_supported import NeverSupported, never_supported, smallest

__all__ = ["CRITERIA", "DENSITIES", "STEPS", "Compared", "compared", "together"]

CRITERIA = ("fisher-step", "support", "displacement", "init", "magnitude")
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
# Steps that `compared` tells: each criterion and both controls, single weights and rows.
STEPS = 2 * (len(CRITERIA) + 2) * (1 + len(DENSITIES))
FDR = 0.05


class Compared(NamedTuple):
    """The criteria with single weights kept and with row groups, and who finds what had no event."""

    by_element: gt.Comparison
    by_rows: gt.Comparison
    never: NeverSupported


def compared(run: Path, step: Callable[[str], object]) -> Compared:
    """One run of train.py; `step` is called STEPS times with what was done."""
    net, ledger = trained(run), gt.Ledger.open(run / "mnist.ledger.zarr")

    def asked(granularity: str) -> gt.Comparison:
        return gt.compare(
            ledger,
            net,
            validate,
            by=CRITERIA,
            densities=DENSITIES,
            granularity=granularity,
            on_step=step,
        )

    scores = {name: gt.score(ledger, net, by=name) for name in ("init", "magnitude", "random")}
    return Compared(asked("element"), asked("rows"), missed(ledger, scores))


def missed(ledger: gt.Ledger, scores: dict[str, gt.Scores]) -> NeverSupported:
    """Who finds the dependencies without an event, without looking at the ledger."""
    names = tuple(scores["init"])
    counts = {name: int((ledger[name].events == 0).sum()) for name in names}
    rejected = gt.select(scores["init"], fdr=FDR)
    calls = {
        f"init: not rejected at fdr {FDR:g}": {name: ~rejected[name] for name in names},
        "magnitude: as many of the smallest, per layer": smallest(scores["magnitude"], counts),
        "random: as many, per layer": smallest(scores["random"], counts),
    }
    return never_supported(ledger, names, calls)


def together(runs: Sequence[Compared]) -> Compared:
    """Several runs as one, paired by seed; counts added."""
    by_element, by_rows, never = zip(*runs, strict=True)
    return Compared(
        gt.Comparison.together(by_element), gt.Comparison.together(by_rows), NeverSupported.together(never)
    )
