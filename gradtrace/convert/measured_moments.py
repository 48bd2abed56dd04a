"""Input moments taken from batches, by running the model on them in eval mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.convert.evaluation import arguments, in_eval
from gradtrace.convert.input_moments import InputMoments, LayerMoments
from gradtrace.convert.linear_uses import LinearUse, linear_uses
from gradtrace.convert.listening import AfterForward, listening
from gradtrace.convert.model import check_model
from gradtrace.errors import InvalidValueError

__all__ = ["input_moments"]


class _Sums:
    """Sums over positions of x and x x^T, float64, on the host."""

    def __init__(self, size: int) -> None:
        self.positions = 0
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.gram = torch.zeros(size, size, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add (..., I)."""
        flat = x.detach().reshape(-1, x.shape[-1])
        # Not every device has float64; there the product is taken on the host.
        flat = (flat.cpu() if flat.device.type == "mps" else flat).double()
        self.positions += len(flat)
        self.sum += flat.sum(0).cpu()
        if flat.device.type == "cpu":
            self.gram.addmm_(flat.T, flat)
        else:
            self.gram += (flat.T @ flat).cpu()

    def moments(self) -> LayerMoments:
        """Their means."""
        return LayerMoments(
            self.positions, (self.sum / self.positions).numpy(), (self.gram / self.positions).numpy()
        )


@torch.no_grad()
def input_moments(model: nn.Module, batches: Iterable[object]) -> InputMoments:
    """Run `model` in eval mode on every batch, and take the moments of the inputs of its linear layers.

    A batch is what the model is called with: a tensor, a tuple of positional arguments or a dict of keyword
    arguments, on the model's device; of a loader that yields labels too, pass `(x for x, _ in loader)`.
    Layers are nn.Linear and Hugging Face's Conv1D, whose inputs are the last axis; all further axes count as
    positions. 8 bytes for each pair of a layer's inputs are held on the host. The model is left as it is.

    Raises:
        InvalidValueError: no batch, one of another kind, inputs that are not finite, or no nn.Module.
    """
    check_model(model)
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | bytes):
        raise InvalidValueError(
            "batches",
            expected="an iterable of batches",
            got=type(batches).__name__,
            remedy="pass [batch] for a single one",
        )
    uses = {use.name: use for use in linear_uses(model).values()}
    sums: dict[str, _Sums] = {}
    count = 0
    with in_eval(model), listening((use.module, _adding(use, sums)) for use in uses.values()):
        for batch in batches:
            args, kwargs = arguments(batch)
            model(*args, **kwargs)
            count += 1
    if not count:
        raise InvalidValueError("batches", expected="at least one batch", got="none")
    found = {name: sums[name] for name in uses if name in sums and sums[name].positions}
    if uses and not found:
        raise InvalidValueError("batches", expected="an input of a linear layer", got="none in them")
    source = f"{count} batch{'es' if count > 1 else ''}"
    return InputMoments(source, found, lambda name: found[name].moments())


def _adding(use: LinearUse, sums: dict[str, _Sums]) -> AfterForward:
    def add(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], __: object) -> None:
        x = given[0] if given else next(iter(named.values()))
        sums.setdefault(use.name, _Sums(use.inputs)).add(x)

    return add
