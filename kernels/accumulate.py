"""Adds one step's gradients of all parameters to a window's totals, in one call.

For every parameter in `slots` and every element g of its gradient (times `scale`, where given), in float32,
with the step's weight k (1 unless given):

    grad_sum   += k * g           votes  += k * sign(g) * [ |g| > threshold ]
    grad_sumsq += k * g * g       events += [ |g| > threshold ]

So a step that stands for k steps has weight k, one of which only the events are wanted has weight 0, and
events count steps whatever their weight. An element that is NaN or infinite adds nothing and is no event.
`flags[slot]` tells what this step saw: SEEN, with EVENT if any element was one and NONFINITE if any was not
finite; or SKIPPED alone: then nothing was added. float64 gradients decide events before they are rounded to
float32; what becomes infinite by that counts as not finite. Counts are 16 bits wide: a window holds at most
32,767 steps, times their weight. Source: our own.

One idea a file: `accumulate_reference` is plain torch, the oracle; `accumulate_triton` the launch on a GPU,
one for each gradient dtype; `accumulate_cpu` the one compiled pass on a CPU. What cannot run here gives way
to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.kernels.accumulate_cpu import accumulate_cpu_, compiled_pass
from gradtrace.kernels.accumulate_reference import accumulate_reference_
from gradtrace.kernels.accumulate_triton import accumulate_triton_
from gradtrace.kernels.optional_triton import triton
from gradtrace.kernels.totals import EVENT, MOST_STEPS, NONFINITE, SEEN, SKIPPED, Totals

__all__ = [
    "EVENT",
    "MOST_STEPS",
    "NONFINITE",
    "SEEN",
    "SKIPPED",
    "Totals",
    "accumulate_",
    "accumulate_reference_",
]


def accumulate_(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    weight: int = 1,
) -> None:
    """Add one step's gradients to `totals` and write `flags`, in place and without a host sync on a GPU.

    `grads[k]`, of any shape, strides and floating dtype, belongs to parameter `slots[k]`; its elements, in
    row-major order, go to the flat range from `offsets[slots[k]]` on. `flags` is (P,) int32, `offsets` has P
    entries; flags of parameters not in `slots` are left as they are. `threshold` is in units of the
    scaled gradient, `scale` a 0-d float tensor that gradients are multiplied by, `skip` a 0-d tensor: nonzero
    skips the step. `weight` is how many steps this one stands for in all but the events, 0 to 32,767; each
    value is compiled for on a GPU, so keep them few.

    Raises InvalidValueError, MismatchError or UnsupportedError for arguments that do not fit together.
    """
    # Eager callers skip the dispatcher: passing the lists through it costs over a microsecond a parameter.
    run = torch.ops.gradtrace.accumulate_ if torch.compiler.is_compiling() else _accumulate
    run(*totals, flags, grads, slots, offsets, threshold, scale, skip, weight)


def _accumulate(
    grad_sum: Tensor,
    grad_sumsq: Tensor,
    events: Tensor,
    votes: Tensor,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    weight: int = 1,
) -> None:
    run = accumulate_reference_
    if flags.is_cuda and triton is not None:
        run = accumulate_triton_
    elif flags.is_cpu and compiled_pass() is not None:
        run = accumulate_cpu_
    totals = Totals(grad_sum, grad_sumsq, events, votes)
    run(totals, flags, grads, slots, offsets, threshold=threshold, scale=scale, skip=skip, weight=weight)


_accumulate_op = torch.library.custom_op(
    "gradtrace::accumulate_",
    mutates_args=("grad_sum", "grad_sumsq", "events", "votes", "flags"),
    schema=(
        "(Tensor(a0!) grad_sum, Tensor(a1!) grad_sumsq, Tensor(a2!) events, Tensor(a3!) votes, "
        "Tensor(a4!) flags, Tensor[] grads, "
        "SymInt[] slots, SymInt[] offsets, float threshold=0.0, Tensor? scale=None, "
        "Tensor? skip=None, int weight=1) -> ()"
    ),
)(_accumulate)


@_accumulate_op.register_fake
def _accumulate_fake(*_: object) -> None:
    return None
