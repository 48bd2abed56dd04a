"""Structural annealing: the bar is raised in stages, each validated, and backs off where that costs too much.

Every stage may spend an equal part of the loss budget. In it every weight matrix proposes to keep a tenth
less than before. If all of that together costs more than the stage may, each proposal is tried alone, and
those that cost least for each dependency dropped are taken, as many as fit together; the others halve their
step, and rest until the next stage once it has become small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradtrace import __version__
from gradtrace.convert.annealed import Annealed, Trial
from gradtrace.convert.compensate import Inputs, compensate_
from gradtrace.convert.input_moments import InputMoments
from gradtrace.convert.linear_uses import linear_uses
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.measured_moments import input_moments
from gradtrace.convert.model import check_model
from gradtrace.convert.surgery import apply_mask_
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.score import DEFAULT, score
from gradtrace.evidence.select import select
from gradtrace.ledger.reader import Ledger

__all__ = ["anneal"]

Densities: TypeAlias = dict[str, float]
Masks: TypeAlias = dict[str, NDArray[np.bool_]]

_STEP = 0.1
_REST = _STEP / 8


def anneal(
    model: nn.Module,
    ledger: Ledger | None,
    *,
    validate: Callable[[nn.Module], float],
    max_loss_increase: float,
    by: str = DEFAULT,
    granularity: str = "element",
    inputs: Inputs | None = None,
    stages: int = 8,
    on_trial: Callable[[Trial], object] | None = None,
) -> Annealed:
    """Drop as much of the linear layers as a loss budget allows, without training.

    Args:
        model: the trained model; it is not changed, and lies in memory twice meanwhile.
        ledger: its run's ledger; None for a criterion that needs none.
        validate: model -> held-out loss, smaller = better. The result is as deterministic as this is; it is
            called with a model in eval mode, for some 4 * stages * (layers + 6) trials at most.
        max_loss_increase: the budget, in the units of `validate`; no mask beyond it is ever returned.
        by: criterion that ranks dependencies (`gradtrace.criteria()`); scored once.
        granularity: "element", "tile" (16 x 16) or "rows" (64 outputs share one input set).
        inputs: compensate each trial from these, as `compensate_` does; left out: what is dropped is zeroed.
        stages: in how many equal parts the budget is spent.
        on_trial: called after each trial, for a progress bar.

    The mask is over the weights of nn.Linear and Hugging Face's Conv1D. To have the model that was validated
    last, `apply_mask_` it, or `compensate_` with the same inputs; or `plan` and `convert_`.

    Raises:
        InvalidValueError: a budget, a number of stages or a granularity out of range, a validation that is no
            function or returns no finite number for the dense model, no linear layer, or no nn.Module.
        What `score` and `compensate_` raise.
    """
    check_model(model)
    if not callable(validate):
        raise InvalidValueError(
            "validate", expected="a function from model to loss", got=type(validate).__name__
        )
    budget = _checked_budget(max_loss_increase)
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise InvalidValueError("stages", expected="an integer of at least 1", got=repr(stages))
    scores = _linear_scores(model, ledger, by, granularity)
    if inputs is not None and not isinstance(inputs, Ledger | InputMoments):
        inputs = input_moments(model, inputs)  # once, for all trials

    def loss_of(masks: Masks | None) -> float:
        net = deepcopy(model)
        if masks is not None and inputs is not None:
            compensate_(net, masks, inputs)
        elif masks is not None:
            apply_mask_(net, masks)
        return _number(validate(net.eval()))

    dense = loss_of(None)
    if not math.isfinite(dense):
        raise InvalidValueError("validate", expected="a finite loss of the dense model", got=repr(dense))
    walk = _Walk(scores, granularity, lambda masks: loss_of(masks) - dense, on_trial)
    for stage in range(1, stages + 1):
        walk.run(stage, budget * stage / stages)
    provenance = {
        "annealed": {"max_loss_increase": budget, "stages": stages, "granularity": granularity},
        "compensated": inputs is not None,
        "criterion": by,
        "run_id": None if ledger is None else ledger.run_id,
        "library_version": __version__,
    }
    return Annealed(Mask(walk.masks, provenance), dense, walk.increase, tuple(walk.history))


class _Tried(NamedTuple):
    masks: Masks
    densities: Densities
    trial: Trial


@dataclass
class _Walk:
    """Where annealing stands, and its steps."""

    scores: Mapping[str, NDArray[np.float64]]
    granularity: str
    increase_of: Callable[[Masks], float]
    on_trial: Callable[[Trial], object] | None
    increase: float = 0.0
    history: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.densities: Densities = dict.fromkeys(self.scores, 1.0)
        self.masks: Masks = {name: np.ones(np.shape(value), np.bool_) for name, value in self.scores.items()}

    def run(self, stage: int, allowed: float) -> None:
        """Drop what the stage may; afterwards no proposal of a step that is not small fits."""
        steps = dict.fromkeys(self.scores, _STEP)
        while live := [name for name, step in steps.items() if step >= _REST and self._drops(name, step)]:
            together = self._tried(stage, allowed, live, steps)
            if together.trial.fits:
                self._go_on_from(together)
                continue
            taken = self._cheapest(stage, allowed, live, steps) if len(live) > 1 else []
            for name in live:
                if name not in taken:
                    steps[name] /= 2

    def _cheapest(self, stage: int, allowed: float, live: list[str], steps: Densities) -> list[str]:
        """Those of the proposals that cost least for what they drop, as many as fit together, taken."""
        alone = {name: self._tried(stage, allowed, [name], steps) for name in live}
        fitting = [name for name in live if alone[name].trial.fits]
        fitting.sort(
            key=lambda name: (alone[name].trial.increase - self.increase) / self._drops(name, steps[name])
        )
        # More together cost more, nearly always: by bisection, and what is taken was validated as a whole.
        least, most, best = 2, min(len(fitting), len(live) - 1), 1
        found = alone[fitting[0]] if fitting else None
        while least <= most:
            middle = (least + most) // 2
            together = self._tried(stage, allowed, fitting[:middle], steps)
            if together.trial.fits:
                found, best, least = together, middle, middle + 1
            else:
                most = middle - 1
        if found is None:
            return []
        self._go_on_from(found)
        return fitting[:best]

    def _tried(self, stage: int, allowed: float, names: Iterable[str], steps: Densities) -> _Tried:
        """These proposals together, validated."""
        masks, densities = dict(self.masks), dict(self.densities)
        for name in names:
            masks[name] = self._mask(name, steps[name])
            densities[name] = self.densities[name] * (1 - steps[name])
        increase = self.increase_of(masks)
        trial = Trial(stage, allowed, densities, increase, increase <= allowed)
        self.history.append(trial)
        if self.on_trial is not None:
            self.on_trial(trial)
        return _Tried(masks, densities, trial)

    def _go_on_from(self, tried: _Tried) -> None:
        self.masks, self.densities, self.increase = tried.masks, tried.densities, tried.trial.increase

    def _mask(self, name: str, step: float) -> NDArray[np.bool_]:
        density = self.densities[name] * (1 - step)
        found = select({name: self.scores[name]}, density=density, granularity=self.granularity)
        return np.asarray(found[name])

    def _drops(self, name: str, step: float) -> int:
        """How many dependencies a proposal would drop."""
        return int(self.masks[name].sum() - self._mask(name, step).sum())


def _linear_scores(
    model: nn.Module, ledger: Ledger | None, by: str, granularity: str
) -> dict[str, NDArray[np.float64]]:
    uses = linear_uses(model)
    scores = score(ledger, model, by=by)
    # Masks by the model's own names; and here a granularity that does not exist is refused.
    whole = masks_by_name(model, select(scores, density=1.0, granularity=granularity))
    found = {
        name: scores[name]
        for name, (parameter, _) in whole.items()
        if id(parameter) in uses and not uses[id(parameter)].obstacle
    }
    if not found:
        raise InvalidValueError("model", expected="a linear layer among what was scored", got="none")
    return found


def _checked_budget(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidValueError(
            "max_loss_increase", expected="a finite number of at least 0", got=repr(value)
        )
    return float(value)


def _number(value: object) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidValueError("validate", expected="a number", got=repr(value)[:80]) from error
    # A loss that is no number fits no budget.
    return math.inf if math.isnan(found) else found
