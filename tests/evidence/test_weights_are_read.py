"""Weights of modules, state dicts, arrays and wrapped models end as the same names and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradtrace.errors import InvalidValueError, MismatchError, UnreadableFileError, UnsupportedError
from gradtrace.evidence.score import score
from gradtrace.evidence.weights import read_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


class Owner(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner
        self.module = nn.Linear(2, 2)  # an honest attribute of that name


def test_a_module_and_its_state_dict_give_the_same() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3))
    own, state = read_weights(model), read_weights(model.state_dict())
    assert set(own.arrays) == {name for name, _ in model.named_parameters()}
    assert set(state.arrays) - set(own.arrays) == {
        "1.running_mean",
        "1.running_var",
    }  # the counter is no float
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(own.arrays[name], parameter.detach().numpy())
        np.testing.assert_array_equal(state.arrays[name], own.arrays[name])
    assert own.classes["2.weight"][0] == "Conv1d"


@pytest.mark.parametrize("as_state", [False, True])
def test_tied_weights_are_read_once_with_their_alias(as_state: bool) -> None:
    model = Tied()
    weights = read_weights(model.state_dict() if as_state else model)
    assert set(weights.arrays) == {"embed.weight", "head.bias"}
    assert weights.aliases == {"head.weight": "embed.weight"}
    assert weights.find("head.weight") == "embed.weight"
    assert weights.find("nothing", "head.weight") == "embed.weight"
    assert weights.find("nothing") is None
    assert list(score(None, model, "magnitude")) == ["embed.weight"]


def test_a_tied_weight_has_the_class_of_the_module_that_owns_its_first_name() -> None:
    assert read_weights(Tied()).classes["embed.weight"][0] == "Embedding"


@pytest.mark.parametrize(
    ("dtype", "read", "rounding"),
    [
        (torch.float64, np.float64, 2.0**-52),
        (torch.float32, np.float32, 2.0**-23),
        (torch.float16, np.float32, 2.0**-10),
        (torch.bfloat16, np.float32, 2.0**-7),
        (torch.float8_e4m3fn, np.float32, 2.0**-3),
    ],
)
def test_every_float_dtype_is_read_without_loss(dtype: torch.dtype, read: type, rounding: float) -> None:
    tensor = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)
    weights = read_weights({"w": tensor})
    assert weights.arrays["w"].dtype == read
    assert weights.rounding["w"] == rounding
    np.testing.assert_array_equal(weights.arrays["w"].astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("value", [[[1.0, 2.0], [3.0, 4.0]], np.array([[1, 2], [3, 4]], np.float16)])
def test_array_likes_are_read(value: Any) -> None:
    np.testing.assert_array_equal(read_weights({"w": value}).arrays["w"], [[1, 2], [3, 4]])


def test_compiled_modules_keep_their_plain_names() -> None:
    # What torch.compile returns, without the seconds that importing its machinery takes.
    compiled = nn.ModuleDict({"_orig_mod": nn.Sequential(nn.Linear(3, 4))})
    assert set(read_weights(compiled).arrays) == {"0.weight", "0.bias"}
    assert set(read_weights({"_orig_mod.0.weight": torch.ones(2, 2)}).arrays) == {"0.weight"}


def test_a_parallel_wrapper_is_taken_off_and_an_honest_module_kept() -> None:
    plain = {"net.weight", "net.bias", "module.weight", "module.bias"}
    assert set(read_weights(Owner(nn.Linear(3, 4))).arrays) == plain
    assert set(read_weights(nn.DataParallel(Owner(nn.Linear(3, 4)))).arrays) == plain
    inside = read_weights(nn.DataParallel(Owner(nn.DataParallel(nn.Linear(3, 4)))))
    assert set(inside.arrays) == plain
    assert inside.classes["net.weight"][0] == "Linear"
    assert set(read_weights({"module.weight": np.ones((2, 2))}).arrays) == {"module.weight"}


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        ({}, InvalidValueError, "weights: expected at least one parameter, got none"),
        (nn.ReLU(), InvalidValueError, "at least one parameter"),
        (None, InvalidValueError, r"nn\.Module or a mapping.*got NoneType.*state_dict"),
        ("model.pt", UnreadableFileError, "weights file .model.pt. cannot be read"),
        ([np.ones((2, 2))], InvalidValueError, "got list"),
        ({1: np.ones((2, 2))}, InvalidValueError, "names of parameters as keys, got 1"),
        ({"state_dict": {"w": 1}}, InvalidValueError, r"weights\['state_dict'\].*pass its state_dict"),
        ({"w": "abc"}, InvalidValueError, r"weights\['w'\]: expected an array of real numbers"),
        ({"w": [[1.0, 2.0], [3.0]]}, InvalidValueError, r"weights\['w'\]: expected an array of numbers"),
        ({"w": np.ones((2, 2), complex)}, InvalidValueError, "real numbers"),
        ({"w": torch.ones(2, 2, dtype=torch.complex64)}, UnsupportedError, "not real"),
        ({"w": torch.ones(2, 2, device="meta")}, UnsupportedError, r"weights\['w'\] has no values"),
        ({"w": torch.eye(3).to_sparse()}, UnsupportedError, "has no values that can be read"),
        (nn.LazyLinear(3), UnsupportedError, "has no values"),
        (
            {"_orig_mod.w": np.ones((2, 2)), "w": np.ones((2, 2))},
            MismatchError,
            "two different parameters named 'w'",
        ),
        (
            {"w": np.ones((2, 2), int)},
            InvalidValueError,
            "floating-point parameter of at least two dimensions",
        ),
        ({"b": np.ones(3)}, InvalidValueError, "at least two dimensions, got none among 'b'"),
        (
            {"a.w": np.array([[1.0, np.nan], [np.inf, 2]])},
            InvalidValueError,
            "'a.w'.*got 2 of 4 NaN or infinite",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_clear_error(weights: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        score(None, weights, "magnitude")
