"""`estimate`: how much could go, at which quality, time, memory and cost, before anything is converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest
from torch import Tensor, nn

from gradtrace.comparison.quality import checked_quality
from gradtrace.convert.compensate import Inputs, compensate_
from gradtrace.convert.evaluation import arguments
from gradtrace.convert.input_moments import InputMoments
from gradtrace.convert.linears import linears
from gradtrace.convert.measured_moments import input_moments
from gradtrace.convert.model import check_model
from gradtrace.convert.surgery import apply_mask_
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.estimation.assumptions import ERROR, assumptions
from gradtrace.estimation.dense_time import measured
from gradtrace.estimation.estimated import Estimate, Level, Range
from gradtrace.estimation.predicted_plan import predicted_plan
from gradtrace.estimation.traffic import Traffic
from gradtrace.evidence.criterion import DEFAULT
from gradtrace.evidence.given_scores import checked_share
from gradtrace.evidence.score import Scores, score
from gradtrace.evidence.select import select
from gradtrace.ledger.reader import Ledger

if TYPE_CHECKING:
    from gradtrace.structure.plan import Plan

__all__ = ["DENSITIES", "estimate"]

DENSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def estimate(
    ledger: Ledger | None,
    model: nn.Module,
    *,
    densities: Sequence[float] = DENSITIES,
    by: str | None = None,
    granularity: str = "rows",
    tokens: int = 512,
    validate: Callable[[nn.Module], float] | None = None,
    examples: int | None = None,
    max_loss: float = 0.01,
    inputs: Inputs | None = None,
    example: object = None,
    traffic: Traffic | None = None,
) -> Estimate:
    """Predict what converting `model` would give at each density; the model is not changed.

    Args:
        ledger: of the run that `model` is the end of; None goes by the weights alone (`by="magnitude"`).
        model: with its final weights, where it is to run.
        densities: shares of each linear layer's dependencies to keep, in (0, 1].
        by: the criterion that ranks them; None takes the default.
        granularity: as for `select`.
        tokens: rows of input that a linear layer gets in one call.
        validate: model -> quality, larger is better. It is asked of copies with what is dropped zeroed, which
            is what a converted model must equal. Without it, nothing is said of quality.
        examples: on how many `validate` judges, for the interval of a quality that is a share of them.
        max_loss: relative loss of quality that is allowed.
        inputs: compensate as `compensate_` does, from a ledger, batches or moments.
        example: one batch as the model takes it: the dense model is then timed on it as a whole. Without it
            only its linear layers are, and every other part of a call is left out.
        traffic: what is asked of the model, and what a machine costs. An item is one of the example's first
            dimension, or one of `tokens`.

    Raises what `score`, `select` and `compensate_` raise, InvalidValueError for arguments out of range, and
    UnsupportedError for a model without a linear layer that was scored.
    """
    check_model(model)
    kept = sorted(
        {checked_share("densities", one, "densities=(0.5, 0.3)") for one in densities}, reverse=True
    )
    if not kept:
        raise InvalidValueError("densities", expected="at least one in (0, 1]", got="none")
    if type(tokens) is not int or tokens < 1:
        raise InvalidValueError("tokens", expected="an integer of at least 1", got=repr(tokens))
    if examples is not None and (type(examples) is not int or examples < 1):
        raise InvalidValueError("examples", expected="an integer of at least 1", got=repr(examples))
    allowed = _checked_loss(max_loss)
    by = by or (DEFAULT if ledger is not None else "magnitude")
    scores = _of_linears(model, score(ledger, model, by))
    moments = inputs
    if inputs is not None and not isinstance(inputs, Ledger | InputMoments):
        moments = input_moments(model, inputs)
    whole = {name: np.broadcast_to(np.True_, one.shape) for name, one in scores.items()}
    base = predicted_plan(model, whole, tokens)
    predicted = sum(layer.dense for layer in base.values())
    seconds, linear = (predicted, predicted) if example is None else measured(model, example, tokens)
    items = tokens if example is None else _items(example)

    def level(density: float, plan: Plan) -> Level:
        gone = sum(layer.mask.size - layer.weights for layer in plan.values())
        left = (
            sum(min(layer.predicted, layer.dense) for layer in plan.values()) / predicted
            if predicted
            else 1.0
        )
        taken = seconds - linear * (1 - left)
        width = ERROR if plan.converted else 0.0
        span = (taken * (1 - width), taken * (1 + width))
        judged, judged_span = _quality(model, plan, validate, moments, examples)
        saved = None if traffic is None else _saved(traffic, seconds, taken, items)
        saved_span = (
            None
            if traffic is None
            else (_saved(traffic, seconds, span[1], items), _saved(traffic, seconds, span[0], items))
        )
        weights = sum(layer.mask.size for layer in plan.values())
        return Level(
            density=density,
            removed=gone / max(1, weights),
            converted=len(plan.converted),
            quality=judged,
            quality_range=judged_span,
            seconds=taken,
            seconds_range=span,
            bytes=_bytes(model, plan),
            saved=saved,
            saved_range=saved_span,
        )

    dense = level(1.0, base)
    levels = tuple(
        level(one, predicted_plan(model, select(scores, one, granularity=granularity), tokens))
        for one in kept
    )
    return Estimate(
        dense=dense,
        levels=levels,
        max_loss=allowed,
        assumptions=assumptions(by, granularity, tokens, example, validate, examples, inputs, traffic),
    )


def _checked_loss(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InvalidValueError("max_loss", expected="a share in [0, 1)", got=repr(value))
    return float(value)


def _of_linears(
    model: nn.Module, scores: Scores
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    names = {layer.parameter_name for layer in linears(model).values()}
    found = {name: one for name, one in scores.items() if name in names}
    if not found:
        raise UnsupportedError(
            "the model",
            expected="a linear layer whose weight was recorded",
            got=f"none among {len(names)} linear layers and {len(scores)} scored parameters",
            remedy="pass the model that was trained, or ledger=None",
        )
    return found


def _items(example: object) -> int:
    positional, keywords = arguments(example)
    for value in (*positional, *keywords.values()):
        if isinstance(value, Tensor) and value.ndim:
            return max(1, value.shape[0])
    return 1


def _quality(
    model: nn.Module,
    plan: Plan,
    validate: Callable[[nn.Module], float] | None,
    inputs: Inputs | None,
    examples: int | None,
) -> tuple[float | None, Range | None]:
    if validate is None:
        return None, None
    copy = deepcopy(model)
    if plan.converted:
        copy = apply_mask_(copy, plan) if inputs is None else compensate_(copy, plan, inputs)
    found = checked_quality(validate(copy.eval()), "validate", "validate(model)")
    if examples is None or not 0 <= found <= 1:
        return found, None
    around = binomtest(round(found * examples), examples).proportion_ci(method="wilson")
    return found, (float(around.low), float(around.high))


def _saved(traffic: Traffic, dense: float, seconds: float, items: int) -> float:
    return traffic.yearly(dense / items) - traffic.yearly(seconds / items)


def _bytes(model: nn.Module, plan: Plan) -> int:
    layers = linears(model)
    total = sum(one.numel() * one.element_size() for one in model.parameters())
    for name in plan.converted:
        weight = layers[name].parameter
        indices = sum(len(part.inputs) + len(part.outputs) for part in plan[name].sub_operators)
        total += (plan[name].weights - plan[name].mask.size) * weight.element_size() + 8 * indices
    return total
