"""Hidden units put into an order in which sub-operators need no index: a permutation that costs nothing.

The units between two layers have no order of their own: writing them in another one, and reading them in the
same, changes nothing. In the right one the outputs of a sub-operator and the inputs of the next are slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.hidden_space import HiddenSpace, Member
from gradtrace.convert.hidden_spaces import hidden_spaces
from gradtrace.convert.kept_weights import shapes_of
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.matching import match_layers
from gradtrace.convert.model import check_model
from gradtrace.errors import MismatchError
from gradtrace.ledger.names import canonical
from gradtrace.structure.plan import DENSE, LayerPlan, Plan
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.unit_order import consecutive, unit_order

__all__ = ["Folding", "folding"]

Model = TypeVar("Model", bound=nn.Module)
Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Folding:
    """`plan`, for the model once `apply_` has permuted it, and `folded`: spaces with their new orders."""

    plan: Plan
    folded: tuple[tuple[HiddenSpace, Order], ...]

    @torch.no_grad()
    def apply_(self, model: Model) -> Model:
        """Permute the hidden units of `model` in place, the one that this was made for; it is returned.

        What the model computes stays. Names, shapes and parameters stay too: an optimizer's state does not
        follow, so make it afterwards.

        Raises:
            MismatchError: a layer is missing or of another shape; nothing has been changed.
            StateError: a layer has been converted already.
        """
        check_model(model)
        layers = match_layers(model, shapes_of(self.plan), "the folding")
        # Of weights that are tied, only one name is among the model's parameters.
        every = model.named_parameters(remove_duplicate=False)
        parameters = {canonical(name): value.detach() for name, value in every}
        permuted: list[tuple[Tensor, Order]] = []
        for space, order in self.folded:
            found: list[Tensor] = []
            for member in space.members:
                if member.layer not in layers:
                    raise MismatchError(f"the folding is for another model: no layer '{member.layer}'")
                found += _along(layers[member.layer], member, space.size)
            for name in space.vectors:
                if name not in parameters:
                    raise MismatchError(f"the folding is for another model: no parameter '{name}'")
                found.append(parameters[name].movedim(-1, 0))
            # What an embedding and a layer share is permuted once.
            permuted += [(v, order) for v in {(v.data_ptr(), v.shape, v.stride()): v for v in found}.values()]
        for values, order in permuted:
            if len(values) != len(order):
                raise MismatchError(
                    "the folding is for another model", expected=f"{len(order)} units", got=str(len(values))
                )
        for values, order in permuted:
            values.copy_(values.index_select(0, torch.from_numpy(order.copy()).to(values.device)))
        return model


def folding(model: nn.Module, plan: Plan) -> Folding:
    """Which hidden units of `model` to permute so that the sub-operators of `plan` need fewer indices.

    Nothing is changed yet: `found = gt.folding(model, plan)`, `found.apply_(model)`, and go on with
    `found.plan`. Hidden units are those between the layers of an MLP, gated or not, with activations, dropout
    and norms among them; whole heads of an attention; the values within a head; and a residual stream that
    embeddings or linear layers write and only linear layers read. They are found by torch.fx where the module
    can be traced, and by the classes of torch, BERT, GPT-2 and Llama where not. The reason of every layer
    whose inputs are still gathered by an index says why.

    Raises:
        MismatchError, StateError: the plan is for another model, or a layer has been converted already.
        InvalidValueError: no nn.Module, or no Plan.
    """
    check_model(model)
    layers = match_layers(model, shapes_of(plan), "the plan")
    changed = dict(plan.items())
    folded: list[tuple[HiddenSpace, Order]] = []
    why: dict[str, str] = {}
    for space in hidden_spaces(model, layers):
        for member in space.members:
            if not member.outputs:
                why[member.layer] = space.why_not or "no order of the hidden units makes them neighbours"
        if space.why_not:
            continue
        lists = [
            _units(changed[m.layer], m, space.size)
            for m in space.members
            if m.layer in changed and changed[m.layer].choice != DENSE
        ]
        if not lists:
            continue
        order = unit_order(lists, space.size, unit=space.unit, blocks=space.blocks)
        if (order == np.arange(space.size)).all():
            continue
        folded.append((space, order))
        for member in space.members:
            if member.layer in changed:
                changed[member.layer] = _reordered(changed[member.layer], member, order)
    return Folding(Plan({n: _told(n, p, why) for n, p in changed.items()}, plan.provenance), tuple(folded))


def _along(layer: LinearLayer, member: Member, size: int) -> list[Tensor]:
    """Views of all that goes with the units, which are their first axis."""
    part = slice(member.offset, member.offset + size)
    if not member.outputs:
        return [layer.weight.T[part]]
    bias = layer.bias
    return [layer.weight[part]] if bias is None else [layer.weight[part], bias[part]]


def _units(plan: LayerPlan, member: Member, size: int) -> list[NDArray[np.int64]]:
    found = [(part.outputs if member.outputs else part.inputs) - member.offset for part in plan.sub_operators]
    inside = [indices[(indices >= 0) & (indices < size)] for indices in found]
    return [indices for indices in inside if indices.size]


def _reordered(plan: LayerPlan, member: Member, order: Order) -> LayerPlan:
    """The plan in terms of the units' new places; what is outside the space keeps its own."""
    axis = 0 if member.outputs else 1
    whole = np.arange(plan.mask.shape[axis])
    whole[member.offset : member.offset + len(order)] = member.offset + order
    place = np.empty_like(whole)
    place[whole] = np.arange(len(whole))
    parts = [
        SubOperator(part.inputs, np.sort(place[part.outputs]))
        if member.outputs
        else SubOperator(np.sort(place[part.inputs]), part.outputs)
        for part in plan.sub_operators
    ]
    if member.outputs:
        parts.sort(key=lambda part: int(part.outputs[0]))  # results then lie as they are read
    return replace(plan, sub_operators=tuple(parts), mask=plan.mask.take(whole, axis=axis))


def _told(name: str, plan: LayerPlan, why: Mapping[str, str]) -> LayerPlan:
    if plan.choice == DENSE or all(consecutive(part.inputs) for part in plan.sub_operators):
        return plan
    said = why.get(name, "they are no hidden units that could be found")
    return replace(plan, reason=f"{plan.reason}; inputs by index: {said}".removeprefix("; "))
