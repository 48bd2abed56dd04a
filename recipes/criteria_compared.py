"""What each criterion's masks are worth on trained MLPs, how far they agree, and what each one misses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mnist import trained, validate

import gradtrace as gt
from gradtrace.evidence.agreement import Agreement, agreement
from gradtrace.evidence.curves import Curves, quality_at_density
from gradtrace.evidence.never_supported import NeverSupported, never_supported, smallest
from gradtrace.evidence.ties import tied_share

__all__ = ["AGREE_AT", "CRITERIA", "DENSITIES", "Compared", "compared", "together"]

CRITERIA = ("fisher-step", "support", "displacement", "init", "magnitude", "random")
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
AGREE_AT = 0.3
FDR = 0.05


class Compared(NamedTuple):
    """Accuracy with single weights kept and with row groups; agreement, ties and what is missed.

    `ties`: criterion -> share of what it keeps at density AGREE_AT that the lot decided, not the score.
    """

    by_element: Curves
    by_rows: Curves
    agreement: Agreement
    never: NeverSupported
    ties: dict[str, float]


def compared(run: Path, step: Callable[[], None]) -> Compared:
    """One run of train.py; `step` is called once a criterion and 2 x len(DENSITIES) times more for each."""
    net, ledger = trained(run), gt.Ledger.open(run / "mnist.ledger.zarr")

    def evaluate(mask: gt.Mask) -> float:
        step()
        return validate(gt.apply_mask_(deepcopy(net), mask))

    scores = {}
    for name in CRITERIA:
        scores[name] = gt.score(ledger, net, by=name)
        step()
    masks = {name: gt.select(score, density=AGREE_AT) for name, score in scores.items()}
    return Compared(
        quality_at_density(scores, evaluate, DENSITIES),
        quality_at_density(scores, evaluate, DENSITIES, granularity="rows"),
        agreement(masks),
        missed(ledger, scores),
        {name: tied_share(scores[name], mask) for name, mask in masks.items()},
    )


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
    """Several runs as one: curves side by side, agreement averaged, counts added, ties at their median."""
    by_element, by_rows, agreements, never, ties = zip(*runs, strict=True)
    return Compared(
        Curves.together(by_element),
        Curves.together(by_rows),
        mean_agreement(agreements),
        NeverSupported.together(never),
        {name: float(np.median([run[name] for run in ties])) for name in ties[0]},
    )


def mean_agreement(runs: Sequence[Agreement]) -> Agreement:
    def mean(matrices: list[Any]) -> Any:
        return tuple(tuple(float(x) for x in row) for row in np.mean(matrices, axis=0))

    return Agreement(runs[0].names, mean([r.jaccard for r in runs]), mean([r.chance for r in runs]))
