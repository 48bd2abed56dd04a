"""A plain float64 loop over `p.grad`: the oracle for every sum in a ledger."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from torch import nn

# How long an example takes is decided by whatever else the machine does, and no test promises it.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class GradientLoop:
    """Sums over observed steps, per parameter name, in float64; non-finite elements add nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.grad_sum = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.grad_sumsq = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.events = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.votes = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.steps = dict.fromkeys(shapes, 0)
        self.missing = dict.fromkeys(shapes, 0)
        self.largest = 0.0

    def observe(self, only: set[int] | None = None, divide_by: float = 1.0) -> None:
        """Add the gradients as they are now; `only` are the ids of the parameters that step."""
        for name, parameter in self.model.named_parameters():
            if only is not None and id(parameter) not in only:
                continue
            if parameter.grad is None:
                self.missing[name] += 1
                continue
            raw = parameter.grad.detach().double().numpy() / divide_by
            grad = np.where(np.isfinite(raw), raw, 0.0)
            self.largest = max(self.largest, float(np.abs(grad).max(initial=0.0)))
            self.grad_sum[name] += grad
            self.grad_sumsq[name] += grad**2
            self.events[name] += grad != 0
            self.votes[name] += np.sign(grad).astype(np.int64)
            self.steps[name] += 1

    def check(self, ledger: object) -> None:
        """Counts equal exactly; sums within the float32 summation error of that many largest gradients."""
        for name in self.grad_sum:
            record = ledger[name]  # type: ignore[index]
            slack = 1e-6 * max(1, self.steps[name]) * self.largest
            np.testing.assert_array_equal(record.events, self.events[name], err_msg=name)
            np.testing.assert_array_equal(record.votes, self.votes[name], err_msg=name)
            np.testing.assert_allclose(
                record.grad_sum, self.grad_sum[name], rtol=1e-5, atol=slack, err_msg=name
            )
            np.testing.assert_allclose(
                record.grad_sumsq, self.grad_sumsq[name], rtol=1e-5, atol=slack * self.largest, err_msg=name
            )
            assert (record.steps, record.missing) == (self.steps[name], self.missing[name]), name


@pytest.fixture
def gradient_loop() -> Callable[[nn.Module], GradientLoop]:
    return GradientLoop
