"""The gradient in a layer's output, also where the output is changed in place afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["on_gradient"]


def on_gradient(out: torch.Tensor, receive: Callable[[torch.Tensor], object]) -> None:
    """Call `receive` with the gradient in `out` as it is now, each time that a backward pass comes by.

    A hook on a view (what a linear layer returns for three axes) is lost once the view is changed in place,
    by an `nn.ReLU(inplace=True)` for one; a hook on what it is a view of is not.
    """
    base = out._base
    if base is None or base.grad_fn is None or not base.is_contiguous():

        def plain(d: torch.Tensor) -> None:
            receive(d)

        out.register_hook(plain)  # type: ignore[no-untyped-call]
        return
    size, stride, offset = out.size(), out.stride(), out.storage_offset() - base.storage_offset()

    def viewed(d: torch.Tensor) -> None:
        receive(d.contiguous().as_strided(size, stride, offset))

    base.register_hook(viewed)  # type: ignore[no-untyped-call]
