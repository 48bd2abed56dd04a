"""Least-squares compensation: what is kept takes over what it can of what a mask drops."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrace.convert.compensation import Compensation, LayerCompensation, digest_of
from gradtrace.convert.input_moments import InputMoments, LayerMoments
from gradtrace.convert.kept_weights import kept_weights
from gradtrace.convert.linear_uses import LinearUse, linear_uses
from gradtrace.convert.measured_moments import input_moments
from gradtrace.convert.model import check_model
from gradtrace.convert.recorded_moments import recorded_moments
from gradtrace.errors import MismatchError
from gradtrace.evidence.matching import study_of
from gradtrace.evidence.same_run import check_same_run
from gradtrace.evidence.weights import read_weights
from gradtrace.ledger.reader import Ledger
from gradtrace.structure.least_squares import DAMPING, mean_square, refit

if TYPE_CHECKING:
    from gradtrace.structure.plan import Plan

__all__ = ["Inputs", "compensate_", "compensation"]

Model = TypeVar("Model", bound=nn.Module)
Inputs: TypeAlias = Ledger | InputMoments | Iterable[object]
Array: TypeAlias = NDArray[np.float64]

_PROMISED = 0.5
"""Less than this share of what the moments promised, seen on the batch, is worth a warning."""


def compensation(
    model: nn.Module,
    mask: Mapping[str, NDArray[np.bool_]] | Plan,
    inputs: Inputs,
    *,
    masked: bool = False,
    check: object = None,
    damping: float = DAMPING,
) -> Compensation:
    """How the kept weights and the biases must change so that the mask changes each layer's output least.

    Args:
        model: the dense model, with the weights that it ended with; it is not changed.
        mask: parameter name -> bool array, or a Plan.
        inputs: where the moments of the layers' inputs come from: the run's Ledger (recorded with
            below=("inputs", "gram"); its last entries are taken), an iterable of batches as `input_moments`
            takes it, or what `input_moments` returned, to be used for several masks.
        masked: of a plan take the layers that it leaves dense too.
        check: one batch. Each layer's error is measured on it, in eval mode, and a layer where compensation
            removes less than half of what the moments promised gets a warning: they are stale, or training
            with dropout or augmentation distorts them.
        damping: ridge towards the present weights, in shares of the inputs' mean variance.

    Linear layers (nn.Linear, Hugging Face's Conv1D) are compensated one by one, on the inputs that they have
    in the dense model: see `gradtrace.structure.least_squares`. Where there is a bias it is refitted too;
    where there is none none is made. Everything else in the mask is listed in `left_out`. Needs one Cholesky
    factorisation for each distinct set of kept inputs: cheap in row groups, for a mask of single weights one
    for each output.

    Raises:
        MismatchError: the mask, the plan or the ledger is for another model, or the ledger of another run.
        UnknownNameError: the ledger has no Gram matrices.
        EmptyLedgerError: the ledger has no watched step.
        InvalidValueError: weights or inputs that are not finite, no batch, or no nn.Module.
        StateError: a plan's layer has been converted already.
    """
    check_model(model)
    kept = kept_weights(model, mask, masked)
    uses = linear_uses(model)
    left_out = {}
    chosen: dict[str, tuple[LinearUse, NDArray[np.bool_]]] = {}
    for name, (parameter, entry) in kept.items():
        use = uses.get(id(parameter))
        if use is None or use.obstacle:
            left_out[name] = use.obstacle if use is not None else "it is no weight of a linear layer"
        elif not entry.all():
            chosen[use.name] = use, entry
    moments = _moments(model, inputs, {name: use for name, (use, _) in chosen.items()})
    checking = None if check is None else input_moments(model, [check])
    layers = {}
    for name, (use, entry) in chosen.items():
        if name in moments:
            layers[name] = _layer(use, entry, moments[name], checking, damping)
        else:
            left_out[f"{name}.weight".lstrip(".")] = f"no input of it in {moments.source}"
    _warn(layers, moments.source)
    return Compensation(layers, {name: entry for name, (_, entry) in kept.items()}, moments.source, left_out)


def compensate_(
    model: Model,
    mask: Mapping[str, NDArray[np.bool_]] | Plan,
    inputs: Inputs,
    *,
    masked: bool = False,
    check: object = None,
    damping: float = DAMPING,
) -> Model:
    """Zero what `mask` drops and let what it keeps make up for it, in place; the model is returned.

    `compensation(...)` with the same arguments says beforehand what this does; on an error the model is as it
    was. For a Plan this gives the dense model that `convert_` turns into sub-operators exactly.
    """
    found = compensation(model, mask, inputs, masked=masked, check=check, damping=damping)
    return found.apply_(model)


def _moments(model: nn.Module, inputs: Inputs, uses: Mapping[str, LinearUse]) -> InputMoments:
    if isinstance(inputs, InputMoments):
        return inputs
    if isinstance(inputs, Ledger):
        check_same_run(study_of(inputs, read_weights(model)), inputs)
        return recorded_moments(inputs, uses)
    return input_moments(model, inputs)


def _layer(
    use: LinearUse,
    mask: NDArray[np.bool_],
    moments: LayerMoments,
    checking: InputMoments | None,
    damping: float,
) -> LayerCompensation:
    if len(moments.mean) != use.inputs:
        raise MismatchError(
            f"input moments of layer '{use.name}'",
            expected=f"{use.inputs} inputs",
            got=str(len(moments.mean)),
            remedy="take them from this model",
        )
    weight, kept = use.weight(), use.outputs_first(mask)
    bias = use.bias
    found = refit(weight, kept, moments.second, None if bias is None else moments.mean, damping)
    new = torch.from_numpy(use.outputs_first(found.weight)).to(use.parameter.dtype)
    new_bias = None
    if bias is not None and found.shift is not None:
        new_bias = (bias.detach().cpu().double() + torch.from_numpy(found.shift)).to(bias.dtype)
    # The error of what is written, rounded as it is.
    fitted = use.outputs_first(new.double().numpy())
    shift = None
    if bias is not None and new_bias is not None:
        shift = (new_bias.double() - bias.detach().cpu().double()).numpy()

    def errors(at: LayerMoments) -> tuple[float, float]:
        varied = at.second if bias is None else at.second - np.outer(at.mean, at.mean)
        size = float(mean_square(weight, varied).sum()) or 1.0
        before = mean_square(np.where(kept, 0.0, weight), at.second)
        after = mean_square(weight - fitted, at.second, at.mean, None if shift is None else -shift)
        return float(before.sum()) / size, float(after.sum()) / size

    checked = errors(checking[use.name]) if checking is not None and use.name in checking else None
    before, after = errors(moments)
    return LayerCompensation(
        before, after, checked, moments.positions, found.damping, new, new_bias, digest_of(use)
    )


def _warn(layers: Mapping[str, LayerCompensation], source: str) -> None:
    seen = {
        name: (1 - layer.checked[1] / layer.checked[0], layer.removed)
        for name, layer in layers.items()
        if layer.checked is not None and layer.checked[0]
    }
    less = sorted((on_batch, name) for name, (on_batch, said) in seen.items() if on_batch < _PROMISED * said)
    if less:
        on_batch, name = less[0]
        warnings.warn(
            f"{source} and the batch disagree on {len(less)} of {len(seen)} layers: in '{name}' compensation "
            f"removes {on_batch:.0%} of the mask's error on the batch, not {seen[name][1]:.0%}. "
            "Take the moments from batches instead",
            stacklevel=3,
        )
