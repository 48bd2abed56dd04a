"""A ledger of another model, and missing or reshaped parameters, are errors that name what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import MismatchError
from gradtrace.evidence.score import score

SHAPES = {"net.0.weight": (4, 3), "net.0.bias": (4,), "net.2.weight": (2, 4)}


def ones() -> dict[str, Any]:
    return {name: np.ones(shape) for name, shape in SHAPES.items()}


def test_a_ledger_of_another_model_shows_names_of_both(make_ledger: Callable[..., Any]) -> None:
    with pytest.raises(
        MismatchError,
        match=r"no parameter name in common: expected net\.0\.weight \(4, 3\), net\.2\.weight \(2, 4\), "
        r"got 'a', 'b', 'c', and 1 more\. Pass the weights of the model",
    ):
        score(make_ledger(SHAPES), {name: np.ones((4, 3)) for name in "abcd"}, "magnitude")


@pytest.mark.parametrize("by", ["support", "magnitude"])
def test_a_missing_parameter_is_named_with_its_shape(by: str, make_ledger: Callable[..., Any]) -> None:
    weights = ones()
    weights["net.2.wieght"] = weights.pop("net.2.weight")
    with pytest.raises(
        MismatchError,
        match=r"lack 1 of the 3 parameters.*: expected net\.2\.weight \(2, 4\), got 'net\.2\.wieght'",
    ):
        score(make_ledger(SHAPES), weights, by)


def test_many_missing_parameters_are_counted(make_ledger: Callable[..., Any]) -> None:
    shapes = {f"layers.{i}.weight": (2, 2) for i in range(9)}
    with pytest.raises(MismatchError, match=r"lack 8 of the 9.*layers\.1\.weight \(2, 2\).*and 5 more"):
        score(make_ledger(shapes), {"layers.0.weight": np.ones((2, 2))}, "magnitude")


@pytest.mark.parametrize("name", ["net.0.weight", "net.0.bias"])
def test_a_reshaped_parameter_is_named_with_both_shapes(name: str, make_ledger: Callable[..., Any]) -> None:
    weights = ones() | {name: np.ones((9, 3))}
    with pytest.raises(
        MismatchError,
        match=rf"parameter '{name}' has another shape.*: expected \(4,.*\), got \(9, 3\)\. Pass",
    ):
        score(make_ledger(SHAPES), weights, "magnitude")


def test_missing_biases_are_no_fault_as_they_are_not_scored(make_ledger: Callable[..., Any]) -> None:
    weights = ones()
    del weights["net.0.bias"]
    assert list(score(make_ledger(SHAPES), weights, "support")) == ["net.0.weight", "net.2.weight"]


def test_a_prefix_on_every_name_is_pointed_out(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger(SHAPES)
    with pytest.raises(
        MismatchError, match=r"Pass the module at 'model', or remove 'model\.' from every name"
    ):
        score(ledger, {f"model.{name}": array for name, array in ones().items()}, "magnitude")
    with pytest.raises(MismatchError, match=r"Pass the module that calls it 'net', or put 'net\.'"):
        score(ledger, {name.removeprefix("net."): array for name, array in ones().items()}, "magnitude")


def test_a_tied_weight_is_found_under_any_of_its_names(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"embed.weight": (3, 2)}, aliases={"embed.weight": ("head.weight",)})
    assert list(score(ledger, {"head.weight": np.ones((3, 2))}, "support")) == ["embed.weight"]


def test_a_ledger_without_matrices_leaves_nothing_to_score(make_ledger: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least two dimensions"):
        score(make_ledger({"b": (3,)}), {"b": np.ones(3), "w": np.ones((2, 2))}, "magnitude")
