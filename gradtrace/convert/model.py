"""What every public function of this room asks of its model: that it is one."""

from __future__ import annotations

from torch import nn

from gradtrace.errors import InvalidValueError

__all__ = ["check_model"]


def check_model(model: object, what: str = "model") -> None:
    """Refuse anything but a module.

    Raises:
        InvalidValueError: `model` is a state_dict, a path, a plan, ...
    """
    if not isinstance(model, nn.Module):
        raise InvalidValueError(
            what,
            expected="an nn.Module",
            got=type(model).__name__,
            remedy="build the model and load its weights into it first",
        )
