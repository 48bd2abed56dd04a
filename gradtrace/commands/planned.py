"""From ledger and weights to a plan: what `plan` shows and `convert` goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtrace.commands.given_weights import given_weights
from gradtrace.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from gradtrace.evidence.mask import Mask
    from gradtrace.structure.plan import Plan

__all__ = ["plan_facts", "planned"]


def planned(
    ledger: str,
    weights: Path,
    *,
    by: str | None,
    density: float | None,
    fdr: float | None,
    scope: str,
    granularity: str,
    tokens: int,
    refuse: bool,
    model: str | None,
    max_latency: float | None,
    max_loss_increase: float | None,
    validate: str | None,
) -> tuple[Plan, Mask, nn.Module]:
    """The plan, the mask it carries out, and the module it is for: the user's own, or the ledger's layers."""
    import gradtrace as gt
    from gradtrace.commands.bare_layers import bare_layers
    from gradtrace.commands.named_target import quality
    from gradtrace.convert.budget import selected
    from gradtrace.evidence.criterion import DEFAULT

    asked = (density, fdr, max_latency, max_loss_increase)
    if sum(value is not None for value in asked) != 1:
        raise InvalidValueError(
            "--density, --fdr, --max-latency and --max-loss-increase",
            expected="exactly one of them",
            remedy="e.g. --density 0.3",
        )
    if max_loss_increase is not None and (validate is None or model is None):
        raise InvalidValueError(
            "--max-loss-increase", expected="--model and --validate, which tell what a mask costs"
        )
    opened = gt.Ledger.open(ledger)
    arrays, built = given_weights(weights, model)
    scores = gt.score(opened, arrays if built is None else built, by=by or DEFAULT)
    module = built if built is not None else bare_layers(opened, arrays)
    if density is not None or fdr is not None:
        mask = gt.select(scores, density=density, fdr=fdr, scope=scope, granularity=granularity)
        return gt.plan(module, mask, tokens=tokens, refuse=refuse), mask, module

    def loss(net: nn.Module) -> float:
        assert validate is not None
        return -quality(validate, net)

    made = gt.plan(
        module,
        scores,
        tokens,
        refuse,
        max_latency=max_latency,
        max_loss_increase=max_loss_increase,
        validate=None if max_loss_increase is None else loss,
        scope=scope,
        granularity=granularity,
    )
    found = made.provenance["budget"]["density"]
    return made, selected(module, scores, found, scope, granularity), module


def plan_facts(plan: Plan, mask: Mask) -> dict[str, Any]:
    """What `--json` tells of a plan."""
    layers = {
        name: {
            "choice": layer.choice,
            "sub_operators": len(layer.sub_operators),
            "kept": float(layer.mask.mean()),
            "predicted_seconds": layer.predicted,
            "dense_seconds": layer.dense,
            "measured_speed": layer.measured,
            "reason": layer.reason,
        }
        for name, layer in plan.items()
    }
    return {"density": mask.density, "layers": layers, "provenance": plan.provenance}
