"""Watches the layers of a model during one step, and adds up what positions and samples contribute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from gradtrace.ledger.format import InputInfo
from gradtrace.recorder.below.attention import attentions, watch_projections
from gradtrace.recorder.below.eager import EagerSteps
from gradtrace.recorder.below.input_index import input_index
from gradtrace.recorder.below.kept_input import KeptInput
from gradtrace.recorder.below.output_gradient import on_gradient
from gradtrace.recorder.below.owners import Owner, owners, refuse_tied_samples, without_formula
from gradtrace.recorder.below.step_evidence import StepEvidence
from gradtrace.recorder.below.step_sums import StepSums
from gradtrace.recorder.below.trust import Trust
from gradtrace.recorder.below.wanted import Wanted
from gradtrace.recorder.parameters import Candidate
from gradtrace.recorder.shards import is_sharded

__all__ = ["Watch"]


class Watch:
    """Takes the evidence of one step at a time: `begin` before its forward pass, `end` before it is applied.

    Between the two, every call of a watched module is noted with its input; when the gradient of its output
    arrives, the sums are taken and both are let go. Any number of forward and backward passes make a step;
    what runs without gradients is not noted. Between `end` and `begin` the model carries no hooks at all.

    A parameter falls back to evidence of steps, for good and with a warning that names it, when its module
    has no formula, when it is used in a way that hooks do not see, or when what its layers contribute does
    not add up to its first gradient.

    A sample is an index of the first axis of a module's input, and the uses of a parameter in one backward
    pass are joined by that index.

    Args:
        model: the module that trains.
        candidates: the parameters that are recorded, in the order of the ledger.
        wanted: which sums are taken.

    Raises:
        UnsupportedError: samples are wanted, and a module ties samples together; it is named.
    """

    def __init__(self, model: nn.Module, candidates: Sequence[Candidate], wanted: Wanted) -> None:
        if wanted.samples:
            refuse_tied_samples(model)
        self._wanted = wanted
        self._candidates = list(candidates)
        self._owners = owners(model, candidates)
        self._attentions = attentions(model, candidates)
        self._trust = Trust(one.info.name for one in candidates)
        self._trust.fall(
            dict.fromkeys(
                without_formula(candidates, [*self._owners, *self._attentions]),
                "its module has no formula for more",
            )
        )
        self._trained: set[int] = set()
        self._eager = EagerSteps()
        self._handles: list[RemovableHandle] = []
        self._sums: StepSums | None = None
        self._taken: set[int] = set()
        self._is_over = False
        self._begins_again = False

    @property
    def is_over(self) -> bool:
        """Whether the step has ended for some of its parameters, and `end` still has evidence for others."""
        return self._is_over

    @property
    def fallen(self) -> dict[str, str]:
        """Names of the parameters that have evidence of steps only, with the reason."""
        return {self._candidates[number].info.name: why for number, why in self._trust.fallen.items()}

    def inputs(self, names: Collection[str]) -> list[InputInfo]:
        """The modules whose inputs are summed, where the weights of these names are recorded."""
        numbers = {number for number, one in enumerate(self._candidates) if one.info.name in names}
        return [info for info, _ in input_index(self._owners, numbers)] if self._wanted.moments else []

    def begin(self) -> None:
        """Watch the step that begins here; what a step before left unfinished is dropped.

        That of another optimizer, which is yet to step after the same backward pass, is kept until the next
        forward pass.
        """
        if self._is_over:
            self._begins_again = True
            return
        self.cancel()
        self._trained |= {
            number for number, one in enumerate(self._candidates) if one.parameter.requires_grad
        }
        numbers = sorted(self._trained - set(self._trust.fallen))
        if not numbers:
            return
        index = input_index(self._owners, numbers) if self._wanted.moments else []
        self._sums = StepSums(
            {number: self._candidates[number] for number in numbers},
            [(info, owner.leaves["weight"]) for info, owner in index],
            self._wanted,
            totals=bool(self._trust.unchecked(numbers)),
        )
        self._eager.begin()
        self._handles = [
            handle
            for attention in self._attentions
            if not set(attention.leaves.values()).isdisjoint(numbers)
            for handle in watch_projections(attention, self._note)
        ]
        for owner in self._owners:
            if not set(owner.leaves.values()).isdisjoint(numbers):
                # First in line, to see the module's own output and not what another hook makes of it.
                self._handles.append(
                    owner.module.register_forward_hook(
                        partial(self._called, owner), prepend=True, with_kwargs=True
                    )
                )

    def cancel(self) -> None:
        """Take the hooks away and drop what was gathered."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._eager.end()
        self._sums = None
        self._taken = set()
        self._is_over = self._begins_again = False

    @torch.no_grad()
    def end(
        self,
        stepping: Iterable[nn.Parameter],
        *,
        loss_scale: torch.Tensor | None = None,
        grads_are_unscaled: bool = False,
        ranks: int = 1,
        skip: torch.Tensor | None = None,
        add_over_ranks: Callable[[torch.Tensor], object] | None = None,
    ) -> StepEvidence | None:
        """Return the step's evidence and stop watching; None where nothing was watched.

        Evidence of parameters that do not step here can still be asked for until the next forward pass.

        Args:
            stepping: the parameters that the optimizer is about to update.
            loss_scale: what the loss was multiplied by, 0-d; None for 1.
            grads_are_unscaled: whether `p.grad` was divided by it already.
            ranks: how many ranks the gradients are averaged over.
            skip: 0-d, not zero where the scaler will skip the step: then its evidence does not count.
            add_over_ranks: adds a tensor up over the ranks, in place; given on all ranks or on none.
        """
        sums, taken = self._sums, self._taken
        if sums is None:
            return None
        if not self._is_over:
            sums.finish()
            if add_over_ranks is not None:
                sums.add_up(add_over_ranks)
        ids = {id(one) for one in stepping}
        mine = [
            number
            for number in sums.numbers
            if id(self._candidates[number].parameter) in ids and number not in taken
        ]
        self._taken = taken | set(mine)
        if sums.seen - self._taken:
            self._is_over = True
        else:
            self.cancel()
        if not sums.seen:  # a backward pass of before: nothing can be told
            return None
        self._trust.fall(sums.broken)
        grads = {
            number: grad for number in mine if (grad := self._candidates[number].parameter.grad) is not None
        }
        if "total" in sums.arrays:
            factor = (
                1.0 / ranks if loss_scale is None or not grads_are_unscaled else 1.0 / (loss_scale * ranks)
            )
            unchecked = self._trust.unchecked(grads)
            self._trust.check(
                {number: sums.view("total", number) * factor for number in unchecked},
                {number: _whole(grads[number]) for number in sorted(unchecked)},
                sums.lowest,
                sums.seen,
            )
        factor = 1.0 / ranks if loss_scale is None else 1.0 / (loss_scale * ranks)
        standing = [number for number in grads if number not in self._trust.fallen]
        return sums.evidence(standing, factor, skip, self.fallen)

    def _called(self, owner: Owner, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        x = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
        if x is not None and isinstance(out, torch.Tensor):
            self._note(owner, x, out)

    def _note(self, owner: Owner, x: torch.Tensor, out: torch.Tensor) -> None:
        noted = torch.is_grad_enabled() and out.requires_grad
        # Within a backward pass it is checkpointing's call, that repeats one which was counted already.
        repeated = torch._C._current_graph_task_id() != -1
        if self._is_over and noted and not repeated:
            self._next_step()
        sums = self._sums
        if sums is None or self._is_over:
            return
        numbers = {
            leaf: number
            for leaf, number in owner.leaves.items()
            if number in sums.numbers and self._candidates[number].parameter.requires_grad
        }
        if not numbers:
            return
        if not repeated and (noted or owner.module.training):
            sums.expect(numbers.values())
        if noted:
            on_gradient(out, partial(self._received, sums, owner, numbers, KeptInput(x)))

    def _next_step(self) -> None:
        begins = self._begins_again
        self.cancel()
        if begins:
            self.begin()

    def _received(
        self, sums: StepSums, owner: Owner, numbers: dict[str, int], kept: KeptInput, d: torch.Tensor
    ) -> None:
        if sums is not self._sums:  # of a step that is over
            return
        try:
            with torch.no_grad(), torch.autocast(d.device.type, enabled=False):
                x = kept.take()
                if x is None:
                    sums.spoil(numbers.values(), "one forward pass was walked backward twice")
                else:
                    sums.add(owner, numbers, x, d)
        except Exception as error:  # a formula that does not fit a module must not stop the training
            sums.spoil(numbers.values(), f"its formula failed, {type(error).__name__}: {error}"[:300])


def _whole(grad: torch.Tensor) -> torch.Tensor:
    """The gradient itself, or what all ranks hold of it, gathered: at the first check only."""
    if not is_sharded(grad):
        return grad
    gathered: torch.Tensor = grad.full_tensor()  # type: ignore[attr-defined]
    return gathered
