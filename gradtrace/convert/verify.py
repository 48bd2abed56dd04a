"""A converted model must compute what the masked dense model computes: the check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.convert.evaluation import arguments, in_eval, quality_of
from gradtrace.convert.linears import linears, nearest
from gradtrace.convert.listening import AfterForward, listening
from gradtrace.convert.lost import lost_shares
from gradtrace.convert.model import check_model
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import InvalidValueError, MismatchError, NotEquivalentError
from gradtrace.ledger.names import canonical

__all__ = ["Difference", "Verification", "verify"]

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Difference:
    """The largest |a - reference|, and that over the largest |reference|; `tolerance` is for the latter."""

    absolute: float
    relative: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Is it within the tolerance? Never where a number is not finite."""
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """The difference of the outputs and of each converted layer on the same input, by canonical name.

    `lost`: where the original was given, how far each converted layer is from the layer that it was before
    mask and compensation: mean squared difference in shares of the variance of that layer's output.
    `quality`: where `validate` was given, what it says of the "original" if that was given too, of the
    "reference" and of the "converted" model.
    """

    output: Difference
    layers: Mapping[str, Difference]
    lost: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)

    @property
    def quality_change(self) -> float | None:
        """Quality of the converted model less the original's; None where either is not known."""
        if not {"original", "converted"} <= set(self.quality):
            return None
        return self.quality["converted"] - self.quality["original"]


@torch.no_grad()
def verify(
    reference_model: nn.Module,
    model: nn.Module,
    batch: object,
    *,
    original: nn.Module | None = None,
    validate: Callable[[nn.Module], float] | None = None,
) -> Verification:
    """Run both models on `batch` in eval mode and compare outputs and converted layers.

    `reference_model` is the dense model that `model` must equal: `apply_mask_(copy, plan)` with the plan
    that converted it, or `compensate_(copy, plan, ...)`. With `original`, the model as it was trained, the
    report says too what mask and compensation change, layer by layer; with `validate`, model -> held-out loss
    or quality, what they change in that. `batch` is a tensor, a tuple of
    positional arguments or a dict of keyword arguments, on the models' device. A layer is compared on the
    input that it has in `model`, so one layer's error does not count for the next. All models keep their
    modes and gradients. Tolerances are relative to the largest reference value: 1e-12 for float64, 1e-5 for
    float32, 2e-3 for float16, 2e-2 for bfloat16.

    Raises:
        NotEquivalentError: a difference beyond its tolerance, or a value that is not finite.
        MismatchError: the models have different layers or outputs.
        InvalidValueError: a batch of another kind, a model without any floating-point output, no model, or
            a `validate` that returns no finite number.
    """
    check_model(reference_model, "reference_model")
    check_model(model)
    if original is not None:
        check_model(original, "original")
    args, kwargs = arguments(batch)
    with in_eval(reference_model), in_eval(model):
        expected = list(_tensors(reference_model(*args, **kwargs)))
        got = list(_tensors(model(*args, **kwargs)))
        layers = _compare_layers(reference_model, model, args, kwargs)
    if [value.shape for value in expected] != [value.shape for value in got]:
        raise MismatchError(
            "the two models give different outputs",
            expected=str([tuple(value.shape) for value in expected]),
            got=str([tuple(value.shape) for value in got]),
        )
    if not expected:
        raise InvalidValueError("model output", expected="at least one floating-point tensor", got="none")
    # Where a layer in the middle is bfloat16, float32 outputs are no more exact than it is.
    coarsest = max((difference.tolerance for difference in layers.values()), default=0.0)
    output = _largest([_difference(a, b, coarsest) for a, b in zip(got, expected, strict=True)])
    wrong = [f"layer '{name}'" for name, difference in layers.items() if not difference.within]
    if wrong or not output.within:
        first = layers[wrong[0].split("'")[1]] if wrong else output
        raise NotEquivalentError(
            f"{', '.join(wrong) or 'the output'} of the converted model differs from the reference",
            expected=f"a relative difference of at most {first.tolerance:g}",
            got=f"{first.relative:.3g} (absolute {first.absolute:.3g})",
            remedy="compare with the masked dense model: gt.apply_mask_(copy of the original, plan)",
        )
    lost: dict[str, float] = {}
    if original is not None:
        with in_eval(original), in_eval(model):
            lost = lost_shares(original, model, args, kwargs)
    asked = {"original": original, "reference": reference_model, "converted": model}
    quality = {
        what: quality_of(one, validate)
        for what, one in asked.items()
        if one is not None and validate is not None
    }
    return Verification(output, layers, lost, quality)


def _compare_layers(
    reference_model: nn.Module, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Difference]:
    references = {canonical(name): module for name, module in reference_model.named_modules()}
    # The projections of an nn.MultiheadAttention are no modules there.
    references |= {
        name: layer.linear() for name, layer in linears(reference_model).items() if name not in references
    }
    found: dict[str, list[Difference]] = {}
    routed = {canonical(name): one for name, one in model.named_modules() if isinstance(one, RoutedLinear)}
    for name in routed:
        if name not in references:
            raise MismatchError(
                f"the reference has no layer '{name}'", remedy=nearest(name, list(references))
            )

    def comparing(name: str) -> AfterForward:
        def compare(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> None:
            # Not the layer itself: that would also run its hooks.
            expected = references[name].forward(*given, **named)
            found.setdefault(name, []).append(_difference(y, expected, 0.0))

        return compare

    if routed:
        with listening((layer, comparing(name)) for name, layer in routed.items()):
            model(*args, **kwargs)
    return {name: _largest(differences) for name, differences in found.items()}


def _difference(got: Tensor, expected: Tensor, least_tolerance: float) -> Difference:
    if got.shape != expected.shape:
        raise MismatchError(
            "the layers give different outputs",
            expected=str(tuple(expected.shape)),
            got=str(tuple(got.shape)),
        )
    tolerance = max(_TOLERANCES.get(value.dtype, 1e-5) for value in (got, expected))
    absolute = (got.double() - expected.double()).abs().max().item() if got.numel() else 0.0
    size = expected.double().abs().max().item() if got.numel() else 0.0
    relative = absolute / size if size else (0.0 if absolute == 0 else float("inf"))
    return Difference(absolute, relative, max(tolerance, least_tolerance))


def _largest(differences: list[Difference]) -> Difference:
    # Written so that NaN, which compares as false with everything, comes out as the largest.
    largest = differences[0]
    for difference in differences[1:]:
        if not difference.relative / difference.tolerance <= largest.relative / largest.tolerance:
            largest = difference
    return largest


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
    elif is_dataclass(output):
        for field in fields(output):
            yield from _tensors(getattr(output, field.name))
