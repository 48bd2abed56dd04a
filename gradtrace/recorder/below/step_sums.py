"""The sums of one sampled step on the device: over the watched parameters, and over each layer's inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from gradtrace.recorder.below.contribution import Contribution, InputMoments, add_sample_moments
from gradtrace.recorder.below.input_sums import InputSums
from gradtrace.recorder.below.owners import Owner
from gradtrace.recorder.below.pending import Pending
from gradtrace.recorder.below.step_evidence import InputPart, ParameterPart, StepEvidence, to_host
from gradtrace.recorder.below.wanted import Wanted
from gradtrace.recorder.parameters import Candidate

__all__ = ["StepSums"]

_HALF = (torch.float16, torch.bfloat16)


class StepSums:
    """Flat arrays over parameters, float32 (float64 where all are), and the counts of positions and samples.

    Args:
        candidates: the watched parameters by their number; everything here goes by that number.
        wanted: which sums are taken.
        totals: whether Sum_n c_n is taken as well.

    Attributes:
        numbers: the watched parameters, ascending.
        lowest: by parameter, the lowest precision that took part in its backward pass.
        seen: parameters of which a use was added.
    """

    def __init__(self, candidates: Mapping[int, Candidate], wanted: Wanted, *, totals: bool) -> None:
        parameters = {number: one.parameter for number, one in candidates.items()}
        dtypes = {one.dtype for one in parameters.values()}
        self._dtype = torch.float64 if dtypes == {torch.float64} else torch.float32
        self._device = next(iter(parameters.values())).device
        self._candidates, self._wanted = candidates, wanted
        self._offsets: dict[int, int] = {}
        end = 0
        for number, parameter in parameters.items():
            self._offsets[number] = end
            end += parameter.numel()
        names = (*wanted.accumulators, *(("total",) if totals else ()))
        self._arrays = {name: torch.zeros(end, dtype=self._dtype, device=self._device) for name in names}
        self._positions = dict.fromkeys(parameters, 0)
        self._samples = dict.fromkeys(parameters, 0)
        self._inputs: dict[str, tuple[int, InputSums]] = {}
        self._spoiled: dict[int, str] = {}
        self._pending = Pending(self._add_samples)
        self.numbers = parameters.keys()
        self.lowest = {number: parameter.dtype for number, parameter in parameters.items()}
        self.seen: set[int] = set()

    @property
    def totals(self) -> torch.Tensor | None:
        """Sum_n c_n, flat over all parameters, if it is taken."""
        return self._arrays.get("total")

    @property
    def broken(self) -> dict[int, str]:
        """Parameters whose evidence of this step is not whole, with the reason."""
        return self._pending.broken | self._spoiled

    def view(self, name: str, number: int) -> torch.Tensor:
        """One parameter's part of an array, in its shape."""
        shape, offset = self._candidates[number].parameter.shape, self._offsets[number]
        return self._arrays[name][offset : offset + shape.numel()].view(shape)

    def expect(self, numbers: Iterable[int]) -> None:
        """Note a forward call that uses these parameters."""
        if self._wanted.samples:
            self._pending.expect(tuple(numbers))

    def add(self, owner: Owner, numbers: Mapping[str, int], x: torch.Tensor, d: torch.Tensor) -> None:
        """Add one call of a module: its input x, and the gradient d in its output.

        Args:
            owner: the module.
            numbers: its watched parameters, by attribute name.
            x: its first input.
            d: gradient in its output.
        """
        if x.is_floating_point():
            # As autocast has rounded it.
            x = (x.to(d.dtype) if d.dtype in _HALF else x).to(self._dtype)
        for leaf, use in owner.kind(owner.module, x, d.to(self._dtype)).items():
            if leaf not in numbers:
                continue
            number = numbers[leaf]
            self.seen.add(number)
            if d.dtype in _HALF:
                self.lowest[number] = torch.bfloat16
            self._positions[number] += use.positions
            self._add_positions(number, use)
            if self._wanted.samples:
                self._pending.receive(number, use)
            else:
                self._samples[number] += use.samples
            if leaf == "weight" and self._wanted.moments and isinstance(use, InputMoments):
                self._add_inputs(owner.name, number, use)

    def spoil(self, numbers: Iterable[int], reason: str) -> None:
        """Note that the evidence of these parameters is not whole."""
        self._spoiled |= dict.fromkeys(numbers, reason)

    def finish(self) -> None:
        """Add what is still held: no gradient will come any more."""
        self._pending.flush()

    def evidence(
        self, numbers: Collection[int], factor: float | torch.Tensor, skip: torch.Tensor | None
    ) -> StepEvidence:
        """Begin the copies to the host; return what counts: these parameters, and their modules' inputs."""
        arrays = {name: to_host(one) for name, one in self._arrays.items() if name != "total"}
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
        inputs = tuple(
            InputPart(name, {key: to_host(one) for key, one in sums.arrays.items()}, sums.positions)
            for name, (number, sums) in self._inputs.items()
            if number in numbers
        )
        factor = to_host(factor) if isinstance(factor, torch.Tensor) else factor
        skip = None if skip is None else to_host(skip)
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return StepEvidence(arrays, parameters, inputs, factor, skip, ready)

    def _add_positions(self, number: int, use: Contribution) -> None:
        if "total" in self._arrays:
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

    def _add_inputs(self, name: str, number: int, use: InputMoments) -> None:
        if name not in self._inputs:
            sums = InputSums.like(use, self._wanted, dtype=self._dtype, device=self._device)
            self._inputs[name] = (number, sums)
        self._inputs[name][1].add(use)
