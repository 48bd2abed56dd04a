"""|w| times the size of the input, with the input found along the right dimension."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError
from gradtrace.evidence.score import score

WEIGHT = np.random.default_rng(0).normal(size=(4, 3))


def test_of_a_linear_the_score_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(50, 3)
    found = score(None, layer, "wanda", inputs={"weight": (x**2).sum(dim=0)})["weight"]
    expected = (layer.weight.abs() * x.norm(p=2, dim=0).reshape(1, -1)).detach()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("told", [{"orientation": "in,out"}, {"module_class": "Embedding"}])
def test_inputs_may_be_rows(told: dict[str, str], make_ledger: Callable[..., Any]) -> None:
    found = score(make_ledger({"w": (4, 3)}, **told), {"w": WEIGHT}, "wanda", inputs={"w": [1, 4, 0, 9]})["w"]
    np.testing.assert_allclose(found, np.abs(WEIGHT) * np.array([[1], [2], [0], [3]]), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 3)], ids=["channels", "each-place"])
def test_a_convolutions_inputs_are_channels_or_places(shape: tuple[int, ...]) -> None:
    weight, moment = np.ones((5, 2, 3, 3)), np.random.default_rng(1).random(shape)
    found = score(None, {"w": weight}, "wanda", inputs={"w": moment})["w"]
    expected = np.broadcast_to(np.sqrt(moment.reshape(shape + (1,) * (3 - len(shape)))), weight.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_the_ledger_recorded_is_taken_where_nothing_is_passed(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (4, 3)}, accumulators=("input_sumsq",))
    ledger.inputs = {"": SimpleNamespace(sumsq=np.array([4.0, 9.0, 0.0]))}
    found = score(ledger, {"w": WEIGHT}, "wanda")["w"]
    np.testing.assert_allclose(found, np.abs(WEIGHT) * [[2, 3, 0]], rtol=1e-12)


def test_a_module_whose_inputs_were_not_recorded_is_named(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (4, 3)}, accumulators=("input_sumsq",))
    with pytest.raises(UnknownNameError, match=r"moments of the inputs of 'w'.*none recorded.*Pass inputs="):
        score(ledger, {"w": WEIGHT}, "wanda")


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_groups_of_a_convolution_have_inputs_of_their_own(groups: int) -> None:
    weight = np.ones((6, 2, 3))
    moment = np.random.default_rng(1).random(groups * 6)
    found = score(None, {"w": weight}, "wanda", inputs={"w": moment})["w"]
    for output in range(6):
        own = moment.reshape(groups, 2, 3)[output // (6 // groups)]
        np.testing.assert_allclose(found[output], np.sqrt(own), rtol=1e-12)


def test_without_a_ledger_and_inputs_the_way_out_is_named() -> None:
    with pytest.raises(
        UnknownNameError, match=r"needs the accumulator 'input_sumsq'.*got no ledger.*pass inputs="
    ):
        score(None, {"w": WEIGHT}, "wanda")


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ([1, 2, 3], InvalidValueError, "inputs: expected a mapping"),
        ({}, InvalidValueError, "every parameter scored, 'w' among them"),
        ({"v": [1, 2, 3]}, UnknownNameError, "unknown parameter in inputs 'v'"),
        ({"w": [1, 2, 3] * 3}, MismatchError, "input moments of 'w'"),
        ({"w": [1, 2, 3, 4]}, MismatchError, r"input moments of 'w': expected 3 numbers, .*got shape \(4,\)"),
        ({"w": [1, -2, 3]}, InvalidValueError, "sums of squares: finite, from 0 up, got -2 to 3"),
        ({"w": [1, np.nan, 3]}, InvalidValueError, "sums of squares"),
        ({"w": ["a", "b", "c"]}, InvalidValueError, "array of real numbers"),
    ],
)
def test_what_are_no_moments_is_refused(inputs: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        score(None, {"w": WEIGHT}, "wanda", inputs=inputs)
