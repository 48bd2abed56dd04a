"""What frameworks wrap around a model and its optimizer, told by class name: none is imported here."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["bare_class", "bare_model", "bare_optimizer"]


def bare_model(model: nn.Module) -> nn.Module:
    """The user's own module inside Fabric, DDP and DataParallel wrappers."""
    while (
        isinstance(model, DistributedDataParallel | DataParallel) or type(model).__name__ == "_FabricModule"
    ):
        model = model.module  # type: ignore[assignment]
    return model


def bare_class(module: nn.Module) -> type[nn.Module]:
    """The user's own class of a module; `fully_shard` puts one of its own, such as FSDPLinear, before it."""
    kind = type(module)
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        return next(base for base in kind.__bases__ if base.__name__ != "FSDPModule")
    return kind


def bare_optimizer(optimizer: Optimizer) -> tuple[Optimizer, GradScaler | None]:
    """The optimizer inside the wrapper of accelerate or Fabric, and the fp16 scaler that wrapper steps with.

    Only these wrappers are opened: others of that shape, such as Lookahead, change what a step does.
    """
    scaler: GradScaler | None = None
    while True:
        wrapper: Any = optimizer
        # Fabric derives a class of its own from its wrapper and the optimizer's class.
        kinds = {base.__name__ for base in type(wrapper).__mro__}
        if "AcceleratedOptimizer" in kinds:
            found = wrapper.scaler
        elif "_FabricOptimizer" in kinds:
            found = getattr(wrapper._strategy.precision, "scaler", None)
        else:
            return optimizer, scaler
        scaler, optimizer = scaler or found, wrapper.optimizer
