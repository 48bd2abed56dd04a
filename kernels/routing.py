"""Plans how a list of sub-operators runs: what is gathered, what is batched, where results end up.

Plain index arithmetic, done once for each (inputs, outputs) and kept for as long as those tensors live
unchanged: reading index values on every call would cost more than small products do, and on a GPU would wait
for the device.

Results first lie side by side, in the order of the sub-operators: z (T, width). Where that already is the
order of the outputs, z is the answer. Otherwise y is the sum of a few column gathers from z, one for each
time that an output can occur; an output that occurs less often reads z's last column, which is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.kernels.layer_table import LayerTable

__all__ = ["Block", "Routing", "Run", "routing_of"]


class Block(NamedTuple):
    """One sub-operator with at least one input and one output."""

    inputs: slice | Tensor
    """Columns of x: a slice where they are consecutive, else (k,) int64."""
    input_begin: int
    output_begin: int
    weight_begin: int
    """Where it begins in the flat inputs, outputs and weight."""
    column: int
    """Its first column in z."""
    n: int
    k: int


class Run(NamedTuple):
    """Neighbouring sub-operators of one shape: their weights are one (blocks, n, k) tensor without a copy."""

    blocks: tuple[Block, ...]
    inputs: slice | Tensor
    """Columns of x for all of them, end to end."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The plan of one layer, its tensors on the layer's device."""

    runs: tuple[Run, ...]
    width: int
    """Outputs of all sub-operators that have inputs; z has one more column, of zeros, if `padded`."""
    merges: tuple[Tensor, ...]
    """(O,) int64 each: columns of z whose sum is y; none where z is y."""
    padded: bool
    overlapping: bool
    """Whether some output occurs in several sub-operators."""
    weights: int
    sources: Tensor
    targets: Tensor
    """The flat inputs and outputs, int64 on the CPU."""
    in_features: int
    out_features: int
    device: torch.device
    tiles: dict[tuple[int | str, ...], Tensor] = field(default_factory=dict)
    """Tile schedules of the Triton kernels, by what they depend on."""
    joined: dict[int, tuple[Routing, Tensor]] = field(default_factory=dict)
    """By the id of another plan, which is kept so that the id stays its own: what depends on both."""

    @cached_property
    def indices(self) -> tuple[Tensor, Tensor]:
        """The flat inputs and outputs, int32 on the layer's device."""
        return (
            self.sources.to(self.device, torch.int32, copy=True),
            self.targets.to(self.device, torch.int32, copy=True),
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Those of all runs."""
        return tuple(block for run in self.runs for block in run.blocks)

    @cached_property
    def consecutive_inputs(self) -> bool:
        """Whether every sub-operator reads neighbouring features."""
        return all(isinstance(block.inputs, slice) for block in self.blocks)

    @cached_property
    def consecutive_outputs(self) -> bool:
        """Whether every sub-operator writes neighbouring features."""
        ends = ((self.targets[block.output_begin], block) for block in self.blocks)
        return all(
            torch.equal(
                self.targets[block.output_begin : block.output_begin + block.n],
                torch.arange(int(first), int(first) + block.n),
            )
            for first, block in ends
        )

    @cached_property
    def shared_inputs(self) -> bool:
        """Whether some input is read twice."""
        return bool(self.sources.numel() and self.sources.bincount().max() > 1)

    @cached_property
    def places(self) -> tuple[Tensor, bool]:
        """(weights,) int64: where each lies in the flat dense matrix; and whether two lie in one place."""
        places = [
            self.targets[block.output_begin : block.output_begin + block.n, None] * self.in_features
            + self.sources[block.input_begin : block.input_begin + block.k]
            for block in self.blocks
        ]
        flat = torch.cat([self.sources[:0], *(part.flatten() for part in places)])
        return flat.to(self.device), bool((flat.sort().values.diff() == 0).any())

    @cached_property
    def aligned(self) -> bool:
        """Whether rows of weights, and inputs that need no index, begin at multiples of eight."""
        begins = [block.inputs.start for block in self.blocks if isinstance(block.inputs, slice)]
        sizes = [size for block in self.blocks for size in (block.k, block.weight_begin)]
        return not any(size % 8 for size in (sizes + begins if self.consecutive_inputs else sizes))

    @cached_property
    def table(self) -> LayerTable:
        """The plan as the compiled CPU kernel reads it."""
        columns = self.overlapping
        return LayerTable.of(
            [
                (
                    block.input_begin,
                    block.column if columns else block.output_begin,
                    block.weight_begin,
                    block.n,
                    block.k,
                )
                for run in self.runs
                for block in run.blocks
            ],
            self.sources,
            torch.arange(self.width) if columns else self.targets,
            self.in_features,
            self.width + self.padded if columns else self.out_features,
        )

    @cached_property
    def even(self) -> bool:
        """Whether every sub-operator writes whole vectors of eight neighbouring features."""
        sizes = [size for block in self.blocks for size in (block.n, int(self.targets[block.output_begin]))]
        return self.consecutive_outputs and not any(size % 8 for size in sizes)


class _Kept(NamedTuple):
    inputs: ReferenceType[Tensor]
    outputs: ReferenceType[Tensor]
    state: tuple[int, ...]
    input_sizes: list[int]
    output_sizes: list[int]
    routing: Routing


# By id: a weak dictionary of tensors takes longer to ask than a small layer takes to run. An entry goes with
# its indices, before their id can be another's.
_KEPT: dict[tuple[int, int], _Kept] = {}


def routing_of(
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    in_features: int,
    out_features: int,
) -> Routing:
    """Return the plan for these sub-operators, made at the first call and whenever the index tensors changed.

    `inputs` (sum k_s,) and `outputs` (sum n_s,) are int64; an index may not occur twice in one sub-operator's
    outputs. Raises InvalidValueError or MismatchError where sizes or indices do not fit.
    """
    if inputs.is_inference() or outputs.is_inference():
        # Their changes cannot be noticed: they carry no version.
        return _plan(inputs, outputs, input_sizes, output_sizes, in_features, out_features)
    state = (
        inputs.data_ptr(), inputs._version, outputs.data_ptr(), outputs._version, in_features, out_features,
    )  # fmt: skip
    key = (id(inputs), id(outputs))
    kept = _KEPT.get(key)
    if (
        kept is not None
        and kept.inputs() is inputs
        and kept.outputs() is outputs
        and kept.state == state
        and kept.input_sizes == input_sizes
        and kept.output_sizes == output_sizes
    ):
        return kept.routing
    routing = _plan(inputs, outputs, input_sizes, output_sizes, in_features, out_features)
    _KEPT[key] = _Kept(
        ref(inputs, lambda _: _forget(key)),
        ref(outputs, lambda _: _forget(key)),
        state,
        [*input_sizes],
        [*output_sizes],
        routing,
    )
    return routing


def _forget(key: tuple[int, int]) -> None:
    _KEPT.pop(key, None)


def _plan(
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    in_features: int,
    out_features: int,
) -> Routing:
    if len(input_sizes) != len(output_sizes) or min([*input_sizes, *output_sizes], default=0) < 0:
        raise MismatchError(
            "input_sizes and output_sizes",
            expected="one size of at least 0 a sub-operator in each",
            got=f"{len(input_sizes)} and {len(output_sizes)} sizes",
        )
    sources = _checked("inputs", inputs, input_sizes, in_features)
    targets = _checked("outputs", outputs, output_sizes, out_features)
    blocks: list[Block] = []
    columns: list[Tensor] = []
    i = o = w = column = 0
    for k, n in zip(input_sizes, output_sizes, strict=True):
        if n and k:
            columns.append(targets[o : o + n])
            if len(set(columns[-1].tolist())) != n:
                raise InvalidValueError(
                    "outputs",
                    expected="an output at most once in a sub-operator",
                    got=str(columns[-1][:8].tolist()),
                )
            blocks.append(Block(_columns(sources[i : i + k], inputs.device), i, o, w, column, n, k))
            column += n
        i, o, w = i + k, o + n, w + n * k
    merges = _merges(torch.cat(columns) if columns else targets[:0], out_features)
    return Routing(
        runs=_runs(blocks, sources, inputs.device),
        width=column,
        merges=tuple(merge.to(outputs.device) for merge in merges),
        padded=any(bool((merge == column).any()) for merge in merges),
        overlapping=len(merges) > 1,
        weights=w,
        sources=sources,
        targets=targets,
        in_features=in_features,
        out_features=out_features,
        device=inputs.device,
    )


def _checked(name: str, index: Tensor, sizes: list[int], features: int) -> Tensor:
    """The index as a flat CPU tensor of its own, so that no plan keeps the original alive."""
    if index.dtype != torch.int64 or index.shape != (sum(sizes),):
        raise MismatchError(
            name,
            expected=f"int64 of shape ({sum(sizes)},)",
            got=f"{index.dtype} of shape {tuple(index.shape)}",
        )
    values = index.detach().cpu().clone()
    low, high = (int(bound) for bound in values.aminmax()) if values.numel() else (0, -1)
    if low < 0 or high >= features:
        raise InvalidValueError(name, expected=f"indices in 0..{features - 1}", got=f"{low}..{high}")
    return values


def _columns(index: Tensor, device: torch.device) -> slice | Tensor:
    first = int(index[0])
    if torch.equal(index, torch.arange(first, first + index.numel())):
        return slice(first, first + index.numel())
    return index.to(device)


def _runs(blocks: list[Block], sources: Tensor, device: torch.device) -> tuple[Run, ...]:
    def key(numbered: tuple[int, Block]) -> tuple[int, int, int]:
        # The last stays the same unless inputs of a sub-operator without outputs lie between the two.
        number, block = numbered
        return block.n, block.k, block.input_begin - number * block.k

    runs = []
    for _, group in groupby(enumerate(blocks), key):
        members = tuple(block for _, block in group)
        begin, end = members[0].input_begin, members[-1].input_begin + members[-1].k
        runs.append(Run(members, _columns(sources[begin:end], device)))
    return tuple(runs)


def _merges(targets: Tensor, out_features: int) -> tuple[Tensor, ...]:
    """For each output the columns of z that it sums: first, second, ... occurrence, or the zero column."""
    width = targets.numel()
    if torch.equal(targets, torch.arange(out_features)):
        return ()
    sorted_targets, order = targets.sort(stable=True)
    occurrence = torch.arange(width) - torch.searchsorted(sorted_targets, sorted_targets)
    merges = []
    for number in range(int(occurrence.max()) + 1 if width else 1):
        merge = torch.full((out_features,), width, dtype=torch.int64)
        chosen = occurrence == number
        merge[sorted_targets[chosen]] = order[chosen]
        merges.append(merge)
    return tuple(merges)
