"""What a plan is to come to: a density, a time or a loss; and what is kept at a density.

Only weights of linear layers that can be replaced are selected from: a plan carries out no other masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from gradtrace.convert.linears import linears
from gradtrace.convert.masks import masks_by_name
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.select import select

__all__ = ["Budget", "selected"]


@dataclass(frozen=True)
class Budget:
    """At most one of the first three, and `validate` with the third.

    Raises:
        InvalidValueError: two of them, a latency that is not above 0, an increase below 0, a validation that
            is missing, is no function, or has nothing to do.
    """

    density: float | None = None
    max_latency: float | None = None
    max_loss_increase: float | None = None
    validate: Callable[[nn.Module], float] | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("density", "max_latency", "max_loss_increase")}
        asked = [name for name, value in given.items() if value is not None]
        if len(asked) > 1:
            raise InvalidValueError(
                "density, max_latency and max_loss_increase", expected="one of them", got=" and ".join(asked)
            )
        _check_number("max_latency", self.max_latency, "seconds above 0", above=0.0)
        _check_number("max_loss_increase", self.max_loss_increase, "a finite number of at least 0")
        if (self.validate is not None) != (self.max_loss_increase is not None) or not (
            self.validate is None or callable(self.validate)
        ):
            raise InvalidValueError(
                "validate",
                expected="a function from model to loss, together with max_loss_increase",
                got="None" if self.validate is None else type(self.validate).__name__,
                remedy="pass e.g. max_loss_increase=0.05, validate=held_out_loss",
            )

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return not (self.density is None and self.max_latency is None and self.max_loss_increase is None)


def selected(
    model: nn.Module, scores: Mapping[str, Any], density: float, scope: str, granularity: str
) -> Mask:
    """What `select` keeps of the weights of the model's linear layers, of those that can be replaced.

    Raises:
        InvalidValueError: masks in place of scores, no score of such a layer, and what `select` refuses.
        MismatchError: scores of another model.
    """
    if not isinstance(scores, Mapping) or any(
        getattr(value, "dtype", None) == np.bool_ for value in scores.values()
    ):
        raise InvalidValueError(
            "mask",
            expected="scores, as gt.score makes them, with a density, max_latency or max_loss_increase",
            got="a mask" if isinstance(scores, Mapping) else type(scores).__name__,
            remedy="pass the scores, or the mask alone",
        )
    everything = select(scores, density=1.0, granularity=granularity)
    usable: dict[int, bool] = {}
    for layer in linears(model).values():
        usable[id(layer.parameter)] = usable.get(id(layer.parameter), True) and not layer.obstacle
    found = masks_by_name(model, everything)
    names = {name for name, (parameter, _) in found.items() if usable.get(id(parameter))}
    if not names:
        raise InvalidValueError("scores", expected="those of a linear layer of the model", got="none")
    chosen = select(
        {name: scores[name] for name in scores if name in names},
        density=density,
        scope=scope,
        granularity=granularity,
    )
    return Mask(dict(chosen), dict(getattr(scores, "provenance", None) or {}) | chosen.provenance)


def _check_number(name: str, value: object, expected: str, *, above: float | None = None) -> None:
    if value is None:
        return
    plain = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not plain or value == above:
        raise InvalidValueError(name, expected=expected, got=repr(value)[:80])
