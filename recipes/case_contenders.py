"""The models of a case study: dense, a smaller dense one, and masks of one structure, all recovered alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import gradtrace as gt
from gradtrace.evidence.whole_file import write_whole

if TYPE_CHECKING:
    from case_study import Case, Settings

__all__ = ["CRITERIA", "DENSE", "EQUAL", "contenders", "folder_of", "structured"]

DENSE, EQUAL = "dense", "dense, equal cost"
CRITERIA = {"magnitude": "magnitude", "wanda": "wanda", "ours": "fisher-step"}


def contenders(case: Case, settings: Settings, seed: int, folder: Path) -> dict[str, nn.Module]:
    """Name -> model, in eval mode, trained or recovered unless it lies in `folder` with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / "ledger.zarr"
    trained = {"seed": seed, **case.training}
    found = {
        DENSE: _kept(case, "dense", folder / DENSE, trained, partial(case.train, "dense", seed, ledger)),
        EQUAL: _kept(
            case,
            "equal cost",
            folder / folder_of(EQUAL),
            trained,
            partial(case.train, "equal cost", seed, None),
        ),
    }

    def masked(by: str) -> nn.Module:
        net = deepcopy(found[DENSE])
        plan = structured(case, net, gt.Ledger.open(ledger), by, settings)
        gt.compensate_(net, plan, gt.Ledger.open(ledger))
        recover(case, net, plan, settings, seed)
        return gt.convert_(net, plan)

    recovered = {"density": settings.density, "steps": settings.recovery, "rate": settings.rate, **trained}
    for label, by in CRITERIA.items():
        wanted = recovered | {"by": by}
        found[label] = _kept(case, "dense", folder / folder_of(label), wanted, partial(masked, by))
    return found


def _kept(
    case: Case, kind: str, place: Path, wanted: Mapping[str, Any], make: Callable[[], nn.Module]
) -> nn.Module:
    record = place.with_suffix(".json")
    if not (record.is_file() and json.loads(record.read_text()) == dict(wanted)):
        gt.save(make(), place)
        write_whole(record, json.dumps(dict(wanted)).encode(), "settings")
    return gt.load(case.fresh(kind), place).eval()


def folder_of(label: str) -> str:
    """Where a contender lies below its seed's folder."""
    return label.replace(",", "").replace(" ", "-")


def structured(
    case: Case, net: nn.Module, ledger: gt.Ledger, by: str, settings: Settings, refuse: bool = False
) -> gt.Plan:
    """Row groups of 64 outputs in each layer, by the criterion's scores."""
    scores = gt.score(ledger, net, by=by)
    wanted = {name: one for name, one in scores.items() if case.layers(name)}
    mask = gt.select(wanted, density=settings.density, granularity="rows")
    return gt.plan(net, mask, tokens=settings.batch * case.tokens, refuse=refuse)


def recover(case: Case, net: nn.Module, plan: gt.Plan, settings: Settings, seed: int) -> None:
    """Train what is kept along a cosine down to nothing; what is dropped stays zero."""
    hooks = []
    for name, layer in plan.items():
        weight: Any = net.get_parameter(f"{name}.weight")
        if layer.sub_operators:
            hooks.append(weight.register_hook(torch.from_numpy(layer.mask.copy()).__mul__))
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.recovery))
    net.train()
    for batch in case.batches(1000 + seed, settings.recovery):
        case.loss(net, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
    for hook in hooks:
        hook.remove()
    net.eval()
