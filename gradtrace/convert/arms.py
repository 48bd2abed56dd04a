"""What becomes of the weights that a mask drops: zero, back to the opening balance, or left as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["ARMS", "Arm", "check_arm", "drop_"]

Arm: TypeAlias = Literal["zero", "reset", "keep"]
ARMS: tuple[Arm, ...] = ("zero", "reset", "keep")

Masks: TypeAlias = Mapping[str, tuple[Tensor, NDArray[np.bool_]]]


def check_arm(dropped: object, ledger: Ledger | None) -> None:
    """Raise InvalidValueError for what is no arm, and for a reset without the ledger to take it from."""
    if dropped not in ARMS:
        raise InvalidValueError("dropped", expected=f"one of {', '.join(ARMS)}", got=repr(dropped))
    if dropped == "reset" and ledger is None:
        raise InvalidValueError(
            "dropped='reset'",
            expected="the run's ledger, which holds the opening balance",
            got="None",
            remedy="pass ledger=gradtrace.Ledger.open(path)",
        )


@torch.no_grad()
def drop_(masks: Masks, dropped: Arm, ledger: Ledger | None = None) -> None:
    """Do to each parameter what `dropped` says, in place, where its mask is False.

    Nothing is changed before every opening balance that is needed has been found and fits.

    Raises:
        MismatchError: the ledger has no such parameter, or one of another shape.
    """
    chosen = {name: pair for name, pair in masks.items() if not pair[1].all()}
    if dropped == "keep":
        return
    if dropped == "reset":
        assert ledger is not None
        for name, (parameter, _) in chosen.items():
            _check(ledger, name, tuple(parameter.shape))
    for name, (parameter, kept) in chosen.items():
        gone = torch.from_numpy(~kept).to(parameter.device)
        if dropped == "zero" or ledger is None:
            parameter.masked_fill_(gone, 0)
        else:
            opening = torch.from_numpy(np.ascontiguousarray(ledger[name].opening))
            parameter.copy_(torch.where(gone, opening.to(parameter.device, parameter.dtype), parameter))


def _check(ledger: Ledger, name: str, shape: tuple[int, ...]) -> None:
    if name not in ledger:
        raise MismatchError(
            f"opening balance of {name!r}",
            expected="the parameter in the ledger",
            got="none of that name",
            remedy="pass the ledger of this model's run, or a mask of what it recorded",
        )
    if tuple(ledger[name].shape) != shape:
        raise MismatchError(
            f"opening balance of {name!r}",
            expected=f"shape {shape}",
            got=str(tuple(ledger[name].shape)),
            remedy="pass the ledger of this model's run",
        )
