"""What a mask drops stays zero, and what it keeps trains as if nothing else had ever been there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradtrace.annealing.masking import Masking
from gradtrace.errors import MismatchError

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3))


def mask() -> dict[str, Any]:
    draw = np.random.default_rng(1)
    return {"0.weight": draw.random((9, 7)) < 0.4, "2.weight": draw.random((3, 9)) < 0.5}


def batch(step: int) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(step))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[str], None]) -> None:
    for step in range(12):
        optimizer.zero_grad()
        net(batch(step)).square().sum().backward()
        after("backward")
        optimizer.step()
        after("step")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_kept_train_as_if_the_dropped_had_never_been(name: str) -> None:
    kept = {key: torch.from_numpy(value) for key, value in mask().items()}
    held, oracle = model(), model()
    own = OPTIMIZERS[name](held.parameters())
    masking = Masking(held, mask())
    masking.apply_([own])
    train(held, own, lambda what: masking.apply_([own]) if what == "step" else None)

    parameters = dict(oracle.named_parameters())
    with torch.no_grad():
        for key, where in kept.items():
            parameters[key].mul_(where)

    def no_gradient(what: str) -> None:
        for key, where in kept.items():
            if what == "backward":
                gradient = parameters[key].grad
                assert gradient is not None
                gradient.mul_(where)

    train(oracle, OPTIMIZERS[name](oracle.parameters()), no_gradient)
    for key, parameter in held.named_parameters():
        torch.testing.assert_close(parameter, parameters[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_was_gathered_before_is_dropped_too(name: str) -> None:
    net = model()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, lambda what: None)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    Masking(net, mask()).apply_([optimizer])
    for number, (key, parameter) in enumerate(net.named_parameters()):
        gone = torch.from_numpy(~mask()[key]) if key in mask() else torch.zeros_like(parameter).bool()
        elementwise = [
            k for k, v in optimizer.state[parameter].items() if getattr(v, "shape", 0) == gone.shape
        ]
        assert elementwise
        for what in elementwise:
            value = optimizer.state[parameter][what]
            assert (value[gone] == 0).all(), what
            assert torch.equal(value[~gone], before[number][what][~gone]), what


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"0\.weight"):
        Masking(model(), {"0.weight": np.ones((7, 9), np.bool_)})
