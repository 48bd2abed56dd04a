"""Goes on training a byte-level model: masked, annealing or as it is, with or without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import byte_model
import language
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import gradtrace as gt
from gradtrace.annealing.annealing import Annealing
from gradtrace.annealing.masking import Masking

__all__ = ["Looks", "went_on"]

Looks = list[tuple[int, float]]
"""Steps, and the held-out loss after them in nats a byte."""

EVERY = 100  # steps between two looks


def went_on(
    net: nn.Module,
    batches: Iterator[Tensor],
    steps: int,
    lr: float,
    on_step: Callable[[], object],
    *,
    masking: Masking | Annealing | None = None,
    ledger: gt.Ledger | None = None,
    teacher: nn.Module | None = None,
) -> Looks:
    """Train `steps` steps along language.py's schedule; looks at the beginning, the end and in between.

    From a teacher half of the loss is the divergence from what it says of every next byte (Hinton et al.,
    2015, Distilling the knowledge in a neural network).
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=language.DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: language.schedule(step, steps))
    if isinstance(masking, Annealing):
        masking.hold([optimizer])
    seen = [(0, byte_model.held_out(net.eval())[0])]
    net.train()
    for step, batch in enumerate(batches, 1):
        _loss(net, batch, teacher).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        if isinstance(masking, Masking):
            masking.apply_([optimizer])
        elif masking is not None:
            masking.step(step, lambda: ledger)
        on_step()
        if step % EVERY == 0 or step == steps:
            seen.append((step, byte_model.held_out(net.eval())[0]))
            net.train()
    return seen


def _loss(net: nn.Module, batch: Tensor, teacher: nn.Module | None) -> Tensor:
    if teacher is None:
        return byte_model.loss_of(net, batch)
    logits = net(batch[:, :-1]).flatten(0, 1)
    with torch.no_grad():
        said = log_softmax(teacher(batch[:, :-1]).flatten(0, 1), -1)
    apart = kl_div(log_softmax(logits, -1), said, log_target=True, reduction="batchmean")
    return (cross_entropy(logits, batch[:, 1:].flatten()) + apart) / 2
