"""Running a model to look at it: what a batch is, and eval mode for as long as it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

from torch import Tensor, nn

from gradtrace.errors import InvalidValueError

__all__ = ["arguments", "in_eval", "quality_of"]


def arguments(batch: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """What `batch` is to be called with: a tensor, a tuple of positional arguments or a dict of keywords.

    Raises:
        InvalidValueError: a batch of another kind.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Mapping):
        return (), {str(name): value for name, value in batch.items()}
    raise InvalidValueError(
        "batch", expected="a tensor, a tuple of arguments or a dict of keywords", got=type(batch).__name__
    )


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def quality_of(model: nn.Module, validate: Callable[[nn.Module], float]) -> float:
    """What `validate` says of `model` in eval mode.

    Raises:
        InvalidValueError: it says no finite number.
    """
    with in_eval(model):
        said: object = validate(model)
    try:
        number = float(said)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(
            "validate", expected="a function from model to number", got=repr(said)[:80]
        ) from error
    if not isfinite(number):
        raise InvalidValueError("validate", expected="a finite number", got=repr(number))
    return number
