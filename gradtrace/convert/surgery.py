"""Replacing a model's linear layers by their sub-operators, and the masked dense model that must equal it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradtrace.convert.arms import Arm, check_arm, drop_
from gradtrace.convert.kept_weights import kept_weights, planned_weights, shapes_of
from gradtrace.convert.linears import linears
from gradtrace.convert.matching import check_replaceable, check_weights, match_layers
from gradtrace.convert.model import check_model
from gradtrace.convert.replacement import adopt, affected, replacements
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import InvalidValueError
from gradtrace.structure.plan import DENSE, Plan

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["apply_mask_", "convert_"]

Model = TypeVar("Model", bound=nn.Module)


def convert_(model: Model, plan: Plan, masked: bool = False) -> Model:
    """Replace, in place, every layer for which `plan` has sub-operators; the model is returned.

    Everything is checked and built before anything is replaced: on an error the model is as it was. Layers
    that the plan leaves dense keep their weights; with `masked`, what their masks drop is zeroed. Make the
    optimizer afterwards: the replaced layers have a new weight parameter, and keep their bias.

    An nn.MultiheadAttention with a converted projection becomes a RoutedAttention, whose q_proj, k_proj,
    v_proj and out_proj are layers of their own; so does the attention of an nn.TransformerEncoderLayer whose
    linear1 or linear2 is converted. `to_dense_` undoes all of it, but for the masks.

    Raises:
        MismatchError: the plan is for another model: a layer is missing or of another shape.
        StateError: a layer has been converted already.
        UnsupportedError: what is no linear layer, or cannot be replaced (tied weight, hooks, ...), by name.
        InvalidValueError: weights that are not finite, by name; what is no nn.Module, or no Plan.
    """
    check_model(model)
    layers = match_layers(model, shapes_of(plan), "the plan")
    chosen = {name: layers[name] for name in plan.converted}
    check_replaceable(affected(layers, chosen))
    check_weights(chosen.values())
    dense = [name for name in plan if masked and plan[name].choice == DENSE]
    planned_weights(plan, layers, dense)
    built = {
        name: adopt(RoutedLinear.from_linear(layer.linear(), plan[name]), layer)
        for name, layer in chosen.items()
    }
    for replacement in replacements(model, layers, built):
        replacement.apply_()
    drop_(planned_weights(plan, linears(model) if dense else {}, dense), "zero")
    return model


def apply_mask_(
    model: Model,
    mask: Mapping[str, NDArray[np.bool_]] | Plan,
    masked: bool = False,
    *,
    dropped: Arm = "zero",
    ledger: Ledger | None = None,
) -> Model:
    """Zero, in place, the weights that `mask` drops; the model is returned.

    For a Plan this gives the dense model that `convert_` with the same arguments must equal: layers that the
    plan leaves dense are left as they are, unless `masked`. `dropped` says what becomes of the dropped:
    "zero"; "reset", the opening balance that `ledger` holds, as it was, without the decay since; "keep",
    nothing, which is the model to compare the other two with. A plan's are always zero.

    Raises:
        MismatchError: the mask or plan is for another model, or the ledger of another run.
        StateError: a plan's layer has been converted already.
        UnsupportedError: a plan's layer whose weight is computed by a hook: it would undo the mask.
        InvalidValueError: an entry that is no bool array, what is no nn.Module, another `dropped`, or "reset"
            without a ledger.
    """
    check_model(model)
    check_arm(dropped, ledger)
    if isinstance(mask, Plan) and dropped != "zero":
        raise InvalidValueError(
            "dropped",
            expected="'zero' for a plan: its sub-operators leave out what is dropped",
            got=repr(dropped),
            remedy="apply the mask itself",
        )
    drop_(kept_weights(model, mask, masked), dropped, ledger)
    return model
