"""What a case study's run learned, how much of it can go, and what `estimate` expected of its conversion."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case_contenders import CRITERIA
from torch import nn

import gradtrace as gt
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.latency import interleaved

if TYPE_CHECKING:
    from case_study import Case, Settings

__all__ = ["evidence", "expectations"]

NAMED_BY_THE_SOURCE = 0.7
ALLOWED = 0.01
STEPS = 20  # of a twentieth


def evidence(case: Case, net: nn.Module, ledger: gt.Ledger, folder: Path) -> dict[str, Any]:
    """Three shares of the decomposed layers' weights, and the one that the source names.

    Never supported: no step had a gradient. Not confirmed: no direction of learning, at a false discovery
    rate of 0.1. Removable: the largest multiple of a twentieth that can be zeroed, weight by weight by the
    default criterion, with no training after it, at a relative loss of 1% of the held-out quality.
    """
    record = folder / "evidence.json"
    stamp = (folder / "dense" / "model.safetensors").stat().st_mtime_ns
    if record.is_file() and (known := json.loads(record.read_text()))["stamp"] == stamp:
        return {key: value for key, value in known.items() if key != "stamp"}
    layers = [one for one in gt.assess(ledger, net).layers.values() if case.layers(one.name)]
    size = sum(one.dependencies for one in layers)
    unconfirmed = [one.dependencies - one.confirmed for one in layers if one.confirmed is not None]
    found = {
        "dependencies": size,
        "never_supported": sum(one.never_supported for one in layers) / size,
        "not_confirmed": sum(unconfirmed) / size if len(unconfirmed) == len(layers) else None,
        "removable": _removable(case, net, ledger),
        "source": NAMED_BY_THE_SOURCE,
    }
    write_whole(record, json.dumps(found | {"stamp": stamp}).encode(), "evidence")
    return found


def _removable(case: Case, net: nn.Module, ledger: gt.Ledger) -> float:
    scores = {n: one for n, one in gt.score(ledger, net, by=CRITERIA["ours"]).items() if case.layers(n)}
    whole = float(case.judged(net).mean())
    sign = -1.0 if case.lower_is_better else 1.0
    few, many = 0, STEPS  # `few` can go; `many` cannot
    while many - few > 1:
        between = (few + many) // 2
        masked = gt.apply_mask_(deepcopy(net), gt.select(scores, density=1 - between / STEPS))
        if sign * (whole - float(case.judged(masked).mean())) <= ALLOWED * abs(whole):
            few = between
        else:
            many = between
    return few / STEPS


def expectations(case: Case, settings: Settings, net: nn.Module, ledger: gt.Ledger) -> dict[str, Any]:
    """What `estimate` says of the density, and what a conversion without any recovery then gave."""
    batch = case.example(settings.batch)

    def quality(model: nn.Module) -> float:
        return float(case.judged(model).mean())

    linear = {f"{name}.weight" for name, one in net.named_modules() if isinstance(one, nn.Linear)}
    scores = {name: one for name, one in gt.score(ledger, net, CRITERIA["ours"]).items() if name in linear}
    found = gt.estimate(
        ledger,
        net,
        densities=(settings.density,),
        by=CRITERIA["ours"],
        tokens=settings.batch * case.tokens,
        validate=quality,
        inputs=ledger,
        example=batch,
    )
    (level,) = found.levels
    mask = gt.select(scores, density=settings.density, granularity="rows")
    plan = gt.plan(net, mask, tokens=settings.batch * case.tokens)
    made = gt.convert_(gt.compensate_(deepcopy(net), plan, ledger), plan).eval()
    beside = interleaved({"dense": net, "made": made}, batch, rounds=settings.rounds)
    expected, got = level.quality, quality(made)
    dense = found.dense.quality
    assert expected is not None
    assert dense is not None
    return {
        "density": settings.density,
        "expected_seconds": level.seconds,
        "got_seconds": beside["made"].median,
        "time_error": level.seconds / beside["made"].median - 1,
        "expected_speed": found.dense.seconds / level.seconds,
        "got_speed": beside["dense"].median / beside["made"].median,
        "dense_quality": dense,
        "expected_quality": expected,
        "got_quality": got,
        "quality_error": expected - got,
        "expected_layers": level.converted,
        "got_layers": len(plan.converted),
    }
