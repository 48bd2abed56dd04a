"""What `nn.Embedding` contributes."""

from __future__ import annotations

from typing import Any

import torch

from gradtrace.recorder.below.contribution import Contribution, working
from gradtrace.recorder.below.linear import by_position
from gradtrace.recorder.below.lookup import Lookup

__all__ = ["embedding"]


def embedding(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` (V, E), from the rows looked up, x (S, *), and d (S, *, E).

    Positions of `padding_idx` contribute nothing; with `scale_grad_by_freq` each is divided by how often its
    row occurs in this call, as torch does.
    """
    rows, d = by_position(x, 0) if x.ndim else x.reshape(1, 1), by_position(d, 1)
    if module.scale_grad_by_freq:
        often = torch.bincount(rows.flatten(), minlength=module.num_embeddings)
        d = working(d) / often[rows][..., None]
    if module.padding_idx is not None:
        d = d.masked_fill((rows == module.padding_idx)[..., None], 0.0)
    return {"weight": Lookup(rows, d, module.num_embeddings)}
