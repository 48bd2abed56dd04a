"""Which modules use which parameters, and which parameters no module offers a formula for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gradtrace.errors import UnsupportedError
from gradtrace.ledger.names import canonical
from gradtrace.recorder.below.kinds import Kind, kind_of, ties_samples
from gradtrace.recorder.parameters import Candidate
from gradtrace.recorder.wrappers import bare_model

__all__ = ["Owner", "owners", "refuse_tied_samples", "without_formula"]


@dataclass(frozen=True, eq=False)
class Owner:
    """A module whose calls are watched.

    Attributes:
        module: the module.
        name: its canonical name.
        kind: its formula.
        leaves: its own parameters, from attribute name to index among the watched.
    """

    module: nn.Module
    name: str
    kind: Kind
    leaves: dict[str, int]


def owners(model: nn.Module, candidates: Sequence[Candidate]) -> list[Owner]:
    """Every module with a formula that owns a candidate, each once, in the model's order.

    A tied parameter has several owners.
    """
    index = {id(one.parameter): number for number, one in enumerate(candidates)}
    found = []
    for name, module in bare_model(model).named_modules():
        kind = kind_of(module)
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        leaves = {leaf: index[id(one)] for leaf, one in own if id(one) in index}
        if kind is not None and leaves:
            found.append(Owner(module, canonical(name), kind, leaves))
    return found


def without_formula(candidates: Sequence[Candidate], owned: Sequence[Owner]) -> list[int]:
    """Indices of the candidates that no owner has."""
    covered = {number for owner in owned for number in owner.leaves.values()}
    return [number for number in range(len(candidates)) if number not in covered]


def refuse_tied_samples(model: nn.Module) -> None:
    """Raise an UnsupportedError that names the first module that mixes samples, if there is one."""
    for name, module in bare_model(model).named_modules():
        if ties_samples(module):
            raise UnsupportedError(
                f"evidence of samples in a model with {type(module).__name__} {canonical(name)!r}",
                expected="modules that treat each sample by itself",
                remedy='ask for "positions" instead: batch statistics leave no sample a gradient of its own',
            )
