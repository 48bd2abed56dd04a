"""The sums of one sampled step on the device: over the watched parameters, and over their layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property

import torch

from gradtrace.ledger.format import InputInfo
from gradtrace.recorder.below.contribution import Contribution, InputMoments, add_sample_moments
from gradtrace.recorder.below.owners import Owner
from gradtrace.recorder.below.pending import Pending
from gradtrace.recorder.below.step_evidence import InputPart, ParameterPart, StepEvidence, to_host
from gradtrace.recorder.below.wanted import Wanted
from gradtrace.recorder.parameters import Candidate

__all__ = ["StepSums"]

_HALF = (torch.float16, torch.bfloat16)
_ELSEWHERE = "on another rank its evidence was not whole"


class StepSums:
    """Flat arrays over parameters and over inputs, float32 (float64 where all parameters are), and counts.

    Nothing is allocated before the first call of a module: a model may move to its device until then.

    Args:
        candidates: the watched parameters by their number; everything here goes by that number.
        inputs: the modules whose inputs are summed, each with the number of its weight.
        wanted: which sums are taken.
        totals: whether Sum_n c_n is taken as well.

    Attributes:
        numbers: the watched parameters, ascending.
        seen: parameters of which a use was added.
    """

    def __init__(
        self,
        candidates: Mapping[int, Candidate],
        inputs: Sequence[tuple[InputInfo, int]],
        wanted: Wanted,
        *,
        totals: bool,
    ) -> None:
        self._candidates, self._inputs, self._wanted, self._totals = candidates, inputs, wanted, totals
        self._index = {info.module: place for place, (info, _) in enumerate(inputs)}
        self._offsets: dict[int, int] = {}
        end = 0
        for number, one in candidates.items():
            self._offsets[number] = end
            end += one.parameter.numel()
        self._end = end
        self._positions = dict.fromkeys(candidates, 0)
        self._samples = dict.fromkeys(candidates, 0)
        self._input_positions = [0] * len(inputs)
        self._halved: set[int] = set()
        self._spoiled: dict[int, str] = {}
        self._pending = Pending(self._add_samples)
        self.numbers = candidates.keys()
        self.seen: set[int] = set()

    @cached_property
    def arrays(self) -> dict[str, torch.Tensor]:
        """The sums by accumulator, flat; "total" among them, if it is taken."""
        parameters = [one.parameter for one in self._candidates.values()]
        exact = {one.dtype for one in parameters} == {torch.float64}
        lengths = dict.fromkeys(self._wanted.accumulators, self._end)
        lengths |= {name: sum(info.length(name) for info, _ in self._inputs) for name in self._wanted.moments}
        if self._totals:
            lengths["total"] = self._end
        dtype = torch.float64 if exact else torch.float32
        return {
            name: torch.zeros(length, dtype=dtype, device=parameters[0].device)
            for name, length in lengths.items()
        }

    @property
    def broken(self) -> dict[int, str]:
        """Parameters whose evidence of this step is not whole, with the reason."""
        return self._pending.broken | self._spoiled

    @property
    def lowest(self) -> dict[int, torch.dtype]:
        """By parameter, the lowest precision that took part in its backward pass."""
        return {
            number: torch.bfloat16 if number in self._halved else one.parameter.dtype
            for number, one in self._candidates.items()
        }

    def view(self, name: str, number: int) -> torch.Tensor:
        """One parameter's part of an array, in its shape."""
        shape, offset = self._candidates[number].parameter.shape, self._offsets[number]
        return self.arrays[name][offset : offset + shape.numel()].view(shape)

    def expect(self, numbers: Iterable[int]) -> None:
        """Note a forward call that uses these parameters."""
        if self._wanted.samples:
            self._pending.expect(tuple(numbers))

    def add(self, owner: Owner, numbers: Mapping[str, int], x: torch.Tensor, d: torch.Tensor) -> None:
        """Add one call of a module.

        Args:
            owner: the module.
            numbers: its watched parameters, by attribute name.
            x: its first input.
            d: gradient in its output.
        """
        dtype = next(iter(self.arrays.values())).dtype if self.arrays else torch.float32
        if x.is_floating_point():
            # As autocast has rounded it.
            x = (x.to(d.dtype) if d.dtype in _HALF else x).to(dtype)
        for leaf, use in owner.kind(owner.module, x, d.to(dtype)).items():
            if leaf not in numbers:
                continue
            number = numbers[leaf]
            self.seen.add(number)
            if d.dtype in _HALF:
                self._halved.add(number)
            self._positions[number] += use.positions
            self._add_positions(number, use)
            if self._wanted.samples:
                self._pending.receive(number, use)
            else:
                self._samples[number] += use.samples
            if leaf == "weight" and owner.name in self._index and isinstance(use, InputMoments):
                self._add_inputs(self._index[owner.name], use)

    def spoil(self, numbers: Iterable[int], reason: str) -> None:
        """Note that the evidence of these parameters is not whole."""
        self._spoiled |= dict.fromkeys(numbers, reason)

    def finish(self) -> None:
        """Add what is still held: no gradient will come any more."""
        self._pending.flush()

    def add_up(self, over_ranks: Callable[[torch.Tensor], object]) -> None:
        """Make the sums and counts of all ranks those of each; called on every rank.

        Args:
            over_ranks: adds a tensor up over the ranks, in place.
        """
        for array in self.arrays.values():
            over_ranks(array)
        numbers, broken = list(self._candidates), self.broken
        rows = [
            [self._positions[one] for one in numbers],
            [self._samples[one] for one in numbers],
            [int(one in broken) for one in numbers],
            [int(one in self.seen) for one in numbers],
            [int(one in self._halved) for one in numbers],
            self._input_positions,
        ]
        device = self._candidates[numbers[0]].parameter.device
        counts = torch.tensor([value for row in rows for value in row], dtype=torch.int64, device=device)
        over_ranks(counts)
        told = iter(counts.tolist())
        positions, samples, spoiled, seen, halved, inputs = ([next(told) for _ in row] for row in rows)
        self._positions = dict(zip(numbers, positions, strict=True))
        self._samples = dict(zip(numbers, samples, strict=True))
        self.seen = {one for one, count in zip(numbers, seen, strict=True) if count}
        self._halved = {one for one, count in zip(numbers, halved, strict=True) if count}
        self._input_positions = inputs
        elsewhere = [one for one, count in zip(numbers, spoiled, strict=True) if count and one not in broken]
        self.spoil(elsewhere, _ELSEWHERE)

    def evidence(
        self,
        numbers: Collection[int],
        factor: float | torch.Tensor,
        skip: torch.Tensor | None,
        fallen: Mapping[str, str],
    ) -> StepEvidence:
        """Begin the copies to the host and return what counts: these parameters, and their layers' inputs."""
        parameters = tuple(
            ParameterPart(
                self._candidates[number].info.name,
                self._offsets[number],
                self._candidates[number].parameter.numel(),
                self._positions[number],
                self._samples[number],
            )
            for number in numbers
        )
        inputs, offsets = [], dict.fromkeys(self._wanted.moments, 0)
        for (info, number), positions in zip(self._inputs, self._input_positions, strict=True):
            if number in numbers:
                inputs.append(InputPart(info, dict(offsets), positions))
            offsets = {name: offset + info.length(name) for name, offset in offsets.items()}
        arrays = {name: to_host(array) for name, array in self.arrays.items() if name != "total"}
        factor = to_host(factor) if isinstance(factor, torch.Tensor) else factor
        skip = None if skip is None else to_host(skip)
        ready = None
        if any(array.device.type == "cuda" for array in self.arrays.values()):
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return StepEvidence(arrays, parameters, tuple(inputs), factor, skip, fallen, ready)

    def _add_positions(self, number: int, use: Contribution) -> None:
        if self._totals:
            use.add_total(self.view("total", number))
        if self._wanted.positions:
            use.add_position_sumsq(self.view("position_sumsq", number))
            use.add_position_support(self.view("position_support", number))

    def _add_samples(self, number: int, uses: Sequence[Contribution]) -> None:
        self._samples[number] += uses[0].samples
        sumsq, support = self.view("sample_sumsq", number), self.view("sample_support", number)
        if len(uses) == 1:
            uses[0].add_sample_moments(sumsq, support)
        else:
            add_sample_moments(uses, sumsq, support, torch.empty_like(sumsq))

    def _add_inputs(self, place: int, use: InputMoments) -> None:
        self._input_positions[place] += use.positions
        info = self._inputs[place][0]
        for name in self._wanted.moments:
            offset = sum(one.length(name) for one, _ in self._inputs[:place])
            out = self.arrays[name][offset : offset + info.length(name)]
            if name == "input_sum":
                use.add_input_sum(out)
            elif name == "input_sumsq":
                use.add_input_sumsq(out)
            elif info.groups:
                use.add_input_gram(out.view(info.gram_shape))
