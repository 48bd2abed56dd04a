"""What a task is: a model, data, a training and a held-out judgement, all decided by a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["PRUNED", "Batch", "Quality", "Task", "pruned_names"]

Batch: TypeAlias = tuple[Tensor, ...]
PRUNED = (nn.Linear, nn.Conv2d)


class Quality(NamedTuple):
    """On held-out data: mean loss, lower = better; share guessed right, None where nothing is guessed."""

    loss: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Task:
    """One training, repeatable from its seed.

    `batches(seed, steps)` yields that many batches; `loss(model, batch)` is what is minimised and
    `validate(model)` what is reported. `rate(step, steps)` is the share of the optimizer's learning rate.
    `searched` tasks may choose a criterion; the others judge the one that was chosen.
    """

    name: str
    searched: bool
    steps: int
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    batches: Callable[[int, int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]
    validate: Callable[[nn.Module], Quality]
    rate: Callable[[int, int], float] = lambda step, steps: 1.0


def pruned_names(net: nn.Module) -> list[str]:
    """The weights that masks are made for: those of linear layers and convolutions, in the model's order."""
    return [f"{name}.weight" for name, module in net.named_modules() if isinstance(module, PRUNED)]
