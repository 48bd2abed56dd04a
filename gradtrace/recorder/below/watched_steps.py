"""Which steps are watched, and what a recorder takes from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from gradtrace.errors import UnsupportedError
from gradtrace.ledger.format import InputInfo
from gradtrace.recorder.below.step_evidence import StepEvidence
from gradtrace.recorder.below.wanted import Wanted
from gradtrace.recorder.below.watch import Watch
from gradtrace.recorder.parameters import Candidate
from gradtrace.recorder.sampling import drawn
from gradtrace.recorder.shards import is_sharded

__all__ = ["WatchedSteps", "is_watched"]

_SEED = 1


def is_watched(step: int, every: int) -> bool:
    """Whether a step is watched: one of `every`, a power of two, drawn at random from its number alone.

    Apart from the steps that `overhead=` samples, so that the two say nothing about each other.
    """
    return drawn(step, every, _SEED)


class WatchedSteps:
    """Arms a Watch for the steps that are drawn, and hands over what it found.

    The first step after a start is always watched and used only if it was drawn: until the ledger is open,
    its number is not known.

    Args:
        model: the module that trains.
        candidates: the parameters that may be recorded.
        wanted: which sums are taken.
        every: one step of this many is watched, a power of two.
        ranks: how many processes train the model together.

    Raises:
        UnsupportedError: samples are wanted, and a module ties samples together; or the ranks compute parts
            of one layer (tensor parallel, or sharded in several dimensions). It is named.
    """

    def __init__(
        self, model: nn.Module, candidates: Sequence[Candidate], wanted: Wanted, every: int, ranks: int
    ) -> None:
        self._model, self._wanted, self.every, self._ranks = model, wanted, every, ranks
        _refuse_parts_of_layers(model, candidates)
        self._candidates = list(candidates)
        self._watch = Watch(model, candidates, wanted)
        self._watch.begin()

    @property
    def accumulators(self) -> tuple[str, ...]:
        """What an entry must hold for it."""
        return (*self._wanted.accumulators, *self._wanted.moments)

    def look_again(self, candidates: Sequence[Candidate]) -> None:
        """Watch the parameters that the model has now, if they are others than before."""
        if [id(one.parameter) for one in candidates] != [id(one.parameter) for one in self._candidates]:
            self.close()
            self._candidates = list(candidates)
            self._watch = Watch(self._model, candidates, self._wanted)

    def inputs(self, names: Collection[str]) -> list[InputInfo]:
        """The modules whose inputs are summed, where the weights of these names are recorded."""
        return self._watch.inputs(names)

    def take(
        self, step: int, optimizer: Optimizer, scaler: GradScaler | None, skip: torch.Tensor | None
    ) -> StepEvidence | None:
        """Return the evidence of the step that ends here; None where it was not drawn.

        Where several optimizers step after one backward pass, the first one's step is drawn, or not, for all.
        """
        if not self._watch.is_over and not is_watched(step, self.every):
            self._watch.cancel()
            return None
        scale, unscaled = None, False
        if scaler is not None and scaler.is_enabled():
            scale = scaler._get_scale_async()
            unscaled = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
        return self._watch.end(
            (parameter for group in optimizer.param_groups for parameter in group["params"]),
            loss_scale=scale,
            grads_are_unscaled=unscaled,
            ranks=self._ranks,
            skip=skip,
            add_over_ranks=distributed.all_reduce if self._ranks > 1 else None,
        )

    def begin(self, step: int) -> None:
        """Watch the step that begins here, if it was drawn."""
        if is_watched(step, self.every):
            self._watch.begin()

    def close(self) -> None:
        """Take every hook away."""
        self._watch.cancel()


def _refuse_parts_of_layers(model: nn.Module, candidates: Sequence[Candidate]) -> None:
    gathers = any(
        base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__
    )
    for one in candidates:
        sharded: Any = one.parameter
        if is_sharded(one.parameter) and (not gathers or sharded.device_mesh.ndim > 1):
            raise UnsupportedError(
                f"evidence below the step of {one.info.name!r}, of which each rank computes a part",
                expected="layers that each rank computes as a whole: DDP, or FSDP2 in one dimension",
                remedy="leave below= out",
            )
