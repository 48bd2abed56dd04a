"""Oracle: torch.optim itself, in float64, on gradients that are zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradtrace.errors import CorruptLedgerError, UnsupportedError
from gradtrace.evidence.decay import decayed, replay, rules_of

# A warm-up, a change of decay and a stretch without any: (steps, lr, weight_decay)
SCHEDULE = [(3, 1e-3, 0.1), (40, 5e-3, 0.1), (7, 2e-3, 0.0), (30, 1e-3, 0.02)]
OPTIMIZERS = [
    pytest.param("AdamW", {}, id="adamw"),
    pytest.param("AdamW", {"amsgrad": True, "betas": (0.5, 0.9)}, id="adamw-amsgrad"),
    pytest.param("Adam", {}, id="adam"),
    pytest.param("Adam", {"betas": (0.8, 0.95), "eps": 1e-4}, id="adam-betas-eps"),
    pytest.param("Adam", {"amsgrad": True}, id="adam-amsgrad"),
    pytest.param("Adam", {"maximize": True}, id="adam-maximize"),
    pytest.param("Adam", {"decoupled_weight_decay": True}, id="adam-decoupled"),
    pytest.param("SGD", {}, id="sgd"),
    pytest.param("SGD", {"momentum": 0.9}, id="sgd-momentum"),
    pytest.param("SGD", {"momentum": 0.9, "dampening": 0.5}, id="sgd-dampening"),
    pytest.param("SGD", {"momentum": 0.7, "nesterov": True}, id="sgd-nesterov"),
]


def by_torch(
    kind: str, options: dict[str, Any], start: np.ndarray[Any, Any], schedule: list[tuple[int, float, float]]
) -> np.ndarray[Any, Any]:
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = getattr(torch.optim, kind)([parameter], lr=1e-3, **options)
    for steps, lr, weight_decay in schedule:
        optimizer.param_groups[0].update(lr=lr, weight_decay=weight_decay)
        for _ in range(steps):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    result: np.ndarray[Any, Any] = parameter.detach().numpy()
    return result


def history_of(update: Callable[..., Any], kind: str, options: dict[str, Any]) -> tuple[Any, ...]:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return tuple(update(kind, steps, lr=lr, weight_decay=decay, **plain) for steps, lr, decay in SCHEDULE)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_the_replay_equals_torch_on_zero_gradients(
    kind: str, options: dict[str, Any], update: Callable[..., Any]
) -> None:
    start = np.array([0.0, 1e-9, -1e-6, 3e-4, -0.01, 0.04, -0.5, 3.0, -40.0])
    got = replay(start, rules_of(history_of(update, kind, options)))
    np.testing.assert_allclose(got, by_torch(kind, options, start, SCHEDULE), rtol=1e-10, atol=1e-14)
    assert not np.array_equal(got, start)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_decay_that_begins_late_meets_the_state_of_the_steps_before(
    kind: str, options: dict[str, Any], update: Callable[..., Any]
) -> None:
    late = [(5, 1e-2, 0.0), (20, 1e-2, 0.3)]
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    history = [update(kind, steps, lr=lr, weight_decay=decay, **plain) for steps, lr, decay in late]
    start = np.array([0.0, 1e-6, -0.01, 0.5])
    got = decayed(start, history)
    np.testing.assert_allclose(got, by_torch(kind, options, start, late), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_interpolation_is_exact_for_what_is_linear(kind: str, update: Callable[..., Any]) -> None:
    start = np.random.default_rng(0).normal(0, 0.05, (61, 43))
    got = decayed(start, history_of(update, kind, {}))
    np.testing.assert_allclose(got, by_torch(kind, {}, start, SCHEDULE), rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"eps": 1e-4}], ids=["adam", "amsgrad", "eps"])
def test_interpolation_of_adam_is_far_finer_than_a_step(
    options: dict[str, Any], update: Callable[..., Any]
) -> None:
    start = np.random.default_rng(0).normal(0, 0.05, (61, 43))
    got, truth = (
        decayed(start, history_of(update, "Adam", options)),
        by_torch("Adam", options, start, SCHEDULE),
    )
    assert np.abs(got - truth).max() < 1e-4
    assert np.median(np.abs(got - truth)) < 1e-6
    assert np.abs(truth - start).max() > 0.05


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (1, 1), (3, 700, 1)])
def test_any_shape_keeps_its_shape(shape: tuple[int, ...], update: Callable[..., Any]) -> None:
    got = decayed(np.ones(shape), [update("AdamW", 10, lr=0.1, weight_decay=0.5)])
    assert got.shape == shape
    np.testing.assert_allclose(got, np.full(shape, 0.95**10))


def test_no_decay_leaves_the_values_as_they_were_and_as_a_copy(update: Callable[..., Any]) -> None:
    start = np.array([[1.0, -2.0]])
    got = decayed(start, [update("Adam", 100, lr=0.1, weight_decay=0.0), update("Lion", 5, lr=0.1)])
    np.testing.assert_array_equal(got, start)
    assert not np.shares_memory(got, start)


def test_an_unknown_optimizer_that_decays_is_refused_by_name(update: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"weight decay 0\.1 of my\.Lion on parameter 'a\.w'.*AdamW"):
        decayed(np.ones((2, 2)), [update("my.Lion", 5, lr=0.1, weight_decay=0.1)], name="a.w")


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": None, "weight_decay": 0.1},
        {"lr": float("nan"), "weight_decay": 0.1},
        {"weight_decay": 0.1},
        {"lr": 0.1, "weight_decay": "much"},
        {"lr": 0.1, "weight_decay": 0.1, "betas": [0.9]},
        {"lr": 0.1, "weight_decay": 0.1, "betas": ["a", "b"]},
        {"lr": 0.1, "weight_decay": 0.1, "eps": True},
    ],
)
def test_settings_that_are_no_numbers_are_an_error_that_names_them(
    settings: dict[str, Any], update: Callable[..., Any]
) -> None:
    with pytest.raises(CorruptLedgerError, match=r"recorded optimizer setting '.*' of parameter 'a\.w'"):
        decayed(np.ones((2, 2)), [update("Adam", 5, **settings)], name="a.w")
