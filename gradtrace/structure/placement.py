"""Which rank runs which sub-operators, so that ranks that work side by side are done at the same time.

Ranks meet after each layer, or after each MLP whose layers share blocks: each such stage is balanced by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.structure.balancing import balanced
from gradtrace.structure.plan import DENSE, Plan
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["Placement", "hidden_blocks", "placement"]


@dataclass(frozen=True)
class Placement:
    """Who runs what, on `ranks` ranks.

    `layers`: name -> for each rank the numbers of its sub-operators in the plan, ascending; every number is
    on exactly one rank. `mlps`: the layers that share blocks, the last of each reading what the others write;
    what is hidden between them never leaves its rank. `seconds`: predicted work of each rank; `slowest`: the
    predicted time of all, in which each stage waits for its slowest rank. Communication is not counted.
    """

    ranks: int
    layers: Mapping[str, tuple[tuple[int, ...], ...]]
    mlps: tuple[tuple[str, ...], ...]
    seconds: tuple[float, ...]
    slowest: float

    @property
    def balance(self) -> float:
        """Mean over slowest: 1 where no rank waits for another, 1 / ranks where one does all the work."""
        return sum(self.seconds) / (self.ranks * self.slowest) if self.slowest else 1.0


def placement(plan: Plan, ranks: int, mlps: Iterable[Sequence[str]] = ()) -> Placement:
    """Spread the sub-operators of the plan's converted layers over `ranks` ranks, alike at every call.

    A sub-operator is taken to cost its share, by weights, of what the plan predicts for its layer (of all
    weights, where the plan predicts nothing). Layers that stay dense are not placed: every rank runs them.

    `mlps` names layers that share blocks, (up, down) or (gate, up, down): the last reads, after elementwise
    functions alone, what the others write. Sub-operators that share a hidden unit go to the same rank, so
    that one collective for the whole MLP suffices; layers that are in no MLP have one each.

    Raises:
        InvalidValueError: ranks below 1, no Plan, an MLP of fewer than two layers, a layer named twice or
            that stays dense.
        UnknownNameError: an MLP names a layer that the plan has not.
        MismatchError: the layers of an MLP do not follow each other: their hidden sizes differ.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise InvalidValueError(
            "ranks", expected="an integer of at least 1", got=repr(ranks), remedy="pass the world size"
        )
    if not isinstance(plan, Plan):
        raise InvalidValueError("plan", expected="a Plan, as gt.plan makes it", got=type(plan).__name__)
    joint = _checked_mlps(plan, mlps)
    together = {name for names in joint for name in names}
    stages = [*joint, *((name,) for name in plan.converted if name not in together)]
    idle = not any(plan[name].predicted for name in plan.converted)
    placed: dict[str, tuple[tuple[int, ...], ...]] = {}
    seconds, slowest = np.zeros(ranks), 0.0
    for names in stages:
        costs = np.concatenate([_costs(plan, name, by_weights=idle) for name in names])
        sizes = [len(plan[name].sub_operators) for name in names]
        block = _blocks(plan, names) if len(names) > 1 else np.arange(sizes[0])
        loads = np.bincount(block, weights=costs, minlength=int(block.max(initial=-1)) + 1)
        rank_of_block, taken = balanced(np.asarray(loads, np.float64), ranks)
        # The busiest of this stage are those that had least to do so far, which also spreads the weights.
        order = np.empty(ranks, np.int64)
        order[np.argsort(-taken, kind="stable")] = np.argsort(seconds, kind="stable")
        seconds[order] += taken
        slowest += float(taken.max())
        of_operator = order[rank_of_block][block]
        for name, of_layer in zip(names, np.split(of_operator, np.cumsum(sizes)[:-1]), strict=True):
            placed[name] = tuple(tuple(np.flatnonzero(of_layer == rank).tolist()) for rank in range(ranks))
    if idle:
        seconds, slowest = np.zeros(ranks), 0.0
    return Placement(
        ranks, {name: placed[name] for name in plan.converted}, joint, tuple(seconds.tolist()), slowest
    )


def hidden_blocks(
    writing: Sequence[Sequence[SubOperator]], reading: Sequence[SubOperator], hidden: int
) -> NDArray[np.int64]:
    """The block of each sub-operator, of the layers that write the `hidden` units, then of the reader.

    Blocks are the connected components of sub-operators that write or read the same unit, numbered by their
    first sub-operator.
    """
    touched = [part.outputs for layer in writing for part in layer] + [part.inputs for part in reading]
    if not touched:
        return np.empty(0, np.int64)
    units = np.concatenate(touched)
    operators = np.repeat(np.arange(len(touched)), [len(indices) for indices in touched])
    nodes = len(touched) + hidden
    edges = csr_array((np.ones(units.size, np.int8), (operators, len(touched) + units)), shape=(nodes, nodes))
    _, labels = connected_components(edges, directed=True, connection="weak")
    _, first, block = np.unique(labels[: len(touched)], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return np.asarray(number[block], np.int64)


def _checked_mlps(plan: Plan, mlps: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    seen: set[str] = set()
    found = []
    for given in mlps:
        names = () if isinstance(given, str) else tuple(given)
        if len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise InvalidValueError(
                "mlps",
                expected="tuples of at least two layer names",
                got=repr(given)[:80],
                remedy='pass e.g. mlps=[("up", "down")]',
            )
        for name in names:
            if plan[name].choice == DENSE:
                raise InvalidValueError(
                    "mlps",
                    expected="layers that become sub-operators",
                    got=f"'{name}', which stays dense",
                    remedy="leave this MLP out: its layers are then placed one by one",
                )
            if name in seen:
                raise InvalidValueError("mlps", expected="each layer once", got=f"'{name}' twice")
            seen.add(name)
        hidden = {name: plan[name].mask.shape[0] for name in names[:-1]}
        wanted = plan[names[-1]].mask.shape[1]
        for name, size in hidden.items():
            if size != wanted:
                raise MismatchError(
                    f"'{name}' does not lead to '{names[-1]}'",
                    expected=f"{wanted} outputs, as many as '{names[-1]}' has inputs",
                    got=str(size),
                    remedy="name the layer that reads the hidden units last",
                )
        found.append(names)
    return tuple(found)


def _costs(plan: Plan, name: str, *, by_weights: bool) -> NDArray[np.float64]:
    sizes = np.array([part.size for part in plan[name].sub_operators], np.float64)
    return sizes if by_weights else sizes * (plan[name].predicted / max(sizes.sum(), 1.0))


def _blocks(plan: Plan, names: Sequence[str]) -> NDArray[np.int64]:
    parts = [plan[name].sub_operators for name in names]
    return hidden_blocks(parts[:-1], parts[-1], plan[names[-1]].mask.shape[1])
