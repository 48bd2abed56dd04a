"""The density to which a budget of time or of loss leads.

Densities are the multiples of 1/256. A search halves an interval between a density that fits and one that
does not, so that the one found fits and its neighbour does not; where more kept never takes less time or
loses more, it is the largest that meets the time, or the smallest that meets the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

from torch import nn

from gradtrace.convert.surgery import apply_mask_
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.mask import Mask
from gradtrace.structure.plan import DENSE, LayerPlan, Plan

__all__ = ["within_latency", "within_loss"]

STEPS = 256
_ROUNDS = 8
_NEARLY = 0.95

Selected = Callable[[float], Mask]


def within_latency(
    at: Selected, plan_of: Callable[[Mask, bool], Plan], seconds: float, *, refuse: bool
) -> Plan:
    """The plan of a density whose layers together take at most `seconds`, and nearly that.

    A layer takes what is measured where `plan_of(mask, True)` measures it, else what is predicted. Densities
    are proposed by predictions (of `plan_of(mask, False)`, which refuses nothing), each times what measured /
    predicted was in this layer at the last proposal, until one takes 95% of the time, or no larger one is
    proposed. What was refused for being measured no faster than dense is taken to have measured as fast.

    Raises:
        InvalidValueError: no density is fast enough.
    """
    slower: dict[str, float] = {}
    tried: list[float] = []
    best, good, bad = None, 0, STEPS + 1

    def expected(density: float) -> float:
        layers = plan_of(at(density), False)
        return sum(_expected(layers[name], slower.get(name, 1.0), refuse=refuse) for name in layers)

    for _ in range(_ROUNDS):
        fast = expected(1.0) <= seconds
        step = STEPS if fast else _boundary(lambda k: expected(k / STEPS) <= seconds, 0, STEPS)
        step = min(step, bad - 1)
        if step <= good:
            break
        hoped, found = plan_of(at(step / STEPS), False), plan_of(at(step / STEPS), True)
        taken = sum(_taken(layer) for layer in found.values())
        tried.append(taken)
        if taken <= seconds:
            best, good = found, step
            found.provenance["budget"] = {"max_latency": seconds, "density": step / STEPS, "seconds": taken}
            if taken >= _NEARLY * seconds:
                break
        else:
            bad = step
        for name, layer in found.items():
            if _promises(hoped[name]):
                slower[name] = _taken(layer) / hoped[name].predicted
    if best is not None:
        return best
    raise InvalidValueError(
        "max_latency",
        expected=f"at least {min(tried, default=expected(1 / STEPS)):.3g}, the fastest that was found",
        got=f"{seconds:.3g}",
        remedy="allow more time, or plan for fewer tokens",
    )


def within_loss(
    model: nn.Module, at: Selected, validate: Callable[[nn.Module], float], increase: float
) -> tuple[Mask, dict[str, float]]:
    """The mask of the smallest density at which the masked model's loss is at most dense + `increase`.

    Also what to tell: the density, the dense loss and the masked model's increase over it.

    Raises:
        InvalidValueError: `validate` returns no number, or no finite one for the dense model.
    """

    def loss_of(mask: Mask | None) -> float:
        net = deepcopy(model)
        return _number(validate((net if mask is None else apply_mask_(net, mask)).eval()))

    dense = loss_of(None)
    if not math.isfinite(dense):
        raise InvalidValueError("validate", expected="a finite loss of the dense model", got=repr(dense))
    losses = {STEPS: dense}

    def fits(step: int) -> bool:
        losses[step] = loss_of(at(step / STEPS))
        return losses[step] <= dense + increase

    step = _boundary(fits, STEPS, 0)
    told = {"max_loss_increase": increase, "density": step / STEPS, "loss": dense}
    return at(step / STEPS), told | {"increase": losses[step] - dense}


def _boundary(fits: Callable[[int], bool], good: int, bad: int) -> int:
    """The last step that fits between `good`, which is taken to, and `bad`, which is taken not to."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _promises(layer: LayerPlan) -> bool:
    # What multiplies as much as dense does is refused whatever it measures.
    return layer.choice != DENSE and 0 < layer.weights < layer.mask.size


def _expected(layer: LayerPlan, slower: float, *, refuse: bool) -> float:
    if layer.choice == DENSE or (refuse and layer.weights >= layer.mask.size):
        return layer.dense
    seconds = layer.predicted * slower
    return min(seconds, layer.dense) if refuse else seconds


def _taken(layer: LayerPlan) -> float:
    return layer.dense / layer.measured if layer.measured else layer.predicted


def _number(value: object) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidValueError("validate", expected="a number", got=repr(value)[:80]) from error
    # A loss that is no number fits no budget.
    return math.inf if math.isnan(found) else found
