"""`accumulate_` as a torch operator, its argument checks, and its form for devices without Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtrace.errors import GradtraceError, InvalidValueError, MismatchError, UnsupportedError
from gradtrace.kernels.accumulate import (
    EVENT,
    NONFINITE,
    SEEN,
    SKIPPED,
    Totals,
    accumulate_,
    accumulate_reference_,
)
from gradtrace.kernels.accumulate_reference import _add_masked


def empty(length: int, device: str = "cpu") -> Totals:
    return Totals(
        torch.zeros(length, device=device),
        torch.zeros(length, device=device),
        torch.zeros(length, dtype=torch.int16, device=device),
        torch.zeros(length, dtype=torch.int16, device=device),
    )


def a_step(scale: float | None = None, skip: float | None = None) -> tuple[Any, ...]:
    grads = [torch.tensor([[1.0, 0.0], [-2.0, 3.0]]), torch.tensor([0.5, float("nan")], dtype=torch.float64)]
    return (
        torch.zeros(2, dtype=torch.int32),
        grads,
        [1, 0],
        [0, 3],
        0.25,
        None if scale is None else torch.tensor(scale),
        None if skip is None else torch.tensor(skip),
    )


@pytest.mark.parametrize(("scale", "skip"), [(None, None), (0.5, None), (0.5, 1.0)])
def test_the_operator_passes_opcheck(scale: float | None, skip: float | None) -> None:
    torch.library.opcheck(torch.ops.gradtrace.accumulate_, (*empty(7), *a_step(scale, skip)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when inductor is loaded
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_without_a_graph_break(backend: str) -> None:
    def observe(totals: Totals, flags: Tensor, grads: list[Tensor]) -> None:
        # Views only: a sum or product here would make inductor start a C++ compiler, which takes long.
        accumulate_(totals, flags, [grad.view(-1) for grad in grads], [0, 1], [0, 4])

    grads = [torch.tensor([1.0, 0.0, -3.0]), torch.tensor([0.0, 4.0])]
    compiled, plain = empty(6), empty(6)
    flags = torch.zeros(2, dtype=torch.int32)
    torch.compile(observe, fullgraph=True, backend=backend)(compiled, flags, grads)
    observe(plain, torch.zeros(2, dtype=torch.int32), grads)
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))
    assert flags.tolist() == [SEEN | EVENT, SEEN | EVENT]


@pytest.mark.parametrize("live", [None, True, False])
def test_the_form_that_never_asks_the_device_equals_the_one_that_does(live: bool | None) -> None:
    grad = torch.tensor([1.0, 0.0, -0.125, float("inf"), -4.0])
    masked, asked = empty(5), empty(5)
    bits = _add_masked(masked, grad, 0.125, None if live is None else torch.tensor(live), 1)
    flags = torch.zeros(1, dtype=torch.int32)
    skip = None if live is None else torch.tensor(float(not live))
    accumulate_reference_(asked, flags, [grad], [0], [0], threshold=0.125, skip=skip)
    assert all(torch.equal(a, b) for a, b in zip(masked, asked, strict=True))
    assert int(bits) == int(flags) == (SKIPPED if live is False else SEEN | EVENT | NONFINITE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("run", [accumulate_, accumulate_reference_])
def test_no_step_waits_for_the_device(run: Callable[..., None]) -> None:
    totals, flags = empty(5000, "cuda"), torch.zeros(2, dtype=torch.int32, device="cuda")
    grads = [torch.randn(4000, device="cuda"), torch.randn(70, 10, device="cuda").t()]
    skip = torch.zeros((), device="cuda")
    run(totals, flags, grads, [0, 1], [0, 4000], skip=skip)  # the first step makes the table
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(totals, flags, grads, [0, 1], [0, 4000], skip=skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert flags.tolist() == [SEEN | EVENT, SEEN | EVENT]


def wrong(**changes: Any) -> dict[str, Any]:
    """Arguments that fit, but for the changes."""
    fitting: dict[str, Any] = {
        "totals": empty(8),
        "flags": torch.zeros(2, dtype=torch.int32),
        "grads": [torch.ones(3), torch.ones(4)],
        "slots": [0, 1],
        "offsets": [0, 4],
    }
    return fitting | changes


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (wrong(threshold=-1.0), InvalidValueError, "threshold"),
        (wrong(threshold=float("nan")), InvalidValueError, "threshold"),
        (wrong(totals=empty(7)), MismatchError, "slot 1 does not fit"),
        (wrong(offsets=[-1, 4]), MismatchError, "slot 0 does not fit"),
        (wrong(offsets=[0, 4, 8]), MismatchError, "offsets"),
        (wrong(slots=[0]), MismatchError, "slots"),
        (wrong(slots=[1, 1]), InvalidValueError, "slots"),
        (wrong(slots=[0, 2]), InvalidValueError, "slots"),
        (wrong(slots=[0, -1]), InvalidValueError, "slots"),
        (wrong(flags=torch.zeros(2)), MismatchError, "flags"),
        (wrong(totals=empty(8)._replace(events=torch.zeros(8))), MismatchError, "events"),
        (wrong(totals=empty(8)._replace(votes=empty(9).votes)), MismatchError, "votes"),
        (wrong(totals=empty(8)._replace(grad_sum=torch.zeros(16)[::2])), MismatchError, "grad_sum"),
        (wrong(grads=[torch.ones(3), torch.ones(4, dtype=torch.int64)]), UnsupportedError, "gradient"),
        (wrong(grads=[torch.ones(3), torch.ones(4).to_sparse()]), UnsupportedError, "gradient"),
        (wrong(grads=[torch.ones(3), torch.ones(4, device="meta")]), MismatchError, "devices"),
        (wrong(scale=torch.ones(2)), InvalidValueError, "scale"),
        (wrong(skip=torch.ones(2)), InvalidValueError, "skip"),
        (wrong(weight=-1), InvalidValueError, "weight"),
        (wrong(weight=2**15), InvalidValueError, "weight"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_added(
    arguments: dict[str, Any], error: type[GradtraceError], said: str
) -> None:
    with pytest.raises(error, match=said):
        accumulate_(**arguments)
    assert not any(total.any() for total in arguments["totals"])
