"""The fp16 scaler: what gradients must be divided by, and whether it is about to skip the step."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

__all__ = ["scale_and_skip"]


def scale_and_skip(
    optimizer: Optimizer, scaler: GradScaler | None, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Factor for the gradients and skip mark: 0-d float32 tensors on `device`, or None without a scaler.

    After `scaler.unscale_` the scaler has already looked for non-finite gradients. Before it, and for fused
    optimizers, which unscale inside their step, the same look is asked for here: the scaler repeats it in
    `step`, and neither reads anything back to the host.
    """
    if scaler is None or not scaler.is_enabled():
        return None, None
    state = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"] is OptState.UNSCALED:
        scale, found = None, state["found_inf_per_device"]
    else:
        scale = scaler._get_scale_async()
        scale = None if scale is None else scale.to(device).reciprocal()
        found = scaler._check_inf_per_device(optimizer)
    marks = [mark.to(device) for mark in found.values()]
    skip = torch.stack(marks).sum() if marks else None
    return scale, skip
