"""What compensation would do to a model, layer by layer, before anything is done; and doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.arms import drop_
from gradtrace.convert.linear_uses import LinearUse, linear_uses
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.model import check_model
from gradtrace.errors import MismatchError, UnknownNameError

__all__ = ["Compensation", "LayerCompensation", "digest_of"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class LayerCompensation:
    """One layer's refitted weights, and what they are worth.

    `before` and `after` are the mean squared error that the mask brings into the layer's output, alone and
    compensated, in shares of the output's variance, as the input moments predict them; `checked` is the same
    two on the batch that `check` was given, or None. `positions`: how many the moments are over; `damping`:
    what was used. `weight` and `bias` are the new values, in the parameters' shapes and dtypes, `bias` None
    without one; `digest` tells the old ones.
    """

    before: float
    after: float
    checked: tuple[float, float] | None
    positions: int
    damping: float
    weight: Tensor
    bias: Tensor | None
    digest: int

    @property
    def removed(self) -> float:
        """Share of the mask's error that compensation takes away; 0 where there was none."""
        return 1 - self.after / self.before if self.before else 0.0


class Compensation(Mapping[str, LayerCompensation]):
    """Layer name -> LayerCompensation, for every linear layer whose weight loses something.

    `source` says where the input moments are from, `left_out` maps each masked parameter that is only zeroed
    to the reason.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerCompensation],
        masks: Mapping[str, NDArray[np.bool_]],
        source: str,
        left_out: Mapping[str, str],
    ) -> None:
        self._layers, self._masks = dict(layers), dict(masks)
        self.source, self.left_out = source, dict(left_out)

    def __getitem__(self, name: str) -> LayerCompensation:
        if name not in self._layers:
            raise UnknownNameError(
                f"no layer '{name}' in this compensation", expected=", ".join(self._layers) or "none"
            )
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"<Compensation of {len(self)} layers, {len(self.left_out)} left out, from {self.source}>"

    @torch.no_grad()
    def apply_(self, model: Model) -> Model:
        """Put the refitted weights and biases in, and zero what the mask drops, in place; returns the model.

        Everything is checked before anything is written.

        Raises:
            MismatchError: the model, or a copy of it, is not the one this was made for, or was changed since.
            InvalidValueError: no nn.Module.
        """
        check_model(model)
        masks = masks_by_name(model, self._masks)
        uses = {use.name: use for use in linear_uses(model).values()}
        for name, layer in self._layers.items():
            if name not in uses or digest_of(uses[name]) != layer.digest:
                raise MismatchError(
                    f"the compensation was made for other weights: layer '{name}'",
                    expected="the model as it was then, or a copy",
                    got="other weights" if name in uses else "no such layer",
                    remedy="make it again for this model",
                )
        for name, layer in self._layers.items():
            uses[name].write_(layer.weight, layer.bias)
        drop_(masks, "zero")
        return model


def digest_of(use: LinearUse) -> int:
    """crc32c of a layer's weight and bias as they are now."""
    value = 0
    for parameter in (use.parameter, use.bias):
        if parameter is not None:
            flat = parameter.detach().cpu().contiguous().view(-1)
            value = google_crc32c.extend(value, flat.view(torch.uint8).numpy().tobytes())
    return value
