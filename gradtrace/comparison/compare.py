"""`compare`: every criterion's masks of one run, what they are worth, agree on, fall into and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.contender import Entrant, entrants
from gradtrace.comparison.cost import Cost, metered, reads
from gradtrace.comparison.layer_shape import LayerShape, layer_shape
from gradtrace.comparison.quality import checked_quality
from gradtrace.comparison.run import Run
from gradtrace.errors import GradtraceError, InvalidValueError
from gradtrace.evidence.agreement import agreement
from gradtrace.evidence.definition import Criterion, Study
from gradtrace.evidence.given_scores import checked_share
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.matching import study_of
from gradtrace.evidence.score import score
from gradtrace.evidence.select import select
from gradtrace.evidence.ties import tied_share
from gradtrace.evidence.weights import read_weights

if TYPE_CHECKING:
    from torch import nn

    from gradtrace.ledger.reader import Ledger

__all__ = ["DENSITIES", "compare"]

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)


def compare(
    ledger: Ledger | None,
    model: nn.Module | Mapping[str, Any],
    validate: Callable[[nn.Module], float] | None = None,
    *,
    by: Sequence[str | Criterion] | None = None,
    densities: Sequence[float] = DENSITIES,
    scope: str = "layer",
    granularity: str = "element",
    on_step: Callable[[str], object] = lambda what: None,
) -> Comparison:
    """Compare criteria on one run, one shot: what a mask drops is zeroed, nothing is trained or compensated.

    `model` holds the run's final weights and is left as it is; without `validate` a mapping of weights will
    do. `validate(model)` returns one number, larger = better (pass the negative of a loss); it is called once
    on the weights as they are and once a criterion and density, each time on a copy. `by`: names of criteria
    or Criterion objects; left out, all that the ledger can answer, less those that this run is not fit for,
    which `left_out` names. The controls `random` and `shuffled` always take part. `densities`, `scope` and
    `granularity` are those of `select`. `on_step` is told what was done: once a contender scored, and once a
    contender and density.

    Join the comparisons of several seeds with `Comparison.together`: intervals need at least two.

    Raises what `score` and `select` raise, and InvalidValueError for a density outside (0, 1] or given twice,
    for a quality that is no finite number, and for `validate` without a model to call it on.
    """
    wanted = _densities(densities)
    if validate is not None and not hasattr(model, "named_parameters"):
        raise InvalidValueError(
            "model", expected="an nn.Module, which validate can be asked of", got=type(model).__name__
        )
    study = study_of(ledger, read_weights(model))
    masks: list[dict[str, Mask]] = [{} for _ in wanted]
    ties: dict[str, tuple[float, ...]] = {}
    cost: dict[str, Cost] = {}
    left_out: dict[str, str] = {}
    present = []
    for one in entrants(ledger, by, scope=scope):
        name = one.contender.name
        if one.contender.control_of in left_out:
            on_step(f"leaving out {name}")
            continue
        try:
            scores, cost[name] = _scored(one, ledger, model, study, granularity)
        except GradtraceError as error:
            if by is not None or one.contender.kind == "control":
                raise
            left_out[name] = error.message
            continue
        finally:
            on_step(f"scoring {name}")
        for at, density in zip(masks, wanted, strict=True):
            at[name] = select(scores, density=density, scope=scope, granularity=granularity)
        ties[name] = tuple(tied_share(scores, at[name]) for at in masks)
        present.append(one.contender)
    asked: Any = model
    dense = None if validate is None else checked_quality(validate(deepcopy(asked)), "validate", "it")
    quality: dict[str, tuple[float, ...]] = {}
    layers = {}
    for line in present:
        shapes, values = [], []
        for at in masks:
            if validate is not None:
                values.append(_quality(model, at[line.name], validate))
            shapes.append(_shapes(study, model, at[line.name]))
            on_step(f"measuring {line.name}")
        layers[line.name] = tuple(shapes)
        if validate is not None:
            quality[line.name] = tuple(values)
    run = Run(
        ledger="" if ledger is None else str(ledger.path),
        run_id="" if ledger is None else ledger.run_id,
        steps=0 if ledger is None else ledger.steps,
        dense=dense,
        quality=quality,
        agreement=tuple(agreement(at) for at in masks),
        layers=layers,
        ties=ties,
        cost=cost,
        left_out=left_out,
    )
    return Comparison(wanted, scope, granularity, tuple(present), (run,))


def _densities(densities: Sequence[float]) -> tuple[float, ...]:
    wanted = tuple(float(checked_share("density", one, "densities=(0.3, 0.1)")) for one in densities)
    if not wanted or len(set(wanted)) < len(wanted):
        raise InvalidValueError(
            "densities", expected="at least one, each once", got=", ".join(f"{d:g}" for d in wanted) or "none"
        )
    return wanted


def _scored(
    one: Entrant, ledger: Ledger | None, model: object, study: Study, granularity: str
) -> tuple[Mapping[str, NDArray[np.float64]], Cost]:
    options = {} if one.shuffles is None else {"of": one.shuffles, "granularity": granularity}
    scores, seconds, memory = metered(lambda: score(ledger, model, one.criterion, **options))
    return scores, Cost(seconds, memory, reads(study, one.criterion, options))


def _quality(model: Any, mask: Mask, validate: Callable[[nn.Module], float]) -> float:
    from gradtrace.convert.surgery import apply_mask_

    return checked_quality(validate(apply_mask_(deepcopy(model), mask)), "validate", "it")


def _shapes(study: Study, model: object, mask: Mask) -> dict[str, LayerShape]:
    groups = _groups(model)
    return {
        name: layer_shape(kept, flipped=study.axes(name) == (1, 0), groups=groups.get(name, 1))
        for name, kept in mask.items()
    }


def _groups(model: object) -> dict[str, int]:
    # Of a mapping of weights nobody knows; a grouped layer is then taken for one of a single group.
    from gradtrace.ledger.names import canonical

    if not hasattr(model, "named_modules"):
        return {}
    return {
        canonical(f"{name}.weight"): module.groups
        for name, module in model.named_modules()
        if isinstance(getattr(module, "groups", None), int) and hasattr(module, "weight")
    }
